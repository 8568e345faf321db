"""
Virtual time: a loop's clock jumps to the next timer as soon as nothing else can happen.

Rule 1. Time jumps only after every callback has run, and while no socket of the loop is ready.
Rule 2. Bytes in transit between two sockets of this machine are waited for, by sending a byte of
    our own after them.
Rule 3. Work of a thread for this loop takes no virtual time. The loop waits for each piece of it up
    to a limit of real time, so that a thread which waits for the loop does not block both.
Rule 4. For invisible work, such as that of another process, there is *patience*: real time before
    each jump.
Rule 5. In a loop that never becomes idle, a little time passes, as in real time: code may wait
    until an instant is over, not only reached. After very many rounds, time jumps.
Rule 6. The loop's time never goes back, neither when virtual time begins nor when it ends.
"""

import asyncio
import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from unittest import mock

import attrs

from .deadline import Deadline, DeadlinePassed
from .threads import LIMIT, owed_to

# Real seconds that a test may take by default. If raised, hanging tests are reported later.
DEADLINE: Final = 60.0
# Real seconds between two checks of the threads; their responses wake the loop at once.
TICK: Final = 0.002
# Real seconds for a thread of a pool to start its work.
PICK_UP: Final = 0.2

# Rounds of a busy loop without events, more than in any finite chain of callbacks. Each further
# round takes a microsecond.
BUSY_ROUNDS: Final = 1000
ROUND_TAKES: Final = 1e-6
# After this many rounds, about a tenth of a real second, the loop only waits for time to pass.
ENDLESS_ROUNDS: Final = 10_000

# The time of a loop without timers begins at a multiple of this, so that the instants of a test are
# the same to the last bit in each run. A power of two, larger than most delays: so the sum of an
# instant and a delay is exact where possible.
ROUND: Final = 2.0**20


@contextlib.contextmanager
def virtual_time(*, patience: float = 0.0, deadline: float | None = DEADLINE) -> Iterator[None]:
    """
    Let the running loop's time jump over all waiting; a block inside another changes nothing.

    Only the loop's time is virtual: `asyncio.sleep`, timeouts, `loop.call_later` and `loop.time()`,
    and with them the simulator and the client. `time.time`, `time.monotonic`, `datetime`, other
    threads, other loops and other processes use real time.

    Args:
        patience: Real seconds without activity before each jump, for activity that this loop
            cannot see, such as that of a server in another process.
        deadline: Real seconds after which the task in the block is cancelled; None means never.

    Raises:
        RuntimeError: No asyncio loop is running, or its time cannot be made virtual.
        TimeoutError: The deadline passed. It shows where each task was waiting.
    """
    if virtual_clock() is not None:
        yield
        return
    loop = asyncio.get_running_loop()
    clock = getattr(loop.time, "__self__", None)
    if not isinstance(clock, VirtualClock):
        if not isinstance(loop, asyncio.BaseEventLoop) or not hasattr(loop, "_selector"):
            kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
            raise RuntimeError(
                f"virtual time needs a loop of asyncio itself, and this one is a {kind}; use "
                "asyncio's for this test, or real time: virtual_time=False"
            )
        clock = VirtualClock(loop)
        # It stays when time is real again: a loop's time must not go back.
        loop.time = clock.time  # type: ignore[method-assign]
    with clock.virtual(patience), watched(deadline):
        yield


def virtual_clock() -> "VirtualClock | None":
    """Return the clock of the running loop if its time is virtual now."""
    clock = getattr(asyncio.get_running_loop().time, "__self__", None)
    return clock if isinstance(clock, VirtualClock) and clock.is_virtual else None


@contextlib.contextmanager
def watched(seconds: float | None) -> Iterator[None]:
    """
    Cancel the running task after these real *seconds*, if time is virtual.

    Raises:
        DeadlinePassed: It was not done by then. The error shows where each task was waiting.
    """
    clock, task = virtual_clock(), asyncio.current_task()
    if clock is None or not seconds or task is None:
        yield
        return
    before, clock.deadline = clock.deadline, Deadline(seconds, task)
    try:
        with clock.deadline.alarm(_Select.__call__.__code__):
            yield
    except asyncio.CancelledError:
        if clock.deadline.report is None:
            raise
        task.uncancel()
    finally:
        report, clock.deadline = clock.deadline.report, before
    if report is not None:
        raise DeadlinePassed(report)


@attrs.define(eq=False)
class VirtualClock:
    """The time of one loop, virtual for a while and real after that."""

    _loop: Any
    #: Kept here, since tools that freeze time replace it in its module.
    _real_time: Callable[[], float] = time.monotonic
    #: The loop's time minus the real time.
    _ahead: float = attrs.field(init=False)
    #: The current instant; None while time is real.
    _now: float | None = None
    _was_virtual: bool = False
    #: Seconds that were jumped over.
    jumped: float = 0.0
    patience: float = 0.0
    deadline: Deadline | None = None
    #: Rounds of the loop since the last event or jump.
    rounds: int = 0
    _endless: int = ENDLESS_ROUNDS
    _idle_at: float = 0.0
    #: Work of executors for the loop, with the real seconds to wait for it.
    _work: dict[object, float] = attrs.field(factory=dict)
    #: Work of all threads for the loop, with the real second until which to wait for it.
    _until: dict[object, float] = attrs.field(factory=dict)
    #: The real second at which threads had no work left; None if they have, or after a jump.
    _handed_over_at: float | None = None

    def __attrs_post_init__(self) -> None:
        self._ahead = self._loop.time() - self._real_time()

    @property
    def is_virtual(self) -> bool:
        return self._now is not None

    def time(self) -> float:
        """Return the loop's time, in place of `loop.time`."""
        return self._real_time() + self._ahead if self._now is None else self._now

    @contextlib.contextmanager
    def virtual(self, patience: float) -> Iterator[None]:
        """Let time jump."""
        selector, submit = self._loop._selector, self._loop.run_in_executor  # noqa: SLF001

        def run_in_executor(
            executor: Any, function: Callable[..., Any], *args: Any
        ) -> "asyncio.Future[Any]":
            work: asyncio.Future[Any] = submit(executor, function, *args)
            # Once begun, the work of a standard pool is visible in its threads.
            is_standard = executor is None or type(executor) is ThreadPoolExecutor
            self._work[work] = PICK_UP if is_standard else LIMIT
            work.add_done_callback(lambda done: self._work.pop(done, None))
            return work

        with contextlib.ExitStack() as stack:
            probe = stack.enter_context(contextlib.closing(LoopbackProbe()))
            now = self.time()
            # Timers that were set before would be due at once.
            timers = self._loop._scheduled  # noqa: SLF001
            if not self._was_virtual and all(timer.cancelled() for timer in timers):
                now = math.ceil(now / ROUND) * ROUND
            self._now, self._was_virtual = now, True
            self.patience, self._idle_at = patience, now
            stack.callback(self._end)
            select = _Select(self, selector.select, probe)
            stack.enter_context(mock.patch.object(selector, "select", select))
            stack.enter_context(mock.patch.object(self._loop, "run_in_executor", run_in_executor))
            # In debug mode, asyncio would report the jump to a round time as a slow callback.
            never = mock.patch.object(self._loop, "slow_callback_duration", math.inf)
            stack.enter_context(never)
            yield

    def _end(self) -> None:
        self._ahead = self.time() - self._real_time()
        self._now = None
        self._work.clear()
        self._until.clear()

    def jump(self, seconds: float) -> None:
        self._pass_to(self.time() + seconds)
        self._idle_at = self.time()
        self.rounds, self._endless = 0, ENDLESS_ROUNDS

    def _pass_to(self, instant: float) -> None:
        # asyncio adds the clock's resolution to find due timers, which may change nothing here.
        if instant + self._loop._clock_resolution == instant:  # noqa: SLF001
            instant = math.nextafter(instant, math.inf)
        self.jumped += instant - self.time()
        self._now = instant
        self._handed_over_at = None

    def is_endless(self) -> bool:
        """Count one round of a busy loop, and return whether there were too many."""
        self.rounds += 1
        if self.rounds > BUSY_ROUNDS:
            self._now = self.time() + ROUND_TAKES
        return self.rounds > self._endless

    def skip(self) -> None:
        """Jump to the next timer of a busy loop; if it has none, let time pass faster."""
        now, timers = self.time(), self._loop._scheduled  # noqa: SLF001
        self._endless = BUSY_ROUNDS
        if timers and timers[0].when() > now:
            self._pass_to(timers[0].when())
            self.rounds = 0
        else:
            self._pass_to(now + (now - self._idle_at) / 100)

    def thread_time(self) -> float:
        """Return the real seconds to wait for threads."""
        now = self._real_time()
        owed, handover = owed_to(self._loop)
        owed.update(self._work)
        self._until = {one: self._until.get(one, now + limit) for one, limit in owed.items()}
        left = max(0.0, max(self._until.values(), default=0.0) - now)
        if left or self._handed_over_at is None:
            self._handed_over_at = None if left else now
        # Before each jump, threads get time to start further work.
        return left or max(0.0, (self._handed_over_at or now) + handover - now)


class LoopbackProbe:
    """
    A connection over loopback, to wait for bytes in transit.

    Bytes on loopback arrive in the order in which they were sent. So when the last one has
    arrived, all others have.
    """

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:
            # Not by `create_connection`, which leaves its socket open if an audit hook raises.
            near = stack.enter_context(socket.socket())
            near.connect(server.getsockname())
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._near, (self._far, _) = near, server.accept()
            stack.pop_all()

    def wait(self) -> None:
        """Wait until all bytes that were sent before have arrived."""
        self._near.sendall(b".")
        self._far.recv(1)

    def close(self) -> None:
        self._near.close()
        self._far.close()


@attrs.frozen
class _Select:
    """The replacement for a selector's `select`, the only place where a loop waits."""

    clock: VirtualClock
    real: Callable[[float | None], list[Any]]
    probe: LoopbackProbe

    def __call__(self, timeout: float | None = None) -> list[Any]:
        clock, events = self.clock, self.real(0)
        if clock.deadline is not None and clock.deadline.has_passed(clock.jumped):
            return events
        if timeout is None and not events:
            # Without timers, only an event from outside can wake the loop.
            return self.real(None if clock.deadline is None else clock.deadline.left())
        pause = max(0.0, timeout or 0.0)
        if not (events or pause or clock.is_endless()):
            return []
        if events := events or self._late():
            clock.rounds = 0
            return events
        if pause:
            clock.jump(pause)
        else:
            clock.skip()
        return []

    def _late(self) -> list[Any]:
        """Return the events that threads, bytes in transit and patience bring."""
        events: list[Any] = []
        # Twice if there are threads, since work that moves between two variables is in neither.
        passes = min(2, threading.active_count())
        while passes and not events:
            if left := self.clock.thread_time():
                events = self.real(min(left, TICK))
            else:
                passes -= 1
                self.probe.wait()
                events = self.real(0)
        return events or (self.real(self.clock.patience) if self.clock.patience else [])
