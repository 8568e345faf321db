"""A server that SIGTERM stops at random instants loses nothing that was paid."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from random import Random
from typing import Final

import aiohttp
import pytest
from support.clock import until

import fuhu_runway
from fuhu_runway.journal import Journal
from fuhu_runway.testing import Simulator, faults

INSTANTS: Final = int(os.environ.get("FUHU_TEST_INSTANTS", "20"))
"""How many servers are stopped, each at a different moment."""
ROUTES: Final = ("start", "wait", "stream")

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM"),
    pytest.mark.timeout(60 * INSTANTS),
]


async def serving(gateway: Simulator, folder: Path, *, journal: bool) -> tuple[Process, str]:
    """Start the app, and return its process and its URL."""
    package = Path(fuhu_runway.__file__).parents[1]
    command = ("-m", "uvicorn", "app:app", "--port", "0", "--app-dir", str(Path(__file__).parent))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command, "--timeout-graceful-shutdown", "1"),
        stderr=PIPE,
        stdout=PIPE,
        env={
            **os.environ,
            **gateway.environment(),
            "PYTHONPATH": str(package),
            "APP_FOLDER": str(folder),
            "APP_JOURNAL": "yes" * journal,
        },
    )
    assert process.stderr is not None
    while b"running on" not in (line := await process.stderr.readline()):
        assert line, "the server did not start"
    return process, line.decode().split("running on ")[1].split()[0]


async def send(session: aiohttp.ClientSession, url: str) -> None:
    """Send one request; a stopping server may send any response or none."""
    try:
        async with session.post(url) as answer:
            await answer.read()
    except aiohttp.ClientError:
        return


async def life(gateway: Simulator, folder: Path, random: Random, *, journal: bool) -> None:
    """Let a server run for a random time under load, then stop it as a deployment does."""
    process, url = await serving(gateway, folder, journal=journal)
    async with aiohttp.ClientSession() as session:
        sending = [
            asyncio.ensure_future(send(session, f"{url}/{random.choice(ROUTES)}/{number}"))
            for number in range(12)
        ]
        at_least = random.randrange(13)
        await until(lambda: gateway.submitted >= at_least)
        await asyncio.sleep(random.random() / 10)
        process.send_signal(signal.SIGTERM)
        if random.random() < 0.2:
            process.send_signal(signal.SIGTERM)
        _, complaints = await process.communicate()
        for one in sending:
            one.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
    assert (folder / "unfinished.json").exists(), complaints.decode()


@pytest.mark.parametrize("journal", [False, True], ids=["list", "journal"])
async def test_a_server_that_is_stopped_loses_nothing(tmp_path: Path, journal: bool) -> None:
    """Every task of the gateway is saved, was returned, or is recorded by the server."""
    for seed in range(INSTANTS // 2):
        random = Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "ended.txt").touch()
        async with Simulator(speed=100, takes=20) as gateway:
            gateway.fault("submit", faults.Slow(random.choice([1.0, 10.0])), times=6)
            gateway.fault("download", faults.SlowBody(2000), times=3)
            await life(gateway, folder, random, journal=journal)
            paid = {task.task_id for task in gateway.tasks}
            assert len(paid) == gateway.submitted
        written = set(json.loads((folder / "unfinished.json").read_text()))
        ended = set((folder / "ended.txt").read_text().split())
        assert written | ended == paid
        assert written.isdisjoint(ended)
        if journal:
            book = Journal(folder / "run.db")
            jobs, left = await book.jobs(), await book.unfinished()
            await book.aclose()
            assert {job.task_id for job in jobs if job.task_id} == paid
            assert {job.task_id for job in left} == written
