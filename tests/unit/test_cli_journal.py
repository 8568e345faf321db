"""The commands for journals, in this process."""

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
    GatewayThread,
    Run,
    documented_keys,
    gateway_in_thread,
    is_clip,
    pressed,
    runner,
    settle_in,
)

pytest.importorskip("cyclopts")

import fuhu_runway
from fuhu_runway import Client, errors
from fuhu_runway.cli import journal as cli_journal
from fuhu_runway.cli import opening
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
    monkeypatch.setattr(opening, "SIMULATED_SPEED", 1000.0)
    monkeypatch.setattr(opening, "SIMULATED_POLLING", QUICK_POLLS)
    Path("prompts.txt").write_text(f"{PROMPT}\n{PROMPT}\nanother\n")
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


def write_down(*steps: JobState, key: str = f"{MARK}:1", **changes: Any) -> None:
    """Add a job to the journal that has taken these steps."""

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
    """Return all jobs in the journal."""

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


def submitted(gateway: GatewayThread) -> int:
    """Return how many tasks were submitted."""
    count: int = gateway.call(lambda one: one.submitted)
    return count


# jobs


def test_jobs_shows_a_row_for_each(run: Run, gateway: GatewayThread) -> None:
    """Each job is a line with key, input, state, points, time and task; equal requests differ."""
    run(*BATCH)
    done = run("jobs", PATH)
    head, *rows, counts = done.out.splitlines()
    assert (done.code, done.err, counts) == (0, "", "3 saved")
    assert head.split() == ["key", "input", "state", "points", "sent", "task,", "error"]
    assert sorted(len(row.split()[0]) for row in rows) == [10, 10, 12]
    shown = r"[0-9a-f]{10}(:2)? +prompts\.txt:[123] +saved +320 +\d\d-\d\d \d\d:\d\d +[0-9a-f-]+"
    assert all(re.fullmatch(shown, row) for row in rows)
    assert sorted(row.split()[1] for row in rows) == [f"prompts.txt:{line}" for line in (1, 2, 3)]
    assert PROMPT not in done.out


def test_jobs_says_what_to_do_about_doubts(run: Run) -> None:
    """Each possible decision is printed as a command, with the path of the journal."""
    doubt()
    write_down(JobState.SUBMITTING, key="id:shot 7")
    done = run("jobs", PATH)
    assert done.code == 0
    assert done.out.splitlines()[-1] == "2 in doubt"
    assert f"fuhu-runway resolve {PATH} KEY --task-id ID" in done.err
    assert f"fuhu-runway resolve {PATH} KEY --not-accepted" in done.err


def test_jobs_shows_the_task_of_a_doubt(run: Run) -> None:
    """If the response of a job in doubt named a task, the row shows it, and --found is offered."""
    doubt(task_id="t-1")
    write_down(JobState.SUBMITTING, key="id:shot 7")
    done = run("jobs", PATH)
    assert re.search(r"^0123456789 +in doubt .* t-1 NoReply$", done.out, re.MULTILINE)
    assert (
        f"If the task in the row is the right one: fuhu-runway resolve {PATH} KEY --found"
        in done.err
    )
    assert f"fuhu-runway resolve {PATH} KEY --task-id ID" in done.err
    (row, _) = json.loads(run("jobs", PATH, "--json").out)["jobs"]
    assert (row["state"], row["task_id"]) == ("in doubt", "t-1")


def test_jobs_without_a_named_task_do_not_offer_one(run: Run) -> None:
    """--found is offered only if a row has a task."""
    doubt()
    assert "--found" not in run("jobs", PATH).err


def overwrite(setting: str) -> None:
    """Damage every row."""
    with contextlib.closing(sqlite3.connect(PATH, isolation_level=None)) as db:
        db.execute(f"UPDATE job SET {setting}")  # noqa: S608


@pytest.mark.parametrize("at", ["1e300", "9e999", "-1e300", "-1", "32500000001"])
def test_an_impossible_time_is_shown_as_unknown(run: Run, at: str) -> None:
    """A journal with impossible times can be read, and the valid times are shown."""
    doubt()
    overwrite(f"planned_at = {at}, submitted_at = {at}, accepted_at = {at}")
    done = run("jobs", PATH)
    assert (done.code, " unknown " in done.out) == (0, True)
    overwrite("submitted_at = 32500000000")
    assert "unknown" not in run("jobs", PATH).out
    (row,) = json.loads(run("jobs", PATH, "--json").out)["jobs"]
    assert (row["planned_at"], row["accepted_at"]) == (None, None)
    assert row["submitted_at"] == "2999-11-19T09:46:40+00:00"


def test_an_unknown_state_is_an_error(run: Run) -> None:
    """An unknown state in the journal is named in the error."""
    doubt()
    overwrite("state = 'lost'")
    done = run("jobs", PATH)
    assert done.code not in {0, 70}
    assert "the state of a job is 'lost'" in done.err


# Read-only journals


@contextlib.contextmanager
def read_only(*paths: str) -> Iterator[None]:
    """Remove the permission to write, even for root."""
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
    """Use a folder that every user can enter."""
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
def test_jobs_shows_a_read_only_journal(run: Run, paths: list[str]) -> None:
    """A closed journal on a read-only disk is shown, and no file is left beside it."""
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
    """The write-ahead log is read, too; the file without its log is refused."""
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
    """If another process has the journal open, that is the error, also on a read-only disk."""
    with left_open() as process:
        for paths in ([], ["clips", PATH]):
            with read_only(*paths) if paths else contextlib.nullcontext():
                done = run("jobs", PATH)
            assert (done.code != 0, done.out) == (True, "")
            assert "Another process has the journal 'journal.db' open." in done.err
        process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.usefixtures("open_place")
def test_an_unreadable_journal_is_an_error(run: Run) -> None:
    """A private journal of another user cannot be shown."""
    doubt()
    Path(PATH).chmod(0o600)
    with read_only("clips"):
        done = run("jobs", PATH)
    assert (done.code not in {0, 70}, done.out) == (os.geteuid() == 0, "")
    assert "'journal.db' cannot be used" in done.err


def test_another_file_is_an_error(run: Run) -> None:
    """A video given by mistake is refused."""
    Path(PATH).write_bytes(b"film" * 1000)
    done = run("jobs", PATH)
    assert (done.code not in {0, 70}, done.out) == (True, "")
    assert "file is not a database" in done.err


@pytest.mark.parametrize("at", ["1e300", "-1e300", "9e999", "-9e999"])
def test_impossible_times_lose_no_clip(run: Run, gateway: GatewayThread, at: str) -> None:
    """A paid clip is saved even if the times in a damaged journal are impossible."""
    leave_open(run, gateway)
    overwrite(f"planned_at = {at}, submitted_at = {at}, accepted_at = {at}")
    assert run("resume", PATH, "--out", "found").code == 0


def test_jobs_can_be_filtered_by_state(run: Run) -> None:
    """--state selects rows, and can be repeated; the counts include all jobs."""
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
    """One object has the counts, and every job with the documented keys and ISO 8601 times."""
    doubt()
    done = run("jobs", PATH, "--json")
    shown = json.loads(done.out)
    (row,) = shown["jobs"]
    assert (shown["counts"], done.err) == ({"in doubt": 1}, "")
    assert row.keys() == documented_keys("A job in JSON")
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
def test_a_missing_journal_is_not_created(run: Run, tokens: list[str]) -> None:
    """A wrong path exits with 2, and no file is created."""
    done = run(*tokens)
    assert (done.code, done.out) == (2, "")
    assert re.search("There is no journal 'no.db'", done.err)
    assert not Path("no.db").exists()


# resume


def test_one_bad_row_loses_no_other_clip(run: Run, gateway: GatewayThread) -> None:
    """A row without a task id counts as unfinished; the other clips are saved."""
    leave_open(run, gateway)
    write_down(JobState.SUBMITTING, JobState.ACCEPTED, key="id:broken")
    done = run("resume", PATH, "--out", "found")
    assert (done.code, len(done.out.split())) == (5, 3)
    assert "1 paid for but not saved (1 UsageError)." in done.err


def test_a_bug_loses_no_other_clip(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected error while saving one clip is reported for that clip."""
    leave_open(run, gateway)
    attach, broken = Client.attach, iter([ZeroDivisionError])

    def attach_or_break(client: Client, job: Job) -> Any:
        for error in broken:
            raise error
        return attach(client, job)

    monkeypatch.setattr(Client, "attach", attach_or_break)
    done = run("resume", PATH, "--out", "found")
    assert (done.code, len(done.out.split())) == (5, 2)
    assert "1 paid for but not saved (1 ZeroDivisionError)." in done.err


def test_two_jobs_with_one_task_are_one_clip(run: Run, gateway: GatewayThread) -> None:
    """If two jobs have the same task id, its clip is saved once, for both."""
    leave_open(run, gateway)
    shared = known()[0].task_id
    write_down(JobState.SUBMITTING, JobState.ACCEPTED, key="id:twin", task_id=shared)
    done = run("resume", PATH, "--out", "found")
    assert (done.code, len(done.out.split())) == (0, 3)
    assert "3 of 3 clips" in done.err
    assert [job.state for job in known()] == [JobState.SAVED] * 4


def leave_open(run: Run, gateway: GatewayThread, failing: str = "none") -> None:
    """Run a batch that times out before its tasks end."""
    gateway.simulator.script(lambda body: True, takes=600)
    gateway.simulator.script(failing, then="fail", takes=600)
    assert run(*BATCH, "--timeout", "0.01").code == 4


def test_resume_saves_what_is_paid_for(run: Run, gateway: GatewayThread) -> None:
    """Without the prompts, each clip is saved under its task id, and nothing is submitted."""
    leave_open(run, gateway)
    Path("prompts.txt").unlink()
    done = run("resume", PATH, "--out", "found")
    files = done.out.split()
    assert (done.code, submitted(gateway)) == (0, 3)
    assert {Path(file).stem for file in files} == {job.task_id for job in known()}
    assert all(is_clip(file) for file in files)
    assert "3 of 3 clips are in found." in done.err
    assert {job.state for job in known()} == {JobState.SAVED}


def test_resume_in_json(run: Run, gateway: GatewayThread) -> None:
    """With --json, stdout is one object that lists the files."""
    leave_open(run, gateway)
    row = json.loads(run("resume", PATH, "--out", "found", "--json").out)
    assert row.keys() == documented_keys("A batch in JSON")
    assert len(row["files"]) == row["saved"] == 3


def test_resume_counts_what_failed(run: Run, gateway: GatewayThread) -> None:
    """A task that failed meanwhile exits with 1, and its points are counted."""
    leave_open(run, gateway, failing="another")
    done = run("resume", PATH, "--out", "found")
    assert (done.code, len(done.out.split())) == (1, 2)
    assert "1 failed (1 TaskFailed)." in done.err
    assert "640 points spent, 320 refunded" in done.err


def test_resume_reports_what_it_cannot_save(run: Run, gateway: GatewayThread) -> None:
    """A task that the gateway does not know exits with 5, and its job stays accepted."""
    write_down(JobState.SUBMITTING, JobState.ACCEPTED, task_id="no-such-task")
    done = run("resume", PATH, "--out", "found")
    assert (done.code, done.out.strip()) == (5, "")
    assert "1 paid for but not saved (1 NotFound)." in done.err
    assert known()[0].state is JobState.ACCEPTED


def test_resume_with_nothing_to_do(run: Run, gateway: GatewayThread) -> None:
    """A journal without unfinished tasks is not an error."""
    doubt()
    done = run("resume", PATH, "--out", "found")
    assert (done.code, done.out, done.err) == (0, "", "There is nothing to save.\n")
    in_json = run("resume", PATH, "--out", "found", "--json")
    assert (in_json.code, json.loads(in_json.out)["total"]) == (0, 0)


def test_resume_can_be_stopped(run: Run, gateway: GatewayThread) -> None:
    """After Ctrl-C, the same command continues."""
    leave_open(run, gateway)
    gateway.simulator.fault("feed", faults.Hang())
    polls = len(gateway.call(lambda one: one.requests))
    with pressed(lambda: len(gateway.call(lambda one: one.requests)) > polls):
        done = run("resume", PATH, "--out", "found")
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[-1].endswith("Run the same command again to continue.")
    assert run("resume", PATH, "--out", "found").code == 0


def test_resume_works_with_a_simulated_gateway(run: Run) -> None:
    """With --simulate, the simulated gateway restores its tasks, and their clips are saved."""
    assert run(*BATCH, "--simulate", "--timeout", "0.001").code == 4
    assert run("resume", PATH, "--out", "found").code == 2
    done = run("resume", PATH, "--out", "found", "--simulate")
    assert (done.code, len(done.out.split())) == (0, 3)


# resolve


def test_a_doubt_becomes_a_task(run: Run, gateway: GatewayThread) -> None:
    """With the task id that a person found, the batch continues without paying again."""
    gateway.simulator.fault("submit", faults.drop_after_accepting())
    assert run(*BATCH, "--in-flight", "1").code == 3
    lost = gateway.call(lambda one: one.tasks[0].task_id)
    (key,) = [job.key for job in known() if job.state is JobState.IN_DOUBT]
    done = run("resolve", PATH, key[:10], "--task-id", lost)
    assert (done.code, done.err) == (0, "Run the batch command again to continue.\n")
    assert re.search(rf"accepted +[\d-]+ [\d:]+ +{lost}", done.out)
    assert (run(*BATCH).code, submitted(gateway)) == (0, 3)
    assert len(list(Path("clips").glob("*.mp4"))) == 3


def test_a_doubt_becomes_the_task_that_its_response_named(run: Run, gateway: GatewayThread) -> None:
    """With --found, the task id in the row is checked and used."""
    assert run(*BATCH).code == 0
    task_id = gateway.call(lambda one: one.tasks[0].task_id)
    doubt(task_id=task_id)
    done = run("resolve", PATH, MARK, "--found")
    assert (done.code, done.err) == (0, "Run the batch command again to continue.\n")
    assert re.search(rf"accepted +[\d-]+ [\d:]+ +{task_id}", done.out)


def test_a_named_task_that_the_gateway_does_not_know_changes_nothing(
    run: Run, gateway: GatewayThread
) -> None:
    """If the gateway does not know the task, the job stays in doubt and keeps the id."""
    doubt(task_id="no-such-task")
    done = run("resolve", PATH, MARK, "--found")
    assert (done.code, "task_not_exist" in done.err) == (5, True)
    (job,) = known()
    assert (job.state, job.task_id) == (JobState.IN_DOUBT, "no-such-task")


def test_a_doubt_without_a_task_cannot_be_found(run: Run, gateway: GatewayThread) -> None:
    """If no response named a task, --found is an error."""
    doubt()
    done = run("resolve", PATH, MARK, "--found")
    assert (done.code, "The response named no task." in done.err) == (2, True)
    assert (known()[0].state, gateway.call(lambda one: one.requests)) == (JobState.IN_DOUBT, ())


def test_not_accepted_removes_the_task_id(run: Run) -> None:
    """A job that will be submitted again does not keep the id of the former task."""
    doubt(task_id="t-1")
    assert run("resolve", PATH, MARK, "--not-accepted").code == 0
    assert (known()[0].state, known()[0].task_id) == (JobState.PLANNED, None)


def test_a_doubt_can_be_submitted_again(run: Run) -> None:
    """With --not-accepted, the job is planned again; that needs neither key nor gateway."""
    doubt()
    done = run("resolve", PATH, "0123456789", "--not-accepted", "--json")
    assert (done.code, json.loads(done.out)["jobs"][0]["state"]) == (0, "planned")
    assert known()[0].state is JobState.PLANNED


def test_an_unknown_task_id_changes_nothing(run: Run, gateway: GatewayThread) -> None:
    """If the gateway does not know the task, the job stays in doubt."""
    doubt()
    done = run("resolve", PATH, MARK, "--task-id", "no-such-task")
    assert (done.code, "task_not_exist" in done.err) == (5, True)
    assert known()[0].state is JobState.IN_DOUBT


def test_a_task_belongs_to_one_job(run: Run, gateway: GatewayThread) -> None:
    """The task id of another job is refused, before the gateway is polled."""
    doubt()
    write_down(JobState.SUBMITTING, JobState.ACCEPTED, key="id:shot", task_id="t-1")
    done = run("resolve", PATH, MARK, "--task-id", "t-1")
    assert (done.code, "This task belongs to another job." in done.err) == (2, True)
    assert gateway.call(lambda one: one.requests) == ()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([f"{MARK}:1"], "exactly one of --found"),
        ([f"{MARK}:1", "--task-id", "t", "--not-accepted"], "exactly one of --found"),
        ([f"{MARK}:1", "--task-id", "t", "--found"], "exactly one of --found"),
        ([f"{MARK}:1", "--found", "--not-accepted"], "exactly one of --found"),
        ([f"{MARK}:1", "--found", "--not-accepted", "--task-id", "t"], "exactly one of --found"),
        (["0123", "--not-accepted"], "2 jobs match this key."),
        (["f", "--not-accepted"], "No job matches this key."),
        (["", "--not-accepted"], "No job matches this key."),
        (["0123456789:2", "--not-accepted"], "The job is planned."),
        (["0123456789", "--task-id", "t"], "No API key was given."),
    ],
)
def test_a_wrong_resolve_changes_nothing(run: Run, tokens: list[str], message: str) -> None:
    """It exits with 2 and one line, and the job stays in doubt."""
    doubt()
    write_down(key=f"{MARK}:2")
    done = run("resolve", PATH, *tokens)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert [job.state for job in known()] == [JobState.IN_DOUBT, JobState.PLANNED]


# forget


@pytest.mark.parametrize("name", ["shot 7", "id:shot", "shot", "id:shot 7"])
def test_a_job_can_be_forgotten(run: Run, name: str) -> None:
    """The job is selected by its custom_id, its key, or the beginning of either."""
    write_down(key="id:shot 7")
    doubt()
    done = run("forget", PATH, name)
    assert (done.code, done.out.split()[:3]) == (0, ["shot", "7", "planned"])
    assert [job.key for job in known()] == [f"{MARK}:1"]
    row = json.loads(run("forget", PATH, MARK, "--force", "--json").out)
    assert (row["key"], known()) == (f"{MARK}:1", [])


@pytest.mark.parametrize(
    "steps",
    [
        [JobState.SUBMITTING],
        [JobState.SUBMITTING, JobState.IN_DOUBT],
        [JobState.SUBMITTING, JobState.ACCEPTED],
        [JobState.SUBMITTING, JobState.ACCEPTED, JobState.FINISHED],
    ],
)
def test_a_job_that_may_be_paid_for_is_not_forgotten_by_default(
    run: Run, steps: list[JobState]
) -> None:
    """A job whose clip may be paid for but not saved needs --force."""
    write_down(*steps, task_id="t-1")
    done = run("forget", PATH, MARK)
    assert (done.code, "a paid clip could be lost" in done.err, len(known())) == (2, True, 1)
    assert (run("forget", PATH, MARK, "--force").code, known()) == (0, [])


async def test_forgetting_an_unknown_job_is_an_error(tmp_path: Path) -> None:
    """Forgetting a job twice is an error that names its key."""
    journal = Journal(tmp_path / "j.db")
    await journal.plan(Plan(key="k", fingerprint=MARK, endpoint="TextToVideo"), 1.0)
    await journal.forget("k")
    assert await journal.find("k") is None
    with pytest.raises(errors.JournalError, match="no job 'k'"):
        await journal.forget("k")
    await journal.aclose()


def test_a_single_job_has_a_short_name() -> None:
    """The short name of a job outside a batch contains a part of its own id."""
    job = Job(
        key="single:9f6243e5-3ab8", state=JobState.PLANNED, endpoint="ActOne", fingerprint=MARK
    )
    assert cli_journal.mark_of(job) == "single:9f6243e5-3"


def test_forget_takes_one_key(run: Run) -> None:
    """Without a key, and with two, nothing is removed; the journal may also be an option."""
    write_down(key="id:shot 7")
    for keys in ([], ["shot 7", "shot 7"]):
        done = run("forget", PATH, *keys)
        assert (done.code, "forget needs the key of one job." in done.err) == (2, True)
    assert run("forget", "--journal", PATH, "shot 7").code == 0
    assert known() == []
