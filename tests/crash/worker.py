"""
A process that lets children work on a batch, and tells what happens; the test does the killing.

Forked from here, a child starts with everything imported, so that hundreds of lives take seconds.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import fuhu_runway
from fuhu_runway import Client, PollPolicy, hooks
from fuhu_runway.journal import Journal

NEWS = (hooks.TaskSubmitted, hooks.TaskSettled, hooks.DownloadFinished)
PACKAGE = Path(fuhu_runway.__file__).parent
SUBMITTING = tuple(
    str(PACKAGE / name) for name in ("client.py", "journal.py", "_http/transport.py")
)


def say(word: str) -> None:
    """Send the test a line, in one piece."""
    os.write(1, f"{word}\n".encode())


def prompts(count: int) -> Iterator[str]:
    """Return the prompts of the batch."""
    return (f"prompt {number}" for number in range(count))


def client(journal: Path, listener: hooks.Listener) -> Client:
    """Return a client that loses no time."""
    polling = PollPolicy(first=0.02, max_interval=0.02)
    return Client(journal=Journal(journal), polling=polling, hooks=[listener])


async def work(folder: Path, count: int) -> None:
    """Make the whole batch, as far as one life goes."""

    def listen(event: hooks.Event) -> None:
        if isinstance(event, NEWS):
            say("news")

    async with client(folder / "run.db", listen) as runway:
        source = prompts(count)
        async for _ in runway.generate_many(source, in_flight=8, download_to=folder / "clips"):
            pass
        # It was given to the client, which therefore leaves it open.
        assert runway.journal is not None
        await runway.journal.aclose()


async def submit(folder: Path, number: int) -> None:
    """Submit one job of a batch of its own, and die at the *number*-th statement on the way."""

    def listen(event: hooks.Event) -> None:
        if isinstance(event, hooks.TaskSubmitted):
            os._exit(0)  # it came through: there are fewer statements

    async with client(folder / f"{number}.db", listen) as runway:
        assert runway.journal is not None
        await runway.journal.counts()
        Executioner(number).attend()
        async for _ in runway.generate_many([f"prompt {number}"]):
            pass


async def resume(folder: Path, number: int) -> None:
    """Run that batch again, undisturbed, and tell what became of its job."""
    async with client(folder / f"{number}.db", lambda _event: None) as runway:
        async for outcome in runway.generate_many([f"prompt {number}"]):
            say("doubt" if outcome.is_in_doubt else "clip" if outcome.clip else str(outcome.error))


class Executioner:
    """Kills this process at the n-th statement of a submission, in whichever thread that is."""

    def __init__(self, number: int) -> None:
        self.left = number

    def attend(self) -> None:
        threading.settrace(self.trace)
        sys.settrace(self.trace)
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            frame.f_trace = self.trace
            frame = frame.f_back

    def trace(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "call":
            return self.trace if frame.f_code.co_filename in SUBMITTING else None
        if event == "line" and frame.f_code.co_filename in SUBMITTING:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.trace


def live(life: Callable[[], Awaitable[None]]) -> int:
    """Lead one life in a child, and give how it ended."""
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(life())  # type: ignore[arg-type]
        except BaseException as fault:  # noqa: BLE001 - nobody is left to raise it to
            say(f"fault {type(fault).__name__}: {fault}")
        os._exit(0)
    say(f"child {child}")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    """Lead a life for each line that comes in: "work 200", "submit 17" or "resume 17"."""
    for line in sys.stdin:
        task, number = line.split()
        life = {"work": work, "submit": submit, "resume": resume}[task]
        say(f"ended {live(lambda: life(folder, int(number)))}")  # noqa: B023 - called at once


if __name__ == "__main__":
    main(Path(sys.argv[1]))
