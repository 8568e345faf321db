import asyncio
import gc
import json
import secrets
import threading
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import attrs
import pytest
import yarl
from aiohttp import web
from support.clock import until
from support.receivers import bound, served
from support.samples import samples

from fuhu_runway import callbacks
from fuhu_runway._addresses import REMEMBERED, SIGNATURE_BYTES, Address, Webhook
from fuhu_runway.callbacks import MAX_BODY_BYTES, READ_AT_ONCE, CallbackReceiver
from fuhu_runway.errors import UsageError
from fuhu_runway.models import TaskState, TextToVideo

URL: Final = "https://app.example/marked/hooks"
SECRET: Final = "a marked secret of many bytes"
KITTEN: Final = TextToVideo("a marked kitten")
DONE: Final = json.dumps({"task_id": "t-1", "status": "3"}).encode()


class Client:
    """Records what the receiver reports."""

    def __init__(self) -> None:
        self.received: list[tuple[Address, Webhook]] = []
        self.threads: list[str] = []

    def receive(self, address: Address, webhook: Webhook) -> None:
        self.received.append((address, webhook))
        self.threads.append(threading.current_thread().name)


@attrs.define(eq=False)
class Scene:
    receiver: CallbackReceiver
    client: Client

    def address(self, job: str = "") -> Address:
        return self.receiver.addresses.new(self.client, KITTEN, job or secrets.token_hex(), 1.0)

    def token(self, job: str = "") -> str:
        return self.receiver.addresses.token(self.address(job))


def scene_of(**options: Any) -> Scene:
    """Return a receiver and a client that it serves."""
    scene = Scene(CallbackReceiver(URL, **options), Client())
    scene.receiver.attach(scene.client)
    return scene


@pytest.fixture
def scene() -> Scene:
    """Return a receiver whose addresses end with the process."""
    return scene_of()


# What it is made from


@pytest.mark.parametrize("url", ["", None])
def test_a_public_address_is_required(url: Any) -> None:
    """Without a public address the error says that it is missing, and nothing is made."""
    with pytest.raises(UsageError, match="public_url must be") as caught:
        CallbackReceiver(url)
    assert caught.value.field == "public_url"


@pytest.mark.parametrize(
    "url",
    [
        *("app.marked/hooks", "ftp://a.example", "https://a/?x=1", "https://a/#x", "https://u@a"),
        *("https://app..example", "https://app.example:99999", 7),
    ],
)
def test_a_public_address_is_plain(url: Any) -> None:
    """A URL that cannot be followed by another path segment is not a public URL."""
    with pytest.raises(UsageError, match="public_url") as caught:
        CallbackReceiver(url)
    assert str(url) not in str(caught.value)


@pytest.mark.parametrize("secret", ["short", b"short", "", 12345678901234567890, ["x"] * 20])
def test_a_secret_is_long(secret: Any) -> None:
    """A secret that could be guessed is refused, and not shown."""
    with pytest.raises(UsageError, match="16 bytes") as caught:
        CallbackReceiver(URL, secret=secret)
    assert caught.value.field == "secret"
    assert "short" not in str(caught.value)


@pytest.mark.parametrize("net", [0, -1, "60", True, float("nan"), float("inf")])
def test_a_net_is_a_time(net: Any) -> None:
    """The interval of the safety net is a number of seconds."""
    with pytest.raises(UsageError, match="safety_net"):
        CallbackReceiver(URL, safety_net=net)


def test_its_repr_shows_counts_only(scene: Scene) -> None:
    """The repr counts responses, and has no address, no secret and no token."""
    assert repr(scene.receiver) == "<CallbackReceiver nothing received>"
    address = scene.address()
    token = scene.receiver.addresses.token(address)
    scene.receiver.deliver(token)
    scene.receiver.deliver("x")
    assert repr(scene.receiver) == "<CallbackReceiver 1 x 204, 1 x 404>"
    for text in (repr(scene.receiver), repr(address)):
        assert "marked" not in text
        assert token not in text
        assert repr(address.nonce) not in text


# Addresses


def test_each_submit_has_an_address_of_its_own(scene: Scene) -> None:
    """Ten thousand addresses differ, and each has 144 random bits."""
    addresses = {scene.receiver.addresses.url(scene.address()) for _ in range(10_000)}
    assert len(addresses) == 10_000
    base, token = addresses.pop().rsplit("/", 1)
    assert base == URL
    assert len(token) == 44
    assert SIGNATURE_BYTES * 8 >= 128


def test_a_slash_at_the_end_makes_no_difference() -> None:
    """Between the public address and the token is one slash."""
    receiver = CallbackReceiver(f"{URL}/")
    addresses = receiver.addresses
    assert addresses.url(addresses.new(Client(), KITTEN, "a", 1.0)).startswith(f"{URL}/")
    assert "//" not in addresses.url(Address(bytes(15))).removeprefix("https://")


def test_only_what_was_made_here_is_known(scene: Scene) -> None:
    """A token with any one character changed, cut or added is as unknown as noise."""
    token = scene.token()
    for place in range(len(token)):
        other = "A" if token[place] != "A" else "B"
        forged = token[:place] + other + token[place + 1 :]
        assert scene.receiver.deliver(forged, DONE) == 404
    for forged in (token[:-1], token + "A", token + "=", f"{token}\n", token.swapcase()):
        assert scene.receiver.deliver(forged, DONE) == 404
    assert scene.client.received == []
    assert scene.receiver.deliver(token, DONE) == 204


@pytest.mark.parametrize(
    "noise", ["", "x", "..", "笑起来", "\ud800", "=" * 44, "A" * 44, "A" * 10_000]
)
def test_noise_is_unknown(scene: Scene, noise: str) -> None:
    """Whatever is put in a token's place, the response is 404 and nothing is raised."""
    assert scene.receiver.deliver(noise, DONE) == 404


def test_addresses_end_with_the_process(scene: Scene) -> None:
    """Without a secret, another receiver of the same public address knows none of them."""
    assert CallbackReceiver(URL).deliver(scene.token(), DONE) == 404


@pytest.mark.parametrize("secret", [SECRET, SECRET.encode()])
def test_a_secret_keeps_them(secret: str | bytes) -> None:
    """With the same secret they are known after a restart, with another they are not."""
    token = scene_of(secret=secret).token()
    after = scene_of(secret=SECRET)
    assert after.receiver.deliver(token, DONE) == 204
    [(address, webhook)] = after.client.received
    assert address.is_strange
    assert webhook == Webhook("t-1", TaskState.SUCCEEDED)
    assert scene_of(secret=f"{SECRET}!").receiver.deliver(token, DONE) == 404


def test_with_a_secret_a_job_keeps_its_address() -> None:
    """The same job has the same address in the next process, and another job another one."""
    before, after = scene_of(secret=SECRET), scene_of(secret=SECRET)
    assert before.token("job-1") == after.token("job-1") != after.token("job-2")
    assert before.receiver.addresses.is_lasting
    assert before.token() != before.token()


def test_without_a_secret_a_job_has_a_new_address_each_time(scene: Scene) -> None:
    """An address that cannot outlive the process need not be found again."""
    assert scene.token("job-1") != scene.token("job-1")
    assert not scene.receiver.addresses.is_lasting


def test_what_is_kept_is_bounded(scene: Scene) -> None:
    """Of any number of submits only the last addresses are kept, and the others still count."""
    first = scene.token()
    for _ in range(REMEMBERED + 10):
        scene.address()
    assert len(scene.receiver.addresses._kept) == REMEMBERED
    assert scene.receiver.deliver(first, DONE) == 204
    [(address, _)] = scene.client.received
    assert address.is_strange
    assert len(scene.receiver.addresses._kept) == REMEMBERED


def test_an_address_keeps_no_client_alive(scene: Scene) -> None:
    """The webhook of a client that is gone goes to the client that is still there."""
    gone = Client()
    scene.receiver.attach(gone)
    token = scene.receiver.addresses.token(scene.receiver.addresses.new(gone, KITTEN, "a", 1.0))
    del gone
    gc.collect()
    assert scene.receiver.deliver(token, DONE) == 204
    assert len(scene.client.received) == 1


def test_only_its_own_client_gets_a_webhook(scene: Scene) -> None:
    """Of several clients on one receiver, the one that submitted gets the webhook."""
    other = Client()
    scene.receiver.attach(other)
    address = scene.address()
    scene.receiver.deliver(scene.receiver.addresses.token(address), DONE)
    assert scene.client.received == [(address, Webhook("t-1", TaskState.SUCCEEDED))]
    assert other.received == []


def test_a_task_belongs_to_one_address(scene: Scene) -> None:
    """It is known whether another address has the task; its own address does not count."""
    first, second = scene.address(), scene.address()
    first.answered("t-1")
    assert scene.receiver.addresses.is_taken("t-1", second)
    assert not scene.receiver.addresses.is_taken("t-1", first)
    assert not scene.receiver.addresses.is_taken("t-2", second)


def test_a_webhook_without_a_client_is_kept() -> None:
    """A webhook from before a restart waits for the first client that runs."""
    scene = scene_of(secret=SECRET)
    token = scene_of(secret=SECRET).token()
    scene.receiver.deliver(token, DONE)
    [(address, webhook)] = scene.client.received
    assert scene.receiver.addresses.pending(scene.client) == []
    address.early = scene.address().early = webhook
    assert scene.receiver.addresses.pending(scene.client) == [(address, webhook)]
    assert scene.receiver.addresses.pending(scene.client) == []


def test_an_answer_makes_it_the_tasks_own() -> None:
    """The submission is released once the task is known."""
    address = Address(b"", None, KITTEN, is_in_doubt=True)
    address.answered("t-1")
    assert (address.task_id, address.is_in_doubt, address.request) == ("t-1", False, None)


# What is posted


@pytest.mark.parametrize(
    "sample", [one for one in samples() if one.folder == "callback"], ids=lambda one: one.name
)
def test_each_sample_is_read(scene: Scene, sample: Any) -> None:
    """What gateways are known to post names its task and its state."""
    assert scene.receiver.deliver(scene.token(), sample.body) == 204
    [(_, webhook)] = scene.client.received
    assert webhook.task_id == sample.expected["task_id"]
    assert webhook.state is TaskState[sample.expected["state"]]
    assert webhook.is_end is (sample.expected["state"] in {"SUCCEEDED", "FAILED"})


BODIES = {
    "nothing": b"",
    "no JSON": b"<html>",
    "a list": b"[]",
    "no object": b"7",
    "an error": b'{"code": 500, "msg": "busy", "data": null}',
    "no id": b'{"status": "3"}',
    "noise": bytes(range(256)),
    "depth": b"[" * 50_000,
    "an empty id": b'{"task_id": "", "status": "3"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_what_cannot_be_read_still_came_to_the_address(scene: Scene, body: bytes) -> None:
    """A sender that knows the address gets through, and its claims are not believed."""
    assert scene.receiver.deliver(scene.token(), body) == 204
    [(_, webhook)] = scene.client.received
    assert webhook == Webhook(None, TaskState.UNKNOWN)
    assert webhook.is_end


@pytest.mark.parametrize("task_id", ["a b", "<script>", "x" * 201, "line\\nbreak", "笑"])
def test_an_invalid_id_names_no_task(scene: Scene, task_id: str) -> None:
    """A text that cannot be an id is dropped, and is not even logged."""
    body = f'{{"task_id": "{task_id}", "status": "1"}}'.encode()
    assert scene.receiver.deliver(scene.token(), body) == 204
    assert scene.client.received[0][1] == Webhook("", TaskState.RUNNING)


def test_too_much_is_not_read(scene: Scene) -> None:
    """A body beyond the limit is refused, and one at the limit is taken."""
    token = scene.token()
    assert scene.receiver.deliver(token, b" " * (MAX_BODY_BYTES + 1)) == 413
    assert scene.client.received == []
    assert scene.receiver.deliver(token, b" " * MAX_BODY_BYTES) == 204


def test_repeated_webhooks_get_the_same_response(scene: Scene) -> None:
    """A sender learns nothing from what was posted before."""
    token = scene.token()
    assert [scene.receiver.deliver(token, DONE) for _ in range(5)] == [204] * 5
    assert scene.receiver.responses == {204: 5}


def test_any_thread_may_deliver(scene: Scene) -> None:
    """No event loop is needed, and many threads at once are all counted."""
    token = scene.token()
    threads = [
        threading.Thread(target=scene.receiver.deliver, args=(token, DONE)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scene.receiver.responses[204] == 8
    assert len(set(scene.client.threads)) == 8


# Over HTTP


@attrs.define(eq=False)
class Web:
    """A receiver in an app on this machine, and a session to post with."""

    scene: Scene
    base: str
    session: aiohttp.ClientSession

    async def post(self, path: str, data: Any = DONE, method: str = "POST") -> int:
        async with self.session.request(method, f"{self.base}{path}", data=data) as response:
            assert await response.read() == b"" or response.status == 405
            return response.status


@pytest.fixture
async def site(scene: Scene) -> AsyncIterator[Web]:
    """Run an app with the receiver where its public address says, and a second time elsewhere."""
    listener, base = bound()
    app = web.Application()
    scene.receiver.add_routes(app)
    app.add_routes(scene.receiver.routes("/"))
    app.router.add_route("*", "/any/{rest:.*}", scene.receiver.handle)
    async with served(app, listener), aiohttp.ClientSession() as session:
        yield Web(scene, base, session)


@pytest.mark.parametrize("prefix", ["/marked/hooks", "", "/any/where/at/all"])
async def test_it_answers_wherever_it_is_mounted(site: Web, prefix: str) -> None:
    """The last part of the path decides, whatever stands before it."""
    token = site.scene.token()
    assert await site.post(f"{prefix}/{token}") == 204
    assert await site.post(f"{prefix}/{token[::-1]}") == 404
    assert len(site.scene.client.received) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("prefix", ["/marked/hooks", "/any"])
async def test_only_a_post_is_a_webhook(site: Web, method: str, prefix: str) -> None:
    """Any other method is 405, for known and unknown tokens, and no client gets it."""
    for token in (site.scene.token(), "x"):
        assert await site.post(f"{prefix}/{token}", None, method) == 405
    assert site.scene.client.received == []


async def test_the_verb_that_is_taken_is_named(site: Web) -> None:
    """A 405 says in `Allow` what would have been right."""
    async with site.session.get(f"{site.base}/any/x") as response:
        assert response.headers["Allow"] == "POST"


async def endless(started: asyncio.Event) -> AsyncIterator[bytes]:
    """Return a body that never ends."""
    while True:
        started.set()
        yield b"x" * 4096
        await asyncio.sleep(0)


async def test_a_body_without_end_is_cut_off(site: Web) -> None:
    """It is read up to the limit, answered 413, and the connection is closed."""
    token = site.scene.token()
    try:
        assert await site.post(f"/any/{token}", endless(asyncio.Event())) == 413
    except aiohttp.ClientError:  # the connection may be gone before the response was read
        assert site.scene.receiver.responses[413] == 1
    assert site.scene.client.received == []
    assert site.scene.receiver._reading == 0


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_body_that_is_not_in_its_encoding_is_refused(site: Web, encoding: str) -> None:
    """It is the sender's fault, so a 400, and no client gets it."""
    post = f"/any/{site.scene.token()}", b"no such encoding"
    url, headers = f"{site.base}{post[0]}", {"Content-Encoding": encoding}
    async with site.session.post(url, data=_pieces(post[1]), headers=headers) as response:
        assert response.status == 400
    assert site.scene.client.received == []
    assert site.scene.receiver._reading == 0


async def test_a_sender_that_goes_away_is_no_error_of_the_app(
    site: Web, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that is cut off is a 400 that is counted, and aiohttp logs no traceback for it."""
    receiver = site.scene.receiver
    url = yarl.URL(site.base)
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST /any/{site.scene.token()} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{"
    writer.write(head.encode())
    await until(lambda: receiver._reading)
    writer.transport.abort()
    await until(lambda: receiver.responses)
    assert receiver.responses == {400: 1}
    assert receiver._reading == 0
    assert site.scene.client.received == []
    assert caplog.text == ""


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    """Return a body as it is, which the session does not encode as the header says."""
    yield content


async def test_an_unknown_address_is_answered_unread(site: Web) -> None:
    """A sender that knows no address is not read: the 404 comes before the body ends."""
    try:
        assert await site.post("/any/x", endless(asyncio.Event())) == 404
    except aiohttp.ClientError:
        assert site.scene.receiver.responses[404] == 1


async def test_a_slow_sender_is_given_up(site: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not come in time is a 408, and its place is free again."""
    monkeypatch.setattr(callbacks, "READ_TIMEOUT", 0.02)
    never = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    try:
        assert await site.post(f"/any/{site.scene.token()}", stuck()) == 408
    except aiohttp.ClientError:
        assert site.scene.receiver.responses[408] == 1
    assert site.scene.client.received == []
    assert site.scene.receiver._reading == 0


async def test_too_many_senders_at_once_get_a_503(site: Web) -> None:
    """While as many are read as may be, the next known one is a 503, an unknown one a 404."""
    site.scene.receiver._reading = READ_AT_ONCE
    token = site.scene.token()
    async with site.session.post(f"{site.base}/any/{token}", data=DONE) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
    assert await site.post("/any/x") == 404
    site.scene.receiver._reading = 0
    assert await site.post(f"/any/{token}") == 204


def test_what_comes_before_any_client_is_kept() -> None:
    """A webhook without a client waits for the first one, which may be made later."""
    receiver = CallbackReceiver(URL, secret=SECRET)
    assert receiver.deliver(scene_of(secret=SECRET).token(), DONE) == 204
    [(address, webhook)] = receiver.addresses.pending(scene_of().client)
    assert address.is_strange
    assert webhook.is_end


def test_a_doubt_gets_a_webhook_from_between_two_loops() -> None:
    """Between two loops of one client, a webhook waits for it, and for no other client."""
    scene = scene_of()
    address = scene.address()
    address.is_in_doubt, address.early = True, Webhook()
    assert scene.receiver.addresses.pending(scene_of().client) == []
    assert scene.receiver.addresses.pending(scene.client) == [(address, Webhook())]
