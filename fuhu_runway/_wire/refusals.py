"""
Refusals: what each one means for the money, and what proves that nothing was charged.

A paid request that matches a row without a proof may have been accepted.
"""

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

import attrs

from fuhu_runway import errors
from fuhu_runway._json import parsed, text_of
from fuhu_runway._redact import outline, outline_text, redact, shown_code, without
from fuhu_runway.errors import Fate, GatewayError, UnreadableReply

from . import tables, values
from .encode import Reply, Request
from .tables import Dialect, Replay, dialect_of

INDEX_PAGE: Final = "the gateway's index page"
CHALLENGE: Final = "a challenge page"
BLOCKED: Final = "a firewall's page"
FOREIGN: Final = "a response that is not the gateway's"
"""These replace the codes of responses that are not JSON (api-facts 2 H)."""
INDEX_PAGE_MARKS: Final = ('id="root"', "id='root'", "id=root", 'id="app"', "id='app'", "id=app")
"""The index page of a gateway's web UI has one of these, and no error page has."""
NO_METHOD: Final = "not allowed"
"""The words in every web server's own page for status 405, in lower case."""
TASK_NOT_EXIST: Final = "task_not_exist"
CHARGED_CODES: Final = frozenset({"insert_task_failed"})
"""Codes of requests that were charged without a record of their task (api-facts 11 row 7)."""
BASE_URL: Final = "Check base_url and the gateway's prefix: this address has no such endpoint."
NO_SUCH_TASK: Final = (
    "Check the task id and the key: a task is visible only to the account that created it, and a "
    "new one may take a few seconds to appear."
)

ONLY_HTTP: Final = frozenset({407, 421, 425, 501, 505, 511})
"""Statuses that prove something only if HTTP itself has them: as the code in a body, gateways use
some for tasks that failed after they were accepted (501: https://docs.kie.ai/veo3-api)."""

ADVICE: Final[Mapping[type[GatewayError], str]] = {
    errors.OutOfCredits: "Top up the account or the key's quota, then call again.",
    errors.InvalidRequest: "Change the request: sent again as it is, it will be refused again.",
    errors.Unauthorized: "Check the key and its permissions on the gateway's own page.",
    errors.NotFound: BASE_URL,
    errors.RateLimited: "Call again later, or less often.",
    errors.ModelUnavailable: (
        "Use another model, or one that the key's group offers, or try again later."
    ),
    errors.GatewayDown: "Try again later; the gateway has problems.",
}
"""What to do about each error, unless its row says something else."""


@attrs.frozen(eq=False)
class Refusal:
    """One kind of refusal; the first row whose given conditions all hold is used."""

    raises: type[GatewayError]
    source: str
    #: Why there cannot be a task behind this response; empty if there may be one.
    proof: str = ""
    statuses: AbstractSet[int] = frozenset()
    codes: AbstractSet[str] = frozenset()
    #: Parts of the reason, in lower case. Messages are in Chinese or English (api-facts 5.1).
    texts: tuple[str, ...] = ()
    #: Further parts, of which one has to be in the reason as well.
    also: tuple[str, ...] = ()
    #: Whether the row is for JSON only, which is the gateway's own; a page may be anyone's.
    in_json: bool = True
    #: What to do, if `ADVICE` for its error does not fit.
    advice: str = ""

    @property
    def fate(self) -> Fate:
        """The fate of a free request; that of a paid one is UNKNOWN unless there is a proof."""
        if not issubclass(self.raises, errors.GatewayDown | errors.RateLimited):
            return Fate.REJECTED
        return Fate.REFUSED if self.proof else Fate.UNKNOWN


_NOT_5XX: Final = frozenset(range(200, 500))
_RESERVED_FIRST: Final = "The points are reserved before anything is passed on."
_CHECKED_FIRST: Final = "The gateway checks the request before it passes it on."
_NO_CHANNEL: Final = "Without a channel there is nothing that could accept the request."
_BUSY: Final = (
    *("频繁", "繁忙", "饱和", "请求数限制", "saturated"),
    *("too many requests", "too frequent", "rate limit", "busy"),
)
_LATE: Final = ("超时", "timeout", "timed out", "time out", "deadline exceeded")
_BROKEN_OFF: Final = (
    *_LATE,
    *("time-out", "context canceled", "unexpected eof", "connection reset"),
    *("broken pipe", "socket hang up"),
    *("bad gateway", "network error", "client disconnected", "status code 5"),
    *("internal server error", "task_id is empty", "task id is empty"),
    *("重复提交", "duplicate request", "duplicate submission", "already submitted"),
)
"""The words for an upstream whose answer was lost, or that has the request already."""
_WRONG: Final = frozenset({400, 406, 410, 412, 416, 422, 451})
"""Statuses that, in the gateway's own JSON, mean that the request itself is wrong."""
_KEY_FIRST: Final = "The key is checked before the request is examined."

REFUSALS: Final = (
    # Not JSON: perhaps from a proxy, a firewall or a captive portal, and not from the gateway.
    Refusal(
        errors.GatewayDown,
        "Cloudflare's documentation of challenges: header cf-mitigated",
        "The firewall answers in place of the gateway, which has not seen the request.",
        codes={CHALLENGE},
        in_json=False,
        advice="Try again later, or from another network: a firewall asks for a browser.",
    ),
    Refusal(
        errors.GatewayDown,
        "Pages, empty bodies and captive portals in response to a free request, with any status",
        codes={FOREIGN},
        in_json=False,
        advice="Try again later. If it persists, check base_url, the gateway's prefix and the "
        "network.",
    ),
    Refusal(
        errors.GatewayDown,
        "api-facts 11, row 26: a firewall's page with 405 may replace any response of the gateway",
        codes={BLOCKED},
        in_json=False,
        advice="Ask the gateway's operator why its firewall blocks this.",
    ),
    Refusal(
        errors.NotFound,
        "api-facts 2 H: an unrouted path gets the gateway's own page with status 200",
        "The web UI's router answers what no route of the API takes.",
        {200},
        {INDEX_PAGE},
        in_json=False,
    ),
    # The gateway's own codes.
    Refusal(
        errors.OutOfCredits,
        "api-facts 5.1 (403 insufficient_user_quota; 429 local:quota_not_enough)",
        _RESERVED_FIRST,
        codes={
            "insufficient_user_quota",
            "pre_consume_token_quota_failed",
            "quota_not_enough",
            "local:quota_not_enough",
            "insufficient_quota",
            "insufficient_credits",
            "insufficient_balance",
        },
    ),
    Refusal(errors.OutOfCredits, "HTTP 402", _RESERVED_FIRST, {402}),
    Refusal(
        errors.OutOfCredits,
        "api-facts 5.1 (401 额度已用尽; 403 用户额度不足, 预扣费额度失败); 11, row 4",
        _RESERVED_FIRST,
        _NOT_5XX,
        texts=(
            *("额度已用尽", "额度不足", "余额不足", "积分不足", "预扣费额度失败"),
            *("quota exhausted", "quota has been exhausted", "insufficient quota"),
            *("insufficient balance", "balance not enough", "insufficient credit"),
            *("not enough credit", "not have enough credit", "not enough points"),
            *("not enough balance", "out of credit", "credits insufficient", "已欠费"),
        ),
    ),
    Refusal(
        errors.NotFound,
        "api-facts 5.1 (400 task_not_exist), 5.4",
        codes={TASK_NOT_EXIST},
        advice=NO_SUCH_TASK,
    ),
    Refusal(
        errors.NotFound,
        "api-facts 11, row 6 (404 Could not find Task; 视频任务不存在)",
        statuses=_NOT_5XX,
        texts=("could not find task", "task not found", "task does not exist", "任务不存在"),
        advice=NO_SUCH_TASK,
    ),
    Refusal(
        errors.InvalidRequest,
        "api-facts 5.1 (400 callback_url_empty)",
        _CHECKED_FIRST,
        codes={"callback_url_empty"},
        advice="Pass callback_url to the client: this gateway requires one.",
    ),
    Refusal(
        errors.InvalidRequest,
        "api-facts 5.1 (400 invalid_request …; 500 invalid_request); 11, row 7",
        _CHECKED_FIRST,
        codes={
            "invalid_request",
            "invalid_api_platform",
            "invalid_parameters",
            "reference_images_empty",
            "model_mapping_failed",
            "model_price_error",
            "channel_not_found",
            "read_request_body_failed",
            "api_not_implemented",
        },
    ),
    Refusal(
        errors.InvalidRequest,
        "api-facts 5.1 (200 with code ≠ 200: refused, for the reason in msg)",
        _CHECKED_FIRST,
        {200},
        texts=("参数错误", "无效的参数", "不能为空", "invalid param", "is required", "is_required"),
    ),
    Refusal(
        errors.ModelUnavailable,
        "api-facts 5.1 (503 model_not_found); 11, row 7 (channel_disabled, no_available_key); "
        "New-API types/error.go, relay/relay_task.go",
        _NO_CHANNEL,
        codes={
            "model_not_found",
            "channel_disabled",
            "task_channel_disable",
            "no_available_key",
            "channel:no_available_key",
            "channel_no_available_key",
        },
    ),
    Refusal(
        errors.ModelUnavailable,
        "api-facts 5.1 (503, 无可用渠道)",
        _NO_CHANNEL,
        {503},
        texts=("无可用渠道", "no available channel"),
    ),
    Refusal(
        errors.GatewayDown,
        "api-facts 5.1 (500 do_request_failed …); 11, row 7 (insert_task_failed is charged); "
        "New-API types/error.go: responses that the gateway could not read, with any status, since "
        "an operator may map one to another",
        codes={
            "bad_response",
            "bad_response_body",
            "empty_response",
            "read_response_body_failed",
            "unmarshal_response_body_failed",
            "unmarshal_response_failed",
            "invalid_response",
            "build_request_failed",
            "do_request_failed",
            "get_channel_failed",
            "get_task_failed",
            "insert_task_failed",
            "request_failed",
        },
    ),
    # Statuses that mean: this request was never examined.
    Refusal(
        errors.RateLimited,
        "api-facts 5.1 (429); RFC 6585",
        "A limiter stands before the handler, and its status says that nothing was taken.",
        {429},
        in_json=False,
    ),
    Refusal(
        errors.GatewayDown,
        "api-facts 5.2: a submit that timed out behind the gateway may have made a task, and "
        '"busy, try again" is what many programs say of any trouble',
        statuses={200, 400},
        texts=_BUSY,
        also=_LATE,
    ),
    Refusal(
        errors.RateLimited,
        "api-facts 5.1 (200 with a busy or frequent msg)",
        "The words are the gateway's own for a request that it did not take.",
        {200, 400},
        texts=_BUSY,
    ),
    Refusal(
        errors.GatewayDown,
        "RFC 8470 (425), RFC 9110 (421)",
        "The status asks for the same request again: it was not processed.",
        {421, 425},
        in_json=False,
        advice="Call again later.",
    ),
    Refusal(
        errors.GatewayDown,
        "RFC 9110 (407), RFC 6585 (511)",
        "The proxy or the network answers in place of the gateway, which has not seen the request.",
        {407, 511},
        in_json=False,
        advice="Log in to the proxy or the network, then call again.",
    ),
    Refusal(
        errors.GatewayDown,
        "api-facts 0, S13 (model/token.go); https://github.com/songquanpeng/one-api/pull/901: the "
        "gateway's database could not be read, and the key may be good",
        _KEY_FIRST,
        {200, 401},
        texts=("数据库查询出错", "令牌验证失败", "database query error"),
    ),
    Refusal(errors.Unauthorized, "api-facts 5.1 (401, 403)", _KEY_FIRST, {401, 403}),
    Refusal(
        errors.Unauthorized,
        "api-facts 2 F, 5.1 (the same texts in a response with status 200)",
        _KEY_FIRST,
        {200},
        texts=("无权进行此操作", "未登录", "无效的令牌", "未提供令牌", "invalid token"),
    ),
    Refusal(
        errors.NotFound,
        "api-facts 5.1 (404 Invalid URL)",
        "No handler took the request.",
        {404},
        in_json=False,
    ),
    Refusal(
        errors.NotFound,
        "RFC 9110 (307, 308)",
        "The redirect asks for the same request elsewhere: it was not processed here.",
        {307, 308},
        in_json=False,
    ),
    Refusal(
        errors.NotFound,
        "api-facts 5.1 (301); some servers also send a 303 for requests that they have accepted",
        statuses=frozenset(range(300, 400)),
        in_json=False,
    ),
    Refusal(
        errors.InvalidRequest,
        "RFC 9110 (405, 411, 413, 414, 415, 417, 426, 501, 505), RFC 6585 (428, 431)",
        "The status is about the head of the request or its size: no handler took it.",
        {405, 411, 413, 414, 415, 417, 426, 428, 431, 501, 505},
        in_json=False,
    ),
    Refusal(
        errors.GatewayDown,
        "api-facts 5.1, 5.2; New-API relay/relay_task.go: the reason may be what broke off between "
        "the gateway and its upstream, with a status that an operator has mapped to another one",
        statuses=_WRONG,
        texts=_BROKEN_OFF,
    ),
    Refusal(
        errors.InvalidRequest,
        "api-facts 5.1 (400); RFC 9110",
        "In the gateway's own JSON these statuses say that the request itself is wrong.",
        _WRONG,
    ),
    # Last: everything else proves nothing.
    Refusal(
        errors.GatewayDown,
        "api-facts 5.1 (500, 502, 504, 520 to 524; 200 with a code or text that we do not know); "
        "408, 409, 444, 460, 499 and every other status",
        in_json=False,
    ),
)


# From a response to its row

MAX_BODY: Final = 2000
"""How much of a response that is not JSON is examined, in bytes."""
MAX_MESSAGE: Final = 4000
"""How much of a gateway's reason is read, in characters: some quote whole pictures."""


@attrs.frozen(eq=False)
class Reasons:
    """The codes, texts and ids in a refusal."""

    code: str | None = None
    #: Its codes and types.
    names: AbstractSet[str] = frozenset()
    message: str | None = None


def refusal_of(reply: Reply, body: Mapping[str, Any], dialect: Dialect) -> GatewayError:
    """Return the error for a refusal, including the errors nested in it (api-facts 2 J)."""
    said = _reasons_in(body, dialect)
    status = reply.status
    if dialect.is_envelope or reply.is_success:
        # An envelope is sent with 200, and its code is the status.
        numbers = (int(name) for name in said.names if tables.is_whole(name))
        codes = (number for number in numbers if 400 <= number < 600)
        status = next((code for code in codes if code not in ONLY_HTTP), status)
    for _ in range(tables.MAX_NESTING):
        inner = parsed(said.message or "")
        inner_dialect = dialect_of(inner) if isinstance(inner, dict) else None
        if inner_dialect is None:
            break
        deeper = _reasons_in(inner, inner_dialect)
        said = Reasons(deeper.code or said.code, deeper.names | said.names, deeper.message)
    if status in _WRONG and any(re.fullmatch(r"5\d\d", name) for name in said.names):
        status = 500  # a relay's own 4xx does not prove that an upstream with a 5xx took nothing
    return error_of(reply, status, said, body)


TASK_ERROR: Final = next(row for row in tables.DIALECTS if row.letter == "D")
"""How an error of unknown shape is read: only its HTTP status shows that it is an error."""


def _reasons_in(body: Mapping[str, Any], dialect: Dialect) -> Reasons:
    """Return the reasons in one level of a refusal."""
    part: Any = body.get(dialect.under) if dialect.under and not dialect.is_envelope else body
    if not isinstance(part, Mapping):
        part = {"message": part}
    names = {name for key in dialect.codes if (name := values.text_in(part.get(key)))}
    texts = (
        values.text_in(part.get(key)) or values.text_in(body.get(key)) for key in dialect.messages
    )
    message = next(filter(None, texts), None)
    if message is None or not message.startswith("{"):
        # Runway names the field that breaks each rule (api-facts 11, row 5), and so does FastAPI.
        issues = body.get("issues") or body.get("detail")
        for issue in issues[:10] if isinstance(issues, list) else ():
            said = issue if isinstance(issue, dict) else {}
            if detail := values.text_in(said.get("message", said.get("msg"))):
                path = said.get("path", said.get("loc"))
                steps = path if isinstance(path, list) else [path]
                field = " ".join(str(step) for step in steps if step is not None)
                message = "; ".join(filter(None, (message, f"{field}: {detail}")))
    return Reasons(values.text_in(part.get("code")), names, message)


_IS_CODE: Final = re.compile(r"[a-z]+(?:[_:][a-z]+)+", re.IGNORECASE)
"""A reason that is itself a code, as in "task_not_exist"."""
_REQUEST_ID: Final = re.compile(r"\(request id: ([^)\s]{1,80})\)$", re.IGNORECASE)


def error_of(
    reply: Reply, status: int, said: Reasons, body: Any = None, *, happened: str | None = None
) -> GatewayError:
    """Return the error of the first row that fits; *happened* is set if the body was not JSON."""
    request, secrets = reply.request, reply.request.secrets
    text, request_id = (said.message or "")[:MAX_MESSAGE], _request_id_of(reply)
    if found := _REQUEST_ID.search(text):
        text, request_id = text[: found.start()].strip(), redact(found[1], secrets)
    shown = redact(text, secrets) or None
    # What was sent is removed first: a quoted prompt must not decide what the refusal means.
    words = without(text, secrets)
    names = said.names | ({words} if _IS_CODE.fullmatch(words) else set())
    row = row_for(status, names, words, is_json=happened is None)
    # Without proof that nothing was accepted, a paid request may have been.
    is_unproven = request.endpoint.replay is Replay.PAID and not row.proof
    fate = Fate.UNKNOWN if is_unproven else row.fate
    reason = f": {shown}." if shown else "."
    advice = row.advice or ADVICE[row.raises]
    if advice == BASE_URL and status == 404 and request.task_id is not None:
        advice = NO_SUCH_TASK
    if row.raises is errors.InvalidRequest and request.hint:
        advice = f"{advice} {request.hint}"
    return row.raises(
        happened or f"The gateway refused with status {status}{reason}",
        _money(request, fate),
        advice,
        request.task_id,
        request_id,
        reply.status,
        shown_code(said.code, secrets),
        shown,
        values.retry_after(reply.headers, reply.received_at),
        fate,
        "" if body is None else redact(outline(body), secrets),
    )


def row_for(status: int, codes: AbstractSet[str], text: str, *, is_json: bool) -> Refusal:
    """Return the first row of the table that fits."""
    names, text = {code.lower() for code in codes}, text.lower()
    return next(
        row
        for row in REFUSALS
        if (is_json or not row.in_json)
        and (not row.statuses or status in row.statuses)
        and (not row.codes or row.codes & names)
        and (not row.texts or any(part in text for part in row.texts))
        and (not row.also or any(part in text for part in row.also))
    )


def _request_id_of(reply: Reply) -> str | None:
    found = next(filter(None, map(reply.headers.get, tables.REQUEST_ID_HEADERS)), None)
    return redact(found, reply.request.secrets) if found else None


def unreadable(
    reply: Reply, *reasons: str, body: Any = None, excerpt: str | None = None
) -> UnreadableReply:
    """Return the error for a response that cannot be read, with the shape of *body* as excerpt."""
    return UnreadableReply(
        f"The gateway's response fits no known dialect: {'; '.join(reasons)}.",
        _money(reply.request, Fate.UNKNOWN),
        "Report the shape of the response, which `excerpt` holds without its content.",
        reply.request.task_id,
        _request_id_of(reply),
        reply.status,
        reasons,
        redact(outline(body) if excerpt is None else excerpt, reply.request.secrets),
        Fate.UNKNOWN,
    )


def _money(request: Request, fate: Fate) -> str:
    if request.endpoint.replay is Replay.PAID:
        is_unknown = fate is Fate.UNKNOWN
        return "It may have been accepted and charged." if is_unknown else "Nothing was charged."
    if request.task_id:
        return "Nothing was charged: polling is free, and the task is unchanged."
    return "Nothing was charged: the request only reads."


def not_json(reply: Reply, fault: str | None) -> GatewayError | UnreadableReply:
    """Return the error for a response that is not JSON, so perhaps not from the gateway."""
    text = text_of(reply.body[:MAX_BODY]).lstrip()
    kind = reply.headers.get("content-type", "").lower()
    is_page = "html" in kind or text[:9].lower().startswith(("<!doctype", "<html"))
    is_paid = reply.request.endpoint.replay is Replay.PAID
    shown = redact(text, reply.request.secrets)
    if reply.is_success and not is_page:
        reason = f"expected JSON, got {fault} @ $"
        if reply.cut:
            reason = "larger than the size limit @ $"
        return unreadable(reply, reason, excerpt=outline_text(shown))
    names = set()
    if reply.headers.get("cf-mitigated", "").lower() == "challenge":
        names.add(CHALLENGE)
    if not is_paid and reply.status != 429:
        names.add(FOREIGN)
    elif is_page and reply.is_success and any(mark in shown for mark in INDEX_PAGE_MARKS):
        names.add(INDEX_PAGE)
    elif is_page and reply.status == 405 and NO_METHOD not in shown.lower():
        names.add(BLOCKED)
    what = "a web page" if is_page else "not JSON" if text else "empty"
    happened = f"The response was {what}, with status {reply.status}."
    return error_of(reply, reply.status, Reasons(names=names), happened=happened)
