"""The simulator's command line, in this process where that is enough, and as one of its own."""

import asyncio
import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.commands import Outcome, Run, is_clip, runner, settle_in, start

pytest.importorskip("cyclopts")

from fuhu_runway.cli import simulate as cli_simulate
from fuhu_runway.testing import Callbacks, Simulator, faults

BODY = {"callback_url": "https://callback.invalid/", "prompt": "a kitten", "model": "gen4"}
RUNNING = "simulated: a gateway on this machine, until Ctrl-C"
ENDS_AT_ONCE = "--until-stdin-closes"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, without the caller's variables."""
    settle_in(tmp_path, monkeypatch)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run the command in this process, with a stdin in which nothing is."""
    before, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    yield runner(capsys)
    os.dup2(before, 0)
    os.close(before)
    os.close(nothing)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Simulator]:
    """Each simulator that a command makes."""
    found: list[Simulator] = []
    begin = Simulator.start

    async def noted(simulator: Simulator) -> None:
        found.append(simulator)
        await begin(simulator)

    monkeypatch.setattr(Simulator, "start", noted)
    return found


@contextmanager
def simulating(*options: str, **more: Any) -> Iterator[tuple[dict[str, str], Any]]:
    """A simulator in a process of its own, and where it is."""
    with start("simulate", "--json", *options, **more) as process:
        assert process.stdout
        try:
            yield json.loads(process.stdout.readline()), process
        finally:
            process.kill()


def asked(url: str, body: object = None, key: str | None = None) -> Any:
    """What is answered at *url*, read by a program that knows nothing but HTTP and JSON."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - on this machine
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - on this machine
        return json.load(answer)


# Where it is.


def test_the_variables_lead_the_sdk_to_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines make the shell's variables, with which all else works; Ctrl-C is quiet."""
    with start("simulate", "--speed", "1000") as process:
        assert process.stderr
        assert process.stdout
        for _ in range(3):
            word, _, assignment = process.stdout.readline().strip().partition(" ")
            name, _, value = assignment.partition("=")
            assert word == "export"
            monkeypatch.setenv(name, *shlex.split(value))
        assert run("generate", "a kitten", "-o", "kitten.mp4").code == 0
        assert asked(f"{os.environ['FUHU_CONTROL_URL']}/counters")["submitted"] == 1
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == ""
        assert process.stderr.read().splitlines() == [RUNNING]
    assert process.returncode == 0
    assert is_clip("kitten.mp4")


def test_one_line_of_json_tells_all(run: Run) -> None:
    """With --json stdout is one object with the keys that the reference lists."""
    done = run("simulate", "--json", ENDS_AT_ONCE)
    assert (done.code, done.err) == (0, f"{RUNNING}\n")
    (line,) = done.out.splitlines()
    told = json.loads(line)
    assert told.keys() == cli_simulate.ADDRESS_KEYS.keys()
    assert told["control_url"] == f"{told['base_url']}/-"


def test_it_answers_as_soon_as_it_tells_where(tmp_path: Path) -> None:
    """Once the line is printed, submitting, controlling and polling work at the first try."""
    with simulating("--takes", "0") as (told, _):
        assert asked(f"{told['control_url']}/health")["status"] == "ok"
        url = f"{told['base_url']}/runway/pro/generate"
        task_id = asked(url, BODY, told["api_key"])["data"]["task_id"]
        (task,) = asked(f"{told['control_url']}/tasks")["tasks"]
    assert (task["task_id"], task["state"]) == (task_id, "succeeded")


# How it ends.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(number: int, tmp_path: Path) -> None:
    """Asked to terminate, it writes its end down, says nothing more, and has exit code 0."""
    with simulating("--state-file", "state") as (_, process):
        process.send_signal(number)
        assert process.wait() == 0
        assert process.stderr.read() == f"{RUNNING}\n"
    kinds = [json.loads(line)["kind"] for line in Path("state").read_text().splitlines()]
    assert kinds == ["opened", "closed"]


def test_it_ends_with_the_program_that_started_it() -> None:
    """A harness that is killed closes its end of the pipe, and leaves no gateway behind."""
    with simulating(ENDS_AT_ONCE, stdin=subprocess.PIPE) as (told, process):
        process.stdin.write("what is written there means nothing\n")
        process.stdin.flush()
        assert asked(f"{told['control_url']}/health")["status"] == "ok"
        process.stdin.close()
        assert process.wait() == 0


def test_a_stdin_that_was_never_open_is_closed(run: Run) -> None:
    """A process without a stdin does not run for ever by mistake."""
    before = os.dup(0)
    os.close(0)
    try:
        assert run("simulate", ENDS_AT_ONCE).code == 0
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_a_signal_ends_it_while_stdin_is_open() -> None:
    """Watching stdin does not keep the process from ending another way."""
    with simulating(ENDS_AT_ONCE, stdin=subprocess.PIPE) as (_, process):
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


@pytest.mark.usefixtures("run")
def test_a_stdin_that_closes_after_the_end_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that watches stdin finds the loop gone, and minds it not."""
    watchers = []

    class Late(threading.Thread):
        def start(self) -> None:
            watchers.append(self)

    async def watch() -> None:
        cli_simulate._set_at_end_of_stdin(asyncio.Event())

    monkeypatch.setattr(threading, "Thread", Late)
    asyncio.run(watch())
    watchers[0].run()


def test_without_the_option_a_closed_stdin_means_nothing() -> None:
    """A gateway in the background of a script goes on after its stdin is closed."""
    with simulating(stdin=subprocess.DEVNULL) as (told, process):
        assert asked(f"{told['control_url']}/health")["status"] == "ok"
        assert process.poll() is None


# How it behaves.


def test_the_defaults_are_the_simulators_own(run: Run, made: list[Simulator]) -> None:
    """The command without options runs what `Simulator(control=True)` is."""
    run("simulate", ENDS_AT_ONCE)
    for field in attrs.fields(Simulator):
        if field.init and field.name not in {"port", "cdn_port", "control"}:
            mine, theirs = getattr(made[0], field.name), getattr(Simulator(), field.name)
            assert mine == theirs, field.name


CONFIG = """
price = 3
quota_status = 401
burst = 3
retry_after = 4
official_dialect = "luma"
prefix = "/duomi"
strict = false
requires_version = true
media = "redirect"
exact_links = true
link_lifetime = 9.0
expired_status = 410
speed = 5

[callbacks]
times = 2
delay = 1.5
progress = false
disorder = true
garbage = true
again_after = 9.0
tries = 3
retry_after = 7.0
stutter = 0.5
"""


def test_each_option_arrives(run: Run, made: list[Simulator]) -> None:
    """The options set up the simulator, and win over those of the config."""
    Path("clip.mp4").write_bytes(b"a clip")
    Path("simulator.toml").write_text(CONFIG)
    options: dict[str, Any] = {
        "state-file": "state",
        "speed": 2.5,
        "takes": 0.0,
        "seed": 7,
        "points": 12.0,
        "rate-limit": 0.5,
        "dialect": "mixed",
        "feed-verb": "any",
        "key-style": "raw",
        "weather": 0.25,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--video", "clip.mp4", "--config", "simulator.toml"]
    assert run("simulate", *words, ENDS_AT_ONCE).code == 0
    (simulator,) = made
    for name, value in options.items():
        arrived = getattr(simulator, name.replace("-", "_"))
        assert (str(arrived) if name == "state-file" else arrived) == value, name
    more = {"price": 3, "quota_status": 401, "burst": 3, "official_dialect": "luma"}
    more |= {"prefix": "/duomi", "strict": False, "requires_version": True, "media": "redirect"}
    more |= {"exact_links": True, "link_lifetime": 9.0, "expired_status": 410, "video": b"a clip"}
    for name, value in more.items():
        assert getattr(simulator, name) == value, name
    assert simulator.rate_limit_answer == faults.TooManyRequests(4.0)
    assert simulator.callbacks == Callbacks(
        times=2,
        delay=1.5,
        progress=False,
        disorder=True,
        garbage=True,
        again_after=9.0,
        tries=3,
        retry_after=7.0,
        stutter=0.5,
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("speed =", "simulator.toml is not TOML: Invalid value"),
        ("sped = 2", "unexpected keyword argument 'sped'"),
        ("speed = 'fast'", "speed is 'fast'"),
        ("burst = 0", "burst is 0"),
        ("burst = true", "burst is True"),
        ("link_lifetime = -1", "link_lifetime is -1"),
        ("price = inf", "price is inf"),
        ("retry_after = -1", "retry_after is -1"),
        ("expired_status = 200", "expired_status is 200"),
        ("quota_status = 404", "quota_status is 404"),
        ("prefix = '/-'", "where the control API is"),
        ("media = 'tape'", 'media=\'tape\' is not one of "cdn", "api"'),
        ("strict = 'no'", "strict='no' is not true or false"),
        ("callbacks.times = 11", "'times' must be in range(1, 11)"),
        ("callbacks.delay = -1", "'delay' must be >= 0"),
        ("callbacks.time = 1", "unexpected keyword argument 'time'"),
        ("callbacks = true", "must be a mapping"),
    ],
)
def test_a_wrong_config_is_one_line(run: Run, text: str, told: str) -> None:
    """A value that no simulator can have, or a wrong name, is named and exits with 2."""
    Path("simulator.toml").write_text(text)
    done = run("simulate", "--config", "simulator.toml")
    (line,) = done.err.splitlines()
    assert (done.code, done.out, told in line) == (2, "", True), line


def has_ipv6() -> bool:
    """Return whether this machine has the other loopback address."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
def test_it_listens_where_it_is_told_to() -> None:
    """The addresses are those of the host that was asked for, and lead to it."""
    with simulating("--host", "::1") as (told, _):
        assert all(told[key].startswith("http://[::1]:") for key in ("base_url", "cdn_url"))
        assert asked(f"{told['control_url']}/health")["status"] == "ok"


def test_what_may_be_left_out_can_be(run: Run, made: list[Simulator]) -> None:
    """Points without limit and no callbacks are options, too."""
    assert run("simulate", "--no-points", "--no-callbacks", ENDS_AT_ONCE).code == 0
    assert (made[0].points, made[0].callbacks) == (None, None)


def test_it_goes_on_with_its_state_file(run: Run) -> None:
    """A gateway that was killed comes back with its tasks."""
    with simulating("--state-file", "state") as (told, _):
        task_id = asked(f"{told['base_url']}/runway/pro/generate", BODY, told["api_key"])["data"]
    with simulating("--state-file", "state") as (told, _):
        (task,) = asked(f"{told['control_url']}/tasks")["tasks"]
    assert task["task_id"] == task_id["task_id"]


# What cannot be.


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--speed", "0"], "speed is 0"),
        (["--speed", "inf"], "speed is inf"),
        (["--rate-limit", "nan"], "rate_limit is nan"),
        (["--takes", "-1"], "takes is -1"),
        (["--points", "-1"], "points is -1"),
        (["--weather", "2"], "weather is 2.0"),
        (["--feed-verb", "PUT"], "--feed-verb"),
        (["--dialect", "klingon"], "the dialects are: envelope"),
        (["--host", "192.0.2.1"], "is not this machine"),
        (["--port", "70000"], "port is 70000"),
        (["--port", "-1"], "port is -1"),
        (["--cdn-port", "70000"], "cdn_port is 70000"),
        (["--video", "nothing"], "The file of --video cannot be read (No such file"),
        (["--config", "nothing"], "The file of --config cannot be read (No such file"),
        (["--state-file", "no/folder"], "The state file cannot be used (No such file"),
        (["--state-file", "."], "The state file cannot be used (Is a directory"),
        (["--state-file", "other"], "is not the state file of a simulator"),
        (["surplus"], "more words than arguments"),
    ],
)
def test_a_wrong_option_is_one_line(run: Run, words: list[str], told: str) -> None:
    """Bad input exits with 2, says in one line what is wrong, and no gateway is announced."""
    Path("other").write_text("something else\n")
    done = run("simulate", *words)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("fuhu-runway: ")
    assert told in line


@pytest.mark.parametrize("option", ["--port", "--cdn-port"])
def test_a_port_that_is_taken_is_told(run: Run, option: str) -> None:
    """Two simulators cannot share a port, and the line says which it was."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("simulate", option, str(port))
    assert (done.code, done.out) == (2, "")
    assert f", {port}): Address already in use." in done.err


def test_a_state_file_in_use_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another simulator writes to between reading and opening is left to it."""
    begin = Simulator.start

    def late(simulator: Simulator) -> Any:
        Path("state").write_bytes(b'{"kind": "opened"')
        return begin(simulator)

    monkeypatch.setattr(Simulator, "start", late)
    done = run("simulate", "--state-file", "state")
    assert (done.code, done.out) == (2, "")
    assert "The state file is in use" in done.err


def test_a_reason_that_nobody_told_is_no_crash(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems may refuse a port without a word."""

    async def refused(_: Simulator) -> None:
        raise OSError

    monkeypatch.setattr(Simulator, "start", refused)
    assert "The port cannot be opened." in run("simulate").err


def test_help_needs_no_server(run: Run) -> None:
    """Every option is in the help, which imports no web server."""
    done: Outcome = run("simulate", "--help")
    assert done.code == 0
    names = attrs.fields_dict(cli_simulate.Options)
    assert all(f"--{name.replace('_', '-')}" in done.out for name in names)
