"""The demonstration of a fleet, with its own Postgres, gateway and workers as processes."""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from support.commands import Run, documented_keys, on_a_terminal, pressed, runner, settle_in

pytest.importorskip("cyclopts")
pytest.importorskip("fuhu_runway.contrib.fleet")

from fuhu_runway.cli import fleet_demo
from fuhu_runway.cli.fleet_demo import compare
from fuhu_runway.journal import Job, JobState
from fuhu_runway.testing import LedgerEntry


@pytest.fixture(autouse=True)
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder for temporary files, which has to be empty in the end."""
    settle_in(tmp_path, monkeypatch)
    monkeypatch.setattr(fleet_demo, "SPEED", 200.0)
    monkeypatch.setattr(fleet_demo, "LEASE", 1.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield folder
        assert list(folder.iterdir()) == []


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""
    return runner(capsys)


def test_nothing_is_paid_twice_or_lost_if_a_worker_is_killed(run: Run) -> None:
    """The ledger has each prompt once, and the journal accounts for each task."""
    done = run("fleet", "demo", "--prompts", "30")
    assert (done.code, "one worker was killed" in done.err) == (0, True)
    assert "30 prompts enqueued twice: 0 more jobs" in done.err
    rows = {line.rpartition("  ")[0].strip(): line.split() for line in done.out.splitlines()}
    assert any(line.split() == ["paid", "twice", "0"] for line in done.out.splitlines()), rows
    assert any(line.split() == ["lost", "0"] for line in done.out.splitlines()), rows


def test_the_result_may_be_json(run: Run, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a server of the user's own, the database is removed in the end."""

    def databases() -> set[object]:
        with psycopg.connect(postgres) as connection:
            return set(connection.execute("SELECT datname FROM pg_database").fetchall())

    monkeypatch.setenv("FUHU_DATABASE_URL", postgres)
    before = databases()
    done = run("fleet", "demo", "--prompts", "3", "--json")
    row = json.loads(done.out)
    assert row.keys() == documented_keys("A demonstration in JSON")
    assert (done.code, row["tasks"], row["paid_twice"], row["lost"]) == (0, 3, 0, 0)
    new = databases() - before
    while new & databases():  # those of tests that run at the same time go away, too
        time.sleep(0.1)


def test_ctrl_c_leaves_nothing(run: Run, left: Path) -> None:
    """Neither a process nor a folder is left when the demonstration is stopped."""
    with pressed(lambda: any(left.glob("fuhu-demo-*/clips/*.mp4"))):
        done = run("fleet", "demo")
    assert (done.code, done.out) == (130, "")
    assert "Nothing is left of the demonstration." in done.err


def test_a_worker_that_stops_unexpectedly_is_reported(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the last line of its output."""
    monkeypatch.setattr(fleet_demo, "IN_FLIGHT", 0)
    done = run("fleet", "demo")
    assert (done.code, done.out) == (2, "")
    assert "stopped unexpectedly: fuhu-runway: Invalid value" in done.err


def test_a_narrow_terminal_is_enough(run: Run) -> None:
    """On a terminal, the progress is one line that moves, whatever its width is."""
    with on_a_terminal(COLUMNS="30") as screen:
        assert run("fleet", "demo", "--prompts", "6").code == 0
    assert "6 of 6" in screen.getvalue()


# The result


def job(key: str, state: JobState, task_id: str | None = None) -> Job:
    """Return a row of the journal."""
    return Job(key=key, state=state, endpoint="TextToVideo", fingerprint=key, task_id=task_id)


def entry(task_id: str, prompt: str) -> LedgerEntry:
    """Return a task of the ledger."""
    return LedgerEntry(task_id=task_id, digest=prompt, prompt=prompt, accepted_at=1.0)


SAVED = job("a", JobState.SAVED, "1")
DOUBT = job("b", JobState.IN_DOUBT)


@pytest.mark.parametrize(
    ("jobs", "ledger", "clips", "paid_twice", "lost"),
    [
        ([SAVED, DOUBT], [entry("1", "a"), entry("2", "b")], 1, 0, 0),
        ([SAVED, DOUBT], [entry("1", "a")], 1, 0, 0),
        ([SAVED, DOUBT], [entry("1", "a"), entry("2", "a")], 1, 1, 0),
        ([SAVED, DOUBT], [entry("1", "a"), entry("2", "b"), entry("3", "c")], 1, 0, 1),
        ([SAVED, DOUBT], [entry("1", "a"), entry("2", "b")], 0, 0, 1),
        ([SAVED, job("b", JobState.ACCEPTED, "2")], [entry("1", "a"), entry("2", "b")], 1, 0, 1),
        ([SAVED], [entry("1", "a")], 1, 0, 1),
    ],
)
def test_the_ledger_is_the_judge(
    jobs: list[Job], ledger: list[LedgerEntry], clips: int, paid_twice: int, lost: int
) -> None:
    """A second task of a prompt is paid twice; what nothing accounts for is lost."""
    row = compare(2, jobs, ledger, clips)
    assert (row["paid_twice"], row["lost"]) == (paid_twice, lost)
