"""
Compare the account's tasks with the journal, and adopt those that it does not have.

Rule 1: only the tasks of the account's own user are read, and nothing is changed at the gateway.
Rule 2: a task that may be that of a job in doubt is not adopted: once another row has it, its
absence would prove that the job was not accepted, and the job would be paid for again.
"""

import contextlib
import itertools
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Final

from fuhu_runway._wire.tables import kind_of_action
from fuhu_runway.account import AccountTask, Audit
from fuhu_runway.errors import NotFound
from fuhu_runway.journal import BaseJournal, Job
from fuhu_runway.models import usage_error
from fuhu_runway.task import Task

from .account import account_tasks

if TYPE_CHECKING:
    from .sessions import Sessions

WEEK: Final = 7 * 86400.0
"""How far back an audit looks by default, in seconds."""
EARLY: Final = 60.0
"""How long before a submission its task may seem to start, in seconds: clocks differ."""
LATE: Final = 3600.0
"""
How long after a submission its task may start, in seconds; if more, more tasks are unclear.

At least `Timeouts.late`, after which a submission may be found to be not accepted.
"""


async def audit(sessions: "Sessions", since: datetime | None) -> Audit:
    """Return the account's tasks that the journal does not have; see `Client.audit`."""
    journal = _journal(sessions)
    now = sessions.settings.clock.wall()
    start = now - WEEK if since is None else since.timestamp()
    tasks, _, is_complete = await account_tasks(sessions, start, now + EARLY)
    # Read after the list: a task that was accepted meanwhile is in the journal by then.
    jobs, ignored = await journal.jobs(), await journal.ignored()
    known = ignored | {job.task_id for job in jobs}
    unknown = [task for task in tasks if known.isdisjoint(task.ids)]
    unclear = [task for task in unknown if _may_be_in_doubt(sessions, task, jobs)]
    clear = [task for task in unknown if task not in unclear]
    return Audit(tuple(clear), tuple(unclear), is_complete)


async def adopt(sessions: "Sessions", task: AccountTask) -> Task:
    """Add a task of an audit to the journal, and return its handle; see `Client.adopt`."""
    journal = _journal(sessions)
    if _may_be_in_doubt(sessions, task, await journal.jobs()):
        raise usage_error(
            "task",
            f"The task {task.task_id} may be that of a job in doubt.",
            "Settle the job first, with client.reconcile() or journal.resolve(key, task_id=...).",
        )
    task_id, is_official = await _polled(sessions, task)
    at = _instant(task)
    job = await journal.adopt(
        task_id,
        kind_of_action(task.action, official=is_official),
        sessions.settings.clock.wall() if at is None else at - sessions.ahead,
        model=task.model,
    )
    return sessions.attach(job)


async def _polled(sessions: "Sessions", task: AccountTask) -> tuple[str, bool]:
    """Return the id that a feed knows, and whether it is the feed of the official format."""
    # The list does not show the format, and each format has its own feed.
    *ways, last = itertools.product(task.ids, (False, True))
    for task_id, is_official in ways:
        with contextlib.suppress(NotFound):
            await sessions.record_of(task_id, official=is_official)
            return task_id, is_official
    await sessions.record_of(last[0], official=last[1])
    return last


def _journal(sessions: "Sessions") -> BaseJournal:
    if sessions.journal is None:
        raise usage_error(
            "journal",
            "The client has no journal to compare the account's tasks with.",
            "Make it with journal=, the path of the journal.",
        )
    return sessions.journal


def _instant(task: AccountTask) -> float | None:
    """Return when the gateway took a task on, in Unix seconds of its clock."""
    at = task.submitted_at or task.created_at
    return None if at is None else at.timestamp()


def _may_be_in_doubt(sessions: "Sessions", task: AccountTask, jobs: Iterable[Job]) -> bool:
    """Return whether a task came when a request without a response was sent."""
    at, late = _instant(task), max(LATE, sessions.settings.timeouts.late)
    return any(
        at is None
        or job.submitted_at is None
        or job.submitted_at - EARLY <= at - sessions.ahead <= job.submitted_at + late
        for job in jobs
        if job.state.is_unanswered
    )
