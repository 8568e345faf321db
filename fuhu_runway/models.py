"""
Frozen values a user makes or receives: requests, policies, `Gateway`, `TaskRecord`, `Balance`.

A request is checked when it is made: a bad value raises a `UsageError` that names the field, the
value and what is allowed, before anything is sent. Durations are in seconds, instants are aware
datetimes, points are in the gateway's own unit. No repr shows a prompt, a URL or a key.
"""

import enum
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, Self

import attrs
from attrs import field, frozen

from ._json import decode
from ._media import CLIP, DATA_PICTURE, PICTURE, Media
from ._redact import redact
from .errors import UsageError

MAX_SECONDS: Final = 60
"""The longest clip that a request may ask for, so that a slip such as 1000 costs nothing."""
MAX_OFFICIAL_PROMPT: Final = 1000
"""In UTF-16 units: the official API refuses longer prompts."""
MAX_SEED: Final = 4_294_967_295
MAX_DEPTH: Final = 100
"""How many levels *extra* may have: far fewer than any JSON parser on the way can take."""

DEFAULT_MODEL: Final = "gen4"
DEFAULT_WAIT: Final = 1800.0
"""How long a wait lasts by default, in seconds: half an hour (api-facts 5.6)."""


def usage_error(field: str, happened: str, advice: str) -> UsageError:
    """Return the error for a call that is wrong before anything was sent."""
    return UsageError(redact(happened), "Nothing was sent or charged.", advice, field=field)


UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
"""NUL, which JSON can carry but PostgreSQL cannot, and lone surrogates, which UTF-8 cannot."""
# Letters, numbers, punctuation and symbols; also private use, surrogates, and what this Python
# does not know yet (Cn), which may be an emoji of next year.
_VISIBLE: Final = ("L", "N", "P", "S", "Co", "Cs", "Cn")
# Of these, what nevertheless shows nothing, such as the Hangul fillers and the empty Braille cell.
_BLANKS: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0\ufffe\uffff")


def require_text(name: str, value: object) -> None:
    """Raise a `UsageError` about *name* unless *value* is visible text that databases can store."""
    if not isinstance(value, str):
        fault, advice = f"is of type {type(value).__name__}", "Use text (str)."
    elif not any(
        unicodedata.category(character).startswith(_VISIBLE) and character not in _BLANKS
        for character in value
    ):
        fault = "has no visible character" if value else "is empty"
        advice = f"Use a {name} with at least one word."
    elif bad := UNSTORABLE.search(value):
        sign = "a NUL character" if bad[0] == "\0" else "half a character (a lone surrogate)"
        fault = f"has {sign} at position {bad.start()}"
        advice = "Remove it: a gateway could fail on it after it has charged."
    else:
        return
    raise usage_error(name, f"{name} {fault}.", advice)


def check_text(_instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """Validate a field by `require_text`."""
    require_text(attribute.name, value)


def _shown(value: object) -> str:
    """Return a value as an error may show it: short, and without secrets."""
    try:
        text = redact(repr(value))
    except ValueError:  # an int of more digits than Python prints
        return f"of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _rule(fits: Callable[[Any], object], wanted: str, fault: str | None = None) -> Any:
    """Return a validator. Its error shows the *fault* in place of a value that may be a prompt."""

    def check(_instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not fits(value):
            happened = f"{attribute.name} {fault or 'is ' + _shown(value)}."
            raise usage_error(attribute.name, happened, f"Use {wanted}.")

    return check


def _is_number(value: Any) -> bool:
    """Return whether JSON parsers agree on this number: it is no NaN, infinity or giant int."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def _number(low: float, high: float, kind: Any = int | float, name: str = "a number") -> Any:
    def fits(value: Any) -> bool:
        return isinstance(value, kind) and _is_number(value) and low <= value <= high

    return _rule(fits, f"{name} from {low} to {high}")


def _whole_number(low: int, high: int) -> Any:
    return _number(low, high, int, "a whole number")


def _choice(*allowed: Any) -> Any:
    *others, last = map(str, allowed)
    return _rule(lambda value: value in allowed, f"{', '.join(others)} or {last}")


def _shape(shape: str, wanted: str) -> Any:
    """Text of that shape; the gateway decides which values a model takes."""
    pattern = re.compile(shape, re.ASCII)
    return _rule(lambda value: isinstance(value, str) and pattern.fullmatch(value), wanted)


_optional: Final[Any] = attrs.validators.optional
_FLAG: Final = _rule(lambda value: isinstance(value, bool), "True or False")
_DURATION: Final = _rule(lambda span: _is_number(span) and span > 0, "a number of seconds above 0")
_AXIS: Final = _rule(_is_number, "a number")
_SECONDS: Final = _whole_number(1, MAX_SECONDS)
_SIDE: Final = r"[1-9]\d{0,4}(\.\d{1,3})?"
_RATIO: Final = _shape(f"{_SIDE}:{_SIDE}", "width:height, such as 16:9 or 1280:720")
_PIXELS: Final = _shape(r"[1-9]\d{2,4}:[1-9]\d{2,4}", "width:height in pixels, such as 1280:720")
# Without the slash, it would be part of the host name, and the key would go to another host.
_PREFIX: Final = _shape(r"(/[!\"$->@-~]*)?", "a path such as /runway")


def _json_copy(extra: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a copy of *extra* as JSON has it, which the caller cannot change."""
    is_dict = isinstance(extra, Mapping)
    if not is_dict or not all(isinstance(key, str) for key in extra):
        raise usage_error(
            "extra",
            "extra is not a dict with string keys.",
            "Use a dict of further fields for the request's body.",
        )
    try:
        body = json.dumps(dict(extra), allow_nan=False, ensure_ascii=False).encode()
        copy: dict[str, Any] = json.loads(body)
        if _depth(copy) <= MAX_DEPTH:
            return copy
        fault = f"more than {MAX_DEPTH} levels"
    except (TypeError, ValueError, RecursionError) as unfit:
        fault = type(unfit).__name__
    # Outside the clause, since the original may quote the value.
    raise usage_error(
        "extra",
        f"extra cannot be written as JSON ({fault}).",
        "Use text, finite numbers, booleans, None, lists and dicts only.",
    )


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, inner), default=0) if isinstance(value, dict | list) else 1


@frozen
class MotionVector:
    """How the camera moves; no range is documented, 0 is rest (api-facts 1.2)."""

    x: float = field(default=0, validator=_AXIS)  #: Sideways.
    y: float = field(default=0, validator=_AXIS)  #: Up and down.
    z: float = field(default=0, validator=_AXIS)  #: In and out.
    r: float = field(default=0, validator=_AXIS)  #: Roll.
    bg_x_pan: float = field(default=0, validator=_AXIS)  #: Background, sideways.
    bg_y_pan: float = field(default=0, validator=_AXIS)  #: Background, up and down.


_MOTION: Final = _rule(lambda value: isinstance(value, MotionVector), "a MotionVector")


@frozen
class KnownModel:
    """The lengths and ratios that are documented for one model in one format."""

    name: str
    seconds: tuple[int, ...]
    ratios: tuple[str, ...]
    source: str
    official: bool = False
    #: Whether a source says that the gateway refuses other ratios. Anything else that is not
    #: listed is sent: gateways gain models and sizes faster than their documentation.
    refuses_other_ratios: bool = False


_SHAPES: Final = ("16:9", "9:16", "1:1", "4:3", "3:4", "21:9")
_SIZES: Final = ("1280:720", "720:1280", "1104:832", "832:1104", "960:960", "1584:672")
_VEO_SIZES: Final = ("1280:720", "720:1280", "1080:1920", "1920:1080")

MODELS: Final = (
    KnownModel("gen2", (), _SHAPES, "api-facts 1.2"),
    KnownModel("gen3", (5, 10), ("16:9", "9:16"), "api-facts 1.2", refuses_other_ratios=True),
    KnownModel("gen4", (5, 10), _SHAPES, "api-facts 1.2"),
    KnownModel("gen4_turbo", (5, 10), _SHAPES, "api-facts 1.2"),
    KnownModel("gen4.5", (5, 10), _SHAPES, "api-facts 1.2"),
    KnownModel("gen3a_turbo", (5, 10), ("1280:768", "768:1280"), "api-facts 6", official=True),
    KnownModel("gen4_turbo", (5, 10), _SIZES, "api-facts 6", official=True),
    KnownModel("gen4.5", tuple(range(2, 11)), _SIZES, "api-facts 11 row 10", official=True),
    KnownModel("veo3.1", (4, 6, 8), _VEO_SIZES, "api-facts 11 row 10", official=True),
    KnownModel("veo3.1_fast", (4, 6, 8), _VEO_SIZES, "api-facts 11 row 10", official=True),
)
"""What is documented for each model."""


@frozen(kw_only=True)
class _Request:
    #: Further fields for the request's body, sent as they are.
    extra: Mapping[str, Any] = field(
        factory=dict,
        converter=_json_copy,
        repr=lambda extra: f"<{len(extra)} keys>",
        hash=False,  # a dict has none; it still counts in comparisons
    )


@frozen(kw_only=True)
class _PromptedRequest(_Request):
    #: Width to height, such as 16:9 or 1280:720; the documented ones are listed by model.
    ratio: str = field(default="16:9", validator=_RATIO)
    #: Length of the clip, in seconds, from 1 to 60; most models take 5 and 10.
    seconds: int = field(default=10, validator=_SECONDS)
    #: The model; new ones appear, so any name is sent as it is.
    model: str = field(default=DEFAULT_MODEL, validator=check_text)
    #: The look; "cinematic" is the only value documented.
    style: str = field(default="cinematic", validator=check_text)
    #: How the camera moves.
    motion: MotionVector = field(factory=MotionVector, validator=_MOTION)

    def __attrs_post_init__(self) -> None:
        for row in MODELS:
            refuses = row.refuses_other_ratios and row.name == self.model
            if refuses and self.ratio not in row.ratios:
                raise usage_error(
                    "ratio",
                    f"ratio is {self.ratio!r}, which {self.model} does not support.",
                    f"Use {' or '.join(row.ratios)}.",
                )


@frozen
class TextToVideo(_PromptedRequest):
    """A clip from a text alone (api-facts 1.2). Spends points when the gateway accepts it."""

    #: What the clip should show, in any language.
    prompt: str = field(validator=check_text, repr=False)


@frozen
class ImageToVideo(_PromptedRequest):
    """A clip from a picture and a text (api-facts 1.3). Spends points when accepted."""

    #: What should happen, in any language.
    prompt: str = field(validator=check_text, repr=False)
    #: The first frame: a URL that the gateway can download, or a local file as a path or bytes.
    image: Media = field(**PICTURE)
    #: The last frame, towards which the clip moves.
    last_image: Media | None = field(default=None, kw_only=True, **PICTURE)
    #: gen3: the picture is the end of the clip, not its start.
    image_as_end_frame: bool = field(default=False, kw_only=True, validator=_FLAG)
    #: Portrait in place of landscape.
    flip: bool = field(default=False, kw_only=True, validator=_FLAG)


@frozen
class VideoToVideo(_Request):
    """A clip redrawn in another style (api-facts 1.4). Spends points when accepted."""

    #: The clip to redraw, up to 10 s and 64 MB: a URL, or a local file as a path or bytes.
    video: Media = field(**CLIP)
    #: The style to redraw it in.
    prompt: str = field(validator=check_text, repr=False)
    #: How far the result may leave the source: 0 keeps its structure, 1 is free.
    structure_transformation: float = field(default=0.5, kw_only=True, validator=_number(0, 1))
    #: Length of the clip, in seconds, from 1 to 60; None leaves the field out.
    seconds: int | None = field(default=5, kw_only=True, validator=_optional(_SECONDS))
    #: Portrait in place of landscape.
    flip: bool = field(default=False, kw_only=True, validator=_FLAG)
    #: The model; any name is sent as it is.
    model: str = field(default=DEFAULT_MODEL, kw_only=True, validator=check_text)


@frozen
class ActOne(_Request):
    """A performance transferred to a character (api-facts 1.5). Spends points when accepted."""

    #: The performance, 16:9 only: a URL, or a local file as a path or bytes.
    video: Media = field(**CLIP)
    #: The character's picture; 16:9 only.
    image: Media | None = field(default=None, **PICTURE)
    #: A clip of the character, in place of the picture.
    character_video: Media | None = field(default=None, kw_only=True, **CLIP)
    #: How strongly it moves, from 1 to 5; None leaves it to the gateway.
    motion_multiplier: int | None = field(
        default=None, kw_only=True, validator=_optional(_whole_number(1, 5))
    )
    #: Portrait in place of landscape; None leaves it to the gateway.
    flip: bool | None = field(default=None, kw_only=True, validator=_optional(_FLAG))

    def __attrs_post_init__(self) -> None:
        if (self.image is None) == (self.character_video is None):
            given = "neither was" if self.image is None else "both were"
            raise usage_error(
                "image",
                f"Either image or character_video is needed, and {given} given.",
                "Give the character as a picture or as a clip.",
            )


@frozen
class OfficialImageToVideo(_Request):
    """A clip from a picture, in the official format (api-facts 6). Spends points when accepted."""

    #: The first frame: an https URL, a data URI, or a local file as a path or bytes.
    image: Media = field(**DATA_PICTURE)
    #: What should happen, up to 1000 UTF-16 units, of which an emoji is two (CometAPI: 512).
    prompt: str | None = field(default=None, validator=_optional(check_text), repr=False)
    #: The last frame, as the first.
    last_image: Media | None = field(default=None, kw_only=True, **DATA_PICTURE)
    #: The model; any name is sent as it is.
    model: str = field(default="gen4_turbo", kw_only=True, validator=check_text)
    #: Width to height in pixels; the documented ones are listed by model.
    ratio: str = field(default="1280:720", kw_only=True, validator=_PIXELS)
    #: Length of the clip, in seconds, from 1 to 60; gen4.5 takes 2 to 10, veo3.1 takes 4, 6 and 8.
    seconds: int = field(default=10, kw_only=True, validator=_SECONDS)
    #: The same seed and request give similar clips: 0 to 4294967295.
    seed: int | None = field(
        default=None, kw_only=True, validator=_optional(_whole_number(0, MAX_SEED))
    )
    #: Whether the clip carries a watermark; None leaves it to the gateway.
    watermark: bool | None = field(default=None, kw_only=True, validator=_optional(_FLAG))

    def __attrs_post_init__(self) -> None:
        length = len((self.prompt or "").encode("utf-16-le")) // 2
        if length > MAX_OFFICIAL_PROMPT:
            raise usage_error(
                "prompt",
                f"prompt has {length} characters.",
                f"Use at most {MAX_OFFICIAL_PROMPT}; most emoji count as two, as in UTF-16.",
            )


Generation = TextToVideo | ImageToVideo | VideoToVideo | ActOne | OfficialImageToVideo
"""Any request that makes a task, and so costs points."""


class TaskState(enum.StrEnum):
    """The state of a task, in the same words for every gateway (api-facts 3.4)."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    UNKNOWN = "unknown"
    """A word that no source documents: treated as not finished."""

    @property
    def is_final(self) -> bool:
        """Whether the task has ended."""
        return self in {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED}


DEAD_ENDS: Final = (TaskState.FAILED, TaskState.CANCELED)
"""States after which there will be no clip."""


@frozen
class TaskRecord:
    """What one answer says about a task, in one form for every dialect (api-facts 2 and 3)."""

    task_id: str
    state: TaskState
    word: str | None = None  #: The gateway's own word for the state; an unknown one may be cut.
    progress: float | None = None  #: From 0 to 1; 1 does not mean success (api-facts 2 B).
    #: URL of the clip; may be signed, and expires.
    video_url: str | None = field(default=None, repr=False)
    poster_url: str | None = field(default=None, repr=False)  #: URL of a still picture of it.
    last_frame_url: str | None = field(default=None, repr=False)  #: URL of its last frame.
    prompt: str | None = field(default=None, repr=False)  #: The prompt as it was sent.
    prompt_en: str | None = field(default=None, repr=False)  #: The gateway's translation of it.
    message: str | None = field(default=None, repr=False)  #: The reason for a failure.
    failure_code: str | None = None  #: The gateway's code for that reason.
    points: float | None = None  #: Points used, in the gateway's unit (api-facts 5.3).
    refunded: bool = False  #: Whether the points were given back.
    created_at: datetime | None = None
    updated_at: datetime | None = None  #: May be later than the real end (api-facts 5.6).
    notes: tuple[str, ...] = ()  #: Contradictions within this answer; usually empty.
    #: The whole answer as it came; kept as bytes, since thousands of waits each hold a record.
    answer: bytes = field(default=b"", repr=False, eq=False)

    @property
    def raw(self) -> Any:
        """The whole answer as JSON, unknown keys included; None if there is no answer."""
        return decode(self.answer) if self.answer else None

    def as_dict(self) -> dict[str, Any]:
        """Return what may be shown and stored, as JSON has it: no prompt, URL or raw answer."""
        return {
            **attrs.asdict(self, filter=lambda field, _value: field.repr is True),
            "notes": list(self.notes),
            "state": self.state.value,
            "created_at": self.created_at and self.created_at.isoformat(),
            "updated_at": self.updated_at and self.updated_at.isoformat(),
        }

    @property
    def has_clip(self) -> bool:
        """Whether there is something to download."""
        return self.state is TaskState.SUCCEEDED and self.video_url is not None

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing more to learn: it has its clip, or there will be none."""
        return self.has_clip or self.state in DEAD_ENDS


@frozen
class Balance:
    """What is left to spend, in the gateway's unit (api-facts 7); None if it does not say."""

    remaining: float | None = None
    used: float | None = None
    total: float | None = None
    unlimited: bool = False  #: The key has no limit of its own.
    raw: Any = field(default=None, repr=False, eq=False)  #: The whole answer as it came.

    def joined(self, other: Self) -> "Balance":
        """Return one balance from two halves, such as the limit and the usage of a key."""
        used = other.used if self.used is None else self.used
        total = other.total if self.total is None else self.total
        unlimited = self.unlimited or other.unlimited
        if unlimited:
            total = None
        remaining = None if total is None or used is None else total - used
        return Balance(remaining, used, total, unlimited, raw=[self.raw, other.raw])


class KeyStyle(enum.Enum):
    """How a gateway expects the key (api-facts 1.1)."""

    BEARER = "Authorization: Bearer <key>"
    RAW = "Authorization: <key>"
    BODY = "key in the body"
    """
    `key` in the JSON body of each POST in the reverse format, without `Authorization`.
    Other requests, which have no such body, carry `Authorization: <key>`.
    """


class BalanceRoute(enum.Enum):
    """Where a gateway reports the balance (api-facts 7)."""

    BILLING = "/v1/dashboard/billing/subscription and /v1/dashboard/billing/usage"
    TOKEN = "/api/usage/token/"  # noqa: S105  (an address)
    QUOTA = "/user/quota on a host of its own, with the key in the address"


@frozen
class Gateway:
    """
    Where a gateway is and which of the known variants it uses (api-facts 1.1).

    The known gateways are in the reference under "Gateways"; their names may be given to
    `Client` in place of a `Gateway`.
    """

    name: str = field(validator=check_text)
    #: Scheme and host; if None, `Client` needs a base_url.
    base_url: str | None = None
    #: Comes before `/pro/generate` and `/feed`.
    prefix: str = field(default="/runway", validator=_PREFIX)
    #: Comes before `/image_to_video` and `/tasks/…` of the official format.
    official_prefix: str = field(default="/runwayml/v1", validator=_PREFIX)
    #: How the feed is polled: POST with a body, or GET with a query.
    feed_verb: str = field(default="POST", validator=_choice("POST", "GET"))
    key_style: KeyStyle = field(default=KeyStyle.BEARER, validator=_choice(*KeyStyle))
    balance: BalanceRoute = field(default=BalanceRoute.BILLING, validator=_choice(*BalanceRoute))
    #: Host of the QUOTA route, the only one with the key in its URL.
    quota_url: str | None = None
    #: Where `GatewayFiles` puts local files, such as `/v1/files`; None if there is no such route.
    files_path: str | None = field(default=None, validator=_optional(_PREFIX))
    #: Where these facts come from.
    source: str = ""


@frozen(kw_only=True)
class Timeouts:
    """How long one exchange may take, in seconds."""

    #: Until the connection is open, TLS included.
    connect: float = field(default=5.0, validator=_DURATION)
    #: Without a byte of a clip, or of the answer to a paid request, of which one took 21 s
    #: (api-facts 1.2); for any other exchange as a whole.
    read: float = field(default=60.0, validator=_DURATION)
    #: For a paid exchange as a whole.
    total: float = field(default=300.0, validator=_DURATION)


@frozen(kw_only=True)
class RetryPolicy:
    """How often, and after what delays, a request is retried if that is safe."""

    #: How often a request is sent at most, the first time included.
    attempts: int = field(default=5, validator=_whole_number(1, 100))
    #: The first delay is drawn from 0 to this, in seconds.
    first: float = field(default=0.5, validator=_DURATION)
    #: By how much that range grows with each retry.
    factor: float = field(default=2.0, validator=_number(1, 100))
    #: The longest delay, in seconds.
    max_delay: float = field(default=30.0, validator=_DURATION)
    #: The longest `Retry-After` to obey, in seconds. If a server demands more, a request ends
    #: with its error, and a wait for a task polls again after this time.
    max_retry_after: float = field(default=120.0, validator=_DURATION)


@frozen(kw_only=True)
class Limits:
    """How much one client may send to the gateway, in each event loop."""

    #: Requests per second at most; None adapts to what the gateway accepts.
    requests_per_second: float | None = field(
        default=None, validator=_optional(_number(0.001, 1_000_000))
    )
    #: Requests in flight at once; aiohttp's own default, and enough for slow submits.
    requests_in_flight: int = field(default=100, validator=_whole_number(1, 10**6))
    #: Unfinished tasks that this client has submitted; None is no limit.
    tasks_in_flight: int | None = field(default=None, validator=_optional(_whole_number(1, 10**6)))


@frozen(kw_only=True)
class PollPolicy:
    """When a task is polled: exponential, capped and jittered, until better is learned."""

    #: From the submit to the first poll, in seconds.
    first: float = field(default=2.0, validator=_DURATION)
    #: How much longer each interval is than the one before.
    factor: float = field(default=1.5, validator=_number(1, 100))
    #: The longest interval, in seconds; gateways refresh every 15 s (api-facts 5.5).
    max_interval: float = field(default=15.0, validator=_DURATION)
    #: How much an interval varies at random, as a fraction of it.
    jitter: float = field(default=0.1, validator=_number(0, 0.9))
    #: Whether intervals learned from the durations of similar tasks replace the exponential
    #: ones. They go from half of *first* to 4/3 of *max_interval*, and to 20 s at most.
    learn: bool = field(default=True, validator=_FLAG)
    #: How long a task may wait for a poll when requests are scarce, in seconds.
    max_starvation: float = field(default=60.0, validator=_DURATION)
    #: How long the gateway may not know a task after its submit, in seconds (api-facts 11).
    not_found_grace: float = field(default=300.0, validator=_DURATION)
    #: How long a successful task may lack the clip's URL (api-facts 3.4), and the URL the clip,
    #: in seconds.
    url_grace: float = field(default=60.0, validator=_DURATION)
