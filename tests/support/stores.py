"""A Postgres for tests, and journals of each kind for the tests that are true of all."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.jobs import rows_of

from fuhu_runway.contrib.local_postgres import LocalPostgres, temporary_database
from fuhu_runway.journal import BaseJournal, Journal, journal_at


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """
    Yield the URL of a server: `FUHU_TEST_DATABASE_URL`, or one of the test run's own.

    A test must neither stop it nor use its own database.
    """
    given = os.environ.get("FUHU_TEST_DATABASE_URL")
    if given:
        yield given
        return
    with LocalPostgres() as server:
        yield server.url


@pytest.fixture
def database_url(postgres: str) -> Iterator[str]:
    """Yield the URL of an empty database of the test's own."""
    with temporary_database(postgres) as url:
        yield url


@pytest.fixture(scope="session")
def journal_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the URL of a database whose journal is emptied for each test."""
    pytest.importorskip("psycopg")
    with temporary_database(request.getfixturevalue("postgres")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BaseJournal]:
    """Return an empty journal, once of each kind."""
    if request.param == "sqlite":
        journal: BaseJournal = Journal(tmp_path / "run.db")
    else:
        journal = journal_at(request.getfixturevalue("journal_url"))
        for table in ("job", "ignored"):
            await rows_of(journal, f"DELETE FROM {table} RETURNING 1")  # noqa: S608
    yield journal
    await journal.aclose()
