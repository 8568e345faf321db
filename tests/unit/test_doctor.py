"""What `doctor` finds: the key, the way to the gateway, the gateway itself, and a first clip."""

import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.clients import quick_client
from support.proxies import name_proxies, tunnels
from support.servers import free_port, raw_server, reply, silent_server

from fuhu_runway import Client, Gateway, KeyStyle, doctor
from fuhu_runway.doctor import CHECKS, Finding, Report, Verdict
from fuhu_runway.errors import NotSent, RunwayError, UsageError
from fuhu_runway.models import BalanceRoute, Timeouts
from fuhu_runway.testing import Simulator, faults
from fuhu_runway.testing.faults import Fault

KEY = "sk-marked-key-7c1e9d5b"
#: A reserved name: without a proxy of the test, nothing answers there.
NOWHERE = "gateway.invalid"
BRIEF = Timeouts(connect=0.1, read=0.1)


@pytest.fixture(autouse=True)
def _without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use no proxy that the machine's own environment names."""
    name_proxies(monkeypatch)


def of(report: Report, about: str) -> Finding:
    """Return one finding."""
    return next(finding for finding in report.findings if finding.about == about)


def misfits(report: Report) -> list[str]:
    """Return what does not fit."""
    return [one.about for one in report.findings if one.verdict is Verdict.MISFIT]


async def examined(simulator: Simulator, path: str = "", /, **options: Any) -> Report:
    """Return the report about a simulator, and check that nothing was submitted."""
    options.setdefault("api_key", simulator.api_key)
    report = await doctor.examine(base_url=f"{simulator.base_url}{path}", **options)
    assert simulator.submitted == 0
    assert [finding.about for finding in report.findings] == list(CHECKS)
    return report


# The key


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("", "no key"),
        (" \n", "no key"),
        (f'"{KEY}"', "quotes"),
        (f"'{KEY}", "quotes"),
        (f"{KEY}\n", "line breaks"),
        (f" {KEY}", "spaces"),
        (f"Bearer {KEY}", "'Bearer'"),
        (f"Authorization: Bearer {KEY}", "the header"),
        (f"FUHU_API_KEY={KEY}", "the variable"),
        (f'export FUHU_API_KEY="{KEY}"', "the variable"),
        ("sk-marked****9d5b", "masked"),
        ("sk-marked...9d5b", "masked"),
        ("sk-marked…9d5b", "masked"),
        ("sk-your-key", "placeholder"),
        ("<your key>", "placeholder"),
        (f"sk-{KEY}", "twice"),
        (f"“{KEY}”", "no header"),
        (f"{KEY}\0", "no header"),
        ("sk-1", "shorter"),
    ],
)
async def test_a_key_that_cannot_be_right_is_a_finding(key: str, found: str) -> None:
    """Quotes, spaces, a header's words and placeholders are named; the key itself is not shown."""
    report = await doctor.examine(key, base_url="nothing is sent there")
    assert misfits(report) == ["key", "address"]
    assert found in of(report, "key").found
    assert of(report, "key").advice
    assert "marked" not in str(report)


@pytest.mark.parametrize(
    ("key", "start"), [(KEY, "begins with 'sk-'"), ("0123456789abcdef", "does not begin")]
)
async def test_a_key_is_described_and_not_shown(key: str, start: str) -> None:
    """A usable key is described by its length and by how it begins."""
    report = await doctor.examine(key, base_url="nothing is sent there")
    assert of(report, "key").verdict is Verdict.FITS
    assert f"{len(key)} characters" in of(report, "key").found
    assert start in of(report, "key").found
    assert key not in str(report)


async def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument, the key is that of the environment, as for a client."""
    monkeypatch.setenv("FUHU_API_KEY", f"{KEY} ")
    report = await doctor.examine(base_url="nothing is sent there")
    assert "spaces" in of(report, "key").found


@pytest.mark.parametrize(
    "before", ['"', "Bearer ", "Authorization: Bearer ", "FUHU_API_KEY=", "export FUHU_API_KEY='"]
)
async def test_the_other_checks_use_the_key_without_what_surrounds_it(
    gateway: Simulator, before: str
) -> None:
    """What is around a key is reported once; whether the key itself is accepted is found too."""
    report = await examined(gateway, api_key=f"{before}{gateway.api_key}' \n")
    assert misfits(report) == ["key"]
    assert "without that" in of(report, "key").found
    assert of(report, "access").verdict is Verdict.FITS
    assert not report.is_ready


async def test_without_a_key_the_address_is_checked(gateway: Simulator) -> None:
    """A missing key is one finding; that the feed is where it should be is another."""
    report = await examined(gateway, api_key="")
    assert misfits(report) == ["key"]
    assert of(report, "route").verdict is Verdict.FITS
    assert of(report, "access").verdict is Verdict.UNTESTED
    assert of(report, "balance").verdict is Verdict.UNTESTED


# The way to the gateway


async def test_arguments_of_the_wrong_type_are_an_error() -> None:
    """A wrong type is the caller's mistake, not a finding."""
    with pytest.raises(UsageError, match="gateway"):
        await doctor.examine(KEY, gateway=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"gateway": "unknown"}, {"gateway": "yutoai"}])
async def test_an_unknown_gateway_is_a_finding(options: dict[str, str]) -> None:
    """A name that is not known, or a gateway without an address, ends the checks."""
    report = await doctor.examine(KEY, **options)  # type: ignore[arg-type]
    assert misfits(report) == ["address"]
    assert report.gateway is None
    assert of(report, "DNS").verdict is Verdict.UNTESTED


async def test_a_host_without_an_address_is_a_finding() -> None:
    """A name that DNS does not know ends the checks."""
    report = await doctor.examine(KEY, base_url=f"https://{NOWHERE}")
    assert misfits(report) == ["DNS"]


async def test_a_name_that_dns_cannot_carry_is_a_finding() -> None:
    """A host name of more than 253 characters has no address, and is no crash."""
    report = await doctor.examine(KEY, base_url=f"https://{'a' * 60}{'.b' * 120}.invalid")
    assert misfits(report) == ["DNS"]


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_port_that_nobody_listens_on_is_a_finding(scheme: str) -> None:
    """A refused connection is distinguished from an unknown host."""
    report = await doctor.examine(KEY, base_url=f"{scheme}://localhost:{free_port()}")
    assert misfits(report) == ["TCP"]
    assert of(report, "DNS").verdict is Verdict.FITS


async def test_a_gateway_that_never_answers_could_not_be_tested() -> None:
    """A connection without a reply shows nothing about the path."""
    async with silent_server() as port:
        report = await doctor.examine(KEY, base_url=f"http://127.0.0.1:{port}", timeouts=BRIEF)
    assert misfits(report) == []
    assert of(report, "TCP").verdict is Verdict.FITS
    assert of(report, "route").verdict is Verdict.UNTESTED
    assert not report.is_ready


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that nothing trusts yet."""
    return trustme.CA()


def tls(authority: trustme.CA, host: str) -> ssl.SSLContext:
    """Return what a server needs to have a certificate for *host*."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    return context


def trust(monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, folder: Path) -> None:
    """Name the authority in the environment."""
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))


NO_TASK = reply(b'{"code":"task_not_exist","message":"task_not_exist","data":null}', "400 Bad")


async def test_a_trusted_certificate_fits(
    monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, tmp_path: Path
) -> None:
    """A first reply over TLS shows that the certificate is trusted."""
    trust(monkeypatch, authority, tmp_path)
    async with raw_server(NO_TASK, tls=tls(authority, "localhost")) as server:
        report = await doctor.examine(KEY, base_url=f"https://localhost:{server.port}")
    assert misfits(report) == []
    assert of(report, "TLS").found == "The certificate is trusted."
    assert of(report, "clock").found == "The gateway sends no Date header."


@pytest.mark.parametrize(
    ("host", "is_trusted", "found"),
    [("localhost", False, "not trusted"), ("elsewhere.example", True, "another host")],
)
async def test_a_certificate_that_is_not_trusted_is_a_finding(
    *,
    monkeypatch: pytest.MonkeyPatch,
    authority: trustme.CA,
    tmp_path: Path,
    host: str,
    is_trusted: bool,
    found: str,
) -> None:
    """An unknown authority and another host's certificate are distinguished."""
    if is_trusted:
        trust(monkeypatch, authority, tmp_path)
    async with raw_server(NO_TASK, tls=tls(authority, host)) as server:
        report = await doctor.examine(KEY, base_url=f"https://localhost:{server.port}")
    assert misfits(report) == ["TLS"]
    assert found in of(report, "TLS").found


async def test_https_to_a_port_without_tls_is_a_finding(gateway: Simulator) -> None:
    """A handshake that fails says to check the scheme."""
    report = await doctor.examine(KEY, base_url=gateway.base_url.replace("http:", "https:"))
    assert misfits(report) == ["TLS"]
    assert "scheme" in of(report, "TLS").advice


async def test_http_beyond_this_machine_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over plain http the key can be read on the way; only on this machine that is fine."""
    async with raw_server(NO_TASK) as server:
        name_proxies(monkeypatch, HTTP_PROXY=f"http://127.0.0.1:{server.port}")
        report = await doctor.examine(KEY, base_url=f"http://{NOWHERE}")
    assert misfits(report) == ["TLS"]
    assert "https" in of(report, "TLS").advice


async def test_a_proxy_is_named(
    monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, tmp_path: Path
) -> None:
    """Through a proxy, DNS and TCP are about the proxy, and TLS is about the gateway."""
    trust(monkeypatch, authority, tmp_path)
    async with (
        raw_server(NO_TASK, tls=tls(authority, NOWHERE)) as server,
        tunnels(server.port) as proxy,
    ):
        url = f"http://user:marked-password@localhost:{proxy.port}"
        name_proxies(monkeypatch, HTTPS_PROXY=url)
        report = await doctor.examine(KEY, base_url=f"https://{NOWHERE}")
    assert misfits(report) == []
    assert f"http://localhost:{proxy.port}" in of(report, "proxy").found
    assert "localhost" in of(report, "DNS").found
    assert "marked" not in str(report)


async def test_a_proxy_that_refuses_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that wants a password is distinguished from a gateway that is not there."""
    async with raw_server(reply(status="407 Proxy Authentication Required")) as server:
        name_proxies(monkeypatch, HTTPS_PROXY=f"http://localhost:{server.port}")
        report = await doctor.examine(KEY, base_url=f"https://{NOWHERE}")
    assert misfits(report) == ["proxy"]
    assert "407" in of(report, "proxy").found


async def test_a_proxy_that_cannot_be_used_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SOCKS proxy is named before anything is sent."""
    name_proxies(monkeypatch, ALL_PROXY="socks5://user:marked-password@localhost:1080")
    report = await doctor.examine(KEY, base_url=f"https://{NOWHERE}")
    assert misfits(report) == ["proxy"]
    assert "marked" not in str(report)


async def test_a_connection_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway accepted a first connection and not the next one."""

    async def send(*_: object) -> None:
        raise NotSent("The gateway could not be reached (ClientConnectorError)", "", "Try again")

    monkeypatch.setattr("fuhu_runway._http.transport.Transport.send", send)
    async with raw_server(NO_TASK) as server:
        report = await doctor.examine(KEY, base_url=server.url)
    assert misfits(report) == ["TCP"]


# The gateway


async def test_everything_fits(gateway: Simulator) -> None:
    """With a key that works, every check is ok, and three free requests were enough."""
    report = await examined(gateway)
    assert {finding.verdict for finding in report.findings} == {Verdict.FITS}
    assert report.fits
    assert report.is_ready
    assert len(gateway.requests) == 3
    assert report.gateway is not None
    client = Client(gateway.api_key, gateway=report.gateway)
    assert client.gateway == report.gateway


async def test_no_finding_shows_the_key_or_an_ip_address(gateway: Simulator) -> None:
    """A report may be shown to anyone."""
    shown = str((await examined(gateway)).findings)
    assert gateway.api_key not in shown
    assert "127.0.0.1" not in shown


@pytest.mark.parametrize(
    ("path", "gateway_name", "advice"),
    [
        ("/runway", "fuhuapi", "base_url"),  # the prefix twice
        ("/v1", "fuhuapi", "base_url"),  # as for OpenAI's own SDK
        ("/runway/v1", "yutoai", "base_url"),
    ],
)
async def test_a_path_in_the_base_url_is_a_finding(
    gateway: Simulator, path: str, gateway_name: str, advice: str
) -> None:
    """A base_url with a prefix of its own leads to a web page; without it, the feed responds."""
    report = await examined(gateway, path, gateway=gateway_name)
    assert misfits(report) == ["route", "gateway"]
    assert advice in of(report, "route").advice
    assert advice in of(report, "gateway").advice
    assert report.gateway is not None
    assert report.gateway.base_url == gateway.base_url
    assert not report.is_ready


async def test_another_prefix_is_found(gateway: Simulator) -> None:
    """Where the configured prefix has a web page, the known ones are tried."""
    report = await examined(gateway, gateway=Gateway("mine", prefix="/wrong"))
    assert misfits(report) == ["route", "gateway"]
    assert "web page" in of(report, "route").found
    assert of(report, "route").advice == "Use prefix='/runway'."
    assert of(report, "gateway").found == "It differs from 'mine' in: prefix."
    assert report.gateway is not None
    assert report.gateway.prefix == "/runway"


async def test_a_known_gateway_is_named() -> None:
    """If the feed responds at another known prefix, the gateway that has it is named."""
    lost = reply(b'{"error":{"message":"Invalid URL","type":"invalid_request_error"}}', "404 Not")
    async with raw_server(lost, lost, lost, lost, NO_TASK, lost) as server:
        report = await doctor.examine(KEY, base_url=server.url)
    assert server.requests[4].startswith(b"POST /runway/v1/feed ")
    assert misfits(report) == ["route", "gateway"]
    assert "--gateway gpt-best-v1" in of(report, "gateway").advice
    assert of(report, "balance").verdict is Verdict.UNTESTED


async def test_a_feed_with_the_other_verb_is_found() -> None:
    """A 405 leads to the other verb."""
    async with Simulator(feed_verb="GET") as gateway:
        report = await examined(gateway)
        assert misfits(report) == ["verb", "gateway"]
        assert of(report, "verb").advice == "Use feed_verb='GET'."
        again = await examined(gateway, gateway=report.gateway)
    assert again.fits


@pytest.mark.parametrize("style", ["raw", "body"])
async def test_the_place_of_the_key_is_found(style: Any) -> None:
    """A key that is refused in one place is tried in the others."""
    async with Simulator(key_style=style) as gateway:
        report = await examined(gateway)
        assert misfits(report) == ["access", "gateway"]
        assert report.gateway is not None
        assert report.gateway.key_style is KeyStyle[style.upper()]
        again = await examined(gateway, gateway=report.gateway)
    assert again.is_ready


async def test_a_wrong_key_is_told_apart_from_a_wrong_path(gateway: Simulator) -> None:
    """The feed refuses the key, and another path has no feed: so the path is right."""
    report = await examined(gateway, api_key=KEY)
    assert misfits(report) == ["access"]
    assert of(report, "route").verdict is Verdict.FITS
    assert of(report, "balance").verdict is Verdict.UNTESTED
    assert not report.is_ready


async def test_a_gateway_that_refuses_the_key_everywhere_hides_its_paths() -> None:
    """If the key is refused whatever the path is, nothing is known about the prefix."""
    refused = reply(b'{"error":{"message":"Invalid token","type":"new_api_error"}}', "401 No")
    async with raw_server(refused) as server:
        report = await doctor.examine(KEY, base_url=server.url)
    assert misfits(report) == ["access"]
    assert of(report, "route").verdict is Verdict.UNTESTED
    assert of(report, "gateway").verdict is Verdict.UNTESTED


async def test_a_gateway_that_checks_the_key_first_may_still_accept_it_elsewhere() -> None:
    """A key that is accepted in another place shows that the path is right, too."""
    refused = reply(b'{"error":{"message":"Invalid token","type":"new_api_error"}}', "401 No")
    async with raw_server(refused, refused, refused, NO_TASK) as server:
        report = await doctor.examine(KEY, base_url=server.url)
    assert of(report, "route").verdict is Verdict.FITS
    assert "access" in misfits(report)
    assert "gateway" in misfits(report)


PAGES = {
    "a web page": (faults.html_page(), "not of its web page"),
    "a login page": (
        faults.Response(200, "<html><input type=password>", "text/html"),
        "not of its web page",
    ),
    "a redirect to https://www.example.com": (
        faults.Response(301, headers=(("Location", "https://www.example.com/login?token=marked"),)),
        "leads to",
    ),
    "a redirect to no usable address": (
        faults.Response(302, headers=(("Location", "http://[marked"),)),
        "leads to",
    ),
    "an empty answer": (faults.Response(200, "", "text/plain"), "not of its web page"),
    "text": (faults.Response(404, "404 page not found", "text/plain"), "not of its web page"),
    "status 405": (faults.Response(405, "no", "text/plain"), "documentation"),
}


@pytest.mark.parametrize("shown", PAGES)
async def test_what_is_not_an_api_is_described(gateway: Simulator, shown: str) -> None:
    """What came in place of an API is named, without its content."""
    fault, advice = PAGES[shown]
    gateway.fault("feed", fault, times=None)
    report = await examined(gateway)
    assert misfits(report) == ["route"]
    assert shown in of(report, "route").found
    assert advice in of(report, "route").advice
    assert "marked" not in str(report)


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        (faults.empty_429(), "less often"),
        (faults.server_error(502), "Try again later"),
        (faults.known("challenge"), "firewall"),
    ],
)
async def test_trouble_that_may_pass_is_not_a_misfit(
    gateway: Simulator, fault: Fault, advice: str
) -> None:
    """A rate limit, a proxy's error page and a firewall's challenge show nothing about the path."""
    gateway.fault("feed", fault, times=None)
    report = await examined(gateway)
    assert misfits(report) == []
    assert of(report, "route").verdict is Verdict.UNTESTED
    assert advice in of(report, "route").advice
    assert not report.is_ready


@pytest.mark.parametrize(
    "fault", [faults.error(404, "marked words"), faults.server_error(500, body="json")]
)
async def test_unknown_words_for_no_such_task_are_recognised(
    gateway: Simulator, fault: Fault
) -> None:
    """JSON that another path does not have comes from the feed, and the balance proves the key."""
    gateway.fault("feed", fault, times=1)
    report = await examined(gateway)
    assert misfits(report) == []
    assert of(report, "access").found == "The gateway shows the key its balance."


async def test_a_gateway_that_refuses_every_path_alike_has_no_feed() -> None:
    """A 400 in JSON that any other path has as well is no feed."""
    refused = reply(b'{"error":{"message":"Bad request","type":"marked_error"}}', "400 Bad")
    async with raw_server(refused) as server:
        report = await doctor.examine(KEY, base_url=server.url)
    assert misfits(report) == ["route"]
    assert "status 400" in of(report, "route").found


async def test_a_key_that_nothing_proves_may_be_tried(gateway: Simulator) -> None:
    """If the key is neither accepted nor refused, a clip can be submitted: a refusal is free."""
    gateway.fault("feed", faults.error(400, "marked words"), times=1)
    gateway.fault("balance", faults.html_page(), times=None)
    report = await examined(gateway)
    assert of(report, "access").verdict is Verdict.UNTESTED
    assert report.is_ready


async def test_json_of_unknown_form_is_described(gateway: Simulator) -> None:
    """JSON that is neither a task nor a known refusal is no web page."""
    gateway.fault("feed", faults.Response(200, '{"hello": 1}'), times=None)
    gateway.fault("balance", faults.html_page(), times=None)
    report = await examined(gateway)
    assert of(report, "access").verdict is Verdict.UNTESTED
    assert "JSON of unknown form (status 200)" in of(report, "access").found


async def test_a_poll_that_answers_with_a_task_fits(gateway: Simulator) -> None:
    """Some gateways answer a poll of any id as that of a new task (api-facts 2 A)."""
    task = '{"code":200,"msg":"success","data":{"task_id":"1","state":"","status":"0"}}'
    gateway.fault("feed", faults.Response(200, task))
    assert (await examined(gateway)).fits


# The balance and the clock


async def test_an_empty_account_is_a_finding() -> None:
    """Nothing left is a finding, since the first clip would be refused."""
    async with Simulator(points=0) as gateway:
        report = await examined(gateway)
    assert misfits(report) == ["balance"]
    assert "Top up" in of(report, "balance").advice
    assert report.is_ready


async def test_a_key_without_limit_fits() -> None:
    """A gateway may set no limit to a key."""
    async with Simulator(points=None) as gateway:
        report = await examined(gateway)
    assert "no limit" in of(report, "balance").found


async def test_another_balance_route_is_found(gateway: Simulator) -> None:
    """If the configured route has no balance, the others are tried."""
    gateway.fault("balance", faults.html_page())
    report = await examined(gateway)
    assert misfits(report) == ["balance", "gateway"]
    assert of(report, "balance").advice == "Use balance=BalanceRoute.TOKEN."
    assert report.is_ready


async def test_half_a_balance_is_enough() -> None:
    """What is left may be unknown where the key is accepted."""
    usage = reply(b'{"object":"list","total_usage":1}')
    limit = reply(b'{"object":"billing_subscription","hard_limit_usd":5}')
    async with raw_server(NO_TASK, limit, usage) as server:
        known = await doctor.examine(KEY, base_url=server.url)
    async with raw_server(NO_TASK, usage, usage) as server:
        unknown = await doctor.examine(KEY, base_url=server.url)
    assert "4.99" in of(known, "balance").found
    assert "an unknown amount" in of(unknown, "balance").found
    assert of(unknown, "balance").verdict is Verdict.FITS


async def test_the_key_goes_in_an_address_only_where_that_is_known(gateway: Simulator) -> None:
    """The quota route has the key in its URL, and is used only with a quota_url."""
    gateway.fault("balance", faults.html_page(), times=2)
    await examined(gateway)
    assert not any("/user/quota" in str(seen) for seen in gateway.requests)
    gateway.fault("balance", faults.html_page(), times=None)
    report = await examined(gateway, gateway="deerapi")
    assert of(report, "balance").verdict is Verdict.UNTESTED


async def test_the_quota_route_is_read(gateway: Simulator) -> None:
    """A gateway with a quota_url shows the balance there, in US dollars."""
    mine = Gateway("mine", balance=BalanceRoute.QUOTA, quota_url="https://query.example")
    report = await examined(gateway, gateway=mine)
    assert "US dollars" in of(report, "balance").found
    assert report.fits


@pytest.mark.parametrize(
    ("date", "side"),
    [("Sun, 06 Nov 1994 08:49:37 GMT", "ahead of"), ("Mon, 01 Jan 2080 00:00:00 GMT", "behind")],
)
async def test_a_wrong_clock_is_a_finding(gateway: Simulator, date: str, side: str) -> None:
    """The Date header of a reply is compared with this machine's clock."""
    answer = faults.Response(400, '{"code":"task_not_exist"}', headers=(("Date", date),))
    gateway.fault("feed", answer)
    report = await examined(gateway)
    assert misfits(report) == ["clock"]
    assert side in of(report, "clock").found
    assert report.is_ready


# A first clip


async def test_a_first_clip_is_made_as_any_other(
    gateway: Simulator, runway: Client, tmp_path: Path
) -> None:
    """One submit, five seconds, and what it took."""
    made = await doctor.first_clip(runway, path=tmp_path / "clip.mp4")
    gateway.assert_submitted_once()
    assert gateway.tasks[0].request["options"]["seconds"] == 5
    assert made.task_id == gateway.tasks[0].task_id
    assert made.points == 160
    assert made.polls >= 1
    assert made.seconds > 0
    assert made.path == tmp_path / "clip.mp4"
    assert made.path.stat().st_size == made.file_bytes
    assert made.host == "http, another host than the gateway's, signed"
    assert "127.0.0.1" not in repr(made)


async def test_a_first_clip_may_be_checked_without_being_kept(
    gateway: Simulator, runway: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a path the clip is downloaded whole and no file is left."""
    monkeypatch.chdir(tmp_path)
    accepted: list[str] = []
    made = await doctor.first_clip(runway, on_accepted=lambda task: accepted.append(task.id))
    assert made.path is None
    assert made.file_bytes > 1000
    assert accepted == [made.task_id]
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240  (an empty folder)


async def test_the_path_of_a_first_clip_is_checked_before_anything_is_sent(
    gateway: Simulator, runway: Client, tmp_path: Path
) -> None:
    """A file that exists is refused while nothing is charged yet."""
    taken = tmp_path / "clip.mp4"
    taken.touch()
    with pytest.raises(UsageError) as caught:
        await doctor.first_clip(runway, path=taken)
    assert caught.value.field == "path"
    assert gateway.submitted == 0


async def test_a_clip_on_the_gateways_own_host_is_described() -> None:
    """The kind of host is described, and not its address."""
    async with (
        Simulator(speed=1000, takes=20, media="api") as gateway,
        quick_client(gateway) as client,
    ):
        made = await doctor.first_clip(client)
    assert "the gateway's own host" in made.host


async def test_a_first_clip_is_in_the_journal(gateway: Simulator, tmp_path: Path) -> None:
    """The client's journal knows the clip, as it knows every paid request."""
    async with quick_client(gateway, journal=tmp_path / "journal.db") as client:
        made = await doctor.first_clip(client)
        assert client.journal is not None
        (job,) = await client.journal.jobs()
    assert job.task_id == made.task_id


async def test_a_first_clip_that_fails_raises_what_any_other_would(
    gateway: Simulator, runway: Client
) -> None:
    """Its errors are those of the paid path, and the transcript has the replies all the same."""
    gateway.script(then="fail")
    transcript = doctor.Transcript()
    with pytest.raises(RunwayError) as caught:
        await doctor.first_clip(runway, transcript=transcript)
    assert caught.value.task_id == gateway.tasks[0].task_id
    assert "FAILED" in str(transcript)


# The account


@pytest.mark.parametrize(
    ("token", "user", "verdict", "found"),
    [
        (None, None, Verdict.FITS, "No access token is set"),
        ("right", "7", Verdict.FITS, "shows the account's tasks"),
        ("a-marked-token", "7", Verdict.MISFIT, "The gateway refused"),
        ("right", "8", Verdict.MISFIT, "The gateway refused"),
        ("right", None, Verdict.MISFIT, "There is no user id"),
        (None, "7", Verdict.MISFIT, "There is no access token"),
    ],
)
async def test_an_access_token_is_checked(
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    user: str | None,
    verdict: Verdict,
    found: str,
) -> None:
    """One empty list shows whether it is accepted; no finding and no transcript shows it."""
    for name, value in (("FUHU_ACCESS_TOKEN", token), ("FUHU_USER_ID", user)):
        if value is not None:
            monkeypatch.setenv(name, value)
    transcript = doctor.Transcript()
    async with Simulator(access_token="right", user_id=7) as gateway:
        report = await examined(gateway, transcript=transcript)
        assert len(gateway.requests) == 3 + (None not in {token, user})
    assert of(report, "account").verdict is verdict
    assert found in of(report, "account").found
    assert report.is_ready
    assert "marked" not in f"{report} {transcript}"
    assert "account_tasks" not in str(transcript)


async def test_a_gateway_without_a_list_is_no_misfit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be tested there, and lost responses have to be looked up by a person."""
    monkeypatch.setenv("FUHU_ACCESS_TOKEN", "right")
    monkeypatch.setenv("FUHU_USER_ID", "7")
    async with Simulator(lists=None) as gateway:
        report = await examined(gateway)
    assert of(report, "account").verdict is Verdict.UNTESTED
    assert "has no list of the account's tasks" in of(report, "account").found
    assert report.fits
