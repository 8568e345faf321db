"""
The durable record: SQLite schema, legal steps of a job, what is in doubt after a crash.

Rule 1: a row says SUBMITTING, flushed to disk, before the request that it speaks of is sent.
Rule 2: a row that says SUBMITTING when the journal is opened is IN_DOUBT: its outcome is unknown.
Rule 3: a step that the table does not have is an error, and changes nothing.
Rule 4: no prompt, key or address is written; a request is known by its fingerprint, which is
keyed by the journal's own salt.

One thread of its own talks to the database, and writes whatever has gathered meanwhile in one
transaction. One process at a time: the file is locked for as long as the journal is open.
Instants are Unix seconds.
"""

import asyncio
import contextlib
import enum
import hashlib
import hmac
import json
import os
import queue
import re
import shlex
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakSet

import attrs

from ._clock import Clock
from .errors import (
    Fate,
    JournalBusy,
    JournalError,
    JournalTooNew,
    OutOfCredits,
    RunwayError,
    SubmissionInDoubt,
    Unauthorized,
)
from .hooks import LOGGER, ClipHandedOut, DownloadFinished, DownloadStarted, Event, TaskSettled
from .models import Generation, TaskState

T = TypeVar("T")


class JobState(enum.Enum):
    """How far a job is; the words stand in the database."""

    PLANNED = "planned"
    """Wanted; nothing was sent, or what was sent was provably not accepted."""
    SUBMITTING = "submitting"
    """About to be sent, or sent without an answer so far."""
    ACCEPTED = "accepted"
    """Paid for; the gateway gave its id."""
    FINISHED = "finished"
    """The clip exists at the gateway."""
    SAVED = "saved"
    """The clip is on disk."""
    FAILED = "failed"
    """There will be no clip: the task failed, or the gateway refused the request for good."""
    IN_DOUBT = "in doubt"
    """Sent, and its fate is unknown."""


STEPS: Final[Mapping[JobState, Mapping[JobState, str]]] = {
    JobState.PLANNED: {
        JobState.SUBMITTING: "The request is about to be sent.",
    },
    JobState.SUBMITTING: {
        JobState.ACCEPTED: "The gateway answered with an id.",
        JobState.PLANNED: "It provably did not arrive, or was turned away for now.",
        JobState.FAILED: "The gateway turned it away for good; nothing was charged.",
        JobState.IN_DOUBT: "No clear answer came, or the process ended before one came.",
    },
    JobState.ACCEPTED: {
        JobState.FINISHED: "The feed shows the clip.",
        JobState.FAILED: "The feed says that the task failed or was cancelled.",
    },
    JobState.FINISHED: {
        JobState.SAVED: "The file is whole and verified.",
    },
    JobState.SAVED: {
        JobState.FINISHED: "The file is gone, and is wanted again.",
    },
    JobState.FAILED: {
        JobState.PLANNED: "Someone asked for another try.",
    },
    JobState.IN_DOUBT: {
        JobState.ACCEPTED: "A person or a delivery told the id of the task, and the feed has it.",
        JobState.PLANNED: "A person made sure that it was not accepted.",
    },
}
"""From each state, the states that may follow, and what each step means."""

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

_INSTANT_OF: Final = {
    JobState.PLANNED: "planned_at",
    JobState.SUBMITTING: "submitted_at",
    JobState.ACCEPTED: "accepted_at",
    JobState.FINISHED: "finished_at",
    JobState.SAVED: "saved_at",
}


@attrs.frozen(kw_only=True)
class Plan:
    """What is wanted, as the journal knows it."""

    key: str
    fingerprint: str
    endpoint: str
    custom_id: str | None = None
    model: str | None = None
    #: Length of the clip, in seconds.
    seconds: int | None = None
    #: What the caller attached to it.
    tag: str | None = None


@attrs.frozen(kw_only=True)
class Job:
    """One row of the journal."""

    key: str
    state: JobState
    endpoint: str
    fingerprint: str
    custom_id: str | None = None
    model: str | None = None
    seconds: int | None = None
    task_id: str | None = None
    submissions: int = 0
    error: str | None = None
    code: str | None = None
    points: float | None = None
    refunded: bool = attrs.field(default=False, converter=bool)
    file_bytes: int | None = None
    planned_at: float = 0.0
    submitted_at: float | None = None
    accepted_at: float | None = None
    finished_at: float | None = None
    saved_at: float | None = None
    traceparent: str | None = None
    tag: str | None = None
    handed_out_at: float | None = None


_CHANGEABLE: Final = {field.name for field in attrs.fields(Job)} - {"key", "state"}


def in_doubt_of(job: Job) -> SubmissionInDoubt:
    """Return the error for a job that an earlier submission left in doubt."""
    return SubmissionInDoubt(
        f"An earlier run submitted this and got no clear answer ({job.error or 'none so far'}).",
        "It may have been accepted and charged; it was not sent again.",
        "Look for the task at the gateway, then tell the journal with `fuhu-runway resolve`.",
        job.task_id,
    )


def plan_of(
    request: Generation,
    key: str | None = None,
    custom_id: str | None = None,
    tag: str | None = None,
) -> Plan:
    """Return what the journal may know of a request; its key is the fingerprint by default."""
    mark = fingerprint(request)
    return Plan(
        key=key or mark,
        fingerprint=mark,
        endpoint=type(request).__name__,
        custom_id=custom_id,
        model=getattr(request, "model", None),
        seconds=getattr(request, "seconds", None),
        tag=tag,
    )


def nth(fingerprint: str, times: int) -> str:
    """Return the key of a job that is known by its content, and by how often that came up."""
    return f"{fingerprint}:{times}"


def fingerprint(request: Generation) -> str:
    """Return a hash of the request; a journal writes it only after keying it with its salt."""
    fields = json.dumps(attrs.asdict(request), default=dict)
    # Read back, since only keys that are all text can be sorted.
    content = json.dumps([type(request).__name__, json.loads(fields)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class Journal:
    """
    What happened to every job, in one SQLite file that survives a crash at any moment.

    Opened on first use, by the one process that may have it open; usable from any event loop.
    Each method comes back when what it wrote is on disk.

    Args:
        path: The file; made if it is not there, in a folder that is, for its owner alone.
        wait: How long to wait for another process that has it open, in seconds, as a server does
            that is replaced while the old one still ends.

    Raises:
        JournalBusy: Another process has it open, or had when it forked this one; from any method.
        JournalTooNew: A newer version of this package wrote it; from any method.
        JournalError: It cannot be read or written, is no journal, is a copy without its log, or
            cannot hold a value, which is named; from any method.
    """

    def __init__(self, path: str | os.PathLike[str], *, wait: float = 0.0) -> None:
        self.path = Path(path)
        self._wait = wait
        self._todo: queue.SimpleQueue[_Errand | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._former: threading.Thread | None = None
        self._starting = threading.Lock()
        self._desk = _Desk(self._send)
        self._is_parents = False
        _JOURNALS.add(self)

    def __repr__(self) -> str:
        return f"<Journal {self.path.name} {'open' if self._thread else 'closed'}>"

    async def plan(self, plan: Plan, now: float) -> Job:
        """Return the row of a job, made in state PLANNED if there is none."""
        return await self._run(lambda db: _plan(db, _keyed(db, plan), now))

    async def step(self, key: str, to: JobState, now: float, **changes: Any) -> Job:
        """
        Take a job to its next state, and give the row.

        Args:
            key: What the job is known by.
            to: The next state; the table `STEPS` says which may follow.
            now: The time, in Unix seconds.
            changes: Further columns to set, such as `task_id` or `error`.

        Raises:
            JournalError: The table does not have this step, or there is no such job.
        """
        return await self._run(lambda db: _step(db, key, to, now, changes))

    async def forget(self, key: str) -> None:
        """
        Remove the row of a job, whatever its state: what was paid for it is then recorded nowhere.

        Raises:
            JournalError: There is no such job.
        """
        await self._run(lambda db: _forget(db, key))

    async def find(self, name: str) -> Job | None:
        """Return the first job with this key, task id or custom id; None where there is none."""
        return await self._run(lambda db: _find(db, name))

    async def jobs(self, *states: JobState) -> list[Job]:
        """Return the jobs in these states, or all, in the order in which they were planned."""
        return await self._run(lambda db: _jobs(db, states))

    async def counts(self) -> dict[JobState, int]:
        """Return how many jobs are in each state."""
        return await self._run(_counts)

    async def durations(self) -> list[tuple[str, str | None, int | None, float]]:
        """Return (endpoint, model, seconds, how long it took in seconds) of finished jobs."""
        return await self._run(_durations)

    async def start_run(self) -> None:
        """Count occurrences of equal requests from zero."""
        await self._run(lambda db: db.execute("DELETE FROM temp.seen"))

    async def plan_next(self, plan: Plan, now: float) -> Job:
        """
        Return the row of the next job with this content in this run, made if there is none.

        Its key is the keyed fingerprint and how often that has come up in the run so far.
        """
        return await self._run(lambda db: _plan_next(db, _keyed(db, plan), now))

    def note(self, event: Event) -> None:
        """
        Write how a task ended, or that its clip is on disk; a listener for `hooks`.

        Each row with the task's id takes the step, where it is legal; other tasks are ignored.
        """
        if isinstance(event, TaskSettled):
            ended = JobState.FINISHED if event.state is TaskState.SUCCEEDED else JobState.FAILED
            changes: dict[str, Any] = {"points": event.points, "refunded": int(event.refunded)}
            if ended is JobState.FAILED:
                changes["error"] = "TaskFailed"
        elif isinstance(event, DownloadFinished):
            ended, changes = JobState.SAVED, {"file_bytes": event.total_bytes}
        elif isinstance(event, ClipHandedOut | DownloadStarted):
            at = time.time() if isinstance(event, ClipHandedOut) else None
            self._send(_Remark(lambda db: _hand_out(db, event.task_id, at)))
            return
        else:
            return
        now = time.time()
        self._send(_Remark(lambda db: _note(db, event.task_id, ended, now, changes)))

    async def unfinished(self) -> list[Job]:
        """Return the jobs that are paid for and not saved, handed out or known to have failed."""
        every = await self.jobs(JobState.ACCEPTED, JobState.FINISHED)
        return [job for job in every if job.handed_out_at is None]

    async def aclose(self) -> None:
        """Write what is outstanding, let go of the file; opened anew if used again."""
        with self._starting:
            if self._thread is not None:
                self._former, self._thread = self._thread, None
                self._todo.put(None)
                # Whatever comes from now on is for the next thread.
                self._todo = queue.SimpleQueue()
        former = self._former
        if former is not None:
            await asyncio.to_thread(former.join)
            with self._starting:
                self._former = None if self._former is former else self._former

    async def _run(self, action: Callable[[sqlite3.Connection], T]) -> T:
        # The loop's own way to a thread: where a test moves the loop's time, it knows to wait.
        loop = asyncio.get_running_loop()
        result: T = await loop.run_in_executor(self._desk, action)  # type: ignore[arg-type]
        return result

    def _forked(self) -> None:
        """Start over in a forked child, where the thread is gone and the lock may be held."""
        # SQLite's own locks came along, so that this process cannot open the file again either.
        self._is_parents |= self._thread is not None or self._former is not None
        self._thread = self._former = None
        self._todo = queue.SimpleQueue()
        self._starting = threading.Lock()

    def _send(self, errand: "_Errand") -> None:
        if self._is_parents:
            _tell([(errand, None, _parents(self.path))])
            return
        with self._starting:
            if self._thread is None:
                # A daemon, so that a program that forgot to close still ends; what was awaited
                # is on disk by then.
                self._thread = threading.Thread(
                    target=_work,
                    args=(self.path, self._wait, self._todo, self._former),
                    name="journal",
                    daemon=True,
                )
                self._thread.start()
            self._todo.put(errand)


_JOURNALS: Final["WeakSet[Journal]"] = WeakSet()


def _start_over() -> None:
    for journal in _JOURNALS:
        journal._forked()  # noqa: SLF001  (of this module)


with contextlib.suppress(AttributeError):  # Windows has no fork
    os.register_at_fork(after_in_child=_start_over)


@attrs.frozen
class Entry:
    """One submission, as it is written down while it happens."""

    journal: Journal
    key: str
    clock: Clock
    #: Where the submission is traced, as W3C Trace Context has it.
    traceparent: str | None = None

    async def sending(self) -> None:
        """Write that the request is about to go; it goes when this has come back."""
        now = self.clock.wall()
        await self.journal.step(self.key, JobState.SUBMITTING, now, traceparent=self.traceparent)

    async def accepted(self, task_id: str, at: float | None = None) -> None:
        """Write the id that the gateway gave, now or at an instant in the past."""
        now = self.clock.wall() if at is None else at
        await self.journal.step(self.key, JobState.ACCEPTED, now, task_id=task_id)

    async def failed(self, error: RunwayError) -> None:
        """Write why there is no task; of one in doubt, also the id that its answer named."""
        to = _AFTER[getattr(error, "fate", Fate.REJECTED)]
        if isinstance(error, OutOfCredits | Unauthorized):
            to = JobState.PLANNED  # it says nothing against the request
        code = getattr(error, "code", None)
        changes = {
            "error": type(error).__name__,
            # The gateway fills it with what it likes, such as a sentence that quotes the prompt.
            "code": code if code and _CODE.fullmatch(code) else None,
        }
        if to is JobState.IN_DOUBT and _fits(error.task_id):
            changes["task_id"] = error.task_id
        await self.journal.step(self.key, to, self.clock.wall(), **changes)


_AFTER: Final = {
    Fate.UNSENT: JobState.PLANNED,
    Fate.REFUSED: JobState.PLANNED,
    Fate.REJECTED: JobState.FAILED,
    Fate.UNKNOWN: JobState.IN_DOUBT,
}
_CODE: Final = re.compile(r"[\w.:/-]{1,64}", re.ASCII)


@attrs.frozen(eq=False)
class _Errand:
    """Something to do with the database, and who waits for it."""

    action: Callable[[sqlite3.Connection], Any]
    future: "asyncio.Future[Any]"

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Where its end is to be told; None for where the work was done."""
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
class _Remark(_Errand):
    """Something to do that is not awaited."""

    future: None = None  # type: ignore[assignment]
    loop = None

    def settle(self, _result: Any, error: BaseException | None) -> None:
        if error is not None:
            LOGGER.error("The journal could not be written (%s).", type(error).__name__)


@attrs.frozen(eq=False)
class _Desk(Executor):
    """The journal's thread, as an event loop sees it."""

    send: Callable[[_Errand], None]

    def submit(  # type: ignore[override]
        self, action: Callable[[sqlite3.Connection], T]
    ) -> "asyncio.Future[T]":
        """Take one errand; it is done even if it is no longer awaited."""
        # A future of the loop's own, which it takes as it is. One of another thread would wake
        # the loop for each errand, in place of once for all that a commit did.
        errand = _Errand(action, asyncio.get_running_loop().create_future())
        self.send(errand)
        return errand.future


_End = tuple[_Errand, Any, BaseException | None]


def _tell(ends: Iterable[_End]) -> None:
    """Report how errands ended, each in its loop, which is woken once for all of its own."""
    of_loop: dict[asyncio.AbstractEventLoop | None, list[_End]] = {}
    for end in ends:
        of_loop.setdefault(end[0].loop, []).append(end)
    for loop, its in of_loop.items():
        if loop is None:
            _settle(its)
        else:
            # The loop may have ended while the disk was busy; then nothing waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, its)


def _settle(ends: Iterable[_End]) -> None:
    for errand, result, error in ends:
        errand.settle(result, error)


# In the journal's thread

AT_ONCE: Final = 1000
"""How many errands one transaction takes at the most."""

CHECKPOINT_AFTER: Final = 1000
"""How many errands are written to the log before it is moved into the file; more: a longer log."""


def _work(
    path: Path,
    wait: float,
    todo: "queue.SimpleQueue[_Errand | None]",
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
            _tell((errand, None, _named(exc, path)) for errand in batch)
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


def _gather(todo: "queue.SimpleQueue[_Errand | None]") -> tuple[list[_Errand], bool]:
    batch: list[_Errand] = []
    errand = todo.get()
    while errand is not None:
        batch.append(errand)
        if len(batch) == AT_ONCE:
            return batch, False
        try:
            errand = todo.get_nowait()
        except queue.Empty:
            return batch, False
    return batch, True


def _do(db: sqlite3.Connection, batch: Iterable[_Errand], path: Path) -> None:
    """Do all in one transaction; a fault of one is its own, a fault of the disk is everyone's."""
    done: list[_End] = []
    try:
        db.execute("BEGIN")
        for errand in batch:
            try:
                done.append((errand, errand.action(db), None))
            except sqlite3.OperationalError:
                raise
            except Exception as illegal:  # noqa: BLE001  (the waiting call has to raise it)
                done.append((errand, None, _named(illegal, path)))
        db.commit()
    except sqlite3.Error as exc:
        with contextlib.suppress(sqlite3.Error):
            db.rollback()
        done = [(errand, None, _named(exc, path)) for errand in batch]
    _tell(done)


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
        raise _error(f"There is no folder {str(path.parent)!r} for the journal.", "Make it first.")
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
        raise _error(
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
        (JobState.IN_DOUBT.value, "NoReply", JobState.SUBMITTING.value),
    )


_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def _fits(value: object) -> bool:
    """Return whether SQLite can hold a value."""
    if isinstance(value, str):
        return not _SURROGATE.search(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, float)


def _check(**values: object) -> None:
    for name, value in values.items():
        if not _fits(value):
            raise _error(
                f"The journal cannot hold this {name}.",
                "Use text without lone surrogates, and whole numbers of up to 64 bits.",
            )


def _keyed(db: sqlite3.Connection, plan: Plan) -> Plan:
    """Return the plan with its fingerprint as this journal writes it."""
    _check(**attrs.asdict(plan))
    salt: bytes = db.execute("SELECT salt FROM header").fetchone()[0]
    if not salt:
        return plan
    keyed = hmac.new(salt, plan.fingerprint.encode(), "sha256")
    return attrs.evolve(plan, fingerprint=keyed.hexdigest())


def _plan(db: sqlite3.Connection, plan: Plan, now: float) -> Job:
    _check(now=now)
    values = {**attrs.asdict(plan), "state": JobState.PLANNED.value, "planned_at": now}
    names = ", ".join(values)
    marks = ", ".join(f":{name}" for name in values)
    db.execute(f"INSERT OR IGNORE INTO job ({names}) VALUES ({marks})", values)  # noqa: S608
    job = _look_up(db, "key", plan.key)
    assert job is not None  # noqa: S101  (it was just made, or was there)
    return job


def _step(
    db: sqlite3.Connection, key: str, to: JobState, now: float, changes: Mapping[str, Any]
) -> Job:
    _check(key=key, now=now, **changes)
    row = db.execute("SELECT * FROM job WHERE key = ?", (key,)).fetchone()
    if row is None:
        raise _unknown(key)
    for name in changes.keys() - _CHANGEABLE:
        raise _error(f"A step cannot change {name!r}.", "Name a column of the journal.")
    job = _job(row)
    if to not in STEPS[job.state]:
        raise _error(
            f"A job that is {job.state.value} cannot become {to.value}.",
            "List the jobs with `fuhu-runway jobs`.",
        )
    values: dict[str, Any] = {"state": to.value}
    if to is JobState.PLANNED:
        values["task_id"] = None
    values |= changes
    # A clip that is fetched again did not take until now: `durations` goes by these instants.
    if to in _INSTANT_OF and job.state is not JobState.SAVED:
        values[_INSTANT_OF[to]] = now
    if to is JobState.SUBMITTING:
        values |= {"submissions": job.submissions + 1, "error": None, "code": None}
    setters = ", ".join(f"{name} = :{name}" for name in values)
    db.execute(f"UPDATE job SET {setters} WHERE key = :key", {**values, "key": key})  # noqa: S608
    return _job({**dict(row), **values})


def _forget(db: sqlite3.Connection, key: str) -> None:
    _check(key=key)
    if not db.execute("DELETE FROM job WHERE key = ?", (key,)).rowcount:
        raise _unknown(key)


def _note(
    db: sqlite3.Connection, task_id: str, to: JobState, now: float, changes: Mapping[str, Any]
) -> None:
    for job in map(_job, db.execute("SELECT * FROM job WHERE task_id = ?", (task_id,)).fetchall()):
        # A task may be polled again after its end was written; what is written stays.
        if to in STEPS[job.state] and job.state is not JobState.SAVED:
            _step(db, job.key, to, now, changes)


def _hand_out(db: sqlite3.Connection, task_id: str, at: float | None) -> None:
    db.execute("UPDATE job SET handed_out_at = ? WHERE task_id = ?", (at, task_id))


def _find(db: sqlite3.Connection, name: str) -> Job | None:
    _check(name=name)
    # One after the other: together they would walk through the whole table each time.
    found = (_look_up(db, column, name) for column in ("key", "task_id", "custom_id"))
    return next(filter(None, found), None)


def _look_up(db: sqlite3.Connection, column: str, value: str) -> Job | None:
    sql = f"SELECT * FROM job WHERE {column} = ? ORDER BY rowid"  # noqa: S608
    row = db.execute(sql, (value,)).fetchone()
    return None if row is None else _job(row)


def _jobs(db: sqlite3.Connection, states: tuple[JobState, ...]) -> list[Job]:
    words = [state.value for state in states]
    marks = ", ".join("?" for _ in words)
    # Without states also the rows of none, which are damaged, and an error.
    where = f"WHERE state IN ({marks})" if states else ""
    sql = f"SELECT * FROM job {where} ORDER BY planned_at, rowid"  # noqa: S608
    return [_job(row) for row in db.execute(sql, words)]


LONGEST: Final = 1e6
"""What a task takes at the most, in seconds; beyond it, the instants of a row are damaged."""


def _counts(db: sqlite3.Connection) -> dict[JobState, int]:
    found = dict.fromkeys(JobState, 0)
    for word, count in db.execute("SELECT state, count(*) FROM job GROUP BY state"):
        found[_state(word)] = count
    return found


def _durations(db: sqlite3.Connection) -> list[tuple[str, str | None, int | None, float]]:
    rows = db.execute(
        "SELECT endpoint, model, seconds, finished_at - accepted_at FROM job "
        "WHERE finished_at - accepted_at > 0 AND finished_at - accepted_at < ? "
        "ORDER BY finished_at DESC LIMIT 5000",
        (LONGEST,),
    )
    return [tuple(row) for row in rows]


def _plan_next(db: sqlite3.Connection, plan: Plan, now: float) -> Job:
    times = _occurrence(db, plan.fingerprint)
    return _plan(db, attrs.evolve(plan, key=nth(plan.fingerprint, times)), now)


def _occurrence(db: sqlite3.Connection, fingerprint: str) -> int:
    row = db.execute(
        "INSERT INTO temp.seen VALUES (?, 1) "
        "ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times",
        (fingerprint,),
    ).fetchone()
    times: int = row[0]
    return times


def _job(row: Mapping[str, Any] | sqlite3.Row) -> Job:
    values = dict(row)
    return Job(**{**values, "state": _state(values["state"])})


def _state(word: str) -> JobState:
    try:
        return JobState(word)
    except ValueError:
        raise _error(
            f"The journal is damaged: the state of a job is {word[:40]!r}.",
            "Put a copy from before in its place.",
        ) from None


def _named(exc: Exception, path: Path) -> JournalError:
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
        error = _error(
            f"The journal {path.name!r} cannot be used: it cannot be locked ({exc}).",
            "Check its permissions, or keep it on a local disk: network drives often lack locks.",
        )
    else:
        error = _error(
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


def _parents(path: Path) -> JournalBusy:
    return JournalBusy(
        f"The journal {path.name!r} was open when this process was forked: it is the parent's.",
        "Nothing was sent or charged.",
        "Close it before the fork, or use another journal in the child.",
    )


def _unknown(key: str) -> JournalError:
    return _error(f"The journal has no job {key!r}.", "List them with `fuhu-runway jobs`.")


def _error(happened: str, advice: str) -> JournalError:
    return JournalError(happened, "Nothing was sent or charged.", advice)
