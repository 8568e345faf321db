"""
What a client does with what a gateway posts: whom it wakes, and which lost tasks it finds.

Rule 1: a webhook only makes a poll due; what the feed says then counts.
Rule 2: the task of a submission in doubt is taken from a webhook only if the feed has it and no
other submission does.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final
from weakref import ref

import attrs

from fuhu_runway import hooks as events
from fuhu_runway._clock import Clock
from fuhu_runway._waiting.poller import WEBHOOK_EVERY
from fuhu_runway._waiting.task_limit import Origin, Unfinished
from fuhu_runway._wire.decode import read_task
from fuhu_runway._wire.tables import ENDPOINTS, SUBMITS
from fuhu_runway.errors import JournalError, RunwayError
from fuhu_runway.journal import Entry, JobState, Journal, Plan
from fuhu_runway.models import Generation, TaskRecord
from fuhu_runway.task import Task

from .session import Session
from .submission import afterwards

if TYPE_CHECKING:
    # It brings a web server along, which most programs have no use for.
    from fuhu_runway.callbacks import Address, CallbackReceiver, Webhook

    from .sessions import Sessions

FEED: Final = ENDPOINTS["feed"].name
"""What tells of every task that can have an address: the official format knows no callbacks."""

ENDPOINT_NAMES: Final = {kind.__name__: endpoint.name for kind, endpoint in SUBMITS.items()}
"""What the journal calls a kind of request, to the name of its endpoint."""


@attrs.define(eq=False, kw_only=True)
class Webhooks:
    """
    The webhooks of one client, in all its loops; without a receiver there are none.

    The sessions hold it, so it must not hold them: a client that was never closed warns when it is
    collected.
    """

    receiver: "CallbackReceiver | None"
    sessions: "ref[Sessions]"
    #: The session of each loop, as they come and go.
    by_loop: Mapping[asyncio.AbstractEventLoop, Session]
    journal: Journal | None
    unfinished: Unfinished
    hooks: events.Hooks
    clock: Clock
    #: The addresses from before a restart that the journal was asked about.
    _looked_up: set[bytes] = attrs.field(init=False, factory=set)

    def __attrs_post_init__(self) -> None:
        if self.receiver is not None:
            self.receiver.attach(self)

    def address(self, request: Generation, job: Plan | None) -> "Address | None":
        """Return a new address for what a request will make, if its kind takes one."""
        if self.receiver is None or not SUBMITS[type(request)].takes_callback:
            return None
        key = None if job is None else job.key
        return self.receiver.address(self, request, key, self.clock.wall())

    def receive(self, address: "Address", webhook: "Webhook") -> None:
        """Record a webhook, in whatever thread and loop this is; for the receiver."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        # Loops that run come first: one of them reports it, and polls.
        sessions = sorted(self.by_loop.items(), key=lambda pair: not pair[0].is_running())
        if not sessions:
            address.early = webhook
        for place, (loop, session) in enumerate(sessions):
            handle = partial(self.handle, session, address, webhook, is_first=place == 0)
            if loop is here:
                handle()
            else:
                # A loop that has ended since has no waits left.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(handle)

    def catch_up(self, session: Session) -> None:
        """Handle the webhooks that came while there was no session."""
        for address, webhook in [] if self.receiver is None else self.receiver.pending(self):
            self.handle(session, address, webhook)

    def handle(
        self, session: Session, address: "Address", webhook: "Webhook", *, is_first: bool = True
    ) -> None:
        """Handle a webhook in one loop; *is_first* in the one that reports it."""
        if address.is_strange and address.task_id is None:
            address.task_id = webhook.task_id or None
        if address.task_id is None:
            address.early = webhook
            if address.is_in_doubt and is_first:
                session.run(self.recover(session, address))
            return
        is_other = webhook.task_id not in {None, address.task_id}
        if is_first and is_other:
            self.hooks.emit(events.CallbackRefused(address.task_id, "it names another task"))
        elif is_first:
            self.hooks.emit(events.CallbackReceived(address.task_id, webhook.state))
        if is_other:
            return
        watch = session.poller.find(FEED, address.task_id)
        if watch is not None:
            session.poller.webhook_came(watch, is_end=webhook.is_end)
        elif address.is_strange and is_first:
            session.run(self._look_up(session, address, webhook))
        else:
            address.early = webhook

    # What was lost

    async def task_named_meanwhile(
        self, session: Session, address: "Address | None"
    ) -> TaskRecord | None:
        """Return the task of a submission in doubt to its caller, if a webhook named it."""
        if address is None:
            return None
        request = address.request
        # Shielded from cancellation: half-way the task would be known and held by no handle.
        seeking = asyncio.create_task(self._sought(session, address))
        try:
            return await asyncio.shield(seeking)
        except asyncio.CancelledError:
            session.run(self._adopted(session, address, request, None, seeking))
            raise

    async def recover(
        self, session: Session, address: "Address", endpoint: str | None = None
    ) -> None:
        """Keep the task of a submission in doubt, if a webhook named it."""
        await self._adopted(
            session, address, address.request, endpoint, self._sought(session, address)
        )

    async def _adopted(
        self,
        session: Session,
        address: "Address",
        request: Generation | None,
        endpoint: str | None,
        seeking: Awaitable[TaskRecord | None],
    ) -> None:
        record = await seeking
        sessions = self.sessions()
        if record is None or sessions is None:
            return
        ago = max(0.0, self.clock.wall() - address.made_at)
        task = Task(
            sessions,
            record.task_id,
            request=request,
            submitted_at=self.clock.now() - ago,
            custom_id=address.custom_id,
            tag=address.tag,
            context=address.context,
        )
        sessions.keep(task)
        sessions.claim_later(task)
        endpoint = endpoint or ENDPOINT_NAMES[type(request).__name__]
        sessions.follow_found(session, task, address, record, endpoint)

    async def _look_up(self, session: Session, address: "Address", webhook: "Webhook") -> None:
        """See whether an address from before a restart is that of a job in doubt."""
        receiver, journal = self.receiver, self.journal
        if receiver is None or journal is None or not receiver.is_lasting:
            return
        if address.nonce in self._looked_up:
            return
        self._looked_up.add(address.nonce)
        with suppress(JournalError):
            for job in await journal.jobs(JobState.IN_DOUBT):
                if receiver.nonce_of(job.key) == address.nonce:
                    address.job, address.made_at = job.key, job.submitted_at or job.planned_at
                    address.early, address.task_id = webhook, None
                    address.custom_id, address.tag = job.custom_id, job.tag
                    await self.recover(session, address, ENDPOINT_NAMES[job.endpoint])
                    # The feed may not know it yet; then the next webhook names it again.
                    if address.task_id is None:
                        self._looked_up.discard(address.nonce)

    async def _sought(self, session: Session, address: "Address") -> TaskRecord | None:
        """Return what the feed says of the task that a webhook named, and record it."""
        while address.early is not None and not address.is_sought:
            named, address.early = address.early, None
            address.is_sought = True
            try:
                # A leaked address must not cause a poll with each webhook.
                await self.clock.sleep(max(0.0, address.next_search_at - self.clock.now()))
                address.next_search_at = self.clock.now() + WEBHOOK_EVERY
                record = await self._confirmed(session, address, named.task_id)
            finally:
                address.is_sought = False
            if record is not None:
                address.answered(record.task_id)
                origin = Origin(self.clock.now(), address.custom_id, address.tag)
                self.unfinished.accepted((FEED, record.task_id), origin)
                if self.journal is not None and address.job is not None:
                    entry = Entry(self.journal, address.job, self.clock)
                    writing = entry.accepted(record.task_id, address.made_at)
                    await afterwards(writing, f"task {record.task_id}")
                return record
        return None

    async def _confirmed(
        self, session: Session, address: "Address", task_id: str | None
    ) -> TaskRecord | None:
        """Return what the feed says of a task, if it may be the one of this address."""
        sessions = self.sessions()
        if not task_id or sessions is None:
            return None
        try:
            if not await self._is_known(task_id, address):
                wire = sessions.ask(task_id, official=False)
                wire = wire.hiding(getattr(address.request, "prompt", None))
                record = await session.transport.call(wire, read_task)
                # Another may have found it meanwhile.
                if not self._is_taken(task_id, address):
                    return attrs.evolve(record, task_id=task_id)
            reason = "the task that it names belongs to another submission"
        except RunwayError as error:
            reason = f"the feed does not confirm it ({type(error).__name__})"
        self.hooks.emit(events.CallbackRefused(None, reason))
        return None

    async def _is_known(self, task_id: str, address: "Address") -> bool:
        """Whether a task belongs to another submission."""
        if self._is_taken(task_id, address):
            return True
        job = None if self.journal is None else await self.journal.find(task_id)
        # Its own row names the task as well, where a damaged answer did.
        return job is not None and job.key != address.job

    def _is_taken(self, task_id: str, address: "Address") -> bool:
        return self.receiver is not None and self.receiver.is_taken(task_id, address)
