"""
The pytest plugin: a gateway and a client for a test, with virtual time and no way outside.

Rule 1. Every run of pytest imports this module wherever the package is installed, so it imports
    nothing but pytest; what it needs comes with the first test that asks for a fixture.
Rule 2. A test that asks for no fixture of ours notices nothing.
"""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fuhu_runway.client import Client

    from ._house import House
    from .simulator import Simulator

HOUSE: pytest.StashKey["House"] = pytest.StashKey()
"""Where the house of a test is kept, once one of the fixtures was asked for."""


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "runway(*, client={}, virtual_time=True, allow=(), **simulator): options of the test's "
        "runway_gateway and runway_client; those nearest to the test count.",
    )


@pytest.fixture
def runway_gateway(request: pytest.FixtureRequest) -> "Iterator[Simulator]":
    """Give a simulated gateway, in virtual time while an asynchronous test runs."""
    from ._house import House

    with House.of(request.node) as house:
        request.node.stash[HOUSE] = house
        yield house.gateway
        del request.node.stash[HOUSE]


@pytest.fixture
def runway_client(
    runway_gateway: "Simulator",  # noqa: ARG001 - its house is what is needed
    request: pytest.FixtureRequest,
) -> "Client":
    """Give a client of `runway_gateway`, closed when the test is over."""
    from fuhu_runway.client import Client
    from fuhu_runway.models import PollPolicy

    house: House = request.node.stash[HOUSE]
    # Without chance, all instants of a test are the same in each run.
    house.client = house.made(Client, polling=PollPolicy(jitter=0))
    return house.client


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Have the gateway run while an asynchronous fixture uses it."""
    house = request.node.stash.get(HOUSE, None)
    if house is None:
        return (yield)
    with house.hosting(fixturedef):
        return (yield)


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an asynchronous test with a fixture of ours where no other plugin does."""
    house = pyfuncitem.stash.get(HOUSE, None)
    # The plugin inside of aiohttp runs all of them, and its turn comes after ours.
    if house is None or pyfuncitem.config.pluginmanager.hasplugin("aiohttp.pytest_plugin"):
        return None
    return house.run(pyfuncitem)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test that reached for the outside, even where its code hid the error."""
    try:
        yield
    except BaseException as error:
        if HOUSE in item.stash:
            item.stash[HOUSE].explain(error)
        raise
    if HOUSE in item.stash:
        item.stash[HOUSE].check()
