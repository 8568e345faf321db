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
Rule 4: a task that the key was not charged for is that of another program, and ours was. The log
says so by time alone: what its charges leave open is a choice, and a choice is for a person.
Rule 5: everything else stays in doubt, with a reason.

Pure. Instants are Unix seconds of the gateway's clock.
"""

import enum
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Final

import attrs

from .charges import Span, Stretch, assigned, stretches

SLACK: Final = 10.0
"""How far instants of two sources may differ, in seconds: both are rounded, one is corrected."""
MAX_OFFSET: Final = 900.0
"""The largest difference of the clocks that is corrected, in seconds; more is a fault."""
SECOND: Final = 2.0
"""By how much charges may differ from the submission's own instants, in seconds; both are rounded.
If more, charges of more submissions are counted together."""
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


class Reason(enum.StrEnum):
    """Why a submission stays in doubt."""

    SEVERAL = "several tasks fit; choose one"
    HIDDEN = "a task that may be it does not show its prompt yet"
    NO_PROMPT = "its prompt was not recorded, so no task can be compared"
    IN_FLIGHT = "a request in flight may get the task that fits"
    EARLY = "its task may still appear"
    NAMED = "a damaged response named a task, so it was probably accepted"
    LOG_DUE = (
        "a task fits, and the log of the key, which shows what it paid for, cannot be read now"
    )
    UNCLEAR = "a task fits, and the log of the key does not show whether the key paid for it"
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
    #: Whether the gateway has a log, and did not show it now.
    is_log_due: bool = False
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

    def is_recent(self, instant: float) -> bool:
        """Whether rows of the list and of the log from then may still be missing."""
        return self.now < instant + min(SETTLED, self.late / 10)

    @cached_property
    def sorted_charges(self) -> Sequence[float]:
        """When the key was charged, the earliest first."""
        return sorted(self.charges or ())

    def answered(self, known: Sent) -> Span:
        """When an accepted submission was charged, by its own instants."""
        return known.sent_at - SECOND, (known.accepted_at or known.sent_at) + SECOND

    def awaited(self, sent: Sent) -> Span:
        """When a submission without a response may have been charged."""
        return sent.sent_at - SECOND, sent.sent_at + self.late + SECOND

    def is_logged(self, stretch: Stretch) -> bool:
        """Whether the log is whole there: not cut off, switched on, with every known charge."""
        return bool(self.charges) and stretch.start >= self.charges_since and stretch.is_whole

    def has_evidence(self, route: str, stretch: Stretch) -> bool:
        """Whether an accepted submission to this route is among those of a stretch."""
        return any(
            one.is_evidence and one.route == route and stretch.start <= one.sent_at <= stretch.end
            for one in self.known
        )

    def by_row(self, known: Iterable[Sent], apart: float) -> list[Span]:
        """When accepted submissions were charged, *apart* seconds from their rows at most."""
        rows = [(one, self.rows.get(one.task_id or "")) for one in known]
        return [
            self.answered(one)
            if row is None or row.created_at is None
            else (row.created_at - apart, row.created_at + apart)
            for one, row in rows
        ]

    @cached_property
    def logged(self) -> Sequence[Sent]:
        """The accepted submissions whose charges the log must show, if it is whole."""
        return [one for one in self.known if not self.is_recent(one.accepted_at or one.sent_at)]

    @cached_property
    def recent(self) -> Sequence[Sent]:
        """The accepted submissions whose charges the log may not show yet."""
        return [one for one in self.known if self.is_recent(one.accepted_at or one.sent_at)]

    @cached_property
    def apart(self) -> float:
        """How far a charge may be from the row of its task, as many known tasks show it."""
        known = [one for one in self.logged if one.task_id in self.rows]
        for apart in (0.0, SECOND / 2) if len(known) >= MANY else ():
            if assigned(self.by_row(known, apart), self.sorted_charges) == len(known):
                return apart
        return SECOND

    def around(self, rows: Sequence[Listed], apart: float) -> dict[str, Stretch]:
        """Return the charges around each task, where its instant is known and the log is on."""
        claims = {
            row.task_id: (row.created_at - apart, row.created_at + apart)
            for row in rows
            if row.created_at is not None
        }
        near = stretches(
            self.by_row(self.logged, apart),
            claims,
            self.sorted_charges,
            rivals=map(self.answered, self.recent),
            back=self.late,
        )
        # A log that shows none of the known is switched off, or of another kind.
        return {
            key: one
            for key, one in near.items()
            if self.charges and one.start >= self.charges_since and (one.shown or one.is_whole)
        }

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


def decide(doubts: Sequence[Sent], records: Records) -> list[Verdict]:
    """Return a verdict about each submission in doubt, in their order."""
    if records.is_clock_wrong:
        return [Verdict(one.key, reason=Reason.CLOCK) for one in doubts]
    waiting = [*doubts, *records.in_flight]
    free = [row for row in records.free if any(records.fit(one, row) for one in waiting)]
    strangers = [row for row in records.free if row not in free]
    around = records.around(free, SECOND)
    named = {one.task_id for one in doubts}
    unpaid = {
        key
        for key, near in around.items()
        if key not in named and near.is_whole and not near.can_be(key)
    }
    verdicts = _matched(doubts, [row for row in free if row.task_id not in unpaid], records)
    found = [
        attrs.evolve(one, accepted_at=task.created_at)
        for one in doubts
        if one.key in verdicts and (task := verdicts[one.key].task)
    ]
    rest = [one for one in doubts if one.key not in verdicts]
    periods = stretches(
        map(records.answered, [*records.logged, *found]),
        {one.key: records.awaited(one) for one in rest},
        records.sorted_charges,
        rivals=[
            *map(records.answered, records.recent),
            *map(records.awaited, records.in_flight),
            *(records.awaited(one) for one in doubts if one.key in verdicts and one not in found),
        ],
        back=records.late,
    )
    for one in rest:
        others = [row for row in free if row.task_id in unpaid and records.fit(one, row)]
        verdicts[one.key] = _absent(one, periods[one.key], others, strangers, records)
    return [verdicts[one.key] for one in doubts]


def _matched(
    doubts: Sequence[Sent], rows: Sequence[Listed], records: Records
) -> dict[str, Verdict]:
    """Return the verdicts about those that get a task, or may get one of several."""
    while True:
        around = records.around(rows, records.apart)
        unsure = {key for key, near in around.items() if not near.is_whole or not near.must_be(key)}
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
    edges = {one.key: {row.task_id for row in rows if records.fit(one, row)} for one in doubts}
    waiting = [one for one in doubts if edges[one.key]]
    while waiting:
        group = [waiting.pop(0)]
        ids = set[str]()
        for one in group:  # it grows in the loop
            ids |= edges[one.key]
            group += [other for other in waiting if edges[other.key] & ids]
            waiting = [other for other in waiting if other not in group]
        yield group, [row for row in rows if row.task_id in ids]


def _held(doubts: Sequence[Sent], rows: Collection[Listed], records: Records) -> Reason | None:
    """Return why none of these tasks can be given to a submission yet; None if they can."""
    if rows and not records.is_complete:
        return Reason.CUT
    if any(records.fit(one, row) for one in records.in_flight for row in rows):
        return Reason.IN_FLIGHT
    if any(records.fit(one, row) is Fit.MAYBE for one in doubts for row in rows):
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
    left = sorted((one for one in rest if records.covers(one)), key=lambda one: one.sent_at)
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
            if records.fit(one, row) and (reason is not Reason.UNCLEAR or row.task_id in unsure)
        )
        if ids:
            several = reason is Reason.UNCLEAR and len(ids) > 1
            said = Reason.SEVERAL if several else reason
            verdicts[one.key] = Verdict(one.key, reason=said, task_ids=ids)
    return verdicts


def _absent(
    doubt: Sent,
    period: Stretch,
    unpaid: Sequence[Listed],
    strangers: Sequence[Listed],
    records: Records,
) -> Verdict:
    """Return the verdict about a submission that no remaining task fits but *unpaid* ones."""
    is_logged = records.is_logged(period) and records.has_evidence(doubt.route, period)
    is_charge_free = is_logged and not period.can_be(doubt.key)
    is_listed = records.listed is not None and records.covers(doubt)
    is_shown = is_listed and records.is_complete and records.shows_all_like(doubt)
    others = unpaid or [row for row in strangers if records.may_be(doubt, row)]
    proof = reason = counts = None
    if is_logged and period.explains(doubt.key):
        reason = Reason.CHARGED
        group = period.unexplained, sum(map(period.explains, period.claims))
        counts = (1, 1) if period.must_be(doubt.key) else group
    elif doubt.is_charged:
        reason = Reason.CHARGED
    elif doubt.task_id is not None:
        reason = Reason.NAMED
    elif records.now < doubt.sent_at + records.late:
        reason = Reason.EARLY
    elif is_shown and not unpaid and (is_charge_free or not others):
        proof = Proof.LIST
    elif is_charge_free:
        proof = Proof.LOG
    elif unpaid or is_shown:
        reason = Reason.UNCHARGED if unpaid else Reason.STRANGER
    elif is_listed and not records.is_complete:
        reason = Reason.CUT
    else:
        reason = Reason.IN_FLIGHT if is_logged else Reason.UNPROVEN
    has_ids = reason in {Reason.UNCHARGED, Reason.STRANGER}
    ids = tuple(row.task_id for row in others) if has_ids else ()
    return Verdict(doubt.key, None, proof, reason, ids, counts)
