"""
All waits of one client in one event loop: one timer, one poll per task, many waiters.

Rule 1: a task is polled once at a time, however many callers wait for it.
Rule 2: each waiter has a future of its own, so that cancelling one leaves the others alone.
Rule 3: a failed poll affects its own task only, and ends a wait only if polling again is hopeless.
Rule 4: with no waiters left there is no timer, no poll and no queue entry left.
Rule 5: the poller holds one place in the rate limiter, and picks the task when its turn comes.
Rule 6: a webhook makes a poll due. The record that counts is the one that the poll returns.

Instants are seconds of the loop's clock.
"""

import asyncio
import contextlib
import contextvars
import math
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

import attrs

from fuhu_runway import hooks as events
from fuhu_runway._clock import Clock, Timer
from fuhu_runway._http.limiter import RateLimiter
from fuhu_runway._http.retry import ladder
from fuhu_runway._wire.decode import is_reason
from fuhu_runway._wire.encode import Request
from fuhu_runway.errors import (
    ClipMissing,
    GatewayError,
    NotFound,
    OutOfCredits,
    RateLimited,
    RunwayError,
    Unauthorized,
    UsageError,
    WaitAbandoned,
    WaitTimeout,
    copied,
)
from fuhu_runway.models import PollPolicy, TaskRecord, TaskState

from .intervals import Kind, Learner
from .poll_queue import PollQueue
from .task_limit import Name, Unfinished

HOPELESS: Final = (Unauthorized, OutOfCredits, UsageError)
"""Errors that polling again does not change: they end a wait at once."""
RANKING_LASTS: Final = 1.0
"""Seconds between two sorts of the due tasks; if more, the order of polls is less up to date."""
STARVED_GAIN: Final = 0.7
"""What a task that is not polled gains on others, in chances of an end for each `max_starvation`
after the first; if more, no task waits for long, but clips lie about for longer where the budget
is too small for all."""
STUCK_AFTER: Final = 5
"""Polls in a row with the same unknown status and reason that count as a failure; if more, a
failure under an unknown word is reported later. If fewer, a task that only queues is given up."""
WEBHOOK_EVERY: Final = 5.0
"""Seconds between two polls of a task that webhooks make due; if more, a change that follows
another is seen later. If fewer, a leaked address can cause more polls."""
MISSING_AFTER: Final = 5
"""Ends without any webhook until `CallbacksMissing`; if more, a wrong address is reported later."""


@attrs.define(eq=False)
class Waiter:
    """A caller that waits for the end of a task, or for its next change."""

    watch: "Watch"
    future: "asyncio.Future[TaskRecord]"
    #: What the caller asked for, in seconds, for the text of the error.
    timeout: float | None
    any_change: bool


@attrs.define(eq=False, weakref_slot=True)
class Watch:
    """What the poller knows about one task."""

    request: Request
    #: When the task was accepted; None if it was re-attached by its id.
    submitted_at: float | None
    record: TaskRecord | None = None
    #: What its duration depends on; None if that, or when it was accepted, is not known.
    kind: Kind | None = None
    #: When it was last known to run.
    running_at: float = 0.0
    #: When it was last polled.
    polled_at: float = 0.0
    #: Grows by one with every change of the record.
    version: int = 0
    #: How often it was polled.
    polls: int = 0
    #: Whether the feed has ever shown it.
    was_seen: bool = False
    #: Next poll time. Kept while no one is waiting, so that many short waits do not poll more
    #: often than one long wait.
    due_at: float = 0.0
    waiters: set[Waiter] = attrs.field(factory=set)
    last_error: RunwayError | None = None
    url_missing_since: float | None = None
    #: Its polls and their events run in this copy of the context in which the task was submitted,
    #: or first waited for if that is not known.
    context: contextvars.Context = attrs.field(factory=contextvars.copy_context)
    #: How many polls in a row gave the same unknown status with the same reason.
    stuck: int = 0
    #: The oddities that were reported.
    reported: frozenset[str] = frozenset()
    is_end_reported: bool = False
    #: Whether the gateway was given an address for the webhooks of this task.
    is_addressed: bool = False
    #: When a webhook makes it due; None if there was none since the last poll.
    webhook_due_at: float | None = None
    #: The earliest time at which a webhook may make it due.
    next_webhook_at: float = -math.inf
    #: How often it had been polled when a webhook announced its end; None if none did.
    polls_at_announced_end: int | None = None
    #: Made once, since it is a key in several places.
    name: Name = attrs.field(init=False)

    @name.default
    def _name(self) -> Name:
        return name_of(self.request)

    def age(self, now: float) -> float:
        """Return how old the task was at the instant *now*; of use only where its kind is known."""
        return now - (self.submitted_at or 0.0)

    @property
    def task_id(self) -> str:
        return self.request.task_id or ""

    @property
    def is_settled(self) -> bool:
        """Whether the task has ended."""
        return self.record is not None and self.record.is_settled


class Poller:
    """
    All waits of one client in one event loop, over one heap and one timer.

    Args:
        poll: Sends one poll, in a turn of the limiter that began at the given instant.
        limiter: Where polls wait for their turn.
        policy: When to poll.
        clock: Where time comes from.
        hooks: Receive the events.
        max_retry_after: The longest time that a gateway may keep a task from being polled, in
            seconds.
        rng: Where the jitter comes from.
        learner: What is known of how long tasks take; by default nothing yet.
        safety_net: The interval of polls while webhooks are relied on, in seconds; None without
            a receiver.
        unfinished: The list of paid tasks, which is kept up to date.
    """

    def __init__(
        self,
        poll: Callable[[Request, float], Awaitable[TaskRecord]],
        limiter: RateLimiter,
        *,
        policy: PollPolicy,
        clock: Clock,
        hooks: events.Hooks,
        max_retry_after: float = 120.0,
        rng: random.Random | None = None,
        learner: Learner | None = None,
        safety_net: float | None = None,
        unfinished: Unfinished | None = None,
    ) -> None:
        self._poll = poll
        self._limiter = limiter
        self._policy = policy
        self._ladder = ladder(policy.first, policy.factor, policy.max_interval)
        self._max_retry_after = max_retry_after
        self._clock = clock
        self._hooks = hooks
        self._random = rng or random.Random()  # noqa: S311  (spreads load, guards nothing)
        self._learner = learner or Learner(policy)
        self._safety_net = safety_net
        self._unfinished = Unfinished() if unfinished is None else unfinished
        # By endpoint too: an id that was polled in the wrong format may be right in the other one.
        self._watches: WeakValueDictionary[Name, Watch] = WeakValueDictionary()
        self._queue: PollQueue[Watch] = PollQueue()
        self._deadlines: PollQueue[Waiter] = PollQueue()
        self._polls: dict[Watch, asyncio.Task[None]] = {}
        #: The place in the limiter, for whichever task is picked when its turn comes.
        self._turn: asyncio.Future[None] | None = None
        #: The tasks that were due at that instant, the best one last.
        self._ranking: list[Watch] = []
        self._ranked_at = -math.inf
        self._webhooks_came = False
        self._relies_on_webhooks = False
        self._ends_without_webhook = 0
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._poll_at: float | None = None
        self.is_closed = False
        #: How often every wait was ended.
        self.abandoned = 0

    def __repr__(self) -> str:
        tasks = len(self._queue) + len(self._polls)
        # The last known due time: the call may come from another thread, and reading the queue
        # changes it.
        due, poll_at = "", self._poll_at
        if poll_at is not None:
            # Outside of its loop there is no instant *now*.
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
        Return the watch over one task; all handles of a task share it.

        A new watch polls in a copy of *context*, by default of the running one.
        """
        watch = self._watches.get(name_of(request))
        if watch is None:
            # A copy, since two loops in two threads may poll at the same time.
            context = contextvars.copy_context() if context is None else context.copy()
            watch = Watch(request, submitted_at, record, is_addressed=is_addressed, context=context)
            watch.due_at = watch.polled_at = self._clock.now()
            if submitted_at is not None:
                watch.kind, watch.running_at = kind, submitted_at
                watch.due_at = submitted_at + self._pause(watch, submitted_at)
            self._watches[watch.name] = watch
        return watch

    def find(self, endpoint: str, task_id: str) -> Watch | None:
        """Return the watch over a task that a caller holds; None if there is none."""
        return self._watches.get((endpoint, task_id))

    def webhook_came(self, watch: Watch, *, is_end: bool) -> None:
        """
        Make a poll due because of a webhook, at most every `WEBHOOK_EVERY` seconds.

        While no one waits, the next wait polls at once. A webhook that announces no end is of use
        only to callers that follow every change.
        """
        watch.is_addressed = self._webhooks_came = True
        if watch.is_settled or self.is_closed:
            return
        if is_end and watch.polls_at_announced_end is None:
            watch.polls_at_announced_end = watch.polls
        is_news = is_end or not watch.waiters or any(one.any_change for one in watch.waiters)
        if is_news and watch.webhook_due_at is None:
            watch.webhook_due_at = max(self._clock.now(), watch.next_webhook_at)
            watch.next_webhook_at = watch.webhook_due_at + WEBHOOK_EVERY
            if watch not in self._polls:
                self._poll_by(watch, watch.webhook_due_at)

    def take_end(self, watch: Watch) -> None:
        """Report the end of a task if the answer to its submit had it already."""
        if watch.record is not None and watch.is_settled:
            self._settle(watch, watch.record)

    def take_told(self, watch: Watch, record: TaskRecord) -> None:
        """Take in the record of a poll that was sent elsewhere because of a webhook."""
        if record.state.is_final:
            watch.polls_at_announced_end = watch.polls
        self._take_in(watch, record)

    async def settled(self, watch: Watch, timeout: float | None) -> TaskRecord:
        """
        Return the record with which the task ended, successfully or not.

        Raises:
            WaitTimeout: It had not ended after *timeout* seconds; `__cause__` is the last trouble.
            ClipMissing: A success that went on showing no address.
            NotFound: The gateway does not know the task, and had time to.
            Unauthorized: The key may not poll.
            OutOfCredits: The key's quota is used up, and with it the right to poll.
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

        The *deadline* is an instant, so that many calls can share it; *timeout* is for the text of
        the error. A reader passes *abandoned* as it was when it began, so that it ends as well if
        it was busy with a record while all waits were ended.
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
        """Return what one poll now says; raises its error."""
        async with self._limiter.slot() as sent_at:
            record = await self._poll(watch.request, sent_at)
        self._take_in(watch, record)
        return record

    def abandon(self) -> None:
        """End every wait with `WaitAbandoned`; the tasks themselves go on."""
        self.abandoned += 1
        for watch in list(self._watches.values()):
            # In a copy, since a listener may call this during a poll, whose context is in use.
            watch.context.copy().run(self._fail, watch, partial(_abandoned, watch))

    async def aclose(self) -> None:
        """End every wait and every poll."""
        self.is_closed = True
        self.abandon()
        polls = list(self._polls.values())
        for poll in polls:
            poll.cancel()
        if self._turn is not None:
            self._turn.cancel()
        await asyncio.gather(*polls, return_exceptions=True)

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
        if watch not in self._polls and watch not in self._queue:
            self._queue.put(watch, watch.due_at)
        if self.is_closed:
            # A reader that was between two changes when the client was closed.
            future.set_exception(_abandoned(watch))
        self._arm()
        return waiter

    def _leave(self, waiter: Waiter) -> None:
        watch = waiter.watch
        watch.waiters.discard(waiter)
        self._deadlines.drop(waiter)
        if not watch.waiters:
            self._queue.drop(watch)
            if watch in self._polls:
                self._polls[watch].cancel()
            if self._turn is not None and not self._has_due(self._clock.now()):
                self._turn.cancel()
                self._turn, self._ranking = None, []
        self._arm()

    # The timer, and the turns

    def _arm(self) -> None:
        self._poll_at = at = self._queue.next_due_at() if self._turn is None else None
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
        now = max(self._clock.now(), self._timer_at)  # loops call a little early
        for waiter in self._deadlines.take(now, len(self._deadlines)):
            # A cancelled waiter stays until its task has run.
            if not waiter.future.done():
                waiter.future.set_exception(_timed_out(waiter))
                failed = events.WaitFailed(waiter.watch.task_id, WaitTimeout.__name__)
                waiter.watch.context.copy().run(self._hooks.emit, failed)
        self._take_turns(now)

    def _take_turns(self, now: float) -> None:
        """Start a poll in each turn that the limiter has now, then hold a place for the next."""
        while self._turn is None and self._has_due(now):
            if self._limiter.try_enter():
                self._start_best(now)
            else:
                self._turn = self._limiter.line_up(soon=True)
                self._turn.add_done_callback(self._turn_came, context=contextvars.Context())
        self._arm()

    def _turn_came(self, turn: "asyncio.Future[None]") -> None:
        if not turn.cancelled() and turn.exception() is None:
            self._turn, now = None, self._clock.now()
            self._start_best(now)
            self._take_turns(now)

    def _has_due(self, now: float) -> bool:
        due_at = self._queue.next_due_at()
        return due_at is not None and due_at <= now

    def _start_best(self, now: float) -> None:
        watch = self._best(now)
        if watch is None:
            self._limiter.leave()
            return
        self._queue.drop(watch)
        poll = asyncio.get_running_loop().create_task(
            self._poll_once(watch, self._clock.now()), context=watch.context
        )
        self._polls[watch] = poll
        # Not in the coroutine: one that is cancelled before its first step runs none of it.
        poll.add_done_callback(partial(self._polled, watch))

    def _best(self, now: float) -> Watch | None:
        """Return the due task whose poll is worth most."""
        for is_new in (False, True):
            if is_new or now - self._ranked_at >= RANKING_LASTS:
                self._ranking = sorted(self._queue.due(now), key=partial(self._worth, now))
                self._ranked_at = now
            while self._ranking:
                watch = self._ranking.pop()
                if watch in self._queue and watch.due_at <= now:
                    return watch
        return None

    def _worth(self, now: float, watch: Watch) -> float:
        """
        Return the chance that a poll finds an end; if that is not known, how overdue the poll is.

        A task that was not polled for `max_starvation` gains on the others from then on.
        """
        if watch.webhook_due_at is not None:
            return math.inf
        patience = self._policy.max_starvation
        chance = self._learner.news(watch.kind, watch.age(watch.running_at), watch.age(now))
        worth = (now - watch.due_at) / patience if chance is None else chance
        return worth + STARVED_GAIN * max(0.0, (now - watch.polled_at) / patience - 1)

    # One poll

    async def _poll_once(self, watch: Watch, sent_at: float) -> None:
        watch.polls += 1
        watch.webhook_due_at = None
        polled_at, watch.polled_at = watch.polled_at, sent_at
        try:
            record = await self._poll(watch.request, sent_at)
        except RunwayError as error:
            if isinstance(error, RateLimited):
                watch.polled_at = polled_at  # it has waited for an answer all the time
            self._take_error(watch, error)
        except Exception as defect:  # noqa: BLE001  (not one of ours: a defect)
            # Waiters get it at once, rather than wait for a record that cannot come.
            known = defect
            self._fail(watch, lambda: known)
        else:
            self._take_in(watch, record)
            now = self._clock.now()
            watch.due_at = now + self._pause(watch, now)

    def _polled(self, watch: Watch, _poll: "asyncio.Task[None]") -> None:
        del self._polls[watch]
        self._limiter.leave()
        if watch.webhook_due_at is not None:
            # A webhook that came meanwhile may be newer than the poll that was in flight.
            watch.due_at = min(watch.due_at, watch.webhook_due_at)
        if watch.waiters and not watch.is_settled:
            self._queue.put(watch, watch.due_at)
        self._arm()

    def _take_in(self, watch: Watch, record: TaskRecord) -> None:
        record = self._ended_if_stuck(watch, record)
        self._learn(watch, record)
        was, watch.record, watch.last_error = watch.record, record, None
        watch.was_seen = True
        if self._hooks.is_enabled_for(events.TaskPolled):
            self._hooks.emit(
                events.TaskPolled(watch.task_id, record.state, record.progress, watch.polls)
            )
        if record.state is TaskState.UNKNOWN:
            seen = events.UnknownWordSeen(watch.task_id, record.word or "")
            self._report_once(watch, f"word {record.word}", seen)
        for note in record.notes:
            self._report_once(watch, note, events.ContradictionSeen(watch.task_id, note))
        if was is None or (was.prompt, was.prompt_en) != (record.prompt, record.prompt_en):
            watch.request = watch.request.hiding(record.prompt, record.prompt_en)
        if was is None or _visible(was) != _visible(record):
            watch.version += 1
            for waiter in watch.waiters:
                if waiter.any_change:
                    _resolve(waiter, record)
        if watch.is_settled:
            self._settle(watch, record)
        else:
            self._check_url(watch, record)

    def _report_once(self, watch: Watch, what: str, event: events.Event) -> None:
        if what not in watch.reported:
            watch.reported |= {what}
            self._hooks.emit(event)

    def _ended_if_stuck(self, watch: Watch, record: TaskRecord) -> TaskRecord:
        """Return *record* as a failure if an unknown status stays the same, with a reason."""
        was = watch.record
        is_odd = record.state is TaskState.UNKNOWN and is_reason(record.message)
        is_same = was is not None and _visible(was) == _visible(record) and was.word == record.word
        watch.stuck = (watch.stuck + 1 if is_same else 1) if is_odd else 0
        if watch.stuck >= STUCK_AFTER:
            return attrs.evolve(record, state=TaskState.FAILED)
        return record

    def _settle(self, watch: Watch, record: TaskRecord) -> None:
        tag = self._unfinished.tag_of(watch.name)
        self._unfinished.seen(watch.name, record)
        if not watch.is_end_reported:
            watch.is_end_reported = True
            self._judge_webhooks(watch)
            model = watch.kind[1] if watch.kind else None
            self._hooks.emit(
                events.TaskSettled(
                    *(watch.task_id, record.state, watch.polls, record.points, record.refunded),
                    model=model,
                    tag=tag,
                )
            )
        for waiter in watch.waiters:
            _resolve(waiter, record)

    def _judge_webhooks(self, watch: Watch) -> None:
        """Rely on webhooks after one that announced an end, and no longer after one was missed."""
        if self._safety_net is None or not watch.is_addressed:
            return
        if watch.polls_at_announced_end is not None:
            self._relies_on_webhooks = True
        elif self._relies_on_webhooks:
            self._relies_on_webhooks = False
            now = self._clock.now()
            for other in self._queue:
                if other.is_addressed and other.polls_at_announced_end is None:
                    self._poll_by(other, now + self._pause(other, now))
        else:
            self._ends_without_webhook += 1
            if self._ends_without_webhook == MISSING_AFTER and not self._webhooks_came:
                self._hooks.emit(events.CallbacksMissing(MISSING_AFTER))

    def _poll_by(self, watch: Watch, at: float) -> None:
        """Make the next poll of a task due at *at*, if it would be later."""
        watch.due_at = min(watch.due_at, at)
        if watch in self._queue:
            self._queue.put(watch, watch.due_at)
            if watch.webhook_due_at is not None:
                self._ranking.append(watch)
            self._arm()

    def _check_url(self, watch: Watch, record: TaskRecord) -> None:
        """End the wait for a success that goes on without an address (api-facts 3.4, rule 4)."""
        if record.state is not TaskState.SUCCEEDED:
            watch.url_missing_since = None
            return
        now = self._clock.now()
        if watch.url_missing_since is None:
            watch.url_missing_since = now
        if now - watch.url_missing_since >= self._policy.url_grace:
            self._fail(watch, partial(_clip_missing, watch))

    def _take_error(self, watch: Watch, error: RunwayError) -> None:
        watch.last_error = error
        now = self._clock.now()
        # A redirect says nothing about the task: a proxy may have sent it.
        is_unknown = isinstance(error, NotFound) and not 300 <= error.status < 400
        if isinstance(error, HOPELESS) or (is_unknown and not self._may_appear(watch, now)):
            if isinstance(error, NotFound):
                self._unfinished.not_found(watch.name)
            self._fail(watch, partial(copied, error))
            return
        retry_after = error.retry_after if isinstance(error, GatewayError) else None
        # A wait has a deadline, so the task is polled even if the gateway asks for more time.
        delay = max(self._pause(watch, now), min(retry_after or 0.0, self._max_retry_after))
        watch.due_at = now + delay
        self._hooks.emit(events.PollFailed(watch.task_id, type(error).__name__, delay))

    def _may_appear(self, watch: Watch, now: float) -> bool:
        """
        Return whether a task that was not found may be found yet.

        One that was just accepted may not be visible at once (api-facts 5.4), and one that was
        seen before is known to exist, whatever a proxy's page says in between.
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
        """Return the time from a poll now to the next, in seconds."""
        stray = self._policy.jitter * self._random.uniform(-1, 1)
        if watch.polls_at_announced_end is not None:
            # The feed lags behind the webhook: the task is polled like one that was just submitted.
            return self._interval(watch.polls - watch.polls_at_announced_end - 1) * (1 + stray)
        if self._safety_net is not None and watch.is_addressed and self._relies_on_webhooks:
            return self._safety_net * (1 + stray)
        learned = self._learner.gap(watch.kind, watch.age(now), stray)
        return self._interval(watch.polls) * (1 + stray) if learned is None else learned

    def _interval(self, step: int) -> float:
        return self._ladder[min(max(step, 0), len(self._ladder) - 1)]

    def _fail(self, watch: Watch, make: Callable[[], BaseException]) -> None:
        """End all waits for a task, each with an error of its own."""
        waiting = [waiter for waiter in watch.waiters if not waiter.future.done()]
        for waiter in waiting:
            waiter.future.set_exception(make())
        if waiting:
            self._hooks.emit(events.WaitFailed(watch.task_id, type(make()).__name__))


def name_of(request: Request) -> Name:
    """Return what identifies a task among all of one gateway."""
    return request.endpoint.name, request.task_id or ""


def _visible(record: TaskRecord) -> tuple[object, ...]:
    """Return what of a record a user can see change."""
    return record.state, record.progress, record.video_url, record.message


def _resolve(waiter: Waiter, record: TaskRecord) -> None:
    # A cancelled waiter stays until its task has run.
    if not waiter.future.done():
        waiter.future.set_result(record)


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


def _clip_missing(watch: Watch) -> ClipMissing:
    return ClipMissing(
        "The gateway calls the task a success and shows no address for the clip.",
        "It was charged.",
        "Wait for it again later, or show its id to the gateway's support.",
        watch.task_id,
    )


def _abandoned(watch: Watch) -> WaitAbandoned:
    return WaitAbandoned(
        "The wait was ended: the client was closed, or its waits were (end_waits).",
        "The task goes on, and what it costs is spent either way.",
        "Wait for it again by its id: client.task(id).",
        watch.task_id,
    )
