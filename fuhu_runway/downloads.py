"""
A clip to a file: stream, resume, verify, then rename.

The bytes that have arrived are kept as a `Part`. A later attempt continues there if both the bytes
and the server's file are still the same, and starts from zero otherwise. The file itself appears
whole, verified and flushed to disk, or not at all.
Sizes are in bytes.
"""

import asyncio
import enum
import inspect
import ipaddress
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urljoin, urlsplit

import attrs

from ._clock import Clock
from ._http.retry import MAY_REPEAT, delays, fate_of
from ._http.transport import CLIENT, Stream, StreamBroken, Transport, quoted
from ._part import BOXES, HEAD_BYTES, Part, is_validator
from ._urls import is_web_address
from ._wire.tables import Replay
from ._wire.values import retry_after
from .errors import DownloadIncomplete, DownloadRefused, GatewayError, RunwayError, UsageError
from .hooks import DownloadBroken, DownloadFailed, DownloadFinished, DownloadStarted, Hooks
from .models import RetryPolicy
from .paths import path_error

R = TypeVar("R")

PAID_FOR: Final = "The clip exists and is paid for."

MAX_CLIP_BYTES: Final = 1024**3
"""The largest clip that is saved by default: 1 GiB."""

BUFFER_BYTES: Final = 1024**2
"""How much is written at once; a larger buffer costs more memory for each download."""

MAX_REDIRECTS: Final = 5

PATIENT_ATTEMPTS: Final = 30
"""How many more attempts than the retry policy has are made while patience lasts."""

RENAME_PAUSES: Final = (0.05, 0.2, 0.5, 1.0)
"""Seconds between attempts to rename a file that a virus scanner or indexer holds open."""

OTHER_MEDIA: Final = (b"\x1a\x45\xdf\xa3", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"OggS")
"""How files of other kinds begin: WebM, pictures, AVI and WebP, Ogg."""

DECODED: Final = frozenset({"gzip", "deflate", "br", "zstd"})
"""Content codings that aiohttp decodes: lengths and ranges then count the encoded bytes."""


class Means(enum.Enum):
    """What a response of the clip's host means for the download."""

    CONTENT = "bytes of the clip"
    REDIRECT = "the clip has another URL"
    NOT_YET = "the clip is not there yet: further attempts for as long as patience lasts"
    EXPIRED = "the URL has expired: the feed is polled for another; if that fails, NOT_YET"
    WHOLE = "the host does not send ranges: another attempt, at the whole file"
    TROUBLE = "trouble that may pass: another attempt"


MEANING: Final = {
    **dict.fromkeys((200, 203, 206), Means.CONTENT),
    **dict.fromkeys((301, 302, 303, 307, 308), Means.REDIRECT),
    **dict.fromkeys((202, 204, 205, 409, 423, 425), Means.NOT_YET),
    # S3 sends 400 if the credentials behind a signature have expired (api-facts 5.7).
    **dict.fromkeys((400, 401, 403, 404, 410), Means.EXPIRED),
    **dict.fromkeys((408, 421, 429, 500, *range(502, 600)), Means.TROUBLE),
}
"""What a status means. One that is missing means WHOLE after a range, and else ends a download."""


@attrs.frozen
class Progress:
    """How far a download is."""

    received_bytes: int
    #: The size of the whole file; None if the server does not send it.
    total_bytes: int | None

    @property
    def fraction(self) -> float | None:
        """The part that has arrived, from 0 to 1; None if the size is unknown."""
        return self.received_bytes / self.total_bytes if self.total_bytes else None


@attrs.frozen(eq=False)
class Source:
    """Where a clip comes from."""

    task_id: str
    #: Returns the clip's URL; with True, a fresh one from the gateway.
    address: Callable[[bool], Awaitable[str]]
    #: Sent to `origin` only.
    key_header: dict[str, str] = attrs.field(repr=False)
    #: The gateway's own scheme, host and port.
    origin: str


@attrs.frozen(eq=False)
class Downloader:
    """What every download of one client shares."""

    transport: Transport
    retry: RetryPolicy
    clock: Clock
    hooks: Hooks
    #: How long a clip may be missing at its URL, in seconds; `PollPolicy.url_grace`.
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
        Save the clip, and return *path* once the file is whole.

        Raises:
            DownloadIncomplete: It broke off and retrying did not help; the bytes are kept.
            DownloadRefused: The URL returns no clip, or one that is too large.
            UsageError: Nothing can be written there, or the file is already being downloaded.
        """
        part = None
        try:
            try:
                # Not in a thread: cancelled there, it would leave an open file.
                part = Part.open(path, source.task_id)
            except (OSError, ValueError) as exc:
                raise paid_for(path_error(path, exc), source.task_id) from exc
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
    """An attempt that failed and may be repeated; never leaves this module."""

    happened: str
    means: Means = Means.TROUBLE
    #: The pause that the server asks for, in seconds.
    delay: float | None = None


@attrs.define(eq=False)
class _Download:
    """One clip on its way to one file."""

    tools: Downloader
    source: Source
    part: Part
    max_bytes: int
    on_progress: Callable[[Progress], object] | None
    #: Whether the next attempt requests a range; some hosts refuse that and send the whole file.
    wants_rest: bool = True
    #: Whether the last response with bytes was the rest of the part.
    is_resumed: bool = False

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
            raise self._incomplete("The client was closed during the download.") from error
        publish = partial(self.part.publish, overwrite=overwrite)
        with self._disk():
            for pause in RENAME_PAUSES:
                try:
                    return await _in_thread(publish)
                except PermissionError:
                    await self.tools.clock.sleep(pause)
            return await _in_thread(publish)

    async def _fetch(self) -> None:
        """
        Make attempts until the part is whole.

        Attempts that add to the part do not count against the retry policy. Those that start from
        zero do, however far they get: else a host without ranges could keep a download going.
        """
        policy, clock, patience = self.tools.retry, self.tools.clock, self.tools.patience
        fruitless, drawn = 0, delays(policy)
        patient_until: float | None = None
        is_fresh = False
        while True:
            before = self.part.received
            try:
                return await self._attempt(is_fresh)
            except _Broken as error:
                broken = error
            if self.is_resumed and self.part.received > before:
                fruitless, drawn, patient_until = 0, delays(policy), None
            was_fresh, is_fresh = is_fresh, broken.means is Means.EXPIRED
            self.wants_rest = broken.means is not Means.WHOLE and not (is_fresh and was_fresh)
            if is_fresh and not was_fresh:
                self._report_break(0.0)  # a fresh URL is worth an attempt at once
                continue
            fruitless += 1
            is_missing = broken.means in {Means.NOT_YET, Means.EXPIRED}
            if is_missing and patient_until is None:
                patient_until = clock.now() + patience
            if (broken.delay or 0.0) > policy.max_retry_after:
                raise self._incomplete(
                    f"{broken.happened} It asked for a pause of {broken.delay:,.0f} s.",
                    "Download again then, or allow longer pauses (RetryPolicy.max_retry_after).",
                ) from broken
            delay = next(drawn) if broken.delay is None else broken.delay
            if fruitless >= policy.attempts:
                if patient_until is None or clock.now() >= patient_until:
                    what = "The download kept failing"
                    if is_missing:
                        what = "The clip is not at its URL yet, or no longer"
                    raise self._incomplete(f"{what}: {broken.happened}") from broken
                delay = max(delay, patience / PATIENT_ATTEMPTS)
            self._report_break(delay)
            await clock.sleep(delay)

    def _report_break(self, delay: float) -> None:
        task_id, received = self.source.task_id, self.part.received
        self.tools.hooks.emit(DownloadBroken(task_id, received, delay))

    async def _attempt(self, is_fresh: bool) -> None:  # noqa: FBT001  (as the source has it)
        """Make one attempt; return if the part is whole after it."""
        part = self.part
        try:
            url = await self.source.address(is_fresh)
        except RunwayError as error:
            if Replay.FREE not in MAY_REPEAT[fate_of(error)]:
                raise
            delay = error.retry_after if isinstance(error, GatewayError) else None
            happened = f"The gateway returned no fresh URL ({type(error).__name__})."
            raise _Broken(happened, Means.EXPIRED, delay) from error
        try:
            async with self._response(url) as stream:
                head = _Head.of(stream)
                # A 416 with the size of the part means that all bytes arrived earlier.
                if head.status != 416 or head.total != part.received:
                    await self._receive(stream, head, await self._begin(stream, head))
        except StreamBroken as broken:
            if not broken.passes:
                happened = f"The clip's URL cannot be requested ({broken.name})."
                raise self._refused(happened) from broken
            raise _Broken(f"The connection broke ({broken.name}).") from broken
        with self._disk():
            is_cut = await _in_thread(part.is_cut)
            if is_cut and part.received == head.total:
                part.restart()  # there is no rest to request
        if is_cut or head.total not in {None, part.received}:
            total = "an unknown number of" if head.total is None else head.total
            raise _Broken(f"{part.received} of {total} bytes arrived.")

    @asynccontextmanager
    async def _response(self, url: str) -> AsyncIterator[Stream]:
        """Follow redirects to a response with content; send the key to its origin only."""
        for _ in range(MAX_REDIRECTS + 1):
            if _is_link_local(url):
                raise self._refused("The clip's URL leads to a link-local address.")
            headers = self.part.range_headers() if self.wants_rest else {}
            if origin_of(url) == self.source.origin != "":
                headers |= self.source.key_header
            async with self.tools.transport.stream(url, headers) as stream:
                means = MEANING.get(stream.status)
                if means is Means.CONTENT or (stream.status == 416 and "Range" in headers):
                    yield stream
                    return
                if means is not Means.REDIRECT:
                    happened = f"The clip's URL answered with status {stream.status}."
                    if means is None and "Range" not in headers:
                        raise self._refused(happened)
                    delay = retry_after(stream.headers, self.tools.clock.wall())
                    raise _Broken(happened, means or Means.WHOLE, delay)
                before, url = url, _redirected(url, stream.headers.get("Location", ""))
            if not is_web_address(url):
                raise self._refused("The clip's URL redirects to one that is not http(s).")
            if before.lower().startswith("https:") and not url.lower().startswith("https:"):
                raise self._refused("The clip's URL redirects from https to http.")
        raise self._refused(f"The clip's URL redirects more than {MAX_REDIRECTS} times.")

    async def _begin(self, stream: Stream, head: "_Head") -> bytearray:
        """
        Prepare the part for the body, and return the bytes of it that were read for that.

        Bytes that are kept already are discarded only for a body that is a clip, or if they are
        known to be of no use.
        """
        part, buffer = self.part, bytearray()
        self.is_resumed = head.start != 0
        if self.is_resumed and not part.continues(head.start, head.validator, head.total):
            with self._disk():
                part.restart()
            raise _Broken("The server sent another file or range than was requested.")
        if head.total is not None and head.total > self.max_bytes:
            raise self._too_large()
        if not self.is_resumed:
            while len(buffer) < HEAD_BYTES and (chunk := await stream.read()):
                buffer += chunk
            if buffer.startswith(OTHER_MEDIA):
                raise self._refused("The clip's URL returns a file that is not an MP4.")
            if bytes(buffer[4:8]) not in BOXES:
                what = "something else" if buffer else "nothing"
                raise _Broken(f"The clip's URL returns {what}.", Means.NOT_YET)
            with self._disk():
                part.restart(head.validator, head.total)
        self.tools.hooks.emit(DownloadStarted(self.source.task_id, part.received, head.total))
        return buffer

    async def _receive(self, stream: Stream, head: "_Head", buffer: bytearray) -> None:
        """Write the body to the part; if it breaks off, write what has arrived until then."""
        try:
            while True:
                received = self.part.received + len(buffer)
                if received > self.max_bytes:
                    buffer.clear()
                    with self._disk():
                        await _in_thread(self.part.restart)
                    raise self._too_large()
                if self.on_progress is not None:
                    reaction = self.on_progress(Progress(received, head.total))
                    if inspect.isawaitable(reaction):
                        await reaction
                if len(buffer) >= BUFFER_BYTES:
                    # Emptied first, so that a cancelled write is not repeated below.
                    data, buffer = bytes(buffer), bytearray()
                    with self._disk():
                        await _in_thread(self.part.write, data, head.total)
                chunk = await stream.read()
                if not chunk:
                    break
                buffer += chunk
        finally:
            if buffer:
                with self._disk():
                    await _in_thread(self.part.write, bytes(buffer), head.total)

    def _too_large(self) -> DownloadRefused:
        return self._refused(
            f"The clip is larger than the {self.max_bytes:,} bytes allowed.",
            "Pass a larger max_bytes, and download again.",
        )

    def _refused(
        self, happened: str, advice: str = "Try again later; the task's id stays valid."
    ) -> DownloadRefused:
        return DownloadRefused(happened, PAID_FOR, advice, self.source.task_id)

    def _incomplete(
        self, happened: str, advice: str = "Download again to the same path to continue."
    ) -> DownloadIncomplete:
        return DownloadIncomplete(
            happened, PAID_FOR, advice, self.source.task_id, None, self.part.received
        )

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Translate the errors of the file system."""
        try:
            yield
        except FileExistsError as exc:
            raise paid_for(path_error(self.part.path, exc), self.source.task_id) from exc
        except OSError as exc:
            raise self._incomplete(
                f"The file could not be written ({exc.strerror or type(exc).__name__}).",
                "Free some space or choose another path, and download again.",
            ) from exc


@attrs.frozen
class _Head:
    """What the head of a response says about its body."""

    status: int
    #: Where in the file the body begins; None if that is unknown.
    start: int | None
    #: The size of the whole file; None if that is unknown.
    total: int | None = None
    #: This version of the file, for If-Range, which takes no weak ETag (RFC 9110 13.1.5).
    validator: str | None = None

    @classmethod
    def of(cls, stream: Stream) -> "_Head":
        status, headers = stream.status, stream.headers
        is_range = status in {206, 416}
        if headers.get("Content-Encoding", "").strip().lower() in DECODED:
            return cls(status, None if is_range else 0)
        named = (headers.get(name) for name in ("ETag", "Last-Modified"))
        validator = next(filter(is_validator, named), None)
        if not is_range:
            return cls(status, 0, _number(headers.get("Content-Length")), validator)
        span = re.fullmatch(
            r"bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/(?:([0-9]{1,18})|\*)",
            headers.get("Content-Range", "").strip(),
        )
        start, total = map(_number, span.groups() if span else (None, None))
        return cls(status, start, total, validator)


def _number(digits: str | None) -> int | None:
    return int(digits) if digits else None


def paid_for(error: UsageError, task_id: str) -> UsageError:
    """Return an error about a path as it is raised after the clip was paid for."""
    return attrs.evolve(error, money=PAID_FOR, task_id=task_id)


def origin_of(url: str) -> str:
    """Return scheme, host and port in one form, to decide whether the key may be sent there."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:  # such as port 99999: nothing can be sent there anyway
        return ""
    if "@" in parts.netloc:  # a request cannot have both these credentials and the key
        return ""
    return f"{parts.scheme}://{(parts.hostname or '').rstrip('.')}:{port}"


def _redirected(url: str, location: str) -> str:
    """Return where *url* redirects to, byte for byte; "" if *location* cannot be read."""
    absolute = re.match(r"[a-z]+://[^/?#]*", location, re.IGNORECASE)
    host = absolute[0] if absolute else ""
    try:
        location = host + quoted(location.removeprefix(host))
        parts = urlsplit(url)
        # urljoin removes dots and an empty query, so it joins relative paths only.
        if location.startswith("//"):
            return f"{parts.scheme}:{location}"
        if location.startswith("/"):
            return f"{parts.scheme}://{parts.netloc}{location}"
        return location if absolute else urljoin(url, location)
    except ValueError:  # such as half a character, or an unclosed bracket around an IPv6 host
        return ""


def _is_link_local(url: str) -> bool:
    """
    Return whether the host is a link-local address, such as a cloud's metadata service.

    Resolvers accept an IPv4 address in hex, octal or as one number, so these count as well.
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


async def _in_thread(work: Callable[..., R], *args: Any) -> R:
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
