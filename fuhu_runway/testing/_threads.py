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

# A thread in here waits for someone else's work, which may be the loop's.
WAITS: Final = concurrent.futures.Future.result.__code__


def owed_to(loop: object) -> dict[object, float]:
    """
    Return what each thread has still to do for *loop*, and for how many real seconds to wait.

    A worker such as anyio's or aiosqlite's takes a future of the loop out of a queue, works, and
    answers by `call_soon_threadsafe`. So it owes something while its queue is not empty, while it
    holds a future that is pending, and while one who answers in another way holds the loop. A
    thread with a loop of its own, such as a server's, does so while that has something to do.
    """
    interval = sys.getswitchinterval()
    # Else one thread could hand its work to another between the two being read.
    sys.setswitchinterval(1.0)
    try:
        return dict(_owed(loop))
    finally:
        sys.setswitchinterval(interval)


def _owed(loop: object) -> Iterator[tuple[object, float]]:
    frames = sys._current_frames()  # noqa: SLF001 - there is no other way to see them
    for thread in threading.enumerate():
        top = frame = frames.get(thread.ident or 0)
        values = [] if type(thread) is threading.Thread else [*vars(thread).values()]
        local: list[Any] = []
        while frame is not None and frame.f_code is not WAITS:
            if frame.f_globals is not vars(threading):
                local += frame.f_locals.values()
            frame = frame.f_back
        if top is None or frame is not None or thread is threading.current_thread():
            continue
        for value in values + local:
            for one in value if type(value) is tuple else (value,):
                has_work = _has_work_of(type(one))  # type: ignore[arg-type]
                if has_work is not None and has_work(one, thread, top):
                    yield one, LIMIT
        if any(one is loop for one in local):
            yield thread, HOLDER_LIMIT


@functools.lru_cache
def _has_work_of(kind: type) -> Callable[[Any, threading.Thread, FrameType], bool] | None:
    """Return what tells of an object of this *kind* whether it stands for work to be done."""
    # By its type alone: a proxy or a mock may answer isinstance() with code of its own.
    if issubclass(kind, asyncio.Future) and not issubclass(kind, asyncio.Task):
        return lambda future, _thread, _top: not future.done()
    if issubclass(kind, queue.Queue | queue.SimpleQueue):
        return lambda queue, _thread, _top: not queue.empty()
    if issubclass(kind, asyncio.SelectorEventLoop):
        return _is_busy
    return (lambda _work, _thread, _top: True) if issubclass(kind, _WorkItem) else None


def _is_busy(loop: Any, thread: threading.Thread, top: FrameType) -> bool:
    """Return whether *loop* runs in *thread*, and has more to do than wait for a timer."""
    selector = loop._selector  # noqa: SLF001 - nothing public tells what a loop has to do
    return loop._thread_id == thread.ident and (  # noqa: SLF001 - as above
        top.f_code is not type(selector).select.__code__ or bool(selector.select(0))
    )
