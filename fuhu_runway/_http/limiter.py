"""
When the next request may go: requests in flight, and a pace, set or learned from the answers.

Rule 1: first come, first served. Only the one place that the poller holds for all tasks is second
in line at most, or a crowd of submits would keep every clip waiting.
Rule 2: waiting here costs nothing and may be cancelled at any time: nothing was sent.
Rule 3: no state change has an `await` in it, so that a cancelled waiter leaves nothing half done.

Rates are in requests per second, instants are seconds of the loop's clock.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import attrs

from fuhu_runway._clock import Clock, Timer
from fuhu_runway.hooks import Hooks, PaceChanged, PaceHeld, PaceRecovered
from fuhu_runway.models import Limits

FIRST_ROOM: Final = 4
"""Requests in flight before the first answer; more of them meet an unknown limit together."""
FIRST_RATE: Final = 10.0
"""Requests per second after the first answer, doubled with each round; more are refused at once."""
FASTEST: Final = 1000.0
"""Requests per second from which on nothing is paced; higher values only cost CPU."""
ANSWERS: Final = 5
"""Answers that a round needs; with more of them a slow pace is judged more surely, but later."""
ROUND: Final = 0.3
"""Seconds that a round lasts; if longer, the pace rises more slowly and meets fewer refusals."""
PATIENCE: Final = 3.0
"""Seconds that a test lasts at most; half as many pass before the first request is tried again."""
STEP: Final = 0.05
"""First step of a rise, as a part of the rate; larger steps are refused more often."""
USUAL: Final = 0.02
"""Part of the requests that may be refused in any case; if more, a slight excess goes unseen."""
IN_A_ROW: Final = 3
"""Refusals without an answer between them after which one request tries for all."""
LONGEST_PAUSE: Final = 10.0
"""Seconds between requests that try for all; if more, the end of an outage is noticed later."""
AGAIN: Final = 8.0
"""Seconds until a limit is tried again, up to 30 times more for one that has held for long."""


@attrs.define(eq=False)
class Pace:
    """
    A rate that follows what gets through, not what is refused.

    It rises as long as more gets through. After refusals it keeps what got through meanwhile, and
    sends half for a moment: if as many are refused, the rate is not why, and it rises again.
    Where nothing gets through, one request tries for all. Pure: the caller passes *now*.
    """

    #: What the user allowed; None is no limit.
    at_most: float | None
    #: The longest time that a gateway may hold all requests, in seconds.
    max_hold: float
    #: Infinite while nothing is paced.
    rate: float = math.inf
    #: How many requests may be in flight.
    room: float = FIRST_ROOM
    #: Nothing goes before this instant.
    hold_until: float = -math.inf
    #: The rate above which the gateway was found to refuse; infinite while none is known.
    limit: float = math.inf
    _limit_since: float = 0.0
    #: What gets through: *rate* is above it while it rises, and half of it in a test.
    _known: float = 0.0
    #: What got through before the rate began to rise; 0 if nothing is known.
    _settled: float = 0.0
    _step: float = 1.0
    _rise_at: float = 0.0
    #: In a test: the rate that was refused, and the part of the requests that were.
    _refused_rate: float = 0.0
    _refused_part: float = 0.0
    #: The part of the requests that is refused whatever the rate is.
    _usual: float = USUAL
    # This round: what was sent since counts, from the first refusal on if there is one, since a
    # gateway that allows bursts lets too much through before.
    _began_at: float = -math.inf
    _counts_since: float = -math.inf
    _has_refusal: bool = False
    _answers: int = 0
    _passed: int = 0
    #: What was sent and what got through in the last round, per second.
    _last: tuple[float, float] = (0.0, math.inf)
    _in_a_row: int = 0
    #: How many refusals come in a row on average.
    _usual_row: float = 0.0
    #: How long one request waits before it tries for all, in seconds; 0 while requests get through.
    _pause: float = 0.0
    _paused_at: float = 0.0
    _last_pause: float = 0.0
    _resumed_at: float = math.inf
    _next_at: float = -math.inf

    def __attrs_post_init__(self) -> None:
        if self.at_most is not None:
            self.rate = self._known = self._settled = self.at_most
            self.room = math.inf

    def ready_at(self, now: float) -> float:
        """Return the instant at which the next request may go."""
        return max(now, self._next_at, self.hold_until)

    def sent(self, now: float, due_at: float | None = None) -> None:
        """Record a request that goes now; *due_at* is what its timer was set for."""
        gap = 0.0 if math.isinf(self.rate) else 1 / self.rate
        # From when it was due, not from when it went: a late timer must not cost pace. But no
        # credit is saved up: a burst after a pause is what gateways refuse.
        self._next_at = (now if due_at is None else max(due_at, now - gap / 2)) + gap

    def answered(self, sent_at: float, now: float) -> None:
        """Record an answer that was no refusal."""
        self._usual_row += (min(self._in_a_row, ANSWERS) - self._usual_row) / 10
        self._in_a_row = 0
        if not self._known:
            self._known = FIRST_RATE / 2
            self._go(FIRST_RATE, now)
        elif self._pause and sent_at >= self.hold_until and self._resumed_at < self._paused_at:
            # A gateway that counts by the minute lets the same number through again, so that the
            # average is what it allows, and for as long as the pause was nothing else is known.
            ended_at = min(now, self.hold_until + PATIENCE)  # later ones waited for a caller
            self._last_pause = ended_at - self._paused_at
            whole = ended_at - self._resumed_at
            rate = self._refused_rate or min(self.rate, FASTEST)
            average = rate * (1 - self._last_pause / whole)
            self._known = max((1 + USUAL) * average, 1 / whole)
            self._settled, self._step = 0.0, STEP
            self._refused_rate, self._usual, self._last = 0.0, USUAL, (0.0, math.inf)
            self._resumed_at, self._rise_at = sent_at, now + min(60.0, self._last_pause)
            self._go(self._known, now)
        if self._pause or self.room == FIRST_ROOM:
            self._pause, self.hold_until = 0.0, now
            self.room = math.inf
        self._resumed_at = min(self._resumed_at, sent_at)
        self._count(sent_at, now, passed=True)

    def refused(self, sent_at: float, now: float, retry_after: float | None) -> None:
        """Record a refusal."""
        self._in_a_row += 1
        if self._in_a_row < IN_A_ROW + int(ANSWERS * self._usual_row):
            self._count(sent_at, now, passed=False)
            return
        if not self._pause:
            self._pause = min(LONGEST_PAUSE, max(PATIENCE / 2, self._last_pause / 4))
            self._paused_at = now
            if self._known:
                self.room = 1
        elif sent_at >= self.hold_until:
            self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        asked = min(retry_after or 0.0, self.max_hold)
        self.hold_until = max(self.hold_until, now + max(self._pause, asked))

    def _go(self, rate: float, now: float) -> None:
        """Begin a round at this rate."""
        rate = min(rate if rate <= FASTEST else math.inf, self.at_most or math.inf)
        if rate > self.rate:
            self._next_at = min(self._next_at, now + 1 / rate)
        self.rate, self._began_at, self._counts_since = rate, now, now
        self._answers = self._passed = 0
        self._has_refusal = bool(self._refused_rate)

    def _count(self, sent_at: float, now: float, *, passed: bool) -> None:
        """Count an answer in this round, and judge the round when it tells enough."""
        if sent_at < self._counts_since:
            return
        if passed and self.rate == math.inf and not self._has_refusal:
            return  # nothing to judge, and this is on the way of every poll
        if not passed and not self._has_refusal:
            if self._known < self.rate < ANSWERS / PATIENCE and self._settled:
                self._known = self._settled  # too slow to find out more than that
                self._settle(now)
            else:
                self._has_refusal, self._counts_since = True, sent_at
                self._answers = self._passed = 0
            return
        self._answers += 1
        self._passed += passed
        answers, refused = self._answers, self._answers - self._passed
        span = sent_at - self._counts_since
        usual = answers * self._usual
        # 2.5 standard deviations more than usual are no chance, and neither is more than half.
        many = refused > min(usual + 2.5 * math.sqrt(usual), answers / 2)
        if self._refused_rate:
            expected = answers * self._refused_part
            is_over = expected >= (ANSWERS if refused else ANSWERS / 2)
            if is_over or now >= self._began_at + PATIENCE:
                self._end_test(refused / answers, now, is_same=refused > max(1, expected / 2))
            return
        is_quick = self._has_refusal or self._step == 1
        if answers >= ANSWERS and span >= (ROUND if is_quick else 2 * ROUND):
            waits = self.rate <= self._known and now < self._rise_at
            enough = answers >= (20 if waits else 4) * ANSWERS or (span > PATIENCE and not waits)
            if many or not self._has_refusal or self._step == 1 or enough:
                self._judge(answers / span, max(1, self._passed) / span, now, many=many)

    def _judge(self, sent: float, passed: float, now: float, *, many: bool) -> None:
        """Go on after a round; *sent* and *passed* are per second."""
        (sent_before, passed_before), self._last = self._last, (sent, passed)
        rises = self.rate > self._known
        if many and not (rises and passed - passed_before > (sent - sent_before) / 2):
            self._refused_rate, self._refused_part = self.rate, 1 - passed / sent
            self._known = max(0.96 * passed, self._settled) if rises else passed
            self._go(self._known / 2, now)
        elif sent <= 0.7 * self.rate or not (rises or now >= self._rise_at):
            self._go(self.rate, now)  # not tried: less was sent than might go
        else:
            if rises:
                self._known, self._step = self.rate, min(max(0.5, self._step), 3 * self._step)
                if many:
                    self._usual = USUAL + min(0.25, 1 - passed / sent)
                if self._known == self.at_most or self._known > 4 * self.limit:
                    self.limit = math.inf
            # A rise may live on what a gateway saved up, but not for long.
            if not rises or (not self._has_refusal and now > self._began_at + PATIENCE):
                self._settled = self._known
            self._go(self._known * (1 + self._step), now)

    def _end_test(self, part: float, now: float, *, is_same: bool) -> None:
        """Go on after half was sent for a moment, and this part of it was refused."""
        refused_rate, self._refused_rate = self._refused_rate, 0.0
        if is_same:
            self._usual = USUAL + min(0.25, (part + self._refused_part) / 2)
            self._known, self._step = refused_rate, 1.0
            self._go(refused_rate * 2, now)
        else:
            self._usual = USUAL
            self._settle(now)

    def _settle(self, now: float) -> None:
        """Keep what gets through; the longer it has been the same, the later try more."""
        if not self.limit / 1.5 < self._known < self.limit * 1.5:
            self.limit, self._limit_since = self._known, now
        held_for = now - self._limit_since
        self._rise_at, self._step = now + max(AGAIN, min(30 * AGAIN, (held_for / 15) ** 2)), STEP
        self._go(self._known, now)


class RateLimiter:
    """
    Where every request of one client, in one event loop, waits for its turn to be sent.

    Args:
        limits: What the user allows.
        clock: Where time comes from.
        hooks: Receive events when the pace changes.
        max_hold: The longest time that a gateway may hold all requests, in seconds.
    """

    def __init__(
        self, limits: Limits, clock: Clock, hooks: Hooks, *, max_hold: float = 120.0
    ) -> None:
        self.limits = limits
        self.pace = Pace(limits.requests_per_second, max_hold)
        self.in_flight = 0
        self._reported_limit = math.inf
        self._reported_hold = -math.inf
        self._clock = clock
        self._hooks = hooks
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: Timer | None = None

    def __repr__(self) -> str:
        rate = "" if math.isinf(self.pace.rate) else f", {self.pace.rate:.2g} a second"
        hold = self.pace.hold_until - self._clock.now()
        held = f", held for {hold:.1f} s" if hold > 0 else ""
        in_flight = f"{self.in_flight} of {self.limits.requests_in_flight} in flight"
        # A cancelled turn stays in line until it is first. A copy, for calls from other threads.
        waiting = sum(not turn.done() for turn in self._waiting.copy())
        return f"<RateLimiter {in_flight}, {waiting} waiting{rate}{held}>"

    @property
    def room(self) -> float:
        """How many requests may be in flight now."""
        return min(self.limits.requests_in_flight, self.pace.room)

    def slot(self) -> "Slot":
        """Return a block that is entered when a request may go, and counts it until it is left."""
        return Slot(self)

    def try_enter(self) -> bool:
        """Count a request in flight if it may go now; return whether it may."""
        now = self._clock.now()
        if self._waiting or self.in_flight >= self.room or self.pace.ready_at(now) > now:
            return False
        self.in_flight += 1
        self.pace.sent(now)
        return True

    def line_up(self, *, soon: bool = False) -> "asyncio.Future[None]":
        """
        Return a future that is done when a request may go, which then counts as in flight.

        Cancel the future to give up the place. With *soon* only one other request goes before.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.insert(1 if soon else len(self._waiting), turn)
        turn.add_done_callback(self._let_go_if_cancelled)
        self._let_go()
        return turn

    async def enter(self) -> float:
        """Wait until a request may go, count it in flight, and return the instant."""
        if not self.try_enter():
            turn = self.line_up()
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled() and turn.exception() is None:
                    self.leave()  # its turn had come
                raise
        return self._clock.now()

    def leave(self) -> None:
        """Count one request in flight less."""
        self.in_flight -= 1
        self._let_go()

    def hold(self, flight: "asyncio.Task[Any]") -> None:
        """Count a request whose caller was cancelled, until its answer is here."""
        self.in_flight += 1
        flight.add_done_callback(lambda _: self.leave())

    def close(self, refusal: Callable[[], Exception]) -> None:
        """Refuse all requests that wait."""
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_exception(refusal())
        self._let_go()

    def answered(self, sent_at: float) -> None:
        """Record an answer that was no refusal, to the request that went at *sent_at*."""
        self.pace.answered(sent_at, self._clock.now())
        if self._reported_hold > -math.inf:
            self._reported_hold = -math.inf
            self._report_recovery()
        self._report_limit()

    def refused(self, sent_at: float, retry_after: float | None) -> None:
        """Record a refusal of the request that went at *sent_at*."""
        now = self._clock.now()
        self.pace.refused(sent_at, now, retry_after)
        # While others are in flight, one of them may still get through and end the pause.
        if self.in_flight <= 1 and self.pace.hold_until > max(now, self._reported_hold):
            self._reported_hold = self.pace.hold_until
            self._hooks.emit(PaceHeld(self.pace.hold_until - now))
        self._report_limit()

    def _report_limit(self) -> None:
        if self.pace.limit != self._reported_limit:
            self._reported_limit = self.pace.limit
            if math.isfinite(self.pace.limit):
                self._hooks.emit(PaceChanged(self.pace.limit))
            else:
                self._report_recovery()

    def _report_recovery(self) -> None:
        rate = self.pace.rate
        self._hooks.emit(PaceRecovered(None if math.isinf(rate) else rate))

    def _let_go_if_cancelled(self, turn: "asyncio.Future[None]") -> None:
        if turn.cancelled():
            self._let_go()

    def _let_go(self, due_at: float | None = None) -> None:
        """Let all requests go whose turn it is, the first of them at *due_at*; set the timer."""
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
    The place of one request among those in flight; entering it returns the instant.

    No `asynccontextmanager`: the loop keeps track of every asynchronous generator, which costs
    CPU for each request.
    """

    _limiter: RateLimiter

    def __aenter__(self) -> Awaitable[float]:
        return self._limiter.enter()

    async def __aexit__(self, *_raised: object) -> None:
        self._limiter.leave()
