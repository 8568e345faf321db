"""What importing costs: the package over the bare interpreter, and `Client` over aiohttp."""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # the folder may be missing in safe-path mode

from _common import HAS_PEER, spread, table, verdict

ROUNDS: Final = 10
PROGRAMS: Final = {
    "nothing": "pass",
    "fuhu_runway": "import fuhu_runway",
    "aiohttp": "import aiohttp",
    "Client": "from fuhu_runway import Client",
    **({"runwayml": "import runwayml"} if HAS_PEER else {}),
}
MOST: Final = 12
"""How many modules are named in the list of what `Client` adds."""

LINE: Final = re.compile(r"import time:\s+(?P<self>\d+) \|\s+\d+ \|\s*(?P<module>\S+)")


class Start(NamedTuple):
    """One start of an interpreter; times in milliseconds."""

    #: Each module's own time, as `-X importtime` reports it.
    modules: dict[str, float]
    #: From the start of the process to its end, without `-X importtime`.
    elapsed: float

    @property
    def imports(self) -> float:
        """What all imports took."""
        return sum(self.modules.values())


def start(program: str, environment: Mapping[str, str]) -> Start:
    """Run *program* twice: once to measure each import, once undisturbed."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    modules = {found["module"]: int(found["self"]) / 1000 for found in LINE.finditer(result.stderr)}
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    return Start(modules, (time.perf_counter() - began) * 1000)


def measure() -> dict[str, list[Start]]:
    """Return the starts of every program, which took turns; a first round only compiles."""
    with tempfile.TemporaryDirectory() as folder:
        # Bytecode of its own: from a tree, too, an import costs what an installed one does.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        rounds = [
            {name: start(program, environment) for name, program in PROGRAMS.items()}
            for _ in range(ROUNDS + 1)
        ]
    return {name: [each[name] for each in rounds[1:]] for name in PROGRAMS}


def over(runs: list[Start], others: list[Start]) -> float:
    """Return how much longer the imports took: the median over rounds that ran both."""
    pairs = zip(runs, others, strict=True)
    return statistics.median(run.imports - other.imports for run, other in pairs)


def additions(starts: dict[str, list[Start]]) -> list[tuple[str, str]]:
    """Return the modules that `Client` loads and aiohttp does not, the dearest first, in ms."""
    known = starts["aiohttp"][0].modules.keys()
    costs = {
        name: statistics.median(each.modules[name] for each in starts["Client"])
        for name in starts["Client"][0].modules.keys() - known
    }
    dearest = sorted(costs.items(), key=lambda item: -item[1])
    rest = sum(cost for _, cost in dearest[MOST:])
    rows = [(name, f"{cost:.1f}") for name, cost in dearest[:MOST]]
    return [*rows, (f"{len(dearest[MOST:])} more", f"{rest:.1f}")]


def main() -> None:
    """Print the medians, what they are over each other, and where the difference goes."""
    starts = measure()
    rows = [
        (
            PROGRAMS[name],
            spread([each.imports for each in runs]),
            spread([each.elapsed for each in runs]),
            str(len(runs[0].modules)),
        )
        for name, runs in starts.items()
    ]
    print(f"Medians of {ROUNDS} starts each, in turns, in ms:\n")
    print(table([("program", "-X importtime", "whole process", "modules"), *rows]))
    package = verdict(over(starts["fuhu_runway"], starts["nothing"]), 20, ".1f")
    client = verdict(over(starts["Client"], starts["aiohttp"]), 30, ".1f")
    print(f"\nimport fuhu_runway over the bare interpreter, ms: {package}")
    print(f"Client over import aiohttp, ms: {client}")
    print("\nWhat Client loads and aiohttp does not, each module's own time in ms:\n")
    print(table([("module", "ms"), *additions(starts)]))


if __name__ == "__main__":
    main()
