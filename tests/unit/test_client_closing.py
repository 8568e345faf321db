"""What is left when a client closes: the tasks that are unfinished, and nothing that pays."""

import asyncio
import gc
import pickle
import re
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
from support.clients import EventRecorder, others, quick_client
from support.clock import settle, until
from support.servers import raw_server, reply

from fuhu_runway import Client, Task
from fuhu_runway.errors import (
    DownloadIncomplete,
    JournalError,
    NotFound,
    TaskFailed,
    UsageError,
    WaitAbandoned,
    WaitTimeout,
)
from fuhu_runway.hooks import ClipHandedOut, DownloadStarted, TaskPolled, TaskSettled
from fuhu_runway.journal import JobState, Journal
from fuhu_runway.models import Limits, RetryPolicy
from fuhu_runway.testing import Simulator, faults

IMAGE = "https://pictures.example/1.png"
ACCEPTED = reply(b'{"code": 200, "data": {"task_id": "t-7"}}')

T = TypeVar("T")


def ids(client: Client) -> list[str]:
    """Return the ids that an app would record at its end."""
    return [task.id for task in client.unfinished]


async def cancelled(work: "asyncio.Future[Any]") -> None:
    """Cancel *work* and wait for it to be over."""
    work.cancel()
    await asyncio.wait([work])
    assert work.cancelled()


# Unfinished


async def test_a_task_is_unfinished_until_its_clip_is_seen(
    gateway: Simulator, runway: Client
) -> None:
    """From its submit on, whether or not anyone waits; the handle is the one that was given."""
    assert runway.unfinished == ()
    task = await runway.generate("a kitten")
    other = await runway.generate("a puppy")
    assert runway.unfinished == (task, other)
    await task
    assert runway.unfinished == (other,)
    await other.refresh()
    await asyncio.wait_for(other.wait(), 10)
    assert runway.unfinished == ()


async def test_a_failed_task_is_not_unfinished(gateway: Simulator, runway: Client) -> None:
    """There is nothing left to wait for."""
    gateway.script(then="fail")
    with pytest.raises(TaskFailed):
        await (await runway.generate("a kitten"))
    assert runway.unfinished == ()


async def test_any_poll_may_show_a_failure(gateway: Simulator, runway: Client) -> None:
    """Also `client.feed`, which has no handle."""
    gateway.script(then="fail")
    task = await runway.generate("a kitten")
    while not (await runway.feed(task.id)).is_settled:
        assert ids(runway) == [task.id]
        await asyncio.sleep(0.001)
    assert runway.unfinished == ()


async def test_a_clip_that_a_poll_shows_is_not_handed_out(
    gateway: Simulator, runway: Client
) -> None:
    """The task stays until a wait returns the clip, or its updates come to their end."""
    task, other = await runway.generate("a kitten"), await runway.generate("a puppy")
    await until(lambda: gateway.tasks[0].state == "succeeded")
    assert (await runway.feed(task.id)).has_clip
    assert (await task.refresh()).has_clip
    assert runway.unfinished == (task, other)
    await task
    assert runway.unfinished == (other,)
    await other.wait(on_update=print)
    assert runway.unfinished == ()


async def test_an_end_that_comes_with_the_submit_is_one() -> None:
    """A gateway may answer with the clip at once; it is handed out by the wait, as always."""
    body = (
        b'{"code": 200, "data": {"task_id": "t-7", "status": "SUCCESS",'
        b' "video_url": "https://a.example/1.mp4"}}'
    )
    async with raw_server(reply(body)) as server, Client("sk-1", base_url=server.url) as client:
        task = await client.generate("a kitten")
        assert task.record is not None
        assert task.record.has_clip
        assert client.unfinished == (task,)
        await task
        assert client.unfinished == ()


async def test_an_end_that_comes_with_the_submit_is_recorded(tmp_path: Path) -> None:
    """Its row is the same as after a poll, and its end is one event."""
    body = (
        b'{"code": 200, "data": {"task_id": "t-7", "status": "SUCCESS",'
        b' "video_url": "https://a.example/1.mp4"}}'
    )
    recorder = EventRecorder()
    async with raw_server(reply(body)) as server:
        client = Client("sk-1", base_url=server.url, hooks=[recorder], journal=tmp_path / "run.db")
        async with client:
            await (await client.generate("a kitten")).wait()
            assert client.journal is not None
            (job,) = await client.journal.jobs()
    assert job.state is JobState.FINISHED
    assert [event.task_id for event in recorder.all(TaskSettled)] == ["t-7"]
    assert recorder.all(TaskPolled) == []


async def test_a_wait_that_was_left_changes_nothing(gateway: Simulator, runway: Client) -> None:
    """By a timeout or a cancellation; the task goes on, so it is unfinished."""
    gateway.script(then="stall")
    task = await runway.generate("a kitten")
    with pytest.raises(WaitTimeout):
        await task.wait(timeout=0.02)
    waiting = asyncio.ensure_future(task.wait())
    await settle()
    await cancelled(waiting)
    assert runway.unfinished == (task,)


async def test_a_handle_that_is_gone_is_made_again(gateway: Simulator, runway: Client) -> None:
    """Nothing but its id is kept of a task, and the new handle gets the clip."""
    task_id = (await runway.generate("a kitten")).id
    official_id = (await runway.official.image_to_video(IMAGE)).id
    gc.collect()
    assert len(runway._sessions.handles) == 0
    reverse, official = runway.unfinished
    assert (reverse.id, reverse.official) == (task_id, False)
    assert (official.id, official.official) == (official_id, True)
    assert reverse.submitted_at is not None
    assert reverse.request is None
    for task in (reverse, official):
        assert (await task).id == task.id
    assert runway.unfinished == ()


async def test_a_task_by_its_id_is_unfinished_once_it_is_waited_for(
    gateway: Simulator, runway: Client
) -> None:
    """A handle alone is no promise; a wait is, also one that was left."""
    gateway.script(then="stall")
    task_id = (await runway.generate("a kitten")).id
    async with quick_client(gateway) as other:
        task = other.task(task_id)
        assert other.unfinished == ()
        with pytest.raises(WaitTimeout):
            await task.wait(timeout=0.02)
        assert other.unfinished == (task,)


async def test_an_unknown_id_is_not_unfinished(runway: Client) -> None:
    """A wait for a task that does not exist puts nothing on the list."""
    with pytest.raises(NotFound):
        await runway.task("9f6243e5-3ab8-49c3-9c3c-6309ef5c96bd").wait(timeout=10)
    assert runway.unfinished == ()


async def test_a_paid_task_that_the_gateway_lost_is_unfinished(
    gateway: Simulator, runway: Client
) -> None:
    """The gateway's support needs its id."""
    gateway.script(hidden=1e9)
    task = await runway.generate("a kitten")
    with pytest.raises(NotFound):
        await task.wait(timeout=10)
    assert runway.unfinished == (task,)


def test_what_is_unfinished_outlives_the_loop() -> None:
    """A task of one loop is unfinished in the next, and settled there."""
    client: list[Client] = []

    async def submit(gateway: Simulator) -> str:
        client.append(quick_client(gateway))
        return (await client[0].generate("a kitten")).id

    async def finish() -> None:
        [task] = client[0].unfinished
        await task

    with asyncio.Runner() as home:
        gateway = Simulator(speed=1000, takes=20)
        home.run(gateway.start())
        task_id = home.run(submit(gateway))
        home.run(client[0].aclose())
        assert ids(client[0]) == [task_id]
        home.run(gateway.aclose())
    with asyncio.Runner() as abroad:
        abroad.run(gateway.start())
        abroad.run(finish())
        assert ids(client[0]) == []
        abroad.run(client[0].aclose())
        abroad.run(gateway.aclose())


async def test_a_batch_that_is_left_leaves_its_tasks_unfinished(
    gateway: Simulator, runway: Client
) -> None:
    """A caller that breaks off finds what was accepted, without a journal as well."""
    gateway.script(re.compile("slow"), then="stall")
    batch = runway.batch(["quick", "slow 1", "slow 2"], in_flight=3)
    outcomes = batch.outcomes()
    first = await anext(outcomes)
    await until(lambda: gateway.submitted == 3 and len(runway.unfinished) == 2)
    await outcomes.aclose()
    made = {task.task_id for task in gateway.tasks}
    assert set(ids(runway)) == made - {first.task_id}


# Closing


async def test_closing_leaves_all_that_is_unfinished(gateway: Simulator) -> None:
    """One task that is waited for, one that is not, and one whose submit is in flight."""
    gateway.script(then="stall")
    async with quick_client(gateway) as client:
        waited = await client.generate("a kitten")
        waiting = asyncio.ensure_future(waited.wait())
        left = (await client.generate("a puppy")).id
        gateway.fault("submit", faults.Slow(100.0))
        submitting = asyncio.ensure_future(client.generate("a foal"))
        await until(lambda: gateway.submitted == 3)
        await cancelled(submitting)
    assert ids(client) == [task.task_id for task in gateway.tasks]
    assert ids(client)[:2] == [waited.id, left]
    with pytest.raises(WaitAbandoned):
        await waiting
    assert others() == set()


async def test_a_submit_in_flight_ends_well_while_the_client_closes(gateway: Simulator) -> None:
    """Its caller gets the handle, and the closed client knows the id as well."""
    gateway.fault("submit", faults.Slow(100.0))
    client = quick_client(gateway)
    submitting = asyncio.ensure_future(client.generate("a kitten"))
    await until(lambda: gateway.submitted)
    await client.aclose()
    task = await submitting
    assert isinstance(task, Task)
    assert client.unfinished == (task,)


async def test_an_id_is_kept_before_anyone_can_be_cancelled() -> None:
    """Cancelled in the very turn in which the response is read, nothing is lost."""
    async with raw_server(ACCEPTED) as server:
        client = Client("sk-1", base_url=server.url)
        submitting = asyncio.ensure_future(client.generate("a kitten"))
        while not client.unfinished:  # noqa: ASYNC110  (the very turn counts)
            await asyncio.sleep(0)
        submitting.cancel()
        await client.aclose()
        await asyncio.wait([submitting])
    assert ids(client) == ["t-7"]


@pytest.mark.parametrize("when", ["while it closes", "after"])
async def test_a_closed_client_sends_nothing(gateway: Simulator, tmp_path: Path, when: str) -> None:
    """From the moment of the close on, every call is refused; what is in flight ends well."""
    gateway.fault("submit", faults.Slow(100.0))
    journal = Journal(tmp_path / "run.db")
    client = quick_client(gateway, journal=journal)
    submitting = asyncio.ensure_future(client.generate("a kitten"))
    await until(lambda: gateway.submitted)
    closing = asyncio.ensure_future(client.aclose())
    await settle()
    if when == "after":
        await closing
    before = len(gateway.requests)
    calls = [
        client.generate("a puppy"),
        client.task("t-1").wait(),
        client.task("t-1").refresh(),
        client.feed("t-1"),
        client.balance(),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="closed") as caught:
            await call
        assert caught.value.field == "client"
    assert closing.done() is (when == "after")
    await closing
    task = await submitting
    assert (len(gateway.requests), gateway.submitted) == (before, 1)
    assert [(job.task_id, job.state) for job in await journal.jobs()] == [
        (task.id, JobState.ACCEPTED)
    ]
    await journal.aclose()


@pytest.mark.parametrize(
    "limits", [Limits(tasks_in_flight=1), Limits(requests_in_flight=1)], ids=["tasks", "requests"]
)
async def test_a_waiting_submit_is_refused_at_the_close(gateway: Simulator, limits: Limits) -> None:
    """A slot that comes free by the close is not used for a paid request."""
    gateway.script(then="stall")
    gateway.fault("submit", faults.Slow(100.0))
    client = quick_client(gateway, limits=limits)
    first = asyncio.ensure_future(client.generate("a kitten"))
    await until(lambda: gateway.submitted)
    second = asyncio.ensure_future(client.generate("a puppy"))
    if limits.tasks_in_flight:
        await first
    await settle()
    await client.aclose()
    with pytest.raises(UsageError, match="closed"):
        await second
    assert ids(client) == [(await first).id]
    assert gateway.submitted == 1


async def test_closing_twice_at_once_waits_for_the_answer(
    gateway: Simulator, tmp_path: Path
) -> None:
    """The journal is not taken from a submit by the second close while the first one waits."""
    gateway.fault("submit", faults.Slow(100.0))
    client = quick_client(gateway, journal=tmp_path / "run.db")
    submitting = asyncio.ensure_future(client.generate("a kitten"))
    await until(lambda: gateway.submitted)
    await asyncio.gather(client.aclose(), client.aclose())
    task = await submitting
    journal = Journal(tmp_path / "run.db")
    [job] = await journal.jobs()
    await journal.aclose()
    assert (job.state, job.task_id) == (JobState.ACCEPTED, task.id)


async def test_a_client_entered_while_it_closes_opens_again(gateway: Simulator) -> None:
    """It waits for the close, and works."""
    gateway.fault("submit", faults.Slow(100.0))
    client = quick_client(gateway)
    submitting = asyncio.ensure_future(client.generate("a kitten"))
    await until(lambda: gateway.submitted)
    closing = asyncio.ensure_future(client.aclose())
    await settle()
    async with client:
        assert closing.done()
        await client.generate("a puppy")
    await submitting
    assert gateway.submitted == 2


def test_a_client_is_closed_in_one_loop_only() -> None:
    """In the next loop it works without being entered."""
    client = Client("sk-1", base_url="http://127.0.0.1:1")

    async def touch() -> None:
        client._sessions.current()

    async def close() -> None:
        async with client:
            await touch()
        with pytest.raises(UsageError, match="closed"):
            await touch()

    asyncio.run(close())
    asyncio.run(touch())
    assert client._sessions.by_loop == {}


# What else must not go on


async def test_a_pause_before_a_retry_ends_at_the_close(gateway: Simulator) -> None:
    """A pause of a minute that a gateway requested ends, since nothing will be sent after it."""
    gateway.fault("submit", faults.TooManyRequests(60), times=None)
    client = Client(gateway.api_key, base_url=gateway.base_url)
    work = asyncio.create_task(client.generate("a kitten"))
    await until(lambda: any(one.transport._scopes for one in client._sessions.by_loop.values()))
    async with asyncio.timeout(10):
        await client.aclose()
        with pytest.raises(UsageError, match="was closed"):
            await work
    assert gateway.submitted == 0


async def test_a_queue_for_a_held_gateway_ends_at_the_close(gateway: Simulator) -> None:
    """A submit that waits for its turn is refused at once."""
    gateway.fault("submit", faults.TooManyRequests(60), times=4)
    client = Client(gateway.api_key, base_url=gateway.base_url)
    works = [asyncio.create_task(client.generate("a kitten")) for _ in range(4)]
    await until(
        lambda: client._sessions.by_loop and len(client._sessions.current().transport._scopes) == 4
    )
    works += [asyncio.create_task(client.generate("a puppy")) for _ in range(3)]
    await settle()
    async with asyncio.timeout(10):
        await client.aclose()
        results = await asyncio.gather(*works, return_exceptions=True)
    assert {type(result) for result in results} == {UsageError}
    assert gateway.submitted == 0


async def test_a_pause_that_is_cancelled_is_cancelled(gateway: Simulator) -> None:
    """A caller that is cancelled during a pause gets a cancellation, not an error of ours."""
    gateway.fault("submit", faults.TooManyRequests(60), times=None)
    async with Client(gateway.api_key, base_url=gateway.base_url) as client:
        work = asyncio.create_task(client.generate("a kitten"))
        await until(
            lambda: client._sessions.by_loop and client._sessions.current().transport._scopes
        )
        await cancelled(work)
        assert client._sessions.current().transport._scopes == set()


async def test_an_own_journal_is_not_opened_again(gateway: Simulator, tmp_path: Path) -> None:
    """A submit that was on its way to a row leaves no thread, and no file locked, behind."""
    path = tmp_path / "run.db"
    for steps in range(12):
        client = quick_client(gateway, journal=path)
        work = asyncio.create_task(client.generate("a kitten"))
        for _ in range(steps):
            await asyncio.sleep(0.0005)
        await client.aclose()
        await asyncio.wait([work])
        assert client.journal is not None
        assert repr(client.journal).endswith("closed>")


async def test_a_batch_whose_client_is_closed_stops(gateway: Simulator, tmp_path: Path) -> None:
    """What ran is abandoned and has its row, what was read is refused, and the rest is not read."""
    client = quick_client(gateway, journal=tmp_path / "run.db")
    gateway.script(lambda _: True, then="stall")
    prompts = iter([f"a kitten, take {number}" for number in range(30)])
    outcomes: list[Any] = []

    async def run() -> None:
        outcomes.extend([one async for one in client.generate_many(prompts, in_flight=3)])

    running = asyncio.create_task(run())
    await until(lambda: [gateway.polls(one.task_id) > 0 for one in gateway.tasks] == [True] * 3)
    await client.aclose()
    await running
    assert {type(outcome.error) for outcome in outcomes} == {WaitAbandoned, UsageError}
    paid = {outcome.task_id for outcome in outcomes if outcome.task_id}
    assert paid == {task.id for task in client.unfinished}
    assert len(list(prompts)) > 20
    assert repr(client.journal).endswith("closed>")
    journal = Journal(tmp_path / "run.db")
    assert [job.state for job in await journal.jobs()] == [JobState.ACCEPTED] * 3
    await journal.aclose()


async def test_a_submit_in_flight_counts_though_its_caller_left(gateway: Simulator) -> None:
    """With limits of one task and one request, both stay taken until the response is here."""
    limits = Limits(tasks_in_flight=1, requests_in_flight=1)
    gateway.fault("submit", faults.Slow(100.0))
    gateway.script(then="stall")
    async with quick_client(gateway, limits=limits) as client:
        first = asyncio.create_task(client.generate("a kitten"))
        await until(lambda: gateway.submitted)
        first.cancel()
        second = asyncio.create_task(client.generate("a puppy"))
        await until(lambda: client.unfinished)
        await settle()
        assert gateway.submitted == gateway.peak_requests == 1
        await cancelled(second)


# What waits for bytes


def whole(video: bytes) -> bytes:
    """Return the response of a clip's host."""
    return reply(video, ETag='"v"')


VIDEO = b"\0\0\0\x18ftypisom" + bytes(10_000)


@pytest.mark.parametrize("call", ["feed", "balance"])
async def test_closing_ends_a_free_call_whose_answer_is_arriving(call: str) -> None:
    """At once, with our error, though the HTTP library wakes no reader of a closed session."""
    half = reply(b'{"code": 200, "data": {"task_id": "t-7"}}')[:-5]
    async with raw_server(half, closes=False) as server:
        client = Client("sk-1", base_url=server.url)
        pending = asyncio.ensure_future(client.feed("t-7") if call == "feed" else client.balance())
        await server.got_request.wait()
        await settle()
        await client.aclose()
        with pytest.raises(UsageError, match="was closed") as caught:
            await pending
        assert caught.value.field == "client"
        assert others() == set()


async def test_closing_ends_a_free_call_that_waits_for_its_turn(gateway: Simulator) -> None:
    """What the pace holds back is not sent after the close."""
    gateway.fault("feed", faults.TooManyRequests(60), times=None)
    client = quick_client(gateway, retry=RetryPolicy(max_retry_after=60))
    pending = [asyncio.ensure_future(client.feed("t-7")) for _ in range(9)]
    await until(lambda: gateway.requests)
    await settle()
    await client.aclose()
    results = await asyncio.gather(*pending, return_exceptions=True)
    assert {type(result) for result in results} == {UsageError}
    assert others() == set()


async def test_closing_ends_a_download_whose_bytes_arrive(tmp_path: Path) -> None:
    """With our error; the part is kept, the task is unfinished, and the next client goes on."""
    recorder, path = EventRecorder(), tmp_path / "1.mp4"
    async with raw_server(whole(VIDEO)[:-5000], closes=False) as host:
        body = b'{"code":200,"data":{"task_id":"t-7","status":"3","video_url":"%s"}}'
        async with raw_server(reply(body % host.url.encode())) as server:
            client = Client("sk-1", base_url=server.url, hooks=[recorder])
            clip = await client.task("t-7").wait()
            assert client.unfinished == ()
            saving = asyncio.ensure_future(clip.download(path))
            await until(lambda: recorder.all(DownloadStarted))
            assert client.unfinished == (clip.task,)
            await client.aclose()
            with pytest.raises(DownloadIncomplete, match="closed during the download") as caught:
                await saving
    assert caught.value.received_bytes == path.with_name("1.mp4.part").stat().st_size > 0
    assert client.unfinished == (clip.task,)
    assert others() == set()


async def test_waits_can_be_ended_without_closing(gateway: Simulator) -> None:
    """A stream of updates ends, and the same task may be waited for again at once."""
    gateway.script(then="stall")
    async with quick_client(gateway, limits=Limits(tasks_in_flight=1)) as client:
        client.end_waits()  # before anything was opened there
        task = await client.generate("a kitten")

        async def stream() -> list[Any]:
            return [record async for record in task.updates()]

        streaming = asyncio.ensure_future(stream())
        held = asyncio.ensure_future(client.generate("a puppy"))
        await until(lambda: gateway.polls(task.id))
        client.end_waits()
        with pytest.raises(WaitAbandoned, match="end_waits"):
            await streaming
        await settle()
        # The task goes on, so that there is no room for another.
        assert gateway.submitted == 1
        await cancelled(held)
        with pytest.raises(WaitTimeout):
            await task.wait(timeout=0.02)


async def test_a_stream_that_is_busy_ends_as_well(gateway: Simulator, runway: Client) -> None:
    """Its reader was sending a record when the waits were ended, and waits no more after it."""
    gateway.script(then="stall")
    task = await runway.generate("a kitten")
    updates = aiter(task.updates())
    await anext(updates)
    runway.end_waits()
    with pytest.raises(WaitAbandoned):
        [record async for record in updates]


async def test_entering_fails_where_the_journal_is_missing(
    gateway: Simulator, tmp_path: Path
) -> None:
    """A server that cannot have its journal does not start, and leaves nothing open."""
    client = quick_client(gateway, journal=tmp_path / "missing" / "run.db")
    with pytest.raises(JournalError):
        await client.__aenter__()
    assert repr(client.journal).endswith("closed>")
    (tmp_path / "missing").mkdir()
    async with client:
        task = await client.generate("a kitten")
        # Another loop, or a second block, recalls nothing twice.
        async with client:
            assert client.unfinished == (task,)


async def test_a_client_that_is_left_forgets_handles_that_were_handed_out(
    gateway: Simulator,
) -> None:
    """What no caller has is held for as long as its task is unfinished, and no longer."""
    async with quick_client(gateway) as client:
        for _ in range(2):
            gateway.fault("submit", faults.Slow(50.0))
            submitting = asyncio.ensure_future(client.generate("a kitten"))
            submitted = gateway.submitted + 1
            await until(lambda: gateway.submitted == submitted)  # noqa: B023
            await cancelled(submitting)
            await until(lambda: client.unfinished)
            [task] = client.unfinished
            assert list(client._sessions.unclaimed.values()) == [task]
            await task


async def test_a_client_that_is_entered_twice_is_closed_once(gateway: Simulator) -> None:
    """The inner block closes nothing that the outer one still uses."""
    client = quick_client(gateway)
    async with client:
        async with client:
            await client.generate("a kitten")
        await client.generate("a puppy")
    with pytest.raises(UsageError, match="closed"):
        await client.generate("a foal")


@pytest.mark.parametrize("seed", range(100))
async def test_closing_at_any_instant_leaves_nothing(
    gateway: Simulator, tmp_path: Path, seed: int
) -> None:
    """Each paid task was handed out, is saved, or is in the list; nothing goes on."""
    random = Random(seed)
    gateway.script(takes=random.choice([0, 10, 60]))
    recorder, saved = EventRecorder(), set[str]()
    client = quick_client(gateway, hooks=[recorder])

    async def work(number: int) -> None:
        task = await client.generate("a kitten", custom_id=random.choice([None, f"{number}"]))
        clip = await task.wait()
        await clip.download(tmp_path / f"{number}.mp4")
        saved.add(task.id)

    works = [asyncio.ensure_future(work(number)) for number in range(4)]
    for _ in range(random.randrange(120)):
        await asyncio.sleep(0)
    for one in works[: random.randrange(3)]:
        one.cancel()
    await client.aclose()
    results = await asyncio.gather(*works, return_exceptions=True)
    ours = (UsageError, WaitAbandoned, DownloadIncomplete, asyncio.CancelledError)
    assert [one for one in results if one is not None and not isinstance(one, ours)] == []
    listed = {task.id for task in client.unfinished}
    # Between its wait and its download, a clip is in the hands of the app.
    handed_out = {event.task_id for event in recorder.all(ClipHandedOut)}
    assert {task.task_id for task in gateway.tasks} == listed | saved | handed_out
    assert others() == set()
    assert saved.isdisjoint(listed)


# Several loops


def test_the_journal_closes_with_the_last_loop(tmp_path: Path) -> None:
    """Closing in one thread leaves the row of a submit in another alone."""
    path = tmp_path / "run.db"
    with asyncio.Runner() as here, asyncio.Runner() as there:
        gateway = Simulator(speed=1000, takes=20)
        here.run(gateway.start())
        gateway.fault("submit", faults.Slow(300.0))
        client = quick_client(gateway, journal=path)
        submitting: list[asyncio.Task[Task]] = []

        async def begin() -> None:
            submitting.append(asyncio.create_task(client.generate("a kitten")))
            await until(lambda: gateway.submitted)

        async def elsewhere() -> None:
            async with client:
                await client.find("order 7")

        async def end() -> str:
            task = await submitting[0]
            await client.aclose()
            return task.id

        here.run(begin())
        there.run(elsewhere())
        task_id = here.run(end())
        assert repr(client.journal).endswith("closed>")

        async def rows() -> list[Any]:
            journal = Journal(path)
            jobs = await journal.jobs()
            await journal.aclose()
            return [(job.task_id, job.state) for job in jobs]

        assert here.run(rows()) == [(task_id, JobState.ACCEPTED)]
        here.run(gateway.aclose())


async def test_what_an_earlier_process_left_is_on_the_list(
    gateway: Simulator, tmp_path: Path
) -> None:
    """With its name and tag; what was handed out or saved is not, and what was half saved is."""
    path = tmp_path / "run.db"
    async with quick_client(gateway, journal=path) as client:
        left = await client.generate("a kitten", custom_id="order 7", tag="shop")
        await (await client.generate("a puppy")).wait()
        clip = await (await client.generate("a foal")).wait()
        await clip.download(tmp_path / "1.mp4")
        official = await client.official.image_to_video(IMAGE, custom_id="order 8", tag="desk")
    async with quick_client(gateway, journal=path) as client:
        listed = client.unfinished
        assert [(one.id, one.custom_id, one.tag, one.official) for one in listed] == [
            (left.id, "order 7", "shop", False),
            (official.id, "order 8", "desk", True),
        ]
        found = await client.find("order 7")
        assert found is not None
        assert (found.id, found.tag) == (left.id, "shop")
        await asyncio.gather(*(task.wait() for task in listed))
        assert client.unfinished == ()
    async with quick_client(gateway, journal=path) as client:
        assert client.unfinished == ()


async def test_a_client_that_is_entered_again_keeps_its_handles(
    gateway: Simulator, tmp_path: Path
) -> None:
    """Its journal is read again, and a task that the client knows is listed once."""
    client = quick_client(gateway, journal=tmp_path / "run.db")
    async with client:
        task = await client.generate("a kitten")
    async with client:
        assert client.unfinished == (task,)


@pytest.mark.parametrize("what", ["task", "clip"])
async def test_handles_do_not_pickle(gateway: Simulator, runway: Client, what: str) -> None:
    """The error says what to pass on in their place, before a pool fails after paying."""
    task = await runway.generate("a kitten")
    thing = task if what == "task" else await task
    with pytest.raises(TypeError, match=rf"Pass {what}\.(id|record)"):
        pickle.dumps(thing)


async def in_threads(number: int, work: Callable[[int], Coroutine[Any, Any, T]]) -> list[T]:
    """Run *work* in this many threads at once, each with its own loop."""
    loop = asyncio.get_running_loop()
    # Leaving the executor blocks this loop, where the gateway answers, so all have to end first.
    with ThreadPoolExecutor(number) as threads:
        ends = [
            loop.run_in_executor(threads, lambda place=place: asyncio.run(work(place)))
            for place in range(number)
        ]
        await asyncio.wait(ends)
    return [end.result() for end in ends]


async def test_a_close_that_is_cancelled_in_two_threads_loses_no_id(gateway: Simulator) -> None:
    """Each loop's closing goes on by itself, and a second call joins it."""
    gateway.fault("submit", faults.Slow(0.2), times=None)
    client = quick_client(gateway)

    async def work(place: int) -> None:
        submitting = asyncio.create_task(client.generate(f"a kitten, take {place}"))
        await until(lambda: any(f"take {place}" in task.prompt for task in gateway.tasks))
        submitting.cancel()
        for _ in range(2):
            closing = asyncio.create_task(client.aclose())
            await settle()
            closing.cancel()
            await asyncio.wait([closing])
        await client.aclose()

    await in_threads(2, work)
    assert {task.id for task in client.unfinished} == {task.task_id for task in gateway.tasks}
    assert gateway.submitted == 2


async def test_many_threads_may_share_a_client(gateway: Simulator) -> None:
    """Twelve loops that come and go at once do not disturb iteration over the client's sessions."""
    client = quick_client(gateway)
    has_started = threading.Barrier(12)

    async def work(place: int) -> str:
        # A switch while a thread starts can make coverage's own hook fail.
        has_started.wait()
        sys.setswitchinterval(1e-5)
        task = await client.generate(f"a kitten, take {place}", custom_id=f"order-{place}")
        for _ in range(5):
            await client.feed(task.id)
            assert repr(client)
            assert len(client.unfinished) <= 12
        await task.wait(timeout=60)
        await client.aclose()
        return task.id

    before = sys.getswitchinterval()
    try:
        ids = await in_threads(12, work)
    finally:
        sys.setswitchinterval(before)
    assert sorted(ids) == sorted(task.task_id for task in gateway.tasks)
    assert client.unfinished == ()
