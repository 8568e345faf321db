"""
What a journal does to its rows: one generator for each action, the same for every store.

An action decides which statements are sent, and a store sends them:

    def find_by_key(key: str) -> Action[Job | None]:
        rows = yield "SELECT * FROM job WHERE key = :key", {"key": key}
        return job_of(rows[0]) if rows else None

It yields a statement with its values, is sent the rows, and returns its result; with `yield from`,
one action is a part of another. So each rule is written once and does no I/O. `file.perform` runs
an action on SQLite, and `Link.run` of `contrib/_postgres` on Postgres.

Rule 1: statements are in SQLite's dialect; the other store translates the names.
Rule 2: an action that may be repeated after a lost connection has a *token*, which shows
whether it was already done.
Rule 3: SQLite runs an action in one transaction. Postgres runs each statement in its own, so one
statement decides; after `LOCK`, which keeps other processes out, the rest is one transaction.
Rule 4: in a store that several processes share, each job has an *owner*, the process that is in
charge of it.
"""

import hmac
import re
from collections.abc import Collection, Generator, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, TypeVar

import attrs

from fuhu_runway.errors import JournalError
from fuhu_runway.models import usage_error

from .plans import hash_prompt, nth
from .states import CHARGE, INSTANT_OF, STEPS, Job, JobState, Plan

T = TypeVar("T")

Statement = tuple[str, Mapping[str, Any]]
Rows = Sequence[Mapping[str, Any]]
Action = Generator[Statement, Rows, T]

LONGEST: Final = 1e6
"""The longest that a task can take, in seconds; if a row says more, its timestamps are damaged."""

LOCK: Final = "SELECT pg_advisory_xact_lock(hashtext('fuhu_job'))"
"""In a shared store, lets one process at a time decide which job a task belongs to."""

_CHANGEABLE: Final = {field.name for field in attrs.fields(Job)} - {"key", "state"}
_UNFIT: Final = re.compile("[\0\ud800-\udfff]")


def nothing() -> Action[None]:
    yield from ()


# Plans


def plan(plan: Plan, now: float, salt: bytes | None, owner: str | None) -> Action[Job]:
    """Return the row of a job, made if there is none; the owner takes charge of it."""
    plan = keyed(plan, salt or (yield from read_salt()))
    return (yield from _plan(plan, now, owner))


def start_run() -> Action[None]:
    """Count occurrences of equal requests from zero."""
    yield "DELETE FROM temp.seen", {}


def plan_next(plan: Plan, now: float) -> Action[Job]:
    """Return the row of the next job with this content; its key counts the occurrences."""
    plan = keyed(plan, (yield from read_salt()))
    sql = (
        "INSERT INTO temp.seen VALUES (:fingerprint, 1) "
        "ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times"
    )
    (row,) = yield sql, {"fingerprint": plan.fingerprint}
    plan = attrs.evolve(plan, key=nth(plan.fingerprint, row["times"]))
    return (yield from _plan(plan, now, None))


def _plan(plan: Plan, now: float, owner: str | None) -> Action[Job]:
    check(now=now)
    values = {**attrs.asdict(plan), "state": JobState.PLANNED.value, "planned_at": now}
    if owner is None:
        # The line may have moved since an earlier run, or may not be known in this one.
        changed = "source = excluded.source WHERE excluded.source != coalesce(job.source, '')"
        sql = f"{_insert(values)} ON CONFLICT (key) DO UPDATE SET {changed} RETURNING *"
        rows = (yield sql, values) or (yield from _first("key", plan.key))
        return job_of(rows[0])
    values["owner"] = owner
    # Another process that was submitting it is dead or frozen: otherwise this one had not got it.
    changed = (
        "owner = :owner, source = coalesce(excluded.source, job.source), "
        f"state = CASE WHEN {_IS_ANOTHERS} THEN 'in doubt' ELSE job.state END, "
        f"error = CASE WHEN {_IS_ANOTHERS} THEN 'NoReply' ELSE job.error END"
    )
    sql = f"{_insert(values)} ON CONFLICT (key) DO UPDATE SET {changed} RETURNING *"
    (row,) = yield sql, values
    return job_of(row)


def _insert(values: Mapping[str, Any]) -> str:
    marks = ", ".join(f":{name}" for name in values)
    return f"INSERT INTO job ({', '.join(values)}) VALUES ({marks})"  # noqa: S608


_IS_ANOTHERS: Final = "job.state = 'submitting' AND job.owner IS DISTINCT FROM :owner"


def read_salt() -> Action[bytes]:
    (row,) = yield "SELECT salt FROM header", {}
    return bytes(row["salt"])


def key_plan(plan: Plan, salt: bytes | None) -> Action[Plan]:
    return keyed(plan, salt or (yield from read_salt()))


def keyed(plan: Plan, salt: bytes) -> Plan:
    """Return the plan with its hashes as this journal writes them."""
    check(**attrs.asdict(plan))
    mark = plan.prompt_hash and _keyed(plan.prompt_hash, salt)
    return attrs.evolve(plan, fingerprint=_keyed(plan.fingerprint, salt), prompt_hash=mark)


def _keyed(mark: str, salt: bytes) -> str:
    # A journal of the first versions has no salt.
    return hmac.new(salt, mark.encode(), "sha256").hexdigest() if salt else mark


def hash_prompts(prompts: Sequence[str], salt: bytes | None) -> Action[list[str]]:
    """Return the hashes of prompts as the rows have them."""
    salt = salt or (yield from read_salt())
    return [_keyed(hash_prompt(prompt), salt) for prompt in prompts]


# Steps


def step(
    key: str,
    to: JobState,
    now: float,
    changes: Mapping[str, Any],
    *,
    before: Collection[JobState] = tuple(JobState),
    attempt: int | None = None,
    owner: str | None = None,
    token: str | None = None,
) -> Action[Job]:
    """
    Move a job that is in one of the states *before* to its next state, and return the row.

    A single statement decides: of several processes, one may move a job from PLANNED to SUBMITTING.
    With a *token*, which is written to the row, it may be repeated: it is done once.
    """
    check(key=key, now=now, **changes)
    for name in changes.keys() - _CHANGEABLE:
        raise journal_error(f"A step cannot change {name!r}.", "Name a column of the journal.")
    values = {**_CLEARED_BY.get(to, {}), **changes, "state": to.value}
    if token is not None:
        values["token"] = token
    setters = {"submissions": "submissions + 1"} if to is JobState.SUBMITTING else {}
    setters |= {name: f":{name}" for name in values}
    if to in INSTANT_OF:
        # `durations` relies on these instants, so saving a clip again must not change them.
        instant = INSTANT_OF[to]
        setters[instant] = f"CASE state WHEN 'saved' THEN {instant} ELSE :now END"
    where = f"key = :key AND state IN ({words_of(leading_to(to) & set(before))})"
    if attempt is not None:
        where += " AND submissions = :attempt"
    if owner is not None and to is JobState.SUBMITTING:
        where += " AND owner = :owner"
    assignments = ", ".join(f"{name} = {value}" for name, value in setters.items())
    rows = yield (
        f"UPDATE job SET {assignments} WHERE {where} RETURNING *",  # noqa: S608
        {**values, "key": key, "now": now, "attempt": attempt, "owner": owner},
    )
    if rows:
        return job_of(rows[0])
    rows = yield from _first("key", key)
    if not rows:
        raise unknown(key)
    job = job_of(rows[0])
    if token is not None and rows[0]["token"] == token:
        return job
    if to in STEPS[job.state] and job.state in before:
        raise JournalError(
            f"Another process has taken over the job {key!r}.",
            "Nothing was sent or charged by this process.",
            "Deliver it again later, or see `fuhu-runway jobs`.",
        )
    raise journal_error(
        f"A job that is {job.state.value} cannot become {to.value}.",
        "List the jobs with `fuhu-runway jobs`.",
    )


_CLEARED_BY: Final[Mapping[JobState, Mapping[str, None]]] = {
    JobState.PLANNED: {"task_id": None},
    JobState.SUBMITTING: {"error": None, "code": None, "proof": None},
    JobState.ACCEPTED: {"error": None, "code": None},
}
"""The columns that a step clears, unless it sets them."""


def undo(key: str, token: str) -> Action[None]:
    """Take back a step to SUBMITTING that was not followed by a request."""
    sql = (
        "UPDATE job SET state = 'planned', submissions = submissions - 1 "
        "WHERE key = :key AND state = 'submitting' AND token = :token"
    )
    yield sql, {"key": key, "token": token}


def leading_to(state: JobState) -> set[JobState]:
    return {before for before, following in STEPS.items() if state in following}


def words_of(states: Collection[JobState]) -> str:
    """Return states as a list in a statement, in the order of the enum."""
    return ", ".join(f"'{state.value}'" for state in JobState if state in states) or "NULL"


def resolve(
    key: str, task_id: str | None, proof: str, now: float, token: str | None
) -> Action[Job]:
    """Settle a job in doubt: accepted as a task, or not accepted."""
    check(key=key, task_id=task_id, proof=proof)
    done = yield from _done(token, "(key = :name OR custom_id = :name)", key)
    if done is not None:
        return done
    job = (yield from look_up("key", key)) or (yield from look_up("custom_id", key))
    if job is None:
        raise usage_error("key", "The journal has no such job.", "Use a key from jobs().")
    if job.state is not JobState.IN_DOUBT:
        raise usage_error("key", f"The job is {job.state.value}.", "There is nothing to resolve.")
    to, changes = JobState.PLANNED, {"proof": proof}
    if task_id is not None:
        # The job's own id may belong to another job: some gateways use one id twice.
        if task_id != job.task_id and (yield from look_up("task_id", task_id)):
            raise _belongs_to_another()
        to, changes["task_id"] = JobState.ACCEPTED, task_id
    return (yield from step(job.key, to, now, changes, before=(JobState.IN_DOUBT,), token=token))


def charge(key: str) -> Action[None]:
    """Record that the gateway's log shows a charge for a job in doubt."""
    check(key=key)
    where = "key = :key AND state = 'in doubt'"
    yield f"UPDATE job SET proof = :proof WHERE {where}", {"key": key, "proof": CHARGE}  # noqa: S608


def adopt(
    task_id: str,
    endpoint: str,
    now: float,
    *,
    model: str | None,
    salt: bytes | None,
    owner: str | None,
    token: str | None,
) -> Action[Job]:
    """Make a row for a task that no job has."""
    check(task_id=task_id, endpoint=endpoint, now=now, model=model)
    done = yield from _done(token, "task_id = :name", task_id)
    if done is not None:
        return done
    if (yield from look_up("task_id", task_id)):
        raise _belongs_to_another()
    key = f"task:{task_id}"
    mark = _keyed(sha256(key.encode()).hexdigest(), salt or (yield from read_salt()))
    values = {
        "key": key,
        "fingerprint": mark,
        "endpoint": endpoint,
        "model": model,
        "state": JobState.ACCEPTED.value,
        "task_id": task_id,
        "planned_at": now,
        "accepted_at": now,
    }
    if owner is not None:
        values |= {"owner": owner, "token": token}
    rows = yield f"{_insert(values)} ON CONFLICT (key) DO NOTHING RETURNING *", values
    if not rows:
        raise _belongs_to_another()
    return job_of(rows[0])


def _done(token: str | None, where: str, name: str) -> Action[Job | None]:
    """In a shared store, lock out other processes; return the row if this was done before."""
    if token is None:
        return None
    yield LOCK, {}
    sql = f"SELECT * FROM job WHERE {where} AND token = :token"  # noqa: S608
    rows = yield sql, {"name": name, "token": token}
    return job_of(rows[0]) if rows else None


def _belongs_to_another() -> Exception:
    return usage_error("task_id", "This task belongs to another job.", "Use another task id.")


def ignore(task_ids: Sequence[str]) -> Action[None]:
    check(**{f"task_id {n}": task_id for n, task_id in enumerate(task_ids)})
    for task_id in task_ids:
        yield "INSERT INTO ignored VALUES (:task_id) ON CONFLICT DO NOTHING", {"task_id": task_id}


def ignored() -> Action[set[str]]:
    return {row["task_id"] for row in (yield "SELECT task_id FROM ignored", {})}


def forget(key: str, state: JobState | None) -> Action[None]:
    """Remove a row, if it is in this state; None: in any."""
    check(key=key)
    sql = "DELETE FROM job WHERE key = :key AND state = coalesce(:state, state) RETURNING key"
    if not (yield sql, {"key": key, "state": state and state.value}):
        raise unknown(key)


# Reading


def look_up(column: str, value: str) -> Action[Job | None]:
    """Return the first job with a value in a column."""
    rows = yield from _first(column, value)
    return job_of(rows[0]) if rows else None


def _first(column: str, value: str) -> Action[Rows]:
    sql = f"SELECT * FROM job WHERE {column} = :value ORDER BY rowid LIMIT 1"  # noqa: S608
    return (yield sql, {"value": value})


def find(name: str) -> Action[Job | None]:
    """Return the first job with this key, task id or custom id."""
    if not fits(name):
        return None
    # One after the other: a single query would scan the whole table.
    for column in ("key", "task_id", "custom_id"):
        job = yield from look_up(column, name)
        if job is not None:
            return job
    return None


def jobs_of(plan: Plan, salt: bytes | None) -> Action[list[Job]]:
    """Return the jobs with this content, in the order in which they were planned."""
    mark = keyed(plan, salt or (yield from read_salt())).fingerprint
    sql = "SELECT * FROM job WHERE fingerprint = :mark ORDER BY planned_at, rowid"
    return [job_of(row) for row in (yield sql, {"mark": mark})]


def jobs(states: Collection[JobState]) -> Action[list[Job]]:
    """Return the jobs in these states, or all, in the order in which they were planned."""
    # Without states, all rows: also those whose state is damaged, which are an error.
    where = f"WHERE state IN ({words_of(states)})" if states else ""
    sql = f"SELECT * FROM job {where} ORDER BY planned_at, rowid"  # noqa: S608
    return [job_of(row) for row in (yield sql, {})]


def counts() -> Action[dict[JobState, int]]:
    """Return how many jobs are in each state."""
    rows = yield "SELECT state, count(*) AS times FROM job GROUP BY state", {}
    return dict.fromkeys(JobState, 0) | {_state(row["state"]): row["times"] for row in rows}


def durations() -> Action[list[tuple[str, str | None, int | None, float]]]:
    """Return (endpoint, model, seconds, duration in seconds) of finished jobs, the latest first."""
    sql = (
        "SELECT endpoint, model, seconds, finished_at - accepted_at AS took FROM job "
        "WHERE finished_at - accepted_at > 0 AND finished_at - accepted_at < :longest "
        "ORDER BY finished_at DESC LIMIT 5000"
    )
    rows = yield sql, {"longest": LONGEST}
    return [(row["endpoint"], row["model"], row["seconds"], row["took"]) for row in rows]


def job_of(row: Mapping[str, Any]) -> Job:
    """Return a row as a job, without the columns that only a shared store has."""
    values = {**dict(row), "state": _state(row["state"])}
    for name in ("rowid", "owner", "token"):
        values.pop(name, None)
    return Job(**values)


def _state(word: str) -> JobState:
    try:
        return JobState(word)
    except ValueError:
        raise journal_error(
            f"The journal is damaged: the state of a job is {word[:40]!r}.",
            "Restore an earlier copy.",
        ) from None


# Values


def fits(value: object) -> bool:
    """Return whether a journal can hold a value."""
    if isinstance(value, str):
        return not _UNFIT.search(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, float)


def check(**values: object) -> None:
    """Raise a `JournalError` that names the first value that a journal cannot hold."""
    for name, value in values.items():
        if not fits(value):
            raise journal_error(
                f"The journal cannot hold this {name}.",
                "Use text without NUL and lone surrogates, and whole numbers of up to 64 bits.",
            )


def unknown(key: str) -> JournalError:
    return journal_error(f"The journal has no job {key!r}.", "List them with `fuhu-runway jobs`.")


def journal_error(happened: str, advice: str) -> JournalError:
    return JournalError(happened, "Nothing was sent or charged.", advice)
