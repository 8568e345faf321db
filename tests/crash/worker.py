"""
A process whose children work on a batch and report events; the test kills them.

A forked child starts with everything imported, so that hundreds of children take seconds.
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

REPORTED = (hooks.TaskSubmitted, hooks.TaskSettled, hooks.DownloadFinished)
PACKAGE = Path(fuhu_runway.__file__).parent
SUBMITTING = tuple(
    str(PACKAGE / name)
    for name in ("_session/submission.py", "_http/transport.py", "journal.py", "client.py")
)


def send(word: str) -> None:
    """Send the test a line, in one piece."""
    os.write(1, f"{word}\n".encode())


def prompts(count: int) -> Iterator[str]:
    """Return the prompts of the batch."""
    return (f"prompt {number}" for number in range(count))


def client(journal: Path, listener: hooks.Listener) -> Client:
    """Return a client with short pauses."""
    polling = PollPolicy(first=0.02, max_interval=0.02)
    return Client(journal=Journal(journal), polling=polling, hooks=[listener])


async def work(folder: Path, count: int) -> None:
    """Run the whole batch, until it ends or the child is killed."""

    def listen(event: hooks.Event) -> None:
        if isinstance(event, REPORTED):
            send("event")

    async with client(folder / "run.db", listen) as runway:
        source = prompts(count)
        async for _ in runway.generate_many(source, in_flight=8, download_to=folder / "clips"):
            pass
        # The client did not open it, and so does not close it.
        assert runway.journal is not None
        await runway.journal.aclose()


async def submit(folder: Path, number: int) -> None:
    """Submit a batch with one job, and die at the *number*-th statement of the submission."""

    def listen(event: hooks.Event) -> None:
        if isinstance(event, hooks.TaskSubmitted):
            os._exit(0)  # the submission has fewer statements

    async with client(folder / f"{number}.db", listen) as runway:
        assert runway.journal is not None
        await runway.journal.counts()
        Executioner(number).attend()
        async for _ in runway.generate_many([f"prompt {number}"]):
            pass


async def resume(folder: Path, number: int) -> None:
    """Run that batch again, without killing, and report what happened to its job."""
    async with client(folder / f"{number}.db", lambda _event: None) as runway:
        async for outcome in runway.generate_many([f"prompt {number}"]):
            send("doubt" if outcome.is_in_doubt else "clip" if outcome.clip else str(outcome.error))


class Executioner:
    """Kills this process at the n-th statement of a submission, in any thread."""

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


def run_child(job: Callable[[], Awaitable[None]]) -> int:
    """Run one child, and return its exit code."""
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(job())  # type: ignore[arg-type]
        except BaseException as fault:  # noqa: BLE001 - reported to the test
            send(f"fault {type(fault).__name__}: {fault}")
        os._exit(0)
    send(f"child {child}")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    """Run a child for each line of stdin: "work 200", "submit 17" or "resume 17"."""
    for line in sys.stdin:
        task, number = line.split()
        job = {"work": work, "submit": submit, "resume": resume}[task]
        send(f"ended {run_child(lambda: job(folder, int(number)))}")  # noqa: B023 - called at once


if __name__ == "__main__":
    main(Path(sys.argv[1]))
