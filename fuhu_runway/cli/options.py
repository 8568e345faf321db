"""Options that several commands share: how results are shown, and which gateway is used."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import attrs
from cyclopts import Group, Parameter, Token

from fuhu_runway.models import usage_error

if TYPE_CHECKING:
    from fuhu_runway.client import Client
    from fuhu_runway.testing.simulator import Simulator


def options_of(group: Group) -> Callable[..., Parameter]:
    """Return the maker of the options that the help shows under *group*."""

    def option(text: str, *names: str, **more: Any) -> Parameter:
        return Parameter(help=text, name=names or None, group=group, **{"negative": "", **more})

    return option


result_option: Final = options_of(Group("Result", sort_key=2))
gateway_option: Final = options_of(Group("Gateway", sort_key=3))
NO_DEFAULT: Final[Any] = {"show_default": False}


def _whole(_: object, tokens: Sequence[Token]) -> int:
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError("it is not a whole number.") from None


WHOLE: Final[Any] = {"converter": _whole}
"""Of options that cost points or mean nothing in parts: cyclopts by itself takes 5.7 for 6."""

SIMULATE: Final = gateway_option(
    "Use a simulated gateway on this machine: no key, no cost.", **NO_DEFAULT
)


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Talk:
    """How results and progress are shown."""

    json: Annotated[
        bool, result_option("Print one JSON object, and no progress.", **NO_DEFAULT)
    ] = False
    # cyclopts counts flags by itself only from 4.1 on
    verbose: Annotated[
        list[bool],
        result_option(
            "Log what the SDK does; -vv logs all of it, and where errors come from.",
            *("--verbose", "-v"),
            negative_iterable="",
            **NO_DEFAULT,
        ),
    ] = attrs.field(factory=list)


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Reach:
    """Which gateway, and with which key."""

    gateway: Annotated[
        str | None, gateway_option("A known one, such as deerapi; else fuhuapi.")
    ] = None
    base_url: Annotated[
        str | None, gateway_option("Its address; by default FUHU_BASE_URL, then its own.")
    ] = None
    api_key_file: Annotated[
        Path | None, gateway_option("File with the key; by default the key is FUHU_API_KEY.")
    ] = None

    def words(self) -> Iterator[str]:
        """Return the options that lead to the same gateway again."""
        for option, value in (
            ("--gateway", self.gateway),
            ("--base-url", self.base_url),
            ("--api-key-file", self.api_key_file),
        ):
            if value is not None:
                yield from (option, str(value))

    def key(self) -> str:
        """Return the key, from a place that other processes cannot see, as they can arguments."""
        key = os.environ.get("FUHU_API_KEY", "")
        if self.api_key_file is not None:
            key = _read_key(self.api_key_file)
        if not key:
            raise usage_error(
                "api_key",
                "There is no key.",
                "Set FUHU_API_KEY, or give --api-key-file; --simulate needs none.",
            )
        return key

    def check_simulated(self) -> None:
        """Raise if both a real gateway and a simulated one are named."""
        if self.base_url or self.api_key_file:
            raise usage_error(
                "simulate",
                "--simulate was given together with the address or the key of a real gateway.",
                "Leave --base-url and --api-key-file out, or leave --simulate out.",
            )

    def client(self, simulated: "Simulator | None" = None, **settings: Any) -> "Client":
        """Return a client of this gateway, or of the one that stands in for it."""
        from fuhu_runway.client import Client  # noqa: PLC0415  (aiohttp, which --help can do without)

        if simulated is None:
            key, url = self.key(), self.base_url
        else:
            key, url = simulated.api_key, simulated.base_url
        return Client(key, base_url=url, gateway=self.gateway, **settings)


REACH: Final = Reach()
TALK: Final = Talk()


def _read_key(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as unreadable:
        reason = getattr(unreadable, "strerror", None) or "it is not text"
        raise usage_error(
            "api_key_file", f"The key file cannot be read ({reason}).", "Give another."
        ) from None  # the cause may hold a part of the file
    if not key:
        raise usage_error("api_key_file", "The key file is empty.", "Put the key into it.")
    return key


def check_positive(name: str, value: float) -> None:
    """Raise unless the option *name* is a positive, finite number."""
    if not 0 < value < math.inf:
        raise usage_error(name, f"--{name} is {value:g}.", "Use a number above 0.")
