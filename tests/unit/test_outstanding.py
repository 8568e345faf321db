import pytest
from support.feed import done, record

from fuhu_runway._outstanding import Outstanding
from fuhu_runway.models import TaskRecord, TaskState

ONE, OTHER = ("feed", "t-1"), ("official_task", "t-1")


@pytest.fixture
def outstanding() -> Outstanding:
    """Know nothing yet."""
    return Outstanding()


def test_what_was_paid_for_is_kept_with_its_instant(outstanding: Outstanding) -> None:
    """In the order of the submits; the same id in the other format is another task."""
    outstanding.accepted(ONE, 7.0)
    outstanding.accepted(OTHER, 8.0)
    assert list(outstanding) == [(ONE, 7.0), (OTHER, 8.0)]


def test_waiting_for_what_was_paid_for_changes_nothing(outstanding: Outstanding) -> None:
    """It keeps its instant; what was only waited for has none."""
    outstanding.accepted(ONE, 7.0)
    for name in (ONE, OTHER, OTHER):
        outstanding.waited_for(name)
    assert list(outstanding) == [(ONE, 7.0), (OTHER, None)]


@pytest.mark.parametrize(
    "end", [done(), record(state=TaskState.FAILED), record(state=TaskState.CANCELED)], ids=str
)
def test_what_has_ended_is_forgotten(outstanding: Outstanding, end: TaskRecord) -> None:
    """By a clip, or by a failure; an end of what is not known is fine."""
    outstanding.accepted(ONE, 7.0)
    outstanding.waited_for(OTHER)
    for name in (ONE, OTHER, ("feed", "t-2")):
        outstanding.seen(name, end)
    assert list(outstanding) == []


@pytest.mark.parametrize("state", [TaskState.RUNNING, TaskState.UNKNOWN, TaskState.SUCCEEDED])
def test_what_may_still_give_a_clip_is_kept(outstanding: Outstanding, state: TaskState) -> None:
    """Whatever is no end, a success without an address included."""
    outstanding.accepted(ONE, 7.0)
    outstanding.seen(ONE, record(state=state, video_url=None))
    assert list(outstanding) == [(ONE, 7.0)]


def test_a_task_that_nobody_knows_is_kept_if_it_was_paid_for(outstanding: Outstanding) -> None:
    """One that was only waited for is forgotten: it may never have been."""
    outstanding.accepted(ONE, 7.0)
    outstanding.waited_for(OTHER)
    for name in (ONE, OTHER, ("feed", "t-2")):
        outstanding.not_found(name)
    assert list(outstanding) == [(ONE, 7.0)]
