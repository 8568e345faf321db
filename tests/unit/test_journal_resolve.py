"""Jobs in doubt: how they are found, and what is recorded of them."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from support.jobs import rows_of

from fuhu_runway import Journal
from fuhu_runway.errors import JournalError, UsageError
from fuhu_runway.hooks import TaskSettled
from fuhu_runway.journal import BaseJournal, JobState, Plan, journal_at, plan_of
from fuhu_runway.models import ActOne, TaskState, TextToVideo

PLAN: Final = Plan(key="k", fingerprint="f", endpoint="TextToVideo", custom_id="shot 7")


@pytest.fixture
async def journal(store: BaseJournal) -> BaseJournal:
    """A journal with a job in doubt, a job with a task, and a planned one."""
    journal = store
    other = Plan(key="other", fingerprint="g", endpoint="TextToVideo")
    for plan in (PLAN, other):
        await journal.plan(plan, 1.0)
        await journal.step(plan.key, JobState.SUBMITTING, 2.0)
    await journal.step("k", JobState.IN_DOUBT, 3.0, error="NoReply")
    await journal.step("other", JobState.ACCEPTED, 3.0, task_id="t-1")
    await journal.plan(attrs.evolve(other, key="new"), 4.0)
    return journal


@pytest.mark.parametrize("name", ["k", "shot 7"])
async def test_a_job_in_doubt_was_accepted(journal: BaseJournal, name: str) -> None:
    """By its key or its custom id, it becomes accepted as the task that was found."""
    job = await journal.resolve(name, task_id="t-2")
    assert (job.key, job.state, job.task_id) == ("k", JobState.ACCEPTED, "t-2")
    assert [job.key for job in await journal.unfinished()] == ["k", "other"]


@pytest.mark.parametrize("name", ["k", "shot 7"])
async def test_a_job_in_doubt_was_not_accepted(journal: BaseJournal, name: str) -> None:
    """It becomes planned, so that it may be submitted again."""
    job = await journal.resolve(name, accepted=False)
    assert (job.state, job.task_id, job.submissions) == (JobState.PLANNED, None, 1)
    assert await journal.find("k") == job


async def test_the_task_that_a_response_named_may_be_another_jobs(store: BaseJournal) -> None:
    """A gateway may answer two submits with one id; then both jobs have it."""
    for key in ("a", "b"):
        await store.plan(attrs.evolve(PLAN, key=key), 1.0)
        await store.step(key, JobState.SUBMITTING, 2.0)
        await store.step(key, JobState.IN_DOUBT, 3.0, task_id="t-1")
    for key in ("a", "b"):
        job = await store.resolve(key, task_id="t-1")
        assert (job.state, job.task_id) == (JobState.ACCEPTED, "t-1")


@pytest.mark.parametrize(
    ("key", "fate", "field", "message"),
    [
        ("unknown", {"accepted": False}, "key", "no such job"),
        ("new", {"accepted": False}, "key", "The job is planned."),
        ("other", {"task_id": "t-1"}, "key", "The job is accepted."),
        ("k", {"task_id": "t-1"}, "task_id", "belongs to another job"),
        ("k", {}, "task_id", "either task_id"),
        ("k", {"task_id": ""}, "task_id", "either task_id"),
        ("k", {"accepted": True}, "task_id", "either task_id"),
        ("k", {"task_id": "t-2", "accepted": False}, "task_id", "either task_id"),
        ("k", {"task_id": "t-2", "accepted": True}, "task_id", "either task_id"),
    ],
)
async def test_a_wrong_resolve_changes_nothing(
    journal: BaseJournal, key: str, fate: dict[str, Any], field: str, message: str
) -> None:
    """The error names the argument that is wrong, and each job stays what it was."""
    before = await journal.jobs()
    with pytest.raises(UsageError, match=message) as wrong:
        await journal.resolve(key, **fate)
    assert wrong.value.field == field
    assert wrong.value.money == "Nothing was sent or charged."
    assert await journal.jobs() == before


async def test_a_task_that_cannot_be_stored_is_refused(journal: BaseJournal) -> None:
    """Half a character is an error, and the job stays in doubt."""
    with pytest.raises(JournalError, match="this task_id"):
        await journal.resolve("k", task_id="\ud800")
    assert (await journal.jobs(JobState.IN_DOUBT))[0].key == "k"


async def test_jobs_are_found_by_their_request(store: BaseJournal) -> None:
    """Exactly those with the same content, although the journal does not contain it."""
    kitten = TextToVideo("a kitten")
    for request in (kitten, TextToVideo("a puppy"), kitten):
        await store.plan_next(plan_of(request), 1.0)
    first, _, last = await store.jobs()
    assert await store.jobs_of(kitten) == [first, last]
    assert await store.jobs_of(TextToVideo("a kitten", seconds=5)) == []


async def test_a_job_remembers_where_its_request_was_read(store: BaseJournal) -> None:
    """A line that moved is corrected; a run that does not know it changes nothing."""
    seen = []
    for source in ("p.txt:17", None, "p.txt:18", "p.txt:18"):
        job = await store.plan(attrs.evolve(PLAN, source=source), 1.0)
        seen.append(job.source)
    assert seen == ["p.txt:17", "p.txt:17", "p.txt:18", "p.txt:18"]
    assert await rows_of(store, "SELECT source FROM job") == [{"source": "p.txt:18"}]


@pytest.mark.parametrize("proof", ["person", "list of tasks"])
@pytest.mark.parametrize("fate", [{"task_id": "t-2"}, {"accepted": False}])
async def test_the_row_says_what_settled_a_doubt(
    journal: BaseJournal, fate: dict[str, Any], proof: str
) -> None:
    """It has the proof, by default a person's word, until the job is submitted again."""
    named = {} if proof == "person" else {"proof": proof}
    job = await journal.resolve("k", **fate, **named)
    assert job.proof == proof
    if job.state is JobState.PLANNED:
        assert (await journal.step("k", JobState.SUBMITTING, 5.0)).proof is None


async def test_an_accepted_job_has_no_error(journal: BaseJournal) -> None:
    """Once the task is known, the row no longer says why it was in doubt."""
    assert (await journal.jobs(JobState.IN_DOUBT))[0].error == "NoReply"
    job = await journal.resolve("k", task_id="t-2")
    assert (job.error, job.code) == (None, None)


async def test_an_outcome_counts_for_its_own_attempt_only(journal: BaseJournal) -> None:
    """If a job was submitted again since, the outcome of the attempt before changes nothing."""
    await journal.resolve("k", accepted=False)
    job = await journal.step("k", JobState.SUBMITTING, 5.0)
    assert job.submissions == 2
    for to in (JobState.PLANNED, JobState.ACCEPTED, JobState.FAILED, JobState.IN_DOUBT):
        with pytest.raises(JournalError, match="Another process has taken over the job 'k'"):
            await journal.step("k", to, 6.0, attempt=1)
    assert await journal.find("k") == job
    assert (await journal.step("k", JobState.PLANNED, 6.0, attempt=2)).state is JobState.PLANNED


async def test_a_task_that_the_journal_does_not_have_is_adopted(journal: BaseJournal) -> None:
    """Its row is accepted, known by the task, and goes on like any other."""
    job = await journal.adopt("t-9", "TextToVideo", 7.0, model="gen4")
    assert (job.key, job.state, job.task_id) == ("task:t-9", JobState.ACCEPTED, "t-9")
    assert (job.endpoint, job.model, job.accepted_at) == ("TextToVideo", "gen4", 7.0)
    assert job in await journal.unfinished()
    assert job == await journal.find("t-9")


@pytest.mark.parametrize("task_id", ["t-1", "t-9"])
async def test_a_task_belongs_to_one_job_only(journal: BaseJournal, task_id: str) -> None:
    """A task that a job has, also one that was adopted, cannot be adopted."""
    await journal.adopt("t-9", "TextToVideo", 7.0)
    before = await journal.jobs()
    with pytest.raises(UsageError, match="belongs to another job"):
        await journal.adopt(task_id, "TextToVideo", 8.0)
    assert await journal.jobs() == before


async def test_an_adopted_row_keeps_its_name(journal: BaseJournal) -> None:
    """A row that is called like the task, but lost its id, is not replaced."""
    await journal.plan(Plan(key="task:t-9", fingerprint="h", endpoint="TextToVideo"), 1.0)
    with pytest.raises(UsageError, match="belongs to another job"):
        await journal.adopt("t-9", "TextToVideo", 7.0)


async def test_tasks_are_ignored_once_and_for_all(journal: BaseJournal) -> None:
    """They are remembered, each once, and are no jobs."""
    assert await journal.ignored() == set()
    await journal.ignore("t-7", "t-8")
    await journal.ignore("t-8")
    await journal.ignore()
    assert await journal.ignored() == {"t-7", "t-8"}
    assert await journal.find("t-7") is None
    with pytest.raises(JournalError, match="cannot hold this task_id"):
        await journal.ignore("\ud800")


async def test_a_job_is_compared_by_its_prompt(journal: BaseJournal) -> None:
    """Its row has the keyed hash of the prompt, whatever white space separates the words."""
    request = TextToVideo("a  kitten\n on a mat ", seconds=5)
    job = await journal.plan_next(plan_of(request), 1.0)
    first, second, other = await journal.hash_prompts(
        ["a kitten on a mat", "\ta kitten on  a mat", "a kitten"]
    )
    assert job.prompt_hash == first == second != other
    assert job.prompt_hash != plan_of(request).prompt_hash
    assert len(first) == 64


async def test_a_request_without_a_prompt_has_no_hash(journal: BaseJournal) -> None:
    """Its column is empty, as is that of a row of an earlier version."""
    request = ActOne("https://example.com/1.mp4", "https://example.com/1.png")
    job = await journal.plan_next(plan_of(request), 1.0)
    assert job.prompt_hash is None


async def test_flush_returns_once_events_are_written(tmp_path: Path) -> None:
    """What was noted before is in the file."""
    journal = Journal(tmp_path / "run.db")
    await journal.adopt("t-1", "TextToVideo", 1.0)
    journal.note(TaskSettled("t-1", TaskState.SUCCEEDED, 3, 320.0, refunded=False))
    await journal.flush()
    shutil.copy(tmp_path / "run.db", tmp_path / "copy.db")
    shutil.copy(tmp_path / "run.db-wal", tmp_path / "copy.db-wal")
    with closing(sqlite3.connect(tmp_path / "copy.db")) as db:
        assert db.execute("SELECT state, points FROM job").fetchall() == [("finished", 320.0)]
    await journal.aclose()


def test_states_are_sorted_into_groups() -> None:
    """Each property is true of these states and no others, written by hand."""
    groups = {
        name: {state.value for state in JobState if getattr(state, name)}
        for name in vars(JobState)
        if name.startswith("is_")
    }
    assert groups == {
        "is_unanswered": {"submitting", "in doubt"},
        "is_answered": {"accepted", "finished", "saved", "failed"},
        "is_unfinished": {"accepted", "finished"},
        "is_at_risk": {"submitting", "in doubt", "accepted", "finished"},
        "is_in_flight": {"submitting", "accepted"},
        "is_over": {"saved", "failed", "in doubt"},
    }


async def test_a_client_takes_a_journal_of_any_kind(tmp_path: Path) -> None:
    """A path is opened as a file, and a journal is used as it is."""
    journal = Journal(tmp_path / "run.db")
    assert journal_at(journal) is journal
    opened = journal_at(str(tmp_path / "run.db"))
    assert isinstance(opened, Journal)
    assert opened.path == tmp_path / "run.db"
