"""Looks that follow webhooks: at once, once, within limits, and with a net below them."""

import asyncio
import gc

import pytest
from support.clock import ManualClock, settle
from support.feed import STEADY, Scene, done, no, record, scene_on

from fuhu_runway._waiting.poller import WEBHOOK_EVERY, Watch
from fuhu_runway._wire.encode import ask_task
from fuhu_runway._wire.tables import ENDPOINTS, GATEWAYS
from fuhu_runway.errors import GatewayDown
from fuhu_runway.hooks import CallbacksMissing, TaskSettled
from fuhu_runway.models import Limits, TaskState

NET = 60.0


@pytest.fixture
def scene(clock: ManualClock) -> Scene:
    """Return a scheduler without jitter, whose net is a minute wide."""
    return scene_on(clock, safety_net=NET)


def addressed(scene: Scene, task_id: str = "t-1") -> Watch:
    """Return the watch over a task that was submitted just now, with an address."""
    request = ask_task(task_id, ENDPOINTS["feed"], GATEWAYS["fuhuapi"], "sk-1")
    return scene.poller.watch(request, scene.clock.now(), is_addressed=True)


async def prove(scene: Scene, task_id: str = "proof") -> None:
    """Announce one end by a webhook before a poll finds it."""
    scene.feed.says(done(task_id), task_id=task_id)
    watch = addressed(scene, task_id)
    waiting = scene.wait(watch)
    scene.poller.webhook_came(watch, is_end=True)
    await scene.clock.advance(0)
    assert waiting.done()
    scene.feed.looks.clear()


# A hint


async def test_an_end_from_a_webhook_is_polled_at_once(scene: Scene) -> None:
    """The wait ends at the instant of the webhook, with one poll."""
    watch = addressed(scene)
    waiting = scene.wait(watch)
    await scene.clock.advance(1)
    scene.feed.says(done())
    scene.poller.webhook_came(watch, is_end=True)
    await scene.clock.advance(0)
    assert waiting.result() == done()
    assert scene.feed.instants == [1]
    assert scene.has_nothing_left()


async def test_a_watch_is_found_as_long_as_it_is_held(scene: Scene) -> None:
    """A task without a handle has no watch that a webhook could reach."""
    watch = addressed(scene)
    assert scene.poller.find("feed", "t-1") is watch
    assert scene.poller.find("official_task", "t-1") is None
    del watch
    gc.collect()
    assert scene.poller.find("feed", "t-1") is None


async def test_a_webhook_is_not_believed(scene: Scene) -> None:
    """A webhook that reports the end of a running task costs one poll and ends no wait."""
    watch = addressed(scene)
    waiting = scene.wait(watch)
    scene.poller.webhook_came(watch, is_end=True)
    await scene.clock.advance(1)
    assert not waiting.done()
    assert scene.feed.instants == [0]
    waiting.cancel()


async def test_a_feed_that_lags_is_polled_like_a_new_task(scene: Scene) -> None:
    """After an end that the feed does not show yet, the intervals begin again with the first."""
    await prove(scene)
    watch = addressed(scene)
    waiting = scene.wait(watch)
    await scene.clock.advance(30)
    scene.poller.webhook_came(watch, is_end=True)
    await scene.clock.advance(10)
    assert scene.feed.instants == [30, 32, 35, 39.5]
    waiting.cancel()


async def test_progress_wakes_no_wait_for_the_end(scene: Scene) -> None:
    """It saves the polls that would find no end."""
    watch = addressed(scene)
    waiting = scene.wait(watch)
    await settle()
    for _ in range(50):
        scene.poller.webhook_came(watch, is_end=False)
        await scene.clock.advance(0.01)
    assert scene.feed.looks == []
    waiting.cancel()


async def test_progress_wakes_readers_of_updates(scene: Scene) -> None:
    """A reader of updates gets a change at the instant of its webhook."""
    watch = addressed(scene)
    waiting = scene.change(watch)
    await scene.clock.advance(1)
    scene.poller.webhook_came(watch, is_end=False)
    await scene.clock.advance(0)
    assert waiting.result() == record()
    assert scene.feed.instants == [1]


async def test_after_a_webhook_the_next_wait_polls_at_once(scene: Scene) -> None:
    """A webhook between two waits is not lost, and sends no poll by itself."""
    watch = addressed(scene)
    scene.poller.webhook_came(watch, is_end=False)
    await scene.clock.advance(1)
    assert scene.feed.looks == []
    scene.feed.says(done())
    waiting = scene.wait(watch)
    await scene.clock.advance(0)
    assert waiting.result() == done()
    assert scene.feed.instants == [1]


async def test_a_webhook_during_a_poll_causes_one_more(scene: Scene) -> None:
    """However many come meanwhile: one poll at a time, and one after it."""
    scene.feed.is_open.clear()
    watch = addressed(scene)
    waiting = scene.wait(watch)
    scene.poller.webhook_came(watch, is_end=True)
    await scene.clock.advance(0)
    for _ in range(5):
        scene.poller.webhook_came(watch, is_end=True)
    scene.feed.says(record(), done())
    scene.feed.is_open.set()
    await scene.clock.advance(WEBHOOK_EVERY)
    assert waiting.result() == done()
    assert (len(scene.feed.looks), scene.feed.peak) == (2, 1)


async def test_webhooks_after_the_end_cost_nothing(scene: Scene) -> None:
    """Repeated and late webhooks about a task whose end is known cost nothing."""
    scene.feed.says(done())
    watch = addressed(scene)
    waiting = scene.wait(watch)
    for _ in range(5):
        scene.poller.webhook_came(watch, is_end=True)
        await scene.clock.advance(10)
    assert waiting.result() == done()
    assert len(scene.feed.looks) == 1
    assert len(scene.ear.all(TaskSettled)) == 1


async def test_a_storm_of_webhooks_keeps_to_the_limits(scene: Scene) -> None:
    """A thousand webhooks in ten seconds cause a handful of polls, within the limits."""
    watch = addressed(scene)
    waiting = scene.wait(watch)
    for _ in range(1000):
        scene.poller.webhook_came(watch, is_end=True)
        await scene.clock.advance(0.01)
    assert len(scene.feed.looks) <= 10 / WEBHOOK_EVERY + 4  # and those of the usual intervals
    waiting.cancel()


async def test_a_failed_poll_after_a_webhook_is_retried(scene: Scene) -> None:
    """It is retried at the intervals of a new task."""
    scene.feed.says(no(GatewayDown), done())
    watch = addressed(scene)
    waiting = scene.wait(watch)
    scene.poller.webhook_came(watch, is_end=True)
    await scene.clock.advance(2)
    assert waiting.result() == done()
    assert scene.feed.instants == [0, 2]


async def test_a_closed_poller_ignores_webhooks(scene: Scene) -> None:
    """A webhook after the close changes nothing."""
    watch = addressed(scene)
    due_at = watch.due_at
    await scene.poller.aclose()
    scene.poller.webhook_came(watch, is_end=True)
    assert watch.due_at == due_at
    assert scene.clock.timers == []


async def test_an_end_that_was_found_elsewhere_is_proof(scene: Scene) -> None:
    """An end that a webhook led to counts as proof, whichever wait polled."""
    running = addressed(scene, "t-2")
    scene.poller.take_found(running, record("t-2"))
    assert addressed(scene, "t-3").due_at == scene.clock.now() + 2.0
    ended = addressed(scene, "t-4")
    scene.poller.take_found(ended, done("t-4"))
    assert addressed(scene, "t-5").due_at == scene.clock.now() + NET
    assert await scene.poller.settled(ended, None) == done("t-4")
    assert scene.feed.looks == []


# The net


async def test_without_proof_polls_go_on(scene: Scene) -> None:
    """An address alone changes no poll: a wrong one would delay every clip."""
    waiting = scene.wait(addressed(scene))
    await scene.clock.advance(42)
    assert scene.feed.instants == [2, 5, 9.5, 16.25, 26.375, 41.375]
    waiting.cancel()


async def test_with_proof_tasks_are_polled_once_a_minute(scene: Scene) -> None:
    """Once a webhook came first, tasks with an address are left to their webhooks."""
    await prove(scene)
    waiting = scene.wait(addressed(scene))
    await scene.clock.advance(130)
    assert scene.feed.instants == [60, 120]
    waiting.cancel()


async def test_a_task_without_an_address_is_polled_as_before(scene: Scene) -> None:
    """A task that has no webhook address is not left to webhooks."""
    await prove(scene)
    waiting = scene.wait(scene.watch(fresh=True))
    await scene.clock.advance(10)
    assert scene.feed.instants == [2, 5, 9.5]
    waiting.cancel()


async def test_an_end_without_a_webhook_brings_the_polls_back(scene: Scene) -> None:
    """After a poll of the safety net finds an end, every task is polled as without webhooks."""
    await prove(scene)
    _, *others = watches = [addressed(scene, f"t-{n}") for n in range(4)]
    for watch in others:
        watch.due_at += NET / 2
    waits = [scene.wait(watch) for watch in watches]
    waits.append(scene.wait(scene.watch("no-address", fresh=True)))
    scene.feed.says(done("t-0"), task_id="t-0")
    await scene.clock.advance(NET)
    assert waits[0].done()
    addressed_looks = [look for look in scene.feed.looks if look[0] != "no-address"]
    assert addressed_looks == [("t-0", 1060.0)]
    await scene.clock.advance(10)
    assert [at for task_id, at in scene.feed.looks if task_id == "t-1"] == [1062, 1065, 1069.5]
    for wait in waits[1:]:
        wait.cancel()


async def test_a_late_webhook_is_no_proof(scene: Scene) -> None:
    """A webhook for a task whose end a poll has found already changes no interval."""
    scene.feed.says(done("late"), task_id="late")
    watch = addressed(scene, "late")
    waiting = scene.wait(watch)
    await scene.clock.advance(2)
    assert waiting.done()
    scene.poller.webhook_came(watch, is_end=True)
    assert addressed(scene).due_at == scene.clock.now() + 2.0


async def settle_untold(scene: Scene, count: int) -> None:
    """End this many tasks without a webhook."""
    for number in range(count):
        scene.feed.says(done(f"u-{number}"), task_id=f"u-{number}")
        waiting = scene.wait(addressed(scene, f"u-{number}"))
        await scene.clock.advance(2)
        assert waiting.done()


async def test_missing_webhooks_are_reported_once(scene: Scene) -> None:
    """Five ends without any webhook cause one warning, and fifty no second one."""
    await settle_untold(scene, 4)
    assert scene.ear.all(CallbacksMissing) == []
    await settle_untold(scene, 50)
    assert scene.ear.all(CallbacksMissing) == [CallbacksMissing(5)]


async def test_one_webhook_prevents_the_warning(scene: Scene) -> None:
    """If any webhook ever came, the address is not reported as wrong."""
    scene.poller.webhook_came(addressed(scene), is_end=False)
    await settle_untold(scene, 10)
    assert scene.ear.all(CallbacksMissing) == []


async def test_without_a_receiver_webhooks_do_not_count(clock: ManualClock) -> None:
    """A client without webhooks neither relies on them nor misses them."""
    scene = scene_on(clock)
    await settle_untold(scene, 10)
    assert scene.ear.all(CallbacksMissing) == []


# In turns


def slow_scene(clock: ManualClock) -> Scene:
    """Return a scheduler whose looks go one in 2 s."""
    return scene_on(clock, STEADY, Limits(requests_per_second=0.5), safety_net=NET)


async def test_a_webhook_goes_before_all_due_tasks(clock: ManualClock) -> None:
    """If polls go one at a time, the task of the webhook is next; the pace stays the same."""
    scene = slow_scene(clock)
    watches = [addressed(scene, f"t-{n}") for n in range(20)]
    waits = [scene.wait(watch) for watch in watches]
    await clock.advance(4)
    before = len(scene.feed.looks)
    scene.feed.says(done("t-13"), task_id="t-13")
    scene.poller.webhook_came(watches[13], is_end=True)
    await clock.advance(2)
    assert [task_id for task_id, _ in scene.feed.looks[before:]] == ["t-13"]
    assert waits[13].done()
    for wait in waits:
        wait.cancel()
    await settle()
    assert scene.has_nothing_left()


async def test_a_webhook_alone_queues_like_any_poll(clock: ManualClock) -> None:
    """With nothing else due, its poll takes the next turn of the rate limiter."""
    scene = slow_scene(clock)
    watch = addressed(scene)
    watch.due_at = clock.now() + NET
    waiting = scene.wait(watch)
    await clock.advance(10)
    scene.feed.says(record(state=TaskState.FAILED))
    scene.poller.webhook_came(watch, is_end=True)
    await clock.advance(0)
    assert waiting.result().state is TaskState.FAILED
    assert scene.feed.instants == [10]
    assert asyncio.all_tasks() == {asyncio.current_task()}
