"""The command, run in this process or as one of its own, beside a gateway in another thread."""

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
from typing import Any

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
        """The command that goes on, as words."""
        return shlex.split(self.err.partition("Continue with: ")[2])


Run = Callable[..., Outcome]


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs the command in this process."""
    from fuhu_runway.cli import app as cli

    def command(*tokens: str) -> Outcome:
        capsys.readouterr()
        code = cli.main(tokens)
        return Outcome(code, *capsys.readouterr())

    return command


@attrs.define
class Elsewhere:
    """A gateway in a thread of its own, so that the command may own this one."""

    simulator: Simulator
    _loop: asyncio.AbstractEventLoop

    def ask(self, question: Callable[[Simulator], Any]) -> Any:
        """Return what *question* sees, in the gateway's own thread."""

        async def answer() -> Any:
            return question(self.simulator)

        return asyncio.run_coroutine_threadsafe(answer(), self._loop).result()

    def saw(self, where: str) -> bool:
        return any(seen.where == where for seen in self.ask(lambda one: one.requests))

    def body(self) -> dict[str, Any]:
        """What the only task was asked for with."""
        (task,) = self.ask(lambda one: one.tasks)
        return dict(task.request)


@contextlib.contextmanager
def gateway_elsewhere(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[Elsewhere]:
    """Return a gateway that the environment leads to."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    simulator = Simulator(**options)
    asyncio.run_coroutine_threadsafe(simulator.start(), loop).result()
    for name, value in simulator.environment().items():
        monkeypatch.setenv(name, value)
    yield Elsewhere(simulator, loop)
    asyncio.run_coroutine_threadsafe(simulator.aclose(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def is_clip(path: str) -> bool:
    """Return whether there is an MP4 file."""
    return Path(path).read_bytes()[4:8] == b"ftyp"


@contextlib.contextmanager
def pressed(when: Callable[[], bool], number: int = signal.SIGINT) -> Iterator[None]:
    """Press Ctrl-C as soon as *when* holds."""
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
    """A screen that says it is one."""

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def on_a_terminal(**variables: str) -> Iterator[Terminal]:
    """Replace stderr by a terminal, with these variables set."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(Terminal()) as screen:
        patch.delenv("NO_COLOR", raising=False)
        for name, value in {"TERM": "xterm-256color", **variables}.items():
            patch.setenv(name, value)
        yield screen


COMMAND = [sys.executable, "-m", "fuhu_runway"]


def start(*tokens: str, **options: Any) -> "subprocess.Popen[str]":
    """Start the command as a process."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # The folder is an empty one, and the package may be a checkout that nobody installed.
    home = {"PYTHONPATH": str(Path(fuhu_runway.__file__).parents[1])}
    pipes["env"] = {**os.environ, **home, **options.pop("env", {})}
    return subprocess.Popen([*COMMAND, *tokens], **{**pipes, **options})


def read_until(lines: Any, start_of_line: str) -> str:
    """Read lines up to one that starts so."""
    for line in lines:
        if line.startswith(start_of_line):
            return str(line).strip()
    raise AssertionError(f"no line starts with {start_of_line!r}")


def settle_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, without the caller's variables, with pauses of milliseconds."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FUHU_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("fuhu_runway.client.PollPolicy", lambda: QUICK_POLLS)
    monkeypatch.setattr("fuhu_runway.client.RetryPolicy", lambda: QUICK_RETRY)
