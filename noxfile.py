"""What has to hold before a change is done: `nox` runs the fast part, `nox -s full` the rest."""

import itertools
import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2026.8.10"  # the first that runs sessions side by side
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_external_run = True
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "types", "lint", "layers"]
# While one session waits for downloads, another one uses the processor. Sessions that are run by
# hand do not allow it: sessions that run side by side show their output only when they end.
nox.options.parallel = 2

PYPROJECT = nox.project.load_toml("pyproject.toml")
EXTRAS = "[cli,fleet,otel,store]"

# Sessions of their own run the tests of the pages and of the official SDK.
# By default, the first worker would get all folders of slow tests.
EVERY_TEST = ["--numprocesses=2", "--dist=worksteal"]
EVERY_TEST += ["--ignore=tests/docs", "--ignore=tests/official_sdk"]
# What takes long, such as hundreds of killed processes, does not depend on the extras.
LONG = ("browser", "crash", "fleet", "loopback", "postgres", "properties", "secrets", "servers")
QUICK_TESTS = [*EVERY_TEST, *(f"--ignore=tests/{folder}" for folder in LONG)]
# Most tests do not depend on what is installed. These follow a user who has no extra.
BARE = ("main", "client", "task", "batch", "journal", "downloads", "callbacks", "simulator")
BARE_TESTS = ["tests/test_exports.py", "tests/test_imports.py"]
BARE_TESTS += [f"tests/unit/test_{name}.py" for name in BARE]

# Tests start hundreds of processes. Each of them would compile all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Without it `python -m` and `coverage run` look into the working directory first, and
# the tree would be tested in place of the wheel.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}


def install_groups(session: nox.Session, *groups: str) -> None:
    """Install the named dependency groups, with any pip."""
    # Most modules are never imported, and Python compiles the others when it imports them.
    session.install("--no-compile", *nox.project.dependency_groups(PYPROJECT, *groups))


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    """Install the built wheel with *extras*, and the named dependency groups."""
    (wheel,) = (session.cache_dir / "dist").glob("*.whl")
    requirements = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install("--no-compile", f"{wheel}{extras}", *requirements)
    # A reused environment already has this version, so pip would keep the older build.
    session.install("--force-reinstall", "--no-deps", str(wheel))


@nox.session
def build(session: nox.Session) -> None:
    """Build the source distribution, and from it the wheel that the other sessions install."""
    dist = session.cache_dir / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.install("build", *PYPROJECT["build-system"]["requires"])
    session.run("pyproject-build", "--no-isolation", "--outdir", str(dist), ".", silent=True)


@nox.session(allow_parallel=True)
def lint(session: nox.Session) -> None:
    """Style, form, spelling and words."""
    install_groups(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("codespell")
    session.run("python", "docs/words.py")


@nox.session(allow_parallel=True)
def layers(session: nox.Session) -> None:
    """Imports point down."""
    install_groups(session, "layers")
    session.run("lint-imports")


@nox.session(requires=["build"], allow_parallel=True)
def types(session: nox.Session) -> None:
    """The package, this file and the public interface, as strictly as mypy can."""
    install(session, "types", extras="[cli,fleet,otel,store,testing]")
    session.run("mypy")


@nox.session(requires=["build"], allow_parallel=True)
def tests(session: nox.Session) -> None:
    """The quick tests against the wheel with all extras: the check while you work."""
    install(session, "instrumentation", "telemetry", "test", extras=EXTRAS)
    session.run("pytest", *(session.posargs or QUICK_TESTS), env=SAFE_PATH)


@nox.session(requires=["build"], allow_parallel=True)
def bare(session: nox.Session) -> None:
    """The most common uses, without any extra."""
    install(session, "test")
    session.run("pytest", *(session.posargs or BARE_TESTS), env=SAFE_PATH)


@nox.session(requires=["build"], allow_parallel=True)
def coverage(session: nox.Session) -> None:
    """Every test with all extras: together they reach every line and branch."""
    install(session, "instrumentation", "telemetry", "test", extras=EXTRAS)
    folder = session.cache_dir.resolve() / "coverage"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    data = {"COVERAGE_FILE": str(folder / "data")}
    pytest = ("coverage", "run", "-m", "pytest", *(session.posargs or EVERY_TEST))
    session.run(*pytest, env={**SAFE_PATH, **data})
    session.run("coverage", "combine", "--quiet", env=data)
    session.run("coverage", "report", env=data)


@nox.session(requires=["build"], allow_parallel=True)
def docs(session: nox.Session) -> None:
    """Generated pages are fresh, no reference is broken, every Python block runs."""
    install(session, "docs", "telemetry", "test", extras=EXTRAS)
    session.run("python", "docs/generate.py", "--check")
    session.run("sphinx-build", "-nW", "--keep-going", "--quiet", "docs", "docs/_build/html")
    session.run("pytest", "--numprocesses=2", "--dist=worksteal", "tests/docs", env=SAFE_PATH)


@nox.session(python=nox.project.python_versions(PYPROJECT), requires=["build"])
def interpreter(session: nox.Session) -> None:
    """Every test on one more interpreter: `nox -s interpreter-3.13`."""
    install(session, "docs", "instrumentation", "pages", "telemetry", "test", extras=EXTRAS)
    session.run("pytest", *session.posargs, env=SAFE_PATH)


@nox.session(requires=["build"])
def floors(session: nox.Session) -> None:
    """Every test with the oldest dependencies we admit."""
    declared = PYPROJECT["project"]
    extras = declared["optional-dependencies"]
    optional = [extras[name] for name in ("cli", "fleet", "otel", "store")]
    # The SDK goes with the API of its own version only.
    optional.append(nox.project.dependency_groups(PYPROJECT, "telemetry"))
    oldest = [*declared["dependencies"], *itertools.chain(*optional)]
    install(session, "docs", "pages", "telemetry", "test", extras=EXTRAS)
    session.install(*(requirement.replace(">=", "==") for requirement in oldest))
    # pytest-aiohttp needs a newer aiohttp than we do. Types are checked with the newest packages:
    # the oldest aiohttp declares those of an application's signals wrongly.
    options = ("-p", "no:aiohttp", "--ignore=tests/docs/test_types.py")
    session.run("pytest", *options, *session.posargs, env=SAFE_PATH)


@nox.session(requires=["build"], allow_parallel=True)
def official_sdk(session: nox.Session) -> None:
    """The official SDK against the simulator."""
    install(session, "bench", "test", extras="[cli]")
    session.run("pytest", "tests/official_sdk", *session.posargs, env=SAFE_PATH)


@nox.session(venv_backend="none", requires=["coverage", "docs", "bare", "official_sdk"])
def full(_: nox.Session) -> None:
    """All tests and their coverage, the pages, and the official SDK: what `nox` leaves out."""


@nox.session(requires=["build"])
def bench(session: nox.Session) -> None:
    """Print what we cost beside a bare aiohttp and the official SDK."""
    install(session, "bench", extras="[cli,fleet,fleet-demo]")
    for program in session.posargs or sorted(map(str, Path("tests/benchmarks").glob("[!_]*.py"))):
        session.run("python", program)


@nox.session(requires=["build"])
def soak(session: nox.Session) -> None:
    """Thousands of waits at once."""
    install(session, "test", extras="[cli]")
    others = ("--ignore=tests/fleet", "-m", "soak", "--timeout=0")
    session.run("pytest", *others, *session.posargs, env=SAFE_PATH)


@nox.session(requires=["build"])
def fleet(session: nox.Session) -> None:
    """Workers that are killed, frozen and cut off for half an hour; prints what the ledger says."""
    install(session, "test", extras="[cli,fleet]")
    soak = ("-m", "soak", "--timeout=0", "--capture=no")
    session.run("pytest", "tests/fleet", *soak, *session.posargs, env=SAFE_PATH)


@nox.session(requires=["build"])
def live(session: nox.Session) -> None:
    """Against the real gateway: needs FUHU_API_KEY, and spends points."""
    if "FUHU_API_KEY" not in os.environ:
        session.error("FUHU_API_KEY is not set")
    install(session, "test", extras="[cli]")
    session.run("pytest", "-m", "live", *session.posargs, env=SAFE_PATH)
