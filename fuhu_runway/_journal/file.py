"""
The SQLite file of a journal: its lock, its log, and what the journal's thread does with it.

One process at a time has the file open. Actions that are queued share one transaction, and so one
flush to disk. Each result is reported once its transaction is on disk.
"""

import contextlib
import os
import queue
import shlex
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from fuhu_runway.errors import JournalBusy, JournalError, JournalTooNew, RunwayError

from .actions import Action, journal_error
from .schema import MIGRATIONS, SCHEMA, SCHEMA_VERSION
from .writer import Call, Calls, End, report

T = TypeVar("T")


def perform(db: sqlite3.Connection, action: Action[T]) -> T:
    """Run the statements of an action, and return its result."""
    try:
        statement = next(action)
        while True:
            statement = action.send(db.execute(*statement).fetchall())
    except StopIteration as end:
        result: T = end.value
        return result


AT_ONCE: Final = 1000
"""Actions in one transaction at most; if more, their callers wait longer."""

UNAWAITED_WAIT: Final = 0.02
"""Seconds that actions without a caller wait for one with a caller, to share its commit. If more, a
crash loses more of them; a resumed job then learns again that its task ended or its clip is saved.
"""

CHECKPOINT_AFTER: Final = 1000
"""Actions until the log is moved into the file; if more, the log grows longer."""

BUSY_PAUSE: Final = 0.05
"""Seconds between attempts to open a journal that another process has open."""


def work(path: Path, wait: float, todo: Calls, former: threading.Thread | None) -> None:
    """Run actions until one is None; all that are queued share a transaction."""
    if former is not None:
        former.join()  # it may still have the file open
    db: sqlite3.Connection | None = None
    opened: os.stat_result | None = None
    is_over = False
    in_log = 0
    while not is_over:
        batch, is_over = _gather(todo)
        if not batch:
            continue
        try:
            db = db or _open_within(path, wait)
            opened = _checked(path, opened)
        except Exception as exc:  # noqa: BLE001  (the caller has to raise it)
            report((call, None, error_of(exc, path)) for call in batch)
            continue
        report(_do(db, batch, path))
        in_log += len(batch)
        if in_log >= CHECKPOINT_AFTER:
            in_log = 0
            with contextlib.suppress(sqlite3.Error):
                _move_log(db)
    if db is not None:
        with contextlib.suppress(sqlite3.Error):
            _doubt(db)
            db.execute(NEEDS_NO_LOG)  # again, in case a full disk refused it
        db.close()


def _checked(path: Path, opened: os.stat_result | None) -> os.stat_result | None:
    """
    Return which file *path* is; None if that is not known.

    Raises:
        JournalError: It is not the *opened* one. What is written now would be lost.
    """
    found: os.stat_result | None = None
    try:
        found = path.stat()
    except FileNotFoundError:
        is_gone = True
    except OSError:  # such as trouble of a network disk, which the next commit would meet too
        is_gone = False
    else:
        is_gone = opened is not None and not os.path.samestat(found, opened)
    if is_gone:
        raise journal_error(
            f"The journal {path.name!r} was removed or replaced while it was open.",
            "Put it back and start again, or start with another journal.",
        )
    return opened or found


def _gather(todo: Calls) -> tuple[list[Call], bool]:
    """Wait for actions; return those that are queued, and whether the thread has to end."""
    batch: list[Call] = []
    call = todo.get()
    deadline = time.monotonic() + UNAWAITED_WAIT
    while call is not None:
        batch.append(call)
        if call.future is not None:
            deadline = 0.0
        if len(batch) == AT_ONCE:
            return batch, False
        try:
            call = todo.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return batch, False
    return batch, True


def _do(db: sqlite3.Connection, batch: Iterable[Call], path: Path) -> list[End]:
    """Run all in one transaction. An illegal step fails alone; a disk error fails all."""
    ends: list[End] = []
    try:
        db.execute("BEGIN")
        for call in batch:
            try:
                ends.append((call, call.action(db), None))
            except sqlite3.OperationalError:
                raise
            except Exception as illegal:  # noqa: BLE001  (the caller has to raise it)
                ends.append((call, None, error_of(illegal, path)))
        db.commit()
    except sqlite3.Error as exc:
        with contextlib.suppress(sqlite3.Error):
            db.rollback()
        return [(call, None, error_of(exc, path)) for call in batch]
    return ends


NEEDS_NO_LOG: Final = "UPDATE header SET needs_log = 0"


def _move_log(db: sqlite3.Connection) -> None:
    """Move the log into the file, and mark the file as needing the next log."""
    # In this order, a file without its log is always detected: each checkpoint writes the 1, and
    # the 0 is only in the log. A process that is killed in between leaves a log that is not empty.
    try:
        db.execute("UPDATE header SET needs_log = 1")
        db.execute("PRAGMA wal_checkpoint").fetchall()
    finally:
        db.execute(NEEDS_NO_LOG)


def _doubt(db: sqlite3.Connection) -> None:
    """Mark every SUBMITTING job as IN_DOUBT: its outcome is unknown."""
    db.execute(
        "UPDATE job SET state = ?, error = coalesce(error, ?) WHERE state = ?",
        ("in doubt", "NoReply", "submitting"),
    )


def _open_within(path: Path, wait: float) -> sqlite3.Connection:
    """Open the file, waiting up to *wait* seconds while another process has it open."""
    deadline = time.monotonic() + wait
    while True:
        try:
            return _open(path)
        except sqlite3.OperationalError as exc:
            if not _is_busy(exc) or time.monotonic() >= deadline:
                raise
        time.sleep(BUSY_PAUSE)


def _open(path: Path) -> sqlite3.Connection:
    """Open the file for this process only, bring its schema up to date, and mark old doubts."""
    if not path.parent.is_dir():
        raise journal_error(
            f"There is no folder {str(path.parent)!r} for the journal.", "Create it first."
        )
    log = path.with_name(f"{path.name}-wal")
    has_log = log.is_file() and log.stat().st_size > 0
    with contextlib.suppress(OSError):
        # SQLite gives its other files the same permissions.
        path.touch(0o600, exist_ok=False)
    db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        db.row_factory = sqlite3.Row
        # The lock is taken at the first write and kept until the process ends, in any way.
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        # Each commit is on disk before it is acted on: a paid request follows.
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA fullfsync=1")  # needed on macOS for a flush to the disk itself
        db.execute("PRAGMA temp_store=MEMORY")
        db.execute("BEGIN IMMEDIATE")
        _migrate(db, path)
        if not has_log:
            _check_whole(db, path)
        _doubt(db)
        db.execute("CREATE TABLE temp.seen (fingerprint TEXT PRIMARY KEY, times INTEGER) STRICT")
        db.commit()
        # Last, since it changes the file, which is known to be a journal only now.
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA wal_autocheckpoint=0")
        _move_log(db)
    except BaseException:
        db.close()
        raise
    return db


def _check_whole(db: sqlite3.Connection, path: Path) -> None:
    if db.execute("SELECT needs_log FROM header").fetchone()[0]:
        command = command_line("sqlite3", str(path), NEEDS_NO_LOG)
        raise JournalError(
            f"The journal {path.name!r} is a copy without its log, '{path.name}-wal'.",
            "Nothing was sent, but jobs that are only in the log may be paid for.",
            f"Copy the log as well, or continue without it after: {command}",
        )


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    tables = {row["name"] for row in db.execute("SELECT name FROM sqlite_schema")}
    if tables and ("job" not in tables or version == 0):
        raise journal_error(
            f"The file {path.name!r} is another program's database.", "Choose another file."
        )
    if version > SCHEMA_VERSION:
        raise JournalTooNew(
            f"The journal {path.name!r} has schema {version}; this version knows {SCHEMA_VERSION}.",
            "Nothing was sent or charged.",
            "Use the version of fuhu-runway that wrote it, or a newer one.",
        )
    steps = [MIGRATIONS[older] for older in range(version, SCHEMA_VERSION)] if version else [SCHEMA]
    for script in steps:
        for statement in _statements(script):
            db.execute(statement)
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _statements(script: str) -> Iterator[str]:
    """Split a script, since `executescript` would end the transaction that it is part of."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _is_busy(exc: Exception) -> bool:
    # The low byte is the kind of error; the others add detail.
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def error_of(exc: Exception, path: Path) -> RunwayError:
    """Return our error for one of SQLite's or of the system's."""
    if isinstance(exc, RunwayError):
        return exc
    if _is_busy(exc):
        error: JournalError = JournalBusy(
            f"Another process has the journal {path.name!r} open.",
            "Nothing was sent or charged.",
            "Wait for it to end, or use another journal.",
        )
    elif getattr(exc, "sqlite_errorcode", 0) in _LOCKLESS:
        error = journal_error(
            f"The journal {path.name!r} cannot be used: it cannot be locked ({exc}).",
            "Check its permissions, or keep it on a local disk: network drives often lack locks.",
        )
    else:
        error = journal_error(
            f"The journal {path.name!r} cannot be used: {exc}.",
            "Correct that, or choose another file; its content is unchanged.",
        )
    error.__cause__ = exc
    return error


_LOCKLESS: Final = {
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_IOERR_LOCK,
    sqlite3.SQLITE_IOERR_RDLOCK,
    sqlite3.SQLITE_IOERR_UNLOCK,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
}
"""SQLite's error codes on a file system without working locks, or for a read-only file."""


def command_line(*words: str) -> str:
    """Return a command, quoted for this system's shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
