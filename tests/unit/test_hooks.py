import logging
import pickle
from typing import Any

import attrs
import pytest

from fuhu_runway import hooks
from fuhu_runway.hooks import Event, Hooks, TaskSubmitted
from fuhu_runway.models import TaskState

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
    "refunded": False,
    "resumed_at_bytes": 0,
    "total_bytes": 4096,
    "rate": 2.0,
    "retry_after": 3.0,
    "reason": "it names another task",
    "tasks": 5,
}
EVENTS = [
    kind(**{field.name: EXAMPLES[field.name] for field in attrs.fields(kind)})
    for kind in Event.__subclasses__()
]
EACH_EVENT = pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)


def test_every_listener_hears_every_event_in_order() -> None:
    """All listeners hear each event, at once and in the order they were given in."""
    heard: list[tuple[str, Event]] = []
    listeners = [
        lambda event: heard.append(("first", event)),
        lambda event: heard.append(("second", event)),
    ]
    told = Hooks(listeners)
    for event in EVENTS:
        told.emit(event)
    assert heard == [(name, event) for event in EVENTS for name in ("first", "second")]


def test_without_listeners_nothing_happens() -> None:
    """Events may be told to nobody."""
    Hooks().emit(EVENTS[0])


def test_listeners_are_those_of_the_moment() -> None:
    """A list that changes later does not change who hears."""
    heard: list[Event] = []
    listeners = [heard.append]
    told = Hooks(listeners)
    listeners.clear()
    told.emit(EVENTS[0])
    assert heard == [EVENTS[0]]


def test_a_listener_that_raises_is_skipped_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """A listener's own fault reaches neither caller nor log, and the next listener still hears."""
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise ValueError("marked words of a prompt")

    with caplog.at_level(logging.WARNING, "fuhu_runway"):
        Hooks([broken, heard.append]).emit(TaskSubmitted("t-1", "text_to_video", 2.5))
    assert len(heard) == 1
    assert [one.getMessage() for one in caplog.records] == [
        "A hook raised on TaskSubmitted and was skipped."
    ]
    assert "marked" not in caplog.text


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
def test_a_closed_log_gets_nothing(event: Event, caplog: pytest.LogCaptureFixture) -> None:
    """Below the log's level an event costs no line."""
    with caplog.at_level(event.level + 1, "fuhu_runway"):
        Hooks().emit(event)
    assert caplog.records == []


LEVELS = {
    "TaskSubmitted": logging.INFO,
    "SubmissionUnclaimed": logging.WARNING,
    "RetryScheduled": logging.INFO,
    "PaceChanged": logging.INFO,
    "TaskPolled": logging.DEBUG,
    "PollFailed": logging.INFO,
    "UnknownWordSeen": logging.WARNING,
    "ContradictionSeen": logging.WARNING,
    "TaskSettled": logging.INFO,
    "DownloadStarted": logging.INFO,
    "DownloadFinished": logging.INFO,
    "CallbackReceived": logging.DEBUG,
    "CallbackRefused": logging.INFO,
    "CallbacksMissing": logging.WARNING,
    "SubmissionFound": logging.WARNING,
}


def test_what_happens_all_the_time_is_for_debugging_only() -> None:
    """Single looks are debug lines, what asks for attention is a warning, the rest is info."""
    assert {type(event).__name__: event.level for event in EVENTS} == LEVELS
    assert Event.level == logging.DEBUG


@EACH_EVENT
def test_events_are_frozen_values(event: Event) -> None:
    """No listener can change what the next one hears; an event equals its copy in a pickle."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.task_id = "another"  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301 - our own
    assert len({event, pickle.loads(pickle.dumps(event))}) == 1  # noqa: S301 - our own


@EACH_EVENT
def test_events_hold_ids_counts_and_seconds_only(event: Event) -> None:
    """No event has a field that could carry a prompt, an address, a header or a key."""
    plain = {"str", "int", "float", "bool", "TaskState", "None"}
    for field in attrs.fields(type(event)):
        kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", None)
        assert set(str(kind or field.type).replace(" ", "").split("|")) <= plain
        assert field.name in EXAMPLES


@EACH_EVENT
def test_an_event_that_nobody_hears_need_not_be_made(
    event: Event, caplog: pytest.LogCaptureFixture
) -> None:
    """Someone hears an event if there is a listener or the log is open at its level."""
    with caplog.at_level(event.level + 1, "fuhu_runway"):
        assert not Hooks().are_heard(type(event))
        assert Hooks([print]).are_heard(type(event))
    with caplog.at_level(event.level, "fuhu_runway"):
        assert Hooks().are_heard(type(event))


def test_the_log_belongs_to_the_package() -> None:
    """Lines go to the logger of the package's name, for the user to open or close."""
    assert hooks.LOGGER is logging.getLogger("fuhu_runway")
    assert hooks.LOGGER.handlers == []


def test_a_listener_that_is_added_twice_hears_once() -> None:
    """Adding is for good, and does no harm when it is done again."""
    heard: list[Event] = []
    hooks = Hooks()
    hooks.add(heard.append)
    listener = hooks._listeners[0]
    hooks.add(listener)
    hooks.emit(EVENTS[0])
    assert heard == [EVENTS[0]]
