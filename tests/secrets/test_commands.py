"""What the commands print, with secrets that are marked, in every way in which they may end."""

import json
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from support.clients import QUICK_POLLS, QUICK_RETRY
from support.commands import Elsewhere, Outcome, Run, gateway_elsewhere, runner
from support.marks import (
    DATA,
    EXTRA,
    IMAGE,
    KEY,
    LAST_IMAGE,
    PROMPT,
    VIDEO,
    Evidence,
    indiscretion,
)

from fuhu_runway.cli import app as cli
from fuhu_runway.models import ImageToVideo
from fuhu_runway.testing import faults

TOLD: Final = indiscretion(ImageToVideo(PROMPT, IMAGE, last_image=LAST_IMAGE))
MAKING: Final = {
    "text": ["generate", PROMPT, "--extra", json.dumps(EXTRA)],
    "image": ["generate", PROMPT, "--image", IMAGE, "--last-image", LAST_IMAGE],
    "official": ["generate", PROMPT, "--official", "--image", DATA],
    "restyle": ["restyle", VIDEO, PROMPT],
    "act": ["act", VIDEO, "--image", IMAGE],
}

# What is printed on purpose, where, and why.
NAMES: Final = {"prompt"}
"""A file that the command names itself is named after its prompt: a person has to find it."""
FEED: Final = {"prompt", "link", "IP address"}
"""`feed` prints what the gateway knows of a task, and so does --json: whoever asks, wants that."""
ADDRESS: Final = {"key", "IP address"}
"""`simulate` prints the way to a gateway of one's own, to which its key is no secret."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, in milliseconds, without the variables of the real user."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FUHU_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("fuhu_runway.client.PollPolicy", lambda: QUICK_POLLS)
    monkeypatch.setattr("fuhu_runway.client.RetryPolicy", lambda: QUICK_RETRY)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""
    return runner(capsys)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    """A gateway with a marked key that the environment leads to."""
    with gateway_elsewhere(monkeypatch, speed=1000, takes=20, api_key=KEY) as elsewhere:
        yield elsewhere


@pytest.fixture
def evidence(caplog: pytest.LogCaptureFixture) -> Iterator[Evidence]:
    """Return what collects evidence, and let there be none."""
    caplog.set_level(logging.DEBUG, "fuhu_runway")
    found = Evidence()
    yield found
    for record in caplog.get_records("call"):
        if record.name.startswith("fuhu_runway"):
            found.take("log", f"{record.getMessage()} {vars(record)}")
    assert found.leaks == []


def judge(evidence: Evidence, done: Outcome, *, but: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Check both streams of a command; of what is printed on purpose, stderr may have names."""
    evidence.take("stdout", done.out, but=but)
    evidence.take("stderr", done.err, but=but & NAMES)


@pytest.mark.parametrize("words", MAKING.values(), ids=MAKING)
def test_making_a_clip_tells_nothing(
    words: list[str], run: Run, gateway: Elsewhere, evidence: Evidence
) -> None:
    """Right, failed, refused, in doubt and without an answer, quietly and with all that is said."""
    for loudness in ([], ["-v"], ["-vv"]):
        judge(evidence, run(*words, *loudness), but=NAMES)
        made = [*words, "-o", "clip.mp4", "--force", *loudness]
        judge(evidence, run(*made))
        simulator = gateway.simulator
        gateway.ask(lambda one: one.script(then="fail", reason=TOLD))
        judge(evidence, run(*made))
        for place in ("submit", "official", "feed", "download"):
            for fault in (
                faults.error(400, TOLD, code=TOLD),
                faults.error(500, TOLD),
                faults.drop_after_accepting(),
                faults.html_page(),
            ):
                simulator.fault(place, fault, times=None)  # type: ignore[arg-type]
                judge(evidence, run(*made, "--timeout", "0.05"))
                simulator.forget_plans()
    judge(evidence, run(*words, "--json"), but=NAMES | FEED)
    judge(evidence, run(*words, "--nonsense", PROMPT))


def test_looking_tells_what_was_asked_for(run: Run, gateway: Elsewhere, evidence: Evidence) -> None:
    """`feed` prints what the gateway knows of the task, `wait` and `balance` do not."""
    run("generate", PROMPT, "-o", "clip.mp4")
    (task,) = gateway.ask(lambda one: one.tasks)
    for words in ([], ["-vv"]):
        judge(evidence, run("feed", task.task_id, *words), but=FEED)
        judge(evidence, run("feed", task.task_id, "--json", *words), but=FEED)
        judge(evidence, run("wait", task.task_id, *words), but=NAMES)
        judge(evidence, run("wait", task.task_id, "-o", "clip.mp4", "--force", *words))
        judge(evidence, run("balance", *words))
        judge(evidence, run("balance", "--json", *words))
        gateway.simulator.fault("balance", faults.error(403, TOLD.replace(PROMPT, "")), times=None)
        judge(evidence, run("balance", *words))
        gateway.simulator.forget_plans()


def test_a_batch_tells_no_more_than_its_names(
    run: Run, gateway: Elsewhere, evidence: Evidence
) -> None:
    """Its news, its results, its journal, and what other commands say of that."""
    lines = [
        {"prompt": PROMPT, "custom_id": "1"},
        {"prompt": PROMPT, "image": IMAGE},
        {"prompt": f"{PROMPT}, again"},
        {"prompt": f"{PROMPT}, and again"},
    ]
    Path("in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    simulator = gateway.simulator
    simulator.script(then="fail", reason=TOLD)
    simulator.fault("submit", faults.drop_after_accepting())
    simulator.fault("submit", faults.error(400, TOLD))
    judge(evidence, run("batch", "in.jsonl", "--out", "clips", "-vv"))
    judge(evidence, run("batch", "in.jsonl", "--out", "clips", "--json"), but=NAMES)
    judge(evidence, run("jobs", "clips/journal.db"))
    judge(evidence, run("jobs", "clips/journal.db", "--json"))
    judge(evidence, run("resume", "clips/journal.db", "--out", "more", "-vv"), but=NAMES)
    evidence.take("results", Path("clips/results.jsonl").read_bytes(), but=NAMES)
    evidence.take("journal", Path("clips/journal.db").read_bytes())
    with sqlite3.connect("clips/journal.db") as database:
        keys = [key for (key,) in database.execute("SELECT key FROM job")]
    database.close()
    for key in keys:
        judge(evidence, run("resolve", "clips/journal.db", key, "--not-accepted"))
        judge(evidence, run("forget", "clips/journal.db", key, "--force"))


def test_a_bad_line_is_named_and_not_quoted(
    run: Run, gateway: Elsewhere, evidence: Evidence
) -> None:
    """Which line is wrong, and what is wrong with it, and nothing of what it says."""
    for bad in (
        json.dumps({"prompt": PROMPT, "seconds": 0}),
        json.dumps({"prompt": PROMPT, "image": f"no address, {KEY}"}),
        json.dumps({"wish": PROMPT}),
        json.dumps([PROMPT]),
        f'{{"prompt": "{KEY}',
    ):
        Path("in.jsonl").write_text(bad)
        done = run("batch", "in.jsonl", "--out", "clips")
        assert done.code == 2
        judge(evidence, done)


def test_a_key_that_cannot_be_is_not_quoted(
    run: Run, gateway: Elsewhere, evidence: Evidence
) -> None:
    """Neither from the environment nor from a file."""
    Path("key").write_text(f"{KEY}\n{KEY}")
    judge(evidence, run("balance", "--api-key-file", "key", "-vv"))
    judge(evidence, run("generate", PROMPT, "--api-key-file", KEY[:4], "-vv"))


def test_a_simulator_tells_its_own_address(run: Run, evidence: Evidence) -> None:
    """And nothing else."""
    judge(evidence, run("simulate", "--until-stdin-closes", "--json"), but=ADDRESS)
    judge(evidence, run("generate", PROMPT, "--simulate", "-o", "clip.mp4", "--timeout", "0.2"))


def test_the_commands_are_all_here() -> None:
    """A command that comes to the program has to be looked at, too."""
    here = {*(words[0] for words in MAKING.values()), "feed", "wait", "balance", "simulate"}
    here |= {"batch", "jobs", "resume", "resolve", "forget"}
    assert {name for name in cli.app if not name.startswith("-")} == here
