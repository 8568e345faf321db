"""The entry point: with the extra, without it, and with Ctrl-C before it began."""

import runpy
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from fuhu_runway.__main__ import main


def exit_code_of_main() -> object:
    """Return the exit code of the process."""
    with pytest.raises(SystemExit) as leaving:
        main()
    return leaving.value.code


@pytest.mark.parametrize("missing", ["cyclopts", "rich"])
def test_without_the_extra_one_line_names_it(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a package is missing, one line on stderr says what to install, and the code is 2."""
    monkeypatch.setitem(sys.modules, missing, None)
    assert exit_code_of_main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        'The command line needs an extra; in a checkout: python -m pip install ".[cli]"\n'
    )


def test_without_the_extra_the_command_line_is_not_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check comes before the import of the module that needs the extra."""
    monkeypatch.setitem(sys.modules, "fuhu_runway.cli.app", None)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert exit_code_of_main() == 2


def test_the_version_needs_no_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--version alone prints the version without importing the command line."""
    monkeypatch.setitem(sys.modules, "fuhu_runway.cli.app", None)
    monkeypatch.setattr(sys, "argv", ["fuhu-runway", "--version"])
    assert exit_code_of_main() == 0
    assert capsys.readouterr().out == f"{version('fuhu-runway')}\n"


class FakeCli:
    """Replaces the module, so that this file runs with and without the extra."""

    def __init__(self, outcome: int | BaseException) -> None:
        self.outcome = outcome

    def main(self, tokens: Sequence[str] | None = None) -> int:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def install(monkeypatch: pytest.MonkeyPatch, cli: FakeCli) -> None:
    """Pretend that the extra is installed, and replace the module that needs it."""
    for name in ("cyclopts", "rich"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "fuhu_runway.cli.app", cli)


@pytest.mark.parametrize("code", [0, 5])
def test_the_process_exits_with_the_code_of_the_command(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code of the command line is that of the process."""
    install(monkeypatch, FakeCli(code))
    assert exit_code_of_main() == code


def test_ctrl_c_before_the_command_began_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C during imports shows no traceback, and exits with 130."""
    install(monkeypatch, FakeCli(KeyboardInterrupt()))
    assert exit_code_of_main() == 130
    assert capsys.readouterr().err == ""


def test_the_package_itself_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m fuhu_runway` is the same command."""
    install(monkeypatch, FakeCli(3))
    monkeypatch.delitem(sys.modules, "fuhu_runway.__main__")
    # pytest's own finder, which rewrites asserts, cannot run a module.
    finders = [one for one in sys.meta_path if not type(one).__module__.startswith("_pytest.")]
    monkeypatch.setattr(sys, "meta_path", finders)
    with pytest.raises(SystemExit) as leaving:
        runpy.run_module("fuhu_runway.__main__", run_name="__main__")
    assert leaving.value.code == 3


def test_no_file_takes_the_place_of_a_closed_standard_stream(tmp_path: Path) -> None:
    """What is written to stderr by its number must not land in a clip or a journal."""
    source = """
import os, sys
from fuhu_runway.cli.output import keep_standard_streams
os.closerange(0, 3)
keep_standard_streams()
keep_standard_streams()
with open("clip.mp4", "wb") as clip:
    sys.exit(0 if clip.fileno() > 2 else 9)
"""
    command = [sys.executable, "-c", source]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
