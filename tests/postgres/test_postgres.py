"""A journal in Postgres: what several processes may do to one job, and what an outage does."""

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from support.clients import EventRecorder
from support.clock import ManualClock, until
from support.jobs import (
    ACCEPTED,
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
from support.relays import Relay, relay_to

from fuhu_runway import Client
from fuhu_runway._journal import actions, base
from fuhu_runway._session.entry import Entry
from fuhu_runway.errors import JournalError, JournalTooNew, UsageError
from fuhu_runway.hooks import (
    ClipHandedOut,
    DownloadFinished,
    DownloadStarted,
    Hooks,
    SubmissionUnrecorded,
    TaskSubmitted,
)
from fuhu_runway.journal import CHARGE, Job, JobState, journal_at, plan_of
from fuhu_runway.models import TaskState, TextToVideo

psycopg = pytest.importorskip("psycopg")

from fuhu_runway.contrib import _postgres  # noqa: E402
from fuhu_runway.contrib import postgres as module  # noqa: E402
from fuhu_runway.contrib.postgres import PostgresJournal  # noqa: E402
from fuhu_runway.contrib.shared_pace import SharedPace  # noqa: E402

MONEY: Final = "Nothing was sent or charged."
PASSWORD: Final = "marked-5f0c"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[PostgresJournal]:
    """Yield a journal that is closed afterwards; for the others, a process of its own."""
    journal = PostgresJournal(url, **options)
    try:
        yield journal
    finally:
        await journal.aclose()


@pytest.fixture
async def journal(journal_url: str) -> AsyncIterator[PostgresJournal]:
    """Return an empty journal."""
    async with opened(journal_url) as journal:
        for table in ("job", "ignored"):
            await rows_of(journal, f"DELETE FROM {table} RETURNING 1")  # noqa: S608
        yield journal


@pytest.fixture
async def other(journal: PostgresJournal, journal_url: str) -> AsyncIterator[PostgresJournal]:
    """Return the same journal, as another process has it."""
    async with opened(journal_url) as other:
        yield other


def run(statement: str, url: str) -> None:
    """Run a statement without any journal."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(statement)


async def test_the_rows_hold_no_prompt(journal: PostgresJournal) -> None:
    """Nor its bare hash, which a guess could be compared with."""
    plan = plan_of(TextToVideo("a marked kitten"))
    await journal.plan_next(plan, NOW)
    rows = str(await rows_of(journal, "SELECT * FROM job"))
    for secret in ("marked", plan.fingerprint, plan.prompt_hash or ""):
        assert secret not in rows


# Who is in charge


async def test_the_one_that_took_a_job_last_may_send(
    journal: PostgresJournal, other: PostgresJournal
) -> None:
    """Another process took the job, so the first gets an error, and sends nothing."""
    await journal.plan(wanted(), NOW)
    await other.plan(wanted(), NOW)
    with pytest.raises(JournalError, match="Another process has taken over the job 'k'") as caught:
        await journal.step("k", SUBMITTING, NOW)
    assert caught.value.money == "Nothing was sent or charged by this process."
    assert (await other.step("k", SUBMITTING, NOW)).submissions == 1
    with pytest.raises(JournalError, match="submitting cannot become submitting"):
        await other.step("k", SUBMITTING, NOW)


async def test_what_another_process_was_sending_is_in_doubt(
    journal: PostgresJournal, other: PostgresJournal
) -> None:
    """Taking up such a job tells so, and it is not sent again; an error that is known stays."""
    await job_at(journal, SUBMITTING)
    job = await other.plan(wanted(), NOW)
    assert (job.state, job.error, job.submissions) == (IN_DOUBT, "NoReply", 1)
    with pytest.raises(JournalError, match="in doubt cannot become submitting"):
        await other.step("k", SUBMITTING, NOW)


async def test_what_this_process_is_sending_stays_so(journal: PostgresJournal) -> None:
    """If it gets the job a second time, it finds the submission that is running."""
    await job_at(journal, SUBMITTING)
    assert (await journal.plan(wanted(), NOW)).state is SUBMITTING


@pytest.mark.parametrize("state", [PLANNED, ACCEPTED, FINISHED, SAVED, FAILED, IN_DOUBT])
async def test_taking_up_a_job_leaves_other_states(
    journal: PostgresJournal, other: PostgresJournal, state: JobState
) -> None:
    """Only a job that was being sent changes its state."""
    before = await job_at(journal, state)
    assert await other.plan(wanted(), NOW + 60) == before


async def test_a_late_id_settles_the_doubt(
    journal: PostgresJournal, other: PostgresJournal
) -> None:
    """The process that was taken for dead writes the id; then the row has no error."""
    attempt = (await job_at(journal, SUBMITTING)).submissions
    await other.plan(wanted(), NOW)
    job = await journal.step("k", ACCEPTED, NOW, attempt=attempt, task_id="t-1")
    assert (job.state, job.task_id, job.error) == (ACCEPTED, "t-1", None)
    assert await other.find("t-1") == job


async def test_a_late_refusal_of_an_earlier_attempt_changes_nothing(
    journal: PostgresJournal, other: PostgresJournal
) -> None:
    """The job was submitted again meanwhile, and that attempt may be paid for."""
    attempt = (await job_at(journal, SUBMITTING)).submissions
    await other.plan(wanted(), NOW)
    await other.resolve("k", accepted=False)
    before = await other.step("k", SUBMITTING, NOW)
    with pytest.raises(JournalError, match="has taken over"):
        await journal.step("k", PLANNED, NOW, attempt=attempt)
    assert await other.find("k") == before


async def test_ten_processes_send_a_job_once(journal_url: str, journal: PostgresJournal) -> None:
    """Of ten that take up each of 20 jobs at once, one sends it."""
    takers = [PostgresJournal(journal_url) for _ in range(10)]

    async def take(taker: PostgresJournal, key: str) -> bool:
        await taker.plan(wanted(key), NOW)
        try:
            await taker.step(key, SUBMITTING, NOW)
        except JournalError:
            return False
        return True

    for number in range(20):
        sent = await asyncio.gather(*(take(taker, f"k{number}") for taker in takers))
        assert sum(sent) == 1
    assert {job.submissions for job in await journal.jobs()} == {1}
    for taker in takers:
        await taker.aclose()


async def test_a_task_is_given_to_one_job(journal: PostgresJournal, other: PostgresJournal) -> None:
    """Of two processes that find one task for two doubts at once, one records it."""
    for key in "ab":
        await job_at(journal, IN_DOUBT, key)
    ends = await asyncio.gather(
        journal.resolve("a", task_id="t-1"),
        other.resolve("b", task_id="t-1"),
        return_exceptions=True,
    )
    assert sorted(type(end).__name__ for end in ends) == ["Job", "UsageError"]
    assert [job.task_id for job in await journal.jobs(ACCEPTED)] == ["t-1"]


async def test_jobs_in_flight_are_counted_over_all_processes(
    journal: PostgresJournal, other: PostgresJournal
) -> None:
    """What is being sent and what is accepted counts, in any process."""
    await job_at(journal, SUBMITTING, "a")
    await job_at(other, ACCEPTED, "b")
    await job_at(other, FINISHED, "c")
    assert await journal.in_flight() == 2
    assert await journal.left_over() == []
    assert len(await journal.unfinished()) == 2


async def test_a_job_in_flight_is_in_doubt_once_its_process_closes(
    journal: PostgresJournal, other: PostgresJournal, journal_url: str
) -> None:
    """Only what that process was sending; the others go on."""
    await job_at(other, SUBMITTING, "theirs")
    async with opened(journal_url) as closing:
        await job_at(closing, SUBMITTING, "ours")
    assert [(job.key, job.state) for job in await journal.jobs()] == [
        ("theirs", SUBMITTING),
        ("ours", IN_DOUBT),
    ]


async def test_equal_requests_are_counted_in_each_process(
    journal: PostgresJournal, other: PostgresJournal
) -> None:
    """Each counts its own run, so that the same prompts are the same jobs everywhere."""
    plan = plan_of(TextToVideo("a kitten"))
    keys = [(await one.plan_next(plan, NOW)).key for one in (journal, journal, other, other)]
    mark = (await journal.keyed(plan)).fingerprint
    assert keys == [f"{mark}:1", f"{mark}:2", f"{mark}:1", f"{mark}:2"]
    await journal.start_run()
    assert (await journal.plan_next(plan, NOW)).key == f"{mark}:1"


# The database


@pytest.mark.parametrize("url", [None, ""])
def test_a_url_is_needed(url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, the error names the variable that may have it."""
    with pytest.raises(UsageError, match="FUHU_DATABASE_URL"):
        PostgresJournal(url)
    monkeypatch.setenv("FUHU_DATABASE_URL", "postgresql://h/clips")
    assert repr(PostgresJournal(url)) == "<PostgresJournal clips closed>"


def test_a_url_that_cannot_be_read_is_not_quoted() -> None:
    """The error names the form that it has to have; none of its parts is in it."""
    with pytest.raises(UsageError, match="percent-encoded") as caught:
        PostgresJournal(f"postgresql://me:{PASSWORD}%zz@host/clips")
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert PASSWORD not in str(caught.value)


def test_a_client_takes_a_url() -> None:
    """The URL of a database is a journal in Postgres; its repr has no password."""
    client = Client("key", journal=f"postgresql://me:{PASSWORD}@host/clips")
    assert repr(client.journal) == "<PostgresJournal clips closed>"
    assert isinstance(journal_at("postgres://host"), PostgresJournal)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import fuhu_runway.contrib.postgres", "ImportError"),
        ("import fuhu_runway; fuhu_runway.Client('key', journal='postgresql://h')", "UsageError"),
    ],
)
def test_without_psycopg_the_error_names_the_extra(source: str, error: str) -> None:
    """Importing it, and a client with a URL, say which extra is missing."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['psycopg'] = None; {source}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(_postgres.__file__).parents[2])},
    )
    last = done.stderr.splitlines()[-1]
    assert error in last
    assert 'n a checkout: python -m pip install ".[postgres]"' in last


async def fault_of(url: str) -> JournalError:
    """Return the error of a journal whose database cannot be used."""
    async with opened(url) as journal:
        with pytest.raises(JournalError) as caught:
            await journal.counts()
    error = caught.value
    assert error.money == MONEY
    assert error.__cause__ is error.__context__ is None
    return error


async def test_no_server_is_an_error_at_once(journal_url: str) -> None:
    """It says what is wrong without the address and the password."""
    with relay_to(journal_url) as relay:
        relay.cut()
        url = relay.url.replace("postgres@", f"postgres:{PASSWORD}@")
        error = await fault_of(url)
    assert "cannot be reached" in str(error)
    assert PASSWORD not in str(error)
    assert "127.0.0.1" not in str(error)
    gone = await fault_of(url)
    assert "no server runs there" in gone.happened


@pytest.mark.parametrize("host", ["a" * 64, "db..example"])
async def test_a_host_that_is_no_name_is_an_error(host: str) -> None:
    """A name that the DNS cannot have is an unknown host, also for the pace."""
    url = f"postgresql://me:{PASSWORD}@{host}/clips"
    assert "its host is unknown" in (await fault_of(url)).happened
    with pytest.raises(UsageError, match="its host is unknown") as caught:
        await SharedPace(url).init()
    assert caught.value.__context__ is None


def test_a_url_that_is_no_text_is_an_error() -> None:
    """A byte that is not UTF-8, as the environment may have it; the error does not quote it."""
    with pytest.raises(UsageError, match="The URL of the database cannot be read") as caught:
        PostgresJournal(f"postgresql://me:{PASSWORD}\udcff@db.example/clips")
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "address",
    ["/clips?connect_timeout=soon", "/clips?sslmode=no", ":99999/clips", "/clips?keepalives=on"],
)
async def test_a_wrong_value_in_the_url_is_named_as_such(address: str) -> None:
    """It is found before anything is connected, so the server is not blamed."""
    error = await fault_of(f"postgresql://me:{PASSWORD}@127.0.0.1{address}")
    happened = "The database 'clips' of the journal cannot be reached: a value in its URL is wrong."
    assert error.happened == happened


REFUSALS: Final = {
    'password authentication failed for user "me"': "the user or the password is wrong",
    'no pg_hba.conf entry for host "10.1.2.3"': "it does not let this user or host in",
    'database "clips" does not exist': "there is no database with this name",
    'role "me" does not exist': "the user or the password is wrong",
    "the database system is starting up": "it is starting",
    "the database system is shutting down": "it is stopping",
    "sorry, too many clients already": "it has no free connection",
    "SSL connection has been closed unexpectedly": "the connection was lost",
    "SSL error: certificate verify failed": "no encrypted connection can be made",
    "a statement timeout": "another process holds a lock, or it is overloaded",
    "something else": "OperationalError",
}


@pytest.mark.parametrize("said", REFUSALS)
async def test_a_refused_connection_says_why(said: str) -> None:
    """In words of our own, since the server's may have addresses."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b"SFATAL\0C28P01\0M" + said.encode() + b"\0\0"
        while True:
            length = int.from_bytes(await reader.readexactly(4), "big")
            packet = await reader.readexactly(length - 4)
            if packet[:4] in {bytes([4, 210, 22, 47]), bytes([4, 210, 22, 48])}:
                writer.write(b"N")  # neither SSL nor GSS
                continue
            writer.write(b"E" + (len(body) + 4).to_bytes(4, "big") + body)
            writer.close()
            return

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    error = await fault_of(f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/clips")
    server.close()
    assert (
        error.happened
        == f"The database 'clips' of the journal cannot be reached: {REFUSALS[said]}."
    )


async def test_a_database_that_may_forget_is_refused(database_url: str) -> None:
    """With synchronous_commit off, a crash would forget what was paid for."""
    name = database_url.rsplit("/", 1)[1].partition("?")[0]
    run(f"ALTER DATABASE {name} SET synchronous_commit = off", database_url)
    error = await fault_of(database_url)
    assert "synchronous_commit = off" in error.happened
    assert "ALTER ROLE" in error.advice


async def test_a_newer_journal_is_refused(database_url: str) -> None:
    """A later version of the package made it."""
    async with opened(database_url) as journal:
        await journal.init()
    run("UPDATE fuhu_header SET version = version + 1", database_url)
    with pytest.raises(JournalTooNew, match="has schema 2; this version knows 1"):
        async with opened(database_url) as journal:
            await journal.counts()


async def test_an_older_journal_is_updated_by_init(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before, since processes of the older version may still be running."""
    async with opened(database_url) as journal:
        before = await job_at(journal, ACCEPTED)
    monkeypatch.setattr(_postgres, "SCHEMA_VERSION", 2)
    monkeypatch.setattr(_postgres, "MIGRATIONS", {1: "CREATE TABLE fuhu_more (a integer)"})
    error = await fault_of(database_url)
    assert "has schema 1; this version needs 2" in error.happened
    assert "fleet init" in error.advice
    async with opened(database_url) as journal:
        for _ in range(2):
            await journal.init()
        assert await journal.find("k") == before
    run("SELECT a FROM fuhu_more", database_url)


async def test_a_header_that_is_lost_is_an_error(database_url: str) -> None:
    """Without its salt, jobs would not be recognised."""
    async with opened(database_url) as journal:
        await journal.init()
    run("DELETE FROM fuhu_header", database_url)
    assert "has schema 0" in (await fault_of(database_url)).happened
    async with opened(database_url) as journal:
        with pytest.raises(JournalError, match="has schema 0"):
            await journal.init()


async def test_tables_are_made_once(database_url: str) -> None:
    """Processes that start at once have one journal, with one salt."""
    several = [PostgresJournal(database_url) for _ in range(4)]
    plan = plan_of(TextToVideo("a kitten"))
    jobs = await asyncio.gather(*(one.plan_next(plan, NOW) for one in several))
    assert len({job.key for job in jobs}) == 1
    for one in several:
        await one.aclose()


async def test_a_user_without_rights_gets_an_error(database_url: str) -> None:
    """Tables that may not be made are named as such, with the code of the refusal."""
    run("REVOKE CREATE ON SCHEMA public FROM PUBLIC", database_url)
    run("DROP ROLE IF EXISTS fuhu_nobody", database_url)
    run("CREATE ROLE fuhu_nobody LOGIN", database_url)
    try:
        error = await fault_of(database_url.replace("postgres@", "fuhu_nobody@"))
        assert "refuses a statement: insufficient privilege (42501)" in error.happened
    finally:
        run("DROP ROLE fuhu_nobody", database_url)


async def test_an_id_that_no_index_can_hold_leaves_a_doubt(
    journal: PostgresJournal, other: PostgresJournal
) -> None:
    """A job whose id the database refuses is in doubt, no longer in flight: it is paid for."""
    await journal.plan(wanted(), NOW)
    recorder = EventRecorder()
    entry = Entry(journal, "k", ManualClock(), Hooks([recorder]))
    await entry.sending()
    await entry.accepted("".join(map(chr, range(256, 9000))))
    [doubt] = await other.jobs()
    assert (doubt.state, doubt.task_id, doubt.proof) == (IN_DOUBT, None, CHARGE)
    assert await other.in_flight() == 0
    [event] = recorder.all(SubmissionUnrecorded)
    assert "program limit exceeded (54000)" in event.reason


async def test_a_refused_value_breaks_nothing(journal: PostgresJournal) -> None:
    """A wrong type and a key that is too long are errors at once; the next call succeeds."""
    before = await job_at(journal, FINISHED)
    with pytest.raises(JournalError, match=r"invalid text representation \(22P02\)"):
        await journal.step("k", SAVED, NOW, points="many")
    with pytest.raises(JournalError, match=r"program limit exceeded \(54000\)"):
        await journal.plan(wanted(os.urandom(9000).hex()), NOW)
    with pytest.raises(JournalError, match="cannot hold this key"):
        await journal.plan(wanted("a\0b"), NOW)
    assert await journal.jobs() == [before]


# Out of reach


@pytest.fixture
def relay(journal: PostgresJournal, journal_url: str) -> Iterator[Relay]:
    """Return a relay to an empty journal."""
    with relay_to(journal_url) as relay:
        yield relay


async def started(url: str, **options: Any) -> PostgresJournal:
    """Return a journal that has reached its database."""
    journal = PostgresJournal(url, **options)
    await journal.counts()
    return journal


async def test_an_outcome_is_written_once_the_database_is_back(
    relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    """The id of a paid task waits for it, and so does an end; the log tells of it once."""
    away = await started(relay.url)
    await job_at(away, SUBMITTING)
    relay.cut()
    tries = relay.tries
    writing = asyncio.create_task(away.step("k", ACCEPTED, NOW, attempt=1, task_id="t-1"))
    await asyncio.sleep(0)
    away.note(settled(TaskState.SUCCEEDED, "t-1"))
    await until(lambda: relay.tries >= tries + 3)
    assert not writing.done()
    relay.restore()
    assert (await writing).task_id == "t-1"
    await away.flush()
    assert [job.state for job in await away.jobs()] == [FINISHED]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith("The journal's database cannot be reached: ")
    assert said[1].startswith("The journal's database can be reached again, after ")
    assert "127.0.0.1" not in caplog.text
    await away.aclose()


async def test_a_network_that_delivers_nothing_is_noticed(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A statement without an answer is sent again on another connection, and is done once."""
    away = await started(relay.url)
    await job_at(away, SUBMITTING)
    monkeypatch.setattr(_postgres, "ANSWER", 0.2)
    relay.is_frozen = True
    writing = asyncio.create_task(away.step("k", ACCEPTED, NOW, attempt=1, task_id="t-1"))
    await until(lambda: "cannot be reached: it did not answer in time" in caplog.text)
    relay.is_frozen = False
    monkeypatch.undo()
    assert (await writing).task_id == "t-1"
    await away.aclose()


async def test_what_precedes_a_request_is_given_up(relay: Relay) -> None:
    """Nothing was sent, so the caller gets an error, and the job is as it was."""
    away = await started(relay.url, wait=0.0)
    await away.plan(wanted(), NOW)
    relay.cut()
    with pytest.raises(JournalError, match="cannot be reached") as caught:
        await away.step("k", SUBMITTING, NOW)
    assert caught.value.money == MONEY
    with pytest.raises(JournalError, match="cannot be reached"):
        await away.flush()
    relay.restore()
    assert [(job.state, job.submissions) for job in await away.jobs()] == [(PLANNED, 0)]
    await away.aclose()


async def test_a_step_whose_answer_is_lost_is_taken_back(
    relay: Relay, journal: PostgresJournal
) -> None:
    """It was written, and nothing was sent; so the job is planned again once that is possible."""
    away = await started(relay.url, wait=0.0)
    await away.plan(wanted(), NOW)
    relay.swallowed = 1
    with pytest.raises(JournalError, match="cannot be reached"):
        await away.step("k", SUBMITTING, NOW)
    await away.counts()
    job = await journal.find("k")
    assert job is not None
    assert (job.state, job.submissions) == (PLANNED, 0)
    await away.aclose()


LOST: Final[dict[str, tuple[JobState, Callable[[PostgresJournal], Any]]]] = {
    "an intent": (PLANNED, lambda j: j.step("k", SUBMITTING, NOW)),
    "an id": (SUBMITTING, lambda j: j.step("k", ACCEPTED, NOW, attempt=1, task_id="t-1")),
    "a refusal": (SUBMITTING, lambda j: j.step("k", PLANNED, NOW, attempt=1)),
    "a rejection": (SUBMITTING, lambda j: j.step("k", FAILED, NOW, attempt=1)),
    "a doubt": (SUBMITTING, lambda j: j.step("k", IN_DOUBT, NOW, attempt=1)),
    "a plan": (PLANNED, lambda j: j.plan(wanted(), NOW)),
    "a task that was found": (IN_DOUBT, lambda j: j.resolve("k", task_id="t-1")),
    "none that was found": (IN_DOUBT, lambda j: j.resolve("k", accepted=False)),
    "a task that is adopted": (PLANNED, lambda j: j.adopt("t-9", "TextToVideo", NOW)),
}


@pytest.mark.parametrize("answers", range(8))
@pytest.mark.parametrize("what", LOST)
async def test_an_answer_that_is_lost_is_asked_for_again(
    relay: Relay, journal: PostgresJournal, what: str, answers: int
) -> None:
    """Whichever of its answers is lost, the caller gets the row, and it is written once."""
    before, act = LOST[what]
    away = await started(relay.url)
    await job_at(away, before)
    relay.skipped, relay.swallowed = answers, 1
    job = await act(away)
    assert await journal.find(job.key) == job
    assert job.submissions <= 1
    await away.aclose()


async def test_closing_gives_up_what_cannot_be_written(
    relay: Relay, journal: PostgresJournal, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets an error, events are in the log, and closing ends."""
    away = await started(relay.url, wait=0.0)
    await job_at(away, SUBMITTING)
    relay.cut()
    writing = asyncio.create_task(away.step("k", ACCEPTED, NOW, attempt=1, task_id="t-1"))
    await asyncio.sleep(0)
    away.note(settled(TaskState.SUCCEEDED, "t-1"))
    await until(lambda: "cannot be reached" in caplog.text)
    await away.aclose()
    with pytest.raises(JournalError, match="cannot be reached"):
        await writing
    assert "The journal could not be written (JournalError)." in caplog.text
    job = await journal.find("k")
    assert job is not None
    assert job.state is SUBMITTING
    assert (await journal.plan(wanted(), NOW)).state is IN_DOUBT


async def test_an_outcome_that_was_given_up_does_not_open_a_journal_again(relay: Relay) -> None:
    """A doubt cannot be written either; the id of the task is in an event."""
    away = await started(relay.url, wait=0.0)
    await away.plan(wanted(), NOW)
    recorder = EventRecorder()
    entry = Entry(away, "k", ManualClock(), Hooks([recorder]))
    await entry.sending()
    relay.cut()
    tries = relay.tries
    writing = asyncio.create_task(entry.accepted("t-1"))
    await until(lambda: relay.tries > tries)
    await away.aclose()
    await writing
    assert [event.task_id for event in recorder.all(SubmissionUnrecorded)] == ["t-1"]
    assert repr(away).endswith("closed>")


async def test_closing_waits_for_the_database(relay: Relay, journal: PostgresJournal) -> None:
    """What is outstanding is written if it is back in time, also by a thread that is ending."""
    away = await started(relay.url)
    await job_at(away, SUBMITTING)
    relay.cut()
    tries = relay.tries
    writing = asyncio.create_task(away.step("k", ACCEPTED, NOW, attempt=1, task_id="t-1"))
    await until(lambda: relay.tries > tries)
    closing = asyncio.create_task(away.aclose())
    tries = relay.tries
    await until(lambda: relay.tries > tries + 2)
    reading = asyncio.create_task(away.find("k"))
    relay.restore()
    assert await writing == await reading == await journal.find("k")
    await closing
    await away.aclose()


async def test_a_standby_is_waited_for(relay: Relay, journal: PostgresJournal) -> None:
    """After a failover the database may be read-only for a moment."""
    away = await started(relay.url)
    await job_at(away, SUBMITTING)
    name = relay.url.rsplit("/", 1)[1]
    run(f"ALTER DATABASE {name} SET default_transaction_read_only = on", relay.target)
    relay.cut()
    relay.restore()
    tries = relay.tries
    writing = asyncio.create_task(away.step("k", ACCEPTED, NOW, attempt=1, task_id="t-1"))
    await until(lambda: relay.tries >= tries + 3)
    run(
        f"BEGIN READ WRITE;ALTER DATABASE {name} SET default_transaction_read_only = off; COMMIT",
        relay.target,
    )
    assert (await writing).state is ACCEPTED
    await away.aclose()


# Loops, threads and processes


def test_several_loops_share_one_journal(journal_url: str) -> None:
    """One after the other and at once, in threads; it is opened again after closing."""
    journal = PostgresJournal(journal_url)
    key = f"loops {time.time_ns()}"

    async def use(number: int) -> Job:
        job = await journal.plan(wanted(f"{key} {number}"), NOW)
        await journal.aclose()
        return job

    async def several() -> list[Job]:
        calls = (asyncio.to_thread(asyncio.run, use(number)) for number in range(4))
        return await asyncio.gather(*calls)

    assert [job.key for job in asyncio.run(several())] == [f"{key} {n}" for n in range(4)]
    assert asyncio.run(use(0)).planned_at == NOW


async def test_a_notebook_shows_the_jobs(journal: PostgresJournal, journal_url: str) -> None:
    """Of a journal that is open and of one that is not; or why it cannot."""
    await job_at(journal, ACCEPTED)
    assert "1 accepted" in journal._repr_html_()
    closed = PostgresJournal(journal_url)
    assert "1 accepted" in closed._repr_html_()
    assert repr(closed).endswith("closed>")
    gone = PostgresJournal("postgresql://127.0.0.1:1/clips")
    assert "cannot be reached" in gone._repr_html_()


FORKED: Final = """
import asyncio, os, sys
from fuhu_runway.journal import JobState, Plan
from fuhu_runway.contrib.postgres import PostgresJournal

journal = PostgresJournal(sys.argv[1])
plan = Plan(key=sys.argv[2], fingerprint="f", endpoint="TextToVideo")

async def child():
    job = await journal.plan(plan, 1.0)
    await journal.aclose()
    print("child", job.state.value, flush=True)

async def parent():
    await journal.plan(plan, 1.0)
    await journal.step(plan.key, JobState.SUBMITTING, 1.0)
    pid = os.fork()
    if not pid:
        try:
            import threading
            thread = threading.Thread(target=asyncio.run, args=(child(),))
            thread.start()
            thread.join()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    job = await journal.step(plan.key, JobState.ACCEPTED, 2.0, attempt=1, task_id="t")
    print("parent", job.state.value)
    await journal.aclose()

asyncio.run(parent())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_forked_child_is_another_process(journal_url: str) -> None:
    """It connects by itself; to it, what the parent was sending is in doubt; the parent goes on."""
    key = f"forked {time.time_ns()}"
    done = subprocess.run(
        # From 3.12 on, Python warns of a fork beside the journal's thread.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, journal_url, key],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(_postgres.__file__).parents[2])},
    )
    assert (done.stdout.splitlines(), done.stderr) == (["child in doubt", "parent accepted"], "")


async def test_a_fork_is_imitated(
    journal: PostgresJournal, journal_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child has another name and a connection of its own; the parent's stays open."""
    async with opened(journal_url) as child:
        await job_at(child, SUBMITTING)
        parents = child._link
        with monkeypatch.context() as patch:
            patch.setattr(base, "_JOURNALS", {child})
            patch.setattr(module, "_PARENTS", [])
            thread, todo = child._writer._thread, child._writer._todo
            base._after_fork()
            assert (await child.plan(wanted(), NOW)).state is IN_DOUBT
            assert parents.run(actions.counts())[IN_DOUBT] == 1
        todo.put(None)
        assert thread is not None
        await asyncio.to_thread(thread.join)


# Events


async def test_events_that_follow_each_other_share_a_statement(
    relay: Relay, journal: PostgresJournal
) -> None:
    """Those about one task, until something else is asked for."""
    away = await started(relay.url)
    for key in "ab":
        await job_at(away, ACCEPTED, key)
    sent = relay.sent
    for event in (
        settled(TaskState.SUCCEEDED, "task of a"),
        settled(TaskState.FAILED, "task of b"),
        DownloadStarted("task of a", 0, None),
        DownloadFinished("task of a", 7),
    ):
        away.note(event)
    await away.flush()
    assert relay.sent == sent + 2
    jobs = await journal.jobs()
    assert [(job.state, job.points, job.file_bytes) for job in jobs] == [
        (SAVED, 320.0, 7),
        (FAILED, 320.0, None),
    ]
    assert [job.saved_at is None for job in jobs] == [False, True]
    await away.aclose()


async def test_an_event_of_no_interest_is_not_written(
    journal: PostgresJournal, caplog: pytest.LogCaptureFixture
) -> None:
    """Events reach every row of a task; others change nothing."""
    await job_at(journal, FINISHED)
    journal.note(ClipHandedOut("task of k"))
    journal.note(TaskSubmitted("task of k", "TextToVideo", 1.0))
    journal.note(DownloadFinished("task of k", 7))
    await journal.flush()
    (job,) = await journal.jobs()
    assert (job.state, job.file_bytes) == (SAVED, 7)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
