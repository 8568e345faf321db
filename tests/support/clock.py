"""Clocks that a test controls."""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from fuhu_runway._clock import LoopClock, Timer

TURNS: Final = 25
"""How often the loop turns until everything that can happen has happened."""


async def settle() -> None:
    """Run everything that needs no time."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def until(happened: Callable[[], object]) -> None:
    """Run the loop until *happened* returns true."""
    while not happened():  # noqa: ASYNC110  (most of what happens is no event of asyncio)
        await asyncio.sleep(0.001)


@attrs.define(eq=False)
class ManualTimer:
    when: float
    action: Callable[[], None] | None

    def cancel(self) -> None:
        self.action = None


@attrs.define(eq=False)
class ManualClock:
    """A clock that the test moves; it starts at *instant*."""

    instant: float = 1_000.0
    unix: float = 1_700_000_000.0
    _timers: list[tuple[float, int, ManualTimer]] = attrs.field(factory=list)
    _order: Iterator[int] = attrs.field(factory=itertools.count)

    def now(self) -> float:
        return self.instant

    def wall(self) -> float:
        return self.unix

    def call_at(self, when: float, action: Callable[[], None]) -> Timer:
        timer = ManualTimer(when, action)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    async def sleep(self, delay: float) -> None:
        over = asyncio.Event()
        timer = self.call_at(self.instant + delay, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()

    @property
    def timers(self) -> list[float]:
        """Return the instants of all timers, in order."""
        return sorted(when for when, _, timer in self._timers if timer.action is not None)

    async def advance(self, seconds: float) -> None:
        """Move the clock by *seconds*, and let each timer fire at its own instant."""
        until = self.instant + seconds
        await settle()
        while self._timers and self._timers[0][0] <= until:
            when, _, timer = heapq.heappop(self._timers)
            self.instant = max(self.instant, when)
            if timer.action is not None:
                timer.action()
                await settle()
        self.instant = until
        await settle()


class RecordingClock(LoopClock):
    """The loop's clock, which records each sleep instead of sleeping."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        # What was slept has passed on this clock, and not on the loop's.
        self._ahead = 0.0

    def now(self) -> float:
        return super().now() + self._ahead

    async def sleep(self, delay: float) -> None:
        self.slept.append(delay)
        self._ahead += delay
        await asyncio.sleep(0)

    def call_at(self, when: float, action: Callable[[], None]) -> Timer:
        return super().call_at(when - self._ahead, action)
