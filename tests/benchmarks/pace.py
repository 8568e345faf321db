"""
How much gets through, and how much is refused: our pace, AIMD, retries only and the best sender.

A discrete-event simulation: 60 callers that always want to send, for 180 s, with 0.2 s for each
response, give or take a tenth. A refused request is retried after its Retry-After, otherwise after
full jitter as in `RetryPolicy`, without limit. `share` is the number of accepted requests divided
by that of the best sender, which knows when the gateway will accept and retries at once. Medians of
five seeds. A second table shows how two clients with one key share, by the latency of each.
Exit status 1 if a goal is missed.
"""

import heapq
import itertools
import math
import random
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import attrs

sys.path.insert(0, str(Path(__file__).parent))  # the folder may be missing in safe-path mode

from _common import table

from fuhu_runway._http.limiter import Pace
from fuhu_runway.models import RetryPolicy

CALLERS: Final = 60
LATENCY: Final = 0.2
SECONDS: Final = 180.0
SPREAD: Final = 0.1
"""By which part latencies vary; at 0, two clients can keep step, and one of them gets nothing."""
SEEDS: Final = range(1, 21)
"""With fewer, chance decides some rows."""
RETRY: Final = RetryPolicy()
NEARLY: Final = 1e-9


# Gateways


class Gateway(Protocol):
    """Decides about each request when it arrives."""

    def admits(self, now: float) -> bool: ...

    def opens_at(self, now: float) -> float:
        """Return when the next request would be admitted."""


@attrs.define
class Bucket:
    """A token bucket whose rate follows *steps* of (until, rate)."""

    steps: tuple[tuple[float, float], ...]
    burst: float | None = None
    _tokens: float = math.inf
    _filled_at: float = 0.0

    def _fill(self, now: float) -> float:
        rate = next(rate for until, rate in self.steps if now < until)
        filled = self._tokens + (now - self._filled_at) * rate
        self._tokens, self._filled_at = min(self.burst or rate, filled), now
        return rate

    def admits(self, now: float) -> bool:
        self._fill(now)
        admitted = self._tokens >= 1 - NEARLY
        self._tokens -= admitted
        return admitted

    def opens_at(self, now: float) -> float:
        rate = self._fill(now)
        return now + max(0.0, 1 - self._tokens) / rate


@attrs.define
class Window:
    """Lets *count* through in each full span of time."""

    count: int
    span: float
    _number: int = 0
    _passed: int = 0

    def _turn(self, now: float) -> None:
        number = int((now + NEARLY) // self.span)
        if number != self._number:
            self._number, self._passed = number, 0

    def admits(self, now: float) -> bool:
        self._turn(now)
        admitted = self._passed < self.count
        self._passed += admitted
        return admitted

    def opens_at(self, now: float) -> float:
        self._turn(now)
        return now if self._passed < self.count else (self._number + 1) * self.span


@attrs.define
class Stray:
    """Refuses a part of the requests, whatever their rate."""

    part: float
    rng: random.Random

    def admits(self, now: float) -> bool:
        return self.rng.random() >= self.part

    def opens_at(self, now: float) -> float:
        return now


@attrs.define
class Outage:
    """Refuses everything for a while."""

    begins: float = 60.0
    ends: float = 90.0

    def admits(self, now: float) -> bool:
        return not self.begins <= now < self.ends

    def opens_at(self, now: float) -> float:
        return now if self.admits(now) else self.ends


@attrs.define
class AtOnce:
    """Accepts a limited number of requests at once."""

    count: int
    _until: deque[float] = attrs.field(factory=deque)

    def _leave(self, now: float) -> bool:
        while self._until and self._until[0] <= now + NEARLY:
            self._until.popleft()
        return len(self._until) < self.count

    def admits(self, now: float) -> bool:
        admitted = self._leave(now)
        if admitted:
            self._until.append(now + LATENCY)
        return admitted

    def opens_at(self, now: float) -> float:
        return now if self._leave(now) else self._until[0]


# Senders


class Sender(Protocol):
    """What `Pace` is to the rate limiter."""

    room: float

    def ready_at(self, now: float) -> float: ...

    def sent(self, now: float, due_at: float | None) -> None: ...

    def answered(self, sent_at: float, now: float) -> None: ...

    def refused(self, sent_at: float, now: float, retry_after: float | None) -> None: ...


class Repeating:
    """Sends at once; only the backoff of each caller slows it down."""

    room = math.inf

    def ready_at(self, now: float) -> float:
        return now

    def sent(self, now: float, due_at: float | None) -> None:
        pass

    def answered(self, sent_at: float, now: float) -> None:
        pass

    def refused(self, sent_at: float, now: float, retry_after: float | None) -> None:
        pass


class Best(Repeating):
    """Knows when the gateway will accept."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def ready_at(self, now: float) -> float:
        return self._gateway.opens_at(now)


class Adaptive(Repeating):
    """AIMD as in botocore's adaptive mode: CUBIC by seconds, and a token bucket once throttled."""

    def __init__(self) -> None:
        self._fill_rate = self._capacity = self._tokens = math.inf
        self._filled_at = self._failed_at = self._w_max = self._k = 0.0
        self._measured = self._counted = 0.0
        self._bin = 0.0

    def ready_at(self, now: float) -> float:
        if math.isinf(self._fill_rate):
            return now
        filled = self._tokens + (now - self._filled_at) * self._fill_rate
        self._tokens, self._filled_at = min(self._capacity, filled), now
        return now + max(0.0, 1 - NEARLY - self._tokens) / self._fill_rate

    def sent(self, now: float, due_at: float | None) -> None:
        self._tokens -= 1

    def answered(self, sent_at: float, now: float) -> None:
        self._measure(now)
        if not math.isinf(self._fill_rate):
            cubic = 0.4 * (now - self._failed_at - self._k) ** 3 + self._w_max
            self._set(min(cubic, 2 * self._measured), now)

    def refused(self, sent_at: float, now: float, retry_after: float | None) -> None:
        self._measure(now)
        self._w_max = min(self._measured, self._fill_rate)
        self._k, self._failed_at = (self._w_max * 0.3 / 0.4) ** (1 / 3), now
        self._set(min(0.7 * self._w_max, 2 * self._measured), now)

    def _measure(self, now: float) -> None:
        self._counted += 1
        half_second = math.floor(now * 2) / 2
        if half_second > self._bin:
            rate = self._counted / (half_second - self._bin)
            self._measured = 0.8 * rate + 0.2 * self._measured
            self._counted, self._bin = 0.0, half_second

    def _set(self, rate: float, now: float) -> None:
        if math.isinf(self._fill_rate):
            self._tokens, self._filled_at = 0.0, now
        else:
            self.ready_at(now)
        self._fill_rate, self._capacity = max(0.5, rate), max(1.0, rate)
        self._tokens = min(self._tokens, self._capacity)


def ours(_: Gateway) -> Sender:
    """Return the pace of a client with default limits."""
    return Pace(None, RETRY.max_retry_after)


SENDERS: Final[dict[str, Callable[[Gateway], Sender]]] = {
    "ours": ours,
    "AIMD": lambda _: Adaptive(),
    "repeating": lambda _: Repeating(),
    "best": Best,
}


# The simulation


class Events:
    """What happens next, in order of time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = itertools.count()

    def at(self, instant: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._heap, (instant, next(self._number), call, arguments))

    def run(self) -> None:
        while self._heap[0][0] < SECONDS:
            self.now, _, call, arguments = heapq.heappop(self._heap)
            call(*arguments)


@attrs.define
class Client:
    """Callers behind one sender; each sends its next request when the last one was accepted."""

    events: Events
    gateway: Gateway
    sender: Sender
    rng: random.Random
    retry_after: float | None
    #: Mean time until a response, in seconds.
    latency: float
    #: How often the request of each waiting caller was refused.
    waiting: deque[int]
    accepted: int = 0
    refused: int = 0
    _in_flight: int = 0
    _timer_at: float | None = None

    def come(self, refusals: int) -> None:
        self.waiting.append(refusals)
        self.let_go()

    def let_go(self, due_at: float | None = None) -> None:
        while self.waiting and self._in_flight < self.sender.room:
            now = self.events.now
            ready_at = self.sender.ready_at(now)
            if ready_at > now:
                if ready_at != self._timer_at:
                    self._timer_at = ready_at
                    self.events.at(ready_at, self._fire, ready_at)
                return
            self._timer_at = None
            self.sender.sent(now, due_at)
            self._in_flight += 1
            back_at = now + self.latency * self.rng.uniform(1 - SPREAD, 1 + SPREAD)
            refusals = self.waiting.popleft()
            self.events.at(back_at, self._back, refusals, now, self.gateway.admits(now))

    def _fire(self, ready_at: float) -> None:
        if ready_at == self._timer_at:
            self._timer_at = None
            self.let_go(ready_at)

    def _back(self, refusals: int, sent_at: float, accepted: bool) -> None:
        now = self.events.now
        self._in_flight -= 1
        if accepted:
            self.accepted += 1
            self.sender.answered(sent_at, now)
            self.come(0)
        else:
            self.refused += 1
            self.sender.refused(sent_at, now, self.retry_after)
            self.events.at(now + self._delay(refusals), self.come, refusals + 1)
        self.let_go()

    def _delay(self, refusals: int) -> float:
        if isinstance(self.sender, Best):
            return 0.0
        longest = min(RETRY.max_delay, RETRY.first * RETRY.factor**refusals)
        return self.retry_after or self.rng.uniform(0, longest)


class Figures(NamedTuple):
    accepted: float
    refused_part: float
    #: Of the client that got the least, as a part of all.
    smallest: float


class Situation(NamedTuple):
    """What a gateway does, and what is wanted of us."""

    name: str
    make: Callable[[random.Random], Gateway]
    share: float
    refused: float
    retry_after: float | None = None
    #: The mean latency of each client, in seconds.
    latencies: tuple[float, ...] = (LATENCY,)
    smallest: float = 0.0


def bucket(rate: float, burst: float) -> Callable[[random.Random], Gateway]:
    """Return what makes a bucket that is full at first."""
    return lambda _: Bucket(((math.inf, rate),), burst)


def stray(part: float) -> Callable[[random.Random], Gateway]:
    """Return what makes a gateway that refuses this part."""
    return lambda rng: Stray(part, rng)


STEPS: Final = ((60.0, 20.0), (120.0, 2.0), (math.inf, 20.0))
SITUATIONS: Final = (
    Situation("bucket, 1 a second, burst 1", bucket(1, 1), 0.90, 0.10),
    Situation("bucket, 5 a second, burst 5", bucket(5, 5), 0.95, 0.05),
    Situation("bucket, 20 a second, burst 20", bucket(20, 20), 0.95, 0.05),
    Situation("60 in each minute", lambda _: Window(60, 60.0), 0.95, 0.15),
    Situation("480 in each 180 s", lambda _: Window(480, 180.0), 0.95, 0.15),
    Situation("1 % at random", stray(0.01), 0.97, 0.015),
    Situation("1 % at random, Retry-After 1", stray(0.01), 0.93, 0.015, 1.0),
    Situation("5 % at random", stray(0.05), 0.90, 0.06),
    Situation("5 % at random, Retry-After 1", stray(0.05), 0.77, 0.06, 1.0),
    Situation("20 % at random", stray(0.20), 0.70, 0.21),
    Situation("20 % at random, Retry-After 1", stray(0.20), 0.46, 0.21, 1.0),
    Situation("all from 60 to 90 s", lambda _: Outage(), 0.95, 0.01),
    Situation("all from 60 to 90 s, Retry-After 1", lambda _: Outage(), 0.95, 0.01, 1.0),
    Situation("20 a second, then 2, then 20", lambda _: Bucket(STEPS), 0.90, 0.08),
    Situation("at most 8 at once", lambda _: AtOnce(8), 0.85, 0.05),
    Situation("two clients, 10 a second", bucket(10, 10), 0.90, 0.08, None, (LATENCY,) * 2, 0.35),
)


TWO: Final = SITUATIONS[-1]
FAST: Final = TWO._replace(make=bucket(40, 40))


def run(situation: Situation, sender: Callable[[Gateway], Sender], seed: int) -> Figures:
    """Return what one run comes to."""
    events, rng = Events(), random.Random(seed)
    gateway = situation.make(rng)
    line = [0] * (CALLERS // len(situation.latencies))
    clients = [
        Client(events, gateway, sender(gateway), rng, situation.retry_after, latency, deque(line))
        for latency in situation.latencies
    ]
    for client in clients:
        client.let_go()
    events.run()
    accepted = [client.accepted for client in clients]
    refused = sum(client.refused for client in clients)
    return Figures(
        sum(accepted), refused / (sum(accepted) + refused), min(accepted) / sum(accepted)
    )


def medians(situation: Situation, sender: Callable[[Gateway], Sender]) -> Figures:
    """Return the median of each figure."""
    runs = [run(situation, sender, seed) for seed in SEEDS]
    return Figures(*map(statistics.median, zip(*runs, strict=True)))


def rows() -> Iterator[tuple[bool, tuple[str, ...]]]:
    """Yield whether ours holds its goals in each situation, and the row of the table."""
    for situation in SITUATIONS:
        figures = {name: medians(situation, sender) for name, sender in SENDERS.items()}
        best, our = figures["best"].accepted, figures["ours"]
        cells = [f"{f.accepted / best:.3f} / {f.refused_part:6.1%}" for f in figures.values()]
        goal = f"{situation.share:.2f} / {situation.refused:6.1%}"
        held = our.accepted / best >= situation.share and our.refused_part <= situation.refused
        held &= our.smallest >= situation.smallest
        smallest = f", smaller {our.smallest:.2f}" if situation.smallest else ""
        yield held, (situation.name, goal, *cells, ("held" if held else "MISSED") + smallest)


def pairs() -> Iterator[tuple[bool, tuple[str, ...]]]:
    """Yield whether two clients share fairly, and a row of the table, for each two latencies."""
    for latencies in itertools.product((0.1, 0.2, 0.4), repeat=2):
        found = [[run(TWO._replace(latencies=latencies), ours, seed) for seed in SEEDS]]
        found.append([run(FAST._replace(latencies=latencies), ours, seed) for seed in SEEDS])
        names = "{:g} s and {:g} s".format(*latencies)
        smallest = [sorted(one.smallest for one in runs) for runs in found]
        cells = [f"{least[0]:.2f} / {statistics.median(least):.2f}" for least in smallest]
        held = all(statistics.median(least) >= TWO.smallest for least in smallest)
        yield held, (names, *cells, "held" if held else "MISSED")


def main() -> None:
    """Print every situation for every sender, and how two clients share."""
    found, shared = [*rows()], [*pairs()]
    print(f"share / refused; {CALLERS} callers, {LATENCY:g} s for an answer, {SECONDS:g} s\n")
    print(table([("what the gateway refuses", "goal", *SENDERS, "ours"), *(r for _, r in found)]))
    print(f"\npart of the smaller of two clients, worst / median; goal {TWO.smallest}\n")
    print(table([("latencies", "10 a second", "40 a second", ""), *(r for _, r in shared)]))
    sys.exit(0 if all(held for held, _ in found + shared) else 1)


if __name__ == "__main__":
    main()
