"""
Nothing but loopback: whoever reaches further while a guard watches is stopped and told of.

Rule 1. Python's own audit events tell of every socket, whichever library opened it. What a library
    does in C without Python's sockets is not seen.
Rule 2. An audit hook can never be taken out again, so there is one for the whole process. It comes
    with the first guard and lets everything pass while nobody watches.
Rule 3. What was stopped is remembered: code that hides the error hides nothing.
"""

import contextlib
import ipaddress
import socket
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final

import attrs

from ._loopback import is_loopback

CONNECTS: Final = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
LOOK_UPS: Final = frozenset({"socket.getaddrinfo", "socket.gethostbyname"})
INTERNET: Final = frozenset({socket.AF_INET, socket.AF_INET6})


class OutsideReached(RuntimeError):
    """A connection or the look-up of a name was stopped, since it led away from this machine."""


@attrs.define(eq=False)
class Guard:
    """Who lets nothing pass but loopback and the hosts of one test."""

    #: Names or addresses that may be reached besides.
    allowed: frozenset[str] = frozenset()
    #: Hosts and ports that were stopped and not told of yet.
    stopped: list[tuple[str, object]] = attrs.field(factory=list)
    _addresses: dict[str, frozenset[str]] = attrs.field(factory=dict)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Stop whatever reaches further, in all threads of the process."""
        _install()
        _WATCHING.append(self)
        try:
            yield
        finally:
            _WATCHING.remove(self)

    def check(self, host: str, port: object) -> None:
        """
        Let a way to *host* pass.

        Raises:
            OutsideReached: It leads away from this machine, and is not allowed.
        """
        __tracebackhide__ = True
        if _is_here(host) or self._is_allowed(host):
            return
        self.stopped.append((host, port))
        raise OutsideReached(_told([(host, port)]))

    def _is_allowed(self, host: str) -> bool:
        if host in self.allowed:
            # The connection that follows knows the address alone.
            if host not in self._addresses:
                self._addresses[host] = frozenset()
                self._addresses[host] = frozenset(_addresses_of(host))
            return True
        return any(host in addresses for addresses in self._addresses.values())

    def tell(self) -> str | None:
        """What was stopped since the last time, in words; None if nothing was."""
        stopped, self.stopped = self.stopped, []
        return _told(stopped) if stopped else None


_WATCHING: Final[list[Guard]] = []
_INSTALLED: Final[list[bool]] = []


def _install() -> None:
    if not _INSTALLED:
        _INSTALLED.append(True)
        sys.addaudithook(_hear)


def _hear(event: str, args: tuple[Any, ...]) -> None:
    __tracebackhide__ = True
    # Most events of a process are none of ours, and this is called for each.
    if not _WATCHING or not event.startswith("socket."):
        return
    way = way_of(event, args)
    if way is not None:
        for guard in tuple(_WATCHING):
            guard.check(*way)


def way_of(event: str, args: tuple[Any, ...]) -> tuple[str, object] | None:
    """The host and the port that an audit event is about; None where it leads nowhere."""
    if event in CONNECTS and args[0].family in INTERNET and args[1]:
        return _text(args[1][0]), args[1][1]
    if event in LOOK_UPS and args[0]:
        return _text(args[0]), args[1] if len(args) > 1 else None
    return None


def _text(host: str | bytes | bytearray) -> str:
    return host if isinstance(host, str) else bytes(host).decode("ascii", "replace")


def _is_here(host: str) -> bool:
    if is_loopback(host):
        return True
    try:
        # What a server listens on that listens everywhere; as a target it is this machine.
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _addresses_of(host: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for *_, address in socket.getaddrinfo(host, None):
            yield str(address[0])


def _told(stopped: Iterable[tuple[str, object]]) -> str:
    ways = list(dict.fromkeys(stopped))
    where = ", ".join(_shown(*way) for way in ways)
    hosts = list(dict.fromkeys(host for host, _ in ways))
    return (
        f"The test reached for {where}, and beside runway_gateway only this machine is there. "
        "Nothing was sent. "
        f"Lead the code to the gateway, or allow it: @pytest.mark.runway(allow={hosts})"
    )


def _shown(host: str, port: object) -> str:
    where = f"[{host}]" if ":" in host else host
    return f"{where}:{port}" if port else where
