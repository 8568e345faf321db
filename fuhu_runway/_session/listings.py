"""
Read the gateway's lists, and join them with what the journal and the feed say.

Rule 1: the lists are read first, and the journal after them: a task that is listed is then known
to the journal, or its submission has no response yet.
"""

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from fuhu_runway._wire.refusals import CHARGED_CODES
from fuhu_runway._wire.tables import SUBMITS, Endpoint, is_official
from fuhu_runway.account import AccountTask, KeyLog
from fuhu_runway.errors import NotFound, RunwayError, Unauthorized, UnreadableReply, UsageError
from fuhu_runway.journal import CHARGE, Job, JobState
from fuhu_runway.models import OfficialRequest

from .account import account_tasks, key_log
from .records import NO_PROMPT, SLACK, Charge, Listed, Records, Sent

if TYPE_CHECKING:
    from .sessions import Sessions

MAX_PROOFS: Final = 5
"""How many known tasks are polled to see that prompts can be compared; each is one free poll."""

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
    #: Whether the gateway seems to have a log, shown or not.
    has_log: bool = True

    @property
    def charges(self) -> list[Charge]:
        """What the key was charged for tasks; the log may have other charges, too."""
        return [
            Charge(row.charged_at.timestamp(), row.model, _routes_of(row.action))
            for row in (self.log.charges if self.log else ())
            if row.charged_at and row.action
        ]

    @property
    def charges_since(self) -> float:
        """When the log begins: older rows may be cut off, or belong to another key."""
        if self.log is None or self.log.starts_at is None:
            return -math.inf
        return self.log.starts_at.timestamp()


class ListReader:
    """What one client reads; it remembers the tasks that it has looked up."""

    def __init__(self) -> None:
        #: Ids of listed tasks that have an owner.
        self._owned: set[str] = set()
        #: Listed tasks without an owner, as the feed has shown them, by the list's id.
        self._shown: dict[str, Listed] = {}

    async def read(self, sessions: "Sessions", doubts: Sequence[Job], *, is_search: bool) -> Lists:
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
            no_log = (NotFound, Unauthorized, UnreadableReply)
            return attrs.evolve(lists, has_log=not isinstance(error, no_log))
        if sessions.account is None and log.server_time is not None:
            ahead = log.server_time - sessions.settings.clock.wall()
            lists = attrs.evolve(lists, offset=ahead if abs(ahead) > SLACK / 5 else 0.0)
        return attrs.evolve(lists, log=log)

    async def records(
        self, sessions: "Sessions", lists: Lists, jobs: Sequence[Job], *, is_search: bool
    ) -> Records:
        """Return the records to decide from: the lists, joined with the journal and the feed."""
        late, offset = sessions.settings.timeouts.late, lists.offset
        owned = {job.task_id: job for job in jobs if job.task_id and job.state.is_answered}
        records = Records(
            lists.now + offset,
            late,
            [
                sent_of(job, offset)
                for job in owned.values()
                # All of them: a charge that a job left out explains would count as unexplained.
                if job.submitted_at is not None
            ],
            taken=owned.keys(),
            in_flight=[sent_of(job, offset) for job in jobs if job.state is JobState.SUBMITTING],
            since=lists.since + offset,
            is_complete=lists.is_complete,
            charges=lists.charges,
            charges_since=lists.charges_since,
            is_log_due=lists.log is None and lists.has_log and not is_search,
            offset=offset,
        )
        if lists.tasks is None:
            return records
        waiting = [(job, sent_of(job, offset)) for job in jobs if job.state.is_unanswered]
        wanted = {job.prompt_hash for job, _ in waiting}
        # Functions, not coroutines: if this is cancelled first, nothing is left un-awaited.
        rows: list[Callable[[], Awaitable[Listed]]] = []
        others: list[Listed] = []
        proofs = 0 if is_search else MAX_PROOFS
        for task in lists.tasks:
            job = next((owned[one] for one in task.ids if one in owned), None)
            if job is not None:
                may_ask = proofs > 0 and job.prompt_hash is not None
                rows.append(partial(self._known_row, sessions, task, job, may_ask=may_ask))
                proofs -= may_ask
            elif not is_search or not await self._has_owner(sessions, task):
                bare = _bare(task)
                fitting = [job for job, sent in waiting if records.fit(sent, bare)]
                if fitting:
                    official = all(is_official(job.endpoint) for job in fitting)
                    rows.append(partial(self._row, sessions, task, wanted, is_official=official))
                elif any(records.may_be(sent, bare) for _, sent in waiting):
                    others.append(bare)
        looked_up = await asyncio.gather(*(look_up() for look_up in rows))
        return attrs.evolve(records, listed=[*looked_up, *others])

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


async def _hashed(sessions: "Sessions", *prompts: str | None) -> frozenset[str]:
    """Return the hashes of the prompts that there are, as the journal has them."""
    texts = [text for text in prompts if text]
    return frozenset(await sessions.ledger.hash_prompts(texts) if texts else ())


def sent_of(job: Job, offset: float) -> Sent:
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
