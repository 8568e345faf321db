"""
The only user of `aiohttp.ClientSession`: ownership, timeouts, aiohttp's errors given a `Fate`.

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
from types import TracebackType
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import attrs
import yarl
from aiohttp.client_proto import ResponseHandler

from fuhu_runway._clock import Clock
from fuhu_runway._redact import redact
from fuhu_runway._urls import is_web_address
from fuhu_runway._wire.decode import salvaged
from fuhu_runway._wire.encode import Reply, Request
from fuhu_runway._wire.tables import Replay
from fuhu_runway.errors import (
    Fate,
    NoReply,
    NotSent,
    RateLimited,
    RunwayError,
    UsageError,
    drop_frames,
)
from fuhu_runway.hooks import Hooks
from fuhu_runway.models import RetryPolicy, Timeouts, usage_error

from .limiter import RateLimiter
from .retry import repeat

T = TypeVar("T")

MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
"""The largest answer that is read; a task that quotes a picture as data may take some MB."""
MAX_CUT_BYTES: Final = 64 * 1024
"""How much is kept of a larger one, in bytes, since it may name a task."""

MAX_MEDIA_HEADER_BYTES: Final = 64 * 1024
"""The longest header of a clip's host; CDNs send policies of more than aiohttp's own 8 KB."""


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
        limiter: RateLimiter,
        hooks: Hooks,
        clock: Clock,
    ) -> None:
        self._borrowed = session
        trusted = _trusted()
        self._free = session or _open_session(trusted=trusted, fresh_connections=False)
        self._paid = session or _open_session(trusted=trusted, fresh_connections=True)
        #: Origin to the proxy for it, since reading the environment costs more than a poll may.
        self._proxies: dict[str, str | None] = {}
        self._timeouts = timeouts
        # With `connect`, a proxy that takes the connection and never opens a tunnel is given up
        # too. In a borrowed session it would count the wait for a free connection.
        self._connecting: dict[str, Any] = {
            "sock_connect": timeouts.connect,
            "connect": timeouts.connect if session is None else None,
        }
        self._paid_timeout = aiohttp.ClientTimeout(
            total=timeouts.total, sock_read=timeouts.read, **self._connecting
        )
        # A free request has its answer in no time or is asked again, and a limit for each read
        # would cost a timer for each read.
        self._free_timeout = aiohttp.ClientTimeout(total=timeouts.read, **self._connecting)
        self._retry = retry
        self._limiter = limiter
        self._hooks = hooks
        self._clock = clock
        self._in_flight: set[asyncio.Task[Any]] = set()
        self._scopes: set[asyncio.Timeout] = set()
        self._is_stopped = False
        #: Called with each reply; must not raise, since a reply may name a paid task.
        self.observer: Callable[[Reply], object] | None = None

    async def call(self, request: Request, read: Callable[[Reply], T]) -> T:
        """
        Send a free request, retrying while that is safe, and return the parsed answer.

        Raises:
            NotSent: The gateway could not be reached.
            NoReply: It got no answer, however often it was sent.
            RunwayError: Whatever *read* raises.
        """
        return await repeat(
            lambda: self.once(request, read),
            request.endpoint,
            self._retry,
            self.pause,
            self._hooks,
            task_id=request.task_id,
        )

    async def pause(self, delay: float) -> None:
        """Sleep before a retry. Closing ends the sleep and the retry, with a `UsageError`."""
        async with self.until_closed():
            await self._clock.sleep(delay)

    async def once(self, request: Request, read: Callable[[Reply], T]) -> T:
        """
        Send a free request once, when the limits allow it, and return the parsed answer.

        Raises:
            UsageError: The transport was closed meanwhile.
        """
        async with self.until_closed(), self._limiter.slot() as sent_at:
            return self._parsed(read, await self.send(request), sent_at)

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
        """Start a paid exchange as a task, which closing waits for."""
        flight = asyncio.create_task(exchange)
        self._in_flight.add(flight)
        flight.add_done_callback(self._in_flight.discard)
        return flight

    async def in_turn(self, request: Request, read: Callable[[Reply], T], sent_at: float) -> T:
        """Send once, in the slot taken at the instant *sent_at*, and return the parsed answer."""
        return self._parsed(read, await self.send(request), sent_at)

    def _check_running(self) -> None:
        if self._is_stopped:
            raise closed()

    def _parsed(self, read: Callable[[Reply], T], reply: Reply, sent_at: float) -> T:
        """Read an answer, and record whether it was a refusal for being too fast."""
        try:
            answer = read(reply)
        except RunwayError as error:
            failure = error
        else:
            self._limiter.answered(sent_at)
            return answer
        if isinstance(failure, RateLimited):
            self._limiter.refused(sent_at, failure.retry_after)
        else:
            self._limiter.answered(sent_at)
        # The frames of reading hold the answer, which may quote anything.
        raise drop_frames(failure)

    async def send(self, request: Request) -> Reply:
        """
        Return the answer to exactly one sending.

        Raises:
            NotSent: The request provably did not arrive.
            NoReply: It may have arrived, and no whole answer came back.
            UsageError: The proxy that the environment names cannot be used; nothing was sent.
        """
        answer = await self._exchange(request)
        if isinstance(answer, Reply):
            if self.observer is not None:
                self.observer(answer)
            return answer
        # Here, where no variable holds the response, and outside the clause that caught the
        # library's own error, whose text and frames may quote the address, the key and the body.
        failure, cause = answer
        raise failure from cause

    async def _exchange(self, request: Request) -> "Reply | tuple[RunwayError, TransportCause]":
        """Return the answer, or what to raise in its place and what that comes from."""
        is_paid = request.endpoint.replay is Replay.PAID
        session = self._paid if is_paid else self._free
        _check_open(session)
        proxy = self._proxy(request.url)
        sent = None if request.body is None else Body(request.body)
        body, arrived = bytearray(), bytearray()
        if is_paid:
            _ARRIVED.set(arrived)
        try:
            async with session.request(
                request.endpoint.verb,
                request.url,
                data=sent,
                headers=request.headers,
                timeout=self._paid_timeout if is_paid else self._free_timeout,
                proxy=proxy,
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
        # Any exception: a resolver, a codec or a middleware of a borrowed session raises what it
        # likes, and what became of the request does not depend on its class.
        except Exception as exc:  # noqa: BLE001
            written = sent.is_begun if sent is not None else not isinstance(exc, NEVER_ARRIVED)
            task_id = salvaged(request, unframed(bytes(arrived)) or bytes(body))
            failure = translate(exc, request, arrived=written, proxy=proxy, task_id=task_id)
            return failure, cause_of(exc, request.secrets)

    def _proxy(self, url: str) -> str | None:
        """Return the proxy for *url*; a borrowed session brings its own, or none."""
        if self._borrowed is not None:
            return None
        origin = "/".join(url.split("/", 3)[:3])
        if origin not in self._proxies:
            self._proxies[origin] = proxy_from_environment(origin)
        return self._proxies[origin]

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
            total=None, sock_read=self._timeouts.read, **self._connecting
        )
        _check_open(self._free)
        try:
            response = await self._free.get(
                _as_written(url),
                headers={**headers, "Accept-Encoding": "identity"},
                timeout=timeout,
                proxy=self._proxy(url),
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

    def until_closed(self) -> "UntilClosed":
        """Return a block that ends with a `UsageError` when this transport is closed."""
        self._check_running()
        return UntilClosed(self._scopes)

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

        A paid request in flight is waited for, since its answer holds the id of a paid task.
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
class UntilClosed:
    """
    A block that closing ends, whatever it waits for.

    No `asynccontextmanager`: the loop registers asynchronous generators, at each request.
    """

    _scopes: set[asyncio.Timeout]
    _scope: asyncio.Timeout = attrs.field(init=False, factory=lambda: asyncio.timeout(None))

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()
        self._scopes.add(self._scope)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._scopes.discard(self._scope)
        try:
            await self._scope.__aexit__(exc_type, exc, traceback)
        except TimeoutError:
            failure = closed()
        else:
            return
        # Outside of the clause, since what was interrupted says nothing more.
        raise failure


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
    target = quoted(rest[at:].partition("#")[0])
    # All of it as the path: yarl drops the "?" before an empty query.
    path = target if target.startswith("/") else f"/{target}"
    return yarl.URL.build(scheme=scheme.lower(), authority=authority, path=path, encoded=True)


def quoted(text: str) -> str:
    """Return *text* with only those characters quoted that no request line can hold."""
    return _UNSENDABLE.sub(lambda found: quote(found[0].encode("utf-8", "surrogateescape")), text)


_UNSENDABLE: Final = re.compile(r"[^!-~]+")


CLIENT: Final = "client"
"""The field of the error for a closed client."""


def closed() -> UsageError:
    """Return the error for a call on a client that someone has begun to close."""
    return usage_error(
        CLIENT,
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


MAX_HEADER_BYTES: Final = 64 * 1024
"""The longest header of an answer that is read; gateways' security policies pass 8 KB."""
MAX_HEADERS: Final = 256


def _trusted() -> ssl.SSLContext | bool:
    """Return the context that knows SSL_CERT_FILE and SSL_CERT_DIR, else True for aiohttp's own."""
    # aiohttp makes its own when it is imported, so that it lacks what a program sets after that.
    named = [os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")]
    return _context_of(*named) if any(named) else True


@functools.lru_cache(maxsize=1)  # reading all of a machine's authorities takes some 20 ms
def _context_of(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _open_session(
    *, trusted: ssl.SSLContext | bool, fresh_connections: bool
) -> aiohttp.ClientSession:
    # Older versions of aiohttp do not limit the number of headers, and have no such argument.
    has_limit = "max_headers" in (aiohttp.ClientSession.__init__.__kwdefaults__ or {})
    number: dict[str, Any] = {"max_headers": MAX_HEADERS} if has_limit else {}
    connector = aiohttp.TCPConnector(
        # The number of connections is not limited here: a request that waits inside aiohttp for a
        # free one would use up its own timeout.
        limit=0,
        force_close=fresh_connections,
        ssl=trusted,
    )
    if fresh_connections:
        # There is no public way to the bytes that cannot be parsed. Where this one is gone,
        # answers of that kind are in doubt without an id.
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


def proxy_from_environment(url: str) -> str | None:
    """
    Return the proxy that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY name for *url*.

    This machine itself is always reached directly.

    Raises:
        UsageError: It is no http(s) proxy.
    """
    if not is_web_address(url):
        return None  # aiohttp says what is wrong with it
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or _is_loopback(host) or proxy_bypass(host) or proxy_bypass(parts.netloc):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if is_web_address(proxy):
        return proxy
    del proxy, proxies, parts, url  # no traceback shows a password
    raise usage_error(
        "proxy",
        "The proxy that the environment names for the gateway is no http(s) address.",
        "Set HTTPS_PROXY to one such as http://proxy.example:3128, or name the gateway's host in"
        " NO_PROXY; for a SOCKS proxy, give the client a session of your own.",
    )


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f".{host}".rstrip(".").endswith(".localhost")
    return address.is_loopback or address.is_unspecified


class Body(aiohttp.payload.Payload):
    """
    A request's body that knows whether aiohttp has begun to write it.

    As long as it has not, the gateway cannot have accepted the request, whatever went wrong.
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
        """Write the body, once the connection stands."""
        self.is_begun = True
        await writer.write(self._value)


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


NEVER_ARRIVED: Final = (
    aiohttp.ClientConnectorError,
    # A TimeoutError like the one for a late answer: only its class tells that there was no
    # connection, also where a borrowed session has none free.
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    UnicodeError,
)
"""What is raised before anything is written, for requests that have no `Body` to tell."""


def translate(
    exc: Exception,
    request: Request,
    *,
    arrived: bool,
    proxy: str | None = None,
    task_id: str | None = None,
) -> RunwayError:
    """
    Return our error for one of aiohttp's; *arrived* is whether the gateway may have it all.

    The *task_id* is that of the task which the broken answer to a paid request names.
    """
    paid = request.endpoint.replay is Replay.PAID
    if not arrived:
        happened, advice = explain(exc, proxy)
        return NotSent(happened, "Nothing was charged.", advice, request.task_id, None, Fate.UNSENT)
    money = "It may have been accepted and charged." if paid else "Nothing was charged."
    return NoReply(
        f"No whole answer came back ({type(exc).__name__}).",
        money,
        "Try again later.",
        task_id or request.task_id,
        None,
        Fate.UNKNOWN,
    )


def explain(exc: Exception, proxy: str | None) -> tuple[str, str]:
    """Return what kept a request from being sent, and what to do about it."""
    name = type(exc).__name__
    fault = getattr(exc, "certificate_error", None) or getattr(exc, "os_error", None)
    if isinstance(fault, ssl.SSLError):
        return _explain_tls(fault)
    if proxy is None:
        return (
            f"The gateway could not be reached ({name}).",
            "Check the network and base_url, then call again.",
        )
    host = redact(urlsplit(proxy).hostname or "")
    if isinstance(exc, aiohttp.ClientHttpProxyError):
        return (
            f"The proxy {host} refused the connection with status {exc.status}.",
            "Check the user and password in HTTPS_PROXY."
            if exc.status == 407
            else "Ask its operator, or name the gateway's host in NO_PROXY, then call again.",
        )
    return (
        f"The gateway could not be reached through the proxy {host} ({name}).",
        "Check HTTPS_PROXY, or name the gateway's host in NO_PROXY, then call again.",
    )


_WRONG_HOST: Final = frozenset({62, 64})
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
_WRONG_TIME: Final = frozenset({9, 10})
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


def _explain_tls(fault: ssl.SSLError) -> tuple[str, str]:
    code = getattr(fault, "verify_code", None)
    if code in _WRONG_HOST:
        return (
            "The TLS certificate is for another host.",
            "Check the host in base_url; a proxy or a captive portal may have answered.",
        )
    if code in _WRONG_TIME:
        return (
            "The TLS certificate has expired or is not valid yet.",
            "Check the clock of this machine; otherwise the server's operator has to renew it.",
        )
    if code is not None:
        return (
            f"The TLS certificate is not trusted ({getattr(fault, 'verify_message', '')}).",
            "If it comes from an authority of your own, name its file in SSL_CERT_FILE.",
        )
    return (
        f"The TLS handshake failed ({fault.reason or type(fault).__name__}).",
        "Check scheme and port of base_url: there may be no TLS, or another version of it.",
    )


def cause_of(exc: Exception, secrets: tuple[str, ...]) -> "TransportCause":
    """
    Return what *exc* says, in place of itself.

    Its text may quote addresses, and its frames hold the key and the body.
    """
    return TransportCause(f"{type(exc).__name__}: {redact(str(exc), secrets)}")


class TransportCause(Exception):
    """What the HTTP library said, without the addresses that it said it about."""
