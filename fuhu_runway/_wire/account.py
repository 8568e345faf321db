"""
The lists of an account: its tasks, and what its key was charged. Pure functions.

Both routes belong to the gateway's web interface. Other gateways respond with a web page, a
redirect or a 404: that is `NotFound`. An empty list proves nothing, since some gateways send one
where they should send an error.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlencode

import attrs

from fuhu_runway._json import parsed
from fuhu_runway.account import Account, AccountTask, Charge, KeyLog, TaskPage
from fuhu_runway.errors import (
    Fate,
    GatewayError,
    NotFound,
    RateLimited,
    RunwayError,
    Unauthorized,
)
from fuhu_runway.models import Gateway, TaskRecord, TaskState

from . import tables, values
from .decode import body_of, read_task, state_of
from .encode import Reply, Request, bare_request
from .refusals import TASK_ERROR, refusal_of, unreadable
from .salvage import ids_in
from .tables import Sense, dialect_of

PAGE_SIZE: Final = 100
"""How many rows to ask for: the most that a gateway sends (api-facts 11 row 19)."""
MAX_DEPTH: Final = 5
"""How many levels deep the upstream's response is searched for a prompt."""
_ACTION: Final = re.compile(tables.ACTION_IN_CONTENT, re.IGNORECASE)

# Models to bytes


def ask_tasks(
    gateway: Gateway, account: Account, *, since: float, until: float, page: int = 1
) -> Request:
    """
    Return the request for one page of the account's tasks.

    *since* and *until* are Unix seconds by the gateway's clock; pages are counted from 1.
    """
    token = account.access_token
    bare = bare_request(tables.ACCOUNT_TASKS, gateway, token)
    query = {
        tables.PAGE_KEY: page,
        tables.PAGE_SIZE_KEY: PAGE_SIZE,
        tables.SINCE_KEY: math.floor(since),
        tables.UNTIL_KEY: math.ceil(until),
    }
    names = dict.fromkeys(tables.USER_HEADERS, account.user_id)
    headers = {**bare.headers, "Authorization": token, **names}
    return attrs.evolve(bare, url=f"{bare.url}?{urlencode(query)}", headers=headers)


def ask_log(gateway: Gateway, key: str) -> Request:
    """Return the request for the log of *key*, which is in its URL and in its header."""
    bare = bare_request(tables.KEY_LOG, gateway, key)
    headers = {**bare.headers, "Authorization": f"Bearer {key}"}
    url = f"{bare.url}?{urlencode({tables.API_KEY_NAME: key})}"
    return attrs.evolve(bare, url=url, headers=headers)


# Bytes to models


def read_tasks(reply: Reply) -> TaskPage:
    """
    Return one page of the account's tasks; rows without a task id are left out.

    Raises:
        Unauthorized: The access token or the user id is wrong.
        NotFound: The gateway has no such list.
        GatewayError: The gateway refused for another reason; the subclass says how.
        UnreadableReply: The response is not a list.
    """
    rows, data = _rows(reply, "list of the account's tasks", "FUHU_ACCESS_TOKEN and FUHU_USER_ID")
    tasks = (_task_in(row, reply.request) for row in rows)
    return TaskPage(
        tuple(task for task in tasks if task is not None),
        _count(data.get(tables.TOTAL_KEY)),
        _count(data.get(tables.PAGE_NUMBER_KEY)),
        _count(data.get(tables.PAGE_SIZE_KEY)),
        values.http_date(reply.headers.get("date", "")),
    )


def read_log(reply: Reply) -> KeyLog:
    """
    Return what the key was charged.

    Raises:
        Unauthorized: The gateway does not know the key.
        NotFound: The gateway has no such log.
        GatewayError: The gateway refused for another reason; the subclass says how.
        UnreadableReply: The response is not a log.
    """
    rows, _ = _rows(reply, "log of the key", "the key")
    moments = (values.instant_in(row.get(tables.CHARGE_ROW["charged_at"])) for row in rows)
    kinds = (values.number_in(row.get(tables.CHARGE_ROW["kind"])) for row in rows)
    return KeyLog(
        tuple(
            _charge_in(row)
            for row, kind in zip(rows, kinds, strict=True)
            if kind == tables.CONSUMPTION
        ),
        values.http_date(reply.headers.get("date", "")),
        min(filter(None, moments), default=None),
    )


def _rows(reply: Reply, what: str, secret: str) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    """Return the rows of a list, and the object that has them with their number."""
    try:
        return _rows_in(reply)
    except GatewayError as refused:
        failure = refused
    # A web page or a redirect comes from the gateway's console, or from another service.
    is_page = not failure.body and (reply.status < 400 or reply.status in {404, 405})
    if isinstance(failure, NotFound) or is_page:
        failure = NotFound(
            f"The gateway has no {what} at this address: it answered with status {reply.status}",
            "Nothing was charged: the request only reads.",
            "Check the list on the gateway's web pages; programs may have no access to it.",
            None,
            failure.request_id,
            reply.status,
        )
    elif isinstance(failure, Unauthorized):
        failure.advice = f"Check {secret} on the gateway's account page."
    elif isinstance(failure, RateLimited) and failure.retry_after is None:
        # These routes count requests over many minutes: a retry soon would be refused, too.
        failure.fate = Fate.REJECTED
    raise failure


def _rows_in(reply: Reply) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    body = body_of(reply)
    dialect = dialect_of(body)
    is_refusal = dialect is not None and dialect.sense(body) is Sense.REFUSAL
    if not reply.is_success or (is_refusal and not _is_accepted(body)):
        raise refusal_of(reply, body, dialect or TASK_ERROR)
    data = body.get("data", body)
    data = parsed(data) if isinstance(data, str) else data
    holder = data if isinstance(data, dict) else {}
    found = next((holder[key] for key in tables.ROWS_KEYS if key in holder), data)
    found = parsed(found) if isinstance(found, str) else found
    if found is None and _is_accepted(body):
        found = []  # Go writes an empty list as null
    if not isinstance(found, list):
        raise unreadable(reply, "no list of rows @ $.data", body=body)
    return [row for row in found if isinstance(row, dict)], holder


def _is_accepted(body: Mapping[str, Any]) -> bool:
    """Return whether a body says that the request succeeded."""
    words = {"0", "200", "success", "true"}
    return body.get("success") is True or str(body.get("code")).lower() in words


def _count(value: Any) -> int | None:
    number = values.number_in(value)
    return int(number) if number is not None and number >= 0 else None


def _task_in(row: dict[str, Any], request: Request) -> AccountTask | None:
    task_id = values.task_id_in(row.get(tables.TASK_ID_KEY))
    if task_id is None:
        return None
    said = {name: row.get(key) for name, key in tables.TASK_ROW.items()}
    record = _record_in(row, task_id, request)
    word = values.text_in(said["status"])
    state = state_of(word) if word else TaskState.UNKNOWN
    if record is not None and record.word is not None:
        state = record.state
    properties = _object(said["properties"])
    models = (values.text_in({**row, **properties}.get(key)) for key in tables.MODEL_KEYS)
    return AccountTask(
        task_id,
        values.instant_in(said["created_at"]),
        values.instant_in(said["submitted_at"]),
        values.text_in(said["platform"]),
        values.text_in(said["action"]),
        state,
        values.number_in(said["points"]),
        _prompt_in(properties, said["data"]),
        next(filter(None, models), None),
        values.text_in(said["user_id"]),
        tuple(one for one in ids_in({"data": said["data"]}) if one != task_id),
        record,
    )


def _record_in(row: dict[str, Any], task_id: str, request: Request) -> TaskRecord | None:
    """Return what a row says about its task, parsed like a response of the feed."""
    try:
        body = json.dumps({**row, tables.TASK_ID_KEY: task_id}).encode()
        return read_task(Reply(request, 200, {}, body))
    except (RunwayError, RecursionError):
        return None


def _prompt_in(properties: Mapping[str, Any], data: Any) -> str | None:
    """Return the prompt that the gateway keeps of a request, or that its upstream quotes."""
    given = properties.get(tables.INPUT_KEY)
    kept = parsed(given) if isinstance(given, str) else given
    if kept is None and values.text_in(given) is not None:
        return str(given)
    return next(_prompts_in([kept, data]), None)


def _prompts_in(value: Any, depth: int = MAX_DEPTH) -> Iterator[str]:
    value = parsed(value) if isinstance(value, str) else value
    if isinstance(value, dict):
        said = map(value.get, tables.PROMPT_KEYS)
        yield from (text for text in said if isinstance(text, str) and text.strip())
        value = [item for item in value.values() if isinstance(item, dict | list)]
    if isinstance(value, list) and depth:
        for item in value:
            yield from _prompts_in(item, depth - 1)


def _charge_in(row: dict[str, Any]) -> Charge:
    said = {name: row.get(key) for name, key in tables.CHARGE_ROW.items()}
    action = _ACTION.search(values.text_in(said["content"]) or "")
    return Charge(
        values.instant_in(said["charged_at"]),
        values.text_in(said["model"]),
        action[1] if action else None,
        values.number_in(said["points"]),
        values.task_id_in(_object(said["other"]).get(tables.TASK_ID_KEY)),
    )


def _object(value: Any) -> dict[str, Any]:
    """Return an object, which may be JSON in a text; an empty one for anything else."""
    value = parsed(value) if isinstance(value, str) else value
    return value if isinstance(value, dict) else {}
