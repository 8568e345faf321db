"""What a gateway looks at before it accepts a paid request (api-facts 1.2 to 1.5, 5.1 and 6)."""

from collections.abc import Callable
from typing import Final

from . import bodies as _bodies
from .exchange import Reply, json_reply
from .store import Body

Fits = Callable[[object], bool]
Check = Callable[[Body], bool]


def is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_url(value: object) -> bool:
    return isinstance(value, str) and value.startswith(("http://", "https://"))


def is_picture(value: object) -> bool:
    """Return whether the official format takes *value* for a picture, or a list of those."""
    if isinstance(value, list):
        return bool(value) and all(
            isinstance(one, dict) and is_picture(one.get("uri")) for one in value
        )
    return is_url(value) or (isinstance(value, str) and value.startswith("data:image/"))


def is_flag(value: object) -> bool:
    return isinstance(value, bool)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_official_duration(value: object) -> bool:
    """Return whether *value* is a length of the official format; veo's are 4, 6 and 8."""
    return type(value) is int and 2 <= value <= 10


def is_share(value: object) -> bool:
    return isinstance(value, int | float) and is_number(value) and 0 <= value <= 1


def is_motion(value: object) -> bool:
    """Return whether *value* is an object of the six numbers."""
    motions = {"x", "y", "z", "r", "bg_x_pan", "bg_y_pan"}
    return isinstance(value, dict) and set(value) == motions and all(map(is_number, value.values()))


def _find(body: Body, path: str) -> object:
    value: object = body
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def has_length(body: Body) -> bool:
    """Return whether the clip's length, if there is one, is one that its model makes."""
    seconds = _find(body, "options.seconds")
    if seconds is None or type(seconds) is not int:
        return seconds is None
    # The models of which the documentation has the lengths; act-one has no model.
    if body.get("model") in {"gen2", "gen3", "gen4", "gen4_turbo", None}:
        return seconds in {5, 10}
    return seconds > 0


def has_picture_or_text(body: Body) -> bool:
    """Return whether there is a picture, or text alone (api-facts 11)."""
    if "promptImage" in body:
        return is_picture(body["promptImage"])
    return is_text(body.get("promptText"))


def required(path: str, fits: Fits) -> tuple[str, Check]:
    return path, lambda body: fits(_find(body, path))


def optional(path: str, fits: Fits) -> tuple[str, Check]:
    return path, lambda body: _find(body, path) is None or fits(_find(body, path))


OFFICIAL: Final = (
    optional("promptText", is_text),
    optional("duration", is_official_duration),
    optional("ratio", is_text),
    optional("seed", is_number),
    optional("watermark", is_flag),
)
CHECKS: Final[dict[str, tuple[tuple[str, Check], ...]]] = {
    "generate": (
        required("prompt", is_text),
        optional("callback_url", is_url),
        optional("image", is_url),
        optional("last_image", is_url),
        optional("ratio", is_text),
        optional("style", is_text),
        ("options.seconds", has_length),
        optional("options.motion_vector", is_motion),
        optional("options.image_as_end_frame", is_flag),
        optional("options.flip", is_flag),
    ),
    "video2video": (
        required("video", is_url),
        required("prompt", is_text),
        optional("callback_url", is_url),
        optional("options.structure_transformation", is_share),
        ("options.seconds", has_length),
        optional("options.flip", is_flag),
    ),
    "act_one": (
        required("video", is_url),
        ("image", lambda body: is_url(body.get("image")) or is_url(body.get("character_video"))),
        optional("callback_url", is_url),
        optional("options.motion_multiplier", is_number),
        ("options.seconds", has_length),
        optional("options.flip", is_flag),
    ),
    "aleph": (
        required("video", is_url),
        required("prompt", is_text),
        optional("callback_url", is_url),
        optional("images", lambda value: isinstance(value, list) and len(value) <= 1),
        optional("options.seconds", lambda value: value == 5),
    ),
    "image_to_video": (("promptImage", has_picture_or_text), *OFFICIAL),
    "text_to_video": (required("promptText", is_text), *OFFICIAL),
    "video_to_video": (
        required("videoUri", is_url),
        required("promptText", is_text),
        optional("references", lambda value: isinstance(value, list)),
        *OFFICIAL,
    ),
    "character_performance": (
        required("character.uri", is_url),
        required("reference.uri", is_url),
        optional("bodyControl", is_flag),
        optional("expressionIntensity", lambda value: value in range(1, 6)),
        *OFFICIAL,
    ),
    "video_upscale": (required("videoUri", is_url),),
}


REVERSE_ACTIONS: Final = ("generate", "video2video", "act_one", "aleph")
OFFICIAL_ACTIONS: Final = tuple(action for action in CHECKS if action not in REVERSE_ACTIONS)


def problem(action: str, body: Body, *, strict: bool) -> Reply | None:
    """Return the gateway's answer to a *body* it does not accept; None for one it does."""
    if action != "act_one" and not is_text(body.get("model")):
        message = "model name is required"
        return json_reply(_bodies.openai_error(message, type="invalid_request_error"), 400)
    official = action in OFFICIAL_ACTIONS
    if strict and not official and not body.get("callback_url"):
        return json_reply(_bodies.task_error("callback_url_empty"), 400)
    wrong = next((path for path, holds in CHECKS[action] if not holds(body)), None)
    if wrong is None:
        return None
    message = f"{wrong} is missing or invalid"
    if official:
        return json_reply(_bodies.openai_error(message, code="invalid_request"), 400)
    # The upstream of the reverse format refuses under an HTTP 200, and is written in PHP.
    return json_reply(_bodies.refusal(message, data=[]))
