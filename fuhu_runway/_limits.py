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
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import attrs

from ._clock import Clock, Timer
from .hooks import Hooks, PaceChanged, PaceHeld, PaceRecovered
from .models import Limits

BACK_OFF: Final = 0.5
"""What a refusal multiplies the rate by: half, as TCP does (RFC 5681)."""
PROBE_BACK_OFF: Final = 0.85
"""The same where the rate was well known, and only tried out beyond."""
SLOWEST: Final = 0.5
"""The learned rate never falls below this."""
LEAST_GRANTED: Final = 1.0
"""What it comes back to in any case: no gateway allows less (api-facts 5.5)."""
ANSWERS_BACK: Final = 300
"""After so many answers the rate is back where it was refused: a refusal in so many, then."""
KNOWN_AFTER: Final = 0.3
"""From this part of them on the refused rate was well known."""
FORGET_AFTER: Final = 4.0
"""A pace this many times above the last refusal is no limit any more."""
REMEMBERED: Final = 60.0
"""For how long it counts what was let through, in seconds: gateways count by the minute."""
LEAST_REMEMBERED: Final = 10.0
"""What was let through in less time than this, in seconds, may have been a burst."""
FIRST_ROOM: Final = 4
"""So many may be in flight before anything was let through, as in TCP (RFC 3390)."""
ROOM_PER_ANSWER: Final = 2
"""How many more may be in flight for each answer: three times as many with each round."""
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
    #: How many may be in flight, as long as no rate tells when each may go.
    room: float = FIRST_ROOM
    #: Where it was last refused, and how far below that it began to grow back.
    refused_at_rate: float = math.inf
    _factor: float = BACK_OFF
    _depth: float = 0.0
    #: How many were let through in the second before, as far as is known, and how many since.
    _burst: float = 0.0
    _answers: int = 0
    #: Requests sent before this instant were part of what was refused already.
    slowed_at: float = -math.inf
    #: Nobody goes before this instant: a gateway asked for it.
    hold_until: float = -math.inf
    _next_at: float = -math.inf
    _sent_at: "deque[float]" = attrs.field(factory=lambda: deque(maxlen=64))
    _began_at: float | None = None
    _counted_at: float = 0.0
    #: How many were let through, where what is long ago counts for less.
    _let_through: float = 0.0

    def __attrs_post_init__(self) -> None:
        if self.at_most is not None:
            self.rate, self.room = self.at_most, math.inf

    def ready_at(self, now: float) -> float:
        """Give the instant at which the next request may go."""
        return max(now, self._next_at, self.hold_until)

    def sent(self, now: float, due_at: float | None = None) -> None:
        """Take note of a request that goes now; *due_at* is what its timer was set for."""
        self._sent_at.append(now)
        self._count(now, 1)
        gap = 0.0 if math.isinf(self.rate) else 1 / self.rate
        # From when it was due, not from when it went: a late timer must not cost pace. But no
        # credit is saved up: a burst after a pause is what gateways refuse.
        self._next_at = (now if due_at is None else max(due_at, now - gap / 2)) + gap

    def answered(self) -> bool:
        """Grow, after an answer that was no refusal; tell whether that was the last step."""
        if math.isinf(self.refused_at_rate):
            self.room += ROOM_PER_ANSWER
            return False
        # Steep at first, flat where it was refused, and then steep again: as TCP's CUBIC
        # (RFC 9438), by answers in place of seconds.
        self._answers += 1
        way = self._answers / ANSWERS_BACK - 1
        self.rate = max(self.rate, self.refused_at_rate + self._depth * way**3)
        enough = FORGET_AFTER * self.refused_at_rate if self.at_most is None else self.at_most
        if self.rate < enough:
            return False
        self.rate, self.refused_at_rate = self.at_most or math.inf, math.inf
        self.room = FIRST_ROOM if self.at_most is None else math.inf
        return True

    def refused(self, sent_at: float, now: float, retry_after: float | None) -> bool:
        """Slow down, once for all requests of one burst; tell whether it did."""
        self.hold_until = max(self.hold_until, now + (retry_after or 0.0))
        self._count(now, -1)
        if sent_at <= self.slowed_at:
            self._refused_with_it(sent_at, now)
            return False
        refused = self._rate_lately(now)
        was_known = self._answers >= KNOWN_AFTER * ANSWERS_BACK
        self._factor = PROBE_BACK_OFF if was_known else BACK_OFF
        self._answers, self._burst = 0, refused - 1
        self.slowed_at, self.room = now, math.inf
        # Some gateways grant so many a minute: until the next one all is refused, but what they
        # let through in the last one tells where to come back to.
        self.refused_at_rate = max(refused, self._let_through_lately(now), LEAST_GRANTED)
        self._slow_to(refused * self._factor, now)
        return True

    def _refused_with_it(self, sent_at: float, now: float) -> None:
        """Take note of one more refusal of the same burst: more than passed of it may not go."""
        if sent_at > self.slowed_at - 1.0:
            self._burst -= 1
            rate = max(LEAST_GRANTED, self._burst)
            if rate < self.rate:
                self._slow_to(rate, now)

    def _slow_to(self, rate: float, now: float) -> None:
        """Fall to a rate, a whole gap of which passes first, and grow back from there."""
        slowest = SLOWEST if self.at_most is None else min(SLOWEST, self.at_most)
        self.rate = max(slowest, rate)
        least = (1 - self._factor) * self.refused_at_rate
        self._depth = max(self.refused_at_rate - self.rate, least)
        self._next_at = max(self._next_at, now + 1 / self.rate)

    def _rate_lately(self, now: float) -> float:
        """Give the rate at which requests went: the present one, unless fewer wanted to go."""
        went = max(1, sum(sent > now - 1.0 for sent in self._sent_at))
        # At 9.9 a second there are nine in some seconds, and ten in others.
        return self.rate if self.rate < went + 1 else float(went)

    def _count(self, now: float, requests: int) -> None:
        """Count requests as let through; a refused one is taken off again."""
        if self._began_at is None:
            self._began_at = self._counted_at = now
        self._let_through *= math.exp((self._counted_at - now) / REMEMBERED)
        self._let_through = max(0.0, self._let_through + requests)
        self._counted_at = now

    def _let_through_lately(self, now: float) -> float:
        """Give how many requests a second were let through in about the last minute."""
        # As if it had gone on like this before the first request.
        span = max(LEAST_REMEMBERED, now - (self._began_at or 0.0))
        return self._let_through / REMEMBERED / -math.expm1(-span / REMEMBERED)


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
    def room(self) -> float:
        """How many requests may be in flight now."""
        return min(self.limits.requests_in_flight, self.pace.room)

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
        is_free = not self._waiting and self.in_flight < self.room
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

    def hold(self, flight: "asyncio.Task[Any]") -> None:
        """Count a request until its answer is here, whose caller has left it in the air."""
        self.in_flight += 1
        flight.add_done_callback(lambda _: self.leave())

    def close(self, refusal: Callable[[], Exception]) -> None:
        """Turn away whoever waits, who would wait for a turn that is none any more."""
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_exception(refusal())
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
        while self._waiting and self.in_flight < self.room:
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
