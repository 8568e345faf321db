"""The steps of one submission in the journal: written before and after it is sent."""

import re
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from fuhu_runway._clock import Clock
from fuhu_runway.errors import (
    Fate,
    JournalError,
    OutOfCredits,
    RunwayError,
    SubmissionInDoubt,
    Unauthorized,
)
from fuhu_runway.hooks import LOGGER
from fuhu_runway.journal import Job, JobState, Plan, fits

if TYPE_CHECKING:
    from .sessions import Sessions

_AFTER: Final = {
    Fate.UNSENT: JobState.PLANNED,
    Fate.REFUSED: JobState.PLANNED,
    Fate.REJECTED: JobState.FAILED,
    Fate.UNKNOWN: JobState.IN_DOUBT,
}
_CODE: Final = re.compile(r"[\w.:/-]{1,64}", re.ASCII)


class Steps(Protocol):
    """Where the steps of a submission are written: a journal, or the memory of a client."""

    async def step(
        self, key: str, to: JobState, now: float, *, attempt: int | None = None, **changes: Any
    ) -> Job: ...


@attrs.define
class Entry:
    """The row of one submission, updated before and after it is sent."""

    journal: Steps
    key: str
    clock: Clock
    #: The W3C Trace Context of the submission.
    traceparent: str | None = None
    #: The number of the attempt that was sent last; None before, and for a job of another process.
    attempt: int | None = attrs.field(init=False, default=None)

    async def sending(self) -> None:
        """Write that the request is about to be sent; send it once this has returned."""
        now = self.clock.wall()
        to, trace = JobState.SUBMITTING, self.traceparent
        self.attempt = (await self.journal.step(self.key, to, now, traceparent=trace)).submissions

    async def accepted(self, task_id: str, at: float | None = None, **changes: Any) -> None:
        """Write the gateway's id of the task, which it accepted now or at an earlier instant."""
        now, changes = self.clock.wall() if at is None else at, {"task_id": task_id, **changes}
        await self._write(JobState.ACCEPTED, now, changes, f"task {task_id}")

    async def failed(self, error: RunwayError) -> None:
        """Write why there is no task. If it is in doubt, also the id in the damaged response."""
        to = _AFTER[getattr(error, "fate", Fate.REJECTED)]
        if isinstance(error, OutOfCredits | Unauthorized):
            to = JobState.PLANNED  # the request itself is not rejected
        name, code = type(error).__name__, getattr(error, "code", None)
        changes: dict[str, Any] = {
            "error": name,
            # The gateway may put any text here, such as a sentence that quotes the prompt.
            "code": code if code and _CODE.fullmatch(code) else None,
        }
        if to is JobState.IN_DOUBT and fits(error.task_id):
            changes["task_id"] = error.task_id
        await self._write(to, self.clock.wall(), changes, name)

    async def _write(self, to: JobState, now: float, changes: dict[str, Any], outcome: str) -> None:
        """Write an outcome. The outcome matters more: an error of the journal is only logged."""
        try:
            await self.journal.step(self.key, to, now, attempt=self.attempt, **changes)
        except JournalError as fault:
            # The row still says SUBMITTING, which is in doubt once the journal is closed.
            LOGGER.error(
                "The journal could not record how a submission ended (%s): %s",
                outcome,
                fault.happened,
            )


async def entry_for(
    sessions: "Sessions", plan: Plan, traceparent: str | None, *, is_new: bool
) -> Entry:
    """Return the row of a submission, planned in the journal if it is new."""
    clock, journal = sessions.settings.clock, sessions.journal
    if journal is None:
        return Entry(sessions.memory.row(plan, clock.wall()), plan.key, clock, traceparent)
    await sessions.recall()
    if is_new:
        await journal.plan(plan, clock.wall())
    return Entry(journal, plan.key, clock, traceparent)


def in_doubt_of(job: Job) -> SubmissionInDoubt:
    """Return the error for a job that an earlier submission left in doubt."""
    return SubmissionInDoubt(
        f"An earlier run submitted this and got no clear response ({job.error or 'none so far'}).",
        "It may have been accepted and charged; it was not sent again.",
        "Settle it with `client.reconcile()` or `fuhu-runway reconcile`, or look for the task.",
        job.task_id,
    )
