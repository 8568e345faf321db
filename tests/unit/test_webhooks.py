"""What a client does with webhooks: whom they wake, what they find, and what they cannot do."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import QUICK_RETRY, quick_client
from support.clock import settle, until
from support.scene import A_WHILE, IMAGE, PROMPT, SECRET, URL, Scene, scene_of
from support.servers import raw_server, reply

from fuhu_runway import CallbackReceiver, Client, Task
from fuhu_runway.errors import InvalidRequest, JournalError, SubmissionInDoubt, UsageError
from fuhu_runway.hooks import (
    CallbackReceived,
    CallbackRefused,
    SubmissionFound,
    SubmissionUnclaimed,
    TaskSettled,
)
from fuhu_runway.journal import Job, JobState, Journal
from fuhu_runway.models import Limits, PollPolicy, TaskState
from fuhu_runway.testing import Simulator, faults


@pytest.fixture
async def gateway() -> AsyncIterator[Simulator]:
    """A gateway that sends no webhooks by itself, on which a task takes some milliseconds."""
    async with Simulator(speed=1000, takes=20, callbacks=None) as simulator:
        yield simulator


@pytest.fixture
async def scene(gateway: Simulator) -> AsyncIterator[Scene]:
    """Return a client without a journal."""
    async with scene_of(gateway) as scene:
        yield scene


# A webhook


async def test_a_webhook_from_another_thread_ends_the_wait(scene: Scene) -> None:
    """An app may take webhooks in a thread that has no event loop."""
    task = await scene.client.generate(PROMPT)
    waiting = asyncio.create_task(task.wait())
    await scene.ended()
    assert await asyncio.to_thread(scene.post) == 204
    assert (await waiting).id == task.id


async def test_a_webhook_for_a_task_without_a_handle_does_no_harm(scene: Scene) -> None:
    """After its handle was dropped, a task has no wait to wake."""
    await scene.client.generate(PROMPT)
    await scene.ended()
    assert scene.post() == 204
    assert scene.feeds == 0


async def test_a_body_that_names_another_task_wakes_neither(scene: Scene) -> None:
    """An address speaks for its own task only; the sender gets the same response as always."""
    tasks = [await scene.client.generate(PROMPT), await scene.client.generate(PROMPT)]
    waits = [asyncio.create_task(task.wait()) for task in tasks]
    await scene.ended()
    assert scene.post(0, task_id=tasks[1].id) == 204
    assert scene.post(0, task_id="t-1") == 204
    await settle()
    assert scene.feeds == 0
    refused = CallbackRefused(tasks[0].id, "it names another task")
    assert scene.recorder.all(CallbackRefused) == [refused, refused]
    for place in range(2):
        scene.post(place)
    await asyncio.gather(*waits)


async def test_a_body_that_names_nothing_wakes_its_own(scene: Scene) -> None:
    """The address alone says which task it is about."""
    task = await scene.client.generate(PROMPT)
    waiting = asyncio.create_task(task.wait())
    await scene.ended()
    assert scene.receiver.deliver(scene.token(), b"<html>") == 204
    assert (await waiting).id == task.id


async def test_a_closed_client_ignores_webhooks(scene: Scene) -> None:
    """Late webhooks are answered politely, and open nothing again."""
    await scene.client.generate(PROMPT)
    await scene.client.aclose()
    assert scene.post() == 204
    assert scene.client._sessions.by_loop == {}


async def test_a_loop_that_has_ended_ignores_webhooks(scene: Scene) -> None:
    """A webhook for waits whose loop is gone is no error for its sender."""
    await scene.client.generate(PROMPT)
    loop = asyncio.new_event_loop()
    loop.close()
    sessions = scene.client._sessions.by_loop
    sessions[loop] = sessions.pop(asyncio.get_running_loop())
    assert scene.post() == 204
    sessions[asyncio.get_running_loop()] = sessions.pop(loop)


async def test_one_loop_of_several_reports_a_webhook(scene: Scene) -> None:
    """A client that is used in two loops at once reports a webhook once."""

    async def elsewhere() -> None:
        async with asyncio.timeout(10):
            await scene.client.balance()
            done.set()
            await asyncio.to_thread(received.wait)
            await scene.client.aclose()

    done, received = threading.Event(), threading.Event()
    task = await scene.client.generate(PROMPT)
    thread = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(elsewhere())))
    await asyncio.to_thread(done.wait)
    assert len(scene.client._sessions.by_loop) == 2
    waiting = asyncio.create_task(task.wait())
    await scene.ended()
    scene.post()
    scene.post(task_id="t-1")
    await waiting
    received.set()
    await thread
    assert len(scene.recorder.all(CallbackReceived)) == 1
    assert len(scene.recorder.all(CallbackRefused)) == 1


# What was lost


async def test_without_a_receiver_it_stays_in_doubt(gateway: Simulator) -> None:
    """Without an address, no webhook can name the lost task."""
    gateway.fault("submit", faults.drop_after_accepting())
    async with quick_client(gateway) as client:
        with pytest.raises(SubmissionInDoubt):
            await client.generate(PROMPT)
        assert client.unfinished == ()


async def test_the_official_format_has_no_address(scene: Scene) -> None:
    """It has no webhooks, so none can name a lost task."""
    scene.gateway.fault("official", faults.drop_after_accepting())
    with pytest.raises(SubmissionInDoubt):
        await scene.client.official.image_to_video(IMAGE, PROMPT)
    assert "callback_url" not in scene.gateway.tasks[-1].request


async def test_an_end_that_is_found_is_reported(scene: Scene) -> None:
    """If the lost task has ended by then, its end is reported and the wait costs no more polls."""
    await scene.doubt()
    await scene.ended()
    scene.post()
    await until(lambda: scene.client.unfinished)
    [task] = scene.client.unfinished
    assert (await task.wait()).id == task.id
    assert scene.feeds == 1
    assert [event.task_id for event in scene.recorder.all(TaskSettled)] == [task.id]


async def test_a_forged_id_finds_nothing_and_spoils_nothing(scene: Scene) -> None:
    """It costs one poll, the task stays in doubt, and the right webhook still finds it."""
    await scene.doubt()
    scene.post(task_id="no-such-task")
    await until(lambda: scene.recorder.all(CallbackRefused))
    reason = "the feed does not confirm it (NotFound)"
    assert scene.recorder.all(CallbackRefused) == [CallbackRefused(None, reason)]
    assert (scene.feeds, scene.client.unfinished) == (1, ())
    scene.post(status="1")
    await until(lambda: scene.client.unfinished)
    assert scene.client.unfinished[0].id == scene.gateway.tasks[0].task_id


async def test_a_storm_of_forged_ids_is_bounded(scene: Scene) -> None:
    """However many are posted to an address in doubt, one poll in 5 s is what they cost."""
    await scene.doubt()
    for number in range(100):
        scene.post(task_id=f"no-such-task-{number}")
        await settle()
    await asyncio.sleep(0)
    assert scene.feeds == 1
    assert scene.client.unfinished == ()


async def test_the_task_of_another_submission_is_not_taken(scene: Scene) -> None:
    """A task that another submit of this client made is not what was lost."""
    mine = await scene.client.generate(PROMPT)
    await scene.doubt()
    scene.post(task_id=mine.id)
    await until(lambda: scene.recorder.all(CallbackRefused))
    reason = "the task that it names belongs to another submission"
    assert scene.recorder.all(CallbackRefused) == [CallbackRefused(None, reason)]
    assert (scene.feeds, scene.client.unfinished) == (0, (mine,))


async def test_a_body_without_an_id_finds_nothing(scene: Scene) -> None:
    """The address alone does not say which task it is, and nothing is sent."""
    await scene.doubt()
    scene.receiver.deliver(scene.token(), b"")
    await settle()
    assert (scene.feeds, scene.client.unfinished) == (0, ())


async def test_two_webhooks_at_once_find_it_once(scene: Scene) -> None:
    """While the feed is polled, a second webhook starts no second search."""
    await scene.doubt()
    scene.gateway.fault("feed", faults.Slow(A_WHILE))
    scene.post(status="1")
    await until(lambda: scene.feeds)
    scene.post(status="1")
    await until(lambda: scene.client.unfinished)
    await settle()
    assert len(scene.client.unfinished) == 1
    assert len(scene.recorder.all(SubmissionFound)) == 1


async def test_with_one_request_in_flight_it_is_found(gateway: Simulator) -> None:
    """The poll that confirms it does not wait for the slot of the lost submit."""
    async with scene_of(gateway, limits=Limits(requests_in_flight=1, tasks_in_flight=1)) as scene:
        gateway.fault("submit", faults.Hang(accepted=True))
        submitting = asyncio.create_task(scene.client.generate(PROMPT))
        await until(lambda: gateway.submitted)
        scene.post(status="1")
        assert (await submitting).id == gateway.tasks[0].task_id


async def test_a_caller_cancelled_during_the_search_loses_nothing(scene: Scene) -> None:
    """Cancelled between the lost answer and its confirmation, the task is unclaimed."""
    scene.gateway.fault("submit", faults.Hang(accepted=True))
    scene.gateway.fault("feed", faults.Slow(A_WHILE))
    submitting = asyncio.create_task(scene.client.generate(PROMPT))
    await until(lambda: scene.gateway.submitted)
    scene.post(status="1")
    await until(lambda: scene.feeds)
    submitting.cancel()
    await asyncio.wait([submitting])
    assert submitting.cancelled()
    await until(lambda: scene.client.unfinished)
    assert [task.id for task in scene.client.unfinished] == [scene.gateway.tasks[0].task_id]


@pytest.mark.usefixtures("virtual")
async def test_a_retried_submit_keeps_its_address(scene: Scene) -> None:
    """A request that was turned away and sent again keeps its address, which is its task's."""
    scene.gateway.fault("submit", faults.TooManyRequests(), times=1)
    retried = await scene.client.generate(PROMPT)
    assert scene.gateway.submitted == 1
    waiting = asyncio.create_task(retried.wait())
    await scene.ended()
    scene.post()
    assert (await waiting).id == retried.id


async def test_one_task_is_taken_once(scene: Scene) -> None:
    """Two submissions in doubt whose webhooks name the same task do not both get it."""
    await scene.doubt()
    await scene.doubt()
    named = scene.gateway.tasks[0].task_id
    for place in range(2):
        scene.post(place, status="1", task_id=named)
    await until(lambda: scene.client.unfinished and not _actions_of(scene.client))
    assert [task.id for task in scene.client.unfinished] == [named]
    assert len(scene.recorder.all(SubmissionFound)) == 1


async def test_a_loop_that_does_not_run_does_not_poll(scene: Scene) -> None:
    """Of several loops, a running one handles a webhook."""
    resting = asyncio.new_event_loop()
    sessions = scene.client._sessions.by_loop
    await scene.doubt()
    mine = sessions.pop(asyncio.get_running_loop())
    sessions.update({resting: mine, asyncio.get_running_loop(): mine})
    scene.post(status="1")
    await until(lambda: scene.client.unfinished)
    del sessions[resting]
    resting.close()


# With a journal


async def only_job(journal: Journal | None) -> Job:
    """Return the one job of a journal."""
    assert journal is not None
    (job,) = await journal.jobs()
    return job


async def test_a_webhook_confirms_the_id_of_a_damaged_response(
    gateway: Simulator, tmp_path: Path
) -> None:
    """A row in doubt that has the id is the submission's own, and becomes accepted."""
    async with scene_of(gateway, journal=tmp_path / "run.db") as scene:
        await scene.doubt()
        named, journal = gateway.tasks[0].task_id, scene.client.journal
        assert journal is not None
        before = await only_job(journal)
        await journal.step(before.key, JobState.PLANNED, 1.0)
        await journal.step(before.key, JobState.SUBMITTING, 2.0)
        await journal.step(before.key, JobState.IN_DOUBT, 3.0, task_id=named)
        await scene.ended()
        scene.post()
        await until(lambda: scene.recorder.all(TaskSettled))
        job = await only_job(journal)
        assert (job.state, job.task_id) == (JobState.FINISHED, named)


async def test_what_is_found_is_written_down(gateway: Simulator, tmp_path: Path) -> None:
    """The row that was in doubt is accepted, from when it was sent, and later finished."""
    async with scene_of(gateway, journal=tmp_path / "run.db") as scene:
        await scene.doubt()
        assert (await only_job(scene.client.journal)).state is JobState.IN_DOUBT
        await scene.ended()
        scene.post()
        await until(lambda: scene.recorder.all(TaskSettled))
        job = await only_job(scene.client.journal)
    assert (job.state, job.task_id) == (JobState.FINISHED, gateway.tasks[0].task_id)
    assert job.accepted_at is not None
    assert job.submitted_at is not None
    assert job.accepted_at <= job.submitted_at
    assert job.submissions == 1


async def test_a_job_that_a_batch_reported_is_found(gateway: Simulator, tmp_path: Path) -> None:
    """An outcome in doubt is accepted in the journal later, and the next run goes on with it."""
    async with scene_of(gateway, journal=tmp_path / "run.db") as scene:
        gateway.fault("submit", faults.drop_after_accepting())
        outcomes = [one async for one in scene.client.generate_many([PROMPT])]
        assert [one.is_in_doubt for one in outcomes] == [True]
        await scene.ended()
        scene.post()
        await until(lambda: scene.client.unfinished)
        again = [one async for one in scene.client.generate_many([PROMPT])]
    assert [one.task_id for one in again] == [gateway.tasks[0].task_id]
    assert (again[0].resumed, again[0].error, gateway.submitted) == (True, None, 1)


async def test_a_task_that_the_journal_has_is_not_taken(gateway: Simulator, tmp_path: Path) -> None:
    """An id in another row belongs to another submission, also after a restart."""
    async with scene_of(gateway, journal=tmp_path / "run.db") as scene:
        mine = await scene.client.generate(PROMPT)
    async with scene_of(gateway, journal=tmp_path / "run.db") as scene:
        await scene.doubt()
        scene.post(task_id=mine.id)
        await until(lambda: scene.recorder.all(CallbackRefused))
        assert [task.id for task in scene.client.unfinished] == [mine.id]


# After a restart


async def test_a_re_attached_task_is_woken(gateway: Simulator) -> None:
    """With a secret, the address of the process before wakes the wait of this one."""
    async with scene_of(gateway, secret=SECRET) as scene:
        task_id = (await scene.client.generate(PROMPT)).id
    gateway.fault("feed", faults.EmptyFields(), times=1)
    async with scene_of(gateway, secret=SECRET) as scene:
        waiting = asyncio.create_task(scene.client.task(task_id).wait())
        await until(lambda: scene.feeds)
        await scene.ended()
        await settle()
        assert scene.post() == 204
        assert (await waiting).id == task_id
        scene.post(task_id="another")
        await settle()
        assert scene.recorder.all(CallbackRefused) == [
            CallbackRefused(task_id, "it names another task")
        ]


async def test_without_a_secret_it_is_polled(gateway: Simulator) -> None:
    """Then the old address is unknown, and the wait of a re-attached task goes on as usual."""
    async with scene_of(gateway) as scene:
        task_id = (await scene.client.generate(PROMPT)).id
    async with scene_of(gateway, polling=PollPolicy(first=0.01, max_interval=0.02)) as scene:
        assert scene.post() == 404
        assert (await scene.client.task(task_id).wait()).id == task_id


async def lost_in_a_crash(gateway: Simulator, path: Path) -> None:
    """Leave a journal with a job in doubt, as a process does that ended before its response."""
    async with scene_of(gateway, secret=SECRET, journal=path) as scene:
        await scene.doubt()


async def test_what_a_crash_lost_is_found(gateway: Simulator, tmp_path: Path) -> None:
    """A webhook names the task of a row in the next process, which returns its clip."""
    path = tmp_path / "run.db"
    await lost_in_a_crash(gateway, path)
    async with scene_of(gateway, secret=SECRET, journal=path) as scene:
        await scene.client.balance()
        scene.post(status="1")
        await until(lambda: scene.client.unfinished)
        [task] = scene.client.unfinished
        job = await only_job(scene.client.journal)
        assert job.state in {JobState.ACCEPTED, JobState.FINISHED}
        assert job.task_id == task.id
        assert job.accepted_at == job.submitted_at
        assert scene.recorder.all(SubmissionFound) == [SubmissionFound("text_to_video", task.id)]
        waiting = asyncio.create_task(task.wait())
        await scene.ended()
        scene.post()
        assert (await waiting).id == task.id


async def test_an_early_webhook_is_handled_with_the_first_call(
    gateway: Simulator, tmp_path: Path
) -> None:
    """A webhook to a process that has just started waits until its client runs."""
    path = tmp_path / "run.db"
    await lost_in_a_crash(gateway, path)
    async with scene_of(gateway, secret=SECRET, journal=path) as scene:
        assert scene.post() == 204
        await scene.client.balance()
        await until(lambda: scene.client.unfinished)
        assert scene.client.unfinished[0].id == gateway.tasks[0].task_id


async def test_an_address_is_looked_up_again_after_an_error_of_the_journal(
    gateway: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal that could not be read for a moment does not hide the task until a restart."""
    path, jobs, faulty = tmp_path / "run.db", Journal.jobs, [True]
    await lost_in_a_crash(gateway, path)

    async def sometimes(journal: Journal, *states: JobState) -> list[Job]:
        if states == (JobState.IN_DOUBT,) and faulty:
            faulty.pop()
            raise JournalError("It is locked.", "Nothing was charged.", "Try again.")
        return await jobs(journal, *states)

    monkeypatch.setattr(Journal, "jobs", sometimes)
    async with scene_of(gateway, secret=SECRET, journal=path) as scene:
        await scene.client.balance()
        scene.post()
        await until(lambda: not faulty and not _actions_of(scene.client))
        assert scene.client.unfinished == ()
        scene.post()
        await until(lambda: scene.client.unfinished)


async def test_a_feed_that_does_not_know_it_yet_is_polled_again(
    gateway: Simulator, tmp_path: Path
) -> None:
    """The next webhook says so again, and then it is found."""
    path = tmp_path / "run.db"
    await lost_in_a_crash(gateway, path)
    gateway.fault("feed", faults.task_not_exist())
    async with scene_of(gateway, secret=SECRET, journal=path) as scene:
        await scene.client.balance()
        scene.post()
        await until(lambda: scene.recorder.all(CallbackRefused))
        await settle()
        assert scene.client.unfinished == ()
        scene.post()
        await until(lambda: scene.client.unfinished)


async def test_an_address_that_is_no_job_is_looked_up_once(
    gateway: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known address of a task without a wait is looked up in the journal once."""
    path = tmp_path / "run.db"
    async with scene_of(gateway, secret=SECRET) as scene:
        await scene.client.generate(PROMPT)
    queries: list[tuple[JobState, ...]] = []
    jobs = Journal.jobs

    async def counted(journal: Journal, *states: JobState) -> list[Job]:
        queries.append(states)
        return await jobs(journal, *states)

    monkeypatch.setattr(Journal, "jobs", counted)
    async with scene_of(gateway, secret=SECRET, journal=path) as scene:
        await scene.doubt()
        await scene.client.balance()
        for _ in range(5):
            scene.post(0)
            await settle()
        await until(lambda: queries and not _actions_of(scene.client))
    at_the_start = (JobState.ACCEPTED, JobState.FINISHED)
    assert queries == [at_the_start, (JobState.IN_DOUBT,)]
    assert scene.client.unfinished == ()


async def test_a_journal_that_cannot_be_read_is_no_error_for_the_sender(
    gateway: Simulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The sender is answered as always, and no traceback is in the log."""
    async with scene_of(gateway, secret=SECRET) as scene:
        await scene.client.generate(PROMPT)
    missing, receiver = tmp_path / "missing" / "run.db", CallbackReceiver(URL, secret=SECRET)
    with caplog.at_level(logging.WARNING):
        client = quick_client(gateway, callbacks=receiver, journal=missing)
        await client.balance()
        assert receiver.deliver(scene.token(), b"{}") == 204
        await until(lambda: not _actions_of(client))
        await client.aclose()
    assert caplog.records == []


def _actions_of(client: Client) -> set[Any]:
    return next(iter(client._sessions.by_loop.values()))._actions


async def test_without_a_journal_there_is_nothing_to_look_up(gateway: Simulator) -> None:
    """A webhook for a task without a wait gets a response, and nothing else happens."""
    async with scene_of(gateway, secret=SECRET) as scene:
        await scene.client.generate(PROMPT)
    async with scene_of(gateway, secret=SECRET, retry=QUICK_RETRY) as scene:
        await scene.client.balance()
        assert scene.post() == 204
        await settle()
        assert scene.feeds == 0
        assert isinstance(scene.client.task("t-1"), Task)


# What webhooks are to a client

# Made well


@pytest.mark.parametrize("url", ["https://app.example/mine", None])
def test_there_is_room_for_one_address(url: str | None) -> None:
    """A receiver and a callback_url contradict each other, which raises before anything is sent."""
    with pytest.raises(UsageError, match="callback_url and callbacks cannot") as caught:
        Client("sk-1", callback_url=url, callbacks=CallbackReceiver(URL))
    assert caught.value.field == "callback_url"


def test_a_receiver_is_one() -> None:
    """An address in place of a receiver raises an error that names it."""
    with pytest.raises(UsageError, match="callbacks is of type str") as caught:
        Client("sk-1", callbacks=URL)  # type: ignore[arg-type]
    assert caught.value.field == "callbacks"


async def test_each_submit_carries_an_address_of_its_own(scene: Scene) -> None:
    """Every request that can carry an address does; the official format has no place for it."""
    client = scene.client
    await client.generate(PROMPT)
    await client.generate(PROMPT, image=IMAGE)
    await client.video_to_video("https://clips.example/1.mp4", PROMPT)
    await client.act_one("https://clips.example/1.mp4", IMAGE)
    assert len({scene.token(place) for place in range(4)}) == 4
    task = await client.official.image_to_video(IMAGE, PROMPT)
    assert "callback_url" not in scene.gateway.tasks[-1].request
    assert task.id == scene.gateway.tasks[-1].task_id


async def test_an_address_is_a_secret_of_its_request() -> None:
    """What the gateway says about a request is shown without the address, should it quote it."""
    async with (
        raw_server(reply()) as server,
        Client("sk-1", base_url=server.url, callbacks=CallbackReceiver(URL)) as client,
    ):
        server.may_answer.clear()
        submitting = asyncio.create_task(client.generate(PROMPT))
        await server.got_request.wait()
        body = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])
        token = body["callback_url"].removeprefix(f"{URL}/")
        refusal = {"code": "invalid_request", "message": f"The address {token} is bad."}
        server.answers = [reply(json.dumps(refusal).encode(), "400 Bad Request")]
        server.may_answer.set()
        with pytest.raises(InvalidRequest, match="The address <hidden> is bad") as caught:
            await submitting
    assert token not in str(caught.value)


async def test_a_webhook_ends_the_wait(scene: Scene) -> None:
    """The wait polls at once, and that only poll ends it."""
    task = await scene.client.generate(PROMPT)
    waiting = asyncio.create_task(task.wait())
    await scene.ended()
    await settle()
    assert not waiting.done()
    assert scene.post() == 204
    assert (await waiting).id == task.id
    assert scene.feeds == 1
    assert scene.recorder.all(CallbackReceived) == [CallbackReceived(task.id, TaskState.SUCCEEDED)]


async def test_a_webhook_before_the_response_counts_after_it(scene: Scene) -> None:
    """A webhook that comes before the response to the submit is handled once the task is known."""
    scene.gateway.fault("submit", faults.Slow(A_WHILE))
    submitting = asyncio.create_task(scene.client.generate(PROMPT))
    await until(lambda: scene.gateway.submitted)
    await scene.ended()
    scene.post()
    task = await submitting
    assert (await task.wait()).id == task.id
    assert scene.feeds == 1


async def test_a_webhook_finds_the_task_of_a_doubt(scene: Scene) -> None:
    """The task of a paid request whose response was lost is found, and its clip can be fetched."""
    await scene.doubt()
    assert scene.client.unfinished == ()
    scene.post(status="1")
    await until(lambda: scene.client.unfinished)
    [task] = scene.client.unfinished
    assert task.id == scene.gateway.tasks[0].task_id
    assert task.request is not None
    assert scene.recorder.all(SubmissionFound) == [SubmissionFound("text_to_video", task.id)]
    assert scene.feeds == 1
    waiting = asyncio.create_task(task.wait())
    await scene.ended()
    scene.post()
    assert (await waiting).id == task.id
    assert scene.gateway.submitted == 1


async def test_a_webhook_in_time_replaces_the_response(scene: Scene) -> None:
    """A webhook that came before the response was lost makes the submit succeed, paid once."""
    scene.gateway.fault("submit", faults.Hang(accepted=True))
    submitting = asyncio.create_task(scene.client.generate(PROMPT))
    await until(lambda: scene.gateway.submitted)
    scene.post(status="1")
    task = await submitting
    assert task.id == scene.gateway.tasks[0].task_id
    assert scene.client.unfinished == (task,)
    assert scene.recorder.all(SubmissionFound) == [SubmissionFound("text_to_video", task.id)]
    waiting = asyncio.create_task(task.wait())
    await scene.ended()
    scene.post()
    assert (await waiting).id == task.id


async def test_a_cancelled_caller_loses_nothing(scene: Scene) -> None:
    """Its request goes on, the response is lost, and an early webhook names the task."""
    scene.gateway.fault("submit", faults.Hang(accepted=True))
    submitting = asyncio.create_task(scene.client.generate(PROMPT))
    await until(lambda: scene.gateway.submitted)
    submitting.cancel()
    await asyncio.wait([submitting])
    scene.post(status="1")
    await until(lambda: scene.client.unfinished)
    [task] = scene.client.unfinished
    assert task.id == scene.gateway.tasks[0].task_id
    [event] = scene.recorder.all(SubmissionUnclaimed)
    assert (event.task_id, event.error) == (task.id, None)


async def test_an_unclaimed_task_is_woken_by_its_webhook(scene: Scene) -> None:
    """A task that is unclaimed has its address like any other."""
    scene.gateway.fault("submit", faults.Slow(A_WHILE))
    submitting = asyncio.create_task(scene.client.generate(PROMPT))
    await until(lambda: scene.gateway.submitted)
    submitting.cancel()
    await until(lambda: scene.client.unfinished)
    [task] = scene.client.unfinished
    waiting = asyncio.create_task(task.wait())
    await scene.ended()
    scene.post()
    assert (await waiting).id == task.id
