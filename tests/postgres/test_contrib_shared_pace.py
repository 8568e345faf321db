"""The shared pace on a Postgres; how it is shared is tested without one."""

import asyncio
import math
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.clients import EventRecorder, quick_client
from support.clock import until

pytest.importorskip("psycopg", reason="the extra postgres is not installed")

import psycopg

from fuhu_runway import Client
from fuhu_runway.contrib import shared_pace
from fuhu_runway.contrib.shared_pace import SharedPace
from fuhu_runway.errors import UsageError
from fuhu_runway.hooks import PaceLost, PaceRecovered
from fuhu_runway.models import Limits
from fuhu_runway.testing import Simulator

Rows = psycopg.Connection[tuple[object, ...]]

END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'"
QUICK = Limits(requests_per_second=500)


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    """Yield a connection that looks at the table."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def outside(statement: str, postgres: str) -> None:
    """Run a statement from another database of the server."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(statement)


async def test_two_clients_with_one_key_share_one_row(database_url: str, rows: Rows) -> None:
    """Two clients of one process, each with a pace of its own, share a row; none is refused."""
    async with (
        Simulator(rate_limit=200.0, burst=100) as gateway,
        quick_client(gateway, pace=SharedPace(database_url), limits=QUICK) as one,
        quick_client(gateway, pace=SharedPace(database_url), limits=QUICK) as other,
    ):
        await asyncio.gather(*(client.balance() for client in (one, other) * 20))
        assert gateway.limited == 0
        [(key, version, state)] = rows.execute("SELECT * FROM fuhu_pace").fetchall()
        assert len(str(key)) == 16
        assert int(str(version)) >= 2
        assert gateway.api_key not in f"{key}{state}"
        assert "a second" in repr(one)


async def test_another_key_or_gateway_has_another_row(database_url: str, rows: Rows) -> None:
    """The pace belongs to a key at a gateway; a slash at the end of its URL makes no difference."""
    async with Simulator() as gateway, Simulator() as second:
        gateway.add_key("another-key")
        pace = SharedPace(database_url)
        for client in (
            quick_client(gateway, pace=pace),
            quick_client(gateway, pace=pace, base_url=f"{gateway.base_url}/"),
            quick_client(second, pace=pace),
        ):
            async with client:
                await client.balance()
        assert rows.execute("SELECT count(*) FROM fuhu_pace").fetchall() == [(2,)]


async def test_the_table_may_be_made_before(database_url: str, rows: Rows) -> None:
    """`init` makes the table, and leaves one that is there alone."""
    await SharedPace(database_url).init()
    rows.execute("INSERT INTO fuhu_pace VALUES ('a', 1, '{}')")
    await SharedPace(database_url).init()
    assert rows.execute("SELECT key FROM fuhu_pace").fetchall() == [("a",)]


FIRST_WRITE_IS_LOST = """
CREATE SEQUENCE writes;
CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('writes') = 1 THEN RETURN NULL; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER lose BEFORE INSERT ON fuhu_pace FOR EACH ROW EXECUTE FUNCTION lose();
"""


async def test_an_exchange_that_another_worker_came_before_is_repeated(
    database_url: str, rows: Rows
) -> None:
    """What changes no row was not written, and is tried again with the row as it then is."""
    await SharedPace(database_url).init()
    rows.execute(FIRST_WRITE_IS_LOST)
    async with (
        Simulator() as gateway,
        quick_client(gateway, pace=SharedPace(database_url), limits=QUICK) as client,
    ):
        await client.balance()
    # In this order: the thread of a closed client may be in the middle of its last exchange.
    [(version,)] = rows.execute("SELECT version FROM fuhu_pace").fetchall()
    [(writes,)] = rows.execute("SELECT last_value FROM writes").fetchall()
    assert int(str(writes)) > int(str(version)) > 0


async def test_while_the_database_is_gone_nothing_is_sent(
    database_url: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that goes away is reported once; requests wait, and go on when it is back."""
    monkeypatch.setattr(shared_pace, "PAUSE", 0.01)
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    recorder = EventRecorder()
    async with (
        Simulator() as gateway,
        quick_client(
            gateway, pace=SharedPace(database_url), limits=QUICK, hooks=[recorder]
        ) as client,
    ):
        await client.balance()
        outside(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false", postgres)
        outside(END.format(name), postgres)
        loop = asyncio.get_running_loop()
        pace = client._sessions.by_loop[loop].limiter.pace
        waiting = asyncio.create_task(ask_forever(client))
        await until(lambda: recorder.all(PaceLost) and pace.ready_at(loop.time()) == math.inf)
        await until(lambda: "1 waiting" in repr(client))
        sent = len(gateway.requests)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert len(gateway.requests) == sent
        outside(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true", postgres)
        await until(lambda: len(gateway.requests) > sent)
        waiting.cancel()
        assert len(recorder.all(PaceLost)) == 1
        assert recorder.all(PaceRecovered)


async def ask_forever(client: Client) -> None:
    """Send one request after the other."""
    while True:
        await client.balance()


async def test_closing_does_not_wait_for_the_database(unused_tcp_port: int) -> None:
    """A client whose database was never there closes at once, and its requests are refused."""
    recorder = EventRecorder()
    url = f"postgresql://marked-user:marked-password@127.0.0.1:{unused_tcp_port}/marked"
    async with Simulator() as gateway:
        client = quick_client(gateway, pace=SharedPace(url), hooks=[recorder])
        waiting = asyncio.create_task(client.balance())
        await until(lambda: recorder.all(PaceLost))
        await client.aclose()
        with pytest.raises(UsageError, match="closed"):
            await waiting
        assert gateway.requests == ()
        [lost] = recorder.all(PaceLost)
        assert lost.reason == "no server runs there"


async def test_a_row_that_was_damaged_is_reported(
    database_url: str,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A row that cannot be read stops all requests, and that is reported; deleting it helps."""
    monkeypatch.setattr(shared_pace, "PAUSE", 0.01)
    recorder = EventRecorder()
    async with Simulator() as gateway:
        pace = SharedPace(database_url)
        async with quick_client(gateway, pace=pace) as client:
            await client.balance()
        rows.execute("UPDATE fuhu_pace SET state = 'nonsense'")
        async with quick_client(gateway, pace=pace, hooks=[recorder]) as client:
            balance = asyncio.create_task(client.balance())
            await until(lambda: recorder.all(PaceLost))
            assert recorder.all(PaceLost)[0].reason == "JSONDecodeError"
            rows.execute("DELETE FROM fuhu_pace")
            await balance


@pytest.mark.parametrize("url", [None, "", "postgresql://marked:secret@[host/", "nonsense"])
def test_a_url_that_is_none_is_refused(url: str | None) -> None:
    """No URL, or one that Postgres cannot read, is an error before anything is sent."""
    with pytest.raises(UsageError, match=r"URL of (a|the) database") as caught:
        SharedPace(url)
    assert "secret" not in str(caught.value)


def test_the_url_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """FUHU_DATABASE_URL is the default, and no representation shows it."""
    monkeypatch.setenv("FUHU_DATABASE_URL", "postgresql://marked@127.0.0.1/marked")
    assert repr(SharedPace()) == "<SharedPace>"


def test_without_the_extra_the_import_says_which_is_needed() -> None:
    """Without psycopg, the error names the command that installs it."""
    code = "import sys; sys.modules['psycopg'] = None; import fuhu_runway.contrib.shared_pace"
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert 'pip install ".[postgres]"' in ended.stderr


async def test_init_names_what_is_wrong(unused_tcp_port: int) -> None:
    """A database that cannot be used is an error without its URL."""
    with pytest.raises(UsageError, match="no server runs there") as caught:
        await SharedPace(f"postgresql://marked@127.0.0.1:{unused_tcp_port}/marked").init()
    assert "marked" not in str(caught.value)


async def test_a_class_in_place_of_a_pace_is_refused() -> None:
    """What is no SharedPace is refused when the client is made."""
    async with Simulator() as gateway:
        for wrong in (SharedPace, "postgresql://127.0.0.1/"):
            with pytest.raises(UsageError, match="Use a SharedPace, or None"):
                quick_client(gateway, pace=wrong)


PROGRAM = """
import asyncio, os
from fuhu_runway import Client, Limits
from fuhu_runway.contrib.shared_pace import SharedPace

async def main():
    pace, limits = SharedPace(os.environ["DATABASE"]), Limits(requests_per_second=100)
    async with Client(pace=pace, limits=limits) as client:
        await asyncio.gather(*(client.balance() for _ in range(20)))

asyncio.run(main())
"""


async def test_processes_share_the_pace(database_url: str, rows: Rows) -> None:
    """Three processes get slots of one row, each of its own, and all of them end."""
    async with Simulator() as gateway:
        here = {**os.environ, **gateway.environment(), "DATABASE": database_url}
        workers = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", PROGRAM, env=here, stderr=subprocess.PIPE
            )
            for _ in range(3)
        ]
        ends = [(await worker.communicate(), worker.returncode) for worker in workers]
        assert ends == [((None, b""), 0)] * 3
        assert len(gateway.requests) == 3 * 20 * 2  # a balance has two parts
        assert rows.execute("SELECT count(*) FROM fuhu_pace").fetchall() == [(1,)]
