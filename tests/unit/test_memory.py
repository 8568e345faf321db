"""What a client without a journal remembers of its submissions."""

import pytest

from fuhu_runway import TextToVideo
from fuhu_runway._session.memory import Memory, Row
from fuhu_runway.errors import UsageError
from fuhu_runway.journal import JobState, hash_prompt, plan_of


async def sent(memory: Memory, key: str, now: float = 0.0) -> Row:
    """Send a submission, and return its row."""
    row = memory.row(plan_of(TextToVideo("a kitten"), key), now)
    await row.step(key, JobState.SUBMITTING, now)
    return row


async def test_only_what_was_sent_is_remembered() -> None:
    """A submission that waits, or that was refused, is not kept."""
    memory = Memory(60.0)
    memory.row(plan_of(TextToVideo("a kitten"), "waits"), 0.0)
    row = await sent(memory, "sent")
    assert [job.key for job in await memory.jobs()] == ["sent"]
    await row.step("sent", JobState.PLANNED, 1.0)
    assert await memory.jobs() == []
    await row.step("sent", JobState.SUBMITTING, 2.0)
    (job,) = await memory.jobs(JobState.SUBMITTING)
    assert job.submitted_at == 2.0
    await row.step("sent", JobState.FAILED, 3.0)
    assert await memory.jobs() == []


async def test_accepted_ones_are_forgotten_in_time() -> None:
    """After the time that it was given, unless a submission is in doubt."""
    memory = Memory(60.0)
    await (await sent(memory, "first")).step("first", JobState.ACCEPTED, 1.0, task_id="t-1")
    doubt = await sent(memory, "doubt", 2.0)
    await doubt.step("doubt", JobState.IN_DOUBT, 3.0)
    await (await sent(memory, "late", 99.0)).step("late", JobState.ACCEPTED, 100.0, task_id="t-2")
    assert [job.key for job in await memory.jobs()] == ["first", "doubt", "late"]
    await memory.resolve("doubt", accepted=False)
    await sent(memory, "next", 120.0)
    assert [job.key for job in await memory.jobs()] == ["late", "next"]


async def test_a_doubt_is_settled_once_and_with_its_own_task() -> None:
    """What is not in doubt, and a task that another submission has, are refused."""
    memory = Memory(1e12)
    await (await sent(memory, "first")).step("first", JobState.ACCEPTED, 1.0, task_id="t-1")
    await (await sent(memory, "doubt")).step("doubt", JobState.IN_DOUBT, 1.0)
    for key, task_id in (("first", "t-2"), ("unknown", "t-2"), ("doubt", "t-1")):
        with pytest.raises(UsageError):
            await memory.resolve(key, task_id=task_id)
    job = await memory.resolve("doubt", task_id="t-2", proof="list of tasks", at=5.0)
    assert (job.state, job.accepted_at, job.proof) == (JobState.ACCEPTED, 5.0, "list of tasks")
    assert await memory.find("t-2") == await memory.find("doubt") == job
    assert await memory.find("t-3") is None


async def test_prompts_are_hashed_as_plans_are() -> None:
    """The hash of a prompt is that of its submission."""
    assert await Memory(1.0).hash_prompts(["a  kitten "]) == [hash_prompt("a kitten")]
