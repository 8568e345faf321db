"""The rate limiter against a simple model: a line, those in flight, and when each went."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)
from support.clock import ManualClock, settle

from fuhu_runway._http.limiter import RateLimiter
from fuhu_runway.hooks import Hooks
from fuhu_runway.models import Limits

NEAR = 1e-9

rates = st.none() | st.sampled_from([0.01, 0.5, 1.0, 3.0, 10.0])
spans = st.floats(min_value=0.0, max_value=30.0, allow_nan=False)


class LimiterMachine(RuleBasedStateMachine):
    """Requests arrive, leave and are cancelled, while responses and refusals change the pace."""

    here = Bundle("here")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = ManualClock()
        self.line: list[int] = []
        self.inside: set[int] = set()
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.exits: dict[int, asyncio.Event] = {}
        self.count = 0
        self.went_at = -math.inf
        #: The highest rate since the last request, which decides when the next one may be sent.
        self.fastest = math.inf
        self.wrong: list[str] = []

    @initialize(rate=rates, at_once=st.integers(1, 4))
    def open(self, rate: float | None, at_once: int) -> None:
        self.at_most = rate
        self.at_once = at_once
        limits = Limits(requests_per_second=rate, requests_in_flight=at_once)
        self.limiter = RateLimiter(limits, self.clock, Hooks())

    def run(self, coroutine: Any) -> None:
        self.runner.run(coroutine)

    async def visit(self, number: int) -> None:
        async with self.limiter.slot() as now:
            self.wrong += self.judged(number, now)
            self.line.remove(number)
            self.inside.add(number)
            self.went_at, self.fastest = now, self.limiter.pace.rate
            try:
                await self.exits[number].wait()
            finally:
                self.inside.discard(number)

    def judged(self, number: int, now: float) -> list[str]:
        """Return why this request must not be sent now; None if it may be."""
        wrong = {
            "another request was overtaken": self.line[0] != number,
            "faster than the pace": now < self.went_at + 0.5 / self.fastest - NEAR,
            "sent during a hold": now < self.limiter.pace.hold_until,
            "more than may be in flight": len(self.inside) >= self.limiter.room,
        }
        return [what for what, holds in wrong.items() if holds]

    @rule(target=here)
    def come(self) -> int:
        number, self.count = self.count, self.count + 1
        self.line.append(number)

        async def start() -> None:
            self.exits[number] = asyncio.Event()
            self.tasks[number] = asyncio.create_task(self.visit(number))
            await settle()

        self.run(start())
        return number

    @rule(number=consumes(here))
    def leave(self, number: int) -> None:
        """Leave as soon as possible: at once, or when the turn comes."""

        async def open_exit() -> None:
            self.exits[number].set()
            await settle()

        self.run(open_exit())

    @rule(number=consumes(here))
    def give_up(self, number: int) -> None:
        if number in self.line:
            self.line.remove(number)

        async def cancel() -> None:
            self.tasks[number].cancel()
            await settle()

        self.run(cancel())

    @rule(seconds=spans)
    def let_time_pass(self, seconds: float) -> None:
        self.run(self.clock.advance(seconds))

    @rule(ago=spans, retry_after=st.none() | spans, times=st.integers(1, 4))
    def be_refused(self, ago: float, retry_after: float | None, times: int) -> None:
        self.run(self.receive(lambda now: self.limiter.refused(now - ago, retry_after), times))

    @rule(ago=spans, times=st.integers(1, 100))
    def be_answered(self, ago: float, times: int) -> None:
        self.run(self.receive(lambda now: self.limiter.answered(now - ago), times))

    async def receive(self, record: Callable[[float], None], times: int) -> None:
        """Record responses to requests that went in another place of the same limiter."""
        for _ in range(times):
            self.limiter.in_flight += 1
            record(self.clock.now())
            self.fastest = max(self.fastest, self.limiter.pace.rate)
            self.limiter.leave()
            # The request that is sent now records its pace before the next answer changes it.
            await settle()

    @precondition(lambda self: self.line)
    @rule()
    def all_leave(self) -> None:
        """With room and time for all, no request is left waiting."""

        async def all_exits() -> None:
            for one in self.exits.values():
                one.set()
            while self.line:
                now = self.clock.now()
                await self.clock.advance(self.limiter.pace.ready_at(now) - now)

        self.run(all_exits())
        assert not self.line
        assert not self.inside

    @invariant()
    def no_request_was_sent_too_early(self) -> None:
        assert self.wrong == []

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.limiter.in_flight == len(self.inside) <= self.at_once
        assert 0 < self.limiter.pace.rate <= (self.at_most or math.inf)
        assert f"{len(self.line)} waiting" in repr(self.limiter)

    @invariant()
    def no_request_waits_without_a_reason(self) -> None:
        if self.line and len(self.inside) < self.limiter.room:
            assert self.limiter.pace.ready_at(self.clock.now()) > self.clock.now()

    @invariant()
    def no_timer_is_left_without_waiters(self) -> None:
        assert len(self.clock.timers) <= 1
        if not self.line:
            assert self.clock.timers == []

    def teardown(self) -> None:
        async def cancel_all() -> None:
            for task in self.tasks.values():
                task.cancel()
            await asyncio.gather(*self.tasks.values(), return_exceptions=True)

        self.run(cancel_all())
        self.runner.close()


class TestLimiter(LimiterMachine.TestCase):
    """
    The limiter behaves as the model, whatever is sent, cancelled, answered or refused.

    No request is overtaken, too early, or waiting without a reason, and no slot is lost.
    """

    settings = settings(max_examples=60, stateful_step_count=40)
