"""Poll intervals, run over simulated durations: ours, runwayml's, and the optimum."""

import heapq
import itertools
import math
import random
import statistics
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import attrs

from fuhu_runway._http.retry import exponential_intervals
from fuhu_runway._waiting.intervals import Kind, Learner
from fuhu_runway.models import PollPolicy

POLICY: Final = PollPolicy()
KIND: Final[Kind] = ("TextToVideo", "gen4", 10)
LONGEST_GAP: Final = 20.0
NORMAL: Final = statistics.NormalDist()


@attrs.frozen
class Lognormal:
    """How long tasks take, in seconds."""

    median: float
    sigma: float

    @property
    def mean(self) -> float:
        return self.median * math.exp(self.sigma**2 / 2)

    def draw(self, rng: random.Random) -> float:
        return rng.lognormvariate(math.log(self.median), self.sigma)

    def spread(self, count: int, rng: random.Random) -> list[float]:
        """Return *count* durations in no order, of which each stands for as many tasks."""
        places = [NORMAL.inv_cdf((place + 0.5) / count) for place in range(count)]
        rng.shuffle(places)
        return [self.median * math.exp(self.sigma * place) for place in places]

    def ended(self, age: float) -> float:
        """Return the part that has ended by *age*."""
        if age <= 0:
            return 0.0
        return math.erfc(-math.log(age / self.median) / self.sigma / math.sqrt(2)) / 2

    def density(self, age: float) -> float:
        """Return the part that ends in a second at *age*."""
        return self.ended(age + 0.5) - self.ended(age - 0.5)


DISTRIBUTIONS: Final = (Lognormal(75, 0.45), Lognormal(100, 0.35), Lognormal(300, 0.5))


class Rhythm(Protocol):
    """Decides when to poll next, from what the polls returned."""

    def gap(self, age: float, polls: int) -> float: ...
    def saw(self, since: float, until: float, *, has_ended: bool) -> None: ...


@attrs.define
class Runwayml:
    """`runwayml/lib/polling.py`: 6 s, strayed by 1.5 s, from the submit on."""

    rng: random.Random

    def gap(self, age: float, polls: int) -> float:
        return self.rng.uniform(4.5, 7.5)

    def saw(self, since: float, until: float, *, has_ended: bool) -> None:
        """Learn nothing."""


@attrs.frozen
class AtAges:
    """Polls at ages that are known beforehand, and every 20 s after the last of them."""

    ages: Sequence[float]

    def gap(self, age: float, polls: int) -> float:
        return self.ages[polls] - age if polls < len(self.ages) else LONGEST_GAP

    def saw(self, since: float, until: float, *, has_ended: bool) -> None:
        """Learn nothing."""


@attrs.define
class Ours:
    """What the scheduler does while requests are not scarce."""

    rng: random.Random
    learner: Learner
    _intervals: Sequence[float] = exponential_intervals(
        POLICY.first, POLICY.factor, POLICY.max_interval
    )

    @classmethod
    def of(cls, rng: random.Random, *, learn: bool) -> "Ours":
        return cls(rng, Learner(PollPolicy(learn=learn)))

    def gap(self, age: float, polls: int) -> float:
        stray = self.rng.uniform(-POLICY.jitter, POLICY.jitter)
        learned = self.learner.gap(KIND, age, stray)
        if learned is not None:
            return learned
        return self._intervals[min(polls, len(self._intervals) - 1)] * (1 + stray)

    def saw(self, since: float, until: float, *, has_ended: bool) -> None:
        self.learner.saw(KIND, since, until, has_ended=has_ended)


@attrs.define
class Job:
    """One task, and the results of its polls."""

    duration: float
    started_at: float = 0.0
    seen_at: float = 0.0
    polls: int = 0
    lag: float = 0.0


def run(rhythm: Rhythm, durations: Iterable[float], in_flight: int = 20) -> list[Job]:
    """Follow a job for each of *durations*, some at a time; yield them as they end."""
    waiting = iter(durations)
    ended: list[Job] = []
    order = itertools.count()
    polls: list[tuple[float, int, Job]] = []

    def start(now: float) -> None:
        duration = next(waiting, None)
        if duration is not None:
            job = Job(duration, now, now)
            heapq.heappush(polls, (now + rhythm.gap(0.0, 0), next(order), job))

    for _ in range(in_flight):
        start(0.0)
    while polls:
        now, _, job = heapq.heappop(polls)
        age, since = now - job.started_at, job.seen_at - job.started_at
        job.polls += 1
        job.lag, job.seen_at = age - job.duration, now
        rhythm.saw(since, age, has_ended=job.lag >= 0)
        if job.lag >= 0:
            ended.append(job)
            start(now)
        else:
            heapq.heappush(polls, (now + rhythm.gap(age, job.polls), next(order), job))
    return ended


def mean(values: Iterable[float]) -> float:
    """Return the mean."""
    kept = [*values]
    return sum(kept) / len(kept)


@attrs.frozen
class Optimum:
    """The least mean lag for a known distribution, at a price for each poll."""

    polls: float
    lag: float
    #: What one poll is worth, in seconds of lag.
    price: float
    #: The ages at which to poll.
    ages: tuple[float, ...]

    def fewest_polls(self, lag: float) -> float:
        """
        Return the fewest polls with which any schedule can keep to a mean *lag*.

        None has a smaller sum of its lag and of its polls at this price, or it would be the
        optimum: so no rhythm with less lag takes fewer polls than this.
        """
        return self.polls - (lag - self.lag) / self.price


def optimum(
    tasks: Lognormal, price: float, *, longest: float = LONGEST_GAP, step: float = 0.5
) -> Optimum:
    """Return the dynamic programme's answer: no gap over *longest* seconds, none under 1 s."""
    count = int(tasks.median * math.exp(4 * tasks.sigma) / step)
    ended = [tasks.ended(place * step) for place in range(count + 1)]
    # Between two polls, tasks that have ended wait to be seen: the area under the curve.
    area = [0.0, *itertools.accumulate((a + b) / 2 * step for a, b in itertools.pairwise(ended))]
    fewest, most = round(1 / step), round(longest / step)
    cost, choice = [0.0] * (count + 1), [count] * (count + 1)
    for here in range(count - 1, -1, -1):
        cost[here], choice[here] = min(
            (
                price * (1 - ended[here])
                + area[there]
                - area[here]
                - ended[here] * (there - here) * step
                + cost[there],
                there,
            )
            for there in range(min(here + fewest, count), min(here + most, count) + 1)
        )
    polls, ages, here = 0.0, list[float](), 0
    while here < count:
        polls += 1 - ended[here]
        here = choice[here]
        ages.append(here * step)
    return Optimum(polls, cost[0] - price * polls, price, tuple(ages))


def optimum_with_lag(tasks: Lognormal, lag: float, *, longest: float = LONGEST_GAP) -> Optimum:
    """Return the fewest polls that keep to a mean *lag*."""
    low, high = 0.01, 1.0
    for _ in range(12):
        price = math.sqrt(low * high)
        found = optimum(tasks, price, longest=longest)
        low, high = (price, high) if found.lag < lag else (low, price)
    return optimum(tasks, low, longest=longest)
