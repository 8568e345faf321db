"""
What a fleet of three workers comes to: each figure beside what is demanded of it.

How soon the jobs of a killed worker are taken up, what is lost while Postgres is gone, throughput
beside one process, and what a waiting job and a finished job cost. Real processes, a real Postgres
of its own, and the simulator, whose ledger is the judge. Exit status 1 if a goal is missed.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import attrs
import psycopg

sys.path.insert(0, str(Path(__file__).parent))  # the folder may be missing in safe-path mode

from _common import table

from fuhu_runway import Client, Item, Limits, PollPolicy, TextToVideo
from fuhu_runway.contrib.fleet import Fleet, LeaseExpired
from fuhu_runway.contrib.local_postgres import LocalPostgres
from fuhu_runway.journal import JobState
from fuhu_runway.testing import Simulator, faults

WORKERS: Final = 3
LEASE: Final = 4.0
IN_FLIGHT: Final = 12
"""Of each worker; the one process has three times as many."""
LATENCY: Final = 0.1
"""How late the gateway answers a submit, in seconds."""
LOOK: Final = 0.1
"""Seconds between two looks at how many jobs are left."""
REST: Final = 8.0
"""Seconds for which the statements of a worker at rest are counted."""
WARM_UP: Final = 200
"""Jobs that wait before memory is measured: imports and connections are not part of a job."""
NAME: Final = "worker"
"""What the log of the database calls the connections of workers."""
TAKES: Final = 5.0
"""Seconds of a task where throughput is compared; if less, the machine's cores decide."""
POLLS: Final = PollPolicy(first=0.5, max_interval=0.5)


class Row(NamedTuple):
    """A figure beside its goal."""

    name: str
    goal: str
    figure: str
    is_held: bool


@attrs.define
class Place:
    """A gateway, an empty database and a folder; and the processes that were started there."""

    server: LocalPostgres
    gateway: Simulator
    fleet: Fleet
    folder: Path
    processes: list[asyncio.subprocess.Process]

    async def start(self, what: str, **options: Any) -> asyncio.subprocess.Process:
        """Start a worker, or a batch."""
        told = {
            "url": f"{self.server.url}&application_name={NAME}",
            "folder": str(self.folder),
            **options,
        }
        one = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, "--child", what, json.dumps(told)),
            stdin=asyncio.subprocess.PIPE,  # which ends when this program does
            env={**os.environ, **self.gateway.environment()},
        )
        self.processes.append(one)
        return one

    async def workers(self, count: int, **options: Any) -> None:
        """Start workers, and return once all of them have a heartbeat."""
        for _ in range(count):
            await self.start("work", **options)
        await until(lambda: len(self.rows("SELECT id FROM procrastinate_workers")) == count)

    def rows(self, statement: str) -> list[Any]:
        """Return what a statement finds."""
        with psycopg.connect(self.server.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def statements(self) -> tuple[int, int]:
        """Return how many statements the workers have sent for the pace, and how many others."""
        log = (self.server.data.parent / "log").read_text(errors="replace")
        sent = [entry.partition(": ")[2].strip() for entry in log.split(f"\n{NAME} LOG:  ")[1:]]
        # A transaction and the check of a connection are one with the statement that needs them.
        sent = [text for text in sent if text.partition("\n")[0] not in {"", "BEGIN", "COMMIT"}]
        paces = sum("fuhu_pace" in text for text in sent)
        return paces, len(sent) - paces

    async def rest(self) -> float:
        """Return how long it took until no job was left, in seconds."""
        began_at = time.monotonic()
        async with self.fleet as fleet:
            while await fleet.left():  # noqa: ASYNC110  (other processes do it)
                await asyncio.sleep(LOOK)
        return time.monotonic() - began_at


async def until(happened: Callable[[], object]) -> None:
    """Return once *happened* returns something true."""
    while not happened():  # noqa: ASYNC110  (other processes do it)
        await asyncio.sleep(0.05)


def items(count: int) -> Iterator[Item]:
    """Return the jobs of a trial."""
    return (Item(TextToVideo(f"a kitten, take {n}"), f"take-{n}") for n in range(count))


@asynccontextmanager
async def place(*, takes: float, lease: float = LEASE) -> AsyncIterator[Place]:
    """Yield a place to work in; *takes* is how long a task takes, in seconds."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(LocalPostgres())
        gateway = await stack.enter_async_context(Simulator(takes=takes, points=None))
        gateway.fault("submit", faults.Slow(LATENCY), times=None)
        one = Place(server, gateway, Fleet(server.url, lease=lease), folder, [])
        await one.fleet.init()
        for setting in ("log_statement = 'all'", "log_line_prefix = '%a '"):
            one.rows(f"ALTER SYSTEM SET {setting}")
        one.rows("SELECT pg_reload_conf()")
        try:
            yield one
        finally:
            for process in one.processes:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


# What the processes do


def child(what: str, options: dict[str, Any]) -> None:
    """Work, or carry out a batch; end with the program that started it."""
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    clips = Path(options["folder"]) / "clips"
    asyncio.run(work(clips, options) if what == "work" else batch(clips, options["jobs"]))


async def work(clips: Path, options: dict[str, Any]) -> None:
    """Be a worker, which is started again when it was cut off."""
    polling = POLLS if options.get("polls", True) else PollPolicy()
    fleet = Fleet(options["url"], lease=options["lease"], download_to=clips, polling=polling)
    while True:
        with suppress(LeaseExpired):
            await fleet.work(in_flight=options["in_flight"], grace=1.0)
            return


async def batch(clips: Path, jobs: int) -> None:
    """Carry out the same jobs in one process."""
    limits = Limits(requests_in_flight=WORKERS * 100)
    async with Client(journal=clips.parent / "run.db", polling=POLLS, limits=limits) as client:
        begun = client.generate_many(
            items(jobs), in_flight=WORKERS * IN_FLIGHT, download_to=clips.parent / "one"
        )
        async for outcome in begun:
            assert outcome.clip is not None


# The figures


async def taken_up(kills: int) -> Row:
    """Kill a worker that has jobs, and measure until the others have them."""
    worst = 0.0
    async with place(takes=1000.0) as one:
        await one.workers(WORKERS, in_flight=30, lease=LEASE)
        await one.fleet.enqueue(items(30))
        held = "SELECT worker_id, lock FROM procrastinate_jobs WHERE status = 'doing'"
        await until(
            lambda: len(one.rows("SELECT key FROM fuhu_job WHERE state = 'accepted'")) == 30
        )
        for _ in range(kills):
            before = dict(map(reversed, one.rows(held)))
            process = one.processes.pop()
            process.send_signal(signal.SIGKILL)
            began_at = time.monotonic()
            await process.wait()
            # Its entries, of which it is known only now which they were, have changed hands.
            while True:
                await asyncio.sleep(0.05)
                now = dict(map(reversed, one.rows(held)))
                moved = {before[key] for key in before if now.get(key) != before[key]}
                if moved and now.keys() == before.keys() and not moved & set(now.values()):
                    break
            worst = max(worst, time.monotonic() - began_at)
    goal = LEASE + 2
    return Row(
        f"a killed worker's jobs are taken up, lease {LEASE:g} s, worst of {kills}",
        f"{goal:g} s",
        f"{worst:.1f} s",
        worst <= goal,
    )


async def gone(seconds: float) -> Row:
    """Stop the database while ids arrive, and count those that are not written at the end."""
    async with place(takes=2.0, lease=30.0) as one:
        await one.workers(WORKERS, in_flight=IN_FLIGHT, lease=30.0)
        await one.fleet.enqueue(items(90))
        await until(lambda: len(one.gateway.tasks) > IN_FLIGHT)
        await asyncio.to_thread(one.server.stop)
        at_first = len(one.gateway.tasks)
        await asyncio.sleep(seconds)
        arrived = len(one.gateway.tasks) - at_first
        await asyncio.to_thread(one.server.start)
        await one.rest()
        jobs = await one.fleet.journal.jobs()
        known = {job.task_id for job in jobs}
        await one.fleet.journal.aclose()
        lost = sum(task.task_id not in known for task in one.gateway.tasks)
        twice = len(one.gateway.tasks) - len({task.prompt for task in one.gateway.tasks})
        saved = sum(job.state is JobState.SAVED for job in jobs)
    return Row(
        f"Postgres is gone for {seconds:g} s: ids lost, paid twice, of {len(jobs)} saved",
        f"0, 0, {len(jobs)}",
        f"{lost}, {twice}, {saved}; {arrived} arrived meanwhile",
        lost == twice == 0 and saved == len(jobs),
    )


async def throughput(jobs: int) -> tuple[Row, Row]:
    """Carry out the same jobs in one process and with three workers, and count statements."""
    async with place(takes=TAKES) as one:
        began_at = time.monotonic()
        process = await one.start("batch", jobs=jobs)
        await until(lambda: one.gateway.tasks)
        began_at = time.monotonic()
        await process.wait()
        alone = time.monotonic() - began_at
    async with place(takes=TAKES) as one:
        await one.workers(WORKERS, in_flight=IN_FLIGHT, lease=30.0)
        await one.fleet.enqueue(items(jobs))
        began_at = time.monotonic()
        _, before = one.statements()
        await one.rest()
        together = time.monotonic() - began_at
        _, after = one.statements()
        each = (after - before) / jobs
    ratio = alone / together
    return (
        Row(
            f"throughput of {WORKERS} workers over one process, {WORKERS * IN_FLIGHT} in flight",
            "0.9",
            f"{ratio:.2f} ({jobs / together:.1f} and {jobs / alone:.1f} jobs/s)",
            ratio >= 0.9,
        ),
        Row("statements for a job, without those of the pace", "15", f"{each:.1f}", each <= 15),
    )


async def waiting(jobs: int) -> tuple[Row, Row]:
    """Let one worker wait for many tasks: memory of each, and statements."""
    accepted = "SELECT count(*) FROM fuhu_job WHERE state = 'accepted'"
    sizes = []
    async with place(takes=100_000.0) as one:
        await one.workers(1, in_flight=WARM_UP + jobs, lease=30.0, polls=False)
        for total in (WARM_UP, WARM_UP + jobs):
            await one.fleet.enqueue(items(total))
            while one.rows(accepted) != [(total,)]:  # noqa: ASYNC110  (the worker does it)
                await asyncio.sleep(LOOK)
            sizes.append(memory(one.processes[0].pid))
        each = (sizes[1] - sizes[0]) / jobs
        await asyncio.sleep(3.0)
        pace, rest = one.statements()
        began_at = time.monotonic()
        await asyncio.sleep(REST)
        paced, rested = one.statements()
        seconds = time.monotonic() - began_at
        rate, paces = (rested - rest) / seconds, (paced - pace) / seconds
    return (
        Row(
            f"memory of a waiting job, of {jobs} after {WARM_UP}",
            "10 KB",
            f"{each / 1000:.1f} KB",
            each < 10_000,
        ),
        Row(
            "statements a second of a worker that waits",
            "3",
            f"{rate:.1f}, and {paces:.1f} for the pace of its polls",
            rate < 3,
        ),
    )


def memory(pid: int) -> int:
    """Return the resident memory of a process, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


async def main(*, is_long: bool) -> None:
    """Print every figure."""
    rows = [
        await taken_up(2),
        await gone(3.0),
        *([await gone(60.0)] if is_long else []),
        *await throughput(720 if is_long else 144),
        *await waiting(1000 if is_long else 500),
    ]
    shown = [(*row[:3], "held" if row.is_held else "MISSED") for row in rows]
    print(table([("", "goal", "figure", ""), *shown]))
    sys.exit(0 if all(row.is_held for row in rows) else 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true", help="also a minute without a database")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        child(told.child[0], json.loads(told.child[1]))
    else:
        asyncio.run(main(is_long=told.long))
