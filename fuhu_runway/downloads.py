"""
Bytes to a file: stream, resume, verify, then rename.

What has come is kept as a `Part`. A later attempt goes on there if both the bytes and the server's
file are still the same, and starts from zero otherwise. The file itself appears whole, verified
and flushed to disk, or not at all.
Sizes are in bytes.
"""

import asyncio
import enum
import filecmp
import hashlib
import inspect
import ipaddress
import os
import re
import socket
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urljoin, urlsplit

import attrs

from ._clock import Clock
from ._http.retry import MAY_REPEAT, delays, fate_of
from ._http.transport import CLIENT, Stream, StreamBroken, Transport, quoted
from ._part import (
    BOXES,
    BUFFER_BYTES,
    LEAST_START,
    Part,
    is_validator,
    probe,
)
from ._urls import is_web_address
from ._wire.tables import Replay
from ._wire.values import retry_after
from .errors import DownloadIncomplete, DownloadRefused, GatewayError, RunwayError, UsageError
from .hooks import DownloadBroken, DownloadFailed, DownloadFinished, DownloadStarted, Hooks
from .models import RetryPolicy, usage_error

R = TypeVar("R")

PAID_FOR: Final = "The clip exists and is paid for."
MAX_CLIP_BYTES: Final = 1024**3
"""The largest clip that is saved by default: 1 GiB."""

MAX_REDIRECTS: Final = 5
MAX_GAINS: Final = 200
"""How many attempts may break after some new bytes; without it a host could send one at a time."""

PATIENT_ATTEMPTS: Final = 30
"""How many more attempts than the retry policy has are made while patience lasts."""

MAX_NAME_BYTES: Final = 120
"""Length of a name built from a prompt; leaves room for suffixes on every file system."""

RENAME_PAUSES: Final = (0.05, 0.2, 0.5, 1.0)
"""Seconds between attempts to rename a file that a virus scanner or indexer holds open."""

OTHER_MEDIA: Final = (b"\x1a\x45\xdf\xa3", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"OggS")
"""What files of other kinds begin with: WebM, pictures, AVI and WebP, Ogg."""

DECODED: Final = frozenset({"gzip", "deflate", "br", "zstd"})
"""Content codings that aiohttp undoes: lengths and ranges are then about other bytes than ours."""


class Means(enum.Enum):
    """What an answer of the clip's host means for the download."""

    CONTENT = "bytes of the clip, or that there are no more"
    REDIRECT = "it is elsewhere"
    NOT_YET = "it is not there yet: the host is asked again for as long as patience lasts"
    EXPIRED = "the address has expired: the feed is asked for another; if that fails, NOT_YET"
    WHOLE = "it does not give the rest alone: another attempt, at the whole"
    TROUBLE = "trouble that may pass: another attempt"


MEANING: Final = {
    **dict.fromkeys((200, 203, 206, 416), Means.CONTENT),
    **dict.fromkeys((301, 302, 303, 307, 308), Means.REDIRECT),
    **dict.fromkeys((202, 204, 205, 409, 423, 425), Means.NOT_YET),
    # S3 says 400 where the credentials behind a signature have expired (api-facts 5.7).
    **dict.fromkeys((400, 401, 403, 404, 410), Means.EXPIRED),
    **dict.fromkeys((408, 421, 429, *range(500, 600)), Means.TROUBLE),
}
"""What a status means; one that is missing here ends a download that asked for the whole."""


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
    #: How long a clip may be missing at its address, in seconds; `PollPolicy.url_grace`.
    patience: float

    async def save(
        self,
        source: Source,
        path: Path,
        *,
        overwrite: bool = False,
        max_bytes: int = MAX_CLIP_BYTES,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> Path:
        """
        Save the clip, and return *path* once all of it is there.

        Raises:
            DownloadIncomplete: It broke off and retrying did not help; what came is kept.
            DownloadRefused: What the address gives is no clip, or too large.
            UsageError: Nothing can be written there, or the same file is being downloaded already.
        """
        part = None
        try:
            # Not in a thread: cancelled there, it would leave an open file.
            part = _opened(path, source.task_id)
            try:
                await _Download(self, source, part, max_bytes, on_progress).run(overwrite)
            finally:
                if part.is_published:
                    part.close()
                else:
                    await _in_thread(part.close)
        except BaseException as error:
            received = part.received if part else 0
            self.hooks.emit(DownloadFailed(source.task_id, received, type(error).__name__))
            raise
        self.hooks.emit(DownloadFinished(source.task_id, part.received))
        return path


@attrs.define(eq=False)
class _Broken(Exception):
    """An attempt that broke off and may be repeated; never leaves this module."""

    happened: str
    means: Means = Means.TROUBLE
    #: What the server asked for, in seconds.
    delay: float | None = None


@attrs.define(eq=False)
class _Download:
    """One clip on its way to one file."""

    tools: Downloader
    source: Source
    part: Part
    max_bytes: int
    on_progress: Callable[[Progress], object] | None
    #: Where the last attempt that got bytes began.
    began_at: int = 0
    #: Whether the next attempt asks for the rest; some hosts refuse that and give the whole.
    asks_for_rest: bool = True

    async def run(self, overwrite: bool) -> None:  # noqa: FBT001  (as `save` has it)
        """Make attempts until the file is whole, then publish it."""
        if self.part.note:
            with self._disk():
                await _in_thread(self.part.resume)
        try:
            async with self.tools.transport.until_closed():
                await self._fetch()
        except UsageError as error:
            if error.field != CLIENT:
                raise
            raise DownloadIncomplete(
                "The client was closed during the download.",
                PAID_FOR,
                "Download again to the same path: it goes on where it broke off.",
                self.source.task_id,
                None,
                self.part.received,
            ) from error
        with self._disk():
            await self._publish(overwrite)

    async def _fetch(self) -> None:
        """
        Make attempts until the part is whole.

        An attempt counts as fruitful only if the part grew beyond the farthest point ever reached,
        and from there: a host whose file is fetched from zero each time makes no progress.
        """
        policy, now = self.tools.retry, self.tools.clock.now
        farthest, gains, fruitless, renew = self.part.received, 0, 0, False
        drawn = delays(policy)
        patient_until: float | None = None
        while True:
            try:
                return await self._attempt(await self._address(renew))
            except _Broken as broken:
                cause = broken
            if self.began_at >= farthest and self.part.received > farthest:
                gains, fruitless, drawn, patient_until = gains + 1, 0, delays(policy), None
            farthest = max(farthest, self.part.received)
            is_expired = cause.means is Means.EXPIRED
            self.asks_for_rest = not (cause.means is Means.WHOLE or (is_expired and renew))
            if is_expired and not renew:
                renew = True  # a fresh address is worth a try at once
                self._report_break(0.0)
                continue
            renew = is_expired
            fruitless += 1
            if cause.means in {Means.NOT_YET, Means.EXPIRED} and patient_until is None:
                patient_until = now() + self.tools.patience
            has_patience = patient_until is not None and now() < patient_until
            is_over = gains > MAX_GAINS or (fruitless >= policy.attempts and not has_patience)
            delay = next(drawn) if cause.delay is None else cause.delay
            if is_over or (cause.delay or 0.0) > policy.max_retry_after:
                raise self._incomplete(cause) from cause
            if fruitless >= policy.attempts:
                delay = max(delay, self.tools.patience / PATIENT_ATTEMPTS)
            self._report_break(delay)
            await self.tools.clock.sleep(delay)

    def _report_break(self, delay: float) -> None:
        hooks = self.tools.hooks
        hooks.emit(DownloadBroken(self.source.task_id, self.part.received, delay))

    def _incomplete(self, cause: _Broken) -> DownloadIncomplete:
        limit = self.tools.retry.max_retry_after
        if cause.delay is not None and cause.delay > limit:
            happened = f"{cause.happened} It asked for a pause of {cause.delay:,.0f} s."
            advice = f"Download again then, or allow longer pauses than {limit:g} s (RetryPolicy)."
        elif cause.means in {Means.TROUBLE, Means.WHOLE}:
            happened = f"The download broke off again and again: {cause.happened}"
            advice = "Download again to the same path: it goes on where it broke off."
        else:
            happened = f"The clip is not at its address yet, or no longer: {cause.happened}"
            advice = "Download again later."
        return DownloadIncomplete(
            happened, PAID_FOR, advice, self.source.task_id, None, self.part.received
        )

    async def _address(self, renew: bool) -> str:  # noqa: FBT001  (as the source has it)
        """Return where the clip is; a gateway in trouble is a break like any other."""
        try:
            return await self.source.address(renew)
        except RunwayError as error:
            if Replay.FREE not in MAY_REPEAT[fate_of(error)]:
                raise
            delay = error.retry_after if isinstance(error, GatewayError) else None
            happened = f"The gateway gave no fresh address ({type(error).__name__})."
            raise _Broken(happened, Means.EXPIRED, delay) from error

    async def _attempt(self, url: str) -> None:
        """Make one attempt, and return if the part is whole after it."""
        try:
            async with self._opened(url) as stream:
                answer = _Answer.of(stream)
                buffer = await self._begin(stream, answer)
                if buffer is not None:
                    await self._pour(stream, buffer, answer.total)
        except StreamBroken as broken:
            if not broken.passes:
                happened = f"The clip's address cannot be fetched ({broken.name})."
                raise self._refused(happened) from broken
            raise _Broken(f"The connection broke ({broken.name}).") from broken
        with self._disk():
            await self._check_whole(answer)

    @asynccontextmanager
    async def _opened(self, url: str) -> AsyncIterator[Stream]:
        """Follow redirects to an answer that has content; the key stays at its origin."""
        source = self.source
        for _ in range(MAX_REDIRECTS + 1):
            if _is_link_local(url):
                raise self._refused("The clip's address leads to a link-local one.")
            key = source.key_header if origin_of(url) == source.origin != "" else {}
            headers = {**self._range_headers(), **key}
            async with self.tools.transport.stream(url, headers) as stream:
                means = MEANING.get(stream.status)
                if means is Means.CONTENT:
                    yield stream
                    return
                if means is not Means.REDIRECT:
                    happened = f"The clip's address answered with status {stream.status}."
                    if "Range" in headers and (means is None or stream.status == 501):
                        means = Means.WHOLE
                    if means is None:
                        raise self._refused(happened)
                    named = {name.lower(): value for name, value in stream.headers.items()}
                    raise _Broken(happened, means, retry_after(named, self.tools.clock.wall()))
                url, before = _led_to(url, stream.headers.get("Location", "")), url
            if not is_web_address(url):
                raise self._refused("The clip's address leads to one that is not http(s).")
            if before.lower().startswith("https:") and not url.lower().startswith("https:"):
                raise self._refused("The clip's address leads from https to http.")
        raise self._refused(f"The clip's address redirects more than {MAX_REDIRECTS} times.")

    def _range_headers(self) -> dict[str, str]:
        return self.part.range_headers() if self.asks_for_rest else {}

    async def _begin(self, stream: Stream, answer: "_Answer") -> bytearray | None:
        """
        Put the part where the body begins, and return what was read of it for that.

        None if there is no body: all of it came before. What is kept already is thrown away only
        once there is something better, or it is known to be of no use.
        """
        part, buffer = self.part, bytearray()
        if answer.status == 416:
            if not self._range_headers():
                raise self._refused("The clip's address answered with status 416 to no range.")
            if answer.total == part.received:
                return None
        if answer.start != 0 and not part.goes_on_with(
            answer.start, answer.validator, answer.total
        ):
            with self._disk():
                part.restart()
            raise _Broken("The server has another file, or another part of it, than was asked for.")
        self._check_size(answer.total)
        if answer.start == 0:
            while len(buffer) < LEAST_START and (chunk := await stream.read()):
                buffer += chunk
            self._check_start(buffer)
            with self._disk():
                part.start(answer.validator, answer.total)
        self.began_at = part.received
        self.tools.hooks.emit(DownloadStarted(self.source.task_id, part.received, answer.total))
        return buffer

    async def _pour(self, stream: Stream, buffer: bytearray, total: int | None) -> None:
        """Write what comes; on a break, too: it is where the next attempt goes on."""
        try:
            while True:
                here = self.part.received + len(buffer)
                self._check_size(here)
                if self.on_progress is not None:
                    seen = self.on_progress(Progress(here, total))
                    if inspect.isawaitable(seen):
                        await seen
                if len(buffer) >= BUFFER_BYTES:
                    # Taken out first: what a cancelled write was given is not to be written twice.
                    data, buffer = bytes(buffer), bytearray()
                    with self._disk():
                        await _in_thread(self.part.write, data, total)
                chunk = await stream.read()
                if not chunk:
                    break
                buffer += chunk
        except DownloadRefused:
            buffer.clear()
            with self._disk():
                await _in_thread(self.part.restart)
            raise
        finally:
            if buffer:
                with self._disk():
                    await _in_thread(self.part.write, bytes(buffer), total)

    async def _check_whole(self, answer: "_Answer") -> None:
        """
        Raise unless all bytes are here.

        Their number proves it, or the framing of the body, or boxes that end where it does; a box
        that surely goes on disproves it.
        """
        part, total = self.part, answer.total
        end, kind = await _in_thread(part.last_box)
        came = part.received == total
        if total is None:
            came = answer.is_framed or end == part.received
        # Bytes behind the last box may look like the head of one: players pass over them.
        is_cut = end > part.received and kind in BOXES
        if came and not is_cut:
            return
        if is_cut and part.received == total:
            await _in_thread(part.restart)  # there is no rest to ask for
        raise _Broken(f"{part.received} of {total or 'an unknown number of'} bytes came.")

    async def _publish(self, overwrite: bool) -> None:  # noqa: FBT001  (as `save` has it)
        publish = partial(self.part.publish, overwrite=overwrite)
        for pause in RENAME_PAUSES:
            try:
                return await _in_thread(publish)
            except PermissionError:
                await self.tools.clock.sleep(pause)
        return await _in_thread(publish)

    def _check_size(self, size: int | None) -> None:
        if size is not None and size > self.max_bytes:
            raise self._refused(
                f"The clip is larger than the {self.max_bytes:,} bytes that were allowed.",
                "Allow more with max_bytes, and download again.",
            )

    def _check_start(self, start: bytearray) -> None:
        """Raise unless a body that begins with *start* may be a clip."""
        if bytes(start[4:8]) in BOXES:
            return
        if start.startswith(OTHER_MEDIA):
            raise self._refused("What the clip's address gives is no MP4 file.")
        what = "something else" if start else "nothing"
        raise _Broken(f"The clip's address gives {what} in place of it.", Means.NOT_YET)

    def _refused(
        self, happened: str, advice: str = "Try again later; the id of the task still works."
    ) -> DownloadRefused:
        return DownloadRefused(happened, PAID_FOR, advice, self.source.task_id)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Translate what the file system raises."""
        try:
            yield
        except FileExistsError as exc:
            raise of_a_paid_clip(_taken(self.part.path), self.source.task_id) from exc
        except OSError as exc:
            raise DownloadIncomplete(
                f"The file could not be written ({exc.strerror or type(exc).__name__}).",
                PAID_FOR,
                "Make room or choose another path, and download again: what came is kept.",
                self.source.task_id,
                None,
                self.part.received,
            ) from exc


@attrs.frozen
class _Answer:
    """What the head of an answer says about its body."""

    status: int
    #: Where in the file the body starts, and how large the file is; None where it does not say.
    start: int | None
    total: int | None
    #: What names this version of the file, for If-Range.
    validator: str | None
    #: Whether the body is all of the file, and a break in it would have been noticed.
    is_framed: bool = False

    @classmethod
    def of(cls, stream: Stream) -> "_Answer":
        status, headers = stream.status, stream.headers
        is_decoded = headers.get("Content-Encoding", "").strip().lower() in DECODED
        validator = None if is_decoded else _validator(headers)
        if status in {206, 416}:
            span = re.fullmatch(
                r"bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/(?:([0-9]{1,18})|\*)",
                headers.get("Content-Range", "").strip(),
            )
            start, total = span.groups() if span and not is_decoded else (None, None)
            return cls(status, None if status == 416 else _number(start), _number(total), validator)
        length = _number(headers.get("Content-Length"))
        is_chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        is_framed = is_chunked or length is not None
        return cls(status, 0, None if is_decoded or is_chunked else length, validator, is_framed)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text) else None


def _validator(headers: Mapping[str, str]) -> str | None:
    """Return what If-Range may be sent with: a weak ETag is not good enough (RFC 9110 13.1.5)."""
    for name in ("ETag", "Last-Modified"):
        if is_validator(headers.get(name)):
            return headers[name]
    return None


def _opened(path: Path, task_id: str) -> Part:
    """Return the part of *path*, opened for this download alone."""
    try:
        # Absolute, since the program may change its folder meanwhile.
        return Part.open(path.absolute(), task_id)
    except BlockingIOError as exc:
        busy = usage_error(
            "path",
            f"{path.name!r} is being downloaded already.",
            "Wait for that, or choose another name.",
        )
        raise of_a_paid_clip(busy, task_id) from exc
    except (OSError, ValueError) as exc:
        raise of_a_paid_clip(_no_place(path, exc), task_id) from exc


# Addresses


def origin_of(url: str) -> str:
    """Return scheme, host and port in one form, to tell where the key may be sent."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:  # such as port 99999: nothing can be sent there anyway
        return ""
    if "@" in parts.netloc:  # it has credentials of its own, and a request can have one kind only
        return ""
    return f"{parts.scheme}://{(parts.hostname or '').rstrip('.')}:{port}"


def _led_to(url: str, location: str) -> str:
    """Return where *url* redirects to, byte for byte; nowhere, if *location* cannot be read."""
    try:
        # What a host cannot have is left to be found out, so only the rest is quoted.
        absolute = re.match(r"[a-z]+://[^/?#]*", location, re.IGNORECASE)
        at = absolute.end() if absolute else 0
        location = location[:at] + quoted(location[at:])
        parts = urlsplit(url)
        # By urljoin only the rest, since it takes out dots and an empty query.
        if location.startswith("//"):
            return f"{parts.scheme}:{location}"
        if location.startswith("/"):
            return f"{parts.scheme}://{parts.netloc}{location}"
        return location if absolute else urljoin(url, location)
    except ValueError:  # such as half a character, or an unclosed bracket around an IPv6 host
        return ""


def _is_link_local(url: str) -> bool:
    """
    Whether the host is a link-local address, such as that of a cloud's metadata service.

    Resolvers take an IPv4 address in hex, octal or as one number, so these count as well.
    """
    try:
        host = (urlsplit(url).hostname or "").rstrip(".").partition("%")[0]
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            address = ipaddress.ip_address(socket.inet_aton(host))
    except (OSError, ValueError):
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_link_local


# Names and places


_RESERVED: Final = re.compile(r"(?i)(con|prn|aux|nul|(com|lpt)[0-9¹²³])")
_UNSAFE: Final = re.compile(r"[^\w.,+=@()-]+")


def safe_name(text: str, suffix: str = ".mp4") -> str:
    """
    Return a file name that reads like *text* and is safe on every file system.

    Letters of any script stay; spaces and all else become a dash. A long name is cut,
    and six characters of a hash of the whole make it unique.
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


def beside(path: Path, task_id: str) -> Path:
    """Return where the clip of a task goes if another file is at *path*."""
    return path.with_name(safe_name(f"{path.stem}-{task_id}"))


def only_copy(copy: Path, path: Path) -> Path:
    """
    Return where a clip is that was saved beside its place.

    If a process is killed between saving a clip and writing that down, the file at *path* is the
    clip as well, and the copy is deleted.
    """
    if path.is_file() and filecmp.cmp(copy, path, shallow=False):
        copy.unlink()
        return path
    return copy


def saved_place(path: Path, task_id: str, size: int | None) -> Path | None:
    """Return the file that was saved for a task, of *size* bytes; None if it is gone or changed."""
    copy = beside(path, task_id)
    place = only_copy(copy, path) if copy.is_file() else path
    return place if place.is_file() and place.stat().st_size == size else None


def check_folder(folder: Path) -> Path:
    """
    Return *folder* if files can be made in it; it is made if its parent is there.

    Raises:
        UsageError: It cannot be made, or nothing can be written there.
    """
    try:
        folder.mkdir(exist_ok=True)
        probe(folder / f".{os.getpid()}")
    except OSError as exc:
        raise usage_error(
            "path",
            f"Nothing can be written in {str(folder)!r} ({exc.strerror}).",
            "Choose another folder, or mend its permissions.",
        ) from exc
    return folder


def check_target(path: Path, *, overwrite: bool = False) -> Path:
    """
    Return *path* if a clip can be saved there; meant for before any money is spent.

    Raises:
        UsageError: The folder is missing or not writable, or there is such a file already.
    """
    check_vacant(path, overwrite=overwrite)
    try:
        probe(path)
    except (OSError, ValueError) as exc:
        raise _no_place(path, exc) from exc
    return path


def check_vacant(path: Path, *, overwrite: bool = False) -> Path:
    """
    Return *path* if nothing stands in its place; whether it can be written, writing will show.

    Raises:
        UsageError: The folder is missing, or there is such a file already.
    """
    try:
        if path.is_dir():
            raise usage_error("path", f"{str(path)!r} is a folder.", "Give the name of a file.")
        if not path.parent.is_dir():
            raise usage_error(
                "path",
                f"There is no folder {str(path.parent)!r}.",
                "Make it first, or choose another.",
            )
        # A link is there also where what it leads to is not.
        if os.path.lexists(path) and not overwrite:
            raise _taken(path)
        if path.exists() and not path.is_file():
            raise usage_error(
                "path", f"{path.name!r} is a device or a pipe.", "Give the name of a file."
            )
    except OSError as exc:
        raise _no_place(path, exc) from exc
    return path


def of_a_paid_clip(error: UsageError, task_id: str) -> UsageError:
    """Return an error that was made for before any money is spent as it is after that."""
    return UsageError(error.happened, PAID_FOR, error.advice, task_id, None, error.field)


def _no_place(path: Path, exc: OSError | ValueError) -> UsageError:
    """Return the error for a place where no file can be opened."""
    if isinstance(exc, OSError):
        return usage_error(
            "path",
            f"Nothing can be written there, in {str(path.parent)!r} ({exc.strerror}).",
            "Choose another folder or a shorter name, or correct what is in the way.",
        )
    # A name that no system takes.
    return usage_error("path", f"The path is none ({exc}).", "Give another name.")


def _taken(path: Path) -> UsageError:
    advice = "Choose another name, or allow it to be overwritten (overwrite=True, or --force)."
    return usage_error("path", f"{path.name!r} exists already.", advice)


async def _in_thread(work: Callable[..., R], *args: Any) -> R:
    """
    Return what *work* gives, done in a thread.

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
        job.exception()  # retrieved, or asyncio would log that it was not
        raise interrupted
    return job.result()
