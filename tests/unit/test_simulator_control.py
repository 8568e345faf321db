import asyncio
import json
import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any

import aiohttp
import attrs
import pytest

from fuhu_runway.testing import Callbacks, LedgerEntry, Seen, Simulator, TaskView, faults
from fuhu_runway.testing._control import arguments as _arguments
from fuhu_runway.testing._control import commands as _control

GENERATE = "/runway/pro/generate"
BODY = {"callback_url": "https://callback.invalid/", "prompt": "a kitten", "model": "gen4"}
KEY = "sk-simulated"


@attrs.define
class Caller:
    """A program that knows only URLs and JSON."""

    gateway: Simulator
    session: aiohttp.ClientSession

    async def send(self, line: str, body: object = None, **options: Any) -> tuple[int, Any]:
        method, _, path = line.partition(" ")
        url = f"{self.gateway.control_url}/{path}"
        async with self.session.request(method, url, json=body, **options) as response:
            assert response.content_type == "application/json"
            return response.status, await response.json()

    async def result(self, line: str, body: object = None) -> Any:
        status, answer = await self.send(line, body)
        assert status == 200, answer
        return answer

    async def refusal(self, line: str, body: object = None, **options: Any) -> Any:
        status, answer = await self.send(line, body, **options)
        assert status == 400, answer
        return answer["error"]

    async def call(self, path: str, body: object, key: str = KEY) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{self.gateway.base_url}{path}"
        async with self.session.post(url, json=body, headers=headers) as response:
            return response.status, await response.text()

    async def submit(self, prompt: str = "a kitten", **changes: Any) -> str:
        status, text = await self.call(GENERATE, BODY | {"prompt": prompt} | changes)
        assert status == 200, text
        return str(json.loads(text)["data"]["task_id"])

    async def poll(self, task_id: str) -> dict[str, Any]:
        status, text = await self.call("/runway/feed", {"task_id": task_id})
        assert status == 200, text
        data: dict[str, Any] = json.loads(text)["data"]
        return data


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Caller]:
    """Yield a caller of a gateway with a control API."""
    async with (
        Simulator(control=True, **options) as gateway,
        aiohttp.ClientSession() as session,
    ):
        yield Caller(gateway, session)


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    """Yield a caller of a controlled gateway whose tasks end at once."""
    async with running(takes=0.0) as caller:
        yield caller


# Addresses.


async def test_without_the_option_there_is_no_control_api() -> None:
    """By default the paths of the control API are unknown."""
    async with Simulator() as gateway, aiohttp.ClientSession() as session:
        async with session.get(f"{gateway.base_url}/-/health") as response:
            assert response.content_type == "text/html"
        with pytest.raises(RuntimeError, match=r"Simulator\(control=True\)"):
            _ = gateway.control_url


async def test_it_has_no_address_before_the_start() -> None:
    """The control URL is known as soon as the API's URL is, and not before."""
    with pytest.raises(RuntimeError, match="has not been started"):
        _ = Simulator(control=True).control_url


@pytest.mark.parametrize("prefix", ["/-", "/-/runway"])
def test_no_gateway_may_use_its_prefix(prefix: str) -> None:
    """A gateway whose routes would overlap with the control API cannot be made."""
    with pytest.raises(ValueError, match="where the control API is"):
        Simulator(control=True, prefix=prefix)


async def test_its_health_has_the_simulated_time() -> None:
    """A program can read whether the gateway is started, and its simulated time."""
    async with running(speed=1_000_000) as caller:
        health = await caller.result("GET health")
        later = await caller.result("GET health")
    assert health["status"] == "ok"
    assert 0 < health["now"] < later["now"]


async def test_the_options_have_every_address_and_no_key() -> None:
    """The options of the gateway are listed, a function as null, and its key is not."""
    async with running(takes=lambda _: 5.0, points=7, callbacks=None, api_key="sk-x") as caller:
        options = await caller.result("GET options")
    assert options["base_url"] == caller.gateway.base_url
    assert options["cdn_url"] == caller.gateway.cdn_url
    assert options["control_url"] == f"{options['base_url']}/-"
    assert (options["takes"], options["points"], options["callbacks"]) == (None, 7, None)
    assert "sk-x" not in json.dumps(options)


async def test_every_option_that_json_can_represent_is_listed() -> None:
    """Only keys, bytes, paths and internals are left out."""
    async with running(callbacks=Callbacks(times=2)) as caller:
        options = await caller.result("GET options")
    fields = {field.name for field in attrs.fields(Simulator) if field.init}
    apart = {
        "api_key",
        "access_token",
        "host",
        "port",
        "cdn_port",
        "video",
        "state_file",
        "control",
    }
    apart |= {"log_limit", "rate_limit_response"}
    assert options.keys() - {"base_url", "cdn_url", "control_url", "keeps_state"} == fields - apart
    assert options["callbacks"] == attrs.asdict(Callbacks(times=2))


# Access.


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Host", "rebound.example"),
        ("Host", "127.0.0.1.rebound.example:80"),
        ("Host", "[not an address"),
        ("Host", ""),
        ("Origin", "https://a.page.example"),
        ("Origin", "null"),
        ("Origin", "http://127.0.0.1:1"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ],
)
async def test_a_web_page_is_refused(caller: Caller, header: str, value: str) -> None:
    """A page of another site, even with a rebound name, changes and reads nothing."""
    status, answer = await caller.send("POST faults", {}, headers={header: value})
    assert (status, answer["error"]["field"]) == (403, header)


@pytest.mark.parametrize("host", ["127.0.0.1:1234", "localhost:1234", "[::1]:1234", "127.9.9.9"])
async def test_every_name_of_this_machine_will_do(caller: Caller, host: str) -> None:
    """Requests may use any name of this machine."""
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert (await caller.send("GET health", headers=headers))[0] == 200


async def test_a_request_without_a_host_is_refused(caller: Caller) -> None:
    """Even HTTP/1.0 requests need a Host."""
    reader, writer = await asyncio.open_connection(caller.gateway.host, caller.gateway.port)
    writer.write(b"GET /-/health HTTP/1.0\r\n\r\n")
    assert b" 403 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_a_caller_may_disconnect_within_its_request(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    """A caller that disconnects before its body is complete causes no log line."""
    _, writer = await asyncio.open_connection(caller.gateway.host, caller.gateway.port)
    head = (
        f"POST /-/faults HTTP/1.1\r\nHost: {caller.gateway.host}\r\nContent-Length: 100\r\n\r\n{{"
    )
    writer.write(head.encode())
    await writer.drain()
    await caller.result("GET health")
    writer.transport.abort()
    await caller.result("GET health")
    await caller.gateway.aclose()
    assert caplog.records == []


# Invalid requests.


@pytest.mark.parametrize("line", ["GET nothing", "GET ", "GET tasks/", "GET kinds/faults"])
async def test_an_unknown_path_lists_the_commands(caller: Caller, line: str) -> None:
    """A wrong path is a 404 that lists every command."""
    status, answer = await caller.send(line)
    assert status == 404
    assert answer["error"]["allowed"] == [command.line for command in _control.COMMANDS]


async def test_the_bare_prefix_lists_the_commands(caller: Caller) -> None:
    """The prefix itself is a 404 that lists every command."""
    async with caller.session.get(caller.gateway.control_url) as response:
        assert response.status == 404
        assert "GET /-/health" in await response.text()


async def test_a_wrong_method_names_the_right_ones(caller: Caller) -> None:
    """A wrong method is a 405 that lists the allowed ones."""
    status, answer = await caller.send("POST plans", {})
    assert status == 405
    assert answer["error"]["allowed"] == ["GET /-/plans", "DELETE /-/plans"]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("GET tasks?colour=red", "colour"),
        ("GET health?now=1", "now"),
        ("GET tasks?prompt=a&prompt=b", "query"),
        ("GET tasks?state=asleep", "state"),
        ("GET requests?where=moon", "where"),
        ("POST reset?all=1", "query.all"),
    ],
)
async def test_a_query_is_checked_like_a_body(caller: Caller, line: str, field: str) -> None:
    """An unknown filter is refused rather than ignored, since tests rely on filters."""
    assert (await caller.refusal(line))["field"] == field


@pytest.mark.parametrize(
    "raw",
    [b"{", b"\xff", b"[" * 100_000],
    ids=["cut", "bytes", "deep"],
)
async def test_a_body_that_is_not_json_is_refused(caller: Caller, raw: bytes) -> None:
    """The error names the body."""
    url = f"{caller.gateway.control_url}/faults"
    async with caller.session.post(url, data=raw) as response:
        assert response.status == 400
        assert (await response.json())["error"]["field"] == "body"


async def test_a_fault_that_is_nested_too_deeply_is_refused(caller: Caller) -> None:
    """A fault inside hundreds of others is refused, and the gateway goes on."""
    deep = '{"kind": "Slow", "seconds": 1, "then": ' * 400 + "null" + "}" * 400
    url = f"{caller.gateway.control_url}/faults"
    body = f'{{"where": "feed", "fault": {deep}}}'
    async with caller.session.post(url, data=body) as response:
        assert response.status == 400
        assert "deep" in await response.text()


async def test_a_body_that_is_too_large_is_refused(caller: Caller) -> None:
    """A body above the limit is a 413, in JSON as well."""
    url = f"{caller.gateway.control_url}/scripts"
    async with caller.session.post(url, data=BytesIO(b" " * 21_000_000)) as response:
        assert response.status == 413
        assert (await response.json())["error"]["field"] == "body"


# Scripts.


async def test_a_script_for_a_prompt_says_how_its_task_ends(caller: Caller) -> None:
    """It applies to tasks with exactly that prompt."""
    await caller.result(
        "POST scripts", {"prompt": "a kitten", "then": "fail", "reason": "no kittens"}
    )
    assert (await caller.poll(await caller.submit("a kitten")))["msg"] == "no kittens"
    assert (await caller.poll(await caller.submit("a kitten too")))["video_url"]


async def test_a_script_for_a_pattern_says_how_its_tasks_end(caller: Caller) -> None:
    """It applies to each task whose prompt contains the pattern."""
    await caller.result("POST scripts", {"pattern": "(?i)KITTEN$", "url_after": None})
    assert (await caller.poll(await caller.submit("two kittens")))["video_url"]
    for prompt in ("a kitten", "another kitten"):
        seen = await caller.poll(await caller.submit(prompt))
        assert (seen["state"], seen["video_url"]) == ("succeeded", None)


async def test_a_script_without_a_name_is_for_the_next_task(caller: Caller) -> None:
    """Scripts without prompt or pattern are used in order, each by one task."""
    await caller.result("POST scripts", {"then": "fail"})
    await caller.result("POST scripts", {"takes": 1e6, "dialect": "new_api"})
    assert (await caller.result("GET counters"))["scripts_waiting"] == 2
    assert (await caller.poll(await caller.submit()))["state"] == "error"
    task = json.loads((await caller.call(GENERATE, BODY))[1])["data"]
    assert task["status"] == "NOT_START"
    assert (await caller.poll(await caller.submit()))["state"] == "succeeded"
    assert (await caller.result("GET counters"))["scripts_waiting"] == 0


async def test_every_field_of_a_script_arrives(caller: Caller) -> None:
    """Every argument of `Simulator.script` that JSON can represent reaches the script."""
    wanted = {
        "prompt": "a",
        "takes": 5,
        "then": "succeed",
        "dialect": "luma",
        "faults": [
            {
                "where": "download",
                "fault": {"kind": "Slow", "seconds": 1, "then": "Redirect"},
                "times": None,
                "share": 0.5,
            }
        ],
        "progress": [1, 99],
        "queued": 0.5,
        "reason": None,
        "failure_code": "INTERNAL",
        "refund": False,
        "end_status": "",
        "end_state": "rejected",
        "hidden": 1,
        "blank": 2.5,
        "url_after": 3,
        "listed_after": None,
    }
    shown = (await caller.result("POST scripts", wanted))["script"]
    redirect = {"kind": "Redirect", "status": 302, "loop": False}
    slow = {"kind": "Slow", "seconds": 1, "then": redirect}
    faults_ = [{"where": "download", "fault": slow, "times": None, "share": 0.5}]
    assert shown == {**wanted, "for": "prompt", "faults": faults_}
    assert wanted.keys() | {"pattern"} == _control.SCRIPT.keys()


async def test_the_defaults_are_those_of_the_reference(caller: Caller) -> None:
    """An empty script has the defaults that the reference lists."""
    shown = (await caller.result("POST scripts", {}))["script"]
    stated = {name: field.default for name, field in _control.SCRIPT.items()}
    del stated["prompt"], stated["pattern"]
    assert shown == {"for": "next"} | json.loads(json.dumps(stated))


async def test_the_faults_of_a_script_happen(caller: Caller) -> None:
    """A fault in a script happens to that script's task."""
    trouble = {"where": "submit", "fault": {"kind": "server_error", "status": 503}}
    await caller.result("POST scripts", {"prompt": "b", "faults": [trouble]})
    assert (await caller.call(GENERATE, BODY))[0] == 200
    assert (await caller.call(GENERATE, BODY | {"prompt": "b"}))[0] == 503


@pytest.mark.parametrize(
    ("body", "field", "allowed"),
    [
        ({"colour": "red"}, "colour", "prompt"),
        ([], "body", "an object"),
        ({"prompt": 1}, "prompt", "text"),
        ({"prompt": None}, "prompt", "text"),
        ({"prompt": "\ud800"}, "prompt", "text"),
        ({"pattern": 1}, "pattern", "regular expression"),
        ({"pattern": "("}, "pattern", "regular expression"),
        ({"prompt": "a", "pattern": "a"}, "pattern", "prompt"),
        ({"takes": -1}, "takes", "a number from 0"),
        ({"takes": "5"}, "takes", "a number from 0"),
        ({"takes": True}, "takes", "a number from 0"),
        ({"takes": 1e300}, "takes", "a number from 0"),
        ({"then": "explode"}, "then", '"stall"'),
        ({"dialect": "klingon"}, "dialect", '"envelope"'),
        ({"progress": 5}, "progress", "a list"),
        ({"progress": [5, 101]}, "progress[1]", "from 0 to 100"),
        ({"queued": 2}, "queued", "from 0 to 1"),
        ({"then": "fail", "url_after": 1}, "url_after", "succeed"),
        ({"faults": [{"where": "feed"}]}, "faults[0].fault", "a fault"),
        ({"faults": [{"where": "balance", "fault": "Drop"}]}, "faults[0].where", '"submit"'),
        ({"faults": [{"where": "feed", "fault": "Redirect"}]}, "faults[0].where", "download"),
        ({"faults": [{"where": "feed", "fault": 1}]}, "faults[0].fault.kind", '"Drop"'),
        ({"faults": ["Drop"]}, "faults[0]", "an object"),
    ],
)
async def test_an_invalid_script_is_refused(
    caller: Caller, body: object, field: str, allowed: str
) -> None:
    """The error names the field and what is allowed, and no script is added."""
    shown = await caller.refusal("POST scripts", body)
    assert shown["field"] == field
    assert field in shown["message"]
    assert allowed in json.dumps(shown["allowed"], ensure_ascii=False).replace('\\"', '"')
    assert (await caller.result("GET plans")) == {"scripts": [], "faults": []}


async def test_an_invalid_value_is_shown(caller: Caller) -> None:
    """The value is in the response, and only the beginning of a long one."""
    assert (await caller.refusal("POST scripts", {"queued": 2}))["value"] == 2
    shown = await caller.refusal("POST scripts", {"then": "x" * 5000})
    assert len(shown["value"]) < 300
    url = f"{caller.gateway.control_url}/scripts"
    async with caller.session.post(url, data='{"takes": 1e999}') as response:
        assert (await response.json())["error"]["value"] == "Infinity"


async def test_a_bad_pattern_says_what_is_bad(caller: Caller) -> None:
    """Python's own error about a regular expression is passed on."""
    assert "missing )" in (await caller.refusal("POST scripts", {"pattern": "("}))["message"]


# Faults.


def example(kind: str) -> dict[str, Any]:
    """Return a fault of this kind with its required fields."""
    needed: dict[str, Any] = {
        "seconds": 1,
        "status": 500,
        "dialect": "luma",
        "bytes_per_second": 1000,
        "code": "x",
        "name": "challenge",
        "url": "http://cdn..example/c.mp4",
    }
    fields = _arguments.FAULTS[kind].fields
    return {"kind": kind} | {
        name: needed[name] for name, field in fields.items() if field.default is _arguments.REQUIRED
    }


@pytest.mark.parametrize("kind", _arguments.FAULTS)
async def test_each_kind_of_fault_can_be_planned(caller: Caller, kind: str) -> None:
    """Each fault can be planned by name, and the response can be sent to plan it again."""
    for where in _arguments.FAULTS[kind].places:
        wanted = {"where": where, "fault": example(kind)}
        shown = (await caller.result("POST faults", wanted))["fault"]
        assert (shown["where"], shown["times"], shown["seconds"]) == (where, 1, None)
        again = await caller.result("POST faults", shown)
        assert again["fault"] == shown


def test_each_fault_of_the_module_has_a_kind() -> None:
    """Every fault of `faults` can be used in JSON."""
    made = {
        name
        for name, thing in vars(faults).items()
        if getattr(thing, "__module__", "") == faults.__name__ and not name.startswith("_")
    }
    assert _arguments.FAULTS.keys() == made - {"Fault", "Planned", "on"}


async def test_the_kinds_are_listed(caller: Caller) -> None:
    """A program can read every ending, dialect and fault, and what each field allows."""
    kinds = await caller.result("GET kinds")
    assert "stall" in kinds["endings"]
    assert "mixed" in kinds["dialects"]
    assert kinds["faults"]["Slow"]["fields"]["seconds"] == {
        "allowed": "a number from 0 to 1000000000"
    }
    assert kinds["faults"]["Response"]["fields"]["headers"]["default"] == {}
    assert kinds["faults"]["ExpiredLink"]["where"] == ["download"]
    assert kinds["faults"]["drop_after_accepting"]["description"].startswith(
        "The connection closes"
    )


async def test_a_fault_happens_as_often_as_it_was_planned(caller: Caller) -> None:
    """Two requests fail, the third does not, and the remaining count is shown in between."""
    await caller.result("POST faults", {"where": "feed", "fault": "html_page", "times": 2})
    task_id = await caller.submit()
    assert (await caller.call("/runway/feed", {"task_id": task_id}))[1].startswith("<!doctype")
    assert (await caller.result("GET plans"))["faults"][0]["times"] == 1
    assert (await caller.call("/runway/feed", {"task_id": task_id}))[1].startswith("<!doctype")
    assert (await caller.result("GET plans"))["faults"] == []
    assert (await caller.poll(task_id))["video_url"]


async def test_a_fault_ends_when_its_time_is_over(caller: Caller) -> None:
    """The plan of a fault shows the remaining seconds."""
    wanted = {"where": "feed", "fault": "Drop", "times": None, "seconds": 1000}
    assert 0 < (await caller.result("POST faults", wanted))["fault"]["seconds"] <= 1000
    await caller.result("POST faults", {**wanted, "seconds": 0.5e-6})
    await asyncio.sleep(0)
    assert (await caller.result("GET counters"))["faults_waiting"] == 1


async def test_an_answer_is_sent_as_planned(caller: Caller) -> None:
    """The client gets the status, headers and body of a planned answer."""
    fault = {
        "kind": "Response",
        "status": 418,
        "body": "täpot",
        "content_type": "text/plain; charset=utf-8",
        "headers": {"X-Tea": "green"},
    }
    await caller.result("POST faults", {"where": "submit", "fault": fault})
    url, headers = f"{caller.gateway.base_url}{GENERATE}", {"Authorization": f"Bearer {KEY}"}
    async with caller.session.post(url, json=BODY, headers=headers) as response:
        assert (response.status, response.headers["X-Tea"]) == (418, "green")
        assert await response.text() == "täpot"


@pytest.mark.parametrize(
    ("where", "fault", "field", "allowed"),
    [
        ("moon", "Drop", "where", '"balance"'),
        ("feed", "Explosion", "fault.kind", '"Drop"'),
        ("feed", {}, "fault.kind", '"Drop"'),
        ("feed", None, "fault.kind", '"Drop"'),
        ("feed", {"kind": "Drop", "hard": True}, "fault.hard", "accepted"),
        ("feed", {"kind": "Drop", "accepted": 1}, "fault.accepted", "true or false"),
        ("feed", {"kind": "Slow"}, "fault.seconds", "a number from 0"),
        ("feed", {"kind": "Slow", "seconds": -1}, "fault.seconds", "a number from 0"),
        ("feed", {"kind": "Slow", "seconds": math.nan}, "fault.seconds", "a number from 0"),
        ("feed", {"kind": "Slow", "seconds": 1, "then": "Redirect"}, "where", "download"),
        ("feed", "Redirect", "where", "download"),
        ("submit", "NoUrl", "where", "feed"),
        ("feed", {"kind": "Response", "status": 99}, "fault.status", "from 200 to 999"),
        ("feed", {"kind": "Response", "status": 200.5}, "fault.status", "a whole number"),
        ("feed", {"kind": "Response", "status": 200, "headers": []}, "fault.headers", "an object"),
        (
            "feed",
            {"kind": "Response", "status": 200, "headers": {"X": "a\r\nY: b"}},
            "fault.headers.X",
            "one line",
        ),
        (
            "feed",
            {"kind": "Response", "status": 200, "headers": {"": "a"}},
            "fault.headers",
            "the name of a header",
        ),
        (
            "feed",
            {"kind": "Response", "status": 200, "content_type": "\n"},
            "fault.content_type",
            "one line",
        ),
        ("download", {"kind": "Redirect", "status": 200}, "fault.status", "from 300 to 399"),
        ("feed", {"kind": "OtherDialect", "dialect": "klingon"}, "fault.dialect", '"envelope"'),
        ("feed", {"kind": "error", "status": 400, "code": 1.5}, "fault.code", "text, or a whole"),
        ("feed", {"kind": "refused", "data": ["\ud800"]}, "fault.data", "any JSON"),
        ("feed", {"kind": "TooManyRequests", "form": "weeks"}, "fault.form", '"date"'),
    ],
)
async def test_an_invalid_fault_is_refused(
    caller: Caller, where: str, fault: object, field: str, allowed: str
) -> None:
    """The error names the field and what is allowed, and nothing is planned."""
    shown = await caller.refusal("POST faults", {"where": where, "fault": fault})
    assert shown["field"] == field
    assert field in shown["message"]
    assert allowed in json.dumps(shown["allowed"]).replace('\\"', '"')
    assert (await caller.result("GET plans"))["faults"] == []


@pytest.mark.parametrize("code", ["word", 5, None])
async def test_a_field_of_several_types_takes_each(caller: Caller, code: object) -> None:
    """A code may be a word, a number or null, as in the gateways' responses."""
    fault = {"kind": "error", "status": 400, "code": code}
    await caller.result("POST faults", {"where": "submit", "fault": fault})
    text = (await caller.call(GENERATE, BODY))[1]
    assert json.loads(text)["error"]["code"] == code


@pytest.mark.parametrize(("times", "fits"), [(0, False), (1, True), (1.0, False), (None, True)])
async def test_a_fault_happens_at_least_once(caller: Caller, times: object, fits: bool) -> None:
    """A fault that never happens is a mistake in a test."""
    wanted = {"where": "feed", "fault": "Drop", "times": times}
    assert (await caller.send("POST faults", wanted))[0] == (200 if fits else 400)


async def test_plans_can_be_forgotten(caller: Caller) -> None:
    """Pending plans no longer happen, and a task that has its script keeps it."""
    await caller.result("POST scripts", {"prompt": "a", "then": "fail"})
    task_id = await caller.submit("a")
    await caller.result("POST scripts", {"then": "fail"})
    await caller.result("POST faults", {"where": "submit", "fault": "Drop"})
    assert await caller.result("DELETE plans") == {"scripts": [], "faults": []}
    assert (await caller.poll(await caller.submit("a")))["state"] == "succeeded"
    assert (await caller.poll(task_id))["state"] == "error"


async def test_scripts_are_listed_in_the_order_of_their_use(caller: Caller) -> None:
    """The last script that names a task comes first, and those for the next tasks in order."""
    caller.gateway.script(lambda body: "dog" in body["prompt"])
    caller.gateway.script(re.compile("cat"))
    await caller.result("POST scripts", {"reason": "first"})
    await caller.result("POST scripts", {"prompt": "a cat"})
    await caller.result("POST scripts", {"reason": "second"})
    scripts = (await caller.result("GET plans"))["scripts"]
    assert [one["for"] for one in scripts] == ["prompt", "pattern", "function", "next", "next"]
    assert [scripts[0]["prompt"], scripts[1]["pattern"]] == ["a cat", "cat"]
    assert [one["reason"] for one in scripts[3:]] == ["first", "second"]


# Lists and counters.


async def test_a_task_is_listed_with_its_request() -> None:
    """A task has its prompt, body, state, and instants in simulated seconds."""
    async with running(takes=500.0) as caller:
        task_id = await caller.submit()
        await caller.poll(task_id)
        (task,) = (await caller.result("GET tasks"))["tasks"]
    assert task.keys() == {field.name for field in attrs.fields(TaskView)} - {"raw"}
    assert (task["task_id"], task["prompt"], task["request"]) == (task_id, "a kitten", BODY)
    assert (task["state"], task["polls"], task["points"]) == ("queued", 1, 320)
    assert task["finishes_at"] - task["created_at"] == pytest.approx(500)


async def test_a_task_that_never_ends_has_no_end(caller: Caller) -> None:
    """The end of a stalled task is null."""
    await caller.result("POST scripts", {"then": "stall"})
    await caller.submit()
    assert (await caller.result("GET tasks"))["tasks"][0]["finishes_at"] is None


async def test_tasks_can_be_filtered(caller: Caller) -> None:
    """Tasks can be filtered by id, prompt and state, and no match is an empty list."""
    await caller.result("POST scripts", {"prompt": "b", "then": "fail"})
    first, second = await caller.submit("a"), await caller.submit("b")

    async def chosen(query: str) -> list[str]:
        return [task["task_id"] for task in (await caller.result(f"GET tasks?{query}"))["tasks"]]

    assert await chosen(f"task_id={first}") == [first]
    assert await chosen("prompt=b") == await chosen("state=failed") == [second]
    assert await chosen("prompt=b&state=succeeded") == []


async def test_values_that_json_cannot_represent_are_text(caller: Caller) -> None:
    """A body that only Python's parser accepts does not break the response."""
    raw = json.dumps(BODY | {"extra": float("nan"), "half": "\ud800"})
    url, headers = f"{caller.gateway.base_url}{GENERATE}", {"Authorization": f"Bearer {KEY}"}
    async with caller.session.post(url, data=raw, headers=headers) as response:
        assert response.status == 200
    (task,) = (await caller.result("GET tasks"))["tasks"]
    assert (task["request"]["extra"], task["request"]["half"]) == ("NaN", "\ud800")


async def test_the_ledger_shows_which_submits_were_answered(caller: Caller) -> None:
    """A paid submit whose answer was lost has no status."""
    task_id = await caller.submit()
    await caller.result("POST faults", {"where": "submit", "fault": "drop_after_accepting"})
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await caller.submit("lost")
    (entry,) = (await caller.result(f"GET ledger?task_id={task_id}"))["ledger"]
    (lost,) = (await caller.result("GET ledger?prompt=lost"))["ledger"]
    assert entry.keys() == {field.name for field in attrs.fields(LedgerEntry)} | {"answered"}
    assert (entry["status"], entry["answered"]) == (200, True)
    assert (lost["status"], lost["answered"]) == (None, False)


async def test_duplicates_are_listed(caller: Caller) -> None:
    """Two submits of the same bytes are a group, and count as one duplicate."""
    tasks = [await caller.submit(prompt) for prompt in ("a", "b", "a")]
    groups = (await caller.result("GET duplicates"))["duplicates"]
    assert groups == [[tasks[0], tasks[2]]]
    assert (await caller.result("GET counters"))["duplicates"] == 1


async def test_requests_are_listed_without_control_requests(caller: Caller) -> None:
    """The client's requests are listed in order, and those of the test are not."""
    await caller.result("POST faults", {"where": "feed", "fault": "EmptyFields"})
    task_id = await caller.submit()
    await caller.poll(task_id)
    requests = (await caller.result("GET requests"))["requests"]
    assert [one["where"] for one in requests] == ["submit", "feed"]
    assert requests[0].keys() == {field.name for field in attrs.fields(Seen)}
    assert (requests[1]["fault"], requests[1]["task_id"]) == ("EmptyFields", task_id)
    polls = await caller.result(f"GET requests?where=feed&origin=api&task_id={task_id}")
    assert polls["requests"] == requests[1:]
    assert (await caller.result("GET requests?origin=cdn"))["requests"] == []
    assert caller.gateway.peak_requests == 1


async def test_the_counters_count() -> None:
    """All counters are in one object."""
    async with running(takes=0.0, rate_limit=0.001, burst=4) as caller:
        caller.gateway.script("a", then="fail")
        first = await caller.submit("a")
        await caller.submit("b")
        await caller.poll(first)
        assert (await caller.call("/somewhere", {}))[0] == 200
        await caller.poll(first)
        assert (await caller.call(GENERATE, BODY))[0] == 429
        counters = await caller.result("GET counters")
    assert counters == {
        "submitted": 2,
        "duplicates": 0,
        "states": {"failed": 1, "succeeded": 1},
        "polls": 2,
        "requests": 6,
        "places": {"submit": 3, "feed": 2, "unknown": 1},
        "peak_requests": 1,
        "limited": 1,
        "leaked": 0,
        "balance": 100_000 - 320,
        "refunds": 320,
        "callbacks_delivered": 0,
        "callbacks_failed": 0,
        "scripts_waiting": 0,
        "faults_waiting": 0,
    }


async def test_control_is_never_limited_and_never_goes_wrong() -> None:
    """Neither the rate limit nor faults apply to control requests."""
    async with running(rate_limit=0.001) as caller:
        for where in sorted(faults.PLACES):
            await caller.result("POST faults", {"where": where, "fault": "Drop", "times": None})
        for _ in range(5):
            await caller.result("GET health")
        assert caller.gateway.requests == ()
        assert caller.gateway.limited == 0


async def test_no_key_is_shown() -> None:
    """Listed requests contain no key, in whatever place it was sent."""
    async with running(takes=0.0, key_style="any") as caller:
        await caller.result("POST keys", {"key": "sk-second-key", "points": 500})
        await caller.submit(key=KEY)
        await caller.call(GENERATE, BODY, "sk-second-key")
        await caller.call(GENERATE, BODY, "sk-of-another-user")
        await caller.call(f"/{KEY}/?a={KEY}", {})
        url = f"{caller.gateway.base_url}/user/quota?key=sk-of-another-user&start_date=2026-01-01"
        async with caller.session.get(url, headers={"User-Agent": KEY}) as response:
            assert response.status == 401
        shown = [
            json.dumps(await caller.result(command.line.replace("/-/", "")))
            for command in _control.COMMANDS
            if command.method == "GET"
        ]
    assert not re.findall("sk-[a-z-]+", "".join(shown))
    assert '"key": "***"' in "".join(shown)
    assert "key=***&start_date" in "".join(shown)


# Keys.


async def test_a_key_can_be_added(caller: Caller) -> None:
    """A further key works at once, has its points, and is never shown."""
    added = await caller.result("POST keys", {"key": "sk-b", "points": 320, "name": "second"})
    assert added == {"name": "second", "points": 320, "user_id": 8}
    assert (await caller.call(GENERATE, BODY, "sk-b"))[0] == 200
    assert (await caller.call(GENERATE, BODY, "sk-b"))[0] == 403
    added = await caller.result("POST keys", {"key": "sk-c", "user_id": 8})
    assert (added["name"], added["user_id"]) == ("test_key_3", 8)


@pytest.mark.parametrize(
    ("body", "field", "allowed"),
    [
        ({}, "key", "printable ASCII"),
        ({"key": ""}, "key", "printable ASCII"),
        ({"key": "sk-secret\n"}, "key", "printable ASCII"),
        ({"key": KEY}, "key", "a key that does not exist yet"),
        ({"key": "sk-secret", "name": "test_key"}, "name", "a name that is not in use"),
        ({"key": "sk-secret", "points": -1}, "points", "a number from 0"),
        ({"Key": "sk-secret"}, "Key", "points"),
        ("sk-secret", "body", "an object"),
    ],
)
async def test_an_invalid_key_is_refused_and_not_shown(
    caller: Caller, body: object, field: str, allowed: str
) -> None:
    """The response names the field and what is allowed, and does not contain the key."""
    shown = await caller.refusal("POST keys", body)
    assert shown["field"] == field
    assert allowed in str(shown["allowed"])
    assert "sk-s" not in json.dumps(shown)


# Reset.


async def test_a_reset_leaves_nothing_behind() -> None:
    """After a reset everything is as at the start, but no id is used twice."""
    async with running(takes=0.0, points=320, rate_limit=0.001, burst=2) as caller:
        await caller.result("POST keys", {"key": "sk-b"})
        caller.gateway.script("a kitten", then="fail")
        first = await caller.submit()
        await caller.poll(first)
        assert (await caller.call(GENERATE, BODY))[0] == 429
        await caller.result("POST faults", {"where": "feed", "fault": "Drop"})
        async with caller.session.get(f"{caller.gateway.cdn_url}/?{KEY}") as response:
            assert response.status == 404
        await caller.result("POST scripts", {})
        before = await caller.result("GET counters")
        after = await caller.result("POST reset")
        same = {name for name in before if before[name] == after[name]}
        assert same == {"duplicates", "balance", "callbacks_delivered", "callbacks_failed"}
        assert not any(value for name, value in after.items() if name != "balance")
        assert after["balance"] == 320
        assert (await caller.result("GET tasks"))["tasks"] == []
        assert (await caller.result("GET ledger"))["ledger"] == []
        assert (await caller.result("GET plans")) == {"scripts": [], "faults": []}
        assert (await caller.call(GENERATE, BODY, "sk-b"))[0] == 401
        assert await caller.submit() != first
        await caller.result("POST keys", {"key": "sk-b"})


async def test_a_reset_cancels_pending_callbacks() -> None:
    """Callbacks that are pending at the reset are not delivered."""
    called = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.append(await reader.readline())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server, running(takes=0.0, callbacks=Callbacks(delay=0.05)) as caller:
        await caller.submit(callback_url=url)
        await caller.result("POST reset")
        await caller.submit("later", callback_url="http://127.0.0.1:1/")
        while caller.gateway.callbacks_failed < 1:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.001)
    assert called == []


async def test_a_state_file_is_not_reset(tmp_path: Any) -> None:
    """A gateway with a state file says that it cannot forget its tasks."""
    async with running(state_file=tmp_path / "state") as caller:
        await caller.submit()
        status, answer = await caller.send("POST reset")
        assert status == 409
        assert "another file" in answer["error"]["message"]
        assert caller.gateway.submitted == 1


# The reference.


@pytest.mark.parametrize("command", _control.COMMANDS, ids=lambda command: command.line)
async def test_each_answer_has_what_the_reference_says(
    caller: Caller, command: _control.Command
) -> None:
    """Each response has exactly the names that the reference lists."""
    bodies = {
        "scripts": {},
        "faults": {"where": "feed", "fault": "Drop"},
        "keys": {"key": "sk-b"},
    }
    await caller.submit()
    line = command.line.replace("/-/", "")
    answer = await caller.result(
        line, bodies.get(command.path) if command.method == "POST" else None
    )
    if isinstance(command.response, dict):
        assert answer.keys() == command.response.keys()
