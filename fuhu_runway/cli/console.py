"""
What all commands share: a screen, exit codes, and Ctrl-C.

Rule 1: results go to stdout, and everything else to stderr.
Rule 2: each error is one line; with --json, it is one object on stdout as well.
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
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Final

import attrs
from cyclopts import Group, Parameter

from fuhu_runway import errors, hooks
from fuhu_runway._redact import redact

from .output import LOST, complain, one_line, write

if TYPE_CHECKING:
    from fuhu_runway.client import Client

    from .bar import Bar

RESULT: Final = Group("Result", sort_key=2)
"""The heading of the options for what is printed and saved."""

EXIT_CODES: Final = {
    0: "The clip is saved, or the result is printed.",
    1: "The task failed: there will be no clip.",
    2: "The command is wrong, or the journal cannot be used: nothing was sent or charged.",
    3: "In doubt: a paid request was sent, and its outcome is unknown. It is not sent again.",
    4: "Timeout: the task continues, and `wait` can fetch its clip later.",
    5: (
        "The gateway, the network or the download failed; or the disk, during a batch or under a "
        "redirected result; or `doctor` found something that does not fit."
    ),
    70: "A bug in this program.",
    75: "A worker of a fleet could not reach the database for too long. Start it again.",
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


FIRST_SIGNAL: Final = 128
"""A command that a signal stops has this plus the signal's number as its exit code."""

# From work to exit codes


def run(work: Coroutine[Any, Any, int | None], screen: "Screen") -> int:
    """Run *work*, and return the exit code. An error is one line on stderr."""
    try:
        with logged(screen), contextlib.closing(screen):
            code = run_until_stopped(work, in_flight=screen.in_flight, as_json=screen.json)
    except Exception as error:  # noqa: BLE001  (for a bug, too, the notes say how to continue)
        return fail(error, screen)
    if code > FIRST_SIGNAL:
        return stopped(screen, code)
    return LOST if screen.is_lost and not code else code


def stopped(screen: "Screen", code: int) -> int:
    """Show that a signal stopped the command, unless the command did; return its exit code."""
    if screen.stopped is None:
        screen.stop()
    if screen.json and screen.stopped is not None:
        write(sys.stdout, failure(code, "Stopped", *screen.stopped))
    return code


def fail(error: Exception, screen: "Screen", code: int | None = None) -> int:
    """Print an error (with --json, also as an object), and return its exit code."""
    if len(screen.verbose) > 1:
        write(sys.stderr, redact("".join(traceback.format_exception(error))))
    if isinstance(error, errors.NotSent | errors.NoReply) and screen.address:
        error.add_note(f"The gateway's address is {screen.address}.")
    if screen.reword and isinstance(error, errors.RunwayError):
        screen.reword(error)
    text = str(error)
    if not isinstance(error, errors.RunwayError):
        text = f"This is a bug in fuhu-runway ({type(error).__name__}). Please report it."
    text = " ".join([text, *getattr(error, "__notes__", ())])
    code = code or next(code for kind, code in EXIT_OF if isinstance(error, kind))
    complain(text)
    if screen.json:
        money, task_id = getattr(error, "money", None), getattr(error, "task_id", None)
        write(sys.stdout, failure(code, type(error).__name__, text, money, task_id))
    return code


def failure(
    code: int, name: str, message: str, money: str | None = None, task_id: str | None = None
) -> str:
    """Return the object that --json prints if a command fails."""
    row = {"error": name, "message": one_line(message), "task_id": task_id, "money": money}
    return json.dumps({**row, "exit_code": code})


def run_until_stopped(
    work: Coroutine[Any, Any, int | None],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    *,
    in_flight: Collection[int] = (),
    as_json: bool = False,
) -> int:
    """
    Run *work*, and return its exit code, or 128 plus the number of the signal that stopped it.

    The first signal cancels the work, which may then finish what must not be lost. The second
    exits at once, without waiting for threads, such as one that hangs in a name lookup; with 3 if
    a paid request is *in_flight*.
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
                if (stopped_by or task.done()) and in_flight:
                    leave_in_doubt(len(in_flight), as_json=as_json)
                elif stopped_by or task.done():
                    leave(FIRST_SIGNAL + number)
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
                return FIRST_SIGNAL + stopped_by
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def leave(code: int, out: str = "", err: str = "") -> None:
    """End the process at once, with the cursor visible and these lines written."""
    # Not through the streams of Python, which the signal may have interrupted.
    with contextlib.suppress(OSError):  # the terminal may be gone
        if os.isatty(2):
            os.write(2, b"\x1b[?25h\n")
        if err:
            os.write(2, err.encode())
    with contextlib.suppress(OSError):
        if out:
            os.write(1, out.encode())
    os._exit(code)


def leave_in_doubt(requests: int, *, as_json: bool) -> None:
    """End the process at once, while paid requests have no response."""
    many = counted(requests, "paid request was", "paid requests were")
    money = f"{many} in flight: it is unknown whether points were charged."
    advice = "Check the gateway's list of tasks, or the balance, before you submit again."
    text = f"Stopped. {money} {advice}"
    out = failure(3, errors.SubmissionInDoubt.__name__, text, money)
    leave(3, f"{out}\n" if as_json else "", f"{text}\n")


async def close(client: "Client", screen: "Screen", awaited: str) -> None:
    """Close *client* once its paid requests have responses, and say so if that takes time."""
    closing = asyncio.ensure_future(client.aclose())
    done, _ = await asyncio.wait({closing}, timeout=0.1)
    if not done:
        screen.say(f"Waiting for {awaited}. Press Ctrl-C again to quit now.")
    await closing


# The screen


@Parameter(name="*", group=RESULT)
@attrs.define(eq=False, kw_only=True)
class Screen:
    """
    What a command prints: its result, its progress, and its errors.

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
    #: The submissions whose paid request was sent and has no response yet.
    in_flight: set[int] = attrs.field(init=False, factory=set)
    #: Host and port of the gateway.
    address: str = attrs.field(init=False, default="")
    #: What to report after a signal: the text, what it means for the money, and the task's id.
    stopped: tuple[str, str | None, str | None] | None = attrs.field(init=False, default=None)
    #: Replaces the names of Python's arguments in an error with the options that were typed.
    reword: Callable[[errors.RunwayError], None] | None = attrs.field(init=False, default=None)
    #: Whether a part of the result could not be written.
    is_lost: bool = attrs.field(init=False, default=False)
    _bar: "Bar | None" = attrs.field(init=False, default=None)
    _stage: str = attrs.field(init=False, default="")

    @property
    def has_bar(self) -> bool:
        """Whether progress is a line that moves."""
        if self._bar is not None:
            return True  # while it moves, older versions of Rich hide the terminal
        if self.json or self.quiet or sys.stderr is None or not sys.stderr.isatty():
            return False
        # Windows sets no TERM, although its terminals can move the cursor.
        terminal = os.environ.get("TERM", "windows" if os.name == "nt" else "")
        return terminal not in {"", "dumb", "unknown"}

    @property
    def interval(self) -> float:
        """Seconds between two displays of a batch's progress."""
        return 0.2 if self.has_bar else 10.0

    def watch(self, event: hooks.Event) -> None:
        """Record which paid requests are in flight."""
        match event:
            case hooks.SubmissionSent():
                self.in_flight.add(event.submission)
            case (
                hooks.TaskSubmitted()
                | hooks.RetryScheduled()
                | hooks.SubmissionFailed()
                | hooks.SubmissionDoubted()
                | hooks.SubmissionUnclaimed()
            ) if event.submission is not None:
                self.in_flight.discard(event.submission)

    def stop(self, money: str = "", advice: str = "", task_id: str | None = None) -> None:
        """Show that a signal stopped the command, and what that means."""
        self.close()
        text = " ".join(filter(None, ("Stopped.", money, advice)))
        self.stopped = text, money or None, task_id
        self.say(text)

    def say(self, text: str) -> None:
        """Show a line, even on a quiet screen."""
        if self._bar is None:
            write(sys.stderr, one_line(text))
        else:
            self._bar.say(one_line(text))

    def info(self, text: str) -> None:
        """Show a line, unless the screen is quiet."""
        if not (self.json or self.quiet):
            self.say(text)

    def stage(self, name: str, part: float | None = None, detail: str = "") -> None:
        """Show what is going on now, and how much of it is done, from 0 to 1."""
        if self.has_bar:
            self._move(name, part, detail)
        elif name != self._stage:  # percentages would fill a log
            self._stage = name
            self.info(name)

    def board(self, head: str, part: float, detail: str, below: str) -> None:
        """Show the progress of a batch: *head* and *detail* in one line, *below* in the next."""
        if self.has_bar:
            self._move(head, part, detail, below)
        else:
            self.info(", ".join(filter(None, (head, below, detail))))

    def _move(self, name: str, part: float | None, detail: str, below: str = "") -> None:
        if self._bar is None:
            from .bar import Bar

            self._bar = Bar()
        self._bar.show(name, part, detail, below)

    def close(self) -> None:
        """Remove the moving line, if there is one."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def show(self, row: Mapping[str, Any], *lines: str) -> None:
        """Print the result: these lines, or with --json one object with every key."""
        self.close()
        if self.json:
            self.is_lost |= write(sys.stdout, json.dumps(row, default=_plain))
        else:
            self.out(*lines)

    def out(self, *lines: str) -> None:
        """Print these lines of a result; with --json, nothing."""
        for line in () if self.json else lines:
            self.is_lost |= write(sys.stdout, line)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


@contextlib.contextmanager
def logged(screen: Screen) -> Iterator[None]:
    """Show the SDK's log on *screen*: nothing, INFO and above, or everything."""
    logger, handler = hooks.LOGGER, _ScreenHandler(screen)
    before = logger.level
    # Without a handler, Python itself would print warnings, also those of asyncio and aiohttp.
    silent = logging.NullHandler()
    logging.getLogger().addHandler(silent)
    logger.setLevel({0: logging.CRITICAL, 1: logging.INFO}.get(len(screen.verbose), logging.DEBUG))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logging.getLogger().removeHandler(silent)


class _ScreenHandler(logging.Handler):
    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.say(f"{record.levelname.lower()}: {record.getMessage()}")


# Output


def fields(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each value that is known."""
    known = {key.replace("_", " "): value for key, value in row.items() if value is not None}
    width = max(map(len, known))
    for name, value in known.items():
        if name == "progress":
            text = f"{value:.0%}"
        elif isinstance(value, bool):
            text = "yes" if value else "no"
        else:
            text = number(value) if isinstance(value, float) else one_line(str(value))
        yield f"{name:<{width}}  {text}"


def columns(*rows: Sequence[str]) -> Iterator[str]:
    """Yield a line for each row, with its cells in columns."""
    clean = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    for row in clean:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def counted(count: int, one: str, many: str) -> str:
    """Return a count with its noun, and with the verb that fits it."""
    return f"{count:,} {one if count == 1 else many}"


def listed(counts: Mapping[str, int], none: str = "") -> str:
    """Return the counts that are not 0 in one line, or *none*."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or none


def number(value: float | None, none: str = "") -> str:
    """Return an amount as a person writes it, such as 1,234.5; without one, *none*."""
    return none if value is None else f"{value:,.10g}"
