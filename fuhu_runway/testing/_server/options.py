"""Check the options of the simulator and the fields of faults by their annotations."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

import attrs

#: Thirty years: more than any test needs, and small enough for every date.
MOST: Final = 1_000_000_000
#: The path of the control API on the first origin. No gateway has such a path.
CONTROL: Final = "/-"
Headers = tuple[tuple[str, str | None], ...]
#: The fields and parameters with a smallest and a largest value, by those two values.
BOUNDED: Final[Mapping[tuple[float, float], tuple[str, ...]]] = {
    (0, 1): ("share", "queued", "weather"),
    (0, 100): ("progress",),
    (0, 256): ("Gzipped.megabytes",),
    (0, 1024): ("megabytes",),
    (0, 65_535): ("port", "cdn_port"),
    (0, MOST): (
        *("takes", "hidden", "blank", "url_after", "listed_after", "price", "points", "seconds"),
        *("retry_after", "after_bytes", "keep_bytes", "ShortPage.rows", "delay", "refresh"),
        *("prompt_limit", "patience", "deadline"),
    ),
    (1, 10): ("levels",),
    (1, MOST): ("times", "burst", "user_id"),
    (1e-6, MOST): ("speed", "rate_limit", "link_lifetime"),
    (0.001, MOST): ("bytes_per_second",),
    (102, 199): ("Informational.status",),
    (200, 999): ("status",),
    (300, 399): ("Redirect.status",),
    (400, 599): ("ExpiredLink.status", "QuotesPrompt.status", "expired_status"),
}
BOUNDS: Final = {name: bounds for bounds, names in BOUNDED.items() for name in names}


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
SPECIAL: Final[Mapping[object, Allowed]] = {
    Callable: Allowed("a function", callable),
    Headers: Allowed('pairs of a header and its value, such as (("ETag", None),)', _are_headers),
}


def one_of(words: Iterable[str]) -> Allowed:
    known = tuple(words)
    return Allowed(f"one of {', '.join(map(json.dumps, known))}", known.__contains__)


@cache
def allowed(hint: Any, owner: str, name: str, text: Allowed = TEXT) -> Allowed:
    """Return the values of *hint*, the annotation of *name* in *owner*; *text* stands for `str`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        options = [allowed(one, owner, name, text) for one in arguments]
        words = ", or ".join(one.words for one in options)
        return Allowed(words, lambda value: any(one.fits(value) for one in options))
    if origin is Literal:
        return one_of(arguments)
    special = {str: text, **SPECIAL}.get(hint) or SPECIAL.get(origin)
    if special is not None:
        return special
    if origin is tuple:
        each = allowed(arguments[0], owner, name, text)
        return Allowed(
            f"several of these: {each.words}",
            lambda value: isinstance(value, tuple) and all(map(each.fits, value)),
        )
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
    words = {bool: "true or false", NoneType: "None"}.get(hint, f"a {hint.__name__}")
    return Allowed(words, lambda value: isinstance(value, hint))


def check(
    owner: object, attribute: "attrs.Attribute[Any]", value: object, prefix: str = ""
) -> None:
    """Raise ValueError unless *value* fits the annotation of its field: a validator for attrs."""
    hint: Any = attribute.type
    values = allowed(hint, type(owner).__name__, attribute.name)
    if not values.fits(value):
        raise ValueError(f"{prefix}{attribute.name}={value!r} is not {values.words}")
