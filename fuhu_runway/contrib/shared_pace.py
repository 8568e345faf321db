"""
One pace for all processes that use a key, in one row of a Postgres. Needs the extra `postgres`.

Rule 1: no lock outlives a statement, so that a frozen or killed worker holds up no other.
Rule 2: instants in the row are on the database's clock, so the clocks of machines may differ.
Rule 3: the row is a hint, not a record: it may be lost at any time, and is learned anew.
"""

import asyncio
import os
import queue
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import attrs

from fuhu_runway._clock import Clock
from fuhu_runway._http.shared import Grant, Report, Share, SharedState
from fuhu_runway._redact import redact
from fuhu_runway.hooks import Hooks
from fuhu_runway.models import usage_error

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
except ImportError as missing:
    raise ImportError(
        "fuhu_runway.contrib.shared_pace needs an extra; in a checkout: "
        'python -m pip install ".[postgres]"',
        name=missing.name,
    ) from missing

URL_VARIABLE: Final = "FUHU_DATABASE_URL"

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

CONNECTION: Final[dict[str, Any]] = {
    "application_name": "fuhu-runway pace",
    "autocommit": True,
    "connect_timeout": 5,
    # Else a connection that the network has forgotten is noticed after a quarter of an hour.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
    "prepare_threshold": None,  # a pooler may give each statement another connection
}
MADE_ELSEWHERE: Final = (
    psycopg.errors.DuplicateObject,
    psycopg.errors.DuplicateTable,
    psycopg.errors.UniqueViolation,
)
"""What Postgres says, by chance, to the slower of two workers that make the table."""
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
        url: The database; by default the environment variable FUHU_DATABASE_URL. Its table
            `fuhu_pace` is made when it is missing.

    Raises:
        UsageError: There is no URL, or it is none of a Postgres.
    """

    def __init__(self, url: str | None = None) -> None:
        url = url or os.environ.get(URL_VARIABLE)
        if not url:
            raise usage_error(
                "url",
                "There is no database.",
                f"Give its URL as url, or set the environment variable {URL_VARIABLE}.",
            )
        try:
            conninfo_to_dict(url)
        except psycopg.Error:
            is_right = False
        else:
            is_right = True
        if not is_right:  # outside the clause, since the library's error quotes the URL
            raise usage_error(
                "url",
                "The URL of the database cannot be read.",
                "Use a URL such as postgresql://user@host/database.",
            )
        self._url = url

    def __repr__(self) -> str:
        return "<SharedPace>"

    async def init(self) -> None:
        """
        Make the table, unless it is there.

        Not needed if the user of the database may create tables: the first exchange makes it.

        Raises:
            UsageError: The database cannot be used. Nothing was sent.
        """
        reason = await asyncio.to_thread(self._create)
        if reason is not None:
            raise usage_error(
                "url",
                f"The database cannot be used: {reason}",
                "Check its URL, and whether its user may create tables.",
            )

    def _create(self) -> str | None:
        try:
            with psycopg.connect(self._url, **CONNECTION) as database, suppress(*MADE_ELSEWHERE):
                database.execute(TABLE)
        except psycopg.Error as error:
            return shown(error, self._url)
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
        desk = Desk(self._url, key)
        desk.share = Share(
            secrets.token_hex(4),
            desk.todo.put,
            changed,
            at_most=at_most,
            max_hold=max_hold,
            clock=clock,
            hooks=hooks,
        )
        # A daemon, so that a database that does not respond cannot hold up the end of a program.
        threading.Thread(target=desk.work, name="pace", daemon=True).start()
        return desk.share


class Desk:
    """The thread that exchanges reports for grants."""

    share: Share

    def __init__(self, url: str, key: str) -> None:
        self.todo: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
        self._url = url
        self._key = key
        self._loop = asyncio.get_running_loop()
        self._connection: psycopg.Connection | None = None
        #: What the database's clock is ahead of the loop's, in seconds.
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
                    self._call(self.share.lost, shown(error, self._url))
                else:
                    self._call(self.share.take, grant)
                    break
                with suppress(queue.Empty):
                    self.todo.get(timeout=PAUSE)
                    return  # a share has one report on its way, so this is the None
        self._hang_up()

    def _call(self, function: Callable[[Any], None], argument: object) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(function, argument)

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _exchange(self, report: Report) -> Grant:
        if self._connection is None:
            self._connection = psycopg.connect(self._url, **CONNECTION)
            # A crash of the database may lose the row; waiting for the disk would delay requests.
            self._connection.execute("SET synchronous_commit = off")
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


def shown(error: Exception, url: str) -> str:
    """Return what the database said, without what the URL holds."""
    hidden = [str(value) for value in conninfo_to_dict(url).values() if value]
    return f"{type(error).__name__}: {redact(' '.join(str(error).split()), hidden)}"
