"""What the hosts of clips send, and what the download does then."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from email.utils import formatdate
from pathlib import Path
from typing import Any

import attrs
import pytest
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
    whole,
)
from support.servers import raw_server, reply

from fuhu_runway._part import Part
from fuhu_runway._sinks import BUFFER_BYTES
from fuhu_runway.downloads import Progress, origin_of
from fuhu_runway.errors import DownloadIncomplete, DownloadRefused, Fate, RateLimited
from fuhu_runway.hooks import DownloadFailed, DownloadStarted


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[DownloadHarness]:
    """Yield a downloader that sleeps without taking time, and has no patience."""
    async with open_harness(tmp_path) as opened:
        yield opened


@pytest.fixture
async def patient(tmp_path: Path) -> AsyncIterator[DownloadHarness]:
    """Yield a downloader that makes two attempts, but is patient for a minute."""
    async with open_harness(
        tmp_path, patience=60.0, attempts=2, first=10.0, max_delay=10.0
    ) as opened:
        yield opened


# A clip that is not there yet

NOT_YET = {
    "202": reply(b'{"s": "wait"}', "202 Accepted"),
    "204": reply(b"", "204 Nothing"),
    "205": reply(b"", "205 Nothing"),
    "409": reply(b"", "409 Conflict"),
    "423": reply(b"", "423 Locked"),
    "425": reply(b"", "425 Early"),
    "400": reply(b"<Error><Code>ExpiredToken</Code></Error>", "400 Bad"),
    "401": reply(b"", "401 No"),
    "403": reply(b"", "403 No"),
    "404": reply(b"", "404 No"),
    "410": reply(b"", "410 Gone"),
    "a page": whole(b"<!DOCTYPE html><html>Just a moment</html>"),
    "a short page": whole(b"<Error"),
    "a page with a mark": whole(b"\xef\xbb\xbf<html></html>"),
    "a page after a line": whole(b"\n\n<html></html>"),
    "a page in UTF-16": whole("\ufeff<html>".encode("utf-16-le")),
    "a page in Chinese": whole("\u6587\u4ef6\u5904\u7406\u4e2d".encode()),
    "a packed page that does not say so": whole(b"\x1f\x8b\x08\0\0\0\0\0"),
    "the first bytes": whole(VIDEO[:5]),
    "zeros": whole(bytes(1000)),
    "another box": whole(b"\0\0\0\x18ftyx0123"),
    "JSON": whole(b'{"message": "not ready"}'),
    "nothing": whole(b""),
    "no chunks": chunked(),
}


@pytest.mark.parametrize("answer", NOT_YET.values(), ids=NOT_YET.keys())
async def test_a_clip_that_is_not_there_yet_is_requested_again(
    patient: DownloadHarness, answer: bytes
) -> None:
    """Right after a task's end the host may need a while, even if few attempts are allowed."""
    async with raw_server(*[answer] * 6, whole(), closes=True) as server:
        await patient.save(server.url)
        assert len(server.requests) == 7
    assert patient.path.read_bytes() == VIDEO
    assert patient.is_clean()


@pytest.mark.parametrize("answer", NOT_YET.values(), ids=NOT_YET.keys())
async def test_a_clip_that_never_appears_is_incomplete(
    patient: DownloadHarness, answer: bytes
) -> None:
    """When patience is over, the error says that the clip may still come; no file is left."""
    async with raw_server(answer, closes=True) as server:
        with pytest.raises(DownloadIncomplete, match="not at its URL") as caught:
            await patient.save(server.url)
        assert len(server.requests) > 2
    assert caught.value.money == "The clip exists and is paid for."
    assert sum(patient.clock.slept) < 75
    assert list(patient.path.parent.iterdir()) == []


@pytest.mark.parametrize("status", ["401 No", "403 No", "404 No", "410 No"])
async def test_a_fresh_url_may_not_work_yet_either(patient: DownloadHarness, status: str) -> None:
    """The feed is polled before each attempt, since each URL may be too early."""
    async with raw_server(*[reply(b"", status)] * 5, whole(), closes=True) as server:
        await patient.save(server.url)
    assert patient.fetches == [False, True, True, True, True, True]


async def test_trouble_does_not_end_patience(patient: DownloadHarness) -> None:
    """Two broken connections are more than the policy allows, but not within the minute."""
    answers = [NOT_YET["404"], NOT_YET["404"], None, None, None, reply(b"", "503 No"), whole()]
    async with raw_server(*answers, closes=True) as server:
        await patient.save(server.url)
    assert patient.path.read_bytes() == VIDEO


async def test_patience_is_spread_over_few_attempts(tmp_path: Path) -> None:
    """However short the policy's delays are, a host does not get hundreds of requests."""
    async with (
        open_harness(tmp_path, patience=60.0) as harness,
        raw_server(NOT_YET["404"]) as server,
    ):
        with pytest.raises(DownloadIncomplete):
            await harness.save(server.url)
        assert len(server.requests) <= 1 + 5 + 30 + 1
    assert harness.clock.slept[-1] == 2.0


async def test_a_web_page_does_not_discard_the_part(patient: DownloadHarness) -> None:
    """After a captive portal's page, the rest is requested as before."""
    patient.leave_part(VIDEO[:700])
    async with raw_server(NOT_YET["a page"], NOT_YET["nothing"], rest(700), closes=True) as server:
        await patient.save(server.url)
        ranges = [range_of(request) for request in server.requests]
    assert ranges == [("bytes=700-", TAG)] * 3
    assert patient.path.read_bytes() == VIDEO


# Pauses that a server requests


@pytest.mark.parametrize("status", ["503 No", "429 No", "202 Wait", "404 No"])
@pytest.mark.parametrize(
    ("header", "seconds"),
    [("86400", "86,400"), (formatdate(4_000_000_000, usegmt=True), r"2,\d{3},\d{3},\d{3}")],
    ids=["seconds", "date"],
)
async def test_too_long_a_pause_ends_the_download(
    harness: DownloadHarness, status: str, header: str, seconds: str
) -> None:
    """The error has the length of the pause, and the bytes are kept."""
    harness.leave_part(VIDEO[:700])
    async with raw_server(reply(b"", status, Retry_After=header), closes=True) as server:
        with pytest.raises(DownloadIncomplete, match=f"a pause of {seconds} s") as caught:
            await harness.save(server.url)
        assert len(server.requests) == (2 if "404" in status else 1)  # a fresh address is free
    assert caught.value.received_bytes == 700
    assert harness.part == VIDEO[:700]
    assert harness.clock.slept == []


async def test_a_pause_of_exactly_the_limit_is_made(harness: DownloadHarness) -> None:
    """`max_retry_after` itself is allowed."""
    async with raw_server(reply(b"", "503 No", Retry_After="120"), whole()) as server:
        await harness.save(server.url)
    assert harness.clock.slept == [120.0]


async def test_too_long_a_pause_of_the_feed_ends_the_download(harness: DownloadHarness) -> None:
    """The limit also holds for a gateway that is polled for a fresh URL."""
    texts = ("It was refused.", "Nothing was charged.", "Do.", "t-1", None)

    async def address(fresh: bool) -> str:
        raise RateLimited(*texts, 429, None, None, 86_400.0, Fate.REFUSED)

    with pytest.raises(DownloadIncomplete, match="a pause of 86,400 s"):
        await harness.save_from(address)
    assert harness.clock.slept == []


# Downloads without an end


def cut_at(stop: int, **headers: str) -> bytes:
    """Return the response whose connection breaks after *stop* bytes."""
    return half(stop=stop, **headers)


def part_of(start: int, stop: int, **headers: str) -> bytes:
    """Return a 206 response with just these bytes."""
    named = {"ETag": TAG, "Content_Range": f"bytes {start}-{stop - 1}/{len(VIDEO)}", **headers}
    return reply(VIDEO[start:stop], "206 Partial Content", **named)


ENDLESS = {
    "up and down": [cut_at(9000, ETag=""), cut_at(900, ETag="")],
    "a little more each time": [cut_at(9000 + more, ETag="") for more in range(99)],
    "a range not requested": [part_of(0, 1000, ETag="")],
    "never a range": [cut_at(5000), reply(b"", "416 No")],
    "never a fitting range": [cut_at(5000), part_of(7, 9000)],
    "the whole file as each range": [
        cut_at(5000),
        *(
            reply(
                VIDEO,
                "206 Partial Content",
                ETag=TAG,
                Content_Range=f"bytes {5000 + at * len(VIDEO)}-{len(VIDEO) - 1}/{len(VIDEO)}",
            )
            for at in range(9)
        ),
    ],
    "another version each time": [cut_at(5000 + at, ETag=f'"v-{at}"') for at in range(99)],
    "a file that is cut": [whole(VIDEO[:2000])],
    "a chunked file that is cut": [chunked(VIDEO[:2000], ETag="")],
}


@pytest.mark.parametrize("answers", ENDLESS.values(), ids=ENDLESS.keys())
async def test_a_download_without_progress_ends(
    harness: DownloadHarness, answers: list[bytes]
) -> None:
    """An attempt that starts from zero counts, however many bytes it gets."""
    async with raw_server(*answers * 9, closes=True) as server:
        with pytest.raises(DownloadIncomplete):
            await harness.save(server.url)
        assert 5 <= len(server.requests) <= 7
    assert not harness.path.exists()


async def test_a_range_that_was_not_requested_is_continued(harness: DownloadHarness) -> None:
    """If a host sends ranges only, each names its version, so all of them are used."""
    async with raw_server(part_of(0, 4000), part_of(4000, 8000), rest(8000)) as server:
        await harness.save(server.url)
        ranges = [range_of(request) for request in server.requests]
    assert ranges == [(None, None), ("bytes=4000-", TAG), ("bytes=8000-", TAG)]
    assert harness.path.read_bytes() == VIDEO


async def test_a_206_from_the_first_byte_is_the_whole_file(harness: DownloadHarness) -> None:
    """A host may answer a range request with all bytes."""
    harness.leave_part(VIDEO[:700])
    async with raw_server(rest(0)) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO


async def test_a_203_is_accepted(harness: DownloadHarness) -> None:
    """A proxy that transformed a response sends 203 in place of 200."""
    async with raw_server(whole().replace(b"200 OK", b"203 Touched")) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO


# Encoded bodies


@pytest.mark.parametrize(
    ("coding", "encode"),
    [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)],
)
@pytest.mark.parametrize("make", [whole, chunked], ids=["length", "chunks"])
async def test_an_encoded_clip_is_decoded(
    harness: DownloadHarness, coding: str, encode: Any, make: Any
) -> None:
    """Its length counts other bytes, so it is neither reported nor compared."""
    seen: list[Progress] = []
    async with raw_server(make(encode(VIDEO), Content_Encoding=coding)) as server:
        await harness.save(server.url, on_progress=seen.append)
    assert harness.path.read_bytes() == VIDEO
    assert seen[-1] == Progress(len(VIDEO), None)
    assert harness.recorder.all(DownloadStarted) == [DownloadStarted("t-1", 0, None)]


async def test_an_encoded_clip_that_breaks_is_fetched_from_zero(harness: DownloadHarness) -> None:
    """A range would count other bytes, so none is requested."""
    packed = gzip.compress(LARGE, 1)
    broken = whole(packed, Content_Encoding="gzip")[: -len(packed) // 2]
    async with raw_server(broken, whole(packed, Content_Encoding="gzip"), closes=True) as server:
        await harness.save(server.url)
        assert range_of(server.requests[1]) == (None, None)
    assert harness.path.read_bytes() == LARGE


async def test_a_body_with_a_wrong_encoding_is_a_break(harness: DownloadHarness) -> None:
    """A body that cannot be decoded is retried as after any break."""
    async with raw_server(whole(Content_Encoding="gzip"), closes=True) as server:
        with pytest.raises(DownloadIncomplete, match="broke"):
            await harness.save(server.url)
        assert len(server.requests) == 5


async def test_an_unknown_encoding_is_ignored(harness: DownloadHarness) -> None:
    """S3 names aws-chunked for files that it sends unchanged: lengths and ranges are right."""
    coding = {"Content_Encoding": "aws-chunked"}
    async with raw_server(half(**coding), rest(1000, **coding), closes=True) as server:
        await harness.save(server.url)
        assert range_of(server.requests[1]) == ("bytes=1000-", TAG)
    assert harness.path.read_bytes() == VIDEO


async def test_a_decompression_bomb_is_refused(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some hundred bytes that decode to 64 MiB never write more than the limit."""
    sizes: list[int] = []
    write = Part.write

    def measured(part: Part, data: bytes, total: int | None) -> None:
        write(part, data, total)
        sizes.append(part.received)

    monkeypatch.setattr(Part, "write", measured)
    bomb = gzip.compress(VIDEO + box(b"free", bytes(64 * BUFFER_BYTES)))
    limit = 2 * BUFFER_BYTES
    async with raw_server(chunked(bomb, Content_Encoding="gzip")) as server:
        with pytest.raises(DownloadRefused, match="larger than the 2,097,152 bytes"):
            await harness.save(server.url, max_bytes=limit)
    assert max(sizes, default=0) <= limit
    assert list(harness.path.parent.iterdir()) == []


async def test_the_part_of_a_clip_that_is_too_large_is_kept(harness: DownloadHarness) -> None:
    """A clip refused for its size when resumed may be allowed by the next call."""
    harness.leave_part(VIDEO[:700])
    async with raw_server(rest(700)) as server:
        with pytest.raises(DownloadRefused, match="larger"):
            await harness.save(server.url, max_bytes=5000)
        await harness.save(server.url)
        assert range_of(server.requests[1]) == ("bytes=700-", TAG)
    assert harness.path.read_bytes() == VIDEO


@pytest.mark.parametrize(
    ("status", "times"),
    [
        *(("400 No", 2), ("401 No", 2), ("403 No", 2), ("404 No", 2)),
        *(("405 No", 1), ("406 No", 1), ("412 No", 1), ("416 No", 1), ("417 No", 1), ("501 No", 1)),
    ],
)
async def test_after_a_refused_range_the_whole_file_is_requested(
    harness: DownloadHarness, status: str, times: int
) -> None:
    """If the status may mean that the URL has expired, a fresh URL is tried first."""
    harness.leave_part(VIDEO[:700])
    async with raw_server(*[reply(b"", status)] * times, whole()) as server:
        await harness.save(server.url)
        ranges = [range_of(request) for request in server.requests]
    assert ranges == [("bytes=700-", TAG)] * times + [(None, None)]
    assert harness.path.read_bytes() == VIDEO
    assert harness.is_clean()


async def test_a_host_that_refuses_the_whole_file_too_ends_the_download(
    harness: DownloadHarness,
) -> None:
    """The error is that of the request without a range, and the bytes are kept."""
    harness.leave_part(VIDEO[:700])
    async with raw_server(reply(b"", "405 No")) as server:
        with pytest.raises(DownloadRefused, match="405"):
            await harness.save(server.url)
        ranges = [range_of(request) for request in server.requests]
    assert ranges == [("bytes=700-", TAG), (None, None)]
    assert harness.part == VIDEO[:700]


async def test_a_range_is_requested_again_after_a_break(harness: DownloadHarness) -> None:
    """A host that refused a range and then broke the connection may accept the next one."""
    harness.leave_part(VIDEO[:700])
    async with raw_server(reply(b"", "405 No"), None, rest(700), closes=True) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO


# Headers


@pytest.mark.parametrize("size", [9_000, 60_000])
async def test_a_long_header_is_read(harness: DownloadHarness, size: int) -> None:
    """Hosts send policies longer than the 8 KB that aiohttp allows by default."""
    async with raw_server(whole(Content_Security_Policy="a" * size)) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO


@pytest.mark.parametrize(
    "tag", [b'"v\x011"', b'"v\xff1"', b'"v 1"', b'"v\x7f1"', b'"' + b"v" * 5000 + b'"', b"v-1"]
)
async def test_an_etag_that_cannot_be_sent_is_not_used(
    harness: DownloadHarness, tag: bytes
) -> None:
    """The file is requested from zero then."""
    start = half(ETag="").replace(b"ETag: ", b"ETag: " + tag)
    async with raw_server(start, whole(), closes=True) as server:
        await harness.save(server.url)
        assert range_of(server.requests[-1]) == (None, None)
    assert harness.path.read_bytes() == VIDEO


async def test_a_length_of_5000_digits_is_a_download_error(harness: DownloadHarness) -> None:
    """What the parser raises for it does not matter."""
    async with raw_server(whole(Content_Length="9" * 5000), closes=True) as server:
        with pytest.raises(DownloadIncomplete):
            await harness.save(server.url)


# URLs


def away(location: str) -> bytes:
    """Return a redirect to *location*."""
    return reply(b"", "302 Away", Location=location)


URLS = {
    "signed": ("/v/foo%27s.mp4?Policy=a%2Fb&Signature=x%7Ey", None),
    "lower case": ("/a%2fb?c=%c3%a4", None),
    "what a quoter would touch": ("/a'b(c)[d]{e}|f\\g^h`i\"<j>?k=l+m%20n;o=%&p=%zz", None),
    "dots": ("/a/../b/./c//d", None),
    "a space": ("/a b?c d", "/a%20b?c%20d"),
    "other letters": ("/\u72d0?q=\u00e4", "/%E7%8B%90?q=%C3%A4"),
    "no path": ("?a=%2F", "/?a=%2F"),
    "an empty query": ("/a.mp4?", None),
    "two slashes": ("//a//b?c//d", None),
    "a host as the path": ("/http://a.example/b?c=http://d.example/", None),
    "a fragment behind an empty query": ("/a?#b?c", "/a?"),
    "a fragment": ("/a%2Fb#c", "/a%2Fb"),
}


@pytest.mark.parametrize(("path", "sent"), URLS.values(), ids=URLS.keys())
@pytest.mark.parametrize("is_redirected", [False, True], ids=["at once", "redirected"])
async def test_a_url_is_sent_byte_for_byte(
    harness: DownloadHarness, path: str, sent: str | None, is_redirected: bool
) -> None:
    """A signature is over its bytes; only characters that cannot be sent are quoted."""
    async with raw_server(whole()) as server:
        url = server.url.rstrip("/") + path
        async with raw_server(away(url)) as first:
            await harness.save(first.url if is_redirected else url)
        assert server.requests[0].split(b" HTTP")[0] == f"GET {sent or path}".encode()


@pytest.mark.parametrize(
    ("location", "sent"),
    [
        ("/a/../b?c=%2f'", "/a/../b?c=%2f'"),
        ("/a?", "/a?"),
        ("//HOST/./a?", "/./a?"),
        ("?c=%2f", "/x/y?c=%2f"),
        ("z%2f?c", "/x/z%2f?c"),
        ("/a#b", "/a"),
    ],
)
async def test_a_relative_location_keeps_its_bytes(
    harness: DownloadHarness, location: str, sent: str
) -> None:
    """It is sent as it is; the parts that it lacks are those of the URL before."""
    async with raw_server(b"", whole()) as server:
        server.answers[0] = away(location.replace("HOST", server.url.split("/")[2]))
        await harness.save(f"{server.url}x/y")
        assert server.requests[1].split(b" HTTP")[0] == f"GET {sent}".encode()


async def test_the_bytes_of_a_location_are_quoted(harness: DownloadHarness) -> None:
    """Latin-1 in a header is quoted byte by byte."""
    head = away("/caf*").replace(b"*", b"\xe9")
    async with raw_server(head, whole()) as server:
        await harness.save(server.url)
        assert server.requests[1].startswith(b"GET /caf%E9 ")


async def test_an_international_host_is_sent_as_idna(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request has the host's ASCII form."""
    seen: list[Any] = []

    async def get(self: Any, url: Any, **options: Any) -> Any:
        seen.append(url)
        raise OSError

    monkeypatch.setattr("aiohttp.ClientSession.get", get)
    with pytest.raises(DownloadIncomplete):
        await harness.save("https://b\u00fccher.example:444/\u00e4?b=%2f")
    assert str(seen[0]) == "https://xn--bcher-kva.example:444/%C3%A4?b=%2f"


async def test_credentials_in_a_url_replace_the_key(harness: DownloadHarness) -> None:
    """A request can have one kind only, and those in the URL are meant for its host."""
    async with raw_server(whole()) as server:
        url = server.url.replace("http://", "http://user:word@")
        await harness.save(url, origin=origin_of(server.url))
        assert b"Authorization: Basic dXNlcjp3b3Jk" in server.requests[0]
        assert KEY.encode() not in server.requests[0]


LINK_LOCAL = [
    "http://169.254.169.254/latest/meta-data",
    "http://169.254.1.2:8080/",
    "http://169.254.169.254./",
    "http://2852039166/",
    "http://0xa9fea9fe/",
    "http://0251.0376.0251.0376/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[::ffff:169.254.169.254]/",
]


@pytest.mark.parametrize("url", LINK_LOCAL)
@pytest.mark.parametrize("is_redirected", [False, True], ids=["at once", "redirected"])
async def test_a_link_local_address_is_never_requested(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch, url: str, is_redirected: bool
) -> None:
    """A cloud's metadata service has such an address, in any spelling; a clip never has."""
    async with raw_server(away(url), closes=True) as server:
        with pytest.raises(DownloadRefused, match=r"link-local|not http\(s\)"):
            await harness.save(server.url if is_redirected else url)
        assert len(server.requests) == is_redirected
    assert list(harness.path.parent.iterdir()) == []


@attrs.define
class Hosts:
    """Stands for the transport: hosts that redirect to each other."""

    leads: Mapping[str, str]
    fetches: list[tuple[str, Mapping[str, str]]] = attrs.field(factory=list)

    @asynccontextmanager
    async def stream(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[Any]:
        self.fetches.append((url, headers))
        yield attrs.make_class("Answer", ["status", "headers"])(302, {"Location": self.leads[url]})

    def until_closed(self) -> Any:
        return nullcontext()


@pytest.mark.parametrize("end", ["http://cdn.example/b", "HTTP://cdn.example/b"])
async def test_a_redirect_from_https_to_http_is_not_followed(
    harness: DownloadHarness, end: str
) -> None:
    """A clip requested over https is never requested over http."""
    hosts = Hosts({"https://api.example/a": "HTTPS://cdn.example/a", "HTTPS://cdn.example/a": end})
    patched = attrs.evolve(harness.downloader, transport=hosts)
    harness = attrs.evolve(harness, downloader=patched)
    with pytest.raises(DownloadRefused, match="from https to http"):
        await harness.save("https://api.example/a", origin="https://api.example:443")
    assert hosts.fetches == [
        ("https://api.example/a", {"Authorization": KEY}),
        ("HTTPS://cdn.example/a", {}),
    ]


# Progress


async def test_an_async_progress_callback_is_awaited(harness: DownloadHarness) -> None:
    """The download continues when it is done."""
    seen: list[Progress] = []

    async def listen(progress: Progress) -> None:
        await asyncio.sleep(0)
        seen.append(progress)

    async with raw_server(whole(LARGE)) as server:
        await harness.save(server.url, on_progress=listen)
    assert seen[-1] == Progress(len(LARGE), len(LARGE))
    assert harness.path.read_bytes() == LARGE


@pytest.mark.parametrize(
    "error", [BrokenPipeError, TimeoutError, ValueError, asyncio.CancelledError]
)
async def test_the_error_of_a_progress_callback_is_not_translated(
    harness: DownloadHarness, error: type[BaseException]
) -> None:
    """It is taken neither for a full disk, nor for a broken connection, nor for a bad URL."""

    def fail(progress: Progress) -> None:
        raise error

    async with raw_server(whole()) as server:
        with pytest.raises(error) as caught:
            await harness.save(server.url, on_progress=fail)
        assert len(server.requests) == 1
    assert type(caught.value) is error
    assert harness.recorder.all(DownloadFailed) == [
        DownloadFailed("t-1", len(VIDEO), error.__name__)
    ]
    assert harness.part == VIDEO
