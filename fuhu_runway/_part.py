"""
The start of a file on disk: locked, described by a note, and renamed when it is whole.

Bytes are kept in `<name>.part` until all have come. `<name>.part.json` beside it holds which file
they are the start of, and a digest of them, so that nothing else passes for them later.
Sizes are in bytes.
"""

import errno
import hashlib
import importlib
import json
import os
import re
import stat
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from typing import Any, Final

import attrs

BUFFER_BYTES: Final = 1024**2
MAX_NOTE_BYTES: Final = 8192
LEAST_START: Final = 8
"""How much of a file tells whether it is an MP4."""

BOXES: Final = frozenset(
    b"ftyp styp moov moof mdat mfra sidx ssix emsg prft meta free skip wide uuid pnot PICT".split()
)
"""What an MP4 file is made of at its top level (ISO/IEC 14496-12, and QuickTime's own)."""

TEXT: Final = 9
"""From here on a first byte is text: the head of a box would announce 150 MB with it."""

MAX_BOXES: Final = 100_000
"""How many boxes of a file are walked; a file of more is taken as it is."""

LOCKS: Final[Any] = importlib.import_module("fcntl" if os.name == "posix" else "msvcrt")

LOCKED_BYTE: Final = 2**31 - 2
"""Which byte stands for the whole file on Windows, which locks bytes; it need not be there."""


@attrs.define(eq=False)
class Part:
    """The start of a file that is not whole yet, on disk."""

    path: Path
    #: Unbuffered, so that a full disk never leaves us wrong about how much is there.
    file: FileIO
    task_id: str
    #: What is written down about the bytes of an earlier attempt.
    note: dict[str, Any] = attrs.field(factory=dict)
    received: int = 0
    digest: Any = attrs.field(factory=hashlib.sha256)
    #: Which version of the file this is the start of, and how large that is.
    validator: str | None = None
    total: int | None = None
    is_published: bool = False

    @classmethod
    def open(cls, path: Path, task_id: str) -> "Part":
        """
        Open and lock the part of *path*.

        Raises:
            BlockingIOError: Another download has it.
            OSError: It cannot be opened, or is no plain file.
        """
        with ExitStack() as undo:
            file = undo.enter_context(plain_file(part_path(path)))
            _lock(file)
            # Another download may have renamed or removed it before it was locked.
            if not _is_at(part_path(path), file):
                raise BlockingIOError
            part = cls(path, file, task_id, _read_note(path))
            undo.pop_all()
        return part

    def resume(self) -> None:
        """Go on from the bytes that the note describes, if they are there, else from zero."""
        note, digest, left = self.note, hashlib.sha256(), self.note.get("size")
        is_ours = note.get("task_id") == self.task_id and is_validator(note.get("validator"))
        if is_ours and type(left) is int and left > 0:
            self.file.seek(0)
            while left and (block := self.file.read(min(left, BUFFER_BYTES))):
                digest.update(block)
                left -= len(block)
            if not left and digest.hexdigest() == note.get("digest"):
                self.file.truncate(note["size"])
                self.received, self.digest, self.validator = note["size"], digest, note["validator"]
                self.total = note["total"] if type(note.get("total")) is int else None
                return
        self.restart()

    def range_headers(self) -> dict[str, str]:
        """Ask for the rest, if it is the rest of the same file, else for the whole."""
        if not self.received or self.validator is None:
            return {}
        return {"Range": f"bytes={self.received}-", "If-Range": self.validator}

    def goes_on_with(self, start: int | None, validator: str | None, total: int | None) -> bool:
        """Whether a body is the rest of the very file that this is the start of."""
        return (
            start == self.received
            and validator in {None, self.validator}
            and (total is None or self.total in {None, total})
        )

    def start(self, validator: str | None, total: int | None) -> None:
        """Start from zero, with this version of the file."""
        self.restart()
        self.validator, self.total = validator, total

    def write(self, data: bytes, total: int | None) -> None:
        """Add to the end, as far as the disk takes it, and note it down if more is to come."""
        rest = memoryview(data)
        try:
            self.file.seek(self.received)
            while rest:
                written = self.file.write(rest)
                self.digest.update(rest[:written])
                self.received += written
                rest = rest[written:]
        finally:
            # What came whole at once is renamed at once: a note all the same would make and remove
            # a file for each clip, as slow as a flush.
            if self.received != total:
                self._write_note()

    def _write_note(self) -> None:
        """Write down what is there; if that fails, the note before still holds for its bytes."""
        note = {
            "task_id": self.task_id,
            "validator": self.validator,
            "total": self.total,
            "size": self.received,
            "digest": self.digest.hexdigest(),
        }
        with suppress(OSError), plain_file(note_path(self.path)) as file:
            # Over what is there and then cut, so that a full disk cannot leave an empty one.
            file.truncate(file.write(json.dumps(note).encode()))

    def restart(self) -> None:
        """Throw away what is there."""
        with suppress(OSError):
            note_path(self.path).unlink(missing_ok=True)
        self.file.truncate(0)
        self.received, self.digest, self.validator, self.total = 0, hashlib.sha256(), None, None

    def last_box(self) -> tuple[int, bytes]:
        """Return where the last box ends, by its own word, and its kind."""
        at, size, kind, walked = 0, self.received, b"", 0
        while at < size:
            if walked == MAX_BOXES:
                return size, kind
            walked += 1
            self.file.seek(at)
            head = self.file.read(16)
            kind, length = head[4:8], int.from_bytes(head[:4])
            if kind not in BOXES and head[0] >= TEXT:
                return size, kind  # a newline or the like behind the last box
            if len(head) < LEAST_START:
                return size + 1, b""
            if length == 1:
                length = int.from_bytes(head[8:16])
            at = at + length if length else size  # 0: the last box, up to the end
        return at, kind

    def publish(self, *, overwrite: bool) -> None:
        """
        Flush to disk, then rename to the final name in one step; after that nothing fails.

        Raises:
            FileExistsError: Another program made a file of that name meanwhile.
            PermissionError: It may be open elsewhere; worth another attempt.
        """
        part = part_path(self.path)
        if not self.file.closed:
            _flush(self.file)
            if not _is_at(part, self.file) or part.stat().st_size != self.received:
                raise OSError(errno.EBUSY, "another program has changed its .part file")
        if not overwrite and os.path.lexists(self.path):
            raise FileExistsError
        # First, or a process that is killed in between would leave it beside the clip.
        with suppress(OSError):
            note_path(self.path).unlink(missing_ok=True)
        try:
            part.replace(self.path)
        except PermissionError:
            # Windows renames no file that is open, if only here. Elsewhere the lock has to hold
            # until the file has its name, or another download could write into it.
            self.file.close()
            raise
        self.is_published = True
        with suppress(OSError):
            _sync_folder(self.path.parent)

    def close(self) -> None:
        """Keep what came, if anything did."""
        with suppress(OSError):
            if not self.is_published and self.received:
                self._write_note()
            elif not self.is_published:
                note_path(self.path).unlink(missing_ok=True)
                _remove(part_path(self.path), self.file)
        with suppress(OSError):
            self.file.close()


def probe(path: Path) -> None:
    """
    Open the files that a download to *path* writes, and leave no trace of that.

    If one is there already and empty, a process was killed here: it is removed as well.

    Raises:
        OSError: One cannot be opened, or is no plain file.
    """
    for name in (part_path(path), note_path(path)):
        with plain_file(name) as file:
            try:
                _lock(file)
            except BlockingIOError:  # a download that has just begun
                return
            if not os.fstat(file.fileno()).st_size:
                _remove(name, file)


def _remove(path: Path, file: FileIO) -> None:
    """Remove *path*, which is open as *file*."""
    try:
        path.unlink()
    except PermissionError:  # Windows removes no file that is open
        file.close()
        path.unlink()


def is_validator(value: object) -> bool:
    """Whether If-Range may be sent with *value*: a strong ETag, or a date of any kind."""
    return isinstance(value, str) and bool(
        re.fullmatch(r'"[!-~]{0,1000}"|\w{3}, [ -~]{1,40}', value)
    )


def plain_file(path: Path, mode: str = "r+") -> FileIO:
    """
    Open a plain file of one name, never blocking and following no link; "r+" makes it.

    Raises:
        OSError: It cannot be opened, or something else is in its place.
    """
    extra = os.O_CREAT if mode == "r+" else 0
    for name in ("O_NOFOLLOW", "O_NONBLOCK"):  # not every system has them
        extra |= getattr(os, name, 0)
    if path.is_symlink():
        raise OSError(errno.ELOOP, f"{path.name} is a link")
    file = FileIO(path, mode, opener=lambda name, flags: os.open(name, flags | extra, 0o666))
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        file.close()
        raise OSError(errno.EINVAL, f"{path.name} is a pipe, a device or a link")
    return file


def _lock(file: FileIO) -> None:
    """
    Keep other downloads away from *file*, of this process and of others, until it is closed.

    Raises:
        BlockingIOError: Another one has it.
    """
    try:
        if hasattr(LOCKS, "flock"):
            LOCKS.flock(file, LOCKS.LOCK_EX | LOCKS.LOCK_NB)
        else:
            file.seek(LOCKED_BYTE)
            LOCKS.locking(file.fileno(), LOCKS.LK_NBLCK, 1)
    except PermissionError as exc:  # what Windows says of a locked byte
        raise BlockingIOError from exc
    except BlockingIOError:
        raise
    except OSError:
        return  # some network disks have no locks


def _is_at(path: Path, file: FileIO) -> bool:
    """Whether *path* is the name of this open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def part_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.part.json")


def _read_note(path: Path) -> dict[str, Any]:
    try:
        with plain_file(note_path(path), "r") as file:
            note = json.loads(file.read(MAX_NOTE_BYTES))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def _flush(file: FileIO) -> None:
    """Flush to the disk itself, for which macOS has a call of its own."""
    if hasattr(LOCKS, "F_FULLFSYNC"):
        with suppress(OSError):  # some disks do not know it
            LOCKS.fcntl(file, LOCKS.F_FULLFSYNC)
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
