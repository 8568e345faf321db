"""What a client without a journal knows of its submissions, as long as a doubt may need it."""

import time
from collections.abc import Sequence
from typing import Any

import attrs

from fuhu_runway._journal.actions import unknown
from fuhu_runway.journal import CHARGE, Job, JobState, Plan, hash_prompt
from fuhu_runway.models import usage_error


class Memory:
    """
    The submissions of one client, as rows of a journal; lost with the process.

    Only those that were sent and not refused; the accepted ones for *seconds*, or while others are
    in doubt, since their tasks belong to no other submission.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._jobs: dict[str, Job] = {}
        self._doubts: set[str] = set()

    def row(self, plan: Plan, now: float) -> "Row":
        """Return the row of a submission that is not sent yet."""
        job = Job(**attrs.asdict(plan), state=JobState.PLANNED, planned_at=now)
        return Row(self, job)

    def put(self, job: Job, now: float) -> Job:
        """Record how far a submission has got."""
        self._doubts.discard(job.key)
        if job.state in {JobState.PLANNED, JobState.FAILED}:
            self._jobs.pop(job.key, None)
            return job
        self._jobs[job.key] = job
        if job.state is JobState.IN_DOUBT:
            self._doubts.add(job.key)
        is_old = True
        while is_old and not self._doubts and self._jobs:
            first = next(iter(self._jobs.values()))
            is_old = now - (first.accepted_at or now) > self._seconds
            if is_old:
                del self._jobs[first.key]
        return job

    async def step(self, key: str, to: JobState, now: float, **changes: Any) -> Job:
        """Move a submission that was sent to its next state; see `BaseJournal.step`."""
        if key not in self._jobs:
            raise unknown(key)
        return await Row(self, self._jobs[key]).step(key, to, now, **changes)

    async def resolve(
        self,
        key: str,
        *,
        task_id: str | None = None,
        accepted: bool | None = None,
        proof: str = "person",
        at: float | None = None,
    ) -> Job:
        """Record what happened to a submission in doubt; see `BaseJournal.resolve`."""
        job = self._jobs.get(key)
        if job is None or job.state is not JobState.IN_DOUBT:
            raise usage_error("key", "It is not in doubt.", "There is nothing to resolve.")
        if task_id is not None and await self.find(task_id) not in {None, job}:
            happened = "This task belongs to another submission."
            raise usage_error("task_id", happened, "Use another task id.")
        to = JobState.PLANNED if accepted is False else JobState.ACCEPTED
        now = time.time()
        done = attrs.evolve(job, state=to, task_id=task_id, accepted_at=at or now, proof=proof)
        return self.put(done, now)

    async def charge(self, key: str) -> None:
        """Record that the gateway's log shows a charge for a submission in doubt."""
        job = self._jobs.get(key)
        if job is not None and job.state is JobState.IN_DOUBT:
            self._jobs[key] = attrs.evolve(job, proof=CHARGE)

    async def jobs(self, *states: JobState) -> list[Job]:
        """Return the submissions in these states, or all."""
        kept = list(self._jobs.values())  # other loops and threads may change it
        return [job for job in kept if not states or job.state in states]

    async def find(self, name: str) -> Job | None:
        """Return the submission with this key or task id; None if there is none."""
        kept = list(self._jobs.values())
        return next((job for job in kept if name in {job.key, job.task_id}), None)

    async def hash_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Return the hash of each prompt, as the rows have it."""
        return [hash_prompt(prompt) for prompt in prompts]


@attrs.define
class Row:
    """One submission in the memory of a client; takes the steps of a journal's row."""

    memory: Memory
    job: Job

    async def step(
        self, key: str, to: JobState, now: float, *, attempt: int | None = None, **changes: Any
    ) -> Job:
        """Move the submission to its next state."""
        del key, attempt  # there is only this process, which does not send it twice
        if to is JobState.SUBMITTING:
            changes["submitted_at"] = now
        elif to is JobState.ACCEPTED:
            changes["accepted_at"] = now
        self.job = self.memory.put(attrs.evolve(self.job, state=to, **changes), now)
        return self.job
