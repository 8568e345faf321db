"""
Virtual time: a loop's clock that jumps to the next timer as soon as nothing else can happen.

Rule 1. Time moves only while every callback has run and no socket of the loop has anything to say.
Rule 2. Bytes that are under way between two sockets of this machine are waited for, by sending a
    byte of our own after them.
Rule 3. Work that the loop gave to a thread is waited for, so that it takes no time at all; for so
    long at the most that a thread which waits for the loop stops neither of them.
Rule 4. A loop that is busy with itself for long sees a little time pass, as it would in real time:
    who waits for an instant to be over, and not only reached, would wait for ever.
Rule 5. The loop's time never goes back, neither when virtual time begins nor when it ends.
"""

import asyncio
import contextlib
import math
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs

# For a disk that is slow; a thread that works longer waits for something, at times for the loop.
PATIENCE: Final = 5.0

# More than any chain of callbacks that leads somewhere, and less than anybody waits for.
BUSY_ROUNDS: Final = 1000
ROUND_TAKES: Final = 1e-6

# A loop in which nothing is planned begins at a multiple of this, so that the instants of a test
# are the same to the last bit whenever it runs. A power of two, and more than most delays: then
# the sum of an instant and a delay is exact where it can be.
ROUND: Final = 2.0**20


@contextlib.contextmanager
def virtual_time() -> Iterator[None]:
    """
    Let the running loop's time jump over all waiting; a block inside of another changes nothing.

    The time of the loop alone is moved: `asyncio.sleep`, timeouts, `loop.call_later` and
    `loop.time()`, and with them the simulator and the client. `time.time`, `time.monotonic`,
    `datetime`, other threads, other loops and other processes keep the time of the clock on the
    wall.

    Raises:
        RuntimeError: No loop of asyncio runs, or one of a kind whose time cannot be moved.
    """
    clock = _clock_of(asyncio.get_running_loop())
    if clock.is_virtual:
        yield
        return
    with clock.virtual():
        yield


@attrs.define(eq=False)
class VirtualClock:
    """The time of one loop, virtual for a while and real after that."""

    _loop: Any
    _real_time: Callable[[], float]
    #: How far the loop's time has run ahead of the real one.
    _ahead: float = 0.0
    #: The instant it is; None while time is real.
    _now: float | None = None
    #: How often the loop went round since something came from outside or time passed.
    _rounds: int = 0
    #: What threads do for the loop, with the real second up to which it is waited for.
    _work: dict["asyncio.Future[Any]", float] = attrs.field(factory=dict)

    @property
    def is_virtual(self) -> bool:
        """Whether time jumps."""
        return self._now is not None

    def time(self) -> float:
        """Seconds that only ever grow: what stands in for `loop.time`."""
        return self._real_time() + self._ahead if self._now is None else self._now

    @contextlib.contextmanager
    def virtual(self) -> Iterator[None]:
        """Let time jump."""
        selector, submit = self._loop._selector, self._loop.run_in_executor  # noqa: SLF001
        with contextlib.ExitStack() as stack:
            lead = stack.enter_context(contextlib.closing(Lead()))
            self._now = self._beginning()
            stack.callback(self._end)
            select = _Select(self, selector.select, lead)
            stack.enter_context(_replaced(selector, "select", select))
            stack.enter_context(_replaced(self._loop, "run_in_executor", _Submit(self, submit)))
            yield

    def _beginning(self) -> float:
        now = self.time()
        # A timer that was set before would be over at once.
        is_planned = any(not timer.cancelled() for timer in self._loop._scheduled)  # noqa: SLF001
        return now if is_planned or self._ahead else math.ceil(now / ROUND) * ROUND

    def _end(self) -> None:
        self._ahead = self.time() - self._real_time()
        self._now = None
        self._work.clear()

    def jump(self, seconds: float) -> None:
        """Let *seconds* pass at once."""
        self._now = self.time() + seconds
        self._rounds = 0

    def go_round(self, *, has_news: bool) -> None:
        """Count one round in which the loop had something to do by itself."""
        self._rounds = 0 if has_news else self._rounds + 1
        if self._rounds > BUSY_ROUNDS:
            self._now = self.time() + ROUND_TAKES

    def note(self, work: "asyncio.Future[Any]") -> None:
        """Let no time pass while a thread does *work*."""
        self._work[work] = time.monotonic() + PATIENCE
        work.add_done_callback(self._forget)

    def _forget(self, work: "asyncio.Future[Any]") -> None:
        self._work.pop(work, None)

    def patience(self) -> float:
        """For how many real seconds a thread is still to be waited for; 0.0 where none works."""
        return max(0.0, max(self._work.values(), default=0.0) - time.monotonic())


class Lead:
    """
    A connection of our own over loopback, to sound whether anything is under way.

    What one machine sends to itself arrives in the order in which it was sent. So when a byte
    that left last has come through, everything before it has.
    """

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._near = socket.create_connection(server.getsockname())
            self._far, _ = server.accept()
        self._near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def sound(self) -> None:
        """Come back when nothing that was sent before is under way any more."""
        self._near.sendall(b".")
        self._far.recv(1)

    def close(self) -> None:
        """Let go of both ends."""
        self._near.close()
        self._far.close()


@attrs.frozen
class _Select:
    """What stands in for the `select` of a loop's selector, the one place where a loop waits."""

    clock: VirtualClock
    real: Callable[[float | None], list[Any]]
    lead: Lead

    def __call__(self, timeout: float | None = None) -> list[Any]:
        events = self.real(0)
        if timeout is not None and timeout <= 0:
            self.clock.go_round(has_news=bool(events))
            return events
        while not events and (patience := self.clock.patience()):
            events = self.real(patience)
        if not events:
            self.lead.sound()
            events = self.real(0)
        if events:
            return events
        if timeout is None:
            # Nothing is planned: only somebody outside can make anything happen.
            return self.real(None)
        self.clock.jump(timeout)
        return []


@attrs.frozen
class _Submit:
    """What stands in for `loop.run_in_executor`."""

    clock: VirtualClock
    real: Callable[..., "asyncio.Future[Any]"]

    def __call__(
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        work = self.real(executor, func, *args)
        self.clock.note(work)
        return work


def _clock_of(loop: asyncio.AbstractEventLoop) -> VirtualClock:
    """The clock that was put into *loop* before, or a new one."""
    clock = getattr(loop.time, "__self__", None)
    if isinstance(clock, VirtualClock):
        return clock
    if not isinstance(loop, asyncio.BaseEventLoop) or not hasattr(loop, "_selector"):
        kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
        raise RuntimeError(
            f"virtual time needs a loop of asyncio itself, and this one is a {kind}; use asyncio's "
            "for this test, or let it run in real time: virtual_time=False"
        )
    clock = VirtualClock(loop, loop.time)
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
