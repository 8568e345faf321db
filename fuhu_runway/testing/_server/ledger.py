"""
What an assertion about the gateway says when it fails: the ledger, as a diff.

Pure: views of tasks and plans in, words out; None where all is well. The words hold prompts.
"""

from collections.abc import Iterable, Sequence
from re import Pattern

import attrs

from fuhu_runway.testing.faults import Planned

from .store import Rule, TaskView, Which
from .story import Script

HEAD = ("", "at", "prompt", "state", "polls", "paid")
LEGEND = {"+": "+ is one too many", "-": "- never came", "?": "? is paid for and was never polled"}

Row = tuple[str, str, str, str, str, str]


@attrs.frozen
class Entry:
    """One task with the simulated second at which it was accepted."""

    at: float
    task: TaskView

    def row(self, mark: str) -> Row:
        task = self.task
        paid = f"{task.points:g}{' (given back)' if task.refunded else ''}"
        return mark, f"{self.at:g} s", repr(task.prompt), task.state, f"{task.polls}x", paid


def submitted_once(entries: Sequence[Entry], which: str | Pattern[str] | None) -> str | None:
    """Return what is wrong unless exactly one task is as *which* says."""
    found = [
        entry
        for entry in entries
        if which is None or Rule(which, Script()).fits({"prompt": entry.task.prompt})
    ]
    if len(found) == 1:
        return None
    rows = [entry.row("+" if entry in found[1:] else " ") for entry in entries]
    if not found:
        rows.append(_missing(_name_of(which)))
    of = "" if which is None else f" of {_name_of(which)}"
    points = sum(entry.task.points for entry in found)
    return _table(f"expected 1 submission{of}, got {len(found)}, for {points:g} points.", rows)


def all_asked(
    entries: Sequence[Entry], rules: Iterable[Rule], untouched: Iterable[Planned]
) -> str | None:
    """Return what is wrong unless all plans came about and all paid tasks were polled."""
    forgotten = [entry for entry in entries if not entry.task.polls]
    missing = [
        *(_missing(_name_of(rule.which)) for rule in rules if not rule.is_asked),
        *(_missing(f"{type(one.fault).__name__} on {one.where!r}") for one in untouched),
    ]
    complaints = []
    if missing:
        complaints.append(f"{len(missing)} of the plans never came about")
    if forgotten:
        complaints.append(f"{len(forgotten)} of the paid tasks were never polled")
    if not complaints:
        return None
    rows = [entry.row("?" if entry in forgotten else " ") for entry in entries]
    return _table(f"{' and '.join(complaints)}.", [*rows, *missing])


def shown(entries: Sequence[Entry]) -> str:
    """Return the ledger as it is."""
    return _table("The gateway accepted:", [entry.row(" ") for entry in entries])


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
