"""Takes secrets out of text that is about to be shown: keys, prompts, URLs and IP addresses."""

import ipaddress
import json
import re
from collections.abc import Iterable
from typing import Any, Final

HIDDEN: Final = "<hidden>"

_PATTERNS: Final = (
    (re.compile(r"(?i)\bdata:[\w.+-]+/[\w.+-]+[;,]\S*"), "<data>"),
    (re.compile(r"(?i)\b[a-z][a-z0-9+.-]*://[^\s\"'<>]+"), "<url>"),
    (re.compile(r"(?i)([?&][\w.-]+=)[^\s&\"'<>]+"), r"\1<hidden>"),
    # No \b on the left: Chinese text runs into the key without a space.
    (re.compile(r"(?<![A-Za-z0-9])sk-[\w*.-]+", re.ASCII), "<key>"),
    (re.compile(r"(?i)(?<![a-z])bearer\s+\S+"), "<key>"),
    (re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?:/\d+)?(?![\d.]*\d)"), "<ip>"),
)
_MAYBE_IPV6: Final = re.compile(r"(?<![\w:])[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?:/\d+)?")
_JSON_TEXT: Final = re.compile(r'"(?:[^"\\]|\\.)*(?:"|$)(?P<key>\s*:)?', re.DOTALL)
_PLAIN_KEY: Final = re.compile(r'"[A-Za-z_][A-Za-z0-9_.-]{0,39}"')


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Give *text* without the *secrets*, and without anything shaped like a secret."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = re.sub(_whole(secret), HIDDEN, text)
    for pattern, name in _PATTERNS:
        text = pattern.sub(name, text)
    return _MAYBE_IPV6.sub(_hide_ipv6, text)


def outline(value: Any, depth: int = 4) -> str:
    """Give the shape of a JSON value: its keys, and the kind of each value in place of it."""
    if isinstance(value, dict) and depth:
        shown = [f"{_key(key)}: {outline(item, depth - 1)}" for key, item in value.items()]
        return "{" + ", ".join(shown[:20]) + (", …" if len(shown) > 20 else "") + "}"
    if isinstance(value, list) and depth:
        return f"[{len(value)} x {outline(value[0], depth - 1)}]" if value else "[]"
    return "null" if value is None else type(value).__name__


def outline_text(text: str, at_most: int = 200) -> str:
    """Give the start of a text that is no JSON, with whatever stands in quotes hidden."""
    return redact(_JSON_TEXT.sub(_hide_text, text[: at_most * 10]))[:at_most]


def _whole(secret: str) -> str:
    # A prompt of one letter is no secret inside another word, and hiding it would eat the text.
    escaped = re.escape(secret)
    return rf"(?<!\w){escaped}(?!\w)" if len(secret) == 1 else escaped


def _hide_ipv6(match: re.Match[str]) -> str:
    address = match[0].partition("/")[0].rstrip(".")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return match[0]
    return "<ip>"


def _hide_text(match: re.Match[str]) -> str:
    return match[0] if match["key"] and _PLAIN_KEY.match(match[0]) else '"…"'


def _key(key: str) -> str:
    return key if _PLAIN_KEY.fullmatch(json.dumps(key)) else "…"
