"""
The fixture lifecycle of one test: its options, its gateway and its client.

Rule 1. The ports are taken before anything runs, so that synchronous fixtures know the addresses.
Rule 2. The gateway starts, and time becomes virtual, with the first asynchronous fixture or test
    that uses them, in its loop.
Rule 3. Both end in that loop, after the test and all fixtures that use them. If the loop is closed
    before that, they end with it.
Rule 4. A synchronous test has no loop to share, so its gateway runs in a thread, in real time. By
    default, the gateway is fast then, and the client polls often.
Rule 5. A `runway_gateway` that the test suite defines and starts itself is not stopped here.
"""

import asyncio
import contextlib
import functools
import inspect
import threading
import unittest
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from types import MethodType
from typing import Any, Final, NoReturn, TypeVar
from unittest import mock

import attrs
import pytest

from fuhu_runway.testing._server.options import check
from fuhu_runway.testing.simulator import Simulator

from .deadline import DeadlinePassed
from .guard import Guard, Host, OutsideReached
from .virtual import DEADLINE, virtual_clock, virtual_time, watched

MARKER: Final = "runway"
FIXTURES: Final = ("runway_gateway", "runway_client")

ANOTHER_LOOP: Final = (
    "runway_gateway belongs to the event loop that used it first, and this is another one; "
    "use the same loop for the test and its asynchronous fixtures, such as by the same loop_scope"
)
ANOTHER_LIBRARY: Final = (
    "runway_gateway and runway_client need asyncio, and this test runs on another library, such as "
    "trio; with anyio's plugin, let the fixture anyio_backend return 'asyncio'"
)

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Options:
    """The options of `@pytest.mark.runway` for one test."""

    #: Options of the client, except its URL.
    client: Mapping[str, Any]
    #: Options of the gateway.
    simulator: Mapping[str, Any]
    #: Hosts that the guard lets pass.
    allow: tuple[Host, ...]
    #: Whether time is virtual in an asynchronous test.
    virtual_time: bool = attrs.field(default=True, validator=check)
    #: Real seconds without activity before each jump.
    patience: float = attrs.field(default=0.0, validator=check)
    #: Real seconds after which a test in virtual time is stopped; None never stops it.
    deadline: float | None = attrs.field(default=DEADLINE, validator=check)


def options_of(item: pytest.Item) -> Options:
    """
    Return the options of all markers of the test.

    The nearest marker wins, except for options of the client and hosts, which are merged.
    """
    given: dict[str, Any] = {}
    client: dict[str, Any] = {}
    hosts: list[object] = []
    for marker in reversed([*item.iter_markers(MARKER)]):
        if marker.args:
            _refuse(f"takes its options by name, and got {marker.args[0]!r}")
        given |= marker.kwargs
        its, allow = marker.kwargs.get("client", {}), marker.kwargs.get("allow", ())
        if not isinstance(its, Mapping):
            _refuse("has client as a dictionary of options, such as client={'limits': Limits(...)}")
        if not isinstance(allow, list | tuple | set | frozenset):
            _refuse("has allow as a list of hosts, such as allow=['db.example.com']")
        client |= its
        hosts += allow
    names = attrs.fields_dict(Options).keys() - {"simulator"}
    own = {name: given.pop(name) for name in names if name in given}
    known = [field.alias or field.name for field in attrs.fields(Simulator) if field.init]
    _check_names(given, "option", [*known, *names])
    try:
        allowed = tuple(map(Host.of, hosts))
        return Options(**own | {"client": client, "simulator": given, "allow": allowed})
    except ValueError as error:
        _refuse(str(error), ":")


def _check_names(given: Mapping[str, Any], kind: str, known: list[str]) -> None:
    for name in given:
        if name not in known:
            _refuse(f"has no {kind} {name!r}; the options are: {', '.join(sorted(known))}")


def _refuse(why: str, colon: str = "") -> NoReturn:
    raise pytest.fail.Exception(f"@pytest.mark.{MARKER}{colon} {why}", pytrace=False) from None


@attrs.define(eq=False)
class Lifecycle:
    """One test's gateway, its guard, and its client if it uses one."""

    options: Options
    gateway: Simulator
    guard: Guard
    is_synchronous: bool
    #: The test's client, which may be any object with `aclose` and `async with`.
    client: Any = None
    _fixtures: set[str] = attrs.field(factory=lambda: {*FIXTURES})
    _loop: asyncio.AbstractEventLoop | None = None
    _run: AsyncGenerator[None, None] | None = None
    #: The number of fixtures and tests that use the gateway now.
    _users: int = 0

    @classmethod
    @contextlib.contextmanager
    def of(cls, item: pytest.Item, gateway: Simulator | None = None) -> "Iterator[Lifecycle]":
        """Yield a lifecycle for the test *item*, with this *gateway* or a new one."""
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            pytest.fail(
                "runway_gateway has to be made before the loop runs: make it an argument of the "
                "test or of its fixture",
                pytrace=False,
            )
        options, place = options_of(item), _test_of(item)
        # In a synchronous test, 100 simulated seconds take 0.1 real ones.
        speed = {"speed": 1000.0} if place is None else {}
        try:
            gateway = gateway or Simulator(**{**speed, **options.simulator})
        except (TypeError, ValueError) as error:
            _refuse(str(error), ":")

        def is_shut(port: object) -> bool:
            # A test that closes the gateway itself wants its connections to be refused.
            is_own = port in {gateway.port, gateway.cdn_port}
            return is_own and not (gateway.is_running or lifecycle._users)

        lifecycle = cls(options, gateway, Guard(options.allow, is_shut), place is None)
        with contextlib.ExitStack() as stack:
            stack.callback(lifecycle.check)
            stack.enter_context(lifecycle.guard.watching())
            gateway.bind()
            stack.callback(gateway.unbind)
            inner = lifecycle.in_thread() if place is None else lifecycle.around(*place)
            stack.enter_context(inner)
            yield lifecycle

    def made(self, client: Callable[..., T], **defaults: Any) -> T:
        """Return a client of the gateway, with the marker's options."""
        known = [name for name in inspect.signature(client).parameters if name != "base_url"]
        _check_names(self.options.client, "option of the client", known)
        options = {"api_key": self.gateway.api_key, **defaults, **self.options.client}
        return client(base_url=self.gateway.base_url, **options)

    def check(self) -> None:
        """Fail if a function of the user's raised, or if the guard stopped a connection."""
        __tracebackhide__ = bool(self.gateway.mistakes)
        if self.gateway.mistakes:
            raise self.gateway.mistakes.pop(0) from None
        report = self.guard.report()
        if report is not None:
            raise pytest.fail.Exception(report, pytrace=False) from None

    def explain(self, item: pytest.Item, error: BaseException) -> None:
        """
        Add the report of the guard and the ledger to the failure of *item*.

        A failure of `check` replaces a skip or an expected failure, and an error of a user's
        function replaces the client's error that it led to.
        """
        __tracebackhide__ = bool(self.gateway.mistakes)
        if self.gateway.mistakes or isinstance(
            error, pytest.skip.Exception | pytest.xfail.Exception
        ):
            self.check()
            return
        report = self.guard.report()
        if report is not None and not isinstance(error, OutsideReached):
            error.add_note(report)
        if self.gateway.submitted:
            ledger = str(self.gateway._ledger())  # noqa: SLF001 - the same package
            item.add_report_section("call", FIXTURES[0], ledger)

    # Asynchronous tests

    @contextlib.contextmanager
    def around(self, owner: Any, name: str) -> Iterator[None]:
        """Run the test, which is the attribute *name* of *owner*, inside the lifecycle."""
        test = getattr(owner, name)

        @functools.wraps(test)
        async def inside(*args: Any, **kwargs: Any) -> object:
            __tracebackhide__ = True
            async with self:
                with self._in_time():
                    return await test(*args, **kwargs)

        setattr(owner, name, inside)
        try:
            yield
        finally:
            setattr(owner, name, test)
            if self._loop is not None:
                # A fixture failed, and its loop is still open.
                self._loop.run_until_complete(self._close())

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[None]:
        """Fail at the deadline, and explain other timeouts by the virtual time."""
        __tracebackhide__ = True
        try:
            with watched(self.options.deadline):
                yield
        except DeadlinePassed as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        except BaseException as error:
            clock = virtual_clock()
            if clock is not None and _is_timeout(error):
                error.add_note(
                    f"Time is virtual in this test, and jumped over {clock.jumped:g} s. If it "
                    "waits for something outside its event loop, such as another process, use "
                    f"@pytest.mark.{MARKER}(virtual_time=False), or patience=0.05 for that many "
                    "real seconds without activity before each jump."
                )
            raise

    @contextlib.contextmanager
    def hosting(self, fixture: pytest.FixtureDef[Any]) -> Iterator[None]:
        """Run *fixture* inside the lifecycle, if it uses the gateway."""
        if self._fixtures.isdisjoint(fixture.argnames):
            yield
            return
        self._fixtures.add(fixture.argname)
        with mock.patch.object(fixture, "func", self._inside(fixture.func)):
            yield

    def _inside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if isinstance(function, MethodType):
            # pytest will bind it again, to the instance of the test.
            return MethodType(self._inside(function.__func__), function.__self__)
        if inspect.isasyncgenfunction(function):

            @functools.wraps(function)
            async def values(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
                __tracebackhide__ = True
                async with self, contextlib.aclosing(function(*args, **kwargs)) as given:
                    while True:
                        try:
                            with self._in_time():
                                value = await anext(given)
                        except StopAsyncIteration:
                            return
                        yield value

            return values
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def value(*args: Any, **kwargs: Any) -> Any:
                __tracebackhide__ = True
                await self._open()
                with self._in_time():
                    return await function(*args, **kwargs)

            return value
        return function

    def run(self, item: pytest.Function) -> bool | None:
        """Run the test, if it is asynchronous and no other plugin does; None if it is not."""
        __tracebackhide__ = True
        inner = getattr(item.obj, "hypothesis", None)
        if inner is not None and inspect.iscoroutinefunction(inner.inner_test):
            example = inner.inner_test

            @functools.wraps(example)
            def in_a_loop(*args: Any, **kwargs: Any) -> None:
                __tracebackhide__ = True
                self._run_test(item, example(*args, **kwargs))

            # pytest then calls the wrapper of Hypothesis, which calls this.
            inner.inner_test = in_a_loop
        elif inspect.iscoroutinefunction(item.obj):
            names = item._fixtureinfo.argnames  # noqa: SLF001 - as every plugin that calls tests
            self._run_test(item, item.obj(**{name: item.funcargs[name] for name in names}))
            return True
        return None

    def _run_test(self, item: pytest.Function, test: Coroutine[Any, Any, object]) -> None:
        __tracebackhide__ = True
        if self._loop is not None:
            # The loop of another plugin's asynchronous fixture.
            self._loop.run_until_complete(test)
            return
        fixtures = item._fixtureinfo.name2fixturedefs  # noqa: SLF001 - as above
        others = [
            name
            for name, (*_, one) in fixtures.items()
            if inspect.iscoroutinefunction(one.func) or inspect.isasyncgenfunction(one.func)
        ]
        if others:
            test.close()
            pytest.fail(
                f"{item.name} is asynchronous and no plugin runs it, but one runs its fixtures, in "
                f"an event loop of its own: {', '.join(others)}. Mark the test for that plugin, "
                "such as by @pytest.mark.asyncio or by asyncio_mode = auto",
                pytrace=False,
            )
        # With a factory, the thread's current loop is not replaced.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.get_loop().run_until_complete(test)

    # Not a generator, since a closing loop would close it together with those of the fixtures.
    async def __aenter__(self) -> None:
        __tracebackhide__ = True
        await self._open()
        self._users += 1

    async def __aexit__(self, *_error: object) -> None:
        self._users -= 1
        if self._users == 0:
            await self._close()

    async def _open(self) -> None:
        __tracebackhide__ = True
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise RuntimeError(ANOTHER_LIBRARY) from error
        if self._run is None:
            self._run = self._running(self._gateway_loop(loop))
            await anext(self._run)
            self._loop = loop
            if self.client is not None:
                # Hypothesis runs a test many times, and each run closes the client.
                await self.client.__aenter__()
        elif self._loop is not loop:
            raise RuntimeError(ANOTHER_LOOP)

    def _gateway_loop(
        self, loop: asyncio.AbstractEventLoop | None
    ) -> asyncio.AbstractEventLoop | None:
        """Return the loop in which the test suite started the gateway; None if it did not."""
        if not self.gateway.is_running:
            return None
        own = self.gateway._clock.loop  # noqa: SLF001 - the same package
        if own is not loop and not own.is_running():
            raise RuntimeError(ANOTHER_LOOP)
        return own

    async def _running(self, own: asyncio.AbstractEventLoop | None) -> AsyncGenerator[None, None]:
        # If the loop is closed first, it closes this generator, and that of the client.
        is_here = own is None or own is asyncio.get_running_loop()
        try:
            async with contextlib.AsyncExitStack() as stack:
                if self.options.virtual_time and is_here:
                    patience = self.options.patience
                    stack.enter_context(virtual_time(patience=patience, deadline=None))
                if own is None:
                    await self.gateway.start()
                    stack.push_async_callback(self.gateway.aclose)
                yield
        finally:
            self._run = self._loop = None

    async def _close(self) -> None:
        if self.client is not None:
            await self.client.aclose()
        if self._run is not None:
            await self._run.aclose()

    # Synchronous tests

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[None]:
        """Run the gateway in a thread, and close the client there."""
        # The gateway is not in the loop of any fixture.
        self._fixtures.clear()
        is_own = self._gateway_loop(None) is None
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name=FIXTURES[0], daemon=True)

        def run(work: Coroutine[Any, Any, None]) -> None:
            asyncio.run_coroutine_threadsafe(work, loop).result()

        thread.start()
        try:
            if is_own:
                run(self.gateway.start())
            yield
            run(self._close())
        finally:
            if is_own:
                run(self.gateway.aclose())
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


def _is_timeout(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_timeout, error.exceptions))
    return error is not None and (
        "timeout" in type(error).__name__.lower() or _is_timeout(error.__cause__)
    )


def _test_of(item: pytest.Item) -> tuple[Any, str] | None:
    """Return the object and the attribute that hold an asynchronous test's function."""
    test = getattr(item, "obj", None)
    inner = getattr(test, "hypothesis", None)
    function = test if inner is None else inner.inner_test
    if not inspect.iscoroutinefunction(function):
        return None
    if isinstance(item, pytest.Function) and isinstance(item.instance, unittest.TestCase):
        # unittest's runner looks the function up by its name.
        return item.instance, item.name
    return (item, "obj") if inner is None else (inner, "inner_test")
