import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest

from fuhu_runway.testing import AccountLists, Simulator, faults

GENERATE = "/runway/pro/generate"
TASKS = "/api/task/self"
CHARGES = "/api/log/token"
BODY = {"callback_url": "https://callback.invalid/", "prompt": "a kitten", "model": "gen4"}
KEY = "sk-simulated"
CURRENT = AccountLists(refresh=0)
TOKEN = {"Authorization": "simulated-access-token", "New-Api-User": "7"}


@attrs.define
class Caller:
    """A program that knows only paths and JSON."""

    gateway: Simulator
    session: aiohttp.ClientSession

    async def get(self, path: str, **options: Any) -> tuple[int, Any]:
        async with self.session.get(path, allow_redirects=False, **options) as response:
            text = await response.text()
            return response.status, json.loads(text) if text.startswith("{") else text

    async def submit(
        self, prompt: str = "a kitten", key: str = KEY, path: str = GENERATE, **changes: Any
    ) -> str:
        async with self.session.post(
            path,
            json={**BODY, "prompt": prompt, **changes},
            headers={"Authorization": f"Bearer {key}"},
        ) as response:
            body = await response.json()
            return str(body["data"]["task_id"])

    async def page(self, **query: Any) -> Any:
        status, body = await self.get(TASKS, params=query, headers=TOKEN)
        assert (status, body["success"], body["message"]) == (200, True, ""), body
        return body["data"]

    async def rows(self, **query: Any) -> list[Any]:
        page = await self.page(**query)
        return list(page if isinstance(page, list) else page["items"])

    async def ids(self, **query: Any) -> list[str]:
        return [row["task_id"] for row in await self.rows(**query)]

    async def charges(self, key: str = KEY) -> list[Any]:
        status, body = await self.get(f"{CHARGES}?key={key}")
        assert (status, body["success"], body["message"]) == (200, True, ""), body
        return list(body["data"])


@asynccontextmanager
async def running(lists: AccountLists | None = CURRENT, **options: Any) -> AsyncIterator[Caller]:
    """Yield a caller of a gateway with *lists*, by default of rows that are always current."""
    async with (
        Simulator(lists=lists, **options) as gateway,
        aiohttp.ClientSession(gateway.base_url) as session,
    ):
        yield Caller(gateway, session)


# The list of tasks.


@pytest.mark.usefixtures("virtual")
async def test_a_row_is_a_task_of_new_api() -> None:
    """The list has each task with its time, its cost and the upstream's last response."""
    before = int(time.time())
    async with running(AccountLists()) as caller:
        task_id = await caller.submit()
        await asyncio.sleep(31)
        status, body = await caller.get(TASKS, headers=TOKEN)
    created = body["data"]["items"][0]["submit_time"]
    assert before <= created <= time.time()
    assert status == 200
    told = body["data"]["items"][0]["data"]["data"].pop("update_time")
    made = body["data"]["items"][0]["data"]["data"].pop("create_time")
    assert int(told) - int(made) in {29, 30}
    assert body == {
        "data": {
            "page": 1,
            "page_size": 10,
            "total": 1,
            "items": [
                {
                    "id": 1,
                    "created_at": created,
                    "updated_at": created + 10,
                    "task_id": task_id,
                    "platform": "runway",
                    "user_id": 7,
                    "group": "default",
                    "channel_id": 0,
                    "quota": 1_600_000,
                    "action": "TEXT_TO_VIDEO",
                    "status": "IN_PROGRESS",
                    "fail_reason": "",
                    "submit_time": created,
                    "start_time": created + 10,
                    "finish_time": 0,
                    "progress": "20%",
                    "properties": {"input": ""},
                    "data": {
                        "code": 200,
                        "msg": "success",
                        "data": {
                            "task_id": task_id,
                            "state": "running",
                            "status": "1",
                            "prompt": "a kitten",
                            "prompt_en": "a kitten",
                            "video_url": None,
                            "poster": None,
                            "last_frame": None,
                            "msg": None,
                            "point": "320",
                            "refund": "0",
                        },
                        "exec_time": 0.028943,
                    },
                }
            ],
        },
        "message": "",
        "success": True,
    }


@pytest.mark.usefixtures("virtual")
async def test_a_row_follows_the_upstream_every_quarter_of_a_minute() -> None:
    """Until the gateway has polled its upstream, a row has no prompt and has not started."""
    async with running(AccountLists()) as caller:
        # The upstream is polled when the seconds of the gateway are a multiple of fifteen.
        await asyncio.sleep(1)
        await caller.submit()
        await asyncio.sleep(13)
        early = (await caller.rows())[0]
        await asyncio.sleep(2)
        late = (await caller.rows())[0]
    assert (early["status"], early["progress"], early["data"]["data"]["prompt"]) == (
        "NOT_START",
        "0%",
        "",
    )
    assert early["data"]["msg"] == "success"
    assert (late["status"], late["data"]["data"]["prompt"]) == ("IN_PROGRESS", "a kitten")


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize(
    ("then", "status", "reason"),
    [
        ("succeed", "SUCCESS", "http"),
        ("fail", "FAILURE", "The input did not pass"),
        ("cancel", "FAILURE", "The input did not pass"),
        ("expire", "FAILURE", "The input did not pass"),
    ],
)
async def test_a_row_tells_how_its_task_ended(then: Any, status: str, reason: str) -> None:
    """The end has its time, and `fail_reason` the reason, or in 2025 the URL of a success."""
    async with running() as caller:
        caller.gateway.script(then=then, takes=60)
        await caller.submit()
        await asyncio.sleep(61)
        row = (await caller.rows())[0]
    assert (row["status"], row["progress"]) == (status, "100%")
    assert row["fail_reason"].startswith(reason)
    assert row["finish_time"] - row["submit_time"] == 60
    assert row["updated_at"] == row["finish_time"]


async def test_an_official_task_is_listed_with_an_official_response() -> None:
    """The upstream's response is of the format that the task was submitted in."""
    async with running() as caller:
        async with caller.session.post(
            "/runwayml/v1/image_to_video",
            json={
                "model": "gen4_turbo",
                "promptText": "a kitten",
                "promptImage": "https://example.com/1.png",
                "ratio": "1280:720",
                "duration": 5,
            },
            headers={"Authorization": f"Bearer {KEY}", "X-Runway-Version": "2024-11-06"},
        ) as response:
            task_id = (await response.json())["id"]
        row = (await caller.rows())[0]
    assert (row["task_id"], row["action"]) == (task_id, "IMAGE_TO_VIDEO")
    assert (row["data"]["id"], row["data"]["status"]) == (task_id, "PENDING")


async def test_pages_are_newest_first_and_of_a_hundred_at_most() -> None:
    """`p` counts from 1, `page_size` has two other names and a limit, and nonsense is ignored."""
    async with running(speed=1000) as caller:
        ids = [await caller.submit(f"kitten {number}") for number in range(12)]
        ids.reverse()
        assert await caller.ids() == ids[:10]
        assert await caller.ids(p=2) == ids[10:]
        assert await caller.ids(p=2, page_size=5) == ids[5:10]
        assert await caller.ids(p=3) == []
        assert await caller.ids(page=2) == ids[:10]
        for name in ("ps", "size"):
            assert await caller.ids(p=2, **{name: 5}) == ids[5:10]
        for nonsense in ("0", "-1", "x", "", "1e3", "9" * 30):
            page = await caller.page(p=nonsense, page_size=nonsense)
            assert (page["page"], page["page_size"], page["total"]) == (1, 10, 12)
        page = await caller.page(page_size=1000)
        assert (page["page_size"], len(page["items"])) == (100, 12)


async def test_the_oldest_version_counts_pages_from_zero() -> None:
    """In 2024, the list is bare, ten rows are a page, and p=1 is the second page."""
    async with running(AccountLists(version=2024, refresh=0)) as caller:
        ids = [await caller.submit(f"kitten {number}") for number in range(12)]
        ids.reverse()
        assert await caller.ids(page_size=100) == ids[:10]
        assert await caller.ids(p=-1) == ids[:10]
        assert await caller.ids(p=1, page_size=100) == ids[10:]
        assert isinstance(await caller.page(), list)


async def test_the_newest_version_names_model_and_result() -> None:
    """In 2026, a row has the model and the URL of its own, and a wrong token is a 401."""
    async with running(AccountLists(version=2026, refresh=0), takes=0.0) as caller:
        await caller.submit()
        pictures = {"video": "https://example.com/1.mp4", "image": "https://example.com/1.png"}
        await caller.submit(path="/runway/pro/act_one", **pictures, model="")
        caller.gateway.script(then="fail")
        await caller.submit()
        failed, without, row = await caller.rows()
        assert row["result_url"].startswith("http")
        assert "result_url" not in failed
        assert row["fail_reason"] == ""
        assert row["properties"] == {
            "input": "",
            "upstream_model_name": "gen4",
            "origin_model_name": "gen4",
        }
        assert without["properties"]["origin_model_name"] == "runway_act_one"
        # The number of the user is not read any more.
        status, _ = await caller.get(TASKS, headers={"Authorization": TOKEN["Authorization"]})
        assert status == 200
        for headers in ({}, {**TOKEN, "Authorization": KEY}):
            assert await caller.get(TASKS, headers=headers) == (
                401,
                {
                    "code": "AUTH_UNAUTHORIZED",
                    "message": "无权进行此操作，access token 无效",
                    "success": False,
                },
            )


async def test_filters_leave_out_rows() -> None:
    """Each filter of the list leaves out the others, and the total counts what is left."""
    async with running() as caller:
        caller.gateway.script("done", takes=0)
        done, going = await caller.submit("done"), await caller.submit("going")
        row = (await caller.rows())[0]
        assert await caller.ids(status="SUCCESS") == [done]
        assert await caller.ids(status="QUEUED") == [going]
        assert await caller.ids(task_id=done) == [done]
        assert await caller.ids(action="ACT_ONE") == []
        assert await caller.ids(action="TEXT_TO_VIDEO", platform="runway") == [going, done]
        assert await caller.ids(platform="suno") == []
        assert (await caller.page(task_id=done))["total"] == 1
        now = row["submit_time"]
        assert await caller.ids(start_timestamp=now - 60, end_timestamp=now) != []
        assert await caller.ids(start_timestamp=now + 60) == []
        assert await caller.ids(end_timestamp=now - 60) == []
        assert await caller.ids(start_timestamp="x", end_timestamp="") == [going, done]


@pytest.mark.usefixtures("virtual")
async def test_a_row_may_be_late() -> None:
    """A task and its charge are listed after a delay; a script lists its task later, or never."""
    async with running(AccountLists(delay=30)) as caller:
        caller.gateway.script("late", listed_after=60)
        caller.gateway.script("never", listed_after=None)
        first = await caller.submit()
        late = await caller.submit("late")
        await caller.submit("never")
        await asyncio.sleep(29)
        assert (await caller.ids(), await caller.charges()) == ([], [])
        await asyncio.sleep(2)
        assert (await caller.ids(), len(await caller.charges())) == ([first], 3)
        await asyncio.sleep(60)
        assert await caller.ids() == [late, first]


@pytest.mark.parametrize(
    ("options", "prompts"),
    [
        ({}, ("", "a small kitten")),
        ({"prompts": "input"}, ("a small kitten", "a small kitten")),
        ({"prompts": "input", "prompt_limit": 7}, ("a small", "a small")),
        ({"prompts": "nowhere"}, ("", "")),
    ],
)
async def test_a_row_has_its_prompt_where_the_gateway_puts_it(
    options: dict[str, Any], prompts: tuple[str, str]
) -> None:
    """The prompt is in `data` or in `properties`, whole or cut, or nowhere."""
    async with running(AccountLists(refresh=0, **options)) as caller:
        await caller.submit("a small kitten")
        row = (await caller.rows())[0]
    assert (row["properties"]["input"], row["data"]["data"]["prompt"]) == prompts


async def test_a_row_may_have_an_id_of_its_own() -> None:
    """The id that the client knows is then only in `data`, and polls need that one."""
    async with running(AccountLists(refresh=0, own_ids=True)) as caller:
        task_id = await caller.submit()
        row = (await caller.rows())[0]
        assert re.fullmatch(r"task_[0-9a-f]{32}", row["task_id"])
        assert row["data"]["data"]["task_id"] == task_id
        assert await caller.ids(task_id=row["task_id"]) == [row["task_id"]]
        async with caller.session.post(
            "/runway/feed",
            json={"task_id": row["task_id"]},
            headers={"Authorization": f"Bearer {KEY}"},
        ) as response:
            assert (await response.json())["code"] == "task_not_exist"


async def test_a_row_may_be_in_milliseconds_and_in_a_string() -> None:
    """Instants are stored in milliseconds, so that filters compare those; `data` is text."""
    async with running(AccountLists(refresh=0, milliseconds=True, data_text=True)) as caller:
        await caller.submit()
        row = (await caller.rows())[0]
        assert abs(row["submit_time"] - time.time() * 1000) < 60_000
        assert json.loads(row["data"])["data"]["prompt"] == "a kitten"
        assert await caller.rows(end_timestamp=int(time.time()) + 60) == []


@pytest.mark.parametrize("hours", [0, -5, 3])
async def test_the_gateways_clock_may_be_off(hours: int) -> None:
    """The Date header and the instants of rows are off by the same hours."""
    async with running(clock_offset=hours * 3600) as caller:
        await caller.submit()
        row, charge = (await caller.rows())[0], (await caller.charges())[0]
        async with caller.session.get(TASKS, headers=TOKEN) as response:
            date = parsedate_to_datetime(response.headers["Date"]).timestamp()
    expected = time.time() + hours * 3600
    for instant in (date, row["submit_time"], row["created_at"], charge["created_at"]):
        assert abs(instant - expected) < 60


async def test_instants_do_not_depend_on_the_speed() -> None:
    """A task that takes an hour at speed 3600 ends one second later by the gateway's clock."""
    async with running(speed=3600, takes=3600) as caller:
        await caller.submit()
        await asyncio.sleep(1.5)
        row = (await caller.rows())[0]
    assert row["finish_time"] - row["submit_time"] in {1, 2}


async def test_a_page_may_shift_or_be_short() -> None:
    """New tasks shift the second page, and a cut list has a larger total than rows."""
    async with running() as caller:
        ids = [await caller.submit(f"kitten {number}") for number in range(4)]
        ids.reverse()
        caller.gateway.fault("tasks", faults.Shifted(), times=None)
        assert await caller.ids(p=1, page_size=2) == ids[:2]
        assert await caller.ids(p=2, page_size=2) == ids[1:3]
        caller.gateway.forget_plans()
        caller.gateway.fault("tasks", faults.Shifted(-1))
        assert await caller.ids(p=2, page_size=2) == ids[3:]
        caller.gateway.fault("tasks", faults.ShortPage(1), times=None)
        page = await caller.page()
        assert (page["total"], len(page["items"])) == (4, 1)


# Who may ask.


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({}, 401, "无权进行此操作，未登录且未提供 access token"),
        ({"Authorization": KEY, "New-Api-User": "7"}, 200, "无权进行此操作，access token 无效"),
        ({"Authorization": TOKEN["Authorization"]}, 401, "无权进行此操作，未提供 New-Api-User"),
        ({**TOKEN, "New-Api-User": "x"}, 401, "无权进行此操作，New-Api-User 格式错误"),
        ({**TOKEN, "New-Api-User": "8"}, 401, "无权进行此操作，New-Api-User 与登录用户不匹配"),
    ],
)
async def test_the_list_needs_a_token_and_its_user(
    headers: dict[str, str], status: int, message: str
) -> None:
    """A wrong token is refused with HTTP 200, a wrong user with 401."""
    async with running() as caller:
        expected = {"message": message, "success": False}
        assert await caller.get(TASKS, headers=headers) == (status, expected)


async def test_the_token_may_be_a_bearer_and_2024_reads_no_user() -> None:
    """The word Bearer is optional, and the oldest version needs the token alone."""
    async with running() as caller:
        bearer = {**TOKEN, "Authorization": f"Bearer {TOKEN['Authorization']}"}
        assert (await caller.get(TASKS, headers=bearer))[0] == 200
        caller.gateway.lists = AccountLists(version=2024)
        del bearer["New-Api-User"]
        assert (await caller.get(TASKS, headers=bearer))[1]["success"] is True


async def test_the_list_has_all_keys_of_the_user_and_no_others() -> None:
    """Another program's tasks with a key of the same user are listed, those of others are not."""
    async with running() as caller:
        caller.gateway.add_key("sk-program", user_id=caller.gateway.user_id)
        caller.gateway.add_key("sk-stranger")
        mine = await caller.submit()
        theirs = await caller.submit(key="sk-program")
        hidden = await caller.submit(key="sk-stranger")
        rows = await caller.rows()
        assert [(row["task_id"], row["id"], row["user_id"]) for row in rows] == [
            (theirs, 2, 7),
            (mine, 1, 7),
        ]
        # The keys of a user share its tasks.
        found = {}
        for task_id in (mine, theirs, hidden):
            async with caller.session.post(
                "/runway/feed",
                json={"task_id": task_id},
                headers={"Authorization": "Bearer sk-program"},
            ) as response:
                found[task_id] = (await response.json())["code"]
        assert found == {mine: 200, theirs: 200, hidden: "task_not_exist"}


async def test_a_gateway_may_have_no_lists() -> None:
    """Its responses are those of an unknown path."""
    async with running(None) as caller:
        for path in (TASKS, CHARGES):
            status, body = await caller.get(path, headers=TOKEN)
            assert (status, body["error"]["type"]) == (404, "invalid_request_error")
            assert body["error"]["message"].startswith(f"Invalid URL (GET {path})")


@pytest.mark.parametrize(
    ("name", "status", "beginning"),
    [
        ("no_tasks", 200, '{"data":{"page":1,"page_size":100,"total":0,"items":null}'),
        ("no_charges", 200, '{"data":[],"message":"","success":true}'),
        ("to_console", 301, ""),
    ],
)
async def test_wrong_responses_to_lists_have_names(name: str, status: int, beginning: str) -> None:
    """A list of a failed database, a log without keys, and a console elsewhere."""
    async with running() as caller:
        caller.gateway.fault("charges", faults.known(name))
        async with caller.session.get(CHARGES, allow_redirects=False) as response:
            assert (response.status, (await response.text())[:57]) == (status, beginning[:57])


# The log of a key.


async def test_a_charge_is_a_row_of_the_log() -> None:
    """The log has what a key was charged for each accepted task, the oldest first."""
    async with running() as caller:
        caller.gateway.add_key("sk-program", user_id=7)
        for prompt in ("a kitten", "a puppy"):
            await caller.submit(prompt)
        await caller.submit(key="sk-program")
        rows = await caller.charges()
        assert await caller.charges("simulated") == rows
        assert len(await caller.charges("sk-program")) == 1
        # There is no error for an unknown key.
        assert (await caller.charges("sk-unknown"), await caller.charges("")) == ([], [])
    assert abs(rows[0].pop("created_at") - time.time()) < 60
    assert [row["id"] for row in rows] == [1, 2]
    assert rows[0] == {
        "id": 1,
        "user_id": 7,
        "type": 2,
        "content": "操作 TEXT_TO_VIDEO",
        "username": "example_user",
        "token_name": "test_key",
        "model_name": "gen4",
        "quota": 1_600_000,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "use_time": 0,
        "is_stream": False,
        "channel": 3,
        "channel_name": "",
        "token_id": 1,
        "group": "default",
        "ip": "",
        "other": '{"model_price":3.2,"group_ratio":1,"is_task":true}',
    }


async def test_the_oldest_log_has_the_price_in_its_text() -> None:
    """The action is behind the price."""
    async with running(AccountLists(version=2024)) as caller:
        await caller.submit()
        row = (await caller.charges())[0]
    assert row["content"] == "模型固定价格 3.20，分组倍率 1.00，操作 TEXT_TO_VIDEO"


async def test_the_newest_log_needs_the_key_in_a_header() -> None:
    """In 2026, the newest thousand rows come first, and the key in the URL is not read."""
    async with running(AccountLists(version=2026), takes=0.0, points=None) as caller:
        caller.gateway.script("a puppy", then="fail")
        await caller.submit()
        await caller.submit("a puppy")
        found = {}
        for header in ("", "Bearer sk-unknown"):
            headers = {"Authorization": header} if header else {}
            found[header] = await caller.get(f"{CHARGES}?key={KEY}", headers=headers)
        assert found == {
            "": (401, {"message": "未提供令牌", "success": False}),
            "Bearer sk-unknown": (401, {"message": "无效的令牌", "success": False}),
        }
        bearer = {"Authorization": f"Bearer {KEY}"}
        _, body = await caller.get(CHARGES, headers=bearer)
        refund, *charged = body["data"]
        assert [row["id"] for row in body["data"]] == [1, 2, 3]
        assert (refund["type"], refund["content"], refund["quota"]) == (6, "", 1_600_000)
        assert json.loads(refund["other"]) == {
            "task_id": caller.gateway.tasks[1].task_id,
            "reason": "The input did not pass the content moderation",
        }
        expected = "操作 TEXT_TO_VIDEO, 计算参数：seconds: 2.00"
        assert [row["content"] for row in charged] == [expected] * 2


async def test_a_log_may_be_off_or_have_two_charges_for_a_task() -> None:
    """An operator may switch the log off, and a settlement is a second charge of one task."""
    async with running(AccountLists(settles=True), takes=0.0) as caller:
        task_id = await caller.submit()
        first, second = await caller.charges()
        assert (first["type"], second["type"], second["quota"]) == (2, 2, 160_000)
        assert json.loads(second["other"]) == {
            "task_id": task_id,
            "pre_consumed_quota": 1_600_000,
            "actual_quota": 1_760_000,
        }
        caller.gateway.lists = AccountLists(settles=True, charges=False)
        assert await caller.charges() == []


@pytest.mark.usefixtures("virtual")
async def test_requests_for_lists_may_be_limited() -> None:
    """After 20 requests for logs in twenty minutes, or 180 in three, there is an empty 429."""
    async with running(AccountLists(limited=True)) as caller:
        for _ in range(20):
            await caller.charges()
        assert await caller.get(CHARGES) == (429, "")
        for _ in range(159):
            await caller.page()
        assert await caller.get(TASKS, headers=TOKEN) == (429, "")
        await asyncio.sleep(180)
        await caller.page()
        assert await caller.get(CHARGES) == (429, "")
        await asyncio.sleep(1020)
        await caller.charges()
        assert caller.gateway.limited == 3


# Lost answers.


async def test_a_lost_answer_is_in_the_list_if_it_was_accepted() -> None:
    """Of two equal submits without a response, only the accepted one is listed and charged."""
    async with running() as caller:
        caller.gateway.fault("submit", faults.drop_before_accepting())
        caller.gateway.fault("submit", faults.drop_after_accepting())
        for _ in range(2):
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await caller.submit()
        rows = await caller.rows()
        assert [row["data"]["data"]["prompt"] for row in rows] == ["a kitten"]
        assert [row["task_id"] for row in rows] == [caller.gateway.tasks[0].task_id]
        assert len(await caller.charges()) == 1


async def test_a_row_that_could_not_be_inserted_is_charged_and_never_listed() -> None:
    """`insert_task_failed` is a task that only the log of the key knows."""
    async with running() as caller:
        caller.gateway.fault("submit", faults.known("insert_task_failed"))
        with pytest.raises(TypeError):
            await caller.submit()
        assert (await caller.ids(), len(await caller.charges())) == ([], 1)


async def test_a_share_of_the_answers_is_lost() -> None:
    """A tenth is lost after the task was accepted, and a twentieth of the rest before."""
    async with running(seed=3, points=None) as caller:
        gateway = caller.gateway
        gateway.fault("submit", faults.drop_after_accepting(), times=None, share=0.1)
        gateway.fault("submit", faults.drop_before_accepting(), times=None, share=0.05)
        answered = 0
        for _ in range(200):
            try:
                await caller.submit()
            except aiohttp.ServerDisconnectedError:
                continue
            answered += 1
        after = gateway.submitted - answered
        before = 200 - gateway.submitted
        assert (await caller.page())["total"] == gateway.submitted
    assert (after, before) == (22, 7)


@pytest.mark.parametrize("share", [-0.1, 1.1, True, "x"])
def test_a_share_is_a_number_from_0_to_1(share: Any) -> None:
    """Another share is an error, for a gateway and for a script."""
    with pytest.raises(ValueError, match="share="):
        Simulator().fault("submit", faults.Drop(), share=share)
    with pytest.raises(ValueError, match="share="):
        faults.on("submit", faults.Drop(), share=share)


async def test_a_script_may_lose_a_share_of_its_answers() -> None:
    """A share of 0 never happens."""
    async with running() as caller:
        caller.gateway.script(
            re.compile("kitten"), faults=[faults.on("submit", faults.Drop(), share=0)]
        )
        assert [await caller.submit() for _ in range(3)]


async def test_the_list_outlives_the_process(tmp_path: Path) -> None:
    """Tasks are listed after a restart, also those of keys that have not been added again."""
    async with running(state_file=tmp_path / "state") as caller:
        caller.gateway.add_key("sk-program", user_id=7)
        caller.gateway.add_key("sk-stranger")
        caller.gateway.script("never", listed_after=None)
        await caller.submit("never")
        await caller.submit(key="sk-stranger")
        ids = [await caller.submit(), await caller.submit(key="sk-program")]
        before = await caller.rows()
    async with running(state_file=tmp_path / "state") as caller:
        after = await caller.rows()
        assert [row["task_id"] for row in after] == ids[::-1]
        assert [row["submit_time"] for row in after] == [row["submit_time"] for row in before]
        assert len(await caller.charges()) == 2
        # A key of a name gets the tasks and the user of this name.
        caller.gateway.add_key("sk-again", name="test_key_3")
        assert len(await caller.charges("sk-again")) == 1
        caller.gateway.add_key("sk-new", name="new")
        await caller.submit(key="sk-new")
        assert [row["user_id"] for row in await caller.rows()] == [7, 7]


def test_the_token_is_not_shown() -> None:
    """No representation has it."""
    assert "simulated-access-token" not in repr(Simulator())
