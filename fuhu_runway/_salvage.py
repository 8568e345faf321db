"""
The task ids that stand in an answer, whatever the answer is.

Pure functions. `salvage` is asked before any paid answer is given up, so that no id that arrived
is dropped.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from . import _gateway as facts
from ._json import parsed, spans, text_of

MAX_DEPTH: Final = 5
"""How many levels deep ids are searched for; what is deeper belongs to something else."""

_ID: Final = re.compile(r"[\w.:@+/=-]{1,200}", re.ASCII)
_BARE_ID: Final = re.compile(r"(?=[^\d]*\d)[\w.:-]{3,128}", re.ASCII)
"""An id that stands alone as the data of an answer: it has a digit, or it would be a word."""
_NO_IDS: Final = frozenset({"0", "null", "none", "undefined", "false", "true"})
# For what is no JSON any more: cut short, in single quotes, a form, XML. The id has to be whole.
_LOOSE: Final = re.compile(
    r"(?:task_?id\\*[\"']?\s*[:=>]|[\"']id\\*[\"']\s*:)\s*\\*[\"']?([\w.:@+/-]{1,200})"
    r"(?=[\\\"'\s,;&<}\])])",
    re.ASCII | re.IGNORECASE,
)


def salvage(body: bytes) -> tuple[str, ...]:
    """Return the task ids that stand at the usual places of whatever arrived, the surest first."""
    text = text_of(body)
    values = list(spans(text))
    found = [pair for _, _, value in values for pair in _ids(value)]
    if not values or text[: values[0][0]].strip():
        found += [(0, match[1]) for match in _LOOSE.finditer(text)]
    ids = (task_id for _, task_id in sorted(found, key=lambda pair: pair[0]))
    return tuple(dict.fromkeys(filter(id_of, ids)))


def id_of(value: Any) -> str | None:
    """Return *value* as a task id; None if it cannot be one."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value).strip()
    return text if _ID.fullmatch(text) and text.lower() not in _NO_IDS else None


def bare_id(value: Any) -> str | None:
    """Return *value* if it is a text that is nothing but an id."""
    is_bare = isinstance(value, str) and _BARE_ID.fullmatch(value.strip())
    return id_of(value) if is_bare else None


def is_task_key(key: str) -> bool:
    """Return whether *key* names a task id in any spelling, such as taskId and task-id."""
    return key.replace("_", "").replace("-", "").lower() == "taskid"


def _ids(value: Any, *, is_usual: bool = True, depth: int = MAX_DEPTH) -> Iterator[tuple[int, str]]:
    """Yield (0, id) for each task_id, and (1, id) for what is called id at a usual place."""
    if isinstance(value, str):
        value = parsed(value)
    if isinstance(value, list) and depth:
        for item in value:
            if is_usual and (task_id := bare_id(item)) is not None:
                yield 1, task_id
            yield from _ids(item, is_usual=is_usual, depth=depth - 1)
    if isinstance(value, Mapping) and depth:
        for key, item in value.items():
            rank = 0 if is_task_key(key) else 1
            is_named = rank == 0 or (is_usual and key.lower() == "id")
            is_part = is_usual and key in facts.PARTS
            task_id = id_of(item) if is_named else bare_id(item) if is_part else None
            if task_id is not None:
                yield rank, task_id
            yield from _ids(item, is_usual=is_part, depth=depth - 1)
