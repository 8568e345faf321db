"""
JSON as gateways really send it.

`decode` reads what a strict parser refuses: other encodings, a byte order mark, control
characters, a PHP warning before the object, bytes behind it. Pure functions over bytes and text.
"""

import contextlib
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any, Final

MAX_BYTES: Final = 8 * 1024 * 1024
"""How much of a compressed answer is unpacked, in bytes; the rest is cut off."""
MAX_PACKINGS: Final = 2
"""How often a compressed answer may be compressed again: by a gateway and by its proxy."""
MAX_BROKEN: Final = 64 * 1024
"""How much of a compressed answer is unpacked that is broken, in bytes: it is done one by one."""
MAX_ATTEMPTS: Final = 100
"""How many braces of one body are tried as the start of a JSON value; a page has thousands."""

DECODER: Final = json.JSONDecoder(parse_constant=lambda _name: None)
"""Strict, and quick for it; NaN and Infinity, which JSON does not have, are read as nothing."""


def _whole_number(digits: str) -> int | None:
    return int(digits) if len(digits) < 400 else None  # Python refuses to read 4,300 digits


def _filled(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of *pairs*; of a key that is there twice, an empty value does not count."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if value or not found.get(key):
            found[key] = value
    return found


_LENIENT: Final = json.JSONDecoder(
    strict=False,
    parse_constant=lambda _name: None,
    parse_int=_whole_number,
    object_pairs_hook=_filled,
)
_OPENING: Final = re.compile(r"[{\[]")


def text_of(body: bytes) -> str:
    """Return *body* as text: unpacked if it is compressed, read as UTF-16 or UTF-32 if it is."""
    for _ in range(MAX_PACKINGS):
        if body[:2] in {b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"}:
            body = _unpacked(body)
    is_wide = body[:2] in {b"\xff\xfe", b"\xfe\xff"} or b"\0" in body.lstrip(b"\0")[:4]
    try:
        text = body.decode(json.detect_encoding(body) if is_wide else "utf-8")
    except UnicodeDecodeError:
        # Text in an encoding that is not Unicode spoils itself only, not the id beside it.
        text = (_inflated(body) or body).decode("utf-8", "replace")
    return text.lstrip("\ufeff\0")


def _inflated(packed: bytes) -> bytes:
    """Return what *packed* holds if all of it is a deflate stream, which no first bytes tell."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    with contextlib.suppress(zlib.error):
        found = unpacker.decompress(packed, MAX_BYTES)
        if unpacker.eof and not unpacker.unused_data:
            return found
    return b""


def _unpacked(packed: bytes) -> bytes:
    """Return what *packed* holds, up to the place where it is cut or broken."""
    unpacker, found = zlib.decompressobj(zlib.MAX_WBITS | 32), bytearray()
    try:
        found += unpacker.decompress(packed, MAX_BYTES)
    except zlib.error:
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
        with contextlib.suppress(zlib.error):
            for place in range(min(len(packed), MAX_BROKEN)):
                found += unpacker.decompress(packed[place : place + 1])
    return bytes(found)


def decode(body: bytes) -> Any:
    """
    Return the JSON value of *body*.

    Raises:
        ValueError: The body is not JSON, not even loosely.
        RecursionError: It is nested too deeply.
    """
    text = text_of(body)
    try:
        value = DECODER.decode(text)
    except ValueError:
        found = list(spans(text))
        # Junk behind the first value counts for nothing. Junk in front is a warning of the
        # gateway's own if one value is the rest of the body. Else it is JSON inside of a page, or
        # the whole of something that stands in a broken value.
        values = [value for start, _, value in found[:1] if not text[:start].strip()]
        values += [
            value
            for start, end, value in found[-1:]
            if "{" not in text[:start] and not text[end:].strip()
        ]
        if not values:
            raise
        value = values[0]
    return parsed(value) or value if isinstance(value, str) else value


def parsed(text: str) -> Any:
    """Return the JSON object or list that *text* holds; None if it holds none."""
    if not _OPENING.match(text.lstrip()):
        return None
    try:
        return _LENIENT.decode(text)
    except (ValueError, RecursionError):
        return None


def spans(text: str) -> Iterator[tuple[int, int, Any]]:
    """Yield start, end and value of the JSON objects and lists that stand in *text* in a row."""
    at = 0
    for _ in range(MAX_ATTEMPTS):
        opening = _OPENING.search(text, at)
        if opening is None:
            return
        at = opening.end()
        with contextlib.suppress(ValueError, RecursionError):
            value, at = _LENIENT.raw_decode(text, opening.start())
            yield opening.start(), at, value
