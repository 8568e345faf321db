"""
The demonstration of a fleet: everything on this machine, and one worker is killed.

Rule 1: the result is judged by the simulated gateway's ledger, the journal and the files.
Rule 2: nothing is left at the end: no process, no folder, no database.
"""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from fuhu_runway.errors import UsageError
from fuhu_runway.journal import DATABASE_VARIABLE, Job, JobState

from .console import Screen, columns, counted
from .fleet import new_fleet
from .opening import STATE_NAME
from .options import IN_RESULT, POSITIVE, WHOLE
from .tally import CLOCK

if TYPE_CHECKING:
    from fuhu_runway.contrib.fleet import Fleet
    from fuhu_runway.testing import LedgerEntry

COMMAND: Final = (sys.executable, "-m", "fuhu_runway")
"""This program, as a process of its own."""

WORKERS: Final = 3

IN_FLIGHT: Final = 8
"""Jobs that a worker has at once."""

LEASE: Final = 5.0
"""Seconds without a heartbeat after which a worker's jobs go to others; 30 by default."""

SPEED: Final = 20.0
"""A job of 100 s takes 5 s."""


async def demo(
    *,
    prompts: Annotated[int, IN_RESULT, WHOLE, POSITIVE] = 60,
    screen: Screen = Screen(),
) -> int:
    """
    Show on this machine what happens when a worker is killed: no key, no cost.

    Starts a Postgres of its own, or creates a database on the server of FUHU_DATABASE_URL, then a
    simulated gateway and three workers, one of which it kills while its jobs are paid for. At the
    end, it prints the gateway's ledger beside the journal, and removes everything that it made.

    Args:
        prompts: How many clips to generate.
    """
    from fuhu_runway.testing import read_ledger

    try:
        async with contextlib.AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuhu-demo-")))
            url = stack.enter_context(_database(screen))
            options = ("--json", "--no-points", "--until-stdin-closes", "--speed", f"{SPEED:g}")
            state = ("--state-file", STATE_NAME)
            simulator = await stack.enter_async_context(
                _process("simulate", *options, *state, folder=folder)
            )
            assert simulator.stdout is not None  # noqa: S101  (it is a pipe)
            gateway = json.loads(await simulator.stdout.readline())
            fleet = new_fleet(url=url)
            await fleet.init()
            await stack.enter_async_context(fleet)
            texts = [f"a kitten, take {number}" for number in range(1, prompts + 1)]
            await fleet.enqueue(texts)
            again = await fleet.enqueue(texts)
            many = counted(prompts, "prompt", "prompts")
            screen.info(f"{many} enqueued twice: {again.new:,} more jobs")
            variables = {
                DATABASE_VARIABLE: url,
                "FUHU_BASE_URL": gateway["base_url"],
                "FUHU_API_KEY": gateway["api_key"],
            }
            command = ("fleet", "work", "--in-flight", str(IN_FLIGHT), "--lease", f"{LEASE:g}")
            workers = [
                await stack.enter_async_context(
                    _process(*command, "--grace", "1", folder=folder, **variables)
                )
                for _ in range(WORKERS)
            ]
            screen.info(f"{WORKERS} workers, with {IN_FLIGHT} jobs each")
            await _carried_out(fleet, workers, prompts, screen, log=folder / "log")
            row = compare(
                prompts,
                await fleet.journal.jobs(),
                read_ledger(folder / STATE_NAME),
                clips=len(list(folder.glob("clips/*.mp4"))),
            )
    except asyncio.CancelledError:
        screen.stop("Nothing is left of the demonstration.")
        raise
    screen.show(row, *_table(row))
    return 70 if row["paid_twice"] or row["lost"] else 0  # a bug: a promise is broken


# The parts


@contextlib.contextmanager
def _database(screen: Screen) -> Iterator[str]:
    """Yield the URL of an empty database."""
    from fuhu_runway.contrib.local_postgres import LocalPostgres, temporary_database

    given = os.environ.get(DATABASE_VARIABLE)
    if given:
        screen.info(f"postgres: a database on the server of {DATABASE_VARIABLE}")
        with temporary_database(given) as url:
            yield url
        return
    with LocalPostgres() as server:
        screen.info(f"postgres: a server of its own, from {server.programs}")
        yield server.url


@contextlib.asynccontextmanager
async def _process(*arguments: str, folder: Path, **variables: str) -> AsyncIterator[Process]:
    """Yield this program as a process, which is stopped at the end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FUHU_")}
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *arguments,
            cwd=folder,
            env={**inherited, **variables},
            stdin=PIPE,
            stdout=PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches this process only, which stops the others
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


async def _carried_out(
    fleet: "Fleet", workers: Collection[Process], total: int, screen: Screen, *, log: Path
) -> None:
    """Follow the jobs until each has ended, and kill the first worker meanwhile."""
    victim, *others = workers
    following = asyncio.create_task(_follow(fleet, victim, total, screen))
    exits = [asyncio.create_task(worker.wait()) for worker in others]
    try:
        await asyncio.wait({following, *exits}, return_when=asyncio.FIRST_COMPLETED)
        if not following.done():
            *_, last = ["", *log.read_text(errors="replace").splitlines()]
            happened = f"A worker of the demonstration stopped unexpectedly: {last}"
            raise UsageError(happened, "No points were at stake.", "Please report it.")
        following.result()
    finally:
        for task in (following, *exits):
            task.cancel()
        await asyncio.wait({following, *exits})


async def _follow(fleet: "Fleet", victim: Process, total: int, screen: Screen) -> None:
    show_at = 0.0
    while True:
        now = await fleet.status()
        over = sum(count for state, count in now.jobs.items() if state.is_over)
        running = now.jobs[JobState.ACCEPTED]
        busy = sum(worker.jobs > 0 for worker in now.workers)
        if CLOCK.now() >= show_at:
            below = f"{running:,} running, {counted(busy, 'worker', 'workers')}"
            screen.board(f"{over:,} of {total:,}", over / total, "", below)
            show_at = CLOCK.now() + screen.interval
        # Once more tasks were submitted than the other workers can have, and near the end anyway.
        is_time = running > (WORKERS - 1) * IN_FLIGHT or 2 * over > total
        if victim.returncode is None and is_time:
            victim.kill()
            await victim.wait()
            screen.info(f"one worker was killed: its jobs go to the others after {LEASE:g} s")
        if over == total:
            return
        await CLOCK.sleep(0.2)


# The result


def compare(
    prompts: int, jobs: Collection[Job], ledger: Collection["LedgerEntry"], clips: int
) -> dict[str, int]:
    """Return what gateway, journal and folder say; *clips* counts the MP4 files."""
    counts = Counter(job.state for job in jobs)
    times = Counter(entry.prompt for entry in ledger)
    paid_for = {entry.task_id for entry in ledger}
    known = len(paid_for & {job.task_id for job in jobs})
    in_doubt, saved = counts[JobState.IN_DOUBT], counts[JobState.SAVED]
    not_over = prompts - sum(count for state, count in counts.items() if state.is_over)
    unaccounted = max(0, len(paid_for) - known - in_doubt)
    return {
        "prompts": prompts,
        "tasks": len(ledger),
        "known": known,
        "paid_twice": sum(count - 1 for count in times.values()),
        "saved": saved,
        "clips": clips,
        "failed": counts[JobState.FAILED],
        "in_doubt": in_doubt,
        "lost": not_over + unaccounted + max(0, saved - clips),
    }


def _table(row: Mapping[str, int]) -> Iterator[str]:
    cells = {name: f"{count:,}" for name, count in row.items()}
    return columns(
        ("", "gateway's ledger", "journal", "folder"),
        ("prompts", "", cells["prompts"], ""),
        ("paid for", cells["tasks"], cells["known"], ""),
        ("saved", "", cells["saved"], cells["clips"]),
        ("in doubt", "", cells["in_doubt"], ""),
        ("failed", "", cells["failed"], ""),
        ("paid twice", cells["paid_twice"], "", ""),
        ("lost", cells["lost"], "", ""),
    )
