"""Everything that has to hold before a change is done: `nox` runs it, and so does CI."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_external_run = True
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "layers", "types", "tests", "coverage", "docs"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
PACKAGE = Path("fuhu_runway")

# Without it `python -m` and `coverage run` look into the working directory first, and
# the tree would be tested in place of the wheel.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}


def install_groups(session: nox.Session, *groups: str) -> None:
    """Install the named dependency groups, with any pip."""
    session.install(*nox.project.dependency_groups(PYPROJECT, *groups))


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    """Install the built wheel with *extras*, and the named dependency groups."""
    (wheel,) = (session.cache_dir / "dist").glob("*.whl")
    session.install(f"{wheel}{extras}", *nox.project.dependency_groups(PYPROJECT, *groups))
    # A reused environment already has this version, so pip would keep the older build.
    session.install("--force-reinstall", "--no-deps", str(wheel))


def measured(session: nox.Session, name: str, *pytest_args: str) -> None:
    """Run pytest under coverage, with everything it starts, into a fresh folder *name*."""
    folder = session.cache_dir.resolve() / "coverage" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    session.run(
        *("coverage", "run", "-m", "pytest", *pytest_args),
        env={**SAFE_PATH, "COVERAGE_FILE": str(folder / "data")},
    )


def report(session: nox.Session, *names: str, only: str = "*") -> None:
    """Fail unless the runs in the folders *names* reached every line and branch of *only*."""
    folders = [str(session.cache_dir / "coverage" / name) for name in names]
    # The files to combine are told by this one's name.
    env = {"COVERAGE_FILE": f"{session.create_tmp()}/data"}
    session.run("coverage", "combine", "--quiet", *folders, env=env)
    session.run("coverage", "report", f"--include={only}", env=env)


def own_tests() -> Iterator[tuple[str, list[str]]]:
    """Give each part of the package with the test files that have to cover it alone."""
    for module in sorted(PACKAGE.glob("*.py")):
        unit = f"tests/unit/test_{module.stem.strip('_')}"
        further = sorted(map(str, Path().glob(f"{unit}_*.py")))
        own = [f"{unit}.py", *further]
        yield str(module), ["tests/test_exports.py"] if module.stem == "__init__" else own
    simulator = sorted(map(str, Path("tests/unit").glob("test_simulator*.py")))
    yield f"{PACKAGE}/testing/*", simulator


@nox.session
def build(session: nox.Session) -> None:
    """Build the source distribution, and from it the wheel that the other sessions install."""
    dist = session.cache_dir / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.install("build")
    session.run("pyproject-build", "--outdir", str(dist), ".", silent=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, form and spelling."""
    install_groups(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("codespell")


@nox.session
def layers(session: nox.Session) -> None:
    """Imports point down."""
    install_groups(session, "layers")
    session.run("lint-imports")


@nox.session(requires=["build"])
def types(session: nox.Session) -> None:
    """The package, this file and the public interface, as strictly as mypy can."""
    install(session, "types", extras="[cli,testing]")
    session.run("mypy")


@nox.session(requires=["build"])
@nox.parametrize("extras", ["", "[cli]"], ids=["bare", "cli"])
def tests(session: nox.Session, extras: str) -> None:
    """Every test against the wheel with the optional door, and each module's own without it."""
    install(session, "test", extras=extras)
    # The blocks of the documentation are the docs session's. What takes long, such as hundreds of
    # killed processes, does not depend on the door.
    everything = ["--numprocesses=2", "--ignore=tests/docs"]
    long = [f"--ignore=tests/{folder}" for folder in ("browser", "crash", "loopback", "properties")]
    chosen = session.posargs or (everything if extras else [*everything, *long])
    measured(session, session.name, *chosen)


@nox.session(requires=["build", "tests(bare)", "tests(cli)"])
def coverage(session: nox.Session) -> None:
    """All tests reach every branch, and each module's own tests reach all of that module."""
    install(session, "test", extras="[cli]")
    report(session, "tests(bare)", "tests(cli)")
    for part, test_files in own_tests():
        measured(session, "part", "--quiet", "--no-header", *test_files)
        report(session, "part", only=part)


@nox.session(requires=["build"])
def docs(session: nox.Session) -> None:
    """Generated pages are fresh, no reference is broken, every Python block runs."""
    install(session, "docs", "test", extras="[cli]")
    session.run("python", "docs/generate.py", "--check")
    session.run("sphinx-build", "-nW", "--keep-going", "--quiet", "docs", "docs/_build/html")
    session.run("pytest", "tests/docs", env=SAFE_PATH)


@nox.session(python=nox.project.python_versions(PYPROJECT), requires=["build"])
def interpreter(session: nox.Session) -> None:
    """Every test on one more interpreter: `nox -s interpreter-3.13`."""
    install(session, "test", extras="[cli]")
    session.run("pytest", *session.posargs, env=SAFE_PATH)


@nox.session(requires=["build"])
def floors(session: nox.Session) -> None:
    """Every test with the oldest dependencies we admit."""
    declared = PYPROJECT["project"]
    oldest = [*declared["dependencies"], *declared["optional-dependencies"]["cli"]]
    install(session, "test", extras="[cli]")
    session.install(*(requirement.replace(">=", "==") for requirement in oldest))
    session.run("pytest", *session.posargs, env=SAFE_PATH)


@nox.session(requires=["build"])
def bench(session: nox.Session) -> None:
    """Print what we cost beside a bare aiohttp and the official SDK."""
    install(session, "bench", extras="[cli]")
    for program in session.posargs or sorted(map(str, Path("tests/benchmarks").glob("[!_]*.py"))):
        session.run("python", program)


@nox.session(requires=["build"])
def soak(session: nox.Session) -> None:
    """Thousands of waits at once."""
    install(session, "test", extras="[cli]")
    session.run("pytest", "-m", "soak", "--timeout=0", *session.posargs, env=SAFE_PATH)


@nox.session(requires=["build"])
def live(session: nox.Session) -> None:
    """Against the real gateway: needs FUHU_API_KEY, and spends points."""
    if "FUHU_API_KEY" not in os.environ:
        session.error("FUHU_API_KEY is not set")
    install(session, "test", extras="[cli]")
    session.run("pytest", "-m", "live", *session.posargs, env=SAFE_PATH)
