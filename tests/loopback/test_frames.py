"""Tools that report errors show the variables of frames: none of ours holds a secret."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.clients import QUICK_POLLS, QUICK_RETRY, quick_client
from support.secrets import chain, in_frames, told
from support.servers import free_port, raw_server, reply

from fuhu_runway import Client
from fuhu_runway.errors import RunwayError, UsageError
from fuhu_runway.models import BalanceRoute, Gateway, TextToVideo
from fuhu_runway.testing import Simulator, faults

KEY = "sk-marked-7f3a"
SECRETS = [KEY, "marked-7f3a", "a marked kitten", "marked.example", "_jwt="]
PROMPT = "a marked kitten"

Call = Callable[[Client], Awaitable[Any]]

CALLS: dict[str, Call] = {
    "generate": lambda client: client.generate(PROMPT, extra={"marked.example": 1}),
    "image": lambda client: client.generate(PROMPT, image="https://marked.example/1.png"),
    "video_to_video": lambda client: client.video_to_video("https://marked.example/1", PROMPT),
    "act_one": lambda client: client.act_one(
        "https://marked.example/1", "https://marked.example/2"
    ),
    "official": lambda client: client.official.image_to_video("https://marked.example/1", PROMPT),
    "submit": lambda client: client.submit(TextToVideo(PROMPT)),
    "feed": lambda client: client.feed("t-1"),
    "balance": lambda client: client.balance(),
    "wait": lambda client: client.task("t-1").wait(timeout=0.5),
}

# What stands beside the message is shown nowhere, and is in the answer that is read.
BODY = b'{"error": {"message": "no", "quoted": "a marked kitten of sk-marked-7f3a"}}'
ANSWERS = {
    "refused": reply(BODY, "400 Bad Request"),
    "forbidden": reply(BODY, "403 Forbidden"),
    "unreadable": reply(b'{"seen": "a marked kitten of sk-marked-7f3a"}'),
    "broken": reply(BODY, Content_Length="4000"),
    "silent": None,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_no_frame_of_a_failed_call_holds_a_secret(call: Call, answer: bytes | None) -> None:
    """Whatever the response is, or if there is none."""
    async with raw_server(answer, closes=True) as server, _client(server.url) as client:
        with pytest.raises(RunwayError) as caught:
            await call(client)
    assert told(caught.value, SECRETS) == in_frames(caught.value, SECRETS) == []


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_no_frame_of_an_unsent_call_holds_a_secret(call: Call) -> None:
    """Nothing listens on the port."""
    async with _client(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(RunwayError) as caught:
            await call(client)
    assert told(caught.value, SECRETS) == in_frames(caught.value, SECRETS) == []


def _client(url: str) -> Client:
    own = Gateway("own", url, quota_url=url, balance=BalanceRoute.QUOTA)
    return Client(KEY, gateway=own, retry=QUICK_RETRY, polling=QUICK_POLLS)


USAGE: dict[str, Call] = {
    "ratio": lambda client: client.generate(PROMPT, ratio="1-7"),
    "prompt": lambda client: client.generate(f"{PROMPT}\ud800"),
    "extra": lambda client: client.generate(PROMPT, extra={"prompt": "marked.example"}),
    "no address": lambda client: client.video_to_video(PROMPT, PROMPT),
    "no request": lambda client: client.submit(PROMPT),  # type: ignore[arg-type]
    "both": lambda client: client.act_one("https://marked.example/1"),
    "official": lambda client: client.official.image_to_video(PROMPT),
}


@pytest.mark.parametrize("call", USAGE.values(), ids=USAGE.keys())
async def test_no_frame_of_a_wrong_call_holds_a_secret(gateway: Simulator, call: Call) -> None:
    """The arguments of the call stay with the caller."""
    async with quick_client(gateway) as client:
        with pytest.raises(UsageError) as caught:
            await call(client)
    assert told(caught.value, SECRETS) == in_frames(caught.value, SECRETS) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"api_key": f"{KEY}\n"},
        {"gateway": "nowhere"},
        {"base_url": "https://user:marked-7f3a@a.example"},
        {"callback_url": "https://marked.example/marked-7f3a a"},
        {"timeouts": 5},
        {"hooks": 5},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_no_frame_of_a_client_that_is_not_made_holds_the_key(arguments: dict[str, Any]) -> None:
    """Whatever is wrong with which argument."""
    with pytest.raises(UsageError) as caught:
        Client(**{"api_key": KEY, **arguments})
    assert told(caught.value, SECRETS) == in_frames(caught.value, SECRETS) == []


@pytest.mark.parametrize("path", ["clip.mp4", "no/such/folder.mp4"])
async def test_no_frame_of_a_download_holds_the_address(
    gateway: Simulator, tmp_path: Path, path: str
) -> None:
    """The signed address of a clip is as good as a key to it."""
    async with quick_client(gateway) as client:
        clip = await client.generate(PROMPT)
        done = await clip.wait(timeout=30)
        gateway.fault("download", faults.server_error(500), times=None)
        with pytest.raises(RunwayError) as caught:
            await done.download(tmp_path / path)
        secrets = [*SECRETS, done.video_url]
    assert told(caught.value, secrets) == in_frames(caught.value, secrets) == []


async def test_an_error_keeps_what_it_was_raised_amid() -> None:
    """The exception that a caller is handling keeps its frames: they are the caller's own."""
    async with _client(f"http://127.0.0.1:{free_port()}") as client:
        try:
            raise KeyError  # noqa: TRY301
        except KeyError as error:
            amid = error
            with pytest.raises(RunwayError) as caught:
                await client.feed("t-1")
    assert amid.__traceback__ is not None
    assert amid in list(chain(caught.value))
