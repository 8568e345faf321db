import json
from typing import Any

import attrs
import pytest

from fuhu_runway._wire import tables
from fuhu_runway._wire.decode import read_task
from fuhu_runway._wire.encode import Reply, Request
from fuhu_runway._wire.refusals import ADVICE, REFUSALS, Refusal
from fuhu_runway._wire.tables import DIALECTS, ENDPOINTS, GATEWAYS, Replay, Root, Sense
from fuhu_runway.errors import Fate, GatewayError
from fuhu_runway.models import BalanceRoute, KeyStyle, TaskState


def dialect_of(body: dict[str, Any]) -> tuple[str, Sense] | None:
    """Return the name of the first dialect that fits, and what the body is about."""
    row = next((row for row in DIALECTS if row.fits(body)), None)
    return None if row is None else (row.name, row.sense(body))


# Smallest bodies, by the letters of api-facts 2.
SHAPES: list[tuple[dict[str, Any], str | None, Sense | None]] = [
    ({"code": 200, "data": {}}, "envelope", Sense.TASK),
    ({"code": "200", "data": {}}, "envelope", Sense.TASK),
    ({"code": " 200 ", "data": {}}, "envelope", Sense.TASK),
    ({"code": 400, "data": []}, "envelope", Sense.REFUSAL),
    ({"code": 0}, "envelope", Sense.REFUSAL),
    ({"code": -1}, "envelope", Sense.REFUSAL),
    ({"code": 200, "error": None}, "envelope", Sense.TASK),
    ({"code": 200, "error": {}}, "envelope", Sense.TASK),
    ({"code": "success", "data": {}}, "relay", Sense.TASK),
    ({"code": " Success ", "data": None}, "relay", Sense.TASK),
    ({"task_id": "t-1", "result_url": ""}, "bare_relay", Sense.TASK),
    ({"task_id": "t-1", "fail_reason": ""}, "bare_relay", Sense.TASK),
    ({"task_id": "t-1", "data": {}}, "bare_relay", Sense.TASK),
    ({"task_id": "t-1", "status": "3"}, "callback", Sense.TASK),
    ({"id": "t-1", "status": "RUNNING"}, "official", Sense.TASK),
    ({"id": "t-1"}, "official", Sense.TASK),
    ({"id": "t-1", "state": "pending"}, "luma", Sense.TASK),
    ({"code": "task_not_exist", "data": None}, "task_error", Sense.REFUSAL),
    ({"error": {"message": "no"}}, "openai_error", Sense.REFUSAL),
    ({"error": "no"}, "openai_error", Sense.REFUSAL),
    ({"error": {"message": "no"}, "id": "t-1"}, "openai_error", Sense.REFUSAL),
    ({"success": False, "message": "no"}, "dashboard_error", Sense.REFUSAL),
    ({"success": False, "code": "AUTH_X"}, "dashboard_error", Sense.REFUSAL),
    ({"code": True, "data": {"object": "token_usage"}}, "dashboard_balance", Sense.BALANCE),
    ({"code": False, "message": "no"}, "dashboard_balance", Sense.REFUSAL),
    ({"code": True, "data": {"task_id": "t-1"}}, "dashboard_task", Sense.TASK),
    ({"code": True, "data": 5}, "dashboard_balance", Sense.BALANCE),
    ({"code": True, "data": "task_id"}, "dashboard_balance", Sense.BALANCE),
    ({"description": "no", "type": "a", "code": 4}, "midjourney_error", Sense.REFUSAL),
    ({"object": "billing_subscription"}, "billing_limit", Sense.BALANCE),
    ({"hard_limit_usd": 5}, "billing_limit", Sense.BALANCE),
    ({"object": "list", "total_usage": 1}, "billing_usage", Sense.BALANCE),
    ({"total_usage": 1}, "billing_usage", Sense.BALANCE),
    ({"total_quota": 1}, "account_quota", Sense.BALANCE),
    ({}, None, None),
    ({"code": None}, None, None),
    ({"code": " "}, None, None),
    ({"code": 2.5}, None, None),
    ({"code": [200]}, None, None),
    ({"success": True}, None, None),
    ({"description": "no"}, None, None),
]


@pytest.mark.parametrize(("body", "name", "sense"), SHAPES, ids=lambda value: str(value)[:40])
def test_a_dialect_is_recognised_by_shape(
    body: dict[str, Any], name: str | None, sense: Sense | None
) -> None:
    """The smallest body of each shape of api-facts 2 fits its own row."""
    assert dialect_of(body) == (name and (name, sense))


NOT_WHOLE: list[object] = [
    True,
    False,
    None,
    200.0,
    "",
    "-1",
    "２００",
    "²",
    "2.0",
    [],
    "9" * 5000,
]


@pytest.mark.parametrize(
    ("value", "whole"),
    [
        *[(value, True) for value in (200, 0, -1, "200", " 200\n", "0")],
        *[(value, False) for value in NOT_WHOLE],
    ],
)
def test_what_is_a_whole_number(value: object, whole: bool) -> None:
    """Digits and ints are codes; booleans, fractions and thousands of digits are not."""
    assert tables.is_whole(value) is whole
    if whole:
        assert isinstance(int(value), int)  # type: ignore[call-overload]


def test_the_longest_code_has_19_digits() -> None:
    """Python refuses to read thousands of digits, and no code has that many."""
    assert tables.is_whole("9" * 19)
    assert not tables.is_whole("9" * 20)


WORDS = {
    TaskState.QUEUED: (
        "0 not_start not_started submitted submitting queued queueing queuing in_queue pending "
        "throttled waiting wait created accepted scheduled init initializing new preparing "
        "staged 等待中 排队中 等待 排队 未开始 已提交"
    ),
    TaskState.RUNNING: (
        "1 running in_progress in_process processing generating started starting active "
        "working executing rendering uploading retrying 处理中 生成中 进行中 运行中 执行中"
    ),
    TaskState.SUCCEEDED: (
        "3 succeeded succeed success successful completed complete done finished finish ok "
        "ready 成功 完成 已完成 生成成功 生成完成 任务成功 任务完成"
    ),
    TaskState.FAILED: (
        "2 error errored failed failure fail expired rejected refused denied aborted moderated "
        "blocked timeout timed_out killed terminated stopped revoked crashed interrupted "
        "失败 已失败 生成失败 任务失败 处理失败 执行失败 超时 已超时"
    ),
    TaskState.CANCELED: "cancelled canceled 已取消 取消",
}


@pytest.mark.parametrize(("state", "words"), WORDS.items())
def test_the_words_of_each_state(state: TaskState, words: str) -> None:
    """Each state has exactly the words of api-facts 3.4 and 11; 2 is a failure and 3 a success."""
    assert [word for word, its in tables.STATES.items() if its is state] == words.split()


@pytest.mark.parametrize(
    ("word", "state"),
    [(word, state) for state, words in WORDS.items() for word in words.split()]
    + [("Timed Out", TaskState.FAILED), ("IN-PROGRESS", TaskState.RUNNING)]
    + [(" Done ", TaskState.SUCCEEDED), ("dreaming", TaskState.UNKNOWN)]
    + [("Completed.", TaskState.SUCCEEDED), ("timedOut", TaskState.FAILED)]
    + [("TASK_STATUS_SUCCEED", TaskState.SUCCEEDED), ("task failed", TaskState.FAILED)]
    + [("3.0", TaskState.SUCCEEDED), ("02", TaskState.FAILED), (" 1 ", TaskState.RUNNING)]
    + [("0.5", TaskState.UNKNOWN), ("1e400", TaskState.UNKNOWN), ("4", TaskState.UNKNOWN)],
)
def test_each_word_is_read_as_its_state(word: str, state: TaskState) -> None:
    """Case, spaces, hyphens, a prefix and the form of a number are ignored."""
    request = Request(ENDPOINTS["feed"], "http://127.0.0.1/feed", {}, task_id="t-1")
    body = json.dumps({"task_id": "t-1", "status": word}).encode()
    assert read_task(Reply(request, 200, {}, body)).state is state


def test_no_word_means_unknown() -> None:
    """A word that no source documents is in no row, and so its state is UNKNOWN."""
    assert TaskState.UNKNOWN not in tables.STATES.values()
    assert all(word == word.strip().lower() for word in tables.STATES)


def test_the_endpoints_that_cost_points() -> None:
    """Only the submits are paid; every other endpoint only reads."""
    paid = {name for name, row in ENDPOINTS.items() if row.replay is Replay.PAID}
    reverse = {"text_to_video", "image_to_video", "video_to_video", "act_one", "aleph"}
    official = "text_to_video image_to_video video_to_video character_performance video_upscale"
    assert paid == {*reverse, *(f"official_{name}" for name in official.split()), OWN}
    assert {name for name, row in ENDPOINTS.items() if row.takes_callback} == reverse
    assert {ENDPOINTS[name].verb for name in paid} == {"POST"}
    assert {row.name for row in tables.SUBMITS.values()} == paid


def test_each_table_is_keyed_by_name() -> None:
    """The key of each row is its name."""
    assert all(name == row.name for name, row in ENDPOINTS.items())
    assert all(name == row.name for name, row in GATEWAYS.items())


OWN = "official_request"
"""The endpoint of requests whose path and body are the caller's own."""


class Reads:
    """A request without any value, which records the attributes that are read."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> None:
        self.names.add(name)


@pytest.mark.parametrize(
    "row", [row for row in ENDPOINTS.values() if row.sends and row.name != OWN]
)
def test_every_attribute_of_a_request_is_sent(row: tables.Endpoint) -> None:
    """Each attribute of a request has a place in the body, and there are no other places."""
    assert row.sends is not None
    request = Reads()
    for source in row.body.values():
        _ = source(request) if callable(source) else getattr(request, source.partition(".")[0])
    # `extra` may be anywhere.
    assert request.names == {field.name for field in attrs.fields(row.sends)} - {"extra"}


def test_the_gateways_of_an_endpoint_are_known() -> None:
    """What documents an endpoint is a row of the gateways, in their order."""
    for row in ENDPOINTS.values():
        assert list(row.gateways) == [name for name in GATEWAYS if name in row.gateways]
        assert bool(row.gateways) is (row.sends is not None and row.name != OWN)


def test_which_requests_are_official() -> None:
    """The name of a class, as the journal has it, shows its format; any other name has none."""
    for kind in tables.SUBMITS:
        assert tables.is_official(kind.__name__) is kind.__name__.startswith("Official")
        polled = tables.feed_of(kind.__new__(kind)).name
        assert polled == ("official_task" if tables.is_official(kind.__name__) else "feed")
    assert not tables.is_official("OfficialSomethingElse")


def test_the_endpoints_of_each_balance_route() -> None:
    """A balance is read from these endpoints; only the quota route is on another host."""
    assert tables.BALANCE_ENDPOINTS == {
        BalanceRoute.BILLING: ("subscription", "usage"),
        BalanceRoute.TOKEN: ("token_usage",),
        BalanceRoute.QUOTA: ("quota",),
    }
    assert [name for name, row in ENDPOINTS.items() if row.root is Root.QUOTA] == ["quota"]


def test_the_gateways_with_a_quota_host() -> None:
    """Only a gateway whose balance is on another host has a `quota_url`."""
    for row in GATEWAYS.values():
        assert (row.balance is BalanceRoute.QUOTA) is (row.quota_url is not None)


def test_only_duomi_has_the_key_in_the_body() -> None:
    """All gateways take a bearer key and a POST to the feed; duomi takes the key in the body."""
    assert {row.feed_verb for row in GATEWAYS.values()} == {"POST"}
    styles = {name: row.key_style for name, row in GATEWAYS.items()}
    assert styles.pop("duomi") is KeyStyle.BODY
    assert set(styles.values()) == {KeyStyle.BEARER}


@pytest.mark.parametrize("row", [*ENDPOINTS.values(), *GATEWAYS.values(), *DIALECTS, *REFUSALS])
def test_every_row_has_a_source(row: Any) -> None:
    """Each row of each table names its source."""
    assert row.source.startswith(("api-facts ", "HTTP ", "RFC ", "Cloudflare", "Pages, "))


def test_the_last_refusal_fits_everything() -> None:
    """Only the last row has no condition, so that each refusal has a row."""
    *others, last = REFUSALS
    assert not any((last.statuses, last.codes, last.texts))
    assert all(row.statuses or row.codes or row.texts for row in others)


@pytest.mark.parametrize("row", REFUSALS, ids=lambda row: row.source)
def test_each_refusal_can_be_matched(row: Refusal) -> None:
    """Codes and texts are in lower case, as they are compared; each row raises a subclass."""
    assert all(code == code.lower() for code in row.codes)
    assert all(text == text.lower() for text in row.texts)
    assert row.raises is not GatewayError
    assert (row.advice or ADVICE[row.raises]).endswith(".")


def test_the_errors_after_which_a_paid_request_is_retried() -> None:
    """A paid request is retried after a 429, a busy gateway, no channel, or a firewall's page."""
    claims = {row.raises.__name__ for row in REFUSALS if row.fate is Fate.REFUSED}
    assert claims == {"RateLimited", "ModelUnavailable", "GatewayDown"}
    assert {row.raises.__name__ for row in REFUSALS if row.fate is Fate.UNKNOWN} == {"GatewayDown"}
    assert not any(row.fate is Fate.UNSENT for row in REFUSALS)


def test_a_refusal_that_may_be_retried_has_a_proof() -> None:
    """A paid request is retried only after a row that proves that nothing was accepted."""
    assert all(row.proof for row in REFUSALS if row.fate is Fate.REFUSED)
    assert not any(row.proof for row in REFUSALS if row.fate is Fate.UNKNOWN)
