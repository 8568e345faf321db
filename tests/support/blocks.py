"""The blocks of a page, run like the cells of a notebook: `python -m support.blocks PAGE`."""

import ast
import asyncio
import inspect
import os
import sys
from pathlib import Path
from typing import Final

from sybil import Document, Example, Sybil
from sybil.evaluators.python import pad
from sybil.parsers.myst import CodeBlockParser

from .network import refuse_the_outside

ROOT: Final = Path(__file__).parents[2]


def run_block(example: Example) -> None:
    """Run one block with `await` at the top level."""
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


SYBIL: Final = Sybil([CodeBlockParser("python", run_block)], path=str(ROOT))


def parsed(name: str) -> Document:
    """Return a page by its path in the repository."""
    return SYBIL.parse(ROOT / name)


def run_page(name: str) -> None:
    """
    Run the blocks of a page in order, and then the tests that they define.

    In the tutorial and the how-tos, each block is a whole file.
    """
    page, by_itself = parsed(name), name == "docs/tutorial.md" or name.startswith("docs/howto/")
    with asyncio.Runner() as runner:
        for example in page.examples():
            if by_itself:
                page.namespace.clear()
            page.namespace.update(__runner__=runner, __name__="page")
            example.evaluate()
        for test, value in [*page.namespace.items()]:
            if test.startswith("test_") and not inspect.signature(value).parameters:
                runner.run(value())


if __name__ == "__main__":
    sys.addaudithook(refuse_the_outside)
    run_page(sys.argv[1])
    # The loop of a server's thread is never closed, so the interpreter would warn of it.
    sys.stderr.flush()
    os._exit(0)
