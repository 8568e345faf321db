"""Check paid requests before they are accepted (api-facts 1.2 to 1.5, 5.1 and 6)."""

from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any, Final

from . import bodies as _bodies
from .exchange import Reply, json_reply
from .store import Body

#: The longest data URI of each kind, in characters (api-facts 11 row 24).
MAX_DATA_URI: Final = {"image/": 5 * 1024 * 1024, "video/": 16 * 1024 * 1024}
#: Bytes, where they stand, and the type of a file that has them there.
SIGNS: Final = (
    (b"\x89PNG", 0, "image/png"),
    (b"\xff\xd8\xff", 0, "image/jpeg"),
    (b"GIF8", 0, "image/gif"),
    (b"WEBP", 8, "image/webp"),
    (b"ftypqt", 4, "video/quicktime"),
    (b"ftyp", 4, "video/mp4"),
    (b"\x1a\x45\xdf\xa3", 0, "video/webm"),
)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_picture(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(
            isinstance(one, dict) and is_picture(one.get("uri")) for one in value
        )
    return is_media(value, "image/")


def is_media(value: object, kind: str) -> bool:
    """Return whether *value* is a URL, or a data URI of its *kind* that the format accepts."""
    if not isinstance(value, str) or not value.startswith("data:"):
        return isinstance(value, str) and value.startswith(("http://", "https://"))
    head, _, encoded = value.removeprefix("data:").partition(",")
    content_type, _, encoding = head.partition(";")
    try:
        data = b64decode(encoded, validate=True)
    except ValueError:
        return False
    # What the bytes show themselves to be, where they do.
    real = next((name for sign, at, name in SIGNS if data[at : at + len(sign)] == sign), None)
    return (
        content_type.startswith(kind)
        and encoding == "base64"
        and len(value) < MAX_DATA_URI[kind]
        and real in {None, content_type}
    )


#: The values of a field, by what it is.
FITS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "text": lambda value: isinstance(value, str) and bool(value.strip()),
    "url": lambda value: isinstance(value, str) and value.startswith(("http://", "https://")),
    "clip": lambda value: is_media(value, "video/"),
    "file": lambda value: is_media(value, "image/") or is_media(value, "video/"),
    "video": lambda value: value == "video",
    "image or video": lambda value: isinstance(value, str) and value in {"image", "video"},
    "pictures": lambda value: isinstance(value, list) and is_picture(value),
    "flag": lambda value: isinstance(value, bool),
    "number": is_number,
    "share": lambda value: is_number(value) and 0 <= value <= 1,
    "list of one": lambda value: isinstance(value, list) and len(value) <= 1,
    "five": lambda value: value == 5,
    "1 to 5": lambda value: value in range(1, 6),
    # The official lengths; veo has 4, 6 and 8.
    "official length": lambda value: type(value) is int and 2 <= value <= 10,
    "motions": lambda value: (
        isinstance(value, dict)
        and set(value) == {"x", "y", "z", "r", "bg_x_pan", "bg_y_pan"}
        and all(map(is_number, value.values()))
    ),
}


def has_length(body: Body) -> bool:
    """Return whether the clip's length, if given, is one that its model supports."""
    seconds = _find(body, "options.seconds")
    if seconds is None or type(seconds) is not int:
        return seconds is None
    # The models whose lengths are documented; act-one has no model.
    if body.get("model") in {"gen2", "gen3", "gen4", "gen4_turbo", None}:
        return seconds in {5, 10}
    return seconds > 0


def has_character(body: Body) -> bool:
    return FITS["url"](body.get("image")) or FITS["url"](body.get("character_video"))


def has_picture_or_text(body: Body) -> bool:
    """Return whether the body has a picture, or only text (api-facts 11)."""
    if "promptImage" in body:
        return is_picture(body["promptImage"])
    return FITS["text"](body.get("promptText"))


def _find(body: Body, path: str) -> object:
    value: object = body
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


OFFICIAL: Final = {
    "promptText?": "text",
    "duration?": "official length",
    "ratio?": "text",
    "seed?": "number",
    "watermark?": "flag",
    "audio?": "flag",
}
#: The fields of each body, in the order of their checks: a key of `FITS` for a value, "?" after an
#: optional name, or a function of the body.
CHECKS: Final[dict[str, dict[str, str | Callable[[Body], bool]]]] = {
    "generate": {
        "prompt": "text",
        "callback_url?": "url",
        "image?": "url",
        "last_image?": "url",
        "ratio?": "text",
        "style?": "text",
        "options.seconds": has_length,
        "options.motion_vector?": "motions",
        "options.image_as_end_frame?": "flag",
        "options.flip?": "flag",
    },
    "video2video": {
        "video": "url",
        "prompt": "text",
        "callback_url?": "url",
        "options.structure_transformation?": "share",
        "options.seconds": has_length,
        "options.flip?": "flag",
    },
    "act_one": {
        "video": "url",
        "image": has_character,
        "callback_url?": "url",
        "options.motion_multiplier?": "number",
        "options.seconds": has_length,
        "options.flip?": "flag",
    },
    "aleph": {
        "video": "url",
        "prompt": "text",
        "callback_url?": "url",
        "images?": "list of one",
        "options.seconds?": "five",
    },
    "image_to_video": {"promptImage": has_picture_or_text, **OFFICIAL},
    "text_to_video": {"promptText": "text", **OFFICIAL},
    "video_to_video": {
        "videoUri": "clip",
        "promptText": "text",
        "references?": "pictures",
        **OFFICIAL,
    },
    "character_performance": {
        "character.type": "image or video",
        "character.uri": "file",
        "reference.type": "video",
        "reference.uri": "clip",
        "bodyControl?": "flag",
        "expressionIntensity?": "1 to 5",
        **OFFICIAL,
    },
    "video_upscale": {"videoUri": "clip"},
}
REVERSE_ACTIONS: Final = ("generate", "video2video", "act_one", "aleph")
OFFICIAL_ACTIONS: Final = tuple(action for action in CHECKS if action not in REVERSE_ACTIONS)


def problem(action: str, body: Body, *, strict: bool) -> Reply | None:
    """Return the refusal of *body*, or None if it is accepted."""
    has_model = action not in {"act_one", "aleph"}
    if has_model and not FITS["text"](body.get("model")):
        message = "model name is required"
        return json_reply(_bodies.openai_error(message, type="invalid_request_error"), 400)
    official = action in OFFICIAL_ACTIONS
    if strict and not official and not body.get("callback_url"):
        return json_reply(_bodies.task_error("callback_url_empty"), 400)
    for path, check in CHECKS[action].items():
        name = path.removesuffix("?")
        value = _find(body, name)
        if callable(check):
            fits = check(body)
        else:
            fits = (value is None and path.endswith("?")) or FITS[check](value)
        if not fits:
            message = f"{name} is missing or invalid"
            if official:
                return json_reply(_bodies.openai_error(message, code="invalid_request"), 400)
            # The upstream of the reverse format refuses under an HTTP 200, and is written in PHP.
            return json_reply(_bodies.refusal(message, data=[]))
    return None
