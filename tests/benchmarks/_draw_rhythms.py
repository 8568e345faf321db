"""Draw docs/explanation/polling.svg: when each method polls a task, and when tasks end."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from _rhythms import KIND, Lognormal, Ours, optimum_with_lag, run

TARGET: Final = Path(__file__).parents[2] / "docs" / "explanation" / "polling.svg"
TASKS: Final = Lognormal(100, 0.35)
UNTIL: Final = 240
LEFT: Final = 150
"""Where the submit is, in pixels; a second takes two of them."""
MARKS: Final = range(0, UNTIL + 1, 40)
GREY: Final = "#808080"
BLUE: Final = "#3b82c4"


def x(age: float) -> float:
    """Return where an age lies, in pixels."""
    return LEFT + 2 * age


def learned() -> Iterator[float]:
    """Return when a learned schedule polls, without its jitter, after 200 tasks."""
    rng = random.Random(3)
    ours = Ours.of(rng, learn=True)
    run(ours, [TASKS.draw(rng) for _ in range(200)])
    age = 0.0
    while age < UNTIL:
        age += ours.learner.gap(KIND, age, 0.0) or UNTIL
        yield age


def evenly(*gaps: float) -> Iterator[float]:
    """Return instants with these gaps, the last of them repeated."""
    age, place = 0.0, 0
    while age < UNTIL:
        age += gaps[min(place, len(gaps) - 1)]
        place += 1
        yield age


def curve() -> str:
    """Return the outline of how many tasks end when."""
    highest = max(TASKS.density(age) for age in range(UNTIL))
    points = [(x(age), 90 - 75 * TASKS.density(age) / highest) for age in range(0, UNTIL + 1, 2)]
    outline = " ".join(f"{left:.0f},{top:.1f}" for left, top in points)
    return f'<polygon points="{x(0)},90 {outline} {x(UNTIL)},90" fill="{BLUE}" opacity="0.35"/>'


def words(left: float, top: float, said: str, anchor: str = "end") -> str:
    """Return a text, at a place in pixels."""
    return f'<text x="{left:.0f}" y="{top:.0f}" text-anchor="{anchor}">{said}</text>'


def stroke(path: str, width: float, colour: str, dashes: str = "none") -> str:
    """Return lines."""
    style = f'stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"'
    return f'<path d="{path}" {style}/>'


def row(top: int, name: str, ages: Iterable[float]) -> str:
    """Return one rhythm: its name, a line, and a tick for each poll."""
    ticks = "".join(f"M{x(age):.1f} {top - 9}v14" for age in ages if age <= UNTIL)
    line = stroke(f"M{x(0)} {top - 2}H{x(UNTIL)}", 0.5, GREY)
    return words(LEFT - 10, top + 3, name) + line + stroke(ticks, 2, BLUE)


def drawing() -> str:
    """Return the whole picture."""
    rows = {
        "every 6 s": evenly(6.0),
        "exponential": evenly(2.0, 3.0, 4.5, 6.75, 10.125, 15.0),
        "learned": learned(),
        "best possible": optimum_with_lag(TASKS, 3.0).ages,
    }
    size = f"0 0 {x(UNTIL) + 30:.0f} 260"
    style = f'font-family="sans-serif" font-size="12" fill="{GREY}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" {style}>',
            "<title>When tasks end, and when each method polls them</title>",
            curve(),
            words(LEFT - 10, 80, "tasks end"),
            *(words(x(age), 252, f"{age} s", "middle") for age in MARKS),
            *(stroke(f"M{x(age)} 90v145", 0.5, GREY, "2 4") for age in MARKS),
            *(row(120 + 35 * place, *one) for place, one in enumerate(rows.items())),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(drawing(), encoding="utf-8")
