"""What an import loads, and what it needs."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from importlib.util import find_spec

import pytest

PACKAGE = resources.files("fuhu_runway")
HEAVY = {"aiohttp", "asyncio", "attr", "attrs", "backoff", "cattrs"}
NEEDS_AN_EXTRA = {
    "fuhu_runway.cli.": "cyclopts",
    "fuhu_runway.contrib._fleet": "procrastinate",
    "fuhu_runway.contrib._postgres": "psycopg",
    "fuhu_runway.contrib.fleet": "procrastinate",
    "fuhu_runway.contrib.otel": "opentelemetry",
    "fuhu_runway.contrib.postgres": "psycopg",
    "fuhu_runway.contrib.shared_pace": "psycopg",
    "fuhu_runway.contrib.store": "obstore",
}
"""By how their names begin, the modules that are imported only with an extra."""


def module_names(folder: Traversable = PACKAGE, name: str = "fuhu_runway") -> Iterator[str]:
    """Return every module of the installed package, by its dotted name."""
    yield name
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir() and entry.joinpath("__init__.py").is_file():
            yield from module_names(entry, f"{name}.{entry.name}")
        elif entry.name.endswith(".py") and entry.name != "__init__.py":
            yield f"{name}.{entry.name.removesuffix('.py')}"


def python(source: str) -> subprocess.CompletedProcess[str]:
    """Run *source* in a fresh interpreter in which each warning is an error."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", source],
        capture_output=True,
        check=False,
        text=True,
    )


def lacks_its_extra(module: str) -> bool:
    """Return whether *module* needs something that is not installed."""
    return any(
        module.startswith(start) and find_spec(needed) is None
        for start, needed in NEEDS_AN_EXTRA.items()
    )


def test_each_module_imports_alone() -> None:
    """Every module can be imported first, without a warning."""
    # One interpreter forgets the package each time: a fresh one would load aiohttp again.
    # attrs compiles the methods of every class, which is most of the time of an import.
    done = python(
        "import builtins, functools, importlib, sys, traceback\n"
        "builtins.compile = functools.cache(builtins.compile)\n"
        f"for name in {[name for name in module_names() if not lacks_its_extra(name)]}:\n"
        "    for loaded in [one for one in sys.modules if one.startswith('fuhu_runway')]:\n"
        "        del sys.modules[loaded]\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except Exception:\n"
        "        print(name, traceback.format_exc())\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_package_imports_nothing_heavy() -> None:
    """`import fuhu_runway` imports neither a dependency nor asyncio."""
    done = python(
        "import sys; before = set(sys.modules); import fuhu_runway;"
        f"print(sorted((set(sys.modules) - before) & {HEAVY}))"
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_name_brings_what_it_needs() -> None:
    """The client imports aiohttp."""
    done = python("import sys, fuhu_runway; fuhu_runway.Client; print('aiohttp' in sys.modules)")
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_the_simulator_brings_no_client() -> None:
    """`fuhu_runway.testing` runs without the client's code."""
    done = python(
        "import sys; import fuhu_runway.testing.simulator;"
        "print(*sorted(m for m in sys.modules"
        " if m.startswith('fuhu_runway') and not m.startswith('fuhu_runway.testing')))"
    )
    assert (done.stdout, done.stderr) == ("fuhu_runway\n", "")


@pytest.mark.parametrize("missing", ["cyclopts", "rich"])
def test_the_command_names_the_extra_it_lacks(missing: str) -> None:
    """Without the extra the command fails and says which one to install."""
    done = python(
        f"import sys; sys.argv[1:] = ['--help']; sys.modules[{missing!r}] = None;"
        "from fuhu_runway.__main__ import main; main()"
    )
    assert done.returncode != 0
    assert ".[cli]" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_spans_name_the_extra_they_lack() -> None:
    """Without the extra, the import fails and says which one to install; the client works."""
    done = python(
        "import sys; sys.modules['opentelemetry'] = None; import fuhu_runway; fuhu_runway.Client;"
        "import fuhu_runway.contrib.otel"
    )
    assert done.returncode != 0
    *_, last = done.stderr.splitlines()
    assert last.startswith("ImportError: ")
    assert last.endswith('pip install ".[otel]"')


@pytest.mark.parametrize("path", ["py.typed", "testing/_server/simulated.mp4"])
def test_the_package_carries_its_data(path: str) -> None:
    """The type marker and the simulator's video are installed with the code."""
    assert PACKAGE.joinpath(path).is_file()
