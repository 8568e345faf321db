"""What very many waits at once cost beside plain loops over aiohttp, and how that grows."""

import asyncio
import gc
import itertools
import math
import random
import statistics
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp

sys.path.insert(0, str(Path(__file__).parent))  # the folder may be missing in safe-path mode

from _common import KEY, feed_in_another_process, ratio, table, verdict

from fuhu_runway import Client, PollPolicy
from fuhu_runway.hooks import Event, TaskPolled

SIZES: Final = (100, 1_000, 10_000)
POLLS: Final = 10
"""As many as for a task of two minutes; what a wait itself costs is spread over them."""
LEAST: Final = 1_000
"""The least number of waits in a turn, in groups of the size: fewer are over too soon."""
ROUNDS: Final = 3
STEADY: Final = 0.05
"""Between two polls of a task, in seconds: the CPU is busy with 1,000 waits, and idle with 100."""
RESTING: Final = 600.0
"""One poll at the start, and the next one after the figures are taken."""
LEAVERS: Final = 200

OnPoll = Callable[[], object]
"""Called after each poll."""
Begin = Callable[[str], Awaitable[object]]
"""Waits for the end of the task with that id."""
Opener = Callable[[str, float, OnPoll | None], AbstractAsyncContextManager[Begin]]
"""Opens a client that polls the feed at that URL in that interval."""

NUMBERS: Final = itertools.count()


@asynccontextmanager
async def ours(url: str, interval: float, on_poll: OnPoll | None = None) -> AsyncIterator[Begin]:
    """Return what our user does."""

    def on_event(event: Event) -> None:
        if on_poll is not None and isinstance(event, TaskPolled):
            on_poll()

    # Without jitter, as the other side: what is sent at the same instant shares wake-ups.
    polling = PollPolicy(first=interval, factor=1.0, max_interval=interval, jitter=0.0)
    hooks = [] if on_poll is None else [on_event]
    async with Client(KEY, base_url=url, polling=polling, hooks=hooks) as client:
        yield lambda task_id: client.task(task_id).wait()


@asynccontextmanager
async def bare(url: str, interval: float, on_poll: OnPoll | None = None) -> AsyncIterator[Begin]:
    """Return the loop that one writes over aiohttp, which sends 100 at once, as many as ours."""
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:

        async def wait(task_id: str) -> Any:
            while True:
                async with session.post(f"{url}/runway/feed", json={"task_id": task_id}) as reply:
                    answer = await reply.json()
                if on_poll is not None:
                    on_poll()
                if answer["data"]["video_url"]:
                    return answer
                await asyncio.sleep(interval)

        yield wait


SIDES: Final[Mapping[str, Opener]] = {"ours": ours, "bare aiohttp": bare}


def waits_of(begin: Begin, size: int) -> list[asyncio.Task[object]]:
    """Begin *size* waits, each for a task of its own."""
    numbers = itertools.islice(NUMBERS, size)
    ids = (f"221c136d-7888-43c3-acd3-{number:012}" for number in numbers)
    return [asyncio.ensure_future(begin(task_id)) for task_id in ids]


async def cpu_per_poll(url: str, opener: Opener, size: int) -> float:
    """Return the CPU time of this process for each poll until all have ended, in microseconds."""
    turns = max(1, LEAST // size)
    gc.collect()  # so that no side pays for the garbage of another
    async with opener(url, STEADY, None) as begin:
        # Not measured: connections are opened, and ours finds out how fast it may poll.
        await asyncio.gather(*waits_of(begin, LEAST))
        began = time.process_time()
        for _ in range(turns):
            await asyncio.gather(*waits_of(begin, size))
        return (time.process_time() - began) * 1e6 / (turns * size * POLLS)


@asynccontextmanager
async def at_rest(url: str, opener: Opener, size: int) -> AsyncIterator[list[asyncio.Task[object]]]:
    """Return *size* waits that have all been polled, none of which is due."""
    all_polled = asyncio.Event()
    polls = itertools.count(1)

    def on_poll() -> None:
        if next(polls) == size:
            all_polled.set()

    async with opener(url, RESTING, on_poll) as begin:
        waits = waits_of(begin, size)
        await all_polled.wait()
        yield waits
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


def timers() -> Counter[str]:
    """Return the packages whose timers the loop holds, and how many each has."""
    # asyncio has no public way to find out.
    scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    calls = (timer._callback for timer in scheduled if not timer.cancelled())
    return Counter(call.__module__.partition(".")[0].strip("_") for call in calls)


async def leaving(waits: Sequence[asyncio.Task[object]]) -> float:
    """Return the CPU time for cancelling one of many *waits*, in microseconds."""
    leavers = random.Random(0).sample(waits, min(LEAVERS, len(waits) // 2))
    began = time.process_time()
    for wait in leavers:
        wait.cancel()
        await asyncio.wait([wait])
    return (time.process_time() - began) * 1e6 / len(leavers)


class Memory(NamedTuple):
    """What is allocated, by tracemalloc, for each wait in bytes."""

    resting: float
    peak: float


async def memory_per_wait(url: str, opener: Opener, size: int) -> Memory:
    """Return what one wait takes: its task, its coroutines, and everything that is kept for it."""
    async with at_rest(url, opener, SIZES[0]):
        pass  # objects that are made only once are made now
    gc.collect()
    tracemalloc.start()
    async with at_rest(url, opener, size):
        gc.collect()
        now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Memory(now / size, peak / size)


class Figures(NamedTuple):
    """What is found for one side and one number of waits."""

    #: Round by round.
    cpu: list[float]
    timers: Counter[str]
    leaving: float
    memory: Memory

    def row(self) -> Iterator[str]:
        """Return them as cells of the table."""
        yield f"{statistics.median(self.cpu):.1f}"
        yield ", ".join(f"{package} {count:,}" for package, count in sorted(self.timers.items()))
        yield f"{self.leaving:.1f}"
        yield f"{self.memory.resting:,.0f}"
        yield f"{self.memory.peak:,.0f}"


Turn = tuple[int, str]
"""One number of waits, and one side."""


async def cpu_in_turns(url: str) -> dict[Turn, list[float]]:
    """Return the CPU time for each poll, round by round; in each, all take their turns."""
    found: dict[Turn, list[float]] = {turn: [] for turn in itertools.product(SIZES, SIDES)}
    for opener in SIDES.values():
        await cpu_per_poll(url, opener, LEAST)  # warms up
    for _ in range(ROUNDS):
        for (size, side), values in found.items():
            values.append(await cpu_per_poll(url, SIDES[side], size))
    return found


async def measure(url: str) -> dict[Turn, Figures]:
    """Return the figures of both sides for every number of waits."""
    gc.freeze()  # no full collection walks through all that was imported
    figures = {}
    for (size, side), cpu in (await cpu_in_turns(url)).items():
        async with at_rest(url, SIDES[side], size) as waits:
            held, left = timers(), await leaving(waits)
        memory = await memory_per_wait(url, SIDES[side], size)
        figures[size, side] = Figures(cpu, held, left, memory)
    return figures


def growth(per_wait: Sequence[float]) -> float:
    """
    Return how many times faster than n log n the whole grew, at the worst step between two sizes.

    The whole is *per_wait* times n, so a wait may cost more only as log n does.
    """
    costs = [cost / math.log(size) for cost, size in zip(per_wait, SIZES, strict=True)]
    return max(after / before for before, after in itertools.pairwise(costs))


def verdicts(figures: Mapping[Turn, Figures]) -> Iterator[str]:
    """Return the figures that there are goals for."""
    mine = [figures[size, "ours"] for size in SIZES]
    for size, our in zip(SIZES, mine, strict=True):
        over = ratio(our.cpu, figures[size, "bare aiohttp"].cpu)
        yield f"CPU, ours / bare aiohttp, {size:,} waits: {verdict(over, 1.3)}"
    largest = mine[-1]
    yield f"Bytes for each of {SIZES[-1]:,} waits at the peak: " + verdict(
        largest.memory.peak, 4096, ",.0f"
    )
    yield f"Timers of ours: {verdict(largest.timers['fuhu_runway'], 1, '.0f')}"
    cpu = growth([statistics.median(our.cpu) for our in mine])
    yield f"Growth of the CPU / n log n: {verdict(cpu, 1)}"
    yield f"Growth of the memory / n log n: {verdict(growth([our.memory.peak for our in mine]), 1)}"


def main() -> None:
    """Print the table, and the figures that there are goals for."""
    with feed_in_another_process(POLLS) as url:
        figures = asyncio.run(measure(url))
    heading = (
        *("waits at once", "client", "us CPU per poll", "timers at rest", "us to leave one"),
        *("bytes per wait at rest", "at the peak"),
    )
    rows = [(f"{size:,}", side, *found.row()) for (size, side), found in figures.items()]
    print(f"CPU: medians of {ROUNDS} rounds, in each of which all took turns.\n")
    print(table([heading, *rows]))
    print("", *verdicts(figures), sep="\n")


if __name__ == "__main__":
    main()
