import asyncio
import hmac
import itertools
import json
import logging
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import UserDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from support.clock import ManualClock

import fuhu_runway
from fuhu_runway import journal as journals
from fuhu_runway._journal import file as journal_file
from fuhu_runway._journal.file import BUSY_PAUSE, SCHEMA_VERSION, command_line
from fuhu_runway._session.entry import Entry
from fuhu_runway.errors import (
    Fate,
    InvalidRequest,
    JournalBusy,
    JournalError,
    JournalTooNew,
    NoReply,
    NotSent,
    RateLimited,
    RunwayError,
    UsageError,
)
from fuhu_runway.hooks import (
    ClipHandedOut,
    DownloadFinished,
    DownloadStarted,
    TaskSettled,
    TaskSubmitted,
)
from fuhu_runway.journal import (
    STEPS,
    Job,
    JobState,
    Journal,
    Plan,
    fingerprint,
    plan_of,
)
from fuhu_runway.models import ActOne, Generation, ImageToVideo, TaskState, TextToVideo

PLANNED, SUBMITTING, ACCEPTED = JobState.PLANNED, JobState.SUBMITTING, JobState.ACCEPTED
FINISHED, SAVED, FAILED = JobState.FINISHED, JobState.SAVED, JobState.FAILED
IN_DOUBT = JobState.IN_DOUBT

MONEY: Final = "Nothing was sent or charged."
NOW: Final = 1_700_000_000.0

# The steps of a job, written a second time and by hand.
ARROWS: Final = {
    (PLANNED, SUBMITTING),
    (SUBMITTING, ACCEPTED),
    (SUBMITTING, PLANNED),
    (SUBMITTING, FAILED),
    (SUBMITTING, IN_DOUBT),
    (ACCEPTED, FINISHED),
    (ACCEPTED, FAILED),
    (FINISHED, SAVED),
    (SAVED, FINISHED),
    (FAILED, PLANNED),
    (IN_DOUBT, ACCEPTED),
    (IN_DOUBT, PLANNED),
}
ROADS: Final[dict[JobState, tuple[JobState, ...]]] = {
    PLANNED: (),
    SUBMITTING: (SUBMITTING,),
    ACCEPTED: (SUBMITTING, ACCEPTED),
    FINISHED: (SUBMITTING, ACCEPTED, FINISHED),
    SAVED: (SUBMITTING, ACCEPTED, FINISHED, SAVED),
    FAILED: (SUBMITTING, FAILED),
    IN_DOUBT: (SUBMITTING, IN_DOUBT),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a journal may be; nothing is there yet."""
    return tmp_path / "run.db"


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Journal]:
    """Yield a journal that is closed afterwards."""
    journal = Journal(path)
    try:
        yield journal
    finally:
        await journal.aclose()


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[Journal]:
    """Return a journal that was not used yet."""
    async with opened(path) as journal:
        yield journal


def wanted(key: str = "k", **changes: Any) -> Plan:
    """Return a plan."""
    return Plan(**{"key": key, "fingerprint": f"of {key}", "endpoint": "TextToVideo"} | changes)


async def job_at(journal: Journal, state: JobState, key: str = "k") -> Job:
    """Return a job that came to *state* by the shortest way."""
    job = await journal.plan(wanted(key), NOW)
    for step in ROADS[state]:
        changes = {"task_id": f"task of {key}"} if step is ACCEPTED else {}
        job = await journal.step(key, step, NOW, **changes)
    return job


async def value_of(journal: Journal, sql: str) -> Any:
    """Return the first value of the first row."""
    return await journal._run(lambda db: db.execute(sql).fetchone()[0])


async def written(journal: Journal) -> None:
    """Return when all events so far are written."""
    await journal.counts()


# The steps of a job


def test_the_table_has_these_steps_and_no_others() -> None:
    """There are twelve steps, each with a sentence that says what it means."""
    assert {(a, b) for a, following in STEPS.items() for b in following} == ARROWS
    assert all(text.endswith(".") for following in STEPS.values() for text in following.values())


@pytest.mark.parametrize(("before", "after"), sorted(ARROWS, key=str))
async def test_each_step_of_the_table_is_allowed(
    journal: Journal, before: JobState, after: JobState
) -> None:
    """A step of the table changes the state, and returns the row as it is in the file."""
    await job_at(journal, before)
    job = await journal.step("k", after, NOW + 60)
    assert job.state is after
    assert await journal.find("k") == job


@pytest.mark.parametrize(
    ("before", "after"), sorted(set(itertools.product(JobState, JobState)) - ARROWS, key=str)
)
async def test_no_other_step_is_allowed(
    journal: Journal, before: JobState, after: JobState
) -> None:
    """A step that the table does not have is an error, and changes nothing."""
    job = await job_at(journal, before)
    with pytest.raises(JournalError, match=f"{before.value} cannot become {after.value}"):
        await journal.step("k", after, NOW + 60, task_id="another", error="Other")
    assert await journal.find("k") == job


async def test_an_unknown_job_cannot_take_a_step(journal: Journal) -> None:
    """A step of an unknown job is an error that names the job."""
    with pytest.raises(JournalError, match="no job 'unknown'"):
        await journal.step("unknown", SUBMITTING, NOW)


async def test_planning_twice_is_planning_once(journal: Journal) -> None:
    """A second plan of the same job returns the row unchanged."""
    first = await job_at(journal, ACCEPTED)
    assert await journal.plan(wanted(custom_id="other"), NOW + 9) == first
    assert len(await journal.jobs()) == 1


async def test_instants_and_submissions_are_written(journal: Journal) -> None:
    """The row has the instant of each state, and counts how often the request was sent."""
    await journal.plan(wanted(), 1.0)
    await journal.step("k", SUBMITTING, 2.0)
    await journal.step("k", PLANNED, 3.0, error="RateLimited", code="busy")
    job = await journal.step("k", SUBMITTING, 4.0)
    assert (job.submissions, job.error, job.code) == (2, None, None)
    await journal.step("k", ACCEPTED, 5.0, task_id="t")
    await journal.step("k", FINISHED, 6.0, points=320, refunded=0)
    job = await journal.step("k", SAVED, 7.0, file_bytes=11)
    assert (job.planned_at, job.submitted_at, job.accepted_at) == (3.0, 4.0, 5.0)
    assert (job.finished_at, job.saved_at) == (6.0, 7.0)
    assert (job.points, job.refunded, job.file_bytes) == (320.0, False, 11)


async def test_two_jobs_may_have_one_task(journal: Journal) -> None:
    """If a gateway returns one id for two submits, both jobs are accepted and end together."""
    for key in "ab":
        await job_at(journal, SUBMITTING, key)
        await journal.step(key, ACCEPTED, NOW, task_id="t-1")
    found = await journal.find("t-1")
    assert found is not None
    assert found.key == "a"
    journal.note(settled(TaskState.SUCCEEDED, "t-1"))
    journal.note(DownloadFinished("t-1", 4242))
    jobs = await journal.jobs()
    assert [(job.key, job.state, job.task_id) for job in jobs] == [
        ("a", SAVED, "t-1"),
        ("b", SAVED, "t-1"),
    ]


async def test_an_end_is_written_only_where_that_is_a_step(journal: Journal) -> None:
    """Of two rows with one task, the one in doubt stays in doubt when the task ends."""
    await job_at(journal, IN_DOUBT, "a")
    await job_at(journal, ACCEPTED, "b")
    await value_of(journal, "UPDATE job SET task_id = 't-1' RETURNING 1")
    journal.note(settled(TaskState.SUCCEEDED, "t-1"))
    assert [job.state for job in await journal.jobs()] == [IN_DOUBT, FINISHED]


@pytest.mark.parametrize("state", [IN_DOUBT, FAILED])
async def test_a_job_that_is_planned_again_has_no_task(journal: Journal, state: JobState) -> None:
    """A job that is submitted again gets another task, so the old id is removed."""
    await job_at(journal, state)
    await value_of(journal, "UPDATE job SET task_id = 't-1' RETURNING 1")
    job = await journal.step("k", PLANNED, NOW)
    assert job.task_id is None
    assert await journal.find("t-1") is None


async def test_fetching_a_clip_again_does_not_change_how_long_it_took(journal: Journal) -> None:
    """A saved job that is saved again keeps the instant at which its task finished."""
    before = await job_at(journal, SAVED)
    job = await journal.step("k", FINISHED, NOW + 86_400)
    assert (job.state, job.finished_at) == (FINISHED, before.finished_at)


@pytest.mark.parametrize("state", JobState)
async def test_a_job_can_be_forgotten(journal: Journal, state: JobState) -> None:
    """A row in any state can be removed."""
    await job_at(journal, state)
    await job_at(journal, PLANNED, "other")
    await journal.forget("k")
    assert [job.key for job in await journal.jobs()] == ["other"]
    assert (await job_at(journal, SUBMITTING)).submissions == 1


async def test_an_unknown_job_cannot_be_forgotten(journal: Journal) -> None:
    """Removing an unknown job is an error, and only the key identifies it."""
    await job_at(journal, ACCEPTED)
    for name in ["unknown", "task of k"]:
        with pytest.raises(JournalError, match=f"no job '{name}'"):
            await journal.forget(name)
    assert len(await journal.jobs()) == 1


# Reading


async def test_a_job_is_found_by_each_of_its_names(journal: Journal) -> None:
    """Key, task id and custom id lead to the job, the key before the others."""
    await job_at(journal, ACCEPTED, "a")
    await journal.plan(wanted("b", custom_id="a"), NOW)
    await journal.plan(wanted("c", custom_id="mine"), NOW)
    await journal.plan(wanted("d", custom_id="mine"), NOW)
    names = ["a", "b", "task of a", "mine", "unknown"]
    found = [await journal.find(name) for name in names]
    assert [job and job.key for job in found] == ["a", "b", "a", "c", None]


async def test_jobs_come_in_the_order_in_which_they_were_planned(journal: Journal) -> None:
    """Jobs are listed in the order of planning, all or those in some states."""
    for at, key in [(3.0, "late"), (1.0, "early"), (1.0, "as early")]:
        await journal.plan(wanted(key), at)
    await journal.step("early", SUBMITTING, 5.0)
    assert [job.key for job in await journal.jobs()] == ["early", "as early", "late"]
    assert [job.key for job in await journal.jobs(PLANNED, SAVED)] == ["as early", "late"]


async def test_counts_have_every_state(journal: Journal) -> None:
    """The counts have each state, including those without jobs."""
    await job_at(journal, SAVED, "a")
    await job_at(journal, IN_DOUBT, "b")
    counts = await journal.counts()
    assert counts == dict.fromkeys(JobState, 0) | {SAVED: 1, IN_DOUBT: 1}


async def test_durations_are_of_finished_jobs(journal: Journal) -> None:
    """Durations are of jobs that were accepted and finished, the latest first."""
    for number, (accepted, finished) in enumerate([(0.0, 104.0), (200.0, 491.0)]):
        key = f"k{number}"
        await journal.plan(wanted(key, model="gen4", seconds=5), 0.0)
        await journal.step(key, SUBMITTING, accepted)
        await journal.step(key, ACCEPTED, accepted, task_id=key)
        await journal.step(key, FINISHED, finished)
    await job_at(journal, ACCEPTED)
    assert await journal.durations() == [
        ("TextToVideo", "gen4", 5, 291.0),
        ("TextToVideo", "gen4", 5, 104.0),
    ]


async def test_occurrences_count_from_each_start(journal: Journal) -> None:
    """Equal requests are counted within one run, and are the same jobs again in the next."""
    plans = {mark: Plan(key="", fingerprint=mark, endpoint="TextToVideo") for mark in "ab"}
    for now in (1.0, 2.0):
        await journal.start_run()
        jobs = [await journal.plan_next(plans[mark], now) for mark in "aaba"]
        a, b = jobs[0].fingerprint, jobs[2].fingerprint
        assert [job.key for job in jobs] == [f"{a}:1", f"{a}:2", f"{b}:1", f"{a}:3"]
        assert a != b
        assert [job.planned_at for job in jobs] == [1.0] * 4


# Fingerprints


def test_equal_requests_have_equal_fingerprints_and_others_not() -> None:
    """The fingerprint depends on each field and on the type of the request."""
    requests: list[Generation] = [
        TextToVideo("a kitten"),
        TextToVideo("a puppy"),
        TextToVideo("a kitten", seconds=5),
        TextToVideo("a kitten", extra={"seed": 1}),
        ImageToVideo("a kitten", "https://example.com/1.png"),
        ActOne("https://example.com/1.mp4", "https://example.com/1.png"),
    ]
    assert len({fingerprint(request) for request in requests}) == len(requests)
    assert fingerprint(TextToVideo("a kitten")) == fingerprint(TextToVideo("a kitten"))
    assert re.fullmatch("[0-9a-f]{64}", fingerprint(requests[0]))


def test_requests_with_any_extra_fields_have_a_fingerprint() -> None:
    """Extra fields in any mapping that JSON can write have a fingerprint, in any order."""
    mixed = {"more": {1: "number", "b": "text"}}
    one = TextToVideo("a kitten", extra=UserDict({"a": 1} | mixed))
    other = TextToVideo("a kitten", extra=mixed | {"a": 1})
    assert fingerprint(one) == fingerprint(other)


def test_a_plan_holds_no_prompt() -> None:
    """A plan has kind, model and length of a request, and its fingerprint as the key."""
    request = TextToVideo("a kitten", seconds=5)
    plan = plan_of(request)
    assert plan.key == plan.fingerprint == fingerprint(request)
    assert (plan.endpoint, plan.model, plan.seconds) == ("TextToVideo", "gen4", 5)
    named = plan_of(request, "key", "mine")
    assert (named.key, named.custom_id, named.fingerprint) == ("key", "mine", plan.fingerprint)
    bare = plan_of(ActOne("https://example.com/1.mp4", "https://example.com/1.png"))
    assert (bare.model, bare.seconds) == (None, None)


# Listening


def settled(state: TaskState, task_id: str = "task of k") -> TaskSettled:
    """Return the event of a task's end; all but success is refunded."""
    return TaskSettled(task_id, state, 3, 320.0, state is not TaskState.SUCCEEDED)


async def test_events_write_that_a_task_ended_and_its_clip_is_saved(journal: Journal) -> None:
    """Events take a job from ACCEPTED over FINISHED to SAVED, with points and size."""
    await job_at(journal, ACCEPTED)
    before = time.time()
    journal.note(settled(TaskState.SUCCEEDED))
    journal.note(DownloadFinished("task of k", 4242))
    job = await journal.find("k")
    assert job is not None
    assert (job.state, job.points, job.refunded, job.file_bytes) == (SAVED, 320.0, False, 4242)
    assert job.finished_at is not None
    assert before <= job.finished_at <= time.time()


@pytest.mark.parametrize("end", [TaskState.FAILED, TaskState.CANCELED])
async def test_events_write_failures(journal: Journal, end: TaskState) -> None:
    """A task that failed or was cancelled makes its job FAILED, with its refund."""
    await job_at(journal, ACCEPTED)
    journal.note(settled(end))
    job = await journal.find("k")
    assert job is not None
    assert (job.state, job.error, job.points, job.refunded) == (FAILED, "TaskFailed", 320.0, True)


async def test_a_second_end_changes_nothing(journal: Journal) -> None:
    """If the end of a task is reported again, or differently, the row stays as it is."""
    before = await job_at(journal, SAVED)
    journal.note(settled(TaskState.FAILED))
    journal.note(settled(TaskState.SUCCEEDED))
    assert await journal.find("k") == before


async def test_unknown_tasks_and_other_events_are_ignored(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """Events of tasks that are not in the journal change nothing and raise nothing."""
    before = await job_at(journal, ACCEPTED)
    journal.note(settled(TaskState.SUCCEEDED, "a stranger"))
    journal.note(settled(TaskState.SUCCEEDED, "k"))
    journal.note(DownloadFinished("a stranger", 1))
    journal.note(TaskSubmitted("task of k", "TextToVideo", 1.0))
    assert await journal.jobs() == [before]
    assert caplog.records == []


async def test_an_event_that_cannot_be_written_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Writing an event is not awaited, so its failure is in the log."""
    journal = Journal(tmp_path / "nowhere" / "run.db")
    journal.note(settled(TaskState.SUCCEEDED))
    await journal.aclose()
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "The journal could not be written (JournalError).")
    ]


# One submission


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (NotSent("a", "b", "c", None, None, Fate.UNSENT), PLANNED),
        (RateLimited("a", "b", "c", code="busy", fate=Fate.REFUSED), PLANNED),
        (InvalidRequest("a", "b", "c", code="busy", fate=Fate.REJECTED), FAILED),
        (UsageError("a", "b", "c"), FAILED),
        (NoReply("a", "b", "c", None, None, Fate.UNKNOWN), IN_DOUBT),
    ],
)
async def test_a_submission_that_failed_is_written_by_its_fate(
    journal: Journal, error: RunwayError, state: JobState
) -> None:
    """The fate of a failed request decides if its job is PLANNED, FAILED or IN_DOUBT."""
    await journal.plan(wanted(), NOW)
    entry = Entry(journal, "k", ManualClock())
    await entry.sending()
    await entry.failed(error)
    job = await journal.find("k")
    assert job is not None
    assert (job.state, job.error) == (state, type(error).__name__)
    assert job.code == getattr(error, "code", None)


@pytest.mark.parametrize(("task_id", "written"), [("t-1", "t-1"), (None, None), ("t-\ud800", None)])
async def test_a_doubt_keeps_the_task_id_of_a_damaged_response(
    journal: Journal, task_id: str | None, written: str | None
) -> None:
    """The id from a damaged response is in the row, and the job is found by it."""
    await journal.plan(wanted(), NOW)
    entry = Entry(journal, "k", ManualClock())
    await entry.sending()
    await entry.failed(NoReply("a", "b", "c", task_id, None, Fate.UNKNOWN))
    (job,) = await journal.jobs()
    assert (job.state, job.error, job.task_id) == (IN_DOUBT, "NoReply", written)
    assert await journal.find("t-1") == (job if written else None)


async def test_a_refused_job_has_no_task(journal: Journal) -> None:
    """Only jobs that are in doubt or accepted have a task."""
    await journal.plan(wanted(), NOW)
    entry = Entry(journal, "k", ManualClock())
    await entry.sending()
    await entry.failed(InvalidRequest("a", "b", "c", "t-1", fate=Fate.REJECTED))
    (job,) = await journal.jobs()
    assert (job.state, job.task_id) == (FAILED, None)


@pytest.mark.parametrize(
    ("code", "written"),
    [
        ("task_not_exist", "task_not_exist"),
        ("400", "400"),
        ("SAFETY.INPUT:text/1-2", "SAFETY.INPUT:text/1-2"),
        ("x" * 64, "x" * 64),
        ("x" * 65, None),
        ("a marked kitten", None),
        ("kitten\n", None),
        ("\ud800", None),
        ("", None),
    ],
)
async def test_only_a_code_is_written_as_a_code(
    journal: Journal, code: str, written: str | None
) -> None:
    """A gateway may put a sentence that quotes the prompt where a code belongs."""
    await journal.plan(wanted(), NOW)
    entry = Entry(journal, "k", ManualClock())
    await entry.sending()
    await entry.failed(InvalidRequest("a", "b", "c", code=code, fate=Fate.REJECTED))
    (job,) = await journal.jobs()
    assert (job.state, job.code) == (FAILED, written)


async def test_a_submission_that_was_accepted_has_its_id(journal: Journal) -> None:
    """The row is SUBMITTING while the request is in flight, and has the id afterwards."""
    await journal.plan(wanted(), NOW)
    entry = Entry(journal, "k", ManualClock(unix=99.0))
    await entry.sending()
    assert await journal.counts() == dict.fromkeys(JobState, 0) | {SUBMITTING: 1}
    await entry.accepted("t-1")
    job = await journal.find("t-1")
    assert job is not None
    assert (job.key, job.state, job.submitted_at, job.accepted_at) == ("k", ACCEPTED, 99.0, 99.0)


# The file


@contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file without any journal in between."""
    db = sqlite3.connect(path)
    try:
        yield db
        db.commit()
    finally:
        db.close()


def without_tables(path: Path) -> None:
    """An empty database."""
    with database(path) as db:
        db.execute("VACUUM")


async def test_the_schema_explains_each_of_its_columns(journal: Journal) -> None:
    """In the file itself, a comment stands above each column or group of columns."""
    stored = await value_of(journal, "SELECT sql FROM sqlite_schema WHERE name = 'job'")
    body = stored[stored.index("(") + 1 : stored.rindex(")")]
    lines = [line.strip() for line in body.strip().splitlines()]
    names = await journal._run(
        lambda db: [row[0] for row in db.execute("SELECT name FROM pragma_table_info('job')")]
    )
    groups = re.findall(r"((?:--[^\n]*\n)+)((?:(?!--)[^\n]+\n)+)", "\n".join([*lines, ""]))
    explained = [line.split()[0] for _, columns in groups for line in columns.splitlines()]
    assert explained == names
    assert all(comment.strip().endswith((".", ".)")) for comment, _ in groups)
    assert set(names) == {field.name for field in attrs.fields(Job)}


async def test_the_file_is_strict_durable_and_exclusive(journal: Journal) -> None:
    """The table is STRICT, the log write-ahead and flushed at each commit, the lock exclusive."""
    strict = "SELECT strict FROM pragma_table_list WHERE name = 'job'"
    assert await value_of(journal, strict) == 1
    assert await value_of(journal, "PRAGMA journal_mode") == "wal"
    assert await value_of(journal, "PRAGMA synchronous") == 2
    assert await value_of(journal, "PRAGMA fullfsync") == 1
    assert await value_of(journal, "PRAGMA locking_mode") == "exclusive"
    assert await value_of(journal, "PRAGMA user_version") == SCHEMA_VERSION == 5


async def test_a_wrong_type_is_refused_by_the_file(journal: Journal) -> None:
    """STRICT refuses text in a column of numbers, and the row stays as it was."""
    before = await job_at(journal, FINISHED)
    with pytest.raises(JournalError, match="REAL"):
        await journal.step("k", SAVED, NOW, points="many")
    assert await journal.find("k") == before


@pytest.mark.parametrize("make", [Path.touch, without_tables])
async def test_an_empty_file_becomes_a_journal(path: Path, make: Callable[[Path], None]) -> None:
    """An empty file and a database without tables get the current schema."""
    make(path)
    async with opened(path) as journal:
        await job_at(journal, ACCEPTED)
        assert await value_of(journal, "PRAGMA user_version") == SCHEMA_VERSION


def test_each_older_version_has_a_migration() -> None:
    """There is one migration from each version below the present one, and none beyond."""
    assert set(journal_file.MIGRATIONS) == set(range(1, SCHEMA_VERSION))


def next_version(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Add one more version, to which *script* leads."""
    more = {**journal_file.MIGRATIONS, SCHEMA_VERSION: script}
    monkeypatch.setattr(journal_file, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setattr(journal_file, "MIGRATIONS", more)


async def test_a_migration_keeps_what_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal is taken to the next version with its rows, statement by statement."""
    async with opened(path) as journal:
        await job_at(journal, SAVED)
    next_version(
        monkeypatch, "CREATE TABLE a (\n    b TEXT  -- c; d\n);\nINSERT INTO a VALUES ('e;f');\n"
    )
    async with opened(path) as journal:
        assert await value_of(journal, "PRAGMA user_version") == SCHEMA_VERSION + 1
        assert await value_of(journal, "SELECT b FROM a") == "e;f"
        assert [job.state for job in await journal.jobs()] == [SAVED]


async def test_a_migration_that_fails_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a migration fails halfway, version and rows stay as they were."""
    async with opened(path) as journal:
        await job_at(journal, SAVED)
    with monkeypatch.context() as patch:
        next_version(patch, "CREATE TABLE a (b TEXT);\nINSERT INTO nowhere VALUES (1);\n")
        async with opened(path) as journal:
            with pytest.raises(JournalError, match="no such table: nowhere"):
                await journal.counts()
    async with opened(path) as journal:
        assert await value_of(journal, "PRAGMA user_version") == SCHEMA_VERSION
        assert await value_of(journal, "SELECT count(*) FROM sqlite_schema WHERE name = 'a'") == 0
        assert [job.state for job in await journal.jobs()] == [SAVED]


# Files that are not journals


def newer(path: Path) -> None:
    """A journal of a future version."""
    with database(path) as db:
        db.execute("CREATE TABLE job (key TEXT)")
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")


def foreign(path: Path, version: int = 0) -> None:
    """Another program's database."""
    with database(path) as db:
        db.execute("CREATE TABLE bookmarks (title TEXT)")
        db.execute("INSERT INTO bookmarks VALUES ('kittens')")
        db.execute(f"PRAGMA user_version={version}")


def foreign_with_versions(path: Path) -> None:
    """Another database that happens to have our version."""
    foreign(path, SCHEMA_VERSION)


def foreign_and_far_ahead(path: Path) -> None:
    """Another database that happens to have a newer version."""
    foreign(path, 77)


def foreign_with_jobs(path: Path) -> None:
    """Another database that happens to have a table of that name."""
    with database(path) as db:
        db.execute("CREATE TABLE job (title TEXT)")


def text(path: Path) -> None:
    """A list of prompts."""
    path.write_text("a kitten\na puppy\n" * 100)


def short_text(path: Path) -> None:
    """Less text than a database has in its head."""
    path.write_text("a kitten")


def folder(path: Path) -> None:
    """A folder with something in it."""
    path.mkdir()
    (path / "inside").touch()


def content(path: Path) -> object:
    """Return the bytes of a file, or the names in a folder."""
    if path.is_dir():
        return sorted(inside.name for inside in path.iterdir())
    return path.read_bytes()


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (newer, JournalTooNew, "has schema 6; this version knows 5"),
        (foreign, JournalError, "another program's database"),
        (foreign_with_versions, JournalError, "another program's database"),
        (foreign_and_far_ahead, JournalError, "another program's database"),
        (foreign_with_jobs, JournalError, "another program's database"),
        (text, JournalError, "file is not a database"),
        (short_text, JournalError, "file is not a database"),
        (folder, JournalError, "unable to open database file"),
    ],
)
async def test_a_file_that_is_not_a_journal_is_an_error_and_unchanged(
    path: Path, make: Callable[[Path], None], kind: type[JournalError], says: str
) -> None:
    """A file that is not a journal is an error before any money is spent, and is not changed."""
    make(path)
    before = content(path)
    async with opened(path) as journal:
        with pytest.raises(kind, match=says) as caught:
            await journal.plan(wanted(), NOW)
    assert type(caught.value) is kind
    assert caught.value.money == MONEY
    assert content(path) == before


@pytest.mark.parametrize("name", ["missing/run.db", "file/run.db", "nul\0/run.db"])
async def test_a_missing_folder_is_an_error(tmp_path: Path, name: str) -> None:
    """No folder is made: the error names the one that is missing."""
    (tmp_path / "file").touch()
    async with opened(tmp_path / name) as journal:
        with pytest.raises(JournalError, match="no folder") as caught:
            await journal.counts()
    assert caught.value.money == MONEY
    assert not (tmp_path / "missing").exists()


@contextmanager
def guest() -> Iterator[Path]:
    """Return a folder, with this process as a user that file permissions apply to."""
    place = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    try:
        place.chmod(0o777)
        if is_root:
            os.seteuid(65534)
        yield place
    finally:
        if is_root:
            os.seteuid(0)
        place.chmod(0o700)
        for inside in place.iterdir():
            inside.chmod(0o700)
        shutil.rmtree(place)


async def test_a_read_only_folder_is_an_error() -> None:
    """A journal that cannot be made is an error before any money is spent."""
    with guest() as place:
        inside = place / "closed"
        inside.mkdir(mode=0o555)
        async with opened(inside / "run.db") as journal:
            with pytest.raises(JournalError, match="unable to open") as caught:
                await journal.plan(wanted(), NOW)
    assert caught.value.money == MONEY


async def test_a_read_only_file_is_an_error() -> None:
    """A journal that can only be read is an error before any money is spent."""
    with guest() as place:
        path = place / "run.db"
        async with opened(path) as journal:
            await job_at(journal, ACCEPTED)
        path.chmod(0o444)
        async with opened(path) as journal:
            with pytest.raises(JournalError, match="cannot be used") as caught:
                await journal.plan(wanted("other"), NOW)
    assert caught.value.money == MONEY


async def test_a_folder_without_permission_is_not_another_process() -> None:
    """Missing permissions are named in the error, whatever the folder is called."""
    with guest() as place:
        (place / "locked").mkdir(mode=0o000)
        async with opened(place / "locked" / "in" / "run.db") as journal:
            with pytest.raises(JournalError, match="Permission denied") as caught:
                await journal.counts()
    assert not isinstance(caught.value, JournalBusy)


async def test_a_full_disk_is_an_error_and_breaks_nothing(journal: Journal) -> None:
    """Each caller whose row does not fit gets an error; rows that were written before stay."""
    before = await job_at(journal, ACCEPTED)
    pages = await value_of(journal, "PRAGMA page_count")
    await value_of(journal, f"PRAGMA max_page_count={pages}")
    plans = [journal.plan(wanted(f"{number:0500}"), NOW) for number in range(100)]
    results = await asyncio.gather(*plans, return_exceptions=True)
    refused = [result for result in results if isinstance(result, JournalError)]
    assert refused
    assert {(str(type(one.__cause__)), one.money) for one in refused} == {
        ("<class 'sqlite3.OperationalError'>", MONEY)
    }
    assert "full" in str(refused[0])
    assert len({id(one) for one in refused}) == len(refused)
    await value_of(journal, "PRAGMA max_page_count=100000")
    assert (await journal.find("k")) == before
    assert len(await journal.jobs()) == 1 + len(results) - len(refused)
    await job_at(journal, SAVED, "there is room again")


FULL = """
import asyncio, resource, sys
from fuhu_runway.errors import JournalError
from fuhu_runway.journal import Journal, JobState, Plan

async def main(path):
    journal = Journal(path)
    made = 0
    await journal.counts()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        for made in range(10_000):
            key = f"k{made}"
            await journal.plan(Plan(key=key, fingerprint="f", endpoint="TextToVideo"), 1.0)
            await journal.step(key, JobState.SUBMITTING, 2.0)
    except JournalError as error:
        print(made, type(error).__name__, error.money)
    await journal.aclose()

asyncio.run(main(sys.argv[1]))
"""


def python(source: str, *arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """Start *source* in another interpreter, in which each warning is an error."""
    root = Path(fuhu_runway.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", source, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        **options,
    )


async def test_a_file_that_cannot_grow_keeps_its_rows(path: Path) -> None:
    """When no more bytes can be written, each job that was reported as written is in the file."""
    pytest.importorskip("resource")
    with python(FULL, path) as process:
        said, _ = process.communicate()
    made, kind, money = said.split(maxsplit=2)
    assert (kind, money.strip()) == ("JournalError", MONEY)
    async with opened(path) as journal:
        counts = await journal.counts()
    assert counts[IN_DOUBT] >= int(made) > 0


# One process at a time

HOLDER = """
import asyncio, sys
from fuhu_runway.journal import Journal, JobState, Plan

async def main(path):
    journal = Journal(path)
    await journal.plan(Plan(key="theirs", fingerprint="f", endpoint="TextToVideo"), 1.0)
    await journal.step("theirs", JobState.SUBMITTING, 2.0)
    print("open", flush=True)
    sys.stdin.read()
    await journal.aclose()

asyncio.run(main(sys.argv[1]))
"""


async def test_a_second_process_gets_an_error_and_writes_nothing(path: Path) -> None:
    """While one process has it open, a second gets JournalBusy, and can use it afterwards."""
    async with opened(path) as journal:
        with python(HOLDER, path) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            for _ in range(2):
                with pytest.raises(JournalBusy, match="Another process") as caught:
                    await job_at(journal, ACCEPTED, "ours")
                assert caught.value.money == MONEY
            process.communicate()
        assert process.returncode == 0
        await job_at(journal, ACCEPTED, "ours")
        jobs = await journal.jobs()
    assert [(job.key, job.state) for job in jobs] == [("theirs", IN_DOUBT), ("ours", ACCEPTED)]


async def test_a_process_that_was_killed_leaves_its_doubts(path: Path) -> None:
    """A job in flight when its process was killed is in doubt when the journal is opened again."""
    with python(HOLDER, path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    async with opened(path) as journal:
        job = await journal.find("theirs")
    assert job is not None
    assert (job.state, job.error, job.task_id) == (IN_DOUBT, "NoReply", None)


async def test_a_second_journal_of_the_same_process_is_an_error(journal: Journal) -> None:
    """Two journals over one file do not mix within one process either."""
    await job_at(journal, ACCEPTED)
    async with opened(journal.path) as second:
        with pytest.raises(JournalBusy):
            await second.counts()
    assert [job.key for job in await journal.jobs()] == ["k"]


# Opening, closing, doubts


async def test_the_file_is_made_on_first_use(path: Path) -> None:
    """Making the object touches nothing, and closing what was never used neither."""
    journal = Journal(str(path))
    assert repr(journal) == "<Journal run.db closed>"
    await journal.aclose()
    assert content(path.parent) == []
    await journal.counts()
    assert repr(journal) == "<Journal run.db open>"
    await journal.aclose()
    assert repr(journal) == "<Journal run.db closed>"


async def test_a_closed_journal_can_be_opened_again(journal: Journal) -> None:
    """Closing leaves one unlocked file; using the journal opens it again."""
    before = await job_at(journal, ACCEPTED)
    await journal.aclose()
    assert content(journal.path.parent) == ["run.db"]
    async with opened(journal.path) as other:
        assert await other.jobs() == [before]
    assert await journal.jobs() == [before]


async def test_it_can_be_used_while_it_closes(journal: Journal) -> None:
    """A call during closing opens the same file again."""
    for number in range(20):
        await journal.plan(wanted(f"before {number}"), NOW)
        await asyncio.gather(
            journal.aclose(), journal.plan(wanted(f"meanwhile {number}"), NOW), journal.aclose()
        )
    assert len(await journal.jobs()) == 40


@pytest.mark.parametrize("state", JobState)
async def test_jobs_in_flight_are_in_doubt_once_it_is_closed(
    journal: Journal, state: JobState
) -> None:
    """Closing marks SUBMITTING jobs as IN_DOUBT, and no others."""
    before = await job_at(journal, state)
    await journal.aclose()
    with database(journal.path) as db:
        ((word, error),) = db.execute("SELECT state, error FROM job").fetchall()
    if state is SUBMITTING:
        assert (word, error) == (IN_DOUBT.value, "NoReply")
    else:
        assert (word, error) == (state.value, before.error)


@pytest.mark.parametrize("state", JobState)
async def test_jobs_in_flight_at_a_crash_are_in_doubt_once_it_is_opened(
    journal: Journal, tmp_path: Path, state: JobState
) -> None:
    """A crash leaves rows as SUBMITTING; opening marks them as IN_DOUBT, and no others."""
    before = await job_at(journal, state)
    left = tmp_path / "left.db"
    for suffix in ["", "-wal"]:
        shutil.copy(f"{journal.path}{suffix}", f"{left}{suffix}")
    async with opened(left) as other:
        job = await other.find("k")
    assert job is not None
    assert job.state is (IN_DOUBT if state is SUBMITTING else before.state)
    assert job.submissions == before.submissions


async def test_a_doubt_that_cannot_be_written_does_not_keep_it_from_closing(
    journal: Journal,
) -> None:
    """With the table gone no row can be written, and closing unlocks the file all the same."""
    await journal._run(lambda db: db.execute("DROP TABLE job"))
    await journal.aclose()
    assert repr(journal) == "<Journal run.db closed>"


def test_one_journal_serves_several_loops(path: Path) -> None:
    """Loops that follow one another share one open journal."""
    journal = Journal(path)
    asyncio.run(_planned(journal, "a"))
    asyncio.run(_planned(journal, "b"))

    async def last() -> list[Job]:
        jobs = await journal.jobs()
        await journal.aclose()
        return jobs

    assert [job.key for job in asyncio.run(last())] == ["a", "b"]


async def _planned(journal: Journal, key: str) -> None:
    await journal.plan(wanted(key), NOW)


def test_a_loop_may_end_while_rows_are_written(path: Path) -> None:
    """Rows that are being written when their loop ends are written; the next loop works."""
    journal, busy = Journal(path), threading.Event()

    async def leave_early() -> None:
        held = asyncio.create_task(journal._run(lambda _db: busy.wait()))
        requested = asyncio.create_task(_planned(journal, "requested"))
        await asyncio.sleep(0)
        held.cancel()
        requested.cancel()

    asyncio.run(leave_early())
    busy.set()

    async def later() -> list[Job]:
        jobs = await journal.jobs()
        await journal.aclose()
        return jobs

    assert [job.key for job in asyncio.run(later())] == ["requested"]


# Many at once


async def test_queued_rows_share_transactions(journal: Journal) -> None:
    """Thousands of plans that wait for the disk are written in a few transactions."""
    said: list[str] = []
    await journal._run(lambda db: db.set_trace_callback(said.append))
    busy = threading.Event()
    first = asyncio.create_task(journal._run(lambda _db: busy.wait()))
    plans = [asyncio.create_task(_planned(journal, f"k{number}")) for number in range(2500)]
    await asyncio.sleep(0)
    busy.set()
    await asyncio.gather(first, *plans)
    await journal._run(lambda db: db.set_trace_callback(None))
    assert 3 <= said.count("BEGIN") <= 6
    assert sum((await journal.counts()).values()) == 2500


async def test_events_share_the_next_commit(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a task costs no flush if another row is about to be written."""
    monkeypatch.setattr("fuhu_runway._journal.file.UNAWAITED_WAIT", 600.0)
    await job_at(journal, ACCEPTED)
    said: list[str] = []
    await journal._run(lambda db: db.set_trace_callback(said.append))
    said.clear()
    journal.note(settled(TaskState.SUCCEEDED))
    await asyncio.sleep(0.01)
    assert [job.state for job in await journal.jobs()] == [FINISHED]
    assert said.count("BEGIN") == 1


@pytest.mark.parametrize(
    "fault",
    [
        lambda journal: journal.step("k", SAVED, NOW),
        lambda journal: journal.step("unknown", SUBMITTING, NOW),
        lambda journal: journal.step("k", FINISHED, NOW, unknown_column=1),
        lambda journal: journal.step("k", FINISHED, NOW, points="many"),
        lambda journal: journal.step("k", FINISHED, NOW, points=object()),
        lambda journal: journal.step("k", FINISHED, NOW, file_bytes=2**70),
        lambda journal: journal.step("k", FINISHED, NOW, code="\ud800"),
        lambda journal: journal.plan(wanted("k2", custom_id="\ud800"), NOW),
    ],
)
async def test_one_faulty_row_does_not_affect_others(
    journal: Journal, fault: Callable[[Journal], Awaitable[Job]]
) -> None:
    """A step is written although another one in the same transaction is an error."""
    await job_at(journal, ACCEPTED)
    await job_at(journal, SUBMITTING, "other")
    _, wrong, _ = await asyncio.gather(
        journal.plan(wanted("before"), NOW),
        fault(journal),
        journal.plan(wanted("after"), NOW),
        return_exceptions=True,
    )
    assert isinstance(wrong, JournalError)
    assert wrong.money == MONEY
    assert {job.key for job in await journal.jobs(PLANNED)} == {"before", "after"}


async def test_a_cancelled_caller_leaves_it_usable(journal: Journal) -> None:
    """Cancelling one caller does not affect others, and its row is written all the same."""
    busy = threading.Event()
    held = asyncio.create_task(journal._run(lambda _db: busy.wait()))
    gone = asyncio.create_task(_planned(journal, "gone"))
    stays = asyncio.create_task(_planned(journal, "stays"))
    await asyncio.sleep(0)
    gone.cancel()
    busy.set()
    await asyncio.gather(held, stays)
    assert gone.cancelled()
    assert [job.key for job in await journal.jobs()] == ["gone", "stays"]


# Values


WRONG: Final[dict[str, Callable[[Journal], Awaitable[Any]]]] = {
    "key": lambda journal: journal.plan(wanted("\ud800"), NOW),
    "custom_id": lambda journal: journal.plan(wanted(custom_id="a\udfff"), NOW),
    "model": lambda journal: journal.plan_next(wanted(model="\ud800"), NOW),
    "seconds": lambda journal: journal.plan(wanted(seconds=2**63), NOW),
    "fingerprint": lambda journal: journal.plan(wanted(fingerprint="\ud800"), NOW),
    "task_id": lambda journal: journal.step("k", ACCEPTED, NOW, task_id="\ud800"),
    "file_bytes": lambda journal: journal.step("k", ACCEPTED, NOW, file_bytes=-(2**63) - 1),
    "points": lambda journal: journal.step("k", ACCEPTED, NOW, points=object()),
    "now": lambda journal: journal.step("k", ACCEPTED, 2**64),
    "name": lambda journal: journal.find("\ud800"),
}


@pytest.mark.parametrize("field", WRONG)
async def test_a_value_that_the_file_cannot_hold_is_named(journal: Journal, field: str) -> None:
    """Lone surrogates, large numbers and objects are an error that names the field."""
    before = await job_at(journal, SUBMITTING)
    with pytest.raises(JournalError, match=f"cannot hold this {field}") as caught:
        await WRONG[field](journal)
    assert caught.value.money == MONEY
    assert await journal.jobs() == [before]


@pytest.mark.parametrize("plan", [Journal.plan, Journal.plan_next])
async def test_an_instant_that_the_file_cannot_hold_is_named(
    journal: Journal, plan: Callable[..., Awaitable[Job]]
) -> None:
    """A time that is not a 64-bit number is an error, and nothing is planned."""
    with pytest.raises(JournalError, match="cannot hold this now"):
        await plan(journal, wanted(), 2**64)
    assert await journal.jobs() == []


@pytest.mark.parametrize("act", [Journal.forget, lambda j, key: j.step(key, PLANNED, NOW)])
async def test_a_key_that_the_file_cannot_hold_is_named(
    journal: Journal, act: Callable[[Journal, str], Awaitable[Any]]
) -> None:
    """In each method that takes a key, the error names the key."""
    with pytest.raises(JournalError, match="cannot hold this key"):
        await act(journal, "\ud800")


@pytest.mark.parametrize("name", ["state", "unheard_of", "points = 1, error"])
async def test_a_step_changes_columns_only(journal: Journal, name: str) -> None:
    """Changes cannot set the state or a column that does not exist."""
    before = await job_at(journal, ACCEPTED)
    with pytest.raises(JournalError, match="A step cannot change"):
        await journal.step("k", FINISHED, NOW, **{name: "saved"})
    assert await journal.jobs() == [before]


@pytest.mark.parametrize("text", ["a\0b", "\U0001f431", "x" * 100_000, "'; DROP TABLE job; --"])
async def test_other_text_is_kept_as_it_is(journal: Journal, text: str) -> None:
    """Keys and names may hold zeros, emoji, quotes and any length."""
    await journal.plan(wanted(text, custom_id=f"my {text}"), NOW)
    for name in (text, f"my {text}"):
        job = await journal.find(name)
        assert job is not None
        assert (job.key, job.custom_id) == (text, f"my {text}")


# Damage


async def damaged(journal: Journal, setting: str) -> None:
    """Write a finished job, of which a column was overwritten."""
    await job_at(journal, FINISHED)
    await value_of(journal, f"UPDATE job SET {setting} RETURNING 1")  # noqa: S608


@pytest.mark.parametrize("act", [Journal.jobs, Journal.counts, lambda j: j.find("k")])
async def test_an_unknown_state_is_an_error(
    journal: Journal, act: Callable[[Journal], Awaitable[Any]]
) -> None:
    """An unknown state is an error that quotes its start; no job is left out."""
    await damaged(journal, f"state = 'paid{'!' * 100}'")
    with pytest.raises(JournalError, match=r"damaged: the state of a job is 'paid!{36}'"):
        await act(journal)


@pytest.mark.parametrize("at", ["1e300", "9e999", "-1e300", "-9e999"])
async def test_impossible_durations_are_ignored(journal: Journal, at: str) -> None:
    """An impossible duration is left out of what the schedule learns from."""
    await damaged(journal, f"finished_at = {at}")
    assert await journal.durations() == []


@pytest.mark.parametrize("at", ["1e300", "9e999", "-1e300", "-9e999"])
async def test_impossible_starts_are_ignored(journal: Journal, at: str) -> None:
    """The same holds if the instant of acceptance is impossible."""
    await damaged(journal, f"accepted_at = {at}")
    assert await journal.durations() == []


# Salt


async def test_each_journal_keys_its_fingerprints(tmp_path: Path) -> None:
    """Equal requests have different fingerprints in two journals, and the same in one."""
    plan = plan_of(TextToVideo("a kitten"))
    marks = []
    for name in ["a.db", "b.db", "a.db"]:
        async with opened(tmp_path / name) as journal:
            job = await journal.plan_next(plan, NOW)
            marks.append(job.fingerprint)
            salt = await value_of(journal, "SELECT salt FROM header")
            keyed = hmac.digest(salt, plan.fingerprint.encode(), "sha256").hex()
            assert (len(salt), job.fingerprint, job.key) == (32, keyed, f"{keyed}:1")
    assert marks[0] == marks[2] != marks[1]
    assert plan.fingerprint.encode() not in every_byte(tmp_path / "a.db")


async def test_a_named_job_is_keyed_as_well(journal: Journal) -> None:
    """The fingerprint of a named job is keyed by its journal, too."""
    plan = plan_of(TextToVideo("a kitten"), "id:mine", "mine")
    job = await journal.plan(plan, NOW)
    assert job.key == "id:mine"
    assert job.fingerprint != plan.fingerprint


# The log beside the file


def without_log(path: Path, copy: Path) -> Path:
    """Copy the file alone."""
    return Path(shutil.copy(path, copy))


def with_empty_log(path: Path, copy: Path) -> Path:
    """Copy the file, and have a log without anything in it."""
    Path(f"{copy}-wal").touch()
    return without_log(path, copy)


def with_log(path: Path, copy: Path) -> Path:
    """Copy both."""
    shutil.copy(f"{path}-wal", f"{copy}-wal")
    return without_log(path, copy)


@pytest.mark.parametrize("copied", [without_log, with_empty_log])
async def test_a_file_without_its_log_is_detected(
    journal: Journal, tmp_path: Path, copied: Callable[[Path, Path], Path]
) -> None:
    """Copied alone while it is open, the file lacks paid jobs, and is refused each time."""
    await job_at(journal, ACCEPTED)
    copy = copied(journal.path, tmp_path / "copy.db")
    for _ in range(2):
        async with opened(copy) as alone:
            with pytest.raises(JournalError, match="is a copy without its log") as caught:
                await alone.counts()
    assert "'copy.db-wal'" in caught.value.happened
    assert "may be paid for" in caught.value.money


async def test_a_missing_log_is_detected_after_any_number_of_checkpoints(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much of the log was moved into the file, the file alone is refused."""
    monkeypatch.setattr(journal_file, "CHECKPOINT_AFTER", 3)
    for number in range(30):
        await journal.plan(wanted(f"k{number}"), NOW)
        copy = without_log(journal.path, tmp_path / f"{number}.db")
        async with opened(copy) as alone:
            with pytest.raises(JournalError, match="is a copy without its log"):
                await alone.counts()
    with database(copy) as db:
        assert 25 <= db.execute("SELECT count(*) FROM job").fetchone()[0] <= 30
    both = with_log(journal.path, tmp_path / "both.db")
    async with opened(both) as whole:
        assert len(await whole.jobs()) == 30


async def test_the_command_in_the_error_makes_the_file_usable(
    journal: Journal, tmp_path: Path
) -> None:
    """After the command that the error names, the file opens without its log."""
    await job_at(journal, ACCEPTED)
    copy = without_log(journal.path, tmp_path / "copy.db")
    async with opened(copy) as alone:
        with pytest.raises(JournalError) as caught:
            await alone.counts()
        statement = re.search("'(UPDATE .*)'", caught.value.advice)
        assert statement
        with database(copy) as db:
            db.execute(statement[1])
        assert await alone.jobs() == []


async def test_the_file_alone_is_whole_once_it_is_closed(journal: Journal, tmp_path: Path) -> None:
    """A closed journal is one file, and a copy of it knows every job."""
    before = await job_at(journal, ACCEPTED)
    await journal.aclose()
    async with opened(without_log(journal.path, tmp_path / "copy.db")) as copy:
        assert await copy.jobs() == [before]


async def test_another_tool_may_put_the_log_into_the_file(journal: Journal, tmp_path: Path) -> None:
    """After a crash, a tool that reads the file takes the log in, and nothing is missing then."""
    before = await job_at(journal, ACCEPTED)
    left = with_log(journal.path, tmp_path / "left.db")
    with database(left) as db:
        assert db.execute("SELECT count(*) FROM job").fetchone() == (1,)
    assert content(tmp_path) == ["left.db", "run.db", "run.db-wal"]
    async with opened(left) as whole:
        assert await whole.jobs() == [before]


@pytest.mark.parametrize("statements", range(1, 14))
async def test_death_while_the_log_is_moved_loses_nothing(
    journal: Journal, tmp_path: Path, statements: int
) -> None:
    """A copy of both files between any two statements of an opening and a checkpoint is whole."""
    left = tmp_path / "left.db"
    taken = 0

    class Watched(sqlite3.Connection):
        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            nonlocal taken
            cursor = super().execute(*arguments)
            taken += 1
            if taken == statements:
                for suffix in ["", "-wal"]:
                    if Path(f"{again.path}{suffix}").exists():
                        shutil.copy(f"{again.path}{suffix}", f"{left}{suffix}")
            return cursor

    before = await job_at(journal, ACCEPTED)
    again = Journal(with_log(journal.path, tmp_path / "again.db"))
    with pytest.MonkeyPatch.context() as patch:
        connect = sqlite3.connect
        patch.setattr(sqlite3, "connect", partial(connect, factory=Watched))
        await again.counts()
        await again.aclose()
    assert taken >= 13
    async with opened(left) as found:
        assert await found.jobs() == [before]


async def test_a_log_that_cannot_be_moved_stays(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at a checkpoint affects no caller; closing tries once more."""
    monkeypatch.setattr(journal_file, "CHECKPOINT_AFTER", 2)
    refused = "CREATE TEMP TRIGGER full BEFORE UPDATE ON header BEGIN SELECT RAISE(FAIL, 'x'); END"
    await journal._run(lambda db: db.execute(refused))
    await job_at(journal, ACCEPTED)
    both = with_log(journal.path, tmp_path / "both.db")
    async with opened(both) as whole:
        assert [job.state for job in await whole.jobs()] == [ACCEPTED]
    await journal.aclose()
    assert [job.state for job in await journal.jobs()] == [ACCEPTED]


# Permissions


def modes(path: Path) -> list[int]:
    """Return the permissions of all files of a journal."""
    return [stat.S_IMODE(file.stat().st_mode) for file in sorted(path.parent.glob(f"{path.name}*"))]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
async def test_the_files_are_for_their_owner_alone(journal: Journal) -> None:
    """The file and its log are made with 0600, whatever the umask leaves to others."""
    before = os.umask(0)
    try:
        await job_at(journal, ACCEPTED)
    finally:
        os.umask(before)
    assert content(journal.path.parent) == ["run.db", "run.db-wal"]
    assert modes(journal.path) == [0o600, 0o600]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
async def test_permissions_of_an_existing_file_stay(path: Path) -> None:
    """An existing file may be shared on purpose."""
    os.close(os.open(path, os.O_CREAT, 0o640))
    async with opened(path) as journal:
        await job_at(journal, ACCEPTED)
    assert modes(path) == [0o640]


# Disks without locks


@pytest.mark.parametrize("code", [sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_IOERR_LOCK])
async def test_a_disk_without_locks_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """On a network drive whose locks do not work, the error says what to do."""

    def refuse(*_arguments: object, **_options: object) -> None:
        error = sqlite3.OperationalError("locking protocol")
        error.sqlite_errorcode = code
        raise error

    monkeypatch.setattr(sqlite3, "connect", refuse)
    async with opened(path) as journal:
        with pytest.raises(JournalError, match="cannot be locked") as caught:
            await journal.counts()
    assert "local disk" in caught.value.advice
    assert caught.value.money == MONEY


# Forks

FORKED = """
import asyncio, os, sys, traceback, warnings
from fuhu_runway import errors
from fuhu_runway.journal import Journal, Plan

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads

def in_child(life):
    if os.fork():
        return os.waitstatus_to_exitcode(os.wait()[1])
    try:
        life()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def plan(key):
    return Plan(key=key, fingerprint="f", endpoint="TextToVideo")

def attempt(journal, key):
    async def trying():
        try:
            await journal.plan(plan(key), 1.0)
            print(key, "ok")
        except errors.JournalError as error:
            print(key, type(error).__name__, error.happened, error.money)
        await journal.aclose()
    return lambda: asyncio.run(trying())

journal, unused, used = Journal(sys.argv[1]), Journal(sys.argv[2]), Journal(sys.argv[3])

async def parent():
    await used.plan(plan("before"), 1.0)
    await used.aclose()
    await journal.plan(plan("parent"), 1.0)
    # While the lock is held, as another thread may hold it.
    for one in (journal, unused, used):
        one._starting.acquire()
    codes = [
        in_child(attempt(journal, "forked")),
        in_child(attempt(Journal(sys.argv[1]), "own")),
        in_child(attempt(unused, "unused")),
        in_child(attempt(used, "used")),
    ]
    for one in (journal, unused, used):
        one._starting.release()
    await journal.plan(plan("still here"), 1.0)
    codes.append(in_child(lambda: in_child(attempt(journal, "grandchild"))))
    print(codes, [job.key for job in await journal.jobs()])
    await journal.aclose()
    print([job.key for job in await used.jobs()])
    await used.aclose()

asyncio.run(parent())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_forked_child_gets_an_error(tmp_path: Path) -> None:
    """A journal that was open at the fork is the parent's; a closed or unused one works."""
    with python(FORKED, *(tmp_path / f"{name}.db" for name in "abc")) as process:
        said, _ = process.communicate(timeout=60)
    theirs = "JournalBusy The journal 'a.db' was open when this process was forked: it belongs"
    assert said.splitlines() == [
        f"forked {theirs} to the parent process. {MONEY}",
        f"own JournalBusy Another process has the journal 'a.db' open. {MONEY}",
        "unused ok",
        "used ok",
        f"grandchild {theirs} to the parent process. {MONEY}",
        "[0, 0, 0, 0, 0] ['parent', 'still here']",
        "['before', 'used']",
    ]
    assert process.returncode == 0


async def test_a_fork_is_imitated(
    journal: Journal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller gets the error, an event that cannot be written is logged, closing does nothing."""
    before = await job_at(journal, ACCEPTED)
    child = Journal(journal.path)
    child._thread = journal._thread
    monkeypatch.setattr(journals, "_JOURNALS", {child})
    journals._after_fork()
    with pytest.raises(JournalBusy, match="when this process was forked"):
        await child.jobs()
    child.note(settled(TaskState.SUCCEEDED))
    await child.aclose()
    assert [record.getMessage() for record in caplog.records] == [
        "The journal could not be written (JournalBusy)."
    ]
    assert await journal.jobs() == [before]


# Secrets

MARK: Final = "marked-7c1e9d5b"


@pytest.mark.parametrize(
    ("system", "line"),
    [
        ("posix", """fuhu-runway jobs '/clips of mine/it'"'"'s.db'"""),
        ("nt", 'fuhu-runway jobs "/clips of mine/it\'s.db"'),
    ],
)
def test_a_command_is_quoted_for_the_shell_of_the_system(
    monkeypatch: pytest.MonkeyPatch, system: str, line: str
) -> None:
    """The shells of Windows know double quotes alone."""
    monkeypatch.setattr(os, "name", system)
    shown = command_line("fuhu-runway", "jobs", "/clips of mine/it's.db")
    monkeypatch.undo()
    assert shown == line


async def test_the_file_holds_no_prompt_and_no_address(journal: Journal) -> None:
    """Not a byte on disk, write-ahead log included, is from the prompt or an address."""
    requests: list[Generation] = [
        TextToVideo(f"a {MARK} kitten", extra={MARK: MARK}),
        ImageToVideo(f"a {MARK} puppy", f"https://example.com/{MARK}.png"),
    ]
    for request in requests:
        plan = plan_of(request)
        await journal.plan(plan, NOW)
        await journal.step(plan.key, SUBMITTING, NOW)
    assert MARK.encode() not in every_byte(journal.path)
    await journal.aclose()
    assert MARK.encode() not in every_byte(journal.path)


def every_byte(path: Path) -> bytes:
    """Return all that is on disk of a journal."""
    files = sorted(path.parent.glob(f"{path.name}*"))
    assert files
    return b"".join(file.read_bytes() for file in files)


async def test_a_journal_waits_for_the_server_before(tmp_path: Path) -> None:
    """While a deployment replaces it, the old one still has the file."""
    path = tmp_path / "run.db"
    before = Journal(path)
    await before.counts()
    after = Journal(path, wait=60)
    starting = asyncio.ensure_future(after.counts())
    await asyncio.sleep(BUSY_PAUSE * 2)
    assert not starting.done()
    await before.aclose()
    await starting
    await after.aclose()


async def test_what_was_handed_out_is_not_unfinished(tmp_path: Path) -> None:
    """Until bytes of its clip arrive, since an app may be stopped while it saves."""
    journal = Journal(tmp_path / "run.db")
    for number, state in enumerate(("accepted", "finished")):
        plan = plan_of(TextToVideo("a kitten"), f"{number}", tag="shop")
        await journal.plan(plan, 1.0)
        await journal.step(plan.key, JobState.SUBMITTING, 2.0)
        await journal.step(plan.key, JobState.ACCEPTED, 3.0, task_id=f"t-{number}")
        if state == "finished":
            await journal.step(plan.key, JobState.FINISHED, 4.0)
    assert [(job.task_id, job.tag) for job in await journal.unfinished()] == [
        ("t-0", "shop"),
        ("t-1", "shop"),
    ]
    journal.note(ClipHandedOut("t-1"))
    assert [job.task_id for job in await journal.unfinished()] == ["t-0"]
    journal.note(DownloadStarted("t-1", 0, None))
    assert [job.task_id for job in await journal.unfinished()] == ["t-0", "t-1"]
    journal.note(DownloadFinished("t-1", 5))
    assert [job.task_id for job in await journal.unfinished()] == ["t-0"]
    await journal.aclose()


async def test_a_job_is_json(tmp_path: Path) -> None:
    """`as_dict` has every field of the row, in values that JSON has, and nothing that is secret."""
    async with opened(tmp_path / "run.db") as journal:
        plan = plan_of(TextToVideo("a marked kitten"), custom_id="order 7", tag="shop")
        row = (await journal.plan(plan, 7.0)).as_dict()
    assert row == json.loads(json.dumps(row))
    assert (row["state"], row["custom_id"], row["planned_at"]) == ("planned", "order 7", 7.0)
    assert row.keys() == {field.name for field in attrs.fields(Job)}
    assert "marked" not in str(row)
