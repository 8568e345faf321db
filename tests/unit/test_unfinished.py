import pytest
from support.feed import done, record

from fuhu_runway._waiting.unfinished import Origin, Unfinished
from fuhu_runway.models import TaskState

ONE, OTHER = ("feed", "t-1"), ("official_task", "t-1")


@pytest.fixture
def unfinished() -> Unfinished:
    """Know nothing yet."""
    return Unfinished()


def test_paid_tasks_are_kept_with_their_instant(unfinished: Unfinished) -> None:
    """In the order of the submits; the same id in the other format is another task."""
    unfinished.accepted(ONE, Origin(7.0))
    unfinished.accepted(OTHER, Origin(8.0))
    assert list(unfinished) == [(ONE, Origin(7.0)), (OTHER, Origin(8.0))]


def test_waiting_for_a_paid_task_changes_nothing(unfinished: Unfinished) -> None:
    """It keeps its instant; a task that was only waited for has none."""
    unfinished.accepted(ONE, Origin(7.0))
    for name in (ONE, OTHER, OTHER):
        unfinished.waited_for(name)
    assert list(unfinished) == [(ONE, Origin(7.0)), (OTHER, Origin())]


@pytest.mark.parametrize("state", [TaskState.FAILED, TaskState.CANCELED])
def test_a_failed_task_leaves_the_list(unfinished: Unfinished, state: TaskState) -> None:
    """It will have no clip; the end of a task that is not on the list changes nothing."""
    end = record(state=state)
    unfinished.accepted(ONE, Origin(7.0))
    unfinished.waited_for(OTHER)
    for name in (ONE, OTHER, ("feed", "t-2")):
        unfinished.seen(name, end)
    assert list(unfinished) == []


def test_a_clip_that_is_not_saved_stays(unfinished: Unfinished) -> None:
    """It has to be handed out or saved first; while it is saved, it is on the list again."""
    unfinished.accepted(ONE, Origin(7.0, "order-1", "a tag"))
    unfinished.seen(ONE, done())
    assert (ONE in unfinished, unfinished.tag_of(ONE)) == (True, "a tag")
    assert unfinished.hand_out(ONE)
    assert (ONE in unfinished, unfinished.tag_of(ONE)) == (False, None)
    assert not unfinished.hand_out(ONE)
    with unfinished.saving(ONE, Origin(7.0, "order-1", "a tag")):
        assert list(unfinished) == [(ONE, Origin(7.0, "order-1", "a tag"))]
    assert list(unfinished) == []


def test_a_clip_that_is_being_saved_is_not_handed_out(unfinished: Unfinished) -> None:
    """A reader beside a download does not take it off the list, and a failed download neither."""
    unfinished.accepted(ONE, Origin(7.0))
    with pytest.raises(OSError, match="full"):
        fill_the_disk(unfinished)
    assert list(unfinished) == [(ONE, Origin(7.0))]


def fill_the_disk(unfinished: Unfinished) -> None:
    """Save one clip twice at once, of which the second fails."""
    with unfinished.saving(ONE, Origin()):
        with unfinished.saving(ONE, Origin()):
            assert not unfinished.hand_out(ONE)
        assert list(unfinished) == []
        unfinished.accepted(ONE, Origin(7.0))
        assert not unfinished.hand_out(ONE)
        raise OSError("full")


@pytest.mark.parametrize("state", [TaskState.RUNNING, TaskState.UNKNOWN, TaskState.SUCCEEDED])
def test_a_task_that_may_still_have_a_clip_is_kept(
    unfinished: Unfinished, state: TaskState
) -> None:
    """Every state but an end, a success without an address included."""
    unfinished.accepted(ONE, Origin(7.0))
    unfinished.seen(ONE, record(state=state, video_url=None))
    assert list(unfinished) == [(ONE, Origin(7.0))]


def test_an_unknown_task_is_kept_if_it_was_paid_for(unfinished: Unfinished) -> None:
    """One that was only waited for is removed: it may not exist."""
    unfinished.accepted(ONE, Origin(7.0))
    unfinished.waited_for(OTHER)
    for name in (ONE, OTHER, ("feed", "t-2")):
        unfinished.not_found(name)
    assert list(unfinished) == [(ONE, Origin(7.0))]
