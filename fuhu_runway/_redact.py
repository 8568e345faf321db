"""Remove secrets from text before it is shown: keys, prompts, URLs and IP addresses."""

import html
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

from ._urls import is_ip_address

HIDDEN: Final = "<hidden>"

MAX_SHOWN: Final = 4096
"""How much of a text is read and shown, in characters; more is slow, and fills the log."""
MAX_SECRET: Final = 32_768
"""How much of a secret is searched for, in characters: more than any prompt; data URIs are cut."""
RUN: Final = 20
"""From this length on, in characters, a part of a secret is as secret as the whole."""
MIN_START: Final = 5
"""How much of a secret's start is hidden where an ellipsis or the text's end cuts it off."""

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
# An address may follow a label's colon, as in "ip:2001:db8::1".
_MAYBE_IPV6: Final = re.compile(
    r"(?:(?<![A-Za-z0-9_:])|(?<=[^0-9:]:))[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?:/\d+)?"
)
# The text may be cut anywhere, even after a backslash.
_JSON_TEXT: Final = re.compile(r'"(?P<text>(?:[^"\\]|\\.)*)\\?(?:"|$)(?P<colon>\s*:)?', re.DOTALL)
PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,39}")
"""The name of a JSON key, a column or a field; anything else may be a prompt."""

_CODE: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_CUT_OFF: Final = re.compile(r"\.{2,}|…|$")
# Each is undone at any depth: a text may have been escaped several times on its way. Possessive,
# so that a text of backslashes is read in linear time.
_ESCAPES: Final = r"""(?P<utf16>(?:\\++u[0-9a-f]{4})+)
    |(?P<percent>(?:%(?:25)*[0-9a-f]{2})+)
    |(?P<entity>&(?:amp;)*(?:\#[0-9]{1,7}|\#x[0-9a-f]{1,6}|[a-z]{2,8});)
    |(?P<backslash>\\++["'/bfnrt]?)"""
_ESCAPE: Final = re.compile(_ESCAPES, re.IGNORECASE | re.VERBOSE)
_UNIT: Final = re.compile(f"{_ESCAPES}|.", re.IGNORECASE | re.DOTALL | re.VERBOSE)
_SPACE: Final = re.compile(r"[\s+]+")
_ESCAPED: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """
    Return *text* without the *secrets*, and without anything shaped like a secret.

    A gateway may quote a secret in part, cut off or escaped: each is hidden. A long text is cut.
    """
    if len(text) > MAX_SHOWN:
        text = f"{text[:MAX_SHOWN]}…"
    return _replaced(text, [*_quotes(text, secrets), *_shapes(text)])


def without(text: str, secrets: Iterable[str]) -> str:
    """Return *text* without what it quotes of the *secrets*, to search it for words."""
    text = text[:MAX_SHOWN]
    return _replaced(text, [(start, end, " ") for start, end, _ in _quotes(text, secrets)])


OPEN_KEYS: Final = frozenset({"model", "ratio", "type"})
"""Fields whose text is no secret; without them, an error about a model would not name it."""


def texts_in(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value that may be a secret."""
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in OPEN_KEYS:
                yield from texts_in(item)


def shown_code(code: str | None, secrets: Iterable[str] = ()) -> str | None:
    """Return a gateway's code if it looks like one and quotes none of the *secrets*, else None."""
    if code is None or not _CODE.fullmatch(code) or redact(code, secrets) != code:
        return None
    return code


def outline(value: Any, depth: int = 4) -> str:
    """Return the shape of a JSON value: its keys, and the type of each value in place of it."""
    if isinstance(value, dict) and depth:
        shown = [
            f"{key if PLAIN_NAME.fullmatch(key) else '…'}: {outline(item, depth - 1)}"
            for key, item in value.items()
        ]
        return "{" + ", ".join(shown[:20]) + (", …" if len(shown) > 20 else "") + "}"
    if isinstance(value, list) and depth:
        return f"[{len(value)} x {outline(value[0], depth - 1)}]" if value else "[]"
    return "null" if value is None else type(value).__name__


def outline_text(text: str, at_most: int = 200) -> str:
    """Return the start of a text that is not JSON, without any quoted text but keys."""

    def hide(quoted: re.Match[str]) -> str:
        return quoted[0] if quoted["colon"] and PLAIN_NAME.fullmatch(quoted["text"]) else '"…"'

    return redact(_JSON_TEXT.sub(hide, text[: at_most * 10]))[:at_most]


def _replaced(text: str, parts: list[tuple[int, int, str]]) -> str:
    shown: list[str] = []
    done = 0
    # All were found in the original text, so that hiding one part cannot disguise another.
    for start, end, name in sorted(parts, key=lambda part: (part[0], -part[1])):
        if start >= done:
            shown += text[done:start], name
        done = max(done, end)
    return "".join(shown) + text[done:]


def _shapes(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield each part that looks like a secret, and what to show in its place."""
    for pattern, name in _PATTERNS:
        # If a pattern has a group, only that is the secret.
        yield from ((*match.span(match.lastindex or 0), name) for match in pattern.finditer(text))
    for match in _MAYBE_IPV6.finditer(text):
        address = match[0].partition("/")[0].rstrip(".")
        # A colon next to it may be punctuation, as in "2001:db8::1: too many requests".
        if is_ip_address(address) or is_ip_address(address.strip(":")):
            yield *match.span(), "<ip>"


def _quotes(text: str, secrets: Iterable[str]) -> Iterator[tuple[int, int, str]]:
    """Yield each part of *text* that quotes a secret, and what to show in its place."""
    said, places = _unescaped(text)
    halves = {said[at : at + RUN // 2] for at in range(len(said))}
    for secret in secrets:
        plain = _plain(secret.strip()[:MAX_SECRET]).strip()
        # Some gateways omit the prefix of a key.
        bare = plain.removeprefix("sk-") if len(plain) >= RUN // 2 else plain
        for form in {plain, bare} - {""}:
            for start, end in _found(form, said, halves):
                yield places[start][0], places[end - 1][1], HIDDEN


def _found(secret: str, said: str, halves: AbstractSet[str]) -> Iterator[tuple[int, int]]:
    """Yield where a secret is in a text: as a whole, a long run of it, or its start, cut off."""
    if len(secret) < RUN:
        whole = re.escape(secret)
        # A prompt of one letter is not a secret inside another word; hiding it would ruin the text.
        whole = rf"(?<!\w){whole}(?!\w)" if len(secret) == 1 else whole
        yield from (match.span() for match in re.finditer(whole, said))
    else:
        # Each run contains one of these. There may be thousands of secrets: the prompts of all
        # tasks.
        parts = (secret[at : at + RUN // 2] for at in range(0, len(secret), RUN // 2))
        if not halves.isdisjoint(parts):
            runs = {secret[at : at + RUN] for at in range(len(secret) - RUN + 1)}
            for at in range(len(said) - RUN + 1):
                if said[at : at + RUN] in runs:
                    yield at, at + RUN
    for cut in _CUT_OFF.finditer(said):
        end = cut.start()
        for length in range(min(end, len(secret), RUN), MIN_START - 1, -1):
            if said.startswith(secret[:length], end - length):
                yield end - length, end
                break


def _unescaped(text: str) -> tuple[str, list[tuple[int, int]]]:
    """
    Return *text* unescaped and in lower case, and the place in *text* of each of its characters.

    JSON, HTML and URL escapes are undone however often they were applied, and any run of space
    is one space. Prompts and responses are compared in this form.
    """
    signs: list[str] = []
    places: list[tuple[int, int]] = []
    for unit in _UNIT.finditer(text):
        for sign in _lower(_meaning(unit)):
            # A URL's query may spell a space with a plus.
            plain = " " if sign == "+" or sign.isspace() else sign
            if plain == " " and signs and signs[-1] == " ":
                places[-1] = (places[-1][0], unit.end())
            else:
                signs.append(plain)
                places.append(unit.span())
    return "".join(signs), places


def _plain(text: str) -> str:
    """Return only the first of what `_unescaped` returns, which takes a tenth of the time."""
    return _SPACE.sub(" ", _lower(_ESCAPE.sub(_meaning, text)))


def _lower(text: str) -> str:
    # Each character on its own: whether it was escaped, and where it stands, must not matter.
    return "".join(map(str.lower, text))


def _meaning(unit: re.Match[str]) -> str:
    found = unit[0]
    match unit.lastgroup:
        case "utf16":
            digits = re.findall(r"(?i)[0-9a-f]{4}", found)
            return bytes.fromhex("".join(digits)).decode("utf-16-be", "replace")
        case "percent":
            digits = re.findall(r"(?i)%(?:25)*([0-9a-f]{2})", found)
            return bytes.fromhex("".join(digits)).decode("utf-8", "replace")
        case "entity":
            return html.unescape(re.sub(r"(?i)&(?:amp;)*", "&", found))
        case "backslash":
            # Their number has no meaning: it depends on how often the text was escaped.
            return _ESCAPED.get(found[-1], found[-1].strip("\\"))
        case _:
            return found
