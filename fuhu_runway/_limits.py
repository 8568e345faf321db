"""
When the next request may go: requests in flight, and a pace, set or learned from refusals.

Rule 1: first come, first served, whatever it is for. Only the one look that queues on behalf of
all tasks may say how far ahead it stands, or a crowd of submits would keep every clip waiting.
Rule 2: waiting here costs nothing and may be cancelled at any time: what waits was not sent.
Rule 3: state changes under no `await`, so that a cancelled waiter can leave nothing half done.

Rates are in requests per second, instants are seconds of the loop's clock.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable
from functools import partial
from typing import Final

import attrs

from ._clock import Clock, Timer
from .hooks import Hooks, PaceChanged, PaceHeld, PaceRecovered
from .models import Limits

BACK_OFF: Final = 0.5
"""What a refusal multiplies the rate by: half, as TCP does (RFC 5681)."""
SLOWEST: Final = 0.5
"""The learned rate never falls below this: no gateway allows less than one (api-facts 5.5)."""
CAUTIOUS_FROM: Final = 0.9
"""Up to this part of the rate that was refused, the pace recovers fast, and slowly beyond."""
FAST_RECOVERY: Final = 0.05
SLOW_RECOVERY: Final = 0.002
"""What each answer adds to the rate, as parts of the rate that was refused."""
FORGET_AFTER: Final = 4.0
"""A pace this many times above the last refusal is no limit any more."""
WORTH_TELLING: Final = 1.0
"""Each refusal of a burst moves the end of a pause a little; what is less is not told again."""


@attrs.define(eq=False)
class Pace:
    """
    A rate that falls with each refusal and grows back with each answer.

    Pure: the caller passes *now*.
    """

    #: What the user allowed; None is no limit.
    at_most: float | None
    rate: float = math.inf
    #: Where it was last refused.
    refused_at_rate: float = math.inf
    #: Requests sent before this instant were part of what was refused already.
    slowed_at: float = -math.inf
    #: Nobody goes before this instant: a gateway asked for it.
    hold_until: float = -math.inf
    _next_at: float = -math.inf
    _sent_at: "deque[float]" = attrs.field(factory=lambda: deque(maxlen=64))

    def __attrs_post_init__(self) -> None:
        self.rate = self.at_most or math.inf

    def ready_at(self, now: float) -> float:
        """Give the instant at which the next request may go."""
        return max(now, self._next_at, self.hold_until)

    def sent(self, now: float, due_at: float | None = None) -> None:
        """Take note of a request that goes now; *due_at* is what its timer was set for."""
        self._sent_at.append(now)
        gap = 0.0 if math.isinf(self.rate) else 1 / self.rate
        # From when it was due, not from when it went: a late timer must not cost pace. But no
        # credit is saved up: a burst after a pause is what gateways refuse.
        self._next_at = (now if due_at is None else max(due_at, now - gap / 2)) + gap

    def answered(self) -> bool:
        """Grow, after an answer that was no refusal; tell whether that was the last step."""
        if math.isinf(self.refused_at_rate):
            return False
        cautious = self.rate >= CAUTIOUS_FROM * self.refused_at_rate
        self.rate += (SLOW_RECOVERY if cautious else FAST_RECOVERY) * self.refused_at_rate
        enough = FORGET_AFTER * self.refused_at_rate if self.at_most is None else self.at_most
        if self.rate < enough:
            return False
        self.rate, self.refused_at_rate = self.at_most or math.inf, math.inf
        return True

    def refused(self, sent_at: float, now: float, retry_after: float | None) -> bool:
        """Slow down, once for all requests of one burst; tell whether it did."""
        self.hold_until = max(self.hold_until, now + (retry_after or 0.0))
        if sent_at <= self.slowed_at:
            return False
        self.slowed_at = now
        self.refused_at_rate = min(self.rate, self._measured(now))
        slowest = SLOWEST if self.at_most is None else min(SLOWEST, self.at_most)
        self.rate = max(slowest, self.refused_at_rate * BACK_OFF)
        return True

    def _measured(self, now: float) -> float:
        """Give the rate at which requests went lately."""
        recent = [sent for sent in self._sent_at if sent > now - 1.0]
        return float(max(1, len(recent)))


class Gate:
    """
    Where everything on one client, in one event loop, waits for its turn to send.

    Args:
        limits: What the user allows.
        clock: Where time comes from.
        hooks: Who hears when the pace changes.
    """

    def __init__(self, limits: Limits, clock: Clock, hooks: Hooks) -> None:
        self.limits = limits
        self.pace = Pace(limits.requests_per_second)
        self.in_flight = 0
        self._clock = clock
        self._hooks = hooks
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: Timer | None = None

    def __repr__(self) -> str:
        rate = "" if math.isinf(self.pace.rate) else f", {self.pace.rate:.2g} a second"
        hold = self.pace.hold_until - self._clock.now()
        held = f", held for {hold:.1f} s" if hold > 0 else ""
        flying = f"{self.in_flight} of {self.limits.requests_in_flight} in flight"
        # Who was cancelled stays in line until it is its turn.
        waiting = sum(not turn.done() for turn in self._waiting)
        return f"<Gate {flying}, {waiting} waiting{rate}{held}>"

    @property
    def is_paced(self) -> bool:
        """Whether requests go at a rate, so that it matters which goes first."""
        return not math.isinf(self.pace.rate)

    def slot(self, *, behind: int | None = None) -> "Slot":
        """
        Give a block that is entered when a request may go, and counts it until it is left.

        Args:
            behind: How many of those that wait go before this one; by default all.
        """
        return Slot(self, behind)

    async def enter(self, behind: int | None) -> float:
        """Come back when a request may go, with the instant; for slots."""
        now = self._clock.now()
        is_free = not self._waiting and self.in_flight < self.limits.requests_in_flight
        if is_free and self.pace.ready_at(now) <= now:
            self.in_flight += 1
            self.pace.sent(now)
            return now
        await self._turn(behind)
        return self._clock.now()

    def leave(self) -> None:
        """Count one request less; for slots."""
        self.in_flight -= 1
        self._let_go()

    def answered(self) -> None:
        """Take note of an answer that was no refusal."""
        if self.pace.answered():
            self._hooks.emit(PaceRecovered(self.limits.requests_per_second))

    def refused(self, sent_at: float, retry_after: float | None) -> None:
        """Take note of a refusal: everyone slows down, and holds as long as was asked."""
        now, held_until = self._clock.now(), self.pace.hold_until
        if self.pace.refused(sent_at, now, retry_after):
            self._hooks.emit(PaceChanged(self.pace.rate, retry_after))
        elif self.pace.hold_until > max(now, held_until) + WORTH_TELLING:
            self._hooks.emit(PaceHeld(self.pace.hold_until - now))

    async def _turn(self, behind: int | None) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.insert(len(self._waiting) if behind is None else behind, turn)
        self._let_go()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.in_flight -= 1  # it was this one's turn, and it does not take it
            self._let_go()
            raise

    def _let_go(self, due_at: float | None = None) -> None:
        """Let everyone go whose turn it is, the first of them at *due_at*; set the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and self.in_flight < self.limits.requests_in_flight:
            if self._waiting[0].done():
                self._waiting.popleft()
                continue
            now = self._clock.now()
            ready_at = self.pace.ready_at(now)
            if ready_at > now:
                self._timer = self._clock.call_at(ready_at, partial(self._let_go, ready_at))
                return
            self.in_flight += 1
            self.pace.sent(now, due_at)
            due_at = None
            self._waiting.popleft().set_result(None)


@attrs.define(eq=False)
class Slot:
    """
    The place of one request among those in flight; entering it gives the instant.

    No `asynccontextmanager`: the loop keeps a book of asynchronous generators, at each request.
    """

    _gate: Gate
    _behind: int | None

    def __aenter__(self) -> Awaitable[float]:
        return self._gate.enter(self._behind)

    async def __aexit__(self, *_raised: object) -> None:
        self._gate.leave()
