"""Find the unfinished work of other threads for an event loop, from their variables."""

import asyncio
import concurrent.futures
import functools
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.thread import _WorkItem
from types import FrameType
from typing import Any, Final

# Real seconds. Enough for a slow disk; a thread that takes longer may be waiting for the loop.
LIMIT: Final = 5.0
# Real seconds for a thread that holds the loop but none of its futures: it may never respond.
HOLDER_LIMIT: Final = 1.0

# Real seconds before each jump for a thread to wake up. From Python 3.13 on, an item that a
# SimpleQueue hands to a waiting thread is for a moment in neither of them.
HANDOVER: Final = 0.005 if sys.version_info >= (3, 13) else 0.0

# How often threads are read again if they were running meanwhile.
ATTEMPTS: Final = 5

# A thread in this function waits for other work, which may be the loop's.
WAITS: Final = concurrent.futures.Future.result.__code__
# Kept here, since nest_asyncio replaces the class for the whole process.
FUTURE: Final = asyncio.Future
# The types that stand for work in a variable of a thread, and when they do.
HAS_WORK: Final[dict[Any, Callable[[Any], bool]]] = {
    FUTURE: lambda future: not future.done(),
    queue.Queue: lambda works: not works.empty(),
    queue.SimpleQueue: lambda works: not works.empty(),
    _WorkItem: lambda _: True,
}


def owed_to(loop: object) -> tuple[dict[object, float], float]:
    """
    Return the work that threads owe to *loop*, with the real seconds to wait for each.

    The second value is the time to wait after that, so that a thread can start further work.

    A worker such as anyio's or aiosqlite's takes a future of the loop out of a queue, works, and
    responds by `call_soon_threadsafe`. So it owes something while its queue is not empty, while it
    holds a pending future, or while it holds the loop to respond in another way. A thread with
    another loop, such as a server's, owes something while that loop is busy.
    """
    before: dict[int, tuple[FrameType, int]] = {}
    owed: dict[object, float] = {}
    sleeping: list[Any] = []
    attempts, has_moved = 0, True
    # A thread that was running meanwhile may have passed its work to one that was read before.
    while has_moved and not owed and attempts < ATTEMPTS:
        attempts += 1
        before, sleeping = _places(), []
        for thread in threading.enumerate():
            if thread.ident in before:
                top, _ = before[thread.ident]
                owed |= dict(_owed_by(thread, top, loop, sleeping))
        has_moved = before != _places()
    # Last, since it lets other threads go on.
    owed |= {one: LIMIT for one in sleeping if one._selector.select(0)}  # noqa: SLF001
    return owed, HANDOVER if before else 0.0


def _places() -> dict[int, tuple[FrameType, int]]:
    frames = sys._current_frames()  # noqa: SLF001 - there is no other way to see them
    del frames[threading.get_ident()]
    return {ident: (frame, frame.f_lasti) for ident, frame in frames.items()}


def _owed_by(
    thread: threading.Thread, top: FrameType, loop: object, sleeping: list[Any]
) -> Iterator[tuple[object, float]]:
    """Yield the work that *thread* owes to *loop*, and add its own idle loop to *sleeping*."""
    local: list[Any] = []
    frame: FrameType | None = top
    while frame is not None:
        if frame.f_code is WAITS:
            return
        if frame.f_globals is not vars(threading):
            local += frame.f_locals.values()
        frame = frame.f_back
    # The attributes of a thread that is still starting hold its arguments.
    for value in [*vars(thread).values(), *local]:
        for one in value if type(value) is tuple else (value,):
            # By its type alone: isinstance() may run code of a proxy or a mock.
            kind = _kind_of(type(one))  # type: ignore[arg-type]
            if kind in HAS_WORK and HAS_WORK[kind](one):
                yield one, LIMIT
            elif kind is asyncio.SelectorEventLoop and one._thread_id == thread.ident:  # noqa: SLF001
                is_selecting = top.f_code is type(one._selector).select.__code__  # noqa: SLF001
                if is_selecting and not one._ready:  # noqa: SLF001
                    sleeping.append(one)
                else:
                    yield one, LIMIT
    if any(one is loop for one in local):
        yield thread, HOLDER_LIMIT


@functools.lru_cache
def _kind_of(kind: type) -> type | None:
    # The mark by which asyncio itself knows a future of any class.
    if hasattr(kind, "_asyncio_future_blocking"):
        return None if hasattr(kind, "get_coro") else FUTURE
    known = (*HAS_WORK, asyncio.SelectorEventLoop)
    return next((one for one in known if issubclass(kind, one)), None)
