"""What is true of every journal, in a file or in a database."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from support.clients import EventRecorder
from support.clock import ManualClock
from support.jobs import (
    ACCEPTED,
    ARROWS,
    FAILED,
    FINISHED,
    IN_DOUBT,
    NOW,
    PLANNED,
    SAVED,
    SUBMITTING,
    job_at,
    rows_of,
    settled,
    wanted,
)

from fuhu_runway._journal.notes import note_of, write
from fuhu_runway._session.entry import Entry
from fuhu_runway.errors import (
    Fate,
    GatewayDown,
    InvalidRequest,
    JournalError,
    NoReply,
    NotSent,
    RateLimited,
    RunwayError,
    UsageError,
)
from fuhu_runway.hooks import (
    ClipHandedOut,
    DownloadFinished,
    DownloadStarted,
    Hooks,
    SubmissionUnrecorded,
    TaskSubmitted,
)
from fuhu_runway.journal import (
    CHARGE,
    STEPS,
    BaseJournal,
    Job,
    JobState,
    Journal,
    Plan,
    plan_of,
)
from fuhu_runway.models import TaskState, TextToVideo

MONEY: Final = "Nothing was sent or charged."


@pytest.fixture
def journal(store: BaseJournal) -> BaseJournal:
    """Return an empty journal of each kind."""
    return store


# The steps of a job


def test_the_table_has_these_steps_and_no_others() -> None:
    """There are twelve steps, each with a sentence that says what it means."""
    assert {(a, b) for a, following in STEPS.items() for b in following} == ARROWS
    assert all(text.endswith(".") for following in STEPS.values() for text in following.values())


@pytest.mark.parametrize(("before", "after"), sorted(ARROWS, key=str))
async def test_each_step_of_the_table_is_allowed(
    journal: BaseJournal, before: JobState, after: JobState
) -> None:
    """A step of the table changes the state, and returns the row as it is in the file."""
    await job_at(journal, before)
    job = await journal.step("k", after, NOW + 60)
    assert job.state is after
    assert await journal.find("k") == job


@pytest.mark.parametrize(
    ("before", "after"), sorted(set(itertools.product(JobState, JobState)) - ARROWS, key=str)
)
async def test_no_other_step_is_allowed(
    journal: BaseJournal, before: JobState, after: JobState
) -> None:
    """A step that the table does not have is an error, and changes nothing."""
    job = await job_at(journal, before)
    with pytest.raises(JournalError, match=f"{before.value} cannot become {after.value}"):
        await journal.step("k", after, NOW + 60, task_id="another", error="Other")
    assert await journal.find("k") == job


async def test_an_unknown_job_cannot_take_a_step(journal: BaseJournal) -> None:
    """A step of an unknown job is an error that names the job."""
    with pytest.raises(JournalError, match="no job 'unknown'"):
        await journal.step("unknown", SUBMITTING, NOW)


async def test_planning_twice_is_planning_once(journal: BaseJournal) -> None:
    """A second plan of the same job returns the row unchanged."""
    first = await job_at(journal, ACCEPTED)
    assert await journal.plan(wanted(custom_id="other"), NOW + 9) == first
    assert len(await journal.jobs()) == 1


async def test_instants_and_submissions_are_written(journal: BaseJournal) -> None:
    """The row has the instant of each state, and counts how often the request was sent."""
    await journal.plan(wanted(), 1.0)
    await journal.step("k", SUBMITTING, 2.0)
    await journal.step("k", PLANNED, 3.0, error="RateLimited", code="busy")
    job = await journal.step("k", SUBMITTING, 4.0)
    assert (job.submissions, job.error, job.code) == (2, None, None)
    await journal.step("k", ACCEPTED, 5.0, task_id="t")
    await journal.step("k", FINISHED, 6.0, points=320, refunded=0)
    job = await journal.step("k", SAVED, 7.0, file_bytes=11)
    assert (job.planned_at, job.submitted_at, job.accepted_at) == (3.0, 4.0, 5.0)
    assert (job.finished_at, job.saved_at) == (6.0, 7.0)
    assert (job.points, job.refunded, job.file_bytes) == (320.0, False, 11)


async def test_two_jobs_may_have_one_task(journal: BaseJournal) -> None:
    """If a gateway returns one id for two submits, both jobs are accepted and end together."""
    for key in "ab":
        await job_at(journal, SUBMITTING, key)
        await journal.step(key, ACCEPTED, NOW, task_id="t-1")
    found = await journal.find("t-1")
    assert found is not None
    assert found.key == "a"
    journal.note(settled(TaskState.SUCCEEDED, "t-1"))
    journal.note(DownloadFinished("t-1", 4242))
    jobs = await journal.jobs()
    assert [(job.key, job.state, job.task_id) for job in jobs] == [
        ("a", SAVED, "t-1"),
        ("b", SAVED, "t-1"),
    ]


async def test_an_end_is_written_only_where_that_is_a_step(journal: BaseJournal) -> None:
    """Of two rows with one task, the one in doubt stays in doubt when the task ends."""
    await job_at(journal, IN_DOUBT, "a")
    await job_at(journal, ACCEPTED, "b")
    await rows_of(journal, "UPDATE job SET task_id = 't-1' RETURNING 1")
    journal.note(settled(TaskState.SUCCEEDED, "t-1"))
    assert [job.state for job in await journal.jobs()] == [IN_DOUBT, FINISHED]


@pytest.mark.parametrize("state", [IN_DOUBT, FAILED])
async def test_a_job_that_is_planned_again_has_no_task(
    journal: BaseJournal, state: JobState
) -> None:
    """A job that is submitted again gets another task, so the old id is removed."""
    await job_at(journal, state)
    await rows_of(journal, "UPDATE job SET task_id = 't-1' RETURNING 1")
    job = await journal.step("k", PLANNED, NOW)
    assert job.task_id is None
    assert await journal.find("t-1") is None


async def test_fetching_a_clip_again_does_not_change_how_long_it_took(journal: BaseJournal) -> None:
    """A saved job that is saved again keeps the instant at which its task finished."""
    before = await job_at(journal, SAVED)
    job = await journal.step("k", FINISHED, NOW + 86_400)
    assert (job.state, job.finished_at) == (FINISHED, before.finished_at)


@pytest.mark.parametrize("state", JobState)
async def test_a_job_can_be_forgotten(journal: BaseJournal, state: JobState) -> None:
    """A row in any state can be removed."""
    await job_at(journal, state)
    await job_at(journal, PLANNED, "other")
    await journal.forget("k")
    assert [job.key for job in await journal.jobs()] == ["other"]
    assert (await job_at(journal, SUBMITTING)).submissions == 1


async def test_a_job_in_another_state_is_not_forgotten(journal: BaseJournal) -> None:
    """A row that has moved on since it was read is kept, if its state is given."""
    await job_at(journal, SUBMITTING)
    with pytest.raises(JournalError, match="no job 'k'"):
        await journal.forget("k", PLANNED)
    await journal.forget("k", SUBMITTING)
    assert await journal.jobs() == []


async def test_an_unknown_job_cannot_be_forgotten(journal: BaseJournal) -> None:
    """Removing an unknown job is an error, and only the key identifies it."""
    await job_at(journal, ACCEPTED)
    for name in ["unknown", "task of k"]:
        with pytest.raises(JournalError, match=f"no job '{name}'"):
            await journal.forget(name)
    assert len(await journal.jobs()) == 1


@pytest.mark.parametrize("state", JobState)
async def test_a_charge_is_written_to_a_job_in_doubt_only(
    journal: BaseJournal, state: JobState
) -> None:
    """What the log of the key shows matters as long as a job is in doubt."""
    await job_at(journal, state)
    await journal.charge("k")
    (job,) = await journal.jobs()
    assert job.proof == (CHARGE if state is IN_DOUBT else None)
    assert job.state is state


# Reading


async def test_a_job_is_found_by_each_of_its_names(journal: BaseJournal) -> None:
    """Key, task id and custom id lead to the job, the key before the others."""
    await job_at(journal, ACCEPTED, "a")
    await journal.plan(wanted("b", custom_id="a"), NOW)
    await journal.plan(wanted("c", custom_id="mine"), NOW)
    await journal.plan(wanted("d", custom_id="mine"), NOW)
    names = ["a", "b", "task of a", "mine", "unknown"]
    found = [await journal.find(name) for name in names]
    assert [job and job.key for job in found] == ["a", "b", "a", "c", None]


async def test_jobs_come_in_the_order_in_which_they_were_planned(journal: BaseJournal) -> None:
    """Jobs are listed in the order of planning, all or those in some states."""
    for at, key in [(3.0, "late"), (1.0, "early"), (1.0, "as early")]:
        await journal.plan(wanted(key), at)
    await journal.step("early", SUBMITTING, 5.0)
    assert [job.key for job in await journal.jobs()] == ["early", "as early", "late"]
    assert [job.key for job in await journal.jobs(PLANNED, SAVED)] == ["as early", "late"]


async def test_counts_have_every_state(journal: BaseJournal) -> None:
    """The counts have each state, including those without jobs."""
    await job_at(journal, SAVED, "a")
    await job_at(journal, IN_DOUBT, "b")
    counts = await journal.counts()
    assert counts == dict.fromkeys(JobState, 0) | {SAVED: 1, IN_DOUBT: 1}


async def test_durations_are_of_finished_jobs(journal: BaseJournal) -> None:
    """Durations are of jobs that were accepted and finished, the latest first."""
    for number, (accepted, finished) in enumerate([(0.0, 104.0), (200.0, 491.0)]):
        key = f"k{number}"
        await journal.plan(wanted(key, model="gen4", seconds=5), 0.0)
        await journal.step(key, SUBMITTING, accepted)
        await journal.step(key, ACCEPTED, accepted, task_id=key)
        await journal.step(key, FINISHED, finished)
    await job_at(journal, ACCEPTED)
    assert await journal.durations() == [
        ("TextToVideo", "gen4", 5, 291.0),
        ("TextToVideo", "gen4", 5, 104.0),
    ]


async def test_occurrences_count_from_each_start(journal: BaseJournal) -> None:
    """Equal requests are counted within one run, and are the same jobs again in the next."""
    plans = {mark: Plan(key="", fingerprint=mark, endpoint="TextToVideo") for mark in "ab"}
    for now in (1.0, 2.0):
        await journal.start_run()
        jobs = [await journal.plan_next(plans[mark], now) for mark in "aaba"]
        a, b = jobs[0].fingerprint, jobs[2].fingerprint
        assert [job.key for job in jobs] == [f"{a}:1", f"{a}:2", f"{b}:1", f"{a}:3"]
        assert a != b
        assert [job.planned_at for job in jobs] == [1.0] * 4


# Listening


async def test_events_write_that_a_task_ended_and_its_clip_is_saved(journal: BaseJournal) -> None:
    """Events take a job from ACCEPTED over FINISHED to SAVED, with points and size."""
    await job_at(journal, ACCEPTED)
    before = time.time()
    journal.note(settled(TaskState.SUCCEEDED))
    journal.note(DownloadFinished("task of k", 4242))
    job = await journal.find("k")
    assert job is not None
    assert (job.state, job.points, job.refunded, job.file_bytes) == (SAVED, 320.0, False, 4242)
    assert job.finished_at is not None
    assert before <= job.finished_at <= time.time()


@pytest.mark.parametrize("end", [TaskState.FAILED, TaskState.CANCELED])
async def test_events_write_failures(journal: BaseJournal, end: TaskState) -> None:
    """A task that failed or was cancelled makes its job FAILED, with its refund."""
    await job_at(journal, ACCEPTED)
    journal.note(settled(end))
    job = await journal.find("k")
    assert job is not None
    assert (job.state, job.error, job.points, job.refunded) == (FAILED, "TaskFailed", 320.0, True)


async def test_a_second_end_changes_nothing(journal: BaseJournal) -> None:
    """If the end of a task is reported again, or differently, the row stays as it is."""
    before = await job_at(journal, SAVED)
    journal.note(settled(TaskState.FAILED))
    journal.note(settled(TaskState.SUCCEEDED))
    assert await journal.find("k") == before


async def test_unknown_tasks_and_other_events_are_ignored(
    journal: BaseJournal, caplog: pytest.LogCaptureFixture
) -> None:
    """Events of tasks that are not in the journal change nothing and raise nothing."""
    before = await job_at(journal, ACCEPTED)
    journal.note(settled(TaskState.SUCCEEDED, "a stranger"))
    journal.note(settled(TaskState.SUCCEEDED, "k"))
    journal.note(DownloadFinished("a stranger", 1))
    journal.note(TaskSubmitted("task of k", "TextToVideo", 1.0))
    assert await journal.jobs() == [before]
    assert caplog.records == []


async def test_what_was_handed_out_is_not_unfinished(tmp_path: Path) -> None:
    """Until bytes of its clip arrive, since an app may be stopped while it saves."""
    journal = Journal(tmp_path / "run.db")
    for number, state in enumerate(("accepted", "finished")):
        plan = plan_of(TextToVideo("a kitten"), f"{number}", tag="shop")
        await journal.plan(plan, 1.0)
        await journal.step(plan.key, JobState.SUBMITTING, 2.0)
        await journal.step(plan.key, JobState.ACCEPTED, 3.0, task_id=f"t-{number}")
        if state == "finished":
            await journal.step(plan.key, JobState.FINISHED, 4.0)
    assert [(job.task_id, job.tag) for job in await journal.unfinished()] == [
        ("t-0", "shop"),
        ("t-1", "shop"),
    ]
    journal.note(ClipHandedOut("t-1"))
    assert [job.task_id for job in await journal.unfinished()] == ["t-0"]
    journal.note(DownloadStarted("t-1", 0, None))
    assert [job.task_id for job in await journal.unfinished()] == ["t-0", "t-1"]
    journal.note(DownloadFinished("t-1", 5))
    assert [job.task_id for job in await journal.unfinished()] == ["t-0"]
    await journal.aclose()


EVENTS: Final = (
    settled(TaskState.SUCCEEDED, ""),
    settled(TaskState.FAILED, ""),
    DownloadStarted("", 0, None),
    DownloadFinished("", 7),
    ClipHandedOut(""),
)


@pytest.mark.parametrize(
    "places", [*itertools.product(range(5), repeat=2), (0, 2, 3), (2, 3, 4), (3, 0, 3)]
)
async def test_events_may_be_written_at_once(journal: BaseJournal, places: tuple[int, ...]) -> None:
    """A row in any state is as if they had been written one after the other."""
    for state, task_id in itertools.product(JobState, ("together", "apart")):
        key = f"{state.value} {task_id}"
        await journal.plan(wanted(key), NOW)
        setting = f"state = '{state.value}', task_id = '{task_id}'"
        await rows_of(journal, f"UPDATE job SET {setting} WHERE key = '{key}' RETURNING 1")  # noqa: S608
    known = [note for place in places if (note := note_of(EVENTS[place], NOW))]
    for task_id, groups in (("together", [known]), ("apart", [[note] for note in known])):
        for group in groups:
            notes = [attrs.evolve(note, task_id=task_id) for note in group]
            await journal._perform(partial(write, notes))
    rows: dict[str | None, list[Job]] = {"together": [], "apart": []}
    for job in await journal.jobs():
        bare = attrs.evolve(job, key="", fingerprint="", task_id=None)
        rows[job.task_id].append(bare)
    assert rows["together"] == rows["apart"]
    assert len(rows["together"]) == len(JobState)


# One submission


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (NotSent("a", "b", "c", None, None, Fate.UNSENT), PLANNED),
        (RateLimited("a", "b", "c", code="busy", fate=Fate.REFUSED), PLANNED),
        (InvalidRequest("a", "b", "c", code="busy", fate=Fate.REJECTED), FAILED),
        (UsageError("a", "b", "c"), FAILED),
        (NoReply("a", "b", "c", None, None, Fate.UNKNOWN), IN_DOUBT),
    ],
)
async def test_a_submission_that_failed_is_written_by_its_fate(
    journal: BaseJournal, error: RunwayError, state: JobState
) -> None:
    """The fate of a failed request decides if its job is PLANNED, FAILED or IN_DOUBT."""
    await journal.plan(wanted(), NOW)
    entry = Entry(journal, "k", ManualClock(), Hooks())
    await entry.sending()
    await entry.failed(error)
    job = await journal.find("k")
    assert job is not None
    assert (job.state, job.error) == (state, type(error).__name__)
    assert job.code == getattr(error, "code", None)


@pytest.mark.parametrize("task_id", ["t-1", None])
async def test_a_doubt_keeps_the_task_id_of_a_damaged_response(
    journal: BaseJournal, task_id: str | None
) -> None:
    """The id from a damaged response is in the row, and the job is found by it."""
    await journal.plan(wanted(), NOW)
    entry = Entry(journal, "k", ManualClock(), Hooks())
    await entry.sending()
    await entry.failed(NoReply("a", "b", "c", task_id, None, Fate.UNKNOWN))
    (job,) = await journal.jobs()
    assert (job.state, job.error, job.task_id) == (IN_DOUBT, "NoReply", task_id)
    assert await journal.find("t-1") == (job if task_id else None)


@pytest.mark.parametrize(
    ("error", "name"),
    [(ZeroDivisionError(), "ZeroDivisionError"), (asyncio.CancelledError(), "NoReply")],
)
async def test_what_is_not_our_error_leaves_a_doubt(
    journal: BaseJournal, error: BaseException, name: str
) -> None:
    """A defect, or the end of the loop, says nothing about a request that was sent."""
    await journal.plan(wanted(), NOW)
    entry = Entry(journal, "k", ManualClock(), Hooks())
    await entry.sending()
    await entry.failed(error)
    (job,) = await journal.jobs()
    assert (job.state, job.error, job.code, job.task_id) == (IN_DOUBT, name, None, None)


UNFIT: Final = ["t-\ud800", "t-\0"]
"""Texts that no journal can hold."""


@pytest.mark.parametrize("task_id", UNFIT)
async def test_an_accepted_job_whose_id_cannot_be_written_is_in_doubt(
    journal: BaseJournal, task_id: str
) -> None:
    """It is no longer in flight, and cannot be settled as not accepted; an event has the id."""
    await journal.plan(wanted(), NOW)
    recorder = EventRecorder()
    entry = Entry(journal, "k", ManualClock(), Hooks([recorder]))
    await entry.sending()
    await entry.accepted(task_id)
    (job,) = await journal.jobs()
    assert (job.state, job.task_id, job.error) == (IN_DOUBT, None, "JournalError")
    assert (job.proof, await journal.in_flight()) == (CHARGE, 0)
    reason = "The journal cannot hold this task_id."
    assert recorder.events == [SubmissionUnrecorded("k", reason, task_id)]


@pytest.mark.parametrize("task_id", UNFIT)
async def test_a_doubt_whose_id_cannot_be_written_keeps_the_rest(
    journal: BaseJournal, task_id: str
) -> None:
    """The row has the error and the code, and an event has the id."""
    await journal.plan(wanted(), NOW)
    recorder = EventRecorder()
    entry = Entry(journal, "k", ManualClock(), Hooks([recorder]))
    await entry.sending()
    unclear = {"code": "insert_task_failed", "fate": Fate.UNKNOWN}
    await entry.failed(GatewayDown("a", "b", "c", task_id, **unclear))
    (job,) = await journal.jobs()
    assert (job.state, job.task_id, job.error) == (IN_DOUBT, None, "GatewayDown")
    assert (job.code, job.proof) == ("insert_task_failed", None)
    (event,) = recorder.all(SubmissionUnrecorded)
    assert (event.task_id, event.error) == (task_id, "GatewayDown")


async def test_a_late_outcome_that_is_refused_changes_nothing(journal: BaseJournal) -> None:
    """What the journal refuses of an earlier attempt does not put a later one in doubt."""
    await journal.plan(wanted(), NOW)
    late = Entry(journal, "k", ManualClock(), Hooks())
    await late.sending()
    await journal.step("k", PLANNED, NOW)
    await journal.step("k", SUBMITTING, NOW)
    await late.accepted("t-\0")
    assert [job.state for job in await journal.jobs()] == [SUBMITTING]


async def test_a_webhook_whose_id_cannot_be_written_leaves_the_doubt(
    journal: BaseJournal,
) -> None:
    """Nothing was sent by this entry: the row stays as it is, and an event has the id."""
    before = await job_at(journal, IN_DOUBT)
    recorder = EventRecorder()
    entry = Entry(journal, "k", ManualClock(), Hooks([recorder]))
    await entry.accepted("t-\0", NOW, proof="webhook")
    assert await journal.jobs() == [before]
    assert [event.task_id for event in recorder.all(SubmissionUnrecorded)] == ["t-\0"]


async def test_the_end_of_a_task_without_a_row_is_no_error(
    journal: BaseJournal, caplog: pytest.LogCaptureFixture
) -> None:
    """No row can have such an id, so there is nothing to write."""
    before = await job_at(journal, ACCEPTED)
    for task_id in UNFIT:
        journal.note(settled(TaskState.SUCCEEDED, task_id))
    await journal.flush()
    assert (await journal.jobs(), caplog.messages) == ([before], [])


async def test_a_refused_job_has_no_task(journal: BaseJournal) -> None:
    """Only jobs that are in doubt or accepted have a task."""
    await journal.plan(wanted(), NOW)
    entry = Entry(journal, "k", ManualClock(), Hooks())
    await entry.sending()
    await entry.failed(InvalidRequest("a", "b", "c", "t-1", fate=Fate.REJECTED))
    (job,) = await journal.jobs()
    assert (job.state, job.task_id) == (FAILED, None)


@pytest.mark.parametrize(
    ("code", "written"),
    [
        ("task_not_exist", "task_not_exist"),
        ("400", "400"),
        ("SAFETY.INPUT:text/1-2", "SAFETY.INPUT:text/1-2"),
        ("x" * 64, "x" * 64),
        ("x" * 65, None),
        ("a marked kitten", None),
        ("kitten\n", None),
        ("\ud800", None),
        ("", None),
    ],
)
async def test_only_a_code_is_written_as_a_code(
    journal: BaseJournal, code: str, written: str | None
) -> None:
    """A gateway may put a sentence that quotes the prompt where a code belongs."""
    await journal.plan(wanted(), NOW)
    entry = Entry(journal, "k", ManualClock(), Hooks())
    await entry.sending()
    await entry.failed(InvalidRequest("a", "b", "c", code=code, fate=Fate.REJECTED))
    (job,) = await journal.jobs()
    assert (job.state, job.code) == (FAILED, written)


async def test_a_submission_that_was_accepted_has_its_id(journal: BaseJournal) -> None:
    """The row is SUBMITTING while the request is in flight, and has the id afterwards."""
    await journal.plan(wanted(), NOW)
    entry = Entry(journal, "k", ManualClock(unix=99.0), Hooks())
    await entry.sending()
    assert await journal.counts() == dict.fromkeys(JobState, 0) | {SUBMITTING: 1}
    await entry.accepted("t-1")
    job = await journal.find("t-1")
    assert job is not None
    assert (job.key, job.state, job.submitted_at, job.accepted_at) == ("k", ACCEPTED, 99.0, 99.0)


# Values


WRONG: Final[dict[str, Callable[[BaseJournal], Awaitable[Any]]]] = {
    "key": lambda journal: journal.plan(wanted("\ud800"), NOW),
    "custom_id": lambda journal: journal.plan(wanted(custom_id="a\udfff"), NOW),
    "model": lambda journal: journal.plan_next(wanted(model="\ud800"), NOW),
    "seconds": lambda journal: journal.plan(wanted(seconds=2**63), NOW),
    "fingerprint": lambda journal: journal.plan(wanted(fingerprint="\ud800"), NOW),
    "task_id": lambda journal: journal.step("k", ACCEPTED, NOW, task_id="\ud800"),
    "file_bytes": lambda journal: journal.step("k", ACCEPTED, NOW, file_bytes=-(2**63) - 1),
    "points": lambda journal: journal.step("k", ACCEPTED, NOW, points=object()),
    "now": lambda journal: journal.step("k", ACCEPTED, 2**64),
    "proof": lambda journal: journal.resolve("k", task_id="t-1", proof="\ud800"),
    "tag": lambda journal: journal.plan(wanted(tag="a\0b"), NOW),
}


@pytest.mark.parametrize("field", WRONG)
async def test_a_value_that_no_journal_can_hold_is_named(journal: BaseJournal, field: str) -> None:
    """NUL, lone surrogates, large numbers and objects are an error that names the field."""
    before = await job_at(journal, SUBMITTING)
    with pytest.raises(JournalError, match=f"cannot hold this {field}") as caught:
        await WRONG[field](journal)
    assert caught.value.money == MONEY
    assert await journal.jobs() == [before]


@pytest.mark.parametrize("plan", [lambda j, *a: j.plan(*a), lambda j, *a: j.plan_next(*a)])
async def test_an_instant_that_no_journal_can_hold_is_named(
    journal: BaseJournal, plan: Callable[..., Awaitable[Job]]
) -> None:
    """A time that is not a 64-bit number is an error, and nothing is planned."""
    with pytest.raises(JournalError, match="cannot hold this now"):
        await plan(journal, wanted(), 2**64)
    assert await journal.jobs() == []


@pytest.mark.parametrize(
    "act",
    [
        lambda j, key: j.forget(key),
        lambda j, key: j.step(key, PLANNED, NOW),
        lambda j, key: j.charge(key),
    ],
)
async def test_a_key_that_no_journal_can_hold_is_named(
    journal: BaseJournal, act: Callable[[Journal, str], Awaitable[Any]]
) -> None:
    """In each method that takes a key, the error names the key."""
    with pytest.raises(JournalError, match="cannot hold this key"):
        await act(journal, "\ud800")


@pytest.mark.parametrize("name", UNFIT)
async def test_no_job_has_a_name_that_no_journal_can_hold(journal: BaseJournal, name: str) -> None:
    """Gateways list tasks with any id: looking for one is no error."""
    assert await journal.find(name) is None


@pytest.mark.parametrize("name", ["state", "unheard_of", "points = 1, error"])
async def test_a_step_changes_columns_only(journal: BaseJournal, name: str) -> None:
    """Changes cannot set the state or a column that does not exist."""
    before = await job_at(journal, ACCEPTED)
    with pytest.raises(JournalError, match="A step cannot change"):
        await journal.step("k", FINISHED, NOW, **{name: "saved"})
    assert await journal.jobs() == [before]


@pytest.mark.parametrize("text", ["\U0001f431", "x" * 100_000, "'; DROP TABLE job; --"])
async def test_other_text_is_kept_as_it_is(journal: BaseJournal, text: str) -> None:
    """Keys and names may hold emoji, quotes and any length."""
    await journal.plan(wanted(text, custom_id=f"my {text}"), NOW)
    for name in (text, f"my {text}"):
        job = await journal.find(name)
        assert job is not None
        assert (job.key, job.custom_id) == (text, f"my {text}")


# Damage


async def damaged(journal: BaseJournal, setting: str) -> None:
    """Write a finished job, of which a column was overwritten."""
    await job_at(journal, FINISHED)
    if not isinstance(journal, Journal):  # Postgres spells them differently
        setting = setting.replace("-9e999", "'-Infinity'").replace("9e999", "'Infinity'")
    await rows_of(journal, f"UPDATE job SET {setting} RETURNING 1")  # noqa: S608


@pytest.mark.parametrize("act", [lambda j: j.jobs(), lambda j: j.counts(), lambda j: j.find("k")])
async def test_an_unknown_state_is_an_error(
    journal: BaseJournal, act: Callable[[BaseJournal], Awaitable[Any]]
) -> None:
    """An unknown state is an error that quotes its start; no job is left out."""
    await damaged(journal, f"state = 'paid{'!' * 100}'")
    with pytest.raises(JournalError, match=r"damaged: the state of a job is 'paid!{36}'"):
        await act(journal)


@pytest.mark.parametrize("at", ["1e300", "9e999", "-1e300", "-9e999"])
async def test_impossible_durations_are_ignored(journal: BaseJournal, at: str) -> None:
    """An impossible duration is left out of what the schedule learns from."""
    await damaged(journal, f"finished_at = {at}")
    assert await journal.durations() == []


@pytest.mark.parametrize("at", ["1e300", "9e999", "-1e300", "-9e999"])
async def test_impossible_starts_are_ignored(journal: BaseJournal, at: str) -> None:
    """The same holds if the instant of acceptance is impossible."""
    await damaged(journal, f"accepted_at = {at}")
    assert await journal.durations() == []


# Salt


async def test_a_named_job_is_keyed_as_well(journal: BaseJournal) -> None:
    """The fingerprint of a named job is keyed by its journal, too."""
    plan = plan_of(TextToVideo("a kitten"), "id:mine", "mine")
    job = await journal.plan(plan, NOW)
    assert job.key == "id:mine"
    assert job.fingerprint != plan.fingerprint
