import copy
import json
import math
import pickle
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final

import attrs
import pydantic
import pytest
from support.secrets import secrets_in

from fuhu_runway import models
from fuhu_runway._urls import is_reachable_address, is_web_address
from fuhu_runway._wire.tables import GATEWAYS
from fuhu_runway.errors import UsageError
from fuhu_runway.models import (
    ActOne,
    Aleph,
    Balance,
    BalanceRoute,
    Gateway,
    ImageToVideo,
    KeyStyle,
    Limits,
    MotionVector,
    OfficialCharacterPerformance,
    OfficialImageToVideo,
    OfficialRequest,
    OfficialTextToVideo,
    OfficialVideoToVideo,
    OfficialVideoUpscale,
    PollPolicy,
    RetryPolicy,
    TaskRecord,
    TaskState,
    TextToVideo,
    Timeouts,
    VideoToVideo,
)

NOT_URLS: Final[list[Any]] = [
    "",
    "marked words",
    "marked.example/1.jpeg",
    "ftp://marked.example/1.jpeg",
    "https://",
    "https:///1.jpeg",
    "https://[marked/1.jpeg",
    "https://marked.example/1 2.jpeg",
    "https://marked.example/\ud800.jpeg",
    "file:///home/marked/1.jpeg",
    "https://marked.example:99999999/1.jpeg",
    "https://marked.example/1\x1f.jpeg",
    5,
]


IMAGE = "https://marked.example/1.jpeg?_jwt=marked"
CLIP = "https://marked.example/1.mp4?_jwt=marked"
PROMPT = "a marked kitten"

Make = Callable[..., Any]


def text(**changes: Any) -> TextToVideo:
    """Return a request for text to video with these changes."""
    return TextToVideo(**{"prompt": PROMPT} | changes)


def image(**changes: Any) -> ImageToVideo:
    """Return a request for image to video with these changes."""
    return ImageToVideo(**{"prompt": PROMPT, "image": IMAGE} | changes)


def video(**changes: Any) -> VideoToVideo:
    """Return a request for video to video with these changes."""
    return VideoToVideo(**{"video": CLIP, "prompt": PROMPT} | changes)


def act_one(**changes: Any) -> ActOne:
    """Return a request for a performance transfer with these changes."""
    return ActOne(**{"video": CLIP, "image": IMAGE} | changes)


def official(**changes: Any) -> OfficialImageToVideo:
    """Return a request in the official format with these changes."""
    return OfficialImageToVideo(**{"image": IMAGE, "prompt": PROMPT} | changes)


def aleph(**changes: Any) -> Aleph:
    """Return a request for Aleph with these changes."""
    return Aleph(**{"video": CLIP, "prompt": PROMPT} | changes)


def official_text(**changes: Any) -> OfficialTextToVideo:
    """Return a request for text to video in the official format with these changes."""
    return OfficialTextToVideo(**{"prompt": PROMPT} | changes)


def official_video(**changes: Any) -> OfficialVideoToVideo:
    """Return a request for video to video in the official format with these changes."""
    return OfficialVideoToVideo(**{"video": CLIP, "prompt": PROMPT} | changes)


def performance(**changes: Any) -> OfficialCharacterPerformance:
    """Return a request for a performance transfer in the official format with these changes."""
    return OfficialCharacterPerformance(**{"video": CLIP, "image": IMAGE} | changes)


def upscale(**changes: Any) -> OfficialVideoUpscale:
    """Return a request for a larger clip with these changes."""
    return OfficialVideoUpscale(**{"video": CLIP} | changes)


def anything(**changes: Any) -> OfficialRequest:
    """Return a request of the official format without a class of its own, with these changes."""
    return OfficialRequest(**{"path": "text_to_video", "body": {"promptText": PROMPT}} | changes)


OFFICIAL: list[Make] = [official_text, official, official_video, performance, upscale]
REQUESTS: list[Make] = [text, image, video, act_one, aleph, *OFFICIAL]
MAKERS: dict[type, Make] = {type(make()): make for make in REQUESTS}
POLICIES: list[Make] = [Timeouts, RetryPolicy, PollPolicy, Limits, MotionVector, Gateway]

# The advice of the errors, and values that are refused.
WORD = "with at least one word"
ADDRESS = "that the gateway can download"
SECONDS = "Use a whole number from 1 to 60."
RATIO = "Use width:height, such as 16:9 or 1280:720."
PIXELS = "Use width:height in pixels, such as 1280:720."
FLAG = "Use True or False."
NUMBER = "Use a number."
SPAN = "Use a number of seconds above 0."

NO_TEXTS: list[Any] = ["", " \n", None, 5, b"marked", ["marked"]]
# Spaces, direction and joining marks, control characters, accents and selectors without a base
# character, tags, fillers that count as letters or symbols, and noncharacters.
UNSEEN: list[Any] = [
    *(" \t\r\n\u00a0\u3000\u2003\u2028", "\u200b", "\u200b\u200c\u200d\u200e\u200f", "\u2060"),
    *("\ufeff", "\u00ad", "\u180e", "\u061c", "\u202e \u2066", "\0", "\x1b\x7f\x85"),
    *("\u0301", "\u20dd", "\ufe0f", "\u034f", "\U000e0100", "\U000e0061"),
    *("\u3164", "\uffa0", "\u115f\u1160", "\u2800", "\ufffe"),
]
NO_HOSTS: list[Any] = [
    "https://marked..example/1.jpeg",
    f"https://{'a' * 64}.marked.example/1.jpeg",
    "https://marked.example:65536/1.jpeg",
]
NO_FLAGS: list[Any] = [1, 0, "true", 0.0]
NO_SPANS: list[Any] = [0, -1, math.nan, math.inf, "5", True, None, 10**400, 10**5000]
NO_NUMBERS: list[Any] = ["1", None, True, math.nan, math.inf, -math.inf, 10**400, [1], 1j]
NO_SECONDS: list[Any] = [0, -5, 61, 1000, "10", 10.0, 5.5, True, [], math.nan, 10**5000]
NO_RATIOS: list[Any] = [
    *("16/9", "16x9", "16：9", "", "16", "16:", ":9", "0:9", "16:0", "16:9 ", "16:9\n", "-16:9"),
    *("１６:９", "wide", "100000:1", None, 1.78, (16, 9), []),
]

NO_PATHS: list[Any] = [
    *("", "/", "..", "../feed", "text_to_video/../feed", "/v1/", "https://x.example/v1/a", "//x/a"),
    *("text_to_video?a=1", "text_to_video#a", "a b", "a%2e", "\\a", "a/", "视频", None, b"a", 5),
]
NO_DATA: list[Any] = ["data:image/png;base64,\ud800", "data:image/png,marked笑"]
WITH_CLIP: list[Make] = [video, act_one, aleph, official_video, performance, upscale]
PROMPTED: list[Make] = [text, image, video, aleph, official_text, official_video]

RULES: list[tuple[list[Make], str, str, list[Any]]] = [
    (PROMPTED, "prompt", WORD, [*NO_TEXTS[:2], *UNSEEN]),
    ([official], "prompt", WORD, [*NO_TEXTS[:2], *UNSEEN]),
    ([*PROMPTED, official], "prompt", "Remove it", ["a marked\0 kitten"]),
    (PROMPTED, "prompt", "Use text (str).", NO_TEXTS[2:]),
    ([official], "prompt", "Use text (str).", [5, b"marked"]),
    ([*PROMPTED, official], "prompt", "lone surrogate", ["a marked \ud83d kitten"]),
    ([text, image, video, *OFFICIAL], "model", WORD, [*NO_TEXTS[:2], *UNSEEN[:2]]),
    ([text, image, video, *OFFICIAL], "model", "Use text (str).", [None, 4]),
    ([text, image], "style", WORD, [*NO_TEXTS[:2], *UNSEEN[:2]]),
    ([text, image], "ratio", RATIO, NO_RATIOS),
    ([official_text, official, performance], "ratio", PIXELS, [*NO_RATIOS, "16:9", "1.5:100"]),
    ([text, image, aleph, official, official_text], "seconds", SECONDS, [*NO_SECONDS, None]),
    ([video], "seconds", SECONDS, NO_SECONDS),
    ([text, image], "motion", "Use a MotionVector.", [None, {}, 0.4]),
    ([image, act_one, aleph], "image", ADDRESS, [*NOT_URLS, *NO_HOSTS]),
    ([image, act_one, aleph], "image", ADDRESS, ["data:image/png;base64,aGk="]),
    ([official], "image", ADDRESS, [*NOT_URLS, *NO_HOSTS, None, "data:text/marked,a"]),
    (
        [official, official_video, performance],
        "image",
        ADDRESS,
        ["data:image/png;base64,\ud800", "data:image/png,marked笑"],
    ),
    ([image, official], "last_image", ADDRESS, [*NOT_URLS, *NO_HOSTS]),
    (
        [video, act_one, aleph, official_video, performance, upscale],
        "video",
        ADDRESS,
        [*NOT_URLS, *NO_HOSTS, None],
    ),
    ([act_one, performance], "character_video", ADDRESS, [*NOT_URLS, *NO_HOSTS]),
    ([image], "image_as_end_frame", FLAG, [*NO_FLAGS, None]),
    ([image, video], "flip", FLAG, [*NO_FLAGS, None]),
    ([act_one], "flip", FLAG, NO_FLAGS),
    ([official], "watermark", FLAG, NO_FLAGS),
    ([video], "structure_transformation", "Use a number from 0 to 1.", [*NO_NUMBERS, -0.1, 1.1]),
    ([act_one], "motion_multiplier", "Use a whole number from 1 to 5.", [0, 6, 2.0, "2", True]),
    (
        [official_text, official, official_video, performance],
        "seed",
        "Use a whole number from 0 to 4294967295.",
        [-1, 2**32, 1.0, 10**400],
    ),
    ([official_video], "ratio", PIXELS, ["16:9", "1.5:100"]),
    ([upscale, official_video], "video", ADDRESS, ["data:image/png;base64,aGk=", "data:video/笑"]),
    ([official, official_text], "audio", FLAG, NO_FLAGS),
    ([performance], "body_control", FLAG, NO_FLAGS),
    ([performance], "expression_intensity", "from 1 to 5", [0, 6, 2.0, "2", True]),
    ([anything], "path", "Use one such as text_to_video", NO_PATHS),
    ([anything], "body", "Use a dict of fields", [None, [], "marked", {1: "marked"}]),
    ([MotionVector], "x", NUMBER, NO_NUMBERS),
    ([MotionVector], "bg_y_pan", NUMBER, NO_NUMBERS),
    ([Timeouts], "connect", SPAN, NO_SPANS),
    ([Timeouts], "read", SPAN, NO_SPANS),
    ([Timeouts], "total", SPAN, NO_SPANS),
    ([Timeouts], "late", SPAN, NO_SPANS),
    ([RetryPolicy], "attempts", "Use a whole number from 1 to 100.", [0, 101, 2.0, None, True]),
    ([RetryPolicy, PollPolicy], "first", SPAN, NO_SPANS),
    ([RetryPolicy, PollPolicy], "factor", "Use a number from 1 to 100.", [0.5, 101, *NO_NUMBERS]),
    ([RetryPolicy], "max_delay", SPAN, NO_SPANS),
    ([RetryPolicy], "max_retry_after", SPAN, NO_SPANS),
    ([PollPolicy], "max_interval", SPAN, NO_SPANS),
    ([PollPolicy], "jitter", "Use a number from 0 to 0.9.", [-0.1, 1, *NO_NUMBERS]),
    ([PollPolicy], "learn", FLAG, [*NO_FLAGS, None]),
    ([PollPolicy], "max_starvation", SPAN, NO_SPANS),
    ([Limits], "requests_per_second", "Use a number from 0.001 to 1000000.", [0, -1, "1", True]),
    ([Limits], "requests_in_flight", "Use a whole number from 1 to", [0, 1.5, "9", None, True]),
    ([Limits], "tasks_in_flight", "Use a whole number from 1 to 1000000.", [0, 1.5, "9", True]),
    ([PollPolicy], "not_found_grace", SPAN, NO_SPANS),
    ([PollPolicy], "url_grace", SPAN, NO_SPANS),
]
BAD = [
    pytest.param(make, field, value, allowed, id=f"{make.__name__} {field} {index}")
    for makes, field, allowed, values in RULES
    for make in makes
    for index, value in enumerate(values)
]


@pytest.mark.parametrize(("make", "field", "value", "allowed"), BAD)
def test_a_bad_value_is_refused_by_name(make: Make, field: str, value: Any, allowed: str) -> None:
    """A bad value is a UsageError that names its field and what is allowed there."""
    with pytest.raises(UsageError) as caught:
        make(**{field: value})
    error = caught.value
    assert error.field == field
    assert field in error.happened
    assert error.money == "Nothing was sent or charged."
    assert allowed in str(error)
    assert len(str(error)) < 400


@pytest.mark.parametrize(("make", "field", "value", "allowed"), BAD)
def test_a_validation_error_shows_no_secret(
    make: Make, field: str, value: Any, allowed: str
) -> None:
    """Neither the error about a bad value nor its causes contain a prompt or a URL."""
    with pytest.raises(UsageError) as caught:
        make(**{field: value})
    assert secrets_in(caught.value, ["marked"]) == []


@pytest.mark.parametrize("value", UNSEEN)
def test_an_invisible_text_is_not_called_empty(value: str) -> None:
    """The error says that the text has no visible character."""
    with pytest.raises(UsageError) as caught:
        text(prompt=value)
    assert caught.value.happened == "prompt has no visible character."


@pytest.mark.parametrize(
    "value",
    [
        "a",
        "一",
        "ا",
        "क्",
        "é",
        "e\u0301",
        "?",
        "😀",
        "👩\u200d🚀",
        "\ufeffa\u200b",
        "\ufffd",
        "\ue000",
    ],
)
def test_one_visible_character_is_enough(value: str) -> None:
    """It may be of any script, or in a private-use area that only some fonts have."""
    assert text(prompt=value).prompt == value


def test_a_character_newer_than_this_python_is_accepted() -> None:
    """An emoji from a later Unicode version counts as visible."""
    assert text(prompt="\U0001faff").prompt == "\U0001faff"


def test_control_characters_are_sent() -> None:
    """JSON escapes line breaks and the like; only NUL is refused, with its position."""
    assert text(prompt="a\tb\r\nc\x1b").prompt == "a\tb\r\nc\x1b"
    with pytest.raises(UsageError, match="prompt has a NUL character at position 1"):
        text(prompt="a\0b")


def test_every_checked_field_has_a_bad_value_in_these_tests() -> None:
    """The rules above cover every field that has a validator."""
    tested = {(type(make()), field) for makes, field, *_ in RULES for make in makes}
    for make in (*REQUESTS, *POLICIES[:-1]):
        kind = type(make())
        checked = {field.name for field in attrs.fields(kind) if field.validator is not None}
        assert checked - {field for known, field in tested if known is kind} <= {
            # tested below, and the axes, which share one check
            *("extra", "y", "z", "r", "bg_x_pan"),
        }


@pytest.mark.parametrize("make", [text, image])
def test_the_error_shows_a_wrong_ratio(make: Make) -> None:
    """A typing mistake is visible at once."""
    with pytest.raises(UsageError, match=r"ratio is '16-10'\. .* such as 16:9 or 1280:720\."):
        make(ratio="16-10")


def test_a_value_is_shown_short_and_without_secrets() -> None:
    """The error shows the start of a long value, and nothing of a URL."""
    with pytest.raises(UsageError) as caught:
        text(ratio="wide " * 1000)
    assert caught.value.happened == f"ratio is {('wide ' * 100)!r:.57}..."
    with pytest.raises(UsageError) as caught:
        text(ratio=IMAGE)
    assert caught.value.happened == "ratio is '<url>'."


def test_a_value_that_cannot_be_shown_is_named_by_its_type() -> None:
    """Python cannot print a number of five thousand digits, so the error names its type."""
    with pytest.raises(UsageError, match="seed is of type int"):
        official(seed=10**5000)


@pytest.mark.parametrize("make", [text, image])
def test_gen3_supports_two_ratios(make: Make) -> None:
    """gen3 accepts only 16:9 and 9:16 (api-facts 1.2)."""
    with pytest.raises(UsageError, match=r"1:1.*gen3.*Use 16:9 or 9:16") as caught:
        make(model="gen3", ratio="1:1")
    assert caught.value.field == "ratio"
    assert make(model="gen3", ratio="9:16").ratio == "9:16"
    assert make(model="gen4", ratio="1:1").ratio == "1:1"
    assert official(model="gen3", ratio="960:960").ratio == "960:960"


def test_the_models_are_the_documented_ones() -> None:
    """Each model has its documented lengths and ratios, once for each format."""
    shapes = "16:9 9:16 1:1 4:3 3:4 21:9"
    pixels = "1280:720 720:1280 1104:832 832:1104 960:960 1584:672"
    veo = "1280:720 720:1280 1080:1920 1920:1080"
    reverse, official_ = "TextToVideo ImageToVideo", "OfficialTextToVideo OfficialImageToVideo"
    assert [
        (row.name, words(row.requests), row.seconds, " ".join(row.ratios), row.refuses_other_ratios)
        for row in models.MODELS
    ] == [
        ("gen2", reverse, (), shapes, False),
        ("gen3", reverse, (5, 10), "16:9 9:16", True),
        ("gen4", reverse, (5, 10), shapes, False),
        ("gen4_turbo", reverse, (5, 10), shapes, False),
        ("gen4.5", reverse, (5, 10), shapes, False),
        ("gen3", "VideoToVideo", (), "", False),
        ("gen4", "VideoToVideo", (), "", False),
        ("gen3a_turbo", "OfficialImageToVideo", (5, 10), "1280:768 768:1280", False),
        ("gen4_turbo", "OfficialImageToVideo", (5, 10), pixels, False),
        ("gen4.5", official_, (2, 3, 4, 5, 6, 7, 8, 9, 10), pixels, False),
        ("veo3.1", official_, (4, 6, 8), veo, False),
        ("veo3.1_fast", official_, (4, 6, 8), veo, False),
        ("gen4_aleph", "OfficialVideoToVideo", (), f"{pixels} 848:480 640:480", False),
        ("aleph2", "OfficialVideoToVideo", (), "", False),
        ("act_two", "OfficialCharacterPerformance", (), pixels, False),
        ("upscale_v1", "OfficialVideoUpscale", (), "", False),
    ]


def words(kinds: Iterable[type]) -> str:
    """Return the names of classes as one text."""
    return " ".join(kind.__name__ for kind in kinds)


@pytest.mark.parametrize(
    ("request_", "hint"),
    [
        (text(model="gen4", seconds=7), "gen4 is documented with seconds 5 or 10."),
        (
            official(model="veo3.1", ratio="960:960", seconds=8),
            "veo3.1 is documented with ratio 1280:720, 720:1280, 1080:1920 or 1920:1080.",
        ),
        (official_text(seconds=12), "gen4.5 is documented with seconds 2, 3, 4, 5, 6, 7, 8, 9 or"),
        (performance(ratio="100:100"), "act_two is documented with ratio 1280:720,"),
        (official_video(ratio=None), ""),
        (official_video(model="aleph2", ratio="100:100"), ""),
        (text(model="gen9", seconds=7), ""),
        (text(model="gen2", seconds=7), ""),
        (official(model="gen3", seconds=7), ""),
        (act_one(), ""),
        (upscale(), ""),
        (anything(body={"model": "gen4.5", "duration": 60}), ""),
    ],
)
def test_the_hint_for_a_request(request_: Any, hint: str) -> None:
    """A request that differs from what is documented for its model has a hint."""
    assert models.hint_for(request_).startswith(hint)
    assert bool(models.hint_for(request_)) is bool(hint)


@pytest.mark.parametrize("make", [act_one, performance])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"image": None}, "neither was"), ({"character_video": CLIP}, "both were")],
)
def test_a_character_is_given_once(make: Make, changes: dict[str, Any], expected: str) -> None:
    """A performance needs exactly one character: a picture or a clip."""
    with pytest.raises(UsageError, match=expected) as caught:
        make(**changes)
    assert caught.value.field == "image"
    assert secrets_in(caught.value, ["marked"]) == []
    assert ActOne(CLIP, character_video=CLIP).image is None


@pytest.mark.parametrize("make", [official_text, official, official_video])
def test_an_official_prompt_has_a_maximum_length(make: Make) -> None:
    """The official format accepts up to a thousand characters (api-facts 6)."""
    assert make(prompt="x" * 1000).prompt == "x" * 1000
    with pytest.raises(UsageError, match=r"prompt has 1001 characters\. .* at most 1000") as caught:
        make(prompt="x" * 1001)
    assert caught.value.field == "prompt"
    # The length is in UTF-16 units, as in JavaScript: most emoji are two.
    assert make(prompt="😀" * 500).prompt == "😀" * 500
    assert make(prompt="笑" * 1000).prompt == "笑" * 1000
    with pytest.raises(UsageError, match="prompt has 1002 characters"):
        make(prompt="😀" * 501)
    assert text(prompt="x" * 100_000).prompt == "x" * 100_000


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        *[
            (MAKERS[kind], {"model": row.name, field: value})
            for row in models.MODELS
            for field, values in (("ratio", row.ratios), ("seconds", row.seconds))
            for value in values
            for kind in row.requests
        ],
        # Undocumented values are sent too: the gateway decides.
        *[
            (make, {"seconds": value})
            for make in (text, image, video, official)
            for value in (1, 60)
        ],
        *[(make, {"model": "gen4", "seconds": 7, "ratio": "2.39:1"}) for make in (text, image)],
        *[(make, {"model": "gen9", "seconds": 15, "ratio": "5:4"}) for make in (text, image)],
        *[(make, {"ratio": "1280:720"}) for make in (text, image)],
        *[(make, {"ratio": "21:9"}) for make in (text, image)],
        (official, {"model": "gen9", "seconds": 12, "ratio": "2048:858"}),
        (official, {"model": "gen4_turbo", "seconds": 3, "ratio": "99999:100"}),
        (text, {"prompt": "一只小猫"}),
        (text, {"model": "gen9", "style": "未来"}),
        (text, {"motion": MotionVector(-6.2, 0.4, 1000, -6, 0, 0)}),
        (image, {"image": "http://127.0.0.1:8080/1.jpeg", "last_image": "HTTPS://x.example"}),
        (image, {"image": "https://user:word@x.example:8443/图.jpeg#1", "flip": True}),
        (image, {"image": "https://[2001:db8::1]:443/1.jpeg", "image_as_end_frame": True}),
        (video, {"seconds": None, "structure_transformation": 0}),
        (video, {"structure_transformation": 1.0}),
        (act_one, {"motion_multiplier": 1, "flip": False}),
        (act_one, {"motion_multiplier": 5, "flip": None}),
        (official, {"prompt": None, "seed": 0, "watermark": True}),
        (official, {"seed": 4294967295, "last_image": "data:image/png;base64,aGk="}),
        (official, {"image": "data:image/jpeg;base64,aGk="}),
        (official_text, {"model": "veo3.1", "seconds": 8, "audio": False}),
        (official_video, {"video": "data:video/mp4;base64,aGk=", "image": None, "ratio": None}),
        (performance, {"body_control": True, "expression_intensity": 5, "seed": 0}),
        (aleph, {"seconds": 10, "image": IMAGE, "prompt": "x" * 1001}),
        (RetryPolicy, {"attempts": 1, "factor": 1, "first": 0.001}),
        (RetryPolicy, {"attempts": 100, "factor": 100, "max_retry_after": 1e9}),
        (PollPolicy, {"jitter": 0, "factor": 1.0}),
        (PollPolicy, {"jitter": 0.9}),
        (Timeouts, {"connect": 1, "read": 0.5, "total": 3600}),
    ],
)
def test_documented_values_are_kept_unchanged(make: Make, changes: dict[str, Any]) -> None:
    """Every documented value is accepted as it is, including both ends of each range."""
    made = make(**changes)
    for name, value in changes.items():
        assert getattr(made, name) == value
        assert type(getattr(made, name)) is type(value)


def test_the_defaults_are_the_documented_ones() -> None:
    """The defaults of the requests are those of the documentation (api-facts 1.2 to 1.4, 6)."""
    made = TextToVideo("a kitten")
    assert (made.ratio, made.seconds, made.model, made.style) == ("16:9", 10, "gen4", "cinematic")
    assert made.motion == MotionVector(0, 0, 0, 0, 0, 0)
    assert (video().structure_transformation, video().seconds) == (0.5, 5)
    assert (official().ratio, official().seconds) == ("1280:720", 10)
    assert (aleph().seconds, aleph().image) == (5, None)
    assert [make().model for make in OFFICIAL] == (
        ["gen4.5", "gen4_turbo", "gen4_aleph", "act_two", "upscale_v1"]
    )


@pytest.mark.parametrize(
    "path",
    [
        "text_to_video",
        "/text_to_video",
        "v1/text_to_video",
        "/v1/text_to_video",
        "/runwayml/v1/text_to_video",
        "runway/v1/text_to_video",
    ],
)
def test_the_path_of_a_request_has_no_prefix(path: str) -> None:
    """However a page writes a path, it is the same request: the gateway has its own prefix."""
    assert anything(path=path) == anything()
    assert anything(path="/v1/video/create-new").path == "video/create-new"


def test_the_body_of_a_request_is_a_copy_that_no_repr_shows() -> None:
    """Changing the original later does not change the request; its repr has the path alone."""
    body = {"promptText": "a marked kitten", "options": {"fps": 24}}
    made = anything(body=body)
    body["options"] = {}
    assert made.body["options"] == {"fps": 24}
    assert repr(made) == "OfficialRequest(path='text_to_video')"
    with pytest.raises(UsageError, match="body cannot be written as JSON") as caught:
        anything(body={"a": math.nan})
    assert caught.value.field == "body"


def test_the_policies_have_the_documented_defaults() -> None:
    """The default intervals are 2 s, x1.5, 15 s; the timeouts are long enough for a slow submit."""
    assert attrs.astuple(Timeouts()) == (5.0, 60.0, 300.0, 600.0)
    assert attrs.astuple(PollPolicy()) == (2.0, 1.5, 15.0, 0.1, True, 60.0, 300.0, 60.0)
    assert attrs.astuple(Limits()) == (None, 100, None)
    assert attrs.astuple(RetryPolicy()) == (5, 0.5, 2.0, 30.0, 120.0)
    assert models.DEFAULT_WAIT == 1800.0


# extra


@pytest.mark.parametrize("make", REQUESTS)
@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("marked", "extra is not a dict with string keys"),
        ([("a", 1)], "extra is not a dict with string keys"),
        ({1: "marked"}, "extra is not a dict with string keys"),
        ({"a": {1, 2}}, "TypeError"),
        ({"a": b"marked"}, "TypeError"),
        ({"a": math.nan}, "ValueError"),
        ({"a": [math.inf]}, "ValueError"),
        ({"a": "marked \ud800"}, "UnicodeEncodeError"),
        ({"a": {("marked",): 1}}, "TypeError"),
        ({"a": [{"b": {"marked \ud800": 1}}]}, "UnicodeEncodeError"),
        ({"a": 10**5000}, "ValueError"),
        ({"a": threading.Lock()}, "TypeError"),
        ({"a": (one for one in "marked")}, "TypeError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_extra_must_be_json(make: Make, extra: Any, expected: str) -> None:
    """A value that cannot be part of the body is refused at once, and not shown."""
    with pytest.raises(UsageError, match=expected) as caught:
        make(extra=extra)
    assert caught.value.field == "extra"
    assert secrets_in(caught.value, ["marked"]) == []


@pytest.mark.parametrize("make", REQUESTS)
def test_none_is_no_extra(make: Make) -> None:
    """A request whose extra is None has no further fields."""
    assert make(extra=None) == make()


def test_endless_extra_is_refused() -> None:
    """Thousands of nested lists, or a dict that contains itself, raise a UsageError."""
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    itself: dict[str, Any] = {}
    itself["a"] = itself
    for extra in ({"a": deep}, itself):
        with pytest.raises(UsageError, match="extra cannot be written as JSON"):
            text(extra=extra)


@pytest.mark.parametrize(("levels", "fits"), [(100, True), (101, False)])
@pytest.mark.parametrize("make_level", [lambda inner: {"a": inner}, lambda inner: [inner]])
def test_extra_has_a_maximum_depth(levels: int, fits: bool, make_level: Any) -> None:
    """The limit does not depend on how deep the stack is."""
    value: Any = {}
    for _ in range(levels - 2):
        value = make_level(value)
    if fits:
        assert text(extra={"a": value}).extra == {"a": value}
    else:
        with pytest.raises(UsageError, match="more than 100 levels"):
            text(extra={"a": value})


def test_extra_is_a_copy() -> None:
    """Changing the original later does not change the request."""
    extra = {"options": {"fps": 24}}
    made = text(extra=extra)
    extra["options"]["fps"] = 60
    assert made.extra == {"options": {"fps": 24}}


# Values


def record(**changes: Any) -> TaskRecord:
    """Return a record in which every field that may be secret is marked."""
    known: dict[str, Any] = {
        "task_id": "t-1",
        "state": TaskState.SUCCEEDED,
        "video_url": CLIP,
        "poster_url": IMAGE,
        "last_frame_url": IMAGE,
        "prompt": PROMPT,
        "prompt_en": PROMPT,
        "message": PROMPT,
        "created_at": datetime(2025, 1, 1, tzinfo=UTC),
        "body": b'{"data": "marked", "more": NaN}',
    }
    return TaskRecord(**known | changes)


VALUES: list[Make] = [*REQUESTS, anything, *POLICIES[:-1], lambda: Gateway("own"), record, Balance]


@pytest.mark.parametrize("make", VALUES)
def test_no_value_shows_a_secret(make: Make) -> None:
    """The repr shows the class and plain fields, but no prompt, URL or body."""
    made = make()
    assert repr(made).startswith(type(made).__name__)
    assert "marked" not in repr(made)


def test_a_record_as_a_dict_is_json_without_secrets() -> None:
    """It contains no prompt, URL, reason or body."""
    shown = record(progress=0.5, points=320.0, notes=("odd",)).as_dict()
    assert json.loads(json.dumps(shown)) == {
        "task_id": "t-1",
        "state": "succeeded",
        "word": None,
        "progress": 0.5,
        "failure_code": None,
        "points": 320.0,
        "refunded": False,
        "created_at": "2025-01-01T00:00:00+00:00",
        "updated_at": None,
        "notes": ["odd"],
    }
    assert "marked" not in repr(shown)


def test_pydantic_reads_a_record() -> None:
    """A FastAPI response model can be filled from the attributes."""

    class Shown(pydantic.BaseModel, from_attributes=True):
        task_id: str
        state: TaskState
        created_at: datetime | None

    shown = Shown.model_validate(record())
    assert shown.model_dump(mode="json") == {
        "task_id": "t-1",
        "state": "succeeded",
        "created_at": "2025-01-01T00:00:00Z",
    }
    assert Shown.model_validate(record().as_dict()) == shown


def test_a_state_is_a_str() -> None:
    """JSON and format strings show its value."""
    assert json.dumps([TaskState.RUNNING]) == '["running"]'
    assert f"{TaskState.RUNNING}" == "running"


def test_the_repr_shows_only_the_size_of_extra() -> None:
    """It shows the number of keys, and none of them."""
    assert "extra=<2 keys>" in repr(text(extra={"marked": 1, "images": ["marked"]}))
    assert "marked" not in repr(text(extra={"marked": 1}))


@pytest.mark.parametrize("make", VALUES)
def test_values_are_frozen(make: Make) -> None:
    """Fields cannot be set or added."""
    made = make()
    for name in (attrs.fields(type(made))[0].name, "something_new"):
        with pytest.raises((attrs.exceptions.FrozenInstanceError, AttributeError)):
            setattr(made, name, "changed")


@pytest.mark.parametrize("make", VALUES)
def test_equal_values_are_equal_and_hash_alike(make: Make) -> None:
    """Equal values count once in a set, and equal their copies."""
    one, other = make(), make()
    assert one == other
    assert len({one, other}) == 1
    assert copy.deepcopy(one) == one
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301 - our own


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (text(), text(prompt="another")),
        (text(), text(extra={"a": 1})),
        (text(motion=MotionVector(1)), text(motion=MotionVector(2))),
        (image(), image(last_image=IMAGE)),
        (record(), record(progress=0.5)),
        (text(), image()),
    ],
)
def test_values_that_differ_are_not_equal(one: object, other: object) -> None:
    """One different field is enough, including `extra`."""
    assert one != other


def test_a_record_keeps_the_body_of_its_response() -> None:
    """The whole response can be read again, unknown keys included; without one it is None."""
    assert record().raw == {"data": "marked", "more": None}
    assert record(body=b'\xef\xbb\xbf{"a": 1}').raw == {"a": 1}
    assert record(body=b"").raw is None


def test_the_body_makes_no_difference() -> None:
    """Two records with the same fields are equal, even if the responses differ in spelling."""
    assert record(body=b"{}") == record(body=b"")
    assert Balance(1, raw={"a": 1}) == Balance(1)


@pytest.mark.parametrize("state", TaskState)
def test_an_unknown_state_is_not_final(state: TaskState) -> None:
    """Only success, failure and cancellation end a task."""
    assert state.is_final is (state.name in {"SUCCEEDED", "FAILED", "CANCELED"})


@pytest.mark.parametrize(
    ("changes", "has_clip"),
    [
        ({}, True),
        ({"video_url": None}, False),
        ({"state": TaskState.FAILED}, False),
        ({"state": TaskState.RUNNING}, False),
    ],
)
def test_a_clip_needs_success_and_a_url(changes: dict[str, Any], has_clip: bool) -> None:
    """Neither success without a URL nor a URL without success is a clip."""
    assert record(**changes).has_clip is has_clip


@pytest.mark.parametrize("state", TaskState)
@pytest.mark.parametrize("url", [None, "https://a.example/1.mp4"], ids=["bare", "with address"])
def test_a_record_is_settled_by_its_clip_or_its_failure(state: TaskState, url: str | None) -> None:
    """After a success without a URL there is still something to wait for."""
    settled = {TaskState.FAILED, TaskState.CANCELED} | ({TaskState.SUCCEEDED} if url else set())
    assert record(state=state, video_url=url).is_settled is (state in settled)


@pytest.mark.parametrize(
    ("limit", "usage", "joined"),
    [
        (Balance(total=5), Balance(used=1.25), Balance(3.75, 1.25, 5)),
        (Balance(used=1.25), Balance(total=5), Balance(3.75, 1.25, 5)),
        (Balance(total=5), Balance(), Balance(None, None, 5)),
        (Balance(), Balance(used=1), Balance(None, 1, None)),
        (Balance(unlimited=True), Balance(used=1), Balance(None, 1, None, unlimited=True)),
        (Balance(total=0), Balance(used=0), Balance(0, 0, 0)),
    ],
)
def test_two_halves_make_a_balance(limit: Balance, usage: Balance, joined: Balance) -> None:
    """The limit from one route and the usage from another give what is left (api-facts 7)."""
    assert limit.joined(usage) == joined


def test_a_joined_balance_keeps_both_responses() -> None:
    """The raw responses of both routes are kept."""
    assert Balance(raw={"a": 1}).joined(Balance(raw={"b": 2})).raw == [{"a": 1}, {"b": 2}]


# Gateways


@pytest.mark.parametrize("verb", ["PUT", "post", "", None])
def test_a_feed_is_polled_by_post_or_get(verb: Any) -> None:
    """Any other verb is refused."""
    with pytest.raises(UsageError, match=r"feed_verb .* Use POST or GET\."):
        Gateway("own", feed_verb=verb)


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"name": ""}, "with at least one word"),
        ({"prefix": "runway"}, "Use a path such as /runway."),
        ({"prefix": "/runway?a=b"}, "Use a path such as /runway."),
        ({"prefix": "/runway#a"}, "Use a path such as /runway."),
        ({"prefix": "/run way"}, "Use a path such as /runway."),
        ({"official_prefix": "@marked.example"}, "Use a path such as /runway."),
        ({"official_prefix": None}, "Use a path such as /runway."),
        ({"key_style": "bearer"}, "Use KeyStyle.BEARER, KeyStyle.RAW or KeyStyle.BODY."),
        ({"balance": "TOKEN"}, "BalanceRoute.BILLING, BalanceRoute.TOKEN or BalanceRoute.QUOTA."),
    ],
)
def test_a_gateway_is_checked_when_it_is_made(changes: dict[str, Any], advice: str) -> None:
    """For example, a prefix without a slash would send the key to another host."""
    with pytest.raises(UsageError) as caught:
        Gateway(**{"name": "own"} | changes)
    assert caught.value.field == next(iter(changes))
    assert advice in caught.value.advice


@pytest.mark.parametrize("prefix", ["", "/", "/runway/v1/", "/a/%20/~b:c@d"])
def test_a_prefix_is_a_path(prefix: str) -> None:
    """It may be empty, and it may have several parts."""
    assert Gateway("own", prefix=prefix, official_prefix=prefix).prefix == prefix


def test_a_custom_gateway_has_the_usual_settings() -> None:
    """A name and a URL are enough: the defaults are what most gateways use."""
    own = Gateway("own", "https://own.example")
    assert attrs.evolve(GATEWAYS["fuhuapi"], name="own", base_url=own.base_url, source="") == own
    assert (own.key_style, own.balance) == (KeyStyle.BEARER, BalanceRoute.BILLING)


# URLs


@pytest.mark.parametrize(
    "value",
    [
        "http://x",
        "https://x.example/?a#b",
        "HTTP://USER@X:80/图",
        "https://x.example.:65535",
        "https://x_y.example:",
        "https://" + "a" * 63 + ".example",
        "https://图片.example/1",
        "https://💩.example",
        "https://[::1]:80/",
        "https://[::ffff:10.0.0.1]",
    ],
)
def test_a_url_has_scheme_and_host(value: str) -> None:
    """Absolute http(s) URLs are accepted in any case, with any port, path and query."""
    assert is_web_address(value)


@pytest.mark.parametrize(
    "value",
    [
        *NOT_URLS,
        None,
        "null",
        "//x.example/1",
        "http://?a",
        [],
        # hosts that no resolver accepts
        "https://a..example/",
        "https://.example/",
        "https://user@a..example/",
        "https://" + "a" * 64 + ".example",
        "https://" + "图" * 64 + ".example",
        "https://a。。example",
        "https://\u00ad.example",
        "https://[::::]/",
        "https://[1.2.3.4]/",
        "https://a\\b.example/",
        # ports that do not exist
        "https://a.example:65536/",
        "https://a.example:99999/",
        "https://a.example:٣/",
        # control characters
        "https://a\x01.example/",
        "https://a.example/\x01",
        "https://a.example/\x7f",
    ],
)
def test_anything_else_is_not_a_url(value: Any) -> None:
    """Words, other schemes, relative and broken URLs and other types are refused."""
    assert not is_web_address(value)


@pytest.mark.parametrize(
    "value",
    [
        "http://localhost:8080",
        "https://a_b.example-1.com:65535/x?y#z",
        "https://example.com./",
        "https://user:word@x.example:/1",
        "http://127.0.0.1:1/",
        "http://[::1]:80/",
        "https://bücher.example/图",
        "https://小猫.例え",
        f"https://{'a' * 63}.example",
        f"https://{'.'.join(['a' * 49] * 5)}.eu",
    ],
)
def test_a_url_that_can_exist_is_reachable(value: str) -> None:
    """Hosts in any script, IP addresses, and hosts and ports up to their limits are accepted."""
    assert is_reachable_address(value)


@pytest.mark.parametrize(
    "value",
    [
        "https://api..example.com",
        "https://.example.com",
        f"https://{'a' * 64}.example",
        f"https://{'小' * 60}.example",
        f"https://{'.'.join(['a' * 49] * 5)}.example",
        f"https://{'a.' * 100_000}example",
        "https://x.example:65536/",
        "https://x.example:0/",
        "https://x.example:８０/",
        "https://256.1.1.1/",
        "https://[:::]/",
        "https://ex%61mple.com/",
        'https://ex"ample.com/',
        "https://ex\\ample.com/",
        "https://ex\x01ample.com/",
        "https://example.com/\x7f",
        "https://example.com/\x1b[31m",
        "https://℀.example/",
        "https://a\u2024\u2024b.example/",
        *NOT_URLS,
        None,
    ],
)
def test_a_url_that_cannot_exist_is_not_reachable(value: Any) -> None:
    """Empty and overlong labels, ports above 65535 and control characters are refused."""
    assert not is_reachable_address(value)
