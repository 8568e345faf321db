"""The events of one submission, and what its end leaves behind."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from support.clients import QUICK_RETRY, Ear, others, quick_client
from support.clock import settle, until
from support.scene import A_WHILE, IMAGE, PROMPT, scene_of
from support.servers import free_port, raw_server, reply

from fuhu_runway import Client
from fuhu_runway._session import submission
from fuhu_runway.errors import Fate, JournalError, RunwayError, SubmissionInDoubt
from fuhu_runway.hooks import (
    Event,
    RetryScheduled,
    SubmissionDoubted,
    SubmissionFailed,
    SubmissionHeld,
    SubmissionSent,
    SubmissionStarted,
    SubmissionUnclaimed,
    TaskSubmitted,
)
from fuhu_runway.journal import JobState, Journal
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


def submissions(ear: Ear) -> list[Event]:
    """Return the events of submissions, in order."""
    return [event for event in ear.heard if isinstance(event, KINDS)]


async def test_every_step_is_an_event(gateway: Simulator) -> None:
    """Start, hold, two attempts and the task all have one number; the time is from the first."""
    ear = Ear()
    gateway.script("a puppy", faults=[faults.on("submit", faults.TooManyRequests(0.05))])
    async with quick_client(gateway, hooks=[ear], limits=Limits(tasks_in_flight=1)) as client:
        await client.generate(PROMPT)
        ear.heard.clear()
        task = await client.generate("a puppy", seconds=5, tag="shop")
    started, *_, submitted = submissions(ear)
    assert isinstance(started, SubmissionStarted)
    assert isinstance(submitted, TaskSubmitted)
    number = started.submission
    assert submissions(ear) == [
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
    ear = Ear()
    async with quick_client(gateway, hooks=[ear]) as client:
        await client.act_one("https://clips.example/1.mp4", IMAGE)
    [event] = ear.all(SubmissionStarted)
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
    ear = Ear()
    client = await make(gateway, hooks=[ear])
    with pytest.raises(RunwayError):
        await client.generate(PROMPT)
    await client.aclose()
    [event] = ear.all(SubmissionFailed)
    assert (event.error, event.fate) == (error, fate)
    assert len(ear.all(SubmissionSent)) == attempts
    assert submissions(ear)[-1] is event


async def test_nothing_is_sent_without_its_row(gateway: Simulator, tmp_path: Path) -> None:
    """The step to SUBMITTING fails, so the request is not sent and is in no doubt."""
    ear = Ear()
    gateway.fault("submit", faults.Slow(A_WHILE))
    journal, one = Journal(tmp_path / "run.db"), Limits(requests_in_flight=1)
    async with quick_client(gateway, hooks=[ear], journal=journal, limits=one) as client:
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
    [event] = ear.all(SubmissionFailed)
    assert (event.error, event.fate) == ("JournalError", Fate.UNSENT)
    assert gateway.submitted == 1


async def test_a_session_that_is_closed_fails_before_it_is_sent(gateway: Simulator) -> None:
    """A `UsageError` on the way says that nothing was sent."""
    ear = Ear()
    client = quick_client(gateway, hooks=[ear])
    await client._sessions.current().transport._paid.close()
    with pytest.raises(RunwayError):
        await client.generate(PROMPT)
    await client.aclose()
    [event] = ear.all(SubmissionFailed)
    assert (event.error, event.fate) == ("UsageError", Fate.UNSENT)


async def test_a_doubt_has_the_name_of_its_cause(gateway: Simulator) -> None:
    """The event has the name of the error that came in place of a response."""
    ear = Ear()
    gateway.fault("submit", faults.drop_after_accepting())
    async with quick_client(gateway, hooks=[ear]) as client:
        with pytest.raises(SubmissionInDoubt):
            await client.generate(PROMPT)
    started, _, doubted = submissions(ear)
    assert isinstance(started, SubmissionStarted)
    assert doubted == SubmissionDoubted(started.submission, "text_to_video", "NoReply", None)


async def test_a_doubt_names_the_task_that_its_answer_named() -> None:
    """The id in a damaged answer is in the event and in the error."""
    ear = Ear()
    async with raw_server(DAMAGED) as server, Client("sk-1", base_url=server.url, hooks=[ear]) as c:
        with pytest.raises(SubmissionInDoubt) as caught:
            await c.generate(PROMPT)
    assert caught.value.task_id == "t-1"
    assert [event.task_id for event in ear.all(SubmissionDoubted)] == ["t-1"]


async def test_a_defect_after_the_sending_is_a_doubt(
    gateway: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is raised as it is, and the name is not free to pay again."""

    def broken(_: object) -> None:
        raise ZeroDivisionError

    ear = Ear()
    async with quick_client(gateway, hooks=[ear]) as client:
        monkeypatch.setattr(submission, "read_task", broken)
        with pytest.raises(ZeroDivisionError):
            await client.generate(PROMPT, custom_id="order 7")
        with pytest.raises(SubmissionInDoubt):
            await client.generate(PROMPT, custom_id="order 7")
    assert [event.error for event in ear.all(SubmissionDoubted)] == ["ZeroDivisionError"]
    assert gateway.submitted == 1


async def test_a_cancelled_caller_in_doubt_leaves_the_task_in_the_event() -> None:
    """The error reaches no caller, so `SubmissionUnclaimed` has the id of the damaged answer."""
    ear = Ear()
    async with raw_server(DAMAGED) as server:
        server.may_answer.clear()
        client = Client("sk-1", base_url=server.url, hooks=[ear])
        submitting = asyncio.ensure_future(client.generate(PROMPT))
        await server.asked.wait()
        submitting.cancel()
        await settle()
        server.may_answer.set()
        await client.aclose()
    [event] = ear.all(SubmissionUnclaimed)
    assert (event.task_id, event.error) == ("t-1", "SubmissionInDoubt")
    assert ear.all(SubmissionDoubted) == []


async def test_a_refused_request_is_not_retried_without_a_caller(gateway: Simulator) -> None:
    """Its caller was cancelled while it was in flight, so it ends with the first refusal."""
    ear = Ear()
    gateway.fault("submit", faults.Slow(A_WHILE, faults.TooManyRequests()), times=None)
    async with quick_client(gateway, hooks=[ear]) as client:
        submitting = asyncio.ensure_future(client.generate(PROMPT))
        await until(lambda: ear.all(SubmissionSent))
        submitting.cancel()
        await until(lambda: ear.all(SubmissionUnclaimed))
        await asyncio.sleep(0.02)
    assert len(gateway.requests) == len(ear.all(SubmissionSent)) == 1
    assert [event.error for event in ear.all(SubmissionUnclaimed)] == ["RateLimited"]
    assert ear.all(RetryScheduled) == []
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
        [address] = scene.receiver._addresses.values()
        assert (address.request is not None) is is_kept
