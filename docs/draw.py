"""
Draws the pictures of the pages as SVG files, with nothing but the standard library.

Each picture has a background of its own, so that it reads the same on light and on dark pages.
`--check` writes nothing, names each stale picture, and fails if there is one.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Final

import attrs

from fuhu_runway.journal import STEPS

PICTURES: Final = Path(__file__).parent / "pictures"
INK: Final = "#1f2328"
SOFT: Final = "#57606a"
LINE: Final = "#8c959f"
PAPER: Final = "#ffffff"
EDGE: Final = "#d0d7de"
BLUE: Final = "#0969da"
GREEN: Final = "#1a7f37"
RED: Final = "#cf222e"
AMBER: Final = "#9a6700"
SANS: Final = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
MONO: Final = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


# Pieces


def text(  # noqa: PLR0917  (a place, and how the letters look)
    x: float,
    y: float,
    words: str,
    colour: str = INK,
    anchor: str = "middle",
    size: float = 13,
    weight: str = "normal",
    font: str = SANS,
) -> str:
    """Return words at a place."""
    style = f'fill="{colour}" font-size="{size:g}" font-weight="{weight}" font-family="{font}"'
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {style} xml:space="preserve">'
        f"{escape(words)}</text>"
    )


def line(points: Iterable[tuple[float, float]], colour: str = LINE, dashes: str = "") -> str:
    """Return a line through *points* that ends in an arrow."""
    path = " L".join(f"{x:g} {y:g}" for x, y in points)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashed} '
        'marker-end="url(#arrow)"/>'
    )


def box(x: float, y: float, width: float, height: float, colour: str, outlines: int = 1) -> str:  # noqa: PLR0917
    """Return a rounded box around a centre; with one outline or two."""

    def outline(gap: float) -> str:
        return (
            f'<rect x="{x - width / 2 + gap:g}" y="{y - height / 2 + gap:g}" '
            f'width="{width - 2 * gap:g}" height="{height - 2 * gap:g}" rx="{8 - gap:g}" '
            f'fill="{PAPER}" stroke="{colour}" stroke-width="1.5"/>'
        )

    return outline(0) + (outline(3) if outlines > 1 else "")


def picture(width: int, height: int, title: str, *parts: str) -> str:
    """Return a whole picture with its background."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">'
    )
    arrow = (
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        f'markerHeight="7" orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{SOFT}"/>'
        "</marker></defs>"
    )
    paper = (
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10" '
        f'fill="{PAPER}" stroke="{EDGE}"/>'
    )
    return "\n".join([head, f"<title>{escape(title)}</title>", arrow, paper, *parts, "</svg>", ""])


# A batch on a terminal


def batch() -> str:
    """Return a terminal in which `fuhu-runway batch` runs, and how it ends."""
    grey, white, green, pink = "#8b949e", "#e6edf3", "#3fb950", "#f92672"
    prompt = [
        ("$ ", grey),
        ("fuhu-runway batch prompts.txt --out clips --in-flight 3 --simulate", white),
    ]
    lines: list[list[tuple[str, str]]] = [
        prompt,
        [("simulated: a gateway on this machine, no key, no cost", grey)],
        [
            ("⠏ ", green),
            ("5 of 8 ", white),
            ("━" * 25, pink),
            ("╺" + "━" * 14, "#484f58"),
            (" 0:00:02 left", white),
        ],
        [("3 running, 1,600 points", white)],
        [],
        [("two seconds later:", grey)],
        [("8 of 8 clips are in clips.", white)],
        [("2,560 points spent, 0 refunded, in 0:00:04.", white)],
        [("clips/results.jsonl", white)],
    ]
    parts = [
        '<rect x="0.5" y="0.5" width="719" height="279" rx="10" fill="#0d1117" stroke="#484f58"/>',
        *(
            f'<circle cx="{24 + 20 * number}" cy="22" r="6" fill="{colour}"/>'
            for number, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
        ),
    ]
    for row, pieces in enumerate(lines):
        inside = "".join(
            f'<tspan fill="{colour}">{escape(words)}</tspan>' for words, colour in pieces
        )
        parts.append(
            f'<text x="24" y="{64 + 24 * row}" font-size="14" font-family="{MONO}" '
            f'xml:space="preserve">{inside}</text>'
        )
    title = "fuhu-runway batch on a terminal: 5 of 8 clips are done, 3 are running"
    return picture(720, 280, title, *parts)


# One clip, from the submit to the file


def sequence() -> str:
    """Return who sends what to whom while one clip is made."""
    columns = {"Your code": 90, "Client": 310, "Gateway": 560, "Host of the clip": 760}
    messages = [
        ("Your code", "Client", 'generate("a kitten")', INK, ""),
        ("Client", "Gateway", "POST /pro/generate: costs points", AMBER, ""),
        ("Gateway", "Client", "task id", INK, "4 3"),
        ("Client", "Your code", "Task", INK, "4 3"),
        ("Your code", "Client", "task.wait()", INK, ""),
        ("Client", "Gateway", "POST /feed: free", GREEN, ""),
        ("Gateway", "Client", "running", INK, "4 3"),
        ("Client", "Gateway", "POST /feed: free", GREEN, ""),
        ("Gateway", "Client", "succeeded, video_url", INK, "4 3"),
        ("Client", "Your code", "Clip", INK, "4 3"),
        ("Your code", "Client", 'clip.download("kitten.mp4")', INK, ""),
        ("Client", "Host of the clip", "GET video_url: free", GREEN, ""),
        ("Host of the clip", "Client", "the bytes, checked and renamed when whole", INK, "4 3"),
        ("Client", "Your code", "path of the file", INK, "4 3"),
    ]
    bottom = 96 + 38 * len(messages)
    repeated = (
        f'<rect x="332" y="{68 + 38 * 5 - 4}" width="206" height="{38 * 4 + 2}" rx="8" '
        f'fill="#f6f8fa" stroke="{EDGE}" stroke-dasharray="4 3"/>'
    )
    parts = [repeated]
    for name, x in columns.items():
        parts += [
            f'<path d="M{x} 58V{bottom - 24}" stroke="{EDGE}" stroke-width="1.5"/>',
            box(x, 38, 150, 36, LINE),
            text(x, 43, name, weight="600"),
        ]
    for row, (sender, receiver, words, colour, dashes) in enumerate(messages):
        y = 96 + 38 * row
        start, end = columns[sender], columns[receiver]
        parts.append(text((start + end) / 2, y - 6, words, colour, size=12))
        parts.append(line([(start, y), (end + (3 if start > end else -3), y)], dashes=dashes))
    parts.append(text(574, 68 + 38 * 5 + 12, "poll: repeated", SOFT, "start", 12))
    parts.append(text(574, 68 + 38 * 5 + 28, "until the task ends", SOFT, "start", 12))
    return picture(850, bottom, "One clip: submit once, poll until it is done, download it", *parts)


# A fleet


def fleet() -> str:
    """Return what the workers of a fleet share, and what each of them reaches."""
    workers = {"Worker 1": 130, "Worker 2": 210, "Worker 3": 290}
    tables = {"queue": ("hands out jobs", 130), "journal": ("decides about money", 210)}
    tables["pace"] = ("shares the rate", 290)
    parts = [
        box(290, 208, 200, 280, LINE),
        text(290, 92, "Postgres", weight="600"),
        box(80, 130, 110, 40, LINE),
        text(80, 135, "prompts.txt", font=MONO),
        line([(135, 130), (207, 130)]),
        text(171, 120, "enqueue", SOFT, size=11),
    ]
    for name, (meaning, y) in tables.items():
        colour = AMBER if name == "journal" else LINE
        parts += [box(290, y, 160, 52, colour), text(290, y - 2, name, weight="600")]
        parts.append(text(290, y + 15, meaning, SOFT, size=11))
    for name, y in workers.items():
        dead = name == "Worker 2"
        dashes = "4 3" if dead else ""
        parts += [
            line([(494, y), (394, y)], dashes=dashes),
            line([(394, y), (494, y)], dashes=dashes),
            box(550, y, 110, 40, RED if dead else BLUE),
            text(550, y + 5, name, RED if dead else INK, weight="600"),
        ]
        if not dead:
            parts += [
                line([(606, y), (702, 160)], AMBER),
                line([(606, y), (702, 262)], GREEN),
            ]
    parts += [
        text(550, 250, "killed: the others", SOFT, size=11),
        text(550, 264, "continue its jobs", SOFT, size=11),
        box(780, 160, 150, 52, LINE),
        text(780, 158, "Gateway", weight="600"),
        text(780, 175, "one request per job", AMBER, size=11),
        box(780, 262, 150, 52, LINE),
        text(780, 260, "Clips", weight="600"),
        text(780, 277, "folder or object store", SOFT, size=11),
    ]
    title = "A fleet: workers on several machines share one Postgres"
    return picture(880, 372, title, *parts)


# States


@attrs.frozen
class State:
    """One box of a state diagram."""

    x: float
    y: float
    colour: str = LINE
    final: bool = False
    note: str = ""


def states(
    boxes: Mapping[str, State], arrows: Mapping[tuple[str, str], list[tuple[float, float]]]
) -> list[str]:
    """Return the arrows of a state diagram, and over them its boxes."""
    parts = [line(points) for points in arrows.values()]
    for name, one in boxes.items():
        parts += [
            box(one.x, one.y, 110, 40, one.colour, 1 + one.final),
            text(one.x, one.y + 5, name, INK if one.colour == LINE else one.colour, weight="600"),
        ]
        if one.note:
            parts.append(text(one.x, one.y + 36, one.note, SOFT, size=11))
    return parts


def task_states() -> str:
    """Return the states of a task, as the gateway reports them."""
    boxes = {
        "QUEUED": State(190, 130),
        "RUNNING": State(390, 130),
        "SUCCEEDED": State(610, 130, GREEN, final=True, note="there is a clip to download"),
        "FAILED": State(610, 46, RED, final=True),
        "CANCELED": State(610, 226, AMBER, final=True),
        "UNKNOWN": State(390, 226, note="a status that no page documents"),
    }
    arrows = {
        ("", "QUEUED"): [(70, 130), (134, 130)],
        ("QUEUED", "RUNNING"): [(245, 130), (334, 130)],
        ("RUNNING", "SUCCEEDED"): [(445, 130), (554, 130)],
        ("RUNNING", "FAILED"): [(390, 110), (390, 56), (554, 56)],
        ("QUEUED", "FAILED"): [(190, 110), (190, 36), (554, 36)],
        ("RUNNING", "CANCELED"): [(445, 140), (500, 140), (500, 216), (554, 216)],
        ("RUNNING", "UNKNOWN"): [(380, 150), (380, 205)],
        ("UNKNOWN", "RUNNING"): [(400, 206), (400, 151)],
    }
    return picture(
        720,
        286,
        "States of a task: queued, running, and one of three ends",
        text(52, 122, "submit", SOFT, size=12),
        *states(boxes, arrows),
    )


def job_states() -> str:
    """Return the states of a job in the journal, with each step that a job may take."""
    boxes = {
        "planned": State(90, 140),
        "submitting": State(270, 140),
        "accepted": State(450, 140),
        "finished": State(630, 140),
        "saved": State(810, 140, GREEN, final=True),
        "failed": State(360, 46, RED),
        "in doubt": State(270, 236, AMBER),
    }
    arrows = {
        ("planned", "submitting"): [(145, 132), (214, 132)],
        ("submitting", "planned"): [(215, 148), (146, 148)],
        ("submitting", "accepted"): [(325, 140), (394, 140)],
        ("submitting", "failed"): [(290, 120), (330, 67)],
        ("submitting", "in doubt"): [(270, 160), (270, 215)],
        ("accepted", "finished"): [(505, 140), (574, 140)],
        ("accepted", "failed"): [(430, 120), (390, 67)],
        ("finished", "saved"): [(685, 132), (754, 132)],
        ("saved", "finished"): [(755, 148), (686, 148)],
        ("failed", "planned"): [(305, 46), (90, 46), (90, 119)],
        ("in doubt", "accepted"): [(325, 236), (450, 236), (450, 161)],
        ("in doubt", "planned"): [(215, 236), (90, 236), (90, 161)],
    }
    steps = {(old.value, new.value) for old, news in STEPS.items() for new in news}
    if steps != {*arrows}:
        raise SystemExit(f"job_states: the journal has other steps: {steps ^ {*arrows}}")
    labels = (
        text(198, 38, "you ask for another try", SOFT, size=11),
        text(152, 254, "proven: not accepted", SOFT, size=11),
        text(416, 254, "list, webhook or you: task", SOFT, size=11),
        text(720, 122, "file is whole", SOFT, size=11),
        text(720, 166, "file is gone", SOFT, size=11),
        text(540, 130, "clip exists", SOFT, size=11),
        text(360, 130, "task id", SOFT, size=11),
        text(180, 122, "send", SOFT, size=11),
        text(180, 166, "not sent", SOFT, size=11),
        text(278, 192, "no clear response", SOFT, "start", 11),
        text(272, 96, "refused", SOFT, size=11),
        text(450, 96, "task failed", SOFT, size=11),
    )
    title = "States of a job in the journal, from planned to saved"
    return picture(900, 276, title, *states(boxes, arrows), *labels)


# The program

DRAWN: Final[Mapping[str, Callable[[], str]]] = {
    "batch": batch,
    "sequence": sequence,
    "task-states": task_states,
    "job-states": job_states,
    "fleet": fleet,
}


def main() -> int:
    """Draw the stale pictures, or name them; return the exit code."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the pages.")
    parser.add_argument("--check", action="store_true", help="only name the stale pictures")
    options = parser.parse_args()
    stale = 0
    for name, draw in DRAWN.items():
        path = PICTURES / f"{name}.svg"
        drawn = draw()
        if path.exists() and path.read_text(encoding="utf-8") == drawn:
            continue
        stale += 1
        print(f"{path.name} is stale: run python docs/draw.py" if options.check else path.name)
        if not options.check:
            path.write_text(drawn, encoding="utf-8")
    return int(options.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
