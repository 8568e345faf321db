"""The only address that the simulator listens on or connects to: this machine."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether *host* can only be this machine: 127.0.0.0/8, ::1 or localhost."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind_address(host: str) -> str:
    """Return the address to listen on, or raise ValueError if other machines could reach it."""
    if not is_loopback(host):
        raise ValueError(f"host={host!r} is not this machine; use 127.0.0.1, ::1 or localhost")
    # localhost may be two addresses, which with port 0 would have different ports.
    return "127.0.0.1" if host == "localhost" else host
