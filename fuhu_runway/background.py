"""A task that its client follows in the background: wait, save, try again to save."""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

from . import hooks as events
from ._session.sessions import Sessions
from .errors import DownloadIncomplete, RunwayError, UsageError, WaitAbandoned, copied
from .hooks import Hooks
from .journal import Job, JobState
from .models import Generation, usage_error
from .paths import check_vacant, saved_place
from .task import Clip, Task, saved_beside

SAVE_AGAIN_AFTER: Final = (5.0, 15.0, 60.0, 300.0)
"""The pauses before a clip is saved again, in seconds. Each download retries by itself before."""

Followed = tuple[Clip, Path | None]
"""A clip, and the file that it was saved to; None if that was not asked for."""


class BackgroundJob:
    """
    A paid piece of work that goes on by itself; `Client.start` makes it.

    `await job` returns the clip, saved if that was asked for, or raises what the job ended with.
    Cancelling that await, or never awaiting, changes nothing about the job.
    """

    def __init__(
        self, task: Task, path: Path | None, work: "asyncio.Task[Followed]", hooks: Hooks
    ) -> None:
        #: The task at the gateway.
        self.task = task
        self._path = path
        self._work = work
        self._hooks = hooks
        # In a callback, since closing may cancel the work before its first step.
        work.add_done_callback(self._end)

    def __repr__(self) -> str:
        return f"<BackgroundJob {self.id} {'ended' if self.done() else 'going on'}>"

    def __await__(self) -> Generator[Any, None, Clip]:
        return self._result().__await__()

    async def _result(self) -> Clip:
        await asyncio.wait([self._work])
        error = self._error()
        if error is None:
            return self._work.result()[0]
        # Each await gets an error of its own, or they would gather the tracebacks of all.
        raise copied(error) if isinstance(error, RunwayError) else error

    def _error(self) -> BaseException | None:
        if self._work.cancelled():
            return _abandoned(self.task)
        return self._work.exception()

    def _end(self, _: object) -> None:
        error = self._error()
        name = None if error is None else type(error).__name__
        self._hooks.emit(events.JobEnded(self.id, self.custom_id, self.tag, name))

    @property
    def path(self) -> Path | None:
        """The file that is being written, or that was; None if none was asked for."""
        is_saved = self.done() and self._error() is None
        return (self._work.result()[1] if is_saved else None) or self._path

    @property
    def id(self) -> str:
        """The id of its task."""
        return self.task.id

    @property
    def custom_id(self) -> str | None:
        """Your own name for it."""
        return self.task.custom_id

    @property
    def tag(self) -> str | None:
        """What you attached to it."""
        return self.task.tag

    def done(self) -> bool:
        """Return whether it has come to its end."""
        return self._work.done()


def _abandoned(task: Task) -> WaitAbandoned:
    return WaitAbandoned(
        "The client was closed before the job ended.",
        "The task goes on, and what it costs is spent either way.",
        "Start it again: client.start(client.task(id)).",
        task.id,
    )


async def followed(
    task: Task,
    path: Path | None,
    timeout: float | None,
    pause: Callable[[float], Awaitable[None]],
    *,
    overwrite: bool,
    is_there: bool,
) -> Followed:
    """
    Wait for the clip of *task*, save it to *path* if there is one, and return both.

    *pause* sleeps, and raises a `UsageError` if the client is closed. *is_there* tells that an
    earlier process may have saved the clip to *path* and was killed before it wrote that down.
    """
    try:
        clip = await task.ended(timeout)
    except UsageError:
        raise _abandoned(task) from None
    if path is None:
        task.hand_out()
        return clip, None

    async def save() -> Followed:
        if is_there:
            return clip, await saved_beside(clip, path)
        return clip, await clip.download(path, overwrite=overwrite)

    for seconds in SAVE_AGAIN_AFTER:
        try:
            return await save()
        except DownloadIncomplete as error:
            failure = error
        try:
            await pause(seconds)
        except UsageError:
            raise failure from failure.__cause__
    return await save()


async def start(
    sessions: Sessions,
    work: Task | Generation,
    *,
    path: Path | None,
    overwrite: bool,
    custom_id: str | None,
    tag: str | None,
    timeout: float | None,
    jobs: WeakValueDictionary[str, BackgroundJob],
) -> BackgroundJob:
    """
    Submit *work* unless it is a task, and follow it; see `Client.start`.

    *jobs* holds the jobs that have a name, so that two calls under one share a job.
    """

    def going_on() -> BackgroundJob | None:
        job = None if custom_id is None else jobs.get(custom_id)
        return None if job is None or job.done() else job

    if isinstance(work, Task):
        _check_own(sessions, work, custom_id, tag)
    shared = going_on()
    if shared is not None:
        return shared
    session = sessions.current()
    saved, may_be_there = None, False
    if path is not None:
        known = await sessions.job_named(custom_id)
        saved, may_be_there = await asyncio.to_thread(_found, known, path, overwrite=overwrite)
    if isinstance(work, Task):
        task = work
    else:
        task = await sessions.submit(work, custom_id=custom_id, tag=tag)
        # Two calls under one name, at once, share the task: they share the file as well.
        shared = going_on()
        if shared is not None:
            return shared
    file, pause = path if saved is None else None, session.transport.pause
    following = followed(task, file, timeout, pause, overwrite=overwrite, is_there=may_be_there)
    job = BackgroundJob(task, saved or path, session.follow(following), sessions.hooks)
    if task.custom_id is not None:
        jobs[task.custom_id] = job
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
    is_paid = known is not None and known.state in {JobState.ACCEPTED, JobState.FINISHED}
    if is_paid and not overwrite and path.is_file():
        return None, True
    check_vacant(path, overwrite=overwrite)
    return None, False


def _check_own(sessions: Sessions, task: Task, custom_id: str | None, tag: str | None) -> None:
    if not task.belongs_to(sessions):
        raise usage_error(
            "work",
            "The task belongs to another client.",
            "Attach to it here: client.task(task.id).",
        )
    if custom_id is not None or tag is not None:
        raise usage_error(
            "custom_id" if tag is None else "tag",
            "A task that exists already cannot be given a name or a tag.",
            "Give them when you submit it.",
        )
