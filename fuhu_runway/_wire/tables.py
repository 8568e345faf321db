"""
Everything known about the gateways, as data with sources: endpoints, gateways, states, dialects.

The gateways' own names for fields stand here, in the samples and in the simulator, and nowhere
else. There is no code but small predicates over decoded JSON; `encode` and `decode` compute
everything from them, and the pages under docs/reference are generated from them.
"""

import enum
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

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

MAX_NESTING: Final = 3
"""How many levels public code unwraps (api-facts 2 J)."""

UNLIMITED: Final = 100_000_000
"""A `hard_limit_usd` or a `remain_quota` from here on means: no limit (api-facts 7.1, 7.2)."""


def dialect_of(body: Mapping[str, Any]) -> Dialect | None:
    """Return the first dialect that *body* fits."""
    return next((dialect for dialect in DIALECTS if dialect.fits(body)), None)
