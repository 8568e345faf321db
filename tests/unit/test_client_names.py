"""Submits under a name: the same name is the same task, and is paid once."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.clients import EventRecorder, others, quick_client
from support.clock import settle, until

from fuhu_runway import Client, Item, Task
from fuhu_runway._session import names
from fuhu_runway.errors import (
    InvalidRequest,
    JournalError,
    SubmissionInDoubt,
    TaskFailed,
    UsageError,
)
from fuhu_runway.hooks import (
    DoubtsFound,
    SubmissionStarted,
    TaskAttached,
    TaskSettled,
    TaskSubmitted,
)
from fuhu_runway.journal import Job, JobState, Journal, plan_of
from fuhu_runway.models import Limits, OfficialImageToVideo, TextToVideo
from fuhu_runway.testing import Simulator, faults

PROMPT = "a kitten"
IMAGE = "https://pictures.example/1.png"
VIDEO = "https://pictures.example/1.mp4"
A_WHILE = 200.0


@pytest.fixture(params=[False, True], ids=["without a journal", "with a journal"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Return where the journal is; None for no journal."""
    return tmp_path / "run.db" if request.param else None


async def left(work: "asyncio.Future[Any]") -> None:
    """Cancel *work*, and wait for it to be over."""
    work.cancel()
    await asyncio.wait([work])
    assert work.cancelled()


WAYS: dict[str, Callable[..., Awaitable[Task]]] = {
    "submit": lambda client, **name: client.submit(TextToVideo(PROMPT), **name),
    "generate": lambda client, **name: client.generate(PROMPT, **name),
    "picture": lambda client, **name: client.generate(PROMPT, image=IMAGE, **name),
    "video": lambda client, **name: client.video_to_video(VIDEO, PROMPT, **name),
    "act one": lambda client, **name: client.act_one(VIDEO, IMAGE, **name),
    "official": lambda client, **name: client.official.image_to_video(IMAGE, PROMPT, **name),
}


@pytest.mark.parametrize("way", WAYS)
async def test_every_submit_takes_a_name_and_a_tag(
    gateway: Simulator, path: Path | None, way: str
) -> None:
    """The handle has both, events have the tag, and the second submit sends nothing."""
    recorder = EventRecorder()
    async with quick_client(gateway, journal=path, hooks=[recorder]) as client:
        first = await WAYS[way](client, custom_id="order 7", tag="shop")
        second = await WAYS[way](client, custom_id="order 7", tag="another")
        assert (second.id, second.custom_id, second.tag) == (first.id, "order 7", "shop")
        assert second.official is (way == "official")
        assert [task.id for task in client.unfinished] == [first.id]
        await second.wait()
        assert client.unfinished == ()
    assert [event.tag for event in recorder.all(TaskSubmitted)] == ["shop"]
    assert [event.tag for event in recorder.all(TaskSettled)] == ["shop"]
    assert gateway.submitted == 1


@pytest.mark.parametrize("field", ["custom_id", "tag"])
@pytest.mark.parametrize("value", ["", " ", 5, "a\ud800"])
async def test_a_name_that_cannot_be_kept_is_refused(
    gateway: Simulator, runway: Client, field: str, value: Any
) -> None:
    """Before anything is sent."""
    with pytest.raises(UsageError) as caught:
        await runway.generate(PROMPT, **{field: value})
    assert caught.value.field == field
    assert gateway.requests == ()


async def test_callers_at_once_share_the_task(gateway: Simulator, path: Path | None) -> None:
    """Ten of them pay once; another name is another task."""
    async with quick_client(gateway, journal=path) as client:
        submits = [client.generate(PROMPT, custom_id="order 7") for _ in range(10)]
        *tasks, other = await asyncio.gather(*submits, client.generate(PROMPT, custom_id="8"))
        assert len({task.id for task in tasks}) == 1
        assert other.id != tasks[0].id
    assert gateway.submitted == 2
    assert others() == set()


async def test_a_name_outlives_the_process(gateway: Simulator, tmp_path: Path) -> None:
    """In whatever state its task is: running, finished, saved, or failed."""
    gateway.script("broken", then="fail")
    path = tmp_path / "run.db"

    async def life(*steps: str) -> list[str]:
        async with quick_client(gateway, journal=path) as client:
            tasks = [await client.generate(name, custom_id=name) for name in steps]
            for name, task in zip(steps, tasks, strict=True):
                if name in {"finished", "saved"}:
                    clip = await task.wait()
                if name == "saved":
                    await clip.download(tmp_path / "1.mp4", overwrite=True)
                if name == "broken":
                    with pytest.raises(TaskFailed):
                        await task.wait()
            return [task.id for task in tasks]

    steps = ("running", "finished", "saved", "broken")
    assert await life(*steps) == await life(*steps)
    assert gateway.submitted == 4


async def test_a_refused_name_may_be_used_again(gateway: Simulator, path: Path | None) -> None:
    """Nothing was charged, so the name is free; every caller gets its own error."""
    gateway.fault("submit", faults.refused())
    async with quick_client(gateway, journal=path) as client:
        results = await asyncio.gather(
            *(client.generate(PROMPT, custom_id="order 7") for _ in range(2)),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [InvalidRequest, InvalidRequest]
        assert results[0] is not results[1]
        assert await client.find("order 7") is None
        task = await client.generate(PROMPT, custom_id="order 7")
        found = await client.find("order 7")
        assert found is task
    assert gateway.submitted == 1


async def test_a_name_in_doubt_is_not_paid_again(gateway: Simulator, path: Path | None) -> None:
    """Neither now nor after a restart; the name of no submission finds nothing."""
    gateway.fault("submit", faults.drop_after_accepting())
    async with quick_client(gateway, journal=path) as client:
        for _ in range(2):
            with pytest.raises(SubmissionInDoubt):
                await client.generate(PROMPT, custom_id="order 7")
        assert await client.find("order 7") is None
        assert await client.find("order 8") is None
    if path is not None:
        async with quick_client(gateway, journal=path) as client:
            with pytest.raises(SubmissionInDoubt):
                await client.generate(PROMPT, custom_id="order 7")
            assert await client.find("order 7") is None
    assert gateway.submitted == 1


async def test_a_name_that_another_client_is_submitting_is_in_doubt(
    gateway: Simulator, tmp_path: Path
) -> None:
    """Two clients that share a journal do not pay twice either."""
    journal = Journal(tmp_path / "run.db")
    gateway.fault("submit", faults.Slow(A_WHILE))
    async with (
        quick_client(gateway, journal=journal) as one,
        quick_client(gateway, journal=journal) as other,
    ):
        first = asyncio.ensure_future(one.generate(PROMPT, custom_id="order 7"))
        await until(lambda: gateway.submitted)
        with pytest.raises(SubmissionInDoubt):
            await other.generate(PROMPT, custom_id="order 7")
        task = await first
        assert (await other.generate(PROMPT, custom_id="order 7")).id == task.id
    await journal.aclose()
    assert gateway.submitted == 1


async def test_one_cancelled_caller_takes_nothing_away(
    gateway: Simulator, path: Path | None
) -> None:
    """The submission goes on for the others."""
    gateway.fault("submit", faults.Slow(A_WHILE))
    async with quick_client(gateway, journal=path) as client:
        first, second = (
            asyncio.ensure_future(client.generate(PROMPT, custom_id="order 7")) for _ in range(2)
        )
        await until(lambda: gateway.submitted)
        await left(first)
        assert (await second).id == gateway.tasks[0].task_id
    assert gateway.submitted == 1


async def test_the_next_caller_waits_for_a_request_that_was_left(
    gateway: Simulator, path: Path | None
) -> None:
    """All callers were cancelled while it was in flight, and its task is the name's."""
    gateway.fault("submit", faults.Slow(A_WHILE))
    async with quick_client(gateway, journal=path) as client:
        first = asyncio.ensure_future(client.generate(PROMPT, custom_id="order 7", tag="shop"))
        await until(lambda: gateway.submitted)
        await left(first)
        task = await client.generate(PROMPT, custom_id="order 7")
        assert (task.id, task.tag) == (gateway.tasks[0].task_id, "shop")
        assert client.unfinished == (task,)
    assert gateway.submitted == 1
    assert others() == set()


async def test_a_request_that_was_left_and_got_lost_is_in_doubt(
    gateway: Simulator, path: Path | None
) -> None:
    """The next caller under its name gets the doubt, and pays nothing."""
    gateway.fault("submit", faults.Hang(accepted=True))
    async with quick_client(gateway, journal=path) as client:
        first = asyncio.ensure_future(client.generate(PROMPT, custom_id="order 7"))
        await until(lambda: gateway.submitted)
        await left(first)
        [session] = client._sessions.by_loop.values()
        [flight] = session.transport._in_flight
        flight.cancel()
        with pytest.raises(SubmissionInDoubt):
            await client.generate(PROMPT, custom_id="order 7")
    assert gateway.submitted == 1


async def test_what_was_not_sent_is_not_sent_once_all_have_left(
    gateway: Simulator, path: Path | None
) -> None:
    """As without a name; the next submit under the name is a new one."""
    gateway.fault("submit", faults.Slow(A_WHILE))
    limits = Limits(requests_in_flight=1)
    async with quick_client(gateway, journal=path, limits=limits) as client:
        busy = asyncio.ensure_future(client.generate("a puppy"))
        await until(lambda: gateway.submitted)
        named = asyncio.ensure_future(client.generate(PROMPT, custom_id="order 7"))
        await settle()
        named.cancel()
        again = asyncio.ensure_future(client.generate(PROMPT, custom_id="order 7"))
        await asyncio.wait([named])
        assert named.cancelled()
        await left(again)
        await busy
        assert await client.find("order 7") is None
        await client.generate(PROMPT, custom_id="order 7")
    assert gateway.submitted == 2


async def test_a_closed_client_neither_finds_nor_opens(gateway: Simulator, tmp_path: Path) -> None:
    """The journal stays closed."""
    client = quick_client(gateway, journal=tmp_path / "run.db")
    async with client:
        pass
    for call in (client.find("order 7"), client.generate(PROMPT, custom_id="order 7")):
        with pytest.raises(UsageError, match="closed"):
            await call
    assert repr(client.journal).endswith("closed>")


async def test_two_threads_pay_once(gateway: Simulator) -> None:
    """The second thread joins the submission of the first, in the first one's loop."""
    gateway.fault("submit", faults.Slow(A_WHILE))
    client, ids = quick_client(gateway), list[str]()

    async def submit() -> None:
        ids.append((await client.generate(PROMPT, custom_id="order 7")).id)
        await client.aclose()

    first = asyncio.ensure_future(submit())
    await until(lambda: gateway.submitted)
    await asyncio.to_thread(asyncio.run, submit())
    await first
    assert len(ids) == 2
    assert len(set(ids)) == 1
    assert gateway.submitted == 1


async def test_a_loop_that_ends_leaves_the_name_in_doubt(gateway: Simulator) -> None:
    """Another thread that waits for it gets the doubt; a cancelled caller is cancelled."""
    gateway.fault("submit", faults.Hang(accepted=True))
    client = quick_client(gateway)
    sent = threading.Event()

    async def cut_off() -> None:
        submitting = asyncio.ensure_future(client.generate(PROMPT, custom_id="order 7"))
        await asyncio.to_thread(sent.wait)
        assert not submitting.done()

    ending = asyncio.ensure_future(asyncio.to_thread(asyncio.run, cut_off()))
    await until(lambda: gateway.submitted)
    leaving = asyncio.ensure_future(client.generate(PROMPT, custom_id="order 7"))
    joining = asyncio.ensure_future(client.generate(PROMPT, custom_id="order 7"))
    await settle()
    await left(leaving)
    sent.set()
    await ending
    with pytest.raises(SubmissionInDoubt):
        await joining
    await client.aclose()
    assert gateway.submitted == 1


async def test_a_loop_that_stands_still_holds_no_other_caller(
    gateway: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent again meanwhile; once the loop runs, the submission ends as it would have."""
    monkeypatch.setattr(names, "STOPPED_AFTER", 0)
    gateway.fault("submit", faults.Slow(A_WHILE))
    client, loop = quick_client(gateway), asyncio.new_event_loop()
    started = threading.Event()

    async def begin() -> "asyncio.Task[Task]":
        submitting = asyncio.ensure_future(client.generate(PROMPT, custom_id="order 7"))
        await asyncio.to_thread(started.wait)
        return submitting

    beginning = asyncio.ensure_future(asyncio.to_thread(loop.run_until_complete, begin()))
    await until(lambda: gateway.submitted)
    started.set()
    submitting = await beginning
    with pytest.raises(SubmissionInDoubt, match="does not run"):
        await client.generate(PROMPT, custom_id="order 7")
    task = await asyncio.to_thread(loop.run_until_complete, submitting)
    assert (await client.generate(PROMPT, custom_id="order 7")).id == task.id
    await asyncio.to_thread(loop.run_until_complete, client.aclose())
    loop.close()
    await client.aclose()
    assert gateway.submitted == 1


async def test_a_client_with_a_journal_forgets_old_names(
    gateway: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal has them, so that a server's memory does not grow."""
    monkeypatch.setattr(names, "MAX_KEPT", 2)
    async with quick_client(gateway, journal=tmp_path / "run.db") as client:
        tasks = [await client.generate(PROMPT, custom_id=f"{number}") for number in range(5)]
        assert list(client._sessions.names.tasks) == ["3", "4"]
        again = [await client.generate(PROMPT, custom_id=f"{number}") for number in range(5)]
    assert [task.id for task in again] == [task.id for task in tasks]
    assert gateway.submitted == 5


async def test_a_batch_and_a_submit_share_a_name(gateway: Simulator, tmp_path: Path) -> None:
    """In either order, a job of a batch and a single submit are one task."""
    async with quick_client(gateway, journal=tmp_path / "run.db") as client:
        task = await client.generate(PROMPT, custom_id="a")
        items = [Item(TextToVideo(PROMPT), name) for name in ("a", "b")]
        outcomes = [one async for one in client.generate_many(items)]
        ids = {one.custom_id: one.task_id for one in outcomes}
        assert ids["a"] == task.id
        assert (await client.generate(PROMPT, custom_id="b")).id == ids["b"]
        assert client.unfinished == ()
    assert gateway.submitted == 2


async def test_a_name_whose_row_was_refused_is_planned_again(
    gateway: Simulator, tmp_path: Path
) -> None:
    """A row that failed without a task, in an earlier process, does not block its name."""
    journal = Journal(tmp_path / "run.db")
    plan = plan_of(TextToVideo(PROMPT), "id:order 7", "order 7")
    await journal.plan(plan, 1.0)
    await journal.step(plan.key, JobState.SUBMITTING, 2.0)
    await journal.step(plan.key, JobState.FAILED, 3.0, error="InvalidRequest")
    async with quick_client(gateway, journal=journal) as client:
        assert await client.find("order 7") is None
        await client.generate(PROMPT, custom_id="order 7")
    await journal.aclose()
    assert gateway.submitted == 1


# A journal around each submission, and batches


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
    """An official task is polled in its own format, and its clip is returned."""
    async with quick_client(gateway, journal=tmp_path / "run.db") as client:
        await client.submit(OfficialImageToVideo("https://example.com/1.png", PROMPT))
        assert client.journal is not None
        [job] = await client.journal.jobs()
        task = client.attach(job)
        assert task.official
        assert (await task.wait(timeout=10)).id == job.task_id


class Traced(EventRecorder):
    """A listener that knows the trace of each submission."""

    def trace_of(self, submission: int) -> str:
        return f"00-{submission:032x}-{1:016x}-01"


async def test_a_job_leads_to_the_trace_of_its_submission(
    gateway: Simulator, tmp_path: Path
) -> None:
    """What a listener knows of a submission is in its row, and is passed on when it resumes."""
    first, second = Traced(), EventRecorder()
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
    path, traced, recorder = tmp_path / "run.db", Traced(), EventRecorder()
    async with quick_client(gateway, journal=path, hooks=[traced]) as client:
        task_id = (await client.generate(PROMPT, seconds=5, custom_id="order 7")).id
    async with quick_client(gateway, journal=path, hooks=[recorder]) as client:
        [task] = client.unfinished
        assert client.unfinished[0].id == task.id == task_id
        assert recorder.all(TaskAttached) == []
        await task.refresh()
        assert await client.find("order 7") is task
        await task
    [attached] = recorder.all(TaskAttached)
    [started] = traced.all(SubmissionStarted)
    trace = traced.trace_of(started.submission)
    assert attached == TaskAttached(task_id, attached.client, "text_to_video", "gen4", 5, trace)


async def test_a_handle_by_its_id_has_what_the_journal_knows(
    gateway: Simulator, tmp_path: Path
) -> None:
    """A task that an earlier process left is attached with its model, and its wait adds nothing."""
    recorder, image = EventRecorder(), "https://pictures.example/1.png"
    async with quick_client(gateway, journal=tmp_path / "run.db") as client:
        task_id = (await client.official.image_to_video(image, PROMPT)).id
    async with quick_client(gateway, journal=tmp_path / "run.db", hooks=[recorder]) as client:
        await client.official.task(task_id)
    assert [event.model for event in recorder.all(TaskAttached)] == ["gen4_turbo"]


async def test_doubts_from_before_are_reported_once(gateway: Simulator, tmp_path: Path) -> None:
    """A client whose journal holds jobs in doubt says how many, at its first submission."""
    counted = []
    for _ in range(3):
        gateway.fault("submit", faults.Drop(accepted=False))
        recorder = EventRecorder()
        async with quick_client(gateway, journal=tmp_path / "run.db", hooks=[recorder]) as client:
            with pytest.raises(SubmissionInDoubt):
                await client.generate(PROMPT)
            await client.generate(PROMPT)
        counted.append([event.jobs for event in recorder.all(DoubtsFound)])
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
