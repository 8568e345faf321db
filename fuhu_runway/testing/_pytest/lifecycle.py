"""
The fixture lifecycle of one test: its options, its gateway, its client, and when they end.

Rule 1. The ports are taken before anything runs, so that synchronous fixtures know the addresses.
Rule 2. The gateway starts, and time becomes virtual, with the first asynchronous fixture or test
    that uses them, in its loop.
Rule 3. They end when the test and all fixtures that use them have ended, in that loop. Where
    nothing of that comes to run any more, they end with the loop.
Rule 4. A synchronous test has its gateway in a thread, in real time: there is no loop to share. The
    gateway is fast then, and the client polls often, unless the test says otherwise.
Rule 5. A `runway_gateway` that the suite defines itself keeps its own beginning and end, if it runs
    already when the client is made.
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

import attrs
import pytest

from fuhu_runway.testing.simulator import Simulator

from .deadline import DeadlinePassed
from .guard import Guard, Host, OutsideReached
from .virtual import DEADLINE, VirtualClock, virtual_time, watched

MARKER: Final = "runway"
FIXTURES: Final = ("runway_gateway", "runway_client")

ANOTHER_LOOP: Final = (
    "runway_gateway is at home in the event loop that used it first, and this is another one: "
    "give the test and its asynchronous fixtures the same loop, such as by the same loop_scope"
)
ANOTHER_LIBRARY: Final = (
    "runway_gateway and runway_client need asyncio, and this test runs on another library, such as "
    "trio; with anyio's plugin, let the fixture anyio_backend give 'asyncio'"
)

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Options:
    """What `@pytest.mark.runway` says about one test."""

    #: Of the client, beside its address.
    client: Mapping[str, Any]
    #: Of the gateway.
    simulator: Mapping[str, Any]
    #: What may be reached besides.
    allow: tuple[Host, ...]
    #: Whether time jumps in an asynchronous test.
    virtual_time: bool = True
    #: Real seconds without news before each jump.
    patience: float = 0.0
    #: Real seconds after which a test in virtual time is ended; None is never.
    deadline: float | None = DEADLINE


def options_of(item: pytest.Item) -> Options:
    """
    Return what the markers say.

    Those nearest to the test count; what they say of the client and of hosts is put together.
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
    if not isinstance(own.get("virtual_time", True), bool):
        _refuse("has virtual_time as True or False")
    for name in ("patience", "deadline"):
        seconds = own.get(name, 0)
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not ((is_number and seconds >= 0) or (name == "deadline" and seconds is None)):
            _refuse(f"has {name} in real seconds")
    try:
        allowed = tuple(map(Host.of, hosts))
    except ValueError as error:
        _refuse(str(error), ":")
    return Options(**own | {"client": client, "simulator": given, "allow": allowed})


def _check_names(given: Mapping[str, Any], kind: str, known: list[str]) -> None:
    for name in given:
        if name not in known:
            _refuse(f"has no {kind} {name!r}; there are: {', '.join(sorted(known))}")


def _refuse(why: str, colon: str = "") -> NoReturn:
    pytest.fail(f"@pytest.mark.{MARKER}{colon} {why}", pytrace=False)


@attrs.define(eq=False)
class Lifecycle:
    """One test's gateway, its client, if it asked for one, and its guard."""

    options: Options
    gateway: Simulator
    guard: Guard
    is_synchronous: bool
    #: The test's client; any object that is closed by `aclose` and opened by `async with`.
    client: Any = None
    _fixtures: set[str] = attrs.field(factory=lambda: {*FIXTURES})
    _loop: asyncio.AbstractEventLoop | None = None
    _run: AsyncGenerator[None, None] | None = None
    #: How many fixtures and tests use the gateway now.
    _users: int = 0

    @classmethod
    @contextlib.contextmanager
    def of(cls, item: pytest.Item, gateway: Simulator | None = None) -> "Iterator[Lifecycle]":
        """Yield a lifecycle for the test *item*, with a *gateway* of its own or with this one."""
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            pytest.fail(
                "runway_gateway has to be there before the loop runs: ask for it as an "
                "argument of the test or of its fixture",
                pytrace=False,
            )
        options, place = options_of(item), _test_of(item)
        # Simulated seconds per real one in a synchronous test: 100 s take a tenth of one.
        speed = {"speed": 1000.0} if place is None else {}
        try:
            gateway = gateway or Simulator(**{**speed, **options.simulator})
        except (TypeError, ValueError) as error:
            _refuse(str(error), ":")

        def is_shut(port: object) -> bool:
            return port in {gateway.port, gateway.cdn_port} and not gateway.is_running

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
        """Fail if a function of the user's raised, or anything reached for the outside."""
        __tracebackhide__ = bool(self.gateway.mistakes)
        if self.gateway.mistakes:
            raise self.gateway.mistakes.pop(0) from None
        report = self.guard.report()
        if report is not None:
            raise pytest.fail.Exception(report, pytrace=False) from None

    def explain(self, item: pytest.Item, error: BaseException) -> None:
        """
        Add to the failure of *item* what the gateway knows of it.

        What `check` finds is raised in place of a test that skips or expects to fail, and an
        error of the user's in place of what the client made of it.
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
                with self._in_time(), _timeouts_explained():
                    return await test(*args, **kwargs)

        setattr(owner, name, inside)
        try:
            yield
        finally:
            setattr(owner, name, test)
            if self._loop is not None:
                # A fixture failed, and its loop still is there.
                self._loop.run_until_complete(self._close())

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[None]:
        __tracebackhide__ = True
        try:
            with watched(self.options.deadline):
                yield
        except DeadlinePassed as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None

    @contextlib.contextmanager
    def hosting(self, fixture: pytest.FixtureDef[Any]) -> Iterator[None]:
        """Run *fixture* inside the lifecycle, if it uses the gateway."""
        if self._fixtures.isdisjoint(fixture.argnames):
            yield
            return
        self._fixtures.add(fixture.argname)
        before = fixture.func
        fixture.func = self._inside(before)  # type: ignore[misc]
        try:
            yield
        finally:
            fixture.func = before  # type: ignore[misc]

    def _inside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if isinstance(function, MethodType):
            # pytest binds it again, to the instance of the test.
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

            # pytest goes on, and calls what Hypothesis made of the test.
            inner.inner_test = in_a_loop
        elif inspect.iscoroutinefunction(item.obj):
            names = item._fixtureinfo.argnames  # noqa: SLF001 - as every plugin that calls tests
            self._run_test(item, item.obj(**{name: item.funcargs[name] for name in names}))
            return True
        return None

    def _run_test(self, item: pytest.Function, test: Coroutine[Any, Any, object]) -> None:
        __tracebackhide__ = True
        if self._loop is not None:
            # An asynchronous fixture of another plugin was here first.
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
        # With a factory of our own it leaves the thread's current loop alone.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.get_loop().run_until_complete(test)

    # No generator, which the end of a loop would close together with those of the fixtures.
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
            self._run = self._running(self._home(loop))
            await anext(self._run)
            self._loop = loop
            if self.client is not None:
                # Hypothesis runs a test many times, and each has its end.
                await self.client.__aenter__()
        elif self._loop is not loop:
            raise RuntimeError(ANOTHER_LOOP)

    def _home(self, loop: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop | None:
        """Return the loop in which the suite itself started the gateway; None if it did not."""
        if not self.gateway.is_running:
            return None
        home = self.gateway._clock.loop  # noqa: SLF001 - the same package
        if home is not loop and not home.is_running():
            raise RuntimeError(ANOTHER_LOOP)
        return home

    async def _running(self, home: asyncio.AbstractEventLoop | None) -> AsyncGenerator[None, None]:
        # A loop that ends closes all asynchronous generators that are left, at once: this one, and
        # that of the client, which does not have to be closed from here.
        is_here = home is None or home is asyncio.get_running_loop()
        try:
            with contextlib.ExitStack() as stack:
                if self.options.virtual_time and is_here:
                    patience = self.options.patience
                    stack.enter_context(virtual_time(patience=patience, deadline=None))
                if home is None:
                    await self.gateway.start()
                try:
                    yield
                finally:
                    if home is None:
                        await self.gateway.aclose()
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
        # Whichever loop the fixtures have, the gateway is not in it.
        self._fixtures.clear()
        is_own = self._home(None) is None
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


@contextlib.contextmanager
def _timeouts_explained() -> Iterator[None]:
    """Add to a timeout that time is virtual here: what it waited for may not be in this loop."""
    __tracebackhide__ = True
    try:
        yield
    except BaseException as error:
        clock = getattr(asyncio.get_running_loop().time, "__self__", None)
        if isinstance(clock, VirtualClock) and clock.is_virtual and _is_timeout(error):
            error.add_note(
                f"Time is virtual in this test, and jumped over {clock.jumped:g} s. If it waits "
                "for something outside its event loop, such as another process, use "
                f"@pytest.mark.{MARKER}(virtual_time=False), or patience=0.05 for that many real "
                "seconds of quiet before each jump."
            )
        raise


def _is_timeout(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_timeout, error.exceptions))
    return error is not None and (
        "timeout" in type(error).__name__.lower() or _is_timeout(error.__cause__)
    )


def _test_of(item: pytest.Item) -> tuple[Any, str] | None:
    """Return where the function of an asynchronous test is: its owner and its name there."""
    test = getattr(item, "obj", None)
    inner = getattr(test, "hypothesis", None)
    function = test if inner is None else inner.inner_test
    if not inspect.iscoroutinefunction(function):
        return None
    if isinstance(item, pytest.Function) and isinstance(item.instance, unittest.TestCase):
        # Its own runner finds the function there.
        return item.instance, item.name
    return (item, "obj") if inner is None else (inner, "inner_test")
