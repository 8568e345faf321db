"""Journals that an earlier version of the package wrote, brought up to date."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from support.clock import ManualClock

from fuhu_runway._journal.schema import SCHEMA_VERSION
from fuhu_runway._session.entry import Entry
from fuhu_runway.errors import JournalError
from fuhu_runway.hooks import DownloadFinished, Hooks
from fuhu_runway.journal import Job, JobState, Journal, Plan, plan_of
from fuhu_runway.models import TextToVideo

TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

# The schema of the first version of the package, unchanged.
VERSION_1: Final = """
CREATE TABLE job (
    -- What the job is known by: its custom id, or its content and occurrence.
    key          TEXT NOT NULL PRIMARY KEY,
    -- The caller's own name for it.
    custom_id    TEXT,
    -- SHA-256 of the request; the request itself, which holds the prompt, is not kept.
    fingerprint  TEXT NOT NULL,
    -- What was asked, as far as it tells how long it will take.
    endpoint     TEXT NOT NULL,
    model        TEXT,
    seconds      INTEGER,
    -- A word of JobState.
    state        TEXT NOT NULL,
    -- The gateway's id, from ACCEPTED on.
    task_id      TEXT UNIQUE,
    -- How often it was sent.
    submissions  INTEGER NOT NULL DEFAULT 0,
    -- Why it failed or is in doubt: the name of the error, and the gateway's code.
    error        TEXT,
    code         TEXT,
    -- Points used, and whether they were given back (0 or 1), as the gateway said.
    points       REAL,
    refunded     INTEGER NOT NULL DEFAULT 0,
    -- Size of the file on disk.
    file_bytes   INTEGER,
    -- When each state was reached last, in Unix seconds; fetching a clip again changes none.
    planned_at   REAL NOT NULL,
    submitted_at REAL,
    accepted_at  REAL,
    finished_at  REAL,
    saved_at     REAL
) STRICT;
CREATE INDEX job_by_state ON job (state);
"""

ROWS: Final = """
INSERT INTO job (key, fingerprint, endpoint, state, task_id, submissions, planned_at, accepted_at)
VALUES ('k', 'f', 'TextToVideo', 'accepted', 't-1', 1, 1.5, 2.5);
INSERT INTO job (key, fingerprint, endpoint, state, submissions, planned_at)
VALUES ('in flight', 'g', 'ActOne', 'submitting', 1, 3.5);
"""

# What the third version made of the second.
VERSION_3: Final = """
ALTER TABLE job RENAME TO old_job;
CREATE TABLE job (
    key TEXT NOT NULL PRIMARY KEY, custom_id TEXT, fingerprint TEXT NOT NULL,
    endpoint TEXT NOT NULL, model TEXT, seconds INTEGER, state TEXT NOT NULL, task_id TEXT,
    submissions INTEGER NOT NULL DEFAULT 0, error TEXT, code TEXT, points REAL,
    refunded INTEGER NOT NULL DEFAULT 0, file_bytes INTEGER, planned_at REAL NOT NULL,
    submitted_at REAL, accepted_at REAL, finished_at REAL, saved_at REAL, traceparent TEXT,
    tag TEXT, handed_out_at REAL
) STRICT;
INSERT INTO job SELECT *, NULL, NULL FROM old_job ORDER BY rowid;
DROP TABLE old_job;
CREATE INDEX job_by_state ON job (state);
CREATE INDEX job_by_task ON job (task_id);
CREATE TABLE header (salt BLOB NOT NULL, needs_log INTEGER NOT NULL) STRICT;
INSERT INTO header VALUES (x'', 0);
"""


def of_version_1(path: Path) -> None:
    """Leave what the first version leaves when it is killed: two jobs, one of them in flight."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(VERSION_1 + ROWS)
        db.execute("PRAGMA user_version=1")


def of_version_2(path: Path) -> None:
    """Leave what the second version leaves when it is killed: the same two jobs."""
    of_version_1(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("ALTER TABLE job ADD COLUMN traceparent TEXT")
        db.execute("UPDATE job SET traceparent = ? WHERE key = 'k'", (TRACE,))
        db.execute("PRAGMA user_version=2")


def of_version_3(path: Path) -> None:
    """Leave what the third version leaves when it is killed: the same two jobs."""
    of_version_2(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(VERSION_3)
        db.execute("PRAGMA user_version=3")


OLDER: Final = pytest.mark.parametrize("make", [of_version_1, of_version_2, of_version_3])


def columns(path: Path) -> tuple[int, list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Return the version, the columns of both tables, and what there is with how it is kept."""
    with closing(sqlite3.connect(path)) as db:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        sql = "SELECT * FROM pragma_table_info(?)"
        found = [row for name in ("job", "header") for row in db.execute(sql, (name,))]
        kept = db.execute(
            "SELECT name, strict FROM pragma_table_list WHERE schema = 'main' UNION ALL "
            "SELECT name, sql FROM sqlite_schema WHERE type = 'index' ORDER BY name"
        ).fetchall()
        return version, found, kept


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the journal is."""
    return tmp_path / "run.db"


@OLDER
async def test_an_older_journal_keeps_every_row(path: Path, make: Callable[[Path], None]) -> None:
    """Its jobs are what they were, with a trace where they had one; SUBMITTING is in doubt."""
    make(path)
    journal = Journal(path)
    kept, doubtful = await journal.jobs()
    await journal.aclose()
    assert kept == Job(
        key="k",
        state=JobState.ACCEPTED,
        endpoint="TextToVideo",
        fingerprint="f",
        task_id="t-1",
        submissions=1,
        planned_at=1.5,
        accepted_at=2.5,
        traceparent=None if make is of_version_1 else TRACE,
    )
    assert (doubtful.key, doubtful.state) == ("in flight", JobState.IN_DOUBT)
    assert doubtful.traceparent is None


@OLDER
async def test_an_older_journal_lets_two_jobs_have_one_task(
    path: Path, make: Callable[[Path], None]
) -> None:
    """The id of another job can be written, and the end of the task is written to both."""
    make(path)
    journal = Journal(path)
    await journal.step("in flight", JobState.ACCEPTED, 4.5, task_id="t-1")
    for key in ("k", "in flight"):
        await journal.step(key, JobState.FINISHED, 5.5)
    journal.note(DownloadFinished("t-1", 42))
    jobs = await journal.jobs()
    await journal.aclose()
    assert [(job.state, job.task_id) for job in jobs] == [(JobState.SAVED, "t-1")] * 2


@OLDER
async def test_an_older_journal_goes_on_with_its_keys(
    path: Path, make: Callable[[Path], None]
) -> None:
    """Jobs that were known by a fingerprint without a salt are the same jobs afterwards."""
    make(path)
    plan = plan_of(TextToVideo("a kitten"))
    key = f"{plan.fingerprint}:1"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        known = (key, plan.fingerprint)
        db.execute("UPDATE job SET key = ?, fingerprint = ? WHERE key = 'k'", known)
    journal = Journal(path)
    job = await journal.plan_next(plan, 9.5)
    await journal.aclose()
    assert (job.key, job.state, job.task_id) == (key, JobState.ACCEPTED, "t-1")


@OLDER
async def test_an_older_journal_may_have_been_copied_without_its_log(
    path: Path, make: Callable[[Path], None]
) -> None:
    """Whether its log is missing cannot be known of it; from then on it is."""
    make(path)
    journal = Journal(path)
    assert len(await journal.jobs()) == 2
    alone = Journal(shutil.copy(path, path.with_name("copy.db")))
    with pytest.raises(JournalError, match="is a copy without its log"):
        await alone.jobs()
    await alone.aclose()
    await journal.aclose()


@OLDER
async def test_an_older_journal_becomes_like_a_new_one(
    path: Path, make: Callable[[Path], None]
) -> None:
    """Afterwards it has the version, the columns, the indexes and the strictness of a new one."""
    make(path)
    assert columns(path)[0] < SCHEMA_VERSION
    for one in (path, path.with_name("new.db")):
        journal = Journal(one)
        await journal.counts()
        await journal.aclose()
    assert columns(path) == columns(path.with_name("new.db"))
    assert columns(path)[0] == SCHEMA_VERSION


@pytest.mark.parametrize("make", [of_version_1, of_version_2, of_version_3, Path.touch])
async def test_a_submission_leaves_its_trace(path: Path, make: Any) -> None:
    """The row that precedes a request holds its trace; a later one leaves its own, or none."""
    make(path)
    clock = ManualClock()
    journal = Journal(path)
    await journal.plan(Plan(key="new", fingerprint="h", endpoint="TextToVideo"), clock.wall())
    traces = []
    for trace in (TRACE, None):
        await Entry(journal, "new", clock, Hooks(), trace).sending()
        job = await journal.step("new", JobState.PLANNED, clock.wall())
        traces.append(job.traceparent)
    await journal.aclose()
    assert traces == [TRACE, None]
