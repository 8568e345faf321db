"""The reference tables are generated from the package, and a stale page is an error."""

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
    """Run the generator with the tested package."""
    environment = os.environ | {"PYTHONPATH": str(Path(fuhu_runway.__file__).parents[1])}
    command = [sys.executable, str(DOCS / f"{program}.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Return a copy of the pages for a test to change."""
    return shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("_build"))


def test_the_pages_are_fresh() -> None:
    """The tables on the pages are up to date."""
    checked = generate("--check")
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stdout + checked.stderr


def test_the_pictures_are_fresh() -> None:
    """The pictures are those of `docs/draw.py`, with the states of the journal."""
    checked = generate("--check", program="draw")
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stdout + checked.stderr


def test_a_stale_page_is_named(pages: Path) -> None:
    """A page with an outdated row fails the check by its name, and is not changed."""
    page = pages / "reference" / "states.md"
    spoiled = page.read_text(encoding="utf-8").replace("`throttled`", "`asleep`")
    page.write_text(spoiled, encoding="utf-8")
    checked = generate("--check", "--docs", str(pages))
    assert checked.returncode == 1
    assert "reference/states.md" in checked.stdout
    assert len(checked.stdout.splitlines()) == 1
    assert page.read_text(encoding="utf-8") == spoiled


def test_a_stale_page_is_updated(pages: Path) -> None:
    """The generator replaces the table on a stale page, and changes nothing else."""
    page = pages / "reference" / "states.md"
    before = page.read_text(encoding="utf-8")
    page.write_text(before.replace("`throttled`", "`asleep`"), encoding="utf-8")
    assert generate("--docs", str(pages)).returncode == 0
    assert page.read_text(encoding="utf-8") == before


def test_each_table_is_on_one_page() -> None:
    """Every table is used exactly once."""
    shown = Counter(
        name
        for page in DOCS.glob("**/*.md")
        for name in re.findall(r"<!-- generated: (\w+) -->", page.read_text(encoding="utf-8"))
    )
    made = re.search(r"in \(\n(.*?)\n    \)", (DOCS / "generate.py").read_text(), re.DOTALL)
    assert made is not None
    assert shown == Counter(re.findall(r"\w+", made[1]))
