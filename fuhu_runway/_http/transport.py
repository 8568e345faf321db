"""
Send requests over aiohttp; the only user of `aiohttp.ClientSession`.

`send` is exactly one exchange; `call` is `send` with the rate limiter and retries. One transport
belongs to one event loop.
"""

import asyncio
import functools
import ipaddress
import os
import re
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import attrs
import yarl
from aiohttp.client_proto import ResponseHandler

from fuhu_runway._clock import Clock, LoopClock
from fuhu_runway._redact import redact
from fuhu_runway._urls import is_web_address
from fuhu_runway._wire.decode import salvaged
from fuhu_runway._wire.encode import Reply, Request
from fuhu_runway._wire.tables import FILES, Replay
from fuhu_runway.errors import (
    Fate,
    RateLimited,
    RunwayError,
    Unauthorized,
    UsageError,
    drop_frames,
)
from fuhu_runway.hooks import Hooks
from fuhu_runway.models import RetryPolicy, Timeouts, usage_error

from .deadlines import Deadlines
from .failures import NEVER_ARRIVED, TransportCause, failure_of
from .limiter import RateLimiter
from .retry import with_retries

T = TypeVar("T")

MAX_RESPONSE_BYTES: Final = 8 * 1024 * 1024
"""The largest response that is read, in bytes; a task that quotes a picture may have some MB."""
MAX_CUT_BYTES: Final = 64 * 1024
"""How much of a larger response is kept, in bytes, since it may name a task."""
MAX_HEADER_BYTES: Final = 64 * 1024
"""The longest header that is read, in bytes; security policies exceed aiohttp's own 8 KB."""
MAX_HEADERS: Final = 256

CLIENT: Final = "client"
"""The field of the error for a closed client."""


class Transport:
    """
    Send requests and return responses, over sessions that it owns or one that it borrows.

    Paid requests use fresh connections: on a kept one that the gateway has just closed, a request
    can be lost, and nothing shows whether it was read.
    """

    def __init__(
        self,
        *,
        session: aiohttp.ClientSession | None,
        timeouts: Timeouts,
        retry: RetryPolicy,
        limiter: RateLimiter,
        hooks: Hooks,
        clock: Clock,
    ) -> None:
        self._borrowed = session
        self._free = session or _open_session(fresh_connections=False)
        self._paid = session or _open_session(fresh_connections=True)
        #: Origin to the proxy for it, since reading the environment costs more than a poll may.
        self._proxies: dict[str, str | None] = {}
        self._timeouts = timeouts
        # `connect` covers a proxy that accepts the connection and never opens a tunnel. In a
        # borrowed session it would count the wait for a free connection.
        timeout = functools.partial(
            aiohttp.ClientTimeout,
            sock_connect=timeouts.connect,
            connect=timeouts.connect if session is None else None,
        )
        self._paid_timeout = timeout(total=timeouts.total, sock_read=timeouts.read)
        # A free request can be sent again, so one limit for the whole request is enough.
        self._free_timeout = timeout(total=None)
        # On the loop's own clock, like aiohttp's timeouts.
        self._deadlines = Deadlines(timeouts.read, LoopClock())
        # A download may take long, so only its head and each pause have a limit.
        self._stream_timeout = timeout(total=None, sock_read=timeouts.read)
        self._retry = retry
        self._limiter = limiter
        self._hooks = hooks
        self._clock = clock
        self._in_flight: set[asyncio.Task[Any]] = set()
        self._scopes: set[asyncio.Timeout] = set()
        self._is_stopped = False
        #: Whether the gateway has accepted the key.
        self._is_key_good = False
        #: Called with each reply; must not raise, since a reply may name a paid task.
        self.observer: Callable[[Reply], object] | None = None

    async def call(self, request: Request, read: Callable[[Reply], T]) -> T:
        """
        Send a free request, retrying while that is safe, and return the parsed response.

        Raises:
            NotSent: The gateway could not be reached.
            NoReply: No attempt got a response.
            RunwayError: As raised by *read*.
        """
        return await with_retries(
            lambda: self.once(request, read),
            request.endpoint,
            self._retry,
            self.pause,
            self._hooks,
            task_id=request.task_id,
        )

    async def call_unpaced(self, request: Request, read: Callable[[Reply], T]) -> T:
        """
        Send a free request that has a rate limit of its own at the gateway; see `call`.

        It does not wait for the rate limiter, and a refusal does not change the pace.
        """

        async def attempt() -> T:
            async with self.until_closed():
                return await self.send_and_read(request, read, None)

        return await with_retries(attempt, request.endpoint, self._retry, self.pause, self._hooks)

    async def pause(self, delay: float) -> None:
        """Sleep before a retry. Closing ends the sleep and the retry, with a `UsageError`."""
        async with self.until_closed():
            await self._clock.sleep(delay)

    async def once(self, request: Request, read: Callable[[Reply], T]) -> T:
        """
        Send a free request once, when the limits allow it, and return the parsed response.

        Raises:
            UsageError: The transport was closed meanwhile.
        """
        async with self.until_closed(), self._limiter.slot() as sent_at:
            return await self.send_and_read(request, read, sent_at)

    @asynccontextmanager
    async def paid_slot(self) -> AsyncIterator[float]:
        """
        Wait until the limits allow a paid request, and yield the instant at which it is sent.

        Raises:
            UsageError: The transport was closed meanwhile.
        """
        self._check_running()
        async with self._limiter.slot() as sent_at:
            self._check_running()
            yield sent_at

    def start_paid(self, exchange: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a paid exchange as a task; closing waits for it."""
        flight = asyncio.create_task(exchange)
        self._in_flight.add(flight)
        flight.add_done_callback(self._in_flight.discard)
        return flight

    async def send_and_read(
        self, request: Request, read: Callable[[Reply], T], sent_at: float | None
    ) -> T:
        """
        Send once, in the slot taken at the instant *sent_at*, and return the parsed response.

        The limiter learns from the response whether the request came too fast, unless *sent_at* is
        None.
        """
        reply = await self.send(request)
        result: T | RunwayError
        try:
            result = read(reply)
        except RunwayError as error:
            result = error
        if sent_at is not None and isinstance(result, RateLimited):
            self._limiter.refused(sent_at, result.retry_after)
        elif sent_at is not None:
            self._limiter.answered(sent_at)
        if not isinstance(result, RunwayError):
            # Only requests with a turn of the limiter carry the key.
            self._is_key_good |= sent_at is not None
            return result
        if isinstance(result, Unauthorized) and result.status == 401 and self._is_key_good:
            # Some gateways refuse a good key now and then (QuantumNous/new-api, issue 3302).
            result.fate = Fate.REFUSED
        # The frames of parsing hold the response, which may quote anything.
        del reply
        raise drop_frames(result)

    async def send(self, request: Request) -> Reply:
        """
        Send the request exactly once, and return the response.

        Raises:
            NotSent: The request provably did not arrive.
            NoReply: It may have arrived, and no complete response came back.
            UsageError: The proxy that the environment names cannot be used; nothing was sent.
        """
        outcome = await self._exchange(request)
        if isinstance(outcome, Reply):
            if self.observer is not None:
                self.observer(outcome)
            return outcome
        # Here no variable holds the response, and this is outside the clause that caught the
        # library's own error, whose text and frames may quote the address, the key and the body.
        failure, cause = outcome
        raise failure from cause

    async def _exchange(self, request: Request) -> "Reply | tuple[RunwayError, TransportCause]":
        """Return the response, or the error to raise and its cause."""
        is_paid = request.endpoint.replay is Replay.PAID
        is_long = is_paid or request.endpoint is FILES  # an upload takes as long as it is large
        session = self._paid if is_paid else self._free
        _check_open(session)
        proxy = self._proxy(request.url)
        sent = None if request.body is None else Body(request.body)
        body, arrived = bytearray(), bytearray()
        if is_paid:
            _ARRIVED.set(arrived)
        scope = asyncio.timeout(None)
        try:
            async with scope:
                if not is_long:
                    self._deadlines.add(scope)
                response = await session.request(
                    request.endpoint.verb,
                    request.url,
                    data=sent,
                    headers=request.headers,
                    timeout=self._paid_timeout if is_long else self._free_timeout,
                    proxy=proxy,
                    allow_redirects=False,
                    # A borrowed session may raise, and the gateway's own message would be lost.
                    raise_for_status=False,
                    # A wrong Content-Encoding would lose the response; compressed bytes show it.
                    auto_decompress=False,
                )
                try:
                    # Usually the whole body arrives at once, and no further read is needed.
                    while not response.content.at_eof() and len(body) <= MAX_RESPONSE_BYTES:
                        body += await response.content.readany()
                finally:
                    # The response closes itself at the end of its body. `async with` would close
                    # it again, which costs CPU at each poll.
                    if not response.closed:
                        response.close()
            is_cut = len(body) > MAX_RESPONSE_BYTES
            if is_cut:
                del body[MAX_CUT_BYTES:]
            # aiohttp drops the body of a status that should have none.
            content = bytes(body) or _unframed(arrived)
            return Reply(
                request, response.status, response.headers, content, is_cut, self._clock.wall()
            )
        # Any exception: a resolver, a codec or a middleware of a borrowed session may raise
        # anything, and what became of the request does not depend on its class.
        except Exception as exc:  # noqa: BLE001
            written = sent.is_begun if sent is not None else not isinstance(exc, NEVER_ARRIVED)
            task_id = salvaged(request, _unframed(arrived) or bytes(body)) or request.task_id
            failure = failure_of(exc, proxy, task_id, is_written=written, is_paid=is_paid)
            # Its text may quote addresses, and its frames hold the key and the body.
            said = f"{type(exc).__name__}: {redact(str(exc), request.secrets)}"
            return failure, TransportCause(said)
        finally:
            self._deadlines.discard(scope)
            if is_paid:
                # Otherwise the contexts copied from this one would keep the response in memory.
                _ARRIVED.set(bytearray())

    def _proxy(self, url: str) -> str | None:
        """Return the proxy for *url*; a borrowed session has its own settings."""
        if self._borrowed is not None:
            return None
        origin = "/".join(url.split("/", 3)[:3])
        if origin not in self._proxies:
            self._proxies[origin] = proxy_from_environment(origin)
        return self._proxies[origin]

    @asynccontextmanager
    async def stream(self, url: str, headers: Mapping[str, str]) -> AsyncIterator["Stream"]:
        """
        Send a GET to *url* exactly as written, and yield the response; redirects are not followed.

        Raises:
            StreamBroken: No response came.
        """
        _check_open(self._free)
        try:
            # A head may come byte by byte, and interim responses may come without end.
            async with asyncio.timeout(self._timeouts.connect + self._timeouts.read):
                response = await self._free.get(
                    _as_written(url),
                    headers={**headers, "Accept-Encoding": "identity"},
                    timeout=self._stream_timeout,
                    proxy=self._proxy(url),
                    allow_redirects=False,
                    raise_for_status=False,
                    max_line_size=MAX_HEADER_BYTES,
                    max_field_size=MAX_HEADER_BYTES,
                )
        except Exception as exc:  # noqa: BLE001  (odd addresses raise errors of many classes)
            sendable = not isinstance(exc, aiohttp.InvalidURL)
            passes = sendable and isinstance(exc, aiohttp.ClientError | OSError)
            broken = StreamBroken(type(exc).__name__, passes)
        else:
            async with response:
                yield Stream(response)
            return
        # Outside the clause: the HTTP library's error may quote the signed address.
        raise broken

    @asynccontextmanager
    async def until_closed(self) -> AsyncIterator[None]:
        """Run a block that ends with a `UsageError` when this transport is closed."""
        self._check_running()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._scopes.add(scope)
                yield
        except TimeoutError:
            if not scope.expired():
                raise
        else:
            return
        finally:
            self._scopes.discard(scope)
        # Outside the clause: the error that was interrupted adds nothing.
        raise closed()

    def _check_running(self) -> None:
        if self._is_stopped:
            raise closed()

    def stop(self) -> None:
        """End every free request and download, and refuse every paid one that is not in flight."""
        self._is_stopped = True
        self._limiter.close(closed)
        now = asyncio.get_running_loop().time()
        while self._scopes:
            # aiohttp wakes no reader when its session is closed, so they would never end.
            self._scopes.pop().reschedule(now)

    async def aclose(self) -> None:
        """
        Close what this transport opened.

        Waits for a paid request in flight, since its response holds the id of a paid task.
        """
        self.stop()
        try:
            if self._in_flight:
                await asyncio.wait(self._in_flight, timeout=self._timeouts.total)
        finally:
            if self._borrowed is None:
                await self._free.close()
                await self._paid.close()


@attrs.define(eq=False)
class StreamBroken(Exception):
    """A stream broke off, or could not be opened."""

    #: The class of the HTTP library's error; its text may quote the signed address.
    name: str
    #: Whether another attempt may succeed; to some URLs no request can ever be sent.
    passes: bool = True


@attrs.frozen(eq=False)
class Stream:
    """A response whose body is read as it arrives."""

    _response: aiohttp.ClientResponse

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; names match in any case."""
        return self._response.headers

    async def read(self) -> bytes:
        """
        Return the bytes that have arrived, decoded; b"" at the regular end of the body.

        Raises:
            StreamBroken: The body ended too early, or cannot be decoded.
        """
        try:
            return await self._response.content.readany()
        except Exception as exc:  # noqa: BLE001  (decoders raise errors of their own)
            broken = StreamBroken(type(exc).__name__)
        raise broken


def _as_written(url: str) -> yarl.URL:
    """
    Return *url* so that aiohttp sends it byte for byte, as signatures require.

    Only the host is normalised, and only characters that no request line can hold are quoted.
    """
    scheme, _, rest = url.partition("://")
    at = next((place for place, char in enumerate(rest) if char in "/?#"), len(rest))
    authority = yarl.URL(f"{scheme}://{rest[:at]}").raw_authority
    target = quoted(rest[at:].partition("#")[0])
    # All of it as the path: yarl drops the "?" before an empty query.
    path = target if target.startswith("/") else f"/{target}"
    return yarl.URL.build(scheme=scheme.lower(), authority=authority, path=path, encoded=True)


def quoted(text: str) -> str:
    """Return *text* with only those characters quoted that no request line can hold."""
    return re.sub(
        r"[^!-~]+", lambda found: quote(found[0].encode("utf-8", "surrogateescape")), text
    )


def closed() -> UsageError:
    """Return the error for a call on a client that is closed or closing."""
    return usage_error(
        CLIENT,
        "The client was closed in this event loop.",
        "Enter it again with `async with`, or make a new one; tasks are found by their ids.",
    )


def _check_open(session: aiohttp.ClientSession) -> None:
    if session.closed:
        raise usage_error(
            "session",
            "The client, or the session passed to it, is closed.",
            "Close it after the last call, and pass an open session to the client, or none.",
        )


def _open_session(*, fresh_connections: bool) -> aiohttp.ClientSession:
    # Older versions of aiohttp do not limit the number of headers, and have no such argument.
    has_limit = "max_headers" in (aiohttp.ClientSession.__init__.__kwdefaults__ or {})
    number: dict[str, Any] = {"max_headers": MAX_HEADERS} if has_limit else {}
    # aiohttp makes its own context at import, and ignores what a program sets later.
    named = [os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")]
    connector = aiohttp.TCPConnector(
        # The number of connections is not limited here: a request that waits inside aiohttp for a
        # free one would use up its own timeout.
        limit=0,
        force_close=fresh_connections,
        ssl=_trusting(*named) if any(named) else True,
    )
    if fresh_connections:
        # There is no public way to bytes that cannot be parsed. If this one is removed, responses
        # of that kind are in doubt without an id.
        factory = functools.partial(_Recorder, loop=asyncio.get_running_loop())
        connector._factory = factory  # type: ignore[assignment]  # noqa: SLF001
    # Not trust_env, which would read passwords from .netrc as well.
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        **number,
    )


@functools.lru_cache(maxsize=1)  # reading all of a machine's authorities takes some 20 ms
def _trusting(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def proxy_from_environment(url: str) -> str | None:
    """
    Return the proxy that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY name for *url*.

    Connections to this machine never use a proxy.

    Raises:
        UsageError: It is not an http(s) proxy.
    """
    if not is_web_address(url):
        return None  # aiohttp says what is wrong with it
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        address = ipaddress.ip_address(host)
        is_local = address.is_loopback or address.is_unspecified
    except ValueError:
        is_local = f".{host}".rstrip(".").endswith(".localhost")
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or is_local or proxy_bypass(host) or proxy_bypass(parts.netloc):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if is_web_address(proxy):
        return proxy
    del proxy, proxies, parts, url  # no traceback shows a password
    raise usage_error(
        "proxy",
        "The proxy for the gateway in the environment must be an http(s) URL.",
        "Set HTTPS_PROXY to a URL like http://proxy.example:3128, or add the gateway's host to"
        " NO_PROXY; for a SOCKS proxy, pass a session of your own to the client.",
    )


class Body(aiohttp.payload.Payload):
    """
    A request body that records whether aiohttp has begun to write it.

    Until then the gateway cannot have accepted the request, no matter what went wrong.
    """

    _value: bytes
    _autoclose = True  # there is nothing to close

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._size = len(content)
        self.is_begun = False

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text; a middleware of a borrowed session may sign it."""
        return self._value.decode(encoding, errors)

    async def write(self, writer: aiohttp.abc.AbstractStreamWriter) -> None:
        """Write the body to an open connection."""
        self.is_begun = True
        await writer.write(self._value)


_ARRIVED: ContextVar[bytearray] = ContextVar("_ARRIVED")
"""The bytes that have arrived on the connection of the paid request that is being sent."""


class _Recorder(ResponseHandler):
    """Keep the bytes that arrive, since aiohttp drops those that it cannot parse."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._arrived = _ARRIVED.get(bytearray())

    def data_received(self, data: bytes) -> None:
        if len(self._arrived) < MAX_RESPONSE_BYTES:
            self._arrived += data
        super().data_received(data)


_HEADS: Final = re.compile(rb"\A(?:HTTP/.*?\r?\n\r?\n)+", re.DOTALL)
_CHUNK_SIZE: Final = re.compile(rb"(?:\A|\r\n)[0-9A-Fa-f]{1,8}[ \t]*(?:;[^\r\n]*)?\r\n")


def _unframed(arrived: bytearray) -> bytes:
    """Return the body of a response whose framing is broken: without heads and chunk sizes."""
    return _CHUNK_SIZE.sub(b"", _HEADS.sub(b"", bytes(arrived), 1))
