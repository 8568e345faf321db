"""
OpenTelemetry spans, one for each job and one for each download. Needs the extra `otel`.

Rule 1: a job's span begins when its submit is requested, in the caller's trace, and ends with its
task. Retries and states are events of the span.
Rule 2: a download's span is a child of its job's span.
Rule 3: a job that is resumed later, in this process or another, gets a new span with a link to
the first one.
Rule 4: the number of spans that are kept is limited. Closing a client ends the spans of its jobs.

Uses OpenTelemetry's API only: nothing is recorded unless the program sets up an SDK.
"""

import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

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
        'fuhu_runway.contrib.otel needs an extra; in a checkout: python -m pip install ".[otel]"',
        name=missing.name,
    ) from missing

OPERATION: Final = "generate_content"
"""The operation's name by OpenTelemetry's conventions for generative AI."""
AT_MOST: Final = 20_000
"""Open jobs, and ended ones, that are kept; each takes about 2 kB."""

_CARRIER: Final = TraceContextTextMapPropagator()
_TASK_GOES_ON: Final = frozenset({WaitTimeout.__name__, WaitAbandoned.__name__})
"""Errors that end a wait but not its task."""


@attrs.define(eq=False)
class _Job:
    client: int
    attributes: Mapping[str, str | int]
    #: Its latest span. If the job was attached to, the span of its submission.
    span: trace.Span
    #: The parent of the next span.
    parent: Context = attrs.field(factory=Context)
    #: When the next span begins, in Unix nanoseconds; None means when it is made.
    since: int | None = None
    state: TaskState | None = None
    is_over: bool = False

    def add(self, name: str, error: str | None = None, **values: str | float | None) -> None:
        """Add an event to the span."""
        kind = {} if error is None else {"error.type": error}
        self.span.add_event(name, {**_named(**values), **kind})

    def set(self, **values: str | float | None) -> None:
        """Set attributes of the span."""
        self.span.set_attributes(_named(**values))


_UNKNOWN: Final = _Job(0, {}, trace.INVALID_SPAN)
"""A job that is not followed: its span ignores everything."""


class JobSpans:
    """
    A listener that makes spans of jobs and downloads: `Client(hooks=[JobSpans()])`.

    Clients of one event loop may share it. Spans hold ids, counts and seconds, as events do: no
    prompt, key or address.

    Args:
        tracer_provider: Where spans go; by default the provider of the program.
        attributes: Added to every span, such as `{"server.address": "api.fuhuapi.com"}`.
        at_most: How many jobs are followed at once. Beyond that, the oldest span is ended.

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

    def __repr__(self) -> str:
        return f"<JobSpans {len(self._submitting) + len(self._open):,} open>"

    def __call__(self, event: events.Event) -> None:
        """Record one event."""
        self._record_wait(event)
        self._record_submission(event)
        self._record_download(event)

    def trace_of(self, submission: int) -> str | None:
        """Return the W3C Trace Context of a submission's span, for the journal to keep."""
        carrier: dict[str, str] = {}
        job = self._submitting.get(submission, _UNKNOWN)
        _CARRIER.inject(carrier, trace.set_span_in_context(job.span, Context()))
        return carrier.get("traceparent")

    def _record_submission(self, event: events.Event) -> None:
        number = getattr(event, "submission", None) or 0
        job = self._submitting.get(number, _UNKNOWN)
        match event:
            case events.SubmissionStarted():
                job = _Job(event.client, _attributes_of(event), trace.INVALID_SPAN, get_current())
                self._submitting[number] = self._begin(job)
            case events.SubmissionHeld():
                job.add("held", tasks=event.tasks)
            case events.SubmissionSent():
                job.add("sent", attempt=event.attempt)
                job.set(submissions=event.attempt)
            case events.RetryScheduled():
                job = self._open.get(event.task_id or "", job)
                job.add("retry", event.error, delay=event.delay)
            case events.TaskSubmitted() if job is not _UNKNOWN:
                job.add("accepted", seconds=event.seconds)
                self._follow(event.task_id, self._submitting.pop(number))
            case events.SubmissionFailed():
                job.set(fate=event.fate.value)
                self._end_submission(number, event.error)
            case events.SubmissionDoubted():
                job.add("in doubt", event.error)
                self._end_submission(number, SubmissionInDoubt.__name__)
            case events.SubmissionUnrecorded():
                job = self._open.get(event.task_id or "", job)
                job.add("unrecorded", event.error, reason=event.reason)
            case events.SubmissionUnclaimed():
                self._open.get(event.task_id or "", _UNKNOWN).add("unclaimed")
                self._end_submission(number, event.error)

    def _end_submission(self, number: int, error: str | None) -> None:
        _end(self._submitting.pop(number, _UNKNOWN).span, error)

    def _record_wait(self, event: events.Event) -> None:
        match event:
            case events.TaskPolled() if not event.state.is_final:
                job = self._of_poll(event.task_id, event.polls)
                if job is not None and event.state is not job.state:
                    job.state = event.state
                    job.add(event.state.value)
            case events.PollFailed():
                job = self._of_poll(event.task_id) or _UNKNOWN
                job.add("poll failed", event.error, delay=event.delay)
            case events.TaskAttached() if event.task_id not in self._open:
                self._attach(event)
            case events.WaitFailed():
                self._open.get(event.task_id, _UNKNOWN).add("wait ended", event.error)
                if event.error not in _TASK_GOES_ON:
                    self._finish(event.task_id, event.error)
            case events.TaskSettled():
                self._settle(event)
            case events.ClientClosed():
                self._end_client(event.client)

    def _end_client(self, client: int) -> None:
        for task_id in [key for key, job in self._open.items() if job.client == client]:
            self._abandon(task_id)
        # A stream that its reader has left, but not closed, reports no end before that.
        for task_id in list(self._downloads):
            job = self._job(task_id)
            if job is None or job.client == client:
                span = self._downloads.pop(task_id)
                span.set_attributes(_named(abandoned=True))
                span.end()

    def _attach(self, event: events.TaskAttached) -> None:
        carrier = {"traceparent": event.traceparent or ""}
        span = trace.get_current_span(_CARRIER.extract(carrier, Context()))
        before = self._past.get(event.task_id)
        if before is not None and not span.get_span_context().is_valid:
            span = before.span
        # Most handles are never awaited, so the span begins with the first poll of a wait.
        job = _Job(event.client, _attributes_of(event), span, get_current(), time.time_ns())
        self._keep(event.task_id, job)

    def _settle(self, event: events.TaskSettled) -> None:
        job = self._of_poll(event.task_id, event.polls)
        if job is None:
            return
        job.is_over = True
        job.set(
            state=event.state.value,
            polls=event.polls,
            points=event.points,
            refunded=event.refunded,
        )
        failures = {TaskState.FAILED: TaskFailed, TaskState.CANCELED: TaskCanceled}
        failure = failures.get(event.state)
        self._finish(event.task_id, failure and failure.__name__)

    def _record_download(self, event: events.Event) -> None:
        match event:
            case events.DownloadStarted():
                name = "resumed" if event.resumed_at_bytes else "started"
                values = _named(at_bytes=event.resumed_at_bytes, total_bytes=event.total_bytes)
                self._download(event.task_id).add_event(name, values)
            case events.DownloadBroken():
                values = _named(at_bytes=event.received_bytes, delay=event.delay)
                self._download(event.task_id).add_event("broken", values)
            case events.DownloadFinished():
                span = self._download(event.task_id)
                span.set_attributes(_named(file_bytes=event.total_bytes))
                _end(span, None)
                self._downloads.pop(event.task_id, None)
            case events.DownloadFailed():
                _end(self._download(event.task_id), event.error)
                self._downloads.pop(event.task_id, None)

    def _download(self, task_id: str) -> trace.Span:
        """Return the span of a task's download, which begins with its first event."""
        job = self._job(task_id)
        if job is None:
            return trace.INVALID_SPAN
        if task_id not in self._downloads:
            attributes = {**self._common, "gen_ai.response.id": task_id}
            context = trace.set_span_in_context(job.span)
            self._downloads[task_id] = self._tracer.start_span(
                "download", context, attributes=attributes
            )
        return self._downloads[task_id]

    # A job's spans, one after the other

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

    def _job(self, task_id: str) -> _Job | None:
        return self._open.get(task_id) or self._past.get(task_id)

    def _of_poll(self, task_id: str, polls: int = 1) -> _Job | None:
        """Return the open job of a task. The first poll of a wait may start its next span."""
        job = self._open.get(task_id)
        past = self._past.get(task_id)
        if job is None and polls and past is not None and not past.is_over:
            job = self._follow(task_id, self._begin(self._past.pop(task_id)))
        return job

    def _finish(self, task_id: str, error: str | None = None) -> None:
        """End the span of a task, and keep what a later span links to."""
        job = self._open.pop(task_id, None)
        if job is not None:
            _end(job.span, error)
            context = job.span.get_span_context()
            job.span = trace.NonRecordingSpan(context)  # its recorded events would take memory
            job.parent, job.since, job.state = Context(), None, None
            self._keep(task_id, job)

    def _abandon(self, task_id: str) -> None:
        """End the span of a task that goes on."""
        self._open[task_id].add("abandoned")
        self._open[task_id].set(abandoned=True)
        self._finish(task_id)

    def _keep(self, task_id: str, job: _Job) -> None:
        self._past.pop(task_id, None)
        self._past[task_id] = job
        if len(self._past) > self._at_most:
            del self._past[next(iter(self._past))]


def _attributes_of(event: events.SubmissionStarted | events.TaskAttached) -> dict[str, str | int]:
    values = {
        "gen_ai.request.model": event.model,
        "fuhu_runway.endpoint": event.endpoint,
        "fuhu_runway.clip_seconds": event.clip_seconds,
    }
    return {name: value for name, value in values.items() if value is not None}


def _named(**values: str | float | None) -> dict[str, str | float]:
    """Return the values that are not None, under the names of attributes."""
    return {f"fuhu_runway.{name}": value for name, value in values.items() if value is not None}


def _end(span: trace.Span, error: str | None) -> None:
    """End a span, as failed if there is an error."""
    if error is not None:
        span.set_attribute("error.type", error)
        span.set_status(trace.StatusCode.ERROR, error)
    span.end()
