import asyncio
import contextvars
import gc
import logging
import random
from typing import Any

import attrs
import pytest
from support.clients import EventRecorder
from support.clock import ManualClock, settle
from support.feed import STEADY, Feed, Scene, Wait, done, limiter_of, record, refusal, scene_on

from fuhu_runway import hooks as events
from fuhu_runway._clock import LoopClock
from fuhu_runway._http.limiter import RateLimiter
from fuhu_runway._waiting.poll_queue import PollQueue
from fuhu_runway._waiting.poller import Poller
from fuhu_runway._waiting.unfinished import Origin, Unfinished
from fuhu_runway._wire.encode import ask_task
from fuhu_runway._wire.tables import ENDPOINTS, GATEWAYS
from fuhu_runway.errors import (
    ClipMissing,
    GatewayDown,
    NoReply,
    NotFound,
    OutOfCredits,
    RateLimited,
    RunwayError,
    Unauthorized,
    UnreadableReply,
    UsageError,
    WaitAbandoned,
    WaitTimeout,
)
from fuhu_runway.hooks import Hooks, WaitFailed
from fuhu_runway.models import Limits, PollPolicy, TaskRecord, TaskState


@pytest.fixture
def scene(clock: ManualClock) -> Scene:
    """Return a scheduler without jitter."""
    return scene_on(clock)


# The queue


def test_the_queue_returns_the_longest_due_first() -> None:
    """Keys are returned by their due times, not in the order in which they were put."""
    queue: PollQueue[str] = PollQueue()
    for key, due_at in (("late", 3.0), ("early", 1.0), ("middle", 2.0), ("future", 9.0)):
        queue.put(key, due_at)
    assert queue.take(now=5.0, at_most=2) == ["early", "middle"]
    assert queue.take(now=5.0, at_most=2) == ["late"]
    assert queue.next_due_at() == 9.0


def test_the_queue_keeps_the_order_of_equals() -> None:
    """Keys that are due at the same instant are returned in the order in which they were put."""
    queue: PollQueue[str] = PollQueue()
    for key in "cab":
        queue.put(key, 1.0)
    assert queue.take(1.0, 10) == ["c", "a", "b"]


def test_putting_a_key_again_replaces_its_due_time() -> None:
    """Putting a key again voids its earlier due time, and leaves one entry."""
    queue: PollQueue[str] = PollQueue()
    queue.put("a", 1.0)
    queue.put("a", 5.0)
    assert (len(queue), queue.next_due_at(), queue.take(4.0, 9)) == (1, 5.0, [])


def test_the_queue_drops_keys() -> None:
    """A dropped key is neither counted nor returned; dropping an unknown one does nothing."""
    queue: PollQueue[str] = PollQueue()
    queue.put("a", 1.0)
    queue.drop("a")
    queue.drop("b")
    assert "a" not in queue
    assert (len(queue), queue.next_due_at(), queue.take(9.0, 9)) == (0, None, [])


def test_the_queue_removes_void_entries() -> None:
    """After ten thousand void entries, the heap holds fewer than fifty."""
    queue: PollQueue[int] = PollQueue()
    for turn in range(10_000):
        queue.put(1, 1e6 + turn)
    assert len(queue._heap) < 50
    assert queue.take(1e9, 5) == [1]


# One task, one poll


async def test_the_first_poll_comes_after_the_first_interval(scene: Scene) -> None:
    """A new task is polled after 2 s, then less and less often, up to every 15 s."""
    waiting = scene.wait(scene.watch(fresh=True))
    await scene.clock.advance(60)
    assert scene.feed.instants == [2, 5, 9.5, 16.25, 26.375, 41.375, 56.375]
    waiting.cancel()


async def test_a_reattached_task_is_polled_at_once(scene: Scene) -> None:
    """A handle made from an id alone does not wait before its first poll."""
    scene.feed.returns(done())
    waiting = scene.wait(scene.watch())
    await scene.clock.advance(0)
    assert waiting.result() == done()
    assert scene.feed.instants == [0]


async def test_many_waits_for_one_task_share_its_polls(scene: Scene) -> None:
    """A hundred waits for one task poll it as often as one does, and all get its end."""
    scene.feed.returns(record(), record(), done())
    watch = scene.watch(fresh=True)
    waits = [scene.wait(watch) for _ in range(100)]
    await scene.clock.advance(9.5)
    assert [wait.result() for wait in waits] == [done()] * 100
    assert len(scene.feed.polls) == 3
    assert scene.has_nothing_left()


async def test_handles_of_one_task_share_a_watch(scene: Scene) -> None:
    """Two handles on one id share its record, as long as one of them is held."""
    watch = scene.watch()
    assert scene.watch() is watch
    assert scene.watch("t-2") is not watch


async def test_a_task_of_the_other_format_is_another_one(scene: Scene) -> None:
    """A handle in the wrong format does not keep one in the right format from polling there."""
    assert scene.watch(endpoint="feed") is not scene.watch(endpoint="official_task")


async def test_a_watch_lives_as_long_as_its_handles(scene: Scene) -> None:
    """The poller itself holds no task without a handle."""
    watch = scene.watch()
    waiting = scene.wait(watch, 1.0)
    await scene.clock.advance(1.0)
    assert isinstance(waiting.exception(), WaitTimeout)
    del watch, waiting
    gc.collect()
    assert len(scene.poller._watches) == 0


async def test_waiting_for_an_ended_task_sends_no_poll(scene: Scene) -> None:
    """A wait for a task whose end is known returns at once, without a poll."""
    scene.feed.returns(done())
    watch = scene.watch()
    first = scene.wait(watch)
    await scene.clock.advance(0)
    assert await scene.poller.settled(watch, 0.0) == first.result()
    assert len(scene.feed.polls) == 1


async def test_a_failed_task_ends_its_wait(scene: Scene) -> None:
    """Failure and cancellation at the gateway are ends like success."""
    for number, state in enumerate((TaskState.FAILED, TaskState.CANCELED)):
        scene.feed.returns(record(state=state), task_id=f"t-{number}")
        waiting = scene.wait(scene.watch(f"t-{number}"))
        await scene.clock.advance(0)
        assert waiting.result().state is state


async def test_the_end_is_reported_once(scene: Scene) -> None:
    """However often an ended task is polled, there is one `TaskSettled`, with its points."""
    scene.feed.returns(record(), done())
    watch = scene.watch()
    waiting = scene.wait(watch)
    await scene.clock.advance(10)
    await scene.poller.refresh(watch)
    assert waiting.done()
    settled = events.TaskSettled("t-1", TaskState.SUCCEEDED, 2, 320.0, refunded=False)
    assert scene.recorder.all(events.TaskSettled) == [settled]
    assert [event.polls for event in scene.recorder.all(events.TaskPolled)] == [1, 2, 2]


async def test_a_task_that_comes_back_from_its_end_ends_again(scene: Scene) -> None:
    """If a gateway takes back an end and reports it again later, every wait returns."""
    scene.feed.returns(done(), record(), done())
    watch = scene.watch()
    await scene.poller.refresh(watch)
    await scene.poller.refresh(watch)
    waiting = scene.wait(watch)
    await scene.clock.advance(20)
    assert waiting.result() == done()
    assert scene.has_nothing_left()


# Leaving


async def test_cancelling_one_wait_leaves_the_others(scene: Scene) -> None:
    """The others get their answer from the poll that was in flight."""
    watch = scene.watch()
    scene.feed.is_open.clear()
    leaver, stayer = scene.wait(watch), scene.wait(watch)
    await scene.clock.advance(0)
    leaver.cancel()
    scene.feed.returns(done())
    scene.feed.is_open.set()
    await settle()
    assert leaver.cancelled()
    assert stayer.result() == done()
    assert (len(scene.feed.polls), scene.feed.cancelled) == (1, 0)


async def test_cancelling_the_last_wait_leaves_nothing(scene: Scene) -> None:
    """Without waits there is no timer, no poll in flight and no entry."""
    watch = scene.watch()
    scene.feed.is_open.clear()
    waits = [scene.wait(watch, timeout) for timeout in (None, 30.0, 60.0)]
    await scene.clock.advance(0)
    assert scene.feed.in_flight == 1
    for wait in waits:
        wait.cancel()
    await settle()
    assert scene.feed.cancelled == 1
    assert scene.has_nothing_left()


async def test_cancelling_before_the_poll_leaves_nothing(scene: Scene) -> None:
    """A wait that is cancelled before its first poll never polls."""
    waiting = scene.wait(scene.watch(fresh=True), 30.0)
    await settle()
    assert scene.clock.timers == [1002.0]
    waiting.cancel()
    await scene.clock.advance(60)
    assert scene.feed.polls == []
    assert scene.has_nothing_left()


async def test_a_poll_that_is_cancelled_before_it_began_can_be_sent_again(scene: Scene) -> None:
    """A deadline at the very instant of a poll leaves the task free to be polled again."""
    watch = scene.watch()
    first = scene.wait(watch, 0.0)
    await scene.clock.advance(0)
    assert isinstance(first.exception(), WaitTimeout)
    assert scene.has_nothing_left()
    scene.feed.returns(done())
    second = scene.wait(watch, 30.0)
    await scene.clock.advance(0)
    assert second.result() == done()


async def test_a_wait_that_begins_while_a_poll_is_cancelled_gets_a_poll(scene: Scene) -> None:
    """A wait that begins while the poll of the last one is being cancelled gets a poll."""
    watch = scene.watch()
    scene.feed.is_open.clear()
    first = scene.wait(watch)
    await scene.clock.advance(0)
    first.cancel()
    second = scene.wait(watch)
    scene.feed.returns(done())
    scene.feed.is_open.set()
    await scene.clock.advance(0)
    assert second.result() == done()


async def test_an_answer_after_the_last_wait_is_kept(scene: Scene) -> None:
    """A waiter that is cancelled as the response comes is skipped, and the response is kept."""
    scene.feed.returns(done())
    watch = scene.watch(fresh=True)
    waits = [scene.wait(watch), scene.change(watch)]
    await settle()
    for wait in waits:
        wait.cancel()
    assert await scene.poller.refresh(watch) == done()
    await settle()
    assert all(wait.cancelled() for wait in waits)
    assert await scene.poller.settled(watch, None) == done()


async def test_short_waits_add_up(scene: Scene) -> None:
    """Waits that are each shorter than the first interval still poll when it is over."""
    watch = scene.watch(fresh=True)
    for _ in range(5):
        waiting = scene.wait(watch, 0.5)
        await scene.clock.advance(0.5)
        assert isinstance(waiting.exception(), WaitTimeout)
    assert scene.feed.instants == [2]


# Deadlines


async def test_the_deadline_is_exact_while_a_poll_hangs(scene: Scene) -> None:
    """A poll that never returns does not move the end of the wait."""
    scene.feed.is_open.clear()
    waiting = scene.wait(scene.watch(), 42.0)
    await scene.clock.advance(41.999)
    assert not waiting.done()
    await scene.clock.advance(0.001)
    assert isinstance(waiting.exception(), WaitTimeout)
    assert scene.has_nothing_left()


async def test_each_waiter_has_a_deadline_of_its_own(scene: Scene) -> None:
    """One that gives up leaves the others, with and without a deadline, waiting."""
    watch = scene.watch(fresh=True)
    short, long, endless = (scene.wait(watch, timeout) for timeout in (10.0, 20.0, None))
    await scene.clock.advance(10)
    assert (short.done(), long.done(), endless.done()) == (True, False, False)
    await scene.clock.advance(10)
    assert (long.done(), endless.done()) == (True, False)
    endless.cancel()


async def test_a_timeout_names_the_last_state_and_error(scene: Scene) -> None:
    """`WaitTimeout` has the id, the seconds, the last state and, as its cause, the last error."""
    trouble = refusal(GatewayDown)
    scene.feed.returns(record(), trouble)
    waiting = scene.wait(scene.watch(), 30.0)
    await scene.clock.advance(30)
    error = waiting.exception()
    assert isinstance(error, WaitTimeout)
    assert (error.task_id, error.timeout, error.__cause__) == ("t-1", 30.0, trouble)
    assert "30 s" in str(error)
    assert "running" in str(error)
    assert scene.recorder.all(WaitFailed) == [WaitFailed("t-1", "WaitTimeout")]


async def test_a_wait_that_is_cancelled_at_its_deadline_does_not_time_out(scene: Scene) -> None:
    """A wait that was cancelled before its deadline, and has not ended yet, reports no timeout."""
    waiting = scene.wait(scene.watch(), 10.0)
    await scene.clock.advance(0)
    waiting.cancel()
    scene.clock.instant += 10
    scene.poller._fire()
    await settle()
    assert waiting.cancelled()
    assert scene.recorder.all(WaitFailed) == []


async def test_a_task_may_be_waited_for_again_after_a_timeout(scene: Scene) -> None:
    """A timeout takes nothing from the task: the next wait gets its clip."""
    scene.feed.returns(record(), record(), done())
    watch = scene.watch(fresh=True)
    first = scene.wait(watch, 3.0)
    await scene.clock.advance(3)
    second = scene.wait(watch)
    await scene.clock.advance(30)
    assert isinstance(first.exception(), WaitTimeout)
    assert second.result() == done()


# Trouble


async def test_minutes_of_failed_polls_do_not_end_a_wait(scene: Scene) -> None:
    """Five minutes of 5xx, dropped connections and pages end in the clip."""
    texts = ("It broke.", "Nothing was charged.", "Do.", "t-1")
    trouble = [refusal(GatewayDown), NoReply(*texts), UnreadableReply(*texts)]
    scene.feed.returns(*trouble * 8, done())
    waiting = scene.wait(scene.watch(fresh=True), 1800.0)
    await scene.clock.advance(300)
    assert not waiting.done()
    await scene.clock.advance(60)
    assert waiting.result() == done()
    assert len(scene.recorder.all(events.PollFailed)) == 24


@pytest.mark.parametrize(
    "hopeless",
    [
        refusal(Unauthorized),
        refusal(OutOfCredits),
        UsageError("It is closed.", "Nothing was sent.", "Do.", field="session"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_hopeless_error_ends_every_wait_at_once(
    scene: Scene, hopeless: RunwayError
) -> None:
    """Each waiter gets an error of its own, with every field and the cause of the original."""
    hopeless.__cause__ = ValueError("the cause")
    scene.feed.returns(hopeless)
    watch = scene.watch()
    waits = [scene.wait(watch, 1800.0) for _ in range(2)]
    await scene.clock.advance(0)
    first, second = (wait.exception() for wait in waits)
    assert first is not second
    for error in (first, second):
        assert type(error) is type(hopeless)
        assert attrs.asdict(error) == attrs.asdict(hopeless)
        assert error.__cause__ is hopeless.__cause__
    # Emitted once, whatever the number of waits.
    name = type(hopeless).__name__
    assert scene.recorder.all(WaitFailed) == [WaitFailed("t-1", name)]
    assert scene.has_nothing_left()


async def test_a_key_that_was_good_is_refused_twice_before_the_wait_ends(scene: Scene) -> None:
    """One refusal may be the gateway's own trouble; a second one in a row is not."""
    refused = refusal(Unauthorized)
    scene.feed.returns(record(), refused, record(), refused, refused, done())
    waiting = scene.wait(scene.watch())
    await scene.clock.advance(60)
    assert isinstance(waiting.exception(), Unauthorized)
    assert len(scene.feed.polls) == 5


async def test_the_key_that_submitted_a_task_is_refused_twice_before_the_wait_ends(
    scene: Scene,
) -> None:
    """The gateway has accepted it with the submit, so one refusal of the first poll is trouble."""
    refused = refusal(Unauthorized)
    scene.feed.returns(refused, done(), task_id="t-1")
    scene.feed.returns(refused, refused, done("t-2"), task_id="t-2")
    once, twice = (scene.wait(scene.watch(name, fresh=True)) for name in ("t-1", "t-2"))
    await scene.clock.advance(60)
    assert once.result() == done()
    assert isinstance(twice.exception(), Unauthorized)


async def test_a_fresh_task_may_not_be_found_for_minutes(scene: Scene) -> None:
    """`task_not_exist` is tolerated for 300 s after the submit (api-facts 11, row 3)."""
    scene.feed.returns(*[refusal(NotFound)] * 20, done())
    waiting = scene.wait(scene.watch(fresh=True))
    await scene.clock.advance(285)
    assert waiting.result() == done()


async def test_a_task_that_stays_unknown_ends_its_wait(scene: Scene) -> None:
    """A task that is still not found after that time ends its wait with `NotFound`."""
    scene.feed.returns(refusal(NotFound))
    waiting = scene.wait(scene.watch(fresh=True))
    await scene.clock.advance(290)
    assert not waiting.done()
    await scene.clock.advance(25)
    assert isinstance(waiting.exception(), NotFound)
    assert scene.has_nothing_left()


async def test_a_reattached_task_has_no_grace(scene: Scene) -> None:
    """An id that the gateway does not know ends the wait at the first poll."""
    scene.feed.returns(refusal(NotFound))
    waiting = scene.wait(scene.watch())
    await scene.clock.advance(0)
    assert isinstance(waiting.exception(), NotFound)


async def test_a_redirect_ends_no_wait(scene: Scene) -> None:
    """A proxy may have sent it, and it says nothing about the task."""
    scene.feed.returns(attrs.evolve(refusal(NotFound), status=302), done())
    waiting = scene.wait(scene.watch())
    await scene.clock.advance(60)
    assert waiting.result() == done()


async def test_a_task_once_seen_is_known_to_exist(scene: Scene) -> None:
    """A 404 between two good responses, from whatever proxy, ends nothing."""
    scene.feed.returns(record(), refusal(NotFound), done())
    waiting = scene.wait(scene.watch())
    await scene.clock.advance(200)
    assert waiting.result() == done()


async def test_retry_after_moves_the_next_poll(scene: Scene) -> None:
    """With a Retry-After of 40 s, the next poll comes after exactly 40 s."""
    scene.feed.returns(refusal(RateLimited, 40.0), done())
    waiting = scene.wait(scene.watch())
    await scene.clock.advance(100)
    assert scene.feed.instants == [0, 40]
    assert scene.recorder.all(events.PollFailed) == [events.PollFailed("t-1", "RateLimited", 40.0)]
    assert waiting.done()


async def test_a_far_retry_after_does_not_keep_a_task_from_being_polled(scene: Scene) -> None:
    """With a Retry-After of a day, the next poll comes after `RetryPolicy.max_retry_after`."""
    scene.feed.returns(refusal(RateLimited, 86400.0), done())
    waiting = scene.wait(scene.watch())
    await scene.clock.advance(119)
    assert not waiting.done()
    await scene.clock.advance(2)
    assert waiting.result() == done()


async def test_a_short_retry_after_does_not_shorten_the_interval(scene: Scene) -> None:
    """With a Retry-After below the interval, the next poll comes after the interval."""
    scene.feed.returns(refusal(RateLimited, 0.1), done())
    waiting = scene.wait(scene.watch())
    await scene.clock.advance(100)
    assert scene.feed.instants == [0, 3]
    assert waiting.done()


async def test_a_refused_poll_does_not_count(scene: Scene) -> None:
    """A task whose poll was refused has no response, so it keeps its priority."""
    scene.feed.returns(refusal(RateLimited, 40.0), done())
    watch = scene.watch()
    waiting = scene.wait(watch)
    before = watch.polled_at
    await scene.clock.advance(30)
    assert (watch.polls, watch.polled_at) == (1, before)
    await scene.clock.advance(60)
    assert waiting.result() == done()
    assert watch.polled_at > before


async def test_a_failed_poll_affects_its_own_task_only(scene: Scene) -> None:
    """A hopeless error for one task leaves the wait for another one alone."""
    scene.feed.returns(refusal(Unauthorized), task_id="t-1")
    scene.feed.returns(record("t-2"), done("t-2"), task_id="t-2")
    bad, good = scene.wait(scene.watch("t-1")), scene.wait(scene.watch("t-2"))
    await scene.clock.advance(30)
    assert isinstance(bad.exception(), Unauthorized)
    assert good.result() == done("t-2")


async def test_a_defect_reaches_the_waiters(scene: Scene) -> None:
    """An exception that is not ours ends the wait at once and unchanged."""
    scene.feed.returns(ZeroDivisionError("a defect"))
    waiting = scene.wait(scene.watch(), 1800.0)
    await scene.clock.advance(0)
    assert isinstance(waiting.exception(), ZeroDivisionError)
    assert scene.has_nothing_left()


# Odd responses


@pytest.mark.parametrize("start", [0.0, 1000.0])
async def test_success_without_an_address_ends_after_its_grace(
    clock: ManualClock, start: float
) -> None:
    """It is polled for a minute more, then `ClipMissing` is raised."""
    scene = scene_on(clock)
    scene.clock.instant = start
    scene.feed.returns(record(state=TaskState.SUCCEEDED, video_url=None))
    waiting = scene.wait(scene.watch())
    await scene.clock.advance(59)
    assert not waiting.done()
    await scene.clock.advance(15)
    error = waiting.exception()
    assert isinstance(error, ClipMissing)
    assert error.task_id == "t-1"
    assert scene.has_nothing_left()


async def test_an_address_that_comes_late_is_a_success(scene: Scene) -> None:
    """Within its grace the address may still appear."""
    bare = record(state=TaskState.SUCCEEDED, video_url=None)
    scene.feed.returns(bare, bare, bare, done())
    waiting = scene.wait(scene.watch())
    await scene.clock.advance(30)
    assert waiting.result() == done()


async def test_the_grace_restarts_with_a_new_success(scene: Scene) -> None:
    """A success that is taken back, and comes again, has its whole minute again."""
    bare = record(state=TaskState.SUCCEEDED, video_url=None)
    scene.feed.returns(bare, *[record()] * 6, bare, bare, done())
    waiting = scene.wait(scene.watch())
    await scene.clock.advance(150)
    assert waiting.result() == done()


async def test_an_unknown_status_is_reported_once(scene: Scene) -> None:
    """It does not end the wait, and causes one event."""
    odd = record(state=TaskState.UNKNOWN, word="moonwalking")
    scene.feed.returns(odd, odd, odd, done())
    waiting = scene.wait(scene.watch())
    await scene.clock.advance(30)
    reported = scene.recorder.all(events.UnknownWordSeen)
    assert reported == [events.UnknownWordSeen("t-1", "moonwalking")]
    assert waiting.done()


async def test_an_unknown_status_that_stays_the_same_with_a_reason_is_a_failure(
    scene: Scene,
) -> None:
    """An unknown status with the same reason for 75 s ends the wait as failed, and stays so."""
    odd = record(state=TaskState.UNKNOWN, word="moonwalking", message="not allowed")
    scene.feed.returns(odd)
    watch = scene.watch()
    waiting = scene.wait(watch)
    await scene.clock.advance(70)
    assert not waiting.done()
    await scene.clock.advance(20)
    assert waiting.result() == attrs.evolve(odd, state=TaskState.FAILED)
    await scene.poller.refresh(watch)
    assert watch.record == waiting.result()


async def test_many_polls_within_a_moment_make_no_failure(scene: Scene) -> None:
    """An app that refreshes a task again and again does not end it: it may be under review."""
    odd = record(state=TaskState.UNKNOWN, word="reviewing", message="A person reviews it")
    scene.feed.returns(*[odd] * 21, done())
    watch = scene.watch()
    waiting = scene.wait(watch)
    for _ in range(20):
        await scene.poller.refresh(watch)
    assert watch.record == odd
    await scene.clock.advance(60)
    assert waiting.result() == done()


async def test_an_unknown_status_that_changes_is_no_failure(scene: Scene) -> None:
    """A status that changes, or comes without a text that may be a reason, is waited for."""
    odd = record(state=TaskState.UNKNOWN, word="moonwalking", message="not allowed")
    news = attrs.evolve(odd, progress=0.5)
    silent = attrs.evolve(odd, message=None)
    cheerful = attrs.evolve(odd, message="Success")
    scene.feed.returns(*[odd] * 4, *[news] * 4, *[silent] * 8, *[cheerful] * 8, *[odd] * 4, done())
    waiting = scene.wait(scene.watch())
    await scene.clock.advance(600)
    assert waiting.result() == done()


async def test_an_unknown_state_without_a_status_is_reported(scene: Scene) -> None:
    """Its event has an empty word."""
    scene.feed.returns(record(state=TaskState.UNKNOWN))
    await scene.poller.refresh(scene.watch())
    assert scene.recorder.all(events.UnknownWordSeen) == [events.UnknownWordSeen("t-1", "")]


async def test_a_contradiction_is_reported_once(scene: Scene) -> None:
    """Each note of a response is one event, however often the response comes."""
    odd = record(notes=("this", "that"))
    scene.feed.returns(odd, odd, done())
    waiting = scene.wait(scene.watch())
    await scene.clock.advance(30)
    reported = [event.note for event in scene.recorder.all(events.ContradictionSeen)]
    assert reported == ["this", "that"]
    assert waiting.done()


async def test_a_listener_that_raises_changes_nothing(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The wait goes on to the clip, and the log says which event it was."""

    def burst(event: events.Event) -> None:
        raise RuntimeError("a secret of the listener")

    feed = Feed(clock)
    feed.returns(record(), done())
    limiter = limiter_of(Limits(), clock)
    poller = Poller(feed.poll, limiter, policy=STEADY, clock=clock, hooks=Hooks([burst]))
    scene = Scene(clock, feed, EventRecorder(), poller, limiter)
    waiting = scene.wait(scene.watch())
    await clock.advance(30)
    assert waiting.result() == done()
    assert "TaskPolled" in caplog.text
    assert "a secret" not in caplog.text


async def test_a_listener_is_optional(clock: ManualClock) -> None:
    """Without a listener, and with the log above DEBUG, the wait ends as it does with one."""
    scene = scene_on(clock)
    scene.poller._hooks = Hooks()
    scene.feed.returns(record(), done())
    waiting = scene.wait(scene.watch())
    await clock.advance(30)
    assert waiting.result() == done()


# Changes


async def test_a_change_wakes_waits_for_changes(scene: Scene) -> None:
    """Progress wakes them; a response that looks the same to a user does not."""
    slow, quick = record(progress=0.2), record(progress=0.4)
    scene.feed.returns(slow, attrs.evolve(slow, body=b"{}", points=1.0), quick)
    watch = scene.watch()
    assert await scene.poller.refresh(watch) == slow
    changed, ended = scene.change(watch), scene.wait(watch)
    await scene.clock.advance(0)
    assert not changed.done()
    await scene.clock.advance(10)
    assert changed.result() == quick
    assert not ended.done()
    ended.cancel()


async def test_a_change_that_was_missed_is_returned_at_once(scene: Scene) -> None:
    """A caller with an older version gets the last record without a poll."""
    watch = scene.watch()
    await scene.poller.refresh(watch)
    assert await scene.poller.changed(watch, 0, None, None) == record()
    assert len(scene.feed.polls) == 1


async def test_many_changes_share_one_deadline(scene: Scene) -> None:
    """The deadline is an instant: changes on the way do not move it."""
    scene.feed.returns(*(record(progress=step / 10) for step in range(5)))
    watch = scene.watch()
    deadline = scene.poller.deadline(12.0)

    async def follow() -> None:
        while True:
            await scene.poller.changed(watch, watch.version, 12.0, deadline)

    following = asyncio.ensure_future(follow())
    await scene.clock.advance(11.9)
    assert not following.done()
    await scene.clock.advance(0.1)
    assert isinstance(following.exception(), WaitTimeout)


async def test_refresh_raises_the_error_of_its_poll(scene: Scene) -> None:
    """A refresh is one poll and raises its error; waits go on."""
    scene.feed.returns(record(), refusal(GatewayDown), done())
    watch = scene.watch()
    waiting = scene.wait(watch)
    await scene.clock.advance(0)
    with pytest.raises(GatewayDown):
        await scene.poller.refresh(watch)
    assert not waiting.done()
    assert await scene.poller.refresh(watch) == done()
    await settle()
    assert waiting.result() == done()
    assert scene.has_nothing_left()


# Many


async def test_a_thousand_waits_have_one_timer(scene: Scene) -> None:
    """A thousand waits for as many tasks, each with a deadline, are one timer of the loop."""
    waits = [scene.wait(scene.watch(f"t-{n}", fresh=True), 60.0 + n) for n in range(1000)]
    await settle()
    assert len(scene.clock.timers) == 1
    assert repr(scene.poller) == "<Poller 1,000 tasks, next in 2.0 s>"
    for wait in waits:
        wait.cancel()
    await settle()
    assert scene.has_nothing_left()


async def test_no_more_polls_than_allowed_are_in_flight(clock: ManualClock) -> None:
    """No more polls than requests may be in flight; the others follow, the longest due first."""
    scene = scene_on(clock, limits=Limits(requests_in_flight=3))
    scene.feed.is_open.clear()
    watches = []
    for number in range(10):
        watches.append(scene.watch(f"t-{number}", fresh=True))
        await scene.clock.advance(0.1)
    waits = [scene.wait(watch) for watch in reversed(watches)]
    await scene.clock.advance(10)
    assert [name for name, _ in scene.feed.polls] == ["t-0", "t-1", "t-2"]
    assert repr(scene.poller).startswith("<Poller 10 tasks")
    assert scene.clock.timers == []
    scene.feed.is_open.set()
    await scene.clock.advance(0)
    assert [name for name, _ in scene.feed.polls] == [f"t-{number}" for number in range(10)]
    assert scene.feed.peak == 3
    for wait in waits:
        wait.cancel()


async def test_jitter_spreads_the_polls(clock: ManualClock) -> None:
    """A hundred tasks submitted at once are polled within ten percent of the interval."""
    scene = scene_on(clock, PollPolicy(jitter=0.1), rng=random.Random(1))
    watches = [scene.watch(f"t-{number}", fresh=True) for number in range(100)]
    due = {watch.due_at - 1000 for watch in watches}
    assert len(due) == 100
    assert 1.8 <= min(due) < max(due) <= 2.2


# Closing


async def test_closing_ends_every_wait(scene: Scene) -> None:
    """All of them end with `WaitAbandoned`, polls in flight are cancelled, and nothing stays."""
    scene.feed.is_open.clear()
    watches = [scene.watch(), scene.watch("t-2", fresh=True), scene.watch("t-3")]
    waits = [scene.wait(watches[0]), scene.wait(watches[1], 60.0), scene.change(watches[2])]
    await scene.clock.advance(0)
    waits[2].cancel()
    await scene.poller.aclose()
    await settle()
    errors = [wait.exception() for wait in waits[:2]]
    assert [type(error) for error in errors] == [WaitAbandoned] * 2
    assert [error.task_id for error in errors if isinstance(error, WaitAbandoned)] == ["t-1", "t-2"]
    assert waits[2].cancelled()
    assert scene.recorder.all(WaitFailed) == [
        WaitFailed(task_id, "WaitAbandoned") for task_id in ("t-1", "t-2")
    ]
    assert scene.feed.cancelled == 2
    assert scene.has_nothing_left()


async def test_closing_twice_is_fine(scene: Scene) -> None:
    """A poller with nothing to do closes, and closes again."""
    await scene.poller.aclose()
    await scene.poller.aclose()
    assert scene.has_nothing_left()


async def test_a_wait_after_the_close_ends_at_once(scene: Scene) -> None:
    """A reader that was between two changes at the close does not wait for its deadline."""
    watch = scene.watch()
    await scene.poller.refresh(watch)
    await scene.poller.aclose()
    with pytest.raises(WaitAbandoned):
        await scene.poller.changed(watch, watch.version, None, None)
    assert scene.has_nothing_left()


def test_its_repr_works_outside_its_loop() -> None:
    """Its repr raises nothing without a running loop, and so without a time."""
    loop = asyncio.new_event_loop()

    async def begin() -> tuple[Poller, Wait]:
        limiter = RateLimiter(Limits(), LoopClock(), Hooks())
        feed = Feed(ManualClock())
        poller = Poller(feed.poll, limiter, policy=STEADY, clock=LoopClock(), hooks=Hooks())
        request = ask_task("t-1", ENDPOINTS["feed"], GATEWAYS["fuhuapi"], "sk-1")
        waiting = asyncio.ensure_future(
            poller.settled(poller.watch(request, asyncio.get_running_loop().time()), None)
        )
        await asyncio.sleep(0)
        return poller, waiting

    poller, waiting = loop.run_until_complete(begin())
    assert repr(poller) == "<Poller 1 tasks>"
    waiting.cancel()
    loop.run_until_complete(asyncio.wait([waiting]))
    loop.close()


async def test_no_secret_is_shown(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """No event, no log line at DEBUG and no text of a timeout holds the address of the clip."""
    caplog.set_level(logging.DEBUG)
    marked = "https://cdn.example/marked.mp4?_jwt=marked"
    scene.feed.returns(
        record(state=TaskState.UNKNOWN, message=marked, prompt="marked", video_url=marked)
    )
    waiting = scene.wait(scene.watch(), 5.0)
    await scene.clock.advance(5)
    assert "marked" not in f"{caplog.text} {scene.recorder.events} {waiting.exception()!r}"
    assert len(caplog.records) > 1


async def test_an_end_in_the_answer_to_the_submit_is_reported(scene: Scene) -> None:
    """Such an end is reported once, without a poll; any other state is not reported."""
    watch = scene.watch()
    scene.poller.take_end(watch)
    assert scene.recorder.events == []
    watch.record = record()
    scene.poller.take_end(watch)
    assert scene.recorder.events == []
    watch.record = done()
    for _ in range(2):
        scene.poller.take_end(watch)
    assert len(scene.recorder.events) == 1
    assert scene.recorder.all(events.TaskSettled)[0].polls == 0


async def test_a_prompt_from_a_poll_is_in_no_later_error(scene: Scene) -> None:
    """A handle by its id learns the prompt from the feed, and a later refusal may quote it."""
    watch = scene.watch()
    scene.feed.returns(record(prompt="a wombat", prompt_en="the wombat"))
    await scene.poller.refresh(watch)
    assert {"a wombat", "the wombat"} <= set(watch.request.secrets)
    known = watch.request
    scene.feed.returns(record(prompt="a wombat", prompt_en="the wombat"))
    await scene.poller.refresh(watch)
    assert watch.request is known


WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="no one")


@pytest.mark.parametrize("pace", [None, 5.0])
async def test_polls_run_in_the_context_of_their_own_task(pace: float | None) -> None:
    """What a caller sets before it waits is seen by its own polls, and by those of no other."""
    seen: dict[str, set[str]] = {}
    polls: list[str] = []

    async def poll(request: Any, _sent_at: float, _known: Any) -> TaskRecord:
        seen.setdefault(request.task_id, set()).add(WHO.get())
        polls.append(request.task_id)
        return (done if polls.count(request.task_id) == 3 else record)(request.task_id)

    clock = LoopClock()
    limiter = RateLimiter(Limits(requests_per_second=pace), clock, Hooks(()))
    policy = PollPolicy(first=0.001, max_interval=0.001, learn=False)
    poller = Poller(poll, limiter, policy=policy, clock=clock, hooks=Hooks(()))

    async def caller(name: str) -> None:
        WHO.set(name)
        request = ask_task(name, ENDPOINTS["feed"], GATEWAYS["fuhuapi"], "sk-1")
        await poller.settled(poller.watch(request), None)

    await asyncio.gather(*(asyncio.create_task(caller(name)) for name in ("a", "b", "c")))
    assert seen == {"a": {"a"}, "b": {"b"}, "c": {"c"}}
    await poller.aclose()


# What is unfinished

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
