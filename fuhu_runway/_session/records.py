"""
What the gateway and the journal say about submissions, and what follows from comparing both.

Pure. Instants are Unix seconds of the gateway's clock.
"""

import enum
import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from itertools import accumulate
from typing import Final

import attrs

from .charges import Assignment, Span, Stretch, merged, stretches

SLACK: Final = 10.0
"""
How far instants of two sources may differ, in seconds.

Both are rounded, one is corrected, and a gateway may be several machines. If more, tasks of earlier
submissions fit; if less, our own task or its charge may be overlooked.
"""
MAX_OFFSET: Final = 900.0
"""The largest difference of the clocks that is corrected, in seconds; more is a fault."""
SECOND: Final = 2.0
"""
How far the charge of a known task may be from its own instants, in seconds; both are rounded.

If more, charges of more submissions are counted together.
"""
SETTLED: Final = 5.0
"""
How long both lists are waited for after a task was accepted, in seconds.

If it is shorter, a task of another program may be listed before ours is.
"""
MANY: Final = 20
"""
How many known tasks show how close to its row a charge is.

With fewer, the closeness of all of them may be chance.
"""
NO_PROMPT: Final = ""
"""The prompt of a request of a kind that has none."""


@attrs.frozen
class Sent:
    """A submission that was sent: in doubt, in flight, or known to be accepted."""

    key: str
    #: The route that it was sent to, such as "/pro/generate".
    route: str
    #: Equal requests have the same one.
    fingerprint: str
    sent_at: float
    model: str | None = None
    #: A hash of the prompt; None if it was not recorded.
    prompt: str | None = None
    #: Its task; if it is in doubt, the one that a damaged response named.
    task_id: str | None = None
    accepted_at: float | None = None
    #: Whether its own response named its task, so that a list that shows it proves something.
    is_evidence: bool = True
    #: Whether the gateway itself reported that it charged for it, and no task.
    is_charged: bool = False

    @property
    def answered(self) -> Span:
        """The span in which it was charged, by its own instants."""
        return self.sent_at - SECOND, (self.accepted_at or self.sent_at) + SECOND


@attrs.frozen
class Listed:
    """One row of the gateway's list of tasks; what is not known fits anything."""

    task_id: str
    created_at: float | None = None
    #: The routes that its kind may stand for; empty if the kind is not known.
    routes: frozenset[str] = frozenset()
    model: str | None = None
    #: Hashes of the prompt as the list and the feed show it; empty if neither does yet.
    prompts: frozenset[str] = frozenset()


@attrs.frozen
class Charge:
    """One row of the log of the key; what is not known fits anything."""

    charged_at: float
    model: str | None = None
    #: The routes that its kind may stand for; empty if the kind is not known.
    routes: frozenset[str] = frozenset()


class Fit(enum.IntEnum):
    """How well a task fits a submission."""

    NO = 0
    MAYBE = 1
    YES = 2


class Paid(enum.Enum):
    """Whether the key was charged for a task, as far as the log shows it."""

    NO = enum.auto()
    MAYBE = enum.auto()
    YES = enum.auto()


class Nearby:
    """Submissions or tasks by prompt and time: which of them may fit, before they are compared."""

    def __init__(self, things: Iterable[tuple[Iterable[str], float | None]]) -> None:
        #: By prompt, or "" without one, or None for all: the sorted instants, with their numbers.
        self._places: dict[str | None, list[tuple[float, int]]] = {}
        #: The numbers of those whose time is not known, in the same way.
        self._timeless: dict[str | None, list[int]] = {}
        #: The numbers of those that were not removed.
        self.left = set[int]()
        for number, (prompts, instant) in enumerate(things):
            self.left.add(number)
            for prompt in (None, *(set(prompts) or {""})):
                if instant is None:
                    self._timeless.setdefault(prompt, []).append(number)
                else:
                    self._places.setdefault(prompt, []).append((instant, number))
        for places in self._places.values():
            places.sort()

    @classmethod
    def of(cls, sent: Iterable[Sent]) -> "Nearby":
        """Return submissions, by when they were sent."""
        return cls((filter(None, [one.prompt]), one.sent_at) for one in sent)

    @classmethod
    def listed(cls, rows: Iterable[Listed]) -> "Nearby":
        """Return tasks, by when they were created."""
        return cls((row.prompts, row.created_at) for row in rows)

    def remove(self, numbers: Iterable[int]) -> None:
        """Leave these out from now on."""
        self.left.difference_update(numbers)

    def near(self, prompts: Collection[str], start: float, end: float) -> list[int]:
        """Return the numbers of those with one of *prompts*, or without any, and of this time."""
        found = set[int]()
        for prompt in {*prompts, ""} if prompts else {None}:
            places = self._places.get(prompt, [])
            # Instants are compared by differences, which may be rounded.
            first, after = bisect_left(places, (start - 1.0,)), bisect_left(places, (end + 1.0,))
            here = [place for place in places[first:after] if place[1] in self.left]
            if len(here) < after - first:
                places[first:after] = here
            found.update(number for _, number in here)
            found.update(self.left.intersection(self._timeless.get(prompt, ())))
        return sorted(found)


@attrs.define(eq=False, slots=False)
class Log:
    """What the log of the key says about the known submissions of one kind and model."""

    #: When those were sent that prove something, the earliest first.
    evidence: Sequence[float]
    #: Their spans, and the charges of that kind and model.
    assignment: Assignment

    def has_evidence(self, start: float, end: float) -> bool:
        """Whether one that proves something was sent in this time."""
        first = bisect_left(self.evidence, start)
        return first < len(self.evidence) and self.evidence[first] <= end

    @cached_property
    def _gaps(self) -> Sequence[Span]:
        """The times that hold a submission without its charge, the earliest first."""
        spans, owners = self.assignment.spans, {*self.assignment.owners}
        without = sorted(span for number, span in enumerate(spans) if number not in owners)
        gaps = []
        for start, end in merged(spans):
            first = bisect_left(without, (start, -math.inf))
            if first < len(without) and without[first][0] <= end:
                gaps.append((start, end))
        return gaps

    def is_whole(self, start: float, end: float) -> bool:
        """Whether each has its charge that is in this time, or that others connect with it."""
        later = bisect_right(self._gaps, start, key=lambda gap: gap[0])
        if later > 0 and start <= self._gaps[later - 1][1]:
            return False
        return later == len(self._gaps) or end < self._gaps[later][0]


@attrs.define(eq=False, slots=False)
class Records:
    """What the gateway and the journal say, as of one moment."""

    #: The instant at which the records were read.
    now: float
    #: How long after it was sent a request may still be accepted and listed, in seconds.
    late: float
    #: Submissions that were accepted.
    known: Sequence[Sent] = ()
    #: Further tasks that have an owner, such as those that a person adopted.
    taken: AbstractSet[str] = frozenset()
    #: Submissions without a response so far.
    in_flight: Sequence[Sent] = ()
    #: The gateway's list of tasks; None if it was not read.
    listed: Sequence[Listed] | None = None
    #: The instant from which it was read.
    since: float = 0.0
    #: Whether all of it was read.
    is_complete: bool = True
    #: What the key was charged; empty if the log was not read.
    charges: Sequence[Charge] = ()
    #: When the log begins: it says nothing about earlier charges, which may be cut off.
    charges_since: float = -math.inf
    #: Whether the gateway has a log, and did not show it now.
    is_log_due: bool = False
    #: How far the gateway's clock is ahead of this machine's, in seconds.
    offset: float = 0.0

    # The list

    @cached_property
    def rows(self) -> Mapping[str, Listed]:
        """The list by id; the pages of a list that grows meanwhile show some rows twice."""
        return {row.task_id: row for row in self.listed or ()}

    def row_of(self, known: Sent) -> Listed | None:
        """Return the row of an accepted submission's task; None if it is not listed."""
        return self.rows.get(known.task_id or "")

    @cached_property
    def free(self) -> Sequence[Listed]:
        """The listed tasks without an owner."""
        taken = self.taken | {one.task_id for one in self.known}
        return [row for row in self.rows.values() if row.task_id not in taken]

    def may_be(self, sent: Sent, row: Listed) -> bool:
        """Whether kind and time allow a task, whatever its model and its prompt seem to be."""
        is_near = row.created_at is None or (
            sent.sent_at - SLACK <= row.created_at <= sent.sent_at + self.late + SLACK
        )
        return is_near and (not row.routes or sent.route in row.routes)

    def may_fit(self, row: Listed, sent: Nearby) -> list[int]:
        """Return the numbers of the submissions that a task may fit, to compare them."""
        if row.created_at is None:
            return sent.near(row.prompts, -math.inf, math.inf)
        end = row.created_at + SLACK
        return sent.near(row.prompts, end - self.late - 2 * SLACK, end)

    def may_be_of(self, sent: Sent, rows: Nearby) -> list[int]:
        """Return the numbers of the tasks that may fit a submission, to compare them."""
        prompts = [sent.prompt] if sent.prompt else []
        return rows.near(prompts, sent.sent_at - SLACK, sent.sent_at + self.late + SLACK)

    def fit(self, sent: Sent, row: Listed) -> Fit:
        """Compare kind, model, time and prompt."""
        if sent.prompt and row.prompts and sent.prompt not in row.prompts:
            return Fit.NO  # first, since it rules out most
        is_model = None in {row.model, sent.model} or row.model == sent.model
        if not is_model or not self.may_be(sent, row):
            return Fit.NO
        if sent.prompt is None:
            return Fit.MAYBE
        if sent.prompt == NO_PROMPT:
            is_bare = Fit.YES if row.routes else Fit.MAYBE
            return Fit.NO if row.prompts else is_bare
        return Fit.YES if row.prompts else Fit.MAYBE

    def reaches(self, doubt: Sent) -> bool:
        """Whether the list was read, beginning before a submission was sent."""
        return self.listed is not None and doubt.sent_at - SLACK >= self.since

    @cached_property
    def shown(self) -> Mapping[tuple[str, Fit], tuple[Sequence[float], Sequence[float]]]:
        """
        The accepted submissions that prove something, by their kinds and how their rows fit them.

        When each was sent, the earliest first, and the earliest end of it and those after it.
        """
        sent: dict[tuple[str, Fit], list[Span]] = {}
        for one in self.known:
            if one.is_evidence:
                row = self.row_of(one)
                fit = self.fit(one, row) if row else Fit.NO
                times = one.sent_at, one.accepted_at or one.sent_at
                sent.setdefault((one.route, fit), []).append(times)
        shown = {}
        for key, spans in sent.items():
            spans.sort()
            ends = [*accumulate((end for _, end in reversed(spans)), min)][::-1]
            shown[key] = [start for start, _ in spans], ends
        return shown

    def _shows(self, doubt: Sent, fit: Fit) -> bool:
        """Whether a known task of the same kind and time fits its submission so well."""
        starts, ends = self.shown.get((doubt.route, fit), ((), ()))
        first = bisect_left(starts, doubt.sent_at - self.late)
        return first < len(ends) and ends[first] <= doubt.sent_at + self.late

    def shows_all_like(self, doubt: Sent) -> bool:
        """Whether the list shows every known task of the same kind and time, and its prompt."""
        # Prompts may be shown late, or be too many to look up: one shows that they can be compared.
        return self._shows(doubt, Fit.YES) and not self._shows(doubt, Fit.NO)

    def is_recent(self, instant: float) -> bool:
        """Whether rows of the list and of the log from then may still be missing."""
        return self.now < instant + min(SETTLED, self.late / 10)

    @cached_property
    def is_clock_wrong(self) -> bool:
        """Whether the clocks differ too much, or a known task is listed at an impossible time."""
        if abs(self.offset) > MAX_OFFSET:
            return True
        return any(
            not one.sent_at - SLACK <= row.created_at <= one.accepted_at + self.late + SLACK
            for one in self.known
            if (row := self.row_of(one))
            and one.is_evidence
            and row.created_at is not None
            and one.accepted_at is not None
        )

    @cached_property
    def flying(self) -> Nearby:
        """The submissions in flight, to find those that a task may fit."""
        return Nearby.of(self.in_flight)

    # The log of the key

    @cached_property
    def instants(self) -> Sequence[float]:
        """When the key was charged, the earliest first."""
        return sorted(charge.charged_at for charge in self.charges)

    def must_show(self, known: Sent) -> bool:
        """Whether the log, if it is complete, has the charge of an accepted submission."""
        start, _ = known.answered
        is_late = self.is_recent(known.accepted_at or known.sent_at)
        return start >= self.charges_since and not is_late

    @cached_property
    def logged(self) -> Sequence[Sent]:
        """The accepted submissions whose charges the log must show."""
        return [one for one in self.known if self.must_show(one)]

    @cached_property
    def unlogged(self) -> Sequence[Span]:
        """When the other accepted submissions were charged, which the log may show."""
        return [self.charged(one) for one in self.known if not self.must_show(one)]

    def charged(self, known: Sent) -> Span:
        """Return when an accepted submission was charged, by its own instants and by its row."""
        start, end = known.answered
        row = self.row_of(known)
        if row is None or row.created_at is None:
            return start, end
        return min(start, row.created_at - SECOND), max(end, row.created_at + SECOND)

    def window(self, sent: Sent, slack: float) -> Span:
        """Return when a submission without a response may have been charged."""
        return sent.sent_at - slack, sent.sent_at + self.late + slack

    def periods(self, absent: Iterable[Sent], left: Iterable[Sent]) -> Mapping[str, Stretch]:
        """
        Return the charges around each submission that no task fits.

        A known submission explains a charge; one that is *left* in doubt may explain one. The
        windows of absent submissions are wide and those of others narrow, so that no charge that
        may belong to an absent one is overlooked.
        """
        others = [*left, *self.in_flight]
        return stretches(
            map(self.charged, self.logged),
            {one.key: self.window(one, SLACK) for one in absent},
            self.instants,
            rivals=[*self.unlogged, *(self.window(one, SECOND) for one in others)],
            back=self.late,
        )

    def was_not_charged(
        self, doubt: Sent, period: Stretch, models: AbstractSet[str | None]
    ) -> bool:
        """
        Whether the log would show a charge for a submission, if it had been accepted, and does not.

        The log must begin before the submission was sent, show every known task of its *period*,
        and one of the same kind and model. Only tasks of that kind and model explain charges here:
        gateways log some kinds and models later than others, or not at all. A charge that names
        another of the requested *models* belongs to that model.
        """
        window = self.window(doubt, SLACK)
        log = self._log_of(doubt.route, doubt.model, models)
        is_shown = log.has_evidence(period.start, period.end)
        is_logged = window[0] >= self.charges_since and period.is_whole
        is_whole = log.is_whole(window[0] - self.late, window[1])
        return is_shown and is_logged and is_whole and not log.assignment.takes(window)

    @cached_property
    def _logs(self) -> dict[object, "Log"]:
        return {}

    def _log_of(self, route: str, model: str | None, models: AbstractSet[str | None]) -> "Log":
        """Return what the log says about one kind and model."""
        others = frozenset(models - {model})
        log = self._logs.get((route, model, others))
        if log is None:
            alike = [one for one in self.logged if (one.route, one.model) == (route, model)]
            instants = sorted(
                charge.charged_at
                for charge in self.charges
                if charge.model not in others and route in (charge.routes or {route})
            )
            evidence = sorted(one.sent_at for one in alike if one.is_evidence)
            log = Log(evidence, Assignment([*map(self.charged, alike)], instants))
            self._logs[route, model, others] = log
        return log

    def paid(self, rows: Iterable[Listed], apart: float) -> Mapping[str, Paid]:
        """
        Return whether the key was charged for each task, *apart* seconds from its row at most.

        Tasks that the log says nothing about are left out.
        """
        claims = {
            row.task_id: (row.created_at - apart, row.created_at + apart)
            for row in rows
            if row.created_at is not None and row.created_at + apart >= self.charges_since
        }
        known = self.by_row(self.logged, apart)
        near = stretches(known, claims, self.instants, rivals=self.unlogged)
        wide = stretches(known, claims, self.instants, back=self.late)
        return {
            key: paid
            for key in claims
            if self.charges and (paid := _paid(key, near[key], wide[key]))
        }

    def by_row(self, known: Iterable[Sent], apart: float) -> list[Span]:
        """Return when accepted submissions were charged, by the rows of their tasks."""
        rows = [(one, self.row_of(one)) for one in known]
        return [
            one.answered
            if row is None or row.created_at is None
            else (row.created_at - apart, row.created_at + apart)
            for one, row in rows
        ]

    @cached_property
    def apart(self) -> float:
        """How far a charge may be from the row of its task, as many known tasks show it."""
        known = [one for one in self.logged if one.task_id in self.rows]
        for apart in (0.0, SECOND / 2) if len(known) >= MANY else ():
            if Assignment(self.by_row(known, apart), self.instants).count == len(known):
                return apart
        return SECOND


def _paid(key: str, near: Stretch, wide: Stretch) -> Paid | None:
    """Return whether a claim was charged; None if the log says nothing about it."""
    if wide.is_whole and not near.can_be(key):
        return Paid.NO
    if wide.is_whole and near.must_be(key):
        return Paid.YES
    # If the log shows none of the known tasks, it is off, or of another kind.
    return Paid.MAYBE if wide.is_whole or wide.shown else None
