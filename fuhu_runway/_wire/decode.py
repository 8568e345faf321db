"""
Pure functions between models and bytes: `build` and `read`.

Rule 1: no socket, no clock, no state; everything that depends on the gateway is in `_gateway`.
Rule 2: an answer is recognised by its shape alone, each time anew (api-facts 2).
Rule 3: whatever comes in, only errors of this package come out.
"""

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

from fuhu_runway._json import decode, parsed, text_of
from fuhu_runway._redact import outline, outline_text, redact, shown_code, without
from fuhu_runway.errors import Fate, GatewayError, RunwayError, UnreadableReply
from fuhu_runway.models import (
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

from . import tables as facts
from .salvage import NO_IDS, bare_id, id_of, is_task_key, salvage
from .tables import Dialect, Endpoint, Refusal, Replay, Root, Sense

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
        """Return the same exchange with further texts among its secrets; itself if none is new."""
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
    Return what *reply* says about a task.

    Raises:
        GatewayError: The gateway refused; the leaf says how.
        UnreadableReply: No dialect fits, a required part is missing, or the answer to a paid
            request names a task without accepting it: `task_id` is that task.
    """
    try:
        body, dialect, sense = _recognise(reply)
        if sense is not Sense.TASK:
            raise _unreadable(reply, f"expected a task, got {sense.value} @ $", body=body)
        return _read_task(reply, body, dialect)
    except (GatewayError, UnreadableReply) as refused:
        task_id = salvaged(reply.request, reply.body, is_whole=not reply.cut)
        if task_id is None:
            raise
        reasons = getattr(refused, "reasons", ("a task id beside a refusal",))
        in_doubt = _unreadable(reply, *reasons, excerpt=_excerpt_of(refused))
        in_doubt.happened = f"The answer names a task and does not accept it. {refused.happened}"
        in_doubt.task_id = task_id
        raise in_doubt from refused


def _excerpt_of(refused: GatewayError | UnreadableReply) -> str:
    return refused.excerpt if isinstance(refused, UnreadableReply) else refused.body


def salvaged(request: Request, body: bytes, *, is_whole: bool = False) -> str | None:
    """Return the task that an answer to a paid request names; what was sent is no id."""
    if request.endpoint.replay is not Replay.PAID:
        return None
    found = salvage(body, is_whole=is_whole)
    if not found:
        return None  # what was sent may be a picture of some MB
    texts = (text.encode("utf-8", "replace") for text in request.secrets)
    sent = {one for text in texts for one in salvage(text, is_whole=True)}
    # A short prompt may stand in an id by chance.
    long = [text for text in request.secrets if len(text) > 7]
    sent |= {one for one in found if one in request.secrets or any(text in one for text in long)}
    return next((one for one in found if one not in sent and redact(one) == one), None)


def read_balance(reply: Reply) -> Balance:
    """
    Return what *reply* says about the balance.

    Raises:
        GatewayError: The gateway refused; the leaf says how.
        UnreadableReply: No dialect fits, or a required part is missing.
    """
    body, dialect, sense = _recognise(reply)
    if sense is not Sense.BALANCE:
        raise _unreadable(reply, f"expected a balance, got {sense.value} @ $", body=body)
    part = body if dialect.under is None else body.get(dialect.under)
    path = "$" if dialect.under is None else f"$.{dialect.under}"
    found = _structure(Ledger, dialect, part, path, reply)
    for name in dialect.required:
        if getattr(found, name) is None:
            missing = f"required field missing @ {path}.{dialect.spelling[name]}"
            raise _unreadable(reply, missing, body=part)
    return found.balance(raw=body)


def read_callback(body: bytes) -> TaskRecord | None:
    """
    Return what a webhook says about a task; None where it says nothing that can be read.

    It is the feed's answer without its envelope (api-facts 4), and with one it is read as well.
    """
    request = Request(facts.ENDPOINTS["feed"], "", {})
    # Anyone may post to a webhook, so what is wrong with it is no error of ours.
    try:
        return read_task(Reply(request, 200, {}, body))
    except RunwayError:
        return None


def _recognise(reply: Reply) -> tuple[dict[str, Any], Dialect, Sense]:
    """Return the body, its dialect and what it is about; raise if it is a refusal."""
    body = _decode(reply)
    wanted = Sense.TASK if reply.request.endpoint.gives is TaskRecord else Sense.BALANCE
    dialect = _dialect_of(body)
    sense = dialect.sense(body) if dialect else None
    if dialect is None or sense is Sense.REFUSAL:
        refusal = _why_not(reply, body, dialect)
        # What names a task is one, whatever stands beside it. Only a refusal that is proven
        # outweighs an id, and not one that comes with a state.
        part = _named_part(body) if wanted is Sense.TASK and _is_success(reply) else None
        if part is None or (
            refusal.fate is not Fate.UNKNOWN and not part.keys() & facts.STATE_KEYS
        ):
            raise refusal
        return part, _dialect_by_shape(part), Sense.TASK
    if not _is_success(reply) and dialect.letter not in {"A", "B"}:
        # Only the two envelopes say by themselves that all is well; of any other shape the
        # status decides whether it is an answer or an error that happens to have an id.
        raise _refusal(reply, body, _TASK_ERROR)
    if wanted is Sense.TASK and (sense is not wanted or not body.keys() & facts.SURE_KEYS):
        # The id of an answer is not that of the task which stands further down in it.
        part = _named_part(body)
        if part is not None and facts.TASK_ID_KEY in part and dialect.letter not in {"A", "B"}:
            return part, _dialect_by_shape(part), Sense.TASK
    return body, dialect, dialect.sense(body)


def _why_not(
    reply: Reply, body: dict[str, Any], dialect: Dialect | None
) -> GatewayError | UnreadableReply:
    if dialect is not None:
        return _refusal(reply, body, dialect)
    if not _is_success(reply):
        return _refusal(reply, body, _TASK_ERROR)
    return _unreadable(reply, "no dialect fits @ $", body=body)


def _dialect_of(body: Mapping[str, Any]) -> Dialect | None:
    return next((dialect for dialect in facts.DIALECTS if dialect.fits(body)), None)


def _dialect_by_shape(part: Mapping[str, Any]) -> Dialect:
    """Return the dialect that spells a task as *part* does, which stands in no known envelope."""
    rows = [row for row in facts.DIALECTS if row.under is None and row.sense(part) is Sense.TASK]
    return next((row for row in rows if row.fits(part)), rows[-1])


def _is_success(reply: Reply) -> bool:
    return 200 <= reply.status < 300


def _decode(reply: Reply) -> dict[str, Any]:
    """Return the body as a JSON object; a list or an id alone counts as an envelope's data."""
    body, fault = None, None
    try:
        body = decode(reply.body)
    except (ValueError, RecursionError) as broken:
        fault = type(broken).__name__
    # Raised outside the clause, since the original holds the whole answer.
    if fault or reply.cut:
        raise _no_json(reply, fault)
    return body if isinstance(body, dict) else {"data": body}


def _no_json(reply: Reply, fault: str | None) -> GatewayError | UnreadableReply:
    """Return what an answer means that is not JSON, so perhaps not the gateway's own."""
    text = text_of(reply.body[:MAX_BODY]).lstrip()
    kind = reply.headers.get("content-type", "").lower()
    is_page = "html" in kind or text[:9].lower().startswith(("<!doctype", "<html"))
    is_paid = reply.request.endpoint.replay is Replay.PAID
    shown = redact(text, reply.request.secrets)
    names = set()
    if reply.headers.get("cf-mitigated", "").lower() == "challenge":
        names.add(facts.CHALLENGE)
    if not is_paid and reply.status != 429:
        names.add(facts.STRANGER)
    elif is_page and _is_success(reply) and any(mark in shown for mark in facts.INDEX_PAGE_MARKS):
        names.add(facts.INDEX_PAGE)
    if not is_page and _is_success(reply):
        reason = "larger than what is read of an answer @ $"
        if not reply.cut:
            reason = f"expected JSON, got {fault} @ $"
        return _unreadable(reply, reason, excerpt=outline_text(shown))
    what = "a web page" if is_page else "not JSON" if text else "empty"
    happened = f"The answer was {what}, with status {reply.status}."
    return _no(reply, reply.status, Told(None, names, None), happened)


def _read_task(reply: Reply, body: dict[str, Any], dialect: Dialect) -> TaskRecord:
    part, path = _part(body, dialect, reply.request.task_id)
    is_empty = dialect.empty_is_not_found and part in (None, [], {}) and reply.status < 429
    if is_empty and reply.request.task_id is not None:
        raise _no(reply, reply.status, Told(None, {facts.TASK_NOT_EXIST}, None))
    key, asked = dialect.spelling["task_id"], reply.request.task_id
    if not (isinstance(part, Mapping) and _text(part.get(key))):
        is_named = _named_part(part, 0) is not None
        is_state = isinstance(part, Mapping) and not facts.STATE_KEYS.isdisjoint(part)
        # An envelope's own id is that of the answer rather than of the task.
        named = _named_part(part) or _named_part(body)
        if asked is not None and is_state and not is_named:
            part = {**part, key: asked}  # the answer to a poll is about the task that was polled
        elif named is not None:
            part, dialect = named, _dialect_by_shape(named)
    outer = _structure(Sighting, dialect, _usual(part), path, reply)
    return _fold([outer, *_inner(outer.inner)], reply)


def _part(body: Mapping[str, Any], dialect: Dialect, task_id: str | None = None) -> tuple[Any, str]:
    if dialect.under is None:
        return body, "$"
    part = body.get(dialect.under)
    if isinstance(part, list) and part:
        # Batch routes answer with a list (api-facts 2 B).
        key = dialect.spelling["task_id"]
        named = [item for item in part if isinstance(item, dict) and item.get(key) == task_id]
        return (named or part)[0], f"$.{dialect.under}[0]"
    return part, f"$.{dialect.under}"


def _named_part(value: Any, depth: int = facts.MAX_NESTING) -> dict[str, Any] | None:
    """Return the object in *value* that names a task, in our spelling; a `task_id` before an id."""
    found = list(_named_parts(value, depth))
    return next((part for part in found if facts.TASK_ID_KEY in part), next(iter(found), None))


def _named_parts(value: Any, depth: int) -> Iterator[dict[str, Any]]:
    if isinstance(value, str):
        value = parsed(value) or {facts.TASK_ID_KEY: bare_id(value)}
    if isinstance(value, list) and depth:
        for item in value:
            yield from _named_parts(item, depth - 1)
    if isinstance(value, dict):
        sure = next(filter(None, (id_of(value[key]) for key in value if is_task_key(key))), None)
        if sure is not None:
            # Beside a code, the message is the envelope's and no reason for a failure.
            words = facts.ENVELOPE_WORDS if "code" in value else frozenset()
            yield {key: value[key] for key in value if key not in words} | {facts.TASK_ID_KEY: sure}
        elif isinstance(value.get("id"), str) and id_of(value["id"]) is not None:
            yield value  # a number is the row of a database
        for key in facts.PARTS:
            if depth and value.get(key):
                yield from _named_parts(value[key], depth - 1)


def _usual(part: Any) -> Any:
    """Return *part* with what it spells in a rare way under the usual keys as well."""
    if not isinstance(part, dict) or not part.keys() & facts.USUAL_KEYS.keys():
        return part
    found: dict[str, Any] = {}
    for rare, usual in facts.USUAL_KEYS.items():
        value = part.get(rare)
        if usual not in found and (usual == "status" or _usable_address(value) is not None):
            found[usual] = value
    return found | {key: value for key, value in part.items() if value is not None}


def _inner(value: Any, depth: int = 0) -> Iterator["Sighting"]:
    """Yield what the upstream said, which a relay passes on in whatever dialect it came."""
    value = parsed(value) if isinstance(value, str) else value
    if not isinstance(value, dict) or depth == facts.MAX_NESTING:
        return
    envelope = _dialect_of(value)
    is_envelope = envelope is not None and envelope.under == "data"
    part = _part(value, envelope)[0] if is_envelope and envelope is not None else value
    if isinstance(part, dict):
        dialect = _dialect_by_shape(part)
        # The id of the relay is the one that counts, so the upstream's may be missing or odd.
        found = _reader(Sighting, dialect.name)({**_usual(part), dialect.spelling["task_id"]: "-"})
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
Cost = NewType("Cost", float)
Trouble = NewType("Trouble", tuple[str | None, str | None])


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
    #: Message and code of an error object, which may stand beside a success as well.
    error: Trouble | None = None
    points: Number | None = None
    cost: Cost | None = None
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
    text = id_of(value) or (isinstance(value, str) and value.strip())
    if not text or text.lower() in NO_IDS:
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
    """Read an address, also the first of a list or that of an object, if it can be fetched."""
    if not value:
        return None
    if isinstance(value, str):
        value = parsed(value) or value
    # One level and no more: what nests without end must not take the id beside it along.
    items = value if isinstance(value, list) else [value]
    found = (_address_in(item) if isinstance(item, dict) else item for item in items)
    texts = (text.strip() for text in found if isinstance(text, str))
    return next(filter(_is_address, texts), None)


def _address_in(item: dict[str, Any]) -> Any:
    return item.get("url") or item.get("video_url") or item.get("video")


def _is_address(text: str) -> bool:
    # A path of the gateway's own counts as well; `_fold` puts the gateway's origin before it. Names
    # of files may have spaces, which are quoted when the file is fetched.
    text = text.replace(" ", "%20")
    return is_web_address(text) or _PATH.fullmatch(text) is not None


_PATH: Final = re.compile(r"//?[^\s/\\\ud800-\udfff][^\s\0\ud800-\udfff]*")


def _flag(value: Any, _type: Any = None) -> bool:
    return value is True


def _refund(value: Any, _type: Any = None) -> bool:
    """Read an amount and a flag alike: pages disagree on which it is (api-facts 4)."""
    text = _text(value)
    if text is None:
        return value is True
    amount = _AMOUNT.search(text)
    return float(amount[0]) != 0 if amount else text.lower() not in facts.NO_REFUND


_AMOUNT: Final = re.compile(r"\d{1,300}(?:\.\d{1,300})?", re.ASCII)


def _cost(value: Any, _type: Any = None) -> float | None:
    """Return the credits of an official task (api-facts 11, row 8)."""
    return _number(value.get("credits")) if isinstance(value, dict) else None


def _trouble(value: Any, _type: Any = None) -> tuple[str | None, str | None] | None:
    """Return message and code of an error, which may be an object or a text."""
    if not isinstance(value, dict):
        return (_text(value), None) if isinstance(value, str) else None
    messages = (_text(value.get(key)) for key in ("message", "msg", "reason", "detail"))
    return next(filter(None, messages), None), _text(value.get("code"))


def make_converter() -> "cattrs.Converter":
    """Return the converter of this package: forgiving in types, strict about what must be there."""
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
        Cost | None: _cost,
        Trouble | None: _trouble,
    }
    for kind, reader in readers.items():
        converter.register_structure_hook(kind, reader)
    return converter


@functools.cache
def _reader(kind: type, dialect_name: str) -> Callable[[Any], Any]:
    """Return the reader of one dialect, with its spelling compiled in; made when first needed."""
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
    # An address of the relay's own comes before any that the upstream has (api-facts 3.4). What
    # may be the input counts beside a success only, and last (api-facts 11, row 1).
    urls = [level.video_url or level.result_url or level.output for level in levels]
    urls += [level.raw_video_url for level in levels if succeeded]
    url = next(filter(None, urls), None)
    if url is None and succeeded and is_web_address(seen.reason):
        # Older rows keep the address in the reason for a failure that was none (api-facts 2 B).
        url = Address(str(seen.reason))
    error_message, error_code = seen.error or (None, None)
    message = seen.message or seen.reason or error_message
    state = _weigh(states, url, refunded=bool(seen.refund), against=is_reason(seen.message))
    is_submit = reply.request.endpoint.replay is Replay.PAID
    if is_submit and state is TaskState.SUCCEEDED and url is None:
        # In the answer to a submit, success means that it was accepted (api-facts 11, row 16).
        state = TaskState.QUEUED
    contradiction = (url or succeeded) and any(one in states for one in FAILURES)
    locate = functools.partial(_absolute, reply.request.url)
    return TaskRecord(
        # The very text that was asked with, which the wait holds anyway.
        task_id=asked if asked == seen.task_id else seen.task_id,
        state=state,
        word=_shown(_deciding(words, state), reply),
        progress=seen.progress,
        video_url=locate(url),
        poster_url=locate(seen.poster),
        last_frame_url=locate(seen.last_frame),
        prompt=seen.prompt,
        prompt_en=seen.prompt_en,
        message=None if succeeded and is_web_address(message) else message,
        failure_code=shown_code(seen.failure_code or error_code, reply.request.secrets),
        points=seen.cost if seen.points is None else seen.points,
        # An official task that failed and cost nothing was paid back (api-facts 11, row 8).
        refunded=bool(seen.refund)
        or (state in FAILURES and seen.cost is not None and not seen.cost),
        created_at=seen.created_at or seen.submitted_at,
        updated_at=seen.updated_at or seen.finished_at,
        notes=(CONTRADICTION,) if contradiction else (),
        answer=reply.body,
    )


def _absolute(base: str, address: str | None) -> str | None:
    """Return an address as it came, after the gateway's origin if it is a path there."""
    if address is None or not address.startswith("/"):
        return address
    scheme, _, rest = base.partition("://")
    origin = f"{scheme}:" if address.startswith("//") else f"{scheme}://{rest.partition('/')[0]}"
    return f"{origin}{address}" if rest else None


def _merged(levels: Sequence[Sighting]) -> Sighting:
    """Return one level that has of each part what the outermost level says that says anything."""
    return functools.reduce(_filled_up, levels)


def _filled_up(outer: Sighting, inner: Sighting) -> Sighting:
    pairs = zip(_values_of(outer), _values_of(inner), strict=True)
    return Sighting(*[its if own is None else own for own, its in pairs])


_values_of: Final = operator.attrgetter(*(field.name for field in attrs.fields(Sighting)))
FAILURES: Final = (TaskState.FAILED, TaskState.CANCELED)
UNFINISHED: Final = (TaskState.RUNNING, TaskState.QUEUED, TaskState.UNKNOWN)
MOST_OF_A_WORD: Final = 40
"""How much is shown of a word that no source documents, in characters."""
CONTRADICTION: Final = "the words of the answer contradict each other, or the address beside them"


def _weigh(
    states: Sequence[TaskState], url: str | None, *, refunded: bool, against: bool
) -> TaskState:
    """Apply the rules of api-facts 3.4, in their order."""
    failed = [state for state in FAILURES if state in states]
    if failed and (not url or refunded or against):
        return failed[0]
    if url:
        return TaskState.SUCCEEDED
    if TaskState.SUCCEEDED in states:
        return TaskState.FAILED if refunded or against else TaskState.SUCCEEDED
    if refunded and TaskState.UNKNOWN in states:
        return TaskState.FAILED  # points are given back for what has ended without a clip
    # The answer to a submit may say nothing at all (api-facts 1.2).
    return next((state for state in UNFINISHED if state in states), TaskState.QUEUED)


def _words(levels: Sequence[Sighting]) -> dict[str, TaskState]:
    """
    Return the words that count: those of the outermost level that has one we know.

    A relay that tries another channel goes on while the upstream it quotes has failed.
    """
    said: list[dict[str, TaskState]] = []
    for level in levels:
        said.append({word: _state_of(word) for word in (level.state, level.status) if word})
        if any(state is not TaskState.UNKNOWN for state in said[-1].values()):
            return said[-1]
    return said[0]


def _state_of(word: str) -> TaskState:
    state = facts.STATES.get(word.lower())
    if state is not None:
        return state
    number = _number(word)
    if number is not None and number.is_integer():
        return facts.STATES.get(str(int(number)), TaskState.UNKNOWN)
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word.strip(" .!"))
    plain = re.sub(r"[\s-]+", "_", words).lower().removeprefix("task_").removeprefix("status_")
    return facts.STATES.get(plain, TaskState.UNKNOWN)


def is_reason(message: str | None) -> bool:
    """Return whether *message* may say why a task failed: a word such as "success" does not."""
    return message is not None and _state_of(message) in {TaskState.UNKNOWN, *FAILURES}


def _deciding(states: Mapping[str, TaskState], state: TaskState) -> str | None:
    return next((word for word, its in states.items() if its is state), None) or next(
        iter(states), None
    )


def _shown(word: str | None, reply: Reply) -> str | None:
    """Return a status as records show it: an unknown one may quote a prompt."""
    if word is None or _state_of(word) is not TaskState.UNKNOWN:
        return word
    return redact(word, reply.request.secrets)[:MOST_OF_A_WORD]


# Refusals

MAX_BODY: Final = 2000
"""How much of a refused answer an error keeps, in characters."""
MAX_MESSAGE: Final = 4000
"""How much of a gateway's reason is read, in characters: some quote whole pictures."""


@attrs.frozen(eq=False)
class Told:
    """What a refusal says about itself."""

    #: The gateway's code, as a person may be shown it.
    code: str | None
    #: Everything that names its kind: codes and types.
    names: set[str]
    message: str | None
    #: The HTTP status that its code stands for, where it does.
    status: int | None = None


def _refusal(reply: Reply, body: Mapping[str, Any], dialect: Dialect) -> GatewayError:
    """Return the error for a refusal, unwrapped as far as it nests (api-facts 2 J)."""
    told = _told(body, dialect)
    status = reply.status
    # A status in the code counts for an envelope, which is sent with 200, and where no other
    # status refuses.
    if told.status and (dialect.code_is_status or _is_success(reply)):
        status = told.status
    for _ in range(facts.MAX_NESTING):
        inner = parsed(told.message or "")
        spoken = _dialect_of(inner) if isinstance(inner, dict) else None
        if spoken is None:
            break
        deeper = _told(inner, spoken)
        told = Told(deeper.code or told.code, deeper.names | told.names, deeper.message)
    return _no(reply, status, told)


_TASK_ERROR: Final = next(row for row in facts.DIALECTS if row.letter == "D")
"""How an error of no known shape is read, whose status says that it is one."""


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
    if message and not message.startswith("{"):
        message = "; ".join([message[:MAX_MESSAGE], *_issues(body.get("issues"))])
    return Told(_text(part.get("code")), names, message, status)


def _issues(issues: Any) -> Iterator[str]:
    """Yield which field breaks which bound, as Runway's own checks say it (api-facts 11, row 5)."""
    for issue in issues[:10] if isinstance(issues, list) else ():
        if isinstance(issue, dict) and (message := _text(issue.get("message"))):
            path = issue.get("path")
            names = path if isinstance(path, list) else [path]
            yield f"{' '.join(str(name) for name in names if name is not None)}: {message}"


_IS_CODE: Final = re.compile(r"[a-z]+(?:[_:][a-z]+)+")
"""A reason that is itself a code, as in "task_not_exist"."""


def _no(reply: Reply, status: int, told: Told, happened: str | None = None) -> GatewayError:
    """Return the error of the first row of the table that fits; *happened*: it was not JSON."""
    text, request_id = _without_request_id((told.message or "")[:MAX_MESSAGE] or None)
    request, secrets = reply.request, reply.request.secrets
    shown = redact(text, secrets) if text else None
    # What was sent is taken out first: a quoted prompt must not decide what the refusal means.
    words = without(text, secrets) if text else ""
    names = told.names | ({words} if _IS_CODE.fullmatch(words) else set())
    row = _row(status, names, words, is_json=happened is None)
    # Without proof that nothing was accepted, a paid request may have been.
    is_unproven = request.endpoint.replay is Replay.PAID and not row.proof
    fate = Fate.UNKNOWN if is_unproven else row.fate
    said = f": {shown}." if shown else "."
    about_task = row.advice == facts.BASE_URL and status == 404 and request.task_id is not None
    return row.raises(
        happened or f"The gateway refused with status {status}{said}",
        _money(request, fate),
        facts.NO_SUCH_TASK if about_task else row.advice,
        request.task_id,
        redact(request_id, secrets) if request_id else _header_id(reply),
        reply.status,
        shown_code(told.code, secrets),
        shown,
        retry_after(reply.headers, reply.received_at),
        fate,
        _shape(reply),
    )


def _row(status: int, codes: Iterable[str], text: str, *, is_json: bool) -> Refusal:
    names = {code.lower() for code in codes}
    return next(
        row
        for row in facts.REFUSALS
        if (is_json or not row.in_json)
        and (not row.statuses or status in row.statuses)
        and (not row.codes or row.codes & names)
        and (not row.texts or any(part in text.lower() for part in row.texts))
    )


def _shape(reply: Reply) -> str:
    """Return the shape of an answer, without what it quotes: it may quote anything."""
    try:
        return redact(outline(decode(reply.body)), reply.request.secrets)
    except (ValueError, RecursionError):
        return ""  # a page, which may quote anything


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
    Return how long the gateway asks us to wait, in seconds; None where it does not ask.

    Read are `retry-after-ms`, and `retry-after` as seconds, as an HTTP date, or as the Unix
    instant that some gateways send in place of seconds. An instant is measured against the
    answer's own Date, so that the two clocks need not agree, else against *received_at*.
    """
    value = headers.get("retry-after", "")
    milliseconds, seconds = _number(headers.get("retry-after-ms")), _number(value)
    if milliseconds is not None and milliseconds >= 0:
        seconds = milliseconds / 1000
    if seconds is not None and seconds < UNIX_INSTANT:
        return seconds if seconds >= 0 else None
    until = _http_date(value) if seconds is None else seconds
    now = _http_date(headers.get("date", "")) or received_at
    if until is None or now is None:
        return None
    # Milliseconds are sent in place of seconds as well.
    return max(0.0, (until if until < 100 * UNIX_INSTANT else until / 1000) - now)


UNIX_INSTANT: Final = 1e9
"""From here on a number of seconds is an instant, after 2001; no server asks for that pause."""


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
