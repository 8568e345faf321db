"""What all commands share: options, exit codes, signals, progress and output."""

import asyncio
import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support.commands import on_a_terminal, pressed, settle_in

pytest.importorskip("cyclopts")

from fuhu_runway import errors, hooks
from fuhu_runway.cli import app as cli
from fuhu_runway.cli import bar as _bar
from fuhu_runway.cli import console as _console
from fuhu_runway.cli import opening as _opening
from fuhu_runway.cli import options as _options
from fuhu_runway.testing import Simulator


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle_in(tmp_path, monkeypatch)


# The gateway


def test_the_key_comes_from_the_environment_or_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file overrides the variable, and without either, the error says how to give a key."""
    with pytest.raises(errors.UsageError, match="FUHU_API_KEY or use --api-key-file"):
        _options.Access().key()
    monkeypatch.setenv("FUHU_API_KEY", "sk-1")
    assert _options.Access().key() == "sk-1"
    Path("key").write_text("sk-2\n")
    assert _options.Access(api_key_file=Path("key")).key() == "sk-2"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"\n", "is empty"), (b"\xff\xfe", "is not text")],
)
def test_an_invalid_key_file_is_an_error(content: bytes | None, message: str) -> None:
    """The error says what is wrong with the file."""
    if content is not None:
        Path("key").write_bytes(content)
    with pytest.raises(errors.UsageError, match=message):
        _options.Access(api_key_file=Path("key")).key()


def test_options_can_be_repeated_as_words() -> None:
    """The words select the same gateway again."""
    access = _options.Access(gateway="deerapi", base_url="http://a", api_key_file=Path("my key"))
    words = ["--gateway", "deerapi", "--base-url", "http://a", "--api-key-file", "my key"]
    assert list(access.words()) == words
    assert list(_options.Access().words()) == []
    assert list(_options.Target(access=access, simulate=True).words()) == [*words, "--simulate"]


async def test_a_client_uses_the_real_or_the_simulated_gateway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A simulated gateway replaces the URL and the key."""
    monkeypatch.setenv("FUHU_API_KEY", "sk-1")
    real = _options.Target(access=_options.Access(base_url="http://127.0.0.1:9"))
    async with contextlib.AsyncExitStack() as stack:
        client = await _opening.open_client(stack, real, _console.Screen(), None)
        assert client.gateway.base_url == "http://127.0.0.1:9"
    async with contextlib.AsyncExitStack() as stack:
        gateway = Simulator(speed=1000, takes=20)
        client = await _opening.open_client(stack, _options.Target(), _console.Screen(), gateway)
        await (await client.generate("a kitten")).wait()
        assert gateway.submitted == 1
    assert not gateway.is_running


@pytest.mark.parametrize(
    "access",
    [_options.Access(base_url="http://a"), _options.Access(api_key_file=Path("key"))],
)
def test_a_simulated_gateway_has_no_url_and_no_key(access: _options.Access) -> None:
    """--simulate together with a real gateway's URL or key is an error."""
    _options.Target(access=_options.Access(gateway="deerapi"), simulate=True).check()
    with pytest.raises(errors.UsageError, match="cannot be combined with --base-url"):
        _options.Target(access=access, simulate=True).check()


# From work to exit codes


def run_raising(error: Exception, verbosity: int = 0) -> int:
    """Run work that raises *error*, and return the exit code."""

    async def work() -> None:
        raise error

    return _console.run(work(), _console.Screen(verbose=(True,) * verbosity))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("a.", "b.", "c."), 2),
        (errors.JournalBusy("a.", "b.", "c."), 2),
        (errors.SubmissionInDoubt("a.", "b.", "c."), 3),
        (errors.WaitTimeout("a.", "b.", "c."), 4),
        (errors.TaskCanceled("a.", "b.", "c."), 1),
        (errors.OutOfCredits("a.", "b.", "c."), 5),
    ],
)
def test_each_error_has_a_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error is one line that includes its notes, and has a documented exit code."""
    error.add_note("Go on.")
    assert run_raising(error) == code
    assert capsys.readouterr().err == "fuhu-runway: a. b. c. Go on.\n"
    assert code in _console.EXIT_CODES


def test_a_bug_has_an_exit_code_and_shows_a_traceback_with_vv(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The line names the type of an unexpected error, but not its text, which may be secret."""
    bug = ValueError("sk-12345")
    for verbosity in (0, 2):
        assert run_raising(bug, verbosity) == 70
        shown = capsys.readouterr().err
        assert "This is a bug in fuhu-runway (ValueError)." in shown.splitlines()[-1]
        assert ("Traceback" in shown) == (verbosity == 2)
        assert "12345" not in shown


@pytest.mark.parametrize("code", [None, 0, 3])
def test_work_may_return_an_exit_code(code: int | None) -> None:
    """None counts as 0."""

    async def work() -> int | None:
        return code

    assert _console.run(work(), _console.Screen()) == (code or 0)


@pytest.mark.parametrize(("verbosity", "count"), [(0, 0), (1, 1), (2, 2)])
def test_verbosity_selects_the_log_level(
    verbosity: int, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without -v, nothing is logged; with -v INFO, with -vv also DEBUG."""
    before = (hooks.LOGGER.level, list(hooks.LOGGER.handlers))

    async def work() -> None:
        hooks.LOGGER.info("news")
        hooks.LOGGER.debug("details")

    _console.run(work(), _console.Screen(verbose=(True,) * verbosity))
    lines = ["info: news", "debug: details"][:count]
    assert capsys.readouterr().err.splitlines() == lines
    assert (hooks.LOGGER.level, hooks.LOGGER.handlers) == before
    assert logging.getLogger("fuhu_runway") is hooks.LOGGER


# Ctrl-C


def test_the_second_ctrl_c_exits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first signal cancels the work; the second ends the process."""
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    ready = threading.Event()

    async def work() -> None:
        ready.set()
        try:
            await asyncio.sleep(60)
        finally:
            assert left == []
            signal.raise_signal(signal.SIGTERM)
            assert left == [143]

    with pressed(ready.is_set):
        assert _console.run_until_stopped(work()) == 130
    assert left == [143]


def test_exiting_at_once_shows_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, a hidden cursor is shown before the process ends."""
    written: list[bytes] = []
    monkeypatch.setattr(os, "_exit", lambda code: None)
    monkeypatch.setattr(os, "isatty", lambda handle: handle == 2)
    monkeypatch.setattr(os, "write", lambda handle, data: written.append(data))
    _console.leave(130)
    assert written == [b"\x1b[?25h\n"]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("in_flight", "many"), [({1}, "1 paid request was"), ({1, 2}, "2 paid requests were")]
)
def test_the_second_signal_with_a_request_in_flight_is_in_doubt(
    monkeypatch: pytest.MonkeyPatch, in_flight: set[int], many: str, *, as_json: bool
) -> None:
    """It ends the process with 3 and says that points may be charged, with --json as an object."""
    written: dict[int, str] = {}
    left: list[int] = []
    ready = threading.Event()
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(os, "isatty", lambda handle: False)
    monkeypatch.setattr(os, "write", lambda handle, data: written.update({handle: data.decode()}))

    async def work() -> None:
        ready.set()
        try:
            await asyncio.sleep(60)
        finally:
            signal.raise_signal(signal.SIGINT)

    with pressed(ready.is_set):
        _console.run_until_stopped(work(), in_flight=in_flight, as_json=as_json)
    assert left == [3]
    assert written[2].startswith(f"Stopped. {many}")
    assert (1 in written) == as_json
    if as_json:
        assert json.loads(written[1])["exit_code"] == 3


def test_an_error_of_the_connection_ends_with_the_address(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """If it is known, the address follows the error; other errors do not show it."""

    def run_with_address(error: Exception) -> str:
        async def work() -> None:
            screen.address = "example.com:443"
            raise error

        screen = _console.Screen()
        _console.run(work(), screen)
        return capsys.readouterr().err

    assert run_with_address(errors.NotSent("a.", "b.", "c.")).endswith(
        "c. The gateway's address is example.com:443.\n"
    )
    assert "example.com" not in run_with_address(errors.OutOfCredits("a.", "b.", "c."))


def test_a_signal_to_another_thread_wakes_the_loop() -> None:
    """A sleeping loop is woken even if another thread receives the signal."""
    is_asleep, is_over = threading.Event(), threading.Event()

    def press() -> None:
        is_asleep.wait(10)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        is_over.wait(10)

    async def work() -> None:
        asyncio.get_running_loop().call_soon(is_asleep.set)
        await asyncio.Event().wait()

    thread = threading.Thread(target=press)
    thread.start()
    assert _console.run_until_stopped(work()) == 130
    is_over.set()
    thread.join()


def test_an_ignored_signal_stays_ignored() -> None:
    """A script's background process, which ignores SIGINT, keeps ignoring it."""

    async def work() -> int:
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        return 3

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert _console.run_until_stopped(work()) == 3
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


class WithoutHandlers(asyncio.SelectorEventLoop):
    """A loop without signal handlers, like the one on Windows."""

    def add_signal_handler(self, *_: object) -> None:
        raise NotImplementedError


def test_a_loop_without_signal_handlers_can_be_stopped() -> None:
    """If the loop has no signal handlers, Python's own stop the work."""
    ready = threading.Event()

    async def work() -> None:
        asyncio.get_running_loop().call_soon(ready.set)
        # On Windows, each signal wakes the loop; this one has to wake by itself.
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    with pressed(ready.is_set):
        assert _console.run_until_stopped(work(), WithoutHandlers) == 130


def test_ctrl_break_stops_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system has SIGBREAK, it stops the work, with another exit code."""
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    before = signal.getsignal(signal.SIGUSR1)
    ready = threading.Event()

    async def work() -> None:
        asyncio.get_running_loop().call_soon(ready.set)
        await asyncio.Event().wait()

    with pressed(ready.is_set, signal.SIGUSR1):
        assert _console.run_until_stopped(work()) == 128 + signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is before


def test_exiting_at_once_works_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that is gone does not prevent the exit."""
    left: list[int] = []

    def gone(handle: int, data: bytes) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(os, "isatty", lambda handle: True)
    monkeypatch.setattr(os, "write", gone)
    _console.leave(143)
    assert left == [143]


# Terminals


def test_only_windows_needs_no_term(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TERM, only Windows terminals are known to move the cursor."""
    with on_a_terminal():
        monkeypatch.delenv("TERM")
        assert not _console.Screen().has_bar
        monkeypatch.setenv("TERM", "")
        assert not _console.Screen().has_bar
        monkeypatch.delenv("TERM")
        monkeypatch.setattr(os, "name", "nt")
        assert _console.Screen().has_bar
        monkeypatch.undo()


class OldTerminal(io.TextIOWrapper):
    """A terminal on a western European Windows, configured as by the command."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="cp1252", errors="backslashreplace")

    def isatty(self) -> bool:
        return True


def test_a_bar_uses_only_what_the_terminal_can_encode() -> None:
    """If the terminal cannot encode dots, the bar is plain, and names are escaped."""
    terminal = OldTerminal()
    with (
        on_a_terminal(),
        contextlib.redirect_stderr(terminal),
        contextlib.closing(_console.Screen()) as screen,
    ):
        screen.stage("running", 0.5)
        screen.say("saved 笑.mp4")
    terminal.seek(0)
    shown = terminal.read()
    assert "saved \\u7b11.mp4" in shown
    assert shown.count("\\u") == 1


def test_a_closed_terminal_raises_nothing() -> None:
    """Once the terminal is gone, output is discarded."""

    class Gone(OldTerminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

        def flush(self) -> None:
            raise OSError(5, "Input/output error")

    screen = _console.Screen()
    with on_a_terminal(), contextlib.redirect_stderr(Gone()), contextlib.closing(screen):
        screen.say("before")
        screen.stage("running", 0.5)
        screen.say("accepted: task t-1")
        screen.board("1 of 2", 0.5, "", "1 running")
    del Gone.flush  # Python flushes the stream once more when it is collected


def test_a_bar_can_pulse_and_show_a_part() -> None:
    """A stage without a known part can follow one with it, and the other way round."""
    with on_a_terminal():
        bar = _bar.Bar()
        for part in (None, 0.5, None):
            bar.show("running", part, "", "")
            (task,) = bar.tasks
            assert task.total == (None if part is None else 1.0)
            assert task.percentage == (0 if part is None else 50)
        bar.stop()


def test_text_is_not_markup() -> None:
    """Brackets and colons in a path or a reason are printed unchanged."""
    with on_a_terminal() as terminal, contextlib.closing(_console.Screen()) as screen:
        screen.say("before [bold] :cat:")
        screen.stage("running [bold]")
        screen.say("after [bold] :cat:")
    assert "before [bold] :cat:" in terminal.getvalue()
    assert "after [bold] :cat:" in terminal.getvalue()


@pytest.mark.parametrize(
    ("variables", "options", "has_bar"),
    [
        ({}, {}, True),
        ({}, {"quiet": True}, False),
        ({}, {"json": True}, False),
        ({"TERM": "dumb"}, {}, False),
        ({"TERM": "unknown"}, {}, False),
    ],
)
def test_only_a_capable_terminal_gets_a_bar(
    variables: dict[str, str], options: dict[str, bool], *, has_bar: bool
) -> None:
    """Logs, and --json, get plain lines."""
    screen = _console.Screen(**options)
    with on_a_terminal(**variables):
        assert screen.has_bar == has_bar
    assert not screen.has_bar


def test_without_a_terminal_each_stage_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A stage is one line; a quiet screen shows only what say() prints."""
    for screen in (_console.Screen(), _console.Screen(quiet=True)):
        screen.stage("running", 0.1)
        screen.stage("running", 0.2)
        screen.board("1 of 2", 0.5, "", "1 running")
        screen.say("seen")
    assert capsys.readouterr().err.splitlines() == ["running", "1 of 2, 1 running", "seen", "seen"]


@pytest.mark.parametrize("columns", ["40", "80"])
def test_a_board_uses_as_many_lines_as_it_needs(columns: str) -> None:
    """Text that does not fit in one line below the bar is wrapped."""
    with (
        on_a_terminal(COLUMNS=columns) as terminal,
        contextlib.closing(_console.Screen()) as screen,
    ):
        screen.board("1 of 2", 0.5, "0:00:07 left", "40 running, 594 left, 2 failed, 99,840 points")
    shown = terminal.getvalue()
    assert "1 of 2" in shown
    assert "0:00:07 left" in shown
    assert ("594 left, 2 failed, 99,840 points" in shown) == (columns == "80")


# Output


def test_a_result_is_a_table_or_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    """A table shows the known values in readable form; JSON has every key."""
    row = {"task_id": "t\x1b1", "progress": 0.42, "refunded": True, "points": 1234.5, "file": None}
    _console.Screen().show(row, *_console.fields(row))
    assert capsys.readouterr().out.splitlines() == [
        *("task id   t 1", "progress  42%", "refunded  yes", "points    1,234.5"),
    ]
    _console.Screen(json=True).show(row, *_console.fields(row))
    assert json.loads(capsys.readouterr().out) == row


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("cp1252", b"caf\xe9 \\u7b11.mp4\n"),
        ("ascii", b"caf\\xe9 \\u7b11.mp4\n"),
        ("utf-8", "café 笑.mp4\n".encode()),
    ],
)
def test_text_that_a_stream_cannot_encode_is_escaped(encoding: str, shown: bytes) -> None:
    """A file name in another script does not fail the command."""
    out = io.BytesIO()
    with (
        io.TextIOWrapper(out, encoding=encoding, newline="\n") as stream,
        contextlib.redirect_stdout(stream),
    ):
        assert cli.main(["generate", "x", "-o", "café 笑.mp4", "--simulate"]) == 0
        assert out.getvalue() == shown


def test_errors_of_a_stream_are_ignored() -> None:
    """Text for a closed or broken stream is discarded."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(32, "Broken pipe")

    closed = io.StringIO()
    closed.close()
    for stream in (closed, Gone()):
        _console.write(stream, "x")


def test_a_full_disk_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A result that is lost in a redirect to a full disk is not lost silently."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    screen = _console.Screen()
    with contextlib.redirect_stdout(Full()):
        screen.show({}, "a result")
    assert screen.is_lost
    assert capsys.readouterr().err.endswith("could not be written: No space left on device.\n")


def test_a_closed_pipe_raises_nothing() -> None:
    """Text for a closed pipe, or for no stream, is discarded."""
    source = """
import sys
from fuhu_runway.cli.output import write
write(None, "nobody")
for _ in range(3):
    write(sys.stdout, "x" * 100_000)
write(sys.stderr, "done")
"""
    home = {"PYTHONPATH": str(Path(_console.__file__).parents[2])}
    command = [sys.executable, "-c", source]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, **home}, **pipes) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == "done\n"
    assert process.returncode == 0
