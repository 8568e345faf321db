"""What one poll costs the client in CPU: `task.wait()`, bare aiohttp and runwayml, in turns."""

import asyncio
import gc
import itertools
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import attrs

sys.path.insert(0, str(Path(__file__).parent))  # the folder may be missing in safe-path mode

from _common import HAS_PEER, KEY, feed_in_another_process, ratio, spread, table, verdict

from fuhu_runway import GATEWAYS, Client, PollPolicy

ROUNDS: Final = 12
POLLS: Final = 20
"""Polls of one task: nineteen return its progress, the last its success."""
WAITS: Final = 100
PEER_WAITS: Final = 16
"""With more at once runwayml's pool of connections, which keeps 20, would open new ones."""
RAPID: Final = PollPolicy(first=0.001, factor=1.0, max_interval=0.001)

WaitForAll = Callable[[Sequence[str]], Awaitable[None]]
Opener = Callable[[str], AbstractAsyncContextManager[WaitForAll]]


class Side(NamedTuple):
    """One way to wait for tasks."""

    client: str
    format: str
    open: Opener
    waits: int = WAITS


def bare(address: str, finished: Callable[[Any], object]) -> Opener:
    """Return the minimum with aiohttp: poll and parse until it has *finished*."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[WaitForAll]:
        verb = "GET" if "{" in address else "POST"
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers={"Authorization": f"Bearer {KEY}"}
        ) as session:

            async def wait(task_id: str) -> None:
                target = url + address.format(task_id)
                body = None if verb == "GET" else {"task_id": task_id}
                answer: Any = None
                while answer is None or not finished(answer):
                    async with session.request(verb, target, json=body) as response:
                        answer = await response.json()

            yield waiting_for_all(wait)

    return opened


def ours(prefix: str, *, official: bool = False) -> Opener:
    """Return what our user does."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[WaitForAll]:
        gateway = attrs.evolve(GATEWAYS["fuhuapi"], base_url=url, prefix=prefix)
        async with Client(KEY, gateway=gateway, polling=RAPID) as client:

            async def wait(task_id: str) -> None:
                await client.task(task_id, official=official).wait()

            yield waiting_for_all(wait)

    return opened


@asynccontextmanager
async def peer(url: str) -> AsyncIterator[WaitForAll]:
    """Return what runwayml does at each poll; its own loop sleeps 6 s between two."""
    import runwayml

    async with runwayml.AsyncRunwayML(api_key=KEY, base_url=url) as client:

        async def wait(task_id: str) -> None:
            while (await client.tasks.retrieve(task_id)).status != "SUCCEEDED":
                pass

        yield waiting_for_all(wait)


def waiting_for_all(wait: Callable[[str], Awaitable[None]]) -> WaitForAll:
    """Return the wait for many tasks at once, made of the *wait* for one."""

    async def wait_for_all(task_ids: Sequence[str]) -> None:
        await asyncio.gather(*map(wait, task_ids))

    return wait_for_all


SIDES: Final = (
    Side("bare aiohttp", "A", bare("/runway/feed", lambda body: body["data"]["video_url"])),
    Side("fuhu_runway", "A", ours("/runway")),
    Side("bare aiohttp", "B", bare("/relay/feed", lambda body: body["data"]["finish_time"])),
    Side("fuhu_runway", "B", ours("/relay")),
    Side("bare aiohttp", "C", bare("/runwayml/v1/tasks/{}", lambda body: "output" in body)),
    Side("fuhu_runway", "C", ours("/runway", official=True)),
    *([Side("runwayml", "C", peer, PEER_WAITS)] if HAS_PEER else []),
)


async def cpu_per_poll(wait_for_all: WaitForAll, task_ids: Sequence[str]) -> float:
    """Return the CPU time of this process for each poll, in microseconds."""
    gc.collect()  # so that no side pays for the garbage of another
    began = time.process_time()
    await wait_for_all(task_ids)
    return (time.process_time() - began) * 1e6 / (len(task_ids) * POLLS)


async def measure(url: str) -> dict[Side, list[float]]:
    """Return the figures of every side, round by round; the first round only warms up."""
    names = (f"221c136d-7888-43c3-acd3-{number:012}" for number in itertools.count())
    figures: dict[Side, list[float]] = {side: [] for side in SIDES}
    async with AsyncExitStack() as stack:
        waits = {side: await stack.enter_async_context(side.open(url)) for side in SIDES}
        gc.freeze()  # no full collection walks through all that runwayml imports
        for _ in range(ROUNDS + 1):
            for side, wait_for_all in waits.items():
                task_ids = list(itertools.islice(names, side.waits))
                figures[side].append(await cpu_per_poll(wait_for_all, task_ids))
    return {side: values[1:] for side, values in figures.items()}


def ratios(figures: dict[Side, list[float]]) -> Iterator[str]:
    """Return ours over bare aiohttp in each format, and over runwayml in its own."""
    values = {(side.client, side.format): found for side, found in figures.items()}
    for form in ("A", "B", "C"):
        over = ratio(values["fuhu_runway", form], values["bare aiohttp", form])
        yield f"ours / bare aiohttp, format {form}: {verdict(over, 1.5)}"
    for form in ("A", "C") if HAS_PEER else ():
        over = ratio(values["fuhu_runway", form], values["runwayml", "C"])
        yield f"ours, format {form} / runwayml: {verdict(over, 0.1, '.3f')}"


def main() -> None:
    """Print the medians and the ratios."""
    with feed_in_another_process(POLLS) as url:
        figures = asyncio.run(measure(url))
    rows = [
        (side.client, side.format, str(side.waits), spread(values))
        for side, values in figures.items()
    ]
    print(f"CPU of the client for one poll, medians of {ROUNDS} rounds in turns, in microseconds.")
    print("Formats: A numeric envelope, B relay with a task inside, C official (api-facts 2).\n")
    print(table([("client", "format", "waits at once", "us per poll"), *rows]))
    print("", *ratios(figures), sep="\n")


if __name__ == "__main__":
    main()
