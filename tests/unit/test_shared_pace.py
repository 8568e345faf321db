"""The state that workers share, and the share of one worker, without a store between them."""

import json
import math
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from support.clients import EventRecorder
from support.clock import ManualClock

from fuhu_runway._http.limiter import Pace
from fuhu_runway._http.shared import Grant, Report, Response, Share, SharedState
from fuhu_runway.hooks import Hooks, PaceLost, PaceRecovered

NOW = 1_000.0


def report(worker: str = "a", *, at_most: float | None = 20.0, **changes: Any) -> Report:
    """Return a report of a worker, made now."""
    return Report(worker=worker, **{"at_most": at_most, "max_hold": 120.0, "at": NOW, **changes})


@attrs.define
class Row:
    """A row with the state, as a store keeps it."""

    text: str | None = None
    now: float = NOW

    def exchange(self, worker: str = "a", **changes: Any) -> Grant:
        """Exchange a report, after which the row is as it was written."""
        told = report(worker, **{"at": self.now, **changes})
        state = SharedState.load(self.text, told, self.now)
        grant = state.exchange(told, self.now)
        self.text = state.dump()
        return grant

    @property
    def state(self) -> dict[str, Any]:
        """Return what was written."""
        return json.loads(self.text or "")  # type: ignore[no-any-return]


def passed(sent_at: float, took: float = 0.1) -> Response:
    """Return a response to a request that succeeded."""
    return Response(sent_at + took, sent_at, passed=True)


def refused(sent_at: float, retry_after: float | None = None) -> Response:
    """Return a response to a request that was refused."""
    return Response(sent_at + 0.1, sent_at, passed=False, retry_after=retry_after)


# The state


def test_slots_of_all_workers_are_one_row_at_the_rate() -> None:
    """The slots of two workers follow each other at the rate of all together."""
    row = Row()
    slots = [*row.exchange("a", wanted=4).slots, *row.exchange("b", wanted=4).slots]
    assert slots == pytest.approx([NOW + 0.05 * n for n in range(8)])


def test_a_worker_gets_its_part_of_a_second() -> None:
    """However many slots a worker wants, it gets at most those of a second over all workers."""
    row = Row()
    assert len(row.exchange("a", wanted=100).slots) == 20
    assert len(row.exchange("b", wanted=100).slots) == 10
    assert len(row.exchange("c", wanted=100).slots) == 0
    row.now += 1
    assert len(row.exchange("c", wanted=100).slots) == 6


def test_slots_begin_when_the_grant_has_arrived() -> None:
    """If grants take half a second to arrive, so do the first slots."""
    assert Row().exchange(wanted=1, delay=0.5).slots == (NOW + 0.5,)


def test_a_worker_that_wants_nothing_gets_nothing() -> None:
    """A report alone reserves no slot."""
    row = Row()
    assert row.exchange(wanted=0).slots == ()
    assert row.exchange(wanted=1).slots == (NOW,)


def test_the_worker_that_waits_longest_is_next() -> None:
    """At a slow rate, workers without a slot ask in turn, each a slot later than the one before."""
    row = Row()
    slow = {"at_most": 0.5, "wanted": 1}
    assert row.exchange("a", **slow).slots == (NOW,)
    row.now += 0.1
    assert row.exchange("b", **slow).again_at == pytest.approx(NOW + 1)
    row.now += 0.1
    again = row.exchange("a", **slow)
    assert again.slots == ()
    assert again.again_at == pytest.approx(NOW + 1 + 2)
    row.now = NOW + 1
    assert row.exchange("b", **slow).slots == (NOW + 2,)


def test_the_lowest_limit_of_the_workers_holds() -> None:
    """Of two workers with different limits the lower one holds, until that worker has gone."""
    row = Row()
    assert row.exchange("a", at_most=20.0).rate == 20.0
    assert row.exchange("b", at_most=5.0).rate == 5.0
    assert row.exchange("a", at_most=20.0).rate == 5.0
    assert row.exchange("a", at_most=None).rate == 5.0
    row.now += 3
    assert row.exchange("a", at_most=20.0).rate == 20.0


def test_another_limit_takes_back_no_slot() -> None:
    """When the limit changes, the next slot is still after those that were granted."""
    row = Row()
    last = row.exchange("a", at_most=10.0, wanted=10).slots[-1]
    row.now += 0.5
    assert row.exchange("b", at_most=5.0, wanted=1).slots == pytest.approx([last + 0.1])


def test_before_the_first_response_four_requests_of_all_workers_go() -> None:
    """Without a limit, no more than four requests are sent before the first response."""
    row = Row()
    free = {"at_most": None, "wanted": 3}
    assert row.exchange("a", **free).slots == (NOW,) * 3
    assert row.exchange("b", **free).slots == (NOW,)
    grant = row.exchange("c", **free)
    assert grant.slots == ()
    assert grant.again_at == pytest.approx(NOW + 0.1)
    row.now += 0.2
    row.exchange("b", at_most=None)
    grant = row.exchange("a", at_most=None, responses=(passed(NOW),))
    assert grant.rate == 10.0


def test_slots_that_are_lost_may_be_granted_again() -> None:
    """A worker that reports lost slots frees them while few requests may be sent."""
    row = Row()
    free = {"at_most": None, "wanted": 4}
    row.exchange("a", **free)
    assert row.exchange("b", **free).slots == ()
    row.exchange("a", at_most=None, unused=4, wanted=1)
    assert len(row.exchange("b", **free).slots) == 3


def test_a_worker_that_dies_with_the_only_slots_does_not_block_the_others() -> None:
    """After ten seconds without a response, others may try."""
    row = Row()
    free = {"at_most": None, "wanted": 4}
    row.exchange("a", **free)
    row.now += 9
    assert row.exchange("b", **free).slots == ()
    row.now += 2
    assert len(row.exchange("b", **free).slots) == 4


def test_a_response_after_ten_seconds_frees_no_slot_of_the_next_try() -> None:
    """When a slow worker reports at last, the four requests of another one are still in flight."""
    row = Row()
    free = {"at_most": None, "wanted": 4}
    row.exchange("a", **free)
    row.now += 11
    assert len(row.exchange("b", **free).slots) == 4
    row.exchange("a", at_most=None, responses=(refused(NOW),))
    assert row.exchange("c", **free).slots == ()


def free(row: Row, *workers: str) -> None:
    """Let workers send without a pace: the gateway has accepted whatever was sent."""
    for worker in workers:
        row.exchange(worker, at_most=None, wanted=4)
    state = SharedState.load(row.text, report(at_most=None), row.now)
    state.pace = Pace(None, 120.0)
    state.pace.answered(row.now, row.now)
    state.pace.rate = math.inf
    row.text = state.dump()


def test_without_a_pace_a_worker_may_send_for_a_second() -> None:
    """While nothing is paced, a worker needs no slots, and asks again within a second."""
    row = Row()
    free(row, "a")
    grant = row.exchange("a", at_most=None, wanted=1)
    assert (grant.slots, grant.free_until, grant.rate) == ((), NOW + 1, math.inf)


def unused(row: Row, **changes: float) -> None:
    """Let ten requests per second succeed, of which few are needed."""
    free(row, "a", "b")
    state = SharedState.load(row.text, report(at_most=None), row.now)
    state.pace.rate = 10.0
    state.pace._since = NOW
    for number in range(5):
        state.pace.answered(NOW + number, NOW + number)
    for name, value in changes.items():
        setattr(state.pace, name, value)
    row.text = state.dump()


def test_workers_that_need_little_of_a_rate_need_no_slots() -> None:
    """As long as no limit is known, and the rate is not used, each worker sends when it wants."""
    row = Row()
    unused(row)
    row.now += 5
    grant = row.exchange("a", at_most=None, wanted=1)
    assert (grant.slots, grant.free_until, grant.rate) == ((), row.now + 1, 10.0)
    row.now += 4
    many = tuple(passed(NOW + 6 + n / 20) for n in range(20))
    row.exchange("a", at_most=None, responses=many)
    assert len(row.exchange("a", at_most=None, wanted=1).slots) == 1


def test_a_limit_is_kept_however_little_is_needed() -> None:
    """Once a limit is known, every request needs a slot."""
    row = Row()
    unused(row, limit=10.0)
    row.now += 5
    assert len(row.exchange("a", at_most=None, wanted=1).slots) == 1


def test_while_a_limit_is_looked_for_every_request_needs_a_slot() -> None:
    """After two thirds of the requests were refused, half the rate is granted in slots."""
    row = Row()
    unused(row)
    row.now += 6
    responses = tuple(
        passed(NOW + 5 + n / 10) if n in {1, 4} else refused(NOW + 5 + n / 10) for n in range(6)
    )
    row.exchange("a", at_most=None, responses=responses)
    grant = row.exchange("a", at_most=None, wanted=1)
    assert (len(grant.slots), grant.rate < 5, grant.limit) == (1, True, math.inf)


def test_refusals_of_several_workers_add_up() -> None:
    """One refusal each at three workers, and no success, hold all of them for Retry-After."""
    row = Row()
    free(row, "a", "b", "c")
    row.now += 1
    for worker in "abc":
        grant = row.exchange(worker, at_most=None, responses=(refused(NOW + 0.5, 30.0),))
    assert grant.hold_until == pytest.approx(NOW + 0.6 + 30)
    tries = [row.exchange(worker, at_most=None, wanted=2).slots for worker in "abc"]
    assert tries == [(grant.hold_until,), (), ()]


def test_another_limit_ends_no_hold() -> None:
    """A worker with another limit that comes during a hold gets its first slot at the end."""
    row = Row()
    free(row, "a")
    row.now += 1
    three = tuple(refused(NOW + n / 10, 30.0) for n in range(3))
    until = row.exchange("a", at_most=None, responses=three).hold_until
    assert row.exchange("b", at_most=5.0, wanted=1).slots == ()
    row.now = until - 0.5
    assert row.exchange("b", at_most=5.0, wanted=1).slots == (until,)


def test_a_success_that_is_reported_late_counts_where_it_belongs() -> None:
    """Refusals with a success between them are not in a row, whichever worker reports first."""
    row = Row()
    free(row, "a", "b")
    row.now += 1
    row.exchange("a", at_most=None, responses=(refused(NOW + 0.5, 30.0), refused(NOW + 0.7, 30.0)))
    later = (passed(NOW + 0.6), refused(NOW + 0.8, 30.0))
    grant = row.exchange("b", at_most=None, responses=later)
    assert grant.hold_until == -math.inf


def test_a_worker_that_was_killed_delays_what_is_learned_by_little() -> None:
    """Responses wait for the reports of others, but not for long."""
    row = Row()
    free(row, "a", "b")
    for worker in "ab":
        row.exchange(worker, at_most=None, wanted=1)
    row.now += 0.9
    three = tuple(refused(NOW + n / 10) for n in range(3))
    assert row.exchange("a", at_most=None, responses=three, at=row.now).hold_until == -math.inf
    row.now += 1.0
    assert row.exchange("a", at_most=None).hold_until == pytest.approx(NOW + 0.3 + 1.5)


def test_a_rate_that_begins_counts_no_requests_of_the_one_before() -> None:
    """A response to a request whose slot was granted at the old rate is not counted at the new."""
    row = Row()
    last = row.exchange("a", at_most=None, wanted=4).slots[-1]
    row.now += 0.2
    row.exchange("a", at_most=None, responses=(passed(last),), wanted=1)
    assert row.state["pace"]["_since"] >= last


def test_a_row_of_another_version_is_read_as_far_as_it_is_known() -> None:
    """Fields that this version does not know are left out, and those that lack are new."""
    row = Row()
    last = row.exchange("a", wanted=5).slots[-1]
    stored = row.state
    stored["more"] = stored["pace"]["more"] = stored["workers"]["a"]["more"] = 1
    del stored["tried"], stored["pace"]["limit"], stored["workers"]["a"]["open"]
    row.text = json.dumps(stored)
    assert row.exchange("a", wanted=1).slots == pytest.approx([last + 0.05])
    assert "more" not in row.state


def test_after_ten_minutes_without_workers_the_pace_is_learned_anew() -> None:
    """A limit that was found long ago may be gone."""
    row = Row()
    row.exchange("a", at_most=None, wanted=1)
    row.now += 0.2
    assert row.exchange("a", at_most=None, responses=(passed(NOW),)).rate == 10.0
    row.now += 500
    assert row.exchange("b", at_most=None).rate == 10.0
    row.now += 700
    assert row.exchange("b", at_most=None).rate == math.inf


# The share of a worker


class Store:
    """Takes reports, and grants what a test says."""

    def __init__(self, clock: ManualClock, at_most: float | None = 20.0) -> None:
        self.reports: list[Report | None] = []
        self.changes = 0
        self.recorder = EventRecorder()
        self.clock = clock
        self.share = Share(
            "a",
            self.reports.append,
            self._count,
            at_most=at_most,
            max_hold=120.0,
            clock=clock,
            hooks=Hooks([self.recorder]),
        )

    def _count(self) -> None:
        self.changes += 1

    def last(self) -> Report:
        """Return the last report."""
        assert self.reports[-1] is not None
        return self.reports[-1]

    async def ask(self) -> Report:
        """Let a caller want a slot, and return the report."""
        self.share.ready_at(self.clock.now())
        await self.clock.advance(0.11)
        return self.last()

    def grant(self, *after: float, rate: float = 20.0, **changes: Any) -> None:
        """Grant slots that are this many seconds ahead."""
        slots = tuple(self.clock.now() + one for one in after)
        self.share.take(Grant(slots=slots, rate=rate, **changes))


@pytest.fixture
def store(clock: ManualClock) -> Store:
    """Return the store of one worker."""
    return Store(clock)


async def test_without_a_slot_nothing_is_sent(store: Store, clock: ManualClock) -> None:
    """A worker without a slot asks for one, and sends at its instant."""
    assert store.share.ready_at(clock.now()) == math.inf
    await clock.advance(0)
    assert store.last().wanted == 1
    store.grant(0.5)
    assert store.changes == 1
    assert store.share.ready_at(clock.now()) == clock.now() + 0.5


async def test_it_asks_once_until_it_gets_an_answer(store: Store, clock: ManualClock) -> None:
    """However often it is asked when it may send, one report is on its way."""
    for _ in range(5):
        await store.ask()
    assert len(store.reports) == 1


async def test_it_asks_for_twice_as_many_while_all_are_needed(
    store: Store, clock: ManualClock
) -> None:
    """A worker that uses all its slots asks for more, and one that loses some for fewer."""
    assert (await store.ask()).wanted == 1
    for wanted in (2, 4, 8):
        store.grant(*[0.0] * (wanted // 2))
        for _ in range(wanted // 2):
            assert store.share.ready_at(clock.now()) == clock.now()
            store.share.sent(clock.now())
        assert (await store.ask()).wanted == wanted
    store.grant(*[0.0] * 8)
    for _ in range(3):
        store.share.sent(clock.now())
    await clock.advance(0.5)
    report = await store.ask()
    assert (report.wanted, report.unused) == (3, 5)


async def test_a_late_timer_loses_no_slot(store: Store, clock: ManualClock) -> None:
    """A request that waits for a slot gets it up to 0.3 s late."""
    await store.ask()
    store.grant(0.1, 0.2, 0.3)
    assert store.share.ready_at(clock.now()) == pytest.approx(clock.now() + 0.1)
    await clock.advance(0.39)
    assert store.share.ready_at(clock.now()) == clock.now()
    await clock.advance(0.12)
    assert store.share.ready_at(clock.now()) == clock.now()
    store.grant()
    assert (await store.ask()).unused == 2


async def test_a_slot_that_no_request_waited_for_is_lost(store: Store, clock: ManualClock) -> None:
    """A request that comes later does not get it: no credit is saved up."""
    await store.ask()
    store.grant(0.0, 0.05, 0.1, 0.15)
    assert store.share.ready_at(clock.now()) == clock.now()
    store.share.sent(clock.now())
    await clock.advance(0.12)
    assert store.share.ready_at(clock.now()) == clock.now()
    store.share.sent(clock.now())
    assert store.share.ready_at(clock.now()) == pytest.approx(clock.now() + 0.03)


async def test_slots_before_the_end_of_a_hold_are_lost(store: Store, clock: ManualClock) -> None:
    """What was granted before a hold is not sent during it."""
    await store.ask()
    store.grant(0.0, 0.05)
    store.share.refused(clock.now(), clock.now(), 30.0)
    await clock.advance(0.1)
    until = clock.now() + 30
    store.grant(hold_until=until)
    assert store.share.ready_at(clock.now()) == math.inf
    store.grant(29.999, hold_until=until)
    assert store.share.ready_at(clock.now()) == until


async def test_responses_are_reported_within_a_second(store: Store, clock: ManualClock) -> None:
    """A worker that wants nothing reports its responses after a second, all at once."""
    await store.ask()
    store.grant(0.0)
    store.share.sent(clock.now())
    for _ in range(3):
        store.share.answered(clock.now(), clock.now())
    await clock.advance(0.5)
    assert len(store.reports) == 1
    await clock.advance(0.5)
    assert len(store.last().responses) == 3
    assert store.last().wanted == 0


async def test_responses_are_reported_as_soon_as_they_are_needed(
    store: Store, clock: ManualClock
) -> None:
    """A worker reports at once when others wait for it, also what came during an exchange."""
    await store.ask()
    store.share.answered(clock.now(), clock.now())
    store.grant(report_after=0.1)
    await clock.advance(0.1)
    assert len(store.last().responses) == 1


async def test_a_refusal_is_reported_at_once(store: Store, clock: ManualClock) -> None:
    """A refusal that came during an exchange is reported right after it."""
    await store.ask()
    store.share.refused(clock.now(), clock.now(), None)
    store.grant()
    await clock.advance(0.1)
    assert [one.passed for one in store.last().responses] == [False]


async def test_after_a_refusal_it_asks_how_the_others_fare(
    store: Store, clock: ManualClock
) -> None:
    """A worker that was refused sends nothing until it knows more, or one of its own succeeds."""
    await store.ask()
    store.grant(*[0.1] * 5)
    store.share.refused(clock.now(), clock.now(), None)
    assert store.share.ready_at(clock.now()) == math.inf
    store.share.answered(clock.now(), clock.now())
    assert store.share.ready_at(clock.now()) < math.inf
    store.share.refused(clock.now(), clock.now(), None)
    assert store.share.ready_at(clock.now()) == math.inf
    await clock.advance(0.02)
    store.grant()
    assert store.share.ready_at(clock.now()) < math.inf


async def test_without_a_pace_one_refusal_stops_nothing(clock: ManualClock) -> None:
    """A worker that may send freely goes on after a refusal, but not after three in a row."""
    store = Store(clock, None)
    await store.ask()
    store.grant(rate=math.inf, free_until=clock.now() + 1)
    for _ in range(2):
        store.share.refused(clock.now(), clock.now(), None)
        assert store.share.ready_at(clock.now()) == clock.now()
    store.share.refused(clock.now(), clock.now(), None)
    assert store.share.ready_at(clock.now()) == math.inf


async def test_while_nothing_is_paced_no_slots_are_needed(clock: ManualClock) -> None:
    """A worker that may send freely does, and asks again before that ends."""
    store = Store(clock, None)
    await store.ask()
    store.grant(rate=math.inf, free_until=clock.now() + 1)
    for _ in range(100):
        assert store.share.ready_at(clock.now()) == clock.now()
        store.share.sent(clock.now())
    assert len(store.reports) == 1
    await clock.advance(0.85)
    assert store.share.ready_at(clock.now()) == clock.now()
    await clock.advance(0)
    assert len(store.reports) == 2
    await clock.advance(0.2)
    assert store.share.ready_at(clock.now()) == math.inf


async def test_without_slots_the_rate_is_kept_too(clock: ManualClock) -> None:
    """A worker that needs no slots sends no faster than the rate of all."""
    store = Store(clock, None)
    await store.ask()
    store.grant(rate=10.0, free_until=clock.now() + 1)
    for _ in range(3):
        assert store.share.ready_at(clock.now()) == clock.now()
        store.share.sent(clock.now())
        assert store.share.ready_at(clock.now()) == pytest.approx(clock.now() + 0.1)
        await clock.advance(0.11)


async def test_a_store_that_is_lost_is_reported_once(store: Store, clock: ManualClock) -> None:
    """While the store is lost there is one event, and one when it is back."""
    await store.ask()
    store.share.lost("gone")
    store.share.lost("gone")
    assert store.recorder.events == [PaceLost("gone")]
    store.grant(rate=5.0)
    await store.ask()
    store.share.lost("again")
    store.grant(rate=math.inf)
    assert store.recorder.events[1:] == [PaceRecovered(5.0), PaceLost("again"), PaceRecovered(None)]


@pytest.mark.parametrize("first", [True, False])
async def test_a_closed_share_asks_for_nothing(
    store: Store, clock: ManualClock, *, first: bool
) -> None:
    """After closing, the store is let go of, and what was planned is not asked."""
    act: Callable[[], object] = store.share.close
    if first:
        store.share.answered(clock.now(), clock.now())
    act()
    store.share.refused(clock.now(), clock.now(), None)
    await clock.advance(5)
    assert store.reports == [None]
