"""
The only place that reads time or sleeps: a `Clock` protocol and the loop's implementation.

Durations are in seconds. Monotonic instants belong to the running loop and mean nothing outside it.
"""

import asyncio
import contextvars
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """One call that is yet to come."""

    def cancel(self) -> None:
        """Make sure that the call does not happen."""


class Clock(Protocol):
    """Time, as the rest of the package sees it."""

    def now(self) -> float:
        """Return the instant, in seconds that only ever grow."""

    def wall(self) -> float:
        """Return the time of day, in Unix seconds."""

    async def sleep(self, delay: float) -> None:
        """Come back after *delay* seconds."""

    def call_at(self, when: float, action: Callable[[], None]) -> Timer:
        """Call *action* at the instant *when*."""


class LoopClock:
    """The running event loop's own time, so that a loop with virtual time moves us too."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return time.time()

    async def sleep(self, delay: float) -> None:
        await asyncio.sleep(delay)

    def call_at(self, when: float, action: Callable[[], None]) -> Timer:
        # In an empty context: a timer serves many callers, and belongs to none of them.
        return asyncio.get_running_loop().call_at(when, action, context=contextvars.Context())
