"""
What all commands have in common: a screen, exit codes, and a way to stop.

Rule 1: what was asked for goes to stdout, and everything else to stderr.
Rule 2: whatever goes wrong is one line.
Rule 3: no pipe, screen or terminal that goes away ends a paid job.
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
from typing import TYPE_CHECKING, Any, Final, Self, TextIO, cast

import attrs

from fuhu_runway import errors, hooks
from fuhu_runway._redact import redact

from .options import Talk

if TYPE_CHECKING:
    from fuhu_runway.client import Client

EXIT_CODES: Final = {
    0: "The clip is saved, or the answer is printed.",
    1: "The task failed: there will be no clip.",
    2: "The command is wrong, or the journal cannot be used: nothing was sent or charged.",
    3: "In doubt: a paid request was sent, and its fate is unknown. It is not sent again.",
    4: "Timeout: the task goes on, and `wait` goes on with it.",
    5: "The gateway, the network or the download gave trouble, or the disk while a batch ran.",
    70: "A defect of this program.",
    130: "Stopped by Ctrl-C (143: by a request to terminate; 129: by a terminal that closed).",
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
"""The first class that fits an error gives the exit code."""

SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""What asks a command to end: also a terminal that closes, and Ctrl-Break on Windows."""

SIMULATED: Final = "simulated: a gateway on this machine, no key, no cost"
SHOW_CURSOR: Final = b"\x1b[?25h\n"


# From work to exit codes


def guarded(
    work: Callable[[], Coroutine[Any, Any, int | None]], screen: "Lines", *, verbosity: int
) -> int:
    """Do *work* and return the exit code. An error is one line on stderr."""
    try:
        with Stop() as stop, asyncio.Runner() as runner, logged(screen, verbosity), screen:
            return stop.run(runner, work())
    except Exception as error:  # noqa: BLE001  (a defect is shown too, with the task to go on with)
        if verbosity > 1:
            write(sys.stderr, redact("".join(traceback.format_exception(error))))
        text = str(error)
        if not isinstance(error, errors.RunwayError):
            text = f"A defect of this program ({type(error).__name__}). Please report it."
        complain(" ".join([text, *getattr(error, "__notes__", ())]))
        return next(code for kind, code in EXIT_OF if isinstance(error, kind))


def run(work: "Callable[[Lines], Coroutine[Any, Any, int | None]]", talk: Talk) -> int:
    """Do *work* with a screen as *talk* wants it, and return the exit code."""
    screen = screen_for(quiet=talk.json)
    return guarded(lambda: work(screen), screen, verbosity=len(talk.verbose))


async def close(client: "Client", screen: "Lines", awaited: str) -> None:
    """Close *client* once its paid requests have their answers, and say so if that takes time."""
    closing = asyncio.ensure_future(client.aclose())
    done, _ = await asyncio.wait({closing}, timeout=0.1)
    if not done:
        screen.say(f"Waiting for {awaited}. Ctrl-C again leaves at once.")
    await closing


class Stop:
    """
    Ctrl-C, and a request to terminate, in two steps.

    The first cancels the work, which may then finish what must not be lost. The second leaves at
    once, without waiting for threads, such as one that hangs in a name lookup.
    """

    def __init__(self) -> None:
        self._number = 0
        self._task: asyncio.Task[int | None] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in filter(None, (getattr(signal, name, None) for name in SIGNALS)):
            # A background process of a script ignores Ctrl-C, and has to go on doing so. None is
            # a handler that is not Python's.
            if signal.getsignal(number) not in {signal.SIG_IGN, None}:
                with contextlib.suppress(ValueError):  # outside the main thread, no signal comes
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, runner: asyncio.Runner, work: Coroutine[Any, Any, int | None]) -> int:
        """Run *work* until it ends or is stopped, and return the exit code."""
        loop = runner.get_loop()
        self._wake_by_signals(loop)
        self._task = loop.create_task(work)
        try:
            return loop.run_until_complete(self._task) or 0
        except asyncio.CancelledError:
            return 128 + self._number

    def _wake_by_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let a signal wake the loop, also one that arrives just as it falls asleep."""
        with contextlib.suppress(NotImplementedError):  # where loops see to that themselves
            for number in self._before:
                # For what it does beside: the loop closes it again.
                loop.add_signal_handler(number, lambda: None)
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._number or self._task is None or self._task.done():
            leave(128 + number)
        else:
            self._number = number
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)


def leave(code: int) -> None:
    """End the process here and now, with a cursor on the terminal."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        if os.isatty(2):
            os.write(2, SHOW_CURSOR)
    os._exit(code)


# What is shown


def screen_for(*, quiet: bool) -> "Lines":
    """Return what shows progress on this terminal."""
    # Windows has no TERM, and terminals that can move the cursor all the same.
    kind = os.environ.get("TERM", "windows" if os.name == "nt" else "")
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    can_move = is_terminal and kind not in {"", "dumb", "unknown"}
    return Bar() if can_move and not quiet else Lines(quiet=quiet)


class Lines:
    """Progress as plain lines on stderr, for pipes, logs and simple terminals."""

    #: How often a board is worth showing, in seconds.
    interval: float = 10.0

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._stage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, text: str) -> None:
        """Show a line, also on a quiet screen."""
        write(sys.stderr, one_line(text))

    def info(self, text: str) -> None:
        """Show a line, unless the screen is quiet."""
        if not self._quiet:
            self.say(text)

    def stage(self, name: str, part: float | None = None, detail: str = "") -> None:  # noqa: ARG002  (percents would fill a log)
        """Show what is going on now, and how much of it is done, from 0 to 1."""
        if name != self._stage:
            self._stage = name
            self.info(name)

    def board(self, head: str, part: float, detail: str, below: str) -> None:  # noqa: ARG002  (as above)
        """Show the state of a batch: *head* and *detail* in one line, and *below* in the next."""
        self.info(", ".join(filter(None, (head, below, detail))))

    def close(self) -> None:
        """Remove what moves, if anything does."""


class Bar(Lines):
    """Progress on a terminal: one line that moves, below the lines that stay."""

    interval = 0.2

    def __init__(self) -> None:
        super().__init__()
        self._progress: Any = None

    def say(self, text: str) -> None:
        """Show a line above the one that moves."""
        if self._progress is None:
            super().say(text)
        else:
            # Soft wrapping leaves it to the terminal, so that ids and commands can be copied.
            self._progress.console.print(
                one_line(text), markup=False, emoji=False, highlight=False, soft_wrap=True
            )

    def stage(self, name: str, part: float | None = None, detail: str = "") -> None:
        """Show it in the line that moves, with a bar that swings where the part is not known."""
        if self._progress is None:
            self._progress = _progress_bar()
        # Set by hand: update() cannot take a total back, and without one the bar swings.
        task = self._progress.tasks[0]
        task.description, task.fields["detail"] = name, detail
        task.total, task.completed = (None, 0.0) if part is None else (1.0, part)
        self._progress.start()  # once; again does nothing

    def board(self, head: str, part: float, detail: str, below: str) -> None:
        """Show it in the line that moves, with the rest below, in as many lines as that takes."""
        self.stage(head, part, detail)
        self._progress.below = below

    def close(self) -> None:
        """Remove the line that moves."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _progress_bar() -> Any:
    from rich import console, progress, table, text  # noqa: PLC0415  (for terminals only)

    class WithMore(progress.Progress):
        """A line that moves, and below it what else there is to know."""

        below = ""

        def get_renderables(self) -> Iterator[console.RenderableType]:
            yield from super().get_renderables()
            if self.below:
                yield text.Text(self.below)

    class DetailOrTime(progress.TimeElapsedColumn):
        """The progress, or where that is unknown, the elapsed time."""

        def render(self, task: progress.Task) -> text.Text:
            detail = task.fields["detail"]
            return text.Text(detail) if detail else super().render(task)

    stderr = console.Console(file=cast("TextIO", _Lasting(sys.stderr)))
    bar = WithMore(
        progress.SpinnerColumn("dots" if stderr.encoding.startswith("utf") else "line"),
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=40 if stderr.width >= 80 else None),
        DetailOrTime(table_column=table.Column(no_wrap=True)),  # the bar gives way
        console=stderr,
        transient=True,
    )
    bar.add_task("", total=None, detail="")
    return bar


@contextlib.contextmanager
def logged(screen: Lines, verbosity: int) -> Iterator[None]:
    """Show the SDK's log on *screen*: nothing, from INFO on, or all of it."""
    logger, handler = hooks.LOGGER, _ToScreen(screen)
    before = logger.level
    # Without a handler of ours, Python itself would print warnings.
    logger.setLevel({0: logging.CRITICAL, 1: logging.INFO}.get(verbosity, logging.DEBUG))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _ToScreen(logging.Handler):
    def __init__(self, screen: Lines) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.say(f"{record.levelname.lower()}: {record.getMessage()}")


# What is printed


def print_row(row: Mapping[str, Any], talk: Talk) -> None:
    """Print one result: as JSON with every key, or as a table of what is known."""
    if talk.json:
        write(sys.stdout, json.dumps(row, default=datetime.isoformat))
        return
    known = {key.replace("_", " "): value for key, value in row.items() if value is not None}
    width = max(map(len, known))
    for name, value in known.items():
        write(sys.stdout, f"{name:<{width}}  {_shown(name, value)}")


def _shown(name: str, value: Any) -> str:
    if name == "progress":
        return f"{value:.0%}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.10g}"
    return one_line(str(value))


def one_line(text: str) -> str:
    """Return *text* without what would move the cursor: some of it comes from the gateway."""
    return "".join(sign if sign.isprintable() else " " for sign in text).rstrip()


def complain(text: str) -> None:
    """Write one line to stderr."""
    write(sys.stderr, f"fuhu-runway: {one_line(text)}")


def write(stream: TextIO | None, text: str) -> None:
    """Print a line. Errors of the stream are ignored; what it cannot encode is escaped."""
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    shown = text.encode(encoding, "backslashreplace").decode(encoding)
    lasting = _Lasting(stream)
    lasting.write(f"{shown}\n")
    lasting.flush()


@attrs.frozen
class _Lasting:
    """A stream whose terminal or reader may close; what is written after that is lost."""

    _stream: TextIO

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        self._try(self._stream.write, text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, work: Callable[..., object], *args: str) -> None:
        try:
            work(*args)
        except (OSError, ValueError):
            # A stream that is closed, or is no file, is left as it is.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
                os.dup2(nowhere.fileno(), self._stream.fileno())
