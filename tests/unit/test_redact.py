import html
import json
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from fuhu_runway._redact import MAX_SHOWN, outline, outline_text, redact, shown_code, without


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        # URLs
        ("see https://cdn.example/v.mp4?_jwt=abc now", "see <url> now"),
        ("HTTP://CDN.EXAMPLE/V.MP4", "<url>"),
        ("下载失败https://cdn.example/v.mp4", "下载失败<url>"),
        ("_https://cdn.example/v.mp4", "_<url>"),
        ('{"url":"https:\\/\\/cdn.example\\/v.mp4"}', '{"url":"<url>"}'),
        ("s3+http://bucket/key", "<url>"),
        ("/v.mp4?_jwt=abc&n=1 gone", "/v.mp4?_jwt=<hidden>&n=<hidden> gone"),
        ("data:image/png;base64,aGk= is too large", "<data> is too large"),
        ("图data:image/png;base64,aGk=", "图<data>"),
        ("metadata:a/b;c", "metadata:a/b;c"),
        # keys
        ("Incorrect key sk-abc-12*34", "Incorrect key <key>"),
        ("令牌sk-abc无效", "令牌<key>无效"),
        ("the task-1 of desk-top", "the task-1 of desk-top"),
        ("Authorization: Bearer abc.def", "Authorization: <key>"),
        # IP addresses
        ("from 171.214.61.54:8080", "from <ip>:8080"),
        ("地址171.214.61.54不允许", "地址<ip>不允许"),
        ("only 10.0.0.0/8.", "only <ip>."),
        ("version 1.2.3", "version 1.2.3"),
        ("version 1.2.3.4.5", "version 1.2.3.4.5"),
        ("from 2001:db8::1/64", "from <ip>"),
        ("from [2001:db8::1]:443", "from [<ip>]:443"),
        ("来自2001:db8::1的请求", "来自<ip>的请求"),
        ("client 2001:db8::1: too many", "client <ip> too many"),
        ("from 2001:db8::1.", "from <ip>"),
        ("client_ip:2001:db8::1", "client_ip:<ip>"),
        ("code:2001:db8::1", "code:<ip>"),
        ("from ::1 and ::ffff:10.0.0.1", "from <ip> and <ip>"),
        # no secrets
        ("at 12:30:45 in std::vector", "at 12:30:45 in std::vector"),
        ("ratio 16:9", "ratio 16:9"),
        ("", ""),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, shown: str) -> None:
    """URLs, keys and IP addresses are recognised by their shape."""
    assert redact(text) == shown


@pytest.mark.parametrize(
    ("secret", "text", "shown"),
    [
        ("a kitten", "The prompt a kitten was refused", "The prompt <hidden> was refused"),
        ("a kitten", "The prompt A Kitten was refused", "The prompt <hidden> was refused"),
        (" a kitten\n", "prompt a kitten refused", "prompt <hidden> refused"),
        ("a\n  kitten", "prompt a kitten refused", "prompt <hidden> refused"),
        ("a kitten", "prompt a  kitten refused", "prompt <hidden> refused"),
        ('say "hi"', r'{"m":"say \"hi\" refused', '{"m":"<hidden> refused'),
        ('say "小猫"', r'{"m":"say \"小猫\" refused', '{"m":"<hidden> refused'),
        ("小猫", r'{"m":"\u5c0f\u732b', '{"m":"<hidden>'),
        ("小猫 / \n", r"\u5c0f\u732b \/", "<hidden>"),
        ("cat/dog", r"cat\/dog", "<hidden>"),
        ("a+b (c)", "a+b (c)", "<hidden>"),
        ("x", "x marks the box", "<hidden> marks the box"),
        ("", "nothing", "nothing"),
        (" ", "no thing", "no thing"),
    ],
)
def test_a_quoted_secret_is_hidden(secret: str, text: str, shown: str) -> None:
    """A gateway may trim it, change its case or spaces, or put it in JSON."""
    assert redact(text, [secret]) == shown


LONG = 'A "cat" & dogs, <b>über</b> the 城市 wall\nat 100% + more'
QUOTED = {
    "json": json.dumps(LONG),
    "json of its own letters": json.dumps(LONG, ensure_ascii=False),
    "json twice": json.dumps(json.dumps(LONG)),
    "json three times": json.dumps(json.dumps(json.dumps(LONG))),
    "html": html.escape(LONG),
    "html twice": html.escape(html.escape(LONG)),
    "html by numbers": "".join(f"&#{ord(sign)};" for sign in LONG),
    "html by hexadecimal numbers": "".join(f"&#x{ord(sign):X};" for sign in LONG),
    "url": quote(LONG),
    "url of a form": quote_plus(LONG),
    "url twice": quote(quote(LONG)),
    "html in json": json.dumps(html.escape(LONG)),
    "other letters": LONG.upper(),
    "folded": " ".join(LONG.split()),
    "its middle": LONG[8:32],
    "its start": LONG[:24],
    "its end": LONG[-24:],
    "its start, cut": LONG[:9] + "...",
    "its start, cut by one sign": LONG[:9] + "…",
}


@pytest.mark.parametrize("quoted", QUOTED.values(), ids=QUOTED.keys())
def test_every_spelling_of_a_prompt_is_hidden(quoted: str) -> None:
    """It may be escaped several times, cut off or quoted in part: no word of it is left."""
    shown = redact(f"not allowed: '{quoted}' is refused", [LONG])
    assert shown.startswith("not allowed: '")
    assert shown.endswith("' is refused")
    for word in ("cat", "CAT", "dogs", "DOGS", "ber", "wall", "WALL", "more"):
        assert word not in shown.removeprefix("not allowed").removesuffix("refused")


@pytest.mark.parametrize(
    ("secret", "text", "shown"),
    [
        ("a busy street", "no: a busy stre...", "no: <hidden>..."),
        ("a busy street", "no: A BUSY stre… (2)", "no: <hidden>… (2)"),
        ("a busy street", "no: a busy stre", "no: <hidden>"),
        ("a busy street", "no: a bu... wait", "no: a bu... wait"),
        ("a busy street", "the line is busy...", "the line is busy..."),
        ("sk-marked-key-12345678", "bad key marked-key-12345678", "bad key <hidden>"),
        ("sk-marked-key-12345678", "bad key (marked-key-1...)", "bad key (<hidden>...)"),
        ("sk-x", "x is bad", "x is bad"),
        ("x", "ax x_ 9x", "ax x_ 9x"),
        ("C:\\new", 'at "C:\\\\new"', 'at "<hidden>"'),
        ("a\x08b\x0cc", r"a\bb\fc", "<hidden>"),
        ("\U0001f431 cat", r"no \ud83d\udc31 cat", "no <hidden>"),
        ("İstanbul", "no İSTANBUL", "no <hidden>"),
    ],
)
def test_a_part_of_a_secret_is_hidden(secret: str, text: str, shown: str) -> None:
    """A cut-off start and a key without its prefix are hidden, but no similar word."""
    assert redact(text, [secret]) == shown


def test_a_long_text_is_cut_before_it_is_read() -> None:
    """A refusal of eight megabytes neither takes a second nor fills the log."""
    shown = redact("the prompt a busy street " * 400_000, ["a busy street"])
    assert shown.startswith("the prompt <hidden> the prompt <hidden> ")
    assert len(shown) <= MAX_SHOWN + 1
    assert shown.endswith("…")


def test_the_start_of_a_secret_at_the_cut_is_hidden() -> None:
    """If the cut divides a prompt, its first half is hidden too."""
    text = "x" * (MAX_SHOWN - 8) + "a busy street"
    assert redact(text, ["a busy street"]) == "x" * (MAX_SHOWN - 8) + "<hidden>…"


@pytest.mark.parametrize("filler", ["\\", "\\u00", "%25", "&amp;", "...", "a", "&#", "+ "])
def test_escapes_cost_no_time(filler: str) -> None:
    """A million escapes in the text and in the secret are read in linear time."""
    secret = filler * (1_000_000 // len(filler))
    redact(secret + "x", [secret, secret[1:]])


@pytest.mark.parametrize("text", ["\\U0000", "\\u00zz", "%ZZ", "&#x110000;", "\\"])
def test_what_only_begins_like_an_escape_is_text(text: str) -> None:
    """Broken escapes are kept as they are."""
    assert redact(text, ["a kitten"]) == text


@pytest.mark.parametrize("prompt", ["a \\\u00b9 kitten", "a \\ kitten", "a \\u00b9 kitten"])
def test_a_prompt_with_backslashes_is_found(prompt: str) -> None:
    """The number of backslashes does not matter."""
    quoted = prompt
    for _ in range(3):
        quoted = json.dumps(quoted)
        assert "kitten" not in redact(f"no: {quoted}", [prompt])


def test_a_search_for_words_skips_the_prompt() -> None:
    """A word in a quoted prompt says nothing about the gateway; the words beside it do."""
    assert without("not allowed: 'a busy street'", ["a busy street"]) == "not allowed: ' '"
    assert without("not allowed: 'a busy stre...'", ["a busy street"]) == "not allowed: ' ...'"
    assert without("we are busy: a%20busy%20street", ["a busy street"]) == "we are busy:  "
    assert without("at https://a.example: busy", ["a busy street"]) == (
        "at https://a.example: busy"
    )
    assert len(without("busy " * 100_000, ["x"])) == MAX_SHOWN


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("task_not_exist", "task_not_exist"),
        ("SAFETY.INPUT:3", "SAFETY.INPUT:3"),
        ("400", "400"),
        ("a" * 64, "a" * 64),
        ("a" * 65, None),
        ("two words", None),
        ("代码", None),
        ("", None),
        (None, None),
        ("marked", None),
        ("sk-abc", None),
        ("10.0.0.1", None),
    ],
)
def test_a_code_is_shown_if_it_looks_like_one(code: str | None, shown: str | None) -> None:
    """Other text, and a code that quotes a secret, is not shown."""
    assert shown_code(code, ["marked"]) == shown


def test_the_longer_of_two_secrets_is_hidden() -> None:
    """A secret inside another one leaves no part of the longer one."""
    assert redact("a red kitten hidden", ["kitten", "a red kitten", "hidden"]) == (
        "<hidden> <hidden>"
    )


@pytest.mark.parametrize("prompt", ["clips", "https", "see", "see https://cdn.example/clips/1 now"])
def test_secrets_that_overlap_are_hidden_as_one(prompt: str) -> None:
    """A URL is hidden as a whole even if a prompt is part of it, or it is part of a prompt."""
    shown = redact("see https://cdn.example/clips/1 now", [prompt, "sk-1"])
    assert "cdn" not in shown
    assert "clips" not in shown
    assert redact("https://x.example/?key=sk-1&sig=a", ["sk-1"]) == "<url>"


@pytest.mark.parametrize("secret", ["data:image/png;base64," + "aGk=" * 500_000, "a kitten " * 90])
def test_a_large_secret_costs_no_time(secret: str) -> None:
    """Redacting a short text is fast even if the secret is a picture."""
    assert redact("The picture is too large.", [secret]) == "The picture is too large."


@pytest.mark.parametrize("filler", ["a-", "a.", "x:", "f:", "1.", ":", "?a", "data:", "bearer "])
def test_a_large_text_costs_no_time(filler: str) -> None:
    """A million characters that begin like a secret are read in linear time."""
    text = filler * (1_000_000 // len(filler))
    assert len(redact(text, ["a kitten"])) <= len(text)


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (None, "null"),
        (True, "bool"),
        ("marked", "str"),
        ([], "[]"),
        ([1, "marked"], "[2 x int]"),
        ({}, "{}"),
        ({"code": 200, "data": {"task_id": "marked"}}, "{code: int, data: {task_id: str}}"),
        ({"a": {"b": {"c": {"d": {"e": 1}}}}}, "{a: {b: {c: {d: dict}}}}"),
        ([[[[["marked"]]]]], "[1 x [1 x [1 x [1 x list]]]]"),
        ({"a marked key": 1, "1.2.3.4": 2, "": 3}, "{…: int, …: int, …: int}"),
        ({"k" * 41: 1}, "{…: int}"),
        (
            {f"k{number}": 0 for number in range(20)},
            "{" + ", ".join(f"k{number}: int" for number in range(20)) + "}",
        ),
        (
            {f"k{number}": 0 for number in range(21)},
            "{" + ", ".join(f"k{number}: int" for number in range(20)) + ", …}",
        ),
    ],
)
def test_an_outline_shows_keys_and_kinds_only(value: Any, shape: str) -> None:
    """It has the keys that look like names, and none of the values."""
    assert outline(value) == shape


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"code":200,"msg":"marked","data":{"task', '{"code":200,"msg":"…","data":{"…"'),
        ('{"a marked key": "x \\" marked"}', '{"…" "…"}'),
        ("plain words from 10.0.0.1", "plain words from <ip>"),
        ("x" * 500, "x" * 200),
        ('"' + "marked" * 1000, '"…"'),
        ('{"msg":"marked \\', '{"msg":"…"'),
        ('{"msg":"marked \\"', '{"msg":"…"'),
        ("", ""),
    ],
)
def test_an_outline_of_text_hides_quoted_text(text: str, shown: str) -> None:
    """It shows only keys, numbers and brackets of truncated JSON, and the start of a long text."""
    assert outline_text(text) == shown
