"""Options that several commands share: what is printed, and which gateway is used."""

import contextlib
import difflib
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

import attrs
from cyclopts import Group, Parameter, Token

from fuhu_runway._journal.file import command_line
from fuhu_runway.account import Account
from fuhu_runway.journal import DATABASE_VARIABLE
from fuhu_runway.models import MODELS, Gateway, PollPolicy, usage_error
from fuhu_runway.uploads import GatewayFiles

from .console import Lines

if TYPE_CHECKING:
    from fuhu_runway.client import Client
    from fuhu_runway.testing.simulator import Simulator

REQUEST: Final = Group("Request", sort_key=1)
RESULT: Final = Group("Result", sort_key=2)
GATEWAY: Final = Group("Gateway", sort_key=3)

JournalPlace = Path | str
"""Where a journal is: the path of a file, or the URL of a database."""

SIMULATED_POLLING: Final = PollPolicy(first=0.1, max_interval=0.5)


def _whole_number(_: object, tokens: Sequence[Token]) -> int:
    # cyclopts rounds 5.7 to 6, and seconds cost points.
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError("it is not a whole number.") from None


def _check_positive(_: object, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ValueError("Use a number above 0.")


def _check_gateway(_: object, name: str | None) -> None:
    from fuhu_runway._wire.tables import GATEWAYS

    if name is not None and name not in GATEWAYS:
        raise ValueError(f"{did_you_mean(name, GATEWAYS)}Use one of {', '.join(GATEWAYS)}.")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question that names the most similar word; "" if there is none."""
    close = difflib.get_close_matches(word.lower(), list(known), 1)
    return f"Did you mean {close[0]}? " if close else ""


def check_model(name: str | None) -> None:
    """Raise if *name* differs from that of a known model only in how it is spelled."""

    def digits(word: str) -> list[str]:
        return re.findall(r"\d", word)

    # Another number is another model, perhaps a new one.
    known = [row.name for row in MODELS if digits(row.name) == digits(name or "")]
    meant = difflib.get_close_matches((name or "").lower(), known, 1, cutoff=0.75)
    if meant and name not in known:
        raise usage_error(
            "model",
            f"--model {name} is not known. Did you mean {meant[0]}?",
            "If not, add --any-model to send it as it is.",
        )


def as_typed(journal: JournalPlace) -> str:
    """Return the place as an argument for a shell, without the password of a database."""
    return command_line(str(journal)) if isinstance(journal, Path) else f'"${DATABASE_VARIABLE}"'


WHOLE: Final = Parameter(converter=_whole_number)
POSITIVE: Final = Parameter(validator=_check_positive)

Screen = Annotated[Lines, Parameter(parse=False)]
"""What a command shows its progress on; `app.main` passes it."""


@Parameter(name="*", group=RESULT)
@attrs.frozen(kw_only=True)
class Output:
    """
    What is printed.

    Args:
        json: Print one JSON object and no progress; if the command fails, the object says what
            happened.
        quiet: Show only the result, the ids of paid tasks, and errors.
        verbose: Log what the SDK does; -vv logs everything and shows where errors come from.
    """

    json: bool = False
    quiet: Annotated[bool, Parameter(alias="-q")] = False
    # cyclopts itself counts flags only from 4.1 on.
    verbose: Annotated[tuple[bool, ...], Parameter(alias="-v")] = ()


@Parameter(name="*", group=GATEWAY)
@attrs.frozen(kw_only=True)
class Access:
    """
    Which gateway, and with which key.

    Args:
        gateway: Name of a known gateway, such as deerapi; by default fuhuapi.
        base_url: URL of the gateway; by default FUHU_BASE_URL, else the gateway's own.
        api_key_file: File that contains the key; by default the key is FUHU_API_KEY.
    """

    gateway: Annotated[str | None, Parameter(validator=_check_gateway)] = None
    base_url: str | None = None
    api_key_file: Path | None = None

    def words(self) -> Iterator[str]:
        """Return the options that select the same gateway again."""
        for name, value in attrs.asdict(self).items():
            if value is not None:
                yield from (f"--{name.replace('_', '-')}", str(value))

    def key(self) -> str:
        """Return the key. It is never an argument: other processes can read those."""
        if self.api_key_file is None:
            key = os.environ.get("FUHU_API_KEY", "")
            if not key:
                raise usage_error(
                    "api_key",
                    "No API key was given.",
                    "Set FUHU_API_KEY or use --api-key-file. With --simulate, no key is needed.",
                )
            return key
        try:
            key = self.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise usage_error(
                "api_key_file", f"The key file cannot be read ({reason}).", "Use another file."
            ) from None  # the cause may contain a part of the file
        if not key:
            raise usage_error("api_key_file", "The key file is empty.", "Write the key to it.")
        return key


ACCESS: Final = Access()


@Parameter(name="*", group=GATEWAY)
@attrs.frozen(kw_only=True)
class Target:
    """
    A real gateway, or a simulated one.

    Args:
        simulate: Use a simulated gateway on this machine: no key, no cost.
    """

    access: Access = ACCESS
    simulate: bool = False

    def check(self) -> None:
        """Raise unless there is a key, or a simulated gateway that needs none."""
        if not self.simulate:
            self.access.key()
            Account.from_env()
        elif self.access.base_url or self.access.api_key_file:
            raise usage_error(
                "simulate",
                "--simulate cannot be combined with --base-url or --api-key-file.",
                "Remove --simulate, or the options of the real gateway.",
            )

    async def open(
        self,
        stack: contextlib.AsyncExitStack,
        screen: Lines,
        simulator: "Simulator | None",
        **settings: Any,
    ) -> "Client":
        """Return a client of the gateway, or of *simulator*; *stack* closes both."""
        from fuhu_runway._wire.tables import GATEWAYS
        from fuhu_runway.client import Client

        if simulator is None:
            key, url = self.access.key(), self.access.base_url
            settings["account"] = Account.from_env()
            settings["hooks"] = [screen.watch, *settings.get("hooks", ())]
        else:
            await stack.enter_async_context(simulator)
            screen.say("simulated: a gateway on this machine, no key, no cost")
            key, url = simulator.api_key, simulator.base_url
            settings["polling"] = SIMULATED_POLLING
            settings["account"] = Account(simulator.access_token, simulator.user_id)
        gateway: Gateway | str | None = self.access.gateway
        row = GATEWAYS.get(self.access.gateway or "fuhuapi")
        if row is not None and simulator is not None:
            gateway = row = attrs.evolve(row, files_path="/v1/files")  # any simulated one has it
        if row is not None and row.files_path is not None:
            settings["uploads"] = GatewayFiles()
        client = Client(key, base_url=url, gateway=gateway, **settings)
        address = urlsplit(client.gateway.base_url or "")
        port = address.port or (80 if address.scheme == "http" else 443)
        screen.address = f"{address.netloc.removesuffix(f':{port}')}:{port}"
        return await stack.enter_async_context(client)


OUTPUT: Final = Output()
TARGET: Final = Target()
