from typing import Any

import pytest
from support.urls import NOT_URLS

from fuhu_runway._urls import is_reachable_address, is_web_address


@pytest.mark.parametrize(
    "value",
    [
        "http://x",
        "https://x.example/?a#b",
        "HTTP://USER@X:80/图",
        "https://x.example.:65535",
        "https://x_y.example:",
        "https://" + "a" * 63 + ".example",
        "https://图片.example/1",
        "https://💩.example",
        "https://[::1]:80/",
        "https://[::ffff:10.0.0.1]",
    ],
)
def test_a_url_has_scheme_and_host(value: str) -> None:
    """Absolute http(s) URLs are accepted in any case, with any port, path and query."""
    assert is_web_address(value)


@pytest.mark.parametrize(
    "value",
    [
        *NOT_URLS,
        None,
        "null",
        "//x.example/1",
        "http://?a",
        [],
        # hosts that no resolver accepts
        "https://a..example/",
        "https://.example/",
        "https://user@a..example/",
        "https://" + "a" * 64 + ".example",
        "https://" + "图" * 64 + ".example",
        "https://a。。example",
        "https://\u00ad.example",
        "https://[::::]/",
        "https://[1.2.3.4]/",
        "https://a\\b.example/",
        # ports that do not exist
        "https://a.example:65536/",
        "https://a.example:99999/",
        "https://a.example:٣/",
        # control characters
        "https://a\x01.example/",
        "https://a.example/\x01",
        "https://a.example/\x7f",
    ],
)
def test_anything_else_is_not_a_url(value: Any) -> None:
    """Words, other schemes, relative and broken URLs and other types are refused."""
    assert not is_web_address(value)


@pytest.mark.parametrize(
    "value",
    [
        "http://localhost:8080",
        "https://a_b.example-1.com:65535/x?y#z",
        "https://example.com./",
        "https://user:word@x.example:/1",
        "http://127.0.0.1:1/",
        "http://[::1]:80/",
        "https://bücher.example/图",
        "https://小猫.例え",
        f"https://{'a' * 63}.example",
        f"https://{'.'.join(['a' * 49] * 5)}.eu",
    ],
)
def test_a_url_that_can_exist_is_reachable(value: str) -> None:
    """Hosts in any script, IP addresses, and hosts and ports up to their limits are accepted."""
    assert is_reachable_address(value)


@pytest.mark.parametrize(
    "value",
    [
        "https://api..example.com",
        "https://.example.com",
        f"https://{'a' * 64}.example",
        f"https://{'小' * 60}.example",
        f"https://{'.'.join(['a' * 49] * 5)}.example",
        f"https://{'a.' * 100_000}example",
        "https://x.example:65536/",
        "https://x.example:0/",
        "https://x.example:８０/",
        "https://256.1.1.1/",
        "https://[:::]/",
        "https://ex%61mple.com/",
        'https://ex"ample.com/',
        "https://ex\\ample.com/",
        "https://ex\x01ample.com/",
        "https://example.com/\x7f",
        "https://example.com/\x1b[31m",
        "https://℀.example/",
        "https://a\u2024\u2024b.example/",
        *NOT_URLS,
        None,
    ],
)
def test_a_url_that_cannot_exist_is_not_reachable(value: Any) -> None:
    """Empty and overlong labels, ports above 65535 and control characters are refused."""
    assert not is_reachable_address(value)
