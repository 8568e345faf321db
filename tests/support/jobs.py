"""Jobs of a journal for tests: plans, the shortest way to each state, and raw statements."""

from typing import Any, Final

from fuhu_runway.hooks import TaskSettled
from fuhu_runway.journal import BaseJournal, Job, JobState, Plan
from fuhu_runway.models import TaskState

PLANNED, SUBMITTING, ACCEPTED = JobState.PLANNED, JobState.SUBMITTING, JobState.ACCEPTED
FINISHED, SAVED, FAILED = JobState.FINISHED, JobState.SAVED, JobState.FAILED
IN_DOUBT = JobState.IN_DOUBT

NOW: Final = 1_700_000_000.0

# The steps of a job, written a second time and by hand.
ARROWS: Final = {
    (PLANNED, SUBMITTING),
    (SUBMITTING, ACCEPTED),
    (SUBMITTING, PLANNED),
    (SUBMITTING, FAILED),
    (SUBMITTING, IN_DOUBT),
    (ACCEPTED, FINISHED),
    (ACCEPTED, FAILED),
    (FINISHED, SAVED),
    (SAVED, FINISHED),
    (FAILED, PLANNED),
    (IN_DOUBT, ACCEPTED),
    (IN_DOUBT, PLANNED),
}
ROADS: Final[dict[JobState, tuple[JobState, ...]]] = {
    PLANNED: (),
    SUBMITTING: (SUBMITTING,),
    ACCEPTED: (SUBMITTING, ACCEPTED),
    FINISHED: (SUBMITTING, ACCEPTED, FINISHED),
    SAVED: (SUBMITTING, ACCEPTED, FINISHED, SAVED),
    FAILED: (SUBMITTING, FAILED),
    IN_DOUBT: (SUBMITTING, IN_DOUBT),
}


def wanted(key: str = "k", **changes: Any) -> Plan:
    """Return a plan."""
    return Plan(**{"key": key, "fingerprint": f"of {key}", "endpoint": "TextToVideo"} | changes)


async def job_at(journal: BaseJournal, state: JobState, key: str = "k") -> Job:
    """Return a job that came to *state* by the shortest way."""
    job = await journal.plan(wanted(key), NOW)
    for step in ROADS[state]:
        changes = {"task_id": f"task of {key}"} if step is ACCEPTED else {}
        job = await journal.step(key, step, NOW, **changes)
    return job


def settled(state: TaskState, task_id: str = "task of k") -> TaskSettled:
    """Return the event of a task's end; all but success is refunded."""
    return TaskSettled(task_id, state, 3, 320.0, state is not TaskState.SUCCEEDED)


async def rows_of(journal: BaseJournal, sql: str) -> list[dict[str, Any]]:
    """Return what a statement returns, in any store."""

    def action() -> Any:
        return list(map(dict, (yield sql, {})))

    rows: list[dict[str, Any]] = await journal._perform(action)
    return rows
