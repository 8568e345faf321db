"""Secrets stay hidden in any surrounding text."""

import html
import ipaddress
import json
from collections.abc import Callable
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st
from properties.strategies import ADDRESSES, MARKED, PROMPTS, nested, texts

from fuhu_runway import _redact
from fuhu_runway._redact import HIDDEN, RUN, outline, outline_text, redact

# No letter, digit or colon, which would make it another word or another address.
EDGES = st.sampled_from(["", " ", ", ", "（", "：", "。", "\n", "'", '"', "是"])


@given(texts(max_size=30), MARKED, texts(max_size=30), texts(max_size=10))
def test_a_marked_secret_is_never_left(before: str, secret: str, after: str, other: str) -> None:
    """A secret is removed from any surrounding text, together with any other secret."""
    shown = redact(f"{before}{secret}{after}{secret}", [other, secret])
    assert secret not in shown
    assert shown != ""


@given(PROMPTS, texts(max_size=20), st.booleans())
def test_a_prompt_is_hidden_in_plain_text_and_in_json(
    prompt: str, around: str, in_json: bool
) -> None:
    """A prompt that a gateway quotes, plain or escaped, is not shown."""
    marked = f"MARK {prompt} MARK"
    quoted = json.dumps(marked) if in_json else marked
    assert "MARK" not in redact(f"{around.replace('MARK', '')}«{quoted}»", [marked])


@given(texts(max_size=20), EDGES, ADDRESSES, EDGES, st.lists(PROMPTS, max_size=2))
def test_a_url_is_never_left(
    before: str, left: str, url: str, right: str, prompts: list[str]
) -> None:
    """Neither host nor query of a URL is left, even if a prompt is part of it."""
    marked = url.replace(".example/", ".host-mark.example/query-mark")
    shown = redact(f"{before}{left}{marked}{right}", prompts)
    assert "host-mark" not in shown
    assert "query-mark" not in shown


@given(EDGES, st.ip_addresses(), EDGES)
def test_an_ip_address_is_never_left(
    left: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address, right: str
) -> None:
    """Both kinds of IP address are hidden between words of any language."""
    shown = redact(f"from{left or ' '}{address}{right or ' '}refused")
    assert str(address) not in shown
    assert "<ip>" in shown


@given(texts(), st.lists(texts(), max_size=3))
def test_redacting_only_removes_and_marks(text: str, secrets: list[str]) -> None:
    """The result consists of known marks and of parts of the original, in order."""
    shown = redact(text, secrets)
    rest = iter(text)
    for part in shown.replace(HIDDEN, "").split():
        plain = "".join(part.split("<")[:1])
        assert all(sign in rest for sign in plain)


@given(nested(MARKED))
def test_an_outline_has_no_value_in_it(value: object) -> None:
    """No text value of a response is in its outline."""
    assert "MARK" not in outline(value)


@given(nested(MARKED), st.integers(0, 40))
def test_an_outline_of_a_truncated_answer_has_no_value_in_it(value: object, lost: int) -> None:
    """A response that is cut anywhere shows none of its values, and at most 200 characters."""
    text = json.dumps(value)
    shown = outline_text(text[: max(0, len(text) - lost)])
    assert "MARK" not in shown
    assert len(shown) <= 200


SAYING = "the quick brown fox jumps over the lazy dog, ΤΟΥ ΟΔΥΣΣΕΩΣ Ο ΝΟΣΤΟΣ"


@given(
    texts(max_size=50),
    st.integers(0, len(SAYING) - RUN),
    st.sampled_from([str, str.upper, json.dumps, quote, html.escape]),
)
def test_a_run_of_a_prompt_is_hidden(before: str, cut: int, escape: Callable[[str], str]) -> None:
    """Any 20 characters of a prompt are, wherever they stand and however they are escaped."""
    run = escape(SAYING[cut : cut + RUN])
    shown = redact(f"«{run}»", [f"{before}{SAYING}"])
    assert HIDDEN in shown
    assert run.strip('"') not in shown


# Escapes, their parts, and what they may be next to.
PIECES = st.sampled_from(
    [
        *(
            "\\",
            '\\"',
            "\\n",
            "\\x",
            "u00e9",
            "\\u0041",
            "\\U00C9",
            "\\ud83d",
            "\\ude00",
            "\\u0020",
        ),
        *("%", "%2", "%2B", "%252b", "%C3", "%a9", "%20", "%00", "&", "amp;", "&amp;lt;", "&nbsp;"),
        *(
            "&#43;",
            "&#x130;",
            "&NotEqualTilde;",
            "&fjlig;",
            "&#0;",
            "+",
            " ",
            "\t",
            "\u2028",
            "\x1c",
        ),
        *("a", "İ", "ẞ", "Σ", "ΑΣ ", "é", "\u0301", "🐈", "\0"),
    ]
)


@given(st.lists(PIECES | texts(max_size=3), max_size=12).map("".join))
def test_both_ways_to_undo_escapes_agree(text: str) -> None:
    """Secrets take the short way and responses the one that knows each place: same text."""
    plain, places = _redact._unescaped(text)
    assert _redact._plain(text) == plain
    assert len(places) == len(plain)
