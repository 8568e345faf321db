"""A shared pace in the memory of a test, so that many clients share it in virtual time."""

import asyncio
from collections.abc import Callable
from typing import Any

import attrs

from fuhu_runway._http.shared import Report, Share, SharedState

AHEAD = 5_000.0
"""What the clock of the store is ahead of the loop's, in seconds."""
TRIP = 0.005
"""How long a report and a grant take each, in seconds."""


class MemoryPace:
    """Shares one pace among all clients that get it, whatever their key."""

    def __init__(self) -> None:
        self.text: str | None = None
        self.exchanges = 0
        #: Workers that are dead: their reports do not arrive.
        self.dead: set[Share] = set()
        self.shares: list[Share] = []

    def join_pace(self, key: str, changed: Callable[[], object], **settings: Any) -> Share:
        loop = asyncio.get_running_loop()

        def ask(report: Report | None) -> None:
            if report is not None and share not in self.dead:
                loop.call_later(TRIP, exchange, report)

        def exchange(report: Report) -> None:
            self.exchanges += 1
            now = loop.time() + AHEAD
            there = attrs.evolve(report, delay=2 * TRIP).moved(AHEAD)
            state = SharedState.load(self.text, there, now)
            grant = state.exchange(there, now)
            self.text = state.dump()
            loop.call_later(TRIP, share.take, grant.moved(-AHEAD))

        share = Share(str(len(self.shares)), ask, changed, **settings)
        self.shares.append(share)
        return share
