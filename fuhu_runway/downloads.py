"""
A clip to a file, into memory or to a reader: stream, resume, verify.

A later attempt continues with the bytes that have arrived if both these and the server's file are
still the same, and starts from zero otherwise. A file appears whole, verified and flushed to disk,
or not at all.
Sizes are in bytes.
"""

import asyncio
import enum
import inspect
import ipaddress
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import urljoin, urlsplit

import attrs

from ._clock import Clock
from ._http.retry import MAY_REPEAT, delays, fate_of
from ._http.transport import CLIENT, Stream, StreamBroken, Transport, quoted
from ._received import BOXES, HEAD_BYTES, is_validator
from ._sinks import FileSink, MemorySink, ReaderSink, Sink
from ._urls import is_web_address
from ._wire.tables import Replay
from ._wire.values import retry_after
from .errors import ClipMissing, DownloadRefused, GatewayError, RunwayError, UsageError
from .hooks import DownloadBroken, DownloadFailed, DownloadFinished, DownloadStarted, Hooks
from .models import RetryPolicy

MAX_CLIP_BYTES: Final = 1024**3
"""The largest clip that is saved by default: 1 GiB."""

MAX_REDIRECTS: Final = 5

PATIENT_ATTEMPTS: Final = 30
"""How many attempts beyond the retry policy's are made while patience lasts."""

LEAST_BYTES: Final = 64 * 1024
"""What counts as progress, in bytes; if less, a host that sends a byte now and then keeps a
download going for days."""

LEAST_BYTES_WITHIN: Final = 60.0
"""How long a host may take for that, in seconds, or `Timeouts.read` if that is more. If less, a
clip over a slow line, below 1 kB/s, needs more than one call of `download`."""

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
"""
What a status means.

One not listed means WHOLE if a range was requested, and otherwise ends the download.
"""


@attrs.frozen
class Progress:
    """How far a download has got."""

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
    #: What the names of parts contain, if several machines may save to one folder.
    part_mark: str = ""
    #: How long a host may take for `LEAST_BYTES`, in seconds.
    least_within: float = LEAST_BYTES_WITHIN

    async def save(
        self,
        source: Source,
        path: Path,
        *,
        overwrite: bool = False,
        max_bytes: int = MAX_CLIP_BYTES,
        on_progress: Callable[[Progress], object] | None = None,
        pass_on: Callable[[Path], Awaitable[None]] | None = None,
    ) -> Path:
        """
        Save the clip, and return *path* once the file is whole.

        With *pass_on*, the file is passed to it, and the clip is reported as saved after that.

        Raises:
            DownloadIncomplete: It broke off and retrying did not help; the bytes are kept.
            DownloadRefused: The URL returns no clip, or one that is too large.
            UsageError: Nothing can be written there, or the file is already being downloaded.
        """
        sink = FileSink(source.task_id, path, self.part_mark, overwrite)
        with self._reported(sink):
            try:
                await sink.open()
                await _Download(self, source, sink, max_bytes, on_progress).run()
                await sink.publish(self.clock)
                if pass_on is not None:
                    async with self.transport.until_closed():
                        await pass_on(path)
            finally:
                await sink.close()
        return path

    async def read(self, source: Source, *, max_bytes: int = MAX_CLIP_BYTES) -> bytes:
        """Return the bytes of the clip; errors as in `save`."""
        sink = MemorySink(source.task_id)
        with self._reported(sink):
            await _Download(self, source, sink, max_bytes).run()
        return bytes(sink.content)

    async def stream(
        self, source: Source, *, max_bytes: int = MAX_CLIP_BYTES
    ) -> AsyncGenerator[bytes, None]:
        """
        Yield the bytes of the clip as they arrive, none of them twice; errors as in `save`.

        Raises:
            ClipChanged: The host sent another file after the first bytes were yielded.
        """
        sink = ReaderSink(source.task_id)

        async def fill() -> None:
            with self._reported(sink):
                await _Download(self, source, sink, max_bytes).run()
                await sink.finish()

        # A task of its own: closing the client must interrupt the download, not its reader.
        filling = asyncio.create_task(fill())
        filling.add_done_callback(lambda _: sink.chunks.put_nowait(None))
        try:
            while chunk := await sink.chunks.get():
                yield chunk
                sink.want()
            await filling
        finally:
            sink.leave()
            filling.cancel()
            await asyncio.wait([filling])
            filling.cancelled() or filling.exception()  # read, or asyncio would log that it was not

    @contextmanager
    def _reported(self, sink: Sink) -> Iterator[None]:
        """Emit the event for the end of a download."""
        try:
            yield
        except BaseException as error:
            name = type(error).__name__
            self.hooks.emit(DownloadFailed(sink.task_id, sink.arrived.received, name))
            raise
        self.hooks.emit(DownloadFinished(sink.task_id, sink.arrived.received, sink.is_file))


@attrs.define(eq=False)
class _Broken(Exception):
    """An attempt that failed and may be repeated; never leaves this module."""

    happened: str
    means: Means = Means.TROUBLE
    #: The pause that the server asks for, in seconds.
    delay: float | None = None


@attrs.define(eq=False)
class _Download:
    """One clip on its way to one sink."""

    tools: Downloader
    source: Source
    sink: Sink
    max_bytes: int
    on_progress: Callable[[Progress], object] | None = None
    #: Whether the next attempt requests a range; some hosts refuse that and send the whole file.
    wants_rest: bool = True
    #: Whether the last response with bytes was the rest of what had arrived.
    is_resumed: bool = False

    async def run(self) -> None:
        """Make attempts until the clip is whole; closing the client ends them."""
        try:
            async with self.tools.transport.until_closed():
                await self._fetch()
        except UsageError as error:
            if error.field != CLIENT:
                raise
            if not self.sink.arrived.is_published:
                happened = "The client was closed during the download."
                raise self.sink.incomplete(happened) from error

    async def _fetch(self) -> None:
        """
        Make attempts until the clip is whole.

        Attempts that add enough to what has arrived do not count against the retry policy. Those
        that start from zero do, however far they get: else a host without ranges could keep a
        download going.
        """
        policy, clock, patience = self.tools.retry, self.tools.clock, self.tools.patience
        fruitless, drawn = 0, delays(policy)
        patient_until: float | None = None
        is_fresh = False
        counted = self.sink.arrived.received
        while True:
            try:
                return await self._attempt(is_fresh)
            except _Broken as error:
                broken = error
            if self.is_resumed and self.sink.arrived.received - counted >= LEAST_BYTES:
                counted = self.sink.arrived.received
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
                raise self.sink.incomplete(
                    f"{broken.happened} It asked for a pause of {broken.delay:,.0f} s.",
                    "Download again after that, or allow longer pauses "
                    "(RetryPolicy.max_retry_after).",
                ) from broken
            delay = next(drawn) if broken.delay is None else broken.delay
            if fruitless >= policy.attempts:
                if patient_until is None or clock.now() >= patient_until:
                    self._give_up(broken, is_missing=is_missing)
                delay = max(delay, patience / PATIENT_ATTEMPTS)
            self._report_break(delay)
            await clock.sleep(delay)

    def _give_up(self, broken: _Broken, *, is_missing: bool) -> NoReturn:
        if isinstance(broken.__cause__, ClipMissing):
            raise broken.__cause__
        what = "The download kept failing"
        if is_missing:
            what = "The clip is not at its URL yet, or is no longer there"
        raise self.sink.incomplete(f"{what}: {broken.happened}") from broken

    def _report_break(self, delay: float) -> None:
        task_id, received = self.source.task_id, self.sink.arrived.received
        self.tools.hooks.emit(DownloadBroken(task_id, received, delay))

    async def _attempt(self, is_fresh: bool) -> None:  # noqa: FBT001  (as the source has it)
        """Make one attempt; return if the clip is whole after it."""
        try:
            url = await self.source.address(is_fresh)
        except RunwayError as error:
            # A feed without a URL may be behind the one that showed the first URL.
            is_behind = isinstance(error, ClipMissing)
            if not is_behind and Replay.FREE not in MAY_REPEAT[fate_of(error)]:
                raise
            delay = error.retry_after if isinstance(error, GatewayError) else None
            happened = f"The gateway returned no fresh URL ({type(error).__name__})."
            raise _Broken(happened, Means.EXPIRED, delay) from error
        try:
            async with self._response(url) as stream:
                head = _Head.of(stream)
                # A 416 with the size of what has arrived means that all of it arrived earlier.
                if head.status != 416 or head.total != self.sink.arrived.received:
                    await self._receive(stream, head, await self._begin(stream, head))
        except StreamBroken as broken:
            if not broken.passes:
                happened = f"The clip's URL cannot be requested ({broken.name})."
                raise self.sink.refused(happened) from broken
            raise _Broken(f"The connection broke ({broken.name}).") from broken
        received, is_cut = self.sink.arrived.received, self.sink.arrived.boxes.is_cut
        if not is_cut and head.total in {None, received}:
            return
        if head.total is not None and received >= head.total:
            # There is no rest to request. More than the whole file is not progress either: a host
            # that sends it with each range would be asked for the next range without end.
            await self.sink.restart()
        total = "an unknown number of" if head.total is None else head.total
        raise _Broken(f"{received} of {total} bytes arrived.")

    @asynccontextmanager
    async def _response(self, url: str) -> AsyncIterator[Stream]:
        """Follow redirects to a response with content; send the key to its origin only."""
        for _ in range(MAX_REDIRECTS + 1):
            if _is_link_local(url):
                raise self.sink.refused("The clip's URL leads to a link-local address.")
            headers = self.sink.arrived.range_headers() if self.wants_rest else {}
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
                        raise self.sink.refused(happened)
                    delay = retry_after(stream.headers, self.tools.clock.wall())
                    raise _Broken(happened, means or Means.WHOLE, delay)
                before, url = url, _redirected(url, stream.headers.get("Location", ""))
            if not is_web_address(url):
                raise self.sink.refused("The clip's URL redirects to one that is not http(s).")
            if before.lower().startswith("https:") and not url.lower().startswith("https:"):
                raise self.sink.refused("The clip's URL redirects from https to http.")
        raise self.sink.refused(f"The clip's URL redirects more than {MAX_REDIRECTS} times.")

    async def _begin(self, stream: Stream, head: "_Head") -> bytearray:
        """
        Prepare the sink for the body, and return the bytes of it that were read for that.

        Bytes that are kept already are discarded only for a body that is a clip, or if they are
        known to be of no use.
        """
        arrived, buffer = self.sink.arrived, bytearray()
        self.is_resumed = head.start != 0
        if self.is_resumed and not arrived.continues(head.start, head.validator, head.total):
            await self.sink.restart()
            raise _Broken("The server sent another file or range than was requested.")
        if head.total is not None and head.total > self.max_bytes:
            raise self._too_large()
        if not self.is_resumed:
            while len(buffer) < HEAD_BYTES and (chunk := await stream.read()):
                buffer += chunk
            if buffer.startswith(OTHER_MEDIA):
                raise self.sink.refused("The clip's URL returns a file that is not an MP4.")
            if bytes(buffer[4:8]) not in BOXES:
                what = "something that is not an MP4" if buffer else "nothing"
                raise _Broken(f"The clip's URL returns {what}.", Means.NOT_YET)
            await self.sink.restart(head.validator, head.total)
        self.tools.hooks.emit(DownloadStarted(self.source.task_id, arrived.received, head.total))
        return buffer

    async def _receive(self, stream: Stream, head: "_Head", buffer: bytearray) -> None:
        """Write the body to the sink; if it breaks off, write what has arrived until then."""
        total: int | None = None
        clock, waited, counted = self.tools.clock, 0.0, self.sink.arrived.received
        try:
            while True:
                received = self.sink.arrived.received + len(buffer)
                if received - counted >= LEAST_BYTES:
                    waited, counted = 0.0, received
                elif waited >= self.tools.least_within:
                    raise _Broken(f"Only {received - counted} bytes arrived in {waited:.0f} s.")
                if received > self.max_bytes:
                    buffer.clear()
                    await self.sink.restart()
                    raise self._too_large()
                if self.on_progress is not None:
                    reaction = self.on_progress(Progress(received, head.total))
                    if inspect.isawaitable(reaction):
                        await reaction
                if len(buffer) >= self.sink.buffer_bytes:
                    # Emptied first, so that a cancelled write is not repeated below.
                    data, buffer = buffer, bytearray()
                    await self.sink.write(data)
                # Only this: the disk, the reader and `on_progress` may take their time.
                since = clock.now()
                chunk = await stream.read()
                waited += clock.now() - since
                if not chunk:
                    total = head.total
                    break
                buffer += chunk
        finally:
            if buffer:
                await self.sink.write(buffer, total)

    def _too_large(self) -> DownloadRefused:
        return self.sink.refused(
            f"The clip is larger than the {self.max_bytes:,} bytes allowed.",
            "Pass a larger max_bytes, and download again.",
        )


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
    except ValueError:  # such as a lone surrogate, or an unclosed bracket around an IPv6 host
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
