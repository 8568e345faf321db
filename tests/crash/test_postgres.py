"""A Postgres server that crashes and starts again while workers write to it."""

import asyncio
from typing import Final

import pytest

from fuhu_runway.hooks import TaskSettled
from fuhu_runway.journal import BaseJournal, JobState, Plan
from fuhu_runway.models import TaskState

pytest.importorskip("psycopg")

from fuhu_runway.contrib.local_postgres import LocalPostgres
from fuhu_runway.contrib.postgres import PostgresJournal

JOBS: Final = 60


async def test_a_server_that_crashes_loses_nothing() -> None:
    """What is to be sent waits for it; every id and every end that arrives is written, once."""
    with LocalPostgres() as server:
        workers = [PostgresJournal(server.url, wait=600) for _ in range(3)]
        sent: list[str] = []
        half = asyncio.Event()

        async def work(journal: BaseJournal, number: int) -> None:
            key, task_id = f"k{number}", f"t{number}"
            await journal.plan(Plan(key=key, fingerprint="f", endpoint="TextToVideo"), 1.0)
            job = await journal.step(key, JobState.SUBMITTING, 1.0)
            sent.append(key)
            if len(sent) == JOBS // 2:
                half.set()
            to, attempt = JobState.ACCEPTED, job.submissions
            await journal.step(key, to, 2.0, attempt=attempt, task_id=task_id)
            journal.note(TaskSettled(task_id, TaskState.SUCCEEDED, 1, 1.0, refunded=False))

        works = [asyncio.create_task(work(workers[n % len(workers)], n)) for n in range(JOBS)]
        await half.wait()
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        await asyncio.gather(*works)
        for journal in workers:
            await journal.flush()
        jobs = await workers[0].jobs()
        assert sorted(sent) == sorted(job.key for job in jobs)
        assert len({job.task_id for job in jobs}) == JOBS
        assert {(job.state, job.submissions) for job in jobs} == {(JobState.FINISHED, 1)}
        for journal in workers:
            await journal.aclose()
