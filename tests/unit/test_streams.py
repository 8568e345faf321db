"""Clips into memory and to readers: what a file does not need to decide."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from support.clients import others
from support.clock import settle, until
from support.harness import (
    LARGE,
    TAG,
    VIDEO,
    DownloadHarness,
    box,
    chunked,
    half,
    open_harness,
    range_of,
    rest,
    whole,
)
from support.servers import raw_server

from fuhu_runway.errors import ClipChanged, DownloadIncomplete, DownloadRefused
from fuhu_runway.hooks import DownloadBroken, DownloadFailed, DownloadFinished, DownloadStarted

OTHER = box(b"ftyp", b"isom" * 4) + box(b"mdat", bytes(len(VIDEO) - 32))


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[DownloadHarness]:
    """Yield a downloader that sleeps without taking time, and has no patience."""
    async with open_harness(tmp_path) as opened:
        yield opened


async def streamed(
    harness: DownloadHarness, *urls: str, into: list[bytes] | None = None, **options: Any
) -> list[bytes]:
    """Return every chunk of a stream; *into* also has those before an error."""
    chunks = [] if into is None else into
    async for chunk in harness.downloader.stream(harness.source(*urls), **options):
        chunks.append(chunk)
    return chunks


async def test_a_clip_is_streamed(harness: DownloadHarness) -> None:
    """The chunks are the whole clip, at most 64 KiB and one read more; no file is left."""
    async with raw_server(whole(LARGE)) as server:
        chunks = await streamed(harness, server.url)
    assert b"".join(chunks) == LARGE
    assert len(chunks) > 10
    assert harness.recorder.events == [
        DownloadStarted("t-1", 0, len(LARGE)),
        DownloadFinished("t-1", len(LARGE), is_saved=False),
    ]
    assert list(harness.path.parent.iterdir()) == []
    assert others() == set()


async def test_a_clip_is_read(harness: DownloadHarness) -> None:
    """A break is resumed, and the bytes are those of the file."""
    async with raw_server(half(), rest(1000), closes=True) as server:
        assert await harness.downloader.read(harness.source(server.url)) == VIDEO
        assert [range_of(one) for one in server.requests] == [(None, None), ("bytes=1000-", TAG)]
    assert harness.recorder.events[-1] == DownloadFinished("t-1", len(VIDEO), is_saved=False)
    assert list(harness.path.parent.iterdir()) == []


async def test_a_changed_file_is_read_from_the_start(harness: DownloadHarness) -> None:
    """Nothing was handed out yet, so that the bytes of the old version are discarded."""
    async with raw_server(half(), whole(OTHER, ETag='"v-2"'), closes=True) as server:
        assert await harness.downloader.read(harness.source(server.url)) == OTHER


async def test_a_read_that_fails_keeps_nothing(harness: DownloadHarness) -> None:
    """The error says so, in place of a path to continue at."""
    async with raw_server(half(), closes=True) as server:
        with pytest.raises(DownloadIncomplete, match="Read the clip again") as caught:
            await harness.downloader.read(harness.source(server.url))
    assert (caught.value.task_id, caught.value.received_bytes) == ("t-1", 1000)


async def test_a_stream_is_resumed(harness: DownloadHarness) -> None:
    """The second attempt requests the rest of the same version, and no byte comes twice."""
    async with raw_server(half(), rest(1000), closes=True) as server:
        assert await streamed(harness, server.url) == [VIDEO[:1000], VIDEO[1000:]]
        assert [range_of(one) for one in server.requests] == [(None, None), ("bytes=1000-", TAG)]


async def test_a_host_without_ranges_can_be_streamed_from(harness: DownloadHarness) -> None:
    """It sends the whole file again, and the bytes that the reader has are only compared."""
    cut = half(VIDEO, 1000, ETag=""), half(VIDEO, 700, ETag=""), half(VIDEO, 2000, ETag="")
    async with raw_server(*cut, whole(ETag=""), closes=True) as server:
        chunks = await streamed(harness, server.url)
        assert [range_of(one) for one in server.requests] == [(None, None)] * 4
    assert chunks == [VIDEO[:1000], VIDEO[1000:2000], VIDEO[2000:]]


@pytest.mark.parametrize("answer", [whole(OTHER, ETag='"v-2"'), whole(OTHER)], ids=["named", "not"])
async def test_a_changed_file_ends_a_stream(harness: DownloadHarness, answer: bytes) -> None:
    """Bytes that were handed out cannot be taken back: the error says to start again."""
    got: list[bytes] = []
    async with raw_server(half(), answer, closes=True) as server:
        with pytest.raises(ClipChanged, match="Discard what was streamed") as caught:
            await streamed(harness, server.url, into=got)
    assert got == [VIDEO[:1000]]
    assert (caught.value.task_id, caught.value.received_bytes) == ("t-1", 1000)
    assert caught.value.money == "The clip exists and is paid for."
    assert harness.recorder.events[-1] == DownloadFailed("t-1", 1000, "ClipChanged")


async def test_a_file_that_became_shorter_ends_a_stream(harness: DownloadHarness) -> None:
    """Its bytes are those that were handed out, only fewer."""
    endless = box(b"ftyp", b"isom" * 4) + bytes(4) + b"mdat" + bytes(3000)
    answers = half(endless, 2000), whole(endless[:1000], ETag='"v-2"')
    async with raw_server(*answers, closes=True) as server:
        with pytest.raises(ClipChanged):
            await streamed(harness, server.url)


async def test_a_file_that_stays_cut_ends_a_stream(harness: DownloadHarness) -> None:
    """A last box longer than the file is found out, also when every byte has been handed out."""
    async with raw_server(whole(VIDEO[:-1]), closes=True) as server:
        with pytest.raises(DownloadIncomplete, match="kept failing"):
            await streamed(harness, server.url)


async def test_a_clip_that_is_too_large_is_not_streamed(harness: DownloadHarness) -> None:
    """If the host says its size, before the first byte; otherwise at the limit."""
    async with raw_server(whole()) as server:
        with pytest.raises(DownloadRefused, match="larger than the 100 bytes"):
            await streamed(harness, server.url, max_bytes=100)
    async with raw_server(chunked(VIDEO)) as server:
        with pytest.raises(DownloadRefused, match="larger than the 100 bytes"):
            await streamed(harness, server.url, max_bytes=100)
    async with raw_server(chunked(VIDEO)) as server:
        with pytest.raises(DownloadRefused, match="larger than the 100 bytes"):
            await harness.downloader.read(harness.source(server.url), max_bytes=100)


async def test_leaving_a_stream_ends_the_download(harness: DownloadHarness) -> None:
    """Also while a chunk waits for the reader: nothing is left running."""
    async with (
        raw_server(whole(LARGE)) as server,
        aclosing(harness.downloader.stream(harness.source(server.url))) as chunks,
    ):
        await anext(chunks)
        await settle()
    assert others() == set()
    assert [type(event) for event in harness.recorder.events] == [DownloadStarted, DownloadFailed]
    assert harness.recorder.all(DownloadFailed)[0].error == "CancelledError"


async def test_leaving_a_stream_that_has_failed_is_silent(
    harness: DownloadHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """The error of a download that no reader wants is not logged as one that was lost."""
    async with raw_server(half(VIDEO), closes=True) as server:
        chunks = harness.downloader.stream(harness.source(server.url))
        await anext(chunks)
        await until(lambda: DownloadFailed in map(type, harness.recorder.events))
        await chunks.aclose()
        del chunks
    assert caplog.records == []


async def test_a_cancelled_reader_ends_the_download(harness: DownloadHarness) -> None:
    """While it waits for the next chunk."""
    async with raw_server(half(VIDEO)) as server:
        reading = asyncio.ensure_future(streamed(harness, server.url))
        await until(lambda: DownloadStarted in map(type, harness.recorder.events))
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert others() == set()


async def test_closing_the_client_ends_a_stream(harness: DownloadHarness) -> None:
    """The reader gets an error, not a clip that seems whole."""
    async with raw_server(half(VIDEO)) as server:
        reading = asyncio.ensure_future(streamed(harness, server.url))
        await until(lambda: DownloadStarted in map(type, harness.recorder.events))
        harness.downloader.transport.stop()
        with pytest.raises(DownloadIncomplete, match="client was closed during the download"):
            await reading


async def test_a_stream_is_finished_when_its_last_chunk_was_taken(harness: DownloadHarness) -> None:
    """A program that is killed before has not got the clip, and its journal says so."""
    async with raw_server(whole()) as server:
        chunks = harness.downloader.stream(harness.source(server.url))
        assert await anext(chunks) == VIDEO
        await settle()
        assert [type(event) for event in harness.recorder.events] == [DownloadStarted]
        assert await anext(chunks, None) is None
    assert harness.recorder.events[-1] == DownloadFinished("t-1", len(VIDEO), is_saved=False)


async def test_a_break_is_reported(harness: DownloadHarness) -> None:
    """A stream emits the same events as a download to a file."""
    async with raw_server(half(), rest(1000), closes=True) as server:
        await streamed(harness, server.url)
    assert harness.recorder.events == [
        DownloadStarted("t-1", 0, len(VIDEO)),
        DownloadBroken("t-1", 1000, harness.clock.slept[0]),
        DownloadStarted("t-1", 1000, len(VIDEO)),
        DownloadFinished("t-1", len(VIDEO), is_saved=False),
    ]
