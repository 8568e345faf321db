"""What webhooks are to a client: addresses to give, waits to end, tasks to keep."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.clock import settle, until
from support.scene import A_WHILE, IMAGE, PROMPT, URL, Scene, scene_of

from fuhu_runway import CallbackReceiver, Client
from fuhu_runway._session.webhooks import new_address
from fuhu_runway.errors import UsageError
from fuhu_runway.hooks import CallbackReceived, SubmissionFound, SubmissionUnclaimed
from fuhu_runway.journal import plan_of
from fuhu_runway.models import TaskState, TextToVideo
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


async def test_an_address_is_a_secret_of_its_request(scene: Scene) -> None:
    """What the gateway says about a request is shown without the address, should it quote it."""
    request = TextToVideo(PROMPT)
    address = new_address(scene.client._sessions, plan_of(request), request, None, None)
    wire = scene.client._sessions.generation(request, address)
    assert address is not None
    token = scene.receiver.token(address)
    assert token in wire.secrets
    assert wire.body is not None
    assert token.encode() in wire.body
    assert token not in repr(wire)


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
    assert scene.ear.all(CallbackReceived) == [CallbackReceived(task.id, TaskState.SUCCEEDED)]


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
    """The task of a paid request whose answer was lost is handed over, and its clip can be had."""
    await scene.doubt()
    assert scene.client.unfinished == ()
    scene.post(status="1")
    await until(lambda: scene.client.unfinished)
    [task] = scene.client.unfinished
    assert task.id == scene.gateway.tasks[0].task_id
    assert task.request is not None
    assert scene.ear.all(SubmissionFound) == [SubmissionFound("text_to_video", task.id)]
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
    assert scene.ear.all(SubmissionFound) == [SubmissionFound("text_to_video", task.id)]
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
    [event] = scene.ear.all(SubmissionUnclaimed)
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
