"""
Stop and report every connection of a test to another machine.

Rule 1. Python's audit events report every socket, whichever library opened it. Libraries that use
    their own sockets in C are not seen.
Rule 2. An audit hook cannot be removed, so there is one for the whole process. It is installed with
    the first guard, and does nothing while no guard is active.
Rule 3. Each stopped attempt is recorded, so that it is reported even if the code hides the error.
Rule 4. A thread that is older than the test, and not in a pool, does not work for the test. It is
    stopped as well, but the test does not fail.
"""

import concurrent.futures.thread
import contextlib
import fnmatch
import functools
import ipaddress
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Self

import attrs

CONNECTS: Final = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
# The first two use a name server only for names, the others also for addresses.
LOOK_UPS: Final = frozenset({"socket.getaddrinfo", "socket.gethostbyname"})
REVERSE: Final = frozenset({"socket.gethostbyaddr", "socket.getnameinfo"})
INTERNET: Final = frozenset({socket.AF_INET, socket.AF_INET6})

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class OutsideReached(RuntimeError):
    """A connection or a name lookup was stopped, since it leads beyond this machine."""


class GatewayShut(RuntimeError):
    """A connection to the test's own gateway while it is not running."""


@attrs.frozen
class Host:
    """A host, a pattern of names or a network, with its port or with all ports."""

    name: str
    network: Network | None = None
    port: int | None = None

    @classmethod
    def of(cls, text: object) -> Self:
        """Parse one entry of `allow`, or raise ValueError."""
        if isinstance(text, str):
            name, colon, port = text.rpartition(":")
            with contextlib.suppress(ValueError):
                return cls(text, ipaddress.ip_network(text.strip("[]"), strict=False))
            has_port = colon and port.isdecimal() and int(port) < 2**16
            if has_port and (":" not in name or name.endswith("]")):
                return attrs.evolve(cls.of(name), port=int(port))
            if text and not set(text) & set(" \t\n/:@[]"):
                return cls(_plain(text))
        raise ValueError(
            f"allow has {text!r}; an entry is a host, a network or a pattern of names, and may end "
            "with a port: 'db.example.com', '10.0.0.0/8', '*.example.com', '192.0.2.1:5432'"
        )

    def fits(self, host: str, port: object) -> bool:
        """Return whether this entry allows *host* at *port*; None means any port."""
        if self.port is not None and port not in {None, self.port}:
            return False
        if self.network is not None:
            return (address := _address(host)) is not None and address in self.network
        return fnmatch.fnmatchcase(host, self.name)


@attrs.frozen
class Reach:
    """One stopped attempt."""

    host: str
    port: object
    #: The name of its thread, if that is older than the test and not in a pool.
    stranger: str | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host


SHUT: Final = (
    "runway_gateway is not running at this moment. It starts with the first asynchronous fixture "
    "or test that has it as an argument, and stops with the last; in unittest it runs during the "
    "test method, but not in asyncSetUp or asyncTearDown. Move the request there; a task that the "
    "test left running must end before the test does."
)


@attrs.define(eq=False)
class Guard:
    """Stop every connection except to loopback and the hosts that one test allows."""

    allowed: tuple[Host, ...] = ()
    #: Returns whether a port is that of the gateway, which is not running.
    is_shut: Callable[[object], bool] = lambda _port: False
    #: Stopped attempts that are not reported yet.
    stopped: list[Reach] = attrs.field(factory=list)
    #: Whether there was a request to the gateway while it was not running, not reported yet.
    was_shut: bool = False
    #: The addresses of allowed names: a connection is reported only with its address.
    _addresses: dict[str, frozenset[str]] = attrs.field(factory=dict)
    _older: frozenset[threading.Thread] = frozenset()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Stop attempts in all threads of the process."""
        _install()
        self._older = frozenset(threading.enumerate()) - {threading.current_thread()}
        _WATCHING.append(self)
        try:
            yield
        finally:
            _WATCHING.remove(self)

    def check(self, event: str, host: str, port: object) -> None:
        """Raise GatewayShut or OutsideReached unless an *event* about *host* is allowed."""
        __tracebackhide__ = True
        host, is_connect = _plain(host), event in CONNECTS
        if _is_here(host) or (event in LOOK_UPS and _address(host) is not None):
            if is_connect and self.is_shut(port):
                self.was_shut = True
                raise GatewayShut(SHUT)
            return
        names = [host, *(name for name, known in self._addresses.items() if host in known)]
        allowed = (*self.allowed, Host(_plain(socket.gethostname())))
        if any(one.fits(name, port if is_connect else None) for one in allowed for name in names):
            if _address(host) is None and host not in self._addresses:
                self._addresses[host] = frozenset()
                with contextlib.suppress(OSError):
                    found = socket.getaddrinfo(host, None)
                    self._addresses[host] = frozenset(str(way[4][0]) for way in found)
            return
        thread = threading.current_thread()
        is_of_a_pool = type(thread).__module__.startswith("anyio.") or (
            getattr(thread, "_target", None) is concurrent.futures.thread._worker  # noqa: SLF001
        )
        is_stranger = thread in self._older and not is_of_a_pool
        reach = Reach(host, port, thread.name if is_stranger else None)
        self.stopped.append(reach)
        raise OutsideReached(_text_of([reach]))

    def report(self) -> str | None:
        """Return the test's attempts since the last report; None if there were none."""
        own = [reach for reach in self.stopped if reach.stranger is None]
        self.stopped = [reach for reach in self.stopped if reach.stranger is not None]
        texts = ([_text_of(own)] if own else []) + ([SHUT] if self.was_shut else [])
        self.was_shut = False
        return " ".join(texts) or None

    def report_strangers(self) -> list[str]:
        """Return the attempts of other threads since the last report."""
        strangers, self.stopped = [one for one in self.stopped if one.stranger is not None], []
        return [_text_of([reach]) for reach in dict.fromkeys(strangers)]


_WATCHING: Final[list[Guard]] = []


@functools.cache
def _install() -> None:
    sys.addaudithook(_audit)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    __tracebackhide__ = True
    # Called for each event of the process, so the common case comes first.
    if not _WATCHING or not event.startswith("socket."):
        return
    way = way_of(event, args)
    if way is not None:
        for guard in tuple(_WATCHING):
            guard.check(event, *way)


def way_of(event: str, args: tuple[Any, ...]) -> tuple[str, object] | None:
    """Return the host and port of an audit event; None if it concerns no other machine."""
    if event in CONNECTS and args[0].family in INTERNET and args[1]:
        return _text(args[1][0]), args[1][1]
    if event in LOOK_UPS and args[0]:
        return _text(args[0]), args[1] if len(args) > 1 else None
    if event in REVERSE and args[0]:
        return _text(args[0][0] if isinstance(args[0], tuple) else args[0]), None
    return None


def _text(host: str | bytes | bytearray) -> str:
    return host if isinstance(host, str) else bytes(host).decode("ascii", "replace")


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")


def _address(host: str) -> Address | None:
    """Return *host* as an address; None for a name."""
    try:
        address: Address = ipaddress.ip_address(host)
    except ValueError:
        try:
            # 127.1 and 0x7f000001 are addresses too.
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_here(host: str) -> bool:
    address = _address(host)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    # 0.0.0.0 is this machine as well.
    return address.is_loopback or address.is_unspecified


def _text_of(reaches: Iterable[Reach]) -> str:
    unique = list(dict.fromkeys(reaches))
    hosts = list(dict.fromkeys(reach.host for reach in unique))
    stranger = unique[0].stranger
    who = f"The thread {stranger!r}, which is older than the test," if stranger else "The test"
    return (
        f"{who} tried to reach {', '.join(map(str, unique))}, but beside runway_gateway only this "
        "machine may be reached. Nothing was sent. Point the code to the gateway, or allow it: "
        f"@pytest.mark.runway(allow={hosts})"
    )
