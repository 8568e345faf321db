"""What each argument of the public surface may be, checked before anything is opened or sent."""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp

from .journal import Journal
from .models import Gateway, Limits, PollPolicy, RetryPolicy, Timeouts, usage_error


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
