"""The figures program for lost answers, in short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fuhu_runway

pytest.importorskip("cyclopts")  # the gateway is a command

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "lost_answers.py"


@pytest.mark.timeout(600)  # processes, one after the other
@pytest.mark.parametrize("equal", [[], ["--equal"]], ids=["other prompts", "equal prompts"])
def test_no_clip_is_lost_or_paid_twice_if_answers_get_lost(equal: list[str]) -> None:
    """
    Killed on the way or not, a batch with an account pays once and has every clip.

    With the key alone, each doubt is reported as charged or not. Another program of the account
    may send the same prompts: then a person may have to choose. The program judges this itself.
    """
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--number", "40", "--kills", "3", *equal],
        env={**os.environ, "PYTHONPATH": str(Path(fuhu_runway.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.count(" right\n") == 3
