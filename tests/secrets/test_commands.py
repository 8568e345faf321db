"""What commands print, with marked secrets, however they end."""

import json
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest
from support.clients import QUICK_POLLS, QUICK_RETRY
from support.commands import GatewayThread, Outcome, Run, gateway_in_thread, pressed, runner
from support.marks import (
    DATA,
    EXTRA,
    IMAGE,
    KEY,
    LAST_IMAGE,
    PROMPT,
    TOKEN,
    VIDEO,
    Evidence,
    leaky_text,
)

from fuhu_runway.cli import app as cli
from fuhu_runway.models import ImageToVideo
from fuhu_runway.testing import faults

REASON: Final = leaky_text(ImageToVideo(PROMPT, IMAGE, last_image=LAST_IMAGE))
BODY: Final = {"model": "gen4.5", "promptText": PROMPT, "duration": 5}
MAKING: Final = {
    "text": ["generate", PROMPT, "--extra", json.dumps(EXTRA)],
    "image": ["generate", PROMPT, "--image", IMAGE, "--last-image", LAST_IMAGE],
    "official": ["generate", PROMPT, "--official", "--image", DATA],
    "restyle": ["restyle", VIDEO, PROMPT],
    "act": ["act", VIDEO, "--image", IMAGE],
    "submit": ["submit", "official_video_to_video", f"video={VIDEO}", f"prompt={PROMPT}"],
    "request": ["submit", "official_request", "path=text_to_video", f"body={json.dumps(BODY)}"],
}

# What is printed on purpose, where, and why.
NAMES: Final = {"prompt"}
"""A default file name contains the prompt, so that a person can find the file."""
FEED: Final = {"prompt", "link", "IP address"}
"""`feed` and --json print what the gateway knows about a task: that is their purpose."""
ADDRESS: Final = {"key", "IP address"}
"""`simulate` prints the URL and the key of the user's own simulator."""


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an empty folder, pauses of milliseconds, and none of the caller's variables."""
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
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayThread]:
    """A gateway with a marked key that the environment variables point to."""
    account = {"api_key": KEY, "access_token": TOKEN}
    with gateway_in_thread(monkeypatch, speed=1000, takes=20, **account) as elsewhere:
        yield elsewhere


@pytest.fixture
def evidence(caplog: pytest.LogCaptureFixture) -> Iterator[Evidence]:
    """Collect evidence, and assert that nothing leaked."""
    caplog.set_level(logging.DEBUG, "fuhu_runway")
    found = Evidence()
    yield found
    for record in caplog.get_records("call"):
        if record.name.startswith("fuhu_runway"):
            found.take("log", f"{record.getMessage()} {vars(record)}")
    assert found.leaks == []


def judge(evidence: Evidence, done: Outcome, *, but: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Check both streams of a command; *but* is printed on purpose, on stderr only names."""
    evidence.take("stdout", done.out, but=but)
    evidence.take("stderr", done.err, but=but & NAMES)


@pytest.mark.parametrize("words", MAKING.values(), ids=MAKING)
def test_generating_a_clip_leaks_nothing(
    words: list[str], run: Run, gateway: GatewayThread, evidence: Evidence
) -> None:
    """Success, failure, refusal and doubt leak nothing, with every level of -v."""
    for loudness in ([], ["-v"], ["-vv"]):
        judge(evidence, run(*words, *loudness), but=NAMES)
        made = [*words, "-o", "clip.mp4", "--force", *loudness]
        judge(evidence, run(*made))
        simulator = gateway.simulator
        gateway.call(lambda one: one.script(then="fail", reason=REASON))
        judge(evidence, run(*made))
        for place in ("submit", "official", "feed", "download"):
            for fault in (
                faults.error(400, REASON, code=REASON),
                faults.error(500, REASON),
                faults.drop_after_accepting(),
                faults.html_page(),
            ):
                simulator.fault(place, fault, times=None)  # type: ignore[arg-type]
                judge(evidence, run(*made, "--timeout", "0.05"))
                simulator.forget_plans()
    judge(evidence, run(*words, "--json"), but=NAMES | FEED)
    judge(evidence, run(*words, "--nonsense", PROMPT))


def test_only_feed_prints_what_the_gateway_knows(
    run: Run, gateway: GatewayThread, evidence: Evidence
) -> None:
    """`feed` prints what the gateway knows about a task; `wait` and `balance` do not."""
    run("generate", PROMPT, "-o", "clip.mp4")
    (task,) = gateway.call(lambda one: one.tasks)
    for words in ([], ["-vv"]):
        judge(evidence, run("feed", task.task_id, *words), but=FEED)
        judge(evidence, run("feed", task.task_id, "--json", *words), but=FEED)
        judge(evidence, run("wait", task.task_id, *words), but=NAMES)
        judge(evidence, run("wait", task.task_id, "-o", "clip.mp4", "--force", *words))
        judge(evidence, run("balance", *words))
        judge(evidence, run("balance", "--json", *words))
        gateway.simulator.fault(
            "balance", faults.error(403, REASON.replace(PROMPT, "")), times=None
        )
        judge(evidence, run("balance", *words))
        gateway.simulator.forget_plans()


def test_doctor_shows_and_records_no_secret(
    run: Run, gateway: GatewayThread, evidence: Evidence
) -> None:
    """Neither the findings nor the transcript quote what a gateway repeats."""
    said = REASON.replace(PROMPT, "")  # `doctor` sends a prompt of its own
    words = ["doctor", "--spend", "1", "-o", "clip.mp4", "--record", "replies.yaml", "--force"]
    for loudness in ([], ["--json"], ["-vv"]):
        judge(evidence, run(*words, *loudness))
        evidence.take("transcript", Path("replies.yaml").read_bytes())
        for place in ("submit", "feed", "balance", "download"):
            for fault in (
                faults.error(401, said, code=said),
                faults.error(500, said),
                faults.Response(200, f"<html>{REASON}", "text/html"),
            ):
                gateway.simulator.fault(place, fault, times=None)  # type: ignore[arg-type]
                judge(evidence, run(*words, "--timeout", "0.05", *loudness))
                evidence.take("transcript", Path("replies.yaml").read_bytes())
                gateway.simulator.forget_plans()


def test_a_batch_leaks_only_prompts(run: Run, gateway: GatewayThread, evidence: Evidence) -> None:
    """Only the results and the page have them; the journal and its commands have no secret."""
    lines = [
        {"prompt": PROMPT, "custom_id": "1"},
        {"prompt": PROMPT, "image": IMAGE},
        {"prompt": f"{PROMPT}, again"},
        {"prompt": f"{PROMPT}, and again"},
    ]
    Path("in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    simulator = gateway.simulator
    simulator.script(then="fail", reason=REASON)
    simulator.fault("submit", faults.drop_after_accepting())
    simulator.fault("submit", faults.error(400, REASON))
    judge(evidence, run("batch", "in.jsonl", "--out", "clips", "-vv"))
    judge(evidence, run("batch", "in.jsonl", "--out", "clips", "--json"), but=NAMES)
    judge(evidence, run("jobs", "clips/journal.db"))
    judge(evidence, run("jobs", "clips/journal.db", "--json"))
    judge(evidence, run("resume", "clips/journal.db", "--out", "more", "-vv"), but=NAMES)
    evidence.take("results", Path("clips/results.jsonl").read_bytes(), but=NAMES)
    judge(evidence, run("report", "clips", "-vv"))
    evidence.take("page", Path("clips/report.html").read_bytes(), but=NAMES)
    evidence.take("journal", Path("clips/journal.db").read_bytes())
    with sqlite3.connect("clips/journal.db") as database:
        keys = [key for (key,) in database.execute("SELECT key FROM job")]
    database.close()
    for key in keys:
        judge(evidence, run("resolve", "clips/journal.db", key, "--not-accepted"))
        judge(evidence, run("forget", "clips/journal.db", key, "--force"))


@pytest.mark.parametrize("words", [["reconcile"], ["audit"]], ids=lambda words: words[0])
def test_the_lists_of_the_account_leak_nothing(
    words: list[str],
    run: Run,
    gateway: GatewayThread,
    evidence: Evidence,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the access token nor the key in an address is shown, whatever the gateway says."""
    Path("p.txt").write_text("a kitten\n")
    gateway.simulator.fault("submit", faults.drop_after_accepting())
    run("batch", "p.txt", "--out", "clips")
    monkeypatch.setenv("FUHU_ACCESS_TOKEN", TOKEN)
    monkeypatch.setenv("FUHU_USER_ID", str(gateway.simulator.user_id))
    # A gateway that quotes the prompt of a job of the journal cannot be cleaned.
    said = REASON.replace(PROMPT, TOKEN)
    for loudness in ([], ["--json"], ["-vv"]):
        for place in ("tasks", "charges"):
            for fault in (
                faults.error(401, said, code=said),
                faults.error(500, said),
                faults.Response(200, json.dumps({"success": False, "message": said})),
                faults.Response(200, json.dumps({"data": {said: said}})),
                faults.Response(200, f"<html>{said}", "text/html"),
                faults.Response(302, said, "text/plain", (("Location", f"/login?{TOKEN}"),)),
            ):
                gateway.simulator.fault(place, fault, times=None)  # type: ignore[arg-type]
                judge(evidence, run(*words, "clips", *loudness))
                gateway.simulator.forget_plans()
        judge(evidence, run(*words, "clips", *loudness))
    if words == ["audit"]:
        judge(evidence, run(*words, "clips", "--adopt", "-vv"))
    evidence.take("journal", Path("clips/journal.db").read_bytes())


def test_a_bad_line_is_not_quoted(run: Run, gateway: GatewayThread, evidence: Evidence) -> None:
    """The error says which line is wrong and why, but quotes none of it."""
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


def test_an_invalid_key_is_not_quoted(run: Run, gateway: GatewayThread, evidence: Evidence) -> None:
    """The errors for a wrong key file do not quote it."""
    Path("key").write_text(f"{KEY}\n{KEY}")
    judge(evidence, run("balance", "--api-key-file", "key", "-vv"))
    judge(evidence, run("generate", PROMPT, "--api-key-file", KEY[:4], "-vv"))


def test_simulate_prints_only_its_own_url_and_key(run: Run, evidence: Evidence) -> None:
    """Its output contains no other secret."""
    judge(evidence, run("simulate", "--until-stdin-closes", "--json"), but=ADDRESS)
    judge(evidence, run("generate", PROMPT, "--simulate", "-o", "clip.mp4", "--timeout", "0.2"))


def test_a_fleet_leaks_nothing(  # noqa: PLR0917  (fixtures)
    run: Run,
    gateway: GatewayThread,
    evidence: Evidence,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A prompt is in the table of requests until its job is over, and in no row, line or log."""
    pytest.importorskip("fuhu_runway.contrib.fleet")
    caplog.set_level(logging.DEBUG)
    url = database_url.replace("postgres@", "postgres:marked-password@")
    monkeypatch.setenv("FUHU_DATABASE_URL", url)
    prompts = (PROMPT, f"{PROMPT} again")
    Path("p.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in prompts))
    judge(evidence, run("fleet", "init", "-vv"))
    judge(evidence, run("fleet", "enqueue", "p.jsonl", "-vv"))
    gateway.call(lambda one: one.script(f"{PROMPT} again", then="fail", reason=REASON))
    gateway.simulator.fault("feed", faults.error(500, REASON), times=2)

    def rows(table: str) -> list[tuple[object, ...]]:
        with psycopg.connect(url) as connection:
            return connection.execute(f"SELECT * FROM {table}").fetchall()  # type: ignore[call-overload, no-any-return]  # noqa: S608

    for table in ("fuhu_fleet", "procrastinate_jobs"):
        evidence.take(table, repr(rows(table)))
    assert len(rows("fuhu_request")) == 2
    with pressed(lambda: rows("fuhu_job") != [] and rows("fuhu_request") == []):
        judge(evidence, run("fleet", "work", "--out", "clips", "--grace", "1", "-vv"))
    for words in (["fleet", "status"], ["jobs", "--journal", url], ["fleet", "cancel", PROMPT]):
        for loudness in ([], ["--json"], ["-vv"]):
            done = run(*words, *loudness)
            judge(evidence, done)
            assert "marked-password" not in done.out + done.err
    judge(evidence, run("report", "clips", "--journal", url, "-vv"))
    evidence.take("fuhu_job", repr(rows("fuhu_job")))
    for record in caplog.get_records("call"):
        assert "marked-password" not in record.getMessage()
        evidence.take(record.name, f"{record.getMessage()} {vars(record)}")


def test_every_command_is_tested_here() -> None:
    """A new command has to be added to this file."""
    here = {*(words[0] for words in MAKING.values()), "feed", "wait", "balance", "simulate"}
    here |= {"doctor", "batch", "jobs", "resume", "resolve", "report", "forget"}
    here |= {"fleet", "reconcile", "audit"}
    assert {name for name in cli.app if not name.startswith("-")} == here
