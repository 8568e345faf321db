"""
Find out what happened to submissions in doubt, from the gateway's own lists.

Rule 1: the lists are read first, and the journal after them: a task that is listed is then known
to the journal, or its submission has no response yet.
Rule 2: what is decided is on disk before anything follows from it.
Rule 3: a submission that still searches for its own task is never found to be not accepted, and
does not get a task of the last seconds: one that fits as well may not be listed yet.
"""

import asyncio
import contextvars
import math
import re
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Final

import attrs

from fuhu_runway import hooks as events
from fuhu_runway._wire.refusals import CHARGED_CODES
from fuhu_runway._wire.tables import SUBMITS, Endpoint, is_official
from fuhu_runway.account import AccountTask, Found, KeyLog, Left, Reconciliation
from fuhu_runway.errors import NotFound, RunwayError, Unauthorized, UnreadableReply, UsageError
from fuhu_runway.journal import CHARGE, Job, JobState
from fuhu_runway.models import OfficialRequest, TaskRecord, TaskState

from .account import account_tasks, key_log
from .matching import Reason, Verdict, decide
from .records import NO_PROMPT, SLACK, Charge, Listed, Records, Sent
from .session import Session

if TYPE_CHECKING:
    from .sessions import Sessions

FIRST: Final = 1.0
"""From a lost response until the list is read first, in seconds; rows appear late."""
LONGEST: Final = 8.0
"""The longest interval between two reads, in seconds; gateways allow about one a second."""
MAX_PROOFS: Final = 5
"""How many known tasks are polled to see that prompts can be compared; each is one free poll."""
MAX_LOG_READS: Final = 10
"""How often searches read the log of the key in LOG_SECONDS; gateways allow about twenty."""
LOG_SECONDS: Final = 1200.0
"""See MAX_LOG_READS, in seconds."""

KINDS: Final = {kind.__name__: (kind, endpoint) for kind, endpoint in SUBMITS.items()}
"""The journal's name for a kind of request, to its class and its endpoint."""


def _plain(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word.lower())


def _route(endpoint: Endpoint) -> str:
    return endpoint.root.value + endpoint.path


def _routes() -> Mapping[str, frozenset[str]]:
    """Return the words for a kind of task, and the routes that each may stand for."""
    routes: dict[str, set[str]] = {}
    for endpoint in SUBMITS.values():
        for word in (endpoint.name.removeprefix("official_"), endpoint.path.rpartition("/")[2]):
            routes.setdefault(_plain(word), set()).add(_route(endpoint))
    routes.pop("generate")  # newer gateways use it for every kind of task
    return {word: frozenset(places) for word, places in routes.items()}


ROUTES: Final = _routes()


def _routes_of(action: str | None) -> frozenset[str]:
    """Return the routes that a gateway's word for a kind of task may stand for."""
    return ROUTES.get(_plain(action or ""), frozenset())


@attrs.frozen
class Lists:
    """The gateway's lists, as they were read."""

    #: The time from which the list was read, and at which, by this machine's clock.
    since: float
    now: float
    tasks: Sequence[AccountTask] | None = None
    #: How far the gateway's clock is ahead, in seconds.
    offset: float = 0.0
    is_complete: bool = True
    log: KeyLog | None = None

    @property
    def charges(self) -> list[Charge]:
        """What the key was charged for tasks; other programs may use it for other things."""
        return [
            Charge(row.charged_at.timestamp(), row.model, _routes_of(row.action))
            for row in (self.log.charges if self.log else ())
            if row.charged_at and row.action
        ]

    @property
    def charges_since(self) -> float:
        """The oldest row of the log: rows before it may be cut off, or of another key."""
        if self.log is None or self.log.starts_at is None:
            return -math.inf
        return self.log.starts_at.timestamp()


@attrs.define(eq=False)
class Search:
    """A submission that searches for its own task."""

    loop: asyncio.AbstractEventLoop = attrs.field(factory=asyncio.get_running_loop)
    #: Set when it ends.
    ended: asyncio.Event = attrs.field(factory=asyncio.Event)
    task_id: str | None = None


class Reconciler:
    """What one client finds out about its doubts. Its methods take the sessions, which own it."""

    def __init__(self) -> None:
        #: The submissions that search for their own tasks, by the keys of their jobs.
        self._searching: dict[str, Search] = {}
        self._looking: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}
        #: Ids of listed tasks that have an owner.
        self._owned: set[str] = set()
        #: Listed tasks without an owner, as the feed has shown them, by the list's id.
        self._shown: dict[str, Listed] = {}
        #: When searches had the log of the key read, and whether the gateway seems to have one.
        self._log_reads: deque[float] = deque(maxlen=MAX_LOG_READS)
        self._has_log = True

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
        lists = await self._read(sessions, doubts, is_search=keys is not None)
        # Only now: see rule 1.
        states = () if keys is None else (JobState.SUBMITTING, JobState.IN_DOUBT)
        jobs = await ledger.jobs(*states)
        still = {job.key for job in jobs if job.state is JobState.IN_DOUBT}
        doubts = [job for job in doubts if job.key in still]
        records = await self._records(sessions, lists, jobs, is_search=keys is not None)
        sent = [_sent(job, lists.offset) for job in doubts]
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
            if job.key in self._searching and (task is None or _is_recent(verdict, records)):
                reason = reason or Reason.EARLY  # see rule 3
            if reason is not None:
                said = _text_of(reason, verdict)
                is_charged = reason is Reason.CHARGED
                if verdict.charges == (1, 1) and job.proof is None:
                    # The log may be cut off, or not be shown, when it is read next.
                    await ledger.charge(job.key)
                left.append(Left(job.key, said, verdict.task_ids, is_charged, job.custom_id))
                continue
            is_ours = await self._settle(sessions, session, job, verdict, lists.offset)
            if is_ours:  # pragma: no branch  (coverage loses it after an error)
                if task is None:
                    not_accepted.append(job.key)
                else:
                    found.append(Found(job.key, task.task_id, str(verdict.proof), job.custom_id))
        return Reconciliation(tuple(found), tuple(not_accepted), tuple(left))

    async def _read(self, sessions: "Sessions", doubts: Sequence[Job], *, is_search: bool) -> Lists:
        """Read the lists, from before the first doubt was sent until its task must be listed."""
        late, now = sessions.settings.timeouts.late, sessions.settings.clock.wall()
        sent = [job.submitted_at or 0.0 for job in doubts]
        since = min(sent) - SLACK - (0.0 if is_search else late)
        lists = Lists(since, now)
        if sessions.account is not None:
            until = min(now, max(sent) + late) + SLACK
            lists = Lists(since, now, *await account_tasks(sessions, since, until))
        if is_search:
            return lists
        try:
            log = await key_log(sessions)
        except RunwayError as error:
            # Gateways allow few requests for it, and the list may be enough.
            if sessions.account is None or isinstance(error, UsageError):
                raise
            self._has_log = not isinstance(error, (NotFound, Unauthorized, UnreadableReply))
            return lists
        self._has_log = True
        if sessions.account is None and log.server_time is not None:
            ahead = log.server_time - sessions.settings.clock.wall()
            lists = attrs.evolve(lists, offset=ahead if abs(ahead) > SLACK / 5 else 0.0)
        return attrs.evolve(lists, log=log)

    async def _with_log(self, sessions: "Sessions", session: Session) -> Reconciliation:
        """Settle what a search has found, unless the log has been read too often for that."""
        # A task of another program with the same prompt may be listed first.
        now, reads = sessions.settings.clock.now(), self._log_reads
        if len(reads) == MAX_LOG_READS and now - reads[0] < LOG_SECONDS:
            return Reconciliation()
        reads.append(now)
        return await self.run(sessions, session)

    async def _records(
        self, sessions: "Sessions", lists: Lists, jobs: Sequence[Job], *, is_search: bool
    ) -> Records:
        """Return the records to decide from: the lists, joined with the journal and the feed."""
        late, offset = sessions.settings.timeouts.late, lists.offset
        owned = {job.task_id: job for job in jobs if job.task_id and job.state.is_answered}
        records = Records(
            lists.now + offset,
            late,
            [
                _sent(job, offset)
                for job in owned.values()
                # All of them: a charge that a job left out explains would count as unexplained.
                if job.submitted_at is not None
            ],
            taken=owned.keys(),
            in_flight=[_sent(job, offset) for job in jobs if job.state is JobState.SUBMITTING],
            since=lists.since + offset,
            is_complete=lists.is_complete,
            charges=lists.charges,
            charges_since=lists.charges_since,
            is_log_due=lists.log is None and self._has_log and not is_search,
            offset=offset,
        )
        if lists.tasks is None:
            return records
        waiting = [(job, _sent(job, offset)) for job in jobs if job.state.is_unanswered]
        wanted = {job.prompt_hash for job, _ in waiting}
        rows: list[Coroutine[Any, Any, Listed]] = []
        others: list[Listed] = []
        proofs = 0 if is_search else MAX_PROOFS
        for task in lists.tasks:
            job = next((owned[one] for one in task.ids if one in owned), None)
            if job is not None:
                may_ask = proofs > 0 and job.prompt_hash is not None
                rows.append(self._known_row(sessions, task, job, may_ask=may_ask))
                proofs -= may_ask
            elif not is_search or not await self._has_owner(sessions, task):
                bare = _bare(task)
                fitting = [job for job, sent in waiting if records.fit(sent, bare)]
                if fitting:
                    official = all(is_official(job.endpoint) for job in fitting)
                    rows.append(self._row(sessions, task, wanted, is_official=official))
                elif any(records.may_be(sent, bare) for _, sent in waiting):
                    others.append(bare)
        return attrs.evolve(records, listed=[*await asyncio.gather(*rows), *others])

    async def _has_owner(self, sessions: "Sessions", task: AccountTask) -> bool:
        """Return whether a submission has a listed task, for a search that reads few rows."""
        for task_id in task.ids:
            job = None if task_id in self._owned else await sessions.ledger.find(task_id)
            if job is not None and job.task_id == task_id and job.state.is_answered:
                self._owned.add(task_id)
        return not self._owned.isdisjoint(task.ids)

    async def _known_row(
        self, sessions: "Sessions", task: AccountTask, job: Job, *, may_ask: bool
    ) -> Listed:
        """Return the row of a known task, which shows whether prompts can be compared."""
        row = attrs.evolve(_bare(task), task_id=str(job.task_id))
        prompts = await _hashed(sessions, task.prompt)
        if job.prompt_hash in prompts:
            return attrs.evolve(row, prompts=prompts)
        if not may_ask:
            return row
        wanted = {job.prompt_hash}
        asked = await self._row(sessions, task, wanted, is_official=is_official(job.endpoint))
        return attrs.evolve(row, prompts=asked.prompts)

    async def _row(
        self,
        sessions: "Sessions",
        task: AccountTask,
        wanted: AbstractSet[str | None],
        *,
        is_official: bool,
    ) -> Listed:
        """Return the row of a listed task, with its id and its prompt as the feed has them."""
        if task.task_id in self._shown:
            return self._shown[task.task_id]
        listed, bare = await _hashed(sessions, task.prompt), _bare(task)
        for task_id in task.ids:
            try:
                record = await sessions.record_of(task_id, official=is_official)
            except NotFound:
                continue
            except UsageError:  # the client was closed
                raise
            except RunwayError:
                break
            prompts = listed | await _hashed(sessions, record.prompt, record.prompt_en)
            row = attrs.evolve(bare, task_id=task_id, prompts=prompts)
            if prompts:
                self._shown[task.task_id] = row
            return row
        # The list alone may confirm a prompt but not its absence, since it truncates prompts. Which
        # of several ids is the right one, only the feed shows.
        return attrs.evolve(bare, prompts=listed & wanted if len(task.ids) == 1 else frozenset())

    async def _settle(
        self, sessions: "Sessions", session: Session, job: Job, verdict: Verdict, offset: float
    ) -> bool:
        """Record a verdict, and follow the task; return False if it was settled meanwhile."""
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
        emit(events.DoubtSettled(job.key, proof, job.task_id))
        if task is None:
            if job.custom_id is not None:
                sessions.names.doubts.pop(job.custom_id, None)
            return True
        search = self._searching.get(job.key)
        if search is not None:
            search.task_id = task.task_id
            search.loop.call_soon_threadsafe(search.ended.set)
        sessions.keep_found(session, job, is_awaited=search is not None)
        return True


async def _hashed(sessions: "Sessions", *prompts: str | None) -> frozenset[str]:
    """Return the hashes of the prompts that there are, as the journal has them."""
    texts = [text for text in prompts if text]
    return frozenset(await sessions.ledger.hash_prompts(texts) if texts else ())


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


def _sent(job: Job, offset: float) -> Sent:
    """Return a row of the journal, in the gateway's time."""
    kind, endpoint = KINDS.get(job.endpoint, (None, None))
    has_prompt = kind is None or hasattr(kind, "prompt") or kind is OfficialRequest
    accepted_at = None if job.accepted_at is None else job.accepted_at + offset
    return Sent(
        job.key,
        job.endpoint if endpoint is None else _route(endpoint),
        job.fingerprint,
        (job.submitted_at or 0.0) + offset,
        job.model,
        job.prompt_hash or (None if has_prompt else NO_PROMPT),
        job.task_id,
        accepted_at,
        is_evidence=job.proof is None,
        is_charged=job.code in CHARGED_CODES or job.proof == CHARGE,
    )


def _bare(task: AccountTask) -> Listed:
    """Return a row of the list without its prompt."""
    at = task.submitted_at or task.created_at
    created_at = None if at is None else at.timestamp()
    return Listed(task.task_id, created_at, _routes_of(task.action), task.model)
