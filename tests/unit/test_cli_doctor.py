"""The command `doctor`, in this process."""

import json
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
from support.proxies import name_proxies
from support.samples import read_samples

pytest.importorskip("cyclopts")

from fuhu_runway.doctor import CHECKS
from fuhu_runway.testing import faults


@pytest.fixture(autouse=True)
def _settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle_in(tmp_path, monkeypatch)
    name_proxies(monkeypatch)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""
    return runner(capsys)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayThread]:
    """A gateway that the environment variables point to."""
    with gateway_in_thread(monkeypatch, speed=1000, takes=50) as elsewhere:
        yield elsewhere


def submitted(gateway: GatewayThread) -> int:
    """Return how many clips were paid for."""
    return int(gateway.call(lambda one: one.submitted))


def test_each_check_is_a_line(run: Run, gateway: GatewayThread) -> None:
    """A gateway that fits gets a line for each check, and nothing is submitted."""
    done = run("doctor")
    assert (done.code, done.err) == (0, "")
    assert [line.split()[1] for line in done.out.splitlines()] == list(CHECKS)
    assert all(line.startswith("ok ") for line in done.out.splitlines())
    assert submitted(gateway) == 0
    assert gateway.simulator.api_key not in done.out


def test_what_does_not_fit_is_followed_by_what_to_change(run: Run, gateway: GatewayThread) -> None:
    """The advice stands below its finding; the checks that were skipped share a line."""
    gateway.simulator.fault("feed", faults.html_page(), times=None)
    done = run("doctor")
    assert done.code == 5
    lines = done.out.splitlines()
    assert lines[6].startswith("does not fit  route    /runway/feed: a web page")
    assert lines[7].strip().startswith("Check base_url")
    assert lines[-1] == (
        "Skipped because of the findings above: verb, access, balance, account, gateway"
    )


def test_without_a_key_the_rest_is_checked(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing key is a finding, and no error in the arguments."""
    monkeypatch.delenv("FUHU_API_KEY")
    done = run("doctor")
    assert done.code == 5
    assert done.out.startswith("does not fit ")
    assert "FUHU_API_KEY" in done.out


def test_the_key_may_be_in_a_file(run: Run, gateway: GatewayThread) -> None:
    """A key file is read as by the other commands, and the line end in it is fine."""
    Path("key").write_text(f"{gateway.simulator.api_key}\n")
    assert run("doctor", "--api-key-file", "key").code == 0
    assert run("doctor", "--api-key-file", "missing").code == 2


def test_json_has_each_finding(run: Run, gateway: GatewayThread) -> None:
    """One JSON object has the findings and no progress."""
    done = run("doctor", "--json")
    assert (done.code, done.err) == (0, "")
    row = json.loads(done.out)
    assert (row["fits"], row["is_ready"], row["clip"]) == (True, True, None)
    assert [one["about"] for one in row["findings"]] == list(CHECKS)
    assert {one["verdict"] for one in row["findings"]} == {"ok"}


def test_spend_makes_one_clip(run: Run, gateway: GatewayThread) -> None:
    """The clip is saved, and what it took is shown."""
    done = run("doctor", "--spend", "1")
    assert done.code == 0
    assert submitted(gateway) == 1
    assert gateway.body()["options"]["seconds"] == 5
    assert is_clip("first-clip.mp4")
    assert f"accepted: task {done.task_id}" in done.err
    *_, last = done.out.splitlines()
    assert last.startswith("clip: Made in ")
    assert " s for 160 points; polls: " in last
    assert "http, another host than the gateway's, signed; saved as first-clip.mp4" in last


def test_spend_with_json_reports_the_clip(run: Run, gateway: GatewayThread) -> None:
    """The object has the clip as well; its path is that of the option."""
    done = run("doctor", "--spend", "1", "-o", "kitten.mp4", "--json")
    row = json.loads(done.out)
    assert row.keys() == documented_keys("A report in JSON")
    assert row["clip"]["path"] == "kitten.mp4"
    assert row["clip"]["points"] == 160
    assert is_clip("kitten.mp4")


def test_points_may_be_unknown(run: Run, gateway: GatewayThread) -> None:
    """Not every gateway says what a clip costs."""
    gateway.simulator.script(dialect="luma")
    assert "for an unknown number of points" in run("doctor", "--spend", "1").out


@pytest.mark.parametrize("number", ["0", "2", "-1", "1.5", "many"])
def test_more_than_one_clip_is_refused(run: Run, gateway: GatewayThread, number: str) -> None:
    """The number says what is spent, and one is enough."""
    assert run("doctor", "--spend", number).code == 2
    assert gateway.call(lambda one: len(one.requests)) == 0


def test_nothing_is_spent_where_a_file_is_in_the_way(run: Run, gateway: GatewayThread) -> None:
    """A clip of an earlier run is not replaced, and nothing is sent before that is known."""
    Path("first-clip.mp4").write_text("mine")
    Path("gateway.yaml").write_text("mine")
    assert run("doctor", "--spend", "1").code == 2
    assert run("doctor", "--record", "gateway.yaml").code == 2
    assert gateway.call(lambda one: len(one.requests)) == 0
    assert run("doctor", "--spend", "1", "--record", "gateway.yaml", "--force").code == 0
    assert is_clip("first-clip.mp4")
    assert Path("gateway.yaml").read_text() != "mine"


def test_nothing_is_spent_where_something_does_not_fit(run: Run, gateway: GatewayThread) -> None:
    """A task could not be polled, so no clip is submitted."""
    gateway.simulator.fault("feed", faults.html_page(), times=None)
    done = run("doctor", "--spend", "1")
    assert done.code == 5
    assert "No clip was submitted" in done.err
    assert submitted(gateway) == 0


def test_a_transcript_becomes_a_sample(run: Run, gateway: GatewayThread) -> None:
    """What is recorded with a clip is read by the loader of samples."""
    done = run("doctor", "--spend", "1", "--record", "gateway.yaml")
    assert "recorded: gateway.yaml" in done.err
    endpoints = {sample.endpoint for sample in read_samples(Path("gateway.yaml"))}
    assert endpoints == {"feed", "subscription", "usage", "text_to_video"}
    assert done.task_id not in Path("gateway.yaml").read_text()


def test_a_clip_that_fails_is_recorded(run: Run, gateway: GatewayThread) -> None:
    """A failed task is the one object that --json prints, and the transcript is there."""
    gateway.simulator.script(then="fail")
    done = run("doctor", "--spend", "1", "--record", "gateway.yaml", "--json")
    assert done.code == 1
    assert json.loads(done.out)["error"] == "TaskFailed"
    assert '"state": "FAILED"' in Path("gateway.yaml").read_text()


def test_a_transcript_that_cannot_be_written_hides_no_result(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The findings are shown, and an error says that there is no file."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    done = run("doctor", "--record", "gateway.yaml")
    assert done.code == 5
    assert done.out.startswith("ok ")
    assert "No space left on device" in done.err
    assert "Nothing was sent" not in done.err


def test_ctrl_c_in_the_free_part_says_that_nothing_was_submitted(
    run: Run, gateway: GatewayThread
) -> None:
    """What was recorded until then is saved."""
    gateway.simulator.fault("balance", faults.Hang())
    with pressed(lambda: gateway.got("balance")):
        done = run("doctor", "--spend", "1", "--record", "gateway.yaml")
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[0] == "Stopped. Nothing was submitted."
    assert len(read_samples(Path("gateway.yaml"))) == 1


def test_ctrl_c_while_waiting_says_how_to_continue(run: Run, gateway: GatewayThread) -> None:
    """A clip that is paid for can be fetched later."""
    gateway.simulator.script(takes=1e6)
    with pressed(lambda: gateway.call(lambda one: any(task.polls for task in one.tasks))):
        done = run("doctor", "--spend", "1")
    assert done.code == 130
    assert done.advice[1:3] == ["wait", done.task_id]
