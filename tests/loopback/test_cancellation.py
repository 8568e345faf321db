import asyncio
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest
from support import programs
from support.clients import EventRecorder, others, quick_client
from support.clock import settle, until

from fuhu_runway import Client, Task
from fuhu_runway.errors import Fate, WaitAbandoned, WaitTimeout
from fuhu_runway.hooks import RetryScheduled, SubmissionFailed, SubmissionUnclaimed
from fuhu_runway.models import Limits
from fuhu_runway.testing import Simulator, faults

PROMPT = "a marked kitten"
#: In simulated seconds: a fifth of a second, long enough to be cancelled in.
A_WHILE = 200.0
#: The task goes on for this many polls, however long each of them takes.
SOME_POLLS = [faults.on("feed", faults.EmptyFields(), times=12)]


async def cancel(work: "asyncio.Task[Any]") -> None:
    """Cancel *work*, and check that this ends it."""
    work.cancel()
    await asyncio.wait([work])
    assert work.cancelled()


# Submits


async def test_a_submit_that_waits_for_its_turn(gateway: Simulator) -> None:
    """Cancelled while another request is in flight, it is never sent, and no id is lost."""
    gateway.fault("submit", faults.Slow(A_WHILE))
    async with quick_client(gateway, limits=Limits(requests_in_flight=1)) as client:
        first = asyncio.create_task(client.generate(PROMPT))
        second = asyncio.create_task(client.generate(PROMPT))
        await until(lambda: gateway.submitted)
        await cancel(second)
        task = await first
    assert [one.task_id for one in gateway.tasks] == [task.id]
    assert client.unfinished == (task,)
    assert len(gateway.requests) == 1


async def test_a_submit_in_flight(gateway: Simulator) -> None:
    """Closing waits for its id, and its clip can be fetched: nothing paid is lost."""
    gateway.fault("submit", faults.Slow(A_WHILE))
    recorder = EventRecorder()
    async with quick_client(gateway, hooks=[recorder]) as client:
        submitting = asyncio.create_task(client.generate(PROMPT))
        await until(lambda: gateway.submitted)
        await cancel(submitting)
        assert client.unfinished == ()
    [task] = client.unfinished
    assert [one.task_id for one in gateway.tasks] == [task.id]
    [event] = recorder.all(SubmissionUnclaimed)
    assert (event.task_id, event.error) == (task.id, None)
    async with client:
        clip = await task.wait(timeout=10)
    assert clip.id == task.id


async def test_a_submit_with_a_deadline(gateway: Simulator) -> None:
    """`asyncio.timeout` around it is a cancellation like any other."""
    gateway.fault("submit", faults.Slow(A_WHILE))
    async with quick_client(gateway) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(A_WHILE / 2000):
                await client.generate(PROMPT)
    assert [task.id for task in client.unfinished] == [one.task_id for one in gateway.tasks]
    assert len(client.unfinished) == 1


async def test_submits_in_a_group_that_fails(gateway: Simulator) -> None:
    """One that is refused ends its group; the ids of the others are kept."""
    gateway.script("refused", faults=[faults.on("submit", faults.refused())])
    gateway.script(PROMPT, faults=[faults.on("submit", faults.Slow(A_WHILE), times=None)])

    async def submit_all(client: Client) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(client.generate(PROMPT))
            await until(lambda: gateway.submitted == 3)
            group.create_task(client.generate("refused"))

    async with quick_client(gateway) as client:
        with pytest.raises(ExceptionGroup):
            await submit_all(client)
    assert {task.id for task in client.unfinished} == {one.task_id for one in gateway.tasks}


async def test_a_submit_in_its_pause(gateway: Simulator) -> None:
    """Cancelled between two sendings it stays refused, and closing waits for nothing."""
    gateway.fault("submit", faults.TooManyRequests(60), times=None)
    recorder = EventRecorder()
    async with quick_client(gateway, hooks=[recorder]) as client:
        submitting = asyncio.create_task(client.generate(PROMPT))
        await until(lambda: recorder.all(RetryScheduled))
        await settle()
        await cancel(submitting)
    assert (gateway.submitted, len(gateway.requests), client.unfinished) == (0, 1, ())
    assert recorder.all(SubmissionUnclaimed) == []
    [event] = recorder.all(SubmissionFailed)
    assert (event.error, event.fate) == ("CancelledError", Fate.UNSENT)


async def test_a_close_waits_for_a_submit(gateway: Simulator) -> None:
    """A close during a submit does not take its task away."""
    gateway.fault("submit", faults.Slow(A_WHILE))
    client = quick_client(gateway)
    submitting = asyncio.create_task(client.generate(PROMPT))
    await until(lambda: gateway.submitted)
    await client.aclose()
    task: Task = await submitting
    assert [one.task_id for one in gateway.tasks] == [task.id]
    assert client.unfinished == (task,)


async def test_a_close_that_is_cancelled(gateway: Simulator) -> None:
    """It goes on, also when it is cancelled twice, and the submit it waits for gets its task."""
    gateway.fault("submit", faults.Slow(A_WHILE))
    client = quick_client(gateway)
    submitting = asyncio.create_task(client.generate(PROMPT))
    await until(lambda: gateway.submitted)
    for _ in range(2):
        closing = asyncio.create_task(client.aclose())
        await settle()
        await cancel(closing)
    await client.aclose()
    assert others() - {submitting} == set()
    task = await submitting
    assert client.unfinished == (task,)


async def test_a_close_in_a_scope_of_anyio_that_is_cancelled(gateway: Simulator) -> None:
    """The scope cancels at every turn of the loop, and the id is in the list all the same."""
    gateway.fault("submit", faults.Slow(A_WHILE))
    client = quick_client(gateway)
    submitting = asyncio.create_task(client.generate(PROMPT))
    await until(lambda: gateway.submitted)
    submitting.cancel()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await client.aclose()
    await client.aclose()
    assert [task.id for task in client.unfinished] == [gateway.tasks[0].task_id]
    assert others() == set()


# Waits


async def test_a_wait(gateway: Simulator) -> None:
    """A cancelled wait ends alone: the task goes on, and another wait gets the clip."""
    gateway.script(faults=SOME_POLLS)
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
        leaver = asyncio.create_task(task.wait())
        stayer = asyncio.create_task(client.task(task.id).wait(timeout=10))
        await until(lambda: gateway.polls(task.id) > 1)
        await cancel(leaver)
        assert (await stayer).id == task.id


async def test_a_wait_with_a_deadline_around_it(gateway: Simulator) -> None:
    """`asyncio.timeout` around a wait leaves the task awaitable, as the wait's own timeout does."""
    gateway.script(faults=SOME_POLLS)
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await task
        with pytest.raises(WaitTimeout) as caught:
            await task.wait(timeout=0.03)
        assert caught.value.task_id == task.id
        assert (await task).id == task.id
    assert gateway.submitted == 1


async def test_all_waits_at_once(gateway: Simulator) -> None:
    """Fifty waits for twenty-five tasks, cancelled together, leave no timer and no poll."""
    gateway.script(lambda _body: True, takes=3600)
    async with quick_client(gateway) as client:
        tasks = [await client.generate(f"{PROMPT} {number}") for number in range(25)]
        waits = [asyncio.create_task(task.wait()) for task in tasks * 2]
        await until(lambda: all(gateway.polls(task.id) for task in tasks))
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
        await settle()
        assert all(wait.cancelled() for wait in waits)
        assert "<Poller 0 tasks>" in repr(client)
        await asyncio.sleep(0.02)
        polls = [gateway.polls(task.id) for task in tasks]
        await asyncio.sleep(0.05)
        assert [gateway.polls(task.id) for task in tasks] == polls


async def test_a_reader_of_updates(gateway: Simulator) -> None:
    """Cancelled between two changes, it leaves nothing; at a close it raises."""
    gateway.script(lambda _body: True, takes=3600)
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
        received: list[Any] = []
        following = asyncio.create_task(task.wait(on_update=received.append))
        await until(lambda: received)
        await cancel(following)
        assert "<Poller 0 tasks>" in repr(client)
        another = asyncio.create_task(task.wait(on_update=received.append))
        await until(lambda: len(received) > 1)
    with pytest.raises(WaitAbandoned):
        await another


# Downloads


async def test_a_download(tmp_path: Path) -> None:
    """The bytes that arrived are kept, and the next call requests the rest of the same version."""
    video = (16).to_bytes(4, "big") + b"ftypisom" + b"\0" * 4
    video += (3 * 2**20 + 8).to_bytes(4, "big") + b"mdat" + bytes(3 * 2**20)
    async with Simulator(speed=1000, takes=20, video=video) as simulator:
        async with quick_client(simulator) as client:
            clip = await (await client.generate(PROMPT))
            simulator.fault("download", faults.Hang(after_bytes=2 * 2**20))
            target, part = tmp_path / "a.mp4", tmp_path / "a.mp4.part"
            saving = asyncio.create_task(clip.download(target))
            await until(lambda: part.exists() and part.stat().st_size)
            await cancel(saving)
            kept = part.stat().st_size
            assert not target.exists()
            await clip.download(target)
        assert target.read_bytes() == video
        last = [seen for seen in simulator.requests if seen.where == "download"][-1]
        assert (last.headers["Range"], last.status) == (f"bytes={kept}-", 206)
    assert not part.exists()


async def test_a_client_in_the_middle_of_everything(gateway: Simulator, tmp_path: Path) -> None:
    """Left by an exception during a submit, a wait and a poll, it closes everything."""
    gateway.script(lambda _body: True, takes=3600)
    client = quick_client(gateway)

    async def leave() -> None:
        async with client:
            task = await client.generate(PROMPT)
            gateway.fault("submit", faults.Slow(A_WHILE))
            gateway.fault("feed", faults.Hang(), times=None)
            works = [
                asyncio.create_task(client.generate(PROMPT)),
                asyncio.create_task(task.wait()),
                asyncio.create_task(client.feed(task.id)),
            ]
            await until(lambda: gateway.submitted == 2 and gateway.polls(task.id) == 2)
            for work in works:
                work.cancel()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await leave()
    await settle()
    assert others() == set()
    assert [task.id for task in client.unfinished] == [one.task_id for one in gateway.tasks]


# The whole program


INTERRUPTED = """
received = []
client = Client(hooks=[received.append])

async def main():
    BODY

try:
    asyncio.run(main())
except KeyboardInterrupt:
    unclaimed = [one for one in received if isinstance(one, hooks.SubmissionUnclaimed)]
    print(*(f"{one.task_id} {one.error}" for one in unclaimed))
"""


@pytest.mark.parametrize(
    ("body", "is_kept"),
    [
        ("async with client: await client.generate('a marked kitten')", True),
        ("await client.generate('a marked kitten')", False),
    ],
    ids=["with", "without"],
)
async def test_a_program_that_is_interrupted(gateway: Simulator, body: str, is_kept: bool) -> None:
    """Ctrl-C in the middle of a submit: `async with` gets the id; without it doubt is reported."""
    gateway.fault("submit", faults.Slow(A_WHILE * 4))
    process = await programs.start(gateway, INTERRUPTED.replace("BODY", body))
    await until(lambda: gateway.submitted)
    process.send_signal(signal.SIGINT)
    ended = await programs.end_of(process)
    task_id = gateway.tasks[0].task_id
    assert ended.words == ([task_id, "None"] if is_kept else ["None", "SubmissionInDoubt"])
    # The standard log, which shows warnings where nothing else is set up.
    [line] = ended.complaints.splitlines()
    assert line.startswith("SubmissionUnclaimed ")
