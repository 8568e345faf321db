"""What holds for every request and every answer, not only for those that were seen."""

import itertools
import json
import math
import pickle
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from properties.strategies import (
    ADDRESSES,
    BODIES,
    ENDPOINT_NAMES,
    HEADER_VALUES,
    HEADERS,
    PROMPTS,
    REQUESTS,
    STATUSES,
    nested,
    texts,
)
from support.samples import GATEWAY, KEY, Read, reader_of, request_to
from support.secrets import secrets_in

from fuhu_runway import errors
from fuhu_runway._http.retry import MAY_REPEAT, delay_before, delays, exponential_intervals
from fuhu_runway._urls import is_web_address
from fuhu_runway._wire.encode import Reply, ask_task, build
from fuhu_runway._wire.tables import ENDPOINTS, GATEWAYS, SUBMITS, TASK_ROW, Replay, Root
from fuhu_runway._wire.values import retry_after
from fuhu_runway.account import KeyLog, TaskPage
from fuhu_runway.errors import Fate
from fuhu_runway.models import (
    Balance,
    Generation,
    MotionVector,
    OfficialRequest,
    RetryPolicy,
    TaskRecord,
    TextToVideo,
)


def answer(reply: Reply) -> Read | errors.RunwayError:
    """Return what a response is parsed as, or the RunwayError that it raises."""
    try:
        return reader_of(reply.request.endpoint.name)(reply)
    except errors.RunwayError as error:
        return error


# Responses


@given(ENDPOINT_NAMES, STATUSES, HEADERS, BODIES, st.booleans())
@example("feed", 200, {}, b'{"code":true,"data":5}', False)  # noqa: FBT003 - as Hypothesis calls it
@example("text_to_video", 200, {}, b'{"code":"' + b"9" * 5000 + b'"}', False)  # noqa: FBT003
def test_every_answer_is_a_value_or_a_runway_error(
    endpoint: str, status: int, headers: dict[str, str], body: bytes, cut: bool
) -> None:
    """Any bytes, status and headers give a model or a RunwayError."""
    result = answer(Reply(request_to(endpoint), status, headers, body, cut, 1.7e9))
    if isinstance(result, TaskRecord):
        check_record(result)
    elif isinstance(result, Balance):
        assert ENDPOINTS[endpoint].route is not None
    elif isinstance(result, TaskPage):
        check_page(result)
    elif isinstance(result, KeyLog):
        assert all(one.points is None or math.isfinite(one.points) for one in result.charges)
        assert result.starts_at is None or result.starts_at.tzinfo is not None
    else:
        check_error(result, status)


def check_record(record: TaskRecord) -> None:
    """Assert that each field of a record has its declared type."""
    assert record.task_id.strip()
    assert record.progress is None or 0 <= record.progress <= 1
    assert record.points is None or math.isfinite(record.points)
    for url in (record.video_url, record.poster_url, record.last_frame_url):
        assert url is None or is_web_address(url)
    for moment in (record.created_at, record.updated_at):
        assert moment is None or moment.tzinfo is not None
    assert isinstance(record.refunded, bool)
    assert hash(record) == hash(attrs.evolve(record, body=b""))


def check_page(page: TaskPage) -> None:
    """Assert that each task has an id, that its fields have their types, and that it compares."""
    for task in page.tasks:
        assert task.task_id.strip()
        assert task.points is None or math.isfinite(task.points)
        assert task.prompt is None or task.prompt.strip()
        for moment in (task.created_at, task.submitted_at):
            assert moment is None or moment.tzinfo is not None
        if task.record is not None:
            check_record(task.record)
        assert json.loads(json.dumps(task.as_dict()))["task_id"] == task.task_id
        assert hash(task) == hash(attrs.evolve(task, record=None))
    assert page.total is None or page.total >= 0


def check_error(error: errors.RunwayError, status: int) -> None:
    """Assert that an error has its three parts, and a retry_after that can be slept."""
    assert isinstance(error, errors.GatewayError | errors.UnreadableReply)
    assert error.status == status
    assert all((error.happened, error.money, error.advice))
    assert pickle.loads(pickle.dumps(error)).__dict__ == error.__dict__  # noqa: S301 - our own
    if isinstance(error, errors.GatewayError) and error.retry_after is not None:
        assert error.retry_after >= 0
        assert math.isfinite(error.retry_after)


ROWS = st.lists(
    st.fixed_dictionaries(
        {"task_id": st.sampled_from(["t-1", 7, None])},
        optional={key: nested() for key in (*TASK_ROW.values(), "type", "content", "other")},
    ),
    max_size=3,
)


@given(
    st.sampled_from(["account_tasks", "key_log"]),
    ROWS,
    st.fixed_dictionaries({}, optional={"total": nested(), "page": nested()}),
    HEADERS,
)
def test_every_row_of_a_list_is_read_or_left_out(
    endpoint: str, rows: list[dict[str, Any]], more: dict[str, Any], headers: dict[str, str]
) -> None:
    """No row spoils its list: those with an id are read, whatever else is in them."""
    body = json.dumps({"success": True, "data": {"items": rows, **more}}).encode()
    result = answer(Reply(request_to(endpoint), 200, headers, body))
    if isinstance(result, TaskPage):
        check_page(result)
        assert len(result.tasks) == sum(row["task_id"] is not None for row in rows)
    else:
        assert isinstance(result, KeyLog)
        assert len(result.charges) <= len(rows)


@given(ENDPOINT_NAMES, STATUSES, BODIES)
def test_only_an_answer_may_leave_a_paid_request_accepted(
    endpoint: str, status: int, body: bytes
) -> None:
    """A response never claims that a request was not sent."""
    result = answer(Reply(request_to(endpoint), status, {}, body))
    if isinstance(result, errors.RunwayError):
        fate = getattr(result, "fate", None)
        assert fate in {Fate.REFUSED, Fate.UNKNOWN, Fate.REJECTED}
        paid = ENDPOINTS[endpoint].replay is Replay.PAID
        charged = paid and fate is Fate.UNKNOWN
        assert ("may have been accepted and charged" in result.money) is charged


SENT_KEY, WORD = "k3yMARKs9a", "p7wMARKz2q"
PROMPT = f'{WORD}\n and {WORD} "of" 小猫/'
# Made once: a strategy that each example makes again takes longer than what is drawn from it.
QUOTES = st.sampled_from([SENT_KEY, PROMPT, f"no: {PROMPT} ({SENT_KEY})", PROMPT.strip()])
REFUSAL = st.fixed_dictionaries(
    {}, optional={"message": QUOTES, "code": QUOTES, "type": QUOTES, "msg": QUOTES}
)


@given(
    nested(st.one_of(QUOTES, st.integers())),
    REFUSAL | REFUSAL.map(lambda inner: {"error": inner}),
    QUOTES,
    ENDPOINT_NAMES,
    STATUSES,
)
def test_no_error_shows_what_was_sent(
    value: Any, refusal: dict[str, Any], request_id: str, endpoint: str, status: int
) -> None:
    """A gateway may quote key and prompt anywhere in a response: no error contains them."""
    body = {"data": value, "any": value} | refusal
    request = attrs.evolve(request_to(endpoint), secrets=(SENT_KEY, PROMPT))
    headers = {"x-request-id": request_id}
    result = answer(Reply(request, status, headers, json.dumps(body).encode()))
    if isinstance(result, errors.RunwayError):
        assert secrets_in(result, [SENT_KEY, WORD]) == []


# Requests


@given(REQUESTS, st.none() | ADDRESSES, st.sampled_from(sorted(GATEWAYS)))
def test_a_body_carries_every_attribute_of_its_request(
    request: Generation, callback_url: str | None, gateway: str
) -> None:
    """Each attribute that is not None is at its place in the body, and nothing else is there."""
    row = SUBMITS[type(request)]
    wire = build(
        request, attrs.evolve(GATEWAYS[gateway], base_url="https://x.example"), KEY, callback_url
    )
    assert wire.body is not None
    found = dict(leaves(json.loads(wire.body)))
    expected = dict(laid_out(request, row.body)) | dict(leaves(dict(request.extra)))
    if row.takes_callback and callback_url is not None:
        expected["callback_url",] = callback_url
    if gateway == "duomi" and row.root is Root.REVERSE:
        expected["key",] = KEY
    assert found == expected


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Return each value of a body with its path; an empty object counts as a value."""
    if isinstance(value, dict) and (value or not path):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def laid_out(
    request: Generation, places: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Return each value that is set, with the path that its row names."""
    for place, source in places.items():
        value = source(request) if callable(source) else attrgetter(source)(request)
        if isinstance(value, dict):
            yield from leaves(value, tuple(place.split(".")))
        elif value is not None:
            yield tuple(place.split(".")), value


@given(REQUESTS)
def test_no_request_shows_what_it_is_about(request: Generation) -> None:
    """Neither the repr of a request nor that of its bytes contains a prompt or a URL."""
    changes: Any = dict.fromkeys(secret_fields(request), "https://x.MARK/")
    if isinstance(request, OfficialRequest):
        changes = {"body": {"a": "https://x.MARK/"}}
    marked = attrs.evolve(request, **changes)
    wire = build(marked, GATEWAY, KEY)
    assert "MARK" not in repr(marked).replace(repr(getattr(marked, "model", "")), "")
    assert "MARK" not in repr(wire)
    assert "https://x.MARK/" in wire.secrets


def secret_fields(request: Generation) -> list[str]:
    """Return the secret fields that are set in this request."""
    fields = attrs.fields(type(request))
    hidden = [field.name for field in fields if field.repr is False or "media" in field.metadata]
    return [name for name in hidden if getattr(request, name) is not None]


@given(
    texts(min_size=1), st.sampled_from(["POST", "GET"]), st.sampled_from(["feed", "official_task"])
)
def test_a_task_id_stays_inside_its_place(task_id: str, verb: str, endpoint: str) -> None:
    """No character in an id can send a request to another path, query or host."""
    request = ask_task(task_id, ENDPOINTS[endpoint], attrs.evolve(GATEWAY, feed_verb=verb), KEY)
    assert request.url.startswith("https://api.fuhuapi.com/runway")
    plain = ask_task("x", ENDPOINTS[endpoint], attrs.evolve(GATEWAY, feed_verb=verb), KEY)
    for sign in "/?#&=":
        assert request.url.count(sign) == plain.url.count(sign)


# Delays


@given(
    HEADERS | st.fixed_dictionaries({"retry-after": HEADER_VALUES}), st.none() | st.floats(0, 1e11)
)
def test_a_retry_after_can_always_be_slept(
    headers: dict[str, str], received_at: float | None
) -> None:
    """A parsed Retry-After is None or a finite number of at least 0."""
    seconds = retry_after(headers, received_at)
    assert seconds is None or (math.isfinite(seconds) and seconds >= 0)


POLICIES = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 100),
    first=st.floats(0.001, 100),
    factor=st.floats(1, 100),
    max_delay=st.floats(0.001, 1000),
    max_retry_after=st.floats(0.001, 1000),
)


@given(POLICIES, st.integers(1, 50))
def test_drawn_delays_stay_within_their_bounds(policy: RetryPolicy, count: int) -> None:
    """Each delay is between 0 and the smaller of the cap and the exponential range."""
    drawn = delays(policy)
    for index in range(count):
        delay = next(drawn)
        assert 0 <= delay <= policy.max_delay
        assert delay <= policy.first * policy.factor**index * (1 + 1e-9)


REFUSED = st.builds(
    errors.RateLimited,
    *[st.just("It broke.")] * 3,
    retry_after=st.none() | st.floats(0, 1e9),
    fate=st.sampled_from(Fate),
)


@given(st.integers(1, 200), REFUSED, st.sampled_from(Replay), POLICIES, st.floats(0, 1000))
def test_a_retry_needs_the_table_and_the_policy(
    attempt: int,
    error: errors.RateLimited,
    replay: Replay,
    policy: RetryPolicy,
    drawn: float,
) -> None:
    """There is a delay only if both allow a retry: the Retry-After, or else a random one."""
    seconds = error.retry_after
    delay = delay_before(attempt, error, replay, policy, drawn)
    allowed = replay in MAY_REPEAT[error.fate] and attempt < policy.attempts
    if not allowed or (seconds is not None and seconds > policy.max_retry_after):
        assert delay is None
    else:
        assert delay == (drawn if seconds is None else seconds)


@given(st.floats(0.01, 100), st.floats(1.05, 100), st.floats(0.01, 1000))
def test_a_ladder_climbs_to_its_cap_and_no_further(
    first: float, factor: float, at_most: float
) -> None:
    """Intervals grow strictly up to the cap."""
    steps = exponential_intervals(first, factor, at_most)
    assert steps[-1] == at_most
    assert all(low < high for low, high in itertools.pairwise(steps))


# Values


@given(PROMPTS, st.builds(MotionVector, x=st.floats(allow_nan=False, allow_infinity=False)))
def test_equal_requests_make_equal_bytes(prompt: str, motion: MotionVector) -> None:
    """Two requests with the same content have the same body."""
    one, other = (TextToVideo(prompt, motion=motion) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert build(one, GATEWAY, KEY).body == build(other, GATEWAY, KEY).body


IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{2,30}[0-9]", fullmatch=True)
WORDS = st.sampled_from(["", "ok", "error", "busy", "余额不足", "invalid_request", "no such thing"])
BESIDE = st.dictionaries(
    st.sampled_from(["code", "msg", "message", "success", "error", "type", "description", "x"]),
    st.one_of(
        WORDS, st.booleans(), st.none(), st.integers(-1, 600), st.just({"code": "", "message": ""})
    ),
)
NAMES = st.sampled_from(["task_id", "taskId", "id"])
PARTS = st.sampled_from(["data", "result"])


@st.composite
def bodies_with_an_id(draw: st.DrawFn) -> tuple[bytes, str]:
    """Draw the body of a response with a task id at one of the usual places."""
    task_id = draw(IDS)
    named = draw(BESIDE) | {draw(NAMES): task_id}
    outer = draw(BESIDE)
    body: Any = draw(
        st.sampled_from(
            [
                named,
                outer | {"data": named},
                outer | {"result": named},
                outer | {"data": [named]},
                outer | {"data": json.dumps(named)},
                outer | {"data": task_id},
                outer | {"result": task_id},
                [named],
            ]
        )
    )
    text = json.dumps(body, ensure_ascii=False)
    before, behind = draw(
        st.sampled_from(
            [
                ("", ""),
                ("\ufeff", ""),
                ("<br />\nWarning\n", ""),
                ("", "<br />"),
                ("", '{"code":"x"}'),
            ]
        )
    )
    encoding = draw(st.sampled_from(["utf-8", "utf-16", "gbk"])) if not before else "utf-8"
    return f"{before}{text}{behind}".encode(encoding, "replace"), task_id


@settings(max_examples=2000)
@given(
    bodies_with_an_id(),
    st.sampled_from(sorted(row.name for row in SUBMITS.values())),
    st.integers(100, 699),
)
def test_an_answer_with_an_id_is_never_called_free_of_charge(
    drawn: tuple[bytes, str], endpoint: str, status: int
) -> None:
    """A response to a submit with an id is a task, or in doubt with that id."""
    body, task_id = drawn
    result = answer(Reply(request_to(endpoint), status, {}, body))
    if isinstance(result, errors.RunwayError):
        assert isinstance(result, errors.UnreadableReply)
        assert result.fate is Fate.UNKNOWN
        assert "Nothing was charged" not in str(result)
    assert result.task_id == task_id


ODD_NUMBERS = ["0", "-1", "1e400", "NaN", "10000000000", "1893456000", "4102444800000", "-0.0"]
DATE_IN_2099 = "Thu, 01 Jan 2099 00:00:00 GMT"


@pytest.mark.parametrize("number", [*ODD_NUMBERS, f'"{DATE_IN_2099}"', "9" * 400])
@pytest.mark.parametrize(
    "field", ["progress", "point", "refund", "create_time", "update_time", "status", "code"]
)
def test_no_number_of_an_answer_breaks_its_record(field: str, number: str) -> None:
    """Each number of a task may have any value, as a number or as text."""
    for text in (number, json.dumps(number)):
        fields = {"task_id": '"t-1"', "status": '"1"', field: text}
        data = ",".join(f'"{name}":{value}' for name, value in fields.items())
        result = answer(
            Reply(request_to("feed"), 200, {}, f'{{"code":200,"data":{{{data}}}}}'.encode())
        )
        assert isinstance(result, TaskRecord)
        assert result.progress is None or 0 <= result.progress <= 1
        assert result.created_at is None or result.created_at.year >= 1970


@pytest.mark.parametrize("header", ["retry-after", "retry-after-ms"])
@pytest.mark.parametrize("value", [*ODD_NUMBERS, DATE_IN_2099, "9" * 400, "inf", "soon"])
def test_no_header_gives_a_negative_wait(header: str, value: str) -> None:
    """The wait from a header is None or a finite number of seconds, at least 0."""
    seconds = retry_after({header: value, "date": "Wed, 05 Nov 2025 12:00:00 GMT"})
    assert seconds is None or (math.isfinite(seconds) and seconds >= 0)
