"""
One request and its answer, with all that can go wrong between them.

Only what happens to the connection is made to happen here. A fault that changes what the
answer says is passed on to the route's `work`, which alone knows how.
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
from typing import Final
from urllib.parse import quote

import attrs
from aiohttp import web

from fuhu_runway.testing import faults
from fuhu_runway.testing._clock import SimulatedClock
from fuhu_runway.testing.faults import Fault

from . import bodies as _bodies
from .store import Seen
from .wild import JSON

CHUNK: Final = 64 * 1024
BLANKS: Final = b" " * CHUNK

QUOTATIONS: Final[Mapping[str, Callable[[str], str]]] = {
    "plain": str,
    "cut": lambda prompt: f"{prompt[:40]}...",
    "html": html.escape,
    "url": quote,
    "json": lambda prompt: json.dumps(json.dumps(prompt)),
}

# Often enough for a trickle to look like one, seldom enough to cost nothing.
TRICKLE: Final = 0.1


@attrs.frozen
class Reply:
    """What is sent, and how."""

    status: int
    body: bytes = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    #: The Content-Length to claim, if it is not the true one.
    claimed_bytes: int | None = None
    #: How much of the body is sent before the connection closes; None is all, and it stays.
    cut_after: int | None = None
    #: How much is sent in each simulated second; None is all at once.
    bytes_per_second: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing odd about the way it is sent."""
        return self.claimed_bytes is None and self.cut_after is None and not self.bytes_per_second


def json_reply(body: object, status: int = 200) -> Reply:
    """*body* as JSON."""
    return Reply(status, _bodies.as_text(body).encode(), {"Content-Type": JSON})


class Refused(Exception):
    """The gateway says no, with this reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


@attrs.frozen
class Exchange:
    """One request on its way to an answer."""

    request: web.Request
    clock: SimulatedClock
    seen: Seen
    #: Does what the route does, with a fault that changes what it says or with None.
    work: Callable[[Fault | None], Reply]
    #: What the request asks for.
    prompt: str = attrs.field(default="", repr=False)

    def right_answer(self) -> Reply:
        """What a gateway without faults would say."""
        return self.work(None)

    def accept(self, accepted: bool) -> None:  # noqa: FBT001 - it is the fault's own field
        """Do the work, and keep quiet about it."""
        if accepted:
            self.right_answer()

    def drop(self, *, reset: bool = False) -> web.StreamResponse:
        """Close the connection; aiohttp finds it closed and writes nothing to it."""
        transport = self.request.transport
        if transport is not None and reset:
            transport.abort()
        elif transport is not None:
            transport.close()
        return web.Response()

    def write(self, raw: bytes) -> None:
        """Send *raw* as it is, whatever HTTP says."""
        if self.request.transport is not None:
            self.request.transport.write(raw)

    async def send(self, reply: Reply) -> web.StreamResponse:
        """Send *reply* in its own way."""
        self.seen.status = reply.status
        if reply.is_plain:
            return web.Response(status=reply.status, body=reply.body, headers=reply.headers)
        response = await self.begin(reply)
        for start in range(0, len(reply.body[: reply.cut_after]), self._pace(reply)):
            stop = min(start + self._pace(reply), reply.cut_after or len(reply.body))
            await response.write(reply.body[start:stop])
            if reply.bytes_per_second:
                await self.clock.pause(TRICKLE)
        return response if reply.cut_after is None else self._hang_up(response)

    async def begin(self, reply: Reply) -> web.StreamResponse:
        """Send the head of *reply*, and leave its body to the caller."""
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        claimed = reply.claimed_bytes
        response.content_length = len(reply.body) if claimed is None else claimed
        await response.prepare(self.request)
        return response

    def _pace(self, reply: Reply) -> int:
        rate = reply.bytes_per_second
        return CHUNK if rate is None else max(1, math.ceil(rate * TRICKLE))

    def _hang_up(self, response: web.StreamResponse) -> web.StreamResponse:
        self.drop()
        return response


@singledispatch
async def enact(fault: Fault | None, exchange: Exchange) -> web.StreamResponse:
    """The answer to *exchange*, with *fault* in it."""
    return await exchange.send(exchange.work(fault))


@enact.register
async def _drop(fault: faults.Drop, exchange: Exchange) -> web.StreamResponse:
    exchange.accept(fault.accepted)
    return exchange.drop(reset=fault.reset)


@enact.register
async def _hang(fault: faults.Hang, exchange: Exchange) -> web.StreamResponse:
    if fault.after_bytes is None:
        exchange.accept(fault.accepted)
        await exchange.clock.wait_closed()
        return exchange.drop()
    reply = exchange.right_answer()
    exchange.seen.status = reply.status
    response = await exchange.begin(reply)
    await response.write(reply.body[: fault.after_bytes])
    await exchange.clock.wait_closed()
    return exchange.drop()


@enact.register
async def _slow(fault: faults.Slow, exchange: Exchange) -> web.StreamResponse:
    if fault.then is None:
        reply = exchange.right_answer()
        await exchange.clock.pause(fault.seconds)
        return await exchange.send(reply)
    await exchange.clock.pause(fault.seconds)
    return await enact(fault.then, exchange)


@enact.register
async def _answer(fault: faults.Answer, exchange: Exchange) -> web.StreamResponse:
    exchange.accept(fault.accepted)
    headers = {"Content-Type": fault.content_type, **dict(fault.headers)}
    return await exchange.send(Reply(fault.status, fault.body.encode(), headers))


@enact.register
async def _too_many(fault: faults.TooManyRequests, exchange: Exchange) -> web.StreamResponse:
    return await exchange.send(too_many_requests(fault))


@enact.register
async def _truncated(fault: faults.Truncated, exchange: Exchange) -> web.StreamResponse:
    reply = exchange.right_answer()
    return await exchange.send(attrs.evolve(reply, body=reply.body[: fault.keep_bytes]))


@enact.register
async def _cut(fault: faults.Cut, exchange: Exchange) -> web.StreamResponse:
    return await exchange.send(attrs.evolve(exchange.right_answer(), cut_after=fault.after_bytes))


@enact.register
async def _informational(fault: faults.Informational, exchange: Exchange) -> web.StreamResponse:
    exchange.write(b"HTTP/1.1 %d Early\r\nLink: </style.css>; rel=preload\r\n\r\n" % fault.status)
    return await enact(fault.then, exchange)


@enact.register
async def _large_head(fault: faults.LargeHead, exchange: Exchange) -> web.StreamResponse:
    reply = exchange.right_answer()
    more = {f"X-Policy-{number}": "a" * fault.size for number in range(fault.count)}
    return await exchange.send(attrs.evolve(reply, headers={**reply.headers, **more}))


@enact.register
async def _quotes(fault: faults.Quotes, exchange: Exchange) -> web.StreamResponse:
    message = f"not allowed: '{QUOTATIONS[fault.how](exchange.prompt)}'"
    body = _bodies.openai_error(message, type="invalid_request_error")
    return await exchange.send(json_reply(body, fault.status))


@enact.register
async def _huge_refusal(fault: faults.HugeRefusal, exchange: Exchange) -> web.StreamResponse:
    message = "a" * (fault.megabytes * 1024 * 1024)
    return await exchange.send(json_reply(_bodies.openai_error(message), 400))


@enact.register
async def _gzipped(fault: faults.Gzipped, exchange: Exchange) -> web.StreamResponse:
    reply = exchange.right_answer()
    body = gzip.compress(reply.body + bytes(fault.megabytes * 1024 * 1024))
    headers = {**reply.headers, "Content-Encoding": "gzip"}
    return await exchange.send(attrs.evolve(reply, body=body, headers=headers))


@enact.register
async def _chunked(fault: faults.Chunked, exchange: Exchange) -> web.StreamResponse:
    reply = exchange.right_answer()
    exchange.seen.status = reply.status
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    await response.prepare(exchange.request)
    await response.write(reply.body + fault.extra.encode())
    await response.write_eof()
    exchange.write(fault.behind.encode())
    return response


@enact.register
async def _huge(fault: faults.Huge, exchange: Exchange) -> web.StreamResponse:
    reply = exchange.right_answer()
    exchange.seen.status = reply.status
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    await response.prepare(exchange.request)
    await response.write(reply.body)
    for _ in range(fault.megabytes * 1024 * 1024 // CHUNK):
        await response.write(BLANKS)
        # A client that reads as fast as we write would keep the loop to itself.
        await asyncio.sleep(0)
    return response


def too_many_requests(fault: faults.TooManyRequests) -> Reply:
    """The 429, or 503, that *fault* describes."""
    headers = {"Content-Type": JSON, **_retry_after(fault)}
    return Reply(fault.status, fault.body.encode(), headers)


def _retry_after(fault: faults.TooManyRequests) -> dict[str, str]:
    if fault.retry_after is None:
        return {}
    if isinstance(fault.retry_after, str):
        name = "retry-after-ms" if fault.form == "milliseconds" else "Retry-After"
        return {name: fault.retry_after}
    if fault.form == "seconds":
        return {"Retry-After": f"{fault.retry_after:.12g}"}
    if fault.form == "milliseconds":
        return {"retry-after-ms": f"{fault.retry_after * 1000:.12g}"}
    # A date means nothing without the sender's own, and both know whole seconds only.
    now = math.floor(time.time())
    later = now + math.ceil(fault.retry_after)
    return {"Date": formatdate(now, usegmt=True), "Retry-After": formatdate(later, usegmt=True)}
