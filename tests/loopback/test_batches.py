"""Many jobs against a whole gateway: what was made, what was paid, what is on disk."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from support.clients import QUICK_POLLS, QUICK_RETRY, EventRecorder, quick_client
from support.clock import until
from support.secrets import secrets_in
from support.servers import reply

from fuhu_runway import Client
from fuhu_runway.errors import (
    DownloadIncomplete,
    OutOfCredits,
    RunwayError,
    Unauthorized,
    UsageError,
)
from fuhu_runway.hooks import TaskPolled
from fuhu_runway.inputs import check_items, read_items
from fuhu_runway.items import Outcome
from fuhu_runway.journal import JobState, Journal
from fuhu_runway.models import ActOne, ImageToVideo, OfficialImageToVideo, TextToVideo, VideoToVideo
from fuhu_runway.testing import Simulator, faults

CLIP: Final = "https://example.com/1.mp4"
STILL: Final = "https://example.com/1.png"
OVER: Final = {"succeeded", "failed", "cancelled", "expired"}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Return where clips are saved."""
    return tmp_path / "clips"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Return where the journal is."""
    return tmp_path / "run.db"


async def made(client: Client, prompts: Any, **options: Any) -> list[Outcome]:
    """Return the outcomes of a batch, in the order of the input."""
    found = [outcome async for outcome in client.generate_many(prompts, **options)]
    return sorted(found, key=lambda outcome: outcome.index)


async def states(journal: Path) -> list[JobState]:
    """Return the states that the closed file holds."""
    book = Journal(journal)
    try:
        return [job.state for job in await book.jobs()]
    finally:
        await book.aclose()


def names_in(folder: Path) -> set[str]:
    """Return what is in a folder."""
    return {file.name for file in folder.iterdir()}


def prompts(count: int) -> list[str]:
    """Return as many different prompts."""
    return [f"a marked kitten {number}" for number in range(count)]


async def test_a_batch_makes_each_clip_once_and_saves_it(
    gateway: Simulator, clips: Path, journal: Path
) -> None:
    """Thirty prompts make thirty tasks and thirty whole files, and nothing beside them."""
    async with quick_client(gateway, journal=journal) as client:
        outcomes = await made(client, prompts(30), in_flight=10, download_to=clips)
    assert gateway.submitted == 30
    assert gateway.duplicates == ()
    assert all(outcome.error is None for outcome in outcomes)
    assert names_in(clips) == {outcome.path.name for outcome in outcomes if outcome.path}
    assert await states(journal) == [JobState.SAVED] * 30


async def test_the_same_batch_again_sends_nothing(
    gateway: Simulator, clips: Path, journal: Path
) -> None:
    """A second run of a finished batch sends no request, and has the same files."""
    source = [*prompts(5), *prompts(5)]
    async with quick_client(gateway, journal=journal) as client:
        before = await made(client, source, download_to=clips)
    sent = len(gateway.requests)
    async with quick_client(gateway, journal=journal) as client:
        after = await made(client, source, download_to=clips)
    assert len(gateway.requests) == sent
    assert [one.path for one in before] == [one.path for one in after]
    assert len({one.path for one in before}) == 10
    assert all(one.resumed for one in after)


async def test_no_more_tasks_run_than_jobs_may_exist(clips: Path) -> None:
    """At the gateway, too, there are never more unfinished tasks than were allowed."""
    running: list[int] = []

    def price(_body: Any) -> float:
        running.append(sum(task.state not in OVER for task in gateway.tasks))
        return 1.0

    async with (
        Simulator(speed=1000, takes=20, price=price) as gateway,
        quick_client(gateway) as client,
    ):
        await made(client, prompts(40), in_flight=6, download_to=clips)
    assert gateway.submitted == 40
    assert max(running) < 6


async def test_every_kind_of_request_goes_through_a_batch_and_through_a_crash(
    gateway: Simulator, journal: Path, clips: Path
) -> None:
    """Tasks of each kind and format are found again by the run that follows the one that left."""
    source = [
        TextToVideo("a marked kitten"),
        ImageToVideo("a marked puppy", STILL),
        VideoToVideo(CLIP, "marked pixels"),
        ActOne(CLIP, STILL),
        OfficialImageToVideo(STILL, "a marked smile"),
    ]
    gateway.script(lambda _body: True, takes=400)
    async with quick_client(gateway, journal=journal) as client:
        leaving = asyncio.create_task(made(client, source, download_to=clips))
        await until(lambda: gateway.submitted == 5)
        leaving.cancel()
        await asyncio.wait([leaving])
    async with quick_client(gateway, journal=journal) as client:
        outcomes = await made(client, source, download_to=clips)
    assert gateway.submitted == 5
    assert all(outcome.path is not None and outcome.resumed for outcome in outcomes)


async def test_leaving_early_loses_nothing(gateway: Simulator, journal: Path, clips: Path) -> None:
    """Left after each third outcome and begun again, a batch pays once for each of its clips."""
    source, found = prompts(20), []
    for _ in range(10):
        async with quick_client(gateway, journal=journal) as client:
            outcomes = client.generate_many(source, in_flight=5, download_to=clips)
            async with aclosing(outcomes):
                fresh = 0
                async for outcome in outcomes:
                    found.append(outcome)
                    fresh += outcome.clip is not None
                    if fresh == 3:
                        break
    assert gateway.submitted == 20
    assert gateway.duplicates == ()
    assert {outcome.index for outcome in found if outcome.path} == set(range(20))
    assert await states(journal) == [JobState.SAVED] * 20


async def test_the_summary_and_the_gateway_agree(gateway: Simulator, journal: Path) -> None:
    """Clips, failures, doubts and points are what the gateway itself has on record."""
    source = prompts(12)
    gateway.script(source[2], then="fail")
    gateway.script(source[3], then="expire")
    gateway.script(source[4], faults=[faults.on("submit", faults.drop_after_accepting())])
    gateway.script(source[5], faults=[faults.on("submit", faults.refused())])
    before = gateway.balance
    async with quick_client(gateway, journal=journal) as client:
        batch = client.batch(source, in_flight=4)
        outcomes = [outcome async for outcome in batch.outcomes()]
    summary = batch.summary
    assert (summary.clips, summary.in_doubt, summary.submitted) == (8, 1, 10)
    assert summary.failures == {"TaskFailed": 2, "InvalidRequest": 1}
    assert summary.done == len(outcomes) == 12
    # The task in doubt was accepted, which only the gateway knows.
    price = gateway.tasks[0].points
    assert before is not None
    assert gateway.balance == before - summary.points - price
    assert summary.refunded_points == gateway.refunds == 2 * price


async def test_what_is_in_doubt_stays_so_in_every_run(gateway: Simulator, journal: Path) -> None:
    """Two submissions without a response are two doubts, however often the batch is run."""
    source = prompts(4)
    gateway.script(source[0], faults=[faults.on("submit", faults.drop_after_accepting())])
    gateway.script(source[1], faults=[faults.on("submit", faults.drop_before_accepting())])
    for run in range(3):
        async with quick_client(gateway, journal=journal) as client:
            outcomes = await made(client, source, retry_failed=True)
        assert [outcome.is_in_doubt for outcome in outcomes] == [True, True, False, False]
        assert [outcome.resumed for outcome in outcomes[:2]] == [run > 0] * 2
    assert gateway.submitted == 3


async def test_what_failed_is_submitted_again_only_if_that_is_wanted(
    gateway: Simulator, journal: Path, clips: Path
) -> None:
    """A failed job is submitted again only in the run that requests it."""
    source = prompts(3)
    gateway.script(then="fail")
    counts = []
    for retry_failed in [False, False, True, True]:
        async with quick_client(gateway, journal=journal) as client:
            await made(client, source, in_flight=1, retry_failed=retry_failed, download_to=clips)
        counts.append(gateway.submitted)
    assert counts == [3, 3, 4, 4]
    assert await states(journal) == [JobState.SAVED] * 3


async def test_no_more_points_are_spent_than_allowed() -> None:
    """However many jobs might run at once, the account has lost no more than was allowed."""
    async with (
        Simulator(speed=1000, takes=20, points=100_000.0) as gateway,
        quick_client(gateway) as client,
    ):
        gateway.script(prompts(60)[3], then="fail")
        batch = client.batch(prompts(60), in_flight=20, max_points=2_400.0)
        outcomes = [outcome async for outcome in batch.outcomes()]
        left = gateway.balance
    (cost,) = {task.points for task in gateway.tasks}
    assert batch.summary.out_of_points
    assert left == 100_000.0 - batch.summary.points
    assert batch.summary.points <= 2_400.0 < batch.summary.points + cost
    assert len(outcomes) == gateway.submitted


async def test_saving_overlaps_with_waiting(gateway: Simulator, clips: Path) -> None:
    """While one file trickles in, the tasks of other jobs are polled and their clips saved."""
    recorder = EventRecorder()
    source = prompts(6)
    gateway.script(source[0], faults=[faults.on("download", faults.Hang(after_bytes=100))])
    async with quick_client(gateway, hooks=[recorder]) as client:
        outcomes = client.generate_many(source, in_flight=2, download_to=clips)
        async with aclosing(outcomes):
            for _ in range(5):
                outcome = await anext(outcomes)
                assert outcome.index != 0
                assert outcome.path is not None
    assert {event.task_id for event in recorder.all(TaskPolled)} >= {
        task.task_id for task in gateway.tasks
    }


async def test_a_batch_survives_its_gateway(gateway: Simulator, clips: Path, journal: Path) -> None:
    """While the gateway is away jobs wait or fail unsent, and the next run makes what is left."""
    source = prompts(12)

    async def blink() -> None:
        for _ in range(3):
            await until(lambda: gateway.submitted >= 3)
            await gateway.aclose()
            await asyncio.sleep(0.02)
            await gateway.start()
            await asyncio.sleep(0.02)

    blinking = asyncio.create_task(blink())
    async with quick_client(gateway, journal=journal) as client:
        await made(client, source, in_flight=3, download_to=clips)
    await blinking
    async with quick_client(gateway, journal=journal) as client:
        outcomes = await made(client, source, in_flight=3, download_to=clips)
    assert gateway.duplicates == ()
    for outcome in outcomes:
        assert outcome.is_in_doubt or outcome.path is not None
    assert await states(journal) == [
        JobState.IN_DOUBT if outcome.is_in_doubt else JobState.SAVED for outcome in outcomes
    ]


async def test_broken_downloads_lose_no_clips(gateway: Simulator, clips: Path) -> None:
    """Cut connections and dead links cost a clip of a batch some time, and nothing else."""
    for fault in [faults.Cut(5000), faults.ExpiredLink(), faults.server_error(503)]:
        gateway.fault("download", fault, times=3)
    async with quick_client(gateway) as client:
        outcomes = await made(client, prompts(9), in_flight=3, download_to=clips)
    assert gateway.submitted == 9
    assert names_in(clips) == {outcome.path.name for outcome in outcomes if outcome.path}
    assert len(names_in(clips)) == 9
    assert gateway.leaked == ()


async def test_a_source_may_take_its_time(gateway: Simulator) -> None:
    """Prompts from an asynchronous source are submitted as they come."""

    async def source() -> AsyncIterator[str]:
        for number, prompt in enumerate(prompts(4)):
            await until(lambda: gateway.submitted == number)  # noqa: B023 - awaited at once
            yield prompt

    async with quick_client(gateway) as client:
        outcomes = await made(client, source())
    assert [outcome.clip is not None for outcome in outcomes] == [True] * 4


async def test_a_file_becomes_a_batch(gateway: Simulator, tmp_path: Path, clips: Path) -> None:
    """Each entry of a checked file becomes a job, under the name in the entry."""
    lines = [
        {"prompt": "a marked kitten", "seconds": 5, "custom_id": "kitten"},
        {"prompt": "a marked smile", "image": STILL, "custom_id": "smile"},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert check_items(path) == 2
    assert gateway.requests == ()
    async with quick_client(gateway) as client:
        outcomes = await made(client, read_items(path), download_to=clips)
    assert [outcome.custom_id for outcome in outcomes] == ["kitten", "smile"]
    assert names_in(clips) == {"kitten.mp4", "smile.mp4"}
    assert {task.action for task in gateway.tasks} == {"TEXT_TO_VIDEO", "IMAGE_TO_VIDEO"}


@pytest.mark.parametrize(
    "address",
    [
        "http://cdn..example/c.mp4",
        f"http://{'a' * 70}.example/c.mp4",
        "http://user@127.0.0.1:1/c.mp4",
        "http://127.0.0.1:99999/c.mp4",
        "http://[::1/c.mp4",
        "http://\u0661.example\u0000/c.mp4",
    ],
)
async def test_one_odd_address_is_one_outcome(clips: Path, journal: Path, address: str) -> None:
    """Of twelve clips, one of which has an impossible URL, eleven are saved."""
    video = b"\0\0\0\x08ftyp\0\0\0\x08moov"
    ids = iter(range(1, 13))

    def answer(head: bytes, body: bytes) -> bytes:
        if b"/feed" in head:
            task_id = json.loads(body)["task_id"]
            url = address if task_id == "t-2" else f"{base}/c.mp4"
            fields = {"task_id": task_id, "status": "3", "video_url": url}
        elif head.startswith(b"GET"):
            return reply(video, Content_Type="video/mp4")
        else:
            fields = {"task_id": f"t-{next(ids)}"}
        return reply(json.dumps({"code": 200, "data": fields}).encode())

    async with routed_server(answer) as base:
        client = Client(
            "sk-x", base_url=base, journal=journal, polling=QUICK_POLLS, retry=QUICK_RETRY
        )
        async with client:
            outcomes = await made(client, prompts(12), in_flight=3, download_to=clips)
    (odd,) = [outcome for outcome in outcomes if outcome.error]
    assert odd.task_id == "t-2"
    assert isinstance(odd.error, RunwayError)
    assert secrets_in(odd.error, [address]) == []
    assert len(names_in(clips)) == 11
    assert (await states(journal)).count(JobState.SAVED) == 11


@asynccontextmanager
async def routed_server(answer: Callable[[bytes, bytes], bytes]) -> AsyncIterator[str]:
    """Serve the result of *answer* for the head and the body of each request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                writer.write(
                    answer(head, await reader.readexactly(int(length[1]) if length else 0))
                )
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_second_run_without_a_journal_replaces_nothing(
    gateway: Simulator, clips: Path
) -> None:
    """Each job finds its file before anything is paid; with overwrite=True it is made again."""
    async with quick_client(gateway) as client:
        first = await made(client, prompts(3), download_to=clips)
        kept = first[0].path
        assert kept is not None
        kept.write_bytes(b"mine")
        second = await made(client, prompts(3), download_to=clips)
        assert [type(outcome.error) for outcome in second] == [UsageError] * 3
        assert (gateway.submitted, kept.read_bytes()) == (3, b"mine")
        third = await made(client, prompts(3), download_to=clips, overwrite=True)
    assert [outcome.path for outcome in third] == [outcome.path for outcome in first]
    assert (gateway.submitted, kept.read_bytes()[4:8]) == (6, b"ftyp")


async def test_a_dead_key_is_tried_by_few_and_costs_nothing(
    gateway: Simulator, clips: Path, journal: Path
) -> None:
    """Of forty prompts no more are refused than jobs may exist; the next run makes them all."""
    gateway.fault("submit", faults.key_exhausted(), times=None)
    async with quick_client(gateway, journal=journal) as client:
        batch = client.batch(prompts(40), in_flight=4, download_to=clips)
        outcomes = [outcome async for outcome in batch.outcomes()]
    assert batch.summary.stopped_by == "OutOfCredits"
    assert 1 <= len(outcomes) <= 4
    assert {type(outcome.error) for outcome in outcomes} == {OutOfCredits}
    assert set(await states(journal)) == {JobState.PLANNED}
    gateway.forget_plans()
    async with quick_client(gateway, journal=journal) as client:
        again = await made(client, prompts(40), in_flight=10, download_to=clips)
    assert all(outcome.path for outcome in again)
    assert gateway.submitted == 40


async def test_a_gateway_that_is_not_there_ends_the_submitting(clips: Path, journal: Path) -> None:
    """Nothing was sent, so every job is still planned."""
    gateway = Simulator()
    await gateway.start()
    await gateway.aclose()
    async with quick_client(gateway, journal=journal) as client:
        batch = client.batch(prompts(40), in_flight=2, download_to=clips)
        outcomes = [outcome async for outcome in batch.outcomes()]
    assert batch.summary.stopped_by == "NotSent"
    assert 1 <= len(outcomes) <= 2
    assert set(await states(journal)) == {JobState.PLANNED}


async def test_the_timeout_of_a_batch_holds_for_its_downloads(
    gateway: Simulator, clips: Path, journal: Path
) -> None:
    """A host that goes silent costs one job its time; the next run fetches the rest of the file."""
    gateway.fault("download", faults.Hang(after_bytes=1000))
    async with quick_client(gateway, journal=journal) as client:
        outcomes = await made(client, prompts(3), in_flight=1, timeout=1.0, download_to=clips)
        assert [type(outcome.error) for outcome in outcomes] == [
            DownloadIncomplete,
            type(None),
            type(None),
        ]
        again = await made(client, prompts(3), download_to=clips)
    assert all(outcome.path for outcome in again)
    assert gateway.submitted == 3


async def test_a_key_that_was_accepted_may_be_refused_once(
    gateway: Simulator, journal: Path
) -> None:
    """The submit is sent again, and the batch goes on: nothing was charged for a refused key."""
    async with (
        quick_client(gateway, journal=journal) as client,
        aclosing(client.generate_many(prompts(6), in_flight=1)) as outcomes,
    ):
        await anext(outcomes)
        gateway.fault("submit", faults.error(401))
        left = [outcome async for outcome in outcomes]
    assert [outcome.error for outcome in left] == [None] * 5
    assert gateway.submitted == 6


async def test_a_key_that_is_refused_from_now_on_stops_a_batch(
    gateway: Simulator, journal: Path
) -> None:
    """After the policy's attempts, no more is submitted; the jobs stay planned for the next run."""
    async with quick_client(gateway, journal=journal) as client:
        await client.generate("a kitten")
        gateway.fault("submit", faults.error(401), times=None)
        batch = client.batch(prompts(6), in_flight=1)
        outcomes = [outcome async for outcome in batch.outcomes()]
    assert [type(outcome.error) for outcome in outcomes] == [Unauthorized]
    assert batch.summary.stopped_by == "Unauthorized"
    assert gateway.submitted == 1
    assert JobState.PLANNED in await states(journal)
