"""Single values, read whatever their type: number, text, time, address. Pure functions."""

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
"""Words for a refund that there was not."""

_NO_TEXT: Final = (dict, list, bool)


def text_in(value: Any, _type: Any = None) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    return None if value is None or isinstance(value, _NO_TEXT) else str(value)


def task_id_in(value: Any, _type: Any = None) -> str:
    text = id_of(value) or (isinstance(value, str) and value.strip())
    if not text or text.lower() in NO_IDS:
        is_empty = value is None or isinstance(value, str)
        fault = "empty" if is_empty else f"of type {type(value).__name__}"
        message = f"task id is {fault}"
        raise ValueError(message)
    return text


def number_in(value: Any, _type: Any = None) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def fraction_in(value: Any, _type: Any = None) -> float | None:
    """Read 0.275, "27%" and 27 as a part of one."""
    percent = isinstance(value, str) and value.strip().endswith("%")
    number = number_in(value.strip().rstrip("%") if percent else value)
    if number is None:
        return None
    return min(1.0, max(0.0, number / 100 if percent or number > 1 else number))


def instant_in(value: Any, _type: Any = None) -> datetime | None:
    """Read Unix seconds or milliseconds, as number or text, and ISO 8601; zero is never."""
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


def address_in(value: Any, _type: Any = None) -> str | None:
    """Read an address, also the first of a list or that of an object, if it can be fetched."""
    if not value:
        return None
    if isinstance(value, str):
        value = parsed(value) or value
    # One level and no more: what nests without end must not take the id beside it along.
    items = value if isinstance(value, list) else [value]
    found = (_address_in(item) if isinstance(item, dict) else item for item in items)
    texts = (text.strip() for text in found if isinstance(text, str))
    return next(filter(_is_address, texts), None)


def _address_in(item: dict[str, Any]) -> Any:
    return item.get("url") or item.get("video_url") or item.get("video")


def _is_address(text: str) -> bool:
    # A path of the gateway's own counts as well; `_fold` puts the gateway's origin before it. Names
    # of files may have spaces, which are quoted when the file is fetched.
    text = text.replace(" ", "%20")
    return is_web_address(text) or _PATH.fullmatch(text) is not None


_PATH: Final = re.compile(r"//?[^\s/\\\ud800-\udfff][^\s\0\ud800-\udfff]*")


def flag_in(value: Any, _type: Any = None) -> bool:
    return value is True


def refund_in(value: Any, _type: Any = None) -> bool:
    """Read an amount and a flag alike: pages disagree on which it is (api-facts 4)."""
    text = text_in(value)
    if text is None:
        return value is True
    amount = _AMOUNT.search(text)
    return float(amount[0]) != 0 if amount else text.lower() not in NO_REFUND


_AMOUNT: Final = re.compile(r"\d{1,300}(?:\.\d{1,300})?", re.ASCII)


def cost_in(value: Any, _type: Any = None) -> float | None:
    """Return the credits of an official task (api-facts 11, row 8)."""
    return number_in(value.get("credits")) if isinstance(value, dict) else None


def trouble_in(value: Any, _type: Any = None) -> tuple[str | None, str | None] | None:
    """Return message and code of an error, which may be an object or a text."""
    if not isinstance(value, dict):
        return (text_in(value), None) if isinstance(value, str) else None
    messages = (text_in(value.get(key)) for key in ("message", "msg", "reason", "detail"))
    return next(filter(None, messages), None), text_in(value.get("code"))


def retry_after(headers: Mapping[str, str], received_at: float | None = None) -> float | None:
    """
    Return how long the gateway asks us to wait, in seconds; None where it does not ask.

    Read are `retry-after-ms`, and `retry-after` as seconds, as an HTTP date, or as the Unix
    instant that some gateways send in place of seconds. An instant is measured against the
    answer's own Date, so that the two clocks need not agree, else against *received_at*.
    """
    value = headers.get("retry-after", "")
    milliseconds, seconds = number_in(headers.get("retry-after-ms")), number_in(value)
    if milliseconds is not None and milliseconds >= 0:
        seconds = milliseconds / 1000
    if seconds is not None and seconds < UNIX_INSTANT:
        return seconds if seconds >= 0 else None
    until = _http_date(value) if seconds is None else seconds
    now = _http_date(headers.get("date", "")) or received_at
    if until is None or now is None:
        return None
    # Milliseconds are sent in place of seconds as well.
    return max(0.0, (until if until < 100 * UNIX_INSTANT else until / 1000) - now)


UNIX_INSTANT: Final = 1e9
"""From here on a number of seconds is an instant, after 2001; no server asks for that pause."""


def _http_date(value: str) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None
