"""The public interface as a user's type checker sees it: checked by mypy, never run."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Any, assert_type

import aiohttp
from aiohttp import web

from fuhu_runway import (
    GATEWAYS,
    Account,
    ActOne,
    Aleph,
    Balance,
    BalanceRoute,
    Batch,
    CallbackReceiver,
    Client,
    Clip,
    Gateway,
    GatewayFiles,
    Generation,
    ImageToVideo,
    Item,
    KeyStyle,
    MotionVector,
    OfficialImageToVideo,
    OfficialRequest,
    OfficialVideoToVideo,
    Outcome,
    PollPolicy,
    Progress,
    RetryPolicy,
    RunwayError,
    Task,
    TaskRecord,
    TaskState,
    TextToVideo,
    Timeouts,
    VideoToVideo,
    __version__,
    errors,
    hooks,
    safe_name,
)
from fuhu_runway.inputs import read_items
from fuhu_runway.testing import Simulator, faults, virtual_time


def listener(event: hooks.Event) -> None:
    """The fields of an event are known after `isinstance`."""
    if isinstance(event, hooks.TaskSettled):
        assert_type(event.state, TaskState)
        assert_type(event.points, float | None)
    elif isinstance(event, hooks.RetryScheduled):
        assert_type(event.delay, float)


async def upload(data: bytes, name: str, content_type: str) -> str:
    """An uploader may be async or not."""
    return f"https://own.example/{name}"


def clients(session: aiohttp.ClientSession) -> None:
    """A client takes a key, and everything else by name."""
    Client()
    Client("sk-…")
    Client(
        "sk-…",
        base_url="https://own.example",
        gateway="deerapi",
        session=session,
        callback_url=None,
        timeouts=Timeouts(connect=1, read=2.5, total=300),
        retry=RetryPolicy(attempts=1, first=0.5, factor=2, max_delay=30, max_retry_after=120),
        polling=PollPolicy(
            first=2, factor=1.5, max_interval=15, jitter=0, not_found_grace=1, url_grace=1
        ),
        hooks=[listener],
    )
    Client(gateway=GATEWAYS["duomi"])
    client = Client(gateway=Gateway("own", "https://own.example", prefix="/runway/v1"))
    assert_type(client.gateway, Gateway)
    assert_type(client.gateway.base_url, str | None)
    assert_type(client.gateway.key_style, KeyStyle)
    assert_type(client.gateway.balance, BalanceRoute)
    assert_type(client.unfinished, tuple[Task, ...])
    assert_type(GATEWAYS, Mapping[str, Gateway])

    Client(uploads=GatewayFiles())
    Client(uploads=upload)
    Client(uploads=lambda data, name, content_type: f"https://own.example/{name}")
    Client(uploads=5)  # type: ignore[arg-type]
    Client(account=Account("token", 7))
    Client(account=Account.from_env())
    Client(account="token")  # type: ignore[arg-type]
    Client(timeouts=5)  # type: ignore[arg-type]
    Client("sk-…", "https://own.example")  # type: ignore[call-arg]  # the rest has names


def requests() -> None:
    """Requests are frozen; what is needed has no default, and options have names."""
    motion = MotionVector(y=0.4, r=-6)
    assert_type(motion.y, float)
    text = TextToVideo("a kitten", ratio="9:16", seconds=5, motion=motion, extra={"fps": 24})
    assert_type(text.prompt, str)
    assert_type(text.seconds, int)
    assert_type(text.extra, Mapping[str, Any])
    pictured = ImageToVideo("a kitten", Path("1.png"), last_image=b"")
    assert_type(pictured.last_image, str | bytes | Path | None)
    assert_type(VideoToVideo("https://x.example/1.mp4", "oil").seconds, int | None)
    assert_type(ActOne("https://x.example/1.mp4", "https://x.example/1.png").flip, bool | None)
    assert_type(OfficialImageToVideo("https://x.example/1.png").seed, int | None)
    assert_type(OfficialVideoToVideo("https://x.example/1.mp4", "oil").ratio, str | None)
    assert_type(OfficialRequest("text_to_video", {"promptText": "a kitten"}).path, str)
    anything: Generation = Aleph("https://x.example/1.mp4", "rain")
    assert_type(anything.extra, Mapping[str, Any])

    text.prompt = "another"  # type: ignore[misc]
    TextToVideo("a kitten", "9:16")  # type: ignore[call-arg,arg-type]  # the rest has names
    TextToVideo("a kitten", seconds="5")  # type: ignore[arg-type]
    TextToVideo()  # type: ignore[call-arg]


async def submitting() -> None:
    """Each submit returns a task, and takes requests only."""
    async with Client() as client:
        assert_type(client, Client)
        assert_type(await client.submit(TextToVideo("a kitten")), Task)
        assert_type(await client.generate("a kitten", image=None, ratio="1:1", seconds=5), Task)
        assert_type(await client.video_to_video("https://x.example/1.mp4", "oil"), Task)
        assert_type(await client.act_one("https://x.example/1.mp4", motion_multiplier=2), Task)
        official = client.official
        assert_type(await official.image_to_video("https://x.example/1.png", "run", seed=7), Task)
        assert_type(official.task("t-1"), Task)
        assert_type(await official.feed("t-1"), TaskRecord)
        assert_type(client.task("t-1", official=False), Task)
        assert_type(await client.feed("t-1"), TaskRecord)
        balance = await client.balance()
        assert_type(balance, Balance)
        assert_type(balance.remaining, float | None)
        assert_type(balance.unlimited, bool)

        await client.submit("a kitten")  # type: ignore[arg-type]
    await Client().aclose()


async def running(client: Client) -> None:
    """One call takes a prompt with its options, a request or a task, and gives a clip."""
    assert_type(await client.run("a kitten", save="kitten.mp4", on_update=print), Clip)
    assert_type(await client.run("a kitten", image=None, ratio="1:1", seconds=5), Clip)
    assert_type(await client.run(TextToVideo("a kitten"), timeout=None, custom_id="7"), Clip)
    assert_type(await client.run(client.task("t-1"), save=Path("1.mp4"), overwrite=True), Clip)

    await client.run("a kitten", duration=5)  # type: ignore[call-arg]
    await client.run("a kitten", seconds="5")  # type: ignore[arg-type]
    client.text_to_video("a kitten")  # type: ignore[attr-defined]


async def many(client: Client, lines: AsyncIterator[str], file: Path) -> None:
    """A batch takes prompts, requests and items, from any iterable, sync or async."""
    items: list[str | Item | ActOne] = [
        Item(TextToVideo("a kitten"), custom_id="7"),
        "a puppy",
        ActOne("https://x/1.mp4"),
    ]
    async for outcome in client.generate_many(["a kitten"], in_flight=5, download_to="clips"):
        assert_type(outcome, Outcome)
        assert_type((outcome.clip, outcome.path), tuple[Clip | None, Path | None])
    client.generate_many(lines, timeout=None)
    client.generate_many(f"a kitten, take {number}" for number in range(5))
    client.generate_many(read_items(file))
    client.generate_many(items)
    assert_type(await client.carry_out(Item(TextToVideo("a"), "7"), download_to=file), Outcome)
    assert_type(client.batch(TextToVideo(line) async for line in lines), Batch)

    client.generate_many(5)  # type: ignore[arg-type]
    client.generate_many([5])  # type: ignore[list-item]
    await client.carry_out("a kitten")  # type: ignore[arg-type]
    client.generate_many(["a kitten"], in_fligth=5)  # type: ignore[call-arg]


async def waiting(task: Task) -> None:
    """Each way to wait returns a clip, each poll a record."""
    assert_type(await task, Clip)
    assert_type(await task.wait(timeout=None), Clip)
    assert_type(await task.wait(timeout=30, on_update=print), Clip)
    assert_type(task.updates(timeout=1.5), AsyncIterator[TaskRecord])
    async for record in task.updates():
        assert_type(record.state, TaskState)
        assert_type(record.progress, float | None)
        assert_type(record.video_url, str | None)
        assert_type(record.created_at, datetime | None)
        assert_type(record.notes, tuple[str, ...])
        assert_type(record.has_clip, bool)
        assert_type(record.state.is_final, bool)
    assert_type(await task.refresh(), TaskRecord)
    assert_type(task.id, str)
    assert_type(task.state, TaskState)
    assert_type(task.progress, float | None)
    assert_type(task.points, float | None)
    assert_type(task.record, TaskRecord | None)


async def saving(clip: Clip) -> None:
    """A download returns a path, and reports its progress in bytes."""

    def report(progress: Progress) -> None:
        assert_type(progress.received_bytes, int)
        assert_type(progress.total_bytes, int | None)

    assert_type(await clip.download("kitten.mp4"), Path)
    assert_type(
        await clip.download(Path("kitten.mp4"), overwrite=True, max_bytes=1, on_progress=report),
        Path,
    )
    assert_type(await clip.read(max_bytes=1), bytes)
    assert_type(clip.stream(), AsyncGenerator[bytes, None])
    async with aclosing(clip.stream(max_bytes=1)) as chunks:
        async for chunk in chunks:
            assert_type(chunk, bytes)
    assert_type(clip.path, Path | None)
    assert_type(clip.points, float | None)
    assert_type(clip.video_url, str)
    assert_type(clip.record, TaskRecord)
    assert_type(clip.task, Task)
    assert_type(safe_name("a kitten"), str)


def failing(error: errors.RunwayError) -> None:
    """Each error has the fields of its kind, after a `match` too."""
    assert_type(error.task_id, str | None)
    assert_type(error.request_id, str | None)
    assert_type((error.happened, error.money, error.advice), tuple[str, str, str])
    match error:
        case errors.SubmissionInDoubt():
            assert_type(error.fate, errors.Fate)
        case errors.GatewayError():
            assert_type(error.status, int)
            assert_type(error.retry_after, float | None)
        case errors.TaskFailed():
            assert_type(error.points, float | None)
            assert_type(error.refunded, bool)
        case errors.UnreadableReply():
            assert_type(error.reasons, tuple[str, ...])
        case errors.UsageError():
            assert_type(error.field, str | None)


def top_level(version: str = __version__) -> tuple[type[Exception], Generation]:
    """The root of all errors and the type of all requests need no second import."""
    assert_type(version, str)
    return RunwayError, TextToVideo("a kitten")


def standard_bases(
    usage: errors.UsageError, late: errors.WaitTimeout, unsent: errors.NotSent
) -> tuple[ValueError, TimeoutError, ConnectionError]:
    """Errors are of the standard kinds that callers expect."""
    return usage, late, unsent


def receiving(app: web.Application) -> None:
    """A receiver is given to a client, mounted in an app, or called by another framework."""
    receiver = CallbackReceiver("https://app.example/hooks", secret="s" * 16, safety_net=60)
    Client("sk-1", callbacks=receiver)
    receiver.add_routes(app)
    app.add_routes(receiver.routes("/"))
    app.router.add_post("/hooks/{token}", receiver.handle)
    assert_type(receiver.deliver("token", b"{}"), int)


async def simulating() -> None:
    """The simulator leads a client to itself."""
    async with Simulator(speed=100, points=1000) as gateway:
        gateway.script("a kitten", takes=5, then="fail", faults=[faults.on("feed", faults.NoUrl())])
        client = Client(gateway.api_key, base_url=gateway.base_url)
        assert_type(gateway.submitted, int)
        assert_type(gateway.environment(), dict[str, str])
        gateway.assert_submitted_once(re.compile("kitten"))
        gateway.assert_all_used()
        with virtual_time():
            await asyncio.sleep(600)
        await client.aclose()
