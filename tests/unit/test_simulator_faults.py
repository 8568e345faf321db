import asyncio
import json
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import attrs
import pytest

from fuhu_runway.testing import Simulator, faults
from fuhu_runway.testing.faults import Fault

BODY = {"callback_url": "https://callback.invalid/", "prompt": "a kitten", "model": "gen4"}
KEY = {"Authorization": "Bearer sk-simulated"}


@attrs.define
class Caller:
    gateway: Simulator
    session: aiohttp.ClientSession

    async def submit(self) -> tuple[int, str]:
        return await self.post("/runway/pro/generate", BODY)

    async def poll(self, task_id: str) -> tuple[int, str]:
        return await self.post("/runway/feed", {"task_id": task_id})

    async def post(self, path: str, body: object) -> tuple[int, str]:
        async with self.session.post(path, json=body) as response:
            return response.status, await response.text()

    async def start(self) -> str:
        _, text = await self.submit()
        return str(json.loads(text)["data"]["task_id"])

    async def task(self, task_id: str) -> Any:
        return json.loads((await self.poll(task_id))[1])["data"]

    @property
    def submitted(self) -> int:
        # A function, since mypy would assume that an attribute stays the same.
        return self.gateway.submitted


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    """Yield a caller of a gateway whose tasks end at once."""
    async with (
        Simulator(takes=0.0) as gateway,
        aiohttp.ClientSession(gateway.base_url, headers=KEY) as session,
    ):
        yield Caller(gateway, session)


# Before and after the task exists.


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("accepted", [False, True])
async def test_a_dropped_submit_exists_only_if_it_was_accepted(
    caller: Caller, *, accepted: bool, reset: bool
) -> None:
    """No byte of a response is sent, and only the ledger shows whether a task was made."""
    caller.gateway.fault("submit", faults.Drop(accepted=accepted, reset=reset))
    with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        await caller.submit()
    assert caller.submitted == int(accepted)
    assert caller.gateway.requests[0].status is None
    assert (await caller.submit())[0] == 200


def test_the_two_ways_to_drop_have_names() -> None:
    """One drops before the task exists, the other afterwards."""
    assert faults.drop_before_accepting() == faults.Drop(accepted=False)
    assert faults.drop_after_accepting() == faults.Drop(accepted=True)


@pytest.mark.parametrize("body", ["html", "json", "empty"])
@pytest.mark.parametrize("status", [500, 502, 504, 524])
@pytest.mark.parametrize("accepted", [False, True])
async def test_a_server_error_may_come_after_the_job(
    caller: Caller, *, accepted: bool, status: int, body: Any
) -> None:
    """A 5xx polls the same whether or not the task exists and was charged."""
    fault = faults.server_error(status, accepted=accepted, body=body)
    caller.gateway.fault("submit", fault)
    answer, text = await caller.submit()
    assert answer == status
    assert text[:1] == {"html": "<", "json": "{", "empty": ""}[body]
    assert caller.submitted == int(accepted)
    assert caller.gateway.balance == (100_000.0 - 320.0 if accepted else 100_000.0)


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize("accepted", [False, True])
async def test_a_hanging_submit_outlasts_the_clients_patience(
    caller: Caller, *, accepted: bool
) -> None:
    """The client's read times out, however long it waits."""
    caller.gateway.fault("submit", faults.Hang(accepted=accepted))
    patience = aiohttp.ClientTimeout(sock_read=600)
    with pytest.raises(aiohttp.SocketTimeoutError):
        await caller.session.post("/runway/pro/generate", json=BODY, timeout=patience)
    assert caller.submitted == int(accepted)


@pytest.mark.usefixtures("virtual")
async def test_an_answer_may_hang_in_its_middle(caller: Caller) -> None:
    """The status and a few bytes are sent, and then nothing."""
    caller.gateway.fault("submit", faults.Hang(after_bytes=5))
    patience = aiohttp.ClientTimeout(sock_read=600)
    async with caller.session.post("/runway/pro/generate", json=BODY, timeout=patience) as response:
        assert response.status == 200
        assert await response.content.readexactly(5) == b'{"cod'
        with pytest.raises(aiohttp.SocketTimeoutError):
            await response.read()
    assert caller.submitted == 1


@pytest.mark.usefixtures("virtual")
async def test_a_slow_answer_is_late_and_its_work_is_not(caller: Caller) -> None:
    """The task exists at once, and the response takes its simulated seconds."""
    loop = asyncio.get_running_loop()
    caller.gateway.fault("submit", faults.Slow(20.0))
    begun = loop.time()
    answer = asyncio.create_task(caller.submit())
    await asyncio.sleep(1.0)
    assert caller.submitted == 1
    assert (await answer)[0] == 200
    assert loop.time() - begun == pytest.approx(20.0, abs=0.5)


@pytest.mark.usefixtures("virtual")
async def test_a_slow_answer_may_be_a_wrong_one(caller: Caller) -> None:
    """A proxy gives up after a minute, but the task exists."""
    caller.gateway.fault("submit", faults.Slow(60.0, faults.server_error(504, accepted=True)))
    assert (await caller.submit())[0] == 504
    assert caller.submitted == 1


# 429.


@pytest.mark.parametrize(
    ("form", "header", "value"),
    [("seconds", "Retry-After", "1.5"), ("milliseconds", "retry-after-ms", "1500")],
)
async def test_a_429_says_when_to_retry(caller: Caller, form: Any, header: str, value: str) -> None:
    """Seconds and milliseconds have a header each, and nothing was accepted."""
    caller.gateway.fault("submit", faults.TooManyRequests(1.5, form=form))
    async with caller.session.post("/runway/pro/generate", json=BODY) as response:
        assert (response.status, response.headers[header]) == (429, value)
        assert "当前分组上游负载已饱和" in await response.text()
    assert caller.submitted == 0


async def test_a_429_with_a_date_brings_the_date_to_compare_it_with(caller: Caller) -> None:
    """Retry-After minus Date is the delay, in whole seconds, rounded up."""
    caller.gateway.fault("feed", faults.TooManyRequests(2.5, form="date"))
    async with caller.session.post("/runway/feed", json={}) as response:
        later = parsedate_to_datetime(response.headers["Retry-After"])
        assert (later - parsedate_to_datetime(response.headers["Date"])).total_seconds() == 3


async def test_a_429_may_be_empty_or_mean_the_quota(caller: Caller) -> None:
    """The per-IP limiter sends no body; yunwu reports an empty account as a full group."""
    caller.gateway.fault("submit", faults.empty_429(1))
    caller.gateway.fault("submit", faults.quota_in_429())
    assert await caller.submit() == (429, "")
    status, text = await caller.submit()
    assert (status, json.loads(text)["error"]["code"]) == (429, "local:quota_not_enough")
    assert "负载已饱和" in text


# Other responses.


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (faults.model_not_found(), 503, '"code":"model_not_found"'),
        (faults.key_exhausted(), 401, "该令牌额度已用尽"),
        (faults.error(500, "x", code=7), 500, '"param":"","code":7'),
        (faults.error(500, "x", code=None), 500, '"code":null'),
        (faults.error(200, "x", param=None), 200, '"type":"new_api_error","code":""'),
        (faults.task_error("get_task_failed", "no", status=500), 500, '"message":"no"'),
        (faults.task_not_exist(), 400, '{"code":"task_not_exist","message":"task_not_exist"'),
        (faults.refused(), 200, '"code":400,"msg":"提示词违规","data":null'),
        (faults.refused("busy", data=[]), 200, '"msg":"busy","data":[]'),
        (faults.dashboard_error(), 200, '{"success":false,'),
        (faults.html_page(), 200, "<!doctype html>"),
        (faults.not_json(), 200, "upstream connect error"),
    ],
)
async def test_every_kind_of_wrong_answer_can_be_sent(
    caller: Caller, fault: Fault, status: int, words: str
) -> None:
    """Each fault sends its documented body with its status, and makes no task."""
    caller.gateway.fault("submit", fault)
    answer, text = await caller.submit()
    assert answer == status
    assert words in text
    assert caller.submitted == 0


async def test_a_nested_error_is_an_error_in_an_error(caller: Caller) -> None:
    """The upstream's error is in two levels of JSON inside the message."""
    caller.gateway.fault("feed", faults.nested_error(502, levels=2))
    status, text = await caller.poll("x")
    outer = json.loads(text)
    inner = json.loads(outer["message"])
    assert (status, outer["code"], inner["code"]) == (502, *["fail_to_fetch_task"] * 2)
    assert json.loads(inner["message"])["error"]["code"] == "upstream_error"


async def test_truncated_json_is_a_whole_answer(caller: Caller) -> None:
    """The HTTP response is complete, and its JSON is cut short."""
    caller.gateway.fault("submit", faults.Truncated(30))
    status, text = await caller.submit()
    assert (status, len(text), caller.submitted) == (200, 30, 1)
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(text)


async def test_a_cut_answer_is_incomplete(caller: Caller) -> None:
    """The connection closes before the announced length was sent."""
    caller.gateway.fault("submit", faults.Cut(30))
    with pytest.raises(aiohttp.ClientPayloadError):
        await caller.submit()
    assert caller.submitted == 1


async def test_a_huge_answer_comes_in_pieces_and_without_a_length(caller: Caller) -> None:
    """Megabytes of blanks follow the right response, without a Content-Length."""
    caller.gateway.fault("submit", faults.Chunked(megabytes=3))
    async with caller.session.post("/runway/pro/generate", json=BODY) as response:
        assert "Content-Length" not in response.headers
        text = await response.text()
    assert len(text) > 3 * 1024 * 1024
    assert json.loads(text)["code"] == 200


# Odd responses of the feed.


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (faults.unknown_word(), ("MOONWALKING", "MOONWALKING")),
        (faults.StatusWords("7", ""), ("7", "")),
        (faults.StatusWords("1", "succeeded"), ("1", "succeeded")),
    ],
)
async def test_the_feed_may_use_any_words(
    caller: Caller, fault: Fault, words: tuple[str, str]
) -> None:
    """Both fields for the state can have unknown words, for one response."""
    task_id = await caller.start()
    caller.gateway.fault("feed", fault)
    shown = await caller.task(task_id)
    assert (shown["status"], shown["state"]) == words
    assert (await caller.task(task_id))["status"] == "3"


async def test_a_success_may_have_no_url_for_one_answer(caller: Caller) -> None:
    """The next answer has the URL."""
    task_id = await caller.start()
    caller.gateway.fault("feed", faults.NoUrl())
    shown = await caller.task(task_id)
    assert (shown["status"], shown["video_url"], shown["poster"]) == ("3", None, None)
    assert (await caller.task(task_id))["video_url"]


@pytest.mark.parametrize(("refunded", "refund"), [(False, "0"), (True, "320")])
async def test_a_failure_may_have_a_url(caller: Caller, *, refunded: bool, refund: str) -> None:
    """A failure may have a URL, with or without the refund that proves it."""
    task_id = await caller.start()
    caller.gateway.fault("feed", faults.FailureWithUrl(refunded=refunded))
    shown = await caller.task(task_id)
    assert (shown["status"], shown["state"], shown["refund"]) == ("2", "error", refund)
    assert bool(shown["video_url"])
    assert bool(shown["msg"]) == refunded


async def test_an_answer_may_be_blank_or_in_another_dialect(caller: Caller) -> None:
    """One response is empty, the next is dialect C, and the third is right again."""
    task_id = await caller.start()
    caller.gateway.fault("feed", faults.EmptyFields())
    caller.gateway.fault("feed", faults.OtherDialect("official"))
    assert (await caller.task(task_id))["video_url"] is None
    assert json.loads((await caller.poll(task_id))[1])["status"] == "SUCCEEDED"
    assert (await caller.task(task_id))["status"] == "3"


async def test_a_submit_may_be_answered_in_another_dialect(caller: Caller) -> None:
    """The fault's dialect applies to the submit's answer too."""
    caller.gateway.fault("submit", faults.OtherDialect("official"))
    assert list(json.loads((await caller.submit())[1])) == ["id"]


# How often and for how long.


async def test_faults_happen_as_often_as_they_are_planned(caller: Caller) -> None:
    """One fault happens twice, another once, and then none."""
    caller.gateway.fault("feed", faults.server_error(500), times=2)
    caller.gateway.fault("feed", faults.server_error(503))
    assert [(await caller.poll("x"))[0] for _ in range(4)] == [500, 500, 503, 400]


async def test_a_fault_waits_for_its_own_kind_of_request(caller: Caller) -> None:
    """A fault on the balance does not happen to the feed."""
    caller.gateway.fault("balance", faults.error(200, "x", type="upstream_error"))
    caller.gateway.fault("official", faults.server_error(502))
    assert (await caller.poll("x"))[0] == 400
    async with caller.session.get("/v1/dashboard/billing/usage") as response:
        assert (response.status, "error" in await response.json()) == (200, True)
    async with caller.session.get("/runwayml/v1/tasks/x") as response:
        assert response.status == 502


@pytest.mark.usefixtures("virtual")
async def test_an_outage_lasts_as_long_as_it_is_planned(caller: Caller) -> None:
    """Every poll within three minutes fails, and none after that."""
    caller.gateway.fault("feed", faults.server_error(502), times=None, seconds=180.0)
    seen = []
    for _ in range(4):
        seen.append((await caller.poll("x"))[0])
        await asyncio.sleep(61)
    assert seen == [502, 502, 502, 400]


async def test_the_gateways_faults_come_after_the_scripts(caller: Caller) -> None:
    """A script's fault for its task happens first."""
    caller.gateway.script("a kitten", faults=[faults.on("feed", faults.server_error(500))])
    caller.gateway.fault("feed", faults.server_error(503))
    task_id = await caller.start()
    assert [(await caller.poll(task_id))[0] for _ in range(3)] == [500, 503, 200]


async def test_a_scripted_submit_may_fail_after_it_was_accepted(caller: Caller) -> None:
    """The script's fault happens once, also if its task was accepted."""
    caller.gateway.script(faults=[faults.on("submit", faults.Drop(accepted=True))])
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await caller.submit()
    assert (await caller.submit())[0] == 200
    assert caller.submitted == 2


async def test_a_script_has_faults_only_for_its_own_requests(caller: Caller) -> None:
    """The balance belongs to no task, so a script with a fault there is an error."""
    with pytest.raises(ValueError, match="balance"):
        caller.gateway.script(faults=[faults.on("balance", faults.Drop())])


# Around the response.


async def test_the_head_of_a_response_can_be_any(caller: Caller) -> None:
    """A status and headers are replaced, added and left out; the task is made and in the body."""
    headers = (("content-type", "text/plain"), ("Set-Cookie", "a=1"))
    caller.gateway.fault("submit", faults.Head(202, headers))
    async with caller.session.post("/runway/pro/generate", json=BODY) as response:
        assert (response.status, response.headers["Content-Type"]) == (202, "text/plain")
        assert response.headers["Set-Cookie"] == "a=1"
        assert json.loads(await response.text())["data"]["task_id"]
    assert (caller.submitted, caller.gateway.requests[-1].status) == (1, 202)


async def test_a_head_may_be_followed_by_another_fault(caller: Caller) -> None:
    """Its headers are those of the other fault's response, and so is its status."""
    head = faults.Head(500, (("X-One", "1"), ("Retry-After", None)), faults.TooManyRequests(3))
    caller.gateway.fault("submit", head)
    async with caller.session.post("/runway/pro/generate", json=BODY) as response:
        assert (response.status, response.headers["X-One"]) == (500, "1")
        assert "Retry-After" not in response.headers
    assert caller.submitted == 0
    with pytest.raises(ValueError, match=r"NoUrl.* cannot happen on 'submit'"):
        faults.on("submit", faults.Head(then=faults.NoUrl()))


@pytest.mark.parametrize(("after_bytes", "received"), [(None, 1), (30, 0)])
async def test_a_response_may_end_with_its_connection(
    caller: Caller, after_bytes: int | None, received: int
) -> None:
    """It has no length, so nothing shows whether all of it has arrived."""
    caller.gateway.fault("submit", faults.UntilClose(after_bytes))
    async with caller.session.post("/runway/pro/generate", json=BODY) as response:
        assert {"Content-Length", "Transfer-Encoding"}.isdisjoint(response.headers)
        text = await response.text()
    assert text.count("exec_time") == received
    assert text.startswith('{"code":200')
    assert caller.submitted == 1


@pytest.mark.usefixtures("virtual")
async def test_any_response_may_be_slow_to_the_last_byte(caller: Caller) -> None:
    """A response of the feed comes at ten bytes per second."""
    task_id = await caller.start()
    caller.gateway.fault("feed", faults.SlowBody(10.0))
    loop = asyncio.get_running_loop()
    begun = loop.time()
    _, text = await caller.poll(task_id)
    assert loop.time() - begun == pytest.approx(len(text.encode()) / 10, rel=0.1)


async def test_a_video_may_be_anywhere(caller: Caller) -> None:
    """A finished task has the given URL once; a running one has none."""
    caller.gateway.script("runs", then="stall")
    caller.gateway.fault("feed", faults.VideoUrl("http://cdn..example/c.mp4"), times=2)
    task_id = await caller.start()
    assert (await caller.task(task_id))["video_url"] == "http://cdn..example/c.mp4"
    await caller.post("/runway/pro/generate", {**BODY, "prompt": "runs"})
    assert (await caller.task(caller.gateway.tasks[-1].task_id))["video_url"] is None
    assert (await caller.task(task_id))["video_url"].startswith(caller.gateway.cdn_url)


async def test_an_upload_may_fail_too(caller: Caller) -> None:
    """Files have faults of their own, and their requests are in the log."""
    caller.gateway.fault("files", faults.known("nginx_413"))
    assert (await caller.post("/v1/files", {}))[0] == 413
    assert (await caller.post("/v1/files", {}))[0] == 400
    assert [one.where for one in caller.gateway.requests] == ["files", "files"]
