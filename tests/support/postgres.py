"""A Postgres for tests: `FUHU_TEST_DATABASE_URL`, or else a server of the test run's own."""

import itertools
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest

from fuhu_runway.contrib.local_postgres import LocalPostgres

NUMBERS = itertools.count()


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
    name = f"fuhu_test_{os.getpid()}_{next(NUMBERS)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    yield urlsplit(postgres)._replace(path=f"/{name}").geturl()
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
