"""The journal against a dict: any steps, events, closings and crashes in any order."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fuhu_runway.errors import JournalError
from fuhu_runway.hooks import DownloadFinished, TaskSettled
from fuhu_runway.journal import STEPS, JobState, Journal, Plan
from fuhu_runway.models import TaskState

keys = st.sampled_from(["a", "b", "c", "d"])
task_ids = st.sampled_from(["t1", "t2", "t3", "t4", "a"])
states = st.sampled_from(JobState)
ends = st.sampled_from([TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED])


@attrs.define
class Row:
    """What the model stores of a job."""

    state: JobState = JobState.PLANNED
    task_id: str | None = None
    submissions: int = 0


class JournalMachine(RuleBasedStateMachine):
    """A journal that is used, closed, and reopened after a crash."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.rows: dict[str, Row] = {}
        self.folder = Path(tempfile.mkdtemp())
        self.files = 0

    @initialize()
    def open(self) -> None:
        self.journal = Journal(self.folder / "0.db")

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    def doubt(self) -> None:
        """Jobs in flight become IN_DOUBT."""
        for row in self.rows.values():
            if row.state is JobState.SUBMITTING:
                row.state = JobState.IN_DOUBT

    @rule(key=keys)
    def plan(self, key: str) -> None:
        row = self.rows.setdefault(key, Row())
        job = self.run(self.journal.plan(Plan(key=key, fingerprint="f", endpoint="e"), 1.0))
        assert job.state is row.state

    @rule(key=keys, to=states, task_id=task_ids)
    def step(self, key: str, to: JobState, task_id: str) -> None:
        changes = {"task_id": task_id} if to is JobState.ACCEPTED else {}
        row = self.rows.get(key)
        is_legal = row is not None and to in STEPS[row.state]
        try:
            self.run(self.journal.step(key, to, 2.0, **changes))
        except JournalError:
            assert not is_legal
        else:
            assert is_legal
            assert row is not None
            row.state = to
            row.task_id = changes.get("task_id", None if to is JobState.PLANNED else row.task_id)
            row.submissions += to is JobState.SUBMITTING

    @rule(task_id=task_ids, end=ends)
    def receive_end(self, task_id: str, end: TaskState) -> None:
        self.journal.note(TaskSettled(task_id, end, 1, 1.0, refunded=False))
        for row in self.of_task(task_id, JobState.ACCEPTED):
            row.state = JobState.FINISHED if end is TaskState.SUCCEEDED else JobState.FAILED

    @rule(task_id=task_ids)
    def receive_saved(self, task_id: str) -> None:
        self.journal.note(DownloadFinished(task_id, 1))
        for row in self.of_task(task_id, JobState.FINISHED):
            row.state = JobState.SAVED

    def of_task(self, task_id: str, state: JobState) -> list[Row]:
        return [row for row in self.rows.values() if (row.task_id, row.state) == (task_id, state)]

    @rule()
    def close(self) -> None:
        self.run(self.journal.aclose())
        self.doubt()

    @rule()
    def crash(self) -> None:
        """Continue with the bytes that are on disk at this moment."""
        self.run(self.journal.counts())
        self.files += 1
        old, new = self.journal.path, self.folder / f"{self.files}.db"
        for suffix in ["", "-wal"]:
            shutil.copy(f"{old}{suffix}", f"{new}{suffix}")
        self.run(self.journal.aclose())
        self.journal = Journal(new)
        self.doubt()

    @invariant()
    def agrees_with_the_model(self) -> None:
        jobs = {job.key: job for job in self.run(self.journal.jobs())}
        found = {key: Row(job.state, job.task_id, job.submissions) for key, job in jobs.items()}
        assert found == self.rows
        counts = {state: count for state, count in self.run(self.journal.counts()).items() if count}
        assert sum(counts.values()) == len(self.rows)
        assert all(counts[row.state] for row in self.rows.values())

    def teardown(self) -> None:
        self.run(self.journal.aclose())
        self.runner.close()
        shutil.rmtree(self.folder)


class TestJournal(JournalMachine.TestCase):
    """
    After any plans, steps, events, closings and crashes, the file equals the model.

    An error of the journal means that the step was illegal, and that nothing has changed.
    """

    settings = settings(max_examples=40, stateful_step_count=25)
