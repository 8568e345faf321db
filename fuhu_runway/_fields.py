"""Validators of fields: each error names the field, its value and what is allowed."""

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import attrs

from ._redact import redact
from .errors import UsageError

MAX_SECONDS: Final = 60
"""The longest clip that a request may ask for, so that a slip such as 1000 costs nothing."""
MAX_OFFICIAL_PROMPT: Final = 1000
"""In UTF-16 units: the official API refuses longer prompts."""
MAX_SEED: Final = 4_294_967_295
MAX_DEPTH: Final = 100
"""How many levels JSON in a request may have: far fewer than any parser on the way can take."""


def usage_error(field: str, happened: str, advice: str) -> UsageError:
    """Return the error for a call that is wrong before anything was sent."""
    return UsageError(redact(happened), "Nothing was sent or charged.", advice, field=field)


UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
"""NUL, which JSON can carry but PostgreSQL cannot, and lone surrogates, which UTF-8 cannot."""
# Letters, numbers, punctuation and symbols; also private use, surrogates, and what this Python
# does not know yet (Cn), which may be an emoji of next year.
_VISIBLE: Final = ("L", "N", "P", "S", "Co", "Cs", "Cn")
# Of these, what nevertheless shows nothing, such as the Hangul fillers and the empty Braille cell.
_BLANKS: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0\ufffe\uffff")


def require_text(name: str, value: object) -> None:
    """Raise a `UsageError` about *name* unless *value* is visible text that databases can store."""
    if not isinstance(value, str):
        fault, advice = f"is of type {type(value).__name__}", "Use text (str)."
    elif not any(
        unicodedata.category(character).startswith(_VISIBLE) and character not in _BLANKS
        for character in value
    ):
        fault = "has no visible character" if value else "is empty"
        advice = f"Use a {name} with at least one word."
    elif bad := UNSTORABLE.search(value):
        sign = "a NUL character" if bad[0] == "\0" else "half a character (a lone surrogate)"
        fault = f"has {sign} at position {bad.start()}"
        advice = "Remove it: a gateway could fail on it after it has charged."
    else:
        return
    raise usage_error(name, f"{name} {fault}.", advice)


def check_text(_instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """Validate a field by `require_text`."""
    require_text(attribute.name, value)


def brief(value: object) -> str:
    """Return a value as an error may show it: short, and without secrets."""
    try:
        text = redact(repr(value))
    except ValueError:  # an int of more digits than Python prints
        return f"of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def rule(fits: Callable[[Any], object], wanted: str, fault: str | None = None) -> Any:
    """Return a validator. Its error shows the *fault* in place of a value that may be a prompt."""

    def check(_instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not fits(value):
            happened = f"{attribute.name} {fault or 'is ' + brief(value)}."
            raise usage_error(attribute.name, happened, f"Use {wanted}.")

    return check


def _is_number(value: Any) -> bool:
    """Return whether JSON parsers agree on this number: it is no NaN, infinity or giant int."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def number(low: float, high: float, kind: Any = int | float, name: str = "a number") -> Any:
    def fits(value: Any) -> bool:
        return isinstance(value, kind) and _is_number(value) and low <= value <= high

    return rule(fits, f"{name} from {low} to {high}")


def whole_number(low: int, high: int) -> Any:
    return number(low, high, int, "a whole number")


def choice(*allowed: Any) -> Any:
    return rule(lambda value: value in allowed, one_of(allowed))


def one_of(values: Iterable[Any]) -> str:
    """Return two or more values as a sentence has them."""
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}"


def shape(shape: str, wanted: str) -> Any:
    """Text of that shape; the gateway decides which values a model takes."""
    pattern = re.compile(shape, re.ASCII)
    return rule(lambda value: isinstance(value, str) and pattern.fullmatch(value), wanted)


optional: Final[Any] = attrs.validators.optional
FLAG: Final = rule(lambda value: isinstance(value, bool), "True or False")
DURATION: Final = rule(lambda span: _is_number(span) and span > 0, "a number of seconds above 0")
AXIS: Final = rule(_is_number, "a number")
SECONDS: Final = whole_number(1, MAX_SECONDS)
_SIDE: Final = r"[1-9]\d{0,4}(\.\d{1,3})?"
RATIO: Final = shape(f"{_SIDE}:{_SIDE}", "width:height, such as 16:9 or 1280:720")
PIXELS: Final = shape(r"[1-9]\d{2,4}:[1-9]\d{2,4}", "width:height in pixels, such as 1280:720")
# Without the slash, it would be part of the host name, and the key would go to another host.
PREFIX: Final = shape(r"(/[!\"$->@-~]*)?", "a path such as /runway")
SEED: Final = whole_number(0, MAX_SEED)


def check_official_prompt(
    instance: object, attribute: "attrs.Attribute[Any]", value: object
) -> None:
    """Validate a prompt of the official format, which has a greatest length."""
    check_text(instance, attribute, value)
    length = len(str(value).encode("utf-16-le")) // 2
    if length > MAX_OFFICIAL_PROMPT:
        raise usage_error(
            attribute.name,
            f"{attribute.name} has {length} characters.",
            f"Use at most {MAX_OFFICIAL_PROMPT}; most emoji count as two, as in UTF-16.",
        )


_PATH: Final = re.compile(r"/?(?:(?:[\w-]+/)*?v1/)?([\w-]+(?:/[\w-]+)*)", re.ASCII)


def official_path(value: Any) -> str:
    """Return the path of an endpoint of the official format, without any prefix up to v1/."""
    path = _PATH.fullmatch(value) if isinstance(value, str) else None
    if path is None:
        raise usage_error(
            "path",
            "path must be a relative path without dots, query or fragment.",
            "Use one such as text_to_video or /v1/text_to_video; the gateway gives the host.",
        )
    return path[1]


def extra_fields(extra: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return a copy of fields for the body of a request, which the caller cannot change."""
    return _json_object("extra", {} if extra is None else extra)


def whole_body(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a copy of the body of a request, which the caller cannot change."""
    return _json_object("body", body)


def _json_object(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise usage_error(
            name,
            f"{name} is not a dict with string keys.",
            "Use a dict of fields for the request's body.",
        )
    try:
        body = json.dumps(dict(value), allow_nan=False, ensure_ascii=False).encode()
        copy: dict[str, Any] = json.loads(body)
        if _depth(copy) <= MAX_DEPTH:
            return copy
        fault = f"more than {MAX_DEPTH} levels"
    except (TypeError, ValueError, RecursionError) as unfit:
        fault = type(unfit).__name__
    # Outside the clause, since the original may quote the value.
    raise usage_error(
        name,
        f"{name} cannot be written as JSON ({fault}).",
        "Use text, finite numbers, booleans, None, lists and dicts only.",
    )


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, inner), default=0) if isinstance(value, dict | list) else 1
