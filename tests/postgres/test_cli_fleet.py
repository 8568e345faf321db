"""The commands for a fleet, and those for a journal in a database."""

import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from support.commands import (
    GatewayThread,
    Outcome,
    Run,
    documented_keys,
    gateway_in_thread,
    is_clip,
    pressed,
    runner,
    settle_in,
)

pytest.importorskip("cyclopts")
pytest.importorskip("fuhu_runway.contrib.fleet")

from fuhu_runway import hooks
from fuhu_runway.cli.fleet import Progress
from fuhu_runway.contrib.local_postgres import LocalPostgres
from fuhu_runway.models import TaskState
from fuhu_runway.testing import faults

PASSWORD = "marked-password"
PROMPT = "a secret kitten"


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set up an empty folder with a file of prompts, and no pauses."""
    settle_in(tmp_path, monkeypatch)
    Path("prompts.txt").write_text(f"{PROMPT}\n{PROMPT}\nanother\n")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""
    return runner(capsys)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayThread]:
    """A gateway that the environment variables point to; its tasks take 50 ms."""
    with gateway_in_thread(monkeypatch, speed=1000, takes=50) as elsewhere:
        yield elsewhere


@pytest.fixture
def database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty database, which the environment variable has; with a password."""
    url = database_url.replace("postgres@", f"postgres:{PASSWORD}@")
    monkeypatch.setenv("FUHU_DATABASE_URL", url)
    return url


@pytest.fixture
def fleet(run: Run, gateway: GatewayThread, database: str) -> str:
    """The URL of a database with the tables of a fleet."""
    assert run("fleet", "init").code == 0
    return database


def states(url: str) -> Counter[str]:
    """Return how many jobs are in each state."""
    with psycopg.connect(url) as connection:
        return Counter(state for (state,) in connection.execute("SELECT state FROM fuhu_job"))


def work(run: Run, url: str, *options: str, until: str = "saved", number: int = 3) -> Outcome:
    """Run a worker until *number* jobs are in a state."""
    with pressed(lambda: states(url)[until] == number):
        return run("fleet", "work", "--out", "clips", "--grace", "1", *options)


def execute(url: str, statement: str) -> None:
    """Execute a statement."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[call-overload]


# From a file to its clips


def test_a_file_is_carried_out_once(run: Run, gateway: GatewayThread, fleet: str) -> None:
    """A file that is enqueued twice is paid for once, and Ctrl-C ends the worker."""
    assert run("fleet", "enqueue", "prompts.txt").out == "3 new, 0 known already\n"
    assert run("fleet", "enqueue", "prompts.txt").out == "0 new, 3 known already\n"
    done = work(run, fleet)
    assert (done.code, done.out) == (130, "")
    assert "working until Ctrl-C" in done.err
    assert "Stopped. This worker: 3 submitted, 3 saved." in done.err
    assert gateway.call(lambda one: one.submitted) == 3
    assert all(map(is_clip, map(str, Path("clips").glob("*.mp4"))))
    assert len(list(Path("clips").glob("*.mp4"))) == 3
    assert run("fleet", "enqueue", "prompts.txt").out == "0 new, 3 known already\n"
    assert PROMPT not in done.err


def test_the_status_shows_workers_and_jobs(run: Run, gateway: GatewayThread, fleet: str) -> None:
    """What waits, what is paid for and what it cost is counted, and no prompt is shown."""
    run("fleet", "enqueue", "prompts.txt")
    row = json.loads(run("fleet", "status", "--json").out)
    assert (row["ready"], row["running"], row["jobs"], row["workers"]) == (3, 0, {}, [])
    assert row.keys() == documented_keys("A fleet in JSON")
    work(run, fleet)
    done = run("fleet", "status")
    assert done.out.splitlines()[1:3] == ["3 saved", "960 points spent"]
    assert done.out.splitlines()[3].startswith("pace of all workers: ")
    assert PROMPT not in done.out


def test_a_database_without_jobs_says_so(run: Run, fleet: str) -> None:
    """A fleet that has nothing to do is no error, and init may be repeated."""
    assert json.loads(run("fleet", "init", "--json").out) == {"ready": True}
    done = run("fleet", "status")
    assert "no jobs" in done.out
    assert "pace of all workers: unknown while no worker has a job" in done.out


def test_doubts_and_failures_are_shown(run: Run, gateway: GatewayThread, fleet: str) -> None:
    """The worker counts them, and the status says what to do about a job in doubt."""
    Path("three.txt").write_text("to be lost\nto fail\nto be refused at first\n")
    run("fleet", "enqueue", "three.txt")
    simulator = gateway.simulator
    lost = [faults.on("submit", faults.drop_after_accepting())]
    refused = [faults.on("submit", faults.TooManyRequests())]
    gateway.call(lambda _: simulator.script("to be lost", faults=lost))
    gateway.call(lambda _: simulator.script("to fail", then="fail"))
    gateway.call(lambda _: simulator.script("to be refused at first", faults=refused))
    with pressed(lambda: states(fleet) == {"in doubt": 1, "failed": 1, "saved": 1}):
        done = run("fleet", "work", "--in-flight", "1", "--grace", "1")
    assert {"2 submitted", "1 in doubt", "1 failed", "1 saved"} <= {
        *re.split(r"[:.,] ", done.err.splitlines()[-1])
    }
    done = run("fleet", "status")
    assert "1 in doubt" in done.out
    assert 'fuhu-runway jobs "$FUHU_DATABASE_URL"' in done.err


def test_the_progress_names_what_delays_a_request() -> None:
    """Trouble is shown until a request succeeds."""
    progress = Progress()
    assert str(progress) == "nothing so far"
    progress.watch(hooks.PollFailed(task_id="1", error="NotSent", delay=1.0))
    assert str(progress) == "waiting: the gateway cannot be reached"
    progress.watch(hooks.TaskPolled(task_id="1", state=TaskState.RUNNING, progress=None, polls=1))
    assert str(progress) == "nothing so far"


def test_bad_entries_may_be_skipped(run: Run, fleet: str) -> None:
    """Without --skip-bad nothing is enqueued; with it, the good entries are."""
    Path("mixed.jsonl").write_text('{"prompt": "a kitten"}\n{"prompt": ""}\n')
    done = run("fleet", "enqueue", "mixed.jsonl")
    assert (done.code, "line 2" in done.err) == (2, True)
    done = run("fleet", "enqueue", "mixed.jsonl", "--skip-bad", "--json")
    assert (done.code, "skipped" in done.err) == (0, True)
    assert json.loads(done.out) == {"new": 1, "known": 0}


def test_an_empty_file_is_an_error(run: Run, fleet: str) -> None:
    """A file without entries is most likely the wrong one."""
    Path("empty.txt").touch()
    done = run("fleet", "enqueue", "empty.txt")
    assert (done.code, "has no entries" in done.err) == (2, True)


def test_prompts_come_from_a_pipe(run: Run, fleet: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dash reads prompts from stdin."""
    with open("prompts.txt") as prompts:  # noqa: PTH123  (it stands for stdin)
        monkeypatch.setattr(sys, "stdin", prompts)
        assert run("fleet", "enqueue", "-").out == "3 new, 0 known already\n"


def test_ctrl_c_ends_the_reading_of_a_pipe(
    run: Run, fleet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is enqueued of a pipe that was not read to its end."""

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fuhu_runway.inputs.spooled", interrupted)
    assert run("fleet", "enqueue", "-").code == 130


def test_another_file_needs_another_name(run: Run, fleet: str) -> None:
    """A file that was changed is not taken for the one that was enqueued."""
    run("fleet", "enqueue", "prompts.txt")
    Path("prompts.txt").write_text("a puppy\n")
    done = run("fleet", "enqueue", "prompts.txt")
    assert (done.code, "--name" in done.err or "name" in done.err) == (2, True)
    assert run("fleet", "enqueue", "prompts.txt", "--name", "puppies").out.startswith("1 new")


# Cancelling


def test_a_job_that_is_cancelled_in_time_is_not_sent(
    run: Run, gateway: GatewayThread, fleet: str
) -> None:
    """It is gone, and costs nothing; a second time there is no such job."""
    Path("named.jsonl").write_text('{"prompt": "a kitten", "custom_id": "shot-7"}\n')
    run("fleet", "enqueue", "named.jsonl")
    assert run("fleet", "cancel", "shot-7").out.startswith("cancelled: it was not sent")
    done = run("fleet", "cancel", "shot-7")
    assert (done.code, "No job matches this name." in done.err) == (2, True)
    assert json.loads(run("fleet", "status", "--json").out)["ready"] == 0


def test_a_job_that_is_cancelled_too_late_is_paid_for(
    run: Run, gateway: GatewayThread, fleet: str
) -> None:
    """Its row says so, and its task goes on."""
    gateway.simulator.script(takes=1e6)
    Path("one.txt").write_text("a kitten\n")
    run("fleet", "enqueue", "one.txt")
    work(run, fleet, until="accepted", number=1)
    (job,) = json.loads(run("jobs", fleet, "--json").out)["jobs"]
    done = run("fleet", "cancel", job["key"][:6])
    assert (done.code, job["task_id"] in done.out) == (0, True)
    assert "It is no longer followed." in done.err
    assert json.loads(run("fleet", "cancel", job["key"], "--json").out)["job"]["key"] == job["key"]


# What bad input gets


def test_without_a_url_there_is_an_error(run: Run) -> None:
    """The error names the environment variable."""
    done = run("fleet", "status")
    assert (done.code, "FUHU_DATABASE_URL" in done.err) == (2, True)


def test_without_the_extra_there_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what to install."""
    monkeypatch.setitem(sys.modules, "fuhu_runway.contrib.fleet", None)
    done = run("fleet", "status")
    assert (done.code, '".[cli,fleet]"' in done.err) == (2, True)


def test_a_missing_right_is_named(run: Run, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the user may not create tables, the error names the right to ask for."""
    execute(database, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    execute(database, f"CREATE ROLE fuhu_guest LOGIN PASSWORD '{PASSWORD}'")
    guest = database.replace(f"postgres:{PASSWORD}@", f"fuhu_guest:{PASSWORD}@")
    monkeypatch.setenv("FUHU_DATABASE_URL", guest)
    done = run("fleet", "init")
    execute(database, "DROP ROLE fuhu_guest")
    assert (done.code, "GRANT USAGE, CREATE ON SCHEMA public" in done.err) == (2, True)


def test_a_worker_without_a_key_names_what_there_is(run: Run, fleet: str) -> None:
    """Workers cannot be simulated, so that the advice leaves --simulate out."""
    with pytest.MonkeyPatch.context() as without:
        without.delenv("FUHU_API_KEY")
        done = run("fleet", "work")
    assert (done.code, "FUHU_API_KEY" in done.err, "--simulate" in done.err) == (2, True, False)


def test_without_tables_there_is_an_error(run: Run, gateway: GatewayThread, database: str) -> None:
    """The error names the command that makes them."""
    for command in (["status"], ["work"], ["enqueue", "prompts.txt"]):
        done = run("fleet", *command)
        assert (done.code, "fuhu-runway fleet init" in done.err) == (2, True)


def test_another_key_is_refused(
    run: Run, gateway: GatewayThread, fleet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker with another key takes up nothing while jobs of the first one are left."""
    run("fleet", "enqueue", "prompts.txt")
    gateway.simulator.script(takes=1e6)
    work(run, fleet, until="accepted", number=1)
    submitted = gateway.call(lambda one: one.submitted)
    monkeypatch.setenv("FUHU_API_KEY", "sk-marked-other")
    done = run("fleet", "work")
    assert (done.code, "have another API key" in done.err) == (2, True)
    assert "sk-marked-other" not in done.err
    assert gateway.call(lambda one: one.submitted) == submitted


def test_a_database_that_may_lose_what_it_confirmed_is_refused(run: Run, fleet: str) -> None:
    """With synchronous_commit off, a crash of the server could hide that money was spent."""
    name = re.search("/(fuhu_[0-9a-f]+)", fleet)
    assert name is not None
    execute(fleet, f"ALTER DATABASE {name[1]} SET synchronous_commit = off")
    done = run("fleet", "status")
    assert (done.code, "synchronous_commit" in done.err) == (2, True)


def test_tables_of_an_older_version_are_updated_by_init(run: Run, fleet: str) -> None:
    """Until then, the other commands name the command to run."""
    execute(fleet, "UPDATE fuhu_header SET version = 0")
    done = run("fleet", "status")
    assert (done.code, "fuhu-runway fleet init" in done.err) == (2, True)


def test_tables_of_a_newer_version_are_refused(run: Run, fleet: str) -> None:
    """Every command says so, and init changes nothing."""
    execute(fleet, "UPDATE fuhu_fleet SET value = '999' WHERE name = 'schema'")
    for command in ("status", "init"):
        done = run("fleet", command)
        assert (done.code, "newer version" in done.err) == (2, True)


def test_a_worker_waits_for_a_database_that_is_gone(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker says that it waits, goes on by itself, and nothing is lost or paid twice."""
    with LocalPostgres() as server:
        monkeypatch.setenv("FUHU_DATABASE_URL", server.url)
        run("fleet", "init")
        run("fleet", "enqueue", "prompts.txt")

        def interrupt() -> None:
            while gateway.call(lambda one: one.submitted) < 2:
                pass
            server.stop()
            server.start()

        outage = threading.Thread(target=interrupt)
        outage.start()

        def is_done() -> bool:
            return not outage.is_alive() and states(server.url)["saved"] == 3

        with pressed(is_done):
            done = run("fleet", "work")
        outage.join()
    assert done.code == 130
    assert "The database cannot be reached" in done.err
    assert gateway.call(lambda one: one.submitted) == 3


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_a_worker_that_is_cut_off_ends_itself(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch, flag: list[str]
) -> None:
    """Its exit code is 75, so that a supervisor starts it again."""
    with LocalPostgres() as server:
        monkeypatch.setenv("FUHU_DATABASE_URL", server.url)
        run("fleet", "init")

        def stop_once_it_works() -> None:
            with psycopg.connect(server.url) as connection:
                query = "SELECT count(*) FROM procrastinate_workers"
                while connection.execute(query).fetchone() == (0,):
                    pass
            server.stop()

        outage = threading.Thread(target=stop_once_it_works)
        outage.start()
        done = run("fleet", "work", "--lease", "1", *flag)
        outage.join()
    assert done.code == 75
    assert "could not be reached for 1 s" in done.err
    assert not flag or json.loads(done.out)["exit_code"] == 75
