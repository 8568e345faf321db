"""Submissions in doubt are settled by the gateway's own lists, and by nothing else."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.clients import EventRecorder, others, quick_client
from support.clock import until
from support.receivers import receiving

from fuhu_runway import Account, Client, Item, TextToVideo, Timeouts, errors
from fuhu_runway._clock import LoopClock
from fuhu_runway._session import submission
from fuhu_runway._session.matching import Reason
from fuhu_runway.account import Left, Reconciliation
from fuhu_runway.hooks import (
    CallbackReceived,
    DoubtSettled,
    ReconciliationFailed,
    SubmissionDoubted,
    SubmissionFound,
    SubmissionUnclaimed,
    SubmissionUnrecorded,
)
from fuhu_runway.journal import CHARGE, Job, JobState, Journal
from fuhu_runway.task import Task
from fuhu_runway.testing import AccountLists, Simulator, faults

pytestmark = pytest.mark.usefixtures("virtual")

LOST = faults.drop_after_accepting()
NEVER_SENT = faults.drop_before_accepting()
AT_ONCE = Timeouts(late=0.001)
"""A gateway that lists what it accepted at once, so that an absent task is one that is not."""


@pytest.fixture
async def gateway() -> AsyncIterator[Simulator]:
    """Yield a gateway whose lists are current."""
    async with Simulator(speed=1000, takes=20, lists=AccountLists(refresh=0)) as simulator:
        yield simulator


@pytest.fixture(params=["memory", "journal"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Return where a client records its submissions: in a file, or only in its memory."""
    return tmp_path / "journal.db" if request.param == "journal" else None


@pytest.fixture
async def used_key(gateway: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the key an hour ago: a log says nothing about the time before its first row."""
    then = time.time() - 3600
    with monkeypatch.context() as past:
        past.setattr(time, "time", lambda: then)
        async with quick_client(gateway) as client:
            await client.generate("an old prompt")


def client_of(gateway: Simulator, **changes: Any) -> Client:
    """Return a client with the account of *gateway*."""
    account = Account(gateway.access_token, gateway.user_id)
    return quick_client(gateway, **{"account": account, "timeouts": AT_ONCE, **changes})


def other_program(gateway: Simulator) -> Client:
    """Return a client with another key of the same user."""
    gateway.add_key("sk-other", user_id=gateway.user_id)
    return Client("sk-other", base_url=gateway.base_url)


def listings(gateway: Simulator) -> int:
    """Return how often the list of tasks was read."""
    return sum(seen.path == "/api/task/self" for seen in gateway.requests)


def logs_read(gateway: Simulator) -> int:
    """Return how often the log of the key was read."""
    return sum(seen.path == "/api/log/token" for seen in gateway.requests)


async def in_doubt(client: Client, prompt: str = "a kitten", **more: Any) -> None:
    """Submit, and see that it stays in doubt."""
    with pytest.raises(errors.SubmissionInDoubt):
        await client.generate(prompt, **more)


async def reason_left(client: Client) -> Left:
    """Reconcile, and return the only submission that is left."""
    report = await client.reconcile()
    assert (report.found, report.not_accepted) == ((), ())
    (left,) = report.left
    return left


# By itself


async def test_a_submit_returns_the_task_of_a_lost_response(
    gateway: Simulator, journal: Path | None
) -> None:
    """The response is lost after the gateway accepted: `submit` finds the task, and pays once."""
    gateway.fault("submit", LOST)
    recorder = EventRecorder()
    async with client_of(gateway, journal=journal, hooks=[recorder]) as client:
        task = await client.generate("a kitten", custom_id="order-7", tag="blue")
        assert (task.custom_id, task.tag) == ("order-7", "blue")
        assert await task.wait()
        assert (await client.find("order-7")) is task
        assert (await client.reconcile()) == Reconciliation()
        if client.journal is not None:
            (job,) = await client.journal.jobs()
            assert (job.task_id, job.proof) == (task.id, "list of tasks")
    assert gateway.submitted == 1
    assert [task.id] == [event.task_id for event in recorder.all(SubmissionFound)]
    (settled,) = recorder.all(DoubtSettled)
    assert (settled.task_id, settled.proof) == (task.id, "list of tasks")
    assert recorder.all(SubmissionDoubted) == []


async def test_a_row_that_comes_late_is_waited_for(gateway: Simulator) -> None:
    """The list shows the task some seconds later, and the prompt later still."""
    gateway.lists = AccountLists(delay=9_000, refresh=14_000)  # of simulated time: 9 and 14 s
    gateway.script("a kitten", takes=60_000)
    gateway.fault("submit", LOST)
    async with client_of(gateway) as client:
        task = await client.generate("a kitten")
        assert [task.id] == [one.task_id for one in gateway.tasks]
    assert listings(gateway) > 2


async def test_what_is_not_found_in_time_is_in_doubt(
    gateway: Simulator, journal: Path | None
) -> None:
    """Nothing is sent again: `submit` raises after `search_seconds`, and says what it says."""
    gateway.fault("submit", NEVER_SENT)
    recorder = EventRecorder()
    async with client_of(gateway, journal=journal, hooks=[recorder]) as client:
        before = asyncio.get_running_loop().time()
        await in_doubt(client)
        assert 30 <= asyncio.get_running_loop().time() - before < 31
    assert gateway.submitted == 0
    assert len(recorder.all(SubmissionDoubted)) == 1


async def test_many_searches_share_their_requests(gateway: Simulator) -> None:
    """Twenty responses are lost at the same time: all are found, in a few requests."""
    gateway.fault("submit", LOST, times=20)
    async with client_of(gateway) as client:
        submits = [client.generate(f"kitten {number}") for number in range(20)]
        tasks = await asyncio.gather(*submits)
        assert len({task.id for task in tasks}) == 20
        prompts = {task.task_id: task.prompt for task in gateway.tasks}
        assert [prompts[task.id] for task in tasks] == [f"kitten {n}" for n in range(20)]
    assert listings(gateway) <= 3


async def test_equal_submissions_get_one_task_each(gateway: Simulator) -> None:
    """Four equal prompts whose responses are lost are four tasks, and none gets that of another."""
    gateway.fault("submit", LOST, times=4)
    async with client_of(gateway) as client:
        tasks = await asyncio.gather(*(client.generate("a kitten") for _ in range(4)))
    assert {task.id for task in tasks} == {task.task_id for task in gateway.tasks}
    assert gateway.submitted == 4


async def test_a_search_that_is_refused_ends_at_once(gateway: Simulator) -> None:
    """A wrong token: `submit` raises the doubt without waiting, and an event names the error."""
    gateway.fault("submit", LOST)
    recorder = EventRecorder()
    wrong = Account("a-wrong-token", gateway.user_id)
    async with client_of(gateway, account=wrong, hooks=[recorder]) as client:
        before = asyncio.get_running_loop().time()
        await in_doubt(client)
        assert asyncio.get_running_loop().time() - before < 5
        with pytest.raises(errors.Unauthorized, match="FUHU_ACCESS_TOKEN"):
            await client.reconcile()
        assert await client._sessions.ledger.jobs(JobState.IN_DOUBT)
    assert [event.error for event in recorder.all(ReconciliationFailed)] == ["Unauthorized"]


async def test_a_search_outlives_a_list_that_fails(gateway: Simulator) -> None:
    """A list that fails for a moment is read again."""
    gateway.fault("submit", LOST)
    gateway.fault("tasks", faults.not_json(), times=12)
    async with client_of(gateway) as client:
        assert await client.generate("a kitten")


async def test_a_caller_who_is_cancelled_does_not_lose_the_task(gateway: Simulator) -> None:
    """The caller's own deadline ends the call; the search goes on, and the task is kept."""
    gateway.fault("submit", LOST)
    recorder = EventRecorder()
    async with client_of(gateway, hooks=[recorder]) as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.generate("a kitten"), 0.5)
        assert client.unfinished == ()
        await asyncio.sleep(5)
        (task,) = client.unfinished
        assert await task.wait()
    assert [event.task_id for event in recorder.all(SubmissionUnclaimed)] == [task.id]


async def test_closing_ends_a_search(gateway: Simulator) -> None:
    """A client that is closed does not wait for the search, and reports the doubt."""
    gateway.fault("submit", NEVER_SENT)
    client = client_of(gateway)
    submit = asyncio.ensure_future(client.generate("a kitten"))
    await asyncio.sleep(10)
    before = asyncio.get_running_loop().time()
    await client.aclose()
    assert asyncio.get_running_loop().time() - before < 1
    with pytest.raises(errors.SubmissionInDoubt):
        await submit
    assert others() == set()


@pytest.mark.usefixtures("used_key")
async def test_a_search_does_not_find_its_own_submission_not_accepted(gateway: Simulator) -> None:
    """While a submission searches, nothing says that it may be sent again."""
    async with client_of(gateway) as client:
        await client.generate("a puppy")
        gateway.fault("submit", NEVER_SENT)
        submit = asyncio.ensure_future(client.generate("a kitten"))
        await asyncio.sleep(10)
        assert (await reason_left(client)).reason == "its task may still appear"
        with pytest.raises(errors.SubmissionInDoubt):
            await submit


# Asked for


@pytest.mark.usefixtures("used_key")
async def test_reconcile_proves_that_a_job_was_not_accepted(
    gateway: Simulator, journal: Path | None
) -> None:
    """The list has the task that is known and not this one: the same name may be sent again."""
    gateway.fault("submit", NEVER_SENT)
    recorder = EventRecorder()
    async with client_of(gateway, journal=journal, hooks=[recorder]) as client:
        # After a fault is planned: it happens to the first request.
        await in_doubt(client, custom_id="order-7")
        await client.generate("a puppy")
        report = await client.reconcile()
        assert (report.found, len(report.not_accepted), report.left) == ((), 1, ())
        (settled,) = recorder.all(DoubtSettled)
        assert (settled.key, settled.task_id) == (report.not_accepted[0], None)
        assert await client.generate("a kitten", custom_id="order-7")
    assert gateway.submitted == 3


@pytest.mark.parametrize("is_defect", [True, False])
@pytest.mark.usefixtures("used_key")
async def test_a_clock_that_is_set_back_proves_nothing(
    gateway: Simulator, journal: Path | None, monkeypatch: pytest.MonkeyPatch, *, is_defect: bool
) -> None:
    """Its task is listed earlier than it was sent by that clock, so it would not be looked for."""

    def broken(_: object) -> None:
        raise ZeroDivisionError

    if not is_defect:
        gateway.fault("submit", LOST)
    settings = {"account": None, "journal": journal, "timeouts": Timeouts(late=60)}
    async with client_of(gateway, **settings) as client:
        with monkeypatch.context() as patched:
            patched.setattr(LoopClock, "wall", lambda _: time.time() + 30)
            if is_defect:
                patched.setattr(submission, "read_task", broken)
            with pytest.raises((errors.SubmissionInDoubt, ZeroDivisionError)):
                await client.generate("a kitten", custom_id="order-7")
        await client.generate("a puppy")
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        later = {name: getattr(time, name)() + 120 for name in ("time", "monotonic")}
        with monkeypatch.context() as patched:
            for name, instant in later.items():
                patched.setattr(time, name, lambda instant=instant: instant)
            assert (await reason_left(client)).reason == Reason.SET_BACK
    assert gateway.submitted == 3  # with the old prompt


async def test_without_another_task_nothing_is_proven(gateway: Simulator) -> None:
    """A list and a log that show no known task may be those of another gateway."""
    gateway.fault("submit", NEVER_SENT)
    async with client_of(gateway) as client:
        await in_doubt(client)
        left = await reason_left(client)
        assert left.reason == "nothing shows that the gateway's records are complete"


async def test_before_its_time_nothing_is_proven(gateway: Simulator) -> None:
    """A row may come minutes later, so a task that is not listed yet may still be."""
    gateway.fault("submit", NEVER_SENT)
    async with client_of(gateway, timeouts=Timeouts()) as client:
        await in_doubt(client)
        await client.generate("a puppy")
        assert (await reason_left(client)).reason == "its task may still appear"


async def test_a_doubt_of_an_earlier_process_is_found_and_followed(
    gateway: Simulator, tmp_path: Path
) -> None:
    """A process dies in doubt; the next one finds the task, and can wait for it."""
    gateway.fault("submit", LOST)
    async with client_of(gateway, account=None, journal=tmp_path / "j.db") as client:
        await in_doubt(client, custom_id="order-7", tag="blue")
    recorder = EventRecorder()
    async with client_of(gateway, journal=tmp_path / "j.db", hooks=[recorder]) as client:
        report = await client.reconcile()
        (found,) = report.found
        assert report.as_dict()["found"] == [
            {
                "key": "id:order-7",
                "task_id": gateway.tasks[0].task_id,
                "proof": "list of tasks",
                "custom_id": "order-7",
            }
        ]
        (task,) = client.unfinished
        assert (task.id, task.custom_id, task.tag) == (found.task_id, "order-7", "blue")
        assert await task.wait()
        assert client.journal is not None
        (job,) = await client.journal.jobs()
        assert job.accepted_at is not None
        assert job.submitted_at is not None
        assert 0 <= job.accepted_at - job.submitted_at < 5
    assert len(recorder.all(SubmissionFound)) == 1


@pytest.mark.parametrize("fault", [LOST, NEVER_SENT], ids=["accepted", "not accepted"])
@pytest.mark.usefixtures("used_key")
async def test_a_name_in_doubt_is_looked_up_when_it_is_used_again(
    gateway: Simulator, journal: Path | None, fault: faults.Drop
) -> None:
    """The same order is submitted again later: its task is found, or it is sent once."""
    gateway.fault("submit", fault)
    async with client_of(gateway, account=None, journal=journal) as client:
        await in_doubt(client, custom_id="order-7")
        await client.generate("a puppy")
        await in_doubt(client, custom_id="order-7")
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        task = await client.generate("a kitten", custom_id="order-7")
        assert task.custom_id == "order-7"
        assert await client.find("order-7") is task
    assert gateway.submitted == 3


async def test_a_name_in_doubt_is_looked_up_once_a_minute(
    gateway: Simulator, journal: Path | None
) -> None:
    """A caller that repeats a submit in doubt does not have the lists read each time."""
    gateway.fault("submit", NEVER_SENT)
    async with client_of(gateway, account=None, journal=journal) as client:
        await in_doubt(client, custom_id="order-7")
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        for _ in range(5):
            await in_doubt(client, custom_id="order-7")
    assert listings(gateway) == 1
    assert gateway.submitted == 0


async def test_a_name_in_doubt_is_looked_up_although_the_clock_was_set_back(
    gateway: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would not be looked up until that time of day came again."""
    gateway.fault("submit", NEVER_SENT)
    async with client_of(gateway, account=None) as client:
        await in_doubt(client, custom_id="order-7")
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        with monkeypatch.context() as patched:
            patched.setattr(LoopClock, "wall", lambda _: time.time() + 3600)
            await in_doubt(client, custom_id="order-7")
        before = listings(gateway)
        await in_doubt(client, custom_id="order-7")
    assert listings(gateway) > before > 0


async def test_two_that_reconcile_at_once_settle_it_once(
    gateway: Simulator, tmp_path: Path
) -> None:
    """The second one finds it settled, and reports nothing."""
    gateway.fault("submit", LOST)
    async with client_of(gateway, account=None, journal=tmp_path / "j.db") as client:
        await in_doubt(client)
    async with client_of(gateway, journal=tmp_path / "j.db") as client:
        reports = await asyncio.gather(client.reconcile(), client.reconcile())
    assert sorted(len(report.found) for report in reports) == [0, 1]


async def test_a_doubt_that_is_settled_meanwhile_is_not_reported(gateway: Simulator) -> None:
    """Of two doubts, a person settles the second while the first is settled: one is reported."""
    doubts: list[Job] = []

    def person(event: object) -> None:
        if isinstance(event, DoubtSettled):
            [other] = [job for job in doubts if job.key != event.key]
            with suppress(StopIteration):  # in memory, it waits for nothing
                client._sessions.ledger.resolve(other.key, accepted=False).send(None)

    for _ in range(2):
        gateway.fault("submit", LOST)
    async with client_of(gateway, account=None, hooks=[person]) as client:
        await in_doubt(client)
        await in_doubt(client, "a puppy")
        doubts += await client._sessions.ledger.jobs(JobState.IN_DOUBT)
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        report = await client.reconcile()
    assert (len(report.found), report.not_accepted, report.left) == (1, (), ())


async def test_a_task_of_another_program_makes_it_a_choice(gateway: Simulator) -> None:
    """Another key of the account made an equal task: both are reported, and a person chooses."""
    gateway.lists = AccountLists(refresh=0, charges=False)
    gateway.fault("submit", LOST)
    async with client_of(gateway, account=None) as client:
        await in_doubt(client)
        async with other_program(gateway) as other:
            await other.generate("a kitten")
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        left = await reason_left(client)
        assert left.reason == "several tasks fit; choose one"
        assert set(left.task_ids) == {task.task_id for task in gateway.tasks}


@pytest.mark.usefixtures("used_key")
async def test_a_task_that_the_key_did_not_pay_for_is_a_choice(gateway: Simulator) -> None:
    """Another key of the account made an equal task, or the log lacks a row: a person chooses."""
    gateway.fault("submit", NEVER_SENT)
    async with client_of(gateway, account=None) as client:
        await in_doubt(client)
        await client.generate("a puppy")
        async with other_program(gateway) as other:
            task = await other.generate("a kitten")
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        left = await reason_left(client)
        assert (left.reason, left.task_ids) == (Reason.UNCHARGED, (task.id,))


async def test_a_search_does_not_take_the_task_of_another_program(gateway: Simulator) -> None:
    """An equal task of another key is listed; the log of ours shows that we did not pay for it."""
    async with client_of(gateway) as client, other_program(gateway) as other:
        await client.generate("a puppy")
        await other.generate("a kitten")
        gateway.fault("submit", NEVER_SENT)
        await in_doubt(client)
        assert [task.id for task in client.unfinished] == [gateway.tasks[0].task_id]
    assert logs_read(gateway) > 0


async def test_a_search_does_not_take_a_task_of_the_last_seconds(gateway: Simulator) -> None:
    """A task that fits as well may be listed a moment later; what is older is taken."""
    gateway.fault("submit", LOST)
    async with client_of(gateway, timeouts=Timeouts()) as client:
        await in_doubt(client)  # no second of the gateway's clock passes
        assert logs_read(gateway) == 0
        assert len((await client.reconcile()).found) == 1


async def test_searches_leave_the_log_to_others_after_ten_reads(gateway: Simulator) -> None:
    """Gateways count requests for the log over twenty minutes: then the doubt is for later."""
    async with client_of(gateway) as client:
        for number in range(10):
            gateway.fault("submit", LOST)
            await client.generate(f"kitten {number}")
        gateway.fault("submit", LOST)
        await in_doubt(client, "a puppy")
        assert logs_read(gateway) == 10
        assert len((await client.reconcile()).found) == 1
        await asyncio.sleep(1200)
        gateway.fault("submit", LOST)
        assert await client.generate("a foal")


async def test_a_log_that_is_refused_for_now_leaves_the_doubt(gateway: Simulator) -> None:
    """The gateway has a log and does not show it now, so nothing is taken until it does."""
    gateway.fault("submit", LOST)
    gateway.fault("charges", faults.empty_429(), times=None)
    async with client_of(gateway) as client:
        await in_doubt(client)
        left = await reason_left(client)
        assert "cannot be read now" in left.reason
        assert left.task_ids == (gateway.tasks[0].task_id,)
        gateway.forget_plans()
        assert len((await client.reconcile()).found) == 1


async def test_a_gateway_without_a_log_is_asked_for_it_once(gateway: Simulator) -> None:
    """Where there is no log, the only task that fits is ours, and searches stop asking."""
    gateway.fault("charges", faults.html_page(), times=None)
    async with client_of(gateway) as client:
        for number in range(3):
            gateway.fault("submit", LOST)
            assert await client.generate(f"kitten {number}")
    assert logs_read(gateway) == 1


@pytest.mark.parametrize(
    "lists",
    [
        AccountLists(prompts="nowhere"),
        AccountLists(prompts="input", prompt_limit=8),
        AccountLists(own_ids=True, refresh=0),
        AccountLists(data_text=True, refresh=0),
        AccountLists(version=2026, refresh=0),
    ],
    ids=["no prompts", "prompts cut off", "ids of its own", "text in text", "newest"],
)
@pytest.mark.usefixtures("used_key")
async def test_the_feed_completes_what_the_list_lacks(
    gateway: Simulator, lists: AccountLists
) -> None:
    """The feed has the whole prompt and knows the right id, whatever the list shows."""
    gateway.lists = lists
    gateway.fault("submit", LOST)
    async with client_of(gateway) as client:
        await client.generate("a kitten that plays with a ball")
        gateway.fault("submit", NEVER_SENT)
        gateway.fault("submit", LOST)
        await in_doubt(client, "a kitten that plays with a puppy")
        task = await client.generate("a kitten that plays with a foal")
        assert await task.wait()
        await client.generate("a foal")
        assert len((await client.reconcile()).not_accepted) == 1
    assert gateway.submitted == 4


async def test_a_feed_that_fails_proves_nothing(gateway: Simulator) -> None:
    """If the feed cannot be asked about a task, that task may be the one."""
    gateway.lists = AccountLists(refresh=0, charges=False)
    gateway.fault("submit", NEVER_SENT)
    async with client_of(gateway, account=None) as client:
        await in_doubt(client)
        await client.generate("a puppy")
        async with other_program(gateway) as other:
            await other.generate("another kitten")
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        gateway.fault("feed", faults.server_error(500), times=None)
        left = await reason_left(client)
        assert left.reason == "a task that may be it does not show its prompt yet"
        gateway.forget_plans()
        assert "nothing shows" in (await reason_left(client)).reason


async def test_a_kind_without_a_prompt_is_found(gateway: Simulator) -> None:
    """A performance has no prompt; it is the only task of its kind and time."""
    gateway.fault("submit", LOST)
    async with client_of(gateway) as client:
        await client.generate("a puppy")
        gateway.fault("submit", LOST)
        clip = "https://example.com/clip.mp4"
        task = await client.act_one(clip, "https://example.com/face.png")
        assert task.id == gateway.tasks[1].task_id


async def test_the_official_format_is_found_by_its_own_feed(gateway: Simulator) -> None:
    """A task of the official format is looked up where it can be polled."""
    gateway.fault("submit", LOST)
    async with client_of(gateway) as client:
        task = await client.official.text_to_video("a kitten")
        assert task.official
        assert await task.wait()


async def test_what_a_person_settles_meanwhile_is_theirs(
    gateway: Simulator, tmp_path: Path
) -> None:
    """While the feed is asked, a person resolves the job: the report does not claim it."""
    gateway.fault("submit", LOST)
    async with client_of(gateway, account=None, journal=tmp_path / "j.db") as client:
        await in_doubt(client, custom_id="order-7")
    gateway.fault("feed", faults.Slow(60_000))
    async with client_of(gateway, journal=tmp_path / "j.db") as client:
        report = asyncio.ensure_future(client.reconcile())
        await until(lambda: any(seen.path == "/runway/feed" for seen in gateway.requests))
        assert client.journal is not None
        await client.journal.resolve("id:order-7", task_id=gateway.tasks[0].task_id)
        assert await report == Reconciliation()
        (job,) = await client.journal.jobs()
        assert job.proof == "person"


async def test_what_a_person_settles_holds_for_the_name(gateway: Simulator, tmp_path: Path) -> None:
    """The process that remembers the doubt returns the task that a person named."""
    gateway.fault("submit", LOST)
    async with client_of(gateway, account=None, journal=tmp_path / "j.db") as client:
        await in_doubt(client, custom_id="order-7")
        assert client.journal is not None
        await client.journal.resolve("order-7", task_id=gateway.tasks[0].task_id)
        task = await client.generate("a kitten", custom_id="order-7")
        assert [task.id] == [one.task_id for one in gateway.tasks]


class Cancelling(Journal):
    """A journal whose caller is cancelled as soon as a job is settled."""

    async def resolve(self, *args: Any, **options: Any) -> Job:
        job = await super().resolve(*args, **options)
        self.caller.cancel()
        await asyncio.sleep(0)
        return job

    caller: "asyncio.Task[Reconciliation]"


async def test_a_cancelled_reconciliation_keeps_what_it_found(
    gateway: Simulator, tmp_path: Path
) -> None:
    """A decision that is on disk takes effect: the task is on the list of unfinished ones."""
    gateway.fault("submit", LOST)
    journal = Cancelling(tmp_path / "j.db")
    async with client_of(gateway, account=None, journal=journal) as client:
        await in_doubt(client)
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        journal.caller = asyncio.ensure_future(client.reconcile())
        with pytest.raises(asyncio.CancelledError):
            await journal.caller
        await until(lambda: client.unfinished)
    await journal.aclose()


async def test_closing_ends_a_reconciliation(gateway: Simulator) -> None:
    """A client that is closed while the feed is asked says so, and settles nothing."""
    gateway.fault("submit", LOST)
    client = client_of(gateway, account=None)
    await in_doubt(client)
    client._sessions.account = Account(gateway.access_token, gateway.user_id)
    gateway.fault("feed", faults.Slow(60_000))
    report = asyncio.ensure_future(client.reconcile())
    await until(lambda: any(seen.path == "/runway/feed" for seen in gateway.requests))
    await client.aclose()
    with pytest.raises(errors.UsageError, match="closed"):
        await report


async def test_a_response_that_named_its_task_is_found_by_that_name(gateway: Simulator) -> None:
    """A damaged response named the task: it is that one, although another looks the same."""
    gateway.fault("submit", faults.Truncated(95))
    async with client_of(gateway, account=None) as client:
        await in_doubt(client)
        (job,) = await client._sessions.ledger.jobs()
        async with other_program(gateway) as other:
            await other.generate("a kitten")
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        report = await client.reconcile()
        assert [one.task_id for one in report.found] == [job.task_id]


async def test_a_receiver_and_an_account_find_the_same_task(gateway: Simulator) -> None:
    """With both, the task that the list shows is that of the webhooks that come later."""
    gateway.fault("submit", LOST)
    async with receiving() as app:
        app.drops_webhooks = True
        async with client_of(gateway, callbacks=app.receiver) as client:
            task = await client.generate("a kitten")
            app.drops_webhooks = False
            assert await task.wait()
            assert client.unfinished == ()


async def test_a_doubt_that_a_webhook_settled_is_none(
    gateway: Simulator, journal: Path | None
) -> None:
    """Its task has an owner, so that `reconcile` finds it no second time, nor for another."""
    gateway.fault("submit", NEVER_SENT)
    gateway.fault("submit", LOST)
    async with (
        receiving() as app,
        client_of(gateway, callbacks=app.receiver, account=None, journal=journal) as client,
    ):
        await in_doubt(client, custom_id="one")
        await in_doubt(client, custom_id="two")
        await until(lambda: client.unfinished)
        (task,) = client.unfinished
        await task.wait()
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        assert (await reason_left(client)).custom_id == "one"
        assert await client.find("one") is None
        assert await client.find("two") is task
        assert client.unfinished == ()


async def test_a_webhook_after_a_reconciliation_is_one_like_any_other(
    gateway: Simulator, journal: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It finds no task a second time: that one is followed."""
    gateway.script("a kitten", takes=30_000)  # 30 s
    gateway.fault("submit", LOST)
    recorder = EventRecorder()
    async with (
        receiving() as app,
        client_of(
            gateway, callbacks=app.receiver, account=None, journal=journal, hooks=[recorder]
        ) as client,
    ):
        app.drops_webhooks = True
        await in_doubt(client, custom_id="one")
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        assert len((await client.reconcile()).found) == 1
        app.drops_webhooks = False
        task = await client.find("one")
        assert task
        await task.wait()
        await until(lambda: recorder.all(CallbackReceived))
        assert client.unfinished == ()
        assert len(recorder.all(SubmissionFound)) == 1
    assert [line for line in caplog.records if line.levelname == "ERROR"] == []


async def test_a_feed_that_shows_no_prompt_leaves_the_doubt(gateway: Simulator) -> None:
    """Neither the list nor the feed shows the prompt of the task yet: it may be the one."""
    gateway.lists = AccountLists(prompts="nowhere")
    gateway.script("a kitten", blank=10**9)
    gateway.fault("submit", LOST)
    async with client_of(gateway, account=None) as client:
        await in_doubt(client)
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        assert (await reason_left(client)).task_ids == (gateway.tasks[0].task_id,)


@pytest.mark.parametrize("own_ids", [False, True])
async def test_a_task_that_the_feed_does_not_know_yet(gateway: Simulator, *, own_ids: bool) -> None:
    """The list's prompt is enough, unless it has two ids, of which the feed knows one."""
    gateway.lists = AccountLists(prompts="input", refresh=0, own_ids=own_ids)
    gateway.script("a kitten", hidden=10**9)
    gateway.fault("submit", LOST)
    async with client_of(gateway, account=None) as client:
        await in_doubt(client)
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        report = await client.reconcile()
        assert [one.task_id for one in report.found] == [gateway.tasks[0].task_id][own_ids:]


@pytest.mark.usefixtures("used_key")
async def test_other_tasks_of_the_account_are_not_polled(gateway: Simulator) -> None:
    """Known tasks are polled five times at most, and tasks of another kind not at all."""
    gateway.lists = AccountLists(prompts="nowhere")
    gateway.fault("submit", NEVER_SENT)
    clip, face = "https://example.com/clip.mp4", "https://example.com/face.png"
    async with client_of(gateway, account=None) as client:
        await in_doubt(client)
        for number in range(8):
            await client.generate(f"puppy {number}")
        await client.act_one(clip, face)
        async with other_program(gateway) as other:
            await other.act_one(clip, face)
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        assert len((await client.reconcile()).not_accepted) == 1
    assert sum(seen.path == "/runway/feed" for seen in gateway.requests) == 5


@pytest.mark.parametrize("is_logged", [True, False], ids=["log", "no log"])
@pytest.mark.parametrize(
    "shown",
    [("A k…", "gen4"), ("a kitten", "gen3"), ("***", "gen3")],
    ids=["prompt", "model", "both"],
)
async def test_a_task_without_an_owner_may_be_the_lost_one_in_other_words(
    gateway: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    shown: tuple[str, str],
    *,
    is_logged: bool,
) -> None:
    """Only the log of the key shows that a task with another prompt or model is another key's."""
    then = math.floor(time.time()) - 3600
    gateway.fault("submit", NEVER_SENT)
    async with client_of(gateway, account=None, timeouts=Timeouts()) as client:
        with monkeypatch.context() as patched:
            patched.setattr(LoopClock, "wall", lambda _: then)
            await in_doubt(client)
            puppy = await client.generate("a puppy")
        async with other_program(gateway) as other:
            task = await other.generate(shown[0])
        rows = [(puppy.id, "a puppy", "gen4"), (task.id, *shown)]
        tasks = [
            {
                "task_id": task_id,
                "submit_time": then,
                "properties": {"input": prompt, "origin_model_name": model},
            }
            for task_id, prompt, model in rows
        ]
        charge = {"type": 2, "created_at": then, "content": "操作 generate", "quota": 5000}
        topped_up = {"type": 1, "created_at": then - 60}
        items = {"page": 1, "page_size": 100, "total": 2, "items": tasks}
        gateway.fault("tasks", faults.Response(200, json.dumps({"success": True, "data": items})))
        log = json.dumps({"success": True, "data": [topped_up] + [charge] * is_logged})
        gateway.fault("charges", faults.Response(200, log))
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        if is_logged:
            assert len((await client.reconcile()).not_accepted) == 1
        else:
            left = await reason_left(client)
            assert (left.reason, left.task_ids) == (Reason.STRANGER, (task.id,))


# A journal that refuses


def list_tasks(gateway: Simulator, *ids: str) -> None:
    """Let a gateway list these tasks; the prompts are kitten 0, kitten 1, ..."""
    rows = [
        {
            "task_id": task_id,
            "submit_time": time.time(),
            "properties": {"input": f"kitten {number}", "origin_model_name": "gen4"},
        }
        for number, task_id in enumerate(ids)
    ]
    items = {"page": 1, "page_size": 100, "total": len(rows), "items": rows}
    shown = faults.Response(200, json.dumps({"success": True, "data": items}))
    gateway.fault("tasks", shown, times=None)


@pytest.mark.parametrize("task_id", ["t-\0", "t-\ud800"])
async def test_a_task_whose_id_cannot_be_recorded_stops_no_other(
    gateway: Simulator, tmp_path: Path, task_id: str
) -> None:
    """Of three doubts, two are found; the third is left with the id of its task."""
    gateway.fault("submit", LOST, times=3)
    recorder = EventRecorder()
    path = tmp_path / "j.db"
    async with client_of(gateway, account=None, journal=path, hooks=[recorder]) as client:
        for number in range(3):
            await in_doubt(client, f"kitten {number}", custom_id=f"order-{number}")
        list_tasks(gateway, task_id, "t-1", "t-2")
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        report = await client.reconcile()
        assert [found.task_id for found in report.found] == ["t-1", "t-2"]
        assert report.left == (
            Left("id:order-0", Reason.UNRECORDED, (task_id,), custom_id="order-0"),
        )
        assert {task.id for task in client.unfinished} == {"t-1", "t-2"}
    assert recorder.all(SubmissionUnrecorded) == [
        SubmissionUnrecorded("id:order-0", "The journal cannot hold this task_id.", task_id)
    ]


@pytest.mark.parametrize("task_id", ["t-\0", "t-\ud800"])
async def test_a_search_ends_if_its_task_cannot_be_recorded(
    gateway: Simulator, tmp_path: Path, task_id: str
) -> None:
    """It would be refused again and again; the other search returns its task."""
    list_tasks(gateway, task_id, "t-1")
    gateway.fault("submit", LOST, times=2)
    recorder = EventRecorder()
    path = tmp_path / "j.db"
    async with client_of(gateway, journal=path, hooks=[recorder]) as client:
        before = asyncio.get_running_loop().time()
        submits = [client.generate(f"kitten {number}") for number in range(2)]
        ended = await asyncio.gather(*submits, return_exceptions=True)
        assert asyncio.get_running_loop().time() - before < 10
    [found] = [one for one in ended if isinstance(one, Task)]
    assert found.id == "t-1"
    assert len(recorder.all(SubmissionUnrecorded)) == len(recorder.all(SubmissionDoubted)) == 1


@pytest.mark.usefixtures("used_key")
async def test_a_task_that_was_accepted_and_not_recorded_is_not_paid_for_twice(
    gateway: Simulator, tmp_path: Path
) -> None:
    """Neither list nor log has it, which proves of any other doubt that it was not accepted."""
    accepted = json.dumps({"code": 200, "data": {"task_id": "t-\0"}})
    gateway.fault("submit", faults.Response(200, accepted))
    async with client_of(gateway, journal=tmp_path / "j.db") as client:
        assert (await client.generate("a kitten")).id == "t-\0"
        await client.generate("a puppy")
        left = await reason_left(client)
        assert (left.reason, left.is_charged) == (Reason.CHARGED, True)


@pytest.mark.parametrize("cause", [ConnectionError(), None])
async def test_a_journal_that_is_out_of_reach_ends_a_reconciliation(
    gateway: Simulator, tmp_path: Path, cause: Exception | None
) -> None:
    """What it refuses stays in doubt; if it cannot be reached, no other job can be written."""

    class Refusing(Journal):
        async def resolve(self, key: str, **result: Any) -> Job:
            raise errors.JournalError("The journal refuses.", "a", "b") from cause

    gateway.fault("submit", LOST, times=2)
    journal = Refusing(tmp_path / "j.db")
    async with client_of(gateway, account=None, journal=journal) as client:
        await in_doubt(client)
        await in_doubt(client, "a puppy")
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        if cause is None:
            report = await client.reconcile()
            assert [left.reason for left in report.left] == [Reason.UNRECORDED] * 2
        else:
            with pytest.raises(errors.JournalError):
                await client.reconcile()
    await journal.aclose()


# Lists that cannot be used


async def test_a_list_that_is_cut_off_settles_nothing(gateway: Simulator) -> None:
    """A page lacks rows that the gateway counted: another task that fits may be among them."""
    gateway.fault("submit", LOST)
    async with client_of(gateway, account=None) as client:
        await in_doubt(client)
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        await client.generate("a puppy")
        gateway.fault("tasks", faults.ShortPage(1), times=None)
        gateway.fault("charges", faults.not_json(), times=None)
        assert "list of tasks is cut off" in (await reason_left(client)).reason


async def test_a_clock_that_is_hours_off_settles_nothing(gateway: Simulator) -> None:
    """Rows cannot be compared by time if one of the clocks is wrong by hours."""
    gateway.fault("submit", LOST)
    gateway.clock_offset = 3 * 3600.0
    async with client_of(gateway, account=None) as client:
        await in_doubt(client)
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        assert "clocks" in (await reason_left(client)).reason


async def test_a_clock_that_is_minutes_off_is_corrected(gateway: Simulator) -> None:
    """The `Date` header of the list tells the difference."""
    gateway.fault("submit", LOST)
    gateway.clock_offset = -400.0
    async with client_of(gateway) as client:
        assert await client.generate("a kitten")


@pytest.mark.parametrize("has_account", [True, False])
async def test_a_gateway_without_the_lists_settles_nothing(
    gateway: Simulator, *, has_account: bool
) -> None:
    """A web page in place of a list is an error in one line, and the doubt stays."""
    gateway.fault("submit", LOST)
    gateway.fault("tasks", faults.html_page(), times=None)
    gateway.fault("charges", faults.html_page(), times=None)
    changes = {} if has_account else {"account": None}
    async with client_of(gateway, **changes) as client:
        await in_doubt(client)
        with pytest.raises(errors.NotFound, match="has no l"):
            await client.reconcile()
        assert await client._sessions.ledger.jobs(JobState.IN_DOUBT)


# The log of the key


async def test_the_log_of_the_key_shows_a_charge(gateway: Simulator, journal: Path | None) -> None:
    """Without an account, a charge that no known task explains is reported; there is no id."""
    gateway.fault("submit", LOST)
    async with client_of(gateway, account=None, journal=journal) as client:
        await in_doubt(client)
        await client.generate("a puppy")
        left = await reason_left(client)
        assert (left.is_charged, left.task_ids) == (True, ())
        assert left.reason == Reason.CHARGED
    assert listings(gateway) == 0


async def test_a_charge_is_remembered(gateway: Simulator, journal: Path | None) -> None:
    """The log showed the charge once; later there is none, and a list that lacks the task."""
    gateway.script("a kitten", listed_after=None)
    gateway.fault("submit", LOST)
    async with client_of(gateway, account=None, journal=journal, timeouts=Timeouts()) as client:
        await in_doubt(client)
        await client.generate("a puppy")
        assert (await reason_left(client)).is_charged
        ledger = client._sessions.ledger
        [job] = await ledger.jobs(JobState.IN_DOUBT)
        assert job.proof == CHARGE
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        gateway.fault("charges", faults.html_page(), times=None)
        assert (await reason_left(client)).is_charged
        await ledger.resolve(job.key, accepted=False)
        await ledger.charge(job.key)  # too late: a person has settled it
        assert {one.proof for one in await ledger.jobs() if one.key == job.key} <= {"person"}


async def test_the_log_of_the_key_counts_charges(gateway: Simulator) -> None:
    """One of two was charged, and the log does not say which: both stay in doubt."""
    gateway.fault("submit", LOST)
    gateway.fault("submit", NEVER_SENT)
    async with client_of(gateway, account=None) as client:
        await in_doubt(client)
        await in_doubt(client, "a foal")
        await client.generate("a puppy")
        report = await client.reconcile()
    assert [one.reason for one in report.left] == [
        "the log of the key shows 1 charge for 2 submissions in doubt"
    ] * 2


@pytest.mark.usefixtures("used_key")
async def test_the_log_of_the_key_proves_that_nothing_was_charged(gateway: Simulator) -> None:
    """The log shows the known task alone: the other submission was not accepted."""
    gateway.fault("submit", NEVER_SENT)
    recorder = EventRecorder()
    async with client_of(gateway, account=None, hooks=[recorder]) as client:
        await in_doubt(client)
        await client.generate("a puppy")
        assert len((await client.reconcile()).not_accepted) == 1
    assert [event.proof for event in recorder.all(DoubtSettled)] == ["log of the key"]


@pytest.mark.usefixtures("used_key")
async def test_every_known_job_explains_its_charge(
    gateway: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A job that was sent a minute before the doubt, and accepted beside it, explains its charge.

    If it were left out, its charge would count as one of the doubt.
    """
    minute = {1: 60.0}  # the key was used once; the next one has not arrived yet
    with monkeypatch.context() as patched:
        patched.setattr(
            LoopClock, "wall", lambda _: time.time() - minute.get(gateway.submitted, 0.0)
        )
        async with client_of(gateway, account=None) as client:
            await client.generate("a slow puppy")
            gateway.fault("submit", NEVER_SENT)
            await in_doubt(client)
            await client.generate("a puppy")
            assert len((await client.reconcile()).not_accepted) == 1


async def test_nothing_is_sent_again_while_the_log_is_refused(gateway: Simulator) -> None:
    """The list lacks the task, and the gateway does not show now whether it was paid for."""
    gateway.script("a kitten", listed_after=None)
    gateway.fault("submit", LOST)
    gateway.fault("charges", faults.empty_429())
    async with client_of(gateway, account=None) as client:
        await in_doubt(client)
        await client.generate("a puppy")
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        assert (await reason_left(client)).reason == Reason.LOG_DUE
        assert (await reason_left(client)).is_charged


@pytest.mark.usefixtures("used_key")
async def test_a_log_that_is_cut_off_proves_nothing_about_the_time_before(
    gateway: Simulator,
) -> None:
    """A gateway sends its last rows, refunds and errors among them: ours may be cut off."""
    gateway.fault("submit", LOST)
    async with client_of(gateway, account=None) as client:
        await in_doubt(client)
        await client.generate("a puppy")
        now = math.floor(time.time())
        charge = {"type": 2, "created_at": now, "content": "操作 generate", "quota": 5000}
        gateway.fault("charges", faults.Response(200, json.dumps({"data": [charge]})))
        assert (await reason_left(client)).reason == Reason.UNPROVEN


async def test_a_log_that_is_switched_off_proves_nothing(gateway: Simulator) -> None:
    """The log is empty although a known task was paid for, so it says nothing about the other."""
    gateway.lists = AccountLists(charges=False)
    gateway.fault("submit", NEVER_SENT)
    async with client_of(gateway, account=None) as client:
        await in_doubt(client)
        await client.generate("a puppy")
        assert "nothing shows" in (await reason_left(client)).reason


async def test_the_log_speaks_against_a_list_that_lacks_a_task(gateway: Simulator) -> None:
    """The list shows the known task and lacks the other, which the key was charged for."""
    gateway.script("a kitten", listed_after=None)
    gateway.fault("submit", LOST)
    async with client_of(gateway, account=None) as client:
        await in_doubt(client)
        await client.generate("a puppy")
        client._sessions.account = Account(gateway.access_token, gateway.user_id)
        assert (await reason_left(client)).is_charged


async def test_a_gateway_that_says_it_charged_is_believed(gateway: Simulator) -> None:
    """It charged and failed to record the task: no list can prove that it was not accepted."""
    gateway.fault("submit", faults.known("insert_task_failed"))
    async with client_of(gateway, account=None) as client:
        await in_doubt(client)
        await client.generate("a puppy")
        assert (await reason_left(client)).is_charged


# Batches


@pytest.mark.usefixtures("used_key")
async def test_a_batch_settles_what_an_earlier_one_left(gateway: Simulator, tmp_path: Path) -> None:
    """Of three doubts, two are found and one is submitted again, before the first job."""
    gateway.fault("submit", LOST, times=2)
    gateway.fault("submit", NEVER_SENT)
    prompts = ["a kitten", "a puppy", "a foal", "a lamb"]
    path = tmp_path / "j.db"
    async with client_of(gateway, account=None, journal=path) as client:
        ended = [outcome async for outcome in client.generate_many(prompts, in_flight=1)]
        assert [outcome.is_in_doubt for outcome in ended] == [True, True, True, False]
    async with client_of(gateway, journal=path) as client:
        ended = [outcome async for outcome in client.generate_many(prompts, in_flight=1)]
        assert [outcome.error for outcome in ended] == [None] * 4
        assert [outcome.resumed for outcome in ended] == [True, True, False, True]
    assert gateway.submitted == 5


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.usefixtures("used_key")
async def test_a_batch_settles_its_own_doubts_at_its_end(
    gateway: Simulator, tmp_path: Path, *, named: bool
) -> None:
    """No outcome is in doubt that the list can settle, and each prompt is paid for once."""
    gateway.fault("submit", NEVER_SENT, times=2)
    jobs = [TextToVideo(f"kitten {number}") for number in range(5)]
    items = [Item(job, f"name {at}" if named else None) for at, job in enumerate(jobs)]
    async with client_of(gateway, journal=tmp_path / "j.db") as client:
        batch = client.batch(items, in_flight=1, download_to=tmp_path / "clips")
        ended = [outcome async for outcome in batch.outcomes()]
    assert [outcome.index for outcome in ended] == [2, 3, 4, 0, 1]
    assert all(outcome.error is None and not outcome.resumed for outcome in ended)
    assert (batch.summary.clips, batch.summary.in_doubt, batch.summary.resumed) == (5, 0, 0)
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 5
    assert gateway.submitted == 6


async def test_a_batch_reports_what_it_cannot_settle(gateway: Simulator, tmp_path: Path) -> None:
    """A wrong token: the outcome is the doubt, as it would be without an account."""
    gateway.fault("submit", LOST)
    recorder = EventRecorder()
    wrong = Account("a-wrong-token", gateway.user_id)
    settings: dict[str, Any] = {"account": wrong, "journal": tmp_path / "j.db"}
    async with client_of(gateway, **settings, hooks=[recorder]) as client:
        ended = [outcome async for outcome in client.generate_many(["a kitten", "a puppy"])]
    assert sorted(outcome.is_in_doubt for outcome in ended) == [False, True]
    assert {event.error for event in recorder.all(ReconciliationFailed)} == {"Unauthorized"}


@pytest.mark.usefixtures("used_key")
async def test_a_batch_that_was_stopped_sends_nothing_again(
    gateway: Simulator, tmp_path: Path
) -> None:
    """What was not accepted stays in doubt for the caller, and planned for the next run."""
    gateway.fault("submit", NEVER_SENT)
    async with client_of(gateway, journal=tmp_path / "j.db") as client:
        batch = client.batch(["a kitten", "a puppy", "a foal"], in_flight=1)
        ended = []
        async for outcome in batch.outcomes():
            ended.append(outcome)
            batch.stop()
        assert [outcome.is_in_doubt for outcome in ended] == [False, True]
        assert client.journal is not None
        states = [job.state for job in await client.journal.jobs()]
    assert sorted(state.value for state in states) == ["finished", "planned"]
    assert gateway.submitted == 2


@pytest.mark.parametrize(
    ("fault", "seconds", "made"),
    [(LOST, 0.001, 5), (NEVER_SENT, 30.0, 4)],
    ids=["accepted", "not accepted"],
)
@pytest.mark.usefixtures("used_key")
async def test_a_batch_that_is_stopped_reports_all_doubts(
    gateway: Simulator, tmp_path: Path, fault: faults.Drop, seconds: float, made: int
) -> None:
    """What was found is followed, and what was not accepted stays in doubt for the caller."""
    account = Account(gateway.access_token, gateway.user_id, search_seconds=seconds)
    gateway.fault("submit", fault, times=2)
    jobs = [TextToVideo(f"kitten {number}") for number in range(5)]
    async with client_of(gateway, account=account, journal=tmp_path / "j.db") as client:
        batch = client.batch(jobs, in_flight=1)
        ended = []
        async for outcome in batch.outcomes():
            ended.append(outcome)
            if len(ended) == 4:  # three without a fault, and the first of the others
                batch.stop()
    assert sorted(outcome.index for outcome in ended) == list(range(5))
    clips = [outcome for outcome in ended if outcome.error is None]
    assert len(clips) == made
    assert all(outcome.is_in_doubt for outcome in ended if outcome not in clips)
    assert gateway.submitted == 1 + len(clips)


async def test_a_batch_of_a_closed_client_settles_nothing(
    gateway: Simulator, tmp_path: Path
) -> None:
    """Its outcomes say that the client is closed, as they do without a doubt."""
    gateway.fault("submit", LOST)
    recorder = EventRecorder()
    client = client_of(gateway, account=None, journal=tmp_path / "j.db", hooks=[recorder])
    await in_doubt(client, "a puppy")
    await client.aclose()
    client._sessions.account = Account(gateway.access_token, gateway.user_id)
    (outcome,) = [outcome async for outcome in client.generate_many(["a kitten"])]
    assert isinstance(outcome.error, errors.UsageError)
    assert recorder.all(ReconciliationFailed) == []
    await client.aclose()
    assert listings(gateway) == 0
