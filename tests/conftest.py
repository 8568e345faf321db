"""Rules for every test: only loopback may be reached, and nothing depends on real time."""

import os
import signal
import sys
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, settings
from support.clients import quick_client
from support.clock import ManualClock
from support.network import refuse_the_outside

from fuhu_runway import Client
from fuhu_runway.testing import Simulator, virtual_time

pytest_plugins = [
    "pytester",  # for the tests of our own plugin
    "support.stores",
]

# A background process of a script ignores Ctrl-C, and so do the processes that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Under nohup, a process ignores SIGHUP in the same way.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A slow machine is not a defect of the code, so examples have no deadline.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Keep every run on this machine and without a key, except the one that needs both."""
    if config.option.markexpr != "live":
        sys.addaudithook(refuse_the_outside)
        for name in [name for name in os.environ if name.startswith("FUHU_")]:
            if not name.startswith("FUHU_TEST_"):  # what the tests themselves read
                del os.environ[name]


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that the test moves."""
    return ManualClock()


@pytest.fixture
async def virtual() -> AsyncIterator[None]:
    """Let the loop's time jump over all waiting, for the whole test."""
    with virtual_time(deadline=600):  # seconds, as long as pytest waits for a test
        yield


@pytest.fixture
async def gateway() -> AsyncIterator[Simulator]:
    """Yield a gateway on loopback whose tasks take some milliseconds."""
    async with Simulator(speed=1000, takes=20) as simulator:
        yield simulator


@pytest.fixture
async def runway(gateway: Simulator) -> AsyncIterator[Client]:
    """Yield a client of `gateway` with delays of some milliseconds."""
    async with quick_client(gateway) as client:
        yield client
