"""The literal replies under tests/samples, and what has to come out of each."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import attrs

from fuhu_runway import _gateway as facts
from fuhu_runway._wire import (
    Reply,
    Request,
    ask_balance,
    ask_task,
    build,
    read_balance,
    read_task,
)
from fuhu_runway.models import (
    ActOne,
    Balance,
    Gateway,
    Generation,
    ImageToVideo,
    OfficialImageToVideo,
    TaskRecord,
    TextToVideo,
    VideoToVideo,
)

FOLDER: Final = Path(__file__).parents[1] / "samples"

KEY: Final = "sk-marked-7c1e9d5b"
PROMPT: Final = "a marked kitten says 笑起来"
SIGNED: Final = "https://marked.example/clips/1.mp4?_jwt=marked-signature"
STILL: Final = "https://marked.example/stills/1.png?_jwt=marked-signature"
SECRETS: Final = (KEY, PROMPT, SIGNED, STILL, "marked")
"""What the requests below carry, and nothing may show."""

SUBMITS: Final[Mapping[str, Generation]] = {
    "text_to_video": TextToVideo(PROMPT),
    "image_to_video": ImageToVideo(PROMPT, STILL),
    "video_to_video": VideoToVideo(SIGNED, PROMPT),
    "act_one": ActOne(SIGNED, STILL),
    "official_image_to_video": OfficialImageToVideo(STILL, PROMPT),
}
"""One request for each paid endpoint."""

GATEWAY: Final = attrs.evolve(facts.GATEWAYS["fuhuapi"], quota_url="https://query.example")


@attrs.frozen
class Sample:
    """One reply of a gateway, and the expectations derived from the facts by hand."""

    name: str
    endpoint: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    expected: Mapping[str, Any]

    @property
    def folder(self) -> str:
        return self.name.partition("/")[0]

    def request(self, gateway: Gateway = GATEWAY) -> Request:
        return asking(self.endpoint, gateway, self.expected.get("task_id") or "t-1")

    def reply(self, body: bytes | None = None) -> Reply:
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Reply(self.request(), self.status, headers, self.body if body is None else body)

    def read(self, body: bytes | None = None) -> TaskRecord | Balance:
        return reader_of(self.endpoint)(self.reply(body))


def asking(
    endpoint: str, gateway: Gateway = GATEWAY, task_id: str = "t-1", key: str = KEY
) -> Request:
    """Give a request for the endpoint of that name."""
    row = facts.ENDPOINTS[endpoint]
    if endpoint in SUBMITS:
        return build(SUBMITS[endpoint], gateway, key, facts.NOWHERE)
    if row.gives is Balance:
        return ask_balance(row, gateway, key)
    return ask_task(task_id, row, gateway, key)


def reader_of(endpoint: str) -> Callable[[Reply], TaskRecord | Balance]:
    """Give what reads the answers of the endpoint of that name."""
    return read_balance if facts.ENDPOINTS[endpoint].gives is Balance else read_task


@cache
def samples() -> tuple[Sample, ...]:
    """Give every sample, in the order of their names."""
    return tuple(map(_load, sorted(path.parent for path in FOLDER.glob("*/*/reply.json"))))


def _load(folder: Path) -> Sample:
    reply = json.loads((folder / "reply.json").read_bytes())
    (body,) = folder.glob("body*")
    return Sample(
        "/".join(folder.parts[-2:]),
        reply["endpoint"],
        reply["status"],
        reply["headers"],
        body.read_bytes(),
        json.loads((folder / "expect.json").read_bytes()),
    )
