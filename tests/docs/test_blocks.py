"""Each Python block of the README and the pages runs unchanged."""

import asyncio
import atexit
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from support.blocks import ROOT, parsed
from support.programs import PACKAGE, ran
from traitlets.config import Config

from fuhu_runway.testing import Simulator

TEST_FILE = "docs/howto/test-your-app.md"
"""Its blocks are a test file, so that pytest has to run them."""
NOTEBOOK = "docs/howto/notebook.md"
"""Its blocks are the cells of a notebook, so that IPython has to run them."""
WITH_A_DATABASE = {"docs/howto/over-several-machines.md"}
"""Their blocks need a Postgres."""

SETTINGS = """
[pytest]
filterwarnings = error
"""

NOTHING_ELSE = [f"-pno:{plugin}" for plugin in ("aiohttp", "anyio", "asyncio")]
"""With only the extra installed, there is no plugin for asynchronous tests."""


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
DOCUMENTS = {str(page.relative_to(ROOT)): parsed(str(page.relative_to(ROOT))) for page in PAGES}
PROGRAMS = {
    name: page
    for name, page in DOCUMENTS.items()
    if name not in {TEST_FILE, NOTEBOOK} and list(page.examples())
}


@contextmanager
def simulated() -> Iterator[Simulator]:
    """Run the gateway in a thread, outside the page's loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    gateway = Simulator(speed=100)
    try:
        asyncio.run_coroutine_threadsafe(gateway.start(), loop).result()
        yield gateway
    finally:
        asyncio.run_coroutine_threadsafe(gateway.aclose(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Screen(DisplayPublisher):
    """The outputs of a notebook: each displayed value and its updates."""

    def publish(self, data: dict[str, Any], *_: Any, **how: Any) -> None:
        name = how.get("transient", {}).get("display_id")
        self.shown.setdefault(name or object(), []).append(data)

    shown: dict[Any, list[dict[str, Any]]]


@contextmanager
def notebook(folder: Path) -> Iterator[InteractiveShell]:
    """Return a shell that leaves nothing in the user's home."""
    settings = Config(HistoryManager={"enabled": False})
    shell = InteractiveShell.instance(
        config=settings, ipython_dir=str(folder), display_pub_class=Screen
    )
    shell.display_pub.shown = {}
    try:
        yield shell
    finally:
        shell.atexit_operations()
        atexit.unregister(shell.atexit_operations)
        InteractiveShell.clear_instance()


async def run_cells(shell: InteractiveShell, cells: list[str]) -> list[str]:
    """Run *cells* and return the HTML of each cell's last value."""
    shown = []
    for cell in cells:
        ran = await shell.run_cell_async(cell, transformed_cell=shell.transform_cell(cell))
        ran.raise_error()
        formats, _ = shell.display_formatter.format(ran.result)
        shown.append(formats.get("text/html", ""))
    return shown


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_block_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """
    A reader who runs the page's blocks in order gets through, with no key and no network.

    In a process of their own: some set up logging or a task queue for their whole process.
    """
    if name in WITH_A_DATABASE:
        monkeypatch.setenv("FUHU_DATABASE_URL", request.getfixturevalue("database_url"))
    with simulated() as gateway:
        for variable, value in gateway.environment().items():
            monkeypatch.setenv(variable, value)
        command = [sys.executable, "-W", "error", "-m", "support.blocks", name]
        path = os.pathsep.join((PACKAGE, str(ROOT / "tests")))
        done = ran(*command, folder=tmp_path, PYTHONPATH=path)
    assert (done.returncode, "Exception ignored" in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize("page", ["after-an-in-doubt", "resume-a-batch"])
def test_a_program_with_a_journal_may_run_again(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its simulator still has the tasks of the journal, for which the second run would wait."""
    monkeypatch.chdir(tmp_path)
    programs = PROGRAMS[f"docs/howto/{page}.md"]
    blocks = [
        block
        for block in programs.examples()
        if {"Simulator", "journal"} <= {*re.findall(r"\w+", str(block.parsed))}
    ]
    assert blocks
    for block in [*blocks, *blocks]:
        with asyncio.Runner() as runner:
            programs.namespace.clear()
            programs.namespace.update(__runner__=runner, __name__="page")
            block.evaluate()


async def test_the_cells_of_the_notebook_show_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They show the task, its progress during the wait, the clip, a batch and a journal."""
    monkeypatch.chdir(tmp_path)
    cells = [example.parsed for example in DOCUMENTS[NOTEBOOK].examples()]
    with simulated() as gateway, notebook(tmp_path / "ipython") as shell:
        for variable, value in gateway.environment().items():
            monkeypatch.setenv(variable, value)
        values = await run_cells(shell, cells)
        live, batch, *clips = shell.display_pub.shown.values()
    task, _, clip, saved, _, journal, _ = values
    assert "<strong>Queued" in task
    assert "<strong>Succeeded" in live[-1]["text/html"]
    assert len(live) > 1
    assert f'src="{gateway.cdn_url}/' in clip
    assert 'src="kitten.mp4"' in saved
    assert "3 clips, 960 points" in batch[-1]["text/html"]
    assert len([one for [one] in clips if "<video" in one["text/html"]]) == 3
    assert "Journal kittens.db: 1 accepted" in journal


@pytest.mark.parametrize("page", [TEST_FILE, "README.md"])
def test_the_test_files_of_the_pages_pass(page: str, tmp_path: Path) -> None:
    """The test files on the pages pass under pytest."""
    blocks = [str(example.parsed) for example in DOCUMENTS[page].examples()]
    if page != TEST_FILE:
        blocks = [block for block in blocks if "(runway_gateway" in block]
    (tmp_path / "test_app.py").write_text("\n\n".join(blocks), encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(SETTINGS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *NOTHING_ELSE]
    done = ran(*command, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
