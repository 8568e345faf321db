"""
The poller: all waits of one client in one event loop share one timer, and one poll per task.

Rule 1: a task is polled once at a time, however many callers wait for it.
Rule 2: each waiter has a future of its own, so that cancelling one leaves the others alone.
Rule 3: a failed poll affects its own task only, and ends a wait only if more polls cannot succeed.
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
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

from fuhu_runway import hooks as events
from fuhu_runway._clock import Clock, Timer
from fuhu_runway._http.limiter import RateLimiter
from fuhu_runway._http.retry import exponential_intervals
from fuhu_runway._wire.encode import Request
from fuhu_runway.errors import (
    GatewayError,
    NotFound,
    OutOfCredits,
    RateLimited,
    RunwayError,
    Unauthorized,
    UsageError,
    WaitTimeout,
    copied,
)
from fuhu_runway.models import PollPolicy, TaskRecord, TaskState

from .intervals import Kind, Learner
from .poll_queue import PollQueue
from .unfinished import Name, Unfinished
from .watch import Waiter, Watch, name_of, visible

__all__ = ["Poller", "Watch", "name_of"]

HOPELESS: Final = (Unauthorized, OutOfCredits, UsageError)
"""Errors that further polls would not change: they end a wait at once."""
RANKING_LASTS: Final = 1.0
"""Seconds between two sorts of the due tasks; if more, the order of polls is less up to date."""
STARVED_GAIN: Final = 0.7
"""Priority that a task gains for each `max_starvation` without a poll after the first, as a chance
of an end; if more, no task waits for long, but clips are found later if the budget is small."""
WEBHOOK_EVERY: Final = 5.0
"""Seconds between two polls of a task that webhooks make due; if more, a change that follows
another is seen later. If fewer, a leaked address can cause more polls."""
MISSING_AFTER: Final = 5
"""Ends without any webhook until `CallbacksMissing`; if more, a wrong address is reported later."""


class Poller:
    """
    All waits of one client in one event loop, over one heap and one timer.

    Args:
        poll: Sends one poll, in a turn of the limiter that began at the given instant. Returns the
            previous record, which it is given, if the response is the same.
        limiter: Where polls wait for their turn.
        policy: When to poll.
        clock: Source of time.
        hooks: Receive the events.
        max_retry_after: The longest time that a gateway may delay the next poll of a task, in
            seconds.
        rng: Source of the jitter.
        learner: The learned durations of tasks; empty by default.
        safety_net: The interval of polls while webhooks are relied on, in seconds; None without
            a receiver.
        unfinished: The list of paid tasks, which is kept up to date.
        until_closed: A block around each `refresh`, which ends it when the session is closed.
    """

    def __init__(
        self,
        poll: Callable[[Request, float, TaskRecord | None], Awaitable[TaskRecord]],
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
        until_closed: Callable[[], AbstractAsyncContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._poll = poll
        self._limiter = limiter
        self._policy = policy
        self._intervals = exponential_intervals(policy.first, policy.factor, policy.max_interval)
        self._max_retry_after = max_retry_after
        self._clock = clock
        self._hooks = hooks
        self._random = rng or random.Random()  # noqa: S311  (spreads load, guards nothing)
        self._learner = learner or Learner(policy)
        self._safety_net = safety_net
        self._unfinished = Unfinished() if unfinished is None else unfinished
        self._until_closed = until_closed
        # Keyed by endpoint too: an id polled in the wrong format may be right in the other one.
        self._watches: WeakValueDictionary[Name, Watch] = WeakValueDictionary()
        self._queue: PollQueue[Watch] = PollQueue()
        self._deadlines: PollQueue[Waiter] = PollQueue()
        self._polls: dict[Watch, asyncio.Task[None]] = {}
        #: The place in the limiter, for the task that is picked when its turn comes.
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
        #: How many times all waits were ended.
        self.abandoned = 0

    def __repr__(self) -> str:
        tasks, due = len(self._queue) + len(self._polls), ""
        # The last known due time: the call may come from another thread, where there is no instant
        # *now*, and reading the queue changes it.
        with contextlib.suppress(RuntimeError):
            if (poll_at := self._poll_at) is not None:
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

        While no one waits, the next wait polls at once. A webhook that announces no end matters
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
        """Report the end of a task if the response to its submit had it already."""
        if watch.record is not None and watch.is_settled:
            self._settle(watch, watch.record)

    def take_found(self, watch: Watch, record: TaskRecord) -> None:
        """Take in the record of a poll that found the task after a webhook named it."""
        if record.state.is_final:
            watch.polls_at_announced_end = watch.polls
        # In the context of its submit, as for its own polls; a copy, since that may be in use.
        watch.context.copy().run(self._take_in, watch, record, self._clock.now())

    async def settled(self, watch: Watch, timeout: float | None) -> TaskRecord:
        """
        Return the record with which the task ended, successfully or not.

        Raises:
            WaitTimeout: It had not ended after *timeout* seconds; `__cause__` is the last error.
            ClipMissing: A successful task still has no URL when its grace time is over.
            NotFound: The gateway does not know the task, although enough time has passed.
            Unauthorized: The key may not poll.
            OutOfCredits: The key's quota is used up, so it may no longer poll.
            WaitAbandoned: The client was closed meanwhile.
        """
        if watch.is_settled and watch.record is not None:
            return watch.record
        waiter = self._waiter(watch, timeout, self.deadline(timeout), any_change=False)
        # Repeated in `changed`: a shared coroutine would be one more in each of thousands of waits.
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
        the error. A reader passes *abandoned* as it was when it began, so that it also ends if it
        was busy with a record while all waits were ended.
        """
        if abandoned not in {None, self.abandoned}:
            raise watch.abandoned()
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
        """Send one poll and return its record; raises its error."""
        async with self._until_closed(), self._limiter.slot() as sent_at:
            record = await self._poll(watch.request, sent_at, None)
        self._take_in(watch, record, self._clock.now())
        return record

    def abandon(self) -> None:
        """End every wait with `WaitAbandoned`; the tasks themselves go on."""
        self.abandoned += 1
        for watch in list(self._watches.values()):
            # In a copy, since a listener may call this during a poll, whose context is in use.
            watch.context.copy().run(self._fail, watch, watch.abandoned)

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
        watch.waiters.append(waiter)
        self._unfinished.waited_for(watch.name)
        if deadline is not None:
            self._deadlines.put(waiter, deadline)
        if watch not in self._polls and watch not in self._queue:
            self._queue.put(watch, watch.due_at)
        if self.is_closed:
            # A reader that was between two changes when the client was closed.
            future.set_exception(watch.abandoned())
        self._arm()
        return waiter

    def _leave(self, waiter: Waiter) -> None:
        watch = waiter.watch
        watch.waiters.remove(waiter)
        self._deadlines.drop(waiter)
        if not watch.waiters:
            self._queue.drop(watch)
            if watch in self._polls:
                self._polls[watch].cancel()
            if self._turn is not None and not self._queue.has_due(self._clock.now()):
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
                waiter.future.set_exception(waiter.timed_out())
                failed = events.WaitFailed(waiter.watch.task_id, WaitTimeout.__name__)
                waiter.watch.context.copy().run(self._hooks.emit, failed)
        self._take_turns(now)

    def _take_turns(self, now: float) -> None:
        """Start a poll in each turn that the limiter has now, then hold a place for the next."""
        while self._turn is None and self._queue.has_due(now):
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

    def _start_best(self, now: float) -> None:
        """Start the poll of the due task that is worth most."""
        watch = self._next_in_ranking(now) if now - self._ranked_at < RANKING_LASTS else None
        if watch is None:
            self._ranking = sorted(self._queue.due(now), key=partial(self._worth, now))
            self._ranked_at = now
            watch = self._next_in_ranking(now)
        if watch is None:
            self._limiter.leave()
            return
        self._queue.drop(watch)
        poll = asyncio.get_running_loop().create_task(
            self._poll_once(watch, now), context=watch.context
        )
        self._polls[watch] = poll
        # Also here: a coroutine that is cancelled before its first step runs none of its code.
        poll.add_done_callback(partial(self._polled, watch))

    def _next_in_ranking(self, now: float) -> Watch | None:
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
        chance = self._learner.chance(watch.kind, watch.age(watch.running_at), watch.age(now))
        worth = (now - watch.due_at) / patience if chance is None else chance
        return worth + STARVED_GAIN * max(0.0, (now - watch.polled_at) / patience - 1)

    # One poll

    async def _poll_once(self, watch: Watch, sent_at: float) -> None:
        watch.polls += 1
        watch.webhook_due_at = None
        polled_at, watch.polled_at = watch.polled_at, sent_at
        try:
            # The response to the submit does not count: the same bytes mean less in it.
            known = watch.record if watch.was_seen else None
            record = await self._poll(watch.request, sent_at, known)
        except RunwayError as error:
            if isinstance(error, RateLimited):
                watch.polled_at = polled_at  # the time in flight counts as waiting
            self._take_error(watch, error)
        except Exception as defect:  # noqa: BLE001  (not one of ours: a defect)
            fault = defect  # waiters get it at once, since no record can come
            self._fail(watch, lambda: fault)
        else:
            now = self._clock.now()
            self._take_in(watch, record, now)
            watch.due_at = now + self._pause(watch, now)
        finally:
            # Not only in the callback of its task: that comes one round of a busy loop later.
            self._polled(watch, asyncio.current_task())

    def _polled(self, watch: Watch, poll: "asyncio.Task[None] | None") -> None:
        """Make room, and plan the next poll of the task; once for each poll."""
        if self._polls.get(watch) is not poll:
            return
        del self._polls[watch]
        self._limiter.leave()
        if watch.webhook_due_at is not None:
            # A webhook that came in the meantime may be newer than the poll that was in flight.
            watch.due_at = min(watch.due_at, watch.webhook_due_at)
        if watch.waiters and not watch.is_settled:
            self._queue.put(watch, watch.due_at)
        self._take_turns(self._clock.now())

    def _take_in(self, watch: Watch, record: TaskRecord, now: float) -> None:
        was = watch.record
        record = watch.failed_if_stuck(record, now, self._policy.max_interval)
        if watch.kind is not None and not watch.is_settled:
            since, watch.running_at = watch.age(watch.running_at), now
            self._learner.saw(watch.kind, since, watch.age(now), has_ended=record.has_clip)
        watch.record, watch.last_error, watch.was_seen = record, None, True
        self._report(watch, record)
        if was is None or (was.prompt, was.prompt_en) != (record.prompt, record.prompt_en):
            watch.request = watch.request.hiding(record.prompt, record.prompt_en)
        if was is None or visible(was) != visible(record):
            watch.version += 1
            for waiter in watch.waiters:
                if waiter.any_change:
                    waiter.resolve(record)
        if watch.is_settled:
            self._settle(watch, record)
        elif record.state is not TaskState.SUCCEEDED:
            watch.url_missing_since = None
        else:
            # A success that stays without an address ends the wait (api-facts 3.4, rule 4).
            if watch.url_missing_since is None:
                watch.url_missing_since = now
            if now - watch.url_missing_since >= self._policy.url_grace:
                self._fail(watch, watch.clip_missing)

    def _report(self, watch: Watch, record: TaskRecord) -> None:
        """Emit the poll, and each oddity of the record once."""
        if self._hooks.is_enabled_for(events.TaskPolled):
            self._hooks.emit(
                events.TaskPolled(watch.task_id, record.state, record.progress, watch.polls)
            )
        if not record.notes and record.state is not TaskState.UNKNOWN:
            return
        oddities: dict[str, events.Event] = {
            note: events.ContradictionSeen(watch.task_id, note) for note in record.notes
        }
        if record.state is TaskState.UNKNOWN:
            seen = events.UnknownWordSeen(watch.task_id, record.word or "")
            oddities[f"word {record.word}"] = seen
        for what, event in oddities.items():
            if what not in watch.reported:
                watch.reported |= {what}
                self._hooks.emit(event)

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
            waiter.resolve(record)

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

    def _take_error(self, watch: Watch, error: RunwayError) -> None:
        before, watch.last_error = watch.last_error, error
        now = self._clock.now()
        # A task that was just accepted may not be visible at once (api-facts 5.4), and one that
        # was seen before is known to exist, whatever a proxy's page says in between.
        since = now - self._policy.not_found_grace
        is_new = watch.submitted_at is not None and watch.submitted_at > since
        # A redirect says nothing about the task: a proxy may have sent it.
        is_404 = isinstance(error, NotFound) and not 300 <= error.status < 400
        is_unknown = is_404 and not (watch.was_seen or is_new)
        # Some gateways refuse a good key now and then (QuantumNous/new-api, issue 3302).
        is_known = watch.was_seen or watch.submitted_at is not None
        is_refused = isinstance(error, Unauthorized) and is_known
        is_first = is_refused and not isinstance(before, Unauthorized)
        if (isinstance(error, HOPELESS) and not is_first) or is_unknown:
            if is_unknown:
                self._unfinished.not_found(watch.name)
            self._fail(watch, partial(copied, error))
            return
        retry_after = error.retry_after if isinstance(error, GatewayError) else None
        # A wait has a deadline, so the task is polled even if the gateway asks for more time.
        delay = max(self._pause(watch, now), min(retry_after or 0.0, self._max_retry_after))
        watch.due_at = now + delay
        self._hooks.emit(events.PollFailed(watch.task_id, type(error).__name__, delay))

    def _pause(self, watch: Watch, now: float) -> float:
        """Return the time from a poll now to the next, in seconds."""
        stray = self._policy.jitter * self._random.uniform(-1, 1)
        polls = watch.polls
        if watch.polls_at_announced_end is not None:
            # The feed lags behind the webhook: the task is polled like one that was just submitted.
            polls = max(0, polls - watch.polls_at_announced_end - 1)
        elif self._safety_net is not None and watch.is_addressed and self._relies_on_webhooks:
            return self._safety_net * (1 + stray)
        else:
            learned = self._learner.gap(watch.kind, watch.age(now), stray)
            if learned is not None:
                return learned
        return self._intervals[min(polls, len(self._intervals) - 1)] * (1 + stray)

    def _fail(self, watch: Watch, make: Callable[[], BaseException]) -> None:
        """End all waits for a task, each with an error of its own."""
        waiting = [waiter for waiter in watch.waiters if not waiter.future.done()]
        for waiter in waiting:
            waiter.future.set_exception(make())
        if waiting:
            self._hooks.emit(events.WaitFailed(watch.task_id, type(make()).__name__))
