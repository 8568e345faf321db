"""Check whether a text is a URL that can exist. Pure functions."""

import ipaddress
import re
from typing import Final

_BAD: Final = r"\s\x00-\x1f\x7f\ud800-\udfff"
# No resolver accepts a label that is empty or has more than 63 characters.
_LABEL: Final = rf"[^{_BAD}/\\?#@:\[\].]{{1,63}}"
# A pattern, since each poll reads several URLs and urlsplit takes ten times as long.
_URL: Final = re.compile(
    rf"https?://(?:[^{_BAD}/?#@\[\]]*@)?"
    rf"(?:\[(?P<ipv6>[0-9a-f.]*:[0-9a-f:.]*)\]|(?P<host>{_LABEL}(?:\.{_LABEL})*\.?))"
    rf"(?::(?P<port>[0-9]{{0,5}}))?(?:[/?#][^{_BAD}]*)?",
    re.IGNORECASE,
)
_HOST: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE)


def is_ip_address(text: str) -> bool:
    """Return whether *text* is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_web_address(text: object) -> bool:
    """Return whether *text* is an absolute http(s) URL that a request can be sent to."""
    return _host_and_port(text) is not None


def is_reachable_address(text: object) -> bool:
    """Return whether *text* is an http(s) URL whose host and port can exist; for users' URLs."""
    host, port = _host_and_port(text) or ("", 0)
    if port == 0 or len(host) > 253:  # the longest name that DNS can carry (RFC 1035)
        return False
    if ":" in host or host.rpartition(".")[2].isdigit():
        return is_ip_address(host)
    return _HOST.fullmatch(host) is not None


def _host_and_port(url: object) -> tuple[str, int] | None:
    """Return the host, as DNS spells it, and the port; None if it is not an http(s) URL."""
    found = _URL.fullmatch(url) if isinstance(url, str) else None
    if found is None:
        return None
    host, port = found["host"] or found["ipv6"], int(found["port"] or 443)
    if port > 65535 or (":" in host and not is_ip_address(host)):
        return None
    try:
        return host if host.isascii() else host.encode("idna").decode(), port
    except UnicodeError:
        return None
