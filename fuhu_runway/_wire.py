"""
Pure functions between models and bytes: `build` and `read`.

Rule 1: no socket, no clock, no state; everything that depends on the gateway is in `_gateway`.
Rule 2: an answer is recognised by its shape alone, each time anew (api-facts 2).
Rule 3: whatever comes in, only errors of this package come out.
"""

import codecs
import email.utils
import functools
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NewType, overload
from urllib.parse import quote, urlencode

import attrs

from . import _gateway as facts
from ._gateway import Dialect, Endpoint, Refusal, Replay, Root, Sense
from ._redact import outline, outline_text, redact
from .errors import Fate, GatewayError, RunwayError, UnreadableReply
from .models import (
    DECODER,
    Balance,
    Gateway,
    Generation,
    KeyStyle,
    OfficialImageToVideo,
    TaskRecord,
    TaskState,
    is_web_address,
    usage_error,
)

if TYPE_CHECKING:
    import cattrs

__all__ = [
    "Reply",
    "Request",
    "ask_balance",
    "ask_task",
    "build",
    "read_balance",
    "read_callback",
    "read_task",
]


@attrs.frozen(eq=False)
class Request:
    """One exchange about to happen, complete to the last byte."""

    endpoint: Endpoint
    url: str = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes | None = attrs.field(default=None, repr=False)
    #: What must not appear in anything said about this exchange.
    secrets: tuple[str, ...] = attrs.field(default=(), repr=False)
    #: The task asked about, where there is one.
    task_id: str | None = None

    def hiding(self, *texts: str | None) -> "Request":
        """Give the same exchange with further texts among its secrets; itself if none is new."""
        news = dict.fromkeys(text for text in texts if text and text not in self.secrets)
        return attrs.evolve(self, secrets=(*self.secrets, *news)) if news else self


@attrs.frozen(eq=False)
class Reply:
    """One answer, as bytes."""

    request: Request
    status: int
    #: Asked for by names in lower case; aiohttp's own mapping does not mind the case.
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    #: The body went on past what we are willing to read.
    cut: bool = False
    #: When it came, in Unix seconds; for gateways that do not tell their own time.
    received_at: float | None = None


# Models to bytes


def build(
    request: Generation, gateway: Gateway, key: str, callback_url: str | None = None
) -> Request:
    """
    Return the request that submits *request* through *gateway*.

    Raises:
        UsageError: `extra` sets a field that has a place of its own.
    """
    endpoint = facts.SUBMITS[type(request)]
    style = _key_style(endpoint, gateway)
    body: dict[str, Any] = {facts.BODY_KEY: key} if style is KeyStyle.BODY else {}
    body |= _filled(request, endpoint)
    if isinstance(request, OfficialImageToVideo) and request.last_image is not None:
        body[facts.LAST_IMAGE["key"]] = _first_and_last(request.image, request.last_image)
    if endpoint.takes_callback and callback_url is not None:
        body[facts.CALLBACK_KEY] = callback_url
    _add_extra(body, request.extra)
    return Request(
        endpoint,
        _address(endpoint, gateway),
        _headers(style, key),
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode(),
        secrets=tuple(_secrets_of(request, key)),
    )


def ask_task(task_id: str, endpoint: Endpoint, gateway: Gateway, key: str) -> Request:
    """Return the request that polls one task; *endpoint* is the feed or the official task."""
    asks = _asks_tasks(endpoint, gateway, key)
    url = asks.url.replace("{task_id}", quote(task_id, safe="", errors="replace"))
    body = None
    if asks.endpoint.verb == "POST":
        in_body = _key_style(asks.endpoint, gateway) is KeyStyle.BODY
        shown = {facts.BODY_KEY: key} if in_body else {}
        body = json.dumps({**shown, facts.TASK_ID_KEY: task_id}).encode()
    return Request(asks.endpoint, url, asks.headers, body, asks.secrets, task_id)


@functools.lru_cache(maxsize=16)
def _asks_tasks(endpoint: Endpoint, gateway: Gateway, key: str) -> Request:
    """Return what the polls of all tasks share, since thousands of waits each hold one."""
    url = _address(endpoint, gateway)
    if endpoint.root is Root.REVERSE and gateway.feed_verb == "GET":
        endpoint = attrs.evolve(endpoint, verb="GET")
        url += f"?{facts.TASK_ID_KEY}={{task_id}}"
    return Request(endpoint, url, _headers(_key_style(endpoint, gateway), key), secrets=(key,))


def ask_balance(endpoint: Endpoint, gateway: Gateway, key: str) -> Request:
    """Return the request for one balance route; on QUOTA the key stands in the address."""
    url = _address(endpoint, gateway)
    if endpoint.root is Root.QUOTA:
        # The route wants no Authorization header (api-facts 7.1).
        return Request(endpoint, f"{url}?{urlencode({facts.QUOTA_KEY: key})}", {}, secrets=(key,))
    return Request(endpoint, url, _headers(_key_style(endpoint, gateway), key), secrets=(key,))


def _key_style(endpoint: Endpoint, gateway: Gateway) -> KeyStyle:
    """Return how this endpoint takes the key: in the body only if it has one to put it in."""
    takes_body = endpoint.root is Root.REVERSE and endpoint.verb == "POST"
    if gateway.key_style is KeyStyle.BODY and not takes_body:
        return KeyStyle.RAW
    return gateway.key_style


def _address(endpoint: Endpoint, gateway: Gateway) -> str:
    base = gateway.quota_url if endpoint.root is Root.QUOTA else gateway.base_url
    if base is None:
        raise usage_error(
            "gateway",
            f"The gateway {gateway.name!r} has no {Root.QUOTA.value} to ask.",
            "Choose another balance route for it, or name the address.",
        )
    prefixes = {Root.REVERSE: gateway.prefix, Root.OFFICIAL: gateway.official_prefix}
    return base.rstrip("/") + prefixes.get(endpoint.root, "").rstrip("/") + endpoint.path


@functools.lru_cache(maxsize=16)
def _headers(style: KeyStyle, key: str) -> Mapping[str, str]:
    """Return what every request carries; shared, since thousands of waits each hold a request."""
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        **facts.VERSION_HEADER,
    }
    if style is KeyStyle.BODY:
        return headers
    return {"Authorization": key if style is KeyStyle.RAW else f"Bearer {key}", **headers}


def _filled(request: Generation, endpoint: Endpoint) -> Iterator[tuple[str, Any]]:
    """Lay the request's attributes out as the endpoint's row says."""
    options: dict[str, Any] = {}
    for place, source in endpoint.body.items():
        value: Any = request
        for name in source.split("."):
            value = getattr(value, name)
        if value is None:
            continue
        *above, last = place.split(".")
        if above:
            target = options
            for name in above[1:]:
                target = target.setdefault(name, {})
            target[last] = value
        else:
            yield place, value
    if options:
        yield "options", options


def _first_and_last(first: str, last: str) -> list[dict[str, str]]:
    uri, position = facts.LAST_IMAGE["uri"], facts.LAST_IMAGE["position"]
    return [{uri: first, position: "first"}, {uri: last, position: "last"}]


def _add_extra(body: dict[str, Any], extra: Mapping[str, Any]) -> None:
    for name, value in extra.items():
        ours = body.get(name)
        if isinstance(ours, dict) and isinstance(value, Mapping):
            _add_extra(ours, value)
        elif name in body:
            raise usage_error(
                "extra",
                f"extra sets {name!r}, which the request sets already.",
                "Use the request's own argument for it.",
            )
        else:
            body[name] = value


def _secrets_of(request: Generation, key: str) -> Iterator[str]:
    yield key
    for name in ("prompt", "image", "last_image", "video", "character_video"):
        value = getattr(request, name, None)
        if value:
            yield value


# Bytes to models


def read_task(reply: Reply) -> TaskRecord:
    """
    Give what *reply* says about a task.

    Raises:
        GatewayError: It says no; the leaf says which no.
        UnreadableReply: No dialect fits, or a part that has to be there is missing.
    """
    body, dialect, sense = _recognise(reply)
    if sense is not Sense.TASK:
        raise _unreadable(reply, f"expected a task, got {sense.value} @ $", body=body)
    return _read_task(reply, body, dialect)


def read_balance(reply: Reply) -> Balance:
    """
    Give what *reply* says about the balance.

    Raises:
        GatewayError: It says no; the leaf says which no.
        UnreadableReply: No dialect fits, or a part that has to be there is missing.
    """
    body, dialect, sense = _recognise(reply)
    if sense is not Sense.BALANCE:
        raise _unreadable(reply, f"expected a balance, got {sense.value} @ $", body=body)
    part, path = _part(body, dialect)
    found = _structure(Ledger, dialect, part, path, reply)
    for name in dialect.required:
        if getattr(found, name) is None:
            missing = f"required field missing @ {path}.{dialect.spelling[name]}"
            raise _unreadable(reply, missing, body=part)
    return found.balance(raw=body)


def read_callback(body: bytes) -> TaskRecord | None:
    """
    Give what a delivery says about a task; None where it says nothing that can be read.

    It is the feed's answer without its envelope (api-facts 4), and with one it is read as well.
    """
    request = Request(facts.ENDPOINTS["feed"], "", {})
    # Whoever posts it may be anybody, so what is wrong with it is no error of ours.
    try:
        return read_task(Reply(request, 200, {}, body))
    except RunwayError:
        return None


def _recognise(reply: Reply) -> tuple[dict[str, Any], Dialect, Sense]:
    """Find the dialect, and raise what the answer is if it is a no."""
    body = _decode(reply)
    dialect = _dialect_of(body)
    if dialect is None:
        _raise_by_status(reply)
        raise _unreadable(reply, "no dialect fits @ $", body=body)
    sense = dialect.sense(body)
    if sense is Sense.REFUSAL:
        raise _refusal(reply, body, dialect)
    if not _is_success(reply) and dialect.letter not in {"A", "B"}:
        # Only the two envelopes say by themselves that all is well; of any other shape the
        # status tells whether it is an answer or an error that happens to have an id.
        _raise_by_status(reply)
    return body, dialect, sense


def _dialect_of(body: Mapping[str, Any]) -> Dialect | None:
    for dialect in facts.DIALECTS:
        if dialect.fits(body):
            return dialect
    return None


def _is_success(reply: Reply) -> bool:
    return 200 <= reply.status < 300


def _decode(reply: Reply) -> dict[str, Any]:
    """Give the body as a JSON object, or raise what a body that is none means (api-facts 2 H)."""
    # A text in a foreign encoding spoils itself only, not the id beside it.
    # Not "utf-8-sig", which is a codec written in Python, as every look would notice.
    text = reply.body.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
    body, fault = None, None
    try:
        body = DECODER.decode(text)
    except (ValueError, RecursionError) as broken:
        fault = type(broken).__name__
    # Raised outside the clause, since the original holds the whole answer.
    if fault:
        _raise_by_status(reply)
    if fault or reply.cut:
        raise _no_json(reply, f"expected JSON, got {fault} @ $")
    if not isinstance(body, dict):
        _raise_by_status(reply)
        raise _unreadable(reply, "expected an object @ $", body=body)
    return body


def _no_json(reply: Reply, reason: str) -> RunwayError:
    text = reply.body.decode("utf-8", "replace")
    if _is_page(reply, text):
        return _no(reply, reply.status, Told(None, {facts.WEB_PAGE}, None))
    if reply.cut:
        reason = "larger than what is read of an answer @ $"
    return _unreadable(reply, reason, excerpt=outline_text(redact(text, reply.request.secrets)))


def _is_page(reply: Reply, text: str) -> bool:
    kind = reply.headers.get("content-type", "").lower()
    start = text.lstrip("\ufeff \r\n\t")[:9].lower()
    return "html" in kind or start.startswith(("<!doctype", "<html"))


def _read_task(reply: Reply, body: dict[str, Any], dialect: Dialect) -> TaskRecord:
    part, path = _part(body, dialect, reply.request.task_id)
    if dialect.empty_is_not_found and part in (None, [], {}) and reply.request.task_id is not None:
        raise _no(reply, reply.status, Told(None, {facts.TASK_NOT_EXIST}, None))
    if isinstance(part, str) and part.strip():
        # Some submits answer with the id alone; it must not be lost over its shape.
        part = {facts.TASK_ID_KEY: part}
    outer = _structure(Sighting, dialect, part, path, reply)
    return _fold([outer, *_inner(outer.inner)], reply)


def _part(body: dict[str, Any], dialect: Dialect, task_id: str | None = None) -> tuple[Any, str]:
    if dialect.under is None:
        return body, "$"
    part = body.get(dialect.under)
    if isinstance(part, list) and part:
        # Batch routes answer with a list (api-facts 2 B).
        key = dialect.spelling.get("task_id", "")
        named = [item for item in part if isinstance(item, dict) and item.get(key) == task_id]
        return (named or part)[0], f"$.{dialect.under}[0]"
    return part, f"$.{dialect.under}"


def _inner(value: Any, depth: int = 0) -> Iterator["Sighting"]:
    """Give what the upstream said, which a relay passes on in whatever dialect it came."""
    if not isinstance(value, dict) or depth == facts.MAX_NESTING:
        return
    dialect = _dialect_of(value)
    if dialect is None or dialect.sense(value) is not Sense.TASK:
        return
    part, _ = _part(value, dialect)
    if isinstance(part, dict):
        # The id of the relay is the one that counts, so the upstream's may be missing or odd.
        named = {**part, dialect.spelling["task_id"]: "-"}
        found = _reader(Sighting, dialect.name)(named)
        yield found
        yield from _inner(found.inner, depth + 1)


# Parts of an answer, and how each is read whatever its type

Text = NewType("Text", str)
Number = NewType("Number", float)
Fraction = NewType("Fraction", float)
Instant = NewType("Instant", datetime)
Address = NewType("Address", str)
Flag = NewType("Flag", bool)
Refund = NewType("Refund", bool)


@attrs.define(eq=False)  # frozen ones take three times as long to make, at each look
class Sighting:
    """What one level of an answer says about a task, before it is weighed against the others."""

    task_id: Text
    state: Text | None = None
    status: Text | None = None
    progress: Fraction | None = None
    video_url: Address | None = None
    result_url: Address | None = None
    raw_video_url: Address | None = None
    output: Address | None = None
    poster: Address | None = None
    last_frame: Address | None = None
    prompt: Text | None = None
    prompt_en: Text | None = None
    #: Said beside a failure only.
    message: Text | None = None
    #: Said beside a success as well (api-facts 2 B).
    reason: Text | None = None
    failure_code: Text | None = None
    points: Number | None = None
    refund: Refund | None = None
    created_at: Instant | None = None
    updated_at: Instant | None = None
    submitted_at: Instant | None = None
    finished_at: Instant | None = None
    inner: Any = None


@attrs.frozen(eq=False)
class Ledger:
    """What one answer says about the balance, before its units are made the same."""

    total: Number | None = None
    used: Number | None = None
    used_hundredths: Number | None = None
    remaining: Number | None = None
    unlimited: Flag | None = None

    def balance(self, raw: Any) -> Balance:
        used = self.used
        if self.used_hundredths is not None:
            used = Number(self.used_hundredths / 100)
        if self.unlimited or (self.total or 0) >= facts.UNLIMITED:
            return Balance(None, used, None, unlimited=True, raw=raw)
        total, remaining = self.total, self.remaining
        if used is not None and total is None and remaining is not None:
            total = Number(remaining + used)
        if used is not None and total is not None and remaining is None:
            remaining = Number(total - used)
        return Balance(remaining, used, total, raw=raw)


_NO_TEXT: Final = (dict, list, bool)


def _text(value: Any, _type: Any = None) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    return None if value is None or isinstance(value, _NO_TEXT) else str(value)


def _id(value: Any, _type: Any = None) -> str:
    text = _text(value)
    if text is None:
        is_empty = value is None or isinstance(value, str)
        fault = "empty" if is_empty else f"of type {type(value).__name__}"
        message = f"task id is {fault}"
        raise ValueError(message)
    return text


def _number(value: Any, _type: Any = None) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _fraction(value: Any, _type: Any = None) -> float | None:
    """Read 0.275, "27%" and 27 as a part of one."""
    percent = isinstance(value, str) and value.strip().endswith("%")
    number = _number(value.strip().rstrip("%") if percent else value)
    if number is None:
        return None
    return min(1.0, max(0.0, number / 100 if percent or number > 1 else number))


def _instant(value: Any, _type: Any = None) -> datetime | None:
    """Read Unix seconds or milliseconds, as number or text, and ISO 8601; zero is never."""
    number = _number(value)
    try:
        if number is None:
            moment = datetime.fromisoformat(value)
            return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
        if number <= 0:
            return None
        in_ms = number > 1e11
        return datetime.fromtimestamp(number / 1000 if in_ms else number, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _usable_address(value: Any, _type: Any = None) -> str | None:
    """Read an address, also the first of a list or the `url` of an object, if it can be fetched."""
    if not value:
        return None
    if isinstance(value, str):
        text = value.strip()
        return text if is_web_address(text) else None
    # One level and no more: what nests without end must not take the id beside it along.
    items = value if isinstance(value, list) else [value]
    found = (item.get("url") if isinstance(item, dict) else item for item in items)
    texts = (text.strip() for text in found if isinstance(text, str))
    return next(filter(is_web_address, texts), None)


def _flag(value: Any, _type: Any = None) -> bool:
    return value is True


def _refund(value: Any, _type: Any = None) -> bool:
    """Read an amount and a flag alike: pages disagree on which it is (api-facts 4)."""
    if value is None or isinstance(value, bool):
        return value is True
    return _text(value) is not None and _number(value) != 0


def make_converter() -> "cattrs.Converter":
    """Give the converter of this package: forgiving in types, strict about what must be there."""
    # With the first answer and not with the client: a program that asks nothing starts faster.
    import cattrs  # noqa: PLC0415

    converter = cattrs.Converter()
    readers = {
        Text: _id,
        Text | None: _text,
        Number | None: _number,
        Fraction | None: _fraction,
        Instant | None: _instant,
        Address | None: _usable_address,
        Flag | None: _flag,
        Refund | None: _refund,
    }
    for kind, reader in readers.items():
        converter.register_structure_hook(kind, reader)
    return converter


@functools.cache
def _reader(kind: type, dialect_name: str) -> Callable[[Any], Any]:
    """Give the reader of one dialect, with its spelling compiled in; made when first needed."""
    from cattrs.gen import make_dict_structure_fn, override  # noqa: PLC0415  (as above)

    spelling = next(row.spelling for row in facts.DIALECTS if row.name == dialect_name)
    spelled = {
        field.name: override(rename=spelling[field.name])
        if field.name in spelling
        else override(omit=True)
        for field in attrs.fields(kind)
    }
    read = make_dict_structure_fn(kind, _converter(), **spelled)  # type: ignore[arg-type,var-annotated]
    return lambda value: read(value, kind)


@functools.cache
def _converter() -> "cattrs.Converter":
    return make_converter()


@overload
def _structure(
    kind: type[Sighting], dialect: Dialect, part: Any, path: str, reply: Reply
) -> Sighting: ...
@overload
def _structure(
    kind: type[Ledger], dialect: Dialect, part: Any, path: str, reply: Reply
) -> Ledger: ...
def _structure(kind: type, dialect: Dialect, part: Any, path: str, reply: Reply) -> Any:
    if not isinstance(part, dict):
        found = "nothing" if part is None else type(part).__name__
        key = dialect.spelling.get("task_id")
        reasons = [f"expected an object, got {found} @ {path}"]
        if key and not part:
            reasons.append(f"required field missing @ {path}.{key}")
        raise _unreadable(reply, *reasons, body=part)
    try:
        return _reader(kind, dialect.name)(part)
    except Exception as unfit:  # noqa: BLE001  (cattrs groups whatever the readers raise)
        from cattrs import transform_error  # noqa: PLC0415  (as above)

        reasons = transform_error(unfit, path=path, format_exception=_explained)
    raise _unreadable(reply, *reasons, body=part)


def _explained(fault: BaseException, kind: type | None) -> str:
    from cattrs.v import format_exception  # noqa: PLC0415  (as above)

    # Our own readers say in words what is wrong, and quote nothing.
    return str(fault) if type(fault) is ValueError else format_exception(fault, kind)


# Weighing what the levels say (api-facts 3.4)


def _fold(levels: Sequence[Sighting], reply: Reply) -> TaskRecord:
    seen = _merged(levels)
    asked = reply.request.task_id
    words = _words(levels)
    states = list(words.values())
    succeeded = TaskState.SUCCEEDED in states
    # An address of the relay's own comes before any that the upstream has (api-facts 3.4).
    url = next(filter(None, map(_result, levels)), None)
    if url is None and succeeded and is_web_address(seen.reason):
        # Older rows keep the address in the reason for a failure that was none (api-facts 2 B).
        url = Address(str(seen.reason))
    message = seen.message or seen.reason
    state = _weigh(states, url, against=bool(seen.refund) or seen.message is not None)
    contradiction = (url or succeeded) and any(one in states for one in FAILURES)
    return TaskRecord(
        # The very text that was asked with, which the wait holds anyway.
        task_id=asked if asked == seen.task_id else seen.task_id,
        state=state,
        word=_shown(_deciding(words, state), reply),
        progress=seen.progress,
        video_url=url,
        poster_url=seen.poster,
        last_frame_url=seen.last_frame,
        prompt=seen.prompt,
        prompt_en=seen.prompt_en,
        message=None if succeeded and is_web_address(message) else message,
        failure_code=_shown(seen.failure_code, reply),
        points=seen.points,
        refunded=bool(seen.refund),
        created_at=seen.created_at or seen.submitted_at,
        updated_at=seen.updated_at or seen.finished_at,
        notes=(CONTRADICTION,) if contradiction else (),
        answer=reply.body,
    )


def _merged(levels: Sequence[Sighting]) -> Sighting:
    """Give one level that has of each part what the outermost level says that says anything."""
    return functools.reduce(_filled_up, levels)


def _filled_up(outer: Sighting, inner: Sighting) -> Sighting:
    pairs = zip(_values_of(outer), _values_of(inner), strict=True)
    return Sighting(*[its if own is None else own for own, its in pairs])


def _result(level: Sighting) -> Address | None:
    return level.video_url or level.result_url or level.raw_video_url or level.output


_values_of: Final = operator.attrgetter(*(field.name for field in attrs.fields(Sighting)))
FAILURES: Final = (TaskState.FAILED, TaskState.CANCELED)
UNFINISHED: Final = (TaskState.RUNNING, TaskState.QUEUED, TaskState.UNKNOWN)
MOST_OF_A_WORD: Final = 40
"""How much is shown of a word that no source documents, in characters."""
CONTRADICTION: Final = "the words of the answer contradict each other, or the address beside them"


def _weigh(states: Sequence[TaskState], url: str | None, *, against: bool) -> TaskState:
    """Apply the rules of api-facts 3.4, in their order."""
    failed = [state for state in FAILURES if state in states]
    if failed and (not url or against):
        return failed[0]
    if url:
        return TaskState.SUCCEEDED
    if TaskState.SUCCEEDED in states:
        return TaskState.FAILED if against else TaskState.SUCCEEDED
    # The answer to a submit may say nothing at all (api-facts 1.2).
    return next((state for state in UNFINISHED if state in states), TaskState.QUEUED)


def _words(levels: Sequence[Sighting]) -> dict[str, TaskState]:
    """
    Give the words that count: those of the outermost level that has one we know.

    A relay that tries another channel goes on while the upstream it quotes has failed.
    """
    said: list[dict[str, TaskState]] = []
    for level in levels:
        said.append({word: _state_of(word) for word in (level.state, level.status) if word})
        if any(state is not TaskState.UNKNOWN for state in said[-1].values()):
            return said[-1]
    return said[0]


def _state_of(word: str) -> TaskState:
    return facts.STATES.get(word.strip().lower(), TaskState.UNKNOWN)


def _deciding(states: Mapping[str, TaskState], state: TaskState) -> str | None:
    return next((word for word, its in states.items() if its is state), None) or next(
        iter(states), None
    )


def _shown(word: str | None, reply: Reply) -> str | None:
    """Give a word of the gateway's as records show it: nobody keeps it from quoting a prompt."""
    if word is None or word.strip().lower() in facts.STATES:
        return word
    return redact(word, reply.request.secrets)[:MOST_OF_A_WORD]


# Noes


@attrs.frozen(eq=False)
class Told:
    """What a refusal tells of itself."""

    #: The gateway's code, as a person may be shown it.
    code: str | None
    #: Everything that names its kind: codes, types, and a reason that is itself a code.
    names: set[str]
    message: str | None
    #: The HTTP status that its code stands for, where it does.
    status: int | None = None


def _refusal(reply: Reply, body: Mapping[str, Any], dialect: Dialect) -> GatewayError:
    """Give the error for an answer that says no, unwrapped as far as it nests (api-facts 2 J)."""
    told = _told(body, dialect)
    status = reply.status
    # A status in the code counts for an envelope, which is sent with 200, and where there is no
    # other that says no.
    if told.status and (dialect.code_is_status or _is_success(reply)):
        status = told.status
    for _ in range(facts.MAX_NESTING):
        inner = _nested(told.message)
        spoken = _dialect_of(inner or {})
        if inner is None or spoken is None:
            break
        deeper = _told(inner, spoken)
        told = Told(deeper.code or told.code, deeper.names | told.names, deeper.message)
    return _no(reply, status, told)


def _told(body: Mapping[str, Any], dialect: Dialect) -> Told:
    """Read one level of a refusal."""
    part: Any = body.get(dialect.under) if dialect.under and not dialect.code_is_status else body
    if not isinstance(part, Mapping):
        part = {"message": part}
    names = {name for key in dialect.codes if (name := _text(part.get(key)))}
    texts = (_text(part.get(key)) or _text(body.get(key)) for key in dialect.messages)
    message = next(filter(None, texts), None)
    numbers = (int(name) for name in names if facts.is_whole(name))
    status = next((number for number in numbers if 400 <= number < 600), None)
    if message and _IS_CODE.fullmatch(message):
        names.add(message)
    return Told(_text(part.get("code")), names, message, status)


_IS_CODE: Final = re.compile(r"[a-z]+(?:[_:][a-z]+)+")
"""A reason that is itself a code, as in "task_not_exist"."""


def _nested(message: str | None) -> dict[str, Any] | None:
    if not message or not message.lstrip().startswith("{"):
        return None
    try:
        inner = json.loads(message)
    except (ValueError, RecursionError):
        return None
    return inner if isinstance(inner, dict) else None


def _raise_by_status(reply: Reply) -> None:
    """Raise what a status alone means; a success means nothing by itself."""
    if not _is_success(reply):
        raise _no(reply, reply.status, Told(None, set(), None))


def _no(reply: Reply, status: int, told: Told) -> GatewayError:
    text, request_id = _without_request_id(told.message)
    row = _row(status, told.names, text or "")
    secrets = reply.request.secrets
    shown = redact(text, secrets) if text else None
    said = f": {_stop(shown)}" if shown else "."
    return row.raises(
        row.happened or f"The gateway refused with status {status}{said}",
        _money(reply.request, row.fate),
        row.advice,
        reply.request.task_id,
        redact(request_id, secrets) if request_id else _header_id(reply),
        reply.status,
        redact(told.code, secrets) if told.code else None,
        shown,
        retry_after(reply.headers, reply.received_at),
        row.fate,
    )


def _row(status: int, codes: Iterable[str], text: str) -> Refusal:
    names = {code.lower() for code in codes}
    return next(
        row
        for row in facts.REFUSALS
        if (not row.statuses or status in row.statuses)
        and (not row.codes or row.codes & names)
        and (not row.texts or any(part in text.lower() for part in row.texts))
    )


def _stop(text: str) -> str:
    return text if text.endswith((".", "!", "?", "。")) else f"{text}."


_REQUEST_ID: Final = re.compile(r"\(request id: ([^)\s]{1,80})\)$", re.IGNORECASE)


def _without_request_id(message: str | None) -> tuple[str | None, str | None]:
    found = _REQUEST_ID.search(message or "")
    if message is None or found is None:
        return message, None
    return message[: found.start()].strip() or None, found[1]


def _header_id(reply: Reply) -> str | None:
    named = (reply.headers.get(name) for name in facts.REQUEST_ID_HEADERS)
    found = next(filter(None, named), None)
    return redact(found, reply.request.secrets) if found else None


def retry_after(headers: Mapping[str, str], received_at: float | None = None) -> float | None:
    """
    Give how long the gateway asks to be left alone, in seconds; None where it does not.

    Three forms: `retry-after-ms`, seconds, and an HTTP date. A date is measured against the
    answer's own Date, so that the two clocks need not agree, else against *received_at*.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None and milliseconds >= 0:
        return milliseconds / 1000
    value = headers.get("retry-after", "")
    seconds = _number(value)
    if seconds is not None:
        return max(0.0, seconds)
    until, sent_at = _http_date(value), _http_date(headers.get("date", ""))
    now = sent_at or received_at
    return None if until is None or now is None else max(0.0, until - now)


def _http_date(value: str) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def _unreadable(
    reply: Reply, *reasons: str, body: Any = None, excerpt: str | None = None
) -> UnreadableReply:
    return UnreadableReply(
        f"The gateway's answer fits no known dialect: {'; '.join(reasons)}.",
        _money(reply.request, Fate.UNKNOWN),
        "Report the shape of the answer, which `excerpt` holds without its content.",
        reply.request.task_id,
        _header_id(reply),
        reply.status,
        reasons,
        redact(outline(body) if excerpt is None else excerpt, reply.request.secrets),
        Fate.UNKNOWN,
    )


def _money(request: Request, fate: Fate) -> str:
    if request.endpoint.replay is Replay.FREE:
        subject = "the task and its charge are as they were" if request.task_id else "it only asked"
        return f"Nothing was charged: {subject}."
    if fate is Fate.UNKNOWN:
        return "It may have been accepted and charged."
    return "Nothing was charged."
