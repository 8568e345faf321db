"""
The connection of a journal to its Postgres database: opened, checked, and reopened.

Rule 1: no error and no log line has the password, the host or an address of the database.
Rule 2: a database that was never reached is an error at once; later, the journal waits for it.
"""

import contextlib
import os
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, LiteralString, Self, TypeVar

import attrs

from fuhu_runway._journal import actions
from fuhu_runway._journal.actions import Action, journal_error
from fuhu_runway.errors import JournalError, JournalTooNew
from fuhu_runway.hooks import LOGGER
from fuhu_runway.journal import DATABASE_VARIABLE
from fuhu_runway.models import usage_error

try:
    import psycopg
    from psycopg.abc import PQGen
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.pq import TransactionStatus
    from psycopg.pq.abc import PGconn
    from psycopg.rows import dict_row
except ImportError as missing:
    raise ImportError(
        "fuhu_runway.contrib.postgres needs an extra; in a checkout: "
        'python -m pip install ".[postgres]"',
        name=missing.name,
    ) from missing

T = TypeVar("T")

SCHEMA_VERSION: Final = 1

# The columns are those of the file, and mean the same; here they are commented in the file.
SCHEMA: Final = """
CREATE TABLE fuhu_job (
    -- The order in which jobs were planned.
    rowid         bigint GENERATED ALWAYS AS IDENTITY,
    key           text NOT NULL PRIMARY KEY,
    custom_id     text,
    fingerprint   text NOT NULL,
    endpoint      text NOT NULL,
    model         text,
    seconds       bigint,
    state         text NOT NULL,
    task_id       text,
    submissions   bigint NOT NULL DEFAULT 0,
    error         text,
    code          text,
    points        double precision,
    refunded      integer NOT NULL DEFAULT 0,
    file_bytes    bigint,
    planned_at    double precision NOT NULL,
    submitted_at  double precision,
    accepted_at   double precision,
    finished_at   double precision,
    saved_at      double precision,
    traceparent   text,
    tag           text,
    handed_out_at double precision,
    source        text,
    prompt_hash   text,
    proof         text,
    -- The process that took charge of the job last, by a random name.
    owner         text,
    -- The last step, by a random name: it is known again if the connection was lost meanwhile.
    token         text
);
CREATE INDEX fuhu_job_by_state ON fuhu_job (state);
CREATE INDEX fuhu_job_by_task ON fuhu_job (task_id);
CREATE INDEX fuhu_job_by_custom_id ON fuhu_job (custom_id);
CREATE TABLE fuhu_ignored (task_id text NOT NULL PRIMARY KEY);
CREATE TABLE fuhu_header (
    version integer NOT NULL,
    salt    bytea NOT NULL
);
"""

MIGRATIONS: Final[Mapping[int, str]] = {}
"""The script from each older version to the next; a new database gets the current schema."""

OPTIONS: Final[Mapping[str, Any]] = {
    "application_name": "fuhu_runway",
    "connect_timeout": 10,
    # A connection that is dropped silently is noticed within 20 seconds.
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}
"""The options of a connection unless the URL sets them."""

# `to_regclass` would answer from a cache that does not know what another process just made.
SESSION: Final = (
    "SELECT set_config('statement_timeout', '20s', false),"
    " set_config('idle_in_transaction_session_timeout', '20s', false),"
    " current_setting('synchronous_commit') AS synchronous_commit,"
    " EXISTS (SELECT FROM pg_class WHERE relname = 'fuhu_header' AND pg_table_is_visible(oid))"
    " AS has_tables"
)
"""Sent once for each connection; a frozen process must not hold a row lock for longer."""

DOUBT: Final = (
    "UPDATE fuhu_job SET state = 'in doubt', error = coalesce(error, 'NoReply')"
    " WHERE state = 'submitting' AND owner = %s"
)
"""Sent before the connection is closed."""

ANSWER: Final = 25.0
"""How long the server may take to answer, in seconds; it cancels a statement itself after 20. If
more, a network that acknowledges packets but delivers none is noticed later.
"""

REASONS: Final[Mapping[str, str]] = {
    "invalid .*(value|number)|bad value": "a value in its URL is wrong",
    "password": "the user or the password is wrong",
    "pg_hba": "it does not let this user or host in",
    "database .* does not exist": "there is no database with this name",
    "role .* does not exist": "the user or the password is wrong",
    "translate host|resolve|Name or service": "its host is unknown",
    "refused|No such file": "no server runs there",
    "statement timeout": "another process holds a lock, or it is overloaded",
    "timeout|timed out|couldn't get": "it did not answer in time",
    "starting up|recovery": "it is starting",
    "shutting down|terminating": "it is stopping",
    "too many|remaining connection": "it has no free connection",
    "closed|reset by|is lost": "the connection was lost",
    "SSL|certificate": "no encrypted connection can be made",
}
"""libpq's messages about failed connections, in words without addresses; the first that fits."""


class Unreachable(ConnectionError):
    """The database was reached before, and cannot be reached now."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def url_of(url: str | None) -> str:
    """
    Return the URL of a database; by default that of the environment variable.

    Raises:
        UsageError: There is none.
    """
    url = url or os.environ.get(DATABASE_VARIABLE)
    if not url:
        advice = f"Pass it, or set the environment variable {DATABASE_VARIABLE}."
        raise usage_error("url", "There is no URL of a database.", advice)
    return url


def options_of(url: str | None) -> dict[str, Any]:
    """
    Return the options of a connection; by default those of the environment variable.

    Raises:
        UsageError: There is no URL, or it cannot be read.
    """
    url = url_of(url)
    try:
        return {**OPTIONS, **conninfo_to_dict(url)}
    except (psycopg.Error, UnicodeError):
        pass
    # Outside of the clause: an error that is raised there would quote the URL.
    raise usage_error(
        "url",
        "The URL of the database cannot be read.",
        "Write postgresql://user:password@host/name, with special characters percent-encoded.",
    )


def answered(wire: PGconn, statement: PQGen[T]) -> PQGen[T]:
    """Run a statement of psycopg; close the connection and raise if it has no answer in time."""
    until = time.monotonic() + ANSWER
    try:
        wanted = next(statement)
        while True:
            ready = yield wanted
            # A connection that listens for notifications is idle, and may wait without limit.
            if time.monotonic() > until and wire.transaction_status == TransactionStatus.ACTIVE:
                wire.finish()
                raise psycopg.OperationalError("timeout: the server has not answered")
            wanted = statement.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result


class Connection(psycopg.Connection[Any]):
    """A connection that is lost if the server does not answer in time."""

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> Self:
        """Connect; whatever is wrong with the URL, the error is that of a failed connection."""
        try:
            return super().connect(*args, **kwargs)
        except UnicodeError:  # the host cannot be a name in the DNS
            reason = "could not translate host name"
        except psycopg.ProgrammingError:  # psycopg reads `connect_timeout` itself
            reason = "invalid value"
        raise psycopg.OperationalError(reason)

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Return the result of a statement; psycopg calls this."""
        return super().wait(answered(self.pgconn, gen), *args, **kwargs)


@attrs.define(eq=False, repr=False)
class Link:
    """The connection of one thread."""

    options: Mapping[str, Any]
    #: Whether the database was reached before.
    was_open: bool = False
    #: The salt of the journal; None until the first connection.
    salt: bytes | None = attrs.field(init=False, default=None)
    _db: Connection | None = attrs.field(init=False, default=None)
    #: Since when the database cannot be reached, on the monotonic clock.
    _away_since: float | None = attrs.field(init=False, default=None)

    @property
    def name(self) -> str:
        return str(self.options.get("dbname") or "postgres")

    @property
    def is_unreachable(self) -> bool:
        return self._away_since is not None

    def open(self, *, is_init: bool = False) -> None:
        """
        Connect and check the database, unless that is done; *is_init* lets it update the tables.

        Raises:
            Unreachable: It cannot be reached, and was reached before.
            JournalError: It was never reached, or cannot be used.
        """
        if self._db is not None:
            return
        db = None
        try:
            db = Connection.connect(
                **self.options, autocommit=True, prepare_threshold=None, row_factory=dict_row
            )
            self._check(db, is_init=is_init)
        except psycopg.Error as exc:
            fault = exc
        except BaseException:
            assert db is not None  # noqa: S101  (only the check raises other errors)
            db.close()
            raise
        else:
            self._db, self.was_open = db, True
            if self._away_since is not None:
                seconds, self._away_since = time.monotonic() - self._away_since, None
                LOGGER.warning(
                    "The journal's database can be reached again, after %.0f s.", seconds
                )
            return
        if db is not None:
            db.close()
        raise self._error(fault)

    def _check(self, db: Connection, *, is_init: bool) -> None:
        """Check settings and tables, and read the salt; make the tables if there are none."""
        session = db.execute(SESSION).fetchone()
        assert session is not None  # noqa: S101  (it has no condition)
        if session["synchronous_commit"] == "off":
            raise journal_error(
                f"The database {self.name!r} has synchronous_commit = off: it may lose what was "
                "paid for.",
                "Turn it on for this role or database: ALTER ROLE ... SET synchronous_commit = on.",
            )
        if is_init or not session["has_tables"]:
            with db.transaction():
                # Several processes may start at once.
                db.execute(translated(actions.LOCK))
                _make_tables(db, self.name)
        header = db.execute("SELECT version, salt FROM fuhu_header").fetchone()
        version = header["version"] if header else 0
        if version > SCHEMA_VERSION:
            raise JournalTooNew(
                f"The journal in the database {self.name!r} has schema {version}; this version "
                f"knows {SCHEMA_VERSION}.",
                "Nothing was sent or charged.",
                "Use the version of fuhu-runway that made it, or a newer one.",
            )
        if header is None or version < SCHEMA_VERSION:
            raise journal_error(
                f"The journal in the database {self.name!r} has schema {version}; this version "
                f"needs {SCHEMA_VERSION}.",
                "Run `fuhu-runway fleet init`, once all processes have this version.",
            )
        self.salt = bytes(header["salt"])

    def run(self, action: Action[T]) -> T:
        """
        Run an action on the open connection, each statement as a transaction of its own.

        From `actions.LOCK` on, all statements are one transaction.

        Raises:
            Unreachable: The connection was lost; whether the last statement was done is unknown.
            JournalError: The database refuses a statement.
        """
        db = self._db
        assert db is not None  # noqa: S101  (`open` comes first)
        try:
            try:
                result = _performed(db, action)
            except BaseException:
                if db.info.transaction_status in _OPEN:
                    db.execute("ROLLBACK")
                raise
            if db.info.transaction_status in _OPEN:
                db.execute("COMMIT")
        except psycopg.Error as exc:
            fault = exc
        else:
            return result
        if _is_passing(fault):
            db.close()
            self._db = None
        raise self._error(fault)

    def close(self, owner: str) -> None:
        """Mark what *owner* was submitting as in doubt, and disconnect."""
        if self._db is not None:
            # If this fails, the next process that takes charge of such a job does the same.
            with contextlib.suppress(psycopg.Error):
                self._db.execute(DOUBT, (owner,))
            self._db.close()
            self._db = None

    def _error(self, fault: psycopg.Error) -> Unreachable | JournalError:
        if not _is_passing(fault):
            # The message is left out, since it may quote a value.
            what = re.sub(r"(?<!^)([A-Z])", r" \1", type(fault).__name__).lower()
            return journal_error(
                f"The database {self.name!r} of the journal refuses a statement: {what} "
                f"({fault.sqlstate}).",
                "Check that its tables are as they were made, and that the user may use them.",
            )
        reason = reason_of(fault)
        if not self.was_open:
            return unreachable(self.name, reason)
        if self._away_since is None:
            self._away_since = time.monotonic()
            LOGGER.warning("The journal's database cannot be reached: %s. Waiting for it.", reason)
        return Unreachable(reason)


_PASSING: Final = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)

_OPEN: Final = (TransactionStatus.INTRANS, TransactionStatus.INERROR)


def _is_passing(fault: psycopg.Error) -> bool:
    """Return whether the next attempt may succeed: after a lost connection, a deadlock, a lock."""
    # Class 54 is a value that is too long for an index.
    return isinstance(fault, _PASSING) and not str(fault.sqlstate).startswith("54")


def unreachable(name: str, reason: str) -> JournalError:
    return journal_error(
        f"The database {name!r} of the journal cannot be reached: {reason}.",
        "Check its URL and that it runs, then try again.",
    )


def reason_of(fault: Exception) -> str:
    """Return why a connection failed, in words without addresses."""
    text = str(fault)
    found = (words for sign, words in REASONS.items() if re.search(sign, text, re.IGNORECASE))
    return next(found, f"{type(fault).__name__}")


def _make_tables(db: Connection, name: str) -> None:
    """Make the tables, or update those of an older version; else do nothing."""
    found = db.execute(SESSION).fetchone()
    assert found is not None  # noqa: S101  (it has no condition)
    if not found["has_tables"]:
        db.execute(SCHEMA)
        header = {"version": SCHEMA_VERSION, "salt": os.urandom(32)}
        db.execute("INSERT INTO fuhu_header VALUES (%(version)s, %(salt)s)", header)
        LOGGER.info("Made the tables of a journal in the database %r.", name)
        return
    row = db.execute("SELECT version FROM fuhu_header").fetchone()
    for older in range(row["version"] if row else SCHEMA_VERSION, SCHEMA_VERSION):
        db.execute(MIGRATIONS[older])
        db.execute("UPDATE fuhu_header SET version = %s", (older + 1,))


def _performed(db: Connection, action: Action[T]) -> T:
    """Run the statements of an action, and return its result."""
    try:
        sql, values = next(action)
        while True:
            if sql is actions.LOCK:
                db.execute("BEGIN")
            cursor = db.execute(translated(sql), values)
            sql, values = action.send(cursor.fetchall() if cursor.description else [])
    except StopIteration as end:
        result: T = end.value
        return result


@lru_cache(maxsize=256)
def translated(sql: str) -> LiteralString:
    """Return a statement as psycopg takes it, with the names that the tables have here."""
    marked = re.sub(r":([a-z_]+)", r"%(\1)s", sql)
    return re.sub(r"\b(job|ignored|header)\b", r"fuhu_\1", marked)
