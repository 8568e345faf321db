import asyncio
import gc
import logging
import re
import time
import warnings
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
from support.clients import EventRecorder, others, quick_client
from support.clock import until
from support.secrets import secrets_in
from support.servers import raw_server, reply

from fuhu_runway import Client, Task
from fuhu_runway._wire.tables import GATEWAYS, NOWHERE
from fuhu_runway.errors import (
    InvalidRequest,
    NotFound,
    OutOfCredits,
    RunwayError,
    SubmissionInDoubt,
    TaskFailed,
    Unauthorized,
    UnreadableReply,
    UsageError,
    WaitAbandoned,
)
from fuhu_runway.hooks import (
    DownloadFinished,
    SubmissionDoubted,
    SubmissionFailed,
    SubmissionStarted,
    SubmissionUnclaimed,
    TaskAttached,
    TaskSettled,
    TaskSubmitted,
)
from fuhu_runway.journal import JobState
from fuhu_runway.models import (
    ActOne,
    Aleph,
    Balance,
    BalanceRoute,
    Gateway,
    Generation,
    ImageToVideo,
    KeyStyle,
    MotionVector,
    OfficialImageToVideo,
    OfficialRequest,
    OfficialVideoUpscale,
    RetryPolicy,
    TaskRecord,
    TaskState,
    TextToVideo,
    VideoToVideo,
)
from fuhu_runway.testing import Simulator, faults

IMAGE = "https://pictures.example/1.png"
VIDEO = "https://clips.example/1.mp4"
HERE = "http://127.0.0.1:1"

# Made well


def test_a_client_may_be_made_anywhere() -> None:
    """Also where no loop runs; by default it speaks to FuhuAPI."""
    client = Client("sk-1")
    assert client.gateway is not None
    assert client.gateway == GATEWAYS["fuhuapi"]
    assert repr(client) == "<Client https://api.fuhuapi.com>"


def test_the_environment_names_key_and_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments come before the environment, and that before the gateway's own address."""
    monkeypatch.setenv("FUHU_API_KEY", "sk-from-the-environment")
    monkeypatch.setenv("FUHU_BASE_URL", "https://environment.example/base")
    assert Client()._sessions.key == "sk-from-the-environment"
    assert Client("sk-1")._sessions.key == "sk-1"
    assert Client().gateway.base_url == "https://environment.example/base"
    assert Client(base_url=HERE).gateway.base_url == HERE
    assert Client(gateway="ecovai").gateway.base_url == "https://api.ecovai.cn"
    assert Client(gateway="gptproto").gateway.base_url == "https://environment.example/base"
    monkeypatch.setenv("FUHU_BASE_URL", "")
    assert Client().gateway.base_url == "https://api.fuhuapi.com"


def test_an_empty_key_is_not_replaced_by_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes from a setting that is not set, and another account would pay."""
    monkeypatch.setenv("FUHU_API_KEY", "sk-of-another-account")
    with pytest.raises(UsageError, match="There is no key"):
        Client("")


def test_a_gateway_has_a_name_or_is_given() -> None:
    """A known name means its row; a custom `Gateway` is used as it is."""
    assert Client("sk-1", gateway="duomi").gateway == GATEWAYS["duomi"]
    own = Gateway("mine", HERE, prefix="/r", key_style=KeyStyle.RAW)
    assert Client("sk-1", gateway=own).gateway == own
    assert Client("sk-1", gateway=own, base_url="http://127.0.0.1:2").gateway.prefix == "/r"


def test_the_key_does_not_stay_behind() -> None:
    """A client with another base_url does not send the key to the gateway's old balance host."""
    assert Client("sk-1", gateway="deerapi").gateway.quota_url == "https://query.deerapi.com"
    moved = Client("sk-1", gateway="deerapi", base_url=HERE).gateway
    assert (moved.base_url, moved.quota_url) == (HERE, HERE)


@pytest.mark.parametrize(
    "key",
    [None, "", " ", "sk-1\n", "sk-1\r\nX: y", "sk 1", "sk-ключ", "sk-\0", 7, b"sk-1"],
    ids=repr,
)
def test_a_bad_key_raises_at_once(key: Any) -> None:
    """A missing one, and one that no header can carry; the text does not quote it."""
    with pytest.raises(UsageError) as caught:
        Client(key)
    assert caught.value.field == "api_key"
    assert "sk-1" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.fuhuapi.com",
        "ftp://api.fuhuapi.com",
        "https://",
        "https:// api.fuhuapi.com",
        "https://api.fuhuapi.com?x=1",
        "https://api.fuhuapi.com#x",
        "https://user:word@api.fuhuapi.com",
        "https://[::1",
        "file:///etc/passwd",
        "https://api..fuhuapi.com",
        "https://" + "a" * 70 + ".example",
        "https://\u00ad.example",
        "https://api.fuhuapi.com:99999",
        "https://api.fuhuapi.com/\x00",
        "https://user@api.fuhuapi.com",
    ],
)
def test_an_odd_base_url_raises_at_once(url: str) -> None:
    """Whatever is no http(s) address of a host, or would carry more than that."""
    with pytest.raises(UsageError) as caught:
        Client("sk-1", base_url=url)
    assert caught.value.field == "base_url"


@pytest.mark.parametrize("url", ["https://query..example", "https://u@query.example", "query"])
def test_an_odd_quota_url_raises_at_once(url: str) -> None:
    """The key stands in that address, so that it has to be a host's as well."""
    with pytest.raises(UsageError) as caught:
        Client("sk-1", gateway=Gateway("own", HERE, quota_url=url))
    assert caught.value.field == "quota_url"


def test_a_gateway_without_an_address_needs_one() -> None:
    """Where no source names a gateway's host, the caller has to."""
    with pytest.raises(UsageError, match="gpt-best") as caught:
        Client("sk-1", gateway="gpt-best")
    assert caught.value.field == "base_url"
    assert Client("sk-1", gateway="gpt-best", base_url=HERE).gateway.base_url == HERE


def test_an_unknown_gateway_raises_with_the_known_ones() -> None:
    """The error lists what may be used."""
    with pytest.raises(UsageError, match="fuhuapi, cometapi") as caught:
        Client("sk-1", gateway="sk-not-a-gateway")
    assert caught.value.field == "gateway"
    assert "sk-not-a-gateway" not in str(caught.value)


def test_a_callback_has_an_address() -> None:
    """None leaves it out, the default leads nowhere, and anything else has to be an address."""
    assert Client("sk-1")._sessions.callback_url == NOWHERE
    assert Client("sk-1", callback_url=None)._sessions.callback_url is None
    with pytest.raises(UsageError) as caught:
        Client("sk-1", callback_url="baidu.com")
    assert caught.value.field == "callback_url"
    with pytest.raises(UsageError, match="callback_url must be an http"):
        Client("sk-1", callback_url="https://app..example/hooks")


def with_header() -> aiohttp.ClientSession:
    """Return a session that has its own key."""
    return aiohttp.ClientSession(headers={"authorization": "Bearer sk-2"})


def with_auth() -> aiohttp.ClientSession:
    """Return a session that carries a password, in the way that newer libraries deprecate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return aiohttp.ClientSession(auth=aiohttp.BasicAuth("a", "b"))


@pytest.mark.parametrize("opened", [with_header, with_auth], ids=lambda opened: opened.__name__)
async def test_a_session_that_authorises_itself_is_refused(
    opened: Callable[[], aiohttp.ClientSession],
) -> None:
    """It would show its key to the hosts of the clips."""
    async with opened() as session:
        with pytest.raises(UsageError) as caught:
            Client("sk-1", session=session)
        assert caught.value.field == "session"


def test_a_session_of_another_loop_is_refused() -> None:
    """Before a byte is written, and as a `UsageError` rather than somewhere inside aiohttp."""

    async def opened() -> tuple[aiohttp.ClientSession, Client]:
        session = aiohttp.ClientSession()
        return session, Client("sk-1", base_url=HERE, session=session)

    async def used(client: Client) -> None:
        with pytest.raises(UsageError) as caught:
            await client.generate("a kitten")
        assert caught.value.field == "session"
        with pytest.raises(UsageError):
            await client.task("t-1").wait()

    with asyncio.Runner() as home, asyncio.Runner() as abroad:
        session, client = home.run(opened())
        abroad.run(used(client))
        home.run(session.close())


# Paid calls


async def test_a_submit_gives_a_task(gateway: Simulator) -> None:
    """Its id is the gateway's, the request is kept, and one event reports it."""
    recorder = EventRecorder()
    async with quick_client(gateway, hooks=[recorder]) as client:
        request = TextToVideo("a kitten")
        task = await client.submit(request)
        now = asyncio.get_running_loop().time()
    assert task.id == gateway.tasks[0].task_id
    assert task.request is request
    assert task.submitted_at is not None
    assert task.submitted_at <= now
    [event] = recorder.all(TaskSubmitted)
    assert (event.task_id, event.endpoint) == (task.id, "text_to_video")
    assert 0 <= event.seconds < 10


async def test_every_submission_has_a_number_of_its_own(gateway: Simulator) -> None:
    """Its events hold its number, up to the event that holds the task's id as well."""
    recorders = EventRecorder(), EventRecorder()
    async with (
        quick_client(gateway, hooks=[recorders[0]]) as first,
        quick_client(gateway, hooks=[recorders[1]]) as second,
    ):
        made = [await client.generate("a kitten") for client in (first, second, first)]
    started = [event for recorder in recorders for event in recorder.all(SubmissionStarted)]
    assert len({event.submission for event in started}) == 3
    assert started[0].client == started[1].client != started[2].client
    assert (started[0].endpoint, started[0].model, started[0].clip_seconds) == (
        "text_to_video",
        "gen4",
        10,
    )
    event = {
        event.submission: event.task_id
        for recorder in recorders
        for event in recorder.all(TaskSubmitted)
    }
    assert event == dict(
        zip((event.submission for event in started), (made[n].id for n in (0, 2, 1)), strict=True)
    )


async def test_a_handle_on_a_task_is_an_event(gateway: Simulator) -> None:
    """An event says that an existing task is followed here; nothing is sent."""
    recorder = EventRecorder()
    async with quick_client(gateway, hooks=[recorder]) as client:
        client.task(" t-1 ")
        client.official.task("t-2")
        assert recorder.events == [
            TaskAttached("t-1", client._sessions.settings.client),
            TaskAttached("t-2", client._sessions.settings.client),
        ]
    assert gateway.requests == ()


async def submitted(gateway: Simulator, call: Callable[[Client], Any]) -> tuple[Task, Any]:
    """Return the task that *call* makes, and the body that arrived."""
    async with quick_client(gateway) as client:
        task = await call(client)
    assert [one.task_id for one in gateway.tasks] == [task.id]
    return task, gateway.tasks[0].request


async def test_generate_makes_text_to_video(gateway: Simulator) -> None:
    """Without a picture, and with every field of api-facts 1.2."""
    task, body = await submitted(
        gateway,
        lambda client: client.generate(
            "a kitten", ratio="9:16", seconds=5, motion=MotionVector(y=0.4), extra={"seed": 7}
        ),
    )
    assert isinstance(task.request, TextToVideo)
    assert body == {
        "callback_url": NOWHERE,
        "prompt": "a kitten",
        "ratio": "9:16",
        "style": "cinematic",
        "model": "gen4",
        "seed": 7,
        "options": {
            "seconds": 5,
            "motion_vector": {"x": 0, "y": 0.4, "z": 0, "r": 0, "bg_x_pan": 0, "bg_y_pan": 0},
        },
    }


async def test_generate_makes_image_to_video(gateway: Simulator) -> None:
    """With a picture, which never gets lost on the way (api-facts 1.3)."""
    task, body = await submitted(
        gateway,
        lambda client: client.generate("smile", image=IMAGE, last_image=IMAGE + "?2", flip=True),
    )
    assert isinstance(task.request, ImageToVideo)
    assert (body["image"], body["last_image"]) == (IMAGE, IMAGE + "?2")
    assert (body["options"]["flip"], body["options"]["image_as_end_frame"]) == (True, False)


@pytest.mark.parametrize("option", ["last_image", "image_as_end_frame", "flip"])
async def test_a_picture_that_is_missing_is_missed(gateway: Simulator, option: str) -> None:
    """What needs a picture is not charged as text to video."""
    async with quick_client(gateway) as client:
        with pytest.raises(UsageError) as caught:
            await client.generate("smile", **{option: IMAGE if option == "last_image" else True})  # type: ignore[arg-type]
    assert caught.value.field == "image"
    assert gateway.requests == ()


async def test_video_to_video(gateway: Simulator) -> None:
    """Its body is that of api-facts 1.4."""
    task, body = await submitted(
        gateway,
        lambda client: client.video_to_video(
            VIDEO, "pixelated", structure_transformation=0.3, flip=True, extra={"a": 1}
        ),
    )
    assert isinstance(task.request, VideoToVideo)
    assert body == {
        "callback_url": NOWHERE,
        "video": VIDEO,
        "prompt": "pixelated",
        "model": "gen4",
        "a": 1,
        "options": {"structure_transformation": 0.3, "flip": True, "seconds": 5},
    }


async def test_act_one(gateway: Simulator) -> None:
    """Its body is that of api-facts 1.5."""
    task, body = await submitted(
        gateway, lambda client: client.act_one(VIDEO, IMAGE, motion_multiplier=3)
    )
    assert isinstance(task.request, ActOne)
    assert body == {
        "callback_url": NOWHERE,
        "video": VIDEO,
        "image": IMAGE,
        "options": {"motion_multiplier": 3},
    }


async def test_the_official_format(gateway: Simulator) -> None:
    """Its tasks are submitted, attached to, waited for and polled through its own endpoints."""
    async with quick_client(gateway) as client:
        task = await client.official.image_to_video(IMAGE, "smile", seed=3, watermark=False)
        assert task.official
        assert isinstance(task.request, OfficialImageToVideo)
        clip = await task.wait(timeout=10)
        again = await client.official.task(task.id).wait(timeout=10)
        record = await client.official.feed(task.id)
    assert clip.video_url == again.video_url == record.video_url
    assert gateway.tasks[0].request == {
        "promptImage": IMAGE,
        "promptText": "smile",
        "model": "gen4_turbo",
        "ratio": "1280:720",
        "duration": 10,
        "seed": 3,
        "watermark": False,
    }
    assert {seen.where for seen in gateway.requests} == {"official"}


async def test_aleph(gateway: Simulator) -> None:
    """Its body is that of api-facts 11, row 12."""
    task, body = await submitted(
        gateway, lambda client: client.aleph(VIDEO, "rain", image=IMAGE, extra={"a": 1})
    )
    assert isinstance(task.request, Aleph)
    assert body == {
        "callback_url": NOWHERE,
        "video": VIDEO,
        "prompt": "rain",
        "images": [IMAGE],
        "a": 1,
        "options": {"seconds": 5},
    }


@pytest.mark.parametrize("request_", ["a kitten", None, {"prompt": "a"}, b"a kitten"], ids=repr)
async def test_only_requests_are_submitted(gateway: Simulator, request_: Any) -> None:
    """Anything else is a `UsageError` that names what may be."""
    async with quick_client(gateway) as client:
        with pytest.raises(UsageError, match="TextToVideo") as caught:
            await client.submit(request_)
    assert caught.value.field == "request"
    assert "a kitten" not in str(caught.value)
    assert gateway.requests == ()


async def test_a_refusal_is_raised_and_not_charged(gateway: Simulator) -> None:
    """A refused request makes no task."""
    async with quick_client(gateway, callback_url=None) as client:
        with pytest.raises(InvalidRequest, match="callback_url"):
            await client.generate("a kitten")
    gateway.add_key("sk-poor", points=1.0)
    async with Client("sk-poor", base_url=gateway.base_url) as poor:
        with pytest.raises(OutOfCredits):
            await poor.generate("a kitten")
    assert (gateway.submitted, len(gateway.requests)) == (0, 2)


# Free calls


@pytest.mark.parametrize("task_id", ["", "  ", None, 7])
async def test_an_empty_id_raises_before_anything_is_sent(runway: Client, task_id: Any) -> None:
    """By every method that takes one."""
    for method in (runway.task, runway.official.task):
        with pytest.raises(UsageError) as caught:
            method(task_id)
        assert caught.value.field == "task_id"
    for poll in (runway.feed, runway.official.feed):
        with pytest.raises(UsageError):
            await poll(task_id)


async def test_a_task_is_found_by_its_id(gateway: Simulator, runway: Client) -> None:
    """A handle is made without a request, and white space around the id is forgiven."""
    made = await runway.generate("a kitten")
    before = len(gateway.requests)
    task = runway.task(f" {made.id}\n")
    assert (task.id, task.official, len(gateway.requests)) == (made.id, False, before)
    clip = await task.wait(timeout=10)
    assert clip.record.state is TaskState.SUCCEEDED


async def test_feed_is_one_poll(gateway: Simulator, runway: Client) -> None:
    """It returns the record, and raises `NotFound` for an unknown id."""
    task = await runway.generate("a kitten")
    record = await runway.feed(task.id)
    assert isinstance(record, TaskRecord)
    assert (record.task_id, gateway.polls(task.id)) == (task.id, 1)
    with pytest.raises(NotFound) as caught:
        await runway.feed("9f6243e5-3ab8-49c3-9c3c-6309ef5c96bd")
    assert caught.value.task_id == "9f6243e5-3ab8-49c3-9c3c-6309ef5c96bd"


async def test_a_wrong_key_ends_a_wait(gateway: Simulator) -> None:
    """No later poll would be allowed either."""
    async with quick_client(gateway) as client:
        task = await client.generate("a kitten")
    async with Client("sk-wrong", base_url=gateway.base_url) as stranger:
        with pytest.raises(Unauthorized):
            await stranger.task(task.id).wait(timeout=10)


@pytest.mark.parametrize("route", BalanceRoute, ids=lambda route: route.name)
async def test_the_balance_has_three_routes(route: BalanceRoute) -> None:
    """Each of them returns what is left after one task."""
    async with Simulator(speed=1000, points=1000.0) as simulator:
        url = simulator.base_url
        row = Gateway("here", url, balance=route, quota_url=url)
        async with Client(simulator.api_key, gateway=row) as client:
            await client.generate("a kitten")
            balance = await client.balance()
    assert isinstance(balance, Balance)
    assert balance.remaining is not None
    assert balance.used is not None
    assert balance.used > 0
    assert balance.total == pytest.approx(balance.remaining + balance.used)


async def test_a_page_in_place_of_a_balance_is_an_error(gateway: Simulator, runway: Client) -> None:
    """A page may be a proxy's, so the request is retried; other text is an `UnreadableReply`."""
    gateway.fault("balance", faults.html_page())
    assert (await runway.balance()).remaining is not None
    gateway.fault("balance", faults.not_json(), times=None)
    with pytest.raises(UnreadableReply):
        await runway.balance()


async def test_the_age_of_a_task(gateway: Simulator, runway: Client) -> None:
    """Since it was accepted here, or else since the gateway made it, or else not known."""
    task = await runway.generate("a kitten")
    age = runway._sessions.age(task)
    assert age is not None
    assert 0 <= age < 10
    assert runway._sessions.age(runway.task(task.id)) is None
    an_hour_ago = datetime.fromtimestamp(time.time() - 3600, UTC)
    for made_at, expected in ((an_hour_ago, 3600), (datetime(9999, 1, 1, tzinfo=UTC), 0)):
        record = TaskRecord("t-1", TaskState.RUNNING, created_at=made_at)
        age = runway._sessions.age(Task(runway._sessions, "t-1", record=record))
        assert age == pytest.approx(expected, abs=60)


async def test_a_task_is_shown_outside_of_any_loop(gateway: Simulator, runway: Client) -> None:
    """As a plain Python shell does: what only the loop's clock knows is left out."""
    task = await runway.generate("a kitten")
    html = await asyncio.to_thread(task._repr_html_)
    assert task.id in html


# The whole way


async def test_the_whole_way(gateway: Simulator, tmp_path: Path) -> None:
    """From the prompt to the file, with one task, and one event of its end."""
    recorder = EventRecorder()
    async with quick_client(gateway, hooks=[recorder]) as client:
        clip = await (await client.generate("a kitten"))
        path = await clip.download(tmp_path / "kitten.mp4")
    assert b"simulated task " + clip.id.encode() in path.read_bytes()
    assert (gateway.submitted, gateway.leaked, others()) == (1, (), set())
    assert [len(recorder.all(kind)) for kind in (TaskSettled, DownloadFinished)] == [1, 1]


async def test_the_api_itself_is_shown_the_key(tmp_path: Path) -> None:
    """A clip that lies at the API's own origin may need it."""
    simulator = Simulator(speed=1000, takes=20, media="api")
    async with simulator, quick_client(simulator) as client:
        clip = await (await client.generate("a kitten"))
        await clip.download(tmp_path / "kitten.mp4")
    assert [seen.carried_key for seen in simulator.requests if seen.where == "download"] == [True]


# Cancelled while a paid request is in flight


async def left_alone(
    answer: bytes | None, *, gone: Callable[[Client], Any] | None = None
) -> tuple[Client, EventRecorder]:
    """Return a client whose submit was cancelled before *answer* came."""
    recorder = EventRecorder()
    async with raw_server(answer) as server:
        server.may_answer.clear()
        client = Client(
            "sk-1", base_url=server.url, hooks=[recorder], retry=RetryPolicy(attempts=1)
        )
        submitting = asyncio.ensure_future(client.generate("a kitten"))
        await server.got_request.wait()
        submitting.cancel()
        await asyncio.wait([submitting])
        assert submitting.cancelled()
        if gone is not None:
            gone(client)
        server.may_answer.set()
        await client.aclose()
    assert others() == set()
    return client, recorder


async def test_the_task_of_a_cancelled_submit_is_unfinished() -> None:
    """Closing waits for its id, which is then in `unfinished` and in an event."""
    client, recorder = await left_alone(reply(b'{"code": 200, "data": {"task_id": "t-7"}}'))
    [task] = client.unfinished
    assert (task.id, task.request) == ("t-7", TextToVideo("a kitten"))
    number = recorder.all(SubmissionStarted)[0].submission
    assert recorder.all(SubmissionUnclaimed) == [
        SubmissionUnclaimed("text_to_video", "t-7", None, number)
    ]
    [event] = recorder.all(TaskSubmitted)
    assert (event.task_id, event.submission) == ("t-7", number)
    assert recorder.all(SubmissionFailed) == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply(b'{"code": 400, "msg": "no", "data": null}'), "InvalidRequest"),
        (reply(b'{"code": "saturated"}', "429 No"), "RateLimited"),
        (reply(b"", "502 No"), "SubmissionInDoubt"),
        (reply(b'{"code": 200, "data": {}}'), "SubmissionInDoubt"),
        (None, "SubmissionInDoubt"),
    ],
    ids=["refused", "busy", "down", "no id", "dropped"],
)
async def test_a_cancelled_submit_has_its_outcome_in_an_event(
    answer: bytes | None, error: str
) -> None:
    """If no task is known, the event distinguishes a refusal from a doubt."""
    client, recorder = await left_alone(answer)
    assert client.unfinished == ()
    number = recorder.all(SubmissionStarted)[0].submission
    assert recorder.all(SubmissionUnclaimed) == [
        SubmissionUnclaimed("text_to_video", None, error, number)
    ]
    assert [*recorder.all(SubmissionFailed), *recorder.all(SubmissionDoubted)] == []


async def test_a_cancelled_exchange_is_in_doubt() -> None:
    """An exchange that is itself cancelled, as at the end of a loop, may have been accepted."""

    def shoot(client: Client) -> None:
        [session] = client._sessions.by_loop.values()
        [flight] = session.transport._in_flight
        flight.cancel()

    client, recorder = await left_alone(reply(), gone=shoot)
    assert client.unfinished == ()
    fault = SubmissionInDoubt.__name__
    [event] = recorder.all(SubmissionUnclaimed)
    assert (event.task_id, event.error) == (None, fault)


# Closed well


async def test_closing_twice_is_fine(gateway: Simulator) -> None:
    """Also before anything was opened."""
    client = quick_client(gateway)
    await client.aclose()
    async with client:
        await client.generate("a kitten")
        await client.aclose()
    await client.aclose()
    assert client._sessions.by_loop == {}


async def test_a_closed_client_opens_again(gateway: Simulator) -> None:
    """Entered again after a close, it opens a new session, and old handles work."""
    client = quick_client(gateway)
    async with client as same:
        assert same is client
        task = await client.generate("a kitten")
    async with client:
        assert (await task.wait(timeout=10)).id == task.id


async def test_closing_abandons_waits(gateway: Simulator) -> None:
    """They end at once, and their tasks go on at the gateway."""
    gateway.script(takes=3600)
    async with quick_client(gateway) as client:
        task = await client.generate("a kitten")
        waiting = asyncio.ensure_future(task.wait())
        await until(lambda: gateway.polls(task.id))
        assert re.fullmatch(
            r"<Client http://\S+, <RateLimiter \d of 100 in flight, \d waiting, 10 a second>, "
            r"<Poller 1 tasks(, next in 0\.\d s)?>>",
            repr(client),
        )
    with pytest.raises(WaitAbandoned) as caught:
        await waiting
    assert caught.value.task_id == task.id
    assert others() == set()


async def test_an_unclosed_client_warns(gateway: Simulator) -> None:
    """A client that is dropped with its session open warns, and shows its repr."""
    client = quick_client(gateway)
    await client.feed((await client.generate("a kitten")).id)
    [session] = client._sessions.by_loop.values()
    clients = [client]
    del client
    with pytest.warns(ResourceWarning, match=r"unclosed <Client http://"):
        clients.clear()
    await session.aclose()


async def test_a_client_with_a_borrowed_session_does_not_warn(gateway: Simulator) -> None:
    """A borrowed session is not its own to close, so that there is nothing to warn of."""
    async with aiohttp.ClientSession() as session:
        client = quick_client(gateway, session=session)
        await client.generate("a kitten")
        [opened] = client._sessions.by_loop.values()
        del client
        gc.collect()
        await opened.aclose()
        assert not session.closed


async def test_a_client_that_was_never_used_does_not_warn() -> None:
    """Neither one that opened nothing, nor one that could not be made."""
    client = Client("sk-1")
    del client
    with pytest.raises(UsageError):
        Client("")
    gc.collect()


async def test_a_borrowed_session_is_left_open(gateway: Simulator) -> None:
    """All requests go over it, and closing the client does not close it."""
    async with aiohttp.ClientSession(headers={"User-Agent": "mine"}) as session:
        async with quick_client(gateway, session=session) as client:
            await (await client.generate("a kitten"))
        assert not session.closed
    assert {seen.headers["User-Agent"] for seen in gateway.requests} == {"mine"}


async def test_a_closed_session_raises_before_a_byte_is_written(
    gateway: Simulator, tmp_path: Path
) -> None:
    """Every call raises: a submit, a poll, a wait, a download."""
    async with aiohttp.ClientSession() as session, quick_client(gateway, session=session) as client:
        task = await client.generate("a kitten")
        clip = await task.wait(timeout=10)
        await session.close()
        before = len(gateway.requests)
        calls = [
            client.generate("a kitten"),
            client.feed(task.id),
            client.task("t-2").wait(timeout=10),
            clip.download(tmp_path / "a.mp4"),
        ]
        for call in calls:
            with pytest.raises(UsageError) as caught:
                await call
            assert caught.value.field == "session"
        assert len(gateway.requests) == before
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240


def test_loops_that_ended_are_forgotten() -> None:
    """Also a loop that was closed by hand, without closing its asynchronous generators."""
    client = Client("sk-1", base_url=HERE)

    async def touch() -> Any:
        return client._sessions.current()

    loop = asyncio.new_event_loop()
    session = loop.run_until_complete(touch())
    loop.run_until_complete(session.transport.aclose())
    loop.close()
    assert list(client._sessions.by_loop) == [loop]
    asyncio.run(touch())
    assert client._sessions.by_loop == {}


# No secrets


async def test_no_secret_is_shown(gateway: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG, through success, failure and refusal, no text holds key, prompt or address."""
    caplog.set_level(logging.DEBUG)
    key, prompt = "sk-marked", "a marked kitten"
    gateway.add_key(key)
    gateway.script(then="fail", reason=f"{prompt} at https://marked.example/?_jwt=marked")
    recorder, texts = EventRecorder(), []
    async with Client(
        key,
        base_url=gateway.base_url,
        hooks=[recorder],
        polling=quick_client(gateway)._sessions.settings.polling,
    ) as client:
        failing = await client.generate(prompt)
        texts += [repr(client), repr(failing), repr(failing.request), repr(client.gateway)]
        caught: list[RunwayError] = []
        for call in (failing.wait(timeout=10), client.feed("marked-id")):
            with pytest.raises(RunwayError) as one:
                await call
            caught.append(attrs.evolve(one.value, task_id=None))
        clip = await (await client.generate(prompt))
        texts += [repr(clip), repr(clip.record), repr(clip.task)]
    assert [secrets_in(error, ["marked"]) for error in caught] == [[], []]
    lines = [record.getMessage() for record in caplog.records if record.name != "asyncio"]
    assert not [text for text in (*texts, *lines, repr(recorder.events)) if "marked" in text]
    assert len(lines) > 5


# The official format

Call = Callable[[Client], Awaitable[Task]]


@pytest.mark.parametrize(
    ("call", "path", "body"),
    [
        (
            lambda client: client.official.text_to_video(
                "a kitten", model="veo3.1", seconds=8, audio=True, seed=3
            ),
            "text_to_video",
            {
                "promptText": "a kitten",
                "model": "veo3.1",
                "ratio": "1280:720",
                "duration": 8,
                "audio": True,
                "seed": 3,
            },
        ),
        (
            lambda client: client.official.video_to_video(VIDEO, "oil", image=IMAGE, seed=3),
            "video_to_video",
            {
                "videoUri": VIDEO,
                "promptText": "oil",
                "references": [{"type": "image", "uri": IMAGE}],
                "model": "gen4_aleph",
                "ratio": "1280:720",
                "seed": 3,
            },
        ),
        (
            lambda client: client.official.character_performance(
                VIDEO, IMAGE, body_control=True, expression_intensity=4, extra={"a": 1}
            ),
            "character_performance",
            {
                "character": {"type": "image", "uri": IMAGE},
                "reference": {"type": "video", "uri": VIDEO},
                "bodyControl": True,
                "expressionIntensity": 4,
                "model": "act_two",
                "ratio": "1280:720",
                "a": 1,
            },
        ),
        (
            lambda client: client.official.video_upscale(VIDEO),
            "video_upscale",
            {"videoUri": VIDEO, "model": "upscale_v1"},
        ),
        (
            lambda client: client.official.submit(
                "/v1/text_to_video", {"promptText": "a kitten", "model": "gen9", "odd": [1, None]}
            ),
            "text_to_video",
            {"promptText": "a kitten", "model": "gen9", "odd": [1, None]},
        ),
    ],
)
async def test_each_request_of_the_official_format(
    gateway: Simulator, tmp_path: Path, call: Call, path: str, body: dict[str, Any]
) -> None:
    """Its body goes to its own path; its clip is waited for and saved as any other."""
    async with quick_client(gateway) as client:
        task = await call(client)
        clip = await task.wait(timeout=10)
        await clip.download(tmp_path / "clip.mp4")
    assert task.official
    assert gateway.tasks[0].request == body
    assert gateway.requests[0].path == f"/runwayml/v1/{path}"
    assert clip.record.points is not None
    gateway.assert_submitted_once()


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("https://elsewhere.example/v1/text_to_video", {}, "path"),
        ("text_to_video?key=marked", {}, "path"),
        ("../pro/generate", {}, "path"),
        ("text_to_video", ["marked"], "body"),
        ("text_to_video", {"marked": {1, 2}}, "body"),
    ],
)
async def test_an_official_request_that_is_wrong_sends_nothing(
    gateway: Simulator, path: str, body: Any, field: str
) -> None:
    """A path that is none, and a body that is not JSON, are a UsageError without their content."""
    async with quick_client(gateway) as client:
        with pytest.raises(UsageError) as caught:
            await client.official.submit(path, body)
    assert caught.value.field == field
    assert "marked" not in str(caught.value)
    assert gateway.requests == ()


async def test_an_official_request_is_paid_once(gateway: Simulator) -> None:
    """It is never sent again if its fate is unknown, and one name is one task."""
    body = {"model": "gen9", "promptText": "a kitten"}
    async with quick_client(gateway) as client:
        first = await client.official.submit("text_to_video", body, custom_id="one")
        again = await client.official.submit("/v1/text_to_video", body, custom_id="one")
        assert again.id == first.id
        gateway.fault("official", faults.Response(502))
        with pytest.raises(SubmissionInDoubt):
            await client.official.submit("text_to_video", body, custom_id="two")
    assert [seen.path for seen in gateway.requests].count("/runwayml/v1/text_to_video") == 2


async def test_a_path_that_the_gateway_does_not_have_costs_nothing(gateway: Simulator) -> None:
    """Its web page in place of a response is NotFound."""
    async with quick_client(gateway) as client:
        with pytest.raises(NotFound, match="Nothing was charged"):
            await client.official.submit("text_to_opera", {"promptText": "a kitten"})
    assert gateway.submitted == 0


async def test_a_refusal_says_what_is_documented(gateway: Simulator) -> None:
    """A request that differs from what is documented for its model is sent; a refusal says how."""
    async with quick_client(gateway) as client:
        with pytest.raises(InvalidRequest, match=r"gen4\.5 is documented with seconds 2, .* or 10"):
            await client.official.text_to_video("a kitten", seconds=12)
        with pytest.raises(InvalidRequest) as caught:
            await client.official.text_to_video("a kitten", model="gen9", seconds=12)
    assert "documented" not in str(caught.value)


@pytest.mark.parametrize(
    "request_",
    [
        OfficialVideoUpscale(VIDEO),
        OfficialRequest("text_to_video", {"model": "gen9", "promptText": "a marked kitten"}),
    ],
)
async def test_an_official_task_is_official_after_a_restart(
    gateway: Simulator, tmp_path: Path, request_: Generation
) -> None:
    """The journal has the class of a request and none of its content, and so its format."""
    path = tmp_path / "run.db"
    async with quick_client(gateway, journal=path) as client:
        task = await client.submit(request_, custom_id="one")
        assert client.journal is not None
        (job,) = await client.journal.jobs()
    assert (job.endpoint, job.state) == (type(request_).__name__, JobState.ACCEPTED)
    assert "marked" not in repr(job)
    assert b"marked" not in path.read_bytes()
    async with quick_client(gateway, journal=path) as client:
        again = await client.submit(request_, custom_id="one")
        assert (again.id, again.official) == (task.id, True)
        await again.wait(timeout=10)
    assert gateway.submitted == 1
    assert {seen.where for seen in gateway.requests} == {"official"}


async def test_what_failed_may_quote_the_body(gateway: Simulator) -> None:
    """The reason for a failure shows no text of a body of the caller's own."""
    gateway.script(then="fail", reason="an odd marked kitten is not allowed here")
    body = {"model": "gen9", "promptText": "an odd marked kitten"}
    async with quick_client(gateway) as client:
        task = await client.official.submit("text_to_video", body)
        with pytest.raises(TaskFailed, match="is not allowed here") as caught:
            await task.wait(timeout=10)
    assert "marked" not in str(caught.value)
