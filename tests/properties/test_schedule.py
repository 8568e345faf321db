import itertools
import math
import random
import statistics

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuhu_runway._waiting.intervals import EDGES, History, Kind, Learner
from fuhu_runway.models import PollPolicy

KIND: Kind = ("TextToVideo", "gen4", 10)
POLICY = PollPolicy()

ages = st.floats(0, 8000)
policies = st.builds(
    PollPolicy, first=st.floats(0.001, 60), max_interval=st.floats(0.001, 120), jitter=st.just(0.1)
)


@attrs.frozen
class Lognormal:
    median: float
    sigma: float

    def ended(self, age: float) -> float:
        """Return the fraction of tasks that have ended by *age*."""
        if age <= 0:
            return 0.0
        return math.erfc(-math.log(age / self.median) / self.sigma / math.sqrt(2)) / 2


def learned(durations: list[float], policy: PollPolicy = POLICY) -> Learner:
    """Return a learner that has seen tasks with these durations."""
    learner = Learner(policy)
    learner.recall([(*KIND, duration) for duration in durations])
    return learner


@given(
    policy=policies,
    durations=st.lists(st.floats(0.001, 5000), min_size=20, max_size=60),
    age=ages,
    stray=st.floats(-0.9, 0.9),
)
def test_no_interval_leaves_the_bounds(
    policy: PollPolicy, durations: list[float], age: float, stray: float
) -> None:
    """Each learned interval is within the bounds of the policy, and at most 20 s."""
    longest = min(20.0, 4 / 3 * policy.max_interval)
    gap = learned(durations, policy).gap(KIND, age, stray)
    assert gap is None or min(policy.first / 2, longest) <= gap * (1 + 1e-9) <= longest * (1 + 1e-8)


@given(
    durations=st.lists(st.floats(1, 5000), min_size=20, max_size=60),
    between=st.tuples(ages, ages, ages).map(sorted),
)
def test_chances_multiply(durations: list[float], between: list[float]) -> None:
    """The chance of surviving two spans is the product of the chances for each."""
    learner = learned(durations)
    start, middle, end = between
    first, second = learner.chance(KIND, start, middle), learner.chance(KIND, middle, end)
    both = learner.chance(KIND, start, end)
    if both is not None and first is not None and second is not None:
        assert 0 <= first <= both <= 1
        assert 1 - both == pytest.approx((1 - first) * (1 - second), abs=1e-9)


@given(st.lists(st.tuples(ages, ages), max_size=20))
def test_every_observed_second_is_counted(spans: list[tuple[float, float]]) -> None:
    """Each slice has the total time that tasks ran in it."""
    history = History()
    for span in spans:
        history.add(min(span), max(span), has_ended=False)
    for amount, (start, end) in zip(history.running, itertools.pairwise(EDGES), strict=True):
        expected = sum(max(0.0, min(end, max(span)) - max(start, min(span))) for span in spans)
        assert amount == pytest.approx(expected, rel=1e-6, abs=1e-6)


def best(tasks: Lognormal, price: float) -> float:
    """Return the least mean lag plus *price* per poll, by dynamic programming over seconds."""
    count = int(tasks.median * math.exp(4 * tasks.sigma))
    ended = [tasks.ended(age) for age in range(count + 1)]
    area = [0.0, *itertools.accumulate((a + b) / 2 for a, b in itertools.pairwise(ended))]
    cost = [0.0] * (count + 1)
    for here in range(count - 1, -1, -1):
        cost[here] = min(
            price * (1 - ended[here])
            + area[there]
            - area[here]
            - ended[here] * (there - here)
            + cost[there]
            for there in range(here + 1, min(here + 20, count) + 1)
        )
    return cost[0]


def ours(tasks: Lognormal, learner: Learner) -> tuple[float, float]:
    """Return polls per task and the mean lag with learned intervals."""
    age, polls, lag = 0.0, 0.0, 0.0
    while age < tasks.median * math.exp(4 * tasks.sigma):
        gap = learner.gap(KIND, age, 0.0)
        assert gap is not None
        parts = [tasks.ended(age + gap * (part + 0.5) / 20) for part in range(20)]
        polls += 1 - tasks.ended(age)
        lag += (sum(parts) / 20 - tasks.ended(age)) * gap
        age += gap
    return polls, lag


def watched(tasks: Lognormal, count: int, seed: int) -> Learner:
    """Return a learner that saw a number of tasks run, polled at its own intervals."""
    learner, rng = Learner(POLICY), random.Random(seed)
    for _ in range(count):
        duration = rng.lognormvariate(math.log(tasks.median), tasks.sigma)
        age, gap = 0.0, 0.0
        while age < duration:
            gap = learner.gap(KIND, age, 0.0) or min(15.0, 2 + age / 3)
            learner.saw(KIND, age, age + gap, has_ended=duration <= age + gap)
            age += gap
    return learner


@pytest.mark.parametrize("count", [40, 200])
@pytest.mark.parametrize(
    ("median", "sigma"),
    [(30, 0.36), (30, 0.6), (75, 0.45), (100, 0.35), (300, 0.5), (400, 0.2)],
)
def test_learned_intervals_are_nearly_optimal(median: float, sigma: float, count: int) -> None:
    """Of twenty learners, most are within 6 % of the optimum, and all within 12 %."""
    tasks = Lognormal(median, sigma)
    # The optimum for the true distribution, at some price.
    least = {price: best(tasks, price) for price in (0.05 * 1.5**step for step in range(7))}
    ratios = []
    for seed in range(20):
        polls, lag = ours(tasks, watched(tasks, count, seed))
        ratios.append(min((lag + price * polls) / cost for price, cost in least.items()))
    assert statistics.median(ratios) <= 1.06
    assert max(ratios) <= 1.12
