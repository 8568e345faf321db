"""
When to look next, learned from how long tasks of the same kind took.

Rule 1: whatever was learned, no gap is shorter or longer than the policy allows.
Rule 2: a task that still runs counts for as long as it has run. Else the first of a batch to end,
which are the quick ones, would pass for all of it.
Rule 3: what no longer fits is forgotten, and nothing is advised until enough was seen anew.

Pure: the caller says what it saw. Durations are in seconds since the submit.
The method, and why, is in docs/explanation/polling.md.
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
"""What tells how long a task may take: the request's class, the model, the clip's seconds."""

ENOUGH: Final = 20.0
"""From so many ends on there is advice."""
REMEMBERED: Final = 200.0
"""What was seen so many ends ago weighs a third of what is seen now, and less from there on."""
MAX_KINDS: Final = 32
"""Of more kinds than this, the one that ended longest ago is forgotten."""
SEEN_PART: Final = 0.8
"""Advice needs this part of the tasks to have ended, at the pace at which they do."""

LOOK_PRICE: Final = 0.4
"""What one look may cost in lag: a look is worth it if it saves this much, in units."""
MAX_LAG: Final = 3.05
MAX_LAG_PART: Final = 0.01
"""How long a clip may lie about on average: so many units, or this part of the median duration."""

FITTED_WEIGHT: Final = 20.0
"""How many tasks the fitted curve counts for, beside those that were seen."""
NARROWEST: Final = 0.05
"""The fitted curve is at least this wide: its sigma."""

DRIFT_RATIO: Final = 3.0
"""The change that is watched for: ends come so many times as often as learned, or as rarely."""
DRIFT_PROOF: Final = 10.0
"""How much likelier that has to be, as a logarithm: one false alarm in e^10 ends, or 22,000."""
EXPECTED_AT_MOST: Final = 4.0
"""No task may prove more than this by not ending: one that hangs is no drift."""

SPREAD: Final = 2 * 0.8416
"""From a fifth to four fifths of a normal distribution, in sigmas."""
WIDEST: Final = 30.0
"""An end seen after a longer gap than this, in units, and than half the age, teaches too little."""
NEGLIGIBLE: Final = 0.001
"""A slice in which tasks ran for less than this, in units, says nothing."""
RECALL_BLUR: Final = 8.0
"""A journal's ends are up to this late, in units: about the gap before a last look."""
MAX_RECALLED: Final = 1000
"""So many of a journal's durations are taken in at the most."""

# Time is cut into slices of a sixteenth each, from 2 units to 2 hours of them; the first is whole.
_FIRST: Final = 2.0
_SLICES_PER_E: Final = 16
_SLICES: Final = 2 + int(_SLICES_PER_E * math.log(3600))
EDGES: Final = (0.0, *(_FIRST * math.exp(n / _SLICES_PER_E) for n in range(_SLICES)))
_WIDTHS: Final = tuple(end - start for start, end in itertools.pairwise(EDGES))


def kind_of(request: Generation | None) -> Kind | None:
    """Return the kind of task that a request makes; None where it is not known."""
    if request is None:
        return None
    model, seconds = getattr(request, "model", None), getattr(request, "seconds", None)
    return type(request).__name__, model, seconds


@attrs.frozen
class Aim:
    """What a schedule is to keep to, in seconds."""

    #: What seconds are counted in, so that an impatient policy gets an impatient schedule.
    unit: float
    shortest: float
    longest: float

    @classmethod
    def of(cls, policy: PollPolicy) -> "Aim":
        """Return the aim of a policy: at its defaults, units of 1 s and gaps from 1 s to 20 s."""
        longest = min(20.0, policy.max_interval * 4 / 3)
        unit = min(policy.first / 2, longest)
        return cls(unit, unit, longest)


class Schedule:
    """
    How often to look at a task of one kind, by its age, in units.

    Args:
        hazard: How many ends to expect in one unit of running, in each slice.
        density: How many looks to spend in one unit, in each slice.
    """

    def __init__(self, hazard: Sequence[float], density: Sequence[float]) -> None:
        self._news = [0.0, *itertools.accumulate(map(operator.mul, hazard, _WIDTHS))]
        self._looks = [0.0, *itertools.accumulate(map(operator.mul, density, _WIDTHS))]
        self._last_gap = 1 / density[-1]

    def gap(self, age: float) -> float:
        """Return how long to stay away after a look at this age."""
        # Looks are due wherever their density has summed up to one more: so a gap that begins
        # before the time at which tasks end is shorter than its beginning would ask for.
        due = _at(self._looks, age) + 1
        if due >= self._looks[-1]:
            return self._last_gap
        return _age_at(self._looks, due) - age

    def news(self, since: float, until: float) -> float:
        """Return how many ends to expect of a task that runs at age *since*, up to age *until*."""
        return _at(self._news, until) - _at(self._news, since)

    def news_in_reason(self, since: float, until: float) -> float:
        """Return the same, up to what one task may prove."""
        return max(0.0, min(_at(self._news, until), EXPECTED_AT_MOST) - _at(self._news, since))


class Spread:
    """What is spread evenly between two ages, in slices; adding costs the same always."""

    def __init__(self) -> None:
        # From each slice on, how much more there is in a unit of it; and what that leaves out.
        self._steps = [0.0] * len(EDGES)
        self._rests = [0.0] * len(EDGES)

    def add(self, since: float, until: float, density: float) -> None:
        """Add so much in each unit between two ages."""
        if since >= EDGES[-1]:
            return
        until = min(until, EDGES[-1])
        first, last = bisect_right(EDGES, since) - 1, bisect_right(EDGES, until) - 1
        self._steps[first] += density
        self._steps[last] -= density
        self._rests[first] -= density * (since - EDGES[first])
        self._rests[last] += density * (until - EDGES[last])

    def sums(self) -> list[float]:
        """Return how much there is in each slice."""
        whole = map(operator.mul, itertools.accumulate(self._steps), _WIDTHS)
        # What cancels out may leave a rounding error behind.
        return [max(0.0, sum_) for sum_ in map(operator.add, whole, self._rests)]

    def shrink(self, factor: float) -> None:
        """Divide everything by *factor*."""
        self._steps = [step / factor for step in self._steps]
        self._rests = [rest / factor for rest in self._rests]


@attrs.define
class History:
    """What was seen of one kind, in units; the newest counts most."""

    #: Of each age, how long tasks were seen to run there, and how many ended.
    running: Spread = attrs.field(factory=Spread)
    ended: Spread = attrs.field(factory=Spread)
    #: What is seen now weighs this much: it grows, so that what was seen need not fade each time.
    weight: float = 1.0
    #: How many ends were seen, and how many of them since the schedule was made.
    seen: int = 0
    fresh: int = 0
    schedule: Schedule | None = None
    #: How much likelier it is that tasks have become quicker, or slower, as a logarithm.
    quicker: float = 0.0
    slower: float = 0.0

    def add(self, since: float, until: float, *, has_ended: bool) -> None:
        """Take in that a task ran at age *since*, and at age *until* either still did or not."""
        # It ended somewhere in between, and so ran for half of it on average.
        self.running.add(since, until, self.weight * (0.5 if has_ended else 1.0))
        if has_ended:
            self.ended.add(since, until, self.weight / (until - since))
            self.seen += 1
            self.fresh += 1
            self.weight *= 1 + 1 / REMEMBERED

    def has_drifted(self, since: float, until: float, *, has_ended: bool) -> bool:
        """Return whether this poll completes the proof that the service has changed."""
        if self.schedule is None:
            return False
        if has_ended:
            expected = self.schedule.news(since, until)
        else:
            expected = self.schedule.news_in_reason(since, until)
        self.quicker += _evidence(DRIFT_RATIO, expected, has_ended=has_ended)
        self.slower += _evidence(1 / DRIFT_RATIO, expected, has_ended=has_ended)
        self.quicker, self.slower = max(0.0, self.quicker), max(0.0, self.slower)
        return max(self.quicker, self.slower) > DRIFT_PROOF

    def advice(self, aim: Aim) -> Schedule | None:
        """Return the schedule, made anew when a tenth of what it rests on is new."""
        if self.seen >= ENOUGH and self.fresh >= max(5, min(self.seen, REMEMBERED) / 10):
            self.fresh = 0
            self.running.shrink(self.weight)
            self.ended.shrink(self.weight)
            self.weight = 1.0
            self.schedule = plan(self.running.sums(), self.ended.sums(), aim) or self.schedule
        return self.schedule


class Learner:
    """
    What one client knows of how long each kind of task takes.

    Costs some microseconds a look, and about a millisecond when a schedule is made anew.
    """

    def __init__(self, policy: PollPolicy) -> None:
        self._aim = Aim.of(policy)
        self._learns = policy.learn
        self._kinds: dict[Kind, History] = {}

    def __repr__(self) -> str:
        known = ", ".join(f"{kind[0]}: {history.seen}" for kind, history in self._kinds.items())
        return f"<Learner {known or 'of nothing yet'}>"

    def recall(self, durations: Iterable[tuple[str, str | None, int | None, float]]) -> None:
        """Take in what a journal knows: the kind and the duration of tasks, the newest first."""
        newest: dict[Kind, list[float]] = {}
        for name, model, seconds, duration in itertools.islice(durations, MAX_RECALLED):
            newest.setdefault((name, model, seconds), []).append(duration)
        for kind, past in newest.items():
            for duration in reversed(past):
                self._recall(kind, duration / self._aim.unit)

    def saw(self, kind: Kind, since: float, until: float, *, has_ended: bool) -> None:
        """
        Take in what a look showed.

        Args:
            kind: What kind of task it is.
            since: The age at which it was last seen running; 0 if it never was.
            until: The age at which it was looked at.
            has_ended: Whether it was done by then.
        """
        since, until = since / self._aim.unit, until / self._aim.unit
        if not self._learns or until <= since:
            return
        history = self._history(kind)
        if history.has_drifted(since, until, has_ended=has_ended):
            self._kinds[kind] = History()
        elif until - since <= max(WIDEST, until / 2):
            history.add(since, until, has_ended=has_ended)
        if has_ended:
            self._kinds[kind] = self._kinds.pop(kind)  # the last to be forgotten

    def gap(self, kind: Kind | None, age: float, stray: float) -> float | None:
        """
        Return how long to stay away from a task that was looked at at this *age*.

        The gap strays from the best one by the part *stray* of it. None: not enough is known.
        """
        schedule = self._schedule(kind)
        if schedule is None:
            return None
        gap = schedule.gap(age / self._aim.unit) * self._aim.unit * (1 + stray)
        return min(max(gap, self._aim.shortest), self._aim.longest)

    def news(self, kind: Kind | None, since: float, until: float) -> float | None:
        """Return how likely it is that a task that ran at age *since* has ended by age *until*."""
        schedule = self._schedule(kind)
        if schedule is None:
            return None
        return -math.expm1(-schedule.news(since / self._aim.unit, until / self._aim.unit))

    def _schedule(self, kind: Kind | None) -> Schedule | None:
        history = None if kind is None else self._kinds.get(kind)
        return None if history is None else history.advice(self._aim)

    def _history(self, kind: Kind) -> History:
        history = self._kinds.get(kind)
        if history is None:
            if len(self._kinds) == MAX_KINDS:
                del self._kinds[next(iter(self._kinds))]
            history = self._kinds[kind] = History()
        return history

    def _recall(self, kind: Kind, duration: float) -> None:
        # What the journal calls the end is the look that showed it.
        seen_running = max(0.0, duration - RECALL_BLUR)
        history = self._history(kind)
        history.add(0.0, seen_running, has_ended=False)
        history.add(seen_running, duration, has_ended=True)


def plan(running: Sequence[float], ended: Sequence[float], aim: Aim) -> Schedule | None:
    """
    Return the schedule for what was seen, in units; None if too little of it is known.

    Args:
        running: How long tasks were seen to run, in each slice.
        ended: How many were seen to end there.
        aim: What the schedule keeps to.
    """
    rate = [
        count / time if time > NEGLIGIBLE else 0.0
        for count, time in zip(ended, running, strict=True)
    ]
    fit = _fitted([0.0, *itertools.accumulate(map(operator.mul, rate, _WIDTHS))])
    if fit is None:
        return None
    hazard = [
        (count + FITTED_WEIGHT * width * fitted) / (time + FITTED_WEIGHT * width)
        for count, time, width, fitted in zip(ended, running, _WIDTHS, fit.hazard, strict=True)
    ]
    return Schedule(hazard, _density(hazard, max(MAX_LAG, MAX_LAG_PART * fit.median), aim))


@attrs.frozen
class Fit:
    """A lognormal curve through what was seen."""

    median: float
    sigma: float

    @property
    def hazard(self) -> list[float]:
        """How many ends in a unit it expects, in each slice."""
        left = [_log_left(math.log(edge / self.median) / self.sigma) for edge in EDGES[1:]]
        steps = itertools.pairwise([0.0, *left])
        return [
            (before - after) / width for (before, after), width in zip(steps, _WIDTHS, strict=True)
        ]


def _fitted(expected: Sequence[float]) -> Fit | None:
    """Return the curve through the ages at which a fifth and four fifths of the tasks had ended."""
    if expected[-1] <= -math.log(1 - SEEN_PART):
        return None
    early = _age_at(expected, -math.log(SEEN_PART))
    late = _age_at(expected, -math.log(1 - SEEN_PART))
    return Fit(math.sqrt(early * late), max(NARROWEST, math.log(late / early) / SPREAD))


def _log_left(z: float) -> float:
    """Return the logarithm of the part of a normal distribution above *z*."""
    # Beyond 30 it is smaller than what a float can hold; nothing ever runs for that long.
    return math.log(math.erfc(min(z, 30.0) / math.sqrt(2)) / 2)


def _density(hazard: Sequence[float], max_lag: float, aim: Aim) -> list[float]:
    """Return how many looks to spend in a unit, in each slice: the root rule, within the bounds."""
    shares = _shares(hazard)
    price = LOOK_PRICE
    density: list[float] = []
    # The mean lag goes about with the root of the price, so this is there after a few steps.
    for _ in range(6):
        density = [_bounded(math.sqrt(rate / (2 * price)), aim) for rate in hazard]
        lag = sum(share / looks for share, looks in zip(shares, density, strict=True)) / 2
        price = min(LOOK_PRICE, price * (max_lag / lag) ** 2)
    return density


def _bounded(looks: float, aim: Aim) -> float:
    return min(max(looks, aim.unit / aim.longest), aim.unit / aim.shortest)


def _shares(hazard: Sequence[float]) -> list[float]:
    """Return the part of the tasks that ends in each slice."""
    left = [math.exp(-sum_) for sum_ in itertools.accumulate(map(operator.mul, hazard, _WIDTHS))]
    return [before - after for before, after in itertools.pairwise([1.0, *left])]


def _evidence(ratio: float, expected: float, *, has_ended: bool) -> float:
    """Return the log of how much likelier a finding is if ends come *ratio* times as often."""
    if not has_ended:
        return (1 - ratio) * expected
    if expected < 1e-9:
        return math.log(ratio)
    return math.log(math.expm1(-ratio * expected) / math.expm1(-expected))


def _at(sums: Sequence[float], age: float) -> float:
    """Return a sum over slices up to *age*, which may lie inside one."""
    place = bisect_right(EDGES, age) - 1
    if place >= len(_WIDTHS):
        return sums[-1]
    part = (age - EDGES[place]) / _WIDTHS[place]
    return sums[place] + part * (sums[place + 1] - sums[place])


def _age_at(sums: Sequence[float], value: float) -> float:
    """Return the age at which a sum over slices reaches *value*, which it does."""
    place = bisect_right(sums, value)
    part = (value - sums[place - 1]) / (sums[place] - sums[place - 1])
    return EDGES[place - 1] + part * _WIDTHS[place - 1]
