"""Check the options of the simulator and the fields of faults by their annotations."""

import json
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

import attrs

#: Thirty years: more than any test needs, and small enough for every date.
MOST: Final = 1_000_000_000
#: The path of the control API on the first origin. No gateway has such a path.
CONTROL: Final = "/-"
#: The smallest and largest value of a number, by the name of its field or parameter.
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
    "price": (0, MOST),
    "speed": (1e-6, MOST),
    "rate_limit": (1e-6, MOST),
    "burst": (1, MOST),
    "link_lifetime": (1e-6, MOST),
    "expired_status": (400, 599),
    "port": (0, 65_535),
    "cdn_port": (0, 65_535),
    "patience": (0, MOST),
    "deadline": (0, MOST),
    "hidden": (0, MOST),
    "blank": (0, MOST),
    "url_after": (0, MOST),
    "points": (0, MOST),
    "user_id": (1, MOST),
    "listed_after": (0, MOST),
    "delay": (0, MOST),
    "refresh": (0, MOST),
    "prompt_limit": (0, MOST),
    "ShortPage.rows": (0, MOST),
    "share": (0, 1),
    "queued": (0, 1),
    "weather": (0, 1),
    "progress": (0, 100),
}


@attrs.frozen
class Allowed:
    """The values that a field may have: in words, and as a check."""

    words: str
    fits: Callable[[Any], bool]


def _are_headers(pairs: object) -> bool:
    return isinstance(pairs, tuple) and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and all(text is None or (isinstance(text, str) and text.isprintable()) for text in pair)
        for pair in pairs
    )


TEXT: Final = Allowed("text", lambda value: isinstance(value, str))
ORIGINS: Final[Mapping[object, Allowed]] = {
    Callable: Allowed("a function", callable),
    tuple: Allowed("pairs of a header and its value", _are_headers),
}


def one_of(words: Iterable[str]) -> Allowed:
    known = tuple(words)
    return Allowed(f"one of {', '.join(map(json.dumps, known))}", known.__contains__)


def allowed(hint: Any, owner: str, name: str, text: Allowed = TEXT) -> Allowed:
    """Return the values of *hint*, the annotation of *name* in *owner*; *text* stands for `str`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        options = [allowed(one, owner, name, text) for one in arguments]
        words = ", or ".join(one.words for one in options)
        return Allowed(words, lambda value: any(one.fits(value) for one in options))
    if origin is Literal:
        return one_of(arguments)
    if origin in ORIGINS:
        return ORIGINS[origin]
    if hint in {int, float}:
        least, most = BOUNDS.get(f"{owner}.{name}", BOUNDS.get(name, (-MOST, MOST)))
        kind = "a whole number" if hint is int else "a number"
        return Allowed(
            f"{kind} from {least:.12g} to {most:.12g}",
            lambda value: (
                isinstance(value, int | hint)
                and not isinstance(value, bool)
                and least <= value <= most
            ),
        )
    if hint is str:
        return text
    words = {bool: "true or false", NoneType: "None"}.get(hint, f"a {hint.__name__}")
    return Allowed(words, lambda value: isinstance(value, hint))


def check(
    owner: object, attribute: "attrs.Attribute[Any]", value: object, prefix: str = ""
) -> None:
    """Raise ValueError unless *value* fits the annotation of its field: a validator for attrs."""
    values = allowed(attribute.type, type(owner).__name__, attribute.name)
    if not values.fits(value):
        raise ValueError(f"{prefix}{attribute.name}={value!r} is not {values.words}")
