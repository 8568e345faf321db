"""Simulated time: the loop's own, only faster."""

import asyncio
import time
from collections.abc import Callable

import attrs


@attrs.define
class SimulatedClock:
    """
    Seconds since the gateway first opened, *speed* of them to each second of the loop.

    Reads the loop it was opened in, so a loop with virtual time is as good as any.
    """

    speed: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))
    #: The Unix second at which the story begins.
    epoch: float = attrs.field(factory=time.time)
    #: Returns the second at which it would open now; later than 0 after runs in other processes.
    resumes_at: Callable[[], float] = lambda: 0.0
    _loop: asyncio.AbstractEventLoop | None = attrs.field(init=False, default=None)
    _opened_at: float = attrs.field(init=False, default=0.0)
    _is_closing: bool = attrs.field(init=False, default=False)
    # One for each who pauses: thousands of slow answers would make a shared one slow.
    _waiters: set[asyncio.Future[None]] = attrs.field(init=False, factory=set)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop it was opened in last."""
        assert self._loop is not None  # noqa: S101 - for mypy
        return self._loop

    def open(self) -> None:
        """Start; opened again, time has gone on in between."""
        self._is_closing = False
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # Each loop may count from a zero of its own.
            self._opened_at = loop.time() - self.now() / self.speed
            self._loop = loop

    def close(self) -> None:
        """Wake all that pause."""
        self._is_closing = True
        for waiter in self._waiters:
            _release(waiter)

    def now(self) -> float:
        """Return the simulated seconds since the gateway first opened, in any process."""
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

    async def pause(self, seconds: float) -> None:
        """Wait *seconds* of simulated time, or less when the gateway closes."""
        waiter = self._waiter()
        timer = waiter.get_loop().call_later(seconds / self.speed, _release, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiters.discard(waiter)

    async def wait_closed(self) -> None:
        waiter = self._waiter()
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _waiter(self) -> asyncio.Future[None]:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        if self._is_closing:
            _release(waiter)
        return waiter


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
