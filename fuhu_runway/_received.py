"""
What has arrived of a clip: how many bytes, of which version of the file, and whether it is cut.

Sizes are in bytes.
"""

import hashlib
import re
from typing import Any, Final

import attrs

HEAD_BYTES: Final = 8
"""The length of a box's head; the start of a file that shows whether it is an MP4."""

BOXES: Final = frozenset(
    (
        b"ftyp styp pdin moov moof mdat mfra sidx ssix emsg prft meta free skip wide uuid pnot PICT"
    ).split()
)
"""The boxes at the top level of an MP4 file (ISO/IEC 14496-12, and QuickTime's own)."""

CONTENT_BOXES: Final = frozenset((b"moov", b"moof", b"mdat"))
"""The boxes with pictures, or with their index: a file without any has only its head."""


@attrs.define(eq=False)
class Boxes:
    """The boxes of an MP4 file, followed as its bytes arrive."""

    #: How many bytes of the last box are missing; a file that ends now is cut.
    missing: int = 0
    _has_content: bool = False
    _head: bytes = b""
    _has_more: bool = True

    @property
    def is_cut(self) -> bool:
        """Whether a file that ends now is not a whole clip, as far as its boxes are known."""
        return self.missing > 0 or (self._has_more and not self._has_content)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Follow the next bytes of the file."""
        rest = memoryview(data)
        while rest and self._has_more:
            if self.missing:
                skipped = min(self.missing, len(rest))
                self.missing -= skipped
                rest = rest[skipped:]
                continue
            self._head += rest[:1]
            rest = rest[1:]
            size, length = HEAD_BYTES, int.from_bytes(self._head[:4])
            if length == 1:  # the length is in the 64 bits behind the head
                size, length = 2 * HEAD_BYTES, int.from_bytes(self._head[HEAD_BYTES:])
            if len(self._head) == size:
                # Without a length, a box goes on to the end. Players ignore what is behind the
                # last box.
                self._has_more = self._head[4:8] in BOXES and length >= size
                self._has_content |= self._head[4:8] in CONTENT_BOXES
                self.missing = length - size if self._has_more else 0
                self._head = b""


@attrs.define(eq=False)
class Received:
    """What has arrived so far of one version of a file."""

    received: int = attrs.field(init=False, default=0)
    digest: Any = attrs.field(init=False, factory=hashlib.sha256)
    boxes: Boxes = attrs.field(init=False, factory=Boxes)
    #: The version of the whole file, as in If-Range, and its size; None if unknown.
    validator: str | None = attrs.field(init=False, default=None)
    total: int | None = attrs.field(init=False, default=None)
    #: Whether it is whole and saved under its name.
    is_published: bool = attrs.field(init=False, default=False)

    def take(self, data: bytes | bytearray | memoryview) -> None:
        """Count the next bytes of the file."""
        self.received += len(data)
        self.digest.update(data)
        self.boxes.feed(data)

    def begin(self, validator: str | None = None, total: int | None = None) -> None:
        """Start from zero with this version of the file."""
        self.received, self.digest, self.boxes = 0, hashlib.sha256(), Boxes()
        self.validator, self.total = validator, total

    def range_headers(self) -> dict[str, str]:
        """Return the headers that request the rest of the same file, or else the whole."""
        if not self.received or self.validator is None:
            return {}
        return {"Range": f"bytes={self.received}-", "If-Range": self.validator}

    def continues(self, start: int | None, validator: str | None, total: int | None) -> bool:
        """Return whether a body that begins at *start* is the rest of this very file."""
        return (
            start == self.received
            and validator in {None, self.validator}
            and (total is None or self.total in {None, total})
        )


def is_validator(value: object) -> bool:
    """Return whether If-Range may be sent with *value*: a strong ETag, or a date."""
    return isinstance(value, str) and bool(
        re.fullmatch(r'"[!-~]{0,1000}"|\w{3}, [ -~]{1,40}', value)
    )
