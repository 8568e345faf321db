"""What a client adds for many jobs: a journal around each submission, and batches."""

import logging
from pathlib import Path
from typing import Any

import pytest
from support.clients import Ear, quick_client

from fuhu_runway.errors import InvalidRequest, JournalError, SubmissionInDoubt, UsageError
from fuhu_runway.hooks import DoubtsFound, SubmissionStarted, TaskAttached
from fuhu_runway.journal import Job, JobState, Journal
from fuhu_runway.models import OfficialImageToVideo
from fuhu_runway.testing import Simulator, faults

PROMPT = "a kitten"


async def test_a_path_makes_a_journal_that_the_client_closes(
    gateway: Simulator, tmp_path: Path
) -> None:
    """Each submission has a row with its id, and the file is free once the client is closed."""
    async with quick_client(gateway, journal=tmp_path / "run.db") as client:
        tasks = [await client.generate(PROMPT), await client.generate(PROMPT)]
    journal = Journal(tmp_path / "run.db")
    jobs = await journal.jobs()
    assert [job.task_id for job in jobs] == [task.id for task in tasks]
    assert {job.state for job in jobs} == {JobState.ACCEPTED}
    await journal.aclose()


async def test_a_journal_that_was_given_stays_open(gateway: Simulator, tmp_path: Path) -> None:
    """The client closes a session that it made, and no other."""
    journal = Journal(tmp_path / "run.db")
    async with quick_client(gateway, journal=journal) as client:
        await client.generate(PROMPT)
    assert repr(journal) == "<Journal run.db open>"
    await journal.aclose()


async def test_a_refusal_is_written_down(gateway: Simulator, tmp_path: Path) -> None:
    """The row of a refused request says so, and the caller gets the refusal."""
    gateway.fault("submit", faults.refused())
    async with quick_client(gateway, journal=tmp_path / "run.db") as client:
        with pytest.raises(InvalidRequest):
            await client.generate(PROMPT)
        assert client.journal is not None
        [job] = await client.journal.jobs()
    assert (job.state, job.error) == (JobState.FAILED, "InvalidRequest")


async def test_a_row_that_cannot_be_written_costs_no_task(
    gateway: Simulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The id that was paid for is given all the same, and the log names it."""

    class Full(Journal):
        async def step(self, key: str, to: JobState, now: float, **changes: Any) -> Job:
            if to is JobState.ACCEPTED:
                raise JournalError("The disk is full.", "Nothing was sent.", "Make room.")
            return await super().step(key, to, now, **changes)

    journal = Full(tmp_path / "run.db")
    async with quick_client(gateway, journal=journal) as client:
        task = await client.generate(PROMPT)
    assert [one.task_id for one in gateway.tasks] == [task.id]
    [line] = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert task.id in line.getMessage()
    await journal.aclose()


async def test_a_job_of_the_journal_has_a_handle(gateway: Simulator, tmp_path: Path) -> None:
    """An official one is asked for in its own format, and comes to its clip."""
    async with quick_client(gateway, journal=tmp_path / "run.db") as client:
        await client.submit(OfficialImageToVideo("https://example.com/1.png", PROMPT))
        assert client.journal is not None
        [job] = await client.journal.jobs()
        task = client.attach(job)
        assert task.official
        assert (await task.wait(timeout=10)).id == job.task_id


class Traced(Ear):
    """A listener that knows where each submission is traced."""

    def trace_of(self, submission: int) -> str:
        return f"00-{submission:032x}-{1:016x}-01"


async def test_a_job_leads_to_the_trace_of_its_submission(
    gateway: Simulator, tmp_path: Path
) -> None:
    """What a listener knows of a submission is in its row, and is passed on when it resumes."""
    first, second = Traced(), Ear()
    async with quick_client(gateway, journal=tmp_path / "run.db", hooks=[first]) as client:
        task = await client.generate(PROMPT, seconds=5)
    [started] = first.all(SubmissionStarted)
    trace = first.trace_of(started.submission)
    async with quick_client(gateway, journal=tmp_path / "run.db", hooks=[second]) as client:
        assert client.journal is not None
        [job] = await client.journal.jobs()
        client.attach(job)
    assert job.traceparent == trace
    [attached] = second.all(TaskAttached)
    assert attached == TaskAttached(task.id, attached.client, "text_to_video", job.model, 5, trace)


async def test_unfinished_tasks_of_the_journal_are_attached_once(
    gateway: Simulator, tmp_path: Path
) -> None:
    """The event comes with the first wait, not with `unfinished`; `find` adds none after that."""
    path, traced, ear = tmp_path / "run.db", Traced(), Ear()
    async with quick_client(gateway, journal=path, hooks=[traced]) as client:
        task_id = (await client.generate(PROMPT, seconds=5, custom_id="order 7")).id
    async with quick_client(gateway, journal=path, hooks=[ear]) as client:
        [task] = client.unfinished
        assert client.unfinished[0].id == task.id == task_id
        assert ear.all(TaskAttached) == []
        await task.refresh()
        assert await client.find("order 7") is task
        await task
    [attached] = ear.all(TaskAttached)
    [started] = traced.all(SubmissionStarted)
    trace = traced.trace_of(started.submission)
    assert attached == TaskAttached(task_id, attached.client, "text_to_video", "gen4", 5, trace)


async def test_a_handle_by_its_id_has_what_the_journal_knows(
    gateway: Simulator, tmp_path: Path
) -> None:
    """A task that an earlier process left is attached with its model, and its wait adds nothing."""
    ear, image = Ear(), "https://pictures.example/1.png"
    async with quick_client(gateway, journal=tmp_path / "run.db") as client:
        task_id = (await client.official.image_to_video(image, PROMPT)).id
    async with quick_client(gateway, journal=tmp_path / "run.db", hooks=[ear]) as client:
        await client.official.task(task_id)
    assert [event.model for event in ear.all(TaskAttached)] == ["gen4_turbo"]


async def test_doubts_from_before_are_reported_once(gateway: Simulator, tmp_path: Path) -> None:
    """A client whose journal holds jobs in doubt says how many, at its first submission."""
    counted = []
    for _ in range(3):
        gateway.fault("submit", faults.Drop(accepted=False))
        ear = Ear()
        async with quick_client(gateway, journal=tmp_path / "run.db", hooks=[ear]) as client:
            with pytest.raises(SubmissionInDoubt):
                await client.generate(PROMPT)
            await client.generate(PROMPT)
        counted.append([event.jobs for event in ear.all(DoubtsFound)])
    assert counted == [[], [1], [2]]


async def test_many_prompts_come_to_many_files(gateway: Simulator, tmp_path: Path) -> None:
    """Each prompt has its outcome, its clip and its file."""
    async with quick_client(gateway, journal=tmp_path / "run.db") as client:
        outcomes = [
            outcome
            async for outcome in client.generate_many(
                ["one", "two", "three"], in_flight=2, download_to=tmp_path / "clips"
            )
        ]
    assert sorted(outcome.index for outcome in outcomes) == [0, 1, 2]
    assert all(outcome.path and outcome.path.is_file() for outcome in outcomes)
    assert gateway.submitted == 3


@pytest.mark.parametrize(
    ("prompts", "options", "field"),
    [
        ("a kitten", {}, "prompts"),
        (["a kitten"], {"in_flight": 2.5}, "in_flight"),
        (["a kitten"], {"timeout": "60"}, "timeout"),
        (["a kitten"], {"max_points": "3"}, "max_points"),
        (["a kitten"], {"download_to": 3}, "download_to"),
        (["a kitten"], {"overwrite": "no"}, "overwrite"),
    ],
)
async def test_wrong_arguments_are_named_before_anything_is_opened(
    gateway: Simulator, tmp_path: Path, prompts: Any, options: dict[str, Any], field: str
) -> None:
    """Both ways to run a batch refuse them, with no file made and nothing sent."""
    client = quick_client(gateway, journal=tmp_path / "run.db")
    with pytest.raises(UsageError) as caught:
        client.batch(prompts, **options)
    assert caught.value.field == field
    with pytest.raises(UsageError):
        await anext(client.generate_many(prompts, **options))
    await client.aclose()
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240 - an empty folder
    assert gateway.requests == ()
