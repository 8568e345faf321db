"""
Jobs on disk: their states, the legal steps, and what is in doubt after a crash.

Rule 1: a row says SUBMITTING, flushed to disk, before the request that it speaks of is sent.
Rule 2: a row that says SUBMITTING when the journal is opened is IN_DOUBT: its outcome is unknown.
Rule 3: a step that the table does not have is an error, and changes nothing.
Rule 4: no prompt, key or address is written; a request is known by its fingerprint, which is
keyed by the journal's own salt.

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
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakSet

import attrs

from ._clock import Clock
from ._journal_file import Desk, Errand, Remark, journal_error, report, work
from ._media import local_fields, read
from .errors import (
    Fate,
    JournalBusy,
    JournalError,
    OutOfCredits,
    RunwayError,
    SubmissionInDoubt,
    Unauthorized,
)
from .hooks import ClipHandedOut, DownloadFinished, DownloadStarted, Event, TaskSettled
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
        JobState.ACCEPTED: "A person or a webhook named the task, and the feed has it.",
        JobState.PLANNED: "A person made sure that it was not accepted.",
    },
}
"""From each state, the states that may follow, and what each step means."""

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
        "Look for the task at the gateway, then record it with `fuhu-runway resolve`.",
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


async def planned(
    request: Generation,
    key: str | None = None,
    custom_id: str | None = None,
    tag: str | None = None,
) -> Plan:
    """Return `plan_of` a request; its local files, if it has any, are read in a thread."""
    if local_fields(request):
        return await asyncio.to_thread(plan_of, request, key, custom_id, tag)
    return plan_of(request, key, custom_id, tag)


def nth(fingerprint: str, times: int) -> str:
    """Return the key of a job that is known by its content, and by how often that came up."""
    return f"{fingerprint}:{times}"


def fingerprint(request: Generation) -> str:
    """
    Return a hash of the request; a journal writes it only after keying it with its salt.

    A local file counts by its content, so that a resumed batch knows it wherever it is.
    """
    values = attrs.asdict(request)
    for field in local_fields(request):
        values[field.name] = {"sha256": read(field, values[field.name]).digest}
    fields = json.dumps(values, default=dict)
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
        self._todo: queue.SimpleQueue[Errand | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._former: threading.Thread | None = None
        self._starting = threading.Lock()
        self._desk = Desk(self._send)
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
            self._send(Remark(lambda db: _hand_out(db, event.task_id, at)))
            return
        else:
            return
        now = time.time()
        self._send(Remark(lambda db: _note(db, event.task_id, ended, now, changes)))

    async def unfinished(self) -> list[Job]:
        """Return the jobs that are paid for and not saved, handed out or known to have failed."""
        every = await self.jobs(JobState.ACCEPTED, JobState.FINISHED)
        return [job for job in every if job.handed_out_at is None]

    async def aclose(self) -> None:
        """Write what is outstanding, close the file; it is opened again if used."""
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

    def _send(self, errand: "Errand") -> None:
        if self._is_parents:
            report([(errand, None, _parents(self.path))])
            return
        with self._starting:
            if self._thread is None:
                # A daemon, so that a program that forgot to close still ends; what was awaited
                # is on disk by then.
                self._thread = threading.Thread(
                    target=work,
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
            raise journal_error(
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
        raise journal_error(f"A step cannot change {name!r}.", "Name a column of the journal.")
    job = _job(row)
    if to not in STEPS[job.state]:
        raise journal_error(
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
        raise journal_error(
            f"The journal is damaged: the state of a job is {word[:40]!r}.",
            "Put a copy from before in its place.",
        ) from None


def _parents(path: Path) -> JournalBusy:
    return JournalBusy(
        f"The journal {path.name!r} was open when this process was forked: it is the parent's.",
        "Nothing was sent or charged.",
        "Close it before the fork, or use another journal in the child.",
    )


def _unknown(key: str) -> JournalError:
    return journal_error(f"The journal has no job {key!r}.", "List them with `fuhu-runway jobs`.")
