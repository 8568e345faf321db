"""
Read JSON as gateways really send it, and write our values as JSON. Pure functions.

`decode` reads what a strict parser refuses: other encodings, a byte order mark, control
characters, a PHP warning before the object, bytes after it. `json_fields` returns what may be
stored.
"""

import contextlib
import json
import re
import zlib
from collections.abc import Iterator
from datetime import datetime
from enum import Enum
from typing import Any, Final

import attrs

MAX_BYTES: Final = 8 * 1024 * 1024
"""How much of a compressed response is unpacked, in bytes; the rest is cut off."""
MAX_PACKINGS: Final = 2
"""How many layers of compression are unpacked: a gateway's own and its proxy's."""
MAX_BROKEN: Final = 64 * 1024
"""How much of a broken compressed response is read, in bytes: they are unpacked one by one."""
MAX_ATTEMPTS: Final = 100
"""How many braces of one body are tried as the start of a JSON value; a page has thousands."""

_STRICT: Final = json.JSONDecoder(parse_constant=lambda _name: None)
"""Reads NaN and Infinity, which JSON does not have, as None."""


def _filled(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of *pairs*; of a repeated key, the last value that is not empty counts."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if value or not found.get(key):
            found[key] = value
    return found


_LENIENT: Final = json.JSONDecoder(
    strict=False,
    parse_constant=lambda _name: None,
    # Python refuses to read 4,300 digits.
    parse_int=lambda digits: int(digits) if len(digits) < 400 else None,
    object_pairs_hook=_filled,
)
_OPENING: Final = re.compile(r"[{\[]")


def text_of(body: bytes) -> str:
    """Return *body* as text: unpacked if it is compressed, read as UTF-16 or UTF-32 if it is."""
    for _ in range(MAX_PACKINGS):
        if body[:2] not in {b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"}:
            break
        body = _unpacked(body)
    is_wide = body[:2] in {b"\xff\xfe", b"\xfe\xff"} or b"\0" in body.lstrip(b"\0")[:4]
    try:
        text = body.decode(json.detect_encoding(body) if is_wide else "utf-8")
    except UnicodeDecodeError:
        # It may be a deflate stream, which has no header. In text that is not Unicode, only what
        # cannot be read is lost, not the id beside it.
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        with contextlib.suppress(zlib.error):
            inflated = unpacker.decompress(body, MAX_BYTES)
            if unpacker.eof and not unpacker.unused_data:
                body = inflated
        text = body.decode("utf-8", "replace")
    return text.lstrip("\ufeff\0")


def _unpacked(packed: bytes) -> bytes:
    """Return what *packed* holds, up to the place where it is cut or broken."""
    unpacker, found = zlib.decompressobj(zlib.MAX_WBITS | 32), bytearray()
    try:
        return unpacker.decompress(packed, MAX_BYTES)
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
        value = _STRICT.decode(text)
    except ValueError:
        found = list(spans(text))
        # The first value counts if nothing precedes it. Otherwise the last one counts if nothing
        # follows it and no brace precedes it, as after a PHP warning. Anything else is JSON inside
        # a page, or a part of a broken value.
        if found and not text[: found[0][0]].strip():
            value = found[0][2]
        elif found and "{" not in text[: found[-1][0]] and not text[found[-1][1] :].strip():
            value = found[-1][2]
        else:
            raise
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
    """Yield start, end and value of each JSON object and list in *text*."""
    at = 0
    for _ in range(MAX_ATTEMPTS):
        opening = _OPENING.search(text, at)
        if opening is None:
            return
        at = opening.end()
        with contextlib.suppress(ValueError, RecursionError):
            value, at = _LENIENT.raw_decode(text, opening.start())
            yield opening.start(), at, value


def json_fields(instance: Any) -> dict[str, Any]:
    """Return the fields of an attrs object that its repr shows, as values that JSON has."""
    fields = attrs.fields(type(instance))
    return {one.name: _plain(getattr(instance, one.name)) for one in fields if one.repr is True}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value
