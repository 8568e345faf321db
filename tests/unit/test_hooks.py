import asyncio
import functools
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.clients import quick_client

from fuhu_runway import hooks
from fuhu_runway.errors import Fate, UsageError
from fuhu_runway.hooks import Event, Hooks, TaskPolled, TaskSubmitted
from fuhu_runway.journal import JobState
from fuhu_runway.models import TaskState
from fuhu_runway.testing import Simulator

EXAMPLES: dict[str, Any] = {
    "task_id": "t-1",
    "endpoint": "text_to_video",
    "seconds": 2.5,
    "error": "RateLimited",
    "attempt": 1,
    "delay": 0.5,
    "state": TaskState.RUNNING,
    "progress": 0.25,
    "polls": 3,
    "word": "dreaming",
    "note": "the words contradict each other",
    "points": 320.0,
    "is_saved": False,
    "refunded": False,
    "resumed_at_bytes": 0,
    "total_bytes": 4096,
    "rate": 2.0,
    "retry_after": 3.0,
    "submission": 7,
    "client": 1,
    "model": "gen4",
    "clip_seconds": 10,
    "tasks": 40,
    "jobs": 2,
    "fate": Fate.REFUSED,
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "received_bytes": 2048,
    "reason": "it names another task",
    "custom_id": "order 7",
    "tag": "shop",
    "key": "id:order-7",
    "proof": "list of tasks",
}
EVENTS = [
    kind(**{field.name: EXAMPLES[field.name] for field in attrs.fields(kind)})
    for kind in Event.__subclasses__()
]
EACH_EVENT = pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)


def test_every_listener_gets_every_event_in_order() -> None:
    """All listeners receive each event, at once and in order."""
    received: list[tuple[str, Event]] = []
    listeners = [
        lambda event: received.append(("first", event)),
        lambda event: received.append(("second", event)),
    ]
    hooks = Hooks(listeners)
    for event in EVENTS:
        hooks.emit(event)
    assert received == [(name, event) for event in EVENTS for name in ("first", "second")]


def test_without_listeners_nothing_happens() -> None:
    """There may be no listeners."""
    Hooks().emit(EVENTS[0])


def test_listeners_are_those_of_the_moment() -> None:
    """Changing the list later does not change the listeners."""
    received: list[Event] = []
    listeners = [received.append]
    hooks = Hooks(listeners)
    listeners.clear()
    hooks.emit(EVENTS[0])
    assert received == [EVENTS[0]]


FAULTS = [ValueError, asyncio.CancelledError, GeneratorExit, pytest.fail.Exception]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_listener_that_raises_is_skipped_and_logged(
    caplog: pytest.LogCaptureFixture, fault: type[BaseException]
) -> None:
    """The text of its exception reaches neither caller nor log; the next listener is called."""
    received: list[Event] = []

    def broken(event: Event) -> None:
        raise fault("marked words of a prompt")

    with caplog.at_level(logging.WARNING, "fuhu_runway"):
        Hooks([broken, received.append]).emit(TaskSubmitted("t-1", "text_to_video", 2.5))
    assert len(received) == 1
    assert [one.getMessage() for one in caplog.records] == [
        f"A hook raised {fault.__name__} on TaskSubmitted and was skipped."
    ]
    assert "marked" not in caplog.text


def test_a_log_that_raises_is_skipped(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler without care for errors ends neither the caller nor the calls of listeners."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError

    received: list[Event] = []
    monkeypatch.setattr(hooks.LOGGER, "handlers", [Broken()])
    with caplog.at_level(logging.DEBUG, "fuhu_runway"):
        Hooks([received.append]).emit(EVENTS[0])
    assert received == [EVENTS[0]]


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_job_is_done_although_every_event_fails(
    gateway: Simulator, tmp_path: Path, fault: type[BaseException]
) -> None:
    """A listener that raises anything at each event ends no submission, wait or download."""

    def broken(event: Event) -> None:
        raise fault

    async with quick_client(gateway, hooks=[broken], journal=tmp_path / "run.db") as client:
        clip = await client.run("a kitten", save=tmp_path / "kitten.mp4", timeout=60)
        assert client.journal is not None
        assert [job.state for job in await client.journal.jobs()] == [JobState.SAVED]
    assert clip.path == tmp_path / "kitten.mp4"
    gateway.assert_submitted_once("a kitten")


class Async:
    async def __call__(self, event: Event) -> None:
        """A coroutine, which would have to be awaited."""


async def receive(event: Event) -> None:
    """A coroutine, which would have to be awaited."""


@pytest.mark.parametrize(
    "listener",
    [receive, Async(), functools.partial(receive)],
    ids=["function", "object", "partial"],
)
def test_an_async_listener_is_refused(listener: Any) -> None:
    """It would never be awaited, so it is refused when it is given."""
    with pytest.raises(UsageError, match="async function") as caught:
        Hooks([listener])
    assert caught.value.field == "hooks"


def test_a_listener_that_returns_a_coroutine_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """That shows only when it is called; the coroutine is closed, and nothing warns later."""
    Hooks([lambda event: receive(event)]).emit(EVENTS[0])  # noqa: PLW0108  (not seen to be async)
    assert "never awaited" in caplog.text


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_listener_may_end_the_program(stop: type[BaseException]) -> None:
    """What ends a program is no fault of a listener, and goes through."""

    def stopping(event: Event) -> None:
        raise stop

    with pytest.raises(stop):
        Hooks([stopping]).emit(EVENTS[0])


@EACH_EVENT
def test_each_event_is_a_line_in_the_log(event: Event, caplog: pytest.LogCaptureFixture) -> None:
    """With the log open every event is one line, at its own level, with all of its fields."""
    with caplog.at_level(logging.DEBUG, "fuhu_runway"):
        Hooks().emit(event)
    assert [(one.levelno, one.name) for one in caplog.records] == [(event.level, "fuhu_runway")]
    assert caplog.messages == [str(event)]


@EACH_EVENT
def test_a_line_of_the_log_carries_its_event(
    event: Event, caplog: pytest.LogCaptureFixture
) -> None:
    """A formatter finds the event itself on the record, and can make JSON of it."""
    with caplog.at_level(logging.DEBUG, "fuhu_runway"):
        Hooks().emit(event)
    [line] = caplog.records
    carried: Event = line.event  # type: ignore[attr-defined]
    assert carried is event
    row = json.loads(json.dumps(carried.as_dict()))
    assert row.pop("event") == type(event).__name__
    assert row == {
        name: getattr(value, "value", value)
        for name, value in attrs.asdict(event, recurse=False).items()
    }


def test_a_line_of_the_log_is_easy_to_read() -> None:
    """It is the event's name and what is known, as `name=value` with plain words and numbers."""
    event = hooks.TaskSettled("t-1", TaskState.SUCCEEDED, 3, 1 / 3, refunded=False)
    assert str(event) == (
        "TaskSettled task_id=t-1 state=succeeded polls=3 points=0.333333 refunded=false"
    )
    assert str(hooks.PaceRecovered(None)) == "PaceRecovered"


def test_what_a_gateway_says_cannot_break_the_line() -> None:
    """Text with other characters is quoted, and cannot start a new line."""
    event = hooks.UnknownWordSeen("t 1", "ok\nERROR all=lost \x1b[2J")
    assert str(event) == ('UnknownWordSeen task_id="t 1" word="ok\\nERROR all=lost \\u001b[2J"')


@EACH_EVENT
def test_a_closed_log_gets_nothing(event: Event, caplog: pytest.LogCaptureFixture) -> None:
    """Below the log's level an event costs no line."""
    with caplog.at_level(event.level + 1, "fuhu_runway"):
        Hooks().emit(event)
    assert caplog.records == []


LEVELS = {
    "SubmissionStarted": logging.DEBUG,
    "SubmissionHeld": logging.DEBUG,
    "SubmissionSent": logging.DEBUG,
    "TaskSubmitted": logging.INFO,
    "SubmissionFailed": logging.INFO,
    "SubmissionDoubted": logging.WARNING,
    "SubmissionUnclaimed": logging.WARNING,
    "SubmissionUnrecorded": logging.ERROR,
    "DoubtsFound": logging.WARNING,
    "TaskAttached": logging.DEBUG,
    "RetryScheduled": logging.INFO,
    "PaceChanged": logging.INFO,
    "PaceHeld": logging.INFO,
    "PaceLost": logging.WARNING,
    "PaceRecovered": logging.INFO,
    "TaskPolled": logging.DEBUG,
    "PollFailed": logging.INFO,
    "UnknownWordSeen": logging.WARNING,
    "ContradictionSeen": logging.WARNING,
    "WaitFailed": logging.INFO,
    "TaskSettled": logging.INFO,
    "ClipHandedOut": logging.DEBUG,
    "JobEnded": logging.INFO,
    "DownloadStarted": logging.INFO,
    "DownloadBroken": logging.INFO,
    "DownloadFinished": logging.INFO,
    "DownloadFailed": logging.INFO,
    "ClientClosed": logging.DEBUG,
    "CallbackReceived": logging.DEBUG,
    "CallbackRefused": logging.INFO,
    "CallbacksMissing": logging.WARNING,
    "SubmissionFound": logging.WARNING,
    "DoubtSettled": logging.WARNING,
    "ReconciliationFailed": logging.WARNING,
}


def test_what_happens_all_the_time_is_for_debugging_only() -> None:
    """Steps on the way are debug lines, what asks for attention is a warning or an error."""
    assert {type(event).__name__: event.level for event in EVENTS} == LEVELS
    assert Event.level == logging.DEBUG


@EACH_EVENT
def test_events_are_frozen_values(event: Event) -> None:
    """No listener can change an event; an event equals its pickled copy."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.task_id = "another"  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301 - our own
    assert len({event, pickle.loads(pickle.dumps(event))}) == 1  # noqa: S301 - our own


@EACH_EVENT
def test_events_hold_ids_counts_and_seconds_only(event: Event) -> None:
    """No event has a field that could carry a prompt, an address, a header or a key."""
    plain = {"str", "int", "float", "bool", "TaskState", "Fate", "None"}
    for field in attrs.fields(type(event)):
        kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", None)
        assert set(str(kind or field.type).replace(" ", "").split("|")) <= plain
        assert field.name in EXAMPLES


@EACH_EVENT
def test_an_event_without_listeners_need_not_be_made(
    event: Event, caplog: pytest.LogCaptureFixture
) -> None:
    """An event is received if there is a listener, or the log is enabled at its level."""
    with caplog.at_level(event.level + 1, "fuhu_runway"):
        assert not Hooks().is_enabled_for(type(event))
        assert Hooks([print]).is_enabled_for(type(event))
    with caplog.at_level(event.level, "fuhu_runway"):
        assert Hooks().is_enabled_for(type(event))


def test_the_log_belongs_to_the_package() -> None:
    """
    Lines go to the logger of the package's name, for the user to open or close.

    It has no handler, so that warnings show even if logging is not set up.
    """
    assert hooks.LOGGER is logging.getLogger("fuhu_runway")
    assert hooks.LOGGER.handlers == []


def test_a_listener_that_is_added_twice_is_called_once() -> None:
    """Adding is for good, and does no harm when it is done again."""
    received: list[Event] = []
    hooks = Hooks()
    hooks.add(received.append)
    listener, _ = hooks._listeners[0]
    hooks.add(listener)
    hooks.emit(EVENTS[0])
    assert received == [EVENTS[0]]


def test_a_listener_is_called_with_the_kinds_it_was_added_to() -> None:
    """An event that no listener receives need not be made."""
    received: list[Event] = []
    hooks = Hooks()
    hooks.add(received.append, (TaskSubmitted,))
    submitted, polled = (
        next(event for event in EVENTS if isinstance(event, kind))
        for kind in (TaskSubmitted, TaskPolled)
    )
    hooks.emit(submitted)
    hooks.emit(polled)
    assert received == [submitted]
    assert hooks.is_enabled_for(TaskSubmitted)
    assert not hooks.is_enabled_for(TaskPolled)


class Traced:
    """A listener that knows the trace of a submission."""

    def __init__(self, trace: Any) -> None:
        self.trace = trace
        self.calls: list[int] = []

    def __call__(self, event: Event) -> None:
        pass

    def trace_of(self, submission: int) -> Any:
        self.calls.append(submission)
        if isinstance(self.trace, Exception):
            raise self.trace
        return self.trace


TRACE = EXAMPLES["traceparent"]


def test_the_first_listener_with_a_trace_names_it() -> None:
    """Functions and listeners without a trace are skipped; later ones are not called."""
    silent, first, second = Traced(None), Traced(TRACE), Traced(TRACE)
    assert Hooks([print, silent, first, second]).trace_of(7) == TRACE
    assert [one.calls for one in (silent, first, second)] == [[7], [7], []]
    assert Hooks([print]).trace_of(7) is None
    assert Hooks().trace_of(7) is None


@pytest.mark.parametrize(
    "trace",
    ["", "a kitten", TRACE + "-a kitten", TRACE.upper(), TRACE.encode(), 7, [TRACE]],
    ids=repr,
)
def test_nothing_but_a_trace_goes_into_the_journal(trace: Any) -> None:
    """What does not have the form of W3C Trace Context is no trace: it might be a secret."""
    assert Hooks([Traced(trace)]).trace_of(7) is None


def test_a_listener_that_fails_to_name_a_trace_is_skipped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The text of its exception reaches neither caller nor log; the next listener is called."""
    with caplog.at_level(logging.WARNING, "fuhu_runway"):
        assert Hooks([Traced(ValueError("marked")), Traced(TRACE)]).trace_of(7) == TRACE
    assert caplog.messages == ["A hook raised ValueError on trace_of and was skipped."]
