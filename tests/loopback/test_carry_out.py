"""Jobs of a queue that may deliver each of them twice: what is paid, what is on disk, what ends."""

import asyncio
import gc
import inspect
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from support.clients import EventRecorder, quick_client
from support.clock import until

from fuhu_runway import Client
from fuhu_runway._budget import Budget
from fuhu_runway.errors import (
    DownloadIncomplete,
    InvalidRequest,
    OutOfCredits,
    TaskFailed,
    UsageError,
    WaitAbandoned,
    WaitTimeout,
)
from fuhu_runway.hooks import TaskPolled
from fuhu_runway.items import Item, Outcome
from fuhu_runway.journal import Job, JobState, Journal, planned
from fuhu_runway.models import TaskRecord, TextToVideo
from fuhu_runway.testing import Simulator, faults

PROMPT: Final = "a marked kitten"
ITEM: Final = Item(TextToVideo(PROMPT), "order-1")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Return where clips are saved."""
    return tmp_path / "clips"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Return where the journal is."""
    return tmp_path / "run.db"


async def carried(gateway: Simulator, journal: Path, item: Item = ITEM, **options: Any) -> Outcome:
    """Carry out a job in a process of its own."""
    async with quick_client(gateway, journal=journal) as client:
        return await client.carry_out(item, **options)


async def state_of(client: Client) -> JobState:
    """Return what the journal says of the only job."""
    assert client.journal is not None
    [job] = await client.journal.jobs()
    return job.state


def names_in(folder: Path) -> set[str]:
    """Return what is in a folder."""
    return {file.name for file in folder.iterdir()}


async def test_a_job_that_is_delivered_again_is_paid_once(
    gateway: Simulator, journal: Path, clips: Path
) -> None:
    """The second call sends nothing, and its outcome has the file of the first."""
    first = await carried(gateway, journal, download_to=clips)
    sent = len(gateway.requests)
    second = await carried(gateway, journal, download_to=clips)
    assert len(gateway.requests) == sent
    assert first.path == second.path == clips / "order-1.mp4"
    assert (first.resumed, second.resumed) == (False, True)
    assert gateway.submitted == 1


async def test_two_calls_at_the_same_time_share_the_job(
    gateway: Simulator, journal: Path, clips: Path
) -> None:
    """One is submitted and saved, and both return the file."""
    async with quick_client(gateway, journal=journal) as client:
        both = await asyncio.gather(
            *(client.carry_out(ITEM, download_to=clips) for _ in range(2)),
        )
    assert [one.path for one in both] == [clips / "order-1.mp4"] * 2
    assert names_in(clips) == {"order-1.mp4"}
    assert gateway.submitted == 1


async def test_the_next_worker_goes_on_with_a_job_whose_worker_is_gone(
    gateway: Simulator, journal: Path, clips: Path
) -> None:
    """The task of a call that was cancelled is followed by the next one, and saved."""
    gateway.script(PROMPT, takes=400)
    async with quick_client(gateway, journal=journal) as client:
        leaving = asyncio.create_task(client.carry_out(ITEM, download_to=clips))
        await until(lambda: gateway.submitted)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    outcome = await carried(gateway, journal, download_to=clips)
    assert outcome.path == clips / "order-1.mp4"
    assert outcome.resumed
    assert gateway.submitted == 1


async def test_jobs_that_wait_keep_only_what_they_need(
    gateway: Simulator, journal: Path, clips: Path
) -> None:
    """Thousands of jobs of a queue wait at once: no budget, no signature, no row, one record."""

    def kept() -> dict[type, int]:
        kinds = (Budget, inspect.Parameter, Job, TaskRecord)
        gc.collect()  # of earlier tests
        everything = gc.get_objects()
        return {kind: sum(isinstance(one, kind) for one in everything) for kind in kinds}

    gateway.takes = 600.0
    recorder = EventRecorder()
    async with quick_client(gateway, journal=journal, hooks=[recorder]) as client:
        before = kept()
        carrying = [
            client.carry_out(Item(TextToVideo(name), name), download_to=clips, timeout=600.0)
            for name in "abcde"
        ]
        waiting = asyncio.gather(*carrying)
        await until(lambda: len({event.task_id for event in recorder.all(TaskPolled)}) == 5)
        more = {kind: count - before[kind] for kind, count in kept().items()}
        assert all(one.error is None for one in await waiting)
    # The journal's thread has the result of its last action.
    assert more.pop(Job) <= 1
    assert more == {Budget: 0, inspect.Parameter: 0, TaskRecord: 5}


async def test_what_the_outcome_says_is_on_disk(
    gateway: Simulator, journal: Path, clips: Path, tmp_path: Path
) -> None:
    """A copy that is made of the journal when the call returns has the job as saved."""
    copy = tmp_path / "copy.db"
    async with quick_client(gateway, journal=journal) as client:
        await client.carry_out(ITEM, download_to=clips)
        for ending in ("", "-wal"):
            shutil.copyfile(f"{journal}{ending}", f"{copy}{ending}")
    book = Journal(copy)
    assert [job.state for job in await book.jobs()] == [JobState.SAVED]
    await book.aclose()


async def test_a_clip_without_a_place_is_handed_out(gateway: Simulator, journal: Path) -> None:
    """Without download_to the caller has the clip, and the client has nothing unfinished."""
    async with quick_client(gateway, journal=journal) as client:
        outcome = await client.carry_out(ITEM)
        assert outcome.clip is not None
        assert outcome.path is None
        assert client.unfinished == ()


async def test_a_task_that_failed_is_an_outcome(gateway: Simulator, journal: Path) -> None:
    """Its error is returned each time, and only retry_failed submits it again."""
    gateway.script(PROMPT, then="fail")
    gateway.script(PROMPT)
    for _ in range(2):
        outcome = await carried(gateway, journal)
        assert isinstance(outcome.error, TaskFailed)
    assert gateway.submitted == 1
    outcome = await carried(gateway, journal, retry_failed=True)
    assert outcome.error is None
    assert gateway.submitted == 2


async def test_a_job_that_failed_is_tried_again_by_the_same_client(
    gateway: Simulator, journal: Path
) -> None:
    """What the client remembers of the name gives way to what the journal says."""
    gateway.script(PROMPT, then="fail")
    gateway.script(PROMPT)
    async with quick_client(gateway, journal=journal) as client:
        assert isinstance((await client.carry_out(ITEM)).error, TaskFailed)
        assert (await client.carry_out(ITEM, retry_failed=True)).clip is not None
    assert gateway.submitted == 2


async def test_a_job_that_was_not_accepted_after_all_is_sent_by_the_same_client(
    gateway: Simulator, journal: Path
) -> None:
    """Once a person has settled the doubt, the client does not hold on to it."""
    gateway.fault("submit", faults.drop_before_accepting())
    async with quick_client(gateway, journal=journal) as client:
        assert (await client.carry_out(ITEM)).is_in_doubt
        assert client.journal is not None
        await client.journal.resolve("order-1", accepted=False)
        assert (await client.carry_out(ITEM)).clip is not None
    assert gateway.submitted == 1


async def test_a_request_that_is_rejected_is_an_outcome(gateway: Simulator, journal: Path) -> None:
    """The gateway would reject it again, so it is not sent again."""
    gateway.fault("submit", faults.refused())
    for _ in range(2):
        outcome = await carried(gateway, journal)
        assert isinstance(outcome.error, InvalidRequest)
    assert gateway.submitted == 0


async def test_a_doubt_is_reported_each_time_and_never_sent_again(
    gateway: Simulator, journal: Path
) -> None:
    """A response that was lost leaves the job in doubt, however often it is delivered."""
    gateway.fault("submit", faults.drop_after_accepting())
    for _ in range(3):
        outcome = await carried(gateway, journal)
        assert outcome.is_in_doubt
    assert gateway.submitted == 1


async def test_the_journal_knows_better_than_the_client_what_a_name_stands_for(
    gateway: Simulator, journal: Path, clips: Path
) -> None:
    """A doubt that another process has settled, and a failure that is retried, are sent again."""
    gateway.script(PROMPT, then="fail")
    gateway.script(PROMPT)
    async with quick_client(gateway, journal=journal) as client:
        gateway.fault("submit", faults.drop_before_accepting())
        assert (await client.carry_out(ITEM)).is_in_doubt
        assert client.journal is not None
        await client.journal.resolve("order-1", accepted=False)
        assert isinstance((await client.carry_out(ITEM)).error, TaskFailed)
        again = await client.carry_out(ITEM, download_to=clips, retry_failed=True)
    assert again.error is None
    assert gateway.submitted == 2


async def test_a_job_that_was_not_accepted_for_now_is_delivered_again(
    gateway: Simulator, journal: Path
) -> None:
    """An account without points raises, and the next call submits."""
    gateway.fault("submit", faults.key_exhausted())
    async with quick_client(gateway, journal=journal) as client:
        with pytest.raises(OutOfCredits):
            await client.carry_out(ITEM)
        assert await state_of(client) is JobState.PLANNED
        assert (await client.carry_out(ITEM)).clip is not None
    assert gateway.submitted == 1


async def test_a_wait_that_is_too_short_raises(gateway: Simulator, journal: Path) -> None:
    """After a timeout the job is accepted, and the next call waits on."""
    gateway.script(PROMPT, takes=400)
    async with quick_client(gateway, journal=journal) as client:
        with pytest.raises(WaitTimeout):
            await client.carry_out(ITEM, timeout=0)
        assert await state_of(client) is JobState.ACCEPTED
        assert (await client.carry_out(ITEM)).clip is not None
    assert gateway.submitted == 1


async def test_a_clip_that_could_not_be_saved_raises(
    gateway: Simulator, journal: Path, clips: Path
) -> None:
    """The job stays finished, and the next call saves the clip."""
    gateway.fault("download", faults.server_error(), times=None)
    async with quick_client(gateway, journal=journal) as client:
        with pytest.raises(DownloadIncomplete):
            await client.carry_out(ITEM, download_to=clips)
        assert await state_of(client) is JobState.FINISHED
    gateway.forget_plans()
    assert (await carried(gateway, journal, download_to=clips)).path is not None
    assert gateway.submitted == 1


async def test_closing_the_client_ends_it_and_then_closes_the_journal(
    gateway: Simulator, journal: Path
) -> None:
    """The call ends with an error, so that the queue keeps the job, and the file is free."""
    gateway.script(PROMPT, takes=1000)
    client = quick_client(gateway, journal=journal)
    waiting = asyncio.create_task(client.carry_out(ITEM))
    await until(lambda: client.unfinished)
    await client.aclose()
    with pytest.raises(WaitAbandoned):
        await waiting
    book = Journal(journal)
    assert [job.state for job in await book.jobs()] == [JobState.ACCEPTED]
    await book.aclose()
    with pytest.raises(UsageError, match="closed"):
        await client.carry_out(ITEM)


async def test_a_job_that_was_planned_before_is_known_by_its_key(
    gateway: Simulator, journal: Path, clips: Path
) -> None:
    """Of two jobs with one prompt each has its own key and file, which a batch finds again."""
    book = Journal(journal)
    async with quick_client(gateway, journal=book) as client:
        plan = await planned(ITEM.request)
        items = [Item(ITEM.request, key=(await book.plan_next(plan, 0)).key) for _ in range(2)]
        for item in (*items, *items):
            await client.carry_out(item, download_to=clips)
        assert gateway.submitted == 2
        assert len(names_in(clips)) == 2
        again = [one async for one in client.generate_many([PROMPT] * 2, download_to=clips)]
        assert all(one.resumed and one.error is None for one in again)
    assert gateway.submitted == 2
    await book.aclose()


async def test_a_key_of_any_form_names_the_file(
    gateway: Simulator, journal: Path, clips: Path
) -> None:
    """A key that is no fingerprint with its occurrence is a name like a custom_id."""
    outcome = await carried(gateway, journal, Item(ITEM.request, key="mine"), download_to=clips)
    assert outcome.path == clips / "mine.mp4"


@pytest.mark.parametrize("thing", [PROMPT, TextToVideo(PROMPT), Item(TextToVideo(PROMPT))])
async def test_a_job_without_a_name_is_refused(
    gateway: Simulator, journal: Path, thing: Any
) -> None:
    """Delivered again, it could not be told from a second job."""
    with pytest.raises(UsageError, match="The job has no custom_id") as caught:
        await carried(gateway, journal, thing)
    assert caught.value.field == "custom_id"
    assert not gateway.requests


async def test_a_client_without_a_journal_is_refused(runway: Client) -> None:
    """Without a journal, nothing knows what was paid for."""
    with pytest.raises(UsageError, match="The client has no journal"):
        await runway.carry_out(ITEM)


async def test_an_url_names_the_extra_it_needs(
    runway: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without obstore, the error says what to install, and nothing was sent."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "fuhu_runway.contrib.store", raising=False)
    with pytest.raises(UsageError, match="needs the extra store") as caught:
        runway.batch([PROMPT], download_to="s3://bucket/clips/")
    assert 'pip install ".[store]"' in caught.value.advice
