"""The apps of the pages, each run by a real server and stopped by SIGTERM."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from support.clock import until
from support.programs import program

import fuhu_runway
from fuhu_runway.testing import Simulator, faults

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(300)
STOPPED = {0, -signal.SIGTERM}
"""How a server ends: uvicorn raises the signal again when everything is done."""

UVICORN = "-m uvicorn --log-level warning --timeout-graceful-shutdown 10"
GUNICORN = "-m gunicorn --log-level error --workers 1 --graceful-timeout 60"
AIOHTTP = """
import socket, sys
from aiohttp import web
from app import make_app
web.run_app(make_app(), sock=socket.socket(fileno=int(sys.argv[1])), print=None)
"""
SERVERS = {
    "fastapi-app": [*UVICORN.split(), "app:app", "--fd", "{}"],
    "fastapi-app under gunicorn": [
        *GUNICORN.split(),
        *("app:app", "--worker-class", "uvicorn_worker.UvicornWorker", "--bind", "fd://{}"),
    ],
    "aiohttp-app": ["-c", AIOHTTP, "{}"],
    "django-app": [*UVICORN.split(), "--lifespan", "on", "app:application", "--fd", "{}"],
}
"""By page: how its app is served, where {} is the number of the listening socket."""


@asynccontextmanager
async def served(
    command: list[str], folder: Path, gateway: Simulator, **variables: str
) -> AsyncIterator[tuple[Process, ClientSession]]:
    """Serve the app in *folder* from a process, and yield that and a client for it."""
    # The package under test, either from the source tree or installed.
    package = str(Path(fuhu_runway.__file__).parents[1])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *(part.replace("{}", str(listener.fileno())) for part in command)),
            cwd=folder,
            env=os.environ
            | gateway.environment()
            | {"PYTHONPATH": package, "PYTHONSAFEPATH": ""}
            | variables,
            pass_fds=[listener.fileno()],
            stdout=PIPE,
        )
        # Until the server accepts, connections wait in the listener's queue.
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with ClientSession(url) as http:
                yield process, http
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def ended(process: Process) -> str:
    """Stop *process*, and return its output."""
    process.terminate()
    out, _ = await process.communicate()
    assert process.returncode in STOPPED
    return out.decode()


async def answer(http: ClientSession, order: str, prompt: str = "") -> tuple[int, Any]:
    """Request *order*, or create it from a prompt, and return the status and the JSON."""
    method, wanted = ("PUT", {"prompt": prompt}) if prompt else ("GET", None)
    async with http.request(method, f"/clips/{order}", json=wanted) as response:
        return response.status, await response.json()


async def until_saved(http: ClientSession, order: str) -> None:
    """Poll the state of an order until its clip is saved."""
    while not (await answer(http, order))[1]["saved"]:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("name", SERVERS)
async def test_an_app_hands_its_jobs_over_to_the_next_process(name: str, tmp_path: Path) -> None:
    """One order is paid once, and the next process saves jobs that SIGTERM interrupted."""
    page = name.partition(" ")[0]
    (tmp_path / "app.py").write_text(program(page))
    async with Simulator(speed=100, takes=20) as gateway:
        gateway.script("a puppy", takes=500)
        async with served(SERVERS[name], tmp_path, gateway) as (process, http):
            first = await answer(http, "order-1", "a kitten")
            assert first[0] == 202
            assert await answer(http, "order-1", "a kitten") == first
            await until_saved(http, "order-1")
            async with http.get("/clips/order-1/video") as response:
                assert (await response.read())[4:8] == b"ftyp"
            async with http.get("/clips/order-9") as response:
                assert response.status == 404
            assert (await answer(http, "order-3", " "))[0] == 400
            async with http.put("/clips/order-3", json={"promt": "a kitten"}) as response:
                assert response.status in {400, 422}
            _, puppy = await answer(http, "order-2", "a puppy")
            assert await ended(process) == f"unfinished: ['{puppy['id']}']\n"
        async with served(SERVERS[name], tmp_path, gateway) as (process, http):
            await until_saved(http, "order-2")
            assert await ended(process) == "unfinished: []\n"
        assert gateway.submitted == 2


@pytest.mark.parametrize("name", SERVERS)
async def test_a_submit_in_flight_outlives_its_browser_and_its_server(
    name: str, tmp_path: Path
) -> None:
    """If the browser leaves and the server is stopped, the id that arrives later is kept."""
    (tmp_path / "app.py").write_text(program(name.partition(" ")[0]))
    async with Simulator(speed=100, takes=20) as gateway:
        gateway.fault("submit", faults.Slow(200))
        async with served(SERVERS[name], tmp_path, gateway) as (process, http):
            browser = asyncio.create_task(answer(http, "order-1", "a kitten"))
            await until(lambda: gateway.requests)
            browser.cancel()
            await asyncio.wait([browser])
            printed = await ended(process)
        assert printed == f"unfinished: ['{gateway.tasks[0].task_id}']\n"


@pytest.mark.parametrize("name", [name for name in SERVERS if name != "django-app"])
async def test_a_stream_of_updates_ends_with_its_task_or_with_its_server(
    name: str, tmp_path: Path
) -> None:
    """The stream of a finished job says so, and an open one does not delay SIGTERM."""
    page = name.partition(" ")[0]
    (tmp_path / "app.py").write_text(program(page))
    async with Simulator(speed=100, takes=20) as gateway:
        gateway.script("a puppy", then="stall")
        async with served(SERVERS[name], tmp_path, gateway) as (process, http):
            await answer(http, "order-1", "a kitten")
            async with http.get("/clips/order-1/updates") as stream:
                assert (await stream.text()).endswith("event: end\ndata: {}\n\n")
            await answer(http, "order-2", "a puppy")
            async with http.get("/clips/order-2/updates") as stream:
                assert await stream.content.readline()
                process.terminate()
                rest = await stream.text()
            assert rest.endswith(": this process stops; connect again\n\n")
            await process.wait()


async def test_a_worker_waits_for_the_one_that_it_replaces(tmp_path: Path) -> None:
    """It starts while the old one has the journal, and takes over its jobs afterwards."""
    (tmp_path / "app.py").write_text(program("several-workers"))
    command = SERVERS["fastapi-app"]
    async with Simulator(speed=100, takes=20) as gateway:
        gateway.script("a puppy", takes=1000)
        async with (
            served(command, tmp_path, gateway, WORKER="1") as (old, http),
            served(command, tmp_path, gateway, WORKER="2") as (other, other_http),
        ):
            assert (await answer(http, "1", "a puppy"))[1]["worker"] == "1"
            assert (await answer(other_http, "2", "a kitten"))[1]["worker"] == "2"
            await until_saved(other_http, "2")
            async with served(command, tmp_path, gateway, WORKER="1") as (new, new_http):
                waiting = asyncio.create_task(until_saved(new_http, "1"))
                assert "unfinished: ['" in await ended(old)
                await waiting
                assert await ended(new) == await ended(other) == "unfinished: []\n"
        assert gateway.submitted == 2
