"""
Spans for OpenTelemetry: one for each job, from its submit to its file. Needs the extra `otel`.

Rule 1: a span begins when the submit is asked for, in the caller's trace, and what happens on the
way is an event of it: retries, states, breaks of the download.
Rule 2: it ends with the file. Where no download follows, it ends when the task did: nobody can
know that at once, so it is handed on a little later, with the right end.
Rule 3: a job that is resumed later, in this process or another, gets a span of its own with
a link to the first one.
Rule 4: there is a most to what is kept, and closing a client ends the spans of its jobs.

Only the API of OpenTelemetry is used: without an SDK that the program sets up, nothing is recorded.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, Final, TypeVar

import attrs

from fuhu_runway import hooks as events
from fuhu_runway.errors import (
    SubmissionInDoubt,
    TaskCanceled,
    TaskFailed,
    WaitAbandoned,
    WaitTimeout,
)
from fuhu_runway.models import TaskState, usage_error

try:
    from opentelemetry import trace
    from opentelemetry.context import Context, get_current
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as missing:
    raise ImportError(
        'fuhu_runway.contrib.otel needs an extra: pip install "fuhu-runway[otel]"',
        name=missing.name,
    ) from missing

V = TypeVar("V")

OPERATION: Final = "generate_content"
"""What OpenTelemetry's conventions for generative AI call making a clip."""
LINGER: Final = 60.0
"""How long a span waits for a download after its task has ended, in seconds."""
AT_MOST: Final = 20_000
"""How many jobs are kept in mind: twice the waits that one process is made for."""

_CARRIER: Final = TraceContextTextMapPropagator()
_PASSING: Final = frozenset({WaitTimeout.__name__, WaitAbandoned.__name__})
"""A wait that ends so says nothing of the task."""


@attrs.define(eq=False)
class _Job:
    """A job whose span is not over yet."""

    span: trace.Span
    client: int
    attributes: Mapping[str, str | int]
    state: TaskState | None = None
    #: When its task ended, in Unix nanoseconds, while it waits for a download.
    settled_at: int | None = None
    fuse: asyncio.TimerHandle | None = None


@attrs.frozen(eq=False)
class _Trail:
    """What leads from a task to a job of which there is no span at the moment."""

    client: int
    attributes: Mapping[str, str | int]
    #: The span that submitted it, or was the last to follow it; an invalid one where none is known.
    linked: trace.SpanContext
    #: Where the one that goes on with it belongs.
    context: Context
    #: Whether it has come to its end, so that only a download can follow.
    is_over: bool = False
    #: When it was resumed, in Unix nanoseconds; None if it was not.
    since: int | None = None


class JobSpans:
    """
    A listener that makes a span of every job: `Client(hooks=[JobSpans()])`.

    May be shared by clients of one event loop. Spans get ids, counts and seconds, as events have
    them: no prompt, key or address.

    Args:
        tracer_provider: Where spans go; by default the provider of the program.
        attributes: Given to every span, such as `{"server.address": "api.fuhuapi.com"}`.
        linger: How long after the end of its task a span waits for a download, in seconds; what
            is downloaded later gets a span of its own, with a link.
        at_most: How many jobs may be followed at once; beyond that the span of the oldest is ended.

    Raises:
        UsageError: *linger* is below 0, or *at_most* below 1.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        *,
        attributes: Mapping[str, str | int] | None = None,
        linger: float = LINGER,
        at_most: int = AT_MOST,
    ) -> None:
        if not linger >= 0:  # catches NaN, which is neither
            raise usage_error("linger", f"linger is {linger!r}.", "Use seconds from 0 on.")
        if at_most < 1:
            raise usage_error("at_most", f"at_most is {at_most!r}.", "Use 1 or more.")
        self._tracer = trace.get_tracer("fuhu_runway", version("fuhu-runway"), tracer_provider)
        self._common = {
            "gen_ai.operation.name": OPERATION,
            "gen_ai.provider.name": "runway",
            "gen_ai.output.type": "video",
            **(attributes or {}),
        }
        self._linger = linger
        self._at_most = at_most
        #: By the number of the submission, until there is a task.
        self._submitting: dict[int, _Job] = {}
        #: By the id of the task, the oldest first.
        self._following: OrderedDict[str, _Job] = OrderedDict()
        self._trails: OrderedDict[str, _Trail] = OrderedDict()
        self._hears: Mapping[type[events.Event], Callable[[Any], None]] = {
            events.SubmissionStarted: self._started,
            events.SubmissionHeld: self._held,
            events.SubmissionSent: self._sent,
            events.RetryScheduled: self._retried,
            events.TaskSubmitted: self._accepted,
            events.SubmissionFailed: self._failed,
            events.SubmissionDoubted: self._doubted,
            events.SubmissionUnclaimed: self._unclaimed,
            events.TaskAttached: self._attached,
            events.TaskPolled: self._polled,
            events.PollFailed: self._poll_failed,
            events.WaitFailed: self._wait_failed,
            events.TaskSettled: self._settled,
            events.DownloadStarted: self._download_started,
            events.DownloadBroken: self._download_broken,
            events.DownloadFinished: self._download_finished,
            events.DownloadFailed: self._download_failed,
            events.ClientClosed: self._closed,
        }

    def __repr__(self) -> str:
        return f"<JobSpans {len(self._submitting) + len(self._following):,} open>"

    def __call__(self, event: events.Event) -> None:
        """Record one event."""
        hear = self._hears.get(type(event))
        if hear is not None:
            hear(event)

    def trace_of(self, submission: int) -> str | None:
        """Return the span of a submission as W3C Trace Context has it, for the journal to keep."""
        job = self._submitting.get(submission)
        carrier: dict[str, str] = {}
        if job is not None:
            _CARRIER.inject(carrier, trace.set_span_in_context(job.span, Context()))
        return carrier.get("traceparent")

    # Submits

    def _started(self, event: events.SubmissionStarted) -> None:
        attributes = _asked(event)
        self._submitting[event.submission] = _Job(self._span(attributes), event.client, attributes)

    def _held(self, event: events.SubmissionHeld) -> None:
        _say(self._submitting.get(event.submission), "held", tasks=event.tasks)

    def _sent(self, event: events.SubmissionSent) -> None:
        job = self._submitting.get(event.submission)
        _say(job, "sent", attempt=event.attempt)
        _mark(job, submissions=event.attempt)

    def _retried(self, event: events.RetryScheduled) -> None:
        job = self._submitting.get(event.submission or 0)
        if job is None:
            job = self._following.get(event.task_id or "")
        _say(job, "retry", event.error, delay=event.delay)

    def _accepted(self, event: events.TaskSubmitted) -> None:
        job = self._submitting.pop(event.submission or 0, None)
        if job is not None:
            _say(job, "accepted", seconds=event.seconds)
            self._follow(event.task_id, job)

    def _failed(self, event: events.SubmissionFailed) -> None:
        job = self._submitting.pop(event.submission, None)
        _mark(job, fate=event.fate.value)
        _end(job, event.error)

    def _doubted(self, event: events.SubmissionDoubted) -> None:
        job = self._submitting.pop(event.submission, None)
        _say(job, "in doubt", event.error)
        _end(job, SubmissionInDoubt.__name__)

    def _unclaimed(self, event: events.SubmissionUnclaimed) -> None:
        _say(self._following.get(event.task_id or ""), "unclaimed")
        _end(self._submitting.pop(event.submission or 0, None), event.error)

    def _attached(self, event: events.TaskAttached) -> None:
        if event.task_id in self._following:
            return
        carrier = {"traceparent": event.traceparent or ""}
        linked = trace.get_current_span(_CARRIER.extract(carrier, Context())).get_span_context()
        before = self._trails.get(event.task_id)
        if before is not None and not linked.is_valid:
            linked = before.linked
        # Most handles are never waited with, so there is no span yet.
        trail = _Trail(event.client, _asked(event), linked, get_current(), since=time.time_ns())
        self._remember(event.task_id, trail)

    # Waits

    def _polled(self, event: events.TaskPolled) -> None:
        job = self._following.get(event.task_id)
        if job is None and event.polls and not event.state.is_final:
            job = self._go_on(event.task_id)
        if job is None or event.state is job.state or event.state.is_final:
            return
        job.state = event.state
        _say(job, event.state.value)

    def _poll_failed(self, event: events.PollFailed) -> None:
        job = self._following.get(event.task_id) or self._go_on(event.task_id)
        _say(job, "look failed", event.error, delay=event.delay)

    def _wait_failed(self, event: events.WaitFailed) -> None:
        job = self._following.get(event.task_id)
        _say(job, "wait ended", event.error)
        if event.error not in _PASSING:
            self._conclude(event.task_id, event.error)

    def _settled(self, event: events.TaskSettled) -> None:
        job = self._following.get(event.task_id)
        if job is None and event.polls:  # a single look makes no span
            job = self._go_on(event.task_id)
        if job is None:
            return
        _say(job, "settled", state=event.state.value)
        _mark(
            job,
            state=event.state.value,
            polls=event.polls,
            points=event.points,
            refunded=event.refunded,
        )
        job.settled_at = time.time_ns()
        if event.state is TaskState.SUCCEEDED:
            loop = asyncio.get_running_loop()
            job.fuse = loop.call_later(self._linger, self._let_go, event.task_id)
        else:
            canceled = event.state is TaskState.CANCELED
            self._conclude(event.task_id, (TaskCanceled if canceled else TaskFailed).__name__)

    # Downloads

    def _download_started(self, event: events.DownloadStarted) -> None:
        job = self._downloading(event.task_id)
        name = "download resumed" if event.resumed_at_bytes else "download started"
        _say(job, name, at_bytes=event.resumed_at_bytes, total_bytes=event.total_bytes)

    def _download_broken(self, event: events.DownloadBroken) -> None:
        job = self._downloading(event.task_id)
        _say(job, "download broken", at_bytes=event.received_bytes, delay=event.delay)

    def _download_finished(self, event: events.DownloadFinished) -> None:
        job = self._following.get(event.task_id)
        _say(job, "download finished")
        _mark(job, file_bytes=event.total_bytes)
        self._conclude(event.task_id)

    def _download_failed(self, event: events.DownloadFailed) -> None:
        _say(self._following.get(event.task_id), "download failed", at_bytes=event.received_bytes)
        self._conclude(event.task_id, event.error)

    def _downloading(self, task_id: str) -> _Job | None:
        """Return the job whose span waits for this download, or a new one for it."""
        job = self._following.get(task_id)
        if job is None:
            return self._go_on(task_id, get_current())
        if job.fuse is not None:
            job.fuse.cancel()
            job.fuse = None
        return job

    # Ends

    def _closed(self, event: events.ClientClosed) -> None:
        for task_id in [key for key, job in self._following.items() if job.client == event.client]:
            self._let_go(task_id)

    def _conclude(self, task_id: str, error: str | None = None) -> None:
        """End the span of a task, if there is one, with what happens now."""
        _end(self._take(task_id), error)

    def _let_go(self, task_id: str) -> None:
        """End the span of a task with its task, and if that goes on, as abandoned."""
        job = self._take(task_id)
        if job is not None and job.settled_at is None:
            _say(job, "abandoned")
            _mark(job, abandoned=True)
        _end(job, at=job.settled_at if job else None)

    def _take(self, task_id: str) -> _Job | None:
        """Return the job of a task, which is followed no more, and keep what leads to it."""
        job = self._following.pop(task_id, None)
        if job is None:
            return None
        if job.fuse is not None:
            job.fuse.cancel()
        trail = _Trail(
            job.client,
            job.attributes,
            job.span.get_span_context(),
            Context(),  # a root: the span that resumes it is linked, not a child
            is_over=job.settled_at is not None,
        )
        self._remember(task_id, trail)
        return job

    # Beginnings

    def _span(
        self,
        attributes: Mapping[str, str | int],
        context: Context | None = None,
        linked: trace.SpanContext = trace.INVALID_SPAN_CONTEXT,
        since: int | None = None,
    ) -> trace.Span:
        model = attributes.get("gen_ai.request.model")
        return self._tracer.start_span(
            OPERATION if model is None else f"{OPERATION} {model}",
            context,
            trace.SpanKind.CLIENT,
            {**self._common, **attributes},
            [trace.Link(linked)] if linked.is_valid else (),
            since,
        )

    def _follow(self, task_id: str, job: _Job) -> None:
        """Keep a span until its task, and perhaps its file, has come."""
        job.span.set_attribute("gen_ai.response.id", task_id)
        self._following[task_id] = job
        if len(self._following) > self._at_most:
            self._let_go(next(iter(self._following)))

    def _go_on(self, task_id: str, download_in: Context | None = None) -> _Job | None:
        """Return a new span for a task that had one, or was attached to."""
        trail = self._trails.get(task_id)
        if trail is None or (trail.is_over and download_in is None):
            return None
        del self._trails[task_id]
        context = download_in or trail.context
        span = self._span(trail.attributes, context, trail.linked, trail.since)
        job = _Job(span, trail.client, trail.attributes)
        self._follow(task_id, job)
        return job

    def _remember(self, task_id: str, trail: _Trail) -> None:
        self._trails[task_id] = trail
        self._trails.move_to_end(task_id)
        if len(self._trails) > self._at_most:
            self._trails.popitem(last=False)


def _asked(event: events.SubmissionStarted | events.TaskAttached) -> dict[str, str | int]:
    """Return what is known of a request as attributes."""
    return _known(
        {
            "gen_ai.request.model": event.model,
            "fuhu_runway.endpoint": event.endpoint,
            "fuhu_runway.clip_seconds": event.clip_seconds,
        }
    )


def _known(values: Mapping[str, V | None]) -> dict[str, V]:
    return {name: value for name, value in values.items() if value is not None}


def _named(values: Mapping[str, V | None]) -> dict[str, V]:
    return {f"fuhu_runway.{name}": value for name, value in _known(values).items()}


def _say(
    job: _Job | None, name: str, error: str | None = None, **values: str | float | None
) -> None:
    """Add an event to the span of a job, if there is one."""
    if job is not None:
        job.span.add_event(name, {**_known({"error.type": error}), **_named(values)})


def _mark(job: _Job | None, **values: str | float | None) -> None:
    """Set attributes of the span of a job, if there is one."""
    if job is not None:
        job.span.set_attributes(_named(values))


def _end(job: _Job | None, error: str | None = None, at: int | None = None) -> None:
    """End the span of a job, if there is one, as failed if there is an error."""
    if job is None:
        return
    if error is not None:
        job.span.set_attribute("error.type", error)
        job.span.set_status(trace.StatusCode.ERROR, error)
    job.span.end(at)
