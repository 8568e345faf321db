"""Check the arguments of public functions before anything is opened or sent."""

import functools
import hashlib
import hmac
import math
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import attrs

from ._fields import brief
from ._urls import is_reachable_address, is_web_address
from ._wire.tables import GATEWAYS, NOWHERE
from .account import Account, AccountTask
from .journal import BaseJournal
from .models import (
    Gateway,
    Limits,
    PollPolicy,
    RetryPolicy,
    Timeouts,
    usage_error,
)
from .uploads import GatewayFiles, Uploader

if TYPE_CHECKING:
    # It imports a web server, which most programs do not need.
    from .callbacks import CallbackReceiver
    from .contrib.shared_pace import SharedPace

KEY_VARIABLE: Final = "FUHU_API_KEY"
URL_VARIABLE: Final = "FUHU_BASE_URL"

MAX_AMOUNT: Final = 10**12
"""The largest number of seconds or points; more is a mistake, and floats end at 1e308."""


Rule = tuple[Callable[[Any], bool], str]


def check(**arguments: object) -> None:
    """Raise a `UsageError` about the first argument that does not fit its row of `ARGUMENTS`."""
    for name, value in arguments.items():
        fits, wanted = ARGUMENTS[name]
        if fits(value):
            continue
        if isinstance(value, type):
            shown = f"the class {value.__name__}"
        elif isinstance(value, float) or (type(value) is int and fits(1)):
            shown = brief(value)
        else:  # a text may be a prompt or a key passed as the wrong argument
            shown = f"of type {type(value).__name__}"
        raise usage_error(name, f"{name} is {shown}.", f"Use {wanted}.")


def _or_none(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: value is None or isinstance(value, kinds)


def _is_whole(value: Any, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= high


def _is_amount(value: Any) -> bool:
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return value is None
    return 0 <= value <= MAX_AMOUNT or value == math.inf


_FLAG: Final[Rule] = (lambda value: isinstance(value, bool), "True or False")
_FUNCTION: Final[Rule] = (lambda value: value is None or callable(value), "a function, or None")
_URL: Final[Rule] = (_or_none(str), "an http(s) URL as text, or None")

ARGUMENTS: Final[Mapping[str, Rule]] = {
    # of Client
    "api_key": (_or_none(str), "the key as text, or None"),
    "base_url": _URL,
    "gateway": (_or_none(Gateway, str), "the name of a known gateway, a Gateway, or None"),
    "session": (_or_none(aiohttp.ClientSession), "an open aiohttp.ClientSession, or None"),
    "callback_url": _URL,
    "callbacks": (
        lambda value: value is None or hasattr(type(value), "deliver"),
        "a CallbackReceiver made from your app's public URL, or None",
    ),
    "timeouts": (_or_none(Timeouts), "an instance of Timeouts, or None"),
    "retry": (_or_none(RetryPolicy), "an instance of RetryPolicy, or None"),
    "polling": (_or_none(PollPolicy), "an instance of PollPolicy, or None"),
    "limits": (_or_none(Limits), "an instance of Limits, or None"),
    "pace": (
        lambda value: value is None or hasattr(type(value), "join_pace"),
        "a SharedPace, or None",
    ),
    "uploads": (
        lambda value: (
            value is None
            or isinstance(value, GatewayFiles)
            or (callable(value) and not isinstance(value, type))
        ),
        "GatewayFiles(), a function that uploads a file and returns its URL, or None",
    ),
    "journal": (_or_none(BaseJournal, str, os.PathLike), "a path, a URL, a Journal, or None"),
    "account": (
        _or_none(Account),
        "Account(access_token, user_id), Account.from_env(), or None",
    ),
    # of its methods
    "task_id": (lambda value: isinstance(value, str), "the id of a task, as text"),
    "official": _FLAG,
    "since": (_or_none(datetime), "a datetime, or None"),
    "task": (lambda value: isinstance(value, AccountTask), "one of the tasks of an audit"),
    "save": (_or_none(str, os.PathLike), "the path of a file, or None"),
    "in_flight": (lambda value: _is_whole(value, 10**6), "a whole number from 1 to 1000000"),
    "download_to": (
        lambda value: (
            isinstance(value, str | os.PathLike | None) or hasattr(type(value), "put_clip")
        ),
        "the path of a folder, the URL of an object store, an ObjectStore, or None",
    ),
    "max_points": (_is_amount, "a number of at least 0, or None"),
    "retry_failed": _FLAG,
    # of fleets
    "lease": (
        lambda value: _is_amount(value) and 0.1 <= (value or 0.0) <= 3600,
        "a number of seconds from 0.1 to 3600",
    ),
    "grace": (
        lambda value: _is_amount(value) and value is not None,
        "a number of seconds, at least 0",
    ),
    "replace_key": _FLAG,
    # of tasks
    "timeout": (_is_amount, "a number of seconds, at least 0, or None"),
    "on_update": _FUNCTION,
    # of clips
    "path": (lambda value: isinstance(value, str | os.PathLike), "the path of a file"),
    "overwrite": _FLAG,
    "max_bytes": (_is_whole, "a whole number of bytes, at least 1"),
    "on_progress": _FUNCTION,
}
"""By the name of an argument: a check of its value, and what to use."""


def checked_key(key: str | None) -> str:
    """Return the key unchanged: gateways split it, so nothing may be added (api-facts 1.1)."""
    if not key:
        raise usage_error(
            "api_key",
            "There is no key.",
            f"Pass it as api_key, or set the environment variable {KEY_VARIABLE}.",
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise usage_error(
            "api_key",
            "The key has a space or a character that no header can carry.",
            "Copy it again from the gateway's page, without line breaks or quotes around it.",
        )
    return key


def checked_id(task_id: str | None) -> str:
    """Return a task id without spaces around it."""
    check(task_id=task_id)
    text = (task_id or "").strip()
    if not text:
        raise usage_error("task_id", "The task id is empty.", "Use the id of a task.")
    return text


def checked_session(session: aiohttp.ClientSession | None) -> aiohttp.ClientSession | None:
    """Return *session* unless it would send a key to the hosts of clips."""
    if session is not None and (session.auth is not None or "Authorization" in session.headers):
        raise usage_error(
            "session",
            "The session sends an Authorization header with every request.",
            "Use a session without one: clips come from other hosts, which must not see a key.",
        )
    return session


def checked_callback(url: str | None) -> str | None:
    """Return *url* if a gateway can post to it."""
    if url is not None and (not is_reachable_address(url) or "@" in url):
        raise usage_error(
            "callback_url",
            "callback_url must be an http(s) URL with a valid host and port, and without a user.",
            "Use a URL that the gateway can reach, or None.",
        )
    return url


def checked_receiver(
    callbacks: "CallbackReceiver | None", callback_url: str | None
) -> "CallbackReceiver | None":
    """Return *callbacks* unless there is also a callback_url."""
    if callbacks is not None and callback_url != NOWHERE:
        raise usage_error(
            "callback_url",
            "callback_url and callbacks cannot be used together.",
            "Leave callback_url out: the receiver creates a URL for each task.",
        )
    return callbacks


def checked_uploads(
    uploads: Uploader | GatewayFiles | None, gateway: Gateway
) -> Uploader | GatewayFiles | None:
    """Return *uploads* unless it needs a file route that the gateway does not have."""
    if isinstance(uploads, GatewayFiles) and gateway.files_path is None:
        raise usage_error(
            "uploads",
            f"The gateway {gateway.name!r} has no known file route.",
            "Set the files_path of a Gateway of your own, or use an ObjectStore or a function.",
        )
    return uploads


def checked_pace(
    pace: "SharedPace | None", key: str, gateway: Gateway
) -> Callable[..., Any] | None:
    """Return what joins the pace of this key at this gateway; the pace never gets the key."""
    if pace is None:
        return None
    return functools.partial(pace.join_pace, mark_of_key(key, gateway))


def mark_of_key(key: str, gateway: Gateway) -> str:
    """Return what a database has in place of a key at a gateway: a hash, 16 hex digits."""
    address = (gateway.base_url or "").rstrip("/")
    return hmac.new(key.encode(), address.encode(), hashlib.sha256).hexdigest()[:16]


def resolved(gateway: Gateway | str | None, base_url: str | None) -> Gateway:
    """Return the gateway with its base URL: from the argument, its row, or the environment."""
    row = gateway if isinstance(gateway, Gateway) else GATEWAYS.get(gateway or "fuhuapi")
    if row is None:
        raise usage_error(
            "gateway",
            f"There is no gateway called {gateway!r}.",
            f"Use a Gateway of your own, or one of {', '.join(GATEWAYS)}.",
        )
    other = base_url
    if other is None and (gateway is None or row.base_url is None):
        other = os.environ.get(URL_VARIABLE) or None
    url = row.base_url if other is None else other
    if url is None:
        raise usage_error(
            "base_url",
            f"The URL of the gateway {row.name!r} is not known.",
            f"Pass it as base_url, or set the environment variable {URL_VARIABLE}.",
        )
    # With another base_url, the key is not for the gateway's own balance host.
    quota_url = row.quota_url if other is None or row.quota_url is None else url
    for field, address in (("base_url", url), ("quota_url", quota_url)):
        if address is not None and (not is_web_address(address) or set(address) & set("?#@")):
            raise usage_error(
                field,
                f"{field} must be an http(s) URL without user, query or fragment.",
                "Use scheme and host, such as https://api.fuhuapi.com.",
            )
    return attrs.evolve(row, base_url=url, quota_url=quota_url)
