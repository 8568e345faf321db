"""
The paid path, from top to bottom: task limit, local files, journal, send once, journal, task.

Rule 1: each submission that was started has exactly one reported end: a task, a failure or a doubt.
Rule 2: the outcome of a request matters more than the row that records it.
Rule 3: a submission runs as a task, apart from its callers. If the last one is cancelled, a request
in flight goes on and its task is kept; before that, and between two attempts, all of it ends.
"""

import asyncio
import contextvars
import itertools
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import attrs

from fuhu_runway import hooks as events
from fuhu_runway._clock import ahead
from fuhu_runway._http.retry import delay_before, delays, in_doubt
from fuhu_runway._waiting.unfinished import Origin
from fuhu_runway._wire.decode import read_task
from fuhu_runway._wire.encode import Reply, Request, build
from fuhu_runway._wire.tables import SUBMITS, feed_of
from fuhu_runway.errors import (
    Fate,
    NoReply,
    RunwayError,
    SubmissionInDoubt,
    copied,
    drop_frames,
)
from fuhu_runway.journal import Plan, planned
from fuhu_runway.models import Generation, TaskRecord, TaskState
from fuhu_runway.task import Task

from . import webhooks
from .entry import Entry, entry_for
from .session import Session

if TYPE_CHECKING:
    from fuhu_runway._addresses import Address

    from .sessions import Sessions

CUT_OFF: Final = 1.0
"""How long the end of a program waits for the row of a request that it cuts off, in seconds; if
more, it ends later while its database cannot be reached."""

_NUMBERS: Final = itertools.count(1)


@attrs.define(eq=False)
class Submission:
    """One paid request, from the wait for a free slot to its task; several callers may share it."""

    sessions: "Sessions"
    session: Session
    request: Generation
    #: The job's row in the journal; None if there is no row yet.
    plan: Plan | None
    #: The caller's own name for it, and what the caller attached to it.
    custom_id: str | None
    tag: str | None
    number: int = attrs.field(init=False, factory=lambda: next(_NUMBERS))
    loop: asyncio.AbstractEventLoop = attrs.field(init=False, factory=asyncio.get_running_loop)
    #: The asyncio task that runs the submission.
    work: "asyncio.Task[Task]" = attrs.field(init=False)
    callers: int = attrs.field(init=False, default=0)
    #: Set when the next submission under the same name may begin; for other threads.
    ended: threading.Event = attrs.field(init=False, factory=threading.Event)
    #: Whether the last caller was cancelled.
    is_left: bool = attrs.field(init=False, default=False)
    #: What is known about the request; UNKNOWN while it is in flight.
    fate: Fate = attrs.field(init=False, default=Fate.UNSENT)
    #: When it was first sent, on the loop's clock.
    sent_at: float | None = attrs.field(init=False, default=None)
    #: The state of this machine's clock when it was last sent; see `ahead`.
    ahead: float = attrs.field(init=False, default=0.0)
    #: Where the gateway posts its webhooks; None without a receiver.
    address: "Address | None" = attrs.field(init=False, default=None)
    #: Its task, once it is known.
    task: Task | None = attrs.field(init=False, default=None)

    @property
    def endpoint(self) -> str:
        return SUBMITS[type(self.request)].name

    async def run(self) -> Task:
        """Send the request at most once and return its task; see `Client.submit`."""
        sessions, session, hooks = self.sessions, self.session, self.sessions.hooks
        settings, policy = sessions.settings, sessions.settings.retry
        stand_in = sessions.files.checked(self.request)
        plan = self.plan or await planned(
            self.request, f"single:{uuid4()}", self.custom_id, self.tag
        )
        self.address = webhooks.new_address(sessions, plan, self.request, self.custom_id, self.tag)
        wire = self._wire(stand_in)
        record: TaskRecord | None = None
        found: TaskRecord | None = None

        hooks.emit(
            events.SubmissionStarted(
                self.number, settings.client, self.endpoint, plan.model, plan.seconds
            )
        )
        try:
            trace = hooks.trace_of(self.number)
            entry = await entry_for(sessions, plan, trace, self.number, is_new=self.plan is None)
            async with session.tasks.one_more(
                lambda tasks: hooks.emit(events.SubmissionHeld(self.number, tasks))
            ):
                if stand_in is not self.request:
                    # Not before there is a free slot: an address may work for an hour only.
                    placed = await sessions.files.placed(session, self.request)
                    wire = self._wire(placed)
                attempts = enumerate(delays(policy), 1)
                while record is None:
                    attempt, drawn = next(attempts)
                    try:
                        record = await self._send(wire, entry, attempt)
                        continue
                    except RunwayError as error:
                        if self.fate is Fate.UNKNOWN:
                            found = await self._search(plan.key)
                            if found is None:
                                raise in_doubt(error) from error
                            record = TaskRecord(found.task_id, TaskState.QUEUED)
                            continue
                        delay = delay_before(attempt, error, wire.endpoint.replay, policy, drawn)
                        if delay is None or self.is_left:
                            raise
                        name = type(error).__name__
                    self.fate = Fate.UNSENT
                    hooks.emit(
                        events.RetryScheduled(self.endpoint, attempt, delay, name, self.number)
                    )
                    await session.transport.pause(delay)

                now = settings.clock.now()
                self.task = sessions.new_task(
                    (feed_of(self.request).name, record.task_id),
                    Origin(now, self.custom_id, self.tag),
                    request=self.request,
                    record=record,
                    context=contextvars.copy_context(),
                )
                seconds = now - (self.sent_at or now)
                hooks.emit(
                    events.TaskSubmitted(
                        record.task_id, self.endpoint, seconds, self.number, self.tag
                    )
                )
                if found is not None:
                    hooks.emit(events.SubmissionFound(self.endpoint, record.task_id))
                webhooks.follow(sessions, session, self.task, self.address, found)
        except BaseException as error:
            self._end(error)
            raise
        if self.is_left:
            self._keep_unclaimed(self.task)
        return self.task

    def _wire(self, request: Generation) -> Request:
        """Return the HTTP request that submits, with its webhook URL among its secrets."""
        sessions, addresses = self.sessions, self.sessions.addresses
        if self.address is None or addresses is None:
            return build(request, sessions.gateway, sessions.key, sessions.callback_url)
        wire = build(request, sessions.gateway, sessions.key, addresses.url(self.address))
        return wire.hiding(addresses.token(self.address))

    async def _search(self, key: str) -> TaskRecord | None:
        """Return the task of a lost response, if a webhook named it or the gateway lists it."""
        sessions, session = self.sessions, self.session
        found = await webhooks.search(sessions, session, self.address)
        if found is None:
            found = await sessions.reconciler.search(sessions, session, key)
            if found is not None and self.address is not None:
                self.address.answered(found.task_id)
        # A webhook may have come during the search.
        return found or await webhooks.search(sessions, session, self.address)

    async def _send(self, wire: Request, entry: Entry, attempt: int) -> TaskRecord:
        """Send once, when its turn comes, with a step in the journal before it and after it."""
        sessions, transport = self.sessions, self.session.transport
        async with transport.paid_slot() as sent_at:
            # From here on, the request goes on if its caller is cancelled.
            self.fate = Fate.UNKNOWN
            try:
                await entry.sending()
            except Exception:
                self.fate = Fate.UNSENT
                raise
            self.sent_at = self.sent_at or sessions.settings.clock.now()
            self.ahead = ahead(sessions.settings.clock)
            try:
                sessions.hooks.emit(events.SubmissionSent(self.number, attempt))
                record = await transport.send_and_read(wire, self._read, sent_at)
            except BaseException as error:
                await self._failed(entry, error)
                raise
            await entry.accepted(record.task_id)
            if self.address is not None:
                self.address.answered(record.task_id)
            return record

    async def _failed(self, entry: Entry, error: BaseException) -> None:
        """Record an attempt that ended without a task; a defect says nothing about the request."""
        if isinstance(error, GeneratorExit):
            return  # its loop is gone, so nothing can be awaited
        fate = getattr(error, "fate", Fate.UNSENT) if isinstance(error, RunwayError) else self.fate
        if fate is Fate.UNKNOWN:
            self.sessions.reconciler.ahead[entry.key] = self.ahead
        # The end of a program must not wait for a database; what is queued is written without it.
        limit = None if isinstance(error, Exception) else CUT_OFF
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await entry.failed(error)
        self.fate = fate

    def _read(self, reply: Reply) -> TaskRecord:
        """Parse the response, and keep the id at once, so that no cancellation loses it."""
        record = read_task(reply)
        name = (feed_of(self.request).name, record.task_id)
        unfinished = self.sessions.settings.unfinished
        now = self.sessions.settings.clock.now()
        unfinished.accepted(name, Origin(now, self.custom_id, self.tag))
        unfinished.seen(name, record)
        if self.custom_id is not None:
            self.sessions.names.accepted(self.custom_id, name)
        return record

    def _end(self, error: BaseException) -> None:
        """Report a submission that ended without a task, and keep a doubt under its name."""
        emit, number, endpoint = self.sessions.hooks.emit, self.number, self.endpoint
        name, task_id = type(error).__name__, None
        is_in_doubt = self.fate is Fate.UNKNOWN
        if self.address is not None:
            self.address.is_in_doubt = is_in_doubt
            # If it is in doubt, a webhook may still name the task; otherwise nothing was accepted.
            self.address.request = self.request if is_in_doubt else None
        if is_in_doubt:
            if isinstance(error, SubmissionInDoubt):
                doubt, name = error, type(error.__cause__).__name__
            else:
                doubt = in_doubt(NoReply("The request was cut off.", "", ""))
            task_id = doubt.task_id
            if self.custom_id is not None:
                self.sessions.names.doubts[self.custom_id] = drop_frames(copied(doubt))

        # The end of the loop cancels a request in flight, and its callers as well.
        is_cancelled = isinstance(error, asyncio.CancelledError)
        if is_in_doubt if is_cancelled else self.is_left:
            reported = SubmissionInDoubt.__name__ if is_in_doubt else name
            emit(events.SubmissionUnclaimed(endpoint, task_id, reported, number))
        elif is_in_doubt:
            emit(events.SubmissionDoubted(number, endpoint, name, task_id))
        else:
            emit(events.SubmissionFailed(number, endpoint, name, self.fate))

    # Callers

    def start(self, work: Coroutine[Any, Any, Task]) -> None:
        """Start *work*, which runs the submission; closing waits for it."""
        self.work = self.session.transport.start_paid(work)
        self.work.add_done_callback(_read_error)

    async def joined(self) -> Task:
        """Return the task to a caller. If the last caller is cancelled, rule 3 decides."""
        self.callers += 1
        try:
            await asyncio.wait([self.work])
        except asyncio.CancelledError:
            if self.callers == 1:
                self.is_left = True
                if self.task is not None:
                    self._keep_unclaimed(self.task)
                elif self.fate is not Fate.UNKNOWN:
                    self.work.cancel()
            raise
        finally:
            self.callers -= 1
        error = self.work.exception()
        if error is None:
            return self.work.result()
        # Each caller gets a copy of the error: a shared one would collect the tracebacks of all.
        raise copied(error) if isinstance(error, RunwayError) else error

    def _keep_unclaimed(self, task: Task) -> None:
        self.sessions.claim_later(task)
        event = events.SubmissionUnclaimed(self.endpoint, task.id, submission=self.number)
        self.sessions.hooks.emit(event)


def _read_error(work: "asyncio.Task[Task]") -> None:
    # asyncio reports an error that is never read. Its frames would keep the submission alive.
    error = None if work.cancelled() else work.exception()
    if isinstance(error, RunwayError):
        drop_frames(error)
