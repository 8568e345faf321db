"""
One worker: it takes jobs from the queue, and its client carries them out.

Rule 1: an entry of the queue is removed once the journal says how its job ended. Otherwise the job
is delivered again.
Rule 2: a worker ends once its lease has expired, that is, once the database has had no heartbeat of
it for that long: others have its jobs by then. First it writes the ids of what it has paid for.
Rule 3: it waits for a database that cannot be reached, but not for one that refuses what it is to
write: that is logged, and its job is in doubt.
"""

import asyncio
import time
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import attrs
from procrastinate import BaseRetryStrategy, JobContext, RetryDecision, exceptions
from procrastinate.job_context import AbortReason

from fuhu_runway.client import Client
from fuhu_runway.contrib._postgres import Unreachable, reason_of
from fuhu_runway.errors import (
    JournalError,
    NotSent,
    OutOfCredits,
    RunwayError,
    Unauthorized,
    WaitAbandoned,
)
from fuhu_runway.hooks import (
    LOGGER,
    Event,
    SubmissionDoubted,
    SubmissionFailed,
    SubmissionStarted,
    SubmissionUnclaimed,
    TaskSubmitted,
)
from fuhu_runway.journal import BaseJournal, JobState

from .queue import AGAIN, PAUSE, QUEUE, Queue
from .requests import Cipher, unpacked

PATIENCE: Final = 30.0
"""How long a job that may not be sent yet keeps its place in a worker, in seconds."""
LATER: Final = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
"""Seconds until a job that did not end is delivered again; the last holds for all that follow."""
PAUSED: Final = 60.0
"""How long nothing is sent after the gateway refused the key or was unreachable, in seconds."""

NOTED: Final = (
    SubmissionStarted,
    TaskSubmitted,
    SubmissionFailed,
    SubmissionDoubted,
    SubmissionUnclaimed,
)
"""The events that a worker notes."""

_JOB: Final = ContextVar[str]("_JOB", default="")
"""The key of the job that is carried out in a context."""


class LeaseExpired(RunwayError):
    """A worker could not reach the database for the length of its lease, and has ended."""


class Again(Exception):
    """The job has not ended, and has to be delivered again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"delivered again in {seconds:g} s")
        self.seconds = seconds


class Retries(BaseRetryStrategy):
    """Delivers a job again that has not ended."""

    def get_retry_decision(self, *, exception: BaseException, job: Any) -> RetryDecision | None:  # noqa: ARG002
        """Return when to deliver it; None after a defect, where `Queue.requeue_lost` does."""
        if not isinstance(exception, Again):
            return None
        retry_at = datetime.now(UTC) + timedelta(seconds=exception.seconds)
        # Jobs that may already be submitted precede new ones.
        return RetryDecision(retry_at=retry_at, priority=AGAIN)


@attrs.define(eq=False, kw_only=True)
class Worker:
    """A worker of a fleet, in this process: one of its own, or a part of the user's own App."""

    queue: Queue
    journal: BaseJournal
    client: Client
    #: How `Client.carry_out` saves and waits.
    options: dict[str, Any]
    cipher: Cipher | None
    lease: float
    tasks_in_flight: int | None
    max_points: float | None
    #: Whether its lease has expired, so that others have its jobs.
    is_over: bool = attrs.field(init=False, default=False)
    #: Entries of the queue that it works on, by procrastinate's ids.
    _running: set[int] = attrs.field(init=False, factory=set)
    #: Keys of jobs that may be sent now, and may not be in flight yet.
    _started: set[str] = attrs.field(init=False, factory=set)
    #: Keys of jobs whose submission has not ended, by its number.
    _submitting: dict[int | None, str] = attrs.field(init=False, factory=dict)
    #: Its id in procrastinate's table; known with the first entry.
    _id: int | None = attrs.field(init=False, default=None)
    #: Ends when the lease expires; None unless the worker runs.
    _fence: "asyncio.Task[None] | None" = attrs.field(init=False, default=None)
    _turn: asyncio.Lock = attrs.field(init=False, factory=asyncio.Lock)
    _paused_until: float = attrs.field(init=False, default=0.0)
    #: Whether the log says that the limit of points is reached.
    _is_spent: bool = attrs.field(init=False, default=False)

    async def run(self, in_flight: int, grace: float, *, signals: bool) -> None:
        """Carry out jobs until a signal; see `Fleet.work`."""
        app = self.queue.app
        working = asyncio.create_task(
            app.run_worker_async(
                queues=[QUEUE],
                name="fuhu",
                concurrency=in_flight,
                shutdown_graceful_timeout=grace,
                delete_jobs="always",
                install_signal_handlers=signals,
                update_heartbeat_interval=self.lease / 3,
                stalled_worker_timeout=self.lease,
                fetch_job_polling_interval=min(5.0, self.lease / 3),
            )
        )
        requeuing = asyncio.create_task(self.requeue_lost())
        self._fence = fence = asyncio.create_task(self._lease_expires())
        try:
            await asyncio.wait([working, fence], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                return
            fence.result()  # raises if the database refused the statement
            self.queue.connector.has_expired = True
            working.cancel()
            await self._let_go()
            raise LeaseExpired(
                f"The database could not be reached for {self.lease:g} s.",
                "Nothing is paid for twice, or lost unless the log says so: other workers continue "
                "these jobs.",
                "Start the worker again.",
            )
        finally:
            requeuing.cancel()
            fence.cancel()
            if not working.cancelling():  # a second time would not wait for its jobs
                working.cancel()
            # They only raise now that the database cannot be reached.
            await asyncio.gather(requeuing, fence, working, return_exceptions=True)
            self._fence = None
            self.queue.connector.has_expired = False

    async def aclose(self) -> None:
        """Close the client."""
        if self._fence is not None:
            self._fence.cancel()
        await self.client.aclose()

    # The lease

    async def _lease_expires(self) -> None:
        """Return once the database has had no heartbeat for the length of the lease."""
        loop = asyncio.get_running_loop()
        beat_at = loop.time()
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout_at(beat_at + self.lease):
                    sent_at = loop.time()
                    beat_at = sent_at - await self.queue.heartbeat_age(self._id)
                    await asyncio.sleep(self.lease / 6)  # twice per heartbeat, so none is missed

    async def _let_go(self) -> None:
        """Send nothing more, and write the ids of what was paid for."""
        self.is_over, may_be_paid = True, bool(self._started)
        LOGGER.warning(
            "The database has had no heartbeat for %g s. This worker takes up nothing more, and "
            "ends once the ids of what was paid for are written.",
            self.lease,
        )
        await self.client.aclose()
        if may_be_paid:
            await self._written()

    async def _written(self) -> None:
        """
        Return once the journal has written what it has to, however long that takes.

        If it refuses that, waiting longer would change nothing: the log has it.
        """
        while True:
            try:
                await self.journal.flush()
            except JournalError as error:
                if isinstance(error.__cause__, Unreachable):
                    await asyncio.sleep(PAUSE)
                    continue
                LOGGER.error(
                    "The journal cannot be written: %s What was paid for in the meantime is in this"
                    " log, and the journal will have it as in doubt.",
                    error.happened,
                )
            return

    async def _let_go_at_expiry(self) -> None:
        """Stop this part of the user's App when its lease expires; the App itself continues."""
        await self._lease_expires()
        await self._let_go()

    async def requeue_lost(self) -> None:
        """Requeue the jobs of dead workers, and jobs that this one holds without knowing it."""
        lost: set[int] = set()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (it runs in a loop)
        # The pool of connections may raise its own error when this is cancelled.
        while not task.cancelling():
            try:
                await self.queue.requeue_lost(self.lease)
                if self._id is not None:
                    # The reply to a fetch was lost if a job is unknown twice: one that is unknown
                    # once may be on its way.
                    unknown = await self.queue.unknown(self._id, self._running)
                    await self.queue.hand_over(
                        (entry, key) for entry, key in unknown.items() if entry in lost
                    )
                    lost = set(unknown)
            except Exception as error:  # noqa: BLE001  (the next round may succeed)
                reason = f"{reason_of(error)}."
                if isinstance(error, RunwayError):
                    reason = error.happened
                LOGGER.warning("The jobs of dead workers could not be taken over yet: %s", reason)
            await asyncio.sleep(min(5.0, self.lease / 3))

    # One job

    def note(self, event: Event) -> None:
        """Record which jobs are being submitted; a listener for the client."""
        if isinstance(event, SubmissionStarted):
            self._submitting[event.submission] = _JOB.get()
        else:
            self._submitting.pop(getattr(event, "submission", None), None)

    async def deliver(self, context: JobContext, key: str) -> None:
        """Carry out a job, from wherever it was left."""
        job = context.job
        assert job.id is not None  # noqa: S101  (it is from the database)
        self._running.add(job.id)
        self._id = job.worker_id
        _JOB.set(key)
        if self._fence is None:
            self._fence = asyncio.create_task(self._let_go_at_expiry())
        try:
            await self._carry_out(key, job.attempts)
        except asyncio.CancelledError:
            if key in self._started:
                # Otherwise another worker would find a request in flight, and mark it as in doubt.
                await self._settled(key)
            if context.abort_reason() is AbortReason.SHUTDOWN:
                raise Again(0.0) from None
            raise exceptions.JobAborted from None
        finally:
            self._running.discard(job.id)
            self._started.discard(key)

    async def _carry_out(self, key: str, attempts: int) -> None:
        found = await self.queue.take(key)
        if found is None:  # it was cancelled, or is over
            return
        if self.is_over:
            raise Again(0.0)
        if found.state is JobState.SUBMITTING and key not in self._submitting.values():
            # The journal has refused its outcome, or another worker will write it.
            with suppress(JournalError):
                await self.journal.step(key, JobState.IN_DOUBT, time.time(), error="NoReply")
        try:
            item, retry_failed = unpacked(
                found.body, key, is_encrypted=found.is_encrypted, cipher=self.cipher
            )
            if found.state is JobState.PLANNED or (found.state is JobState.FAILED and retry_failed):
                await self._let_through(key)
            del found  # not kept while the job waits
            outcome = await self.client.carry_out(item, retry_failed=retry_failed, **self.options)
        except WaitAbandoned:
            raise Again(0.0) from None  # its lease has expired
        except RunwayError as error:
            if isinstance(error, NotSent | OutOfCredits | Unauthorized):
                self._paused_until = asyncio.get_running_loop().time() + PAUSED
            seconds = LATER[min(attempts, len(LATER) - 1)]
            LOGGER.warning("Job %s is delivered again in %g s: %s", key, seconds, error)
            raise Again(seconds) from None
        if not outcome.is_in_doubt:
            # After a doubt, the request may be needed.
            await self.queue.remove(key)

    async def _let_through(self, key: str) -> None:
        """Wait until a job may be sent; if that takes long, make room for another job."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE), self._turn:
                while not await self._has_room():  # noqa: ASYNC110  (others make the room)
                    await asyncio.sleep(PAUSE)
                self._started.add(key)
                return
        raise Again(LATER[0])

    async def _has_room(self) -> bool:
        if asyncio.get_running_loop().time() < self._paused_until:
            return False
        if self.max_points is not None:
            was_spent, self._is_spent = self._is_spent, await self.queue.spent() >= self.max_points
            if self._is_spent:
                if not was_spent:
                    LOGGER.warning(
                        "The limit of %g points is reached. Jobs that were not sent wait; nothing"
                        " more is charged. To go on, start the workers with a higher limit.",
                        self.max_points,
                    )
                return False
        limit = self.tasks_in_flight
        return limit is None or await self.queue.in_flight(self._started) < limit

    async def _settled(self, key: str) -> None:
        """Return once the response to what is being sent is written, or refused by the journal."""
        while key in self._submitting.values():  # noqa: ASYNC110  (events say when that ends)
            await asyncio.sleep(PAUSE)
        await self._written()
