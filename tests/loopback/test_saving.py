import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import programs
from support.clients import QUICK_RETRY, EventRecorder, quick_client, without_pauses
from support.clock import until
from support.secrets import secrets_in

from fuhu_runway import GATEWAYS, Client, Clip, PollPolicy
from fuhu_runway.errors import ClipMissing, DownloadIncomplete, DownloadRefused, UsageError
from fuhu_runway.hooks import DownloadFinished, DownloadStarted
from fuhu_runway.testing import Simulator, faults
from fuhu_runway.testing.faults import Fault

PROMPT = "a marked kitten"
SECRETS = ("marked", "_jwt=", "127.0.0.1")
MIB = 2**20


def video_of(size: int) -> bytes:
    """Return an MP4 file of *size* bytes, no two parts of which are equal."""
    start = (16).to_bytes(4, "big") + b"ftypisom" + b"\0" * 4
    numbers = b"".join(number.to_bytes(4, "big") for number in range((size - 24) // 4))
    return start + (len(numbers) + 8).to_bytes(4, "big") + b"mdat" + numbers


@asynccontextmanager
async def a_clip(client: Client) -> AsyncIterator[Clip]:
    """Make one clip."""
    async with client:
        yield await (await client.generate(PROMPT)).wait(timeout=10)


def downloads(gateway: Simulator) -> list[Any]:
    """Return every request for a file."""
    return [seen for seen in gateway.requests if seen.where == "download"]


async def test_a_key_in_the_body_is_in_no_header(tmp_path: Path) -> None:
    """A key that belongs in the body is sent nowhere else, also not for the file."""
    async with Simulator(speed=1000, takes=20, api_key="sk-marked", key_style="body") as gateway:
        duomi = attrs.evolve(GATEWAYS["duomi"], base_url=gateway.base_url)
        async with a_clip(Client("sk-marked", gateway=duomi)) as clip:
            await clip.download(tmp_path / "clip.mp4")
        assert (tmp_path / "clip.mp4").is_file()
        assert gateway.requests
        assert not any("authorization" in str(seen.headers).lower() for seen in gateway.requests)
        assert not any("marked" in seen.path for seen in gateway.requests)


PASSING: dict[str, list[Fault]] = {
    "no fault": [],
    "cut": [faults.Cut(9000)],
    "cut often": [faults.Cut(9000), faults.Cut(3000), faults.Cut(3000)],
    "drop": [faults.Drop()],
    "reset": [faults.Drop(reset=True)],
    "range ignored": [faults.Cut(9000), faults.IgnoresRange()],
    "wrong range": [faults.Cut(9000), faults.WrongContentRange()],
    "changed": [faults.Cut(9000), faults.Changed()],
    "changed in secret": [faults.Cut(9000), faults.Changed(honours_if_range=False)],
    "too long a length": [faults.WrongLength(10)],
    "too short a length": [faults.WrongLength(-10)],
    "redirect": [faults.Redirect()],
    "permanent redirect": [faults.Redirect(308)],
    "expired": [faults.ExpiredLink()],
    "gone": [faults.ExpiredLink(410)],
    "expired on the way": [faults.Cut(9000), faults.ExpiredLink(404)],
    "down": [faults.server_error(503)],
    "busy": [faults.TooManyRequests()],
    "everything": [
        faults.server_error(502),
        faults.Cut(9000),
        faults.ExpiredLink(),
        faults.Cut(500),
        faults.WrongContentRange(),
        faults.Cut(20_000),
        faults.Drop(),
    ],
}


@pytest.mark.parametrize("sequence", PASSING.values(), ids=PASSING.keys())
async def test_the_file_is_whole_in_the_end(
    gateway: Simulator, tmp_path: Path, sequence: list[Fault]
) -> None:
    """After any fault it has every byte of one version; no other file and no key leaks."""
    target, recorder = tmp_path / "clip.mp4", EventRecorder()
    async with a_clip(quick_client(gateway, hooks=[recorder])) as clip:
        for fault in sequence:
            gateway.fault("download", fault)
        await clip.download(target)
    saved = target.read_bytes()
    mark = re.search(rb"simulated task (\S+) version (\d+)", saved[-80:])
    assert mark is not None
    assert mark[1].decode() == clip.id
    assert mark[2] == (b"002" if any(isinstance(f, faults.Changed) for f in sequence) else b"001")
    assert recorder.all(DownloadFinished) == [DownloadFinished(clip.id, len(saved))]
    assert not (tmp_path / "clip.mp4.part").exists()
    assert not (tmp_path / "clip.mp4.part.json").exists()
    assert (gateway.leaked, gateway.submitted) == ((), 1)


@pytest.mark.parametrize("sequence", PASSING.values(), ids=PASSING.keys())
@pytest.mark.parametrize("way", ["read", "stream"])
async def test_the_bytes_are_whole_in_the_end(
    gateway: Simulator, way: str, sequence: list[Fault]
) -> None:
    """After any fault a program that reads or streams has what a file would have."""
    recorder = EventRecorder()
    async with a_clip(quick_client(gateway, hooks=[recorder])) as clip:
        for fault in sequence:
            gateway.fault("download", fault)
        if way == "read":
            data = await clip.read()
        else:
            data = b"".join([chunk async for chunk in clip.stream()])
        assert data == await clip.read()
    assert {event.is_saved for event in recorder.all(DownloadFinished)} == {False}
    assert (gateway.leaked, gateway.submitted, clip.path) == ((), 1, None)


async def test_a_break_is_resumed(gateway: Simulator, tmp_path: Path) -> None:
    """The second request has Range and If-Range, and gets a 206."""
    recorder = EventRecorder()
    async with a_clip(quick_client(gateway, hooks=[recorder])) as clip:
        gateway.fault("download", faults.Cut(9000))
        await clip.download(tmp_path / "clip.mp4")
    first, second = downloads(gateway)
    assert "Range" not in first.headers
    assert (second.headers["Range"], second.status) == ("bytes=9000-", 206)
    assert second.headers["If-Range"].startswith('"')
    assert [event.resumed_at_bytes for event in recorder.all(DownloadStarted)] == [0, 9000]


REFUSED: dict[str, Fault] = {
    "redirect loop": faults.Redirect(loop=True),
    "legal reasons": faults.Response(451),
}


@pytest.mark.parametrize("fault", REFUSED.values(), ids=REFUSED.keys())
async def test_a_refused_download_leaves_no_file(
    gateway: Simulator, tmp_path: Path, fault: Fault
) -> None:
    """`DownloadRefused` says that the clip is paid for, and the folder stays empty."""
    async with a_clip(quick_client(gateway)) as clip:
        gateway.fault("download", fault, times=None)
        with pytest.raises(DownloadRefused) as caught:
            await clip.download(tmp_path / "clip.mp4")
    assert caught.value.task_id == clip.id
    assert secrets_in(caught.value, SECRETS) == []
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240
    assert gateway.leaked == ()


NOT_THERE: dict[str, Fault] = {
    "web page": faults.html_page(),
    "nothing of it": faults.not_json(),
    "accepted": faults.Response(202),
    "locked": faults.Response(423),
    "missing": faults.Response(404),
}


@pytest.mark.parametrize("fault", NOT_THERE.values(), ids=NOT_THERE.keys())
async def test_a_clip_that_is_late(gateway: Simulator, tmp_path: Path, fault: Fault) -> None:
    """Right after its task's end, a clip is requested more often than the policy allows."""
    policy = PollPolicy(first=0.01, max_interval=0.02, url_grace=60)
    client = quick_client(gateway, polling=policy)
    without_pauses(client)
    async with a_clip(client) as clip:
        gateway.fault("download", fault, times=20)
        await clip.download(tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").exists()
    assert gateway.leaked == ()


@pytest.mark.parametrize("fault", NOT_THERE.values(), ids=NOT_THERE.keys())
async def test_a_clip_that_never_appears(gateway: Simulator, tmp_path: Path, fault: Fault) -> None:
    """After `url_grace`, `DownloadIncomplete` says so, and the folder stays empty."""
    async with a_clip(quick_client(gateway)) as clip:
        gateway.fault("download", fault, times=None)
        with pytest.raises(DownloadIncomplete, match="not at its URL") as caught:
            await clip.download(tmp_path / "clip.mp4")
    assert caught.value.task_id == clip.id
    assert secrets_in(caught.value, SECRETS) == []
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240
    assert len(downloads(gateway)) >= QUICK_RETRY.attempts
    assert gateway.leaked == ()


async def test_a_clip_that_is_too_large(gateway: Simulator, tmp_path: Path) -> None:
    """It is refused before it is read, and saved with a larger limit."""
    async with a_clip(quick_client(gateway)) as clip:
        with pytest.raises(DownloadRefused, match="larger than the 1,000 bytes"):
            await clip.download(tmp_path / "clip.mp4", max_bytes=1000)
        await clip.download(tmp_path / "clip.mp4", max_bytes=MIB)


async def test_trouble_that_stays(gateway: Simulator, tmp_path: Path) -> None:
    """The bytes are kept for the next call; the error counts them and shows no URL."""
    target = tmp_path / "clip.mp4"
    async with a_clip(quick_client(gateway)) as clip:
        gateway.fault("download", faults.Cut(9000))
        gateway.fault("download", faults.Drop(), times=None)
        with pytest.raises(DownloadIncomplete) as caught:
            await clip.download(target)
    assert caught.value.received_bytes == 9000
    assert secrets_in(caught.value, SECRETS) == []
    assert (tmp_path / "clip.mp4.part").stat().st_size == 9000
    assert not target.exists()


async def test_a_url_that_expires_soon(tmp_path: Path) -> None:
    """Long after the wait, the feed is polled for a fresh URL, and the clip is saved."""
    simulator = Simulator(speed=1000, takes=20, link_lifetime=200)
    async with simulator, a_clip(quick_client(simulator)) as clip:
        await asyncio.sleep(0.21)
        old = clip.video_url
        await clip.download(tmp_path / "clip.mp4")
        assert clip.video_url != old
    statuses = [seen.status for seen in downloads(simulator)]
    assert (statuses[0], statuses[-1]) == (403, 200)


async def test_trouble_with_a_fresh_url(gateway: Simulator, tmp_path: Path) -> None:
    """A gateway that fails when polled for a fresh URL is polled again."""
    async with a_clip(quick_client(gateway)) as clip:
        gateway.fault("download", faults.ExpiredLink())
        gateway.fault("feed", faults.server_error(502))
        gateway.fault("feed", faults.Drop())
        await clip.download(tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").exists()


async def test_a_fresh_url_that_is_missing(gateway: Simulator, tmp_path: Path) -> None:
    """If the gateway no longer shows a URL, the download raises `ClipMissing`."""
    async with a_clip(quick_client(gateway)) as clip:
        gateway.fault("download", faults.ExpiredLink())
        gateway.fault("feed", faults.NoUrl(), times=None)
        with pytest.raises(ClipMissing):
            await clip.download(tmp_path / "clip.mp4")


@pytest.mark.parametrize(
    ("media", "shown"), [("cdn", [False]), ("api", [True]), ("redirect", [False])]
)
async def test_the_key_goes_to_the_gateway_only(
    tmp_path: Path, media: Any, shown: list[bool]
) -> None:
    """A file at the gateway's origin is requested with the key, one behind a redirect without."""
    simulator = Simulator(speed=1000, takes=20, media=media)
    async with simulator, a_clip(quick_client(simulator)) as clip:
        await clip.download(tmp_path / "clip.mp4")
    assert simulator.leaked == ()
    assert [seen.carried_key for seen in downloads(simulator)] == shown


async def test_two_downloads_of_one_clip(gateway: Simulator, tmp_path: Path) -> None:
    """To two files they run side by side; to one file the second is a `UsageError`."""
    async with a_clip(quick_client(gateway)) as clip:
        same = tmp_path / "same.mp4"
        outcomes = await asyncio.gather(
            *(clip.download(path) for path in (same, same, tmp_path / "other.mp4")),
            return_exceptions=True,
        )
    assert [type(one) for one in outcomes].count(UsageError) == 1
    assert same.read_bytes() == (tmp_path / "other.mp4").read_bytes()


async def test_a_large_clip_after_many_breaks(tmp_path: Path) -> None:
    """Five megabytes in pieces of odd sizes are saved byte for byte."""
    video, target = video_of(5 * MIB), tmp_path / "clip.mp4"
    simulator = Simulator(speed=1000, takes=20, video=video)
    async with simulator, a_clip(quick_client(simulator)) as clip:
        for size in (1, 70_000, MIB + 1, 1_234_567):
            simulator.fault("download", faults.Cut(size))
        simulator.fault("download", faults.SlowBody(1.0 * MIB))
        await clip.download(target)
    assert target.read_bytes() == video


KILLED = """
async def main():
    clip = await Client(polling=quick).task("{task_id}")
    await clip.download("{target}")

asyncio.run(main())
"""


async def test_a_program_that_is_killed(tmp_path: Path) -> None:
    """After kill -9 during a download, the next program continues, and the file is whole."""
    video, target = video_of(3 * MIB), tmp_path / "clip.mp4"
    part, note = tmp_path / "clip.mp4.part", tmp_path / "clip.mp4.part.json"
    simulator = Simulator(speed=1000, takes=20, video=video)
    async with simulator, a_clip(quick_client(simulator)) as clip:
        simulator.fault("download", faults.Hang(after_bytes=2 * MIB))
        process = await programs.start(simulator, KILLED.format(task_id=clip.id, target=target))
        # Bytes without a note would be requested again.
        await until(lambda: note.exists() and note.stat().st_size)
        process.kill()
        assert (await programs.end_of(process)).code == -9
        kept = json.loads(note.read_text())["size"]
        assert not target.exists()
        assert video.startswith(part.read_bytes())
        await clip.download(target)
    assert target.read_bytes() == video
    last = downloads(simulator)[-1]
    assert (last.headers["Range"], last.status) == (f"bytes={kept}-", 206)
    assert kept >= MIB


async def test_attempts_are_counted(gateway: Simulator, tmp_path: Path) -> None:
    """A URL that never works is requested as often as the policy allows."""
    recorder = EventRecorder()
    async with a_clip(quick_client(gateway, hooks=[recorder])) as clip:
        gateway.fault("download", faults.server_error(503), times=None)
        with pytest.raises(DownloadIncomplete):
            await clip.download(tmp_path / "clip.mp4")
    assert len(downloads(gateway)) == QUICK_RETRY.attempts
