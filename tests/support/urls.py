"""What is not a URL; each example that holds a text holds the mark."""

from typing import Any, Final

NOT_URLS: Final[list[Any]] = [
    "",
    "marked words",
    "marked.example/1.jpeg",
    "ftp://marked.example/1.jpeg",
    "https://",
    "https:///1.jpeg",
    "https://[marked/1.jpeg",
    "https://marked.example/1 2.jpeg",
    "https://marked.example/\ud800.jpeg",
    "file:///home/marked/1.jpeg",
    "https://marked.example:99999999/1.jpeg",
    "https://marked.example/1\x1f.jpeg",
    5,
]
