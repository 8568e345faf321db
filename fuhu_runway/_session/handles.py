"""
The handles of one client: how they are made and found again, and what their methods do.

They outlive the event loops, since a task goes on at the gateway after its loop has ended.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

from fuhu_runway import hooks as events
from fuhu_runway._arguments import checked_id
from fuhu_runway._redact import redact
from fuhu_runway._waiting.intervals import kind_of
from fuhu_runway._waiting.poller import Poller, Watch
from fuhu_runway._waiting.unfinished import Name, Origin
from fuhu_runway._wire.encode import Request, ask_task
from fuhu_runway._wire.tables import ENDPOINT_NAMES, feed, is_official
from fuhu_runway.downloads import Downloader, Source, origin_of
from fuhu_runway.journal import BaseJournal, Job, JobState
from fuhu_runway.models import Gateway, Generation
from fuhu_runway.task import Clip, Task

from .names import Names
from .session import Session, Settings


class Handles(ABC):
    """The handles of one client, and what they need to know of it."""

    def __init__(
        self, settings: Settings, gateway: Gateway, key: str, journal: BaseJournal | None
    ) -> None:
        self.settings = settings
        self.hooks = settings.hooks
        self.gateway = gateway
        self.key = key
        self.journal = journal
        self.names = Names(keeps_all=journal is None)
        self.handles: WeakValueDictionary[Name, Task] = WeakValueDictionary()
        #: Handles that no caller has, with the records from their webhooks.
        self.unclaimed: dict[Name, Task] = {}
        #: Tasks of earlier processes, each with the event for the first wait for it.
        self._left: dict[Name, events.TaskAttached] = {}
        self._has_recalled = False

    @abstractmethod
    def current(self) -> Session:
        """Return the session of the running loop; see `Sessions.current`."""

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
                settings.unfinished.accepted(name, self.origin(job))
                self._left[name] = self._attached(job)

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
        return self.new_task(name, self.origin(job), request=request)

    def origin(self, job: Job) -> Origin:
        """Return where the task of a job from the journal comes from."""
        clock = self.settings.clock
        ago = max(0.0, clock.wall() - (job.accepted_at or 0))
        return Origin(clock.now() - ago, job.custom_id, job.tag)

    def _attached(self, job: Job) -> events.TaskAttached:
        endpoint = ENDPOINT_NAMES.get(job.endpoint)
        what = endpoint, job.model, job.seconds, job.traceparent
        return events.TaskAttached(str(job.task_id), self.settings.client, *what)

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
        watch = self.watch_in(poller, task)
        self.handles.setdefault(watch.name, task)
        return poller, watch

    def watch_in(self, poller: Poller, task: Task, *, is_addressed: bool = False) -> Watch:
        """Return a poller's watch over *task*; if it has an address, webhooks wake its waits."""
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

    def poll_request(self, task_id: str, *, official: bool) -> Request:
        """Return the request that polls a task."""
        return ask_task(task_id, feed(official=official), self.gateway, self.key)

    def hiding_handles(self, wire: Request) -> Request:
        """Return a request that belongs to no handle, and hides the secrets of all handles."""
        # The references are copied at once, since other threads may be running.
        handles = (handle() for handle in self.handles.valuerefs())
        return wire.hiding(*(text for task in handles if task for text in task.secrets()))


def name_of_task(task: Task) -> Name:
    return feed(official=task.official).name, task.id


def name_in(job: Job) -> Name:
    return feed(official=is_official(job.endpoint)).name, str(job.task_id)
