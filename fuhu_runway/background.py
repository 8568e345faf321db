"""Jobs that a client follows in the background: wait for the clip, and save it."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import attrs

from . import hooks as events
from ._arguments import check
from ._session.sessions import Sessions
from .errors import DownloadIncomplete, RunwayError, UsageError, copied
from .hooks import Hooks
from .journal import Job, JobState
from .models import Generation, TaskRecord, usage_error
from .paths import check_target, saved_place
from .task import Clip, Task, abandoned, saved_beside

SAVE_AGAIN_AFTER: Final = (5.0, 15.0, 60.0, 300.0)
"""Seconds before each retry of saving a clip. Each download also retries by itself."""

Followed = tuple[Clip, Path | None]
"""A clip, and the file it was saved to, if any."""


class BackgroundJob:
    """
    A task that is followed in the background, made by `Client.start`.

    `await job` returns the clip, saved if a path was given, or raises the error that ended the job.
    The job goes on if that await is cancelled, or if there is none.
    """

    def __init__(
        self, task: Task, path: Path | None, work: "asyncio.Task[Followed]", hooks: Hooks
    ) -> None:
        #: The task at the gateway.
        self.task = task
        self._path = path
        self._work = work
        self._hooks = hooks
        #: Whether it goes on if no caller waits for it; a job of `Client.run` does not.
        self.is_kept = False
        self._callers = 0
        # In a callback, since closing may cancel the work before its first step.
        work.add_done_callback(self._end)

    def __repr__(self) -> str:
        return f"<BackgroundJob {self.id} {'ended' if self.done() else 'going on'}>"

    def __await__(self) -> Generator[Any, None, Clip]:
        yield from asyncio.wait([self._work]).__await__()
        error = self._error()
        if error is None:
            return self._work.result()[0]
        # A copy for each await, so that their tracebacks do not add up.
        raise copied(error) if isinstance(error, RunwayError) else error

    def _error(self) -> BaseException | None:
        return abandoned(self.task) if self._work.cancelled() else self._work.exception()

    def _end(self, _: object) -> None:
        error = self._error()
        name = None if error is None else type(error).__name__
        self._hooks.emit(events.JobEnded(self.id, self.custom_id, self.tag, name))

    async def joined(
        self, timeout: float | None, on_update: Callable[[TaskRecord], object] | None
    ) -> Clip:
        """Return the clip to a caller of `Client.run`; if the last one leaves, the job ends."""
        self._callers += 1
        try:
            if on_update is not None:
                await self.task.reported(on_update, timeout)
            clip = await self
        finally:
            self._callers -= 1
            if not self._callers and not self.is_kept:
                self._work.cancel()
        clip.path = self.path or clip.path
        return clip

    @property
    def path(self) -> Path | None:
        """The file that is or was written; None if no path was given."""
        is_saved = self.done() and self._error() is None
        return (self._work.result()[1] if is_saved else None) or self._path

    @property
    def id(self) -> str:
        """The id of the task."""
        return self.task.id

    @property
    def custom_id(self) -> str | None:
        """Your own name for the job."""
        return self.task.custom_id

    @property
    def tag(self) -> str | None:
        """The text that you attached to the job."""
        return self.task.tag

    def done(self) -> bool:
        """Return whether the job has ended."""
        return self._work.done()


async def followed(
    task: Task,
    path: Path | None,
    timeout: float | None,
    pause: Callable[[float], Awaitable[None]],
    *,
    overwrite: bool,
    is_there: bool,
    pauses: tuple[float, ...],
) -> Followed:
    """
    Wait for the clip of *task*, save it to *path* if there is one, and return both.

    *pause* sleeps, and raises a `UsageError` if the client is closed. *is_there* means that an
    earlier process may have been killed after it saved the clip to *path*, before it recorded that.
    *pauses* are made before each retry of saving.
    """
    clip = await task.ended(timeout)
    if path is None:
        task.hand_out()
        return clip, None
    left = iter(pauses)
    while True:
        try:
            if is_there:
                return clip, await saved_beside(clip, path)
            return clip, await clip.download(path, overwrite=overwrite)
        except DownloadIncomplete as error:
            seconds = next(left, None)
            if seconds is None:
                raise
            failure = error
        try:
            await pause(seconds)
        except UsageError:
            raise failure from failure.__cause__


@attrs.define(eq=False)
class BackgroundJobs:
    """The background jobs of one client; two calls with the same name share one."""

    _sessions: Sessions
    _named: WeakValueDictionary[str, BackgroundJob] = attrs.field(
        init=False, factory=WeakValueDictionary
    )

    async def start(
        self,
        work: Task | Generation,
        *,
        save: str | os.PathLike[str] | None,
        overwrite: bool,
        custom_id: str | None,
        tag: str | None,
        timeout: float | None,
        is_kept: bool,
    ) -> BackgroundJob:
        """
        Submit *work* unless it is a task, and follow it; see `Client.start`.

        *is_kept* says whether the job continues while no caller waits for it; such a job retries
        saving for minutes.
        """
        check(save=save, overwrite=overwrite, timeout=timeout)
        if isinstance(work, Task):
            if not work.belongs_to(self._sessions):
                raise usage_error(
                    "work",
                    "The task belongs to another client.",
                    "Attach to it here: client.task(task.id).",
                )
            if custom_id is not None or tag is not None:
                raise usage_error(
                    "custom_id" if tag is None else "tag",
                    "An existing task cannot be given a name or a tag.",
                    "Pass them when you submit it.",
                )
        shared = self._running(custom_id, is_kept=is_kept)
        if shared is not None:
            return shared
        session = self._sessions.current()
        path = None if save is None else Path(save)
        saved, may_be_there = None, False
        if path is not None:
            known = await self._sessions.job_named(custom_id)
            saved, may_be_there = await asyncio.to_thread(_found, known, path, overwrite=overwrite)
        if isinstance(work, Task):
            task = work
        else:
            task = await self._sessions.submit(work, custom_id=custom_id, tag=tag)
            # Two simultaneous calls with the same name share the task, and so the file as well.
            shared = self._running(custom_id, is_kept=is_kept)
            if shared is not None:
                return shared
        following = followed(
            task,
            path if saved is None else None,
            timeout,
            session.transport.pause,
            overwrite=overwrite,
            is_there=may_be_there,
            pauses=SAVE_AGAIN_AFTER if is_kept else (),
        )
        job = BackgroundJob(task, saved or path, session.follow(following), self._sessions.hooks)
        job.is_kept = is_kept
        if task.custom_id is not None:
            self._named[task.custom_id] = job
        return job

    def _running(self, custom_id: str | None, *, is_kept: bool) -> BackgroundJob | None:
        job = None if custom_id is None else self._named.get(custom_id)
        if job is None or job.done():
            return None
        job.is_kept = job.is_kept or is_kept
        return job


def _found(known: Job | None, path: Path, *, overwrite: bool) -> tuple[Path | None, bool]:
    """
    Return the file that was saved for a known job, and whether its clip may be at *path*.

    Raises:
        UsageError: Neither, and nothing can be saved at *path*.
    """
    if known is not None and known.state is JobState.SAVED:
        saved = saved_place(path, known.task_id or "", known.file_bytes)
        if saved is not None:
            return saved, False
    is_paid = known is not None and known.state.is_unfinished
    if is_paid and not overwrite and path.is_file():
        return None, True
    check_target(path, overwrite=overwrite)
    return None, False
