"""A proxy on this machine, and the environment that names it."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUEST_METHOD")


@attrs.define(eq=False)
class Tunnels:
    """A proxy that opens tunnels to one port of this machine, whatever host is requested."""

    port: int = 0
    target: int = 0
    #: The heads of the CONNECT requests.
    heads: list[bytes] = attrs.field(factory=list)
    pipes: set["asyncio.Task[None]"] = attrs.field(factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        except asyncio.IncompleteReadError:  # a check whether the port is open sends nothing
            writer.close()
            return
        inner, outer = await asyncio.open_connection("127.0.0.1", self.target)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        for source, sink in ((reader, outer), (inner, writer)):
            self.pipes.add(asyncio.create_task(_pipe(source, sink)))


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        pass
    finally:
        sink.close()


@asynccontextmanager
async def tunnels(target: int) -> AsyncIterator[Tunnels]:
    """Serve a proxy whose tunnels lead to the port *target*."""
    proxy = Tunnels(target=target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await asyncio.wait(proxy.pipes, timeout=5)


def name_proxies(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Set the environment to these proxies and no others."""
    for name in VARIABLES:
        for spelling in (name, name.lower()):
            if spelling in os.environ:
                monkeypatch.delenv(spelling)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
