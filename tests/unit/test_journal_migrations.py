"""Journals that an earlier version of the package wrote, brought up to date."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from support.clock import ManualClock

from fuhu_runway.journal import SCHEMA_VERSION, Entry, Job, JobState, Journal, Plan

TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

# As the first version of the package had it, to the letter.
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
VALUES ('in the air', 'g', 'ActOne', 'submitting', 1, 3.5);
"""


def of_version_1(path: Path) -> None:
    """Leave what the first version leaves when it is killed: two jobs, one of them in the air."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(VERSION_1 + ROWS)
        db.execute("PRAGMA user_version=1")


def columns(path: Path) -> tuple[int, list[tuple[Any, ...]], int]:
    """Give the version, the columns and whether the table is strict."""
    with closing(sqlite3.connect(path)) as db:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        strict = db.execute("SELECT strict FROM pragma_table_list WHERE name = 'job'").fetchone()[0]
        return version, db.execute("SELECT * FROM pragma_table_info('job')").fetchall(), strict


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give where the journal is."""
    return tmp_path / "run.db"


async def test_a_journal_of_version_1_keeps_every_row(path: Path) -> None:
    """Its jobs are what they were, without a trace; what was in the air is in doubt."""
    of_version_1(path)
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
    )
    assert (doubtful.key, doubtful.state) == ("in the air", JobState.IN_DOUBT)
    assert kept.traceparent is doubtful.traceparent is None


async def test_a_journal_of_version_1_becomes_like_a_new_one(path: Path) -> None:
    """Afterwards it has the version, the columns in their order and the strictness of a new one."""
    of_version_1(path)
    assert columns(path)[0] == 1
    for one in (path, path.with_name("new.db")):
        journal = Journal(one)
        await journal.counts()
        await journal.aclose()
    assert columns(path) == columns(path.with_name("new.db"))
    assert columns(path)[0] == SCHEMA_VERSION


@pytest.mark.parametrize("make", [of_version_1, Path.touch])
async def test_a_submission_leaves_its_trace(path: Path, make: Any) -> None:
    """The row that precedes a request holds its trace; a later one leaves its own, or none."""
    make(path)
    clock = ManualClock()
    journal = Journal(path)
    await journal.plan(Plan(key="new", fingerprint="h", endpoint="TextToVideo"), clock.wall())
    traces = []
    for trace in (TRACE, None):
        await Entry(journal, "new", clock, trace).sending()
        job = await journal.step("new", JobState.PLANNED, clock.wall())
        traces.append(job.traceparent)
    await journal.aclose()
    assert traces == [TRACE, None]
