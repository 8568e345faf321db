"""
Where one test, its gateway and its client live: their options, their loop, and when they end.

Rule 1. The ports are taken before anything runs, so that synchronous fixtures know the addresses.
Rule 2. The gateway starts, and time becomes virtual, with the first asynchronous fixture or test
    that uses them, in its loop.
Rule 3. They end when the test and all fixtures that use them have ended, in that loop. Where
    nothing of that comes to run any more, they end with the loop.
Rule 4. A synchronous test has its gateway in a thread, in real time: there is no loop to share.
"""

import asyncio
import contextlib
import functools
import inspect
import threading
import unittest
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from types import MethodType, TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

import attrs
import pytest

from ._guard import Guard, OutsideReached
from ._virtual import virtual_time
from .simulator import Simulator

MARKER: Final = "runway"
FIXTURES: Final = ("runway_gateway", "runway_client")

T = TypeVar("T")


class Guest(Protocol):
    """What the house has to know of a client."""

    async def __aenter__(self) -> Self:
        """Open it, also if it was closed before."""

    async def aclose(self) -> None:
        """Close it."""


# What the marker says


@attrs.frozen(kw_only=True)
class Options:
    """What `@pytest.mark.runway` says about one test."""

    #: Of the client, beside its address.
    client: Mapping[str, Any] = attrs.field(factory=dict)
    #: Whether time jumps in an asynchronous test.
    virtual_time: bool = True
    #: Hosts that may be reached besides.
    allow: tuple[str, ...] = attrs.field(default=(), converter=tuple[str, ...])
    #: Of the gateway.
    simulator: Mapping[str, Any] = attrs.field(factory=dict)


OWN: Final = tuple(name for name in attrs.fields_dict(Options) if name != "simulator")


def options_of(item: pytest.Item) -> Options:
    """What the markers say, those nearest to the test last and therefore for good."""
    told: dict[str, Any] = {}
    client: dict[str, Any] = {}
    for marker in reversed([*item.iter_markers(MARKER)]):
        if marker.args:
            _refuse(f"takes its options by name, and got {marker.args[0]!r}")
        told |= marker.kwargs
        its = marker.kwargs.get("client", {})
        if not isinstance(its, Mapping):
            _refuse("has client as a dictionary of options, such as client={'limits': Limits(...)}")
        client |= its
    own = {name: told.pop(name) for name in OWN if name in told}
    _check_names(told, "option", [*_simulator_options(), *OWN])
    if isinstance(own.get("allow"), str):
        _refuse("has allow as a list of hosts, such as allow=['db.example.com']")
    if not isinstance(own.get("virtual_time", True), bool):
        _refuse("has virtual_time as True or False")
    return Options(**{**own, "client": client, "simulator": told})


def _simulator_options() -> list[str]:
    return [field.alias or field.name for field in attrs.fields(Simulator) if field.init]


def _check_names(given: Mapping[str, Any], kind: str, known: list[str]) -> None:
    for name in given:
        if name not in known:
            _refuse(f"has no {kind} {name!r}; there are: {', '.join(sorted(known))}")


def _refuse(why: str) -> None:
    pytest.fail(f"@pytest.mark.{MARKER} {why}", pytrace=False)


# The house


@attrs.define(eq=False)
class House:
    """One test's gateway, its client, if it asked for one, and its guard."""

    options: Options
    gateway: Simulator
    guard: Guard
    client: Guest | None = None
    _users: set[str] = attrs.field(factory=lambda: {*FIXTURES})
    _loop: asyncio.AbstractEventLoop | None = None
    _life: AsyncGenerator[None, None] | None = None
    _guests: int = 0

    @classmethod
    @contextlib.contextmanager
    def of(cls, item: pytest.Item) -> "Iterator[House]":
        """Keep a house for the test *item*, from its first fixture to its last."""
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            pytest.fail(
                "runway_gateway has to be there before the loop runs: ask for it as an "
                "argument of the test or of its fixture",
                pytrace=False,
            )
        options = options_of(item)
        try:
            house = cls(options, Simulator(**options.simulator), Guard(frozenset(options.allow)))
        except (TypeError, ValueError) as error:
            pytest.fail(f"@pytest.mark.{MARKER}: {error}", pytrace=False)
        place = _test_of(item)
        with contextlib.ExitStack() as stack:
            stack.callback(house.check)
            stack.enter_context(house.guard.watching())
            house.gateway.bind()
            stack.callback(house.gateway.unbind)
            stack.enter_context(house.in_thread() if place is None else house.around(*place))
            yield house

    def made(self, client: Callable[..., T], **defaults: Any) -> T:
        """A client of the gateway, with the marker's options."""
        known = [name for name in inspect.signature(client).parameters if name != "base_url"]
        _check_names(self.options.client, "option of the client", known)
        options = {"api_key": self.gateway.api_key, **defaults, **self.options.client}
        return client(base_url=self.gateway.base_url, **options)

    def check(self) -> None:
        """Fail if anything reached for the outside."""
        told = self.guard.tell()
        if told is not None:
            pytest.fail(told, pytrace=False)

    def explain(self, error: BaseException) -> None:
        """Add what reached for the outside to another failure."""
        told = self.guard.tell()
        if told is not None and not isinstance(error, OutsideReached):
            error.add_note(told)

    # Asynchronous tests

    @contextlib.contextmanager
    def around(self, owner: Any, name: str) -> Iterator[None]:
        """Have the test, which is the attribute *name* of *owner*, run in the house."""
        test = getattr(owner, name)

        @functools.wraps(test)
        async def in_house(*args: Any, **kwargs: Any) -> object:
            async with self:
                return await test(*args, **kwargs)

        setattr(owner, name, in_house)
        try:
            yield
        finally:
            setattr(owner, name, test)
            self._end()

    @contextlib.contextmanager
    def hosting(self, fixture: pytest.FixtureDef[Any]) -> Iterator[None]:
        """Have *fixture* run in the house, if it uses it."""
        if self._users.isdisjoint(fixture.argnames):
            yield
            return
        self._users.add(fixture.argname)
        before = fixture.func
        fixture.func = self._in_house(before)  # type: ignore[misc]
        try:
            yield
        finally:
            fixture.func = before  # type: ignore[misc]

    def _in_house(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if isinstance(function, MethodType):
            # pytest binds it anew, to the instance of the test.
            return MethodType(self._in_house(function.__func__), function.__self__)
        if inspect.isasyncgenfunction(function):

            @functools.wraps(function)
            async def values(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
                async with self, contextlib.aclosing(function(*args, **kwargs)) as given:
                    async for value in given:
                        yield value

            return values
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def value(*args: Any, **kwargs: Any) -> Any:
                await self._open()
                return await function(*args, **kwargs)

            return value
        return function

    def run(self, item: pytest.Function) -> bool | None:
        """Run the test, if it is asynchronous and nobody else did; None if it is not."""
        if not inspect.iscoroutinefunction(item.obj):
            return None
        names = item._fixtureinfo.argnames  # noqa: SLF001 - as every plugin that calls tests
        test = item.obj(**{name: item.funcargs[name] for name in names})
        with contextlib.ExitStack() as stack:
            # An asynchronous fixture of another plugin may have been here first.
            loop = self._loop or stack.enter_context(_runner()).get_loop()
            loop.run_until_complete(test)
        return True

    async def __aenter__(self) -> None:
        await self._open()
        self._guests += 1

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._guests -= 1
        if self._guests == 0:
            await self._close()

    async def _open(self) -> None:
        loop = _running_loop()
        if self._life is None:
            self._life = self._live()
            await anext(self._life)
            self._loop = loop
            if self.client is not None:
                # Hypothesis runs a test many times, and each has its end.
                await self.client.__aenter__()
        elif self._loop is not loop:
            raise RuntimeError(
                "runway_gateway is at home in the event loop that used it first, and this is "
                "another one: give the test and its asynchronous fixtures the same loop, such as "
                "by the same loop_scope"
            )

    async def _live(self) -> AsyncGenerator[None, None]:
        # A loop that ends closes all asynchronous generators that are left, at once: this one, and
        # that of the client, which does not have to be closed from here.
        try:
            with virtual_time() if self.options.virtual_time else contextlib.nullcontext():
                async with self.gateway:
                    yield
        finally:
            self._life = self._loop = None

    async def _close(self) -> None:
        if self.client is not None:
            await self.client.aclose()
        if self._life is not None:
            await self._life.aclose()

    def _end(self) -> None:
        """Close what nobody closed: a fixture failed, and its loop still is there."""
        if self._loop is not None:
            self._loop.run_until_complete(self._close())

    # Synchronous tests

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[None]:
        """Run the gateway in a thread, and close the client there."""
        # Whichever loop the fixtures have, the gateway is not in it.
        self._users.clear()
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name=FIXTURES[0], daemon=True)
        thread.start()

        def run(work: Coroutine[Any, Any, None]) -> None:
            asyncio.run_coroutine_threadsafe(work, loop).result()

        try:
            run(self.gateway.start())
            yield
            run(self._close())
        finally:
            run(self.gateway.aclose())
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


def _test_of(item: pytest.Item) -> tuple[Any, str] | None:
    """Where the function of an asynchronous test is: its owner and its name there."""
    test = getattr(item, "obj", None)
    inner = getattr(test, "hypothesis", None)
    function = test if inner is None else inner.inner_test
    if not inspect.iscoroutinefunction(function):
        return None
    if isinstance(item, pytest.Function) and isinstance(item.instance, unittest.TestCase):
        # Its own runner finds the function there.
        return item.instance, item.name
    return (item, "obj") if inner is None else (inner, "inner_test")


def _runner() -> asyncio.Runner:
    # With a factory of our own it leaves the thread's current loop alone.
    return asyncio.Runner(loop_factory=asyncio.new_event_loop)


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise RuntimeError(
            "runway_gateway and runway_client need asyncio, and this test runs on another "
            "library, such as trio; with anyio's plugin, let the fixture anyio_backend give "
            "'asyncio'"
        ) from error
