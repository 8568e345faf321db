"""
What is written to stdout and stderr, without the time that importing the commands takes.

Rule 1: a stream that is closed, or whose disk is full, ends no command.
Rule 2: a command whose result is lost on a full disk does not end with 0.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import Any, Final, TextIO

import attrs

CLOSED: Final = frozenset({None, errno.EPIPE, errno.EINVAL})
"""The errors of a stream that is closed, or whose reader has closed it: EINVAL on Windows."""

LOST: Final = 5
"""The exit code of a command whose result could not be written."""


def keep_standard_streams() -> None:
    """
    Open the null device in the place of standard streams that are closed.

    Otherwise the next file, such as a clip, takes their number, and gets what is written to them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def one_line(text: str) -> str:
    """Return *text* without control characters; some of it comes from the gateway."""
    return "".join(sign if sign.isprintable() else " " for sign in text).rstrip()


def complain(text: str) -> None:
    """Write one line about an error to stderr."""
    write(sys.stderr, f"fuhu-runway: {one_line(text)}")


def write(stream: TextIO | None, text: str) -> bool:
    """Print a line; return whether it is a result that was lost, as on a full disk."""
    if stream is None:
        return False
    lasting = Lasting(stream)
    lasting.write(f"{text}\n")
    lasting.flush()
    return lasting.is_lost


@attrs.define(eq=False)
class Lasting:
    """A stream whose terminal or reader may close; what is written after that is discarded."""

    _stream: TextIO
    #: Whether a result was lost, other than by a reader that closed the pipe.
    is_lost: bool = attrs.field(init=False, default=False)

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
        except (OSError, ValueError) as error:
            # A stream that is closed, or has no file descriptor, is left alone.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as null:  # noqa: PTH123
                os.dup2(null.fileno(), self._stream.fileno())
            is_result = sys.stdout is self or sys.stdout is self._stream
            if is_result and isinstance(error, OSError) and error.errno not in CLOSED:
                self.is_lost = True
                complain(f"The output could not be written: {error.strerror}.")
