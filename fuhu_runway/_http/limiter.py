"""
Decide when the next request may be sent, by requests in flight and by a given or learned pace.

Rule 1: first come, first served. Only the place that the poller holds for all tasks is at most
second in line; otherwise many submits would delay every clip.
Rule 2: waiting here costs nothing and may be cancelled at any time: nothing was sent.
Rule 3: no state change contains an `await`, so a cancelled waiter leaves nothing half done.

Rates are in requests per second, instants are seconds of the loop's clock.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol

import attrs

from fuhu_runway._clock import Clock, Timer
from fuhu_runway.hooks import Hooks, PaceChanged, PaceHeld, PaceRecovered
from fuhu_runway.models import Limits

FIRST_ROOM: Final = 4
"""Requests in flight before the first response; if more, more exceed an unknown limit at once."""
FIRST_RATE: Final = 10.0
"""Requests per second after the first response, doubled with each round; if higher, more requests
are refused before the limit is known."""
FASTEST: Final = 1000.0
"""Rate above which requests are not paced, per second; higher values only cost CPU."""
TIMER_STEP: Final = 0.001
"""How late timers usually are, in seconds: epoll counts in milliseconds. If more, a user's limit of
many requests per second is exceeded for a moment; if less, it is not reached."""
RESPONSES: Final = 5
"""Responses that end a round; if more, a slow pace is judged more reliably, but later."""
ROUND: Final = 0.3
"""Shortest round, in seconds; if longer, the pace rises more slowly and fewer are refused."""
PATIENCE: Final = 3.0
"""Seconds until a test without a clear result ends, if there are enough responses; if more, a stray
series of refusals halves the pace for longer."""
STEP: Final = 0.05
"""First step of a rise, as a part of the rate; larger steps are refused more often."""
USUAL: Final = 0.02
"""Part of the requests that may always be refused; if more, a slight excess is not noticed."""
IN_A_ROW: Final = 3
"""Refusals in a row after which requests are sent one at a time; if more, an outage costs more."""
LONGEST_PAUSE: Final = 10.0
"""Seconds between those requests; if more, the end of an outage is noticed later."""
AGAIN: Final = 8.0
"""Seconds until a limit is tried again, up to 30 times more if it has held for long."""


class Pacing(Protocol):
    """Decides when the next request may be sent: a `Pace`, or a `Share` of a common one."""

    @property
    def rate(self) -> float: ...
    @property
    def room(self) -> float: ...
    @property
    def hold_until(self) -> float: ...
    @property
    def limit(self) -> float: ...

    def ready_at(self, now: float) -> float: ...
    def sent(self, now: float, due_at: float | None = None) -> None: ...
    def answered(self, sent_at: float, now: float) -> None: ...
    def refused(self, sent_at: float, now: float, retry_after: float | None) -> None: ...
    def close(self) -> None: ...


Join = Callable[[Callable[[], object]], Pacing]
"""Returns the pace of one limiter; calls its argument when a request may be sent."""


@attrs.define(eq=False)
class Pace:
    """
    A rate that follows the requests that succeed, not those that are refused.

    The rate is doubled until more requests than usual are refused. Then the rate that succeeds is
    known, and half of it is tested for a moment: if the same part of the requests is refused, the
    rate is not the reason, and it is doubled again. Otherwise the known rate is kept for a while,
    and then raised in growing steps. If everything is refused, requests are sent one at a time.
    Pure: the caller passes *now*.
    """

    #: The user's limit; None means no limit.
    at_most: float | None
    #: The longest time that a gateway may hold all requests, in seconds.
    max_hold: float
    #: Infinite while nothing is paced.
    rate: float = math.inf
    #: How many requests may be in flight.
    room: float = FIRST_ROOM
    #: No request is sent before this instant; finite only while all requests are held.
    hold_until: float = -math.inf
    #: The rate above which the gateway was found to refuse; infinite while none is known.
    limit: float = math.inf
    _limit_since: float = 0.0
    #: Whether the last round used most of the rate; if not, it showed nothing about a limit.
    is_used: bool = True
    #: The rate that succeeds; 0 while it is searched for. During a rise *rate* is higher, and
    #: during a test it is half of it.
    known: float = 0.0
    _rise_at: float = 0.0
    _step: float = STEP
    #: The part of the requests that is refused at any rate; during a test, the part to confirm.
    _usual: float = USUAL
    #: A round counts requests that were sent since then: since it began, or its first refusal.
    _since: float = -math.inf
    _has_refusal: bool = False
    _responses: int = 0
    _passed: int = 0
    #: Refusals in a row; during a pause, only of the requests that were sent after it.
    _in_a_row: int = 0
    _paused_at: float = 0.0
    #: When requests succeeded again after the last pause, and how many have since.
    _resumed_at: float = math.inf
    _since_resumed: int = 0
    _next_at: float = -math.inf
    #: Until this instant, others may send at an earlier rate; for a pace that is shared.
    reserved_until: float = -math.inf

    def __attrs_post_init__(self) -> None:
        if self.at_most is not None:
            self.rate = self.known = self.at_most
            self.room = math.inf

    def ready_at(self, now: float) -> float:
        """Return the instant at which the next request may be sent."""
        return max(now, self._next_at, self.hold_until)

    def sent(self, now: float, due_at: float | None = None) -> None:
        """Record a request that is sent now; *due_at* is the instant its timer was set for."""
        gap = 0.0 if math.isinf(self.rate) else 1 / self.rate
        # From the instant it was due: a late timer must not cost pace. But no credit is saved up:
        # a burst after a pause is what gateways refuse.
        credit = max(gap / 2, TIMER_STEP)
        self._next_at = gap + (now if due_at is None else max(due_at, self._next_at, now - credit))

    def answered(self, sent_at: float, now: float) -> None:
        """Record a response that was not a refusal."""
        self._in_a_row = 0
        self._since_resumed += 1
        if self.room == FIRST_ROOM:
            self._go(FIRST_RATE, now)
        elif -math.inf < self.hold_until <= sent_at:
            self._resume(sent_at, now)
        self.hold_until, self.room = -math.inf, math.inf
        self._resumed_at = min(self._resumed_at, sent_at)
        self._count(sent_at, now, passed=True)

    def refused(self, sent_at: float, now: float, retry_after: float | None) -> None:
        """Record a refusal."""
        self._in_a_row += sent_at >= self.hold_until
        if self._in_a_row < IN_A_ROW:
            self._count(sent_at, now, passed=False)
            return
        if self.hold_until == -math.inf:
            self._paused_at = now
            if self.room == math.inf:
                self.room = 1
        doublings = min(9, self._in_a_row - IN_A_ROW)  # a float holds no more than a thousand
        pause = min(LONGEST_PAUSE, PATIENCE / 2 * 2**doublings)
        asked = min(retry_after or 0.0, self.max_hold)
        self.hold_until = max(self.hold_until, now + max(pause, asked))

    def close(self) -> None:
        """Do nothing: a pace that is not shared holds nothing open."""

    def _resume(self, sent_at: float, now: float) -> None:
        """Resume after a pause, at the average rate of success in a window of the gateway."""
        ended_at = min(now, self.hold_until + PATIENCE)  # later requests waited for a caller
        pause, whole = ended_at - self._paused_at, ended_at - self._resumed_at
        rate = max(self.rate, self.known)
        # Gateways count by the minute: after a longer time it was an outage.
        if 0 < whole - pause < 60:
            rate = self.known = (1 + USUAL) * self._since_resumed / whole
        self._step, self._rise_at = STEP, now + min(120.0, 2 * pause)
        self._usual = USUAL
        self._resumed_at, self._since_resumed = sent_at, 1
        self._go(rate, now)

    def _go(self, rate: float, now: float) -> None:
        """Begin a round at this rate."""
        rate = min(rate if rate <= FASTEST else math.inf, self.at_most or math.inf)
        now = max(now, self.reserved_until)
        if rate > self.rate:
            self._next_at = min(self._next_at, now + 1 / rate)
        self.rate, self._since = rate, now
        self._responses = self._passed = 0
        self._has_refusal = rate < self.known

    def _count(self, sent_at: float, now: float, *, passed: bool) -> None:
        """Count a response in this round, and end the round when there are enough."""
        if sent_at < self._since or (passed and self.rate == math.inf and not self._has_refusal):
            return  # without a pace there is nothing to decide, and this runs for every poll
        if not passed and not self._has_refusal:
            if 0 < self.known < self.rate < RESPONSES / PATIENCE:
                self._settle(now)  # too slow to learn more
            else:  # counts from here: a gateway that allows bursts accepts too much before
                self._has_refusal, self._since = True, sent_at
                self._responses = self._passed = 0
            return
        self._responses += 1
        self._passed += passed
        if self.rate < self.known:
            self._test(now)
            return
        count, refused = self._responses, self._responses - self._passed
        span = sent_at - self._since
        is_quick = self._has_refusal or not self.known
        if count < RESPONSES or span < (ROUND if is_quick else 2 * ROUND):
            return
        usual = count * self._usual
        waits = self.rate == self.known and now < self._rise_at
        # More than four standard deviations above the usual, or more than half, is not chance.
        if refused > min(usual + 4 * math.sqrt(usual), count / 2):
            self._lower(refused / count, max(1, self._passed) / span, now)
        elif not self.known or not self._has_refusal or count >= (20 if waits else 4) * RESPONSES:
            self.is_used = count / span > 0.7 * self.rate
            if waits or not self.is_used:
                self._go(self.rate, now)
            else:
                self._rise(now)

    def _rise(self, now: float) -> None:
        """Raise the rate after a round in which no more requests than usual were refused."""
        if self.rate > self.known:
            self._step = min(0.5, 4 * self._step) if self.known else 1.0
        is_most = self.rate == self.at_most
        # A rise may use up what a bucket has saved, but not for long.
        if is_most or (not self._has_refusal and now > self._since + PATIENCE):
            self.known = self.rate
        if is_most or self.rate > 4 * self.limit:
            self.limit = math.inf
        self._go(self.rate * (1 + self._step), now)

    def _lower(self, refused_part: float, through: float, now: float) -> None:
        """Begin a test at half the rate that succeeds."""
        least = 0.95 * self.known if self.rate > self.known else 0.0
        if self.rate > self.known and through < 1.5 * self.known:
            through = (through + self.known) / 2  # few responses measure it only roughly
        # A little less, so that another client with the same key finds room.
        self.known = max(0.96 * through, least)
        self._usual, self.is_used = refused_part, True
        self._go(self.known / 2, now)

    def _test(self, now: float) -> None:
        """Decide whether fewer are refused at half the rate, once there are enough responses."""
        refused = self._responses - self._passed
        expected = self._responses * self._usual
        enough = RESPONSES if refused else RESPONSES / 2
        # At a slow rate, a few responses show nothing: strays would lower it again and again.
        is_over = now >= self._since + PATIENCE and self._responses >= 2 * enough
        if expected < enough and not is_over:
            return
        if refused > max(1, expected / 3):
            # About twice the rate that was refused, of which only a part is known.
            rate, self.known = 3 * self.known, 0.0
            self._go(rate, now)
        else:
            self._usual = USUAL
            self._settle(now)

    def _settle(self, now: float) -> None:
        """Keep the known rate; the longer it has been the limit, the later a higher one is due."""
        if not self.limit / 1.5 < self.known < self.limit * 1.5:
            self.limit, self._limit_since = self.known, now
        held_for = now - self._limit_since
        self._rise_at, self._step = now + max(AGAIN, min(30 * AGAIN, (held_for / 15) ** 2)), STEP
        self._go(self.known, now)


class RateLimiter:
    """
    Hold the requests of one client, in one event loop, until their turn comes.

    Args:
        limits: The user's limits.
        clock: Source of time.
        hooks: Receive events when the pace changes.
        max_hold: The longest time that a gateway may hold all requests, in seconds.
        join: Returns the pace if it is shared with other processes.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Clock,
        hooks: Hooks,
        *,
        max_hold: float = 120.0,
        join: Join | None = None,
    ) -> None:
        self.limits = limits
        own = Pace(limits.requests_per_second, max_hold)
        self.pace: Pacing = own if join is None else join(self._look_again)
        self.in_flight = 0
        self._reported_limit = math.inf
        self._reported_hold = -math.inf
        self._clock = clock
        self._hooks = hooks
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: Timer | None = None

    def __repr__(self) -> str:
        rate = "" if math.isinf(self.pace.rate) else f", {self.pace.rate:.2g} a second"
        held = ""
        # Outside a running loop there is no instant *now*, as for an unclosed client.
        with contextlib.suppress(RuntimeError):
            hold = self.pace.hold_until - self._clock.now()
            held = f", held for {hold:.1f} s" if hold > 0 else ""
        in_flight = f"{self.in_flight} of {self.limits.requests_in_flight} in flight"
        # A cancelled turn stays in line until it is first. A copy, for calls from other threads.
        waiting = sum(not turn.done() for turn in self._waiting.copy())
        return f"<RateLimiter {in_flight}, {waiting} waiting{rate}{held}>"

    @property
    def room(self) -> float:
        """Return how many requests may be in flight now."""
        return min(self.limits.requests_in_flight, self.pace.room)

    def slot(self) -> "Slot":
        """Return a context that waits for its turn, and counts a request in flight while open."""
        return Slot(self)

    def try_enter(self) -> bool:
        """Count a request in flight if it may be sent now; return whether it may."""
        now = self._clock.now()
        if self._waiting or self.in_flight >= self.room or self.pace.ready_at(now) > now:
            return False
        self.in_flight += 1
        self.pace.sent(now)
        return True

    def line_up(self, *, soon: bool = False) -> "asyncio.Future[None]":
        """
        Return a future that is done when a request may be sent, which then counts as in flight.

        Cancel the future to leave the line. With *soon*, at most one other request goes before it.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.insert(1 if soon else len(self._waiting), turn)
        turn.add_done_callback(self._pass_on_if_cancelled)
        self._wake()
        return turn

    async def enter(self) -> float:
        """Wait until a request may be sent, count it in flight, and return the instant."""
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
        """Count one request less in flight."""
        self.in_flight -= 1
        self._wake()

    def close(self, refusal: Callable[[], Exception]) -> None:
        """Refuse all waiting requests."""
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_exception(refusal())
        self._wake()
        self.pace.close()

    def answered(self, sent_at: float) -> None:
        """Record a response other than a refusal, to the request that was sent at *sent_at*."""
        self.pace.answered(sent_at, self._clock.now())
        if self._reported_hold > -math.inf:
            self._reported_hold = -math.inf
            self._report_recovery()
        self._report_limit()

    def refused(self, sent_at: float, retry_after: float | None) -> None:
        """Record a refusal of the request that was sent at *sent_at*."""
        now = self._clock.now()
        self.pace.refused(sent_at, now, retry_after)
        # While others are in flight, one of them may still get through and end the pause.
        if self.in_flight <= 1:
            self._report_hold(now)
        self._report_limit()

    def _look_again(self) -> None:
        """Wake requests and report changes, after a shared pace has changed."""
        self._report_hold(self._clock.now())
        self._report_limit()
        self._wake()

    def _report_hold(self, now: float) -> None:
        if self.pace.hold_until > max(now, self._reported_hold):
            self._reported_hold = self.pace.hold_until
            self._hooks.emit(PaceHeld(self.pace.hold_until - now))

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

    def _pass_on_if_cancelled(self, turn: "asyncio.Future[None]") -> None:
        if turn.cancelled():
            self._wake()

    def _wake(self, due_at: float | None = None) -> None:
        """Wake every request whose turn has come, the first of them at *due_at*; set the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and self.in_flight < self.room:
            if self._waiting[0].done():
                self._waiting.popleft()
                continue
            now = self._clock.now()
            ready_at = self.pace.ready_at(now)
            if ready_at == math.inf:
                return  # a shared pace says when
            if ready_at > now:
                self._timer = self._clock.call_at(ready_at, partial(self._wake, ready_at))
                return
            self.in_flight += 1
            self.pace.sent(now, due_at)
            self._waiting.popleft().set_result(None)


@attrs.define(eq=False)
class Slot:
    """
    One request in flight; entering the context returns the instant.

    No `asynccontextmanager`: the loop keeps track of every asynchronous generator, which costs
    CPU for each request.
    """

    _limiter: RateLimiter

    def __aenter__(self) -> Awaitable[float]:
        return self._limiter.enter()

    async def __aexit__(self, *_raised: object) -> None:
        self._limiter.leave()
