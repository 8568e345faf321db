"""What all commands have in common, without a command."""

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
from support.clients import QUICK_POLLS
from support.commands import on_a_terminal, pressed, settle_in

pytest.importorskip("cyclopts")

from fuhu_runway import errors, hooks
from fuhu_runway.cli import console as _console
from fuhu_runway.cli import options as _options
from fuhu_runway.testing import Simulator


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle_in(tmp_path, monkeypatch)


# Reaching a gateway


def test_the_key_comes_from_the_environment_or_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file wins over the variable, and without either the error names the ways to give one."""
    with pytest.raises(errors.UsageError, match="--api-key-file; --simulate needs none"):
        _options.REACH.key()
    monkeypatch.setenv("FUHU_API_KEY", "sk-1")
    assert _options.REACH.key() == "sk-1"
    Path("key").write_text("sk-2\n")
    assert _options.Reach(api_key_file=Path("key")).key() == "sk-2"


@pytest.mark.parametrize(
    ("content", "told"), [(None, "No such file"), (b"\n", "is empty"), (b"\xff\xfe", "is not text")]
)
def test_a_key_file_that_is_none_is_told(content: bytes | None, told: str) -> None:
    """The line says why, and holds no part of the file."""
    if content is not None:
        Path("key").write_bytes(content)
    with pytest.raises(errors.UsageError, match=told):
        _options.Reach(api_key_file=Path("key")).key()


def test_a_way_can_be_written_down() -> None:
    """The options lead to the same gateway again."""
    reach = _options.Reach(gateway="deerapi", base_url="http://a", api_key_file=Path("my key"))
    words = ["--gateway", "deerapi", "--base-url", "http://a", "--api-key-file", "my key"]
    assert list(reach.words()) == words
    assert list(_options.REACH.words()) == []


async def test_a_client_goes_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated gateway takes the place of address and key, and of nothing else."""
    monkeypatch.setenv("FUHU_API_KEY", "sk-1")
    real = _options.Reach(base_url="http://127.0.0.1:9").client()
    assert real.gateway.base_url == "http://127.0.0.1:9"
    async with Simulator(speed=1000, takes=20) as gateway:
        client = _options.REACH.client(gateway, polling=QUICK_POLLS)
        async with client:
            await (await client.generate("a kitten")).wait()
        assert gateway.submitted == 1


@pytest.mark.parametrize(
    "reach",
    [_options.Reach(base_url="http://a"), _options.Reach(api_key_file=Path("key"))],
)
def test_a_simulated_gateway_is_not_the_real_one(reach: _options.Reach) -> None:
    """Naming both a real gateway and a simulated one is an error."""
    _options.Reach(gateway="deerapi").check_simulated()
    with pytest.raises(errors.UsageError, match="together with the address"):
        reach.check_simulated()


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_number_has_to_be_one(value: float) -> None:
    """What cannot be counted down from is named with its option."""
    _options.check_positive("timeout", 0.5)
    with pytest.raises(errors.UsageError, match=f"--timeout is {value:g}"):
        _options.check_positive("timeout", value)


# From work to exit codes


async def raising(error: Exception) -> None:
    """Fail."""
    raise error


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
    """An error is one line with its notes, and a documented exit code."""
    error.add_note("Go on.")
    assert _console.guarded(lambda: raising(error), _console.Lines(), verbosity=0) == code
    assert capsys.readouterr().err == "fuhu-runway: a. b. c. Go on.\n"
    assert code in _console.EXIT_CODES


def test_a_defect_has_a_code_and_shows_its_origin_if_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What no error of the SDK is named without its text, which may be anything."""
    defect = ValueError("sk-12345")
    for verbosity in (0, 2):
        screen = _console.Lines()
        assert _console.guarded(lambda: raising(defect), screen, verbosity=verbosity) == 70
        told = capsys.readouterr().err
        assert "A defect of this program (ValueError)." in told.splitlines()[-1]
        assert ("Traceback" in told) == (verbosity == 2)
        assert "12345" not in told


@pytest.mark.parametrize("code", [None, 0, 3])
def test_work_may_name_its_code(code: int | None) -> None:
    """Work that gives nothing went well."""

    async def work() -> int | None:
        return code

    assert _console.guarded(work, _console.Lines(), verbosity=0) == (code or 0)


@pytest.mark.parametrize(("verbosity", "told"), [(0, 0), (1, 1), (2, 2)])
def test_the_log_is_shown_as_far_as_it_was_asked_for(
    verbosity: int, told: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without -v there is nothing, with one -v what matters, with two all of it."""
    before = (hooks.LOGGER.level, list(hooks.LOGGER.handlers))

    async def work() -> None:
        hooks.LOGGER.info("news")
        hooks.LOGGER.debug("details")

    _console.guarded(work, _console.Lines(), verbosity=verbosity)
    lines = ["info: news", "debug: details"][:told]
    assert capsys.readouterr().err.splitlines() == lines
    assert (hooks.LOGGER.level, hooks.LOGGER.handlers) == before
    assert logging.getLogger("fuhu_runway") is hooks.LOGGER


# Ctrl-C


def test_the_second_ctrl_c_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first cancels, the second ends the process, and so does one when there is no work."""
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

    with _console.Stop() as stop, asyncio.Runner() as runner, pressed(ready.is_set):
        assert stop.run(runner, work()) == 130
        signal.raise_signal(signal.SIGINT)
    assert left == [143, 130]


def test_leaving_at_once_gives_the_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, whose cursor a bar had hidden, it is shown before the process ends."""
    written: list[bytes] = []
    monkeypatch.setattr(os, "_exit", lambda code: None)
    monkeypatch.setattr(os, "isatty", lambda handle: handle == 2)
    monkeypatch.setattr(os, "write", lambda handle, data: written.append(data))
    _console.leave(130)
    assert written == [b"\x1b[?25h\n"]


def test_a_loop_that_sleeps_hears_of_a_signal_to_another_thread() -> None:
    """Only the thread that takes the signal wakes by itself, and that need not be the loop's."""
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
    with _console.Stop() as stop, asyncio.Runner() as runner:
        assert stop.run(runner, work()) == 130
    is_over.set()
    thread.join()


def test_who_was_told_to_ignore_ctrl_c_does() -> None:
    """A process in the background of a script stays deaf to Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _console.Stop():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


class WithoutHandlers(asyncio.SelectorEventLoop):
    """A loop that leaves signals to Python, as the one of Windows does."""

    def add_signal_handler(self, *_: object) -> None:
        raise NotImplementedError


def test_a_loop_that_knows_no_signals_is_stopped_all_the_same() -> None:
    """Python's own handler stops the work where the loop has none."""
    ready = threading.Event()

    async def work() -> None:
        asyncio.get_running_loop().call_soon(ready.set)
        # The loop of Windows is woken by each signal; this one has to wake by itself.
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    with (
        _console.Stop() as stop,
        asyncio.Runner(loop_factory=WithoutHandlers) as runner,
        pressed(ready.is_set),
    ):
        assert stop.run(runner, work()) == 130


def test_ctrl_break_stops_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a SIGBREAK, it ends the work in order, with a code of its own."""
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    before = signal.getsignal(signal.SIGUSR1)
    ready = threading.Event()

    async def work() -> None:
        asyncio.get_running_loop().call_soon(ready.set)
        await asyncio.Event().wait()

    with (
        _console.Stop() as stop,
        asyncio.Runner() as runner,
        pressed(ready.is_set, signal.SIGUSR1),
    ):
        assert stop.run(runner, work()) == 128 + signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_handler_that_is_not_pythons_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program around this one has set in C is neither replaced nor lost."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    with _console.Stop():
        pass
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_may_run_in_any_thread() -> None:
    """Outside the main thread no signal comes, and the work is done."""
    codes: list[int] = []

    async def work() -> int:
        return 3

    def command() -> None:
        codes.append(_console.guarded(work, _console.Lines(), verbosity=0))

    thread = threading.Thread(target=command)
    thread.start()
    thread.join()
    assert codes == [3]


def test_leaving_at_once_needs_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that is gone by then does not keep the process."""
    left: list[int] = []

    def gone(handle: int, data: bytes) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(os, "isatty", lambda handle: True)
    monkeypatch.setattr(os, "write", gone)
    _console.leave(143)
    assert left == [143]


# Terminals


def test_a_terminal_has_to_say_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TERM only Windows is known to move the cursor."""
    with on_a_terminal():
        monkeypatch.delenv("TERM")
        assert type(_console.screen_for(quiet=False)) is _console.Lines
        monkeypatch.setenv("TERM", "")
        assert type(_console.screen_for(quiet=False)) is _console.Lines
        monkeypatch.delenv("TERM")
        monkeypatch.setattr(os, "name", "nt")
        assert type(_console.screen_for(quiet=False)) is _console.Bar
        monkeypatch.undo()


class OldTerminal(io.TextIOWrapper):
    """A terminal of a Windows of western Europe, as the command has set it up."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="cp1252", errors="backslashreplace")

    def isatty(self) -> bool:
        return True


def test_a_bar_is_made_of_what_the_terminal_can_show() -> None:
    """Where there are no dots and no lines the bar is plain, and names show their codes."""
    terminal = OldTerminal()
    with on_a_terminal(), contextlib.redirect_stderr(terminal), _console.Bar() as bar:
        bar.stage("running", 0.5)
        bar.say("saved 笑.mp4")
        bar._progress.refresh()
    terminal.seek(0)
    shown = terminal.read()
    assert "saved \\u7b11.mp4" in shown
    assert shown.count("\\u") == 1


def test_a_terminal_that_goes_away_takes_no_job_with_it() -> None:
    """What is shown from then on is lost, and nothing is raised."""

    class Gone(OldTerminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

        def flush(self) -> None:
            raise OSError(5, "Input/output error")

    with on_a_terminal(), contextlib.redirect_stderr(Gone()), _console.Bar() as bar:
        bar.say("before")
        bar.stage("running", 0.5)
        bar.say("accepted: task t-1")
        bar.board("1 of 2", 0.5, "", "1 running")
        bar._progress.refresh()


def test_a_bar_that_swings_may_learn_how_far_it_is() -> None:
    """A stage without a known part follows one with it, and the other way round."""
    with on_a_terminal(), _console.Bar() as bar:
        for part in (None, 0.5, None):
            bar.stage("running", part)
            (task,) = bar._progress.tasks
            assert task.total == (None if part is None else 1.0)
            assert task.percentage == (0 if part is None else 50)


def test_what_is_said_is_not_read_as_markup() -> None:
    """Brackets and colons of a path or a reason come out as they went in."""
    with on_a_terminal() as terminal, _console.Bar() as bar:
        bar.say("before [bold] :cat:")
        bar.stage("running [bold]")
        bar.say("after [bold] :cat:")
    assert "before [bold] :cat:" in terminal.getvalue()
    assert "after [bold] :cat:" in terminal.getvalue()


@pytest.mark.parametrize(
    ("variables", "quiet", "kind"),
    [
        ({}, False, _console.Bar),
        ({}, True, _console.Lines),
        ({"TERM": "dumb"}, False, _console.Lines),
        ({"TERM": "unknown"}, False, _console.Lines),
    ],
)
def test_only_terminals_that_can_get_what_moves(
    variables: dict[str, str], quiet: bool, kind: type
) -> None:
    """A log, and JSON, get lines."""
    with on_a_terminal(**variables):
        screen = _console.screen_for(quiet=quiet)
        assert type(screen) is kind
        screen.close()
    assert type(_console.screen_for(quiet=False)) is _console.Lines


def test_without_a_terminal_each_stage_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A stage is a line when it begins; a quiet screen says only what has to be seen."""
    for screen in (_console.Lines(), _console.Lines(quiet=True)):
        screen.stage("running", 0.1)
        screen.stage("running", 0.2)
        screen.board("1 of 2", 0.5, "", "1 running")
        screen.say("seen")
    assert capsys.readouterr().err.splitlines() == ["running", "1 of 2, 1 running", "seen", "seen"]


@pytest.mark.parametrize("columns", ["40", "80"])
def test_a_board_takes_the_lines_it_needs(columns: str) -> None:
    """What does not fit in one line below the bar goes on in the next, and all of it is gone."""
    with on_a_terminal(COLUMNS=columns) as terminal, _console.Bar() as bar:
        bar.board("1 of 2", 0.5, "0:00:07 left", "40 running, 594 left, 2 failed, 99,840 points")
        bar._progress.refresh()
    told = terminal.getvalue()
    assert "1 of 2" in told
    assert "0:00:07 left" in told
    assert ("594 left, 2 failed, 99,840 points" in told) == (columns == "80")


# What is printed


def test_a_result_is_a_table_or_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    """A table shows what is known as a person writes it; JSON has every key."""
    row = {"task_id": "t\x1b1", "progress": 0.42, "refunded": True, "points": 1234.5, "file": None}
    _console.print_row(row, _options.TALK)
    assert capsys.readouterr().out.splitlines() == [
        *("task id   t 1", "progress  42%", "refunded  yes", "points    1,234.5"),
    ]
    _console.print_row(row, _options.Talk(json=True))
    assert json.loads(capsys.readouterr().out) == row


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("cp1252", b"caf\xe9 \\u7b11 \\udc80\n"),
        ("ascii", b"caf\\xe9 \\u7b11 \\udc80\n"),
        ("utf-8", "café 笑 \\udc80\n".encode()),
        ("gbk", "caf\\xe9 笑 \\udc80\n".encode("gbk").replace(b"\\xe9", "é".encode("gbk"))),
    ],
)
def test_what_a_stream_cannot_show_is_shown_as_its_code(encoding: str, shown: bytes) -> None:
    """A name or a reason in another script is no reason to fail, on any system."""
    file = io.BytesIO()
    stream = io.TextIOWrapper(file, encoding=encoding, newline="\n")
    _console.write(stream, "café 笑 \udc80")
    assert file.getvalue() == shown


def test_a_stream_that_is_closed_or_no_file_is_no_trouble() -> None:
    """What cannot be written there is dropped."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(32, "Broken pipe")

    closed = io.StringIO()
    closed.close()
    for stream in (closed, Gone()):
        _console.write(stream, "x")


def test_a_reader_who_left_is_no_reason_to_stop() -> None:
    """A closed pipe takes whatever is written from then on, and no stream is no trouble."""
    source = """
import sys
from fuhu_runway.cli.console import write
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
