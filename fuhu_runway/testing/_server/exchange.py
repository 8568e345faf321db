"""
Handle one request: its response, and the faults that happen to it.

Faults of the connection happen here. A fault that changes the content of the response is passed to
the route's `work`.
"""

import asyncio
import gzip
import html
import json
import math
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from functools import singledispatch
from typing import Any, Final
from urllib.parse import quote

import attrs
from aiohttp import web

from fuhu_runway.testing import faults
from fuhu_runway.testing.faults import Fault

from . import bodies as _bodies
from .replies import JSON
from .store import Seen, SimulatedTask, Store, prompt_of

CHUNK: Final = 64 * 1024
MEGABYTE: Final = 1024 * 1024

# Simulated seconds between two chunks of a slow body. Larger values look less like a slow
# network; smaller ones take more time.
TRICKLE: Final = 0.1

QUOTATIONS: Final[Mapping[str, Callable[[str], str]]] = {
    "plain": str,
    "cut": lambda prompt: f"{prompt[:40]}...",
    "html": html.escape,
    "url": quote,
    "json": lambda prompt: json.dumps(json.dumps(prompt)),
}


@attrs.frozen
class Reply:
    """One response, and how it is sent."""

    status: int
    body: bytes = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    #: The Content-Length, if it is not the true one.
    claimed_bytes: int | None = None
    #: How much of the body is sent before the connection closes; None sends all and keeps it.
    cut_after: int | None = None
    #: How much is sent in each simulated second; None sends all at once.
    bytes_per_second: float | None = None

    def with_headers(self, headers: Mapping[str, str]) -> "Reply":
        return attrs.evolve(self, headers={**self.headers, **headers})


def json_reply(body: object, status: int = 200) -> Reply:
    return Reply(status, _bodies.as_text(body).encode(), {"Content-Type": JSON})


class Refused(Exception):
    """The gateway refuses the request, with this response."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


@attrs.define
class Visit:
    """One request that is being handled."""

    store: Store
    request: web.Request
    raw: bytes = attrs.field(repr=False)
    #: The JSON object in the body; None if it contains none.
    sent: dict[str, Any] | None = attrs.field(repr=False)
    seen: Seen
    #: The task that it names, if it exists.
    task: SimulatedTask | None
    #: Does the work of the route, with a fault that changes the content of the response or None.
    work: Callable[["Visit", Fault | None], Reply]
    #: The task that it created and paid for.
    made: SimulatedTask | None = None
    #: The status and the headers of the response, where they are not the normal ones.
    head: faults.Head = attrs.field(factory=faults.Head)

    def answer(self, fault: Fault | None = None) -> Reply:
        """Do the work and return the response: the normal one, or one with *fault*."""
        self.store.settle()
        try:
            return self.work(self, fault)
        except Refused as refused:
            return refused.reply

    def drop(self, *, reset: bool = False) -> web.StreamResponse:
        """Close the connection, so that aiohttp writes nothing to it."""
        transport = self.request.transport
        if transport is not None and reset:
            transport.abort()
        elif transport is not None:
            transport.close()
        return web.Response()

    def write(self, raw: bytes) -> None:
        """Send *raw*, bypassing aiohttp."""
        if self.request.transport is not None:
            self.request.transport.write(raw)

    async def send(self, reply: Reply) -> web.StreamResponse:
        """Send *reply*, with its length, speed and cut."""
        reply = self.dressed(reply)
        cut, rate = reply.cut_after, reply.bytes_per_second
        if reply.claimed_bytes is None and cut is None and rate is None:
            self.seen.status = reply.status
            return web.Response(status=reply.status, body=reply.body, headers=reply.headers)
        claimed = len(reply.body) if reply.claimed_bytes is None else reply.claimed_bytes
        response = await self.begin(reply, claimed)
        body = reply.body[:cut]
        step = CHUNK if rate is None else max(1, math.ceil(rate * TRICKLE))
        for start in range(0, len(body), step):
            await response.write(body[start : start + step])
            if rate is not None:
                await self.store.clock.pause(TRICKLE)
        if cut is not None:
            self.drop()
        return response

    def dressed(self, reply: Reply) -> Reply:
        """Return *reply* with the date of the gateway's clock, and the head that a fault sets."""
        offset, head = self.store.options.clock_offset, self.head
        other = {name.lower() for name, _ in head.headers}
        headers: dict[str, str | None] = {
            **{name: value for name, value in reply.headers.items() if name.lower() not in other},
            **dict(head.headers),
        }
        if offset:
            # Otherwise aiohttp sends the date of this machine.
            date = formatdate(math.floor(time.time() + offset), usegmt=True)
            headers = {"Date": date, **headers}
        kept = {name: value for name, value in headers.items() if value is not None}
        return attrs.evolve(reply, status=head.status or reply.status, headers=kept)

    async def begin(self, reply: Reply, length: int | None = None) -> web.StreamResponse:
        """Send the head of *reply*, with *length* as Content-Length."""
        reply = self.dressed(reply)
        self.seen.status = reply.status
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        response.content_length = length
        await response.prepare(self.request)
        return response


@singledispatch
async def enact(fault: Fault | None, visit: Visit) -> web.StreamResponse:
    """Respond to *visit*, with *fault*; by default one that leaves the connection alone."""
    match fault:
        case faults.Response():
            if fault.accepted:
                visit.answer(fault)
            visit.head = attrs.evolve(visit.head, headers=(*fault.headers, *visit.head.headers))
            headers = {"Content-Type": fault.content_type}
            reply = Reply(fault.status, fault.body.encode(), headers)
        case faults.TooManyRequests():
            reply = too_many_requests(fault)
        case faults.Truncated(keep_bytes):
            reply = visit.answer()
            reply = attrs.evolve(reply, body=reply.body[:keep_bytes])
        case faults.Cut(after_bytes):
            reply = attrs.evolve(visit.answer(), cut_after=after_bytes)
        case faults.Gzipped(megabytes):
            reply = visit.answer().with_headers({"Content-Encoding": "gzip"})
            reply = attrs.evolve(
                reply, body=gzip.compress(reply.body + bytes(megabytes * MEGABYTE))
            )
        case faults.QuotesPrompt(how, status):
            message = f"not allowed: '{QUOTATIONS[how](prompt_of(visit.sent or {}))}'"
            reply = json_reply(_bodies.openai_error(message, type="invalid_request_error"), status)
        case faults.SlowBody(rate):
            reply = attrs.evolve(visit.answer(), bytes_per_second=rate)
        case _:
            reply = visit.answer(fault)
    return await visit.send(reply)


@enact.register
async def _drop(fault: faults.Drop, visit: Visit) -> web.StreamResponse:
    if fault.accepted:
        visit.answer()
    return visit.drop(reset=fault.reset)


@enact.register
async def _hang(fault: faults.Hang, visit: Visit) -> web.StreamResponse:
    if fault.after_bytes is not None:
        reply = visit.answer()
        response = await visit.begin(reply, len(reply.body))
        await response.write(reply.body[: fault.after_bytes])
    elif fault.accepted:
        visit.answer()
    await visit.store.clock.pause()
    return visit.drop()


@enact.register
async def _slow(fault: faults.Slow, visit: Visit) -> web.StreamResponse:
    reply = visit.answer() if fault.then is None else None
    await visit.store.clock.pause(fault.seconds)
    return await (enact(fault.then, visit) if reply is None else visit.send(reply))


@enact.register
async def _informational(fault: faults.Informational, visit: Visit) -> web.StreamResponse:
    visit.write(b"HTTP/1.1 %d Early\r\nLink: </style.css>; rel=preload\r\n\r\n" % fault.status)
    return await enact(fault.then, visit)


@enact.register
async def _chunked(fault: faults.Chunked, visit: Visit) -> web.StreamResponse:
    reply = visit.answer()
    response = await visit.begin(reply)
    await response.write(reply.body + fault.extra.encode())
    for _ in range(fault.megabytes * MEGABYTE // CHUNK):
        await response.write(b" " * CHUNK)
        # Without this, a client that reads as fast as we write would block the loop.
        await asyncio.sleep(0)
    await response.write_eof()
    visit.write(fault.behind.encode())
    return response


@enact.register
async def _until_close(fault: faults.UntilClose, visit: Visit) -> web.StreamResponse:
    reply = visit.dressed(visit.answer())
    visit.seen.status = reply.status
    lines = [f"HTTP/1.1 {reply.status} OK", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    visit.write("\r\n".join([*lines, "", ""]).encode() + reply.body[: fault.after_bytes])
    return visit.drop()


@enact.register
async def _head(fault: faults.Head, visit: Visit) -> web.StreamResponse:
    visit.head = fault
    return await enact(fault.then, visit)


def too_many_requests(fault: faults.TooManyRequests) -> Reply:
    """Return the 429 or 503 that *fault* describes."""
    reply = Reply(fault.status, fault.body.encode(), {"Content-Type": JSON})
    after = fault.retry_after
    if after is None:
        return reply
    if fault.form == "milliseconds":
        text = after if isinstance(after, str) else f"{after * 1000:.12g}"
        return reply.with_headers({"retry-after-ms": text})
    if fault.form == "date" and not isinstance(after, str):
        # A date is relative to the sender's own, and both are in whole seconds.
        now = math.floor(time.time())
        later = formatdate(now + math.ceil(after), usegmt=True)
        return reply.with_headers({"Date": formatdate(now, usegmt=True), "Retry-After": later})
    return reply.with_headers({"Retry-After": after if isinstance(after, str) else f"{after:.12g}"})
