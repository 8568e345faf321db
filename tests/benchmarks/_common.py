"""What the programs of this folder share: a bare gateway, the peer, and how figures are shown."""

import asyncio
import importlib.util
import json
import socket
import statistics
import subprocess
import sys
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple

KEY: Final = "sk-benchmark"
IMAGE: Final = "https://images.invalid/1.jpeg"
HAS_PEER: Final = importlib.util.find_spec("runwayml") is not None
"""Whether runwayml, the official SDK, is installed, to be measured beside ours."""


class RawRequest(NamedTuple):
    """One request, as far as a benchmark needs it."""

    verb: str
    path: str
    body: bytes


Answer = Callable[[RawRequest], Awaitable[bytes | None]]
"""Gives the bytes to send; b"" closes the connection, None stays silent until the client leaves."""


def reply(status: int, body: object, headers: Mapping[str, str] | None = None) -> bytes:
    """Return an HTTP answer to the last byte; a body that is no text is sent as JSON."""
    text = body if isinstance(body, str) else json.dumps(body)
    content = text.encode()
    fields = {
        "Date": formatdate(usegmt=True),
        "Content-Type": "text/html" if text.startswith("<") else "application/json",
        "Content-Length": str(len(content)),
        **(headers or {}),
    }
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


def accepted(request: RawRequest, task_id: str) -> bytes:
    """Return the answer to a submit in the format that it came in (api-facts A3, 6)."""
    if request.path.startswith("/runway/"):
        data = {"task_id": task_id}
        return reply(200, {"code": 200, "msg": "success", "data": data, "exec_time": 0.67573})
    return reply(200, {"id": task_id})


@asynccontextmanager
async def serving(answer: Answer, *, opens_after: float = 0.0) -> AsyncIterator[str]:
    """
    Return the address of a gateway that speaks just enough HTTP over bare streams.

    It shares no code with either client, nor with the simulator, so it is an independent reference
    for all of them. Until it has been up for *opens_after* seconds, its port refuses connections.
    """
    visits: set[asyncio.Task[None]] = set()
    place = socket.socket()
    place.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(
        lambda reader, writer: visits.add(asyncio.create_task(_visit(reader, writer, answer))),
        sock=place,
        backlog=1024,
        start_serving=False,
    )
    opening = asyncio.create_task(_open(server, opens_after))
    if not opens_after:
        await opening
    try:
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
    finally:
        opening.cancel()
        server.close()
        for visit in visits:
            visit.cancel()
        await asyncio.gather(opening, *visits, return_exceptions=True)


async def _open(server: asyncio.Server, after: float) -> None:
    await asyncio.sleep(after)
    await server.start_serving()


async def _visit(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer
) -> None:
    try:
        while True:
            content = await answer(await _read_request(reader))
            if content is None:
                await reader.read()
            if not content:
                return
            writer.write(content)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        return  # the client has left
    finally:
        writer.close()


async def _read_request(reader: asyncio.StreamReader) -> RawRequest:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *fields = head.splitlines()
    length = next(
        (field[15:] for field in fields if field.lower().startswith("content-length:")), "0"
    )
    verb, path, _ = first.split(" ", 2)
    return RawRequest(verb, path, await reader.readexactly(int(length)))


@contextmanager
def feed_in_another_process(polls: int) -> Iterator[str]:
    """Return the URL of a feed in another process; each task ends with its *polls*-th poll."""
    program = Path(__file__).with_name("_feed.py")
    with subprocess.Popen(
        [sys.executable, program, str(polls)],
        stdin=subprocess.PIPE,  # it lives until this is closed
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """Return the median of *values*, and between which they lay."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return how many times theirs ours is: the median over rounds, in each of which both ran."""
    # A machine that slows down for a while slows both sides of a round.
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def verdict(figure: float, at_most: float, form: str = ".2f") -> str:
    """Return *figure* beside the goal it is held against."""
    held = "held" if figure <= at_most else "MISSED"
    return f"{figure:{form}} (goal: at most {at_most:{form}}, {held})"


def table(rows: Iterable[Sequence[str]]) -> str:
    """Return *rows*, the first of which is the heading, in columns."""
    lines = [*rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
