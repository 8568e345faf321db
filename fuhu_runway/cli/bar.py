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

from .output import Lasting


class Bar(Progress):
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

    def say(self, text: str) -> None:
        """Show a line above the moving one."""
        # With soft wrapping, the terminal wraps, so that ids and commands can be copied.
        self.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def show(self, name: str, part: float | None, detail: str, below: str) -> None:
        """Show a stage; without *part*, the bar pulses."""
        # Progress.update() cannot remove a total.
        task = self.tasks[0]
        task.description, task.fields["detail"] = name, detail
        task.total, task.completed = (None, 0.0) if part is None else (1.0, part)
        self.below = below
        self.start()  # does nothing the second time

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the moving line, and the text below it."""
        yield from super().get_renderables()
        if self.below:
            yield Text(self.below)


class _DetailOrTime(TimeElapsedColumn):
    """The detail of a stage, or the elapsed time if it has none."""

    def render(self, task: Task) -> Text:
        detail = task.fields["detail"]
        return Text(detail) if detail else super().render(task)
