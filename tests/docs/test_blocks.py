"""The README and the pages are programs: each Python block runs as it stands."""

import ast
import asyncio
import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.evaluators.python import pad
from sybil.parsers.myst import CodeBlockParser

from fuhu_runway.testing import Simulator

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("page", [page for page in DOCUMENTS if list(DOCUMENTS[page].examples())])
def test_each_block_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who types the page's blocks in order gets through, with no key and no network."""
    monkeypatch.chdir(tmp_path)
    with simulated() as gateway, asyncio.Runner() as runner:
        for name, value in gateway.environment().items():
            monkeypatch.setenv(name, value)
        DOCUMENTS[page].namespace["__runner__"] = runner
        for example in DOCUMENTS[page].examples():
            example.evaluate()
