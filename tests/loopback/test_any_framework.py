"""The simulator in frameworks other than pytest, each run by its own runner as a user would."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from textwrap import dedent

import pytest

import fuhu_runway

COMMON = """
import asyncio, unittest
from fuhu_runway import Client, PollPolicy, errors
from fuhu_runway.testing import Simulator, faults

def client_of(gateway):
    quick = PollPolicy(first=0.01, max_interval=0.02)
    return Client(gateway.api_key, base_url=gateway.base_url, polling=quick)
"""

# Opened in every way that unittest offers; each method has a loop of its own.
CASES = """
class WithContexts(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.gateway = await self.enterAsyncContext(Simulator(takes=0))
        self.client = await self.enterAsyncContext(client_of(self.gateway))

    async def test_first(self):
        await (await self.client.generate("a kitten"))
        self.assertEqual(self.gateway.submitted, 1)

    async def test_second(self):
        self.assertEqual(self.gateway.submitted, 0)


class WithTearDown(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.gateway = Simulator(takes=0)
        await self.gateway.start()

    async def asyncTearDown(self):
        await self.gateway.aclose()

    async def test_a_failure(self):
        self.gateway.script("a kitten", then="fail")
        async with client_of(self.gateway) as client:
            with self.assertRaises(errors.TaskFailed):
                await (await client.generate("a kitten"))


class WithCleanup(unittest.IsolatedAsyncioTestCase):
    def setUp(self):
        self.gateway = Simulator(takes=0)
        self.addAsyncCleanup(self.gateway.aclose)

    async def test_a_hanging_request_does_not_outlive_the_gateway(self):
        await self.gateway.start()
        self.gateway.fault("feed", faults.Hang())
        client = await self.enterAsyncContext(client_of(self.gateway))
        task = await client.generate("a kitten")
        with self.assertRaises(errors.WaitTimeout):
            await task.wait(timeout=0.01)


class OneForTheClass(unittest.IsolatedAsyncioTestCase):
    @classmethod
    def setUpClass(cls):
        cls.gateway = Simulator(takes=0)

    async def asyncSetUp(self):
        await self.enterAsyncContext(self.gateway)
        self.gateway.reset()

    async def test_first(self):
        async with client_of(self.gateway) as client:
            await client.generate("a kitten")
        self.assertEqual(self.gateway.submitted, 1)

    test_second = test_first
"""

# One gateway, three loops one after the other.
SCRIPT = """
gateway = Simulator(takes=0)

async def main():
    async with gateway, client_of(gateway) as client:
        await (await client.generate("a kitten"))

for _ in range(3):
    asyncio.run(main())
print(gateway.submitted, len(gateway.duplicates[0]))
"""

HARNESS = """
import subprocess, sys, time
command = [sys.executable, "-m", "fuhu_runway", "simulate", "--json", "--until-stdin-closes"]
gateway = subprocess.Popen(command, stdin=subprocess.PIPE)
time.sleep(600)
"""


def command(*words: str) -> list[str]:
    """Return the command that runs an interpreter in which each warning is an error."""
    return [sys.executable, "-X", "dev", "-W", "error", *words]


def environment() -> dict[str, str]:
    """Return the variables with which the package that is tested is found from anywhere."""
    return os.environ | {"PYTHONPATH": str(Path(fuhu_runway.__file__).parents[1])}


def ran(*words: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a program of a user's own to its end."""
    return subprocess.run(
        command(*words),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_unittest_opens_it_in_every_way(tmp_path: Path) -> None:
    """Contexts, tear-downs, clean-ups and one gateway for a class all end with nothing open."""
    (tmp_path / "test_cases.py").write_text(COMMON + CASES)
    done = ran("-m", "unittest", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Ran 6 tests" in done.stderr
    assert "Warning" not in done.stderr


def test_a_script_may_run_it_in_several_loops(tmp_path: Path) -> None:
    """A gateway that is restarted in another loop still has its tasks."""
    done = ran("-c", dedent(COMMON + SCRIPT), folder=tmp_path)
    # In dev mode asyncio complains of a machine that is slow.
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]
    assert (done.stdout, complaints) == ("3 3\n", [])


def is_there(url: str) -> bool:
    """Return whether a server answers at *url*."""
    try:
        with urllib.request.urlopen(url):  # noqa: S310 - on this machine
            return True
    except urllib.error.URLError:
        return False


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has SIGKILL")
def test_a_killed_harness_leaves_no_gateway_behind(tmp_path: Path) -> None:
    """With its stdin watched, a gateway is gone once the program that started it is killed."""
    pytest.importorskip("cyclopts")
    with subprocess.Popen(
        command("-c", HARNESS), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    ) as harness:
        assert harness.stdout
        url = json.loads(harness.stdout.readline())["control_url"] + "/health"
        assert is_there(url)
        harness.send_signal(signal.SIGKILL)
        # The gateway has inherited this pipe, so that it ends when the gateway does.
        assert harness.stdout.read() == ""
    assert not is_there(url)
