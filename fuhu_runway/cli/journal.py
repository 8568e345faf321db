"""
The commands for journals: list jobs, save paid clips, and forget jobs.

Rule 1: nothing is submitted here.
Rule 2: a job in doubt is left to a person, and the output says what to do.
"""

import asyncio
from collections.abc import Collection
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import attrs

from fuhu_runway.journal import BaseJournal, Job, JobState
from fuhu_runway.models import DEFAULT_WAIT, usage_error

from .console import Screen, columns, counted, listed, number
from .opening import STATE_NAME, opened, readable, working
from .options import (
    IN_RESULT,
    JOURNAL,
    OUT,
    ClipTimeout,
    JournalArgument,
    JournalPlace,
    Target,
    existing,
    on_journal,
)
from .output import one_line
from .tally import Tally, shown

if TYPE_CHECKING:
    from fuhu_runway.client import Client

MARK_LENGTH: Final = 10
"""How much of a job's key is shown: a longer one would not fit in 80 columns."""

LIST_THEM: Final = "List the jobs with `fuhu-runway jobs`."


async def jobs(
    journal: Annotated[JournalPlace | None, JOURNAL] = None,
    *,
    state: Annotated[tuple[JobState, ...], IN_RESULT] = (),
    screen: Screen = Screen(),
) -> None:
    """
    List the jobs in a journal, and what to do about those in doubt.

    Free, and sends nothing. A journal that cannot be written is copied first.

    Args:
        journal: Journal of a batch, its folder, or the URL of a database; by default
            clips/journal.db.
        state: List only jobs in this state; can be repeated.
    """
    journal = existing(journal or OUT / "journal.db")
    async with readable(journal) as store:
        found = await store.jobs(*state)
        counts = {one.value: n for one, n in (await store.counts()).items() if n}
    screen.show(
        {"counts": counts, "jobs": list(map(job_row, found))},
        *columns(("key", "input", "state", "points", "sent", "task, error"), *map(cells, found)),
        listed(counts, "no jobs"),
    )
    doubts = [job for job in found if job.state is JobState.IN_DOUBT]
    if not doubts:
        return
    is_simulated = isinstance(journal, Path) and journal.with_name(STATE_NAME).is_file()
    simulate = ["--simulate"] if is_simulated else []
    resolve = partial(on_journal, "resolve", journal)
    screen.info("In doubt: sent, but no clear response came back, so points may have been charged.")
    settle = on_journal("reconcile", journal, *simulate)
    screen.info(f"To settle them by the gateway's own lists: {settle}")
    if any(job.task_id for job in doubts):
        command = resolve("KEY", "--found", *simulate)
        screen.info(f"If the task in the row is the right one: {command}")
    command = resolve("KEY", "--task-id", "ID", *simulate)
    screen.info(f"If you find the task at the gateway: {command}")
    command = resolve("KEY", "--not-accepted")
    screen.info(f"If there is none, and the balance confirms it: {command}")
    if sum(job.task_id is None for job in doubts) > 1:
        command = resolve("--all-not-accepted")
        screen.info(f"If that is true of all jobs without a task: {command}")


async def resume(
    journal: JournalArgument,
    *,
    out: Annotated[Path, IN_RESULT],
    timeout: ClipTimeout = DEFAULT_WAIT,
    screen: Screen = Screen(),
    target: Target = Target(),
) -> int:
    """
    Save every clip that is paid for according to a journal, without the original requests.

    Free, and submits nothing. The files are named after their tasks.

    Args:
        out: Folder for the clips; created if needed.
    """
    tally = Tally()
    async with working(journal, target, screen, tally.watch, out=out) as (store, client):
        known = await store.jobs(*(state for state in JobState if state.is_unfinished))
        # One clip per task: a gateway may have answered two submissions with the same id.
        paid = {job.task_id: job for job in known}.values()
        files = await save_all(client, paid, tally, screen, out=out, timeout=timeout)
    return tally.report(screen, out, journal, files)


async def forget(
    journal: JournalArgument,
    *key: str,
    force: Annotated[bool, IN_RESULT] = False,
    screen: Screen = Screen(),
) -> None:
    """
    Remove a job from a journal, so that the batch treats it as new.

    Refuses jobs that may be paid for but not saved, unless --force is given.

    Args:
        key: Name that `jobs` shows, task id, or beginning of the key.
        force: Remove the job even if a paid clip may be lost.
    """
    if len(key) != 1:  # several places, so that it may also follow --journal
        raise usage_error("key", "forget needs the key of one job.", LIST_THEM)
    async with opened(journal) as store:
        job = await pick(store, key[0])
        if job.state.is_at_risk and not force:
            raise usage_error(
                "key",
                f"The job is {job.state.value}: a paid clip could be lost.",
                "Use `resume` or `resolve`, or add --force if you accept paying again.",
            )
        await store.forget(job.key)
    screen.show(job_row(job), job_line(job))


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
    tally.total = len(paid)

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

    if not paid:
        return files
    try:
        async with shown(screen, lambda: tally.show(screen, tally.left)):
            await asyncio.gather(*map(save, paid))
    except asyncio.CancelledError:
        screen.stop("The tasks continue.", tally.again)
        raise
    return files


# Jobs

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
    sent = moment(job.submitted_at)
    points = number(job.points)
    return (
        mark_of(job),
        job.source or "",
        job.state.value,
        f"({points})" if job.refunded else points,
        f"{sent.astimezone():%m-%d %H:%M}" if sent else "unknown" if job.submitted_at else "",
        " ".join(filter(None, (job.task_id, job.error))),
    )


def job_line(job: Job) -> str:
    """Return a job in one line."""
    return one_line("  ".join(filter(None, cells(job))))


async def pick(journal: BaseJournal, name: str) -> Job:
    """Return the one job that is called *name*, or whose key begins with it."""
    every = await journal.jobs()
    found = [job for job in every if name in {job.key, job.custom_id, job.task_id, mark_of(job)}]
    if not found and name:
        found = [job for job in every if job.key.startswith(name) or mark_of(job).startswith(name)]
    if len(found) != 1:
        matches = counted(len(found), "job matches", "jobs match") if found else "No job matches"
        raise usage_error("key", f"{matches} this key.", LIST_THEM)
    return found[0]
