"""
Find the task ids in any response. Pure functions.

No paid response is rejected before `salvage` has searched it, so no id that arrived is lost.
"""

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

from fuhu_runway._json import parsed, spans, text_of

from . import tables

MAX_DEPTH: Final = 5
"""How many levels deep ids are searched for; deeper ones belong to something else."""

_ID: Final = re.compile(r"(?=[^A-Za-z0-9]*[A-Za-z0-9])[^\s<>{}\"]{1,500}")
_BARE_ID: Final = re.compile(r"(?=[^\d]*\d)[\w.:-]{3,128}", re.ASCII)
"""An id alone as the data of a response. It has a digit, because a word is no id."""
_WHOLE_BODY: Final = re.compile(r"(?=[^\d]*\d)[\w-]{16,128}", re.ASCII)
"""An id that is the whole response. It is long, because a status or a version is short."""
MIN_BARE_NUMBER: Final = 10**8
"""The smallest number that, as the data of a response, is an id and not seconds or points."""
NO_IDS: Final = frozenset({"0", "null", "none", "nil", "undefined", "false", "true"})
_OTHER_IDS: Final = frozenset({"generationid", "jobid", "taskuuid", "predictionid", "videoid"})
"""Other services' names for a task's id, in lower case and without separators."""

# For texts, and for what is not JSON: cut short, in single quotes, a form, XML, a dump. The id has
# to be whole and to have a digit, because a word may be prose.
_WORD: Final = r"(?=[A-Za-z_.:@+/-]*\d)([A-Za-z0-9][\w.:@+/-]{0,199})"
_VALUE: Final = rf"(?:[\"'`“‘]{_WORD}[\"'`”’]|{_WORD}(?=[\s,;&<>}}\])]))"
_NAMED: Final = re.compile(
    # Only punctuation, and the keywords of XML and dumps, may stand between name and value.
    r"task[_\s-]?id(?:[^\w,;&{}-]{1,20}(?:type|string(?:\(\d+\))?|key|td|CDATA|new))*"
    rf"[^\w,;&{{}}-]{{0,20}}?[^\w,;&{{}}\"'`“‘-]{_VALUE}",
    re.ASCII | re.IGNORECASE,
)
_CALLED_ID: Final = re.compile(
    rf"(?:[\"'`“‘]id[\"'`”’]\s*[:=：]>?|(?:\A|&)id=|<id>|[{{,]\s*id\s*:)\s*{_VALUE}",
    re.ASCII | re.IGNORECASE,
)


def salvage(body: bytes, *, is_whole: bool = False) -> tuple[str, ...]:
    """
    Return the task ids at the usual places of *body*, the most certain first.

    *is_whole* means that the whole body arrived, so an id at its end is complete.
    """
    text = text_of(body)
    values = list(spans(text))
    found = [pair for _, _, value in values for pair in _ids(value)]
    # A value that cannot be read may precede one that can.
    is_broken = not values or bool(text[: values[0][0]].strip())
    if is_broken or not found:
        plain = html.unescape(unquote(text)).replace("\\", "") + ("\n" if is_whole else "")
        found += [(0, match[1] or match[2]) for match in _NAMED.finditer(plain)]
        if is_broken:
            found += [(1, match[1] or match[2]) for match in _CALLED_ID.finditer(plain)]
    if is_whole and _WHOLE_BODY.fullmatch(text.strip()):
        found.append((2, text.strip()))
    ids = (task_id for _, task_id in sorted(found, key=_rank))
    return tuple(dict.fromkeys(filter(id_of, ids)))


def ids_of_head(headers: Mapping[str, str]) -> tuple[str, ...]:
    """
    Return the task ids in the head of a response.

    After a 201, 202 or 303, Location is the address of what was made (RFC 9110 10.2.2).
    """
    found = [
        value for name, value in headers.items() if is_task_key(name.lower().removeprefix("x-"))
    ]
    for name in ("location", "content-location"):
        path, _, query = headers.get(name, "").partition("#")[0].partition("?")
        found += [match[1] or match[2] for match in _NAMED.finditer(f"{unquote(query)}\n")]
        last = path.rstrip("/").rpartition("/")[2]
        found += [last] if _WHOLE_BODY.fullmatch(last) else []
    return tuple(dict.fromkeys(filter(id_of, found)))


def ids_in(value: Any) -> tuple[str, ...]:
    """Return the task ids at the usual places of a JSON value, the most certain first."""
    return tuple(dict.fromkeys(task_id for _, task_id in sorted(_ids(value), key=_rank)))


def _rank(found: tuple[int, str]) -> int:
    return found[0]


def id_of(value: Any) -> str | None:
    """Return *value* as a task id; None if it cannot be one."""
    if isinstance(value, float) and value.is_integer() and value < 2**53:
        value = int(value)  # JSON has only one kind of number
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    if isinstance(value, int) and value < 0:
        return None
    text = str(value).strip()
    return text if _ID.fullmatch(text) and text.lower() not in NO_IDS else None


def bare_id(value: Any) -> str | None:
    """Return *value* as a task id if it can only be one."""
    if isinstance(value, int) and value >= MIN_BARE_NUMBER:
        return str(value)
    is_bare = isinstance(value, str) and _BARE_ID.fullmatch(value.strip())
    return id_of(value) if is_bare else None


def is_task_key(key: str) -> bool:
    """Return whether *key* is task_id in any spelling, such as taskId and task-id."""
    return _plain(key) == "taskid"


def _plain(key: str) -> str:
    return re.sub(r"[_\s-]", "", key).lower()


def _ids(value: Any, *, is_usual: bool = True, depth: int = MAX_DEPTH) -> Iterator[tuple[int, str]]:
    """Yield each task id with its rank: 0 for a task_id, more for an id at a usual place."""
    if isinstance(value, str):
        value = parsed(value)
    if isinstance(value, list) and depth:
        for item in value:
            if is_usual and (task_id := bare_id(item)) is not None:
                yield 1, task_id
            yield from _ids(item, is_usual=is_usual, depth=depth - 1)
    if isinstance(value, Mapping) and depth:
        for key, item in value.items():
            name = _plain(key)
            is_named = name.removesuffix("s") == "taskid"
            is_part = is_named or (is_usual and name in tables.PARTS)
            if is_named or (is_usual and (name == "id" or name in _OTHER_IDS)):
                task_id = id_of(item)
            else:
                task_id = bare_id(item) if is_part else None
            if task_id is not None:
                # An envelope's own id is that of the response, not of the task.
                yield 0 if is_named else 2 if "code" in value else 1, task_id
            yield from _ids(item, is_usual=is_part, depth=depth - 1)
