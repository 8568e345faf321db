import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from fuhu_runway import Client, PollPolicy, errors
from fuhu_runway.testing import Simulator, TaskView, faults


@pytest.fixture
async def gateway(virtual: None) -> AsyncIterator[Simulator]:
    """Return a gateway with the default speed."""
    async with Simulator() as simulator:
        yield simulator


@pytest.fixture
async def client(gateway: Simulator) -> AsyncIterator[Client]:
    """Return a client with the default pace, without jitter."""
    calm = PollPolicy(jitter=0)
    async with Client(gateway.api_key, base_url=gateway.base_url, polling=calm) as client:
        yield client


def complaint(assertion: Callable[..., None], *arguments: Any) -> list[str]:
    """Return the lines of the assertion's error."""
    with pytest.raises(AssertionError) as shown:
        assertion(*arguments)
    return str(shown.value).splitlines()


async def test_tasks_may_be_read_while_another_is_accepted(
    gateway: Simulator, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A synchronous test reads the tasks while the gateway's thread adds one."""
    await client.generate("a kitten")
    tasks = gateway._store.tasks
    (task,) = tasks.values()
    view, kind = task.view, type(task)

    def view_beside_a_submit(_: object, clock: Any) -> TaskView:
        tasks["another"] = task
        return view(clock)

    monkeypatch.setattr(kind, "view", view_beside_a_submit)
    assert len(gateway.tasks) == 1
    assert len(gateway.tasks) == 2


async def test_one_submit_is_one_submit(gateway: Simulator, client: Client) -> None:
    """Exactly one task matches: of all, by prompt, or by pattern."""
    await client.generate("a kitten in the rain")
    gateway.assert_submitted_once()
    gateway.assert_submitted_once("a kitten in the rain")
    gateway.assert_submitted_once(re.compile("kitten"))


async def test_a_second_submit_is_shown(gateway: Simulator, client: Client) -> None:
    """An unexpected task is marked, with its instant, state, polls and points."""
    gateway.script("a kitten", takes=10, then="fail")
    with pytest.raises(errors.TaskFailed):
        await (await client.generate("a kitten"))
    await client.generate("a dog")
    await asyncio.sleep(1000)
    await client.generate("a kitten")
    headline, _, head, first, dog, second, _, legend = complaint(
        gateway.assert_submitted_once, "a kitten"
    )
    assert headline == "expected 1 submission of 'a kitten', got 2, for 640 points."
    assert head.split() == ["at", "prompt", "state", "polls", "paid"]
    assert first.split() == ["0", "s", "'a", "kitten'", "failed", "4x", "320", "(refunded)"]
    assert dog.startswith("   ")
    assert "succeeded" in dog
    assert second.startswith("+  ")
    assert second.endswith("0x     320")
    assert legend == "+ was unexpected."
    assert len(complaint(gateway.assert_submitted_once)) == len((first, dog, second)) + 5


@pytest.mark.parametrize(
    ("wanted", "name"),
    [("a puppy", "'a puppy'"), (re.compile("pup+y"), "/pup+y/"), (None, "the next task")],
)
async def test_a_missing_submit_is_shown(
    gateway: Simulator, wanted: str | re.Pattern[str] | None, name: str
) -> None:
    """A task that was never submitted is shown by its prompt or pattern."""
    headline, *_, missing, _, legend = complaint(gateway.assert_submitted_once, wanted)
    assert "got 0, for 0 points" in headline
    assert missing.startswith("-  never  ")
    assert name in missing
    assert legend == "- is missing."


async def test_all_plans_were_used(gateway: Simulator, client: Client) -> None:
    """The assertion holds if all scripts and faults were used and all tasks polled."""
    gateway.script("a kitten", takes=10, faults=[faults.on("feed", faults.Slow(1.0))])
    gateway.script(takes=10)
    gateway.fault("feed", faults.server_error(), times=None)
    gateway.fault("submit", faults.TooManyRequests(), times=2)
    waits = [await client.generate("a kitten"), await client.generate("a dog")]
    gateway.forget_plans()
    await asyncio.gather(*(task.wait() for task in waits))
    gateway.assert_all_used()


def by_the_body(body: Mapping[str, Any]) -> bool:
    """Return whether the prompt is about kittens."""
    return "kitten" in body["prompt"]


async def test_unused_plans_and_unpolled_tasks_are_shown(
    gateway: Simulator, client: Client
) -> None:
    """Unused scripts, unused faults and unpolled tasks are in the error."""
    gateway.script("a puppy")
    gateway.script(re.compile("rain"))
    gateway.script(by_the_body)
    gateway.script()
    gateway.fault("download", faults.Cut())
    await client.generate("a dog", model="gen3")
    gateway.script("a late one", faults=[faults.on("submit", faults.Drop())])
    headline, *rows, _, legend = complaint(gateway.assert_all_used)
    assert headline == "6 plans were never used and 1 paid task was never polled."
    assert [row.split()[0] for row in rows[2:]] == ["?", *"-" * 6]
    shown = "\n".join(rows)
    for name in ("'a puppy'", "/rain/", "by_the_body", "'a late one'", "Cut on 'download'"):
        assert name in shown
    assert "Drop on 'submit'" in shown
    assert legend == "? was paid for but never polled; - is missing."


async def test_an_unpolled_task_is_shown(gateway: Simulator, client: Client) -> None:
    """A paid task that is never polled is a clip that may be lost."""
    await client.generate("a dog")
    headline, *_ = complaint(gateway.assert_all_used)
    assert headline == "1 paid task was never polled."


@pytest.mark.parametrize("which", ["a kitten", re.compile("kit+en"), lambda body: True])
async def test_scripts_for_the_same_tasks_go_in_order(
    gateway: Simulator, client: Client, which: Any
) -> None:
    """Of two scripts for a prompt, the first is for the first task, the last for all others."""
    gateway.script(which, then="fail", reason="the first")
    gateway.script(which, then="fail", reason="the second")
    gateway.script(which, takes=1)
    for reason in ("the first", "the second"):
        with pytest.raises(errors.TaskFailed, match=reason):
            await (await client.generate("a kitten"))
    assert complaint(gateway.assert_all_used)[0] == "1 plan was never used."
    for _ in range(2):
        await (await client.generate("a kitten"))
    gateway.assert_all_used()


async def test_a_refused_submit_does_not_use_up_a_script(
    gateway: Simulator, client: Client
) -> None:
    """A retried submit gets the same script as before."""
    fault = faults.on("submit", faults.TooManyRequests(retry_after=1))
    gateway.script("a kitten", faults=[fault], then="fail")
    gateway.script("a kitten", takes=1)
    with pytest.raises(errors.TaskFailed):
        await (await client.generate("a kitten"))
    await (await client.generate("a kitten"))
    gateway.assert_all_used()


async def test_a_later_script_for_other_tasks_goes_first(
    gateway: Simulator, client: Client
) -> None:
    """A script for a prompt does not wait for an earlier pattern that matches as well."""
    gateway.script(re.compile(""), then="fail")
    gateway.script("a kitten", takes=1)
    for _ in range(2):
        await (await client.generate("a kitten"))
    with pytest.raises(errors.TaskFailed):
        await (await client.generate("a dog"))
    gateway.assert_all_used()


@pytest.mark.parametrize("option", ["which", "takes", "price"])
async def test_an_error_in_a_function_of_the_users_is_raised(option: str) -> None:
    """An error in a test's own function is not mistaken for the gateway's."""

    def mistaken(body: Mapping[str, Any]) -> Any:
        return body["promt"]

    own = {} if option == "which" else {option: mistaken}
    with pytest.raises(KeyError, match="promt") as error:  # noqa: PT012 - it comes at the end
        async with (
            Simulator(**own) as gateway,
            Client(gateway.api_key, base_url=gateway.base_url) as client,
        ):
            if option == "which":
                gateway.script(mistaken)
            with pytest.raises(errors.SubmissionInDoubt):
                await client.generate("a kitten")
            assert [type(one) for one in gateway.mistakes] == [KeyError]
    assert error.traceback[-1].name == "mistaken"
    assert gateway.mistakes == []


async def test_a_refused_submit_uses_its_script(gateway: Simulator, client: Client) -> None:
    """A script whose submit was refused on purpose counts as used, though there is no task."""
    gateway.script("a kitten", faults=[faults.on("submit", faults.key_exhausted())])
    with pytest.raises(errors.OutOfCredits):
        await client.generate("a kitten")
    gateway.assert_all_used()
