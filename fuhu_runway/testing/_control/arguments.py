"""
Read the JSON of a control request as the arguments of one of the simulator's functions.

Rule 1. Names, types, defaults and help come from the function itself, and bounds from `BOUNDS`:
    a new fault can be planned as soon as `faults` has it.
Rule 2. Nothing is guessed: an unknown field, a wrong type and a value out of bounds are errors.
Rule 3. An error names the field, its value and the allowed values, and never shows a key.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, get_args, get_origin

import attrs

from fuhu_runway.testing import faults
from fuhu_runway.testing._server.dialects import NAMES
from fuhu_runway.testing._server.options import Allowed, Headers, allowed, one_of
from fuhu_runway.testing._server.story import OWN
from fuhu_runway.testing.faults import KNOWN, Fault, Planned


class Rejected(Exception):
    """A control request was refused; nothing was changed."""

    def __init__(self, message: str, status: int = 400, **more: object) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"message": message, **more}


def invalid(at: str, value: object, allowed: object, why: str = "is not valid") -> Rejected:
    """Return the error for the *value* of the field *at*."""
    text = json.dumps(value)
    # 1e999 is infinity for Python, which has no name in JSON.
    shown = f"{text[:200]}..." if len(text) > 200 else json.loads(text, parse_constant=str)
    return Rejected(f"{at} {why}", field=at, value="***" if at == "key" else shown, allowed=allowed)


#: Used as the default of a required field.
REQUIRED: Final = inspect.Parameter.empty


@attrs.frozen
class Field:
    """One field of a body or query."""

    allowed: str
    #: Return what the function takes for the value at a path, or raise ValueError.
    make: Callable[[Any, str], Any]
    help: str = ""
    default: object = REQUIRED

    def read(self, value: object, at: str) -> Any:
        """Return what the function takes for the *value* of the field *at*, or raise Rejected."""
        try:
            return self.make(value, at)
        except ValueError as error:
            why = f"is not valid: {error}" if str(error) else "is not valid"
            raise invalid(at, value, self.allowed, why) from error


Fields = Mapping[str, Field]


def plain(values: Allowed) -> Field:
    """Return a field whose values are used as they are."""

    def make(value: Any, _at: str) -> Any:
        if not values.fits(value):
            raise ValueError
        return value

    return Field(values.words.replace("None", "null"), make)


def list_of(field: Field) -> Field:
    def make(value: Any, at: str) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError  # noqa: TRY004 - `Field.read` catches it
        return [field.read(one, f"{at}[{index}]") for index, one in enumerate(value)]

    return Field(f"a list; in it {field.allowed}", make)


def is_text(value: object) -> bool:
    """Return whether *value* is text that can be encoded: JSON may hold half a surrogate pair."""
    return isinstance(value, str) and value == value.encode(errors="replace").decode()


def text_like(words: str, pattern: str) -> Allowed:
    """Return the texts that match *pattern* from end to end."""
    return Allowed(
        words, lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value))
    )


def _pattern(value: Any, _at: str) -> re.Pattern[str]:
    if not is_text(value):
        raise ValueError
    try:
        return re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _headers(value: Any, at: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise ValueError  # noqa: TRY004 - `Field.read` catches it
    name = plain(text_like("the name of a header", r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"))
    text = plain(
        Allowed(f"{ONE_LINE.words}, or null", lambda one: one is None or ONE_LINE.fits(one))
    )
    return tuple((name.read(key, at), text.read(one, f"{at}.{key}")) for key, one in value.items())


def _fault(value: Any, at: str) -> Fault:
    given = dict(value) if isinstance(value, dict) else {"kind": value}
    kind = FAULTS[plain(one_of(FAULTS)).read(given.pop("kind", None), f"{at}.kind")]
    return kind.make(**read(kind.fields, given, at))


def planned(arguments: Mapping[str, Any], at: str = "") -> Planned:
    """Return a planned fault, or raise Rejected if it cannot happen there."""
    where, fault = arguments["where"], arguments["fault"]
    if where not in fault.places:
        why = f"is not valid: {type(fault).__name__} does not happen there"
        raise invalid(f"{at}.where".removeprefix("."), where, sorted(fault.places), why)
    return Planned(where, fault, arguments.get("times", 1), share=arguments.get("share", 1.0))


TEXT: Final = Allowed("text", is_text)
ONE_LINE: Final = text_like("printable ASCII in one line", r"[\x20-\x7e]*")
PATTERN: Final = Field("a regular expression of Python's", _pattern)
#: The allowed texts of a parameter, by its name.
TEXTS: Final = {
    "dialect": one_of(NAMES),
    "content_type": ONE_LINE,
    "content_range": ONE_LINE,
    "retry_after": ONE_LINE,
    "known.name": one_of(KNOWN),
    "add_key.key": text_like("printable ASCII without blanks", r"[\x21-\x7e]+"),
}
ANY_JSON: Final = Allowed(
    "any JSON", lambda value: is_text(json.dumps(value, ensure_ascii=False, allow_nan=False))
)
A_FAULT: Final = 'a fault: its name, or an object with its "kind" and fields'
#: The annotations that JSON spells differently.
SPECIAL: Final[Mapping[object, Field]] = {
    object: plain(ANY_JSON),
    Fault: Field(A_FAULT, _fault),
    Fault | None: Field(
        f"{A_FAULT}, or null", lambda value, at: None if value is None else _fault(value, at)
    ),
    Iterable[Planned]: list_of(
        Field(
            'an object with "where", "fault", "times" and "share"',
            lambda value, at: planned(read(OWN_FAULT, value, at), at),
        )
    ),
    Headers: Field(
        "an object: names of headers, and their values as text; null leaves one out", _headers
    ),
}


def field_of(hint: Any, owner: str, name: str) -> Field:
    """Return the field for the parameter *name* of *owner*, from its annotation."""
    if hint in SPECIAL:
        return SPECIAL[hint]
    if get_origin(hint) is Sequence:
        return list_of(field_of(get_args(hint)[0], owner, name))
    text = TEXTS.get(f"{owner}.{name}", TEXTS.get(name, TEXT))
    return plain(allowed(hint, owner, name, text))


def fields_of(function: Callable[..., Any]) -> dict[str, Field]:
    """Return a field for each parameter of *function*, with the words of its docstring."""
    helps = dict(
        re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(function) or "", re.MULTILINE)
    )
    return {
        name: attrs.evolve(
            field_of(one.annotation, function.__name__, name),
            help=" ".join(helps.get(name, "").split()).replace("None", "null"),
            # Pairs in Python and an object in JSON.
            default={} if name == "headers" else one.default,
        )
        for name, one in inspect.signature(function).parameters.items()
        if name not in {"self", "which"}
    }


@attrs.frozen
class FaultKind:
    """One thing that can go wrong: its class, or the function that makes it."""

    make: Callable[..., Fault]
    places: frozenset[faults.Where]
    help: str
    fields: Fields

    @classmethod
    def of(cls, make: Callable[..., Fault]) -> "FaultKind":
        kind: Any = inspect.signature(make).return_annotation if inspect.isfunction(make) else make
        help_ = (inspect.getdoc(make) or "").partition("\n")[0]
        return cls(make, kind.usable_on, help_, fields_of(make))


FAULTS: Final[Mapping[str, FaultKind]] = {
    name: FaultKind.of(make)
    for name, make in vars(faults).items()
    if getattr(make, "__module__", "") == faults.__name__
    and not name.startswith("_")
    and name not in {"Fault", "Planned", "on"}
}
OWN_FAULT: Final[Fields] = {**fields_of(faults.on), "where": plain(one_of(OWN))}


def read(fields: Fields, given: object, within: str = "") -> dict[str, Any]:
    """
    Return the *given* fields as arguments; *within* is the path to them.

    Raises:
        Rejected: A field is not valid, is unknown or is missing.
    """
    before = f"{within}." if within else ""
    if not isinstance(given, dict):
        at = within or "body"
        raise Rejected(f"{at} is not an object", field=at, allowed="an object")
    for name in given:
        if name not in fields:
            # Its value may be anything, a key under a misspelt name included.
            at = f"{before}{name}"
            raise Rejected(f"{at} is not a field of this request", field=at, allowed=list(fields))
    for name, field in fields.items():
        if field.default is REQUIRED and name not in given:
            raise invalid(f"{before}{name}", None, field.allowed, "is missing")
    return {name: fields[name].read(value, f"{before}{name}") for name, value in given.items()}


def parse(raw: bytes) -> object:
    """
    Return the JSON in *raw*; an empty body is an object without fields.

    Raises:
        Rejected: It is not JSON.
    """
    try:
        return json.loads(raw or b"{}")
    except (ValueError, RecursionError) as error:
        raise Rejected(f"the body is not JSON: {error}", field="body", allowed="JSON") from error
