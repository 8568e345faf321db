"""The feed for `poll_cpu.py` and `many_waits.py`, in a process of its own."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the folder may be missing in safe-path mode

from _common import RawRequest, reply, serving

CLIP = "https://clips.invalid/attachments/video/runway/20241213/53aab97f5842442293290f75.mp4"
POSTER = "https://clips.invalid/attachments/video/runway/20241213/dfd86fa65cac2a98686294.png"


def envelope(task_id: str, percent: int, *, ended: bool) -> Mapping[str, Any]:
    """Return a task in the numeric envelope (api-facts 2 A, A6)."""
    data = {
        "task_id": task_id,
        "state": "succeeded" if ended else "running",
        "status": "3" if ended else "1",
        "progress": f"{percent}%",
        "prompt": "一只小猫",
        "prompt_en": "a little kitten.",
        "video_url": CLIP if ended else None,
        "poster": POSTER if ended else None,
        "last_frame": POSTER if ended else None,
        "msg": None,
        "point": "320" if ended else "",
        "refund": "0" if ended else "",
        "create_time": "1734078348",
        "update_time": "1734078452",
    }
    return {"code": 200, "msg": "成功", "data": data, "exec_time": 0.028943}


def relay(task_id: str, percent: int, *, ended: bool) -> Mapping[str, Any]:
    """Return the relay's envelope, with the upstream's own task inside (api-facts 2 B)."""
    data = {
        "task_id": task_id,
        "action": "IMAGE_TO_VIDEO",
        "status": "SUCCESS" if ended else "IN_PROGRESS",
        "fail_reason": "",
        "submit_time": 1773366766,
        "start_time": 1773366770,
        "finish_time": 1773366890 if ended else 0,
        "progress": f"{percent}%",
        "data": official(task_id, percent, ended=ended),
    }
    return {"code": "success", "message": "", "data": data}


def official(task_id: str, percent: int, *, ended: bool) -> Mapping[str, Any]:
    """Return a task in the official format (api-facts 2 C, A11, A12)."""
    made = {"id": task_id, "createdAt": "2026-03-13T09:52:46.351Z"}
    if ended:
        return {**made, "status": "SUCCEEDED", "output": [CLIP]}
    return {**made, "status": "RUNNING", "progress": percent / 100}


FORMATS = {"/runway/feed": envelope, "/relay/feed": relay}


class Feed:
    """Every task advances one step with each poll, and ends with the last."""

    def __init__(self, polls: int) -> None:
        self.polls = polls
        self.counts: Counter[str] = Counter()

    async def answer(self, request: RawRequest) -> bytes:
        """Return the state of the task."""
        render = FORMATS.get(request.path, official)
        by_path = request.path.rpartition("/")[2]
        task_id = json.loads(request.body)["task_id"] if request.body else by_path
        self.counts[task_id] += 1
        percent = 100 * self.counts[task_id] // self.polls
        return reply(200, render(task_id, percent, ended=self.counts[task_id] >= self.polls))


async def main(polls: int) -> None:
    """Print the address, and serve until the standard input ends."""
    async with serving(Feed(polls).answer) as url:
        print(url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
