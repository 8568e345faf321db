"""
Responses that contain no task: errors, pages and balances.

Literal JSON and text, copied only from the documentation (docs/reference/api-facts.md), so that a
mistake in the client's tables is not repeated here.
"""

import json
from typing import Final

from .accounts import Account

JsonObject = dict[str, object]

#: The web page that One-API serves on unknown paths (api-facts 2 H).
INDEX_PAGE: Final = (
    "<!doctype html><html lang='zh'><head><meta charset='utf-8'><title>New API</title></head>"
    "<body><noscript>You need to enable JavaScript to run this app.</noscript>"
    "<div id='root'></div></body></html>"
)

SATURATED: Final = "当前分组上游负载已饱和，请稍后再试"
KEY_EXHAUSTED: Final = "该令牌额度已用尽"
REQUEST_ID: Final = "20260205132859798638387SIHCnxzJ"

#: The numbers that mean "no limit" on the billing routes (api-facts 7.1 and 7.2).
UNLIMITED_QUOTA: Final = 999_999_999
UNLIMITED_SUBSCRIPTION: Final = 100_000_000

#: One-API's default (api-facts 7.4).
UNITS_PER_DOLLAR: Final = 500_000

# The gateways document no rate between points and dollars (api-facts 5.3). A hundred keeps the
# balances readable.
POINTS_PER_DOLLAR: Final = 100.0


# One for all: json.dumps makes an encoder for each call with options.
ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def as_text(body: object) -> str:
    """Return *body* as the gateways write JSON: compact, with Chinese unescaped."""
    return ENCODER.encode(body)


def error_page(status: int) -> str:
    """Return the HTML that a proxy in front of the gateway sends for *status*."""
    return (
        f"<html>\r\n<head><title>{status}</title></head>\r\n<body>\r\n"
        f"<center><h1>{status}</h1></center>\r\n<hr><center>cloudflare</center>\r\n"
        "</body>\r\n</html>\r\n"
    )


def task_error(code: str, message: str | None = None) -> JsonObject:
    """Dialect D: the flat error of the task relay, its code a word."""
    return {"code": code, "message": message or code, "data": None}


def openai_error(
    message: str,
    *,
    type: str = "new_api_error",  # noqa: A002 - the gateway's own word
    code: object = "",
    param: str | None = "",
    request_id: str = REQUEST_ID,
) -> JsonObject:
    """Dialect E: an `error` object; *param* None leaves that field out."""
    error: JsonObject = {"message": f"{message} (request id: {request_id})", "type": type}
    if param is not None:
        error["param"] = param
    return {"error": {**error, "code": code}}


def refusal(message: str, *, code: int = 400, data: object = None) -> JsonObject:
    """The A-error: refused by the upstream, under an HTTP 200."""
    return {"code": code, "msg": message, "data": data, "exec_time": 0.028943}


def quota(accounts: list[Account], *, by_date: str | None = None) -> JsonObject:
    """
    Balance route 1: the whole user in dollars, with each of its keys.

    `total_quota` is what is left: in the sample, only its sum with the used amount is round.
    """
    body: JsonObject = {
        "username": "example_user",
        "total_quota": sum(_dollars(account.points or 0.0) for account in accounts),
        "total_used_quota": sum(_dollars(account.used) for account in accounts),
        "request_count": sum(account.accepted for account in accounts),
        "keys": [
            {
                "name": account.name,
                "remain_quota": UNLIMITED_QUOTA
                if account.points is None
                else _dollars(account.points),
                "used_quota": -1 if account.points is None else _dollars(account.used),
            }
            for account in accounts
        ],
    }
    if by_date is not None:
        day = [
            {
                "token_name": account.name,
                "quota_used": _dollars(account.used),
                "request_count": account.accepted,
            }
            for account in accounts
        ]
        body["daily_quota"] = {by_date: day}
    return body


def subscription(account: Account) -> JsonObject:
    """Balance route 2: what remains plus what was used, in dollars."""
    limit: float = UNLIMITED_SUBSCRIPTION
    if account.points is not None:
        limit = _dollars(account.points + account.used)
    return {
        "object": "billing_subscription",
        "has_payment_method": True,
        "soft_limit_usd": limit,
        "hard_limit_usd": limit,
        "system_hard_limit_usd": limit,
        "access_until": 0,
    }


def usage(account: Account) -> JsonObject:
    """Balance route 3: what was used, in hundredths of a dollar."""
    return {"object": "list", "total_usage": _dollars(account.used) * 100}


def token_usage(account: Account) -> JsonObject:
    """Balance route 4: internal units, under a `code` that is a boolean."""
    available = units(account.points or 0.0)
    return {
        "code": True,
        "message": "ok",
        "data": {
            "object": "token_usage",
            "name": account.name,
            "total_granted": available + units(account.used),
            "total_used": units(account.used),
            "total_available": available,
            "unlimited_quota": account.points is None,
            "model_limits": {},
            "model_limits_enabled": False,
            "expires_at": 0,
        },
    }


def _dollars(points: float) -> float:
    return points / POINTS_PER_DOLLAR


def units(points: float) -> int:
    return round(_dollars(points) * UNITS_PER_DOLLAR)
