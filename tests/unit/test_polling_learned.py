"""Looks that follow what was learned, and looks that take turns on a scarce budget."""

import asyncio
import math
import random
from itertools import pairwise
from statistics import NormalDist

import attrs
import pytest
from support.clock import ManualClock, settle
from support.feed import STEADY, Scene, Wait, done, no, record, scene_on

from fuhu_runway._http.limiter import RateLimiter
from fuhu_runway._waiting.intervals import Kind, Learner
from fuhu_runway._waiting.poll_queue import PollQueue
from fuhu_runway._waiting.poller import Watch
from fuhu_runway._wire.encode import Request, ask_task
from fuhu_runway._wire.tables import ENDPOINTS, GATEWAYS
from fuhu_runway.errors import GatewayDown, WaitAbandoned
from fuhu_runway.models import Limits, PollPolicy, TaskRecord, TaskState

KIND: Kind = ("TextToVideo", "gen4", 10)
SLOW: Kind = ("ActOne", None, None)
START = 1_000.0
"""What the manual clock begins with."""


def durations(count: int, median: float) -> list[float]:
    """Return lognormal durations, as exactly as *number* of them can be."""
    normal = NormalDist(math.log(median), 0.35)
    return [math.exp(normal.inv_cdf((place + 0.5) / count)) for place in range(count)]


def taught(**medians: float) -> Learner:
    """Return a learner that knows two kinds of tasks; by default of about 100 s and 600 s."""
    learner = Learner(STEADY)
    for kind, median in ((KIND, medians.get("kind", 100.0)), (SLOW, medians.get("slow", 600.0))):
        learner.recall([(*kind, duration) for duration in durations(100, median)])
    return learner


def asking(task_id: str) -> Request:
    """Return the request that asks about a task."""
    return ask_task(task_id, ENDPOINTS["feed"], GATEWAYS["fuhuapi"], "sk-1")


def watch_on(
    scene: Scene, task_id: str = "t-1", kind: Kind | None = KIND, *, age: float | None = 0.0
) -> Watch:
    """Return the watch over a task that was accepted *age* seconds ago."""
    submitted_at = None if age is None else scene.clock.now() - age
    return scene.poller.watch(asking(task_id), submitted_at, None, kind)


async def leave(*waits: Wait) -> None:
    """End waits as their callers would."""
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    await settle()


# Looks that follow what was learned


async def test_a_learned_schedule_replaces_the_exponential_one(clock: ManualClock) -> None:
    """A task of a known kind is polled first after 20 s, not after 2 s, and often at 100 s."""
    scene = scene_on(clock, learner=taught())
    wait = scene.wait(watch_on(scene))
    await clock.advance(130.0)
    gaps = [b - a for a, b in pairwise([0.0, *scene.feed.instants])]
    assert gaps[0] == pytest.approx(20.0)
    assert max(gaps) <= 20.0
    assert 1.0 <= min(gaps) < 7.0
    await leave(wait)
    assert scene.has_nothing_left()


@pytest.mark.parametrize("kind", [None, ("VideoToVideo", "gen4", 5)])
async def test_an_unknown_kind_is_polled_exponentially(
    clock: ManualClock, kind: Kind | None
) -> None:
    """Without a kind, or with one without observations, polls come after 2, 3 and 4.5 s."""
    scene = scene_on(clock, learner=taught())
    wait = scene.wait(watch_on(scene, kind=kind))
    await clock.advance(10.0)
    assert scene.feed.instants == pytest.approx([2.0, 5.0, 9.5])
    await leave(wait)


async def test_a_task_of_unknown_age_is_polled_exponentially(clock: ManualClock) -> None:
    """A kind is of no use without the instant of the submit: the first poll comes at once."""
    scene = scene_on(clock, learner=taught())
    wait = scene.wait(watch_on(scene, age=None))
    await clock.advance(3.5)
    assert scene.feed.instants == pytest.approx([0.0, 3.0])
    await leave(wait)


async def test_polls_follow_the_age_of_a_task(clock: ManualClock) -> None:
    """A task re-attached 95 s after its submit is polled now, then as often as at that age."""
    learner = taught()
    scene = scene_on(clock, learner=learner)
    wait = scene.wait(watch_on(scene, age=95.0))
    await clock.advance(10.0)
    assert scene.feed.instants[:2] == pytest.approx([0.0, learner.gap(KIND, 95.0, 0.0)])
    await leave(wait)


async def test_a_failed_poll_is_retried_at_the_learned_interval(clock: ManualClock) -> None:
    """Errors of the gateway leave the learned intervals as they are."""
    learner = taught()
    scene = scene_on(clock, learner=learner)
    scene.feed.says(no(GatewayDown), done())
    wait = scene.wait(watch_on(scene, age=95.0))
    await clock.advance(10.0)
    assert (await wait).has_clip
    assert scene.feed.instants == pytest.approx([0.0, learner.gap(KIND, 95.0, 0.0)])


async def test_jitter_never_leaves_the_bounds(clock: ManualClock) -> None:
    """With the widest jitter there are still 1 to 20 s between two polls."""
    policy = PollPolicy(jitter=0.9)
    scene = scene_on(clock, policy, learner=taught(), rng=random.Random(1))
    wait = scene.wait(watch_on(scene))
    await clock.advance(600.0)
    gaps = [b - a for a, b in pairwise(scene.feed.instants)]
    assert min(gaps) >= 1.0 - 1e-9
    assert max(gaps) <= 20.0 + 1e-9
    await leave(wait)


async def ended(scene: Scene, task_id: str, duration: float, last: TaskRecord) -> None:
    """Follow a task that ends after *duration* seconds with the record *last*."""
    wait = scene.wait(watch_on(scene, task_id))
    while not wait.done():
        age = scene.poller.watch(asking(task_id)).age(scene.clock.now())
        scene.feed.says(last if age + 1 > duration else record(task_id), task_id=task_id)
        await scene.clock.advance(1.0)


async def test_the_poller_learns_from_its_own_polls(clock: ManualClock) -> None:
    """After 25 tasks of about 60 s, no poll comes in the first 15 s of the next."""
    scene = scene_on(clock)
    for number, duration in enumerate(durations(25, 60.0)):
        await ended(scene, f"t-{number}", duration, done(f"t-{number}"))
    before = len(scene.feed.looks)
    wait = scene.wait(watch_on(scene, "next"))
    await clock.advance(15.0)
    assert len(scene.feed.looks) == before
    await leave(wait)


async def test_failures_teach_no_duration(clock: ManualClock) -> None:
    """However many tasks fail after a minute, clips are not expected then."""
    scene = scene_on(clock)
    for number, duration in enumerate(durations(25, 60.0)):
        last = record(f"t-{number}", TaskState.FAILED)
        await ended(scene, f"t-{number}", duration, last)
    wait = scene.wait(watch_on(scene, "next"))
    before = len(scene.feed.looks)
    await clock.advance(6.0)
    assert len(scene.feed.looks) == before + 2
    await leave(wait)


async def test_an_end_is_learned_once(clock: ManualClock) -> None:
    """Polling a task again that has ended adds no observation."""
    learner = Learner(STEADY)
    scene = scene_on(clock, learner=learner)
    scene.feed.says(done())
    watch = watch_on(scene)
    await clock.advance(50.0)
    for _ in range(5):
        await scene.poller.refresh(watch)
        await clock.advance(1.0)
    assert repr(learner) == "<Learner TextToVideo: 0>"  # 50 s without a look are too many
    other = watch_on(scene, "t-2")
    scene.feed.says(done("t-2"), task_id="t-2")
    await clock.advance(10.0)
    for _ in range(5):
        await scene.poller.refresh(other)
        await clock.advance(1.0)
    assert repr(learner) == "<Learner TextToVideo: 1>"


# Looks that take turns


@attrs.define(eq=False)
class Scarcity:
    """A poller that may send only some requests each second."""

    scene: Scene

    @property
    def asked(self) -> list[str]:
        """Which task was asked about, look after look."""
        return [task_id for task_id, _ in self.scene.feed.looks]

    @property
    def limiter(self) -> RateLimiter:
        return self.scene.limiter

    @property
    def queue(self) -> int:
        """How many requests wait at the rate limiter."""
        return int(repr(self.limiter).partition(" in flight, ")[2].partition(" waiting")[0])


def scarce(
    clock: ManualClock,
    rate: float = 1.0,
    policy: PollPolicy = STEADY,
    learner: Learner | None = None,
    at_once: int = 100,
) -> Scarcity:
    """Return a poller that may poll *rate* times a second."""
    limits = Limits(requests_per_second=rate, requests_in_flight=at_once)
    return Scarcity(scene_on(clock, policy, limits, learner=learner))


async def test_one_poll_queues_for_all_tasks(clock: ManualClock) -> None:
    """With 50 tasks due and one request a second, one poll waits at the rate limiter, not 50."""
    world = scarce(clock)
    waits = [world.scene.wait(watch_on(world.scene, f"t-{number}")) for number in range(50)]
    await clock.advance(2.5)
    assert (len(world.asked), world.queue) == (1, 1)
    await clock.advance(10.0)
    assert (len(world.asked), world.queue) == (11, 1)
    await leave(*waits)
    assert world.scene.has_nothing_left()
    assert (world.limiter.in_flight, world.queue) == (0, 0)


async def test_a_submit_waits_behind_one_poll(clock: ManualClock) -> None:
    """However many tasks are due, a submit gets the second turn: the poll before it came first."""
    world = scarce(clock)
    waits = [world.scene.wait(watch_on(world.scene, f"t-{number}")) for number in range(50)]
    await clock.advance(2.5)

    async def submit() -> float:
        async with world.limiter.slot() as sent_at:
            return sent_at

    submitting = asyncio.ensure_future(submit())
    await clock.advance(2.0)
    assert submitting.result() == pytest.approx(START + 4.0)
    await leave(*waits)


async def test_many_submits_do_not_keep_polls_waiting(clock: ManualClock) -> None:
    """With 20 submits in the queue, polls and submits take turns, the submits in their order."""
    world = scarce(clock)
    submitted: list[int] = []

    async def submit(number: int) -> None:
        async with world.limiter.slot():
            submitted.append(number)

    submits = [asyncio.ensure_future(submit(number)) for number in range(20)]
    waits = [world.scene.wait(watch_on(world.scene, f"t-{n}", age=30.0)) for n in range(20)]
    await clock.advance(10.5)
    assert submitted == [0, 1, 2, 3, 4, 5]
    assert len(world.asked) == 5
    await leave(*waits)
    await clock.advance(20.0)
    await asyncio.gather(*submits)


async def test_without_knowledge_the_longest_overdue_goes_first(clock: ManualClock) -> None:
    """Tasks of no known kind are polled in the order in which they fell due."""
    world = scarce(clock)
    waits = []
    for name in "abcd":
        waits.append(world.scene.wait(watch_on(world.scene, name)))
        await clock.advance(0.1)
    await clock.advance(5.5)
    assert world.asked[:4] == ["a", "b", "c", "d"]
    await leave(*waits)


async def test_the_likeliest_end_goes_first(clock: ManualClock) -> None:
    """Of tasks at 90 s, those that take 100 s are polled before those that take 600 s."""
    world = scarce(clock, learner=taught())
    slow = [watch_on(world.scene, f"slow-{number}", SLOW, age=90.0) for number in range(3)]
    quick = [watch_on(world.scene, f"quick-{number}", KIND, age=90.0) for number in range(3)]
    waits = [world.scene.wait(watch) for watch in (*slow, *quick)]
    await clock.advance(2.5)
    assert sorted(world.asked) == ["quick-0", "quick-1", "quick-2"]
    await leave(*waits)


async def test_the_task_is_picked_when_the_turn_comes(clock: ManualClock) -> None:
    """A task that falls due while a poll queues goes first, if its end is likelier."""
    world = scarce(clock, learner=taught())
    waits = [world.scene.wait(watch_on(world.scene, f"slow-{n}", SLOW, age=90.0)) for n in "ab"]
    await clock.advance(0.5)
    assert (len(world.asked), world.queue) == (1, 1)
    waits.append(world.scene.wait(watch_on(world.scene, "quick", KIND, age=120.0)))
    await clock.advance(0.6)
    assert world.asked[1] == "quick"
    await leave(*waits)


async def test_no_task_starves(clock: ManualClock) -> None:
    """One turn in four goes to tasks that were not polled for a minute, the longest ago first."""
    world = scarce(clock, learner=taught())
    slow = [world.scene.wait(watch_on(world.scene, f"slow-{n}", SLOW)) for n in range(8)]
    quick = [world.scene.wait(watch_on(world.scene, f"quick-{n}", KIND)) for n in range(100)]
    await clock.advance(400.0)
    turns = world.asked[150:]
    for name in ("slow-0", "slow-3", "slow-7"):
        assert name in turns
    unasked = [
        max(b - a for a, b in pairwise(at))
        for name in {*world.asked}
        if len(at := [at for task_id, at in world.scene.feed.looks if task_id == name]) > 1
    ]
    assert max(unasked) <= 4 * len([*slow, *quick])
    await leave(*slow, *quick)


async def test_a_sufficient_budget_polls_every_task_in_time(clock: ManualClock) -> None:
    """Forty tasks on one request a second are each polled within three minutes, of any kind."""
    world = scarce(clock, learner=taught(), policy=PollPolicy(jitter=0, max_starvation=60.0))
    kinds = {f"t-{n}": (SLOW if n % 4 == 0 else KIND) for n in range(40)}
    waits = [world.scene.wait(watch_on(world.scene, name, kind)) for name, kind in kinds.items()]
    await clock.advance(300.0)
    for name in kinds:
        at = [at for task_id, at in world.scene.feed.looks if task_id == name]
        assert max(b - a for a, b in pairwise([START, *at, clock.now()])) <= 180.0
    await leave(*waits)


async def test_a_ranking_serves_for_a_second_and_no_task_twice(clock: ManualClock) -> None:
    """At ten turns a second, thirty due tasks get one poll each before any gets two."""
    world = scarce(clock, rate=10.0, learner=taught())
    waits = [world.scene.wait(watch_on(world.scene, f"t-{n}", age=90.0)) for n in range(30)]
    await clock.advance(2.95)
    assert len({*world.asked}) == len(world.asked) == 30
    await leave(*waits)


async def test_a_new_ranking_is_made_when_the_old_one_is_used_up(clock: ManualClock) -> None:
    """A task that falls due just after a ranking was made is not kept waiting for a second."""
    world = scarce(clock, rate=10.0, learner=taught())
    waits = [world.scene.wait(watch_on(world.scene, "a", age=90.0))]
    await clock.advance(0.3)
    waits.append(world.scene.wait(watch_on(world.scene, "b", age=90.0)))
    await clock.advance(0.2)
    assert world.asked == ["a", "b"]
    await leave(*waits)


async def test_a_wait_that_ended_gets_no_turn(clock: ManualClock) -> None:
    """A task whose wait ended while it was in the ranking gets no turn; others keep theirs."""
    world = scarce(clock, rate=10.0)
    ages = {"a": 33.0, "b": 32.0, "c": 31.0}
    waits = [world.scene.wait(watch_on(world.scene, one, age=ages[one])) for one in ages]
    await clock.advance(0.05)
    await leave(waits[1])
    assert world.queue == 1
    await clock.advance(0.5)
    assert world.asked == ["a", "c"]
    await leave(*waits)


async def test_the_place_is_given_up_when_no_task_is_due(clock: ManualClock) -> None:
    """Without due tasks the poller leaves the limiter, and the next due time sets the timer."""
    world = scarce(clock)
    first = world.scene.wait(watch_on(world.scene, "first", age=31.0))
    due = world.scene.wait(watch_on(world.scene, "due", age=30.0))
    fresh = world.scene.wait(watch_on(world.scene, "fresh"))
    await clock.advance(0.5)
    assert world.queue == 1
    await leave(due)
    assert world.queue == 0
    await leave(first)
    await clock.advance(1.6)
    assert world.asked == ["first", "fresh"]
    await leave(fresh)
    assert world.scene.has_nothing_left()


async def test_a_turn_that_comes_too_late_is_given_back(clock: ManualClock) -> None:
    """A wait cancelled at the instant of its turn leaves the limiter free, and no poll behind."""
    world = scarce(clock)
    async with world.limiter.slot():
        pass
    wait = world.scene.wait(watch_on(world.scene, age=30.0))
    await settle()
    await clock.advance(0.5)
    assert world.queue == 1
    clock.instant += 0.5
    wait.cancel()
    world.limiter._wake()  # the turn is given, and the look has not run yet
    await leave(wait)
    assert world.asked == []
    assert world.limiter.in_flight == 0
    assert world.scene.has_nothing_left()


async def test_a_poll_in_flight_is_cancelled_with_its_last_wait(clock: ManualClock) -> None:
    """A hanging poll ends with its last wait, and its place at the rate limiter is free again."""
    world = scarce(clock)
    world.scene.feed.is_open.clear()
    wait = world.scene.wait(watch_on(world.scene, age=30.0))
    await clock.advance(0.5)
    assert world.limiter.in_flight == 1
    await leave(wait)
    assert world.scene.feed.left == 1
    assert world.limiter.in_flight == 0
    assert world.scene.has_nothing_left()


async def test_no_more_polls_than_allowed_are_in_flight(clock: ManualClock) -> None:
    """No more polls hang at a time than may be in flight; the next goes when one has returned."""
    world = scarce(clock, rate=10.0, at_once=2)
    world.scene.feed.is_open.clear()
    waits = [world.scene.wait(watch_on(world.scene, f"t-{n}", age=30.0)) for n in range(5)]
    await clock.advance(1.0)
    assert (world.scene.feed.under_way, world.queue) == (2, 1)
    world.scene.feed.is_open.set()
    await clock.advance(1.0)
    assert len({*world.asked}) == 5
    await leave(*waits)


async def test_a_deadline_passes_while_a_poll_queues(clock: ManualClock) -> None:
    """A queueing poll delays no deadline, and deadlines put no further poll into the queue."""
    world = scarce(clock, rate=0.1)
    waits = [world.scene.wait(watch_on(world.scene, f"t-{n}", age=30.0), 5.0) for n in range(3)]
    await clock.advance(1.0)
    assert world.queue == 1
    await clock.advance(4.0)
    assert all(wait.done() for wait in waits)
    await leave(*waits)
    assert world.scene.has_nothing_left()


async def test_closing_ends_the_poll_that_queues(clock: ManualClock) -> None:
    """A closed poller leaves nothing in the rate limiter, and its waits end with an error."""
    world = scarce(clock)
    waits = [world.scene.wait(watch_on(world.scene, f"t-{n}", age=30.0)) for n in range(3)]
    await clock.advance(0.5)
    assert world.queue == 1
    await world.scene.poller.aclose()
    for wait in waits:
        with pytest.raises(WaitAbandoned):
            await wait
    assert (world.limiter.in_flight, world.queue) == (0, 0)
    assert world.scene.has_nothing_left()


# The queue


def test_the_queue_returns_due_keys_and_keeps_them() -> None:
    """All due keys are returned, without dropped ones, and can still be taken."""
    rng = random.Random(1)
    queue: PollQueue[int] = PollQueue()
    dues = {key: rng.uniform(0, 100) for key in range(200)}
    for key, due_at in dues.items():
        queue.put(key, due_at)
    for key in range(0, 200, 7):
        queue.drop(key)
        del dues[key]
    expected = {key for key, due_at in dues.items() if due_at <= 40}
    assert {*queue.due(40.0)} == expected
    assert {*queue.take(40.0, 200)} == expected
    assert queue.due(40.0) == []
