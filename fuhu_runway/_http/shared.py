"""
One pace for all workers with the same key, kept by a store that they share.

Rule 1: a worker sends only in slots that it was granted, so no slot means that nothing is sent.
Rule 2: slots are granted in the order in which workers ask, at the rate of one `Pace`.
Rule 3: that pace gets the responses of all workers, so what one learns holds for all.
Rule 4: unused slots are lost, since saved ones would become a burst.

A worker's `Share` and the `SharedState` exchange a `Report` for a `Grant`. Neither knows the store:
instants of the state are on the store's clock, those of a share on the clock of its event loop.
"""

import bisect
import json
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Self, TypeVar

import attrs

from fuhu_runway._clock import Clock, Timer
from fuhu_runway.hooks import Hooks, PaceLost, PaceRecovered

from .limiter import IN_A_ROW, LONGEST_PAUSE, Pace

BLOCK: Final = 1.0
"""Seconds of a steady pace that all workers together are granted in advance; if more, workers
exchange less often, and a killed worker loses more slots."""
CHANGING_BLOCK: Final = 0.15
"""The same while the pace changes; if more, it is learned more slowly."""
AHEAD: Final = 0.2
"""Seconds before its last slot at which a worker asks for more; if less, slots may come late."""
FREE_FOR: Final = 1.0
"""Seconds for which a worker may send without slots while no limit is near; if more, it
learns later that others are refused."""
STALE: Final = 0.3
"""Seconds after which a slot is lost to a request that waits for it; if more, a worker that was
late sends in a burst."""
UNUSED: Final = 0.05
"""The same if no request waits for it, or half of the time between two slots if that is longer."""
LATEST: Final = 1.2
"""Seconds that responses wait for the reports of other workers; if less, they are counted in the
wrong order, and if more, a killed worker delays what is learned for longer."""
SHORTEST: Final = 0.1
"""Seconds between two exchanges of a worker; if less, few requests cost more statements."""
REFUSED: Final = 0.02
"""The same after a refusal; if more, a worker that is refused sends less."""
AWAY: Final = 2.0
"""Seconds after its last slot until a worker no longer counts; if more, blocks stay small for
longer after one was killed."""
FORGET: Final = 600.0
"""Seconds without any worker after which the pace is learned from the start."""
MOST: Final = 1000
"""Slots in one grant at most; more only cost CPU."""


class Response(NamedTuple):
    """One response that a worker got."""

    at: float
    sent_at: float
    passed: bool
    retry_after: float | None = None


@attrs.frozen(kw_only=True)
class Report:
    """What a worker reports, and how many slots it wants."""

    worker: str
    #: When it was made.
    at: float = 0.0
    #: The worker's limit in requests per second; the lowest one of all workers holds.
    at_most: float | None
    #: The longest time that a gateway may hold all requests, in seconds.
    max_hold: float
    responses: tuple[Response, ...] = ()
    wanted: int = 0
    #: Slots of earlier grants that were lost.
    unused: int = 0
    #: How long the grant takes to arrive, in seconds.
    delay: float = 0.0

    def moved(self, seconds: float) -> Self:
        """Return the report on another clock, which is this much ahead."""
        return attrs.evolve(
            self,
            at=self.at + seconds,
            responses=tuple(
                one._replace(at=one.at + seconds, sent_at=one.sent_at + seconds)
                for one in self.responses
            ),
        )


@attrs.frozen(kw_only=True)
class Grant:
    """What a worker may send, and what is known about the pace."""

    slots: tuple[float, ...] = ()
    #: Until then it may send without slots, at its own instants, but no faster than *rate*.
    free_until: float = -math.inf
    #: A worker that got no slot asks again then.
    again_at: float = -math.inf
    #: Within how many seconds responses are to be reported.
    report_after: float = BLOCK
    rate: float = math.inf
    limit: float = math.inf
    hold_until: float = -math.inf

    def moved(self, seconds: float) -> Self:
        """Return the grant on another clock, which is this much ahead."""
        return attrs.evolve(
            self,
            slots=tuple(slot + seconds for slot in self.slots),
            free_until=self.free_until + seconds,
            again_at=self.again_at + seconds,
            hold_until=self.hold_until + seconds,
        )


@attrs.define(eq=False)
class Worker:
    """What is known about one worker."""

    at_most: float | None
    #: When it no longer counts.
    until: float
    #: All its responses before this instant have been reported.
    reported_at: float = -math.inf
    #: Its slots without a response, or when it could begin to send without slots.
    open: list[float] = attrs.field(factory=list)
    #: Its last slot, and whether it wants another and got none.
    slot_at: float = -math.inf
    is_waiting: bool = False


@attrs.define(eq=False)
class SharedState:
    """The pace of all workers, and which of them there are. Pure: the caller passes *now*."""

    pace: Pace
    workers: dict[str, Worker] = attrs.field(factory=dict)
    #: Responses that wait for those before them, which other workers have not reported yet.
    waiting: list[Response] = attrs.field(factory=list)
    #: While few may be in flight: slots since *tried_at* that got no response.
    tried: int = 0
    tried_at: float = -math.inf

    @classmethod
    def load(cls, text: str | None, report: Report, now: float) -> Self:
        """Return the state from its JSON, with this worker; a new one if it is too old."""
        stored: dict[str, Any] = json.loads(text or "{}")
        workers = {
            name: _filled(Worker(None, now), told)
            for name, told in stored.pop("workers", {}).items()
        }
        is_old = bool(workers) and max(one.until for one in workers.values()) + FORGET < now
        workers = {name: one for name, one in workers.items() if one.until > now}
        workers.setdefault(report.worker, Worker(None, now)).at_most = report.at_most
        limits = [one.at_most for one in workers.values() if one.at_most is not None]
        pace = Pace(min(limits, default=None), report.max_hold)
        then = stored.pop("pace", {})
        if is_old or then.get("at_most") != pace.at_most:
            # What was granted stays granted, and a hold is waited for.
            held = [then[name] for name in ("_next_at", "hold_until") if name in then]
            then = {"_next_at": max(held, default=-math.inf)}
            stored = {}
        _filled(pace, {**then, "max_hold": report.max_hold})
        state = _filled(cls(pace, workers), stored)
        state.waiting = [Response(*one) for one in state.waiting]
        return state

    def dump(self) -> str:
        """Return the state as JSON, which may hold `Infinity`."""
        return json.dumps(self, default=_fields, separators=(",", ":"))

    def exchange(self, report: Report, now: float) -> Grant:
        """Process a report of a worker, and return its grant."""
        self.waiting += report.responses
        me, pace = self.workers[report.worker], self.pace
        me.reported_at = report.at
        del me.open[: len(report.responses) + report.unused]
        self._learn(now)
        is_free = self._is_free
        slots = [] if is_free else self._slots(report, now)
        me.open += slots or [now] * (is_free and not me.open)
        me.slot_at = max(slots, default=me.slot_at)
        me.is_waiting = report.wanted > 0 and not slots and not is_free
        free_until = now + FREE_FOR if is_free else -math.inf
        if pace.room == math.inf:
            self.tried = 0
            # Requests until then were not sent at a pace that begins now.
            pace.reserved_until = max(pace.reserved_until, free_until, *slots)
        me.until = max(now, free_until, *slots) + AWAY
        return Grant(
            slots=tuple(slots),
            free_until=free_until,
            again_at=self._turn_of(me, now) if me.is_waiting else now,
            report_after=SHORTEST if pace.room < math.inf else BLOCK if is_free else self._block,
            rate=pace.rate,
            limit=pace.limit,
            hold_until=pace.hold_until,
        )

    @property
    def _is_free(self) -> bool:
        """Return whether workers need no slots: nothing is paced, or they send much less."""
        pace = self.pace
        if pace.room < math.inf or math.isinf(pace.rate):
            return pace.room == pace.rate
        is_limited = pace.limit < math.inf or pace.at_most is not None
        return not is_limited and not pace.is_used

    @property
    def _block(self) -> float:
        is_steady = self.pace.rate in {self.pace.known, math.inf}
        return BLOCK if is_steady else CHANGING_BLOCK

    def _turn_of(self, me: Worker, now: float) -> float:
        """Return when a worker that got no slot asks again: after those that wait for longer."""
        if self.pace.room < math.inf:
            return max(now, self.pace.hold_until) + SHORTEST
        first = (
            one for one in self.workers.values() if one.is_waiting and one.slot_at < me.slot_at
        )
        opens_at = self.pace.ready_at(now) - self._block
        return max(now, opens_at) + sum(1 for _ in first) / self.pace.rate

    def _learn(self, now: float) -> None:
        """Pass the responses to the pace in order, once all workers have reported earlier ones."""
        # What a worker has not reported came after its last report, and after its first open slot.
        awaited = (max(one.reported_at, one.open[0]) for one in self.workers.values() if one.open)
        until = max(min(awaited, default=now), now - LATEST)
        self.waiting.sort(key=lambda one: one.at)
        count = bisect.bisect_right(self.waiting, until, key=lambda one: one.at)
        due, self.waiting = self.waiting[:count], self.waiting[count:]
        for at, sent_at, passed, retry_after in due:
            if sent_at >= self.tried_at:
                self.tried = max(0, self.tried - 1)
            if passed:
                self.pace.answered(sent_at, at)
            else:
                self.pace.refused(sent_at, at, retry_after)

    def _slots(self, report: Report, now: float) -> list[float]:
        """Reserve the next slots for a worker, as many as it wants or as it may have."""
        pace, at = self.pace, now + report.delay
        if pace.room < math.inf:
            # No pace: the next request goes after the response to this one.
            return [pace.ready_at(at)] * self._tries(report, now)
        if pace.ready_at(at) > at + self._block:
            return []  # the others have enough
        slots = []
        most = max(1, min(MOST, int(self._block * pace.rate / len(self.workers))))
        for _ in range(min(report.wanted, most)):
            at = pace.ready_at(at)
            pace.sent(at)
            slots.append(at)
        return slots

    def _tries(self, report: Report, now: float) -> int:
        """Return how many requests a worker may send while all workers together may send few."""
        self.tried = max(0, self.tried - report.unused)
        if now > self.tried_at + LONGEST_PAUSE:
            self.tried = 0  # the worker that had them was killed
        if not self.tried:
            self.tried_at = now
        count = max(0, min(report.wanted, int(self.pace.room) - self.tried))
        self.tried += count
        return count


M = TypeVar("M")


def _fields(made: Any) -> dict[str, Any]:
    return {field.name: getattr(made, field.name) for field in attrs.fields(type(made))}


def _filled(made: M, stored: dict[str, Any]) -> M:
    """Set the stored fields that exist here: another version may have stored others."""
    for name in stored.keys() & _fields(made).keys():
        setattr(made, name, stored[name])
    return made


class Share:
    """
    The pace of one worker, as its `RateLimiter` sees it: the slots that it was granted.

    Args:
        worker: A name that no other worker has.
        ask: Exchanges a report and then calls `take`; only then is it called again. None ends it.
        changed: Called when a request may be sent earlier than `ready_at` returned.
        at_most: The user's limit in requests per second; None means no limit.
        max_hold: The longest time that a gateway may hold all requests, in seconds.
        clock: Source of time.
        hooks: Receive an event when the store cannot be reached.
    """

    room = math.inf

    def __init__(
        self,
        worker: str,
        ask: Callable[[Report | None], object],
        changed: Callable[[], object],
        *,
        at_most: float | None,
        max_hold: float,
        clock: Clock,
        hooks: Hooks,
    ) -> None:
        self.rate = math.inf if at_most is None else at_most
        self.limit = math.inf
        self.hold_until = -math.inf
        self._blank = Report(worker=worker, at_most=at_most, max_hold=max_hold)
        self._ask = ask
        self._changed = changed
        self._clock = clock
        self._hooks = hooks
        self._slots: deque[float] = deque()
        self._free_until = self._free_at = -math.inf
        self._responses: list[Response] = []
        #: Since the last report.
        self._used = self._unused = 0
        self._granted = 0
        self._is_wanted = False
        #: Whether a request waits for the next slot.
        self._is_awaited = False
        #: Refusals since the last success that no grant has taken into account.
        self._in_a_row = 0
        self._report_after = BLOCK
        self._is_asking = self._is_lost = self._is_closed = False
        self._asked_at = self._again_at = -math.inf
        self._timer: Timer | None = None
        self._timer_at = math.inf

    def ready_at(self, now: float) -> float:
        """Return the instant at which the next request may be sent; infinite if it is not known."""
        slots = self._slots
        # A late timer must not cost pace, but a slot for which no request waited is no credit.
        late = max(0.5 / self.rate, STALE if self._is_awaited else UNUSED)
        stale = max(now - late, self.hold_until - STALE)
        while slots and slots[0] < stale:
            slots.popleft()
            self._unused += 1
        if (slots[-1] if slots else self._free_until) < now + AHEAD:
            self._is_wanted = True
            self._exchange_at(max(now, self._again_at))
        # At a fast rate, an exchange after each stray refusal would cost many slots.
        is_stopped = self._in_a_row >= (1 if self.rate * REFUSED <= 1 else IN_A_ROW)
        if now < self._free_until and not is_stopped:
            return max(now, self._free_at)
        self._is_awaited = True
        if is_stopped or not slots:
            return math.inf
        return max(now, slots[0], self.hold_until)

    def sent(self, now: float, _due_at: float | None = None) -> None:
        """Record a request that is sent now."""
        self._used += 1
        self._is_awaited = False
        if now >= self._free_until:
            self._slots.popleft()
        elif self.rate < math.inf:
            self._free_at = now + 1 / self.rate

    def answered(self, sent_at: float, now: float) -> None:
        """Record a response that was not a refusal."""
        self._responses.append(Response(now, sent_at, passed=True))
        self._in_a_row = 0
        self._exchange_at(self._asked_at + self._report_after)

    def refused(self, sent_at: float, now: float, retry_after: float | None) -> None:
        """Record a refusal; nothing is sent until others have reported whether they succeed."""
        self._responses.append(Response(now, sent_at, passed=False, retry_after=retry_after))
        self._in_a_row += 1
        self._exchange_at(now, after=REFUSED)

    def take(self, grant: Grant) -> None:
        """Use what was granted."""
        now = self._clock.now()
        self._is_asking = False
        self.rate, self.limit, self.hold_until = grant.rate, grant.limit, grant.hold_until
        self._slots.extend(grant.slots)
        self._granted = len(grant.slots)
        self._free_until, self._again_at = grant.free_until, grant.again_at
        self._report_after = grant.report_after
        if self._responses:
            if self._responses[-1].passed:
                self._exchange_at(self._asked_at + self._report_after)
            else:
                self._exchange_at(now, after=REFUSED)
        else:
            self._in_a_row = 0
        if self._is_lost:
            self._is_lost = False
            self._hooks.emit(PaceRecovered(None if math.isinf(self.rate) else self.rate))
        self._changed()

    def lost(self, reason: str) -> None:
        """Report once that the store cannot be reached."""
        if not self._is_lost:
            self._is_lost = True
            self._hooks.emit(PaceLost(reason))

    def close(self) -> None:
        """Ask for nothing more, and release the store."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._ask(None)

    def _exchange_at(self, when: float, *, after: float = SHORTEST) -> None:
        """Exchange a report at *when*, but *after* the last exchange."""
        when = max(when, self._asked_at + after)
        if self._is_asking or self._is_closed or when >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._clock.call_at(self._timer_at, self._exchange)

    def _exchange(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._is_asking, self._asked_at = True, self._clock.now()
        # Twice as many as last time if all were used, so that few exchanges are needed.
        wanted = self._used if self._unused else max(self._used, 2 * self._granted)
        report = attrs.evolve(
            self._blank,
            at=self._asked_at,
            responses=tuple(self._responses),
            wanted=max(1, wanted) if self._is_wanted else 0,
            unused=self._unused,
        )
        self._responses.clear()
        self._used = self._unused = 0
        self._is_wanted = False
        self._ask(report)
