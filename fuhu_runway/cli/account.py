"""
The commands that use the gateway's own lists: settle doubts, and find tasks that no journal has.

Rule 1: nothing is submitted here, and nothing is changed at the gateway.
Rule 2: what cannot be proven is left as it was, and the output says what to do.
"""

import contextlib
import sys
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

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

from .batch import OUT, check_target, open_client, opened, state_file_beside
from .console import number, one_line, print_row, print_table, write
from .journal import JournalArgument, mark_of, save_all
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
from .tally import Tally

if TYPE_CHECKING:
    from fuhu_runway.client import Client

HEAD: Final = ("task", "created", "kind", "state", "quota", "model")
SAVABLE: Final = tuple(state for state in JobState if state.is_unfinished)
_RESULT: Final = Parameter(group=RESULT)


async def reconcile(
    journal: JournalArgument,
    *,
    out: Annotated[Path | None, _RESULT] = None,
    timeout: Annotated[float, _RESULT, POSITIVE] = DEFAULT_WAIT,
    output: Output = OUTPUT,
    target: Target = TARGET,
    screen: Screen,
) -> int:
    """
    Settle a journal's jobs in doubt by the gateway's own lists, and save the clips found.

    Free, and submits nothing. A job stays in doubt unless the lists prove what happened to it.
    FUHU_ACCESS_TOKEN and FUHU_USER_ID, from the gateway's account page, give the list of tasks;
    without them, the log of the key only shows what was charged.

    Args:
        journal: Journal of a batch, such as clips/journal.db, its folder, or the URL of a database.
        out: Folder for the clips; by default that of the journal, or clips.
        timeout: How long to wait for each clip, in seconds.
    """
    out = out or _folder_of(journal)
    state_file = _check(target, journal, out=out)
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened(journal))
        doubts = {job.key: job for job in await store.jobs(JobState.IN_DOUBT)}
        client = await open_client(stack, target, screen, store, state_file)
        if not _has_account(target):
            screen.info(f"Without {TOKEN_VARIABLE} and {USER_VARIABLE}, no task can be found.")
        try:
            report = await client.reconcile()
        except errors.RunwayError as error:
            error.add_note("Every job that was in doubt still is.")
            raise
        if not output.json:
            _print_report(report, doubts, journal, screen)
        found = {one.key for one in report.found}
        jobs = [job for job in await store.jobs(*SAVABLE) if job.key in found]
        tally = Tally(len(jobs))
        save = partial(save_all, client, jobs, tally, screen, out=out, timeout=timeout)
        files = await save() if jobs else []
    if output.json:
        print_row({**report.as_dict(), "files": files}, output)
    elif jobs:
        tally.report(output, screen, out, journal, files)
    return 3 if report.left else tally.code


def _print_report(
    report: Reconciliation, doubts: Mapping[str, Job], journal: JournalPlace, screen: Screen
) -> None:
    counts = {
        "found and followed": len(report.found),
        "not accepted and planned again": len(report.not_accepted),
        "left in doubt": len(report.left),
    }
    said = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    write(sys.stdout, f"{len(doubts):,} in doubt: {said}" if said else "nothing is in doubt")
    if not report.left:
        return
    rows = [
        (
            one_line(mark_of(doubts[one.key])),
            one_line(doubts[one.key].source or ""),
            one.reason,
            one_line(" ".join(one.task_ids)),
        )
        for one in report.left
    ]
    print_table([("key", "input", "reason", "tasks that may be it"), *rows])
    if any(one.task_ids for one in report.left):
        command = f"fuhu-runway resolve {as_typed(journal)}"
        screen.say(f"If you know which task is the right one: {command} KEY --task-id ID")
    command = f"fuhu-runway jobs {as_typed(journal)} --state in-doubt"
    screen.say(f"For what else you can do: {command}")


async def audit(
    journal: JournalArgument,
    *tasks: str,
    adopt: Annotated[bool, _RESULT] = False,
    ignore: Annotated[bool, _RESULT] = False,
    since: Annotated[datetime | None, _RESULT] = None,
    out: Annotated[Path | None, _RESULT] = None,
    timeout: Annotated[float, _RESULT, POSITIVE] = DEFAULT_WAIT,
    output: Output = OUTPUT,
    target: Target = TARGET,
    screen: Screen,
) -> int:
    """
    List the tasks of the account that were paid for and are not in a journal.

    Free, and submits nothing. Needs FUHU_ACCESS_TOKEN and FUHU_USER_ID, from the gateway's account
    page.

    Args:
        journal: Journal of a batch, such as clips/journal.db, its folder, or the URL of a database.
        tasks: Ids of tasks to adopt or to ignore; by default all that are listed.
        adopt: Add the tasks to the journal, and save their clips.
        ignore: Leave the tasks out from now on, since they belong to something else.
        since: Date or time from which to look, such as 2026-05-31; by default a week ago.
        out: Folder for the clips of adopted tasks; by default that of the journal, or clips.
        timeout: How long to wait for each clip, in seconds.
    """
    state_file = _check(target, journal, out=out or _folder_of(journal) if adopt else None)
    if (adopt and ignore) or (tasks and not adopt and not ignore):
        happened = "audit needs either --adopt or --ignore to change anything, not both."
        raise usage_error("tasks", happened, "Use the one that applies.")
    if not _has_account(target):
        raise usage_error(
            "account",
            "No account is set.",
            f"Set {TOKEN_VARIABLE} and {USER_VARIABLE}, as the gateway's account page shows them.",
        )
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened(journal))
        client = await open_client(stack, target, screen, store, state_file)
        found = await client.audit(since=since)
        chosen = _chosen(found, tasks, journal)
        if adopt:
            # A task that failed is skipped unless it is named: it has no clip.
            wanted = [task for task in chosen if tasks or task.state not in DEAD_ENDS]
            jobs = await _adopted(client, store, wanted, screen)
            tally, out = Tally(len(jobs)), out or _folder_of(journal)
            files = await save_all(client, jobs, tally, screen, out=out, timeout=timeout)
            return tally.report(output, screen, out, journal, files)
        if ignore:
            await store.ignore(*(task.task_id for task in chosen))
    _print(found, chosen, journal, output, screen, is_ignored=ignore)
    return 0


def _folder_of(journal: JournalPlace) -> Path:
    return journal.parent if isinstance(journal, Path) else OUT


def _has_account(target: Target) -> bool:
    return target.simulate or Account.from_env() is not None


def _check(target: Target, journal: JournalPlace, *, out: Path | None) -> Path | None:
    """Raise unless the command can run; return the state file of a simulated gateway."""
    from fuhu_runway.paths import check_folder

    state_file = state_file_beside(journal)
    check_target(target, journal, state_file)
    if out is not None:
        check_folder(out)
    return state_file


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


def _chosen(found: Audit, ids: tuple[str, ...], journal: JournalPlace) -> list[AccountTask]:
    """Return the tasks of an audit with these ids, or all of them."""
    known = {task.task_id: task for task in found.tasks}
    for one in ids:
        if one in {task.task_id for task in found.unclear}:
            command = f"fuhu-runway reconcile {as_typed(journal)}"
            raise usage_error(
                "tasks", f"{one} may be the task of a job in doubt.", f"Run {command}"
            )
        if one not in known:
            advice = "Run audit without an id to list them, perhaps with --since."
            raise usage_error("tasks", f"The audit does not list a task {one}.", advice)
    return [known[one] for one in dict.fromkeys(ids or known)]


def _print(
    found: Audit,
    shown: list[AccountTask],
    journal: JournalPlace,
    output: Output,
    screen: Screen,
    *,
    is_ignored: bool,
) -> None:
    if output.json:
        rows, unclear = ([task.as_dict() for task in some] for some in (shown, found.unclear))
        print_row({"tasks": rows, "unclear": unclear, "is_complete": found.is_complete}, output)
        return
    if shown:
        print_table([HEAD, *map(_cells, shown)])
    what = "ignored from now on" if is_ignored else "paid for and not in the journal"
    many = "1 task is" if len(shown) == 1 else f"{len(shown):,} tasks are"
    write(sys.stdout, f"{many} {what}" if shown else "no tasks")
    command = f"fuhu-runway audit {as_typed(journal)}"
    if shown and not is_ignored:
        screen.say(f"To save their clips: {command} --adopt")
        screen.say(f"If some belong to something else: {command} ID ID --ignore")
    if found.unclear:
        settle = f"fuhu-runway reconcile {as_typed(journal)}"
        many = f"{len(found.unclear):,} more may belong to jobs in doubt"
        screen.say(f"{many}, which have to be settled first: {settle}")
    if not found.is_complete:
        screen.say("The gateway did not send its whole list, so there may be more.")


def _cells(task: AccountTask) -> tuple[str, ...]:
    """Return a task as a row of the table."""
    at = task.submitted_at or task.created_at
    return (
        one_line(task.task_id),
        f"{at.astimezone():%m-%d %H:%M}" if at else "unknown",
        one_line(" ".join(filter(None, (task.platform, task.action)))),
        task.state.value,
        "" if task.points is None else number(task.points),
        one_line(task.model or ""),
    )


COMMANDS: Final[tuple[Any, ...]] = (reconcile, audit)
