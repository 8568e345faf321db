import asyncio
import errno
import logging
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.clients import QUICK_RETRY, others
from support.clock import settle, until
from support.harness import (
    KEY,
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
    until_closed,
    whole,
)
from support.secrets import secrets_in
from support.servers import free_port, raw_server, reply

from fuhu_runway._part import Part
from fuhu_runway._sinks import BUFFER_BYTES, in_thread
from fuhu_runway.downloads import LEAST_BYTES, Progress, Source, origin_of
from fuhu_runway.errors import (
    ClipMissing,
    DownloadError,
    DownloadIncomplete,
    DownloadRefused,
    Fate,
    GatewayDown,
    NotFound,
    RateLimited,
    UsageError,
)
from fuhu_runway.hooks import DownloadBroken, DownloadFailed, DownloadFinished, DownloadStarted


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[DownloadHarness]:
    """Yield a downloader that sleeps without taking time, and has no patience."""
    async with open_harness(tmp_path) as opened:
        yield opened


# A file appears whole or not at all


async def test_a_clip_is_saved(harness: DownloadHarness) -> None:
    """The file holds every byte, no other file is left, and two events are emitted."""
    seen: list[Progress] = []
    async with raw_server(whole()) as server:
        assert await harness.save(server.url, on_progress=seen.append) == harness.path
    assert harness.path.read_bytes() == VIDEO
    assert harness.is_clean()
    assert seen[-1] == Progress(len(VIDEO), len(VIDEO))
    assert harness.recorder.events == [
        DownloadStarted("t-1", 0, len(VIDEO)),
        DownloadFinished("t-1", len(VIDEO)),
    ]


async def test_a_large_clip_is_saved(harness: DownloadHarness) -> None:
    """A file larger than the buffer is saved whole, and the progress only grows."""
    seen: list[int] = []
    async with raw_server(whole(LARGE)) as server:
        await harness.save(
            server.url, on_progress=lambda progress: seen.append(progress.received_bytes)
        )
    assert harness.path.read_bytes() == LARGE
    assert seen == sorted(seen)


async def test_a_clip_takes_two_turns_of_a_thread(harness: DownloadHarness) -> None:
    """Its part is opened in one, and its bytes are written, flushed and renamed in the other."""
    turns = 0

    class Counting(ThreadPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
            nonlocal turns
            turns += 1
            return super().submit(*args, **kwargs)

    asyncio.get_running_loop().set_default_executor(Counting())
    async with raw_server(whole()) as server:
        await harness.save(server.url)
    assert turns == 2
    assert harness.path.read_bytes() == VIDEO


async def test_a_body_longer_than_its_range_is_not_saved(harness: DownloadHarness) -> None:
    """A file is not complete before its body has ended, even if a write ends with its last byte."""
    start = len(LARGE) - BUFFER_BYTES
    harness.leave_part(LARGE[:start])
    span = f"bytes {start}-{len(LARGE) - 1}/{len(LARGE)}"
    longer = reply(LARGE[start:] + b"more", "206 Partial Content", ETag=TAG, Content_Range=span)
    async with raw_server(longer[:-4], whole(LARGE)) as server:

        def send_more(progress: Progress) -> None:
            if progress.received_bytes == len(LARGE) and len(server.requests) == 1:
                server.writers[0].write(longer[-4:])

        await harness.save(server.url, on_progress=send_more)
        assert len(server.requests) == 2
    assert harness.path.read_bytes() == LARGE


async def test_the_old_file_stays_until_the_new_one_is_whole(harness: DownloadHarness) -> None:
    """An existing file is replaced in one step, at the end."""
    harness.path.write_bytes(b"old")
    async with raw_server(whole()) as server:
        server.may_answer.clear()
        saving = asyncio.ensure_future(harness.save(server.url, overwrite=True))
        await server.got_request.wait()
        assert harness.path.read_bytes() == b"old"
        server.may_answer.set()
        await saving
    assert harness.path.read_bytes() == VIDEO
    assert harness.is_clean()


def test_progress_has_a_fraction() -> None:
    """The fraction is None if the size is unknown."""
    assert Progress(25, 100).fraction == 0.25
    assert Progress(25, None).fraction is None
    assert Progress(0, 0).fraction is None


# Resuming


async def test_a_break_is_resumed(harness: DownloadHarness) -> None:
    """The second attempt requests only the rest, and only of the same version."""
    async with raw_server(half(), rest(1000), closes=True) as server:
        await harness.save(server.url)
        ranges = [range_of(request) for request in server.requests]
    assert ranges == [(None, None), ("bytes=1000-", TAG)]
    assert harness.path.read_bytes() == VIDEO
    assert harness.recorder.events == [
        DownloadStarted("t-1", 0, len(VIDEO)),
        DownloadBroken("t-1", 1000, harness.clock.slept[0]),
        DownloadStarted("t-1", 1000, len(VIDEO)),
        DownloadFinished("t-1", len(VIDEO)),
    ]
    assert len(harness.clock.slept) == 1


async def test_the_part_of_an_earlier_process_is_resumed(harness: DownloadHarness) -> None:
    """A part with its note is continued, also after a crash."""
    harness.leave_part(VIDEO[:700])
    async with raw_server(rest(700)) as server:
        await harness.save(server.url)
        assert range_of(server.requests[0]) == ("bytes=700-", TAG)
    assert harness.path.read_bytes() == VIDEO
    assert harness.is_clean()


async def test_a_weak_etag_is_not_used(harness: DownloadHarness) -> None:
    """If-Range has the date then: a weak ETag allows other bytes (RFC 9110 13.1.5)."""
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    start = half(ETag='W/"v-1"', Last_Modified=date)
    end = rest(1000, ETag='W/"v-1"', Last_Modified=date)
    async with raw_server(start, end, closes=True) as server:
        await harness.save(server.url)
        assert range_of(server.requests[1]) == ("bytes=1000-", date)
    assert harness.path.read_bytes() == VIDEO


async def test_a_file_without_etag_and_date_is_not_resumed(harness: DownloadHarness) -> None:
    """The next attempt requests the whole file."""
    async with raw_server(half(ETag=""), whole(ETag=""), closes=True) as server:
        await harness.save(server.url)
        assert range_of(server.requests[1]) == (None, None)
    assert harness.path.read_bytes() == VIDEO


async def test_a_rest_without_an_etag_is_accepted(harness: DownloadHarness) -> None:
    """A 206 in response to If-Range is of that version, even if it has no ETag."""
    async with raw_server(half(), rest(1000, ETag=""), closes=True) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO


OTHER = VIDEO[:-1] + b"!"
UNFIT = {
    "whole again": (whole(),),
    "another range": (rest(1000, Content_Range=f"bytes 1001-{len(VIDEO)}/{len(VIDEO)}"), whole()),
    "another version": (rest(1000, OTHER, ETag='"v-2"'), whole()),
    "no Content-Range": (rest(1000, Content_Range=""), whole()),
    "a 416 with another size": (reply(b"", "416 No", Content_Range="bytes */5"), whole()),
    "a 416 without a size": (reply(b"", "416 No"), whole()),
    "another size": (rest(1000, VIDEO + b"more", ETag=""), whole()),
    "compressed": (rest(1000, Content_Encoding="gzip"), whole()),
    "a range of 5,000 digits": (
        rest(1000, Content_Range=f"bytes 1000-{9:05000d}/{9:05000d}"),
        whole(),
    ),
}


@pytest.mark.parametrize("answers", UNFIT.values(), ids=UNFIT.keys())
async def test_a_rest_that_does_not_fit_is_discarded(
    harness: DownloadHarness, answers: tuple[bytes, ...]
) -> None:
    """If the server sends anything but the rest, the file is still whole and of one version."""
    async with raw_server(half(), *answers, closes=True) as server:
        await harness.save(server.url)
        assert range_of(server.requests[1]) == ("bytes=1000-", TAG)
        assert len(server.requests) == 1 + len(answers)
    assert harness.path.read_bytes() == VIDEO
    assert harness.is_clean()


async def test_a_complete_part_is_only_renamed(harness: DownloadHarness) -> None:
    """After a crash just before the rename, a 416 with the same size is enough."""
    harness.leave_part(VIDEO)
    nothing = reply(b"", "416 No", Content_Range=f"bytes */{len(VIDEO)}")
    async with raw_server(nothing) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO
    assert harness.is_clean()


async def test_a_content_length_that_is_too_large_is_corrected(harness: DownloadHarness) -> None:
    """The ten missing bytes are requested, and the server answers that there are none."""
    promise = whole(Content_Length=str(len(VIDEO) + 10))
    nothing = reply(b"", "416 No", Content_Range=f"bytes */{len(VIDEO)}")
    async with raw_server(promise, nothing, closes=True) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO


async def test_a_shorter_range_than_requested_is_continued(harness: DownloadHarness) -> None:
    """If the server sends less than requested, the remainder is requested."""
    middle = reply(
        VIDEO[1000:2000],
        "206 Partial Content",
        ETag=TAG,
        Content_Range=f"bytes 1000-1999/{len(VIDEO)}",
    )
    async with raw_server(half(), middle, rest(2000), closes=True) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO


async def test_a_cut_box_is_found_without_a_content_length(harness: DownloadHarness) -> None:
    """A file whose last box is cut is not whole, even if the response ended properly."""
    async with raw_server(chunked(VIDEO[:2000]), rest(2000)) as server:
        await harness.save(server.url)
        assert range_of(server.requests[1]) == ("bytes=2000-", TAG)
    assert harness.path.read_bytes() == VIDEO


@pytest.mark.parametrize("make", [whole, chunked], ids=["length", "chunks"])
@pytest.mark.parametrize("tail", [b"\n", b"garbage behind it"], ids=["newline", "garbage"])
async def test_bytes_behind_the_last_box_are_allowed(
    harness: DownloadHarness, make: Any, tail: bytes
) -> None:
    """The Content-Length, or the end of a chunked body, shows that all bytes arrived."""
    async with raw_server(make(VIDEO + tail)) as server:
        await harness.save(server.url)
        assert len(server.requests) == 1
    assert harness.path.read_bytes() == VIDEO + tail


async def test_a_content_length_that_cuts_the_file_is_not_trusted(harness: DownloadHarness) -> None:
    """If it ends inside a box, the file is cut and is requested from zero."""
    async with raw_server(whole(VIDEO[:2000]), whole()) as server:
        await harness.save(server.url)
        assert range_of(server.requests[1]) == (None, None)
    assert harness.path.read_bytes() == VIDEO


@pytest.mark.parametrize("make", [whole, chunked, until_closed])
async def test_the_head_of_a_clip_alone_is_not_a_clip(harness: DownloadHarness, make: Any) -> None:
    """A program writes the first box at once, so a host or a proxy may send that and no more."""
    head = VIDEO[:24] + box(b"free", b"")
    async with raw_server(make(head), whole(), closes=True) as server:
        await harness.save(server.url)
        assert len(server.requests) == 2
    assert harness.path.read_bytes() == VIDEO
    assert harness.is_clean()


@pytest.mark.parametrize("kind", [b"pdin", b"what"])
async def test_a_box_of_another_kind_before_the_pictures_is_allowed(
    harness: DownloadHarness, kind: bytes
) -> None:
    """Behind a box that is not known, nothing is judged."""
    clip = VIDEO[:24] + box(kind, b"anything") + VIDEO[24:]
    async with raw_server(whole(clip)) as server:
        await harness.save(server.url)
        assert len(server.requests) == 1
    assert harness.path.read_bytes() == clip


# Files that are not clips


@pytest.mark.parametrize(
    "data",
    [
        b"\x1a\x45\xdf\xa3webm",
        b"\x89PNG\r\n",
        b"\xff\xd8\xff\xe0",
        b"GIF89a",
        b"RIFF____AVI ",
        b"OggS",
    ],
    ids=["WebM", "PNG", "JPEG", "GIF", "AVI", "Ogg"],
)
async def test_a_file_that_is_not_an_mp4_is_refused(harness: DownloadHarness, data: bytes) -> None:
    """A file of another kind is not kept, not even as a part."""
    async with raw_server(whole(data)) as server:
        with pytest.raises(DownloadRefused) as caught:
            await harness.save(server.url)
        assert len(server.requests) == 1
    assert caught.value.task_id == "t-1"
    assert "paid for" in str(caught.value)
    assert list(harness.path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "kind",
    [
        *("styp", "moov", "moof", "mdat", "sidx", "emsg", "prft"),
        *("meta", "free", "skip", "wide", "uuid", "pnot", "PICT"),
    ],
)
async def test_a_clip_may_begin_with_any_box(harness: DownloadHarness, kind: str) -> None:
    """QuickTime files begin with the index or a preview, fragments with their own index."""
    video = box(kind.encode(), b"x" * 20) + VIDEO
    async with raw_server(whole(video)) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == video


async def test_a_clip_may_begin_byte_by_byte(harness: DownloadHarness) -> None:
    """The first chunks may be too short to show that the file is an MP4."""
    async with raw_server(chunked(*(VIDEO[at : at + 1] for at in range(20)), VIDEO[20:])) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO


@pytest.mark.parametrize("answer", [whole(), chunked(VIDEO)], ids=["announced", "counted"])
async def test_a_clip_that_is_too_large_is_refused(harness: DownloadHarness, answer: bytes) -> None:
    """The error names the limit, and nothing is kept, whether or not the size is announced."""
    async with raw_server(answer) as server:
        with pytest.raises(DownloadRefused, match="larger than the 5,000 bytes"):
            await harness.save(server.url, max_bytes=5000)
    assert list(harness.path.parent.iterdir()) == []


async def test_a_clip_of_exactly_the_limit_is_saved(harness: DownloadHarness) -> None:
    """*max_bytes* itself is allowed."""
    async with raw_server(whole()) as server:
        await harness.save(server.url, max_bytes=len(VIDEO))
    assert harness.path.read_bytes() == VIDEO


@pytest.mark.parametrize("status", ["402 No", "451 No", "300 Which", "304 No", "226 Eh", "600 Eh"])
async def test_a_permanent_status_is_refused(harness: DownloadHarness, status: str) -> None:
    """A refusal that another attempt would not change ends the download at once."""
    async with raw_server(reply(b"", status)) as server:
        with pytest.raises(DownloadRefused, match=status[:3]):
            await harness.save(server.url)
        assert len(server.requests) == 1


@pytest.mark.parametrize("span", ["bytes */0", "", f"bytes */{len(VIDEO)}", "bytes 0-0/1"])
async def test_a_416_without_a_range_is_refused(harness: DownloadHarness, span: str) -> None:
    """A 416 to a request without a range leaves no empty file behind."""
    async with raw_server(reply(b"", "416 No", Content_Range=span)) as server:
        with pytest.raises(DownloadRefused, match="416"):
            await harness.save(server.url)
        assert len(server.requests) == 1
    assert list(harness.path.parent.iterdir()) == []


# Retries


@pytest.mark.parametrize(
    "status", ["500 No", "503 No", "530 No", "429 No", "408 No", "421 No", "425 No"]
)
async def test_a_temporary_status_is_retried(harness: DownloadHarness, status: str) -> None:
    """The same URL is requested again, after the pause that the server requests."""
    async with raw_server(reply(b"", status, Retry_After="7"), whole()) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO
    assert harness.clock.slept == [7.0]
    assert harness.fetches == [False, False]


async def test_a_refused_connection_is_retried_and_then_raised(harness: DownloadHarness) -> None:
    """After the policy's attempts, `DownloadIncomplete` says that no bytes are kept."""
    with pytest.raises(DownloadIncomplete) as caught:
        await harness.save(f"http://127.0.0.1:{free_port()}/")
    assert caught.value.received_bytes == 0
    assert harness.recorder.events == [
        *(DownloadBroken("t-1", 0, delay) for delay in harness.clock.slept),
        DownloadFailed("t-1", 0, "DownloadIncomplete"),
    ]
    assert len(harness.fetches) == QUICK_RETRY.attempts
    assert list(harness.path.parent.iterdir()) == []


def crumbs(size: int, count: int) -> list[bytes]:
    """Return responses that each add *size* bytes of the large clip and then break off."""
    steps = [half(LARGE, stop=size)]
    for start in range(size, size * count, size):
        lost = rest(start, LARGE)
        steps.append(lost[: len(lost) - len(LARGE) + start + size])
    return steps


async def test_attempts_that_add_enough_bytes_do_not_count(harness: DownloadHarness) -> None:
    """After twelve breaks, each with enough new bytes before it, the file is whole."""
    steps = crumbs(LEAST_BYTES, 12)
    async with raw_server(*steps, rest(12 * LEAST_BYTES, LARGE), closes=True) as server:
        await harness.save(server.url)
        assert len(server.requests) == 13
    assert harness.path.read_bytes() == LARGE


async def test_a_host_that_adds_some_bytes_at_a_time_ends_the_download(
    harness: DownloadHarness,
) -> None:
    """They are kept, and the next call continues: no host may keep a download going without end."""
    steps = crumbs(100, 50)
    async with raw_server(*steps, closes=True) as server:
        with pytest.raises(DownloadIncomplete):
            await harness.save(server.url)
        assert len(server.requests) == QUICK_RETRY.attempts
    assert harness.part == LARGE[: 100 * QUICK_RETRY.attempts]


TRICKLES = {
    "a body": (half(LARGE, stop=100), b"x"),
    "a head": (b"HTTP/1.1 200 OK\r\nX-Mark: ", b"x"),
    "interim responses": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
}


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize(("start", "more"), TRICKLES.values(), ids=TRICKLES)
async def test_a_host_that_trickles_ends_the_download(
    harness: DownloadHarness, start: bytes, more: bytes
) -> None:
    """Each attempt ends although every pause of the host is short, and so does the download."""
    attempts: list[asyncio.Task[Any] | None] = []

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(start)
        while not (reader.at_eof() or writer.is_closing()):
            writer.write(more)
            await asyncio.sleep(1)
        writer.close()

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    async with server:
        with pytest.raises(DownloadIncomplete, match="kept failing"):
            await harness.save(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        assert len(attempts) == QUICK_RETRY.attempts
        await asyncio.gather(*filter(None, attempts))


async def test_the_bytes_of_a_failed_download_are_kept(harness: DownloadHarness) -> None:
    """The error counts them, and a later call continues there."""
    async with raw_server(half(), None, closes=True) as server:
        with pytest.raises(DownloadIncomplete) as caught:
            await harness.save(server.url)
    assert len(harness.fetches) == QUICK_RETRY.attempts
    assert caught.value.received_bytes == 1000
    assert harness.part == VIDEO[:1000]
    async with raw_server(rest(1000)) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO


# URLs


@pytest.mark.parametrize("status", ["400 No", "401 No", "403 No", "404 No", "410 No"])
async def test_an_expired_url_is_replaced(harness: DownloadHarness, status: str) -> None:
    """A fresh URL is fetched and used at once, without a pause."""
    async with raw_server(reply(b"", status)) as old, raw_server(whole()) as new:
        await harness.save(old.url, new.url)
        assert (len(old.requests), len(new.requests)) == (1, 1)
    assert harness.fetches == [False, True]
    assert harness.clock.slept == []
    assert harness.recorder.all(DownloadBroken) == [DownloadBroken("t-1", 0, 0.0)]
    assert harness.path.read_bytes() == VIDEO


async def test_a_url_that_stays_expired_ends_the_download(harness: DownloadHarness) -> None:
    """A fresh URL is fetched for each of the policy's attempts, with pauses in between."""
    async with raw_server(reply(b"", "403 No")) as server:
        with pytest.raises(DownloadIncomplete, match="403"):
            await harness.save(server.url)
    assert harness.fetches == [False] + [True] * QUICK_RETRY.attempts


async def test_trouble_with_a_fresh_url_is_retried(harness: DownloadHarness) -> None:
    """A gateway that is down or busy when a fresh URL is needed does not end the download."""
    texts = ("It was refused.", "Nothing was charged.", "Do.", "t-1", None)
    trouble = [
        GatewayDown(*texts, 502, fate=Fate.UNKNOWN),
        RateLimited(*texts, 429, None, None, 9.0, Fate.REFUSED),
    ]
    async with raw_server(reply(b"", "403 No"), whole()) as server:

        async def address(fresh: bool) -> str:
            if fresh and trouble:
                raise trouble.pop(0)
            return server.url

        await harness.save_from(address)
    assert harness.path.read_bytes() == VIDEO
    assert harness.clock.slept[1:] == [9.0]


async def test_a_feed_that_lags_behind_does_not_end_the_download(harness: DownloadHarness) -> None:
    """Another server of the gateway may show the URL that this one does not show yet."""
    lagging = [ClipMissing("It shows no URL.", "It was charged.", "Do.", "t-1")] * 2
    async with raw_server(reply(b"", "404 No"), whole()) as server:

        async def address(fresh: bool) -> str:
            if fresh and lagging:
                raise lagging.pop()
            return server.url

        await harness.save_from(address)
    assert harness.path.read_bytes() == VIDEO


async def test_a_feed_that_keeps_showing_no_url_ends_the_download(harness: DownloadHarness) -> None:
    """When the attempts and the patience are used up, the error is that of the feed."""
    missing, fetches = ClipMissing("It shows no URL.", "It was charged.", "Do.", "t-1"), [0]

    async def address(fresh: bool) -> str:
        fetches[0] += 1
        raise missing

    with pytest.raises(ClipMissing) as caught:
        await harness.save_from(address)
    assert caught.value is missing
    assert fetches == [QUICK_RETRY.attempts + 1]


async def test_a_refusal_of_a_fresh_url_is_raised(harness: DownloadHarness) -> None:
    """An error that a retry would not change is raised as it is."""

    async def address(fresh: bool) -> str:
        raise NotFound("It was refused.", "Nothing was charged.", "Do.", "t-1")

    with pytest.raises(NotFound):
        await harness.save_from(address)


async def test_the_key_goes_to_its_origin_only(harness: DownloadHarness) -> None:
    """The gateway's own origin gets the key; a host that it redirects to does not."""
    async with raw_server(whole()) as cdn:
        away = reply(b"", "302 Away", Location=f"{cdn.url}clip.mp4?_jwt=1")
        async with raw_server(away) as api:
            await harness.save(f"{api.url}clip.mp4", origin=origin_of(api.url))
            assert KEY.encode() in api.requests[0]
        assert b"Authorization" not in cdn.requests[0]
        assert b"GET /clip.mp4?_jwt=1" in cdn.requests[0]
    assert harness.path.read_bytes() == VIDEO


@pytest.mark.parametrize("status", ["301 A", "302 A", "303 A", "307 A", "308 A"])
async def test_a_redirect_is_followed(harness: DownloadHarness, status: str) -> None:
    """The Location may be relative, and the range is sent again."""
    harness.leave_part(VIDEO[:700])
    async with raw_server(reply(b"", status, Location="../b?c=1"), rest(700)) as server:
        await harness.save(f"{server.url}a/a")
        assert server.requests[1].startswith(b"GET /b?c=1 ")
        assert range_of(server.requests[1]) == ("bytes=700-", TAG)
    assert harness.path.read_bytes() == VIDEO


@pytest.mark.parametrize(
    "location",
    ["/again", "", "http://[", "svn+ssh://[", "ftp://127.0.0.1/a", "http://a b/", "//["],
)
async def test_a_redirect_that_leads_nowhere_is_refused(
    harness: DownloadHarness, location: str
) -> None:
    """A redirect loop ends, and a Location that is not a URL is not requested."""
    async with raw_server(reply(b"", "302 Away", Location=location)) as server:
        with pytest.raises(DownloadRefused, match=r"redirects more|redirects to one"):
            await harness.save(server.url)
        assert len(server.requests) <= 6


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:99999/",
        "http://cdn..example/m",
        f"http://{'a' * 70}.example/m",
        "http://[::1::2]/m",
        "http://b\u00fc\u0000r.example/",
        "http://\udcff.example/",
        "http://xn--a\u00e4.example/",
    ],
)
@pytest.mark.parametrize("is_redirected", [False, True], ids=["at once", "redirected"])
async def test_an_impossible_url_is_a_download_error(
    harness: DownloadHarness, address: str, is_redirected: bool
) -> None:
    """For any error of the HTTP library, ours says that the clip is paid for."""
    location = address.encode("utf-8", "surrogateescape").decode("latin1").replace("\0", "")
    away = reply(b"").replace(b"200 OK", f"302 Away\r\nLocation: {location}".encode("latin1"))
    async with raw_server(away) as server:
        with pytest.raises(DownloadError, match="paid for") as caught:
            await harness.save(server.url if is_redirected else address)
    assert caught.value.task_id == "t-1"
    assert list(harness.path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://a.example/x", "https://a.example:443/y?z", True),
        ("http://A.example/x", "http://a.example.:80", True),
        ("https://a.example", "http://a.example", False),
        ("https://a.example", "https://a.example:444", False),
        ("https://a.example", "https://a.example.evil", False),
        ("https://a.example", "https://a.example@evil.example", False),
        ("https://a.example", "https://evil.example/https://a.example", False),
        ("https://[::1]/", "https://[::1]:443/", True),
        ("https://[::1/", "https://[::1]/", False),
        ("https://a.example:99999/", "https://a.example/", False),
    ],
)
def test_an_origin_is_scheme_host_and_port(one: str, other: str, same: bool) -> None:
    """Case, a default port and a trailing dot do not matter; everything else does."""
    assert (origin_of(one) == origin_of(other)) is same


# The disk


async def test_a_missing_folder_is_a_usage_error(harness: DownloadHarness) -> None:
    """The URL is not even fetched if the file cannot be opened."""
    harness.path = harness.path.parent / "gone" / "clip.mp4"
    with pytest.raises(UsageError, match="There is no folder") as caught:
        await harness.save("http://127.0.0.1/")
    assert isinstance(caught.value.__cause__, OSError)
    assert harness.fetches == []
    assert harness.recorder.events == [DownloadFailed("t-1", 0, "UsageError")]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux has it")
async def test_a_folder_that_takes_no_files_is_not_said_to_be_missing(
    harness: DownloadHarness,
) -> None:
    """In /proc, the system itself says that a new file is not found."""
    harness.path = Path("/proc/clip.mp4")
    with pytest.raises(UsageError, match="Nothing can be written in '/proc'"):
        await harness.save("http://127.0.0.1/")


@pytest.mark.parametrize("name", ["x" * 251, "nul\0.mp4"], ids=["too long", "null"])
async def test_an_impossible_name_is_a_usage_error(harness: DownloadHarness, name: str) -> None:
    """The error names the path, and the URL is not fetched."""
    harness.path = harness.path.with_name(name)
    with pytest.raises(UsageError) as caught:
        await harness.save("http://127.0.0.1/")
    assert caught.value.field == "path"
    assert harness.fetches == []


async def test_a_rename_is_retried_while_the_file_is_held_open(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows a virus scanner or indexer may hold a file for a moment, as this code does."""
    rename, failures = Path.replace, [PermissionError(errno.EACCES, "held") for _ in range(4)]

    def held(self: Path, target: Path) -> Path:
        if failures:
            raise failures.pop()
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", held)
    async with raw_server(whole()) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO
    assert harness.clock.slept == [0.05, 0.2, 0.5]
    assert harness.is_clean()


async def test_a_file_that_stays_held_open_is_kept(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All bytes stay in the part, and the next download only renames it."""

    def held(self: Path, target: Path) -> Path:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    async with raw_server(whole()) as server:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", held)
            with pytest.raises(DownloadIncomplete, match="Permission denied") as caught:
                await harness.save(server.url)
    assert caught.value.received_bytes == len(VIDEO)
    assert harness.part == VIDEO
    nothing = reply(b"", "416 No", Content_Range=f"bytes */{len(VIDEO)}")
    async with raw_server(nothing) as server:
        await harness.save(server.url)
        assert range_of(server.requests[0]) == (f"bytes={len(VIDEO)}-", TAG)
    assert harness.path.read_bytes() == VIDEO


async def test_the_working_directory_may_change_meanwhile(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is relative to the directory in which the download began."""
    home = harness.path.parent
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home)
    harness.path = Path("clip.mp4")
    async with raw_server(half(), rest(1000), closes=True) as server:
        await harness.save(server.url, on_progress=lambda _: os.chdir(home / "elsewhere"))
    assert (home / "clip.mp4").read_bytes() == VIDEO
    assert sorted(entry.name for entry in home.rglob("*")) == ["clip.mp4", "elsewhere"]


async def test_a_file_created_meanwhile_is_not_replaced(harness: DownloadHarness) -> None:
    """The other program's file stays, and the clip is kept as a part."""

    def another(progress: Progress) -> None:
        harness.path.write_bytes(b"mine")

    async with raw_server(whole()) as server:
        with pytest.raises(UsageError, match="already exists") as caught:
            await harness.save(server.url, on_progress=another)
    assert caught.value.money == "The clip exists and is paid for."
    assert harness.path.read_bytes() == b"mine"
    assert harness.part == VIDEO
    async with raw_server(rest(len(VIDEO) - 1), closes=True) as server:
        harness.leave_part(VIDEO[:-1])
        await harness.save(server.url, overwrite=True)
    assert harness.path.read_bytes() == VIDEO


# Cancelling, and sharing a file


async def test_a_cancelled_download_can_be_resumed(harness: DownloadHarness) -> None:
    """The bytes are kept, no file stays open, and the next call requests the rest."""
    async with raw_server(half(LARGE, BUFFER_BYTES + 5000)) as server:
        saving = asyncio.ensure_future(harness.save(server.url))
        await until(lambda: (harness.part or b"") != b"")
        saving.cancel()
        await asyncio.wait([saving])
        assert saving.cancelled()
    kept = harness.part or b""
    assert len(kept) >= BUFFER_BYTES
    assert LARGE.startswith(kept)
    assert others() == set()
    async with raw_server(rest(len(kept), LARGE)) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == LARGE
    assert harness.is_clean()


def slow_disk(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Return an event for the begin of a write, and one that lets it go on."""
    begun, may_end = threading.Event(), threading.Event()
    write = Part.write

    def slow(part: Part, data: bytes, total: int | None) -> None:
        begun.set()
        may_end.wait()
        write(part, data, total)

    monkeypatch.setattr(Part, "write", slow)
    return begun, may_end


async def test_a_cancelled_write_is_written_once(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation waits for a slow disk, and no byte is written twice."""
    begun, may_end = slow_disk(monkeypatch)
    async with raw_server(whole(LARGE)) as server:
        saving = asyncio.ensure_future(harness.save(server.url))
        await until(begun.is_set)
        for _ in range(2):
            saving.cancel()
            await settle()
        assert not saving.done()
        may_end.set()
        await asyncio.wait([saving])
    assert saving.cancelled()
    assert len(harness.part or b"") >= BUFFER_BYTES
    assert LARGE.startswith(harness.part or b"")


async def test_a_download_that_is_cancelled_while_it_opens_leaves_nothing(
    harness: DownloadHarness,
) -> None:
    """The part that a thread still opens is closed and removed."""
    may_open = threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    blocking = asyncio.ensure_future(asyncio.to_thread(may_open.wait))
    await settle()
    async with raw_server(whole()) as server:
        saving = asyncio.ensure_future(harness.save(server.url))
        await settle()
        saving.cancel()
        await settle()
        assert not saving.done()
        may_open.set()
        await asyncio.wait([saving, blocking])
        assert saving.cancelled()
        assert others() == set()
        assert list(harness.path.parent.iterdir()) == []
        await harness.save(server.url)
    assert harness.is_clean()


async def test_closing_waits_for_the_last_bytes(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is whole by the time the client has closed is not reported as incomplete."""
    begun, may_end = slow_disk(monkeypatch)
    async with raw_server(whole()) as server:
        saving = asyncio.ensure_future(harness.save(server.url))
        await until(begun.is_set)
        harness.downloader.transport.stop()
        await settle()
        assert not saving.done()
        may_end.set()
        assert await saving == harness.path
    assert harness.path.read_bytes() == VIDEO


async def test_an_error_after_a_cancellation_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Work that fails after its caller was cancelled logs nothing."""
    begun, may_end = threading.Event(), threading.Event()

    def fail() -> None:
        begun.set()
        may_end.wait()
        raise OSError

    working = asyncio.ensure_future(in_thread(fail))
    await until(begun.is_set)
    working.cancel()
    may_end.set()
    await asyncio.wait([working])
    assert working.cancelled()
    assert caplog.records == []


async def test_a_progress_callback_that_raises_ends_the_download(harness: DownloadHarness) -> None:
    """The error of `on_progress` is raised as it is, and the bytes are kept."""

    def fail(progress: Progress) -> None:
        raise ZeroDivisionError

    async with raw_server(whole()) as server:
        with pytest.raises(ZeroDivisionError):
            await harness.save(server.url, on_progress=fail)
    assert VIDEO.startswith(harness.part or b"-")


async def test_the_second_download_to_one_file_is_refused(harness: DownloadHarness) -> None:
    """It is a `UsageError`, however its path is spelled, until the first one ends."""
    first_path = harness.path
    async with raw_server(whole()) as server:
        server.may_answer.clear()
        first = asyncio.ensure_future(harness.save(server.url))
        await server.got_request.wait()
        (first_path.parent / "sub").mkdir()
        for path in (first_path, first_path.parent / "sub" / ".." / "clip.mp4"):
            harness.path = path
            with pytest.raises(UsageError, match="already being downloaded") as caught:
                await harness.save(server.url)
            assert caught.value.field == "path"
        server.may_answer.set()
        await first
        await harness.save(server.url, overwrite=True)
    assert harness.path.read_bytes() == VIDEO


async def test_downloads_to_different_files_run_side_by_side(
    harness: DownloadHarness, tmp_path: Path
) -> None:
    """Downloads to different files do not wait for each other."""
    async with raw_server(whole()) as server:
        server.may_answer.clear()
        twin = attrs.evolve(harness, path=tmp_path / "twin.mp4")
        saving = [asyncio.ensure_future(one.save(server.url)) for one in (harness, twin)]
        await until(lambda: len(server.requests) == 2)
        server.may_answer.set()
        await asyncio.gather(*saving)
    assert harness.path.read_bytes() == twin.path.read_bytes() == VIDEO


# No secrets


async def test_no_error_shows_a_url(
    harness: DownloadHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither errors nor the log contain the key, the signed URL or an IP address."""
    caplog.set_level(logging.DEBUG)
    secrets = ["sk-marked", "marked", "127.0.0.1"]
    answers: list[tuple[bytes | None, type[Exception]]] = [
        (None, DownloadIncomplete),
        (reply(b"marked", "403 No"), DownloadIncomplete),
        (reply(b"marked", "500 No"), DownloadIncomplete),
        (whole(b"marked page"), DownloadIncomplete),
        (whole(b"\0\0\0\0marked"), DownloadIncomplete),
        (whole(b"\x89PNG marked"), DownloadRefused),
        (reply(b"", "302 Away", Location="http://marked..example/"), DownloadRefused),
        (reply(b"marked", "302 Away", Location="/marked"), DownloadRefused),
    ]
    for answer, kind in answers:
        async with raw_server(answer) as server:
            with pytest.raises(kind) as caught:
                await harness.save(f"{server.url}marked?_jwt=marked", origin=origin_of(server.url))
        assert secrets_in(caught.value, secrets) == [], answer
    assert not any(secret in f"{caplog.text}{harness.recorder.events}" for secret in secrets)


def test_a_source_shows_no_key() -> None:
    """Its repr has the task's id, but not the key."""

    async def address(fresh: bool) -> str:
        return "http://127.0.0.1/"

    assert KEY not in repr(Source("t-1", address, {"Authorization": KEY}, "http://a:80"))
