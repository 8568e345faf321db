"""What a process keeps of jobs that are done: memory, files and tasks over 3,000 of them."""

import asyncio
import gc
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent))  # the folder may be missing in safe-path mode

from _common import table, verdict

from fuhu_runway import Client, PollPolicy
from fuhu_runway.testing import Simulator

JOBS: Final = 3_000
STEP: Final = 500
AT_ONCE: Final = 50
GOAL: Final = 1_000
"""Bytes that a job may leave behind; more would be a handle, a request or a record."""


def open_files() -> int:
    """Return how many files and sockets this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def one(client: Client, number: int, room: asyncio.Semaphore) -> None:
    """Start one job as a chat bot does, and wait for its end."""
    async with room:
        await (await client.start(f"a kitten, take {number}", custom_id=f"order-{number}"))


async def main() -> None:
    """Run the jobs in steps, and print what is held after each."""
    rows: list[list[str]] = []
    held: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        async with Simulator(speed=100_000, points=None) as gateway:
            polling = PollPolicy(first=0.01, max_interval=0.05)
            journal = Path(folder, "run.db")
            async with Client(
                gateway.api_key, base_url=gateway.base_url, polling=polling, journal=journal
            ) as client:
                room = asyncio.Semaphore(AT_ONCE)
                tracemalloc.start()
                for begin in range(0, JOBS, STEP):
                    numbers = range(begin, begin + STEP)
                    await asyncio.gather(*(one(client, number, room) for number in numbers))
                    # The simulator keeps every task on purpose, so only the client's own counts.
                    gc.collect()
                    snapshot = tracemalloc.take_snapshot().filter_traces(
                        [
                            tracemalloc.Filter(inclusive=True, filename_pattern="*/fuhu_runway/*"),
                            tracemalloc.Filter(
                                inclusive=False, filename_pattern="*/fuhu_runway/testing/*"
                            ),
                        ]
                    )
                    held.append(sum(line.size for line in snapshot.statistics("filename")))
                    rows.append(
                        [
                            f"{begin + STEP:,}",
                            f"{held[-1] / 1024:,.0f} KB",
                            str(open_files()),
                            str(len(asyncio.all_tasks())),
                            str(len(client.unfinished)),
                        ]
                    )
    print(table([["jobs", "held by the client", "files", "tasks", "unfinished"], *rows]))
    left = (held[-1] - held[1]) / (JOBS - 2 * STEP)
    print(f"\nBytes that a job leaves, for its name and its id: {verdict(left, GOAL, ',.0f')}")


if __name__ == "__main__":
    asyncio.run(main())
