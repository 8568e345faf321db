"""The steps of one submission in the journal: written before and after it is sent."""

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from fuhu_runway._clock import Clock
from fuhu_runway.errors import (
    Fate,
    NoReply,
    OutOfCredits,
    RunwayError,
    SubmissionInDoubt,
    Unauthorized,
)
from fuhu_runway.hooks import Hooks, SubmissionUnrecorded
from fuhu_runway.journal import CHARGE, Job, JobState, Plan

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
    hooks: Hooks
    #: The W3C Trace Context of the submission.
    traceparent: str | None = None
    #: The number of the submission in this process; None if another process began it.
    submission: int | None = None
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
        await self._write(JobState.ACCEPTED, now, changes)

    async def failed(self, error: BaseException) -> None:
        """Write why there is no task. If it is in doubt, also the id in the damaged response."""
        to, name = JobState.IN_DOUBT, type(error).__name__
        changes: dict[str, Any] = {}
        if isinstance(error, RunwayError):
            to = _AFTER[getattr(error, "fate", Fate.REJECTED)]
            if isinstance(error, OutOfCredits | Unauthorized):
                to = JobState.PLANNED  # the request itself is not rejected
            code = getattr(error, "code", None)
            # The gateway may put any text here, such as a sentence that quotes the prompt.
            changes["code"] = code if code and _CODE.fullmatch(code) else None
            if to is JobState.IN_DOUBT:
                changes["task_id"] = error.task_id
        elif isinstance(error, asyncio.CancelledError):
            name = NoReply.__name__  # it was cut off
        await self._write(to, self.clock.wall(), {"error": name, **changes})

    async def _write(self, to: JobState, now: float, changes: dict[str, Any]) -> None:
        """
        Write an outcome; if the journal refuses it, the job is in doubt, and no longer in flight.

        The outcome matters more than its row, so an error of the journal is only an event.
        """
        try:
            await self.journal.step(self.key, to, now, attempt=self.attempt, **changes)
        except Exception as fault:  # noqa: BLE001  (whatever it is, the outcome stands)
            reason = fault.happened if isinstance(fault, RunwayError) else type(fault).__name__
            task_id, error = changes.get("task_id"), changes.get("error")
            self.hooks.emit(SubmissionUnrecorded(self.key, reason, task_id, error, self.submission))
            # A database that cannot be reached cannot record a doubt either.
            if self.attempt is None or isinstance(fault.__cause__, ConnectionError):
                return
            doubt = {"error": error or type(fault).__name__, "code": changes.get("code")}
            if to is JobState.ACCEPTED:
                doubt["proof"] = CHARGE  # it must never be settled as not accepted
            with suppress(Exception):
                await self.journal.step(
                    self.key, JobState.IN_DOUBT, now, attempt=self.attempt, **doubt
                )


async def entry_for(
    sessions: "Sessions", plan: Plan, traceparent: str | None, number: int, *, is_new: bool
) -> Entry:
    """Return the row of a submission, planned in the journal if it is new."""
    clock, journal = sessions.settings.clock, sessions.journal
    steps: Steps
    if journal is None:
        steps = sessions.memory.row(plan, clock.wall())
    else:
        steps = journal
        await sessions.recall()
        if is_new:
            await journal.plan(plan, clock.wall())
    return Entry(steps, plan.key, clock, sessions.hooks, traceparent, number)


def in_doubt_of(job: Job) -> SubmissionInDoubt:
    """Return the error for a job that an earlier submission left in doubt."""
    return SubmissionInDoubt(
        f"An earlier run submitted this and got no clear response ({job.error or 'none so far'}).",
        "It may have been accepted and charged; it was not sent again.",
        "Settle it with `client.reconcile()` or `fuhu-runway reconcile`, or look for the task.",
        job.task_id,
    )
