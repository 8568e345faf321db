"""One call from a prompt to a file, and what is left if it fails on the way."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.clients import Ear, others, quick_client
from support.clock import settle, until

from fuhu_runway import Client, TaskRecord, TaskState, TextToVideo
from fuhu_runway.errors import (
    DownloadIncomplete,
    TaskFailed,
    UsageError,
    WaitAbandoned,
    WaitTimeout,
)
from fuhu_runway.hooks import DownloadFailed, JobEnded, TaskSubmitted
from fuhu_runway.testing import Simulator, faults


async def test_one_call_makes_a_file(gateway: Simulator, tmp_path: Path) -> None:
    """It submits, waits and saves; the clip knows its file and its points."""
    path, seen = tmp_path / "kitten.mp4", []
    async with quick_client(gateway) as client:
        clip = await client.run(
            "a kitten", save=str(path), on_update=seen.append, custom_id="order 7", tag="shop"
        )
        assert client.unfinished == ()
    assert (clip.path, path.read_bytes()[4:8]) == (path, b"ftyp")
    assert (clip.task.custom_id, clip.task.tag) == ("order 7", "shop")
    assert clip.points == clip.task.points == clip.record.points
    assert seen[-1].state is TaskState.SUCCEEDED
    assert gateway.submitted == 1


async def test_nothing_is_saved_unless_it_is_wanted(gateway: Simulator) -> None:
    """The clip is handed out, and can be read, streamed or saved later."""
    async with quick_client(gateway) as client:
        clip = await client.run("a kitten")
        assert (clip.path, client.unfinished) == (None, ())
        data = await clip.read()
        assert b"".join([chunk async for chunk in clip.stream()]) == data
        assert data[4:8] == b"ftyp"
        assert client.unfinished == ()


async def test_a_prompt_has_the_options_of_generate(gateway: Simulator) -> None:
    """With an image it is a picture and a prompt."""
    image = "https://pictures.example/1.png"
    async with quick_client(gateway) as client:
        text = await client.run("a kitten", ratio="9:16", seconds=5)
        picture = await client.run("smile", image=image, flip=True)
        made = await client.run(TextToVideo("a puppy"))
    assert text.task.request == TextToVideo("a kitten", ratio="9:16", seconds=5)
    assert getattr(picture.task.request, "image", None) == image
    assert made.task.request == TextToVideo("a puppy")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"work": "a kitten", "save": "nowhere/1.mp4"}, "path"),
        ({"work": "a kitten", "save": "old.mp4"}, "path"),
        ({"work": "a kitten", "save": 5}, "save"),
        ({"work": "a kitten", "overwrite": 1}, "overwrite"),
        ({"work": "a kitten", "timeout": "60"}, "timeout"),
        ({"work": "a kitten", "on_update": "print"}, "on_update"),
        ({"work": "a kitten", "seconds": 1000}, "seconds"),
        ({"work": "a kitten", "flip": True}, "image"),
        ({"work": "a kitten", "custom_id": ""}, "custom_id"),
        ({"work": ""}, "prompt"),
        ({"work": 5}, "request"),
        ({"work": TextToVideo("a kitten"), "seconds": 5}, "seconds"),
    ],
)
async def test_a_wrong_argument_costs_nothing(
    gateway: Simulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    field: str,
) -> None:
    """It is found before anything is sent, and no file is left of the check."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.mp4").write_bytes(b"old")
    async with quick_client(gateway) as client:
        with pytest.raises(UsageError) as caught:
            await client.run(**arguments)
    assert caught.value.field == field
    assert (gateway.submitted, len(list(tmp_path.iterdir()))) == (0, 1)  # noqa: ASYNC240


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("duration", "Client.run() has no argument 'duration'; use 'seconds'."),
        ("output", "Client.run() has no argument 'output'; use 'save'."),
        ("colour", "Client.run() got an unexpected keyword argument 'colour'"),
    ],
)
async def test_an_unknown_argument_is_a_type_error(
    gateway: Simulator, name: str, error: str
) -> None:
    """As of any function, and it names the right one for a guess."""
    unknown: Any = {name: "x"}
    async with quick_client(gateway) as client:
        with pytest.raises(TypeError) as caught:
            await client.run("a kitten", **unknown)
    assert (str(caught.value), gateway.submitted) == (error, 0)


async def test_a_failed_task_is_named(gateway: Simulator, tmp_path: Path) -> None:
    """There will be no clip, so that nothing is left to finish."""
    gateway.script(then="fail")
    async with quick_client(gateway) as client:
        with pytest.raises(TaskFailed) as caught:
            await client.run("a kitten", save=tmp_path / "1.mp4", on_update=id)
        assert client.unfinished == ()
    assert caught.value.task_id == gateway.tasks[0].task_id
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240


@pytest.mark.parametrize("on_update", [None, id])
async def test_a_timeout_loses_nothing(gateway: Simulator, tmp_path: Path, on_update: Any) -> None:
    """The error names the task, and `run` continues with it at no cost."""
    gateway.script("a kitten", takes=300)
    async with quick_client(gateway) as client:
        with pytest.raises(WaitTimeout) as caught:
            await client.run("a kitten", save=tmp_path / "1.mp4", timeout=0.02, on_update=on_update)
        task_id = caught.value.task_id
        assert task_id is not None
        assert [task.id for task in client.unfinished] == [task_id]
        clip = await client.run(client.task(task_id), save=tmp_path / "1.mp4")
        assert client.unfinished == ()
    assert (clip.id, clip.path, gateway.submitted) == (task_id, tmp_path / "1.mp4", 1)


async def test_a_download_that_fails_is_raised_at_once(gateway: Simulator, tmp_path: Path) -> None:
    """A background job would retry for minutes; here the caller decides."""
    ear = Ear()
    gateway.fault("download", faults.server_error(), times=None)
    async with quick_client(gateway, hooks=[ear]) as client:
        with pytest.raises(DownloadIncomplete) as caught:
            await client.run("a kitten", save=tmp_path / "1.mp4")
        assert [task.id for task in client.unfinished] == [caught.value.task_id]
    assert len(ear.all(DownloadFailed)) == 1


async def test_a_callback_that_raises_ends_the_run(gateway: Simulator) -> None:
    """The task goes on and stays unfinished."""

    async def broken(_: TaskRecord) -> None:
        raise LookupError

    async with quick_client(gateway) as client:
        with pytest.raises(LookupError):
            await client.run("a kitten", on_update=broken)
        await settle()
        assert others() == set()
        assert len(client.unfinished) == 1


async def test_a_cancelled_run_ends(gateway: Simulator, tmp_path: Path) -> None:
    """Nothing goes on in the background, and the task is unfinished."""
    ear = Ear()
    gateway.script(then="stall")
    async with quick_client(gateway, hooks=[ear]) as client:
        running = asyncio.ensure_future(client.run("a kitten", save=tmp_path / "1.mp4"))
        await until(lambda: ear.all(TaskSubmitted))
        await settle()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: ear.all(JobEnded))
        assert [task.id for task in client.unfinished] == [gateway.tasks[0].task_id]
        assert others() == set()


async def test_closing_the_client_ends_a_run(gateway: Simulator) -> None:
    """With an error of ours that names the task."""
    ear = Ear()
    gateway.script(then="stall")
    client = quick_client(gateway, hooks=[ear])
    running = asyncio.ensure_future(client.run("a kitten"))
    await until(lambda: ear.all(TaskSubmitted))
    await client.aclose()
    with pytest.raises(WaitAbandoned) as caught:
        await running
    assert caught.value.task_id == gateway.tasks[0].task_id


async def test_two_runs_under_one_name_share_the_clip(gateway: Simulator, tmp_path: Path) -> None:
    """They pay once and write one file; if one is cancelled, the other goes on."""
    path = tmp_path / "1.mp4"
    async with quick_client(gateway) as client:

        def run() -> "asyncio.Task[Any]":
            return asyncio.ensure_future(client.run("a kitten", save=path, custom_id="order 7"))

        first, second, third = run(), run(), run()
        await until(lambda: gateway.submitted)
        await settle()
        first.cancel()
        clip = await second
        assert (await third).id == clip.id
        assert clip.path == path
    assert first.cancelled()
    assert (path.is_file(), gateway.submitted) == (True, 1)


async def test_a_background_job_outlives_a_run(gateway: Simulator, tmp_path: Path) -> None:
    """`start` under the same name keeps the job also if the run is cancelled."""
    path = tmp_path / "1.mp4"
    async with quick_client(gateway) as client:
        running = asyncio.ensure_future(client.run("a kitten", save=path, custom_id="order 7"))
        await until(lambda: gateway.submitted and client.unfinished)
        await settle()
        job = await client.start("a kitten", save=path, custom_id="order 7")
        running.cancel()
        await asyncio.wait([running])
        assert (await job).path == path
    assert (path.is_file(), gateway.submitted) == (True, 1)


async def test_a_run_after_a_restart_pays_once(gateway: Simulator, tmp_path: Path) -> None:
    """The journal knows the name: the clip is saved once, and then its file is known."""
    path, journal = tmp_path / "1.mp4", tmp_path / "run.db"

    async def run(client: Client) -> Path | None:
        return (await client.run("a kitten", save=path, custom_id="order 7")).path

    async with quick_client(gateway, journal=journal) as client:
        await client.generate("a kitten", custom_id="order 7")
    for _ in range(2):
        async with quick_client(gateway, journal=journal) as client:
            assert await run(client) == path
            assert client.unfinished == ()
    downloads = [seen for seen in gateway.requests if seen.where == "download"]
    assert (len(downloads), gateway.submitted) == (1, 1)


async def test_a_file_of_a_killed_run_is_compared(gateway: Simulator, tmp_path: Path) -> None:
    """A process may be killed between saving the clip and recording that."""
    path, journal = tmp_path / "1.mp4", tmp_path / "run.db"
    async with quick_client(gateway, journal=journal) as client:
        task = await client.generate("a kitten", custom_id="order 7")
        async with quick_client(gateway) as other:
            await (await other.task(task.id)).download(path)
    async with quick_client(gateway, journal=journal) as client:
        clip = await client.run("a kitten", save=path, custom_id="order 7")
        assert clip.path == path
    assert sorted(file.name for file in tmp_path.glob("*.mp4*")) == ["1.mp4"]  # noqa: ASYNC240


@pytest.mark.parametrize("way", ["read", "stream"])
async def test_a_clip_that_was_read_is_not_saved(
    gateway: Simulator, tmp_path: Path, way: str
) -> None:
    """The journal says that it was handed out; its task is not unfinished in the next process."""
    journal = tmp_path / "run.db"
    async with quick_client(gateway, journal=journal) as client:
        clip = await client.run("a kitten")
        if way == "read":
            await clip.read()
        else:
            assert [chunk async for chunk in clip.stream()]
    async with quick_client(gateway, journal=journal) as client:
        assert client.journal is not None
        [job] = await client.journal.jobs()
        assert (job.state.value, job.handed_out_at is None) == ("finished", False)
        assert client.unfinished == ()


async def test_a_stream_that_is_left_is_unfinished(gateway: Simulator) -> None:
    """The app may be stopped half-way, and has only a part of the clip."""
    async with quick_client(gateway) as client:
        clip = await client.run("a kitten")
        chunks = clip.stream()
        await anext(chunks)
        assert client.unfinished == (clip.task,)
        await chunks.aclose()
        assert client.unfinished == (clip.task,)
        with pytest.raises(UsageError, match="max_bytes") as caught:
            clip.stream(max_bytes=0)
        assert caught.value.task_id == clip.id


async def test_the_error_of_a_stream_has_no_inner_frames(gateway: Simulator) -> None:
    """Tools show the variables of each frame, and those of a download have the key."""
    gateway.fault("download", faults.server_error(), times=None)
    async with quick_client(gateway) as client:
        clip = await client.run("a kitten")
        with pytest.raises(DownloadIncomplete) as caught:
            await anext(clip.stream())
    assert [entry.frame.code.name for entry in caught.traceback][1:] == ["_stream"]
