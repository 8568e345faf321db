"""
The part of a file that has arrived: locked, described by a note, and renamed once complete.

The bytes are in `<name>.part`. The note, `<name>.part.json`, names the file that they belong to
and has their digest, so that a later download continues from exactly these bytes.
If several machines save to one folder, each has parts of its own, `<name>.<machine>.part`: the
locks of network disks are not reliable.
Sizes are in bytes.
"""

import errno
import filecmp
import hashlib
import importlib
import json
import os
import platform
import stat
import uuid
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, Final

import attrs

from ._received import Received, is_validator

READ_BYTES: Final = 1024**2
"""How much of a part is read at once when it is checked."""

LOCKS: Final[Any] = importlib.import_module("fcntl" if os.name == "posix" else "msvcrt")

LOCKED_BYTE: Final = 2**31 - 2
"""Windows locks bytes: this one stands for the whole file. It need not exist."""


@attrs.define(eq=False)
class Part(Received):
    """The part of a file that has arrived so far, on disk."""

    path: Path
    #: Unbuffered, so that `received` is right even if the disk is full.
    file: FileIO
    task_id: str
    #: What its name contains, besides that of the file.
    mark: str
    _part_path: Path
    _note_path: Path
    #: What an earlier attempt noted about its bytes.
    note: dict[str, Any]
    #: Whether there is a file with a note.
    has_note: bool
    #: Kept, since each look at the file system from a thread may wait for the event loop.
    _opened: os.stat_result = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._opened = os.fstat(self.file.fileno())

    @classmethod
    def open(cls, path: Path, task_id: str, mark: str = "") -> "Part":
        """
        Open and lock the part of *path* whose name contains *mark*.

        Raises:
            BlockingIOError: Another download has locked it.
            OSError: It cannot be opened, or is not a plain file.
        """
        path = path.absolute()  # the program may change its working directory later
        paths = part_path(path, mark), note_path(path, mark)
        note = _note_at(paths[1])
        file = plain_file(paths[0])
        try:
            _lock(file)
            if note is None:
                # Another download may have written it before it let go of the part.
                note = _note_at(paths[1])
            part = cls(path, file, task_id, mark, *paths, note or {}, note is not None)
            # Another download may have renamed or removed it before it was locked.
            if not part.is_in_place():
                raise BlockingIOError  # noqa: TRY301  (as the lock does)
        except BaseException:
            file.close()
            raise
        return part

    def is_in_place(self, size: int | None = None) -> bool:
        """Return whether the open file still has the name of the part, and this size if given."""
        try:
            found = self._part_path.lstat()
        except FileNotFoundError:
            return False
        return os.path.samestat(found, self._opened) and size in {None, found.st_size}

    def resume(self) -> None:
        """Continue from the bytes that the note describes, or from zero if they are not there."""
        note, size = self.note, self.note.get("size")
        is_ours = note.get("task_id") == self.task_id and is_validator(note.get("validator"))
        if is_ours and isinstance(size, int) and 0 < size <= self._opened.st_size:
            self.file.truncate(size)
            self.file.seek(0)
            total = note.get("total")
            self.begin(note["validator"], total if isinstance(total, int) else None)
            while chunk := self.file.read(READ_BYTES):
                self.take(chunk)
            if self.digest.hexdigest() == note.get("digest"):
                return
        self.restart()

    def is_empty(self) -> bool:
        return not self.received and not self._opened.st_size

    def restart(self, validator: str | None = None, total: int | None = None) -> None:
        """Discard the bytes, and start from zero with this version of the file."""
        self.file.truncate(0)
        self.file.seek(0)
        self.begin(validator, total)

    def write(self, data: bytes | bytearray, total: int | None) -> None:
        """Append what the disk takes of *data*, and note it unless the file is whole now."""
        rest = memoryview(data)
        try:
            while rest:
                written = self.file.write(rest)
                self.take(rest[:written])
                rest = rest[written:]
        finally:
            # A clip that arrives whole is renamed at once: a note for it would make and remove
            # another file, which takes as long as a flush.
            if self.received != total:
                self._write_note()

    def _write_note(self) -> None:
        note = {
            "task_id": self.task_id,
            "validator": self.validator,
            "total": self.total,
            "size": self.received,
            "digest": self.digest.hexdigest(),
        }
        # Without this note, the previous one still describes its bytes.
        with suppress(OSError), plain_file(self._note_path) as file:
            self.has_note = True
            # Overwritten first and cut afterwards, so that a full disk does not leave it empty.
            file.truncate(file.write(json.dumps(note).encode()))

    def publish(self, *, overwrite: bool) -> None:
        """
        Flush the part to disk and rename it to its final name; nothing fails after the rename.

        If another machine may have saved the same clip there, the two are compared, and the part is
        removed if they are equal.

        Raises:
            FileExistsError: Another program has created a file of that name.
            PermissionError: It may be open elsewhere; another attempt may work.
        """
        if not self.file.closed:
            if hasattr(
                LOCKS, "F_FULLFSYNC"
            ):  # on macOS, fsync alone leaves bytes in the drive's cache
                with suppress(OSError):  # some disks do not support it
                    LOCKS.fcntl(self.file, LOCKS.F_FULLFSYNC)
            os.fsync(self.file.fileno())
            if not self.is_in_place(self.received):
                raise OSError(errno.EBUSY, "another program has changed its .part file")
        if not overwrite and os.path.lexists(self.path):
            is_there = self.mark and self.path.is_file()
            if not is_there or not filecmp.cmp(self._part_path, self.path, shallow=False):
                raise FileExistsError
            # Another machine has saved the same clip in the meantime.
            self._part_path.unlink()
            self._note_path.unlink(missing_ok=True)
            self.is_published = True
            return
        # Before the rename: a process killed in between would leave the note beside the clip.
        if self.has_note:
            with suppress(OSError):
                self._note_path.unlink()
        try:
            self._part_path.replace(self.path)
        except PermissionError:
            # Windows does not rename an open file. Elsewhere the lock is held until the rename,
            # or another download could write into the file.
            self.file.close()
            raise
        self.is_published = True
        with suppress(OSError):  # so that the new name survives a power cut, where that is possible
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def close(self) -> None:
        """Close the file. An empty one is removed with its note."""
        with suppress(OSError):
            if self.received and not self.is_published:
                self._write_note()
            elif not self.is_published and not self._part_path.stat().st_size:
                self._note_path.unlink(missing_ok=True)
                try:
                    self._part_path.unlink()
                except PermissionError:  # Windows does not remove an open file
                    self.file.close()
                    self._part_path.unlink()
        with suppress(OSError):
            self.file.close()


def part_path(path: Path, mark: str = "") -> Path:
    return path.with_name(f"{path.name}.{mark}.part" if mark else f"{path.name}.part")


def note_path(path: Path, mark: str = "") -> Path:
    part = part_path(path, mark)
    return part.with_name(f"{part.name}.json")


def _note_at(path: Path) -> dict[str, Any] | None:
    """Return the note at *path*, empty if it cannot be read; None if there is none."""
    note = None
    try:
        with plain_file(path, "r") as file, suppress(ValueError, RecursionError):
            note = json.loads(file.read())
    except FileNotFoundError:
        return None
    return note if isinstance(note, dict) else {}


def machine_mark() -> str:
    """Return eight hex digits that are the same on this machine only."""
    # Both, since containers may share an address, and machines a name. Neither is shown.
    machine = f"{platform.node()} {uuid.getnode()}"
    return hashlib.sha256(machine.encode()).hexdigest()[:8]


def plain_file(path: Path, mode: str = "r+") -> FileIO:
    """
    Open a plain file, without blocking or following a link; "r+" creates it.

    Raises:
        OSError: It cannot be opened, or is a link, a pipe, a folder or a device.
    """
    extra = os.O_CREAT if mode == "r+" else 0
    for name in ("O_NOFOLLOW", "O_NONBLOCK"):  # not every system has them
        extra |= getattr(os, name, 0)
    is_link = f"{path.name} is a link"
    if not hasattr(os, "O_NOFOLLOW") and path.is_symlink():
        raise OSError(errno.ELOOP, is_link)
    try:
        file = FileIO(path, mode, opener=lambda name, flags: os.open(name, flags | extra, 0o666))
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            exc.strerror = is_link  # the system's text is "Too many levels of symbolic links"
        raise
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        file.close()
        raise OSError(errno.EINVAL, f"{path.name} is a pipe, a device or a link")
    return file


def _lock(file: FileIO) -> None:
    """
    Lock *file* against other downloads, in this process and others, until it is closed.

    Raises:
        BlockingIOError: Another download has locked it.
    """
    try:
        if hasattr(LOCKS, "flock"):
            LOCKS.flock(file, LOCKS.LOCK_EX | LOCKS.LOCK_NB)
        else:
            file.seek(LOCKED_BYTE)
            try:
                LOCKS.locking(file.fileno(), LOCKS.LK_NBLCK, 1)
            finally:
                file.seek(0)
    except (BlockingIOError, PermissionError) as exc:  # Windows raises PermissionError
        raise BlockingIOError from exc
    except OSError:
        pass  # some network disks have no locks
