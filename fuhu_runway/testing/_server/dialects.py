"""
Write one task in every dialect of api-facts 2, and in the other shapes of `replies.toml`.

Nothing is shared with the client's tables: where the documentation contradicts itself, so do the
dialects.
"""

from datetime import UTC, datetime
from random import Random
from string import Template
from typing import Final

import attrs

from .bodies import JsonObject, as_text
from .replies import DIALECTS, PARTS, SHAPES, Shape
from .story import OVER, Moment, Stage


@attrs.frozen
class Words:
    """The words of the dialects for one stage of a task."""

    #: Api-facts 3.1 and 3.2, which have no separate word for cancelled or expired tasks.
    number: str
    state: str
    #: Api-facts 3.3.
    new_api: str
    status: str
    luma: str
    #: Api-facts 11: ezlinkai sends "succeed" in response to a submit.
    unified: str


WORDS: Final[dict[Stage, Words]] = {
    "submitted": Words("", "", "NOT_START", "PENDING", "pending", "succeed"),
    "queued": Words("0", "pending", "QUEUED", "PENDING", "pending", "processing"),
    "running": Words("1", "running", "IN_PROGRESS", "RUNNING", "processing", "processing"),
    "failed": Words("2", "error", "FAILURE", "FAILED", "failed", "failed"),
    "cancelled": Words("2", "error", "FAILURE", "CANCELLED", "failed", "failed"),
    "expired": Words("2", "error", "EXPIRED", "FAILED", "failed", "failed"),
    "succeeded": Words("3", "succeeded", "SUCCESS", "SUCCEEDED", "completed", "succeed"),
}
MIXED: Final = "mixed"
NAMES: Final = (*DIALECTS, *SHAPES, MIXED)

# A list in `data` is documented only for batch routes, luma for submits, and the bare task for
# callbacks: "mixed" uses only what a gateway may send on the same route.
MIXED_POLLS: Final = [name for name in DIALECTS if name not in {"new_api_list", "luma", "data"}]
MIXED_SUBMITS: Final = (
    "envelope",
    "envelope_deer",
    "envelope_short",
    "compat",
    "new_api",
    "official",
    "luma",
)


def checked(dialect: str) -> str:
    """Return *dialect*, or raise ValueError if it does not exist."""
    if dialect not in NAMES:
        names = ", ".join(NAMES)
        raise ValueError(f"dialect={dialect!r} is unknown; the dialects are: {names}")
    return dialect


def render(moment: Moment, dialect: str, random: Random) -> tuple[bytes, str]:
    """Return the body of the response for *moment* in *dialect*, and its content type."""
    if moment.blank:
        moment = Moment(task_id=moment.task_id, action=moment.action, prompt="", stage="submitted")
    if dialect == MIXED:
        is_submit = moment.stage == "submitted"
        dialect = random.choice(MIXED_SUBMITS if is_submit else MIXED_POLLS)
    shape = DIALECTS.get(dialect) or SHAPES[dialect]
    return text_of(moment, shape).encode(shape.encoding), shape.content_type


def text_of(moment: Moment, shape: Shape) -> str:
    """Return the response for *moment* in *shape*, as text."""
    return Names(moment).filled(shape)


class Names(dict[str, str]):
    """The values of the names in `replies.toml`, each computed when it is used."""

    def __init__(self, moment: Moment) -> None:
        super().__init__()
        self.moment = moment
        self.raw = _values(moment)

    def __missing__(self, name: str) -> str:
        url = self.moment.video_url
        match name:
            case "data_text":
                return as_text(self["data"])
            case "outcome":
                return as_text(_outcome(self.moment))[1:-1]
            case "result_url":
                # Left out where it is empty.
                return "" if url is None else f',"result_url":{as_text(url)}'
        return self.filled(PARTS[name]) if name in PARTS else as_text(self.raw[name])

    def filled(self, shape: Shape) -> str:
        """Return the text of *shape* with the names filled in."""
        text = shape.body
        if self.moment.stage == "submitted" and shape.submit is not None:
            text = shape.submit
        return Template(text).substitute(self)


def _values(moment: Moment) -> JsonObject:
    words, url = attrs.asdict(WORDS[moment.stage], recurse=False), moment.video_url
    if moment.status_word is not None:
        words |= dict.fromkeys(words.keys() - {"state"}, moment.status_word)
    if moment.state_word is not None:
        words["state"] = moment.state_word
    error = {"code": moment.failure_code, "message": moment.reason}
    created, updated = (
        datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds")
        for unix in (moment.created_at, moment.updated_at)
    )
    return {
        **words,
        "inner_status": WORDS[moment.stage].status if moment.state_word is None else words["state"],
        "id": moment.task_id,
        "action": moment.action,
        "prompt": "" if moment.stage == "submitted" else moment.prompt,
        "english": moment.prompt if moment.prompt.isascii() else "a little kitten.",
        "url": url,
        "poster": moment.poster_url,
        "last_frame": moment.last_frame_url,
        "input": moment.input_url,
        "output": [] if url is None else [url],
        "msg": moment.reason,
        "reason": moment.reason or "",
        "fail_reason": url or moment.reason or "",
        "error": None if moment.reason is None else error,
        "code": int(words["number"]) if words["number"].isdecimal() else words["number"],
        "points": round(moment.points),
        "points_back": round(moment.points) if moment.refunded else 0,
        "point": f"{moment.points:g}",
        "refund": f"{moment.points if moment.refunded else 0:g}",
        "refunded": "1" if moment.refunded else "0",
        "percents": f"{moment.percent}%",
        "created": created.replace("+00:00", "Z"),
        "created_offset": created,
        "updated": updated.replace("+00:00", "Z"),
        "created_at": moment.created_at,
        "started_at": moment.started_at,
        "finished_at": moment.finished_at,
        "updated_at": moment.updated_at,
    }


def _outcome(moment: Moment) -> JsonObject:
    """Return the fields of an official task that depend on its state."""
    points = round(moment.points)
    # Api-facts 11: a refunded task costs 0.
    outcome: JsonObject = (
        {"cost": {"credits": 0 if moment.refunded else points}}
        if moment.stage in OVER
        else {"estimatedCost": {"credits": points}}
    )
    if moment.video_url is not None:
        outcome["output"] = [moment.video_url]
    elif moment.stage == "running":
        outcome["progress"] = moment.percent / 100
    elif moment.stage in {"failed", "expired"}:
        outcome |= {"failure": moment.reason, "failureCode": moment.failure_code}
    return outcome
