"""Clips into memory and to readers: what a file does not need to decide."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from support.clients import others
from support.clock import settle, until
from support.desk import (
    LARGE,
    TAG,
    VIDEO,
    Desk,
    box,
    chunked,
    half,
    open_desk,
    range_of,
    rest,
    whole,
)
from support.servers import raw_server

from fuhu_runway.errors import ClipChanged, DownloadIncomplete, DownloadRefused
from fuhu_runway.hooks import DownloadBroken, DownloadFailed, DownloadFinished, DownloadStarted

OTHER = box(b"ftyp", b"isom" * 4) + box(b"mdat", bytes(len(VIDEO) - 32))


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """Yield a downloader that sleeps without taking time, and has no patience."""
    async with open_desk(tmp_path) as opened:
        yield opened


async def streamed(
    desk: Desk, *urls: str, into: list[bytes] | None = None, **options: Any
) -> list[bytes]:
    """Return every chunk of a stream; *into* also has those before an error."""
    chunks = [] if into is None else into
    async for chunk in desk.downloader.stream(desk.source(*urls), **options):
        chunks.append(chunk)
    return chunks


async def test_a_clip_is_streamed(desk: Desk) -> None:
    """The chunks are the whole clip, at most 64 KiB and one read more; no file is left."""
    async with raw_server(whole(LARGE)) as server:
        chunks = await streamed(desk, server.url)
    assert b"".join(chunks) == LARGE
    assert len(chunks) > 10
    assert desk.ear.heard == [
        DownloadStarted("t-1", 0, len(LARGE)),
        DownloadFinished("t-1", len(LARGE), is_saved=False),
    ]
    assert list(desk.path.parent.iterdir()) == []
    assert others() == set()


async def test_a_clip_is_read(desk: Desk) -> None:
    """A break is resumed, and the bytes are those of the file."""
    async with raw_server(half(), rest(1000), closes=True) as server:
        assert await desk.downloader.read(desk.source(server.url)) == VIDEO
        assert [range_of(one) for one in server.requests] == [(None, None), ("bytes=1000-", TAG)]
    assert desk.ear.heard[-1] == DownloadFinished("t-1", len(VIDEO), is_saved=False)
    assert list(desk.path.parent.iterdir()) == []


async def test_a_changed_file_is_read_from_the_start(desk: Desk) -> None:
    """Nothing was handed out yet, so that the bytes of the old version are discarded."""
    async with raw_server(half(), whole(OTHER, ETag='"v-2"'), closes=True) as server:
        assert await desk.downloader.read(desk.source(server.url)) == OTHER


async def test_a_read_that_fails_keeps_nothing(desk: Desk) -> None:
    """The error says so, in place of a path to continue at."""
    async with raw_server(half(), closes=True) as server:
        with pytest.raises(DownloadIncomplete, match="Read the clip again") as caught:
            await desk.downloader.read(desk.source(server.url))
    assert (caught.value.task_id, caught.value.received_bytes) == ("t-1", 1000)


async def test_a_stream_is_resumed(desk: Desk) -> None:
    """The second attempt requests the rest of the same version, and no byte comes twice."""
    async with raw_server(half(), rest(1000), closes=True) as server:
        assert await streamed(desk, server.url) == [VIDEO[:1000], VIDEO[1000:]]
        assert [range_of(one) for one in server.requests] == [(None, None), ("bytes=1000-", TAG)]


async def test_a_host_without_ranges_can_be_streamed_from(desk: Desk) -> None:
    """It sends the whole file again, and the bytes that the reader has are only compared."""
    cut = half(VIDEO, 1000, ETag=""), half(VIDEO, 700, ETag=""), half(VIDEO, 2000, ETag="")
    async with raw_server(*cut, whole(ETag=""), closes=True) as server:
        chunks = await streamed(desk, server.url)
        assert [range_of(one) for one in server.requests] == [(None, None)] * 4
    assert chunks == [VIDEO[:1000], VIDEO[1000:2000], VIDEO[2000:]]


@pytest.mark.parametrize("answer", [whole(OTHER, ETag='"v-2"'), whole(OTHER)], ids=["named", "not"])
async def test_a_changed_file_ends_a_stream(desk: Desk, answer: bytes) -> None:
    """Bytes that were handed out cannot be taken back: the error says to start again."""
    got: list[bytes] = []
    async with raw_server(half(), answer, closes=True) as server:
        with pytest.raises(ClipChanged, match="Discard what was streamed") as caught:
            await streamed(desk, server.url, into=got)
    assert got == [VIDEO[:1000]]
    assert (caught.value.task_id, caught.value.received_bytes) == ("t-1", 1000)
    assert caught.value.money == "The clip exists and is paid for."
    assert desk.ear.heard[-1] == DownloadFailed("t-1", 1000, "ClipChanged")


async def test_a_file_that_became_shorter_ends_a_stream(desk: Desk) -> None:
    """Its bytes are those that were handed out, only fewer."""
    endless = box(b"ftyp", b"isom" * 4) + bytes(4) + b"mdat" + bytes(3000)
    answers = half(endless, 2000), whole(endless[:1000], ETag='"v-2"')
    async with raw_server(*answers, closes=True) as server:
        with pytest.raises(ClipChanged):
            await streamed(desk, server.url)


async def test_a_file_that_stays_cut_ends_a_stream(desk: Desk) -> None:
    """A last box longer than the file is found out, also when every byte has been handed out."""
    async with raw_server(whole(VIDEO[:-1]), closes=True) as server:
        with pytest.raises(DownloadIncomplete, match="kept failing"):
            await streamed(desk, server.url)


async def test_a_clip_that_is_too_large_is_not_streamed(desk: Desk) -> None:
    """If the host says its size, before the first byte; otherwise at the limit."""
    async with raw_server(whole()) as server:
        with pytest.raises(DownloadRefused, match="larger than the 100 bytes"):
            await streamed(desk, server.url, max_bytes=100)
    async with raw_server(chunked(VIDEO)) as server:
        with pytest.raises(DownloadRefused, match="larger than the 100 bytes"):
            await streamed(desk, server.url, max_bytes=100)
    async with raw_server(chunked(VIDEO)) as server:
        with pytest.raises(DownloadRefused, match="larger than the 100 bytes"):
            await desk.downloader.read(desk.source(server.url), max_bytes=100)


async def test_leaving_a_stream_ends_the_download(desk: Desk) -> None:
    """Also while a chunk waits for the reader: nothing is left running."""
    async with (
        raw_server(whole(LARGE)) as server,
        aclosing(desk.downloader.stream(desk.source(server.url))) as chunks,
    ):
        await anext(chunks)
        await settle()
    assert others() == set()
    assert [type(event) for event in desk.ear.heard] == [DownloadStarted, DownloadFailed]
    assert desk.ear.all(DownloadFailed)[0].error == "CancelledError"


async def test_leaving_a_stream_that_has_failed_is_silent(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """The error of a download that no reader wants is not logged as one that was lost."""
    async with raw_server(half(VIDEO), closes=True) as server:
        chunks = desk.downloader.stream(desk.source(server.url))
        await anext(chunks)
        await until(lambda: DownloadFailed in map(type, desk.ear.heard))
        await chunks.aclose()
        del chunks
    assert caplog.records == []


async def test_a_cancelled_reader_ends_the_download(desk: Desk) -> None:
    """While it waits for the next chunk."""
    async with raw_server(half(VIDEO)) as server:
        reading = asyncio.ensure_future(streamed(desk, server.url))
        await until(lambda: DownloadStarted in map(type, desk.ear.heard))
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert others() == set()


async def test_closing_the_client_ends_a_stream(desk: Desk) -> None:
    """The reader gets an error, not a clip that seems whole."""
    async with raw_server(half(VIDEO)) as server:
        reading = asyncio.ensure_future(streamed(desk, server.url))
        await until(lambda: DownloadStarted in map(type, desk.ear.heard))
        desk.downloader.transport.stop()
        with pytest.raises(DownloadIncomplete, match="client was closed during the download"):
            await reading


async def test_a_stream_is_finished_when_its_last_chunk_was_taken(desk: Desk) -> None:
    """A program that is killed before has not got the clip, and its journal says so."""
    async with raw_server(whole()) as server:
        chunks = desk.downloader.stream(desk.source(server.url))
        assert await anext(chunks) == VIDEO
        await settle()
        assert [type(event) for event in desk.ear.heard] == [DownloadStarted]
        assert await anext(chunks, None) is None
    assert desk.ear.heard[-1] == DownloadFinished("t-1", len(VIDEO), is_saved=False)


async def test_a_break_is_reported(desk: Desk) -> None:
    """A stream emits the same events as a download to a file."""
    async with raw_server(half(), rest(1000), closes=True) as server:
        await streamed(desk, server.url)
    assert desk.ear.heard == [
        DownloadStarted("t-1", 0, len(VIDEO)),
        DownloadBroken("t-1", 1000, desk.clock.slept[0]),
        DownloadStarted("t-1", 1000, len(VIDEO)),
        DownloadFinished("t-1", len(VIDEO), is_saved=False),
    ]
