"""
Assertions about the tasks, whose errors show the ledger with its deviations marked.

Their errors contain prompts.
"""

from collections.abc import Callable, Iterable, Sequence
from re import Pattern

import attrs

from fuhu_runway.testing.faults import Planned

from .store import Rule, TaskView, Which
from .story import Script

HEAD = ("", "at", "prompt", "state", "polls", "paid")
LEGEND = {"+": "+ was unexpected", "-": "- is missing", "?": "? was paid for but never polled"}

Row = tuple[str, str, str, str, str, str]


@attrs.frozen
class Ledger:
    """The tasks, in the order of submission."""

    tasks: Sequence[TaskView]
    #: Converts a second of the loop's clock to a simulated one.
    instant: Callable[[float], float]

    def __str__(self) -> str:
        return _table("The gateway accepted:", self._rows())

    def _rows(self, marked: Sequence[TaskView] = (), mark: str = "") -> list[Row]:
        return [
            (
                mark if task in marked else " ",
                f"{self.instant(task.created_at):g} s",
                repr(task.prompt),
                task.state,
                f"{task.polls}x",
                f"{task.points:g}{' (refunded)' if task.refunded else ''}",
            )
            for task in self.tasks
        ]

    def check_once(self, which: str | Pattern[str] | None) -> None:
        """Raise AssertionError unless exactly one task matches *which*."""
        __tracebackhide__ = True
        rule = Rule(which, Script())
        found = [task for task in self.tasks if which is None or rule.fits(task.request)]
        if len(found) == 1:
            return
        rows = self._rows(found[1:], "+")
        if not found:
            rows.append(_missing(_name_of(which)))
        of = "" if which is None else f" of {_name_of(which)}"
        points = sum(task.points for task in found)
        headline = f"expected 1 submission{of}, got {len(found)}, for {points:g} points."
        raise AssertionError(_table(headline, rows))

    def check_all(self, rules: Iterable[Rule], untouched: Iterable[Planned]) -> None:
        """Raise AssertionError unless all plans were used and all paid tasks were polled."""
        __tracebackhide__ = True
        forgotten = [task for task in self.tasks if not task.polls]
        missing = [
            *(_missing(_name_of(rule.which)) for rule in rules if not rule.is_requested),
            *(_missing(f"{type(one.fault).__name__} on {one.where!r}") for one in untouched),
        ]
        complaints = []
        if missing:
            complaints.append(f"{_were(missing, 'plan')} never used")
        if forgotten:
            complaints.append(f"{_were(forgotten, 'paid task')} never polled")
        if complaints:
            rows = [*self._rows(forgotten, "?"), *missing]
            raise AssertionError(_table(f"{' and '.join(complaints)}.", rows))


def _were(things: Sequence[object], noun: str) -> str:
    return f"1 {noun} was" if len(things) == 1 else f"{len(things)} {noun}s were"


def _name_of(which: Which) -> str:
    if which is None:
        return "the next task"
    if isinstance(which, Pattern):
        return f"/{which.pattern}/"
    return repr(which) if isinstance(which, str) else getattr(which, "__qualname__", repr(which))


def _missing(what: str) -> Row:
    return "-", "never", what, "", "", ""


def _table(headline: str, rows: Sequence[Row]) -> str:
    table = [HEAD, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )
    legend = [LEGEND[mark] for mark in dict.fromkeys(row[0] for row in rows) if mark in LEGEND]
    return "\n".join([headline, "", *lines, *(["", f"{'; '.join(legend)}."] if legend else [])])
