"""
The command that settles jobs in doubt: accepted, as which task, or not accepted.

Rule 1: nothing is recorded unless all that was said is possible, and the gateway knows the tasks.
Rule 2: for many jobs at once, a person sees them and agrees; in a script, `--yes` says so.
"""

import asyncio
import contextlib
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
from cyclopts import Parameter

from fuhu_runway._wire.tables import is_official
from fuhu_runway.journal import BaseJournal, Job, JobState
from fuhu_runway.models import Gateway, Generation, MotionVector, usage_error

from .batch import check_target, open_client, opened, simulator_of, state_file_beside
from .console import print_row
from .journal import JournalArgument, cells, job_row, pick, print_job
from .options import OUTPUT, RESULT, TARGET, Output, Screen, Target

if TYPE_CHECKING:
    from fuhu_runway.testing import TaskView

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
            the jobs and asks first.
        yes: Do not ask for confirmation.
    """

    found: bool = False
    task_id: str | None = None
    not_accepted: bool = False
    all_not_accepted: bool = False
    yes: bool = False

    @property
    def count(self) -> int:
        """How many decisions were given."""
        is_named = self.task_id is not None
        return self.found + is_named + self.not_accepted + self.all_not_accepted

    def check(self, keys: Sequence[str]) -> None:
        """Raise unless there is one decision, and the keys that it is about."""
        if self.count != 1:
            raise usage_error(
                "task_id",
                "resolve needs exactly one of --found, --task-id, --not-accepted and "
                "--all-not-accepted.",
                "Use the one that applies.",
            )
        if self.all_not_accepted and keys:
            raise usage_error("keys", "--all-not-accepted takes no keys.", "Use --not-accepted.")
        if not self.all_not_accepted and not keys:
            advice = "List the jobs with `fuhu-runway jobs`."
            raise usage_error("keys", "The key of the job is missing.", advice)
        if self.task_id is not None and len(keys) > 1:
            raise usage_error("keys", "A task belongs to one job.", "Use --task-id with one key.")


NO_DECISION: Final = Decision()


async def resolve(
    journal: JournalArgument,
    *keys: str,
    decision: Decision = NO_DECISION,
    output: Output = OUTPUT,
    target: Target = TARGET,
    screen: Screen,
) -> None:
    """
    Record in a journal what happened to jobs in doubt.

    Free. If the gateway does not know one of the tasks, nothing changes. With --simulate alone,
    the simulated gateway says which jobs it accepted.

    Args:
        journal: Journal of a batch, such as clips/journal.db, its folder, or the URL of a database.
        keys: Names that `jobs` shows, task ids, or beginnings of keys.
    """
    looks_up = target.simulate and not decision.count
    if not looks_up:
        decision.check(keys)
    state_file = state_file_beside(journal)
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened(journal))
        doubts = await _doubts(store, keys)
        if looks_up:
            check_target(target, journal, state_file)
            fates = await _looked_up(store, state_file, doubts, screen)
        elif decision.all_not_accepted:
            fates = await _agreed(doubts, screen, yes=decision.yes)
        elif decision.not_accepted:
            fates = {job.key: None for job in doubts}
        else:
            fates = {job.key: decision.task_id or job.task_id for job in doubts}
            await _check_ids(store, doubts, fates)
            check_target(target, journal, state_file)
            client = await open_client(stack, target, screen, store, state_file)
            for job in doubts:
                await client.feed(fates[job.key] or "", official=is_official(job.endpoint))
        settled = [
            await store.resolve(key, task_id=fate, accepted=None if fate else False)
            for key, fate in fates.items()
        ]
    if output.json:
        print_row({"jobs": list(map(job_row, settled))}, output)
    else:
        for job in settled:
            print_job(job, output)
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


# All at once


async def _agreed(doubts: Sequence[Job], screen: Screen, *, yes: bool) -> Fates:
    """Return each job without a known task as not accepted, if a person confirms it."""
    unnamed = [job for job in doubts if job.task_id is None]
    if len(unnamed) < len(doubts):
        screen.say(
            f"{len(doubts) - len(unnamed):,} of the jobs stay in doubt: a response named their "
            "task. Use --found if it is the right one."
        )
    for job in unnamed:
        screen.say("  ".join(filter(None, cells(job))))
    if unnamed and not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise usage_error(
                "yes",
                "--all-not-accepted asks first, and stdin is not a terminal.",
                "Check the gateway, then add --yes.",
            )
        screen.say(
            f"If one of these {len(unnamed):,} was accepted after all, it will be paid for twice. "
            "Type yes if the gateway has none of them:"
        )
        if (await _line()).strip().lower() != "yes":
            return {}
    return {job.key: None for job in unnamed}


async def _line() -> str:
    """Return a line that a person types; Ctrl-C ends the wait for it."""
    loop = asyncio.get_running_loop()
    typed: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        data = os.read(sys.stdin.fileno(), 1024).decode(errors="replace")
        with contextlib.suppress(RuntimeError):  # the loop has already ended
            loop.call_soon_threadsafe(typed.put_nowait, data)

    # Not joined: it goes on if the command is stopped.
    threading.Thread(target=read, name="stdin", daemon=True).start()
    return await typed.get()


# A simulated gateway


async def _looked_up(
    journal: BaseJournal, state_file: Path | None, doubts: Sequence[Job], screen: Screen
) -> Fates:
    """
    Return what a simulated gateway knows of jobs in doubt, by its own ledger.

    A job is left out if the gateway accepted a request that cannot be compared with it.
    """
    from fuhu_runway.testing import read_ledger

    if state_file is None or not state_file.is_file():
        raise usage_error(
            "simulate",
            "This folder has no simulated gateway.",
            "Remove --simulate, and ask the real gateway.",
        )
    tasks = simulator_of(state_file).tasks
    accepted_at = {entry.task_id: entry.accepted_at for entry in read_ledger(state_file)}
    known = {job.task_id for job in await journal.jobs() if job.state is not JobState.IN_DOUBT}
    fates: dict[str, str | None] = {}
    strange = 0.0
    for task in tasks:
        if task.task_id in known:
            continue
        sent = {job.key for job in doubts if (job.submitted_at or 0) <= accepted_at[task.task_id]}
        request = _request_of(task)
        if request is None:
            strange = max(strange, accepted_at[task.task_id])
            continue
        same = [job.key for job in await journal.jobs_of(request) if job.key in sent - fates.keys()]
        # Jobs with equal content are interchangeable.
        fates |= dict.fromkeys(same[:1], task.task_id)
    for job in doubts:
        if job.key not in fates and (job.submitted_at or 0) > strange:
            fates[job.key] = None
    if len(fates) < len(doubts):
        screen.say(
            f"{len(doubts) - len(fates):,} of the jobs stay in doubt: the gateway accepted a "
            "request that cannot be compared with theirs."
        )
    return fates


def _request_of(task: "TaskView") -> Generation | None:
    """Return the request of a task; None if its body does not tell."""
    from fuhu_runway._wire.encode import build
    from fuhu_runway._wire.tables import CALLBACK_KEY, SUBMITS

    body = {name: value for name, value in task.request.items() if name != CALLBACK_KEY}
    gateway = Gateway("simulated", "http://127.0.0.1")
    for kind, endpoint in SUBMITS.items():
        fields: dict[str, Any] = {}
        motion: dict[str, Any] = {}
        for place, source in endpoint.body.items():
            value: Any = body
            for name in place.split("."):
                value = value.get(name) if isinstance(value, Mapping) else None
            # A field that is put together from others makes the body differ below.
            if value is not None and isinstance(source, str):
                group, _, axis = source.rpartition(".")
                (motion if group else fields)[axis] = value
        with contextlib.suppress(TypeError, ValueError):
            if motion:
                fields["motion"] = MotionVector(**motion)
            request: Generation = kind(**fields)
            # What is not in the table, such as extra fields, is missing here.
            if json.loads(build(request, gateway, "-").body or b"") == body:
                return request
    return None
