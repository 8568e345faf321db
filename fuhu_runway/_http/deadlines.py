"""Deadlines of many requests over one timer."""

import asyncio

from fuhu_runway._clock import Clock, Timer


class Deadlines:
    """
    End blocks of `asyncio.timeout`, each *seconds* after it was added, over one timer for all.

    A timer for each request would take a twentieth of the CPU of a poll.
    """

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._seconds = seconds
        self._clock = clock
        #: In order of their ends, since all of them have the same time.
        self._ends: dict[asyncio.Timeout, float] = {}
        self._timer: Timer | None = None
        self._timer_at = 0.0

    def add(self, scope: asyncio.Timeout) -> None:
        """End the block *scope*, which was entered, when its time is over."""
        self._ends[scope] = ends_at = self._clock.now() + self._seconds
        if self._timer is None:
            self._arm(ends_at)

    def discard(self, scope: asyncio.Timeout) -> None:
        """Forget a block that is over, and the timer with the last one."""
        self._ends.pop(scope, None)
        if self._timer is not None and not self._ends:
            self._timer.cancel()
            self._timer = None

    def _arm(self, at: float) -> None:
        self._timer, self._timer_at = self._clock.call_at(at, self._fire), at

    def _fire(self) -> None:
        self._timer = None
        now = max(self._clock.now(), self._timer_at)  # loops call a little early
        for scope, ends_at in list(self._ends.items()):
            if ends_at > now:
                self._arm(ends_at)
                break
            del self._ends[scope]
            scope.reschedule(asyncio.get_running_loop().time())
