"""Clients and journals that were used before a process forked."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Final

import pytest

import fuhu_runway
from fuhu_runway.testing import Simulator

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")

PROGRAM: Final = """
import asyncio, os, sys, traceback, warnings
from fuhu_runway import Client, PollPolicy, errors

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads

def in_child(life):
    sys.stdout.flush()
    if os.fork():
        return os.waitstatus_to_exitcode(os.wait()[1])
    try:
        asyncio.run(life())
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

async def clip(client, prompt):
    task = await client.generate(prompt)
    await task.wait(timeout=60)
    print(prompt, "clip", flush=True)
    await client.aclose()

async def refused(client, prompt):
    try:
        await client.generate(prompt)
    except errors.JournalBusy as error:
        print(prompt, error.happened, flush=True)
    await client.aclose()

def make(**options):
    return Client(polling=PollPolicy(first=0.02, max_interval=0.02), **options)

async def parent(client, journaled):
    task = await client.generate("parent")
    waiting = asyncio.create_task(task.wait(timeout=60))
    await asyncio.sleep(0)
    await journaled.generate("journaled parent")
    print(in_child(lambda: clip(client, "forked while waiting")))
    print(in_child(lambda: refused(journaled, "forked while the journal is open")))
    print((await waiting).id == task.id, flush=True)
    await client.aclose()
    await journaled.aclose()

client, journaled = make(), make(journal=sys.argv[1])
asyncio.run(parent(client, journaled))
print(in_child(lambda: clip(client, "forked afterwards")))
print(in_child(lambda: clip(journaled, "journaled, forked afterwards")))
"""


async def test_a_client_goes_on_in_a_forked_child(tmp_path: Path) -> None:
    """
    A child that is forked beside a running wait, or later, submits and waits by itself.

    With a journal that the parent has open it is refused, before anything is sent.
    """
    async with Simulator(speed=1000, takes=50) as gateway:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path / "run.db")),
            stdout=PIPE,
            env={
                **os.environ,
                **gateway.environment(),
                "PYTHONPATH": str(Path(fuhu_runway.__file__).parents[1]),
            },
        )
        said, _ = await process.communicate()
        refusal = (
            "The journal 'run.db' was open when this process was forked: it belongs to the parent "
            "process."
        )
        assert said.decode().splitlines() == [
            "forked while waiting clip",
            "0",
            f"forked while the journal is open {refusal}",
            "0",
            "True",
            "forked afterwards clip",
            "0",
            "journaled, forked afterwards clip",
            "0",
        ]
        assert process.returncode == 0
        assert [task.prompt for task in gateway.tasks] == [
            "parent",
            "journaled parent",
            "forked while waiting",
            "forked afterwards",
            "journaled, forked afterwards",
        ]
