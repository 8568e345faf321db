"""
Everything known about the gateways, as tables with sources: endpoints, gateways, states, dialects.

The gateways' own field names appear here, in the samples and in the simulator, and nowhere
else. The only code is small predicates over decoded JSON; `encode` and `decode` compute
everything from the tables, and the pages under docs/reference are generated from them.
"""

import enum
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from fuhu_runway.models import (
    ActOne,
    Aleph,
    BalanceRoute,
    Gateway,
    ImageToVideo,
    KeyStyle,
    OfficialCharacterPerformance,
    OfficialImageToVideo,
    OfficialRequest,
    OfficialTextToVideo,
    OfficialVideoToVideo,
    OfficialVideoUpscale,
    TaskState,
    TextToVideo,
    VideoToVideo,
)

VERSION_HEADER: Final = {"X-Runway-Version": "2024-11-06"}
"""Sent with every request: some pages require it and none forbids it (api-facts 1.1)."""

NOWHERE: Final = "https://callback.invalid/"
"""The `callback_url` of a client without a receiver: reserved, resolves nowhere (RFC 2606)."""

REQUEST_ID_HEADERS: Final = ("x-oneapi-request-id", "x-request-id")


class Replay(enum.Enum):
    """What sending the same request a second time costs."""

    FREE = "free"
    """Nothing: it only reads."""
    PAID = "paid"
    """A second task, and its points: no gateway documents an idempotency key (api-facts 5.2)."""


class Root(enum.Enum):
    """The field of `Gateway` that an endpoint's path is appended to."""

    REVERSE = "prefix"
    OFFICIAL = "official_prefix"
    BASE = "base_url"
    QUOTA = "quota_url"


# --- endpoints -----------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Endpoint:
    """One operation of the API."""

    name: str
    verb: str
    root: Root
    path: str
    #: The `Client` method that calls it.
    method: str
    source: str
    #: The request class it takes; None if it only reads.
    sends: type | None = None
    #: Path in the body, with dots between levels, to the request's attribute or to a function of
    #: the request; None is left out.
    body: Mapping[str, "str | Callable[[Any], object]"] = attrs.field(factory=dict)
    #: The known gateways whose documentation or client code has it.
    gateways: tuple[str, ...] = ()
    #: The balance route it belongs to; None for endpoints about tasks.
    route: BalanceRoute | None = None

    @property
    def replay(self) -> Replay:
        """What a retry costs: every endpoint that takes a request class is paid."""
        return Replay.FREE if self.sends is None else Replay.PAID

    @property
    def takes_callback(self) -> bool:
        """Whether the body has a `callback_url`; the official format has none."""
        return self.sends is not None and self.root is Root.REVERSE


def _same(places: str) -> dict[str, Any]:
    """Map each of *places* to its last part: our name and the gateway's are the same."""
    return {place: place.rpartition(".")[2] for place in places.split()}


def _balance(
    name: str, path: str, route: BalanceRoute, source: str, root: Root = Root.BASE
) -> Endpoint:
    return Endpoint(name, "GET", root, path, method="balance", source=source, route=route)


def _frames(request: OfficialImageToVideo) -> object:
    """`image`; with a `last_image`, a list of both, each with its `position`."""
    if request.last_image is None:
        return request.image
    frames = {"first": request.image, "last": request.last_image}
    return [{"uri": uri, "position": at} for at, uri in frames.items()]


def _character(request: OfficialCharacterPerformance) -> object:
    """`image` or `character_video`, with its `type`."""
    if request.image is None:
        return _typed("video", request.character_video)
    return _typed("image", request.image)


def _performance(request: OfficialCharacterPerformance) -> object:
    """`video`, with its `type`."""
    return _typed("video", request.video)


def _reference(request: OfficialVideoToVideo) -> object:
    """`image`, with its `type`, as a list of one."""
    return None if request.image is None else [_typed("image", request.image)]


def _images(request: Aleph) -> object:
    """`image`, as a list of one."""
    return None if request.image is None else [request.image]


def _typed(kind: str, uri: object) -> dict[str, object]:
    return {"type": kind, "uri": uri}


_MOTION: Final = {
    f"options.motion_vector.{axis}": f"motion.{axis}"
    for axis in ("x", "y", "z", "r", "bg_x_pan", "bg_y_pan")
}
_LOOK: Final = _same("model ratio seed")
_LENGTH: Final = _LOOK | {"duration": "seconds", "audio": "audio"}


def _reverse(
    name: str,
    path: str,
    sends: type,
    body: dict[str, Any],
    *,
    method: str,
    source: str,
    gateways: str,
) -> Endpoint:
    return Endpoint(
        name,
        "POST",
        Root.REVERSE,
        f"/pro/{path}",
        method,
        source,
        sends,
        body,
        tuple(gateways.split()),
    )


def _official(
    path: str,
    sends: type,
    body: dict[str, Any],
    *,
    gateways: str,
    source: str = "api-facts 11 row 11",
) -> Endpoint:
    return Endpoint(
        f"official_{path}",
        "POST",
        Root.OFFICIAL,
        f"/{path}",
        f"official.{path}",
        source,
        sends,
        body,
        tuple(gateways.split()),
    )


ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    row.name: row
    for row in (
        _reverse(
            "text_to_video",
            "generate",
            TextToVideo,
            _same("prompt ratio style model options.seconds") | _MOTION,
            method="generate",
            source="api-facts 1.2",
            gateways=(
                "fuhuapi cometapi deerapi gpt-best ecovai gptoai openai-hub chat-bp gptproto duomi"
            ),
        ),
        _reverse(
            "image_to_video",
            "generate",
            ImageToVideo,
            _same(
                "image last_image prompt ratio style model "
                "options.seconds options.image_as_end_frame options.flip"
            )
            | _MOTION,
            method="generate",
            source="api-facts 1.3",
            gateways="fuhuapi cometapi deerapi gpt-best gptoai chat-bp zyhelp duomi",
        ),
        _reverse(
            "video_to_video",
            "video2video",
            VideoToVideo,
            _same(
                "video model prompt options.structure_transformation options.flip options.seconds"
            ),
            method="video_to_video",
            source="api-facts 1.4",
            gateways="fuhuapi cometapi deerapi yutoai duomi",
        ),
        _reverse(
            "act_one",
            "act_one",
            ActOne,
            _same("video image character_video options.motion_multiplier options.flip"),
            method="act_one",
            source="api-facts 1.5",
            gateways="fuhuapi cometapi deerapi ecovai duomi",
        ),
        _reverse(
            "aleph",
            "aleph",
            Aleph,
            _same("video prompt options.seconds") | {"images": _images},
            method="aleph",
            source="api-facts 11 row 12",
            gateways="yutoai bltcy ait8 duomi",
        ),
        _official(
            "text_to_video",
            OfficialTextToVideo,
            {"promptText": "prompt"} | _LENGTH,
            gateways="deerapi",
        ),
        _official(
            "image_to_video",
            OfficialImageToVideo,
            {"promptImage": _frames, "promptText": "prompt"} | _LENGTH | _same("watermark"),
            source="api-facts 6",
            gateways="fuhuapi cometapi deerapi ezlinkai",
        ),
        _official(
            "video_to_video",
            OfficialVideoToVideo,
            {"videoUri": "video", "promptText": "prompt", "references": _reference} | _LOOK,
            gateways="cometapi deerapi ezlinkai",
        ),
        _official(
            "character_performance",
            OfficialCharacterPerformance,
            {
                "reference": _performance,
                "character": _character,
                "bodyControl": "body_control",
                "expressionIntensity": "expression_intensity",
            }
            | _LOOK,
            gateways="cometapi ezlinkai",
        ),
        _official(
            "video_upscale",
            OfficialVideoUpscale,
            {"videoUri": "video", "model": "model"},
            gateways="cometapi ezlinkai",
        ),
        Endpoint(
            "official_request",
            "POST",
            Root.OFFICIAL,
            "/{path}",
            method="official.submit",
            source="api-facts 6",
            sends=OfficialRequest,
        ),
        Endpoint("feed", "POST", Root.REVERSE, "/feed", method="feed", source="api-facts 1.6"),
        Endpoint(
            "official_task",
            "GET",
            Root.OFFICIAL,
            "/tasks/{task_id}",
            method="official.feed",
            source="api-facts 6",
        ),
        _balance(
            "subscription",
            "/v1/dashboard/billing/subscription",
            BalanceRoute.BILLING,
            "api-facts 7.2",
        ),
        _balance("usage", "/v1/dashboard/billing/usage", BalanceRoute.BILLING, "api-facts 7.3"),
        _balance("token_usage", "/api/usage/token/", BalanceRoute.TOKEN, "api-facts 7.4"),
        _balance("quota", "/user/quota", BalanceRoute.QUOTA, "api-facts 7.1", Root.QUOTA),
        Endpoint(
            "account_tasks",
            "GET",
            Root.BASE,
            "/api/task/self",
            method="audit",
            source="api-facts 11 row 19",
        ),
        Endpoint(
            "key_log",
            "GET",
            Root.BASE,
            "/api/log/token",
            method="reconcile",
            source="api-facts 11 row 20",
        ),
    )
}

SUBMITS: Final[Mapping[type, Endpoint]] = {
    row.sends: row for row in ENDPOINTS.values() if row.sends is not None
}
"""Request class to the endpoint that takes it."""

ENDPOINT_NAMES: Final = {sends.__name__: row.name for sends, row in SUBMITS.items()}
"""The journal's name for a kind of request to the name of its endpoint."""

BALANCE_ENDPOINTS: Final[Mapping[BalanceRoute, tuple[str, ...]]] = {
    route: tuple(row.name for row in ENDPOINTS.values() if row.route is route)
    for route in BalanceRoute
}
"""The endpoints that are called for a balance, by name; their responses are joined."""


def kind_of_action(action: str | None, *, official: bool) -> str:
    """Return the name of the request class that a gateway's word for a kind of task fits best."""
    word = "".join(filter(str.isalnum, action or "")).lower()
    kinds = (kinds for parts, *kinds in KINDS_BY_ACTION if any(part in word for part in parts))
    return next(kinds)[official].__name__


def feed(*, official: bool) -> Endpoint:
    """Return the endpoint that is polled for the tasks of one format."""
    return ENDPOINTS["official_task" if official else "feed"]


def feed_of(request: object) -> Endpoint:
    """Return the endpoint that is polled for the task of *request*."""
    return feed(official=is_official(type(request).__name__))


def is_official(kind: str) -> bool:
    """Return whether the request class of that name belongs to the official format."""
    return any(row.root is Root.OFFICIAL for sent, row in SUBMITS.items() if sent.__name__ == kind)


FILES: Final = Endpoint(
    "files", "POST", Root.BASE, "", method="submit", source="api-facts 11 row 23"
)
"""Takes a local file, and answers with its address; its path is the gateway's `files_path`."""
TASK_ID_KEY: Final = "task_id"
CALLBACK_KEY: Final = "callback_url"
API_KEY_NAME: Final = "key"
"""Where the quota route's address and, with `KeyStyle.BODY`, a body have the API key."""
FILE_URL_KEY: Final = "url"
"""Where the response to an upload has the address."""


# --- the account ---------------------------------------------------------------------------------

ACCOUNT_TASKS: Final = ENDPOINTS["account_tasks"]
"""The account's tasks, newest first; it needs the account's access token instead of the key."""
KEY_LOG: Final = ENDPOINTS["key_log"]
"""What a key was charged; older gateways read it from the address, newer ones from the header."""
USER_HEADERS: Final = (
    *("New-Api-User", "Rix-Api-User", "Veloera-User", "voapi-user", "neo-api-user"),
    *("X-Api-User", "User-id"),
)
"""The header with the user's id, by its names in the forks; unknown ones are ignored."""
PAGE_KEY: Final = "p"
PAGE_SIZE_KEY: Final = "page_size"
SINCE_KEY: Final = "start_timestamp"
UNTIL_KEY: Final = "end_timestamp"
TOTAL_KEY: Final = "total"
PAGE_NUMBER_KEY: Final = "page"
ROWS_KEYS: Final = ("items", "list", "records", "logs", "tasks", "data")
"""Where a page has its rows, if it is not the list of them itself."""
TASK_ROW: Final = {
    "created_at": "created_at",
    "submitted_at": "submit_time",
    "platform": "platform",
    "action": "action",
    "points": "quota",
    "user_id": "user_id",
    "status": "status",
    "data": "data",
    "properties": "properties",
}
"""Our name for a part of a row of the list to the gateway's."""
INPUT_KEY: Final = "input"
"""Where the properties of a task have its prompt; most gateways leave it empty for videos."""
PROMPT_KEYS: Final = ("prompt", "promptText", "prompt_text", "text_prompt")
MODEL_KEYS: Final = ("origin_model_name", "upstream_model_name", "model", "model_name")
"""The first is the model that was requested; a gateway may pass on another one."""
KINDS_BY_ACTION: Final[tuple[tuple[tuple[str, ...], type, type], ...]] = (
    (("actone", "acttwo", "character"), ActOne, OfficialCharacterPerformance),
    (("aleph",), Aleph, OfficialVideoToVideo),
    (("upscale",), VideoToVideo, OfficialVideoUpscale),
    (("video2video", "videotovideo"), VideoToVideo, OfficialVideoToVideo),
    (("image",), ImageToVideo, OfficialImageToVideo),
    (("",), TextToVideo, OfficialTextToVideo),
)
"""Parts of a gateway's word for the kind of a task, and its request in each format; in order."""
CHARGE_ROW: Final = {
    "charged_at": "created_at",
    "model": "model_name",
    "points": "quota",
    "content": "content",
    "kind": "type",
    "other": "other",
}
"""Our name for a part of a row of the log to the gateway's."""
CONSUMPTION: Final = 2
"""The `type` of a row of the log that is a charge; others are top-ups, errors and refunds."""
ACTION_IN_CONTENT: Final = r"(?:操作|\b(?:action|operation)\b)[\s:：]*([A-Za-z][\w./-]*)"
"""Where the text of a charge names the kind of task."""


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
        Gateway(
            "yutoai",
            prefix="/runway/v1",
            files_path="/v1/files",
            source="api-facts 1.1 S10, 11 row 23",
        ),
        Gateway("zyhelp", prefix="/runway/v1", source="api-facts 1.1 S10"),
        Gateway(
            "bltcy",
            "https://api.bltcy.ai",
            prefix="/runway/v1",
            files_path="/v1/files",
            source="api-facts 11 row 13, 11 row 23",
        ),
        Gateway(
            "ait8",
            "https://ai.t8star.cn",
            prefix="/runway/v1",
            files_path="/v1/files",
            source="api-facts 11 row 13, 11 row 23",
        ),
        # Its documentation has the official format only.
        Gateway(
            "ezlinkai",
            "https://api.ezlinkai.com",
            prefix="/runway/v1",
            official_prefix="/runway/v1",
            source="api-facts 11 row 13",
        ),
        # As its clients call it. Its page has a GET for the feed, with the key in Authorization.
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
    }.items()
    for word in words.split()
}
"""Every known status word, in lower case, with `_` between words (api-facts 3.1 to 3.4, 11)."""


# --- dialects ------------------------------------------------------------------------------------


class Sense(enum.Enum):
    """What a response of a dialect is about."""

    TASK = "a task"
    BALANCE = "a balance"
    REFUSAL = "a refusal"


@attrs.frozen(eq=False)
class Dialect:
    """
    One shape of response, recognised by its keys and never by host (api-facts 2).

    The rows are tried in order, and the first that fits is used.
    """

    letter: str
    name: str
    fits: Callable[[Mapping[str, Any]], bool]
    source: str
    about: Sense = Sense.TASK
    #: Whether a response that fits is nevertheless a refusal.
    refuses: Callable[[Mapping[str, Any]], bool] = lambda _body: False
    #: The key of the part that is read; None: the body itself.
    under: str | None = None
    #: Our name for a part to the gateway's.
    spelling: Mapping[str, str] = attrs.field(factory=dict)
    #: Parts that a balance must have.
    required: tuple[str, ...] = ()
    #: The keys of a refusal's code, and of its reason; the first that is present counts.
    codes: tuple[str, ...] = ("code", "type")
    messages: tuple[str, ...] = ("message", "msg")
    #: Whether its code reports success, regardless of the HTTP status.
    is_envelope: bool = False
    #: Whether an empty part means that the gateway does not know the task (api-facts 2 B).
    empty_is_not_found: bool = False

    def sense(self, body: Mapping[str, Any]) -> Sense:
        """Return what a *body* of this dialect is about."""
        return Sense.REFUSAL if self.refuses(body) else self.about


def is_whole(value: object) -> bool:
    """Return whether *value* is a whole number or digits; a boolean is not (api-facts 2 F)."""
    if isinstance(value, str):
        digits = value.strip()
        # Python refuses to read thousands of digits; no code has more than a few.
        return digits.isascii() and digits.isdigit() and len(digits) < 20
    return isinstance(value, int) and not isinstance(value, bool)


PARTS: Final = (
    *("data", "result", "task", "response", "output"),
    *("results", "tasks", "job", "generation", "payload", "items", "list", "content", "body"),
    *("jobs", "generations"),
)
"""Keys of a task in a response: an object, a list, JSON in a text, or the id alone."""

STATE_KEYS: Final = frozenset({"state", "status", "task_status"})
SURE_KEYS: Final = STATE_KEYS | {"code", "task_id"}
"""With one of these keys at the top, an id there is the task's, or the task is in the data."""
ENVELOPE_WORDS: Final = frozenset({"msg", "message"})

USUAL_KEYS: Final = {
    rare: usual
    for usual, spellings in {
        "status": "task_status taskStatus",
        "video_url": "video_result videoUrl video_urls videoUrls",
        "output": (
            "videos video_results result_url result_urls resultUrl resultUrls output_url outputUrl"
        ),
        # Only beside a success: of a running task they may be the address to poll, or the input.
        "raw_video_url": (
            "url urls download_url file_url result content "
            # doc-en.302.ai, docs.kie.ai/runway-api, wavespeed.ai
            "artifacts videoInfo outputs resultJson "
            # xAI, New-API's /v1/videos, kling, vidu
            "video video_raw metadata task_result creations works"
        ),
        "fail_reason": "failMsg",
    }.items()
    for rare in spellings.split()
}
"""Rare spelling to the usual one, used if the usual one is missing (api-facts 11)."""

_REVERSE: Final = _same(
    "task_id state status progress video_url result_url output raw_video_url error"
) | {"reason": "fail_reason"}
_NUMERIC: Final = (
    _REVERSE
    | _same("poster last_frame prompt prompt_en refund")
    | {
        "message": "msg",
        "points": "point",
        "created_at": "create_time",
        "updated_at": "update_time",
    }
)
_RELAY: Final = (
    _REVERSE
    | _same("created_at updated_at")
    | {"submitted_at": "submit_time", "finished_at": "finish_time", "inner": "data"}
)
_REVERSE_ONLY: Final = frozenset({"video_url", "raw_video_url", "point", "refund", "create_time"})
_OFFICIAL: Final = _same("status progress video_url output raw_video_url error cost") | {
    "task_id": "id",
    "reason": "failure",
    "failure_code": "failureCode",
    "created_at": "createdAt",
    "updated_at": "updatedAt",
}
_LUMA: Final = _same(
    "state last_frame prompt error created_at progress video_url result_url output raw_video_url"
) | {
    "task_id": "id",
    "poster": "thumbnail",
    "reason": "failure_reason",
}

DIALECTS: Final = (
    Dialect(
        "E",
        "openai_error",
        lambda body: bool(body.get("error")),
        "api-facts 2 E",
        about=Sense.REFUSAL,
        under="error",
        messages=("message", "localized_message"),
    ),
    Dialect(
        "F",
        "dashboard_error",
        lambda body: body.get("success") is False,
        "api-facts 2 F",
        about=Sense.REFUSAL,
    ),
    Dialect(
        "F'",
        "dashboard_task",
        lambda body: (
            body.get("code") is True
            and isinstance(body.get("data"), Mapping)
            and "task_id" in body["data"]
        ),
        "api-facts 2 F; not documented for tasks, and read so that no id is lost",
        under="data",
        spelling=_NUMERIC,
    ),
    Dialect(
        "F'",
        "dashboard_balance",
        lambda body: isinstance(body.get("code"), bool),
        "api-facts 7.4",
        about=Sense.BALANCE,
        refuses=lambda body: not body["code"],
        under="data",
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
        lambda body: "description" in body and "code" in body and "data" not in body,
        "api-facts 2 G",
        about=Sense.REFUSAL,
        codes=("code",),
        messages=("description",),
    ),
    Dialect(
        "A",
        "envelope",
        lambda body: is_whole(body.get("code")),
        "api-facts 2 A",
        refuses=lambda body: int(body["code"]) != 200,
        under="data",
        spelling=_NUMERIC,
        messages=("msg", "message"),
        is_envelope=True,
    ),
    Dialect(
        "B",
        "relay",
        lambda body: str(body.get("code")).strip().lower() == "success",
        "api-facts 2 B",
        under="data",
        spelling=_RELAY,
        is_envelope=True,
        empty_is_not_found=True,
    ),
    Dialect(
        "D",
        "task_error",
        lambda body: isinstance(body.get("code"), str) and bool(body["code"].strip()),
        "api-facts 2 D",
        about=Sense.REFUSAL,
        messages=("message", "msg", "detail"),
    ),
    Dialect(
        "billing",
        "billing_limit",
        lambda body: body.get("object") == "billing_subscription" or "hard_limit_usd" in body,
        "api-facts 7.2",
        about=Sense.BALANCE,
        spelling={"total": "hard_limit_usd"},
        required=("total",),
    ),
    Dialect(
        "billing'",
        "billing_usage",
        lambda body: body.get("object") == "list" or "total_usage" in body,
        "api-facts 7.3",
        about=Sense.BALANCE,
        spelling={"used_hundredths": "total_usage"},
        required=("used_hundredths",),
    ),
    Dialect(
        "quota",
        "account_quota",
        lambda body: "total_quota" in body,
        # total_quota is what is left: a sister's page calls it "current account balance".
        "api-facts 7.1; https://apidoc.elkapi.com/doc-1807421",
        about=Sense.BALANCE,
        spelling={"remaining": "total_quota", "used": "total_used_quota"},
        required=("remaining",),
    ),
    Dialect(
        "B'",
        "bare_relay",
        lambda body: (
            "task_id" in body and not body.keys().isdisjoint({"fail_reason", "result_url", "data"})
        ),
        "api-facts 2 B'",
        spelling=_RELAY,
    ),
    Dialect("I", "callback", lambda body: "task_id" in body, "api-facts 2 I", spelling=_NUMERIC),
    Dialect(
        "I'",
        "callback_by_id",
        lambda body: "id" in body and not body.keys().isdisjoint(_REVERSE_ONLY),
        "api-facts 11, row 16: the id under another usual name",
        spelling={**_NUMERIC, "task_id": "id"},
    ),
    Dialect(
        "C'",
        "luma",
        lambda body: "id" in body and "state" in body,
        "api-facts 2 C'",
        spelling=_LUMA,
    ),
    Dialect("C", "official", lambda body: "id" in body, "api-facts 2 C", spelling=_OFFICIAL),
)

MAX_NESTING: Final = 3
"""How many levels of nested responses are read, as in public client code (api-facts 2 J)."""

UNLIMITED: Final = 100_000_000
"""A `hard_limit_usd` of this much or more means that there is no limit (api-facts 7.2)."""


def dialect_of(body: Mapping[str, Any]) -> Dialect | None:
    """Return the first dialect that fits *body*."""
    for dialect in DIALECTS:
        if dialect.fits(body):
            return dialect
    return None
