import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import aiohttp
import attrs
import pytest
from support.clients import QUICK_RETRY, EventRecorder, others
from support.clock import ManualClock, settle, until
from support.paying import pay
from support.secrets import chain, in_frames, secrets_in
from support.servers import free_port, raw_server, reply, silent_server

from fuhu_runway._clock import Clock, LoopClock
from fuhu_runway._http.deadlines import Deadlines
from fuhu_runway._http.limiter import RateLimiter
from fuhu_runway._http.transport import (
    MAX_CUT_BYTES,
    MAX_RESPONSE_BYTES,
    Body,
    StreamBroken,
    Transport,
)
from fuhu_runway._wire.decode import read_task
from fuhu_runway._wire.encode import Reply, Request
from fuhu_runway._wire.tables import ENDPOINTS
from fuhu_runway.errors import (
    Fate,
    GatewayDown,
    InvalidRequest,
    NoReply,
    NotSent,
    RateLimited,
    RunwayError,
    Unauthorized,
    UsageError,
)
from fuhu_runway.hooks import Hooks, RetryScheduled
from fuhu_runway.models import Limits, Timeouts

KEY = "sk-marked-key"
BRIEF = Timeouts(connect=0.05, read=0.05, total=5.0)
REFUSED = GatewayDown("It is down.", "Nothing was charged.", "Do.", fate=Fate.REFUSED)

Make = Callable[..., Transport]


@pytest.fixture
async def make(clock: ManualClock) -> AsyncIterator[Make]:
    """Return a maker of transports that are closed at the end."""
    async with AsyncExitStack() as stack:

        def build(
            *,
            session: aiohttp.ClientSession | None = None,
            timeouts: Timeouts | None = None,
            requests_in_flight: int = 100,
            recorder: EventRecorder | None = None,
            at: Clock = clock,
        ) -> Transport:
            transport = Transport(
                session=session,
                timeouts=timeouts or Timeouts(),
                retry=QUICK_RETRY,
                limiter=RateLimiter(Limits(requests_in_flight=requests_in_flight), at, Hooks()),
                hooks=Hooks([recorder] if recorder else []),
                clock=at,
            )
            stack.push_async_callback(transport.aclose)
            return transport

        yield build


def paid(url: str) -> Request:
    """Return a request that costs points."""
    headers = {"Authorization": f"Bearer {KEY}"}
    return Request(ENDPOINTS["text_to_video"], url, headers, b'{"prompt": "a"}', (KEY,))


def free(url: str) -> Request:
    """Return a request that only reads."""
    return Request(ENDPOINTS["feed"], url, {}, b"{}", task_id="t-1")


def body(answer: Reply) -> bytes:
    """Read a response, or say that the gateway refuses for now."""
    if answer.status == 503:
        raise attrs.evolve(REFUSED)
    return answer.body


# One exchange


async def test_send_returns_the_response_unchanged(make: Make, clock: ManualClock) -> None:
    """Status, names in lower case, body, and the time of day at which it came; whatever status."""
    async with raw_server(reply(b'{"a": 1}', "418 Teapot", X_Request_Id="r-1")) as server:
        answer = await make().send(free(server.url))
    assert (answer.status, answer.body, answer.cut) == (418, b'{"a": 1}', False)
    assert answer.headers["x-request-id"] == "r-1"
    assert answer.received_at == clock.unix


async def test_send_sends_what_the_request_says(make: Make) -> None:
    """Verb, headers and body arrive as they are in the request."""
    async with raw_server(reply()) as server:
        await make().send(paid(server.url))
    head, _, sent = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST / HTTP/1.1")
    assert f"Authorization: Bearer {KEY}".encode() in head
    assert sent == b'{"prompt": "a"}'


async def test_a_redirect_is_not_followed(make: Make) -> None:
    """No key and no paid body goes to a host that the user did not name."""
    async with raw_server(reply(status="307 Away", Location="/elsewhere")) as server:
        answer = await make().send(paid(server.url))
        assert (answer.status, len(server.requests)) == (307, 1)


@pytest.mark.parametrize("status", [101, 199, 303, 425, 499, 600, 999])
async def test_every_status_is_an_answer(make: Make, status: int) -> None:
    """What it means is read elsewhere; nothing of the library's own is raised about it."""
    async with raw_server(reply(b"{}", f"{status} Odd"), closes=True) as server:
        if status == 199:
            # One that announces another answer, which does not come.
            with pytest.raises(NoReply):
                await make().send(paid(server.url))
        else:
            assert (await make().send(paid(server.url))).status == status
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Security_Policy": "a" * 8_200},
        {"Content_Security_Policy": "a" * 65_000},
        {f"X_{number}": "a" for number in range(250)},
    ],
    ids=["8200 bytes", "65000 bytes", "250 of them"],
)
async def test_large_headers_are_read(make: Make, headers: dict[str, str]) -> None:
    """Large headers of proxies and security policies do not cost the response to a paid request."""
    async with raw_server(reply(b"{}", **headers)) as server:
        assert (await make().send(paid(server.url))).status == 200


@pytest.mark.parametrize("kind", [paid, free], ids=lambda kind: kind.__name__)
async def test_an_endless_answer_is_cut(make: Make, kind: Callable[[str], Request]) -> None:
    """No more than the limit is read, and the start of it is kept, which may name a task."""
    endless = reply(b"x" * (2 * MAX_RESPONSE_BYTES))
    async with raw_server(endless) as server:
        answer = await make().send(kind(server.url))
    assert (len(answer.body), answer.cut) == (MAX_CUT_BYTES, True)


async def test_the_largest_answer_is_read(make: Make) -> None:
    """A response of exactly the limit comes whole."""
    async with raw_server(reply(b"x" * MAX_RESPONSE_BYTES)) as server:
        answer = await make().send(free(server.url))
    assert (len(answer.body), answer.cut) == (MAX_RESPONSE_BYTES, False)


async def test_cookies_are_not_kept(make: Make) -> None:
    """What a gateway sets is not sent back, to it or to anyone."""
    async with raw_server(reply(Set_Cookie="a=1; Path=/")) as server:
        transport = make()
        for _ in range(2):
            await transport.send(free(server.url))
        assert len(server.requests) == 2
        assert b"Cookie" not in server.requests[1]


async def test_paid_requests_travel_on_fresh_connections(make: Make) -> None:
    """Free requests share a kept connection; each paid one opens its own."""
    async with raw_server(reply()) as server:
        transport = make()
        for _ in range(3):
            await transport.send(free(server.url))
        assert server.connections == 1
        for _ in range(3):
            await transport.send(paid(server.url))
        assert server.connections == 4


# What is known after a failure


@asynccontextmanager
async def refused() -> AsyncIterator[str]:
    """Nothing listens on the port."""
    yield f"http://127.0.0.1:{free_port()}/"


@asynccontextmanager
async def no_such_port() -> AsyncIterator[str]:
    """The address has a port that there is none of."""
    yield "http://127.0.0.1:99999/"


@asynccontextmanager
async def no_tls() -> AsyncIterator[str]:
    """The other side does not speak TLS."""
    async with raw_server(reply()) as server:
        yield server.url.replace("http:", "https:")


@asynccontextmanager
async def silent_tls() -> AsyncIterator[str]:
    """The other side takes the connection, and no handshake comes."""
    async with silent_server() as port:
        yield f"https://127.0.0.1:{port}/"


UNSENT = [refused, no_such_port, no_tls, silent_tls]


@pytest.mark.parametrize("trouble", UNSENT, ids=lambda trouble: trouble.__name__)
@pytest.mark.parametrize("kind", [paid, free], ids=lambda kind: kind.__name__)
async def test_what_never_arrived_is_known(
    make: Make, trouble: Callable[[], Any], kind: Callable[[str], Request]
) -> None:
    """A connection that never stood is `NotSent`, paid or free: nothing was charged."""
    async with trouble() as url:
        with pytest.raises(NotSent) as caught:
            await make(timeouts=Timeouts(connect=0.05, read=5.0)).send(kind(url))
    assert caught.value.fate is Fate.UNSENT
    assert caught.value.money == "Nothing was charged."
    assert isinstance(caught.value, ConnectionError)


BROKEN = {
    "closes": None,
    "not http": b"SMTP ready\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "half a body": reply(b"{}", Content_Length="400"),
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "giant head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("kind", [paid, free], ids=lambda kind: kind.__name__)
async def test_what_broke_after_sending_is_unknown(
    make: Make, answer: bytes | None, kind: Callable[[str], Request]
) -> None:
    """Whatever breaks once the request is out is `NoReply`, and says so of the money."""
    async with raw_server(answer, closes=True) as server:
        with pytest.raises(NoReply) as caught:
            await make().send(kind(server.url))
        assert len(server.requests) == 1
    assert caught.value.fate is Fate.UNKNOWN
    assert ("may have been" in caught.value.money) is (kind is paid)
    assert isinstance(caught.value, TimeoutError)


ACCEPTED = b'{"code":200,"data":{"task_id":"t-1"}}'
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PACKED = gzip.compress(ACCEPTED)
BROKEN_BUT_NAMED = {
    "length too long": reply(ACCEPTED, Content_Length="400"),
    "length too short": reply(ACCEPTED, Content_Length="30"),
    "length zero": reply(ACCEPTED, Content_Length="0"),
    "length no number": reply(ACCEPTED, Content_Length="odd"),
    "chunks without an end": CHUNKED + b"%x\r\n%s\r\n" % (len(ACCEPTED), ACCEPTED),
    "an id in two chunks": CHUNKED + b"1e\r\n%s\r\n7\r\n%s\r\n" % (ACCEPTED[:30], ACCEPTED[30:]),
    "chunk of no size": CHUNKED + b"%x\r\n%s\r\nzz\r\n" % (len(ACCEPTED), ACCEPTED),
    "chunked in name only": CHUNKED + ACCEPTED,
    "not http": ACCEPTED,
    "not a status line": b"ICY 200 OK\r\n\r\n" + ACCEPTED,
    "giant head": reply(ACCEPTED, X="x" * 100_000),
    "packed and cut": reply(PACKED[:-4], Content_Encoding="gzip", Content_Length="400"),
}


@pytest.mark.parametrize("answer", BROKEN_BUT_NAMED.values(), ids=BROKEN_BUT_NAMED.keys())
async def test_what_broke_and_names_a_task_keeps_its_id(make: Make, answer: bytes) -> None:
    """If the framing of a paid response is broken, the error has the id that arrived."""
    async with raw_server(answer, closes=True) as server:
        with pytest.raises(NoReply) as caught:
            await make().call(paid(server.url), read_task)
        assert len(server.requests) == 1
    assert caught.value.task_id == "t-1"


async def test_what_broke_on_a_borrowed_session_keeps_its_id(make: Make) -> None:
    """There the id is searched for in what the HTTP library could read of the body."""
    cut = reply(ACCEPTED, Content_Length="400")
    async with aiohttp.ClientSession() as session, raw_server(cut, closes=True) as server:
        with pytest.raises(NoReply) as caught:
            await make(session=session).send(paid(server.url))
    assert caught.value.task_id == "t-1"


async def test_an_id_that_may_be_cut_is_none(make: Make) -> None:
    """Half an id would lead to no task."""
    cut = reply(b'{"task_id":"573772da', Content_Length="90")
    async with raw_server(cut, closes=True) as server:
        with pytest.raises(NoReply) as caught:
            await make().send(paid(server.url))
    assert caught.value.task_id is None


@pytest.mark.parametrize(
    "answer",
    [
        reply(ACCEPTED, Content_Encoding="gzip"),
        reply(ACCEPTED, Content_Encoding="br"),
        reply(PACKED, Content_Encoding="gzip"),
        reply(PACKED, Content_Encoding="deflate"),
        reply(PACKED),
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n" + ACCEPTED,
    ],
)
async def test_a_wrong_header_loses_no_response(make: Make, answer: bytes) -> None:
    """A compressed body is recognised by its first bytes, whatever the headers say."""
    async with raw_server(answer, closes=True) as server:
        came = await make().send(paid(server.url))
    assert read_task(attrs.evolve(came, status=200)).task_id == "t-1"


@pytest.mark.parametrize("timeouts", [BRIEF, Timeouts(read=5.0, total=0.05)], ids=["read", "total"])
async def test_a_late_answer_is_unknown(make: Make, timeouts: Timeouts) -> None:
    """A gateway that took the request and says nothing may have accepted it."""
    async with raw_server(reply()) as server:
        server.may_answer.clear()
        with pytest.raises(NoReply) as caught:
            await make(timeouts=timeouts).send(paid(server.url))
    assert caught.value.fate is Fate.UNKNOWN
    assert "Timeout" in str(caught.value)


async def test_a_kept_connection_that_died_is_in_doubt(make: Make) -> None:
    """A paid request on a borrowed session's kept connection is never sent twice by the library."""
    async with aiohttp.ClientSession() as session, raw_server(reply(), None) as server:
        transport = make(session=session)
        await transport.send(free(server.url))
        with pytest.raises(NoReply):
            await transport.send(paid(server.url))
        assert len(server.requests) == 2


async def test_no_error_holds_an_address(make: Make) -> None:
    """If the text of the library holds an address, the cause is a copy without it."""
    with pytest.raises(NotSent) as caught:
        await make().send(paid(f"http://127.0.0.1:{free_port()}/marked?key={KEY}"))
    assert secrets_in(caught.value, [KEY, "127.0.0.1", "marked"]) == []
    assert "ClientConnectorError" in str(caught.value.__cause__)


async def test_what_the_library_said_is_the_cause(make: Make) -> None:
    """What it said is the cause, and the only one, without the frames that hold the key."""
    async with raw_server(None) as server:
        with pytest.raises(NoReply) as caught:
            await make().send(free(server.url))
    assert str(caught.value.__cause__) == "ServerDisconnectedError: Server disconnected"
    assert len(list(chain(caught.value))) == 2


IMPOSSIBLE = [
    "https://api..fuhuapi.com/",
    "https://" + "a" * 70 + ".example/",
    "https://\u00ad.example/",
    "https://a\ud800.example/",
    "https://[::1/",
    "https://a.example:port/",
    "https://",
    "ftp://a.example/",
    "",
]


def poll(url: str) -> Request:
    """Return a request without a body."""
    return Request(ENDPOINTS["official_task"], url, {}, task_id="t-1")


@pytest.mark.parametrize("url", IMPOSSIBLE)
@pytest.mark.parametrize("kind", [paid, free, poll], ids=lambda kind: kind.__name__)
async def test_an_address_that_cannot_be_is_not_sent(
    make: Make, kind: Callable[[str], Request], url: str
) -> None:
    """Whatever the library raises about it, nothing was written, and the error says so."""
    with pytest.raises(NotSent) as caught:
        await make().send(kind(url))
    assert caught.value.fate is Fate.UNSENT


class Odd(Exception):
    """What a package beside aiohttp may raise."""


class OddResolver(aiohttp.abc.AbstractResolver):
    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        raise Odd(KEY)

    async def close(self) -> None:
        """Hold nothing."""


class OddAnswer(aiohttp.ClientResponse):
    async def start(self, connection: Any) -> Any:
        await super().start(connection)
        raise Odd(KEY)


async def test_an_error_of_any_class_before_the_body_is_not_sent(make: Make) -> None:
    """What a borrowed session's own resolver raises says by its place that nothing was written."""
    connector = aiohttp.TCPConnector(resolver=OddResolver())
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(NotSent, match="Odd") as caught:
            await make(session=session).send(paid("http://gateway.invalid/"))
    assert secrets_in(caught.value, [KEY]) == in_frames(caught.value, [KEY]) == []


async def test_an_error_of_any_class_after_the_body_is_unknown(make: Make) -> None:
    """A paid request that was written may have been accepted, whatever is raised then."""
    async with (
        aiohttp.ClientSession(response_class=OddAnswer) as session,
        raw_server(reply()) as server,
    ):
        with pytest.raises(NoReply, match="Odd") as caught:
            await make(session=session).send(paid(server.url))
        assert len(server.requests) == 1
    assert caught.value.fate is Fate.UNKNOWN
    assert secrets_in(caught.value, [KEY]) == in_frames(caught.value, [KEY]) == []


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN.keys())
async def test_no_frame_of_a_failure_holds_a_secret(make: Make, answer: bytes | None) -> None:
    """Neither key, body nor address is in a variable that a traceback would show."""
    async with raw_server(answer, closes=True) as server:
        with pytest.raises(NoReply) as caught:
            await make().send(paid(f"{server.url}marked-path?key={KEY}"))
    secrets = [KEY, '{"prompt', "marked-path", "127.0.0.1"]
    assert in_frames(caught.value, secrets) == []


async def test_no_frame_of_a_refusal_holds_the_answer(make: Make) -> None:
    """A gateway may quote anything in it."""
    refusal = reply(b'{"error": {"message": "no", "quoted": "marked-prompt"}}', "400 Bad")
    async with raw_server(refusal) as server:
        with pytest.raises(InvalidRequest) as caught:
            await make().once(free(server.url), read_task)
    assert in_frames(caught.value, ["marked-prompt"]) == []


async def test_a_middleware_may_read_the_body() -> None:
    """Such as one of a borrowed session that signs requests."""
    body = Body('{"prompt": "小猫"}'.encode())
    assert body.decode() == '{"prompt": "小猫"}'
    assert body.size == 20
    assert not body.is_begun


# Repeating


async def test_a_free_request_is_retried(make: Make, clock: ManualClock) -> None:
    """Two broken responses and a complete one return the complete one, after two pauses."""
    recorder = EventRecorder()
    async with raw_server(None, None, reply(b"[1]")) as server:
        calling = asyncio.ensure_future(make(recorder=recorder).call(free(server.url), body))
        for pauses in (1, 2):
            await until(lambda: len(recorder.all(RetryScheduled)) == pauses)  # noqa: B023
            await clock.advance(0.001)
        assert await calling == b"[1]"
        assert len(server.requests) == 3
    assert [event.attempt for event in recorder.all(RetryScheduled)] == [1, 2]


async def test_a_paid_request_without_a_response_is_not_retried(make: Make) -> None:
    """It is sent once, although a free one would be sent again."""
    async with raw_server(None) as server:
        with pytest.raises(NoReply):
            await make().call(paid(server.url), body)
        assert len(server.requests) == 1


async def test_once_sends_once(make: Make) -> None:
    """`once` sends once, whatever the response."""
    async with raw_server(None, reply()) as server:
        with pytest.raises(NoReply):
            await make().once(free(server.url), body)
        assert len(server.requests) == 1


async def test_no_more_than_the_limit_are_in_flight(make: Make) -> None:
    """With room for two, ten requests reach the gateway two by two."""
    async with raw_server(reply()) as server:
        server.may_answer.clear()
        transport = make(requests_in_flight=2, at=LoopClock())
        calls = [
            asyncio.ensure_future(calling)
            for _ in range(5)
            for calling in (
                pay(transport, paid(server.url), body),
                transport.call(free(server.url), body),
            )
        ]
        await until(lambda: len(server.requests) == 2)
        await settle()
        assert server.connections == 2
        server.may_answer.set()
        assert await asyncio.gather(*calls) == [b"{}"] * 10


# Cancelled


async def test_a_paid_request_in_flight_outlives_its_caller(make: Make) -> None:
    """The sender is gone, and the exchange, which goes on, is handed over at once."""
    left: list[asyncio.Task[Any]] = []
    async with raw_server(reply(b"[1]")) as server:
        server.may_answer.clear()
        transport = make()
        calling = asyncio.ensure_future(pay(transport, paid(server.url), body, left.append))
        await server.got_request.wait()
        calling.cancel()
        await settle()
        assert calling.cancelled()
        assert [flight.done() for flight in left] == [False]
        server.may_answer.set()
        await transport.aclose()
    assert [flight.result() for flight in left] == [b"[1]"]
    assert others() == set()


async def test_a_free_request_ends_with_its_caller(make: Make) -> None:
    """A poll whose caller was cancelled is dropped."""
    async with raw_server(reply()) as server:
        server.may_answer.clear()
        calling = asyncio.ensure_future(make().call(free(server.url), body))
        await server.got_request.wait()
        calling.cancel()
        await settle()
        assert calling.cancelled()


async def test_a_paid_request_that_waits_for_its_turn_is_not_sent(make: Make) -> None:
    """Cancelled before there was room for it, it never leaves, and nothing is unclaimed."""
    async with raw_server(reply()) as server:
        server.may_answer.clear()
        transport = make(requests_in_flight=1)
        first = asyncio.ensure_future(transport.once(free(server.url), body))
        await server.got_request.wait()
        second = asyncio.ensure_future(pay(transport, paid(server.url), body))
        await settle()
        second.cancel()
        server.may_answer.set()
        assert await first == b"{}"
        await settle()
        assert second.cancelled()
        assert len(server.requests) == 1


async def test_a_paid_request_that_comes_too_late_is_not_sent(make: Make) -> None:
    """Once nothing more is paid for, only what is in flight goes on, whatever kept it waiting."""
    async with raw_server(reply()) as server:
        server.may_answer.clear()
        transport = make(requests_in_flight=1)
        first = asyncio.ensure_future(pay(transport, paid(server.url), body))
        await server.got_request.wait()
        second = asyncio.ensure_future(pay(transport, paid(server.url), body))
        await settle()
        transport.stop()
        server.may_answer.set()
        assert await first == b"{}"
        with pytest.raises(UsageError) as caught:
            await second
        assert caught.value.field == "client"
        assert len(server.requests) == 1


# Ownership


async def test_what_it_opened_it_closes(make: Make) -> None:
    """After `aclose`, also a second one, its sessions are closed."""
    transport = make()
    await transport.aclose()
    await transport.aclose()
    assert transport._free.closed
    assert transport._paid.closed


async def test_a_close_that_is_cancelled_closes(make: Make) -> None:
    """A close that does not wait for a request in flight leaves no session open."""
    async with raw_server(reply()) as server:
        server.may_answer.clear()
        transport = make()
        calling = asyncio.ensure_future(pay(transport, paid(server.url), body))
        await server.got_request.wait()
        closing = asyncio.ensure_future(transport.aclose())
        await settle()
        closing.cancel()
        await settle()
        assert closing.cancelled()
        assert transport._free.closed
        assert transport._paid.closed
        with pytest.raises(RunwayError):
            await calling


async def test_a_borrowed_session_is_left_open(make: Make) -> None:
    """It carries free and paid requests, and is not closed here."""
    async with aiohttp.ClientSession() as session, raw_server(reply()) as server:
        transport = make(session=session)
        await transport.send(free(server.url))
        await transport.send(paid(server.url))
        await transport.aclose()
        assert not session.closed


async def test_raise_for_status_of_a_borrowed_session_is_ignored(make: Make) -> None:
    """With it the gateway's own words would be lost, and a refusal become a doubt."""
    refusal = reply(b'{"code": "quota"}', "403 No")
    async with (
        aiohttp.ClientSession(raise_for_status=True) as session,
        raw_server(refusal) as server,
    ):
        transport = make(session=session)
        answer = await transport.send(paid(server.url))
        assert (answer.status, answer.body) == (403, b'{"code": "quota"}')
        async with transport.stream(server.url, {}) as response:
            assert response.status == 403


async def test_a_closed_session_is_reported_before_a_byte_is_written(make: Make) -> None:
    """Sending and streaming over it are `UsageError`s, and the gateway sees nothing."""
    async with raw_server(reply()) as server:
        transport = make()
        await transport.aclose()
        for kind in (paid, free):
            with pytest.raises(UsageError) as caught:
                await transport.call(kind(server.url), body)
            assert caught.value.field == "client"
        with pytest.raises(UsageError):
            async with transport.stream(server.url, {}):
                pytest.fail("it opened")
        assert server.connections == 0


# Streams


async def test_a_stream_is_a_plain_get(make: Make) -> None:
    """It requests unencoded bytes, follows no redirect, and passes the headers on."""
    away = reply(b"body", "302 Away", Location="/elsewhere")
    async with raw_server(away) as server:
        async with make().stream(server.url, {"Range": "bytes=5-"}) as response:
            assert (response.status, await response.read()) == (302, b"body")
            assert response.headers["location"] == "/elsewhere"
        head = server.requests[0]
    assert head.startswith(b"GET / ")
    assert b"Accept-Encoding: identity" in head
    assert b"Range: bytes=5-" in head
    assert b"Authorization" not in head


async def test_a_stream_has_no_limit_as_a_whole(make: Make) -> None:
    """Only its pauses are limited: longer than the total of an exchange is fine."""
    async with raw_server(reply(b"body")) as server:
        server.may_answer.clear()
        late = asyncio.get_running_loop().call_later(0.03, server.may_answer.set)
        async with make(timeouts=Timeouts(total=0.01)).stream(server.url, {}) as response:
            assert await response.read() == b"body"
        assert late.when() > 0


async def test_a_stream_that_does_not_open_names_no_address(make: Make) -> None:
    """The error has the class of what happened alone, and whether another attempt may help."""
    addresses = {f"http://127.0.0.1:{free_port()}/marked": True, "http://marked..example/": False}
    for url, passes in addresses.items():
        with pytest.raises(StreamBroken) as caught:
            async with make().stream(url, {}):
                pytest.fail("it opened")
        assert caught.value.passes is passes
        assert secrets_in(caught.value, ["marked", "127.0.0.1"]) == []


async def test_a_stream_that_breaks_says_so(make: Make) -> None:
    """What came before the break can be read, and then nothing more."""
    async with (
        raw_server(reply(b"body")[:-1], closes=True) as server,
        make().stream(server.url, {}) as response,
    ):
        assert await response.read() == b"bod"
        with pytest.raises(StreamBroken, match="ClientPayloadError") as caught:
            await response.read()
    assert secrets_in(caught.value, ["127.0.0.1"]) == []


async def test_no_secret_is_logged(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG, neither key nor body nor address stands in any line."""
    caplog.set_level(logging.DEBUG)
    async with raw_server(reply(b'{"marked": 1}')) as server:
        await make().call(paid(f"{server.url}marked"), body)
    assert "marked" not in caplog.text
    assert "127.0.0.1" not in caplog.text


# What the pace learns


async def test_refusals_in_a_row_hold_everything(make: Make, clock: ManualClock) -> None:
    """After three 429 in a row nothing is sent until Retry-After is over; a 403 does not count."""
    many = reply(b"", "429 Too Many Requests", Retry_After="3")
    async with raw_server(reply(b"{}", "403 Forbidden"), many, many, many) as server:
        transport = make()
        with pytest.raises(Unauthorized):
            await transport.once(free(server.url), read_task)
        for _ in range(3):
            clock.instant += 0.1
            assert transport._limiter.pace.ready_at(clock.now()) <= clock.now() + 1e-6
            with pytest.raises(RateLimited):
                await transport.once(free(server.url), read_task)
        assert transport._limiter.pace.ready_at(clock.now()) == clock.now() + 3


# The time of free requests


async def test_one_timer_ends_each_request_when_its_own_time_is_over(clock: ManualClock) -> None:
    """Requests that begin at different times end at different times, over one timer."""
    deadlines, ended = Deadlines(10.0, clock), dict[str, float]()

    async def run(name: str) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as scope:
                deadlines.add(scope)
                await asyncio.Event().wait()
        ended[name] = clock.now()

    began = clock.now()
    first = asyncio.ensure_future(run("first"))
    await clock.advance(4)
    second = asyncio.ensure_future(run("second"))
    await settle()
    assert clock.timers == [began + 10]
    await clock.advance(20)
    await asyncio.gather(first, second)
    assert ended == {"first": began + 10, "second": began + 14}
    assert clock.timers == []


async def test_no_timer_is_left_with_the_last_request(clock: ManualClock) -> None:
    """A request that ends in time leaves the timer to the others, and the last one stops it."""
    deadlines = Deadlines(10.0, clock)
    first, second = asyncio.timeout(None), asyncio.timeout(None)
    deadlines.add(first)
    deadlines.add(second)
    deadlines.discard(first)
    assert clock.timers == [clock.now() + 10]
    deadlines.discard(second)
    assert clock.timers == []


async def test_closing_ends_the_pause_before_a_retry(make: Make) -> None:
    """The pause ends at once, since nothing will be sent after it."""
    transport = make()
    pausing = asyncio.ensure_future(transport.pause(60))
    await until(lambda: transport._scopes)
    await transport.aclose()
    with pytest.raises(UsageError, match="was closed"):
        await pausing


async def test_cancelling_ends_the_pause_before_a_retry(make: Make) -> None:
    """A call that is cancelled in a pause is cancelled, and no pause is left."""
    transport = make()
    pausing = asyncio.ensure_future(transport.pause(60))
    await until(lambda: transport._scopes)
    pausing.cancel()
    await asyncio.wait([pausing])
    assert pausing.cancelled()
    assert transport._scopes == set()
