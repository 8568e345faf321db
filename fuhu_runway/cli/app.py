"""
The command line: arguments in, results and exit codes out.

Rule 1: results go to stdout, and everything else to stderr.
Rule 2: an error in the arguments is one line that quotes neither a prompt nor a key; with --json,
stdout has one object even then.
"""

import contextlib
import inspect
import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TextIO, cast

import attrs
from cyclopts import App, CycloptsError, Parameter

from fuhu_runway import errors
from fuhu_runway.models import usage_error

from . import account, batch, doctor, fleet, fleet_demo, journal, make, report, resolve, simulate
from .console import EXIT_CODES, Screen, fail, run
from .output import LOST, Lasting
from .usage import explained, name_as_typed, wants_json

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
    version_flags=("--version", "-V"),
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
    *(make.generate, make.restyle, make.act, make.submit, make.wait, make.feed, make.balance),
    *(doctor.doctor, simulate.simulate, batch.batch),
    *(journal.jobs, journal.resume, journal.forget),
    *(account.reconcile, account.audit, resolve.resolve, report.report),
):
    app.command(_command)
fleet.app.command(fleet_demo.demo)
app.command(fleet.app)
app.register_install_completion_command(
    help="Install tab completion for your shell (needed only once)."
)


def main(tokens: Sequence[str] | None = None) -> int:
    """Run the command in *tokens*, or in the process's arguments, and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name that this terminal cannot show must not fail a paid job.
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("COLUMNS") in {"1", "2"}:
        del os.environ["COLUMNS"]  # Rich would never finish a help page
    tokens = sys.argv[1:] if tokens is None else tokens
    screen = Screen(json=wants_json(tokens))
    try:
        command, bound, _ = app.parse_args(tokens)
        if "screen" in inspect.signature(command).parameters:
            # A copy: the default of a command is the same object in every run.
            screen = attrs.evolve(bound.arguments.get("screen", screen))
            bound.arguments["screen"] = screen
            *_, used = app.parse_commands(tokens)[1]
            screen.reword = partial(name_as_typed, command=used)
            done = command(*bound.args, **bound.kwargs)
            # `batch`, which reads stdin first, is not a coroutine.
            return run(done, screen) if inspect.iscoroutine(done) else done or 0
        return _built_in(command, bound)
    except CycloptsError as error:
        return fail(explained(error), screen)
    except errors.UsageError as error:
        return fail(error, screen)


def _built_in(command: Callable[..., object], bound: inspect.BoundArguments) -> int:
    """Show a help page or the version, or install tab completion."""
    stdout = sys.stdout and Lasting(sys.stdout)
    try:
        with contextlib.redirect_stdout(cast("TextIO | None", stdout)):
            command(*bound.args, **bound.kwargs)
    except SystemExit:  # after a message about the shell
        return 2
    except OSError as error:
        raise usage_error(
            "install_completion",
            f"Tab completion could not be installed: {error.strerror}.",
            "Check that files in your home directory can be written.",
        ) from error
    return LOST if stdout and stdout.is_lost else 0
