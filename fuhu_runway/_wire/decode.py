"""
Responses as models: bytes in, `TaskRecord` or `Balance` out. Pure functions.

Rule 1: no socket, no clock, no state; everything that depends on the gateway is in `tables`.
Rule 2: a response is recognised by its shape alone, never by its host (api-facts 2).
Rule 3: whatever comes in, only errors of this package come out.
"""

import functools
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NewType, overload

import attrs

from fuhu_runway._json import decode, parsed
from fuhu_runway._redact import redact, shown_code
from fuhu_runway._urls import is_web_address
from fuhu_runway.errors import Fate, GatewayError, RunwayError, UnreadableReply
from fuhu_runway.models import Balance, TaskRecord, TaskState

from . import tables as facts
from . import values
from .encode import Reply, Request
from .refusals import TASK_ERROR, TASK_NOT_EXIST, Reasons, error_of, no_json, refusal_of, unreadable
from .salvage import bare_id, id_of, is_task_key, salvage
from .tables import Dialect, Replay, Sense, dialect_of

if TYPE_CHECKING:
    import cattrs


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
            raise unreadable(reply, f"expected a task, got {sense.value} @ $", body=body)
        return _read_task(reply, body, dialect)
    except (GatewayError, UnreadableReply) as refused:
        task_id = salvaged(reply.request, reply.body, is_whole=not reply.cut)
        if task_id is None:
            raise
        reasons = getattr(refused, "reasons", ("a task id beside a refusal",))
        in_doubt = unreadable(reply, *reasons, excerpt=_excerpt_of(refused))
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
        raise unreadable(reply, f"expected a balance, got {sense.value} @ $", body=body)
    part = body if dialect.under is None else body.get(dialect.under)
    path = "$" if dialect.under is None else f"$.{dialect.under}"
    found = _structure(Ledger, dialect, part, path, reply)
    for name in dialect.required:
        if getattr(found, name) is None:
            missing = f"required field missing @ {path}.{dialect.spelling[name]}"
            raise unreadable(reply, missing, body=part)
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
    dialect = dialect_of(body)
    sense = dialect.sense(body) if dialect else None
    if dialect is None or sense is Sense.REFUSAL:
        refusal = _why_not(reply, body, dialect)
        # What names a task is one, whatever stands beside it. Only a refusal that is proven
        # outweighs an id, and not one that comes with a state.
        part = _named_part(body) if wanted is Sense.TASK and reply.is_success else None
        if part is None or (
            refusal.fate is not Fate.UNKNOWN and not part.keys() & facts.STATE_KEYS
        ):
            raise refusal
        return part, _dialect_by_shape(part), Sense.TASK
    if not reply.is_success and dialect.letter not in {"A", "B"}:
        # Only the two envelopes say by themselves that all is well; of any other shape the
        # status decides whether it is an answer or an error that happens to have an id.
        raise refusal_of(reply, body, TASK_ERROR)
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
        return refusal_of(reply, body, dialect)
    if not reply.is_success:
        return refusal_of(reply, body, TASK_ERROR)
    return unreadable(reply, "no dialect fits @ $", body=body)


def _dialect_by_shape(part: Mapping[str, Any]) -> Dialect:
    """Return the dialect that spells a task as *part* does, which stands in no known envelope."""
    rows = [row for row in facts.DIALECTS if row.under is None and row.sense(part) is Sense.TASK]
    return next((row for row in rows if row.fits(part)), rows[-1])


def _decode(reply: Reply) -> dict[str, Any]:
    """Return the body as a JSON object; a list or an id alone counts as an envelope's data."""
    body, fault = None, None
    try:
        body = decode(reply.body)
    except (ValueError, RecursionError) as broken:
        fault = type(broken).__name__
    # Raised outside the clause, since the original holds the whole answer.
    if fault or reply.cut:
        raise no_json(reply, fault)
    return body if isinstance(body, dict) else {"data": body}


def _read_task(reply: Reply, body: dict[str, Any], dialect: Dialect) -> TaskRecord:
    part, path = _part(body, dialect, reply.request.task_id)
    is_empty = dialect.empty_is_not_found and part in (None, [], {}) and reply.status < 429
    if is_empty and reply.request.task_id is not None:
        raise error_of(reply, reply.status, Reasons(None, {TASK_NOT_EXIST}, None))
    key, asked = dialect.spelling["task_id"], reply.request.task_id
    if not (isinstance(part, Mapping) and values.text_in(part.get(key))):
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
        if usual not in found and (usual == "status" or values.address_in(value) is not None):
            found[usual] = value
    return found | {key: value for key, value in part.items() if value is not None}


def _inner(value: Any, depth: int = 0) -> Iterator["Sighting"]:
    """Yield what the upstream said, which a relay passes on in whatever dialect it came."""
    value = parsed(value) if isinstance(value, str) else value
    if not isinstance(value, dict) or depth == facts.MAX_NESTING:
        return
    envelope = dialect_of(value)
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


@attrs.define(eq=False)  # frozen ones take three times as long to make, at each poll
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


def make_converter() -> "cattrs.Converter":
    """Return the converter of this package: forgiving in types, strict about what must be there."""
    # With the first answer and not with the client: a program that asks nothing starts faster.
    import cattrs  # noqa: PLC0415

    converter = cattrs.Converter()
    readers = {
        Text: values.task_id_in,
        Text | None: values.text_in,
        Number | None: values.number_in,
        Fraction | None: values.fraction_in,
        Instant | None: values.instant_in,
        Address | None: values.address_in,
        Flag | None: values.flag_in,
        Refund | None: values.refund_in,
        Cost | None: values.cost_in,
        Trouble | None: values.trouble_in,
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
        raise unreadable(reply, *reasons, body=part)
    try:
        return _reader(kind, dialect.name)(part)
    except Exception as unfit:  # noqa: BLE001  (cattrs groups whatever the readers raise)
        from cattrs import transform_error  # noqa: PLC0415  (as above)

        reasons = transform_error(unfit, path=path, format_exception=_explained)
    raise unreadable(reply, *reasons, body=part)


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
    number = values.number_in(word)
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
