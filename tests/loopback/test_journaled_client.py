"""A client with a journal: what is recorded before, while and after money is spent."""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

import pytest
from support.clients import quick_client
from support.clock import until

from fuhu_runway import Client
from fuhu_runway._journal.schema import SCHEMA_VERSION
from fuhu_runway.errors import (
    InvalidRequest,
    JournalBusy,
    JournalError,
    JournalTooNew,
    NotSent,
    OutOfCredits,
    RateLimited,
    RunwayError,
    SubmissionInDoubt,
    TaskFailed,
)
from fuhu_runway.journal import Job, JobState, Journal
from fuhu_runway.models import Generation, ImageToVideo, RetryPolicy, TextToVideo, VideoToVideo
from fuhu_runway.testing import Simulator, faults
from fuhu_runway.testing.faults import Fault

MONEY: Final = "Nothing was sent or charged."
PROMPT: Final = "a marked kitten"
TWICE: Final = RetryPolicy(attempts=2, first=0.001, max_delay=0.001)
SIGNED: Final = "https://example.com/1.png?_jwt=marked"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the journal is."""
    return tmp_path / "run.db"


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Journal]:
    """Return a journal that is closed afterwards."""
    journal = Journal(path)
    try:
        yield journal
    finally:
        await journal.aclose()


async def jobs(path: Path) -> list[Job]:
    """Return what the closed file says."""
    async with opened(path) as journal:
        return await journal.jobs()


def every_byte(path: Path) -> bytes:
    """Return all that is on disk of a journal."""
    return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


# Before


def missing_folder(path: Path) -> Path:
    """A place that is not there."""
    return path.parent / "missing" / "run.db"


def another_database(path: Path) -> Path:
    """Another program's database."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE bookmarks (title TEXT)")
    return path


def of_a_newer_version(path: Path) -> Path:
    """A journal of a future version."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE job (key TEXT)")
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    return path


def no_database(path: Path) -> Path:
    """A list of prompts."""
    path.write_text("a kitten\n" * 100)
    return path


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (missing_folder, JournalError),
        (another_database, JournalError),
        (of_a_newer_version, JournalTooNew),
        (no_database, JournalError),
    ],
)
async def test_nothing_is_sent_that_cannot_be_recorded(
    gateway: Simulator, path: Path, make: Callable[[Path], Path], kind: type[JournalError]
) -> None:
    """With a journal that cannot be used, no request leaves, by any method."""
    client = quick_client(gateway, journal=make(path))
    with pytest.raises(kind) as caught:
        await client.generate(PROMPT)
    with pytest.raises(kind):
        [outcome async for outcome in client.generate_many([PROMPT, PROMPT])]
    with pytest.raises(kind):
        # An app does not start like this: the error comes before its first request.
        await client.__aenter__()
    assert repr(client.journal).endswith("closed>")
    assert type(caught.value) is kind
    assert caught.value.money == MONEY
    assert gateway.submitted == 0
    assert gateway.requests == ()


async def test_nothing_is_sent_while_another_has_the_journal(
    gateway: Simulator, path: Path
) -> None:
    """While the file is taken nothing is sent, and afterwards the same client goes on."""
    client = quick_client(gateway, journal=path)
    async with opened(path) as other:
        await other.counts()
        with pytest.raises(JournalBusy):
            await client.generate(PROMPT)
        with pytest.raises(JournalBusy):
            await client.__aenter__()
        assert gateway.submitted == 0
    async with client:
        await client.generate(PROMPT)
    assert gateway.submitted == 1


async def generate_for_ever(client: Client, made: list[str]) -> None:
    """Submit one after the other, and record what was accepted."""
    while True:
        made.append((await client.generate(PROMPT)).id)


async def test_nothing_is_sent_once_the_disk_is_full(gateway: Simulator, path: Path) -> None:
    """Each submission that was sent is in the file; the first that does not fit is not sent."""
    async with opened(path) as journal, quick_client(gateway, journal=journal) as client:
        pages = await journal._writer.run(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
        await journal._writer.run(
            lambda db: db.execute(f"PRAGMA max_page_count={pages + 1}").fetchone()
        )
        made: list[str] = []
        with pytest.raises(JournalError, match="full") as caught:
            await generate_for_ever(client, made)
        assert caught.value.money == MONEY
        assert gateway.submitted == len(made) > 0
        counts = await journal.counts()
    # The last row that fitted may be the one that says that it is about to be sent.
    assert counts[JobState.ACCEPTED] + counts[JobState.SUBMITTING] == len(made)
    assert counts[JobState.SUBMITTING] <= 1


def seen_from_outside(path: Path, copy: Path) -> list[str]:
    """Return the states that would be found if the process ended now."""
    for suffix in ["", "-wal"]:
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    with closing(sqlite3.connect(copy)) as db:
        return [row[0] for row in db.execute("SELECT state FROM job")]


async def test_the_row_is_on_disk_before_the_request_leaves(path: Path) -> None:
    """When a request reaches the gateway, its row is SUBMITTING already."""
    seen: list[list[str]] = []

    def price(_body: Any) -> float:
        seen.append(seen_from_outside(path, path.with_name("copy.db")))
        return 1.0

    async with Simulator(price=price) as gateway, quick_client(gateway, journal=path) as client:
        await client.generate(PROMPT)
        seen.append(seen_from_outside(path, path.with_name("copy.db")))
    assert seen[0] == ["submitting"]
    assert seen[-1] == ["accepted"]


# What becomes of it


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize(
    ("fault", "kind", "state"),
    [
        (faults.drop_before_accepting(), SubmissionInDoubt, JobState.IN_DOUBT),
        (faults.drop_after_accepting(), SubmissionInDoubt, JobState.IN_DOUBT),
        (faults.server_error(502, accepted=True), SubmissionInDoubt, JobState.IN_DOUBT),
        (faults.server_error(500, body="json"), SubmissionInDoubt, JobState.IN_DOUBT),
        (faults.not_json(accepted=True), SubmissionInDoubt, JobState.IN_DOUBT),
        (faults.TooManyRequests(), RateLimited, JobState.PLANNED),
        (faults.refused(), InvalidRequest, JobState.FAILED),
        (faults.key_exhausted(), OutOfCredits, JobState.PLANNED),
    ],
)
async def test_every_end_of_a_submission_is_written(
    gateway: Simulator, path: Path, fault: Fault, kind: type[RunwayError], state: JobState
) -> None:
    """After the submission the state of the row matches the error."""
    gateway.fault("submit", fault, times=None)
    async with quick_client(gateway, journal=path, retry=TWICE) as client:
        with pytest.raises(kind):
            await client.generate(PROMPT)
        assert client.journal is not None
        (job,) = await client.journal.jobs()
    assert (job.state, job.task_id) == (state, None)
    assert job.error
    assert job.submissions == (2 if kind is RateLimited else 1)


async def test_a_gateway_that_is_not_there_leaves_the_job_planned(path: Path) -> None:
    """A request that never arrived counts as not sent, and may be sent again."""
    gateway = Simulator()
    await gateway.start()
    await gateway.aclose()
    async with quick_client(gateway, journal=path, retry=TWICE) as client:
        with pytest.raises(NotSent):
            await client.generate(PROMPT)
    (job,) = await jobs(path)
    assert (job.state, job.error, job.submissions) == (JobState.PLANNED, "NotSent", 2)


async def test_a_clip_is_followed_to_the_disk(
    gateway: Simulator, path: Path, tmp_path: Path
) -> None:
    """Acceptance, end and file are written as they happen, with points and size."""
    async with quick_client(gateway, journal=path) as client:
        assert client.journal is not None
        task = await client.generate(PROMPT, seconds=5)
        accepted = await client.journal.find(task.id)
        clip = await task.wait(timeout=30)
        finished = await client.journal.find(task.id)
        await clip.download(tmp_path / "clip.mp4")
        saved = await client.journal.find(task.id)
    assert accepted is not None
    assert (accepted.endpoint, accepted.model, accepted.seconds) == ("TextToVideo", "gen4", 5)
    assert finished is not None
    assert saved is not None
    assert [job.state for job in (accepted, finished, saved)] == [
        JobState.ACCEPTED,
        JobState.FINISHED,
        JobState.SAVED,
    ]
    assert finished.points == gateway.tasks[0].points
    assert saved.file_bytes == len((tmp_path / "clip.mp4").read_bytes())
    assert finished.accepted_at is not None
    assert finished.finished_at is not None
    assert finished.finished_at >= finished.accepted_at


async def test_a_failure_is_written_with_its_refund(gateway: Simulator, path: Path) -> None:
    """A task that failed is FAILED, and whether its points came back is known."""
    gateway.script(then="fail")
    async with quick_client(gateway, journal=path) as client:
        with pytest.raises(TaskFailed):
            await (await client.generate(PROMPT)).wait(timeout=30)
    (job,) = await jobs(path)
    assert (job.state, job.refunded, job.error) == (JobState.FAILED, True, "TaskFailed")


async def test_a_job_of_the_journal_can_be_waited_for_by_another_client(
    gateway: Simulator, path: Path
) -> None:
    """What one process submitted, the next attaches to and waits for, in either format."""
    async with quick_client(gateway, journal=path) as client:
        await client.generate(PROMPT)
        await client.official.image_to_video("https://example.com/1.png", PROMPT)
    async with quick_client(gateway, journal=path) as client:
        assert client.journal is not None
        for job in await client.journal.jobs(JobState.ACCEPTED):
            clip = await client.attach(job).wait(timeout=30)
            assert clip.id == job.task_id
    assert [job.state for job in await jobs(path)] == [JobState.FINISHED] * 2
    assert gateway.submitted == 2


async def test_equal_requests_made_one_by_one_are_jobs_of_their_own(
    gateway: Simulator, path: Path
) -> None:
    """Outside of a batch each submit is meant: nothing is taken for an earlier one."""
    async with quick_client(gateway, journal=path) as client:
        await asyncio.gather(*(client.generate(PROMPT) for _ in range(10)))
    assert gateway.submitted == len(await jobs(path)) == 10


async def test_a_cancelled_caller_loses_no_id(gateway: Simulator, path: Path) -> None:
    """Cancelled while the request is in flight, the job is ACCEPTED all the same."""
    gateway.fault("submit", faults.Slow(30.0))
    async with quick_client(gateway, journal=path) as client:
        calling = asyncio.create_task(client.generate(PROMPT))
        await until(lambda: gateway.submitted)
        calling.cancel()
        await asyncio.wait([calling])
    assert calling.cancelled()
    (job,) = await jobs(path)
    assert (job.state, job.task_id) == (JobState.ACCEPTED, gateway.tasks[0].task_id)
    assert [task.id for task in client.unfinished] == [job.task_id]


# A journal that fails too late


class Forgetful(Journal):
    """A journal whose disk is full as soon as something was sent."""

    async def step(self, key: str, to: JobState, now: float, **changes: Any) -> Job:
        if to is not JobState.SUBMITTING:
            raise JournalError("The disk is full.", MONEY, "Make room.")
        return await super().step(key, to, now, **changes)


async def test_a_paid_task_is_given_though_its_row_cannot_be_written(
    gateway: Simulator, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The handle of what was paid matters most; the row is in doubt, and the log has the id."""
    journal = Forgetful(path)
    async with quick_client(gateway, journal=journal) as client:
        task = await client.generate(PROMPT)
        await task.wait(timeout=30)
    await journal.aclose()
    assert task.id in caplog.text
    assert [(job.state, job.task_id) for job in await jobs(path)] == [(JobState.IN_DOUBT, None)]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (faults.drop_after_accepting(), SubmissionInDoubt),
        (faults.refused(), InvalidRequest),
    ],
)
async def test_the_outcome_of_a_submission_is_raised_even_if_it_cannot_be_written(
    gateway: Simulator, path: Path, fault: Fault, kind: type[RunwayError]
) -> None:
    """An error of the journal never replaces a doubt: it would say that nothing was sent."""
    gateway.fault("submit", fault)
    journal = Forgetful(path)
    async with quick_client(gateway, journal=journal) as client:
        with pytest.raises(kind):
            await client.generate(PROMPT)
    await journal.aclose()
    (job,) = await jobs(path)
    assert job.state is JobState.IN_DOUBT


# Whose it is


async def test_a_journal_by_path_is_closed_with_its_client(gateway: Simulator, path: Path) -> None:
    """A client that opened its journal by path releases the file when it is closed."""
    async with quick_client(gateway, journal=str(path)) as client:
        await client.generate(PROMPT)
        assert "open" in repr(client.journal)
    assert len(await jobs(path)) == 1


async def test_a_shared_journal_stays_open(gateway: Simulator, path: Path) -> None:
    """Two clients write into one journal, and closing one of them leaves it to the other."""
    async with opened(path) as journal:
        async with quick_client(gateway, journal=journal) as one:
            await one.generate(PROMPT)
        async with quick_client(gateway, journal=journal) as other:
            await (await other.generate(PROMPT)).wait(timeout=30)
        assert "open" in repr(journal)
        states = [job.state for job in await journal.jobs()]
    assert states == [JobState.ACCEPTED, JobState.FINISHED]


def test_a_client_and_its_journal_serve_several_loops(path: Path) -> None:
    """Three runs of one client: three jobs, three tasks, and not one more."""
    client: Client | None = None

    async def one_more(number: int) -> int:
        nonlocal client
        async with Simulator(speed=1000, takes=20, seed=number) as gateway:
            client = client or quick_client(gateway, journal=path)
            client._sessions.gateway = quick_client(gateway).gateway
            await (await client.generate(f"{PROMPT} {number}")).wait(timeout=30)
            if number == 2:
                await client.aclose()
            return gateway.submitted

    assert [asyncio.run(one_more(number)) for number in range(3)] == [1, 1, 1]
    states = [job.state for job in asyncio.run(jobs(path))]
    assert states == [JobState.FINISHED] * 3


# Secrets


async def test_the_file_holds_no_secret(gateway: Simulator, path: Path, tmp_path: Path) -> None:
    """No prompt, key or address is written to disk, in any outcome of a request."""
    on_submit = [
        faults.drop_after_accepting(),
        faults.refused(f"the prompt {PROMPT!r} is not allowed, see {SIGNED}"),
        faults.task_error(f"bad: {PROMPT}", PROMPT),
        faults.error(401, f"no such token: {gateway.api_key}", code=gateway.api_key),
        faults.nested_error(),
    ]
    requests: list[Generation] = [
        TextToVideo(PROMPT, extra={"hint": PROMPT}),
        ImageToVideo(PROMPT, SIGNED),
        VideoToVideo(SIGNED, PROMPT),
    ]
    async with quick_client(gateway, journal=path) as client:
        for fault in on_submit:
            gateway.fault("submit", fault)
            with pytest.raises(RunwayError):
                await client.submit(requests[0])
        gateway.script(then="fail", reason=f"the prompt {PROMPT!r} is not allowed, see {SIGNED}")
        with pytest.raises(TaskFailed):
            await (await client.submit(requests[0])).wait(timeout=30)
        async for outcome in client.generate_many(requests, download_to=tmp_path / "clips"):
            assert outcome.path is not None
        while_open = every_byte(path)
    for content in (while_open, every_byte(path)):
        assert b"TextToVideo" in content
        for secret in (b"marked", gateway.api_key.encode(), b"example.com", b"127.0.0.1"):
            assert secret not in content
