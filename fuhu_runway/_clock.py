"""
Time and sleep, for everything that waits in an event loop.

Durations are in seconds. Monotonic instants belong to the running loop and mean nothing outside it.
"""

import asyncio
import contextvars
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is yet to come."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Time as the rest of the package sees it: `LoopClock`, or a manual one in tests."""

    def now(self) -> float: ...

    def wall(self) -> float: ...

    async def sleep(self, delay: float) -> None: ...

    def call_at(self, when: float, action: Callable[[], None]) -> Timer: ...


def ahead(clock: Clock) -> float:
    """Return how far the time of day is ahead of a time that is never set, in seconds."""
    return clock.wall() - time.monotonic()


def is_cancelled(error: BaseException) -> bool:
    """Return whether the running task was cancelled, and not something that it waited for."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  (only tasks are cancelled)
    return isinstance(error, asyncio.CancelledError) and task.cancelling() > 0


class LoopClock:
    """The running event loop's own time, so that a loop with virtual time moves it too."""

    def now(self) -> float:
        """Return the monotonic instant, in seconds."""
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        """Return the time of day, in Unix seconds."""
        return time.time()

    async def sleep(self, delay: float) -> None:
        await asyncio.sleep(delay)

    def call_at(self, when: float, action: Callable[[], None]) -> Timer:
        # In an empty context: a timer serves many callers, and belongs to none of them.
        return asyncio.get_running_loop().call_at(when, action, context=contextvars.Context())
