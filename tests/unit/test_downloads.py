import asyncio
import errno
import logging
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.clients import QUICK_RETRY, others
from support.clock import settle, until
from support.desk import (
    KEY,
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
from support.secrets import told
from support.servers import free_port, raw_server, reply

from fuhu_runway import downloads
from fuhu_runway._part import Part
from fuhu_runway.downloads import BUFFER_BYTES, Progress, Source, origin_of
from fuhu_runway.errors import (
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
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """Yield a downloader that pauses without losing time, and has no patience."""
    async with open_desk(tmp_path) as opened:
        yield opened


# A file appears whole or not at all


async def test_a_clip_is_saved(desk: Desk) -> None:
    """The file holds every byte, nothing lies beside it, and two events tell of it."""
    seen: list[Progress] = []
    async with raw_server(whole()) as server:
        assert await desk.save(server.url, on_progress=seen.append) == desk.path
    assert desk.path.read_bytes() == VIDEO
    assert desk.is_clean()
    assert seen[-1] == Progress(len(VIDEO), len(VIDEO))
    assert desk.ear.heard == [
        DownloadStarted("t-1", 0, len(VIDEO)),
        DownloadFinished("t-1", len(VIDEO)),
    ]


async def test_a_large_clip_is_saved(desk: Desk) -> None:
    """A file of several buffers comes whole, and the progress only grows."""
    seen: list[int] = []
    async with raw_server(whole(LARGE)) as server:
        await desk.save(
            server.url, on_progress=lambda progress: seen.append(progress.received_bytes)
        )
    assert desk.path.read_bytes() == LARGE
    assert seen == sorted(seen)


async def test_the_old_file_stays_until_the_new_one_is_whole(desk: Desk) -> None:
    """Replacing happens in one step, at the end."""
    desk.path.write_bytes(b"old")
    async with raw_server(whole()) as server:
        server.may_answer.clear()
        saving = asyncio.ensure_future(desk.save(server.url, overwrite=True))
        await server.asked.wait()
        assert desk.path.read_bytes() == b"old"
        server.may_answer.set()
        await saving
    assert desk.path.read_bytes() == VIDEO
    assert desk.is_clean()


def test_progress_knows_its_fraction() -> None:
    """It is a part of one where the size is known, and nothing otherwise."""
    assert Progress(25, 100).fraction == 0.25
    assert Progress(25, None).fraction is None
    assert Progress(0, 0).fraction is None


# Going on where it broke off


async def test_a_break_is_resumed(desk: Desk) -> None:
    """The second attempt asks for the rest of the same version, and only for that."""
    async with raw_server(half(), rest(1000), closes=True) as server:
        await desk.save(server.url)
        ranges = [range_of(request) for request in server.requests]
    assert ranges == [(None, None), ("bytes=1000-", TAG)]
    assert desk.path.read_bytes() == VIDEO
    assert desk.ear.heard == [
        DownloadStarted("t-1", 0, len(VIDEO)),
        DownloadBroken("t-1", 1000, desk.clock.slept[0]),
        DownloadStarted("t-1", 1000, len(VIDEO)),
        DownloadFinished("t-1", len(VIDEO)),
    ]
    assert len(desk.clock.slept) == 1


async def test_what_an_earlier_process_left_is_resumed(desk: Desk) -> None:
    """A part with its note is the start of the file, also after a crash."""
    desk.leave_part(VIDEO[:700])
    async with raw_server(rest(700)) as server:
        await desk.save(server.url)
        assert range_of(server.requests[0]) == ("bytes=700-", TAG)
    assert desk.path.read_bytes() == VIDEO
    assert desk.is_clean()


async def test_a_weak_tag_is_not_good_enough(desk: Desk) -> None:
    """If-Range is asked with the date then: a weak ETag allows other bytes (RFC 9110 13.1.5)."""
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    start = half(ETag='W/"v-1"', Last_Modified=date)
    end = rest(1000, ETag='W/"v-1"', Last_Modified=date)
    async with raw_server(start, end, closes=True) as server:
        await desk.save(server.url)
        assert range_of(server.requests[1]) == ("bytes=1000-", date)
    assert desk.path.read_bytes() == VIDEO


async def test_a_version_without_a_name_is_not_resumed(desk: Desk) -> None:
    """A server that names neither tag nor date is asked for the whole again."""
    async with raw_server(half(ETag=""), whole(ETag=""), closes=True) as server:
        await desk.save(server.url)
        assert range_of(server.requests[1]) == (None, None)
    assert desk.path.read_bytes() == VIDEO


async def test_a_rest_that_does_not_repeat_its_tag_is_taken(desk: Desk) -> None:
    """A 206 to an If-Range is of that version, even if it does not say so again."""
    async with raw_server(half(), rest(1000, ETag=""), closes=True) as server:
        await desk.save(server.url)
    assert desk.path.read_bytes() == VIDEO


OTHER = VIDEO[:-1] + b"!"
UNFIT = {
    "whole again": (whole(),),
    "another place": (rest(1000, Content_Range=f"bytes 1001-{len(VIDEO)}/{len(VIDEO)}"), whole()),
    "another version": (rest(1000, OTHER, ETag='"v-2"'), whole()),
    "no range told": (rest(1000, Content_Range=""), whole()),
    "nothing there": (reply(b"", "416 No", Content_Range="bytes */5"), whole()),
    "nothing told": (reply(b"", "416 No"), whole()),
    "another size": (rest(1000, VIDEO + b"more", ETag=""), whole()),
    "compressed": (rest(1000, Content_Encoding="gzip"), whole()),
    "a range of 5,000 digits": (
        rest(1000, Content_Range=f"bytes 1000-{9:05000d}/{9:05000d}"),
        whole(),
    ),
}


@pytest.mark.parametrize("answers", UNFIT.values(), ids=UNFIT.keys())
async def test_a_rest_that_does_not_fit_is_thrown_away(
    desk: Desk, answers: tuple[bytes, ...]
) -> None:
    """Whatever the server has in place of the rest, the file ends up whole and of one version."""
    async with raw_server(half(), *answers, closes=True) as server:
        await desk.save(server.url)
        assert range_of(server.requests[1]) == ("bytes=1000-", TAG)
        assert len(server.requests) == 1 + len(answers)
    assert desk.path.read_bytes() == VIDEO
    assert desk.is_clean()


async def test_a_part_that_is_all_of_it_is_only_renamed(desk: Desk) -> None:
    """After a crash just before the rename, a 416 that tells the same size is enough."""
    desk.leave_part(VIDEO)
    nothing = reply(b"", "416 No", Content_Range=f"bytes */{len(VIDEO)}")
    async with raw_server(nothing) as server:
        await desk.save(server.url)
    assert desk.path.read_bytes() == VIDEO
    assert desk.is_clean()


async def test_a_length_that_promises_too_much_is_found_out(desk: Desk) -> None:
    """Ten bytes that never come are asked for, and the server says that there are none."""
    promise = whole(Content_Length=str(len(VIDEO) + 10))
    nothing = reply(b"", "416 No", Content_Range=f"bytes */{len(VIDEO)}")
    async with raw_server(promise, nothing, closes=True) as server:
        await desk.save(server.url)
    assert desk.path.read_bytes() == VIDEO


async def test_a_part_of_the_rest_is_gone_on_from(desk: Desk) -> None:
    """A server that gives less than was asked for is asked for the remainder."""
    middle = reply(
        VIDEO[1000:2000],
        "206 Partial Content",
        ETag=TAG,
        Content_Range=f"bytes 1000-1999/{len(VIDEO)}",
    )
    async with raw_server(half(), middle, rest(2000), closes=True) as server:
        await desk.save(server.url)
    assert desk.path.read_bytes() == VIDEO


async def test_without_a_length_the_boxes_tell(desk: Desk) -> None:
    """A file whose last box is cut is not whole, however well the answer ended."""
    async with raw_server(chunked(VIDEO[:2000]), rest(2000)) as server:
        await desk.save(server.url)
        assert range_of(server.requests[1]) == ("bytes=2000-", TAG)
    assert desk.path.read_bytes() == VIDEO


@pytest.mark.parametrize("make", [whole, chunked], ids=["length", "chunks"])
@pytest.mark.parametrize("tail", [b"\n", b"garbage behind it"], ids=["newline", "garbage"])
async def test_bytes_behind_the_last_box_are_fine(desk: Desk, make: Any, tail: bytes) -> None:
    """A length that was kept, or the end of a chunked body, proves that all came."""
    async with raw_server(make(VIDEO + tail)) as server:
        await desk.save(server.url)
        assert len(server.requests) == 1
    assert desk.path.read_bytes() == VIDEO + tail


async def test_a_length_that_cuts_the_file_is_not_believed(desk: Desk) -> None:
    """A Content-Length that ends inside a box is a cut file, which is fetched anew."""
    async with raw_server(whole(VIDEO[:2000]), whole()) as server:
        await desk.save(server.url)
        assert range_of(server.requests[1]) == (None, None)
    assert desk.path.read_bytes() == VIDEO


# What is no clip


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
async def test_what_is_no_mp4_is_refused(desk: Desk, data: bytes) -> None:
    """A file of another kind in place of the clip is not kept, not even as a part."""
    async with raw_server(whole(data)) as server:
        with pytest.raises(DownloadRefused) as caught:
            await desk.save(server.url)
        assert len(server.requests) == 1
    assert caught.value.task_id == "t-1"
    assert "paid for" in str(caught.value)
    assert list(desk.path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "kind",
    [
        *("styp", "moov", "moof", "mdat", "sidx", "emsg", "prft"),
        *("meta", "free", "skip", "wide", "uuid", "pnot", "PICT"),
    ],
)
async def test_a_clip_may_begin_with_any_box_of_its_kind(desk: Desk, kind: str) -> None:
    """QuickTime has the index first, or a preview; a fragment has its own index first."""
    video = box(kind.encode(), b"x" * 20) + VIDEO
    async with raw_server(whole(video)) as server:
        await desk.save(server.url)
    assert desk.path.read_bytes() == video


async def test_a_clip_that_begins_byte_by_byte_is_one(desk: Desk) -> None:
    """The first chunks may be shorter than what tells an MP4."""
    async with raw_server(chunked(*(VIDEO[at : at + 1] for at in range(20)), VIDEO[20:])) as server:
        await desk.save(server.url)
    assert desk.path.read_bytes() == VIDEO


@pytest.mark.parametrize("answer", [whole(), chunked(VIDEO)], ids=["told", "found out"])
async def test_a_clip_that_is_too_large_is_refused(desk: Desk, answer: bytes) -> None:
    """By what the server tells, or as the bytes arrive; nothing is kept, and the limit is named."""
    async with raw_server(answer) as server:
        with pytest.raises(DownloadRefused, match="larger than the 5,000 bytes"):
            await desk.save(server.url, max_bytes=5000)
    assert list(desk.path.parent.iterdir()) == []


async def test_a_clip_of_just_the_limit_is_saved(desk: Desk) -> None:
    """The limit itself is allowed."""
    async with raw_server(whole()) as server:
        await desk.save(server.url, max_bytes=len(VIDEO))
    assert desk.path.read_bytes() == VIDEO


@pytest.mark.parametrize("status", ["402 No", "451 No", "300 Which", "304 No", "226 Eh", "600 Eh"])
async def test_a_status_that_stays_is_refused(desk: Desk, status: str) -> None:
    """A refusal that another attempt does not change ends the download at once."""
    async with raw_server(reply(b"", status)) as server:
        with pytest.raises(DownloadRefused, match=status[:3]):
            await desk.save(server.url)
        assert len(server.requests) == 1


@pytest.mark.parametrize("span", ["bytes */0", "", f"bytes */{len(VIDEO)}", "bytes 0-0/1"])
async def test_no_range_where_none_was_asked_for_is_refused(desk: Desk, span: str) -> None:
    """A 416 to a plain request leaves no empty file behind."""
    async with raw_server(reply(b"", "416 No", Content_Range=span)) as server:
        with pytest.raises(DownloadRefused, match="416"):
            await desk.save(server.url)
        assert len(server.requests) == 1
    assert list(desk.path.parent.iterdir()) == []


# Repeating


@pytest.mark.parametrize(
    "status", ["500 No", "503 No", "530 No", "429 No", "408 No", "421 No", "425 No"]
)
async def test_a_status_that_passes_is_repeated(desk: Desk, status: str) -> None:
    """The same address is asked again, after as long as the server says."""
    async with raw_server(reply(b"", status, Retry_After="7"), whole()) as server:
        await desk.save(server.url)
    assert desk.path.read_bytes() == VIDEO
    assert desk.clock.slept == [7.0]
    assert desk.asked == [False, False]


async def test_a_refused_connection_is_repeated_and_then_told(desk: Desk) -> None:
    """After as many attempts as the policy has, `DownloadIncomplete` says what is kept: nothing."""
    with pytest.raises(DownloadIncomplete) as caught:
        await desk.save(f"http://127.0.0.1:{free_port()}/")
    assert caught.value.received_bytes == 0
    assert desk.ear.heard == [
        *(DownloadBroken("t-1", 0, delay) for delay in desk.clock.slept),
        DownloadFailed("t-1", 0, "DownloadIncomplete"),
    ]
    assert len(desk.asked) == QUICK_RETRY.attempts
    assert list(desk.path.parent.iterdir()) == []


async def test_attempts_that_bring_something_do_not_count(desk: Desk) -> None:
    """Twelve breaks, each with some bytes before it, end in the whole file."""
    steps = [half(stop=800)]
    for start in range(800, 9600, 800):
        lost = rest(start)
        steps.append(lost[: len(lost) - len(VIDEO) + start + 800])
    async with raw_server(*steps, rest(9600), closes=True) as server:
        await desk.save(server.url)
        assert len(server.requests) == 13
    assert desk.path.read_bytes() == VIDEO


async def test_what_came_is_kept(desk: Desk) -> None:
    """When repeating did not help, the error counts the bytes, and a later call goes on there."""
    async with raw_server(half(), None, closes=True) as server:
        with pytest.raises(DownloadIncomplete) as caught:
            await desk.save(server.url)
    assert len(desk.asked) == QUICK_RETRY.attempts
    assert caught.value.received_bytes == 1000
    assert desk.part == VIDEO[:1000]
    async with raw_server(rest(1000)) as server:
        await desk.save(server.url)
    assert desk.path.read_bytes() == VIDEO


# Addresses


@pytest.mark.parametrize("status", ["400 No", "401 No", "403 No", "404 No", "410 No"])
async def test_an_expired_address_is_asked_for_anew(desk: Desk, status: str) -> None:
    """At once, without a pause; and the fresh one is used."""
    async with raw_server(reply(b"", status)) as old, raw_server(whole()) as new:
        await desk.save(old.url, new.url)
        assert (len(old.requests), len(new.requests)) == (1, 1)
    assert desk.asked == [False, True]
    assert desk.clock.slept == []
    assert desk.ear.all(DownloadBroken) == [DownloadBroken("t-1", 0, 0.0)]
    assert desk.path.read_bytes() == VIDEO


async def test_an_address_that_stays_expired_comes_to_an_end(desk: Desk) -> None:
    """A fresh one is asked for as often as the policy has attempts, with pauses in between."""
    async with raw_server(reply(b"", "403 No")) as server:
        with pytest.raises(DownloadIncomplete, match="403"):
            await desk.save(server.url)
    assert desk.asked == [False] + [True] * QUICK_RETRY.attempts


async def test_trouble_with_a_fresh_address_is_repeated(desk: Desk) -> None:
    """A gateway that is down, or busy, while it is asked for one does not end the download."""
    texts = ("It said no.", "Nothing was charged.", "Do.", "t-1", None)
    trouble = [
        GatewayDown(*texts, 502, fate=Fate.UNKNOWN),
        RateLimited(*texts, 429, None, None, 9.0, Fate.REFUSED),
    ]
    async with raw_server(reply(b"", "403 No"), whole()) as server:

        async def address(fresh: bool) -> str:
            if fresh and trouble:
                raise trouble.pop(0)
            return server.url

        await desk.save_from(address)
    assert desk.path.read_bytes() == VIDEO
    assert desk.clock.slept[1:] == [9.0]


async def test_a_no_to_a_fresh_address_is_told(desk: Desk) -> None:
    """What asking again does not change is raised as it is."""

    async def address(fresh: bool) -> str:
        raise NotFound("It said no.", "Nothing was charged.", "Do.", "t-1")

    with pytest.raises(NotFound):
        await desk.save_from(address)


async def test_the_key_goes_to_its_origin_only(desk: Desk) -> None:
    """The API's own origin is shown the key; the host that it leads to is not."""
    async with raw_server(whole()) as cdn:
        away = reply(b"", "302 Away", Location=f"{cdn.url}clip.mp4?_jwt=1")
        async with raw_server(away) as api:
            await desk.save(f"{api.url}clip.mp4", origin=origin_of(api.url))
            assert KEY.encode() in api.requests[0]
        assert b"Authorization" not in cdn.requests[0]
        assert b"GET /clip.mp4?_jwt=1" in cdn.requests[0]
    assert desk.path.read_bytes() == VIDEO


@pytest.mark.parametrize("status", ["301 A", "302 A", "303 A", "307 A", "308 A"])
async def test_a_redirect_is_followed(desk: Desk, status: str) -> None:
    """Whatever kind of redirect; its address may be relative, and the range goes along."""
    desk.leave_part(VIDEO[:700])
    async with raw_server(reply(b"", status, Location="../b?c=1"), rest(700)) as server:
        await desk.save(f"{server.url}a/a")
        assert server.requests[1].startswith(b"GET /b?c=1 ")
        assert range_of(server.requests[1]) == ("bytes=700-", TAG)
    assert desk.path.read_bytes() == VIDEO


@pytest.mark.parametrize(
    "location",
    ["/again", "", "http://[", "svn+ssh://[", "ftp://127.0.0.1/a", "http://a b/", "//["],
)
async def test_a_redirect_that_leads_nowhere_is_refused(desk: Desk, location: str) -> None:
    """A loop comes to an end, and an address that is none is not tried."""
    async with raw_server(reply(b"", "302 Away", Location=location)) as server:
        with pytest.raises(DownloadRefused, match=r"redirects more|redirects to one"):
            await desk.save(server.url)
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
@pytest.mark.parametrize("is_led_to", [False, True], ids=["at once", "by a redirect"])
async def test_an_address_that_cannot_be_one_is_a_download_error(
    desk: Desk, address: str, is_led_to: bool
) -> None:
    """Whatever the HTTP library makes of it, one error says that the clip is paid for."""
    location = address.encode("utf-8", "surrogateescape").decode("latin1").replace("\0", "")
    away = reply(b"").replace(b"200 OK", f"302 Away\r\nLocation: {location}".encode("latin1"))
    async with raw_server(away) as server:
        with pytest.raises(DownloadError, match="paid for") as caught:
            await desk.save(server.url if is_led_to else address)
    assert caught.value.task_id == "t-1"
    assert list(desk.path.parent.iterdir()) == []


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


async def test_a_folder_that_is_gone_is_told(desk: Desk) -> None:
    """What cannot be opened is the caller's to mend, and nothing is asked for before."""
    desk.path = desk.path.parent / "gone" / "clip.mp4"
    with pytest.raises(UsageError, match="No such file") as caught:
        await desk.save("http://127.0.0.1/")
    assert isinstance(caught.value.__cause__, OSError)
    assert desk.asked == []
    assert desk.ear.heard == [DownloadFailed("t-1", 0, "UsageError")]


@pytest.mark.parametrize("name", ["x" * 251, "nul\0.mp4"], ids=["too long", "null"])
async def test_a_name_that_no_system_takes_is_told(desk: Desk, name: str) -> None:
    """Where no file can be opened, the path is to blame, and nothing is asked for before."""
    desk.path = desk.path.with_name(name)
    with pytest.raises(UsageError) as caught:
        await desk.save("http://127.0.0.1/")
    assert caught.value.field == "path"
    assert desk.asked == []


async def test_a_file_that_is_held_open_is_renamed_a_little_later(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows a virus scanner or an indexer may hold a file for a moment, as we do ourselves."""
    rename, failures = Path.replace, [PermissionError(errno.EACCES, "held") for _ in range(3)]

    def held(self: Path, target: Path) -> Path:
        if failures:
            raise failures.pop()
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", held)
    async with raw_server(whole()) as server:
        await desk.save(server.url)
    assert desk.path.read_bytes() == VIDEO
    assert desk.clock.slept == [0.05, 0.2, 0.5]
    assert desk.is_clean()


async def test_a_file_that_stays_held_open_is_kept(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is there under its other name, and the next download only renames it."""

    def held(self: Path, target: Path) -> Path:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    async with raw_server(whole()) as server:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", held)
            with pytest.raises(DownloadIncomplete, match="Permission denied") as caught:
                await desk.save(server.url)
    assert caught.value.received_bytes == len(VIDEO)
    assert desk.part == VIDEO
    nothing = reply(b"", "416 No", Content_Range=f"bytes */{len(VIDEO)}")
    async with raw_server(nothing) as server:
        await desk.save(server.url)
        assert range_of(server.requests[0]) == (f"bytes={len(VIDEO)}-", TAG)
    assert desk.path.read_bytes() == VIDEO


async def test_a_program_may_change_its_folder_meanwhile(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is that of the folder in which the download began."""
    home = desk.path.parent
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home)
    desk.path = Path("clip.mp4")
    async with raw_server(half(), rest(1000), closes=True) as server:
        await desk.save(server.url, on_progress=lambda _: os.chdir(home / "elsewhere"))
    assert (home / "clip.mp4").read_bytes() == VIDEO
    assert sorted(entry.name for entry in home.rglob("*")) == ["clip.mp4", "elsewhere"]


async def test_a_file_that_came_meanwhile_is_not_replaced(desk: Desk) -> None:
    """What another program has saved under the name stays, and so does the clip, as a part."""

    def another(progress: Progress) -> None:
        desk.path.write_bytes(b"mine")

    async with raw_server(whole()) as server:
        with pytest.raises(UsageError, match="already exists") as caught:
            await desk.save(server.url, on_progress=another)
    assert caught.value.money == "The clip exists and is paid for."
    assert desk.path.read_bytes() == b"mine"
    assert desk.part == VIDEO
    async with raw_server(rest(len(VIDEO) - 1), closes=True) as server:
        desk.leave_part(VIDEO[:-1])
        await desk.save(server.url, overwrite=True)
    assert desk.path.read_bytes() == VIDEO


# Leaving, and meeting


async def test_a_cancelled_download_goes_on_later(desk: Desk) -> None:
    """What came is kept, nothing stays open, and the next call asks for the rest."""
    async with raw_server(half(LARGE, BUFFER_BYTES + 5000)) as server:
        saving = asyncio.ensure_future(desk.save(server.url))
        await until(lambda: (desk.part or b"") != b"")
        saving.cancel()
        await asyncio.wait([saving])
        assert saving.cancelled()
    kept = desk.part or b""
    assert len(kept) >= BUFFER_BYTES
    assert LARGE.startswith(kept)
    assert others() == set()
    async with raw_server(rest(len(kept), LARGE)) as server:
        await desk.save(server.url)
    assert desk.path.read_bytes() == LARGE
    assert desk.is_clean()


async def test_a_write_that_is_cancelled_is_written_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation while the disk is slow waits for it, and no byte is there twice."""
    begun, may_end = threading.Event(), threading.Event()
    write = Part.write

    def slow(part: Part, data: bytes, total: int | None) -> None:
        begun.set()
        may_end.wait()
        write(part, data, total)

    monkeypatch.setattr(Part, "write", slow)
    async with raw_server(whole(LARGE)) as server:
        saving = asyncio.ensure_future(desk.save(server.url))
        await until(begun.is_set)
        for _ in range(2):
            saving.cancel()
            await settle()
        assert not saving.done()
        may_end.set()
        await asyncio.wait([saving])
    assert saving.cancelled()
    assert len(desk.part or b"") >= BUFFER_BYTES
    assert LARGE.startswith(desk.part or b"")


async def test_a_fault_behind_a_cancellation_is_not_complained_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Work that fails after its caller was cancelled leaves no line in the log."""
    begun, may_end = threading.Event(), threading.Event()

    def fail() -> None:
        begun.set()
        may_end.wait()
        raise OSError

    working = asyncio.ensure_future(downloads._in_thread(fail))
    await until(begun.is_set)
    working.cancel()
    may_end.set()
    await asyncio.wait([working])
    assert working.cancelled()
    assert caplog.records == []


async def test_a_reader_that_raises_ends_its_download(desk: Desk) -> None:
    """What `on_progress` raises comes out as it is, and what came is kept."""

    def burst(progress: Progress) -> None:
        raise ZeroDivisionError

    async with raw_server(whole()) as server:
        with pytest.raises(ZeroDivisionError):
            await desk.save(server.url, on_progress=burst)
    assert VIDEO.startswith(desk.part or b"-")


async def test_two_downloads_to_one_file_do_not_meet(desk: Desk) -> None:
    """The second is a `UsageError`, however it spells the path; afterwards it is welcome."""
    first_path = desk.path
    async with raw_server(whole()) as server:
        server.may_answer.clear()
        first = asyncio.ensure_future(desk.save(server.url))
        await server.asked.wait()
        (first_path.parent / "sub").mkdir()
        for path in (first_path, first_path.parent / "sub" / ".." / "clip.mp4"):
            desk.path = path
            with pytest.raises(UsageError, match="already being downloaded") as caught:
                await desk.save(server.url)
            assert caught.value.field == "path"
        server.may_answer.set()
        await first
        await desk.save(server.url, overwrite=True)
    assert desk.path.read_bytes() == VIDEO


async def test_two_downloads_side_by_side(desk: Desk, tmp_path: Path) -> None:
    """Downloads to different files do not wait for each other."""
    async with raw_server(whole()) as server:
        server.may_answer.clear()
        twin = attrs.evolve(desk, path=tmp_path / "twin.mp4")
        saving = [asyncio.ensure_future(one.save(server.url)) for one in (desk, twin)]
        await until(lambda: len(server.requests) == 2)
        server.may_answer.set()
        await asyncio.gather(*saving)
    assert desk.path.read_bytes() == twin.path.read_bytes() == VIDEO


# No secrets


async def test_no_error_tells_an_address(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the key, nor the signed address, nor an IP address is in what is raised or logged."""
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
                await desk.save(f"{server.url}marked?_jwt=marked", origin=origin_of(server.url))
        assert told(caught.value, secrets) == [], answer
    assert not any(secret in f"{caplog.text}{desk.ear.heard}" for secret in secrets)


def test_a_source_shows_no_key() -> None:
    """Its repr has the id, and not what it authorises with."""

    async def address(fresh: bool) -> str:
        return "http://127.0.0.1/"

    assert KEY not in repr(Source("t-1", address, {"Authorization": KEY}, "http://a:80"))
