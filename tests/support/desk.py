"""Clips as bytes, hosts that serve them, and a downloader to save them with."""

import hashlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
from support.clients import QUICK_RETRY, Ear
from support.clock import RecordingClock
from support.servers import reply

from fuhu_runway._http.limiter import RateLimiter
from fuhu_runway._http.transport import Transport
from fuhu_runway._sinks import BUFFER_BYTES
from fuhu_runway.downloads import Downloader, Source
from fuhu_runway.hooks import Hooks
from fuhu_runway.models import Limits, Timeouts

KEY = "Bearer sk-marked"
TAG = '"v-1"'


def box(kind: bytes, payload: bytes) -> bytes:
    """Return one box of an MP4 file."""
    return (8 + len(payload)).to_bytes(4, "big") + kind + payload


VIDEO = box(b"ftyp", b"isom" * 4) + box(b"mdat", bytes(range(256)) * 40)
LARGE = box(b"ftyp", b"isom" * 4) + box(b"mdat", os.urandom(3 * BUFFER_BYTES))


def whole(video: bytes = VIDEO, **headers: str) -> bytes:
    """Return the response with the whole file."""
    return reply(video, **{"ETag": TAG, **headers})


def half(video: bytes = VIDEO, stop: int = 1000, **headers: str) -> bytes:
    """Return a response that announces the whole file and has its first *stop* bytes."""
    return whole(video, **headers)[: len(whole(video, **headers)) - len(video) + stop]


def rest(start: int, video: bytes = VIDEO, **headers: str) -> bytes:
    """Return the 206 response with the rest from *start*."""
    span = f"bytes {start}-{len(video) - 1}/{len(video)}"
    named = {"ETag": TAG, "Content_Range": span, **headers}
    return reply(video[start:], "206 Partial Content", **named)


def range_of(request: bytes) -> tuple[str | None, str | None]:
    """Return the Range and If-Range headers of a request."""
    lines = request.decode().split("\r\n")
    named = dict(line.split(": ", 1) for line in lines if ": " in line)
    return named.get("Range"), named.get("If-Range")


@attrs.define(eq=False)
class Desk:
    """A downloader, its events, and its pauses."""

    downloader: Downloader
    ear: Ear
    clock: RecordingClock
    path: Path
    #: For each URL that was fetched, whether it was a fresh one.
    asked: list[bool] = attrs.field(factory=list)

    async def save(self, *urls: str, origin: str = "", **options: Any) -> Path:
        """Save the clip at the first of *urls*; each fresh URL is the next of them."""
        return await self.downloader.save(self.source(*urls, origin=origin), self.path, **options)

    def source(self, *urls: str, origin: str = "") -> Source:
        """Return where the clip is: at the first of *urls*; each fresh URL is the next of them."""
        waiting = list(urls)

        async def address(fresh: bool) -> str:
            self.asked.append(fresh)
            if fresh and len(waiting) > 1:
                del waiting[0]
            return waiting[0]

        return Source("t-1", address, {"Authorization": KEY}, origin)

    async def save_from(
        self, address: Callable[[bool], Awaitable[str]], *, origin: str = "", **options: Any
    ) -> Path:
        source = Source("t-1", address, {"Authorization": KEY}, origin)
        return await self.downloader.save(source, self.path, **options)

    @property
    def part(self) -> bytes | None:
        """The bytes that are kept of an unfinished file."""
        file = self.path.with_name(self.path.name + ".part")
        return file.read_bytes() if file.exists() else None

    def leave_part(self, data: bytes, note: str | None = None, **changes: Any) -> None:
        """Write the part of an earlier process, with *changes* to its note."""
        self.path.with_name(self.path.name + ".part").write_bytes(data)
        if note is None:
            digest = hashlib.sha256(data).hexdigest()
            kept = {"task_id": "t-1", "validator": TAG, "total": None}
            note = json.dumps({**kept, "size": len(data), "digest": digest, **changes})
        self.path.with_name(self.path.name + ".part.json").write_text(note)

    def is_clean(self) -> bool:
        """Return whether the file is the only one in its folder."""
        return [entry.name for entry in self.path.parent.iterdir()] == [self.path.name]


def chunked(*chunks: bytes, ends: bool = True, **headers: str) -> bytes:
    """Return a chunked response, which has no length."""
    head = reply(b"", **{"Transfer_Encoding": "chunked", "ETag": TAG, **headers})
    head = head.replace(b"Content-Length: 0\r\n", b"")
    last = b"0\r\n\r\n" if ends else b""
    return head + b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in chunks) + last


def until_closed(video: bytes) -> bytes:
    """Return a response whose body ends with the connection, as in HTTP/1.0."""
    return reply(video, ETag=TAG).replace(b"Content-Length", b"X-Length")


@asynccontextmanager
async def open_desk(folder: Path, patience: float = 0.0, **policy: Any) -> AsyncIterator[Desk]:
    """Yield a downloader that sleeps without taking time."""
    clock, ear = RecordingClock(), Ear()
    hooks = Hooks([ear])
    retry = attrs.evolve(QUICK_RETRY, **policy)
    transport = Transport(
        session=None,
        timeouts=Timeouts(connect=5.0, read=5.0),
        retry=retry,
        limiter=RateLimiter(Limits(requests_in_flight=9), clock, hooks),
        hooks=hooks,
        clock=clock,
    )
    downloader = Downloader(transport, retry, clock, hooks, patience)
    try:
        yield Desk(downloader, ear, clock, folder / "clip.mp4")
    finally:
        await transport.aclose()
