"""What very many waits at once cost: CPU for each look, timers, memory, and leaving one of them."""

import asyncio
import gc
import itertools
import random
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # the folder may be missing in safe-path mode

from _common import KEY, feed_in_another_process, table, verdict

from fuhu_runway import Client, Clip, PollPolicy
from fuhu_runway.hooks import Event, TaskPolled

SIZES: Final = (1_000, 10_000)
POLLS: Final = 3
STEADY: Final = PollPolicy(first=1.0, factor=1.0, max_interval=1.0)
RESTING: Final = PollPolicy(first=600.0, factor=1.0, max_interval=600.0)
"""One look at the start, and the next one after the figures are taken."""
LEAVERS: Final = 200

Wait = asyncio.Task[Clip]

NUMBERS: Final = itertools.count()


def waits_of(client: Client, size: int) -> list[Wait]:
    """Begin *size* waits, each for a task of its own."""
    numbers = itertools.islice(NUMBERS, size)
    ids = (f"221c136d-7888-43c3-acd3-{number:012}" for number in numbers)
    return [asyncio.create_task(client.task(task_id).wait()) for task_id in ids]


async def cpu_per_poll(url: str, size: int) -> float:
    """Give the CPU time of this process for each look until all have ended, in microseconds."""
    async with Client(KEY, base_url=url, polling=STEADY) as client:
        began = time.process_time()
        await asyncio.gather(*waits_of(client, size))
        return (time.process_time() - began) * 1e6 / (size * POLLS)


class Looks:
    """A listener that knows when every task has been looked at once."""

    def __init__(self, size: int) -> None:
        self.missing = size
        self.all_done = asyncio.Event()

    def __call__(self, event: Event) -> None:
        """Count one look."""
        self.missing -= isinstance(event, TaskPolled)
        if not self.missing:
            self.all_done.set()


@asynccontextmanager
async def at_rest(url: str, size: int) -> AsyncIterator[list[Wait]]:
    """Give *size* waits that have all been looked at, none of which is due."""
    looks = Looks(size)
    async with Client(KEY, base_url=url, polling=RESTING, hooks=[looks]) as client:
        waits = waits_of(client, size)
        await looks.all_done.wait()
        yield waits
    await asyncio.gather(*waits, return_exceptions=True)


def timers() -> Counter[str]:
    """Give the packages whose timers the loop holds, and how many each has."""
    # asyncio has no public way to ask.
    scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    calls = (timer._callback for timer in scheduled if not timer.cancelled())
    return Counter(call.__module__.partition(".")[0] for call in calls)


async def leaving(waits: list[Wait]) -> float:
    """Give the CPU time for cancelling one of many *waits*, in microseconds."""
    leavers = random.Random(0).sample(waits, LEAVERS)
    began = time.process_time()
    for wait in leavers:
        wait.cancel()
        await asyncio.wait([wait])
    return (time.process_time() - began) * 1e6 / LEAVERS


class Memory(NamedTuple):
    """What is allocated, by tracemalloc, for each wait in bytes."""

    resting: float
    peak: float


async def memory_per_wait(url: str, size: int) -> Memory:
    """Give what one wait takes: its task, its coroutines, and all that we remember of it."""
    async with at_rest(url, 100):
        pass  # whatever is made once is made now
    gc.collect()
    tracemalloc.start()
    async with at_rest(url, size):
        gc.collect()
        now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Memory(now / size, peak / size)


class Figures(NamedTuple):
    """What is found for one number of waits."""

    size: int
    cpu: float
    timers: Counter[str]
    leaving: float
    memory: Memory

    def row(self) -> Iterator[str]:
        """Give them as a row of the table."""
        yield f"{self.size:,}"
        yield f"{self.cpu:.1f}"
        yield ", ".join(f"{package} {count}" for package, count in sorted(self.timers.items()))
        yield f"{self.leaving:.1f}"
        yield f"{self.memory.resting:,.0f}"
        yield f"{self.memory.peak:,.0f}"


async def measure(url: str, size: int) -> Figures:
    """Give the figures for *size* waits at once."""
    cpu = await cpu_per_poll(url, size)
    async with at_rest(url, size) as waits:
        held = timers()
        left = await leaving(waits)
    return Figures(size, cpu, held, left, await memory_per_wait(url, size))


def main() -> None:
    """Print the table, and the figures that there are goals for."""
    with feed_in_another_process(POLLS) as url:
        found = [asyncio.run(measure(url, size)) for size in SIZES]
    heading = (
        *("waits at once", "us CPU per look", "timers at rest", "us to cancel one"),
        *("bytes per wait at rest", "at the peak"),
    )
    print(table([heading, *(tuple(figures.row()) for figures in found)]))
    largest = found[-1]
    print(f"\nTimers of ours: {verdict(largest.timers['fuhu_runway'], 1, '.0f')}")
    print(f"Bytes per wait at the peak: {verdict(largest.memory.peak, 4096, ',.0f')}")


if __name__ == "__main__":
    main()
