"""A gateway in a process of its own: it accepts every request, and has one clip for all tasks."""

import asyncio
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent))  # the folder may be missing in safe-path mode

from _common import RawRequest, accepted, reply, serving
from _feed import envelope

CLIP_PATH: Final = "/clips/kitten.mp4"
CLIP: Final = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom".ljust(256 * 1024, b"\x5a")
"""What begins like an MP4 file; of how much more it consists is the same for both sides."""


class Gateway:
    """Accepts paid requests; every task advances one step with each poll; one clip for all."""

    def __init__(self, polls: int, answers_after: float) -> None:
        self.polls = polls
        self.answers_after = answers_after
        self.url = ""
        self._counts: Counter[str] = Counter()
        self._numbers = itertools.count()

    async def answer(self, request: RawRequest) -> bytes:
        """Accept a task, report its state, or send the clip."""
        if self.answers_after:
            await asyncio.sleep(self.answers_after)
        if request.path.endswith("/generate"):
            return accepted(request, f"221c136d-7888-43c3-acd3-{next(self._numbers):012}")
        if request.path == CLIP_PATH:
            return _clip()
        return self._state(json.loads(request.body)["task_id"])

    def _state(self, task_id: str) -> bytes:
        self._counts[task_id] += 1
        percent = 100 * self._counts[task_id] // self.polls
        body = envelope(task_id, percent, ended=percent == 100)
        if percent == 100:
            body["data"]["video_url"] = self.url + CLIP_PATH
        return reply(200, body)


def _clip() -> bytes:
    lines = [
        "HTTP/1.1 200 OK",
        f"Date: {formatdate(usegmt=True)}",
        "Content-Type: video/mp4",
        'ETag: "kitten"',
        f"Content-Length: {len(CLIP)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + CLIP


@contextmanager
def gateway_in_another_process(polls: int, answers_after: float) -> Iterator[str]:
    """
    Return the address of a gateway whose CPU is not ours.

    Each task ends with its *polls*-th poll, and each response takes *answers_after* seconds.
    """
    with subprocess.Popen(
        [sys.executable, __file__, str(polls), str(answers_after)],
        stdin=subprocess.PIPE,  # it lives until this is closed
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


async def main(polls: int, answers_after: float) -> None:
    """Print the address, and serve until the standard input ends."""
    gateway = Gateway(polls, answers_after)
    async with serving(gateway.answer) as gateway.url:
        print(gateway.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
