import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.media import HEADS, MP4, PNG, UNKNOWN

from fuhu_runway import _media
from fuhu_runway._media import MAX_FILE_BYTES, address_or_path, content_type
from fuhu_runway.errors import UsageError
from fuhu_runway.journal import fingerprint, planned
from fuhu_runway.models import (
    ActOne,
    Generation,
    ImageToVideo,
    OfficialImageToVideo,
    OfficialVideoToVideo,
    VideoToVideo,
)

URL = "https://pictures.example/1.png"

Make = Callable[[Any], Generation]

FIELDS: list[tuple[str, str, Make]] = [
    ("image", "image", lambda value: ImageToVideo("a kitten", value)),
    ("last_image", "image", lambda value: ImageToVideo("a kitten", URL, last_image=value)),
    ("video", "video", lambda value: VideoToVideo(value, "oil")),
    ("image", "image", lambda value: ActOne(MP4, value)),
    ("character_video", "video", lambda value: ActOne(MP4, character_video=value)),
    ("image", "image", OfficialImageToVideo),
    ("video", "video", lambda value: OfficialVideoToVideo(value, "oil")),
]


@pytest.mark.parametrize(("kind", "heads"), HEADS.items(), ids=HEADS)
def test_the_type_is_read_from_the_bytes(kind: str, heads: list[bytes]) -> None:
    """Each known type is recognised by how its files begin."""
    assert [content_type(head) for head in heads] == [kind] * len(heads)


@pytest.mark.parametrize("head", UNKNOWN)
def test_other_bytes_have_no_type(head: bytes) -> None:
    """Bytes that begin like none of the known types are of no type."""
    assert content_type(head) is None


@pytest.mark.parametrize(("field", "kind", "make"), FIELDS)
def test_a_field_takes_a_path_and_bytes(tmp_path: Path, field: str, kind: str, make: Make) -> None:
    """Wherever a picture or a clip is taken, a path and bytes of that kind are, and stay as is."""
    good = PNG if kind == "image" else MP4
    path = tmp_path / "file.anything"
    path.write_bytes(good)
    for value in (good, path):
        assert getattr(make(value), field) == value


@pytest.mark.parametrize(("field", "kind", "make"), FIELDS)
def test_a_file_of_the_other_kind_is_refused(field: str, kind: str, make: Make) -> None:
    """A clip is no picture and a picture is no clip, and unknown bytes are neither."""
    other, found = (MP4, "video/mp4") if kind == "image" else (PNG, "image/png")
    with pytest.raises(UsageError, match=f"^{field} is a file of type {found}") as caught:
        make(other)
    assert caught.value.field == field
    noun = "picture" if kind == "image" else "clip"
    with pytest.raises(UsageError, match=f"^{field} is not a {noun} of a known type"):
        make(b"junk")


def test_a_path_must_be_a_file_that_can_be_read(tmp_path: Path) -> None:
    """A missing file, a folder and an impossible name are refused without the folder's name."""
    for name in ("missing.png", ".", "a\0b"):
        with pytest.raises(UsageError, match="cannot be read as a file") as caught:
            ImageToVideo("a kitten", tmp_path / name)
        assert caught.value.field == "image"
        assert str(tmp_path) not in str(caught.value)
        assert caught.value.__cause__ is None


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """A named pipe is refused at once, since opening it would wait."""
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    with pytest.raises(UsageError, match="it is not a regular file"):
        ImageToVideo("a kitten", path)


def test_a_tilde_is_not_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path with a tilde is the path of a folder of that name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "1.png").write_bytes(PNG)
    with pytest.raises(UsageError, match="a ~ is not expanded"):
        ImageToVideo("a kitten", Path("~/1.png"))


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """More than 64 MB is refused when the request is made, before all of it is read."""
    path = tmp_path / "1.mp4"
    with path.open("wb") as file:
        file.write(MP4)
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(UsageError, match=r"video has 67,108,865 bytes"):
        VideoToVideo(path, "oil")


def test_text_is_never_a_path(tmp_path: Path) -> None:
    """A string is an address or wrong, even if there is a file of that name."""
    path = tmp_path / "1.png"
    path.write_bytes(PNG)
    with pytest.raises(UsageError, match="image must be an http"):
        ImageToVideo("a kitten", str(path))


def test_a_repr_shows_no_address_no_bytes_and_no_folder(tmp_path: Path) -> None:
    """Bytes show their number, a path its name, and an address that there is one."""
    path = tmp_path / "marked.png"
    path.write_bytes(PNG)
    shown = repr(ImageToVideo("a kitten", path, last_image=PNG + bytes(12_000)))
    assert "<file marked.png>" in shown
    assert "<12,028 bytes>" in shown
    assert str(tmp_path) not in shown
    assert "image=<url>, last_image=None" in repr(ImageToVideo("a kitten", URL))


def test_a_request_with_a_local_file_pickles_and_compares(tmp_path: Path) -> None:
    """A request with a path or bytes is a value as any other."""
    path = tmp_path / "1.png"
    path.write_bytes(PNG)
    for value in (path, PNG):
        request = ImageToVideo("a kitten", value)
        assert pickle.loads(pickle.dumps(request)) == request  # noqa: S301 - our own
        assert hash(request) == hash(attrs.evolve(request))


def test_an_address_is_told_from_a_path_by_its_colon(tmp_path: Path) -> None:
    """In files and on the command line, text with :// or data: in front is an address."""
    for text in ("https://x.example/1.png", "htp://x", "data:image/png;base64,aGk="):
        assert address_or_path(text, tmp_path) == text
    assert address_or_path("a/1.png", tmp_path) == tmp_path / "a" / "1.png"
    assert address_or_path("/a/1.png", tmp_path) == Path("/a/1.png")
    assert address_or_path("~/1.png", tmp_path) == tmp_path / "~" / "1.png"


# The fingerprint


async def test_the_fingerprint_is_over_the_content(tmp_path: Path) -> None:
    """The same bytes at two paths, or given as bytes, are the same job; other bytes are not."""
    first, second = tmp_path / "1.png", tmp_path / "2.png"
    first.write_bytes(PNG)
    second.write_bytes(PNG)
    marks = {fingerprint(ImageToVideo("a kitten", value)) for value in (first, second, PNG)}
    assert len(marks) == 1
    other = fingerprint(ImageToVideo("a kitten", PNG + b"1"))
    assert other not in marks
    assert (await planned(ImageToVideo("a kitten", first))).fingerprint in marks


def test_the_fingerprint_of_addresses_is_what_it_was() -> None:
    """A journal that was written before local files were taken knows its jobs."""
    expected = "8387dcb6f1c719df619293fb35622da1"
    assert fingerprint(ImageToVideo("a kitten", URL))[:32] == expected


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    """A file that vanished after its request was made is a UsageError that names the field."""
    path = tmp_path / "1.png"
    path.write_bytes(PNG)
    request = ImageToVideo("a kitten", path)
    path.unlink()
    with pytest.raises(UsageError, match=r"image cannot be read as a file"):
        fingerprint(request)


def test_what_is_read_is_the_whole_file(tmp_path: Path) -> None:
    """Reading gives the bytes, their type and their SHA-256."""
    path = tmp_path / "1.png"
    path.write_bytes(PNG)
    field = attrs.fields(ImageToVideo).image
    for value in (path, PNG):
        local = _media.read(field, value)
        digest = hashlib.sha256(PNG).hexdigest()
        assert (local.data, local.content_type, local.digest) == (PNG, "image/png", digest)
