"""What the threads of this process owe to an event loop, read from their variables."""

import asyncio
import concurrent.futures
import queue
import sys
import threading
from collections.abc import Iterator
from concurrent.futures.thread import _WorkItem
from typing import Any, Final

# Real seconds. Enough for a slow disk; a thread that takes longer waits for something, which may
# be the loop.
LIMIT: Final = 5.0
# Real seconds for a thread that holds the loop and no future of it: it may never answer.
HOLDER_LIMIT: Final = 1.0

# A thread in here waits for someone else's work, which may be the loop's.
WAITS: Final = concurrent.futures.Future.result.__code__
QUEUES: Final = (queue.Queue, queue.SimpleQueue)


def owed_to(loop: object) -> Iterator[tuple[object, float]]:
    """
    Yield what each thread has still to do for *loop*, and for how many real seconds to wait.

    A worker such as anyio's or aiosqlite's takes a future of the loop out of a queue, works, and
    answers by `call_soon_threadsafe`. So it owes something while its queue is not empty, while it
    holds a future that is pending, and while one who answers in another way holds the loop.
    """
    frames = sys._current_frames()  # noqa: SLF001 - there is no other way to see them
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        values = [(value, False) for value in vars(thread).values()]
        while frame is not None and frame.f_code is not WAITS:
            values += [(value, True) for value in frame.f_locals.values()]
            frame = frame.f_back
        if frame is None and thread is not threading.current_thread():
            for value, is_local in values:
                yield from _owed(loop, thread, value, is_local=is_local)


def _owed(
    loop: object, thread: threading.Thread, value: Any, *, is_local: bool
) -> Iterator[tuple[object, float]]:
    # By type() throughout: a proxy or a mock may answer isinstance() with code of its own.
    for one in value if type(value) is tuple else (value,):
        kind = type(one)
        if issubclass(kind, asyncio.Future) and not issubclass(kind, asyncio.Task):
            if one.get_loop() is loop and not one.done():
                yield one, LIMIT
        elif issubclass(kind, QUEUES):
            if not one.empty():
                yield one, LIMIT
        elif issubclass(kind, _WorkItem):
            yield one, LIMIT
        elif one is loop and is_local:
            yield thread, HOLDER_LIMIT
