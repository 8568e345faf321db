"""A fleet whose workers are killed and frozen, and the ledger of its gateway as the judge."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Final

import attrs

import fuhu_runway
from fuhu_runway import Item, TextToVideo
from fuhu_runway.contrib.fleet import Fleet
from fuhu_runway.journal import Job, JobState
from fuhu_runway.testing import Simulator, faults
from fuhu_runway.testing.simulator import TaskView

WORKER: Final = Path(__file__).parents[1] / "fleet" / "worker.py"
MARK: Final = "wombat"
"""A word of every prompt, which may be nowhere but in the table of requests."""


def items(count: int) -> Iterator[Item]:
    """Return the jobs of a trial; the name of each is in its prompt."""
    return (Item(TextToVideo(f"{MARK} job-{n}"), f"job-{n}") for n in range(count))


LEDGER_FAULTS: Final = (
    faults.empty_429(),
    faults.TooManyRequests(0.2),
    faults.server_error(502),
    faults.server_error(502, accepted=True),
    faults.drop_before_accepting(),
    faults.drop_after_accepting(),
)
"""What else goes wrong with the submits of a long trial."""


@attrs.define
class Workers:
    """The workers of a trial; as many as were started, whatever happens to them."""

    process: Process
    pids: list[int] = attrs.field(factory=list)

    async def start(self) -> int:
        """Start a worker, and return its process id."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"start\n")
        pid = int(await self.process.stdout.readline())
        self.pids.append(pid)
        return pid

    def signal(self, pid: int, number: int) -> bool:
        """Send a signal; return whether the worker was there."""
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            return True
        return False

    def kill(self, pid: int) -> None:
        """Kill a worker."""
        self.signal(pid, signal.SIGKILL)
        self.pids.remove(pid)

    async def replace_ended(self) -> None:
        """Start a worker in place of each that has ended itself, as a supervisor does."""
        for pid in [pid for pid in self.pids if not self.signal(pid, 0)]:
            self.pids.remove(pid)
            await self.start()


@attrs.define
class Trial:
    """A gateway, a fleet on one database, and its workers."""

    gateway: Simulator
    fleet: Fleet
    workers: Workers
    folder: Path

    async def kill(self, times: int, random: Random, *, life: tuple[float, float]) -> None:
        """Kill a worker again and again, each time after some seconds, and start another."""
        for _ in range(times):
            await asyncio.sleep(random.uniform(*life))
            await self.workers.replace_ended()
            self.workers.kill(random.choice(self.workers.pids))
            await self.workers.start()

    async def freeze(self, times: int, random: Random, *, seconds: float) -> None:
        """Freeze a worker again and again, each time for some seconds."""
        for _ in range(times):
            await asyncio.sleep(random.uniform(0.2, 1.0))
            await self.workers.replace_ended()
            pid = random.choice(self.workers.pids)
            self.workers.signal(pid, signal.SIGSTOP)
            await asyncio.sleep(seconds)
            self.workers.signal(pid, signal.SIGCONT)

    async def rest(self, *, is_late: bool = False) -> list[Job]:
        """
        Wait until no job is left to be carried out, and return all of them.

        *is_late* waits for doubts to be settled as well: a worker that was frozen, or that is slow,
        may still have to write down an id.
        """
        async with self.fleet as fleet:
            while True:
                await self.workers.replace_ended()
                if not await fleet.left():
                    jobs = await fleet.journal.jobs()
                    if not is_late or all(job.state is not JobState.IN_DOUBT for job in jobs):
                        return jobs
                await asyncio.sleep(0.5)


@attrs.frozen
class Verdict:
    """What the ledger says of the jobs at the end."""

    jobs: int
    saved: int
    failed: int
    in_doubt: int
    #: Tasks in the ledger.
    paid: int
    #: Tasks beyond the first of the same job.
    paid_twice: int
    #: Tasks that no job has, where the job is not in doubt.
    lost_untold: int
    #: Jobs in doubt that were not accepted.
    doubts_unpaid: int
    #: Files that are clips of the task that the job has.
    clips: int


def judge(jobs: Sequence[Job], tasks: Sequence[TaskView], folder: Path) -> Verdict:
    """Compare the jobs of the journal with the tasks of the ledger and the files."""
    states = Counter(job.state for job in jobs)
    by_name = {job.custom_id: job for job in jobs}
    paid = Counter(task.prompt.split()[-1] for task in tasks)
    known = {job.task_id for job in jobs}
    lost = [
        task
        for task in tasks
        if task.task_id not in known
        and by_name[task.prompt.split()[-1]].state is not JobState.IN_DOUBT
    ]
    clips = 0
    for job in jobs:
        path = folder / "clips" / f"{job.custom_id}.mp4"
        if job.state is JobState.SAVED:
            clips += (job.task_id or "none").encode() in path.read_bytes()
    return Verdict(
        jobs=len(jobs),
        saved=states[JobState.SAVED],
        failed=states[JobState.FAILED],
        in_doubt=states[JobState.IN_DOUBT],
        paid=len(tasks),
        paid_twice=len(tasks) - len(paid),
        lost_untold=len(lost),
        doubts_unpaid=sum(
            job.state is JobState.IN_DOUBT and job.custom_id not in paid for job in jobs
        ),
        clips=clips,
    )


@asynccontextmanager
async def trial(
    url: str,
    folder: Path,
    *,
    workers: int = 3,
    in_flight: int = 12,
    lease: float = 5.0,  # a loaded machine must not cut off every worker before it has begun
    grace: float = 20.0,
    rate: float | None = None,
    takes: float = 1.0,
    slow: float = 0.6,
    seed: int = 1,
) -> AsyncIterator[Trial]:
    """
    Yield a trial whose database has the tables and whose workers have begun.

    *takes* is how long a task takes, and *slow* how late each paid answer is, in seconds.
    """
    async with Simulator(takes=takes, seed=seed, points=None) as gateway:
        if slow:
            gateway.fault("submit", faults.Slow(slow), times=None)
        options = {
            "url": url,
            "folder": str(folder),
            "lease": lease,
            "in_flight": in_flight,
            "rate": rate,
            "grace": grace,
        }
        fleet = Fleet(url, lease=lease)
        await fleet.init()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(WORKER), json.dumps(options)),
            stdin=PIPE,
            stdout=PIPE,
            env={
                **os.environ,
                **gateway.environment(),
                "PYTHONPATH": str(Path(fuhu_runway.__file__).parents[1]),
            },
        )
        crew = Workers(process)
        try:
            for _ in range(workers):
                await crew.start()
            yield Trial(gateway, fleet, crew, folder)
        finally:
            for pid in crew.pids:
                crew.signal(pid, signal.SIGKILL)
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
