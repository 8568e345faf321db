"""The real time a test may take: what is not done by then is ended, and shows where it hangs."""

import asyncio
import contextlib
import gc
import math
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any, cast

import attrs

# Real seconds between two attempts to end what does not let itself be ended.
AGAIN_AFTER = 1.0


class DeadlinePassed(TimeoutError):
    """What was watched was not done in time."""


class LoopBlocked(BaseException):
    """Something held the loop's thread past the deadline; no `except Exception` hides it."""


@attrs.define(eq=False)
class Deadline:
    """Ends one task, or what blocks the thread of its loop."""

    seconds: float
    task: "asyncio.Task[Any]"
    #: Kept here, and not read from the module, where tools that freeze time put their own.
    real_time: Callable[[], float] = time.monotonic
    #: What there is to say once the deadline has passed.
    report: str | None = None
    _due: float = attrs.field(init=False)
    #: How often the loop waited for its sockets, and how often it had when the alarm rang last.
    _turns: int = 0
    _turns_at_alarm: int = -1

    def __attrs_post_init__(self) -> None:
        self._due = self.real_time() + self.seconds

    def left(self) -> float:
        return max(0.0, self._due - self.real_time())

    def has_passed(self, jumped: float) -> bool:
        """
        Cancel the task if it is time to. The loop asks in each of its rounds.

        Raises:
            DeadlinePassed: Out of the loop itself, if the task is over, such as that of a fixture.
        """
        self._turns += 1
        if self.left():
            return False
        self._due = self.real_time() + AGAIN_AFTER
        tasks = asyncio.all_tasks(self.task.get_loop())
        # Its own comes first.
        stacks = Counter(map(_stack_of, sorted(tasks, key=lambda one: one is not self.task)))
        self.report = (
            f"Not done after {self.seconds:g} real seconds, and stopped. Time was virtual and "
            f"jumped over {jumped:g} s. For a test that needs longer, raise the deadline or set "
            "deadline=None; for one that waits for something outside its event loop, such as "
            "another process, set virtual_time=False. The tasks were here:\n"
        ) + "".join(f"\n{count} x\n{stack}" for stack, count in stacks.items())
        if self.task.done():
            self._due = math.inf
            raise DeadlinePassed(self.report)
        self.task.cancel()
        return True

    @contextlib.contextmanager
    def alarm(self, waits: CodeType) -> Iterator[None]:
        """
        Interrupt what blocks the loop's thread, unless the loop is in the function *waits*.

        It takes a signal to end a system call, and the main thread to get one. Where another tool
        has the signal, such as pytest-timeout, that tool ends the test.
        """

        def ring(_: int, frame: FrameType | None) -> None:
            __tracebackhide__ = True
            before, self._turns_at_alarm = self._turns_at_alarm, self._turns
            if self._turns == before and not any(
                one.f_code is waits for one, _ in traceback.walk_stack(frame)
            ):
                raise LoopBlocked(
                    f"After {self.seconds:g} real seconds this line still held the thread of the "
                    "event loop, and with it the gateway, which runs there too. Run blocking code "
                    "in asyncio.to_thread, a subprocess by asyncio.create_subprocess_exec, and an "
                    "ASGI app by httpx.ASGITransport in place of TestClient."
                )

        is_main = threading.current_thread() is threading.main_thread()
        alarm = getattr(signal, "SIGALRM", None)
        if alarm is None or not is_main or signal.getsignal(alarm) is not signal.SIG_DFL:
            yield
            return
        signal.signal(alarm, ring)
        signal.setitimer(signal.ITIMER_REAL, self.seconds, AGAIN_AFTER)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(alarm, signal.SIG_DFL)


def _stack_of(task: "asyncio.Task[Any]") -> str:
    """Return the lines that *task* is at, from its own coroutine down to what it waits for."""
    frames: list[tuple[FrameType, int]] = []
    waits = cast("Any", task.get_coro())
    while True:
        # Coroutines, generators and asynchronous generators name their frames after themselves. A
        # step of an asynchronous generator shows the generator to the garbage collector alone.
        kinds = ("cr", "gi", "ag")
        ways = ((one, kind) for one in (waits, *gc.get_referents(waits)) for kind in kinds)
        found = next((way for way in ways if hasattr(way[0], f"{way[1]}_frame")), None)
        if found is None:
            return "".join(traceback.StackSummary.extract(iter(frames)).format())
        one, kind = found
        frame = getattr(one, f"{kind}_frame")
        frames.append((frame, frame.f_lineno))
        waits = getattr(one, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
