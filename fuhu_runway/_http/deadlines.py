"""Deadlines of many requests, with one timer."""

import asyncio

from fuhu_runway._clock import Clock, Timer


class Deadlines:
    """
    Time out `asyncio.timeout` blocks, each *seconds* after it was added, with one timer for all.

    A timer for each request would cost 5 % of the CPU time of a poll.
    """

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._seconds = seconds
        self._clock = clock
        #: When each block times out; in that order, since all of them get the same *seconds*.
        self._ends: dict[asyncio.Timeout, float] = {}
        self._timer: Timer | None = None
        self._timer_at = 0.0

    def add(self, scope: asyncio.Timeout) -> None:
        """Time out *scope*, a block that was entered, after *seconds*."""
        self._ends[scope] = ends_at = self._clock.now() + self._seconds
        if self._timer is None:
            self._arm(ends_at)

    def discard(self, scope: asyncio.Timeout) -> None:
        """Forget a block that has ended; after the last one, cancel the timer."""
        self._ends.pop(scope, None)
        if self._timer is not None and not self._ends:
            self._timer.cancel()
            self._timer = None

    def _arm(self, at: float) -> None:
        self._timer, self._timer_at = self._clock.call_at(at, self._fire), at

    def _fire(self) -> None:
        self._timer = None
        now = max(self._clock.now(), self._timer_at)  # a loop may call slightly early
        for scope, ends_at in list(self._ends.items()):
            if ends_at > now:
                self._arm(ends_at)
                break
            del self._ends[scope]
            scope.reschedule(asyncio.get_running_loop().time())
