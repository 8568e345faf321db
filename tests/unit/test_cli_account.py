"""The commands that use the gateway's own lists, in this process."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from support.clients import QUICK_POLLS
from support.commands import (
    ACCOUNT,
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

from fuhu_runway import Client
from fuhu_runway.account import Reconciliation
from fuhu_runway.cli import opening
from fuhu_runway.journal import JobState
from fuhu_runway.testing import AccountLists, faults
from fuhu_runway.testing.faults import Where

PATH: Final = "clips/journal.db"
STATE: Final = "clips/simulated-gateway.jsonl"
BATCH: Final = ("batch", "p.txt", "--out", "clips")
OTHER: Final = "sk-of-another-program"


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set up an empty folder with a file of prompts, and no pauses."""
    settle_in(tmp_path, monkeypatch)
    monkeypatch.setattr(opening, "SIMULATED_SPEED", 1000.0)
    monkeypatch.setattr(opening, "SIMULATED_POLLING", QUICK_POLLS)
    Path("p.txt").write_text("a kitten\na puppy\n")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""
    return runner(capsys)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayThread]:
    """A gateway with the account's variables; its tasks take 50 ms."""
    options = {"speed": 1000, "takes": 50, "lists": AccountLists(refresh=0)}
    with gateway_in_thread(monkeypatch, with_account=True, **options) as elsewhere:
        elsewhere.call(lambda one: one.add_key(OTHER, user_id=one.user_id))
        yield elsewhere


def submit_elsewhere(gateway: GatewayThread, *prompts: str) -> list[str]:
    """Submit from another program of the account; return the ids, the newest first."""

    async def submit() -> list[str]:
        async with Client(OTHER, base_url=gateway.simulator.base_url) as client:
            return [(await client.generate(prompt)).id for prompt in prompts]

    return asyncio.run(submit())[::-1]


# audit


def test_audit_lists_what_the_journal_does_not_have(run: Run, gateway: GatewayThread) -> None:
    """Each task has a line with its kind and its state, and the output says what to do."""
    assert run(*BATCH).code == 0
    done = run("audit", PATH)
    assert (done.code, done.out, done.err) == (0, "no tasks\n", "")
    first, second = submit_elsewhere(gateway, "a foal", "a calf")
    done = run("audit", "clips")
    assert done.code == 0
    head, *rows, count = done.out.splitlines()
    assert head.split() == ["task", "created", "kind", "state", "quota", "model"]
    assert [row.split()[0] for row in rows] == [first, second]
    assert "runway TEXT_TO_VIDEO" in rows[0]
    assert count == "2 tasks are paid for and not in the journal"
    assert f"fuhu-runway audit {PATH} --adopt" in done.err
    assert f"fuhu-runway audit {PATH} ID ID --ignore" in done.err


def test_audit_in_json(run: Run, gateway: GatewayThread) -> None:
    """One object has the tasks, those that may be in doubt, and whether the list was whole."""
    assert run(*BATCH).code == 0
    (task_id,) = submit_elsewhere(gateway, "a marked foal")
    done = run("audit", PATH, "--json")
    row = json.loads(done.out)
    assert row.keys() == documented_keys("An audit in JSON")
    assert (done.err, row["unclear"], row["is_complete"]) == ("", [], True)
    assert [task["task_id"] for task in row["tasks"]] == [task_id]
    assert "marked" not in done.out


def test_audit_adopts_and_saves(run: Run, gateway: GatewayThread) -> None:
    """With --adopt, the clips are beside the journal, and the journal has the jobs."""
    assert run(*BATCH).code == 0
    first, second = submit_elsewhere(gateway, "a foal", "a calf")
    done = run("audit", PATH, second, "--adopt")
    assert (done.code, len(done.out.splitlines())) == (0, 1)
    assert second in done.out
    done = run("audit", PATH, "--adopt", "--out", "more", "--json")
    row = json.loads(done.out)
    assert (row["total"], row["saved"]) == (1, 1)
    (file,) = row["files"]
    assert Path(file).parent == Path("more")
    assert first in file
    assert is_clip(file)
    jobs = json.loads(run("jobs", PATH, "--json").out)
    assert jobs["counts"] == {"saved": 4}
    done = run("audit", PATH, "--adopt")
    assert (done.code, done.out) == (0, "")
    assert "There is nothing to save." in done.err
    assert gateway.call(lambda one: one.submitted) == 4


def test_audit_leaves_what_has_no_clip(run: Run, gateway: GatewayThread) -> None:
    """Tasks that failed, unless they are named, and those that no feed knows."""
    assert run(*BATCH).code == 0
    gateway.call(lambda one: one.script(then="fail", takes=0.001))
    (failed,) = submit_elsewhere(gateway, "a foal")
    assert run("audit", PATH, "--adopt").out == ""
    done = run("audit", PATH, failed, "--adopt")
    assert (done.code, "1 failed" in done.err, "--retry" in done.err) == (1, True, False)
    (unknown,) = submit_elsewhere(gateway, "a calf")
    for place in ("feed", "official"):
        gateway.call(
            lambda one, place=place: one.fault(place, faults.error(404, "task not found"), times=9)
        )
    done = run("audit", PATH, "--adopt")
    assert (done.code, f"{unknown} was not adopted" in done.err) == (0, True)


def test_audit_ignores(run: Run, gateway: GatewayThread) -> None:
    """What is ignored is not listed again: the tasks that are named, or all."""
    assert run(*BATCH).code == 0
    _, second = submit_elsewhere(gateway, "a foal", "a calf")
    done = run("audit", PATH, second, "--ignore")
    assert done.out.splitlines()[-1] == "1 task is ignored from now on"
    assert run("audit", PATH, "--ignore").code == 0
    assert run("audit", PATH).out == "no tasks\n"


def test_audit_keeps_back_what_may_be_in_doubt(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task from the time of a doubt is neither adopted nor ignored before that is settled."""
    with monkeypatch.context() as without:
        without.delenv("FUHU_ACCESS_TOKEN")
        without.delenv("FUHU_USER_ID")
        gateway.call(lambda one: one.fault("submit", faults.drop_after_accepting()))
        assert run(*BATCH, "--in-flight", "1").code == 3
    done = run("audit", PATH)
    assert (done.code, done.out) == (0, "no tasks\n")
    assert "1 more may belong to jobs in doubt" in done.err
    assert f"fuhu-runway reconcile {PATH}" in done.err
    (lost,) = json.loads(run("audit", PATH, "--json").out)["unclear"]
    done = run("audit", PATH, lost["task_id"], "--adopt")
    assert (done.code, "may be the task of a job in doubt" in done.err) == (2, True)


def test_audit_says_that_a_list_is_cut(run: Run, gateway: GatewayThread) -> None:
    """A list that does not say how long it is may have more."""
    assert run(*BATCH).code == 0
    gateway.simulator.lists = AccountLists(version=2024, refresh=0)
    assert "did not send its whole list" in run("audit", PATH).err


def test_audit_looks_since_a_date(run: Run, gateway: GatewayThread) -> None:
    """A date or a time; what is older is left out."""
    assert run(*BATCH).code == 0
    submit_elsewhere(gateway, "a foal")
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    assert run("audit", PATH, "--since", tomorrow).out == "no tasks\n"
    assert "1 task is" in run("audit", PATH, "--since", "2020-01-01").out


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["--adopt", "--ignore"], "not both"),
        (["t-1"], "audit needs either --adopt or --ignore"),
        (["t-1", "--adopt"], "does not list a task t-1"),
        (["--since", "yesterday"], '"yesterday" is not a date.'),
    ],
)
def test_a_wrong_audit_changes_nothing(
    run: Run, gateway: GatewayThread, tokens: list[str], message: str
) -> None:
    """It exits with 2 and says what is wrong."""
    assert run(*BATCH).code == 0
    done = run("audit", PATH, *tokens)
    assert (done.code, done.out, message in done.err) == (2, "", True)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["FUHU_ACCESS_TOKEN", "FUHU_USER_ID"], "No account is set."),
        (["FUHU_USER_ID"], "There is no user id of the account."),
        (["FUHU_ACCESS_TOKEN"], "There is no access token of the account."),
    ],
)
def test_an_account_is_whole_or_missing(
    run: Run,
    gateway: GatewayThread,
    monkeypatch: pytest.MonkeyPatch,
    missing: list[str],
    message: str,
) -> None:
    """One variable without the other stops any command that would use it, before it sends."""
    assert run(*BATCH).code == 0
    sent = len(gateway.call(lambda one: one.requests))
    for name in missing:
        monkeypatch.delenv(name)
    done = run("audit", PATH)
    assert (done.code, message in done.err) == (2, True)
    assert "FUHU_ACCESS_TOKEN" in done.err or "FUHU_USER_ID" in done.err
    assert run("balance").code == (0 if len(missing) == 2 else 2)
    assert len(gateway.call(lambda one: one.requests)) == sent + 2 * (len(missing) == 2)


def test_a_wrong_token_is_one_line(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names what to check, and not the token."""
    assert run(*BATCH).code == 0
    monkeypatch.setenv("FUHU_ACCESS_TOKEN", "a-marked-token")
    done = run("audit", PATH)
    assert (done.code, len(done.err.splitlines())) == (5, 1)
    assert "Check FUHU_ACCESS_TOKEN and FUHU_USER_ID" in done.err
    assert "marked" not in done.err


def test_audit_with_a_simulated_gateway(run: Run) -> None:
    """The simulated gateway has an account of its own, whose tasks are in its file."""
    assert run(*BATCH, "--simulate").code == 0
    assert run("audit", PATH, "--simulate").out == "no tasks\n"
    rows: list[Any] = json.loads(run("jobs", PATH, "--json").out)["jobs"]
    assert run("forget", PATH, rows[0]["key"], "--force").code == 0
    done = run("audit", PATH, "--simulate")
    assert rows[0]["task_id"] in done.out
    assert f"fuhu-runway audit {PATH} --adopt --simulate" in done.err
    assert run("audit", PATH, "--adopt", "--simulate").code == 0
    assert Path(STATE).is_file()


# reconcile


@pytest.fixture
def lossy(gateway: GatewayThread, run: Run, monkeypatch: pytest.MonkeyPatch) -> GatewayThread:
    """A gateway that has lost some responses: one after accepting, and one before."""
    with monkeypatch.context() as without:
        for name in ACCOUNT:
            without.delenv(name)
        # The last one is accepted, which shows that the lists are complete.
        Path("p.txt").write_text("a kitten\na puppy\na foal\n")
        gateway.call(lambda one: one.fault("submit", faults.drop_after_accepting()))
        gateway.call(lambda one: one.fault("submit", faults.drop_before_accepting()))
        assert run(*BATCH, "--in-flight", "1").code == 3
    return gateway


def test_reconcile_finds_follows_and_saves(run: Run, lossy: GatewayThread) -> None:
    """What the list shows is saved beside the journal, and what is left has its reason."""
    done = run("reconcile", PATH)
    assert done.code == 3
    first, head, left, *files = done.out.splitlines()
    assert first == "2 in doubt: 1 found and followed, 1 left in doubt"
    assert head.split("  ")[0] == "key"
    assert "p.txt:2" in left
    assert "its task may still appear" in left
    (file,) = filter(None, files)
    assert is_clip(file)
    assert Path(file).parent == Path("clips")
    assert f"fuhu-runway jobs {PATH} --state in-doubt" in done.err
    assert json.loads(run("jobs", PATH, "--json").out)["counts"] == {"saved": 2, "in doubt": 1}
    assert run("reconcile", PATH).out.startswith("1 in doubt: 1 left in doubt\n")


def test_reconcile_in_json(run: Run, lossy: GatewayThread) -> None:
    """One object has what was found, what was not accepted, what is left, and the files."""
    done = run("reconcile", PATH, "--out", "found", "--json")
    row = json.loads(done.out)
    assert (done.code, done.err) == (3, "")
    assert row.keys() == documented_keys("A reconciliation in JSON")
    assert [one["proof"] for one in row["found"]] == ["list of tasks"]
    assert [one["reason"] for one in row["left"]] == ["its task may still appear"]
    assert row["not_accepted"] == []
    (file,) = row["files"]
    assert Path(file).parent == Path("found")


def test_reconcile_shows_tasks_to_choose_from(run: Run, lossy: GatewayThread) -> None:
    """Where another program asked for the same, a person decides; the command says how."""
    others = submit_elsewhere(lossy, "a kitten")
    done = run("reconcile", PATH)
    assert (done.code, done.out.startswith("2 in doubt: 2 left in doubt\n")) == (3, True)
    (row,) = [line for line in done.out.splitlines() if "p.txt:1" in line]
    assert "several tasks fit" in row
    assert others[0] in row
    assert f"fuhu-runway resolve {PATH} KEY --task-id ID" in done.err


def test_reconcile_without_an_account_says_so(
    run: Run, lossy: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of the key has no ids, so that every doubt is left, with what the log shows."""
    for name in ACCOUNT:
        monkeypatch.delenv(name)
    done = run("reconcile", PATH)
    assert (done.code, "2 left in doubt" in done.out) == (3, True)
    assert "Without FUHU_ACCESS_TOKEN and FUHU_USER_ID, no task can be found." in done.err


@pytest.mark.parametrize("answer", [faults.html_page(), faults.error(401, "无权进行此操作")])
def test_reconcile_without_a_list_leaves_every_doubt(
    run: Run, lossy: GatewayThread, answer: faults.Fault
) -> None:
    """The error is one line that says so."""
    lossy.call(lambda one: one.fault("tasks", answer, times=None))
    done = run("reconcile", PATH)
    assert (done.code, done.out, len(done.err.splitlines())) == (5, "", 1)
    assert "Every job that was in doubt still is." in done.err


def test_reconcile_names_the_command_for_what_was_found_before(
    run: Run, lossy: GatewayThread
) -> None:
    """A task that was found and not saved is not in doubt again; `resume` saves its clip."""
    in_the_way = Path("clips", f"{lossy.call(lambda one: one.tasks[0].task_id)}.mp4")
    in_the_way.mkdir()
    command = f"To save the clips: fuhu-runway resume {PATH} --out clips"
    done = run("reconcile", PATH)
    assert "1 paid for but not saved" in done.err
    assert command in done.err
    done = run("reconcile", PATH)
    assert done.out.startswith("1 in doubt: 1 left in doubt\n")
    assert f"1 other task is paid for and not saved. {command}" in done.err
    in_the_way.rmdir()
    assert run("resume", PATH, "--out", "clips").code == 0
    assert "other" not in run("reconcile", PATH).err


@pytest.mark.parametrize("command", [["reconcile"], ["audit"], ["resume", "--out", "clips"]])
def test_a_simulated_gateway_does_not_claim_a_journal(run: Run, command: list[str]) -> None:
    """A journal that no simulated batch has used is refused, and no simulated gateway is made."""
    Path("clips").mkdir()
    Path(PATH).touch()
    name, *options = command
    done = run(name, PATH, *options, "--simulate")
    assert (done.code, "No simulated gateway belongs to this journal." in done.err) == (2, True)
    assert not Path(STATE).exists()


def test_reconcile_with_nothing_in_doubt(run: Run, gateway: GatewayThread) -> None:
    """It says so, and needs nothing of the gateway."""
    assert run(*BATCH).code == 0
    sent = len(gateway.call(lambda one: one.requests))
    done = run("reconcile", "clips")
    assert (done.code, done.out, done.err) == (0, "nothing is in doubt\n", "")
    assert len(gateway.call(lambda one: one.requests)) == sent


def test_reconcile_plans_again_what_was_not_accepted(
    run: Run, lossy: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count says so; the proof takes minutes, so that the client's report is given here."""

    async def proven(client: Client) -> Reconciliation:
        assert client.journal is not None
        doubts = await client.journal.jobs(JobState.IN_DOUBT)
        return Reconciliation(not_accepted=tuple(job.key for job in doubts))

    monkeypatch.setattr(Client, "reconcile", proven)
    done = run("reconcile", PATH)
    assert (done.code, done.err) == (0, "")
    assert done.out == "2 in doubt: 2 not accepted and planned again\n"


def test_a_batch_finds_a_lost_response_by_itself(
    run: Run, gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the account in the environment, the batch needs no other command."""
    monkeypatch.setattr("fuhu_runway._session.reconcile.FIRST", 0.01)  # in place of a second
    gateway.call(lambda one: one.fault("submit", faults.drop_after_accepting()))
    done = run(*BATCH)
    assert (done.code, "2 of 2 clips" in done.err) == (0, True)
    assert gateway.call(lambda one: one.submitted) == 2


def test_jobs_names_reconcile_first(run: Run, lossy: GatewayThread) -> None:
    """Of what can be done about a doubt, the first is what needs no person."""
    lines = run("jobs", PATH).err.splitlines()
    assert lines[1].endswith(f"fuhu-runway reconcile {PATH}")


@pytest.mark.parametrize(
    ("place", "command"),
    [
        ("tasks", ("reconcile", PATH)),
        ("charges", ("reconcile", PATH, "--json")),
        ("tasks", ("audit", PATH, "--json")),
    ],
    ids=["tasks", "charges", "audit"],
)
def test_ctrl_c_while_a_list_is_read_says_so(
    run: Run, lossy: GatewayThread, place: Where, command: tuple[str, ...]
) -> None:
    """A list that hangs can be left: one word on stderr, and with --json one object."""
    lossy.call(lambda one: one.fault(place, faults.Hang()))
    with pressed(lambda: lossy.got(place)):
        done = run(*command)
    assert (done.code, done.err) == (130, "Stopped.\n")
    said = json.loads(done.out)["error"] if done.out else None
    assert said == ("Stopped" if "--json" in command else None)
