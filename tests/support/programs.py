"""Users' programs, run in an interpreter in which each warning is an error."""

import asyncio
import os
import re
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from textwrap import dedent
from typing import Final

import attrs

import fuhu_runway
from fuhu_runway.testing import Simulator

PACKAGE: Final = str(Path(fuhu_runway.__file__).parents[1])
"""The folder of the package under test: the source tree, or where it is installed."""

PREAMBLE: Final = """
import asyncio, logging
from fuhu_runway import Client, PollPolicy, hooks

quick = PollPolicy(first=0.01, max_interval=0.02)
# In dev mode asyncio complains of a machine that is slow; of tasks that are lost it still does.
logging.getLogger("asyncio").setLevel(logging.ERROR)
"""


@attrs.frozen
class Ended:
    """The result of a program."""

    code: int
    words: list[str]
    complaints: str


def ran(*command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end in *folder*, where it can import the package under test."""
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": PACKAGE} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


async def start(gateway: Simulator, source: str) -> Process:
    """Start *source* with an environment that points to *gateway*."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "error", "-c", PREAMBLE + dedent(source)),
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, **gateway.environment()},
    )


async def end_of(process: Process) -> Ended:
    """Wait for the end of a program, and return its output."""
    out, complaints = await process.communicate()
    return Ended(process.returncode or 0, out.decode().split(), complaints.decode())


async def run(gateway: Simulator, source: str) -> Ended:
    """Run *source* to its end."""
    return await end_of(await start(gateway, source))


# The programs that the how-tos show

ROOT = Path(__file__).parents[2]


def program(page: str, number: int = 1) -> str:
    """Return a Python block of a how-to, which is a whole program: the first by default."""
    text = (ROOT / f"docs/howto/{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return str(blocks[number - 1])
