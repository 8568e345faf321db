"""The events of one submission, and what its end leaves behind."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from support.clients import QUICK_RETRY, EventRecorder, others, quick_client
from support.clock import settle, until
from support.scene import A_WHILE, IMAGE, PROMPT, scene_of
from support.servers import free_port, raw_server, reply

from fuhu_runway import Client
from fuhu_runway._session import submission
from fuhu_runway._session.memory import Memory, Row
from fuhu_runway.errors import Fate, JournalError, RunwayError, SubmissionInDoubt, UsageError
from fuhu_runway.hooks import (
    Event,
    RetryScheduled,
    SubmissionDoubted,
    SubmissionFailed,
    SubmissionHeld,
    SubmissionSent,
    SubmissionStarted,
    SubmissionUnclaimed,
    SubmissionUnrecorded,
    TaskSubmitted,
)
from fuhu_runway.journal import Job, JobState, Journal, hash_prompt, plan_of
from fuhu_runway.models import Limits, TextToVideo
from fuhu_runway.testing import Simulator, faults

DAMAGED: Final = reply(b'{"code": 200, "data": {"task_id": "t-1", "sta')
KINDS: Final = (
    RetryScheduled,
    SubmissionDoubted,
    SubmissionFailed,
    SubmissionHeld,
    SubmissionSent,
    SubmissionStarted,
    SubmissionUnclaimed,
    TaskSubmitted,
)


def submissions(recorder: EventRecorder) -> list[Event]:
    """Return the events of submissions, in order."""
    return [event for event in recorder.events if isinstance(event, KINDS)]


async def test_every_step_is_an_event(gateway: Simulator) -> None:
    """Start, hold, two attempts and the task all have one number; the time is from the first."""
    recorder = EventRecorder()
    gateway.script("a puppy", faults=[faults.on("submit", faults.TooManyRequests(0.05))])
    async with quick_client(gateway, hooks=[recorder], limits=Limits(tasks_in_flight=1)) as client:
        await client.generate(PROMPT)
        recorder.events.clear()
        task = await client.generate("a puppy", seconds=5, tag="shop")
    started, *_, submitted = submissions(recorder)
    assert isinstance(started, SubmissionStarted)
    assert isinstance(submitted, TaskSubmitted)
    number = started.submission
    assert submissions(recorder) == [
        SubmissionStarted(number, started.client, "text_to_video", "gen4", 5),
        SubmissionHeld(number, 1),
        SubmissionSent(number, 1),
        RetryScheduled("text_to_video", 1, 0.05, "RateLimited", number),
        SubmissionSent(number, 2),
        TaskSubmitted(task.id, "text_to_video", submitted.seconds, number, "shop"),
    ]
    assert submitted.seconds >= 0.05


async def test_a_request_without_a_model_has_none_in_its_event(gateway: Simulator) -> None:
    """Not every kind of request has a model and a length."""
    recorder = EventRecorder()
    async with quick_client(gateway, hooks=[recorder]) as client:
        await client.act_one("https://clips.example/1.mp4", IMAGE)
    [event] = recorder.all(SubmissionStarted)
    assert (event.endpoint, event.model, event.clip_seconds) == ("act_one", None, None)


async def unreachable(gateway: Simulator, **options: Any) -> Client:
    """Return a client of a gateway that is not there."""
    return quick_client(gateway, base_url=f"http://127.0.0.1:{free_port()}", **options)


async def busy(gateway: Simulator, **options: Any) -> Client:
    """Return a client of a gateway that refuses for now."""
    gateway.fault("submit", faults.TooManyRequests(), times=None)
    return quick_client(gateway, **options)


async def refusing(gateway: Simulator, **options: Any) -> Client:
    """Return a client of a gateway that refuses for good."""
    gateway.fault("submit", faults.refused())
    return quick_client(gateway, **options)


async def without_a_journal(gateway: Simulator, **options: Any) -> Client:
    """Return a client whose journal cannot be opened."""
    return quick_client(gateway, journal=Path("missing", "run.db"), **options)


@pytest.mark.parametrize(
    ("make", "error", "fate", "attempts"),
    [
        (unreachable, "NotSent", Fate.UNSENT, QUICK_RETRY.attempts),
        (busy, "RateLimited", Fate.REFUSED, QUICK_RETRY.attempts),
        (refusing, "InvalidRequest", Fate.REJECTED, 1),
        (without_a_journal, "JournalError", Fate.UNSENT, 0),
    ],
)
async def test_a_failure_has_a_name_and_a_fate(
    gateway: Simulator, make: Callable[..., Any], error: str, fate: Fate, attempts: int
) -> None:
    """A submission that was not charged ends with one `SubmissionFailed`."""
    recorder = EventRecorder()
    client = await make(gateway, hooks=[recorder])
    with pytest.raises(RunwayError):
        await client.generate(PROMPT)
    await client.aclose()
    [event] = recorder.all(SubmissionFailed)
    assert (event.error, event.fate) == (error, fate)
    assert len(recorder.all(SubmissionSent)) == attempts
    assert submissions(recorder)[-1] is event


async def test_nothing_is_sent_without_its_row(gateway: Simulator, tmp_path: Path) -> None:
    """The step to SUBMITTING fails, so the request is not sent and is in no doubt."""
    recorder = EventRecorder()
    gateway.fault("submit", faults.Slow(A_WHILE))
    journal, one = Journal(tmp_path / "run.db"), Limits(requests_in_flight=1)
    async with quick_client(gateway, hooks=[recorder], journal=journal, limits=one) as client:
        first = asyncio.ensure_future(client.generate("a puppy"))
        await until(lambda: gateway.submitted)
        second = asyncio.ensure_future(client.generate(PROMPT))
        while len(await journal.jobs()) < 2:  # noqa: ASYNC110  (the file has no event)
            await asyncio.sleep(0.001)
        await journal.forget((await journal.jobs(JobState.PLANNED))[0].key)
        await first
        with pytest.raises(JournalError):
            await second
    await journal.aclose()
    [event] = recorder.all(SubmissionFailed)
    assert (event.error, event.fate) == ("JournalError", Fate.UNSENT)
    assert gateway.submitted == 1


async def test_a_session_that_is_closed_fails_before_it_is_sent(gateway: Simulator) -> None:
    """A `UsageError` on the way says that nothing was sent."""
    recorder = EventRecorder()
    client = quick_client(gateway, hooks=[recorder])
    await client._sessions.current().transport._paid.close()
    with pytest.raises(RunwayError):
        await client.generate(PROMPT)
    await client.aclose()
    [event] = recorder.all(SubmissionFailed)
    assert (event.error, event.fate) == ("UsageError", Fate.UNSENT)


async def test_a_doubt_has_the_name_of_its_cause(gateway: Simulator) -> None:
    """The event has the name of the error that came in place of a response."""
    recorder = EventRecorder()
    gateway.fault("submit", faults.drop_after_accepting())
    async with quick_client(gateway, hooks=[recorder]) as client:
        with pytest.raises(SubmissionInDoubt):
            await client.generate(PROMPT)
    started, _, doubted = submissions(recorder)
    assert isinstance(started, SubmissionStarted)
    assert doubted == SubmissionDoubted(started.submission, "text_to_video", "NoReply", None)


async def test_a_doubt_names_the_task_that_its_answer_named() -> None:
    """The id in a damaged response is in the event and in the error."""
    recorder = EventRecorder()
    async with (
        raw_server(DAMAGED) as server,
        Client("sk-1", base_url=server.url, hooks=[recorder]) as c,
    ):
        with pytest.raises(SubmissionInDoubt) as caught:
            await c.generate(PROMPT)
    assert caught.value.task_id == "t-1"
    assert [event.task_id for event in recorder.all(SubmissionDoubted)] == ["t-1"]


class Stop(BaseException):
    """Not an error, as what ends a program."""


@pytest.mark.parametrize("has_journal", [True, False])
@pytest.mark.parametrize("kind", [ZeroDivisionError, Stop])
async def test_a_defect_after_the_sending_is_a_doubt(
    gateway: Simulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[BaseException],
    has_journal: bool,
) -> None:
    """It is raised as it is, the row is in doubt at once, and the name is not free to pay again."""

    def broken(_: object) -> None:
        raise kind

    recorder, path = EventRecorder(), tmp_path / "run.db" if has_journal else None
    async with quick_client(gateway, hooks=[recorder], journal=path) as client:
        monkeypatch.setattr(submission, "read_task", broken)
        with pytest.raises(kind):
            await client.generate(PROMPT, custom_id="order 7")
        [job] = await client._sessions.ledger.jobs()
        assert (job.state, job.error) == (JobState.IN_DOUBT, kind.__name__)
        with pytest.raises(SubmissionInDoubt):
            await client.generate(PROMPT, custom_id="order 7")
    assert [event.error for event in recorder.all(SubmissionDoubted)] == [kind.__name__]
    assert gateway.submitted == 1


class Broken(Journal):
    """A journal with a defect, which shows before anything is sent."""

    async def step(self, key: str, to: JobState, now: float, **changes: Any) -> Job:
        raise ZeroDivisionError


async def test_a_defect_before_the_sending_is_no_doubt(gateway: Simulator, tmp_path: Path) -> None:
    """Nothing was sent, so nothing was charged, and the same name may be submitted."""
    recorder = EventRecorder()
    journal = Broken(tmp_path / "run.db")
    async with quick_client(gateway, hooks=[recorder], journal=journal) as client:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await client.generate(PROMPT, custom_id="order 7")
    await journal.aclose()
    assert [event.fate for event in recorder.all(SubmissionFailed)] == [Fate.UNSENT] * 2
    assert recorder.all(SubmissionDoubted) == []


class Defective(Journal):
    """A journal with a defect, which shows once something was sent."""

    async def step(self, key: str, to: JobState, now: float, **changes: Any) -> Job:
        if to is not JobState.SUBMITTING:
            raise ZeroDivisionError
        return await super().step(key, to, now, **changes)


async def test_a_defect_of_the_journal_does_not_hide_the_task(
    gateway: Simulator, tmp_path: Path
) -> None:
    """The outcome matters more than its row: the caller gets the task, and an event says so."""
    recorder = EventRecorder()
    journal = Defective(tmp_path / "run.db")
    async with quick_client(gateway, hooks=[recorder], journal=journal) as client:
        task = await client.generate(PROMPT)
        [job] = await journal.jobs()
    await journal.aclose()
    [started] = recorder.all(SubmissionStarted)
    unrecorded = SubmissionUnrecorded(
        job.key, "ZeroDivisionError", task.id, None, started.submission
    )
    assert recorder.all(SubmissionUnrecorded) == [unrecorded]


class Stuck(Journal):
    """A journal that cannot write what happened, as one whose database is out of reach."""

    async def step(self, key: str, to: JobState, now: float, **changes: Any) -> Job:
        if to is not JobState.SUBMITTING:
            await asyncio.Event().wait()
        return await super().step(key, to, now, **changes)


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize(
    ("kind", "states"), [(Journal, [JobState.IN_DOUBT]), (Stuck, [JobState.SUBMITTING])]
)
async def test_a_request_that_is_cut_off_is_in_doubt_at_once(
    gateway: Simulator, tmp_path: Path, kind: type[Journal], states: list[JobState]
) -> None:
    """Its row says so before the journal is closed, but the end of a loop does not wait for it."""
    gateway.fault("submit", faults.Hang(accepted=True))
    journal = kind(tmp_path / "run.db")
    async with quick_client(gateway, journal=journal) as client:
        submitting = asyncio.ensure_future(client.generate(PROMPT))
        await until(lambda: gateway.submitted)
        [flight] = client._sessions.current().transport._in_flight
        flight.cancel()
        await asyncio.wait([submitting])
        assert flight.cancelled()
        assert [job.state for job in await journal.jobs()] == states
    await journal.aclose()


async def test_a_cancelled_caller_in_doubt_leaves_the_task_in_the_event() -> None:
    """The error reaches no caller, so `SubmissionUnclaimed` has the id of the damaged response."""
    recorder = EventRecorder()
    async with raw_server(DAMAGED) as server:
        server.may_answer.clear()
        client = Client("sk-1", base_url=server.url, hooks=[recorder])
        submitting = asyncio.ensure_future(client.generate(PROMPT))
        await server.got_request.wait()
        submitting.cancel()
        await settle()
        server.may_answer.set()
        await client.aclose()
    [event] = recorder.all(SubmissionUnclaimed)
    assert (event.task_id, event.error) == ("t-1", "SubmissionInDoubt")
    assert recorder.all(SubmissionDoubted) == []


async def test_a_refused_request_is_not_retried_without_a_caller(gateway: Simulator) -> None:
    """Its caller was cancelled while it was in flight, so it ends with the first refusal."""
    recorder = EventRecorder()
    gateway.fault("submit", faults.Slow(A_WHILE, faults.TooManyRequests()), times=None)
    async with quick_client(gateway, hooks=[recorder]) as client:
        submitting = asyncio.ensure_future(client.generate(PROMPT))
        await until(lambda: recorder.all(SubmissionSent))
        submitting.cancel()
        await until(lambda: recorder.all(SubmissionUnclaimed))
        await asyncio.sleep(0.02)
    assert len(gateway.requests) == len(recorder.all(SubmissionSent)) == 1
    assert [event.error for event in recorder.all(SubmissionUnclaimed)] == ["RateLimited"]
    assert recorder.all(RetryScheduled) == []
    assert others() == set()


async def test_a_request_that_was_cut_off_can_be_found(gateway: Simulator) -> None:
    """A request that was cut off in flight is in doubt, and a webhook names its task."""
    gateway.fault("submit", faults.Hang(accepted=True))
    async with scene_of(gateway) as scene:
        submitting = asyncio.ensure_future(scene.client.generate(PROMPT))
        await until(lambda: gateway.submitted)
        [flight] = scene.client._sessions.current().transport._in_flight
        flight.cancel()
        await asyncio.wait([submitting])
        scene.post(status="1")
        await until(lambda: scene.client.unfinished)
        [task] = scene.client.unfinished
        assert (task.id, task.request) == (gateway.tasks[0].task_id, TextToVideo(PROMPT))


@pytest.mark.parametrize(
    ("fault", "is_kept"),
    [(faults.refused(), False), (faults.drop_after_accepting(), True), (faults.Slow(1.0), False)],
)
async def test_an_address_keeps_a_prompt_only_in_doubt(
    gateway: Simulator, fault: faults.Fault, is_kept: bool
) -> None:
    """The request is forgotten with its outcome; only a task in doubt still needs it."""
    gateway.fault("submit", fault)
    async with scene_of(gateway) as scene:
        await asyncio.gather(scene.client.generate(PROMPT), return_exceptions=True)
        [address] = scene.receiver.addresses._kept.values()
        assert (address.request is not None) is is_kept


# What a client without a journal remembers


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


async def test_a_webhook_settles_only_what_is_remembered() -> None:
    """A submission in doubt takes the step to its task, and one that was not accepted does not."""
    memory = Memory(1e12)
    await (await sent(memory, "doubt")).step("doubt", JobState.IN_DOUBT, 1.0)
    job = await memory.step("doubt", JobState.ACCEPTED, 2.0, task_id="t-1", proof="webhook")
    assert (job.task_id, job.accepted_at, await memory.find("t-1")) == ("t-1", 2.0, job)
    with pytest.raises(JournalError):
        await memory.step("unknown", JobState.ACCEPTED, 2.0, task_id="t-2")


async def test_prompts_are_hashed_as_plans_are() -> None:
    """The hash of a prompt is that of its submission."""
    assert await Memory(1.0).hash_prompts(["a  kitten "]) == [hash_prompt("a kitten")]
