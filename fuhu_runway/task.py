"""The handles a user holds on something paid for: `Task` to wait with, `Clip` to save from."""

import asyncio
import contextvars
import inspect
import os
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

from ._arguments import check
from ._notebook import clip_view, task_view
from ._waiting.poller import Watch
from .downloads import MAX_CLIP_BYTES, Progress, beside, check_vacant, of_a_paid_clip, only_copy
from .errors import ClipMissing, TaskCanceled, TaskFailed, UsageError, discreet
from .models import DEAD_ENDS, DEFAULT_WAIT, Generation, TaskRecord, TaskState

if TYPE_CHECKING:
    from ._session.sessions import Sessions


class Task:
    """
    A paid piece of work at the gateway, known by its id.

    Any number of waits, from any number of places, ask the gateway once. Leaving a wait, by a
    timeout or a cancellation, leaves the task as it is; it may be waited for again at any time,
    also from another process by `client.task(id)`.
    """

    def __init__(
        self,
        sessions: "Sessions",
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
        self._sessions = sessions
        self._last = record
        self._watch: Watch | None = None
        self._context = context
        #: The gateway's name for it; enough to find it again.
        self.id = task_id
        #: Whether it belongs to the official format, whose tasks are asked for elsewhere.
        self.official = official
        #: What was asked for; None where the task was re-attached by its id.
        self.request = request
        #: When it was accepted, on the clock of the loop it was made in; None if re-attached.
        self.submitted_at = submitted_at
        #: Your own name for it, and what you attached to it.
        self.custom_id = custom_id
        self.tag = tag

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A Task belongs to its client and cannot be pickled. Pass task.id on, and attach to it "
            "there with client.task(id)."
        )

    def __repr__(self) -> str:
        progress = self.record.progress if self.record else None
        percent = "" if progress is None else f" {progress:.0%}"
        return f"<Task {self.id} {self.state.name}{percent}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: where it stood when the gateway was last asked."""
        record = self.record
        reason = money = None
        if record is not None and record.state in DEAD_ENDS:
            reason, money = self._reason(record), _money(record, official=self.official)
        age = self._sessions.age(self)
        return task_view(self.id, record, age=age, reason=reason, money=money)

    def __await__(self) -> Generator[Any, None, "Clip"]:
        """Awaiting a task is waiting for it."""
        return self.wait().__await__()

    @property
    def record(self) -> TaskRecord | None:
        """What the gateway last said; None before it said anything."""
        if self._watch is not None and self._watch.record is not None:
            self._last = self._watch.record
        return self._last

    @property
    def state(self) -> TaskState:
        """Where it stood when the gateway was last asked."""
        return self.record.state if self.record else TaskState.QUEUED

    async def wait(
        self,
        *,
        timeout: float | None = DEFAULT_WAIT,
        on_update: Callable[[TaskRecord], object] | None = None,
    ) -> "Clip":
        """
        Return the clip as soon as the gateway shows its address.

        Asking is free: the gateway is asked after 2 s, then ever more rarely, up to every 15 s,
        and once enough is known of how long such tasks take, when there is likely to be news
        (`PollPolicy`). Trouble on the way, even minutes of it, does not end the wait.

        Args:
            timeout: How long to wait at the most, in seconds; None waits without limit. When it is
                over, the task goes on and may be waited for again.
            on_update: Called with the record at each change of state or progress; may be an
                async function, which is awaited. What it raises ends this wait.

        Raises:
            TaskFailed: The work failed, or was cancelled (`TaskCanceled`).
            ClipMissing: The gateway calls it a success and shows no address.
            WaitTimeout: It had not ended in time.
            NotFound: The gateway does not know it.
            Unauthorized: The key may not ask.
            OutOfCredits: The key's quota is used up, and asking needs some.
            WaitAbandoned: The client was closed meanwhile.

        Source:
            api-facts 1.6, 3.4, 5.4 and 5.6.
        """
        check(timeout=timeout, on_update=on_update)
        if on_update is None:
            # Not by `ended`: another coroutine takes 256 bytes in each of thousands of waits.
            poller, self._watch = self._sessions.watch(self)
            clip = self._clip(await poller.settled(self._watch, timeout))
            self.hand_out()
            return clip
        async for record in self.updates(timeout=timeout):
            reaction = on_update(record)
            if inspect.isawaitable(reaction):
                await reaction
        clip = self._clip(self._settled_record())
        self.hand_out()
        return clip

    async def updates(self, *, timeout: float | None = DEFAULT_WAIT) -> AsyncIterator[TaskRecord]:
        """
        Yield each change of the task, and end with it.

        A reader that is slower than the gateway gets the latest record only. What the task ended
        with is the last record; it raises no `TaskFailed`, and otherwise raises as `wait` does.
        The clip is not handed out: the task stays in `Client.unfinished` until a wait returns it.

        Args:
            timeout: How long to follow it at the most, in seconds; None follows without limit.
        """
        check(timeout=timeout)
        poller, watch = self._sessions.watch(self)
        self._watch = watch
        deadline, abandoned = poller.deadline(timeout), poller.abandoned
        version = watch.version
        if watch.record is not None:
            yield watch.record
        # Also a reader that was busy while the task ended gets the end.
        while not watch.is_settled or watch.version > version:
            record = await poller.changed(watch, version, timeout, deadline, abandoned)
            # By now it may have changed again.
            version, record = watch.version, watch.record or record
            yield record

    async def refresh(self) -> TaskRecord:
        """
        Return what the gateway says now, in one free poll.

        Raises:
            GatewayError: It says no; `NotFound` right after a submit may pass (api-facts 5.4).
            TransportError: It cannot be reached.
            UnreadableReply: No known dialect fits the answer.
        """
        poller, watch = self._sessions.watch(self)
        self._watch = watch
        return await poller.refresh(watch)

    async def ended(self, timeout: float | None) -> "Clip":
        """Return the clip without handing it out: it stays in `unfinished`; for the client."""
        poller, watch = self._sessions.watch(self)
        self._watch = watch
        return self._clip(await poller.settled(watch, timeout))

    def hand_out(self) -> None:
        """Record that the clip is in the hands of the app; for the client."""
        self._sessions.hand_out(self)

    def belongs_to(self, sessions: "Sessions") -> bool:
        """Return whether this handle came from the client with these sessions; for the client."""
        return self._sessions is sessions

    def context(self) -> contextvars.Context | None:
        """Return the context of the submit, None if that is not known; for the client."""
        return self._context

    def keep(self, watch: Watch) -> None:
        """Keep *watch*, whose record webhooks may update; for the client."""
        self._watch = watch

    def secrets(self) -> tuple[str, ...]:
        """Return the texts that must not be shown in what is said about this task."""
        record = self.record
        known = [getattr(self.request, "prompt", None)]
        if record is not None:
            known += [record.prompt, record.prompt_en]
        return tuple(text for text in known if text)

    def _settled_record(self) -> TaskRecord:
        record = self.record
        assert record is not None  # noqa: S101  (updates() came to an end with one)
        return record

    def _clip(self, record: TaskRecord) -> "Clip":
        if record.has_clip:
            return Clip(self._sessions, self, record)
        canceled = record.state is TaskState.CANCELED
        reason = self._reason(record)
        what = "was cancelled" if canceled else "failed"
        raise (TaskCanceled if canceled else TaskFailed)(
            f"The task {what}: {reason.rstrip('.')}." if reason else f"The task {what}.",
            _money(record, official=self.official),
            "Change the request and submit it anew, if you still want the clip.",
            self.id,
            None,
            reason,
            record.failure_code,
            record.points,
            record.refunded,
        )

    def _reason(self, record: TaskRecord) -> str | None:
        return self._sessions.without_secrets(record.message, self) if record.message else None


def _money(failed: TaskRecord, *, official: bool) -> str:
    """Return what a failure means for the money, as the answer or else the format says."""
    if failed.refunded:
        return "The points were given back."
    if failed.points:
        return f"{failed.points:,.10g} points were used, and the gateway did not give them back."
    if official:
        return (
            "The gateway did not say that points were given back; Runway gives none back for work "
            "that was moderated."
        )
    return "The gateway did not say that points were given back; failed tasks usually get them."


class Clip:
    """
    A finished piece of work: a record that has its video.

    The address is temporary, so save the file soon (api-facts 5.7).
    """

    def __init__(self, sessions: "Sessions", task: Task, record: TaskRecord) -> None:
        self._sessions = sessions
        #: The task it came from.
        self.task = task
        #: What the gateway said about it.
        self.record = record
        self._file: Path | None = None

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A Clip belongs to its client and cannot be pickled. Pass clip.record or clip.id on."
        )

    def __repr__(self) -> str:
        return f"<Clip {self.id}>"

    def _repr_html_(self) -> str:
        """
        Return what a notebook shows: the clip, to be played.

        It plays from the file that this handle saved, if that lies where a notebook's page can
        find it, or else from the temporary address, which then stands in the notebook.
        """
        return clip_view(self.id, self.record, _beside_the_notebook(self._file))

    @property
    def id(self) -> str:
        """The id of its task."""
        return self.task.id

    @property
    def video_url(self) -> str:
        """Where it is; temporary, and as good as a key to it."""
        return self.record.video_url or ""

    @discreet
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

        Free, and safe to call again. The file appears whole and verified or not at all; what came
        before a break is kept beside it as `<name>.part`, and a later download to the same path
        goes on there. If the address has expired, the gateway is asked for another. The key goes
        to the gateway only. A clip that is not at its address yet is asked for again, for as long
        as `PollPolicy.url_grace`.

        Args:
            path: The file to write; its folder has to exist.
            overwrite: Whether a file of that name may be replaced.
            max_bytes: The largest clip to accept.
            on_progress: Called with a `Progress` as bytes arrive; awaited if it is asynchronous.

        Raises:
            UsageError: An argument is wrong, nothing can be written there, there is such a file
                already, or it is being downloaded.
            DownloadIncomplete: The connection kept breaking, the clip is not there yet, its host
                asks for too long a pause, or the disk is full.
            DownloadRefused: What came is no MP4 file, or larger than *max_bytes*, or its address
                is one that cannot or must not be fetched.
            ClipMissing: The address had expired, and the gateway shows no other.
            GatewayError: The address had expired, and the gateway refuses to show another.

        Source:
            api-facts 5.7.
        """
        try:
            check(path=path, overwrite=overwrite, max_bytes=max_bytes, on_progress=on_progress)
            target = check_vacant(Path(path), overwrite=overwrite)
        except UsageError as error:
            raise of_a_paid_clip(error, self.id) from error.__cause__
        self._file = await self._sessions.save(
            self, target, overwrite=overwrite, max_bytes=max_bytes, on_progress=on_progress
        )
        return self._file

    async def address(self, fresh: bool = False) -> str:  # noqa: FBT001, FBT002  (a callback)
        """Return where the clip is; with *fresh*, ask the gateway for a new address."""
        if fresh:
            record = await self.task.refresh()
            if not record.has_clip:
                raise ClipMissing(
                    "The gateway no longer shows an address for the clip.",
                    "It was charged.",
                    "Try again later, or show the task's id to the gateway's support.",
                    self.id,
                )
            self.record = record
        return self.video_url


def _beside_the_notebook(file: Path | None) -> str | None:
    """Return the address of a file for pages of this folder; None where they cannot reach it."""
    if file is None or not file.is_file():
        return None
    try:
        place = file.resolve().relative_to(Path.cwd().resolve())
    except (ValueError, OSError):
        return None
    return quote(os.fsencode(place.as_posix()))


async def saved_beside(clip: Clip, path: Path) -> Path:
    """
    Save a clip for which there is a file at *path* already, and return where it is then.

    That is *path* if the file there is the same clip, else a file beside it.
    """
    copy = beside(path, clip.id)
    # Named after the task, so that it can only be of an earlier attempt at the same clip.
    await clip.download(copy, overwrite=True)
    return await asyncio.to_thread(only_copy, copy, path)
