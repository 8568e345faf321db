"""Processes that are killed while they submit, and what the next process finds."""

import asyncio
import hmac
import itertools
import os
import shutil
import signal
import sqlite3
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from random import Random
from typing import Any, Final

import attrs
import pytest
from support.clock import until

import fuhu_runway
from fuhu_runway.errors import JournalError
from fuhu_runway.journal import Job, JobState, Journal, fingerprint
from fuhu_runway.models import TextToVideo
from fuhu_runway.testing import Simulator, faults

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the worker forks its children"),
    pytest.mark.timeout(600),  # hundreds of processes, one after the other
]

WORKER: Final = Path(__file__).with_name("worker.py")
PROMPTS: Final = 300
KILLS: Final = 60


@attrs.define
class Worker:
    """The process whose children run batches."""

    process: Process

    async def start(self, task: str, number: int) -> int:
        """Start a child for a task, and return its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{task} {number}\n".encode())
        return int((await self.read_line()).removeprefix("child "))

    async def read_line(self) -> str:
        """Return the next line of output."""
        assert self.process.stdout is not None
        line = (await self.process.stdout.readline()).decode().strip()
        assert line
        assert not line.startswith("fault"), line
        return line

    async def end(self) -> tuple[list[str], int]:
        """Return the child's remaining lines and its exit code: 0, or minus a signal."""
        lines = []
        while not (word := await self.read_line()).startswith("ended "):
            lines.append(word)
        return lines, int(word.removeprefix("ended "))


@asynccontextmanager
async def working(gateway: Simulator, folder: Path) -> AsyncIterator[Worker]:
    """Yield a worker that uses *gateway* and keeps its files in *folder*."""
    package = Path(fuhu_runway.__file__).parents[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", str(WORKER), str(folder)),
        stdin=PIPE,
        stdout=PIPE,
        env={**os.environ, **gateway.environment(), "PYTHONPATH": str(package)},
    )
    try:
        yield Worker(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


# One batch, killed again and again


async def killed_often(worker: Worker, gateway: Simulator, folder: Path, random: Random) -> None:
    """Kill children that work on the batch, soon after each has reported some events."""
    for number in range(KILLS):
        child = await worker.start("work", PROMPTS)
        if number:
            for _ in range(random.randint(1, 10)):
                assert await worker.read_line() == "event", "the batch ended too early"
            await asyncio.sleep(random.uniform(0.0, 0.006))
        else:
            await until(lambda: gateway.tasks)  # the first task, whose response never comes
        os.kill(child, signal.SIGKILL)
        assert (await worker.end())[1] == -signal.SIGKILL
        await check_file_alone(folder / "run.db")


async def jobs_in(path: Path) -> dict[str, Job]:
    """Return the jobs of a journal by their fingerprints."""
    journal = Journal(path)
    try:
        return {job.fingerprint: job for job in await journal.jobs()}
    finally:
        await journal.aclose()


def mark_of(prompt: str, path: Path) -> str:
    """Return the fingerprint of a prompt in a closed journal."""
    with closing(sqlite3.connect(path)) as db:
        (salt,) = db.execute("SELECT salt FROM header").fetchone()
    return hmac.digest(salt, fingerprint(TextToVideo(prompt)).encode(), "sha256").hex()


async def check_file_alone(path: Path) -> None:
    """Assert that the file left by a killed process is refused without its log."""
    journal = Journal(shutil.copy(path, path.with_name("alone.db")))
    try:
        with pytest.raises(JournalError, match="is a copy without its log"):
            await journal.counts()
    finally:
        await journal.aclose()


def clips_in(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by the fingerprints in their names."""
    return {path.stem.rpartition("-")[2]: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_batch_that_is_killed_sixty_times_pays_once_and_loses_nothing(
    tmp_path: Path, seed: int
) -> None:
    """
    Whenever the process is killed, each task is submitted once, and is saved or in doubt.

    The gateway, which does not crash, counts the tasks.
    """
    async with Simulator(speed=1000, takes=30, seed=seed) as gateway:
        # The response is slow after the task was made, so that some children die in between. On a
        # loaded machine that is chance, so the first one is sure to.
        gateway.fault("submit", faults.Hang(accepted=True))
        gateway.fault("submit", faults.Slow(4.0), times=None)
        async with working(gateway, tmp_path) as worker:
            await killed_often(worker, gateway, tmp_path, Random(seed))
            await worker.start("work", PROMPTS)
            assert (await worker.end())[1] == 0
        jobs, clips = await jobs_in(tmp_path / "run.db"), clips_in(tmp_path / "clips")
        tasks = gateway.tasks
        assert gateway.duplicates == ()

    assert len(jobs) == PROMPTS
    assert {job.state for job in jobs.values()} == {JobState.SAVED, JobState.IN_DOUBT}
    doubted = 0
    for task in tasks:
        job = jobs[mark_of(task.prompt, tmp_path / "run.db")]
        if job.state is JobState.IN_DOUBT:
            assert job.task_id is None
            doubted += 1
        else:
            assert job.task_id == task.task_id
    assert doubted > 0, "no child was killed between a task and its id"
    saved = {mark: job for mark, job in jobs.items() if job.state is JobState.SAVED}
    assert len(tasks) == len(saved) + doubted
    assert set(clips) == {mark[:12] for mark in saved}
    for mark, job in saved.items():
        clip = clips[mark[:12]]
        assert job.task_id is not None
        assert job.task_id.encode() in clip, "the clip of another task"
        assert len(clip) == job.file_bytes


# One submission, killed at each of its statements


def left_behind(path: Path) -> str:
    """Return the state in the journal file that a killed process left."""
    with closing(sqlite3.connect(path)) as db:
        row = db.execute("SELECT state FROM job").fetchone()
        return str(row[0]) if row else "nothing"


@attrs.frozen
class Death:
    """The result of one submission whose process was killed."""

    #: The state in the journal.
    left: str
    #: The number of tasks at the gateway then.
    paid: int
    #: What the next process reported.
    found: str
    #: The number of tasks in the end.
    paid_in_all: int


async def deaths(
    gateway: Simulator, paid: Counter[str], folder: Path, numbers: Iterator[int]
) -> list[Death]:
    """Kill a submission at each statement in *numbers*, and resume it."""
    found: list[Death] = []
    async with working(gateway, folder) as worker:
        for number in numbers:
            await worker.start("submit", number)
            if (await worker.end())[1] == 0:
                break
            prompt = f"prompt {number}"
            left, paid_then = left_behind(folder / f"{number}.db"), paid[prompt]
            await worker.start("resume", number)
            (outcome,), code = await worker.end()
            assert code == 0
            found.append(Death(left, paid_then, outcome, paid[prompt]))
    return found


async def test_a_submission_can_be_killed_at_any_statement(tmp_path: Path) -> None:
    """
    If a submission is killed at any statement, its task is known or in doubt afterwards.

    The next process sends a request that was not sent, and never repeats one that was.
    """
    paid = Counter[str]()

    def price(body: Mapping[str, Any]) -> float:
        paid[body["prompt"]] += 1
        return 1.0

    async with Simulator(speed=1000, takes=1, points=None, price=price) as gateway:
        lanes = [itertools.count(first, 2) for first in (1, 2)]
        found = await asyncio.gather(*(deaths(gateway, paid, tmp_path, lane) for lane in lanes))
        assert paid == Counter(task.prompt for task in gateway.tasks)
    died = list(itertools.chain(*found))
    assert len(died) > 200

    for death in died:
        if death.left in {"nothing", "planned"}:
            assert death == Death(death.left, 0, "clip", 1)
        elif death.left == "submitting":
            assert death.found == "doubt"
            assert death.paid_in_all == death.paid <= 1
        else:
            assert death == Death("accepted", 1, "clip", 1)
    kinds = Counter((death.left, death.paid) for death in died)
    assert set(kinds) == {
        ("nothing", 0),
        ("planned", 0),
        ("submitting", 0),
        ("submitting", 1),
        ("accepted", 1),
    }
