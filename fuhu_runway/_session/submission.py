"""
The paid path, top to bottom: task limit, journal, send once, journal, task.

Rule 1: each submission that was started has one reported end: a task, a failure or a doubt.
Rule 2: what became of a request matters more than the row that says so.
"""

import asyncio
import contextvars
import itertools
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import attrs

from fuhu_runway import hooks as events
from fuhu_runway._http.retry import fate_of, in_doubt, repeat
from fuhu_runway._waiting.task_limit import Origin
from fuhu_runway._wire.decode import read_task
from fuhu_runway._wire.encode import Reply, Request
from fuhu_runway._wire.tables import feed_of
from fuhu_runway.errors import (
    Fate,
    JournalError,
    NoReply,
    RunwayError,
    SubmissionInDoubt,
    discreet,
)
from fuhu_runway.journal import Entry, Plan, plan_of
from fuhu_runway.models import Generation, OfficialImageToVideo, TaskRecord, TaskState
from fuhu_runway.task import Task

from .session import Session

if TYPE_CHECKING:
    from fuhu_runway.callbacks import Address

    from .sessions import Sessions

_NUMBERS: Final = itertools.count(1)


@discreet
async def submit(
    sessions: "Sessions",
    request: Generation,
    plan: Plan | None = None,
    *,
    custom_id: str | None = None,
    tag: str | None = None,
) -> Task:
    """
    Send *request* at most once and return its task; see `Client.submit`.

    The journal has a row already for a *plan* that is given, such as that of a batch's job.
    """
    session = sessions.current()
    row = plan or plan_of(request, f"single:{uuid4()}", tag=tag)
    address = sessions.webhooks.address(request, row if sessions.journal is not None else None)
    if address is not None:
        address.custom_id, address.tag = custom_id, tag
        address.context = contextvars.copy_context()
    wire = sessions.generation(request, address)
    submission = Submission(sessions, session, request, wire, address, custom_id, tag)
    with submission:
        trace = sessions.hooks.trace_of(submission.number)
        submission.entry = await sessions.entry(row, trace, is_new=plan is None)
        async with session.tasks.one_more(submission.held):
            found = None
            try:
                record = await repeat(
                    submission.send,
                    wire.endpoint,
                    sessions.settings.retry,
                    session.transport.pause,
                    sessions.hooks,
                    submission=submission.number,
                )
            except SubmissionInDoubt as error:
                if custom_id is not None:
                    sessions.names.doubts[custom_id] = error
                # While the answer was waited for, a webhook may have named the task.
                found = await sessions.webhooks.task_named_meanwhile(session, address)
                if found is None:
                    raise
                record = TaskRecord(found.task_id, TaskState.QUEUED)
            task = submission.accept(record)
            # Not the session of the moment: this one may have been closed meanwhile.
            if found is None:
                sessions.follow(session, task, address)
            else:
                sessions.follow_found(session, task, address, found, wire.endpoint.name)
    return task


@attrs.define(eq=False, repr=False)
class Submission:
    """One paid request: sends it, and reports its beginning and its end."""

    sessions: "Sessions"
    session: Session
    request: Generation
    wire: Request
    #: Where the gateway posts its webhooks; None if there is no receiver.
    address: "Address | None"
    #: The caller's own name for it, and what the caller attached to it.
    custom_id: str | None
    tag: str | None
    number: int = attrs.field(init=False, factory=lambda: next(_NUMBERS))
    #: Its row in the journal, where there is one.
    entry: Entry | None = attrs.field(init=False, default=None)
    #: How often it was sent.
    attempts: int = attrs.field(init=False, default=0)
    #: Whether the last sending got no clear answer.
    is_in_doubt: bool = attrs.field(init=False, default=False)
    #: The task that the damaged answer to a sending in doubt named, if any.
    named_task: str | None = attrs.field(init=False, default=None)
    #: When it was first sent, on the loop's clock.
    sent_at: float = attrs.field(init=False, default=0.0)
    #: Whether its end was reported, or is left to the request that goes on without its caller.
    is_reported: bool = attrs.field(init=False, default=False)

    @property
    def endpoint(self) -> str:
        return self.wire.endpoint.name

    def emit(self, event: events.Event) -> None:
        self.sessions.hooks.emit(event)

    def __enter__(self) -> None:
        model = getattr(self.request, "model", None)
        seconds = getattr(self.request, "seconds", None)
        client = self.sessions.settings.client
        self.emit(events.SubmissionStarted(self.number, client, self.endpoint, model, seconds))

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is None or self.is_reported:
            return
        cause = error.__cause__ if isinstance(error, SubmissionInDoubt) else error
        name, fate = type(cause).__name__, self._fate(error)
        if fate is Fate.UNKNOWN:
            task_id = getattr(error, "task_id", None) or self.named_task
            self.emit(events.SubmissionDoubted(self.number, self.endpoint, name, task_id))
        else:
            self.emit(events.SubmissionFailed(self.number, self.endpoint, name, fate))
        if self.address is not None and not self.is_in_doubt:
            self.address.request = None  # nothing was accepted, so it is not needed

    def _fate(self, error: BaseException) -> Fate:
        """Return what is known of the request; without an answer, it depends on the moment."""
        fate = getattr(error, "fate", None)
        if isinstance(fate, Fate):
            return fate
        if self.is_in_doubt:
            return Fate.UNKNOWN  # the caller left while a webhook's task was being confirmed
        # Our own refusals come before a sending, and a cancellation here was not in flight.
        ours = isinstance(error, RunwayError | asyncio.CancelledError)
        return Fate.UNSENT if ours or not self.attempts else Fate.UNKNOWN

    def held(self, tasks: int) -> None:
        """Report that it waits until one of *tasks* unfinished tasks ends."""
        self.emit(events.SubmissionHeld(self.number, tasks))

    async def send(self) -> TaskRecord:
        """Send it once. If the caller is cancelled, the request goes on and its task is kept."""
        async with self.session.transport.paid_slot() as sent_at:
            flight = self.session.transport.start_paid(self._send(sent_at))
            try:
                return await asyncio.shield(flight)
            except asyncio.CancelledError:
                self.is_reported = True
                self.session.limiter.hold(flight)
                flight.add_done_callback(self._claim_later)
                self.session.tasks.hold(flight)
                if self.custom_id is not None:
                    self.sessions.names.shared[self.custom_id].flight = flight
                raise

    async def _send(self, sent_at: float) -> TaskRecord:
        """Send it once, with a row in the journal before it and another after it."""
        if self.entry is not None:
            await self.entry.sending()
        self.attempts += 1
        if self.attempts == 1:
            self.sent_at = self.sessions.settings.clock.now()
        self.emit(events.SubmissionSent(self.number, self.attempts))
        try:
            record = await self.session.transport.in_turn(self.wire, self._read, sent_at)
        except RunwayError as error:
            if self.entry is not None:
                await afterwards(self.entry.failed(error), type(error).__name__)
            self._set_doubt(is_in_doubt=fate_of(error) is Fate.UNKNOWN, task_id=error.task_id)
            raise
        except BaseException:
            # Such as the end of the loop: what it was cut off from may have been accepted.
            self._set_doubt(is_in_doubt=True)
            raise
        if self.entry is not None:
            await afterwards(self.entry.accepted(record.task_id), f"task {record.task_id}")
        if self.address is not None:
            self.address.answered(record.task_id)
        return record

    def _read(self, reply: Reply) -> TaskRecord:
        """Read the answer, and keep the id before any caller can be cancelled."""
        record = read_task(reply)
        name = (feed_of(self.request).name, record.task_id)
        unfinished = self.sessions.settings.unfinished
        now = self.sessions.settings.clock.now()
        unfinished.accepted(name, Origin(now, self.custom_id, self.tag))
        unfinished.seen(name, record)
        if self.custom_id is not None:
            self.sessions.names.accepted(self.custom_id, name)
        return record

    def _set_doubt(self, *, is_in_doubt: bool, task_id: str | None = None) -> None:
        self.is_in_doubt = is_in_doubt
        self.named_task = task_id if is_in_doubt else None
        if self.address is not None:
            self.address.is_in_doubt = is_in_doubt

    def accept(self, record: TaskRecord) -> Task:
        """Return the task that it became, and report it."""
        self.is_reported = True
        now = self.sessions.settings.clock.now()
        self.emit(
            events.TaskSubmitted(
                record.task_id, self.endpoint, now - self.sent_at, self.number, self.tag
            )
        )
        task = Task(
            self.sessions,
            record.task_id,
            official=isinstance(self.request, OfficialImageToVideo),
            request=self.request,
            record=record,
            submitted_at=now,
            custom_id=self.custom_id,
            tag=self.tag,
            context=contextvars.copy_context(),
        )
        self.sessions.keep(task)
        return task

    def _claim_later(self, flight: "asyncio.Task[TaskRecord]") -> None:
        """Keep the task of a request whose caller is gone, or report what became of it."""
        error = asyncio.CancelledError() if flight.cancelled() else flight.exception()
        if error is None:
            task = self.accept(flight.result())
            self.sessions.claim_later(task)
            self.sessions.follow(self.session, task, self.address)
            self._report_unclaimed(task.id, None)
            return
        known = isinstance(error, RunwayError) and fate_of(error) is not Fate.UNKNOWN
        fault = type(error).__name__ if known else SubmissionInDoubt.__name__
        self._report_unclaimed(self.named_task, fault)
        if self.custom_id is not None and not known:
            cut_off = NoReply("The request was cut off.", "", "")
            seen = error if isinstance(error, RunwayError) else cut_off
            self.sessions.names.doubts[self.custom_id] = in_doubt(seen)
        if self.address is not None and self.address.is_in_doubt:
            self.session.run(self.sessions.webhooks.recover(self.session, self.address))

    def _report_unclaimed(self, task_id: str | None, error: str | None) -> None:
        self.emit(events.SubmissionUnclaimed(self.endpoint, task_id, error, submission=self.number))


async def afterwards(writing: Coroutine[Any, Any, None], outcome: str) -> None:
    """Write down what became of a sending; what became of it matters more than the row does."""
    try:
        await writing
    except JournalError as fault:
        # The row goes on saying SUBMITTING, which is in doubt once the journal is closed.
        events.LOGGER.error(
            "The journal lacks how a submission ended (%s): %s", outcome, fault.happened
        )
