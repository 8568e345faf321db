"""
Refusals: the table of what each means for the money, and what proves that nothing was charged.

A paid request that a row without a proof refuses may have been accepted.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import attrs

from fuhu_runway import errors
from fuhu_runway._json import decode, parsed, text_of
from fuhu_runway._redact import outline, outline_text, redact, shown_code, without
from fuhu_runway.errors import Fate, GatewayError, UnreadableReply

from . import tables as facts
from . import values
from .encode import Reply, Request
from .tables import Dialect, Replay, dialect_of

INDEX_PAGE: Final = "the gateway's index page"
CHALLENGE: Final = "a challenge page"
STRANGER: Final = "an answer that is not the gateway's"
"""These stand for codes where the answer is not JSON (api-facts 2 H)."""
INDEX_PAGE_MARKS: Final = ('id="root"', "id='root'", "id=root", 'id="app"', "id='app'", "id=app")
"""What the index page of a gateway's web UI has, and no error page."""
TASK_NOT_EXIST: Final = "task_not_exist"


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
    # Statuses that mean: this request was never examined.
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
        "The key is checked before the request is examined.",
        frozenset({401, 403}),
    ),
    Refusal(
        errors.Unauthorized,
        Fate.REJECTED,
        "Check the key and what it is allowed to do, on the gateway's own page.",
        "api-facts 2 F, 5.1 (the same texts in an answer with status 200)",
        "The key is checked before the request is examined.",
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


# From a response to its row

MAX_BODY: Final = 2000
"""How much of a refused answer an error keeps, in characters."""
MAX_MESSAGE: Final = 4000
"""How much of a gateway's reason is read, in characters: some quote whole pictures."""


@attrs.frozen(eq=False)
class Reasons:
    """What a refusal says about itself."""

    #: The gateway's code, as a person may be shown it.
    code: str | None
    #: Everything that names its kind: codes and types.
    names: set[str]
    message: str | None
    #: The HTTP status that its code stands for, where it does.
    status: int | None = None


def refusal_of(reply: Reply, body: Mapping[str, Any], dialect: Dialect) -> GatewayError:
    """Return the error for a refusal, unwrapped as far as it nests (api-facts 2 J)."""
    told = _told(body, dialect)
    status = reply.status
    # A status in the code counts for an envelope, which is sent with 200, and where no other
    # status refuses.
    if told.status and (dialect.code_is_status or reply.is_success):
        status = told.status
    for _ in range(facts.MAX_NESTING):
        inner = parsed(told.message or "")
        spoken = dialect_of(inner) if isinstance(inner, dict) else None
        if spoken is None:
            break
        deeper = _told(inner, spoken)
        told = Reasons(deeper.code or told.code, deeper.names | told.names, deeper.message)
    return error_of(reply, status, told)


TASK_ERROR: Final = next(row for row in facts.DIALECTS if row.letter == "D")
"""How an error of no known shape is read, whose status says that it is one."""


def _told(body: Mapping[str, Any], dialect: Dialect) -> Reasons:
    """Read one level of a refusal."""
    part: Any = body.get(dialect.under) if dialect.under and not dialect.code_is_status else body
    if not isinstance(part, Mapping):
        part = {"message": part}
    names = {name for key in dialect.codes if (name := values.text_in(part.get(key)))}
    texts = (
        values.text_in(part.get(key)) or values.text_in(body.get(key)) for key in dialect.messages
    )
    message = next(filter(None, texts), None)
    numbers = (int(name) for name in names if facts.is_whole(name))
    status = next((number for number in numbers if 400 <= number < 600), None)
    if message and not message.startswith("{"):
        message = "; ".join([message[:MAX_MESSAGE], *_issues(body.get("issues"))])
    return Reasons(values.text_in(part.get("code")), names, message, status)


def _issues(issues: Any) -> Iterator[str]:
    """Yield which field breaks which bound, as Runway's own checks say it (api-facts 11, row 5)."""
    for issue in issues[:10] if isinstance(issues, list) else ():
        if isinstance(issue, dict) and (message := values.text_in(issue.get("message"))):
            path = issue.get("path")
            names = path if isinstance(path, list) else [path]
            yield f"{' '.join(str(name) for name in names if name is not None)}: {message}"


_IS_CODE: Final = re.compile(r"[a-z]+(?:[_:][a-z]+)+")
"""A reason that is itself a code, as in "task_not_exist"."""


def error_of(reply: Reply, status: int, told: Reasons, happened: str | None = None) -> GatewayError:
    """Return the error of the first row of the table that fits; *happened*: it was not JSON."""
    text, request_id = _without_request_id((told.message or "")[:MAX_MESSAGE] or None)
    request, secrets = reply.request, reply.request.secrets
    shown = redact(text, secrets) if text else None
    # What was sent is taken out first: a quoted prompt must not decide what the refusal means.
    words = without(text, secrets) if text else ""
    names = told.names | ({words} if _IS_CODE.fullmatch(words) else set())
    row = _row_for(status, names, words, is_json=happened is None)
    # Without proof that nothing was accepted, a paid request may have been.
    is_unproven = request.endpoint.replay is Replay.PAID and not row.proof
    fate = Fate.UNKNOWN if is_unproven else row.fate
    said = f": {shown}." if shown else "."
    about_task = row.advice == BASE_URL and status == 404 and request.task_id is not None
    return row.raises(
        happened or f"The gateway refused with status {status}{said}",
        _money(request, fate),
        NO_SUCH_TASK if about_task else row.advice,
        request.task_id,
        redact(request_id, secrets) if request_id else _header_id(reply),
        reply.status,
        shown_code(told.code, secrets),
        shown,
        values.retry_after(reply.headers, reply.received_at),
        fate,
        _shape(reply),
    )


def _row_for(status: int, codes: Iterable[str], text: str, *, is_json: bool) -> Refusal:
    names = {code.lower() for code in codes}
    return next(
        row
        for row in REFUSALS
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


def unreadable(
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


def no_json(reply: Reply, fault: str | None) -> GatewayError | UnreadableReply:
    """Return what an answer means that is not JSON, so perhaps not the gateway's own."""
    text = text_of(reply.body[:MAX_BODY]).lstrip()
    kind = reply.headers.get("content-type", "").lower()
    is_page = "html" in kind or text[:9].lower().startswith(("<!doctype", "<html"))
    is_paid = reply.request.endpoint.replay is Replay.PAID
    shown = redact(text, reply.request.secrets)
    names = set()
    if reply.headers.get("cf-mitigated", "").lower() == "challenge":
        names.add(CHALLENGE)
    if not is_paid and reply.status != 429:
        names.add(STRANGER)
    elif is_page and reply.is_success and any(mark in shown for mark in INDEX_PAGE_MARKS):
        names.add(INDEX_PAGE)
    if not is_page and reply.is_success:
        reason = "larger than what is read of an answer @ $"
        if not reply.cut:
            reason = f"expected JSON, got {fault} @ $"
        return unreadable(reply, reason, excerpt=outline_text(shown))
    what = "a web page" if is_page else "not JSON" if text else "empty"
    happened = f"The answer was {what}, with status {reply.status}."
    return error_of(reply, reply.status, Reasons(None, names, None), happened)
