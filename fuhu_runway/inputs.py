"""
Requests from files: `.txt`, `.jsonl`, `.csv` and `.tsv`, each bad entry named by file and line.

Files are read one entry at a time, so that their length costs no memory: once to check every
entry before anything is sent, and once more while the batch runs. What can be read only once,
such as standard input, is copied to a file first.
"""

import codecs
import contextlib
import csv
import difflib
import itertools
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs

from .batch import Item
from .errors import UsageError
from .models import (
    ActOne,
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
"""What the field `kind` of an entry may be; without it, the entry is text or image to video."""

MOTION_PREFIX: Final = "motion."

_AXES: Final = frozenset(field.name for field in attrs.fields(MotionVector))
_FIELDS: Final = tuple(field for kind in KINDS.values() for field in attrs.fields(kind))
_NAMES: Final = frozenset(
    {
        *("kind", "custom_id"),
        *(MOTION_PREFIX + axis for axis in _AXES),
        *(field.name for field in _FIELDS),
    }
)
"""Every name that a column may have."""
_WHOLE: Final = frozenset(field.name for field in _FIELDS if field.type in {int, int | None})
"""Fields that are whole numbers; spreadsheets and data frames write them as 5.0."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,39}")


def read_items(
    path: str | os.PathLike[str], *, skip_bad: Callable[[UsageError], object] | None = None
) -> Iterator[Item]:
    """
    Yield the items of a file, entry by entry.

    Args:
        path: `.txt`: a prompt a line; `.jsonl`: an object of request fields a line; `.csv` and
            `.tsv`: a column for each field. Empty lines are passed over. Beside the fields of the
            request, `kind` names another request than text or image to video, and `custom_id`
            the job.
        skip_bad: Called with each bad entry's error, which is then passed over; None raises it.

    Raises:
        UsageError: The file cannot be read, or an entry is bad; it names file and line.
    """
    path = _path(path)
    if _is_stream(path):
        raise usage_error(
            "path",
            f"{path.name!r} is not a regular file, and may be readable only once.",
            "Copy it to a file first: fuhu_runway.inputs.spooled does that.",
        )
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise usage_error(
            "path", f"{path.name!r} has no known ending.", f"Use a file in {', '.join(READERS)}."
        )
    for number, read in reader(path):
        try:
            item = read()
        except UsageError as bad:
            named = attrs.evolve(bad, happened=f"{path.name}, line {number}: {bad.happened}")
            if skip_bad is None:
                raise named from bad
            skip_bad(named)
        else:
            yield item


def check_items(
    path: str | os.PathLike[str], *, skip_bad: Callable[[UsageError], object] | None = None
) -> int:
    """
    Return how many good entries a file has, after checking each of them.

    Raises:
        UsageError: As `read_items`; also two entries with the same `custom_id`.
    """
    count, names = 0, set()
    for item in read_items(path, skip_bad=skip_bad):
        if item.custom_id in names and item.custom_id is not None:
            raise usage_error(
                "custom_id",
                f"{_path(path).name} has two entries with the custom_id {item.custom_id!r}.",
                "Give each its own.",
            )
        names.add(item.custom_id)
        count += 1
    return count


@contextlib.contextmanager
def spooled(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Yield a file that can be read twice: *path* itself, or a copy of what can be read only once.

    Standard input (`-`), pipes and devices are copied to a temporary file that only the present
    user can read and that is removed at the end. Without an ending such as
    `.jsonl`, its kind is that of its first line: a JSON object, names of fields, or a prompt.
    Copying blocks until the other side has written everything: do it before `asyncio.run`, or in
    a thread.

    Raises:
        UsageError: It cannot be read.
    """
    path = _path(path)
    if not _is_stream(path):
        yield path
        return
    is_stdin = str(path) == "-"
    if is_stdin and sys.stdin is None:
        raise usage_error("path", "There is no standard input.", "Give the name of a file.")
    try:
        # Windows removes no file that is still open.
        place = tempfile.TemporaryDirectory(prefix="fuhu-runway-", ignore_cleanup_errors=True)
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    with place as folder:
        copy = Path(folder, "stdin" if is_stdin else path.stem)
        try:
            opened = contextlib.nullcontext(sys.stdin.buffer) if is_stdin else path.open("rb")
            with opened as source, copy.open("xb") as target:
                shutil.copyfileobj(source, target)
        except (OSError, ValueError) as exc:  # ValueError: it was closed
            raise _unreadable(path, exc) from exc
        ending = path.suffix.lower() if path.suffix.lower() in READERS else _guessed_kind(copy)
        yield copy.rename(copy.with_name(copy.name + ending))


def _path(path: object) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise usage_error("path", f"path is of type {type(path).__name__}.", "Give a Path or str.")
    return Path(path)


def _is_stream(path: Path) -> bool:
    """Return whether reading the path once may use it up."""
    # These may lead to a regular file, but it has no ending there, and may have been read in part.
    if str(path) in {"-", "/dev/stdin"} or str(path.parent) in {"/dev/fd", "/proc/self/fd"}:
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False  # opening it says what is wrong
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _guessed_kind(path: Path) -> str:
    """Return the ending that fits the first line with anything in it."""
    lines = _lines(path)
    first = next((line.strip() for line in lines if line.strip()), "")
    lines.close()
    if first.startswith("{"):
        return ".jsonl"
    names = _folded(re.split(r"[,;\t]", first))
    return ".csv" if _SEPARATOR.fullmatch(first) or _NAMES.issuperset(names) else ".txt"


def _unreadable(path: Path, exc: Exception) -> UsageError:
    reason = getattr(exc, "strerror", None) or type(exc).__name__
    return usage_error("path", f"{path.name!r} cannot be read ({reason}).", "Check the path.")


# Lines

_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNDECODED: Final = re.compile("[\ud800-\udfff]")


def _lines(path: Path) -> Generator[str, None, None]:
    """
    Yield the lines of a text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises:
        UsageError: The file cannot be read, or is not text in one of these.
    """
    encoding, number, fault = "utf-8", 0, None
    try:
        with path.open("rb") as start:
            head = start.read(4)
        encoding = next((name for mark, name in _MARKS if head.startswith(mark)), encoding)
        with path.open(encoding=encoding, errors="surrogateescape", newline="") as file:
            for number, line in enumerate(file, 1):  # noqa: B007  (used below)
                if "\0" in line:
                    fault = "it has a NUL character, as UTF-16 text without a byte order mark has."
                elif _UNDECODED.search(line):
                    fault = f"it is not {encoding.upper()} text."
                if fault:
                    break
                yield line.removeprefix("\ufeff")
    except UnicodeDecodeError:  # UTF-16 that breaks off within a character
        fault = f"after it, there is something that is not {encoding.upper()} text."
    except (OSError, ValueError) as exc:  # ValueError: a name that no file can have
        raise _unreadable(path, exc) from exc
    # Outside of the clauses, since a decoder's error holds the text.
    if fault:
        raise usage_error("path", f"{path.name}, line {number}: {fault}", "Save it as UTF-8.")


# Entries

Entry = tuple[int, Callable[[], Item]]


def _line_entries(path: Path, read: Callable[[str], Item]) -> Iterator[Entry]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield number, partial(read, line.strip())


def _text_item(line: str) -> Item:
    return Item(TextToVideo(line))


def _json_item(line: str) -> Item:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None  # judged outside of the clause, since what was raised quotes the line
    if isinstance(fields, str):
        fields = {"prompt": fields}
    if not isinstance(fields, dict):
        raise usage_error("line", "it is not a JSON object.", "Write one JSON object a line.")
    return _item(fields)


def _csv_entries(path: Path) -> Iterator[Entry]:
    rows = _csv_rows(path)
    at, head = next(rows, (0, []))
    names = _folded(head)
    twice = next((name for name in names if name in _NAMES and names.count(name) > 1), None)
    if twice is not None:
        raise usage_error(
            twice, f"{path.name}, line {at}: the column {twice} is there twice.", "Keep one."
        )
    if head and _NAMES.isdisjoint(names):
        raise usage_error(
            "path",
            f"{path.name}, line {at}: it has no field of a request.",
            "Begin with a line that names the columns, such as prompt,seconds.",
        )
    for number, row in rows:
        yield number, lambda row=row: _item(_csv_fields(names, row))  # type: ignore[misc]


_SEPARATOR: Final = re.compile(r'"?sep=([^"])"?', re.IGNORECASE)
"""What spreadsheets write into a line of its own before the table."""


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty, the head first, each with the number of its last line."""
    lines = _lines(path)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else None
    before, line = 0, ""
    for before, line in enumerate(lines):  # noqa: B007  (used below, as of the last turn)
        separator = _SEPARATOR.fullmatch(line.rstrip("\r\n"))
        if separator:
            delimiter = separator[1]
        elif line.strip():
            break
    delimiter = delimiter or max(",;\t", key=line.count)
    rows = csv.reader(itertools.chain([line], lines), delimiter=delimiter, strict=True)
    begin = before + 1
    try:
        for row in rows:
            end = before + rows.line_num
            if any(cell.strip() for cell in row):
                yield end, row
            begin = end + 1
    except csv.Error as exc:
        raise usage_error(
            "path",
            f"{path.name}, line {begin}: the row that begins here is broken ({exc}).",
            "Close its quotes, or use .jsonl: a cell has at most 131,072 characters.",
        ) from exc


def _folded(head: list[str]) -> list[str]:
    """Return the names of columns as the fields are written: `Custom ID` is `custom_id`."""
    return ["_".join(name.lower().replace("-", " ").split()) for name in head]


def _csv_fields(names: list[str], row: list[str]) -> dict[str, Any]:
    """Return a row's fields in the types of the request; an empty cell is left out."""
    if any(row[len(names) :]):
        raise usage_error("line", "it has more cells than the head.", "Put text in quotes.")
    return {name: _cell(name, text) for name, text in zip(names, row, strict=False) if text.strip()}


TEXTS: Final = frozenset({"prompt", "kind", "custom_id", "ratio", "model", "style"})


def _cell(name: str, text: str) -> Any:
    """Read a cell: numbers, flags and objects as JSON writes them, all else as text."""
    if name == "prompt":
        return text
    text = text.strip()
    if name in TEXTS:
        return text
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


READERS: Final[Mapping[str, Callable[[Path], Iterator[Entry]]]] = {
    ".txt": partial(_line_entries, read=_text_item),
    ".jsonl": partial(_line_entries, read=_json_item),
    ".csv": _csv_entries,
    ".tsv": _csv_entries,
}


def _item(fields: dict[str, Any]) -> Item:
    custom_id = fields.pop("custom_id", None)
    if isinstance(custom_id, bool) or not isinstance(custom_id, str | int | None):
        raise usage_error(
            "custom_id", "custom_id must be text or a whole number.", "Give one, or leave it out."
        )
    kind = _kind(fields)
    motion = _motion(fields)
    if motion is not None:
        fields["motion"] = motion
    known = [field.name for field in attrs.fields(kind)]
    for name in fields:
        if name not in known:
            # Without a head, the name is a prompt, which errors do not show.
            shown = name if _NAME.fullmatch(name) else "<no name>"
            close = difflib.get_close_matches(shown.lower(), sorted(_NAMES - {shown}), 1)
            question = f"Did you mean {close[0]}? " if close else ""
            raise usage_error(
                shown,
                f"{kind.__name__} has no field {shown!r}.",
                f"{question}It has {', '.join(sorted(known))}.",
            )
    for name, value in fields.items():
        if name in _WHOLE and isinstance(value, float) and value.is_integer():
            fields[name] = int(value)
    needed = [field.name for field in attrs.fields(kind) if field.default is attrs.NOTHING]
    for name in needed:
        if name not in fields:
            raise usage_error(name, f"{name} is missing.", f"Give {' and '.join(needed)}.")
    return Item(kind(**fields), None if custom_id is None else str(custom_id).strip())


def _kind(fields: dict[str, Any]) -> type:
    name = fields.pop("kind", "image_to_video" if "image" in fields else "text_to_video")
    if not isinstance(name, str) or name not in KINDS:
        raise usage_error("kind", "kind is not a request.", f"Use {', '.join(KINDS)}.")
    return KINDS[name]


def _motion(fields: dict[str, Any]) -> MotionVector | None:
    """Return the motion of an object, or of columns such as `motion.x`."""
    parts = fields.pop("motion", None)
    if parts is None:
        parts = {
            name.removeprefix(MOTION_PREFIX): fields.pop(name)
            for name in list(fields)
            if name.startswith(MOTION_PREFIX)
        }
    if not parts:
        return None
    if not isinstance(parts, dict) or set(parts) - _AXES:
        raise usage_error("motion", "motion has unknown parts.", f"Use {', '.join(sorted(_AXES))}.")
    return MotionVector(**parts)
