"""
One paid request: emits its events and updates its journal row before, during and after sending.

Rule 1: each submission that was started has one reported end: a task, a failure or a doubt.
Rule 2: what became of a request matters more than the row that says so.
"""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from fuhu_runway import hooks as events
from fuhu_runway._clock import Clock
from fuhu_runway._http.retry import fate_of
from fuhu_runway.errors import Fate, JournalError, RunwayError, SubmissionInDoubt
from fuhu_runway.journal import Entry
from fuhu_runway.models import Generation, TaskRecord

if TYPE_CHECKING:
    from fuhu_runway.callbacks import Address

_NUMBERS: Final = itertools.count(1)


@attrs.define(eq=False)
class Submission:
    """One call of `submit`, told to the hooks and, where there is one, to the journal."""

    #: The name of the endpoint.
    endpoint: str
    #: The number of the client.
    client: int
    hooks: events.Hooks
    clock: Clock
    #: What is asked for.
    request: Generation = attrs.field(repr=False)
    #: Where the gateway posts its webhooks; None if there is none.
    address: "Address | None" = None
    #: The caller's own name for it, and what the caller attached to it.
    custom_id: str | None = None
    tag: str | None = None
    number: int = attrs.field(init=False, factory=partial(next, _NUMBERS))
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
    #: Whether its end was reported, or comes later since its caller was cancelled in flight.
    end_is_told: bool = attrs.field(init=False, default=False)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Report its beginning, and its end unless that was reported elsewhere."""
        model = getattr(self.request, "model", None)
        seconds = getattr(self.request, "seconds", None)
        self.hooks.emit(
            events.SubmissionStarted(self.number, self.client, self.endpoint, model, seconds)
        )
        try:
            yield
        except BaseException as error:
            if not self.end_is_told:
                self._tell_end(error)
                if self.address is not None and not self.is_in_doubt:
                    self.address.request = None  # nothing was accepted, so it is not needed
            raise

    def trace(self) -> str | None:
        """Return what a later process links its own spans to, if a hook traces."""
        return self.hooks.trace_of(self.number)

    def held(self, tasks: int) -> None:
        """Report that it waits until one of *tasks* unfinished tasks ends."""
        self.hooks.emit(events.SubmissionHeld(self.number, tasks))

    async def sending(
        self, exchange: Callable[[], Coroutine[object, object, TaskRecord]]
    ) -> TaskRecord:
        """Do one sending, with a row in the journal before it and another after it."""
        if self.entry is not None:
            await self.entry.sending()
        self.attempts += 1
        if self.attempts == 1:
            self.sent_at = self.clock.now()
        self.hooks.emit(events.SubmissionSent(self.number, self.attempts))
        try:
            record = await exchange()
        except RunwayError as error:
            if self.entry is not None:
                await afterwards(self.entry.failed(error), type(error).__name__)
            self._doubt(is_in_doubt=fate_of(error) is Fate.UNKNOWN, task_id=error.task_id)
            raise
        except BaseException:
            # Such as the end of the loop: what it was cut off from may have been accepted.
            self._doubt(is_in_doubt=True)
            raise
        if self.entry is not None:
            await afterwards(self.entry.accepted(record.task_id), f"task {record.task_id}")
        if self.address is not None:
            self.address.answered(record.task_id)
        return record

    def _doubt(self, *, is_in_doubt: bool, task_id: str | None = None) -> None:
        self.is_in_doubt = is_in_doubt
        self.named_task = task_id if is_in_doubt else None
        if self.address is not None:
            self.address.is_in_doubt = is_in_doubt

    def leave(self) -> None:
        """Record that the caller is gone: `accepted` and `unclaimed` report the end."""
        self.end_is_told = True

    def accepted(self, task_id: str) -> None:
        """Report that it was accepted as a task."""
        self.end_is_told = True
        seconds = self.clock.now() - self.sent_at
        self.hooks.emit(
            events.TaskSubmitted(task_id, self.endpoint, seconds, self.number, self.tag)
        )

    def unclaimed(self, task_id: str | None, error: str | None = None) -> None:
        """Report what became of it after its caller was gone."""
        task_id = task_id or self.named_task
        self.hooks.emit(
            events.SubmissionUnclaimed(self.endpoint, task_id, error, submission=self.number)
        )

    def _tell_end(self, error: BaseException) -> None:
        cause = error.__cause__ if isinstance(error, SubmissionInDoubt) else error
        name = type(cause).__name__
        fate = self._fate(error)
        if fate is Fate.UNKNOWN:
            task_id = getattr(error, "task_id", None) or self.named_task
            self.hooks.emit(events.SubmissionDoubted(self.number, self.endpoint, name, task_id))
        else:
            self.hooks.emit(events.SubmissionFailed(self.number, self.endpoint, name, fate))

    def _fate(self, error: BaseException) -> Fate:
        """Return what is known of the request: of what is no answer, it depends on when it came."""
        fate = getattr(error, "fate", None)
        if isinstance(fate, Fate):
            return fate
        if self.is_in_doubt:
            return Fate.UNKNOWN  # left while a delivery was asked what became of it
        # Our own refusals come before a sending, and a cancellation here was not in flight.
        ours = isinstance(error, RunwayError | asyncio.CancelledError)
        return Fate.UNSENT if ours or not self.attempts else Fate.UNKNOWN


async def afterwards(writing: Coroutine[object, object, None], news: str) -> None:
    """Write what became of a sending; what became of it matters more than the row does."""
    try:
        await writing
    except JournalError as fault:
        # The row goes on saying SUBMITTING, which is in doubt once the journal is closed.
        events.LOGGER.error(
            "The journal lacks how a submission ended (%s): %s", news, fault.happened
        )
