"""The command for batches: in this process where possible, else as a separate process."""

import asyncio
import io
import json
import os
import re
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.clients import QUICK_POLLS
from support.commands import (
    GatewayThread,
    Outcome,
    Run,
    documented_keys,
    gateway_in_thread,
    is_clip,
    on_a_terminal,
    pressed,
    runner,
    settle_in,
    start,
)
from support.media import PNG

pytest.importorskip("cyclopts")

from fuhu_runway import errors, hooks
from fuhu_runway.cli import batch as cli_batch
from fuhu_runway.cli import opening, tally
from fuhu_runway.inputs import read_items
from fuhu_runway.journal import Journal, Plan
from fuhu_runway.testing import faults, read_ledger
from fuhu_runway.testing.faults import Fault

PROMPTS = ["a secret kitten", "a secret puppy", "a secret kitten"]
EVER = 1_000_000.0


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set up an empty folder with a file of prompts, and no pauses."""
    settle_in(tmp_path, monkeypatch)
    monkeypatch.setattr(opening, "SIMULATED_SPEED", 1000.0)
    monkeypatch.setattr(opening, "SIMULATED_POLLING", QUICK_POLLS)
    Path("prompts.txt").write_text("\n".join(PROMPTS))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a batch in this process."""
    command = runner(capsys)

    def batch(*options: str, file: str = "prompts.txt") -> Outcome:
        return command("batch", file, "--out", "clips", *options)

    return batch


@pytest.mark.parametrize("is_pipe", [False, True])
def test_local_files_are_beside_the_input_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, *, is_pipe: bool
) -> None:
    """Paths begin in the folder of the input file; of a pipe, in the working directory."""
    Path("in").mkdir()
    Path("in", "1.png").write_bytes(PNG)
    rows = json.dumps({"prompt": "a", "image": "in/1.png" if is_pipe else "1.png"})
    Path("in", "jobs.jsonl").write_text(rows)
    stdin = types.SimpleNamespace(buffer=io.BytesIO(rows.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    if not is_pipe:
        assert run("--dry-run", file="in/jobs.jsonl").code == 0
    done = run("--simulate", file="-" if is_pipe else "in/jobs.jsonl")
    assert done.code == 0
    assert "1 of 1 clip is" in done.err


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayThread]:
    """A gateway that the environment variables point to; its tasks take 50 ms."""
    with gateway_in_thread(monkeypatch, speed=1000, takes=50) as elsewhere:
        yield elsewhere


def results(path: str = "clips/results.jsonl") -> list[dict[str, Any]]:
    """Read a file of results."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def states() -> dict[int, str]:
    """Return the last state of each job."""
    return {row["index"]: row["state"] for row in results()}


def submitted(gateway: GatewayThread) -> int:
    """Return how many tasks were submitted."""
    count: int = gateway.call(lambda one: one.submitted)
    return count


def clips() -> list[str]:
    """Return the names of the saved clips."""
    return sorted(path.name for path in Path("clips").glob("*.mp4"))


# A whole batch


def test_every_entry_gets_a_file(run: Run, gateway: GatewayThread) -> None:
    """Three prompts, two of them equal, give three tasks, three clips and three results."""
    done = run()
    assert (done.code, done.out) == (0, "clips/results.jsonl\n")
    assert len(clips()) == submitted(gateway) == 3
    assert all(is_clip(f"clips/{name}") for name in clips())
    assert states() == dict.fromkeys(range(3), "saved")
    first, *_, spent = done.err.splitlines()
    assert first == "0 of 3, 3 left"
    assert "3 of 3 clips are in clips." in done.err
    assert re.fullmatch(r"960 points spent, 0 refunded, in 0:00:\d\d\.", spent)


def test_a_result_has_the_documented_keys_and_no_secret(run: Run, gateway: GatewayThread) -> None:
    """Each line has key, prompt, task, file and points; no URL or key is in it or on stderr."""
    gateway.simulator.script("a secret puppy", then="fail", reason="no a secret puppy")
    done = run("-vv")
    rows = {row["index"]: row for row in results()}
    assert all(row.keys() == documented_keys("A line of results") for row in rows.values())
    assert Path(rows[0]["path"]).is_file()
    assert (rows[0]["points"], rows[0]["error"], rows[0]["resumed"]) == (320, None, False)
    assert (rows[1]["state"], rows[1]["error"], rows[1]["path"]) == ("failed", "TaskFailed", None)
    assert rows[1]["money"] == "The points were refunded."
    assert rows[1]["prompt"] == "a secret puppy"
    assert "a secret" not in done.err
    message = done.err + Path("clips/results.jsonl").read_text()
    for secret in ("http://", gateway.simulator.api_key):
        assert secret not in message


def test_the_same_command_again_does_nothing_twice(run: Run, gateway: GatewayThread) -> None:
    """A finished batch is only summarized again: nothing is submitted, no result is repeated."""
    run()
    before = results()
    done = run()
    assert (done.code, submitted(gateway), results()) == (0, 3, before)
    assert "3 of 3 clips are in clips, 3 of them from earlier runs." in done.err
    assert "\n0 points spent" in done.err


def test_a_removed_clip_is_downloaded_again(run: Run, gateway: GatewayThread) -> None:
    """A clip whose file was removed is downloaded again, and not paid for again."""
    run()
    Path("clips", clips()[0]).unlink()
    assert run().code == 0
    assert (len(clips()), submitted(gateway)) == (3, 3)


def test_json_is_one_object(run: Run, gateway: GatewayThread) -> None:
    """With --json, stdout is the summary with the documented keys, and stderr is empty."""
    gateway.simulator.script("a secret puppy", then="fail")
    done = run("--json")
    row = json.loads(done.out)
    assert row.keys() == documented_keys("A batch in JSON")
    assert (row["total"], row["saved"], row["failed"], done.err) == (3, 2, 1, "")
    assert (row["points"], row["refunded_points"]) == (640, 320)
    assert row["errors"] == {"TaskFailed": 1}
    assert row["files"] == ["clips/results.jsonl"]


def test_journal_and_results_can_be_elsewhere(run: Run, gateway: GatewayThread) -> None:
    """With --journal and --results, the folder contains only clips."""
    run("--journal", "run.db", "--results", "run.jsonl")
    assert {path.suffix for path in Path("clips").iterdir()} == {".mp4"}
    assert len(results("run.jsonl")) == 3
    assert Path("run.db").is_file()


def test_a_file_may_contain_requests_with_options(run: Run, gateway: GatewayThread) -> None:
    """A .jsonl file can set fields; its custom_id is in the result and in the file name."""
    entry = {"prompt": "x", "seconds": 5, "custom_id": "shot 7"}
    Path("shots.jsonl").write_text(json.dumps(entry))
    assert run(file="shots.jsonl").code == 0
    (row,) = results()
    assert (row["custom_id"], gateway.body()["options"]["seconds"]) == ("shot 7", 5)
    assert "shot-7" in row["path"]


def test_clips_may_go_to_an_object_store(
    capsys: pytest.CaptureFixture[str], gateway: GatewayThread, tmp_path: Path
) -> None:
    """They are there and nowhere else, and the other files are beside the journal."""
    pytest.importorskip("obstore")
    store = tmp_path / "store"
    arguments = ["prompts.txt", "--out", store.as_uri(), "--journal", "here/run.db"]
    Path("here").mkdir()
    done = runner(capsys)("batch", *arguments)
    assert (done.code, done.out) == (0, "here/results.jsonl\n")
    assert f"3 of 3 clips are in {store.as_uri()}." in done.err
    urls = {row["object_url"] for row in results("here/results.jsonl")}
    assert urls == {path.as_uri() for path in store.glob("*.mp4")}
    assert len(urls) == 3
    assert {row["path"] for row in results("here/results.jsonl")} == {None}
    assert not Path("clips").exists()
    assert submitted(gateway) == 3
    assert runner(capsys)("batch", *arguments).code == 0
    assert submitted(gateway) == 3


# What is refused before anything is sent


def test_an_object_store_needs_a_journal_elsewhere(
    capsys: pytest.CaptureFixture[str], gateway: GatewayThread
) -> None:
    """Without --journal, the command says so, and nothing is sent."""
    done = runner(capsys)("batch", "prompts.txt", "--out", "s3://bucket/clips/")
    assert (done.code, done.out) == (2, "")
    assert "Add --journal journal.db" in done.err
    assert gateway.call(lambda one: one.requests) == ()


def test_an_object_store_that_cannot_be_used_costs_nothing(
    capsys: pytest.CaptureFixture[str], gateway: GatewayThread
) -> None:
    """It exits with 2, in one line, and nothing is sent."""
    pytest.importorskip("obstore")
    place = Path("file").absolute()
    place.mkdir()
    (place / ".fuhu-runway").mkdir()
    arguments = ["prompts.txt", "--out", place.as_uri(), "--journal", "run.db"]
    done = runner(capsys)("batch", *arguments)
    assert (done.code, done.out) == (2, "")
    assert "The object store could not be used" in done.err
    assert gateway.call(lambda one: one.requests) == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--in-flight", "0"], 'Invalid value "0" for --in-flight. Use a number above 0.'),
        (["--timeout", "0"], "for --timeout. Use a number above 0."),
        (["--max-points", "-1"], "for --max-points. Use a number above 0."),
        (
            ["--results", "prompts.txt"],
            "'prompts.txt' cannot be used as the results file (it is not a results",
        ),
        (["--results", "no/such.jsonl"], "cannot be used as the results file (No such file"),
        (["--results", "other.jsonl"], "it is not a results file"),
        (["--results", "one.txt"], "it is not a results file"),
        (["--journal", "prompts.txt"], "'prompts.txt' cannot be used"),
        (["--journal", "no/such.db"], "There is no folder 'no'"),
        (["--simulate", "--base-url", "http://a"], "cannot be combined with --base-url"),
        (["--gateway", "unknown"], 'Invalid value "unknown" for --gateway'),
    ],
)
def test_a_wrong_batch_is_one_line_and_costs_nothing(
    run: Run, gateway: GatewayThread, options: list[str], message: str
) -> None:
    """It exits with 2, nothing is sent, and no existing file is changed."""
    Path("other.jsonl").write_text('{"prompt": "x"}\n')
    Path("one.txt").write_text("a line without its end")
    done = run(*options)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert Path("prompts.txt").read_text() == "\n".join(PROMPTS)
    assert Path("one.txt").read_text() == "a line without its end"
    assert Path("other.jsonl").read_text() == '{"prompt": "x"}\n'
    assert gateway.call(lambda one: one.requests) == ()


def test_a_bad_line_is_named_before_anything_is_sent(run: Run, gateway: GatewayThread) -> None:
    """An error in the last line is found before the first is sent, and no folder is created."""
    Path("shots.jsonl").write_text('{"prompt": "x"}\n{"prompt": "x", "seconds": 0}\n')
    done = run(file="shots.jsonl")
    assert (done.code, done.out) == (2, "")
    assert "shots.jsonl, line 2: " in done.err
    assert not Path("clips").exists()
    assert gateway.call(lambda one: one.requests) == ()


def test_bad_lines_can_be_skipped(run: Run, gateway: GatewayThread) -> None:
    """With --skip-bad, each bad line is reported once, and the others are submitted."""
    Path("shots.jsonl").write_text('{"prompt": "x", "seconds": 0}\n{"prompt": "x"}\nno JSON\n')
    done = run("--skip-bad", file="shots.jsonl")
    assert (done.code, submitted(gateway)) == (0, 1)
    assert re.findall(r"^skipped: shots.jsonl, line (\d)", done.err, re.MULTILINE) == ["1", "3"]


def test_an_empty_file_is_a_mistake(run: Run, gateway: GatewayThread) -> None:
    """A file without entries is an error, not a finished batch."""
    Path("none.txt").write_text("\n")
    done = run(file="none.txt")
    assert (done.code, "none.txt has no entries" in done.err) == (2, True)


def test_two_batches_do_not_share_a_journal(run: Run, gateway: GatewayThread) -> None:
    """If another process has the journal open, the command exits with 2 and sends nothing."""
    Path("clips").mkdir()

    async def meanwhile() -> Outcome:
        journal = Journal("clips/journal.db")
        await journal.counts()
        try:
            return await asyncio.to_thread(other)
        finally:
            await journal.aclose()

    def other() -> Outcome:
        with start("batch", "prompts.txt", "--out", "clips") as process:
            out, err = process.communicate()
        return Outcome(process.returncode, out, err)

    done = asyncio.run(meanwhile())
    assert (done.code, done.out) == (2, "")
    assert "Another process has the journal 'journal.db' open." in done.err
    assert submitted(gateway) == 0


@pytest.mark.parametrize("first", [["--simulate"], []])
def test_simulated_and_real_clips_do_not_mix(
    run: Run, gateway: GatewayThread, first: list[str]
) -> None:
    """A folder with simulated clips is refused for real ones, and the other way round."""
    other = [] if first else ["--simulate"]
    assert run(*first).code == 0
    before = submitted(gateway)
    done = run(*other)
    assert (done.code, submitted(gateway)) == (2, before)
    assert "The journal belongs to a " in done.err


def test_a_foreign_state_file_is_an_error(run: Run) -> None:
    """Another file with the name of the simulated gateway's state is reported and kept."""
    Path("clips").mkdir()
    Path("clips/simulated-gateway.jsonl").write_text("mine")
    done = run("--simulate")
    assert (done.code, "is not the state of a simulated gateway" in done.err) == (2, True)
    assert Path("clips/simulated-gateway.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    "line",
    [
        '{"index": ' + "[" * 100_000,
        '{"index": [], "state": "saved", "task_id": null}',
        '["index", "state", "task_id"]',
        "7",
    ],
)
def test_a_foreign_results_file_is_an_error(run: Run, gateway: GatewayThread, line: str) -> None:
    """A file with other lines is reported and kept, and nothing is sent."""
    Path("odd.jsonl").write_text(f"{line}\n")
    done = run("--results", "odd.jsonl")
    assert (done.code, submitted(gateway)) == (2, 0)
    assert "'odd.jsonl' cannot be used as the results file (it is not a results file)" in done.err
    assert Path("odd.jsonl").read_text() == f"{line}\n"


def named(custom_id: str = "shot") -> Path:
    """Write a file with one entry, and return the path of its clip."""
    Path("shots.jsonl").write_text(json.dumps({"prompt": "x", "custom_id": custom_id}))
    Path("clips").mkdir()
    return Path("clips", f"{custom_id}.mp4")


def test_an_existing_file_is_not_replaced_by_default(run: Run, gateway: GatewayThread) -> None:
    """The entry is not submitted, a line says why, and --overwrite replaces the file."""
    place = named()
    place.write_bytes(b"mine")
    done = run(file="shots.jsonl")
    assert (done.code, submitted(gateway), place.read_bytes()) == (5, 0, b"mine")
    assert "entry 1: There is a file 'shot.mp4' already" in done.err
    assert "Nothing was sent or charged." in done.err
    assert "1 not submitted, or refused: nothing was charged (1 UsageError)." in done.err
    done = run("--overwrite", file="shots.jsonl")
    assert (done.code, submitted(gateway), is_clip(str(place))) == (0, 1, True)


@pytest.mark.parametrize("has_state", [True, False])
def test_a_simulated_batch_that_was_killed_at_once_continues(run: Run, has_state: object) -> None:
    """A journal with only planned jobs can be used, with or without a state file."""
    Path("clips").mkdir()

    async def begin() -> None:
        journal = Journal("clips/journal.db")
        await journal.plan(Plan(key="k", fingerprint="f", endpoint="TextToVideo"), 1.0)
        await journal.aclose()

    asyncio.run(begin())
    if has_state:
        Path("clips/simulated-gateway.jsonl").touch()
    done = run("--simulate")
    assert (done.code, len(clips())) == (0, 3)


def test_only_the_owner_can_read_results_and_state(run: Run) -> None:
    """Other users cannot read the results or the state of the simulated gateway."""
    run("--simulate")
    for name in ("results.jsonl", "simulated-gateway.jsonl"):
        assert Path("clips", name).stat().st_mode & 0o777 == 0o600


# Standard input and pipes


def test_prompts_may_come_from_stdin(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With -, each line of stdin is a prompt, and the same lines again are the same jobs."""
    for _ in range(2):
        stdin = io.TextIOWrapper(io.BytesIO("a kitten\n笑\n".encode()), encoding="ascii")
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run(file="-").code == 0
    prompts = gateway.call(lambda one: {task.prompt for task in one.tasks})
    assert (submitted(gateway), prompts) == (2, {"a kitten", "笑"})


@pytest.mark.parametrize("name", ["pipe", "pipe.jsonl"])
def test_a_pipe_is_read_once(run: Run, gateway: GatewayThread, name: str) -> None:
    """A FIFO is copied first, since its entries are read twice."""
    os.mkfifo(name)
    text = '{"prompt": "a kitten"}\n' if name.endswith("jsonl") else "a kitten\n"
    writer = threading.Thread(target=Path(name).write_text, args=[text])
    writer.start()
    done = run(file=name)
    writer.join()
    assert (done.code, submitted(gateway), gateway.body()["prompt"]) == (0, 1, "a kitten")


def test_ctrl_c_ends_a_read_from_stdin(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If nothing was submitted yet, the command exits at once with 130."""

    class Pressed:
        def read(self, _size: int) -> bytes:
            raise KeyboardInterrupt

    stdin = types.SimpleNamespace(buffer=Pressed())
    monkeypatch.setattr(sys, "stdin", stdin)
    done = run("--json", file="-")
    assert (done.code, done.err) == (130, "Stopped.\n")
    assert json.loads(done.out)["exit_code"] == 130
    assert submitted(gateway) == 0


def test_a_missing_stdin_is_an_error(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without a stdin exits with 2 and one line, which says what is missing."""
    monkeypatch.setattr(sys, "stdin", None)
    done = run(file="-")
    (line,) = done.err.splitlines()
    assert (done.code, done.out, "Standard input is closed." in line) == (2, "", True)


# What goes wrong after that


def test_a_failed_task_is_1_and_can_be_retried(run: Run, gateway: GatewayThread) -> None:
    """A failure is counted with its name; only --retry-failed submits it again."""
    gateway.simulator.script(then="fail")
    done = run("--in-flight", "1")
    assert (done.code, len(clips())) == (1, 2)
    assert "1 failed (1 TaskFailed). Add --retry-failed to submit them again." in done.err
    assert "640 points spent, 320 refunded" in done.err
    assert (run().code, submitted(gateway)) == (1, 3)
    assert (run("--retry-failed").code, submitted(gateway)) == (0, 4)
    assert states() == dict.fromkeys(range(3), "saved")


def test_in_doubt_is_3_and_is_never_sent_again(run: Run, gateway: GatewayThread) -> None:
    """A job in doubt outweighs a failed one, and the next run reports it again."""
    gateway.simulator.script("a secret puppy", then="fail")
    gateway.simulator.fault("submit", faults.drop_after_accepting())
    for _ in range(2):
        done = run("--in-flight", "1")
        assert done.code == 3
        assert "1 in doubt: perhaps charged, and not sent again (1 SubmissionInDoubt)" in done.err
        assert "fuhu-runway jobs clips/journal.db --state in-doubt" in done.err
    assert submitted(gateway) == 3
    assert [row["state"] for row in results()] == ["in_doubt", "failed", "saved"]


def test_a_timeout_is_4_and_can_be_continued(run: Run, gateway: GatewayThread) -> None:
    """A task that takes longer is saved by the next run, and not paid for again."""
    gateway.simulator.script("a secret puppy", takes=4000)
    done = run("--timeout", "1.5")
    assert done.code == 4
    assert "1 timed out, and their tasks continue (1 WaitTimeout)" in done.err
    assert (run().code, submitted(gateway)) == (0, 3)
    last = results()[-1]
    assert (last["state"], last["resumed"], len(results())) == ("saved", True, 4)


@pytest.mark.parametrize(
    ("where", "fault", "word"),
    [
        ("submit", faults.error(400, code="invalid_request"), "refused"),
        ("download", faults.server_error(503), "unfinished"),
    ],
)
def test_an_error_of_the_gateway_is_5(
    run: Run, gateway: GatewayThread, where: Any, fault: Fault, word: str
) -> None:
    """A refused job and a failed download have different states: only one is paid for."""
    gateway.simulator.fault(where, fault, times=None)
    assert run().code == 5
    assert set(states().values()) == {word}


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (faults.quota_in_429(), "OutOfCredits"),
        (faults.error(401, code="invalid_api_key"), "Unauthorized"),
    ],
)
def test_a_refused_key_stops_submitting(
    run: Run, gateway: GatewayThread, fault: Fault, name: str
) -> None:
    """After one refusal, nothing more is submitted; the same command later submits all."""
    gateway.simulator.fault("submit", fault, times=1)
    done = run("--in-flight", "1")
    assert (done.code, states()) == (5, {0: "refused"})
    assert f"2 were not started ({name}). Run the same command again to continue." in done.err
    assert (run().code, submitted(gateway)) == (0, 3)


def test_max_points_ends_a_batch_early(run: Run, gateway: GatewayThread) -> None:
    """Once the points are spent, nothing more is submitted, and the exit code is 1."""
    done = run("--max-points", "400")
    assert (done.code, submitted(gateway)) == (1, 1)
    assert "2 were not started (--max-points was reached)." in done.err


def test_a_file_that_changes_ends_a_batch_with_5(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error after something was paid is not exit code 2, and says what continues."""

    def changed(path: Path, *, skip_bad: object, folder: object) -> Iterator[Any]:
        yield from list(read_items(path))[:1]
        raise errors.UsageError("The file changed.", "Nothing was sent.", "Mend it.")

    monkeypatch.setattr("fuhu_runway.inputs.read_items", changed, raising=True)
    monkeypatch.setattr("fuhu_runway.inputs.check_items", lambda path, skip_bad, folder: 3)
    done = run()
    assert done.code == 5
    assert "The file changed." in done.err
    assert "Tasks that were submitted continue. Run the same command again to continue." in done.err


# Results


@attrs.frozen
class FullDisk:
    writes: int

    def write(self, data: bytes) -> int:
        if self.writes < 0:
            raise OSError(28, "No space left on device")
        return self.writes

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("writes", "message"), [(7, "the disk is full"), (-1, "No space left on device")]
)
def test_a_full_disk_does_not_end_a_batch(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch, writes: int, message: str
) -> None:
    """
    Results that cannot be written are reported, and the clips are saved.

    The ids are shown, since a full disk may have failed the journal, too.
    """
    opened = cli_batch.Results(FullDisk(writes), {})  # type: ignore[arg-type]
    monkeypatch.setattr(cli_batch.Results, "open", lambda path: opened)
    done = run()
    assert (done.code, len(clips())) == (0, 3)
    assert f"Some results could not be written to their file ({message})." in done.err
    ids = {task.task_id for task in gateway.call(lambda one: one.tasks)}
    assert set(re.findall(r"^entry [123]: task (\S+)$", done.err, re.MULTILINE)) == ids


@pytest.mark.parametrize("torn", ['{"ind', '{"index": 2, "state": "sav'])
def test_a_truncated_result_is_replaced(run: Run, gateway: GatewayThread, torn: str) -> None:
    """A line that a crash truncated is replaced by the complete line."""
    run()
    path = Path("clips/results.jsonl")
    whole = path.read_text()
    *lines, last = whole.splitlines(keepends=True)
    path.write_text("".join(lines) + torn)
    assert run().code == 0
    assert {row["index"] for row in results()} == {0, 1, 2}
    assert path.read_text().startswith("".join(lines))
    assert json.loads(last)["state"] == results()[-1]["state"]


# Stopping


def test_ctrl_c_waits_for_submissions_in_flight(run: Run, gateway: GatewayThread) -> None:
    """Their ids are in the journal, and the next run saves their clips without paying again."""
    held, let_go = threading.Event(), threading.Event()

    def hold(_body: object) -> bool:
        held.set()
        return let_go.wait(30)

    gateway.simulator.script(hold)
    say = cli_batch.Screen.say

    def show_and_release(screen: cli_batch.Screen, text: str) -> None:
        say(screen, text)
        if text.startswith("Waiting for the responses"):
            let_go.set()

    with pytest.MonkeyPatch.context() as patch, pressed(held.is_set):
        patch.setattr(cli_batch.Screen, "say", show_and_release)
        done = run("--in-flight", "2")
    assert (done.code, done.out) == (130, "")
    waiting, stopped = done.err.splitlines()[-2:]
    assert waiting.startswith("Waiting for the responses")
    assert re.match(r"Stopped\. \d tasks continue, and the journal has their ids\.", stopped)
    assert (run().code, submitted(gateway), len(clips())) == (0, 3, 3)


def test_ctrl_c_while_waiting_says_how_to_continue(run: Run, gateway: GatewayThread) -> None:
    """With no submission in flight, the command ends at once, and every task is kept."""
    gateway.simulator.script(lambda body: True, takes=600)
    with pressed(lambda: submitted(gateway) == 3):
        done = run()
    assert done.code == 130
    assert done.err.splitlines()[-1].endswith("Run the same command again to continue.")
    assert (run().code, submitted(gateway), len(clips())) == (0, 3, 3)


def test_ctrl_c_reports_jobs_in_doubt(run: Run, gateway: GatewayThread) -> None:
    """The last line counts the jobs in doubt."""
    gateway.simulator.fault("submit", faults.drop_after_accepting())
    gateway.simulator.script(lambda body: True, takes=EVER)
    with pressed(lambda: begun() and submitted(gateway) == 3):
        done = run("--in-flight", "2")
    assert done.code == 130
    assert " 1 in doubt. Run" in done.err.splitlines()[-1]


def begun() -> bool:
    """Return whether a batch has written its first outcome."""
    path = Path("clips/results.jsonl")
    return path.exists() and path.stat().st_size > 0


def until(condition: Callable[[], bool]) -> None:
    """Return once *condition* is true."""
    while not condition():
        time.sleep(0.005)


def many_prompts() -> None:
    """Write a file with many prompts."""
    Path("prompts.txt").write_text("".join(f"take {number}\n" for number in range(20)))


def test_a_killed_simulated_batch_continues(run: Run) -> None:
    """After `kill -9`, no clip is lost or paid for twice; the simulated gateway continues, too."""
    many_prompts()
    command = ["batch", "prompts.txt", "--out", "clips", "--simulate", "--in-flight", "5"]
    with start(*command) as process:
        until(begun)
        process.kill()
    assert 0 < len(clips()) < 20
    done = run("--simulate", "--in-flight", "5")
    entries = read_ledger("clips/simulated-gateway.jsonl")
    doubts = list(states().values()).count("in_doubt")
    assert done.code == (3 if doubts else 0)
    assert len(clips()) == 20 - doubts
    assert len({entry.digest for entry in entries}) == len(entries) <= 20


def test_ctrl_c_ends_the_process_with_130(gateway: GatewayThread, run: Run) -> None:
    """SIGINT ends a batch cleanly; the same command saves the rest."""
    many_prompts()
    with start("batch", "prompts.txt", "--out", "clips", "--in-flight", "3") as process:
        until(begun)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate()
    assert process.returncode == 130
    assert "Run the same command again to continue." in message
    assert "Traceback" not in message
    assert (run().code, len(clips()), submitted(gateway)) == (0, 20, 20)


def test_the_second_ctrl_c_ends_the_process_at_once(gateway: GatewayThread) -> None:
    """A second Ctrl-C ends the wait for responses: 3, since they may be charged."""
    gateway.simulator.fault("submit", faults.Hang(), times=None)
    with start("batch", "prompts.txt", "--out", "clips") as process:
        assert process.stderr
        until(lambda: gateway.got("submit"))
        process.send_signal(signal.SIGINT)
        while not process.stderr.readline().startswith("Waiting for the responses"):
            pass
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().startswith("Stopped. 3 paid requests were in flight: ")
    assert process.returncode == 3


def test_closed_pipes_do_not_end_a_batch(gateway: GatewayThread) -> None:
    """With both pipes closed, every clip is still saved."""
    with start("batch", "prompts.txt", "--out", "clips") as process:
        assert process.stderr
        assert process.stdout
        process.stdout.close()
        process.stderr.close()
        assert process.wait() == 0
    assert len(clips()) == 3


# What is shown


@pytest.mark.parametrize("columns", ["40", "80"])
def test_a_terminal_gets_a_board(run: Run, gateway: GatewayThread, columns: str) -> None:
    """The counts change in place, fit the width, and are removed at the end."""
    gateway.simulator.script("a secret puppy", takes=700)
    with on_a_terminal(COLUMNS=columns) as terminal:
        assert run().code == 0
    shown = terminal.getvalue()
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown)
    assert re.search(r"2 of 3 .*0:00:\d\d left", plain)
    assert re.search(r"1 running, 640 points", plain)
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert "3 of 3 clips are in clips." in plain
    moving = [line for line in re.split(r"[\r\n]+", plain) if " of 3 ━" in line]
    assert max(map(len, moving)) <= int(columns)


async def test_the_progress_shows_errors_until_a_request_succeeds() -> None:
    """The latest error is shown until the next successful request."""
    counts, message = tally.Tally(5), []

    class Recorder(cli_batch.Screen):
        def info(self, text: str) -> None:
            message.append(text)

    counts.watch(hooks.RetryScheduled("generate", 1, 0.1, "RateLimited"))
    counts.show(Recorder(), 1)
    counts.watch(hooks.TaskSubmitted("1", "generate", 0.1))
    counts.watch(hooks.DownloadFinished("1", 1))
    counts.add(errors.TaskFailed("a", "b", "c"), "1", 320, refunded=True)
    counts.show(Recorder(), 1)
    assert message == [
        "0 of 5, 1 running, 4 left, waiting: the gateway limits the rate",
        "1 of 5, 1 running, 3 left, 1 failed, 0:00:00 left",
    ]


async def test_jobs_of_earlier_runs_do_not_affect_the_time_left() -> None:
    """The time left is unknown until this run has finished a job."""
    counts = tally.Tally(3)
    counts.add(None, "1", None, is_old=True)
    assert counts.seconds_left() is None
    counts.add(None, "2", None)
    left = counts.seconds_left()
    assert left is not None
    assert 0 <= left <= counts.seconds


def test_every_error_has_a_state_with_an_exit_code() -> None:
    """Every error leads to a state that determines the exit code."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, errors.RunwayError):
            for task_id in (None, "task"):
                assert tally.state_of(kind("a", "b", "c"), task_id) in tally.ENDINGS
