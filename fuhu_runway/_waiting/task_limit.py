"""The task limit: how many unfinished tasks a client may have in one event loop."""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final

from fuhu_runway.errors import RunwayError, WaitAbandoned

from .poller import Poller
from .watch import Watch

LONGEST_HOLD: Final = 3600.0
"""How long a running task may keep submissions waiting, in seconds; gateways leave some running
without end. If less, a gateway's own limit may be exceeded, and it refuses what is too much."""


class TaskLimit:
    """
    Limit how many unfinished tasks one client has.

    A task counts until its end is seen, or until submissions have waited for it for an hour. While
    a submission waits for a free slot, the unfinished tasks are polled, so that a slot is released
    even if no caller awaits them.
    """

    def __init__(self, at_most: int | None, poller: Poller) -> None:
        self.at_most = at_most
        self._poller = poller
        self._outstanding: set[Watch] = set()
        self._submitting = 0
        self._first = asyncio.Lock()  # first come, first served
        self._changed = asyncio.Event()
        #: How many submissions wait for a slot or have just got one.
        self._held = 0
        #: While there are any, the wait for the end of each unfinished task.
        self._waits: dict[Watch, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def one_more(self, held: Callable[[int], object]) -> AsyncIterator[None]:
        """
        Wait until one more task may be submitted, and count that submission.

        If there is no free slot at once, *held* is called with the number of tasks.
        """
        if self.at_most is None:
            yield
            return
        if self._first.locked() or self._count() >= self.at_most:
            held(self._count())
        self._held += 1
        try:
            async with self._first:
                while self._count() >= self.at_most:
                    self._changed.clear()
                    self._follow()
                    await self._changed.wait()
                self._submitting += 1
        finally:
            self._held -= 1
            if not self._held:
                for wait in self._waits.values():
                    wait.cancel()
                self._waits = {}
        try:
            yield
        finally:
            self._submitting -= 1
            self._changed.set()

    def add(self, watch: Watch) -> None:
        """Count a task that was accepted."""
        if self.at_most is not None:
            self._outstanding.add(watch)

    def _count(self) -> int:
        return self._submitting + len(self._outstanding)

    def _follow(self) -> None:
        """Wait for the end of every unfinished task that is not waited for."""
        for watch in self._outstanding - self._waits.keys():
            wait = self._waits[watch] = asyncio.get_running_loop().create_task(
                self._end_of(watch), context=contextvars.Context()
            )
            wait.add_done_callback(partial(self._ended, watch))

    def _ended(self, watch: Watch, wait: "asyncio.Task[None]") -> None:
        if self._waits.get(watch) is wait:
            del self._waits[watch]
        if not wait.cancelled():
            wait.exception()  # asyncio reports an error that is never read
        self._changed.set()

    async def _end_of(self, watch: Watch) -> None:
        # A task that cannot be followed, or does not end, would block submissions for good.
        with suppress(RunwayError):
            try:
                await self._poller.settled(watch, LONGEST_HOLD)
            except WaitAbandoned:
                if not self._poller.is_closed:
                    return  # the waits were ended, and the task goes on
        self._outstanding.discard(watch)
