"""The finder finds secrets, so that tests that find none are meaningful."""

import base64
import html
import json
import pickle
from collections.abc import Callable
from urllib.parse import quote

import pytest
from support.marks import WORDS, Evidence, Finder

SHAPES: dict[str, Callable[[str], str | bytes]] = {
    "plain": str,
    "bytes": str.encode,
    "upper case": str.upper,
    "repr": repr,
    "percent": lambda text: quote(text, safe=""),
    "html": html.escape,
    "json": json.dumps,
    "json in json": lambda text: json.dumps(json.dumps({"m": text})),
    "utf-16": lambda text: text.encode("utf-16"),
    "pickle": pickle.dumps,
    "hex": lambda text: text.encode().hex(),
    "base64": lambda text: base64.b64encode(text.encode()),
    "base64, one later": lambda text: base64.b64encode(f"x{text}y".encode()),
    "base64, two later": lambda text: base64.b64encode(f"xx{text}yy".encode()),
}
EACH = [(name, word) for name, words in WORDS.items() for word in words]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("name", "word"), EACH)
def test_a_word_is_found_in_every_shape(
    name: str, word: str, shape: Callable[[str], str | bytes]
) -> None:
    """A word is found by its name in every encoding and in any context."""
    finder = Finder.of()
    for around in ("{}", "before {} after", "x{}y"):
        assert name in finder.found(shape(around.format(word)))


def test_a_link_is_found_by_its_signature() -> None:
    """Its signature is a secret; its host and its path are not."""
    finder = Finder()
    finder.add_link("https://cdn.example/folder/0123456789.mp4?_jwt=abcdefgh&n=1")
    assert finder.found("see ?_jwt=ABCDEFGH&n=1") == {"link"}
    assert finder.found(b"\0\1abcdefgh\2") == {"link"}
    assert finder.found("https://cdn.example/folder/0123456789.mp4?n=1") == set()


@pytest.mark.parametrize("data", ["", "a kitten in 12.7.0.1", b"\0" * 64, "sk-other 127.0.0.10x"])
def test_other_words_are_not_found(data: str | bytes) -> None:
    """Only the marks are found."""
    assert Finder.of({"key": WORDS["key"], "prompt": WORDS["prompt"]}).found(data) == set()


def test_an_error_is_searched_completely() -> None:
    """Its text, notes, fields and pickle, and those of its causes."""

    def raised(*args: str, note: str = "", field: str = "", cause: str = "") -> BaseException:
        error = ValueError(*args)
        error.add_note(note)
        error.kept = field  # type: ignore[attr-defined]
        error.__context__ = KeyError(cause)
        return error

    for error in (
        raised("wombat"),
        raised("text", note="wombat"),
        raised("text", field="wombat"),
        raised("text", cause="wombat"),
    ):
        evidence = Evidence()
        evidence.error(error)
        assert {name for _, name in evidence.leaks} == {"prompt"}
    innocent = Evidence()
    innocent.error(raised("a kitten"))
    assert innocent.leaks == []


def test_an_allowed_secret_is_not_a_leak() -> None:
    """A place that may show one secret may not show another."""
    evidence = Evidence()
    evidence.take("a file's name", "a-wombat.mp4 dugong", but={"prompt"})
    assert [name for _, name in evidence.leaks] == ["extra"]
