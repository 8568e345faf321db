"""Tests reach this machine only."""

import ipaddress
from typing import Any


def refuse_the_outside(event: str, args: tuple[Any, ...]) -> None:
    """Stop every connection that leaves this machine, from any library; an audit hook."""
    if event != "socket.connect" or not isinstance(args[1], tuple):
        return
    host = args[1][0]
    if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
        message = f"a test tried to connect to {host}: only loopback is allowed"
        raise RuntimeError(message)
