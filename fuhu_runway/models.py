"""
Frozen values a user makes or receives: requests, policies, `Gateway`, `TaskRecord`, `Balance`.

Requests are checked when they are made: a bad value is a `UsageError` that names the field, the
value and what is allowed, before anything is sent. Durations are in seconds, instants are aware
datetimes, points are in the gateway's own unit. Prompts, addresses and keys are in no repr.
"""

import enum
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from ipaddress import ip_address
from typing import Any, Final, Self
from urllib.parse import urlsplit

import attrs

from ._json import decode
from ._redact import is_ipv6, redact
from .errors import UsageError

MAX_SECONDS: Final = 60
"""The longest clip that can be asked for, so that a slip such as 1000 is found unpaid."""
MAX_OFFICIAL_PROMPT: Final = 1000
"""In UTF-16 units: the official API refuses longer prompts."""
MAX_SEED: Final = 4_294_967_295
MAX_DEPTH: Final = 100
"""How many levels *extra* may have: far fewer than any reader of JSON on the way can take."""

DEFAULT_MODEL: Final = "gen4"
DEFAULT_WAIT: Final = 1800.0
"""How long a wait lasts by default, in seconds: half an hour (api-facts 5.6)."""


def usage_error(field: str, happened: str, advice: str) -> UsageError:
    """Return the error for a call that is wrong before anything was sent."""
    return UsageError(redact(happened), "Nothing was sent or charged.", advice, field=field)


def _shown(value: object) -> str:
    """Return a value as an error may show it: short, and without secrets."""
    try:
        text = redact(repr(value))
    except Exception:  # noqa: BLE001  (such as an int of more digits than Python prints)
        return f"of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


# Letters and symbols by Unicode's categories that nevertheless show nothing, such as the Hangul
# fillers and the empty Braille cell.
_BLANKS: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0\ufffe\uffff")


def _is_visible(character: str) -> bool:
    # A character that this Python does not know yet (Cn) may be an emoji of next year.
    kind = unicodedata.category(character)
    return (kind[0] in "LNPS" or kind in {"Cn", "Co"}) and character not in _BLANKS


def check_text(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """Raise unless the value is text that shows something and that every storage can take."""
    require_text(attribute.name, value)


def require_text(name: str, value: object) -> None:
    """Raise a `UsageError` about *name* unless *value* is text, as `check_text` does."""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise usage_error(name, f"{name} is of type {kind}.", "Give it as text (str).")
    broken_at = _half_character(value)
    if broken_at is not None:
        raise usage_error(
            name,
            f"{name} has half a character (a lone surrogate) at position {broken_at}.",
            "Decode the text with the encoding it was written in.",
        )
    if not any(map(_is_visible, value)):
        fault = "has no visible character" if value else "is empty"
        raise usage_error(name, f"{name} {fault}.", f"Give a {name} with at least one word.")
    if "\0" in value:
        # JSON can carry it, but PostgreSQL cannot: a gateway on it fails after it has charged.
        raise usage_error(
            name,
            f"{name} has a NUL character at position {value.index(chr(0))}.",
            "Remove it: databases of gateways refuse it.",
        )


def _half_character(text: str) -> int | None:
    try:
        text.encode()
    except UnicodeEncodeError as broken:
        return broken.start  # the error itself holds the whole text, so it goes no further
    return None


def _check_choice(*allowed: Any) -> Any:
    """One of a few documented values."""

    def check(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        # 5.0 equals 5, and is another value in JSON.
        fits = isinstance(value, type(allowed[0])) and not isinstance(value, bool)
        if not fits or value not in allowed:
            choices = ", ".join(map(str, allowed[:-1])) + f" or {allowed[-1]}"
            raise usage_error(
                attribute.name, f"{attribute.name} is {_shown(value)}.", f"Use {choices}."
            )

    return check


def _is_finite(value: float) -> bool:
    """Return whether every JSON reader takes it as a number: no NaN, infinity, flag or giant."""
    try:
        return math.isfinite(value) and not isinstance(value, bool)
    except OverflowError:  # an int that no float can hold
        return False


def _check_number(low: float = -math.inf, high: float = math.inf, *, whole: bool = False) -> Any:
    """A finite number within bounds, both included."""

    def check(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if (
            isinstance(value, int if whole else int | float)
            and _is_finite(value)
            and low <= value <= high
        ):
            return
        kind = "a whole number" if whole else "a number"
        bounds = f" from {low} to {high}" if math.isfinite(low) and math.isfinite(high) else ""
        raise usage_error(
            attribute.name, f"{attribute.name} is {_shown(value)}.", f"Use {kind}{bounds}."
        )

    return check


def _check_duration(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """A span of time: finite and above zero."""
    if not (isinstance(value, int | float) and _is_finite(value) and value > 0):
        raise usage_error(
            attribute.name,
            f"{attribute.name} is {_shown(value)}.",
            "Use a number of seconds above 0.",
        )


def _check_flag(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if not isinstance(value, bool):
        raise usage_error(
            attribute.name, f"{attribute.name} is {_shown(value)}.", "Use True or False."
        )


# A pattern, since each poll reads several addresses and urlsplit takes ten times as long. A lone
# surrogate and a control character can be in no address, and no resolver takes a label that is
# empty or has more than 63 characters.
_LABEL: Final = r"[^\s\x00-\x1f\x7f/\\?#@:\[\].\ud800-\udfff]{1,63}"
_WEB_ADDRESS: Final = re.compile(
    rf"https?://(?:[^\s/?#@\x00-\x1f\x7f\ud800-\udfff]*@)?"
    rf"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<host>{_LABEL}(?:\.{_LABEL})*\.?))"
    r"(?::(?:[0-5]?[0-9]{0,4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"
    r"(?:[/?#][^\s\x00-\x1f\x7f\ud800-\udfff]*)?",
    re.IGNORECASE,
)


def is_web_address(text: object) -> bool:
    """Return whether *text* is an absolute http or https address that a request can be sent to."""
    found = _WEB_ADDRESS.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return False
    if found["host"] is None:
        return is_ipv6(found["ipv6"])
    return found["host"].isascii() or _has_ascii_form(found["host"])


def _has_ascii_form(host: str) -> bool:
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


_HOST: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MAX_HOST: Final = 253
"""The longest name that DNS can carry (RFC 1035)."""


def is_reachable_address(text: object) -> bool:
    """
    Return whether *text* is a web address whose host and port can exist.

    For what a user gives; answers, of which thousands arrive, go by `is_web_address`.
    """
    if not (isinstance(text, str) and is_web_address(text)) or _CONTROL.search(text):
        return False
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        if port == 0 or len(host) > _MAX_HOST:
            return False
        if ":" in host or host.rpartition(".")[2].isdigit():
            ip_address(host)
            return True
        return _HOST.fullmatch(host.encode("idna").decode()) is not None
    except ValueError:  # a port above 65535, a label that is empty or too long, no IP address
        return False


def _check_address(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """Raise unless the gateway could fetch a file from this address."""
    if not is_reachable_address(value):
        # The value stays out of the text: a prompt may have slipped into this argument.
        raise usage_error(
            attribute.name,
            f"{attribute.name} must be an http(s) URL with a valid host and port.",
            "Put the file where the gateway can download it, and give that address.",
        )


def _check_image(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """An address, or the picture itself as a data URI (api-facts 6)."""
    if not (isinstance(value, str) and value.startswith("data:image/") and value.isascii()):
        _check_address(instance, attribute, value)


def _checked_extra(extra: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a copy of the further fields as JSON has them, which the caller cannot change."""
    if not _has_names(extra):
        raise usage_error(
            "extra",
            f"extra is of type {type(extra).__name__}, or has keys that are not text.",
            "Give a dict of further fields for the request's body.",
        )
    copy: dict[str, Any] = {}
    try:
        text = json.dumps(dict(extra), allow_nan=False, ensure_ascii=False)
        text.encode()
        copy = json.loads(text)
        fault = f"more than {MAX_DEPTH} levels" if _is_deep(copy) else None
    except (TypeError, ValueError, RecursionError) as unfit:
        fault = type(unfit).__name__
    if fault is None:
        return copy
    # Outside the clause, since the original may quote the value.
    raise usage_error(
        "extra",
        f"extra cannot be written as JSON ({fault}).",
        "Use text, finite numbers, booleans, None, lists and dicts only.",
    )


def _is_deep(value: Any) -> bool:
    """Return whether a JSON value has more levels than `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for one in level
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)


def _has_names(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _counted(extra: Mapping[str, Any]) -> str:
    return f"<{len(extra)} keys>"


def _maybe(check: Any) -> Any:
    return attrs.validators.optional(check)


@attrs.frozen
class MotionVector:
    """How the camera moves; no range is documented, 0 is rest (api-facts 1.2)."""

    #: Sideways.
    x: float = attrs.field(default=0, validator=_check_number())
    #: Up and down.
    y: float = attrs.field(default=0, validator=_check_number())
    #: In and out.
    z: float = attrs.field(default=0, validator=_check_number())
    #: Roll.
    r: float = attrs.field(default=0, validator=_check_number())
    #: Background, sideways.
    bg_x_pan: float = attrs.field(default=0, validator=_check_number())
    #: Background, up and down.
    bg_y_pan: float = attrs.field(default=0, validator=_check_number())


def _check_motion(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if not isinstance(value, MotionVector):
        raise usage_error(
            "motion", f"motion is of type {type(value).__name__}.", "Use a MotionVector."
        )


_check_seconds: Final = _check_number(1, MAX_SECONDS, whole=True)


def _check_shape(shape: str, advice: str) -> Any:
    """Text of that shape; which values a model takes is for the gateway to say."""
    pattern = re.compile(shape, re.ASCII)

    def check(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not (isinstance(value, str) and pattern.fullmatch(value)):
            raise usage_error(
                attribute.name, f"{attribute.name} is {_shown(value)}.", f"Use {advice}."
            )

    return check


_check_ratio: Final = _check_shape(
    r"[1-9]\d{0,4}(\.\d{1,3})?:[1-9]\d{0,4}(\.\d{1,3})?",
    "width:height, such as 16:9 or 1280:720",
)
_check_pixels: Final = _check_shape(
    r"[1-9]\d{2,4}:[1-9]\d{2,4}", "width:height in pixels, such as 1280:720"
)


@attrs.frozen
class KnownModel:
    """The lengths and ratios that are documented for one model in one format."""

    name: str
    #: In seconds.
    seconds: tuple[int, ...]
    ratios: tuple[str, ...]
    source: str
    official: bool = False
    #: Whether a source says that the gateway refuses other ratios. Anything else that is not
    #: listed is sent: gateways gain models and sizes faster than their documentation.
    refuses_other_ratios: bool = False


_SHAPES: Final = ("16:9", "9:16", "1:1", "4:3", "3:4", "21:9")
_PIXELS: Final = ("1280:720", "720:1280", "1104:832", "832:1104", "960:960", "1584:672")
_VEO_PIXELS: Final = ("1280:720", "720:1280", "1080:1920", "1920:1080")

MODELS: Final = (
    KnownModel("gen2", (), _SHAPES, "api-facts 1.2"),
    KnownModel("gen3", (5, 10), ("16:9", "9:16"), "api-facts 1.2", refuses_other_ratios=True),
    KnownModel("gen4", (5, 10), _SHAPES, "api-facts 1.2"),
    KnownModel("gen4_turbo", (5, 10), _SHAPES, "api-facts 1.2"),
    KnownModel("gen4.5", (5, 10), _SHAPES, "api-facts 1.2"),
    KnownModel("gen3a_turbo", (5, 10), ("1280:768", "768:1280"), "api-facts 6", official=True),
    KnownModel("gen4_turbo", (5, 10), _PIXELS, "api-facts 6", official=True),
    KnownModel("gen4.5", tuple(range(2, 11)), _PIXELS, "api-facts 11 row 10", official=True),
    KnownModel("veo3.1", (4, 6, 8), _VEO_PIXELS, "api-facts 11 row 10", official=True),
    KnownModel("veo3.1_fast", (4, 6, 8), _VEO_PIXELS, "api-facts 11 row 10", official=True),
)
"""What is documented of each model: a hint for the reader, and a wall where it refuses others."""


def _check_model_ratio(model: str, ratio: str) -> None:
    """Raise where a source says that the gateway refuses this ratio for this model."""
    for row in MODELS:
        if row.refuses_other_ratios and row.name == model and ratio not in row.ratios:
            raise usage_error(
                "ratio",
                f"ratio is {ratio!r}, which {model} does not offer.",
                f"Use {' or '.join(row.ratios)}.",
            )


# `extra` is left out of the hashes below, since a dict has none; it still counts in comparisons.
# The fields are spelled out, so that type checkers see which ones need a name or a value.


@attrs.frozen
class TextToVideo:
    """One clip from words alone (api-facts 1.2). Spends points when the gateway accepts it."""

    #: What should be seen; any language.
    prompt: str = attrs.field(validator=check_text, repr=False)
    #: Width to height, such as 16:9 or 1280:720; the documented ones are listed by model.
    ratio: str = attrs.field(default="16:9", kw_only=True, validator=_check_ratio)
    #: Length of the clip, in seconds, from 1 to 60; most models take 5 and 10.
    seconds: int = attrs.field(default=10, kw_only=True, validator=_check_seconds)
    #: The model; new ones appear, so any name is sent as it is.
    model: str = attrs.field(default=DEFAULT_MODEL, kw_only=True, validator=check_text)
    #: The look; "cinematic" is the only value documented.
    style: str = attrs.field(default="cinematic", kw_only=True, validator=check_text)
    #: How the camera moves.
    motion: MotionVector = attrs.field(factory=MotionVector, kw_only=True, validator=_check_motion)
    #: Further fields for the request's body, sent as they are.
    extra: Mapping[str, Any] = attrs.field(
        factory=dict, kw_only=True, converter=_checked_extra, repr=_counted, hash=False
    )

    def __attrs_post_init__(self) -> None:
        _check_model_ratio(self.model, self.ratio)


@attrs.frozen
class ImageToVideo:
    """One clip from a picture and words (api-facts 1.3). Spends points when accepted."""

    #: What should happen; any language.
    prompt: str = attrs.field(validator=check_text, repr=False)
    #: Address of the first frame; the gateway must be able to download it.
    image: str = attrs.field(validator=_check_address, repr=False)
    #: Address of the last frame, towards which the clip moves.
    last_image: str | None = attrs.field(
        default=None, kw_only=True, validator=_maybe(_check_address), repr=False
    )
    #: Width to height, such as 16:9 or 1280:720; the documented ones are listed by model.
    ratio: str = attrs.field(default="16:9", kw_only=True, validator=_check_ratio)
    #: Length of the clip, in seconds, from 1 to 60; most models take 5 and 10.
    seconds: int = attrs.field(default=10, kw_only=True, validator=_check_seconds)
    #: The model; any name is sent as it is.
    model: str = attrs.field(default=DEFAULT_MODEL, kw_only=True, validator=check_text)
    #: The look; "cinematic" is the only value documented.
    style: str = attrs.field(default="cinematic", kw_only=True, validator=check_text)
    #: How the camera moves.
    motion: MotionVector = attrs.field(factory=MotionVector, kw_only=True, validator=_check_motion)
    #: gen3: the picture is the end of the clip, not its start.
    image_as_end_frame: bool = attrs.field(default=False, kw_only=True, validator=_check_flag)
    #: Portrait in place of landscape.
    flip: bool = attrs.field(default=False, kw_only=True, validator=_check_flag)
    #: Further fields for the request's body, sent as they are.
    extra: Mapping[str, Any] = attrs.field(
        factory=dict, kw_only=True, converter=_checked_extra, repr=_counted, hash=False
    )

    def __attrs_post_init__(self) -> None:
        _check_model_ratio(self.model, self.ratio)


@attrs.frozen
class VideoToVideo:
    """A clip redrawn in another style (api-facts 1.4). Spends points when accepted."""

    #: Address of the clip to redraw, up to 10 s and 64 MB.
    video: str = attrs.field(validator=_check_address, repr=False)
    #: The style to redraw it in.
    prompt: str = attrs.field(validator=check_text, repr=False)
    #: How far the result may leave the source: 0 keeps its structure, 1 is free.
    structure_transformation: float = attrs.field(
        default=0.5, kw_only=True, validator=_check_number(0, 1)
    )
    #: Length of the clip, in seconds, from 1 to 60; None leaves the field out.
    seconds: int | None = attrs.field(default=5, kw_only=True, validator=_maybe(_check_seconds))
    #: Portrait in place of landscape.
    flip: bool = attrs.field(default=False, kw_only=True, validator=_check_flag)
    #: The model; any name is sent as it is.
    model: str = attrs.field(default=DEFAULT_MODEL, kw_only=True, validator=check_text)
    #: Further fields for the request's body, sent as they are.
    extra: Mapping[str, Any] = attrs.field(
        factory=dict, kw_only=True, converter=_checked_extra, repr=_counted, hash=False
    )


@attrs.frozen
class ActOne:
    """A performance carried over to a character (api-facts 1.5). Spends points when accepted."""

    #: Address of the performance; 16:9 only.
    video: str = attrs.field(validator=_check_address, repr=False)
    #: Address of the character's picture; 16:9 only.
    image: str | None = attrs.field(default=None, validator=_maybe(_check_address), repr=False)
    #: Address of a clip of the character, in place of the picture.
    character_video: str | None = attrs.field(
        default=None, kw_only=True, validator=_maybe(_check_address), repr=False
    )
    #: How strongly it moves, from 1 to 5; None leaves it to the gateway.
    motion_multiplier: int | None = attrs.field(
        default=None, kw_only=True, validator=_maybe(_check_number(1, 5, whole=True))
    )
    #: Portrait in place of landscape; None leaves it to the gateway.
    flip: bool | None = attrs.field(default=None, kw_only=True, validator=_maybe(_check_flag))
    #: Further fields for the request's body, sent as they are.
    extra: Mapping[str, Any] = attrs.field(
        factory=dict, kw_only=True, converter=_checked_extra, repr=_counted, hash=False
    )

    def __attrs_post_init__(self) -> None:
        if (self.image is None) == (self.character_video is None):
            given = "neither was" if self.image is None else "both were"
            raise usage_error(
                "image",
                f"One of image and character_video is needed, and {given} given.",
                "Give the character once, as a picture or as a clip.",
            )


@attrs.frozen
class OfficialImageToVideo:
    """One clip from a picture, in the official format (api-facts 6). Spends points as above."""

    #: The first frame: an https address, or a data URI.
    image: str = attrs.field(validator=_check_image, repr=False)
    #: What should happen, up to 1000 UTF-16 units, of which an emoji is two (CometAPI: 512).
    prompt: str | None = attrs.field(default=None, validator=_maybe(check_text), repr=False)
    #: The last frame: an https address, or a data URI.
    last_image: str | None = attrs.field(
        default=None, kw_only=True, validator=_maybe(_check_image), repr=False
    )
    #: The model; any name is sent as it is.
    model: str = attrs.field(default="gen4_turbo", kw_only=True, validator=check_text)
    #: Width to height in pixels, as this format spells it; listed by model.
    ratio: str = attrs.field(default="1280:720", kw_only=True, validator=_check_pixels)
    #: Length of the clip, in seconds, from 1 to 60; gen4.5 takes 2 to 10, veo3.1 takes 4, 6 and 8.
    seconds: int = attrs.field(default=10, kw_only=True, validator=_check_seconds)
    #: The same seed and request give similar clips: 0 to 4294967295.
    seed: int | None = attrs.field(
        default=None, kw_only=True, validator=_maybe(_check_number(0, MAX_SEED, whole=True))
    )
    #: Whether the clip carries a watermark; None leaves it to the gateway.
    watermark: bool | None = attrs.field(default=None, kw_only=True, validator=_maybe(_check_flag))
    #: Further fields for the request's body, sent as they are.
    extra: Mapping[str, Any] = attrs.field(
        factory=dict, kw_only=True, converter=_checked_extra, repr=_counted, hash=False
    )

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
    """Where a task stands, whatever word the gateway has for it (api-facts 3.4)."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    UNKNOWN = "unknown"
    """A word that no source documents: treated as not finished."""

    @property
    def is_final(self) -> bool:
        """Whether the gateway will not change its mind any more."""
        return self in {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED}


DEAD_ENDS: Final = (TaskState.FAILED, TaskState.CANCELED)
"""States after which there will be no clip."""


@attrs.frozen
class TaskRecord:
    """What one answer said about a task, in one form for every dialect (api-facts 2 and 3)."""

    task_id: str
    state: TaskState
    #: The gateway's own word that decided the state; an unknown one is cut, and shows no secrets.
    word: str | None = None
    #: How far it is, from 0 to 1; no sign of success (api-facts 2 B).
    progress: float | None = None
    #: Where the clip is; may be signed, and expires.
    video_url: str | None = attrs.field(default=None, repr=False)
    #: A still picture of it.
    poster_url: str | None = attrs.field(default=None, repr=False)
    #: Its last frame.
    last_frame_url: str | None = attrs.field(default=None, repr=False)
    #: The prompt as it was sent.
    prompt: str | None = attrs.field(default=None, repr=False)
    #: The prompt as the gateway translated it.
    prompt_en: str | None = attrs.field(default=None, repr=False)
    #: The gateway's reason for a failure.
    message: str | None = attrs.field(default=None, repr=False)
    #: The machine's name for that reason.
    failure_code: str | None = None
    #: Points used, in the gateway's unit; no money (api-facts 5.3).
    points: float | None = None
    #: Whether the points were given back.
    refunded: bool = False
    created_at: datetime | None = None
    #: Last change; may be later than the real end (api-facts 5.6).
    updated_at: datetime | None = None
    #: What in this answer contradicts itself, in words; usually nothing.
    notes: tuple[str, ...] = ()
    #: The whole answer as it came; kept as bytes, since thousands of waits each hold a record.
    answer: bytes = attrs.field(default=b"", repr=False, eq=False)

    @property
    def raw(self) -> Any:
        """The whole answer as JSON, unknown keys included; None where there is none."""
        return decode(self.answer) if self.answer else None

    def as_dict(self) -> dict[str, Any]:
        """Return what may be shown and stored, as JSON has it: no prompt, address or raw answer."""
        shown = [field.name for field in attrs.fields(type(self)) if field.repr]
        values = {name: getattr(self, name) for name in shown}
        instants = {
            name: None if values[name] is None else values[name].isoformat()
            for name in ("created_at", "updated_at")
        }
        return {**values, "state": self.state.value, "notes": list(self.notes), **instants}

    @property
    def has_clip(self) -> bool:
        """Whether there is something to download."""
        return self.state is TaskState.SUCCEEDED and self.video_url is not None

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing more to learn: it has its clip, or there will be none."""
        return self.has_clip or self.state in DEAD_ENDS


@attrs.frozen
class Balance:
    """What is left to spend, in the gateway's unit (api-facts 7); None where it did not say."""

    remaining: float | None = None
    used: float | None = None
    total: float | None = None
    #: The key has no limit of its own.
    unlimited: bool = False
    #: The whole answer as it came.
    raw: Any = attrs.field(default=None, repr=False, eq=False)

    def joined(self, other: Self) -> "Balance":
        """Return one balance from two halves, such as the limit and the usage of a key."""
        used = self.used if self.used is not None else other.used
        total = self.total if self.total is not None else other.total
        known = used is not None and total is not None
        unlimited = self.unlimited or other.unlimited
        return Balance(
            remaining=total - used if known and not unlimited else None,  # type: ignore[operator]
            used=used,
            total=None if unlimited else total,
            unlimited=unlimited,
            raw=[self.raw, other.raw],
        )


class KeyStyle(enum.Enum):
    """How a gateway wants to be shown the key (api-facts 1.1)."""

    BEARER = "Authorization: Bearer <key>"
    RAW = "Authorization: <key>"
    BODY = "key in the body"
    """
    `key` in the JSON body of what is POSTed to the reverse format, without `Authorization`.
    Everything else, which has no such body, carries `Authorization: <key>`.
    """


class BalanceRoute(enum.Enum):
    """Where a gateway tells what is left to spend (api-facts 7)."""

    BILLING = "/v1/dashboard/billing/subscription and /v1/dashboard/billing/usage"
    TOKEN = "/api/usage/token/"  # noqa: S105  (an address)
    QUOTA = "/user/quota on a host of its own, with the key in the address"


# Without the slash it would become part of the host's name, and the key go to another host.
_check_prefix: Final = _check_shape(r"(/[!\"$->@-~]*)?", "a path such as /runway")


@attrs.frozen
class Gateway:
    """
    Where a gateway is and how it is spoken to (api-facts 1.1).

    The rows that are known are in the reference under "Gateways"; their names may be given to
    `Client` in place of a `Gateway`.
    """

    name: str = attrs.field(validator=check_text)
    #: Scheme and host; None where no source names it, and the caller has to.
    base_url: str | None = None
    #: Stands before `/pro/generate` and `/feed`.
    prefix: str = attrs.field(default="/runway", validator=_check_prefix)
    #: Stands before `/image_to_video` and `/tasks/…` of the official format.
    official_prefix: str = attrs.field(default="/runwayml/v1", validator=_check_prefix)
    #: How the feed is asked: POST with a body, or GET with a query.
    feed_verb: str = attrs.field(default="POST", validator=_check_choice("POST", "GET"))
    key_style: KeyStyle = attrs.field(default=KeyStyle.BEARER, validator=_check_choice(*KeyStyle))
    balance: BalanceRoute = attrs.field(
        default=BalanceRoute.BILLING, validator=_check_choice(*BalanceRoute)
    )
    #: Host of the QUOTA route, the one place where a key stands in an address.
    quota_url: str | None = None
    #: Where this row comes from.
    source: str = ""


@attrs.frozen(kw_only=True)
class Timeouts:
    """How long one exchange may take, in seconds."""

    #: Until the connection stands, TLS included.
    connect: float = attrs.field(default=5.0, validator=_check_duration)
    #: Without a byte of the answer to a paid request, of which one was seen to take 21 s
    #: (api-facts 1.2), or of a clip; for any other exchange as a whole.
    read: float = attrs.field(default=60.0, validator=_check_duration)
    #: For a paid exchange as a whole.
    total: float = attrs.field(default=300.0, validator=_check_duration)


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How often, and after how long, a request that may be repeated is repeated."""

    #: How often a request is sent at the most, the first time included.
    attempts: int = attrs.field(default=5, validator=_check_number(1, 100, whole=True))
    #: The first delay is drawn from 0 to this, in seconds.
    first: float = attrs.field(default=0.5, validator=_check_duration)
    #: What the range of the delay grows by.
    factor: float = attrs.field(default=2.0, validator=_check_number(1, 100))
    #: Where that growth ends, in seconds.
    max_delay: float = attrs.field(default=30.0, validator=_check_duration)
    #: The longest time that a server may make us wait, in seconds. A request that is asked to wait
    #: longer ends with its error; a wait for a task goes on polling after this time.
    max_retry_after: float = attrs.field(default=120.0, validator=_check_duration)


@attrs.frozen(kw_only=True)
class Limits:
    """What one client may ask of the gateway, in each event loop."""

    #: Requests per second at most; None follows what the gateway lets through.
    requests_per_second: float | None = attrs.field(
        default=None, validator=_maybe(_check_number(0.001, 1_000_000))
    )
    #: Requests in flight at once; aiohttp's own default, and enough for slow submits.
    requests_in_flight: int = attrs.field(
        default=100, validator=_check_number(1, 10**6, whole=True)
    )
    #: Tasks that this client has submitted and that have not ended; None is no limit.
    tasks_in_flight: int | None = attrs.field(
        default=None, validator=_maybe(_check_number(1, 10**6, whole=True))
    )


@attrs.frozen(kw_only=True)
class PollPolicy:
    """When a task is asked about: exponential, capped and jittered, until better is learned."""

    #: From the submit to the first poll, in seconds.
    first: float = attrs.field(default=2.0, validator=_check_duration)
    #: What each interval is longer than the one before.
    factor: float = attrs.field(default=1.5, validator=_check_number(1, 100))
    #: The longest interval, in seconds; gateways refresh every 15 s (api-facts 5.5).
    max_interval: float = attrs.field(default=15.0, validator=_check_duration)
    #: How far an interval strays at random, as a part of it.
    jitter: float = attrs.field(default=0.1, validator=_check_number(0, 0.9))
    #: Whether a rhythm that was learned from how long such tasks take replaces the exponential
    #: one. Its intervals go from half of *first* to 4/3 of *max_interval*, and to 20 s at most.
    learn: bool = attrs.field(default=True, validator=_check_flag)
    #: Where requests are scarce, how long a promising task may keep others waiting, in seconds.
    max_starvation: float = attrs.field(default=60.0, validator=_check_duration)
    #: How long after a submit the gateway may not know the task yet, in seconds (api-facts 11).
    not_found_grace: float = attrs.field(default=300.0, validator=_check_duration)
    #: How long a success may lack the clip's address (api-facts 3.4), and the address the clip,
    #: in seconds.
    url_grace: float = attrs.field(default=60.0, validator=_check_duration)
