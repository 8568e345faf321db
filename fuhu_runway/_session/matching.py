"""
Decide what happened to submissions in doubt, from the gateway's list of tasks and the key's log.

A wrong "not accepted" pays twice, so what is not certain stays in doubt.

Rule 1: a task belongs to one submission. A task that one submission has, or may still get from its
own response, is not assigned to another.
Rule 2: if exactly one task fits, it is the one. Equal submissions are interchangeable: each gets
one of the tasks that fit them all, and none is guessed where others fit as well. If the gateway has
a log, it must show that the key was charged for the task. It names no task, so charges are compared
by time, and what that leaves open is a choice for a person.
Rule 3: "not accepted" needs a source that shows every known task around the submission, and it
needs time, since rows appear late: see `_absent`. A task that fits always forbids it: a row of the
log may be missing, or be written when the task ends.

Pure. Instants are Unix seconds of the gateway's clock.
"""

import enum
import math
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import TypeVar

import attrs

from .charges import Stretch
from .records import SECOND, SLACK, Fit, Listed, Nearby, Paid, Records, Sent

T = TypeVar("T")


class Reason(enum.StrEnum):
    """Why a submission stays in doubt."""

    SEVERAL = "several tasks fit; choose one"
    HIDDEN = "a task that may be it does not show its prompt yet"
    NO_PROMPT = "its prompt was not recorded, so no task can be compared"
    IN_FLIGHT = "a request in flight may get the task that fits"
    EARLY = "its task may still appear"
    NAMED = "a damaged response named a task, so it was probably accepted"
    LOG_DUE = "the log of the key, which shows what it paid for, cannot be read now"
    UNCLEAR = "a task fits, but the log of the key does not show whether the key paid for it"
    UNCHARGED = "a task fits, but the log of the key shows no charge for it"
    CHARGED = "the log of the key, or its own response, shows a charge for it"
    CUT = "the list of tasks is cut off"
    CLOCK = "the clocks of this machine and of the gateway differ too much"
    SET_BACK = "the clock of this machine was set back after it was sent"
    STRANGER = "a task that nothing accounts for may be it, with another prompt or model"
    UNRECORDED = "the journal cannot record what happened to it"
    UNPROVEN = "nothing shows that the gateway's records are complete"


class Proof(enum.StrEnum):
    """What settled a doubt; the journal keeps the value."""

    LIST = "list of tasks"
    LOG = "log of the key"


@attrs.frozen
class Verdict:
    """What happened to one submission: its task, or why it stays in doubt; else not accepted."""

    key: str
    task: Listed | None = None
    proof: Proof | None = None
    reason: Reason | None = None
    #: The tasks that fit, for a person to choose from.
    task_ids: tuple[str, ...] = ()
    #: How many charges no known task explains, and how many submissions they may belong to.
    charges: tuple[int, int] | None = None


def decide(doubts: Sequence[Sent], records: Records) -> list[Verdict]:
    """Return a verdict about each submission in doubt, in their order."""
    if records.is_clock_wrong:
        return [Verdict(one.key, reason=Reason.CLOCK) for one in doubts]
    waiting = [*doubts, *records.in_flight]
    fitting, strangers, sent = list[Listed](), list[Listed](), Nearby.of(waiting)
    for row in records.free:
        fits = any(records.fit(waiting[one], row) for one in records.may_fit(row, sent))
        (fitting if fits else strangers).append(row)
    named = {one.task_id for one in doubts}
    paid = records.paid(fitting, SECOND)
    unpaid = {task_id for task_id, is_paid in paid.items() if is_paid is Paid.NO} - named
    verdicts = _matched(doubts, [row for row in fitting if row.task_id not in unpaid], records)
    found = [
        attrs.evolve(one, task_id=task.task_id, accepted_at=task.created_at, is_evidence=False)
        for one in doubts
        if one.key in verdicts and (task := verdicts[one.key].task)
    ]
    records = attrs.evolve(records, known=[*records.known, *found])
    absent = [one for one in doubts if one.key not in verdicts]
    left = [one for one in doubts if one.key in verdicts and not verdicts[one.key].task]
    periods = records.periods(absent, left)
    models = {one.model for one in (*waiting, *records.known)} - {None}
    owned = {one.task_id for one in found}
    free = [row for row in fitting if row.task_id not in owned]
    nearby, others = Nearby.listed(free), Strangers(strangers, records)
    equals: dict[str, list[Sent]] = {}
    for one in found:
        equals.setdefault(one.fingerprint, []).append(one)
    for one in absent:
        over = _left_over(one, equals.get(one.fingerprint, ()), free, nearby, records)
        verdicts[one.key] = _absent(
            one,
            periods[one.key],
            over,
            others,
            records,
            is_unpaid=all(row.task_id in unpaid for row in over),
            is_uncharged=records.was_not_charged(one, periods[one.key], models),
        )
    return [verdicts[one.key] for one in doubts]


def _matched(
    doubts: Sequence[Sent], rows: Sequence[Listed], records: Records
) -> dict[str, Verdict]:
    """Return the verdicts about those that get a task, or may get one of several."""
    while True:
        paid = records.paid(rows, records.apart)
        unsure = {key for key, one in paid.items() if one is not Paid.YES}
        verdicts: dict[str, Verdict] = {}
        others = set[str]()
        for group, near in _groups(doubts, rows, records):
            given = _given(group, near, unsure, records)
            verdicts |= given
            chosen = {one.task.task_id for one in given.values() if one.task}
            if len(chosen) == len(group):
                others |= {row.task_id for row in near if row.task_id in unsure} - chosen
        if not others:
            return verdicts
        # Each submission has its task, so the others explain no charge.
        rows = [row for row in rows if row.task_id not in others]


def _groups(
    doubts: Sequence[Sent], rows: Sequence[Listed], records: Records
) -> Iterator[tuple[list[Sent], list[Listed]]]:
    """Yield the doubts that tasks connect, with every task that may be theirs."""
    waiting, unseen = Nearby.of(doubts), Nearby.listed(rows)
    for number, doubt in enumerate(doubts):
        if number not in waiting.left:
            continue
        waiting.remove([number])
        group, near = [doubt], list[int]()
        for one in group:  # it grows in the loop, and what is left to compare shrinks
            places = records.may_be_of(one, unseen)
            fitting = [place for place in places if records.fit(one, rows[place])]
            unseen.remove(fitting)
            for place in fitting:
                row = rows[place]
                more = [n for n in records.may_fit(row, waiting) if records.fit(doubts[n], row)]
                waiting.remove(more)
                group += (doubts[n] for n in more)
            near += fitting
        if near:
            yield group, [rows[place] for place in sorted(near)]


def _parted(things: Iterable[T], fits: Iterable[Fit]) -> tuple[list[T], list[T]]:
    """Return those that fit, and the others."""
    fitting, others = list[T](), list[T]()
    for one, fit in zip(things, fits, strict=True):
        (fitting if fit else others).append(one)
    return fitting, others


def _held(doubts: Sequence[Sent], rows: Collection[Listed], records: Records) -> Reason | None:
    """Return why none of these tasks can be given to a submission yet; None if they can."""
    if rows and not records.is_complete:
        return Reason.CUT
    if any(
        records.fit(records.in_flight[number], row)
        for row in rows
        for number in records.may_fit(row, records.flying)
    ):
        return Reason.IN_FLIGHT
    bare = [row for row in rows if not row.prompts]
    if any(
        records.fit(one, row) is Fit.MAYBE
        for one in doubts
        for row in (rows if one.prompt is None else bare)
    ):
        has_prompts = all(one.prompt is not None for one in doubts)
        return Reason.HIDDEN if has_prompts else Reason.NO_PROMPT
    if len({one.fingerprint for one in doubts}) > 1 and rows:
        return Reason.SEVERAL
    return Reason.LOG_DUE if rows and records.is_log_due else None


def _given(
    group: Sequence[Sent], rows: Sequence[Listed], unsure: AbstractSet[str], records: Records
) -> dict[str, Verdict]:
    """Return the verdicts about those of a group that get a task, or may get one of several."""
    names = [one.task_id for one in group]
    tasks = {row.task_id: row for row in rows}
    verdicts = {
        one.key: Verdict(one.key, tasks.pop(one.task_id), Proof.LIST)
        for one in group
        if one.task_id in tasks
        and names.count(one.task_id) == 1
        and records.fit(one, tasks[one.task_id])
    }
    rest = [one for one in group if one.key not in verdicts]
    reason = _held(rest, tasks.values(), records)
    given: dict[str, Verdict] = {}
    # The windows of equal requests are equally long, so the earliest one that fits is right.
    left = sorted((one for one in rest if records.reaches(one)), key=lambda one: one.sent_at)
    for row in sorted(tasks.values(), key=lambda row: row.created_at or 0.0):
        if row.task_id in unsure:
            continue
        first = next((one for one in left if records.fit(one, row)), None)
        if first is None:
            reason = reason or Reason.SEVERAL
            break
        left.remove(first)
        given[first.key] = Verdict(first.key, row, Proof.LIST)
    if reason is None:
        verdicts |= given
        rest, reason = left, Reason.UNCLEAR
    for one in rest:
        ids = tuple(
            row.task_id
            for row in tasks.values()
            if (reason is not Reason.UNCLEAR or row.task_id in unsure) and records.fit(one, row)
        )
        if ids:
            several = reason is Reason.UNCLEAR and len(ids) > 1
            said = Reason.SEVERAL if several else reason
            verdicts[one.key] = Verdict(one.key, reason=said, task_ids=ids)
    return verdicts


def _left_over(
    doubt: Sent,
    equals: Sequence[Sent],
    free: Sequence[Listed],
    nearby: Nearby,
    records: Records,
) -> list[Listed]:
    """
    Return the *free* tasks that may be those of a submission or of its equals with a task.

    Its own task may have been given to an equal submission, whose task is then left over.
    """
    if not free:
        return []
    equal, unseen = [doubt], list(equals)
    for one in equal:  # it grows in the loop, and what is left to compare shrinks
        rows = [records.rows[str(other.task_id)] for other in unseen]
        more, unseen = _parted(unseen, [records.fit(one, row) for row in rows])
        equal += more
    over = {
        place
        for one in equal
        for place in records.may_be_of(one, nearby)
        if records.fit(one, free[place])
    }
    return [free[place] for place in sorted(over)]


class Strangers:
    """The tasks that fit no submission, since their prompt or model is another one."""

    def __init__(self, rows: Sequence[Listed], records: Records) -> None:
        self._rows = rows
        self._records = records
        #: By kind: the sorted instants, with the numbers of the tasks.
        self._places: dict[frozenset[str], list[tuple[float, int]]] = {}
        for number, row in enumerate(rows):
            instant = math.inf if row.created_at is None else row.created_at
            self._places.setdefault(row.routes, []).append((instant, number))
        for places in self._places.values():
            places.sort()

    def _may_be(self, sent: Sent) -> Iterator[int]:
        """Yield the numbers of those whose kind and time allow it."""
        start, end = self._records.window(sent, SLACK + 1.0)
        for routes, places in self._places.items():
            if routes and sent.route not in routes:
                continue
            first, after = bisect_left(places, (start,)), bisect_left(places, (end,))
            timeless = bisect_left(places, (math.inf,))
            near = chain(range(first, after), range(timeless, len(places)))
            numbers = (places[place][1] for place in near)
            yield from (n for n in numbers if self._records.may_be(sent, self._rows[n]))

    def has_any(self, sent: Sent) -> bool:
        """Whether the kind and time of one allow that it is that of a submission."""
        return next(self._may_be(sent), None) is not None

    def all_of(self, sent: Sent) -> list[Listed]:
        """Return those whose kind and time allow that they are that of a submission."""
        return [self._rows[number] for number in sorted(self._may_be(sent))]


def _absent(
    doubt: Sent,
    period: Stretch,
    over: Sequence[Listed],
    strangers: Strangers,
    records: Records,
    *,
    is_unpaid: bool,
    is_uncharged: bool,
) -> Verdict:
    """
    Return the verdict about a submission that got no task, and may get none of several.

    Args:
        doubt: The submission.
        period: The charges around it.
        over: Tasks that may be its own, with no charge or an uncertain one.
        strangers: Tasks with another prompt or model: gateways shorten, translate and mask prompts
            and rename models, but not those of every task.
        records: What the gateway and the journal say.
        is_unpaid: Whether the log shows no charge for the tasks that are left over.
        is_uncharged: Whether the log shows no charge for the submission, and would show one.
    """
    is_charged = period.explains(doubt.key)
    is_read = records.reaches(doubt)
    is_unlisted = is_read and records.is_complete and records.shows_all_like(doubt)
    # The first rule that holds decides.
    rules: tuple[tuple[object, Proof | Reason], ...] = (
        (is_charged or doubt.is_charged, Reason.CHARGED),
        (doubt.task_id is not None, Reason.NAMED),
        (records.now < doubt.sent_at + records.late, Reason.EARLY),
        (records.is_log_due, Reason.LOG_DUE),
        (over and is_unpaid, Reason.UNCHARGED),
        (over, Reason.UNCLEAR),
        (is_unlisted and (is_uncharged or not strangers.has_any(doubt)), Proof.LIST),
        (is_uncharged, Proof.LOG),
        (is_unlisted, Reason.STRANGER),
        (is_read and not records.is_complete, Reason.CUT),
        (records.in_flight and period.can_be(doubt.key), Reason.IN_FLIGHT),
        (True, Reason.UNPROVEN),
    )
    said = next(said for holds, said in rules if holds)
    if isinstance(said, Proof):
        return Verdict(doubt.key, proof=said)
    rows = over if said in {Reason.UNCHARGED, Reason.UNCLEAR} else ()
    if said is Reason.STRANGER:
        rows = strangers.all_of(doubt)
    counts = None
    if is_charged:
        is_certain = period.must_be(doubt.key)
        counts = period.unexplained, period.claimants
        counts = (1, 1) if is_certain else counts
    ids = tuple(row.task_id for row in rows)
    return Verdict(doubt.key, reason=said, task_ids=ids, charges=counts)
