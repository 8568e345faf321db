"""Clips in an object store: what is there, what is paid, and what a broken store costs."""

import asyncio
import errno
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from support.buckets import LittleS3, environment, little_s3, s3
from support.clients import EventRecorder, quick_client
from support.clock import until

pytest.importorskip("obstore", reason="the extra store is not installed")

import obstore
from obstore.store import AzureStore, GCSStore, LocalStore, MemoryStore

from fuhu_runway.contrib.store import MARKER, ObjectStore
from fuhu_runway.errors import DownloadIncomplete, RunwayError, UsageError
from fuhu_runway.hooks import DownloadFinished
from fuhu_runway.items import Item, Outcome
from fuhu_runway.journal import JobState, Journal
from fuhu_runway.models import TextToVideo
from fuhu_runway.testing import Simulator

PROMPT: Final = "a marked kitten"
ITEM: Final = Item(TextToVideo(PROMPT), "order-1")
NAME: Final = "spring/order-1.mp4"


@pytest.fixture
async def bucket() -> AsyncIterator[LittleS3]:
    """Yield an empty bucket."""
    async with little_s3() as store:
        yield store


@pytest.fixture
def place(bucket: LittleS3) -> ObjectStore:
    """Return the place for clips in the bucket."""
    return ObjectStore(s3(bucket), prefix="spring/")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Return where the journal is."""
    return tmp_path / "run.db"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder for temporary files, which must be empty after each test."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


async def carried(gateway: Simulator, journal: Path, item: Item = ITEM, **options: Any) -> Outcome:
    """Carry out a job in a process of its own."""
    async with quick_client(gateway, journal=journal) as client:
        return await client.carry_out(item, **options)


async def jobs_in(journal: Path) -> list[tuple[JobState, int | None]]:
    """Return the states and sizes in the closed file."""
    book = Journal(journal)
    try:
        return [(job.state, job.file_bytes) for job in await book.jobs()]
    finally:
        await book.aclose()


def names_in(folder: Path) -> set[str]:
    """Return what is in a folder."""
    return {file.name for file in folder.iterdir()}


async def test_a_clip_is_put_whole_and_then_saved(
    gateway: Simulator, journal: Path, bucket: LittleS3, place: ObjectStore, temporary: Path
) -> None:
    """The object has the clip's bytes and type, the row its size, and no file is left behind."""
    outcome = await carried(gateway, journal, download_to=place)
    assert outcome.object_url == f"s3://clips/{NAME}"
    assert outcome.path is None
    assert outcome.clip is not None
    async with quick_client(gateway) as client:
        clip = await client.task(outcome.clip.id)
        assert bucket.objects[NAME] == await clip.read()
    assert bucket.types[NAME] == "video/mp4"
    assert await jobs_in(journal) == [(JobState.SAVED, len(bucket.objects[NAME]))]
    assert names_in(temporary) == set()


async def test_a_clip_that_is_there_is_not_fetched_again(
    gateway: Simulator, journal: Path, bucket: LittleS3, place: ObjectStore
) -> None:
    """The next worker asks the store for its size, and sends the gateway nothing."""
    await carried(gateway, journal, download_to=place)
    sent = len(gateway.requests)
    again = await carried(gateway, journal, download_to=place)
    assert (again.object_url, again.resumed) == (f"s3://clips/{NAME}", True)
    assert len(gateway.requests) == sent
    assert bucket.requests[-1] == ("HEAD", NAME)


@pytest.mark.parametrize("damage", ["gone", "cut"])
async def test_a_clip_that_is_gone_is_put_again(
    gateway: Simulator, journal: Path, bucket: LittleS3, place: ObjectStore, damage: str
) -> None:
    """It is downloaded again at no cost; a cut object in its place is left, and is not the clip."""
    await carried(gateway, journal, download_to=place)
    clip = bucket.objects.pop(NAME)
    if damage == "cut":
        bucket.objects[NAME] = clip[:-1]
    for _ in range(2):
        outcome = await carried(gateway, journal, download_to=place)
        assert outcome.object_url is not None
        assert bucket.objects[outcome.object_url.removeprefix("s3://clips/")] == clip
    assert gateway.submitted == 1


async def test_a_clip_that_was_put_by_a_worker_that_was_killed_then_is_known(
    gateway: Simulator, journal: Path, bucket: LittleS3, place: ObjectStore
) -> None:
    """An object with the same bytes is the clip; it is not put a second time."""
    await carried(gateway, journal, download_to=place)
    book = Journal(journal)
    await book.step("id:order-1", JobState.FINISHED, 0.0)
    await book.aclose()
    bucket.requests.clear()
    outcome = await carried(gateway, journal, download_to=place)
    assert outcome.object_url == f"s3://clips/{NAME}"
    assert {verb for verb, _ in bucket.requests} == {"HEAD", "GET"}


async def test_another_object_of_that_name_is_found_before_anything_is_paid(
    gateway: Simulator, journal: Path, bucket: LittleS3, place: ObjectStore
) -> None:
    """Such a job is not submitted, unless the object may be replaced."""
    bucket.objects[NAME] = b"mine"
    with pytest.raises(UsageError, match=r"an object 'order-1\.mp4' already") as caught:
        await carried(gateway, journal, download_to=place)
    assert caught.value.field == "download_to"
    assert gateway.submitted == 0
    assert bucket.objects[NAME] == b"mine"
    await carried(gateway, journal, download_to=place, overwrite=True)
    assert bucket.objects[NAME] != b"mine"


async def test_an_object_that_appears_meanwhile_is_left_alone(
    gateway: Simulator, journal: Path, bucket: LittleS3, place: ObjectStore
) -> None:
    """The clip is put beside it, and found there by the next call."""
    gateway.script(PROMPT, takes=200)
    async with quick_client(gateway, journal=journal) as client:
        carrying = asyncio.create_task(client.carry_out(ITEM, download_to=place))
        await until(lambda: gateway.submitted)
        bucket.objects[NAME] = b"mine"
        outcome = await carrying
        assert bucket.objects[NAME] == b"mine"
        assert outcome.object_url == f"s3://clips/spring/order-1-{outcome.task_id}.mp4"
        again = await client.carry_out(ITEM, download_to=place)
        assert again.object_url == outcome.object_url


async def test_the_prompt_in_a_name_is_not_shown(gateway: Simulator, place: ObjectStore) -> None:
    """The error about an object that is there names it by the mark of its job."""
    async with quick_client(gateway) as client:
        [made] = [one async for one in client.generate_many([PROMPT], download_to=place)]
        assert made.object_url is not None
        [outcome] = [one async for one in client.generate_many([PROMPT], download_to=place)]
    assert isinstance(outcome.error, UsageError)
    assert "marked" not in str(outcome.error)
    assert "There is an object '*-" in outcome.error.happened


@pytest.mark.parametrize(
    ("status", "code", "happened", "advice"),
    [
        (
            403,
            "AccessDenied",
            "The object store denies access (403 Forbidden, AccessDenied)",
            "Allow",
        ),
        (403, "InvalidAccessKeyId", "The object store got no valid credentials", "Set them in"),
        (401, "None", "The object store got no valid credentials", "Set them in"),
        (400, "ExpiredToken", "The object store got no valid credentials", "Set them in"),
        (404, "NoSuchBucket", "The object store has no such bucket or folder", "Create it"),
        (500, "InternalError", "The object store could not be used, despite retries", "Check that"),
    ],
)
async def test_a_store_that_cannot_be_used_is_found_before_anything_is_paid(  # noqa: PLR0917
    gateway: Simulator,
    journal: Path,
    bucket: LittleS3,
    place: ObjectStore,
    status: int,
    code: str,
    happened: str,
    advice: str,
) -> None:
    """Each kind of refusal is named, with what to do, and nothing was sent to the gateway."""
    bucket.faults = [("PUT", status, code)] * 6
    with pytest.raises(UsageError) as caught:
        await carried(gateway, journal, download_to=place)
    assert caught.value.happened.startswith(happened)
    assert caught.value.advice.startswith(advice)
    assert caught.value.money == "Nothing was sent or charged."
    assert not gateway.requests
    assert "marked" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_store_that_works_is_not_checked_for_each_job(
    gateway: Simulator, journal: Path, bucket: LittleS3, place: ObjectStore
) -> None:
    """Of three jobs, the first puts the marker; one that could not be put is tried again."""
    bucket.faults = [("PUT", 403, "AccessDenied")]
    with pytest.raises(UsageError):
        await carried(gateway, journal, download_to=place)
    for number in range(3):
        await carried(gateway, journal, Item(TextToVideo(PROMPT), f"{number}"), download_to=place)
    assert bucket.requests.count(("PUT", f"spring/{MARKER}")) == 2


async def test_a_batch_ends_at_once_if_its_store_cannot_be_used(
    gateway: Simulator, bucket: LittleS3
) -> None:
    """The error is raised by the first outcome, not once for each job."""
    bucket.faults = [("PUT", 403, "AccessDenied")]
    async with quick_client(gateway) as client:
        with pytest.raises(UsageError, match="denies access"):
            await anext(client.generate_many([PROMPT], download_to=ObjectStore(s3(bucket))))
    assert not gateway.requests


async def test_a_store_that_may_not_be_read_is_found_before_anything_is_paid(
    gateway: Simulator, journal: Path, bucket: LittleS3, place: ObjectStore
) -> None:
    """Whether an object of the name is there cannot be seen, so nothing is submitted."""
    bucket.faults = [("HEAD", 403, "AccessDenied")]
    with pytest.raises(UsageError, match="denies access"):
        await carried(gateway, journal, download_to=place)
    assert not gateway.requests


async def test_a_store_that_is_down_for_a_while_is_asked_again(
    gateway: Simulator, journal: Path, bucket: LittleS3, place: ObjectStore
) -> None:
    """Requests are retried, and the clip is saved."""
    bucket.faults = [("PUT", 503, "SlowDown")] * 4 + [("HEAD", 500, "InternalError")] * 4
    outcome = await carried(gateway, journal, download_to=place)
    assert outcome.object_url == f"s3://clips/{NAME}"
    assert not bucket.faults


async def test_a_clip_that_cannot_be_put_is_paid_and_stays_finished(
    gateway: Simulator, journal: Path, bucket: LittleS3, place: ObjectStore, temporary: Path
) -> None:
    """The error says so, the temporary file is gone, and the next call puts the clip."""
    gateway.script(PROMPT, takes=200)
    recorder = EventRecorder()
    async with quick_client(gateway, journal=journal, hooks=[recorder]) as client:
        carrying = asyncio.create_task(client.carry_out(ITEM, download_to=place))
        await until(lambda: gateway.submitted)
        bucket.faults = [("PUT", 403, "AccessDenied")]
        with pytest.raises(DownloadIncomplete, match="denies access") as caught:
            await carrying
    assert caught.value.money == "The clip exists and is paid for."
    assert caught.value.task_id == gateway.tasks[0].task_id
    assert not recorder.all(DownloadFinished)
    assert await jobs_in(journal) == [(JobState.FINISHED, None)]
    assert names_in(temporary) == set()
    assert (await carried(gateway, journal, download_to=place)).object_url is not None
    assert gateway.submitted == 1


async def test_a_saved_clip_that_cannot_be_seen_stays_saved(
    gateway: Simulator, journal: Path, bucket: LittleS3, place: ObjectStore
) -> None:
    """While the store is broken, the call raises, and the row says what is true."""
    await carried(gateway, journal, download_to=place)
    bucket.faults = [("HEAD", 403, "AccessDenied")]
    with pytest.raises(DownloadIncomplete, match="denies access"):
        await carried(gateway, journal, download_to=place)
    assert [state for state, _ in await jobs_in(journal)] == [JobState.SAVED]


async def test_a_full_disk_for_temporary_files_is_named(
    gateway: Simulator, journal: Path, place: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker without room loses nothing: another one saves the clip."""

    def full(**_: Any) -> Any:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "TemporaryDirectory", full)
        with pytest.raises(DownloadIncomplete, match="No space left on device") as caught:
            await carried(gateway, journal, download_to=place)
    assert "TMPDIR" in caught.value.advice
    assert (await carried(gateway, journal, download_to=place)).object_url is not None
    assert gateway.submitted == 1


async def test_closing_the_client_does_not_wait_for_a_store(
    gateway: Simulator, journal: Path, bucket: LittleS3
) -> None:
    """A put that takes long is left, the call ends with an error, and the job stays finished."""
    gateway.script(PROMPT, takes=100)
    putting, go_on = asyncio.Event(), asyncio.Event()

    class Slow(ObjectStore):
        async def put_clip(self, name: str, file: Path) -> None:
            putting.set()
            await go_on.wait()

    client = quick_client(gateway, journal=journal)
    carrying = asyncio.create_task(client.carry_out(ITEM, download_to=Slow(s3(bucket))))
    await putting.wait()
    await client.aclose()
    with pytest.raises(RunwayError):
        await carrying
    assert await jobs_in(journal) == [(JobState.FINISHED, None)]


async def test_an_url_is_a_place(
    gateway: Simulator, journal: Path, bucket: LittleS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The credentials come from the environment, and the path of the URL begins each key."""
    for name, value in environment(bucket).items():
        monkeypatch.setenv(name, value)
    url = f"s3://clips/of-{bucket.port}/"
    outcome = await carried(gateway, journal, download_to=url)
    assert outcome.object_url == f"{url}order-1.mp4"
    assert set(bucket.objects) == {f"of-{bucket.port}/order-1.mp4", f"of-{bucket.port}/{MARKER}"}
    assert ObjectStore.from_url(url) is ObjectStore.from_url(url)


async def test_a_folder_that_all_machines_see_may_be_an_url(
    gateway: Simulator, journal: Path, tmp_path: Path
) -> None:
    """With file://, each clip appears in the folder whole."""
    folder = tmp_path / "shared clips"
    outcome = await carried(gateway, journal, download_to=f"file://{folder}")
    assert outcome.object_url == f"{folder.as_uri()}/order-1.mp4"
    assert await jobs_in(journal) == [(JobState.SAVED, (folder / "order-1.mp4").stat().st_size)]


async def test_two_workers_that_save_one_clip_leave_one_object(
    gateway: Simulator, journal: Path, tmp_path: Path
) -> None:
    """Both put the same bytes under the same name, and both succeed."""
    store = MemoryStore()
    await carried(gateway, journal)
    journals = [Path(shutil.copy(journal, tmp_path / f"{number}.db")) for number in range(2)]
    both = await asyncio.gather(
        *(carried(gateway, file, download_to=ObjectStore(store, prefix="")) for file in journals)
    )
    assert [one.object_url for one in both] == ["order-1.mp4"] * 2
    assert {found["path"] for page in obstore.list(store) for found in page} == {
        "order-1.mp4",
        MARKER,
    }
    assert gateway.submitted == 1


@pytest.mark.parametrize(
    ("store", "url"),
    [
        (GCSStore("b", prefix="in", skip_signature=True), "gs://b/in/x/1.mp4"),
        (AzureStore("c", account_name="a", skip_signature=True), "az://c/x/1.mp4"),
        (MemoryStore(), "x/1.mp4"),
        (LocalStore(), "file:////x/1.mp4"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_store_has_its_url(store: Any, url: str) -> None:
    """It names the bucket, the prefix of the store, and the key."""
    assert ObjectStore(store, prefix="x/").clip_url("1.mp4") == url


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/clips",
        "https://bucket.example/clips?sig=marked",
        "s3://marked:marked@bucket/clips",
        "s3://bucket/clips?marked",
        "memory:///clips",
        "file://relative/clips",
        "s3://",
    ],
)
async def test_an_url_that_is_no_store_is_refused(gateway: Simulator, url: str) -> None:
    """It is found when the batch is made, and not shown, since it may have a password in it."""
    async with quick_client(gateway) as client:
        with pytest.raises(UsageError, match="object store") as caught:
            client.batch([PROMPT], download_to=url)
    assert caught.value.field == "download_to"
    assert "marked" not in str(caught.value)
    assert not gateway.requests
