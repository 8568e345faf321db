"""
The file behind the journal: its schema, its lock, its log, and the thread that alone writes it.

One process has the file at a time. Errands that have gathered are done in one transaction, so that
they share one flush to the disk, and each is reported when its transaction is on disk.
"""

import asyncio
import contextlib
import os
import queue
import shlex
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs

from .errors import JournalBusy, JournalError, JournalTooNew
from .hooks import LOGGER

T = TypeVar("T")

SCHEMA_VERSION: Final = 3

# 1  the first
# 2  job.traceparent
# 3  header, job.tag, job.handed_out_at; job.task_id is no longer unique, and a job in doubt may
#    have one
SCHEMA: Final = """
CREATE TABLE job (
    -- What the job is known by: its custom id, or its content and occurrence.
    key          TEXT NOT NULL PRIMARY KEY,
    -- The caller's own name for it.
    custom_id    TEXT,
    -- Keyed hash of the request; the request itself, which holds the prompt, is not kept.
    fingerprint  TEXT NOT NULL,
    -- What was asked, as far as it tells how long it will take.
    endpoint     TEXT NOT NULL,
    model        TEXT,
    seconds      INTEGER,
    -- A word of JobState.
    state        TEXT NOT NULL,
    -- The gateway's id, from ACCEPTED on; in doubt, the id that was found in a damaged answer.
    -- A gateway may answer two submits with one id.
    task_id      TEXT,
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
    saved_at     REAL,
    -- Where its last submission was traced, as W3C Trace Context has it.
    traceparent  TEXT,
    -- What the caller attached to it.
    tag          TEXT,
    -- When a wait returned its clip, which nothing has begun to save since; in Unix seconds.
    handed_out_at REAL
) STRICT;
CREATE INDEX job_by_state ON job (state);
CREATE INDEX job_by_task ON job (task_id);
CREATE TABLE header (
    -- Keys the fingerprints, so that equal requests look different in different journals.
    salt      BLOB NOT NULL,
    -- 1 in this file and 0 in its log while it is open: a copy without the log says 1.
    needs_log INTEGER NOT NULL
) STRICT;
INSERT INTO header VALUES (randomblob(32), 0);
"""

ADD_TRACEPARENT: Final = """
ALTER TABLE job ADD COLUMN traceparent TEXT;
"""

# SQLite cannot drop a UNIQUE, so the table is built again. The salt is empty, since the keys of
# the jobs hold fingerprints without one.
SHARE_TASK_IDS: Final = """
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

MIGRATIONS: Final[Mapping[int, str]] = {
    1: ADD_TRACEPARENT,
    2: SHARE_TASK_IDS,
}
"""From each older version, what leads to the next; a new file gets the present schema at once."""


@attrs.frozen(eq=False)
class Errand:
    """Something to do with the database, and who waits for it."""

    action: Callable[[sqlite3.Connection], Any]
    future: "asyncio.Future[Any]"

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop to report its end in; None for the thread that did the work."""
        return self.future.get_loop()

    def settle(self, result: Any, error: BaseException | None) -> None:
        """Wake the waiting calls."""
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


@attrs.frozen(eq=False)
class Remark(Errand):
    """Something to do that is not awaited."""

    future: None = None  # type: ignore[assignment]
    loop = None

    def settle(self, _result: Any, error: BaseException | None) -> None:
        if error is not None:
            LOGGER.error("The journal could not be written (%s).", type(error).__name__)


@attrs.frozen(eq=False)
class Desk(Executor):
    """The journal's thread, as an event loop sees it."""

    send: Callable[[Errand], None]

    def submit(  # type: ignore[override]
        self, action: Callable[[sqlite3.Connection], T]
    ) -> "asyncio.Future[T]":
        """Take one errand; it is done even if it is no longer awaited."""
        # A future of the loop's own, which it takes as it is. One of another thread would wake
        # the loop for each errand, in place of once for all that a commit did.
        errand = Errand(action, asyncio.get_running_loop().create_future())
        self.send(errand)
        return errand.future


End = tuple[Errand, Any, BaseException | None]


def report(ends: Iterable[End]) -> None:
    """Report how errands ended, each in its loop, which is woken once for all of its own."""
    of_loop: dict[asyncio.AbstractEventLoop | None, list[End]] = {}
    for end in ends:
        of_loop.setdefault(end[0].loop, []).append(end)
    for loop, its in of_loop.items():
        if loop is None:
            _settle(its)
        else:
            # The loop may have ended while the disk was busy; then nothing waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, its)


def _settle(ends: Iterable[End]) -> None:
    for errand, result, error in ends:
        errand.settle(result, error)


# In the journal's thread

AT_ONCE: Final = 1000
"""How many errands one transaction takes at the most."""

REMARKS_WAIT: Final = 0.02
"""Seconds that remarks wait for an errand whose commit they can share. If more, a crash loses more
of them; a resumed job finds out again that its task ended or its clip is on disk."""

CHECKPOINT_AFTER: Final = 1000
"""How many errands are written to the log before it is moved into the file; more: a longer log."""


def work(
    path: Path,
    wait: float,
    todo: "queue.SimpleQueue[Errand | None]",
    former: threading.Thread | None,
) -> None:
    """Do errands until there is a None, all that have gathered in one transaction."""
    if former is not None:
        former.join()  # it may have the file still
    db: sqlite3.Connection | None = None
    ends = False
    in_log = 0
    while not ends:
        batch, ends = _gather(todo)
        if not batch:
            continue
        try:
            db = db or _open_within(path, wait)
        except Exception as exc:  # noqa: BLE001  (the waiting call has to raise it)
            report((errand, None, error_of(exc, path)) for errand in batch)
        else:
            _do(db, batch, path)
            in_log += len(batch)
        if db is not None and in_log >= CHECKPOINT_AFTER:
            in_log = 0
            with contextlib.suppress(sqlite3.Error):
                _move_log(db)
    if db is not None:
        _let_go(db)


NEEDS_NO_LOG: Final = "UPDATE header SET needs_log = 0"


def _move_log(db: sqlite3.Connection) -> None:
    """Move the log into the file, which then says that it needs the log; the log says otherwise."""
    # In this order, a file without its log is always found out: each checkpoint writes the 1, and
    # the 0 is in the log only. A process that is killed in between leaves a log that is not empty.
    try:
        db.execute("UPDATE header SET needs_log = 1")
        db.execute("PRAGMA wal_checkpoint").fetchall()
    finally:
        db.execute(NEEDS_NO_LOG)


def _let_go(db: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        _doubt(db)
        db.execute(NEEDS_NO_LOG)  # again, where a full disk refused it
    db.close()


def _gather(todo: "queue.SimpleQueue[Errand | None]") -> tuple[list[Errand], bool]:
    """Return what has gathered, and whether that was all."""
    batch: list[Errand] = []
    errand = todo.get()
    deadline = time.monotonic() + REMARKS_WAIT
    while errand is not None:
        batch.append(errand)
        if not isinstance(errand, Remark):
            deadline = 0.0
        if len(batch) == AT_ONCE:
            return batch, False
        try:
            errand = todo.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return batch, False
    return batch, True


def _do(db: sqlite3.Connection, batch: Iterable[Errand], path: Path) -> None:
    """Do all in one transaction; a fault of one is its own, a fault of the disk is everyone's."""
    done: list[End] = []
    try:
        db.execute("BEGIN")
        for errand in batch:
            try:
                done.append((errand, errand.action(db), None))
            except sqlite3.OperationalError:
                raise
            except Exception as illegal:  # noqa: BLE001  (the waiting call has to raise it)
                done.append((errand, None, error_of(illegal, path)))
        db.commit()
    except sqlite3.Error as exc:
        with contextlib.suppress(sqlite3.Error):
            db.rollback()
        done = [(errand, None, error_of(exc, path)) for errand in batch]
    report(done)


BUSY_PAUSE: Final = 0.05
"""How often a journal that another process has open is tried again, in seconds."""


def _open_within(path: Path, wait: float) -> sqlite3.Connection:
    """Open the file, as soon as no other process has it, but at most *wait* seconds later."""
    deadline = time.monotonic() + wait
    while True:
        try:
            return _open(path)
        except sqlite3.OperationalError as exc:
            if not _is_busy(exc) or time.monotonic() >= deadline:
                raise
        time.sleep(BUSY_PAUSE)


def _is_busy(exc: Exception) -> bool:
    # The low byte is the kind, and what is above it says more.
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _open(path: Path) -> sqlite3.Connection:
    """Open the file for this process alone, bring its schema up to date, settle old doubts."""
    if not path.parent.is_dir():
        raise journal_error(
            f"There is no folder {str(path.parent)!r} for the journal.", "Make it first."
        )
    log = path.with_name(f"{path.name}-wal")
    has_log = log.is_file() and log.stat().st_size > 0
    with contextlib.suppress(OSError):
        # SQLite gives its other files the same permissions.
        path.touch(0o600, exist_ok=False)
    db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        db.row_factory = sqlite3.Row
        # Exclusive and write-ahead: the lock is taken at the first write and kept until the end,
        # and goes with the process, however it ends.
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        # Each commit is on disk before it is acted on: a paid request follows.
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA fullfsync=1")  # macOS flushes to the disk itself by this alone
        db.execute("PRAGMA temp_store=MEMORY")
        db.execute("BEGIN IMMEDIATE")
        _migrate(db, path)
        if not has_log:
            _check_whole(db, path)
        _doubt(db)
        db.execute("CREATE TABLE temp.seen (fingerprint TEXT PRIMARY KEY, times INTEGER) STRICT")
        db.commit()
        # Last, since it changes the file, which is known to be ours by now.
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA wal_autocheckpoint=0")
        _move_log(db)
    except BaseException:
        db.close()
        raise
    return db


def _check_whole(db: sqlite3.Connection, path: Path) -> None:
    if db.execute("SELECT needs_log FROM header").fetchone()[0]:
        command = command_line("sqlite3", str(path), NEEDS_NO_LOG)
        raise JournalError(
            f"The journal {path.name!r} is a copy without its log, '{path.name}-wal'.",
            "Nothing was sent, but jobs that only the log has may be paid for.",
            f"Copy the log as well, or go on without it after: {command}",
        )


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    tables = {row["name"] for row in db.execute("SELECT name FROM sqlite_schema")}
    if tables and ("job" not in tables or version == 0):
        raise journal_error(
            f"The file {path.name!r} is a database of something else.", "Choose another file."
        )
    if version > SCHEMA_VERSION:
        raise JournalTooNew(
            f"The journal {path.name!r} has schema {version}; this version knows {SCHEMA_VERSION}.",
            "Nothing was sent or charged.",
            "Use the version of fuhu-runway that wrote it, or a newer one.",
        )
    steps = [MIGRATIONS[older] for older in range(version, SCHEMA_VERSION)] if version else [SCHEMA]
    for script in steps:
        for statement in _statements(script):
            db.execute(statement)
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _statements(script: str) -> Iterator[str]:
    """Split a script, since `executescript` would end the transaction that it is part of."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _doubt(db: sqlite3.Connection) -> None:
    """Mark every SUBMITTING job as IN_DOUBT: its outcome is unknown."""
    db.execute(
        "UPDATE job SET state = ?, error = coalesce(error, ?) WHERE state = ?",
        ("in doubt", "NoReply", "submitting"),
    )


def error_of(exc: Exception, path: Path) -> JournalError:
    """Return our error for one of SQLite's or of the system's."""
    if isinstance(exc, JournalError):
        return exc
    code = getattr(exc, "sqlite_errorcode", 0)
    # The low byte is the kind, and what is above it tells more.
    if code & 0xFF == sqlite3.SQLITE_BUSY:
        error: JournalError = JournalBusy(
            f"Another process has the journal {path.name!r} open.",
            "Nothing was sent or charged.",
            "Wait for it to end, or use another journal.",
        )
    elif code in _LOCKLESS:
        error = journal_error(
            f"The journal {path.name!r} cannot be used: it cannot be locked ({exc}).",
            "Check its permissions, or keep it on a local disk: network drives often lack locks.",
        )
    else:
        error = journal_error(
            f"The journal {path.name!r} cannot be used: {exc}.",
            "Mend that, or choose another file; what is in it stays as it is.",
        )
    error.__cause__ = exc
    return error


_LOCKLESS: Final = {
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_IOERR_LOCK,
    sqlite3.SQLITE_IOERR_RDLOCK,
    sqlite3.SQLITE_IOERR_UNLOCK,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
}
"""What SQLite says on a file system without working locks, or of a file that is read-only."""


def command_line(*words: str) -> str:
    """Return a command as a person may paste it into the shell of this system."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def journal_error(happened: str, advice: str) -> JournalError:
    return JournalError(happened, "Nothing was sent or charged.", advice)
