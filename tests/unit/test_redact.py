from typing import Any

import pytest

from fuhu_runway._redact import outline, outline_text, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        # addresses
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
        # what is none
        ("at 12:30:45 in std::vector", "at 12:30:45 in std::vector"),
        ("ratio 16:9", "ratio 16:9"),
        ("", ""),
    ],
)
def test_whatever_looks_like_a_secret_is_hidden(text: str, shown: str) -> None:
    """Addresses, keys and IP addresses go by their looks, and what only resembles them stays."""
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
def test_a_secret_is_hidden_however_it_is_quoted(secret: str, text: str, shown: str) -> None:
    """Trimmed, folded, in other letters or inside of JSON, what was sent is not shown."""
    assert redact(text, [secret]) == shown


def test_the_longer_of_two_secrets_goes_first() -> None:
    """A secret inside another leaves no rest of the longer one, nor of the word that hides it."""
    assert redact("a red kitten hidden", ["kitten", "a red kitten", "hidden"]) == (
        "<hidden> <hidden>"
    )


@pytest.mark.parametrize("prompt", ["clips", "https", "see", "see https://cdn.example/clips/1 now"])
def test_secrets_that_overlap_are_hidden_as_one(prompt: str) -> None:
    """An address is hidden as a whole though a prompt is a part of it, or it is one of a prompt."""
    shown = redact("see https://cdn.example/clips/1 now", [prompt, "sk-1"])
    assert "cdn" not in shown
    assert "clips" not in shown
    assert redact("https://x.example/?key=sk-1&sig=a", ["sk-1"]) == "<url>"


@pytest.mark.parametrize("secret", ["data:image/png;base64," + "aGk=" * 500_000, "a kitten " * 90])
def test_a_large_secret_costs_no_time(secret: str) -> None:
    """A picture of two million signs is no pattern to look for in a short text."""
    assert redact("The picture is too large.", [secret]) == "The picture is too large."


@pytest.mark.parametrize("filler", ["a-", "a.", "x:", "f:", "1.", ":", "?a", "data:", "bearer "])
def test_a_large_text_costs_no_time(filler: str) -> None:
    """A million signs of what begins like a secret are read at once, or the suite times out."""
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
    """The shape of an answer has its keys, where they look like keys, and none of its values."""
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
def test_an_outline_of_text_hides_what_stands_in_quotes(text: str, shown: str) -> None:
    """Of half a JSON only keys, numbers and brackets are shown, and little of a long text."""
    assert outline_text(text) == shown
