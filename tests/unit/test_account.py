import json
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs
import pytest
from support.clients import QUICK_RETRY, EventRecorder
from support.secrets import in_frames, secrets_in
from support.servers import RawServer, raw_server, reply

from fuhu_runway import Account, Client
from fuhu_runway._session.account import account_tasks, key_log
from fuhu_runway.account import AccountTask
from fuhu_runway.errors import GatewayDown, NotFound, RateLimited, Unauthorized, UsageError
from fuhu_runway.hooks import PaceChanged, RetryScheduled
from fuhu_runway.models import TaskState

TOKEN, USER = "marked-token-3f8b", "7"
ACCOUNT = Account(TOKEN, USER)
KEY = "sk-marked-9d1e"
NOON = 1764450000.0
DATE = "Sat, 29 Nov 2025 21:00:00 GMT"


# The account


def test_an_account_hides_its_token() -> None:
    """No repr shows the token; the id may be a number; the search lasts half a minute."""
    account = Account(TOKEN, 7)
    assert repr(account) == "Account(user_id='7', search_seconds=30.0)"
    assert (account.access_token, account.user_id) == (TOKEN, "7")
    assert pickle.loads(pickle.dumps(account)) == account  # noqa: S301 - our own


@pytest.mark.parametrize("value", [None, "", "a b", "é", "a\n", b"a", True, 1.5], ids=repr)
@pytest.mark.parametrize("field", ["access_token", "user_id"])
def test_a_bad_token_or_user_raises_at_once(field: str, value: Any) -> None:
    """A missing one, and one that no header can carry; the error names it and does not quote it."""
    with pytest.raises(UsageError) as caught:
        Account(**{"access_token": TOKEN, "user_id": USER, field: value})
    assert caught.value.field == field
    assert caught.value.money == "Nothing was sent or charged."
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("seconds", [0, -1, "30", None, True, float("nan")], ids=repr)
def test_a_search_lasts_a_number_of_seconds(seconds: Any) -> None:
    """The time that a search may take is above zero."""
    with pytest.raises(UsageError, match="search_seconds"):
        Account(TOKEN, USER, search_seconds=seconds)


def test_the_environment_has_both_or_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without both there is no account; with one, the error names the variable that is missing."""
    assert Account.from_env() is None
    monkeypatch.setenv("FUHU_ACCESS_TOKEN", TOKEN)
    with pytest.raises(UsageError, match="FUHU_USER_ID") as caught:
        Account.from_env()
    assert (caught.value.field, TOKEN in str(caught.value)) == ("user_id", False)
    monkeypatch.setenv("FUHU_USER_ID", USER)
    assert Account.from_env() == Account(TOKEN, USER)
    monkeypatch.setenv("FUHU_ACCESS_TOKEN", "")
    with pytest.raises(UsageError, match="FUHU_ACCESS_TOKEN"):
        Account.from_env()


@pytest.mark.parametrize("value", [TOKEN, (TOKEN, USER), Account], ids=["token", "pair", "class"])
def test_a_client_takes_an_account(value: Any) -> None:
    """Nothing else; the error does not quote a token."""
    with pytest.raises(UsageError) as caught:
        Client(KEY, account=value)
    assert caught.value.field == "account"
    assert TOKEN not in str(caught.value)


def test_a_task_of_the_list_is_shown_without_its_prompt() -> None:
    """Its prompt and its record are neither in the repr nor in what may be stored."""
    task = AccountTask("t-1", state=TaskState.RUNNING, prompt="a marked kitten")
    assert "marked" not in f"{task!r} {task.as_dict()}"
    assert task.as_dict()["state"] == "running"


# The list of tasks


def row(task_id: str, **more: Any) -> dict[str, Any]:
    """Return a row of the list."""
    return {"task_id": task_id, "user_id": 7, "submit_time": 1764450000, "status": "QUEUED", **more}


def page(*ids: str, total: int | None = None, date: str = DATE, **more: Any) -> bytes:
    """Return a whole response with one page of rows."""
    data = {"items": [row(one, **more) for one in ids], "total": total}
    return reply(json.dumps({"success": True, "data": data}).encode(), Date=date)


@asynccontextmanager
async def listing(
    *answers: bytes | None, account: Account | None = ACCOUNT, **options: Any
) -> AsyncIterator[tuple[Client, RawServer]]:
    """Yield a client whose clock shows `NOON`, and the gateway with these responses."""
    async with raw_server(*answers) as server:
        options = {"retry": QUICK_RETRY, "account": account, **options}
        async with Client(KEY, base_url=server.url, **options) as client:
            sessions = client._sessions
            sessions.settings = attrs.evolve(sessions.settings, clock=Stopped(sessions.settings))
            yield client, server


class Stopped:
    """A clock of the loop whose wall clock stands still."""

    def __init__(self, settings: Any) -> None:
        self._clock = settings.clock

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(self._clock, name)
        return method

    def wall(self) -> float:
        return NOON


def queries(server: RawServer) -> list[dict[str, str]]:
    """Return the query of each request."""
    lines = [raw.split(b"\r\n")[0].split()[1].decode() for raw in server.requests]
    return [
        {name: value for name, (value,) in parse_qs(urlsplit(line).query).items()} for line in lines
    ]


async def tasks_of(client: Client) -> tuple[list[str], float, bool]:
    """Return the ids of the list of the ten minutes before noon, and what it says of itself."""
    tasks, ahead, is_complete = await account_tasks(client._sessions, NOON - 600, NOON)
    return [task.task_id for task in tasks], ahead, is_complete


async def test_the_list_is_asked_with_the_token_and_not_with_the_key() -> None:
    """The token is bare, the user's id stands in the header of each fork, the window in seconds."""
    async with listing(page("t-1", total=1)) as (client, server):
        assert await tasks_of(client) == (["t-1"], 0.0, True)
    (head,) = server.requests
    text = head.decode()
    assert f"\r\nAuthorization: {TOKEN}\r\n" in text
    assert "\r\nNew-Api-User: 7\r\n" in text
    assert "\r\nRix-Api-User: 7\r\n" in text
    assert KEY not in text
    assert text.startswith("GET /api/task/self?")
    assert queries(server) == [
        {
            "p": "1",
            "page_size": "100",
            "start_timestamp": "1764449400",
            "end_timestamp": "1764450000",
        }
    ]


async def test_every_page_is_read_once() -> None:
    """Pages are read until every row that the first page counted is there."""
    answers = page("t-5", "t-4", total=5), page("t-3", "t-2", total=5), page("t-1", total=5)
    async with listing(*answers) as (client, server):
        assert await tasks_of(client) == (["t-5", "t-4", "t-3", "t-2", "t-1"], 0.0, True)
    assert [query["p"] for query in queries(server)] == ["1", "2", "3"]


async def test_a_row_that_shifts_to_the_next_page_counts_once() -> None:
    """A task that comes meanwhile moves the others; the list of the first moment is complete."""
    answers = page("t-3", "t-2", total=3), page("t-2", "t-1", total=4)
    async with listing(*answers) as (client, _):
        assert await tasks_of(client) == (["t-3", "t-2", "t-1"], 0.0, True)


@pytest.mark.parametrize(
    "answers",
    [
        (page("t-2", "t-1", total=9), page(total=9)),
        (page("t-2", "t-1", total=9), page("t-2", "t-1", total=9)),
        (page("t-2", "t-1", ""), page("t-1"), page()),
    ],
    ids=["the next page is empty", "each page is the first", "no total"],
)
async def test_a_list_that_is_cut_says_so(answers: tuple[bytes, ...]) -> None:
    """With fewer rows than it counts, or without a count, nothing is proven by what it lacks."""
    async with listing(*answers) as (client, _):
        assert await tasks_of(client) == (["t-2", "t-1"], 0.0, False)


async def test_a_list_without_an_end_is_cut() -> None:
    """After a hundred pages the client stops."""
    answers = [page(f"t-{number}", total=10**6) for number in range(101)]
    async with listing(*answers) as (client, server):
        ids, _, is_complete = await tasks_of(client)
    assert (len(ids), is_complete, len(server.requests)) == (100, False, 100)


async def test_pages_that_are_counted_from_zero_are_all_read() -> None:
    """The oldest gateways send bare lists, and their newest rows are on page 0."""

    def bare(*ids: str) -> bytes:
        rows = [row(one) for one in ids]
        return reply(json.dumps({"success": True, "data": rows}).encode(), Date=DATE)

    async with listing(bare("t-2"), bare("t-3"), bare("t-1"), bare()) as (client, server):
        assert await tasks_of(client) == (["t-2", "t-3", "t-1"], 0.0, False)
    assert [query["p"] for query in queries(server)] == ["1", "0", "2", "3"]


async def test_the_window_is_that_of_the_gateways_clock() -> None:
    """Where the Date header shows another clock, the window is asked for again by that clock."""
    ahead = page("t-1", total=1, date="Sat, 29 Nov 2025 23:00:00 GMT")
    async with listing(ahead) as (client, server):
        assert await tasks_of(client) == (["t-1"], 7200.0, True)
    assert [query["end_timestamp"] for query in queries(server)] == ["1764450000", "1764457200"]


async def test_without_a_date_the_clocks_count_as_equal() -> None:
    """A response without a Date header says nothing about the gateway's clock."""
    body = json.dumps({"success": True, "data": {"items": [], "total": 0}}).encode()
    async with listing(reply(body)) as (client, server):
        assert await tasks_of(client) == ([], 0.0, True)
    assert len(server.requests) == 1


async def test_tasks_of_other_users_are_left_out() -> None:
    """Also if the gateway lists them; a row that names no user is the account's."""
    users = [8, "7", None, 0]
    rows = [row(f"t-{number}", user_id=user) for number, user in enumerate(users)]
    body = json.dumps({"success": True, "data": {"items": rows, "total": 4}}).encode()
    async with listing(reply(body, Date=DATE)) as (client, _):
        assert await tasks_of(client) == (["t-1", "t-2", "t-3"], 0.0, True)


async def test_without_an_account_nothing_is_sent() -> None:
    """The error says how a client gets one."""
    async with listing(page(), account=None) as (client, server):
        with pytest.raises(UsageError, match="account=Account"):
            await tasks_of(client)
    assert server.requests == []


async def test_a_row_has_the_record_that_the_feed_would_have() -> None:
    """What the list says about a task is read as an answer of the feed."""
    data = {"task_id": "u-1", "video_url": "https://cdn.example/1.mp4", "point": "320"}
    body = page("t-1", total=1, status="SUCCESS", data={"code": 200, "data": data})
    async with listing(body) as (client, _):
        (task,), _, _ = await account_tasks(client._sessions, 0, NOON)
    assert task.record is not None
    assert (task.record.task_id, task.record.state) == ("t-1", TaskState.SUCCEEDED)
    assert (task.record.video_url, task.record.points) == ("https://cdn.example/1.mp4", 320)


# Refusals


async def refused(answer: bytes, kind: type[Exception], call: str) -> tuple[Any, int]:
    """Return the error of a list, and how often it was requested; no secret may be shown."""
    recorder = EventRecorder()
    async with listing(answer, hooks=[recorder]) as (client, server):
        sessions = client._sessions
        with pytest.raises(kind) as caught:
            await (key_log(sessions) if call == "log" else account_tasks(sessions, 0, NOON))
        assert sessions.current().limiter.pace.room == 4  # as before any response
    error = caught.value
    assert secrets_in(error, [TOKEN, KEY, "127.0.0.1"]) == []
    assert in_frames(error, [TOKEN, KEY]) == []
    assert recorder.all(PaceChanged) == []
    assert len(recorder.all(RetryScheduled)) == len(server.requests) - 1
    return error, len(server.requests)


BOTH = pytest.mark.parametrize("call", ["tasks", "log"])
QUOTING = f"{KEY} {TOKEN} from http://127.0.0.1/?key={KEY}"


@BOTH
async def test_a_wrong_secret_is_told_and_not_repeated(call: str) -> None:
    """The advice names what to check: the token and the id, or the key."""
    body = json.dumps({"success": False, "message": f"access token 无效 {QUOTING}"}).encode()
    error, sent = await refused(reply(body, "401 Unauthorized"), Unauthorized, call)
    assert sent == 1
    assert ("FUHU_ACCESS_TOKEN and FUHU_USER_ID" in error.advice) is (call == "tasks")
    assert error.money == "Nothing was charged: the request only reads."


@BOTH
@pytest.mark.parametrize(
    "answer",
    [
        reply(f"<!doctype html><title>{QUOTING}".encode(), Content_Type="text/html"),
        reply(b"", "302 Found", Location=f"https://elsewhere.example/login?{KEY}"),
        reply(b'{"error":{"message":"Invalid URL"}}', "404 Not Found"),
        reply(f"no {QUOTING}".encode(), "405 Method Not Allowed"),
    ],
    ids=["page", "redirect", "404", "405"],
)
async def test_a_gateway_without_the_route_says_so(answer: bytes, call: str) -> None:
    """One request shows it, and the error names the list that is missing."""
    error, sent = await refused(answer, NotFound, call)
    assert sent == 1
    what = "list of the account's tasks" if call == "tasks" else "log of the key"
    assert error.happened.startswith(f"The gateway has no {what} at this address")


@BOTH
async def test_too_many_requests_for_a_list_slow_nothing_down(call: str) -> None:
    """The dashboard counts them by minutes: they are not repeated, and the pace stays as it was."""
    _, sent = await refused(reply(b"", "429 Too Many Requests"), RateLimited, call)
    assert sent == 1


@BOTH
async def test_a_gateway_that_is_down_is_asked_again(call: str) -> None:
    """Reading a list is free, so that it is repeated as the retry policy says."""
    _, sent = await refused(reply(QUOTING.encode(), "502 Bad Gateway"), GatewayDown, call)
    assert sent == 5


# The log of the key


async def test_the_log_is_asked_with_the_key_in_both_places() -> None:
    """Older gateways read the key from the address, and newer ones from the header."""
    rows = [{"created_at": 1764450000, "type": 2, "content": "操作 generate", "quota": 5}]
    body = json.dumps({"success": True, "data": rows}).encode()
    async with listing(reply(body, Date=DATE), account=None) as (client, server):
        log = await key_log(client._sessions)
    assert [(charge.action, charge.points) for charge in log.charges] == [("generate", 5)]
    assert log.server_time == NOON
    (head,) = server.requests
    assert head.startswith(f"GET /api/log/token?key={KEY} HTTP/1.1\r\n".encode())
    assert f"\r\nAuthorization: Bearer {KEY}\r\n".encode() in head
