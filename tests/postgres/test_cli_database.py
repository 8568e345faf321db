"""The commands for a journal, with one in a database."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from support.clients import quick_client
from support.commands import (
    ACCOUNT,
    GatewayThread,
    Run,
    gateway_in_thread,
    is_clip,
    runner,
    settle_in,
)

pytest.importorskip("cyclopts")

from fuhu_runway.contrib.local_postgres import LocalPostgres

PASSWORD = "marked-password"
PROMPT = "a secret kitten"


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set up an empty folder, and no pauses."""
    settle_in(tmp_path, monkeypatch)
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


@pytest.fixture
def database(database_url: str) -> str:
    """The URL of an empty database, with a password."""
    return database_url.replace("postgres@", f"postgres:{PASSWORD}@")


def execute(url: str, statement: str) -> None:
    """Execute a statement."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[call-overload]


def states(url: str) -> Counter[str]:
    """Return how many jobs are in each state."""
    with psycopg.connect(url) as connection:
        return Counter(state for (state,) in connection.execute("SELECT state FROM fuhu_job"))


@pytest.fixture
def doubt(gateway: GatewayThread, database: str) -> str:
    """The URL of a journal with two saved jobs and one in doubt, of which the task is known."""

    async def make() -> None:
        async with quick_client(gateway.simulator, journal=database) as client:
            prompts = [PROMPT, PROMPT, "another"]
            async for outcome in client.generate_many(prompts, download_to="clips"):
                assert outcome.path is not None

    asyncio.run(make())
    execute(
        database,
        "UPDATE fuhu_job SET state = 'in doubt' WHERE key = (SELECT min(key) FROM fuhu_job)",
    )
    return database


@pytest.mark.parametrize("option", [[], ["--journal"]])
def test_jobs_lists_a_database(run: Run, doubt: str, option: list[str]) -> None:
    """The URL is an argument like a path, and what is printed has no password."""
    done = run("jobs", *option, doubt)
    assert (done.code, done.out.splitlines()[-1]) == (0, "2 saved, 1 in doubt")
    assert 'fuhu-runway resolve "$FUHU_DATABASE_URL" KEY --task-id ID' in done.err
    assert PASSWORD not in done.out + done.err


def test_a_doubt_in_a_database_is_resolved(run: Run, doubt: str) -> None:
    """The gateway is asked for the task, and the job is accepted; resume saves its clip."""
    rows = json.loads(run("jobs", doubt, "--json").out)["jobs"]
    (job,) = [row for row in rows if row["state"] == "in doubt"]
    assert run("resolve", "--journal", doubt, job["key"], "--found").code == 0
    assert states(doubt) == {"saved": 2, "accepted": 1}
    assert run("resume", doubt, "--out", "rest").code == 0
    assert is_clip(f"rest/{job['task_id']}.mp4")
    assert states(doubt) == {"saved": 3}
    assert run("forget", "--journal", doubt, job["key"]).code == 0
    assert states(doubt) == {"saved": 2}


def test_a_doubt_in_a_database_is_reconciled(
    run: Run, gateway: GatewayThread, doubt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway's list shows the task, and its clip is saved in clips; audit lists no more."""
    for name in ACCOUNT:
        monkeypatch.setenv(name, gateway.simulator.environment()[name])
    done = run("reconcile", "--journal", doubt)
    assert (done.code, done.out.splitlines()[0]) == (0, "1 in doubt: 1 found and followed")
    assert states(doubt) == {"saved": 3}
    execute(doubt, "DELETE FROM fuhu_job WHERE key = (SELECT min(key) FROM fuhu_job)")
    done = run("audit", doubt)
    assert (done.code, done.out.splitlines()[-1][:9]) == (0, "1 task is")
    assert 'fuhu-runway audit "$FUHU_DATABASE_URL" --adopt' in done.err
    assert PASSWORD not in done.err + done.out
    assert run("audit", "--journal", doubt, "--adopt").code == 0
    assert states(doubt) == {"saved": 3}


@pytest.mark.parametrize(
    "command",
    [
        ["resume", "--out", "c", "--simulate"],
        ["reconcile", "--simulate"],
        ["audit", "--simulate"],
    ],
)
def test_a_database_has_no_simulated_gateway(run: Run, doubt: str, command: list[str]) -> None:
    """--simulate is for journals in a file."""
    name, *options = command
    done = run(name, doubt, *options)
    assert (done.code, "--simulate" in done.err) == (2, True)


def test_a_report_of_a_database(run: Run, doubt: str) -> None:
    """The page is in the folder of the clips, and has those that the folder has."""
    assert run("report", "clips", "--journal", doubt).code == 0
    page = Path("clips/report.html").read_text(encoding="utf-8")
    assert page.count("<video") == 2
    assert PASSWORD not in page


@pytest.mark.parametrize(
    "place", [f"postgresql//u:{PASSWORD}@host/fuhu", f"host=h password={PASSWORD}"]
)
def test_a_url_with_a_typing_error_is_not_shown(run: Run, place: str) -> None:
    """The error says how the URL of a database begins, and quotes nothing of this one."""
    for command in (["jobs", place], ["jobs", f"--journal={place}"]):
        done = run(*command)
        assert (done.code, "postgresql://" in done.err) == (2, True)
        assert PASSWORD not in done.err


@pytest.mark.parametrize(
    "command", [["jobs"], ["forget", "key"], ["resume", "--out", "rest"], ["reconcile"]]
)
def test_a_server_that_is_not_there_is_an_error(
    run: Run, gateway: GatewayThread, command: list[str]
) -> None:
    """The error says that it cannot be reached, with neither address nor password."""
    done = run(*command, "--journal", f"postgresql://user:{PASSWORD}@127.0.0.1:9/fuhu")
    assert done.code == 2
    assert "cannot be reached" in done.err
    assert PASSWORD not in done.err + done.out
    assert "127.0.0.1" not in done.err + done.out


def test_a_wrong_password_is_an_error(run: Run) -> None:
    """The error says so, and quotes no password."""
    with LocalPostgres() as server:
        execute(server.url, "CREATE ROLE clips LOGIN PASSWORD 'right'")
        (server.data / "pg_hba.conf").write_text("local all all scram-sha-256\n")
        server.stop()
        server.start()
        done = run("jobs", server.url.replace("postgres@", f"clips:{PASSWORD}@"))
    assert (done.code, "password" in done.err) == (2, True)
    assert PASSWORD not in done.err
