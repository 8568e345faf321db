"""What an option of the simulator may be, told in one line where it is not."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import attrs


def one_of(options: Iterable[str]) -> Callable[[object, "attrs.Attribute[Any]", object], None]:
    """Give a check for a value that has to be one of these words."""
    words = sorted(options)

    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if value not in words:
            raise ValueError(f"{attribute.name}={value!r} is none of: {', '.join(words)}")

    return check


def is_duration(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """Check a number of simulated seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{attribute.name}={value!r} is no number of seconds from 0 on")
