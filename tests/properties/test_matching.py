"""Against any history of an account, no verdict pays twice, and none takes a task of another."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuhu_runway._session.charges import Assignment, Span
from fuhu_runway._session.matching import Proof, Verdict, decide
from fuhu_runway._session.records import Charge, Fit, Listed, Records, Sent

LATE = 60.0
INSTANTS = st.integers(0, 30).map(lambda place: place * 10.0)
# Mostly one kind and one prompt, so that many submissions look the same.
KINDS = st.sampled_from(["/pro/generate", "/pro/generate", "/pro/generate", "/pro/act_one"])
PROMPTS = st.sampled_from(["kitten", "kitten", "puppy"])


@attrs.frozen
class Job:
    """A submission as it really was."""

    sent: Sent
    #: When the gateway accepted it; None if it did not.
    accepted_at: float | None
    #: How it stands in the journal: "known", "in flight" or "in doubt".
    state: str
    #: The prompt that is shown: none, its own, or one that the gateway has changed.
    shown: frozenset[str]

    @property
    def row(self) -> Listed | None:
        """The row of its task."""
        if self.accepted_at is None:
            return None
        routes = frozenset({self.sent.route})
        return Listed(f"t-{self.sent.key}", self.accepted_at, routes, None, self.shown)


@st.composite
def jobs(draw: st.DrawFn, changed: str = "???") -> list[Job]:
    """Draw up to eight submissions, of few kinds, prompts and sizes, so that many are equal."""
    made = []
    for number in range(draw(st.integers(0, 8))):
        route, prompt = draw(KINDS), draw(PROMPTS)
        size = draw(st.sampled_from(["16:9", "16:9", "1:1"]))
        sent_at = draw(INSTANTS)
        state = draw(
            st.sampled_from(["known", "known", "in doubt", "in doubt", "in doubt", "in flight"])
        )
        sent = Sent(str(number), route, f"{route} {prompt} {size}", sent_at, None, prompt)
        delay = draw(st.none() | st.integers(0, 6)) if state != "known" else draw(st.integers(0, 6))
        accepted_at = None if delay is None else sent_at + delay * LATE / 6
        shown = prompt if state == "known" else draw(st.sampled_from([prompt] * 3 + ["", changed]))
        made.append(Job(sent, accepted_at, state, frozenset({shown} - {""})))
    return made


def is_lost(job: Job, listed: set[str]) -> bool:
    """Whether the log may lack the row of a task: the list shows it with its own prompt."""
    return job.state == "in doubt" and job.sent.route in listed and job.sent.prompt in job.shown


OTHERS = st.lists(
    st.builds(
        Listed,
        st.uuids().map(str),
        INSTANTS,
        st.just(frozenset[str]()) | KINDS.map(lambda kind: frozenset({kind})),
        st.none(),
        st.just(frozenset[str]()) | st.sets(st.sampled_from(["kitten", "cat"])).map(frozenset),
    ),
    max_size=3,
)
"""Tasks of other programs on the same account, some with equal prompts."""


@given(
    jobs(),
    OTHERS,
    st.lists(st.integers(0, 45).map(lambda place: place * 10.0), min_size=1, max_size=4),
    st.none() | st.sets(KINDS),
    st.sampled_from(["no log", "log", "log of a shared key", "log that lacks rows"]),
)
def test_nothing_is_paid_twice_and_no_task_has_two_owners(
    history: list[Job], others: list[Listed], visits: list[float], listed: set[str] | None, log: str
) -> None:
    """
    Verdicts hold, however often they are made, whatever others do and whichever kinds are listed.

    No more of equal doubts are "not accepted" than really were not; a task has one owner; and a
    doubt gets a task of an equal doubt, or one of another program that looks the same. It gets
    none of those if the log of the key shows charges, and the list every kind. The log may lack
    the row of a task that the list shows.
    """
    jobs = {job.sent.key: job for job in history}
    owners = {job.row.task_id: job for job in history if job.row}
    settled: dict[str, Verdict] = {}
    is_shown = listed is not None and {"/pro/generate", "/pro/act_one"} <= listed
    for now in sorted(visits):
        current = [job for job in history if job.sent.sent_at <= now]
        known = [
            attrs.evolve(job.sent, task_id=f"t-{job.sent.key}", accepted_at=job.accepted_at)
            for job in current
            if job.state == "known"
        ]
        for key, verdict in settled.items():
            if verdict.task is not None:
                done = {"task_id": verdict.task.task_id, "accepted_at": verdict.task.created_at}
                known.append(attrs.evolve(jobs[key].sent, is_evidence=False, **done))
        rows = [*(job.row for job in current if job.row), *others]
        accepted = [
            job.accepted_at
            for job in current
            if job.accepted_at is not None
            and (log != "log that lacks rows" or listed is None or not is_lost(job, listed))
        ]
        charges = [at for at in accepted if at <= now]
        if log == "log of a shared key":
            charges += [row.created_at for row in others if (row.created_at or 0.0) <= now]
        records = Records(
            now,
            LATE,
            [one for one in known if (one.accepted_at or 0.0) <= now],
            in_flight=[
                job.sent
                for job in current
                if job.state == "in flight" or (job.state == "known" and job.accepted_at > now)
            ],
            listed=None
            if listed is None
            else [
                row
                for row in rows
                if (row.created_at or 0.0) <= now and (not row.routes or row.routes & listed)
            ],
            charges=() if log == "no log" else [Charge(at) for at in charges],
        )
        doubts = [
            job.sent for job in current if job.state == "in doubt" and job.sent.key not in settled
        ]
        verdicts = decide(doubts, records)
        assert [verdict.key for verdict in verdicts] == [doubt.key for doubt in doubts]
        settled |= {verdict.key: verdict for verdict in verdicts if verdict.reason is None}
        guessed = [one for one in settled.values() if one.task and one.task.task_id not in owners]
        # An empty log may be one that is switched off; what was taken before it showed charges
        # keeps its owner.
        is_shown = is_shown and (bool(charges) or not guessed)
        assert not (guessed and is_shown and log == "log")

    absent = Counter(
        jobs[key].sent.fingerprint for key, verdict in settled.items() if verdict.task is None
    )
    really_absent = Counter(
        job.sent.fingerprint
        for job in history
        if job.state == "in doubt" and job.accepted_at is None
    )
    assert absent <= really_absent
    taken = [verdict.task.task_id for verdict in settled.values() if verdict.task]
    assert len(taken) == len(set(taken))
    for key, verdict in settled.items():
        if verdict.task is None:
            continue
        owner = owners.get(verdict.task.task_id)
        if owner is None:
            assert jobs[key].sent.prompt in verdict.task.prompts
        else:
            assert owner.state == "in doubt"
            assert owner.sent.fingerprint == jobs[key].sent.fingerprint


@attrs.define(eq=False, slots=False)
class Counting(Records):
    """Records that count how often a task is compared with a submission."""

    comparisons: Counter[str] = attrs.field(factory=Counter, kw_only=True)

    def fit(self, sent: Sent, row: Listed) -> Fit:
        self.comparisons["all"] += 1
        return super().fit(sent, row)


@pytest.mark.parametrize("accepted", [0, 100, 200])
def test_equal_submissions_are_compared_once(accepted: int) -> None:
    """Comparisons grow with the number of submissions, not with its square."""
    doubts = [
        Sent(f"d-{n}", "/pro/generate", "f", 1000.0 + n / 100, None, "kitten") for n in range(200)
    ]
    known = [
        attrs.evolve(one, key=f"k-{n}", task_id=f"k-{n}", accepted_at=one.sent_at)
        for n, one in enumerate(doubts)
    ]
    owners = [*known, *(attrs.evolve(one, task_id=f"t-{one.key}") for one in doubts[:accepted])]
    rows = [Listed(str(one.task_id), one.sent_at, prompts=frozenset({"kitten"})) for one in owners]
    records = Counting(5000.0, 600.0, known, listed=rows)
    verdicts = decide(doubts, records)
    assert sum(one.task is not None for one in verdicts) == accepted
    assert sum(one.proof is Proof.LIST for one in verdicts) == len(doubts)
    assert records.comparisons["all"] < 10 * (len(doubts) + len(rows))


def scene(count: int, kind: str) -> tuple[list[Sent], Records]:
    """Return doubts with different prompts, as many known tasks, and a log that shows those."""
    numbers, routes = range(count), frozenset({"/pro/generate"})

    def sent(word: str) -> list[Sent]:
        names = [f"{word} {n}" for n in numbers]
        return [
            Sent(one, "/pro/generate", one, 1000.0 + n, None, one) for n, one in enumerate(names)
        ]

    doubts, known = sent("doubt"), sent("known")
    known = [attrs.evolve(one, task_id=one.key, accepted_at=one.sent_at + 1) for one in known]
    shown = [*known, *(doubts if kind == "found" else ())]
    rows = [Listed(one.key, one.sent_at, routes, None, frozenset({one.key})) for one in shown]
    if kind == "strangers":
        rows += [Listed(f"s {n}", 1000.0 + n, routes, None, frozenset({f"s {n}"})) for n in numbers]
    paid = [*shown, *(doubts if kind == "charged" else ())]
    charges = [Charge(one.sent_at) for one in paid]
    flying = sent("flying") if kind == "in flight" else []
    return doubts, Records(1e6, 600.0, known, in_flight=flying, listed=rows, charges=charges)


def calls_of(function: Callable[[], object]) -> int:
    """Return how many functions are called in one."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize("kind", ["not accepted", "found", "charged", "strangers", "in flight"])
def test_the_work_grows_with_the_number_of_doubts(kind: str) -> None:
    """Four times as many doubts, tasks and charges are four times the work, not sixteen times."""
    few, many = (partial(decide, *scene(count, kind)) for count in (50, 200))
    assert calls_of(many) < 6 * calls_of(few)


SPANS = st.tuples(st.integers(0, 12), st.integers(-1, 5)).map(
    lambda span: (float(span[0]), float(sum(span)))
)


def most(spans: Sequence[Span], charges: Sequence[float]) -> int:
    """Return how many spans can have a charge each, by trying every choice."""
    if not spans:
        return 0
    (start, end), *others = spans
    tries = [
        1 + most(others, [*charges[:n], *charges[n + 1 :]])
        for n, charge in enumerate(charges)
        if start <= charge <= end
    ]
    return max([most(others, charges), *tries])


@given(st.lists(SPANS, max_size=5), SPANS, st.lists(st.integers(0, 12).map(float), max_size=5))
def test_charges_are_assigned_as_well_as_possible(
    spans: list[Span], more: Span, charges: list[float]
) -> None:
    """The number is the largest, also with one more span and without any one of them."""
    charges.sort()
    assignment, count = Assignment(spans, charges), most(spans, charges)
    assert assignment.count == count
    assert assignment.takes(more) == (most([*spans, more], charges) > count)
    without = [most([*spans[:n], *spans[n + 1 :]], charges) for n in range(len(spans))]
    assert assignment.certain == {n for n, left in enumerate(without) if left < count}
