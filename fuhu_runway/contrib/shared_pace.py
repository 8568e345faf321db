"""
One pace for all processes that use a key, in one row of a Postgres. Needs the extra `postgres`.

Rule 1: no lock outlives a statement, so a frozen or killed worker blocks no other.
Rule 2: instants in the row are on the database's clock, so the clocks of machines may differ.
Rule 3: the row is a hint, not a record: it may be lost at any time; the pace is learned again.
"""

import asyncio
import contextvars
import queue
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import attrs

from fuhu_runway._clock import Clock
from fuhu_runway._http.shared import Grant, Report, Share, SharedState
from fuhu_runway.hooks import Hooks
from fuhu_runway.models import usage_error

from ._postgres import Connection, options_of, reason_of

# After the import that says which extra is missing.
import psycopg  # isort: skip

# Without a log on disk, and with room for the next version of a row on its page: it is written
# several times a second.
TABLE: Final = """
CREATE UNLOGGED TABLE IF NOT EXISTS fuhu_pace (
    key text PRIMARY KEY,     -- HMAC-SHA256 of the API key with the base URL, 16 digits
    version bigint NOT NULL,  -- counts the exchanges
    state text NOT NULL       -- JSON that only this package reads
) WITH (fillfactor = 10)
"""
READ: Final = """
SELECT coalesce(version, 0), state, extract(epoch FROM clock_timestamp())::float8
FROM (SELECT %s AS key) AS wanted LEFT JOIN fuhu_pace USING (key)
"""
WRITE: Final = """
INSERT INTO fuhu_pace AS was VALUES (%(key)s, %(version)s + 1, %(state)s)
ON CONFLICT (key) DO UPDATE SET version = excluded.version, state = excluded.state
WHERE was.version = %(version)s
"""

# A crash of the database may lose the row; waiting for the disk would delay requests.
SESSION: Final = """
SELECT set_config('synchronous_commit', 'off', false), set_config('statement_timeout', '20s', false)
"""

MADE_ELSEWHERE: Final = (
    psycopg.errors.DuplicateObject,
    psycopg.errors.DuplicateTable,
    psycopg.errors.UniqueViolation,
)
"""The errors that the slower of two workers gets if both create the table at once."""
PAUSE: Final = 1.0
"""Seconds between attempts to reach the database; if more, its return is noticed later."""
SLOWEST: Final = 2.0
"""Longest time that slots are put off because grants arrive late, in seconds."""


class SharedPace:
    """
    One pace for all processes that use the same key, as `Client(pace=SharedPace())`.

    Together they keep to `Limits.requests_per_second`, or to the rate that the gateway was found
    to accept: what one learns holds for all. Each process has one connection for each client and
    event loop, in a thread of its own. While the database cannot be used, nothing is sent.

    Args:
        url: The database; by default the environment variable FUHU_DATABASE_URL. The table
            `fuhu_pace` is created if it is missing.

    Raises:
        UsageError: There is no URL, or it cannot be read.
    """

    def __init__(self, url: str | None = None) -> None:
        self._options = options_of(url)

    def __repr__(self) -> str:
        return "<SharedPace>"

    async def init(self) -> None:
        """
        Create the table, unless it exists.

        Not needed if the database user may create tables: the first exchange creates it.

        Raises:
            UsageError: The database cannot be used. Nothing was sent.
        """
        reason = await asyncio.to_thread(self._create)
        if reason is not None:
            raise usage_error(
                "url",
                f"The database of the pace cannot be used: {reason}.",
                "Check its URL, and whether its user may create tables.",
            )

    def _create(self) -> str | None:
        try:
            with connected(self._options) as database, suppress(*MADE_ELSEWHERE):
                database.execute(TABLE)
        except psycopg.Error as error:
            return reason_of(error)
        return None

    def join_pace(
        self,
        key: str,
        changed: Callable[[], object],
        *,
        at_most: float | None,
        max_hold: float,
        clock: Clock,
        hooks: Hooks,
    ) -> Share:
        """Return the share of one limiter; for `Client`."""
        exchange = ExchangeThread(self._options, key)
        exchange.share = Share(
            secrets.token_hex(4),
            exchange.todo.put,
            changed,
            at_most=at_most,
            max_hold=max_hold,
            clock=clock,
            hooks=hooks,
        )
        # A daemon, so that a database that does not respond cannot hold up the end of a program.
        threading.Thread(target=exchange.work, name="pace", daemon=True).start()
        return exchange.share


class ExchangeThread:
    """The thread that exchanges reports for grants."""

    share: Share

    def __init__(self, options: dict[str, Any], key: str) -> None:
        self.todo: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
        self._options = options
        self._key = key
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        #: How far the database's clock is ahead of the loop's, in seconds.
        self._ahead: float | None = None
        self._delay = 0.0

    def work(self) -> None:
        """Exchange reports until there is a None."""
        while (report := self.todo.get()) is not None:
            while True:
                try:
                    grant = self._exchange(report)
                except Exception as error:  # noqa: BLE001  (else nothing would be sent, untold)
                    self._hang_up()
                    self._call(self.share.lost, reason_of(error))
                else:
                    self._call(self.share.take, grant)
                    break
                with suppress(queue.Empty):
                    self.todo.get(timeout=PAUSE)
                    return  # a share has one report on its way, so this is the None
        self._hang_up()

    def _call(self, function: Callable[[Any], None], argument: object) -> None:
        with suppress(RuntimeError):  # the loop has ended
            # Not in the thread's context, which from Python 3.14 on may be that of one request.
            self._loop.call_soon_threadsafe(function, argument, context=contextvars.Context())

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _exchange(self, report: Report) -> Grant:
        if self._connection is None:
            self._connection = connected(self._options)
            self._connection.execute(SESSION)
        while True:
            began_at = self._loop.time()
            try:
                row = self._connection.execute(READ, [self._key])
                [(version, text, now)] = row.fetchall()
            except psycopg.errors.UndefinedTable:
                with suppress(*MADE_ELSEWHERE):
                    self._connection.execute(TABLE)
                continue
            # The clocks were read in this order, which bounds the difference.
            low, high = now - self._loop.time(), now - began_at
            ahead = (low + high) / 2 if self._ahead is None else min(max(self._ahead, low), high)
            moved = attrs.evolve(report, delay=self._delay).moved(ahead)
            state = SharedState.load(text, moved, now)
            grant = state.exchange(moved, now)
            values = {"key": self._key, "version": version, "state": state.dump()}
            if self._connection.execute(WRITE, values).rowcount:
                self._ahead = ahead
                self._delay = min(SLOWEST, self._loop.time() - began_at)
                return grant.moved(-ahead)
            # Another worker was faster.


def connected(options: dict[str, Any]) -> Connection:
    """Return a new connection."""
    # Prepared statements do not work with a pooler that gives each one another connection.
    return Connection.connect(**options, autocommit=True, prepare_threshold=None)
