"""What events change in the rows of a task: its end, a saved file, a clip that was handed out."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from fuhu_runway.hooks import ClipHandedOut, DownloadFinished, DownloadStarted, Event, TaskSettled
from fuhu_runway.models import TaskState

from .actions import Action, check, leading_to, words_of
from .states import INSTANT_OF, JobState

NOTED: Final = (TaskSettled, DownloadStarted, DownloadFinished, ClipHandedOut)
"""The events that change rows."""


@attrs.frozen
class Note:
    """What an event changes in the rows of its task that are in one of the states *before*."""

    task_id: str
    before: frozenset[JobState]
    changes: Mapping[str, Any]
    to: JobState | None = None


def note_of(event: Event, now: float) -> Note | None:
    """Return what to write for an event; None if nothing."""
    changes: dict[str, Any] = {}
    match event:
        case TaskSettled():
            to = JobState.FINISHED
            if event.state is not TaskState.SUCCEEDED:
                to, changes["error"] = JobState.FAILED, "TaskFailed"
            changes |= {"points": event.points, "refunded": int(event.refunded)}
        case DownloadFinished(is_saved=True):
            to, changes["file_bytes"] = JobState.SAVED, event.total_bytes
        case ClipHandedOut() | DownloadStarted() | DownloadFinished():
            at = None if isinstance(event, DownloadStarted) else now
            return Note(event.task_id, frozenset(JobState), {"handed_out_at": at})
        case _:
            return None
    # A task may be polled again after its end was written, which changes nothing.
    before = frozenset(leading_to(to) - {JobState.SAVED})
    changes["state"] = to.value
    if to in INSTANT_OF:
        changes[INSTANT_OF[to]] = now
    return Note(event.task_id, before, changes, to)


def write(notes: Sequence[Note]) -> Action[None]:
    """Write notes about one task, one after the other, in a single statement."""
    made: dict[JobState, dict[str, Any]] = {}
    for first in JobState:
        state = first
        for note in notes:
            check(**note.changes)
            if state in note.before:
                made[first] = {**made.get(first, {}), **note.changes}
                state = note.to or state
    values: dict[str, Any] = {"task_id": notes[0].task_id}
    setters = []
    for column in dict.fromkeys(name for changes in made.values() for name in changes):
        cases = ""
        for number, (state, changes) in enumerate(made.items()):
            if column in changes:
                mark = f"{column}_{'abcdefg'[number]}"
                values[mark] = changes[column]
                cases += f" WHEN '{state.value}' THEN :{mark}"
        setters.append(f"{column} = CASE state{cases} ELSE {column} END")
    where = f"task_id = :task_id AND state IN ({words_of(made)})"
    yield f"UPDATE job SET {', '.join(setters)} WHERE {where}", values  # noqa: S608
