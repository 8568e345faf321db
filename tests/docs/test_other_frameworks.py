"""The pages for other frameworks and languages, run with those."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import aiohttp
import pytest
from support.programs import ran

from fuhu_runway.testing import Simulator

ROOT = Path(__file__).parents[2]
HOWTO = (ROOT / "docs/howto/any-test-framework.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs/reference/control-api.md").read_text(encoding="utf-8")


def block(language: str, heading: str) -> str:
    """Return the block in *language* under *heading* of the how-to."""
    section = HOWTO.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = re.search(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


def test_unittest_runs_the_test_case(tmp_path: Path) -> None:
    """The file of the page passes with unittest's own runner, without pytest."""
    (tmp_path / "test_clips.py").write_text(block("python", "Use it in unittest"))
    done = ran(sys.executable, "-m", "unittest", "-v", folder=tmp_path, PYTHONWARNINGS="error")
    assert done.returncode == 0, done.stderr
    assert "Ran 2 tests" in done.stderr


@pytest.mark.parametrize("heading", ["Use it in a plain script", "Use it from another language"])
def test_the_script_runs(heading: str, tmp_path: Path) -> None:
    """A program of the page runs to its end, and leaves nothing open."""
    if "language" in heading:
        pytest.importorskip("cyclopts")
    (tmp_path / "program.py").write_text(block("python", heading))
    done = ran(sys.executable, "-X", "dev", "program.py", folder=tmp_path, PYTHONWARNINGS="error")
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr


@pytest.mark.skipif(not shutil.which("curl"), reason="this machine has no curl")
def test_the_curl_commands_work(tmp_path: Path) -> None:
    """The commands of the page, run one by one in a shell, do what the page says."""
    pytest.importorskip("cyclopts")
    command = tmp_path / "bin" / "fuhu-runway"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fuhu_runway "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join((str(command.parent), os.environ["PATH"]))
    shell = ("sh", "-c", block("sh", "Use it from the shell"))
    done = ran(*shell, folder=tmp_path, PYTHONWARNINGS="error", PATH=path)
    assert done.returncode == 0, done.stderr
    assert "no response\n" in done.stdout
    assert '"answered": false' in done.stdout
    assert '"field": "times", "value": 0' in done.stdout


async def test_the_refusal_of_the_reference_is_a_real_one() -> None:
    """The example of an error is the simulator's answer, word for word."""
    found = re.search(r"^```json\n(.*?)^```$", REFERENCE, re.DOTALL | re.MULTILINE)
    assert found
    body = {"where": "feed", "fault": {"kind": "Response", "status": 99}}
    async with (
        Simulator(control=True) as gateway,
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.control_url}/faults", json=body) as response,
    ):
        assert await response.json() == json.loads(found[1])
