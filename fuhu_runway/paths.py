"""Choose names for clips, and check their paths before any money is spent."""

import filecmp
import hashlib
import os
import re
import tempfile
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Final

from ._part import Part
from .errors import UsageError
from .models import usage_error

MAX_NAME_BYTES: Final = 120
"""The longest name that is made from a prompt; leaves room for suffixes on every file system."""

_RESERVED: Final = re.compile(r"(?i)(con|prn|aux|nul|(com|lpt)[0-9¹²³])")
_UNSAFE: Final = re.compile(r"[^\w.,+=@()-]+")


def safe_name(text: str, suffix: str = ".mp4") -> str:
    """
    Return a file name that reads like *text* and is safe on every file system.

    Letters of any script stay; spaces and everything else become a dash. A long name is cut,
    and six characters of a hash of the whole make it unique.
    """
    plain = unicodedata.normalize("NFC", text)
    name = _UNSAFE.sub("-", plain).strip("-. ") or "clip"
    if _RESERVED.fullmatch(name.partition(".")[0]):
        name = f"clip-{name}"
    room = MAX_NAME_BYTES - len(suffix.encode())
    if len(name.encode()) > room:
        mark = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
        name = name.encode()[: room - 7].decode("utf-8", "ignore").rstrip("-. ") + f"-{mark}"
    return name + suffix


def beside(path: Path, task_id: str) -> Path:
    """Return where a task's clip is saved if another file is at *path*."""
    return path.with_name(safe_name(f"{path.stem}-{task_id}"))


def only_copy(copy: Path, path: Path) -> Path:
    """
    Return the path of a clip that was saved as *copy*, beside *path*.

    If the file at *path* is the same clip, *copy* is deleted: an earlier process saved it, and was
    killed before it could record that.
    """
    if path.is_file() and filecmp.cmp(copy, path, shallow=False):
        copy.unlink()
        return path
    return copy


def saved_place(path: Path, task_id: str, size: int | None) -> Path | None:
    """Return the file of *size* bytes saved for a task; None if it is gone or has changed."""
    copy = beside(path, task_id)
    place = only_copy(copy, path) if copy.is_file() else path
    return place if place.is_file() and place.stat().st_size == size else None


def check_folder(folder: Path) -> Path:
    """
    Return *folder* if files can be created in it; the folder itself is created if missing.

    Raises:
        UsageError: It cannot be created, or nothing can be written in it.
    """
    try:
        folder.mkdir(exist_ok=True)
        _try_to_write(folder / f".{os.getpid()}")
    except OSError as exc:
        happened = f"Nothing can be written in {str(folder)!r} ({exc.strerror})."
        advice = "Choose another folder, or correct its permissions."
        if isinstance(exc, FileExistsError | NotADirectoryError):
            happened, advice = f"{str(folder)!r} is not a folder.", "Choose another name."
        raise usage_error("path", happened, advice) from exc
    return folder


def check_target(path: Path, *, overwrite: bool = False) -> Path:
    """
    Return *path* if a clip can be saved there; called before any money is spent.

    Raises:
        UsageError: The folder is missing or not writable, or the file already exists.
    """
    check_vacant(path, overwrite=overwrite)
    try:
        _try_to_write(path)
    except (OSError, ValueError) as exc:
        raise path_error(path, exc) from exc
    return path


def check_vacant(path: Path, *, overwrite: bool = False) -> Path:
    """
    Return *path* if no other file is there; nothing is opened or written.

    Raises:
        UsageError: The file already exists, or is no plain file.
    """
    try:
        # A link exists even if its target does not.
        if os.path.lexists(path):
            if path.exists() and not path.is_file():
                happened = f"{str(path)!r} is a folder, a device or a pipe."
                raise usage_error("path", happened, "Pass the name of a file.")
            if not overwrite:
                raise path_error(path, FileExistsError())
    except OSError as exc:
        raise path_error(path, exc) from exc
    return path


def write_whole(path: Path, text: str) -> None:
    """
    Write a text file completely or not at all; only its owner can read it.

    Raises:
        OSError: It cannot be written; an existing file is unchanged.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:  # noqa: PTH123  (a file descriptor)
            file.write(text.encode())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def _try_to_write(path: Path) -> None:
    """Open the files of a download, and leave only the bytes of an earlier download behind."""
    with suppress(BlockingIOError):  # a download is under way
        Part.open(path, "").close()


def path_error(path: Path, exc: OSError | ValueError) -> UsageError:
    """Return the error for a *path* at which no clip can be saved, because of *exc*."""
    if isinstance(exc, FileExistsError):
        happened = f"{path.name!r} already exists."
        advice = "Choose another name, or allow it to be overwritten (overwrite=True, or --force)."
    elif isinstance(exc, BlockingIOError):
        happened = f"{path.name!r} is already being downloaded."
        advice = "Wait for that download, or choose another name."
    elif isinstance(exc, FileNotFoundError | NotADirectoryError) and not path.parent.is_dir():
        happened = f"There is no folder {str(path.parent)!r}."
        advice = "Create it first, or choose another."
    elif isinstance(exc, OSError):
        happened = f"Nothing can be written in {str(path.parent)!r} ({exc.strerror})."
        advice = "Choose another folder or a shorter name, or remove what is in the way."
    else:
        happened = f"The path is not valid ({exc})."
        advice = "Choose another name."
    return usage_error("path", happened, advice)
