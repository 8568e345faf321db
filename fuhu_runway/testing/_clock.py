"""Simulated time: the loop's time, multiplied by a speed."""

import asyncio
import math
import time
from collections.abc import Callable

import attrs


@attrs.define
class SimulatedClock:
    """
    Simulated seconds since the first start, *speed* of them per second of the loop.

    It reads the time of its loop, which may be virtual.
    """

    speed: float = 1.0
    #: The Unix second of the first start.
    epoch: float = attrs.field(factory=time.time)
    #: Returns the present second while no loop runs it, after runs in other processes.
    resumes_at: Callable[[], float] = lambda: 0.0
    _loop: asyncio.AbstractEventLoop | None = attrs.field(init=False, default=None)
    _opened_at: float = attrs.field(init=False, default=0.0)
    _is_closing: bool = attrs.field(init=False, default=False)
    # One for each pause, since thousands of slow answers would slow down a shared one.
    _waiters: set[asyncio.Future[None]] = attrs.field(init=False, factory=set)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop it was opened in last."""
        assert self._loop is not None  # noqa: S101 - for mypy
        return self._loop

    def open(self) -> None:
        """Start in the running loop; time went on while it was closed."""
        self._is_closing = False
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # Each loop may start from a different zero.
            self._opened_at = loop.time() - self.now() / self.speed
            self._loop = loop

    def close(self) -> None:
        """End all pauses."""
        self._is_closing = True
        for waiter in self._waiters:
            _release(waiter)

    def now(self) -> float:
        """Return the simulated seconds since the first start, in any process."""
        if self._loop is None:
            return self.resumes_at()
        return (self._loop.time() - self._opened_at) * self.speed

    def unix(self, instant: float) -> int:
        return int(self.epoch + instant)

    def loop_time(self, instant: float) -> float:
        return self._opened_at + instant / self.speed

    def instant(self, loop_time: float) -> float:
        """Return the simulated second at one of the loop's, to the microsecond."""
        return round((loop_time - self._opened_at) * self.speed, 6)

    async def pause(self, seconds: float = math.inf) -> None:
        """Wait *seconds* of simulated time, but only until the gateway closes."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiters.add(waiter)
        timer = None
        if self._is_closing:
            _release(waiter)
        elif seconds < math.inf:
            timer = loop.call_later(seconds / self.speed, _release, waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            if timer is not None:
                timer.cancel()


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
