"""Names for clips, and checks of where they are to be saved."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuhu_runway._part import Part
from fuhu_runway.errors import UsageError
from fuhu_runway.paths import MAX_NAME_BYTES, check_folder, check_target, safe_name

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


def test_a_folder_that_may_not_be_searched_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder whose permissions hide its content raises a `UsageError` too."""

    def denied(self: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "is_dir", denied)
    with pytest.raises(UsageError, match="Permission denied"):
        check_target(tmp_path / "clip.mp4")


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
    for folder in (tmp_path / "no" / "clips", tmp_path / "file"):
        with pytest.raises(UsageError, match="Nothing can be written") as caught:
            check_folder(folder)
        assert caught.value.money == "Nothing was sent or charged."
