import asyncio
import hmac
import json
import logging
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections import UserDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from support.jobs import (
    ACCEPTED,
    FINISHED,
    IN_DOUBT,
    PLANNED,
    SAVED,
    SUBMITTING,
    job_at,
    settled,
    wanted,
)

import fuhu_runway
from fuhu_runway._journal import base
from fuhu_runway._journal import file as journal_file
from fuhu_runway._journal.file import BUSY_PAUSE, SCHEMA_VERSION, command_line
from fuhu_runway.errors import (
    JournalBusy,
    JournalError,
    JournalTooNew,
)
from fuhu_runway.journal import (
    Job,
    JobState,
    Journal,
    fingerprint,
    plan_of,
)
from fuhu_runway.models import ActOne, Generation, ImageToVideo, TaskState, TextToVideo

MONEY: Final = "Nothing was sent or charged."
NOW: Final = 1_700_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a journal may be; nothing is there yet."""
    return tmp_path / "run.db"


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Journal]:
    """Yield a journal that is closed afterwards."""
    journal = Journal(path)
    try:
        yield journal
    finally:
        await journal.aclose()


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[Journal]:
    """Return a journal that was not used yet."""
    async with opened(path) as journal:
        yield journal


async def value_of(journal: Journal, sql: str) -> Any:
    """Return the first value of the first row."""
    return await journal._writer.run(lambda db: db.execute(sql).fetchone()[0])


async def written(journal: Journal) -> None:
    """Return when all events so far are written."""
    await journal.counts()


# Fingerprints


def test_equal_requests_have_equal_fingerprints_and_others_not() -> None:
    """The fingerprint depends on each field and on the type of the request."""
    requests: list[Generation] = [
        TextToVideo("a kitten"),
        TextToVideo("a puppy"),
        TextToVideo("a kitten", seconds=5),
        TextToVideo("a kitten", extra={"seed": 1}),
        ImageToVideo("a kitten", "https://example.com/1.png"),
        ActOne("https://example.com/1.mp4", "https://example.com/1.png"),
    ]
    assert len({fingerprint(request) for request in requests}) == len(requests)
    assert fingerprint(TextToVideo("a kitten")) == fingerprint(TextToVideo("a kitten"))
    assert re.fullmatch("[0-9a-f]{64}", fingerprint(requests[0]))


def test_requests_with_any_extra_fields_have_a_fingerprint() -> None:
    """Extra fields in any mapping that JSON can write have a fingerprint, in any order."""
    mixed = {"more": {1: "number", "b": "text"}}
    one = TextToVideo("a kitten", extra=UserDict({"a": 1} | mixed))
    other = TextToVideo("a kitten", extra=mixed | {"a": 1})
    assert fingerprint(one) == fingerprint(other)


def test_a_plan_holds_no_prompt() -> None:
    """A plan has kind, model and length of a request, and its fingerprint as the key."""
    request = TextToVideo("a kitten", seconds=5)
    plan = plan_of(request)
    assert plan.key == plan.fingerprint == fingerprint(request)
    assert (plan.endpoint, plan.model, plan.seconds) == ("TextToVideo", "gen4", 5)
    named = plan_of(request, "key", "mine")
    assert (named.key, named.custom_id, named.fingerprint) == ("key", "mine", plan.fingerprint)
    bare = plan_of(ActOne("https://example.com/1.mp4", "https://example.com/1.png"))
    assert (bare.model, bare.seconds) == (None, None)


async def test_an_event_that_cannot_be_written_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Writing an event is not awaited, so its failure is in the log."""
    journal = Journal(tmp_path / "nowhere" / "run.db")
    journal.note(settled(TaskState.SUCCEEDED))
    await journal.aclose()
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "The journal could not be written (JournalError).")
    ]


# The file


@contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file without any journal in between."""
    db = sqlite3.connect(path)
    try:
        yield db
        db.commit()
    finally:
        db.close()


def without_tables(path: Path) -> None:
    """An empty database."""
    with database(path) as db:
        db.execute("VACUUM")


async def test_the_schema_explains_each_of_its_columns(journal: Journal) -> None:
    """In the file itself, a comment stands above each column or group of columns."""
    stored = await value_of(journal, "SELECT sql FROM sqlite_schema WHERE name = 'job'")
    body = stored[stored.index("(") + 1 : stored.rindex(")")]
    lines = [line.strip() for line in body.strip().splitlines()]
    names = await journal._writer.run(
        lambda db: [row[0] for row in db.execute("SELECT name FROM pragma_table_info('job')")]
    )
    groups = re.findall(r"((?:--[^\n]*\n)+)((?:(?!--)[^\n]+\n)+)", "\n".join([*lines, ""]))
    explained = [line.split()[0] for _, columns in groups for line in columns.splitlines()]
    assert explained == names
    assert all(comment.strip().endswith((".", ".)")) for comment, _ in groups)
    assert set(names) == {field.name for field in attrs.fields(Job)}


async def test_the_file_is_strict_durable_and_exclusive(journal: Journal) -> None:
    """The table is STRICT, the log write-ahead and flushed at each commit, the lock exclusive."""
    strict = "SELECT strict FROM pragma_table_list WHERE name = 'job'"
    assert await value_of(journal, strict) == 1
    assert await value_of(journal, "PRAGMA journal_mode") == "wal"
    assert await value_of(journal, "PRAGMA synchronous") == 2
    assert await value_of(journal, "PRAGMA fullfsync") == 1
    assert await value_of(journal, "PRAGMA locking_mode") == "exclusive"
    assert await value_of(journal, "PRAGMA user_version") == SCHEMA_VERSION == 5


async def test_a_wrong_type_is_refused_by_the_file(journal: Journal) -> None:
    """STRICT refuses text in a column of numbers, and the row stays as it was."""
    before = await job_at(journal, FINISHED)
    with pytest.raises(JournalError, match="REAL"):
        await journal.step("k", SAVED, NOW, points="many")
    assert await journal.find("k") == before


@pytest.mark.parametrize("make", [Path.touch, without_tables])
async def test_an_empty_file_becomes_a_journal(path: Path, make: Callable[[Path], None]) -> None:
    """An empty file and a database without tables get the current schema."""
    make(path)
    async with opened(path) as journal:
        await job_at(journal, ACCEPTED)
        assert await value_of(journal, "PRAGMA user_version") == SCHEMA_VERSION


def test_each_older_version_has_a_migration() -> None:
    """There is one migration from each version below the present one, and none beyond."""
    assert set(journal_file.MIGRATIONS) == set(range(1, SCHEMA_VERSION))


def next_version(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Add one more version, to which *script* leads."""
    more = {**journal_file.MIGRATIONS, SCHEMA_VERSION: script}
    monkeypatch.setattr(journal_file, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setattr(journal_file, "MIGRATIONS", more)


async def test_a_migration_keeps_what_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal is taken to the next version with its rows, statement by statement."""
    async with opened(path) as journal:
        await job_at(journal, SAVED)
    next_version(
        monkeypatch, "CREATE TABLE a (\n    b TEXT  -- c; d\n);\nINSERT INTO a VALUES ('e;f');\n"
    )
    async with opened(path) as journal:
        assert await value_of(journal, "PRAGMA user_version") == SCHEMA_VERSION + 1
        assert await value_of(journal, "SELECT b FROM a") == "e;f"
        assert [job.state for job in await journal.jobs()] == [SAVED]


async def test_a_migration_that_fails_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a migration fails halfway, version and rows stay as they were."""
    async with opened(path) as journal:
        await job_at(journal, SAVED)
    with monkeypatch.context() as patch:
        next_version(patch, "CREATE TABLE a (b TEXT);\nINSERT INTO nowhere VALUES (1);\n")
        async with opened(path) as journal:
            with pytest.raises(JournalError, match="no such table: nowhere"):
                await journal.counts()
    async with opened(path) as journal:
        assert await value_of(journal, "PRAGMA user_version") == SCHEMA_VERSION
        assert await value_of(journal, "SELECT count(*) FROM sqlite_schema WHERE name = 'a'") == 0
        assert [job.state for job in await journal.jobs()] == [SAVED]


# Files that are not journals


def newer(path: Path) -> None:
    """A journal of a future version."""
    with database(path) as db:
        db.execute("CREATE TABLE job (key TEXT)")
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")


def foreign(path: Path, version: int = 0) -> None:
    """Another program's database."""
    with database(path) as db:
        db.execute("CREATE TABLE bookmarks (title TEXT)")
        db.execute("INSERT INTO bookmarks VALUES ('kittens')")
        db.execute(f"PRAGMA user_version={version}")


def foreign_with_versions(path: Path) -> None:
    """Another database that happens to have our version."""
    foreign(path, SCHEMA_VERSION)


def foreign_and_far_ahead(path: Path) -> None:
    """Another database that happens to have a newer version."""
    foreign(path, 77)


def foreign_with_jobs(path: Path) -> None:
    """Another database that happens to have a table of that name."""
    with database(path) as db:
        db.execute("CREATE TABLE job (title TEXT)")


def text(path: Path) -> None:
    """A list of prompts."""
    path.write_text("a kitten\na puppy\n" * 100)


def short_text(path: Path) -> None:
    """Less text than a database has in its head."""
    path.write_text("a kitten")


def folder(path: Path) -> None:
    """A folder with something in it."""
    path.mkdir()
    (path / "inside").touch()


def content(path: Path) -> object:
    """Return the bytes of a file, or the names in a folder."""
    if path.is_dir():
        return sorted(inside.name for inside in path.iterdir())
    return path.read_bytes()


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (newer, JournalTooNew, "has schema 6; this version knows 5"),
        (foreign, JournalError, "another program's database"),
        (foreign_with_versions, JournalError, "another program's database"),
        (foreign_and_far_ahead, JournalError, "another program's database"),
        (foreign_with_jobs, JournalError, "another program's database"),
        (text, JournalError, "file is not a database"),
        (short_text, JournalError, "file is not a database"),
        (folder, JournalError, "unable to open database file"),
    ],
)
async def test_a_file_that_is_not_a_journal_is_an_error_and_unchanged(
    path: Path, make: Callable[[Path], None], kind: type[JournalError], says: str
) -> None:
    """A file that is not a journal is an error before any money is spent, and is not changed."""
    make(path)
    before = content(path)
    async with opened(path) as journal:
        with pytest.raises(kind, match=says) as caught:
            await journal.plan(wanted(), NOW)
    assert type(caught.value) is kind
    assert caught.value.money == MONEY
    assert content(path) == before


@pytest.mark.parametrize("name", ["missing/run.db", "file/run.db", "nul\0/run.db"])
async def test_a_missing_folder_is_an_error(tmp_path: Path, name: str) -> None:
    """No folder is made: the error names the one that is missing."""
    (tmp_path / "file").touch()
    async with opened(tmp_path / name) as journal:
        with pytest.raises(JournalError, match="no folder") as caught:
            await journal.counts()
    assert caught.value.money == MONEY
    assert not (tmp_path / "missing").exists()


@contextmanager
def guest() -> Iterator[Path]:
    """Return a folder, with this process as a user that file permissions apply to."""
    place = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    try:
        place.chmod(0o777)
        if is_root:
            os.seteuid(65534)
        yield place
    finally:
        if is_root:
            os.seteuid(0)
        place.chmod(0o700)
        for inside in place.iterdir():
            inside.chmod(0o700)
        shutil.rmtree(place)


async def test_a_read_only_folder_is_an_error() -> None:
    """A journal that cannot be made is an error before any money is spent."""
    with guest() as place:
        inside = place / "closed"
        inside.mkdir(mode=0o555)
        async with opened(inside / "run.db") as journal:
            with pytest.raises(JournalError, match="unable to open") as caught:
                await journal.plan(wanted(), NOW)
    assert caught.value.money == MONEY


async def test_a_read_only_file_is_an_error() -> None:
    """A journal that can only be read is an error before any money is spent."""
    with guest() as place:
        path = place / "run.db"
        async with opened(path) as journal:
            await job_at(journal, ACCEPTED)
        path.chmod(0o444)
        async with opened(path) as journal:
            with pytest.raises(JournalError, match="cannot be used") as caught:
                await journal.plan(wanted("other"), NOW)
    assert caught.value.money == MONEY


async def test_a_folder_without_permission_is_not_another_process() -> None:
    """Missing permissions are named in the error, whatever the folder is called."""
    with guest() as place:
        (place / "locked").mkdir(mode=0o000)
        async with opened(place / "locked" / "in" / "run.db") as journal:
            with pytest.raises(JournalError, match="Permission denied") as caught:
                await journal.counts()
    assert not isinstance(caught.value, JournalBusy)


async def test_a_full_disk_is_an_error_and_breaks_nothing(journal: Journal) -> None:
    """Each caller whose row does not fit gets an error; rows that were written before stay."""
    before = await job_at(journal, ACCEPTED)
    pages = await value_of(journal, "PRAGMA page_count")
    await value_of(journal, f"PRAGMA max_page_count={pages}")
    plans = [journal.plan(wanted(f"{number:0500}"), NOW) for number in range(100)]
    results = await asyncio.gather(*plans, return_exceptions=True)
    refused = [result for result in results if isinstance(result, JournalError)]
    assert refused
    assert {(str(type(one.__cause__)), one.money) for one in refused} == {
        ("<class 'sqlite3.OperationalError'>", MONEY)
    }
    assert "full" in str(refused[0])
    assert len({id(one) for one in refused}) == len(refused)
    await value_of(journal, "PRAGMA max_page_count=100000")
    assert (await journal.find("k")) == before
    assert len(await journal.jobs()) == 1 + len(results) - len(refused)
    await job_at(journal, SAVED, "there is room again")


FULL = """
import asyncio, resource, sys
from fuhu_runway.errors import JournalError
from fuhu_runway.journal import Journal, JobState, Plan

async def main(path):
    journal = Journal(path)
    made = 0
    await journal.counts()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        for made in range(10_000):
            key = f"k{made}"
            await journal.plan(Plan(key=key, fingerprint="f", endpoint="TextToVideo"), 1.0)
            await journal.step(key, JobState.SUBMITTING, 2.0)
    except JournalError as error:
        print(made, type(error).__name__, error.money)
    await journal.aclose()

asyncio.run(main(sys.argv[1]))
"""


def python(source: str, *arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """Start *source* in another interpreter, in which each warning is an error."""
    root = Path(fuhu_runway.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", source, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        **options,
    )


async def test_a_file_that_cannot_grow_keeps_its_rows(path: Path) -> None:
    """When no more bytes can be written, each job that was reported as written is in the file."""
    pytest.importorskip("resource")
    with python(FULL, path) as process:
        said, _ = process.communicate()
    made, kind, money = said.split(maxsplit=2)
    assert (kind, money.strip()) == ("JournalError", MONEY)
    async with opened(path) as journal:
        counts = await journal.counts()
    assert counts[IN_DOUBT] >= int(made) > 0


# One process at a time

HOLDER = """
import asyncio, sys
from fuhu_runway.journal import Journal, JobState, Plan

async def main(path):
    journal = Journal(path)
    await journal.plan(Plan(key="theirs", fingerprint="f", endpoint="TextToVideo"), 1.0)
    await journal.step("theirs", JobState.SUBMITTING, 2.0)
    print("open", flush=True)
    sys.stdin.read()
    await journal.aclose()

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no open file")
@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_file_that_is_gone_is_an_error(journal: Journal, is_replaced: bool) -> None:
    """What is written to it is lost, so that a later run would pay again for what follows."""
    await journal.plan_next(plan_of(TextToVideo("a")), NOW)
    journal.path.rename(journal.path.with_name("old.db"))
    if is_replaced:
        journal.path.touch()
    with pytest.raises(JournalError, match="removed or replaced") as caught:
        await journal.plan_next(plan_of(TextToVideo("b")), NOW)
    assert caught.value.money == MONEY


async def test_a_file_that_cannot_be_looked_at_is_used(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that fails says nothing about the file; a write that fails does."""
    await journal.plan_next(plan_of(TextToVideo("a")), NOW)

    def fails(path: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "stat", fails)
    await journal.plan_next(plan_of(TextToVideo("b")), NOW)
    monkeypatch.undo()
    assert len(await journal.jobs()) == 2


async def test_a_second_process_gets_an_error_and_writes_nothing(path: Path) -> None:
    """While one process has it open, a second gets JournalBusy, and can use it afterwards."""
    async with opened(path) as journal:
        with python(HOLDER, path) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            for _ in range(2):
                with pytest.raises(JournalBusy, match="Another process") as caught:
                    await job_at(journal, ACCEPTED, "ours")
                assert caught.value.money == MONEY
            process.communicate()
        assert process.returncode == 0
        await job_at(journal, ACCEPTED, "ours")
        jobs = await journal.jobs()
    assert [(job.key, job.state) for job in jobs] == [("theirs", IN_DOUBT), ("ours", ACCEPTED)]


async def test_a_process_that_was_killed_leaves_its_doubts(path: Path) -> None:
    """A job in flight when its process was killed is in doubt when the journal is opened again."""
    with python(HOLDER, path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    async with opened(path) as journal:
        job = await journal.find("theirs")
    assert job is not None
    assert (job.state, job.error, job.task_id) == (IN_DOUBT, "NoReply", None)


async def test_a_second_journal_of_the_same_process_is_an_error(journal: Journal) -> None:
    """Two journals over one file do not mix within one process either."""
    await job_at(journal, ACCEPTED)
    async with opened(journal.path) as second:
        with pytest.raises(JournalBusy):
            await second.counts()
    assert [job.key for job in await journal.jobs()] == ["k"]


# Opening, closing, doubts


async def test_the_file_is_made_on_first_use(path: Path) -> None:
    """Making the object touches nothing, and closing what was never used neither."""
    journal = Journal(str(path))
    assert repr(journal) == "<Journal run.db closed>"
    await journal.aclose()
    assert content(path.parent) == []
    await journal.counts()
    assert repr(journal) == "<Journal run.db open>"
    await journal.aclose()
    assert repr(journal) == "<Journal run.db closed>"


async def test_a_closed_journal_can_be_opened_again(journal: Journal) -> None:
    """Closing leaves one unlocked file; using the journal opens it again."""
    before = await job_at(journal, ACCEPTED)
    await journal.aclose()
    assert content(journal.path.parent) == ["run.db"]
    async with opened(journal.path) as other:
        assert await other.jobs() == [before]
    assert await journal.jobs() == [before]


async def test_it_can_be_used_while_it_closes(journal: Journal) -> None:
    """A call during closing opens the same file again."""
    for number in range(20):
        await journal.plan(wanted(f"before {number}"), NOW)
        await asyncio.gather(
            journal.aclose(), journal.plan(wanted(f"meanwhile {number}"), NOW), journal.aclose()
        )
    assert len(await journal.jobs()) == 40


@pytest.mark.parametrize("state", JobState)
async def test_jobs_in_flight_are_in_doubt_once_it_is_closed(
    journal: Journal, state: JobState
) -> None:
    """Closing marks SUBMITTING jobs as IN_DOUBT, and no others."""
    before = await job_at(journal, state)
    await journal.aclose()
    with database(journal.path) as db:
        ((word, error),) = db.execute("SELECT state, error FROM job").fetchall()
    if state is SUBMITTING:
        assert (word, error) == (IN_DOUBT.value, "NoReply")
    else:
        assert (word, error) == (state.value, before.error)


@pytest.mark.parametrize("state", JobState)
async def test_jobs_in_flight_at_a_crash_are_in_doubt_once_it_is_opened(
    journal: Journal, tmp_path: Path, state: JobState
) -> None:
    """A crash leaves rows as SUBMITTING; opening marks them as IN_DOUBT, and no others."""
    before = await job_at(journal, state)
    left = tmp_path / "left.db"
    for suffix in ["", "-wal"]:
        shutil.copy(f"{journal.path}{suffix}", f"{left}{suffix}")
    async with opened(left) as other:
        job = await other.find("k")
    assert job is not None
    assert job.state is (IN_DOUBT if state is SUBMITTING else before.state)
    assert job.submissions == before.submissions


async def test_a_doubt_that_cannot_be_written_does_not_keep_it_from_closing(
    journal: Journal,
) -> None:
    """With the table gone no row can be written, and closing unlocks the file all the same."""
    await journal._writer.run(lambda db: db.execute("DROP TABLE job"))
    await journal.aclose()
    assert repr(journal) == "<Journal run.db closed>"


def test_one_journal_serves_several_loops(path: Path) -> None:
    """Loops that follow one another share one open journal."""
    journal = Journal(path)
    asyncio.run(_planned(journal, "a"))
    asyncio.run(_planned(journal, "b"))

    async def last() -> list[Job]:
        jobs = await journal.jobs()
        await journal.aclose()
        return jobs

    assert [job.key for job in asyncio.run(last())] == ["a", "b"]


async def _planned(journal: Journal, key: str) -> None:
    await journal.plan(wanted(key), NOW)


def test_a_loop_may_end_while_rows_are_written(path: Path) -> None:
    """Rows that are being written when their loop ends are written; the next loop works."""
    journal, busy = Journal(path), threading.Event()

    async def leave_early() -> None:
        held = asyncio.create_task(journal._writer.run(lambda _db: busy.wait()))
        requested = asyncio.create_task(_planned(journal, "requested"))
        await asyncio.sleep(0)
        held.cancel()
        requested.cancel()

    asyncio.run(leave_early())
    busy.set()

    async def later() -> list[Job]:
        jobs = await journal.jobs()
        await journal.aclose()
        return jobs

    assert [job.key for job in asyncio.run(later())] == ["requested"]


# Many at once


async def test_queued_rows_share_transactions(journal: Journal) -> None:
    """Thousands of plans that wait for the disk are written in a few transactions."""
    said: list[str] = []
    await journal._writer.run(lambda db: db.set_trace_callback(said.append))
    busy = threading.Event()
    first = asyncio.create_task(journal._writer.run(lambda _db: busy.wait()))
    plans = [asyncio.create_task(_planned(journal, f"k{number}")) for number in range(2500)]
    await asyncio.sleep(0)
    busy.set()
    await asyncio.gather(first, *plans)
    await journal._writer.run(lambda db: db.set_trace_callback(None))
    assert 3 <= said.count("BEGIN") <= 6
    assert sum((await journal.counts()).values()) == 2500


async def test_events_share_the_next_commit(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a task costs no flush if another row is about to be written."""
    monkeypatch.setattr("fuhu_runway._journal.file.UNAWAITED_WAIT", 600.0)
    await job_at(journal, ACCEPTED)
    said: list[str] = []
    await journal._writer.run(lambda db: db.set_trace_callback(said.append))
    said.clear()
    journal.note(settled(TaskState.SUCCEEDED))
    await asyncio.sleep(0.01)
    assert [job.state for job in await journal.jobs()] == [FINISHED]
    assert said.count("BEGIN") == 1


@pytest.mark.parametrize(
    "fault",
    [
        lambda journal: journal.step("k", SAVED, NOW),
        lambda journal: journal.step("unknown", SUBMITTING, NOW),
        lambda journal: journal.step("k", FINISHED, NOW, unknown_column=1),
        lambda journal: journal.step("k", FINISHED, NOW, points="many"),
        lambda journal: journal.step("k", FINISHED, NOW, points=object()),
        lambda journal: journal.step("k", FINISHED, NOW, file_bytes=2**70),
        lambda journal: journal.step("k", FINISHED, NOW, code="\ud800"),
        lambda journal: journal.plan(wanted("k2", custom_id="\ud800"), NOW),
    ],
)
async def test_one_faulty_row_does_not_affect_others(
    journal: Journal, fault: Callable[[Journal], Awaitable[Job]]
) -> None:
    """A step is written although another one in the same transaction is an error."""
    await job_at(journal, ACCEPTED)
    await job_at(journal, SUBMITTING, "other")
    _, wrong, _ = await asyncio.gather(
        journal.plan(wanted("before"), NOW),
        fault(journal),
        journal.plan(wanted("after"), NOW),
        return_exceptions=True,
    )
    assert isinstance(wrong, JournalError)
    assert wrong.money == MONEY
    assert {job.key for job in await journal.jobs(PLANNED)} == {"before", "after"}


async def test_a_cancelled_caller_leaves_it_usable(journal: Journal) -> None:
    """Cancelling one caller does not affect others, and its row is written all the same."""
    busy = threading.Event()
    held = asyncio.create_task(journal._writer.run(lambda _db: busy.wait()))
    gone = asyncio.create_task(_planned(journal, "gone"))
    stays = asyncio.create_task(_planned(journal, "stays"))
    await asyncio.sleep(0)
    gone.cancel()
    busy.set()
    await asyncio.gather(held, stays)
    assert gone.cancelled()
    assert [job.key for job in await journal.jobs()] == ["gone", "stays"]


# Salt


async def test_each_journal_keys_its_fingerprints(tmp_path: Path) -> None:
    """Equal requests have different fingerprints in two journals, and the same in one."""
    plan = plan_of(TextToVideo("a kitten"))
    marks = []
    for name in ["a.db", "b.db", "a.db"]:
        async with opened(tmp_path / name) as journal:
            job = await journal.plan_next(plan, NOW)
            marks.append(job.fingerprint)
            salt = await value_of(journal, "SELECT salt FROM header")
            keyed = hmac.digest(salt, plan.fingerprint.encode(), "sha256").hex()
            assert (len(salt), job.fingerprint, job.key) == (32, keyed, f"{keyed}:1")
    assert marks[0] == marks[2] != marks[1]
    assert plan.fingerprint.encode() not in every_byte(tmp_path / "a.db")


# The log beside the file


def without_log(path: Path, copy: Path) -> Path:
    """Copy the file alone."""
    return Path(shutil.copy(path, copy))


def with_empty_log(path: Path, copy: Path) -> Path:
    """Copy the file, and have a log without anything in it."""
    Path(f"{copy}-wal").touch()
    return without_log(path, copy)


def with_log(path: Path, copy: Path) -> Path:
    """Copy both."""
    shutil.copy(f"{path}-wal", f"{copy}-wal")
    return without_log(path, copy)


@pytest.mark.parametrize("copied", [without_log, with_empty_log])
async def test_a_file_without_its_log_is_detected(
    journal: Journal, tmp_path: Path, copied: Callable[[Path, Path], Path]
) -> None:
    """Copied alone while it is open, the file lacks paid jobs, and is refused each time."""
    await job_at(journal, ACCEPTED)
    copy = copied(journal.path, tmp_path / "copy.db")
    for _ in range(2):
        async with opened(copy) as alone:
            with pytest.raises(JournalError, match="is a copy without its log") as caught:
                await alone.counts()
    assert "'copy.db-wal'" in caught.value.happened
    assert "may be paid for" in caught.value.money


async def test_a_missing_log_is_detected_after_any_number_of_checkpoints(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much of the log was moved into the file, the file alone is refused."""
    monkeypatch.setattr(journal_file, "CHECKPOINT_AFTER", 3)
    for number in range(30):
        await journal.plan(wanted(f"k{number}"), NOW)
        copy = without_log(journal.path, tmp_path / f"{number}.db")
        async with opened(copy) as alone:
            with pytest.raises(JournalError, match="is a copy without its log"):
                await alone.counts()
    with database(copy) as db:
        assert 25 <= db.execute("SELECT count(*) FROM job").fetchone()[0] <= 30
    both = with_log(journal.path, tmp_path / "both.db")
    async with opened(both) as whole:
        assert len(await whole.jobs()) == 30


async def test_the_command_in_the_error_makes_the_file_usable(
    journal: Journal, tmp_path: Path
) -> None:
    """After the command that the error names, the file opens without its log."""
    await job_at(journal, ACCEPTED)
    copy = without_log(journal.path, tmp_path / "copy.db")
    async with opened(copy) as alone:
        with pytest.raises(JournalError) as caught:
            await alone.counts()
        statement = re.search("'(UPDATE .*)'", caught.value.advice)
        assert statement
        with database(copy) as db:
            db.execute(statement[1])
        assert await alone.jobs() == []


async def test_the_file_alone_is_whole_once_it_is_closed(journal: Journal, tmp_path: Path) -> None:
    """A closed journal is one file, and a copy of it knows every job."""
    before = await job_at(journal, ACCEPTED)
    await journal.aclose()
    async with opened(without_log(journal.path, tmp_path / "copy.db")) as copy:
        assert await copy.jobs() == [before]


async def test_another_tool_may_put_the_log_into_the_file(journal: Journal, tmp_path: Path) -> None:
    """After a crash, a tool that reads the file takes the log in, and nothing is missing then."""
    before = await job_at(journal, ACCEPTED)
    left = with_log(journal.path, tmp_path / "left.db")
    with database(left) as db:
        assert db.execute("SELECT count(*) FROM job").fetchone() == (1,)
    assert content(tmp_path) == ["left.db", "run.db", "run.db-wal"]
    async with opened(left) as whole:
        assert await whole.jobs() == [before]


@pytest.mark.parametrize("statements", range(1, 14))
async def test_death_while_the_log_is_moved_loses_nothing(
    journal: Journal, tmp_path: Path, statements: int
) -> None:
    """A copy of both files between any two statements of an opening and a checkpoint is whole."""
    left = tmp_path / "left.db"
    taken = 0

    class Watched(sqlite3.Connection):
        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            nonlocal taken
            cursor = super().execute(*arguments)
            taken += 1
            if taken == statements:
                for suffix in ["", "-wal"]:
                    if Path(f"{again.path}{suffix}").exists():
                        shutil.copy(f"{again.path}{suffix}", f"{left}{suffix}")
            return cursor

    before = await job_at(journal, ACCEPTED)
    again = Journal(with_log(journal.path, tmp_path / "again.db"))
    with pytest.MonkeyPatch.context() as patch:
        connect = sqlite3.connect
        patch.setattr(sqlite3, "connect", partial(connect, factory=Watched))
        await again.counts()
        await again.aclose()
    assert taken >= 13
    async with opened(left) as found:
        assert await found.jobs() == [before]


async def test_a_log_that_cannot_be_moved_stays(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at a checkpoint affects no caller; closing tries once more."""
    monkeypatch.setattr(journal_file, "CHECKPOINT_AFTER", 2)
    refused = "CREATE TEMP TRIGGER full BEFORE UPDATE ON header BEGIN SELECT RAISE(FAIL, 'x'); END"
    await journal._writer.run(lambda db: db.execute(refused))
    await job_at(journal, ACCEPTED)
    both = with_log(journal.path, tmp_path / "both.db")
    async with opened(both) as whole:
        assert [job.state for job in await whole.jobs()] == [ACCEPTED]
    await journal.aclose()
    assert [job.state for job in await journal.jobs()] == [ACCEPTED]


# Permissions


def modes(path: Path) -> list[int]:
    """Return the permissions of all files of a journal."""
    return [stat.S_IMODE(file.stat().st_mode) for file in sorted(path.parent.glob(f"{path.name}*"))]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
async def test_the_files_are_for_their_owner_alone(journal: Journal) -> None:
    """The file and its log are made with 0600, whatever the umask leaves to others."""
    before = os.umask(0)
    try:
        await job_at(journal, ACCEPTED)
    finally:
        os.umask(before)
    assert content(journal.path.parent) == ["run.db", "run.db-wal"]
    assert modes(journal.path) == [0o600, 0o600]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
async def test_permissions_of_an_existing_file_stay(path: Path) -> None:
    """An existing file may be shared on purpose."""
    os.close(os.open(path, os.O_CREAT, 0o640))
    async with opened(path) as journal:
        await job_at(journal, ACCEPTED)
    assert modes(path) == [0o640]


# Disks without locks


@pytest.mark.parametrize("code", [sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_IOERR_LOCK])
async def test_a_disk_without_locks_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """On a network drive whose locks do not work, the error says what to do."""

    def refuse(*_arguments: object, **_options: object) -> None:
        error = sqlite3.OperationalError("locking protocol")
        error.sqlite_errorcode = code
        raise error

    monkeypatch.setattr(sqlite3, "connect", refuse)
    async with opened(path) as journal:
        with pytest.raises(JournalError, match="cannot be locked") as caught:
            await journal.counts()
    assert "local disk" in caught.value.advice
    assert caught.value.money == MONEY


# Forks

FORKED = """
import asyncio, os, sys, traceback, warnings
from fuhu_runway import errors
from fuhu_runway.journal import Journal, Plan

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads

def in_child(life):
    if os.fork():
        return os.waitstatus_to_exitcode(os.wait()[1])
    try:
        life()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def plan(key):
    return Plan(key=key, fingerprint="f", endpoint="TextToVideo")

def attempt(journal, key):
    async def trying():
        try:
            await journal.plan(plan(key), 1.0)
            print(key, "ok")
        except errors.JournalError as error:
            print(key, type(error).__name__, error.happened, error.money)
        await journal.aclose()
    return lambda: asyncio.run(trying())

journal, unused, used = Journal(sys.argv[1]), Journal(sys.argv[2]), Journal(sys.argv[3])

async def parent():
    await used.plan(plan("before"), 1.0)
    await used.aclose()
    await journal.plan(plan("parent"), 1.0)
    # While the lock is held, as another thread may hold it.
    for one in (journal, unused, used):
        one._writer._starting.acquire()
    codes = [
        in_child(attempt(journal, "forked")),
        in_child(attempt(Journal(sys.argv[1]), "own")),
        in_child(attempt(unused, "unused")),
        in_child(attempt(used, "used")),
    ]
    for one in (journal, unused, used):
        one._writer._starting.release()
    await journal.plan(plan("still here"), 1.0)
    codes.append(in_child(lambda: in_child(attempt(journal, "grandchild"))))
    print(codes, [job.key for job in await journal.jobs()])
    await journal.aclose()
    print([job.key for job in await used.jobs()])
    await used.aclose()

asyncio.run(parent())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_forked_child_gets_an_error(tmp_path: Path) -> None:
    """A journal that was open at the fork is the parent's; a closed or unused one works."""
    with python(FORKED, *(tmp_path / f"{name}.db" for name in "abc")) as process:
        said, _ = process.communicate(timeout=60)
    theirs = "JournalBusy The journal 'a.db' was open when this process was forked: it belongs"
    assert said.splitlines() == [
        f"forked {theirs} to the parent process. {MONEY}",
        f"own JournalBusy Another process has the journal 'a.db' open. {MONEY}",
        "unused ok",
        "used ok",
        f"grandchild {theirs} to the parent process. {MONEY}",
        "[0, 0, 0, 0, 0] ['parent', 'still here']",
        "['before', 'used']",
    ]
    assert process.returncode == 0


async def test_a_fork_is_imitated(
    journal: Journal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller gets the error, an event that cannot be written is logged, closing does nothing."""
    before = await job_at(journal, ACCEPTED)
    child = Journal(journal.path)
    child._writer._thread = journal._writer._thread
    monkeypatch.setattr(base, "_JOURNALS", {child})
    base._after_fork()
    with pytest.raises(JournalBusy, match="when this process was forked"):
        await child.jobs()
    child.note(settled(TaskState.SUCCEEDED))
    await child.aclose()
    assert [record.getMessage() for record in caplog.records] == [
        "The journal could not be written (JournalBusy)."
    ]
    assert await journal.jobs() == [before]


# Secrets

MARK: Final = "marked-7c1e9d5b"


@pytest.mark.parametrize(
    ("system", "line"),
    [
        ("posix", """fuhu-runway jobs '/clips of mine/it'"'"'s.db'"""),
        ("nt", 'fuhu-runway jobs "/clips of mine/it\'s.db"'),
    ],
)
def test_a_command_is_quoted_for_the_shell_of_the_system(
    monkeypatch: pytest.MonkeyPatch, system: str, line: str
) -> None:
    """The shells of Windows know double quotes alone."""
    monkeypatch.setattr(os, "name", system)
    shown = command_line("fuhu-runway", "jobs", "/clips of mine/it's.db")
    monkeypatch.undo()
    assert shown == line


async def test_the_file_holds_no_prompt_and_no_address(journal: Journal) -> None:
    """Not a byte on disk, write-ahead log included, is from the prompt or an address."""
    requests: list[Generation] = [
        TextToVideo(f"a {MARK} kitten", extra={MARK: MARK}),
        ImageToVideo(f"a {MARK} puppy", f"https://example.com/{MARK}.png"),
    ]
    for request in requests:
        plan = plan_of(request)
        await journal.plan(plan, NOW)
        await journal.step(plan.key, SUBMITTING, NOW)
    assert MARK.encode() not in every_byte(journal.path)
    await journal.aclose()
    assert MARK.encode() not in every_byte(journal.path)


def every_byte(path: Path) -> bytes:
    """Return all that is on disk of a journal."""
    files = sorted(path.parent.glob(f"{path.name}*"))
    assert files
    return b"".join(file.read_bytes() for file in files)


async def test_a_journal_waits_for_the_server_before(tmp_path: Path) -> None:
    """While a deployment replaces it, the old one still has the file."""
    path = tmp_path / "run.db"
    before = Journal(path)
    await before.counts()
    after = Journal(path, wait=60)
    starting = asyncio.ensure_future(after.counts())
    await asyncio.sleep(BUSY_PAUSE * 2)
    assert not starting.done()
    await before.aclose()
    await starting
    await after.aclose()


async def test_a_job_is_json(tmp_path: Path) -> None:
    """`as_dict` has every field of the row, in values that JSON has, and nothing that is secret."""
    async with opened(tmp_path / "run.db") as journal:
        plan = plan_of(TextToVideo("a marked kitten"), custom_id="order 7", tag="shop")
        row = (await journal.plan(plan, 7.0)).as_dict()
    assert row == json.loads(json.dumps(row))
    assert (row["state"], row["custom_id"], row["planned_at"]) == ("planned", "order 7", 7.0)
    assert row.keys() == {field.name for field in attrs.fields(Job)}
    assert "marked" not in str(row)
