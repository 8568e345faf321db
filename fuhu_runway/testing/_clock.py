"""Simulated time: the loop's own, only faster."""

import asyncio
import contextlib
import time

import attrs


@attrs.define
class SimulatedClock:
    """
    Seconds since the gateway first opened, *speed* of them to each second of the loop.

    Reads the running loop, so a loop with virtual time is as good as any.
    """

    speed: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))
    #: The Unix second at which the story begins.
    epoch: float = attrs.field(factory=time.time)
    _opened_at: float | None = attrs.field(init=False, default=None)
    _closing: asyncio.Event = attrs.field(init=False, factory=asyncio.Event)

    def open(self) -> None:
        """Let time run; opened again, it has run on in between."""
        self._closing = asyncio.Event()
        if self._opened_at is None:
            self._opened_at = asyncio.get_running_loop().time()

    def close(self) -> None:
        """Wake everybody who pauses."""
        self._closing.set()

    @property
    def is_closing(self) -> bool:
        """Whether nobody may pause any more."""
        return self._closing.is_set()

    def now(self) -> float:
        """Simulated seconds since the gateway opened; 0.0 before that."""
        if self._opened_at is None:
            return 0.0
        return (asyncio.get_running_loop().time() - self._opened_at) * self.speed

    def unix(self, instant: float) -> int:
        """The Unix second of a simulated instant."""
        return int(self.epoch + instant)

    def loop_time(self, instant: float) -> float:
        """The loop's time at a simulated instant."""
        return (self._opened_at or 0.0) + instant / self.speed

    async def pause(self, seconds: float) -> None:
        """Let *seconds* of simulated time pass, or less when the gateway closes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds / self.speed):
                await self._closing.wait()

    async def wait_closed(self) -> None:
        """Wait until the gateway closes."""
        await self._closing.wait()
