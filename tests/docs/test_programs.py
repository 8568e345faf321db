"""The programs of the pages that SIGTERM stops, each run as a process."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path

import pytest
from support.programs import program

import fuhu_runway
from fuhu_runway.testing import Simulator

pytestmark = pytest.mark.timeout(300)
CELERY = """
import sys
import clips

folders = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"}
clips.app.conf.update(broker_url="filesystem://", broker_transport_options=folders)
if sys.argv[1] == "order":
    clips.make_clip.delay(*sys.argv[2:])
else:
    clips.app.worker_main(sys.argv[1:])
"""
"""The page's worker, with a broker that is made of files."""


async def printed(
    *command: str,
    folder: Path,
    gateway: Simulator,
    happened: Callable[[], object] | None = None,
    **variables: str,
) -> str:
    """Run a program, stop it with SIGTERM once something has *happened*, return its output."""
    # The package under test, either from the source tree or installed.
    package = str(Path(fuhu_runway.__file__).parents[1])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        cwd=folder,
        env={
            **os.environ,
            **gateway.environment(),
            **variables,
            "PYTHONPATH": package,
            "PYTHONSAFEPATH": "",
        },
        stdout=PIPE,
    )
    try:
        while happened is not None and not happened():
            assert process.returncode is None
            await asyncio.sleep(0.02)
        if happened is not None:
            process.terminate()
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode in {0, -signal.SIGTERM}
    return out.decode()


async def test_the_bot_sends_each_clip_to_its_chat_also_after_a_restart(tmp_path: Path) -> None:
    """Two chats get their clip or an apology, the interrupted one after the restart."""
    (tmp_path / "bot.py").write_text(program("chat-bot"))
    (tmp_path / "inbox").mkdir()
    for name, prompt in (("1@7", "a kitten"), ("2@8", "a puppy"), ("3@8", "a dragon")):
        (tmp_path / f"inbox/{name}.txt").write_text(prompt)
    chats = tmp_path / "chats"
    async with Simulator(speed=100, takes=20) as gateway:
        gateway.script("a puppy", takes=1000)
        gateway.script("a dragon", then="fail")

        async def run(*files: str) -> str:
            return await printed(
                "bot.py",
                folder=tmp_path,
                gateway=gateway,
                happened=lambda: all((chats / file).exists() for file in files),
            )

        assert "unfinished: ['" in await run("7/1.mp4", "8/3.txt")
        assert "unfinished: []" in await run("8/2.mp4")
        assert gateway.submitted == 3
    assert (chats / "8/3.txt").read_text() == "This one did not work."
    assert list((tmp_path / "outbox").iterdir()) == []


async def test_celery_pays_once_for_a_job_that_is_delivered_twice(tmp_path: Path) -> None:
    """A job sent twice makes one clip, and SIGTERM returns unfinished jobs to the queue."""
    pytest.importorskip("celery")
    (tmp_path / "clips.py").write_text(program("celery"))
    (tmp_path / "run.py").write_text(CELERY)
    for folder in ("queue", "control"):
        (tmp_path / folder).mkdir()
    worker = ("run.py", "worker", "--pool", "threads", "--concurrency", "10", "-l", "error")
    async with Simulator(speed=100, takes=20) as gateway:
        gateway.script("a puppy", takes=1000)
        for job in (("order-1", "a kitten"), ("order-1", "a kitten"), ("order-2", "a puppy")):
            await printed("run.py", "order", *job, folder=tmp_path, gateway=gateway)
        await printed(
            *worker,
            folder=tmp_path,
            gateway=gateway,
            happened=lambda: (tmp_path / "clips/order-1.mp4").exists() and gateway.submitted == 2,
        )
        assert len(list((tmp_path / "queue").iterdir())) == 1
        await printed(
            *worker,
            folder=tmp_path,
            gateway=gateway,
            happened=(tmp_path / "clips/order-2.mp4").exists,
        )
        assert gateway.submitted == 2


ALL_TWICE = """
import os, signal, sys
from celery.signals import task_success
import clips

results = []

@task_success.connect
def count(result: str, **_: object) -> None:
    results.append(result)
    if len(results) == 4:
        print(*sorted(results), sep=chr(10), flush=True, file=sys.__stdout__)
        os.kill(os.getpid(), signal.SIGTERM)

for _ in range(2):
    clips.make_clip.delay("order-1", "a kitten")
    clips.make_clip.delay("order-2", "a puppy")
clips.app.worker_main("worker --pool threads --concurrency 4 -l error".split())
"""
"""The worker of the page about any queue, with a broker in memory that has each job twice."""


async def test_celery_with_a_shared_journal_needs_no_names_for_its_workers(tmp_path: Path) -> None:
    """Four jobs with two names end as two clips, which are paid for once."""
    pytest.importorskip("celery")
    (tmp_path / "clips.py").write_text(program("any-other-queue", 2))
    (tmp_path / "run.py").write_text(ALL_TWICE)
    async with Simulator(speed=100, takes=20) as gateway:
        out = await printed("run.py", folder=tmp_path, gateway=gateway)
        assert [line for line in out.splitlines() if line.startswith("order-")] == [
            *["order-1: clips/order-1.mp4"] * 2,
            *["order-2: clips/order-2.mp4"] * 2,
        ]
        assert gateway.submitted == 2


async def test_a_queue_that_delivers_everything_twice_costs_nothing_more(tmp_path: Path) -> None:
    """Three orders end twice each, also in a second run, and three clips are paid for."""
    (tmp_path / "worker.py").write_text(program("any-other-queue"))
    async with Simulator(speed=100, takes=20) as gateway:
        for _ in range(2):
            out = await printed("worker.py", folder=tmp_path, gateway=gateway)
            assert sorted(out.splitlines()) == [
                line for n in (1, 2, 3) for line in [f"order-{n}: clips/order-{n}.mp4"] * 2
            ]
        assert gateway.submitted == 3


async def test_two_machines_with_one_database_pay_once_for_what_both_get(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The same program, run twice at the same time, makes three clips of twelve messages."""
    pytest.importorskip("psycopg")
    url = request.getfixturevalue("database_url")
    text = program("any-other-queue")
    assert "seconds=30" in text
    (tmp_path / "worker.py").write_text(text.replace("seconds=30", "seconds=0.3"))
    async with Simulator(speed=100, takes=20) as gateway:
        outs = await asyncio.gather(
            *(
                printed("worker.py", folder=tmp_path, gateway=gateway, FUHU_DATABASE_URL=url)
                for _ in range(2)
            )
        )
        assert gateway.submitted == 3
    lines = [line for out in outs for line in out.splitlines()]
    ends = [line for line in lines if "is delivered again" not in line]
    assert len(ends) == 12
    assert len({line for line in ends if line.endswith(".mp4")}) == 3


@pytest.mark.parametrize(
    ("page", "name", "folder"),
    [("module-level-client", "clips.py", "."), ("containers", "worker.py", "data")],
)
async def test_a_program_that_is_run_again_pays_for_nothing_again(
    page: str, name: str, folder: str, tmp_path: Path
) -> None:
    """Jobs that SIGTERM interrupted are found by name, and saved by the next run."""
    (tmp_path / name).write_text(program(page))
    data = tmp_path / folder
    data.mkdir(exist_ok=True)
    if page == "containers":
        (data / "order-1.txt").write_text("a kitten")
        (data / "order-2.txt").write_text("a puppy")
    async with Simulator(speed=100, takes=20) as gateway:
        gateway.script("a puppy", takes=1000)
        out = await printed(
            name,
            folder=tmp_path,
            gateway=gateway,
            happened=lambda: (data / "order-1.mp4").exists() and gateway.submitted == 2,
        )
        assert "unfinished: ['" in out
        await printed(
            name,
            folder=tmp_path,
            gateway=gateway,
            happened=(data / "order-2.mp4").exists,
        )
        assert gateway.submitted == 2
