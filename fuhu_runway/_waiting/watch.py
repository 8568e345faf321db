"""The state of one task that is polled, and of the callers that wait for it."""

import asyncio
import contextvars
import math
from typing import Final

import attrs

from fuhu_runway._wire.decode import is_reason
from fuhu_runway._wire.encode import Request
from fuhu_runway.errors import ClipMissing, RunwayError, WaitAbandoned, WaitTimeout
from fuhu_runway.models import TaskRecord, TaskState

from .intervals import Kind
from .unfinished import Name

STUCK_AFTER: Final = 5
"""Polls in a row with the same unknown status and reason that count as a failure, if they took as
many of the longest intervals; if more, a failure under an unknown word is reported later; if
fewer, a queued task may be taken for failed."""


def name_of(request: Request) -> Name:
    """Return the name of a task, unique among all of one gateway."""
    return request.endpoint.name, request.task_id or ""


def visible(record: TaskRecord) -> tuple[object, ...]:
    """Return the parts of a record that a user can see change."""
    return record.state, record.progress, record.video_url, record.message


@attrs.define(eq=False)
class Waiter:
    """A caller that waits for the end of a task, or for its next change."""

    watch: "Watch"
    future: "asyncio.Future[TaskRecord]"
    #: The caller's argument, in seconds, for the text of the error.
    timeout: float | None
    any_change: bool

    def resolve(self, record: TaskRecord) -> None:
        # A cancelled waiter stays until its task has run.
        if not self.future.done():
            self.future.set_result(record)

    def timed_out(self) -> WaitTimeout:
        record, timeout = self.watch.record, self.timeout or 0.0
        state = record.state.value if record else "not known yet"
        error = WaitTimeout(
            f"The task had not ended after {timeout:g} s; its state was {state}.",
            "It goes on, and its points are spent either way.",
            "Wait for it again, with the same Task or by its id.",
            self.watch.task_id,
            None,
            timeout,
        )
        error.__cause__ = self.watch.last_error
        return error


@attrs.define(eq=False, weakref_slot=True)
class Watch:
    """What the poller knows about one task."""

    request: Request
    #: When the task was accepted; None if it was re-attached by its id.
    submitted_at: float | None
    record: TaskRecord | None = None
    #: None if the kind, or the time of the submit, is not known.
    kind: Kind | None = None
    #: When it was last known to run.
    running_at: float = 0.0
    polled_at: float = 0.0
    #: Grows by one with every change of the record.
    version: int = 0
    polls: int = 0
    #: Whether the feed has ever known it.
    was_seen: bool = False
    #: Next poll time. Kept while no one is waiting, so that many short waits do not poll more
    #: often than one long wait.
    due_at: float = 0.0
    #: A list, since a set takes 130 bytes more in each of thousands of waits.
    waiters: list[Waiter] = attrs.field(factory=list)
    last_error: RunwayError | None = None
    url_missing_since: float | None = None
    #: Polls and their events run in this copy of the context of the submit, or of the first wait.
    context: contextvars.Context = attrs.field(factory=contextvars.copy_context)
    #: How many polls in a row gave the same unknown status with the same reason, and since when.
    stuck: int = 0
    stuck_since: float = 0.0
    #: The oddities that were reported.
    reported: frozenset[str] = frozenset()
    is_end_reported: bool = False
    #: Whether the gateway has an address for the webhooks of this task.
    is_addressed: bool = False
    #: When a webhook makes it due; None if there was none since the last poll.
    webhook_due_at: float | None = None
    #: The earliest time at which a webhook may make it due.
    next_webhook_at: float = -math.inf
    #: How often it had been polled when a webhook announced its end; None if none did.
    polls_at_announced_end: int | None = None
    #: Made once, since it is a key in several places.
    name: Name = attrs.field(
        init=False, default=attrs.Factory(lambda watch: name_of(watch.request), takes_self=True)
    )

    def age(self, now: float) -> float:
        """Return how old the task was at the instant *now*; only useful if its kind is known."""
        return now - (self.submitted_at or 0.0)

    @property
    def task_id(self) -> str:
        return self.request.task_id or ""

    @property
    def is_settled(self) -> bool:
        """Whether the task has ended."""
        return self.record is not None and self.record.is_settled

    def failed_if_stuck(self, record: TaskRecord, now: float, interval: float) -> TaskRecord:
        """
        Return *record* as a failure if an unknown status stays the same, with a reason.

        A caller may poll more often than at the longest *interval*, so polls alone do not count.
        """
        if record.state is not TaskState.UNKNOWN or not is_reason(record.message):
            self.stuck = 0
            return record
        was = self.record
        shown = visible(record)[1:]  # without the state, which may be a failure by now
        is_same = was is not None and visible(was)[1:] == shown and was.word == record.word
        if not self.stuck or not is_same:
            self.stuck, self.stuck_since = 0, now
        self.stuck += 1
        if self.stuck < STUCK_AFTER or now - self.stuck_since < STUCK_AFTER * interval:
            return record
        return attrs.evolve(record, state=TaskState.FAILED)

    def abandoned(self) -> WaitAbandoned:
        return WaitAbandoned(
            "The wait was ended because the client was closed, or end_waits() was called.",
            "The task continues, and its points are spent either way.",
            "Wait for it again by its id: client.task(id).",
            self.task_id,
        )

    def clip_missing(self) -> ClipMissing:
        return ClipMissing(
            "The gateway reports success without a URL of the clip.",
            "It was charged.",
            "Wait for it again later, or send its id to the gateway's support.",
            self.task_id,
        )
