"""The gate against a simple model: a line, a set of those inside, and the instants they went."""

import asyncio
import math
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

from fuhu_runway._limits import SLOWEST, Gate
from fuhu_runway.hooks import Hooks
from fuhu_runway.models import Limits

NEAR = 1e-9

rates = st.none() | st.sampled_from([0.01, 0.5, 1.0, 3.0, 10.0])
spans = st.floats(min_value=0.0, max_value=30.0, allow_nan=False)


class GateMachine(RuleBasedStateMachine):
    """Requests that come, go, and give up, while answers and refusals change the pace."""

    here = Bundle("here")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = ManualClock()
        self.line: list[int] = []
        self.inside: set[int] = set()
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.doors: dict[int, asyncio.Event] = {}
        self.count = 0
        self.held_until = -math.inf
        self.free_at = -math.inf
        self.wrong: list[str] = []

    @initialize(rate=rates, at_once=st.integers(1, 4))
    def open(self, rate: float | None, at_once: int) -> None:
        self.at_most = rate
        self.at_once = at_once
        limits = Limits(requests_per_second=rate, requests_in_flight=at_once)
        self.gate = Gate(limits, self.clock, Hooks())

    def run(self, coroutine: Any) -> None:
        self.runner.run(coroutine)

    async def visit(self, number: int) -> None:
        async with self.gate.slot() as now:
            self.wrong += self.judged(number, now)
            self.line.remove(number)
            self.inside.add(number)
            self.free_at = now + 1 / self.gate.pace.rate
            try:
                await self.doors[number].wait()
            finally:
                self.inside.discard(number)

    def judged(self, number: int, now: float) -> list[str]:
        """Give what is wrong with this one going now."""
        wrong = {
            "somebody was overtaken": self.line[0] != number,
            "faster than the pace": now < self.free_at - NEAR,
            "went while all were held": now < self.held_until,
        }
        return [what for what, holds in wrong.items() if holds]

    @rule(target=here)
    def come(self) -> int:
        number, self.count = self.count, self.count + 1
        self.line.append(number)

        async def start() -> None:
            self.doors[number] = asyncio.Event()
            self.tasks[number] = asyncio.create_task(self.visit(number))
            await settle()

        self.run(start())
        return number

    @rule(number=consumes(here))
    def leave(self, number: int) -> None:
        """Leave as soon as possible: at once, or when it is one's turn."""

        async def open_the_door() -> None:
            self.doors[number].set()
            await settle()

        self.run(open_the_door())

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

    @rule(ago=spans, retry_after=st.none() | spans)
    def be_refused(self, ago: float, retry_after: float | None) -> None:
        now = self.clock.now()
        rate = self.gate.pace.rate
        self.gate.refused(now - ago, retry_after)
        self.held_until = max(self.held_until, now + (retry_after or 0.0))
        if self.gate.pace.rate < rate or self.gate.pace.slowed_at == now:
            # The next goes a whole gap later, at the rate that is left.
            self.free_at = max(self.free_at, now + 1 / self.gate.pace.rate)

    @rule(times=st.integers(1, 100))
    def be_answered(self, times: int) -> None:
        for _ in range(times):
            self.gate.answered()

    @precondition(lambda self: self.line)
    @rule()
    def everyone_leaves(self) -> None:
        """With room for all, and time enough, nobody is left waiting."""

        async def all_doors() -> None:
            for door in self.doors.values():
                door.set()
            await self.clock.advance(60.0 + len(self.line) / self.slowest)

        self.run(all_doors())
        assert not self.line
        assert not self.inside

    @property
    def slowest(self) -> float:
        return SLOWEST if self.at_most is None else min(SLOWEST, self.at_most)

    @invariant()
    def whoever_went_might_go(self) -> None:
        assert self.wrong == []

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.gate.in_flight == len(self.inside) <= self.at_once
        assert self.slowest <= self.gate.pace.rate <= (self.at_most or math.inf)
        assert f"{len(self.line)} waiting" in repr(self.gate)

    @invariant()
    def nobody_waits_who_may_go(self) -> None:
        if self.line and len(self.inside) < self.at_once:
            assert self.clock.now() < max(self.held_until, self.free_at) + NEAR

    @invariant()
    def nothing_is_left_to_happen_for_nobody(self) -> None:
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


class TestGate(GateMachine.TestCase):
    """
    Whatever comes, goes, gives up, is answered or refused, the gate does as the model.

    Nobody is overtaken, nobody is too fast, no slot is lost, and nobody waits without a reason.
    """

    settings = settings(max_examples=60, stateful_step_count=40)
