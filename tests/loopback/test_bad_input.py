from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.clients import QUICK_RETRY, quick_client
from support.secrets import secrets_in
from support.servers import free_port, raw_server, reply

from fuhu_runway import Client
from fuhu_runway.errors import (
    GatewayDown,
    NotFound,
    NotSent,
    OutOfCredits,
    RunwayError,
    SubmissionInDoubt,
    Unauthorized,
    UnreadableReply,
    UsageError,
)
from fuhu_runway.models import Timeouts
from fuhu_runway.testing import Simulator, faults
from fuhu_runway.testing.faults import Where

PROMPT = "a marked kitten"
KEY = "sk-marked-key"
SECRETS = ("marked", "127.0.0.1")

CALLS: dict[str, Callable[[Client], Awaitable[Any]]] = {
    "generate": lambda client: client.generate(PROMPT),
    "image": lambda client: client.generate(PROMPT, image="https://a.example/marked.png"),
    "video": lambda client: client.video_to_video("https://a.example/marked.mp4", PROMPT),
    "official": lambda client: client.official.image_to_video("https://a.example/marked.png"),
    "feed": lambda client: client.feed("t-1"),
    "wait": lambda client: client.task("t-1").wait(timeout=5),
    "refresh": lambda client: client.task("t-1").refresh(),
    "official feed": lambda client: client.official.feed("t-1"),
    "balance": lambda client: client.balance(),
}


def is_paid(call: str) -> bool:
    """Return whether a call costs points."""
    return call in {"generate", "image", "video", "official"}


async def ending(client: Client, call: str) -> RunwayError:
    """Return the error that a call raises, which contains no secret."""
    with pytest.raises(RunwayError) as caught:
        await CALLS[call](client)
    assert secrets_in(caught.value, SECRETS) == []
    return caught.value


@pytest.mark.parametrize("call", CALLS)
async def test_a_wrong_key(gateway: Simulator, call: str) -> None:
    """Every call raises `Unauthorized` after one request."""
    async with Client(KEY, base_url=gateway.base_url) as client:
        error = await ending(client, call)
    assert isinstance(error, Unauthorized)
    assert len(gateway.requests) == 1


@pytest.mark.parametrize("call", [call for call in CALLS if call != "wait"])
async def test_a_base_url_that_is_a_web_site(call: str) -> None:
    """The index page of a web site costs nothing, and the error says to check `base_url`."""
    page = reply(
        b"<!doctype html><title>marked</title><div id=root></div>", Content_Type="text/html"
    )
    async with raw_server(page) as server:
        async with Client(KEY, base_url=server.url, retry=QUICK_RETRY) as client:
            error = await ending(client, call)
        once = is_paid(call) or call == "refresh"
        assert len(server.requests) == (1 if once else QUICK_RETRY.attempts)
    assert isinstance(error, NotFound if is_paid(call) else GatewayDown)
    assert "base_url" in str(error)
    assert "Nothing was charged" in str(error)


@pytest.mark.parametrize("call", [call for call in CALLS if call != "wait"])
@pytest.mark.parametrize(
    "body", [b"bad gateway", b"", b"[1]", b'"marked"', b"{}", b'{"a": "marked"}']
)
async def test_an_answer_that_cannot_be_read(call: str, body: bytes) -> None:
    """A paid call is in doubt and was sent once; a free one was retried, and raises."""
    async with raw_server(reply(body)) as server:
        async with Client(KEY, base_url=server.url, retry=QUICK_RETRY) as client:
            error = await ending(client, call)
        sent = len(server.requests)
    if is_paid(call):
        assert isinstance(error, SubmissionInDoubt)
        assert isinstance(error.__cause__, UnreadableReply)
    else:
        assert isinstance(error, UnreadableReply)
        assert "Nothing was charged" in str(error)
    # A refresh is one poll and is never retried.
    once = is_paid(call) or call == "refresh"
    assert sent == (1 if once else QUICK_RETRY.attempts)


@pytest.mark.parametrize("call", [call for call in CALLS if call != "wait"])
async def test_a_redirect_is_not_followed(call: str) -> None:
    """A key and a paid body are sent to no address but `base_url`."""
    async with raw_server(reply()) as elsewhere:
        moved = reply(b"", "301 Moved", Location=elsewhere.url)
        async with (
            raw_server(moved) as server,
            Client(KEY, base_url=server.url, retry=QUICK_RETRY) as client,
        ):
            error = await ending(client, call)
        assert elsewhere.requests == []
    # Some servers redirect after they have accepted.
    assert isinstance(error, SubmissionInDoubt if is_paid(call) else GatewayDown)


@pytest.mark.parametrize("call", [call for call in CALLS if call not in {"wait", "refresh"}])
async def test_a_closed_port(call: str) -> None:
    """It is `NotSent`, because nothing left this machine."""
    url = f"http://127.0.0.1:{free_port()}"
    async with Client(KEY, base_url=url, retry=QUICK_RETRY) as client:
        assert isinstance(await ending(client, call), NotSent)


@pytest.mark.parametrize("path", ["", "/", "/base", "/base/"])
async def test_a_base_url_with_a_path(path: str) -> None:
    """The path of `base_url` is kept, with one slash before the gateway's own path."""
    async with raw_server(reply(b'{"code": 200, "data": {"task_id": "t-1"}}')) as server:
        async with Client(KEY, base_url=server.url.rstrip("/") + path) as client:
            await client.generate(PROMPT)
        start = server.requests[0].split(b" ")[1].decode()
    assert start == f"{path.rstrip('/')}/runway/pro/generate"


@pytest.mark.parametrize(
    "task_id", ["unknown", "9f6243e5", "../../etc", "a b?c=d&e#f", "ид", "%2e"]
)
async def test_an_unknown_id(gateway: Simulator, runway: Client, task_id: str) -> None:
    """Any text stays one id, and an unknown id is `NotFound`."""
    for poll in (runway.feed, runway.official.feed):
        with pytest.raises(NotFound) as caught:
            await poll(task_id)
        assert caught.value.task_id == task_id
    with pytest.raises(NotFound):
        await runway.task(task_id).wait(timeout=10)
    assert {seen.where for seen in gateway.requests} == {"feed", "official"}


async def test_another_account_does_not_see_the_task(gateway: Simulator, runway: Client) -> None:
    """With another account's key the id is unknown (api-facts 5.1)."""
    task = await runway.generate(PROMPT)
    gateway.add_key(KEY)
    async with Client(KEY, base_url=gateway.base_url) as stranger:
        assert isinstance(await _caught(stranger.feed(task.id)), NotFound)


async def test_a_channel_after_the_key(gateway: Simulator) -> None:
    """The key is sent unchanged, so the gateway sees and refuses the channel after it."""
    async with quick_client(gateway) as client:
        client._sessions.key += "-12"
        error = await _caught(client.generate(PROMPT))
    assert isinstance(error, Unauthorized)
    assert error.status == 403


@pytest.mark.parametrize("status", [401, 403])
async def test_an_empty_account(status: Any) -> None:
    """With either status it is `OutOfCredits`, and no task exists."""
    simulator = Simulator(points=1.0, quota_status=status)
    async with simulator, quick_client(simulator) as client:
        error = await _caught(client.generate(PROMPT))
    assert isinstance(error, OutOfCredits)
    assert simulator.submitted == 0


async def test_a_gateway_without_callbacks_does_not_need_one() -> None:
    """A body without `callback_url` is accepted by a gateway that does not require one."""
    simulator = Simulator(strict=False)
    async with simulator, quick_client(simulator, callback_url=None) as client:
        await client.generate(PROMPT)
    assert "callback_url" not in simulator.tasks[0].request


async def test_wrong_arguments_are_raised_before_anything_is_sent(
    gateway: Simulator, runway: Client
) -> None:
    """Arguments are checked first, so the gateway gets no request."""
    bad: list[Awaitable[Any]] = [
        runway.generate(""),
        runway.generate(PROMPT, ratio="2/1"),
        runway.generate(PROMPT, seconds=61),
        runway.generate(PROMPT, image="marked.png"),
        runway.generate(PROMPT, extra={"prompt": PROMPT}),
        runway.generate(PROMPT, extra={"a": {1, 2}}),
        runway.video_to_video("marked.mp4", PROMPT),
        runway.act_one("https://a.example/a.mp4"),
        runway.official.image_to_video("https://a.example/a.png", seed=-1),
    ]
    for call in bad:
        assert isinstance(await _caught(call), UsageError)
    assert gateway.requests == ()


@pytest.mark.parametrize("fault", [faults.Hang(), faults.Slow(1e9)], ids=["hang", "slow"])
async def test_a_gateway_that_does_not_answer(gateway: Simulator, fault: faults.Fault) -> None:
    """A submit is in doubt after the read timeout."""
    gateway.fault("submit", fault)
    async with quick_client(gateway, timeouts=Timeouts(read=0.05)) as client:
        assert isinstance(await _caught(client.generate(PROMPT)), SubmissionInDoubt)


async def _caught(call: Awaitable[Any]) -> RunwayError:
    with pytest.raises(RunwayError) as caught:
        await call
    assert secrets_in(caught.value, SECRETS) == []
    return caught.value


async def test_a_refused_poll_does_not_quote_the_prompt(gateway: Simulator) -> None:
    """If a gateway refuses a poll and quotes the prompt, the error hides the prompt."""
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
        gateway.fault("feed", faults.error(403, f"not allowed to see: {PROMPT}"), times=None)
        with pytest.raises(Unauthorized, match="not allowed to see") as caught:
            await task.wait(timeout=10)
    assert secrets_in(caught.value, ["marked"]) == []


@pytest.mark.parametrize("where", ["balance", "feed"])
async def test_other_refusals_do_not_quote_the_prompt_either(
    gateway: Simulator, where: Where
) -> None:
    """The prompt of a live task is in no error of a balance, or of a poll by id."""
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
        gateway.fault(where, faults.error(403, f"not now: {PROMPT}"), times=None)
        with pytest.raises(Unauthorized, match="not now") as caught:
            await (client.balance() if where == "balance" else client.feed(task.id))
    assert secrets_in(caught.value, ["marked"]) == []
