"""What holds for every test: only loopback is reached, and nothing is timed."""

import asyncio
import importlib
import ipaddress
import os
import pkgutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from support.clients import quick_client
from support.clock import ManualClock

import fuhu_runway
from fuhu_runway import Client
from fuhu_runway.testing import Simulator

# In the background of a script a process is born deaf to Ctrl-C, and so is all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow machine is no fault of the code: examples have no deadline of their own.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def refuse_the_outside(event: str, args: tuple[Any, ...]) -> None:
    """Stop a connection to anywhere but this machine, whichever library makes it."""
    if event != "socket.connect" or not isinstance(args[1], tuple):
        return
    host = args[1][0]
    if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
        message = f"a test reached for {host}: only loopback is ever a target"
        raise RuntimeError(message)


def pytest_configure(config: pytest.Config) -> None:
    """Keep every run on this machine and without a key, except the one that needs both."""
    # Once set, even to nothing, asyncio makes no loop by itself that nobody would close;
    # looptime asks for one in each test that has none.
    asyncio.set_event_loop(None)
    if config.option.markexpr != "live":
        sys.addaudithook(refuse_the_outside)
        for name in [name for name in os.environ if name.startswith("FUHU_")]:
            del os.environ[name]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Import every module before the first test, so that its top level is no one test's doing."""
    if measurement() is None:
        return
    for module in pkgutil.walk_packages(fuhu_runway.__path__, "fuhu_runway."):
        if not module.name.endswith("__main__"):
            with suppress(ImportError):  # one that needs an extra
                importlib.import_module(module.name)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """Have coverage write down which file of tests reaches what, in all that it starts as well."""
    coverage = measurement()
    name = item.nodeid.partition("::")[0]
    if coverage is not None and os.environ.get("COVERAGE_TEST_FILE") != name:
        coverage.switch_context(name)
        os.environ["COVERAGE_TEST_FILE"] = name


def measurement() -> Any:
    """Give what measures this run, if anything does."""
    coverage = sys.modules.get("coverage")
    return coverage and coverage.Coverage.current()


@pytest.fixture
def clock() -> ManualClock:
    """Time that passes when the test says so."""
    return ManualClock()


@pytest.fixture
async def gateway() -> AsyncIterator[Simulator]:
    """A gateway on loopback, on which a task takes some milliseconds."""
    async with Simulator(speed=1000, takes=20) as simulator:
        yield simulator


@pytest.fixture
async def runway(gateway: Simulator) -> AsyncIterator[Client]:
    """A client of `gateway` whose pauses are some milliseconds as well."""
    async with quick_client(gateway) as client:
        yield client
