"""Each row of each table has a sample, a method, a route and an entry in the docs."""

import json
from collections.abc import AsyncIterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
from support.samples import ACCOUNT, SUBMITS, Read, Sample, reader_of, request_to, samples

from fuhu_runway import Client, errors
from fuhu_runway._http.retry import MAY_REPEAT
from fuhu_runway._wire import refusals
from fuhu_runway._wire.encode import Reply, Request
from fuhu_runway._wire.refusals import REFUSALS, Refusal
from fuhu_runway._wire.tables import (
    DIALECTS,
    ENDPOINTS,
    GATEWAYS,
    STATES,
    Dialect,
    Endpoint,
    Replay,
)
from fuhu_runway.account import KeyLog, TaskPage
from fuhu_runway.errors import Fate
from fuhu_runway.models import Balance, Gateway, KeyStyle, TaskRecord
from fuhu_runway.testing import Simulator

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
OWN_KEY = "sk-simulated"

EACH_ENDPOINT = pytest.mark.parametrize("row", ENDPOINTS.values(), ids=ENDPOINTS)
EACH_DIALECT = pytest.mark.parametrize("row", DIALECTS, ids=lambda row: row.name)
EACH_GATEWAY = pytest.mark.parametrize("row", GATEWAYS.values(), ids=GATEWAYS)
EACH_REFUSAL = pytest.mark.parametrize("row", REFUSALS, ids=lambda row: row.source)

#: Which file has the samples of each dialect, as tests/samples/README.md says.
FOLDERS = {
    "openai_error": "openai-error",
    "dashboard_error": "dashboard",
    "dashboard_task": "dashboard",
    "dashboard_balance": "balance",
    "midjourney_error": "midjourney",
    "envelope": "envelope",
    "relay": "task-envelope",
    "task_error": "task-error",
    "billing_limit": "balance",
    "billing_usage": "balance",
    "account_quota": "balance",
    "bare_relay": "bare-task",
    "callback": "callback",
    "callback_by_id": "ids",
    "luma": "luma-like",
    "official": "official",
}


def page(name: str) -> str:
    """Return a page of the reference."""
    return (REFERENCE / f"{name}.md").read_text("utf-8")


def rows_of(name: str) -> list[list[str]]:
    """Return the cells of each row of all tables of a page, in plain text."""
    lines = [line for line in page(name).splitlines() if line.startswith("| ")]
    return [[cell.strip().replace("`", "") for cell in line.split("|")[1:-1]] for line in lines]


# Endpoints


@EACH_ENDPOINT
def test_each_endpoint_has_a_sample(row: Endpoint) -> None:
    """At least one sample is a response of each endpoint."""
    assert any(sample.endpoint == row.name for sample in samples())


@EACH_ENDPOINT
def test_each_endpoint_has_a_method(row: Endpoint) -> None:
    """The client has the method that the row names, with a docstring."""
    method = attrgetter(row.method)(Client(OWN_KEY))
    assert callable(method)
    assert method.__doc__


@EACH_ENDPOINT
def test_each_endpoint_is_in_the_docs(row: Endpoint) -> None:
    """The page of endpoints has each row with its verb, path and source."""
    (entry,) = [cells for cells in rows_of("endpoints") if cells[0] == row.name]
    text = " ".join(entry)
    assert row.verb in text
    assert row.path in text
    assert row.source in text
    assert ("points" in entry) is (row.replay is Replay.PAID)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A plain aiohttp session."""
    async with aiohttp.ClientSession() as session:
        yield session


async def exchanged(session: aiohttp.ClientSession, request: Request) -> Read:
    """Send a request without the client, and return what the response is read as."""
    async with session.request(
        request.endpoint.verb, request.url, data=request.body, headers=request.headers
    ) as response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        reply = Reply(request, response.status, headers, await response.read())
        return reader_of(request.endpoint.name)(reply)


def at(simulator: Simulator, row: Gateway = GATEWAYS["fuhuapi"]) -> Gateway:
    """Return a gateway with the address of the simulator."""
    return attrs.evolve(row, base_url=simulator.base_url, quota_url=simulator.base_url)


@EACH_ENDPOINT
async def test_each_endpoint_has_a_route_in_the_simulator(
    row: Endpoint, session: aiohttp.ClientSession
) -> None:
    """The simulator, which shares no table with the client, serves each endpoint."""
    account = {"access_token": ACCOUNT.access_token, "user_id": int(ACCOUNT.user_id)}
    async with Simulator(**account) as simulator:  # type: ignore[arg-type]
        submit = "official_image_to_video" if row.name == "official_task" else "text_to_video"
        task = await exchanged(session, request_to(submit, at(simulator), key=OWN_KEY))
        assert isinstance(task, TaskRecord)
        request = request_to(row.name, at(simulator), task.task_id, OWN_KEY)
        lists = {"account_tasks": TaskPage, "key_log": KeyLog}
        kind = lists.get(row.name, Balance if row.route else TaskRecord)
        assert isinstance(await exchanged(session, request), kind)
        assert simulator.leaked == ()


@EACH_GATEWAY
async def test_each_gateway_has_a_route_in_the_simulator(
    row: Gateway, session: aiohttp.ClientSession
) -> None:
    """With each gateway's prefix, verb and key style a task can be submitted and polled."""
    styles: Mapping[KeyStyle, Any] = {KeyStyle.BEARER: "bearer", KeyStyle.BODY: "any"}
    async with Simulator(key_style=styles[row.key_style]) as simulator:
        for name in SUBMITS:
            record = await exchanged(session, request_to(name, at(simulator, row), key=OWN_KEY))
            assert isinstance(record, TaskRecord)
            poll = "official_task" if name.startswith("official") else "feed"
            request = request_to(poll, at(simulator, row), record.task_id, OWN_KEY)
            seen = await exchanged(session, request)
            assert isinstance(seen, TaskRecord)
            assert seen.task_id == record.task_id
        assert simulator.submitted == len(SUBMITS)


# Dialects


def dialect_of(sample: Sample) -> Dialect | None:
    """Return the dialect that a sample's body fits, if it is an object at all."""
    try:
        body = json.loads(sample.body.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return None
    rows = [row for row in DIALECTS if isinstance(body, dict) and row.fits(body)]
    return rows[0] if rows else None


@EACH_DIALECT
def test_each_dialect_has_samples(row: Dialect) -> None:
    """Some sample in the dialect's file is recognised as that dialect."""
    own = [sample for sample in samples() if sample.folder == FOLDERS[row.name]]
    assert any(dialect_of(sample) is row for sample in own)


@EACH_DIALECT
def test_each_dialect_is_in_the_docs(row: Dialect) -> None:
    """The page of dialects has each row with its letter."""
    names = [cells for cells in rows_of("dialects") if row.name in cells]
    assert names
    assert row.letter in names[0]


def test_the_docs_keep_the_order_of_the_dialects() -> None:
    """The page lists the dialects in the order in which they are tried."""
    listed = [cell for cells in rows_of("dialects") for cell in cells[:3] if cell in FOLDERS]
    assert listed[: len(DIALECTS)] == [row.name for row in DIALECTS]


def test_every_file_of_samples_is_known() -> None:
    """Files other than the dialects' own are for refusals, pages, headers and lists."""
    others = {"envelope-error", "loose", "nested-error", "no-dialect", "not-json"}
    others |= {"retry-after", "account-tasks", "key-log"}
    assert {sample.folder for sample in samples()} == {*FOLDERS.values(), *others}


# Words


@pytest.mark.parametrize("word", STATES)
def test_each_word_is_in_the_docs(word: str) -> None:
    """The page of states lists every status that is known."""
    assert any(word in " ".join(cells).split() for cells in separated("states"))


def separated(name: str) -> list[list[str]]:
    """Return the rows of a page without the commas between words."""
    return [[cell.replace(",", " ") for cell in cells] for cells in rows_of(name)]


# Refusals


@pytest.fixture(scope="module")
def reached() -> dict[str, list[Refusal]]:
    """The refusals that each sample reaches."""
    lines: dict[str, list[Refusal]] = {}
    find = refusals.row_for

    with pytest.MonkeyPatch.context() as patch:
        for sample in samples():
            met = lines.setdefault(sample.name, [])
            patch.setattr(
                refusals,
                "row_for",
                lambda *args, met=met, **on: met.append(find(*args, **on)) or met[-1],
            )
            try:
                sample.read()
            except errors.RunwayError:
                continue
    return lines


@EACH_REFUSAL
def test_each_refusal_has_a_sample(row: Refusal, reached: dict[str, list[Refusal]]) -> None:
    """No row of the table is hidden behind another: a sample reaches it."""
    assert any(row in met for met in reached.values())


@EACH_REFUSAL
def test_each_refusal_is_in_the_docs(row: Refusal) -> None:
    """The page of refusals has each row's error, and all codes that lead to it."""
    entries = [
        " ".join(cells) for cells in rows_of("refusals") if row.raises.__name__ in str(cells)
    ]
    assert entries
    for code in row.codes:
        assert any(code in entry for entry in entries)


# Gateways and retries


@EACH_GATEWAY
def test_each_gateway_is_in_the_docs(row: Gateway) -> None:
    """The page of gateways has each row with its address and prefix."""
    (entry,) = [cells for cells in rows_of("gateways") if cells[0] == row.name]
    assert row.prefix in entry
    assert row.base_url is None or row.base_url in entry


#: Whether a free and a paid request are retried, by fate.
RETRIED = {
    Fate.UNSENT: (True, True),
    Fate.REFUSED: (True, True),
    Fate.UNKNOWN: (True, False),
    Fate.REJECTED: (False, False),
}


@pytest.mark.parametrize("fate", Fate)
def test_what_may_be_retried_is_what_the_docs_promise(fate: Fate) -> None:
    """Code and page agree on what is retried: never a paid request of unknown fate."""
    promised = RETRIED[fate]
    assert (Replay.FREE in MAY_REPEAT[fate], Replay.PAID in MAY_REPEAT[fate]) == promised
    (entry,) = [cells for cells in rows_of("retries") if cells[0] == fate.name]
    assert tuple(cell == "again" for cell in entry[-2:]) == promised
    assert (Fate.UNKNOWN is fate) is ("SubmissionInDoubt" in entry[-1])


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ],
)
def test_each_error_is_in_the_docs(kind: type[Exception]) -> None:
    """The page of errors has each class."""
    assert kind.__name__ in page("errors")
