"""
Responses as models: bytes in, `TaskRecord` or `Balance` out. Pure functions.

Rule 1: no socket, no clock, no state; everything that depends on the gateway is in `tables`.
Rule 2: a response is recognised by its shape alone, never by its host (api-facts 2).
Rule 3: for any bytes, only errors of this package are raised.
"""

import functools
import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final

import attrs

from fuhu_runway._json import decode, parsed
from fuhu_runway._redact import redact, shown_code
from fuhu_runway._urls import is_web_address
from fuhu_runway.errors import Fate, GatewayError, RunwayError, UnreadableReply
from fuhu_runway.models import Balance, TaskRecord, TaskState

from . import tables, values
from .encode import Reply, Request
from .refusals import (
    TASK_ERROR,
    TASK_NOT_EXIST,
    Reasons,
    error_of,
    not_json,
    refusal_of,
    unreadable,
)
from .salvage import bare_id, id_of, ids_of_head, is_task_key, salvage
from .tables import Dialect, Replay, Sense, dialect_of

# Bytes to models


def read_task(reply: Reply) -> TaskRecord:
    """
    Return what *reply* says about a task.

    Raises:
        GatewayError: The gateway refused; the subclass says how.
        UnreadableReply: No dialect fits, a required part is missing, or the response to a paid
            request names a task without accepting it: `task_id` is that task.
    """
    try:
        return _read_task(reply)
    except (GatewayError, UnreadableReply) as refused:
        task_id = salvaged(reply.request, reply.body, is_whole=not reply.cut, head=reply)
        if task_id is None:
            raise
        if isinstance(refused, UnreadableReply):
            reasons, shape = refused.reasons, refused.excerpt
        else:
            reasons, shape = ("a task id beside a refusal",), refused.body
        in_doubt = unreadable(reply, *reasons, excerpt=shape)
        in_doubt.happened = f"The response names a task but does not accept it. {refused.happened}"
        in_doubt.task_id = task_id
        raise in_doubt from refused


def salvaged(
    request: Request, body: bytes, *, is_whole: bool = False, head: Reply | None = None
) -> str | None:
    """Return the task id in the response to a paid request; text that was sent is never an id."""
    if request.endpoint.replay is not Replay.PAID:
        return None
    found = salvage(body, is_whole=is_whole)
    if head is not None and (head.is_success or head.status == 303):
        found += ids_of_head(head.headers)
    if not found:
        return None  # without a search of what was sent, which may be a picture of some MB
    texts = (text.encode("utf-8", "replace") for text in request.secrets)
    sent = {one for text in texts for one in salvage(text, is_whole=True)}
    # A short prompt may be part of an id by chance.
    long = [text for text in request.secrets if len(text) > 7]
    sent |= {one for one in found if one in request.secrets or any(text in one for text in long)}
    return next((one for one in found if one not in sent and redact(one) == one), None)


def read_balance(reply: Reply) -> Balance:
    """
    Return what *reply* says about the balance.

    Raises:
        GatewayError: The gateway refused; the subclass says how.
        UnreadableReply: No dialect fits, or a required part is missing.
    """
    body, dialect = _recognise(reply, Sense.BALANCE)
    part, path = _part(body, dialect)
    if not isinstance(part, dict):
        raise _unlike(reply, part, "an object", part, path)
    said = {name: part.get(key) for name, key in dialect.spelling.items()}
    numbers = {name: values.number_in(value) for name, value in said.items()}
    for name in dialect.required:
        if numbers[name] is None:
            place = f"{path}.{dialect.spelling[name]}"
            raise _unlike(reply, part, "a number", said[name], place)
    total, used, remaining = (numbers.get(name) for name in ("total", "used", "remaining"))
    hundredths = numbers.get("used_hundredths")
    if hundredths is not None:
        used = hundredths / 100
    if said.get("unlimited") is True or (total or 0) >= tables.UNLIMITED:
        return Balance(None, used, None, unlimited=True, raw=body)
    if used is not None and total is None and remaining is not None:
        total = remaining + used
    if used is not None and total is not None and remaining is None:
        remaining = total - used
    return Balance(remaining, used, total, raw=body)


def read_file(reply: Reply) -> str:
    """
    Return the address that the answer to an upload names.

    Raises:
        GatewayError: The gateway refused; the subclass says how.
        UnreadableReply: There is no address.
    """
    body = body_of(reply)
    address = body.get(tables.FILE_URL_KEY)
    if reply.is_success and is_web_address(address):
        return str(address)
    _recognise(reply, Sense.TASK)  # raises the gateway's refusal
    raise unreadable(reply, f"no address @ $.{tables.FILE_URL_KEY}", body=body)


def read_callback(body: bytes) -> TaskRecord | None:
    """
    Return the record of a task in the body of a webhook; None if it cannot be read.

    The body is a feed response without its envelope (api-facts 4); an envelope is accepted too.
    """
    request = Request(tables.ENDPOINTS["feed"], "", {})
    # Anyone may post to a webhook, so a bad body is not our error.
    try:
        return read_task(Reply(request, 200, {}, body))
    except RunwayError:
        return None


def _recognise(reply: Reply, wanted: Sense) -> tuple[dict[str, Any], Dialect]:
    """Return the body, or the part of it that names a task, and its dialect; raise refusals."""
    body = body_of(reply)
    dialect = dialect_of(body)
    sense = dialect.sense(body) if dialect else Sense.REFUSAL
    if dialect is None or sense is Sense.REFUSAL:
        refusal: GatewayError | UnreadableReply
        if dialect is None and reply.is_success:
            refusal = unreadable(reply, "no dialect fits @ $", body=body)
        else:
            refusal = refusal_of(reply, body, dialect or TASK_ERROR)
        # A response with a task id is about a task. Only a proven refusal outweighs the id, and
        # only if the task has no state.
        is_task = wanted is Sense.TASK and reply.is_success
        part = _named_part(body, polled=reply.request.task_id) if is_task else None
        if part is None or (
            refusal.fate is not Fate.UNKNOWN and not part.keys() & tables.STATE_KEYS
        ):
            raise refusal
        return part, _dialect_by_shape(part)
    if not dialect.is_envelope:
        if not reply.is_success:
            # The shape has no code, so the HTTP status decides whether this is a response or an
            # error that happens to have an id.
            raise refusal_of(reply, body, TASK_ERROR)
        if wanted is Sense.TASK and (sense is not wanted or not body.keys() & tables.SURE_KEYS):
            # The id of a response is not that of a task further down in it.
            part = _named_part(body, polled=reply.request.task_id)
            if part is not None and tables.TASK_ID_KEY in part:
                return part, _dialect_by_shape(part)
    if sense is not wanted:
        raise unreadable(reply, f"expected {wanted.value}, got {sense.value} @ $", body=body)
    return body, dialect


def body_of(reply: Reply) -> dict[str, Any]:
    """Return the body as an object; a list or an id alone is read as the data of an envelope."""
    fault = None
    try:
        value = decode(reply.body)
    except (ValueError, RecursionError) as broken:
        value, fault = None, type(broken).__name__
    # Raised outside the clause, because the original error holds the whole response.
    if fault or reply.cut:
        raise not_json(reply, fault)
    return value if isinstance(value, dict) else {"data": value}


def _dialect_by_shape(part: Mapping[str, Any]) -> Dialect:
    """Return the dialect that spells a task as *part* does, which is in no known envelope."""
    rows = [row for row in tables.DIALECTS if row.under is None and row.about is Sense.TASK]
    return next((row for row in rows if row.fits(part)), rows[-1])


def _read_task(reply: Reply) -> TaskRecord:
    body, dialect = _recognise(reply, Sense.TASK)
    polled, key = reply.request.task_id, dialect.spelling["task_id"]
    part, path = _part(body, dialect, polled)
    is_empty = dialect.empty_is_not_found and part in (None, [], {}) and reply.status < 429
    if is_empty and polled is not None:
        raise error_of(reply, reply.status, Reasons(names={TASK_NOT_EXIST}), body)
    if not (isinstance(part, dict) and values.text_in(part.get(key))):
        # An envelope's own id is that of the response, not of the task.
        named = _named_part(part, polled=polled) or _named_part(body, polled=polled)
        is_state = isinstance(part, dict) and not tables.STATE_KEYS.isdisjoint(part)
        if polled is not None and is_state and _named_part(part, 0) is None:
            part = {**part, key: polled}  # the response to a poll is about the task that was polled
        elif named is not None:
            part, dialect = named, _dialect_by_shape(named)
    if not isinstance(part, dict):
        raise _unlike(reply, part, "an object", part, path)
    found = part.get(dialect.spelling["task_id"])
    # Usually it is the text of the request, which the wait holds anyway.
    task_id = polled if found == polled else values.task_id_in(found)
    if task_id is None:
        raise _unlike(reply, part, "a task id", found, f"{path}.task_id")
    outer = _reader(dialect)(part)
    return _fold(task_id, [outer, *_inner(outer.inner)] if outer.inner else [outer], reply)


def _unlike(reply: Reply, part: Any, wanted: str, found: Any, path: str) -> UnreadableReply:
    """Return the error for a wrong value in *part* of a response."""
    kind = "nothing" if found in (None, "") else type(found).__name__
    return unreadable(reply, f"expected {wanted}, got {kind} @ {path}", body=part)


def _part(body: dict[str, Any], dialect: Dialect, task_id: str | None = None) -> tuple[Any, str]:
    """Return the part of *body* that its dialect is about, and the path to it."""
    if dialect.under is None:
        return body, "$"
    part = body.get(dialect.under)
    if isinstance(part, list) and part and dialect.about is Sense.TASK:
        # Batch routes respond with a list (api-facts 2 B).
        return next(iter(_polled(part, task_id)), None), f"$.{dialect.under}[0]"
    return part, f"$.{dialect.under}"


def _polled(items: list[Any], task_id: str | None) -> list[Any]:
    """Return the items of a list; of several tasks, only the one that was polled."""
    tasks = [item for item in items if isinstance(item, dict) and _named_part(item, 0)]
    if task_id is None or len(tasks) < 2:
        return items
    return [item for item in tasks if task_id in item.values()]


def _named_part(
    value: Any, depth: int = tables.MAX_NESTING, polled: str | None = None
) -> dict[str, Any] | None:
    """Return the object in *value* that names a task, in our spelling; a `task_id` before an id."""
    found = list(_named_parts(value, depth, polled))
    return next((part for part in found if tables.TASK_ID_KEY in part), next(iter(found), None))


def _named_parts(value: Any, depth: int, polled: str | None) -> Iterator[dict[str, Any]]:
    if isinstance(value, str):
        value = parsed(value) or {tables.TASK_ID_KEY: bare_id(value)}
    if isinstance(value, list) and depth:
        for item in _polled(value, polled):
            yield from _named_parts(item, depth - 1, polled)
    if isinstance(value, dict):
        sure = next(filter(None, (id_of(value[key]) for key in value if is_task_key(key))), None)
        if sure is not None:
            # Beside a code, the message is that of the envelope, not a reason for a failure.
            words = tables.ENVELOPE_WORDS if "code" in value else frozenset()
            yield {key: value[key] for key in value if key not in words} | {
                tables.TASK_ID_KEY: sure
            }
        elif isinstance(value.get("id"), str) and id_of(value["id"]) is not None:
            yield value  # a number would be the row of a database
        for key in tables.PARTS:
            if depth and value.get(key):
                yield from _named_parts(value[key], depth - 1, polled)


def _inner(value: Any, depth: int = 0) -> Iterator["Level"]:
    """Yield the levels below a relay's: upstream responses, each in its own dialect."""
    value = parsed(value) if isinstance(value, str) else value
    if not isinstance(value, dict) or depth == tables.MAX_NESTING:
        return
    envelope = dialect_of(value)
    part = _part(value, envelope)[0] if envelope and envelope.under == "data" else value
    if isinstance(part, dict):
        found = _reader(_dialect_by_shape(part))(part)
        yield found
        yield from _inner(found.inner, depth + 1)


# The parts of a response: the type of each, and the function that reads it

Text = Annotated[str | None, values.text_in]
Number = Annotated[float | None, values.number_in]
Instant = Annotated[datetime | None, values.instant_in]
Address = Annotated[str | None, values.address_in]


@attrs.define(eq=False)  # frozen classes take three times as long to make, at each poll
class Level:
    """What one level of a response says about a task, before the levels are compared."""

    state: Text = None
    status: Text = None
    progress: Annotated[float | None, values.fraction_in] = None
    video_url: Address = None
    result_url: Address = None
    raw_video_url: Address = None
    output: Address = None
    poster: Address = None
    last_frame: Address = None
    prompt: Text = None
    prompt_en: Text = None
    #: Only beside a failure.
    message: Text = None
    #: Also beside a success (api-facts 2 B).
    reason: Text = None
    failure_code: Text = None
    #: Message and code of an error object, which may stand beside a success as well.
    error: Annotated[tuple[str | None, str | None] | None, values.error_in] = None
    points: Number = None
    cost: Annotated[float | None, values.cost_in] = None
    refund: Annotated[bool | None, values.refund_in] = None
    created_at: Instant = None
    updated_at: Instant = None
    submitted_at: Instant = None
    finished_at: Instant = None
    inner: Any = None


@functools.cache
def _reader(dialect: Dialect) -> Callable[[dict[str, Any]], Level]:
    """Return the function that reads one dialect, with its spelling compiled in."""
    # Imported with the first response: a program that sends nothing starts faster without cattrs.
    from cattrs import Converter  # noqa: PLC0415
    from cattrs.gen import make_dict_structure_fn, override  # noqa: PLC0415

    spelled = {}
    for field in attrs.fields(Level):
        reader, *_ = getattr(field.type, "__metadata__", [None])
        key = dialect.spelling.get(field.name)
        spelled[field.name] = override(rename=key, struct_hook=reader, omit=key is None)
    # The readers never raise, so no errors need to be collected, which would cost CPU.
    converter = Converter(detailed_validation=False)
    read = make_dict_structure_fn(Level, converter, **spelled)  # type: ignore[arg-type]
    return lambda part: read(_usual(part), Level)


def _usual(part: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of *part* that have a value, and each rare one also by its usual name."""
    said = {key: value for key, value in part.items() if value is not None and value != ""}
    if said.keys().isdisjoint(tables.USUAL_KEYS):
        return said
    found: dict[str, Any] = {}
    for rare, usual in tables.USUAL_KEYS.items():
        value = part.get(rare)
        is_text = usual in {"status", "fail_reason"}
        if usual not in found and (is_text or values.address_in(value) is not None):
            found[usual] = value
    return found | said


# Resolving contradictions between the levels (api-facts 3.4)

FAILURES: Final = (TaskState.FAILED, TaskState.CANCELED)
CONTRADICTION: Final = "the status in the response contradicts another status, or the URL beside it"
_values_of: Final = operator.attrgetter(*(field.name for field in attrs.fields(Level)))


def _fold(task_id: str, levels: Sequence[Level], reply: Reply) -> TaskRecord:
    """Return one record from all levels of a response, the outermost first."""
    seen = levels[0]
    for inner in levels[1:]:
        pairs = zip(_values_of(seen), _values_of(inner), strict=True)
        seen = Level(*[its if own is None else own for own, its in pairs])
    words = _words(levels)
    succeeded = TaskState.SUCCEEDED in words
    # An address of the relay's own comes before the upstream's. What may be the input counts
    # only beside a success, and last (api-facts 11, row 1).
    url = None
    for level in levels:
        url = url or level.video_url or level.result_url or level.output
    if succeeded:
        for level in levels:
            url = url or level.raw_video_url
        if url is None and is_web_address(seen.reason):
            url = seen.reason  # where older rows keep it (api-facts 2 B)
    error_message, error_code = seen.error or (None, None)
    message = seen.message or seen.reason or error_message
    state = _weigh(words, url, refunded=bool(seen.refund), against=is_reason(seen.message))
    is_submit = reply.request.endpoint.replay is Replay.PAID
    if is_submit and state is TaskState.SUCCEEDED and url is None:
        # In the response to a submit, success means that it was accepted (api-facts 11, row 16).
        state = TaskState.QUEUED
    word = words.get(state) or next(iter(words.values()), None)
    if word is not None and word == words.get(TaskState.UNKNOWN):
        # A status that no source documents may quote a prompt.
        word = redact(word, reply.request.secrets)[:40]
    is_odd = (url or succeeded) and not words.keys().isdisjoint(FAILURES)
    base = reply.request.url
    return TaskRecord(
        task_id=task_id,
        state=state,
        word=word,
        progress=seen.progress,
        video_url=_absolute(base, url),
        poster_url=_absolute(base, seen.poster),
        last_frame_url=_absolute(base, seen.last_frame),
        prompt=seen.prompt,
        prompt_en=seen.prompt_en,
        message=None if succeeded and is_web_address(message) else message,
        failure_code=shown_code(seen.failure_code or error_code, reply.request.secrets),
        points=seen.cost if seen.points is None else seen.points,
        # An official task that failed and cost nothing was paid back (api-facts 11, row 8).
        refunded=bool(seen.refund) or (state in FAILURES and seen.cost == 0),
        created_at=seen.created_at or seen.submitted_at,
        updated_at=seen.updated_at or seen.finished_at,
        notes=(CONTRADICTION,) if is_odd else (),
        body=reply.body,
    )


def _words(levels: Sequence[Level]) -> dict[TaskState, str]:
    """
    Return the states that a response names, and its word for each.

    The outermost level that has a known status decides: a relay that tries another channel may
    still be running although the upstream that it quotes has failed.
    """
    outermost: dict[TaskState, str] | None = None
    for level in levels:
        words: dict[TaskState, str] = {}
        for word in (level.state, level.status):
            if word:
                words.setdefault(state_of(word), word)
        if words and (len(words) > 1 or TaskState.UNKNOWN not in words):
            return words
        outermost = words if outermost is None else outermost
    return outermost or {}


def _weigh(
    states: Collection[TaskState], url: str | None, *, refunded: bool, against: bool
) -> TaskState:
    """Apply the rules of api-facts 3.4, in their order."""
    failed = next(filter(states.__contains__, FAILURES), None)
    if failed is not None and (not url or refunded or against):
        return failed
    if url:
        return TaskState.SUCCEEDED
    if TaskState.SUCCEEDED in states:
        return TaskState.FAILED if refunded or against else TaskState.SUCCEEDED
    if refunded and TaskState.UNKNOWN in states:
        return TaskState.FAILED  # points are refunded only for tasks that ended without a clip
    for unfinished in (TaskState.RUNNING, TaskState.QUEUED, TaskState.UNKNOWN):
        if unfinished in states:
            return unfinished
    return TaskState.QUEUED  # the response to a submit may have no status at all (api-facts 1.2)


def _absolute(base: str, address: str | None) -> str | None:
    """Return a URL byte for byte; a path is appended to the gateway's origin."""
    if address is None or not address.startswith("/"):
        return address
    scheme, _, rest = base.partition("://")
    origin = f"{scheme}:" if address.startswith("//") else f"{scheme}://{rest.partition('/')[0]}"
    return f"{origin}{address}" if rest else None


def state_of(word: str) -> TaskState:
    """Return the state that a gateway's word means."""
    state = tables.STATES.get(word.lower())
    if state is not None:
        return state
    number = values.number_in(word)
    if number is not None and number.is_integer():
        return tables.STATES.get(str(int(number)), TaskState.UNKNOWN)
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word.strip(" .!"))
    plain = re.sub(r"[\s-]+", "_", spaced).lower().removeprefix("task_").removeprefix("status_")
    return tables.STATES.get(plain, TaskState.UNKNOWN)


def is_reason(message: str | None) -> bool:
    """Return whether *message* may say why a task failed: a word such as "success" does not."""
    return message is not None and state_of(message) in {TaskState.UNKNOWN, *FAILURES}
