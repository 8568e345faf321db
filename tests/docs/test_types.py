"""Strict type checkers accept the programs of the how-tos."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.myst import CodeBlockParser

import fuhu_runway

ROOT = Path(__file__).parents[2]
PACKAGE = Path(fuhu_runway.__file__).parents[1]
pytestmark = pytest.mark.timeout(600)
ONE_PROGRAM = {"notebook", "test-your-app"}
"""The cells of one notebook, and one test file."""
LOOSE = {"any-test-framework", "notebook", "test-your-app"}
"""Tests and cells, which are written without annotations; what they call is checked."""
APPS = {
    "any-other-queue",
    "aiohttp-app",
    "background-worker",
    "celery",
    "chat-bot",
    "containers",
    "django-app",
    "fastapi-app",
    "graceful-shutdown",
    "logging",
    "metrics",
    "module-level-client",
    "several-workers",
    "task-group",
}
"""Programs that a reader takes over as they are."""


def write_programs(folder: Path) -> dict[str, list[str]]:
    """Write each Python block of the how-tos as a module, and return their names by page."""
    sybil = Sybil([CodeBlockParser("python", lambda _: None)], path=str(ROOT))
    folder.mkdir()
    modules: dict[str, list[str]] = {}
    for page in sorted(ROOT.glob("docs/howto/*.md")):
        blocks = [str(block.parsed) for block in sybil.parse(page).examples()]
        if page.stem in ONE_PROGRAM:
            blocks = ["\n\n".join(blocks)]
        for number, code in enumerate(blocks, 1):
            name = f"{page.stem.replace('-', '_')}_{number}"
            try:
                compile(code, str(page), "exec")
            except SyntaxError:  # cells, in which `await` may stand at the top
                code = f"async def page() -> None:\n{textwrap.indent(code, '    ')}"  # noqa: PLW2901
            (folder / f"{name}.py").write_text(code, encoding="utf-8")
            modules.setdefault(page.stem, []).append(name)
    return modules


def accepted(*command: str, folder: Path) -> None:
    """Run a type checker over the modules in *folder*, and fail with its output."""
    ran = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_mypy_accepts_every_how_to(tmp_path: Path) -> None:
    """One run of `mypy --strict` checks all of them."""
    pytest.importorskip("mypy")
    modules = write_programs(tmp_path / "pages")
    settings = "[mypy]\nstrict = True\n"
    if "site-packages" not in str(PACKAGE):
        settings += f"mypy_path = {PACKAGE}\n"  # mypy finds what is installed by itself
    for name in (name for page in sorted(LOOSE) for name in modules[page]):
        settings += f"[mypy-pages.{name}]\n"
        settings += "disallow_untyped_calls = False\ndisallow_untyped_defs = False\n"
        settings += "disallow_incomplete_defs = False\n"
    (tmp_path / "mypy.ini").write_text(settings)
    (tmp_path / "pages/__init__.py").touch()
    accepted("mypy", "--config-file", "mypy.ini", "-p", "pages", folder=tmp_path)


@pytest.mark.skipif(not shutil.which("node"), reason="pyright would download node")
def test_pyright_accepts_the_apps(tmp_path: Path) -> None:
    """The apps pass its strict mode as well."""
    pytest.importorskip("pyright")
    modules = write_programs(tmp_path / "pages")
    settings = {
        "typeCheckingMode": "strict",
        "include": [f"pages/{name}.py" for page in sorted(APPS) for name in modules[page]],
        "extraPaths": [str(PACKAGE)],
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    accepted("pyright", "--pythonpath", sys.executable, folder=tmp_path)
