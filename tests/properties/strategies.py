"""What a gateway may send, what a caller may request, and secrets that are easy to find."""

import json
from typing import Any, Final

from hypothesis import strategies as st

from fuhu_runway._fields import MAX_OFFICIAL_PROMPT, MAX_SECONDS, MAX_SEED
from fuhu_runway._wire.refusals import REFUSALS
from fuhu_runway._wire.tables import DIALECTS, ENDPOINTS, ROWS_KEYS, STATES, TASK_ROW
from fuhu_runway.models import (
    ActOne,
    Aleph,
    ImageToVideo,
    MotionVector,
    OfficialCharacterPerformance,
    OfficialImageToVideo,
    OfficialRequest,
    OfficialTextToVideo,
    OfficialVideoToVideo,
    OfficialVideoUpscale,
    TextToVideo,
    VideoToVideo,
)

# Texts


def texts(**options: Any) -> st.SearchStrategy[str]:
    """Return texts that UTF-8 can carry."""
    return st.text(st.characters(exclude_categories=["Cs"]), **options)


# The Hangul fillers are letters that show nothing.
PROMPTS: Final = texts(min_size=1).filter(
    lambda text: (
        "\0" not in text and any(c.isalnum() and c not in "\u115f\u1160\u3164\uffa0" for c in text)
    )
)
ADDRESSES: Final = st.builds(
    "{}://{}.example/{}".format,
    st.sampled_from(["http", "https", "HTTPS"]),
    st.from_regex(r"[a-z0-9]{1,10}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_./?&=%-]{0,30}", fullmatch=True),
)
MARKED: Final = st.from_regex(r"[A-Za-z0-9]{3}MARK[A-Za-z0-9]{3}", fullmatch=True)
"""Words that stand in no text by chance."""

# JSON, as gateways send it

WORDS: Final = sorted(
    {
        *STATES,
        *(key for row in DIALECTS for key in row.spelling.values()),
        *(*ROWS_KEYS, *TASK_ROW.values(), "input", "prompt", "other", "content", "total", "2"),
        *(code for row in REFUSALS for code in (*row.codes, *row.texts)),
        *("code", "msg", "message", "error", "type", "success", "description", "object", "id"),
        *("SUCCESS", "billing_subscription", "list", "https://x.example/1.mp4", "100%", "NaN"),
    }
)
SCALARS: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, 200, 400, 429, 503, 10**30]),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=20),
)
KEYS: Final = st.one_of(st.sampled_from(WORDS), st.text(max_size=8))


def nested(scalars: st.SearchStrategy[Any] = SCALARS) -> st.SearchStrategy[Any]:
    """Return JSON values, often with keys and words that gateways use."""
    return st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(KEYS, inner, max_size=5),
            st.fixed_dictionaries(
                {"code": st.sampled_from([200, "success", True, 400, "task_not_exist"])},
                optional={"data": inner, "msg": inner, "message": inner, "error": inner},
            ),
            # An error or a response inside a text (api-facts 2 J).
            inner.map(json.dumps),
        ),
        max_leaves=12,
    )


BODIES: Final = st.one_of(
    st.binary(max_size=200),
    nested().map(lambda value: json.dumps(value).encode()),
    nested().map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")),
    nested().map(lambda value: json.dumps(value).encode()[:-3]),
    nested().map(lambda value: f"<!doctype html>{value}".encode("utf-8", "replace")),
)
STATUSES: Final = st.one_of(
    st.sampled_from([200, 201, 204, 301, 400, 401, 402, 403, 404, 408, 429, 500, 502, 503, 524]),
    st.integers(100, 599),
)
DATES: Final = st.one_of(
    st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT")),
    st.from_regex(
        r"\w{3}, \d{1,25} (Nov|\w{3}) \d{1,25} \d+:\d+:\d+ (GMT|[+-]\d+)", fullmatch=True
    ),
)
HEADER_VALUES: Final = st.one_of(
    DATES,
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["text/html; charset=utf-8", "application/json", ""]),
    texts(max_size=30),
)
HEADERS: Final = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "date", "content-type", "x-request-id"]),
    HEADER_VALUES,
)

# Requests

NUMBERS: Final = st.one_of(
    st.integers(-(10**15), 10**15), st.floats(allow_nan=False, allow_infinity=False)
)
JSON_VALUES: Final = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, texts(max_size=10)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(texts(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
# A leading "x-" keeps them clear of the request's own fields.
EXTRAS: Final = st.dictionaries(texts(max_size=5).map("x-{}".format), JSON_VALUES, max_size=3)
MOTIONS: Final = st.builds(MotionVector, *[NUMBERS] * 6)
SECONDS: Final = st.integers(1, MAX_SECONDS)
MODELS: Final = st.one_of(
    st.sampled_from(["gen2", "gen4", "gen4_turbo", "gen4.5"]), PROMPTS
).filter(lambda model: model != "gen3")
GENERATED: Final = {
    "ratio": st.builds("{}:{}".format, st.integers(1, 99_999), st.integers(1, 99_999)),
    "seconds": SECONDS,
    "model": MODELS,
    "style": PROMPTS,
    "motion": MOTIONS,
    "extra": EXTRAS,
}
# Each character is one or two UTF-16 units.
SHORT_PROMPTS: Final = PROMPTS.filter(lambda prompt: len(prompt) <= MAX_OFFICIAL_PROMPT // 2)
FLAGS: Final = st.none() | st.booleans()
OFFICIAL: Final = {
    "model": MODELS,
    "ratio": st.builds("{}:{}".format, st.integers(100, 99_999), st.integers(100, 99_999)),
    "seed": st.none() | st.integers(0, MAX_SEED),
    "extra": EXTRAS,
}
REQUESTS: Final = st.one_of(
    st.builds(TextToVideo, PROMPTS, **GENERATED),
    st.builds(
        ImageToVideo,
        PROMPTS,
        ADDRESSES,
        last_image=st.none() | ADDRESSES,
        image_as_end_frame=st.booleans(),
        flip=st.booleans(),
        **GENERATED,
    ),
    st.builds(
        VideoToVideo,
        ADDRESSES,
        PROMPTS,
        structure_transformation=st.floats(0, 1) | st.sampled_from([0, 1]),
        seconds=st.none() | SECONDS,
        flip=st.booleans(),
        model=MODELS,
        extra=EXTRAS,
    ),
    st.builds(
        ActOne,
        ADDRESSES,
        ADDRESSES,
        motion_multiplier=st.none() | st.integers(1, 5),
        flip=st.none() | st.booleans(),
        extra=EXTRAS,
    ),
    st.builds(
        ActOne, ADDRESSES, character_video=ADDRESSES, flip=st.none() | st.booleans(), extra=EXTRAS
    ),
    st.builds(
        Aleph, ADDRESSES, PROMPTS, image=st.none() | ADDRESSES, seconds=SECONDS, extra=EXTRAS
    ),
    st.builds(OfficialTextToVideo, SHORT_PROMPTS, audio=FLAGS, seconds=SECONDS, **OFFICIAL),
    st.builds(
        OfficialImageToVideo,
        ADDRESSES,
        st.none() | SHORT_PROMPTS,
        last_image=st.none() | ADDRESSES,
        seconds=SECONDS,
        audio=FLAGS,
        watermark=FLAGS,
        **OFFICIAL,
    ),
    st.builds(
        OfficialVideoToVideo, ADDRESSES, SHORT_PROMPTS, image=st.none() | ADDRESSES, **OFFICIAL
    ),
    st.builds(
        OfficialCharacterPerformance,
        ADDRESSES,
        ADDRESSES,
        body_control=FLAGS,
        expression_intensity=st.none() | st.integers(1, 5),
        **OFFICIAL,
    ),
    st.builds(OfficialVideoUpscale, ADDRESSES, model=MODELS, extra=EXTRAS),
    st.builds(OfficialRequest, st.from_regex(r"/?(v1/)?[a-z_]{1,9}", fullmatch=True), EXTRAS),
)

ENDPOINT_NAMES: Final = st.sampled_from(sorted(ENDPOINTS))
