"""A task that its client follows in the background: wait, save, try again to save."""

import asyncio
from collections.abc import Generator
from pathlib import Path
from typing import Final

from . import hooks as events
from ._clock import Clock
from .errors import DownloadIncomplete
from .hooks import Hooks
from .task import Clip, Task

SAVE_AGAIN_AFTER: Final = (5.0, 15.0, 60.0, 300.0)
"""The pauses before a clip is saved again, in seconds. Each download retries by itself before."""


class BackgroundJob:
    """
    A paid piece of work that goes on by itself; `Client.start` makes it.

    `await job` returns the clip, saved if that was asked for, or raises what the job ended with.
    Cancelling that await, or never awaiting, changes nothing about the job.
    """

    def __init__(self, task: Task, path: Path | None, work: "asyncio.Task[Clip]") -> None:
        #: The task at the gateway.
        self.task = task
        #: The file that is being written; None where none was asked for.
        self.path = path
        self._work = work
        # Its end is an event, so an error that is never awaited is no news for asyncio.
        work.add_done_callback(lambda done: done.cancelled() or done.exception())

    def __repr__(self) -> str:
        return f"<BackgroundJob {self.id} {'ended' if self.done() else 'going on'}>"

    def __await__(self) -> Generator[object, None, Clip]:
        return asyncio.shield(self._work).__await__()

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


async def followed(
    task: Task,
    path: Path | None,
    timeout: float | None,
    clock: Clock,
    hooks: Hooks,
    *,
    overwrite: bool,
) -> Clip:
    """Wait for the clip of *task*, save it to *path* if there is one, and return it."""
    error: str | None = "CancelledError"
    try:
        clip = await task.ended(timeout)
        if path is not None:
            await _saved(clip, path, clock, overwrite=overwrite)
        else:
            task.hand_out()
        error = None
    except Exception as exc:
        error = type(exc).__name__
        raise
    finally:
        hooks.emit(events.JobEnded(task.id, task.custom_id, task.tag, error))
    return clip


async def _saved(clip: Clip, path: Path, clock: Clock, *, overwrite: bool) -> None:
    for pause in SAVE_AGAIN_AFTER:
        try:
            await clip.download(path, overwrite=overwrite)
        except DownloadIncomplete:
            await clock.sleep(pause)
        else:
            return
    await clip.download(path, overwrite=overwrite)
