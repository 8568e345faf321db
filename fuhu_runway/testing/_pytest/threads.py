"""What the other threads of this process owe to an event loop, read from their variables."""

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

# Real seconds. Enough for a slow disk; a thread that takes longer waits for something, which may
# be the loop.
LIMIT: Final = 5.0
# Real seconds for a thread that holds the loop and no future of it: it may never answer.
HOLDER_LIMIT: Final = 1.0

# Real seconds before each jump for a thread to wake up. From Python 3.13 on, a SimpleQueue hands
# what is put to a thread that waits for it, and for that moment neither of them shows it.
HANDOVER: Final = 0.005 if sys.version_info >= (3, 13) else 0.0

# How often threads are read that go on while they are.
ATTEMPTS: Final = 5

# A thread in here waits for someone else's work, which may be the loop's.
WAITS: Final = concurrent.futures.Future.result.__code__
# What stands for work in a variable of a thread, and when it does.
HAS_WORK: Final[dict[Any, Callable[[Any], bool]]] = {
    asyncio.Future: lambda future: not future.done(),
    queue.Queue: lambda works: not works.empty(),
    queue.SimpleQueue: lambda works: not works.empty(),
    _WorkItem: lambda _: True,
}


def owed_to(loop: object) -> tuple[dict[object, float], float]:
    """
    Return what threads have still to do for *loop*, with the real seconds to wait for each.

    The second value is how many to wait after that, so that a thread can wake up for more.

    A worker such as anyio's or aiosqlite's takes a future of the loop out of a queue, works, and
    answers by `call_soon_threadsafe`. So it owes something while its queue is not empty, while it
    holds a future that is pending, and while one who answers in another way holds the loop. A
    thread with a loop of its own, such as a server's, does so while that has something to do.
    """
    before: dict[int, tuple[FrameType, int]] = {}
    owed: dict[object, float] = {}
    sleeping: list[Any] = []
    attempts, has_moved = 0, True
    # Where a thread went on meanwhile, it may have handed its work to one that was read before.
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
    """Yield what *thread* owes to *loop*; a loop that waits in it goes to *sleeping*."""
    local: list[Any] = []
    frame: FrameType | None = top
    while frame is not None:
        if frame.f_code is WAITS:
            return
        if frame.f_globals is not vars(threading):
            local += frame.f_locals.values()
        frame = frame.f_back
    # Also what a thread was given that is only starting.
    for value in [*vars(thread).values(), *local]:
        for one in value if type(value) is tuple else (value,):
            # By its type alone: a proxy or a mock may answer isinstance() with code of its own.
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
    """Return what an object of this *kind* is to us."""
    if issubclass(kind, asyncio.Task):
        return None
    known = (*HAS_WORK, asyncio.SelectorEventLoop)
    return next((one for one in known if issubclass(kind, one)), None)
