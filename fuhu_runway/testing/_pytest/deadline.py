"""The real time that a test may take: after it, the test is stopped and shows where it hangs."""

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

# Real seconds between two attempts to stop a test that does not stop.
AGAIN_AFTER = 1.0


class DeadlinePassed(TimeoutError):
    """The task was not done in time."""


class LoopBlocked(BaseException):
    """The loop's thread was blocked past the deadline; no `except Exception` hides it."""


@attrs.define(eq=False)
class Deadline:
    """Cancels one task, or interrupts code that blocks the thread of its loop."""

    seconds: float
    task: "asyncio.Task[Any]"
    #: Kept here, since tools that freeze time replace it in its module.
    real_time: Callable[[], float] = time.monotonic
    #: The error message, once the deadline has passed.
    report: str | None = None
    _due: float = attrs.field(init=False)
    #: Rounds of the loop, now and at the last alarm.
    _rounds: int = 0
    _rounds_at_alarm: int = -1

    def __attrs_post_init__(self) -> None:
        self._due = self.real_time() + self.seconds

    def left(self) -> float:
        return max(0.0, self._due - self.real_time())

    def has_passed(self, jumped: float) -> bool:
        """
        Cancel the task at its deadline. Called in each round of the loop.

        Raises:
            DeadlinePassed: From the loop itself, if the task is done, such as that of a fixture.
        """
        self._rounds += 1
        if self.left():
            return False
        self._due = self.real_time() + AGAIN_AFTER
        tasks = asyncio.all_tasks(self.task.get_loop())
        # The task itself comes first.
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
        Interrupt code that blocks the loop's thread, unless the loop is in the function *waits*.

        Only a signal ends a system call, and only the main thread receives one. If another tool
        uses the signal, such as pytest-timeout, that tool stops the test.
        """

        def ring(_: int, frame: FrameType | None) -> None:
            __tracebackhide__ = True
            before, self._rounds_at_alarm = self._rounds_at_alarm, self._rounds
            if self._rounds == before and not any(
                one.f_code is waits for one, _ in traceback.walk_stack(frame)
            ):
                raise LoopBlocked(
                    f"After {self.seconds:g} real seconds this line still blocked the thread of "
                    "the event loop, where the gateway runs too. Run blocking code in "
                    "asyncio.to_thread, a subprocess by asyncio.create_subprocess_exec, and an "
                    "ASGI app by httpx.ASGITransport instead of TestClient."
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
    """Return the stack of *task*, from its coroutine down to what that awaits."""
    frames: list[tuple[FrameType, int]] = []
    waits = cast("Any", task.get_coro())
    while True:
        # Coroutines, generators and asynchronous generators have a prefix for their attributes.
        # A step of an asynchronous generator reveals the generator only to the garbage collector.
        kinds = ("cr", "gi", "ag")
        ways = ((one, kind) for one in (waits, *gc.get_referents(waits)) for kind in kinds)
        found = next((way for way in ways if hasattr(way[0], f"{way[1]}_frame")), None)
        if found is None:
            return "".join(traceback.StackSummary.extract(iter(frames)).format())
        one, kind = found
        frame = getattr(one, f"{kind}_frame")
        frames.append((frame, frame.f_lineno))
        waits = getattr(one, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
