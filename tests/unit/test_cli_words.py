"""What commands say when they are wrong or fail, and submitting without waiting."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import (
    GatewayThread,
    Run,
    documented_keys,
    gateway_in_thread,
    is_clip,
    pressed,
    runner,
    settle_in,
)

pytest.importorskip("cyclopts")

from fuhu_runway.cli import console, make
from fuhu_runway.testing import faults

PROMPT = "a secret kitten"
IMAGE = "https://example.com/image.png"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle_in(tmp_path, monkeypatch)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""
    return runner(capsys)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayThread]:
    """A gateway that the environment variables point to; its tasks take 50 ms."""
    with gateway_in_thread(monkeypatch, speed=1000, takes=50) as elsewhere:
        yield elsewhere


# Submitting without waiting


@pytest.mark.parametrize("name", ["generate", "submit"])
def test_no_wait_prints_the_id_and_how_to_continue(
    run: Run, gateway: GatewayThread, name: str
) -> None:
    """Stdout is the task's id, and the command on stderr fetches the clip that was paid once."""
    gateway.simulator.script(takes=1_000)
    done = run(name, PROMPT, "--no-wait", "-o", "kitten.mp4")
    assert (done.code, done.out) == (0, f"{done.task_id}\n")
    *_, later = done.err.splitlines()
    assert later == f"To get the clip later: fuhu-runway wait {done.task_id} -o kitten.mp4"
    assert not Path("kitten.mp4").exists()
    assert run("wait", done.task_id, "-o", "kitten.mp4").code == 0
    assert is_clip("kitten.mp4")
    assert gateway.call(lambda one: one.submitted) == 1


@pytest.mark.parametrize(
    "words", [["restyle", "https://a.com/in.mp4", PROMPT], ["act", "https://a.com/in.mp4", IMAGE]]
)
def test_every_paid_command_can_leave_at_once(
    run: Run, gateway: GatewayThread, words: list[str]
) -> None:
    """Restyle and act have --no-wait as well, and with --json they print one object."""
    done = run(*words, "--no-wait", "--json")
    row = json.loads(done.out)
    assert row.keys() == documented_keys("A task that was not waited for, in JSON")
    assert row["command"].startswith(f"fuhu-runway wait {row['task_id']} -o ")


def test_a_journal_has_the_task_that_was_not_waited_for(run: Run, gateway: GatewayThread) -> None:
    """With --journal, `jobs` lists the task, and `resume` saves its clip."""
    done = run("submit", PROMPT, "--no-wait", "--journal", "mine.db")
    assert done.task_id in run("jobs", "mine.db").out
    assert run("resume", "mine.db", "--out", "clips").code == 0
    assert is_clip(f"clips/{done.task_id}.mp4")
    assert "1 saved" in run("jobs", "mine.db").out


def test_a_journal_also_records_what_is_waited_for(run: Run, gateway: GatewayThread) -> None:
    """A clip that is saved by the command itself is saved in the journal."""
    assert run("generate", PROMPT, "--journal", "mine.db").code == 0
    assert "1 saved" in run("jobs", "mine.db").out


@pytest.mark.parametrize("flag", [["--no-wait"], ["--journal", "mine.db"]])
def test_a_simulated_task_cannot_be_left(run: Run, flag: list[str]) -> None:
    """The simulated gateway of a command ends with it, so these options need another one."""
    done = run("generate", PROMPT, "--simulate", *flag)
    assert (done.code, done.out) == (2, "")
    assert "--simulate cannot be combined with --no-wait or --journal" in done.err
    assert not Path("mine.db").exists()


def test_a_simulated_journal_is_not_for_a_real_gateway(run: Run, gateway: GatewayThread) -> None:
    """--journal with that of a simulated batch is refused, and nothing is sent."""
    Path("p.txt").write_text(PROMPT)
    assert run("batch", "p.txt", "--simulate").code == 0
    done = run("submit", PROMPT, "--journal", "clips/journal.db")
    assert (done.code, gateway.call(lambda one: one.requests)) == (2, ())
    assert "belongs to a simulated gateway" in done.err


def test_submit_takes_a_prompt_of_several_words(run: Run, gateway: GatewayThread) -> None:
    """Text with a space is a prompt; a word is a kind, and an unknown one sends nothing."""
    assert run("submit", "a kitten", "--no-wait").code == 0
    assert gateway.body()["prompt"] == "a kitten"
    for mistake in ("kitten", "text_to_video prompt=a kitten"):
        assert run("submit", mistake, "--no-wait").code == 2
    assert gateway.call(lambda one: one.submitted) == 1


# The user's own words


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["generate", "-a secret kitten"], "Use -- before a prompt that begins with -"),
        (["generate", "-"], "Use -- before a prompt that begins with -"),
        (["generate", "--", "-a secret", "--simulate"], "Put options before it."),
        (["generate", "--", "-a", "secret"], "Put options before it."),
        (["generate", PROMPT, "--seconds"], "--seconds needs a value."),
        (["generate", PROMPT, "-o"], "-o needs a value."),
        (["submit", "alep", "video=x"], "Did you mean aleph? Use text_to_video"),
        (["balanc", PROMPT], 'Unknown command "balanc". Did you mean "balance"?'),
        (["generate", PROMPT, "--simulat"], "Did you mean --simulate?"),
        (["generate", PROMPT, "--wwww", "5"], "Unknown option: --wwww. Nothing was sent"),
        (["generate", PROMPT, "--duration", "5"], "--duration. Did you mean --seconds?"),
        (["generate", PROMPT, "--aspect-ratio=1:1"], "--aspect-ratio. Did you mean --ratio?"),
        (["generate", PROMPT, "--timeout", "-5"], 'Invalid value "-5" for --timeout.'),
        (["generate", PROMPT, "--ratio", "16x9"], '"16x9" for --ratio. Did you mean 16:9?'),
        (["generate", PROMPT, "--ratio", "16"], "--ratio is '16'."),
        (["balance", "--gateway", "deerap"], '"deerap" for --gateway. Did you mean deerapi?'),
        (["generate", PROMPT, "--model", "gen4-turbo"], "gen4-turbo is not known. Did you mean"),
        (["restyle", IMAGE, PROMPT, "--model", "Gen4"], "--model Gen4 is not known."),
        (["restyle", IMAGE, PROMPT, "--structure-transformation", "7"], "--structure-tr"),
        (["generate", PROMPT, "--seconds", "99"], "--seconds is 99."),
        (["generate", PROMPT, "--flip"], "Use it with --image alone, or remove it."),
        (["generate", PROMPT, "--extra", '{"prompt": 1}'], "extra sets 'prompt'"),
        (["generate", PROMPT, "--base-url", "a b"], "--base-url must be an http(s) URL"),
    ],
)
def test_an_error_has_the_words_that_were_typed(
    run: Run, gateway: GatewayThread, tokens: list[str], message: str
) -> None:
    """Commands, options and values are named as they were typed, and the likely one is offered."""
    done = run(*tokens)
    assert (done.code, done.out) == (2, "")
    # Older versions of cyclopts put options in quotes.
    assert message in re.sub(r'"(--[a-z]+)"', r"\1", done.err.splitlines()[-1])
    assert "secret" not in done.err
    assert gateway.call(lambda one: one.requests) == ()


def test_a_prompt_may_begin_with_a_dash(run: Run, gateway: GatewayThread) -> None:
    """After --, everything is the prompt."""
    assert run("generate", "-o", "k.mp4", "--", "-a kitten").code == 0
    assert gateway.body()["prompt"] == "-a kitten"


@pytest.mark.parametrize("name", ["gen4_turbo", "gen5", "gen4.6", "kling", "gen45_turbo"])
def test_new_models_are_sent_as_they_are(run: Run, gateway: GatewayThread, name: str) -> None:
    """A known model, and one with another number or another name, is not a mistake."""
    assert run("generate", PROMPT, "--model", name, "--no-wait").code == 0
    assert gateway.body()["model"] == name


@pytest.mark.parametrize(
    "words", [["generate", PROMPT], ["restyle", "https://example.com/in.mp4", PROMPT]]
)
def test_any_model_can_be_sent(run: Run, gateway: GatewayThread, words: list[str]) -> None:
    """--any-model sends also a name that looks mistyped."""
    assert run(*words, "--model", "gen4-turbo", "--any-model", "--no-wait").code == 0
    assert gateway.body()["model"] == "gen4-turbo"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:9", "127.0.0.1:9"),
        ("http://127.0.0.2", "127.0.0.2:80"),
        ("https://[::1]/path", "[::1]:443"),
    ],
)
def test_a_connection_error_ends_with_the_address(
    run: Run, monkeypatch: pytest.MonkeyPatch, url: str, address: str
) -> None:
    """Host and port are shown, without the path, and the option is named as it is typed."""
    monkeypatch.setenv("FUHU_API_KEY", "sk-1")
    done = run("balance", "--base-url", url)
    assert done.code == 5
    assert "Check the network and --base-url" in done.err
    assert done.err.endswith(f" The gateway's address is {address}.\n")


# Quiet


def test_quiet_shows_the_id_and_no_progress(run: Run, gateway: GatewayThread) -> None:
    """With -q, stderr has the id of the paid task, and stdout the path."""
    done = run("generate", PROMPT, "-o", "kitten.mp4", "-q")
    assert (done.out, done.err) == ("kitten.mp4\n", f"accepted: task {done.task_id}\n")


def test_other_libraries_log_nothing() -> None:
    """Without -v, a warning of another library does not appear among the output."""
    script = (
        "import logging\n"
        "from fuhu_runway.cli import console\n"
        "async def warn(): logging.getLogger('asyncio').warning('slow')\n"
        "console.run(warn(), console.Screen())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


# JSON


@pytest.mark.parametrize(
    ("tokens", "name", "code"),
    [
        (["generate", PROMPT, "--json", "--simulat"], "UsageError", 2),
        (["generate", PROMPT, "--json", "--image", "x"], "UsageError", 2),
        (["generate", PROMPT, "--json", "-o", "no/k.mp4"], "UsageError", 2),
        (["simulate", "--port", "-1", "--json"], "UsageError", 2),
        (["batch", "missing.txt", "--json"], "UsageError", 2),
        (["batch", "/dev/fd/99", "--json"], "UsageError", 2),
        (["feed", "no-such-task", "--json"], "NotFound", 5),
    ],
)
def test_a_failing_command_prints_one_object(
    run: Run, gateway: GatewayThread, tokens: list[str], name: str, code: int
) -> None:
    """Stdout is one object with the error and its exit code; stderr has the same line."""
    done = run(*tokens)
    (line,) = done.out.splitlines()
    row = json.loads(line)
    assert row.keys() == documented_keys("An error in JSON")
    assert (row["error"], row["exit_code"], done.code) == (name, code, code)
    assert done.err.endswith(f"fuhu-runway: {row['message']}\n")
    assert "charged" in row["money"]


def test_a_prompt_is_not_an_option(run: Run, gateway: GatewayThread) -> None:
    """After --, --json is a prompt, and the error is no object."""
    assert run("generate", "--", "--json", "x").out == ""


def test_a_failed_task_is_an_object_with_its_id(run: Run, gateway: GatewayThread) -> None:
    """The object has the id of the task, and what became of the points."""
    gateway.simulator.script(then="fail")
    row = json.loads(run("generate", PROMPT, "--json").out)
    assert (row["error"], row["exit_code"]) == ("TaskFailed", 1)
    assert json.loads(run("feed", row["task_id"], "--json").out)["state"] == "failed"
    assert "refunded" in row["money"]


def test_ctrl_c_is_an_object_with_the_task(run: Run, gateway: GatewayThread) -> None:
    """After Ctrl-C, the object has the task that continues, and how."""
    gateway.simulator.script(takes=1_000_000.0)
    with pressed(lambda: gateway.got("feed")):
        done = run("generate", PROMPT, "--json", "-o", "k.mp4")
    row = json.loads(done.out)
    assert row == {
        "error": "Stopped",
        "message": done.err.splitlines()[-1],
        "task_id": done.task_id,
        "money": "The task continues.",
        "exit_code": 130,
    }


def test_a_bug_is_an_object(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in this program has the exit code 70 and says nothing about the money."""
    monkeypatch.setattr(make, "fields", None)
    row = json.loads(run("balance", "--json").out)
    assert (row["error"], row["exit_code"], row["money"]) == ("TypeError", 70, None)


# Requests in flight


def test_a_request_is_in_flight_from_its_sending_to_its_outcome(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a refusal, a retry and an acceptance, no request is in flight."""
    screens: list[console.Screen] = []
    watch = console.Screen.watch

    def see(screen: console.Screen, event: make.hooks.Event) -> None:
        watch(screen, event)
        screens.append(screen)
        if isinstance(event, make.hooks.SubmissionSent):
            assert screen.in_flight == {event.submission}
        if isinstance(event, make.hooks.RetryScheduled | make.hooks.TaskSubmitted):
            assert not screen.in_flight

    monkeypatch.setattr(console.Screen, "watch", see)
    gateway.simulator.fault("submit", faults.empty_429(0.01))
    assert run("generate", PROMPT).code == 0
    assert screens
    gateway.simulator.fault("submit", faults.drop_after_accepting())
    assert run("generate", PROMPT).code == 3
    assert not screens[-1].in_flight


def test_a_simulated_request_costs_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests to a simulated gateway do not count, so that stopping them is not in doubt."""
    seen: list[object] = []
    monkeypatch.setattr(console.Screen, "watch", lambda _, event: seen.append(event))
    monkeypatch.setattr(make, "SIMULATED_SPEED", 1000.0)
    assert run("generate", PROMPT, "--simulate").code == 0
    assert seen == []


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_installed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    """--install-completion writes a script that knows the commands and options."""
    monkeypatch.setenv("HOME", str(tmp_path))
    done = run("--install-completion", "--shell", shell, "--output", "script")
    assert done.code == 0
    assert all(word in Path("script").read_text() for word in ("generate", "dry-run"))
