"""The command `simulate`: in this process where possible, else as a separate process."""

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
from support.commands import (
    Outcome,
    Run,
    documented_keys,
    is_clip,
    pressed,
    runner,
    settle_in,
    start,
)

pytest.importorskip("cyclopts")

from fuhu_runway.cli import simulate as cli_simulate
from fuhu_runway.testing import AccountLists, Callbacks, Simulator, faults

BODY = {"callback_url": "https://callback.invalid/", "prompt": "a kitten", "model": "gen4"}
RUNNING = "simulated: a gateway on this machine, until Ctrl-C"
ENDS_AT_ONCE = "--until-stdin-closes"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an empty folder and none of the caller's variables."""
    settle_in(tmp_path, monkeypatch)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run the command in this process, with an empty stdin."""
    before, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    yield runner(capsys)
    os.dup2(before, 0)
    os.close(before)
    os.close(nothing)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Simulator]:
    """The simulators that a command starts."""
    found: list[Simulator] = []
    begin = Simulator.start

    async def noted(simulator: Simulator) -> None:
        found.append(simulator)
        await begin(simulator)

    monkeypatch.setattr(Simulator, "start", noted)
    return found


@contextmanager
def simulating(*options: str, **more: Any) -> Iterator[tuple[dict[str, str], Any]]:
    """Yield the URLs of a simulator in a separate process, and the process."""
    with start("simulate", "--json", *options, **more) as process:
        assert process.stdout
        try:
            yield json.loads(process.stdout.readline()), process
        finally:
            process.kill()


def fetch_json(url: str, body: object = None, key: str | None = None) -> Any:
    """Return the JSON at *url*, requested without the SDK."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - on this machine
    with urllib.request.urlopen(request) as response:  # noqa: S310 - on this machine
        return json.load(response)


# Its URLs


def test_the_variables_direct_the_sdk_to_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the printed shell variables, the other commands use it; Ctrl-C prints nothing."""
    with start("simulate", "--speed", "1000") as process:
        assert process.stderr
        assert process.stdout
        for _ in range(5):
            word, _, assignment = process.stdout.readline().strip().partition(" ")
            name, _, value = assignment.partition("=")
            assert word == "export"
            monkeypatch.setenv(name, *shlex.split(value))
        assert run("generate", "a kitten", "-o", "kitten.mp4").code == 0
        assert fetch_json(f"{os.environ['FUHU_CONTROL_URL']}/counters")["submitted"] == 1
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == ""
        assert process.stderr.read().splitlines() == [RUNNING]
    assert process.returncode == 0
    assert is_clip("kitten.mp4")


def test_json_is_one_line_with_the_documented_keys(run: Run) -> None:
    """With --json, stdout is one object with the documented keys."""
    done = run("simulate", "--json", ENDS_AT_ONCE)
    assert (done.code, done.err) == (0, f"{RUNNING}\n")
    (line,) = done.out.splitlines()
    row = json.loads(line)
    assert row.keys() == documented_keys("A simulator in JSON")
    assert row["control_url"] == f"{row['base_url']}/-"


def test_it_answers_as_soon_as_its_urls_are_printed(tmp_path: Path) -> None:
    """Once the line is printed, submitting and the control API work at the first attempt."""
    with simulating("--takes", "0") as (urls, _):
        assert fetch_json(f"{urls['control_url']}/health")["status"] == "ok"
        url = f"{urls['base_url']}/runway/pro/generate"
        task_id = fetch_json(url, BODY, urls["api_key"])["data"]["task_id"]
        (task,) = fetch_json(f"{urls['control_url']}/tasks")["tasks"]
    assert (task["task_id"], task["state"]) == (task_id, "succeeded")


# How it ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: int, tmp_path: Path) -> None:
    """After a signal, it records its end in the state file, prints nothing, and exits with 0."""
    with simulating("--state-file", "state") as (_, process):
        process.send_signal(number)
        assert process.wait() == 0
        assert process.stderr.read() == f"{RUNNING}\n"
    kinds = [json.loads(line)["kind"] for line in Path("state").read_text().splitlines()]
    assert kinds == ["opened", "closed"]


def test_it_ends_with_the_program_that_started_it() -> None:
    """When the program that started it closes the pipe, for example by dying, it ends."""
    with simulating(ENDS_AT_ONCE, stdin=subprocess.PIPE) as (urls, process):
        process.stdin.write("what is written there means nothing\n")
        process.stdin.flush()
        assert fetch_json(f"{urls['control_url']}/health")["status"] == "ok"
        process.stdin.close()
        assert process.wait() == 0


def test_a_stdin_that_was_never_open_counts_as_closed(run: Run) -> None:
    """A process without a stdin ends at once instead of running without end."""
    before = os.dup(0)
    os.close(0)
    try:
        assert run("simulate", ENDS_AT_ONCE).code == 0
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_a_signal_ends_it_while_stdin_is_open() -> None:
    """Watching stdin does not prevent the process from ending on a signal."""
    with simulating(ENDS_AT_ONCE, stdin=subprocess.PIPE) as (_, process):
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def test_a_stdin_that_closes_after_the_end_is_harmless(run: Run, made: list[Simulator]) -> None:
    """The thread that watches stdin ignores that the event loop has ended."""
    theirs, ours = os.pipe()
    os.dup2(theirs, 0)
    os.close(theirs)
    with pressed(lambda: bool(made) and made[0].is_running):
        assert run("simulate", ENDS_AT_ONCE).code == 0
    (watcher,) = [thread for thread in threading.enumerate() if thread.name == "stdin"]
    os.close(ours)
    watcher.join()


def test_without_the_option_a_closed_stdin_is_ignored() -> None:
    """A gateway in the background of a script continues after its stdin is closed."""
    with simulating(stdin=subprocess.DEVNULL) as (urls, process):
        assert fetch_json(f"{urls['control_url']}/health")["status"] == "ok"
        assert process.poll() is None


# Its settings


def test_the_defaults_are_the_simulators_own(run: Run, made: list[Simulator]) -> None:
    """Without options, the command runs `Simulator(control=True)`."""
    run("simulate", ENDS_AT_ONCE)
    for field in attrs.fields(Simulator):
        if field.init and field.name not in {"port", "cdn_port", "control"}:
            mine, theirs = getattr(made[0], field.name), getattr(Simulator(), field.name)
            assert mine == theirs, field.name


CONFIG = """
price = 3
feed_verb = "any"
key_style = "raw"
video = "clip.mp4"
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
clock_offset = -3600
access_token = "a token"
user_id = 3

[lists]
version = 2026
delay = 30
own_ids = true

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


def test_each_option_reaches_the_simulator(run: Run, made: list[Simulator]) -> None:
    """The options configure the simulator, and override the config file."""
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
        "weather": 0.25,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--config", "simulator.toml"]
    assert run("simulate", *words, ENDS_AT_ONCE).code == 0
    (simulator,) = made
    for name, value in options.items():
        arrived = getattr(simulator, name.replace("-", "_"))
        assert (str(arrived) if name == "state-file" else arrived) == value, name
    assert simulator.lists == AccountLists(version=2026, delay=30, own_ids=True)
    more = {
        "price": 3,
        "feed_verb": "any",
        "key_style": "raw",
        "quota_status": 401,
        "burst": 3,
        "official_dialect": "luma",
    }
    more |= {"clock_offset": -3600, "access_token": "a token", "user_id": 3}
    more |= {"prefix": "/duomi", "strict": False, "requires_version": True, "media": "redirect"}
    more |= {"exact_links": True, "link_lifetime": 9.0, "expired_status": 410, "video": b"a clip"}
    for name, value in more.items():
        assert getattr(simulator, name) == value, name
    assert simulator.rate_limit_response == faults.TooManyRequests(4.0)
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
    ("text", "message"),
    [
        ("speed =", "simulator.toml is not valid TOML: Invalid value"),
        ("sped = 2", "unexpected keyword argument 'sped'"),
        ("speed = 'fast'", "speed='fast'"),
        ("burst = 0", "burst=0"),
        ("burst = true", "burst=True"),
        ("link_lifetime = -1", "link_lifetime=-1"),
        ("price = inf", "price=inf"),
        ("retry_after = -1", "retry_after=-1"),
        ("expired_status = 200", "expired_status=200"),
        ("quota_status = 404", "quota_status=404"),
        ("prefix = '/-'", "where the control API is"),
        ("media = 'tape'", 'media=\'tape\' is not one of "cdn", "api"'),
        ("strict = 'no'", "strict='no' is not true or false"),
        ("callbacks.times = 11", "'times' must be in range(1, 11)"),
        ("callbacks.delay = -1", "'delay' must be >= 0"),
        ("callbacks.time = 1", "unexpected keyword argument 'time'"),
        ("callbacks = true", "must be a mapping"),
        ("video = 'nothing'", "The file of video cannot be read (No such file"),
        ("cdn_port = 70000", "cdn_port=70000"),
    ],
)
def test_a_wrong_config_is_one_line(run: Run, text: str, message: str) -> None:
    """An invalid value or name exits with 2, and the error names it."""
    Path("simulator.toml").write_text(text)
    done = run("simulate", "--config", "simulator.toml")
    (line,) = done.err.splitlines()
    assert (done.code, done.out, message in line) == (2, "", True), line


def has_ipv6() -> bool:
    """Return whether this machine has the loopback address ::1."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
def test_it_listens_on_the_given_host() -> None:
    """The printed URLs contain the host, and work."""
    with simulating("--host", "::1") as (urls, _):
        assert all(urls[key].startswith("http://[::1]:") for key in ("base_url", "cdn_url"))
        assert fetch_json(f"{urls['control_url']}/health")["status"] == "ok"


def test_points_can_be_unlimited(run: Run, made: list[Simulator]) -> None:
    """--no-points lets the first key spend without limit."""
    assert run("simulate", "--no-points", ENDS_AT_ONCE).code == 0
    assert made[0].points is None


def test_it_continues_with_its_state_file(run: Run) -> None:
    """A gateway that was killed restores its tasks."""
    with simulating("--state-file", "state") as (urls, _):
        url = f"{urls['base_url']}/runway/pro/generate"
        submitted = fetch_json(url, BODY, urls["api_key"])
    with simulating("--state-file", "state") as (urls, _):
        (task,) = fetch_json(f"{urls['control_url']}/tasks")["tasks"]
    assert task["task_id"] == submitted["data"]["task_id"]


# Errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--speed", "0"], "speed=0.0 is not a number from"),
        (["--speed", "inf"], "speed=inf"),
        (["--rate-limit", "nan"], "--rate-limit=nan"),
        (["--takes", "-1"], "takes=-1"),
        (["--points", "-1"], "points=-1"),
        (["--weather", "2"], "weather=2.0"),
        (["--dialect", "klingon"], "the dialects are: envelope"),
        (["--host", "192.0.2.1"], "is not this machine"),
        (["--port", "70000"], "--port=70000"),
        (["--port", "-1"], "port=-1"),
        (["--config", "nothing"], "The file of config cannot be read (No such file"),
        (["--state-file", "no/folder"], "The state file cannot be used (No such file"),
        (["--state-file", "."], "The state file cannot be used (Is a directory"),
        (["--state-file", "other"], "is not the state file of a simulator"),
        (["surplus"], "too many arguments"),
    ],
)
def test_a_wrong_option_is_one_line(run: Run, words: list[str], message: str) -> None:
    """Invalid input exits with 2 and one line that says what is wrong, and prints no URLs."""
    Path("other").write_text("something else\n")
    done = run("simulate", *words)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("fuhu-runway: ")
    assert message in line


def test_a_port_in_use_is_an_error(run: Run) -> None:
    """Two simulators cannot share a port, and the error names it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("simulate", "--port", str(port))
    assert (done.code, done.out) == (2, "")
    assert f", {port}): Address already in use." in done.err


def test_a_state_file_in_use_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state file that another simulator changes meanwhile is left alone."""
    begin = Simulator.start

    def late(simulator: Simulator) -> Any:
        Path("state").write_bytes(b'{"kind": "opened"')
        return begin(simulator)

    monkeypatch.setattr(Simulator, "start", late)
    done = run("simulate", "--state-file", "state")
    assert (done.code, done.out) == (2, "")
    assert "The state file is in use" in done.err


def test_an_os_error_may_have_no_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system may refuse a port without giving a reason."""

    async def refused(_: Simulator) -> None:
        raise OSError

    monkeypatch.setattr(Simulator, "start", refused)
    assert "The port cannot be opened." in run("simulate").err


def test_help_needs_no_server(run: Run) -> None:
    """The help lists every option without importing the simulator."""
    done: Outcome = run("simulate", "--help")
    assert done.code == 0
    names = attrs.fields_dict(cli_simulate.Options)
    assert all(f"--{name.replace('_', '-')}" in done.out for name in names)
