"""How many jobs a second a batch gets through, beside bare aiohttp with the same requests."""

import asyncio
import gc
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # the folder may be missing in safe-path mode

import aiohttp
from _common import KEY, ratio, spread, table
from _gateway import gateway_in_another_process

from fuhu_runway import Client, Limits, PollPolicy

ROUNDS: Final = 3
JOBS: Final = 400
IN_FLIGHT: Final = 40
POLLS: Final = 10
"""Polls of one task: about as many as for a clip of 100 s at the default intervals."""
ANSWERS_AFTER: Final = (0.0, 0.02)
"""How long each response of the gateway takes, in seconds: no time, and as over a network."""
JUDGED: Final = 0.02
"""The goal is for this one: no real gateway takes no time; that row shows the cost of CPU."""
RAPID: Final = PollPolicy(first=0.000001, factor=1.0, max_interval=0.000001)
"""No pause between polls, as on the bare side."""
UNPACED: Final = Limits(requests_per_second=5000.0)
"""More than either side sends. To find out the pace of a gateway takes a client two seconds, once,
which would be half of such a short batch; `pace.py` judges that."""
GOAL: Final = 0.9

Run = Callable[[str, Sequence[str], Path], Awaitable[None]]
"""Makes a clip of each prompt, with a fresh folder for its files."""


# Bare aiohttp


def bare(*, download: bool, safely: bool = False) -> Run:
    """Return the least that has to be done: submit, poll until the URL is there, save."""
    save = bare_safe_download if safely else bare_download

    async def run(url: str, prompts: Sequence[str], folder: Path) -> None:
        semaphore = asyncio.Semaphore(IN_FLIGHT)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers={"Authorization": f"Bearer {KEY}"}
        ) as session:

            async def make(number: int, prompt: str) -> None:
                async with semaphore:
                    address = await bare_clip(session, url, prompt)
                    if download:
                        await save(session, address, folder / f"{number}.mp4")

            await asyncio.gather(*itertools.starmap(make, enumerate(prompts)))

    return run


async def bare_clip(session: aiohttp.ClientSession, url: str, prompt: str) -> str:
    """Submit, and poll without a pause; return the URL of the clip."""
    async with session.post(f"{url}/runway/pro/generate", json=body_of(prompt)) as response:
        body = {"task_id": (await response.json())["data"]["task_id"]}
    found: Any = None
    while not found:
        async with session.post(f"{url}/runway/feed", json=body) as response:
            found = (await response.json())["data"]["video_url"]
    return str(found)


async def bare_download(session: aiohttp.ClientSession, address: str, path: Path) -> None:
    """Write what comes to where it belongs; check nothing, and leave it to the system to flush."""
    async with session.get(address) as response:
        with path.open("wb") as file:
            async for chunk in response.content.iter_any():
                file.write(chunk)


async def bare_safe_download(session: aiohttp.ClientSession, address: str, path: Path) -> None:
    """Save as ours does, in a thread: flush the file, rename it, and flush its folder."""
    part = path.with_suffix(".part")
    await bare_download(session, address, part)

    def publish() -> None:
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    await asyncio.to_thread(publish)


def body_of(prompt: str) -> dict[str, Any]:
    """Return the body that our own client sends (api-facts 1.2)."""
    motion = {"x": 0, "y": 0, "z": 0, "r": 0, "bg_x_pan": 0, "bg_y_pan": 0}
    return {
        "callback_url": "https://callback.invalid/",
        "prompt": prompt,
        "ratio": "16:9",
        "style": "cinematic",
        "model": "gen4",
        "options": {"seconds": 10, "motion_vector": motion},
    }


# Ours


def ours(*, download: bool) -> Run:
    """Return what our user does, with everything written down."""

    async def run(url: str, prompts: Sequence[str], folder: Path) -> None:
        journal = folder / "journal.db"
        async with Client(
            KEY, base_url=url, polling=RAPID, limits=UNPACED, journal=journal
        ) as client:
            async for outcome in client.generate_many(
                prompts, in_flight=IN_FLIGHT, download_to=folder if download else None
            ):
                if outcome.error is not None:
                    raise outcome.error

    return run


# In turns

CLIENTS: Final = {
    "bare aiohttp": bare,
    "bare, flushed": partial(bare, safely=True),
    "fuhu_runway": ours,
}


class Side(NamedTuple):
    """One client, doing one thing against one gateway."""

    client: str
    answers_after: float
    download: bool

    def row(self, taken: Sequence["Turn"]) -> Iterator[str]:
        """Return what its turns took as a row of the table."""
        yield f"{self.answers_after * 1000:.0f} ms"
        yield "yes" if self.download else "no"
        yield self.client
        yield spread([turn.jobs_per_second for turn in taken])
        yield spread([turn.cpu_per_job for turn in taken], ".2f")


SIDES: Final = [
    Side(client, after, download)
    for after in ANSWERS_AFTER
    for download in (False, True)
    for client in CLIENTS
    if download or client != "bare, flushed"
]


class Turn(NamedTuple):
    """What one turn of one side took."""

    jobs_per_second: float
    #: Of this process, in milliseconds.
    cpu_per_job: float


async def take_turn(run: Run, url: str) -> Turn:
    """Get through all jobs once."""
    prompts = [f"a kitten, take {number}" for number in range(JOBS)]
    gc.collect()  # so that no side pays for the garbage of another
    with tempfile.TemporaryDirectory() as folder:
        began, cpu_began = time.perf_counter(), time.process_time()
        await run(url, prompts, Path(folder))
        took, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    return Turn(JOBS / took, cpu * 1000 / JOBS)


async def measure(urls: dict[float, str]) -> dict[Side, list[Turn]]:
    """Return the figures of every side, round by round; the first round only warms up."""
    turns: dict[Side, list[Turn]] = {side: [] for side in SIDES}
    for _ in range(ROUNDS + 1):
        for side in SIDES:
            run = CLIENTS[side.client](download=side.download)
            turns[side].append(await take_turn(run, urls[side.answers_after]))
    return {side: taken[1:] for side, taken in turns.items()}


def ratios(turns: dict[Side, list[Turn]]) -> Iterator[str]:
    """Return ours over each bare client, for each gateway and with and without saving."""
    speeds = {side: [turn.jobs_per_second for turn in taken] for side, taken in turns.items()}
    for side in SIDES:
        if side.client == "fuhu_runway":
            continue
        over = ratio(speeds[side._replace(client="fuhu_runway")], speeds[side])
        after = f"answers after {side.answers_after * 1000:.0f} ms"
        what = f"{after}, {'with' if side.download else 'without'} downloads"
        if side.answers_after != JUDGED:
            verdict = "no goal: real gateways take seconds"
        elif side.client != "bare aiohttp":
            verdict = "no goal: to compare"
        else:
            verdict = f"goal: at least {GOAL:.2f}, {'held' if over >= GOAL else 'MISSED'}"
        yield f"ours / {side.client}, {what}: {over:.2f} ({verdict})"


def main() -> None:
    """Print the medians and the ratios."""
    with ExitStack() as stack:
        urls = {
            after: stack.enter_context(gateway_in_another_process(POLLS, after))
            for after in ANSWERS_AFTER
        }
        turns = asyncio.run(measure(urls))
    print(
        f"{JOBS} jobs of {POLLS} polls each, {IN_FLIGHT} in flight; medians of {ROUNDS} rounds.\n"
        "Ours has a connection for each submit, two flushed steps before it and one after, and\n"
        "each file flushed, checked and renamed; bare aiohttp writes its files and flushes none,\n"
        '"bare, flushed" flushes and renames them.\n'
        "Ours knows the pace of the gateway; finding it out takes two seconds, once per client.\n"
    )
    heading = ("answers after", "saved", "client", "jobs per second", "ms CPU per job")
    print(table([heading, *(tuple(side.row(taken)) for side, taken in turns.items())]))
    print("", *ratios(turns), sep="\n")


if __name__ == "__main__":
    main()
