"""
The state file: one line of JSON for each event, which outlives the process.

Rule 1. A line is valid only if it ends with a newline. A truncated last line is discarded.
Rule 2. A task is recorded before its response is sent, the response afterwards. So the file has
    each task that a client can know of, and each response in the file has left the process.
Rule 3. The operating system has a line before it takes effect, so it survives the end of the
    process, even by `kill -9`, but not a power failure.
Rule 4. Lines are only appended, by one simulator at a time.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import attrs

from fuhu_runway.testing._clock import SimulatedClock

StrPath = str | os.PathLike[str]


@attrs.frozen(kw_only=True)
class Record:
    """One line of the file: its fields, and the name of its class as `"kind"`."""

    #: Unix seconds, by the wall clock.
    at: float
    #: Simulated seconds since the first start, in any process.
    instant: float


@attrs.frozen(kw_only=True)
class Opened(Record):
    """The gateway was started with this speed."""

    speed: float
    #: The Unix second of the first start.
    epoch: float


@attrs.frozen(kw_only=True)
class Closed(Record):
    """The gateway was closed."""


@attrs.frozen(kw_only=True)
class Accepted(Record):
    """A task was created and paid for."""

    task_id: str
    #: The name of the key, which is not the key.
    account: str
    #: The user whose key it is.
    user_id: int
    #: The path of its submit.
    path: str
    action: str
    prompt: str = attrs.field(repr=False)
    #: The request's body in Latin-1, without the key.
    body: str = attrs.field(repr=False)
    #: SHA-256 of the received body, in hex.
    digest: str
    points: float
    #: How many ids were generated before this one.
    position: int
    #: The signature of its links.
    token: str = attrs.field(repr=False)
    #: In simulated seconds; None means never.
    link_expires_at: float | None
    #: The arguments of its `Script`.
    script: Mapping[str, Any] = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Answered(Record):
    """The whole response to a task's submit was handed to the socket."""

    task_id: str
    status: int


@attrs.frozen(kw_only=True)
class Filed(Record):
    """A task's file or its link changed."""

    task_id: str
    token: str = attrs.field(repr=False)
    link_expires_at: float | None
    dead: int | None
    version: int


KINDS: Final[dict[str, type[Record]]] = {
    kind.__name__.lower(): kind for kind in (Opened, Closed, Accepted, Answered, Filed)
}


@attrs.frozen(kw_only=True)
class LedgerEntry:
    """The outcome of one paid submit on the gateway's side."""

    #: The task.
    task_id: str
    #: SHA-256 of the request's body, in hex: the same for two submits of the same bytes.
    digest: str
    #: The prompt in its request.
    prompt: str = attrs.field(repr=False)
    #: When it was accepted, in Unix seconds by the wall clock.
    accepted_at: float
    #: The HTTP status of the response, if the whole response was handed to the socket.
    status: int | None = None

    @property
    def answered(self) -> bool:
        """
        Return whether the whole response was handed to the socket.

        If so, the client may or may not have received it. If not, it may have received a part of
        it, or all of it if the process was killed right after sending it.
        """
        return self.status is not None


def entry_of(record: Accepted) -> LedgerEntry:
    return LedgerEntry(
        task_id=record.task_id,
        digest=record.digest,
        prompt=record.prompt,
        accepted_at=record.at,
    )


def read_ledger(path: StrPath) -> tuple[LedgerEntry, ...]:
    """
    Return every paid submit in a simulator's state file, in order.

    Reads only the file, so the simulator may be running, closed or killed.

    Raises:
        OSError: The file does not exist or cannot be read.
        ValueError: The file is not a state file.
    """
    entries: dict[str, LedgerEntry] = {}
    for record in _records(Path(path), Path(path).read_bytes()):
        if isinstance(record, Accepted):
            entries[record.task_id] = entry_of(record)
        elif isinstance(record, Answered):
            entry = entries[record.task_id]
            entries[record.task_id] = attrs.evolve(entry, status=record.status)
    return tuple(entries.values())


def clock_of(records: Sequence[Record], speed: float) -> SimulatedClock:
    """Return a clock of this *speed* that continues the last run in *records*."""
    if not records:
        return SimulatedClock(speed)
    last = records[-1]
    opened = next(one for one in reversed(records) if isinstance(one, Opened))

    def now() -> float:
        # Even if the wall clock was set back.
        return last.instant + max(0.0, time.time() - last.at) * opened.speed

    return SimulatedClock(speed, opened.epoch, now)


def sent_until(records: Sequence[Record]) -> float:
    """Return the simulated second until which all webhooks were sent."""
    return max((one.instant for one in records if not isinstance(one, Opened)), default=0.0)


@attrs.define
class StateFile:
    """The file; without a path, nothing is kept."""

    path: Path | None
    # The size of the file as we left it.
    _whole_bytes: int = attrs.field(init=False, default=0)
    _torn_bytes: int = attrs.field(init=False, default=0)
    _file: BinaryIO | None = attrs.field(init=False, default=None)

    def read(self) -> list[Record]:
        """Return all records; empty if the file does not exist yet."""
        if self.path is None or not self.path.exists():
            return []
        data = self.path.read_bytes()
        records = list(_records(self.path, data))
        self._whole_bytes = len(_whole(data))
        self._torn_bytes = len(data) - self._whole_bytes
        return records

    def open(self) -> None:
        """Open the file for writing, and cut off a truncated last line."""
        if self.path is None:
            return
        file = self.path.open("ab")
        try:
            self._check_size(file)
        except RuntimeError:
            file.close()
            raise
        file.truncate(self._whole_bytes)
        self._torn_bytes = 0
        self._file = file

    def append(self, record: Record) -> None:
        """Write one line, and return when the operating system has it."""
        if self._file is None:
            return
        self._check_size(self._file)
        kind = type(record).__name__.lower()
        line = json.dumps({"kind": kind, **attrs.asdict(record)}).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._whole_bytes += len(line)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _check_size(self, file: BinaryIO) -> None:
        """Raise RuntimeError if another process has written to the file."""
        # Two writers would generate the same ids. Unlike a lock, the size works on every system.
        if os.fstat(file.fileno()).st_size != self._whole_bytes + self._torn_bytes:
            raise RuntimeError(
                f"{self.path} has changed: another simulator writes to it, or the disk was full; "
                "start a new simulator to continue with its contents"
            )


def _whole(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _records(path: Path, data: bytes) -> Iterator[Record]:
    # The first bytes of every state file, which may be truncated.
    beginning = b'{"kind": "opened"'
    if not beginning.startswith(data[: len(beginning)]):
        raise ValueError(f"{path} is not the state file of a simulator")
    for number, line in enumerate(_whole(data).splitlines(), start=1):
        try:
            fields = json.loads(line)
            record = KINDS[fields.pop("kind")](**fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: not a valid record") from error
        yield record
