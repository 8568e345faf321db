"""
One task in every dialect of api-facts 2, as literal JSON.

Each function takes a `Moment` and returns the body of one reply. Nothing is shared with the
client's tables: where the documentation contradicts itself, so do the dialects.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from random import Random
from string import Template
from typing import Final

import attrs

from .bodies import JsonObject, as_text
from .story import OVER, Moment, Stage
from .wild import JSON, SHAPES, Shape


@attrs.frozen
class Words:
    """The words of the dialects for one stage of a task."""

    #: Api-facts 3.1 and 3.2, which have no separate word for cancelled or expired tasks.
    number: str
    word: str
    #: Api-facts 3.3.
    new_api: str
    official: str
    luma: str
    #: Api-facts 11: ezlinkai answers "succeed" to a submit.
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


def _status(moment: Moment, dialect: str) -> str:
    """Return the word of *dialect* for the stage of *moment*, unless a fault sets another."""
    if moment.status_word is not None:
        return moment.status_word
    return str(getattr(WORDS[moment.stage], dialect))


def _state(moment: Moment) -> str:
    return WORDS[moment.stage].word if moment.state_word is None else moment.state_word


def _iso(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds")


def _zulu(unix: int) -> str:
    return _iso(unix).replace("+00:00", "Z")


def _nothing_yet(moment: Moment) -> bool:
    return moment.stage == "submitted"


def _task(moment: Moment) -> JsonObject:
    """Return a task after its submit, in the dialects that write numbers as strings."""
    return {
        "task_id": moment.task_id,
        "status": _status(moment, "number"),
        "prompt": moment.prompt,
        "prompt_en": moment.prompt if moment.prompt.isascii() else "a little kitten.",
        "video_url": moment.video_url,
        "poster": moment.poster_url,
        "last_frame": moment.last_frame_url,
        "msg": moment.reason,
        "point": f"{moment.points:g}",
        "refund": f"{moment.points if moment.refunded else 0:g}",
        "create_time": str(moment.created_at),
        "update_time": str(moment.updated_at),
    }


def data(moment: Moment) -> JsonObject:
    """Dialect I: the bare task without `state`, as in callbacks (A16)."""
    return {"task_id": moment.task_id} if _nothing_yet(moment) else _task(moment)


def _fuhu_data(moment: Moment) -> JsonObject:
    if _nothing_yet(moment):
        return {
            "task_id": moment.task_id,
            "state": "",
            "status": "",
            "prompt": "",
            "prompt_en": None,
            "video_url": None,
            "poster": None,
            "last_frame": None,
            "msg": None,
            "point": "",
            "refund": "",
            "create_time": "",
            "update_time": "",
        }
    return {"task_id": moment.task_id, "state": _state(moment), **_task(moment)}


def envelope(moment: Moment) -> JsonObject:
    """Dialect A as FuhuAPI (1.2, A1) and ecovai (A6) send it: all thirteen fields."""
    # A submit may be slow (api-facts 1.2); a poll is fast.
    exec_time = 20.930577 if _nothing_yet(moment) else 0.028943
    return {"code": 200, "msg": "success", "data": _fuhu_data(moment), "exec_time": exec_time}


def envelope_deer(moment: Moment) -> JsonObject:
    """Dialect A as DeerAPI sends it (A2): `raw_video_url` beside `video_url`."""
    task = {**_fuhu_data(moment), "raw_video_url": moment.video_url}
    if _nothing_yet(moment):
        del task["point"], task["refund"]
        task |= {"status": "0", "create_time": "0", "update_time": "0"}
    return {"code": 200, "msg": "成功", "data": task, "exec_time": 0}


def envelope_short(moment: Moment) -> JsonObject:
    """
    Dialect A as gpt-best sends it (A3, A7).

    No `state`, `refund` as a flag instead of an amount, and the caller's `ip`.
    """
    task = data(moment)
    if not _nothing_yet(moment):
        task["refund"] = "1" if moment.refunded else "0"
    return {"code": 200, "msg": "成功", "data": task, "exec_time": 0.67573, "ip": "192.0.2.54"}


def compat(moment: Moment) -> JsonObject:
    """Dialect A as on CometAPI's compatibility pages (A5), with an empty `message`."""
    return {"code": 200, "message": "", "msg": "success", "data": data(moment)}


def _new_api_task(moment: Moment, nested: object) -> JsonObject:
    """Dialect B's task (A17). `progress` is 100% after a failure too."""
    return {
        "task_id": moment.task_id,
        "action": moment.action,
        "status": _status(moment, "new_api"),
        "fail_reason": moment.reason or "",
        "submit_time": moment.created_at,
        "start_time": moment.started_at,
        "finish_time": moment.finished_at,
        "progress": f"{moment.percent}%",
        "data": nested,
    }


def _new_api(task: object) -> JsonObject:
    return {"code": "success", "message": "", "data": task}


def bare(moment: Moment) -> JsonObject:
    """Dialect B': the task of dialect B without its envelope."""
    task = _new_api_task(moment, _nested_official(moment))
    return task if moment.video_url is None else {**task, "result_url": moment.video_url}


def _nested_official(moment: Moment) -> JsonObject | None:
    if _nothing_yet(moment):
        return None
    # Its status is the second field for the state, next to the outer one.
    return official(attrs.evolve(moment, status_word=moment.state_word))


def new_api(moment: Moment) -> JsonObject:
    """Dialect B with the URL in `result_url`."""
    return _new_api(bare(moment))


def new_api_list(moment: Moment) -> JsonObject:
    """Dialect B as the batch routes send it: a list in `data`."""
    return _new_api([bare(moment)])


def new_api_official(moment: Moment) -> JsonObject:
    """Dialect B with the URL only in a nested official task, and times as ISO text."""
    task = _new_api_task(moment, _nested_official(moment))
    return _new_api({**task, "id": 41, "created_at": _iso(moment.created_at)})


def new_api_task(moment: Moment) -> JsonObject:
    """Dialect B with the URL only in a nested numeric task."""
    return _new_api(_new_api_task(moment, _fuhu_data(moment)))


def new_api_envelope(moment: Moment) -> JsonObject:
    """Dialect B with the URL only in a whole nested envelope A."""
    return _new_api(_new_api_task(moment, envelope(moment)))


def new_api_fail_reason(moment: Moment) -> JsonObject:
    """Dialect B with every field of the source, and the URL in `fail_reason`, as in older rows."""
    task = {
        "id": 41,
        "created_at": moment.created_at,
        "updated_at": moment.updated_at,
        "platform": "runway",
        "user_id": 7,
        "group": "default",
        "channel_id": 3,
        "quota": round(moment.points),
        **_new_api_task(moment, None),
        "properties": {"input": ""},
        "username": "",
    }
    return _new_api({**task, "fail_reason": moment.video_url or moment.reason or ""})


def official(moment: Moment) -> JsonObject:
    """Dialect C: the official task (A11, A12); a submit returns only the id."""
    if _nothing_yet(moment):
        return {"id": moment.task_id}
    task: JsonObject = {
        "id": moment.task_id,
        "status": _status(moment, "official"),
        "createdAt": _zulu(moment.created_at),
    }
    credits_ = round(moment.points)
    if moment.stage in OVER:
        # Api-facts 11: a refunded task costs 0.
        task["cost"] = {"credits": 0 if moment.refunded else credits_}
    else:
        task["estimatedCost"] = {"credits": credits_}
    if moment.video_url is not None:
        task["output"] = [moment.video_url]
    elif moment.stage == "running":
        task["progress"] = moment.percent / 100
    elif moment.stage in {"failed", "expired"}:
        task |= {"failure": moment.reason, "failureCode": moment.failure_code}
    return task


def luma(moment: Moment) -> JsonObject:
    """Dialect C': luma-like (A14), the answer of some gateways to an official submit."""
    return {
        "id": moment.task_id,
        "prompt": "" if _nothing_yet(moment) else moment.prompt,
        "state": _status(moment, "luma"),
        "queue_state": None,
        "created_at": _iso(moment.created_at),
        "batch_id": "",
        "video": moment.video_url,
        "video_raw": moment.video_url,
        "liked": None,
        "estimate_wait_seconds": None,
        "thumbnail": moment.poster_url,
        "last_frame": moment.last_frame_url,
    }


DIALECTS: Final[dict[str, Callable[[Moment], JsonObject]]] = {
    make.__name__: make
    for make in (
        envelope,
        envelope_deer,
        envelope_short,
        compat,
        new_api,
        new_api_official,
        new_api_task,
        new_api_envelope,
        new_api_fail_reason,
        new_api_list,
        bare,
        official,
        luma,
        data,
    )
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
    """Return the body of the reply for *moment* in *dialect*, and its content type."""
    if moment.blank:
        moment = Moment(task_id=moment.task_id, action=moment.action, prompt="", stage="submitted")
    if dialect in SHAPES:
        return _shaped(moment, SHAPES[dialect])
    if dialect == MIXED:
        dialect = random.choice(MIXED_SUBMITS if _nothing_yet(moment) else MIXED_POLLS)
    return as_text(DIALECTS[dialect](moment)).encode(), JSON


def _shaped(moment: Moment, shape: Shape) -> tuple[bytes, str]:
    task = as_text(_fuhu_data(moment))
    error = {"code": moment.failure_code, "message": moment.reason}
    values = {
        "id": moment.task_id,
        "answer": as_text(envelope(moment)),
        "data": task,
        "rest": task.partition(",")[2].removesuffix("}"),
        "text": as_text(task),
        "official": as_text(official(moment))[1:-1],
        "state": _state(moment) if not _nothing_yet(moment) else "submitted",
        "unified": _status(moment, "unified"),
        "status": _status(moment, "official"),
        "url": as_text(moment.video_url),
        "output": as_text([] if moment.video_url is None else [moment.video_url]),
        "input": as_text(moment.input_url),
        "reason": as_text(moment.reason or ""),
        "error": as_text(None if moment.reason is None else error),
        "created": _zulu(moment.created_at),
        "updated": _zulu(moment.updated_at),
    }
    text = values["answer"] if shape.submits_only and not _nothing_yet(moment) else shape.text
    return Template(text).substitute(values).encode(shape.encoding), shape.content_type
