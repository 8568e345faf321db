"""
Find out what happened to submissions in doubt, from the gateway's own lists.

Rule 1: a decision is on disk before it takes effect.
Rule 2: a submission that still searches for its own task is never settled as not accepted,
and gets no task of the last few seconds: another one that fits may not be listed yet.
"""

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Final

import attrs

from fuhu_runway import hooks as events
from fuhu_runway._clock import ahead
from fuhu_runway.account import Found, Left, Reconciliation
from fuhu_runway.errors import JournalError, NotFound, RunwayError, Unauthorized, UsageError
from fuhu_runway.journal import CHARGE, Job, JobState
from fuhu_runway.models import TaskRecord, TaskState

from .listings import ListReader, sent_of
from .matching import Reason, Verdict, decide
from .records import Records
from .session import Session

if TYPE_CHECKING:
    from .sessions import Sessions

FIRST: Final = 1.0
"""From a lost response until the list is read first, in seconds; rows appear late."""
LONGEST: Final = 8.0
"""The longest interval between two reads, in seconds; gateways allow about one a second."""
MAX_LOG_READS: Final = 10
"""How often searches read the log of the key in LOG_SECONDS; gateways allow about twenty."""
LOG_SECONDS: Final = 1200.0
"""See MAX_LOG_READS, in seconds."""
STEADY: Final = 2.0
"""How far this machine's clock may be set back after a submission that the gateway's records are to
rule out, in seconds; if more, its own task may be overlooked."""


@attrs.define(eq=False)
class Search:
    """A submission that searches for its own task."""

    loop: asyncio.AbstractEventLoop = attrs.field(factory=asyncio.get_running_loop)
    #: Set when it ends.
    ended: asyncio.Event = attrs.field(factory=asyncio.Event)
    task_id: str | None = None

    def end(self, task_id: str | None = None) -> None:
        """End it, with or without a task; called in any thread."""
        self.task_id = task_id
        self.loop.call_soon_threadsafe(self.ended.set)


class Reconciler:
    """What one client finds out about its doubts. Its methods take the sessions, which own it."""

    def __init__(self) -> None:
        self._reader = ListReader()
        #: The submissions that search for their own tasks, by the keys of their jobs.
        self._searching: dict[str, Search] = {}
        self._looking: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}
        #: When searches had the log of the key read, and whether the gateway seems to have one.
        self._log_reads: deque[float] = deque(maxlen=MAX_LOG_READS)
        self._has_log = True
        #: The state of this machine's clock when submissions in doubt were sent, by their keys.
        self.ahead: dict[str, float] = {}

    async def search(self, sessions: "Sessions", session: Session, key: str) -> TaskRecord | None:
        """
        Return the task of a submission that was just sent, as soon as the list shows it.

        Return None if it does not within `Account.search_seconds`, if it cannot be read, or if the
        client is closed. Submissions that search at the same time share the requests.
        """
        account = sessions.account
        if account is None:
            return None
        loop = asyncio.get_running_loop()
        search = self._searching[key] = Search()
        if loop not in self._looking or self._looking[loop].done():
            self._looking = {one: at for one, at in self._looking.items() if not one.is_closed()}
            self._looking[loop] = loop.create_task(
                self._reread(sessions, session), context=contextvars.Context()
            )
        try:
            async with asyncio.timeout(account.search_seconds):
                await search.ended.wait()
        except TimeoutError:
            return None
        finally:
            del self._searching[key]
        return None if search.task_id is None else TaskRecord(search.task_id, TaskState.QUEUED)

    async def _reread(self, sessions: "Sessions", session: Session) -> None:
        """Read the list while a submission of this loop searches, at growing intervals."""
        loop, delay, seen = asyncio.get_running_loop(), FIRST, set[str]()
        while mine := {
            key: search
            for key, search in list(self._searching.items())
            if search.loop is loop and not search.ended.is_set()
        }:
            delay = min(2 * delay, LONGEST) if mine.keys() <= seen else FIRST
            seen |= mine.keys()
            try:
                await session.transport.pause(delay)
                await self.run(sessions, session, mine.keys())
            except (NotFound, Unauthorized, UsageError) as error:
                # It would fail again in a few seconds, or the client was closed.
                if not isinstance(error, UsageError):
                    sessions.hooks.emit(events.ReconciliationFailed(type(error).__name__))
                for search in mine.values():
                    search.ended.set()
            except RunwayError:
                continue

    async def run(
        self, sessions: "Sessions", session: Session, keys: AbstractSet[str] | None = None
    ) -> Reconciliation:
        """
        Settle what can be settled: of all submissions in doubt, or of those with *keys*, just sent.

        Raises:
            RunwayError: The lists, or the journal, cannot be read; nothing was settled.
        """
        ledger = sessions.ledger
        doubts = [
            job
            for job in await ledger.jobs(JobState.IN_DOUBT)
            if job.submitted_at is not None and (keys is None or job.key in keys)
        ]
        if not doubts:
            return Reconciliation()
        lists = await self._reader.read(sessions, doubts, is_search=keys is not None)
        if keys is None:
            self._has_log = lists.has_log
        # After the lists: see rule 1 of `listings`.
        states = () if keys is None else (JobState.SUBMITTING, JobState.IN_DOUBT)
        jobs = await ledger.jobs(*states)
        still = {job.key for job in jobs if job.state is JobState.IN_DOUBT}
        doubts = [job for job in doubts if job.key in still]
        records = await self._reader.records(sessions, lists, jobs, is_search=keys is not None)
        sent = [sent_of(job, lists.offset) for job in doubts]
        verdicts = decide(sent, records)
        if (
            keys is not None
            and self._has_log
            and any(_is_for_log(one, records) for one in verdicts)
        ):
            return await self._with_log(sessions, session)
        found, not_accepted, left = list[Found](), list[str](), list[Left]()
        for job, verdict in zip(doubts, verdicts, strict=True):
            task, reason = verdict.task, verdict.reason
            reason = reason or self._objection(sessions, job, verdict, records)
            if reason is not None:
                said = _text_of(reason, verdict)
                is_charged = reason is Reason.CHARGED
                if verdict.charges == (1, 1) and job.proof is None:
                    # When the log is read next, it may be cut off, or not be shown.
                    await ledger.charge(job.key)
                left.append(Left(job.key, said, verdict.task_ids, is_charged, job.custom_id))
                continue
            # In its own task: a cancelled caller must not leave a decision that took no effect.
            settling = session.follow(self._settle(sessions, session, job, verdict, lists.offset))
            is_ours = await asyncio.shield(settling)
            if is_ours is None:
                ids = () if task is None else (task.task_id,)
                is_charged = job.proof == CHARGE
                left.append(Left(job.key, Reason.UNRECORDED, ids, is_charged, job.custom_id))
            elif is_ours:  # pragma: no branch  (coverage loses it after an error)
                if task is None:
                    not_accepted.append(job.key)
                else:
                    found.append(Found(job.key, task.task_id, str(verdict.proof), job.custom_id))
        return Reconciliation(tuple(found), tuple(not_accepted), tuple(left))

    def _objection(
        self, sessions: "Sessions", job: Job, verdict: Verdict, records: Records
    ) -> Reason | None:
        """Return what only this process knows against a verdict; None if there is nothing."""
        is_searching = self._search_for(job.key) is not None
        if is_searching and (verdict.task is None or _is_recent(verdict, records)):
            return Reason.EARLY  # see rule 2
        # By the clock of now, it was sent earlier than its row says, so that its task and its
        # charge may be listed earlier than they are looked for.
        set_back = self.ahead.get(job.key, -math.inf) - ahead(sessions.settings.clock)
        return Reason.SET_BACK if verdict.task is None and set_back > STEADY else None

    def _search_for(self, key: str) -> Search | None:
        """Return the search of a submission; None if its loop was closed before it ended."""
        search = self._searching.get(key)
        return None if search is None or search.loop.is_closed() else search

    async def _with_log(self, sessions: "Sessions", session: Session) -> Reconciliation:
        """Settle what a search has found, unless the log has been read too often for that."""
        # A task of another program with the same prompt may be listed first.
        now, reads = sessions.settings.clock.now(), self._log_reads
        if len(reads) == MAX_LOG_READS and now - reads[0] < LOG_SECONDS:
            return Reconciliation()
        reads.append(now)
        return await self.run(sessions, session)

    async def _settle(
        self, sessions: "Sessions", session: Session, job: Job, verdict: Verdict, offset: float
    ) -> bool | None:
        """
        Record a verdict, and follow the task; return False if it was settled meanwhile.

        Return None if the journal refuses it, such as an id that it cannot hold.
        """
        ledger, task = sessions.ledger, verdict.task
        clock, emit, proof = sessions.settings.clock, sessions.hooks.emit, str(verdict.proof)
        try:
            if task is None:
                await ledger.resolve(job.key, accepted=False, proof=proof)
            else:
                created_at = (task.created_at or math.inf) - offset
                at = min(max(created_at, job.submitted_at or 0.0), clock.wall())
                job = await ledger.resolve(job.key, task_id=task.task_id, proof=proof, at=at)
        except UsageError:
            return False  # by a person, a webhook or another process
        except JournalError as refused:
            if isinstance(refused.__cause__, ConnectionError):
                raise  # so would the others be
            task_id = None if task is None else task.task_id
            emit(events.SubmissionUnrecorded(job.key, refused.happened, task_id))
            if search := self._search_for(job.key):
                search.end()  # it would be refused again in a few seconds
            return None
        emit(events.DoubtSettled(job.key, proof, job.task_id))
        if task is None:
            if job.custom_id is not None:
                sessions.names.doubts.pop(job.custom_id, None)
            return True
        search = self._search_for(job.key)
        if search is not None:
            search.end(task.task_id)
        sessions.keep_found(session, job, is_awaited=search is not None)
        return True


def _is_recent(verdict: Verdict, records: Records) -> bool:
    """Return whether another task that fits as well may not be listed yet."""
    return verdict.task is not None and records.is_recent(verdict.task.created_at or 0.0)


def _is_for_log(verdict: Verdict, records: Records) -> bool:
    """Return whether the log of the key may show that a task is ours, or which of several."""
    is_one = verdict.task is not None and not _is_recent(verdict, records)
    return is_one or verdict.reason is Reason.SEVERAL


def _text_of(reason: Reason, verdict: Verdict) -> str:
    """Return a reason as a user reads it."""
    charges, doubts = verdict.charges or (1, 1)
    if charges >= doubts:
        return reason.value
    many = "s" * (charges > 1)
    return f"the log of the key shows {charges} charge{many} for {doubts} submissions in doubt"
