"""
One scheduler for all waits: a pure `PollQueue` and the single timer that drives it.

Rule 1: a task is asked about once at a time, however many wait for it.
Rule 2: each waiter has a future of its own, so that cancelling one disturbs no other.
Rule 3: a failed look touches its own task only, and ends a wait only if asking again is hopeless.
Rule 4: with no waiters left there is no timer, no look and no entry left.
Rule 5: where requests go at a pace, one look at a time queues for its turn, and which task it is
for is decided when that comes: the one most likely to have news.
Rule 6: a delivery moves a look forward, in the limits of `_hints`, and says nothing by itself.

Instants are seconds of the loop's clock.
"""

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import math
import random
from collections.abc import Awaitable, Callable
from functools import partial
from operator import attrgetter
from typing import Final, Generic, TypeVar
from weakref import WeakValueDictionary

import attrs

from fuhu_runway import hooks as events
from fuhu_runway._clock import Clock, Timer
from fuhu_runway._http.limiter import Gate
from fuhu_runway._http.retry import ladder
from fuhu_runway._wire.decode import is_reason
from fuhu_runway._wire.encode import Request
from fuhu_runway.errors import (
    ClipMissing,
    GatewayError,
    NotFound,
    OutOfCredits,
    RunwayError,
    Unauthorized,
    UsageError,
    WaitAbandoned,
    WaitTimeout,
    copied,
)
from fuhu_runway.models import PollPolicy, TaskRecord, TaskState

from .hints import Allowance, Reliance
from .intervals import Kind, Learner
from .task_limit import Name, Unfinished

HOPELESS: Final = (Unauthorized, OutOfCredits, UsageError)
"""Noes that asking again does not change: they end a wait at once."""
RANKING_LASTS: Final = 1.0
"""How long it counts who is to be asked first, in seconds: making a ranking looks at everyone."""
STARVED_SHARE: Final = 4
"""Where not everyone can be asked in time, one turn of so many goes to who waited the longest."""
IN_TIME: Final = 1.1
"""Beyond so many times the starvation that is allowed, not everyone can be asked in time."""
STUCK_AFTER: Final = 5
"""How many polls in a row have to give the same unknown status with the same reason until it counts
as a failure. Fewer would give up a task that only queues under a word that we do not know."""
TIMER_SLACK: Final = 0.01
"""What is due in less than this is due, in seconds: loops call a little early."""

K = TypeVar("K")


class PollQueue(Generic[K]):
    """
    When each entry is next worth attention.

    Pure: no clock, no sockets; the caller passes *now*. Putting, dropping and taking one entry
    of n costs O(log n): entries that died are skipped when they surface, and swept out when they
    outnumber the living.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self._live: dict[K, int] = {}
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, key: K) -> bool:
        return key in self._live

    def put(self, key: K, due_at: float) -> None:
        """Set when *key* is due, in place of an earlier time."""
        order = next(self._order)
        self._live[key] = order
        heapq.heappush(self._heap, (due_at, order, key))
        if len(self._heap) > 2 * len(self._live) + 16:
            self._heap = [entry for entry in self._heap if self._is_live(entry)]
            heapq.heapify(self._heap)

    def drop(self, key: K) -> None:
        """Forget *key*; unknown keys are fine."""
        self._live.pop(key, None)

    def next_due_at(self) -> float | None:
        """Return the instant at which the first entry is due."""
        while self._heap and not self._is_live(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def keys(self) -> list[K]:
        """Return all entries, in no order; they stay."""
        return list(self._live)

    def due(self, now: float) -> list[K]:
        """Return all entries that are due, in no order; they stay."""
        found: list[K] = []
        places = [0]
        while places:
            place = places.pop()
            if place < len(self._heap) and self._heap[place][0] <= now:
                if self._is_live(self._heap[place]):
                    found.append(self._heap[place][2])
                places += (2 * place + 1, 2 * place + 2)  # the children of a heap's entry
        return found

    def take(self, now: float, at_most: int) -> list[K]:
        """Remove and give up to *at_most* entries that are due, the longest due first."""
        taken: list[K] = []
        while len(taken) < at_most:
            due_at = self.next_due_at()
            if due_at is None or due_at > now:
                break
            _, _, key = heapq.heappop(self._heap)
            del self._live[key]
            taken.append(key)
        return taken

    def _is_live(self, entry: tuple[float, int, K]) -> bool:
        return self._live.get(entry[2]) == entry[1]


@attrs.define(eq=False)
class Waiter:
    """Someone who waits: for the end of a task, or for the next change of it."""

    watch: "Watch"
    future: "asyncio.Future[TaskRecord]"
    #: What the caller asked for, for the error's text, in seconds.
    timeout: float | None
    any_change: bool


@attrs.define(eq=False, weakref_slot=True)
class Watch:
    """What the scheduler knows about one task."""

    request: Request
    #: When the task was accepted; None where it was re-attached by its id.
    submitted_at: float | None
    record: TaskRecord | None = None
    #: What tells how long it may take; None where that, or when it was accepted, is not known.
    kind: Kind | None = None
    #: When it was last known to run.
    running_at: float = 0.0
    #: When it was last asked about.
    asked_at: float = 0.0
    #: Grows by one with every change of the record.
    version: int = 0
    #: How often it was looked at.
    polls: int = 0
    #: Whether the feed has ever shown it.
    was_seen: bool = False
    #: Next poll time; kept while no one waits, so that short waits do not poll more often.
    due_at: float = 0.0
    question: "asyncio.Task[None] | None" = None
    waiters: set[Waiter] = attrs.field(factory=set)
    last_error: RunwayError | None = None
    url_missing_since: float | None = None
    #: Its polls and their events run in this copy of the context in which the task was submitted,
    #: or if that is not known, first waited for.
    context: contextvars.Context = attrs.field(factory=contextvars.copy_context)
    #: How many polls in a row gave the same unknown status with the same reason.
    stuck: int = 0
    told: frozenset[str] = frozenset()
    #: Whether the gateway was given an address to post the news of this task to.
    is_addressed: bool = False
    #: When the next look is due for a delivery's sake; None where none is.
    hinted_at: float | None = None
    #: How often it had been looked at when a delivery told its end; None where none did.
    polls_at_end_told: int | None = None
    allowance: Allowance | None = None
    #: Made once, since all that know the task by it hold on to it.
    name: Name = attrs.field(init=False)

    @name.default
    def _name(self) -> Name:
        return name_of(self.request)

    def age(self, now: float) -> float:
        """How long it had been there at the instant *now*; of use where its kind is known."""
        return now - (self.submitted_at or 0.0)

    @property
    def task_id(self) -> str:
        return self.request.task_id or ""

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing more to learn."""
        return self.record is not None and self.record.is_settled


class Ranking:
    """
    Who is to be asked first, of all that are due.

    Those who were not asked for too long go first, the longest ago before all, and then those with
    the most promise. Where the budget does not allow that, most turns go by promise alone.
    """

    def __init__(self) -> None:
        self.made_at = -math.inf
        self._share = 1
        # The best stand last, where they are taken from.
        self._promising: list[Watch] = []
        self._starved: list[Watch] = []
        self._turns = itertools.count(1)

    def make(
        self, due: list[Watch], promise: Callable[[Watch], float], starvation: float, now: float
    ) -> None:
        """Rank those that are *due*, in place of all that were ranked before."""
        self.made_at = now
        self._promising = sorted(due, key=promise)
        starved = [watch for watch in due if now - watch.asked_at >= starvation]
        self._starved = sorted(starved, key=attrgetter("asked_at"), reverse=True)
        longest = max((now - watch.asked_at for watch in starved), default=0.0)
        self._share = 1 if longest <= IN_TIME * starvation else STARVED_SHARE

    def put_first(self, watch: Watch) -> None:
        """Put *watch* before all others."""
        self._promising.append(watch)

    def take(self, may_be: Callable[[Watch], bool]) -> list[Watch]:
        """Remove and give the first that *may_be* taken, if there is one."""
        ranks = [self._promising, self._starved]
        if next(self._turns) % self._share == 0:
            ranks.reverse()
        for rank in ranks:
            while rank:
                watch = rank.pop()
                if may_be(watch):
                    return [watch]
        return []


@attrs.frozen
class Turns:
    """Where looks queue with all other requests, and how to look when it is their turn."""

    gate: Gate
    #: Does what the poller's `look` does, in a turn of the gate that was taken at that instant.
    look: Callable[[Request, float], Awaitable[TaskRecord]]


class Poller:
    """
    All waits of one client in one event loop, over one heap and one timer.

    Args:
        look: Asks the gateway once and gives the record, or raises.
        policy: When to look.
        max_retry_after: The longest time that a gateway may keep a task from being polled, in
            seconds.
        at_once: How many looks may be under way at the same time.
        clock: Where time comes from.
        hooks: Who hears of it.
        rng: Where the jitter comes from.
        learner: What is known of how long tasks take; by default nothing yet.
        turns: Where looks queue while requests go at a pace; by default they never do.
        net: How often to look at a task while deliveries are relied on, in seconds; None where
            there are none.
        unfinished: The list of paid tasks, which is kept up to date.
    """

    def __init__(
        self,
        look: Callable[[Request], Awaitable[TaskRecord]],
        *,
        policy: PollPolicy,
        at_once: int,
        clock: Clock,
        hooks: events.Hooks,
        max_retry_after: float = 120.0,
        rng: random.Random | None = None,
        learner: Learner | None = None,
        turns: Turns | None = None,
        net: float | None = None,
        unfinished: Unfinished | None = None,
    ) -> None:
        self._look = look
        self._policy = policy
        self._ladder = ladder(policy.first, policy.factor, policy.max_interval)
        self._at_once = at_once
        self._max_retry_after = max_retry_after
        self._clock = clock
        self._hooks = hooks
        self._random = rng or random.Random()  # noqa: S311  (spreads load, guards nothing)
        # By endpoint too: an id that was polled in the wrong format may be right in the other one.
        self._watches: WeakValueDictionary[Name, Watch] = WeakValueDictionary()
        self._looks: PollQueue[Watch] = PollQueue()
        self._deadlines: PollQueue[Waiter] = PollQueue()
        self._asking: set[Watch] = set()
        self._learner = learner or Learner(policy)
        self._turns = turns
        self._net = net
        self._reliance = Reliance()
        self._is_silence_told = False
        self._unfinished = Unfinished() if unfinished is None else unfinished
        self._queuing: asyncio.Task[None] | None = None
        self._turn_takers: set[asyncio.Task[None]] = set()
        self._ranking = Ranking()
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._poll_at: float | None = None
        self.is_closed = False
        #: How often every wait was ended.
        self.abandoned = 0

    def __repr__(self) -> str:
        tasks = len(self._looks) + len(self._asking)
        # As it was found last: another thread may ask, and looking into the queue changes that.
        due, poll_at = "", self._poll_at
        if poll_at is not None:
            # Outside of its loop there is no such instant.
            with contextlib.suppress(RuntimeError):
                due = f", next in {max(0.0, poll_at - self._clock.now()):.1f} s"
        return f"<Poller {tasks:,} tasks{due}>"

    def watch(
        self,
        request: Request,
        submitted_at: float | None = None,
        record: TaskRecord | None = None,
        kind: Kind | None = None,
        *,
        is_addressed: bool = False,
        context: contextvars.Context | None = None,
    ) -> Watch:
        """
        Return the watch over one task; everyone who asks for the same task gets the same.

        A new watch polls in a copy of *context*, by default of the running one.
        """
        watch = self._watches.get(name_of(request))
        if watch is None:
            # A copy, since two loops in two threads may poll at the same time.
            context = contextvars.copy_context() if context is None else context.copy()
            watch = Watch(request, submitted_at, record, is_addressed=is_addressed, context=context)
            watch.due_at = watch.asked_at = self._clock.now()
            if submitted_at is not None:
                watch.kind, watch.running_at = kind, submitted_at
                watch.due_at = submitted_at + self._pause(watch, submitted_at)
            self._watches[watch.name] = watch
        return watch

    def find(self, endpoint: str, task_id: str) -> Watch | None:
        """Return the watch over a task that a caller holds; None where none does."""
        return self._watches.get((endpoint, task_id))

    def hint(self, watch: Watch, *, is_end: bool) -> None:
        """
        Record a webhook about a task: it is polled now, or as soon as a caller waits.

        Args:
            watch: The task's.
            is_end: Whether it may have ended. If not, only those who follow its changes look.
        """
        watch.is_addressed = self._reliance.was_heard = True
        if watch.is_settled or self.is_closed:
            return
        if is_end and watch.polls_at_end_told is None:
            watch.polls_at_end_told = watch.polls
        is_news = is_end or not watch.waiters or any(one.any_change for one in watch.waiters)
        if not is_news or watch.hinted_at is not None:
            return
        watch.allowance = watch.allowance or Allowance()
        # A webhook that reports progress leaves one poll over for the end.
        watch.hinted_at = watch.allowance.take(self._clock.now(), keep=0 if is_end else 1)
        if watch.question is None:
            self._look_by(watch, watch.hinted_at)

    def take_end(self, watch: Watch) -> None:
        """Report the end of a task if the answer to its submit had it already."""
        if watch.record is not None and watch.is_settled:
            self._settle(watch, watch.record)

    def take_told(self, watch: Watch, record: TaskRecord) -> None:
        """Take in what a look said that was made elsewhere for a delivery's sake."""
        if record.state.is_final:
            watch.polls_at_end_told = watch.polls
        self._take_in(watch, record)

    async def settled(self, watch: Watch, timeout: float | None) -> TaskRecord:
        """
        Return the record with which the task ended, successfully or not.

        Raises:
            WaitTimeout: It had not ended after *timeout* seconds; `__cause__` is the last trouble.
            ClipMissing: A success that went on showing no address.
            NotFound: The gateway does not know the task, and had time to.
            Unauthorized: The key may not ask.
            OutOfCredits: The key's quota is used up, and with it the right to ask.
            WaitAbandoned: The client was closed meanwhile.
        """
        if watch.is_settled and watch.record is not None:
            return watch.record
        waiter = self._waiter(watch, timeout, self.deadline(timeout), any_change=False)
        # As in `changed`: a coroutine for both would be one more in each of thousands of waits.
        try:
            return await waiter.future
        finally:
            self._leave(waiter)

    async def changed(
        self,
        watch: Watch,
        version: int,
        timeout: float | None,
        deadline: float | None,
        abandoned: int | None = None,
    ) -> TaskRecord:
        """
        Return the record as soon as it is newer than *version*; raises as `settled` does.

        The *deadline* is an instant, so that many calls can share it; *timeout* is what it was
        made from, and only told. With *abandoned*, what that was when the reader began, the reader
        ends as well if it was busy with a record while the waits were ended.
        """
        if abandoned not in {None, self.abandoned}:
            raise _abandoned(watch)
        if watch.record is not None and watch.version > version:
            return watch.record
        waiter = self._waiter(watch, timeout, deadline, any_change=True)
        try:
            return await waiter.future
        finally:
            self._leave(waiter)

    def deadline(self, timeout: float | None) -> float | None:
        """Return the instant at which *timeout* seconds will be over."""
        return None if timeout is None else self._clock.now() + timeout

    async def refresh(self, watch: Watch) -> TaskRecord:
        """Return what one look now says; raises whatever that look ends in."""
        record = await self._look(watch.request)
        self._take_in(watch, record)
        return record

    def abandon(self) -> None:
        """End every wait with `WaitAbandoned`; the tasks themselves go on."""
        self.abandoned += 1
        for watch in list(self._watches.values()):
            # In a copy, since a listener may call this during a poll, whose context is in use.
            watch.context.copy().run(self._fail, watch, _abandon)

    async def aclose(self) -> None:
        """End every wait and every poll."""
        self.is_closed = True
        self.abandon()
        looks = [watch.question for watch in self._asking if watch.question is not None]
        looks += self._turn_takers
        for look in looks:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)

    # Waiting

    def _waiter(
        self, watch: Watch, timeout: float | None, deadline: float | None, *, any_change: bool
    ) -> Waiter:
        future: asyncio.Future[TaskRecord] = asyncio.get_running_loop().create_future()
        waiter = Waiter(watch, future, timeout, any_change)
        watch.waiters.add(waiter)
        self._unfinished.waited_for(watch.name)
        if deadline is not None:
            self._deadlines.put(waiter, deadline)
        if watch.question is None and watch not in self._looks:
            self._looks.put(watch, watch.due_at)
        if self.is_closed:
            # Someone who was between two changes when the client was closed.
            _reject(waiter, _abandon)
        self._arm()
        return waiter

    def _leave(self, waiter: Waiter) -> None:
        watch = waiter.watch
        watch.waiters.discard(waiter)
        self._deadlines.drop(waiter)
        if not watch.waiters:
            self._looks.drop(watch)
            if watch.question is not None:
                watch.question.cancel()
            self._leave_the_queue()
        self._arm()

    # The one timer

    def _arm(self) -> None:
        may_poll = self._queuing is None and len(self._asking) < self._at_once
        self._poll_at = at = self._looks.next_due_at() if may_poll else None
        ends_at = self._deadlines.next_due_at()
        if at is None or (ends_at is not None and ends_at < at):
            at = ends_at
        if self._timer is not None and at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at is not None:
            self._timer, self._timer_at = self._clock.call_at(at, self._fire), at

    def _fire(self) -> None:
        self._timer = None
        now = max(self._clock.now(), self._timer_at)
        for waiter in self._deadlines.take(now, len(self._deadlines)):
            if _reject(waiter, _timed_out):
                failed = events.WaitFailed(waiter.watch.task_id, WaitTimeout.__name__)
                waiter.watch.context.copy().run(self._hooks.emit, failed)
        if self._turns is not None and self._turns.gate.is_paced:
            self._queue_up(self._turns, now)
        else:
            for watch in self._looks.take(now, self._at_once - len(self._asking)):
                look = self._ask(watch, self._look)
                loop = asyncio.get_running_loop()
                self._begin(watch, loop.create_task(look, context=watch.context))
        self._arm()

    def _begin(self, watch: Watch, question: "asyncio.Task[None]") -> None:
        self._asking.add(watch)
        watch.question = question
        # No clause in the look itself: one that is cancelled before it began runs none of it.
        question.add_done_callback(partial(self._asked, watch))

    # Taking turns

    def _queue_up(self, turns: Turns, now: float) -> None:
        """Queue one poll, for the task that is the first to be polled by then."""
        # A queue of looks would keep submits waiting, and most of it would be out of date.
        room = self._queuing is None and len(self._asking) < self._at_once
        if room and self._has_due(now):
            self._queuing = asyncio.get_running_loop().create_task(
                self._ask_in_turn(turns), context=contextvars.Context()
            )
            self._turn_takers.add(self._queuing)
            self._queuing.add_done_callback(self._turn_takers.discard)

    def _leave_the_queue(self) -> None:
        """Leave the queue, since no task needs the turn any more."""
        if self._queuing is not None and not self._has_due(self._clock.now()):
            self._queuing.cancel()
            self._queuing = None
            self._ranking = Ranking()  # it must not keep tasks without waits

    async def _ask_in_turn(self, turns: Turns) -> None:
        # Behind one at the most, so that looks get every second turn where submits queue as well.
        await asyncio.sleep(0)  # a loop may begin a task before it is known as `_queuing`
        async with turns.gate.slot(behind=1) as now:
            self._queuing = None
            polls = []
            for watch in self._take_first(now):
                look = self._ask(watch, lambda request: turns.look(request, now))
                polls.append(asyncio.get_running_loop().create_task(look, context=watch.context))
                self._begin(watch, polls[-1])
            self._arm()
            await asyncio.gather(*polls, return_exceptions=True)

    def _has_due(self, now: float) -> bool:
        due_at = self._looks.next_due_at()
        return due_at is not None and due_at <= now + TIMER_SLACK

    def _take_first(self, now: float) -> list[Watch]:
        """Remove and give the one task that is to be asked now, if there still is one."""
        if now - self._ranking.made_at >= RANKING_LASTS:
            self._rank(now)
        first = self._ranking.take(partial(self._is_due, now))
        if not first:
            self._rank(now)
            first = self._ranking.take(partial(self._is_due, now))
        for watch in first:
            self._looks.drop(watch)
        return first

    def _rank(self, now: float) -> None:
        due = self._looks.due(now + TIMER_SLACK)
        self._ranking.make(due, partial(self._promise, now), self._policy.max_starvation, now)

    def _promise(self, now: float, watch: Watch) -> float:
        """Return how likely news is, or if that is not known, how overdue the task is."""
        if watch.hinted_at is not None:
            return math.inf
        news = self._learner.news(watch.kind, watch.age(watch.running_at), watch.age(now))
        return (now - watch.due_at) / self._policy.max_starvation if news is None else news

    def _is_due(self, now: float, watch: Watch) -> bool:
        return watch in self._looks and watch.due_at <= now + TIMER_SLACK

    # One look

    async def _ask(self, watch: Watch, look: Callable[[Request], Awaitable[TaskRecord]]) -> None:
        watch.polls += 1
        watch.hinted_at = None
        watch.asked_at = self._clock.now()
        try:
            record = await look(watch.request)
        except RunwayError as error:
            self._take_error(watch, error)
        except Exception as defect:  # noqa: BLE001  (not one of ours: a defect)
            # Waiters get the error, rather than wait on for an answer that cannot come.
            self._fail(watch, partial(_same, defect))
        else:
            self._take_in(watch, record)
            now = self._clock.now()
            watch.due_at = now + self._pause(watch, now)

    def _asked(self, watch: Watch, _question: "asyncio.Task[None]") -> None:
        watch.question = None
        self._asking.discard(watch)
        if watch.hinted_at is not None:
            # A webhook that came meanwhile may be newer than the poll that was in flight.
            watch.due_at = min(watch.due_at, watch.hinted_at)
        if watch.waiters and not watch.is_settled:
            self._looks.put(watch, watch.due_at)
        self._arm()

    def _take_in(self, watch: Watch, record: TaskRecord) -> None:
        record = self._ended_if_stuck(watch, record)
        self._learn(watch, record)
        was, watch.record, watch.last_error = watch.record, record, None
        watch.was_seen = True
        if self._hooks.are_heard(events.TaskPolled):
            self._hooks.emit(
                events.TaskPolled(watch.task_id, record.state, record.progress, watch.polls)
            )
        self._remark(watch, record)
        if was is None or (was.prompt, was.prompt_en) != (record.prompt, record.prompt_en):
            watch.request = watch.request.hiding(record.prompt, record.prompt_en)
        if was is None or _face(was) != _face(record):
            watch.version += 1
            for waiter in [one for one in watch.waiters if one.any_change]:
                _resolve(waiter, record)
        if watch.is_settled:
            self._settle(watch, record)
        else:
            self._mind_the_url(watch, record)

    def _ended_if_stuck(self, watch: Watch, record: TaskRecord) -> TaskRecord:
        """Return *record* as a failure if an unknown status stays the same, with a reason."""
        was = watch.record
        is_odd = record.state is TaskState.UNKNOWN and is_reason(record.message)
        is_same = was is not None and _face(was) == _face(record) and was.word == record.word
        watch.stuck = (watch.stuck + 1 if is_same else 1) if is_odd else 0
        return (
            attrs.evolve(record, state=TaskState.FAILED) if watch.stuck >= STUCK_AFTER else record
        )

    def _settle(self, watch: Watch, record: TaskRecord) -> None:
        tag = self._unfinished.tag_of(watch.name)
        self._unfinished.seen(watch.name, record)
        if not was_told(watch, "settled"):
            self._rate_deliveries(watch)
            model = watch.kind[1] if watch.kind else None
            self._hooks.emit(
                events.TaskSettled(
                    *(watch.task_id, record.state, watch.polls, record.points, record.refunded),
                    model=model,
                    tag=tag,
                )
            )
        for waiter in list(watch.waiters):
            _resolve(waiter, record)

    def _rate_deliveries(self, watch: Watch) -> None:
        """Record whether a webhook had announced the end that was found."""
        if self._net is None or not watch.is_addressed:
            return
        if watch.polls_at_end_told is not None:
            self._reliance.end_was_told()
        elif self._reliance.end_was_not_told():
            now = self._clock.now()
            for other in filter(_is_untold, self._looks.keys()):
                self._look_by(other, now + self._pause(other, now))
        elif self._reliance.is_silent and not self._is_silence_told:
            self._is_silence_told = True
            self._hooks.emit(events.CallbacksMissing(self._reliance.untold))

    def _look_by(self, watch: Watch, at: float) -> None:
        """Move the next look at a task forward, if it is later than *at*."""
        watch.due_at = min(watch.due_at, at)
        if watch in self._looks:
            self._looks.put(watch, watch.due_at)
            if watch.hinted_at is not None and self._queuing is not None:
                self._ranking.put_first(watch)
            self._arm()

    def _mind_the_url(self, watch: Watch, record: TaskRecord) -> None:
        """End the wait for a success that goes on without an address (api-facts 3.4, rule 4)."""
        if record.state is not TaskState.SUCCEEDED:
            watch.url_missing_since = None
            return
        now = self._clock.now()
        if watch.url_missing_since is None:
            watch.url_missing_since = now
        if now - watch.url_missing_since >= self._policy.url_grace:
            self._fail(watch, _clip_missing)

    def _take_error(self, watch: Watch, error: RunwayError) -> None:
        watch.last_error = error
        now = self._clock.now()
        # A redirect says nothing about the task: a proxy may have sent it.
        is_unknown = isinstance(error, NotFound) and not 300 <= error.status < 400
        if isinstance(error, HOPELESS) or (is_unknown and not self._may_appear(watch, now)):
            if isinstance(error, NotFound):
                self._unfinished.not_found(watch.name)
            self._fail(watch, partial(_copy, error))
            return
        asked = error.retry_after if isinstance(error, GatewayError) else None
        # A wait has a deadline of its own, so a gateway that asks for more is polled nevertheless.
        delay = max(self._pause(watch, now), min(asked or 0.0, self._max_retry_after))
        watch.due_at = now + delay
        self._hooks.emit(events.PollFailed(watch.task_id, type(error).__name__, delay))

    def _may_appear(self, watch: Watch, now: float) -> bool:
        """
        Return whether a task that was not found may be found yet.

        One that was just accepted may not be visible at once (api-facts 5.4), and one that was
        seen before is known to exist, whatever a page of some proxy says in between.
        """
        if watch.was_seen:
            return True
        since = now - self._policy.not_found_grace
        return watch.submitted_at is not None and watch.submitted_at > since

    def _learn(self, watch: Watch, record: TaskRecord) -> None:
        """Record how long the task has run, before the record is its own."""
        if watch.kind is None or watch.is_settled:
            return
        since, watch.running_at = watch.age(watch.running_at), self._clock.now()
        until = watch.age(watch.running_at)
        self._learner.saw(watch.kind, since, until, has_ended=record.has_clip)

    def _pause(self, watch: Watch, now: float) -> float:
        """Return how long to stay away from a task that was looked at now, in seconds."""
        stray = self._policy.jitter * self._random.uniform(-1, 1)
        if watch.polls_at_end_told is not None:
            # The feed lags behind the webhook: the task is polled like one that was just submitted.
            return self._rung(watch.polls - watch.polls_at_end_told - 1) * (1 + stray)
        if self._net is not None and watch.is_addressed and self._reliance.is_proved:
            return self._net * (1 + stray)
        learned = self._learner.gap(watch.kind, watch.age(now), stray)
        if learned is not None:
            return learned
        return self._rung(watch.polls) * (1 + stray)

    def _rung(self, step: int) -> float:
        return self._ladder[min(max(step, 0), len(self._ladder) - 1)]

    def _fail(self, watch: Watch, make: Callable[[Waiter], BaseException]) -> None:
        failed = [waiter for waiter in list(watch.waiters) if _reject(waiter, make)]
        if failed:
            name = type(make(failed[0])).__name__
            self._hooks.emit(events.WaitFailed(watch.task_id, name))

    def _remark(self, watch: Watch, record: TaskRecord) -> None:
        """Report odd answers, once for each oddity."""
        if record.state is TaskState.UNKNOWN and not was_told(watch, f"word {record.word}"):
            self._hooks.emit(events.UnknownWordSeen(watch.task_id, record.word or ""))
        for note in record.notes:
            if not was_told(watch, note):
                self._hooks.emit(events.ContradictionSeen(watch.task_id, note))


def name_of(request: Request) -> Name:
    """Return what tells a task from all others of one gateway."""
    return request.endpoint.name, request.task_id or ""


def was_told(watch: Watch, what: str) -> bool:
    """Return whether *what* was reported for this task before, and record that it is now."""
    before = what in watch.told
    watch.told |= {what}
    return before


def _is_untold(watch: Watch) -> bool:
    return watch.is_addressed and watch.polls_at_end_told is None


def _face(record: TaskRecord) -> tuple[object, ...]:
    """Return what of a record a user can see change."""
    return record.state, record.progress, record.video_url, record.message


def _resolve(waiter: Waiter, record: TaskRecord) -> None:
    # A cancelled waiter stays in its place until its task has run.
    if not waiter.future.done():
        waiter.future.set_result(record)


def _reject(waiter: Waiter, make: Callable[[Waiter], BaseException]) -> bool:
    """End a wait, and tell whether it had not ended before."""
    if waiter.future.done():
        return False
    waiter.future.set_exception(make(waiter))
    return True


def _copy(error: RunwayError, _waiter: Waiter) -> RunwayError:
    return copied(error)


def _same(defect: Exception, _waiter: Waiter) -> Exception:
    return defect


def _timed_out(waiter: Waiter) -> WaitTimeout:
    watch = waiter.watch
    timeout = waiter.timeout or 0.0
    state = watch.record.state.value if watch.record else "not known yet"
    error = WaitTimeout(
        f"The task had not ended after {timeout:g} s; its state was {state}.",
        "It goes on, and what it costs is spent either way.",
        "Wait for it again: the same handle, or its id, still works.",
        watch.task_id,
        None,
        timeout,
    )
    error.__cause__ = watch.last_error
    return error


def _clip_missing(waiter: Waiter) -> ClipMissing:
    return ClipMissing(
        "The gateway calls the task a success and shows no address for the clip.",
        "It was charged.",
        "Wait for it again later, or show its id to the gateway's support.",
        waiter.watch.task_id,
    )


def _abandon(waiter: Waiter) -> WaitAbandoned:
    return _abandoned(waiter.watch)


def _abandoned(watch: Watch) -> WaitAbandoned:
    return WaitAbandoned(
        "The wait was ended: the client was closed, or its waits were (end_waits).",
        "The task goes on, and what it costs is spent either way.",
        "Wait for it again by its id: client.task(id).",
        watch.task_id,
    )
