"""The commands that read and mend journals, in this process."""

import asyncio
import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import QUICK_POLLS
from support.commands import (
    Elsewhere,
    Run,
    gateway_elsewhere,
    is_clip,
    pressed,
    runner,
    settle_in,
)

pytest.importorskip("cyclopts")

import fuhu_runway
from fuhu_runway import Client, errors
from fuhu_runway.cli import batch as cli_batch
from fuhu_runway.cli import journal as cli_journal
from fuhu_runway.journal import Job, JobState, Journal, Plan
from fuhu_runway.testing import faults

PROMPT = "a secret kitten"
PATH = "clips/journal.db"
MARK = "0123456789abcdef" * 4
BATCH = ("batch", "prompts.txt", "--out", "clips")


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set up an empty folder with a file of prompts, and no pauses."""
    settle_in(tmp_path, monkeypatch)
    monkeypatch.setattr(cli_batch, "SIMULATED_SPEED", 1000.0)
    monkeypatch.setattr(cli_batch, "SIMULATED_POLLING", QUICK_POLLS)
    Path("prompts.txt").write_text(f"{PROMPT}\n{PROMPT}\nanother\n")
    Path("clips").mkdir()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""
    return runner(capsys)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    """A gateway that the environment leads to; its tasks take a twentieth of a second."""
    with gateway_elsewhere(monkeypatch, speed=1000, takes=50) as elsewhere:
        yield elsewhere


def write_down(*steps: JobState, key: str = f"{MARK}:1", **changes: Any) -> None:
    """Add a job to the journal that went these steps."""

    async def write() -> None:
        journal = Journal(PATH)
        custom_id = key[3:] if key.startswith("id:") else None
        plan = Plan(key=key, fingerprint=MARK, endpoint="TextToVideo", custom_id=custom_id)
        await journal.plan(plan, 1.0)
        for number, state in enumerate(steps, 1):
            last = changes if number == len(steps) else {}
            await journal.step(key, state, 1.0 + number, **last)
        await journal.aclose()

    asyncio.run(write())


def known() -> list[Job]:
    """Return all that the journal knows."""

    async def read() -> list[Job]:
        journal = Journal(PATH)
        try:
            return await journal.jobs()
        finally:
            await journal.aclose()

    return asyncio.run(read())


def doubt(**options: Any) -> None:
    """Add a job in doubt."""
    write_down(JobState.SUBMITTING, JobState.IN_DOUBT, error="NoReply", **options)


def submitted(gateway: Elsewhere) -> int:
    """Return how many tasks were paid for."""
    count: int = gateway.ask(lambda one: one.submitted)
    return count


# jobs


def test_jobs_shows_a_row_for_each(run: Run, gateway: Elsewhere) -> None:
    """Key, state, points, time and task are a line, and equal requests stay apart."""
    run(*BATCH)
    done = run("jobs", PATH)
    head, *rows, counts = done.out.splitlines()
    assert (done.code, done.err, counts) == (0, "", "3 saved")
    assert head.split() == ["key", "state", "points", "changed", "task,", "error"]
    assert sorted(len(row.split()[0]) for row in rows) == [10, 10, 12]
    for row in rows:
        assert re.fullmatch(r"[0-9a-f]{10}(:2)? +saved +320 +\d\d-\d\d \d\d:\d\d +[0-9a-f-]+", row)
        assert len(row) <= 80
    assert PROMPT not in done.out


def test_jobs_tells_what_to_do_about_doubts(run: Run) -> None:
    """Each way out is printed as a command, with the journal's own path in it."""
    doubt()
    write_down(JobState.SUBMITTING, key="id:shot 7")
    done = run("jobs", PATH)
    assert done.code == 0
    assert done.out.splitlines()[-1] == "2 in doubt"
    assert f"fuhu-runway resolve {PATH} KEY --task-id ID" in done.err
    assert f"fuhu-runway resolve {PATH} KEY --not-accepted" in done.err


def test_jobs_shows_the_task_of_a_doubt(run: Run) -> None:
    """A job in doubt whose answer named a task shows it, and the short way to settle it."""
    doubt(task_id="t-1")
    write_down(JobState.SUBMITTING, key="id:shot 7")
    done = run("jobs", PATH)
    assert re.search(r"^0123456789 +in doubt .* t-1 NoReply$", done.out, re.MULTILINE)
    assert f"It is the task that its row shows: fuhu-runway resolve {PATH} KEY --found" in done.err
    assert f"fuhu-runway resolve {PATH} KEY --task-id ID" in done.err
    (row, _) = json.loads(run("jobs", PATH, "--json").out)["jobs"]
    assert (row["state"], row["task_id"]) == ("in doubt", "t-1")


def test_jobs_without_a_named_task_do_not_offer_one(run: Run) -> None:
    """The short way is shown only if a row has a task."""
    doubt()
    assert "--found" not in run("jobs", PATH).err


def overwrite(setting: str) -> None:
    """Damage every row."""
    with contextlib.closing(sqlite3.connect(PATH, isolation_level=None)) as db:
        db.execute(f"UPDATE job SET {setting}")  # noqa: S608


@pytest.mark.parametrize("at", ["1e300", "9e999", "-1e300", "-1", "32500000001"])
def test_an_impossible_instant_is_shown_as_unknown(run: Run, at: str) -> None:
    """A damaged journal can be read, and the instants that can be are shown."""
    doubt()
    overwrite(f"planned_at = {at}, submitted_at = {at}, accepted_at = {at}")
    done = run("jobs", PATH)
    assert (done.code, " unknown " in done.out) == (0, True)
    overwrite("submitted_at = 32500000000")
    assert "unknown" not in run("jobs", PATH).out
    (row,) = json.loads(run("jobs", PATH, "--json").out)["jobs"]
    assert (row["planned_at"], row["accepted_at"]) == (None, None)
    assert row["submitted_at"] == "2999-11-19T09:46:40+00:00"


def test_a_state_that_is_none_is_an_error(run: Run) -> None:
    """A damaged word is named, and nothing is shown in its place."""
    doubt()
    overwrite("state = 'lost'")
    done = run("jobs", PATH)
    assert done.code not in {0, 70}
    assert "the state of a job is 'lost'" in done.err


# jobs that may only be read


@contextlib.contextmanager
def read_only(*paths: str) -> Iterator[None]:
    """Take away what it takes to write, also from root."""
    is_root = os.geteuid() == 0
    for path in paths:
        Path(path).chmod(0o555)
    try:
        if is_root:
            os.seteuid(65534)
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for path in paths:
            Path(path).chmod(0o755)


@pytest.fixture
def open_place(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that each user can enter, and be in it."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "clips").mkdir()
        os.chdir(place)
        yield place
        os.chdir(before)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("paths", [["clips", PATH], ["clips"], [PATH]])
@pytest.mark.usefixtures("open_place")
def test_jobs_shows_what_may_only_be_read(run: Run, paths: list[str]) -> None:
    """On a read-only disk a closed journal is shown, and nothing is left beside it."""
    doubt()
    Path(PATH).chmod(0o644)
    with read_only(*paths):
        done = run("jobs", PATH)
        found = sorted(file.name for file in Path("clips").iterdir())
    assert (done.code, done.out.splitlines()[-1]) == (0, "1 in doubt")
    assert found == ["journal.db"]


LEFT_OPEN = """
import asyncio, sys
from fuhu_runway.journal import Journal, JobState, Plan

async def main():
    journal = Journal(sys.argv[1])
    await journal.plan(Plan(key="k", fingerprint="f", endpoint="TextToVideo"), 1.0)
    await journal.step("k", JobState.SUBMITTING, 2.0)
    print("open", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


@contextlib.contextmanager
def left_open() -> Iterator["subprocess.Popen[str]"]:
    """Open the journal in another process."""
    root = Path(fuhu_runway.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", LEFT_OPEN, PATH],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.usefixtures("open_place")
def test_jobs_shows_what_a_crash_left_on_a_read_only_disk(run: Run) -> None:
    """The log is read as well; without it the file alone is refused."""
    with left_open() as process:
        process.kill()
    for name in (PATH, f"{PATH}-wal"):
        Path(name).chmod(0o644)
    with read_only("clips", PATH, f"{PATH}-wal"):
        done = run("jobs", PATH)
    assert (done.code, done.out.splitlines()[-1]) == (0, "1 in doubt")
    Path(f"{PATH}-wal").unlink()
    with read_only("clips", PATH):
        done = run("jobs", PATH)
    assert done.code != 0
    assert "is a copy without its log" in done.err


@pytest.mark.usefixtures("open_place")
def test_jobs_is_refused_while_a_batch_runs(run: Run) -> None:
    """Another process has it, on a read-only disk as well: that is said, and nothing is shown."""
    with left_open() as process:
        for paths in ([], ["clips", PATH]):
            with read_only(*paths) if paths else contextlib.nullcontext():
                done = run("jobs", PATH)
            assert (done.code != 0, done.out) == (True, "")
            assert "Another process has the journal 'journal.db' open." in done.err
        process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.usefixtures("open_place")
def test_what_may_not_be_read_is_an_error(run: Run) -> None:
    """A journal of another user that is not shared cannot be shown."""
    doubt()
    Path(PATH).chmod(0o600)
    with read_only("clips"):
        done = run("jobs", PATH)
    assert (done.code not in {0, 70}, done.out) == (os.geteuid() == 0, "")
    assert "'journal.db' cannot be used" in done.err


def test_what_is_no_journal_is_not_copied(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A film given by mistake is refused as it is, however large it may be."""
    monkeypatch.setattr(cli_journal, "TemporaryDirectory", None)
    Path(PATH).write_bytes(b"film" * 1000)
    done = run("jobs", PATH)
    assert (done.code not in {0, 70}, done.out) == (True, "")
    assert "file is not a database" in done.err


@pytest.mark.parametrize("at", ["1e300", "-1e300", "9e999", "-9e999"])
def test_impossible_instants_cost_no_clip(run: Run, gateway: Elsewhere, at: str) -> None:
    """A paid clip is fetched whatever a damaged journal says of when it was paid for."""
    leave_open(run, gateway)
    overwrite(f"planned_at = {at}, submitted_at = {at}, accepted_at = {at}")
    assert run("resume", PATH, "--out", "found").code == 0


def test_jobs_may_be_chosen_by_state(run: Run) -> None:
    """One state or several pick their rows; the counts are of all."""
    doubt()
    write_down(key="id:shot 7")
    write_down(
        *(JobState.SUBMITTING, JobState.ACCEPTED, JobState.FAILED),
        key="id:shot\x1b8",
        task_id="t",
        points=320.0,
        refunded=1,
        error="TaskFailed",
    )
    _, row, counts = run("jobs", PATH, "--state", "planned").out.splitlines()
    assert row.split()[:3] == ["shot", "7", "planned"]
    assert counts == "1 planned, 1 failed, 1 in doubt"
    done = run("jobs", PATH, "--state", "failed", "--state", "in-doubt")
    assert len(done.out.splitlines()) == 4
    assert re.search(r"^shot 8 +failed +\(320\) .*TaskFailed$", done.out, re.MULTILINE)


def test_jobs_in_json(run: Run) -> None:
    """One object has the counts and every job with the keys of the page, times in ISO 8601."""
    doubt()
    done = run("jobs", PATH, "--json")
    told = json.loads(done.out)
    (row,) = told["jobs"]
    assert (told["counts"], done.err) == ({"in doubt": 1}, "")
    assert row.keys() == cli_journal.JOB_KEYS.keys()
    assert (row["state"], row["submitted_at"]) == ("in doubt", "1970-01-01T00:00:02+00:00")


def test_an_empty_journal_has_no_jobs(run: Run) -> None:
    """A journal without any planned job is reported as empty."""
    Path(PATH).touch()
    assert run("jobs", PATH).out.splitlines()[-1] == "no jobs"


@pytest.mark.parametrize(
    "tokens",
    [
        ["jobs", "no.db"],
        ["resume", "no.db", "--out", "found"],
        ["resolve", "no.db", "k", "--not-accepted"],
        ["forget", "no.db", "k"],
    ],
)
def test_a_journal_that_is_not_there_is_not_made(run: Run, tokens: list[str]) -> None:
    """A wrong path is exit code 2, and stays empty."""
    done = run(*tokens)
    assert (done.code, done.out) == (2, "")
    assert "There is no journal 'no.db'" in done.err
    assert not Path("no.db").exists()


# resume


def test_one_bad_row_costs_no_other_clip(run: Run, gateway: Elsewhere) -> None:
    """A row that no task can be made of is one that is unfinished; the others are fetched."""
    leave_open(run, gateway)
    write_down(JobState.SUBMITTING, JobState.ACCEPTED, key="id:broken")
    done = run("resume", PATH, "--out", "found")
    assert (done.code, len(done.out.split())) == (5, 3)
    assert "1 paid for and not fetched (1 UsageError)." in done.err


def test_an_error_of_another_kind_costs_no_other_clip(
    run: Run, gateway: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect while one clip is fetched is reported as the end of that clip."""
    leave_open(run, gateway)
    attach, broken = Client.attach, iter([ZeroDivisionError])

    def attach_or_break(client: Client, job: Job) -> Any:
        for error in broken:
            raise error
        return attach(client, job)

    monkeypatch.setattr(Client, "attach", attach_or_break)
    done = run("resume", PATH, "--out", "found")
    assert (done.code, len(done.out.split())) == (5, 2)
    assert "1 paid for and not fetched (1 ZeroDivisionError)." in done.err


def test_two_jobs_with_one_task_are_one_clip(run: Run, gateway: Elsewhere) -> None:
    """A clip whose id two submits were answered with is fetched once, and saved for both."""
    leave_open(run, gateway)
    shared = known()[0].task_id
    write_down(JobState.SUBMITTING, JobState.ACCEPTED, key="id:twin", task_id=shared)
    done = run("resume", PATH, "--out", "found")
    assert (done.code, len(done.out.split())) == (0, 3)
    assert "3 of 3 clips" in done.err
    assert [job.state for job in known()] == [JobState.SAVED] * 4


def leave_open(run: Run, gateway: Elsewhere, failing: str = "none") -> None:
    """Run a batch whose tasks do not end before it does."""
    gateway.simulator.script(lambda body: True, takes=600)
    gateway.simulator.script(failing, then="fail", takes=600)
    assert run(*BATCH, "--timeout", "0.01").code == 4


def test_resume_fetches_what_is_paid_for(run: Run, gateway: Elsewhere) -> None:
    """Without the prompts each task comes to a file of its name, and nothing is submitted."""
    leave_open(run, gateway)
    Path("prompts.txt").unlink()
    done = run("resume", PATH, "--out", "found")
    files = done.out.split()
    assert (done.code, submitted(gateway)) == (0, 3)
    assert {Path(file).stem for file in files} == {job.task_id for job in known()}
    assert all(is_clip(file) for file in files)
    assert "3 of 3 clips are in found." in done.err
    assert {job.state for job in known()} == {JobState.SAVED}


def test_resume_in_json(run: Run, gateway: Elsewhere) -> None:
    """With --json stdout is one object, with the files in it."""
    leave_open(run, gateway)
    told = json.loads(run("resume", PATH, "--out", "found", "--json").out)
    assert told.keys() == cli_batch.SUMMARY_KEYS.keys()
    assert len(told["files"]) == told["saved"] == 3


def test_resume_counts_what_failed(run: Run, gateway: Elsewhere) -> None:
    """A task that failed meanwhile is exit code 1, with its points."""
    leave_open(run, gateway, failing="another")
    done = run("resume", PATH, "--out", "found")
    assert (done.code, len(done.out.split())) == (1, 2)
    assert "1 failed (1 TaskFailed)." in done.err
    assert "640 points spent, 320 given back" in done.err


def test_resume_tells_what_it_cannot_fetch(run: Run, gateway: Elsewhere) -> None:
    """A task that the gateway does not know is unfinished: exit code 5, and it stays accepted."""
    write_down(JobState.SUBMITTING, JobState.ACCEPTED, task_id="no-such-task")
    done = run("resume", PATH, "--out", "found")
    assert (done.code, done.out.strip()) == (5, "")
    assert "1 paid for and not fetched (1 NotFound)." in done.err
    assert known()[0].state is JobState.ACCEPTED


def test_resume_with_nothing_to_do(run: Run, gateway: Elsewhere) -> None:
    """A journal without open tasks is no mistake."""
    doubt()
    done = run("resume", PATH, "--out", "found")
    assert (done.code, done.out, done.err) == (0, "", "There is nothing to fetch.\n")


def test_resume_may_be_stopped(run: Run, gateway: Elsewhere) -> None:
    """Ctrl-C leaves the tasks as they are, and the same command goes on."""
    leave_open(run, gateway)
    gateway.simulator.fault("feed", faults.Hang())
    polls = len(gateway.ask(lambda one: one.requests))
    with pressed(lambda: len(gateway.ask(lambda one: one.requests)) > polls):
        done = run("resume", PATH, "--out", "found")
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[-1].endswith("Continue with the same command.")
    assert run("resume", PATH, "--out", "found").code == 0


def test_simulated_journals_can_be_tried_as_well(run: Run) -> None:
    """With --simulate the gateway comes back with its tasks, and they are fetched."""
    assert run(*BATCH, "--simulate", "--timeout", "0.001").code == 4
    assert run("resume", PATH, "--out", "found").code == 2
    done = run("resume", PATH, "--out", "found", "--simulate")
    assert (done.code, len(done.out.split())) == (0, 3)


# resolve


def test_a_doubt_becomes_a_task(run: Run, gateway: Elsewhere) -> None:
    """With the id that a person found the batch goes on, and pays no second time."""
    gateway.simulator.fault("submit", faults.drop_after_accepting())
    assert run(*BATCH, "--in-flight", "1").code == 3
    lost = gateway.ask(lambda one: one.tasks[0].task_id)
    (key,) = [job.key for job in known() if job.state is JobState.IN_DOUBT]
    done = run("resolve", PATH, key[:10], "--task-id", lost)
    assert (done.code, done.err) == (0, "The batch's own command goes on with it.\n")
    assert re.search(rf"accepted +[\d-]+ [\d:]+ +{lost}", done.out)
    assert (run(*BATCH).code, submitted(gateway)) == (0, 3)
    assert len(list(Path("clips").glob("*.mp4"))) == 3


def test_a_doubt_becomes_the_task_that_its_answer_named(run: Run, gateway: Elsewhere) -> None:
    """With --found the id in the row is checked and taken, and nothing has to be typed."""
    assert run(*BATCH).code == 0
    task_id = gateway.ask(lambda one: one.tasks[0].task_id)
    doubt(task_id=task_id)
    done = run("resolve", PATH, MARK, "--found")
    assert (done.code, done.err) == (0, "The batch's own command goes on with it.\n")
    assert re.search(rf"accepted +[\d-]+ [\d:]+ +{task_id}", done.out)


def test_a_named_task_that_the_gateway_does_not_know_changes_nothing(
    run: Run, gateway: Elsewhere
) -> None:
    """The gateway is asked first; the job stays in doubt and keeps what its answer named."""
    doubt(task_id="no-such-task")
    done = run("resolve", PATH, MARK, "--found")
    assert (done.code, "task_not_exist" in done.err) == (5, True)
    (job,) = known()
    assert (job.state, job.task_id) == (JobState.IN_DOUBT, "no-such-task")


def test_a_doubt_without_a_task_cannot_be_found(run: Run, gateway: Elsewhere) -> None:
    """Where no answer named one, the id has to be typed."""
    doubt()
    done = run("resolve", PATH, MARK, "--found")
    assert (done.code, "Its answer named no task." in done.err) == (2, True)
    assert (known()[0].state, gateway.ask(lambda one: one.requests)) == (JobState.IN_DOUBT, ())


def test_a_named_task_goes_when_it_was_not_accepted(run: Run) -> None:
    """What is submitted again does not keep the id of what was not."""
    doubt(task_id="t-1")
    assert run("resolve", PATH, MARK, "--not-accepted").code == 0
    assert (known()[0].state, known()[0].task_id) == (JobState.PLANNED, None)


def test_a_doubt_may_be_submitted_again(run: Run) -> None:
    """What a person knows was not accepted is planned anew, which needs no key and no gateway."""
    doubt()
    done = run("resolve", PATH, "0123456789", "--not-accepted", "--json")
    assert (done.code, json.loads(done.out)["state"]) == (0, "planned")
    assert known()[0].state is JobState.PLANNED


def test_an_id_that_is_none_changes_nothing(run: Run, gateway: Elsewhere) -> None:
    """The gateway is asked first; what it does not know stays in doubt."""
    doubt()
    done = run("resolve", PATH, MARK, "--task-id", "no-such-task")
    assert (done.code, "task_not_exist" in done.err) == (5, True)
    assert known()[0].state is JobState.IN_DOUBT


def test_a_task_belongs_to_one_job(run: Run, gateway: Elsewhere) -> None:
    """The id of another job is refused, before anybody is asked."""
    doubt()
    write_down(JobState.SUBMITTING, JobState.ACCEPTED, key="id:shot", task_id="t-1")
    done = run("resolve", PATH, MARK, "--task-id", "t-1")
    assert (done.code, "Another job has this task." in done.err) == (2, True)
    assert gateway.ask(lambda one: one.requests) == ()


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        ([f"{MARK}:1"], "Exactly one of --found"),
        ([f"{MARK}:1", "--task-id", "t", "--not-accepted"], "Exactly one of --found"),
        ([f"{MARK}:1", "--task-id", "t", "--found"], "Exactly one of --found"),
        ([f"{MARK}:1", "--found", "--not-accepted"], "Exactly one of --found"),
        ([f"{MARK}:1", "--found", "--not-accepted", "--task-id", "t"], "Exactly one of --found"),
        (["0123", "--not-accepted"], "2 jobs begin with this key."),
        (["f", "--not-accepted"], "No job begins with this key."),
        (["", "--not-accepted"], "No job begins with this key."),
        (["0123456789:2", "--not-accepted"], "The job is planned."),
        (["0123456789", "--task-id", "t"], "There is no key."),
    ],
)
def test_a_wrong_resolve_changes_nothing(run: Run, tokens: list[str], told: str) -> None:
    """It exits with 2, in one line, and the doubt stays."""
    doubt()
    write_down(key=f"{MARK}:2")
    done = run("resolve", PATH, *tokens)
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert [job.state for job in known()] == [JobState.IN_DOUBT, JobState.PLANNED]


# forget


@pytest.mark.parametrize("name", ["shot 7", "id:shot", "shot", "id:shot 7"])
def test_a_job_may_be_forgotten(run: Run, name: str) -> None:
    """Its row is gone, by its own name, its key, or the start of either."""
    write_down(key="id:shot 7")
    doubt()
    done = run("forget", PATH, name)
    assert (done.code, done.out.split()[:3]) == (0, ["shot", "7", "planned"])
    assert [job.key for job in known()] == [f"{MARK}:1"]


@pytest.mark.parametrize(
    "steps",
    [
        [JobState.SUBMITTING],
        [JobState.SUBMITTING, JobState.IN_DOUBT],
        [JobState.SUBMITTING, JobState.ACCEPTED],
        [JobState.SUBMITTING, JobState.ACCEPTED, JobState.FINISHED],
    ],
)
def test_what_may_be_paid_for_is_not_forgotten_by_accident(run: Run, steps: list[JobState]) -> None:
    """A job whose clip is, or may be, paid for and not here needs --force."""
    write_down(*steps, task_id="t-1")
    done = run("forget", PATH, MARK)
    assert (done.code, "a paid clip would be lost" in done.err, len(known())) == (2, True, 1)
    assert (run("forget", PATH, MARK, "--force").code, known()) == (0, [])


async def test_the_journal_forgets_only_what_it_knows(tmp_path: Path) -> None:
    """Forgetting twice is an error that names the key and the money."""
    journal = Journal(tmp_path / "j.db")
    await journal.plan(Plan(key="k", fingerprint=MARK, endpoint="TextToVideo"), 1.0)
    await journal.forget("k")
    assert await journal.find("k") is None
    with pytest.raises(errors.JournalError, match="no job 'k'"):
        await journal.forget("k")
    await journal.aclose()


def test_a_single_job_has_a_short_name() -> None:
    """What was submitted outside of a batch stays apart as well."""
    job = Job(
        key="single:9f6243e5-3ab8", state=JobState.PLANNED, endpoint="ActOne", fingerprint=MARK
    )
    assert cli_journal.mark_of(job) == "single:9f6243e5-3"
