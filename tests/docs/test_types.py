"""The programs of the how-tos are what strict type checkers accept."""

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
LOOSE = {"any-test-framework", "notebook", "test-your-app"}
"""Tests and cells, which are written without annotations; what they call is checked."""
APPS = {
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


def write_programs(folder: Path) -> None:
    """Write the Python blocks of each how-to as one module; `await` may stand at its top."""
    sybil = Sybil([CodeBlockParser("python", lambda _: None)], path=str(ROOT))
    folder.mkdir()
    for page in ROOT.glob("docs/howto/*.md"):
        code = "\n\n".join(str(block.parsed) for block in sybil.parse(page).examples())
        try:
            compile(code, str(page), "exec")
        except SyntaxError:
            code = f"async def page() -> None:\n{textwrap.indent(code, '    ')}"
        (folder / f"{module(page.stem)}.py").write_text(code, encoding="utf-8")


def module(page: str) -> str:
    """Return what the module of a page is called."""
    return "page_" + page.replace("-", "_")


def accepted(*command: str, folder: Path) -> None:
    """Run a type checker over the modules in *folder*, and fail with what it says."""
    ran = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_mypy_accepts_every_how_to(tmp_path: Path) -> None:
    """One run of `mypy --strict` checks them all."""
    pytest.importorskip("mypy")
    write_programs(tmp_path / "pages")
    settings = "[mypy]\nstrict = True\n"
    if "site-packages" not in str(PACKAGE):
        settings += f"mypy_path = {PACKAGE}\n"  # mypy finds what is installed by itself
    for page in sorted(LOOSE):
        settings += f"[mypy-pages.{module(page)}]\n"
        settings += "disallow_untyped_calls = False\ndisallow_untyped_defs = False\n"
        settings += "disallow_incomplete_defs = False\n"
    (tmp_path / "mypy.ini").write_text(settings)
    (tmp_path / "pages/__init__.py").touch()
    accepted("mypy", "--config-file", "mypy.ini", "-p", "pages", folder=tmp_path)


@pytest.mark.skipif(not shutil.which("node"), reason="pyright would download node")
def test_pyright_accepts_the_apps(tmp_path: Path) -> None:
    """Programs that a reader takes over pass its strict mode as well."""
    pytest.importorskip("pyright")
    write_programs(tmp_path / "pages")
    settings = {
        "typeCheckingMode": "strict",
        "include": [f"pages/{module(page)}.py" for page in sorted(APPS)],
        "extraPaths": [str(PACKAGE)],
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    accepted("pyright", "--pythonpath", sys.executable, folder=tmp_path)
