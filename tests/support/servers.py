"""A server that sends exactly the bytes of a test, HTTP or not."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs


@attrs.define(eq=False)
class RawServer:
    """Responses every request with the next of its responses, and then repeats the last one."""

    answers: list[bytes | None]
    #: Whether the connection is closed after a response; None in place of one closes it at once.
    closes: bool
    port: int = 0
    #: Heads and bodies of requests, as bytes.
    requests: list[bytes] = attrs.field(factory=list)
    connections: int = 0
    #: Set when a request has arrived.
    got_request: asyncio.Event = attrs.field(factory=asyncio.Event)
    #: Responses wait for this, where a test clears it.
    may_answer: asyncio.Event = attrs.field(factory=asyncio.Event)
    writers: list[asyncio.StreamWriter] = attrs.field(factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head + await reader.readexactly(_length(head)))
        self.got_request.set()
        await self.may_answer.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            return False
        writer.write(answer)
        await writer.drain()
        return not self.closes


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


@asynccontextmanager
async def raw_server(
    *answers: bytes | None, closes: bool = False, tls: ssl.SSLContext | None = None
) -> AsyncIterator[RawServer]:
    """Serve *answers* on a free port of this machine."""
    raw = RawServer(list(answers), closes)
    raw.may_answer.set()
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0, ssl=tls)
    raw.port = server.sockets[0].getsockname()[1]
    try:
        yield raw
    finally:
        server.close()
        raw.may_answer.set()
        for writer in raw.writers:
            writer.close()
        await asyncio.gather(*map(_closed, raw.writers))


async def _closed(writer: asyncio.StreamWriter) -> None:
    try:
        await writer.wait_closed()
    except ConnectionError:
        return


def reply(body: bytes = b"{}", status: str = "200 OK", **headers: str) -> bytes:
    """Return a whole HTTP answer; underscores in header names become dashes."""
    named = {"Content_Length": str(len(body)), "Content_Type": "application/json", **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in named.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode() + body


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """Accept every connection on a port, and send nothing."""
    async with raw_server(None) as raw:
        raw.may_answer.clear()
        yield raw.port


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
