"""What the simulator sends when it is as unkind as the world, to the byte."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest

from fuhu_runway.testing import KNOWN, SHAPES, Simulator, faults
from fuhu_runway.testing.faults import Fault

BODY = {"callback_url": "https://callback.invalid/", "prompt": "a kitten", "model": "gen4"}
OFFICIAL = {"model": "gen4_turbo", "promptImage": "https://example.com/1.jpeg"}
#: The data of a new task, apart from its id (api-facts 1.2).
REST = (
    '"state":"","status":"","prompt":"","prompt_en":null,"video_url":null,"poster":null,'
    '"last_frame":null,"msg":null,"point":"","refund":"","create_time":"","update_time":""'
)
DATA = f'{{"task_id":"ID",{REST}}}'
ANSWER = f'{{"code":200,"msg":"success","data":{DATA},"exec_time":20.930577}}'
JSON = "application/json; charset=utf-8"
HTML = "text/html; charset=utf-8"


@attrs.frozen
class Got:
    """One whole response, as received from the socket."""

    raw: bytes

    @property
    def head(self) -> str:
        return self.raw.partition(b"\r\n\r\n")[0].decode("latin-1")

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    @property
    def headers(self) -> dict[str, str]:
        lines = (line.partition(": ") for line in self.head.split("\r\n")[1:])
        return {name: value for name, _, value in lines}

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def data(self) -> Any:
        return json.loads(self.body)["data"]


async def send(url: str, method: str, target: str, body: object = None, **headers: str) -> Got:
    """Send one request and read until the connection closes."""
    sent = b"" if body is None else json.dumps(body).encode()
    named = {
        "Host": "x",
        "Authorization": "Bearer sk-simulated",
        "Content-Length": str(len(sent)),
        "Connection": "close",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 24)
    try:
        writer.write(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + sent)
        return Got(await reader.read())
    finally:
        writer.close()
        await writer.wait_closed()


@attrs.define
class Caller:
    gateway: Simulator

    async def submit(self, **changes: object) -> Got:
        return await self.post("/runway/pro/generate", BODY | changes)

    async def post(self, target: str, body: object, **headers: str) -> Got:
        return await send(self.gateway.base_url, "POST", target, body, **headers)

    async def get(self, target: str, **headers: str) -> Got:
        return await send(self.gateway.base_url, "GET", target, **headers)

    async def poll(self) -> Got:
        return await self.post("/runway/feed", {"task_id": self.task_id})

    async def video_url(self) -> str:
        await self.submit()
        return str((await self.poll()).data["video_url"])

    async def download(self, **headers: str) -> Got:
        """Submit, poll, and download the file."""
        return await self.fetch(await self.video_url(), **headers)

    async def fetch(self, url: str, **headers: str) -> Got:
        scheme, _, rest = url.partition("://")
        origin, _, target = rest.partition("/")
        return await send(f"{scheme}://{origin}", "GET", f"/{target}", **headers)

    @property
    def task_id(self) -> str:
        return self.gateway.tasks[-1].task_id


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Caller]:
    """Yield a gateway whose tasks end at once, and its caller."""
    async with Simulator(**{"takes": 0.0, **options}) as gateway:
        yield Caller(gateway)


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    """Yield a gateway whose tasks end at once, and its caller."""
    async with running() as caller:
        yield caller


# Other responses to a submit.

ACCEPTED = {
    "taskId": '{"code":200,"msg":"success","data":{"taskId":"ID",REST}}',
    "data_id": '{"code":200,"msg":"success","data":{"id":"ID",REST}}',
    "bare_id": '{"id":"ID",REST}',
    "bare_taskId": '{"taskId":"ID",REST}',
    "data_is_id": '{"code":200,"msg":"success","data":"ID"}',
    "data_text": f'{{"code":200,"msg":"success","data":{json.dumps(DATA)}}}',
    "data_list": '{"code":200,"msg":"success","data":[DATA]}',
    "result": '{"code":200,"msg":"success","result":DATA}',
    "result_is_id": '{"code":200,"msg":"success","result":"ID"}',
    "code_0": '{"code":0,"msg":"success","data":DATA}',
    "code_1": '{"code":1,"msg":"success","data":DATA}',
    "code_ok": '{"code":"ok","msg":"","data":DATA}',
    "code_text": '{"code":"200","msg":"success","data":DATA}',
    "numbers": '{"code":200,"msg":"success","data":{"task_id":"ID","status":0,"point":0,'
    '"refund":0,"create_time":0,"update_time":0}}',
    "nan": '{"code":200,"msg":"success","data":DATA,"exec_time":NaN,"load":1e999}',
    "code_success": '{"code":"success","msg":"","data":DATA}',
    "success_false": '{"success":false,"message":"","data":DATA}',
    "empty_error": ('{"code":200,"msg":"success","data":DATA,"error":{"code":"","message":""}}'),
    "official_empty_error": '{"id":"ID","error":{"code":"","message":""}}',
    "warning": '{"code":200,"msg":"success","data":DATA,"error":"warning: slow"}',
    "php_warning": (
        "<br />\n<b>Warning</b>:  Undefined index: uid in <b>/www/runway.php</b> on line "
        "<b>31</b><br />\nANSWER"
    ),
    "two_values": (
        'ANSWER{"code":"insert_task_failed","message":"database is locked","data":null}'
    ),
    "official_two_values": (
        '{"id":"ID"}{"code":"insert_task_failed","message":"database is locked","data":null}'
    ),
    "raw_control": '{"code":200,"msg":"one\ntwo\r\n\tthree\x1b","data":DATA}',
    "bom": "\ufeffANSWER",
    "utf_16": "ANSWER",
    "gbk": '{"code":200,"msg":"成功","data":DATA}',
    "gbk_as_utf_8": '{"code":200,"msg":"成功","data":DATA}',
    "data_url": (
        '{"code":"success","message":"","data":{"task_id":"ID","status":"submitted","url":null,'
        '"format":"mp4","metadata":null,"error":null}}'
    ),
    "unified": '{"task_id":"ID","task_status":"succeed","message":"","video_result":null}',
    "unified_list": (
        '{"task_id":"ID","task_status":"succeed","message":"","video_results":[{"url":null}]}'
    ),
    "official_deer": '{"id":"ID","status":"PENDING","createdAt":"WHEN","updatedAt":"WHEN",'
    '"output":[],"error":null}',
    "raw_is_input": '{"code":200,"msg":"成功","data":{"task_id":"ID",REST,"raw_video_url":null}}',
}
ENCODED = {
    "utf_16": ("utf-16", "application/json"),
    "gbk": ("gbk", "application/json; charset=gbk"),
    "gbk_as_utf_8": ("gbk", JSON),
    "php_warning": ("utf-8", HTML),
}


def test_every_shape_is_tried_here() -> None:
    """The table above has each of the simulator's shapes."""
    assert ACCEPTED.keys() == SHAPES.keys()


@pytest.mark.parametrize("shape", ACCEPTED)
async def test_a_submit_is_answered_in_any_shape(caller: Caller, shape: str) -> None:
    """Each shape is sent byte for byte, and a task exists."""
    caller.gateway.fault("submit", faults.OtherDialect(shape))
    got = await caller.submit()
    encoding, content_type = ENCODED.get(shape, ("utf-8", JSON))
    wanted = ACCEPTED[shape].replace("ANSWER", ANSWER).replace("DATA", DATA).replace("REST", REST)
    text = got.body.decode(encoding)
    if shape == "official_deer":
        wanted = wanted.replace("WHEN", json.loads(text)["createdAt"], 1)
        wanted = wanted.replace("WHEN", "1970-01-01T00:00:00.000Z")
    assert (got.status, got.headers["Content-Type"]) == (200, content_type)
    assert text == wanted.replace("ID", caller.task_id)
    assert caller.gateway.requests[-1].fault == f"OtherDialect {shape}"
    assert caller.gateway.submitted == 1


async def test_utf_16_comes_with_its_mark(caller: Caller) -> None:
    """The first two bytes are the byte order mark."""
    caller.gateway.fault("submit", faults.OtherDialect("utf_16"))
    assert (await caller.submit()).body[:2] in {b"\xff\xfe", b"\xfe\xff"}


async def test_a_shape_can_be_the_gateways_own_or_a_scripts() -> None:
    """A shape may be used wherever a dialect can."""
    async with running(dialect="taskId") as caller:
        caller.gateway.script("odd", dialect="data_list")
        assert "taskId" in (await caller.submit()).data
        assert (await caller.poll()).data["status"] == "3"
        await caller.submit(prompt="odd")
        assert (await caller.poll()).data[0]["status"] == "3"
    with pytest.raises(ValueError, match="dialect='nope' is unknown; the dialects are: envelope,"):
        faults.OtherDialect("nope")


# Other responses to a poll.


@pytest.mark.parametrize("shape", ["data_is_id", "result_is_id"])
async def test_some_shapes_are_for_submits_alone(caller: Caller, shape: str) -> None:
    """The feed of a gateway that answers submits with a bare id returns the envelope."""
    await caller.submit()
    caller.gateway.fault("feed", faults.OtherDialect(shape))
    assert (await caller.poll()).data["status"] == "3"


def fields_in(shape: str, body: Any) -> tuple[object, ...]:
    """Return the word, the URL and the reason in each of these shapes."""
    match shape:
        case "data_url":
            data = body["data"]
            return data["status"], data["url"], data["error"]
        case "unified":
            return body["task_status"], body["video_result"], body["message"]
        case "unified_list":
            return body["task_status"], body["video_results"][0]["url"], body["message"]
    return body["status"], *(body["output"] or [None]), body["error"]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("data_url", ("running", "succeeded", "error")),
        ("unified", ("processing", "succeed", "failed")),
        ("unified_list", ("processing", "succeed", "failed")),
        ("official_deer", ("RUNNING", "SUCCEEDED", "FAILED")),
    ],
)
async def test_a_poll_has_the_state_in_any_shape(
    caller: Caller, shape: str, words: tuple[str, str, str]
) -> None:
    """Each shape has its own words, and its own fields for the URL and the reason."""
    quiet = "" if shape.startswith("unified") else None
    error = {"code": "moderation_blocked", "message": "blocked"}
    caller.gateway.script("runs", then="stall", queued=0.0, dialect=shape)
    caller.gateway.script("ends", dialect=shape)
    caller.gateway.script(
        "fails",
        then="fail",
        reason="blocked",
        failure_code="moderation_blocked",
        dialect=shape,
    )
    shown = {}
    for prompt in ("runs", "ends", "fails"):
        await caller.submit(prompt=prompt)
        shown[prompt] = fields_in(shape, json.loads((await caller.poll()).body))
    url = shown["ends"][1]
    assert str(url).startswith(f"{caller.gateway.cdn_url}/attachments/")
    assert shown == {
        "runs": (words[0], None, quiet),
        "ends": (words[1], url, quiet),
        "fails": (words[2], None, "blocked" if quiet == "" else error),
    }


async def test_raw_video_url_may_be_the_input(caller: Caller) -> None:
    """While a video is restyled, `raw_video_url` is the one in the request."""
    caller.gateway.script(then="stall", queued=0.0, dialect="raw_is_input")
    video = "https://example.com/in.mp4"
    await caller.post("/runway/pro/video2video", {**BODY, "video": video})
    shown = (await caller.poll()).data
    assert (shown["status"], shown["video_url"], shown["raw_video_url"]) == ("1", None, video)


@pytest.mark.parametrize("word", ["error", "failed", "rejected", "aborted", "moderated", "失败"])
@pytest.mark.parametrize(("refund", "points"), [(True, "320"), (False, "0")])
@pytest.mark.parametrize("reason", ["content policy", None])
async def test_any_word_can_be_the_last_one(
    caller: Caller, word: str, *, refund: bool, points: str, reason: str | None
) -> None:
    """The words of an end, its refund and its reason are the script's."""
    caller.gateway.script(then="fail", end_status="", end_state=word, refund=refund, reason=reason)
    await caller.submit()
    shown = (await caller.poll()).data
    assert (shown["state"], shown["status"], shown["refund"]) == (word, "", points)
    assert shown["msg"] == reason
    assert caller.gateway.balance == (100_000.0 if refund else 99_680.0)
    assert caller.gateway.tasks[0].refunded is refund


async def test_the_words_of_an_end_wait_for_it(caller: Caller) -> None:
    """Before its end a task has the words of its dialect."""
    caller.gateway.script(then="stall", queued=0.0, end_status="9", end_state="ready")
    await caller.submit()
    shown = (await caller.poll()).data
    assert (shown["status"], shown["state"]) == ("1", "running")


async def test_a_success_may_have_any_word_too(caller: Caller) -> None:
    """A gateway may call a success `ok`."""
    caller.gateway.script(end_status="ok", end_state="ok")
    await caller.submit()
    shown = (await caller.poll()).data
    assert (shown["status"], shown["state"], shown["refund"]) == ("ok", "ok", "0")
    assert shown["video_url"]


@pytest.mark.parametrize(("refund", "credits_"), [(True, 0), (False, 320)])
async def test_an_official_failure_has_its_code_and_its_cost(
    caller: Caller, *, refund: bool, credits_: int
) -> None:
    """A refunded failure costs 0, and a moderated one may cost as much as a success."""
    caller.gateway.script(then="fail", failure_code="SAFETY.OUTPUT", reason="no", refund=refund)
    await caller.post("/runwayml/v1/image_to_video", OFFICIAL)
    shown = json.loads((await caller.get(f"/runwayml/v1/tasks/{caller.task_id}")).body)
    assert (shown["status"], shown["failure"], shown["failureCode"]) == (
        "FAILED",
        "no",
        "SAFETY.OUTPUT",
    )
    assert shown["cost"] == {"credits": credits_}
    assert "estimatedCost" not in shown


@pytest.mark.parametrize("duration", [2, 4, 6, 8, 10])
async def test_official_clips_have_many_lengths(caller: Caller, duration: int) -> None:
    """From two to ten seconds, each is priced by its length."""
    got = await caller.post("/runwayml/v1/image_to_video", {**OFFICIAL, "duration": duration})
    assert got.status == 200
    assert caller.gateway.tasks[0].points == 32.0 * duration


@pytest.mark.parametrize("duration", [1, 11, 2.5, True, "5"])
async def test_other_lengths_are_refused(caller: Caller, duration: object) -> None:
    """A length that no model supports makes no task."""
    got = await caller.post("/runwayml/v1/image_to_video", {**OFFICIAL, "duration": duration})
    assert (got.status, caller.gateway.submitted) == (400, 0)


@pytest.mark.parametrize(
    ("model", "seconds", "made"),
    [("gen4", 5, 1), ("gen4", 7, 0), ("gen9", 7, 1), ("gen9", 0, 0), ("gen9", "7", 0)],
)
async def test_an_unknown_model_accepts_any_length(
    caller: Caller, model: str, seconds: object, made: int
) -> None:
    """Lengths are checked only for the documented models."""
    await caller.submit(model=model, options={"seconds": seconds})
    assert caller.gateway.submitted == made


VIDEO = "https://example.com/in.mp4"
PICTURE = "https://example.com/1.jpeg"


@pytest.mark.parametrize(
    ("path", "body", "gone"),
    [
        ("/runway/pro/aleph", {"callback_url": PICTURE, "video": VIDEO, "prompt": "x"}, "video"),
        ("/runwayml/v1/text_to_video", {"promptText": "x"}, "promptText"),
        ("/runwayml/v1/image_to_video", {"promptText": "x"}, "promptText"),
        ("/runwayml/v1/video_to_video", {"videoUri": VIDEO, "promptText": "x"}, "videoUri"),
        (
            "/runwayml/v1/character_performance",
            {
                "character": {"type": "image", "uri": PICTURE},
                "reference": {"type": "video", "uri": VIDEO},
                "expressionIntensity": 3,
            },
            "reference",
        ),
        ("/runwayml/v1/video_upscale", {"videoUri": VIDEO}, "videoUri"),
    ],
)
async def test_the_later_routes_make_tasks_too(
    caller: Caller, path: str, body: dict[str, object], gone: str
) -> None:
    """Each documented route makes a task, and has one required field."""
    # The page of Aleph has no model.
    full = body if path.endswith("aleph") else {"model": "gen4", **body}
    del (less := dict(full))[gone]
    await caller.post(path, less)
    assert caller.gateway.submitted == 0
    assert caller.gateway.balance == 100_000.0
    await caller.post(path, full)
    action = caller.gateway.tasks[0].action
    assert action == path.rpartition("/")[2].upper()
    assert (await caller.poll()).data["video_url"]


PERFORMANCE = {
    "model": "act_two",
    "character": {"type": "image", "uri": PICTURE},
    "reference": {"type": "video", "uri": VIDEO},
}


@pytest.mark.parametrize(
    ("action", "body", "status"),
    [
        ("video_upscale", {"videoUri": "data:video/mp4;base64,aGk="}, 200),
        ("video_upscale", {"videoUri": "data:image/png;base64,aGk="}, 400),
        ("text_to_video", {"promptText": "x", "audio": True}, 200),
        ("text_to_video", {"promptText": "x", "audio": "yes"}, 400),
        ("video_to_video", {"videoUri": VIDEO, "promptText": "x", "references": "x"}, 400),
        ("video_to_video", {"videoUri": VIDEO, "promptText": "x", "references": ["x"]}, 400),
        (
            "video_to_video",
            {"videoUri": VIDEO, "promptText": "x", "references": [{"uri": PICTURE}]},
            200,
        ),
        ("character_performance", PERFORMANCE, 200),
        ("character_performance", {**PERFORMANCE, "bodyControl": 1}, 400),
        ("character_performance", {**PERFORMANCE, "reference": {"uri": VIDEO}}, 400),
        ("character_performance", {**PERFORMANCE, "character": {"uri": PICTURE}}, 400),
        ("character_performance", {**PERFORMANCE, "character": {"type": [], "uri": "x"}}, 400),
        (
            "character_performance",
            {**PERFORMANCE, "character": {"type": "image", "uri": "data:image/png;base64,aGk="}},
            200,
        ),
    ],
)
async def test_official_requests_are_checked(
    caller: Caller, action: str, body: dict[str, object], status: int
) -> None:
    """Each field has its own check; a wrong one makes no task."""
    got = await caller.post(f"/runwayml/v1/{action}", {"model": "gen4", **body})
    assert (got.status, caller.gateway.submitted) == (status, int(status == 200))


# Responses without a task.

SAID = {
    "no_credits": (
        400,
        (
            '{"error":"You do not have enough credits to run this task.",'
            '"docUrl":"https://docs.dev.runwayml.com/api"}'
        ),
    ),
    "no_credits_nested": (
        400,
        (
            r'{"code":"fail_to_fetch_task","message":"{\"error\":\"You do not have enough '
            r'credits to run this task.\",\"docUrl\":\"https://docs.dev.runwayml.com/api\"}","data":null}'
        ),
    ),
    "issues": (
        400,
        (
            '{"error":"Validation of body failed","issues":[{"code":"too_big","maximum":1000,'
            '"message":"Too big: expected string to have <=1000 characters",'
            '"path":["promptText"]}],"docUrl":"https://docs.dev.runwayml.com/api"}'
        ),
    ),
    "reference_images_empty": (
        400,
        '{"code":"reference_images_empty","message":"reference_images_empty","data":null}',
    ),
    "invalid_parameters": (
        400,
        '{"code":"invalid_parameters","message":"invalid_parameters","data":null}',
    ),
    "channel_disabled": (
        403,
        (
            '{"error":{"message":"该渠道已被禁用","type":"new_api_error","param":"",'
            '"code":"channel_disabled"}}'
        ),
    ),
    "task_channel_disable": (
        400,
        '{"code":"task_channel_disable","message":"channel is disabled","data":null}',
    ),
    "get_channel_failed": (
        500,
        '{"code":"get_channel_failed","message":"get_channel_failed","data":null}',
    ),
    "no_available_key": (
        500,
        '{"code":"no_available_key","message":"no_available_key","data":null}',
    ),
    "request_failed": (500, '{"code":"request_failed","message":"EOF","data":null}'),
    "insert_task_failed": (
        500,
        '{"code":"insert_task_failed","message":"database is locked","data":null}',
    ),
    "timed_out_in_400": (
        400,
        (
            '{"code":"fail_to_fetch_task","message":"<html><head><title>504 Gateway Time-out'
            '</title></head></html>","data":null}'
        ),
    ),
    "could_not_find_task": (404, '{"error":"Could not find Task"}'),
    "no_such_task": (
        404,
        '{"error":{"message":"视频任务不存在","type":"new_api_error","code":""}}',
    ),
    "task_not_exist_in_200": (
        200,
        '{"code":"task_not_exist","message":"task_not_exist","data":null}',
    ),
    "empty": (200, ""),
    "fatal_error": (
        200,
        (
            "<br />\n<b>Fatal error</b>:  Maximum execution time of 30 seconds exceeded in "
            "<b>/www/runway.php</b> on line <b>31</b><br />\n"
        ),
    ),
    "challenge": (
        403,
        (
            '<!DOCTYPE html><html lang="en-US"><head><title>Just a moment...</title></head><body>'
            "<noscript>Enable JavaScript and cookies to continue</noscript></body></html>"
        ),
    ),
    "captive_portal": (
        200,
        (
            "<html><head><meta http-equiv='refresh' content='0;url=http://portal.invalid/login'>"
            "</head><body>Please sign in to the network.</body></html>"
        ),
    ),
    "captive_portal_511": (511, "<html><body>Network Authentication Required</body></html>"),
    "no_tasks": (
        200,
        '{"data":{"page":1,"page_size":100,"total":0,"items":null},"message":"","success":true}',
    ),
    "no_charges": (200, '{"data":[],"message":"","success":true}'),
    "to_console": (301, ""),
    "see_other": (303, ""),
    "closed_request": (499, ""),
    "origin_error": (600, ""),
    "panic": (
        500,
        (
            '{"error":{"message":"Panic detected, error: runtime error: index out of range [0] '
            'with length 0","type":"new_api_panic"}}'
        ),
    ),
    "nothing": (200, '{"code":"success","data":null}'),
    "midjourney": (
        400,
        '{"description":"quota_not_enough","type":"upstream_error","code":4}',
    ),
    "request_limit": (
        429,
        (
            '{"error":{"message":"您已达到请求数限制：3分钟内最多请求20次","type":"new_api_error",'
            '"param":"","code":""}}'
        ),
    ),
    "banned": (403, '{"error":{"message":"用户已被封禁","type":"new_api_error"}}'),
    "invalid_signature": (401, '{"error":{"message":"Invalid signature","type":"401"}}'),
    "invalid_request_in_500": (
        500,
        (
            '{"error":{"message":"invalid request","type":"comet_api_error","param":"",'
            '"code":"invalid_request"}}'
        ),
    ),
    "without_a_word": (
        502,
        (
            '{"error":{"message":"","localized_message":"Unknown error","type":"shell_api_error",'
            '"param":"","code":""}}'
        ),
    ),
    "firewall": (
        405,
        (
            "<!doctype html><html><head><title>405</title></head><body>Sorry, your request has "
            "been blocked.</body></html>"
        ),
    ),
    "cloudflare_1015": (429, "error code: 1015"),
    "cloudflare_502": (502, "error code: 502"),
    "envoy_reset": (
        503,
        (
            "upstream connect error or disconnect/reset before headers. reset reason: connection "
            "termination"
        ),
    ),
    "envoy_no_upstream": (503, "no healthy upstream"),
    "nginx_413": (
        413,
        "<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n</html>\r\n",
    ),
    "gin_404": (404, "404 page not found"),
    "timed_out_in_json": (504, '{"message":"Endpoint request timed out"}'),
}
KNOWN_HEADERS = {
    "challenge": {"cf-mitigated": "challenge", "Server": "cloudflare"},
    "see_other": {"Location": "/login"},
    "cloudflare_1015": {"Retry-After": "1", "Server": "cloudflare"},
    "cloudflare_502": {"Server": "cloudflare"},
    "envoy_reset": {"server": "envoy"},
    "nginx_413": {"Server": "nginx"},
    "to_console": {"Location": "http://console.invalid/api/log/token?key=sk-simulated"},
}


@pytest.mark.parametrize("name", SAID)
async def test_a_known_answer_is_sent_to_the_byte(caller: Caller, name: str) -> None:
    """Status, body and headers are sent unchanged, and the log names the response."""
    caller.gateway.fault("submit", faults.known(name))
    got = await caller.submit()
    assert (got.status, got.text) == SAID[name]
    assert KNOWN_HEADERS.get(name, {}).items() <= got.headers.items()
    is_json = got.text.startswith("{") or (not got.text and name != "empty")
    assert got.headers["Content-Type"].startswith(JSON if is_json else "text/")
    assert caller.gateway.requests[-1].fault == name
    assert caller.gateway.submitted == (name in {"insert_task_failed", "timed_out_in_400"})


def test_every_known_answer_is_tried_here() -> None:
    """The table above has each of the simulator's known responses."""
    assert SAID.keys() == KNOWN.keys()


async def test_a_known_answer_may_hide_a_task(caller: Caller) -> None:
    """A page, or a failure that is charged, may come before or after the task was made."""
    caller.gateway.fault("submit", faults.known("fatal_error", accepted=True))
    caller.gateway.fault("submit", faults.known("insert_task_failed", accepted=False))
    assert (await caller.submit()).status == 200
    assert (caller.gateway.submitted, caller.gateway.balance) == (1, 99_680.0)
    assert (await caller.submit()).status == 500
    assert caller.gateway.submitted == 1


def test_an_unknown_known_answer_is_an_error() -> None:
    """The message lists the names."""
    with pytest.raises(
        ValueError, match="name='x' is unknown; the known responses are: no_credits, "
    ):
        faults.known("x")


@pytest.mark.parametrize("status", [307, 401, 402, 403, 404, 408, 409, 425, 444, 460, 499, 600])
async def test_any_status_can_come_alone(caller: Caller, status: int) -> None:
    """A response may be only a status."""
    caller.gateway.fault("feed", faults.Response(status))
    got = await caller.post("/runway/feed", {"task_id": "x"})
    assert (got.status, got.body, got.headers["Content-Length"]) == (status, b"", "0")


PROMPT = "a busy street & 'two' <cats> in the rain, at night"
QUOTED = {
    "plain": PROMPT,
    "cut": "a busy street & 'two' <cats> in the rain...",
    "html": "a busy street &amp; &#x27;two&#x27; &lt;cats&gt; in the rain, at night",
    "url": "a%20busy%20street%20%26%20%27two%27%20%3Ccats%3E%20in%20the%20rain%2C%20at%20night",
    "json": json.dumps(json.dumps(PROMPT)),
}


@pytest.mark.parametrize("how", QUOTED)
async def test_a_refusal_may_quote_the_prompt(caller: Caller, how: Any) -> None:
    """The refusal contains the prompt, in one of five spellings."""
    caller.gateway.fault("submit", faults.QuotesPrompt(how))
    got = await caller.submit(prompt=PROMPT)
    message = json.loads(got.body)["error"]["message"]
    assert got.status == 400
    assert message.startswith(f"not allowed: '{QUOTED[how]}' (request id: ")
    assert caller.gateway.submitted == 0


async def test_a_refusal_may_be_megabytes_long(caller: Caller) -> None:
    """The message of a 400 may be larger than a client should read."""
    caller.gateway.fault("submit", faults.error(400, "a" * 2 * 1024 * 1024))
    got = await caller.submit()
    assert got.status == 400
    assert len(json.loads(got.body)["error"]["message"]) > 2 * 1024 * 1024


# Around a response.


@pytest.mark.parametrize("status", [102, 103])
async def test_an_informational_answer_comes_first(caller: Caller, status: int) -> None:
    """A 1xx and the right response are two heads in one stream."""
    caller.gateway.fault("submit", faults.Informational(status))
    first, _, then = (await caller.submit()).raw.partition(b"\r\n\r\n")
    assert first == b"HTTP/1.1 %d Early\r\nLink: </style.css>; rel=preload" % status
    assert Got(then).status == 200
    assert Got(then).data["task_id"] == caller.task_id


async def test_an_informational_answer_may_be_all(caller: Caller) -> None:
    """A connection may close after a 103, and the task exists."""
    caller.gateway.fault("submit", faults.Informational(103, faults.Drop(accepted=True)))
    got = await caller.submit()
    assert got.raw.startswith(b"HTTP/1.1 103 ")
    assert got.body == b""
    assert caller.gateway.submitted == 1


@pytest.mark.usefixtures("virtual")
async def test_an_informational_answer_may_find_its_client_gone(caller: Caller) -> None:
    """The task is made for a client that disconnects before the 103."""
    caller.gateway.fault("submit", faults.Slow(5.0, faults.Informational()))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await caller.submit()
    await asyncio.sleep(10.0)
    assert caller.gateway.submitted == 1


@pytest.mark.parametrize(("size", "count"), [(8200, 1), (10, 200)])
async def test_a_head_may_be_large(caller: Caller, size: int, count: int) -> None:
    """The right response has one more header of 8,200 bytes, or two hundred."""
    large = tuple((f"X-Policy-{number}", "a" * size) for number in range(count))
    caller.gateway.fault("submit", faults.Head(headers=large))
    got = await caller.submit()
    more = [value for name, value in got.headers.items() if name.startswith("X-Policy-")]
    assert more == ["a" * size] * count
    assert got.data["task_id"] == caller.task_id


RETRY_AFTER = ["1893456000", "86400", "Thu, 01 Jan 2099 00:00:00 GMT", "1e400", "NaN", "-1", ""]


@pytest.mark.parametrize("value", RETRY_AFTER)
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("form", "name"), [("seconds", "Retry-After"), ("milliseconds", "retry-after-ms")]
)
async def test_retry_after_may_say_anything(
    caller: Caller, value: str, status: Any, form: Any, name: str
) -> None:
    """Text is sent unchanged, on 429 and on 503, in both headers."""
    fault = faults.TooManyRequests(value, form, status=status)
    caller.gateway.fault("submit", fault)
    got = await caller.submit()
    assert (got.status, got.headers[name]) == (status, value)
    assert caller.gateway.submitted == 0


async def test_a_long_retry_after_is_written_out(caller: Caller) -> None:
    """A number is not rounded, and downloads and polls may have the header as well."""
    video = await caller.video_url()
    caller.gateway.fault("feed", faults.TooManyRequests(86400123, status=503))
    caller.gateway.fault("download", faults.TooManyRequests(1893456.5, "milliseconds"))
    assert (await caller.poll()).headers["Retry-After"] == "86400123"
    got = await caller.fetch(video)
    assert (got.status, got.headers["retry-after-ms"]) == (429, "1893456500")


# Balance and keys.


async def test_the_balance_of_a_token_needs_the_last_slash(caller: Caller) -> None:
    """Without it New-API's router redirects to the same path with a slash."""
    got = await caller.get("/api/usage/token")
    assert (got.status, got.headers["Location"]) == (301, "/api/usage/token/")
    assert got.text == '<a href="/api/usage/token/">Moved Permanently</a>.\n\n'
    assert got.headers["Content-Type"] == HTML
    assert (await caller.get("/api/usage/token/")).data["object"] == "token_usage"


async def test_duomi_takes_the_key_from_the_body() -> None:
    """The key is the field `key`, without Authorization; it is not kept."""
    async with running(key_style="body", feed_verb="any") as caller:
        body = {**BODY, "key": "sk-simulated"}
        path = "/api/video/runway"
        assert (await caller.post(f"{path}/pro/generate", body, Authorization="")).status == 200
        poll = {"key": "sk-simulated", "task_id": caller.task_id}
        assert (await caller.post(f"{path}/feed", poll, Authorization="")).data["status"] == "3"
        refused = await caller.post(f"{path}/pro/generate", BODY)
        assert (refused.status, caller.gateway.submitted) == (401, 1)


# Files.


async def test_an_exact_link_answers_to_its_own_bytes_only() -> None:
    """Unquoting a character, or quoting one more, breaks the signature."""
    async with running(exact_links=True) as caller:
        url = await caller.video_url()
        name = caller.task_id.replace("-", "")
        assert f"/{name}%27s.mp4?Policy=a%2Fb&_jwt=" in url
        assert url.endswith("&Signature=x%7Ey")
        assert (await caller.fetch(url)).status == 200
        for right, wrong in (("%27", "'"), ("%2F", "/"), ("%7E", "~"), ("%7E", "%7e")):
            got = await caller.fetch(url.replace(right, wrong))
            assert (got.status, b"SignatureDoesNotMatch" in got.body) == (403, True)


async def test_a_redirect_may_lead_to_an_exact_link() -> None:
    """The URL in `Location` has to be requested byte for byte, too."""
    async with running(exact_links=True, media="redirect") as caller:
        url = await caller.video_url()
        assert "%" not in url
        led = await caller.fetch(url)
        assert led.status == 302
        assert led.headers["Location"].startswith(caller.gateway.cdn_url)
        assert led.headers["Location"].endswith("&Signature=x%7Ey")
        assert (await caller.fetch(led.headers["Location"])).status == 200
        stale = await caller.fetch(url.replace("_jwt=", "_jwt=0"))
        assert (await caller.fetch(stale.headers["Location"])).status == 403


async def test_an_address_may_be_relative_to_the_gateway() -> None:
    """`video_url` has a path without an origin, and the API serves it."""
    async with running(media="relative") as caller:
        path = await caller.video_url()
        assert path.startswith("/attachments/video/runway/")
        got = await caller.get(path)
        assert (got.status, got.headers["Content-Type"]) == (200, "video/mp4")
    with pytest.raises(ValueError, match='is not one of "cdn", "api", "redirect", "relative"'):
        Simulator(media="disk")  # type: ignore[arg-type]


async def test_a_file_may_come_in_gzip(caller: Caller) -> None:
    """The length is that of the compressed bytes, and a bomb is much larger when unpacked."""
    whole = await caller.download()
    caller.gateway.fault("download", faults.Gzipped())
    caller.gateway.fault("download", faults.Gzipped(megabytes=4))
    got = await caller.download()
    assert (got.status, got.headers["Content-Encoding"]) == (200, "gzip")
    assert got.headers["Content-Length"] == str(len(got.body))
    assert len(gzip.decompress(got.body)) == len(whole.body)
    bomb = (await caller.download()).body
    assert len(bomb) < 100_000
    assert len(gzip.decompress(bomb)) == len(whole.body) + 4 * 1024 * 1024


async def test_a_chunked_file_may_have_a_byte_more(caller: Caller) -> None:
    """Bytes may follow in the last chunk, or after the end of the body."""
    whole = (await caller.download()).body
    caller.gateway.fault("download", faults.Chunked())
    caller.gateway.fault("download", faults.Chunked(extra="\n"))
    caller.gateway.fault("download", faults.Chunked(behind="\r\nX"))
    for extra, behind in ((0, b""), (1, b""), (0, b"\r\nX")):
        got = await caller.download()
        assert (got.headers["Transfer-Encoding"], "Content-Length" in got.headers) == (
            "chunked",
            False,
        )
        size, _, rest = got.body.partition(b"\r\n")
        length = int(size, 16)
        assert length == len(whole) + extra
        assert rest[length:] == b"\r\n0\r\n\r\n" + behind


@pytest.mark.parametrize("content_range", [None, "bytes */0"])
async def test_a_range_may_be_refused(caller: Caller, content_range: str | None) -> None:
    """Every request for a range gets a 416, every other the file."""
    caller.gateway.fault("download", faults.RefusesRange(content_range), times=None)
    got = await caller.download(Range="bytes=5-")
    assert (got.status, got.body, got.headers.get("Content-Range")) == (416, b"", content_range)
    assert (await caller.download()).status == 200


@pytest.mark.parametrize("last_modified", [True, False])
async def test_a_file_may_have_no_etag(caller: Caller, *, last_modified: bool) -> None:
    """Only Last-Modified, or no header at all, identifies the version of a file."""
    gone = ["ETag"] if last_modified else ["ETag", "Last-Modified"]
    caller.gateway.fault("download", faults.Head(headers=tuple((name, None) for name in gone)))
    got = await caller.download()
    assert "ETag" not in got.headers
    assert ("Last-Modified" in got.headers) is last_modified


@pytest.mark.parametrize(
    ("fault", "status", "size"),
    [
        (faults.Response(202, '{"s":"wait"}'), 202, 12),
        (faults.Response(204), 204, 0),
        (faults.Response(404), 404, 0),
        (faults.Response(200, "", "video/mp4"), 200, 0),
        (faults.known("captive_portal"), 200, 140),
    ],
)
async def test_a_file_may_not_be_ready_yet(
    caller: Caller, fault: Fault, status: int, size: int
) -> None:
    """The host responds in several ways before it serves the file."""
    caller.gateway.fault("download", fault)
    got = await caller.download()
    assert (got.status, len(got.body)) == (status, size)
    assert (await caller.download()).body[4:8] == b"ftyp"


# Weather.


async def test_weather_depends_on_the_seed() -> None:
    """Two gateways with one seed have the same faults, and the log names each of them."""
    runs = []
    for _ in range(2):
        async with running(weather=0.5, seed=1) as caller:
            for _ in range(20):
                await caller.submit()
            runs.append([one.fault for one in caller.gateway.requests])
            got = [one for one in caller.gateway.requests if one.status == 200]
            assert caller.gateway.submitted == len(got)
    assert runs[0] == runs[1]
    assert {"OtherDialect raw_control", "TooManyRequests", None} <= set(runs[0])


@pytest.mark.parametrize("weather", [-0.1, 1.1])
def test_weather_is_a_share(weather: float) -> None:
    """Its share is at most 1."""
    with pytest.raises(ValueError, match="weather"):
        Simulator(weather=weather)


async def test_plans_come_before_the_weather() -> None:
    """A planned fault happens first; an unknown path has no weather."""
    async with running(weather=1.0) as caller:
        caller.gateway.fault("submit", faults.Response(418))
        assert (await caller.submit()).status == 418
        await caller.get("/nowhere")
        assert [one.fault for one in caller.gateway.requests] == ["Response", None]


# Valid faults.


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: faults.Response(99), "Response: status=99 is not a whole number from 200 to 999"),
        (lambda: faults.Response(status=True), "Response: status=True is not a whole number"),
        (lambda: faults.Response("200"), "Response: status='200' is not a whole number"),
        (lambda: faults.Response(200, b"x"), "Response: body=b'x' is not text"),
        (
            lambda: faults.Response(200, headers={"a": "b"}),
            "Response: headers={'a': 'b'} is not pairs of a header and its value",
        ),
        (
            lambda: faults.Response(200, headers=(("a", "b\r\nc"),)),
            r"Response: headers=\(\('a', 'b\\r\\nc'\),\) is not pairs",
        ),
        (lambda: faults.Drop(accepted="yes"), "Drop: accepted='yes' is not true or false"),
        (
            lambda: faults.Hang(after_bytes=-1),
            "Hang: after_bytes=-1 is not a whole number from 0 to 1000000000, or None",
        ),
        (lambda: faults.Slow(float("nan")), "Slow: seconds=nan is not a number from 0"),
        (lambda: faults.Slow(1, then="Drop"), "Slow: then='Drop' is not a Fault, or None"),
        (
            lambda: faults.TooManyRequests(1, form="hours"),
            'TooManyRequests: form=.hours. is not one of "seconds", "milliseconds", "date"',
        ),
        (
            lambda: faults.TooManyRequests(-1),
            "TooManyRequests: retry_after=-1 is not a number from 0 to 1000000000, or text, or",
        ),
        (lambda: faults.Informational(200), "Informational: status=200 is not .* 102 to 199"),
    ],
)
def test_an_invalid_fault_says_why(make: Any, shown: str) -> None:
    """The message names the fault, the field, the value and what is allowed."""
    with pytest.raises(ValueError, match=shown):
        make()


def test_what_follows_a_slow_fault_has_its_places_too() -> None:
    """A fault of the feed does not happen to a submit, also after a delay."""
    with pytest.raises(ValueError, match=r"NoUrl.* cannot happen on 'submit'"):
        faults.on("submit", faults.Slow(1, faults.NoUrl()))
