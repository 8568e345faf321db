"""
Workers that are killed, frozen and cut off. The ledger of the gateway is the judge.

The short trials are for every day. The long ones, which `nox -s fleet` runs, print their figures.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from support.clock import until
from support.fleet import LEDGER_FAULTS, MARK, Trial, Verdict, items, judge, trial

from fuhu_runway.contrib.local_postgres import LocalPostgres

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the workers are forked"),
    pytest.mark.timeout(3600),  # many processes, one after the other
]


def is_sound(verdict: Verdict, jobs: int) -> bool:
    """Return whether nothing was paid twice, and each job is saved, has failed or is in doubt."""
    return (
        verdict.paid_twice == verdict.lost_untold == 0
        and verdict.saved + verdict.failed + verdict.in_doubt == verdict.jobs == jobs
        and verdict.clips == verdict.saved
    )


async def at_rest(one: Trial, *, is_late: bool = False) -> Verdict:
    """
    Wait until every job is over or in doubt, and compare the journal with the ledger.

    *is_late* waits for the ids that workers write down late, which leaves no doubt.
    """
    return judge(await one.rest(is_late=is_late), one.gateway.tasks, one.folder)


async def test_workers_that_are_killed_pay_once_and_lose_nothing(
    database_url: str, tmp_path: Path
) -> None:
    """Three workers, five of which are killed: each task is saved, or its job is in doubt."""
    async with trial(database_url, tmp_path, slow=0.2, takes=0.5) as one:
        await one.fleet.enqueue(items(40))
        await one.kill(5, Random(1), life=(0.2, 0.8))
        verdict = await at_rest(one)
    assert is_sound(verdict, 40)
    assert verdict.saved > 0
    log = (tmp_path / "workers.log").read_text()
    assert MARK not in log


async def test_a_frozen_worker_ends_and_its_late_ids_count(
    database_url: str, tmp_path: Path
) -> None:
    """A worker that was frozen for longer than its lease writes down what it paid for."""
    async with trial(database_url, tmp_path, lease=4.0, slow=0.3, takes=0.5) as one:
        await one.fleet.enqueue(items(30))
        await one.freeze(1, Random(1), seconds=6.0)
        verdict = await at_rest(one, is_late=True)
    assert is_sound(verdict, 30)
    assert verdict.saved == verdict.paid == 30


async def test_a_database_that_is_gone_for_a_while_loses_nothing(tmp_path: Path) -> None:
    """Ids that arrive meanwhile are written once it is back: every job is saved."""
    with LocalPostgres() as server:
        async with trial(server.url, tmp_path, lease=30.0, slow=0.5, takes=0.5) as one:
            await one.fleet.enqueue(items(30))
            await until(lambda: one.gateway.tasks)
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(1.0)
            await asyncio.to_thread(server.start)
            verdict = await at_rest(one, is_late=True)
    assert is_sound(verdict, 30)
    assert verdict.saved == verdict.paid == 30


# The long trials


@pytest.fixture(params=[1, 2, 3])
def random(request: pytest.FixtureRequest) -> Random:
    """Return a source of randomness; the same seed, the same disturbances."""
    return Random(request.param)


async def fail_at_times(one: Trial, random: Random) -> None:
    """Let something go wrong with a submit, again and again."""
    while True:
        await asyncio.sleep(random.uniform(0.1, 1.0))
        one.gateway.fault("submit", random.choice(LEDGER_FAULTS))


@asynccontextmanager
async def failing_at_times(one: Trial, random: Random) -> AsyncIterator[None]:
    """Let submits fail while the block runs."""
    failing = asyncio.create_task(fail_at_times(one, random))
    try:
        yield
    finally:
        failing.cancel()


def show(what: str, verdict: Verdict) -> None:
    """Print the figures of a trial."""
    print(f"\n{what}: {verdict}")  # noqa: T201  (the figures are what it is for)


@pytest.mark.soak
async def test_two_hundred_kills(database_url: str, tmp_path: Path, random: Random) -> None:
    """
    Slow answers, refusals, server errors and lost answers: nothing is paid twice or lost.

    Everything is enqueued by two programs at once, and again in the middle.
    """
    jobs = 600
    async with trial(database_url, tmp_path, lease=2.0, takes=3.0, slow=0.6) as one:
        await asyncio.gather(*(one.fleet.enqueue(items(jobs)) for _ in range(2)))
        async with failing_at_times(one, random):
            await one.kill(100, random, life=(0.2, 1.5))
            assert (await one.fleet.enqueue(items(jobs))).new == 0
            await one.kill(100, random, life=(0.2, 1.5))
        one.gateway.forget_plans()
        verdict = await at_rest(one)
    show("200 kills", verdict)
    assert is_sound(verdict, jobs)
    assert MARK not in (tmp_path / "workers.log").read_text()


@pytest.mark.soak
async def test_fifty_freezes(database_url: str, tmp_path: Path, random: Random) -> None:
    """Workers that are frozen for longer than their lease: every job is saved in the end."""
    jobs = 300
    async with trial(database_url, tmp_path, lease=2.0, takes=3.0, slow=0.6) as one:
        await one.fleet.enqueue(items(jobs))
        await one.freeze(50, random, seconds=4.0)
        verdict = await at_rest(one)
    show("50 freezes", verdict)
    assert is_sound(verdict, jobs)
    assert verdict.in_doubt == 0


@pytest.mark.soak
@pytest.mark.parametrize("seconds", [3.0, 60.0])
async def test_a_database_that_is_gone_for_a_minute(
    tmp_path: Path, random: Random, seconds: float
) -> None:
    """While ids arrive, it is gone for less and for more than the lease: none is lost."""
    jobs = 120
    with LocalPostgres() as server:
        async with trial(server.url, tmp_path, lease=30.0, takes=3.0, slow=0.5) as one:
            await one.fleet.enqueue(items(jobs))
            await asyncio.sleep(random.uniform(1.0, 3.0))
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(server.start)
            verdict = await at_rest(one)
    show(f"database gone for {seconds:g} s", verdict)
    assert is_sound(verdict, jobs)
    assert verdict.in_doubt == 0
