import gzip
import json
import pickle
import random
import zlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import pytest
import yaml
from support.samples import (
    ACCOUNT,
    GATEWAY,
    KEY,
    PROMPT,
    SECRETS,
    SIGNED,
    STILL,
    Sample,
    read_samples,
    reader_of,
    request_to,
    samples,
)
from support.secrets import chain, secrets_in

from fuhu_runway import errors
from fuhu_runway._json import MAX_BROKEN, MAX_BYTES, decode, parsed, text_of
from fuhu_runway._wire.decode import read_callback, read_task, salvaged
from fuhu_runway._wire.encode import Reply, Request, ask_balance, build
from fuhu_runway._wire.salvage import bare_id, id_of, salvage
from fuhu_runway._wire.tables import ENDPOINTS, GATEWAYS, NOWHERE, Replay
from fuhu_runway._wire.values import retry_after
from fuhu_runway.account import KeyLog, TaskPage
from fuhu_runway.errors import Fate
from fuhu_runway.models import (
    ActOne,
    Aleph,
    Balance,
    Gateway,
    Generation,
    ImageToVideo,
    KeyStyle,
    MotionVector,
    OfficialCharacterPerformance,
    OfficialImageToVideo,
    OfficialRequest,
    OfficialTextToVideo,
    OfficialVideoToVideo,
    OfficialVideoUpscale,
    TaskRecord,
    TaskState,
    TextToVideo,
    VideoToVideo,
)

ANY_SAMPLE = pytest.mark.parametrize("sample", samples(), ids=lambda sample: sample.name)
NOT_MOVING = {"x": 0, "y": 0, "z": 0, "r": 0, "bg_x_pan": 0, "bg_y_pan": 0}
RIXAPI = (
    "http://runwaycdn.rixapi.com/attachments/video/runway/20241015/"
    "82bc23c83b5c32e75059c8328df5cffb.mp4"
)


# Samples


def outcome(sample: Sample, body: bytes | None = None) -> Any:
    """Return what a sample, or another *body* in its place, is read as, be it an error."""
    try:
        return sample.read(body)
    except errors.RunwayError as error:
        return error


def seen(result: Any, name: str) -> Any:
    """Return one attribute as a sample spells it."""
    value = getattr(result, name)
    if isinstance(value, tuple):  # the rows of a list
        return [row_seen(row) for row in value]
    return value.name if isinstance(value, TaskState | Fate) else value


def row_seen(row: Any) -> dict[str, Any]:
    """Return the fields of a row that are not their default; its record is tested elsewhere."""
    shown = {}
    for field in attrs.fields(type(row)):
        value = getattr(row, field.name)
        if field.name != "record" and value != field.default:
            value = value.isoformat() if isinstance(value, datetime) else value
            value = list(value) if isinstance(value, tuple) else value
            shown[field.name] = value.name if isinstance(value, TaskState) else value
    return shown


def wanted(name: str, expected: Any) -> Any:
    """Let fractions be off by rounding, a flag being no number, and read times."""
    if name.endswith("_at") and expected is not None:
        return datetime.fromisoformat(expected)
    is_number = isinstance(expected, int | float) and not isinstance(expected, bool)
    return pytest.approx(expected) if is_number else expected


def fields(sample: Sample) -> list[str]:
    """Return the names that the expectation is about and that such a result has."""
    no_attribute = {"gives", "raises", "reasons"}
    if sample.expected.get("raises") == "UnreadableReply":
        # It was not understood, so there is nothing that it said.
        no_attribute |= {"code", "message", "retry_after"}
    return [name for name in sample.expected if name not in no_attribute]


@ANY_SAMPLE
def test_each_sample_reads_as_expected(sample: Sample) -> None:
    """Each literal reply is read as expected; expectations are written by hand from the facts."""
    result = outcome(sample)
    if "raises" in sample.expected:
        assert type(result).__name__ == sample.expected["raises"], result
    else:
        kinds = {"task": TaskRecord, "balance": Balance, "tasks": TaskPage, "log": KeyLog}
        kind = kinds[sample.expected["gives"]]
        assert isinstance(result, kind), result
    for name in fields(sample):
        assert seen(result, name) == wanted(name, sample.expected[name]), name
    if isinstance(result, errors.UnreadableReply):
        for reason in sample.expected["reasons"]:
            assert any(reason in given for given in result.reasons)


def test_all_samples_are_loaded() -> None:
    """The loader finds every file of samples, and all samples in it."""
    assert len(samples()) >= 508
    assert len({sample.folder for sample in samples()}) == 20


BASE = "base: {endpoint: feed, status: 404, headers: {Content-Type: text/plain}}\n"
CASE = "  why: Made up.\n  body: '{}'\n  expect: {raises: NotFound}\n"


def test_fields_that_a_sample_does_not_mention_are_checked_too(tmp_path: Path) -> None:
    """A sample takes its reply from the base and expects the default of each other field."""
    path = tmp_path / "made-up.yaml"
    path.write_text(f"{BASE}one:\n{CASE}", "utf-8")
    assert read_samples(path) == [
        Sample(
            name="made-up/one",
            why="Made up.",
            endpoint="feed",
            status=404,
            headers={"Content-Type": "text/plain"},
            body=b"{}",
            expected={
                "raises": "NotFound",
                "status": 404,
                "code": None,
                "message": None,
                "request_id": None,
                "fate": "REJECTED",
                "retry_after": None,
                "task_id": "t-1",
            },
        )
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (f"one:\n{CASE}one:\n{CASE}", "written twice: one"),
        (f"one:\n{CASE}  why: Twice.\n", "written twice: why"),
        (f"one:\n{CASE}  header: {{Retry-After: '3'}}\n", "header"),
        (f"one:\n{CASE.replace('NotFound', 'NotFound, video_url: x')}", "video_url"),
        (f"one:\n{CASE.replace('raises: NotFound', 'state: QUEUED, code: x')}", "code"),
    ],
)
def test_a_sample_with_a_mistake_is_an_error(tmp_path: Path, text: str, complaint: str) -> None:
    """A name that is written twice, or that is unknown, would leave a field unchecked."""
    path = tmp_path / "made-up.yaml"
    path.write_text(BASE + text, "utf-8")
    with pytest.raises((yaml.YAMLError, TypeError, ValueError), match=complaint):
        read_samples(path)


@ANY_SAMPLE
def test_no_error_of_a_sample_contains_a_secret(sample: Sample) -> None:
    """Neither the request nor an address in the response is in an error or in its causes."""
    result = outcome(sample)
    if isinstance(result, errors.RunwayError):
        assert secrets_in(result, [*SECRETS, "http://", "https://", "171.214.61.54"]) == []
    else:
        assert not any(secret in repr(result) for secret in (*SECRETS, "http", "171.214.61.54"))


def with_echo(value: Any, echo: str) -> Any:
    """Return JSON in which each text also quotes what was sent."""
    if isinstance(value, dict):
        return {key: with_echo(item, echo) for key, item in value.items()} | {echo: 1}
    if isinstance(value, list):
        return [with_echo(item, echo) for item in value]
    return f"{value} {echo}" if isinstance(value, str) else value


def echoing(sample: Sample) -> bytes:
    """Return the sample's body, quoting the request wherever there is text."""
    echo = f"{KEY} {PROMPT} {SIGNED} {STILL} 171.214.61.54 2001:db8::7"
    try:
        body = json.loads(sample.body)
    except (ValueError, RecursionError):
        return sample.body + echo.encode() + json.dumps(echo).encode()
    return json.dumps(with_echo(body, echo)).encode()


@ANY_SAMPLE
def test_no_error_contains_a_request_that_the_gateway_quotes(sample: Sample) -> None:
    """The request and all addresses stay hidden, even if every text of a reply quotes them."""
    # A poll does not know the prompt of its task.
    hidden = SECRETS if PROMPT in sample.request().secrets else (KEY, SIGNED, STILL)
    result = outcome(sample, echoing(sample))
    if isinstance(result, errors.RunwayError):
        assert secrets_in(result, [*hidden, "171.214.61.54", "2001:db8::7"]) == []


@ANY_SAMPLE
def test_the_result_of_a_sample_can_be_pickled(sample: Sample) -> None:
    """A record or an error that is pickled and restored has all its fields."""
    result = outcome(sample)
    again = pickle.loads(pickle.dumps(result))  # noqa: S301 - our own
    assert type(again) is type(result)
    if isinstance(result, errors.RunwayError):
        assert again.__dict__ == result.__dict__
    else:
        assert again == result


@ANY_SAMPLE
def test_the_money_sentence_of_an_error_fits_its_fate(sample: Sample) -> None:
    """An error says that points may be spent only for a paid request of unknown fate."""
    result = outcome(sample)
    if isinstance(result, errors.RunwayError):
        fate = getattr(result, "fate", None)
        paid = ENDPOINTS[sample.endpoint].replay is Replay.PAID
        in_doubt = paid and fate is Fate.UNKNOWN
        assert ("may have been accepted and charged" in result.money) is in_doubt
        assert ("Nothing was charged" in result.money) is not in_doubt


# Models to bytes


def sent(request: Request) -> Any:
    """Return the body of a request, decoded."""
    assert request.body is not None
    return json.loads(request.body)


LITERAL_BODIES: dict[str, tuple[Generation, str | None, dict[str, Any]]] = {
    "FuhuAPI, api-facts 1.2": (
        TextToVideo("a kitten", motion=MotionVector(y=0.3999999999999999, r=-6)),
        "http://baidu.com",
        {
            "callback_url": "http://baidu.com",
            "ratio": "16:9",
            "prompt": "a kitten",
            "style": "cinematic",
            "model": "gen4",
            "options": {
                "seconds": 10,
                "motion_vector": {
                    "x": 0,
                    "y": 0.3999999999999999,
                    "z": 0,
                    "r": -6,
                    "bg_x_pan": 0,
                    "bg_y_pan": 0,
                },
            },
        },
    ),
    "DeerAPI, api-facts 1.3, with the ratio that CometAPI's schema requires": (
        ImageToVideo(
            "笑起来,吃汉堡", "https://db.xiaohuhd.com/1.jpeg", motion=MotionVector(x=-6.2)
        ),
        "http://baidu.com",
        {
            "callback_url": "http://baidu.com",
            "image": "https://db.xiaohuhd.com/1.jpeg",
            "style": "cinematic",
            "model": "gen4",
            "prompt": "笑起来,吃汉堡",
            "ratio": "16:9",
            "options": {
                "seconds": 10,
                "image_as_end_frame": False,
                "flip": False,
                "motion_vector": NOT_MOVING | {"x": -6.2},
            },
        },
    ),
    "every field of api-facts 1.3": (
        ImageToVideo(
            "a kitten",
            "https://example.com/1.jpeg",
            last_image="https://example.com/2.jpeg",
            ratio="9:16",
            seconds=5,
            model="gen3",
            style="plain",
            motion=MotionVector(1, 2, 3, 4, 5, 6.5),
            image_as_end_frame=True,
            flip=True,
        ),
        None,
        {
            "image": "https://example.com/1.jpeg",
            "last_image": "https://example.com/2.jpeg",
            "prompt": "a kitten",
            "ratio": "9:16",
            "style": "plain",
            "model": "gen3",
            "options": {
                "seconds": 5,
                "image_as_end_frame": True,
                "flip": True,
                "motion_vector": {"x": 1, "y": 2, "z": 3, "r": 4, "bg_x_pan": 5, "bg_y_pan": 6.5},
            },
        },
    ),
    "CometAPI, api-facts 1.4": (
        VideoToVideo(RIXAPI, "pixelated style", flip=True, seconds=None),
        "http://baidu.com",
        {
            "callback_url": "http://baidu.com",
            "video": RIXAPI,
            "model": "gen4",
            "prompt": "pixelated style",
            "options": {"structure_transformation": 0.5, "flip": True},
        },
    ),
    "the seconds of the compatibility page, api-facts 1.4": (
        VideoToVideo(RIXAPI, "pixelated style"),
        None,
        {
            "video": RIXAPI,
            "model": "gen4",
            "prompt": "pixelated style",
            "options": {"structure_transformation": 0.5, "flip": False, "seconds": 5},
        },
    ),
    "ecovai, api-facts 1.5": (
        ActOne(RIXAPI, "https://db.xiaohuhd.com/1.jpeg"),
        "http://baidu.com",
        {
            "video": RIXAPI,
            "image": "https://db.xiaohuhd.com/1.jpeg",
            "callback_url": "http://baidu.com",
        },
    ),
    "every field of api-facts 1.5": (
        ActOne(
            RIXAPI, character_video="https://example.com/2.mp4", motion_multiplier=3, flip=False
        ),
        None,
        {
            "video": RIXAPI,
            "character_video": "https://example.com/2.mp4",
            "options": {"motion_multiplier": 3, "flip": False},
        },
    ),
    "the official format, api-facts 6": (
        OfficialImageToVideo("https://example.com/1.jpeg"),
        "http://baidu.com",
        {
            "promptImage": "https://example.com/1.jpeg",
            "model": "gen4_turbo",
            "duration": 10,
            "ratio": "1280:720",
        },
    ),
    "every field of api-facts 6": (
        OfficialImageToVideo(
            "https://example.com/1.jpeg",
            "a kitten",
            last_image="data:image/png;base64,aGk=",
            model="gen4.5",
            ratio="720:1280",
            seconds=5,
            seed=4294967295,
            watermark=False,
        ),
        None,
        {
            "promptImage": [
                {"uri": "https://example.com/1.jpeg", "position": "first"},
                {"uri": "data:image/png;base64,aGk=", "position": "last"},
            ],
            "promptText": "a kitten",
            "model": "gen4.5",
            "duration": 5,
            "ratio": "720:1280",
            "seed": 4294967295,
            "watermark": False,
        },
    ),
    "Aleph, api-facts 11 row 12": (
        Aleph(RIXAPI, "make it rain", image="https://example.com/1.jpeg"),
        "http://baidu.com",
        {
            "callback_url": "http://baidu.com",
            "video": RIXAPI,
            "prompt": "make it rain",
            "images": ["https://example.com/1.jpeg"],
            "options": {"seconds": 5},
        },
    ),
    "Aleph without a picture": (
        Aleph(RIXAPI, "make it rain"),
        None,
        {"video": RIXAPI, "prompt": "make it rain", "options": {"seconds": 5}},
    ),
    "official text to video, api-facts 11 row 10": (
        OfficialTextToVideo(
            "a kitten", model="veo3.1", seconds=8, ratio="1920:1080", audio=True, seed=7
        ),
        None,
        {
            "promptText": "a kitten",
            "model": "veo3.1",
            "duration": 8,
            "ratio": "1920:1080",
            "audio": True,
            "seed": 7,
        },
    ),
    "official video to video, api-facts 11 row 11": (
        OfficialVideoToVideo(RIXAPI, "oil", image="https://example.com/1.jpeg", seed=7),
        "http://baidu.com",
        {
            "videoUri": RIXAPI,
            "promptText": "oil",
            "model": "gen4_aleph",
            "ratio": "1280:720",
            "references": [{"type": "image", "uri": "https://example.com/1.jpeg"}],
            "seed": 7,
        },
    ),
    "official video to video without a ratio": (
        OfficialVideoToVideo("data:video/mp4;base64,aGk=", "oil", model="aleph2", ratio=None),
        None,
        {"videoUri": "data:video/mp4;base64,aGk=", "promptText": "oil", "model": "aleph2"},
    ),
    "official character performance, api-facts 11 row 11": (
        OfficialCharacterPerformance(
            RIXAPI, "https://example.com/1.jpeg", body_control=True, expression_intensity=5, seed=7
        ),
        None,
        {
            "model": "act_two",
            "character": {"type": "image", "uri": "https://example.com/1.jpeg"},
            "reference": {"type": "video", "uri": RIXAPI},
            "bodyControl": True,
            "expressionIntensity": 5,
            "ratio": "1280:720",
            "seed": 7,
        },
    ),
    "official character performance of a clip": (
        OfficialCharacterPerformance(RIXAPI, character_video="https://example.com/2.mp4"),
        None,
        {
            "model": "act_two",
            "character": {"type": "video", "uri": "https://example.com/2.mp4"},
            "reference": {"type": "video", "uri": RIXAPI},
            "ratio": "1280:720",
        },
    ),
    "official video upscale, api-facts 11 row 11": (
        OfficialVideoUpscale(RIXAPI),
        None,
        {"videoUri": RIXAPI, "model": "upscale_v1"},
    ),
    "a request without a class": (
        OfficialRequest("text_to_video", {"promptText": "a kitten", "deep": {"a": [None, 1]}}),
        "http://baidu.com",
        {"promptText": "a kitten", "deep": {"a": [None, 1]}},
    ),
}


@pytest.mark.parametrize(
    ("request_", "callback_url", "body"), LITERAL_BODIES.values(), ids=LITERAL_BODIES
)
def test_each_request_is_the_documented_body(
    request_: Generation, callback_url: str | None, body: dict[str, Any]
) -> None:
    """Each request has exactly the fields of its page's literal body."""
    assert sent(build(request_, GATEWAY, KEY, callback_url)) == body


def test_a_body_is_utf_8_and_does_not_escape_chinese() -> None:
    """A Chinese prompt is sent as UTF-8 text."""
    body = build(TextToVideo("一只小猫"), GATEWAY, KEY).body
    assert body is not None
    assert "一只小猫".encode() in body


def test_seconds_stay_whole_numbers() -> None:
    """`options.seconds` is written 10 and not 10.0, which a strict gateway would refuse."""
    body = build(TextToVideo("a kitten"), GATEWAY, KEY).body
    assert body is not None
    assert b'"seconds": 10,' in body


# Addresses, headers and keys

ADDRESSES = {
    "fuhuapi": "https://api.fuhuapi.com/runway",
    "cometapi": "https://api.cometapi.com/runway",
    "deerapi": "https://api.deerapi.com/runway",
    "gpt-best": "https://own.example/runway",
    "ecovai": "https://api.ecovai.cn/runway",
    "gptoai": "https://api.gptoai.cc/runway",
    "openai-hub": "https://own.example/runway",
    "chat-bp": "https://own.example/runway",
    "gpt-best-v1": "https://own.example/runway/v1",
    "gptproto": "https://own.example/runway/v1",
    "yutoai": "https://own.example/runway/v1",
    "zyhelp": "https://own.example/runway/v1",
    "bltcy": "https://api.bltcy.ai/runway/v1",
    "ait8": "https://ai.t8star.cn/runway/v1",
    "ezlinkai": "https://api.ezlinkai.com/runway/v1",
    "duomi": "https://duomiapi.com/api/video/runway",
}
PATHS = {
    "text_to_video": "/pro/generate",
    "image_to_video": "/pro/generate",
    "video_to_video": "/pro/video2video",
    "act_one": "/pro/act_one",
}


def gateway_of(name: str) -> Gateway:
    """Return a known gateway, with a made-up address if no source names one."""
    row = GATEWAYS[name]
    return row if row.base_url else attrs.evolve(row, base_url="https://own.example")


@pytest.mark.parametrize("gateway", GATEWAYS)
@pytest.mark.parametrize(("endpoint", "path"), PATHS.items())
def test_each_submit_goes_to_the_address_of_its_gateway(
    gateway: str, endpoint: str, path: str
) -> None:
    """Every submit is a POST to the gateway's own prefix (api-facts 1.1)."""
    request = request_to(endpoint, gateway_of(gateway))
    assert (request.endpoint.verb, request.url) == ("POST", ADDRESSES[gateway] + path)


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_a_poll_goes_to_the_feed_of_its_gateway(gateway: str) -> None:
    """The feed is a POST with the id in the body, for duomi with the key as well."""
    request = request_to("feed", gateway_of(gateway), "a/b c")
    assert request.endpoint.verb == "POST"
    assert request.url == f"{ADDRESSES[gateway]}/feed"
    key = {"key": KEY} if gateway == "duomi" else {}
    assert sent(request) == {**key, "task_id": "a/b c"}
    assert request.endpoint.replay is Replay.FREE
    assert request.task_id == "a/b c"


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_the_official_routes_have_another_prefix(gateway: str) -> None:
    """Only ezlinkai has the same prefix for the official and the reverse format."""
    row = gateway_of(gateway)
    prefix = "/runway/v1" if gateway == "ezlinkai" else "/runwayml/v1"
    submit, poll = (
        request_to("official_image_to_video", row),
        request_to("official_task", row, "a/b"),
    )
    assert submit.url == f"{row.base_url}{prefix}/image_to_video"
    assert poll.url == f"{row.base_url}{prefix}/tasks/a%2Fb"
    assert (submit.endpoint.verb, poll.endpoint.verb, poll.body) == ("POST", "GET", None)


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        ("subscription", "/v1/dashboard/billing/subscription"),
        ("usage", "/v1/dashboard/billing/usage"),
        ("token_usage", "/api/usage/token/"),
    ],
)
def test_a_balance_request_has_the_key_in_the_header(endpoint: str, path: str) -> None:
    """Three of the four balance endpoints are GETs at the root, with the key in the header only."""
    request = request_to(endpoint)
    assert (request.endpoint.verb, request.url) == ("GET", f"https://api.fuhuapi.com{path}")
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.body is None


def test_the_quota_route_has_the_key_in_the_address_only() -> None:
    """The query host gets the key as `key=…` and no header (api-facts 7.1)."""
    request = ask_balance(ENDPOINTS["quota"], GATEWAYS["deerapi"], "sk-a+b&c")
    assert request.url == "https://query.deerapi.com/user/quota?key=sk-a%2Bb%26c"
    assert request.headers == {}
    assert "sk-a" not in repr(request)


@pytest.mark.parametrize("endpoint", ["text_to_video", "feed", "subscription", "quota"])
def test_a_gateway_without_an_address_is_a_usage_error(endpoint: str) -> None:
    """Without a host no request can be built, and the error names the gateway."""
    with pytest.raises(errors.UsageError, match="'openai-hub'") as caught:
        request_to(endpoint, GATEWAYS["openai-hub"])
    assert caught.value.field == "gateway"


def test_a_base_url_may_have_slashes_and_braces() -> None:
    """A slash at the end of a base URL is not doubled, and braces in it are not filled in."""
    gateway = attrs.evolve(GATEWAY, base_url="https://own.example/{tenant}/", prefix="/runway/")
    assert request_to("feed", gateway).url == "https://own.example/{tenant}/runway/feed"
    assert request_to("text_to_video", gateway).url.endswith("/{tenant}/runway/pro/generate")


@pytest.mark.parametrize("verb", ["POST", "GET"])
def test_a_malformed_task_id_can_be_polled(verb: str) -> None:
    """Half a surrogate pair in an id does not crash; the gateway may refuse the id."""
    request = request_to("feed", attrs.evolve(GATEWAY, feed_verb=verb), "t-\ud800")
    assert request.url.isascii()


def test_polls_share_all_but_the_body() -> None:
    """Thousands of waits each hold a request, of which only the body is not shared."""
    one, other = request_to("feed", task_id="t-1"), request_to("feed", task_id="t-2")
    assert (one.body, other.body) == (b'{"task_id": "t-1"}', b'{"task_id": "t-2"}')
    assert one.url is other.url
    assert one.headers is other.headers
    assert one.secrets is other.secrets


def test_polls_by_get_share_all_but_the_address() -> None:
    """With a feed that is polled by GET, two requests differ only in their address."""
    gateway = attrs.evolve(GATEWAY, feed_verb="GET")
    one, other = (request_to("feed", gateway, task_id) for task_id in ("t-1", "t 2"))
    assert one.url.endswith("/feed?task_id=t-1")
    assert other.url.endswith("/feed?task_id=t%202")
    assert one.endpoint is other.endpoint


def test_two_clients_keep_their_keys_apart() -> None:
    """Requests of two clients carry their own keys, in any order."""
    keys = ["sk-one", "sk-two", "sk-one"]
    shown = [request_to("feed", key=key).headers["Authorization"] for key in keys]
    assert shown == [f"Bearer {key}" for key in keys]


@pytest.mark.parametrize(
    ("style", "shown"), [(KeyStyle.BEARER, f"Bearer {KEY}"), (KeyStyle.RAW, KEY)]
)
def test_the_authorization_header_follows_the_key_style(style: KeyStyle, shown: str) -> None:
    """The key is sent with or without `Bearer`, and is itself unchanged (api-facts 1.1)."""
    headers = request_to("text_to_video", attrs.evolve(GATEWAY, key_style=style)).headers
    assert headers["Authorization"] == shown


IN_BODY = attrs.evolve(GATEWAY, key_style=KeyStyle.BODY)


@pytest.mark.parametrize("endpoint", [*PATHS, "feed"])
def test_the_key_may_be_in_the_body(endpoint: str) -> None:
    """A POST of the reverse format then has `key` and no header (api-facts 11 row 14)."""
    request = request_to(endpoint, IN_BODY)
    assert sent(request)["key"] == KEY
    assert "Authorization" not in request.headers
    assert KEY not in request.url
    assert KEY in request.secrets
    assert {**sent(request), "key": None} == {**sent(request_to(endpoint)), "key": None}


@pytest.mark.parametrize("endpoint", ["official_image_to_video", "official_task", "subscription"])
def test_other_routes_of_such_a_gateway_use_the_header(endpoint: str) -> None:
    """The official format and the balance have no field for a key in the body."""
    request = request_to(endpoint, IN_BODY)
    assert request.headers["Authorization"] == KEY
    assert KEY.encode() not in (request.body or b"")
    assert KEY not in request.url


def test_a_feed_without_a_body_uses_the_header() -> None:
    """A feed that is polled by GET carries the key in the header, and never in the address."""
    request = request_to("feed", attrs.evolve(IN_BODY, feed_verb="GET"), "t 1")
    assert request.url == "https://api.fuhuapi.com/runway/feed?task_id=t%201"
    assert (request.body, request.headers["Authorization"]) == (None, KEY)


def test_extra_cannot_set_the_key() -> None:
    """If the key is in the body, `extra` cannot replace it; otherwise `key` is any field."""
    request = TextToVideo("a kitten", extra={"key": "marked"})
    with pytest.raises(errors.UsageError, match="extra sets 'key'") as caught:
        build(request, IN_BODY, KEY)
    assert secrets_in(caught.value, ["marked", KEY]) == []
    assert sent(build(request, GATEWAY, KEY))["key"] == "marked"


def test_every_request_carries_the_version_and_its_types() -> None:
    """The version header is always sent, because some pages require it (api-facts 1.1)."""
    for endpoint in ("text_to_video", "feed", "official_task"):
        headers = request_to(endpoint).headers
        assert headers["X-Runway-Version"] == "2024-11-06"
        assert headers["Content-Type"] == "application/json"
        assert headers["Accept"] == "application/json"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_repr_of_a_request_hides_its_content(endpoint: str) -> None:
    """The repr of a request has no key, prompt, address or body in it."""
    request = request_to(endpoint)
    assert not any(secret in repr(request) for secret in (*SECRETS, "Bearer"))
    assert set(request.secrets) <= {KEY, PROMPT, SIGNED, STILL, ACCOUNT.access_token}
    assert KEY in request.secrets


def test_a_submit_lists_its_secrets() -> None:
    """The prompt and the addresses of a request are among its secrets."""
    request = ImageToVideo(PROMPT, STILL, last_image="https://marked.example/2.png")
    secrets = build(request, GATEWAY, KEY).secrets
    assert set(secrets) == {KEY, PROMPT, STILL, "https://marked.example/2.png"}


def test_the_texts_of_a_body_are_secrets() -> None:
    """Every text in the body of a caller's own is a secret but names that are no content."""
    inner = [{"type": "image", "uri": STILL}, 7, None, ""]
    body = {"model": "gen9", "ratio": "1:1", "promptText": PROMPT, "references": inner}
    assert set(build(OfficialRequest("a", body), GATEWAY, KEY).secrets) == {KEY, PROMPT, STILL}


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_a_request_without_a_class_goes_below_the_prefix_of_the_official_format(
    gateway: str,
) -> None:
    """The path is below the gateway's own prefix, and the key is in the Authorization header."""
    row = attrs.evolve(GATEWAYS[gateway], base_url="https://x.example")
    wire = build(OfficialRequest("/v1/video/create", {}), row, KEY, NOWHERE)
    prefix = {"ezlinkai": "/runway/v1"}.get(gateway, "/runwayml/v1")
    assert wire.url == f"https://x.example{prefix}/video/create"
    assert KEY in wire.headers["Authorization"]
    assert wire.body == b"{}"


def test_the_repr_of_a_reply_hides_its_content() -> None:
    """The repr of a reply has no body and no headers in it."""
    reply = Reply(request_to("feed"), 200, {"set-cookie": "marked"}, b'{"video_url":"marked"}')
    assert "marked" not in repr(reply)


# extra


def test_extra_fields_go_into_the_body_as_they_are() -> None:
    """`extra` adds fields at any depth to those that the request sets."""
    extra = {"images": ["https://x.example/1.png"], "options": {"fps": 24, "deep": {"a": None}}}
    body = sent(build(TextToVideo("a kitten", extra=extra), GATEWAY, KEY))
    assert body["images"] == ["https://x.example/1.png"]
    assert body["options"]["fps"] == 24
    assert body["options"]["deep"] == {"a": None}
    assert body["options"]["seconds"] == 10


def test_extra_may_set_options_of_a_request_that_has_none() -> None:
    """A request without options is sent with those of `extra`."""
    request = ActOne(SIGNED, STILL, extra={"options": {"fps": 24}, "callback_url": NOWHERE})
    body = sent(build(request, GATEWAY, KEY))
    assert body["options"] == {"fps": 24}
    assert body["callback_url"] == NOWHERE


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"prompt": "marked"}, "'prompt'"),
        ({"model": "gen3"}, "'model'"),
        ({"options": {"seconds": 5}}, "'seconds'"),
        ({"options": {"motion_vector": {"x": 1}}}, "'x'"),
        ({"options": 5}, "'options'"),
        ({"callback_url": "https://x.example/"}, "'callback_url'"),
    ],
)
def test_extra_does_not_override_what_the_request_sets(extra: dict[str, Any], named: str) -> None:
    """The error names a field that the request sets, and does not show its value."""
    request = TextToVideo("a kitten", extra=extra)
    with pytest.raises(errors.UsageError, match=named) as caught:
        build(request, GATEWAY, KEY, NOWHERE)
    assert caught.value.field == "extra"
    assert secrets_in(caught.value, ["marked"]) == []


def test_building_leaves_the_request_as_it_was() -> None:
    """The same request may be built twice and has the same bytes."""
    request = TextToVideo("a kitten", extra={"options": {"deep": {"a": 1}}})
    first, second = (build(request, GATEWAY, KEY, NOWHERE) for _ in range(2))
    assert (first.url, first.headers, first.body) == (second.url, second.headers, second.body)
    assert request.extra == {"options": {"deep": {"a": 1}}}


# Bytes to models: cases without a sample


def read(
    body: Any, endpoint: str = "feed", status: int = 200, headers: Mapping[str, str] | None = None
) -> Any:
    """Return what a body, as JSON or as literal bytes, is read as."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return reader_of(endpoint)(Reply(request_to(endpoint), status, headers or {}, raw))


UNDOCUMENTED: list[Any] = [
    {"code": True, "data": 5},
    {"code": True, "data": "task_id"},
    {"code": True, "data": None},
    {"code": "9" * 5000, "data": {"task_id": "t-1"}},
    {"error": {"code": "9" * 5000}},
    {"error": ["a", "b"]},
    {"error": 5},
    {"error": {"message": {"a": 1}, "code": [], "type": {}}},
    {"code": 200, "data": [[]]},
    {"code": 200, "data": {"task_id": {"a": "b"}}},
    {"code": 200, "data": {"task_id": True}},
    {"code": 10**30, "data": {"task_id": "t-1"}},
    {"code": "success", "data": {"task_id": "t-1", "status": ["SUCCESS"], "data": []}},
    {"code": -1, "msg": "{}"},
    {"code": "fail_to_fetch_task", "message": '{"a": 1}'},
    {"code": "fail_to_fetch_task", "message": "{" * 3000},
    {"code": "fail_to_fetch_task", "message": '{"error":' * 3000},
    {"id": None},
    {"task_id": ""},
    {"description": 1, "code": 2},
    {"object": "list"},
    {"total_quota": "a lot"},
]


@pytest.mark.parametrize("endpoint", ["text_to_video", "feed", "subscription"])
@pytest.mark.parametrize("body", UNDOCUMENTED, ids=lambda body: json.dumps(body)[:40])
def test_undocumented_shapes_do_not_crash(endpoint: str, body: Any) -> None:
    """Shapes that no source documents are read, or raise an error of this package."""
    for status in (200, 400, 502):
        sample = Sample("odd/shape", endpoint, status, {}, json.dumps(body).encode(), {})
        result = outcome(sample)
        if isinstance(result, errors.RunwayError):
            assert all(isinstance(link, errors.RunwayError) for link in chain(result))
        else:
            assert result.raw == body


@pytest.mark.parametrize("depth", [100, 900, 5000])
@pytest.mark.parametrize(
    "shape",
    [
        '{"code":200,"data":{"task_id":"t-1","video_url":%s}}',
        '{"code":"success","data":{"task_id":"t-1","data":{"id":"t-1","output":%s}}}',
        '{"code":"success","data":{"task_id":"t-1","data":%s}}',
    ],
)
def test_deep_nesting_does_not_crash(shape: str, depth: int) -> None:
    """Deep nesting beside an id leaves the id readable, or the whole reply unreadable."""
    body = (shape % ("[" * depth + "]" * depth)).encode()
    result = outcome(Sample("odd/depth", "feed", 200, {}, body, {}))
    if isinstance(result, errors.UnreadableReply):
        assert "RecursionError" in result.reasons[0]
    else:
        assert result.task_id == "t-1"


@pytest.mark.parametrize(
    "inner",
    [
        {"code": 200, "data": {"status": "3", "video_url": "https://x.example/1.mp4"}},
        {"id": None, "status": "SUCCEEDED", "output": [{"url": "https://x.example/1.mp4"}]},
        {"task_id": ["odd"], "status": 3, "video_url": {"url": " https://x.example/1.mp4 "}},
    ],
    ids=["missing", "null", "odd"],
)
def test_an_upstream_task_without_an_id_is_read(inner: dict[str, Any]) -> None:
    """The relay's id counts, so the response inside it does not need one."""
    record = read({"code": "success", "data": {"task_id": "t-1", "data": inner}})
    assert (record.task_id, record.state) == ("t-1", TaskState.SUCCEEDED)
    assert record.video_url == "https://x.example/1.mp4"


def test_the_polled_id_is_kept_once() -> None:
    """A record holds the id object of the request, unless the response has another id."""
    body = b'{"code": 200, "data": {"task_id": "%s", "status": "1"}}'
    request = request_to("feed", task_id="t-1")
    same, other = (read_task(Reply(request, 200, {}, body % each)) for each in (b"t-1", b"t-2"))
    assert same.task_id is request.task_id
    assert other.task_id == "t-2"


def test_the_outermost_level_that_has_a_field_counts() -> None:
    """A relay's values count, even zero, and the upstream fills the gaps."""
    inner = {"code": 200, "data": {"task_id": "u-1", "status": "1", "progress": "40%", "point": 5}}
    task = {"task_id": "t-1", "status": "IN_PROGRESS", "progress": "0%", "data": inner}
    record = read({"code": "success", "data": task})
    assert (record.task_id, record.progress, record.points) == ("t-1", 0.0, 5.0)


def test_the_address_of_the_relay_comes_before_the_upstreams() -> None:
    """A relay's `result_url` is taken before the `video_url` that it quotes (api-facts 3.4)."""
    inner = {"task_id": "u-1", "status": "3", "video_url": "https://upstream.example/1.mp4"}
    task = {"task_id": "t-1", "status": "SUCCESS", "result_url": "https://relay.example/1.mp4"}
    record = read({"code": "success", "data": {**task, "data": inner}})
    assert record.video_url == "https://relay.example/1.mp4"


@pytest.mark.parametrize("inner", [{"code": 200, "data": None}, {"success": False}, {"a": 1}, 5])
def test_an_upstream_answer_without_a_task_changes_nothing(inner: Any) -> None:
    """Data inside a relay's task that is not a task is ignored."""
    task = {"task_id": "t-1", "status": "IN_PROGRESS", "data": inner}
    assert read({"code": "success", "data": task}).state is TaskState.RUNNING


def test_answers_are_unwrapped_three_levels_deep() -> None:
    """Responses nested in responses are read three levels deep and no further (api-facts 2 J)."""
    body: dict[str, Any] = {"task_id": "t-1", "status": "3", "video_url": "https://x.example/1"}
    for _ in range(4):
        body = {"code": "success", "data": {"task_id": "t-1", "data": body}}
    assert read(body).video_url is None


@pytest.mark.parametrize(
    "body",
    [
        {"id": "t-1", "status": "RUNNING"},
        {"id": "t-1", "state": "pending"},
        {"task_id": "t-1", "status": "1"},
        {"task_id": "t-1", "result_url": ""},
        {"code": True, "data": {"task_id": "t-1"}},
    ],
)
def test_an_id_with_an_http_error_is_not_a_task(body: dict[str, Any]) -> None:
    """A shape that has no code is a response only if the HTTP status is 2xx."""
    assert read(body).task_id == "t-1"
    with pytest.raises(errors.GatewayDown):
        read(body, status=502)
    with pytest.raises(errors.InvalidRequest):
        read(body, status=400)


@pytest.mark.parametrize("code", [200, "200", "success"])
def test_the_code_of_an_envelope_outweighs_the_http_status(code: Any) -> None:
    """The code of the two envelopes is enough for success, so that no id is lost."""
    body = {"code": code, "data": {"task_id": "t-1"}}
    assert read(body, "text_to_video", status=502).task_id == "t-1"


def test_of_a_list_the_polled_task_is_read() -> None:
    """Of the tasks in a batch answer, the one with the polled id counts."""
    tasks = [{"task_id": "t-0", "status": "FAILURE"}, 5, {"task_id": "t-1", "status": "SUCCESS"}]
    assert read({"code": "success", "data": tasks}).state is TaskState.SUCCEEDED


@pytest.mark.parametrize("envelope", [{"code": "success"}, {"code": 200}, {}])
def test_of_several_tasks_without_the_polled_one_none_is_read(envelope: dict[str, Any]) -> None:
    """The clip of another task is not taken for this one's."""
    url = "https://cdn.example/other.mp4"
    tasks = [{"task_id": "t-0", "status": "3", "video_url": url}, {"task_id": "t-2"}]
    with pytest.raises((errors.NotFound, errors.UnreadableReply)):
        read({**envelope, "data": tasks})
    assert read({**envelope, "data": [*tasks, {"task_id": "t-1"}]}).task_id == "t-1"


def test_of_a_list_with_one_other_task_that_one_is_read() -> None:
    """A response about another task is returned with that task's id."""
    assert read({"code": "success", "data": [{"task_id": "t-0"}]}).task_id == "t-0"


@pytest.mark.parametrize("empty", [None, [], {}])
def test_an_empty_answer_to_a_poll_means_no_such_task(empty: Any) -> None:
    """A relay's response to a poll with empty data is `NotFound` (api-facts 2 B)."""
    with pytest.raises(errors.NotFound) as caught:
        read({"code": "success", "data": empty})
    assert caught.value.task_id == "t-1"


def test_an_empty_answer_to_a_submit_is_of_unknown_fate() -> None:
    """A submit that is answered with empty data may have been accepted."""
    with pytest.raises(errors.UnreadableReply) as caught:
        read({"code": "success", "data": None}, "text_to_video")
    assert caught.value.fate is Fate.UNKNOWN
    assert caught.value.reasons == ("expected an object, got nothing @ $.data",)


@pytest.mark.parametrize(
    ("task_id", "kind"),
    [
        ("", "nothing"),
        (None, "nothing"),
        (" ", "str"),
        ({"a": "marked"}, "dict"),
    ],
)
def test_a_wrong_id_is_reported_without_its_value(task_id: Any, kind: str) -> None:
    """An id that is empty or not a text is reported with its path and without its value."""
    with pytest.raises(errors.UnreadableReply) as caught:
        read({"code": 200, "data": {"task_id": task_id}})
    assert caught.value.reasons == (f"expected a task id, got {kind} @ $.data.task_id",)
    assert secrets_in(caught.value, ["marked"]) == []


def test_a_missing_field_is_reported_with_its_path() -> None:
    """The error names the path of a missing field, and shows the shape without content."""
    with pytest.raises(errors.UnreadableReply) as caught:
        read({"code": 200, "data": {"prompt": "marked", "sk-marked-7c1e9d5b": 1}})
    assert caught.value.reasons == ("expected a task id, got nothing @ $.data.task_id",)
    assert caught.value.excerpt == "{prompt: str, <hidden>: int}"


@pytest.mark.parametrize(
    ("endpoint", "body", "reason"),
    [
        ("subscription", {"task_id": "t-1"}, "expected a balance, got a task @ $"),
        ("feed", {"hard_limit_usd": 1}, "expected a task, got a balance @ $"),
        ("usage", {"object": "list"}, "expected a number, got nothing @ $.total_usage"),
        ("token_usage", {"code": True, "data": []}, "expected an object, got list @ $.data"),
    ],
)
def test_an_answer_to_another_request_is_unreadable(
    endpoint: str, body: dict[str, Any], reason: str
) -> None:
    """A task in place of a balance, or half a balance, is an error."""
    with pytest.raises(errors.UnreadableReply) as caught:
        read(body, endpoint)
    assert caught.value.reasons == (reason,)


def test_a_reply_that_is_too_large_is_not_read() -> None:
    """A body above the limit is unreadable, even if the part that was read is valid JSON."""
    body = b'{"code":200,"data":{"task_id":"t-1"}}'
    with pytest.raises(errors.UnreadableReply, match="larger than the size limit"):
        read_task(Reply(request_to("text_to_video"), 200, {}, body, cut=True))


def test_a_page_that_is_too_large_is_still_a_page() -> None:
    """A large web page means a wrong address, although only a part of it was read."""
    with pytest.raises(errors.NotFound, match="web page"):
        read_task(
            Reply(request_to("text_to_video"), 200, {}, b"<!DOCTYPE html><div id=root>", cut=True)
        )


@pytest.mark.parametrize("name", ["x-oneapi-request-id", "x-request-id"])
@pytest.mark.parametrize("body", [{"error": {"message": "no"}}, {"what": 1}])
def test_a_request_id_may_be_in_a_header(name: str, body: dict[str, Any]) -> None:
    """If the message has no request id, the header's is reported, with secrets hidden."""
    with pytest.raises(errors.RunwayError) as caught:
        read(body, headers={name: f"r-1-{KEY}"})
    assert caught.value.request_id == "r-1-<hidden>"


def test_the_request_id_of_the_message_comes_first() -> None:
    """The gateway's support can find the request by the id in the message."""
    with pytest.raises(errors.GatewayError) as caught:
        read({"code": 400, "msg": f"no (request id: r-{KEY})"}, headers={"x-request-id": "r-2"})
    assert caught.value.request_id == "r-<hidden>"
    assert caught.value.message == "no"


@pytest.mark.parametrize("filler", [" ", "a-", "x:", '"', "\\", "(request id: ", "1.1.1."])
def test_a_long_message_is_read_in_time(filler: str) -> None:
    """Any 100,000 characters are read in linear time; else the suite's timeout would fail."""
    message = f"no {filler * (100_000 // len(filler))} end"
    with pytest.raises(errors.InvalidRequest):
        read({"code": 400, "msg": message})
    with pytest.raises(errors.UnreadableReply):
        read(message.encode())


@pytest.mark.parametrize("stop", [".", "!", "?", "。"])
def test_a_message_that_is_a_sentence_gets_no_second_full_stop(stop: str) -> None:
    """An error keeps the full stop of the gateway's message and adds no other."""
    with pytest.raises(errors.InvalidRequest) as caught:
        read({"code": 400, "msg": f"wrong ratio{stop}"})
    assert caught.value.happened.endswith(f"wrong ratio{stop}")


def test_a_message_without_a_full_stop_gets_one() -> None:
    """The text of an error consists of sentences."""
    with pytest.raises(errors.InvalidRequest) as caught:
        read({"code": 400, "msg": "wrong ratio"})
    assert caught.value.happened == "The gateway refused with status 400: wrong ratio."


# Retry-After

NOON = "Wed, 05 Nov 2025 12:00:00 GMT"
ONE_PAST = "Wed, 05 Nov 2025 12:01:00 GMT"
NOON_UNIX = 1762344000.0


@pytest.mark.parametrize(
    ("headers", "received_at", "seconds"),
    [
        ({}, NOON_UNIX, None),
        ({"retry-after": "3"}, None, 3.0),
        ({"retry-after": " 2.5 "}, None, 2.5),
        ({"retry-after": "0"}, None, 0.0),
        ({"retry-after": "-7"}, None, None),
        ({"retry-after-ms": "1500"}, None, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, None, 1.5),
        ({"retry-after-ms": "-1", "retry-after": "9"}, None, 9.0),
        ({"retry-after-ms": "soon", "retry-after": "9"}, None, 9.0),
        ({"retry-after": ONE_PAST, "date": NOON}, None, 60.0),
        ({"retry-after": ONE_PAST, "date": NOON}, 0.0, 60.0),
        ({"retry-after": ONE_PAST}, NOON_UNIX + 45, 15.0),
        ({"retry-after": ONE_PAST, "date": "yesterday"}, NOON_UNIX, 60.0),
        ({"retry-after": NOON, "date": ONE_PAST}, None, 0.0),
        ({"retry-after": ONE_PAST}, None, None),
        ({"retry-after": "Wed, 05 Nov 2025 12:01:00", "date": NOON}, None, 60.0),
        ({"retry-after": "nan"}, NOON_UNIX, None),
        ({"retry-after": "inf"}, NOON_UNIX, None),
        ({"retry-after": "1e999"}, NOON_UNIX, None),
        ({"retry-after": "later"}, NOON_UNIX, None),
        ({"retry-after": "9" * 400}, NOON_UNIX, None),
        ({"retry-after": str(NOON_UNIX + 60)}, NOON_UNIX, 60.0),
        ({"retry-after": str(NOON_UNIX - 60)}, NOON_UNIX, 0.0),
        ({"retry-after": str(1000 * (NOON_UNIX + 60))}, NOON_UNIX, 60.0),
        ({"retry-after": str(NOON_UNIX + 60), "date": NOON}, None, 60.0),
        ({"retry-after": str(NOON_UNIX + 60)}, None, None),
        ({"retry-after-ms": str(1000 * (NOON_UNIX + 60))}, NOON_UNIX, 60.0),
        ({"retry-after": "1e10"}, NOON_UNIX, 1e10 - NOON_UNIX),
        ({"retry-after": "86400"}, NOON_UNIX, 86400.0),
        ({"retry-after": "Wed, 05 Nov 2025 12:01:99999999999999999999 GMT"}, NOON_UNIX, None),
        ({"retry-after": "Wed, 05 Nov 2025 12:01:00 +99999999999999999999"}, NOON_UNIX, None),
    ],
)
def test_retry_after_is_read_in_its_three_forms(
    headers: dict[str, str], received_at: float | None, seconds: float | None
) -> None:
    """Milliseconds, seconds and dates are read as seconds from 0; anything else is ignored."""
    assert retry_after(headers, received_at) == seconds


# Values


@pytest.mark.parametrize(
    ("sent_as", "progress"),
    [
        ("0%", 0.0),
        (" 27% ", 0.27),
        ("100%", 1.0),
        ("250%", 1.0),
        (0.275, 0.275),
        (1, 1.0),
        (27, 0.27),
        (-5, 0.0),
        ("%", None),
        ("soon", None),
        (True, None),
        ([], None),
        (None, None),
    ],
)
def test_progress_is_a_fraction_of_one(sent_as: Any, progress: float | None) -> None:
    """Percentages, fractions and whole numbers are read on one scale, from 0 to 1."""
    assert read({"task_id": "t-1", "progress": sent_as}).progress == pytest.approx(progress)


@pytest.mark.parametrize(
    ("sent_as", "moment"),
    [
        (1734078348, "2024-12-13T08:25:48+00:00"),
        ("1734078348", "2024-12-13T08:25:48+00:00"),
        (1734078348000, "2024-12-13T08:25:48+00:00"),
        ("2026-03-13T09:52:46+08:00", "2026-03-13T01:52:46+00:00"),
        ("2026-03-13T09:52:46", "2026-03-13T09:52:46+00:00"),
        ("0001-01-01T00:00:00+08:00", None),
        ("0", None),
        (-1, None),
        (1e30, None),
        ("", None),
        ([], None),
    ],
)
def test_times_are_aware_and_in_utc(sent_as: Any, moment: str | None) -> None:
    """Unix seconds, milliseconds and ISO texts are read as aware UTC times, and zero as None."""
    created_at = read({"task_id": "t-1", "create_time": sent_as}).created_at
    assert (created_at and created_at.isoformat()) == moment


@pytest.mark.parametrize(
    ("sent_as", "refunded"),
    [
        *[(no, False) for no in (None, "", "0", 0, "0.0", False)],
        *[(yes, True) for yes in ("1", 320, True, "yes", "0.5")],
    ],
)
def test_a_refund_is_an_amount_or_a_flag(sent_as: Any, refunded: bool) -> None:
    """Any value but an empty one and zero means that points were refunded (api-facts 4)."""
    assert read({"task_id": "t-1", "refund": sent_as}).refunded is refunded


@pytest.mark.parametrize(
    ("body", "balance"),
    [
        (
            {"code": True, "data": {"total_granted": 10, "total_used": 4}},
            Balance(6, 4, 10),
        ),
        (
            {"code": True, "data": {"total_available": 6, "total_used": 4}},
            Balance(6, 4, 10),
        ),
        ({"code": True, "data": {"total_available": 6}}, Balance(6, None, None)),
        (
            {"code": True, "data": {"total_used": 4, "unlimited_quota": True}},
            Balance(None, 4, None, unlimited=True),
        ),
        ({"code": True, "data": {"unlimited_quota": "true"}}, Balance()),
        ({"hard_limit_usd": "100000000"}, Balance(unlimited=True)),
        ({"total_usage": "123.4"}, Balance(None, 1.234, None)),
        ({"total_quota": 6, "total_used_quota": 4}, Balance(6, 4, 10)),
    ],
)
def test_a_balance_is_completed_from_two_of_three(body: dict[str, Any], balance: Balance) -> None:
    """Of remaining, used and total, the third is computed from the other two."""
    assert read(body, "token_usage") == balance


# Webhooks


@pytest.mark.parametrize(
    "sample", [one for one in samples() if one.folder == "callback"], ids=lambda one: one.name
)
def test_a_webhook_is_read_like_the_feed(sample: Sample) -> None:
    """The body of a webhook is read as the same record as the feed's response."""
    assert read_callback(sample.body) == sample.read()


def test_a_webhook_with_an_envelope_is_read() -> None:
    """A webhook whose body is the feed's whole response is read."""
    body = json.dumps({"code": 200, "msg": "success", "data": {"task_id": "t-1", "status": "3"}})
    found = read_callback(body.encode())
    assert found is not None
    assert (found.task_id, found.state) == ("t-1", TaskState.SUCCEEDED)


@pytest.mark.parametrize("body", [b"", b"[", b"null", b'{"error": {"message": "no"}}', b"\xff\xfe"])
def test_a_webhook_that_cannot_be_read_is_no_error(body: bytes) -> None:
    """A body that cannot be read is None, because anyone may post to a webhook."""
    assert read_callback(body) is None


def test_an_unknown_status_shows_no_secret() -> None:
    """An unknown status is cut and hides the secrets that it quotes; such a code is dropped."""
    odd = "a wombat of 10.1.2.3 " + "moonwalking " * 9
    body = json.dumps({"id": "t-1", "status": odd, "failure": "no", "failureCode": odd})
    request = attrs.evolve(request_to("official_task"), secrets=("a wombat",))
    record = read_task(Reply(request, 200, {}, body.encode()))
    assert record.word == "<hidden> of <ip> moonwalking moonwalking "[:40]
    assert record.failure_code is None


def test_secrets_can_be_added_to_a_request() -> None:
    """Each is added once and empty ones are not; without a new one it is the same object."""
    request = request_to("feed").hiding("a wombat", None, "", "a wombat", "bilby")
    assert request.secrets == (*request_to("feed").secrets, "a wombat", "bilby")
    assert request.hiding("bilby", None) is request


@pytest.mark.parametrize(
    "prompt", ['{"task_id":"zzz-9"}', '"id": "x-1"', "a kitten, task_id: zzz-9 ", "task_id=zzz-9"]
)
@pytest.mark.parametrize("form", ["{}", "<p>{}</p>", '{{"error":{{"message":{}}}}}'])
def test_an_id_that_was_sent_is_not_a_task(prompt: str, form: str) -> None:
    """A prompt that looks like a response names no task if the gateway quotes it."""
    request = build(TextToVideo(prompt), GATEWAY, KEY)
    body = form.format(json.dumps(prompt) if "{{" in form else prompt).encode()
    assert salvaged(request, body, is_whole=True) is None
    assert salvaged(request, b'{"id":"t-1"}' + body) == "t-1"


@pytest.mark.parametrize("place", ["hooks.example/8f14e45fceea167a", "x.example/h?task_id=abc-1"])
def test_a_callback_url_is_neither_shown_nor_a_task(place: str) -> None:
    """A refusal that quotes it, with or without its scheme, stays one, and its text hides it."""
    request = build(TextToVideo("a kitten"), GATEWAY, KEY, f"https://{place}")
    for said in (place, f"https://{place}", quote(f"https://{place}", safe="")):
        body = json.dumps({"error": {"message": f"{said} is wrong", "callback_url": said}})
        with pytest.raises(errors.InvalidRequest) as caught:
            read_task(Reply(request, 400, {}, body.encode()))
        assert place.partition("/")[2] not in str(caught.value)


def test_an_id_that_contains_a_secret_is_not_a_task() -> None:
    """The key or a prompt is no id; a short word may be part of an id by chance."""
    request = build(TextToVideo("kit"), GATEWAY, KEY)
    assert salvaged(request, json.dumps({"task_id": f"x{KEY}"}).encode()) is None
    assert salvaged(request, b'{"task_id":"kit"}') is None
    assert salvaged(request, b'{"task_id":"kit-1"}') == "kit-1"
    assert salvaged(request, b'{"task_id":"127.0.0.1"}') is None


def test_a_page_with_the_prompt_is_not_the_index_page() -> None:
    """The mark of the index page proves nothing if it is quoted from the prompt."""
    prompt = '<div id="root">'
    request = build(TextToVideo(prompt), GATEWAY, KEY)
    reply = Reply(request, 200, {"content-type": "text/html"}, f"<p>{prompt}</p>".encode())
    with pytest.raises(errors.GatewayDown) as caught:
        read_task(reply)
    assert caught.value.fate is errors.Fate.UNKNOWN


# What a damaged answer still says


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        (b'{"task_id":"t-1"}', ("t-1",)),
        (b'{"taskId":"t-1"}', ("t-1",)),
        (b'{"TaskID":"t-1"}', ("t-1",)),
        (b'{"task-id":"t-1"}', ("t-1",)),
        (b'{"id":"t-1"}', ("t-1",)),
        (b'{"id":4711}', ("4711",)),
        (b'{"ID":"t-1"}', ("t-1",)),
        (b'{"data":{"id":"t-1"}}', ("t-1",)),
        (b'{"data":"t-1"}', ("t-1",)),
        (b'{"data":["t-1","t-2"]}', ("t-1", "t-2")),
        (b'{"data":[{"taskId":"t-1"}]}', ("t-1",)),
        (b'{"data":"[{\\"id\\":\\"t-1\\"}]"}', ("t-1",)),
        (b'{"result":"1712384729"}', ("1712384729",)),
        (b'{"output":{"task_id":"t-1"}}', ("t-1",)),
        (b'{"error":{"message":"odd","task_id":"t-1"}}', ("t-1",)),
        (b'{"error":{"message":"busy (task_id: t-1)"}}', ("t-1",)),
        (b'{"a":{"b":{"c":{"d":{"e":{"task_id":"t-1"}}}}}}', ("t-1",)),
        (b'{"task id":"t-1"}', ("t-1",)),
        (b'{"_id":"t-1"}', ("t-1",)),
        (b'{"generation_id":"t-1"}', ("t-1",)),
        (b'{"jobId":"t-1"}', ("t-1",)),
        (b'{"Data":{"Id":"t-1"}}', ("t-1",)),
        (b'{"tasks":[{"id":"t-1"}]}', ("t-1",)),
        (b'{"task_ids":["t-1"]}', ("t-1",)),
        (b'{"task_id":{"id":"t-1"}}', ("t-1",)),
        (b'{"task_id":"t-1","task_id":""}', ("t-1",)),
        (b'{"data":{"task_id":"t-1"},"data":null}', ("t-1",)),
        (b'{"task_id":4711.0}', ("4711",)),
        (b'{"result":1712384729}', ("1712384729",)),
        (b'{"task_id":"t|1"}', ("t|1",)),
        ('{"task_id":"任务-1"}'.encode(), ("任务-1",)),
        (b'{"id":"r-1","code":200,"data":{"id":"t-1"}}', ("t-1", "r-1")),
        (b'{"error":"{\\"task_id\\":\\"t-1\\"}"}', ("t-1",)),
        (b'{"id":"answer-1","data":{"task_id":"t-1"}}', ("t-1", "answer-1")),
        (b'{"id":"t-1"}{"id":"t-2"}', ("t-1", "t-2")),
        (b'<br />Warning: [x] {\n{"id":"t-1"}', ("t-1",)),
        (b'<script>x = {"id": "t-1"};</script>', ("t-1",)),
        (b'{"code":200,"data":{"task_id":"t-1","state":"","sta', ("t-1",)),
        (b'{"data":{"task_id":"t-1","options":{"a":1},"pro', ("t-1",)),
        (b'{"data":{"id":"t-1","pro', ("t-1",)),
        (b"{'task_id': 't-1'}", ("t-1",)),
        (b"task_id=t-1&status=queued", ("t-1",)),
        (b"<task_id>t-1</task_id>", ("t-1",)),
        (b"<task-id>t-1</task-id>", ("t-1",)),
        (b'<task_id type="string">t-1</task_id>', ("t-1",)),
        (b"<task_id><![CDATA[t-1]]></task_id>", ("t-1",)),
        (b"<r><id>t-1</id></r>", ("t-1",)),
        (b"<tr><td>task_id</td><td>t-1</td></tr>", ("t-1",)),
        (b"<dict><key>task_id</key><string>t-1</string></dict>", ("t-1",)),
        (b"<pre>{&quot;task_id&quot;:&quot;t-1&quot;}</pre>", ("t-1",)),
        (b"data%5Btask_id%5D=t-1&x=", ("t-1",)),
        (b"data=%7B%22task_id%22%3A%22t-1%22%7D", ("t-1",)),
        (b"id=t-1&code=200", ("t-1",)),
        (b'name="task_id"\r\n\r\nt-1\r\n--b--', ("t-1",)),
        (b'["task_id"]=> string(3) "t-1"', ("t-1",)),
        (b"{id:'t-1'}", ("t-1",)),
        (b"{task_id:`t-1`}", ("t-1",)),
        (b'{"code":200 "task_id":/*new*/"t-1",}', ("t-1",)),
        ("{“task_id”：“t-1”}".encode(), ("t-1",)),
        (b'{\xef\xbb\xbf"data":{"task_id":"t-1"}}', ("t-1",)),
        (b'data: {"status":"queued"}\n\ndata: {"task_id":"t-1"}\n', ("t-1",)),
        ('{"id":"t-1"}'.encode("utf-16"), ("t-1",)),
        ('{"id":"t-1"}'.encode("utf-32-be"), ("t-1",)),
        ('{"msg":"成功","task_id":"t-1"}'.encode("gbk"), ("t-1",)),
        # Perhaps cut.
        (b'{"code":200,"data":{"task_id":"573772da', ()),
        (b"task_id=573772da", ()),
        # Not an id.
        (b"", ()),
        (b"ok", ()),
        (b'{"data":"error"}', ()),
        (b'{"data":"two words 2"}', ()),
        (b'{"data":["ok",true,7]}', ()),
        (b'{"id":null,"task_id":"","data":{"id":true}}', ()),
        (b'{"id":"0","task_id":"None","data":{"id":["x"]}}', ()),
        (b'{"error":{"id":"request-1"}}', ()),
        (b'{"request_id":"request-1","message":"task_id: has to be set"}', ()),
        (b'{"data":60,"result":500000}', ()),
        (b'{"task_id":"","state":"","status":""}', ()),
        (b'{"task_id":-1,"id":-7,"job_id":1.5}', ()),
        (b'<html id="root"><div id="main-1">', ()),
        (b"[" * 100_000, ()),
        (b'{"a":' * 100_000, ()),
    ],
)
def test_the_ids_in_an_answer(body: bytes, ids: tuple[str, ...]) -> None:
    """Each id at a usual place is found, the surest first, in any encoding or format."""
    assert salvage(body) == ids


def test_a_compressed_answer_is_unpacked() -> None:
    """Both formats are recognised by their first bytes, and read up to a cut or broken place."""
    plain = b'{"id":"t-1"}' + bytes(100)
    assert salvage(gzip.compress(plain)) == salvage(zlib.compress(plain)) == ("t-1",)
    assert salvage(gzip.compress(plain)[:-10]) == ("t-1",)
    assert salvage(gzip.compress(plain)[:-8] + bytes(8)) == ("t-1",)
    assert salvage(gzip.compress(gzip.compress(plain))) == ("t-1",)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    assert salvage(packer.compress(plain) + packer.flush()) == ("t-1",)
    assert salvage(b"\xab\x56") == ()
    noise = plain + random.Random(1).randbytes(2 * MAX_BROKEN)
    assert salvage(gzip.compress(noise)[:-8] + bytes(8)) == ("t-1",)
    assert text_of(b"\x1f\x8bodd") == ""
    assert len(text_of(gzip.compress(b" " * (MAX_BYTES + 9)))) == MAX_BYTES


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a":1}', {"a": 1}),
        (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
        (b'{"a":"one\ntwo\x00"}', {"a": "one\ntwo\0"}),
        (b'{"a":1}<br />', {"a": 1}),
        (b'{"a":1}{"b":2}', {"a": 1}),
        (b'<br />[x]\n{"a":1}\n', {"a": 1}),
        (b'"{\\"a\\":1}"', {"a": 1}),
        (b'"{odd"', "{odd"),
        (b'{"a":NaN}', {"a": None}),
        (b'{"a":%s}' % (b"9" * 5000), {"a": None}),
    ],
)
def test_loose_json_is_read(body: bytes, value: object) -> None:
    """A body that a strict parser refuses is read if it can only be one value."""
    assert decode(body) == value


@pytest.mark.parametrize(
    "body", [b"", b"ok", b'<p>{"a":1}</p>', b'{"a":{"b":1}', b'{"a":{"b":1},', b"{'a': 1}"]
)
def test_a_body_that_is_not_json(body: bytes) -> None:
    """A value inside a page, or inside a broken value, is not the response."""
    with pytest.raises(ValueError, match=r"."):
        decode(body)


def test_json_in_a_text() -> None:
    """Only objects and lists are read, because a text may be a number by chance."""
    assert parsed(' {"a":1}') == {"a": 1}
    assert parsed("[1]") == [1]
    assert parsed("7") is parsed("{") is parsed("[" * 100_000) is None


def test_an_id_at_the_end_of_a_whole_answer() -> None:
    """An id at the end, or as the whole response, counts only if all of the body arrived."""
    assert salvage(b"code=200&task_id=t-1", is_whole=True) == ("t-1",)
    assert salvage(b"573772da-c2ec-4a60\n", is_whole=True) == ("573772da-c2ec-4a60",)
    assert salvage(b"573772da-c2ec-4a60") == salvage(b"error 404", is_whole=True) == ()


@pytest.mark.parametrize("value", [None, True, "", "two words", "x" * 501, 1.5, [], "NULL", "0", 0])
def test_what_cannot_be_an_id(value: object) -> None:
    """An id is a text of one word or a whole number, and not a word such as null."""
    assert id_of(value) is None


def test_an_id_alone_has_a_digit() -> None:
    """Text without a digit is a word, such as error."""
    assert bare_id(" t-1 ") == "t-1"
    assert bare_id("error") is None
    assert bare_id(4711) is None
    assert json.loads(json.dumps(bare_id("573772da-c2ec"))) == "573772da-c2ec"


# As gateways, relays and other video APIs answer


LOST = {
    "a relay's timeout": (400, {"code": "upstream", "message": "任务提交超时，请稍后重试"}),
    "a Go client's deadline": (200, {"code": 400, "msg": "context deadline exceeded"}),
    "a Go client's end of file": (400, {"error": {"message": "unexpected EOF", "code": 400}}),
    "a relay's own words for a 5xx": (
        422,
        {"error": {"message": "bad response status code 502", "type": "bad_response_status_code"}},
    ),
    "an API gateway's timeout": (400, {"message": "Endpoint request timed out"}),
    "an answer without an id": (400, {"code": "invalid_response", "message": "task_id is empty"}),
    "an answer that is no JSON": (400, {"code": "unmarshal_response_failed", "message": "x"}),
    "a 5xx of the upstream": (
        400,
        {"code": "fail_to_fetch_task", "message": '{"code":500,"msg":"internal"}'},
    ),
    "a number that HTTP alone may prove": (
        400,
        {"code": "fail_to_fetch_task", "message": '{"code":501,"msg":"Generation failed"}'},
    ),
    "a submit that is there already": (200, {"code": 400, "msg": "任务已提交，请勿重复提交"}),
}


@pytest.mark.parametrize("name", LOST)
def test_a_4xx_about_a_lost_answer_proves_nothing(name: str) -> None:
    """As new-api relays do: a mapped 4xx whose reason is that the upstream's answer was lost."""
    status, body = LOST[name]
    request = Request(ENDPOINTS["text_to_video"], "", {})
    with pytest.raises(errors.GatewayDown) as caught:
        read_task(Reply(request, status, {}, json.dumps(body).encode()))
    assert caught.value.fate is Fate.UNKNOWN
    assert "Nothing was charged" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "width must be at least 512", "code": "invalid_value"}},
        {"code": "fail_to_fetch_task", "message": '{"code":400,"msg":"image is too small"}'},
    ],
)
def test_a_4xx_about_the_request_remains_a_refusal(body: dict[str, Any]) -> None:
    """A reason that is about the request itself proves that nothing was charged."""
    request = Request(ENDPOINTS["text_to_video"], "", {})
    with pytest.raises(errors.InvalidRequest, match="Nothing was charged"):
        read_task(Reply(request, 400, {}, json.dumps(body).encode()))


FILM = "https://cdn.example.com/clip.mp4"
FILMS = {
    "xAI": {"id": "t-1", "status": "done", "video": {"url": FILM, "duration": 8}},
    "OpenAI's videos by a relay": {
        "id": "t-1",
        "status": "completed",
        "progress": 100,
        "metadata": {"url": FILM},
    },
    "kling in a relay": {
        "code": "success",
        "data": {
            "task_id": "t-1",
            "status": "SUCCESS",
            "fail_reason": "",
            "data": {"task_status": "succeed", "task_result": {"videos": [{"url": FILM}]}},
        },
    },
    "vidu in a relay": {
        "code": "success",
        "data": {
            "task_id": "t-1",
            "status": "SUCCESS",
            "data": {"id": "u", "state": "success", "creations": [{"id": "1", "url": FILM}]},
        },
    },
    "an id and a state beside a bare address": {"id": "t-1", "state": "success", "url": FILM},
    "PiAPI": {
        "code": 200,
        "data": {
            "task_id": "t-1",
            "status": "completed",
            "works": [{"video": {"resource": FILM}}],
        },
    },
    "kie.ai": {
        "code": 200,
        "data": {
            "taskId": "t-1",
            "state": "success",
            "resultJson": json.dumps({"resultUrls": [FILM]}),
        },
    },
}


@pytest.mark.parametrize("name", FILMS)
def test_the_clip_is_found_where_video_apis_put_it(name: str) -> None:
    """As video APIs behind relays answer: the address is one or two levels below the task."""
    request = Request(ENDPOINTS["feed"], "", {}, task_id="t-1")
    record = read_task(Reply(request, 200, {}, json.dumps(FILMS[name]).encode()))
    assert (record.state, record.video_url) == (TaskState.SUCCEEDED, FILM)


@pytest.mark.parametrize("key", ["video", "metadata"])
def test_what_may_be_the_input_is_no_clip_while_the_task_runs(key: str) -> None:
    """An address that may be what was sent counts only beside a success."""
    request = Request(ENDPOINTS["feed"], "", {}, task_id="t-1")
    body = {"id": "t-1", "status": "processing", key: {"url": FILM}}
    record = read_task(Reply(request, 200, {}, json.dumps(body).encode()))
    assert (record.state, record.video_url) == (TaskState.RUNNING, None)


@pytest.mark.parametrize("key", ["jobs", "generations"])
def test_a_task_in_a_list_of_jobs_is_accepted(key: str) -> None:
    """As batch APIs do: the only task of a submit is the entry of a list."""
    request = Request(ENDPOINTS["text_to_video"], "", {})
    body = {key: [{"id": "774109f7-db7b", "status": "pending"}]}
    record = read_task(Reply(request, 200, {}, json.dumps(body).encode()))
    assert (record.task_id, record.state) == ("774109f7-db7b", TaskState.QUEUED)
