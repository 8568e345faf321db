"""The pytest plugin, as the runs of its users see it; each run holds many of their tests."""

import concurrent.futures
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from textwrap import dedent
from typing import Final

import pytest

import fuhu_runway
from fuhu_runway.testing._pytest import guard as _guard

BARE: Final = ("-p", "no:asyncio", "-p", "no:aiohttp", "-p", "no:anyio")
"""Nothing that runs asynchronous tests, as where only the extra is installed."""

AUTO: Final = ("-p", "no:aiohttp", "-o", "asyncio_mode=auto")
"""What most suites have."""

OLD: Final = ("-p", "aiohttp.pytest_plugin", "-W", "ignore:aiohttp.pytest_plugin will be removed")
"""What pytest-aiohttp has taken the place of."""

MODES: Final = {
    "bare": (BARE, ""),
    "asyncio auto": (AUTO, ""),
    "asyncio strict": (("-p", "no:aiohttp"), "pytest.mark.asyncio"),
    "asyncio strict, unmarked": (("-p", "no:aiohttp"), ""),
    "aiohttp": (("-o", "asyncio_mode=auto"), ""),
    "inside of aiohttp": ((*BARE, *OLD), ""),
    "anyio": (("-p", "no:asyncio", "-p", "no:aiohttp"), "pytest.mark.anyio"),
    "anyio auto": (("-p", "no:asyncio", "-p", "no:aiohttp", "-o", "anyio_mode=auto"), ""),
}

HEAD: Final = """
import asyncio
import socket
import pytest

from fuhu_runway.testing._pytest import guard as _guard
from fuhu_runway import Client, PollPolicy, errors
from fuhu_runway.testing import Simulator, faults

LATE = PollPolicy(first=61, max_interval=61, jitter=0)

async def make_clip(client, prompt):
    return await (await client.generate(prompt))
"""

BACKEND: Final = """
@pytest.fixture
def anyio_backend():
    return "asyncio"
"""

TESTS: Final = """
async def test_my_app(runway_gateway, runway_client):
    runway_gateway.script("a kitten", takes=600, then="succeed")
    begun = asyncio.get_running_loop().time()
    clip = await make_clip(runway_client, "a kitten")
    assert runway_gateway.submitted == 1
    assert 600 <= asyncio.get_running_loop().time() - begun < 615

async def test_the_same_again(runway_gateway, runway_client):
    assert runway_gateway.submitted == 0
    await make_clip(runway_client, "a kitten")

@pytest.mark.parametrize("prompt", ["a", "b"])
async def test_without_the_client(prompt, runway_gateway):
    async with Client(runway_gateway.api_key, base_url=runway_gateway.base_url) as client:
        await make_clip(client, prompt)
    runway_gateway.assert_submitted_once(prompt)
    runway_gateway.assert_all_used()

async def test_the_client_alone(runway_client):
    assert (await runway_client.balance()).used == 0

@pytest.mark.runway(points=1000, takes=33)
class TestOptions:
    @pytest.mark.runway(takes=60, client={"polling": LATE})
    async def test_the_nearest_counts(self, runway_gateway, runway_client):
        await make_clip(runway_client, "a kitten")
        assert (runway_gateway.takes, runway_gateway.balance) == (60, 680)
        assert runway_gateway.tasks[0].polls == 1

    async def test_the_class_counts_else(self, runway_gateway):
        assert (runway_gateway.takes, runway_gateway.points) == (33, 1000)

@pytest.mark.runway(virtual_time=False, takes=0, client={"polling": PollPolicy(first=0.01)})
async def test_in_real_time(runway_gateway, runway_client):
    loop = asyncio.get_running_loop()
    before = loop.time
    await make_clip(runway_client, "a kitten")
    assert not hasattr(loop.time.__self__, "is_virtual")

@pytest.fixture
def address(runway_gateway):
    return runway_gateway.base_url

async def test_the_address_is_known_before(address, runway_gateway):
    assert address == runway_gateway.base_url
    async with Client("sk-simulated", base_url=address) as client:
        await client.balance()

async def test_an_outage(runway_gateway, runway_client):
    task = await runway_client.generate("a kitten")
    await runway_gateway.aclose()
    with pytest.raises(errors.WaitTimeout):
        await task.wait(timeout=300)
    await runway_gateway.start()
    assert await task

def test_of_a_synchronous_app(runway_gateway, runway_client):
    assert (runway_gateway.takes, runway_gateway.speed) == (100, 1000)
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(make_clip(runway_client, "a kitten"))
    runway_gateway.assert_submitted_once()

async def test_the_loop_of_others_is_left_alone():
    assert not hasattr(asyncio.get_running_loop().time.__self__, "is_virtual")
"""


def file_of(*parts: str) -> str:
    """Return the text of a test file."""
    return "\n".join([HEAD, *map(dedent, parts)])


def options_and_mark(config: pytest.Config, mode: str) -> tuple[tuple[str, ...], str]:
    """Return the options for a run in this *mode*, if its plugins are installed."""
    if mode == "aiohttp" and not config.pluginmanager.hasplugin("aiohttp"):
        pytest.skip("pytest-aiohttp is not there, or needs a newer aiohttp")
    return MODES[mode]


def marked(tests: str, mark: str) -> str:
    """Return *tests* with *mark* on each asynchronous test."""
    return (
        re.sub("^( *)(?=async def test)", rf"\1@{mark}\n\1", tests, flags=re.MULTILINE)
        if mark
        else tests
    )


@pytest.fixture(autouse=True)
def settings(pytester: pytest.Pytester) -> None:
    """Turn each warning into an error, as careful users do."""
    pytester.makeini(
        """
        [pytest]
        filterwarnings =
            error
            ignore:The configuration option "asyncio_default_fixture_loop_scope"
        """
    )


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    """Run the tests in this process, without the plugins of the outer run."""
    return pytester.runpytest_inprocess("-p", "no:randomly", "-p", "no:cacheprovider", *options)


@pytest.mark.parametrize("mode", MODES)
def test_it_works_with_every_asynchronous_plugin(
    pytester: pytest.Pytester, pytestconfig: pytest.Config, mode: str
) -> None:
    """The same tests pass with every plugin for asynchronous tests, and without one."""
    options, mark = options_and_mark(pytestconfig, mode)
    # A test without our fixtures is not run by the plugin.
    tests = (
        TESTS
        if "asyncio_mode=auto" in options or mark or "auto" in mode
        else TESTS.rpartition("\nasync def")[0]
    )
    pytester.makepyfile(file_of(BACKEND, marked(tests, mark)))
    result = run(pytester, *options)
    result.assert_outcomes(passed=12 if tests is TESTS else 11)


FIXTURES: Final = """
ENDED = []

@{fixture}
async def app(runway_client):
    await make_clip(runway_client, "before")
    yield runway_client
    await make_clip(runway_client, "after")
    ENDED.append("app")

@{fixture}
async def clip(runway_gateway, app):
    return await make_clip(app, "first")

@{fixture}
async def unconcerned():
    yield asyncio.get_running_loop()

@pytest.fixture
def before_and_after(runway_gateway):
    assert not runway_gateway.is_running
    yield
    assert not runway_gateway.is_running
    assert [task.prompt for task in runway_gateway.tasks][-1] == "after"
    ENDED.append("before_and_after")

class TestFixtures:
    word = None

    @{fixture}
    async def own(self, app):
        self.word = "own"
        yield await make_clip(app, "own")
        assert self.word == "own"

    @{fixture}
    async def second(self, own):
        assert self.word == "own"
        return await make_clip(Client, "second") if own is None else self

    async def test_all(self, before_and_after, clip, second, unconcerned, runway_gateway):
        assert second is self
        assert unconcerned is asyncio.get_running_loop()
        assert [task.prompt for task in runway_gateway.tasks] == ["before", "first", "own"]

async def test_they_ended(unconcerned):
    assert ENDED == ["app", "before_and_after"]
    assert not hasattr(unconcerned.time.__self__, "is_virtual")

@pytest.fixture
def broken(clip):
    raise LookupError("a fixture of the user")

async def test_never_runs(broken, runway_gateway):
    assert False

@{fixture}
async def broken_itself(app):
    raise LookupError("an asynchronous fixture of the user")

async def test_never_runs_either(broken_itself):
    assert False

@{fixture}
async def only_a_clip(runway_client):
    return await make_clip(runway_client, "a kitten")

@pytest.fixture
def broken_later(only_a_clip):
    raise LookupError("a synchronous fixture after an asynchronous one")

async def test_never_runs_for_that(broken_later):
    assert False

async def test_still_works(runway_gateway, runway_client):
    await make_clip(runway_client, "a kitten")
    runway_gateway.assert_submitted_once()

@pytest.mark.runway(takes=0, client={{"polling": PollPolicy(first=0.01)}})
def test_of_what_a_fixture_made(anyio_backend, runway_gateway, only_a_clip):
    runway_gateway.assert_all_used()
"""


@pytest.mark.parametrize("mode", ["asyncio auto", "asyncio strict", "aiohttp", "anyio auto"])
def test_the_gateway_runs_during_fixtures_of_users(
    pytester: pytest.Pytester, pytestconfig: pytest.Config, mode: str
) -> None:
    """The gateway runs until asynchronous fixtures end, even if others fail."""
    options, mark = options_and_mark(pytestconfig, mode)
    fixture = "pytest_asyncio.fixture" if "strict" in mode else "pytest.fixture"
    pytester.makepyfile(
        file_of("import pytest_asyncio", BACKEND, marked(FIXTURES.format(fixture=fixture), mark))
    )
    result = run(pytester, *options)
    result.assert_outcomes(passed=4, errors=3)
    result.stdout.fnmatch_lines([f"E*LookupError: a*{word}*" for word in ("fixture of",) * 2])


SESSION: Final = """
pytestmark = pytest.mark.asyncio(loop_scope="module")

async def test_first(runway_client):
    await make_clip(runway_client, "a kitten")

@pytest.fixture
async def clip(runway_client):
    return await make_clip(runway_client, "a kitten")

@pytest.fixture
def broken(clip):
    raise LookupError("a synchronous fixture")

async def test_never_runs(broken):
    assert False

async def test_time_is_real_by_now():
    loop = asyncio.get_running_loop()
    assert not loop.time.__self__.is_virtual

async def test_second(runway_gateway, clip):
    runway_gateway.assert_submitted_once()
"""


def test_a_loop_may_be_older_than_the_test(pytester: pytest.Pytester) -> None:
    """If tests share a loop, each has its own gateway, and the loop's time is real afterwards."""
    pytester.makepyfile(file_of(SESSION))
    scope = "asyncio_default_fixture_loop_scope=module"
    run(pytester, *AUTO, "-o", scope).assert_outcomes(passed=3, errors=1)


WRONG: Final = """
import functools
mark = pytest.mark.runway

@mark(taeks=3)
async def test_unknown(runway_gateway): pass

@mark(600)
async def test_unnamed(runway_gateway): pass

@mark(speed=0)
async def test_unfit(runway_gateway): pass

@mark(client={"pollling": None})
async def test_unknown_of_the_client(runway_client): pass

@mark(client={"base_url": "http://127.0.0.1:1"})
async def test_elsewhere(runway_client): pass

@mark(client={"api_key": "two words"})
async def test_unfit_of_the_client(runway_client): pass

@mark(allow="db.example.com")
async def test_one_host(runway_gateway): pass

@mark(virtual_time="no")
async def test_no_truth(runway_gateway): pass

@mark(allow=["https://db.example.com"])
async def test_no_host(runway_gateway): pass

@mark(patience="long")
async def test_no_patience(runway_gateway): pass

@mark(deadline=True)
async def test_no_deadline(runway_gateway): pass

@mark(client=PollPolicy())
async def test_no_options_of_the_client(runway_gateway): pass

@pytest.mark.asyncio(loop_scope="module")
async def test_another_loop(clip): pass

@pytest.fixture
async def clip(runway_client):
    return await make_clip(runway_client, "a kitten")

async def test_too_late(request):
    request.getfixturevalue("runway_gateway")
"""


def test_invalid_options_are_reported(pytester: pytest.Pytester) -> None:
    """Each mistake fails its test with a message that names it and what is allowed."""
    pytester.makepyfile(file_of(WRONG))
    result = run(pytester, *AUTO, "-p", "no:anyio")
    result.assert_outcomes(errors=12, failed=2)
    for line in (
        "*runway has no option 'taeks'; the options are: access_token*takes*weather",
        "*runway takes its options by name, and got 600",
        "*runway: *speed*",
        "*runway has no option of the client 'pollling'; the options are: account*polling*",
        "*runway has no option of the client 'base_url'*",
        "*api_key*",
        "*runway has allow as a list of hosts*",
        "*runway: virtual_time='no' is not true or false*",
        "*runway: allow has 'https://db.example.com'; an entry is a host*",
        "*runway: patience='long' is not a number from 0*",
        "*runway: deadline=True is not a number from 0 to **",
        "*runway has client as a dictionary*",
        "*RuntimeError: runway_gateway belongs to the event loop that used it first*",
        "*runway_gateway has to be made before the loop runs*",
    ):
        result.stdout.fnmatch_lines([line])


def test_trio_is_reported(pytester: pytest.Pytester) -> None:
    """A test that anyio runs on trio fails with a message that says what to do."""
    backend = BACKEND.replace("asyncio", "trio")
    pytester.makepyfile(
        file_of(backend, "async def test_it(runway_client):\n    await runway_client.balance()\n")
    )
    result = run(pytester, *MODES["anyio auto"][0])
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*need asyncio*trio*'asyncio'*"])


def test_a_test_without_a_plugin_joins_the_loop_of_its_fixtures(
    pytester: pytest.Pytester,
) -> None:
    """If another plugin runs the fixtures but not the test, both run in one loop."""
    pytester.makepyfile(
        file_of(
            """
            import pytest_asyncio

            @pytest_asyncio.fixture
            async def loop_of_fixture(runway_client):
                await runway_client.balance()
                return asyncio.get_running_loop()

            async def test_it(loop_of_fixture, runway_client):
                assert loop_of_fixture is asyncio.get_running_loop()
                await make_clip(runway_client, "a kitten")
            """
        )
    )
    run(pytester, *MODES["asyncio strict"][0]).assert_outcomes(passed=1)


def test_hypothesis_has_its_examples(pytester: pytest.Pytester) -> None:
    """The gateway runs during each example and keeps the tasks of earlier ones."""
    pytester.makepyfile(
        file_of(
            """
            from hypothesis import HealthCheck, given, settings, strategies

            @settings(max_examples=3, suppress_health_check=list(HealthCheck), database=None)
            @given(prompt=strategies.sampled_from(["a", "b", "c"]))
            async def test_it(runway_gateway, runway_client, prompt):
                runway_gateway.reset()
                await make_clip(runway_client, prompt)
                runway_gateway.assert_submitted_once(prompt)
            """
        )
    )
    run(pytester, *AUTO).assert_outcomes(passed=1)
    run(pytester, *BARE).assert_outcomes(passed=1)
    run(pytester, "-p", "no:aiohttp", "-p", "no:asyncio").assert_outcomes(passed=1)


PORTS: Final = """
from hypothesis import HealthCheck, given, settings, strategies

gateways = []

def between_examples(number):
    for port in [port for one in gateways for port in (one.port, one.cdn_port)]:
        with socket.socket() as other, pytest.raises(OSError):
            other.bind(("127.0.0.1", port))
    return number

@settings(max_examples=3, suppress_health_check=list(HealthCheck), database=None)
@given(number=strategies.integers().map(between_examples))
async def test_stopped_between_examples(runway_gateway, number):
    gateways.append(runway_gateway)

async def test_stopped_by_the_test(runway_gateway):
    await runway_gateway.aclose()
    address = ("127.0.0.1", runway_gateway.port)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    with socket.create_server(address):
        socket.create_connection(address).close()
"""


def test_a_stopped_gateway_shares_its_ports_with_nothing(pytester: pytest.Pytester) -> None:
    """
    Nothing else gets the ports of a gateway that the plugin stopped, not even by chance.

    Those of a gateway that the test itself stopped may be another server's.
    """
    pytester.makepyfile(file_of(PORTS))
    run(pytester, *AUTO).assert_outcomes(passed=2)
    run(pytester, *BARE).assert_outcomes(passed=2)


def test_a_failing_example_is_short(pytester: pytest.Pytester) -> None:
    """Hypothesis prints a gateway in one line, without all its options."""
    pytester.makepyfile(
        file_of(
            """
            from hypothesis import HealthCheck, given, settings, strategies

            @settings(max_examples=1, suppress_health_check=list(HealthCheck), database=None)
            @given(prompt=strategies.just("a kitten"))
            async def test_it(runway_gateway, prompt):
                assert False
            """
        )
    )
    result = run(pytester, *BARE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E* test_it(", "E* runway_gateway=<Simulator closed, 0 tasks>,"])


def test_unittest_has_its_loop(pytester: pytest.Pytester) -> None:
    """A test case of unittest, which has its own loop, may use the fixtures as well."""
    pytester.makepyfile(
        file_of(
            """
            import unittest

            class TestIt(unittest.IsolatedAsyncioTestCase):
                @pytest.fixture(autouse=True)
                def with_fixtures(self, runway_gateway, runway_client):
                    self.gateway, self.client = runway_gateway, runway_client

                async def test_it(self):
                    await make_clip(self.client, "a kitten")
                    self.gateway.assert_submitted_once("a kitten")
            """
        )
    )
    run(pytester, *BARE).assert_outcomes(passed=1)


def test_it_works_in_the_workers_of_xdist(pytester: pytest.Pytester) -> None:
    """Each parallel test has its own gateway."""
    pytest.importorskip("xdist")
    pytester.makepyfile(file_of(BACKEND, TESTS.rpartition("\nasync def")[0]))
    run(pytester, *BARE, "-n", "2").assert_outcomes(passed=11)


def test_a_failed_assertion_explains_itself(pytester: pytest.Pytester) -> None:
    """The failure shows the ledger, and the user's line rather than the simulator's."""
    pytester.makepyfile(
        file_of(
            """
            async def test_twice(runway_gateway, runway_client):
                await make_clip(runway_client, "a kitten")
                await runway_client.generate("a kitten")
                runway_gateway.assert_submitted_once("a kitten")

            async def test_left_over(runway_gateway):
                runway_gateway.script("a puppy")
                runway_gateway.assert_all_used()
            """
        )
    )
    result = run(pytester, *BARE)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            ">*runway_gateway.assert_submitted_once(*",
            "E*expected 1 submission of 'a kitten', got 2, for 640 points.",
            "E*at * prompt * state * polls * paid",
            "E   * 0 s * 'a kitten' * succeeded * ??x * 320",
            "E*+ * s * 'a kitten' * queued * 0x * 320",
            ">*runway_gateway.assert_all_used(*",
            "E*- * never * 'a puppy'",
        ]
    )
    assert "simulator.py" not in result.stdout.str()


# The guard

REACHING: Final = """
import contextlib

def reach(host="gateway.example"):
    socket.getaddrinfo(host, 443)

async def test_unhidden(runway_gateway):
    reach()

async def test_hidden(runway_gateway):
    with contextlib.suppress(Exception):
        reach()
    with contextlib.suppress(Exception):
        reach("www.gateway.example")

async def test_of_the_client(runway_gateway):
    async with Client("sk-key", base_url="https://gateway.example") as client:
        await client.balance()

def test_of_a_synchronous_app(runway_client):
    with contextlib.suppress(RuntimeError):
        reach()

async def test_another_failure(runway_gateway):
    with contextlib.suppress(RuntimeError):
        reach()
    raise LookupError("of the user")

@pytest.fixture
def late(runway_gateway):
    yield
    with contextlib.suppress(RuntimeError):
        reach()

async def test_late(late):
    pass

@pytest.mark.runway(allow=["gateway.example"])
class TestAllowed:
    @pytest.mark.runway(allow=["192.0.2.0/24"])
    async def test_together(self, runway_gateway):
        _guard._WATCHING[-1].check("socket.connect", "192.0.2.1", 443)
        _guard._WATCHING[-1].check("socket.connect", "gateway.example", 443)
        assert not _guard._WATCHING[-1].is_shut(runway_gateway.port)

async def test_skipped_for_itself(runway_gateway):
    pytest.skip("no gateway")

async def test_skipped(runway_gateway):
    with contextlib.suppress(RuntimeError):
        reach()
    pytest.skip("no gateway")

@pytest.mark.parametrize("look_up", [
    socket.gethostbyaddr, socket.getfqdn, socket.gethostbyname,
    lambda host: socket.getnameinfo((host, 80), 0),
])
async def test_each_way_to_look_up(look_up, runway_gateway):
    with contextlib.suppress(RuntimeError):
        look_up("192.0.2.1" if look_up is not socket.gethostbyname else "gateway.example")

async def test_here(runway_gateway):
    reach("localhost")
    reach("127.0.0.1")
    reach("::1")
    reach("0.0.0.0")
    reach(None)

async def test_of_others():
    with contextlib.suppress(OSError):
        reach("gateway.invalid")
"""


def test_a_test_that_leaves_this_machine_fails(pytester: pytest.Pytester) -> None:
    """A test fails with the address of the attempt, even if its code hides the error."""
    pytester.makepyfile(file_of(REACHING))
    result = run(pytester, *AUTO)
    result.assert_outcomes(failed=10, passed=4, errors=1, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "The test tried to reach gateway.example:443, *allow=[[]'gateway.example'[]])",
            "E*OutsideReached: The test tried to reach gateway.example:443, *",
            "The test tried to reach gateway.example:443, www.gateway.example:443, *",
            "*test_of_the_client*",
            "E*(OutsideReached)*",
            "E*The test tried to reach gateway.example:443, *",
            "*test_of_a_synchronous_app*",
            "The test tried to reach gateway.example:443, *",
            "*test_another_failure*",
            "E*LookupError: of the user",
            "E*The test tried to reach gateway.example:443, *",
        ]
    )


def test_a_connection_by_address_is_stopped(pytester: pytest.Pytester) -> None:
    """Connections to an address without a name are stopped before a byte is sent."""
    pytester.makepyfile(
        file_of(
            """
            async def test_it(runway_gateway):
                loop = asyncio.get_running_loop()
                with socket.socket() as sock:
                    sock.setblocking(False)
                    await loop.sock_connect(sock, ("192.0.2.1", 443))
            """
        )
    )
    result = pytester.runpytest_subprocess(*BARE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*OutsideReached: The test tried to reach 192.0.2.1:443*"])


def event(name: str, *args: object) -> tuple[str, object] | None:
    """Return the host and port of an audit event."""
    return _guard.way_of(name, args)


def test_other_events_are_ignored() -> None:
    """Other address families, listening sockets and other events do not concern the guard."""
    with socket.socket(socket.AF_UNIX) as unix, socket.socket() as inet:
        assert event("socket.connect", unix, "/tmp/a.sock") is None  # noqa: S108 - never opened
        assert event("socket.sendmsg", inet, None) is None
        assert event("socket.sendto", inet, ("192.0.2.1", 53)) == ("192.0.2.1", 53)
        assert event("socket.bind", inet, ("192.0.2.1", 53)) is None
        assert event("socket.getaddrinfo", b"gateway.example", 1) == ("gateway.example", 1)
        assert event("socket.gethostbyname", "gateway.example") == ("gateway.example", None)
        assert event("socket.getaddrinfo", None, 80, 0, 0, 0) is None
        assert event("socket.gethostbyaddr", "192.0.2.1") == ("192.0.2.1", None)
        assert event("socket.getnameinfo", ("192.0.2.1", 53)) == ("192.0.2.1", None)


def guard_of(*allowed: str) -> _guard.Guard:
    """Return a guard with a marker's `allow`."""
    return _guard.Guard(tuple(map(_guard.Host.of, allowed)))


def test_an_allowed_name_allows_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection after the lookup of an allowed name passes, and no other."""

    def look_up(host: str, port: object) -> list[tuple[object, ...]]:
        sys.audit("socket.getaddrinfo", host, port, 0, 0, 0)
        return [(2, 1, 6, "", ("192.0.2.1", 0)), (10, 1, 6, "", ("2001:db8::1", 0, 0, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    guard = guard_of("db.example.com:5432")
    with guard.watching():
        for host in ("DB.Example.com.", "db.example.com"):
            guard.check("socket.getaddrinfo", host, None)
        for host in ("db.example.com", "192.0.2.1", "2001:db8::1"):
            guard.check("socket.connect", host, 5432)
        with pytest.raises(_guard.OutsideReached, match=r"192\.0\.2\.2:5432,"):
            guard.check("socket.connect", "192.0.2.2", 5432)
        with pytest.raises(_guard.OutsideReached, match=r"192\.0\.2\.1:5433,"):
            guard.check("socket.connect", "192.0.2.1", 5433)
    assert [str(reach) for reach in guard.stopped] == ["192.0.2.2:5432", "192.0.2.1:5433"]


@pytest.mark.parametrize(
    ("allowed", "host", "port"),
    [
        ("10.0.0.0/8", "10.1.2.3", 5432),
        ("10.1.2.3/8", "10.0.0.1", 5432),
        ("10.0.0.0/8", "::ffff:10.1.2.3", 5432),
        ("10.0.0.0/8:5432", "10.1.2.3", 5432),
        ("2001:db8::/32", "2001:db8::1", 443),
        ("[2001:db8::1]", "2001:db8::1", 443),
        ("[2001:db8::1]:443", "2001:db8::1", 443),
        ("192.0.2.1:443", "192.0.2.1", 443),
        ("DB.Example.COM", "db.example.com", 5432),
        ("db.example.com", "DB.EXAMPLE.com", 5432),
        ("*.example.com", "a.b.example.com", 5432),
        ("*.Example.com:5432", "db.example.com", 5432),
        ("*", "192.0.2.1", 443),
    ],
)
def test_valid_entries_of_allow(allowed: str, host: str, port: int) -> None:
    """Networks, patterns of names, ports and capitals are supported."""
    guard_of(allowed).check("socket.sendto", host, port)
    with pytest.raises(_guard.OutsideReached):
        guard_of("elsewhere.example:1").check("socket.sendto", host, port)


@pytest.mark.parametrize(
    "wrong",
    [
        "https://db.example.com",
        "db.example.com/x",
        "2001:db8::zz",
        "a b",
        "",
        "a:99999",
        "[x",
        5432,
    ],
)
def test_invalid_entries_of_allow(wrong: object) -> None:
    """An entry that could never match is a usage error with examples."""
    with pytest.raises(ValueError, match=r"allow has .*'10\.0\.0\.0/8'"):
        _guard.Host.of(wrong)


def test_this_machine_is_reached_by_any_of_its_names() -> None:
    """Loopback is allowed under each of its names, and so are lookups of addresses."""
    guard = guard_of()
    here = ("localhost", "LOCALHOST.", "app.localhost", "127.0.0.1", "127.8.8.8", "127.1", "::1")
    for host in (*here, "::ffff:127.0.0.1", "0.0.0.0", "::", socket.gethostname().upper()):  # noqa: S104
        for kind in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyaddr"):
            guard.check(kind, host, 80)
    guard.check("socket.getaddrinfo", "192.0.2.1", 80)
    for host in ("localhost.example", "10.0.0.1", "::2"):
        with pytest.raises(_guard.OutsideReached):
            guard.check("socket.connect", host, 80)
    for kind in ("socket.gethostbyaddr", "socket.getnameinfo"):
        with pytest.raises(_guard.OutsideReached):
            guard.check(kind, "192.0.2.1", None)
    report = guard.report()
    assert report is not None
    assert "localhost.example:80, 10.0.0.1:80, [::2]:80, 192.0.2.1," in report
    assert guard.report() is None


def test_a_request_to_a_stopped_gateway_is_explained() -> None:
    """A connection to the test's own gateway says when it runs, and a lookup passes."""
    guard = _guard.Guard(is_shut=lambda port: port == 81)
    guard.check("socket.connect", "127.0.0.1", 80)
    guard.check("socket.getaddrinfo", "localhost", 81)
    with pytest.raises(_guard.GatewayShut, match="asyncSetUp"):
        guard.check("socket.connect", "127.0.0.1", 81)
    assert "asyncSetUp" in str(guard.report())
    assert guard.report() is None


def test_a_pool_belongs_to_the_test() -> None:
    """Attempts of a pool's threads are the test's, those of other older threads are not."""
    ask = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool, guard_of().watching():
        pool.submit(ask.wait)
        guard = guard_of()

        def reach(host: str) -> None:
            ask.wait()
            with pytest.raises(_guard.OutsideReached):
                guard.check("socket.connect", host, 443)

        older = threading.Thread(target=reach, args=["telemetry.example"], name="telemetry")
        older.start()
        with guard.watching():
            ask.set()
            older.join()
            pool.submit(reach, "pool.example").result()
    report, strangers = guard.report(), guard.report_strangers()
    assert report is not None
    assert report.startswith("The test tried to reach pool.example:443, but")
    assert len(strangers) == 1
    assert strangers[0].startswith("The thread 'telemetry', which is older than the test, tried")


def test_the_hook_ignores_events_without_a_guard() -> None:
    """Outside tests with our fixtures, and for other events than sockets, every event passes."""
    guard = guard_of()
    with socket.socket() as inet:
        way = (inet, ("192.0.2.1", 443))
        _guard._audit("socket.connect", way)
        with guard.watching():
            _guard._audit("open", ("/tmp/a", "r", 0))  # noqa: S108 - never opened
            _guard._audit("socket.bind", way)
            _guard._audit("socket.connect", (inet, ("127.0.0.1", 443)))
            with pytest.raises(_guard.OutsideReached):
                _guard._audit("socket.connect", way)
    assert [str(reach) for reach in guard.stopped] == ["192.0.2.1:443"]


STRANGERS: Final = """
import contextlib, threading
from concurrent.futures import ThreadPoolExecutor

asked, reached = threading.Event(), threading.Event()
pool = ThreadPoolExecutor(1)
pool.submit(int).result()

def report():
    asked.wait()
    with contextlib.suppress(RuntimeError):
        socket.getaddrinfo("telemetry.example", 4317)
    reached.set()

threading.Thread(target=report, name="telemetry", daemon=True).start()

async def test_of_someone_else(runway_gateway):
    asked.set()
    assert reached.wait(10)

async def test_of_a_thread_of_its_own(runway_gateway):
    thread = threading.Thread(target=report)
    thread.start()
    thread.join()

async def test_of_an_older_pool(runway_gateway):
    await asyncio.wrap_future(pool.submit(report))
"""


def test_a_thread_that_is_older_than_the_test_does_not_fail_it(pytester: pytest.Pytester) -> None:
    """A connection of a suite's telemetry is stopped and reported as a warning."""
    pytester.makepyfile(file_of(STRANGERS))
    result = run(pytester, *AUTO)
    result.assert_outcomes(passed=1, failed=2, warnings=1)
    result.stdout.fnmatch_lines(
        [
            "*PytestWarning: The thread 'telemetry', which is older than the test, tried *",
        ]
    )


# Failures that explain themselves.

FAILING: Final = """
import contextlib, unittest
from fuhu_runway.testing import virtual_time

async def test_mistaken(runway_gateway, runway_client):
    runway_gateway.script(lambda body: body["promt"] == "a kitten", then="fail")
    with contextlib.suppress(errors.RunwayError):
        await make_clip(runway_client, "a kitten")

async def test_mistaken_and_not_hidden(runway_gateway, runway_client):
    runway_gateway.script(lambda body: body["promt"] == "a kitten", then="fail")
    await make_clip(runway_client, "a kitten")

async def test_plain(runway_gateway, runway_client):
    await make_clip(runway_client, "a kitten")
    assert runway_gateway.submitted == 2

async def test_before_anything(runway_gateway):
    assert runway_gateway.submitted == 2

async def out_of_time():
    try:
        async with asyncio.timeout(5):
            await asyncio.Event().wait()
    except TimeoutError as error:
        raise LookupError("of the app") from error

async def test_timeout(runway_gateway):
    await out_of_time()

async def test_timeout_in_a_group(runway_gateway):
    async with asyncio.TaskGroup() as group:
        group.create_task(out_of_time())

@pytest.mark.runway(virtual_time=False)
async def test_timeout_in_real_time(runway_gateway):
    raise TimeoutError

@pytest.mark.runway(deadline=0.01)
async def test_endless(runway_gateway):
    await asyncio.Event().wait()

@pytest.mark.runway(deadline=0.01)
class TestFixtures:
    @pytest.fixture
    async def endless(self, runway_gateway):
        await asyncio.Event().wait()

    @pytest.fixture
    async def endless_end(self, runway_gateway):
        yield
        await asyncio.Event().wait()

    async def test_setup(self, endless): pass
    async def test_teardown(self, endless_end): pass

class TestTooEarly(unittest.IsolatedAsyncioTestCase):
    @pytest.fixture(autouse=True)
    def with_fixtures(self, runway_client):
        self.client = runway_client

    async def asyncSetUp(self):
        await self.client.balance()

    async def test_it(self): pass
"""


def test_failures_explain_themselves(pytester: pytest.Pytester) -> None:
    """Each failure says what the user has to fix, without a frame of the plugin's."""
    pytester.makepyfile(file_of(FAILING))
    result = run(pytester, *AUTO)
    result.assert_outcomes(passed=1, failed=9, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at setup of TestFixtures.test_setup*",
            "Not done after 0.01 real seconds, and stopped. Time was virtual *",
            "*, in endless",
            "*ERROR at teardown of TestFixtures.test_teardown*",
            "*, in endless_end",
            "_* test_mistaken _*",
            "E   KeyError: 'promt'",
            "_* test_mistaken_and_not_hidden _*",
            "E   KeyError: 'promt'",
            "_* test_plain _*",
            "E*assert 1 == 2*",
            "*Captured runway_gateway call*",
            "The gateway accepted:",
            "* 0 s * 'a kitten' * succeeded * 10x * 320",
            "_* test_before_anything _*",
            "_* test_timeout _*",
            "E*LookupError: of the app",
            "E*Time is virtual in this test, and jumped over 5 s. *(virtual_time=False)*patience=*",
            "_* test_timeout_in_a_group _*",
            "*Time is virtual in this test, *",
            "_* test_timeout_in_real_time _*",
            "E*TimeoutError",
            "_* test_endless _*",
            "Not done after 0.01 real seconds, and stopped. *",
            "*, in test_endless",
            "*TestTooEarly.test_it*",
            "*runway_gateway is not running at this moment. *asyncSetUp*",
        ]
    )
    output = result.stdout.str()
    assert output.count("Captured runway_gateway call") == 1
    # Parts of the output, by the name of their test. The summary after them repeats whole
    # messages if CI is set.
    failures, _ = output.split(" short test summary info ")
    _, *parts = re.split(r"^_+ (.+?) _+$", failures, flags=re.MULTILINE)
    explained = {
        name
        for name, part in zip(parts[::2], parts[1::2], strict=True)
        if "Time is virtual in this test" in part
    }
    assert explained == {"test_timeout", "test_timeout_in_a_group"}
    # The stacks of the tasks contain lines of the plugin as well.
    assert not re.search(r"^\S*fuhu_runway/testing/(_pytest|plugin)", output, re.MULTILINE)


def test_a_missing_mark_is_reported(pytester: pytest.Pytester) -> None:
    """A test in one loop with fixtures of another does not run, and the error says why."""
    pytester.makepyfile(
        file_of(
            """
            import pytest_asyncio

            @pytest_asyncio.fixture
            async def session():
                yield asyncio.get_running_loop()

            async def test_it(session, runway_client):
                assert False

            async def test_without(runway_client):
                await runway_client.balance()
            """
        )
    )
    result = run(pytester, *MODES["asyncio strict"][0])
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["test_it is asynchronous and no plugin runs it*: session. Mark *"])


# Gateways that a suite defines.

OVERRIDDEN: Final = """
class TestAsynchronous:
    @pytest.fixture
    async def runway_gateway(self):
        async with Simulator(takes=7) as gateway:
            yield gateway

    async def test_it(self, runway_gateway, runway_client):
        await make_clip(runway_client, "a kitten")
        runway_gateway.assert_submitted_once()
        assert asyncio.get_running_loop().time.__self__.is_virtual

    async def test_the_client_alone(self, runway_client):
        await make_clip(runway_client, "a kitten")

    def test_no_loop_runs_for_it(self, runway_client):
        assert False

class TestSynchronous:
    @pytest.fixture
    def runway_gateway(self):
        return Simulator(takes=0)

    async def test_it(self, runway_gateway, runway_client):
        await make_clip(runway_client, "a kitten")
        runway_gateway.assert_submitted_once()

    def test_of_a_synchronous_app(self, runway_gateway, runway_client):
        asyncio.run(make_clip(runway_client, "a kitten"))
        runway_gateway.assert_submitted_once()

class TestExtended:
    @pytest.fixture
    def runway_gateway(self, runway_gateway):
        runway_gateway.script("a kitten", takes=3)
        return runway_gateway

    async def test_it(self, runway_gateway, runway_client):
        await make_clip(runway_client, "a kitten")
        runway_gateway.assert_all_used()

import threading

@pytest.fixture(scope="module")
def one_for_all():
    loop, gateway = asyncio.new_event_loop(), Simulator(takes=0)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(gateway.start(), loop).result()
    yield gateway
    asyncio.run_coroutine_threadsafe(gateway.aclose(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()

class TestInAThread:
    @pytest.fixture
    def runway_gateway(self, one_for_all):
        one_for_all.reset()
        return one_for_all

    @pytest.mark.runway(client={"polling": PollPolicy(first=0.01)})
    async def test_in_real_time(self, runway_gateway, runway_client):
        await make_clip(runway_client, "a kitten")
        runway_gateway.assert_submitted_once()
        assert not hasattr(asyncio.get_running_loop().time.__self__, "is_virtual")

    def test_of_a_synchronous_app(self, runway_gateway, runway_client):
        asyncio.run(make_clip(runway_client, "a kitten"))
        runway_gateway.assert_submitted_once()
"""

SHARED: Final = """
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="module")

@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_for_all():
    async with Simulator() as gateway:
        yield gateway

@pytest.fixture
def runway_gateway(one_for_all):
    one_for_all.reset()
    return one_for_all

@pytest.mark.parametrize("number", [1, 2])
async def test_it(number, one_for_all, runway_client):
    await make_clip(runway_client, "a kitten")
    one_for_all.assert_submitted_once()
    assert asyncio.get_running_loop().time.__self__.is_virtual

@pytest.mark.asyncio(loop_scope="function")
async def test_another_loop(runway_client):
    await runway_client.balance()

async def test_it_runs_still(one_for_all):
    assert one_for_all.is_running
    assert not asyncio.get_running_loop().time.__self__.is_virtual
"""


def test_a_suite_may_override_the_gateway(pytester: pytest.Pytester) -> None:
    """The client uses a `runway_gateway` of the suite's, which keeps its own lifecycle."""
    pytester.makepyfile(file_of(OVERRIDDEN))
    result = run(pytester, *AUTO)
    result.assert_outcomes(passed=7, errors=1)
    result.stdout.fnmatch_lines(["E*RuntimeError: runway_gateway belongs to the event loop *"])


def test_a_module_may_share_a_gateway(pytester: pytest.Pytester) -> None:
    """One gateway serves all tests of a module, in their loop, each in virtual time."""
    pytester.makepyfile(file_of(SHARED))
    result = run(pytester, *AUTO)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["E*RuntimeError: runway_gateway belongs to the event loop *"])


# Costs for runs that do not use it.

QUIET: Final = """
import sys
import pytest
import fuhu_runway, fuhu_runway.client
sys.exit(pytest.main(["-W", "error", *"{options}".split(), "test_it.py"]))
"""


def test_pytest_starts_quietly_after_the_package(pytester: pytest.Pytester) -> None:
    """pytest.main() does not warn if the package has been imported already."""
    package = Path(fuhu_runway.__file__).parent
    # As after an installation; the tested package may be a checkout.
    place = pytester.mkdir("site-packages")
    (place / "fuhu_runway").symlink_to(package, target_is_directory=True)
    info = place / "fuhu_runway-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fuhu-runway\nVersion: 9.9\n")
    (info / "RECORD").write_text("fuhu_runway/__init__.py,,\nfuhu_runway/testing/plugin.py,,\n")
    (info / "entry_points.txt").write_text("[pytest11]\nfuhu_runway = fuhu_runway.testing.plugin\n")
    pytester.makepyfile(test_it="def test_it(): pass")
    done = subprocess.run(
        [sys.executable, "-c", QUIET.format(options=" ".join(BARE))],
        env=os.environ | {"PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done
    assert "fuhu-runway-9.9" in done.stdout


def test_the_plugin_imports_little() -> None:
    """Every run of pytest imports it, so it imports neither the client nor the simulator."""
    source = (
        "import sys, pytest; before = {*sys.modules}; import fuhu_runway.testing.plugin;"
        "print(*sorted({*sys.modules} - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, check=True, text=True
    )
    assert set(done.stdout.split()) == {
        "fuhu_runway",
        "fuhu_runway.testing",
        "fuhu_runway.testing.plugin",
    }


def test_the_marker_is_known(pytester: pytest.Pytester) -> None:
    """`pytest --markers` lists the marker's options, and strict markers accept it."""
    result = run(pytester, *BARE, "--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.runway(*, client={}, virtual_time=True, *"])
