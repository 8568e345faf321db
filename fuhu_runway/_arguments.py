"""What each argument of the public surface may be, checked before anything is opened or sent."""

import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import attrs

from ._wire.tables import GATEWAYS, NOWHERE
from .journal import Journal
from .models import (
    Gateway,
    Limits,
    PollPolicy,
    RetryPolicy,
    Timeouts,
    is_reachable_address,
    is_web_address,
    usage_error,
)

if TYPE_CHECKING:
    # It brings a web server along, which most programs have no use for.
    from .callbacks import CallbackReceiver

KEY_VARIABLE: Final = "FUHU_API_KEY"
URL_VARIABLE: Final = "FUHU_BASE_URL"
DEFAULT_GATEWAY: Final = "fuhuapi"


def check(**arguments: object) -> None:
    """
    Check arguments by name against `ARGUMENTS`.

    Raises:
        UsageError: One does not fit; the error names it.
    """
    for name, value in arguments.items():
        fits, wanted = ARGUMENTS[name]
        if not fits(value):
            raise usage_error(name, f"{name} is {_named(value)}.", f"Use {wanted}.")


def _named(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    # A text may be a prompt or a key that slipped into the wrong argument.
    return str(value) if isinstance(value, float) else f"of type {type(value).__name__}"


def _or_none(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: value is None or isinstance(value, kinds)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10**6


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_call_back(value: Any) -> bool:
    return value is None or callable(value)


def _is_amount(value: Any) -> bool:
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return value is None
    return 0 <= value <= MAX_AMOUNT or value == math.inf


def _is_receiver(value: Any) -> bool:
    # By what it can do: its class brings a web server along, which most programs have no use for.
    return value is None or (hasattr(value, "deliver") and not isinstance(value, type))


MAX_AMOUNT: Final = 10**12
"""Seconds or points; more is a mistake, and past 1e308 no float holds it."""

_INSTANCE: Final = "an instance of {}, or None"

ARGUMENTS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    # of Client
    "api_key": (_or_none(str), "the key as text, or None"),
    "base_url": (_or_none(str), "an http(s) address as text, or None"),
    "gateway": (_or_none(Gateway, str), "the name of a known gateway, a Gateway, or None"),
    "session": (_or_none(aiohttp.ClientSession), "an open aiohttp.ClientSession, or None"),
    "callback_url": (_or_none(str), "an http(s) address as text, or None"),
    "callbacks": (_is_receiver, "a CallbackReceiver made from your app's public address, or None"),
    "timeouts": (_or_none(Timeouts), _INSTANCE.format("Timeouts")),
    "retry": (_or_none(RetryPolicy), _INSTANCE.format("RetryPolicy")),
    "polling": (_or_none(PollPolicy), _INSTANCE.format("PollPolicy")),
    "limits": (_or_none(Limits), _INSTANCE.format("Limits")),
    "journal": (_or_none(Journal, str, os.PathLike), "a path, a Journal, or None"),
    # of its methods
    "task_id": (lambda value: isinstance(value, str), "the id that the submit gave, as text"),
    "official": (lambda value: isinstance(value, bool), "True or False"),
    "save": (_or_none(str, os.PathLike), "the path of a file, or None"),
    "in_flight": (_is_whole, "a whole number from 1 to 1000000"),
    "download_to": (_or_none(str, os.PathLike), "the path of a folder, or None"),
    "max_points": (_is_amount, "a number from 0 on, or None"),
    "retry_failed": (lambda value: isinstance(value, bool), "True or False"),
    # of tasks
    "timeout": (_is_amount, "a number of seconds from 0 on, or None"),
    "on_update": (_is_call_back, "a function, or None"),
    # of clips
    "path": (lambda value: isinstance(value, str | os.PathLike), "the path of a file"),
    "overwrite": (lambda value: isinstance(value, bool), "True or False"),
    "max_bytes": (_is_size, "a whole number of bytes from 1 on"),
    "on_progress": (_is_call_back, "a function, or None"),
}
"""Name of an argument to whether a value fits it, and what to use."""


def checked_key(key: object) -> str:
    """Return the key as it is: gateways split it, so that nothing may be added (api-facts 1.1)."""
    if not key:
        raise usage_error(
            "api_key",
            "There is no key.",
            f"Give it as api_key, or set the environment variable {KEY_VARIABLE}.",
        )
    if not isinstance(key, str) or not key.isascii() or not key.isprintable() or " " in key:
        raise usage_error(
            "api_key",
            "The key has a space or a character that no header can carry.",
            "Copy it again from the gateway's page, without line breaks or quotes around it.",
        )
    return key


def checked_id(task_id: object) -> str:
    """Return a task id as text, without spaces around it."""
    check(task_id=task_id)
    text = str(task_id).strip()
    if not text:
        raise usage_error("task_id", "The task id is empty.", "Give the id that the submit gave.")
    return text


def checked_session(session: aiohttp.ClientSession | None) -> aiohttp.ClientSession | None:
    """Return *session* if it adds no key of its own to requests for clips."""
    if session is not None and (session.auth is not None or "Authorization" in session.headers):
        raise usage_error(
            "session",
            "The session sends an Authorization header with every request.",
            "Give a session without one: clips come from other hosts, which may not see a key.",
        )
    return session


def checked_callback(url: str | None) -> str | None:
    """Return *url* if a gateway can post to it."""
    if url is not None and (not is_reachable_address(url) or "@" in url):
        raise usage_error(
            "callback_url",
            "callback_url must be an http(s) URL with a valid host and port, and without a user.",
            "Give one, or None.",
        )
    return url


def checked_receiver(
    callbacks: "CallbackReceiver | None", callback_url: str | None
) -> "CallbackReceiver | None":
    """Return *callbacks* if there is no callback_url beside it."""
    if callbacks is not None and callback_url != NOWHERE:
        raise usage_error(
            "callback_url",
            "There are both callback_url and callbacks, and a request has room for one address.",
            "Leave callback_url out: the receiver gives each task an address of its own.",
        )
    return callbacks


def resolved(gateway: Gateway | str | None, base_url: str | None) -> Gateway:
    """Return the gateway with the address that counts: the argument, its own, the environment's."""
    row = _gateway_named(gateway or DEFAULT_GATEWAY)
    other = base_url
    if other is None and (gateway is None or row.base_url is None):
        other = os.environ.get(URL_VARIABLE) or None
    url = row.base_url if other is None else other
    if url is None:
        raise usage_error(
            "base_url",
            f"No source names the address of the gateway {row.name!r}.",
            f"Give it as base_url, or set the environment variable {URL_VARIABLE}.",
        )
    # With another base_url, the key is not for the gateway's own balance host.
    quota_url = row.quota_url if other is None or row.quota_url is None else url
    for field, address in (("base_url", url), ("quota_url", quota_url)):
        if address is None:
            continue
        if not is_web_address(address) or any(mark in address for mark in "?#@"):
            raise usage_error(
                field,
                f"{field} is no http(s) address of a host that can exist.",
                "Give scheme and host, such as https://api.fuhuapi.com.",
            )
    return attrs.evolve(row, base_url=url, quota_url=quota_url)


def _gateway_named(gateway: Gateway | str) -> Gateway:
    if isinstance(gateway, Gateway):
        return gateway
    if gateway not in GATEWAYS:
        raise usage_error(
            "gateway",
            f"There is no gateway called {gateway!r}.",
            f"Use a Gateway of your own, or one of {', '.join(GATEWAYS)}.",
        )
    return GATEWAYS[gateway]
