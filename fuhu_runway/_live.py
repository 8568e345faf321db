"""A view in a notebook that follows what it shows."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import attrs

INTERVAL: Final = 0.2
"""Seconds between two updates; if less, a fast batch would flood the page."""


@attrs.define(eq=False, repr=False)
class Live:
    """A view that was displayed at most once, and is updated there."""

    #: Return the view as HTML.
    _view: Callable[[], str]
    _handle: Any = attrs.field(init=False, default=None)
    _timer: asyncio.TimerHandle | None = attrs.field(init=False, default=None)

    def show(self, text: str) -> None:
        """Display the view; a terminal, which shows no HTML, has *text*. Needs IPython."""
        from IPython.display import display  # noqa: PLC0415  (only IPython calls this)

        data = {"text/plain": text, "text/html": self._view()}
        self._handle = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def changed(self) -> None:
        """Update the view soon; does nothing if it was not displayed."""
        if self._handle is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self.update)

    def update(self) -> None:
        """Update the view now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._handle is not None:
            # A page that is gone must not end what it shows.
            with contextlib.suppress(Exception):
                # Without the text: a terminal would print it again.
                self._handle.update({"text/html": self._view()}, raw=True)
