"""`BaseJournal`: what every journal does, in any store."""

import asyncio
import contextlib
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar, Final, TypeVar
from weakref import WeakSet

from fuhu_runway._notebook import jobs_view, table_view
from fuhu_runway.errors import JournalError
from fuhu_runway.hooks import Event
from fuhu_runway.models import Generation, usage_error

from . import actions
from .actions import Action
from .notes import Note, note_of
from .plans import planned
from .states import Job, JobState, Plan
from .writer import Work, Writer

T = TypeVar("T")


class BaseJournal(ABC):
    """
    The state of every job, in any store. Each method returns once what it wrote is on disk.

    A store runs the statements of an action in one transaction, in a thread that does *work*.
    """

    #: Whether several processes use it at the same time.
    is_shared: ClassVar[bool] = False
    #: The name of this process in a shared journal.
    _owner: str | None = None
    #: The salt, if it is known without reading it.
    _salt: bytes | None = None

    def __init__(self, work: Work) -> None:
        self._writer = Writer(work)
        _JOURNALS.add(self)

    def __repr__(self) -> str:
        state = "open" if self._writer.is_open else "closed"
        return f"<{type(self).__name__} {self.name} {state}>"

    @property
    @abstractmethod
    def name(self) -> str:
        """A name that a person recognises, without secrets."""

    @abstractmethod
    async def _perform(
        self,
        make: Callable[[], Action[T]],
        *,
        is_outcome: bool = False,
        undo: Callable[[], Action[None]] | None = None,
    ) -> T:
        """
        Run the statements of the action that *make* returns, and return its result.

        A store that cannot be reached retries an outcome until it is written, and gives up other
        actions after a while; then *undo* reverts what may have been written.
        """

    def _token(self) -> str | None:
        """Return a name for a step, by which a shared store knows it again."""
        return secrets.token_hex(8) if self.is_shared else None

    @abstractmethod
    async def start_run(self) -> None:
        """
        Count occurrences of equal requests from zero.

        Raises:
            JournalError: The journal cannot be used.
        """

    @abstractmethod
    async def plan_next(self, plan: Plan, now: float) -> Job:
        """
        Return the row of the next job with this content in this run, made if there is none.

        Its key is the keyed fingerprint and how often that has come up in the run so far.

        Raises:
            JournalError: The journal cannot be used, or cannot hold the row.
        """

    def note(self, event: Event) -> None:
        """
        Write that a task ended, or that its clip was saved or handed out; a listener for `hooks`.

        Each row with the task's id takes the step, if it is legal; other tasks are ignored.
        """
        note = note_of(event, time.time())
        if note is not None and actions.fits(note.task_id):  # otherwise no row has it
            self._write(note)

    @abstractmethod
    def _write(self, note: Note) -> None:
        """Queue a note."""

    async def flush(self) -> None:
        """
        Return once everything that was noted is on disk.

        Raises:
            JournalError: A database cannot be reached; what was noted is written later.
        """
        await self._perform(actions.nothing)

    async def aclose(self) -> None:
        """
        Write what is outstanding and close; using the journal opens it again.

        If a database cannot be reached for a while, this is lost, and logged.
        """
        await self._writer.aclose()

    async def plan(self, plan: Plan, now: float) -> Job:
        """
        Return the row of a job, made in state PLANNED if there is none.

        In a shared journal, this process takes charge of the job, and what another process was
        submitting is in doubt.
        """
        return await self._perform(
            lambda: actions.plan(plan, now, salt=self._salt, owner=self._owner)
        )

    async def step(
        self, key: str, to: JobState, now: float, *, attempt: int | None = None, **changes: Any
    ) -> Job:
        """
        Move a job to its next state, and return the row.

        Args:
            key: The key of the job.
            to: The next state; the table `STEPS` says which may follow.
            now: The time, in Unix seconds.
            attempt: The number of the submission that this is the outcome of: the `submissions`
                of the row then. It is an error if the job was submitted again since.
            changes: Further columns to set, such as `task_id` or `error`.

        Raises:
            JournalError: The table does not have this step, there is no such job, another process
                has taken it over, or a value cannot be held. If a database cannot be reached, the
                cause is a `ConnectionError`.
        """
        token = self._token()
        return await self._perform(
            lambda: actions.step(
                key, to, now, changes, attempt=attempt, owner=self._owner, token=token
            ),
            # An outcome of a paid request must be written; a step before it may be given up.
            is_outcome=to is JobState.ACCEPTED or attempt is not None,
            undo=partial(actions.undo, key, token) if token and to is JobState.SUBMITTING else None,
        )

    async def resolve(
        self,
        key: str,
        *,
        task_id: str | None = None,
        accepted: bool | None = None,
        proof: str = "person",
        at: float | None = None,
    ) -> Job:
        """
        Record what happened to a job in doubt, and return its row.

        Free, and sends nothing: check with the gateway first: `client.feed(task_id)`. The next run
        of the batch follows a job that was accepted, and submits one that was not.

        Args:
            key: The `key` of the job, or its custom id.
            task_id: The job was accepted, as this task; for the task that a damaged response named,
                the `task_id` of the job.
            accepted: False: the job was not accepted. Do not guess: the next run pays for it.
            proof: How this is known; written to the row.
            at: When it was accepted, in Unix seconds; by default now.

        Raises:
            UsageError: There is no such job, it is not in doubt, the task belongs to another job,
                or not exactly one of *task_id* and `accepted=False` is given. Nothing changed.
        """
        if not (task_id if accepted is None else task_id is None and not accepted):
            raise usage_error(
                "task_id",
                "resolve needs either task_id, the id of the job's task, or accepted=False.",
                "Pass the one that applies.",
            )
        now, token = time.time() if at is None else at, self._token()
        return await self._perform(lambda: actions.resolve(key, task_id, proof, now, token))

    async def charge(self, key: str) -> None:
        """
        Record that the gateway's log shows a charge for a job in doubt; see `Job.proof`.

        From then on, the job is never settled as not accepted, even if the log no longer shows the
        charge.
        """
        await self._perform(lambda: actions.charge(key))

    async def adopt(
        self, task_id: str, endpoint: str, now: float, *, model: str | None = None
    ) -> Job:
        """
        Add a task that the journal does not have, and return its new row.

        Free. The row is ACCEPTED and its key is `task:` and the id, so that the clip can be saved.

        Args:
            task_id: The id of a task at the gateway.
            endpoint: The type of its request, such as "TextToVideo".
            now: When it was accepted, in Unix seconds.
            model: The name of its model, if it is known.

        Raises:
            UsageError: A job has this task. Nothing changed.
        """
        token = self._token()
        return await self._perform(
            lambda: actions.adopt(
                task_id,
                endpoint,
                now,
                model=model,
                salt=self._salt,
                owner=self._owner,
                token=token,
            )
        )

    async def ignore(self, *task_ids: str) -> None:
        """Remember tasks that are not jobs of this journal, so that they are not reported again."""
        await self._perform(lambda: actions.ignore(task_ids))

    async def ignored(self) -> set[str]:
        """Return the tasks that were passed to `ignore`."""
        return await self._perform(actions.ignored)

    async def keyed(self, plan: Plan) -> Plan:
        """Return a plan with its hashes as this journal writes them; it need not have the job."""
        return await self._perform(lambda: actions.key_plan(plan, self._salt))

    async def hash_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Return the keyed hash of each prompt, as the rows have it in `prompt_hash`."""
        return await self._perform(lambda: actions.hash_prompts(prompts, self._salt))

    async def forget(self, key: str, state: JobState | None = None) -> None:
        """
        Remove the row of a job; then nothing records what was paid for it.

        Args:
            key: The key of the job.
            state: Remove it only in this state; None removes it in any.

        Raises:
            JournalError: There is no such job, or it is in another state.
        """
        await self._perform(lambda: actions.forget(key, state))

    async def find(self, name: str) -> Job | None:
        """Return the first job with this key, task id or custom id; None if there is none."""
        return await self._perform(lambda: actions.find(name))

    async def jobs_of(self, request: Generation) -> list[Job]:
        """Return the jobs with exactly this content, in the order in which they were planned."""
        plan = await planned(request)
        return await self._perform(lambda: actions.jobs_of(plan, self._salt))

    async def jobs(self, *states: JobState) -> list[Job]:
        """Return the jobs in these states, or all, in the order in which they were planned."""
        return await self._perform(lambda: actions.jobs(states))

    async def unfinished(self) -> list[Job]:
        """Return the paid jobs that are not saved, handed out or known to have failed."""
        paid = await self.jobs(*(state for state in JobState if state.is_unfinished))
        return [job for job in paid if job.handed_out_at is None]

    async def left_over(self) -> list[Job]:
        """Return the unfinished jobs that no process follows: those of earlier processes."""
        # In a shared journal, other processes follow them, or a queue hands them to one.
        return [] if self.is_shared else await self.unfinished()

    async def counts(self) -> dict[JobState, int]:
        """Return how many jobs are in each state."""
        return await self._perform(actions.counts)

    async def in_flight(self) -> int:
        """Return how many tasks the jobs have at the gateway, or may have from now on."""
        counts = await self.counts()
        return sum(counts[state] for state in JobState if state.is_in_flight)

    async def durations(self) -> list[tuple[str, str | None, int | None, float]]:
        """Return (endpoint, model, seconds, duration in seconds) of finished jobs."""
        return await self._perform(actions.durations)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the newest jobs, without prompts."""
        # A display cannot be awaited, and the loop of the notebook runs already.
        with ThreadPoolExecutor(1) as thread:
            try:
                jobs = thread.submit(asyncio.run, self._shown()).result()
            except JournalError as error:
                return table_view(str(error), (), ())
        return jobs_view(self.name, jobs)

    async def _shown(self) -> list[Job]:
        """Return the jobs, in a separate event loop; close the journal again if it was closed."""
        was_open = self._writer.is_open
        try:
            return await self.jobs()
        finally:
            if not was_open:
                await self.aclose()

    @abstractmethod
    def _start_over(self) -> None:
        """Leave what the parent has open to it; called in a forked child."""


_JOURNALS: Final["WeakSet[BaseJournal]"] = WeakSet()


def _after_fork() -> None:
    for journal in _JOURNALS:
        journal._start_over()  # noqa: SLF001  (of this module)


with contextlib.suppress(AttributeError):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)
