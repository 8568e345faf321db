"""
Learn the intervals between polls from how long tasks of the same kind took.

Rule 1: no learned interval is shorter or longer than the policy allows.
Rule 2: a task that still runs counts for as long as it has run. Otherwise the first tasks of a
batch to end, which are the quick ones, would be taken for typical.
Rule 3: observations fade, so that the intervals follow a service that becomes faster or slower.

Pure functions over ages. Arguments are seconds since the submit; internally, a unit is half of the
policy's first interval, so a policy with short intervals learns short ones.
The method is explained in docs/explanation/polling.md.
"""

import itertools
import math
import operator
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from fuhu_runway.models import Generation, PollPolicy

Kind = tuple[str, str | None, int | None]
"""The request's class, the model and the clip's seconds: the duration of a task depends on them."""

ENOUGH: Final = 20
"""Ends of a kind after which intervals are learned; if more, learning starts later."""
RENEWED_AFTER: Final = 5
"""Ends after which the intervals are computed again; if more, they are less up to date."""
REMEMBERED: Final = 70.0
"""Ends after which an observation counts for a third; if more, changes are followed more slowly."""
MAX_KINDS: Final = 32
"""Kinds that are remembered, at about 2 kB each; the one unused for longest is forgotten first."""
SEEN_PART: Final = 0.8
"""Part of the tasks that must have been seen to end; if more, learning starts later in a batch."""
MAX_RECALLED: Final = 1000
"""Durations that are read from a journal; if more, opening a client takes longer."""

MAX_LAG: Final = 3.15
"""Mean units between the end of a task and its last poll; if more, there are fewer polls."""
MAX_LAG_PART: Final = 0.01
"""The same as a part of the median duration, for long tasks; if more, there are fewer polls."""
PRIOR: Final = 1.0
"""Units of running at the average hazard that are added at each age; if more, a few tasks at one
age count less."""
SMOOTHING: Final = 4
"""Slices on each side that are averaged; if more, peaks in the durations are less sharp."""
WIDEST: Final = 30.0
"""An end seen after a longer interval, in units, and than half the age, is left out; if more, the
learned durations are less sharp."""
RECALL_BLUR: Final = 8.0
"""Units by which the ends in a journal may be late, about the interval before a last poll; if more,
the durations from a journal are less sharp."""

# Ages are cut into slices of a sixteenth each, from 2 units to 2 hours of them; the first is whole.
EDGES: Final = (0.0, *(2.0 * math.exp(n / 16) for n in range(2 + int(16 * math.log(3600)))))
WIDTHS: Final = tuple(end - start for start, end in itertools.pairwise(EDGES))


def kind_of(request: Generation | None) -> Kind | None:
    """Return the kind of task that a request makes; None if it is not known."""
    if request is None:
        return None
    model, seconds = getattr(request, "model", None), getattr(request, "seconds", None)
    return type(request).__name__, model, seconds


class Curve:
    """A sum that grows with age, at the given rates; the last rate has no end."""

    def __init__(self, rates: Sequence[float]) -> None:
        self._rates = rates
        self._sums: list[float] = [0.0, *itertools.accumulate(map(operator.mul, rates, WIDTHS))]

    def at(self, age: float) -> float:
        """Return the sum up to *age*."""
        place = min(bisect_right(EDGES, age), len(self._rates)) - 1
        return self._sums[place] + (age - EDGES[place]) * self._rates[place]

    def age_at(self, value: float) -> float:
        """Return the age at which the sum reaches *value*."""
        place = min(bisect_right(self._sums, value), len(self._rates)) - 1
        return EDGES[place] + (value - self._sums[place]) / self._rates[place]


@attrs.frozen
class Schedule:
    """The expected ends of a running task, and the polls to spend on it, by its age."""

    ends: Curve
    polls: Curve

    def gap(self, age: float) -> float:
        """Return the time from a poll at *age* to the next."""
        # One more poll is due where the curve has grown by one. So a gap that begins before the
        # time at which tasks end is shorter than the rate at its beginning asks for.
        return self.polls.age_at(self.polls.at(age) + 1) - age


@attrs.define
class History:
    """Polls of one kind of task, by age; older polls count less."""

    #: How long tasks ran in each slice, and how many ended in it.
    running: list[float] = attrs.field(factory=lambda: [0.0] * len(WIDTHS))
    ended: list[float] = attrs.field(factory=lambda: [0.0] * len(WIDTHS))
    seen: int = 0
    #: Ends since the schedule was made.
    fresh: int = 0
    schedule: Schedule | None = None

    def add(self, since: float, until: float, *, has_ended: bool) -> None:
        """Add a poll at age *until*, of a task that was last known to run at age *since*."""
        first, last = bisect_right(EDGES, since) - 1, bisect_right(EDGES, until)
        for place in range(first, min(last, len(WIDTHS))):
            part = min(until, EDGES[place + 1]) - max(since, EDGES[place])
            if has_ended:
                # It ended somewhere in between, and so ran for half of the time on average.
                self.running[place] += part / 2
                self.ended[place] += part / (until - since)
            else:
                self.running[place] += part
        if has_ended:
            self.seen += 1
            self.fresh += 1
            kept = 1 - 1 / REMEMBERED
            self.running = [kept * time for time in self.running]
            self.ended = [kept * count for count in self.ended]

    def renewed(self, shortest: float, longest: float) -> Schedule | None:
        """Return the schedule, recomputed if enough ends were seen since the last time."""
        if self.seen >= ENOUGH and self.fresh >= RENEWED_AFTER:
            self.schedule = _schedule(self.running, self.ended, shortest, longest) or self.schedule
            self.fresh = 0
        return self.schedule


class Learner:
    """The durations that one client has learned, by kind of task."""

    def __init__(self, policy: PollPolicy) -> None:
        # At the defaults of a policy, intervals go from 1 s to 20 s.
        self._longest = min(20.0, policy.max_interval * 4 / 3)
        self._unit = min(policy.first / 2, self._longest)
        self._learns = policy.learn
        self._kinds: dict[Kind, History] = {}

    def __repr__(self) -> str:
        known = ", ".join(f"{kind[0]}: {history.seen}" for kind, history in self._kinds.items())
        return f"<Learner {known or 'without observations'}>"

    def recall(self, durations: Iterable[tuple[str, str | None, int | None, float]]) -> None:
        """Add the kinds and the durations of tasks in a journal, the newest first."""
        for name, model, seconds, duration in reversed(
            list(itertools.islice(durations, MAX_RECALLED))
        ):
            kind, age = (name, model, seconds), duration / self._unit
            seen_running = max(0.0, age - RECALL_BLUR)
            self._add(kind, 0.0, seen_running, has_ended=False)
            self._add(kind, seen_running, age, has_ended=True)

    def saw(self, kind: Kind, since: float, until: float, *, has_ended: bool) -> None:
        """Add a poll at age *until*, of a task last known to run at age *since*, at least 0."""
        since, until = since / self._unit, until / self._unit
        if self._learns and since < until:
            self._add(kind, since, until, has_ended=has_ended)

    def gap(self, kind: Kind | None, age: float, stray: float) -> float | None:
        """
        Return the time from a poll at *age* to the next; None if not enough is known.

        The jitter *stray* is a part of the gap.
        """
        schedule = self._schedule(kind)
        if schedule is None:
            return None
        gap = schedule.gap(age / self._unit) * self._unit * (1 + stray)
        return min(max(gap, self._unit), self._longest)

    def chance(self, kind: Kind | None, since: float, until: float) -> float | None:
        """Return the chance that a task that ran at age *since* has ended by age *until*."""
        schedule = self._schedule(kind)
        if schedule is None:
            return None
        ends = schedule.ends
        return -math.expm1(ends.at(since / self._unit) - ends.at(until / self._unit))

    def _schedule(self, kind: Kind | None) -> Schedule | None:
        history = None if kind is None else self._kinds.get(kind)
        return None if history is None else history.renewed(1.0, self._longest / self._unit)

    def _add(self, kind: Kind, since: float, until: float, *, has_ended: bool) -> None:
        history = self._kinds.get(kind) or History()
        if until - since <= max(WIDEST, until / 2) or not has_ended:
            history.add(since, until, has_ended=has_ended)
        if has_ended or kind not in self._kinds:
            self._kinds.pop(kind, None)
            self._kinds[kind] = (
                history  # the dict is in order of use: this kind is now the last to be forgotten
            )
            if len(self._kinds) > MAX_KINDS:
                del self._kinds[next(iter(self._kinds))]


def _schedule(
    running: Sequence[float], ended: Sequence[float], shortest: float, longest: float
) -> Schedule | None:
    """Return the schedule for these observations; None if too few tasks were seen to end."""
    seen = sum(
        count / time * width
        for count, time, width in zip(ended, running, WIDTHS, strict=True)
        if count
    )
    if seen <= -math.log(1 - SEEN_PART):
        return None
    average = sum(ended) / sum(running)
    hazard = [
        (count + PRIOR * average) / (time + PRIOR)
        for count, time in zip(_smooth(ended), _smooth(running), strict=True)
    ]
    ends = Curve(hazard)
    roots = [math.sqrt(rate) for rate in hazard]
    # With as many polls in a unit as the root of the hazard, one poll costs as much as half a unit
    # of delay saves. More are spent where the mean delay would be over the limit.
    left = [math.exp(-ends.at(age)) for age in EDGES]
    shares = [before - after for before, after in itertools.pairwise(left)]
    delay = sum(share / root for share, root in zip(shares, roots, strict=True)) / 2
    max_lag = max(MAX_LAG, MAX_LAG_PART * ends.age_at(math.log(2)))
    factor = max(1.0, delay / max_lag)
    polls = [min(max(factor * root, 1 / longest), 1 / shortest) for root in roots]
    return Schedule(ends, Curve(polls))


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the sums of each value and its neighbours, the nearer ones counting more."""
    weights = [1 - abs(step) / (1 + SMOOTHING) for step in range(-SMOOTHING, SMOOTHING + 1)]
    padded = [*[0.0] * SMOOTHING, *values, *[0.0] * SMOOTHING]
    return [sum(map(operator.mul, weights, padded[place:])) for place in range(len(values))]
