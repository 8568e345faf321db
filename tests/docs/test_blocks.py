"""The README and the pages are programs: each Python block runs as it stands."""

import ast
import asyncio
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sybil import Document, Example, Sybil
from sybil.evaluators.python import pad
from sybil.parsers.myst import CodeBlockParser

import fuhu_runway
from fuhu_runway.testing import Simulator

ROOT = Path(__file__).parents[2]
TEST_FILE = "docs/howto/test-your-app.md"
"""Its blocks are a test file, so that pytest has to run them."""

SETTINGS = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""


def run_block(example: Example) -> None:
    """Run one block the way a notebook runs a cell: `await` may stand at the top."""
    code = compile(
        pad(example.parsed, example.line + example.parsed.line_offset),
        example.path,
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )
    outcome = eval(code, example.namespace)  # noqa: S307 - our own pages
    if inspect.iscoroutine(outcome):
        example.namespace["__runner__"].run(outcome)


SYBIL = Sybil([CodeBlockParser("python", run_block)], path=str(ROOT))
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
DOCUMENTS = {str(page.relative_to(ROOT)): SYBIL.parse(page) for page in PAGES}
PROGRAMS = {
    name: page for name, page in DOCUMENTS.items() if name != TEST_FILE and list(page.examples())
}


@contextmanager
def simulated() -> Iterator[Simulator]:
    """Run the gateway in a thread of its own, as far from the page's loop as a real one."""
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


def run_page(page: Document) -> None:
    """Run the blocks of *page* in order, and then the tests that they define."""
    with asyncio.Runner() as runner:
        page.namespace["__runner__"] = runner
        for example in page.examples():
            example.evaluate()
        for name, value in [*page.namespace.items()]:
            if name.startswith("test_"):
                runner.run(value())


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_block_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who types the page's blocks in order gets through, with no key and no network."""
    monkeypatch.chdir(tmp_path)
    with simulated() as gateway:
        for variable, value in gateway.environment().items():
            monkeypatch.setenv(variable, value)
        run_page(PROGRAMS[name])


def test_the_test_file_of_the_page_about_tests_passes(tmp_path: Path) -> None:
    """Pytest, given nothing but the blocks of the page, passes each of its tests."""
    blocks = [example.parsed for example in DOCUMENTS[TEST_FILE].examples()]
    (tmp_path / "test_app.py").write_text("\n\n".join(blocks), encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(SETTINGS, encoding="utf-8")
    # The very package that is tested here, be it the tree's or an installed one.
    environment = os.environ | {"PYTHONPATH": str(Path(fuhu_runway.__file__).parents[1])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
