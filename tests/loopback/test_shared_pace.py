"""Several clients with one pace, which share what they learn as one client would know it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import attrs
import pytest
from support.clients import EventRecorder, quick_client

from fuhu_runway import Client
from fuhu_runway._http.shared import Report, Share, SharedState
from fuhu_runway.hooks import PaceChanged, PaceHeld, PaceRecovered
from fuhu_runway.models import Limits, PollPolicy, RetryPolicy
from fuhu_runway.testing import Simulator, faults

AHEAD = 5_000.0
"""What the clock of the store is ahead of the loop's, in seconds."""
TRIP = 0.005
"""How long a report and a grant take each, in seconds."""


class MemoryPace:
    """Shares one pace among all clients that get it, whatever their key."""

    def __init__(self) -> None:
        self.text: str | None = None
        self.exchanges = 0
        #: Workers that are dead: their reports do not arrive.
        self.dead: set[Share] = set()
        self.shares: list[Share] = []

    def join_pace(self, key: str, changed: Callable[[], object], **settings: Any) -> Share:
        loop = asyncio.get_running_loop()

        def ask(report: Report | None) -> None:
            if report is not None and share not in self.dead:
                loop.call_later(TRIP, exchange, report)

        def exchange(report: Report) -> None:
            self.exchanges += 1
            now = loop.time() + AHEAD
            there = attrs.evolve(report, delay=2 * TRIP).moved(AHEAD)
            state = SharedState.load(self.text, there, now)
            grant = state.exchange(there, now)
            self.text = state.dump()
            loop.call_later(TRIP, share.take, grant.moved(-AHEAD))

        share = Share(str(len(self.shares)), ask, changed, **settings)
        self.shares.append(share)
        return share


WORKERS = 3

pytestmark = pytest.mark.usefixtures("virtual")


@asynccontextmanager
async def workers(
    gateway: Simulator, pace: MemoryPace, *, each: float | None = None, **changes: Any
) -> AsyncIterator[list[Client]]:
    """Yield three clients that share a pace, with the usual pauses, since time costs nothing."""
    settings = {
        "retry": RetryPolicy(attempts=12),
        "polling": PollPolicy(),
        "limits": Limits(requests_per_second=each),
        "pace": pace,
        **changes,
    }
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(quick_client(gateway, **settings))
            for _ in range(WORKERS)
        ]


async def submit_many(clients: list[Client], count: int) -> None:
    """Submit this many at once, in turn by each client."""
    await asyncio.gather(
        *(clients[n % len(clients)].generate(f"a marked kitten {n}") for n in range(count))
    )


def instants(gateway: Simulator) -> Iterator[float]:
    """Yield when the gateway received each submission."""
    return (seen.at for seen in gateway.requests if seen.where == "submit")


async def test_a_rate_that_is_given_is_that_of_all_together() -> None:
    """Three clients of 20 a second together use it, and a gateway of 21 refuses none of them."""
    pace = MemoryPace()
    async with (
        Simulator(rate_limit=21.0, burst=2) as gateway,
        workers(gateway, pace, each=20.0) as clients,
    ):
        await submit_many(clients, 300)
        assert gateway.submitted == 300
        assert gateway.limited == 0
        at = sorted(instants(gateway))
        assert 299 / (at[-1] - at[0]) == pytest.approx(20, rel=0.05)
        assert "20 a second" in repr(clients[0])


async def test_an_exchange_is_for_several_requests() -> None:
    """At 100 a second, at least four requests share an exchange, which is two statements."""
    pace = MemoryPace()
    async with Simulator(points=None) as gateway, workers(gateway, pace, each=100.0) as clients:
        await submit_many(clients, 600)
        assert gateway.submitted == 600
        assert pace.exchanges <= 150


async def test_a_worker_that_is_killed_costs_no_pace() -> None:
    """Once one of three is dead, the others use the whole rate within seconds."""
    pace = MemoryPace()
    async with (
        Simulator(rate_limit=21.0, burst=2) as gateway,
        workers(gateway, pace, each=20.0) as clients,
    ):
        await submit_many(clients, 30)
        pace.dead.add(pace.shares[0])
        before = len(gateway.requests)
        await submit_many(clients[1:], 200)
        at = sorted(seen.at for seen in gateway.requests[before:])
        assert 100 / (at[160] - at[60]) == pytest.approx(20, rel=0.05)
        assert gateway.limited == 0


async def test_what_one_learns_holds_for_all() -> None:
    """Three clients find the limit of a gateway together, and then keep to it."""
    pace, recorder = MemoryPace(), EventRecorder()
    async with (
        Simulator(points=None, rate_limit=20.0, burst=5) as gateway,
        workers(gateway, pace, hooks=[recorder]) as clients,
    ):
        await submit_many(clients, 120)
        before = gateway.limited
        await submit_many(clients, 300)
        assert gateway.submitted == 420
        assert gateway.limited - before <= 20
        # Each of them reports it.
        assert len(recorder.all(PaceChanged)) >= WORKERS
        assert len({share.limit for share in pace.shares}) == 1


async def test_stray_refusals_slow_nobody() -> None:
    """A client that is refused now and then does not slow the others down."""
    pace = MemoryPace()
    async with Simulator() as gateway, workers(gateway, pace) as clients:
        await submit_many(clients, 60)
        gateway.fault("submit", faults.TooManyRequests(), times=1)
        await submit_many(clients, 60)
        assert gateway.limited == 0
        assert gateway.submitted == 120
        assert all(share.limit == float("inf") for share in pace.shares)


async def test_if_everything_is_refused_all_workers_wait_for_retry_after() -> None:
    """While every request is refused for half a minute, one worker tries; then all go on."""
    pace, recorder = MemoryPace(), EventRecorder()
    async with Simulator() as gateway, workers(gateway, pace, hooks=[recorder]) as clients:
        await submit_many(clients, 60)
        gateway.fault("submit", faults.TooManyRequests(retry_after=30.0), times=40)
        await asyncio.sleep(10)
        await submit_many(clients, 60)
        refused = [seen.at for seen in gateway.requests if seen.fault == "TooManyRequests"]
        # What was in flight when the first refusal arrived, and then nothing for 30 s.
        assert not [at for at in refused if refused[0] + 1 < at < refused[0] + 30]
        assert gateway.submitted == 120
        assert len(recorder.all(PaceHeld)) >= WORKERS
        assert recorder.all(PaceRecovered)


async def test_waits_share_the_pace_too() -> None:
    """Polls go through the shared pace as submissions do, and every clip arrives."""
    pace = MemoryPace()
    async with (
        Simulator(rate_limit=10.5, burst=3) as gateway,
        workers(gateway, pace, each=10.0) as clients,
    ):
        outcomes = await asyncio.gather(
            *(clients[n % WORKERS].run(f"a marked kitten {n}") for n in range(30))
        )
        assert len(outcomes) == 30
        assert gateway.limited == 0
