"""
Bytes to a file: stream, resume, verify, then rename.

What arrives is kept in `<name>.part`; where more is to come, a `<name>.part.json` beside it tells
which file it is the start of. A later attempt goes on there if the server proves that it is still
the same file, and starts anew otherwise. The file itself appears whole, verified and flushed to
disk, or not at all.
Sizes are in bytes.
"""

import asyncio
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urljoin, urlsplit

import aiohttp
import attrs

from ._clock import Clock
from ._gateway import Replay
from ._retry import MAY_REPEAT, delays, fate_of
from ._transport import Transport
from ._wire import retry_after
from .errors import DownloadIncomplete, DownloadRefused, GatewayError, RunwayError, UsageError
from .hooks import DownloadBroken, DownloadFailed, DownloadFinished, DownloadStarted, Hooks
from .models import RetryPolicy, is_web_address, usage_error

R = TypeVar("R")

MAX_CLIP_BYTES: Final = 1024**3
"""The largest clip that is saved unless told otherwise: 1 GiB."""

MAX_REDIRECTS: Final = 5
MAX_NAME_BYTES: Final = 120
"""Length of a name built from a prompt; leaves room for suffixes on every file system."""

BUFFER_BYTES: Final = 1024**2
LEAST_START: Final = 8
"""How much of a file tells whether it is an MP4."""
EXPIRED: Final = frozenset({401, 403, 404, 410})
"""Statuses of a link that has expired, or whose file has moved (api-facts 5.7)."""
FLEETING: Final = frozenset({408, 425, 429, *range(500, 600)})

BOXES: Final = frozenset({b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid"})
"""What an MP4 file may start with (ISO/IEC 14496-12)."""


@attrs.frozen
class Progress:
    """How far a download is."""

    received_bytes: int
    #: The size of the whole file; None where the server does not say.
    total_bytes: int | None

    @property
    def fraction(self) -> float | None:
        """The part that is here, from 0 to 1."""
        return self.received_bytes / self.total_bytes if self.total_bytes else None


@attrs.frozen(eq=False)
class Source:
    """Where a clip comes from."""

    task_id: str
    #: Gives the address; asked with True, gives one that is fresh.
    address: Callable[[bool], Awaitable[str]]
    #: Sent to `origin` and nowhere else.
    key_header: dict[str, str] = attrs.field(repr=False)
    #: The API's own scheme, host and port.
    origin: str


@attrs.frozen(eq=False)
class Downloader:
    """What every download of one client shares."""

    transport: Transport
    retry: RetryPolicy
    clock: Clock
    hooks: Hooks

    async def save(
        self,
        source: Source,
        path: Path,
        *,
        max_bytes: int = MAX_CLIP_BYTES,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> Path:
        """
        Give *path* once the whole clip is there.

        Raises:
            DownloadIncomplete: It broke off and repeating did not help; what came is kept.
            DownloadRefused: What the address gives is no clip, or too large.
            UsageError: Nothing can be written there, or the same file is being downloaded already.
        """
        with _alone(path):
            part = None
            try:
                # Not in a thread: cancelled there, it would leave a file that nobody closes.
                part = _opened(path, source)
                await self._fill(part, source, max_bytes, on_progress)
            except BaseException as error:
                received = part.received if part else 0
                self.hooks.emit(DownloadFailed(source.task_id, received, type(error).__name__))
                raise
        self.hooks.emit(DownloadFinished(source.task_id, part.received))
        return path

    async def _fill(
        self,
        part: "Part",
        source: Source,
        max_bytes: int,
        on_progress: Callable[[Progress], object] | None,
    ) -> None:
        """Come back when *part* is whole and has its name; what it is otherwise stays."""
        try:
            await _Download(self, source, part, max_bytes, on_progress).run()
            await _in_thread(part.publish)
        except OSError as exc:
            raise _unwritable(source, part.received, exc) from exc
        finally:
            if not part.file.closed:  # or it is published
                await _in_thread(part.close)


@attrs.define(eq=False)
class _Broken(Exception):
    """An attempt that broke off and may be repeated; never leaves this module."""

    happened: str
    #: What the server asked for, in seconds.
    delay: float | None = None
    #: The address itself is no longer good.
    expired: bool = False


@attrs.define(eq=False)
class _Download:
    """One clip on its way to one file."""

    tools: Downloader
    source: Source
    part: "Part"
    max_bytes: int
    on_progress: Callable[[Progress], object] | None

    async def run(self) -> None:
        """Go on until it is whole; attempts in a row that bring no byte come to an end."""
        fruitless, renew = 0, False
        drawn = delays(self.tools.retry)
        while True:
            before = self.part.received
            try:
                await self._attempt(await self._address(renew))
            except _Broken as broken:
                cause = broken
            else:
                return
            if self.part.received > before:
                fruitless, drawn = 0, delays(self.tools.retry)
            if cause.expired and not renew:
                renew = True  # a fresh address is worth a try at once
                self._tell(0.0)
                continue
            fruitless += 1
            if fruitless >= self.tools.retry.attempts:
                raise _incomplete(self.source, self.part.received, cause) from cause
            renew = cause.expired
            delay = next(drawn) if cause.delay is None else cause.delay
            self._tell(delay)
            await self.tools.clock.sleep(delay)

    def _tell(self, delay: float) -> None:
        hooks = self.tools.hooks
        hooks.emit(DownloadBroken(self.source.task_id, self.part.received, delay))

    async def _address(self, renew: bool) -> str:  # noqa: FBT001  (as the source has it)
        """Give where the clip is; trouble with asking that may pass is a break like any other."""
        try:
            return await self.source.address(renew)
        except RunwayError as error:
            if Replay.FREE not in MAY_REPEAT[fate_of(error)]:
                raise
            delay = error.retry_after if isinstance(error, GatewayError) else None
            happened = f"A fresh address was asked for in vain ({type(error).__name__})."
            raise _Broken(happened, delay, expired=True) from error

    async def _attempt(self, url: str) -> None:
        """Do one attempt, as far as it gets."""
        try:
            async with self._opened(url) as response:
                # Not in a thread: aiohttp forgets what it has received and nobody has read yet,
                # if the connection breaks meanwhile.
                total = _begin(self.part, response)
                if response.status == 416:
                    return
                self._check_size(total)
                self.tools.hooks.emit(
                    DownloadStarted(self.source.task_id, self.part.received, total)
                )
                await self._pour(response, total)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as exc:
            happened = f"The connection broke ({type(exc).__name__})."
        else:
            if self._is_whole(total):
                return
            happened = f"{self.part.received} of {total or 'an unknown number of'} bytes came."
        # Outside the clause: what the HTTP library says may quote the signed address.
        raise _Broken(happened)

    def _is_whole(self, total: int | None) -> bool:
        if total is None:
            return self.part.ends_well()
        if self.part.received == total and self.part.is_cut():
            self.part.restart()  # there is no rest to ask for, so it is fetched anew
            return False
        return self.part.received == total

    @asynccontextmanager
    async def _opened(self, url: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """Follow redirects to a response that has the bytes; the key stays at its origin."""
        source, transport = self.source, self.tools.transport
        for _ in range(MAX_REDIRECTS + 1):
            key = source.key_header if origin_of(url) == source.origin else {}
            async with transport.stream(url, {**self.part.range_headers(), **key}) as response:
                if response.status not in {301, 302, 303, 307, 308}:
                    _check_status(source, response)
                    yield response
                    return
                url = _led_to(url, response.headers.get("Location", ""))
            if not is_web_address(url):
                raise _refused(source, "The clip's address leads to one that is not http(s).")
        raise _refused(source, f"The clip's address redirects more than {MAX_REDIRECTS} times.")

    async def _pour(self, response: aiohttp.ClientResponse, total: int | None) -> None:
        """Write what comes; on a break, too: it is where the next attempt goes on."""
        buffer = bytearray()
        try:
            while chunk := await response.content.readany():
                buffer += chunk
                here = self.part.received + len(buffer)
                self._check_size(here)
                if self.part.received == 0 and len(buffer) >= LEAST_START:
                    _check_start(self.source, buffer)
                if len(buffer) >= BUFFER_BYTES:
                    # Taken out first: what a cancelled write was given is not to be written twice.
                    data, buffer = bytes(buffer), bytearray()
                    await _in_thread(self.part.write, data, total)
                if self.on_progress is not None:
                    self.on_progress(Progress(here, total))
            if self.part.received == 0:
                _check_start(self.source, buffer)
        except DownloadRefused:
            buffer.clear()
            await _in_thread(self.part.restart)
            raise
        finally:
            if buffer:
                await _in_thread(self.part.write, bytes(buffer), total)

    def _check_size(self, size: int | None) -> None:
        if size is not None and size > self.max_bytes:
            raise _refused(
                self.source,
                f"The clip is larger than the {self.max_bytes:,} bytes that were allowed.",
                "Allow more with max_bytes, and download again.",
            )


@attrs.define(eq=False)
class Part:
    """The start of a file that is not whole yet, on disk."""

    path: Path
    #: Unbuffered, so that a full disk never leaves us wrong about how much is there.
    file: FileIO
    task_id: str
    received: int
    #: What the server named this version of the file, for If-Range.
    validator: str | None = None
    #: Whether that is written down.
    is_noted: bool = False

    @classmethod
    def open(cls, path: Path, task_id: str) -> "Part":
        """Open what an earlier attempt left, if it is of the same task, else a fresh start."""
        file = FileIO(_part_path(path), "a+b")
        part = cls(path, file, task_id, file.seek(0, os.SEEK_END))
        note = _read_note(path)
        part.is_noted = bool(note)
        if note.get("task_id") == task_id:
            part.validator = note.get("validator")
        if part.validator is None:
            part.restart()
        return part

    def range_headers(self) -> dict[str, str]:
        """Ask for the rest, if it is the rest of the same file, else for the whole."""
        if not self.received or self.validator is None:
            return {}
        return {"Range": f"bytes={self.received}-", "If-Range": self.validator}

    def start(self, validator: str | None) -> None:
        """Begin anew, and remember which version of the file this is the start of."""
        if self.received or self.is_noted:
            self.restart()
        self.validator = validator

    def write(self, data: bytes, total: int | None) -> None:
        """Add to the end, as far as the disk takes it; note whose start it is, if that is all."""
        try:
            self._append(data)
        finally:
            # What came whole at once is renamed at once, and nobody will ask what it was: a note
            # all the same would make and remove a file for each clip, as slow as a flush. If we
            # are killed in between, there is no note, and what has none is fetched anew.
            if not self.is_noted and self.received != total:
                self._note()

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = self.file.write(rest)
            self.received += written
            rest = rest[written:]

    def _note(self) -> None:
        note = {"task_id": self.task_id, "validator": self.validator}
        _note_path(self.path).write_text(json.dumps(note), encoding="utf-8")
        self.is_noted = True

    def restart(self) -> None:
        """Throw away what is there."""
        if self.is_noted:
            # First of all: killed half-way, it would pass for a note on what comes next.
            _note_path(self.path).unlink(missing_ok=True)
            self.is_noted = False
        self.file.truncate(0)
        self.received, self.validator = 0, None

    def ends_well(self) -> bool:
        """Tell whether the last box ends where the file does; for servers that name no length."""
        return self._last_box()[0] == self.received

    def is_cut(self) -> bool:
        """Tell whether the file surely lacks its end; for servers that name a wrong length."""
        end, kind = self._last_box()
        # Bytes behind the last box may look like the head of one: players pass over them.
        return end > self.received and kind in BOXES

    def _last_box(self) -> tuple[int, bytes]:
        """Give where the last box ends, by its own word, and its kind."""
        at, size, kind = 0, self.received, b""
        while at < size:
            self.file.seek(at)  # what is written goes to the end nevertheless
            head = self.file.read(16)
            if len(head) < LEAST_START:
                return size + 1, b""
            kind = head[4:8]
            length = int.from_bytes(head[:4])
            if length == 1:
                length = int.from_bytes(head[8:16])
            at = at + length if length else size  # 0: the last box, up to the end
        return at, kind

    def publish(self) -> None:
        """Flush to disk, then give the file its name in one step."""
        os.fsync(self.file.fileno())
        self.file.close()
        _part_path(self.path).replace(self.path)
        _note_path(self.path).unlink(missing_ok=True)
        _sync_folder(self.path.parent)

    def close(self) -> None:
        """Keep what came, if anything did."""
        self.file.close()
        if not self.received:
            _part_path(self.path).unlink(missing_ok=True)
            _note_path(self.path).unlink(missing_ok=True)


def _opened(path: Path, source: Source) -> Part:
    try:
        return Part.open(path, source.task_id)
    except (OSError, ValueError) as exc:
        raise of_a_paid_clip(_no_place(path, exc), source.task_id) from exc


def _begin(part: Part, response: aiohttp.ClientResponse) -> int | None:
    """Put *part* where the body starts, and give the size of the whole file."""
    start, total = _content_range(response.headers.get("Content-Range", ""))
    if response.status == 200:
        part.start(_validator(response))
        return response.content_length
    if response.status == 416 and total == part.received:
        return total  # all of it came, and only the renaming was missing
    same = _validator(response) in {None, part.validator}
    if response.status == 206 and start == part.received and same:
        return total
    part.restart()
    raise _Broken("The server has another file, or another part of it, than was asked for.")


def _content_range(value: str) -> tuple[int | None, int | None]:
    """Give where the part starts and how large the whole is, as far as the header tells."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", value.strip())
    start, total = found.groups() if found else (None, None)
    return int(start) if start else None, int(total) if total else None


def _validator(response: aiohttp.ClientResponse) -> str | None:
    """Give what If-Range may be asked with: a weak ETag is not good enough (RFC 9110 13.1.5)."""
    etag = response.headers.get("ETag", "")
    if etag.startswith('"'):
        return etag
    return response.headers.get("Last-Modified")


def _check_status(source: Source, response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status in {200, 206, 416}:
        return
    happened = f"The clip's address answered with status {status}."
    headers = {name.lower(): value for name, value in response.headers.items()}
    if status in EXPIRED | FLEETING:
        raise _Broken(happened, retry_after(headers), expired=status in EXPIRED)
    raise _refused(source, happened)


def _check_start(source: Source, start: bytearray) -> None:
    if bytes(start[4:8]) not in BOXES:
        raise _refused(source, "What the clip's address gives is no MP4 file.")


def _refused(
    source: Source, happened: str, advice: str = "Look at the task again later; its id still works."
) -> DownloadRefused:
    return DownloadRefused(happened, "The clip exists and is paid for.", advice, source.task_id)


def _incomplete(source: Source, received: int, cause: _Broken) -> DownloadIncomplete:
    return DownloadIncomplete(
        f"The download broke off again and again: {cause.happened}",
        "The clip exists and is paid for.",
        "Download again to the same path: it goes on where it broke off.",
        source.task_id,
        None,
        received,
    )


def _unwritable(source: Source, received: int, exc: OSError) -> DownloadIncomplete:
    return DownloadIncomplete(
        f"The file could not be written ({exc.strerror or type(exc).__name__}).",
        "The clip exists and is paid for.",
        "Make room or choose another path, and download again: what came is kept.",
        source.task_id,
        None,
        received,
    )


def origin_of(url: str) -> str:
    """Give scheme, host and port in one form; what the key may be sent to is compared by it."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:  # such as port 99999: nothing can be sent there anyway
        return ""
    return f"{parts.scheme}://{(parts.hostname or '').rstrip('.')}:{port}"


def _led_to(url: str, location: str) -> str:
    """Give where *url* redirects to; nowhere, if *location* cannot be read."""
    try:
        return urljoin(url, location)
    except ValueError:  # such as an unclosed bracket around an IPv6 host
        return ""


# Names and places


_RESERVED: Final = re.compile(r"(?i)(con|prn|aux|nul|(com|lpt)[0-9¹²³])")
_UNSAFE: Final = re.compile(r"[^\w.,+=@()-]+")


def safe_name(text: str, suffix: str = ".mp4") -> str:
    """
    Give a file name that reads like *text* and is safe on every file system.

    Letters of any script stay; spaces and all else become a dash. A long name is cut and told
    apart from its neighbours by six characters of a hash of the whole.
    """
    plain = unicodedata.normalize("NFC", text)
    name = _UNSAFE.sub("-", plain).strip("-. ") or "clip"
    if _RESERVED.fullmatch(name.partition(".")[0]):
        name = f"clip-{name}"
    room = MAX_NAME_BYTES - len(suffix.encode())
    if len(name.encode()) > room:
        mark = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
        name = name.encode()[: room - 7].decode("utf-8", "ignore").rstrip("-. ") + f"-{mark}"
    return name + suffix


def check_folder(folder: Path) -> Path:
    """
    Give *folder* if files can be made in it; it is made if its parent is there.

    Raises:
        UsageError: It cannot be made, or nothing can be written there.
    """
    try:
        folder.mkdir(exist_ok=True)
        _touch(folder / f".{os.getpid()}.probe")
    except OSError as exc:
        raise usage_error(
            "path",
            f"Nothing can be written in {str(folder)!r} ({exc.strerror}).",
            "Choose another folder, or mend its permissions.",
        ) from exc
    return folder


def check_target(path: Path, *, overwrite: bool = False) -> Path:
    """
    Give *path* if a clip can be saved there; meant for before any money is spent.

    Raises:
        UsageError: The folder is missing or not writable, or there is such a file already.
    """
    check_vacant(path, overwrite=overwrite)
    try:
        _touch(_part_path(path))
        _touch(_note_path(path))
    except (OSError, ValueError) as exc:
        raise _no_place(path, exc) from exc
    return path


def check_vacant(path: Path, *, overwrite: bool = False) -> Path:
    """
    Give *path* if nothing stands in its place; whether it can be written, writing will show.

    Raises:
        UsageError: The folder is missing, or there is such a file already.
    """
    try:
        obstacle = _obstacle(path, overwrite=overwrite)
    except OSError as exc:
        raise _no_place(path, exc) from exc
    if obstacle is not None:
        raise usage_error("path", *obstacle)
    return path


def of_a_paid_clip(error: UsageError, task_id: str) -> UsageError:
    """Give an error that was made for before any money is spent as it is after that."""
    money = "The clip exists and is paid for."
    return UsageError(error.happened, money, error.advice, task_id, None, error.field)


def _no_place(path: Path, exc: OSError | ValueError) -> UsageError:
    """Give the error for a place where no file can be opened."""
    if isinstance(exc, OSError):
        return usage_error(
            "path",
            f"Nothing can be written there, in {str(path.parent)!r} ({exc.strerror}).",
            "Choose another folder or a shorter name, or mend the folder's permissions.",
        )
    # A name that no system takes.
    return usage_error("path", f"The path is none ({exc}).", "Give another name.")


def _obstacle(path: Path, *, overwrite: bool) -> tuple[str, str] | None:
    """Give what stands in the way of writing *path*, and what to do about it."""
    if path.is_dir():
        return f"{path.name!r} is a folder.", "Give the name of a file."
    if not path.parent.is_dir():
        return f"There is no folder {str(path.parent)!r}.", "Make it first, or choose another."
    if path.exists() and not overwrite:
        advice = "Choose another name, or allow it to be overwritten (overwrite=True, or --force)."
        return f"{path.name!r} exists already.", advice
    return None


def _touch(file: Path) -> None:
    """Open the very file that will be written, and leave no trace of it."""
    existed = file.exists()
    file.open("ab").close()
    if not existed:
        file.unlink()


_busy: Final[set[Path]] = set()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep a second download of this process away from the same file."""
    place = path.parent.resolve() / path.name
    if place in _busy:
        raise usage_error(
            "path",
            f"{path.name!r} is being downloaded already.",
            "Wait for that, or choose another name.",
        )
    _busy.add(place)
    try:
        yield
    finally:
        _busy.discard(place)


def _part_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.part.json")


def _read_note(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(_note_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


async def _in_thread(work: Callable[..., R], *args: Any) -> R:
    """
    Give what *work* gives, done in a thread.

    A cancellation takes effect when it is done: no thread can be stopped half-way, and a file has
    one user at a time.
    """
    job = asyncio.get_running_loop().run_in_executor(None, work, *args)
    interrupted: asyncio.CancelledError | None = None
    while not job.done():
        try:
            await asyncio.wait([job])
        except asyncio.CancelledError as exc:
            interrupted = exc
    if interrupted is not None:
        job.exception()  # looked at, or asyncio would tell that nobody did
        raise interrupted
    return job.result()


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
