"""
A relay between a program and a Postgres server.

It can close its connections, drop responses, or hold everything back while connections stay open.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs


@attrs.define(eq=False)
class Relay:
    """A relay in a loop and a thread of its own; what it does may be changed at any moment."""

    target: str
    #: Whether connections are refused; those that are open are cut off.
    is_cut: bool = False
    #: Whether nothing passes; connections stay open, and what was sent arrives later.
    is_frozen: bool = False
    #: How many answers of the server are swallowed, each with its connection.
    swallowed: int = 0
    #: How many answers come before those.
    skipped: int = 0
    #: How many connections were tried, and how many messages the client sent.
    tries: int = 0
    sent: int = 0
    port: int = 0
    server: asyncio.Server = attrs.field(init=False)
    loop: asyncio.AbstractEventLoop = attrs.field(factory=asyncio.new_event_loop)
    _open: set[asyncio.StreamWriter] = attrs.field(factory=set)
    _pipes: "set[asyncio.Task[None]]" = attrs.field(factory=set)

    @property
    def url(self) -> str:
        """The URL of the database, through the relay."""
        name = urlsplit(self.target).path
        return f"postgresql://postgres@127.0.0.1:{self.port}{name}"

    def cut(self) -> None:
        """Cut off every connection, and refuse new ones."""
        self.is_cut = True
        self.call(self._close())

    def restore(self) -> None:
        """Let connections through again."""
        self.is_cut = False

    def call(self, work: Any) -> Any:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(work, self.loop)
        return done.result()

    async def _close(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tries += 1
        if self.is_cut:
            writer.transport.abort()
            return
        parts = urlsplit(self.target)
        folder = parse_qs(parts.query).get("host", [""])[0]
        if folder:
            place = f"{folder}/.s.PGSQL.{parse_qs(parts.query)['port'][0]}"
            inner, outer = await asyncio.open_unix_connection(place)
        else:
            inner, outer = await asyncio.open_connection(parts.hostname, parts.port)
        self._open |= {writer, outer}
        for source, sink, is_answer in ((reader, outer, False), (inner, writer, True)):
            pipe = asyncio.create_task(self._pipe(source, sink, is_answer=is_answer))
            self._pipes.add(pipe)

    async def _pipe(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if is_answer and self.swallowed:
                    if not self.skipped:
                        self.swallowed -= 1
                        break
                    self.skipped -= 1
                self.sent += not is_answer
                while self.is_frozen and not sink.is_closing():  # noqa: ASYNC110  (set by a thread)
                    await asyncio.sleep(0.01)
                sink.write(data)
                await sink.drain()
        sink.transport.abort()
        self._open.discard(sink)

    async def start(self) -> None:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.server.close()
        await self._close()
        await asyncio.gather(*self._pipes)


@contextmanager
def relay_to(url: str) -> Iterator[Relay]:
    """Yield a relay to the database at *url*."""
    relay = Relay(url)
    thread = threading.Thread(target=relay.loop.run_forever)
    thread.start()
    try:
        relay.call(relay.start())
        yield relay
        relay.call(relay.stop())
    finally:
        relay.loop.call_soon_threadsafe(relay.loop.stop)
        thread.join()
        relay.loop.close()
