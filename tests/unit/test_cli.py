"""The commands for single clips: in this process where possible, else as a separate process."""

import contextlib
import errno
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import attrs
import pytest
from cyclopts.completion.detect import ShellDetectionError
from support.clients import QUICK_POLLS, QUICK_RETRY
from support.commands import (
    GatewayThread,
    Run,
    documented_keys,
    gateway_in_thread,
    is_clip,
    on_a_terminal,
    pressed,
    read_until,
    runner,
    start,
)
from support.media import MP4, PNG

pytest.importorskip("cyclopts")

from fuhu_runway import Client, errors
from fuhu_runway.cli import app as cli
from fuhu_runway.cli import console as _console
from fuhu_runway.cli import make, opening
from fuhu_runway.task import Clip
from fuhu_runway.testing import faults
from fuhu_runway.testing.faults import Fault

PROMPT = "a secret kitten"
IMAGE = "https://example.com/image.png"
VIDEO = "https://example.com/video.mp4"
COMMANDS = ["generate", "restyle", "act", "submit", "wait", "feed", "balance", "doctor", "simulate"]
COMMANDS += ["batch", "jobs", "resume", "resolve", "forget"]
EVER = 1_000_000.0
SIMULATED_SPEED = make.SIMULATED_SPEED


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an empty folder and none of the caller's variables."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FUHU_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten pauses to milliseconds, and simulated jobs to half a second."""
    monkeypatch.setattr("fuhu_runway.client.PollPolicy", lambda: QUICK_POLLS)
    monkeypatch.setattr("fuhu_runway.client.RetryPolicy", lambda: QUICK_RETRY)
    monkeypatch.setattr(make, "SIMULATED_SPEED", 1000.0)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""
    return runner(capsys)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayThread]:
    """A gateway that the environment variables point to; its tasks take 50 ms."""
    with gateway_in_thread(monkeypatch, speed=1000, takes=50) as elsewhere:
        yield elsewhere


# Local files


def test_the_simulated_gateway_takes_local_files(run: Run, tmp_path: Path) -> None:
    """Paths begin in the working directory; what needs an address is uploaded."""
    Path("kitten.png").write_bytes(PNG)
    Path("kitten.mp4").write_bytes(MP4)
    for words in (
        ("generate", PROMPT, "--image", "kitten.png", "--last-image", str(tmp_path / "kitten.png")),
        ("generate", PROMPT, "--image", "kitten.png", "--official"),
        ("restyle", "kitten.mp4", PROMPT),
        ("act", "kitten.mp4", "kitten.png"),
        ("act", "kitten.mp4", "--character-video", "kitten.mp4"),
    ):
        done = run(*words, "--simulate", "-o", "clip.mp4", "--force")
        assert (done.code, done.out) == (0, "clip.mp4\n")


def test_a_gateway_without_a_file_route_takes_only_small_files_of_the_official_format(
    run: Run, gateway: GatewayThread
) -> None:
    """FuhuAPI has no known file route: a file is sent as a data URI, or refused for nothing."""
    Path("kitten.png").write_bytes(PNG)
    done = run("generate", PROMPT, "--image", "kitten.png")
    assert done.code == 2
    assert "image is a local file, and the reverse format takes only URLs" in done.err
    assert gateway.call(lambda one: one.submitted) == 0
    done = run("generate", PROMPT, "--image", "kitten.png", "--official", "-o", "clip.mp4")
    assert done.code == 0
    frame = gateway.call(lambda one: one.tasks[0].request["promptImage"])
    assert frame.startswith("data:image/png;base64,")


def test_a_gateway_with_a_file_route_gets_the_files(run: Run, gateway: GatewayThread) -> None:
    """With a gateway that is known to have one, local files go to its own file route."""
    Path("kitten.png").write_bytes(PNG)
    reach = ("--gateway", "bltcy", "--base-url", gateway.simulator.base_url)
    done = run("generate", PROMPT, "--image", "kitten.png", *reach, "-o", "clip.mp4")
    assert done.code == 0
    assert "/file/" in gateway.call(lambda one: one.tasks[0].request["image"])


# Generating clips


def test_generate_saves_the_clip_and_prints_its_path(run: Run, gateway: GatewayThread) -> None:
    """One task is submitted, its clip is saved, and stdout contains only the path."""
    done = run("generate", PROMPT, "-o", "kitten.mp4")
    assert (done.code, done.out) == (0, "kitten.mp4\n")
    assert is_clip("kitten.mp4")
    assert gateway.call(lambda one: one.submitted) == 1


def test_without_a_terminal_progress_is_plain_lines(run: Run, gateway: GatewayThread) -> None:
    """Each state is one line, without percentages, colours or cursor movements."""
    done = run("generate", PROMPT, "-o", "kitten.mp4")
    lines = done.err.splitlines()
    assert lines[:2] == ["submitting", f"accepted: task {done.task_id}"]
    assert set(lines[2:-2]) <= {"queued", "rendering"}
    assert lines[-2] == "saving"
    assert re.fullmatch(r"saved: [\d.]+ kB, 320 points", lines[-1])


def test_the_default_name_contains_prompt_and_task_id(run: Run, gateway: GatewayThread) -> None:
    """Without -o, the file is named after the prompt and the full task id."""
    done = run("generate", "a kitten / asleep")
    assert done.out == f"a-kitten-asleep-{done.task_id}.mp4\n"
    assert is_clip(done.out.strip())


def test_a_long_prompt_leaves_the_id_in_the_name(run: Run, gateway: GatewayThread) -> None:
    """A long prompt, in any script, is shortened so that the id fits in the name."""
    done = run("generate", "小猫" * 100)
    assert done.out.strip().endswith(f"-{done.task_id}.mp4")
    assert is_clip(done.out.strip())


def test_a_name_contains_only_what_the_locale_can_encode(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If file names must be ASCII, any prompt still gives a name, in generate and in wait."""
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    done = run("generate", "小猫 x")
    assert done.out == f"x-{done.task_id}.mp4\n"
    assert run("wait", done.task_id, "--force").out == done.out


def test_a_clip_that_is_moved_at_once_counts_as_saved(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another program moves the file before its size is shown, the command succeeds."""
    download = Clip.download

    async def taken(clip: Clip, path: Path, **options: Any) -> Path:
        saved = await download(clip, path, **options)
        return saved.rename("elsewhere.mp4")

    monkeypatch.setattr(Clip, "download", taken)
    done = run("generate", PROMPT, "-o", "kitten.mp4")
    assert (done.code, done.out) == (0, "kitten.mp4\n")
    assert done.err.splitlines()[-1] == "saved: size unknown, 320 points"


def test_every_option_of_text_to_video_reaches_the_gateway(
    run: Run, gateway: GatewayThread
) -> None:
    """The body of the request contains every option."""
    options = "--ratio 9:16 --seconds 5 --model gen3 --style noir --motion y=0.4,r=-6"
    extra = ["--extra", '{"options": {"hd": true}}']
    assert run("generate", PROMPT, *options.split(), *extra).code == 0
    body = gateway.body()
    assert body["prompt"] == PROMPT
    assert (body["ratio"], body["model"], body["style"]) == ("9:16", "gen3", "noir")
    assert (body["options"]["seconds"], body["options"]["hd"]) == (5, True)
    motion = body["options"]["motion_vector"]
    assert motion == {"x": 0, "y": 0.4, "z": 0, "r": -6, "bg_x_pan": 0, "bg_y_pan": 0}


def test_an_image_makes_it_image_to_video(run: Run, gateway: GatewayThread) -> None:
    """With --image, the options for images are sent, too."""
    options = ["--image", IMAGE, "--last-image", VIDEO, "--image-as-end-frame", "--flip"]
    assert run("generate", PROMPT, *options).code == 0
    body = gateway.body()
    assert (body["image"], body["last_image"]) == (IMAGE, VIDEO)
    assert body["options"]["image_as_end_frame"] is body["options"]["flip"] is True


def test_official_uses_the_official_format(run: Run, gateway: GatewayThread) -> None:
    """With --official, the task is submitted, polled and saved in the official format."""
    options = ["--official", "--image", IMAGE, "--seed", "7", "--no-watermark"]
    done = run("generate", PROMPT, *options, "-o", "clip.mp4")
    assert (done.code, is_clip("clip.mp4")) == (0, True)
    body = gateway.body()
    assert (body["promptImage"], body["seed"], body["watermark"]) == (IMAGE, 7, False)


def test_every_option_of_restyle_reaches_the_gateway(run: Run, gateway: GatewayThread) -> None:
    """The body contains every option, and --no-seconds omits the length."""
    options = "--structure-transformation 0.2 --no-seconds --flip --model gen3"
    assert run("restyle", VIDEO, PROMPT, *options.split()).code == 0
    body = gateway.body()
    assert (body["video"], body["prompt"], body["model"]) == (VIDEO, PROMPT, "gen3")
    assert body["options"] == {"structure_transformation": 0.2, "flip": True}


def test_every_option_of_act_reaches_the_gateway(run: Run, gateway: GatewayThread) -> None:
    """The character can be a clip, and the file is named without a prompt."""
    options = ["--character-video", VIDEO, "--motion-multiplier", "3", "--no-flip"]
    done = run("act", VIDEO, *options)
    assert done.out == f"clip-{done.task_id}.mp4\n"
    body = gateway.body()
    assert (body["video"], body["character_video"]) == (VIDEO, VIDEO)
    assert body["options"] == {"motion_multiplier": 3, "flip": False}


def test_act_accepts_an_image(run: Run, gateway: GatewayThread) -> None:
    """The second argument is the image of the character."""
    assert run("act", VIDEO, IMAGE).code == 0
    assert gateway.body()["image"] == IMAGE


def test_force_replaces_the_file(run: Run, gateway: GatewayThread) -> None:
    """With --force, the clip replaces an existing file."""
    Path("kitten.mp4").write_text("old")
    assert run("generate", PROMPT, "-o", "kitten.mp4", "--force").code == 0
    assert is_clip("kitten.mp4")


def test_simulate_needs_no_key_and_ignores_the_environment(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --simulate, an invalid key and an unreachable URL in the environment do not matter."""
    monkeypatch.setenv("FUHU_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("FUHU_API_KEY", "no key, with spaces")
    done = run("generate", PROMPT, "--simulate")
    assert (done.code, is_clip(done.out.strip())) == (0, True)
    assert done.err.startswith("simulated: ")


def test_two_simulated_runs_have_different_tasks(run: Run) -> None:
    """The same simulated command twice gives two tasks and two files."""
    first, second = (run("generate", PROMPT, "--simulate") for _ in range(2))
    assert (first.code, second.code) == (0, 0)
    assert first.task_id != second.task_id


def test_every_kind_of_gateway_can_be_simulated(run: Run) -> None:
    """A gateway with another method, prefix and key style can be simulated, too."""
    assert run("generate", PROMPT, "--simulate", "--gateway", "duomi").code == 0


def test_a_simulated_job_takes_about_three_seconds() -> None:
    """A job of 100 s ends after 3 s, and a poll sees that at most half a second later."""
    assert 2.5 < 100 / SIMULATED_SPEED < 3.5
    assert opening.SIMULATED_POLLING.max_interval <= 0.5


# Polling and continuing


def test_wait_continues_with_the_id_alone(run: Run, gateway: GatewayThread) -> None:
    """After a timeout, the printed command fetches the clip, and nothing is paid again."""
    gateway.simulator.script(takes=300)
    late = run("generate", PROMPT, "-o", "kitten.mp4", "--timeout", "0.01")
    assert late.code == 4
    assert late.advice[:3] == ["fuhu-runway", "wait", late.task_id]
    done = run(*late.advice[1:])
    assert (done.code, done.out, is_clip("kitten.mp4")) == (0, "kitten.mp4\n", True)
    assert gateway.call(lambda one: one.submitted) == 1


def test_the_printed_command_repeats_the_options(run: Run, gateway: GatewayThread) -> None:
    """It repeats the gateway, its URL, the key file, the format and --force."""
    Path("my key").write_text(gateway.simulator.api_key + "\n")
    gateway.simulator.script(takes=EVER)
    reach = ["--gateway", "deerapi", "--base-url", gateway.simulator.base_url]
    reach += ["--api-key-file", "my key"]
    how = ["--official", "--force"]
    late = run(
        *("generate", PROMPT, "--image", IMAGE, "--timeout", "0.01", "-o", "a b.mp4"), *reach, *how
    )
    assert late.advice == ["fuhu-runway", "wait", late.task_id, "-o", "a b.mp4", *reach, *how]


def test_wait_names_the_file_as_generate_would_have(run: Run, gateway: GatewayThread) -> None:
    """The default name is made from the prompt in the gateway's response."""
    gateway.simulator.script(takes=200)
    late = run("generate", PROMPT, "--timeout", "0.01")
    done = run("wait", late.task_id)
    assert done.out == f"a-secret-kitten-{late.task_id}.mp4\n"
    assert late.advice[-1] == done.out.strip()


def test_wait_does_not_replace_a_file(run: Run, gateway: GatewayThread) -> None:
    """A clip that was already saved is not downloaded again, unless --force is given."""
    done = run("generate", PROMPT)
    again = run("wait", done.task_id)
    assert again.code == 2
    assert "already exists" in again.err
    assert "allow it to be overwritten (--force)." in again.err  # without Python's own option
    assert run("wait", done.task_id, "--force").code == 0


def test_wait_ends_at_once_for_an_unknown_id(run: Run, gateway: GatewayThread) -> None:
    """One poll is enough for a clear error, and no command to continue is printed."""
    done = run("wait", "no-such-task")
    assert (done.code, done.out) == (5, "")
    assert "task_not_exist" in done.err
    assert "Continue" not in done.err
    assert len(gateway.call(lambda one: one.requests)) == 1


def test_wait_ends_at_once_if_the_host_is_unreachable(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong URL is reported at once, without retries."""
    monkeypatch.setenv("FUHU_API_KEY", "sk-1")
    done = run("wait", "some-task", "--base-url", f"http://127.0.0.1:{free_port()}")
    assert done.code == 5
    assert "could not be reached" in done.err


@pytest.mark.parametrize(
    "fault", [faults.server_error(502), faults.empty_429(0.01), faults.drop_before_accepting()]
)
def test_wait_survives_temporary_errors(run: Run, gateway: GatewayThread, fault: Fault) -> None:
    """If the first poll fails because the gateway has a problem, the command goes on."""
    task_id = run("generate", PROMPT, "-o", "first.mp4").task_id
    gateway.simulator.fault("feed", fault, times=2)
    done = run("wait", task_id)
    assert (done.code, done.out) == (0, f"clip-{task_id}.mp4\n")
    assert "retrying" in done.err or "limits the rate" in done.err


def test_feed_shows_a_table(run: Run, gateway: GatewayThread) -> None:
    """The gateway's values are printed one per line, including the URL."""
    task_id = run("generate", PROMPT, "-o", "kitten.mp4").task_id
    done = run("feed", task_id)
    shown = dict(line.split(maxsplit=1) for line in done.out.splitlines() if "url" not in line)
    assert (done.code, done.err) == (0, "")
    assert (shown["task"].split()[-1], shown["state"]) == (task_id, "succeeded")
    assert (shown["points"], shown["refunded"]) == ("320", "no")
    assert re.search(r"^video url +http://127\.0\.0\.1:\d+/\S+$", done.out, re.MULTILINE)


def test_feed_shows_progress_as_percent(run: Run, gateway: GatewayThread) -> None:
    """The progress is printed as a percentage."""
    gateway.simulator.script(takes=EVER, dialect="new_api", queued=0.0, progress=[42])
    task_id = run("generate", PROMPT, "--timeout", "0.01").task_id
    assert re.search(r"^progress +42%$", run("feed", task_id).out, re.MULTILINE)


def test_official_without_an_image(run: Run, gateway: GatewayThread) -> None:
    """With --official and no image, it is text to video in the official format."""
    done = run("generate", PROMPT, "--official", "--seconds", "8", "--audio", "--model", "veo3.1")
    assert done.code == 0
    assert gateway.call(lambda one: one.requests[0].path) == "/runwayml/v1/text_to_video"
    assert gateway.body() == {
        "promptText": PROMPT,
        "model": "veo3.1",
        "ratio": "1280:720",
        "duration": 8,
        "audio": True,
    }


@pytest.mark.parametrize(
    ("words", "path", "body"),
    [
        (
            ["official_video_upscale", f"video={VIDEO}"],
            "/runwayml/v1/video_upscale",
            {"videoUri": VIDEO, "model": "upscale_v1"},
        ),
        (
            ["official_request", "path=text_to_video", 'body={"model": "m", "promptText": "5=5"}'],
            "/runwayml/v1/text_to_video",
            {"model": "m", "promptText": "5=5"},
        ),
        (
            ["aleph", f"video={VIDEO}", "prompt=a=b", "seconds=5", 'extra={"a": 1}'],
            "/runway/pro/aleph",
            {
                "callback_url": "https://callback.invalid/",
                "video": VIDEO,
                "prompt": "a=b",
                "options": {"seconds": 5},
                "a": 1,
            },
        ),
    ],
)
def test_submit_makes_a_request_of_any_kind(
    words: list[str], path: str, body: dict[str, Any], run: Run, gateway: GatewayThread
) -> None:
    """Its fields are read as the cells of a table are; the clip is saved as any other."""
    done = run("submit", *words, "-o", "clip.mp4")
    assert (done.code, done.out) == (0, "clip.mp4\n")
    assert gateway.call(lambda one: one.requests[0].path) == path
    assert gateway.body() == body


def test_feed_of_an_official_task(run: Run, gateway: GatewayThread) -> None:
    """With --official, the poll goes to the official route."""
    done = run("generate", PROMPT, "--official", "--image", IMAGE, "-o", "clip.mp4")
    assert "succeeded" in run("feed", done.task_id, "--official").out


def test_feed_of_a_failed_task_succeeds(run: Run, gateway: GatewayThread) -> None:
    """The command shows the failure and exits with 0; control characters are removed."""
    gateway.simulator.script(then="fail", reason="too\x1b[2J dark")
    task_id = run("generate", PROMPT).task_id
    done = run("feed", task_id)
    assert done.code == 0
    assert re.search(r"^message +too \[2J dark$", done.out, re.MULTILINE)
    assert re.search(r"^refunded +yes$", done.out, re.MULTILINE)


def test_balance_shows_what_is_left(run: Run, gateway: GatewayThread) -> None:
    """The numbers have thousands separators and no needless decimals."""
    run("generate", PROMPT)
    done = run("balance")
    assert (done.code, done.err) == (0, "")
    rows = dict(line.split() for line in done.out.splitlines())
    assert rows == {"remaining": "996.8", "used": "3.2", "total": "1,000", "unlimited": "no"}


def test_balance_can_be_simulated(run: Run) -> None:
    """With --simulate, the balance needs no key."""
    assert "1,000" in run("balance", "--simulate").out


# JSON


def test_json_is_one_object_with_the_documented_keys(run: Run, gateway: GatewayThread) -> None:
    """The result is one line on stdout; stderr contains the id and no progress."""
    done = run("generate", PROMPT, "-o", "kitten.mp4", "--json")
    (line,) = done.out.splitlines()
    row = json.loads(line)
    assert row.keys() == documented_keys("A task in JSON")
    assert (row["state"], row["file"], row["points"]) == ("succeeded", "kitten.mp4", 320)
    assert done.err == f"accepted: task {row['task_id']}\n"


def test_json_of_a_feed(run: Run, gateway: GatewayThread) -> None:
    """Feed prints the same keys except the file, and times in ISO 8601."""
    task_id = run("generate", PROMPT, "-o", "kitten.mp4").task_id
    row = json.loads(run("feed", task_id, "--json").out)
    assert row.keys() == documented_keys("A task in JSON") - {"file"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", row["created_at"])
    assert row["video_url"].startswith("http://127.0.0.1:")


def test_json_of_a_balance(run: Run, gateway: GatewayThread) -> None:
    """The balance is one object with the documented keys."""
    row = json.loads(run("balance", "--json").out)
    assert row.keys() == documented_keys("A balance in JSON")
    assert row == {"remaining": 1000, "used": 0, "total": 1000, "unlimited": False}


# What is refused before anything is sent


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["generate", ""], "prompt is empty"),
        (["generate", " \n"], "prompt has no visible character"),
        (["generate", PROMPT, "--ratio", "2/1"], "Did you mean 2:1?"),
        (["generate", PROMPT, "--ratio", "1:1", "--model", "gen3"], "gen3"),
        (["generate", PROMPT, "--seconds", "0"], "from 1 to 60"),
        (["generate", PROMPT, "--image", "a/kitten.png"], "image cannot be read as a file"),
        (["restyle", "kitten.mp4", PROMPT], "video cannot be read as a file"),
        (["act", VIDEO, "kitten.png"], "image cannot be read as a file"),
        (["generate", PROMPT, "--image", "ftp://example.com/a"], "--image must be an http(s) URL"),
        (["generate", PROMPT, "--last-image", IMAGE], "--last-image cannot be used with text"),
        (["generate", PROMPT, "--flip"], "--flip cannot be used with text to video"),
        (["generate", PROMPT, "--seed", "1"], "--seed cannot be used with text to video"),
        (
            ["generate", PROMPT, "--image", IMAGE, "--seed", "1"],
            "--seed cannot be used with --image alone",
        ),
        (["generate", PROMPT, "--official", "--image", IMAGE, "--style", "noir"], "--style"),
        (
            ["generate", PROMPT, "--official", "--last-image", IMAGE],
            "--last-image cannot be used with --official alone",
        ),
        (["generate", PROMPT, "--audio"], "--audio cannot be used with text to video"),
        (["submit", "nothing", f"prompt={PROMPT}"], "Use text_to_video, image_to_video"),
        (["submit", "text_to_video", PROMPT], "A field is not written as name=value"),
        (["submit", "official_video_upscale"], "video is missing"),
        (["submit", "aleph", f"vidoe={VIDEO}"], "Did you mean video?"),
        (["submit", "official_request", "path=/../a", "body={}"], "path must be a relative path"),
        (["generate", PROMPT, "--motion", "y"], "write it as y=0.4,r=-6"),
        (["generate", PROMPT, "--motion", "up=1"], "write it as y=0.4,r=-6"),
        (["generate", PROMPT, "--motion", "y=nan"], "write it as y=0.4,r=-6"),
        (["generate", PROMPT, "--extra", "{"], "it is not a JSON object"),
        (["generate", PROMPT, "--extra", "[" * 100_000], "it is not a JSON object"),
        (["generate", PROMPT, "--extra", "[1]"], "it is not a JSON object"),
        (["generate", PROMPT, "--extra", '{"prompt": 1}'], "extra sets 'prompt'"),
        (
            ["generate", PROMPT, "--timeout", "0"],
            'Invalid value "0" for --timeout. Use a number above 0.',
        ),
        (["generate", PROMPT, "--timeout", "nan"], "nan"),
        (["generate", PROMPT, "--timeout", "inf"], "inf"),
        (["generate", PROMPT, "-o", "there.mp4"], "'there.mp4' already exists"),
        (["generate", PROMPT, "-o", "folder"], "'folder' is a folder"),
        (["generate", PROMPT, "-o", "nowhere/clip.mp4"], "no folder 'nowhere'"),
        (["generate", PROMPT, "-o", f"{'x' * 300}.mp4"], "Nothing can be written"),
        (
            ["generate", PROMPT, "--gateway", "unknown"],
            'Invalid value "unknown" for --gateway. Use one of fuhuapi',
        ),
        (["generate", PROMPT, "--base-url", "example.com"], "--base-url must be an http(s) URL"),
        (["generate", PROMPT, "--api-key-file", "nothing"], "No such file"),
        (["generate", PROMPT, "--api-key-file", "empty"], "The key file is empty"),
        (["generate", PROMPT, "--api-key-file", "binary"], "it is not text"),
        (["generate", PROMPT, "--api-key-file", "two lines"], "a space or a character"),
        (
            ["generate", PROMPT, "--simulate", "--base-url", "http://a"],
            "cannot be combined with --base-url",
        ),
        (["generate", PROMPT, "--simulate", "--api-key-file", "empty"], "cannot be combined with"),
        (["restyle", "htp://video.mp4", PROMPT], "video must be an http(s) URL"),
        (["restyle", VIDEO, PROMPT, "--structure-transformation", "2"], "from 0 to 1"),
        (["restyle", VIDEO, ""], "prompt is empty"),
        (["act", VIDEO], "neither was given"),
        (["act", VIDEO, IMAGE, "--character-video", VIDEO], "both were given"),
        (["act", VIDEO, IMAGE, "--motion-multiplier", "9"], "from 1 to 5"),
        (["wait", ""], "The task id is empty"),
        (["wait", " "], "The task id is empty"),
        (["wait", "some-task", "-o", "there.mp4"], "'there.mp4' already exists"),
        (["wait", "some-task", "--timeout", "-1"], "-1"),
        (["feed", ""], "The task id is empty"),
    ],
)
def test_a_wrong_command_is_one_line_and_costs_nothing(
    tokens: list[str], message: str, run: Run, gateway: GatewayThread, tmp_path: Path
) -> None:
    """Invalid input exits with 2 and one line that says what is wrong; nothing is sent."""
    (tmp_path / "there.mp4").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "two lines").write_text("sk-1\nsk-2")
    done = run(*tokens)
    assert (done.code, done.out) == (2, "")
    *news, line = done.err.splitlines()
    assert line.startswith("fuhu-runway: ")
    assert message in line
    assert PROMPT not in done.err
    assert set(news) <= {"submitting"}
    assert gateway.call(lambda one: one.requests) == ()


def test_a_gateway_without_a_known_url_needs_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing names the gateway's URL, the error says how to set it."""
    monkeypatch.setenv("FUHU_API_KEY", "sk-1")
    done = run("balance", "--gateway", "yutoai")
    assert done.code == 2
    assert "FUHU_BASE_URL" in done.err


@pytest.mark.parametrize(
    "tokens", [["generate", PROMPT], ["wait", "some-task"], ["feed", "some-task"], ["balance"]]
)
def test_a_missing_key_is_an_error_with_advice(run: Run, tokens: list[str]) -> None:
    """The exit code is 2, and the error names the variable and the options that there are."""
    done = run(*tokens)
    assert done.code == 2
    assert "FUHU_API_KEY" in done.err
    assert "--api-key-file" in done.err
    assert ("--simulate" in done.err) == (tokens[0] in {"generate", "balance"})


def test_the_key_may_come_from_a_file(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file overrides the variable, and its final newline is not part of the key."""
    monkeypatch.setenv("FUHU_API_KEY", "sk-wrong")
    Path("key").write_text(gateway.simulator.api_key + "\n")
    assert run("balance").code == 5
    assert run("balance", "--api-key-file", "key").code == 0


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["generate", PROMPT, "--jsn"], "--json"),
        (["generate", PROMPT, "--api-key=sk-12345"], "--api-key-file"),
        (["generate", PROMPT, "--sk-12345"], "Unknown option"),
        (["generate", "- " + PROMPT], "Use -- before a prompt that begins with -"),
        (["generate", *PROMPT.split()], "Put a prompt of several words in quotes"),
        (["generate"], "PROMPT is missing."),
        (["resolve"], "JOURNAL is missing."),
        (["resolve", "--journal"], "--journal needs a value."),
        (["generate", PROMPT, "--seconds", "ten"], "--seconds: it is not a whole number"),
        (["generate", PROMPT, "--seconds", "5.7"], "--seconds: it is not a whole number"),
        (["generate", PROMPT, "--seed", "1.5"], "--seed: it is not a whole number"),
        (["restyle", VIDEO, PROMPT, "--seconds", "4.6"], "--seconds: it is not a whole number"),
        (["act", VIDEO, IMAGE, "--motion-multiplier", "2.5"], "it is not a whole number"),
        (["batch", "p.txt", "--out", "c", "--in-flight", "2.5"], "it is not a whole number"),
        (["simulate", "--speed", "fast"], '--speed: "fast" is not a number.'),
        (["enerate", PROMPT], '"generate"'),
        ([PROMPT], "Available commands: generate, restyle"),
        (["-v"], "Unknown command"),
        (["balance", "--port", "1"], "Unknown option"),
        (["wait", "some-task", "--simulate"], "Unknown option"),
    ],
)
def test_a_misspelt_command_gets_a_hint(tokens: list[str], message: str, run: Run) -> None:
    """A wrong command exits with 2 and one line of advice that quotes no secret."""
    done = run(*tokens)
    (line,) = done.err.splitlines()
    assert (done.code, done.out) == (2, "")
    assert message in line
    assert re.search(r"See fuhu-runway( [a-z]+)? --help\.$", line)
    assert "12345" not in line
    assert not set(PROMPT.split()[1:]) & set(re.findall(r"\w+", line))


# Help


@pytest.mark.parametrize("tokens", [[], ["-h"], ["--help"]])
def test_the_bare_command_shows_its_help(run: Run, tokens: list[str]) -> None:
    """The first help page lists every command and every exit code."""
    done = run(*tokens)
    assert (done.code, done.err) == (0, "")
    assert all(command in done.out for command in COMMANDS)
    assert all(f"{code}:" in done.out for code in cli.EXIT_CODES)


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(run: Run, command: str, flag: str) -> None:
    """Every command has -h and --help."""
    done = run(command, flag)
    assert (done.code, done.err) == (0, "")
    assert f"fuhu-runway {command}" in done.out


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)])
def test_each_command_prints_the_version(run: Run, command: list[str]) -> None:
    """--version prints only the version."""
    assert run(*command, "--version").out == f"{version('fuhu-runway')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_description(command: str) -> None:
    """Each argument of each command is described on its help page."""
    for argument in cli.app[command].assemble_argument_collection(parse_docstring=True):
        assert argument.parameter.help or not argument.show, argument.names


def test_generate_has_an_option_for_every_field() -> None:
    """Each field of the requests that generate can make is an option."""
    for kind in (make.TextToVideo, make.ImageToVideo, make.OfficialImageToVideo):
        assert attrs.fields_dict(kind).keys() <= {"prompt", *attrs.fields_dict(make.RequestOptions)}


# What goes wrong after that


@pytest.mark.parametrize("ending", ["fail", "cancel"])
def test_a_failed_task_is_1(run: Run, gateway: GatewayThread, ending: Any) -> None:
    """A task without a clip exits with 1, and no command to continue is printed."""
    gateway.simulator.script(then=ending)
    done = run("generate", PROMPT)
    assert (done.code, done.out) == (1, "")
    assert "points were refunded" in done.err.splitlines()[-1]
    assert "Continue" not in done.err


def test_a_submission_without_a_response_is_3(run: Run, gateway: GatewayThread) -> None:
    """A paid request whose outcome is unknown exits with 3, and was sent once."""
    gateway.simulator.fault("submit", faults.drop_after_accepting())
    done = run("generate", PROMPT)
    assert (done.code, done.out) == (3, "")
    assert "It may have been accepted and charged" in done.err
    assert gateway.call(lambda one: one.submitted) == 1


def test_a_timeout_is_4(run: Run, gateway: GatewayThread) -> None:
    """A task that takes longer exits with 4, and the last line contains its id."""
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
def test_a_refused_submission_is_5(run: Run, gateway: GatewayThread, fault: Fault) -> None:
    """A refusal exits with 5, and the last line says that nothing was charged."""
    gateway.simulator.fault("submit", fault)
    done = run("generate", PROMPT)
    assert (done.code, done.out) == (5, "")
    assert "Nothing was charged." in done.err.splitlines()[-1]
    assert gateway.call(lambda one: one.submitted) == 0


def test_an_unreachable_gateway_is_5(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that cannot be reached exits with 5, and the error ends with its address."""
    monkeypatch.setenv("FUHU_API_KEY", "sk-1")
    port = free_port()
    done = run("generate", PROMPT, "--base-url", f"http://127.0.0.1:{port}")
    assert done.code == 5
    assert done.err.splitlines()[:2] == ["submitting", "waiting: the gateway cannot be reached"]
    assert done.err.endswith(f"The gateway's address is 127.0.0.1:{port}.\n")


def test_a_download_that_breaks_off_is_5(run: Run, gateway: GatewayThread) -> None:
    """The clip is paid for, and the error contains the command that fetches it."""
    gateway.simulator.fault("download", faults.server_error(503), times=None)
    broken = run("generate", PROMPT, "-o", "kitten.mp4")
    assert (broken.code, broken.out) == (5, "")
    assert broken.advice == ["fuhu-runway", "wait", broken.task_id, "-o", "kitten.mp4"]


def test_a_file_that_appears_meanwhile_is_kept(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that appears while the task runs is kept; the error says that the clip is paid."""
    accept = make.RunningCommand.accept

    def accept_and_lose_the_name(running: make.RunningCommand, *arguments: Any) -> None:
        accept(running, *arguments)
        running.path.write_text("mine")

    monkeypatch.setattr(make.RunningCommand, "accept", accept_and_lose_the_name)
    done = run("generate", PROMPT, "-o", "kitten.mp4")
    assert done.code == 5
    assert "already exists. The clip exists and is paid for." in done.err
    assert done.advice[1:3] == ["wait", done.task_id]
    assert Path("kitten.mp4").read_text() == "mine"


def test_a_bug_does_not_lose_the_task(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even after a bug, the last line contains the command that fetches the clip."""
    monkeypatch.setattr("fuhu_runway.task.Task.wait", None)
    done = run("generate", PROMPT, "-o", "kitten.mp4")
    assert (done.code, done.out) == (70, "")
    assert "TypeError" in done.err.splitlines()[-1]
    assert done.advice == ["fuhu-runway", "wait", done.task_id, "-o", "kitten.mp4"]


def test_every_error_has_a_documented_code() -> None:
    """Every exception has an exit code that the help documents."""
    assert {code for _, code in _console.EXIT_OF} <= cli.EXIT_CODES.keys()
    assert _console.EXIT_OF[-1][0] is Exception


# Logs


def test_nothing_is_logged_without_verbose(run: Run, gateway: GatewayThread) -> None:
    """Without -v, not even the SDK's warnings are logged."""
    gateway.simulator.script(then="stall", faults=[faults.on("feed", faults.unknown_word())])
    done = run("generate", PROMPT, "--timeout", "0.5")
    assert "warning" not in done.err
    assert "unknown" in done.err.splitlines()


@pytest.mark.parametrize(("flag", "level"), [("-v", "info"), ("-vv", "debug")])
def test_verbose_shows_the_log_without_secrets(
    run: Run, gateway: GatewayThread, flag: str, level: str
) -> None:
    """-v logs events, -vv also polls, and neither logs a key, a prompt or a URL."""
    done = run("generate", PROMPT, "-o", "kitten.mp4", flag)
    assert re.search(rf"^{level}: \w+ task_id=", done.err, re.MULTILINE)
    assert ("TaskPolled" in done.err) == (flag == "-vv")
    for secret in (PROMPT, gateway.simulator.api_key, "http://"):
        assert secret not in done.err


def test_very_verbose_shows_where_an_error_comes_from(run: Run, gateway: GatewayThread) -> None:
    """Only -vv shows a traceback, and the error stays the last line."""
    gateway.simulator.fault("submit", faults.error(401), times=2)
    assert "Traceback" not in run("generate", PROMPT, "-v").err
    done = run("generate", PROMPT, "-vv")
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("fuhu-runway: ")
    assert PROMPT not in done.err


def test_the_logger_is_restored(run: Run, gateway: GatewayThread) -> None:
    """After a command, the logger has its former level and handlers."""
    logger = make.hooks.LOGGER
    before = (logger.level, list(logger.handlers))
    run("generate", PROMPT, "-vv")
    assert (logger.level, logger.handlers) == before


# Ctrl-C


def shown(stage: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Return a function that says whether *stage* has been shown."""
    seen: set[str] = set()
    show = make.Screen.stage

    def see(screen: make.Screen, name: str, *more: Any) -> None:
        show(screen, name, *more)
        seen.add(name)

    monkeypatch.setattr(make.Screen, "stage", see)
    return lambda: stage in seen


@attrs.define
class Held:
    """A script for all tasks that holds each submission until it is released."""

    reached: threading.Event = attrs.field(factory=threading.Event)
    let_go: threading.Event = attrs.field(factory=threading.Event)

    def __call__(self, _body: object) -> bool:
        self.reached.set()
        return self.let_go.wait(30)


def test_ctrl_c_waits_for_the_response_to_a_paid_request(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a submission in flight, the id and the command that continues are printed."""
    held = Held()
    gateway.simulator.script(held)
    say = make.Screen.say

    def show_and_release(screen: make.Screen, text: str) -> None:
        say(screen, text)
        if text.startswith("Waiting for the response"):
            held.let_go.set()

    monkeypatch.setattr(make.Screen, "say", show_and_release)
    with pressed(held.reached.is_set):
        done = run("generate", PROMPT, "-o", "kitten.mp4")
    submitting, waiting, accepted, stopped = done.err.splitlines()
    assert (done.code, done.out) == (130, "")
    assert (submitting, waiting[:7]) == ("submitting", "Waiting")
    assert accepted == f"accepted: task {done.task_id}"
    assert stopped == (
        f"Stopped. The task continues. Continue with: fuhu-runway wait {done.task_id} -o kitten.mp4"
    )
    assert run(*done.advice[1:]).code == 0
    assert gateway.call(lambda one: one.submitted) == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (faults.error(401), "refused (Unauthorized): nothing was charged"),
        (faults.empty_429(), "refused (RateLimited): nothing was charged"),
        (faults.server_error(504), "may have been charged"),
        (faults.Drop(accepted=True), "may have been charged"),
    ],
)
def test_ctrl_c_says_what_happened_to_the_request(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch, fault: Fault, message: str
) -> None:
    """After a refusal, or no response, the last line says what that means for the money."""
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
    assert message in done.err.splitlines()[-1]


def test_ctrl_c_between_two_attempts_submits_nothing(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a refused request waits for its retry, nothing is in flight or lost."""
    gateway.simulator.fault("submit", faults.empty_429(60))
    with pressed(shown("waiting: the gateway limits the rate", monkeypatch)):
        done = run("generate", PROMPT)
    assert done.code == 130
    assert done.err.splitlines()[-1] == "Stopped. Nothing was submitted."
    assert gateway.call(lambda one: one.submitted) == 0


def test_ctrl_c_while_waiting_says_how_to_continue(run: Run, gateway: GatewayThread) -> None:
    """The last line contains the command that continues the task."""
    gateway.simulator.script(takes=EVER)
    with pressed(lambda: gateway.got("feed")):
        done = run("generate", PROMPT, "-o", "kitten.mp4")
    assert (done.code, done.out) == (130, "")
    assert done.advice == ["fuhu-runway", "wait", done.task_id, "-o", "kitten.mp4"]


def test_ctrl_c_while_downloading_keeps_the_partial_file(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The partial file stays, and the printed command resumes the download."""
    gateway.simulator.fault("download", faults.SlowBody(bytes_per_second=2))
    with pressed(shown("saving", monkeypatch)):
        done = run("generate", PROMPT, "-o", "kitten.mp4")
    kept = Path("kitten.mp4.part").stat().st_size
    assert (done.code, kept > 0) == (130, True)
    assert run(*done.advice[1:]).code == 0
    assert is_clip("kitten.mp4")
    *_, last = gateway.call(lambda one: one.requests)
    assert last.headers["Range"] == f"bytes={kept}-"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_sigterm_and_sighup_stop_a_command(
    run: Run, gateway: GatewayThread, number: int, code: int
) -> None:
    """SIGTERM, and a closing terminal, stop the command like Ctrl-C, with other exit codes."""
    gateway.simulator.script(takes=EVER)
    with pressed(lambda: gateway.got("feed"), number):
        done = run("generate", PROMPT)
    assert done.code == code
    assert done.advice[1:3] == ["wait", done.task_id]


def test_ctrl_c_in_a_free_command_prints_one_word(run: Run, gateway: GatewayThread) -> None:
    """If nothing was paid, there is nothing to explain."""
    gateway.simulator.fault("feed", faults.Hang())
    with pressed(lambda: gateway.got("feed")):
        done = run("feed", "some-task")
    assert (done.code, done.out, done.err) == (130, "", "Stopped.\n")


def test_ctrl_c_before_the_work_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a command still imports modules, Ctrl-C reaches __main__, which exits with 130."""

    def press(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "wants_json", press)
    with pytest.raises(KeyboardInterrupt):
        cli.main(["balance", "--simulate"])


def test_ctrl_c_ends_a_simulated_task_with_its_gateway(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A simulated task cannot be continued, and no command to do so is printed."""
    monkeypatch.setattr(make, "SIMULATED_SPEED", 0.001)
    with pressed(shown("queued", monkeypatch)):
        done = run("generate", PROMPT, "--simulate")
    assert done.code == 130
    assert done.err.splitlines()[-1] == "Stopped. The simulated gateway ended, too."


def test_signal_handlers_are_restored(run: Run) -> None:
    """After a command, signals have their former handlers."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run("balance", "--simulate")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# Terminals


@pytest.mark.parametrize("columns", ["40", "120"])
def test_a_terminal_gets_a_moving_line(run: Run, gateway: GatewayThread, columns: str) -> None:
    """States and bytes share one line that is removed at the end; the id and the size stay."""
    gateway.simulator.script(dialect="new_api", takes=400, queued=0.2)
    with on_a_terminal(COLUMNS=columns) as terminal:
        done = run("generate", PROMPT, "-o", "kitten.mp4")
    shown = terminal.getvalue()
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown)
    assert (done.code, done.out) == (0, "kitten.mp4\n")
    assert "accepted: task " in plain
    assert re.search(r"rendering .*\d+%", plain)
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert re.search(r"saved: [\d.]+ kB", plain)


def test_no_color_disables_colours(run: Run, gateway: GatewayThread) -> None:
    """With NO_COLOR, the moving line has no colours."""
    colour = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7])(?:;\d+)*m")
    with on_a_terminal() as coloured:
        run("generate", PROMPT)
    with on_a_terminal(NO_COLOR="1") as plain:
        run("generate", PROMPT)
    assert colour.search(coloured.getvalue())
    assert not colour.search(plain.getvalue())


@pytest.mark.parametrize("name", ["dumb", "unknown"])
def test_a_dumb_terminal_gets_lines(run: Run, gateway: GatewayThread, name: str) -> None:
    """A terminal that cannot move the cursor gets plain lines."""
    with on_a_terminal(TERM=name) as terminal:
        run("generate", PROMPT)
    assert "\x1b" not in terminal.getvalue()
    assert "saving\n" in terminal.getvalue()


def test_json_shows_no_progress_on_a_terminal(run: Run, gateway: GatewayThread) -> None:
    """With --json, a terminal shows only the id."""
    with on_a_terminal() as terminal:
        run("generate", PROMPT, "--json")
    assert re.fullmatch(r"accepted: task \S+\n", terminal.getvalue())


def test_a_command_works_without_stderr(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was started with stderr closed prints its result to stdout."""
    monkeypatch.setattr(sys, "stderr", None)
    assert run("generate", PROMPT, "-o", "kitten.mp4").out == "kitten.mp4\n"


@pytest.mark.parametrize("page", ["--help", "--version", "-V"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 0),
        (OSError(errno.EINVAL, "Invalid argument"), 0),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
        (OSError(errno.EFBIG, "File too large"), 1),
        (OSError(errno.EIO, "Input/output error"), 1),
    ],
    ids=lambda value: getattr(value, "strerror", None),
)
def test_a_page_that_cannot_be_printed_shows_no_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch, page: str, error: OSError, said: int
) -> None:
    """A reader that closes the pipe is quiet (EINVAL on Windows); a full disk is one line."""

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    monkeypatch.setattr(sys, "stdout", Broken())
    done = run(page)
    assert done.code == 5 * said
    lines = [f"fuhu-runway: The output could not be written: {error.strerror}."]
    assert done.err.splitlines()[:1] == lines[:said]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only some systems have it")
@pytest.mark.parametrize("page", ["--help", "--version", "-V", "generate --version"])
def test_a_page_onto_a_full_disk_is_an_error_of_one_line(page: str) -> None:
    """It is said on stderr that the output is not complete, also by the entry point itself."""
    command = [sys.executable, "-m", "fuhu_runway", *page.split()]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    line = "fuhu-runway: The output could not be written: No space left on device.\n"
    assert (done.returncode, done.stderr) == (5, line)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only some systems have it")
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_an_id_that_is_lost_on_a_full_disk_is_an_error(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """A script does not take an empty file for success; stderr has the id of the paid task."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        done = run("submit", PROMPT, *options)
    (task,) = gateway.call(lambda one: one.tasks)
    assert done.code == 5
    assert f"accepted: task {task.task_id}" in done.err
    assert "could not be written: No space left on device." in done.err


def test_completion_that_cannot_be_installed_is_an_error_of_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A home directory that cannot be written is named, with exit code 2."""
    home = tmp_path / "home"
    home.touch()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    done = run("--install-completion", "--shell", "bash")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("fuhu-runway: Tab completion could not be installed: ")


def test_completion_for_an_unknown_shell_is_an_error(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the shell is not known, the exit code is that of a wrong command."""

    def unknown() -> NoReturn:
        raise ShellDetectionError

    monkeypatch.setattr("cyclopts.completion.detect.detect_shell", unknown)
    done = run("--install-completion")
    assert (done.code, done.out) == (2, "")
    assert "--shell" in done.err


@pytest.mark.parametrize("columns", ["1", "2"])
def test_help_for_no_width_at_all_comes_to_an_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    """Rich would fill the memory."""
    monkeypatch.setenv("COLUMNS", columns)
    assert run("generate", "--help").code == 0


# Processes


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_ctrl_c_ends_the_process_with_130(gateway: GatewayThread) -> None:
    """After the first SIGINT, the command says how to continue, and ends."""
    gateway.simulator.script(takes=EVER)
    with start("generate", PROMPT, "-o", "kitten.mp4") as process:
        assert process.stderr
        assert process.stdout
        task_id = read_until(process.stderr, "accepted: task ").split()[-1]
        process.send_signal(signal.SIGINT)
        message = process.stderr.read()
        assert f"Continue with: fuhu-runway wait {task_id} -o kitten.mp4" in message
        assert "Traceback" not in message
        assert process.stdout.read() == ""
    assert process.returncode == 130


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_the_second_ctrl_c_ends_the_process(gateway: GatewayThread, flags: list[str]) -> None:
    """A second Ctrl-C ends the wait for the response: 3, since it may be charged."""
    gateway.simulator.fault("submit", faults.Hang())
    with start("generate", PROMPT, *flags) as process:
        assert process.stderr
        assert process.stdout
        while not gateway.got("submit"):
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, "Waiting for the response")
        process.send_signal(signal.SIGINT)
        said, out = process.stderr.read(), process.stdout.read()
    assert process.returncode == 3
    assert said.startswith("Stopped. 1 paid request was in flight: it is unknown whether points")
    if flags:
        assert json.loads(out) == {
            "error": "SubmissionInDoubt",
            "message": said.rstrip(),
            "task_id": None,
            "money": "1 paid request was in flight: it is unknown whether points were charged.",
            "exit_code": 3,
        }
    else:
        assert out == ""


def test_a_killed_process_has_shown_the_id(run: Run, gateway: GatewayThread) -> None:
    """The id is printed before anything else, so that even SIGKILL loses no clip."""
    with start("generate", PROMPT, "-o", "kitten.mp4") as process:
        assert process.stderr
        task_id = read_until(process.stderr, "accepted: task ").split()[-1]
        process.kill()
    assert run("wait", task_id, "-o", "kitten.mp4").code == 0
    assert gateway.call(lambda one: one.submitted) == 1


def test_closed_pipes_do_not_end_a_paid_job(gateway: GatewayThread) -> None:
    """With both pipes closed, the clip is still saved, and the exit code is 0."""
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
def test_on_a_real_terminal(run: Run, gateway: GatewayThread, columns: int, rows: int) -> None:
    """On a terminal of any width, the moving line fits, and is removed at the end."""
    import pty
    import termios

    task_id = run("generate", PROMPT, "-o", "first.mp4").task_id
    gateway.simulator.fault("download", faults.SlowBody(bytes_per_second=300))
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
    moving = [line for line in re.split(r"[\r\n]+", drawn) if "saving" in line]
    assert re.search(r"kB/12\.\d kB", moving[-1])
    assert max(map(len, moving)) <= columns


def read_all(handle: int) -> str:
    """Read a terminal until its other end is closed."""
    data = b""
    with contextlib.suppress(OSError):  # how Linux reports that the other end is closed
        while chunk := os.read(handle, 4096):
            data += chunk
    return data.decode()


def test_no_error_of_the_sdk_counts_as_a_bug() -> None:
    """Every error of the SDK has an exit code from 1 to 5."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, errors.RunwayError):
            code = next(code for parent, code in _console.EXIT_OF if issubclass(kind, parent))
            assert 1 <= code <= 5
