"""
How things look in a notebook: HTML without scripts or assets, everything escaped.

Rule 1: what a gateway sends is shown as text; only its http(s) URLs become links.
Rule 2: only tags, attributes and styles that JupyterLab keeps in outputs it does not trust. ARIA is
not among them: a `title` has the name that a screen reader announces.
Rule 3: text has the page's own colour, so that it is readable on light and dark pages, and no
colour carries information alone.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from ._urls import is_web_address
from .models import TaskRecord, TaskState

if TYPE_CHECKING:
    from .journal import Job

MAX_TEXT: Final = 300
"""How many characters of a gateway's reason are shown: some quote a whole page."""

NEWEST: Final = 50
"""How many jobs of a journal are shown."""

STATES: Final[Mapping[TaskState | None, tuple[str, str]]] = {
    None: ("Not polled yet", "#868e98"),
    TaskState.QUEUED: ("Queued", "#868e98"),
    TaskState.RUNNING: ("Running", "#2f81f7"),
    TaskState.SUCCEEDED: ("Succeeded", "#2da44e"),
    TaskState.FAILED: ("Failed", "#e5534b"),
    TaskState.CANCELED: ("Cancelled", "#e5534b"),
    TaskState.UNKNOWN: ("In an unknown state", "#b8831c"),
}
"""The name of each state, and its colour, which stands out on white and on black (3:1)."""


def task_view(
    task_id: str,
    record: TaskRecord | None,
    *,
    age: float | None = None,
    reason: str | None = None,
    money: str | None = None,
) -> str:
    """
    Return a task as of its last poll.

    Args:
        task_id: Its id.
        record: The gateway's last record; None before the first poll.
        age: How long ago it was accepted, in seconds; None if that is not known.
        reason: Why it failed, without secrets.
        money: What that means for the money.
    """
    state = record.state if record else None
    name, color = STATES[state]
    facts, notes, progress = [f"<strong>{name}</strong>"], [reason, money], None
    if record is None or not record.state.is_final:
        progress = record.progress if record else None
        if progress is not None:
            facts.append(f"{progress:.0%}")
        if age is not None:
            facts.append(f"for {duration(age)}")
    elif record.created_at is not None and record.updated_at is not None:
        # Both by the gateway's clock: ours may differ.
        took = (record.updated_at - record.created_at).total_seconds()
        if took >= 0:
            facts.append(f"after {duration(took)}")
    if record is not None and state is TaskState.UNKNOWN:
        notes.append(f"The gateway calls it: {record.word or ''}")
    if record is not None and state is TaskState.SUCCEEDED:
        progress = 1.0
        notes.append(
            "Await the task to get the clip."
            if record.has_clip
            else "The gateway shows no URL for the clip yet; a wait keeps polling for it."
        )
    lines = [" · ".join(facts)]
    if progress is not None:  # a bar without a value would move forever
        lines.append(
            f'<progress max="100" value="{progress * 100:.0f}"'
            f' title="Progress of task {_text(task_id)}" style="width:100%"></progress>'
        )
    lines += [_text(note) for note in notes if note]
    lines.append(f"<small>Task <code>{_text(task_id)}</code></small>")
    style = f"border-left:4px solid {color};padding:2px 12px;"
    return _block(style, "".join(f"<div>{line}</div>" for line in lines))


def clip_view(task_id: str, record: TaskRecord, file: str | None) -> str:
    """
    Return a player for *file*, a URL relative to the notebook, or else for the gateway's URL.

    With a file, the view has none of the gateway's URLs: they are all that is needed to fetch it.
    """
    source, poster = (file, None) if file else (record.video_url, record.poster_url)
    note, player = "The gateway's URL cannot be played here.", ""
    if source and (file or is_web_address(source)):
        note = "Plays the file." if file else "The URL is temporary: save the clip with download()."
        still = f' poster="{escape(poster)}"' if poster and is_web_address(poster) else ""
        player = (
            f'<video controls preload="metadata" src="{escape(source)}"{still}'
            f' title="Clip {_text(task_id)}"'
            ' style="width:480px;max-width:100%;max-height:480px"></video>'
        )
    points = "" if record.points is None else f" · {record.points:g} points"
    caption = f"Clip <code>{_text(task_id)}</code>{points}<br>{note}"
    return _block("", f"{player}<div><small>{caption}</small></div>")


def table_view(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table below its title; without rows, the title alone."""
    lines = [f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows]
    table = ""
    if lines:
        names = "".join(f"<th>{_text(name)}</th>" for name in head)
        table = f"<table><tr>{names}</tr>{''.join(lines)}</table>"
    return f"<div><strong>{_text(title)}</strong>{table}</div>"


def jobs_view(name: str, jobs: Sequence["Job"]) -> str:
    """Return the newest jobs of a journal."""
    counts = Counter(job.state.value for job in jobs)
    title = ", ".join(f"{count:,} {state}" for state, count in counts.items()) or "no jobs"
    if len(jobs) > NEWEST:
        title += f" (the newest {NEWEST} are shown)"
    rows = [
        (
            job.custom_id or job.key[:10],
            job.source or "",
            job.state.value,
            "" if job.points is None else f"{job.points:g}",
            job.task_id or "",
            job.error or "",
        )
        for job in jobs[-NEWEST:]
    ]
    head = ("key", "input", "state", "points", "task", "error")
    return table_view(f"Journal {name}: {title}", head, rows)


def duration(seconds: float) -> str:
    """Return a duration in at most two units."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole // 60 % 60} min"


def _block(style: str, content: str) -> str:
    # A long id or reason must not widen the page.
    return f'<div style="{style}max-width:480px;overflow-wrap:break-word">{content}</div>'


def _text(text: str) -> str:
    short = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
    # Half a character, which JSON can carry, would break the message to the notebook's page.
    return escape(short.encode("utf-8", "replace").decode())
