"""The command that settles jobs in doubt, in this process."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from support.clients import QUICK_POLLS
from support.commands import GatewayThread, Run, gateway_in_thread, runner, settle_in

pytest.importorskip("cyclopts")

from fuhu_runway.cli import opening
from fuhu_runway.journal import Job, JobState, Journal, Plan
from fuhu_runway.testing import faults

PATH: Final = "clips/journal.db"
STATE: Final = "clips/simulated-gateway.jsonl"
BATCH: Final = ("batch", "p.txt", "--out", "clips")


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set up an empty folder with a file of prompts, and no pauses."""
    settle_in(tmp_path, monkeypatch)
    monkeypatch.setattr(opening, "SIMULATED_SPEED", 1000.0)
    monkeypatch.setattr(opening, "SIMULATED_POLLING", QUICK_POLLS)
    Path("p.txt").write_text("a kitten\n\na puppy\na foal\n")
    Path("clips").mkdir()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""
    return runner(capsys)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayThread]:
    """A gateway that the environment variables point to; its tasks take 50 ms."""
    with gateway_in_thread(monkeypatch, speed=1000, takes=50) as elsewhere:
        yield elsewhere


def doubts(**tasks: str | None) -> None:
    """Add a job in doubt for each key, with the task that its response named."""

    async def write() -> None:
        journal = Journal(PATH)
        for at, (key, task_id) in enumerate(tasks.items()):
            source = f"p.txt:{at + 1}"
            plan = Plan(key=key, fingerprint="f", endpoint="TextToVideo", source=source)
            await journal.plan(plan, 1.0 + at)
            await journal.step(key, JobState.SUBMITTING, 10.0)
            await journal.step(key, JobState.IN_DOUBT, 11.0, error="NoReply", task_id=task_id)
        await journal.aclose()

    asyncio.run(write())


def known() -> dict[str, Job]:
    """Return all jobs in the journal, by their keys."""

    async def read() -> dict[str, Job]:
        journal = Journal(PATH)
        try:
            return {job.key: job for job in await journal.jobs()}
        finally:
            await journal.aclose()

    return asyncio.run(read())


def states() -> dict[str, str]:
    """Return the state of each job."""
    return {key: job.state.value for key, job in known().items()}


# What is shown


def test_a_job_in_doubt_shows_where_it_came_from(run: Run, gateway: GatewayThread) -> None:
    """Its line of the input, when it was sent, and the task, for people and for programs."""
    gateway.simulator.fault("submit", faults.drop_after_accepting())
    assert run(*BATCH, "--in-flight", "1").code == 3
    done = run("jobs", PATH, "--state", "in-doubt")
    (row,) = json.loads(run("jobs", PATH, "--state", "in-doubt", "--json").out)["jobs"]
    assert row["source"] == "p.txt:1"
    assert row["submitted_at"] is not None
    assert f"{row['key'][:10]}  p.txt:1  in doubt" in done.out
    assert "kitten" not in done.out + done.err
    lines = [json.loads(line) for line in Path("clips/results.jsonl").read_text().splitlines()]
    assert {line["key"] for line in lines} == known().keys()
    assert [line["prompt"] for line in lines if line["key"] == row["key"]] == ["a kitten"]


def test_jobs_offers_what_can_be_done_at_once(run: Run) -> None:
    """Deciding for all is offered if there are several jobs, with the options for the gateway."""
    doubts(a=None, b="t-1")
    assert "--all-not-accepted" not in run("jobs", PATH).err
    doubts(c=None)
    Path(STATE).touch()
    done = run("jobs", PATH)
    assert f"fuhu-runway resolve {PATH} --all-not-accepted" in done.err
    assert f"fuhu-runway reconcile {PATH} --simulate" in done.err


# Many keys


def test_many_jobs_are_settled_at_once(run: Run) -> None:
    """Each key is one job, however often and by whichever name it is given."""
    doubts(a1=None, b2=None, c3=None)
    done = run("resolve", PATH, "a1", "b", "b2", "--not-accepted", "--json")
    assert (done.code, done.err) == (0, "")
    assert [job["key"] for job in json.loads(done.out)["jobs"]] == ["a1", "b2"]
    assert states() == {"a1": "planned", "b2": "planned", "c3": "in doubt"}


def test_many_jobs_are_found_at_once(run: Run, gateway: GatewayThread) -> None:
    """With --found, each job becomes the task that its response named."""
    assert run(*BATCH).code == 0
    first, second, _ = (task.task_id for task in gateway.call(lambda one: one.tasks))
    doubts(a=first, b=second)
    assert run("resolve", PATH, "a", "b", "--found").code == 0
    assert [known()[key].task_id for key in "ab"] == [first, second]


def test_one_unknown_task_changes_nothing(run: Run, gateway: GatewayThread) -> None:
    """If the gateway does not know one of the tasks, all jobs stay in doubt."""
    assert run(*BATCH).code == 0
    doubts(a=gateway.call(lambda one: one.tasks[0].task_id), b="no-such-task")
    assert run("resolve", PATH, "a", "b", "--found").code == 5
    assert [states()[key] for key in "ab"] == ["in doubt"] * 2


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["--found"], "The key of the job is missing."),
        (["--not-accepted"], "The key of the job is missing."),
        (["a", "--all-not-accepted"], "--all-not-accepted takes no keys."),
        (["a", "b", "--task-id", "t"], "A task belongs to one job."),
        (["a", "--all-not-accepted", "--found"], "exactly one of"),
        ([], "exactly one of"),
        (["--simulate"], "exactly one of"),
        (["a", "--task-id", "t", "--simulate"], "belongs to a real gateway"),
    ],
)
def test_a_wrong_resolve_changes_nothing(run: Run, tokens: list[str], message: str) -> None:
    """It exits with 2 and says what is wrong, and the jobs stay in doubt."""
    doubts(a=None, b=None)
    done = run("resolve", PATH, *tokens)
    assert (done.code, done.out, message in done.err) == (2, "", True)
    assert set(states().values()) == {"in doubt"}
    assert not Path(STATE).exists()


# All at once


def test_all_are_settled_without_a_question(run: Run) -> None:
    """With --yes, each job is shown; those whose response named a task stay in doubt."""
    doubts(a=None, b="t-1", c=None)
    done = run("resolve", PATH, "--all-not-accepted", "--yes")
    assert done.code == 0
    assert states() == {"a": "planned", "b": "in doubt", "c": "planned"}
    assert "1 job stays in doubt: a response named the task." in done.err
    assert "a  p.txt:1  in doubt" in done.err


def test_what_is_settled_at_once_is_shown_first(run: Run) -> None:
    """Without --yes, the jobs are listed, the error says what it may cost, and nothing changes."""
    doubts(a=None)
    done = run("resolve", PATH, "--all-not-accepted")
    listed, refused = done.err.splitlines()
    assert (done.code, listed.startswith("a  p.txt:1  in doubt")) == (2, True)
    assert "it will be paid for twice" in refused
    assert refused.endswith("add --yes.")
    assert states() == {"a": "in doubt"}


def test_without_a_doubt_nothing_is_asked(run: Run) -> None:
    """If no job is in doubt, the command says that nothing was changed."""
    Path(PATH).touch()
    done = run("resolve", PATH, "--all-not-accepted")
    assert (done.code, done.out, done.err) == (0, "", "Nothing was changed.\n")
