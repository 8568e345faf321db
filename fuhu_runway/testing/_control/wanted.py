"""
What a control request may say, field by field, and the errors of one that cannot be.

Rule 1. Nothing is guessed: an unknown field, a wrong type and a value out of bounds are errors.
Rule 2. An error names the field, its value and what is allowed, and never a key.
Rule 3. What can go wrong is read from `faults` itself: a new fault can be asked for as soon as
    it is there.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, Final, Literal, TypeGuard, Union, get_args, get_origin

import attrs

from fuhu_runway.testing import faults
from fuhu_runway.testing._server.dialects import NAMES
from fuhu_runway.testing._server.options import MOST, bounds
from fuhu_runway.testing._server.story import ENDINGS, OWN
from fuhu_runway.testing._server.wild import KNOWN
from fuhu_runway.testing.faults import Fault, Planned, Where

SHOWN_CHARACTERS: Final = 200
SECRET: Final = "key"

HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]*")
KEY: Final = re.compile(r"[\x21-\x7e]+")


class Unfit(Exception):
    """A control request that is turned away; nothing was changed."""

    def __init__(self, message: str, status: int = 400, **more: object) -> None:
        super().__init__(message)
        self.status = status
        self.told = {"message": message, **more}


def misfit(at: str, value: object, allowed: object, what: str = "does not fit") -> Unfit:
    """Return the error of a field *at* that cannot have this *value*."""
    shown = "***" if at == SECRET else _short(value)
    return Unfit(f"{at} {what}", field=at, value=shown, allowed=allowed)


def _short(value: object) -> object:
    text = json.dumps(value)
    if len(text) > SHOWN_CHARACTERS:
        return f"{text[:SHOWN_CHARACTERS]}..."
    # 1e999 is infinity for Python, which has no name in JSON.
    return json.loads(text, parse_constant=str)


# Kinds of values


@attrs.frozen
class Kind:
    """What a value may be, in words, and what is made of it."""

    allowed: str
    #: Gives the value to use; a ValueError says that there is none.
    make: Callable[[Any, str], Any]

    def read(self, value: object, at: str) -> Any:
        """
        What to use for the *value* of the field *at*.

        Raises:
            Unfit: It is none of this kind.
        """
        try:
            return self.make(value, at)
        except ValueError as unfit:
            why = f"does not fit: {unfit}" if str(unfit) else "does not fit"
            raise misfit(at, value, self.allowed, why) from unfit


def such(allowed: str, fits: Callable[[Any], bool]) -> Kind:
    """Values that are used as they come, if they fit."""

    def make(value: Any, _at: str) -> Any:
        if not fits(value):
            raise ValueError
        return value

    return Kind(allowed, make)


def or_null(kind: Kind) -> Kind:
    """The same, or null."""

    def make(value: Any, at: str) -> Any:
        return None if value is None else kind.make(value, at)

    return Kind(f"{kind.allowed}, or null", make)


def one_of(names: Iterable[str]) -> Kind:
    """One of these words."""
    words = tuple(names)
    return such(f"one of {', '.join(map(json.dumps, words))}", lambda value: value in words)


def list_of(kind: Kind) -> Kind:
    """Any number of them."""

    def make(value: Any, at: str) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError  # noqa: TRY004 - the kind of error is not seen
        return [kind.read(one, f"{at}[{index}]") for index, one in enumerate(value)]

    return Kind(f"a list; in it {kind.allowed}", make)


def whole(least: int, most: int) -> Kind:
    """Whole numbers between these."""
    return such(
        f"a whole number from {least} to {most}",
        lambda value: type(value) is int and least <= value <= most,
    )


def number(least: float, most: float) -> Kind:
    """Numbers between these."""
    return such(
        f"a number from {least:.12g} to {most:.12g}",
        lambda value: type(value) in {int, float} and least <= value <= most,
    )


def is_text(value: object) -> TypeGuard[str]:
    """Whether *value* is text that can be written: JSON may hold half of a surrogate pair."""
    return isinstance(value, str) and value == value.encode(errors="replace").decode()


def text_like(allowed: str, pattern: re.Pattern[str]) -> Kind:
    """Text that is like *pattern* from end to end."""
    return such(
        allowed, lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None
    )


def _pattern(value: Any, _at: str) -> re.Pattern[str]:
    if not is_text(value):
        raise ValueError
    try:
        return re.compile(value)
    except (re.error, RecursionError, OverflowError) as wrong:
        raise ValueError(str(wrong)) from wrong


def _headers(value: Any, at: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise ValueError  # noqa: TRY004 - the kind of error is not seen
    return tuple(
        (NAME_OF_HEADER.read(name, at), VALUE_OF_HEADER.read(text, f"{at}.{name}"))
        for name, text in value.items()
    )


FLAG: Final = such("true or false", lambda value: isinstance(value, bool))
TEXT: Final = such("text", is_text)
ANYTHING: Final = such(
    "any JSON", lambda value: is_text(json.dumps(value, ensure_ascii=False, allow_nan=False))
)
REGULAR: Final = Kind("a regular expression of Python's", _pattern)
DIALECT: Final = one_of(NAMES)
NAME_OF_HEADER: Final = text_like("the name of a header", HEADER_NAME)
VALUE_OF_HEADER: Final = text_like("printable ASCII in one line", HEADER_VALUE)
HEADERS: Final = Kind("an object: names of headers, and their values as text", _headers)
A_KEY: Final = text_like("printable ASCII without blanks", KEY)
SECONDS: Final = number(0, MOST)
PERCENT: Final = whole(0, 100)


# Fields


@attrs.frozen
class Required:
    """In the place of a default: the field has to be there."""


REQUIRED: Final = Required()


@attrs.frozen
class Field:
    """One field of a request."""

    kind: Kind
    told: str
    #: What it is if it is not there.
    default: object = REQUIRED

    def shown(self) -> dict[str, object]:
        """What a program may know of it."""
        default = {} if self.default is REQUIRED else {"default": self.default}
        return {"allowed": self.kind.allowed, **default}


Fields = Mapping[str, Field]


def read(fields: Fields, given: object, within: str = "") -> dict[str, Any]:
    """
    The fields that were *given*, each as it is to be used; *within* is the path to them.

    Raises:
        Unfit: One of them cannot be, or one is missing.
    """
    before = f"{within}." if within else ""
    if not isinstance(given, dict):
        raise Unfit(f"{within or 'body'} is no object", field=within or "body", allowed="an object")
    for name in given:
        if name not in fields:
            # Its value may be anything, a key under a misspelt name included.
            what = f"there is no field {before}{name} here"
            raise Unfit(what, field=f"{before}{name}", allowed=list(fields))
    for name, field in fields.items():
        if field.default is REQUIRED and name not in given:
            raise misfit(f"{before}{name}", None, field.kind.allowed, "is missing")
    return {name: fields[name].kind.read(value, f"{before}{name}") for name, value in given.items()}


def parsed(raw: bytes) -> object:
    """
    The body that came; nothing at all is an object without fields.

    Raises:
        Unfit: It is no JSON, or names a field twice.
    """
    try:
        return json.loads(raw or b"{}", object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as wrong:
        raise Unfit(f"the body is no JSON: {wrong}", field="body", allowed="JSON") from wrong


def _once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the field {twice} is there twice")
    return found


def _no_number(word: str) -> object:
    raise ValueError(f"{word} is no number of JSON")


# Faults

#: Text that cannot be any text, by the name of its parameter.
WORDS: Final = {
    "dialect": DIALECT,
    "content_type": VALUE_OF_HEADER,
    "content_range": VALUE_OF_HEADER,
    "retry_after": VALUE_OF_HEADER,
    "known.name": one_of(KNOWN),
}


@attrs.frozen
class FaultKind:
    """One thing that can go wrong, as it is asked for: by name and with these fields."""

    make: Callable[..., Fault]
    told: str
    usable_on: frozenset[Where]
    fields: Fields


def _kind_of(name: str, hint: Any, owner: str) -> Kind:
    """The values that the parameter *name* takes, from its annotation."""
    if get_origin(hint) in {Union, UnionType}:
        return _kind_of_union(name, get_args(hint), owner)
    if get_origin(hint) is Literal:
        return one_of(get_args(hint))
    least, most = bounds(owner, name)
    kinds: Mapping[Any, Kind] = {
        bool: FLAG,
        int: whole(int(least), int(most)),
        float: number(least, most),
        str: WORDS.get(f"{owner}.{name}", WORDS.get(name, TEXT)),
        object: ANYTHING,
        Fault: FAULT,
        tuple[tuple[str, str], ...]: HEADERS,
    }
    return kinds[hint]


def _kind_of_union(name: str, hints: Sequence[Any], owner: str) -> Kind:
    kinds = [_kind_of(name, hint, owner) for hint in hints if hint is not type(None)]

    def make(value: Any, at: str) -> Any:
        # Text, a number and null know each other apart, so the first that takes it is the one.
        fitting = [kind for kind in kinds[:-1] if _fits(kind, value)]
        return (fitting or kinds[-1:])[0].make(value, at)

    kind = Kind(", or ".join(kind.allowed for kind in kinds), make)
    return or_null(kind) if type(None) in hints else kind


def _fits(kind: Kind, value: object) -> bool:
    try:
        kind.make(value, "")
    except ValueError:
        return False
    return True


def _fault_kind(make: Callable[..., Fault], gives: type[Fault]) -> FaultKind:
    fields = {
        name: Field(
            kind=_kind_of(name, one.annotation, make.__name__),
            told="",
            default=_default(one),
        )
        for name, one in inspect.signature(make).parameters.items()
    }
    told = (inspect.getdoc(make) or "").partition("\n")[0]
    return FaultKind(make, told, gives.usable_on, fields)


def _default(parameter: inspect.Parameter) -> object:
    if parameter.default is parameter.empty:
        return REQUIRED
    return {} if parameter.default == () else parameter.default


def _fault(value: Any, at: str) -> Fault:
    given = dict(value) if isinstance(value, dict) else {"kind": value}
    kind = KIND.read(given.pop("kind", None), f"{at}.kind")
    return FAULTS[kind].make(**read(FAULTS[kind].fields, given, at))


def _is_fault(thing: object) -> TypeGuard[type[Fault]]:
    return isinstance(thing, type) and issubclass(thing, Fault) and thing is not Fault


def _found() -> dict[str, FaultKind]:
    """Each kind of fault, and each function that makes one."""
    kinds = {}
    for name, thing in vars(faults).items():
        gives = thing if _is_fault(thing) else None
        if inspect.isfunction(thing):
            gives = inspect.signature(thing).return_annotation
        if _is_fault(gives):
            kinds[name] = _fault_kind(thing, gives)
    return kinds


FAULT: Final = Kind('a fault: its "kind", and the fields of that kind', _fault)
FAULTS: Final[Mapping[str, FaultKind]] = _found()
KIND: Final = one_of(FAULTS)


def check_place(where: Where, fault: Fault, at: str) -> None:
    """
    Raise unless *fault*, and what follows on it, can happen there.

    Raises:
        Unfit: It cannot.
    """
    if where not in fault.usable_on:
        what = f"cannot be: {type(fault).__name__} does not happen there"
        raise misfit(at, where, sorted(fault.usable_on), what)
    then = getattr(fault, "then", None)
    if then is not None:
        check_place(where, then, at)


# What is asked for

_TIMES: Final = Field(
    or_null(whole(1, MOST)), "How many requests it happens to; null is all of them.", 1
)
FAULT_FIELDS: Final[Fields] = {
    "where": Field(one_of(sorted(faults.PLACES)), "The requests that it happens to."),
    "fault": Field(FAULT, "What goes wrong: an object, or only the name of a kind."),
    "times": _TIMES,
    "seconds": Field(or_null(SECONDS), "For how long from now; null is no end.", None),
}
OWN_FAULT_FIELDS: Final[Fields] = {
    "where": Field(one_of(OWN), "Its submit, looks at it, or its download."),
    "fault": FAULT_FIELDS["fault"],
    "times": _TIMES,
}


def _own_fault(value: Any, at: str) -> Planned:
    wanted = read(OWN_FAULT_FIELDS, value, at)
    check_place(wanted["where"], wanted["fault"], f"{at}.where")
    return Planned(**wanted)


OWN_FAULT: Final = Kind('an object with "where", "fault" and "times"', _own_fault)
SCRIPT_FIELDS: Final[Fields] = {
    "prompt": Field(TEXT, "All tasks with exactly this prompt.", None),
    "pattern": Field(REGULAR, "All tasks in whose prompt this is found.", None),
    "takes": Field(
        or_null(SECONDS), "From the submit to the end; null is the gateway's own.", None
    ),
    "then": Field(one_of((*ENDINGS, "stall")), "How it ends; a stall never does.", "succeed"),
    "dialect": Field(or_null(DIALECT), "Of its answers; null is the gateway's own.", None),
    "faults": Field(list_of(OWN_FAULT), "What goes wrong with it.", []),
    "progress": Field(
        list_of(PERCENT), "The percents it tells while it runs.", [0, 20, 40, 60, 80]
    ),
    "queued": Field(number(0, 1), "The share of its time that it waits in the queue.", 0.1),
    "reason": Field(
        or_null(TEXT),
        "What is said of its failure; null is nothing.",
        "The input did not pass the content moderation",
    ),
    "failure_code": Field(
        TEXT, "The code of its failure in the official format.", "SAFETY.INPUT.TEXT"
    ),
    "refund": Field(FLAG, "Whether its points come back after a failure.", default=True),
    "end_status": Field(
        or_null(TEXT), "What `status` says at its end; null is the dialect's own word.", None
    ),
    "end_state": Field(or_null(TEXT), "The same for `state`.", None),
    "hidden": Field(SECONDS, "For how long the gateway says `task_not_exist` at first.", 0.0),
    "blank": Field(SECONDS, "For how long its answers are all empty at first.", 0.0),
    "url_after": Field(
        or_null(SECONDS), "How long after its success the URL appears; null is never.", 0.0
    ),
}
KEY_FIELDS: Final[Fields] = {
    "key": Field(A_KEY, "What its requests have to carry."),
    "points": Field(or_null(SECONDS), "What it has; null is without limit.", None),
    "name": Field(
        or_null(TEXT), "What the balance routes call it; null counts: `test_key_2`.", None
    ),
}


def script(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """
    What a script asks for, as `Simulator.script` takes it.

    Raises:
        Unfit: Two of its fields contradict each other.
    """
    rest = dict(wanted)
    named = [rest.pop(name) for name in ("prompt", "pattern") if name in rest]
    if len(named) > 1:
        raise misfit("pattern", wanted["pattern"].pattern, ["prompt", "pattern"], "is one too many")
    then = rest.get("then", "succeed")
    if "url_after" in rest and then != "succeed":
        what = f"cannot be: a task that ends as {then!r} has no URL"
        raise misfit("url_after", rest["url_after"], 'nothing, or "then": "succeed"', what)
    return {"which": named[0] if named else None, **rest}
