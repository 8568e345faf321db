import asyncio
import json
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest

from fuhu_runway.testing import Simulator, faults

BODY = {"callback_url": "https://callback.invalid/", "prompt": "a kitten", "model": "gen4"}
KEY = {"Authorization": "Bearer sk-simulated"}


async def task_of(gateway: Simulator, task_id: str | None = None) -> dict[str, Any]:
    """Return the feed's response about a task, by default about a new one."""
    async with aiohttp.ClientSession(gateway.base_url, headers=KEY) as session:
        if task_id is None:
            async with session.post("/runway/pro/generate", json=BODY) as response:
                task_id = (await response.json())["data"]["task_id"]
        async with session.post("/runway/feed", json={"task_id": task_id}) as response:
            data: dict[str, Any] = json.loads(await response.text())["data"]
            return data


async def get(
    url: str, *, follow: bool = False, method: str = "GET", **headers: str
) -> tuple[int, bytes, Mapping[str, str]]:
    """Send one request for a file, without the key."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, headers=named, allow_redirects=follow) as response,
    ):
        return response.status, await response.read(), response.headers


def boxes(video: bytes) -> list[bytes]:
    """Return the kinds of the boxes of an MP4 file."""
    kinds, at = [], 0
    while at < len(video):
        kinds.append(video[at + 4 : at + 8])
        at += int.from_bytes(video[at : at + 4], "big")
    assert at == len(video)
    return kinds


async def test_each_task_has_its_own_clip() -> None:
    """The clip is an MP4 with its index first, and its last box names the task."""
    async with Simulator(takes=0.0) as gateway:
        first, second = await task_of(gateway), await task_of(gateway)
        status, video, headers = await get(first["video_url"])
        other = (await get(second["video_url"]))[1]
    assert (status, headers["Content-Type"]) == (200, "video/mp4")
    assert boxes(video) == [b"ftyp", b"moov", b"free", b"mdat", b"free"]
    assert first["task_id"].encode() in video
    assert first["task_id"].encode() not in other
    assert len(video) == len(other) < 60_000


async def test_the_pictures_are_png() -> None:
    """Poster and last frame are served with the same signature."""
    async with Simulator(takes=0.0) as gateway:
        task = await task_of(gateway)
        for name in ("poster", "last_frame"):
            status, picture, headers = await get(task[name])
            assert (status, headers["Content-Type"]) == (200, "image/png")
            assert picture.startswith(b"\x89PNG")


async def test_the_video_can_be_replaced() -> None:
    """The given bytes are served unchanged for every task."""
    async with Simulator(takes=0.0, video=b"my own") as gateway:
        assert (await get((await task_of(gateway))["video_url"]))[1] == b"my own"


async def test_a_head_request_has_no_body() -> None:
    """HEAD returns length and ETag only."""
    async with Simulator(takes=0.0) as gateway:
        status, body, headers = await get((await task_of(gateway))["video_url"], method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 10_000


# The key.


async def test_a_key_on_the_second_origin_is_a_leak() -> None:
    """A key in a header or in the URL is reported, and a request without one is not."""
    async with Simulator(takes=0.0) as gateway, aiohttp.ClientSession() as session:
        url = (await task_of(gateway))["video_url"]
        await get(url)
        assert not gateway.leaked
        await get(url, Authorization="Bearer sk-simulated")
        await get(url, X_Api_Key="sk-simulated")
        await session.get(f"{url}&key=sk-simulated")
        assert [seen.origin for seen in gateway.leaked] == ["cdn"] * 3


async def test_a_key_must_not_follow_a_redirect() -> None:
    """With `redirect` the first hop may have the key, the second must not."""
    async with Simulator(takes=0.0, media="redirect") as gateway:
        url = (await task_of(gateway))["video_url"]
        assert url.startswith(gateway.base_url)
        status, _, headers = await get(url, Authorization="Bearer sk-simulated")
        assert (status, len(gateway.leaked)) == (302, 0)
        assert headers["Location"].startswith(gateway.cdn_url)
        assert (await get(url, follow=True))[0] == 200
        await get(headers["Location"], Authorization="Bearer sk-simulated")
        assert len(gateway.leaked) == 1


async def test_files_may_come_from_the_api_itself() -> None:
    """With `api` there is only one origin, and so no leak."""
    async with Simulator(takes=0.0, media="api") as gateway:
        url = (await task_of(gateway))["video_url"]
        assert url.startswith(gateway.base_url)
        assert (await get(url, Authorization="Bearer sk-simulated"))[0] == 200
        assert not gateway.leaked


# Links.


@pytest.mark.parametrize("name", ["nothing.mp4", "3d957031-9a2a-45e2-9dc7-bc8513059c50.mp4"])
async def test_an_unknown_file_is_not_found(name: str) -> None:
    """A name without an id and an id without a task are both a 404."""
    async with Simulator() as gateway:
        folder = f"{gateway.cdn_url}/attachments/video/runway/20241213"
        assert (await get(f"{folder}/{name}"))[0] == 404


async def test_a_link_needs_its_signature() -> None:
    """Without the signature, or with another, the file is forbidden."""
    async with Simulator(takes=0.0) as gateway:
        url = (await task_of(gateway))["video_url"].partition("?")[0]
        assert (await get(url))[0] == 403
        assert (await get(f"{url}?_jwt=x"))[0] == 403


@pytest.mark.usefixtures("virtual")
async def test_a_link_expires_and_the_feed_returns_a_new_one() -> None:
    """After its lifetime the old link stays expired, and the feed's new one works."""
    async with Simulator(takes=0.0, link_lifetime=60.0, expired_status=410) as gateway:
        task = await task_of(gateway)
        await asyncio.sleep(59)
        assert (await task_of(gateway, task["task_id"]))["video_url"] == task["video_url"]
        assert (await get(task["video_url"]))[0] == 200
        await asyncio.sleep(1)
        assert (await get(task["video_url"]))[0] == 410
        new = await task_of(gateway, task["task_id"])
        assert new["video_url"] != task["video_url"]
        assert (await get(new["video_url"]))[0] == 200
        assert (await get(task["video_url"]))[0] == 410


@pytest.mark.parametrize("status", [403, 404, 410])
async def test_a_link_may_expire_early(status: int) -> None:
    """The link stays expired until the next poll."""
    async with Simulator(takes=0.0) as gateway:
        task = await task_of(gateway)
        gateway.fault("download", faults.ExpiredLink(status))
        assert [(await get(task["video_url"]))[0] for _ in range(2)] == [status, status]
        task = await task_of(gateway, task["task_id"])
        assert (await get(task["video_url"]))[0] == 200


# Ranges.


@pytest.mark.parametrize(
    ("requested", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=12000-", 12000, None), ("bytes=-5", -5, None)],
)
async def test_a_range_is_served(requested: str, start: int, stop: int | None) -> None:
    """A single range, from either end, returns 206 and those bytes."""
    async with Simulator(takes=0.0) as gateway:
        url = (await task_of(gateway))["video_url"]
        _, video, _ = await get(url)
        status, part, headers = await get(url, Range=requested)
    assert (status, part) == (206, video[start:stop])
    first = start % len(video)
    assert headers["Content-Range"] == f"bytes {first}-{first + len(part) - 1}/{len(video)}"


async def test_a_range_beyond_the_end_is_a_416() -> None:
    """The true length is in the header."""
    async with Simulator(takes=0.0, video=b"0123") as gateway:
        status, _, headers = await get((await task_of(gateway))["video_url"], Range="bytes=4-")
    assert (status, headers["Content-Range"]) == (416, "bytes */4")


async def test_a_range_in_another_unit_is_ignored() -> None:
    """The response is the whole file."""
    async with Simulator(takes=0.0, video=b"0123") as gateway:
        status, video, _ = await get((await task_of(gateway))["video_url"], Range="pages=1-2")
    assert (status, video) == (200, b"0123")


async def test_a_range_needs_the_same_version() -> None:
    """If-Range may be the ETag or the date; anything else returns the whole file."""
    async with Simulator(takes=0.0) as gateway:
        url = (await task_of(gateway))["video_url"]
        _, _, headers = await get(url)
        for condition, status in (
            (headers["ETag"], 206),
            (headers["Last-Modified"], 206),
            ('"another"', 200),
        ):
            assert (await get(url, Range="bytes=5-", If_Range=condition))[0] == status


# Faults of downloads.


async def test_a_cut_download_can_be_resumed() -> None:
    """The first connection closes half-way; a range returns the rest."""
    async with Simulator(takes=0.0) as gateway, aiohttp.ClientSession() as session:
        url = (await task_of(gateway))["video_url"]
        gateway.fault("download", faults.Cut(5000))
        async with session.get(url) as response:
            head = await response.content.readexactly(5000)
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        status, rest, _ = await get(url, Range="bytes=5000-", If_Range=response.headers["ETag"])
    assert status == 206
    assert boxes(head + rest)[0] == b"ftyp"


async def test_a_download_may_be_cut_before_its_first_byte() -> None:
    """The head is sent, but no byte of the body."""
    async with Simulator(takes=0.0) as gateway:
        gateway.fault("download", faults.Cut(0))
        with pytest.raises(aiohttp.ClientPayloadError):
            await get((await task_of(gateway))["video_url"])


async def test_a_range_may_be_ignored() -> None:
    """The response to a range is a 200 with the whole file."""
    async with Simulator(takes=0.0, video=b"0123") as gateway:
        gateway.fault("download", faults.IgnoresRange())
        status, video, _ = await get((await task_of(gateway))["video_url"], Range="bytes=2-")
    assert (status, video) == (200, b"0123")


async def test_a_content_range_may_be_wrong() -> None:
    """The header names other bytes than the body has; a whole response has no such header."""
    async with Simulator(takes=0.0, video=b"0123456789") as gateway:
        url = (await task_of(gateway))["video_url"]
        gateway.fault("download", faults.WrongContentRange(shift=2), times=2)
        _, part, headers = await get(url, Range="bytes=4-6")
        whole = await get(url)
    assert (part, headers["Content-Range"]) == (b"456", "bytes 6-8/10")
    assert "Content-Range" not in whole[2]


@pytest.mark.parametrize(("honours", "status"), [(True, 200), (False, 206)])
async def test_the_file_may_change_during_a_download(*, honours: bool, status: int) -> None:
    """A new version has a new ETag, and is served whole or, if requested, in part."""
    async with Simulator(takes=0.0) as gateway:
        url = (await task_of(gateway))["video_url"]
        _, old, before = await get(url)
        gateway.fault("download", faults.Changed(honours_if_range=honours))
        answer, _, after = await get(url, Range="bytes=5-", If_Range=before["ETag"])
        assert answer == status
        assert after["ETag"] != before["ETag"]
        _, new, still = await get(url)
        assert still["ETag"] == after["ETag"]
        assert (len(new), new == old) == (len(old), False)


async def test_a_length_may_be_too_small() -> None:
    """A client that trusts the header gets a truncated file."""
    async with Simulator(takes=0.0, video=b"0123456789") as gateway:
        gateway.fault("download", faults.WrongLength(by=-4))
        assert (await get((await task_of(gateway))["video_url"]))[1] == b"012345"


async def test_a_length_may_be_too_large() -> None:
    """The connection closes before the announced length was sent."""
    async with Simulator(takes=0.0, video=b"0123456789") as gateway:
        gateway.fault("download", faults.WrongLength(by=4))
        with pytest.raises(aiohttp.ClientPayloadError):
            await get((await task_of(gateway))["video_url"])


@pytest.mark.parametrize("status", [301, 302, 307])
async def test_a_download_may_be_redirected(status: int) -> None:
    """A redirect leads to the same file on the other origin."""
    async with Simulator(takes=0.0) as gateway:
        url = (await task_of(gateway))["video_url"]
        gateway.fault("download", faults.Redirect(status), times=2)
        answer, _, headers = await get(url)
        assert answer == status
        assert headers["Location"] == url.replace(gateway.cdn_url, gateway.base_url)
        assert (await get(url, follow=True))[0] == 200


async def test_a_redirect_may_be_endless() -> None:
    """The redirect leads to its own URL."""
    async with Simulator(takes=0.0) as gateway:
        gateway.fault("download", faults.Redirect(loop=True), times=None)
        with pytest.raises(aiohttp.TooManyRedirects):
            await get((await task_of(gateway))["video_url"], follow=True)


@pytest.mark.usefixtures("virtual")
async def test_a_download_may_trickle() -> None:
    """A thousand bytes at a hundred per second take ten seconds."""
    async with Simulator(takes=0.0, video=bytes(1000)) as gateway:
        url = (await task_of(gateway))["video_url"]
        gateway.fault("download", faults.SlowBody(bytes_per_second=100.0))
        begun = asyncio.get_running_loop().time()
        _, video, _ = await get(url)
        assert len(video) == 1000
        assert asyncio.get_running_loop().time() - begun == pytest.approx(10.0, abs=0.5)


async def test_a_page_may_come_instead_of_a_video() -> None:
    """The response is HTML with status 200."""
    async with Simulator(takes=0.0) as gateway:
        gateway.fault("download", faults.html_page())
        status, page, headers = await get((await task_of(gateway))["video_url"])
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert page.startswith(b"<!doctype html>")


async def test_a_script_may_spoil_its_own_download() -> None:
    """A script's fault on downloads happens only to its task's clip."""
    async with Simulator(takes=0.0) as gateway:
        gateway.script(faults=[faults.on("download", faults.server_error(503))])
        cursed, plain = await task_of(gateway), await task_of(gateway)
        assert (await get(plain["video_url"]))[0] == 200
        assert [(await get(cursed["video_url"]))[0] for _ in range(2)] == [503, 200]
