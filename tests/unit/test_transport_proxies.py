"""Proxies from the environment, TLS, and what is known when either fails."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from support.clients import QUICK_RETRY
from support.clock import ManualClock
from support.proxies import name_proxies, tunnels
from support.secrets import in_frames, told
from support.servers import free_port, raw_server, reply, silent_server

from fuhu_runway._http.limiter import RateLimiter
from fuhu_runway._http.transport import StreamBroken, Transport, proxy_from_environment
from fuhu_runway._wire.encode import Request
from fuhu_runway._wire.tables import ENDPOINTS
from fuhu_runway.errors import Fate, NoReply, NotSent, UsageError
from fuhu_runway.hooks import Hooks
from fuhu_runway.models import Limits, Timeouts

KEY = "sk-marked-key"
PASSWORD = "marked-password"
SECRETS = [KEY, "marked-key", PASSWORD, "marked-prompt"]
#: A reserved name: without the proxy of the test, nothing answers there.
GATEWAY = "gateway.invalid"

Make = Callable[..., Transport]


@pytest.fixture
async def make(clock: ManualClock) -> AsyncIterator[Make]:
    """Return a maker of transports that are closed at the end."""
    async with AsyncExitStack() as stack:

        def build(
            session: aiohttp.ClientSession | None = None, timeouts: Timeouts | None = None
        ) -> Transport:
            transport = Transport(
                session=session,
                timeouts=timeouts or Timeouts(),
                retry=QUICK_RETRY,
                limiter=RateLimiter(Limits(), clock, Hooks()),
                hooks=Hooks(),
                clock=clock,
            )
            stack.push_async_callback(transport.aclose)
            return transport

        yield build


def paid(url: str) -> Request:
    """Return a request that costs points."""
    headers = {"Authorization": f"Bearer {KEY}"}
    body = b'{"prompt": "marked-prompt"}'
    return Request(ENDPOINTS["text_to_video"], url, headers, body, (KEY, "marked-prompt"))


def looks(url: str) -> Request:
    """Return a request without a body."""
    headers = {"Authorization": f"Bearer {KEY}"}
    return Request(ENDPOINTS["official_task"], url, headers, None, (KEY,), "t-1")


# Which proxy


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, "https://a.example", None),
        ({"HTTPS_PROXY": "http://p.example:1"}, "https://a.example", "http://p.example:1"),
        ({"https_proxy": "http://p.example:1"}, "https://a.example", "http://p.example:1"),
        ({"HTTPS_PROXY": "http://p.example:1"}, "http://a.example", None),
        ({"HTTP_PROXY": "http://p.example:1"}, "http://a.example", "http://p.example:1"),
        ({"ALL_PROXY": "http://p.example:1"}, "https://a.example", "http://p.example:1"),
        ({"ALL_PROXY": "http://x", "HTTP_PROXY": "http://p"}, "http://a.example", "http://p"),
        ({"HTTPS_PROXY": "p.example:3128"}, "https://a.example", "http://p.example:3128"),
        ({"HTTPS_PROXY": "https://p.example"}, "https://a.example", "https://p.example"),
        ({"HTTPS_PROXY": "http://u:s@p"}, "https://a.example", "http://u:s@p"),
        ({"HTTPS_PROXY": ""}, "https://a.example", None),
        # a CGI script's HTTP_PROXY is a header of the caller's
        ({"HTTP_PROXY": "http://p", "REQUEST_METHOD": "GET"}, "http://a.example", None),
        # exceptions
        ({"ALL_PROXY": "http://p", "NO_PROXY": "a.example"}, "https://a.example", None),
        ({"ALL_PROXY": "http://p", "NO_PROXY": ".example"}, "https://a.example", None),
        ({"ALL_PROXY": "http://p", "no_proxy": "b, example"}, "https://a.example", None),
        ({"ALL_PROXY": "http://p", "NO_PROXY": "*"}, "https://a.example", None),
        ({"ALL_PROXY": "http://p", "NO_PROXY": "a.example:81"}, "http://a.example:81", None),
        ({"ALL_PROXY": "http://p", "NO_PROXY": "a.example:81"}, "http://a.example", "http://p"),
        ({"ALL_PROXY": "http://p", "NO_PROXY": "2001:db8::1"}, "http://[2001:db8::1]:80", None),
        # this machine
        ({"ALL_PROXY": "http://p"}, "http://127.0.0.1:8080", None),
        ({"ALL_PROXY": "http://p"}, "http://127.9.9.9", None),
        ({"ALL_PROXY": "http://p"}, "http://[::1]:80", None),
        ({"ALL_PROXY": "http://p"}, "http://0.0.0.0:80", None),
        ({"ALL_PROXY": "http://p"}, "http://LOCALHOST:80", None),
        ({"ALL_PROXY": "http://p"}, "http://sim.localhost.", None),
        ({"ALL_PROXY": "http://p"}, "http://localhost.example", "http://p"),
        # no address at all
        ({"ALL_PROXY": "http://p"}, "http://[", None),
    ],
)
def test_the_environment_names_the_proxy(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, proxy: str | None
) -> None:
    """By scheme, in both cases, with exceptions; this machine is always reached directly."""
    name_proxies(monkeypatch, **variables)
    assert proxy_from_environment(url) == proxy


@pytest.mark.parametrize(
    "proxy", [f"socks5://u:{PASSWORD}@p:1", f"http://u:{PASSWORD}@p:port", f"u:{PASSWORD} @p"]
)
async def test_a_proxy_that_cannot_be_used_is_named(
    make: Make, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    """A SOCKS proxy, or what is no address, is a usage error without the password in it."""
    name_proxies(monkeypatch, ALL_PROXY=proxy)
    with pytest.raises(UsageError, match="must be an http") as caught:
        await make().send(paid(f"https://{GATEWAY}/"))
    assert caught.value.field == "proxy"
    assert told(caught.value, SECRETS) == in_frames(caught.value, SECRETS) == []


# Requests through one


async def test_a_plain_request_goes_to_the_proxy_whole(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets the whole address and its own password; its answer is an answer like any other."""
    async with raw_server(reply(b"{}", "502 Bad Gateway")) as server:
        name_proxies(monkeypatch, HTTP_PROXY=f"http://user:p%40ss@127.0.0.1:{server.port}")
        transport = make()
        answer = await transport.send(paid(f"http://{GATEWAY}/pro"))
        assert answer.status == 502
        async with transport.stream(f"http://{GATEWAY}/c.mp4", {}) as response:
            assert response.status == 502
    posted, got = server.requests
    assert posted.startswith(f"POST http://{GATEWAY}/pro HTTP/1.1\r\n".encode())
    assert b"Proxy-Authorization: Basic dXNlcjpwQHNz\r\n" in posted
    assert got.startswith(f"GET http://{GATEWAY}/c.mp4 HTTP/1.1\r\n".encode())
    assert b"\r\nAuthorization" not in got


async def test_no_password_is_read_from_netrc(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither the gateway's host nor the proxy's gets what stands in the file of the user."""
    netrc = tmp_path / "netrc"
    netrc.write_text(f"default login u password {PASSWORD}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    async with raw_server(reply()) as server:
        name_proxies(monkeypatch, HTTP_PROXY=f"http://127.0.0.1:{server.port}")
        async with make().stream(f"http://{GATEWAY}/c.mp4", {}):
            pass
    assert b"uthorization" not in server.requests[0]


async def test_this_machine_is_reached_directly(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A simulator on loopback works where a proxy is named and NO_PROXY is not."""
    name_proxies(monkeypatch, ALL_PROXY=f"http://127.0.0.1:{free_port()}")
    async with raw_server(reply()) as server:
        assert (await make().send(paid(server.url))).status == 200


class ThisMachine(AbstractResolver):
    """Finds every host on this machine."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        """Hold nothing."""


async def test_a_borrowed_session_is_left_alone(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's proxy counts for sessions of ours only, so that a session avoids it."""
    connector = aiohttp.TCPConnector(resolver=ThisMachine())
    async with raw_server(reply()) as server, aiohttp.ClientSession(connector=connector) as session:
        name_proxies(monkeypatch, HTTP_PROXY=f"http://127.0.0.1:{free_port()}")
        answer = await make(session).send(paid(f"http://{GATEWAY}:{server.port}/"))
    assert answer.status == 200


# Trouble with one


@pytest.mark.parametrize(
    ("answer", "happened", "advice"),
    [
        (reply(status="407 Auth"), "refused the connection with status 407", "user and password"),
        (reply(status="403 No"), "refused the connection with status 403", "operator"),
        (reply(status="502 Bad"), "refused the connection with status 502", "operator"),
        (reply(status="999 Odd"), "refused the connection with status 999", "operator"),
        (b"SMTP ready\r\n\r\n", "could not be reached through the proxy", "HTTPS_PROXY"),
        (None, "could not be reached through the proxy", "HTTPS_PROXY"),
    ],
)
@pytest.mark.parametrize("kind", [paid, looks], ids=lambda kind: kind.__name__)
async def test_a_tunnel_that_is_refused_is_not_sent(
    *,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    kind: Callable[[str], Request],
    answer: bytes | None,
    happened: str,
    advice: str,
) -> None:
    """
    Whatever the proxy says to CONNECT, the gateway never saw the request.

    Of a request without a body that is known only where the proxy speaks HTTP.
    """
    is_http = answer is not None and answer.startswith(b"HTTP")
    async with raw_server(answer) as server:
        proxy = f"http://user:{PASSWORD}@localhost:{server.port}"
        name_proxies(monkeypatch, HTTPS_PROXY=proxy)
        with pytest.raises(NotSent if is_http or kind is paid else NoReply) as caught:
            await make().send(kind(f"https://{GATEWAY}/marked-path"))
        assert server.requests[0].startswith(b"CONNECT gateway.invalid:443 ")
        assert KEY.encode() not in server.requests[0]
    if isinstance(caught.value, NotSent):
        assert caught.value.fate is Fate.UNSENT
        assert "localhost" in caught.value.happened
        assert happened in caught.value.happened
        assert advice in caught.value.advice
    secrets = [*SECRETS, "marked-path", "127.0.0.1"]
    assert told(caught.value, secrets) == in_frames(caught.value, secrets) == []


async def test_a_proxy_that_is_not_there_is_named(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens on its port: the error names its host, without the password."""
    name_proxies(monkeypatch, HTTPS_PROXY=f"http://user:{PASSWORD}@localhost:{free_port()}")
    with pytest.raises(NotSent, match="through the proxy localhost") as caught:
        await make().send(paid(f"https://{GATEWAY}/"))
    assert told(caught.value, SECRETS) == in_frames(caught.value, SECRETS) == []


async def test_a_proxy_that_says_nothing_is_given_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tunnel counts to the connection, whose time is limited, also for a download."""
    async with silent_server() as port:
        name_proxies(monkeypatch, HTTPS_PROXY=f"http://localhost:{port}")
        transport = make(timeouts=Timeouts(connect=0.05))
        with pytest.raises(NotSent, match="ConnectionTimeoutError"):
            await transport.send(paid(f"https://{GATEWAY}/"))
        with pytest.raises(StreamBroken, match="ConnectionTimeoutError"):
            async with transport.stream(f"https://{GATEWAY}/", {}):
                pytest.fail("it opened")


async def test_a_full_pool_is_not_sent(make: Make) -> None:
    """A request that waits for a connection of a borrowed session until its time is over."""
    connector = aiohttp.TCPConnector(limit=1)
    async with raw_server(reply()) as server, aiohttp.ClientSession(connector=connector) as full:
        server.may_answer.clear()
        first = asyncio.ensure_future(make(full).send(paid(server.url)))
        await server.asked.wait()
        with pytest.raises(NotSent):
            await make(full, Timeouts(total=0.05)).send(paid(server.url))
        server.may_answer.set()
        assert (await first).status == 200
        assert len(server.requests) == 1


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Return a certificate authority that nobody trusts yet."""
    return trustme.CA()


def context_of(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """Return what a server needs to show *certificate*."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def trust(monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, folder: Path) -> None:
    """Name the authority in the environment."""
    file = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))


async def test_an_authority_of_ones_own_is_trusted(
    make: Make, monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, tmp_path: Path
) -> None:
    """The file that SSL_CERT_FILE names is heeded also if it is named after the import."""
    trust(monkeypatch, authority, tmp_path)
    context = context_of(authority.issue_cert("localhost"))
    async with raw_server(reply(), tls=context) as server:
        answer = await make().send(paid(f"https://localhost:{server.port}/"))
    assert answer.status == 200


@pytest.mark.skipif(shutil.which("openssl") is None, reason="names the files of such a folder")
async def test_a_folder_of_authorities_is_trusted(
    make: Make, monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, tmp_path: Path
) -> None:
    """The folder that SSL_CERT_DIR names is heeded; its files are named by their hashes."""
    pem = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(pem))
    command = ["openssl", "x509", "-hash", "-noout", "-in", str(pem)]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: ASYNC221
    pem.rename(tmp_path / f"{name}.0")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    context = context_of(authority.issue_cert("localhost"))
    async with raw_server(reply(), tls=context) as server:
        assert (await make().send(paid(f"https://localhost:{server.port}/"))).status == 200


async def test_a_tunnel_carries_the_request(
    make: Make, monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, tmp_path: Path
) -> None:
    """The proxy sees the host and its own password, and the gateway everything else."""
    trust(monkeypatch, authority, tmp_path)
    context = context_of(authority.issue_cert(GATEWAY))
    async with raw_server(reply(), tls=context) as server, tunnels(server.port) as proxy:
        name_proxies(monkeypatch, HTTPS_PROXY=f"http://user:pw@127.0.0.1:{proxy.port}")
        answer = await make().send(paid(f"https://{GATEWAY}/pro"))
    assert answer.status == 200
    assert server.requests[0].startswith(b"POST /pro HTTP/1.1\r\n")
    assert b"Proxy-Authorization" not in server.requests[0]
    assert b"Proxy-Authorization: Basic dXNlcjpwdw==\r\n" in proxy.heads[0]
    assert KEY.encode() not in proxy.heads[0]


YEAR_2000 = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("host", "expires", "trusted", "happened", "advice"),
    [
        ("localhost", None, False, "is not trusted (unable to get local issuer", "SSL_CERT_FILE"),
        ("other.example", None, True, "is for another host", "base_url"),
        ("localhost", YEAR_2000, True, "has expired", "clock"),
    ],
)
async def test_a_certificate_that_does_not_fit_is_not_sent(
    *,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    authority: trustme.CA,
    tmp_path: Path,
    host: str,
    expires: datetime | None,
    trusted: bool,
    happened: str,
    advice: str,
) -> None:
    """The error says that it is about TLS, what is wrong with the certificate, and what to do."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    if trusted:
        trust(monkeypatch, authority, tmp_path)
    certificate = authority.issue_cert(host, not_before=YEAR_2000, not_after=expires)
    async with raw_server(reply(), tls=context_of(certificate)) as server:
        with pytest.raises(NotSent) as caught:
            await make().send(paid(f"https://localhost:{server.port}/"))
        assert server.requests == []
    assert f"The TLS certificate {happened}" in caught.value.happened
    assert advice in caught.value.advice
    assert told(caught.value, SECRETS) == in_frames(caught.value, SECRETS) == []


async def test_a_server_without_tls_is_not_sent(make: Make) -> None:
    """The error says that there was no handshake, and to check scheme and port."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"", "400 Bad Request"))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(NotSent, match=r"TLS handshake failed \(.+\)") as caught:
        await make().send(paid(f"https://localhost:{port}/"))
    server.close()
    assert caught.value.advice.startswith("Check scheme and port of base_url")
