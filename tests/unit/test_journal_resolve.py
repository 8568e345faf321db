"""Jobs in doubt: how they are found, and what is recorded of them."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from fuhu_runway import Journal
from fuhu_runway.errors import JournalError, UsageError
from fuhu_runway.journal import JobState, Plan, plan_of
from fuhu_runway.models import TextToVideo

PLAN: Final = Plan(key="k", fingerprint="f", endpoint="TextToVideo", custom_id="shot 7")


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    """A journal with a job in doubt, a job with a task, and a planned one."""
    journal = Journal(tmp_path / "run.db")
    other = Plan(key="other", fingerprint="g", endpoint="TextToVideo")
    for plan in (PLAN, other):
        await journal.plan(plan, 1.0)
        await journal.step(plan.key, JobState.SUBMITTING, 2.0)
    await journal.step("k", JobState.IN_DOUBT, 3.0, error="NoReply")
    await journal.step("other", JobState.ACCEPTED, 3.0, task_id="t-1")
    await journal.plan(attrs.evolve(other, key="new"), 4.0)
    yield journal
    await journal.aclose()


@pytest.mark.parametrize("name", ["k", "shot 7"])
async def test_a_job_in_doubt_was_accepted(journal: Journal, name: str) -> None:
    """By its key or its custom id, it becomes accepted as the task that was found."""
    job = await journal.resolve(name, task_id="t-2")
    assert (job.key, job.state, job.task_id) == ("k", JobState.ACCEPTED, "t-2")
    assert [job.key for job in await journal.unfinished()] == ["k", "other"]


@pytest.mark.parametrize("name", ["k", "shot 7"])
async def test_a_job_in_doubt_was_not_accepted(journal: Journal, name: str) -> None:
    """It becomes planned, so that it may be submitted again."""
    job = await journal.resolve(name, accepted=False)
    assert (job.state, job.task_id, job.submissions) == (JobState.PLANNED, None, 1)
    assert await journal.find("k") == job


async def test_the_task_that_a_response_named_may_be_another_jobs(tmp_path: Path) -> None:
    """A gateway may answer two submits with one id; then both jobs have it."""
    journal = Journal(tmp_path / "run.db")
    for key in ("a", "b"):
        await journal.plan(attrs.evolve(PLAN, key=key), 1.0)
        await journal.step(key, JobState.SUBMITTING, 2.0)
        await journal.step(key, JobState.IN_DOUBT, 3.0, task_id="t-1")
    for key in ("a", "b"):
        job = await journal.resolve(key, task_id="t-1")
        assert (job.state, job.task_id) == (JobState.ACCEPTED, "t-1")
    await journal.aclose()


@pytest.mark.parametrize(
    ("key", "fate", "field", "message"),
    [
        ("unknown", {"accepted": False}, "key", "no such job"),
        ("new", {"accepted": False}, "key", "The job is planned."),
        ("other", {"task_id": "t-1"}, "key", "The job is accepted."),
        ("k", {"task_id": "t-1"}, "task_id", "belongs to another job"),
        ("k", {}, "task_id", "either task_id"),
        ("k", {"task_id": ""}, "task_id", "either task_id"),
        ("k", {"accepted": True}, "task_id", "either task_id"),
        ("k", {"task_id": "t-2", "accepted": False}, "task_id", "either task_id"),
        ("k", {"task_id": "t-2", "accepted": True}, "task_id", "either task_id"),
    ],
)
async def test_a_wrong_resolve_changes_nothing(
    journal: Journal, key: str, fate: dict[str, Any], field: str, message: str
) -> None:
    """The error names the argument that is wrong, and each job stays what it was."""
    before = await journal.jobs()
    with pytest.raises(UsageError, match=message) as wrong:
        await journal.resolve(key, **fate)
    assert wrong.value.field == field
    assert wrong.value.money == "Nothing was sent or charged."
    assert await journal.jobs() == before


async def test_a_task_that_cannot_be_stored_is_refused(journal: Journal) -> None:
    """Half a character is an error, and the job stays in doubt."""
    with pytest.raises(JournalError, match="this task_id"):
        await journal.resolve("k", task_id="\ud800")
    assert (await journal.jobs(JobState.IN_DOUBT))[0].key == "k"


async def test_jobs_are_found_by_their_request(tmp_path: Path) -> None:
    """Exactly those with the same content, although the journal does not contain it."""
    journal = Journal(tmp_path / "run.db")
    kitten = TextToVideo("a kitten")
    for request in (kitten, TextToVideo("a puppy"), kitten):
        await journal.plan_next(plan_of(request), 1.0)
    first, _, last = await journal.jobs()
    assert await journal.jobs_of(kitten) == [first, last]
    assert await journal.jobs_of(TextToVideo("a kitten", seconds=5)) == []
    await journal.aclose()


async def test_a_job_remembers_where_its_request_was_read(tmp_path: Path) -> None:
    """A line that moved is corrected; a run that does not know it changes nothing."""
    journal = Journal(tmp_path / "run.db")
    seen = []
    for source in ("p.txt:17", None, "p.txt:18", "p.txt:18"):
        job = await journal.plan(attrs.evolve(PLAN, source=source), 1.0)
        seen.append(job.source)
    await journal.aclose()
    assert seen == ["p.txt:17", "p.txt:17", "p.txt:18", "p.txt:18"]
    with closing(sqlite3.connect(tmp_path / "run.db")) as db:
        assert db.execute("SELECT source FROM job").fetchall() == [("p.txt:18",)]
