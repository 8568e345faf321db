"""
What stray refusals cost a batch: from 120 prompts to 120 clips, with 5 % of all requests refused.

Real sockets; 60 jobs at once, tasks of 2.5 s, `Retry-After: 1` with each 429. Both sides run in
turns against a gateway in this process. Exit status 1 if it takes more than 1.5 times as long.
"""

import asyncio
import itertools
import json
import random
import sys
import time
from pathlib import Path
from typing import Final

import attrs

sys.path.insert(0, str(Path(__file__).parent))  # the folder may be missing in safe-path mode

from _common import KEY, RawRequest, accepted, ratio, reply, serving, spread, verdict
from _feed import envelope

from fuhu_runway import GATEWAYS, Client

ROUNDS: Final = 3
PROMPTS: Final = 120
AT_ONCE: Final = 60
TAKES: Final = 2.5
"""How long each task runs, in seconds."""
REFUSED: Final = 0.05
GOAL: Final = 1.5


class Gateway:
    """Accepts everything but a part of all requests, which it refuses at random."""

    def __init__(self, refused: float, seed: int) -> None:
        self.refusals = 0
        self._refused = refused
        self._rng = random.Random(seed)
        self._numbers = itertools.count()
        self._ends_at: dict[str, float] = {}

    async def answer(self, request: RawRequest) -> bytes:
        """Refuse, accept, or report how a task is doing."""
        if self._rng.random() < self._refused:
            self.refusals += 1
            return reply(429, {"error": {"message": "busy"}}, {"Retry-After": "1"})
        if request.path.endswith("/generate"):
            task_id = f"221c136d-7888-43c3-acd3-{next(self._numbers):012}"
            self._ends_at[task_id] = time.monotonic() + TAKES
            return accepted(request, task_id)
        task_id = json.loads(request.body)["task_id"]
        ended = time.monotonic() >= self._ends_at[task_id]
        report = envelope(task_id, 100 if ended else 50, ended=ended)
        if ended:
            report["data"]["video_url"] = f"https://clips.invalid/{task_id}.mp4"
        return reply(200, report)


async def seconds(refused: float, seed: int) -> tuple[float, int]:
    """Return how long the batch took, and how many requests were refused."""
    gateway = Gateway(refused, seed)
    async with serving(gateway.answer) as url:
        place = attrs.evolve(GATEWAYS["fuhuapi"], base_url=url)
        async with Client(KEY, gateway=place) as client:
            began = time.monotonic()
            prompts = [f"a kitten, take {number}" for number in range(PROMPTS)]
            async for outcome in client.generate_many(prompts, in_flight=AT_ONCE):
                assert outcome.clip is not None, outcome.error
            return time.monotonic() - began, gateway.refusals


async def main() -> None:
    """Print the times and their ratio."""
    clean, stray, refusals = [], [], 0
    for seed in range(ROUNDS):
        clean.append((await seconds(0.0, seed))[0])
        took, refused = await seconds(REFUSED, seed)
        stray.append(took)
        refusals += refused
    print(
        f"{PROMPTS} prompts, {AT_ONCE} at once, tasks of {TAKES:g} s; {ROUNDS} rounds, in seconds"
    )
    print(f"without refusals      {spread(clean)}")
    print(f"{REFUSED:.0%} refused            {spread(stray)}, {refusals} refusals")
    found = ratio(stray, clean)
    print(f"ratio: {verdict(found, GOAL)}")
    sys.exit(0 if found <= GOAL else 1)


if __name__ == "__main__":
    asyncio.run(main())
