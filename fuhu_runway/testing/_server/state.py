"""
The state file: a line of JSON for each thing that happened, which outlives the process.

Rule 1. A line is valid only if it ends with a newline. A truncated last line is discarded.
Rule 2. A task is written before its answer is sent, the answer after that. So each task that a
    client can know of is in the file, and an answer in the file has left the process.
Rule 3. Lines are handed to the system before they take effect. They survive the death of the
    process, `kill -9` included, and not that of the machine.
Rule 4. Lines are only ever added, by one simulator at a time.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import attrs

StrPath = str | os.PathLike[str]


@attrs.frozen(kw_only=True)
class Record:
    """One line of the file: the fields of its kind, and the kind itself as `"kind"`."""

    #: Unix seconds, by the wall clock.
    at: float
    #: Simulated seconds since the gateway first opened, in whichever process.
    instant: float


@attrs.frozen(kw_only=True)
class Opened(Record):
    """The gateway opens, and from here on its time runs at this speed."""

    speed: float
    #: The Unix second at which the story begins.
    epoch: float


@attrs.frozen(kw_only=True)
class Closed(Record):
    """The gateway closes in good order."""


@attrs.frozen(kw_only=True)
class Accepted(Record):
    """A task exists from now on, and is paid for."""

    task_id: str
    #: The name of the key, which is not the key.
    account: str
    #: The route that took it in.
    path: str
    action: str
    prompt: str = attrs.field(repr=False)
    #: The request's body, each character a byte; a key that stood in it is left out.
    body: str = attrs.field(repr=False)
    #: SHA-256 of the body as it came, in hex.
    digest: str
    points: float
    #: How many ids were made before this one.
    position: int
    #: The signature of its links.
    token: str = attrs.field(repr=False)
    #: In simulated seconds; None is never.
    link_expires_at: float | None
    #: How long it takes, how it ends, and what it tells on the way.
    script: Mapping[str, Any] = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Answered(Record):
    """The whole answer to a task's submit was handed to the socket."""

    task_id: str
    #: Its HTTP status; a fault may make it any.
    status: int


@attrs.frozen(kw_only=True)
class Filed(Record):
    """A task's file is another one, or stands behind another link."""

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
    """What became of one paid submit, as the gateway knows it."""

    #: The task.
    task_id: str
    #: SHA-256 of the request's body, in hex: the same for two submits of the same bytes.
    digest: str
    #: What was asked for.
    prompt: str = attrs.field(repr=False)
    #: When it was accepted, in Unix seconds by the wall clock.
    accepted_at: float
    #: The HTTP status of the answer that was handed whole to the socket; None if none was.
    status: int | None = None

    @property
    def answered(self) -> bool:
        """
        Return whether the whole answer was handed to the socket.

        If so, the client may have got it or not. If not, it can have got a part of it; all of it
        only if the process was killed in the instant between the socket and the ledger.
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
    Return every paid submit in a simulator's state file, in the order they were accepted.

    Reads the file alone, whether its simulator runs, was closed or was killed.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It is not the state of a simulator.
    """
    entries: dict[str, LedgerEntry] = {}
    for record in _records(Path(path), Path(path).read_bytes()):
        if isinstance(record, Accepted):
            entries[record.task_id] = entry_of(record)
        elif isinstance(record, Answered):
            entry = entries[record.task_id]
            entries[record.task_id] = attrs.evolve(entry, status=record.status)
    return tuple(entries.values())


@attrs.frozen(kw_only=True)
class Past:
    """Where the runs before this one got to. By default there were none."""

    #: The Unix second at which the story began.
    epoch: float = attrs.field(factory=time.time)
    #: Simulated seconds per second. Where nothing ever ran, no time passes.
    speed: float = 0.0
    #: When the last thing happened: Unix seconds, and simulated ones.
    at: float = 0.0
    instant: float = 0.0
    #: Up to when all webhooks were sent, at the least; in simulated seconds.
    sent_until: float = 0.0

    def now(self) -> float:
        """Return the simulated second by the wall clock while none runs; it never goes back."""
        return self.instant + max(0.0, time.time() - self.at) * self.speed


def past_of(records: Sequence[Record]) -> Past:
    """Return when the runs in *records* were; time goes on as it went in the last of them."""
    if not records:
        return Past()
    opened = next(one for one in reversed(records) if isinstance(one, Opened))
    instants = (one.instant for one in records if not isinstance(one, Opened))
    return Past(
        epoch=opened.epoch,
        speed=opened.speed,
        at=records[-1].at,
        instant=records[-1].instant,
        sent_until=max(instants, default=0.0),
    )


@attrs.define
class StateFile:
    """The file, or without a path nothing at all."""

    path: Path | None
    # What is in it, as far as we know.
    _whole_bytes: int = attrs.field(init=False, default=0)
    _torn_bytes: int = attrs.field(init=False, default=0)
    _file: BinaryIO | None = attrs.field(init=False, default=None)

    def read(self) -> list[Record]:
        """Return all records; the file need not exist yet."""
        if self.path is None or not self.path.exists():
            return []
        data = self.path.read_bytes()
        records = list(_records(self.path, data))
        self._whole_bytes = len(_whole(data))
        self._torn_bytes = len(data) - self._whole_bytes
        return records

    def open(self) -> None:
        """Begin to write where the last whole line ends."""
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
        """Write one line; the system has it when this returns."""
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
        # Two writers would give out the same ids, and a size is what every system can tell.
        if os.fstat(file.fileno()).st_size != self._whole_bytes + self._torn_bytes:
            raise RuntimeError(
                f"{self.path} is not as this simulator left it: another one writes to it, or "
                "the disk was full; a new simulator goes on with what it holds"
            )


def _whole(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _records(path: Path, data: bytes) -> Iterator[Record]:
    # What every such file begins with, or as much of it as was written.
    beginning = b'{"kind": "opened"'
    if not beginning.startswith(data[: len(beginning)]):
        raise ValueError(f"{path} is not the state of a simulator")
    for number, line in enumerate(_whole(data).splitlines(), start=1):
        try:
            fields = json.loads(line)
            record = KINDS[fields.pop("kind")](**fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: not a line of a simulator") from error
        yield record
