"""
The pytest plugin: a gateway and a client for a test, with virtual time and no way outside.

Rule 1. Wherever the package is installed, every run of pytest imports this module. So it imports
    only pytest, and everything else with the first test that uses a fixture.
Rule 2. A test without our fixtures is not affected.
"""

import contextlib
import warnings
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fuhu_runway.client import Client

    from ._pytest.lifecycle import Lifecycle
    from .simulator import Simulator

LIFECYCLE: pytest.StashKey["Lifecycle"] = pytest.StashKey()
"""The key of a test's lifecycle, if it uses one of the fixtures."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "runway(*, client={}, virtual_time=True, patience=0.0, deadline=60.0, allow=(), "
        "**simulator): options of the test's runway_gateway and runway_client; the nearest win.",
    )


@contextlib.contextmanager
def _lifecycle(item: pytest.Item, gateway: "Simulator | None" = None) -> "Iterator[Lifecycle]":
    from ._pytest.lifecycle import Lifecycle

    with Lifecycle.of(item, gateway) as lifecycle:
        item.stash[LIFECYCLE] = lifecycle
        yield lifecycle
        del item.stash[LIFECYCLE]
    for report in lifecycle.guard.report_strangers():
        # Not by warnings.warn, which may fail the test.
        warning = warnings.WarningMessage(pytest.PytestWarning(report), pytest.PytestWarning, "", 0)
        item.config.hook.pytest_warning_recorded.call_historic(
            kwargs={"warning_message": warning, "nodeid": "", "when": "runtest", "location": None}
        )


@pytest.fixture
def runway_gateway(request: pytest.FixtureRequest) -> "Iterator[Simulator]":
    """Yield a simulated gateway, in virtual time while an asynchronous test runs."""
    with _lifecycle(request.node) as lifecycle:
        yield lifecycle.gateway


@pytest.fixture
def runway_client(
    runway_gateway: "Simulator", request: pytest.FixtureRequest
) -> "Iterator[Client]":
    """Yield a client of `runway_gateway` and close it after the test."""
    from fuhu_runway.client import Client
    from fuhu_runway.models import PollPolicy

    lifecycle = request.node.stash.get(LIFECYCLE, None)
    with contextlib.ExitStack() as stack:
        if lifecycle is None:
            # The test suite overrides runway_gateway.
            lifecycle = stack.enter_context(_lifecycle(request.node, runway_gateway))
        # Without jitter, all instants of a test are the same in each run.
        polling = PollPolicy(jitter=0)
        if lifecycle.is_synchronous:
            polling = PollPolicy(first=0.01, max_interval=0.05, jitter=0)
        lifecycle.client = lifecycle.made(Client, polling=polling)
        yield lifecycle.client


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Run the gateway while an asynchronous fixture uses it."""
    __tracebackhide__ = True
    lifecycle = request.node.stash.get(LIFECYCLE, None)
    if lifecycle is None:
        return (yield)
    with lifecycle.hosting(fixturedef):
        return (yield)


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an asynchronous test with our fixtures if no other plugin does."""
    __tracebackhide__ = True
    lifecycle = pyfuncitem.stash.get(LIFECYCLE, None)
    # The hooks of these plugins are called after ours.
    has_plugin = pyfuncitem.config.pluginmanager.hasplugin
    is_anyios = has_plugin("anyio") and "anyio_backend" in pyfuncitem.funcargs
    if lifecycle is None or is_anyios or has_plugin("aiohttp.pytest_plugin"):
        return None
    return lifecycle.run(pyfuncitem)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test that tried to leave this machine, even if its code hid the error."""
    lifecycle = item.stash.get(LIFECYCLE, None)
    try:
        yield
    except BaseException as error:
        if lifecycle is not None:
            lifecycle.explain(item, error)
        raise
    if lifecycle is not None:
        lifecycle.check()
