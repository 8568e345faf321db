"""What an unfinished file holds, who may write to it, and how it is renamed."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.harness import (
    LARGE,
    TAG,
    VIDEO,
    DownloadHarness,
    box,
    half,
    open_harness,
    range_of,
    rest,
    until_closed,
    whole,
)
from support.servers import raw_server, reply

from fuhu_runway import _part
from fuhu_runway._part import Part
from fuhu_runway._sinks import BUFFER_BYTES
from fuhu_runway.downloads import Progress
from fuhu_runway.errors import DownloadIncomplete, DownloadRefused, UsageError
from fuhu_runway.hooks import DownloadFailed, DownloadFinished
from fuhu_runway.paths import MAX_NAME_BYTES, check_folder, check_target, safe_name


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[DownloadHarness]:
    """Yield a downloader that sleeps without taking time."""
    async with open_harness(tmp_path) as opened:
        yield opened


async def test_a_clip_that_arrives_whole_has_no_note(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip of one buffer makes no second file; a larger one is noted until the last buffer."""
    noted: list[int] = []
    note = Part._write_note

    def counted(part: Part) -> None:
        noted.append(part.received)
        note(part)

    monkeypatch.setattr(Part, "_write_note", counted)
    async with raw_server(whole()) as server:
        await harness.save(server.url)
        assert noted == []
        harness.path.unlink()
    async with raw_server(whole(LARGE)) as server:
        await harness.save(server.url)
    assert noted
    assert BUFFER_BYTES <= noted[0] < len(LARGE)
    assert noted[-1] < len(LARGE)
    assert harness.path.read_bytes() == LARGE
    assert harness.is_clean()


async def test_a_note_with_another_digest_is_not_trusted(harness: DownloadHarness) -> None:
    """A power cut may leave a part of the right length with blocks of zeros in it."""
    harness.leave_part(VIDEO[:1000])
    harness.path.with_name("clip.mp4.part").write_bytes(VIDEO[:500] + bytes(500))
    async with raw_server(whole()) as server:
        await harness.save(server.url)
        assert range_of(server.requests[0]) == (None, None)
    assert harness.path.read_bytes() == VIDEO
    assert harness.is_clean()


async def test_bytes_after_those_in_the_note_are_requested_again(harness: DownloadHarness) -> None:
    """After a kill between a write and its note, the next process continues from the note."""
    harness.leave_part(VIDEO[:1000])
    with harness.path.with_name("clip.mp4.part").open("ab") as part:
        part.write(b"not noted yet")
    async with raw_server(rest(1000)) as server:
        await harness.save(server.url)
        assert range_of(server.requests[0]) == ("bytes=1000-", TAG)
    assert harness.path.read_bytes() == VIDEO


async def test_a_part_without_a_note_starts_from_zero(harness: DownloadHarness) -> None:
    """After a kill before the first note, the next process starts from the first byte."""
    harness.path.with_name("clip.mp4.part").write_bytes(VIDEO[:1000])
    async with raw_server(whole()) as server:
        await harness.save(server.url)
    assert range_of(server.requests[0]) == (None, None)
    assert harness.path.read_bytes() == VIDEO
    assert harness.is_clean()


@pytest.mark.parametrize(
    "note",
    [
        "",
        "{",
        "[]",
        "[" * 5000,
        '{"size": ' + "9" * 5000 + "}",
        '{"task_id": "t-1", "validator": "\\"v-1\\""}',
    ],
    ids=["empty", "truncated", "no object", "deep", "many digits", "no digest"],
)
async def test_an_unreadable_note_starts_from_zero(harness: DownloadHarness, note: str) -> None:
    """A part whose note is truncated or odd is not continued."""
    harness.leave_part(b"something else", note)
    async with raw_server(whole()) as server:
        await harness.save(server.url)
        assert range_of(server.requests[0]) == (None, None)
    assert harness.path.read_bytes() == VIDEO
    assert harness.is_clean()


@pytest.mark.parametrize(
    "changes",
    [
        {"task_id": "t-2"},
        {"task_id": ["t-1"]},
        {"validator": None},
        {"validator": {}},
        {"validator": '"v\n1"'},
        {"validator": '"' + "v" * 2000 + '"'},
        {"size": 699},
        {"size": 701},
        {"size": -1},
        {"size": 0},
        {"size": True},
        {"size": 700.0},
        {"size": 10**100},
        {"digest": "0" * 64},
        {"digest": None},
    ],
    ids=str,
)
async def test_a_note_with_one_odd_value_starts_from_zero(
    harness: DownloadHarness, changes: dict[str, Any]
) -> None:
    """A part of another task, of an unknown version, or of other bytes is not continued."""
    harness.leave_part(VIDEO[:700], **changes)
    async with raw_server(whole()) as server:
        await harness.save(server.url)
        assert range_of(server.requests[0]) == (None, None)
    assert harness.path.read_bytes() == VIDEO
    assert harness.is_clean()


@pytest.mark.parametrize("total", [None, "x", [1], {"1": 1}, -5, len(VIDEO)], ids=str)
async def test_an_odd_size_in_a_note_is_harmless(harness: DownloadHarness, total: object) -> None:
    """If it differs from the server's size, the file is requested from zero."""
    harness.leave_part(VIDEO[:700], total=total)
    async with raw_server(rest(700), whole()) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO


class MacLocks:
    """The locks of macOS, and its flush to the disk itself, which some disks do not know."""

    F_FULLFSYNC = 51
    LOCK_EX = LOCK_NB = 0

    def __init__(self, *, is_known: bool) -> None:
        self.is_known = is_known
        self.flushed: list[int] = []

    def flock(self, file: object, how: int) -> None:
        pass

    def fcntl(self, file: FileIO, command: int) -> None:
        assert command == 51
        self.flushed.append(os.fstat(file.fileno()).st_size)
        if not self.is_known:
            raise OSError(errno.ENOTSUP, "Operation not supported")


@pytest.mark.parametrize("is_known", [True, False])
async def test_macos_flushes_to_the_disk_itself(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    """Its fsync leaves bytes in the drive's memory, which a power cut loses."""
    locks = MacLocks(is_known=is_known)
    monkeypatch.setattr(_part, "LOCKS", locks)
    async with raw_server(whole()) as server:
        await harness.save(server.url)
    assert locks.flushed == [len(VIDEO)]
    assert harness.path.read_bytes() == VIDEO


@pytest.mark.parametrize(
    ("tail", "is_whole"),
    [
        (b"", True),
        (box(b"free", b"x" * 9), True),
        (b"\0\0\0\0mdat" + b"x" * 50, True),
        (b"\0\0\0\1mdat" + (26).to_bytes(8, "big") + b"x" * 10, True),
        (b"\0\0\0\1mdat" + (27).to_bytes(8, "big") + b"x" * 10, False),
        (b"\n", True),
        (b"\r\n\r\n", True),
        (b"garbage behind it", True),
        (b"\0" * 9, True),
        (box(b"free", b"x" * 9)[:-1], False),
    ],
    ids=[
        *("nothing", "box", "open end", "long box", "long box cut"),
        *("newline", "newlines", "garbage", "zeros", "box cut"),
    ],
)
async def test_without_a_length_the_boxes_show_whether_the_file_is_whole(
    harness: DownloadHarness, tail: bytes, is_whole: bool
) -> None:
    """Boxes of 32 and 64 bits, and one without an end, are followed to the end of the file."""
    async with raw_server(until_closed(VIDEO + tail), None, closes=True) as server:
        if is_whole:
            await harness.save(server.url)
        else:
            with pytest.raises(DownloadIncomplete) as caught:
                await harness.save(server.url)
            assert caught.value.received_bytes == len(VIDEO + tail)
    assert harness.path.exists() is is_whole


class FullDisk(FileIO):
    """A file on a disk with room for 500 bytes of a part."""

    def write(self, data: Any) -> int:
        if str(self.name).endswith(".part"):
            data = data[: max(0, 500 - self.tell())]
            if not data:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data) or 0


@pytest.mark.parametrize("video", [VIDEO, LARGE], ids=["at the end", "on the way"])
async def test_a_full_disk_ends_the_download(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch, video: bytes
) -> None:
    """The error is raised at once, and the bytes that were written are kept."""
    async with raw_server(whole(video), closes=True) as server:
        with monkeypatch.context() as patched:
            patched.setattr(_part, "FileIO", FullDisk)
            with pytest.raises(DownloadIncomplete, match="No space left") as caught:
                await harness.save(server.url)
        assert len(server.requests) == 1
    assert caught.value.received_bytes == 500
    assert harness.recorder.all(DownloadFailed) == [
        DownloadFailed("t-1", 500, "DownloadIncomplete")
    ]
    assert harness.part == video[:500]
    async with raw_server(rest(500, video)) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == video


async def test_a_note_that_cannot_be_written_is_skipped(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note is needed only after a break, so the download goes on without it."""

    class NoNotes(FileIO):
        def write(self, data: Any) -> int:
            if str(self.name).endswith(".json"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data) or 0

    monkeypatch.setattr(_part, "FileIO", NoNotes)
    async with raw_server(whole(LARGE)) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == LARGE
    assert harness.is_clean()


async def test_short_writes_are_continued(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part counts only the bytes that were written."""

    class Narrow(FileIO):
        def write(self, data: Any) -> int:
            return super().write(data[:700]) or 0

    monkeypatch.setattr(_part, "FileIO", Narrow)
    async with raw_server(whole()) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO


async def test_after_the_rename_nothing_fails(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be flushed and a note that cannot be removed do not matter."""
    flush = os.fsync

    def files_only(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        flush(handle)

    def denied(self: Path, *, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    harness.leave_part(VIDEO[:700])
    monkeypatch.setattr(os, "fsync", files_only)
    monkeypatch.setattr(Path, "unlink", denied)
    async with raw_server(rest(700)) as server:
        assert await harness.save(server.url) == harness.path
    assert harness.path.read_bytes() == VIDEO
    assert harness.recorder.events[-1] == DownloadFinished("t-1", len(VIDEO))


def test_a_rename_closes_the_file_only_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing releases the lock; only Windows cannot rename an open file."""
    rename = Path.replace
    part = Part.open(tmp_path / "clip.mp4", "t-1")
    part.write(VIDEO, len(VIDEO))

    def of_windows(self: Path, target: Path) -> Path:
        if not part.file.closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", of_windows)
    with pytest.raises(PermissionError):
        part.publish(overwrite=False)
    assert part.file.closed
    part.publish(overwrite=False)
    part.close()
    assert (tmp_path / "clip.mp4").read_bytes() == VIDEO
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_kill_after_the_rename_leaves_only_the_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed right after the rename leaves no note beside the clip."""
    rename = Path.replace
    part = Part.open(tmp_path / "clip.mp4", "t-1")
    part.write(VIDEO[:700], len(VIDEO))
    part.write(VIDEO[700:], len(VIDEO))
    assert (tmp_path / "clip.mp4.part.json").exists()

    def killed(self: Path, target: Path) -> Path:
        rename(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        part.publish(overwrite=False)
    part.file.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_file_is_replaced_only_if_that_is_allowed(tmp_path: Path) -> None:
    """A file created meanwhile under that name stays, unless *overwrite* is true."""
    path = tmp_path / "clip.mp4"
    part = Part.open(path, "t-1")
    part.write(VIDEO, len(VIDEO))
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        part.publish(overwrite=False)
    assert path.read_bytes() == b"mine"
    part.publish(overwrite=True)
    part.close()
    assert path.read_bytes() == VIDEO


async def test_an_empty_part_is_removed_on_windows(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows removes a file only once it is closed."""
    remove, refused = Path.unlink, [True]

    def held(self: Path, *, missing_ok: bool = False) -> None:
        if self.name.endswith(".part") and refused:
            refused.pop()
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        remove(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", held)
    async with raw_server(reply(b"", "451 No")) as server:
        with pytest.raises(DownloadRefused):
            await harness.save(server.url)
    assert refused == []
    assert list(harness.path.parent.iterdir()) == []


@pytest.mark.parametrize("is_replaced", [False, True], ids=["longer", "another file"])
async def test_a_part_changed_by_another_program_is_not_published(
    harness: DownloadHarness, is_replaced: bool
) -> None:
    """The file is measured before the rename, so that a broken one never gets the name."""
    part = harness.path.with_name("clip.mp4.part")

    def meddle(progress: Progress) -> None:
        if is_replaced:
            part.unlink(missing_ok=True)
        with part.open("ab") as file:
            file.write(bytes(20_000))

    async with raw_server(whole()) as server:
        with pytest.raises(DownloadIncomplete, match="another program"):
            await harness.save(server.url, on_progress=meddle)
    assert not harness.path.exists()


# Two downloads to one file


HOLDING = """
import fcntl, sys
with open(sys.argv[1], "a+b") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(part: Path) -> Iterator[None]:
    """Lock *part* in another process, as a download does."""
    program = [sys.executable, "-c", HOLDING, str(part)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        yield
        other.communicate()


async def test_a_part_of_another_process_is_left_alone(harness: DownloadHarness) -> None:
    """The second of two processes at one path is refused, and does not touch the part."""
    part = harness.path.with_name("clip.mp4.part")
    part.write_bytes(b"theirs")
    async with raw_server(whole()) as server:
        with another_process(part):
            with pytest.raises(UsageError, match="already being downloaded"):
                await harness.save(server.url)
            assert part.read_bytes() == b"theirs"
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO


async def test_a_part_renamed_before_it_was_locked_is_left_alone(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An opened part may be another download's finished clip by the time it is locked."""
    part, lock = harness.path.with_name("clip.mp4.part"), _part._lock

    def late(file: FileIO) -> None:
        part.write_bytes(VIDEO)
        part.rename(harness.path)
        lock(file)

    monkeypatch.setattr(_part, "_lock", late)
    with pytest.raises(UsageError, match="already being downloaded"):
        await harness.save("http://127.0.0.1/")
    assert harness.path.read_bytes() == VIDEO


async def test_a_note_of_a_download_that_just_ended_is_read(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its download continues, and its note does not stay beside the clip."""
    lock = _part._lock

    def late(file: FileIO) -> None:
        harness.leave_part(VIDEO[:700])
        lock(file)

    monkeypatch.setattr(_part, "_lock", late)
    async with raw_server(rest(700)) as server:
        await harness.save(server.url)
        assert range_of(server.requests[0]) == ("bytes=700-", TAG)
    assert harness.path.read_bytes() == VIDEO
    assert harness.is_clean()


async def test_a_disk_without_locks_is_used(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network disks have no locks."""

    def none(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(_part.LOCKS, "flock", none)
    async with raw_server(whole()) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO


@attrs.define
class WindowsLocks:
    """The locks of Windows, which are on bytes, even on bytes that do not exist."""

    is_taken: bool = False
    is_supported: bool = True
    LK_NBLCK: int = 2
    taken: list[tuple[int, int]] = attrs.field(factory=list)

    def locking(self, handle: int, mode: int, length: int) -> None:
        if self.is_taken:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if not self.is_supported:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.taken.append((os.lseek(handle, 0, os.SEEK_CUR), length))


async def test_a_disk_without_locks_is_used_on_windows(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clip begins with the first byte of the file, and not with the byte to lock."""
    monkeypatch.setattr(_part, "LOCKS", WindowsLocks(is_supported=False))
    async with raw_server(whole()) as server:
        await harness.save(server.url)
    assert harness.path.read_bytes() == VIDEO
    assert harness.is_clean()


async def test_windows_locks_a_byte(
    harness: DownloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No clip reaches that byte; if it is locked, the second download is refused."""
    locks = WindowsLocks(is_taken=True)
    monkeypatch.setattr(_part, "LOCKS", locks)
    async with raw_server(whole()) as server:
        with pytest.raises(UsageError, match="already being downloaded"):
            await harness.save(server.url)
        locks.is_taken = False
        await harness.save(server.url)
    assert locks.taken == [(2**31 - 2, 1)]
    assert harness.path.read_bytes() == VIDEO
    assert harness.is_clean()


PLANTED = {
    "a link": lambda place, victim: place.symlink_to(victim),
    "a link to nothing": lambda place, victim: place.symlink_to(victim.with_name("nothing")),
    "a second name": lambda place, victim: place.hardlink_to(victim),
    "a pipe": lambda place, victim: os.mkfifo(place),
    "a folder": lambda place, victim: place.mkdir(),
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED.keys())
@pytest.mark.parametrize("suffix", [".part", ".part.json"])
@pytest.mark.parametrize("has_flags", [True, False], ids=["here", "elsewhere"])
async def test_a_link_or_pipe_in_place_of_a_part_is_refused(
    harness: DownloadHarness,
    monkeypatch: pytest.MonkeyPatch,
    plant: Any,
    suffix: str,
    has_flags: bool,
) -> None:
    """It is not followed, written to or waited for, also on systems without the flags."""
    if not has_flags:
        monkeypatch.delattr(os, "O_NOFOLLOW")
    victim = harness.path.with_name("victim")
    victim.write_bytes(b"theirs")
    place = harness.path.with_name(f"clip.mp4{suffix}")
    plant(place, victim)
    with pytest.raises(UsageError) as caught:
        await harness.save("http://127.0.0.1/")
    assert caught.value.field == "path"
    assert (f"{place.name} is a link" in str(caught.value)) == place.is_symlink()
    with pytest.raises(UsageError):
        check_target(harness.path)
    assert harness.fetches == []
    assert victim.read_bytes() == b"theirs"
    assert not harness.path.with_name("nothing").exists()


async def test_a_link_in_place_of_a_note_is_not_written_to(harness: DownloadHarness) -> None:
    """The target of a link that appears during the download stays as it is."""
    victim = harness.path.with_name("victim")
    victim.write_bytes(b"theirs")

    def plant(progress: Progress) -> None:
        note = harness.path.with_name("clip.mp4.part.json")
        if not note.is_symlink():
            note.symlink_to(victim)

    async with raw_server(half(), rest(1000), closes=True) as server:
        await harness.save(server.url, on_progress=plant)
    assert harness.path.read_bytes() == VIDEO
    assert victim.read_bytes() == b"theirs"


# Names and targets

# Checks


def test_a_good_target_is_returned(tmp_path: Path) -> None:
    """The check of a path leaves no file behind."""
    path = tmp_path / "clip.mp4"
    assert check_target(path) == path
    assert list(tmp_path.iterdir()) == []


def test_a_check_leaves_an_earlier_part_alone(tmp_path: Path) -> None:
    """The bytes of an earlier download are still there afterwards."""
    part = tmp_path / "clip.mp4.part"
    part.write_bytes(b"part")
    check_target(tmp_path / "clip.mp4")
    assert part.read_bytes() == b"part"


def test_a_check_removes_the_files_of_a_killed_check(tmp_path: Path) -> None:
    """An empty part and an empty note hold nothing, and do not stay."""
    for name in ("clip.mp4.part", "clip.mp4.part.json"):
        (tmp_path / name).touch()
    check_target(tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_check_leaves_a_part_in_use_alone(tmp_path: Path) -> None:
    """A download that has no bytes yet keeps its file."""
    path = tmp_path / "clip.mp4"
    part = Part.open(path, "task-1")
    check_target(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4.part"]
    part.close()


def test_an_existing_file_may_be_overwritten_on_demand(tmp_path: Path) -> None:
    """Without *overwrite* it is a `UsageError`, with it the target is good."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match="already exists"):
        check_target(path)
    assert check_target(path, overwrite=True) == path
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("name", "happened"),
    [
        ("", "is a folder"),
        ("gone/clip.mp4", "no folder"),
        ("file/clip.mp4", "no folder"),
        ("x" * 300, "File name too long"),
        ("x" * 248, "File name too long"),
        ("nul\0.mp4", "null"),
    ],
    ids=["folder", "no folder", "a file", "too long", "too long for its note", "null"],
)
def test_a_bad_target_is_a_usage_error(tmp_path: Path, name: str, happened: str) -> None:
    """A wrong path raises before any money is spent, and no file is left."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=happened) as caught:
        check_target(tmp_path / name)
    assert caught.value.field == "path"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_target_that_cannot_be_written_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check tries to write in the folder."""

    def denied(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(UsageError, match="Permission denied"):
        check_target(tmp_path / "clip.mp4")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_pipe_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    """A device or a pipe is refused, with *overwrite* too."""
    path = tmp_path / "clip.mp4"
    os.mkfifo(path)
    with pytest.raises(UsageError, match=r"a device or a pipe|already exists"):
        check_target(path, overwrite=overwrite)
    assert path.is_fifo()


def test_a_broken_link_counts_as_a_file(tmp_path: Path) -> None:
    """It would be replaced like any file, so it is only with *overwrite*."""
    path = tmp_path / "clip.mp4"
    path.symlink_to(tmp_path / "nothing")
    with pytest.raises(UsageError, match="already exists"):
        check_target(path)
    assert check_target(path, overwrite=True) == path


def test_a_link_into_a_folder_that_may_not_be_searched_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder whose permissions hide its content raises a `UsageError` too."""
    path = tmp_path / "clip.mp4"
    path.symlink_to(tmp_path / "hidden" / "clip.mp4")

    def denied(self: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "exists", denied)
    with pytest.raises(UsageError, match="Permission denied"):
        check_target(path)


RESERVED = {"con", "prn", "aux", "nul"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}


@given(st.text())
@example("con")
@example("LPT1.jpeg")
@example("COM¹")
@example("aux.")
@example("../../etc/passwd")
@example("a" * 500)
@example("狐" * 500)
@example("\ud800\udfff")
@example(".")
@example("e\u0301" * 100)
def test_a_name_is_safe_everywhere(text: str) -> None:
    """A name has no separators or control characters, and is not reserved, hidden or too long."""
    name = safe_name(text)
    stem = name.removesuffix(".mp4")
    assert name.endswith(".mp4")
    assert stem
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert not set(name) & set('/\\:*?"<>|\0')
    assert name.isprintable()
    assert not stem.startswith((".", "-", " "))
    assert not stem.endswith((".", " "))
    assert name.partition(".")[0].lower() not in RESERVED


@given(st.text())
def test_a_name_is_stable(text: str) -> None:
    """The same text always has the same name, and a safe name stays as it is."""
    name = safe_name(text)
    assert safe_name(text) == name
    assert safe_name(name.removesuffix(".mp4")) == name


def test_names_read_like_their_text() -> None:
    """Letters of any script stay, and the rest becomes a dash."""
    assert safe_name("A kitten, 笑起来!") == "A-kitten,-笑起来.mp4"
    assert safe_name("???") == "clip.mp4"
    assert safe_name("nul") == "clip-nul.mp4"
    assert safe_name("poster", ".png") == "poster.png"


def test_long_names_differ() -> None:
    """Two texts that differ only beyond the cut have different names."""
    one, other = safe_name("a" * 200 + "1"), safe_name("a" * 200 + "2")
    assert one != other
    assert len(one) == len(other) == MAX_NAME_BYTES


def test_a_folder_is_created_if_its_parent_exists(tmp_path: Path) -> None:
    """An existing folder is accepted too, and the check leaves no file in it."""
    folder = tmp_path / "clips"
    assert check_folder(folder) == folder == check_folder(folder)
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_created_is_a_usage_error(tmp_path: Path) -> None:
    """The parent is missing, or a file is there: it raises before any money is spent."""
    (tmp_path / "file").touch()
    unfit = {"no/clips": "Nothing can be written", "file": "is not a folder"}
    for name, words in unfit.items():
        with pytest.raises(UsageError, match=words) as caught:
            check_folder(tmp_path / name)
        assert caught.value.money == "Nothing was sent or charged."
