"""A worker whose disk is full, and another one that is not."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from support.commands import (
    GatewayThread,
    gateway_in_thread,
    is_clip,
    pressed,
    read_until,
    runner,
    settle_in,
)

pytest.importorskip("cyclopts")
pytest.importorskip("fuhu_runway.contrib.fleet")
pytest.importorskip("resource", reason="Windows has no limit for the size of files")

import fuhu_runway

LIMITED = """
import resource
import sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a clip is larger
from fuhu_runway.cli.app import main
sys.exit(main(["fleet", "work", "--out", "clips", "--lease", "1", "--grace", "1"]))
"""


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayThread]:
    """A gateway that the environment variables point to; its tasks take 50 ms."""
    settle_in(tmp_path, monkeypatch)
    with gateway_in_thread(monkeypatch, speed=1000, takes=50) as elsewhere:
        yield elsewhere


def one(url: str, query: str) -> object:
    """Return the first value that a query finds; None if there is none."""
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()  # type: ignore[call-overload]
    return row and row[0]


def test_a_clip_that_one_disk_has_no_room_for_is_saved_by_another_worker(
    gateway: GatewayThread,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It stays paid for once; the first worker says what is wrong, and the second one saves it."""
    monkeypatch.setenv("FUHU_DATABASE_URL", database_url)
    run = runner(capsys)
    run("fleet", "init")
    Path("prompts.txt").write_text("a kitten\n")
    run("fleet", "enqueue", "prompts.txt")
    home = str(Path(fuhu_runway.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", LIMITED],
        env={**os.environ, "PYTHONPATH": home},
        stderr=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stderr is not None
        line = read_until(worker.stderr, "warning: Job ")
        worker.send_signal(signal.SIGINT)
        worker.communicate()
    assert "File too large" in line
    assert one(database_url, "SELECT state FROM fuhu_job") == "finished"
    with pressed(lambda: one(database_url, "SELECT state FROM fuhu_job") == "saved"):
        assert run("fleet", "work", "--grace", "1").code == 130
    (clip,) = Path("clips").glob("*.mp4")
    assert is_clip(str(clip))
    assert gateway.call(lambda simulator: simulator.submitted) == 1
