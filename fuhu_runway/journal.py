"""
Jobs on disk: their states, the legal steps, and the jobs in doubt after a crash.

Rule 1: a row is SUBMITTING, flushed to disk, before its request is sent.
Rule 2: a row that is SUBMITTING when the journal is opened becomes IN_DOUBT.
Rule 3: a step that `STEPS` does not have is an error, and changes nothing.
Rule 4: no prompt, key or address is written. A request is identified by its fingerprint, which is
keyed by the journal's salt.

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakSet

import attrs

from ._journal_file import Desk, Errand, Errands, journal_error, report, work
from ._json import json_fields
from ._media import local_fields, read
from ._notebook import jobs_view, table_view
from .errors import JournalBusy, JournalError
from .hooks import ClipHandedOut, DownloadFinished, DownloadStarted, Event, TaskSettled
from .models import Generation, TaskState, usage_error

T = TypeVar("T")


class JobState(enum.Enum):
    """How far a job has got; the database holds the values."""

    PLANNED = "planned"
    """Nothing was sent, or the request was provably not accepted."""
    SUBMITTING = "submitting"
    """About to be sent, or sent without a response so far."""
    ACCEPTED = "accepted"
    """Paid for; the gateway returned its id."""
    FINISHED = "finished"
    """The clip exists at the gateway."""
    SAVED = "saved"
    """The clip is on disk."""
    FAILED = "failed"
    """There will be no clip: the task failed, or the gateway rejected the request."""
    IN_DOUBT = "in doubt"
    """Sent, and its fate is unknown."""


STEPS: Final[Mapping[JobState, Mapping[JobState, str]]] = {
    JobState.PLANNED: {
        JobState.SUBMITTING: "The request is about to be sent.",
    },
    JobState.SUBMITTING: {
        JobState.ACCEPTED: "The gateway returned an id.",
        JobState.PLANNED: "It provably did not arrive, or was refused for now.",
        JobState.FAILED: "The gateway rejected it; nothing was charged.",
        JobState.IN_DOUBT: "There was no clear response, or the process ended before it came.",
    },
    JobState.ACCEPTED: {
        JobState.FINISHED: "The feed shows the clip.",
        JobState.FAILED: "The feed says that the task failed or was cancelled.",
    },
    JobState.FINISHED: {
        JobState.SAVED: "The file is complete and verified.",
    },
    JobState.SAVED: {
        JobState.FINISHED: "The file is gone, and the clip is saved again.",
    },
    JobState.FAILED: {
        JobState.PLANNED: "Another attempt was requested.",
    },
    JobState.IN_DOUBT: {
        JobState.ACCEPTED: "A person or a webhook named the task, and the feed has it.",
        JobState.PLANNED: "A person confirmed that it was not accepted.",
    },
}
"""From each state, the states that may follow, and the reason for each step."""

_INSTANT_OF: Final = {
    JobState.PLANNED: "planned_at",
    JobState.SUBMITTING: "submitted_at",
    JobState.ACCEPTED: "accepted_at",
    JobState.FINISHED: "finished_at",
    JobState.SAVED: "saved_at",
}


@attrs.frozen(kw_only=True)
class Plan:
    """A request, as far as the journal knows it."""

    key: str
    fingerprint: str
    endpoint: str
    custom_id: str | None = None
    model: str | None = None
    #: Length of the clip, in seconds.
    seconds: int | None = None
    #: What the caller attached to the job.
    tag: str | None = None
    #: File and line that it was read from, such as "p.txt:17".
    source: str | None = None


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
    #: File and line of the request, such as "p.txt:17"; None if it was not read from a file.
    source: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the row as JSON has it; it has no prompt, URL or key. Times are Unix times."""
        return json_fields(self)


_CHANGEABLE: Final = {field.name for field in attrs.fields(Job)} - {"key", "state"}


def plan_of(
    request: Generation,
    key: str | None = None,
    custom_id: str | None = None,
    tag: str | None = None,
) -> Plan:
    """Return the plan of a request; its key is the fingerprint by default."""
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
    """Return the key of the *times*-th job with this content."""
    return f"{fingerprint}:{times}"


def fingerprint(request: Generation) -> str:
    """
    Return a hash of the request; the journal keys it with its salt before writing it.

    A local file counts by its content, so that a resumed batch knows it wherever it is.
    """
    values = attrs.asdict(request)
    for field in local_fields(request):
        values[field.name] = {"sha256": read(field, values[field.name]).digest}
    fields = json.dumps(values, default=dict)
    # Parsed again, since only keys that are all text can be sorted.
    content = json.dumps([type(request).__name__, json.loads(fields)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class Journal:
    """
    The state of every job, in one SQLite file that survives a crash at any moment.

    Opened on first use, by one process at a time; usable from any event loop. Each method returns
    once what it wrote is on disk.

    Args:
        path: The file, in an existing folder. A new file is readable by its owner only.
        wait: How long to wait while another process has it open, in seconds: for a server that
            starts while the one it replaces is still shutting down.

    Raises:
        JournalBusy: Another process has it open, or had when it forked this one; from any method.
        JournalTooNew: A newer version of this package wrote it; from any method.
        JournalError: It cannot be read or written, is not a journal, is a copy without its log, or
            cannot hold a value, which is named; from any method.
    """

    def __init__(self, path: str | os.PathLike[str], *, wait: float = 0.0) -> None:
        self.path = Path(path)
        self._wait = wait
        self._todo: Errands = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._former: threading.Thread | None = None
        self._starting = threading.Lock()
        self._desk = Desk(self._send)
        self._is_parents = False
        _JOURNALS.add(self)

    def __repr__(self) -> str:
        return f"<Journal {self.path.name} {'open' if self._thread else 'closed'}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the newest jobs, without prompts."""
        was_open = self._thread is not None
        jobs: list[Job] = []

        async def read() -> list[Job]:
            try:
                return await self.jobs()
            finally:
                if not was_open:
                    await self.aclose()

        if was_open or self.path.exists():
            # A display cannot be awaited, and the loop of the notebook runs already.
            with ThreadPoolExecutor(1) as thread:
                try:
                    jobs = thread.submit(asyncio.run, read()).result()
                except JournalError as error:
                    return table_view(str(error), (), ())
        return jobs_view(self.path.name, jobs)

    async def plan(self, plan: Plan, now: float) -> Job:
        """Return the row of a job, made in state PLANNED if there is none."""
        return await self._run(lambda db: _plan(db, _keyed(db, plan), now))

    async def start_run(self) -> None:
        """Count occurrences of equal requests from zero."""
        await self._run(lambda db: db.execute("DELETE FROM temp.seen"))

    async def plan_next(self, plan: Plan, now: float) -> Job:
        """
        Return the row of the next job with this content in this run, made if there is none.

        Its key is the keyed fingerprint and how often that has come up in the run so far.
        """

        def write(db: sqlite3.Connection) -> Job:
            keyed = _keyed(db, plan)
            (times,) = db.execute(
                "INSERT INTO temp.seen VALUES (?, 1) "
                "ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times",
                (keyed.fingerprint,),
            ).fetchone()
            return _plan(db, attrs.evolve(keyed, key=nth(keyed.fingerprint, times)), now)

        return await self._run(write)

    async def step(self, key: str, to: JobState, now: float, **changes: Any) -> Job:
        """
        Move a job to its next state, and return the row.

        Args:
            key: The key of the job.
            to: The next state; the table `STEPS` says which may follow.
            now: The time, in Unix seconds.
            changes: Further columns to set, such as `task_id` or `error`.

        Raises:
            JournalError: The table does not have this step, or there is no such job.
        """
        return await self._run(lambda db: _step(db, key, to, now, changes))

    async def resolve(
        self, key: str, *, task_id: str | None = None, accepted: bool | None = None
    ) -> Job:
        """
        Record what happened to a job in doubt, and return its row.

        Free, and sends nothing: ask the gateway first, with `client.feed(task_id)`. The next run
        of the batch follows a job that was accepted, and submits one that was not.

        Args:
            key: The `key` of the job, or its custom id.
            task_id: The job was accepted, as this task; for the task that a damaged answer named,
                the `task_id` of the job.
            accepted: False: the job was not accepted. Do not guess: the next run pays for it.

        Raises:
            UsageError: There is no such job, it is not in doubt, the task belongs to another job,
                or not exactly one of *task_id* and `accepted=False` is given. Nothing changed.
        """
        if not (task_id if accepted is None else task_id is None and not accepted):
            raise usage_error(
                "task_id",
                "resolve needs either task_id, the id of the job's task, or accepted=False.",
                "Pass the one that applies.",
            )

        def write(db: sqlite3.Connection) -> Job:
            _check(key=key, task_id=task_id)
            job = _look_up(db, "key", key) or _look_up(db, "custom_id", key)
            if job is None:
                raise usage_error("key", "The journal has no such job.", "Use a key from jobs().")
            if job.state is not JobState.IN_DOUBT:
                raise usage_error(
                    "key", f"The job is {job.state.value}.", "There is nothing to resolve."
                )
            if task_id is None:
                return _step(db, job.key, JobState.PLANNED, time.time(), {})
            # The job's own id may belong to another job: some gateways use one id twice.
            if task_id != job.task_id and _look_up(db, "task_id", task_id):
                happened = "This task belongs to another job."
                raise usage_error("task_id", happened, "Use another task id.")
            return _step(db, job.key, JobState.ACCEPTED, time.time(), {"task_id": task_id})

        return await self._run(write)

    async def forget(self, key: str) -> None:
        """
        Remove the row of a job in any state; then nothing records what was paid for it.

        Raises:
            JournalError: There is no such job.
        """

        def write(db: sqlite3.Connection) -> None:
            _check(key=key)
            if not db.execute("DELETE FROM job WHERE key = ?", (key,)).rowcount:
                raise _unknown(key)

        await self._run(write)

    async def find(self, name: str) -> Job | None:
        """Return the first job with this key, task id or custom id; None if there is none."""

        def read(db: sqlite3.Connection) -> Job | None:
            _check(name=name)
            # One after the other: a single query would scan the whole table.
            found = (_look_up(db, column, name) for column in ("key", "task_id", "custom_id"))
            return next(filter(None, found), None)

        return await self._run(read)

    async def jobs_of(self, request: Generation) -> list[Job]:
        """Return the jobs with exactly this content, in the order in which they were planned."""
        plan = await planned(request)
        sql = "SELECT * FROM job WHERE fingerprint = ? ORDER BY planned_at, rowid"

        def read(db: sqlite3.Connection) -> list[Job]:
            return [_job(row) for row in db.execute(sql, (_keyed(db, plan).fingerprint,))]

        return await self._run(read)

    async def jobs(self, *states: JobState) -> list[Job]:
        """Return the jobs in these states, or all, in the order in which they were planned."""
        words = [state.value for state in states]
        # Without states, all rows: also those whose state is damaged, which are an error.
        where = f"WHERE state IN ({', '.join('?' for _ in words)})" if states else ""
        sql = f"SELECT * FROM job {where} ORDER BY planned_at, rowid"  # noqa: S608
        return await self._run(lambda db: [_job(row) for row in db.execute(sql, words)])

    async def unfinished(self) -> list[Job]:
        """Return the paid jobs that are not saved, handed out or known to have failed."""
        paid = await self.jobs(JobState.ACCEPTED, JobState.FINISHED)
        return [job for job in paid if job.handed_out_at is None]

    async def counts(self) -> dict[JobState, int]:
        """Return how many jobs are in each state."""

        def read(db: sqlite3.Connection) -> dict[JobState, int]:
            rows = db.execute("SELECT state, count(*) FROM job GROUP BY state")
            return dict.fromkeys(JobState, 0) | {_state(word): count for word, count in rows}

        return await self._run(read)

    async def durations(self) -> list[tuple[str, str | None, int | None, float]]:
        """Return (endpoint, model, seconds, duration in seconds) of finished jobs."""

        def read(db: sqlite3.Connection) -> list[Any]:
            rows = db.execute(
                "SELECT endpoint, model, seconds, finished_at - accepted_at FROM job "
                "WHERE finished_at - accepted_at > 0 AND finished_at - accepted_at < ? "
                "ORDER BY finished_at DESC LIMIT 5000",
                (LONGEST,),
            )
            return [tuple(row) for row in rows]

        return await self._run(read)

    def note(self, event: Event) -> None:
        """
        Write that a task ended, or that its clip was saved or handed out; a listener for `hooks`.

        Each row with the task's id takes the step, if it is legal; other tasks are ignored.
        """
        now = time.time()
        changes: dict[str, Any] = {}
        match event:
            case TaskSettled():
                changes |= {"points": event.points, "refunded": int(event.refunded)}
                to = JobState.FINISHED
                if event.state is not TaskState.SUCCEEDED:
                    to, changes["error"] = JobState.FAILED, "TaskFailed"
            case DownloadFinished(is_saved=True):
                to, changes["file_bytes"] = JobState.SAVED, event.total_bytes
            case ClipHandedOut() | DownloadStarted() | DownloadFinished():
                at = None if isinstance(event, DownloadStarted) else now
                sql = "UPDATE job SET handed_out_at = ? WHERE task_id = ?"
                values = (at, event.task_id)
                self._send(Errand(lambda db: db.execute(sql, values)))
                return
            case _:
                return
        task_id = event.task_id

        def write(db: sqlite3.Connection) -> None:
            rows = db.execute("SELECT * FROM job WHERE task_id = ?", (task_id,)).fetchall()
            for job in map(_job, rows):
                # A task may be polled again after its end was written, which changes nothing.
                if to in STEPS[job.state] and job.state is not JobState.SAVED:
                    _step(db, job.key, to, now, changes)

        self._send(Errand(write))

    async def flush(self) -> None:
        """Return once everything that was noted before is on disk."""
        await self._run(lambda _: None)

    async def aclose(self) -> None:
        """Write what is outstanding and close the file; using the journal opens it again."""
        with self._starting:
            if self._thread is not None:
                self._former, self._thread = self._thread, None
                self._todo.put(None)
                self._todo = queue.SimpleQueue()  # for the next thread
        former = self._former
        if former is not None:
            await asyncio.to_thread(former.join)
            with self._starting:
                self._former = None if self._former is former else self._former

    async def _run(self, action: Callable[[sqlite3.Connection], T]) -> T:
        # The loop's own call for threads: a loop with virtual time then waits for the result.
        loop = asyncio.get_running_loop()
        result: T = await loop.run_in_executor(self._desk, action)  # type: ignore[arg-type]
        return result

    def _send(self, errand: Errand) -> None:
        if self._is_parents:
            busy = JournalBusy(
                f"The journal {self.path.name!r} was open when this process was forked: it belongs "
                "to the parent process.",
                "Nothing was sent or charged.",
                "Close it before the fork, or use another journal in the child.",
            )
            report([(errand, None, busy)])
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

    def _start_over(self) -> None:
        """Start over in a forked child, where the thread is gone and the lock may be held."""
        # SQLite's locks were inherited, so this process cannot open the file a second time.
        self._is_parents |= self._thread is not None or self._former is not None
        self._thread = self._former = None
        self._todo = queue.SimpleQueue()
        self._starting = threading.Lock()


_JOURNALS: Final["WeakSet[Journal]"] = WeakSet()


def _after_fork() -> None:
    for journal in _JOURNALS:
        journal._start_over()  # noqa: SLF001  (of this module)


with contextlib.suppress(AttributeError):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)


_SURROGATE: Final = re.compile("[\ud800-\udfff]")

LONGEST: Final = 1e6
"""The longest that a task can take, in seconds; if a row says more, its timestamps are damaged."""


# In the journal's thread


def fits(value: object) -> bool:
    """Return whether SQLite can hold a value."""
    if isinstance(value, str):
        return not _SURROGATE.search(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, float)


def _check(**values: object) -> None:
    for name, value in values.items():
        if not fits(value):
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
    # The line may have moved since an earlier run, or may not be known in this one.
    db.execute(
        f"INSERT INTO job ({names}) VALUES ({marks}) ON CONFLICT (key) DO UPDATE "  # noqa: S608
        "SET source = excluded.source WHERE excluded.source != coalesce(source, '')",
        values,
    )
    job = _look_up(db, "key", plan.key)
    assert job is not None  # noqa: S101  (it was just made, or was there)
    return job


def _step(
    db: sqlite3.Connection, key: str, to: JobState, now: float, changes: Mapping[str, Any]
) -> Job:
    _check(key=key, now=now, **changes)
    job = _look_up(db, "key", key)
    if job is None:
        raise _unknown(key)
    for name in changes.keys() - _CHANGEABLE:
        raise journal_error(f"A step cannot change {name!r}.", "Name a column of the journal.")
    if to not in STEPS[job.state]:
        raise journal_error(
            f"A job that is {job.state.value} cannot become {to.value}.",
            "List the jobs with `fuhu-runway jobs`.",
        )
    values: dict[str, Any] = {}
    if to is JobState.PLANNED:
        values["task_id"] = None
    if to is JobState.SUBMITTING:
        values |= {"submissions": job.submissions + 1, "error": None, "code": None}
    values |= changes
    # `durations` relies on these instants, so saving a clip again must not change them.
    if to in _INSTANT_OF and job.state is not JobState.SAVED:
        values[_INSTANT_OF[to]] = now
    setters = ", ".join(f"{name} = :{name}" for name in ("state", *values))
    db.execute(
        f"UPDATE job SET {setters} WHERE key = :key",  # noqa: S608
        {**values, "state": to.value, "key": key},
    )
    return attrs.evolve(job, state=to, **values)


def _look_up(db: sqlite3.Connection, column: str, value: str) -> Job | None:
    sql = f"SELECT * FROM job WHERE {column} = ? ORDER BY rowid"  # noqa: S608
    row = db.execute(sql, (value,)).fetchone()
    return None if row is None else _job(row)


def _job(row: sqlite3.Row) -> Job:
    return Job(**{**dict(row), "state": _state(row["state"])})


def _state(word: str) -> JobState:
    try:
        return JobState(word)
    except ValueError:
        raise journal_error(
            f"The journal is damaged: the state of a job is {word[:40]!r}.",
            "Restore an earlier copy.",
        ) from None


def _unknown(key: str) -> JournalError:
    return journal_error(f"The journal has no job {key!r}.", "List them with `fuhu-runway jobs`.")
