"""The literal responses under tests/samples, and what each has to be read as."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import attrs
import yaml

from fuhu_runway._wire import tables
from fuhu_runway._wire.account import ask_log, ask_tasks, read_log, read_tasks
from fuhu_runway._wire.decode import read_balance, read_task
from fuhu_runway._wire.encode import Reply, Request, ask_balance, ask_task, build
from fuhu_runway.account import Account, KeyLog, TaskPage
from fuhu_runway.models import (
    ActOne,
    Aleph,
    Balance,
    Gateway,
    Generation,
    ImageToVideo,
    OfficialCharacterPerformance,
    OfficialImageToVideo,
    OfficialRequest,
    OfficialTextToVideo,
    OfficialVideoToVideo,
    OfficialVideoUpscale,
    TaskRecord,
    TextToVideo,
    VideoToVideo,
)

FOLDER: Final = Path(__file__).parents[1] / "samples"

KEY: Final = "sk-marked-7c1e9d5b"
PROMPT: Final = "a marked kitten says 笑起来"
SIGNED: Final = "https://marked.example/clips/1.mp4?_jwt=marked-signature"
STILL: Final = "https://marked.example/stills/1.png?_jwt=marked-signature"
ACCOUNT: Final = Account("marked-token-3f8b", 7)
SECRETS: Final = (KEY, PROMPT, SIGNED, STILL, ACCOUNT.access_token, "marked")
"""Texts in the requests below that nothing may show."""

SUBMITS: Final[Mapping[str, Generation]] = {
    "text_to_video": TextToVideo(PROMPT),
    "image_to_video": ImageToVideo(PROMPT, STILL),
    "video_to_video": VideoToVideo(SIGNED, PROMPT),
    "act_one": ActOne(SIGNED, STILL),
    "aleph": Aleph(SIGNED, PROMPT, image=STILL),
    "official_text_to_video": OfficialTextToVideo(PROMPT),
    "official_image_to_video": OfficialImageToVideo(STILL, PROMPT),
    "official_video_to_video": OfficialVideoToVideo(SIGNED, PROMPT, image=STILL),
    "official_character_performance": OfficialCharacterPerformance(SIGNED, STILL),
    "official_video_upscale": OfficialVideoUpscale(SIGNED),
    "official_request": OfficialRequest(
        "video_to_video", {"model": "aleph2", "videoUri": SIGNED, "promptText": PROMPT}
    ),
}
"""One request for each paid endpoint."""

TASK: Final[Mapping[str, Any]] = {
    "gives": "task",
    "task_id": None,
    "state": None,
    "word": None,
    "progress": None,
    "video_url": None,
    "poster_url": None,
    "last_frame_url": None,
    "prompt": None,
    "prompt_en": None,
    "message": None,
    "points": None,
    "refunded": False,
    "created_at": None,
    "updated_at": None,
}
BALANCE: Final[Mapping[str, Any]] = {
    "gives": "balance",
    "remaining": None,
    "used": None,
    "total": None,
    "unlimited": False,
}
TASKS: Final[Mapping[str, Any]] = {
    "gives": "tasks",
    "tasks": [],
    "total": None,
    "page": None,
    "page_size": None,
    "server_time": None,
}
LOG: Final[Mapping[str, Any]] = {
    "gives": "log",
    "charges": [],
    "server_time": None,
    "starts_at": None,
}
ERROR: Final[Mapping[str, Any]] = {
    "code": None,
    "message": None,
    "request_id": None,
    "retry_after": None,
}
"""The expected value of each field that a sample does not mention."""

FATES: Final[Mapping[str, str]] = {
    "InvalidRequest": "REJECTED",
    "Unauthorized": "REJECTED",
    "OutOfCredits": "REJECTED",
    "NotFound": "REJECTED",
    "RateLimited": "REFUSED",
    "ModelUnavailable": "REFUSED",
    "GatewayDown": "UNKNOWN",
    "UnreadableReply": "UNKNOWN",
}
"""The errors that a reply may raise, each with its default fate."""

Read = TaskRecord | Balance | TaskPage | KeyLog
"""What a reply may be read as."""

GATEWAY: Final = attrs.evolve(tables.GATEWAYS["fuhuapi"], quota_url="https://query.example")


@attrs.frozen
class Sample:
    """One reply of a gateway, and expectations derived by hand from the tables."""

    name: str
    endpoint: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    expected: Mapping[str, Any]
    why: str = ""

    @property
    def folder(self) -> str:
        return self.name.partition("/")[0]

    def request(self, gateway: Gateway = GATEWAY) -> Request:
        return request_to(self.endpoint, gateway, self.expected.get("task_id") or "t-1")

    def reply(self, body: bytes | None = None) -> Reply:
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Reply(self.request(), self.status, headers, self.body if body is None else body)

    def read(self, body: bytes | None = None) -> Read:
        return reader_of(self.endpoint)(self.reply(body))


def request_to(
    endpoint: str, gateway: Gateway = GATEWAY, task_id: str = "t-1", key: str = KEY
) -> Request:
    """Return a request for the endpoint of that name."""
    row = tables.ENDPOINTS[endpoint]
    if row is tables.ACCOUNT_TASKS:
        return ask_tasks(gateway, ACCOUNT, since=0, until=2e9).hiding(key)
    if row is tables.KEY_LOG:
        return ask_log(gateway, key)
    if endpoint in SUBMITS:
        return build(SUBMITS[endpoint], gateway, key, tables.NOWHERE)
    if row.route is not None:
        return ask_balance(row, gateway, key)
    return ask_task(task_id, row, gateway, key)


def reader_of(endpoint: str) -> Callable[[Reply], Read]:
    """Return the function that reads the replies of the endpoint of that name."""
    lists = {"account_tasks": read_tasks, "key_log": read_log}
    return lists.get(endpoint) or (read_balance if tables.ENDPOINTS[endpoint].route else read_task)


class _NoKeyTwice(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Raise if a key is written twice, since YAML would keep only the last."""

    def construct_mapping(self, node: yaml.MappingNode, *deep: bool, **also: bool) -> Any:
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"written twice: {', '.join(sorted(twice))}", node.start_mark
            )
        return super().construct_mapping(node, *deep, **also)


@cache
def samples() -> tuple[Sample, ...]:
    """Return all samples, in the order in which they are written."""
    return tuple(sample for path in sorted(FOLDER.glob("*.yaml")) for sample in read_samples(path))


def read_samples(path: Path) -> list[Sample]:
    """Return the samples of one file; the base has what a sample does not mention."""
    cases = yaml.load(path.read_bytes(), _NoKeyTwice)  # noqa: S506 - a safe loader
    base = cases.pop("base")
    return [
        _sample(
            f"{path.stem}/{name}",
            **(base | case | {"headers": base["headers"] | case.get("headers", {})}),
        )
        for name, case in cases.items()
    ]


def _sample(
    name: str,
    *,
    why: str,
    endpoint: str,
    status: int,
    headers: Mapping[str, str | None],
    body: str,
    expect: Mapping[str, Any],
    encoding: str = "utf-8",
    request: Mapping[str, str] | None = None,
) -> Sample:
    return Sample(
        name,
        endpoint,
        status,
        {header: value for header, value in headers.items() if value is not None},
        body.encode(encoding),
        _expected(endpoint, status, **expect),
        why,
    )


def _expected(
    endpoint: str, status: int, *, gives: str = "task", raises: str | None = None, **said: Any
) -> Mapping[str, Any]:
    """Return the expected value of each field: *said* by the sample, or the default."""
    if raises is None:
        defaults = {"task": TASK, "balance": BALANCE, "tasks": TASKS, "log": LOG}[gives]
    else:
        reasons = {"reasons": []} if raises == "UnreadableReply" else {}
        fate = FATES[raises]
        polled = "t-1" if endpoint in {"feed", "official_task"} else None
        own = {"raises": raises, "status": status, "fate": fate, "task_id": polled}
        defaults = {**ERROR, **own, **reasons}
    if unknown := said.keys() - defaults.keys():
        raise ValueError(f"no field of what is expected: {', '.join(sorted(unknown))}")
    return {**defaults, **said}
