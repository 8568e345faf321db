"""
How a task and a clip look in a notebook: HTML without scripts or assets, everything escaped.

Rule 1: what a gateway says is text; only http(s) addresses of it become addresses.
Rule 2: only tags, attributes and styles that JupyterLab leaves in outputs it does not trust, which
rules out ARIA: a `title` gives the names that a screen reader tells.
Rule 3: text has the page's own colour, so that it is readable on light and dark pages, and no
colour tells anything alone.
"""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Final

from ._urls import is_web_address
from .models import TaskRecord, TaskState

MOST_WORDS: Final = 300
"""What is shown of a gateway's reason, in characters: some quote a whole page."""

STATES: Final[Mapping[TaskState, tuple[str, str]]] = {
    TaskState.QUEUED: ("Queued", "#868e98"),
    TaskState.RUNNING: ("Running", "#2f81f7"),
    TaskState.SUCCEEDED: ("Succeeded", "#2da44e"),
    TaskState.FAILED: ("Failed", "#e5534b"),
    TaskState.CANCELED: ("Cancelled", "#e5534b"),
    TaskState.UNKNOWN: ("In an unknown state", "#b8831c"),
}
"""What each state is called, and its colour, which stands out on white and on black (3:1)."""
UNASKED: Final = ("Not asked about yet", "#868e98")
PLAYER: Final = "width:480px;max-width:100%;max-height:480px"
"""A portrait clip stands in the middle of it."""


def task_view(
    task_id: str,
    record: TaskRecord | None,
    *,
    age: float | None = None,
    reason: str | None = None,
    money: str | None = None,
) -> str:
    """
    Return a task as it stood when it was last asked about.

    Args:
        task_id: Its id.
        record: What the gateway last said; None before it said anything.
        age: How long ago it was accepted, in seconds; None where that is not known.
        reason: Why it failed, without secrets.
        money: What that means for the money.
    """
    name, color = UNASKED if record is None else STATES[record.state]
    facts = [f"<strong>{name}</strong>", *_facts(record, age)]
    notes = [_text(note) for note in (reason, money, _note(record)) if note]
    name_line = f"<small>Task {_code(task_id)}</small>"
    lines = [" · ".join(facts), *_bar(task_id, record), *notes, name_line]
    style = f"border-left:4px solid {color};padding:2px 12px;max-width:480px"
    return _block(style, "".join(f"<div>{line}</div>" for line in lines))


def clip_view(task_id: str, record: TaskRecord, file: str | None) -> str:
    """
    Return a clip that plays: from *file*, an address beside the notebook, or from the gateway's.

    With a file, the gateway's addresses stay out of it: they are as good as keys.
    """
    source, poster = (file, None) if file else (record.video_url, record.poster_url)
    if not file and not is_web_address(source):
        return _block("", _caption(task_id, record, "Its address is none that a page can play."))
    still = f' poster="{escape(poster)}"' if poster and is_web_address(poster) else ""
    note = "Plays from the file." if file else "The address is temporary: save it with download()."
    return _block(
        "",
        f'<video controls preload="metadata" src="{escape(source or "")}"{still}'
        f' title="Clip {_text(task_id)}" style="{PLAYER}"></video>'
        f"{_caption(task_id, record, note)}",
    )


def duration(seconds: float) -> str:
    """Return a duration as people say it."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole // 60 % 60} min"


def _facts(record: TaskRecord | None, age: float | None) -> Iterator[str]:
    """Return what is known beside the state: how far it is, and for how long it has been there."""
    if record is None or not record.state.is_final:
        if record is not None and record.progress is not None:
            yield f"{record.progress:.0%}"
        if age is not None:
            yield f"for {duration(age)}"
    elif record.created_at is not None and record.updated_at is not None:
        # The gateway's clock on both ends: ours may differ from it.
        took = (record.updated_at - record.created_at).total_seconds()
        if took >= 0:
            yield f"after {duration(took)}"


def _bar(task_id: str, record: TaskRecord | None) -> Iterator[str]:
    """Return how far it is as a bar, where that is known: one without a value would never rest."""
    if record is None or record.state in {TaskState.FAILED, TaskState.CANCELED}:
        return
    progress = 1.0 if record.state is TaskState.SUCCEEDED else record.progress
    if progress is not None:
        yield (
            f'<progress max="100" value="{progress * 100:.0f}"'
            f' title="Progress of task {_text(task_id)}" style="width:100%"></progress>'
        )


def _note(record: TaskRecord | None) -> str | None:
    if record is not None and record.state is TaskState.UNKNOWN:
        return f"The gateway calls it: {record.word or ''}"
    if record is None or record.state is not TaskState.SUCCEEDED:
        return None
    if record.has_clip:
        return "Awaiting it gives the clip."
    return "The gateway shows no address for the clip yet; a wait goes on looking for it."


def _caption(task_id: str, record: TaskRecord, note: str) -> str:
    points = "" if record.points is None else f" · {record.points:g} points"
    return f"<div><small>Clip {_code(task_id)}{points}<br>{_text(note)}</small></div>"


def _block(style: str, content: str) -> str:
    # A long id or reason must not widen the page.
    return f'<div style="{style or "max-width:480px"};overflow-wrap:break-word">{content}</div>'


def _code(text: str) -> str:
    return f"<code>{_text(text)}</code>"


def _text(text: str) -> str:
    short = text if len(text) <= MOST_WORDS else f"{text[:MOST_WORDS]}…"
    # Half a character, which JSON can carry, would break the message to the notebook's page.
    return escape(short.encode("utf-8", "replace").decode())
