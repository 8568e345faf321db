import asyncio
from itertools import pairwise
from typing import Any

import attrs
import pytest
from support.clients import QUICK_POLLS, EventRecorder, quick_client
from support.clock import until
from support.secrets import secrets_in
from support.servers import raw_server, reply

from fuhu_runway import Client, Task
from fuhu_runway.errors import (
    ClipMissing,
    NotFound,
    OutOfCredits,
    RunwayError,
    TaskCanceled,
    TaskFailed,
    Unauthorized,
    WaitTimeout,
)
from fuhu_runway.hooks import (
    ContradictionSeen,
    PollFailed,
    TaskPolled,
    TaskSettled,
    UnknownWordSeen,
)
from fuhu_runway.models import TaskRecord, TaskState, Timeouts
from fuhu_runway.testing import DIALECTS, Simulator, faults
from fuhu_runway.testing.faults import Fault, on

PROMPT = "a marked kitten"
SECRETS = ("marked", "_jwt=", "127.0.0.1")


@pytest.mark.parametrize("dialect", [*DIALECTS, "mixed"])
async def test_every_dialect_ends_in_its_clip(dialect: str) -> None:
    """In every dialect, the wait ends in the clip of the task."""
    simulator = Simulator(speed=1000, takes=20, dialect=dialect)
    async with simulator, quick_client(simulator) as client:
        clip = await (await client.generate(PROMPT)).wait(timeout=10)
    assert [task.task_id for task in simulator.tasks] == [clip.id]
    assert clip.record.state is TaskState.SUCCEEDED
    assert clip.video_url.startswith(simulator.cdn_url)


@pytest.mark.parametrize("dialect", [*DIALECTS, "mixed"])
@pytest.mark.parametrize(
    ("then", "kind"), [("fail", TaskFailed), ("cancel", TaskCanceled), ("expire", TaskFailed)]
)
async def test_every_dialect_ends_in_its_failure(
    dialect: str, then: Any, kind: type[TaskFailed]
) -> None:
    """A failure is a failure in each of them, and its reason holds no prompt."""
    simulator = Simulator(speed=1000, takes=20, dialect=dialect)
    simulator.script(then=then, reason=f"{PROMPT} is not allowed")
    async with simulator, quick_client(simulator) as client:
        task = await client.generate(PROMPT)
        with pytest.raises(TaskFailed) as caught:
            await task.wait(timeout=10)
    assert caught.value.task_id == task.id
    assert secrets_in(caught.value, SECRETS) == []
    # The numeric envelope has one code for every bad end, and luma one word.
    assert isinstance(caught.value, kind) or kind is TaskCanceled


TROUBLE: dict[str, Fault] = {
    "502": faults.server_error(502),
    "500 from the relay": faults.server_error(500, body="json"),
    "503 without a word": faults.server_error(503, body="empty"),
    "drop": faults.drop_before_accepting(),
    "reset": faults.Drop(reset=True),
    "truncated": faults.Truncated(),
    "cut": faults.Cut(),
    "no JSON": faults.not_json(),
    "hang": faults.Hang(),
    "hang in the answer": faults.Hang(after_bytes=20),
    "web page": faults.html_page(),
    "429": faults.TooManyRequests(0.01, form="milliseconds"),
    "empty 429": faults.empty_429(),
    "not found": faults.task_not_exist(),
    "nothing": faults.known("nothing"),
    "nested": faults.nested_error(500),
    "all empty": faults.EmptyFields(),
}


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize("fault", TROUBLE.values(), ids=TROUBLE.keys())
async def test_failed_polls_do_not_end_a_wait(gateway: Simulator, fault: Fault) -> None:
    """Five failed polls in a row, whatever the fault, do not end a wait."""
    gateway.script(faults=[on("feed", fault, times=5)])
    brief, patient = Timeouts(read=0.05), attrs.evolve(QUICK_POLLS, not_found_grace=60)
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
    async with quick_client(gateway, timeouts=brief, polling=patient) as client:
        clip = await _handle(client, task).wait(timeout=30)
    assert clip.id == task.id
    assert gateway.polls(task.id) > 5


def _handle(client: Client, task: Task) -> Task:
    """Return a handle of another client on the same task."""
    return Task(client._sessions, task.id, submitted_at=task.submitted_at)


async def test_polls_that_keep_failing_end_at_the_deadline(gateway: Simulator) -> None:
    """The cause of the timeout is the last error, and no secret is shown."""
    gateway.fault("feed", faults.server_error(502), times=None)
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
        with pytest.raises(WaitTimeout) as caught:
            await task.wait(timeout=0.2)
    assert type(caught.value.__cause__).__name__ == "GatewayDown"
    assert caught.value.task_id == task.id
    assert secrets_in(caught.value, SECRETS) == []


@pytest.mark.parametrize(
    ("fault", "kind", "polls"),
    [
        (faults.error(401), Unauthorized, 2),
        (faults.error(403, "用户已被封禁"), Unauthorized, 2),
        (faults.key_exhausted(), OutOfCredits, 1),
        (faults.quota_in_429(), OutOfCredits, 1),
    ],
    ids=["401", "403", "quota in a 401", "quota in a 429"],
)
async def test_a_hopeless_error_ends_a_wait(
    gateway: Simulator, fault: Fault, kind: type[RunwayError], polls: int
) -> None:
    """
    It does so for every waiter, and without a secret in it.

    A key that has submitted the task must be refused twice.
    """
    gateway.fault("feed", fault, times=None)
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
        waits = [asyncio.create_task(task.wait(timeout=30)) for _ in range(3)]
        await asyncio.wait(waits)
    errors = [wait.exception() for wait in waits]
    assert [type(error) for error in errors] == [kind] * 3
    assert gateway.polls(task.id) == polls
    assert [secrets_in(error, SECRETS) for error in errors if error] == [[]] * 3


async def test_a_task_that_is_hidden_at_first(gateway: Simulator) -> None:
    """`task_not_exist` right after a submit is waited out (api-facts 5.4)."""
    gateway.script(takes=60, hidden=50)
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
        assert (await task.wait(timeout=10)).id == task.id


async def test_a_task_that_stays_hidden(gateway: Simulator) -> None:
    """After its grace the wait ends in `NotFound`."""
    gateway.script(takes=1e6, hidden=1e6)
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
        with pytest.raises(NotFound) as caught:
            await task.wait(timeout=10)
    assert caught.value.task_id == task.id


async def test_a_success_whose_address_is_late(gateway: Simulator) -> None:
    """The wait goes on until it is there."""
    gateway.script(url_after=50)
    async with quick_client(gateway) as client:
        assert (await (await client.generate(PROMPT)).wait(timeout=10)).video_url


async def test_a_success_without_an_address(gateway: Simulator) -> None:
    """After its grace the wait ends in `ClipMissing`, with the task's id."""
    gateway.script(url_after=None)
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
        with pytest.raises(ClipMissing) as caught:
            await task.wait(timeout=10)
    assert caught.value.task_id == task.id


@pytest.mark.parametrize(
    ("fault", "word"),
    [(faults.unknown_word(), "MOONWALKING"), (faults.StatusWords("7", ""), "7")],
    ids=["word", "number"],
)
async def test_an_unknown_status_is_reported_once(
    gateway: Simulator, fault: Fault, word: str
) -> None:
    """The wait goes on, and many responses with it cause one event."""
    gateway.script(then="stall", faults=[on("feed", fault, times=None)])
    recorder = EventRecorder()
    async with quick_client(gateway, hooks=[recorder]) as client:
        task = await client.generate(PROMPT)
        waiting = asyncio.create_task(task.wait(timeout=30))
        await until(lambda: len(recorder.all(TaskPolled)) > 3)
        assert not waiting.done()
        waiting.cancel()
    assert recorder.all(UnknownWordSeen) == [UnknownWordSeen(task.id, word)]
    assert {event.state for event in recorder.all(TaskPolled)} == {TaskState.UNKNOWN}


async def test_a_contradiction_is_reported_once(gateway: Simulator) -> None:
    """A failure's word beside a clip's address is a clip, and one event (api-facts 3.4, rule 3)."""
    gateway.script(faults=[on("feed", faults.FailureWithUrl(), times=None)])
    recorder = EventRecorder()
    async with quick_client(gateway, hooks=[recorder]) as client:
        clip = await (await client.generate(PROMPT)).wait(timeout=10)
    assert clip.video_url
    assert len(recorder.all(ContradictionSeen)) == 1


async def test_a_failure_that_was_refunded_is_one(gateway: Simulator) -> None:
    """With a refund and a reason beside it, the address counts for nothing."""
    gateway.script(faults=[on("feed", faults.FailureWithUrl(refunded=True), times=None)])
    async with quick_client(gateway) as client:
        with pytest.raises(TaskFailed) as caught:
            await (await client.generate(PROMPT)).wait(timeout=10)
    assert caught.value.refunded


async def test_many_waits_for_one_task_poll_as_often_as_one(gateway: Simulator) -> None:
    """Fifty waits from ten handles: the gateway gets one poll at a time."""
    gateway.script(takes=100)
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
        handles = [task, *(client.task(task.id) for _ in range(9))]
        clips = await asyncio.gather(*(handle.wait(timeout=10) for handle in handles * 5))
    assert {clip.id for clip in clips} == {task.id}
    instants = [seen.at for seen in gateway.requests if seen.where == "feed"]
    least = QUICK_POLLS.first * QUICK_POLLS.factor * 0.9
    assert all(later - earlier > least for earlier, later in pairwise(instants))


async def test_many_tasks_at_once(gateway: Simulator) -> None:
    """A hundred tasks end in a hundred clips, with each event of an end emitted once."""
    recorder = EventRecorder()
    async with quick_client(gateway, hooks=[recorder]) as client:
        tasks = await asyncio.gather(*(client.generate(f"{PROMPT} {n}") for n in range(100)))
        clips = await asyncio.gather(*(task.wait(timeout=30) for task in tasks))
    assert [clip.id for clip in clips] == [task.id for task in tasks]
    assert len({event.task_id for event in recorder.all(TaskSettled)}) == 100
    assert len(recorder.all(TaskSettled)) == 100
    assert gateway.duplicates == ()


async def test_a_gateway_that_limits_loses_no_clip() -> None:
    """A storm of 429s, with and without Retry-After, delays clips and loses none."""
    simulator = Simulator(speed=1000, takes=20, rate_limit=400, burst=20)
    async with simulator, quick_client(simulator) as client:
        task_ids = [(await _submit(client)).id for _ in range(10)]
        waits = [client.task(task_id).wait(timeout=30) for task_id in task_ids]
        clips = await asyncio.gather(*waits)
    assert [clip.id for clip in clips] == task_ids


async def _submit(client: Client) -> Any:
    while True:
        try:
            return await client.generate(PROMPT)
        except RunwayError:
            await asyncio.sleep(0.01)


async def test_a_gateway_that_restarts_loses_no_clip(gateway: Simulator) -> None:
    """Closed in the middle of a wait and opened again, it still returns the clip."""
    gateway.script(takes=60)
    recorder = EventRecorder()
    async with quick_client(gateway, hooks=[recorder]) as client:
        task = await client.generate(PROMPT)
        waiting = asyncio.create_task(task.wait(timeout=30))
        await until(lambda: recorder.all(TaskPolled))
        await gateway.aclose()
        await until(lambda: len(recorder.all(PollFailed)) > 3)
        assert not waiting.done()
        await gateway.start()
        assert (await waiting).id == task.id


async def test_changes_are_reported_as_they_come(gateway: Simulator) -> None:
    """Progress only grows, the end comes last, and `on_update` gets what `updates` yields."""
    gateway.script(takes=200, progress=(0, 25, 50, 75))
    received: list[Any] = []
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
        waiting = asyncio.create_task(task.wait(timeout=30, on_update=received.append))
        followed = [record async for record in task.updates(timeout=30)]
        clip = await waiting
    assert followed[-1] == received[-1] == clip.record
    progress = [record.progress or 0.0 for record in followed]
    assert progress == sorted(progress)
    assert followed == received


@pytest.mark.usefixtures("virtual")
async def test_a_callback_that_never_returns_does_not_hold_a_wait(gateway: Simulator) -> None:
    """The timeout counts while `on_update` is awaited; its own `TimeoutError` ends the wait."""
    gateway.script("a kitten", takes=10**6)

    async def never(_record: TaskRecord) -> None:
        await asyncio.Event().wait()

    async def hasty(_record: TaskRecord) -> None:
        raise TimeoutError("mine")

    async with quick_client(gateway) as client:
        task = await client.generate("a kitten")
        with pytest.raises(WaitTimeout, match="after 60 s"):
            await task.wait(timeout=60, on_update=never)
        with pytest.raises(TimeoutError, match="mine"):
            await task.wait(timeout=60, on_update=hasty)
        with pytest.raises(WaitTimeout):
            await client.run(task, timeout=60, on_update=never)
        assert client.unfinished == (task,)


async def test_a_clip_fails_in_the_same_words_everywhere(gateway: Simulator) -> None:
    """The points of a failed task are reported as refunded, as the gateway has them."""
    gateway.script(then="fail")
    async with quick_client(gateway, polling=QUICK_POLLS) as client:
        with pytest.raises(TaskFailed) as caught:
            await (await client.generate(PROMPT)).wait(timeout=10)
    assert caught.value.refunded
    assert gateway.refunds == gateway.tasks[0].points


async def test_the_same_answer_makes_no_new_record() -> None:
    """A poll whose response is the same as the one before keeps the record; a status counts too."""
    running = b'{"task_id": "t-1", "status": "RUNNING"}'
    answers = [reply(running)] * 3 + [reply(running, "500 Internal Server Error")]
    recorder = EventRecorder()
    async with raw_server(*answers) as server:
        client = Client("sk-1", base_url=server.url, polling=QUICK_POLLS, hooks=[recorder])
        async with client:
            task = client.task("t-1")
            waiting = asyncio.ensure_future(task.wait())
            await until(lambda: task.record is not None)
            first = task.record
            await until(lambda: any(isinstance(event, PollFailed) for event in recorder.events))
            waiting.cancel()
    assert [type(event) for event in recorder.events].count(TaskPolled) == 3
    assert task.record is first
