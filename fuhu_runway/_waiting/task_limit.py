"""The task limit: how many unfinished tasks a client may have in one event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from fuhu_runway.errors import RunwayError, WaitAbandoned

from .poller import Poller
from .watch import Watch


class TaskLimit:
    """
    Limit how many unfinished tasks one client has.

    A task counts until its end is seen. While a submission waits for a free slot, the unfinished
    tasks are polled, so that a slot is released even if no caller awaits them.
    """

    def __init__(self, at_most: int | None, poller: Poller) -> None:
        self.at_most = at_most
        self._poller = poller
        self._outstanding: set[Watch] = set()
        self._submitting = 0
        self._first = asyncio.Lock()  # first come, first served
        self._submitted = asyncio.Event()

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
        async with self._first:
            while self._count() >= self.at_most:
                self._submitted.clear()
                waits: list[asyncio.Task[Any]] = [
                    asyncio.create_task(self._submitted.wait()),
                    *(asyncio.create_task(self._end_of(watch)) for watch in self._outstanding),
                ]
                try:
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for wait in waits:
                        wait.cancel()
                    await asyncio.gather(*waits, return_exceptions=True)
            self._submitting += 1
        try:
            yield
        finally:
            self._submitting -= 1
            self._submitted.set()

    def add(self, watch: Watch) -> None:
        """Count a task that was accepted."""
        if self.at_most is not None:
            self._outstanding.add(watch)

    def _count(self) -> int:
        return self._submitting + len(self._outstanding)

    async def _end_of(self, watch: Watch) -> None:
        # A task that can no longer be followed is not counted: it would block submissions for good.
        with suppress(RunwayError):
            try:
                await self._poller.settled(watch, None)
            except WaitAbandoned:
                if not self._poller.is_closed:
                    return  # the waits were ended, and the task goes on
        self._outstanding.discard(watch)
