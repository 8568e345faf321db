"""
All sessions of one client, one per event loop, and what they share.

They share the handles, the names of submissions, the journal and the list of unfinished tasks,
since a task goes on at the gateway after its loop has ended.
"""

import asyncio
import contextvars
import functools
import math
import os
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Final
from weakref import WeakSet, WeakValueDictionary

import attrs

from fuhu_runway import hooks as events
from fuhu_runway._arguments import checked_id
from fuhu_runway._http.transport import closed
from fuhu_runway._journal.notes import NOTED
from fuhu_runway._part import machine_mark
from fuhu_runway._waiting.poller import name_of
from fuhu_runway._wire.decode import read_balance, read_task
from fuhu_runway._wire.encode import ask_balance
from fuhu_runway._wire.tables import BALANCE_ENDPOINTS, ENDPOINT_NAMES, ENDPOINTS
from fuhu_runway.account import Account, Reconciliation
from fuhu_runway.errors import RunwayError, UsageError, without_frames
from fuhu_runway.journal import BaseJournal, Job, Plan, journal_at
from fuhu_runway.models import (
    Balance,
    Gateway,
    Generation,
    TaskRecord,
    require_request,
    require_text,
    usage_error,
)
from fuhu_runway.task import Task
from fuhu_runway.uploads import GatewayFiles, Uploader

from . import webhooks
from .files import Files, Place
from .handles import Handles, name_in
from .memory import Memory
from .reconcile import Reconciler
from .session import Session, Settings
from .submission import Submission

if TYPE_CHECKING:
    # It imports a web server, which most programs do not need.
    from fuhu_runway._addresses import Address, Webhook
    from fuhu_runway.callbacks import CallbackReceiver


MINUTE: Final = 60.0
"""How much longer an accepted submission is remembered than a doubt may need it, and how often
submits under a name in doubt read the lists, in seconds; gateways limit both lists."""


class Sessions(Handles):
    """Every session of one client, and what they share."""

    def __init__(
        self,
        settings: Settings,
        gateway: Gateway,
        key: str,
        *,
        callback_url: str | None,
        callbacks: "CallbackReceiver | None",
        journal: BaseJournal | str | os.PathLike[str] | None,
        account: Account | None = None,
        uploads: Uploader | GatewayFiles | None = None,
    ) -> None:
        owned = None if journal is None else journal_at(journal)
        if owned is not None:
            settings.hooks.add(owned.note, NOTED)
            if owned.is_shared:
                settings = attrs.evolve(settings, part_mark=machine_mark())
        super().__init__(settings, gateway, key, owned)
        self._owns_journal = owned is not journal
        self.account = account
        #: How far the gateway's clock is ahead of ours, in seconds, as its lists have shown.
        self.ahead = 0.0
        self.files = Files(uploads, gateway, key, settings.clock, settings.timeouts.total)
        self.callback_url = callback_url
        #: The addresses for webhooks; None without a receiver.
        self.addresses = None if callbacks is None else callbacks.addresses
        self.memory = Memory(2 * settings.timeouts.late + MINUTE)
        #: Where submissions in doubt are found and settled.
        self.ledger: BaseJournal | Memory = self.journal or self.memory
        self.reconciler = Reconciler()
        self._reconciled_at = -math.inf
        self.by_loop: dict[asyncio.AbstractEventLoop, Session] = {}
        self.closed_in: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
        self._entered: Counter[asyncio.AbstractEventLoop] = Counter()
        self._closing: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}
        self._carried: WeakValueDictionary[Place, asyncio.Lock] = WeakValueDictionary()
        #: Addresses of an earlier process that were looked up in the journal.
        self.looked_up: set[bytes] = set()
        if callbacks is not None:
            callbacks.attach(self)

    def __repr__(self) -> str:
        loops = "".join(f", {one.limiter!r}, {one.poller!r}" for one in list(self.by_loop.values()))
        return f"<Client {self.gateway.base_url}{loops}>"

    def __del__(self) -> None:
        # Here, not in the client: a task that is still held goes on without it.
        if getattr(self, "by_loop", None) and self.settings.session is None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)

    @without_frames
    async def submit(
        self,
        request: Generation,
        *,
        custom_id: str | None = None,
        tag: str | None = None,
        plan: Plan | None = None,
    ) -> Task:
        """Submit under a name, or as a *plan* from the journal; see `Client.submit`."""
        require_request(request)
        if tag is not None:
            require_text("tag", tag)
        if custom_id is not None:
            require_text("custom_id", custom_id)
            return await self.names.submit(self, request, custom_id, tag, plan)
        submission = Submission(self, self.current(), request, plan, None, tag)
        submission.start(submission.run())
        return await submission.joined()

    def receive(self, address: "Address", webhook: "Webhook") -> None:
        """Handle a webhook, in any thread and loop; for the receiver."""
        webhooks.receive(self, address, webhook)

    def check_open(self) -> None:
        """Raise a `UsageError` if the client is closed in the running loop."""
        if asyncio.get_running_loop() in self.closed_in:
            raise closed()

    def current(self) -> Session:
        """Return the session of the running loop, opened on first use unless it is closed."""
        self.check_open()
        loop = asyncio.get_running_loop()
        session = self.by_loop.get(loop)
        if session is None:
            # aiohttp does not publish the loop, and a session used in another one fails half-way.
            if getattr(self.settings.session, "_loop", loop) is not loop:
                raise usage_error(
                    "session",
                    "The session that the client was given belongs to another event loop.",
                    "Make one client for each loop, or let the client make its own sessions.",
                )
            for ended in [one for one in list(self.by_loop) if one.is_closed()]:
                self.by_loop.pop(ended, None)
            forget = functools.partial(self.by_loop.pop, loop, None)
            session = self.by_loop[loop] = Session(self.settings, forget)
            # Webhooks that came while there was no session.
            for address, webhook in self.addresses.pending(self) if self.addresses else ():
                webhooks.handle(self, session, address, webhook)
        return session

    async def enter(self) -> None:
        """Open the client again in the running loop, and read its journal."""
        loop = asyncio.get_running_loop()
        if loop in self.closed_in:
            await self.aclose()  # it may still be closing
            self.closed_in.discard(loop)
        self._entered[loop] += 1
        try:
            # Here, not at the first request: a server that cannot open its journal must not start.
            await self.recall()
        except BaseException:
            await self.leave()
            raise

    async def leave(self) -> None:
        """Close the client in the running loop when its outermost `async with` ends."""
        loop = asyncio.get_running_loop()
        self._entered[loop] -= 1
        if self._entered[loop] <= 0:
            del self._entered[loop]
            await self.aclose()

    async def aclose(self) -> None:
        """Close the session of the running loop; see `Client.aclose`."""
        loop = asyncio.get_running_loop()
        self.closed_in.add(loop)
        closing = self._closing.get(loop)
        if closing is None:
            # In its own task, so that a cancelled caller does not let go of paid requests.
            closing = loop.create_task(self._close(loop), context=contextvars.Context())
            self._closing[loop] = closing
            closing.add_done_callback(lambda _: self._closing.pop(loop, None))
        await asyncio.shield(closing)

    async def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop in self.by_loop:
            await self.by_loop[loop].aclose()
        # Another loop may have requests in flight, whose outcome has to be recorded.
        is_last = all(other.is_closed() for other in list(self.by_loop))
        if self.journal is not None and self._owns_journal and is_last:
            self._has_recalled = False
            await self.journal.aclose()

    def end_waits(self) -> None:
        """End every wait in the running loop; see `Client.end_waits`."""
        session = self.by_loop.get(asyncio.get_running_loop())
        if session is not None:
            session.poller.abandon()

    # The journal

    async def reconcile(self) -> Reconciliation:
        """Settle the submissions in doubt; see `Client.reconcile`."""
        await self.recall()
        return await self.reconciler.run(self, self.current())

    async def reconcile_if_possible(self) -> None:
        """Reconcile with the account, if there is one; a failure is an event."""
        try:
            if self.account is not None:
                await self.reconcile()
        except RunwayError as error:
            if not isinstance(error, UsageError):  # the client is closed
                self.hooks.emit(events.ReconciliationFailed(type(error).__name__))

    async def reconcile_again(self) -> bool:
        """Reconcile unless it is impossible or was tried in the last minute; return whether."""
        now = self.settings.clock.wall()
        # The clock may have been set back since.
        if self.account is None or abs(now - self._reconciled_at) < MINUTE:
            return False
        self._reconciled_at = now
        await self.reconcile_if_possible()
        return True

    def keep_found(self, session: Session, job: Job, *, is_awaited: bool) -> None:
        """Keep a task that was found, and follow it unless its own submission does."""
        name, origin = name_in(job), self.origin(job)
        self.settings.unfinished.accepted(name, origin)
        if is_awaited:
            return
        task = self.attach(job)
        self.claim_later(task)
        endpoint = ENDPOINT_NAMES.get(job.endpoint, job.endpoint)
        self.hooks.emit(events.SubmissionFound(endpoint, task.id))
        webhooks.follow(self, session, task, None)

    # Free calls

    async def find(self, custom_id: str) -> Task | None:
        """Return the task that was submitted under a name; see `Client.find`."""
        require_text("custom_id", custom_id)
        self.check_open()
        task = self.remembered(custom_id)
        if task is not None:
            return task
        job = await self.job_named(custom_id)
        return None if job is None else self.task_of(job)

    async def job_with(self, key: str | None) -> Job | None:
        """Return the job with this key from the journal."""
        return None if self.journal is None or key is None else await self.journal.find(key)

    async def job_named(self, custom_id: str | None) -> Job | None:
        """Return the job with this name from the journal."""
        return await self.job_with(None if custom_id is None else f"id:{custom_id}")

    def carrying(self, name: str) -> asyncio.Lock:
        """Return the lock of a job that is carried out in the running loop."""
        place = asyncio.get_running_loop(), name
        return self._carried.get(place) or self._carried.setdefault(place, asyncio.Lock())

    async def record_of(self, task_id: str, *, official: bool) -> TaskRecord:
        """Poll a task once and return its record; see `Client.feed`."""
        wire = self.poll_request(checked_id(task_id), official=official)
        record = await self.current().transport.call(self.hiding_handles(wire), read_task)
        self.settings.unfinished.seen(name_of(wire), record)
        return record

    async def balance(self) -> Balance:
        """Return the balance; see `Client.balance`."""
        parts = [
            await self.current().transport.call(
                self.hiding_handles(ask_balance(ENDPOINTS[name], self.gateway, self.key)),
                read_balance,
            )
            for name in BALANCE_ENDPOINTS[self.gateway.balance]
        ]
        return functools.reduce(Balance.joined, parts)
