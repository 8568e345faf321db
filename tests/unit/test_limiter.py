import asyncio
import math
import random
from collections import deque
from collections.abc import Iterator

import attrs
import pytest
from support.clock import ManualClock, settle

from fuhu_runway._clock import LoopClock
from fuhu_runway._http.limiter import Pace, RateLimiter
from fuhu_runway.hooks import Event, Hooks, PaceChanged, PaceHeld, PaceRecovered
from fuhu_runway.models import Limits

START = 1_000.0


def pace_of(at_most: float | None = None) -> Pace:
    """Return a new pace, for which a gateway may hold everything for two minutes."""
    return Pace(at_most, 120.0)


def instants(pace: Pace, count: int, now: float) -> Iterator[float]:
    """Send *count* requests as soon as the pace lets them, and yield when they went."""
    for _ in range(count):
        now = pace.ready_at(now)
        pace.sent(now)
        yield now


@attrs.define
class Gateway:
    """Accepts this many requests per second, and no more than *burst* at once."""

    rate: float
    burst: float = 1.0
    #: Of those, this many in each hundred are refused all the same, evenly spread.
    strays: int = 0
    passed: int = 0
    refused: int = 0
    _tokens: float = math.inf
    _now: float = 0.0

    def admits(self, now: float) -> bool:
        self._tokens = min(self.burst, self._tokens + (now - self._now) * self.rate)
        self._now = now
        is_stray = (self.passed + self.refused) * self.strays % 100 >= 100 - self.strays
        admitted = self._tokens >= 1 - 1e-9 and not is_stray
        self._tokens -= admitted
        self.passed += admitted
        self.refused += not admitted
        return admitted


def send_for(
    seconds: float, pace: Pace, gateway: Gateway, now: float, wanted: float = 200.0
) -> float:
    """Send what the pace allows, but no more than *wanted* per second; each is answered at once."""
    until, due = now + seconds, now
    while (now := max(pace.ready_at(now), due)) < until:
        pace.sent(now)
        due = now + 1 / wanted
        if gateway.admits(now):
            pace.answered(now, now)
        else:
            pace.refused(now, now, None)
    return until


def run(gateway: Gateway, seconds: float, pace: Pace | None = None) -> tuple[Pace, float]:
    """Return a pace that met the gateway for a while, and when that was over."""
    pace = pace or pace_of()
    return pace, send_for(seconds, pace, gateway, START)


# The pace, on its own


def test_without_a_limit_nothing_waits() -> None:
    """Before the first response, and with no rate given, a thousand may go at one instant."""
    assert set(instants(pace_of(), 1000, START)) == {START}


@pytest.mark.parametrize("rate", [0.1, 1.0, 2.0, 8.0])
def test_requests_go_at_the_rate_that_is_given(rate: float) -> None:
    """From the first request on, each goes exactly one gap after the one before."""
    went = list(instants(pace_of(rate), 50, START))
    assert went == pytest.approx([START + number / rate for number in range(50)])


def test_a_pause_saves_no_credit() -> None:
    """After a long silence the first goes at once, and the next waits its whole gap."""
    pace = pace_of(2.0)
    list(instants(pace, 3, START))
    assert list(instants(pace, 3, START + 100)) == [START + 100, START + 100.5, START + 101]


def test_a_late_timer_costs_no_pace() -> None:
    """A request that went a little later than it was due does not put off the next."""
    pace = pace_of(2.0)
    pace.sent(START)
    pace.sent(START + 0.6, due_at=START + 0.5)
    assert pace.ready_at(START + 0.6) == START + 1.0


def test_a_very_late_timer_makes_no_burst() -> None:
    """However late a request went, the next waits for half a gap at the least."""
    pace = pace_of(2.0)
    pace.sent(START)
    pace.sent(START + 60, due_at=START + 0.5)
    assert pace.ready_at(START + 60) == START + 60.25


def test_it_begins_gently_and_doubles() -> None:
    """After the first response ten requests go per second, and twice as many with each round."""
    pace, gateway = pace_of(), Gateway(1e6, 1e6)
    assert (pace.room, pace.rate) == (4, math.inf)
    pace.answered(START, START)
    assert (pace.room, pace.rate) == (math.inf, 10.0)
    now = send_for(0.6, pace, gateway, START)
    assert pace.rate == 20.0
    send_for(5.0, pace, gateway, now, wanted=5000.0)
    assert math.isinf(pace.rate)


def test_a_pace_that_is_not_used_does_not_rise() -> None:
    """While one request per second is sent, nothing is learned about forty: it stays at twenty."""
    pace, _ = run(Gateway(1e6, 1e6), 0.4)
    assert pace.rate == 20.0
    send_for(600.0, pace, Gateway(1e6, 1e6), START + 10, wanted=1.0)
    assert pace.rate == 20.0


@pytest.mark.parametrize(("rate", "burst"), [(1.0, 1.0), (5.0, 5.0), (20.0, 20.0)])
def test_a_limit_is_found_and_kept(rate: float, burst: float) -> None:
    """In ten minutes at least 88 % of the limit gets through, and at most 6 % are refused."""
    gateway = Gateway(rate, burst)
    pace, _ = run(gateway, 600.0)
    assert gateway.passed >= 0.88 * 600 * rate
    assert gateway.refused <= 0.06 * (gateway.passed + gateway.refused)
    assert rate / 1.5 < pace.limit < rate * 1.5


@pytest.mark.parametrize("strays", [1, 5, 20, 40])
def test_stray_refusals_do_not_slow_it_down(strays: int) -> None:
    """If some are refused at any rate, at least 95 % of the requests are sent in time."""
    gateway = Gateway(1e6, 1e6, strays)
    run(gateway, 180.0)
    assert gateway.passed + gateway.refused >= 0.95 * 200 * 180


@pytest.mark.parametrize("seed", range(40))
def test_refusals_at_random_do_not_slow_it_down(seed: int) -> None:
    """If a fifth is refused, chance does not lower the pace again and again: a third is sent."""
    rng, pace, now, count = random.Random(seed), pace_of(), START, 0
    in_flight = deque[tuple[float, float]]()
    while now < START + 180.0:
        ready_at = pace.ready_at(now)
        if len(in_flight) < min(20, pace.room) and ready_at < (in_flight or [(math.inf,)])[0][0]:
            now, count = ready_at, count + 1
            pace.sent(now)
            in_flight.append((now + 0.2, now))
            continue
        now, sent_at = in_flight.popleft()
        if rng.random() < 0.2:
            pace.refused(sent_at, now, None)
        else:
            pace.answered(sent_at, now)
    assert count >= 180.0 * 20 / 0.2 / 3


def test_refusals_that_have_nothing_to_do_with_the_rate_pass() -> None:
    """Thirteen refusals among sixty requests cost a fifth of the next ten seconds at the most."""
    pace, now = run(Gateway(1e6, 1e6), 5.0)
    gateway = Gateway(1e6, 1e6, 22)
    now = send_for(0.3, pace, gateway, now)
    assert gateway.refused == 13
    after = Gateway(1e6, 1e6)
    send_for(10.0, pace, after, now)
    assert after.passed >= 0.75 * 2000


def test_a_new_limit_is_found_within_seconds() -> None:
    """Twenty per second, then two, then twenty: soon after each change the pace has changed too."""
    gateway = Gateway(20.0, 20.0)
    pace, now = run(gateway, 60.0)
    gateway.rate, gateway.burst = 2.0, 2.0
    now = send_for(15.0, pace, gateway, now)
    before = gateway.refused
    now = send_for(45.0, pace, gateway, now)
    assert gateway.refused - before <= 0.15 * 45 * 2
    gateway.rate, gateway.burst = 20.0, 20.0
    now = send_for(20.0, pace, gateway, now)
    before = gateway.passed
    send_for(30.0, pace, gateway, now)
    assert gateway.passed - before >= 0.9 * 30 * 20


def test_a_limit_that_has_held_for_long_is_tried_seldom() -> None:
    """After an hour at one request per second, fewer than one in a hundred is refused."""
    gateway = Gateway(1.0)
    pace, now = run(gateway, 3600.0)
    gateway.passed = gateway.refused = 0
    send_for(3600.0, pace, gateway, now)
    assert gateway.passed >= 0.9 * 3600
    assert gateway.refused <= 36


def test_the_user_s_rate_is_the_ceiling() -> None:
    """The pace never exceeds the user's rate, and reaches it again after refusals."""
    pace = pace_of(10.0)
    gateway = Gateway(3.0, 3.0)
    now = send_for(30.0, pace, gateway, START)
    assert 2.0 < pace.limit < 4.5
    gateway.rate = gateway.burst = 1e6
    now = send_for(60.0, pace, gateway, now)
    assert (pace.rate, pace.limit) == (10.0, math.inf)
    for until in range(20):
        now = send_for(1.0, pace, Gateway(1e6, 1e6, 30), now)
        assert pace.rate <= 10.0, until


def test_another_client_with_the_same_key_finds_room() -> None:
    """Of two clients that share ten requests per second, the second to come gets a quarter."""
    gateway = Gateway(10.0, 10.0)
    first, now = run(gateway, 30.0)
    second = pace_of()
    went = {id(first): 0, id(second): 0}
    until = now + 120.0
    while now < until:
        pace = min(first, second, key=lambda one: one.ready_at(now))
        now = max(now + 0.001, pace.ready_at(now))
        pace.sent(now)
        if gateway.admits(now):
            went[id(pace)] += 1
            pace.answered(now, now)
        else:
            pace.refused(now, now, None)
    assert min(went.values()) >= 0.25 * sum(went.values())


# When everything is refused


def refuse(pace: Pace, times: int, now: float, retry_after: float | None = None) -> None:
    """Record refusals of requests that were sent just before."""
    for _ in range(times):
        pace.refused(now - 0.01, now, retry_after)


def busy_pace() -> tuple[Pace, float]:
    """Return a pace that is used to two hundred requests per second, after ten seconds of them."""
    return run(Gateway(1e6, 1e6), 10.0)


@pytest.mark.parametrize("retry_after", [None, 0.5, 30.0])
def test_a_single_refusal_holds_nothing_else(retry_after: float | None) -> None:
    """All other requests go on at once, whatever Retry-After says."""
    pace, now = busy_pace()
    refuse(pace, 2, now, retry_after)
    assert pace.ready_at(now) <= now + 0.01
    assert math.isinf(pace.room)


def test_after_three_in_a_row_one_request_tries_alone() -> None:
    """Nothing is sent for 1.5 s, then one request at a time, after pauses of up to ten seconds."""
    pace, now = busy_pace()
    refuse(pace, 3, now)
    assert pace.room == 1
    pauses = []
    for _ in range(6):
        pauses.append(pace.ready_at(now) - now)
        now = pace.ready_at(now)
        pace.refused(now, now, None)
    assert pauses == pytest.approx([1.5, 3.0, 6.0, 10.0, 10.0, 10.0])


@pytest.mark.parametrize(
    ("requested", "held"), [(None, 1.5), (0.1, 1.5), (30.0, 30.0), (120.0, 120.0), (1.8e9, 120.0)]
)
def test_a_hold_lasts_as_long_as_retry_after(requested: float | None, held: float) -> None:
    """Retry-After counts if nothing gets through, up to the limit of the retry policy."""
    pace, now = busy_pace()
    refuse(pace, 3, now, requested)
    assert pace.ready_at(now) == now + held


def test_a_request_that_gets_through_ends_the_hold() -> None:
    """A response to a request in flight shows that not everything is refused, and all go on."""
    pace, now = busy_pace()
    rate = pace.rate
    refuse(pace, 5, now, 60.0)
    pace.answered(now - 0.01, now + 0.1)
    assert pace.ready_at(now + 0.1) == now + 0.1
    assert (pace.room, pace.rate) == (math.inf, rate)


def test_after_an_outage_the_speed_is_back_within_seconds() -> None:
    """Half a minute in which everything is refused, after a minute of work, costs ten seconds."""
    pace, now = run(Gateway(1e6, 1e6), 60.0)
    dead = Gateway(0.0)
    dead._tokens = 0.0
    now = send_for(30.0, pace, dead, now)
    assert dead.refused <= 10
    now = max(now, pace.ready_at(now))
    gateway = Gateway(1e6, 1e6)
    send_for(10.0, pace, gateway, now)
    assert gateway.passed >= 0.6 * 2000


def test_after_a_window_it_comes_back_at_the_average() -> None:
    """Sixty passed in a minute, so that about one a second goes when the next minute begins."""
    pace, now = run(Gateway(1e6, 1e6), 2.0)
    refuse(pace, 3, now)
    while now < START + 60:
        now = pace.ready_at(now)
        pace.refused(now, now, None)
    now = pace.ready_at(now)
    pace.answered(now, now)
    assert pace.rate < 10.0
    assert math.isinf(pace.room)


def test_time_without_requests_is_no_pause() -> None:
    """An hour without a request is no outage, and the pace is not the average over it."""
    pace, now = run(Gateway(1e6, 1e6), 70.0)
    rate = pace.rate
    refuse(pace, 3, now)
    now += 3600
    pace.answered(now, now)
    assert pace.rate >= 0.9 * min(rate, 1000.0)


def test_refusals_before_the_first_answer_teach_no_rate() -> None:
    """If nothing has got through yet, the pace begins with the first response as usual."""
    pace = pace_of()
    refuse(pace, 4, START)
    assert pace.room == 4
    now = pace.ready_at(START)
    pace.answered(now, now)
    assert (pace.rate, pace.room) == (10.0, math.inf)
    slow = pace_of(4.0)
    refuse(slow, 4, START)
    now = slow.ready_at(START)
    slow.answered(now, now)
    assert (slow.rate, slow.room) == (4.0, math.inf)


# The rate limiter


@attrs.define
class Visitors:
    """Requests that go through a rate limiter, and stay in flight until they are released."""

    limiter: RateLimiter
    clock: ManualClock
    events: list[Event]
    #: Which requests went, and when.
    entered: list[tuple[int, float]] = attrs.field(factory=list)
    inside: set[int] = attrs.field(factory=set)
    peak: int = 0
    _may_leave: dict[int, asyncio.Event] = attrs.field(factory=dict)
    tasks: dict[int, asyncio.Task[None]] = attrs.field(factory=dict)

    async def come(self, *numbers: int) -> None:
        for number in numbers:
            self._may_leave[number] = asyncio.Event()
            self.tasks[number] = asyncio.create_task(self._visit(number))
        await settle()

    async def _visit(self, number: int) -> None:
        async with self.limiter.slot() as sent_at:
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
    """Return requests that wait at a new rate limiter; its clock stands still."""
    clock, events = ManualClock(START), list[Event]()
    limiter = RateLimiter(Limits(**limits), clock, Hooks([events.append]))  # type: ignore[arg-type]
    return Visitors(limiter, clock, events)


def known_visitors() -> Visitors:
    """Return requests that wait at a rate limiter that has had a response."""
    some = visitors()
    some.limiter.answered(START)
    some.limiter.pace._go(math.inf, START)  # as after a few seconds of requests that got through
    return some


async def test_requests_in_flight_are_limited() -> None:
    """A third request waits while two are in flight, and goes when one of them is back."""
    some = visitors(requests_in_flight=2)
    await some.come(*range(6))
    assert some.inside == {0, 1}
    await some.leave(0)
    assert some.inside == {1, 2}
    await some.leave(1, 2, 3, 4, 5)
    assert (some.peak, some.limiter.in_flight) == (2, 0)


async def test_a_free_slot_is_entered_at_once() -> None:
    """A request that need not wait is sent before anything else in the loop runs."""
    some = visitors(requests_in_flight=1, requests_per_second=2.0)
    order: list[str] = []
    asyncio.get_running_loop().call_soon(order.append, "the loop")
    async with some.limiter.slot() as sent_at:
        order.append("the request")
    await settle()
    assert order == ["the request", "the loop"]
    assert sent_at == START


async def test_a_free_slot_keeps_the_pace() -> None:
    """The second request waits for its instant although none is before it."""
    some = visitors(requests_per_second=2.0)
    await some.come(0)
    await some.leave(0)
    await some.come(1)
    assert some.inside == set()
    await some.clock.advance(0.5)
    assert some.offsets == [0.0, 0.5]


async def test_few_go_before_the_first_answer() -> None:
    """Of a hundred that come at once to an unknown gateway four go, then ten per second."""
    some = visitors()
    await some.come(*range(100))
    assert some.inside == {0, 1, 2, 3}
    some.limiter.answered(START)
    await some.leave(0)
    await some.clock.advance(0.35)
    assert some.order == [0, 1, 2, 3, 4, 5, 6, 7]
    assert some.offsets[4:] == pytest.approx([0.0, 0.1, 0.2, 0.3])


async def test_first_come_first_served() -> None:
    """Requests go in the order in which they came."""
    some = visitors(requests_in_flight=1)
    await some.come(*range(5))
    for number in range(5):
        await some.leave(number)
    assert some.order == [0, 1, 2, 3, 4]


async def test_waiting_requests_are_not_overtaken() -> None:
    """A new request waits behind the others, even in the moment in which a slot comes free."""
    some = visitors(requests_in_flight=1)
    await some.come(0, 1)
    some.release(0)
    await some.come(9)
    await some.leave(1, 9)
    assert some.order == [0, 1, 9]


async def test_the_place_of_the_poller_is_second_in_line() -> None:
    """Its turn comes after one other request, and all others keep their order."""
    some = visitors(requests_in_flight=1)
    await some.come(0, 1, 2, 3)
    turn = some.limiter.line_up(soon=True)
    await some.leave(0)
    assert not turn.done()
    await some.leave(1)
    assert (turn.done(), some.order) == (True, [0, 1])
    some.limiter.leave()
    await some.leave(2)
    assert some.order == [0, 1, 2, 3]


async def test_a_cancelled_place_delays_nothing() -> None:
    """Cancelling it lets the next request go, and leaves no timer."""
    some = visitors(requests_per_second=1.0)
    await some.come(0)
    turn = some.limiter.line_up()
    turn.cancel()
    await settle()
    assert some.clock.timers == []
    await some.come(1)
    await some.clock.advance(1)
    assert some.order == [0, 1]


async def test_a_cancelled_request_delays_no_other() -> None:
    """A request that is cancelled while waiting takes no slot, and the others keep their order."""
    some = visitors(requests_in_flight=1)
    await some.come(*range(6))
    await some.give_up(1, 3, 4)
    for number in [0, 2, 5]:
        await some.leave(number)
    assert some.order == [0, 2, 5]
    assert some.tasks[3].cancelled()


async def test_a_turn_that_is_not_taken_goes_to_the_next() -> None:
    """A request that is cancelled in the moment of its turn passes the turn on."""
    some = visitors(requests_in_flight=1)
    await some.come(0, 1, 2)
    some.release(0)
    await asyncio.sleep(0)  # it is the turn of 1, which has not run yet
    assert some.limiter.in_flight == 1
    await some.give_up(1)
    assert some.inside == {2}
    assert some.tasks[1].cancelled()
    await some.leave(2)
    assert some.limiter.in_flight == 0


async def test_a_slot_comes_back_however_it_was_left() -> None:
    """An error and a cancellation inside give the slot back as a success does."""
    some = visitors(requests_in_flight=1)
    with pytest.raises(OSError, match="wire"):
        async with some.limiter.slot():
            raise OSError("wire")
    await some.come(0, 1)
    await some.give_up(0)
    assert some.inside == {1}
    await some.leave(1)
    assert some.limiter.in_flight == 0


async def test_requests_go_at_their_instants() -> None:
    """At two a second, five that came at once go half a second apart, to the instant."""
    some = visitors(requests_per_second=2.0)
    await some.come(*range(5))
    assert some.order == [0]
    await some.clock.advance(10)
    assert some.offsets == [0.0, 0.5, 1.0, 1.5, 2.0]


async def test_a_pause_allows_no_burst() -> None:
    """After minutes without a request, requests that come together still go one by one."""
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


async def test_a_late_timer_delays_one_request() -> None:
    """A timer that fires late delays one request, and not all that follow."""
    some = visitors(requests_per_second=2.0)
    await some.come(*range(4))
    some.clock.instant += 0.6  # the timer for 0.5 was not served in time
    await some.clock.advance(0.0)
    await some.clock.advance(10)
    assert some.offsets == pytest.approx([0.0, 0.6, 1.0, 1.5])


async def test_a_fast_pace_does_not_depend_on_the_steps_of_timers() -> None:
    """If requests are due more often than a timer can fire, those that were due go together."""
    some = visitors(requests_per_second=4096.0)
    await some.come(*range(9))
    some.clock.instant += 4 / 4096  # as late as epoll is
    await some.clock.advance(0.0)
    assert some.offsets == [0.0, *[4 / 4096] * 4]
    await some.clock.advance(1)
    assert some.offsets[5:] == [number / 4096 for number in range(5, 9)]


async def refuse_all(some: Visitors, *numbers: int, retry_after: float | None = None) -> None:
    """Refuse requests one after the other; each leaves before the next is refused."""
    for number in numbers:
        some.limiter.refused(some.clock.now(), retry_after)
        await some.leave(number)


async def test_one_refusal_holds_only_its_own_request() -> None:
    """Requests after a single refusal are sent at once, whatever its Retry-After."""
    some = known_visitors()
    await some.come(0, 1, 2)
    some.limiter.refused(START, 30.0)
    await some.come(3)
    assert some.order == [0, 1, 2, 3]
    assert some.events == []


async def test_if_nothing_gets_through_one_request_tries_alone() -> None:
    """After three refusals in a row nothing is sent until Retry-After is over, and then one."""
    some = known_visitors()
    await some.come(0, 1, 2)
    await refuse_all(some, 0, 1, 2, retry_after=30.0)
    await some.come(3, 4, 5)
    await some.clock.advance(29.9)
    assert some.inside == set()
    await some.clock.advance(60.0)
    assert some.inside == {3}
    some.limiter.answered(some.clock.now())
    await some.leave(3)
    await some.clock.advance(10.0)
    assert some.order == [0, 1, 2, 3, 4, 5]


async def test_a_hold_is_limited() -> None:
    """A Retry-After of 56 years counts as 90 s if 90 s are the limit."""
    clock = ManualClock(START)
    limiter = RateLimiter(Limits(), clock, Hooks(), max_hold=90.0)
    for _ in range(3):
        limiter.refused(START, 1.8e9)
    assert limiter.pace.hold_until == START + 90


async def test_a_hold_and_its_end_are_reported() -> None:
    """Listeners receive the first hold, each longer one, and that something got through."""
    some = known_visitors()
    await some.come(0, 1, 2)
    await refuse_all(some, 0, 1, 2)
    assert some.events == [PaceHeld(1.5)]
    await some.come(3)
    await some.clock.advance(1.5)
    await refuse_all(some, 3)
    assert some.events == [PaceHeld(1.5), PaceHeld(3.0)]
    await some.come(4)
    await some.clock.advance(3.0)
    some.limiter.answered(some.clock.now())
    assert some.events == [PaceHeld(1.5), PaceHeld(3.0), PaceRecovered(None)]


async def test_a_hold_that_may_end_at_once_is_not_reported() -> None:
    """While other requests are in flight one of them may get through, and nothing was held."""
    some = known_visitors()
    await some.come(*range(5))
    await refuse_all(some, 0, 1, 2)
    some.limiter.answered(START)
    await some.leave(3, 4)
    assert some.events == []


@pytest.mark.parametrize("at_most", [None, 15.0])
async def test_a_limit_is_reported_when_found_and_when_gone(at_most: float | None) -> None:
    """Listeners receive the rate that the gateway allows, at most twice, and that it is gone."""
    some = visitors(requests_per_second=at_most)
    gateway = Gateway(5.0, 1.0)

    async def send_for_seconds(seconds: float) -> None:
        end = some.clock.now() + seconds
        while some.clock.now() < end:
            async with some.limiter.slot() as sent_at:
                if gateway.admits(sent_at):
                    some.limiter.answered(sent_at)
                else:
                    some.limiter.refused(sent_at, None)
            await some.clock.advance(0.02)

    async def drive(seconds: float) -> None:
        sending = asyncio.create_task(send_for_seconds(seconds))
        while not sending.done():
            await some.clock.advance(0.02)

    await drive(60.0)
    changes = [event for event in some.events if isinstance(event, PaceChanged)]
    assert 1 <= len(changes) <= 2
    assert 3.0 < changes[-1].rate < 7.5
    gateway.rate = gateway.burst = 1e6
    some.events.clear()
    await drive(60.0)
    (recovered,) = some.events
    assert isinstance(recovered, PaceRecovered)
    assert recovered.rate is None or recovered.rate > 10.0


async def test_without_waiters_no_timer_is_left() -> None:
    """After the last waiting request has gone or was cancelled, no timer is left."""
    some = visitors(requests_per_second=1.0)
    await some.come(0, 1, 2)
    assert some.clock.timers == [START + 1]
    await some.give_up(1, 2)
    assert some.clock.timers == []
    await some.come(3)
    await some.clock.advance(5)
    assert some.order == [0, 3]
    assert some.clock.timers == []


async def test_the_repr_shows_the_state() -> None:
    """It shows requests in flight and waiting, and the pace and a hold if there are any."""
    some = visitors(requests_in_flight=2)
    assert repr(some.limiter) == "<RateLimiter 0 of 2 in flight, 0 waiting>"
    await some.come(*range(5))
    await some.give_up(3)
    assert repr(some.limiter) == "<RateLimiter 2 of 2 in flight, 2 waiting>"
    some.limiter.answered(START)
    for _ in range(3):
        some.limiter.refused(START, 12.0)
    await some.clock.advance(2)
    text = "<RateLimiter 2 of 2 in flight, 2 waiting, 10 a second, held for 10.0 s>"
    assert repr(some.limiter) == text


async def test_closing_refuses_waiting_requests() -> None:
    """A waiting request gets the error; a cancelled one and one in flight do not."""
    some = visitors(requests_in_flight=1)
    await some.come(0, 1, 2)
    some.tasks[1].cancel()
    some.limiter.close(ZeroDivisionError)
    await settle()
    assert isinstance(some.tasks[2].exception(), ZeroDivisionError)
    assert some.tasks[1].cancelled()
    assert some.inside == {0}
    await some.leave(0)
    assert some.limiter.in_flight == 0


def test_the_repr_needs_no_running_loop() -> None:
    """A client that is shown or dropped while its loop stands still has a repr."""
    limiter = RateLimiter(Limits(), LoopClock(), Hooks())
    assert repr(limiter).startswith("<RateLimiter 0 of 100 in flight, 0 waiting")
