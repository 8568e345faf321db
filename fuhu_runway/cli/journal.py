"""
The commands for journals: list jobs, save paid clips, and forget jobs.

Rule 1: nothing is submitted here.
Rule 2: a job in doubt is left to a person, and the output says what to do.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Final

import attrs
from cyclopts import Parameter, Token

from fuhu_runway import errors
from fuhu_runway.journal import BaseJournal, Job, JobState, is_database
from fuhu_runway.models import DEFAULT_WAIT, usage_error

from .batch import (
    OUT,
    check_target,
    copied,
    open_client,
    opened,
    state_file_beside,
)
from .console import number, one_line, print_row, print_table, write
from .options import (
    OUTPUT,
    POSITIVE,
    RESULT,
    TARGET,
    JournalPlace,
    Output,
    Screen,
    Target,
    as_typed,
)
from .tally import AGAIN, Tally, shown

if TYPE_CHECKING:
    from fuhu_runway.client import Client

MARK_LENGTH: Final = 10
"""How much of a job's key is shown: a longer one would not fit in 80 columns."""

_RESULT: Final = Parameter(group=RESULT)


def _check_exists(_: object, place: JournalPlace) -> None:
    if isinstance(place, Path) and not place.is_file():
        raise ValueError("There is no such file.")


def _journal(_: object, tokens: Sequence[Token]) -> JournalPlace:
    place = tokens[0].value
    if is_database(place):
        return place
    if "@" in place or "password=" in place:
        raise ValueError("The URL of a database begins with postgresql://")
    path = Path(place)
    return path / "journal.db" if path.is_dir() else path


JOURNAL: Final = Parameter(converter=_journal)
JournalArgument = Annotated[JournalPlace, JOURNAL, Parameter(validator=_check_exists)]


async def jobs(
    journal: Annotated[JournalPlace | None, JOURNAL] = None,
    *,
    state: Annotated[tuple[JobState, ...], _RESULT] = (),
    output: Output = OUTPUT,
    screen: Screen,
) -> None:
    """
    List the jobs in a journal, and what to do about those in doubt.

    Free, and sends nothing. A journal that cannot be written is copied first.

    Args:
        journal: Journal of a batch, its folder, or the URL of a database; by default
            clips/journal.db.
        state: List only jobs in this state; can be repeated.
    """
    journal = journal or OUT / "journal.db"
    if isinstance(journal, Path) and not journal.is_file():
        happened = f"There is no journal {str(journal)!r}."
        raise usage_error("journal", happened, "Pass the journal of a batch, or its folder.")
    async with readable(journal) as store:
        found = await store.jobs(*state)
        counts = {one.value: n for one, n in (await store.counts()).items() if n}
    if output.json:
        print_row({"counts": counts, "jobs": list(map(job_row, found))}, output)
        return
    print_table([("key", "input", "state", "points", "sent", "task, error"), *map(cells, found)])
    write(sys.stdout, ", ".join(f"{n:,} {name}" for name, n in counts.items()) or "no jobs")
    doubts = [job for job in found if job.state is JobState.IN_DOUBT]
    if not doubts:
        return
    place = as_typed(journal)
    command = f"fuhu-runway resolve {place}"
    screen.say("In doubt: sent, but no clear response came back, so points may have been charged.")
    screen.say(f"To settle them by the gateway's own lists: fuhu-runway reconcile {place}")
    if any(job.task_id for job in doubts):
        screen.say(f"If the task in the row is the right one: {command} KEY --found")
    screen.say(f"If you find the task at the gateway: {command} KEY --task-id ID")
    screen.say(f"If there is none, and the balance confirms it: {command} KEY --not-accepted")
    if sum(job.task_id is None for job in doubts) > 1:
        screen.say(f"If that is true of all jobs without a task: {command} --all-not-accepted")
    state_file = state_file_beside(journal)
    if state_file is not None and state_file.is_file():
        screen.say(f"A simulated gateway can look them up itself: {command} --simulate")


async def resume(
    journal: JournalArgument,
    *,
    out: Annotated[Path, _RESULT],
    timeout: Annotated[float, _RESULT, POSITIVE] = DEFAULT_WAIT,
    output: Output = OUTPUT,
    target: Target = TARGET,
    screen: Screen,
) -> int:
    """
    Save every clip that is paid for according to a journal, without the original requests.

    Free, and submits nothing. The files are named after their tasks.

    Args:
        journal: Journal of a batch, such as clips/journal.db, its folder, or the URL of a database.
        out: Folder for the clips; created if needed.
        timeout: How long to wait for each clip, in seconds.
    """
    from fuhu_runway.paths import check_folder

    state_file = state_file_beside(journal)
    check_target(target, journal, state_file)
    check_folder(out)
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened(journal))
        known = await store.jobs(*(state for state in JobState if state.is_unfinished))
        # One clip per task: a gateway may have answered two submissions with the same id.
        paid = {job.task_id: job for job in known}.values()
        tally = Tally(len(paid))
        if not paid:
            screen.say("There is nothing to save.")
            return tally.report(output, screen, out, journal, []) if output.json else 0
        client = await open_client(stack, target, screen, store, state_file, tally.watch)
        files = await save_all(client, paid, tally, screen, out=out, timeout=timeout)
    return tally.report(output, screen, out, journal, files)


async def forget(
    journal: JournalArgument,
    *key: str,
    force: Annotated[bool, _RESULT] = False,
    output: Output = OUTPUT,
    screen: Screen,  # noqa: ARG001  (every command is given one)
) -> None:
    """
    Remove a job from a journal, so that the batch treats it as new.

    Refuses jobs that may be paid for but not saved, unless --force is given.

    Args:
        journal: Journal of a batch, such as clips/journal.db, its folder, or the URL of a database.
        key: Name that `jobs` shows, task id, or beginning of the key.
        force: Remove the job even if a paid clip may be lost.
    """
    if len(key) != 1:  # several places, so that it may also follow --journal
        advice = "List the jobs with `fuhu-runway jobs`."
        raise usage_error("key", "forget needs the key of one job.", advice)
    async with opened(journal) as store:
        job = await pick(store, key[0])
        if job.state.is_at_risk and not force:
            raise usage_error(
                "key",
                f"The job is {job.state.value}: a paid clip could be lost.",
                "Use `resume` or `resolve`, or add --force if you accept paying again.",
            )
        await store.forget(job.key)
    print_job(job, output)


COMMANDS: Final = (jobs, resume, forget)


async def save_all(
    client: "Client",
    paid: Collection[Job],
    tally: Tally,
    screen: Screen,
    *,
    out: Path,
    timeout: float,
) -> list[str]:
    """Wait for the tasks of these jobs, save their clips, count them, and return the files."""
    from fuhu_runway._clip_files import file_name

    downloads = asyncio.Semaphore(20)
    files: list[str] = []
    if not paid:
        screen.say("There is nothing to save.")
        return files

    async def save(job: Job) -> None:
        try:
            clip = await client.attach(job).wait(timeout=timeout)
            async with downloads:
                file = await clip.download(out / file_name(clip.id), overwrite=True)
        except Exception as error:  # noqa: BLE001  (one clip must not end the others)
            points, refunded = getattr(error, "points", None), getattr(error, "refunded", False)
            tally.add(error, job.key, points, refunded=refunded)
        else:
            files.append(str(file))
            tally.add(None, clip.id, clip.record.points, refunded=clip.record.refunded)

    try:
        async with shown(tally, screen, lambda: tally.left):
            await asyncio.gather(*map(save, paid))
    except asyncio.CancelledError:
        screen.stop("The tasks continue.", AGAIN)
        raise
    return files


# Journals and jobs


@contextlib.asynccontextmanager
async def readable(place: JournalPlace) -> AsyncIterator[BaseJournal]:
    """Yield the journal, or if it cannot be used, as on a read-only disk, a copy with its log."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            journal = await stack.enter_async_context(opened(place))
        except errors.JournalBusy:
            raise
        except errors.JournalError as error:
            if not isinstance(place, Path):
                raise
            folder = Path(stack.enter_context(TemporaryDirectory()))
            try:
                copy = copied(place, folder)
            except OSError:
                raise error from None
            journal = await stack.enter_async_context(opened(copy))
        yield journal


_INTERNAL: Final = ("fingerprint", "prompt_hash", "traceparent", "tag", "handed_out_at")


def job_row(job: Job) -> dict[str, Any]:
    """Return a job as JSON contains it."""
    internal = attrs.filters.exclude(*_INTERNAL)
    row = attrs.asdict(job, filter=internal)
    times = {name: moment(at) for name, at in row.items() if name.endswith("_at")}
    return {**row, "state": job.state.value, **times}


def moment(at: float | None) -> datetime | None:
    """Return a Unix time as a date; None if there is none, or it is impossible."""
    # A damaged journal may contain any number, and Windows only knows times before the year 3000.
    if at is None or not 0 <= at <= 32_500_000_000:
        return None
    return datetime.fromtimestamp(at, UTC)


def mark_of(job: Job) -> str:
    """Return a job's short name: its custom_id, or the beginning of its key."""
    head, _, tail = job.key.partition(":")
    mark = f"{head[:MARK_LENGTH]}:{tail[:MARK_LENGTH]}".removesuffix(":1").rstrip(":")
    return mark if job.custom_id is None else job.custom_id


def cells(job: Job) -> tuple[str, ...]:
    """Return a job as a row of the table."""
    points = "" if job.points is None else number(job.points)
    sent = moment(job.submitted_at)
    return (
        one_line(mark_of(job)),
        one_line(job.source or ""),
        job.state.value,
        f"({points})" if job.refunded else points,
        f"{sent.astimezone():%m-%d %H:%M}" if sent else "unknown" if job.submitted_at else "",
        one_line(" ".join(filter(None, (job.task_id, job.error)))),
    )


def print_job(job: Job, output: Output) -> None:
    """Print one job."""
    if output.json:
        print_row(job_row(job), output)
    else:
        write(sys.stdout, "  ".join(filter(None, cells(job))))


async def pick(journal: BaseJournal, name: str) -> Job:
    """Return the one job that is called *name*, or whose key begins with it."""
    every = await journal.jobs()
    found = [job for job in every if name in {job.key, job.custom_id, job.task_id, mark_of(job)}]
    if not found and name:
        found = [job for job in every if job.key.startswith(name) or mark_of(job).startswith(name)]
    if len(found) != 1:
        matches = f"{len(found):,} jobs match" if found else "No job matches"
        raise usage_error("key", f"{matches} this key.", "List the jobs with `fuhu-runway jobs`.")
    return found[0]
