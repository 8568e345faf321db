"""
Spans for OpenTelemetry: one for each job and one for each download. Needs the extra `otel`.

Rule 1: the span of a job begins when its submit is requested, in the caller's trace, and ends with
its task. Retries and states are events of it.
Rule 2: the span of a download is a child of its job's span.
Rule 3: a job that is resumed later, in this process or another, gets a new span with a link to
the first one.
Rule 4: what is kept is limited, and closing a client ends the spans of its jobs.

Only the API of OpenTelemetry is used: without an SDK that the program sets up, nothing is recorded.
"""

import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, Final

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

OPERATION: Final = "generate_content"
"""What OpenTelemetry's conventions for generative AI call making a clip."""
AT_MOST: Final = 20_000
"""How many open jobs, and how many ended ones, are kept: each takes about 2 kB."""

_CARRIER: Final = TraceContextTextMapPropagator()
_TASK_GOES_ON: Final = frozenset({WaitTimeout.__name__, WaitAbandoned.__name__})
"""Errors that end a wait and not its task."""


@attrs.define(eq=False)
class _Job:
    client: int
    attributes: Mapping[str, str | int]
    #: Its latest span. Of a job that was only attached to, the span that submitted it.
    span: trace.Span
    #: The parent of the next span.
    parent: Context = attrs.field(factory=Context)
    #: When the next span begins, in Unix nanoseconds; None is when it is made.
    since: int | None = None
    state: TaskState | None = None
    is_over: bool = False


class JobSpans:
    """
    A listener that makes spans of jobs and downloads: `Client(hooks=[JobSpans()])`.

    Clients of one event loop may share it. Spans hold ids, counts and seconds, as events do: no
    prompt, key or address.

    Args:
        tracer_provider: Where spans go; by default the provider of the program.
        attributes: Added to every span, such as `{"server.address": "api.fuhuapi.com"}`.
        at_most: How many jobs are followed at once. Beyond that, the span of the oldest is ended.

    Raises:
        UsageError: *at_most* is below 1.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        *,
        attributes: Mapping[str, str | int] | None = None,
        at_most: int = AT_MOST,
    ) -> None:
        if at_most < 1:
            raise usage_error("at_most", f"at_most is {at_most!r}.", "Use 1 or more.")
        self._tracer = trace.get_tracer("fuhu_runway", version("fuhu-runway"), tracer_provider)
        self._common = attributes or {}
        self._at_most = at_most
        #: Until there is a task, by the number of the submission.
        self._submitting: dict[int, _Job] = {}
        #: Jobs whose span is open, and jobs that a wait or a download may resume; by the id of
        #: the task, the oldest first.
        self._open: dict[str, _Job] = {}
        self._past: dict[str, _Job] = {}
        self._downloads: dict[str, trace.Span] = {}
        self._listeners: Mapping[type[events.Event], Callable[[Any], None]] = {
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
        return f"<JobSpans {len(self._submitting) + len(self._open):,} open>"

    def __call__(self, event: events.Event) -> None:
        """Record one event."""
        listener = self._listeners.get(type(event))
        if listener is not None:
            listener(event)

    def trace_of(self, submission: int) -> str | None:
        """Return the W3C Trace Context of a submission's span, for the journal to keep."""
        job = self._submitting.get(submission)
        carrier: dict[str, str] = {}
        if job is not None:
            _CARRIER.inject(carrier, trace.set_span_in_context(job.span, Context()))
        return carrier.get("traceparent")

    # Submissions

    def _started(self, event: events.SubmissionStarted) -> None:
        job = _Job(event.client, _attributes_of(event), trace.INVALID_SPAN, get_current())
        self._submitting[event.submission] = self._begin(job)

    def _held(self, event: events.SubmissionHeld) -> None:
        _add(self._submitting.get(event.submission), "held", tasks=event.tasks)

    def _sent(self, event: events.SubmissionSent) -> None:
        job = self._submitting.get(event.submission)
        _add(job, "sent", attempt=event.attempt)
        _set(job, submissions=event.attempt)

    def _retried(self, event: events.RetryScheduled) -> None:
        job = self._submitting.get(event.submission or 0) or self._open.get(event.task_id or "")
        _add(job, "retry", event.error, delay=event.delay)

    def _accepted(self, event: events.TaskSubmitted) -> None:
        job = self._submitting.pop(event.submission or 0, None)
        if job is not None:
            _add(job, "accepted", seconds=event.seconds)
            self._follow(event.task_id, job)

    def _failed(self, event: events.SubmissionFailed) -> None:
        _set(self._submitting.get(event.submission), fate=event.fate.value)
        self._end_submission(event.submission, event.error)

    def _doubted(self, event: events.SubmissionDoubted) -> None:
        _add(self._submitting.get(event.submission), "in doubt", event.error)
        self._end_submission(event.submission, SubmissionInDoubt.__name__)

    def _unclaimed(self, event: events.SubmissionUnclaimed) -> None:
        _add(self._open.get(event.task_id or ""), "unclaimed")
        self._end_submission(event.submission, event.error)

    def _end_submission(self, submission: int | None, error: str | None) -> None:
        job = self._submitting.pop(submission or 0, None)
        if job is not None:
            _end(job.span, error)

    # Waits

    def _attached(self, event: events.TaskAttached) -> None:
        if event.task_id in self._open:
            return
        carrier = {"traceparent": event.traceparent or ""}
        span = trace.get_current_span(_CARRIER.extract(carrier, Context()))
        before = self._past.get(event.task_id)
        if before is not None and not span.get_span_context().is_valid:
            span = before.span
        # Most handles are never waited with, so the span begins with the first poll of a wait.
        job = _Job(event.client, _attributes_of(event), span, get_current(), time.time_ns())
        self._keep(event.task_id, job)

    def _polled(self, event: events.TaskPolled) -> None:
        if event.state.is_final:
            return
        job = self._resumed(event.task_id) if event.polls else self._open.get(event.task_id)
        if job is not None and event.state is not job.state:
            job.state = event.state
            _add(job, event.state.value)

    def _poll_failed(self, event: events.PollFailed) -> None:
        _add(self._resumed(event.task_id), "poll failed", event.error, delay=event.delay)

    def _wait_failed(self, event: events.WaitFailed) -> None:
        _add(self._open.get(event.task_id), "wait ended", event.error)
        if event.error not in _TASK_GOES_ON:
            self._finish(event.task_id, event.error)

    def _settled(self, event: events.TaskSettled) -> None:
        # Without a wait there are no polls, and no span.
        job = self._resumed(event.task_id) if event.polls else self._open.get(event.task_id)
        if job is None:
            return
        job.is_over = True
        _set(
            job,
            state=event.state.value,
            polls=event.polls,
            points=event.points,
            refunded=event.refunded,
        )
        failures = {TaskState.FAILED: TaskFailed, TaskState.CANCELED: TaskCanceled}
        failure = failures.get(event.state)
        self._finish(event.task_id, failure and failure.__name__)

    # Downloads

    def _download_started(self, event: events.DownloadStarted) -> None:
        name = "resumed" if event.resumed_at_bytes else "started"
        values = {"at_bytes": event.resumed_at_bytes, "total_bytes": event.total_bytes}
        self._download(event.task_id).add_event(name, _named(values))

    def _download_broken(self, event: events.DownloadBroken) -> None:
        values = {"at_bytes": event.received_bytes, "delay": event.delay}
        self._download(event.task_id).add_event("broken", _named(values))

    def _download_finished(self, event: events.DownloadFinished) -> None:
        span = self._download(event.task_id)
        span.set_attributes(_named({"file_bytes": event.total_bytes}))
        self._end_download(event.task_id)

    def _download_failed(self, event: events.DownloadFailed) -> None:
        self._download(event.task_id)
        self._end_download(event.task_id, event.error)

    def _download(self, task_id: str) -> trace.Span:
        """Return the span of a task's download, which begins with its first event."""
        job = self._open.get(task_id) or self._past.get(task_id)
        if job is None:
            return trace.INVALID_SPAN
        if task_id not in self._downloads:
            attributes = {**self._common, "gen_ai.response.id": task_id}
            context = trace.set_span_in_context(job.span)
            self._downloads[task_id] = self._tracer.start_span(
                "download", context, attributes=attributes
            )
        return self._downloads[task_id]

    def _end_download(self, task_id: str, error: str | None = None) -> None:
        span = self._downloads.pop(task_id, None)
        if span is not None:
            _end(span, error)

    # Spans

    def _begin(self, job: _Job) -> _Job:
        """Start the next span of a job, with a link to the one before."""
        before = job.span.get_span_context()
        model = job.attributes.get("gen_ai.request.model")
        job.span = self._tracer.start_span(
            OPERATION if model is None else f"{OPERATION} {model}",
            job.parent,
            trace.SpanKind.CLIENT,
            {
                "gen_ai.operation.name": OPERATION,
                "gen_ai.provider.name": "runway",
                "gen_ai.output.type": "video",
                **self._common,
                **job.attributes,
            },
            [trace.Link(before)] if before.is_valid else (),
            job.since,
        )
        return job

    def _follow(self, task_id: str, job: _Job) -> _Job:
        """Keep a span open until its task ends, or there are too many."""
        job.span.set_attribute("gen_ai.response.id", task_id)
        self._open[task_id] = job
        if len(self._open) > self._at_most:
            self._abandon(next(iter(self._open)))
        return job

    def _resumed(self, task_id: str) -> _Job | None:
        """Return the open job of a task. One that a wait goes on with gets a new span."""
        job = self._open.get(task_id)
        if job is None and task_id in self._past and not self._past[task_id].is_over:
            job = self._follow(task_id, self._begin(self._past.pop(task_id)))
        return job

    def _finish(self, task_id: str, error: str | None = None) -> None:
        """End the span of a task, and keep what a later span links to."""
        job = self._open.pop(task_id, None)
        if job is not None:
            _end(job.span, error)
            context = job.span.get_span_context()
            job.span = trace.NonRecordingSpan(context)  # the recorded events would take memory
            job.parent, job.since, job.state = Context(), None, None
            self._keep(task_id, job)

    def _abandon(self, task_id: str) -> None:
        """End the span of a task that goes on."""
        _add(self._open.get(task_id), "abandoned")
        _set(self._open.get(task_id), abandoned=True)
        self._finish(task_id)

    def _keep(self, task_id: str, job: _Job) -> None:
        self._past.pop(task_id, None)
        self._past[task_id] = job
        if len(self._past) > self._at_most:
            del self._past[next(iter(self._past))]

    def _closed(self, event: events.ClientClosed) -> None:
        for task_id in [key for key, job in self._open.items() if job.client == event.client]:
            self._abandon(task_id)


def _attributes_of(event: events.SubmissionStarted | events.TaskAttached) -> dict[str, str | int]:
    values: dict[str, str | int | None] = {
        "gen_ai.request.model": event.model,
        "fuhu_runway.endpoint": event.endpoint,
        "fuhu_runway.clip_seconds": event.clip_seconds,
    }
    return {name: value for name, value in values.items() if value is not None}


def _named(values: Mapping[str, str | float | None]) -> dict[str, str | float]:
    """Return the values that are known, under the names that attributes have."""
    return {f"fuhu_runway.{name}": value for name, value in values.items() if value is not None}


def _add(
    job: _Job | None, name: str, error: str | None = None, **values: str | float | None
) -> None:
    """Add an event to the span of a job, if there is one."""
    if job is not None:
        attributes = _named(values)
        if error is not None:
            attributes["error.type"] = error
        job.span.add_event(name, attributes)


def _set(job: _Job | None, **values: str | float | None) -> None:
    """Set attributes of the span of a job, if there is one."""
    if job is not None:
        job.span.set_attributes(_named(values))


def _end(span: trace.Span, error: str | None) -> None:
    """End a span, as failed if there is an error."""
    if error is not None:
        span.set_attribute("error.type", error)
        span.set_status(trace.StatusCode.ERROR, error)
    span.end()
