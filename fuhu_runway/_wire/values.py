"""Lenient readers of single values: numbers, texts, times and URLs. Pure functions."""

import email.utils
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from fuhu_runway._json import parsed
from fuhu_runway._urls import is_web_address

from .salvage import NO_IDS, id_of

NO_REFUND: Final = frozenset(
    {
        *("no", "none", "null", "nil", "false", "n", "na", "n/a", "-", "undefined"),
        *("not refunded", "not_refunded", "否", "无", "未退款", "未退还", "不退款"),
    }
)
"""Words that mean that nothing was refunded."""
UNIX_INSTANT: Final = 1e9
"""A Retry-After of this many seconds or more is a Unix instant (2001), not a delay."""
_ADDRESS_KEYS: Final = ("url", "video_url", "videoUrl", "video", "videos", "resource", "resultUrls")
"""Where an object has the address of its clip, the most certain first."""
_AMOUNT: Final = re.compile(r"\d{1,300}(?:\.\d{1,300})?", re.ASCII)
_PATH: Final = re.compile(r"//?[^\s/\\\ud800-\udfff][^\s\0\ud800-\udfff]*")


def text_in(value: Any, _type: Any = None) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    return None if value is None or isinstance(value, dict | list | bool) else str(value)


def task_id_in(value: Any) -> str | None:
    """Return the id of a task, also an unusual one; None if the value means that there is none."""
    text = id_of(value) or (value.strip() if isinstance(value, str) else "")
    return text if text and text.lower() not in NO_IDS else None


def number_in(value: Any, _type: Any = None) -> float | None:
    if isinstance(value, bool) or value in (None, ""):  # an exception would cost CPU at each poll
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def fraction_in(value: Any, _type: Any = None) -> float | None:
    """Return 0.275, "27%" and 27 as a fraction of one."""
    percent = isinstance(value, str) and value.strip().endswith("%")
    number = number_in(value.strip().rstrip("%") if percent else value)
    if number is None:
        return None
    return min(1.0, max(0.0, number / 100 if percent or number > 1 else number))


def instant_in(value: Any, _type: Any = None) -> datetime | None:
    """Return the UTC time of ISO 8601, or of Unix seconds or milliseconds; None for zero."""
    number = number_in(value)
    try:
        if number is None:
            moment = datetime.fromisoformat(value)
            return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
        if number <= 0:
            return None
        in_ms = number > 1e11
        return datetime.fromtimestamp(number / 1000 if in_ms else number, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def address_in(value: Any, _type: Any = None, depth: int = 3) -> str | None:
    """Return the first URL that can be fetched, in a text, an object, or a list of them."""
    if not value:
        return None
    if isinstance(value, str):
        value = parsed(value) or value
    if isinstance(value, str):
        address = value.strip()
        # File names may contain spaces, which are quoted when the file is fetched. A path is on
        # the gateway's host.
        quoted = address.replace(" ", "%20")
        return address if is_web_address(quoted) or _PATH.fullmatch(quoted) else None
    # Endless nesting must not make the id next to it unreadable.
    if not depth or not isinstance(value, list | dict):
        return None
    parts = value if isinstance(value, list) else map(value.get, _ADDRESS_KEYS)
    return next(filter(None, (address_in(part, None, depth - 1) for part in parts)), None)


def refund_in(value: Any, _type: Any = None) -> bool:
    """Return whether points were refunded; gateways send an amount or a flag (api-facts 4)."""
    text = text_in(value)
    if text is None:
        return value is True
    amount = _AMOUNT.search(text)
    return float(amount[0]) != 0 if amount else text.lower() not in NO_REFUND


def cost_in(value: Any, _type: Any = None) -> float | None:
    """Return the credits of an official task (api-facts 11, row 8)."""
    return number_in(value.get("credits")) if isinstance(value, dict) else None


def error_in(value: Any, _type: Any = None) -> tuple[str | None, str | None] | None:
    """Return message and code of an error, which may be an object or a text."""
    if not isinstance(value, dict):
        return (text_in(value), None) if isinstance(value, str) else None
    messages = (text_in(value.get(key)) for key in ("message", "msg", "reason", "detail"))
    return next(filter(None, messages), None), text_in(value.get("code"))


def retry_after(headers: Mapping[str, str], received_at: float | None = None) -> float | None:
    """
    Return the delay that the response asks for, in seconds; None if it asks for none.

    `retry-after-ms` is read first, then `retry-after` as seconds, as an HTTP date, or as the Unix
    instant that some gateways send in place of seconds. An instant is measured against the
    response's own Date, so that the two clocks need not agree, else against *received_at*.
    """
    value = headers.get("retry-after", "")
    milliseconds, seconds = number_in(headers.get("retry-after-ms")), number_in(value)
    if milliseconds is not None and milliseconds >= 0:
        seconds = milliseconds / 1000
    if seconds is not None and seconds < UNIX_INSTANT:
        return seconds if seconds >= 0 else None
    until = http_date(value) if seconds is None else seconds
    now = http_date(headers.get("date", "")) or received_at
    if until is None or now is None:
        return None
    # The instant may be in milliseconds as well.
    return max(0.0, (until if until < 100 * UNIX_INSTANT else until / 1000) - now)


def http_date(value: str) -> float | None:
    """Return the Unix seconds of an HTTP date."""
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None
