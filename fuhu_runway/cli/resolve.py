"""
The command that settles jobs in doubt: accepted, as which task, or not accepted.

Rule 1: nothing is recorded unless all that was said is possible, and the gateway knows the tasks.
Rule 2: several jobs at once are listed first, and recorded only with `--yes`.
"""

import contextlib
from collections.abc import Mapping, Sequence

import attrs
from cyclopts import Parameter

from fuhu_runway._wire.tables import is_official
from fuhu_runway.journal import BaseJournal, Job, JobState
from fuhu_runway.models import usage_error

from .console import RESULT, Screen, counted
from .journal import LIST_THEM, job_line, job_row, pick
from .opening import check_journal, client_of, opened
from .options import JournalArgument, Target

Fates = Mapping[str, str | None]
"""By the key of a job, its task; None if it was not accepted."""


@Parameter(name="*", group=RESULT)
@attrs.frozen(kw_only=True)
class Decision:
    """
    What happened to the jobs.

    Args:
        found: The jobs were accepted, as the tasks that `jobs` shows.
        task_id: The job was accepted, as this task.
        not_accepted: The jobs were not accepted: the batch may submit them again.
        all_not_accepted: No job was accepted, except those for which `jobs` shows a task; lists
            the jobs, and needs --yes.
        yes: Confirm the jobs that were listed.
    """

    found: bool = False
    task_id: str | None = None
    not_accepted: bool = False
    all_not_accepted: bool = False
    yes: bool = False

    def check(self, keys: Sequence[str]) -> None:
        """Raise unless there is one decision, and the keys that it is about."""
        is_named = self.task_id is not None
        if self.found + is_named + self.not_accepted + self.all_not_accepted != 1:
            raise usage_error(
                "task_id",
                "resolve needs exactly one of --found, --task-id, --not-accepted and "
                "--all-not-accepted.",
                "Use the one that applies.",
            )
        if self.all_not_accepted and keys:
            raise usage_error("keys", "--all-not-accepted takes no keys.", "Use --not-accepted.")
        if not self.all_not_accepted and not keys:
            raise usage_error("keys", "The key of the job is missing.", LIST_THEM)
        if is_named and len(keys) > 1:
            raise usage_error("keys", "A task belongs to one job.", "Use --task-id with one key.")


async def resolve(
    journal: JournalArgument,
    *keys: str,
    decision: Decision = Decision(),
    screen: Screen = Screen(),
    target: Target = Target(),
) -> None:
    """
    Record in a journal what happened to jobs in doubt.

    Free. If the gateway does not know one of the tasks, nothing changes.

    Args:
        keys: Names that `jobs` shows, task ids, or beginnings of keys.
    """
    decision.check(keys)
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened(journal))
        doubts = await _doubts(store, keys)
        if decision.all_not_accepted:
            fates = _unnamed(doubts, screen, yes=decision.yes)
        elif decision.not_accepted:
            fates = {job.key: None for job in doubts}
        else:
            fates = {job.key: decision.task_id or job.task_id for job in doubts}
            await _check_ids(store, doubts, fates)
            check_journal(target, journal)
            client = await client_of(stack, store, journal, target, screen)
            for job in doubts:
                await client.feed(fates[job.key] or "", official=is_official(job.endpoint))
        settled = [
            await store.resolve(key, task_id=fate, accepted=None if fate else False)
            for key, fate in fates.items()
        ]
    screen.show({"jobs": list(map(job_row, settled))}, *map(job_line, settled))
    again = "Run the batch command again to continue."
    screen.info(again if settled else "Nothing was changed.")


async def _doubts(journal: BaseJournal, keys: Sequence[str]) -> list[Job]:
    """Return the jobs that have these names, each once; without names, all that are in doubt."""
    if not keys:
        return await journal.jobs(JobState.IN_DOUBT)
    found = {job.key: job for job in [await pick(journal, key) for key in keys]}
    for job in found.values():
        if job.state is not JobState.IN_DOUBT:
            raise usage_error(
                "key", f"The job is {job.state.value}.", "There is nothing to resolve."
            )
    return list(found.values())


async def _check_ids(journal: BaseJournal, doubts: Sequence[Job], fates: Fates) -> None:
    """Raise unless each job has a task that is not another job's, before the gateway is polled."""
    for job in doubts:
        task_id = fates[job.key]
        if task_id is None:
            raise usage_error(
                "found", "The response named no task.", "Pass the task's id with --task-id."
            )
        if task_id != job.task_id and await journal.find(task_id) is not None:
            raise usage_error(
                "task_id", "This task belongs to another job.", "Use another task id."
            )


def _unnamed(doubts: Sequence[Job], screen: Screen, *, yes: bool) -> Fates:
    """Return each job without a known task as not accepted, if a person has seen them all."""
    unnamed = [job for job in doubts if job.task_id is None]
    if len(unnamed) < len(doubts):
        staying = counted(len(doubts) - len(unnamed), "job stays", "jobs stay")
        advice = "a response named the task. Use --found if it is the right one."
        screen.say(f"{staying} in doubt: {advice}")
    for job in unnamed:
        screen.say(job_line(job))
    if unnamed and not yes:
        raise usage_error(
            "yes",
            "If one of these jobs was accepted after all, it will be paid for twice.",
            "If the gateway has none of them, add --yes.",
        )
    return {job.key: None for job in unnamed}
