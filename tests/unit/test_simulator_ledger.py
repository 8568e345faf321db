import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from fuhu_runway import Client, PollPolicy, errors
from fuhu_runway.testing import Simulator, faults


@pytest.fixture
async def gateway(virtual: None) -> AsyncIterator[Simulator]:
    """Return a gateway at its natural pace."""
    async with Simulator() as simulator:
        yield simulator


@pytest.fixture
async def client(gateway: Simulator) -> AsyncIterator[Client]:
    """Return a client at its natural pace, without chance."""
    calm = PollPolicy(jitter=0)
    async with Client(gateway.api_key, base_url=gateway.base_url, polling=calm) as client:
        yield client


def complaint(assertion: Callable[..., None], *arguments: Any) -> list[str]:
    """Return the lines of what a failed assertion says."""
    with pytest.raises(AssertionError) as told:
        assertion(*arguments)
    return str(told.value).splitlines()


async def test_one_submit_is_one_submit(gateway: Simulator, client: Client) -> None:
    """Exactly one task is as it should be: of all, with a prompt, or with a pattern in it."""
    await client.generate("a kitten in the rain")
    gateway.assert_submitted_once()
    gateway.assert_submitted_once("a kitten in the rain")
    gateway.assert_submitted_once(re.compile("kitten"))


async def test_a_second_submit_is_shown(gateway: Simulator, client: Client) -> None:
    """One too many is marked, with its instant, its state, its polls and its points."""
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
async def test_no_submit_is_told(
    gateway: Simulator, wanted: str | re.Pattern[str] | None, name: str
) -> None:
    """A task that never came is named as it was asked for."""
    headline, *_, missing, _, legend = complaint(gateway.assert_submitted_once, wanted)
    assert "got 0, for 0 points" in headline
    assert missing.startswith("-  never  ")
    assert name in missing
    assert legend == "- is missing."


async def test_all_that_was_planned_came(gateway: Simulator, client: Client) -> None:
    """Scripts that were taken, faults that happened and tasks that were asked about are fine."""
    gateway.script("a kitten", takes=10, faults=[faults.on("feed", faults.Slow(1.0))])
    gateway.script(takes=10)
    gateway.fault("feed", faults.server_error(), times=None)
    gateway.fault("submit", faults.TooManyRequests(), times=2)
    waits = [await client.generate("a kitten"), await client.generate("a dog")]
    gateway.forget_plans()
    await asyncio.gather(*(task.wait() for task in waits))
    gateway.assert_all_asked()


def by_the_body(body: Mapping[str, Any]) -> bool:
    """Return whether the prompt is about kittens."""
    return "kitten" in body["prompt"]


async def test_what_is_left_over_is_told(gateway: Simulator, client: Client) -> None:
    """Scripts without a task, faults that never happened and tasks nobody asked about are shown."""
    gateway.script("a puppy")
    gateway.script(re.compile("rain"))
    gateway.script(by_the_body)
    gateway.script()
    gateway.fault("download", faults.Cut())
    await client.generate("a dog", model="gen3")
    gateway.script("a late one", faults=[faults.on("submit", faults.Drop())])
    headline, *rows, _, legend = complaint(gateway.assert_all_asked)
    assert headline == "6 of the plans were never used and 1 of the paid tasks were never polled."
    assert [row.split()[0] for row in rows[2:]] == ["?", *"-" * 6]
    told = "\n".join(rows)
    for name in ("'a puppy'", "/rain/", "by_the_body", "'a late one'", "Cut on 'download'"):
        assert name in told
    assert "Drop on 'submit'" in told
    assert legend == "? was paid for but never polled; - is missing."


async def test_a_task_that_nobody_asks_about_is_told(gateway: Simulator, client: Client) -> None:
    """A paid task that was left alone is a clip that may be lost."""
    await client.generate("a dog")
    headline, *_ = complaint(gateway.assert_all_asked)
    assert headline == "1 of the paid tasks were never polled."


@pytest.mark.parametrize("which", ["a kitten", re.compile("kit+en"), lambda body: True])
async def test_scripts_for_the_same_tasks_go_in_order(
    gateway: Simulator, client: Client, which: Any
) -> None:
    """Of two scripts for a prompt, the first is for the first task and the last one stays."""
    gateway.script(which, then="fail", reason="the first")
    gateway.script(which, then="fail", reason="the second")
    gateway.script(which, takes=1)
    for reason in ("the first", "the second"):
        with pytest.raises(errors.TaskFailed, match=reason):
            await (await client.generate("a kitten"))
    assert complaint(gateway.assert_all_asked)[0] == "1 of the plans were never used."
    for _ in range(2):
        await (await client.generate("a kitten"))
    gateway.assert_all_asked()


async def test_a_refused_submit_does_not_use_up_a_script(
    gateway: Simulator, client: Client
) -> None:
    """The submit that comes again meets the script that it met before."""
    fault = faults.on("submit", faults.TooManyRequests(retry_after=1))
    gateway.script("a kitten", faults=[fault], then="fail")
    gateway.script("a kitten", takes=1)
    with pytest.raises(errors.TaskFailed):
        await (await client.generate("a kitten"))
    await (await client.generate("a kitten"))
    gateway.assert_all_asked()


async def test_a_later_script_for_other_tasks_goes_first(
    gateway: Simulator, client: Client
) -> None:
    """A script for a prompt does not wait for a pattern that fits as well."""
    gateway.script(re.compile(""), then="fail")
    gateway.script("a kitten", takes=1)
    for _ in range(2):
        await (await client.generate("a kitten"))
    with pytest.raises(errors.TaskFailed):
        await (await client.generate("a dog"))
    gateway.assert_all_asked()


@pytest.mark.parametrize("option", ["which", "takes", "price"])
async def test_an_error_in_a_function_of_the_users_comes_out(option: str) -> None:
    """A mistake in a test's own function is not taken for one of the gateway's."""

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


async def test_a_refused_submit_was_asked_for(gateway: Simulator, client: Client) -> None:
    """A script whose submit was refused on purpose came about, though there is no task."""
    gateway.script("a kitten", faults=[faults.on("submit", faults.key_exhausted())])
    with pytest.raises(errors.OutOfCredits):
        await client.generate("a kitten")
    gateway.assert_all_asked()
