"""Workers that share a journal in Postgres: whatever each of them is doing, a job is paid once."""

import asyncio
import itertools
import platform
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from support.clients import EventRecorder, quick_client
from support.clock import until

pytest.importorskip("psycopg", reason="the extra postgres is not installed")

from fuhu_runway import Client
from fuhu_runway.contrib.postgres import PostgresJournal
from fuhu_runway.errors import DownloadIncomplete, JournalError, RunwayError
from fuhu_runway.hooks import SubmissionHeld
from fuhu_runway.items import Item, Outcome
from fuhu_runway.journal import BaseJournal, JobState
from fuhu_runway.models import Limits, TextToVideo, Timeouts
from fuhu_runway.testing import Simulator, faults

PROMPT: Final = "a marked kitten"
ITEM: Final = Item(TextToVideo(PROMPT), "order-1")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Return where clips are saved."""
    return tmp_path / "clips"


@pytest.fixture
async def workers(gateway: Simulator, database_url: str) -> AsyncIterator[list[Client]]:
    """Yield three clients, each with a connection of its own, as on three machines."""
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(3):
            journal = PostgresJournal(database_url)
            stack.push_async_callback(journal.aclose)
            clients.append(await stack.enter_async_context(quick_client(gateway, journal=journal)))
        yield clients


def journal_of(client: Client) -> BaseJournal:
    """Return the journal of a worker."""
    assert client.journal is not None
    return client.journal


def names_in(folder: Path) -> set[str]:
    """Return what is in a folder."""
    return {file.name for file in folder.iterdir()}


def downloads(gateway: Simulator) -> list[Any]:
    """Return the requests for clips."""
    return [seen for seen in gateway.requests if seen.where == "download"]


async def delivered(client: Client, item: Item, first: float, **options: Any) -> Outcome:
    """Carry out a job as a queue does: again after a while, until the call returns."""
    for attempt in itertools.count():
        try:
            return await client.carry_out(item, **options)
        except RunwayError:
            # Workers that came again at the same time would take the job from each other again.
            await asyncio.sleep(first * 2**attempt)
    raise AssertionError


async def test_all_workers_at_once_pay_once_for_each_job(
    gateway: Simulator, workers: list[Client], clips: Path
) -> None:
    """Ten jobs, delivered to three workers at the same time, are paid once and end everywhere."""
    items = [Item(TextToVideo(f"{PROMPT} {n}"), f"order-{n}") for n in range(10)]
    outcomes = await asyncio.gather(
        *(
            delivered(client, item, 0.01 * 2**number, download_to=clips)
            for item in items
            for number, client in enumerate(workers)
        )
    )
    assert gateway.duplicates == ()
    assert gateway.submitted == 10
    # A worker that came while another one was sending has reported a doubt, which is settled now.
    assert all(outcome.error is None or outcome.is_in_doubt for outcome in outcomes)
    assert {job.state for job in await journal_of(workers[0]).jobs()} == {JobState.SAVED}
    assert len({outcome.path for outcome in outcomes if outcome.path}) == 10


async def test_a_request_that_another_worker_may_have_sent_is_never_sent_again(
    gateway: Simulator, workers: list[Client]
) -> None:
    """The job of a worker that died before the response came is reported as in doubt."""
    first, second, _ = workers
    gateway.fault("submit", faults.Hang(accepted=True))
    timeouts = Timeouts(read=1.0)
    async with quick_client(gateway, journal=journal_of(first), timeouts=timeouts) as dying:
        carrying = asyncio.create_task(dying.carry_out(ITEM))
        await until(lambda: gateway.submitted)
        for _ in range(2):
            assert (await second.carry_out(ITEM)).is_in_doubt
        carrying.cancel()
        await asyncio.wait([carrying])
    assert gateway.submitted == 1


async def test_a_late_response_settles_the_doubt(
    gateway: Simulator, workers: list[Client], clips: Path
) -> None:
    """A worker that was only slow goes on with its task, and the others find the clip."""
    slow, other, _ = workers
    gateway.fault("submit", faults.Slow(1500))
    carrying = asyncio.create_task(slow.carry_out(ITEM, download_to=clips))
    await until(lambda: gateway.submitted)
    assert (await other.carry_out(ITEM, download_to=clips)).is_in_doubt
    assert (await carrying).path == clips / "order-1.mp4"
    assert (await other.carry_out(ITEM, download_to=clips)).path == clips / "order-1.mp4"
    assert gateway.submitted == 1


async def test_the_next_worker_follows_a_task_that_is_paid_for(
    gateway: Simulator, workers: list[Client], clips: Path
) -> None:
    """It needs no request but polls and the download."""
    first, second, _ = workers
    gateway.script(PROMPT, takes=400)
    dying = asyncio.create_task(first.carry_out(ITEM, download_to=clips))
    await until(lambda: first.unfinished)
    dying.cancel()
    await asyncio.wait([dying])
    # What the gateway answered is written even so, if not at once.
    while not await journal_of(second).jobs(JobState.ACCEPTED):
        pass
    outcome = await second.carry_out(ITEM, download_to=clips)
    assert outcome.path == clips / "order-1.mp4"
    assert outcome.resumed
    assert gateway.submitted == 1


@pytest.mark.parametrize("is_doubtful", [False, True])
async def test_a_job_that_another_worker_took_over_is_not_sent(
    gateway: Simulator, workers: list[Client], *, is_doubtful: bool
) -> None:
    """A worker that had to wait before it could send raises, and knows more the next time."""
    _, second, third = workers
    recorder = EventRecorder()
    gateway.script("a long one", takes=1000)
    async with quick_client(
        gateway, journal=journal_of(third), limits=Limits(tasks_in_flight=1), hooks=[recorder]
    ) as first:
        long = asyncio.create_task(first.carry_out(Item(TextToVideo("a long one"), "order-2")))
        await until(lambda: gateway.submitted)
        held = asyncio.create_task(first.carry_out(ITEM))
        await until(lambda: recorder.all(SubmissionHeld))
        if is_doubtful:
            gateway.fault("submit", faults.drop_after_accepting())
        assert (await second.carry_out(ITEM)).is_in_doubt is is_doubtful
        with pytest.raises(JournalError):
            await held
        await long
        assert (await first.carry_out(ITEM)).is_in_doubt is is_doubtful
    assert gateway.submitted == 2


async def test_machines_that_share_a_folder_have_parts_of_their_own(
    gateway: Simulator,
    database_url: str,
    clips: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of them save one clip at the same time, without locks, and both find it whole."""
    # The second download begins before the first one ends.
    gateway.fault("download", faults.Slow(200))
    carrying = []
    async with AsyncExitStack() as stack:
        for machine in ("a", "b"):
            monkeypatch.setattr(platform, "node", lambda: machine)  # noqa: B023
            journal = PostgresJournal(database_url)
            stack.push_async_callback(journal.aclose)
            client = await stack.enter_async_context(quick_client(gateway, journal=journal))
            work = client.carry_out(ITEM, download_to=clips)
            carrying.append(asyncio.create_task(work))
            await until(lambda: len(downloads(gateway)) == len(carrying))
        outcomes = await asyncio.gather(*carrying)
    assert [outcome.path for outcome in outcomes] == [clips / "order-1.mp4"] * 2
    assert names_in(clips) == {"order-1.mp4"}
    assert gateway.submitted == 1


async def test_a_part_says_which_machine_it_is_of(
    gateway: Simulator, workers: list[Client], clips: Path
) -> None:
    """A download that broke off is continued on the same machine, also by another process."""
    gateway.fault("download", faults.Cut(1000))
    gateway.fault("download", faults.server_error(), times=None)
    with pytest.raises(DownloadIncomplete):
        await workers[0].carry_out(ITEM, download_to=clips)
    [part] = [name for name in names_in(clips) if name.endswith(".part")]
    assert re.fullmatch(r"order-1\.mp4\.[0-9a-f]{8}\.part", part)
    gateway.forget_plans()
    await workers[1].carry_out(ITEM, download_to=clips)
    assert names_in(clips) == {"order-1.mp4"}
    assert downloads(gateway)[-1].status == 206
