"""
Frozen values a user makes or receives: requests, policies, `Gateway`, `TaskRecord`, `Balance`.

A request is checked when it is made: a bad value raises a `UsageError` that names the field, the
value and what is allowed, before anything is sent. Durations are in seconds, instants are aware
datetimes, points are in the gateway's own unit. No repr shows a prompt, a URL or a key.

A picture or a clip is a URL that the gateway can download (in the official format also a data URI),
or a local file as its `pathlib.Path` or its bytes, which `Client(uploads=...)` gives an address.
"""

import enum
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Self, get_args

from attrs import field, frozen

from ._fields import (
    AXIS,
    DURATION,
    FLAG,
    PIXELS,
    PREFIX,
    RATIO,
    SECONDS,
    SEED,
    check_official_prompt,
    check_text,
    choice,
    extra_fields,
    number,
    official_path,
    one_of,
    optional,
    rule,
    whole_body,
    whole_number,
)
from ._fields import require_text as require_text
from ._fields import usage_error as usage_error
from ._guesses import explained
from ._json import decode, json_fields
from ._media import CLIP, DATA_CLIP, DATA_PICTURE, PICTURE, Media

DEFAULT_MODEL: Final = "gen4"
DEFAULT_WAIT: Final = 1800.0
"""How long a wait lasts by default, in seconds: half an hour (api-facts 5.6)."""


@frozen
class MotionVector:
    """How the camera moves; no range is documented, 0 is rest (api-facts 1.2)."""

    x: float = field(default=0, validator=AXIS)  #: Sideways.
    y: float = field(default=0, validator=AXIS)  #: Up and down.
    z: float = field(default=0, validator=AXIS)  #: In and out.
    r: float = field(default=0, validator=AXIS)  #: Roll.
    bg_x_pan: float = field(default=0, validator=AXIS)  #: Background, sideways.
    bg_y_pan: float = field(default=0, validator=AXIS)  #: Background, up and down.


_MOTION: Final = rule(lambda value: isinstance(value, MotionVector), "a MotionVector")


@frozen(kw_only=True)
class _Request:
    #: Further fields for the request's body, sent as they are.
    extra: Mapping[str, Any] = field(
        factory=dict,
        converter=extra_fields,
        repr=lambda extra: f"<{len(extra)} keys>",
        hash=False,  # a dict has none; it still counts in comparisons
    )


@frozen(kw_only=True)
class _PromptedRequest(_Request):
    #: Width to height, such as 16:9 or 1280:720; the documented ones are listed by model.
    ratio: str = field(default="16:9", validator=RATIO)
    #: Length of the clip, in seconds, from 1 to 60; most models take 5 and 10.
    seconds: int = field(default=10, validator=SECONDS)
    #: The model; new ones appear, so any name is sent as it is.
    model: str = field(default=DEFAULT_MODEL, validator=check_text)
    #: The look; "cinematic" is the only value documented.
    style: str = field(default="cinematic", validator=check_text)
    #: How the camera moves.
    motion: MotionVector = field(factory=MotionVector, validator=_MOTION)

    def __attrs_post_init__(self) -> None:
        row = known_model(self)
        if row is not None and row.refuses_other_ratios and self.ratio not in row.ratios:
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
    #: The first frame.
    image: Media = field(**PICTURE)
    #: The last frame, towards which the clip moves.
    last_image: Media | None = field(default=None, kw_only=True, **PICTURE)
    #: gen3: the picture is the end of the clip, not its start.
    image_as_end_frame: bool = field(default=False, kw_only=True, validator=FLAG)
    #: Portrait in place of landscape.
    flip: bool = field(default=False, kw_only=True, validator=FLAG)


@frozen
class VideoToVideo(_Request):
    """A clip redrawn in another style (api-facts 1.4). Spends points when accepted."""

    #: The clip to redraw, up to 10 s and 64 MB.
    video: Media = field(**CLIP)
    #: The style to redraw it in.
    prompt: str = field(validator=check_text, repr=False)
    #: How far the result may leave the source: 0 keeps its structure, 1 is free.
    structure_transformation: float = field(default=0.5, kw_only=True, validator=number(0, 1))
    #: Length of the clip, in seconds, from 1 to 60; None leaves the field out.
    seconds: int | None = field(default=5, kw_only=True, validator=optional(SECONDS))
    #: Portrait in place of landscape.
    flip: bool = field(default=False, kw_only=True, validator=FLAG)
    #: The model; any name is sent as it is.
    model: str = field(default=DEFAULT_MODEL, kw_only=True, validator=check_text)


def _check_character(image: Media | None, video: Media | None) -> None:
    if (image is None) == (video is None):
        given = "neither was" if image is None else "both were"
        raise usage_error(
            "image",
            f"Either image or character_video is needed, and {given} given.",
            "Give the character as a picture or as a clip.",
        )


@frozen
class ActOne(_Request):
    """A performance transferred to a character (api-facts 1.5). Spends points when accepted."""

    #: The performance; 16:9 only.
    video: Media = field(**CLIP)
    #: The character's picture; 16:9 only.
    image: Media | None = field(default=None, **PICTURE)
    #: A clip of the character, in place of the picture.
    character_video: Media | None = field(default=None, kw_only=True, **CLIP)
    #: How strongly it moves, from 1 to 5; None leaves it to the gateway.
    motion_multiplier: int | None = field(
        default=None, kw_only=True, validator=optional(whole_number(1, 5))
    )
    #: Portrait in place of landscape; None leaves it to the gateway.
    flip: bool | None = field(default=None, kw_only=True, validator=optional(FLAG))

    def __attrs_post_init__(self) -> None:
        _check_character(self.image, self.character_video)


@frozen
class Aleph(_Request):
    """A clip edited by Aleph, which takes every kind of edit (api-facts 11). Spends points."""

    #: The clip to edit, up to 50 MB.
    video: Media = field(**CLIP)
    #: What to change, up to 1000 characters.
    prompt: str = field(validator=check_text, repr=False)
    #: A picture that shows what is meant.
    image: Media | None = field(default=None, kw_only=True, **PICTURE)
    #: Length of the clip, in seconds; 5 is the only value documented.
    seconds: int = field(default=5, kw_only=True, validator=SECONDS)


@frozen(kw_only=True)
class _SeededRequest(_Request):
    #: The same seed and request give similar clips: 0 to 4294967295.
    seed: int | None = field(default=None, validator=optional(SEED))


@frozen(kw_only=True)
class _OfficialClip(_SeededRequest):
    #: Width to height in pixels; the documented ones are listed by model.
    ratio: str = field(default="1280:720", validator=PIXELS)
    #: Length of the clip, in seconds, from 1 to 60; gen4.5 takes 2 to 10, veo3.1 takes 4, 6 and 8.
    seconds: int = field(default=10, validator=SECONDS)
    #: Whether the clip has sound, for veo3.1, which may change its price; None leaves it out.
    audio: bool | None = field(default=None, validator=optional(FLAG))


@frozen
class OfficialTextToVideo(_OfficialClip):
    """A clip from a text alone, in the official format (api-facts 11). Spends points."""

    #: What the clip should show, up to 1000 UTF-16 units, of which an emoji is two.
    prompt: str = field(validator=check_official_prompt, repr=False)
    #: The model; any name is sent as it is.
    model: str = field(default="gen4.5", kw_only=True, validator=check_text)


@frozen
class OfficialImageToVideo(_OfficialClip):
    """A clip from a picture, in the official format (api-facts 6). Spends points."""

    #: The first frame.
    image: Media = field(**DATA_PICTURE)
    #: What should happen, up to 1000 UTF-16 units, of which an emoji is two (CometAPI: 512).
    prompt: str | None = field(default=None, validator=optional(check_official_prompt), repr=False)
    #: The last frame.
    last_image: Media | None = field(default=None, kw_only=True, **DATA_PICTURE)
    #: The model; any name is sent as it is.
    model: str = field(default="gen4_turbo", kw_only=True, validator=check_text)
    #: Whether the clip carries a watermark; None leaves it to the gateway.
    watermark: bool | None = field(default=None, kw_only=True, validator=optional(FLAG))


@frozen
class OfficialVideoToVideo(_SeededRequest):
    """A clip edited as a text says, in the official format (api-facts 11). Spends points."""

    #: The clip to edit.
    video: Media = field(**DATA_CLIP)
    #: What to change, up to 1000 UTF-16 units, of which an emoji is two.
    prompt: str = field(validator=check_official_prompt, repr=False)
    #: A picture that shows what is meant.
    image: Media | None = field(default=None, kw_only=True, **DATA_PICTURE)
    #: The model; any name is sent as it is.
    model: str = field(default="gen4_aleph", kw_only=True, validator=check_text)
    #: Width to height in pixels; None leaves it out, and newer models keep that of the source.
    ratio: str | None = field(default="1280:720", kw_only=True, validator=optional(PIXELS))


@frozen
class OfficialCharacterPerformance(_SeededRequest):
    """A performance transferred to a character, in the official format (api-facts 11)."""

    #: The performance, 3 to 30 s of one person.
    video: Media = field(**DATA_CLIP)
    #: A picture of the character, with a face.
    image: Media | None = field(default=None, **DATA_PICTURE)
    #: A clip of the character, in place of the picture.
    character_video: Media | None = field(default=None, kw_only=True, **DATA_CLIP)
    #: Whether gestures are transferred as well as the face; None leaves it to the gateway.
    body_control: bool | None = field(default=None, kw_only=True, validator=optional(FLAG))
    #: How strong the expression is, from 1 to 5; None leaves it to the gateway.
    expression_intensity: int | None = field(
        default=None, kw_only=True, validator=optional(whole_number(1, 5))
    )
    #: The model; any name is sent as it is.
    model: str = field(default="act_two", kw_only=True, validator=check_text)
    #: Width to height in pixels; the documented ones are listed by model.
    ratio: str = field(default="1280:720", kw_only=True, validator=PIXELS)

    def __attrs_post_init__(self) -> None:
        _check_character(self.image, self.character_video)


@frozen
class OfficialVideoUpscale(_Request):
    """A clip made larger, in the official format (api-facts 11). Spends points when accepted."""

    #: The clip, up to 40 s and 4096 pixels a side.
    video: Media = field(**DATA_CLIP)
    #: The model; any name is sent as it is.
    model: str = field(default="upscale_v1", kw_only=True, validator=check_text)


@frozen
class OfficialRequest:
    """Any request of the official format, by its path and its body. Spends points."""

    #: Such as text_to_video or /v1/text_to_video; what ends in v1/ is the gateway's own prefix.
    path: str = field(converter=official_path)
    #: The body, as the gateway or Runway documents it; sent as it is.
    body: Mapping[str, Any] = field(converter=whole_body, repr=False, hash=False)

    @property
    def extra(self) -> Mapping[str, Any]:
        """The fields of the body that have no argument of their own, which is all of them."""
        return self.body


Generation = (
    TextToVideo
    | ImageToVideo
    | VideoToVideo
    | ActOne
    | Aleph
    | OfficialTextToVideo
    | OfficialImageToVideo
    | OfficialVideoToVideo
    | OfficialCharacterPerformance
    | OfficialVideoUpscale
    | OfficialRequest
)
"""Any request that makes a task, and so costs points."""

REQUESTS: Final = get_args(Generation)

for _kind in REQUESTS:
    _kind.__init__ = explained(_kind.__init__)


def require_request(value: object) -> None:
    """Raise a `UsageError` unless *value* is a request."""
    if type(value) not in REQUESTS:
        raise usage_error(
            "request",
            f"request is of type {type(value).__name__}.",
            f"Use one of {', '.join(kind.__name__ for kind in REQUESTS)}.",
        )


@frozen
class KnownModel:
    """The lengths and ratios that are documented for one model in one format."""

    name: str
    #: The requests that it is documented for.
    requests: tuple[type[Generation], ...]
    #: None are documented for models that keep those of the source.
    seconds: tuple[int, ...]
    ratios: tuple[str, ...]
    source: str
    #: Whether a source says that the gateway refuses other ratios. Anything else that is not
    #: listed is sent: gateways gain models and sizes faster than their documentation.
    refuses_other_ratios: bool = False


_SHAPES: Final = ("16:9", "9:16", "1:1", "4:3", "3:4", "21:9")
_SIZES: Final = ("1280:720", "720:1280", "1104:832", "832:1104", "960:960", "1584:672")
_VEO_SIZES: Final = ("1280:720", "720:1280", "1080:1920", "1920:1080")
_REVERSE: Final = (TextToVideo, ImageToVideo)
_OFFICIAL: Final = (OfficialTextToVideo, OfficialImageToVideo)

MODELS: Final = (
    KnownModel("gen2", _REVERSE, (), _SHAPES, "api-facts 1.2"),
    KnownModel(
        "gen3", _REVERSE, (5, 10), ("16:9", "9:16"), "api-facts 1.2", refuses_other_ratios=True
    ),
    KnownModel("gen4", _REVERSE, (5, 10), _SHAPES, "api-facts 1.2"),
    KnownModel("gen4_turbo", _REVERSE, (5, 10), _SHAPES, "api-facts 1.2"),
    KnownModel("gen4.5", _REVERSE, (5, 10), _SHAPES, "api-facts 1.2"),
    KnownModel("gen3", (VideoToVideo,), (), (), "api-facts 1.4"),
    KnownModel("gen4", (VideoToVideo,), (), (), "api-facts 1.4"),
    KnownModel(
        "gen3a_turbo", (OfficialImageToVideo,), (5, 10), ("1280:768", "768:1280"), "api-facts 6"
    ),
    KnownModel("gen4_turbo", (OfficialImageToVideo,), (5, 10), _SIZES, "api-facts 6"),
    KnownModel("gen4.5", _OFFICIAL, tuple(range(2, 11)), _SIZES, "api-facts 11 row 10"),
    KnownModel("veo3.1", _OFFICIAL, (4, 6, 8), _VEO_SIZES, "api-facts 11 row 10"),
    KnownModel("veo3.1_fast", _OFFICIAL, (4, 6, 8), _VEO_SIZES, "api-facts 11 row 10"),
    KnownModel(
        "gen4_aleph",
        (OfficialVideoToVideo,),
        (),
        (*_SIZES, "848:480", "640:480"),
        "api-facts 11 row 22",
    ),
    KnownModel("aleph2", (OfficialVideoToVideo,), (), (), "api-facts 11 row 10"),
    KnownModel("act_two", (OfficialCharacterPerformance,), (), _SIZES, "api-facts 11 row 22"),
    KnownModel("upscale_v1", (OfficialVideoUpscale,), (), (), "api-facts 11 row 22"),
)
"""What is documented for each model."""


def known_model(request: object) -> KnownModel | None:
    """Return what is documented for the model that *request* names, in its format."""
    name = getattr(request, "model", None)
    rows = (row for row in MODELS if row.name == name and type(request) in row.requests)
    return next(rows, None)


def hint_for(request: Generation) -> str:
    """Return what is documented for the model of a request that differs from it, or nothing."""
    row = known_model(request)
    if row is None:
        return ""
    for name, documented in (("seconds", row.seconds), ("ratio", row.ratios)):
        if documented and getattr(request, name, None) not in {None, *documented}:
            return f"{row.name} is documented with {name} {one_of(documented)}."
    return ""


class TaskState(enum.StrEnum):
    """The state of a task, in the same words for every gateway (api-facts 3.4)."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    UNKNOWN = "unknown"
    """A status that no source documents, or a task that was not polled yet: not finished."""

    @property
    def is_final(self) -> bool:
        """Whether the task has ended."""
        return self in {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED}


DEAD_ENDS: Final = (TaskState.FAILED, TaskState.CANCELED)
"""States after which there will be no clip."""


@frozen
class TaskRecord:
    """What one response says about a task, in one form for every dialect (api-facts 2 and 3)."""

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
    refunded: bool = False  #: Whether the points were refunded.
    created_at: datetime | None = None
    updated_at: datetime | None = None  #: May be later than the real end (api-facts 5.6).
    notes: tuple[str, ...] = ()  #: Contradictions within this response; usually empty.
    #: The body of the response as it came; bytes, since thousands of waits each hold a record.
    body: bytes = field(default=b"", repr=False, eq=False)

    @property
    def raw(self) -> Any:
        """The body as JSON, unknown keys included; None if there is no body."""
        return decode(self.body) if self.body else None

    def as_dict(self) -> dict[str, Any]:
        """Return what may be shown and stored, as JSON has it: no prompt, URL or body."""
        return json_fields(self)

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
    raw: Any = field(default=None, repr=False, eq=False)  #: The whole response as JSON.

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
    prefix: str = field(default="/runway", validator=PREFIX)
    #: Comes before `/image_to_video` and `/tasks/…` of the official format.
    official_prefix: str = field(default="/runwayml/v1", validator=PREFIX)
    #: How the feed is polled: POST with a body, or GET with a query.
    feed_verb: str = field(default="POST", validator=choice("POST", "GET"))
    key_style: KeyStyle = field(default=KeyStyle.BEARER, validator=choice(*KeyStyle))
    balance: BalanceRoute = field(default=BalanceRoute.BILLING, validator=choice(*BalanceRoute))
    #: Host of the QUOTA route, the only one with the key in its URL.
    quota_url: str | None = None
    #: Where `GatewayFiles` puts local files, such as `/v1/files`; None if there is no such route.
    files_path: str | None = field(default=None, validator=optional(PREFIX))
    #: Where these facts come from.
    source: str = ""


@frozen(kw_only=True)
class Timeouts:
    """How long one exchange may take, in seconds."""

    #: Until the connection is open, TLS included.
    connect: float = field(default=5.0, validator=DURATION)
    #: Without a byte of a clip, or of the response to a paid request, of which one took 21 s
    #: (api-facts 1.2); for any other exchange as a whole.
    read: float = field(default=60.0, validator=DURATION)
    #: For a paid exchange as a whole, and for the upload of a local file.
    total: float = field(default=300.0, validator=DURATION)
    #: How long after a paid request was sent its task may still appear in the gateway's own
    #: lists; only after that can it be proven not to exist.
    late: float = field(default=600.0, validator=DURATION)


@frozen(kw_only=True)
class RetryPolicy:
    """How often, and after what delays, a request is retried if that is safe."""

    #: How often a request is sent at most, the first time included.
    attempts: int = field(default=5, validator=whole_number(1, 100))
    #: The first delay is drawn from 0 to this, in seconds.
    first: float = field(default=0.5, validator=DURATION)
    #: By how much that range grows with each retry.
    factor: float = field(default=2.0, validator=number(1, 100))
    #: The longest delay, in seconds.
    max_delay: float = field(default=30.0, validator=DURATION)
    #: The longest `Retry-After` to obey, in seconds. If a server demands more, a request ends
    #: with its error, and a wait for a task polls again after this time.
    max_retry_after: float = field(default=120.0, validator=DURATION)


@frozen(kw_only=True)
class Limits:
    """How much one client may send to the gateway, in each event loop."""

    #: Requests per second at most, of all processes if they share a pace; None adapts to what the
    #: gateway accepts.
    requests_per_second: float | None = field(
        default=None, validator=optional(number(0.001, 1_000_000))
    )
    #: Requests in flight at once; aiohttp's own default, and enough for slow submits.
    requests_in_flight: int = field(default=100, validator=whole_number(1, 10**6))
    #: Unfinished tasks that this client has submitted; None is no limit.
    tasks_in_flight: int | None = field(default=None, validator=optional(whole_number(1, 10**6)))


@frozen(kw_only=True)
class PollPolicy:
    """When a task is polled: exponential, capped and jittered, until better is learned."""

    #: From the submit to the first poll, in seconds.
    first: float = field(default=2.0, validator=DURATION)
    #: How much longer each interval is than the one before.
    factor: float = field(default=1.5, validator=number(1, 100))
    #: The longest interval, in seconds; gateways refresh every 15 s (api-facts 5.5).
    max_interval: float = field(default=15.0, validator=DURATION)
    #: How much an interval varies at random, as a fraction of it.
    jitter: float = field(default=0.1, validator=number(0, 0.9))
    #: Whether intervals learned from the durations of similar tasks replace the exponential
    #: ones. They go from half of *first* to 4/3 of *max_interval*, and to 20 s at most.
    learn: bool = field(default=True, validator=FLAG)
    #: How long a task may wait for a poll when requests are scarce, in seconds.
    max_starvation: float = field(default=60.0, validator=DURATION)
    #: How long the gateway may not know a task after its submit, in seconds (api-facts 11).
    not_found_grace: float = field(default=300.0, validator=DURATION)
    #: How long a successful task may lack the clip's URL (api-facts 3.4), and the URL the clip,
    #: in seconds.
    url_grace: float = field(default=60.0, validator=DURATION)
