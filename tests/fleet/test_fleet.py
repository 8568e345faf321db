"""A fleet on a database: what comes in, what is carried out, and what bad input gets."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Self, cast
from urllib.parse import urlsplit

import attrs
import procrastinate
import psycopg
import psycopg_pool
import pytest
from procrastinate.schema import SchemaManager
from support.clients import QUICK_POLLS, QUICK_RETRY
from support.clock import until
from support.media import PNG
from support.relays import relay_to

from fuhu_runway import Client, Item, Limits, TextToVideo
from fuhu_runway.contrib import _postgres
from fuhu_runway.contrib._fleet import queue, worker
from fuhu_runway.contrib._fleet.queue import PAUSE, Connector, Queue, Waiting
from fuhu_runway.contrib._fleet.requests import packed, unpacked
from fuhu_runway.contrib.fleet import Enqueued, Fleet, LeaseExpired
from fuhu_runway.contrib.local_postgres import LocalPostgres
from fuhu_runway.errors import JournalBusy, JournalError, JournalTooNew, UsageError
from fuhu_runway.items import plan_for
from fuhu_runway.journal import BaseJournal, Job, JobState
from fuhu_runway.models import ImageToVideo, MotionVector
from fuhu_runway.testing import Simulator, faults

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
            "lease": 2.0,
            "polling": QUICK_POLLS,
            "retry": QUICK_RETRY,
        }
        return Fleet(changes.pop("url", database_url), **{**settings, **changes})

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
    """Let a worker work, which is started again if a slow machine cuts it off."""

    async def supervise() -> None:
        while True:
            with suppress(LeaseExpired):
                return await fleet.work(signals=False, **options)

    work = asyncio.create_task(supervise())
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


async def happens(look: Callable[[], Awaitable[object]]) -> None:
    """Return once *look* returns something true."""
    while not await look():  # noqa: ASYNC110  (what happens in a database is no event)
        await asyncio.sleep(0.02)


async def later(fleet: Fleet) -> int:
    """Return how many jobs wait to be delivered again."""
    return (await fleet.status()).scheduled


async def running(fleet: Fleet) -> int:
    """Return how many jobs workers have."""
    return (await fleet.status()).running


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
    other = made()  # which the first of its two calls opens
    found = await asyncio.gather(
        fleet.enqueue(prompts), other.enqueue(iter(prompts)), other.enqueue(prompts)
    )
    assert sum(one.new for one in found) == 450
    status = await fleet.status()
    assert status.ready + status.scheduled == 450


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


async def test_items_that_are_refused_leave_their_name_free(fleet: Fleet) -> None:
    """What is wrong with one item is found before any is added, and before the name is taken."""
    await fleet.enqueue(NAMED)
    new, wrong = (Item(TextToVideo("a foal"), name) for name in ("order-3", "order-1"))
    with pytest.raises(UsageError, match="The name 'order-1' belongs to another request"):
        await fleet.enqueue([new, wrong], name="spring")
    with pytest.raises(UsageError, match="Two different requests have the custom_id 'order-3'"):
        await fleet.enqueue([new, Item(TextToVideo("a calf"), "order-3")], name="spring")
    assert await fleet.left() == 2
    assert await fleet.enqueue([new], name="spring") == Enqueued(new=1, known=0)


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
        body = packed(item, retry_failed=False, cipher=None)
        back, retry_failed = unpacked(body, "key", is_encrypted=False, cipher=None)
        assert (back, back.source, retry_failed) == (item, item.source, False)


def test_a_job_without_a_name_keeps_its_key() -> None:
    """A request arrives under the key that it was enqueued with."""
    body = packed(Item(TextToVideo("a kitten")), retry_failed=True, cipher=None)
    assert unpacked(body, "f00:2", is_encrypted=False, cipher=None) == (
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


async def test_the_pool_of_connections_does_not_log_where_the_database_is(
    fleet: Fleet, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that is returned in a transaction is logged, without host, user and database."""
    caplog.set_level(logging.DEBUG)
    one = Queue(database_url)
    async with one.app.open_async():
        connection = await one.connector.pool.getconn()
        await connection.execute("SELECT")
        await one.connector.pool.putconn(connection)
    assert "rolling back returned connection: <connection of the queue>" in caplog.text
    assert "host=" not in caplog.text


class Lock:
    """A cipher for tests: it reverses the bytes, and puts its name in front."""

    def __init__(self, name: bytes) -> None:
        self.name = name

    def encrypt(self, data: bytes) -> bytes:
        return self.name + data[::-1]

    def decrypt(self, token: bytes) -> bytes:
        if not token.startswith(self.name):
            raise ValueError
        return token.removeprefix(self.name)[::-1]


async def test_requests_can_be_encrypted(made: Made, fleet: Fleet, database_url: str) -> None:
    """With a cipher, the database has the request encrypted; a worker needs the same cipher."""
    async with made(cipher=Lock(b"one")) as secret:
        await secret.enqueue(["a marked wombat"])
        [(body,)] = rows(database_url, "SELECT body FROM fuhu_request")
        assert b"wombat" not in bytes(body)
        for cipher in (None, Lock(b"another")):
            with pytest.raises(UsageError, match="The request is encrypted"):
                unpacked(bytes(body), "key", is_encrypted=True, cipher=cipher)
        [job] = (await ended(secret)).values()
    assert job.state is JobState.SAVED


# What is cancelled, and what a person sees


async def test_a_job_that_waits_is_gone_when_it_is_cancelled(
    fleet: Fleet, gateway: Simulator
) -> None:
    """By its custom id or by its key, before a worker has it: nothing is sent or left of it."""
    await fleet.enqueue(NAMED)
    assert await fleet.cancel("order-1") is None
    assert await fleet.cancel("id:order-2") is None
    with pytest.raises(UsageError, match="There is no such job"):
        await fleet.cancel("order-1")
    assert await ended(fleet) == {}
    assert gateway.tasks == ()


async def test_a_job_that_a_worker_has_is_gone_if_it_was_not_sent(
    made: Made, fleet: Fleet, gateway: Simulator
) -> None:
    """A job that was refused for now, and waits to be sent again, is gone."""
    gateway.fault("submit", faults.TooManyRequests(), times=None)
    async with made(retry=attrs.evolve(QUICK_RETRY, attempts=100)) as patient:
        async with working(patient):
            await patient.enqueue(NAMED[:1])
            await until(lambda: gateway.requests)
            assert await patient.cancel("order-1") is None
        assert await patient.journal.jobs() == []
    assert gateway.tasks == ()


async def test_a_job_that_is_paid_for_is_followed_no_more(fleet: Fleet, gateway: Simulator) -> None:
    """It is reported as accepted, and no worker takes it up again."""
    gateway.script("a kitten", then="stall")
    async with working(fleet):
        await fleet.enqueue(NAMED[:1])
        await until(lambda: gateway.tasks and gateway.tasks[0].polls)
        job = await fleet.cancel("order-1")
        assert job is not None
        assert job.state is JobState.ACCEPTED
        assert job.task_id == gateway.tasks[0].task_id
        assert await fleet.left() == 0
    assert [job async for job in fleet.outcomes()] == []


async def test_a_job_of_a_dead_worker_can_be_cancelled(
    fleet: Fleet, gateway: Simulator, database_url: str
) -> None:
    """No other worker need be there to take the job from the dead one."""
    await fleet.enqueue(NAMED)
    await fleet.journal.plan(await plan_for(NAMED[0]), 0.0)
    die(database_url, at="accepted")
    job = await fleet.cancel("order-1")
    assert job is not None
    assert job.state is JobState.ACCEPTED
    assert await running(fleet) == 1
    assert await fleet.left() == 1


async def test_a_job_that_is_sent_while_it_is_cancelled_keeps_its_row(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was frozen may send it after its row was read; then it may be paid for."""
    job = await fleet.journal.plan(await plan_for(NAMED[0]), 0.0)
    find, reads = fleet.journal.find, iter(range(3))

    async def found(name: str) -> Job | None:
        found = await find(name)
        if next(reads) == 1:
            await fleet.journal.step(job.key, JobState.SUBMITTING, 1.0)
        return found

    monkeypatch.setattr(fleet.journal, "find", found)
    left = await fleet.cancel("order-1")
    assert left is not None
    assert left.state is JobState.SUBMITTING


async def test_the_status_counts_jobs_and_workers(fleet: Fleet, gateway: Simulator) -> None:
    """It has the workers with their heartbeats, what waits and runs, the doubts and the points."""
    gateway.script("a kitten", then="stall")
    gateway.fault("submit", faults.drop_after_accepting())
    await fleet.enqueue(NAMED)
    before = await fleet.status()
    assert (before.workers, before.ready, before.running, before.points) == ([], 2, 0, 0)
    async with working(fleet, in_flight=1, grace=0.0):
        await until(lambda: len(gateway.tasks) == 2 and gateway.tasks[1].polls)
        now = await fleet.status()
        [one] = now.workers
        assert one.heartbeat_age < 60
    assert [job.custom_id for job in now.doubts] == ["order-1"]
    assert now.jobs[JobState.IN_DOUBT] == 1


async def test_a_job_that_is_forgotten_meanwhile_has_no_outcome(fleet: Fleet) -> None:
    """While outcomes are read, a job may be forgotten that has not come up yet."""
    await fleet.enqueue(NAMED)
    await ended(fleet)
    outcomes = fleet.outcomes()
    first = await anext(outcomes)
    [other] = [job for job in await fleet.journal.jobs() if job != first]
    await fleet.journal.forget(other.key)
    assert [job async for job in outcomes] == []


# What a worker does


async def test_a_worker_that_is_told_to_stop_ends_its_jobs_first(
    made: Made, fleet: Fleet, gateway: Simulator
) -> None:
    """After SIGTERM, it takes up no more jobs, and returns once those that it has are saved."""
    gateway.script("a kitten", takes=300.0)
    await fleet.enqueue(NAMED)
    patient = made(lease=600.0)
    work = asyncio.create_task(patient.work(in_flight=1))
    await until(lambda: gateway.tasks)
    os.kill(os.getpid(), signal.SIGTERM)
    await work
    jobs = await fleet.journal.jobs()
    assert [job.state for job in jobs] == [JobState.SAVED]
    assert await fleet.left() == 1


async def test_what_takes_too_long_is_given_back(fleet: Fleet, gateway: Simulator) -> None:
    """After *grace* seconds, the job of a worker that stops is free for another, and paid once."""
    gateway.script("a kitten", takes=2000.0)
    await fleet.enqueue(NAMED[:1])
    async with working(fleet, grace=0.0):
        await until(lambda: gateway.tasks)
    assert (await fleet.status()).ready == 1
    assert (await ended(fleet))["order-1"].state is JobState.SAVED
    assert len(gateway.tasks) == 1


async def test_a_request_in_flight_is_answered_before_the_job_is_given_back(
    fleet: Fleet, gateway: Simulator
) -> None:
    """A worker that stops while it submits writes down the id first: nothing is in doubt."""
    gateway.fault("submit", faults.Slow(500.0))
    await fleet.enqueue(NAMED[:1])
    async with working(fleet, grace=0.0):
        await until(lambda: gateway.tasks)
    [job] = await fleet.journal.jobs()
    assert (job.state, job.task_id) == (JobState.ACCEPTED, gateway.tasks[0].task_id)
    assert (await ended(fleet))["order-1"].state is JobState.SAVED


async def test_an_id_that_the_journal_refuses_keeps_no_worker(
    made: Made, fleet: Fleet, gateway: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A worker ends although an id can never be written, and the others go on.

    The id is in the log, and the job is in doubt: it is not sent again.
    """
    answer = '{"code": "success", "data": {"task_id": "task\\u0000of-order-1"}}'
    gateway.fault("submit", faults.Response(200, answer, accepted=True))
    await fleet.enqueue(NAMED[:1])
    async with working(fleet, grace=0.0):
        await happens(lambda: fleet.journal.jobs(JobState.IN_DOUBT))
    assert r'task_id="task\u0000of-order-1"' in caplog.text
    await fleet.enqueue(NAMED[1:])
    async with made(limits=Limits(tasks_in_flight=1)) as other:
        states = {name: job.state for name, job in (await ended(other)).items()}
    assert states == {"order-1": JobState.IN_DOUBT, "order-2": JobState.SAVED}
    assert len(gateway.tasks) == 2


async def test_a_journal_that_refuses_everything_keeps_no_worker(
    fleet: Fleet, gateway: Simulator, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that stops while it submits ends, though the id is refused; the log has it."""
    gateway.fault("submit", faults.Slow(500.0))
    await fleet.enqueue(NAMED[:1])
    async with working(fleet, grace=0.0):
        await until(lambda: gateway.tasks)
        refusing = "CHECK (task_id IS NULL AND state <> 'in doubt')"
        rows(database_url, f"ALTER TABLE fuhu_job ADD {refusing}")
    unrecorded = [line for line in caplog.messages if line.startswith("SubmissionUnrecorded ")]
    assert [gateway.tasks[0].task_id in line for line in unrecorded] == [True]
    rows(database_url, "ALTER TABLE fuhu_job DROP CONSTRAINT fuhu_job_check")
    assert (await ended(fleet))["order-1"].state is JobState.IN_DOUBT
    assert len(gateway.tasks) == 1


async def test_what_is_refused_for_now_is_delivered_again(
    fleet: Fleet, gateway: Simulator, database_url: str
) -> None:
    """A job that was not accepted goes back into the queue, with a delay, and is sent later."""
    gateway.fault("submit", faults.quota_in_429())
    await fleet.enqueue(NAMED[:1])
    async with working(fleet):
        await until(lambda: gateway.requests)
        await happens(lambda: later(fleet))
        rows(database_url, "UPDATE procrastinate_jobs SET scheduled_at = NULL")
    await fleet.__aexit__()
    await fleet.__aenter__()
    assert (await ended(fleet))["order-1"].state is JobState.SAVED


async def test_all_workers_together_respect_the_limit_of_tasks(
    made: Made, fleet: Fleet, gateway: Simulator
) -> None:
    """Of ten jobs, at most two are at the gateway at the same time, with two workers."""
    await fleet.enqueue(f"prompt {n}" for n in range(10))
    limits = Limits(tasks_in_flight=2)
    async with (
        made(limits=limits) as one,
        made(limits=limits) as two,
        working(one),
        working(two),
    ):
        jobs = [job async for job in fleet.outcomes()]
    assert {job.state for job in jobs} == {JobState.SAVED}
    assert len(jobs) == 10


async def test_a_clock_that_is_ahead_delays_no_job(
    fleet: Fleet, gateway: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose clock is an hour ahead gives a job back, and others can take it up at once."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(hours=1)

    for module in (worker, queue):
        monkeypatch.setattr(module, "datetime", Ahead)
    gateway.script("a kitten", then="stall")
    await fleet.enqueue(NAMED[:1])
    async with working(fleet, grace=0.0):
        await happens(lambda: fleet.journal.jobs(JobState.ACCEPTED))
    now = await fleet.status()
    assert (now.ready, now.scheduled, now.running) == (1, 0, 0)


async def test_all_workers_together_respect_the_rate(
    made: Made, fleet: Fleet, gateway: Simulator
) -> None:
    """Two workers share one pace: the lower limit of the two holds, until they have ended."""
    before = await fleet.status()
    assert (before.rate, before.held) == (None, 0.0)
    for item in NAMED:
        gateway.script(item.request.prompt, then="stall")
    await fleet.enqueue(NAMED)
    async with (
        made(limits=Limits(requests_per_second=200)) as one,
        made(limits=Limits(requests_per_second=100)) as two,
        working(one, in_flight=1, grace=0.0),
        working(two, in_flight=1, grace=0.0),
    ):
        await happens(lambda: has_rate(fleet, 100))
    await happens(lambda: has_rate(fleet, None))


async def has_rate(fleet: Fleet, rate: float | None) -> bool:
    """Return whether this is the rate of all workers."""
    return (await fleet.status()).rate == rate


async def test_what_one_worker_was_told_to_wait_holds_for_all(
    made: Made, fleet: Fleet, gateway: Simulator
) -> None:
    """The status says how long the gateway wants no requests."""
    gateway.fault("submit", faults.TooManyRequests(60_000.0), times=None)
    await fleet.enqueue(f"prompt {n}" for n in range(5))
    async with working(fleet, grace=0.0):
        await happens(lambda: is_held(fleet))


async def is_held(fleet: Fleet) -> bool:
    """Return whether the gateway wants no requests for now."""
    return (await fleet.status()).held > 0


async def test_nothing_is_sent_once_the_points_are_spent(
    made: Made, fleet: Fleet, gateway: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """With *max_points*, the second job waits for the cost of the first; the log says so once."""
    await fleet.enqueue(NAMED)
    async with made(max_points=1) as poor:
        async with working(poor, in_flight=1, grace=0.0):
            await happens(lambda: poor.journal.jobs(JobState.SAVED))
            await happens(lambda: running(poor))
            await until(lambda: "The limit of 1 points is reached." in caplog.text)
            await asyncio.sleep(2 * PAUSE)
        assert (await poor.status()).points > 1
    assert caplog.text.count("The limit of 1 points is reached.") == 1
    assert len(gateway.tasks) == 1
    assert await fleet.left() == 1


async def test_a_job_that_is_retried_is_not_sent_either_once_the_points_are_spent(
    made: Made, fleet: Fleet, gateway: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """The limits hold for a job that failed and is to be sent again, as for a new one."""
    gateway.script("a duckling", then="fail")
    await fleet.enqueue(NAMED)
    await ended(fleet)
    await fleet.enqueue(NAMED[1:], retry_failed=True)
    async with made(max_points=1) as poor, working(poor, grace=0.0):
        await until(lambda: "The limit of 1 points is reached." in caplog.text)
    assert len(gateway.tasks) == 2


async def test_a_task_that_takes_longer_is_followed_again(
    made: Made, fleet: Fleet, gateway: Simulator, database_url: str
) -> None:
    """A job whose task has not ended in time goes back into the queue, and is paid once."""
    gateway.script("a kitten", takes=1000.0)
    await fleet.enqueue(NAMED[:1])
    async with made(timeout=0.05) as hasty, working(hasty):
        await happens(lambda: later(hasty))
    rows(database_url, "UPDATE procrastinate_jobs SET scheduled_at = NULL")
    assert (await ended(fleet))["order-1"].state is JobState.SAVED
    assert len(gateway.tasks) == 1


async def test_nothing_is_sent_for_a_while_after_the_key_was_refused(
    fleet: Fleet, gateway: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next job keeps its place for some time only, so that paid ones may come first."""
    monkeypatch.setattr(worker, "PATIENCE", 0.2)
    gateway.fault("submit", faults.key_exhausted())
    await fleet.enqueue(NAMED)
    async with working(fleet, in_flight=1):
        await happens(lambda: both_later(fleet))
    assert len(gateway.requests) == 1
    assert gateway.tasks == ()


async def both_later(fleet: Fleet) -> bool:
    """Return whether two jobs wait to be delivered again."""
    return await later(fleet) == 2


async def test_an_app_of_the_users_own_carries_out_jobs(
    fleet: Fleet, database_url: str, gateway: Simulator
) -> None:
    """The tasks of a fleet work in an App of procrastinate, without a worker of the fleet."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=database_url))
    app.add_tasks_from(fleet.blueprint, namespace="fuhu")
    await fleet.enqueue(NAMED)
    async with app.open_async():
        await app.run_worker_async(
            queues=["fuhu"], wait=False, delete_jobs="always", install_signal_handlers=False
        )
        await app.tasks["fuhu:requeue_lost"](timestamp=0)
    assert {job.state async for job in fleet.outcomes()} == {JobState.SAVED}


async def test_an_app_of_the_users_own_lets_go_of_its_jobs_when_its_lease_expires(
    fleet: Fleet, database_url: str, gateway: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs of a worker without a heartbeat are returned to the queue; the App goes on with them."""
    gateway.script("a kitten", takes=1000.0)
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=database_url))
    app.add_tasks_from(fleet.blueprint, namespace="fuhu")
    await fleet.enqueue(NAMED[:1])
    async with app.open_async():
        work = asyncio.create_task(
            app.run_worker_async(
                queues=["fuhu"], delete_jobs="always", install_signal_handlers=False
            )
        )
        await until(lambda: gateway.tasks)
        rows(
            database_url,
            "UPDATE procrastinate_workers SET last_heartbeat = now() - '1 h'::interval",
        )
        await until(lambda: "The database has had no heartbeat for 2 s" in caplog.text)
        rows(
            database_url,
            "UPDATE procrastinate_workers SET last_heartbeat = now() + '1 h'::interval",
        )
        assert [job.state async for job in fleet.outcomes()] == [JobState.SAVED]
        work.cancel()
        await asyncio.wait([work])
    assert len(gateway.tasks) == 1


# What dead workers leave behind


def die(url: str, *, at: str) -> None:
    """Assign every entry of the queue to a worker that has died; *at* is the state of its jobs."""
    rows(url, "INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now() - '1 h'::interval)")
    rows(
        url,
        "UPDATE procrastinate_jobs SET status = 'doing',"
        " worker_id = (SELECT min(id) FROM procrastinate_workers)",
    )
    rows(url, "UPDATE fuhu_job SET state = %s, owner = 'the dead'", at)


async def test_a_dead_workers_jobs_are_taken_up(
    made: Made, fleet: Fleet, gateway: Simulator, database_url: str
) -> None:
    """What was accepted is followed and saved; what was being submitted is in doubt."""
    await fleet.enqueue(NAMED[:1])
    async with working(fleet, grace=0.0):
        await happens(lambda: fleet.journal.jobs(JobState.SAVED, JobState.ACCEPTED))
    rows(database_url, "DELETE FROM fuhu_job")
    await fleet.enqueue(NAMED)
    for item in NAMED:
        await fleet.journal.plan(await plan_for(item), 0.0)
    die(database_url, at="submitting")
    async with made() as other:
        jobs = await ended(other)
        assert [one.jobs for one in (await other.status()).workers] == []
    assert {job.state for job in jobs.values()} == {JobState.IN_DOUBT}


async def test_a_job_without_an_entry_in_the_queue_gets_one(
    fleet: Fleet, gateway: Simulator, database_url: str
) -> None:
    """A request that no entry of the queue stands for is put back: its enqueuer was killed."""
    await fleet.enqueue(NAMED)
    rows(database_url, "DELETE FROM procrastinate_jobs")
    assert {job.state for job in (await ended(fleet)).values()} == {JobState.SAVED}
    assert len(gateway.tasks) == 2


async def test_a_doubt_that_a_person_settles_goes_on_by_itself(
    fleet: Fleet, gateway: Simulator
) -> None:
    """A job that was accepted is followed and saved; one that was not is sent again."""
    gateway.fault("submit", faults.drop_after_accepting())
    gateway.fault("submit", faults.drop_before_accepting())
    await fleet.enqueue(NAMED)
    async with working(fleet, in_flight=1):
        doubts = [job async for job in fleet.outcomes()]
        assert [job.state for job in doubts] == [JobState.IN_DOUBT] * 2
        await fleet.journal.resolve(doubts[0].key, task_id=gateway.tasks[0].task_id)
        await fleet.journal.resolve(doubts[1].key, accepted=False)
        assert {job.state async for job in fleet.outcomes()} == {JobState.SAVED}
    assert len(gateway.tasks) == 2


async def test_a_worker_whose_entry_is_gone_ends_its_job(
    fleet: Fleet, gateway: Simulator, database_url: str
) -> None:
    """The job of a worker that others took for dead is saved, and the worker goes on."""
    gateway.script("a kitten", takes=2000.0)
    await fleet.enqueue(NAMED)
    async with working(fleet, in_flight=1):
        await until(lambda: gateway.tasks)
        rows(database_url, "DELETE FROM procrastinate_jobs")
        assert {job.state async for job in fleet.outcomes()} == {JobState.SAVED}
    assert len(gateway.tasks) == 2


def test_a_defect_is_not_retried_at_once() -> None:
    """Only a job that has not ended is delivered again by the worker that has it."""
    retries = worker.Retries()
    assert retries.get_retry_decision(exception=ValueError("nonsense"), job=None) is None
    again = retries.get_retry_decision(exception=worker.Again(5.0), job=None)
    assert again is not None
    assert again.priority == queue.AGAIN


async def test_a_worker_goes_on_after_a_defect(fleet: Fleet, database_url: str) -> None:
    """A job that no worker can read is delivered again after the length of a lease."""
    await fleet.enqueue(NAMED[:1])
    [(body,)] = rows(database_url, "SELECT body FROM fuhu_request")
    rows(database_url, "UPDATE fuhu_request SET body = 'nonsense'")

    async def is_dropped() -> bool:
        return not rows(database_url, "SELECT FROM procrastinate_jobs")

    async with working(fleet):
        await happens(is_dropped)
        rows(database_url, "UPDATE fuhu_request SET body = %s", body)
        assert {job.state async for job in fleet.outcomes()} == {JobState.SAVED}


async def test_a_doubt_that_is_forgotten_is_not_sent_again(
    fleet: Fleet, gateway: Simulator
) -> None:
    """It may be paid for: only who enqueues it again has it sent again."""
    gateway.fault("submit", faults.drop_after_accepting())
    await fleet.enqueue(NAMED[:1])
    async with working(fleet):
        [doubt] = [job async for job in fleet.outcomes()]
        await fleet.journal.forget(doubt.key)
        assert await fleet.left() == 0
        await fleet.enqueue(NAMED[1:])
        assert [job.custom_id async for job in fleet.outcomes()] == ["order-2"]
    assert len(gateway.tasks) == 2
    assert await fleet.enqueue(NAMED[:1]) == Enqueued(new=1, known=0)


async def test_an_entry_whose_fetch_got_no_reply_is_put_back(
    fleet: Fleet, gateway: Simulator, database_url: str
) -> None:
    """What the queue has as held by a live worker that does not know of it is handed out again."""
    gateway.script("a kitten", takes=2000.0)
    await fleet.enqueue(NAMED)
    async with working(fleet, in_flight=1):
        await until(lambda: gateway.tasks)
        rows(
            database_url,
            "UPDATE procrastinate_jobs SET status = 'doing',"
            " worker_id = (SELECT max(id) FROM procrastinate_workers) WHERE lock = 'id:order-2'",
        )
        assert {job.state async for job in fleet.outcomes()} == {JobState.SAVED}
    assert len(gateway.tasks) == 2


# A database that is gone


async def test_a_worker_that_is_cut_off_ends(
    gateway: Simulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the database for the length of its lease, it ends once its ids are written."""
    gateway.script("a kitten", then="stall")
    settings: dict[str, Any] = {"base_url": gateway.base_url, "polling": QUICK_POLLS}
    with LocalPostgres() as server:
        one = Fleet(server.url, api_key=gateway.api_key, lease=2.0, **settings)
        await one.init()
        await one.enqueue(NAMED[:1])
        work = asyncio.create_task(one.work(signals=False))
        await until(lambda: gateway.tasks and gateway.tasks[0].polls)
        await asyncio.to_thread(server.stop)
        # It waits for the database only to write down what it may have paid for.
        await until(lambda: "This worker takes up nothing more" in caplog.text)
        assert not work.done()
        await asyncio.to_thread(server.start)
        with pytest.raises(
            LeaseExpired, match=r"could not be reached for 2 s.*Start the worker again"
        ):
            await work
    assert "The database cannot be reached. Everything waits for it." in caplog.text
    assert server.url not in caplog.text


async def test_a_worker_ends_in_a_network_that_delivers_nothing(
    fleet: Fleet, made: Made, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker ends when its lease expires, even if its connections stay open."""
    monkeypatch.setattr(_postgres, "ANSWER", 1.0)
    with relay_to(database_url) as relay:
        away = made(url=f"{relay.url}?connect_timeout=2")
        work = asyncio.create_task(away.work(signals=False))
        await happens(lambda: has_worker(fleet))
        relay.is_frozen = True
        with pytest.raises(LeaseExpired):
            await work
        relay.is_frozen = False


async def test_a_queue_notices_a_network_that_delivers_nothing(
    fleet: Fleet,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A statement without an answer is sent again on another connection."""
    with relay_to(database_url) as relay:
        one = Queue(relay.url)
        async with one.app.open_async():
            await one.left()
            monkeypatch.setattr(_postgres, "ANSWER", 0.2)
            relay.is_frozen = True
            asking = asyncio.create_task(one.left())
            await until(lambda: "The database cannot be reached." in caplog.text)
            relay.is_frozen = False
            monkeypatch.undo()
            assert await asking == 0


async def test_a_worker_without_jobs_ends_while_the_database_is_gone(gateway: Simulator) -> None:
    """A worker that has nothing to write down does not wait for the database to end."""
    with LocalPostgres() as server:
        one = Fleet(server.url, api_key=gateway.api_key, base_url=gateway.base_url, lease=2.0)
        await one.init()
        work = asyncio.create_task(one.work(signals=False))

        async def has_begun() -> bool:
            return work.done() or bool((await one.status()).workers)

        await happens(has_begun)
        await asyncio.to_thread(server.stop)
        with pytest.raises(LeaseExpired):
            await work


def worker_of(**queue: Any) -> worker.Worker:
    """Return a worker that has this much of a queue, and no client to send with."""
    parts: dict[str, Any] = {"journal": None, "client": None, "tasks_in_flight": None}
    rest: dict[str, Any] = {"options": {}, "cipher": None, "lease": 0.0, "max_points": None}
    return worker.Worker(queue=cast("Queue", SimpleNamespace(**queue)), **parts, **rest)


async def test_a_job_that_arrives_when_the_lease_expires_is_not_sent() -> None:
    """A worker whose lease has just expired gives back what it gets, since others have its jobs."""

    async def take(key: str) -> Waiting:
        return Waiting(b"", is_encrypted=False, state=JobState.PLANNED)

    async def heartbeat_age(worker_id: int) -> float:
        return 0.0

    one = worker_of(take=take, heartbeat_age=heartbeat_age)
    one.lease, one.is_over = 60.0, True
    context: Any = SimpleNamespace(job=SimpleNamespace(id=1, worker_id=1, attempts=0))
    with pytest.raises(worker.Again):
        await one.deliver(context, "id:order-1")


async def letting_go(*answers: JournalError | None) -> list[float]:
    """Return when the journal was asked that answers so, until the worker let go."""
    asked_at: list[float] = []
    loop = asyncio.get_running_loop()

    async def flush() -> None:
        asked_at.append(loop.time())
        error = answers[len(asked_at) - 1]
        if error is not None:
            raise error

    async def aclose() -> None:
        pass

    one = worker_of()
    one.journal = cast("BaseJournal", SimpleNamespace(flush=flush))
    one.client = cast("Client", SimpleNamespace(aclose=aclose))
    one._started.add("id:order-1")
    await one._let_go()
    return [at - asked_at[0] for at in asked_at]


@pytest.mark.usefixtures("virtual")
async def test_a_journal_out_of_reach_is_asked_twice_a_second() -> None:
    """A worker whose lease has expired waits for the database until what it paid for is there."""
    away = _postgres.unreachable("fuhu", "no server runs there")
    away.__cause__ = _postgres.Unreachable("no server runs there")
    assert await letting_go(away, away, None) == pytest.approx([0.0, PAUSE, 2 * PAUSE], abs=0.1)


async def test_a_journal_that_refuses_is_not_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It would refuse the same again; the log says where the ids are."""
    refusal = JournalTooNew("It has newer tables.", "Nothing was sent.", "Update.")
    assert await letting_go(refusal) == [0.0]
    assert "The journal cannot be written: It has newer tables. What was paid for" in caplog.text


async def test_a_pool_that_hides_the_cancelling_keeps_no_worker() -> None:
    """Looking after dead workers ends when it is cancelled, whatever the database raises then."""
    asked = asyncio.Event()

    async def requeue_lost(lease: float) -> None:
        asked.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        raise psycopg.OperationalError

    requeuing = asyncio.create_task(worker_of(requeue_lost=requeue_lost).requeue_lost())
    await asked.wait()
    requeuing.cancel()
    await requeuing


async def test_the_log_says_why_jobs_of_dead_workers_wait(caplog: pytest.LogCaptureFixture) -> None:
    """In one sentence each, whether the error is the driver's or one of ours."""
    faults = [JournalBusy("A lock is held.", "Nothing was sent.", "Wait."), OSError("refused")]
    done = asyncio.Event()

    async def requeue_lost(lease: float) -> None:
        if faults:
            raise faults.pop(0)
        done.set()

    requeuing = asyncio.create_task(worker_of(requeue_lost=requeue_lost).requeue_lost())
    await done.wait()
    requeuing.cancel()
    await asyncio.wait([requeuing])
    said = "The jobs of dead workers could not be taken over yet: "
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"{said}A lock is held.", f"{said}no server runs there."]


async def test_a_worker_waits_for_a_database_that_is_gone(
    gateway: Simulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker goes on once the database is back, and the log says when that is."""
    gateway.script("a kitten", takes=1000.0)
    settings: dict[str, Any] = {"base_url": gateway.base_url, "polling": QUICK_POLLS}
    with LocalPostgres() as server:
        one = Fleet(server.url, api_key=gateway.api_key, lease=60.0, **settings)
        await one.init()
        await one.enqueue(NAMED[:1])
        async with working(one):
            await until(lambda: gateway.tasks and gateway.tasks[0].polls)
            await asyncio.to_thread(server.stop)
            await until(lambda: "cannot be reached. Everything" in caplog.text)
            await asyncio.to_thread(server.start)
            async with one:
                [job] = [job async for job in one.outcomes()]
        assert job.state is JobState.FINISHED
    assert "The database can be reached again." in caplog.text


# Bad input


async def test_a_database_without_tables_is_refused(made: Made) -> None:
    """Every call but `init` says how to make the tables."""
    async with made() as empty:
        for call in (empty.enqueue(PROMPTS), empty.status(), empty.work(), empty.cancel("a")):
            with pytest.raises(UsageError, match="The database has no tables of a fleet"):
                await call


async def test_the_tables_are_made_once(fleet: Fleet, made: Made, database_url: str) -> None:
    """`init` again changes nothing, also from two machines at once."""
    await fleet.enqueue(NAMED)
    async with made() as other:
        await asyncio.gather(fleet.init(), other.init())
    assert await fleet.left() == 2


async def test_tables_of_an_older_procrastinate_are_updated(
    made: Made, database_url: str, gateway: Simulator
) -> None:
    """`init` runs the scripts that procrastinate has for later versions, once."""
    folder = Path(SchemaManager.get_migrations_path())
    scripts = sorted(folder.glob("*.sql"))  # noqa: ASYNC240  (one look)
    with psycopg.connect(database_url, autocommit=True) as connection:
        for script in scripts:
            if script.name < "03.02":
                connection.execute(script.read_bytes())
    async with made() as one:
        await one.init()
        rows(database_url, "UPDATE fuhu_fleet SET value = '3.1.0' WHERE name = 'procrastinate'")
        await one.init()
        await one.init()
        assert rows(
            database_url, "SELECT to_regproc('procrastinate_defer_jobs_v1') IS NOT NULL"
        ) == [(True,)]
        await one.enqueue(NAMED)
        assert {job.state for job in (await ended(one)).values()} == {JobState.SAVED}


async def test_tables_of_the_users_own_app_are_used_as_they_are(
    made: Made, database_url: str
) -> None:
    """Where an App has made procrastinate's tables, `init` adds those of the fleet only."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=database_url))
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
    async with made() as one:
        await one.init()
        await one.init()
        assert await one.enqueue(NAMED) == Enqueued(new=2, known=0)


@pytest.mark.parametrize("name", ["schema", "procrastinate"])
async def test_tables_of_a_newer_version_are_refused(
    made: Made, fleet: Fleet, database_url: str, name: str
) -> None:
    """Tables of a newer version of this package or of procrastinate stay as they are."""
    rows(database_url, "UPDATE fuhu_fleet SET value = '99.0.0' WHERE name = %s", name)
    async with made() as other:
        with pytest.raises(JournalTooNew, match="A newer version of"):
            await other.init()
        if name == "schema":
            with pytest.raises(JournalTooNew, match="A newer version of fuhu_runway"):
                await other.status()


async def test_a_worker_with_another_key_is_refused(
    made: Made, fleet: Fleet, gateway: Simulator
) -> None:
    """While jobs are left, a worker with another key takes none up; afterwards the key changes."""
    await fleet.enqueue(NAMED[:1])
    await ended(fleet)  # it is the first worker, and so its key is that of the fleet
    await fleet.enqueue(NAMED)
    gateway.add_key("sk-another", points=1000)
    async with made(api_key="sk-another") as other:
        with pytest.raises(UsageError, match="have another API key, or another gateway") as caught:
            await other.work()
        assert "sk-another" not in str(caught.value)
        await ended(fleet)
        assert await ended(other)
    assert {task.state for task in gateway.tasks} == {"succeeded"}


async def test_a_key_that_no_longer_works_can_be_replaced(
    made: Made, fleet: Fleet, gateway: Simulator
) -> None:
    """With `replace_key`, a worker with another key takes up the jobs that are left."""
    gateway.script("a kitten", then="stall")
    await fleet.enqueue(NAMED[:1])
    async with working(fleet, grace=0.0):
        await until(lambda: gateway.tasks)
    gateway.script("a duckling")
    await fleet.enqueue(NAMED[1:])
    gateway.add_key("sk-another", points=1000)
    async with made(api_key="sk-another", replace_key=True) as other, working(other, grace=0.0):
        await happens(lambda: other.journal.jobs(JobState.SAVED))
    assert await fleet.left() == 1
    with pytest.raises(UsageError, match="--replace-key"):
        await fleet.work()


async def test_a_database_that_refuses_a_statement_is_reported(
    fleet: Fleet, database_url: str
) -> None:
    """An error of the queue says what Postgres said, as a code."""
    rows(database_url, "DROP TABLE fuhu_request")
    with pytest.raises(JournalError, match=r"refused a statement of the queue \(SQLSTATE 42P01\)"):
        await fleet.enqueue(NAMED)


async def test_a_value_that_the_queue_cannot_hold_is_refused_at_once(fleet: Fleet) -> None:
    """It was not even sent, which is no reason to wait for the database."""
    one = fleet._queue
    with pytest.raises(JournalError, match=r"refused a statement of the queue \(DataError\)"):
        await one.set("a\0b", "value")


@pytest.mark.parametrize(
    ("items", "name", "words"),
    [
        ("a kitten", None, "prompts is of type str"),
        (7, None, "prompts is of type int"),
        (NAMED, "a\0b", "name has a NUL character at position 1"),
        (NAMED, "a\ud800", "name has half a character"),
        (NAMED, 7, "name is of type int"),
    ],
)
async def test_what_cannot_be_enqueued_is_refused(
    fleet: Fleet, items: Any, name: Any, words: str
) -> None:
    """One prompt is not a source, as in a batch, and a name is text that databases can store."""
    with pytest.raises(UsageError, match=words):
        await fleet.enqueue(items, name=name)
    assert await fleet.left() == 0


async def test_a_lock_that_another_process_holds_is_reported(
    fleet: Fleet, made: Made, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`init` says what it has waited for, and any other call, too."""
    limit = "SELECT set_config('statement_timeout', '50ms', false)"
    monkeypatch.setattr(queue, "_SESSION", limit)
    one, busy = made(), "Another process holds a lock on the fleet's tables"
    with psycopg.connect(database_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (queue._LOCK,))
        with pytest.raises(JournalBusy, match=busy) as caught:
            await one.init()
        assert "try again" in caught.value.advice
        assert caught.value.__cause__ is None
        other.execute("LOCK TABLE fuhu_request")
        with pytest.raises(JournalBusy, match=busy):
            await one.enqueue(NAMED)
    await one.init()
    assert await one.enqueue(NAMED) == Enqueued(new=2, known=0)


@pytest.mark.parametrize(
    "fault",
    [
        psycopg_pool.PoolTimeout("pool initialization incomplete after 30.0 sec"),
        procrastinate.exceptions.UniqueViolation(constraint_name="a", queueing_lock=None),
    ],
    ids=lambda fault: type(fault).__name__,
)
async def test_a_pool_that_cannot_be_opened_is_reported(
    made: Made, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """An error of the pool's own is one of the journal's, and the fleet is closed again."""

    async def wait(_pool: object, timeout: float) -> None:
        raise fault

    monkeypatch.setattr(psycopg_pool.AsyncConnectionPool, "wait", wait)
    one = made()
    with pytest.raises(JournalError, match=type(fault).__name__):
        async with one:
            pass
    assert repr(one) == "<Fleet closed>"


async def test_a_worker_that_can_save_nothing_is_refused(
    made: Made, fleet: Fleet, gateway: Simulator, tmp_path: Path
) -> None:
    """It takes up no job, so it delays none."""
    await fleet.enqueue(NAMED)
    place = tmp_path / "file"
    place.touch()
    for wrong, words in [(place, "is not a folder"), ("s4://clips", "not the URL of an")]:
        async with made(download_to=wrong) as other:
            with pytest.raises(UsageError, match=words):
                await other.work()
    now = await fleet.status()
    assert (now.ready, now.scheduled) == (2, 0)
    assert not gateway.requests


async def test_the_options_of_the_url_hold_for_every_connection(
    made: Made, database_url: str
) -> None:
    """With a schema in the URL, all tables are in that schema, and a fleet finds them there."""
    rows(database_url, "CREATE SCHEMA spring")
    url = psycopg.conninfo.make_conninfo(database_url, options="-c search_path=spring")
    one = made(url=url)
    await one.init()
    async with one:
        assert await one.enqueue(NAMED) == Enqueued(new=2, known=0)
        assert {job.state for job in (await ended(one)).values()} == {JobState.SAVED}
    sql = "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename ~ '^(fuhu|procrastinate)_'"
    assert rows(database_url, sql) == [("spring",)]


async def test_a_worker_ends_if_the_database_refuses_its_statements(
    fleet: Fleet, database_url: str
) -> None:
    """Without the table of workers, a worker cannot read its heartbeat; the error says why."""
    async with fleet:
        work = asyncio.create_task(fleet.work(signals=False))
        await happens(lambda: has_worker(fleet))
        rows(database_url, "ALTER TABLE procrastinate_workers RENAME TO elsewhere")
        with pytest.raises(JournalError, match="SQLSTATE 42P01"):
            await work


async def has_worker(fleet: Fleet) -> bool:
    """Return whether a worker has begun."""
    return bool((await fleet.status()).workers)


async def test_a_frozen_worker_holds_no_lock_for_long(database_url: str) -> None:
    """The database ends a transaction that is idle, so that other workers can tend the queue."""
    one = Queue(database_url)
    async with one.app.open_async():
        sql = "SELECT current_setting('idle_in_transaction_session_timeout') AS it"
        assert (await one.connector.execute_query_one_async(sql))["it"] == "20s"


def test_a_fleet_needs_a_url() -> None:
    """Without a URL or the variable there is nothing to connect to."""
    with pytest.raises(UsageError, match="There is no URL of a database"):
        Fleet()


@pytest.mark.parametrize("lease", [0, 4000, None, "30", True])
def test_a_lease_has_limits(lease: Any) -> None:
    """A lease is a number of seconds from 0.1 to 3600."""
    with pytest.raises(UsageError, match="lease is"):
        Fleet("postgresql://", lease=lease)


def test_the_repr_of_a_queue_has_no_url() -> None:
    """Reports of errors show local variables, and the URL has a password."""
    url = "postgresql://someone:marked@127.0.0.1/marked"
    assert "marked" not in repr(Queue(url))


def test_its_repr_has_no_url() -> None:
    """The repr says whether it is open, and nothing about the database."""
    assert repr(Fleet("postgresql://me:secret@db.example/jobs")) == "<Fleet closed>"


async def test_a_database_that_is_not_there_is_reported(made: Made, database_url: str) -> None:
    """The name of a database that does not exist is an error of the journal."""
    url = urlsplit(database_url)._replace(path="/there_is_none").geturl()
    with pytest.raises(JournalError, match="there is no database with this name"):
        async with Fleet(url):
            pass


def test_without_the_extra_the_error_names_it() -> None:
    """Without procrastinate, the import says which extra is missing."""
    program = "import sys; sys.modules['procrastinate'] = None; import fuhu_runway.contrib.fleet"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "fuhu_runway.contrib.fleet needs an extra" in done.stderr


async def test_an_entry_without_a_request_ends(
    fleet: Fleet, gateway: Simulator, database_url: str
) -> None:
    """What is left in the queue of a job that was cancelled is removed, and nothing is sent."""
    await fleet.enqueue(NAMED[:1])
    rows(database_url, "DELETE FROM fuhu_request")
    async with working(fleet):
        await happens(lambda: is_empty(fleet))
    assert gateway.tasks == ()


async def is_empty(fleet: Fleet) -> bool:
    """Return whether the queue is empty."""
    status = await fleet.status()
    return not (status.ready or status.scheduled or status.running)


@pytest.mark.parametrize("swallow", [True, False])
async def test_cancelling_a_query_is_never_lost(swallow: bool) -> None:
    """A driver that returns its answer, or its own error, in place of the cancellation."""
    begun = asyncio.Event()

    async def query() -> str:
        try:
            begun.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if not swallow:
                raise procrastinate.exceptions.ConnectorException from TimeoutError()
        return "answer"

    call = asyncio.create_task(Connector(conninfo="")._retried(query))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
