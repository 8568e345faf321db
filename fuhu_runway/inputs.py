"""
Requests from files: `.txt`, `.jsonl` and `.csv`, each bad entry named by file and line.

Files are read one entry at a time, so that their length costs no memory: once to check every
entry before anything is sent, and once more while the batch runs.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from .batch import Item
from .errors import UsageError
from .models import (
    ActOne,
    Generation,
    ImageToVideo,
    MotionVector,
    OfficialImageToVideo,
    TextToVideo,
    VideoToVideo,
    usage_error,
)

KINDS: Final[Mapping[str, type]] = {
    "text_to_video": TextToVideo,
    "image_to_video": ImageToVideo,
    "video_to_video": VideoToVideo,
    "act_one": ActOne,
    "official_image_to_video": OfficialImageToVideo,
}
"""What an entry may call itself with its field `kind`; text or image to video need no name."""

MOTION_PREFIX: Final = "motion."

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,39}")


def read_items(
    path: Path, *, skip_bad: Callable[[UsageError], object] | None = None
) -> Iterator[Item]:
    """
    Give what a file asks for, entry by entry.

    Args:
        path: `.txt`: a prompt a line; `.jsonl`: an object of request fields a line; `.csv`: a
            column for each field. Empty lines are passed over. Beside the fields of the request,
            `kind` names another request than text or image to video, and `custom_id` the job.
        skip_bad: Called with each bad entry's error, which is then passed over; None raises it.

    Raises:
        UsageError: The file cannot be read, or an entry is bad; it names file and line.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise usage_error(
            "path", f"{path.name!r} is of no known kind.", f"Use {', '.join(READERS)}."
        )
    for number, read in _opened(path, reader):
        try:
            item = read()
        except UsageError as bad:
            named = attrs.evolve(bad, happened=f"{path.name}, line {number}: {bad.happened}")
            if skip_bad is None:
                raise named from bad
            skip_bad(named)
        else:
            yield item


def check_items(path: Path, *, skip_bad: Callable[[UsageError], object] | None = None) -> int:
    """
    Give how many good entries a file has, after a look at each of them.

    Raises:
        UsageError: As `read_items`; also two entries with the same `custom_id`.
    """
    count, names = 0, set()
    for item in read_items(path, skip_bad=skip_bad):
        if item.custom_id in names and item.custom_id is not None:
            raise usage_error(
                "custom_id",
                f"{path.name} has two entries with the custom_id {item.custom_id!r}.",
                "Give each its own.",
            )
        names.add(item.custom_id)
        count += 1
    return count


Entry = tuple[int, Callable[[], Item]]


def _opened(path: Path, reader: Callable[[Any], Iterator[Entry]]) -> Iterator[Entry]:
    fault = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from reader(file)
    except OSError as exc:
        raise usage_error(
            "path", f"{path.name!r} cannot be read ({exc.strerror}).", "Check the path."
        ) from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        fault = type(exc).__name__
    if fault is not None:  # outside of the clause, since what was raised there quotes the file
        raise usage_error("path", f"{path.name!r} is no such text ({fault}).", "Save it as UTF-8.")


def _text_entries(lines: Iterator[str]) -> Iterator[Entry]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, lambda line=line: Item(TextToVideo(line.strip()))  # type: ignore[misc]


def _json_entries(lines: Iterator[str]) -> Iterator[Entry]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, lambda line=line: _item(_json_fields(line))  # type: ignore[misc]


def _csv_entries(lines: Iterator[str]) -> Iterator[Entry]:
    rows = csv.DictReader(lines, strict=True)
    for row in rows:
        if any(row.values()):
            yield rows.line_num, lambda row=row: _item(_csv_fields(row))  # type: ignore[misc]


READERS: Final[Mapping[str, Callable[[Any], Iterator[Entry]]]] = {
    ".txt": _text_entries,
    ".jsonl": _json_entries,
    ".csv": _csv_entries,
}


def _json_fields(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None  # judged outside of the clause, since what was raised quotes the line
    if isinstance(fields, str):
        return {"prompt": fields}
    if not isinstance(fields, dict):
        raise usage_error("line", "it is no JSON object.", "Write one JSON object a line.")
    return fields


def _csv_fields(row: Mapping[str | None, Any]) -> dict[str, Any]:
    """Give a row's fields in the types of the request; an empty cell is no field."""
    if None in row:
        raise usage_error("line", "it has more cells than the head.", "Put text in quotes.")
    return {str(name).strip(): _cell(str(name), text) for name, text in row.items() if text}


TEXTS: Final = frozenset({"prompt", "kind", "custom_id", "ratio", "model", "style"})


def _cell(name: str, text: str) -> Any:
    """Read a cell: numbers, flags and objects as JSON writes them, all else as text."""
    if name.strip() in TEXTS:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _item(fields: dict[str, Any]) -> Item:
    custom_id = fields.pop("custom_id", None)
    if custom_id is not None and not (isinstance(custom_id, str | int) and str(custom_id).strip()):
        raise usage_error("custom_id", "custom_id is no text.", "Give a name, or leave it out.")
    kind = _kind(fields)
    motion = _motion(fields)
    if motion is not None:
        fields["motion"] = motion
    known = {field.name for field in attrs.fields(kind)}
    unknown = sorted(set(fields) - known)
    if unknown:
        # Without a head, a prompt stands where the name is looked for.
        name = unknown[0] if _NAME.fullmatch(unknown[0]) else "<no name>"
        raise usage_error(
            name, f"{kind.__name__} has no field {name!r}.", f"It has {', '.join(sorted(known))}."
        )
    return Item(_made(kind, fields), None if custom_id is None else str(custom_id).strip())


def _kind(fields: dict[str, Any]) -> type:
    name = fields.pop("kind", "image_to_video" if "image" in fields else "text_to_video")
    if not isinstance(name, str) or name not in KINDS:
        raise usage_error("kind", "kind names no request.", f"Use {', '.join(KINDS)}.")
    return KINDS[name]


def _motion(fields: dict[str, Any]) -> MotionVector | None:
    """Give the motion from an object, or from columns such as `motion.x`."""
    parts = fields.pop("motion", None)
    if parts is None:
        parts = {
            name.removeprefix(MOTION_PREFIX): fields.pop(name)
            for name in list(fields)
            if name.startswith(MOTION_PREFIX)
        }
    if not parts:
        return None
    axes = {field.name for field in attrs.fields(MotionVector)}
    if not isinstance(parts, dict) or set(parts) - axes:
        raise usage_error("motion", "motion has other parts.", f"Use {', '.join(sorted(axes))}.")
    return MotionVector(**parts)


def _made(kind: type, fields: Mapping[str, Any]) -> Generation:
    try:
        request: Generation = kind(**fields)
    except TypeError:
        needed = [field.name for field in attrs.fields(kind) if field.default is attrs.NOTHING]
        missing = next(name for name in needed if name not in fields)
        raise usage_error(
            missing, f"{missing} is missing.", f"Give {' and '.join(needed)}."
        ) from None
    return request
