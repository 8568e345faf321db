"""
Carry out one job of a batch or a queue, from wherever an earlier run left it.

Rule 1: a job that the journal has as accepted is never submitted again. A job in doubt is reported.
Rule 2: a clip replaces only a file that was saved for the same job, unless `overwrite` is set.

A job is identified by its `custom_id`, otherwise by its content and how often that came up before.
"""

import asyncio
import os
import traceback
from collections.abc import Mapping
from typing import Any, Final, TypedDict

import attrs

from . import errors
from ._arguments import check
from ._budget import Budget
from ._clip_files import clip_name
from ._clock import is_cancelled
from ._places import Place, place_of
from ._session.entry import in_doubt_of
from ._session.sessions import Sessions
from .errors import RunwayError
from .items import Item, Outcome, Summary, item_of, job_of, plan_for
from .journal import Job, JobState, Plan, nth
from .models import DEFAULT_WAIT, Generation, usage_error
from .task import Task
from .uploads import ClipStore

ENDS: Final[Mapping[JobState, tuple[type[RunwayError], ...]]] = {
    JobState.FAILED: (errors.TaskFailed, errors.GatewayError),
    JobState.IN_DOUBT: (errors.SubmissionInDoubt,),
}
"""The errors that end a job, by its state: carrying it out again would raise them again. After any
other error, such as that another worker has taken over, the next attempt may succeed."""


class JobOptions(TypedDict, total=False):
    """The options of each job; `Batch` describes them."""

    download_to: str | os.PathLike[str] | ClipStore | None
    timeout: float | None
    max_points: float | None
    retry_failed: bool
    overwrite: bool


@attrs.define(eq=False)
class Jobs:
    """
    Carry out jobs, each on its own, with the same options for all.

    Raises:
        UsageError: An option is wrong, or nothing can be written to *download_to*.
    """

    _sessions: Sessions
    #: Counts the jobs that are submitted.
    _summary: Summary = attrs.field(factory=Summary)
    download_to: str | os.PathLike[str] | ClipStore | None = attrs.field(default=None, kw_only=True)
    timeout: float | None = attrs.field(default=DEFAULT_WAIT, kw_only=True)
    max_points: float | None = attrs.field(default=None, kw_only=True)
    retry_failed: bool = attrs.field(default=False, kw_only=True)
    overwrite: bool = attrs.field(default=False, kw_only=True)
    #: Whether nothing more may be submitted.
    is_over: bool = attrs.field(init=False, default=False)
    place: Place | None = attrs.field(init=False)
    #: None without a limit: each of thousands of waiting jobs of a queue would have one.
    _budget: Budget | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        check(**{name: getattr(self, name) for name in JobOptions.__annotations__})
        self.place = place_of(self.download_to)
        self._budget = None if self.max_points is None else Budget(self.max_points)

    async def carry_out(self, thing: Item | Generation | str) -> Outcome:
        """Carry out a job of a queue; see `Client.carry_out`."""
        item = item_of(thing)
        name, journal = item.custom_id or item.key, self._sessions.journal
        if journal is None or name is None:
            whose, missing = ("client", "journal") if journal is None else ("job", "custom_id")
            raise usage_error(
                missing,
                f"The {whose} has no {missing}.",
                "A job that is delivered twice is paid for once if a journal knows its custom_id.",
            )

        if self.place is not None:
            await self.place.open()

        async def carry() -> Outcome:
            # If it is delivered twice at once, the second call finds the outcome of the first.
            async with self._sessions.carrying(name):
                outcome = await self.outcome(0, item)
                assert outcome is not None  # noqa: S101  (without max_points, none is left out)
                if outcome.clip is not None and outcome.error is None:
                    outcome.clip.task.hand_out()
                await journal.flush()
                if outcome.error is None:
                    return outcome
                job = outcome.key and await journal.find(outcome.key)
            if job and isinstance(outcome.error, ENDS.get(job.state, ())):
                return outcome
            raise outcome.error

        return await self._sessions.current().follow(carry())

    async def outcome(self, index: int, item: Item) -> Outcome | None:
        """Return how a job ended; None if it was left out because nothing more may be submitted."""
        known: dict[str, Any] = {}
        try:
            if not await self._run(index, item, known):
                return None
        except RunwayError as error:
            known |= {"error": error, "task_id": error.task_id or known.get("task_id")}
        except (Exception, asyncio.CancelledError) as error:
            # An error in one job must not end the batch.
            if is_cancelled(error):
                raise
            known["error"] = _unexpected(error, known.get("task_id"))
        return Outcome(index, item.request, item.custom_id, **known)

    async def _run(self, index: int, item: Item, known: dict[str, Any]) -> bool:
        """
        Carry out a job, from wherever an earlier run left it.

        Add what becomes known to *known*: fields of the `Outcome`, which are kept if this raises.
        Return False if the job was left out because nothing more may be submitted.
        """
        journal = self._sessions.journal
        plan, job = await self._planned(index, item)
        known["key"] = job and job.key
        name = clip_name(item.request, plan)
        if job is None or job.state is JobState.PLANNED:
            del job  # not kept while it waits
            return await self._make(item.request, plan, name, known)
        known |= {"task_id": job.task_id, "resumed": True}
        if job.state is JobState.SUBMITTING and plan.custom_id is not None:
            # Another batch is submitting it now; under one name there is one task.
            return await self._make(item.request, plan, name, known)
        if job.state.is_unanswered:
            raise in_doubt_of(job)
        if job.state is JobState.FAILED:
            raise _failed(job)
        if job.state is JobState.SAVED:
            if self.place is None:
                return True
            found = await self.place.found(name, job.task_id or "", job.file_bytes)
            if found is not None:
                known |= found
                return True
            assert journal is not None  # noqa: S101  (the job is from it)
            await journal.step(job.key, JobState.FINISHED, self._sessions.settings.clock.wall())
        await self._follow(self._sessions.attach(job, item.request), name, known)
        return True

    async def _planned(self, index: int, item: Item) -> tuple[Plan, Job | None]:
        """Return the plan of a job and, if there is a journal, its row."""
        journal, now = self._sessions.journal, self._sessions.settings.clock.wall()
        plan = await plan_for(item)
        if journal is None:
            if plan.key == plan.fingerprint:
                # The position tells equal requests apart.
                plan = attrs.evolve(plan, key=nth(plan.fingerprint, index + 1))
            return plan, None
        job = await job_of(journal, attrs.evolve(plan, source=item.source), now)
        if job.state is JobState.FAILED and self.retry_failed:
            job = await journal.step(job.key, JobState.PLANNED, now, task_id=None)
        if job.state is JobState.PLANNED and job.custom_id is not None:
            # Another process may have settled what this one remembers.
            self._sessions.names.forget(job.custom_id)
        # The journal's fingerprint is keyed, so that a file name does not give the prompt away.
        return attrs.evolve(plan, key=job.key, fingerprint=job.fingerprint), job

    async def _make(
        self, request: Generation, plan: Plan, name: str, known: dict[str, Any]
    ) -> bool:
        """Submit and follow a job; return False if nothing more may be submitted."""
        if self.place is not None:
            await self.place.check(name, plan, overwrite=self.overwrite)
        kind = (plan.endpoint, plan.model, plan.seconds)
        if self._budget is not None and not await self._budget.take(kind):
            return False
        cost: float | None = None
        try:
            if self.is_over:
                cost = 0.0
                return False
            try:
                task = await self._submit(request, plan)
            except RunwayError as error:
                if error.task_id is None and not isinstance(error, errors.SubmissionInDoubt):
                    cost = 0.0
                raise
            self._summary.submitted += 1
            await self._follow(task, name, known)
        finally:
            if "points" in known:
                cost = 0.0 if known["refunded"] else known["points"]
            if self._budget is not None:
                self._budget.put_back(kind, cost)
        return True

    async def _submit(self, request: Generation, plan: Plan) -> Task:
        """
        Submit a job.

        A foreign exception becomes an error that says whether it may have been charged.
        """
        journal = self._sessions.journal
        row = plan if journal else None
        try:
            return await self._sessions.submit(request, custom_id=plan.custom_id, plan=row)
        except RunwayError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled(error):
                raise
            fault = error
        # Outside of the clause: an error that is raised there would quote this one.
        job = await journal.find(plan.key) if journal else None
        if job is not None and (job.task_id or job.state is JobState.PLANNED):
            raise _unexpected(fault, job.task_id)
        raise errors.SubmissionInDoubt(
            _described(fault),
            "It may have been accepted and charged; it is not sent again.",
            "Check the gateway's list of tasks before you submit it again.",
        )

    async def _follow(self, task: Task, name: str, known: dict[str, Any]) -> None:
        """Wait for a task that is paid for, and save its clip."""
        known["task_id"] = task.id
        try:
            clip = await task.ended(self.timeout)
        except errors.TaskFailed as error:
            known |= {"points": error.points, "refunded": error.refunded}
            raise
        record = clip.record
        known |= {"clip": clip, "points": record.points, "refunded": record.refunded}
        if self.place is None:
            return
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                known |= await self.place.save(clip, name, overwrite=self.overwrite)
        except TimeoutError:
            if not limit.expired():
                raise
            raise errors.DownloadIncomplete(
                f"The download did not finish within {self.timeout:g} s.",
                "The clip exists and is paid for.",
                "Run the batch again with the same journal to resume the download.",
                clip.id,
            ) from None


def _described(error: BaseException) -> str:
    """Return the type of *error* and where it was raised; its own text may quote a secret."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    module = frame.f_globals.get("__name__", "?")
    return f"An unexpected {type(error).__name__} was raised ({module}, line {line})."


def _unexpected(error: BaseException, task_id: str | None) -> errors.UnexpectedError:
    if task_id is None:
        money = "Nothing was sent or charged."
        advice = "Correct the request, or report this as a bug."
    else:
        money = "The task is paid for; use its id to get the clip."
        advice = "Run the batch again with the same journal, or wait for the task by its id."
    return errors.UnexpectedError(_described(error), money, advice, task_id)


def _failed(job: Job) -> RunwayError:
    """Return the error of a job that failed in an earlier run."""
    charged = "For the cost, see the outcome of that run."
    if job.refunded:
        charged = "The points were refunded."
    kind = getattr(errors, job.error or "", errors.TaskFailed)
    if issubclass(kind, errors.GatewayError):
        charged = "Nothing was charged."
    elif not issubclass(kind, errors.TaskFailed):
        kind = errors.TaskFailed
    failure: RunwayError = kind(
        f"It failed in an earlier run ({job.error}).",
        charged,
        "Run the batch with retry_failed (--retry-failed) to submit it again.",
        job.task_id,
    )
    return failure
