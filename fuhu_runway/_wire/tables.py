"""
Everything known about the gateway, as data with sources: endpoints, dialects, refusals, rows.

Wire spellings stand here, in the samples and in the simulator, and nowhere else. The tables hold
no code but small predicates over decoded JSON; `_wire` computes everything from them, and the
pages under docs/reference are written from them.
"""

import enum
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from fuhu_runway import errors
from fuhu_runway.errors import Fate
from fuhu_runway.models import (
    ActOne,
    Balance,
    BalanceRoute,
    Gateway,
    ImageToVideo,
    KeyStyle,
    OfficialImageToVideo,
    TaskRecord,
    TaskState,
    TextToVideo,
    VideoToVideo,
)

VERSION_HEADER: Final = {"X-Runway-Version": "2024-11-06"}
"""Sent always: some pages require it and none forbids it (api-facts 1.1)."""

NOWHERE: Final = "https://callback.invalid/"
"""The `callback_url` of a client without a receiver: reserved, resolves nowhere (RFC 2606)."""

REQUEST_ID_HEADERS: Final = ("x-oneapi-request-id", "x-request-id")


class Replay(enum.Enum):
    """What a second sending of the same request costs."""

    FREE = "free"
    """Nothing: it only reads."""
    PAID = "paid"
    """A second task, and its points: no gateway documents an idempotency key (api-facts 5.2)."""


class Root(enum.Enum):
    """What an endpoint's path is appended to."""

    REVERSE = "prefix"
    OFFICIAL = "official_prefix"
    BASE = "base_url"
    QUOTA = "quota_url"


# --- endpoints -----------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Endpoint:
    """One thing the gateway can be asked."""

    name: str
    verb: str
    root: Root
    path: str
    gives: type[TaskRecord] | type[Balance]
    replay: Replay
    #: The `Client` method that asks it.
    method: str
    source: str
    #: The request class that is sent, where the body comes from one.
    sends: type | None = None
    #: Place in the body, dots between levels, to the request's attribute; None is left out.
    body: Mapping[str, str] = attrs.field(factory=dict)
    #: Whether the body has a `callback_url`.
    takes_callback: bool = False


_MOTION: Final = {
    f"options.motion_vector.{axis}": f"motion.{axis}"
    for axis in ("x", "y", "z", "r", "bg_x_pan", "bg_y_pan")
}

ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    row.name: row
    for row in (
        Endpoint(
            "text_to_video",
            "POST",
            Root.REVERSE,
            "/pro/generate",
            TaskRecord,
            Replay.PAID,
            method="generate",
            source="api-facts 1.2",
            sends=TextToVideo,
            body={
                "prompt": "prompt",
                "ratio": "ratio",
                "style": "style",
                "model": "model",
                "options.seconds": "seconds",
                **_MOTION,
            },
            takes_callback=True,
        ),
        Endpoint(
            "image_to_video",
            "POST",
            Root.REVERSE,
            "/pro/generate",
            TaskRecord,
            Replay.PAID,
            method="generate",
            source="api-facts 1.3",
            sends=ImageToVideo,
            body={
                "image": "image",
                "last_image": "last_image",
                "prompt": "prompt",
                "ratio": "ratio",
                "style": "style",
                "model": "model",
                "options.seconds": "seconds",
                "options.image_as_end_frame": "image_as_end_frame",
                "options.flip": "flip",
                **_MOTION,
            },
            takes_callback=True,
        ),
        Endpoint(
            "video_to_video",
            "POST",
            Root.REVERSE,
            "/pro/video2video",
            TaskRecord,
            Replay.PAID,
            method="video_to_video",
            source="api-facts 1.4",
            sends=VideoToVideo,
            body={
                "video": "video",
                "model": "model",
                "prompt": "prompt",
                "options.structure_transformation": "structure_transformation",
                "options.flip": "flip",
                "options.seconds": "seconds",
            },
            takes_callback=True,
        ),
        Endpoint(
            "act_one",
            "POST",
            Root.REVERSE,
            "/pro/act_one",
            TaskRecord,
            Replay.PAID,
            method="act_one",
            source="api-facts 1.5",
            sends=ActOne,
            body={
                "video": "video",
                "image": "image",
                "character_video": "character_video",
                "options.motion_multiplier": "motion_multiplier",
                "options.flip": "flip",
            },
            takes_callback=True,
        ),
        Endpoint(
            "official_image_to_video",
            "POST",
            Root.OFFICIAL,
            "/image_to_video",
            TaskRecord,
            Replay.PAID,
            method="official.image_to_video",
            source="api-facts 6",
            sends=OfficialImageToVideo,
            body={
                "promptImage": "image",
                "model": "model",
                "promptText": "prompt",
                "seed": "seed",
                "watermark": "watermark",
                "duration": "seconds",
                "ratio": "ratio",
            },
        ),
        Endpoint(
            "feed",
            "POST",
            Root.REVERSE,
            "/feed",
            TaskRecord,
            Replay.FREE,
            method="feed",
            source="api-facts 1.6",
        ),
        Endpoint(
            "official_task",
            "GET",
            Root.OFFICIAL,
            "/tasks/{task_id}",
            TaskRecord,
            Replay.FREE,
            method="official.feed",
            source="api-facts 6",
        ),
        Endpoint(
            "subscription",
            "GET",
            Root.BASE,
            "/v1/dashboard/billing/subscription",
            Balance,
            Replay.FREE,
            method="balance",
            source="api-facts 7.2",
        ),
        Endpoint(
            "usage",
            "GET",
            Root.BASE,
            "/v1/dashboard/billing/usage",
            Balance,
            Replay.FREE,
            method="balance",
            source="api-facts 7.3",
        ),
        Endpoint(
            "token_usage",
            "GET",
            Root.BASE,
            "/api/usage/token/",
            Balance,
            Replay.FREE,
            method="balance",
            source="api-facts 7.4",
        ),
        Endpoint(
            "quota",
            "GET",
            Root.QUOTA,
            "/user/quota",
            Balance,
            Replay.FREE,
            method="balance",
            source="api-facts 7.1",
        ),
    )
}

SUBMITS: Final[Mapping[type, Endpoint]] = {
    row.sends: row for row in ENDPOINTS.values() if row.sends is not None
}
"""Request class to the endpoint that takes it."""


def feed(*, official: bool) -> Endpoint:
    """Return the endpoint that is polled for the tasks of one format."""
    return ENDPOINTS["official_task" if official else "feed"]


def feed_of(request: object) -> Endpoint:
    """Return the endpoint that is polled for the task that *request* makes."""
    return feed(official=isinstance(request, OfficialImageToVideo))


BALANCE_ENDPOINTS: Final[Mapping[BalanceRoute, tuple[str, ...]]] = {
    BalanceRoute.BILLING: ("subscription", "usage"),
    BalanceRoute.TOKEN: ("token_usage",),
    BalanceRoute.QUOTA: ("quota",),
}

TASK_ID_KEY: Final = "task_id"
CALLBACK_KEY: Final = "callback_url"
QUOTA_KEY: Final = "key"
BODY_KEY: Final = "key"
"""Where `KeyStyle.BODY` puts the key (api-facts 11 row 14)."""
LAST_IMAGE: Final = {"key": "promptImage", "uri": "uri", "position": "position"}
"""How the official format spells first and last frame together (api-facts 6)."""


# --- gateways ------------------------------------------------------------------------------------

GATEWAYS: Final[Mapping[str, Gateway]] = {
    row.name: row
    for row in (
        Gateway("fuhuapi", "https://api.fuhuapi.com", source="api-facts 1.1 S1"),
        Gateway(
            "cometapi",
            "https://api.cometapi.com",
            balance=BalanceRoute.QUOTA,
            quota_url="https://query.cometapi.com",
            source="api-facts 1.1 S4",
        ),
        Gateway(
            "deerapi",
            "https://api.deerapi.com",
            balance=BalanceRoute.QUOTA,
            quota_url="https://query.deerapi.com",
            source="api-facts 1.1 S2, 11 row 13",
        ),
        Gateway("gpt-best", source="api-facts 1.1 S5"),
        Gateway("ecovai", "https://api.ecovai.cn", source="api-facts 1.1 S7"),
        Gateway("gptoai", "https://api.gptoai.cc", source="api-facts 1.1 S9"),
        Gateway("openai-hub", source="api-facts 1.1 S11"),
        Gateway("chat-bp", source="api-facts 1.1 S8"),
        Gateway("gpt-best-v1", prefix="/runway/v1", source="api-facts 1.1 S5"),
        Gateway("gptproto", prefix="/runway/v1", source="api-facts 1.1 S16"),
        Gateway("yutoai", prefix="/runway/v1", source="api-facts 1.1 S10"),
        Gateway("zyhelp", prefix="/runway/v1", source="api-facts 1.1 S10"),
        Gateway("bltcy", "https://api.bltcy.ai", prefix="/runway/v1", source="api-facts 11 row 13"),
        Gateway("ait8", "https://ai.t8star.cn", prefix="/runway/v1", source="api-facts 11 row 13"),
        # Its documentation has the official format alone.
        Gateway(
            "ezlinkai",
            "https://api.ezlinkai.com",
            prefix="/runway/v1",
            official_prefix="/runway/v1",
            source="api-facts 11 row 13",
        ),
        # As its clients do it. Its page has a GET for the feed, with the key in Authorization.
        Gateway(
            "duomi",
            "https://duomiapi.com",
            prefix="/api/video/runway",
            key_style=KeyStyle.BODY,
            source="api-facts 1.1 S6, 11 row 14",
        ),
    )
}


# --- states --------------------------------------------------------------------------------------

STATES: Final[Mapping[str, TaskState]] = {
    word: state
    for state, words in {
        TaskState.QUEUED: (
            "0 not_start not_started submitted submitting queued queueing queuing in_queue pending "
            "throttled waiting wait created accepted scheduled init initializing new preparing "
            "等待中 排队中 等待 排队 未开始 已提交"
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
    }.items()
    for word in words.split()
}
"""Every known status word, in lower case, with `_` between words (api-facts 3.1 to 3.4, 11)."""


# --- dialects ------------------------------------------------------------------------------------


class Sense(enum.Enum):
    """What an answer of a dialect is about."""

    TASK = "a task"
    BALANCE = "a balance"
    REFUSAL = "a refusal"


@attrs.frozen(eq=False)
class Dialect:
    """
    One shape of answer; recognised by shape per answer, never by host name (api-facts 2).

    The rows are tried in order, and the first that fits is the one.
    """

    letter: str
    name: str
    fits: Callable[[Mapping[str, Any]], bool]
    #: Sense of an answer of this shape, given the decoded body.
    sense: Callable[[Mapping[str, Any]], Sense]
    source: str
    #: The key under which the part that matters stands; None: the body itself.
    under: str | None = None
    #: Our name for a part, to the gateway's.
    spelling: Mapping[str, str] = attrs.field(factory=dict)
    #: Parts of a balance that have to be there.
    required: tuple[str, ...] = ()
    #: Where a refusal tells its kind, and its reason; the first that is there counts.
    codes: tuple[str, ...] = ("code", "type")
    messages: tuple[str, ...] = ("message", "msg")
    #: Whether a numeric code stands for an HTTP status.
    code_is_status: bool = False
    #: Whether an empty part means that the gateway does not know the task (api-facts 2 B).
    empty_is_not_found: bool = False


def is_whole(value: object) -> bool:
    """Return whether it is a number or digits, and no boolean (api-facts 2 F)."""
    if isinstance(value, str):
        digits = value.strip()
        # Python refuses to read thousands of digits; no code has more than a few.
        return digits.isascii() and digits.isdigit() and len(digits) < 20
    return isinstance(value, int) and not isinstance(value, bool)


def _always(sense: Sense) -> Callable[[Mapping[str, Any]], Sense]:
    return lambda _body: sense


def _has(*keys: str) -> Callable[[Mapping[str, Any]], bool]:
    wanted = frozenset(keys)
    return lambda body: body.keys() >= wanted


def _envelope_sense(body: Mapping[str, Any]) -> Sense:
    return Sense.TASK if int(body["code"]) == 200 else Sense.REFUSAL


PARTS: Final = (
    *("data", "result", "task", "response", "output"),
    *("results", "tasks", "job", "generation", "payload", "items", "list", "content", "body"),
)
"""Where the task may stand in an answer: as an object, a list, JSON in a text, or its id alone."""

STATE_KEYS: Final = frozenset({"state", "status", "task_status"})
SURE_KEYS: Final = STATE_KEYS | {"code", "task_id"}
"""With one of these at the top, an id there is that of the task, or the task is in the data."""
ENVELOPE_WORDS: Final = frozenset({"msg", "message"})

USUAL_KEYS: Final = {
    "task_status": "status",
    "taskStatus": "status",
    "video_result": "video_url",
    "videoUrl": "video_url",
    "video_urls": "video_url",
    "videoUrls": "video_url",
    **dict.fromkeys(("videos", "video_results", "result_url", "result_urls"), "output"),
    **dict.fromkeys(("resultUrl", "resultUrls", "output_url", "outputUrl"), "output"),
    # Only beside a success: of a running task they may be the address to poll, or the input.
    **dict.fromkeys(("url", "urls", "download_url", "file_url"), "raw_video_url"),
    **dict.fromkeys(("result", "content"), "raw_video_url"),
}
"""Rare spelling to the usual one, which it stands in for where that is missing (api-facts 11)."""


def _flag_sense(body: Mapping[str, Any]) -> Sense:
    return Sense.BALANCE if body["code"] else Sense.REFUSAL


def _is_relay(body: Mapping[str, Any]) -> bool:
    return isinstance(body.get("code"), str) and body["code"].strip().lower() == "success"


_NUMERIC: Final = {
    "task_id": "task_id",
    "state": "state",
    "status": "status",
    "progress": "progress",
    "video_url": "video_url",
    "result_url": "result_url",
    "raw_video_url": "raw_video_url",
    "poster": "poster",
    "last_frame": "last_frame",
    "prompt": "prompt",
    "prompt_en": "prompt_en",
    "output": "output",
    "message": "msg",
    "reason": "fail_reason",
    "error": "error",
    "points": "point",
    "refund": "refund",
    "created_at": "create_time",
    "updated_at": "update_time",
}
_RELAY: Final = {
    "task_id": "task_id",
    "state": "state",
    "status": "status",
    "progress": "progress",
    "video_url": "video_url",
    "result_url": "result_url",
    "raw_video_url": "raw_video_url",
    "output": "output",
    "reason": "fail_reason",
    "error": "error",
    "created_at": "created_at",
    "updated_at": "updated_at",
    "submitted_at": "submit_time",
    "finished_at": "finish_time",
    "inner": "data",
}
_REVERSE_ONLY: Final = frozenset({"video_url", "raw_video_url", "point", "refund", "create_time"})
_OFFICIAL: Final = {
    "task_id": "id",
    "status": "status",
    "progress": "progress",
    "video_url": "video_url",
    "raw_video_url": "raw_video_url",
    "output": "output",
    "reason": "failure",
    "failure_code": "failureCode",
    "error": "error",
    "cost": "cost",
    "created_at": "createdAt",
    "updated_at": "updatedAt",
}
_LUMA: Final = {
    "task_id": "id",
    "state": "state",
    "video_url": "video",
    "raw_video_url": "video_raw",
    "poster": "thumbnail",
    "last_frame": "last_frame",
    "prompt": "prompt",
    "reason": "failure_reason",
    "error": "error",
    "created_at": "created_at",
}

DIALECTS: Final = (
    Dialect(
        "E",
        "openai_error",
        fits=lambda body: bool(body.get("error")),
        sense=_always(Sense.REFUSAL),
        under="error",
        source="api-facts 2 E",
        messages=("message", "localized_message"),
    ),
    Dialect(
        "F",
        "dashboard_error",
        fits=lambda body: body.get("success") is False,
        sense=_always(Sense.REFUSAL),
        source="api-facts 2 F",
    ),
    Dialect(
        "F'",
        "dashboard_task",
        fits=lambda body: (
            body.get("code") is True
            and isinstance(body.get("data"), Mapping)
            and "task_id" in body["data"]
        ),
        sense=_always(Sense.TASK),
        under="data",
        source="api-facts 2 F; not documented for tasks, and read so that no id is lost",
        spelling=_NUMERIC,
    ),
    Dialect(
        "F'",
        "dashboard_balance",
        fits=lambda body: isinstance(body.get("code"), bool),
        sense=_flag_sense,
        under="data",
        source="api-facts 7.4",
        codes=(),
        spelling={
            "total": "total_granted",
            "used": "total_used",
            "remaining": "total_available",
            "unlimited": "unlimited_quota",
        },
    ),
    Dialect(
        "G",
        "midjourney_error",
        fits=lambda body: "description" in body and "code" in body and "data" not in body,
        sense=_always(Sense.REFUSAL),
        source="api-facts 2 G",
        codes=("code",),
        messages=("description",),
    ),
    Dialect(
        "A",
        "envelope",
        fits=lambda body: is_whole(body.get("code")),
        sense=_envelope_sense,
        under="data",
        source="api-facts 2 A",
        spelling=_NUMERIC,
        messages=("msg", "message"),
        code_is_status=True,
    ),
    Dialect(
        "B",
        "relay",
        fits=_is_relay,
        sense=_always(Sense.TASK),
        under="data",
        source="api-facts 2 B",
        spelling=_RELAY,
        empty_is_not_found=True,
    ),
    Dialect(
        "D",
        "task_error",
        fits=lambda body: isinstance(body.get("code"), str) and bool(body["code"].strip()),
        sense=_always(Sense.REFUSAL),
        source="api-facts 2 D",
        messages=("message", "msg", "detail"),
    ),
    Dialect(
        "billing",
        "billing_limit",
        fits=lambda body: body.get("object") == "billing_subscription" or "hard_limit_usd" in body,
        sense=_always(Sense.BALANCE),
        source="api-facts 7.2",
        spelling={"total": "hard_limit_usd"},
        required=("total",),
    ),
    Dialect(
        "billing'",
        "billing_usage",
        fits=lambda body: body.get("object") == "list" or "total_usage" in body,
        sense=_always(Sense.BALANCE),
        source="api-facts 7.3",
        spelling={"used_hundredths": "total_usage"},
        required=("used_hundredths",),
    ),
    Dialect(
        "quota",
        "account_quota",
        fits=_has("total_quota"),
        sense=_always(Sense.BALANCE),
        # total_quota is what is left: a sister's page calls it "current account balance".
        source="api-facts 7.1; https://apidoc.elkapi.com/doc-1807421",
        spelling={"remaining": "total_quota", "used": "total_used_quota"},
        required=("remaining",),
    ),
    Dialect(
        "B'",
        "bare_relay",
        fits=lambda body: (
            "task_id" in body and bool({"fail_reason", "result_url", "data"} & set(body))
        ),
        sense=_always(Sense.TASK),
        source="api-facts 2 B'",
        spelling=_RELAY,
    ),
    Dialect(
        "I",
        "callback",
        fits=_has("task_id"),
        sense=_always(Sense.TASK),
        source="api-facts 2 I",
        spelling=_NUMERIC,
    ),
    Dialect(
        "I'",
        "callback_by_id",
        fits=lambda body: "id" in body and not body.keys().isdisjoint(_REVERSE_ONLY),
        sense=_always(Sense.TASK),
        source="api-facts 11, row 16: the id under another usual name",
        spelling={**_NUMERIC, "task_id": "id"},
    ),
    Dialect(
        "C'",
        "luma",
        fits=_has("id", "state"),
        sense=_always(Sense.TASK),
        source="api-facts 2 C'",
        spelling=_LUMA,
    ),
    Dialect(
        "C",
        "official",
        fits=_has("id"),
        sense=_always(Sense.TASK),
        source="api-facts 2 C",
        spelling=_OFFICIAL,
    ),
)

NESTED_ERROR_CODE: Final = "fail_to_fetch_task"
"""Dialect J: the message is the upstream's whole answer as text (api-facts 2 J)."""
MAX_NESTING: Final = 3
"""How many levels public code unwraps (api-facts 2 J)."""

UNLIMITED: Final = 100_000_000
"""A `hard_limit_usd` or a `remain_quota` from here on means: no limit (api-facts 7.1, 7.2)."""


INDEX_PAGE: Final = "the gateway's index page"
CHALLENGE: Final = "a challenge page"
STRANGER: Final = "an answer that is not the gateway's"
"""These stand for codes where the answer is not JSON (api-facts 2 H)."""
INDEX_PAGE_MARKS: Final = ('id="root"', "id='root'", "id=root", 'id="app"', "id='app'", "id=app")
"""What the index page of a gateway's web UI has, and no error page."""
NO_REFUND: Final = frozenset(
    {
        *("no", "none", "null", "nil", "false", "n", "na", "n/a", "-", "undefined"),
        *("not refunded", "not_refunded", "否", "无", "未退款", "未退还", "不退款"),
    }
)
"""Words for a refund that there was not."""
TASK_NOT_EXIST: Final = "task_not_exist"

# --- refusals ------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Refusal:
    """
    One kind of refusal; the first row counts of which every given condition holds.

    A row that says nothing was charged names its proof. Of a paid request that a row without a
    proof refuses, the fate is unknown.
    """

    raises: type[errors.GatewayError]
    fate: Fate
    advice: str
    source: str
    #: Why there cannot be a task behind this answer; empty where there may be one.
    proof: str = ""
    statuses: frozenset[int] = frozenset()
    codes: frozenset[str] = frozenset()
    #: Last resort, in lower case: messages come in Chinese or English (api-facts 5.1).
    texts: tuple[str, ...] = ()
    #: Whether it counts only in JSON, which is the gateway's own; a page may be anyone's.
    in_json: bool = True


_NOT_DOWN: Final = frozenset(range(200, 500))

_TOP_UP: Final = "Top up the account or the key's quota, then call again."
_CHANGE: Final = "Change the request: sent again as it is, it will be refused again."
_LATER: Final = "Try again later; the gateway is in trouble."
_OTHER_MODEL: Final = "Use another model, or one that the key's group offers, or try again later."
BASE_URL: Final = "Check base_url and the gateway's prefix: there is nothing of this kind there."
NO_SUCH_TASK: Final = (
    "Check the task id and the key: a task is seen only by the account that made it, and a few "
    "seconds after it was made."
)

_RESERVED_FIRST: Final = "The points are reserved before anything is passed on."
_CHECKED_FIRST: Final = "The gateway checks the request before it passes it on."
_NO_CHANNEL: Final = "Without a channel there is nothing that could accept the request."

REFUSALS: Final = (
    # Not JSON: perhaps a proxy, a firewall or a captive portal, and no word of the gateway's.
    Refusal(
        errors.GatewayDown,
        Fate.REFUSED,
        "Try again later, or from another network: a firewall asks for a browser.",
        "Cloudflare's documentation of challenges: header cf-mitigated",
        "The firewall answers in place of the gateway, which has not seen the request.",
        codes=frozenset({CHALLENGE}),
        in_json=False,
    ),
    Refusal(
        errors.GatewayDown,
        Fate.UNKNOWN,
        "Try again later; if it stays so, check base_url, the gateway's prefix and the network.",
        "Pages, empty bodies and captive portals in answer to a free request, with any status",
        codes=frozenset({STRANGER}),
        in_json=False,
    ),
    Refusal(
        errors.NotFound,
        Fate.REJECTED,
        BASE_URL,
        "api-facts 2 H: an unrouted path gets the gateway's own page with status 200",
        "The web UI's router answers what no route of the API takes.",
        statuses=frozenset({200}),
        codes=frozenset({INDEX_PAGE}),
        in_json=False,
    ),
    # The gateway's own codes.
    Refusal(
        errors.OutOfCredits,
        Fate.REJECTED,
        _TOP_UP,
        "api-facts 5.1 (403 insufficient_user_quota; 429 local:quota_not_enough)",
        _RESERVED_FIRST,
        codes=frozenset(
            {
                "insufficient_user_quota",
                "pre_consume_token_quota_failed",
                "quota_not_enough",
                "local:quota_not_enough",
                "insufficient_quota",
            }
        ),
    ),
    Refusal(
        errors.OutOfCredits,
        Fate.REJECTED,
        _TOP_UP,
        "HTTP 402",
        _RESERVED_FIRST,
        frozenset({402}),
    ),
    Refusal(
        errors.OutOfCredits,
        Fate.REJECTED,
        _TOP_UP,
        "api-facts 5.1 (401 额度已用尽; 403 用户额度不足, 预扣费额度失败); 11, row 4",
        _RESERVED_FIRST,
        statuses=_NOT_DOWN,
        texts=(
            "额度已用尽",
            "额度不足",
            "余额不足",
            "积分不足",
            "预扣费额度失败",
            "quota exhausted",
            "quota has been exhausted",
            "insufficient quota",
            "insufficient balance",
            "insufficient credit",
            "not enough credit",
            "not have enough credit",
            "not enough points",
            "not enough balance",
            "out of credit",
        ),
    ),
    Refusal(
        errors.NotFound,
        Fate.REJECTED,
        NO_SUCH_TASK,
        "api-facts 5.1 (400 task_not_exist), 5.4",
        codes=frozenset({TASK_NOT_EXIST}),
    ),
    Refusal(
        errors.NotFound,
        Fate.REJECTED,
        NO_SUCH_TASK,
        "api-facts 11, row 6 (404 Could not find Task; 视频任务不存在)",
        statuses=_NOT_DOWN,
        texts=("could not find task", "task not found", "task does not exist", "任务不存在"),
    ),
    Refusal(
        errors.InvalidRequest,
        Fate.REJECTED,
        "Give the client a callback_url: this gateway requires one.",
        "api-facts 5.1 (400 callback_url_empty)",
        _CHECKED_FIRST,
        codes=frozenset({"callback_url_empty"}),
    ),
    Refusal(
        errors.InvalidRequest,
        Fate.REJECTED,
        _CHANGE,
        "api-facts 5.1 (400 invalid_request …; 500 invalid_request); 11, row 7",
        _CHECKED_FIRST,
        codes=frozenset(
            {
                "invalid_request",
                "invalid_api_platform",
                "invalid_parameters",
                "reference_images_empty",
                "model_mapping_failed",
                "model_price_error",
                "channel_not_found",
                "read_request_body_failed",
                "api_not_implemented",
            }
        ),
    ),
    Refusal(
        errors.InvalidRequest,
        Fate.REJECTED,
        _CHANGE,
        "api-facts 5.1 (200 with code ≠ 200: refused, for the reason in msg)",
        _CHECKED_FIRST,
        statuses=frozenset({200}),
        texts=("参数错误", "无效的参数", "不能为空", "invalid param", "is required", "is_required"),
    ),
    Refusal(
        errors.ModelUnavailable,
        Fate.REFUSED,
        _OTHER_MODEL,
        "api-facts 5.1 (503 model_not_found); 11, row 7 (channel_disabled, no_available_key)",
        _NO_CHANNEL,
        codes=frozenset(
            {"model_not_found", "channel_disabled", "task_channel_disable", "no_available_key"}
        ),
    ),
    Refusal(
        errors.ModelUnavailable,
        Fate.REFUSED,
        _OTHER_MODEL,
        "api-facts 5.1 (503, 无可用渠道)",
        _NO_CHANNEL,
        statuses=frozenset({503}),
        texts=("无可用渠道", "no available channel"),
    ),
    Refusal(
        errors.GatewayDown,
        Fate.UNKNOWN,
        _LATER,
        "api-facts 5.1 (500 do_request_failed …); 11, row 7 (insert_task_failed is charged)",
        codes=frozenset(
            {
                "build_request_failed",
                "do_request_failed",
                "get_channel_failed",
                "get_task_failed",
                "insert_task_failed",
                "request_failed",
            }
        ),
    ),
    # Statuses that mean: this request was never looked at.
    Refusal(
        errors.RateLimited,
        Fate.REFUSED,
        "Call again later, or less often.",
        "api-facts 5.1 (429); RFC 6585",
        "A limiter stands before the handler, and its status says that nothing was taken.",
        frozenset({429}),
        in_json=False,
    ),
    Refusal(
        errors.RateLimited,
        Fate.REFUSED,
        "Call again later, or less often.",
        "api-facts 5.1 (200 with a busy or frequent msg)",
        "The words are the gateway's own for a request that it did not take.",
        statuses=frozenset({200, 400}),
        texts=(
            "频繁",
            "繁忙",
            "饱和",
            "请求数限制",
            "saturated",
            "too many requests",
            "too frequent",
            "rate limit",
            "busy",
        ),
    ),
    Refusal(
        errors.GatewayDown,
        Fate.REFUSED,
        "Call again later.",
        "RFC 8470 (425), RFC 9110 (421)",
        "The status asks for the same request again: it was not processed.",
        frozenset({421, 425}),
        in_json=False,
    ),
    Refusal(
        errors.GatewayDown,
        Fate.REFUSED,
        "Log in to the proxy or the network, then call again.",
        "RFC 9110 (407), RFC 6585 (511)",
        "The proxy or the network answers in place of the gateway, which has not seen the request.",
        frozenset({407, 511}),
        in_json=False,
    ),
    Refusal(
        errors.Unauthorized,
        Fate.REJECTED,
        "Check the key and what it is allowed to do, on the gateway's own page.",
        "api-facts 5.1 (401, 403)",
        "The key is checked before the request is looked at.",
        frozenset({401, 403}),
    ),
    Refusal(
        errors.Unauthorized,
        Fate.REJECTED,
        "Check the key and what it is allowed to do, on the gateway's own page.",
        "api-facts 2 F, 5.1 (the same texts in an answer with status 200)",
        "The key is checked before the request is looked at.",
        statuses=frozenset({200}),
        texts=("无权进行此操作", "未登录", "无效的令牌", "未提供令牌", "invalid token"),
    ),
    Refusal(
        errors.NotFound,
        Fate.REJECTED,
        BASE_URL,
        "api-facts 5.1 (404 Invalid URL)",
        "No handler took the request.",
        frozenset({404}),
        in_json=False,
    ),
    Refusal(
        errors.NotFound,
        Fate.REJECTED,
        BASE_URL,
        "RFC 9110 (307, 308)",
        "The redirect asks for the same request elsewhere: it was not processed here.",
        frozenset({307, 308}),
        in_json=False,
    ),
    Refusal(
        errors.NotFound,
        Fate.REJECTED,
        BASE_URL,
        "api-facts 5.1 (301); a 303 is also how some servers answer what they have accepted",
        statuses=frozenset(range(300, 400)),
        in_json=False,
    ),
    Refusal(
        errors.InvalidRequest,
        Fate.REJECTED,
        _CHANGE,
        "RFC 9110 (405, 411, 413, 414, 415, 417, 426, 501, 505), RFC 6585 (428, 431)",
        "The status is about the head of the request or its size: no handler took it.",
        frozenset({405, 411, 413, 414, 415, 417, 426, 428, 431, 501, 505}),
        in_json=False,
    ),
    Refusal(
        errors.InvalidRequest,
        Fate.REJECTED,
        _CHANGE,
        "api-facts 5.1 (400); RFC 9110",
        "In the gateway's own JSON these statuses say that the request itself is wrong.",
        frozenset({400, 406, 410, 412, 416, 422, 451}),
    ),
    # Last: whatever is left proves nothing.
    Refusal(
        errors.GatewayDown,
        Fate.UNKNOWN,
        _LATER,
        "api-facts 5.1 (500, 502, 504, 520 to 524; 200 with a code or text that we do not know); "
        "408, 409, 444, 460, 499 and every other status",
        in_json=False,
    ),
)
