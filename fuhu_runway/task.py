"""What a submission returns: a `Task` to wait for, and the `Clip` to save."""

import asyncio
import contextvars
import inspect
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self
from urllib.parse import quote

from ._arguments import check
from ._notebook import clip_view, task_view
from ._redact import texts_in
from ._sinks import paid_for
from ._waiting.poller import Poller, Watch
from .downloads import MAX_CLIP_BYTES, Progress
from .errors import (
    ClipMissing,
    RunwayError,
    TaskCanceled,
    TaskFailed,
    UsageError,
    WaitAbandoned,
    drop_frames,
    without_frames,
)
from .models import DEAD_ENDS, DEFAULT_WAIT, Generation, TaskRecord, TaskState
from .paths import beside, check_vacant, only_copy

if TYPE_CHECKING:
    from ._session.handles import Handles


class Task:
    """
    A paid task at the gateway, known by its id.

    Any number of waits share one poll. A timeout or a cancellation ends the wait, not the task: it
    may be waited for again at any time, even by another process with `client.task(id)`.
    """

    def __init__(
        self,
        handles: "Handles",
        task_id: str,
        *,
        official: bool = False,
        request: Generation | None = None,
        record: TaskRecord | None = None,
        submitted_at: float | None = None,
        custom_id: str | None = None,
        tag: str | None = None,
        context: contextvars.Context | None = None,
    ) -> None:
        self._handles = handles
        self._last = record
        self._watch: Watch | None = None
        self._context = context
        #: The gateway's id for the task; enough to find it again.
        self.id = task_id
        #: Whether the task has the official format, which has endpoints of its own.
        self.official = official
        #: The request; None if the task was attached by its id.
        self.request = request
        #: When it was accepted, by the clock of its event loop; None if it was attached by its id.
        self.submitted_at = submitted_at
        #: Your own name for the task, and your own text.
        self.custom_id = custom_id
        self.tag = tag

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A Task belongs to its client and cannot be pickled. "
            "Pass task.id instead, and call client.task(id) there."
        )

    def __repr__(self) -> str:
        percent = "" if self.progress is None else f" {self.progress:.0%}"
        return f"<Task {self.id} {self.state.name}{percent}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the task as of its last poll."""
        record, reason, money = self.record, None, None
        if record is not None and record.state in DEAD_ENDS:
            reason, money = self._reason(record), self._money(record)
        age = self._handles.age(self)
        return task_view(self.id, record, age=age, reason=reason, money=money)

    def __await__(self) -> Generator[Any, None, "Clip"]:
        """Wait for the task, as `wait()` does."""
        return self.wait().__await__()

    @property
    def record(self) -> TaskRecord | None:
        """The gateway's last record of the task; None before the first poll."""
        if self._watch is not None and self._watch.record is not None:
            return self._watch.record
        return self._last

    @property
    def state(self) -> TaskState:
        """The state as of the last poll; UNKNOWN before the first one. Sends nothing."""
        return self.record.state if self.record else TaskState.UNKNOWN

    @property
    def progress(self) -> float | None:
        """The progress as of the last poll, from 0 to 1; None if it is not known."""
        return self.record.progress if self.record else None

    @property
    def points(self) -> float | None:
        """The points used as of the last poll, in the gateway's unit; None if not known."""
        return self.record.points if self.record else None

    async def wait(
        self,
        *,
        timeout: float | None = DEFAULT_WAIT,
        on_update: Callable[[TaskRecord], object] | None = None,
    ) -> "Clip":
        """
        Return the clip as soon as the gateway shows its URL.

        Polls are free. The first comes after 2 s, and later ones are less frequent, down to one
        every 15 s; once enough is known about how long such tasks take, polls are made when a
        change is likely (`PollPolicy`). Trouble at the gateway, even for minutes, does not end the
        wait.

        Args:
            timeout: The longest wait, in seconds; None waits without limit. After a timeout the
                task goes on, and may be waited for again.
            on_update: Called with the record at each change of state or progress; may be an
                async function, which is awaited until the timeout. What it raises ends this wait.

        Raises:
            TaskFailed: The task failed, or was cancelled (`TaskCanceled`).
            ClipMissing: The task succeeded, but the gateway shows no URL.
            WaitTimeout: The task did not end in time.
            NotFound: The gateway does not know the task.
            Unauthorized: The key is not allowed to poll.
            OutOfCredits: The key's quota is used up, and polling needs some.
            WaitAbandoned: The client was closed meanwhile.

        Source:
            api-facts 1.6, 3.4, 5.4 and 5.6.
        """
        check(timeout=timeout, on_update=on_update)
        if on_update is None:
            # Not by `ended`: another coroutine takes 256 bytes in each of thousands of waits.
            poller, watch = self._watched()
            clip = self._clip(await poller.settled(watch, timeout))
        else:
            clip = self._clip(await self.reported(on_update, timeout))
        self.hand_out()
        return clip

    async def updates(self, *, timeout: float | None = DEFAULT_WAIT) -> AsyncIterator[TaskRecord]:
        """
        Yield the record at each change of the task, and stop after the one that ends it.

        A reader that is slower than the gateway gets the latest record only. A task that failed
        yields its record and raises no `TaskFailed`; otherwise this raises as `wait` does. The
        clip is not handed out: the task stays in `Client.unfinished` until a wait returns it.

        Args:
            timeout: The longest time to follow the task, in seconds; None follows without limit.
        """
        check(timeout=timeout)
        poller, watch = self._watched()
        deadline, abandoned = poller.deadline(timeout), poller.abandoned
        version = watch.version
        if watch.record is not None:
            yield watch.record
        # The version is compared for a reader that was busy while the task ended.
        while not watch.is_settled or watch.version > version:
            record = await poller.changed(watch, version, timeout, deadline, abandoned)
            # By now it may have changed again.
            version, record = watch.version, watch.record or record
            yield record

    async def reported(
        self, on_update: Callable[[TaskRecord], object], timeout: float | None
    ) -> TaskRecord:
        """Call *on_update* with each record, and return the last one; for the client."""
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        async for record in self.updates(timeout=timeout):
            reaction = on_update(record)
            if inspect.isawaitable(reaction):
                limit = asyncio.timeout_at(deadline)
                try:
                    async with limit:
                        await reaction
                except TimeoutError:
                    # Otherwise the next step raises `WaitTimeout`, unless the task has ended.
                    if not limit.expired():
                        raise
        return record

    async def refresh(self) -> TaskRecord:
        """
        Poll once, for free, and return the record.

        Raises:
            GatewayError: The gateway refuses; `NotFound` right after a submit may be
                temporary (api-facts 5.4).
            TransportError: The gateway cannot be reached.
            UnreadableReply: The reply is in no known dialect.
        """
        poller, watch = self._watched()
        return await poller.refresh(watch)

    def _watched(self) -> tuple[Poller, Watch]:
        """Return the poller of the running loop, and its watch, which keeps the last record."""
        poller, self._watch = self._handles.watch(self)
        if self._watch.record is not None:
            self._last = None  # each of thousands of waits would keep the one of its submit
        return poller, self._watch

    async def ended(self, timeout: float | None) -> "Clip":
        """Return the clip without handing it out: it stays in `unfinished`; for the client."""
        try:
            poller, watch = self._watched()
        except UsageError:  # the client was closed since the task was accepted
            raise abandoned(self) from None
        return self._clip(await poller.settled(watch, timeout))

    def hand_out(self) -> None:
        """Record that the app has the clip; for the client."""
        self._handles.hand_out(self)

    def belongs_to(self, handles: "Handles") -> bool:
        """Return whether this task came from the client with these handles; for the client."""
        return self._handles is handles

    def context(self) -> contextvars.Context | None:
        """Return the context of the submit; None if that is not known; for the client."""
        return self._context

    def keep(self, watch: Watch) -> None:
        """Keep *watch*, whose record webhooks may update; for the client."""
        self._watch = watch

    def secrets(self) -> tuple[str, ...]:
        """Return the texts that no error about this task may show; for the client."""
        known = [getattr(self.request, name, None) for name in ("prompt", "body")]
        if self.record is not None:
            known += [self.record.prompt, self.record.prompt_en]
        return tuple(texts_in(known))

    def _clip(self, record: TaskRecord) -> "Clip":
        if record.has_clip:
            return Clip(self._handles, self, record)
        error, what = TaskFailed, "failed"
        if record.state is TaskState.CANCELED:
            error, what = TaskCanceled, "was cancelled"
        reason = self._reason(record)
        raise error(
            f"The task {what}: {reason}" if reason else f"The task {what}",
            self._money(record),
            "Change the request and submit again, if you still want the clip.",
            self.id,
            None,
            reason,
            record.failure_code,
            record.points,
            record.refunded,
        )

    def _reason(self, record: TaskRecord) -> str | None:
        return self._handles.without_secrets(record.message, self) if record.message else None

    def _money(self, failed: TaskRecord) -> str:
        """Return what a failure means for the money, by the record or else by the format."""
        if failed.refunded:
            return "The points were refunded."
        if failed.points:
            used = f"{failed.points:,.10g} points were used"
            return f"{used}, and the gateway did not give them back."
        usually = "they usually are for failed tasks"
        if self.official:
            usually = "Runway does not give them back for moderated tasks"
        return f"The gateway did not say that points were refunded; {usually}."


class Clip:
    """
    The video of a task that succeeded.

    Its URL is temporary, so save the file soon (api-facts 5.7).
    """

    def __init__(self, handles: "Handles", task: Task, record: TaskRecord) -> None:
        self._handles = handles
        #: The task that made it.
        self.task = task
        #: The gateway's record of that task.
        self.record = record
        #: The file that this handle was saved to last; None if it was not.
        self.path: Path | None = None

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A Clip belongs to its client and cannot be pickled. Pass clip.id or clip.record."
        )

    def __await__(self) -> Generator[Any, None, Self]:
        """Return the clip itself: in a notebook, `await clip` shows the player as `clip` does."""
        yield from ()
        return self

    def __repr__(self) -> str:
        return f"<Clip {self.id}>"

    def _repr_html_(self) -> str:
        """
        Return what a notebook shows: a player.

        It plays the file that `download` saved, if that is below the notebook's folder, and else
        the temporary URL, which is then saved in the notebook.
        """
        place = None
        if self.path is not None:
            with suppress(ValueError, OSError):
                file = self.path.resolve(strict=True).relative_to(Path.cwd().resolve())
                place = quote(os.fsencode(file.as_posix()))
        return clip_view(self.id, self.record, place)

    @property
    def id(self) -> str:
        """The task's id."""
        return self.task.id

    @property
    def video_url(self) -> str:
        """The video's URL: temporary, and all that is needed to fetch the clip."""
        return self.record.video_url or ""

    @property
    def points(self) -> float | None:
        """The points that it cost, in the gateway's unit; None if the gateway did not say."""
        return self.record.points

    @without_frames
    async def download(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        max_bytes: int = MAX_CLIP_BYTES,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> Path:
        """
        Save the clip and return the path of the file.

        Downloads are free and may be repeated. The file appears whole and verified, or not at all;
        if the download breaks off, its bytes are kept in `<name>.part`, and a later download to the
        same path continues there. If the URL has expired, the gateway is polled for a new one. The
        key is sent to the gateway only. If the clip is not at its URL yet, the download tries
        again for `PollPolicy.url_grace`.

        Args:
            path: The file to write; its folder must exist.
            overwrite: Whether an existing file may be replaced.
            max_bytes: The largest clip to accept.
            on_progress: Called with a `Progress` as bytes arrive; may be an async function, which
                is awaited.

        Raises:
            UsageError: An argument is wrong, nothing can be written there, the file already exists,
                or it is being downloaded.
            DownloadIncomplete: The connection kept breaking, the clip is not there yet, its host
                asks for too long a pause, or the disk is full.
            DownloadRefused: The URL returns no MP4 file, or one larger than *max_bytes*, or must
                not be requested.
            ClipMissing: The URL has expired, and the gateway shows no other.
            GatewayError: The URL has expired, and the gateway refuses to show another.

        Source:
            api-facts 5.7.
        """
        with self._paid_for():
            check(path=path, overwrite=overwrite, max_bytes=max_bytes, on_progress=on_progress)
            target = check_vacant(Path(path), overwrite=overwrite)
        with self._handles.downloading(self) as (downloader, source):
            self.path = await downloader.save(
                source, target, overwrite=overwrite, max_bytes=max_bytes, on_progress=on_progress
            )
        return self.path

    async def pass_on(self, path: Path, put: Callable[[Path], Awaitable[None]]) -> None:
        """Save the clip at *path* for *put*, which brings it to its place; for the client."""
        with self._handles.downloading(self) as (downloader, source):
            await downloader.save(source, path, pass_on=put)

    @without_frames
    async def read(self, *, max_bytes: int = MAX_CLIP_BYTES) -> bytes:
        """
        Return the clip's bytes, for a program that does not want a file.

        Free and repeatable; resumed and verified as in `download`. The bytes are held in memory
        until the clip is whole.

        Args:
            max_bytes: The largest clip to accept.

        Raises:
            UsageError: An argument is wrong.
            DownloadIncomplete: As in `download`; nothing is kept.
            DownloadRefused: As in `download`.
            ClipMissing: The URL has expired, and the gateway shows no other.
            GatewayError: The URL has expired, and the gateway refuses to show another.
        """
        with self._paid_for():
            check(max_bytes=max_bytes)
        with self._handles.downloading(self) as (downloader, source):
            return await downloader.read(source, max_bytes=max_bytes)

    def stream(self, *, max_bytes: int = MAX_CLIP_BYTES) -> AsyncGenerator[bytes, None]:
        """
        Yield the clip's bytes as they arrive, for an upload or a response of your own.

        Free, resumed and verified as in `download`. No byte is yielded twice, and a stream that
        ends without an error was whole. If you may leave it early, use `contextlib.aclosing`,
        which ends the download at once.

        Args:
            max_bytes: The largest clip to accept.

        Raises:
            UsageError: An argument is wrong; raised before the first chunk is requested.
            DownloadIncomplete: As in `download`; `received_bytes` were yielded.
            ClipChanged: The host sent another file after bytes were yielded: discard them and
                stream again.
            DownloadRefused: As in `download`.
            ClipMissing: The URL has expired, and the gateway shows no other.
            GatewayError: The URL has expired, and the gateway refuses to show another.
        """
        with self._paid_for():
            check(max_bytes=max_bytes)
        return self._stream(max_bytes)

    async def _stream(self, max_bytes: int) -> AsyncGenerator[bytes, None]:
        try:
            with self._handles.downloading(self) as (downloader, source):
                async with aclosing(downloader.stream(source, max_bytes=max_bytes)) as chunks:
                    async for chunk in chunks:
                        yield chunk
        except RunwayError as error:
            failure = error
        else:
            return
        raise drop_frames(failure, sys.exception())

    @contextmanager
    def _paid_for(self) -> Iterator[None]:
        """Make a `UsageError` say that the clip is paid for."""
        try:
            yield
        except UsageError as error:
            raise paid_for(error, self.id) from error.__cause__

    async def address(self, fresh: bool = False) -> str:  # noqa: FBT001, FBT002  (a callback)
        """Return the clip's URL; if *fresh*, poll for a new one. For the client."""
        if fresh:
            record = await self.task.refresh()
            if not record.has_clip:
                raise ClipMissing(
                    "The gateway no longer shows a URL for the clip.",
                    "It was charged.",
                    "Try again later, or send the task's id to the gateway's support.",
                    self.id,
                )
            self.record = record
        return self.video_url


def abandoned(task: Task) -> WaitAbandoned:
    """Return the error of a job whose client was closed."""
    return WaitAbandoned(
        "The client was closed before the job ended.",
        "The task continues, and its points are spent either way.",
        "Continue it: client.run(client.task(id)), or client.start.",
        task.id,
    )


async def saved_beside(clip: Clip, path: Path) -> Path:
    """
    Save a clip although there is a file at *path*, and return where the clip is then.

    That is *path* if the file there is the same clip, else a file beside it.
    """
    copy = beside(path, clip.id)
    # The name has the task's id: a file there can only be from an earlier attempt at this clip.
    await clip.download(copy, overwrite=True)
    clip.path = await asyncio.to_thread(only_copy, copy, path)
    return clip.path
