"""Marked secrets, and a finder of their marks in every encoding."""

import base64
import html
import json
import pickle
import re
import traceback
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote, urlsplit

import attrs
from support.secrets import chain

from fuhu_runway.models import Generation

# Each secret consists of words that occur nowhere else, so that a part of it is found, too.
KEY: Final = "zanzibar-quoll-7731"
TOKEN: Final = "kakapo-token-5512"
PROMPT: Final = 'a wombat & a "numbat" <i>über</i>\n 100 % bilby'
IMAGE: Final = "https://pictures.example/axolotl.png?signature=tarsier"
LAST_IMAGE: Final = "https://pictures.example/caracal.png?signature=serval"
VIDEO: Final = "https://clips.example/okapi.mp4?token=pangolin"
DATA: Final = "data:image/png;base64," + base64.b64encode(b"the quagga, as bytes").decode()
EXTRA: Final = {"note": "dugong"}
SECRET: Final = "a secret of an ibexhorn"
IPV4: Final = "203.0.113.77"
IPV6: Final = "2001:db8:77::fa11"
LOOPBACK: Final = "127.0.0.1"

WORDS: Final = {
    "key": ("zanzibar", "quoll-7731"),
    "access token": ("kakapo", "token-5512"),
    "prompt": ("wombat", "numbat", "bilby"),
    "image": ("axolotl", "tarsier", "caracal", "serval"),
    "video": ("okapi", "pangolin"),
    "data": ("the quagga",),
    "extra": ("dugong",),
    "callback secret": ("ibexhorn",),
    "IP address": (IPV4, IPV6, LOOPBACK),
}


def leaky_text(request: Generation | None = None, key: str = KEY) -> str:
    """Return a text that quotes the key, the IP addresses and the request."""
    fields = {} if request is None else attrs.asdict(request)
    quoted = " ".join(value for value in fields.values() if isinstance(value, str))
    return f"{key} from {IPV4} and [{IPV6}] requests: {quoted}"


SIGNATURE: Final = re.compile(r"\w{8,}")
SIGNED: Final = re.compile(rb"[0-9a-z_]{8,}")


def shapes(word: str) -> Iterator[bytes]:
    """Return the encodings of a word; letters in lower case, except in base64."""
    plain = word.lower()
    spelled = {plain, quote(plain, safe=""), html.escape(plain), json.dumps(plain)[1:-1]}
    for text in {*spelled, *(one.lower() for one in spelled)}:
        yield text.encode()
        yield text.encode("utf-16-le")
    yield plain.encode().hex().encode()


def in_base64(word: str) -> Iterator[bytes]:
    """Return the bytes of a word in the middle of base64."""
    for before in range(3):
        code = base64.b64encode(bytes(before) + word.encode())
        # Its first and last characters depend on what stands beside the word.
        yield code.rstrip(b"=")[before + (before > 0) : -1]


@attrs.define
class Finder:
    """Finds marks; more can be added."""

    _shapes: dict[bytes, str] = attrs.field(factory=dict)
    _base64: dict[bytes, str] = attrs.field(factory=dict)
    #: The signatures of links, of which there are many.
    _signatures: set[bytes] = attrs.field(factory=set)

    @classmethod
    def of(cls, words: dict[str, tuple[str, ...]] = WORDS) -> "Finder":
        """Return a finder of all words, each reported by the name of its secret."""
        finder = cls()
        for name, parts in words.items():
            finder.add(name, *parts)
        return finder

    def add(self, name: str, *words: str) -> None:
        """Add these words."""
        for word in words:
            self._shapes |= dict.fromkeys(shapes(word), name)
            self._base64 |= dict.fromkeys(in_base64(word), name)

    def add_link(self, url: str) -> None:
        """Add the signature of a link."""
        values = [pair.partition("=")[2] for pair in urlsplit(url).query.split("&")]
        self._signatures.update(one.lower().encode() for one in values if SIGNATURE.fullmatch(one))

    def found(self, data: str | bytes) -> set[str]:
        """Return the names of the secrets in *data*."""
        raw = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
        folded = raw.lower()
        shaped = {name for shape, name in self._shapes.items() if shape in folded}
        if not self._signatures.isdisjoint(SIGNED.findall(folded)):
            shaped.add("link")
        return shaped | {name for shape, name in self._base64.items() if shape in raw}


@attrs.define
class Evidence:
    """Everything shown in one test, and the secrets in it."""

    finder: Finder = attrs.field(factory=Finder.of)
    #: Where a secret was shown, and which.
    leaks: list[tuple[str, str]] = attrs.field(factory=list)
    #: The classes of the objects that were checked.
    kinds: set[type] = attrs.field(factory=set)

    def take(self, place: str, data: str | bytes, *, but: Iterable[str] = ()) -> None:
        """Check what was shown in one place, where the secrets *but* are allowed."""
        found = self.finder.found(data).difference(but)
        self.leaks += [(f"{place}: {_beginning(data)}", name) for name in sorted(found)]

    def thing(self, thing: object, *, but: Iterable[str] = ()) -> None:
        """Check everything shown of an object."""
        self.kinds.add(type(thing))
        for text in (repr(thing), str(thing), format(thing)):
            self.take(type(thing).__qualname__, text, but=but)

    def error(self, error: BaseException) -> None:
        """Check an error and its causes: texts, fields and pickle."""
        self.take("traceback", "".join(traceback.format_exception(error, limit=0)))
        for link in chain(error):
            self.thing(link)
            name = type(link).__qualname__
            self.take(f"{name}.args", repr(link.args))
            self.take(f"{name} fields", repr(vars(link)))
            self.take(f"{name} pickled", pickle.dumps(link))


def _beginning(data: str | bytes) -> str:
    return repr(data if len(data) < 4000 else data[:4000])
