"""The command, run in this process or as a separate one, with a gateway in another thread."""

import asyncio
import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from support.clients import QUICK_POLLS, QUICK_RETRY

import fuhu_runway
from fuhu_runway.testing import Simulator


@attrs.frozen
class Outcome:
    code: int
    out: str
    err: str

    @property
    def task_id(self) -> str:
        found = re.search(r"^accepted: task (\S+)$", self.err, re.MULTILINE)
        assert found, self.err
        return found[1]

    @property
    def advice(self) -> list[str]:
        """The words of the command that continues the task."""
        return shlex.split(self.err.partition("Continue with: ")[2])


Run = Callable[..., Outcome]


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command in this process."""
    from fuhu_runway.cli import app as cli

    def command(*tokens: str) -> Outcome:
        capsys.readouterr()
        code = cli.main(tokens)
        return Outcome(code, *capsys.readouterr())

    return command


@attrs.define
class GatewayThread:
    """A gateway in another thread, so that the command can run in this one."""

    simulator: Simulator
    _loop: asyncio.AbstractEventLoop

    def call(self, function: Callable[[Simulator], Any]) -> Any:
        """Return *question*'s answer, computed in the gateway's thread."""

        async def answer() -> Any:
            return function(self.simulator)

        return asyncio.run_coroutine_threadsafe(answer(), self._loop).result()

    def got(self, where: str) -> bool:
        return any(seen.where == where for seen in self.call(lambda one: one.requests))

    def body(self) -> dict[str, Any]:
        """Return the body of the request for the only task."""
        (task,) = self.call(lambda one: one.tasks)
        return dict(task.request)


ACCOUNT: Final = ("FUHU_ACCESS_TOKEN", "FUHU_USER_ID")


@contextlib.contextmanager
def gateway_in_thread(
    monkeypatch: pytest.MonkeyPatch, *, with_account: bool = False, **options: Any
) -> Iterator[GatewayThread]:
    """
    Yield a gateway that the environment variables point to.

    Without the account, what is in doubt stays in doubt.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    simulator = Simulator(**options)
    asyncio.run_coroutine_threadsafe(simulator.start(), loop).result()
    for name, value in simulator.environment().items():
        if with_account or name not in ACCOUNT:
            monkeypatch.setenv(name, value)
    yield GatewayThread(simulator, loop)
    asyncio.run_coroutine_threadsafe(simulator.aclose(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def documented_keys(heading: str) -> set[str]:
    """Return the keys in a table of the command line's reference page."""
    page = Path(__file__).parents[2].joinpath("docs/reference/cli.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))


def is_clip(path: str) -> bool:
    """Return whether there is an MP4 file."""
    return Path(path).read_bytes()[4:8] == b"ftyp"


@contextlib.contextmanager
def pressed(when: Callable[[], bool], number: int = signal.SIGINT) -> Iterator[None]:
    """Press Ctrl-C as soon as *when* is true."""
    gone = threading.Event()

    def press() -> None:
        while not when():
            if gone.wait(0.002):
                return
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        gone.set()
        thread.join()


class Terminal(io.StringIO):
    """A text stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def on_a_terminal(**variables: str) -> Iterator[Terminal]:
    """Replace stderr with a terminal, with these variables set."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(Terminal()) as screen:
        patch.delenv("NO_COLOR", raising=False)
        for name, value in {"TERM": "xterm-256color", **variables}.items():
            patch.setenv(name, value)
        yield screen


COMMAND = [sys.executable, "-m", "fuhu_runway"]


def start(*tokens: str, **options: Any) -> "subprocess.Popen[str]":
    """Start the command as a process."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # The working folder is empty, and the package may be a checkout that is not installed.
    home = {"PYTHONPATH": str(Path(fuhu_runway.__file__).parents[1])}
    pipes["env"] = {**os.environ, **home, **options.pop("env", {})}
    return subprocess.Popen([*COMMAND, *tokens], **{**pipes, **options})


def read_until(lines: Any, start_of_line: str) -> str:
    """Read lines up to the first that starts with *start_of_line*."""
    for line in lines:
        if line.startswith(start_of_line):
            return str(line).strip()
    raise AssertionError(f"no line starts with {start_of_line!r}")


def settle_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an empty folder, none of the caller's variables, and pauses of milliseconds."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FUHU_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("fuhu_runway.client.PollPolicy", lambda: QUICK_POLLS)
    monkeypatch.setattr("fuhu_runway.client.RetryPolicy", lambda: QUICK_RETRY)
