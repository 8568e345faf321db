"""
Workers that are killed, frozen and cut off. The ledger of the gateway is the judge.

The short trials are for every day. The long ones, which `nox -s fleet` runs, print their figures.
"""

import asyncio
import os
from pathlib import Path
from random import Random

import pytest
from support.clock import until
from support.fleet import MARK, Trial, Verdict, items, judge, trial

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


async def at_rest(one: Trial) -> Verdict:
    """Wait until every job is over or in doubt, and compare the journal with the ledger."""
    return judge(await one.rest(), one.gateway.tasks, one.folder)


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
    async with trial(database_url, tmp_path, lease=1.0, slow=0.3, takes=0.5) as one:
        await one.fleet.enqueue(items(30))
        await one.freeze(2, Random(1), seconds=2.0)
        verdict = await at_rest(one)
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
            verdict = await at_rest(one)
    assert is_sound(verdict, 30)
    assert verdict.saved == verdict.paid == 30
