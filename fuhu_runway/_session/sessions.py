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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet, WeakValueDictionary

import attrs

from fuhu_runway import hooks as events
from fuhu_runway._arguments import checked_id
from fuhu_runway._http.transport import closed
from fuhu_runway._part import machine_mark
from fuhu_runway._redact import redact
from fuhu_runway._waiting.intervals import kind_of
from fuhu_runway._waiting.poller import Poller, Watch, name_of
from fuhu_runway._waiting.unfinished import Name, Origin
from fuhu_runway._wire.decode import read_balance, read_task
from fuhu_runway._wire.encode import Request, ask_balance, ask_task, build
from fuhu_runway._wire.tables import BALANCE_ENDPOINTS, ENDPOINTS, SUBMITS, feed, is_official
from fuhu_runway.account import Account, Reconciliation
from fuhu_runway.downloads import Downloader, Source, origin_of
from fuhu_runway.errors import RunwayError, UsageError, without_frames
from fuhu_runway.journal import BaseJournal, Job, JobState, Plan, journal_at
from fuhu_runway.models import (
    Balance,
    Gateway,
    Generation,
    TaskRecord,
    require_text,
    usage_error,
)
from fuhu_runway.task import Clip, Task
from fuhu_runway.uploads import GatewayFiles, Uploader

from . import webhooks
from .entry import Entry
from .files import Files, Place
from .memory import Memory
from .names import Names
from .reconcile import Reconciler
from .session import Session, Settings
from .submission import Submission

if TYPE_CHECKING:
    # It imports a web server, which most programs do not need.
    from fuhu_runway.callbacks import Address, CallbackReceiver, Webhook


MINUTE: Final = 60.0
"""How much longer an accepted submission is remembered than a doubt may need it, and how often
submits under a name in doubt read the lists, in seconds; gateways limit both lists."""


class Sessions:
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
        self.settings = settings
        self.hooks = settings.hooks
        self.gateway = gateway
        self.key = key
        self.account = account
        #: How far the gateway's clock is ahead of ours, in seconds, as its lists have shown.
        self.ahead = 0.0
        self.files = Files(uploads, gateway, key, settings.clock)
        self._callback_url = callback_url
        self.receiver = callbacks
        self._owns_journal = journal is not None and not isinstance(journal, BaseJournal)
        self.journal = None if journal is None else journal_at(journal)
        self._memory = Memory(2 * settings.timeouts.late + MINUTE)
        #: Where submissions in doubt are found and settled.
        self.ledger: BaseJournal | Memory = self.journal or self._memory
        self.reconciler = Reconciler()
        self._reconciled_at = -math.inf
        if self.journal is not None:
            self.hooks.add(self.journal.note)
            if self.journal.is_shared:
                self.settings = attrs.evolve(settings, part_mark=machine_mark())
        self.by_loop: dict[asyncio.AbstractEventLoop, Session] = {}
        self.closed_in: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
        self._entered: Counter[asyncio.AbstractEventLoop] = Counter()
        self._closing: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}
        self._has_recalled = False
        self.handles: WeakValueDictionary[Name, Task] = WeakValueDictionary()
        #: Handles that no caller has, with the records from their webhooks.
        self.unclaimed: dict[Name, Task] = {}
        #: Tasks of earlier processes, each with the event for the first wait for it.
        self._left: dict[Name, events.TaskAttached] = {}
        self.names = Names(keeps_all=self.journal is None)
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
        if type(request) not in SUBMITS:
            kinds = ", ".join(kind.__name__ for kind in SUBMITS)
            raise usage_error(
                "request", f"request is of type {type(request).__name__}.", f"Use one of {kinds}."
            )
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
            for address, webhook in self.receiver.pending(self) if self.receiver else ():
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

    async def recall(self) -> None:
        """Read once from the journal: durations, jobs in doubt, unfinished tasks."""
        journal, settings = self.journal, self.settings
        if journal is None or self._has_recalled:
            return
        self._has_recalled = True
        try:
            # At once, so that a close in between does not leave the file open.
            durations, counts, jobs = await asyncio.gather(
                journal.durations(), journal.counts(), journal.left_over()
            )
        except BaseException:
            self._has_recalled = False
            raise
        settings.learner.recall(durations)
        if counts[JobState.IN_DOUBT]:
            self.hooks.emit(events.DoubtsFound(counts[JobState.IN_DOUBT]))
        for job in jobs:
            name = name_in(job)
            if name not in settings.unfinished:
                settings.unfinished.accepted(name, self._origin(job))
                self._left[name] = self._attached(job)

    async def entry(self, plan: Plan, traceparent: str | None, *, is_new: bool) -> Entry:
        """Return the row of a submission, planned in the journal if it is new."""
        clock = self.settings.clock
        if self.journal is None:
            return Entry(self._memory.row(plan, clock.wall()), plan.key, clock, traceparent)
        await self.recall()
        if is_new:
            await self.journal.plan(plan, clock.wall())
        return Entry(self.journal, plan.key, clock, traceparent)

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
        if self.account is None or now - self._reconciled_at < MINUTE:
            return False
        self._reconciled_at = now
        await self.reconcile_if_possible()
        return True

    def keep_found(self, session: Session, job: Job, *, is_awaited: bool) -> None:
        """Keep a task that was found, and follow it unless its own submission does."""
        name, origin = name_in(job), self._origin(job)
        self.settings.unfinished.accepted(name, origin)
        if is_awaited:
            return
        task = self.attach(job)
        self.claim_later(task)
        endpoint = webhooks.ENDPOINT_NAMES.get(job.endpoint, job.endpoint)
        self.hooks.emit(events.SubmissionFound(endpoint, task.id))
        self.follow(session, task, None)

    # Handles

    @property
    def unfinished(self) -> tuple[Task, ...]:
        """A handle on each task that is paid for and not yet saved, handed out or failed."""
        return tuple(self.handle(name, origin) for name, origin in self.settings.unfinished)

    def handle(self, name: Name, origin: Origin) -> Task:
        """Return the handle on a task, or a new one if it no longer exists."""
        return self.handles.get(name) or self.new_task(name, origin)

    def new_task(self, name: Name, origin: Origin, **more: Any) -> Task:
        """Return a new handle, which can be found by its id, and by its name if it has one."""
        endpoint, task_id = name
        task = self.handles[name] = Task(
            self,
            task_id,
            official=endpoint == feed(official=True).name,
            submitted_at=origin.accepted_at,
            custom_id=origin.custom_id,
            tag=origin.tag,
            **more,
        )
        if origin.custom_id is not None:
            self.names.accepted(origin.custom_id, name)
            self.names.doubts.pop(origin.custom_id, None)
        return task

    def task(self, task_id: str, *, official: bool) -> Task:
        """Return a handle on a task of which only the id is known."""
        task_id = checked_id(task_id)
        task = Task(self, task_id, official=official)
        bare = events.TaskAttached(task_id, self.settings.client)
        self.hooks.emit(self._left.pop(name_of_task(task), bare))
        return task

    def attach(self, job: Job, request: Generation | None = None) -> Task:
        """Return a handle on the task of a job from the journal."""
        checked_id(job.task_id)
        name = name_in(job)
        self._left.pop(name, None)
        self.hooks.emit(self._attached(job))
        return self.new_task(name, self._origin(job), request=request)

    def _origin(self, job: Job) -> Origin:
        clock = self.settings.clock
        ago = max(0.0, clock.wall() - (job.accepted_at or 0))
        return Origin(clock.now() - ago, job.custom_id, job.tag)

    def _attached(self, job: Job) -> events.TaskAttached:
        endpoint = webhooks.ENDPOINT_NAMES.get(job.endpoint)
        what = endpoint, job.model, job.seconds, job.traceparent
        return events.TaskAttached(str(job.task_id), self.settings.client, *what)

    async def find(self, custom_id: str) -> Task | None:
        """Return the task that was submitted under a name; see `Client.find`."""
        require_text("custom_id", custom_id)
        self.check_open()
        task = self.remembered(custom_id)
        if task is not None:
            return task
        job = await self.job_named(custom_id)
        return None if job is None else self.task_of(job)

    def remembered(self, custom_id: str) -> Task | None:
        """Return the task that was submitted under a name, if it is still in memory."""
        name = self.names.tasks.get(custom_id)
        if name is None:
            return None
        return self.handle(name, Origin(None, custom_id, self.settings.unfinished.tag_of(name)))

    def task_of(self, job: Job) -> Task | None:
        """Return the task of a job from the journal; None if it has none."""
        if job.task_id is None or not job.state.is_answered:
            return None
        return self.handles.get(name_in(job)) or self.attach(job)

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

    def claim_later(self, task: Task) -> None:
        """Hold a handle whose caller was cancelled, for as long as its task is unfinished."""
        held = [*self.unclaimed.items(), (name_of_task(task), task)]
        unfinished = self.settings.unfinished
        self.unclaimed = {name: handle for name, handle in held if name in unfinished}

    # What a handle does

    def watch(self, task: Task) -> tuple[Poller, Watch]:
        """Return the poller of the running loop, and its watch over *task*."""
        poller = self.current().poller
        attached = self._left.pop(name_of_task(task), None)
        if attached is not None:
            self.hooks.emit(attached)
        watch = self._watch(poller, task)
        self.handles.setdefault(watch.name, task)
        return poller, watch

    def follow(
        self,
        session: Session,
        task: Task,
        address: "Address | None",
        found: TaskRecord | None = None,
    ) -> None:
        """
        Count a task that was accepted, and wake its waits when its webhook comes.

        *found* is its record from the feed, if a webhook named the task and no response did.
        """
        has_ended = task.record is not None and task.record.is_settled
        watch = self._watch(
            session.poller, task, is_addressed=address is not None and not has_ended
        )
        session.tasks.add(watch)
        session.poller.take_end(watch)
        if address is not None:
            task.keep(watch)
            early, address.early = address.early, None
            if early is not None:
                webhooks.handle(self, session, address, early)
        if found is not None:
            session.poller.take_found(watch, found)

    def _watch(self, poller: Poller, task: Task, *, is_addressed: bool = False) -> Watch:
        wire = self.poll_request(task.id, official=task.official)
        return poller.watch(
            wire.hiding(*task.secrets()),  # a refused poll may quote the prompt
            task.submitted_at,
            task.record,
            kind_of(task.request),
            is_addressed=is_addressed,
            context=task.context(),
        )

    def hand_out(self, task: Task) -> None:
        """Record that a wait returns the clip of a task to its caller."""
        if self.settings.unfinished.hand_out(name_of_task(task)):
            self.hooks.emit(events.ClipHandedOut(task.id))

    @contextmanager
    def downloading(self, clip: Clip) -> Iterator[tuple[Downloader, Source]]:
        """Yield what downloads *clip*; its task is unfinished until the clip has arrived."""
        wire = self.poll_request(clip.id, official=clip.task.official)
        source = Source(
            clip.id,
            clip.address,
            # A gateway that takes the key in the body gets none with requests for its files.
            {name: wire.headers[name] for name in ("Authorization",) if name in wire.headers},
            origin_of(self.gateway.base_url or ""),
        )
        task, name = clip.task, name_of_task(clip.task)
        downloader = self.current().downloader
        # Back on the list until the clip is complete: an app may be stopped half-way.
        origin = Origin(task.submitted_at, task.custom_id, task.tag)
        with self.settings.unfinished.saving(name, origin):
            yield downloader, source

    def without_secrets(self, text: str, task: Task) -> str:
        """Return a text of the gateway about *task*, without secrets."""
        return redact(text, (self.key, *task.secrets()))

    def age(self, task: Task) -> float | None:
        """Return how long ago *task* was accepted, in seconds; None if that is not known."""
        clock = self.settings.clock
        if task.submitted_at is not None:
            try:
                return max(0.0, clock.now() - task.submitted_at)
            except RuntimeError:  # outside any event loop there is no such clock
                pass
        created_at = task.record.created_at if task.record else None
        return max(0.0, clock.wall() - created_at.timestamp()) if created_at else None

    # Requests

    def poll_request(self, task_id: str, *, official: bool) -> Request:
        """Return the request that polls a task."""
        return ask_task(task_id, feed(official=official), self.gateway, self.key)

    def generation(self, request: Generation, address: "Address | None") -> Request:
        """Return the request that submits, its callback address among its secrets."""
        if address is None or self.receiver is None:
            return build(request, self.gateway, self.key, self._callback_url)
        wire = build(request, self.gateway, self.key, self.receiver.url(address))
        return wire.hiding(self.receiver.token(address))

    def hiding_handles(self, wire: Request) -> Request:
        """Return a request that belongs to no handle, and hides the secrets of all handles."""
        # The references are copied at once, since other threads may be running.
        handles = (handle() for handle in self.handles.valuerefs())
        return wire.hiding(*(text for task in handles if task for text in task.secrets()))

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


def name_of_task(task: Task) -> Name:
    return feed(official=task.official).name, task.id


def name_in(job: Job) -> Name:
    return feed(official=is_official(job.endpoint)).name, str(job.task_id)
