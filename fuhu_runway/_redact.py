"""Takes secrets out of text that is about to be shown: keys, prompts, URLs and IP addresses."""

import ipaddress
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

HIDDEN: Final = "<hidden>"

# No \b on the left: Chinese text runs into what follows without a space.
_PATTERNS: Final = (
    (re.compile(r"(?i)(?<![a-z])data:[\w.+-]+/[\w.+-]+[;,]\S*"), "<data>"),
    # The scheme's length has a limit, so that long texts without one are read in linear time.
    # PHP escapes slashes in JSON.
    (re.compile(r"(?i)[a-z][a-z0-9+.-]{0,30}:\\?/\\?/[^\s\"'<>]+"), "<url>"),
    (re.compile(r"(?i)[?&][\w.-]+=([^\s&\"'<>]+)"), HIDDEN),
    (re.compile(r"(?<![A-Za-z0-9])sk-[\w*.-]+", re.ASCII), "<key>"),
    (re.compile(r"(?i)(?<![a-z])bearer\s+\S+"), "<key>"),
    (re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?:/\d+)?(?![\d.]*\d)"), "<ip>"),
)
# It may follow a label's colon, as in "ip:2001:db8::1".
_MAYBE_IPV6: Final = re.compile(
    r"(?:(?<![A-Za-z0-9_:])|(?<=[^0-9:]:))[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?:/\d+)?"
)
# It may be cut anywhere, also behind a backslash.
_JSON_TEXT: Final = re.compile(r'"(?:[^"\\]|\\.)*\\?(?:"|$)(?P<key>\s*:)?', re.DOTALL)
_PLAIN_KEY: Final = re.compile(r'"[A-Za-z_][A-Za-z0-9_.-]{0,39}"')


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Give *text* without the *secrets*, and without anything shaped like a secret."""
    shown: list[str] = []
    done = 0
    # All is looked for in the text as it came, so that hiding one part cannot disguise another.
    for start, end, name in sorted(_found(text, secrets), key=lambda part: (part[0], -part[1])):
        if start >= done:
            shown += text[done:start], name
        done = max(done, end)
    return "".join(shown) + text[done:]


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


def _found(text: str, secrets: Iterable[str]) -> Iterator[tuple[int, int, str]]:
    """Give where each part to be hidden begins and ends, and what to show in its place."""
    for form in {form for secret in secrets for form in _forms(secret)}:
        # What is longer than the text is not in it, and a whole picture makes a slow pattern.
        if 0 < len(form) <= len(text):
            found = re.finditer(_whole(form), text, re.IGNORECASE)
            yield from ((*match.span(), HIDDEN) for match in found)
    for pattern, name in _PATTERNS:
        # Where a pattern has a group, only that is the secret.
        yield from ((*match.span(match.lastindex or 0), name) for match in pattern.finditer(text))
    for match in _MAYBE_IPV6.finditer(text):
        if _is_ipv6_in_text(match[0]):
            yield *match.span(), "<ip>"


def _forms(secret: str) -> set[str]:
    """Give the ways in which a gateway may quote *secret*: trimmed, folded, as a part of JSON."""
    trimmed = secret.strip()
    in_json = [json.dumps(trimmed, ensure_ascii=escaped)[1:-1] for escaped in (True, False)]
    in_php = [text.replace("/", r"\/") for text in in_json]
    return {" ".join(trimmed.split()), *in_json, *in_php}


def _whole(form: str) -> str:
    escaped = r"\s+".join(map(re.escape, form.split()))
    # A prompt of one letter is no secret inside another word, and hiding it would eat the text.
    return rf"(?<!\w){escaped}(?!\w)" if len(form) == 1 else escaped


def _is_ipv6_in_text(text: str) -> bool:
    address = text.partition("/")[0].rstrip(".")
    # A colon beside it may be punctuation, as in "2001:db8::1: too many requests".
    return _is_ipv6(address) or _is_ipv6(address.strip(":"))


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _hide_text(match: re.Match[str]) -> str:
    return match[0] if match["key"] and _PLAIN_KEY.match(match[0]) else '"…"'


def _key(key: str) -> str:
    return key if _PLAIN_KEY.fullmatch(json.dumps(key)) else "…"
