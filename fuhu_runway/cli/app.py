"""
The command line: arguments in, results and exit codes out.

Rule 1: results go to stdout, and everything else to stderr.
Rule 2: an error in the arguments is one line that quotes neither a prompt nor a key.
"""

import errno
import inspect
import io
import sys
from collections.abc import Sequence
from typing import Final

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError, UnusedCliTokensError

from fuhu_runway import errors
from fuhu_runway._redact import redact

from . import batch, doctor, journal, make, report, resolve, simulate
from .console import EXIT_CODES, complain, run, write
from .options import OUTPUT

_HELP: Final = """
Generate videos through Runway-style gateways: submit once, pay once, never lose a clip.

The key is read from the environment variable FUHU_API_KEY. To try it without a key:
`fuhu-runway generate "a kitten" --simulate`

Exit codes:

""" + "\n".join(f"- {code}: {meaning}" for code, meaning in EXIT_CODES.items())


def _version() -> str:
    from importlib.metadata import version

    return version("fuhu-runway")


app: Final = App(
    name="fuhu-runway",
    help=_HELP,
    help_format="markdown",
    version=_version,
    version_format="plaintext",
    default_parameter=Parameter(
        negative="", negative_iterable="", show_default=lambda value: value or None
    ),
    print_error=False,
    exit_on_error=False,
    verbose=False,
    # `__main__` handles Ctrl-C before the work begins.
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)

for _command in (
    *make.COMMANDS,
    doctor.doctor,
    simulate.simulate,
    batch.batch,
    *journal.COMMANDS,
    resolve.resolve,
    report.report,
):
    app.command(_command)


def main(tokens: Sequence[str] | None = None) -> int:
    """Run the command in *tokens*, or in the process's arguments, and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name that this terminal cannot show must not fail a paid job.
            stream.reconfigure(errors="backslashreplace")
    try:
        command, bound, _ = app.parse_args(tokens)
        if not inspect.iscoroutinefunction(command):  # `batch`, a help page or the version
            return command(*bound.args, **bound.kwargs) or 0
        output = bound.arguments.get("output", OUTPUT)
        return run(lambda screen: command(*bound.args, **bound.kwargs, screen=screen), output)
    except CycloptsError as error:
        complain(_hint(error))
    except errors.UsageError as error:
        complain(str(error))
    except (OSError, SystemExit) as error:
        # A help page whose reader has closed the pipe; Windows reports that as EINVAL.
        is_closed = isinstance(error, BrokenPipeError | SystemExit) or error.errno == errno.EINVAL
        if not is_closed:
            raise
        write(sys.stdout, "")
        return 0
    return 2


def _hint(error: CycloptsError) -> str:
    """Return what is wrong with the arguments, without the words that may be a prompt or a key."""
    command = " ".join(["fuhu-runway", *(error.command_chain or ())])
    text = str(error)
    if isinstance(error, UnusedCliTokensError):
        text = "There are too many arguments. Put a prompt of several words in quotes."
    if isinstance(error, UnknownCommandError):
        text = text.replace(f' "{(error.unused_tokens or [""])[0]}"', "", 1)
    sentences = [word for word in error.root_input_tokens or () if " " in word]
    return f"{redact(text, sentences)} See {command} --help"
