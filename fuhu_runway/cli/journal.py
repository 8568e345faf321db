"""
The command line for journals: what is in them, what is paid for and not here, what is in doubt.

Rule 1: nothing is submitted here.
Rule 2: what is in doubt is left to a person, and the output says what to do.
"""

import asyncio
import contextlib
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Final

import attrs
from cyclopts import Parameter

from fuhu_runway import errors
from fuhu_runway._journal_file import command_line
from fuhu_runway.journal import Job, JobState, Journal
from fuhu_runway.models import DEFAULT_WAIT, OfficialImageToVideo, usage_error

from .batch import CLOCK, OUT, STATE_NAME, TIMEOUT, Place, Tally, number, opened, shown
from .console import Lines, one_line, print_row, run, write
from .options import NO_DEFAULT, REACH, SIMULATE, TALK, Reach, Talk, check_positive, result_option

if TYPE_CHECKING:
    from fuhu_runway.client import Client

DOWNLOADS: Final = 20
"""How many clips are fetched at once by default."""

MARK_LENGTH: Final = 10
"""How much of a job's key is shown: with it a row fits into 80 columns."""

LATEST: Final = 32_500_000_000.0
"""The latest instant that is shown, in Unix seconds: near the year 3000, where Windows ends."""

JOB_KEYS: Final = {
    "key": "What the journal knows it by.",
    "custom_id": "The input's own name for it.",
    "state": f"{', '.join(state.value for state in JobState)}.",
    "task_id": "The task, where there is one; of a job in doubt, the one that its answer named.",
    "endpoint": "The kind of request.",
    "model": "The model.",
    "seconds": "Length of the clip.",
    "submissions": "How often it was sent.",
    "error": "The name of the error that it failed with, or is in doubt for.",
    "code": "The gateway's code for that.",
    "points": "Points used, in the gateway's unit.",
    "refunded": "Whether the points were given back.",
    "file_bytes": "Size of the clip.",
    "planned_at": "When it was wanted, in ISO 8601; null if it is impossible.",
    "submitted_at": "When it was sent.",
    "accepted_at": "When the gateway's id came.",
    "finished_at": "When the clip was seen.",
    "saved_at": "When the file was whole.",
}
TABLES: Final = {"A job in JSON": JOB_KEYS}
"""What the reference page says about what is printed here."""


# Arguments

_JOURNAL: Final = Parameter(help="The journal of a batch, such as clips/journal.db.")
_KEY: Final = Parameter(help="What `jobs` calls it, its task id, or the start of its key.")

# Commands


def jobs(
    journal: Annotated[Path, _JOURNAL],
    /,
    *,
    state: Annotated[
        tuple[JobState, ...],
        result_option("Only those in this state; more than once: or that.", **NO_DEFAULT),
    ] = (),
    talk: Talk = TALK,
) -> int:
    """
    Show what a journal knows, job by job, and what to do about those in doubt.

    Free, and asks no gateway. A journal that cannot be written is copied and shown.
    """
    return run(partial(_list, journal, state, talk), talk)


def resume(
    journal: Annotated[Path, _JOURNAL],
    /,
    *,
    out: Annotated[Path, OUT],
    timeout: Annotated[float, TIMEOUT] = DEFAULT_WAIT,
    talk: Talk = TALK,
    reach: Reach = REACH,
    simulate: Annotated[bool, SIMULATE] = False,
) -> int:
    """
    Fetch every clip that a journal knows to be paid for, without the file it was asked for with.

    Free, and submits nothing. The files are named after their tasks.
    """
    return run(partial(_fetch_all, journal, out, timeout, Place(talk, reach, simulate)), talk)


def resolve(
    journal: Annotated[Path, _JOURNAL],
    key: Annotated[str, _KEY],
    /,
    *,
    found: Annotated[
        bool, result_option("It was accepted, as the task that `jobs` shows.", **NO_DEFAULT)
    ] = False,
    task_id: Annotated[str | None, result_option("It was accepted, as this task.")] = None,
    not_accepted: Annotated[
        bool, result_option("It was not: the batch may submit it again.", **NO_DEFAULT)
    ] = False,
    talk: Talk = TALK,
    reach: Reach = REACH,
    simulate: Annotated[bool, SIMULATE] = False,
) -> int:
    """
    Record in a journal what became of a job in doubt.

    Free. The gateway has to know the task, else nothing changes.
    """
    if found + (task_id is not None) + not_accepted != 1:
        raise usage_error(
            "task_id",
            "Exactly one of --found, --task-id and --not-accepted is needed.",
            "Give the one that is true.",
        )
    place = Place(talk, reach, simulate)
    return run(partial(_settle, journal, key, task_id, place, is_named=found), talk)


def forget(
    journal: Annotated[Path, _JOURNAL],
    key: Annotated[str, _KEY],
    /,
    *,
    force: Annotated[
        bool, result_option("Also if a paid clip may be lost by it.", **NO_DEFAULT)
    ] = False,
    talk: Talk = TALK,
) -> int:
    """
    Remove a job from a journal, so that the batch takes it for a new one.

    Refuses jobs that are, or may be, paid for and not saved, unless --force is given.
    """
    return run(lambda _: _forget(journal, key, talk, force=force), talk)


COMMANDS: Final = (jobs, resume, resolve, forget)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise usage_error("journal", f"There is no journal {str(path)!r}.", "Check the path.")
    return path


# Fetching what is paid for


async def _fetch_all(path: Path, out: Path, timeout: float, place: Place, screen: Lines) -> int:
    """Save the clip of every task that a journal knows to be paid for."""
    from fuhu_runway.paths import check_folder  # noqa: PLC0415  (aiohttp, as above)

    check_positive("timeout", timeout)
    state_file = _existing(path).parent / STATE_NAME
    place.check(path, state_file)
    check_folder(out)
    async with contextlib.AsyncExitStack() as stack:
        journal = await stack.enter_async_context(opened(path))
        known = await journal.jobs(JobState.ACCEPTED, JobState.FINISHED)
        # One clip a task: a gateway may have answered two submits with the same id.
        paid = {job.task_id: job for job in known}.values()
        if not paid:
            screen.say("There is nothing to fetch.")
            return 0
        tally = Tally(len(paid))
        client = await place.client(stack, journal, state_file, screen, tally.watch)
        fetcher = Fetcher(client, out, timeout, tally)
        try:
            async with shown(tally, screen, lambda: tally.total - tally.done):
                await asyncio.gather(*map(fetcher.fetch, paid))
        except asyncio.CancelledError:
            screen.say("Stopped. The tasks go on. Continue with the same command.")
            raise
    return tally.report(place, screen, out, path, fetcher.files)


@attrs.define(eq=False)
class Fetcher:
    """Saves the clips of tasks that are paid for."""

    client: "Client"
    folder: Path
    timeout: float
    tally: Tally
    #: The saved clips, in the order in which they came.
    files: list[str] = attrs.field(factory=list)
    _turns: asyncio.Semaphore = attrs.field(factory=partial(asyncio.Semaphore, DOWNLOADS))

    async def fetch(self, job: Job) -> None:
        """Wait for the task of a job, save its clip, and count how that ended."""
        from fuhu_runway.batch import file_name  # noqa: PLC0415  (aiohttp, as above)

        try:
            task = self.client.attach(job)
            clip = await task.wait(timeout=self.timeout)
            async with self._turns:
                path = await clip.download(self.folder / file_name(task.id), overwrite=True)
        except Exception as error:  # noqa: BLE001  (one clip must not end the others)
            points, refunded = getattr(error, "points", None), getattr(error, "refunded", False)
            self.tally.add(error, job.key, points, refunded=refunded)
        else:
            self.files.append(str(path))
            record = clip.record
            self.tally.add(None, task.id, record.points, refunded=record.refunded)


# Journals


UNWRITABLE: Final = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
}
"""What SQLite says of a file that can be read and not written."""


@contextlib.asynccontextmanager
async def _readable(path: Path) -> AsyncIterator[Journal]:
    """Yield the journal; where it cannot be written, a copy of it and of its log."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            journal = await stack.enter_async_context(opened(path))
        except errors.JournalError as error:
            if getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF not in UNWRITABLE:
                raise
            copy = Path(stack.enter_context(TemporaryDirectory())) / path.name
            try:
                shutil.copyfile(path, copy)
                log = path.with_name(f"{path.name}-wal")
                if log.is_file():
                    shutil.copyfile(log, f"{copy}-wal")
            except OSError:
                raise error from None
            journal = await stack.enter_async_context(opened(copy))
        yield journal


async def _list(path: Path, states: tuple[JobState, ...], talk: Talk, screen: Lines) -> None:
    """Print the jobs of a journal, and what to do about those in doubt."""
    async with _readable(_existing(path)) as journal:
        found = await journal.jobs(*states)
        counts = {state.value: n for state, n in (await journal.counts()).items() if n}
    if talk.json:
        print_row({"counts": counts, "jobs": list(map(job_row, found))}, talk)
        return
    rows = [("key", "state", "points", "changed", "task, error"), *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        write(sys.stdout, "  ".join(map(str.ljust, row, widths)).rstrip())
    write(sys.stdout, ", ".join(f"{n:,} {name}" for name, n in counts.items()) or "no jobs")
    doubts = [job for job in found if job.state is JobState.IN_DOUBT]
    if not doubts:
        return
    command = command_line("fuhu-runway", "resolve", str(path))
    screen.say(
        "In doubt: sent, without a clear answer, perhaps charged. Look for it at the gateway."
    )
    if any(job.task_id for job in doubts):
        screen.say(f"It is the task that its row shows: {command} KEY --found")
    screen.say(f"It is there: {command} KEY --task-id ID")
    screen.say(f"It is not, and the balance agrees: {command} KEY --not-accepted")


def job_row(job: Job) -> dict[str, Any]:
    """Return a job as JSON has it."""
    row = {name: getattr(job, name) for name in JOB_KEYS}
    times = {name: _instant(at) for name, at in row.items() if name.endswith("_at")}
    return {**row, "state": job.state.value, **times}


def _instant(at: float | None) -> datetime | None:
    # A damaged journal may hold any number.
    return datetime.fromtimestamp(at, UTC) if at is not None and 0 <= at <= LATEST else None


def mark_of(job: Job) -> str:
    """Return a job's short name: its own, or enough of its key."""
    head, _, tail = job.key.partition(":")
    mark = f"{head[:MARK_LENGTH]}:{tail[:MARK_LENGTH]}".removesuffix(":1").rstrip(":")
    return mark if job.custom_id is None else job.custom_id


def _cells(job: Job) -> tuple[str, ...]:
    points = "" if job.points is None else number(job.points)
    instants = (job.planned_at, job.submitted_at, job.accepted_at, job.finished_at, job.saved_at)
    changed = max(filter(None, map(_instant, instants)), default=None)
    return (
        one_line(mark_of(job)),
        job.state.value,
        f"({points})" if job.refunded else points,
        f"{changed.astimezone():%m-%d %H:%M}" if changed else "unknown",
        one_line(" ".join(filter(None, (job.task_id, job.error)))),
    )


async def _picked(journal: Journal, name: str) -> Job:
    """Return the one job that has *name*, or whose key begins with it."""
    every = await journal.jobs()
    found = [job for job in every if name in {job.key, job.custom_id, job.task_id, mark_of(job)}]
    if not found and name:
        found = [job for job in every if job.key.startswith(name) or mark_of(job).startswith(name)]
    if len(found) != 1:
        fit = f"{len(found):,} jobs begin" if found else "No job begins"
        raise usage_error("key", f"{fit} with this key.", "See them with `fuhu-runway jobs`.")
    return found[0]


async def _settle(
    path: Path, name: str, task_id: str | None, place: Place, screen: Lines, *, is_named: bool
) -> None:
    """Record what became of a job in doubt."""
    state_file = _existing(path).parent / STATE_NAME
    async with contextlib.AsyncExitStack() as stack:
        journal = await stack.enter_async_context(opened(path))
        job = await _picked(journal, name)
        if job.state is not JobState.IN_DOUBT:
            raise usage_error("key", f"The job is {job.state.value}.", "Nothing has to be done.")
        if is_named and job.task_id is None:
            raise usage_error(
                "found", "Its answer named no task.", "Give the task's id with --task-id."
            )
        task_id = job.task_id if is_named else task_id
        if task_id is None:
            job = await journal.step(job.key, JobState.PLANNED, CLOCK.wall())
        else:
            place.check(path, state_file)
            # An id of its own may be another's as well: some gateways answer two submits with one.
            if task_id != job.task_id and await journal.find(task_id) is not None:
                raise usage_error("task_id", "Another job has this task.", "Give its own.")
            client = await place.client(stack, journal, state_file, screen)
            is_official = job.endpoint == OfficialImageToVideo.__name__
            await client.feed(task_id, official=is_official)
            job = await journal.step(job.key, JobState.ACCEPTED, CLOCK.wall(), task_id=task_id)
    _print_job(job, place.talk)
    screen.info("The batch's own command goes on with it.")


PAID: Final = frozenset(
    {JobState.SUBMITTING, JobState.IN_DOUBT, JobState.ACCEPTED, JobState.FINISHED}
)
"""A clip is, or may be, paid for and not saved."""


async def _forget(path: Path, name: str, talk: Talk, *, force: bool) -> None:
    async with opened(_existing(path)) as journal:
        job = await _picked(journal, name)
        if job.state in PAID and not force:
            raise usage_error(
                "key",
                f"The job is {job.state.value}: a paid clip would be lost.",
                "Use `resume` or `resolve`; or --force, if you want to pay again.",
            )
        await journal.forget(job.key)
    _print_job(job, talk)


def _print_job(job: Job, talk: Talk) -> None:
    if talk.json:
        print_row(job_row(job), talk)
    else:
        write(sys.stdout, "  ".join(filter(None, _cells(job))))
