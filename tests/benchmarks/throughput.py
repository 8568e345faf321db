"""How many jobs a second a batch gets through, beside bare aiohttp with the same requests."""

import asyncio
import gc
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # the folder may be missing in safe-path mode

import aiohttp
from _common import KEY, ratio, spread, table
from _gateway import gateway_in_another_process

from fuhu_runway import Client, PollPolicy

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
WARM_UP: Final = 300
"""Jobs that each client makes before it is measured. To find out the pace of a gateway takes ours
two seconds, once; `pace.py` judges that."""
GOAL: Final = 0.9

Make = Callable[[Sequence[str]], Awaitable[None]]
"""Makes a clip of each prompt."""
Opener = Callable[[str, Path], AbstractAsyncContextManager[Make]]
"""Opens a client of the gateway at that URL, with a fresh folder for its files."""


# Bare aiohttp


def bare(*, download: bool, safely: bool = False) -> Opener:
    """Return the least that has to be done: submit, poll until the URL is there, save."""
    save = bare_safe_download if safely else bare_download

    @asynccontextmanager
    async def opened(url: str, folder: Path) -> AsyncIterator[Make]:
        semaphore = asyncio.Semaphore(IN_FLIGHT)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers={"Authorization": f"Bearer {KEY}"}
        ) as session:

            async def make(prompt: str) -> None:
                async with semaphore:
                    address = await bare_clip(session, url, prompt)
                    if download:
                        await save(session, address, folder / f"{prompt}.mp4")

            async def make_all(prompts: Sequence[str]) -> None:
                await asyncio.gather(*map(make, prompts))

            yield make_all

    return opened


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


def ours(*, download: bool) -> Opener:
    """Return what our user does, with everything written down."""

    @asynccontextmanager
    async def opened(url: str, folder: Path) -> AsyncIterator[Make]:
        journal = folder / "journal.db"
        async with Client(KEY, base_url=url, polling=RAPID, journal=journal) as client:

            async def make_all(prompts: Sequence[str]) -> None:
                async for outcome in client.generate_many(
                    prompts, in_flight=IN_FLIGHT, download_to=folder if download else None
                ):
                    if outcome.error is not None:
                        raise outcome.error

            yield make_all

    return opened


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


async def take_turn(opener: Opener, url: str) -> Turn:
    """Get through all jobs once."""
    prompts = [f"a kitten, take {number}" for number in range(WARM_UP + JOBS)]
    with tempfile.TemporaryDirectory() as folder:
        async with opener(url, Path(folder)) as make_all:
            await make_all(prompts[:WARM_UP])
            gc.collect()  # so that no side pays for the garbage of another
            began, cpu_began = time.perf_counter(), time.process_time()
            await make_all(prompts[WARM_UP:])
            took, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    return Turn(JOBS / took, cpu * 1000 / JOBS)


async def measure(urls: dict[float, str]) -> dict[Side, list[Turn]]:
    """Return the figures of every side, round by round."""
    turns: dict[Side, list[Turn]] = {side: [] for side in SIDES}
    for _ in range(ROUNDS):
        for side in SIDES:
            opener = CLIENTS[side.client](download=side.download)
            turns[side].append(await take_turn(opener, urls[side.answers_after]))
    return turns


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
        f"Each client made {WARM_UP} clips before that, in which ours has found out the pace.\n"
    )
    heading = ("answers after", "saved", "client", "jobs per second", "ms CPU per job")
    print(table([heading, *(tuple(side.row(taken)) for side, taken in turns.items())]))
    print("", *ratios(turns), sep="\n")


if __name__ == "__main__":
    main()
