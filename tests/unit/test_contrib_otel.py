import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from support.clients import quick_client

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from support.spans import Collected

from fuhu_runway import hooks as events
from fuhu_runway.contrib.otel import JobSpans
from fuhu_runway.errors import Fate, InvalidRequest, SubmissionInDoubt, UsageError
from fuhu_runway.models import TaskState
from fuhu_runway.testing import Simulator, faults

PROMPT: Final = "a marked kitten"
TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STARTED: Final = events.SubmissionStarted(7, 1, "text_to_video", "gen4", 10)
ACCEPTED: Final = events.TaskSubmitted("t-1", "text_to_video", 0.5, 7)
SETTLED: Final = events.TaskSettled("t-1", TaskState.SUCCEEDED, 3, 320.0, refunded=False)
FINISHED: Final = events.DownloadFinished("t-1", 4096)
CLOSED: Final = events.ClientClosed(1)


class SpanCollector(Collected):
    """Makes listeners, and collects their spans."""

    def spans(self, **settings: Any) -> JobSpans:
        """Return a listener whose spans end here."""
        return JobSpans(self.provider, **settings)


@pytest.fixture
def collector() -> SpanCollector:
    """Return a collector of spans."""
    return SpanCollector()


def record(spans: JobSpans, *received: events.Event) -> None:
    """Send a listener some events."""
    for event in received:
        spans(event)


def named(span: ReadableSpan) -> list[str]:
    """Return the names of the events of a span."""
    return [event.name for event in span.events]


def polled(state: TaskState = TaskState.RUNNING, polls: int = 1) -> events.TaskPolled:
    """Return the event of a poll."""
    return events.TaskPolled("t-1", state, None, polls)


# The whole way


async def test_one_span_for_the_job_and_one_for_its_file(
    collector: SpanCollector, gateway: Simulator, tmp_path: Path
) -> None:
    """A job is one span in the caller's trace, with its cost, and without its prompt."""
    async with quick_client(gateway, hooks=[collector.spans()]) as client:
        with collector.tracer.start_as_current_span("request") as outer:
            task = await client.generate(PROMPT)
        clip = await task
        await clip.download(tmp_path / "kitten.mp4")
        _, span, download = collector.ended
    assert span.name == "generate_content gen4"
    assert span.kind is trace.SpanKind.CLIENT
    assert span.parent == outer.get_span_context()
    assert span.status.status_code is trace.StatusCode.UNSET
    assert span.attributes == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "runway",
        "gen_ai.output.type": "video",
        "gen_ai.request.model": "gen4",
        "gen_ai.response.id": task.id,
        "fuhu_runway.endpoint": "text_to_video",
        "fuhu_runway.clip_seconds": 10,
        "fuhu_runway.submissions": 1,
        "fuhu_runway.state": "succeeded",
        "fuhu_runway.polls": span.attributes["fuhu_runway.polls"],
        "fuhu_runway.points": 320.0,
        "fuhu_runway.refunded": False,
    }
    assert named(span)[:2] == ["sent", "accepted"]
    assert (download.name, named(download)) == ("download", ["started"])
    assert download.parent == span.get_span_context()
    assert download.attributes == {
        "gen_ai.response.id": task.id,
        "fuhu_runway.file_bytes": (tmp_path / "kitten.mp4").stat().st_size,
    }
    shown = span.to_json() + download.to_json()
    assert not [mark for mark in ("marked", gateway.api_key, "127.0.0.1", "_jwt") if mark in shown]


async def test_a_later_process_links_to_the_first(
    collector: SpanCollector, gateway: Simulator, tmp_path: Path
) -> None:
    """A job of the journal that is resumed gets a new span, with a link to the first."""
    journal = tmp_path / "run.db"
    async with quick_client(gateway, hooks=[collector.spans()], journal=journal) as client:
        await client.generate(PROMPT)
    async with quick_client(gateway, hooks=[collector.spans()], journal=journal) as client:
        assert client.journal is not None
        [job] = await client.journal.jobs()
        with collector.tracer.start_as_current_span("resume") as outer:
            task = client.attach(job)
        await task
    first, _, second = collector.ended
    assert first.attributes is not None
    assert first.attributes["fuhu_runway.abandoned"] is True
    assert second.parent == outer.get_span_context()
    [link] = second.links
    assert link.context.span_id == first.get_span_context().span_id
    assert link.context.trace_id == first.get_span_context().trace_id
    assert second.attributes is not None
    assert second.attributes["gen_ai.request.model"] == "gen4"


@pytest.mark.parametrize("wait_is_first", [True, False])
async def test_a_task_that_was_left_unfinished_links_to_its_submit(
    collector: SpanCollector, gateway: Simulator, tmp_path: Path, wait_is_first: bool
) -> None:
    """`client.unfinished` and `client.find` of a later process lead to the trace of the submit."""
    journal = tmp_path / "run.db"
    async with quick_client(gateway, hooks=[collector.spans()], journal=journal) as client:
        await client.generate(PROMPT, custom_id="order 7")
    async with quick_client(gateway, hooks=[collector.spans()], journal=journal) as client:
        with collector.tracer.start_as_current_span("resume") as outer:
            found = None if wait_is_first else await client.find("order 7")
            [task] = client.unfinished
            assert found in {None, task}
            await task
    first, second, _ = collector.ended
    assert second.parent == outer.get_span_context()
    [link] = second.links
    assert link.context.span_id == first.get_span_context().span_id
    assert second.attributes is not None
    assert second.attributes["gen_ai.request.model"] == "gen4"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (faults.refused(), InvalidRequest),
        (faults.drop_after_accepting(), SubmissionInDoubt),
    ],
)
async def test_a_submission_that_fails_is_an_error(
    collector: SpanCollector, gateway: Simulator, fault: Any, kind: type[Exception]
) -> None:
    """Refused or in doubt, its span ends at once as an error with the name of the exception."""
    gateway.fault("submit", fault)
    async with quick_client(gateway, hooks=[spans := collector.spans()]) as client:
        with pytest.raises(kind):
            await client.generate(PROMPT)
        [span] = collector.ended
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes is not None
    assert span.status.description == span.attributes["error.type"] == kind.__name__
    assert repr(spans) == "<JobSpans 0 open>"


# Submits


def test_retries_and_waits_before_the_task_are_events(collector: SpanCollector) -> None:
    """Waiting for a free slot and retries are events of the span."""
    spans = collector.spans(attributes={"server.address": "api.example"})
    record(
        spans,
        STARTED,
        events.SubmissionHeld(7, 40),
        events.SubmissionSent(7, 1),
        events.RetryScheduled("text_to_video", 1, 2.0, "RateLimited", 7),
        events.SubmissionSent(7, 2),
        events.SubmissionFailed(7, "text_to_video", "RateLimited", Fate.REFUSED),
    )
    [span] = collector.ended
    assert named(span) == ["held", "sent", "retry", "sent"]
    assert span.attributes is not None
    assert span.attributes["fuhu_runway.submissions"] == 2
    assert span.attributes["fuhu_runway.fate"] == "refused"
    assert span.attributes["server.address"] == "api.example"


def test_an_unclaimed_submission_goes_on(collector: SpanCollector) -> None:
    """Its span stays open until its task ends; without a task it ends at once."""
    spans = collector.spans()
    record(spans, STARTED, ACCEPTED, events.SubmissionUnclaimed("text_to_video", "t-1", None, 7))
    assert collector.ended == []
    record(spans, CLOSED, STARTED)
    record(spans, events.SubmissionUnclaimed("text_to_video", None, "InvalidRequest", 7))
    first, second = collector.ended
    assert named(first) == ["accepted", "unclaimed", "abandoned"]
    assert second.status.description == "InvalidRequest"


@pytest.mark.parametrize(
    "order",
    [
        # The submission's own, which comes before its task, and that of the gateway's lists.
        (events.SubmissionUnrecorded("key", "OSError", "t-1", None, 7), ACCEPTED),
        (ACCEPTED, events.SubmissionUnrecorded("key", "OSError", "t-1")),
    ],
)
def test_an_outcome_that_the_journal_could_not_record_shows(
    collector: SpanCollector, order: tuple[events.Event, ...]
) -> None:
    """It is an event of the job's span, with the reason and without the job's key."""
    spans = collector.spans()
    record(spans, STARTED, *order, CLOSED)
    [span] = collector.ended
    [event] = [one for one in span.events if one.name == "unrecorded"]
    assert event.attributes == {"fuhu_runway.reason": "OSError"}


def test_a_stream_that_is_left_open_ends_its_span_with_the_client(
    collector: SpanCollector,
) -> None:
    """Its own end may come long after that, or never; another client's download goes on."""
    spans = collector.spans()
    started = events.DownloadStarted("t-1", 0, None)
    record(spans, STARTED, ACCEPTED, SETTLED, started, events.ClientClosed(2))
    assert [span.name for span in collector.ended] == ["generate_content gen4"]
    record(spans, CLOSED, events.DownloadFailed("t-1", 7, "CancelledError"))
    _, download, *others = collector.ended
    assert download.attributes is not None
    assert download.attributes["fuhu_runway.abandoned"] is True
    assert all(span.name == "download" for span in others)


def test_a_submission_has_a_trace_while_it_is_under_way(collector: SpanCollector) -> None:
    """The journal keeps the context of the span; for unknown jobs there is none."""
    spans = collector.spans()
    record(spans, STARTED)
    trace_context = spans.trace_of(7)
    record(spans, ACCEPTED, CLOSED)
    context = collector.ended[0].get_span_context()
    ids = f"{context.trace_id:032x}-{context.span_id:016x}"
    assert trace_context == f"00-{ids}-{context.trace_flags:02x}"
    assert spans.trace_of(7) is spans.trace_of(8) is None


def test_events_of_unknown_jobs_are_ignored(collector: SpanCollector) -> None:
    """Events of unknown jobs, and of no job, make no span."""
    spans = collector.spans()
    record(
        spans,
        ACCEPTED,
        events.PaceChanged(1.0),
        events.RetryScheduled("feed", 1, 1.0, "GatewayDown"),
        events.SubmissionHeld(7, 1),
        events.SubmissionSent(7, 1),
        events.SubmissionFailed(7, "text_to_video", "NotSent", Fate.UNSENT),
        events.SubmissionDoubted(7, "text_to_video", "NoReply"),
        events.SubmissionUnclaimed("text_to_video", "t-1"),
        polled(),
        events.PollFailed("t-1", "GatewayDown", 1.0),
        events.WaitFailed("t-1", "NotFound"),
        SETTLED,
        events.DownloadStarted("t-1", 0, None),
        events.DownloadBroken("t-1", 0, 1.0),
        FINISHED,
        events.DownloadFailed("t-1", 0, "DownloadIncomplete"),
        CLOSED,
    )
    assert (collector.ended, repr(spans)) == ([], "<JobSpans 0 open>")


# Waits


async def test_states_are_events_when_they_change(collector: SpanCollector) -> None:
    """Queue and run show as events, once each, and so does trouble on the way."""
    spans = collector.spans()
    record(spans, STARTED, ACCEPTED)
    record(spans, *(polled(TaskState.QUEUED) for _ in range(3)), *(polled() for _ in range(3)))
    record(
        spans, events.PollFailed("t-1", "GatewayDown", 4.0), events.WaitFailed("t-1", "WaitTimeout")
    )
    record(spans, events.RetryScheduled("feed", 1, 1.0, "GatewayDown", task_id="t-1"))
    record(spans, polled(TaskState.SUCCEEDED), SETTLED)
    assert named(collector.ended[0]) == [
        "accepted",
        "queued",
        "running",
        "poll failed",
        "wait ended",
        "retry",
    ]


@pytest.mark.parametrize(
    ("state", "error"),
    [(TaskState.FAILED, "TaskFailed"), (TaskState.CANCELED, "TaskCanceled")],
)
def test_a_task_that_fails_is_an_error(
    collector: SpanCollector, state: TaskState, error: str
) -> None:
    """Its span ends with it, and says whether the points were refunded."""
    spans = collector.spans()
    record(spans, STARTED, ACCEPTED, events.TaskSettled("t-1", state, 2, 320.0, refunded=True))
    [span] = collector.ended
    assert span.status.description == error
    assert span.attributes is not None
    assert span.attributes["fuhu_runway.refunded"] is True


def test_a_wait_that_is_hopeless_ends_the_span(collector: SpanCollector) -> None:
    """A final refusal is an error; a later wait gets a span with a link."""
    spans = collector.spans()
    record(spans, STARTED, ACCEPTED, events.WaitFailed("t-1", "ClipMissing"))
    record(
        spans, events.TaskAttached("t-1", 1), events.PollFailed("t-1", "GatewayDown", 1.0), CLOSED
    )
    first, second = collector.ended
    assert first.status.description == "ClipMissing"
    assert [link.context for link in second.links] == [first.get_span_context()]


# Ends


def test_it_ends_with_the_task(collector: SpanCollector) -> None:
    """The span of a job is over before its download begins, and a poll of the task starts none."""
    spans = collector.spans()
    record(spans, STARTED, ACCEPTED, SETTLED)
    assert named(collector.ended[0]) == ["accepted"]
    record(spans, polled(TaskState.SUCCEEDED, 3), polled(TaskState.RUNNING, 3), SETTLED)
    assert len(collector.ended) == 1


def test_a_download_that_breaks_off_has_one_span(collector: SpanCollector) -> None:
    """Its breaks are events of one span, which ends with the file."""
    spans = collector.spans(attributes={"server.address": "api.example"})
    record(spans, STARTED, ACCEPTED, SETTLED, events.DownloadStarted("t-1", 0, 4096))
    record(spans, events.DownloadBroken("t-1", 100, 1.0), events.DownloadStarted("t-1", 100, 4096))
    assert len(collector.ended) == 1
    record(spans, FINISHED)
    job, download = collector.ended
    assert named(download) == ["started", "broken", "resumed"]
    assert download.parent == job.get_span_context()
    assert download.attributes == {
        "gen_ai.response.id": "t-1",
        "server.address": "api.example",
        "fuhu_runway.file_bytes": 4096,
    }


def test_a_download_that_fails_is_an_error(collector: SpanCollector) -> None:
    """Its span ends as failed, the job's does not; the next download gets another span."""
    spans = collector.spans()
    record(spans, STARTED, ACCEPTED, SETTLED)
    record(spans, events.DownloadFailed("t-1", 0, "DownloadIncomplete"), FINISHED)
    job, failed, finished = collector.ended
    assert job.status.status_code is trace.StatusCode.UNSET
    assert failed.status.description == "DownloadIncomplete"
    assert failed.parent == finished.parent == job.get_span_context()


def test_a_client_that_is_closed_ends_its_own_spans(collector: SpanCollector) -> None:
    """What is outstanding is abandoned, which is no error; other clients' jobs go on."""
    spans = collector.spans()
    record(spans, STARTED, ACCEPTED, events.ClientClosed(2))
    assert collector.ended == []
    record(spans, CLOSED)
    [span] = collector.ended
    assert span.attributes is not None
    assert span.attributes["fuhu_runway.abandoned"] is True
    assert span.status.status_code is trace.StatusCode.UNSET


def test_a_task_that_is_waited_for_after_the_close_links_back(collector: SpanCollector) -> None:
    """The same client in another loop continues with the task, in a new trace with a link."""
    spans = collector.spans()
    record(spans, STARTED, ACCEPTED, CLOSED, polled(), CLOSED)
    first, second = collector.ended
    assert second.parent is None
    assert [link.context for link in second.links] == [first.get_span_context()]


# Handles


async def test_a_handle_makes_no_span_until_it_is_waited_with(collector: SpanCollector) -> None:
    """Single polls make no span; a wait does, which begins when the handle was made."""
    spans = collector.spans()
    attached = events.TaskAttached("t-1", 1, "text_to_video", "gen4", 10, TRACE)
    record(spans, attached, polled(polls=0))
    record(spans, events.TaskSettled("t-1", TaskState.SUCCEEDED, 0, None, refunded=False))
    assert repr(spans) == "<JobSpans 0 open>"
    record(spans, polled(), attached, SETTLED)
    [span] = collector.ended
    assert named(span) == ["running"]
    [link] = span.links
    assert link.context.is_remote
    assert f"00-{link.context.trace_id:032x}-{link.context.span_id:016x}-01" == TRACE


async def test_a_wait_that_finds_the_end_makes_a_span(collector: SpanCollector) -> None:
    """One poll is enough; without a known trace there is no link, and no model in the name."""
    spans = collector.spans()
    record(spans, events.TaskAttached("t-1", 1), SETTLED)
    [span] = collector.ended
    assert (span.name, span.links) == ("generate_content", ())


# Bounds


def test_the_number_of_kept_jobs_is_limited(collector: SpanCollector) -> None:
    """Beyond it the oldest span is ended, and the oldest job that ended is forgotten."""
    spans = collector.spans(at_most=2)
    for number in range(6):
        record(spans, events.SubmissionStarted(number, 1, "text_to_video", None, None))
        record(spans, events.TaskSubmitted(f"t-{number}", "text_to_video", 0.1, number))
    assert repr(spans) == "<JobSpans 2 open>"
    assert len(collector.ended) == 4
    record(spans, *(events.DownloadFinished(f"t-{number}", 1) for number in range(4)))
    assert [span.attributes["gen_ai.response.id"] for span in collector.ended[4:]] == ["t-2", "t-3"]


def test_a_limit_of_no_jobs_is_an_error() -> None:
    """`at_most` is at least 1."""
    with pytest.raises(UsageError) as caught:
        JobSpans(at_most=0)
    assert caught.value.field == "at_most"


def test_without_the_api_the_error_names_the_extra() -> None:
    """Importing it says which extra is missing."""
    source = "import sys; sys.modules['opentelemetry'] = None; import fuhu_runway.contrib.otel"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, check=False, text=True
    )
    assert 'needs an extra; in a checkout: python -m pip install ".[otel]"' in done.stderr


def test_without_an_sdk_nothing_is_recorded() -> None:
    """The API alone gives spans that hold nothing, so that there is no trace to keep."""
    spans = JobSpans(trace.NoOpTracerProvider())
    record(spans, STARTED)
    assert spans.trace_of(7) is None
    record(spans, ACCEPTED, CLOSED)
    assert repr(spans) == "<JobSpans 0 open>"
