"""Options that several commands share: which gateway and journal, and where a clip is saved."""

import difflib
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final

import attrs
from cyclopts import Group, Parameter, Token

from fuhu_runway._journal.file import command_line
from fuhu_runway.account import Account
from fuhu_runway.journal import DATABASE_VARIABLE, is_database
from fuhu_runway.models import DEFAULT_WAIT, MODELS, usage_error

from .console import RESULT

REQUEST: Final = Group("Request", sort_key=1)
GATEWAY: Final = Group("Gateway", sort_key=3)

OUT: Final = Path("clips")
"""The folder for clips by default."""

NAME_BYTES: Final = 60
"""How much of a prompt is in a file name, in bytes; more might leave no room for the id."""

# Values


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
        close = difflib.get_close_matches(name.lower(), GATEWAYS, 1)
        question = f"Did you mean {close[0]}? " if close else ""
        raise ValueError(f"{question}Use one of {', '.join(GATEWAYS)}.")


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


WHOLE: Final = Parameter(converter=_whole_number)
POSITIVE: Final = Parameter(validator=_check_positive)

IN_RESULT: Final = Parameter(group=RESULT)

InputFile = Annotated[
    Path,
    Parameter(
        allow_leading_hyphen=True,
        help="Requests: .txt (one prompt per line), .jsonl, .csv or .tsv; - reads from stdin.",
    ),
]
ClipTimeout = Annotated[
    float, IN_RESULT, POSITIVE, Parameter(help="How long to wait for each clip, in seconds.")
]

# Journals

JournalPlace = Path | str
"""Where a journal is: the path of a file, or the URL of a database."""


def _journal(_: object, tokens: Sequence[Token]) -> JournalPlace:
    place = tokens[0].value
    if is_database(place):
        return place
    if "@" in place or "password=" in place:
        raise ValueError("The URL of a database begins with postgresql://")
    path = Path(place)
    return path / "journal.db" if path.is_dir() else path


def existing(place: JournalPlace) -> JournalPlace:
    """Return the journal if it exists, as far as that can be seen without opening it."""
    if isinstance(place, Path) and not place.is_file():
        happened = f"There is no journal {str(place)!r}."
        raise usage_error("journal", happened, "Pass the journal of a batch, or its folder.")
    return place


def _check_exists(_: object, place: JournalPlace) -> None:
    existing(place)


JOURNAL: Final = Parameter(converter=_journal)
JournalArgument = Annotated[
    JournalPlace,
    JOURNAL,
    Parameter(
        validator=_check_exists,
        help="Journal of a batch, such as clips/journal.db, its folder, or the URL of a database.",
    ),
]


def on_journal(command: str, journal: JournalPlace, *words: str) -> str:
    """Return a command about a journal for a shell, without the password of a database."""
    place = command_line(str(journal)) if isinstance(journal, Path) else f'"${DATABASE_VARIABLE}"'
    return " ".join(filter(None, ("fuhu-runway", command, place, command_line(*words))))


# The gateway


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

    def key(self, advice: str = "") -> str:
        """Return the key. It is never an argument: other processes can read those."""
        if self.api_key_file is None:
            key = os.environ.get("FUHU_API_KEY", "")
            if not key:
                raise usage_error(
                    "api_key",
                    "No API key was given.",
                    f"Set FUHU_API_KEY or use --api-key-file. {advice}".rstrip(),
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


@Parameter(name="*", group=GATEWAY)
@attrs.frozen(kw_only=True)
class Target:
    """
    A real gateway, or a simulated one.

    Args:
        simulate: Use a simulated gateway on this machine: no key, no cost.
    """

    access: Access = Access()
    simulate: bool = False

    def words(self) -> Iterator[str]:
        """Return the options that select the same gateway again."""
        yield from self.access.words()
        if self.simulate:
            yield "--simulate"

    def check(self) -> None:
        """Raise unless there is a key, or a simulated gateway that needs none."""
        if not self.simulate:
            self.access.key("With --simulate, no key is needed.")
            Account.from_env()
        elif self.access.base_url or self.access.api_key_file:
            raise usage_error(
                "simulate",
                "--simulate cannot be combined with --base-url or --api-key-file.",
                "Remove --simulate, or the options of the real gateway.",
            )


# The clip


@Parameter(name="*", group=RESULT)
@attrs.frozen(kw_only=True)
class Saving:
    """
    Where the clip is saved, and how long to wait for it.

    Args:
        output_file: File to save the clip in; by default named after the prompt and the task.
        force: Replace the file if it exists.
        timeout: How long to wait for the clip, in seconds.
    """

    output_file: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None
    force: bool = False
    timeout: Annotated[float, POSITIVE] = DEFAULT_WAIT

    def check(self, prompt: str | None) -> None:
        """Raise unless the clip can be saved; called before it is paid for."""
        from fuhu_runway.paths import check_target

        # A default name contains the id, which is not known yet, so it cannot be taken.
        path = self.path(prompt, "task")
        check_target(path, overwrite=self.force or self.output_file is None)

    def path(self, prompt: str | None, task_id: str) -> Path:
        """Return where the clip of a task is saved."""
        from fuhu_runway._clip_files import encodable
        from fuhu_runway.paths import safe_name

        if self.output_file is not None:
            return self.output_file
        start = encodable(prompt or "clip").encode()[:NAME_BYTES].decode(errors="ignore")
        return Path(safe_name(f"{start}-{task_id}"))


@Parameter(name="*", group=RESULT)
@attrs.frozen(kw_only=True)
class Submitting:
    """
    What happens to a task after it is submitted.

    Args:
        no_wait: Print the task's id as soon as the task is accepted, and do not wait for its clip.
        journal: Journal to record the task in; created if needed.
    """

    saving: Saving = Saving()
    no_wait: bool = False
    journal: Path | None = None
