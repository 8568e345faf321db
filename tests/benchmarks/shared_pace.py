"""
How much of its rate three processes with one key use, and how much is refused.

The gateway allows 5 % more than the rate, 0.1 s for each response. Each process has 20 callers who
always want to send. Real processes, real sockets and a real Postgres: that of FUHU_DATABASE_URL, or
one for the run. Exit status 1 if a goal of the shared pace is missed.
"""

import asyncio
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import PIPE
from typing import Final, NamedTuple

import attrs
import psycopg

sys.path.insert(0, str(Path(__file__).parent))  # the folder may be missing in safe-path mode

from _common import KEY, RawRequest, reply, serving, table
from _feed import envelope

from fuhu_runway import GATEWAYS, Client, Limits, RetryPolicy, RunwayError
from fuhu_runway.contrib.local_postgres import LocalPostgres, temporary_database
from fuhu_runway.contrib.shared_pace import SharedPace

WORKERS: Final = 3
CALLERS: Final = 20
RATE: Final = 20.0
LATENCY: Final = 0.1
SECONDS: Final = 12.0
"""How long requests are counted, from the moment at which all processes have sent some."""
EVENT_AT: Final = 3.0
"""When in that time a worker is killed, or everything is refused for a second."""
HOLD: Final = 4.0
"""What the gateway asks for when it refuses everything, in seconds."""
TASK_ID: Final = "221c136d-7888-43c3-acd3-000000000000"


class Way(NamedTuple):
    """How the workers keep to the rate."""

    name: str
    shares: bool
    #: The limit of each worker; None if it has to find one.
    rate: float | None
    #: Whether one of the workers is killed, and whether everything is refused for a second.
    kills: bool = False
    refuses: bool = False


WAYS: Final = (
    Way("shared", shares=True, rate=RATE),
    Way("each its third", shares=False, rate=RATE / WORKERS),
    Way("shared, one is killed", shares=True, rate=RATE, kills=True),
    Way("each its third, one is killed", shares=False, rate=RATE / WORKERS, kills=True),
    Way("shared, learned", shares=True, rate=None),
    Way("each learns alone", shares=False, rate=None),
    Way("shared, all is refused once", shares=True, rate=RATE, refuses=True),
)


@attrs.define
class Gateway:
    """A token bucket, full at first, which notes each request that it gets."""

    rate: float = 1.05 * RATE
    burst: float = 5.0
    #: When everything is refused for a second.
    closed_at: float = math.inf
    #: When each came, and whether it was accepted.
    seen: list[tuple[float, bool]] = attrs.field(factory=list)
    _tokens: float = 5.0
    _filled_at: float = 0.0

    async def answer(self, request: RawRequest) -> bytes:
        """Accept or refuse."""
        now = time.monotonic()
        self._tokens = min(self.burst, self._tokens + (now - self._filled_at) * self.rate)
        self._filled_at = now
        is_closed = 0 <= now - self.closed_at < 1
        accepted = self._tokens >= 1 and not is_closed
        self._tokens -= accepted
        self.seen.append((now, accepted))
        await asyncio.sleep(LATENCY)
        if accepted:
            return reply(200, envelope(TASK_ID, 50, ended=False))
        says = {"Retry-After": str(int(HOLD))} if is_closed else {}
        return reply(429, {"error": {"message": "too many requests"}}, says)


class Figures(NamedTuple):
    used: float
    refused: float
    statements: float
    #: Requests while the gateway had asked to send none, and those of them after a second.
    early: int
    late: int


async def work(base_url: str, database: str, rate: str) -> None:
    """Send until the process is killed."""
    place = attrs.evolve(GATEWAYS["fuhuapi"], base_url=base_url)
    pace = SharedPace(database) if database else None
    limits = Limits(requests_per_second=float(rate) if rate else None)
    retry = RetryPolicy(attempts=1)
    async with Client(KEY, gateway=place, pace=pace, limits=limits, retry=retry) as client:

        async def call() -> None:
            while True:
                with suppress(RunwayError):
                    await client.feed(TASK_ID)
                    print(flush=True)

        await asyncio.gather(*(call() for _ in range(CALLERS)))


async def run(way: Way, database: str) -> Figures:
    """Return what one way comes to."""
    gateway = Gateway()
    async with serving(gateway.answer) as url:
        told = [url, database if way.shares else "", "" if way.rate is None else str(way.rate)]
        workers = [
            await asyncio.create_subprocess_exec(sys.executable, __file__, *told, stdout=PIPE)
            for _ in range(WORKERS)
        ]
        for worker in workers:
            assert worker.stdout is not None
            await worker.stdout.readline()
        began_at = time.monotonic()
        gateway.closed_at = began_at + EVENT_AT if way.refuses else math.inf
        await asyncio.sleep(EVENT_AT)
        if way.kills:
            workers[0].kill()
        await asyncio.sleep(began_at + SECONDS - time.monotonic())
        ended_at = time.monotonic()
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.kill()
            await worker.communicate()
    seen = [one for one in gateway.seen if began_at <= one[0] < ended_at]
    passed = sum(accepted for _, accepted in seen)
    refusals = [at for at, accepted in seen if not accepted]
    early = [at for at, _ in seen if refusals and refusals[0] + LATENCY < at < refusals[0] + HOLD]
    return Figures(
        passed / (ended_at - began_at) / RATE,
        len(refusals) / len(seen),
        statements(database) / len(gateway.seen),
        len(early),
        sum(at > refusals[0] + 1 for at in early),
    )


def statements(database: str) -> int:
    """Return how many statements workers sent since the last call; each is a transaction."""
    time.sleep(1.5)  # the server counts with a delay
    with psycopg.connect(database, autocommit=True) as connection:
        count = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        [[found]] = connection.execute(count).fetchall()
        connection.execute("SELECT pg_stat_reset()")
    return int(found)


def is_held(way: Way, figures: Figures) -> bool:
    """Return whether a way of the shared pace holds its goals."""
    if way.refuses:
        # Each worker sends until its own first refusals have come, and nothing after that.
        return figures.late == 0
    if way.rate is None:
        return True
    return figures.used >= 0.95 and figures.refused <= 0.01 and figures.statements <= 0.5


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the URL of an empty database."""
    given = os.environ.get("FUHU_DATABASE_URL")
    if given:
        with temporary_database(given) as url:
            yield url
    else:
        with LocalPostgres() as server:
            yield server.url


async def main() -> None:
    """Print every way."""
    rows, held = [], True
    with postgres() as database:
        statements(database)
        for way in WAYS:
            figures = await run(way, database)
            is_right = not way.shares or is_held(way, figures)
            held &= is_right
            early = f"{figures.early}, {figures.late} after 1 s" if way.refuses else ""
            rows.append(
                (
                    way.name,
                    f"{figures.used:.1%}",
                    f"{figures.refused:.1%}",
                    f"{figures.statements:.2f}" if way.shares else "",
                    early,
                    ("held" if is_right else "MISSED") if way.shares else "",
                )
            )
    print(f"{WORKERS} processes, together {RATE:g} a second; the gateway allows 5 % more")
    print("goals: 95 % used, 1 % refused, 0.5 statements for each request; sent after 1 s: none\n")
    names = ("", "rate used", "refused", "statements", "sent while held", "goals")
    print(table([names, *rows]))
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]) if len(sys.argv) > 1 else main())
