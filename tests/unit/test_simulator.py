import asyncio
import json
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any

import aiohttp
import attrs
import pytest

from fuhu_runway import testing
from fuhu_runway.testing import DIALECTS, Simulator, faults

GENERATE = "/runway/pro/generate"
OFFICIAL = "/runwayml/v1/image_to_video"
VERSION = {"X-Runway-Version": "2024-11-06"}

# The request of api-facts 1.2.
BODY = {
    "callback_url": "https://callback.invalid/",
    "ratio": "16:9",
    "prompt": "a kitten",
    "style": "cinematic",
    "model": "gen4",
    "options": {
        "seconds": 10,
        "motion_vector": {"x": 0, "y": 0.4, "z": 0, "r": -6, "bg_x_pan": 0, "bg_y_pan": 0},
    },
}


@attrs.define
class Caller:
    gateway: Simulator
    session: aiohttp.ClientSession

    async def send(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        async with self.session.request(method, path, **options) as response:
            text = await response.text()
            return response.status, json.loads(text) if text.startswith("{") else text

    async def submit(self, path: str = GENERATE, **changes: Any) -> tuple[int, Any]:
        body = {name: value for name, value in (BODY | changes).items() if value is not None}
        return await self.send("POST", path, json=body)

    async def start(self, **changes: Any) -> str:
        status, body = await self.submit(**changes)
        assert (status, body["code"]) == (200, 200), body
        return str(body["data"]["task_id"])

    async def poll(self, task_id: str, path: str = "/runway/feed") -> tuple[int, Any]:
        return await self.send("POST", path, json={"task_id": task_id})

    async def task(self, task_id: str) -> Any:
        status, body = await self.poll(task_id)
        assert status == 200, body
        return body["data"]


@asynccontextmanager
async def running(key: str | None = "Bearer sk-simulated", **options: Any) -> AsyncIterator[Caller]:
    """Yield a caller with *key* of a running gateway."""
    headers = {} if key is None else {"Authorization": key}
    async with (
        Simulator(**options) as gateway,
        aiohttp.ClientSession(gateway.base_url, headers=headers) as session,
    ):
        yield Caller(gateway, session)


async def until(holds: Callable[[], object]) -> None:
    """Run the loop until *holds* returns true."""
    while not holds():  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0)


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    """Yield a caller of a gateway whose tasks end at once."""
    async with running(takes=0.0) as caller:
        yield caller


# One task from submit to end.


async def test_a_submit_returns_the_id_and_twelve_empty_fields(
    caller: Caller,
) -> None:
    """FuhuAPI's answer to a submit contains only the task id."""
    status, body = await caller.submit()
    assert status == 200
    assert set(body) == {"code", "msg", "data", "exec_time"}
    assert len(body["data"]) == 13
    assert [name for name, value in body["data"].items() if value] == ["task_id"]


@pytest.mark.usefixtures("virtual")
async def test_a_task_waits_then_runs_then_shows_its_video() -> None:
    """The feed reports the four states in turn, and the video only at the end."""
    async with running(takes=100.0) as caller:
        task_id = await caller.start()
        seen = []
        for _ in range(3):
            await asyncio.sleep(7)
            shown = await caller.task(task_id)
            seen.append((shown["status"], shown["state"], shown["video_url"]))
        await asyncio.sleep(79)
        shown = await caller.task(task_id)
    assert seen == [("0", "pending", None), ("1", "running", None), ("1", "running", None)]
    assert (shown["status"], shown["state"], shown["msg"]) == ("3", "succeeded", None)
    assert shown["video_url"].endswith(f"?_jwt={shown['video_url'][-32:]}")
    assert int(shown["update_time"]) - int(shown["create_time"]) == 100


@pytest.mark.usefixtures("virtual")
async def test_speed_shortens_the_wait() -> None:
    """At speed 20 a task of 100 seconds ends after 5 seconds of the loop."""
    async with running(takes=100.0, speed=20.0) as caller:
        task_id = await caller.start()
        await asyncio.sleep(4.9)
        before = await caller.task(task_id)
        await asyncio.sleep(0.2)
        after = await caller.task(task_id)
        view = caller.gateway.tasks[0]
        assert view.finishes_at is not None
        lasted = view.finishes_at - view.created_at
    assert (before["status"], after["status"]) == ("1", "3")
    assert lasted == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("path", "changes", "action"),
    [
        (GENERATE, {}, "TEXT_TO_VIDEO"),
        (GENERATE, {"image": "https://example.com/1.jpeg"}, "IMAGE_TO_VIDEO"),
        ("/runway/pro/video2video", {"video": "https://example.com/1.mp4"}, "VIDEO_TO_VIDEO"),
        (
            "/runway/pro/act_one",
            {"video": "https://example.com/1.mp4", "image": "https://example.com/1.jpeg"},
            "ACT_ONE",
        ),
        (
            "/runway/pro/act_one",
            {"video": "https://example.com/1.mp4", "character_video": "http://example.com/2.mp4"},
            "ACT_ONE",
        ),
        ("/runway/v1/pro/generate", {}, "TEXT_TO_VIDEO"),
        ("/api/video/runway/pro/generate", {}, "TEXT_TO_VIDEO"),
        ("/own/pro/generate", {}, "TEXT_TO_VIDEO"),
    ],
)
async def test_every_paid_route_makes_its_kind_of_task(
    path: str, changes: dict[str, Any], action: str
) -> None:
    """Each paid route works under each prefix, and an image makes it image-to-video."""
    async with running(prefix="/own") as caller:
        status, _ = await caller.submit(path, **changes)
        assert status == 200
        assert [task.action for task in caller.gateway.tasks] == [action]


async def test_the_official_format_answers_with_an_id_and_then_with_output(caller: Caller) -> None:
    """The official routes use dialect C on both of their paths."""
    body = {"promptImage": "data:image/png;base64,AA==", "model": "gen4_turbo", "duration": 5}
    status, made = await caller.send("POST", OFFICIAL, json=body, headers=VERSION)
    assert (status, list(made)) == (200, ["id"])
    for path in ("/runwayml/v1/tasks/", "/v1/runway/tasks/"):
        status, shown = await caller.send("GET", path + made["id"])
        assert (status, shown["status"]) == (200, "SUCCEEDED")
        assert shown["output"][0].startswith(caller.gateway.cdn_url)
    assert caller.gateway.tasks[0].points == 160.0


async def test_duomi_polls_with_get_and_the_others_with_post(caller: Caller) -> None:
    """GET works only under duomi's prefix; elsewhere the path is unknown."""
    task_id = await caller.start()
    for verb in ("GET", "POST"):
        options: dict[str, Any] = (
            {"params": {"task_id": task_id}} if verb == "GET" else {"json": {"task_id": task_id}}
        )
        status, body = await caller.send(verb, "/api/video/runway/feed", **options)
        assert (status, body["data"]["status"]) == (200, "3")
    status, page = await caller.send("GET", "/runway/feed", params={"task_id": task_id})
    assert (status, page[:15]) == (200, "<!doctype html>")


async def test_the_feed_verb_can_be_get() -> None:
    """A gateway with a GET feed returns its web page to a POST."""
    async with running(feed_verb="GET") as caller:
        task_id = await caller.start()
        status, body = await caller.send("GET", "/runway/feed", params={"task_id": task_id})
        assert (status, body["data"]["task_id"]) == (200, task_id)
        assert "<html" in (await caller.poll(task_id))[1]


async def test_an_unknown_path_is_the_web_page_and_under_v1_a_404(caller: Caller) -> None:
    """One-API serves its index page with 200 on unknown paths, except under /v1 and /api."""
    assert "<html" in (await caller.send("POST", "/runway/pro/nothing"))[1]
    for path in ("/v1/nothing", "/api/nothing"):
        status, body = await caller.send("POST", path)
        assert (status, body["error"]["type"]) == (404, "invalid_request_error")
        assert body["error"]["message"].startswith(f"Invalid URL (POST {path})")


async def test_the_second_origin_serves_only_files(caller: Caller) -> None:
    """The API does not answer on the files' origin."""
    # In older aiohttp, a session with a base URL accepts no other URL.
    async with aiohttp.ClientSession(caller.gateway.cdn_url) as session:
        status, body = await Caller(caller.gateway, session).submit()
    assert status == 404
    assert "NoSuchKey" in body


# Refusals.


async def test_a_missing_callback_url_is_refused_if_strict() -> None:
    """A strict gateway refuses with `callback_url_empty`; a lenient one accepts."""
    async with running() as caller:
        assert await caller.submit(callback_url=None) == (
            400,
            {"code": "callback_url_empty", "message": "callback_url_empty", "data": None},
        )
        assert caller.gateway.submitted == 0
    async with running(strict=False) as caller:
        assert (await caller.submit(callback_url=None))[0] == 200


async def test_a_missing_model_is_an_openai_error(caller: Caller) -> None:
    """The relay reports a missing model before any other problem."""
    status, body = await caller.submit(model=None, callback_url=None)
    assert status == 400
    assert body["error"]["message"].startswith("model name is required (request id: ")


@pytest.mark.parametrize(
    ("path", "changes", "field"),
    [
        (GENERATE, {"prompt": ""}, "prompt"),
        (GENERATE, {"prompt": 7}, "prompt"),
        (GENERATE, {"image": "1.jpeg"}, "image"),
        (GENERATE, {"options": {"seconds": "10"}}, "options.seconds"),
        (GENERATE, {"options": {"seconds": 7}}, "options.seconds"),
        (GENERATE, {"options": {"motion_vector": {"x": 0}}}, "options.motion_vector"),
        (GENERATE, {"options": {"flip": 1}}, "options.flip"),
        ("/runway/pro/video2video", {}, "video"),
        (
            "/runway/pro/video2video",
            {"video": "http://x/", "options": {"structure_transformation": 2}},
            "options.structure_transformation",
        ),
        ("/runway/pro/act_one", {"video": "http://x/"}, "image"),
    ],
)
async def test_a_bad_field_is_refused_under_a_200(
    caller: Caller, path: str, changes: dict[str, Any], field: str
) -> None:
    """The upstream refuses a bad field with HTTP 200, code 400, and a list for data."""
    status, body = await caller.submit(path, **changes)
    assert (status, body["code"], body["data"]) == (200, 400, [])
    assert body["msg"].startswith(f"{field} is ")
    assert caller.gateway.submitted == 0


@pytest.mark.parametrize(
    ("picture", "status"),
    [
        ("https://example.com/1.jpeg", 200),
        ([{"uri": "https://example.com/1.jpeg", "position": "first"}], 200),
        ([], 400),
        (["https://example.com/1.jpeg"], 400),
        ("1.jpeg", 400),
    ],
)
async def test_the_official_picture_is_text_or_a_list_of_objects(
    caller: Caller, picture: object, status: int
) -> None:
    """`promptImage` is a URL, a data URI, or a list of objects with a `uri`."""
    body = {"promptImage": picture, "model": "gen4_turbo"}
    assert (await caller.send("POST", OFFICIAL, json=body, headers=VERSION))[0] == status


async def test_the_official_submit_may_need_the_version_header() -> None:
    """A gateway that requires X-Runway-Version refuses an official submit without it."""
    body = {"promptImage": "https://example.com/1.jpeg", "model": "gen4_turbo"}
    async with running(requires_version=True) as caller:
        status, shown = await caller.send("POST", OFFICIAL, json=body)
        assert (status, shown["error"]["code"]) == (400, "invalid_request")
        assert caller.gateway.submitted == 0
        assert (await caller.send("POST", OFFICIAL, json=body, headers=VERSION))[0] == 200


async def test_the_official_submit_needs_no_version_header(caller: Caller) -> None:
    """By default X-Runway-Version is optional, as most clients do not send it."""
    body = {"promptImage": "https://example.com/1.jpeg", "model": "gen4_turbo"}
    assert (await caller.send("POST", OFFICIAL, json=body))[0] == 200


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff"])
async def test_a_body_that_is_not_a_json_object_is_refused(caller: Caller, raw: bytes) -> None:
    """Anything but a JSON object is `read_request_body_failed`, with 400."""
    status, body = await caller.send("POST", GENERATE, data=raw)
    assert (status, body["code"]) == (400, "read_request_body_failed")


async def test_a_body_of_twenty_megabytes_is_too_large(caller: Caller) -> None:
    """A larger body gets the same code with status 413."""
    status, body = await caller.send("POST", GENERATE, data=BytesIO(bytes(20 * 1024 * 1024 + 1)))
    assert (status, body["code"]) == (413, "read_request_body_failed")


@pytest.mark.parametrize("task_id", ["3d957031-9a2a-45e2-9dc7-bc8513059c50", "", 7])
async def test_an_unknown_task_does_not_exist(caller: Caller, task_id: object) -> None:
    """The feed reports an unknown id with HTTP 400 and `task_not_exist`."""
    status, body = await caller.send("POST", "/runway/feed", json={"task_id": task_id})
    assert status == 400
    assert body == {"code": "task_not_exist", "message": "task_not_exist", "data": None}


# Access.


@pytest.mark.parametrize(
    ("style", "header", "body_key", "status"),
    [
        ("bearer", "Bearer sk-simulated", None, 200),
        ("bearer", "sk-simulated", None, 401),
        ("bearer", None, "sk-simulated", 401),
        ("raw", "sk-simulated", None, 200),
        ("raw", "Bearer sk-simulated", None, 401),
        ("body", None, "sk-simulated", 200),
        ("body", "Bearer sk-simulated", None, 401),
        ("body", None, 7, 401),
        ("any", "sk-simulated", None, 200),
        ("any", "Bearer sk-simulated", None, 200),
        ("any", None, "sk-simulated", 200),
        ("any", None, None, 401),
        ("bearer", "Bearer sk-wrong", None, 401),
        ("bearer", "Bearer sk-simulated-7", None, 403),
    ],
)
async def test_the_key_has_to_be_where_the_style_wants_it(
    style: str, header: str | None, body_key: object, status: int
) -> None:
    """A key elsewhere is ignored, and a key followed by a channel is a 403."""
    async with running(header, key_style=style) as caller:
        answer, body = await caller.submit(key=body_key)
        assert answer == status
        if status != 200:
            assert set(body["error"]) == {"message", "type"}
            assert caller.gateway.submitted == 0


async def test_a_key_for_the_body_stands_in_the_header_of_a_get() -> None:
    """A GET has no body, so the bare header holds the key instead."""
    async with running("sk-simulated", key_style="body", takes=0.0) as caller:
        task_id = await caller.start(key="sk-simulated")
        status, _ = await caller.send("GET", "/api/video/runway/feed", params={"task_id": task_id})
        assert status == 200


async def test_another_key_does_not_see_the_task(caller: Caller) -> None:
    """Only the owner of a task finds it."""
    caller.gateway.add_key("sk-other")
    task_id = await caller.start()
    async with aiohttp.ClientSession(
        caller.gateway.base_url, headers={"Authorization": "Bearer sk-other"}
    ) as session:
        other = Caller(caller.gateway, session)
        assert (await other.poll(task_id))[0] == 400
        assert (await other.submit())[0] == 200


# Money.


@pytest.mark.usefixtures("virtual")
async def test_points_are_charged_on_submit_and_refunded_on_failure() -> None:
    """A task is charged when it is accepted, and refunded when it fails, not before."""
    async with running(takes=100.0, points=1000.0) as caller:
        caller.gateway.script("a kitten", then="fail", reason="moderated")
        task_id = await caller.start()
        assert caller.gateway.balance == 680.0
        await asyncio.sleep(99)
        assert caller.gateway.balance == 680.0
        await asyncio.sleep(1)
        shown = await caller.task(task_id)
        assert (shown["status"], shown["state"], shown["msg"]) == ("2", "error", "moderated")
        assert (shown["point"], shown["refund"], shown["video_url"]) == ("320", "320", None)
        assert (caller.gateway.balance, caller.gateway.refunds) == (1000.0, 320.0)
        assert caller.gateway.tasks[0].refunded


@pytest.mark.parametrize("status", [401, 403])
async def test_an_empty_account_is_refused(status: int) -> None:
    """Without enough points no task is made, and the response is a 403 or a misleading 401."""
    async with running(points=500.0, quota_status=status) as caller:
        await caller.start()
        answer, body = await caller.submit()
        assert answer == status
        text = json.dumps(body, ensure_ascii=False)
        assert ("insufficient_user_quota" if status == 403 else "该令牌额度已用尽") in text
        assert (caller.gateway.submitted, caller.gateway.balance) == (1, 180.0)


async def test_a_key_without_limit_is_never_empty() -> None:
    """Without a limit, tasks are charged and the balance stays None."""
    async with running(points=None, price=1e9, takes=0.0) as caller:
        caller.gateway.script("a kitten", then="fail")
        await caller.start()
        assert caller.gateway.balance is None
        assert (caller.gateway.tasks[0].points, caller.gateway.refunds) == (1e9, 1e9)


async def test_the_price_and_the_time_may_depend_on_the_request() -> None:
    """Both take a function of the request's body."""
    async with running(
        price=lambda body: len(body["prompt"]),
        takes=lambda body: 1.0 if "x" in body["prompt"] else 2.0,
    ) as caller:
        await caller.start(prompt="xxx")
        await caller.start(prompt="yyyyy")
        lasting = [
            round(task.finishes_at - task.created_at, 6)
            for task in caller.gateway.tasks
            if task.finishes_at is not None
        ]
    assert [task.points for task in caller.gateway.tasks] == [3, 5]
    assert lasting == [1.0, 2.0]


async def test_the_four_balance_routes_agree(caller: Caller) -> None:
    """Each route returns 996.80 dollars, in its own unit."""
    await caller.start()
    for prefix in ("/v1", ""):
        _, granted = await caller.send("GET", f"{prefix}/dashboard/billing/subscription")
        _, used = await caller.send("GET", f"{prefix}/dashboard/billing/usage")
        assert granted["hard_limit_usd"] - used["total_usage"] / 100 == pytest.approx(996.8)
    _, units = await caller.send("GET", "/api/usage/token")
    assert units["code"] is True
    assert units["data"]["total_available"] == 498_400_000
    _, user = await caller.send("GET", "/user/quota", params={"key": "sk-simulated"})
    assert user["keys"] == [{"name": "test_key", "remain_quota": 996.8, "used_quota": 3.2}]
    assert "daily_quota" not in user
    days = {"key": "sk-simulated", "start_date": "2026-01-01"}
    _, user = await caller.send("GET", "/user/quota", params=days)
    assert list(user["daily_quota"]) == ["2026-01-01"]


async def test_a_key_without_limit_has_its_own_figures() -> None:
    """Each balance route has a different value for "no limit"."""
    async with running(points=None) as caller:
        _, granted = await caller.send("GET", "/v1/dashboard/billing/subscription")
        _, units = await caller.send("GET", "/api/usage/token")
        _, user = await caller.send("GET", "/user/quota", params={"key": "sk-simulated"})
    assert granted["hard_limit_usd"] == 100_000_000
    assert units["data"]["unlimited_quota"] is True
    assert user["keys"][0]["remain_quota"] == 999_999_999
    assert user["keys"][0]["used_quota"] == -1


async def test_the_query_host_wants_the_key_in_the_url(caller: Caller) -> None:
    """The quota route ignores the Authorization header."""
    assert (await caller.send("GET", "/user/quota"))[0] == 401


# Scripts.


async def test_a_script_is_for_its_prompt_its_pattern_or_its_function(caller: Caller) -> None:
    """A prompt, a pattern and a function each name their tasks; the last script that fits wins."""
    caller.gateway.script(re.compile("cat|dog"), then="stall")
    caller.gateway.script("a dog", then="fail")
    caller.gateway.script(lambda body: body["ratio"] == "1:1", then="cancel")
    for changes in (
        {"prompt": "a cat"},
        {"prompt": "a dog"},
        {"prompt": "a cat", "ratio": "1:1"},
        {"prompt": "a bird"},
    ):
        await caller.start(**changes)
    states = [task.state for task in caller.gateway.tasks]
    assert states == ["running", "failed", "cancelled", "succeeded"]
    assert caller.gateway.tasks[0].finishes_at is None


async def test_scripts_without_a_name_go_to_the_next_tasks_in_order(caller: Caller) -> None:
    """A script for the next task is used once, and not by a task that another script names."""
    caller.gateway.script("named", then="stall")
    caller.gateway.script(then="fail")
    caller.gateway.script(then="expire")
    for prompt in ("named", "first", "second", "third"):
        await caller.start(prompt=prompt)
    states = [task.state for task in caller.gateway.tasks]
    assert states == ["running", "failed", "expired", "succeeded"]


@pytest.mark.usefixtures("virtual")
async def test_a_script_may_hide_blank_and_withhold() -> None:
    """The task is first hidden, then blank, then running, then a success without a URL."""
    async with running() as caller:
        caller.gateway.script(takes=60, hidden=5, blank=10, url_after=20, progress=[], queued=0)
        task_id = await caller.start()
        assert (await caller.poll(task_id))[0] == 400
        seen = []
        for pause in (6, 14, 50, 20):
            await asyncio.sleep(pause)
            shown = await caller.task(task_id)
            seen.append((shown["status"], bool(shown["video_url"])))
    assert seen == [("", False), ("1", False), ("3", False), ("3", True)]


async def test_a_success_may_never_show_its_url(caller: Caller) -> None:
    """With `url_after=None` a success never has a video."""
    caller.gateway.script("a kitten", url_after=None)
    shown = await caller.task(await caller.start())
    assert (shown["status"], shown["video_url"]) == ("3", None)


async def test_a_script_may_have_faults_of_its_own(caller: Caller) -> None:
    """Faults of a script happen only to its tasks, as often as planned."""
    caller.gateway.script(
        "cursed",
        faults=[
            faults.on("submit", faults.model_not_found()),
            faults.on("feed", faults.server_error(500), times=2),
        ],
    )
    plain = await caller.start()
    assert (await caller.submit(prompt="cursed"))[0] == 503
    cursed = await caller.start(prompt="cursed")
    assert (await caller.poll(plain))[0] == 200
    assert [(await caller.poll(cursed))[0] for _ in range(3)] == [500, 500, 200]


# Dialects.


@pytest.mark.parametrize("dialect", [*DIALECTS, "mixed"])
async def test_every_dialect_names_the_task_and_its_end(dialect: str) -> None:
    """In each dialect, the submit and the finished task contain the task's id."""
    async with running(dialect=dialect, takes=0.0) as caller:
        _, made = await caller.submit()
        task_id = caller.gateway.tasks[0].task_id
        _, shown = await caller.poll(task_id)
    assert task_id in json.dumps(made)
    assert task_id in json.dumps(shown)
    assert f"{task_id.replace('-', '')}.mp4" in json.dumps(shown)


async def test_mixed_changes_from_reply_to_reply_and_repeats_with_the_seed() -> None:
    """Two gateways with the same seed return the same dialects and ids."""
    runs = []
    for _ in range(2):
        async with running(dialect="mixed", takes=0.0, seed=7) as caller:
            await caller.submit()
            task_id = caller.gateway.tasks[0].task_id
            shapes = [sorted((await caller.poll(task_id))[1]) for _ in range(12)]
            runs.append((task_id, shapes))
    assert runs[0] == runs[1]
    assert len({tuple(shape) for shape in runs[0][1]}) > 2


async def test_a_script_may_have_its_own_dialect(caller: Caller) -> None:
    """A script's dialect takes precedence over the gateway's, for the submit and the feed."""
    caller.gateway.script("a kitten", dialect="bare")
    _, made = await caller.submit()
    assert made["status"] == "NOT_START"
    _, shown = await caller.poll(made["task_id"])
    assert shown["status"] == "SUCCESS"


async def test_an_unknown_dialect_is_an_error_at_once() -> None:
    """The error contains the misspelt dialect and the known ones."""
    with pytest.raises(ValueError, match="'envelop' is unknown; the dialects are: envelope, "):
        Simulator(dialect="envelop")
    with pytest.raises(ValueError, match="'b' is unknown"):
        Simulator().script("a kitten", dialect="b")


# The log of requests.


async def test_duplicates_are_equal_bodies(caller: Caller) -> None:
    """Two equal bodies are a group of duplicates; a body with one more byte is not in it."""
    await caller.start()
    assert not caller.gateway.duplicates
    twin = await caller.start()
    await caller.send("POST", GENERATE, data=json.dumps(BODY) + " ")
    assert caller.gateway.submitted == 3
    group = caller.gateway.duplicates[0]
    assert len(caller.gateway.duplicates) == 1
    assert [task.task_id for task in group] == [caller.gateway.tasks[0].task_id, twin]
    assert group[0].request == BODY


async def test_polls_are_counted_with_and_without_a_response(caller: Caller) -> None:
    """A poll that was answered with a 502 counts like any other."""
    task_id = await caller.start()
    other = await caller.start()
    caller.gateway.fault("feed", faults.server_error(502))
    for _ in range(3):
        await caller.poll(task_id)
    assert (caller.gateway.polls(task_id), caller.gateway.polls(other)) == (3, 0)


async def test_requests_are_logged(caller: Caller) -> None:
    """The log has the route, instant, size, fault and status of each request."""
    caller.gateway.fault("submit", faults.server_error(502))
    await caller.submit()
    task_id = await caller.start()
    await caller.send("GET", "/nothing?x=1")
    failed, made, lost = caller.gateway.requests
    assert (failed.where, failed.status, failed.fault) == ("submit", 502, "Response")
    assert (made.status, made.fault, made.task_id) == (200, None, task_id)
    assert made.body_bytes == len(json.dumps(BODY))
    assert made.headers["Authorization"] == "Bearer sk-simulated"
    assert failed.at <= made.at <= asyncio.get_running_loop().time()
    assert (lost.where, lost.path, lost.query) == (None, "/nothing", "x=1")


async def test_the_log_forgets_the_oldest() -> None:
    """Only the last `log_limit` requests are remembered."""
    async with running(log_limit=2) as caller:
        for number in range(3):
            await caller.send("GET", f"/{number}")
        assert [seen.path for seen in caller.gateway.requests] == ["/1", "/2"]


async def test_no_secret_is_in_a_repr(caller: Caller) -> None:
    """No repr of a task or request contains the key, a prompt or a signed link."""
    shown = await caller.task(await caller.start())
    text = repr((caller.gateway, caller.gateway.tasks, caller.gateway.requests))
    for secret in ("sk-simulated", "a kitten", shown["video_url"][-32:]):
        assert secret not in text


async def test_the_repr_shows_the_state(caller: Caller) -> None:
    """The repr contains the URL and the states of the tasks."""
    gateway = caller.gateway
    assert repr(gateway) == f"<Simulator on {gateway.base_url}, 0 tasks>"
    await caller.start()
    await gateway.aclose()
    assert repr(gateway) == "<Simulator closed, 1 task (1 succeeded)>"


# Pace.


@pytest.mark.usefixtures("virtual")
async def test_the_rate_limit_refuses_requests() -> None:
    """Two requests pass at once and one more each half second; each key has its own limit."""
    answer = faults.TooManyRequests(0.5, form="milliseconds", body="")
    async with running(rate_limit=2.0, burst=2, rate_limit_response=answer) as caller:
        assert [(await caller.submit())[0] for _ in range(3)] == [200, 200, 429]
        await asyncio.sleep(0.5)
        assert [(await caller.submit())[0] for _ in range(2)] == [200, 429]
        assert caller.gateway.limited == 2
        assert caller.gateway.submitted == 3


async def test_the_peak_of_requests_is_known(caller: Caller) -> None:
    """Three requests that are answered late are in flight together."""
    caller.gateway.fault("submit", faults.Slow(0.02), times=None)
    await asyncio.gather(*(caller.submit() for _ in range(3)))
    assert caller.gateway.peak_requests == 3


# Start and close.


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.com", ""])  # noqa: S104
def test_only_this_machine_may_be_served(host: str) -> None:
    """An address that others could reach is refused before anything is opened."""
    with pytest.raises(ValueError, match="is not this machine"):
        Simulator(host=host)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2", "::1"])
async def test_any_address_of_this_machine_will_do(host: str) -> None:
    """localhost, all of 127.0.0.0/8 and ::1 work, and the base URL uses them."""
    async with running(host=host) as caller:
        assert (await caller.submit())[0] == 200


async def test_there_is_no_address_before_the_start() -> None:
    """The base URL of a simulator that was never started is an error that says so."""
    with pytest.raises(RuntimeError, match="has not been started"):
        _ = Simulator().base_url


async def test_the_environment_points_a_client_here(caller: Caller) -> None:
    """The variables are the URL, the key, and the account's token and user."""
    assert caller.gateway.environment() == {
        "FUHU_BASE_URL": caller.gateway.base_url,
        "FUHU_API_KEY": "sk-simulated",
        "FUHU_ACCESS_TOKEN": "simulated-access-token",
        "FUHU_USER_ID": "7",
    }


async def test_starting_and_closing_twice_is_the_same_as_once() -> None:
    """A second start keeps the port, and a second close does nothing."""
    gateway = Simulator()
    await gateway.start()
    url = gateway.base_url
    await gateway.start()
    assert (gateway.base_url, gateway.is_running) == (url, True)
    await gateway.aclose()
    await gateway.aclose()
    assert not gateway.is_running


def test_a_start_in_another_loop_is_an_error() -> None:
    """A gateway whose loop has ended would answer nothing; after `aclose` it starts anywhere."""
    gateway = Simulator()
    asyncio.run(gateway.start())
    with pytest.raises(RuntimeError, match="open in another event loop"):
        asyncio.run(gateway.start())
    asyncio.run(gateway.aclose())
    asyncio.run(gateway.start())
    assert gateway.is_running
    asyncio.run(gateway.aclose())


async def test_a_restart_keeps_port_and_tasks() -> None:
    """While it is closed, connections are refused; afterwards the task still exists."""
    async with running(takes=0.0) as caller:
        task_id = await caller.start()
        port = caller.gateway.port
        await caller.gateway.aclose()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await caller.gateway.start()
        assert (await caller.task(task_id))["status"] == "3"
        assert caller.gateway.port == port


def test_a_gateway_outlives_its_loop() -> None:
    """A second loop finds the tasks of the first, with the right age."""
    gateway = Simulator(takes=0.0)

    async def visit() -> None:
        async with gateway, aiohttp.ClientSession(gateway.base_url) as session:
            headers = {"Authorization": "Bearer sk-simulated"}
            async with session.post(GENERATE, json=BODY, headers=headers) as response:
                assert response.status == 200

    asyncio.run(visit())
    assert [task.state for task in gateway.tasks] == ["succeeded"]
    asyncio.run(visit())
    assert gateway.tasks[0].created_at < gateway.tasks[1].created_at


async def test_a_port_that_is_taken_leaves_nothing_open(caller: Caller) -> None:
    """The error is the operating system's, and the first origin is closed."""
    late = Simulator(cdn_port=caller.gateway.port)
    with pytest.raises(OSError, match="in use"):
        await late.start()
    assert not late.is_running
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", late.port))


async def test_it_serves_until_it_is_closed_or_cancelled() -> None:
    """`serve_forever` starts, returns after `aclose`, and closes when cancelled."""
    gateway = Simulator()
    serving = asyncio.create_task(gateway.serve_forever())
    await until(lambda: gateway.is_running)
    await gateway.aclose()
    await serving
    serving = asyncio.create_task(gateway.serve_forever())
    await until(lambda: gateway.is_running)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert not gateway.is_running


async def test_nothing_is_left_when_it_closes_on_a_hanging_request() -> None:
    """Closing ends the hanging request: its connection closes, and no asyncio task remains."""
    before = asyncio.all_tasks()
    async with running() as caller:
        caller.gateway.fault("submit", faults.Hang())
        hanging = asyncio.create_task(caller.submit())
        await until(lambda: caller.gateway.requests)
        await caller.gateway.aclose()
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await hanging
    assert asyncio.all_tasks() == before


async def test_a_client_that_does_not_read_cannot_keep_it_open() -> None:
    """A response that is not read is cut off, and closing leaves no asyncio task."""
    before = asyncio.all_tasks()
    async with running() as caller:
        caller.gateway.fault("submit", faults.Chunked(megabytes=64))
        _, writer = await asyncio.open_connection("127.0.0.1", caller.gateway.port, limit=1024)
        writer.write(b"POST /runway/pro/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        await until(lambda: any(seen.status for seen in caller.gateway.requests))
        await caller.gateway.aclose()
        assert asyncio.all_tasks() == before
        writer.transport.abort()


async def test_a_slow_answer_does_not_hang_after_closing() -> None:
    """A fault that follows a delay ends when the gateway closes."""
    async with running() as caller:
        caller.gateway.fault("submit", faults.Slow(1e6, faults.Hang(accepted=True)))
        slow = asyncio.create_task(caller.submit())
        await until(lambda: caller.gateway.requests)
        await caller.gateway.aclose()
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await slow


async def test_a_client_may_disconnect_within_its_request(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a body and a closed connection make no task, no error and no log line."""
    reader, writer = await asyncio.open_connection("127.0.0.1", caller.gateway.port)
    writer.write(b"POST /runway/pro/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await reader.read()
    assert (await caller.submit())[0] == 200
    assert (caller.gateway.submitted, caplog.records) == (1, [])


# Addresses before the start.


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_bind_reserves_the_addresses(host: str) -> None:
    """After `bind` the addresses are known but refuse connections, and `start` keeps them."""
    gateway = Simulator(host=host)
    gateway.bind()
    bound = (gateway.base_url, gateway.cdn_url)
    gateway.bind()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, gateway.port)
    async with gateway:
        gateway.bind()
        assert (gateway.base_url, gateway.cdn_url) == bound
        assert f":{gateway.port}" in gateway.base_url
        _, writer = await asyncio.open_connection(host, gateway.port)
        writer.close()


def test_unbind_releases_the_ports() -> None:
    """Another server may use a port after `unbind`."""
    gateway = Simulator()
    gateway.bind()
    gateway.unbind()
    gateway.unbind()
    with socket.create_server(("127.0.0.1", gateway.port)):
        pass


def test_a_bind_takes_both_ports_or_none() -> None:
    """If one of the ports is taken, the other is released, and the error names the port."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        gateway = Simulator(cdn_port=port)
        with pytest.raises(OSError, match=rf"'127\.0\.0\.1', {port}\): Address already in use"):
            gateway.bind()
    with socket.create_server(("127.0.0.1", gateway.port)):
        pass


async def test_closing_releases_ports_that_were_only_bound() -> None:
    """A simulator that was bound and closed leaves nothing open."""
    gateway = Simulator()
    gateway.bind()
    await gateway.aclose()
    with socket.create_server(("127.0.0.1", gateway.port)):
        pass


# The package


def test_names_are_imported_on_first_use() -> None:
    """The package lists its names before it imports them, and an unknown one is an error."""
    assert set(testing.__all__) <= set(dir(testing))
    assert all(getattr(testing, name) is getattr(testing, name) for name in testing.__all__)
    with pytest.raises(AttributeError, match=r"'fuhu_runway\.testing'.*'Emulator'"):
        testing.Emulator  # noqa: B018 - looking is enough


def test_the_faults_come_without_the_simulator() -> None:
    """`fuhu_runway.testing.faults` works before anything else is imported."""
    source = "from fuhu_runway import testing; print(testing.faults.Drop())"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, check=True, text=True
    )
    assert done.stdout == "Drop(accepted=False, reset=False)\n"


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        (
            lambda: Simulator(takes="x"),
            "takes='x' is not a number from 0 to 1000000000,",
        ),
        (lambda: Simulator(takes=-1.0), "takes=-1.0 is not a number from 0"),
        (lambda: Simulator(takes=True), "takes=True is not a number from 0"),
        (
            lambda: Simulator(points="many"),
            "points='many' is not a number from 0 to",
        ),
        (lambda: Simulator().script(takes="x"), "takes='x' is not a number from 0"),
        (
            lambda: Simulator().script(then="prosper"),
            "then='prosper' is not one of \"succeed\",",
        ),
        (
            lambda: Simulator().fault("payment", faults.html_page()),
            'where=\'payment\' is not one of "submit", "feed", "download", "balance", "official"',
        ),
        (
            lambda: Simulator().fault("submit", faults.html_page(), times=0),
            "times=0 is not a whole number from 1 to",
        ),
        (
            lambda: Simulator().fault("submit", "x"),
            "'x' is not a fault of fuhu_runway.testing.faults, such as faults.Drop()",
        ),
        (
            lambda: Simulator().fault("submit", faults.Drop(), seconds=-5),
            "seconds=-5 is less than 0",
        ),
        (lambda: Simulator().script(42), "42 is not a prompt, a pattern or a function"),
        (lambda: Simulator().script(reason=5), "reason=5 is not text, or None"),
        (lambda: Simulator().script(queued=2), "queued=2 is not a number from 0 to 1"),
        (lambda: Simulator().script(hidden=-1), "hidden=-1 is not a number from 0 to"),
        (
            lambda: Simulator().script(progress=(0, 200)),
            "progress=(0, 200) is not several of these: a whole number from 0 to 100",
        ),
        (
            lambda: Simulator().script(faults=faults.Drop()),
            "Drop(accepted=False, reset=False) has no place; say where: faults.on(",
        ),
    ],
)
def test_an_invalid_option_is_an_error_in_one_line(wrong: Any, shown: str) -> None:
    """The error names the option, its value and what is allowed, without internals."""
    with pytest.raises((ValueError, TypeError)) as caught:
        wrong()
    assert str(caught.value).startswith(shown)
    assert "Attribute(" not in str(caught.value)
