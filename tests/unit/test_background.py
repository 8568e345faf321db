"""Jobs that a client follows in the background, as a server starts them."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest
from support.clients import Ear, others, quick_client
from support.clock import settle, until
from support.servers import raw_server, reply

from fuhu_runway import Client
from fuhu_runway.background import BackgroundJob
from fuhu_runway.errors import (
    DownloadIncomplete,
    TaskFailed,
    UsageError,
    WaitAbandoned,
    WaitTimeout,
)
from fuhu_runway.hooks import ClipHandedOut, DownloadFailed, DownloadStarted, JobEnded
from fuhu_runway.journal import JobState
from fuhu_runway.models import TextToVideo
from fuhu_runway.testing import Simulator, faults


@pytest.fixture
def ear() -> Ear:
    """Return a listener that remembers."""
    return Ear()


async def test_a_job_saves_its_clip(gateway: Simulator, ear: Ear, tmp_path: Path) -> None:
    """The task is unfinished until the file is whole; the end is an event with name and tag."""
    async with quick_client(gateway, hooks=[ear]) as client:
        job = await client.start(
            "a kitten", save=tmp_path / "1.mp4", custom_id="order 7", tag="shop"
        )
        assert repr(job) == f"<BackgroundJob {job.id} going on>"
        assert (job.done(), job.path) == (False, tmp_path / "1.mp4")
        assert client.unfinished == (job.task,)
        clip = await job
        assert (await job).id == clip.id == job.id
        assert repr(job) == f"<BackgroundJob {job.id} ended>"
        assert client.unfinished == ()
    assert (tmp_path / "1.mp4").stat().st_size > 0
    assert ear.all(JobEnded) == [JobEnded(job.id, "order 7", "shop", None)]
    assert ear.all(ClipHandedOut) == []


async def test_a_job_without_a_file_hands_its_clip_out(gateway: Simulator, ear: Ear) -> None:
    """It is what awaiting the job returns, and the task is finished."""
    async with quick_client(gateway, hooks=[ear]) as client:
        job = await client.start(TextToVideo("a kitten"))
        assert (await job).video_url
        assert client.unfinished == ()
    assert ear.all(ClipHandedOut) == [ClipHandedOut(job.id)]
    assert ear.all(JobEnded) == [JobEnded(job.id)]


async def test_a_job_that_is_never_awaited_goes_on(
    gateway: Simulator, ear: Ear, tmp_path: Path
) -> None:
    """Dropping the job, or cancelling an await of it, changes nothing."""
    async with quick_client(gateway, hooks=[ear]) as client:
        job = await client.start("a kitten", save=tmp_path / "1.mp4")
        awaiting = asyncio.ensure_future(job)
        await settle()
        awaiting.cancel()
        del job
        gc.collect()
        await until(lambda: ear.all(JobEnded))
    assert (tmp_path / "1.mp4").is_file()
    assert [event.error for event in ear.all(JobEnded)] == [None]


async def test_a_failed_task_ends_its_job(gateway: Simulator, ear: Ear) -> None:
    """Each await raises a copy of the error, so that no traceback grows."""
    gateway.script(then="fail")
    async with quick_client(gateway, hooks=[ear]) as client:
        job = await client.start("a kitten")
        raised = []
        for _ in range(2):
            with pytest.raises(TaskFailed) as caught:
                await job
            raised.append(caught.value)
        assert raised[0] is not raised[1]
        assert client.unfinished == ()
    assert ear.all(JobEnded) == [JobEnded(job.id, error="TaskFailed")]


async def test_a_task_that_exists_is_followed(gateway: Simulator, tmp_path: Path) -> None:
    """Such as one of `unfinished`, after a restart."""
    async with quick_client(gateway) as client:
        task_id = (await client.generate("a kitten")).id
        [task] = client.unfinished
        job = await client.start(task, save=tmp_path / "1.mp4")
        assert (await job).id == task_id
    assert gateway.submitted == 1


async def test_what_cannot_be_started_is_refused_unpaid(gateway: Simulator, tmp_path: Path) -> None:
    """A task of another client, a name for a task that has its own, and a file in the way."""
    (tmp_path / "1.mp4").write_bytes(b"something else")
    async with quick_client(gateway) as client, quick_client(gateway) as other:
        task = await client.generate("a kitten")
        wrong: list[tuple[str, Client, Any, dict[str, Any]]] = [
            ("work", other, task, {}),
            ("custom_id", client, task, {"custom_id": "a"}),
            ("tag", client, task, {"tag": "a"}),
            ("path", client, "a puppy", {"save": tmp_path / "1.mp4"}),
            ("save", client, "a puppy", {"save": 3}),
            ("request", client, 3, {}),
            ("prompt", client, "", {}),
        ]
        for field, one, work, options in wrong:
            with pytest.raises(UsageError) as caught:
                await one.start(work, **options)
            assert caught.value.field == field
    assert gateway.submitted == 1


@pytest.mark.usefixtures("virtual")
async def test_saving_that_fails_is_tried_again(
    gateway: Simulator, ear: Ear, tmp_path: Path
) -> None:
    """For some minutes, with pauses that grow; until then the task is unfinished."""
    async with quick_client(gateway, hooks=[ear]) as client:
        gateway.fault("download", faults.server_error(), times=12)
        job = await client.start("a kitten", save=tmp_path / "1.mp4")
        await until(lambda: ear.all(DownloadFailed))
        assert client.unfinished == (job.task,)
        await job
        assert client.unfinished == ()
    assert {event.error for event in ear.all(DownloadFailed)} == {"DownloadIncomplete"}
    assert ear.all(JobEnded) == [JobEnded(job.id)]


@pytest.mark.usefixtures("virtual")
async def test_the_last_attempt_may_succeed(gateway: Simulator, ear: Ear, tmp_path: Path) -> None:
    """After four that failed, the file is whole."""

    def mend(_: object) -> None:
        if len(ear.all(DownloadFailed)) == 4:
            gateway.forget_plans()

    async with quick_client(gateway, hooks=[ear, mend]) as client:
        gateway.fault("download", faults.server_error(), times=None)
        job = await client.start("a kitten", save=tmp_path / "1.mp4")
        await job
        assert client.unfinished == ()
    assert ear.all(JobEnded) == [JobEnded(job.id)]


@pytest.mark.usefixtures("virtual")
async def test_saving_is_given_up_at_last(gateway: Simulator, ear: Ear, tmp_path: Path) -> None:
    """The job ends with the error of the last attempt, and the task stays unfinished."""
    async with quick_client(gateway, hooks=[ear]) as client:
        gateway.fault("download", faults.server_error(), times=None)
        job = await client.start("a kitten", save=tmp_path / "1.mp4")
        with pytest.raises(DownloadIncomplete):
            await job
        assert client.unfinished == (job.task,)
    assert len(ear.all(DownloadFailed)) == 5
    assert ear.all(JobEnded) == [JobEnded(job.id, error="DownloadIncomplete")]


async def test_closing_ends_a_job_that_waits(gateway: Simulator, ear: Ear) -> None:
    """Its task stays unfinished, and awaiting it raises an error of ours."""
    gateway.script(then="stall")
    async with quick_client(gateway, hooks=[ear]) as client:
        job = await client.start("a kitten")
        await settle()
    with pytest.raises(WaitAbandoned):
        await job
    assert client.unfinished == (job.task,)
    assert ear.all(JobEnded) == [JobEnded(job.id, error="WaitAbandoned")]
    assert others() == set()


async def test_closing_ends_a_job_that_has_not_begun(gateway: Simulator, ear: Ear) -> None:
    """Closed in the same turn, or cut off as at the end of a loop, it has its event as well."""
    gateway.script(then="stall")
    async with quick_client(gateway, hooks=[ear]) as client:
        job = await client.start("a kitten")
    with pytest.raises(WaitAbandoned, match="before the job ended"):
        await job
    assert ear.all(JobEnded) == [JobEnded(job.id, error="WaitAbandoned")]


async def test_the_end_of_the_loop_ends_a_job(gateway: Simulator, ear: Ear) -> None:
    """What cancels every task of the loop is an end like any other."""
    gateway.script(then="stall")
    async with quick_client(gateway, hooks=[ear]) as client:
        job = await client.start("a kitten")
        for task in others():
            if "followed" in repr(task):
                task.cancel()
        with pytest.raises(WaitAbandoned, match="before the job ended"):
            await job
    assert ear.all(JobEnded) == [JobEnded(job.id, error="WaitAbandoned")]


async def test_closing_ends_a_job_between_two_attempts(
    gateway: Simulator, ear: Ear, tmp_path: Path
) -> None:
    """Nothing will be saved after the pause, so it is not waited for."""
    gateway.fault("download", faults.server_error(), times=None)
    async with quick_client(gateway, hooks=[ear]) as client:
        job = await client.start("a kitten", save=tmp_path / "1.mp4")
        await until(lambda: ear.all(DownloadFailed))
        await settle()
    with pytest.raises(DownloadIncomplete):
        await job
    assert client.unfinished == (job.task,)


async def test_closing_while_bytes_arrive_keeps_them(tmp_path: Path, ear: Ear) -> None:
    """The part is kept, the task is unfinished, and the next start goes on with it."""
    head = b"\0\0\0\x18ftypisom" + bytes(5000)
    whole = reply(head + bytes(5000), ETag='"v"')
    async with raw_server(whole[:-5000], closes=False) as host:
        body = b'{"code":200,"data":{"task_id":"t-7","status":"3","video_url":"%s"}}'
        async with raw_server(reply(body % host.url.encode())) as server:
            client = Client("sk-1", base_url=server.url, hooks=[ear])
            job = await client.start("a kitten", save=tmp_path / "1.mp4")
            await until(lambda: ear.all(DownloadStarted))
            await client.aclose()
            with pytest.raises(DownloadIncomplete, match="closed during the download"):
                await job
    assert [task.id for task in client.unfinished] == ["t-7"]
    assert (tmp_path / "1.mp4.part").stat().st_size > 0
    assert others() == set()


async def test_a_wait_that_is_over_ends_a_job(gateway: Simulator, ear: Ear) -> None:
    """The task goes on and stays unfinished."""
    gateway.script(then="stall")
    async with quick_client(gateway, hooks=[ear]) as client:
        job = await client.start("a kitten", timeout=0.02)
        with pytest.raises(WaitTimeout):
            await job
        assert client.unfinished == (job.task,)


async def test_a_redelivered_message_pays_once(
    gateway: Simulator, tmp_path: Path, ear: Ear
) -> None:
    """While the job goes on, at the same time as the first, after its end and after a restart."""
    path, journal = tmp_path / "1.mp4", tmp_path / "run.db"

    async def handle(client: Client) -> BackgroundJob:
        return await client.start("a kitten", save=path, custom_id="order 7")

    async with quick_client(gateway, journal=journal, hooks=[ear]) as client:
        first, second = await asyncio.gather(handle(client), handle(client))
        assert first is second is await handle(client)
        await first
        assert (await (await handle(client))).id == first.id
    async with quick_client(gateway, journal=journal) as client:
        assert client.unfinished == ()
        again = await handle(client)
        assert (await again).id == first.id
        assert client.unfinished == ()
        assert client.journal is not None
        [job] = await client.journal.jobs()
        path.write_bytes(b"something else")
        with pytest.raises(UsageError, match="already exists"):
            await handle(client)
    assert (job.state, gateway.submitted) == (JobState.SAVED, 1)


async def test_a_restart_in_the_middle_pays_once(gateway: Simulator, tmp_path: Path) -> None:
    """The second process finds the task by its name, and saves it."""
    path, journal = tmp_path / "1.mp4", tmp_path / "run.db"
    for _ in range(2):
        async with quick_client(gateway, journal=journal) as client:
            job = await client.start("a kitten", save=path, custom_id="order 7", tag="shop")
            assert [one.tag for one in client.unfinished] == ["shop"]
    async with quick_client(gateway, journal=journal) as client:
        job = await client.start("a kitten", save=path, custom_id="order 7")
        await job
    assert path.is_file()
    assert gateway.submitted == 1


@pytest.mark.parametrize("is_clip", [True, False])
async def test_a_file_that_the_journal_does_not_know_of_is_compared(
    gateway: Simulator, tmp_path: Path, is_clip: bool
) -> None:
    """After a kill between the two the clip is there once, and a file of another is kept."""
    path, journal = tmp_path / "1.mp4", tmp_path / "run.db"
    async with quick_client(gateway, journal=journal) as client:
        task = await client.generate("a kitten", custom_id="order 7")
        if is_clip:
            async with quick_client(gateway) as other:
                await (await other.task(task.id)).download(path)
        else:
            path.write_bytes(b"another program's")
    before = path.read_bytes()
    for _ in range(2):
        async with quick_client(gateway, journal=journal) as client:
            job = await client.start("a kitten", save=path, custom_id="order 7")
            await job
            assert client.unfinished == ()
        assert path.read_bytes() == before
        assert job.path is not None
        assert job.path.is_file()
        assert (job.path == path) is is_clip
    assert (tmp_path / f"1-{task.id}.mp4").exists() is not is_clip
    assert gateway.submitted == 1
