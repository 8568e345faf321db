"""
Virtual time: a loop's clock that jumps to the next timer as soon as nothing else can happen.

Rule 1. Time moves only while every callback has run and no socket of the loop has anything to say.
Rule 2. Bytes that are under way between two sockets of this machine are waited for, by sending a
    byte of our own after them.
Rule 3. Work of a thread for this loop takes no time: it is waited for, each piece of it within a
    limit of real time, so that a thread which waits for the loop does not stop both.
Rule 4. What cannot be seen, such as another process, gets *patience*: real time before each jump.
Rule 5. A loop that is busy with itself for long sees a little time pass, as it would in real time:
    what waits for an instant to be over, and not only reached, would wait for ever. After very
    long it is taken to wait for nothing but time, and time jumps.
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

import attrs

from .deadline import Deadline, DeadlinePassed
from .threads import LIMIT, owed_to

# Real seconds a test may take by default. Larger: a test that hangs is known later.
DEADLINE: Final = 60.0
# Real seconds between two checks of what threads do; their answers wake the loop at once.
TICK: Final = 0.002
# Real seconds for a thread of a pool to take its work.
PICK_UP: Final = 0.2

# Rounds without news from outside: more than any chain of callbacks that leads somewhere. Each
# further one takes a microsecond.
BUSY_ROUNDS: Final = 1000
ROUND_TAKES: Final = 1e-6
# After these, a tenth of a real second, the loop waits for nothing but time.
ENDLESS_ROUNDS: Final = 10_000

# A loop in which nothing is planned begins at a multiple of this, so that the instants of a test
# are the same to the last bit whenever it runs. A power of two, and more than most delays: then
# the sum of an instant and a delay is exact where it can be.
ROUND: Final = 2.0**20


@contextlib.contextmanager
def virtual_time(*, patience: float = 0.0, deadline: float | None = DEADLINE) -> Iterator[None]:
    """
    Let the running loop's time jump over all waiting; a block inside another changes nothing.

    Only the time of the loop is moved: `asyncio.sleep`, timeouts, `loop.call_later` and
    `loop.time()`, and with them the simulator and the client. `time.time`, `time.monotonic`,
    `datetime`, other threads, other loops and other processes keep the time of the clock on the
    wall.

    Args:
        patience: Real seconds without news before each jump. For what this loop cannot see and
            has to wait for all the same, such as a server in another process.
        deadline: Real seconds after which the task in the block is cancelled; None is never.

    Raises:
        RuntimeError: No loop of asyncio runs, or one of a kind whose time cannot be moved.
        TimeoutError: The deadline passed. It shows where each task was waiting.
    """
    clock = _clock_of(asyncio.get_running_loop())
    if clock.is_virtual:
        yield
        return
    with clock.virtual(patience), watched(deadline):
        yield


@contextlib.contextmanager
def watched(seconds: float | None) -> Iterator[None]:
    """
    Cancel the running task after these real *seconds*, if time is virtual here.

    Raises:
        DeadlinePassed: It was not done by then. The error shows where each task was waiting.
    """
    clock = getattr(asyncio.get_running_loop().time, "__self__", None)
    task = asyncio.current_task()
    if not (isinstance(clock, VirtualClock) and clock.is_virtual and seconds and task):
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
    #: Kept here, and not read from the module, where tools that freeze time put their own.
    _real_time: Callable[[], float] = time.monotonic
    #: How far the loop's time has run ahead of the real one.
    _ahead: float = attrs.field(init=False)
    #: The instant it is; None while time is real.
    _now: float | None = None
    _was_virtual: bool = False
    #: Seconds that were jumped over.
    jumped: float = 0.0
    patience: float = 0.0
    deadline: Deadline | None = None
    #: How often the loop went round since something came from outside or time passed.
    rounds: int = 0
    _endless: int = ENDLESS_ROUNDS
    _idle_at: float = 0.0
    #: What executors do for the loop.
    _work: dict[object, float] = attrs.field(factory=dict)
    #: What threads owe the loop, with the real second up to which it is waited for.
    _until: dict[object, float] = attrs.field(factory=dict)
    #: Since which real second they owe nothing; None where they do, or time has jumped since.
    _handed_over_at: float | None = None

    def __attrs_post_init__(self) -> None:
        self._ahead = self._loop.time() - self._real_time()

    @property
    def is_virtual(self) -> bool:
        return self._now is not None

    def time(self) -> float:
        """Seconds that only ever grow: what stands in for `loop.time`."""
        return self._real_time() + self._ahead if self._now is None else self._now

    @contextlib.contextmanager
    def virtual(self, patience: float) -> Iterator[None]:
        """Let time jump."""
        selector, submit = self._loop._selector, self._loop.run_in_executor  # noqa: SLF001

        def run_in_executor(
            executor: Any, function: Callable[..., Any], *args: Any
        ) -> "asyncio.Future[Any]":
            work: asyncio.Future[Any] = submit(executor, function, *args)
            # What the threads of the standard pool do can be seen, and also that they wait for us,
            # as soon as they have begun.
            is_standard = executor is None or type(executor) is ThreadPoolExecutor
            self._work[work] = PICK_UP if is_standard else LIMIT
            work.add_done_callback(lambda done: self._work.pop(done, None))
            return work

        with contextlib.ExitStack() as stack:
            lead = stack.enter_context(contextlib.closing(Lead()))
            now = self.time()
            # A timer that was set before would be over at once.
            timers = self._loop._scheduled  # noqa: SLF001
            is_planned = any(not timer.cancelled() for timer in timers)
            if not is_planned and not self._was_virtual:
                now = math.ceil(now / ROUND) * ROUND
            self._now, self._was_virtual = now, True
            self.patience, self._idle_at = patience, now
            stack.callback(self._end)
            select = _Select(self, selector.select, lead)
            stack.enter_context(_replaced(selector, "select", select))
            stack.enter_context(_replaced(self._loop, "run_in_executor", run_in_executor))
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
        # asyncio adds its clock's resolution to see what is due, and to a large number in vain.
        if instant + self._loop._clock_resolution == instant:  # noqa: SLF001
            instant = math.nextafter(instant, math.inf)
        self.jumped += instant - self.time()
        self._now = instant
        self._handed_over_at = None

    def is_endless(self) -> bool:
        """Count one round in which the loop had something to do by itself."""
        self.rounds += 1
        if self.rounds > BUSY_ROUNDS:
            self._now = self.time() + ROUND_TAKES
        return self.rounds > self._endless

    def skip(self) -> None:
        """Let the next timer of a loop that goes round be due; without one, time goes faster."""
        now, timers = self.time(), self._loop._scheduled  # noqa: SLF001
        self._endless = BUSY_ROUNDS
        if timers and timers[0].when() > now:
            self._pass_to(timers[0].when())
            self.rounds = 0
        else:
            self._pass_to(now + (now - self._idle_at) / 100)

    def thread_time(self) -> float:
        """Return for how many real seconds threads are still to be waited for."""
        now = self._real_time()
        owed, handover = owed_to(self._loop)
        owed.update(self._work)
        self._until = {one: self._until.get(one, now + limit) for one, limit in owed.items()}
        left = max(0.0, max(self._until.values(), default=0.0) - now)
        if left or self._handed_over_at is None:
            self._handed_over_at = None if left else now
        # After their work, and before each jump, a thread has time to wake up for more.
        return left or max(0.0, (self._handed_over_at or now) + handover - now)


class Lead:
    """
    A connection of our own over loopback, to find out whether anything is under way.

    What one machine sends to itself arrives in the order in which it was sent. So when a byte
    that left last has come through, everything before it has.
    """

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._near = socket.create_connection(server.getsockname())
            self._far, _ = server.accept()
        self._near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def sound(self) -> None:
        """Return when nothing that was sent before is under way any more."""
        self._near.sendall(b".")
        self._far.recv(1)

    def close(self) -> None:
        self._near.close()
        self._far.close()


@attrs.frozen
class _Select:
    """What stands in for the `select` of a loop's selector, the one place where a loop waits."""

    clock: VirtualClock
    real: Callable[[float | None], list[Any]]
    lead: Lead

    def __call__(self, timeout: float | None = None) -> list[Any]:
        clock, events = self.clock, self.real(0)
        if clock.deadline is not None and clock.deadline.has_passed(clock.jumped):
            return events
        if timeout is None and not events:
            # Nothing is planned: only something outside can make anything happen.
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
        """Return what comes while threads work, bytes are under way, and patience lasts."""
        events: list[Any] = []
        # Twice, where there are threads: between two variables, one may have its work in neither.
        passes = min(2, threading.active_count())
        while passes and not events:
            if left := self.clock.thread_time():
                events = self.real(min(left, TICK))
            else:
                passes -= 1
                self.lead.sound()
                events = self.real(0)
        return events or (self.real(self.clock.patience) if self.clock.patience else [])


def _clock_of(loop: asyncio.AbstractEventLoop) -> VirtualClock:
    """Return the clock that was put into *loop* before, or a new one."""
    clock = getattr(loop.time, "__self__", None)
    if isinstance(clock, VirtualClock):
        return clock
    if not isinstance(loop, asyncio.BaseEventLoop) or not hasattr(loop, "_selector"):
        kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
        raise RuntimeError(
            f"virtual time needs a loop of asyncio itself, and this one is a {kind}; use asyncio's "
            "for this test, or let it run in real time: virtual_time=False"
        )
    clock = VirtualClock(loop)
    # It stays there when time is real again: a loop's time must not go back.
    loop.time = clock.time  # type: ignore[method-assign]
    return clock


@contextlib.contextmanager
def _replaced(thing: Any, name: str, value: object) -> Iterator[None]:
    """Let the attribute *name* of this one object be *value* for a while."""
    own = vars(thing)
    missing = object()
    before = own.get(name, missing)
    own[name] = value
    try:
        yield
    finally:
        if before is missing:
            del own[name]
        else:
            own[name] = before
