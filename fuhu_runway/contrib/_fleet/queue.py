"""
The queue of a fleet: procrastinate's jobs, and the requests that they stand for.

Rule 1: a job of procrastinate carries a key and nothing else, so that its log lines show no prompt.
Rule 2: a request is kept until its job is saved or has failed, so that it can be delivered again.
Rule 3: while the database cannot be reached, every call waits, and the log says so once.
"""

import asyncio
import importlib.metadata
import logging
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import procrastinate
import psycopg
from procrastinate import exceptions, jobs
from procrastinate.schema import SchemaManager
from psycopg.abc import PQGen

from fuhu_runway._http.shared import Report, SharedState
from fuhu_runway.contrib._postgres import answered, options_of, reason_of
from fuhu_runway.errors import JournalBusy, JournalError, JournalTooNew
from fuhu_runway.hooks import LOGGER
from fuhu_runway.journal import JobState
from fuhu_runway.models import usage_error

T = TypeVar("T")

QUEUE: Final = "fuhu"
TASK: Final = "fuhu:deliver"

AGAIN: Final = 10
"""Priority of jobs that a worker left behind: they may be paid for, so they precede new ones."""

CHUNK: Final = 200
"""How many requests one statement adds."""

SCHEMA_VERSION: Final = "1"
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS fuhu_fleet (
    -- schema, procrastinate: versions. key: a hash of the API key and the gateway.
    -- source:NAME: a hash of what was enqueued under a name.
    name  text PRIMARY KEY,
    value text NOT NULL
);
CREATE TABLE IF NOT EXISTS fuhu_request (
    -- The key of the job in the journal.
    key          text PRIMARY KEY,
    -- Keyed hash of the request, as the journal has it.
    fingerprint  text NOT NULL,
    -- The request as JSON, or that encrypted.
    body         bytea NOT NULL,
    is_encrypted boolean NOT NULL,
    added_at     timestamptz NOT NULL DEFAULT now()
);
-- A job that was forgotten must not be delivered: without its row, it would be sent again.
CREATE OR REPLACE FUNCTION fuhu_forget() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN DELETE FROM fuhu_request WHERE key = OLD.key; RETURN NULL; END';
DROP TRIGGER IF EXISTS fuhu_forget ON fuhu_job;
CREATE TRIGGER fuhu_forget AFTER DELETE ON fuhu_job
    FOR EACH ROW EXECUTE FUNCTION fuhu_forget();
"""

PAUSE: Final = 0.5
"""Seconds between two attempts to reach the database."""
_RAISED: Final = "P0001"
"""The SQLSTATE with which a function of procrastinate says that there is no such job."""
_CANCELED: Final = "57014"
"""The SQLSTATE of a statement that took longer than `statement_timeout`."""
_GONE: Final = ("08", "53", "57P")
"""How the SQLSTATEs of passing errors begin: no connection, too many, a restart."""

_LOCK: Final = 0x66756875
"""Key of the advisory locks: "fuhu" in ASCII."""

_ADD: Final = """
INSERT INTO fuhu_request (key, fingerprint, body, is_encrypted)
SELECT g.key, g.fingerprint, g.body, %(is_encrypted)s
  FROM unnest(%(keys)s::text[], %(fingerprints)s::text[], %(bodies)s::bytea[])
    AS g (key, fingerprint, body)
  LEFT JOIN fuhu_job j USING (key)
 WHERE coalesce(j.state, 'planned') <> ALL (%(over)s::text[]) AND j.handed_out_at IS NULL
ON CONFLICT DO NOTHING
RETURNING key
"""

_OTHERS: Final = """
SELECT g.key
  FROM unnest(%(keys)s::text[], %(fingerprints)s::text[]) AS g (key, fingerprint)
  LEFT JOIN fuhu_request r USING (key)
  LEFT JOIN fuhu_job j USING (key)
 WHERE g.fingerprint <> coalesce(j.fingerprint, r.fingerprint)
 LIMIT 1
"""

_TAKE: Final = """
SELECT r.body, r.is_encrypted, coalesce(j.state, 'planned') AS state
  FROM fuhu_request r LEFT JOIN fuhu_job j USING (key) WHERE r.key = %(key)s
"""

_REMOVE: Final = "DELETE FROM fuhu_request WHERE key = %(key)s RETURNING key"

# Everything in flight anywhere, and what this worker is about to send.
_IN_FLIGHT: Final = """
SELECT (SELECT count(*) FROM fuhu_job WHERE state = ANY (%(states)s::text[]))
     + (SELECT count(*) FROM unnest(%(started)s::text[]) AS g (key)
          LEFT JOIN fuhu_job j USING (key) WHERE coalesce(j.state, 'planned') = 'planned')
    AS number
"""

_SPENT: Final = """
SELECT coalesce(sum(points), 0)::float8 AS points FROM fuhu_job WHERE refunded = 0
"""

_ABANDONED: Final = """
SELECT r.key FROM fuhu_request r LEFT JOIN fuhu_job j USING (key)
 WHERE r.added_at < now() - make_interval(secs => %(grace)s)
   AND coalesce(j.state, 'planned') <> 'in doubt'
   AND NOT EXISTS (
         SELECT FROM procrastinate_jobs q
          WHERE q.lock = r.key AND q.status IN ('todo', 'doing'))
 ORDER BY r.added_at LIMIT 1000
"""

_ENDED: Final = """
SELECT j.key, j.state FROM fuhu_job j LEFT JOIN fuhu_request r USING (key)
 WHERE j.state IN ('saved', 'failed', 'in doubt') OR j.state = 'finished' AND r.key IS NULL
 ORDER BY j.planned_at
"""

_LEFT: Final = """
SELECT count(*) AS number FROM fuhu_request r LEFT JOIN fuhu_job j USING (key)
 WHERE coalesce(j.state, 'planned') <> 'in doubt'
"""

_WORKERS: Final = """
SELECT w.id, extract(epoch FROM now() - w.last_heartbeat)::float8 AS heartbeat_age,
       count(q.id) AS jobs
  FROM procrastinate_workers w
  LEFT JOIN procrastinate_jobs q ON q.worker_id = w.id AND q.status = 'doing'
 GROUP BY w.id ORDER BY w.id
"""

_UNKNOWN: Final = """
SELECT id, lock FROM procrastinate_jobs
 WHERE worker_id = %(worker_id)s AND status = 'doing' AND id <> ALL (%(known)s::bigint[])
"""

# A worker without a job so far has no id; then the reply shows only that the database is there.
_HEARTBEAT_AGE: Final = """
SELECT coalesce(extract(epoch FROM now() - w.last_heartbeat)::float8,
                CASE WHEN g.id IS NULL THEN 0 ELSE 'infinity'::float8 END) AS age
  FROM (SELECT %(worker_id)s::bigint AS id) AS g LEFT JOIN procrastinate_workers w USING (id)
"""

_ENTRIES: Final = """
SELECT count(*) FILTER (WHERE status = 'todo' AND coalesce(scheduled_at, now()) <= now()) AS ready,
       count(*) FILTER (WHERE status = 'todo' AND scheduled_at > now()) AS scheduled,
       count(*) FILTER (WHERE status = 'doing') AS running
  FROM procrastinate_jobs WHERE queue_name = %(queue)s
"""

_PACE: Final = """
SELECT p.state, extract(epoch FROM clock_timestamp())::float8 AS now
  FROM fuhu_fleet f JOIN fuhu_pace p ON p.key = f.value WHERE f.name = 'key'
"""


class Connection(psycopg.AsyncConnection[Any]):
    """A connection of the pool; it is closed if the server does not answer in time."""

    async def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Return the result of a statement; psycopg calls this."""
        return await super().wait(answered(self.pgconn, gen), *args, **kwargs)

    def __repr__(self) -> str:
        return "<connection of the queue>"


_RETRY_AT: Final = ("%(retry_at)s", "now() + %(delay)s")

_SESSION: Final = (
    "SELECT set_config('statement_timeout', '20s', false),"
    " set_config('idle_in_transaction_session_timeout', '20s', false)"
)
"""Sent once for each connection: a worker that is frozen must not hold a lock for longer. Not among
the options of the connection, which the URL may have, and which a pooler refuses.
"""


async def _configure(connection: Any) -> None:
    await connection.execute(_SESSION)
    await connection.commit()


class Connector(procrastinate.PsycopgConnector):
    """procrastinate's connector, which waits while the database cannot be reached."""

    #: Whether calls fail at once, because this worker's lease has expired.
    has_expired = False
    #: Whether the log says that the database cannot be reached.
    _is_gone = False

    async def open_async(self, pool: Any = None) -> None:
        """Open the pool of connections."""
        with _translated():
            await super().open_async(pool)

    async def execute_query_async(self, query: Any, **arguments: Any) -> None:
        """Execute a query."""
        run = super().execute_query_async

        async def call() -> None:
            values, statement = arguments, query
            if "retry_at" in arguments:
                # By the clock of the database, which decides when it is time: that of the worker
                # may be hours ahead.
                values = {**arguments, "delay": arguments["retry_at"] - datetime.now(UTC)}
                statement = query.replace(*_RETRY_AT)
            await run(statement, **values)

        try:
            await self._retried(call)
        except exceptions.ConnectorException as error:
            # Another worker has removed the entry, or this one has and the reply was lost.
            if _code(error) != _RAISED:
                raise

    async def execute_query_one_async(self, query: Any, **arguments: Any) -> dict[str, Any]:
        """Execute a query, and return its row."""
        call = super().execute_query_one_async
        return await self._retried(lambda: call(query, **arguments))

    async def execute_query_all_async(self, query: Any, **arguments: Any) -> list[dict[str, Any]]:
        """Execute a query, and return its rows."""
        call = super().execute_query_all_async
        return await self._retried(lambda: call(query, **arguments))

    async def listen_notify(self, on_notification: Any, channels: Iterable[str]) -> None:
        """Report new entries of the queue, also after the connection was lost."""
        call = super().listen_notify
        await self._retried(lambda: call(on_notification, channels))

    async def _retried(self, call: Callable[[], Awaitable[T]]) -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (it runs in a loop)
        cancelled = task.cancelling()
        while True:
            answer, failure = None, None
            try:
                answer = await call()
            except exceptions.ConnectorException as error:
                failure = error
            if task.cancelling() > cancelled:
                # psycopg may report that the query was cancelled, or return its answer.
                raise asyncio.CancelledError
            if failure is None:
                if self._is_gone:
                    LOGGER.warning("The database can be reached again.")
                self._is_gone = False
                return answer  # type: ignore[return-value]
            # Without a cause, the database has answered.
            if self.has_expired or failure.__cause__ is None or _code(failure) == _RAISED:
                raise failure
            if not _is_gone(failure):
                raise error_of(failure.__cause__) from failure
            if not self._is_gone:
                LOGGER.warning("The database cannot be reached. Everything waits for it.")
            self._is_gone = True
            await asyncio.sleep(PAUSE)


@contextmanager
def _translated() -> Iterator[None]:
    """Raise our errors in place of psycopg's and procrastinate's."""
    fault: BaseException
    try:
        yield
    except psycopg.Error as error:
        fault = error
    except exceptions.ConnectorException as error:
        fault = error.__cause__ or error
    else:
        return
    raise error_of(fault)  # outside of the clause: the cause may quote addresses


def _code(error: BaseException) -> str | None:
    return getattr(error.__cause__, "sqlstate", None)


def _is_gone(error: BaseException) -> bool:
    """Return whether the database could not be reached."""
    code = _code(error)
    if code is None:  # it has not answered, unless a value could not be sent to it
        return isinstance(error.__cause__, psycopg.OperationalError | psycopg.InterfaceError)
    return code.startswith(_GONE)


def error_of(fault: BaseException) -> JournalError:
    """Return our error for one of psycopg's."""
    money = "Nothing was sent or charged."
    code = getattr(fault, "sqlstate", None)
    if code == _CANCELED:
        return JournalBusy(
            "Another process holds a lock on the fleet's tables, for longer than 20 s.",
            money,
            "Wait until it is done, such as another `fleet init`, and try again.",
        )
    if code is None and isinstance(fault, psycopg.OperationalError | psycopg.InterfaceError):
        return JournalError(
            f"The database of the fleet cannot be used: {reason_of(fault)}.",
            money,
            "Check that it runs and has free connections, then try again.",
        )
    what = type(fault).__name__ if code is None else f"SQLSTATE {code}"
    return JournalError(
        f"The database refused a statement of the queue ({what}).",
        money,
        "Look up the code in the manual of Postgres, and update the tables with `fleet init`.",
    )


def _names_no_host(record: logging.LogRecord) -> bool:
    # The pool's own log lines name the host and its address. The connector logs what matters.
    return not isinstance(record.args, tuple) or QUEUE not in record.args


logging.getLogger("psycopg.pool").addFilter(_names_no_host)


@attrs.frozen
class Waiting:
    """A request, and the state of its job."""

    body: bytes
    is_encrypted: bool
    state: JobState


@attrs.define(eq=False)
class Queue:
    """The queue in one database."""

    url: str = attrs.field(repr=False)
    app: procrastinate.App = attrs.field(init=False)
    connector: Connector = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.connector = Connector(
            kwargs=options_of(self.url),
            configure=_configure,
            connection_class=Connection,
            name=QUEUE,
            min_size=1,
            max_size=4,
            # For a connection of the pool; a worker whose lease has expired waits so long to end.
            timeout=2.0,
        )
        self.app = procrastinate.App(connector=self.connector)

    # Set-up

    async def init(self) -> None:
        """Make the tables, or bring them up to date."""
        async with self._lock("SELECT pg_advisory_xact_lock(%s)"):
            has_jobs = await self.app.check_connection_async()
            await self.connector.execute_query_async(SCHEMA)
            installed = importlib.metadata.version("procrastinate")
            known = await self.values()
            _check_version(known.get("schema", SCHEMA_VERSION), SCHEMA_VERSION, "fuhu_runway")
            # If the user's own App made the tables, updating them is up to the user, too.
            made_by = known.get("procrastinate", "0" if has_jobs else installed)
            if not has_jobs:
                await self.app.schema_manager.apply_schema_async()
            elif made_by != "0":
                _check_version(made_by, installed, "procrastinate")
                for script in migrations(made_by):
                    await self.connector.execute_query_async(script.replace("%", "%%"))
                made_by = installed
            for name, value in {"schema": SCHEMA_VERSION, "procrastinate": made_by}.items():
                await self.set(name, value)

    async def check(self) -> None:
        """Raise unless the tables are there, and of this version."""
        sql = "SELECT to_regclass('fuhu_fleet') AS name"
        row = await self.connector.execute_query_one_async(sql)
        known = await self.values() if row["name"] else {}
        if known.get("schema") is None:
            raise usage_error(
                "url",
                "The database has no tables of a fleet.",
                "Make them with `fuhu-runway fleet init`, or `await fleet.init()`.",
            )
        _check_version(known["schema"], SCHEMA_VERSION, "fuhu_runway")

    async def values(self) -> dict[str, str]:
        """Return the settings that the fleet has stored."""
        rows = await self.connector.execute_query_all_async("SELECT name, value FROM fuhu_fleet")
        return {row["name"]: row["value"] for row in rows}

    async def set(self, name: str, value: str) -> None:
        """Store a setting of the fleet, replacing an earlier value."""
        sql = "INSERT INTO fuhu_fleet VALUES (%(name)s, %(value)s) ON CONFLICT (name) DO UPDATE "
        await self.connector.execute_query_async(
            f"{sql} SET value = excluded.value", name=name, value=value
        )

    async def set_once(self, name: str, value: str) -> bool:
        """Store a setting that must not change; return whether it has this value."""
        sql = "INSERT INTO fuhu_fleet VALUES (%(name)s, %(value)s) ON CONFLICT DO NOTHING"
        await self.connector.execute_query_async(sql, name=name, value=value)
        return (await self.values())[name] == value

    @asynccontextmanager
    async def _lock(self, sql: str) -> AsyncIterator[bool]:
        """Hold an advisory lock; yield whether it was taken, since *sql* may not wait for it."""
        with _translated():
            async with self.connector.pool.connection() as connection:
                row = await (await connection.execute(sql, (_LOCK,))).fetchone()
                yield row is not None and row[0] is not False

    # Requests

    async def check_names(self, keys: Sequence[str], fingerprints: Sequence[str]) -> None:
        """Raise if one of these keys belongs to another request."""
        other = await self.connector.execute_query_all_async(
            _OTHERS, keys=keys, fingerprints=fingerprints
        )
        if other:
            raise usage_error(
                "custom_id",
                f"The name {other[0]['key'].removeprefix('id:')!r} belongs to another request.",
                "Give each request a name of its own.",
            )

    async def add(
        self, rows: Sequence[tuple[str, str, bytes]], *, is_encrypted: bool, again: bool
    ) -> int:
        """
        Add (key, fingerprint, body) of requests that are not there and not over.

        Returns how many are new. *again* includes jobs that have failed.
        """
        keys, fingerprints, bodies = map(list, zip(*rows, strict=True))
        await self.check_names(keys, fingerprints)
        over = [JobState.SAVED.value] + [JobState.FAILED.value] * (not again)
        found = await self.connector.execute_query_all_async(
            _ADD,
            keys=keys,
            fingerprints=fingerprints,
            bodies=bodies,
            is_encrypted=is_encrypted,
            over=over,
        )
        new = {row["key"] for row in found}
        await self.put([key for key in keys if key in new])
        return len(new)

    async def put(self, keys: Sequence[str], priority: int = 0) -> None:
        """Add these jobs to the queue, for workers to take."""
        # `requeue_lost` adds those that an error leaves out.
        with suppress(exceptions.AlreadyEnqueued):
            await self.app.job_manager.batch_defer_jobs_async(
                [
                    jobs.Job(
                        queue=QUEUE,
                        lock=key,
                        queueing_lock=key,
                        task_name=TASK,
                        task_kwargs={"key": key},
                        priority=priority,
                    )
                    for key in keys
                ]
            )

    async def take(self, key: str) -> Waiting | None:
        """Return the request of a job; None if it was cancelled, or is over."""
        for row in await self.connector.execute_query_all_async(_TAKE, key=key):
            return Waiting(bytes(row["body"]), row["is_encrypted"], JobState(row["state"]))
        return None

    async def remove(self, key: str) -> bool:
        """Remove the request of a job; return whether there was one."""
        return bool(await self.connector.execute_query_all_async(_REMOVE, key=key))

    # Limits

    async def in_flight(self, started: Iterable[str]) -> int:
        """Return how many tasks are in flight, or about to be because of the keys in *started*."""
        states = [state.value for state in JobState if state.is_in_flight]
        row = await self.connector.execute_query_one_async(
            _IN_FLIGHT, states=states, started=list(started)
        )
        return int(row["number"])

    async def spent(self) -> float:
        """Return the points of all jobs, without those that were refunded."""
        row = await self.connector.execute_query_one_async(_SPENT)
        return float(row["points"])

    # What dead workers leave behind

    async def requeue_lost(self, lease: float) -> None:
        """Requeue the jobs of dead workers, and those that have no entry in the queue."""
        manager = self.app.job_manager
        async with self._lock("SELECT pg_try_advisory_xact_lock(%s)") as is_mine:
            if not is_mine:  # another worker does it
                return
            stalled = await manager.get_stalled_jobs(queue=QUEUE, seconds_since_heartbeat=lease)
            await self.hand_over([(job.id, job.lock) for job in stalled])
            await manager.prune_stalled_workers(lease)
            rows = await self.connector.execute_query_all_async(_ABANDONED, grace=lease)
            for row in rows:
                await self.put([row["key"]], AGAIN)

    async def hand_over(self, entries: Iterable[tuple[Any, Any]]) -> None:
        """Replace entries, each an id and a key, whose worker is dead or does not know of them."""
        for entry, key in entries:
            # A new entry, which the worker cannot remove if it was only frozen. It waits for the
            # old one, since they have the same lock.
            await self.put([key], AGAIN)
            await self.app.job_manager.finish_job_by_id_async(
                entry, jobs.Status.ABORTED, delete_job=True
            )

    async def unknown(self, worker_id: int, known: Iterable[int]) -> dict[int, str]:
        """Return the keys of the entries that a worker holds, without the *known* ones, by id."""
        rows = await self.connector.execute_query_all_async(
            _UNKNOWN, worker_id=worker_id, known=list(known)
        )
        return {row["id"]: row["lock"] for row in rows}

    async def heartbeat_age(self, worker_id: int | None) -> float:
        """Return the seconds since a worker's last heartbeat; infinity if others removed it."""
        row = await self.connector.execute_query_one_async(_HEARTBEAT_AGE, worker_id=worker_id)
        return float(row["age"])

    # For people

    async def cancel(self, key: str, lease: float) -> bool:
        """Remove a job, wait until no living worker has it, and return whether it was there."""
        had_request, manager = await self.remove(key), self.app.job_manager
        had_entry = False
        while live := [
            job
            for job in await manager.list_jobs_async(queue=QUEUE, lock=key)
            if job.status in {"todo", "doing"}
        ]:
            had_entry = True
            for job in live:
                assert job.id is not None  # noqa: S101  (it is from the database)
                await manager.cancel_job_by_id_async(job.id, abort=True, delete_job=True)
            for job in await manager.get_stalled_jobs(queue=QUEUE, seconds_since_heartbeat=lease):
                if job.lock == key and job.id is not None:
                    await manager.finish_job_by_id_async(
                        job.id, jobs.Status.ABORTED, delete_job=True
                    )
            await asyncio.sleep(PAUSE)
        return had_request or had_entry

    async def ended(self) -> list[tuple[str, str]]:
        """Return the key and state of each job that has ended or is in doubt."""
        rows = await self.connector.execute_query_all_async(_ENDED)
        return [(row["key"], row["state"]) for row in rows]

    async def left(self) -> int:
        """Return how many jobs are to be delivered, or are being carried out."""
        return int((await self.connector.execute_query_one_async(_LEFT))["number"])

    async def workers(self) -> list[dict[str, Any]]:
        """Return the workers, the age of their last heartbeat, and how many jobs they hold."""
        return await self.connector.execute_query_all_async(_WORKERS)

    async def entries(self) -> dict[str, int]:
        """Return how many entries are ready, scheduled for later, and with a worker."""
        return await self.connector.execute_query_one_async(_ENTRIES, queue=QUEUE)

    async def pace(self) -> tuple[float | None, float]:
        """Return the rate of all workers, if there is one, and how long nothing is to be sent."""
        reader = Report(worker="", at_most=None, max_hold=0.0)
        for row in await self.connector.execute_query_all_async(_PACE):
            pace = SharedState.load(row["state"], reader, row["now"]).pace
            return pace.rate if pace.rate < math.inf else None, max(
                0.0, pace.hold_until - row["now"]
            )
        return None, 0.0


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _check_version(found: str, known: str, package: str) -> None:
    if _numbers(found) > _numbers(known):
        raise JournalTooNew(
            f"A newer version of {package} made the fleet's tables.",
            "Nothing was sent or charged.",
            f"Install that version of {package} here as well.",
        )


def migrations(version: str) -> list[str]:
    """Return procrastinate's scripts for tables of an older *version*, in their order."""
    folder = Path(SchemaManager.get_migrations_path())
    scripts = sorted(folder.glob("*.sql"))
    return [one.read_text() for one in scripts if _numbers(one.name) > _numbers(version)]
