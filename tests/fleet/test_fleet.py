"""A fleet on a database: what comes in, what is carried out, and what bad input gets."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from support.clients import QUICK_POLLS, QUICK_RETRY
from support.media import PNG

from fuhu_runway import Item, TextToVideo
from fuhu_runway.contrib._fleet.requests import packed, unpacked
from fuhu_runway.contrib.fleet import Enqueued, Fleet
from fuhu_runway.errors import UsageError
from fuhu_runway.journal import Job, JobState
from fuhu_runway.models import ImageToVideo, MotionVector
from fuhu_runway.testing import Simulator

PROMPTS: Final = ["a kitten", "a kitten", "a duckling"]
NAMED: Final = [
    Item(TextToVideo("a kitten"), "order-1"),
    Item(TextToVideo("a duckling"), "order-2"),
]

Made = Callable[..., Fleet]


@pytest.fixture
def made(database_url: str, gateway: Simulator, tmp_path: Path) -> Made:
    """Return a function that makes a fleet on the test's database."""

    def make(**changes: Any) -> Fleet:
        settings: dict[str, Any] = {
            "api_key": gateway.api_key,
            "base_url": gateway.base_url,
            "download_to": tmp_path / "clips",
            "lease": 0.6,
            "polling": QUICK_POLLS,
            "retry": QUICK_RETRY,
        }
        return Fleet(database_url, **{**settings, **changes})

    return make


@pytest.fixture
async def fleet(made: Made) -> AsyncIterator[Fleet]:
    """Yield a fleet whose database has the tables."""
    one = made()
    await one.init()
    async with one:
        yield one


@asynccontextmanager
async def working(fleet: Fleet, **options: Any) -> AsyncIterator["asyncio.Task[None]"]:
    """Let a worker work."""
    work = asyncio.create_task(fleet.work(signals=False, **options))
    try:
        yield work
    finally:
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work


async def ended(fleet: Fleet) -> dict[str | None, Job]:
    """Let a worker carry out every job, and return how they ended."""
    async with working(fleet):
        return {job.custom_id or job.key: job async for job in fleet.outcomes()}


def rows(url: str, sql: str, *values: Any) -> list[Any]:
    """Return what a statement returns."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql, values)
        return cursor.fetchall() if cursor.description else []


# What comes in


async def test_jobs_are_carried_out_and_their_clips_saved(
    fleet: Fleet, gateway: Simulator, tmp_path: Path
) -> None:
    """Every job has one task and one file, also if two requests are equal; no request is left."""
    assert await fleet.enqueue(PROMPTS) == Enqueued(new=3, known=0)
    jobs = await ended(fleet)
    assert {job.state for job in jobs.values()} == {JobState.SAVED}
    assert sorted(task.prompt for task in gateway.tasks) == sorted(PROMPTS)
    assert len(list((tmp_path / "clips").iterdir())) == 3
    assert await fleet.left() == 0


async def test_the_same_again_is_nothing_new(fleet: Fleet, gateway: Simulator) -> None:
    """Enqueueing again adds nothing: not before the jobs are carried out, and not afterwards."""
    assert await fleet.enqueue(NAMED) == Enqueued(new=2, known=0)
    assert await fleet.enqueue(NAMED) == Enqueued(new=0, known=2)
    await ended(fleet)
    assert await fleet.enqueue(NAMED) == Enqueued(new=0, known=2)
    assert await ended(fleet)
    assert len(gateway.tasks) == 2


async def test_more_of_the_same_is_new(fleet: Fleet) -> None:
    """Of a file that has grown, the lines that were added are new."""
    await fleet.enqueue(PROMPTS[:2])
    assert await fleet.enqueue(PROMPTS) == Enqueued(new=1, known=2)


async def test_two_enqueuers_at_once_add_each_job_once(made: Made, fleet: Fleet) -> None:
    """Of two programs that enqueue the same at the same time, each job is new to one."""
    prompts = [f"prompt {n}" for n in range(450)]
    async with made() as other:
        found = await asyncio.gather(fleet.enqueue(prompts), other.enqueue(iter(prompts)))
    assert sum(one.new for one in found) == 450
    status = await fleet.status()
    assert status.ready + status.later == 450


async def test_a_source_may_be_asynchronous(fleet: Fleet) -> None:
    """Requests may come from an async iterable."""

    async def source() -> AsyncIterator[str]:
        yield "a kitten"

    assert await fleet.enqueue(source()) == Enqueued(new=1, known=0)
    assert await fleet.enqueue([]) == Enqueued(new=0, known=0)


async def test_a_custom_id_belongs_to_one_request(fleet: Fleet) -> None:
    """Another request under a name is refused: in one source, later, and when it is over."""
    other = Item(TextToVideo("a puppy"), "order-1")
    with pytest.raises(UsageError, match="Two different requests have the custom_id 'order-1'"):
        await fleet.enqueue([*NAMED, other])
    await fleet.enqueue([NAMED[0], NAMED[0]])
    with pytest.raises(UsageError, match="'order-1' belongs to another request"):
        await fleet.enqueue([other])
    await ended(fleet)
    with pytest.raises(UsageError, match="'order-1' belongs to another request"):
        await fleet.enqueue([other])


async def test_a_name_belongs_to_one_source(fleet: Fleet) -> None:
    """Other items under the name of a source are refused before any is added."""
    await fleet.enqueue(NAMED, name="spring")
    assert await fleet.enqueue(NAMED, name="spring") == Enqueued(new=0, known=2)
    with pytest.raises(UsageError, match="Other items were enqueued as 'spring'"):
        await fleet.enqueue(PROMPTS, name="spring")
    assert await fleet.left() == 2


async def test_a_job_that_failed_is_new_on_request(fleet: Fleet, gateway: Simulator) -> None:
    """What failed is submitted again only if that is asked for."""
    gateway.script("a kitten", then="fail")
    gateway.script("a kitten")
    await fleet.enqueue(NAMED[:1])
    assert (await ended(fleet))["order-1"].state is JobState.FAILED
    assert await fleet.enqueue(NAMED[:1]) == Enqueued(new=0, known=1)
    assert await fleet.enqueue(NAMED[:1], retry_failed=True) == Enqueued(new=1, known=0)
    assert (await ended(fleet))["order-1"].state is JobState.SAVED


def test_pictures_and_camera_motions_reach_the_worker(tmp_path: Path) -> None:
    """A request arrives as it was made, with local files as bytes and as a path."""
    path = tmp_path / "first.png"
    path.write_bytes(PNG)
    requests = [
        ImageToVideo("a pan", "https://pictures.example/a.png", motion=MotionVector(x=3)),
        ImageToVideo("a file", path),
        ImageToVideo("some bytes", PNG),
    ]
    items = [Item(request, f"order-{n}", f"p.txt:{n}") for n, request in enumerate(requests)]
    for item in items:
        body = packed(item, retry_failed=False, seal=None)
        back, retry_failed = unpacked(body, "key", is_sealed=False, seal=None)
        assert (back, back.source, retry_failed) == (item, item.source, False)


def test_a_job_without_a_name_keeps_its_key() -> None:
    """A request arrives under the key that it was enqueued with."""
    body = packed(Item(TextToVideo("a kitten")), retry_failed=True, seal=None)
    assert unpacked(body, "f00:2", is_sealed=False, seal=None) == (
        Item(TextToVideo("a kitten"), key="f00:2"),
        True,
    )


# Secrets


async def test_the_queue_and_the_log_have_no_prompt(
    fleet: Fleet, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A job in the queue is a key; no log line has the prompt, and nothing is left at the end."""
    caplog.set_level(logging.DEBUG)
    await fleet.enqueue(["a marked wombat"])
    queued = rows(database_url, "SELECT to_json(q)::text FROM procrastinate_jobs q")
    assert len(queued) == 1
    assert "wombat" not in queued[0][0]
    await ended(fleet)
    assert caplog.records
    for record in caplog.records:
        assert "wombat" not in record.getMessage()
        assert "wombat" not in repr(record.__dict__)
    assert rows(database_url, "SELECT FROM procrastinate_jobs") == []
    assert rows(database_url, "SELECT FROM fuhu_request") == []


class Lock:
    """A seal that is none: it turns the bytes around, and puts its name in front."""

    def __init__(self, name: bytes) -> None:
        self.name = name

    def encrypt(self, data: bytes) -> bytes:
        return self.name + data[::-1]

    def decrypt(self, token: bytes) -> bytes:
        if not token.startswith(self.name):
            raise ValueError
        return token.removeprefix(self.name)[::-1]


async def test_requests_can_be_sealed(made: Made, fleet: Fleet, database_url: str) -> None:
    """With a seal, the database has the request encrypted; a worker needs the same seal."""
    async with made(seal=Lock(b"one")) as sealed:
        await sealed.enqueue(["a marked wombat"])
        [(body,)] = rows(database_url, "SELECT body FROM fuhu_request")
        assert b"wombat" not in bytes(body)
        for seal in (None, Lock(b"another")):
            with pytest.raises(UsageError, match="The request is encrypted"):
                unpacked(bytes(body), "key", is_sealed=True, seal=seal)
        [job] = (await ended(sealed)).values()
    assert job.state is JobState.SAVED
