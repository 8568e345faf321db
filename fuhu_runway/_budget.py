"""The budget of a batch: how many points it may still spend."""

import asyncio
from collections import Counter

import attrs

Kind = tuple[str, str | None, int | None]


@attrs.define(eq=False)
class Budget:
    """
    The points that a batch may still spend.

    The cost of a job is known only once one of its kind has ended. So the first of each kind runs
    alone, and later ones are expected to cost as much as the most expensive one so far.
    """

    at_most: float
    spent: float = 0.0
    _dearest: dict[Kind, float] = attrs.field(factory=dict)
    _running: Counter[Kind] = attrs.field(factory=Counter)
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def take(self, kind: Kind) -> bool:
        """Wait until a job of this kind may start (True), or no more may (False)."""
        while True:
            cost = self._dearest.get(kind)
            if self.spent + (cost or 0.0) > self.at_most or self.spent >= self.at_most:
                return False
            bound = sum(self._dearest.get(one, 0.0) * n for one, n in self._running.items())
            left = self.at_most - self.spent - bound
            alone = not self._running[kind]
            if (alone and left > 0) if cost is None else cost <= left:
                break
            self._changed.clear()
            await self._changed.wait()
        self._running[kind] += 1
        return True

    def put_back(self, kind: Kind, cost: float | None) -> None:
        """Record the cost of a job that has ended; None if unknown: the highest is assumed."""
        self._running[kind] -= 1
        known = self._dearest.get(kind, 0.0)
        self.spent += known if cost is None else cost
        if cost:
            self._dearest[kind] = max(known, cost)
        self._changed.set()
