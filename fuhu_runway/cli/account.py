"""
The commands that use the gateway's own lists: settle doubts, and find tasks that no journal has.

Rule 1: nothing is submitted here, and nothing is changed at the gateway.
Rule 2: what cannot be proven is left as it was, and the output says what to do.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fuhu_runway import errors
from fuhu_runway.account import (
    TOKEN_VARIABLE,
    USER_VARIABLE,
    Account,
    AccountTask,
    Audit,
    Reconciliation,
)
from fuhu_runway.journal import BaseJournal, Job, JobState
from fuhu_runway.models import DEAD_ENDS, DEFAULT_WAIT, usage_error

from .console import Screen, columns, counted, listed, number
from .journal import mark_of, save_all
from .opening import working
from .options import (
    IN_RESULT,
    OUT,
    ClipTimeout,
    JournalArgument,
    JournalPlace,
    Target,
    on_journal,
)
from .tally import Tally

if TYPE_CHECKING:
    from fuhu_runway.client import Client


async def reconcile(
    journal: JournalArgument,
    *,
    out: Annotated[Path | None, IN_RESULT] = None,
    timeout: ClipTimeout = DEFAULT_WAIT,
    screen: Screen = Screen(),
    target: Target = Target(),
) -> int:
    """
    Settle a journal's jobs in doubt by the gateway's own lists, and save the clips found.

    Free, and submits nothing. A job stays in doubt unless the lists prove what happened to it.
    FUHU_ACCESS_TOKEN and FUHU_USER_ID, from the gateway's account page, give the list of tasks;
    without them, the log of the key only shows what was charged.

    Args:
        out: Folder for the clips; by default that of the journal, or clips.
    """
    out = out or _folder_of(journal)
    tally = Tally(again=_resume(journal, out, target))
    async with working(journal, target, screen, tally.watch, out=out) as (store, client):
        doubts = {job.key: job for job in await store.jobs(JobState.IN_DOUBT)}
        if not _has_account(target):
            screen.info(f"Without {TOKEN_VARIABLE} and {USER_VARIABLE}, no task can be found.")
        try:
            report = await client.reconcile()
        except errors.RunwayError as error:
            error.add_note("Every job that was in doubt still is.")
            raise
        screen.out(*_report_lines(report, doubts))
        _advise(report, journal, target, screen)
        unsaved = await store.jobs(*(state for state in JobState if state.is_unfinished))
        found = {one.key for one in report.found}
        jobs = [job for job in unsaved if job.key in found]
        files = await save_all(client, jobs, tally, screen, out=out, timeout=timeout)
        others = len(unsaved) - len(jobs)
    if screen.json:
        screen.show({**report.as_dict(), "files": files})
    elif jobs:
        tally.report(screen, out, journal, files)
    if others:
        many = counted(others, "other task is", "other tasks are")
        screen.info(f"{many} paid for and not saved. {tally.again}")
    return 3 if report.left else tally.code


def _report_lines(report: Reconciliation, doubts: Mapping[str, Job]) -> Iterator[str]:
    counts = {
        "found and followed": len(report.found),
        "not accepted and planned again": len(report.not_accepted),
        "left in doubt": len(report.left),
    }
    said = listed(counts)
    yield f"{len(doubts):,} in doubt: {said}" if said else "nothing is in doubt"
    if report.left:
        yield from columns(
            ("key", "input", "reason", "tasks that may be it"),
            *(
                (mark_of(job), job.source or "", one.reason, " ".join(one.task_ids))
                for one, job in ((one, doubts[one.key]) for one in report.left)
            ),
        )


def _advise(report: Reconciliation, journal: JournalPlace, target: Target, screen: Screen) -> None:
    if any(one.task_ids for one in report.left):
        command = on_journal("resolve", journal, "KEY", "--task-id", "ID", *target.words())
        screen.info(f"If you know which task is the right one: {command}")
    if report.left:
        command = on_journal("jobs", journal, "--state", "in-doubt")
        screen.info(f"For what else you can do: {command}")


async def audit(
    journal: JournalArgument,
    *tasks: str,
    adopt: Annotated[bool, IN_RESULT] = False,
    ignore: Annotated[bool, IN_RESULT] = False,
    since: Annotated[datetime | None, IN_RESULT] = None,
    out: Annotated[Path | None, IN_RESULT] = None,
    timeout: ClipTimeout = DEFAULT_WAIT,
    screen: Screen = Screen(),
    target: Target = Target(),
) -> int:
    """
    List the tasks of the account that were paid for and are not in a journal.

    Free, and submits nothing. Needs FUHU_ACCESS_TOKEN and FUHU_USER_ID, from the gateway's account
    page.

    Args:
        tasks: Ids of tasks to adopt or to ignore; by default all that are listed.
        adopt: Add the tasks to the journal, and save their clips.
        ignore: Leave the tasks out from now on, since they belong to something else.
        since: Date or time from which to look, such as 2026-05-31; by default a week ago.
        out: Folder for the clips of adopted tasks; by default that of the journal, or clips.
    """
    if (adopt and ignore) or (tasks and not adopt and not ignore):
        happened = "audit needs either --adopt or --ignore to change anything, not both."
        raise usage_error("tasks", happened, "Use the one that applies.")
    if not _has_account(target):
        raise usage_error(
            "account",
            "No account is set.",
            f"Set {TOKEN_VARIABLE} and {USER_VARIABLE}, as the gateway's account page shows them.",
        )
    out = out or _folder_of(journal)
    tally = Tally(again=_resume(journal, out, target))
    async with working(journal, target, screen, tally.watch, out=out if adopt else None) as (
        store,
        client,
    ):
        found = await client.audit(since=since)
        chosen = _chosen(found, tasks, journal, target)
        if adopt:
            # A task that failed is skipped unless it is named: it has no clip.
            wanted = [task for task in chosen if tasks or task.state not in DEAD_ENDS]
            jobs = await _adopted(client, store, wanted, screen)
            files = await save_all(client, jobs, tally, screen, out=out, timeout=timeout)
            return tally.report(screen, out, journal, files)
        if ignore:
            await store.ignore(*(task.task_id for task in chosen))
    what = "ignored from now on" if ignore else "paid for and not in the journal"
    rows, unclear = ([task.as_dict() for task in some] for some in (chosen, found.unclear))
    head = ("task", "created", "kind", "state", "quota", "model")
    screen.show(
        {"tasks": rows, "unclear": unclear, "is_complete": found.is_complete},
        *(columns(head, *map(_cells, chosen)) if chosen else ()),
        f"{counted(len(chosen), 'task is', 'tasks are')} {what}" if chosen else "no tasks",
    )
    if chosen and not ignore:
        command = on_journal("audit", journal, "--adopt", *target.words())
        screen.info(f"To save their clips: {command}")
        command = on_journal("audit", journal, "ID", "ID", "--ignore", *target.words())
        screen.info(f"If some belong to something else: {command}")
    if found.unclear:
        many = f"{len(found.unclear):,} more may belong to jobs in doubt"
        command = on_journal("reconcile", journal, *target.words())
        screen.info(f"{many}, which have to be settled first: {command}")
    if not found.is_complete:
        screen.info("The gateway did not send its whole list, so there may be more.")
    return 0


def _folder_of(journal: JournalPlace) -> Path:
    return journal.parent if isinstance(journal, Path) else OUT


def _resume(journal: JournalPlace, out: Path, target: Target) -> str:
    command = on_journal("resume", journal, "--out", str(out), *target.words())
    return f"To save the clips: {command}"


def _has_account(target: Target) -> bool:
    return target.simulate or Account.from_env() is not None


async def _adopted(
    client: "Client", store: BaseJournal, tasks: list[AccountTask], screen: Screen
) -> list[Job]:
    """Return the rows of the tasks that the feed knows, and report the others."""
    jobs: list[Job] = []
    for task in tasks:
        try:
            await client.adopt(task)
        except errors.NotFound as error:
            screen.say(f"{task.task_id} was not adopted: {error.happened} {error.advice}")
        else:
            jobs += filter(None, [await store.find(task.task_id)])
    return jobs


def _chosen(
    found: Audit, ids: tuple[str, ...], journal: JournalPlace, target: Target
) -> list[AccountTask]:
    """Return the tasks of an audit with these ids, or all of them."""
    known = {task.task_id: task for task in found.tasks}
    unclear = {task.task_id for task in found.unclear}
    for one in ids:
        if one in unclear:
            command = on_journal("reconcile", journal, *target.words())
            raise usage_error(
                "tasks", f"{one} may be the task of a job in doubt.", f"Run {command}"
            )
        if one not in known:
            advice = "Run audit without an id to list them, perhaps with --since."
            raise usage_error("tasks", f"The audit does not list a task {one}.", advice)
    return [known[one] for one in dict.fromkeys(ids or known)]


def _cells(task: AccountTask) -> tuple[str, ...]:
    """Return a task as a row of the table."""
    at = task.submitted_at or task.created_at
    return (
        task.task_id,
        f"{at.astimezone():%m-%d %H:%M}" if at else "unknown",
        " ".join(filter(None, (task.platform, task.action))),
        task.state.value,
        number(task.points),
        task.model or "",
    )
