"""The way in: with the extra, without it, and left before it began."""

import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from fuhu_runway.__main__ import main


def exit_code_of_main() -> object:
    """Return what the shell would see."""
    with pytest.raises(SystemExit) as leaving:
        main()
    return leaving.value.code


@pytest.mark.parametrize("missing", ["cyclopts", "rich"])
def test_without_the_extra_one_line_names_it(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that lacks a package says on stderr what to install, and exits with 2."""
    monkeypatch.setitem(sys.modules, missing, None)
    assert exit_code_of_main() == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == 'The command line needs an extra: pip install "fuhu-runway[cli]"\n'


def test_without_the_extra_the_command_line_is_not_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is missing is found out before the module that needs it is touched."""
    monkeypatch.setitem(sys.modules, "fuhu_runway.cli.app", None)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert exit_code_of_main() == 2


class FakeCli:
    """Stands in for the module, so that this file runs with and without the extra."""

    def __init__(self, outcome: int | BaseException) -> None:
        self.outcome = outcome

    def main(self, tokens: Sequence[str] | None = None) -> int:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def install(monkeypatch: pytest.MonkeyPatch, cli: FakeCli) -> None:
    """Install the extra, and *cli* in place of the module that needs it."""
    for name in ("cyclopts", "rich"):
        there = ModuleType(name)
        there.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, there)
    monkeypatch.setitem(sys.modules, "fuhu_runway.cli.app", cli)


@pytest.mark.parametrize("code", [0, 5])
def test_the_process_ends_with_the_code_of_the_command(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command line says is what the shell sees."""
    install(monkeypatch, FakeCli(code))
    assert exit_code_of_main() == code


def test_ctrl_c_before_the_command_began_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while Python still imports shows no traceback, and exits with 130."""
    install(monkeypatch, FakeCli(KeyboardInterrupt()))
    assert exit_code_of_main() == 130
    assert capsys.readouterr().err == ""


def test_the_package_itself_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m fuhu_runway` is the same command."""
    install(monkeypatch, FakeCli(3))
    monkeypatch.delitem(sys.modules, "fuhu_runway.__main__")
    # pytest's own finder, which rewrites the asserts of plugins, gives nothing that can be run.
    finders = [one for one in sys.meta_path if not type(one).__module__.startswith("_pytest.")]
    monkeypatch.setattr(sys, "meta_path", finders)
    with pytest.raises(SystemExit) as leaving:
        runpy.run_module("fuhu_runway.__main__", run_name="__main__")
    assert leaving.value.code == 3
