import asyncio
import math
from collections.abc import Iterator

import attrs
import pytest
from support.clock import ManualClock, settle

from fuhu_runway._limits import (
    ANSWERS_BACK,
    BACK_OFF,
    FIRST_ROOM,
    FORGET_AFTER,
    PROBE_BACK_OFF,
    ROOM_PER_ANSWER,
    SLOWEST,
    Gate,
    Pace,
)
from fuhu_runway.hooks import Event, Hooks, PaceChanged, PaceHeld, PaceRecovered
from fuhu_runway.models import Limits

START = 1_000.0


def instants(pace: Pace, count: int, now: float) -> Iterator[float]:
    """Send *count* requests as soon as the pace lets them, and give when they went."""
    for _ in range(count):
        now = pace.ready_at(now)
        pace.sent(now)
        yield now


def slowed(rate: float, at_most: float | None = None) -> Pace:
    """Give a pace that was refused at *rate* requests a second."""
    pace = Pace(at_most)
    for number in range(round(rate)):
        pace.sent(START - 0.5 + number * 0.001)
    assert pace.refused(START - 0.1, START, None)
    return pace


# The pace, on its own


def test_without_a_limit_nobody_waits() -> None:
    """Before the first refusal, and with no rate given, a thousand may go at one instant."""
    assert set(instants(Pace(None), 1000, START)) == {START}


@pytest.mark.parametrize("rate", [0.1, 1.0, 2.0, 8.0])
def test_requests_go_at_the_rate_that_is_given(rate: float) -> None:
    """From the first request on, each goes exactly one gap after the one before."""
    went = list(instants(Pace(rate), 50, START))
    assert went == pytest.approx([START + number / rate for number in range(50)])


def test_a_pause_saves_up_nothing() -> None:
    """After a long silence the first goes at once, and the next waits its whole gap."""
    pace = Pace(2.0)
    list(instants(pace, 3, START))
    assert list(instants(pace, 3, START + 100)) == [START + 100, START + 100.5, START + 101]


def test_a_late_timer_costs_no_pace() -> None:
    """A request that went a little later than it was due does not put off the next."""
    pace = Pace(2.0)
    pace.sent(START)
    pace.sent(START + 0.6, due_at=START + 0.5)
    assert pace.ready_at(START + 0.6) == START + 1.0


def test_a_very_late_timer_makes_no_burst() -> None:
    """However late a request went, the next waits for half a gap at the least."""
    pace = Pace(2.0)
    pace.sent(START)
    pace.sent(START + 60, due_at=START + 0.5)
    assert pace.ready_at(START + 60) == START + 60.25


def test_a_refusal_halves_the_pace_at_which_requests_went() -> None:
    """The rate after a refusal is half of the requests of the second before it."""
    pace = Pace(None)
    pace.sent(START - 1.5)
    list(instants(pace, 40, START))
    assert pace.refused(START, START + 0.2, None)
    assert (pace.refused_at_rate, pace.rate) == (40.0, 20.0)


def test_a_refusal_halves_the_rate_where_there_is_one() -> None:
    """Where fewer went than were allowed, or more in the last second, the lower number counts."""
    pace = Pace(4.0)
    list(instants(pace, 8, START))
    assert pace.refused(START + 1.75, START + 1.75, None)
    assert (pace.refused_at_rate, pace.rate) == (4.0, 2.0)


def test_one_burst_is_slowed_down_once() -> None:
    """Refusals of requests that were sent before the slow-down are part of it; later ones not."""
    pace = slowed(40)
    assert not any(pace.refused(START - 0.4 + n * 0.01, START + 0.2, None) for n in range(19))
    assert pace.rate == 20.0
    pace.sent(START + 0.3)
    assert pace.refused(START + 0.3, START + 0.4, None)
    assert pace.rate == 10.0


def test_a_burst_of_which_little_passes_leaves_no_more_than_passed() -> None:
    """Of forty in a second 33 are refused: seven a second are left, not twenty."""
    pace = slowed(40)
    for _ in range(32):
        pace.refused(START - 0.3, START + 0.1, None)
    assert pace.rate == 7.0
    for _ in range(7):
        pace.refused(START - 0.3, START + 0.1, None)
    assert pace.rate == 1.0
    assert pace.refused_at_rate == 40.0


def test_a_refusal_of_long_ago_says_nothing_of_that_second() -> None:
    """A refusal that took seconds to come back takes nothing off what passed since."""
    pace = slowed(40)
    for _ in range(39):
        pace.refused(START - 5, START + 0.1, None)
    assert pace.rate == 20.0


def test_after_a_refusal_a_whole_gap_passes() -> None:
    """The next request goes at the new rate, not when the old one would have let it."""
    pace = slowed(4)
    assert list(instants(pace, 3, START)) == [START + 0.5, START + 1.0, START + 1.5]


def test_everybody_is_held_for_as_long_as_was_asked() -> None:
    """Nobody goes before the instant that a refusal named, a later and longer one included."""
    pace = slowed(10)
    pace.refused(START - 2, START + 1, 30.0)
    assert pace.ready_at(START + 2) == START + 31
    pace.refused(START - 2, START + 2, 5.0)
    assert pace.ready_at(START + 2) == START + 31
    assert list(instants(pace, 2, START + 2)) == [START + 31, START + 31.2]


@pytest.mark.parametrize(("at_most", "floor"), [(None, SLOWEST), (4.0, SLOWEST), (0.01, 0.01)])
def test_it_never_falls_below_the_slowest(at_most: float | None, floor: float) -> None:
    """A hundred refusals leave one request in 2 s, or fewer only where the user allows fewer."""
    pace = Pace(at_most)
    for number in range(100):
        pace.sent(START + number)
        pace.refused(START + number, START + number, None)
    assert pace.rate == floor
    assert pytest.approx(1 / 2) == SLOWEST


def test_answers_before_any_refusal_change_nothing() -> None:
    """A rate that was given does not grow, and none is made up."""
    for pace in [Pace(None), Pace(3.0)]:
        before = pace.rate
        pace.answered()
        assert pace.rate == before


def rates(pace: Pace, answers: int) -> list[float]:
    """Give the rate after each of so many answers."""
    found = []
    for _ in range(answers):
        pace.answered()
        found.append(pace.rate)
    return found


def test_the_pace_recovers_steeply_then_flatly_then_steeply() -> None:
    """A third of the answers bring most of it back; the last third before and after hardly any."""
    pace = slowed(40)
    found = rates(pace, 2 * ANSWERS_BACK)
    third = ANSWERS_BACK // 3
    assert found == sorted(found)
    assert found[third] > 34
    assert found[ANSWERS_BACK - third] > 39
    assert found[ANSWERS_BACK - 1] == pytest.approx(40)
    assert found[ANSWERS_BACK + third] < 41
    assert found[-1] == pytest.approx(60)


def test_a_rate_that_is_well_known_is_given_up_by_little() -> None:
    """Who was refused after long being let through falls a little; who was not falls by half."""
    pace = slowed(4)
    rates(pace, ANSWERS_BACK)
    assert pace.rate == pytest.approx(4.0)
    went = list(instants(pace, 20, START + 100))[-1]
    assert pace.refused(went, went, None)
    assert pace.rate == pytest.approx(4 * PROBE_BACK_OFF)
    rates(pace, 10)
    before = pace.rate
    went = list(instants(pace, 20, START + 200))[-1]
    assert pace.refused(went, went, None)
    assert pace.rate == pytest.approx(before * BACK_OFF)


def test_even_the_slowest_pace_grows() -> None:
    """After an hour in which all was refused, it comes back to one a second, and beyond."""
    pace = Pace(None)
    for number in range(100):
        pace.sent(START + 36 * number)
        pace.refused(START + 36 * number, START + 36 * number, None)
    assert pace.rate == SLOWEST
    found = rates(pace, 2 * ANSWERS_BACK)
    assert found[ANSWERS_BACK - 1] == pytest.approx(1.0)
    assert found[-1] == pytest.approx(1.5)


def test_a_gateway_that_counts_by_the_minute_is_come_back_to() -> None:
    """Refused for half a minute after hundreds passed, the aim is what passed in a minute."""
    pace = Pace(None)
    for number in range(600):
        pace.sent(START + number / 10)
    for number in range(15):
        pace.sent(START + 60 + 2 * number)
        pace.refused(START + 60 + 2 * number, START + 60.1 + 2 * number, None)
    assert pace.rate == SLOWEST
    assert 5 < pace.refused_at_rate < 10


def test_more_may_be_in_flight_with_each_answer() -> None:
    """A few at first, some more for each answer, and all that wait once there is a rate."""
    pace = Pace(None)
    assert pace.room == FIRST_ROOM
    pace.answered()
    assert pace.room == FIRST_ROOM + ROOM_PER_ANSWER
    pace.sent(START)
    pace.refused(START, START, None)
    assert math.isinf(pace.room)
    assert math.isinf(Pace(2.0).room)


def test_a_refusal_long_ago_is_forgotten() -> None:
    """Far above the rate that was refused there is no limit any more, and no memory of one."""
    pace = slowed(40)
    answers = 0
    while not math.isinf(pace.rate):
        assert pace.rate <= FORGET_AFTER * 40
        pace.answered()
        answers += 1
    assert ANSWERS_BACK < answers < 1000
    assert pace.room == FIRST_ROOM
    assert set(instants(pace, 100, START)) == {START + 0.05}  # when the last gap ends


def test_it_never_grows_above_what_the_user_allows() -> None:
    """The rate that was given is where recovery ends."""
    pace = slowed(40, at_most=30.0)
    for _ in range(2000):
        pace.answered()
        assert pace.rate <= 30.0
    assert pace.rate == 30.0


# The gate


@attrs.define
class Visitors:
    """Those who go through a gate, and stay inside until they are sent away."""

    gate: Gate
    clock: ManualClock
    heard: list[Event]
    #: Who came in, and when.
    entered: list[tuple[int, float]] = attrs.field(factory=list)
    inside: set[int] = attrs.field(factory=set)
    peak: int = 0
    _may_leave: dict[int, asyncio.Event] = attrs.field(factory=dict)
    tasks: dict[int, asyncio.Task[None]] = attrs.field(factory=dict)

    async def come(self, *numbers: int, behind: int | None = None) -> None:
        for number in numbers:
            self._may_leave[number] = asyncio.Event()
            self.tasks[number] = asyncio.create_task(self._visit(number, behind))
        await settle()

    async def _visit(self, number: int, behind: int | None) -> None:
        async with self.gate.slot(behind=behind) as sent_at:
            self.entered.append((number, sent_at))
            self.inside.add(number)
            self.peak = max(self.peak, len(self.inside))
            try:
                await self._may_leave[number].wait()
            finally:
                self.inside.remove(number)

    def release(self, *numbers: int) -> None:
        for number in numbers:
            self._may_leave[number].set()

    async def leave(self, *numbers: int) -> None:
        self.release(*numbers)
        await settle()

    async def give_up(self, *numbers: int) -> None:
        for number in numbers:
            self.tasks[number].cancel()
        await settle()

    @property
    def order(self) -> list[int]:
        return [number for number, _ in self.entered]

    @property
    def offsets(self) -> list[float]:
        return [instant - START for _, instant in self.entered]


def visitors(**limits: float | None) -> Visitors:
    """Give the visitors of a new gate, in front of which time stands still."""
    clock, heard = ManualClock(START), list[Event]()
    gate = Gate(Limits(**limits), clock, Hooks([heard.append]))  # type: ignore[arg-type]
    return Visitors(gate, clock, heard)


def known_visitors() -> Visitors:
    """Give the visitors of a gate that has let a hundred in already."""
    some = visitors()
    for _ in range(100):
        some.gate.answered()
    return some


async def test_no_more_than_so_many_are_inside() -> None:
    """A third request waits while two are in flight, and goes when one has come back."""
    some = visitors(requests_in_flight=2)
    await some.come(*range(6))
    assert some.inside == {0, 1}
    await some.leave(0)
    assert some.inside == {1, 2}
    await some.leave(1, 2, 3, 4, 5)
    assert (some.peak, some.gate.in_flight) == (2, 0)


async def test_a_free_gate_is_passed_at_once() -> None:
    """A request that need not wait goes before anything else in the loop has its turn."""
    some = visitors(requests_in_flight=1, requests_per_second=2.0)
    order: list[str] = []
    asyncio.get_running_loop().call_soon(order.append, "the loop")
    async with some.gate.slot() as sent_at:
        order.append("the request")
    await settle()
    assert order == ["the request", "the loop"]
    assert sent_at == START


async def test_a_free_gate_keeps_the_pace() -> None:
    """Nobody is before the second of two requests, and it waits for its instant all the same."""
    some = visitors(requests_per_second=2.0)
    await some.come(0)
    await some.leave(0)
    await some.come(1)
    assert some.inside == set()
    await some.clock.advance(0.5)
    assert some.offsets == [0.0, 0.5]


async def test_few_go_before_the_first_answer() -> None:
    """Of a hundred that come at once to an unknown gateway four go, and more with each answer."""
    some = visitors()
    await some.come(*range(100))
    assert len(some.inside) == 4
    for _ in range(4):
        some.gate.answered()
    await some.leave(0)
    assert len(some.inside) == 12


async def test_first_come_first_served() -> None:
    """Requests go in the order in which they came."""
    some = visitors(requests_in_flight=1)
    await some.come(*range(5))
    for number in range(5):
        await some.leave(number)
    assert some.order == [0, 1, 2, 3, 4]


async def test_nobody_overtakes_who_waits() -> None:
    """A newcomer goes behind those who wait already, even in the moment a slot comes free."""
    some = visitors(requests_in_flight=1)
    await some.come(0, 1)
    some.release(0)
    await some.come(9)
    await some.leave(1, 9)
    assert some.order == [0, 1, 9]


@pytest.mark.parametrize(
    ("behind", "order"),
    [(0, [0, 9, 1, 2, 3]), (1, [0, 1, 9, 2, 3]), (7, [0, 1, 2, 3, 9]), (None, [0, 1, 2, 3, 9])],
)
async def test_one_may_stand_further_ahead(behind: int | None, order: list[int]) -> None:
    """Whoever says how many go before goes after so many, and the others keep their order."""
    some = visitors(requests_in_flight=1)
    await some.come(0, 1, 2, 3)
    await some.come(9, behind=behind)
    for number in order:
        await some.leave(number)
    assert some.order == order


async def test_who_gives_up_holds_nobody_up() -> None:
    """Whoever is cancelled while waiting takes no slot, and the others keep their order."""
    some = visitors(requests_in_flight=1)
    await some.come(*range(6))
    await some.give_up(1, 3, 4)
    for number in [0, 2, 5]:
        await some.leave(number)
    assert some.order == [0, 2, 5]
    assert some.tasks[3].cancelled()


async def test_a_turn_that_is_not_taken_goes_to_the_next() -> None:
    """Cancelled in the very moment of its turn, a request passes it on."""
    some = visitors(requests_in_flight=1)
    await some.come(0, 1, 2)
    some.release(0)
    await asyncio.sleep(0)  # it is the turn of 1, who does not know yet
    assert some.gate.in_flight == 1
    await some.give_up(1)
    assert some.inside == {2}
    assert some.tasks[1].cancelled()
    await some.leave(2)
    assert some.gate.in_flight == 0


async def test_a_slot_comes_back_however_it_was_left() -> None:
    """An error and a cancellation inside give the slot back as a success does."""
    some = visitors(requests_in_flight=1)
    with pytest.raises(OSError, match="wire"):
        async with some.gate.slot():
            raise OSError("wire")
    await some.come(0, 1)
    await some.give_up(0)
    assert some.inside == {1}
    await some.leave(1)
    assert some.gate.in_flight == 0


async def test_requests_go_at_their_instants() -> None:
    """At two a second, five that came at once go half a second apart, to the instant."""
    some = visitors(requests_per_second=2.0)
    await some.come(*range(5))
    assert some.order == [0]
    await some.clock.advance(10)
    assert some.offsets == [0.0, 0.5, 1.0, 1.5, 2.0]


async def test_a_pause_makes_no_burst() -> None:
    """After a silence of minutes, those who come together go one by one all the same."""
    some = visitors(requests_per_second=2.0)
    await some.come(0)
    await some.clock.advance(300)
    await some.come(1, 2, 3)
    await some.clock.advance(10)
    assert some.offsets == [0.0, 300.0, 300.5, 301.0]


async def test_waiting_for_a_slot_saves_up_no_pace() -> None:
    """Slots that come free together after a long time are taken one gap after the other."""
    some = visitors(requests_per_second=2.0, requests_in_flight=2)
    await some.come(*range(4))
    await some.clock.advance(60)
    await some.leave(0, 1)
    await some.clock.advance(60)
    assert some.offsets == [0.0, 0.5, 60.0, 60.5]


async def test_a_turn_is_put_off_by_whoever_goes_late() -> None:
    """A timer that fires late makes one request late, and not all that follow."""
    some = visitors(requests_per_second=2.0)
    await some.come(*range(4))
    some.clock.instant += 0.6  # the timer for 0.5 was not served in time
    await some.clock.advance(0.0)
    await some.clock.advance(10)
    assert some.offsets == pytest.approx([0.0, 0.6, 1.0, 1.5])


async def test_a_refusal_holds_everyone() -> None:
    """Those who wait and those who come wait until the gateway wants to hear of us again."""
    some = visitors(requests_per_second=10.0)
    await some.come(0, 1, 2)
    some.gate.refused(START, 30.0)
    await some.clock.advance(5)
    await some.come(3)
    await some.clock.advance(24.9)
    assert some.order == [0]
    await some.clock.advance(10)
    assert some.order == [0, 1, 2, 3]
    assert some.offsets[1] == 30.0


async def test_a_refusal_without_a_time_slows_down_only() -> None:
    """Where nothing is asked for, nobody is held, and the pace is half of what it was."""
    some = known_visitors()
    await some.come(*range(8))
    assert not some.gate.is_paced
    some.gate.refused(START, None)
    assert some.gate.is_paced
    await some.come(8, 9, 10)
    await some.clock.advance(10)
    assert some.offsets[8:] == [0.25, 0.5, 0.75]


async def test_a_burst_of_refusals_is_told_once() -> None:
    """Listeners hear of a slow-down, with the new rate, and of the rest of its burst nothing."""
    some = known_visitors()
    await some.come(*range(8))
    for _ in range(8):
        some.gate.refused(START, 2.0)
    assert some.heard == [PaceChanged(4.0, 2.0)]
    await some.clock.advance(3)
    await some.come(8)
    some.gate.refused(START + 3, None)
    assert some.heard[1:] == [PaceChanged(0.5, None)]


async def test_a_longer_pause_is_told() -> None:
    """Where a later refusal of a burst asks for more than a second more, listeners hear of it."""
    some = visitors()
    await some.come(*range(8))
    for asked in (None, 3.0, 3.5, 60.0, 60.5):
        some.gate.refused(START, asked)
    assert some.heard == [PaceChanged(2.0, None), PaceHeld(3.0), PaceHeld(60.0)]


@pytest.mark.parametrize("at_most", [None, 20.0])
async def test_the_recovery_of_the_pace_is_told(at_most: float | None) -> None:
    """Once it is what it was, listeners hear so, once; answers after that are no news."""
    some = visitors(requests_per_second=at_most)
    some.gate.refused(START, None)
    for _ in range(12_000):
        some.gate.answered()
    assert some.heard[1:] == [PaceRecovered(at_most)]
    assert some.gate.pace.rate == (at_most or math.inf)


async def test_answers_bring_the_pace_back() -> None:
    """After enough answers there is no pace any more, and a hundred go at once."""
    some = known_visitors()
    await some.come(*range(8))
    some.gate.refused(START, None)
    while some.gate.is_paced:
        some.gate.answered()
    for _ in range(50):
        some.gate.answered()
    await some.clock.advance(1)
    await some.come(*range(8, 80))
    assert len(some.inside) == 80


async def test_nobody_waiting_leaves_no_timer() -> None:
    """When the last who waited has gone or given up, nothing is left to happen."""
    some = visitors(requests_per_second=1.0)
    await some.come(0, 1, 2)
    assert some.clock.timers == [START + 1]
    await some.give_up(1, 2)
    assert some.clock.timers == []
    await some.come(3)
    await some.clock.advance(5)
    assert some.order == [0, 3]
    assert some.clock.timers == []


async def test_the_repr_tells_the_state() -> None:
    """In flight, waiting, rate and hold are told, each where there is something to tell."""
    some = visitors(requests_in_flight=2)
    assert repr(some.gate) == "<Gate 0 of 2 in flight, 0 waiting>"
    await some.come(*range(5))
    await some.give_up(3)
    assert repr(some.gate) == "<Gate 2 of 2 in flight, 2 waiting>"
    some.gate.refused(START, 12.0)
    await some.clock.advance(2)
    text = "<Gate 2 of 2 in flight, 2 waiting, 1 a second, held for 10.0 s>"
    assert repr(some.gate) == text


async def test_a_request_that_was_left_in_the_air_counts() -> None:
    """Whoever waits behind it comes in when its answer is here, and not when its caller leaves."""
    some, landed = visitors(requests_in_flight=1), asyncio.Event()
    async with some.gate.slot():
        some.gate.hold(asyncio.create_task(landed.wait()))
    await some.come(1)
    assert some.inside == set()
    landed.set()
    await settle()
    assert some.inside == {1}


async def test_a_gate_that_closes_turns_all_away() -> None:
    """Who waits gets the refusal; who was cancelled before, and who is inside, do not."""
    some = visitors(requests_in_flight=1)
    await some.come(0, 1, 2)
    some.tasks[1].cancel()
    some.gate.close(ZeroDivisionError)
    await settle()
    assert isinstance(some.tasks[2].exception(), ZeroDivisionError)
    assert some.tasks[1].cancelled()
    assert some.inside == {0}
    await some.leave(0)
    assert some.gate.in_flight == 0
