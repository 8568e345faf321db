"""Which context requests, events and timers run in: what a caller sets is seen by its own job."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import pytest
from support.clients import quick_client
from support.clock import settle, until
from support.scene import Scene, scene_of

from fuhu_runway import Client, Task
from fuhu_runway import hooks as events
from fuhu_runway._clock import LoopClock
from fuhu_runway.errors import TaskFailed, WaitAbandoned, WaitTimeout
from fuhu_runway.models import Limits
from fuhu_runway.testing import Simulator

PROMPT: Final = "a kitten"
NO_ONE: Final = "no one"
WHO: ContextVar[str] = ContextVar("who", default=NO_ONE)


class Witness:
    """A listener that remembers in whose context each event came."""

    def __init__(self) -> None:
        self.seen: list[tuple[events.Event, str]] = []

    def __call__(self, event: events.Event) -> None:
        self.seen.append((event, WHO.get()))

    def of(self, task_id: str | None) -> set[tuple[str, str]]:
        """Return the kinds of all events of a task, each with whose context it came in."""
        return {
            (type(event).__name__, who)
            for event, who in self.seen
            if getattr(event, "task_id", None) == task_id
        }

    def whose(self, kind: type[events.Event]) -> set[str]:
        """Return in whose contexts the events of one kind came."""
        return {who for event, who in self.seen if isinstance(event, kind)}


@pytest.fixture
def witness() -> Witness:
    """Return a listener that remembers in whose context each event came."""
    return Witness()


async def as_caller(who: str, work: Callable[[], Awaitable[Any]]) -> Any:
    """Do *work* in its own task, in a context that has a name."""

    async def named() -> Any:
        WHO.set(who)
        return await work()

    return await asyncio.create_task(named())


@pytest.mark.parametrize("pace", [None, 500.0])
async def test_polls_belong_to_the_submit_and_not_to_the_wait(
    gateway: Simulator, witness: Witness, pace: float | None
) -> None:
    """Requests and events of two jobs keep to the contexts of their submits, and not the waits."""
    requests: list[tuple[str, str]] = []

    async def sent(_session: object, _place: SimpleNamespace, params: Any) -> None:
        requests.append((params.url.path, WHO.get()))

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(sent)
    limits = Limits(requests_per_second=pace)
    async with (
        aiohttp.ClientSession(trace_configs=[trace]) as session,
        quick_client(gateway, session=session, hooks=[witness], limits=limits) as client,
    ):
        tasks = [await as_caller(who, lambda: client.generate(PROMPT)) for who in ("a", "b")]
        await as_caller("another", lambda: asyncio.gather(*(task.wait() for task in tasks)))
    for task, who in zip(tasks, ("a", "b"), strict=True):
        assert witness.of(task.id) == {
            ("TaskSubmitted", who),
            ("TaskPolled", who),
            ("TaskSettled", who),
            ("ClipHandedOut", "another"),
        }
    assert set(requests) == {
        (path, who) for path in {path for path, _ in requests} for who in ("a", "b")
    }
    assert len({path for path, _ in requests}) == 2


async def test_a_name_belongs_to_its_first_submit(gateway: Simulator, witness: Witness) -> None:
    """A second submit under the same custom id changes nothing about whose context polls have."""
    async with quick_client(gateway, hooks=[witness]) as client:
        for who in ("a", "b"):
            task = await as_caller(who, lambda: client.generate(PROMPT, custom_id="order 7"))
        await as_caller("b", task.wait)
    assert witness.whose(events.TaskPolled) == {"a"}


async def test_a_handle_keeps_its_context_when_the_client_is_opened_again(
    gateway: Simulator, witness: Witness
) -> None:
    """After closing and entering the client again, polls still run in the context of the submit."""
    client = quick_client(gateway, hooks=[witness])
    async with client:
        task = await as_caller("a", lambda: client.generate(PROMPT))
    async with client:
        await as_caller("b", task.wait)
    assert witness.whose(events.TaskPolled) == {"a"}


async def test_a_task_by_its_id_belongs_to_the_first_wait(
    gateway: Simulator, runway: Client, witness: Witness
) -> None:
    """Its submit is not known, so polls run in the context of the first wait for it."""
    task_id = (await as_caller("a", lambda: runway.generate(PROMPT))).id
    async with quick_client(gateway, hooks=[witness]) as client:
        task = await as_caller("b", lambda: handle(client, task_id))
        await asyncio.gather(as_caller("c", task.wait), as_caller("d", task.wait))
    assert witness.whose(events.TaskAttached) == {"b"}
    assert witness.whose(events.TaskPolled) == {"c"}


async def handle(client: Client, task_id: str) -> Task:
    """Return a handle on a task by its id."""
    return client.task(task_id)


async def test_background_jobs_belong_to_the_call_of_start(
    gateway: Simulator, witness: Witness, tmp_path: Path
) -> None:
    """Everything from the submit to the file is in the context of its own `start`, to the end."""

    async def route(who: str) -> str:
        job = await client.start(PROMPT, save=tmp_path / f"{who}.mp4", tag=who)
        return job.id

    async with quick_client(gateway, hooks=[witness]) as client:
        ids = await asyncio.gather(*(as_caller(who, lambda w=who: route(w)) for who in ("a", "b")))
        await until(lambda: len([1 for event, _ in witness.seen if is_end(event)]) == 2)
    for task_id, who in zip(ids, ("a", "b"), strict=True):
        assert witness.of(task_id) == {
            ("TaskSubmitted", who),
            ("TaskPolled", who),
            ("TaskSettled", who),
            ("DownloadStarted", who),
            ("DownloadFinished", who),
            ("JobEnded", who),
        }


def is_end(event: events.Event) -> bool:
    """Return whether a background job ended."""
    return isinstance(event, events.JobEnded)


async def test_a_task_that_is_started_is_saved_for_the_starter(
    gateway: Simulator, witness: Witness, tmp_path: Path
) -> None:
    """Its polls belong to the submit, and the download and the end to the call of `start`."""
    async with quick_client(gateway, hooks=[witness]) as client:
        task = await as_caller("a", lambda: client.generate(PROMPT))
        job = await as_caller("b", lambda: client.start(task, save=tmp_path / "1.mp4"))
        await job
    assert witness.whose(events.TaskPolled) == {"a"}
    assert witness.whose(events.DownloadFinished) == witness.whose(events.JobEnded) == {"b"}


async def test_jobs_of_a_batch_belong_to_the_iteration(
    gateway: Simulator, witness: Witness
) -> None:
    """Submits and polls run in copies of the context in which iterating over the batch began."""
    gateway.script("a dog", then="fail")

    async def run() -> list[object]:
        return [type(outcome.error) async for outcome in client.generate_many([PROMPT, "a dog"])]

    async with quick_client(gateway, hooks=[witness]) as client:
        assert set(await as_caller("a", run)) == {type(None), TaskFailed}
    assert witness.whose(events.SubmissionSent) == witness.whose(events.TaskPolled) == {"a"}


async def test_a_timer_runs_in_an_empty_context() -> None:
    """A timer serves many callers, so it does not see the context of the one that set it."""
    WHO.set("a")
    seen: list[str] = []
    clock = LoopClock()
    clock.call_at(clock.now(), lambda: seen.append(WHO.get()))
    await until(lambda: seen)
    assert seen == [NO_ONE]


async def test_a_timeout_is_reported_in_the_context_of_the_submit(
    gateway: Simulator, witness: Witness
) -> None:
    """The timer itself runs in an empty context, and the event in that of the job."""
    gateway.script(then="stall")
    async with quick_client(gateway, hooks=[witness]) as client:
        task = await as_caller("a", lambda: client.generate(PROMPT))
        with pytest.raises(WaitTimeout):
            await as_caller("b", lambda: task.wait(timeout=0.02))
    assert witness.whose(events.WaitFailed) == {"a"}


async def test_closing_runs_in_an_empty_context(gateway: Simulator, witness: Witness) -> None:
    """`ClientClosed` has an empty context, the end of a wait that of the submit."""
    gateway.script(then="stall")
    client = quick_client(gateway, hooks=[witness])
    task = await as_caller("a", lambda: client.generate(PROMPT))
    waiting = asyncio.create_task(as_caller("b", task.wait))
    await settle()
    await as_caller("c", client.aclose)
    with pytest.raises(WaitAbandoned):
        await waiting
    assert witness.whose(events.WaitFailed) == {"a"}
    assert witness.whose(events.ClientClosed) == {NO_ONE}


async def test_a_listener_may_end_the_waits_during_a_poll(
    gateway: Simulator, witness: Witness
) -> None:
    """The context of the poll is in use then, and the wait ends all the same."""
    gateway.script(then="stall")

    def impatient(event: events.Event) -> None:
        if isinstance(event, events.TaskPolled):
            client.end_waits()

    async with quick_client(gateway, hooks=[witness, impatient]) as client:
        task = await as_caller("a", lambda: client.generate(PROMPT))
        with pytest.raises(WaitAbandoned):
            await as_caller("b", task.wait)
    assert witness.whose(events.WaitFailed) == {"a"}


async def test_a_task_that_a_webhook_found_belongs_to_its_submit(
    gateway: Simulator, witness: Witness
) -> None:
    """It is searched for in an empty context, and polled in that of the submit in doubt."""
    async with scene_of(gateway, hooks=[witness]) as scene:
        await as_caller("a", scene.doubt)
        await as_caller("the web server", lambda: posted(scene, status="1"))
        await until(lambda: scene.client.unfinished)
        [task] = scene.client.unfinished
        waiting = asyncio.create_task(as_caller("b", task.wait))
        await scene.ended()
        await as_caller("the web server", lambda: posted(scene))
        await waiting
    assert witness.whose(events.SubmissionFound) == {NO_ONE}
    assert witness.whose(events.TaskSettled) == {"a"}
    assert witness.whose(events.CallbackReceived) == {"the web server"}


async def test_a_finished_task_that_a_webhook_found_belongs_to_its_submit(
    gateway: Simulator, witness: Witness
) -> None:
    """If the search finds the task finished, its end is reported in the context of the submit."""
    async with scene_of(gateway, hooks=[witness]) as scene:
        await as_caller("a", scene.doubt)
        await scene.ended()
        await as_caller("the web server", lambda: posted(scene))
        await until(lambda: witness.whose(events.TaskSettled))
    assert witness.whose(events.SubmissionFound) == {NO_ONE}
    assert witness.whose(events.TaskSettled) == {"a"}


async def posted(scene: Scene, **changes: str) -> None:
    """Send the webhook of a task."""
    scene.post(**changes)
