"""
Reads the JSON of a control request as the arguments of a function of the simulator's.

Rule 1. Names, types, defaults and help come from the function itself, and bounds from `BOUNDS`:
    a new fault can be planned as soon as `faults` has it.
Rule 2. Nothing is guessed: an unknown field, a wrong type and a value out of bounds are errors.
Rule 3. An error names the field, its value and what is allowed, and never shows a key.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeGuard, Union, get_args, get_origin

import attrs

from fuhu_runway.testing import faults
from fuhu_runway.testing._server.dialects import NAMES
from fuhu_runway.testing._server.options import bounds
from fuhu_runway.testing._server.story import OWN
from fuhu_runway.testing._server.wild import KNOWN
from fuhu_runway.testing.faults import Fault, Planned


class Rejected(Exception):
    """A control request that is turned away; nothing was changed."""

    def __init__(self, message: str, status: int = 400, **more: object) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"message": message, **more}


def invalid(at: str, value: object, allowed: object, why: str = "is not valid") -> Rejected:
    """Return the error of a field *at* that cannot have this *value*."""
    text = json.dumps(value)
    # 1e999 is infinity for Python, which has no name in JSON.
    shown = f"{text[:200]}..." if len(text) > 200 else json.loads(text, parse_constant=str)
    return Rejected(f"{at} {why}", field=at, value="***" if at == "key" else shown, allowed=allowed)


#: In the place of a default: the field has to be there.
REQUIRED: Final = inspect.Parameter.empty


@attrs.frozen
class Field:
    """What a value may be, in words, and how it is read."""

    allowed: str
    #: Return what to use for a value at a path, or raise ValueError.
    make: Callable[[Any, str], Any]
    help: str = ""
    #: What it is if it is not there.
    default: object = REQUIRED

    def read(self, value: object, at: str) -> Any:
        """Return what to use for the *value* of the field *at*, or raise Rejected."""
        try:
            return self.make(value, at)
        except ValueError as error:
            why = f"is not valid: {error}" if str(error) else "is not valid"
            raise invalid(at, value, self.allowed, why) from error


Fields = Mapping[str, Field]


def plain(allowed: str, fits: Callable[[Any], bool]) -> Field:
    """Return a field whose values are used as they come, if they fit."""

    def make(value: Any, _at: str) -> Any:
        if not fits(value):
            raise ValueError
        return value

    return Field(allowed, make)


def one_of(names: Iterable[str]) -> Field:
    """Return a field that is one of these words."""
    words = tuple(names)
    return plain(f"one of {', '.join(map(json.dumps, words))}", words.__contains__)


def list_of(field: Field) -> Field:
    """Return a field that is a list of such values."""

    def make(value: Any, at: str) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError  # noqa: TRY004 - the kind of error is not seen
        return [field.read(one, f"{at}[{index}]") for index, one in enumerate(value)]

    return Field(f"a list; in it {field.allowed}", make)


def is_text(value: object) -> TypeGuard[str]:
    """Return whether *value* is text that can be written: JSON may hold half a surrogate pair."""
    return isinstance(value, str) and value == value.encode(errors="replace").decode()


def text_like(allowed: str, pattern: str) -> Field:
    """Return a field whose text matches *pattern* from end to end."""
    return plain(
        allowed, lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value))
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
        raise ValueError  # noqa: TRY004 - the kind of error is not seen
    name = text_like("the name of a header", r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
    return tuple(
        (name.read(key, at), ONE_LINE.read(text, f"{at}.{key}")) for key, text in value.items()
    )


def _fault(value: Any, at: str) -> Fault:
    given = dict(value) if isinstance(value, dict) else {"kind": value}
    kind = one_of(FAULTS).read(given.pop("kind", None), f"{at}.kind")
    return FAULTS[kind].make(**read(FAULTS[kind].fields, given, at))


def _own_fault(value: Any, at: str) -> Planned:
    return planned(read(OWN_FAULT, value, at), at)


def planned(arguments: Mapping[str, Any], at: str = "") -> Planned:
    """Return a planned fault, or raise Rejected where it does not happen."""
    where, fault = arguments["where"], arguments["fault"]
    if where not in fault.places:
        what = f"is not valid: {type(fault).__name__} does not happen there"
        raise invalid(f"{at}.where".removeprefix("."), where, sorted(fault.places), what)
    return Planned(where, fault, arguments.get("times", 1))


TEXT: Final = plain("text", is_text)
ONE_LINE: Final = text_like("printable ASCII in one line", r"[\x20-\x7e]*")
PATTERN: Final = Field("a regular expression of Python's", _pattern)
#: Text that is more than text, by the name of its parameter.
WORDS: Final = {
    "dialect": one_of(NAMES),
    "content_type": ONE_LINE,
    "content_range": ONE_LINE,
    "retry_after": ONE_LINE,
    "known.name": one_of(KNOWN),
    "add_key.key": text_like("printable ASCII without blanks", r"[\x21-\x7e]+"),
}
#: What is read in a way of its own, by its annotation.
SPECIAL: Final[Mapping[object, Field]] = {
    bool: plain("true or false", lambda value: isinstance(value, bool)),
    object: plain(
        "any JSON", lambda value: is_text(json.dumps(value, ensure_ascii=False, allow_nan=False))
    ),
    Fault: Field('a fault: its name, or an object with its "kind" and fields', _fault),
    Iterable[Planned]: list_of(Field('an object with "where", "fault" and "times"', _own_fault)),
    tuple[tuple[str, str], ...]: Field(
        "an object: names of headers, and their values as text", _headers
    ),
}


def field_of(hint: Any, owner: str, name: str) -> Field:
    """Return the values that the parameter *name* of *owner* takes, from its annotation."""
    if get_origin(hint) in {Union, UnionType}:
        return _field_of_union(get_args(hint), owner, name)
    if get_origin(hint) is Literal:
        return one_of(get_args(hint))
    if get_origin(hint) is Sequence:
        return list_of(field_of(get_args(hint)[0], owner, name))
    if hint in SPECIAL:
        return SPECIAL[hint]
    if hint is str:
        return WORDS.get(f"{owner}.{name}", WORDS.get(name, TEXT))
    least, most = bounds(owner, name)
    kind = "a whole number" if hint is int else "a number"
    return plain(
        f"{kind} from {least:.12g} to {most:.12g}",
        lambda value: type(value) in {int, hint} and least <= value <= most,
    )


def _field_of_union(hints: Sequence[Any], owner: str, name: str) -> Field:
    fields = [field_of(hint, owner, name) for hint in hints if hint is not NoneType]
    allowed = [field.allowed for field in fields]
    is_nullable = NoneType in hints

    def make(value: Any, at: str) -> Any:
        if value is None and is_nullable:
            return None
        for field in fields[:-1]:
            try:
                return field.make(value, at)
            except ValueError:
                continue
        return fields[-1].make(value, at)

    return Field(", or ".join([*allowed, "null"] if is_nullable else allowed), make)


def fields_of(function: Callable[..., Any]) -> dict[str, Field]:
    """Return the parameters of *function*, with the words of its docstring's `Args`."""
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


def _fault_kinds() -> dict[str, FaultKind]:
    kinds = {}
    for name, make in vars(faults).items():
        made = inspect.signature(make).return_annotation if inspect.isfunction(make) else make
        is_fault = isinstance(made, type) and issubclass(made, Fault) and made is not Fault
        if is_fault and not name.startswith("_"):
            help_ = (inspect.getdoc(make) or "").partition("\n")[0]
            kinds[name] = FaultKind(make, made.usable_on, help_, fields_of(make))
    return kinds


FAULTS: Final[Mapping[str, FaultKind]] = _fault_kinds()
OWN_FAULT: Final = {**fields_of(faults.on), "where": one_of(OWN)}


def read(fields: Fields, given: object, within: str = "") -> dict[str, Any]:
    """
    Return the *given* fields, each as it is to be used; *within* is the path to them.

    Raises:
        Rejected: One of them cannot be, or one is missing.
    """
    before = f"{within}." if within else ""
    if not isinstance(given, dict):
        at = within or "body"
        raise Rejected(f"{at} is not an object", field=at, allowed="an object")
    for name in given:
        if name not in fields:
            # Its value may be anything, a key under a misspelt name included.
            at = f"{before}{name}"
            raise Rejected(f"there is no field {at} here", field=at, allowed=list(fields))
    for name, field in fields.items():
        if field.default is REQUIRED and name not in given:
            raise invalid(f"{before}{name}", None, field.allowed, "is missing")
    return {name: fields[name].read(value, f"{before}{name}") for name, value in given.items()}


def parse(raw: bytes) -> object:
    """
    Return the JSON in *raw*; nothing at all is an object without fields.

    Raises:
        Rejected: It is not JSON, or names a field twice.
    """

    def once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a field is there twice")
        return found

    def not_json(word: str) -> object:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(raw or b"{}", object_pairs_hook=once, parse_constant=not_json)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"the body is not JSON: {error}", field="body", allowed="JSON") from error
