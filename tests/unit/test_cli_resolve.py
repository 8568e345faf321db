"""The command that settles jobs in doubt, in this process."""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest
from support.clients import QUICK_POLLS
from support.commands import GatewayThread, Run, gateway_in_thread, pressed, runner, settle_in

pytest.importorskip("cyclopts")

from fuhu_runway import Client
from fuhu_runway.cli import batch as cli_batch
from fuhu_runway.cli import options
from fuhu_runway.items import Item
from fuhu_runway.journal import Job, JobState, Journal, Plan
from fuhu_runway.models import Generation, MotionVector, TextToVideo
from fuhu_runway.testing import Simulator, faults

PATH: Final = "clips/journal.db"
STATE: Final = "clips/simulated-gateway.jsonl"
BATCH: Final = ("batch", "p.txt", "--out", "clips")


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set up an empty folder with a file of prompts, and no pauses."""
    settle_in(tmp_path, monkeypatch)
    monkeypatch.setattr(cli_batch, "SIMULATED_SPEED", 1000.0)
    monkeypatch.setattr(options, "SIMULATED_POLLING", QUICK_POLLS)
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
    """Deciding for all is offered if there are several, and a look if the gateway is simulated."""
    doubts(a=None, b="t-1")
    assert "--all-not-accepted" not in run("jobs", PATH).err
    doubts(c=None)
    Path(STATE).touch()
    done = run("jobs", PATH)
    assert f"fuhu-runway resolve {PATH} --all-not-accepted" in done.err
    assert f"fuhu-runway resolve {PATH} --simulate" in done.err


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
        (["--simulate"], "This folder has no simulated gateway."),
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
    assert "1 of the jobs stay in doubt: a response named their task." in done.err
    assert "a  p.txt:1  in doubt" in done.err


@attrs.frozen
class Keyboard:
    """A terminal at which something was typed."""

    typed: int

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.typed


@pytest.mark.parametrize(
    ("typed", "after"),
    [("yes\n", "planned"), (" YES \n", "planned"), ("y\n", "in doubt"), ("", "in doubt")],
)
def test_a_person_is_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch, typed: str, after: str
) -> None:
    """Only yes is a yes; the question says what it may cost."""
    doubts(a=None)
    reading, writing = os.pipe()
    os.write(writing, typed.encode())
    os.close(writing)
    monkeypatch.setattr(sys, "stdin", Keyboard(reading))
    done = run("resolve", PATH, "--all-not-accepted")
    os.close(reading)
    assert (done.code, "it will be paid for twice" in done.err) == (0, True)
    assert states() == {"a": after}
    assert done.err.splitlines()[-1] == (
        "Run the batch command again to continue." if after == "planned" else "Nothing was changed."
    )


def test_ctrl_c_ends_the_question(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It exits with 130 at once, what is typed later is ignored, and the job stays in doubt."""
    doubts(a=None)
    reading, writing = os.pipe()
    asked = threading.Event()

    class Waiting(Keyboard):
        def fileno(self) -> int:
            asked.set()
            return self.typed

    monkeypatch.setattr(sys, "stdin", Waiting(reading))
    with pressed(asked.is_set):
        done = run("resolve", PATH, "--all-not-accepted")
    assert (done.code, states()) == (130, {"a": "in doubt"})
    (reader,) = [one for one in threading.enumerate() if one.name == "stdin"]
    os.write(writing, b"yes\n")
    reader.join()
    os.close(reading)
    os.close(writing)
    assert states() == {"a": "in doubt"}


def test_a_script_has_to_say_yes(run: Run) -> None:
    """Without a terminal and without --yes, nothing changes."""
    doubts(a=None)
    done = run("resolve", PATH, "--all-not-accepted")
    assert (done.code, "then add --yes" in done.err) == (2, True)
    assert states() == {"a": "in doubt"}


def test_without_a_doubt_nothing_is_asked(run: Run) -> None:
    """If no job is in doubt, the command says that nothing was changed."""
    Path(PATH).touch()
    done = run("resolve", PATH, "--all-not-accepted")
    assert (done.code, done.out, done.err) == (0, "", "Nothing was changed.\n")


# A simulated gateway


def leave_doubts(*requests: Generation, lost: int) -> None:
    """Leave jobs in doubt: the gateway accepted the first *lost*, and never got the others."""

    async def work() -> None:
        journal = Journal(PATH)
        async with Simulator(speed=1000, points=None, state_file=STATE, seed=1) as gateway:
            if lost:
                gateway.fault("submit", faults.drop_after_accepting(), times=lost)
            gateway.fault("submit", faults.drop_before_accepting(), times=None)
            url = gateway.base_url
            async with Client(gateway.api_key, base_url=url, journal=journal) as client:
                items = [Item(request, source=f"p.txt:{n}") for n, request in enumerate(requests)]
                async for outcome in client.generate_many(items, in_flight=1):
                    assert outcome.is_in_doubt
        await journal.aclose()

    asyncio.run(work())


def by_source() -> dict[str | None, str | None]:
    """Return the task of each accepted job, and the state of each other one, by its line."""
    jobs = known().values()
    return {job.source: job.task_id or job.state.value for job in jobs}


def ids() -> list[str]:
    """Return the tasks in the state file, in the order of their submission."""
    return [task.task_id for task in Simulator(state_file=STATE).tasks]


def test_a_simulated_gateway_knows_what_it_accepted(run: Run) -> None:
    """Each doubt becomes its own task, or planned if there is none; no id has to be known."""
    moving = MotionVector(x=1.0)
    leave_doubts(
        TextToVideo("a kitten", motion=moving),
        TextToVideo("a kitten"),
        TextToVideo("a kitten"),
        TextToVideo("a kitten", seconds=5),
        lost=2,
    )
    done = run("resolve", PATH, "--simulate")
    assert done.code == 0
    first, second = ids()
    assert by_source() == {
        "p.txt:0": first,
        "p.txt:1": second,
        "p.txt:2": "planned",
        "p.txt:3": "planned",
    }


def test_a_simulated_gateway_settles_chosen_jobs(run: Run) -> None:
    """With keys, only these jobs are settled."""
    leave_doubts(TextToVideo("a kitten"), TextToVideo("a puppy"), lost=2)
    last = next(key for key, job in known().items() if job.source == "p.txt:1")
    assert run("resolve", PATH, last, "--simulate").code == 0
    assert by_source() == {"p.txt:0": "in doubt", "p.txt:1": ids()[1]}


def test_a_request_that_cannot_be_compared_leaves_a_doubt(run: Run) -> None:
    """If the gateway accepted something with fields of its own, earlier jobs may be meant."""
    leave_doubts(TextToVideo("a kitten", extra={"seed": 1}), TextToVideo("a puppy"), lost=1)
    done = run("resolve", PATH, "--simulate")
    assert "1 of the jobs stay in doubt" in done.err
    assert by_source() == {"p.txt:0": "in doubt", "p.txt:1": "planned"}


def test_tasks_of_other_jobs_are_left_alone(run: Run) -> None:
    """A task that another job has, or that was accepted before the doubt, is not taken for it."""
    assert run(*BATCH, "--simulate").code == 0
    kitten = next(job for job in known().values() if job.source == "p.txt:1")
    assert run("forget", PATH, kitten.key).code == 0
    leave_doubts(TextToVideo("a kitten"), TextToVideo("a calf"), lost=0)
    assert run("resolve", PATH, "--simulate").code == 0
    assert sorted(states().values()) == ["planned", "planned", "saved", "saved"]
