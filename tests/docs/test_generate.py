"""The tables of the reference come from the tables of the package, and a stale page is noticed."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import fuhu_runway

DOCS = Path(__file__).parents[2] / "docs"


def generate(*arguments: str, program: str = "generate") -> subprocess.CompletedProcess[str]:
    """Run the generator with the very package that is tested here."""
    environment = os.environ | {"PYTHONPATH": str(Path(fuhu_runway.__file__).parents[1])}
    command = [sys.executable, str(DOCS / f"{program}.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Return a copy of the pages that a test may spoil."""
    return shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("_build"))


def test_the_pages_are_fresh() -> None:
    """What the pages say about the tables is what the tables say."""
    checked = generate("--check")
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stdout + checked.stderr


def test_the_pictures_are_fresh() -> None:
    """The pictures are what `docs/draw.py` draws, with the steps of a job that the journal has."""
    checked = generate("--check", program="draw")
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stdout + checked.stderr


def test_a_stale_page_is_named(pages: Path) -> None:
    """A page that tells of a row that is not there fails the check by its name, untouched."""
    page = pages / "reference" / "states.md"
    spoiled = page.read_text(encoding="utf-8").replace("`throttled`", "`asleep`")
    page.write_text(spoiled, encoding="utf-8")
    checked = generate("--check", "--docs", str(pages))
    assert checked.returncode == 1
    assert "reference/states.md" in checked.stdout
    assert len(checked.stdout.splitlines()) == 1
    assert page.read_text(encoding="utf-8") == spoiled


def test_a_stale_page_is_mended(pages: Path) -> None:
    """Running the generator gives a stale page its table back, and touches nothing else."""
    page = pages / "reference" / "states.md"
    before = page.read_text(encoding="utf-8")
    page.write_text(before.replace("`throttled`", "`asleep`"), encoding="utf-8")
    assert generate("--docs", str(pages)).returncode == 0
    assert page.read_text(encoding="utf-8") == before


def test_each_table_stands_on_one_page() -> None:
    """No table is written that nobody shows, and none is shown twice."""
    shown = Counter(
        name
        for page in DOCS.glob("**/*.md")
        for name in re.findall(r"<!-- generated: (\w+) -->", page.read_text(encoding="utf-8"))
    )
    made = re.search(r"in \(\n(.*?)\n    \)", (DOCS / "generate.py").read_text(), re.DOTALL)
    assert made is not None
    assert shown == Counter(re.findall(r"\w+", made[1]))
