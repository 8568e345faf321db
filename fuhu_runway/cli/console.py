"""
What all commands share: a screen, exit codes, and Ctrl-C.

Rule 1: results go to stdout, and everything else to stderr.
Rule 2: each error is one line.
Rule 3: a pipe or a terminal that closes does not end a paid job.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator, Mapping
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, TextIO

import attrs

from fuhu_runway import errors, hooks
from fuhu_runway._redact import redact

if TYPE_CHECKING:
    from fuhu_runway.client import Client

    from .options import Output

EXIT_CODES: Final = {
    0: "The clip is saved, or the result is printed.",
    1: "The task failed: there will be no clip.",
    2: "The command is wrong, or the journal cannot be used: nothing was sent or charged.",
    3: "In doubt: a paid request was sent, and its outcome is unknown. It is not sent again.",
    4: "Timeout: the task continues, and `wait` can fetch its clip later.",
    5: (
        "The gateway, the network or the download failed; or the disk, during a batch; or `doctor` "
        "found something that does not fit."
    ),
    70: "A bug in this program.",
    130: "Stopped by Ctrl-C (143: by SIGTERM; 129: because the terminal closed).",
}
EXIT_OF: Final = (
    (errors.UsageError, 2),
    (errors.JournalError, 2),
    (errors.SubmissionInDoubt, 3),
    (errors.WaitTimeout, 4),
    (errors.TaskFailed, 1),
    (errors.RunwayError, 5),
    (Exception, 70),
)
"""The first class that matches an error determines the exit code."""

SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""The signals that stop a command: SIGHUP if its terminal closes, SIGBREAK on Windows."""


# From work to exit codes


def run(work: "Callable[[Lines], Coroutine[Any, Any, int | None]]", output: "Output") -> int:
    """Run *work* with a screen, and return the exit code. An error is one line on stderr."""
    screen = screen_for(quiet=output.json)
    verbosity = len(output.verbose)
    try:
        with logged(screen, verbosity), contextlib.closing(screen):
            return run_until_stopped(work(screen))
    except Exception as error:  # noqa: BLE001  (for a bug, too, the notes say how to continue)
        if verbosity > 1:
            write(sys.stderr, redact("".join(traceback.format_exception(error))))
        text = str(error)
        if not isinstance(error, errors.RunwayError):
            text = f"This is a bug in fuhu-runway ({type(error).__name__}). Please report it."
        complain(" ".join([text, *getattr(error, "__notes__", ())]))
        return next(code for kind, code in EXIT_OF if isinstance(error, kind))


def run_until_stopped(
    work: Coroutine[Any, Any, int | None],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> int:
    """
    Run *work*, and return its exit code, or 128 plus the number of the signal that stopped it.

    The first signal cancels the work, which may then finish what must not be lost. The second
    exits at once, without waiting for threads, such as one that hangs in a name lookup.
    """
    numbers = filter(None, (getattr(signal, name, None) for name in SIGNALS))
    handlers = {number: signal.getsignal(number) for number in numbers}
    stopped_by = 0
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            loop = runner.get_loop()
            task = loop.create_task(work)

            def on_signal(number: int, _frame: FrameType | None) -> None:
                nonlocal stopped_by
                if stopped_by or task.done():
                    leave(128 + number)
                else:
                    stopped_by = number
                    loop.call_soon_threadsafe(task.cancel)

            for number, handler in handlers.items():
                if handler is signal.SIG_IGN:  # as in a script's background process
                    continue
                with contextlib.suppress(NotImplementedError):  # on Windows, which needs no help
                    loop.add_signal_handler(number, lambda: None)  # wakes a sleeping loop
                signal.signal(number, on_signal)
            try:
                return loop.run_until_complete(task) or 0
            except asyncio.CancelledError:
                return 128 + stopped_by
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def leave(code: int) -> None:
    """End the process at once, with the cursor visible."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        if os.isatty(2):
            os.write(2, b"\x1b[?25h\n")
    os._exit(code)


async def close(client: "Client", screen: "Lines", awaited: str) -> None:
    """Close *client* once its paid requests have responses, and say so if that takes time."""
    closing = asyncio.ensure_future(client.aclose())
    done, _ = await asyncio.wait({closing}, timeout=0.1)
    if not done:
        screen.say(f"Waiting for {awaited}. Press Ctrl-C again to quit now.")
    await closing


# Progress


def screen_for(*, quiet: bool) -> "Lines":
    """Return what shows progress on this terminal."""
    # Windows sets no TERM, although its terminals can move the cursor.
    terminal = os.environ.get("TERM", "windows" if os.name == "nt" else "")
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if quiet or not is_terminal or terminal in {"", "dumb", "unknown"}:
        return Lines(quiet=quiet)
    from .bar import Bar

    return Bar()


class Lines:
    """Progress as plain lines on stderr, for pipes, logs and simple terminals."""

    #: Seconds between two displays of a batch's progress.
    interval: float = 10.0

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._stage = ""

    def say(self, text: str) -> None:
        """Show a line, even on a quiet screen."""
        write(sys.stderr, one_line(text))

    def info(self, text: str) -> None:
        """Show a line, unless the screen is quiet."""
        if not self._quiet:
            self.say(text)

    def stage(self, name: str, part: float | None = None, detail: str = "") -> None:  # noqa: ARG002  (percentages would fill a log)
        """Show what is going on now, and how much of it is done, from 0 to 1."""
        if name != self._stage:
            self._stage = name
            self.info(name)

    def board(self, head: str, part: float, detail: str, below: str) -> None:  # noqa: ARG002  (as above)
        """Show the progress of a batch: *head* and *detail* in one line, *below* in the next."""
        self.info(", ".join(filter(None, (head, below, detail))))

    def close(self) -> None:
        """Remove the moving line, if there is one."""


@contextlib.contextmanager
def logged(screen: Lines, verbosity: int) -> Iterator[None]:
    """Show the SDK's log on *screen*: nothing, INFO and above, or everything."""
    logger, handler = hooks.LOGGER, _ScreenHandler(screen)
    before = logger.level
    # Without a handler of ours, Python itself would print warnings.
    logger.setLevel({0: logging.CRITICAL, 1: logging.INFO}.get(verbosity, logging.DEBUG))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _ScreenHandler(logging.Handler):
    def __init__(self, screen: Lines) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.say(f"{record.levelname.lower()}: {record.getMessage()}")


# Output


def print_row(row: Mapping[str, Any], output: "Output") -> None:
    """Print one result: as JSON with every key, or as a table of the values that are known."""
    if output.json:
        write(sys.stdout, json.dumps(row, default=datetime.isoformat))
        return
    known = {key.replace("_", " "): value for key, value in row.items() if value is not None}
    width = max(map(len, known))
    for name, value in known.items():
        if name == "progress":
            text = f"{value:.0%}"
        elif isinstance(value, bool):
            text = "yes" if value else "no"
        else:
            text = number(value) if isinstance(value, float) else one_line(str(value))
        write(sys.stdout, f"{name:<{width}}  {text}")


def number(value: float) -> str:
    """Return an amount as a person writes it, such as 1,234.5."""
    return f"{value:,.10g}"


def one_line(text: str) -> str:
    """Return *text* without control characters; some of it comes from the gateway."""
    return "".join(sign if sign.isprintable() else " " for sign in text).rstrip()


def complain(text: str) -> None:
    """Write one line about an error to stderr."""
    write(sys.stderr, f"fuhu-runway: {one_line(text)}")


def write(stream: TextIO | None, text: str) -> None:
    """Print a line. Errors of the stream are ignored."""
    if stream is not None:
        lasting = Lasting(stream)
        lasting.write(f"{text}\n")
        lasting.flush()


@attrs.frozen
class Lasting:
    """A stream whose terminal or reader may close; what is written after that is discarded."""

    _stream: TextIO

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        """Write *text*, if that is still possible."""
        self._try(self._stream.write, text)

    def flush(self) -> None:
        """Flush the stream, if that is still possible."""
        self._try(self._stream.flush)

    def _try(self, work: Callable[..., object], *args: str) -> None:
        try:
            work(*args)
        except (OSError, ValueError):
            # A stream that is closed, or has no file descriptor, is left alone.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as null:  # noqa: PTH123
                os.dup2(null.fileno(), self._stream.fileno())
