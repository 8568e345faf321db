"""
The only user of `aiohttp.ClientSession`: ownership, timeouts, aiohttp's errors given a `Fate`.

`send` is exactly one exchange; `call` is `send` under `_limits` and `_retry`. One transport
belongs to one event loop.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import quote

import aiohttp
import attrs
import yarl
from aiohttp.client_proto import ResponseHandler

from ._clock import Clock
from ._gateway import Replay
from ._limits import Gate
from ._redact import redact
from ._retry import repeat
from ._wire import Reply, Request, salvaged
from .errors import Fate, NoReply, NotSent, RateLimited, RunwayError, UsageError
from .hooks import Hooks
from .models import RetryPolicy, Timeouts, usage_error

T = TypeVar("T")

MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
"""The largest answer that is read; a task that quotes a picture as data may take some MB."""
MAX_CUT_BYTES: Final = 64 * 1024
"""How much is kept of a larger one, in bytes, since it may name a task."""

MAX_MEDIA_HEADER_BYTES: Final = 64 * 1024
"""The longest header of a clip's host; CDNs send policies of more than aiohttp's own 8 KB."""

Unclaimed = Callable[["asyncio.Task[Any]"], object]
"""Called with the exchange of a paid request, which goes on, when its caller is cancelled."""

Around = Callable[[Callable[[], Coroutine[Any, Any, Any]]], Coroutine[Any, Any, Any]]
"""Does one sending, given as a function to await, and whatever belongs before and after it."""


class Transport:
    """
    Requests out, replies in, over sessions that it owns or one that it borrows.

    Paid requests travel on fresh connections: on a kept one that the gateway has just closed,
    a request can die without a trace of whether it was read.
    """

    def __init__(
        self,
        *,
        session: aiohttp.ClientSession | None,
        timeouts: Timeouts,
        retry: RetryPolicy,
        gate: Gate,
        hooks: Hooks,
        clock: Clock,
    ) -> None:
        self._borrowed = session
        self._free = session or _open_session(fresh_connections=False)
        self._paid = session or _open_session(fresh_connections=True)
        self._timeouts = timeouts
        self._paid_timeout = aiohttp.ClientTimeout(
            total=timeouts.total, sock_connect=timeouts.connect, sock_read=timeouts.read
        )
        # A free request has its answer in no time or is asked again, and a limit for each read
        # would cost a timer for each read.
        self._free_timeout = aiohttp.ClientTimeout(
            total=timeouts.read, sock_connect=timeouts.connect
        )
        self._retry = retry
        self._gate = gate
        self._hooks = hooks
        self._clock = clock
        self._in_the_air: set[asyncio.Task[Any]] = set()
        self._pauses: set[asyncio.Task[None]] = set()
        self._pays = True

    async def call(
        self,
        request: Request,
        read: Callable[[Reply], T],
        *,
        unclaimed: Unclaimed | None = None,
        around: Around | None = None,
        submission: int | None = None,
    ) -> T:
        """
        Give what *read* makes of the answer, the request repeated as far as that is safe.

        With *unclaimed*, cancelling the caller does not cancel an exchange that is in the air:
        it goes on, and *unclaimed* is called with it. With *around*, each sending is done by way
        of it, so that it can be written down before and after. What is told of repeats holds the
        number of the *submission*.

        Raises:
            NotSent: The gateway could not be reached.
            NoReply: A free request got no answer, however often it was sent.
            SubmissionInDoubt: A paid request was sent, and its fate is unknown.
            RunwayError: Whatever *read* raises.
        """

        async def attempt() -> T:
            if unclaimed is None:
                return await self.once(request, read)
            return await self._once_whatever_happens(request, read, unclaimed, around)

        return await repeat(
            attempt,
            request.endpoint,
            self._retry,
            self._pause,
            self._hooks,
            submission=submission,
            task_id=request.task_id,
        )

    async def _pause(self, delay: float) -> None:
        """Let time pass before a repeat, which closing makes none."""
        pause = asyncio.ensure_future(self._clock.sleep(delay))
        self._pauses.add(pause)
        try:
            await pause
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._pays or (caller is not None and caller.cancelling()):
                raise
            raise closed() from None
        finally:
            self._pauses.discard(pause)

    async def once(self, request: Request, read: Callable[[Reply], T]) -> T:
        """Give what *read* makes of the answer to one sending, when the limits allow it."""
        async with self._gate.slot() as sent_at:
            return self._heed(read, await self.send(request), sent_at)

    async def in_turn(self, request: Request, read: Callable[[Reply], T], sent_at: float) -> T:
        """Do the same, in a turn that the caller took at the instant *sent_at*."""
        return self._heed(read, await self.send(request), sent_at)

    async def _once_whatever_happens(
        self,
        request: Request,
        read: Callable[[Reply], T],
        unclaimed: Unclaimed,
        around: Around | None,
    ) -> T:
        """Do the same, in a way that cancelling the caller cannot lose the answer."""
        async with self._gate.slot() as sent_at:
            if not self._pays:
                raise closed()
            exchange = partial(self.in_turn, request, read, sent_at)
            flight = asyncio.create_task(around(exchange) if around else exchange())
            self._in_the_air.add(flight)
            flight.add_done_callback(self._in_the_air.discard)
            try:
                return await asyncio.shield(flight)
            except asyncio.CancelledError:
                self._gate.hold(flight)
                unclaimed(flight)
                raise

    def _heed(self, read: Callable[[Reply], T], reply: Reply, sent_at: float) -> T:
        """Read an answer, and let the pace hear whether it was a refusal."""
        try:
            answer = read(reply)
        except RateLimited as refusal:
            self._gate.refused(sent_at, refusal.retry_after)
            raise
        except RunwayError:
            self._gate.answered()
            raise
        self._gate.answered()
        return answer

    async def send(self, request: Request) -> Reply:
        """
        Give the answer to exactly one sending.

        Raises:
            NotSent: The request provably did not arrive.
            NoReply: It may have arrived, and no whole answer came back.
        """
        is_paid = request.endpoint.replay is Replay.PAID
        session = self._paid if is_paid else self._free
        _check_open(session)
        body, arrived = bytearray(), bytearray()
        if is_paid:
            _ARRIVED.set(arrived)
        try:
            async with session.request(
                request.endpoint.verb,
                request.url,
                data=request.body,
                headers=request.headers,
                timeout=self._paid_timeout if is_paid else self._free_timeout,
                allow_redirects=False,
                # A borrowed session may have it otherwise, and the gateway's own words be lost.
                raise_for_status=False,
                # A false Content-Encoding would lose the answer: what is packed shows it itself.
                auto_decompress=False,
            ) as response:
                cut = await _read_body(response, body)
                # Of a status that has no body, aiohttp drops the one that is there all the same.
                answer = bytes(body) or unframed(bytes(arrived))
                return Reply(
                    request, response.status, response.headers, answer, cut, self._clock.wall()
                )
        except (aiohttp.ClientError, OSError) as exc:
            task_id = salvaged(request, unframed(bytes(arrived)) or bytes(body))
            failure, cause = translate(exc, request, task_id), _scrubbed(exc, request.secrets)
        # Outside the clause, so that the original, which may quote addresses, is no context of it.
        raise failure from cause

    @asynccontextmanager
    async def stream(self, url: str, headers: Mapping[str, str]) -> AsyncIterator["Stream"]:
        """
        Send a plain GET to *url* as it is written, and yield the answer.

        Redirects are not followed. Whole downloads may take long, so only the connection and each
        pause have a limit.

        Raises:
            StreamBroken: There was no answer.
        """
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._timeouts.connect, sock_read=self._timeouts.read
        )
        _check_open(self._free)
        try:
            response = await self._free.get(
                _as_written(url),
                headers={**headers, "Accept-Encoding": "identity"},
                timeout=timeout,
                allow_redirects=False,
                raise_for_status=False,
                max_line_size=MAX_MEDIA_HEADER_BYTES,
                max_field_size=MAX_MEDIA_HEADER_BYTES,
            )
        except Exception as exc:  # noqa: BLE001  (odd addresses raise whatever they meet)
            sendable = not isinstance(exc, aiohttp.InvalidURL)
            passes = sendable and isinstance(exc, aiohttp.ClientError | OSError)
            broken = StreamBroken(type(exc).__name__, passes)
        else:
            async with response:
                yield Stream(response)
            return
        # Outside the clause: what the HTTP library says may quote the signed address.
        raise broken

    def pay_no_more(self) -> None:
        """Refuse each paid request that is not in the air yet, and every repeat to come."""
        self._pays = False
        for pause in self._pauses:
            pause.cancel()

    async def aclose(self) -> None:
        """
        Close what this transport opened.

        A paid request in the air is waited for, since its answer holds the id of a paid task.
        """
        self.pay_no_more()
        try:
            if self._in_the_air:
                await asyncio.wait(self._in_the_air, timeout=self._timeouts.total)
        finally:
            self._gate.close(closed)
            if self._borrowed is None:
                await self._free.close()
                await self._paid.close()


@attrs.define(eq=False)
class StreamBroken(Exception):
    """A stream broke, or could not be opened."""

    #: The class of what the HTTP library raised; its text may quote the signed address.
    name: str
    #: Whether another attempt may do better; no request can be sent to some addresses.
    passes: bool = True


@attrs.frozen(eq=False)
class Stream:
    """An answer whose body is read as it arrives."""

    _response: aiohttp.ClientResponse

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, found by their names in any case."""
        return self._response.headers

    async def read(self) -> bytes:
        """
        Return the bytes that have arrived, decoded; none where the body has ended as it should.

        Raises:
            StreamBroken: It did not.
        """
        try:
            return await self._response.content.readany()
        except Exception as exc:  # noqa: BLE001  (decoders raise errors of their own)
            broken = StreamBroken(type(exc).__name__)
        raise broken


def _as_written(url: str) -> yarl.URL:
    """
    Return *url* as an address that aiohttp sends byte for byte, as signatures need it.

    The host alone is normalised, and what no request line can hold is quoted.
    """
    scheme, _, rest = url.partition("://")
    at = next((place for place, char in enumerate(rest) if char in "/?#"), len(rest))
    authority = yarl.URL(f"{scheme}://{rest[:at]}").raw_authority
    return yarl.URL(f"{scheme}://{authority}{quoted(rest[at:])}", encoded=True)


def quoted(text: str) -> str:
    """Return *text* with only those characters quoted that no request line can hold."""
    return _UNSENDABLE.sub(lambda found: quote(found[0].encode("utf-8", "surrogateescape")), text)


_UNSENDABLE: Final = re.compile(r"[^!-~]+")


def closed() -> UsageError:
    """Give the error for a call on a client that someone has begun to close."""
    return usage_error(
        "client",
        "The client was closed in this event loop.",
        "Enter it again with `async with`, or make a new one; tasks are found by their ids.",
    )


def _check_open(session: aiohttp.ClientSession) -> None:
    if session.closed:
        raise usage_error(
            "session",
            "The client, or the session that it was given, is closed.",
            "Close it when all calls are done, and give the client an open session, or none.",
        )


def _open_session(*, fresh_connections: bool) -> aiohttp.ClientSession:
    # The number of connections is not limited here: a request that waits inside aiohttp for a
    # free one would use up its own timeout, and its fate would be a guess.
    connector = aiohttp.TCPConnector(limit=0, force_close=fresh_connections)
    if fresh_connections:
        # There is no public way to the bytes that cannot be parsed. Where this one is gone,
        # answers of that kind are in doubt without an id.
        loop = asyncio.get_running_loop()
        connector._factory = partial(_Recorder, loop=loop)  # type: ignore[assignment]  # noqa: SLF001
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


_ARRIVED: ContextVar[bytearray] = ContextVar("_ARRIVED")
"""What has arrived on the connection of the paid request that is being sent."""


class _Recorder(ResponseHandler):
    """Keeps the bytes that arrive, since aiohttp drops those that it cannot parse."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._arrived = _ARRIVED.get(bytearray())

    def data_received(self, data: bytes) -> None:
        if len(self._arrived) < MAX_ANSWER_BYTES:
            self._arrived += data
        super().data_received(data)


def unframed(arrived: bytes) -> bytes:
    """Return the body of an HTTP answer whose framing is broken: without heads and chunk sizes."""
    return _CHUNK_SIZE.sub(b"", _HEADS.sub(b"", arrived, 1))


_HEADS: Final = re.compile(rb"\A(?:HTTP/.*?\r?\n\r?\n)+", re.DOTALL)
_CHUNK_SIZE: Final = re.compile(rb"(?:\A|\r\n)[0-9A-Fa-f]{1,8}[ \t]*(?:;[^\r\n]*)?\r\n")


async def _read_body(response: aiohttp.ClientResponse, body: bytearray) -> bool:
    """Read the answer into *body*, and return whether it was longer than is read."""
    # What is there whole, as answers mostly are, is not asked whether there is more of it.
    while not response.content.at_eof():
        body += await response.content.readany()
        if len(body) > MAX_ANSWER_BYTES:
            response.close()
            del body[MAX_CUT_BYTES:]
            return True
    return False


def translate(exc: Exception, request: Request, task_id: str | None = None) -> RunwayError:
    """
    Give our error for one of aiohttp's, with what is known about the request's fate.

    The *task_id* is that of the task which the broken answer to a paid request names.
    """
    paid = request.endpoint.replay is Replay.PAID
    if _never_arrived(exc):
        return NotSent(
            f"The gateway could not be reached ({type(exc).__name__}).",
            "Nothing was charged.",
            "Check the network and base_url, then call again.",
            request.task_id,
            None,
            Fate.UNSENT,
        )
    money = "It may have been accepted and charged." if paid else "Nothing was charged."
    return NoReply(
        f"No whole answer came back ({type(exc).__name__}).",
        money,
        "Look again later.",
        task_id or request.task_id,
        None,
        Fate.UNKNOWN,
    )


def _never_arrived(exc: Exception) -> bool:
    # ConnectionTimeoutError is a TimeoutError like the one for a late answer, and only its class
    # tells that the connection never stood. A bare TimeoutError says nothing about how far it got.
    return isinstance(
        exc, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL
    )


def _scrubbed(exc: Exception, secrets: tuple[str, ...]) -> BaseException:
    """Give *exc*, or where its text tells too much, a stand-in that names its class."""
    text = str(exc)
    if redact(text, secrets) == text:
        return exc
    return TransportCause(f"{type(exc).__name__}: {redact(text, secrets)}")


class TransportCause(Exception):
    """What the HTTP library said, without the addresses that it said it about."""
