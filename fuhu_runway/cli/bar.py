"""Progress on a terminal: one moving line, below the lines that stay."""

import sys
from collections.abc import Iterator
from typing import TextIO, cast

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from .console import Lasting, Lines, one_line


class Bar(Lines):
    """Progress as one moving line, shown from the first stage on."""

    interval = 0.2

    def __init__(self) -> None:
        super().__init__()
        self._progress: _Progress | None = None

    def say(self, text: str) -> None:
        """Show a line above the moving one."""
        if self._progress is None:
            super().say(text)
        else:
            # With soft wrapping, the terminal wraps, so that ids and commands can be copied.
            self._progress.console.print(
                one_line(text), markup=False, emoji=False, highlight=False, soft_wrap=True
            )

    def stage(
        self, name: str, part: float | None = None, detail: str = "", below: str = ""
    ) -> None:
        """Show the stage in the moving line; without *part*, the bar pulses."""
        if self._progress is None:
            self._progress = _Progress()
        # Progress.update() cannot remove a total.
        task = self._progress.tasks[0]
        task.description, task.fields["detail"] = name, detail
        task.total, task.completed = (None, 0.0) if part is None else (1.0, part)
        self._progress.below = below
        self._progress.start()  # does nothing the second time

    def board(self, head: str, part: float, detail: str, below: str) -> None:
        """Show *head* and *detail* in the moving line, and *below* in the lines under it."""
        self.stage(head, part, detail, below)

    def close(self) -> None:
        """Remove the moving line."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class _Progress(Progress):
    """A moving line with text below it."""

    below = ""

    def __init__(self) -> None:
        stderr = Console(file=cast("TextIO", Lasting(sys.stderr)))
        super().__init__(
            SpinnerColumn("dots" if stderr.encoding.startswith("utf") else "line"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=40 if stderr.width >= 80 else None),
            _DetailOrTime(table_column=Column(no_wrap=True)),  # the bar shrinks instead
            console=stderr,
            transient=True,
        )
        self.add_task("", total=None, detail="")

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.below:
            yield Text(self.below)


class _DetailOrTime(TimeElapsedColumn):
    """The detail of a stage, or the elapsed time if it has none."""

    def render(self, task: Task) -> Text:
        detail = task.fields["detail"]
        return Text(detail) if detail else super().render(task)
