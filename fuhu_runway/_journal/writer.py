"""The thread of a journal: it runs the queued actions, and reports their results to the loops."""

import asyncio
import contextlib
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any, TypeVar

import attrs

from fuhu_runway.hooks import LOGGER

T = TypeVar("T")


@attrs.frozen(eq=False)
class Call:
    """One action on the database."""

    action: Callable[[Any], Any]
    #: Receives the result; None if no caller waits for it.
    future: "asyncio.Future[Any] | None" = None


Calls = queue.SimpleQueue[Call | None]
"""The queue of the thread; None ends it."""


Work = Callable[[Calls, threading.Thread | None], None]
"""What the thread runs: the queue, and the thread before it, which may not have ended yet."""


class Writer(Executor):
    """The thread that runs the actions of a journal, as seen from event loops."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._todo: Calls = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._former: threading.Thread | None = None
        self._starting = threading.Lock()

    @property
    def is_open(self) -> bool:
        return self._thread is not None

    async def run(self, action: Callable[[Any], T]) -> T:
        """Return the result of an action, which runs even if the caller is cancelled."""
        # The loop's own call for threads: a loop with virtual time then waits for the result.
        loop = asyncio.get_running_loop()
        result: T = await loop.run_in_executor(self, action)  # type: ignore[arg-type]
        return result

    def submit(  # type: ignore[override]
        self, action: Callable[[Any], T]
    ) -> "asyncio.Future[T]":
        """Queue an action for the running loop."""
        # A future of asyncio, which `run_in_executor` returns unchanged. One of `concurrent` would
        # wake the loop for each action, not once for a whole transaction.
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.send(Call(action, future))
        return future

    def send(self, call: Call) -> None:
        """Queue an action, and start the thread if there is none."""
        with self._starting:
            if self._thread is None:
                # A daemon, so that a program that forgot to close still ends; what was awaited
                # is on disk by then.
                self._thread = threading.Thread(
                    target=self._work, args=(self._todo, self._former), name="journal", daemon=True
                )
                self._thread.start()
            self._todo.put(call)

    async def aclose(self) -> None:
        """End the thread once it has run what is queued; the next action starts another."""
        with self._starting:
            if self._thread is not None:
                self._former, self._thread = self._thread, None
                self._todo.put(None)
                self._todo = queue.SimpleQueue()  # for the next thread
        former = self._former
        if former is not None:
            await asyncio.to_thread(former.join)
            with self._starting:
                self._former = None if self._former is former else self._former

    def start_over(self) -> bool:
        """
        Start over in a forked child, where the thread is gone and the lock may be held.

        Returns whether there was a thread.
        """
        was_open = self._thread is not None or self._former is not None
        self.__init__(self._work)  # type: ignore[misc]
        return was_open


End = tuple[Call, Any, Exception | None]
"""An action with its result or its error."""


def report(ends: Iterable[End]) -> None:
    """Report results, each in the loop of its caller, which is woken once for all of them."""
    by_loop: dict[asyncio.AbstractEventLoop | None, list[End]] = defaultdict(list)
    for end in ends:
        future = end[0].future
        by_loop[None if future is None else future.get_loop()].append(end)
    for loop, ended in by_loop.items():
        if loop is None:
            _settle(ended)
        else:
            # The loop may have ended; then no caller waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, ended)


def _settle(ends: Iterable[End]) -> None:
    for call, result, error in ends:
        if call.future is None:
            if error is not None:
                name = type(error).__name__
                LOGGER.error("The journal could not be written (%s).", name)
        elif call.future.done():
            pass  # its caller was cancelled
        elif error is None:
            call.future.set_result(result)
        else:
            call.future.set_exception(error)
