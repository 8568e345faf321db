"""
What an assertion about the gateway says when it fails: the ledger, as a diff.

Pure: views of tasks and plans in, words out; None where all is well. The words hold prompts.
"""

from collections.abc import Iterable, Sequence
from re import Pattern

import attrs

from fuhu_runway.testing.faults import Planned

from .store import Rule, TaskView, Which

HEAD = ("", "at", "prompt", "state", "asked", "paid")
LEGEND = {
    "+": "+ is one too many",
    "-": "- never came",
    "?": "? is paid for, and nobody asked how it went",
}

Row = tuple[str, str, str, str, str, str]


@attrs.frozen
class Entry:
    """One task with the simulated second at which it was accepted."""

    at: float
    task: TaskView

    def row(self, mark: str) -> Row:
        """What the ledger says of it."""
        task = self.task
        paid = f"{task.points:g}{' (given back)' if task.refunded else ''}"
        return mark, f"{self.at:g} s", repr(task.prompt), task.state, f"{task.polls}x", paid


def submitted_once(entries: Sequence[Entry], wanted: str | Pattern[str] | None) -> str | None:
    """Whether exactly one task is as *wanted*, in words if not."""
    found = [entry for entry in entries if _is(wanted, entry.task.prompt)]
    if len(found) == 1:
        return None
    extra = found[1:]
    rows = [entry.row("+" if entry in extra else " ") for entry in entries]
    if not found:
        rows.append(_missing(_named(wanted)))
    what = "Something" if wanted is None else _named(wanted)
    return _told(
        f"{what} was to be submitted once, and was submitted {len(found)} times, "
        f"for {sum(entry.task.points for entry in found):g} points.",
        rows,
    )


def all_asked(
    entries: Sequence[Entry], unasked: Iterable[Rule], untouched: Iterable[Planned]
) -> str | None:
    """Whether all that was planned came about and all that was paid for was asked about."""
    forgotten = [entry for entry in entries if not entry.task.polls]
    missing = [
        *(_missing(_named(rule.which)) for rule in unasked),
        *(_missing(f"{type(one.fault).__name__} on {one.where!r}") for one in untouched),
    ]
    if not forgotten and not missing:
        return None
    rows = [entry.row("?" if entry in forgotten else " ") for entry in entries]
    complaints = []
    if missing:
        complaints.append(f"{len(missing)} of the plans never came about")
    if forgotten:
        complaints.append(f"{len(forgotten)} of the paid tasks were never asked about")
    return _told(f"{' and '.join(complaints)}.".capitalize(), [*rows, *missing])


def shown(entries: Sequence[Entry]) -> str:
    """Return the ledger as it is."""
    return _told("The gateway accepted:", [entry.row(" ") for entry in entries])


def _is(wanted: str | Pattern[str] | None, prompt: str) -> bool:
    if wanted is None or isinstance(wanted, str):
        return wanted is None or wanted == prompt
    return wanted.search(prompt) is not None


def _named(which: Which) -> str:
    if which is None:
        return "the next task"
    if isinstance(which, Pattern):
        return f"/{which.pattern}/"
    return repr(which) if isinstance(which, str) else getattr(which, "__qualname__", repr(which))


def _missing(what: str) -> Row:
    return "-", "never", what, "", "", ""


def _told(headline: str, rows: Sequence[Row]) -> str:
    table = [HEAD, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )
    legend = [LEGEND[mark] for mark in dict.fromkeys(row[0] for row in rows) if mark in LEGEND]
    return "\n".join([headline, "", *lines, *(["", f"{'; '.join(legend)}."] if legend else [])])
