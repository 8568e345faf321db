"""Where the bytes of a clip go: to a file, into memory, or to a reader."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import attrs

from ._clock import Clock
from ._part import Part
from ._received import Received
from .errors import ClipChanged, DownloadIncomplete, DownloadRefused, UsageError
from .paths import path_error

R = TypeVar("R")

PAID_FOR: Final = "The clip exists and is paid for."

BUFFER_BYTES: Final = 1024**2
"""How much is written to a file at once; a larger buffer costs more memory for each download."""

RENAME_PAUSES: Final = (0.05, 0.2, 0.5, 1.0)
"""Seconds between attempts to rename a file that a virus scanner or indexer holds open."""


@attrs.define(eq=False)
class Sink(ABC):
    """Where the bytes of one clip go."""

    #: How much is written at once.
    buffer_bytes: ClassVar[int] = 64 * 1024
    #: Whether the clip is saved in a file.
    is_file: ClassVar[bool] = False
    #: What to do about a download that broke off.
    advice: ClassVar[str]

    task_id: str
    arrived: Received = attrs.field(init=False, factory=Received)

    @abstractmethod
    async def restart(self, validator: str | None = None, total: int | None = None) -> None:
        """Start from zero with this version of the file."""

    @abstractmethod
    async def write(self, data: bytearray, total: int | None = None) -> None:
        """Append *data*; with the last of a body, *total* is the size of the file, if known."""

    def refused(
        self, happened: str, advice: str = "Try again later; the task's id stays valid."
    ) -> DownloadRefused:
        return DownloadRefused(happened, PAID_FOR, advice, self.task_id)

    def incomplete(self, happened: str, advice: str | None = None) -> DownloadIncomplete:
        received = self.arrived.received
        advice = advice or self.advice
        return DownloadIncomplete(happened, PAID_FOR, advice, self.task_id, None, received)


@attrs.define(eq=False)
class FileSink(Sink):
    """A file, which appears under its name when it is whole; see `Part`."""

    buffer_bytes: ClassVar[int] = BUFFER_BYTES
    is_file: ClassVar[bool] = True
    advice: ClassVar[str] = "Download again to the same path to continue."

    path: Path
    #: What the name of the part contains; see `Part`.
    mark: str = ""
    #: Whether an existing file may be replaced.
    overwrite: bool = False
    _part: Part = attrs.field(init=False)
    _is_open: bool = attrs.field(init=False, default=False)

    async def open(self) -> None:
        """Open and lock the part, and continue from what an earlier attempt left in it."""
        try:
            # In a thread: creating a file waits for a disk that is flushing others.
            await in_thread(self._open)
        except (OSError, ValueError) as exc:
            raise paid_for(path_error(self.path, exc), self.task_id) from exc
        if self._part.note:
            with self._disk():
                await in_thread(self._part.resume)

    def _open(self) -> None:
        self.arrived = self._part = Part.open(self.path, self.task_id, self.mark)
        self._is_open = True

    async def restart(self, validator: str | None = None, total: int | None = None) -> None:
        with self._disk():
            if self._part.is_empty():
                self._part.begin(validator, total)
            else:
                await in_thread(self._part.restart, validator, total)

    async def write(self, data: bytearray, total: int | None = None) -> None:
        with self._disk():
            await in_thread(self._write, data, total)

    def _write(self, data: bytearray, total: int | None) -> None:
        part = self._part
        part.write(data, total)
        # In the same thread: with many downloads at once, the loop takes longer to come back to
        # one of them than the disk takes.
        if part.received == total and not part.boxes.is_cut:
            with suppress(PermissionError):  # `publish` tries again
                part.publish(overwrite=self.overwrite)

    async def publish(self, clock: Clock) -> None:
        """Rename the part to the file, unless that was done with its last bytes."""
        if self._part.is_published:
            return None
        publish = partial(self._part.publish, overwrite=self.overwrite)
        with self._disk():
            for pause in RENAME_PAUSES:
                try:
                    return await in_thread(publish)
                except PermissionError:
                    await clock.sleep(pause)
            return await in_thread(publish)

    async def close(self) -> None:
        if not self._is_open:
            return
        if self._part.is_published:
            self._part.close()
        else:
            await in_thread(self._part.close)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Translate the errors of the file system."""
        try:
            yield
        except FileExistsError as exc:
            raise paid_for(path_error(self.path, exc), self.task_id) from exc
        except OSError as exc:
            raise self.incomplete(
                f"The file could not be written ({exc.strerror or type(exc).__name__}).",
                "Free some space or choose another path, and download again.",
            ) from exc


@attrs.define(eq=False)
class MemorySink(Sink):
    """Bytes in memory."""

    advice: ClassVar[str] = "Read the clip again, or save it with download(), which continues."

    content: bytearray = attrs.field(init=False, factory=bytearray)

    async def restart(self, validator: str | None = None, total: int | None = None) -> None:
        self.content.clear()
        self.arrived.begin(validator, total)

    async def write(self, data: bytearray, total: int | None = None) -> None:  # noqa: ARG002
        self.content += data
        self.arrived.take(data)


@attrs.define(eq=False)
class ReaderSink(Sink):
    """
    A reader that takes one chunk after the other, and gets no byte twice.

    After a restart, the bytes that the reader has already are compared, not handed out.
    """

    advice: ClassVar[str] = (
        "Discard what was streamed and stream the clip again, or save it with download(),"
        " which continues."
    )

    #: Chunks for the reader; None after the last.
    chunks: "asyncio.Queue[bytes | None]" = attrs.field(init=False, factory=asyncio.Queue)
    _wanted: asyncio.Semaphore = attrs.field(init=False, factory=lambda: asyncio.Semaphore(1))
    _is_left: bool = attrs.field(init=False, default=False)
    #: How many bytes the reader has, and their digest.
    _read: tuple[int, str] = attrs.field(init=False, default=(0, ""))

    def want(self) -> None:
        """Ask for the next chunk; for the reader."""
        self._wanted.release()

    def leave(self) -> None:
        """Let the download end, which may wait for the reader; for the reader."""
        self._is_left = True
        self._wanted.release()

    async def restart(self, validator: str | None = None, total: int | None = None) -> None:
        if self.arrived.received >= self._read[0]:
            self._read = self.arrived.received, self.arrived.digest.hexdigest()
        self.arrived.begin(validator, total)

    async def write(self, data: bytearray, total: int | None = None) -> None:  # noqa: ARG002
        size, digest = self._read
        known = data[: max(0, size - self.arrived.received)]
        self.arrived.take(known)
        if known and self.arrived.received == size and self.arrived.digest.hexdigest() != digest:
            raise self._changed()
        fresh = data[len(known) :]
        self.arrived.take(fresh)
        if fresh:
            await self._wanted.acquire()
            if not self._is_left:
                self.chunks.put_nowait(bytes(fresh))

    async def finish(self) -> None:
        """Wait until the reader has taken the last chunk."""
        if self.arrived.received < self._read[0]:
            raise self._changed()
        await self._wanted.acquire()

    def _changed(self) -> ClipChanged:
        return ClipChanged(
            "The clip's host sent another file after the connection broke.",
            PAID_FOR,
            self.advice,
            self.task_id,
            None,
            self._read[0],
        )


def paid_for(error: UsageError, task_id: str) -> UsageError:
    """Return an error about a path as it is raised after the clip was paid for."""
    return attrs.evolve(error, money=PAID_FOR, task_id=task_id)


async def in_thread(work: Callable[..., R], *args: Any) -> R:
    """
    Run *work* in a thread and return its result.

    A cancellation takes effect when *work* is done: a thread cannot be stopped half-way, and a
    file has one user at a time.
    """
    job = asyncio.get_running_loop().run_in_executor(None, work, *args)
    interrupted: asyncio.CancelledError | None = None
    while not job.done():
        try:
            await asyncio.wait([job])
        except asyncio.CancelledError as exc:
            interrupted = exc
    if interrupted is not None:
        job.exception()  # retrieved, or asyncio would log that it was not
        raise interrupted
    return job.result()
