"""The command line, in this process where that is enough, and as a process of its own."""

import contextlib
import errno
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.clients import QUICK_POLLS, QUICK_RETRY
from support.commands import (
    Elsewhere,
    Run,
    gateway_elsewhere,
    is_clip,
    on_a_terminal,
    pressed,
    read_until,
    runner,
    start,
)

pytest.importorskip("cyclopts")

from fuhu_runway import Client, errors
from fuhu_runway.cli import app as cli
from fuhu_runway.cli import console as _console
from fuhu_runway.cli import make
from fuhu_runway.task import Clip
from fuhu_runway.testing import faults
from fuhu_runway.testing.faults import Fault

PROMPT = "a secret kitten"
IMAGE = "https://example.com/image.png"
VIDEO = "https://example.com/video.mp4"
COMMANDS = ["generate", "restyle", "act", "wait", "feed", "balance", "simulate"]
COMMANDS += ["batch", "jobs", "resume", "resolve", "forget"]
EVER = 1_000_000.0
SIMULATED_SPEED = make.SIMULATED_SPEED


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, without the variables of the real user."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FUHU_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pauses last milliseconds, and simulated jobs half a second."""
    monkeypatch.setattr("fuhu_runway.client.PollPolicy", lambda: QUICK_POLLS)
    monkeypatch.setattr("fuhu_runway.client.RetryPolicy", lambda: QUICK_RETRY)
    monkeypatch.setattr(make, "SIMULATED_SPEED", 1000.0)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""
    return runner(capsys)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    """A gateway that the environment leads to; its tasks take a twentieth of a second."""
    with gateway_elsewhere(monkeypatch, speed=1000, takes=50) as elsewhere:
        yield elsewhere


# Making clips


def test_generate_saves_the_clip_and_prints_its_path(run: Run, gateway: Elsewhere) -> None:
    """One task is paid, its file is there, stdout has the path and nothing else."""
    done = run("generate", PROMPT, "-o", "kitten.mp4")
    assert (done.code, done.out) == (0, "kitten.mp4\n")
    assert is_clip("kitten.mp4")
    assert gateway.ask(lambda one: one.submitted) == 1


def test_off_a_terminal_the_news_are_plain_lines(run: Run, gateway: Elsewhere) -> None:
    """Each state is one line, and no percent, colour or cursor is among them."""
    done = run("generate", PROMPT, "-o", "kitten.mp4")
    lines = done.err.splitlines()
    assert lines[:2] == ["submitting", f"accepted: task {done.task_id}"]
    assert set(lines[2:-2]) <= {"queued", "running"}
    assert lines[-2] == "downloading"
    assert re.fullmatch(r"saved: [\d.]+ kB, 320 points", lines[-1])


def test_without_a_name_the_file_is_called_by_prompt_and_task(run: Run, gateway: Elsewhere) -> None:
    """The default name reads like the prompt and has the whole id in it."""
    done = run("generate", "a kitten / asleep")
    assert done.out == f"a-kitten-asleep-{done.task_id}.mp4\n"
    assert is_clip(done.out.strip())


def test_a_long_prompt_leaves_the_id_in_the_name(run: Run, gateway: Elsewhere) -> None:
    """However long the prompt, and in whatever script, two tasks have two names."""
    done = run("generate", "小猫" * 100)
    assert done.out.strip().endswith(f"-{done.task_id}.mp4")
    assert is_clip(done.out.strip())


def test_a_name_is_made_of_what_the_locale_takes(
    run: Run, gateway: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where file names are ASCII the clip of any prompt has one, before and after it is paid."""
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    done = run("generate", "小猫 x")
    assert done.out == f"x-{done.task_id}.mp4\n"
    assert run("wait", done.task_id, "--force").out == done.out


def test_a_clip_that_is_moved_at_once_is_saved_all_the_same(
    run: Run, gateway: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program may have taken the file before its size is shown."""
    download = Clip.download

    async def taken(clip: Clip, path: Path, **options: Any) -> Path:
        saved = await download(clip, path, **options)
        return saved.rename("elsewhere.mp4")

    monkeypatch.setattr(Clip, "download", taken)
    done = run("generate", PROMPT, "-o", "kitten.mp4")
    assert (done.code, done.out) == (0, "kitten.mp4\n")
    assert done.err.splitlines()[-1] == "saved: size unknown, 320 points"


def test_every_option_of_text_to_video_reaches_the_gateway(run: Run, gateway: Elsewhere) -> None:
    """The body is what the options say."""
    options = "--ratio 9:16 --seconds 5 --model gen3 --style noir --motion y=0.4,r=-6"
    extra = ["--extra", '{"options": {"hd": true}}']
    assert run("generate", PROMPT, *options.split(), *extra).code == 0
    body = gateway.body()
    assert body["prompt"] == PROMPT
    assert (body["ratio"], body["model"], body["style"]) == ("9:16", "gen3", "noir")
    assert (body["options"]["seconds"], body["options"]["hd"]) == (5, True)
    motion = body["options"]["motion_vector"]
    assert motion == {"x": 0, "y": 0.4, "z": 0, "r": -6, "bg_x_pan": 0, "bg_y_pan": 0}


def test_an_image_makes_it_image_to_video(run: Run, gateway: Elsewhere) -> None:
    """With --image the picture's own options are sent, too."""
    options = ["--image", IMAGE, "--last-image", VIDEO, "--image-as-end-frame", "--flip"]
    assert run("generate", PROMPT, *options).code == 0
    body = gateway.body()
    assert (body["image"], body["last_image"]) == (IMAGE, VIDEO)
    assert body["options"]["image_as_end_frame"] is body["options"]["flip"] is True


def test_the_official_format_has_a_road_of_its_own(run: Run, gateway: Elsewhere) -> None:
    """With --official the task is submitted, waited for and saved in the official format."""
    options = ["--official", "--image", IMAGE, "--seed", "7", "--no-watermark"]
    done = run("generate", PROMPT, *options, "-o", "clip.mp4")
    assert (done.code, is_clip("clip.mp4")) == (0, True)
    body = gateway.body()
    assert (body["promptImage"], body["seed"], body["watermark"]) == (IMAGE, 7, False)


def test_restyle_sends_all_it_is_told(run: Run, gateway: Elsewhere) -> None:
    """The redraw's options are the body's fields, and --no-seconds leaves the length out."""
    options = "--structure-transformation 0.2 --no-seconds --flip --model gen3"
    assert run("restyle", VIDEO, PROMPT, *options.split()).code == 0
    body = gateway.body()
    assert (body["video"], body["prompt"], body["model"]) == (VIDEO, PROMPT, "gen3")
    assert body["options"] == {"structure_transformation": 0.2, "flip": True}


def test_act_sends_all_it_is_told(run: Run, gateway: Elsewhere) -> None:
    """A character may be a clip, and the file is named without a prompt."""
    options = ["--character-video", VIDEO, "--motion-multiplier", "3", "--no-flip"]
    done = run("act", VIDEO, *options)
    assert done.out == f"clip-{done.task_id}.mp4\n"
    body = gateway.body()
    assert (body["video"], body["character_video"]) == (VIDEO, VIDEO)
    assert body["options"] == {"motion_multiplier": 3, "flip": False}


def test_act_takes_a_picture(run: Run, gateway: Elsewhere) -> None:
    """The second argument is the character's picture."""
    assert run("act", VIDEO, IMAGE).code == 0
    assert gateway.body()["image"] == IMAGE


def test_force_replaces_the_file(run: Run, gateway: Elsewhere) -> None:
    """With --force what was there gives way to the clip."""
    Path("kitten.mp4").write_text("old")
    assert run("generate", PROMPT, "-o", "kitten.mp4", "--force").code == 0
    assert is_clip("kitten.mp4")


def test_simulate_needs_no_key_and_minds_no_variable(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --simulate the clip comes without a key, past an address that leads nowhere."""
    monkeypatch.setenv("FUHU_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("FUHU_API_KEY", "no key, with spaces")
    done = run("generate", PROMPT, "--simulate")
    assert (done.code, is_clip(done.out.strip())) == (0, True)
    assert done.err.startswith("simulated: ")


def test_two_simulated_runs_do_not_meet(run: Run) -> None:
    """The same simulated command twice gives two tasks and two files."""
    first, second = (run("generate", PROMPT, "--simulate") for _ in range(2))
    assert (first.code, second.code) == (0, 0)
    assert first.task_id != second.task_id


def test_every_kind_of_gateway_can_be_simulated(run: Run) -> None:
    """A gateway with its own verb, prefix and key style answers as well."""
    assert run("generate", PROMPT, "--simulate", "--gateway", "duomi").code == 0


def test_a_simulated_job_takes_some_three_seconds() -> None:
    """A job of 100 s is over after 3 s, and seen to be over half a second later at the most."""
    assert 2.5 < 100 / SIMULATED_SPEED < 3.5
    assert make.SIMULATED_POLLING.max_interval <= 0.5


# Looking and going on


def test_wait_goes_on_by_the_id_alone(run: Run, gateway: Elsewhere) -> None:
    """After a timeout the printed command fetches the clip, and nothing is paid again."""
    gateway.simulator.script(takes=300)
    late = run("generate", PROMPT, "-o", "kitten.mp4", "--timeout", "0.01")
    assert late.code == 4
    assert late.advice[:3] == ["fuhu-runway", "wait", late.task_id]
    done = run(*late.advice[1:])
    assert (done.code, done.out, is_clip("kitten.mp4")) == (0, "kitten.mp4\n", True)
    assert gateway.ask(lambda one: one.submitted) == 1


def test_the_command_that_goes_on_leads_to_the_same_place(run: Run, gateway: Elsewhere) -> None:
    """It repeats the gateway, its address, the key's file, the format and --force."""
    Path("my key").write_text(gateway.simulator.api_key + "\n")
    gateway.simulator.script(takes=EVER)
    reach = ["--gateway", "deerapi", "--base-url", gateway.simulator.base_url]
    reach += ["--api-key-file", "my key"]
    how = ["--official", "--force"]
    late = run(
        *("generate", PROMPT, "--image", IMAGE, "--timeout", "0.01", "-o", "a b.mp4"), *reach, *how
    )
    assert late.advice == ["fuhu-runway", "wait", late.task_id, "-o", "a b.mp4", *reach, *how]


def test_wait_names_the_file_as_generate_would_have(run: Run, gateway: Elsewhere) -> None:
    """The default name comes from the prompt that the gateway tells."""
    gateway.simulator.script(takes=200)
    late = run("generate", PROMPT, "--timeout", "0.01")
    done = run("wait", late.task_id)
    assert done.out == f"a-secret-kitten-{late.task_id}.mp4\n"
    assert late.advice[-1] == done.out.strip()


def test_wait_minds_a_file_that_is_there(run: Run, gateway: Elsewhere) -> None:
    """A clip that was saved already is not fetched again, unless --force says so."""
    done = run("generate", PROMPT)
    again = run("wait", done.task_id)
    assert again.code == 2
    assert "already exists" in again.err
    assert run("wait", done.task_id, "--force").code == 0


def test_wait_ends_at_once_for_an_id_that_nobody_knows(run: Run, gateway: Elsewhere) -> None:
    """One look is enough, and the answer is a clear line; there is nothing to continue with."""
    done = run("wait", "no-such-task")
    assert (done.code, done.out) == (5, "")
    assert "task_not_exist" in done.err
    assert "Continue" not in done.err
    assert len(gateway.ask(lambda one: one.requests)) == 1


def test_wait_ends_at_once_where_nobody_answers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong address is reported at once, without retries."""
    monkeypatch.setenv("FUHU_API_KEY", "sk-1")
    done = run("wait", "some-task", "--base-url", f"http://127.0.0.1:{free_port()}")
    assert done.code == 5
    assert "could not be reached" in done.err


@pytest.mark.parametrize(
    "fault", [faults.server_error(502), faults.empty_429(0.01), faults.drop_before_accepting()]
)
def test_wait_is_patient_with_trouble_that_passes(
    run: Run, gateway: Elsewhere, fault: Fault
) -> None:
    """A first look that meets the gateway in trouble does not end the command."""
    task_id = run("generate", PROMPT, "-o", "first.mp4").task_id
    gateway.simulator.fault("feed", fault, times=2)
    done = run("wait", task_id)
    assert (done.code, done.out) == (0, f"clip-{task_id}.mp4\n")
    assert "trying again" in done.err


def test_feed_shows_a_table(run: Run, gateway: Elsewhere) -> None:
    """What the gateway says is printed a line each, the address included."""
    task_id = run("generate", PROMPT, "-o", "kitten.mp4").task_id
    done = run("feed", task_id)
    shown = dict(line.split(maxsplit=1) for line in done.out.splitlines() if "url" not in line)
    assert (done.code, done.err) == (0, "")
    assert (shown["task"].split()[-1], shown["state"]) == (task_id, "succeeded")
    assert (shown["points"], shown["refunded"]) == ("320", "no")
    assert re.search(r"^video url +http://127\.0\.0\.1:\d+/\S+$", done.out, re.MULTILINE)


def test_feed_shows_progress_as_percent(run: Run, gateway: Elsewhere) -> None:
    """How far the task is reads as a person would say it."""
    gateway.simulator.script(takes=EVER, dialect="new_api", queued=0.0, progress=[42])
    task_id = run("generate", PROMPT, "--timeout", "0.01").task_id
    assert re.search(r"^progress +42%$", run("feed", task_id).out, re.MULTILINE)


def test_feed_of_an_official_task(run: Run, gateway: Elsewhere) -> None:
    """With --official the look goes to the official route."""
    done = run("generate", PROMPT, "--official", "--image", IMAGE, "-o", "clip.mp4")
    assert "succeeded" in run("feed", done.task_id, "--official").out


def test_feed_of_a_failed_task_is_an_answer(run: Run, gateway: Elsewhere) -> None:
    """Showing a failure is a success, and what the gateway says cannot move the cursor."""
    gateway.simulator.script(then="fail", reason="too\x1b[2J dark")
    task_id = run("generate", PROMPT).task_id
    done = run("feed", task_id)
    assert done.code == 0
    assert re.search(r"^message +too \[2J dark$", done.out, re.MULTILINE)
    assert re.search(r"^refunded +yes$", done.out, re.MULTILINE)


def test_balance_shows_what_is_left(run: Run, gateway: Elsewhere) -> None:
    """The numbers read as a person writes them."""
    run("generate", PROMPT)
    done = run("balance")
    assert (done.code, done.err) == (0, "")
    rows = dict(line.split() for line in done.out.splitlines())
    assert rows == {"remaining": "996.8", "used": "3.2", "total": "1,000", "unlimited": "no"}


def test_balance_can_be_simulated(run: Run) -> None:
    """Trying it out needs no key."""
    assert "1,000" in run("balance", "--simulate").out


# JSON


def test_json_is_one_object_with_the_keys_of_the_page(run: Run, gateway: Elsewhere) -> None:
    """A clip is one line on stdout; stderr has the id and no progress."""
    done = run("generate", PROMPT, "-o", "kitten.mp4", "--json")
    (line,) = done.out.splitlines()
    told = json.loads(line)
    assert told.keys() == {*make.RECORD_KEYS, *make.FILE_KEY}
    assert (told["state"], told["file"], told["points"]) == ("succeeded", "kitten.mp4", 320)
    assert done.err == f"accepted: task {told['task_id']}\n"


def test_json_of_a_look(run: Run, gateway: Elsewhere) -> None:
    """The feed gives the same keys but for the file, times in ISO 8601."""
    task_id = run("generate", PROMPT, "-o", "kitten.mp4").task_id
    told = json.loads(run("feed", task_id, "--json").out)
    assert told.keys() == make.RECORD_KEYS.keys()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", told["created_at"])
    assert told["video_url"].startswith("http://127.0.0.1:")


def test_json_of_a_balance(run: Run, gateway: Elsewhere) -> None:
    """The balance gives its own keys."""
    told = json.loads(run("balance", "--json").out)
    assert told == {"remaining": 1000, "used": 0, "total": 1000, "unlimited": False}


# What is refused before anything is sent


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        (["generate", ""], "prompt is empty"),
        (["generate", " \n"], "prompt has no visible character"),
        (["generate", PROMPT, "--ratio", "2/1"], "such as 16:9 or 1280:720"),
        (["generate", PROMPT, "--ratio", "1:1", "--model", "gen3"], "gen3"),
        (["generate", PROMPT, "--seconds", "0"], "from 1 to 60"),
        (["generate", PROMPT, "--image", "kitten.png"], "image must be an http(s) URL"),
        (["generate", PROMPT, "--image", "ftp://example.com/a"], "image must be an http(s) URL"),
        (["generate", PROMPT, "--last-image", IMAGE], "--last-image does not go with text"),
        (["generate", PROMPT, "--flip"], "--flip does not go with text to video"),
        (["generate", PROMPT, "--seed", "1"], "--seed does not go with text to video"),
        (["generate", PROMPT, "--image", IMAGE, "--seed", "1"], "--seed does not go with image"),
        (["generate", PROMPT, "--official", "--image", IMAGE, "--style", "noir"], "--style"),
        (["generate", PROMPT, "--official"], "--official needs an image"),
        (["generate", PROMPT, "--motion", "y"], "--motion is not a list"),
        (["generate", PROMPT, "--motion", "up=1"], "--motion is not a list"),
        (["generate", PROMPT, "--motion", "y=nan"], "--motion is not a list"),
        (["generate", PROMPT, "--extra", "{"], "--extra is not JSON"),
        (["generate", PROMPT, "--extra", "[" * 100_000], "--extra is not JSON"),
        (["generate", PROMPT, "--extra", "[1]"], "extra is not a dict"),
        (["generate", PROMPT, "--extra", '{"prompt": 1}'], "extra sets 'prompt'"),
        (["generate", PROMPT, "--timeout", "0"], "--timeout is 0."),
        (["generate", PROMPT, "--timeout", "nan"], "--timeout is nan"),
        (["generate", PROMPT, "--timeout", "inf"], "--timeout is inf"),
        (["generate", PROMPT, "-o", "there.mp4"], "'there.mp4' already exists"),
        (["generate", PROMPT, "-o", "folder"], "'folder' is a folder"),
        (["generate", PROMPT, "-o", "nowhere/clip.mp4"], "no folder 'nowhere'"),
        (["generate", PROMPT, "-o", f"{'x' * 300}.mp4"], "Nothing can be written"),
        (["generate", PROMPT, "--gateway", "nobody"], "no gateway called 'nobody'"),
        (["generate", PROMPT, "--base-url", "example.com"], "base_url must be an http(s) URL"),
        (["generate", PROMPT, "--api-key-file", "nothing"], "No such file"),
        (["generate", PROMPT, "--api-key-file", "empty"], "The key file is empty"),
        (["generate", PROMPT, "--api-key-file", "binary"], "it is not text"),
        (["generate", PROMPT, "--api-key-file", "two lines"], "a space or a character"),
        (["generate", PROMPT, "--simulate", "--base-url", "http://a"], "together with the address"),
        (["generate", PROMPT, "--simulate", "--api-key-file", "empty"], "together with the addr"),
        (["restyle", "video.mp4", PROMPT], "video must be an http(s) URL"),
        (["restyle", VIDEO, PROMPT, "--structure-transformation", "2"], "from 0 to 1"),
        (["restyle", VIDEO, ""], "prompt is empty"),
        (["act", VIDEO], "neither was given"),
        (["act", VIDEO, IMAGE, "--character-video", VIDEO], "both were given"),
        (["act", VIDEO, IMAGE, "--motion-multiplier", "9"], "from 1 to 5"),
        (["wait", ""], "The task id is empty"),
        (["wait", " "], "The task id is empty"),
        (["wait", "some-task", "-o", "there.mp4"], "'there.mp4' already exists"),
        (["wait", "some-task", "--timeout", "-1"], "--timeout is -1"),
        (["feed", ""], "The task id is empty"),
    ],
)
def test_a_wrong_command_is_one_line_and_costs_nothing(
    tokens: list[str], told: str, run: Run, gateway: Elsewhere, tmp_path: Path
) -> None:
    """Bad input exits with 2 and says in one line what is wrong, before anything is sent."""
    (tmp_path / "there.mp4").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "two lines").write_text("sk-1\nsk-2")
    done = run(*tokens)
    assert (done.code, done.out) == (2, "")
    *news, line = done.err.splitlines()
    assert line.startswith("fuhu-runway: ")
    assert told in line
    assert PROMPT not in done.err
    assert set(news) <= {"submitting"}
    assert gateway.ask(lambda one: one.requests) == ()


def test_a_gateway_without_a_known_address_needs_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no source names the address, the line says how to give it."""
    monkeypatch.setenv("FUHU_API_KEY", "sk-1")
    done = run("balance", "--gateway", "yutoai")
    assert done.code == 2
    assert "FUHU_BASE_URL" in done.err


@pytest.mark.parametrize(
    "tokens", [["generate", PROMPT], ["wait", "some-task"], ["feed", "some-task"], ["balance"]]
)
def test_without_a_key_the_ways_to_give_one_are_told(run: Run, tokens: list[str]) -> None:
    """No key is exit code 2, and the line names the variable, the option and --simulate."""
    done = run(*tokens)
    assert done.code == 2
    assert all(way in done.err for way in ("FUHU_API_KEY", "--api-key-file", "--simulate"))


def test_the_key_may_come_from_a_file(
    run: Run, gateway: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file wins over the variable, and its last line break is no part of the key."""
    monkeypatch.setenv("FUHU_API_KEY", "sk-wrong")
    Path("key").write_text(gateway.simulator.api_key + "\n")
    assert run("balance").code == 5
    assert run("balance", "--api-key-file", "key").code == 0


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        (["generate", PROMPT, "--jsn"], "--json"),
        (["generate", PROMPT, "--api-key=sk-12345"], "--api-key-file"),
        (["generate", PROMPT, "--sk-12345"], "Unknown option"),
        (["generate", "- " + PROMPT], "Unknown option"),
        (["generate", *PROMPT.split()], "Put a prompt of several words in quotes"),
        (["generate"], "requires an argument"),
        (["generate", PROMPT, "--seconds", "ten"], "--seconds: it is not a whole number"),
        (["generate", PROMPT, "--seconds", "5.7"], "--seconds: it is not a whole number"),
        (["generate", PROMPT, "--seed", "1.5"], "--seed: it is not a whole number"),
        (["restyle", VIDEO, PROMPT, "--seconds", "4.6"], "--seconds: it is not a whole number"),
        (["act", VIDEO, IMAGE, "--motion-multiplier", "2.5"], "it is not a whole number"),
        (["batch", "p.txt", "--out", "c", "--in-flight", "2.5"], "it is not a whole number"),
        (["enerate", PROMPT], '"generate"'),
        ([PROMPT], "Available commands: generate, restyle"),
        (["-v"], "Unknown command"),
        (["balance", "--port", "1"], "Unknown option"),
        (["wait", "some-task", "--simulate"], "Unknown option"),
    ],
)
def test_a_misspelt_command_gets_a_hint(tokens: list[str], told: str, run: Run) -> None:
    """What cannot be understood exits with 2 and one line that helps, and quotes no secret."""
    done = run(*tokens)
    (line,) = done.err.splitlines()
    assert (done.code, done.out) == (2, "")
    assert told in line
    assert re.search(r"See fuhu-runway( [a-z]+)? --help$", line)
    assert "12345" not in line
    assert not set(PROMPT.split()[1:]) & set(re.findall(r"\w+", line))


# Help


@pytest.mark.parametrize("tokens", [[], ["-h"], ["--help"]])
def test_the_bare_command_shows_its_help(run: Run, tokens: list[str]) -> None:
    """Every command and every exit code is in the first help."""
    done = run(*tokens)
    assert (done.code, done.err) == (0, "")
    assert all(command in done.out for command in COMMANDS)
    assert all(f"{code}:" in done.out for code in cli.EXIT_CODES)


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(run: Run, command: str, flag: str) -> None:
    """Help is asked for in the same way everywhere, and costs nothing."""
    done = run(command, flag)
    assert (done.code, done.err) == (0, "")
    assert f"fuhu-runway {command}" in done.out


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)])
def test_each_command_tells_the_version(run: Run, command: list[str]) -> None:
    """--version prints a version and nothing else."""
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", run(*command, "--version").out)


def test_the_page_tells_every_option() -> None:
    """Each field of the request classes is an option in the tables."""
    tables = cli.reference()
    for kind in (make.TextToVideo, make.ImageToVideo, make.OfficialImageToVideo):
        for name in attrs.fields_dict(kind):
            assert f"--{name.replace('_', '-')}`" in tables or name == "prompt"
    assert "| `--timeout` | How long to wait for the clip, in seconds. Default: 1800.0. |" in tables
    assert "| `130` | Stopped by Ctrl-C" in tables


# What goes wrong after that


@pytest.mark.parametrize("ending", ["fail", "cancel"])
def test_a_failed_task_is_1(run: Run, gateway: Elsewhere, ending: Any) -> None:
    """A task that gives no clip exits with 1, and there is nothing to continue with."""
    gateway.simulator.script(then=ending)
    done = run("generate", PROMPT)
    assert (done.code, done.out) == (1, "")
    assert "points were given back" in done.err.splitlines()[-1]
    assert "Continue" not in done.err


def test_a_submit_without_an_answer_is_3(run: Run, gateway: Elsewhere) -> None:
    """A paid request of unknown fate exits with 3, and was sent once."""
    gateway.simulator.fault("submit", faults.drop_after_accepting())
    done = run("generate", PROMPT)
    assert (done.code, done.out) == (3, "")
    assert "It may have been accepted and charged" in done.err
    assert gateway.ask(lambda one: one.submitted) == 1


def test_a_timeout_is_4(run: Run, gateway: Elsewhere) -> None:
    """A task that takes longer exits with 4, and its id is in the line."""
    gateway.simulator.script(then="stall")
    done = run("generate", PROMPT, "--timeout", "0.05")
    assert (done.code, done.out) == (4, "")
    assert f"fuhu-runway wait {done.task_id} -o " in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    "fault",
    [
        faults.quota_in_429(),
        faults.error(401),
        faults.error(400, code="invalid_request"),
        faults.html_page(),
    ],
)
def test_a_refused_submit_is_5(run: Run, gateway: Elsewhere, fault: Fault) -> None:
    """A gateway that says no exits with 5, in one line, and nothing was charged."""
    gateway.simulator.fault("submit", fault)
    done = run("generate", PROMPT)
    assert (done.code, done.out) == (5, "")
    assert "Nothing was charged." in done.err.splitlines()[-1]
    assert gateway.ask(lambda one: one.submitted) == 0


def test_a_gateway_that_is_not_there_is_5(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that cannot be reached was not paid, and every retry was shown."""
    monkeypatch.setenv("FUHU_API_KEY", "sk-1")
    done = run("generate", PROMPT, "--base-url", f"http://127.0.0.1:{free_port()}")
    assert done.code == 5
    assert done.err.splitlines()[:2] == ["submitting", "NotSent, trying again"]
    assert "127.0.0.1" not in done.err


def test_a_download_that_breaks_off_is_5(run: Run, gateway: Elsewhere) -> None:
    """The clip is paid for, and the line has the command that fetches it."""
    gateway.simulator.fault("download", faults.server_error(503), times=None)
    broken = run("generate", PROMPT, "-o", "kitten.mp4")
    assert (broken.code, broken.out) == (5, "")
    assert broken.advice == ["fuhu-runway", "wait", broken.task_id, "-o", "kitten.mp4"]


def test_a_name_taken_meanwhile_is_told_as_what_it_is(
    run: Run, gateway: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that appears while the task runs is kept, and the error says that it is paid."""
    accept = make.Errand.accept

    def accept_and_lose_the_name(errand: make.Errand, *arguments: Any) -> None:
        accept(errand, *arguments)
        errand.path.write_text("mine")

    monkeypatch.setattr(make.Errand, "accept", accept_and_lose_the_name)
    done = run("generate", PROMPT, "-o", "kitten.mp4")
    assert done.code == 5
    assert "already exists. The clip exists and is paid for." in done.err
    assert done.advice[1:3] == ["wait", done.task_id]
    assert Path("kitten.mp4").read_text() == "mine"


def test_a_defect_is_told_with_the_task(
    run: Run, gateway: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even a fault of this program exits with one line, and does not lose the clip."""
    monkeypatch.setattr("fuhu_runway.task.Task.wait", None)
    done = run("generate", PROMPT, "-o", "kitten.mp4")
    assert (done.code, done.out) == (70, "")
    assert "TypeError" in done.err.splitlines()[-1]
    assert done.advice == ["fuhu-runway", "wait", done.task_id, "-o", "kitten.mp4"]


def test_every_error_has_a_documented_code() -> None:
    """The table of errors leads to codes that help and page tell of, whatever is raised."""
    assert {code for _, code in _console.EXIT_OF} <= cli.EXIT_CODES.keys()
    assert _console.EXIT_OF[-1][0] is Exception


# Logs


def test_nothing_is_logged_unless_asked(run: Run, gateway: Elsewhere) -> None:
    """Without -v not even the SDK's warnings appear as such."""
    gateway.simulator.script(then="stall", faults=[faults.on("feed", faults.unknown_word())])
    done = run("generate", PROMPT, "--timeout", "0.5")
    assert "warning" not in done.err
    assert "unknown" in done.err.splitlines()


@pytest.mark.parametrize(("flag", "level"), [("-v", "info"), ("-vv", "debug")])
def test_verbose_shows_the_log_without_secrets(
    run: Run, gateway: Elsewhere, flag: str, level: str
) -> None:
    """-v shows what happened, -vv each look as well, and neither a key, prompt or address."""
    done = run("generate", PROMPT, "-o", "kitten.mp4", flag)
    assert re.search(rf"^{level}: \w+ task_id=", done.err, re.MULTILINE)
    assert ("TaskPolled" in done.err) == (flag == "-vv")
    for secret in (PROMPT, gateway.simulator.api_key, "http://"):
        assert secret not in done.err


def test_very_verbose_shows_where_an_error_comes_from(run: Run, gateway: Elsewhere) -> None:
    """The traceback is for -vv alone, and the line stays the last."""
    gateway.simulator.fault("submit", faults.error(401), times=2)
    assert "Traceback" not in run("generate", PROMPT, "-v").err
    done = run("generate", PROMPT, "-vv")
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("fuhu-runway: ")
    assert PROMPT not in done.err


def test_the_log_is_as_it_was(run: Run, gateway: Elsewhere) -> None:
    """A command that runs inside of another program leaves the logger behind as it found it."""
    logger = make.hooks.LOGGER
    before = (logger.level, list(logger.handlers))
    run("generate", PROMPT, "-vv")
    assert (logger.level, logger.handlers) == before


# Ctrl-C


def shown(stage: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Return the question whether *stage* has been shown."""
    seen: set[str] = set()
    show = make.Lines.stage

    def see(screen: make.Lines, name: str, *more: Any) -> None:
        show(screen, name, *more)
        seen.add(name)

    monkeypatch.setattr(make.Lines, "stage", see)
    return lambda: stage in seen


@attrs.define
class Held:
    """Which tasks a script is for: all of them, once it has been let go."""

    reached: threading.Event = attrs.field(factory=threading.Event)
    let_go: threading.Event = attrs.field(factory=threading.Event)

    def __call__(self, _body: object) -> bool:
        self.reached.set()
        return self.let_go.wait(30)


def test_ctrl_c_waits_for_the_answer_to_a_paid_request(
    run: Run, gateway: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submit in flight is waited for, and its id is printed with the way to go on."""
    held = Held()
    gateway.simulator.script(held)
    say = make.Lines.say

    def say_and_let_go(screen: make.Lines, text: str) -> None:
        say(screen, text)
        if text.startswith("Waiting for the answer"):
            held.let_go.set()

    monkeypatch.setattr(make.Lines, "say", say_and_let_go)
    with pressed(held.reached.is_set):
        done = run("generate", PROMPT, "-o", "kitten.mp4")
    submitting, waiting, accepted, stopped = done.err.splitlines()
    assert (done.code, done.out) == (130, "")
    assert (submitting, waiting[:7]) == ("submitting", "Waiting")
    assert accepted == f"accepted: task {done.task_id}"
    assert stopped == (
        f"Stopped. The task goes on. Continue with: fuhu-runway wait {done.task_id} -o kitten.mp4"
    )
    assert run(*done.advice[1:]).code == 0
    assert gateway.ask(lambda one: one.submitted) == 1


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (faults.error(401), "turned away (Unauthorized): nothing was charged"),
        (faults.empty_429(), "turned away (RateLimited): nothing was charged"),
        (faults.server_error(504), "may have been charged"),
        (faults.Drop(accepted=True), "may have been charged"),
    ],
)
def test_ctrl_c_tells_what_became_of_the_request(
    run: Run, gateway: Elsewhere, monkeypatch: pytest.MonkeyPatch, fault: Fault, told: str
) -> None:
    """Where the answer is no, or none, the last line says what that means for the money."""
    held = Held()
    gateway.simulator.script(held, faults=[faults.on("submit", fault)])
    close = Client.aclose

    async def let_go_and_close(client: Client) -> None:
        held.let_go.set()
        await close(client)

    monkeypatch.setattr(Client, "aclose", let_go_and_close)
    with pressed(held.reached.is_set):
        done = run("generate", PROMPT)
    assert done.code == 130
    assert told in done.err.splitlines()[-1]


def test_ctrl_c_between_two_tries_submits_nothing(
    run: Run, gateway: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a refused request waits for its retry nothing is in flight, and nothing is lost."""
    gateway.simulator.fault("submit", faults.empty_429(60))
    with pressed(shown("RateLimited, trying again", monkeypatch)):
        done = run("generate", PROMPT)
    assert done.code == 130
    assert done.err.splitlines()[-1] == "Stopped. Nothing was submitted."
    assert gateway.ask(lambda one: one.submitted) == 0


def test_ctrl_c_while_waiting_tells_how_to_go_on(run: Run, gateway: Elsewhere) -> None:
    """The task goes on, and so can a person."""
    gateway.simulator.script(takes=EVER)
    with pressed(lambda: gateway.saw("feed")):
        done = run("generate", PROMPT, "-o", "kitten.mp4")
    assert (done.code, done.out) == (130, "")
    assert done.advice == ["fuhu-runway", "wait", done.task_id, "-o", "kitten.mp4"]


def test_ctrl_c_while_downloading_keeps_what_came(
    run: Run, gateway: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start of the file stays, and the printed command goes on there."""
    gateway.simulator.fault("download", faults.SlowDownload(bytes_per_second=2))
    with pressed(shown("downloading", monkeypatch)):
        done = run("generate", PROMPT, "-o", "kitten.mp4")
    kept = Path("kitten.mp4.part").stat().st_size
    assert (done.code, kept > 0) == (130, True)
    assert run(*done.advice[1:]).code == 0
    assert is_clip("kitten.mp4")
    *_, last = gateway.ask(lambda one: one.requests)
    assert last.headers["Range"] == f"bytes={kept}-"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_request_to_terminate_is_heard_as_well(
    run: Run, gateway: Elsewhere, number: int, code: int
) -> None:
    """SIGTERM, and a terminal that closes, end the command in order, with codes of their own."""
    gateway.simulator.script(takes=EVER)
    with pressed(lambda: gateway.saw("feed"), number):
        done = run("generate", PROMPT)
    assert done.code == code
    assert done.advice[1:3] == ["wait", done.task_id]


def test_ctrl_c_in_a_free_command_is_a_word(run: Run, gateway: Elsewhere) -> None:
    """Where nothing was paid there is nothing to tell."""
    gateway.simulator.fault("feed", faults.Hang())
    with pressed(lambda: gateway.saw("feed")):
        done = run("feed", "some-task")
    assert (done.code, done.out, done.err) == (130, "", "Stopped.\n")


def test_ctrl_c_before_the_work_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a command still imports what it needs, Ctrl-C reaches the way in, which exits 130."""

    def press(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_console, "screen_for", press)
    with pytest.raises(KeyboardInterrupt):
        cli.main(["balance", "--simulate"])


def test_ctrl_c_ends_a_simulated_task_with_its_gateway(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was simulated cannot be continued, and no command to do so is printed."""
    monkeypatch.setattr(make, "SIMULATED_SPEED", 0.001)
    with pressed(shown("queued", monkeypatch)):
        done = run("generate", PROMPT, "--simulate")
    assert done.code == 130
    assert done.err.splitlines()[-1] == "Stopped. The simulated gateway ended, too."


def test_handlers_are_given_back(run: Run) -> None:
    """After a command Ctrl-C means what it meant before."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run("balance", "--simulate")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# Terminals


@pytest.mark.parametrize("columns", ["40", "120"])
def test_a_terminal_gets_a_line_that_moves(run: Run, gateway: Elsewhere, columns: str) -> None:
    """States and bytes share one line that is gone in the end; what matters stays."""
    gateway.simulator.script(dialect="new_api", takes=400, queued=0.2)
    with on_a_terminal(COLUMNS=columns) as terminal:
        done = run("generate", PROMPT, "-o", "kitten.mp4")
    shown = terminal.getvalue()
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown)
    assert (done.code, done.out) == (0, "kitten.mp4\n")
    assert "accepted: task " in plain
    assert re.search(r"running .*\d+%", plain)
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert re.search(r"saved: [\d.]+ kB", plain)


def test_no_color_is_respected(run: Run, gateway: Elsewhere) -> None:
    """With NO_COLOR the line moves without a colour."""
    colour = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7])(?:;\d+)*m")
    with on_a_terminal() as coloured:
        run("generate", PROMPT)
    with on_a_terminal(NO_COLOR="1") as plain:
        run("generate", PROMPT)
    assert colour.search(coloured.getvalue())
    assert not colour.search(plain.getvalue())


@pytest.mark.parametrize("name", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_gets_lines(run: Run, gateway: Elsewhere, name: str) -> None:
    """A dumb terminal gets the plain lines of a log."""
    with on_a_terminal(TERM=name) as terminal:
        run("generate", PROMPT)
    assert "\x1b" not in terminal.getvalue()
    assert "downloading\n" in terminal.getvalue()


def test_json_moves_nothing_on_a_terminal(run: Run, gateway: Elsewhere) -> None:
    """With --json a terminal shows the id and no progress."""
    with on_a_terminal() as terminal:
        run("generate", PROMPT, "--json")
    assert re.fullmatch(r"accepted: task \S+\n", terminal.getvalue())


def test_without_any_stderr_the_work_is_done(
    run: Run, gateway: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was started with stderr closed prints its result and nothing else."""
    monkeypatch.setattr(sys, "stderr", None)
    assert run("generate", PROMPT, "-o", "kitten.mp4").out == "kitten.mp4\n"


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.EINVAL, "Invalid argument")])
def test_help_into_a_closed_pipe_is_quiet(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """An older rich lets the error through, which has no name of its own on Windows."""

    def break_off(_tokens: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", break_off)
    done = run("--help")
    assert (done.code, done.out.strip(), done.err) == (0, "", "")


def test_other_trouble_of_the_system_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, for one, is no reader who left."""

    def break_off(_tokens: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli, "app", break_off)
    with pytest.raises(OSError, match="No space left"):
        cli.main(["--help"])


# Processes


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_ctrl_c_ends_the_process_with_130(gateway: Elsewhere) -> None:
    """The first SIGINT lets the command say how to go on, and ends it."""
    gateway.simulator.script(takes=EVER)
    with start("generate", PROMPT, "-o", "kitten.mp4") as process:
        assert process.stderr
        assert process.stdout
        task_id = read_until(process.stderr, "accepted: task ").split()[-1]
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
        assert f"Continue with: fuhu-runway wait {task_id} -o kitten.mp4" in told
        assert "Traceback" not in told
        assert process.stdout.read() == ""
    assert process.returncode == 130


def test_the_second_ctrl_c_ends_the_process(gateway: Elsewhere) -> None:
    """A second Ctrl-C ends the wait for the answer."""
    gateway.simulator.fault("submit", faults.Hang())
    with start("generate", PROMPT) as process:
        assert process.stderr
        read_until(process.stderr, "submitting")
        while not gateway.saw("submit"):
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, "Waiting for the answer")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
    assert process.returncode == 130


def test_a_killed_process_has_shown_the_id(run: Run, gateway: Elsewhere) -> None:
    """The id is out before anything else happens, so that even SIGKILL loses no clip."""
    with start("generate", PROMPT, "-o", "kitten.mp4") as process:
        assert process.stderr
        task_id = read_until(process.stderr, "accepted: task ").split()[-1]
        process.kill()
    assert run("wait", task_id, "-o", "kitten.mp4").code == 0
    assert gateway.ask(lambda one: one.submitted) == 1


def test_pipes_that_close_end_no_paid_job(gateway: Elsewhere) -> None:
    """With both readers gone the clip is still waited for and saved, and the exit code says so."""
    with start("generate", PROMPT, "-o", "kitten.mp4") as process:
        assert process.stderr
        assert process.stdout
        process.stdout.close()
        process.stderr.close()
        assert process.wait() == 0
    assert is_clip("kitten.mp4")


def test_help_into_a_closed_pipe_shows_no_traceback() -> None:
    """`fuhu-runway --help | head` is quiet."""
    with start("--help") as process:
        assert process.stderr
        assert process.stdout
        process.stdout.close()
        assert process.stderr.read() == ""


@pytest.mark.skipif(os.name != "posix", reason="terminals of this kind are POSIX")
@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (40, 12)])
def test_on_a_real_terminal(run: Run, gateway: Elsewhere, columns: int, rows: int) -> None:
    """On a terminal of any width the bar moves, fits, and is gone in the end."""
    import pty
    import termios

    task_id = run("generate", PROMPT, "-o", "first.mp4").task_id
    gateway.simulator.fault("download", faults.SlowDownload(bytes_per_second=300))
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (rows, columns))
    terminal = {"TERM": "xterm-256color", "COLUMNS": str(columns)}
    with start("wait", task_id, "-o", "k.mp4", stderr=theirs, env=terminal) as process:
        os.close(theirs)
        shown = read_all(ours)
    os.close(ours)
    assert process.returncode == 0
    assert "\x1b[?25l" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")
    drawn = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown)
    moving = [line for line in re.split(r"[\r\n]+", drawn) if "downloading" in line]
    assert re.search(r"kB/12\.\d kB", moving[-1])
    assert max(map(len, moving)) <= columns


def read_all(handle: int) -> str:
    """Read a terminal until nobody writes to it any more."""
    data = b""
    with contextlib.suppress(OSError):  # Linux says so when the other end is closed
        while chunk := os.read(handle, 4096):
            data += chunk
    return data.decode()


def test_errors_are_in_the_tree_of_the_package() -> None:
    """No error of the SDK falls through to the code for defects."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, errors.RunwayError):
            code = next(code for parent, code in _console.EXIT_OF if issubclass(kind, parent))
            assert 1 <= code <= 5
