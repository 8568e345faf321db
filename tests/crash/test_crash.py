"""Processes that are killed while they spend money, and what the next one finds."""

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
    """The process whose children work."""

    process: Process

    async def tell(self, task: str, number: int) -> int:
        """Start a child that does something, and return its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{task} {number}\n".encode())
        return int((await self.hear()).removeprefix("child "))

    async def hear(self) -> str:
        """Return the next thing that is said."""
        assert self.process.stdout is not None
        said = (await self.process.stdout.readline()).decode().strip()
        assert said
        assert not said.startswith("fault"), said
        return said

    async def end(self) -> tuple[list[str], int]:
        """Return what the child says to its end, and how it ended: 0, or minus a signal."""
        said = []
        while not (word := await self.hear()).startswith("ended "):
            said.append(word)
        return said, int(word.removeprefix("ended "))


@asynccontextmanager
async def working(gateway: Simulator, folder: Path) -> AsyncIterator[Worker]:
    """Return a worker that is led to *gateway* and keeps its files in *folder*."""
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


async def killed_often(worker: Worker, folder: Path, random: Random) -> None:
    """Kill children that work on the batch, soon after each has reported something."""
    for _ in range(KILLS):
        child = await worker.tell("work", PROMPTS)
        for _ in range(random.randint(1, 10)):
            assert await worker.hear() == "news", "the batch came to its end too early"
        await asyncio.sleep(random.uniform(0.0, 0.006))
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
    """Raise unless the file that a killed process left is refused where its log is not beside."""
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
    Whatever the moment of death: no task twice, and no task that is neither saved nor in doubt.

    By the gateway's own count, which no crash touches.
    """
    async with Simulator(speed=1000, takes=30, seed=seed) as gateway:
        # The answer takes its time after the task was made: the window in which a doubt is born.
        gateway.fault("submit", faults.Slow(4.0), times=None)
        async with working(gateway, tmp_path) as worker:
            await killed_often(worker, tmp_path, Random(seed))
            await worker.tell("work", PROMPTS)
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
    """Return the state that the file of a killed process holds, as it is."""
    with closing(sqlite3.connect(path)) as db:
        row = db.execute("SELECT state FROM job").fetchone()
        return str(row[0]) if row else "nothing"


@attrs.frozen
class Death:
    """What came of one submission whose process was killed."""

    #: The state in the file.
    left: str
    #: How many tasks the gateway had by then.
    paid: int
    #: What the next process made of it.
    found: str
    #: How many tasks there were in the end.
    paid_in_all: int


async def deaths(
    gateway: Simulator, paid: Counter[str], folder: Path, numbers: Iterator[int]
) -> list[Death]:
    """Kill a submission at each statement whose number is asked for, and resume it."""
    found: list[Death] = []
    async with working(gateway, folder) as worker:
        for number in numbers:
            await worker.tell("submit", number)
            if (await worker.end())[1] == 0:
                break
            prompt = f"prompt {number}"
            left, paid_then = left_behind(folder / f"{number}.db"), paid[prompt]
            await worker.tell("resume", number)
            (outcome,), code = await worker.end()
            assert code == 0
            found.append(Death(left, paid_then, outcome, paid[prompt]))
    return found


async def test_a_submission_can_be_killed_at_any_statement(tmp_path: Path) -> None:
    """
    At each statement of a submission, death leaves what was paid known or in doubt.

    What was not sent is sent once by the next process, and what was sent is never sent again.
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
