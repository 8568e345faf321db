"""A Postgres for tests: `FUHU_TEST_DATABASE_URL`, or else a server of the test run's own."""

import os
from collections.abc import Iterator

import pytest

from fuhu_runway.contrib.local_postgres import LocalPostgres, temporary_database


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Yield the URL of a server, where a test must not stop it nor use its own database."""
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
