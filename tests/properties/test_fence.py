"""Several workers on one journal in Postgres: whatever happens to them, a job is paid for once."""

import asyncio
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from support.jobs import rows_of

from fuhu_runway.errors import JournalError
from fuhu_runway.journal import STEPS, BaseJournal, Job, JobState, Plan, journal_at

KEYS = ("a",)
WORKERS = range(3)

workers = st.sampled_from(WORKERS)
keys = st.sampled_from(KEYS)  # one, so that what happens is about the same job
answers = st.sampled_from(["refused", "accepted", "lost"])


@attrs.define(eq=False)
class Sending:
    """One request at the gateway, until its worker has written the outcome."""

    key: str
    attempt: int
    #: What the worker will hear: a task, a refusal, or nothing.
    answer: str
    task_id: str | None


@attrs.define(eq=False)
class Worker:
    """One process: its journal, the jobs it took, and its requests that have no outcome yet."""

    journal: BaseJournal
    is_frozen: bool = False
    taken: set[str] = attrs.field(factory=set)
    sending: list[Sending] = attrs.field(factory=list)


class FenceMachine(RuleBasedStateMachine):
    """A gateway without idempotency, and workers that die, freeze and wake up."""

    def __init__(self, url: str, runner: asyncio.Runner) -> None:
        super().__init__()
        self.url, self.runner = url, runner
        self.dead: list[BaseJournal] = []
        self.workers = [Worker(journal_at(url)) for _ in WORKERS]
        self.watch = journal_at(url)
        self.run(rows_of(self.watch, "DELETE FROM job RETURNING 1"))
        #: The tasks that the gateway charged for, by job.
        self.charged: dict[str, list[str]] = {key: [] for key in KEYS}

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    @rule(number=workers, key=keys)
    def take(self, number: int, key: str) -> None:
        """A job is delivered, for the first time or again."""
        worker = self.workers[number]
        if worker.is_frozen or any(one.key == key for one in worker.sending):
            return
        plan = Plan(key=key, fingerprint="f", endpoint="TextToVideo")
        if self.run(worker.journal.plan(plan, 1.0)).state is JobState.PLANNED:
            worker.taken.add(key)

    @rule(number=workers, key=keys, answer=answers)
    def send(self, number: int, key: str, answer: str) -> None:
        """A worker writes that it is about to send, and sends if it may."""
        worker = self.workers[number]
        if worker.is_frozen or key not in worker.taken:
            return
        try:
            job = self.run(worker.journal.step(key, JobState.SUBMITTING, 2.0))
        except JournalError:
            worker.taken.remove(key)
            return
        # The gateway may charge although its answer is lost.
        is_charged = answer != "refused"
        task_id = f"{key}-{len(self.charged[key])}" if is_charged else None
        if task_id is not None:
            self.charged[key].append(task_id)
        worker.taken.remove(key)
        worker.sending.append(Sending(key, job.submissions, answer, task_id))

    @rule(number=workers)
    def answer(self, number: int) -> None:
        """The first outcome reaches a worker, which writes it; after a refusal it tries again."""
        worker = self.workers[number]
        if worker.is_frozen or not worker.sending:
            return
        sending = worker.sending.pop(0)
        to, changes = {
            "accepted": (JobState.ACCEPTED, {"task_id": sending.task_id}),
            "refused": (JobState.PLANNED, {}),
            "lost": (JobState.IN_DOUBT, {"error": "NoReply"}),
        }[sending.answer]
        before = self.job(sending.key)
        writing = worker.journal.step(sending.key, to, 3.0, attempt=sending.attempt, **changes)
        try:
            self.run(writing)
        except JournalError:
            # Another attempt was made since, or the doubt about this one was settled or stays.
            assert before.submissions > sending.attempt or to not in STEPS[before.state]
        else:
            if to is JobState.PLANNED:
                worker.taken.add(sending.key)

    @rule(number=workers)
    def die(self, number: int) -> None:
        """A worker is killed: its requests go on without it, and another process starts."""
        self.dead.append(self.workers[number].journal)
        self.workers[number] = Worker(journal_at(self.url))

    @rule(number=workers, other=workers)
    def freeze(self, number: int, other: int) -> None:
        """A worker stops for a while, is taken for dead, and its jobs are delivered to another."""
        worker = self.workers[number]
        worker.is_frozen = True
        for key in sorted({*worker.taken, *(one.key for one in worker.sending)}):
            self.take(other, key)

    @rule(number=workers, other=workers, answer=answers)
    def go_on_without(self, number: int, other: int, answer: str) -> None:
        """While a worker is frozen, a person settles its doubts, and another worker sends again."""
        self.freeze(number, other)
        for key in KEYS:
            self.look_up(key)
            self.take(other, key)
            self.send(other, key, answer)

    @rule(number=workers)
    def thaw(self, number: int) -> None:
        self.workers[number].is_frozen = False

    @rule(key=keys)
    def look_up(self, key: str) -> None:
        """A person settles a doubt, as the gateway says."""
        job = self.job(key)
        if job.state is JobState.IN_DOUBT:
            known = self.charged[key]
            fate = {"task_id": known[-1]} if known else {"accepted": False}
            self.run(self.watch.resolve(key, **fate))

    def job(self, key: str) -> Job:
        job = self.run(self.watch.find(key))
        return job or Job(key=key, state=JobState.PLANNED, endpoint="", fingerprint="")

    @invariant()
    def is_paid_once(self) -> None:
        assert all(len(tasks) <= 1 for tasks in self.charged.values())

    @invariant()
    def no_task_is_lost_untold(self) -> None:
        """What was charged is being sent, in doubt, or has its task."""
        for key, tasks in self.charged.items():
            job = self.job(key)
            if tasks:
                assert job.state in {JobState.SUBMITTING, JobState.IN_DOUBT, JobState.ACCEPTED}
                assert job.task_id in {None, tasks[0]}
                assert (job.state is JobState.ACCEPTED) == (job.task_id is not None)
            else:
                assert job.state is not JobState.ACCEPTED

    def teardown(self) -> None:
        """At rest, when every job was delivered once more, none is being sent."""
        for number, worker in enumerate(self.workers):
            worker.is_frozen = False
            while worker.sending:
                self.answer(number)
        self.die(0)
        for key in KEYS:
            self.take(0, key)
            assert self.job(key).state is not JobState.SUBMITTING
        self.no_task_is_lost_untold()
        for journal in [*self.dead, self.watch, *(worker.journal for worker in self.workers)]:
            self.run(journal.aclose())


def test_a_job_is_paid_for_once(journal_url: str) -> None:
    """Whichever workers get it, die, freeze and report late; and every doubt is reported."""
    with asyncio.Runner() as runner:
        run_state_machine_as_test(
            lambda: FenceMachine(journal_url, runner),
            settings=settings(max_examples=30, stateful_step_count=40),
        )
