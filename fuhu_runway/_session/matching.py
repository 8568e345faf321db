"""
Decide what happened to submissions in doubt, from the gateway's list of tasks and the key's log.

Rule 1: a task belongs to one submission. A task that one submission has, or may still get from its
own response, is not assigned to another.
Rule 2: if exactly one task fits, it is the one. Equal submissions are interchangeable: each gets
one of the tasks that fit them all, and none is guessed where others fit as well.
Rule 3: "not accepted" needs a source that is complete for the same time and kind: one that shows
every known task, found by the same comparison. It also needs time, since rows appear late.
A task that belongs to no job forbids it, unless the log of the key shows no charge: gateways
shorten, translate and mask prompts and rename models, but not those of every task.
Rule 4: everything else stays in doubt, with a reason.

Pure. Instants are Unix seconds of the gateway's clock.
"""

import enum
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Final

import attrs

SLACK: Final = 10.0
"""How far instants of two sources may differ, in seconds: both are rounded, one is corrected."""
MAX_OFFSET: Final = 900.0
"""The largest difference of the clocks that is corrected, in seconds; more is a fault."""
SECOND: Final = 2.0
"""By how much charges may differ from the submission's own instants, in seconds; both are rounded.
If more, charges of more submissions are counted together."""
NO_PROMPT: Final = ""
"""The prompt of a request of a kind that has none."""


class Reason(enum.StrEnum):
    """Why a submission stays in doubt."""

    SEVERAL = "several tasks fit; choose one"
    HIDDEN = "a task that may be it does not show its prompt yet"
    NO_PROMPT = "its prompt was not recorded, so no task can be compared"
    IN_FLIGHT = "a request in flight may get the task that fits"
    EARLY = "its task may still appear"
    NAMED = "a damaged response named a task, so it was probably accepted"
    UNCHARGED = "a task fits, and the log of the key shows no charge for it"
    CHARGED = "the log of the key shows a charge for it"
    CUT = "the list of tasks is cut off"
    CLOCK = "the clocks of this machine and of the gateway differ too much"
    STRANGER = "a task that nothing accounts for may be it, with another prompt or model"
    UNPROVEN = "nothing shows that the gateway's records are complete"


class Proof(enum.StrEnum):
    """What settled a doubt; the journal keeps the value."""

    LIST = "list of tasks"
    LOG = "log of the key"


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


class Fit(enum.IntEnum):
    """How well a task fits a submission."""

    NO = 0
    MAYBE = 1
    YES = 2


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
    #: When the key was charged; None if the log was not read.
    charges: Sequence[float] | None = None
    #: The instant from which the log is complete: gateways truncate it.
    charges_since: float = -math.inf
    #: How far the gateway's clock is ahead of this machine's, in seconds.
    offset: float = 0.0

    @cached_property
    def rows(self) -> Mapping[str, Listed]:
        """The list by id; the pages of a list that grows meanwhile show some rows twice."""
        return {row.task_id: row for row in self.listed or ()}

    def may_be(self, sent: Sent, row: Listed) -> bool:
        """Whether kind and time allow a task, whatever its model and its prompt seem to be."""
        is_near = row.created_at is None or (
            sent.sent_at - SLACK <= row.created_at <= sent.sent_at + self.late + SLACK
        )
        return is_near and (not row.routes or sent.route in row.routes)

    def fit(self, sent: Sent, row: Listed) -> Fit:
        """Compare kind, model, time and prompt."""
        is_model = None in {row.model, sent.model} or row.model == sent.model
        if not is_model or not self.may_be(sent, row):
            return Fit.NO
        if sent.prompt is None:
            return Fit.MAYBE
        if sent.prompt == NO_PROMPT:
            is_bare = Fit.YES if row.routes else Fit.MAYBE
            return Fit.NO if row.prompts else is_bare
        if not row.prompts:
            return Fit.MAYBE
        return Fit.YES if sent.prompt in row.prompts else Fit.NO

    @cached_property
    def free(self) -> Sequence[Listed]:
        """The listed tasks without an owner."""
        taken = self.taken | {one.task_id for one in self.known}
        return [row for row in self.rows.values() if row.task_id not in taken]

    def covers(self, sent: Sent) -> bool:
        """Whether the list reaches back to the submission."""
        return sent.sent_at - SLACK >= self.since

    @cached_property
    def is_clock_wrong(self) -> bool:
        """Whether the clocks differ too much, or a known task is listed at an impossible time."""
        if abs(self.offset) > MAX_OFFSET:
            return True
        return any(
            not one.sent_at - SLACK <= row.created_at <= one.accepted_at + self.late + SLACK
            for one in self.known
            if (row := self.rows.get(one.task_id or ""))
            and one.is_evidence
            and row.created_at is not None
            and one.accepted_at is not None
        )

    def shows_all_like(self, doubt: Sent) -> bool:
        """Whether the list shows every known task of the same kind and time, and its prompt."""
        start, end = doubt.sent_at - self.late, doubt.sent_at + self.late
        alike = [
            one
            for one in self.known
            if one.is_evidence
            and one.route == doubt.route
            and start <= one.sent_at
            and (one.accepted_at or one.sent_at) <= end
        ]
        rows = [self.rows.get(one.task_id or "") for one in alike]
        fits = {
            Fit.NO if row is None else self.fit(one, row)
            for one, row in zip(alike, rows, strict=True)
        }
        # Prompts may be shown late, or be too many to look up: one shows that they can be compared.
        return Fit.YES in fits and Fit.NO not in fits


@attrs.define
class Period:
    """A period that contains each of its submissions whole, and the charges in it."""

    start: float
    end: float
    known: list[Sent] = attrs.field(factory=list)
    in_doubt: int = 0
    #: How many submissions may have been charged: in flight, or with a task that may be theirs.
    open: int = 0
    charges: int = 0
    is_logged: bool = False

    def unexplained(self, route: str) -> int | None:
        """Return how many charges no known task explains; None if the log is not complete."""
        is_shown = any(one.is_evidence and one.route == route for one in self.known)
        more = self.charges - len(self.known)
        return more if self.is_logged and is_shown and more >= 0 else None


def decide(doubts: Sequence[Sent], records: Records) -> list[Verdict]:
    """Return a verdict about each submission in doubt, in their order."""
    if records.is_clock_wrong:
        return [Verdict(one.key, reason=Reason.CLOCK) for one in doubts]
    verdicts: dict[str, Verdict] = {}
    for group, rows in _groups(doubts, records):
        verdicts |= _matched(group, rows, records)
    found = {
        one.key: (attrs.evolve(one, accepted_at=task.created_at, is_evidence=False), task.task_id)
        for one in doubts
        if one.key in verdicts and (task := verdicts[one.key].task)
    }
    # The log also shows whether the tasks that fit are of this key: others may use the account.
    before = _periods(records.known, doubts, records)
    for one, task_id in found.values():
        period = before[one.key]
        charges = period.unexplained(one.route)
        if charges is not None and charges < sum(before[key] is period for key in found):
            verdicts[one.key] = Verdict(one.key, None, None, Reason.UNCHARGED, (task_id,))
    explained = [one for one, _ in found.values() if verdicts[one.key].task]
    found_keys = {one.key for one in explained}
    rest = [one for one in doubts if one.key not in found_keys]
    periods = _periods([*records.known, *explained], rest, records)
    for one in rest:
        periods[one.key].open += one.key in verdicts
    waiting = [*doubts, *records.in_flight]
    strangers = [row for row in records.free if not any(records.fit(one, row) for one in waiting)]
    return [
        verdicts.get(one.key) or _absent(one, periods[one.key], records, strangers)
        for one in doubts
    ]


def _groups(doubts: Sequence[Sent], records: Records) -> Iterator[tuple[list[Sent], list[Listed]]]:
    """Yield the doubts that tasks connect, with every task that may be theirs."""
    free = records.free
    edges = {one.key: {row.task_id for row in free if records.fit(one, row)} for one in doubts}
    waiting = list(doubts)
    while waiting:
        group = [waiting.pop(0)]
        ids = set[str]()
        for one in group:  # it grows in the loop
            ids |= edges[one.key]
            group += [other for other in waiting if edges[other.key] & ids]
            waiting = [other for other in waiting if other not in group]
        yield group, [row for row in free if row.task_id in ids]


def _matched(group: Sequence[Sent], rows: Sequence[Listed], records: Records) -> dict[str, Verdict]:
    """Return verdicts about the members of a group that get a task, or may get one of several."""
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
    reason: Reason | None = None
    if tasks and not records.is_complete:
        reason = Reason.CUT
    elif any(records.fit(one, row) for one in records.in_flight for row in tasks.values()):
        reason = Reason.IN_FLIGHT
    elif any(records.fit(one, row) is Fit.MAYBE for one in rest for row in tasks.values()):
        has_prompts = all(one.prompt is not None for one in rest)
        reason = Reason.HIDDEN if has_prompts else Reason.NO_PROMPT
    elif len({one.fingerprint for one in rest}) > 1 and tasks:
        reason = Reason.SEVERAL
    assigned: dict[str, Verdict] = {}
    # The windows of equal requests are equally long, so the earliest one that fits is right.
    left = sorted((one for one in rest if records.covers(one)), key=lambda one: one.sent_at)
    for row in sorted(tasks.values(), key=lambda row: row.created_at or 0.0):
        first = next((one for one in left if records.fit(one, row)), None)
        if first is None:
            reason = reason or Reason.SEVERAL
            break
        left.remove(first)
        assigned[first.key] = Verdict(first.key, row, Proof.LIST)
    if reason is None:
        return verdicts | assigned
    for one in rest:
        ids = tuple(row.task_id for row in tasks.values() if records.fit(one, row))
        if ids:
            verdicts[one.key] = Verdict(one.key, reason=reason, task_ids=ids)
    return verdicts


def _absent(doubt: Sent, period: Period, records: Records, strangers: Sequence[Listed]) -> Verdict:
    """Return the verdict about a submission that no remaining task fits."""
    charges = period.unexplained(doubt.route)
    is_listed = records.listed is not None and records.covers(doubt)
    is_shown = is_listed and records.is_complete and records.shows_all_like(doubt)
    others = tuple(row.task_id for row in strangers if records.may_be(doubt, row))
    proof = reason = None
    if doubt.is_charged or (charges is not None and charges > period.open):
        reason = Reason.CHARGED
    elif doubt.task_id is not None:
        reason = Reason.NAMED
    elif records.now < doubt.sent_at + records.late:
        reason = Reason.EARLY
    elif is_shown and (charges == 0 or not others):
        proof = Proof.LIST
    elif charges == 0:
        proof = Proof.LOG
    elif is_shown:
        reason = Reason.STRANGER
    elif is_listed and not records.is_complete:
        reason = Reason.CUT
    elif charges:
        reason = Reason.IN_FLIGHT
    else:
        reason = Reason.UNPROVEN
    counts = (charges, period.in_doubt) if charges and reason is Reason.CHARGED else None
    ids = others if reason is Reason.STRANGER else ()
    return Verdict(doubt.key, None, proof, reason, ids, counts)


def _periods(known: Sequence[Sent], doubts: Sequence[Sent], records: Records) -> dict[str, Period]:
    """Return the period of each doubt, with the charges that the log shows in it."""
    charges = sorted(records.charges or ())
    late = records.late
    # As far back as forward, so that earlier known tasks show whether the log is complete.
    spans = sorted(
        [(one.sent_at, one.accepted_at or one.sent_at, one.key) for one in known]
        + [(one.sent_at - late, one.sent_at + late, one.key) for one in doubts]
        + [(one.sent_at, one.sent_at + late, one.key) for one in records.in_flight]
    )
    periods: list[Period] = []
    by_key: dict[str, Period] = {}
    for start, end, key in spans:
        if not periods or start - SECOND > periods[-1].end:
            periods.append(Period(start - SECOND, start))
        by_key[key] = periods[-1]
        periods[-1].end = max(periods[-1].end, end + SECOND)
    for one in known:
        by_key[one.key].known.append(one)
    for one in records.in_flight:
        by_key[one.key].open += 1
    for one in doubts:
        by_key[one.key].in_doubt += 1
    for period in periods:
        first, last = bisect_left(charges, period.start), bisect_right(charges, period.end)
        period.charges = last - first
        period.is_logged = records.charges is not None and period.start >= records.charges_since
    return by_key
