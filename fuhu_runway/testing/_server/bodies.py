"""
Responses that contain no task: errors, pages and balances.

Literal JSON and text, copied only from the documentation (docs/reference/api-facts.md), so that a
mistake in the client's tables is not repeated here.
"""

import json
from string import Template
from typing import Final

from .accounts import Account
from .replies import BALANCES

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

#: The number that means "no limit" for a key (api-facts 7.1).
UNLIMITED_QUOTA: Final = 999_999_999

#: One-API's default (api-facts 7.4).
UNITS_PER_DOLLAR: Final = 500_000

# The gateways document no rate between points and dollars (api-facts 5.3). A hundred keeps the
# balances readable.
POINTS_PER_DOLLAR: Final = 100.0


# One encoder for all: with options, json.dumps makes a new one for each call.
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


def balance(account: Account, route: str) -> str:
    """Return the response of a balance route that is about one key."""
    left = account.points
    available = units(left or 0.0)
    values = {
        "name": account.name,
        # The number means "no limit" (api-facts 7.2).
        "limit": 100_000_000 if left is None else _dollars(left + account.used),
        "hundredths": _dollars(account.used) * 100,
        "granted": available + units(account.used),
        "used": units(account.used),
        "available": available,
        "unlimited": left is None,
    }
    filled = {name: as_text(value) for name, value in values.items()}
    return Template(BALANCES[route].body).substitute(filled)


def _dollars(points: float) -> float:
    return points / POINTS_PER_DOLLAR


def units(points: float) -> int:
    return round(_dollars(points) * UNITS_PER_DOLLAR)
