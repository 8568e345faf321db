"""Webhooks from end to end: a gateway that posts, an app that receives, and clips."""

import asyncio
from statistics import mean
from typing import Final

import pytest
from support.clients import EventRecorder
from support.clock import until
from support.receivers import WebhookApp, behind_a_proxy, receiving

from fuhu_runway import Client
from fuhu_runway.errors import SubmissionInDoubt, TaskFailed
from fuhu_runway.hooks import CallbackReceived, CallbacksMissing, SubmissionFound
from fuhu_runway.models import PollPolicy
from fuhu_runway.testing import Callbacks, Simulator, faults

PROMPT: Final = "a marked kitten"
KEY: Final = "sk-marked-7f3a"
#: No URL may be in the log: the fixture of this folder searches for its first part.
PATH: Final = "/marked-hooks"
TAKES: Final = 100.0
SOON: Final = 0.5
#: The longest pause of the ordinary schedule, with its jitter.
ORDINARY: Final = 16.6


def simulator(callbacks: Callbacks | None = None, **options: object) -> Simulator:
    """Return a gateway in the loop's own time."""
    return Simulator(takes=TAKES, api_key=KEY, callbacks=callbacks, **options)


def client_of(gateway: Simulator, webhook_app: WebhookApp, **options: object) -> Client:
    """Return a client with everything at its defaults, and the receiver of an app."""
    return Client(
        gateway.api_key, base_url=gateway.base_url, callbacks=webhook_app.receiver, **options
    )


#: A poll between an end and its webhook proves that webhooks are slow.
STEADY: Final = PollPolicy(jitter=0)


async def delay_of(client: Client, gateway: Simulator) -> float:
    """Make one clip, and return how long after its end it was returned, in seconds."""
    task = await client.generate(PROMPT)
    await task.wait()
    finished = next(one for one in gateway.tasks if one.task_id == task.id).finishes_at
    assert finished is not None
    return asyncio.get_running_loop().time() - finished


@pytest.mark.usefixtures("virtual")
async def test_a_webhook_ends_the_wait_and_saves_polls() -> None:
    """The first task is polled at the normal pace; from the second on one poll is enough."""
    async with (
        receiving(PATH) as webhook_app,
        simulator(Callbacks()) as gateway,
        client_of(gateway, webhook_app) as client,
    ):
        lags = [await delay_of(client, gateway) for _ in range(4)]
        polls = [gateway.polls(task.task_id) for task in gateway.tasks]
    assert max(lags) < SOON
    assert polls[1:] == [2, 2, 2]  # the net at 60 s, and the webhook at 100 s
    assert webhook_app.receiver.responses == {204: gateway.callbacks_delivered}


UNRULY: Final = {
    "repeated": Callbacks(times=3),
    "the end alone": Callbacks(progress=False),
    "out of order": Callbacks(disorder=True),
    "sent again": Callbacks(again_after=5.0),
    "after garbage": Callbacks(garbage=True),
    "in two halves": Callbacks(stutter=1.0),
    "all of it": Callbacks(times=3, disorder=True, garbage=True, again_after=5.0),
}


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize("callbacks", UNRULY.values(), ids=UNRULY)
async def test_unruly_webhooks_do_no_harm(callbacks: Callbacks) -> None:
    """Each wait returns its clip within moments, with fewer polls than without webhooks."""
    async with (
        receiving(PATH) as webhook_app,
        simulator(callbacks) as gateway,
        client_of(gateway, webhook_app, polling=STEADY) as client,
    ):
        lags = [await delay_of(client, gateway) for _ in range(3)]
        await asyncio.sleep(30)
        polls = [gateway.polls(task.task_id) for task in gateway.tasks]
    assert max(lags) < SOON + callbacks.stutter
    # Garbage cannot be read, so each piece may be the end, and the limit of hints is what it costs.
    assert max(polls[1:]) <= (14 if callbacks.garbage else 4)
    assert gateway.submitted == 3


@pytest.mark.usefixtures("virtual")
async def test_late_webhooks_cost_no_time() -> None:
    """Webhooks that come half a minute after the end are useless, and nothing depends on them."""
    callbacks = Callbacks(delay=30.0)
    async with (
        receiving(PATH) as webhook_app,
        simulator(callbacks) as gateway,
        client_of(gateway, webhook_app) as client,
    ):
        lags = [await delay_of(client, gateway) for _ in range(5)]
        await asyncio.sleep(60)
    assert max(lags) < ORDINARY
    assert webhook_app.receiver.responses[204] == gateway.callbacks_delivered > 0


@pytest.mark.usefixtures("virtual")
async def test_webhooks_that_never_come_cost_no_time() -> None:
    """A gateway that posts nothing is polled as usual, and after five ends there is a warning."""
    recorder = EventRecorder()
    async with (
        receiving(PATH) as webhook_app,
        simulator() as gateway,
        client_of(gateway, webhook_app, hooks=[recorder]) as client,
    ):
        lags = [await delay_of(client, gateway) for _ in range(7)]
    assert max(lags) < ORDINARY
    assert recorder.all(CallbacksMissing) == [CallbacksMissing(5)]


@pytest.mark.usefixtures("virtual")
async def test_webhooks_that_stop_cost_one_interval_of_the_safety_net() -> None:
    """The safety net finds the first missed end; after it, tasks are polled at the normal pace."""
    async with (
        receiving(PATH, safety_net=45.0) as webhook_app,
        simulator(Callbacks()) as gateway,
        client_of(gateway, webhook_app) as client,
    ):
        assert await delay_of(client, gateway) < SOON
        webhook_app.drops_webhooks = True
        first = await delay_of(client, gateway)
        later = [await delay_of(client, gateway) for _ in range(3)]
        webhook_app.drops_webhooks = False
        again = [await delay_of(client, gateway) for _ in range(3)]
    assert first < 50
    assert max(later) < ORDINARY
    assert max(again) < SOON


@pytest.mark.usefixtures("virtual")
async def test_a_failure_ends_the_wait_as_well() -> None:
    """A webhook of a failure ends the wait with the feed's own words."""
    async with receiving(PATH) as webhook_app, simulator(Callbacks(progress=False)) as gateway:
        gateway.script(then="fail")
        async with client_of(gateway, webhook_app) as client:
            task = await client.generate(PROMPT)
            with pytest.raises(TaskFailed) as caught:
                await task.wait()
        finished = gateway.tasks[0].finishes_at
        assert finished is not None
        assert asyncio.get_running_loop().time() - finished < SOON
        assert caught.value.refunded


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize(
    ("outside", "inside"),
    [("/app/marked-hooks", "/marked-hooks"), ("/marked", ""), ("", "/deep/marked-hooks")],
)
async def test_a_proxy_may_change_the_path(outside: str, inside: str) -> None:
    """Whether a proxy strips or adds a prefix, the webhooks wake their waits."""
    async with (
        behind_a_proxy(outside, inside) as webhook_app,
        simulator(Callbacks()) as gateway,
        client_of(gateway, webhook_app) as client,
    ):
        assert await delay_of(client, gateway) < SOON
    assert len(webhook_app.posted) == gateway.callbacks_delivered > 0
    assert all(path.startswith(f"{outside}/") for path, _ in webhook_app.posted)


@pytest.mark.usefixtures("virtual")
async def test_a_batch_polls_little_more_than_once_per_job() -> None:
    """Each of a hundred jobs ends within moments, and most are polled twice."""
    recorder = EventRecorder()
    async with receiving(PATH) as webhook_app, simulator(Callbacks()) as gateway:
        gateway.script(lambda _body: True, takes=70)
        async with client_of(gateway, webhook_app, hooks=[recorder]) as client:
            prompts = [f"{PROMPT} {number}" for number in range(100)]
            outcomes = [one async for one in client.generate_many(prompts, in_flight=10)]
        polls = [gateway.polls(task.task_id) for task in gateway.tasks]
    assert all(outcome.clip for outcome in outcomes)
    assert mean(polls[10:]) <= 2.2
    assert gateway.submitted == 100
    assert len({event.task_id for event in recorder.all(CallbackReceived)}) == 100


@pytest.mark.usefixtures("virtual")
async def test_updates_yield_each_change() -> None:
    """A reader of updates gets every change when its webhook comes."""
    async with receiving(PATH) as webhook_app, simulator(Callbacks(), dialect="new_api") as gateway:
        gateway.script(progress=(0, 50))
        async with client_of(gateway, webhook_app) as client:
            task = await client.generate(PROMPT)
            began = asyncio.get_running_loop().time()
            seen = [
                (record.progress, asyncio.get_running_loop().time() - began)
                async for record in task.updates()
            ]
    changes = dict(reversed(seen))
    assert changes[0.5] == pytest.approx(55, abs=1)
    assert changes[1.0] == pytest.approx(100, abs=1)


@pytest.mark.usefixtures("virtual")
async def test_a_lost_response_is_found_by_the_first_webhook() -> None:
    """A submit in doubt raises at once, and its task is known as soon as the gateway posts."""
    recorder = EventRecorder()
    async with receiving(PATH) as webhook_app, simulator(Callbacks()) as gateway:
        gateway.fault("submit", faults.drop_after_accepting())
        async with client_of(gateway, webhook_app, hooks=[recorder]) as client:
            with pytest.raises(SubmissionInDoubt):
                await client.generate(PROMPT)
            await until(lambda: client.unfinished)
            [task] = client.unfinished
            clip = await task.wait()
        assert clip.id == gateway.tasks[0].task_id
        assert gateway.submitted == 1
        assert recorder.all(SubmissionFound) == [SubmissionFound("text_to_video", clip.id)]


@pytest.mark.usefixtures("virtual")
async def test_a_webhook_replaces_a_response_that_hangs() -> None:
    """A submit whose response never comes returns the task that a webhook named."""
    async with receiving(PATH) as webhook_app, simulator(Callbacks()) as gateway:
        gateway.fault("submit", faults.Hang(accepted=True))
        async with client_of(gateway, webhook_app) as client:
            task = await client.generate(PROMPT)
            clip = await task.wait()
        assert clip.id == gateway.tasks[0].task_id
        assert client.unfinished == ()
        assert gateway.submitted == 1
