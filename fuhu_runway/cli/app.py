"""
The command line: arguments in, results and exit codes out.

Rule 1: results go to stdout, and everything else to stderr.
Rule 2: a wrong command is one line, without the words that may be a prompt or a key.
"""

import errno
import inspect
import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cyclopts import App, Argument, CycloptsError, UnknownCommandError, UnusedCliTokensError

from fuhu_runway import errors
from fuhu_runway._redact import redact

from . import batch, journal, make, simulate
from .console import EXIT_CODES, complain, write

_HELP: Final = """
Video generation through Runway-style gateways: submit once, pay once, never lose a clip.

The key is read from the environment variable FUHU_API_KEY. To look around without one:
`fuhu-runway generate "a kitten" --simulate`

Exit codes:

""" + "\n".join(f"- {code}: {meaning}" for code, meaning in EXIT_CODES.items())

app: Final = App(
    name="fuhu-runway",
    help=_HELP,
    help_format="markdown",
    print_error=False,
    exit_on_error=False,
    verbose=False,
    # Ctrl-C before the work begins is for `__main__`, like any before.
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)


for _command in (*make.COMMANDS, simulate.simulate, batch.batch, *journal.COMMANDS):
    app.command(_command)


def main(tokens: Sequence[str] | None = None) -> int:
    """Return the exit code of the command that *tokens*, or the process's arguments, spell."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that this terminal cannot show is no reason to fail after paying.
            stream.reconfigure(errors="backslashreplace")
    try:
        return app(tokens) or 0
    except CycloptsError as error:
        complain(_hint(error))
    except errors.UsageError as error:
        complain(str(error))
    except (OSError, SystemExit) as error:  # the latter is what becomes of a help page
        # Windows says EINVAL of a pipe whose reader is gone.
        is_gone = isinstance(error, BrokenPipeError | SystemExit) or error.errno == errno.EINVAL
        if not is_gone:
            raise
        write(sys.stdout, "")
        return 0
    return 2


def _hint(error: CycloptsError) -> str:
    """Return what is wrong with the command, without the words that may be a prompt or a key."""
    help_of = " ".join(["fuhu-runway", *(error.command_chain or ()), "--help"])
    said = str(error)
    if isinstance(error, UnusedCliTokensError):
        said = "There are more words than arguments. Put a prompt of several words in quotes."
    if isinstance(error, UnknownCommandError):
        said = said.replace(f' "{(error.unused_tokens or [""])[0]}"', "", 1)
    sentences = [word for word in error.root_input_tokens or () if " " in word]
    return f"{redact(said, sentences)} See {help_of}"


# The pages about it


_TABLES: Final = {**batch.TABLES, **journal.TABLES, **simulate.TABLES}


def reference() -> str:
    """Return the tables of the reference page, as they follow from the commands themselves."""
    sections = (
        *(_command_section(name) for name in app if not name.startswith("-")),
        ["## Exit codes\n", *_table("Code", EXIT_CODES)],
        ["## A task in JSON\n", *_table("Key", {**make.RECORD_KEYS, **make.FILE_KEY})],
        ["## A balance in JSON\n", *_table("Key", make.BALANCE_KEYS)],
        *([f"## {head}\n", *_table("Key", keys)] for head, keys in _TABLES.items()),
    )
    return "\n".join("\n".join(lines) for lines in sections)


def _command_section(name: str) -> list[str]:
    options = {
        "`, `".join(argument.names): _meaning(argument)
        for argument in app[name].assemble_argument_collection()
        if argument.show
    }
    return [f"## {name}\n\n{inspect.cleandoc(app[name].help)}\n", *_table("Argument", options)]


def _meaning(argument: Argument) -> str:
    default = argument.field_info.default
    has_default = isinstance(default, str | float) or type(default) is int
    return f"{argument.parameter.help}{f' Default: {default}.' if has_default else ''}"


def _table(head: str, rows: Mapping[Any, str]) -> list[str]:
    lines = [f"| `{name}` | {meaning} |" for name, meaning in rows.items()]
    return [f"| {head} | Meaning |", "|---|---|", *lines, ""]
