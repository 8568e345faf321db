"""Files that begin as pictures and clips do."""

from typing import Final

PNG: Final = b"\x89PNG\r\n\x1a\n" + bytes(20)
MP4: Final = b"\x00\x00\x00\x18ftypisom" + bytes(20)

HEADS: Final = {
    "image/png": [PNG],
    "image/jpeg": [b"\xff\xd8\xff\xe0" + bytes(9)],
    "image/gif": [b"GIF87a" + bytes(9), b"GIF89a" + bytes(9)],
    "image/webp": [b"RIFF\x10\x00\x00\x00WEBPVP8 "],
    "video/mp4": [MP4, b"\x00\x00\x00\x18ftypmp42" + bytes(9), b"\x00\x00\x00\x1cftypM4V "],
    "video/quicktime": [b"\x00\x00\x00\x14ftypqt  ", b"\x00\x00\x00\x08wide\x00\x00"],
    "video/webm": [b"\x1aE\xdf\xa3\x01\x00\x00\x00B\x82\x84webm"],
}
"""The beginnings of each type."""
UNKNOWN: Final = [
    *(b"", b"\x89PN", b"<svg/>", b"RIFF\x10\x00\x00\x00WAVEfmt ", b"\x1aE\xdf\xa3\x01matroska"),
    *(b"\x00\x00\x00\x1cftypavif", b"\x00\x00\x00\x18ftypheic", b"https://example.com/1.png"),
]
"""Beginnings that are none of these; AVIF, HEIC and Matroska are close to one."""
