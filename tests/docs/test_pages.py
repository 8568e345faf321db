"""Rules for every page, and the tables that are generated from the package."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import fuhu_runway

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
TRY_IT = 'fuhu-runway generate "a kitten" -o kitten.mp4 --simulate'
BY_HAND = [
    README,
    ROOT / "CHANGELOG.md",
    *(
        page
        for page in sorted(ROOT.glob("docs/**/*.md"))
        # What is written elsewhere: by the documents of the gateways, and in the commands.
        if page.name not in {"api-facts.md", "cli.md"}
    ),
]


def prose(page: Path) -> str:
    """Return a page without its code, its tables and its lists of links."""
    blocks = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    text = blocks.sub("", page.read_text(encoding="utf-8"))
    return "\n".join(line for line in text.splitlines() if not line.startswith(("|", "- [")))


def test_the_readme_begins_with_its_two_commands() -> None:
    """The first block of the README installs and tries the package, then checks it."""
    block = re.search(r"```console\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    assert block[1].splitlines() == [
        f'$ python -m pip install ".[cli]" && {TRY_IT}',
        "$ python -m pip install nox && nox",
    ]


@pytest.mark.parametrize("page", BY_HAND, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_sentence_is_on_its_own_line(page: Path) -> None:
    """A line of prose never ends one sentence and begins another."""
    assert not re.findall(r"^.*[a-z`)*][.!?] [A-Z`].*$", prose(page), re.MULTILINE)


def test_each_command_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line accepts each `fuhu-runway` command on a page."""
    cli = pytest.importorskip("fuhu_runway.cli.app")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    for journal in ("clips/journal.db", "FILE", "JOURNAL"):
        (tmp_path / journal).touch()
    # In the text, a command without an argument is only a name.
    lines = re.compile(r"^\$ (.*)$|`(fuhu-runway \w+ [^-`][^`]*)`", re.MULTILINE)
    shown = {
        command
        for page in [README, *ROOT.glob("docs/**/*.md")]
        for line in lines.findall(page.read_text(encoding="utf-8"))
        for command in re.findall(r"\bfuhu-runway [^&|#<]*", "".join(line))
    }
    assert len(shown) > 1
    for command in shown:
        cli.app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)


def test_each_public_name_is_described() -> None:
    """Every exported name is in the reference."""
    pages = ROOT.glob("docs/reference/*.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    described = set(re.findall(r"^\.\. (?:auto|py:)\w+:: (fuhu_runway[\w.]*)$", text, re.MULTILINE))
    assert {f"fuhu_runway.{name}" for name in fuhu_runway.__all__} <= described


def test_each_page_is_in_one_list_of_the_home_page() -> None:
    """The home page links every page once."""
    home = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    listed = [
        line
        for block in re.findall(r"^```{toctree}\n(.*?)^```$", home, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
        if line and not line.startswith(":")
    ]
    pages = (page.relative_to(ROOT / "docs") for page in ROOT.glob("docs/**/*.md"))
    names = {str(page.with_suffix("")) for page in pages if page.parts[0] != "_build"}
    assert sorted(listed) == sorted(names - {"index"})


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("docs/reference/*.md")), ids=lambda page: page.stem
)
def test_each_page_of_the_reference_begins_with_words(page: Path) -> None:
    """A code host does not render directives, so the page needs an introduction."""
    lead = page.read_text(encoding="utf-8").partition("```{")[0]
    assert re.search(r"^(?![#<|]).*[.:]$", lead, re.MULTILINE)


@pytest.mark.parametrize("word", ["poll", "webhook", "upload", "timeout", "rate limit"])
def test_a_search_for_a_common_word_finds_a_title(word: str) -> None:
    """A page has the word in its title, where a search engine matches first."""
    titles = [page.read_text(encoding="utf-8").partition("\n")[0] for page in BY_HAND]
    assert any(word in title.lower() for title in titles)


def test_each_picture_has_a_text_alternative() -> None:
    """Each picture of a page exists and has a text of some length."""
    shown = [
        (page, *found)
        for page in BY_HAND
        for found in re.findall(r"!\[([^]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert shown
    for page, words, path in shown:
        assert (page.parent / path).exists(), path
        assert len(words) > 40, path


def test_each_link_of_the_readme_works() -> None:
    """Every relative link of the README exists in the checkout."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


# Generated tables


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
