"""
How many looks a job costs, and how long its clip lies about: our rhythms, runwayml's, the best.

Durations are drawn from the lognormal distributions that the field was measured on; nothing waits,
since only ages are counted. Then the service becomes 3 times quicker or slower midway.
Exit status 1 if a goal is missed by more than the optimum itself misses it.
"""

import random
import sys
from collections.abc import Sequence
from typing import Final

from _rhythms import (
    DISTRIBUTIONS,
    LONGEST_GAP,
    Job,
    Lognormal,
    Optimum,
    Ours,
    Runwayml,
    mean,
    optimum,
    optimum_with_lag,
    run,
)

JOBS: Final = 4000
LEARNED_BY: Final = 200
"""Jobs before this are those that are learned from, and counted apart."""
LOOKS_GOAL: Final = 0.75
"""Of runwayml's looks, at no more lag than it has."""
TOLERANCE: Final = 0.02
"""How far above the optimum a rhythm may lie that has to learn the distribution first."""


def figures(jobs: Sequence[Job]) -> tuple[float, float]:
    """Give looks for each job and the mean lag in seconds."""
    return mean(job.looks for job in jobs), mean(job.lag for job in jobs)


def row(name: str, looks: float, lag: float, theirs: tuple[float, float]) -> None:
    """Print one rhythm beside runwayml's."""
    print(
        f"  {name:<42}{looks:6.1f} looks  {lag:5.2f} s lag"
        f"   {looks / theirs[0]:5.2f} x looks  {lag / theirs[1]:5.2f} x lag"
    )


def compare(tasks: Lognormal) -> bool:
    """Print all rhythms over one distribution; tell whether ours keeps to the goal."""
    rng = random.Random(1)
    durations = [tasks.draw(rng) for _ in range(JOBS)]
    theirs = figures(run(Runwayml(rng), durations))
    exponential = figures(run(Ours.of(rng, learn=False), durations))
    learned = run(Ours.of(rng, learn=True), durations)
    early, late = figures(learned[20:LEARNED_BY]), figures(learned[LEARNED_BY:])
    at_theirs = optimum_with_lag(tasks, theirs[1])
    print(f"median {tasks.median:g} s, sigma {tasks.sigma:g}")
    row("runwayml: 6 s, strayed by 1.5 s", *theirs, theirs)
    row("ours, exponential", *exponential, theirs)
    row(f"ours, learned from the first 20 to {LEARNED_BY}", *early, theirs)
    row("ours, learned", *late, theirs)
    for best, name in (
        (at_theirs, "optimum at runwayml's lag"),
        (optimum(tasks, 0.25), "optimum at 0.25 s a look"),
        (optimum(tasks, 0.5), "optimum at 0.5 s a look"),
    ):
        row(name, best.looks, best.lag, theirs)
    return verdict(late, theirs, at_theirs)


def verdict(ours: tuple[float, float], theirs: tuple[float, float], best: Optimum) -> bool:
    """Tell whether ours needs at most the goal's part of their looks, at no more lag."""
    looks, lag = ours[0] / theirs[0], ours[1] / theirs[1]
    reachable = max(LOOKS_GOAL, best.looks / theirs[0])
    if looks <= LOOKS_GOAL and lag <= 1:
        print(f"  goal, {LOOKS_GOAL} x the looks at no more lag: held\n")
        return True
    print(
        f"  goal, {LOOKS_GOAL} x the looks at no more lag: MISSED; "
        f"the optimum needs {best.looks / theirs[0]:.3f} x\n"
    )
    # Looks and lag can be had for each other, about one part for one part.
    return looks * lag <= reachable * (1 + TOLERANCE)


def drift(tasks: Lognormal, factor: float) -> bool:
    """Print what becomes of a service that changes midway; tell whether no lag was over 20 s."""
    rng = random.Random(2)
    durations = [
        tasks.draw(rng) * (1 if number < JOBS / 4 else factor) for number in range(JOBS // 2)
    ]
    ours = run(Ours.of(rng, learn=True), durations)
    theirs = run(Runwayml(random.Random(2)), durations)
    longest = max(job.lag for job in ours)
    (looks, lag), (their_looks, their_lag) = figures(ours), figures(theirs)
    held = longest <= LONGEST_GAP
    print(
        f"  {tasks.median:4g} s, {factor:4.2f} x as long from the middle on: longest lag "
        f"{longest:4.1f} s, {'held' if held else 'MISSED'}; "
        f"{looks / their_looks:.2f} x looks, {lag / their_lag:.2f} x lag"
    )
    return held


def main() -> None:
    """Print every rhythm over every distribution, and what a change does to ours."""
    held = [compare(tasks) for tasks in DISTRIBUTIONS]
    print(f"A service that changes; goal: no lag over {LONGEST_GAP:g} s")
    held += [drift(tasks, factor) for tasks in DISTRIBUTIONS for factor in (1 / 3, 3)]
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
