"""Spans of HTTP requests, as OpenTelemetry's instrumentation of aiohttp makes them."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from support.clients import EventRecorder, quick_client

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
pytest.importorskip("opentelemetry.instrumentation.aiohttp_client", reason="needs a newer API")

from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Span, SpanKind
from support.spans import Collected

from fuhu_runway import Client
from fuhu_runway.contrib.otel import JobSpans
from fuhu_runway.hooks import TaskPolled
from fuhu_runway.models import Limits
from fuhu_runway.testing import Simulator

PROMPT: Final = "a kitten"
JOB: Final = "generate_content gen4"


class Traces(Collected):
    """The spans of a program whose aiohttp is instrumented, by their traces."""

    def requests_in(self, parent: Span) -> list[str]:
        """Return the last parts of the addresses of all requests in one trace, in order."""
        return [
            str((span.attributes or {})["http.url"]).rpartition("/")[2]
            for span in self._in(parent)
            if span.kind is SpanKind.CLIENT and span.name != JOB
        ]

    def jobs_in(self, parent: Span) -> int:
        """Return how many spans of jobs there are in one trace."""
        return len([span for span in self._in(parent) if span.name == JOB])

    def _in(self, parent: Span) -> list[ReadableSpan]:
        trace_id = parent.get_span_context().trace_id
        return [span for span in self.ended if span.get_span_context().trace_id == trace_id]


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    """Return the spans of a program whose aiohttp is instrumented until the end of the test."""
    # The names of the attributes before the stable ones, which are still the default.
    monkeypatch.delenv("OTEL_SEMCONV_STABILITY_OPT_IN", raising=False)
    collected, instrumentor = Traces(), AioHttpClientInstrumentor()
    instrumentor.instrument(tracer_provider=collected.provider)
    yield collected
    instrumentor.uninstrument()


@pytest.mark.parametrize("pace", [None, 500.0])
async def test_spans_of_polls_belong_to_their_job(
    gateway: Simulator, collected: Traces, pace: float | None
) -> None:
    """Two jobs in two spans, waited for in a third: each trace has its own submit and polls."""
    recorder, parents, tasks = EventRecorder(), [], []
    hooks, limits = [JobSpans(collected.provider), recorder], Limits(requests_per_second=pace)
    async with quick_client(gateway, hooks=hooks, limits=limits) as client:
        for name in ("first", "second"):
            with collected.tracer.start_as_current_span(name) as parent:
                tasks.append(await client.generate(PROMPT))
                parents.append(parent)
        with collected.tracer.start_as_current_span("wait") as third:
            await asyncio.gather(*tasks)
    for task, parent in zip(tasks, parents, strict=True):
        polls = len([event for event in recorder.all(TaskPolled) if event.task_id == task.id])
        assert polls > 0
        assert collected.requests_in(parent) == ["generate", *["feed"] * polls]
        assert collected.jobs_in(parent) == 1
    assert collected.requests_in(third) == []


async def test_spans_of_background_jobs_belong_to_the_call_of_start(
    gateway: Simulator, collected: Traces, tmp_path: Path
) -> None:
    """Also after its span has ended: the submit, the polls and the download are in its trace."""

    async def route(name: str) -> tuple[str, Span]:
        with collected.tracer.start_as_current_span(name) as span:
            jobs.append(await client.start(PROMPT, save=tmp_path / f"{name}.mp4"))
            return name, span

    jobs = []
    async with quick_client(gateway, hooks=[JobSpans(collected.provider)]) as client:
        spans = dict(await asyncio.gather(route("a"), route("b")))
        for job in jobs:
            await job
    for span in spans.values():
        submit, *polls, clip = collected.requests_in(span)
        assert (submit, set(polls)) == ("generate", {"feed"})
        assert ".mp4" in clip
        assert collected.jobs_in(span) == 1


async def test_spans_of_a_task_by_its_id_belong_to_the_first_wait(
    gateway: Simulator, runway: Client, collected: Traces
) -> None:
    """Where the submit was in another process, the polls are in the trace of the wait."""
    task_id = (await runway.generate(PROMPT)).id
    async with quick_client(gateway) as client:
        task = client.task(task_id)
        with collected.tracer.start_as_current_span("wait") as parent:
            await task
    assert set(collected.requests_in(parent)) == {"feed"}
