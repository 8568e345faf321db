"""What an option of the simulator may be, and the one-line error where it is not."""

import math
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

import attrs

#: Thirty years: more than any test needs, and few enough for every date.
MOST: Final = 1_000_000_000
#: Where the control API is on the first origin. No gateway has such a path.
CONTROL: Final = "/-"
#: How far a number may go, by the name of its field or parameter.
BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "status": (200, 999),
    "ExpiredLink.status": (400, 599),
    "Informational.status": (102, 199),
    "Redirect.status": (300, 399),
    "Quotes.status": (400, 599),
    "megabytes": (0, 1024),
    "Gzipped.megabytes": (0, 256),
    "levels": (1, 10),
    "bytes_per_second": (0.001, MOST),
    "seconds": (0, MOST),
    "retry_after": (0, MOST),
    "after_bytes": (0, MOST),
    "keep_bytes": (0, MOST),
    "size": (0, 1024 * 1024),
    "count": (1, 1000),
    "times": (1, MOST),
    "takes": (0, MOST),
    "hidden": (0, MOST),
    "blank": (0, MOST),
    "url_after": (0, MOST),
    "points": (0, MOST),
    "queued": (0, 1),
    "progress": (0, 100),
}


def bounds(owner: str, name: str) -> tuple[float, float]:
    """Return how far the number *name* of the fault, or of the function, *owner* may go."""
    return BOUNDS.get(f"{owner}.{name}", BOUNDS.get(name, (-MOST, MOST)))


def one_of(options: Iterable[str]) -> Callable[[object, "attrs.Attribute[Any]", object], None]:
    """Return a check for a value that has to be one of these words."""
    words = sorted(options)

    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if value not in words:
            raise ValueError(f"{attribute.name}={value!r} is none of: {', '.join(words)}")

    return check


def is_flag(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """Check a switch, which a file may have given as text."""
    if not isinstance(value, bool):
        raise TypeError(f"{attribute.name}={value!r} is neither True nor False")


def is_duration(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """Check a number of simulated seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{attribute.name}={value!r} is no number of seconds from 0 on")


def check_fields(value: "attrs.AttrsInstance") -> None:
    """
    Check each field of *value* by its annotation, and its numbers by `BOUNDS`.

    Raises:
        ValueError: One does not fit. It names the field, its value and what is allowed.
    """
    kind = type(value).__name__
    for field in attrs.fields(type(value)):
        given, limits = getattr(value, field.name), bounds(kind, field.name)
        is_union = get_origin(field.type) in {Union, UnionType}
        hints = get_args(field.type) if is_union else (field.type,)
        if not any(_fits(hint, given, *limits) for hint in hints):
            allowed = ", or ".join(_in_words(hint, *limits) for hint in hints)
            raise ValueError(f"{kind}: {field.name}={given!r} is not {allowed}")


def _fits(hint: Any, value: Any, least: float, most: float) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(map(_is_header, value))
    if hint in {int, float}:
        return type(value) in {int, hint} and least <= value <= most
    return isinstance(value, hint)


def _is_header(pair: object) -> bool:
    return (
        isinstance(pair, tuple)
        and len(pair) == 2
        and all(isinstance(text, str) and text.isprintable() for text in pair)
    )


def _in_words(hint: Any, least: float, most: float) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    if get_origin(hint) is tuple:
        return "pairs of a header and its value"
    numbers = f"from {least:.12g} to {most:.12g}"
    words = {
        bool: "True or False",
        int: f"a whole number {numbers}",
        float: f"a number {numbers}",
        str: "text",
        NoneType: "None",
    }
    return words.get(hint, f"a {hint.__name__}")
