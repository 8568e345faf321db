import asyncio
import base64
import hashlib
import json
import os
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.clients import QUICK_RETRY, EventRecorder, quick_client
from support.media import MP4, PNG
from support.servers import raw_server, reply

from fuhu_runway import GATEWAYS, Client, Gateway, GatewayFiles, Task, hooks
from fuhu_runway._clock import LoopClock
from fuhu_runway._session import files as session_files
from fuhu_runway._session.files import REUSE_SECONDS
from fuhu_runway.errors import SubmissionInDoubt, UploadFailed, UsageError
from fuhu_runway.journal import JobState
from fuhu_runway.models import ActOne, ImageToVideo, Limits, OfficialVideoToVideo
from fuhu_runway.testing import Simulator, faults
from fuhu_runway.testing._server.checks import is_media

DIGEST = hashlib.sha256(PNG).hexdigest()
ADDRESS = "https://files.example/marked"


class Shelf:
    """An uploader that records its files, and gives each the next address."""

    def __init__(self) -> None:
        self.files: list[tuple[bytes, str, str]] = []

    async def __call__(self, data: bytes, name: str, content_type: str) -> str:
        self.files.append((data, name, content_type))
        return f"{ADDRESS}/{len(self.files)}"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Return the path of a small PNG, whose name says something else."""
    path = tmp_path / "kitten.jpg"
    path.write_bytes(PNG)
    return path


def bodies(gateway: Simulator) -> list[dict[str, Any]]:
    """Return the bodies of the tasks that were accepted."""
    return [dict(task.request) for task in gateway.tasks]


def with_files(url: str, key: str) -> Client:
    """Return a client that puts its files with the gateway."""
    gateway = Gateway("mine", files_path="/v1/files")
    return Client(key, base_url=url, gateway=gateway, uploads=GatewayFiles(), retry=QUICK_RETRY)


def content(folder: Path, pattern: str) -> bytes:
    """Return the bytes of all these files."""
    return b"".join(path.read_bytes() for path in folder.glob(pattern))


# The official format


async def test_the_official_format_takes_a_file_as_a_data_uri(
    gateway: Simulator, picture: Path
) -> None:
    """A small picture or clip travels in the request, of the type that its bytes show."""
    async with quick_client(gateway) as client:
        await client.official.image_to_video(picture, "it yawns", last_image=PNG)
        await client.official.video_to_video(MP4, "oil")
    frames, edit = bodies(gateway)
    encoded = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert [one["uri"] for one in frames["promptImage"]] == [encoded, encoded]
    assert edit["videoUri"].startswith("data:video/mp4;base64,")


@pytest.mark.parametrize(("size", "fits"), [(3_932_142, True), (3_932_145, False)])
async def test_a_data_uri_is_under_five_megabytes(
    gateway: Simulator, size: int, *, fits: bool
) -> None:
    """A picture whose data URI is too long is refused before anything is sent."""
    data = PNG + bytes(size - len(PNG))
    async with quick_client(gateway) as client:
        if fits:
            await client.official.image_to_video(data)
            assert len(bodies(gateway)[0]["promptImage"]) < 5 * 1024 * 1024
            return
        with pytest.raises(UsageError, match=r"image has 3,932,145 bytes.*GatewayFiles.*Object"):
            await client.official.image_to_video(data)
    assert not gateway.requests


async def test_what_is_too_large_for_a_data_uri_is_uploaded(gateway: Simulator) -> None:
    """With an uploader, a large file of the official format gets an address."""
    shelf = Shelf()
    async with quick_client(gateway, uploads=shelf) as client:
        await client.official.image_to_video(PNG + bytes(4_000_000))
        await client.official.image_to_video(PNG)
    large, small = bodies(gateway)
    assert large["promptImage"] == f"{ADDRESS}/1"
    assert small["promptImage"].startswith("data:image/png")
    assert len(shelf.files) == 1


# The reverse format


async def test_without_an_uploader_the_error_names_both_ways(
    gateway: Simulator, picture: Path
) -> None:
    """A local file of the reverse format without uploads= is refused before anything is sent."""
    recorder = EventRecorder()
    async with quick_client(gateway, hooks=[recorder]) as client:
        for call in (
            client.generate("a kitten", image=picture),
            client.act_one(MP4, "https://x.example/1.png"),
        ):
            with pytest.raises(UsageError, match=r"GatewayFiles\(\).*ObjectStore.*function"):
                await call
    assert not gateway.requests
    assert recorder.all(hooks.SubmissionStarted) == []


async def test_every_local_file_of_a_request_gets_an_address(
    gateway: Simulator, picture: Path
) -> None:
    """An uploader gets the bytes, a name made of their hash and their type."""
    shelf = Shelf()
    async with quick_client(gateway, uploads=shelf) as client:
        task = await client.act_one(MP4, picture)
        await client.generate("a kitten", image="https://x.example/1.png", last_image=picture)
    assert [(name, kind) for _, name, kind in shelf.files] == [
        (f"{hashlib.sha256(MP4).hexdigest()}.mp4", "video/mp4"),
        (f"{DIGEST}.png", "image/png"),
    ]
    assert shelf.files[1][0] == PNG
    first, second = bodies(gateway)
    assert (first["video"], first["image"]) == (f"{ADDRESS}/1", f"{ADDRESS}/2")
    assert (second["image"], second["last_image"]) == ("https://x.example/1.png", f"{ADDRESS}/2")
    assert task.request == ActOne(MP4, picture)


async def test_an_uploader_may_be_a_plain_function(gateway: Simulator) -> None:
    """A function that is not async runs in a thread, and may return an awaitable."""
    threads = []

    def put(data: bytes, name: str, content_type: str) -> str:
        threads.append(threading.current_thread())
        return ADDRESS

    async with quick_client(gateway, uploads=put) as client:
        await client.generate("a kitten", image=PNG)

    def put_later(data: bytes, name: str, content_type: str) -> Awaitable[str]:
        return Shelf()(data, name, content_type)

    async with quick_client(gateway, uploads=put_later) as client:
        await client.generate("a kitten", image=PNG)
    assert [body["image"] for body in bodies(gateway)] == [ADDRESS, f"{ADDRESS}/1"]
    assert threads[0] is not threading.current_thread()


async def test_the_same_file_is_uploaded_once(gateway: Simulator, picture: Path) -> None:
    """Jobs at the same time and later share one upload of the same bytes."""
    shelf = Shelf()
    async with quick_client(gateway, uploads=shelf) as client:
        pictures = [picture, PNG, picture]
        await asyncio.gather(*(client.generate("a kitten", image=one) for one in pictures))
        await client.generate("a kitten", image=picture)
    assert len(shelf.files) == 1
    assert {body["image"] for body in bodies(gateway)} == {f"{ADDRESS}/1"}


@pytest.mark.parametrize("own", [None, 60.0])
async def test_an_address_is_used_again_only_while_it_is_young(
    gateway: Simulator, monkeypatch: pytest.MonkeyPatch, own: float | None
) -> None:
    """After half an hour, or the uploader's own reuse_seconds, the file is uploaded again."""
    shelf, now = Shelf(), [1000.0]
    if own is not None:
        vars(shelf)["reuse_seconds"] = own
    monkeypatch.setattr(LoopClock, "wall", lambda _: now[0])
    async with quick_client(gateway, uploads=shelf) as client:
        for later, uploads in ((0.0, 1), ((own or REUSE_SECONDS) - 1, 1), (1.0, 2)):
            now[0] += later
            await client.generate("a kitten", image=PNG)
            assert len(shelf.files) == uploads


async def test_only_so_many_addresses_are_kept(
    gateway: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that was uploaded first is the first to be uploaded again."""
    monkeypatch.setattr(session_files, "MAX_KEPT", 2)
    shelf = Shelf()
    async with quick_client(gateway, uploads=shelf) as client:
        for mark in b"1231":
            await client.generate("a kitten", image=PNG + bytes([mark]))
    assert len(shelf.files) == 4


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        (RuntimeError("no access to https://u:marked@files.example/?sig=marked"), "RuntimeError"),
        (SubmissionInDoubt("It hangs.", "", ""), "It hangs."),
        (asyncio.CancelledError(), "CancelledError"),
        ("file:///home/1.png", "returned no http"),
        (None, "returned no http"),
    ],
)
async def test_a_failed_upload_is_a_named_error(
    gateway: Simulator, tmp_path: Path, fault: object, shown: str
) -> None:
    """Nothing is charged, no secret of the failure is shown, and the job may be sent again."""
    answers = [fault, ADDRESS]

    async def put(*_: object) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    recorder = EventRecorder()
    journal = tmp_path / "jobs.db"
    async with quick_client(gateway, uploads=put, hooks=[recorder], journal=journal) as client:
        with pytest.raises(UploadFailed, match="Nothing was charged") as caught:
            await client.generate("a kitten", image=PNG, custom_id="a")
        assert shown in str(caught.value)
        assert "marked" not in str(caught.value)
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)
        assert not gateway.requests
        assert [event.error for event in recorder.all(hooks.SubmissionFailed)] == ["UploadFailed"]
        assert client.journal is not None
        job = await client.journal.find("id:a")
        assert job is not None
        assert job.state is JobState.PLANNED
        await client.generate("a kitten", image=PNG, custom_id="a")
    assert bodies(gateway)[0]["image"] == ADDRESS


@pytest.mark.usefixtures("virtual")
async def test_an_upload_that_never_ends_is_a_failed_upload(gateway: Simulator) -> None:
    """It keeps no other job waiting: neither one with the same file, nor one that needs a slot."""
    answers = [asyncio.Event().wait(), asyncio.sleep(0, ADDRESS)]

    async def put(*_: object) -> Any:
        return await answers.pop(0)

    limits = Limits(tasks_in_flight=1)
    async with quick_client(gateway, uploads=put, limits=limits) as client:
        jobs = [client.generate("a kitten", image=PNG) for _ in range(2)]
        stuck, task = await asyncio.gather(*jobs, return_exceptions=True)
        assert isinstance(stuck, UploadFailed)
        assert "took longer than 300 s" in str(stuck)
        assert isinstance(task, Task)
    assert len(bodies(gateway)) == 1


async def test_extra_is_checked_before_an_upload(gateway: Simulator) -> None:
    """A request that cannot be sent anyway costs no upload."""
    shelf = Shelf()
    async with quick_client(gateway, uploads=shelf) as client:
        with pytest.raises(UsageError, match="extra sets 'image'"):
            await client.generate("a kitten", image=PNG, extra={"image": "x"})
    assert shelf.files == []


async def test_a_cancelled_upload_sends_nothing(gateway: Simulator) -> None:
    """If the caller is cancelled while a file is uploaded, no paid request is sent."""
    begun = asyncio.Event()

    async def put(*_: object) -> str:
        begun.set()
        await asyncio.sleep(3600)
        raise AssertionError

    async with quick_client(gateway, uploads=put) as client:
        submitting = asyncio.create_task(client.generate("a kitten", image=PNG))
        await begun.wait()
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
    assert not gateway.requests


async def test_closing_ends_an_upload(gateway: Simulator) -> None:
    """A client that is closed during an upload sends nothing, and says that it is closed."""
    begun = asyncio.Event()

    async def put(*_: object) -> str:
        begun.set()
        await asyncio.sleep(3600)
        raise AssertionError

    client = quick_client(gateway, uploads=put)
    submitting = asyncio.create_task(client.generate("a kitten", image=PNG))
    await begun.wait()
    await client.aclose()
    with pytest.raises(UsageError, match="closed"):
        await submitting
    assert not gateway.requests


async def test_a_file_is_uploaded_once_there_is_a_free_slot(gateway: Simulator) -> None:
    """While a submission waits for a slot, its file is not uploaded: its address would age."""
    shelf = Shelf()
    gateway.fault("feed", faults.StatusWords("1", "running"), times=3)
    limits = Limits(tasks_in_flight=1)
    async with quick_client(gateway, uploads=shelf, limits=limits) as client:
        await client.generate("the first")
        held = asyncio.Event()
        client._sessions.hooks.add(
            lambda event: held.set() if isinstance(event, hooks.SubmissionHeld) else None
        )
        submitting = asyncio.create_task(client.generate("the second", image=PNG))
        await held.wait()
        assert shelf.files == []
        await submitting
    assert len(shelf.files) == 1


async def test_a_file_that_vanished_is_refused_before_anything_is_sent(
    gateway: Simulator, picture: Path
) -> None:
    """A path that was good when the request was made is read again at the submit."""
    request = ImageToVideo("a kitten", picture)
    os.unlink(picture)  # noqa: PTH108 - a test may block
    recorder = EventRecorder()
    async with quick_client(gateway, uploads=Shelf(), hooks=[recorder]) as client:
        with pytest.raises(UsageError, match=r"image cannot be read as a file"):
            await client.submit(request)
    assert not gateway.requests


async def test_a_resumed_batch_knows_a_job_by_the_content_of_its_file(
    gateway: Simulator, tmp_path: Path, picture: Path
) -> None:
    """The second run pays nothing, wherever the file is then; nothing of it is in the journal."""
    journal, shelf = tmp_path / "jobs.db", Shelf()
    for image in (picture, tmp_path / "marked-elsewhere.png"):
        image.write_bytes(PNG)
        async with quick_client(gateway, uploads=shelf, journal=journal) as client:
            source = [ImageToVideo("a kitten", image)]
            outcomes = [one async for one in client.generate_many(source)]
        assert [one.error for one in outcomes] == [None]
    assert len(gateway.tasks) == 1
    written = content(tmp_path, "jobs.db*")
    for secret in (PNG, b"kitten.jpg", b"marked", str(tmp_path).encode(), DIGEST.encode()):
        assert secret not in written


async def test_a_bad_file_ends_one_job_of_a_batch(gateway: Simulator, picture: Path) -> None:
    """A file that vanished is the outcome of its job, and the others go on."""
    source = [ImageToVideo("a kitten", picture), ImageToVideo("a kitten", PNG + b"1")]
    os.unlink(picture)  # noqa: PTH108 - a test may block
    async with quick_client(gateway, uploads=Shelf()) as client:
        outcomes = [one async for one in client.generate_many(source)]
    found = {one.index: type(one.error).__name__ for one in outcomes}
    assert found == {0: "UsageError", 1: "NoneType"}


# The gateway's own file route


async def test_the_gateway_serves_what_was_uploaded(gateway: Simulator, picture: Path) -> None:
    """GatewayFiles puts a file with the gateway, whose address serves its bytes and type."""
    async with with_files(gateway.base_url, gateway.api_key) as client:
        await client.generate("a kitten", image=picture)
    address = bodies(gateway)[0]["image"]
    async with aiohttp.ClientSession() as session:
        async with session.get(address) as response:
            assert (await response.read(), response.content_type) == (PNG, "image/png")
        async with session.get(f"{address}0") as response:
            assert response.status == 404
    upload, _, *_ = gateway.requests
    assert (upload.method, upload.path) == ("POST", "/v1/files")
    assert upload.headers["Authorization"] == f"Bearer {gateway.api_key}"


@pytest.mark.parametrize(
    ("status", "body", "shown"),
    [
        (401, {"error": {"message": "bad key sk-simulated", "type": "new_api_error"}}, "refused"),
        (200, {"id": "file-1", "object": "file"}, "no address"),
        (200, {"url": "/file/1.png", "id": "file-1", "object": "file"}, "no address"),
        (500, {"url": ADDRESS}, ""),
    ],
)
async def test_a_refusal_of_the_file_route_is_a_failed_upload(
    status: int, body: dict[str, str], shown: str
) -> None:
    """Whatever the file route answers without an address, nothing was charged."""
    words = "200 OK" if status == 200 else f"{status} No"
    async with (
        raw_server(reply(json.dumps(body).encode(), words)) as raw,
        with_files(raw.url, "sk-simulated") as client,
    ):
        with pytest.raises(UploadFailed, match="image could not be uploaded") as caught:
            await client.generate("a kitten", image=PNG)
    assert "sk-simulated" not in str(caught.value)
    assert shown in str(caught.value)
    assert all(request.startswith(b"POST /v1/files ") for request in raw.requests)


async def test_no_log_line_shows_a_local_file(
    gateway: Simulator, picture: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the address, nor the path, nor the bytes are in the log, at any level."""
    caplog.set_level(0)
    async with with_files(gateway.base_url, gateway.api_key) as client:
        task = await client.generate("a kitten", image=picture)
        await client.official.image_to_video(picture)
    assert task.id in caplog.text
    address = bodies(gateway)[0]["image"]
    encoded = base64.b64encode(PNG).decode()
    for secret in (address, "/file/", str(picture), picture.name, DIGEST, encoded):
        assert secret not in caplog.text


def test_a_gateway_without_a_file_route_is_refused_at_once() -> None:
    """GatewayFiles needs a gateway whose row has a files_path."""
    with pytest.raises(UsageError, match="The gateway 'fuhuapi' has no known file route"):
        Client("sk-x", uploads=GatewayFiles())
    assert Client("sk-x", gateway="bltcy", uploads=GatewayFiles()).gateway.files_path
    assert GATEWAYS["fuhuapi"].files_path is None


@pytest.mark.parametrize("wrong", ["https://files.example", 5, GatewayFiles, Shelf])
def test_what_is_no_uploader_is_refused(wrong: Any) -> None:
    """A class, a text and a number are no uploaders."""
    with pytest.raises(UsageError, match=r"Use GatewayFiles\(\), a function"):
        Client("sk-x", uploads=wrong)


# The simulator as a witness


@pytest.mark.parametrize(
    ("uri", "is_good"),
    [
        ("data:image/png;base64," + base64.b64encode(PNG).decode(), True),
        ("data:image/jpeg;base64," + base64.b64encode(PNG).decode(), False),
        ("data:image/png;base64,not base64", False),
        ("data:image/png,AAAA", False),
        ("data:video/mp4;base64," + base64.b64encode(MP4).decode(), False),
        ("data:image/png;base64," + "A" * 5 * 1024 * 1024, False),
    ],
)
def test_the_simulator_checks_data_uris(uri: str, *, is_good: bool) -> None:
    """A data URI must be base64, short enough, a picture, and of the type that it says."""
    assert is_media(uri, "image/") is is_good


async def test_the_simulator_refuses_a_form_without_a_file(gateway: Simulator) -> None:
    """A form without a file, and a body that is no form, are refused."""
    url = f"{gateway.base_url}/v1/files"
    headers = {"Authorization": f"Bearer {gateway.api_key}"}
    form = aiohttp.FormData()
    form.add_field("purpose", "vision", content_type="text/plain")
    async with aiohttp.ClientSession() as session:
        for body in (form, b"", json.dumps({}).encode()):
            async with session.post(url, data=body, headers=headers) as response:
                assert response.status == 400


async def test_an_upload_costs_nothing(gateway: Simulator) -> None:
    """Only the submission is charged."""
    async with with_files(gateway.base_url, gateway.api_key) as client:
        before = await client.balance()
        await client.submit(OfficialVideoToVideo(MP4, "oil"))
        await client.generate("a kitten", image=PNG)
        after = await client.balance()
    charged = sum(task.points for task in gateway.tasks)
    assert before.remaining is not None
    assert after.remaining is not None
    assert round((before.remaining - after.remaining) * 100) == charged  # in hundredths
