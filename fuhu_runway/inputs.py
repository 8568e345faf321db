"""
Read requests from `.txt`, `.jsonl`, `.csv` and `.tsv` files; errors name file and line.

Files are read one entry at a time, so that their length costs no memory: once to check every
entry before anything is sent, and once more while the batch runs. What can be read only once,
such as standard input, is copied to a file first.
"""

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
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from ._fields import UNSTORABLE
from ._guesses import meant
from ._media import address_or_path
from ._redact import PLAIN_NAME
from ._wire.tables import SUBMITS
from .errors import UsageError
from .items import Item
from .models import Generation, MotionVector, usage_error

KINDS: Final[Mapping[str, type]] = {row.name: kind for kind, row in SUBMITS.items()}
"""What the field `kind` of an entry may be; without it, the entry is text or image to video."""

_AXES: Final = frozenset(field.name for field in attrs.fields(MotionVector))
_FIELDS: Final = {field.name: field for kind in KINDS.values() for field in attrs.fields(kind)}
_NAMES: Final = {"kind", "custom_id", *(f"motion.{axis}" for axis in _AXES), *_FIELDS}
_TEXTS: Final = {"prompt", "kind", "custom_id", "ratio", "model", "style"}
"""Columns that are text even if a cell looks like a number."""

Entry = tuple[int, Any]
"""The number of a line, and its prompt or fields; any other value is a bad entry."""


def read_items(
    path: str | os.PathLike[str],
    *,
    skip_bad: Callable[[UsageError], object] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Iterator[Item]:
    """
    Yield the items of a file, entry by entry.

    Args:
        path: `.txt`: a prompt per line; `.jsonl`: an object of request fields per line; `.csv`
            and `.tsv`: a column for each field. Empty lines are skipped. Besides the fields of
            the request, `kind` names a request other than text or image to video, and
            `custom_id` the job. A picture or clip with `://`, or with `data:` in front, is an
            address; anything else is the path of a local file, which must exist.
        skip_bad: Called with the error of each bad entry, which is then skipped; None raises it.
        folder: Where relative paths of local files begin; by default the folder of *path*.

    Raises:
        UsageError: The file cannot be read, or an entry is bad; it names file and line.
    """
    path = Path(path)
    start = path.parent if folder is None else Path(folder)
    if _is_stream(path):
        raise usage_error(
            "path",
            f"{path.name!r} is not a regular file, and may be readable only once.",
            "Copy it to a file first: fuhu_runway.inputs.spooled does that.",
        )
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise usage_error(
            "path", f"{path.name!r} has no known ending.", f"Use a file in {', '.join(READERS)}."
        )
    name = path.name.encode("utf-8", "replace").decode()
    for number, entry in read(path):
        try:
            item = _item(entry, start)
        except UsageError as bad:
            named = attrs.evolve(bad, happened=f"{path.name}, line {number}: {bad.happened}")
            if skip_bad is None:
                raise named from bad
            skip_bad(named)
        else:
            yield attrs.evolve(item, source=f"{name}:{number}")


def check_items(
    path: str | os.PathLike[str],
    *,
    skip_bad: Callable[[UsageError], object] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> int:
    """
    Return how many good entries a file has, after checking each of them.

    Arguments as in `read_items`.

    Raises:
        UsageError: As `read_items`; also two entries with the same `custom_id`.
    """
    count, names = 0, set()
    for item in read_items(path, skip_bad=skip_bad, folder=folder):
        if item.custom_id in names:
            raise usage_error(
                "custom_id",
                f"{Path(path).name} has two entries with the custom_id {item.custom_id!r}.",
                "Use a different one for each entry.",
            )
        if item.custom_id is not None:
            names.add(item.custom_id)
        count += 1
    return count


def request_of(kind: str, cells: Mapping[str, str]) -> Generation:
    """
    Return a request from its kind and its fields as text, read as the cells of a table are.

    Relative paths of local files begin in the working directory.

    Raises:
        UsageError: The kind or a field is unknown, a field is missing, or a value does not fit.
    """
    return _request({"kind": kind, **_cell_fields(cells.items())}, Path())


@contextlib.contextmanager
def spooled(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Yield a file that can be read twice: *path* itself, or a copy of what can be read only once.

    Standard input (`-`), pipes and devices are copied to a temporary file that only the present
    user can read and that is removed at the end. If the name has no ending such as `.jsonl`, the
    first line decides: a JSON object, names of fields, or a prompt.
    Copying blocks until the other side has written everything: do it before `asyncio.run`, or in
    a thread.

    Raises:
        UsageError: It cannot be read.
    """
    path = Path(path)
    if not _is_stream(path):
        yield path
        return
    is_stdin = str(path) == "-"
    with contextlib.ExitStack() as stack:
        try:
            # Windows removes no file that is still open.
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="fuhu-runway-", ignore_cleanup_errors=True)
            )
            copy = Path(folder, "stdin" if is_stdin else path.stem)
            opened = contextlib.nullcontext(sys.stdin.buffer) if is_stdin else path.open("rb")
            with opened as source, copy.open("xb") as target:
                shutil.copyfileobj(source, target)
        except (AttributeError, OSError, ValueError) as exc:
            # AttributeError and ValueError: standard input is missing or was closed.
            if is_stdin and not isinstance(exc, OSError):
                advice = "Pipe the requests into it, or pass the name of a file."
                raise usage_error("path", "Standard input is closed.", advice) from exc
            raise _unreadable(path, exc) from exc
        ending = path.suffix.lower() if path.suffix.lower() in READERS else _guessed_kind(copy)
        yield copy.rename(copy.with_name(copy.name + ending))


def _is_stream(path: Path) -> bool:
    """Return whether reading the path once may use it up."""
    # These may lead to a regular file, but without its ending, and perhaps read in part.
    if str(path) in {"-", "/dev/stdin"} or str(path.parent) in {"/dev/fd", "/proc/self/fd"}:
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False  # opening it says what is wrong
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _guessed_kind(path: Path) -> str:
    """Return the ending that fits the first line that is not empty."""
    with contextlib.closing(_lines(path)) as lines:
        first = next((line.strip() for line in lines if line.strip()), "")
    if first.startswith("{"):
        return ".jsonl"
    names = _column_names(re.split(r"[,;\t]", first))
    return ".csv" if _SEPARATOR.fullmatch(first) or _NAMES.issuperset(names) else ".txt"


def _unreadable(path: Path, exc: Exception) -> UsageError:
    reason = getattr(exc, "strerror", None) or type(exc).__name__
    return usage_error("path", f"{path.name!r} cannot be read ({reason}).", "Check the path.")


def _lines(path: Path) -> Generator[str, None, None]:
    """Yield the lines of a text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark."""
    encoding, number = "utf-8", 0
    try:
        with path.open("rb") as start:
            detected = json.detect_encoding(start.read(4))
        if detected in {"utf-16", "utf-32"}:  # with a byte order mark; else it is a guess
            encoding = detected
        # An error would come with the whole block that is read, before its good lines are used.
        with path.open(encoding=encoding, errors="surrogateescape", newline="") as file:
            for number, line in enumerate(file, 1):  # noqa: B007  (used below)
                if UNSTORABLE.search(line):
                    break
                yield line.removeprefix("\ufeff")
            else:
                return
    except UnicodeDecodeError:  # UTF-16 that breaks off within a character
        number += 1
    except (OSError, ValueError) as exc:  # ValueError: a name that no file can have
        raise _unreadable(path, exc) from exc
    # Outside the clauses, since a decoder's error holds the text.
    raise usage_error(
        "path",
        f"{path.name}, line {number}: it is not {encoding.upper()} text, or has a NUL character.",
        "Save it as UTF-8.",
    )


def _prompts(path: Path) -> Iterator[Entry]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield number, line.strip()


def _json_lines(path: Path) -> Iterator[Entry]:
    for number, line in _prompts(path):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        yield number, entry


_SEPARATOR: Final = re.compile(r'"?sep=([^"])"?', re.IGNORECASE)
"""Spreadsheets write this line before the table."""


def _rows(path: Path) -> Iterator[Entry]:
    """Yield the fields of each row of a table, with the number of the row's last line."""
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
    names: list[str] = []
    begin = before + 1
    try:
        for row in rows:
            end = before + rows.line_num
            if any(cell.strip() for cell in row):
                if names:
                    yield end, _row_fields(names, row)
                else:
                    names = _column_names(row)
                    _check_columns(names, f"{path.name}, line {end}")
            begin = end + 1
    except csv.Error as exc:
        raise usage_error(
            "path",
            f"{path.name}, line {begin}: the row that begins here is broken ({exc}).",
            "Close its quotes, or use .jsonl: a cell has at most 131,072 characters.",
        ) from exc


def _column_names(head: list[str]) -> list[str]:
    """Return the names of columns as fields are spelled: `Custom ID` is `custom_id`."""
    return ["_".join(name.lower().replace("-", " ").split()) for name in head]


def _check_columns(names: list[str], place: str) -> None:
    for name in names:
        if name in _NAMES and names.count(name) > 1:
            raise usage_error(name, f"{place}: there are two columns {name}.", "Keep one.")
    if _NAMES.isdisjoint(names):
        advice = "Begin with a line that names the columns, such as prompt,seconds."
        for sign, called in {",": "comma", ";": "semicolon", "|": "vertical bar"}.items():
            if any(name.partition(sign)[0] in _NAMES for name in names):
                advice = (
                    f'Is the separator a {called}? Then begin the file with a line "sep={sign}".'
                )
        raise usage_error("path", f"{place}: no column is a field of a request.", advice)


def _row_fields(names: list[str], row: list[str]) -> dict[str, Any] | UsageError:
    if any(row[len(names) :]):
        return usage_error("line", "it has more cells than the head.", "Put text in quotes.")
    return _cell_fields(zip(names, row, strict=False))


def _cell_fields(cells: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return cells as JSON values if they are JSON, else as text, without those that are empty."""
    fields: dict[str, Any] = {}
    for name, cell in cells:
        text = cell.strip()
        value: Any = cell if name == "prompt" else text
        if name not in _TEXTS:
            with contextlib.suppress(ValueError, RecursionError):
                # Spreadsheets write flags as TRUE.
                value = json.loads(text.lower() if text.lower() in {"true", "false"} else text)
        if text:
            fields[name] = value
    return fields


READERS: Final[Mapping[str, Callable[[Path], Iterator[Entry]]]] = {
    ".txt": _prompts,
    ".jsonl": _json_lines,
    ".csv": _rows,
    ".tsv": _rows,
}


def _item(entry: Any, folder: Path) -> Item:
    if isinstance(entry, UsageError):
        raise entry
    fields = {"prompt": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, dict):
        raise usage_error("line", "it is not a JSON object.", "Write one JSON object per line.")
    custom_id = fields.pop("custom_id", None)
    if isinstance(custom_id, bool) or not isinstance(custom_id, str | int | None):
        raise usage_error(
            "custom_id", "custom_id must be text or a whole number.", "Use one, or leave it out."
        )
    return Item(_request(fields, folder), None if custom_id is None else str(custom_id).strip())


def _request(fields: dict[str, Any], folder: Path) -> Generation:
    name = fields.pop("kind", "image_to_video" if "image" in fields else "text_to_video")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        close = difflib.get_close_matches(str(name), KINDS, 1)
        question = f"Did you mean {close[0]}? " if close else ""
        raise usage_error("kind", "kind is unknown.", f"{question}Use {', '.join(KINDS)}.")
    motion = _motion(fields)
    if motion is not None:
        fields["motion"] = motion
    _check_fields(kind, fields)
    for name, value in fields.items():
        # Spreadsheets and data frames write whole numbers as 5.0.
        is_whole = _FIELDS[name].type in {int, int | None}
        if is_whole and isinstance(value, float) and value.is_integer():
            fields[name] = int(value)
        elif "media" in _FIELDS[name].metadata and isinstance(value, str):
            fields[name] = address_or_path(value, folder)
    request: Generation = kind(**fields)
    return request


def _motion(fields: dict[str, Any]) -> MotionVector | None:
    """Return the motion from an object, or from columns such as `motion.x`."""
    parts = fields.pop("motion", None)
    if parts is None:
        names = [name for name in fields if name.startswith("motion.")]
        parts = {name.removeprefix("motion."): fields.pop(name) for name in names}
    if not parts:
        return None
    if not isinstance(parts, dict) or set(parts) - _AXES:
        raise usage_error("motion", "motion has unknown parts.", f"Use {', '.join(sorted(_AXES))}.")
    return MotionVector(**parts)


def _check_fields(kind: type, fields: Mapping[str, Any]) -> None:
    """Raise if a field is unknown or missing."""
    known = attrs.fields_dict(kind)
    for name in fields:
        if name not in known:
            # Without a head, the name is a prompt, which errors do not show.
            shown = name if PLAIN_NAME.fullmatch(name) else "<no name>"
            names = sorted(_NAMES - {shown})
            right = meant(shown, known)
            close = [right] if right else difflib.get_close_matches(shown.lower(), names, 1)
            question = f"Did you mean {close[0]}? " if close else ""
            raise usage_error(
                shown,
                f"{kind.__name__} has no field {shown!r}.",
                f"{question}It has {', '.join(sorted(known))}.",
            )
    needed = [name for name, field in known.items() if field.default is attrs.NOTHING]
    for name in needed:
        if name not in fields:
            raise usage_error(
                name, f"{name} is missing.", f"{kind.__name__} needs {' and '.join(needed)}."
            )
