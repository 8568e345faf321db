"""Local pictures and clips: what the bytes are, how large they may be, and how they are shown."""

import hashlib
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import attrs

from ._fields import usage_error
from ._urls import is_reachable_address
from .errors import UsageError

T = TypeVar("T")

Media = str | bytes | Path
"""A picture or a clip: the address of a file, or a local file as its path or its bytes."""

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
"""The largest local file: no format takes a larger clip (api-facts 1.4), and it is in memory."""
DATA_URI_LENGTHS: Final = {"image": 5 * 1024 * 1024, "video": 16 * 1024 * 1024}
"""The longest data URI of a picture and of a clip, in characters (api-facts 11 row 24)."""
HEAD: Final = 64
"""How many of the first bytes tell the type of a file."""

_STARTS: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
# AVIF and HEIC are files of the same family, so the brand decides.
_MP4_BRANDS: Final = (b"iso", b"mp4", b"avc1", b"M4V", b"MSNV", b"dash", b"f4v", b"XAVC")
_QUICKTIME_BOXES: Final = (b"moov", b"mdat", b"wide")  # older files have no ftyp box

ENDINGS: Final = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/gif": ".gif",
    "image/webp": ".webp",
    "video/mp4": ".mp4",
    "video/quicktime": ".mov",
    "video/webm": ".webm",
}
"""Each type that can be told from the bytes, and the ending of its files."""
_KINDS: Final = {
    "image": ("picture", "PNG, JPEG, GIF or WebP"),
    "video": ("clip", "MP4, QuickTime or WebM"),
}


def content_type(head: bytes) -> str | None:
    """Return the type of the file that begins with *head*; None if it is not a known one."""
    box, brand = head[4:8], head[8:12]
    for start, found in _STARTS:
        if head.startswith(start):
            return found
    if head.startswith(b"RIFF") and brand == b"WEBP":
        return "image/webp"
    if box == b"ftyp" and brand.startswith(_MP4_BRANDS):
        return "video/mp4"
    if box in _QUICKTIME_BOXES or (box == b"ftyp" and brand == b"qt  "):
        return "video/quicktime"
    if head.startswith(b"\x1aE\xdf\xa3") and b"webm" in head[:HEAD]:
        return "video/webm"
    return None


# Fields of requests


def _field(kind: str, *, data_uris: bool = False) -> dict[str, Any]:
    """Return the settings of an attrs field for a picture ("image") or a clip ("video")."""
    metadata = {"media": kind, "data_uris": data_uris}
    return {"validator": check_field, "repr": shown, "metadata": metadata}


def check_field(_request: object, field: "attrs.Attribute[Any]", value: object) -> None:
    """Raise a `UsageError` unless *value* is an address, or a local file that can be sent."""
    if isinstance(value, bytes):
        _check_type(field, value[:HEAD], len(value))
    elif isinstance(value, Path):
        head, size = _opened(field, value, lambda file: (file.read(HEAD), file.seek(0, 2)))
        _check_type(field, head, size)
    elif value is None and field.default is None:
        return
    elif not is_reachable_address(value) and not _is_data_uri(field, value):
        raise refused(
            field,
            "must be an http(s) URL with a valid host and port, or a local file as a Path or bytes",
            "Use the URL of a file that the gateway can download, or a pathlib.Path or bytes.",
        )


def _is_data_uri(field: "attrs.Attribute[Any]", value: object) -> bool:
    start = f"data:{field.metadata['media']}/"
    is_start = isinstance(value, str) and value.isascii() and value.startswith(start)
    return is_start and field.metadata["data_uris"] is True


def _check_type(field: "attrs.Attribute[Any]", head: bytes, size: int) -> str:
    """Return the type of a local file, or raise a `UsageError`."""
    kind, found = field.metadata["media"], content_type(head)
    if size > MAX_FILE_BYTES:
        fault = f"has {size:,} bytes"
        raise refused(field, fault, f"Use a file of at most {MAX_FILE_BYTES:,} bytes.")
    if found is None or not found.startswith(kind):
        noun, types = _KINDS[kind]
        fault = f"is a file of type {found}" if found else f"is not a {noun} of a known type"
        raise refused(field, fault, f"Use {types}.")
    return found


def refused(field: "attrs.Attribute[Any]", fault: str, advice: str) -> UsageError:
    """Return the error for a picture or clip that cannot be used."""
    return usage_error(field.name, f"{field.name} {fault}.", advice)


def _opened(field: "attrs.Attribute[Any]", path: Path, look: Callable[[BinaryIO], T]) -> T:
    """Return what *look* finds in a file, or raise a `UsageError`."""
    reason = "it is not a regular file"
    try:
        if stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its other end
            with path.open("rb") as file:
                return look(file)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or type(exc).__name__
    # Outside the clause and without the path, which may be a prompt in the wrong column.
    advice = "Use a URL with http:// or https://, or a file that exists; a ~ is not expanded."
    raise refused(field, f"cannot be read as a file ({reason})", advice)


def shown(value: object) -> str:
    """Return a picture or clip as a repr shows it: no address, no bytes, no folder."""
    match value:
        case None:
            return "None"
        case bytes():
            return f"<{len(value):,} bytes>"
        case Path():
            return f"<file {value.name}>"
    return "<url>"


PICTURE: Final = _field("image")
CLIP: Final = _field("video")
DATA_PICTURE: Final = _field("image", data_uris=True)
"""The official format takes data URIs as well."""
DATA_CLIP: Final = _field("video", data_uris=True)


# Local files of requests


@attrs.frozen
class Local:
    """A local file as it was read."""

    data: bytes = attrs.field(repr=False)
    content_type: str
    #: SHA-256 of the bytes.
    digest: str


def local_fields(request: "attrs.AttrsInstance") -> "list[attrs.Attribute[Any]]":
    """Return the fields of *request* that hold a local file."""
    fields = [field for field in attrs.fields(type(request)) if "media" in field.metadata]
    return [one for one in fields if isinstance(getattr(request, one.name), bytes | Path)]


def read(field: "attrs.Attribute[Any]", value: bytes | Path) -> Local:
    """
    Return the bytes of a local file; blocks.

    Raises:
        UsageError: It cannot be read, or is not what it was when the request was made.
    """
    data = (
        value
        if isinstance(value, bytes)
        else _opened(field, value, lambda file: file.read(MAX_FILE_BYTES + 1))
    )
    found = _check_type(field, data[:HEAD], len(data))
    return Local(data, found, hashlib.sha256(data).hexdigest())


def address_or_path(text: str, folder: Path) -> str | Path:
    """
    Return *text* if it is an address, else the path that it names in *folder*.

    With `://`, or with `data:` in front, it is an address, right or wrong; a `~` is a name.
    """
    return text if "://" in text or text.startswith("data:") else folder / text
