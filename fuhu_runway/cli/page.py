"""
The page of a batch: one HTML file with clips, prompts, points, times and a plot of durations.

Rule 1: it needs nothing but the clips beside it: no scripts, and no address anywhere else.
Rule 2: everything that is shown is escaped; most of it comes from a gateway or a file of prompts.
"""

from collections import Counter
from collections.abc import Sequence
from html import escape
from statistics import median
from typing import Final

import attrs

MARK: Final = "<!DOCTYPE html>\n<!-- Written by fuhu-runway report; it may be replaced. -->\n"
"""How each page begins: a file that begins otherwise is not ours."""

BARS: Final = 20
"""Bars in the plot; with more, a small batch would rarely have two clips in one bar."""

STYLE: Final = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
main { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
article { border: 1px solid #868e98; border-radius: 6px; padding: .75rem; }
article, p { overflow-wrap: anywhere; margin: 0; }
video { width: 100%; max-height: 24rem; }
small { opacity: .8; }
svg { width: 100%; max-width: 40rem; fill: currentColor; font-size: 12px; }
"""


@attrs.frozen(kw_only=True)
class Card:
    """One job, as the page shows it."""

    #: Its name: a custom id, or the beginning of its key.
    name: str
    state: str
    #: File and line of its request.
    source: str | None = None
    prompt: str | None = None
    #: The URL of its clip, relative to the page.
    video: str | None = None
    #: Why it has no clip, and what that means for the money.
    note: str | None = None
    task_id: str | None = None
    points: float | None = None
    refunded: bool = False
    #: When it was sent.
    sent: str | None = None
    #: How long the gateway took, in seconds.
    took: float | None = None


def page(title: str, cards: Sequence[Card], made_at: str) -> str:
    """Return the page of these jobs."""
    states = Counter(card.state for card in cards)
    counts = ", ".join(f"{count:,} {state}" for state, count in states.items()) or "no jobs"
    spent = sum(card.points or 0.0 for card in cards if not card.refunded)
    back = sum(card.points or 0.0 for card in cards if card.refunded)
    points = f"{spent:,.10g} points spent, {back:,.10g} refunded"
    return "\n".join(
        [
            f'{MARK}<html lang="en">',
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{_text(title)}</title>",
            f"<style>{STYLE}</style>",
            f"<h1>{_text(title)}</h1>",
            f"<p>{_text(counts)}. {points}. Made {_text(made_at)}.</p>",
            plot([card.took for card in cards if card.took is not None]),
            "<main>",
            *map(_article, cards),
            "</main>",
            "</html>\n",
        ]
    )


def _article(card: Card) -> str:
    points = None
    if card.points is not None:
        points = f"{card.points:,.10g} points{' (refunded)' if card.refunded else ''}"
    took = None if card.took is None else f"took {_seconds(card.took)}"
    facts = filter(None, (card.name, card.source, points, took, card.sent, card.task_id))
    parts = [
        card.video
        and f'<video controls preload="metadata" src="{_text(card.video)}"'
        f' title="Clip of {_text(card.name)}"></video>',
        card.prompt and f"<p>{_text(card.prompt)}</p>",
        f"<p><strong>{_text(card.state)}</strong> {_text(card.note or '')}</p>",
        f"<small>{' · '.join(map(_text, facts))}</small>",
    ]
    return f"<article>{''.join(filter(None, parts))}</article>"


def plot(seconds: Sequence[float]) -> str:
    """Return a histogram of durations as SVG; empty if there is nothing to compare."""
    least, most = min(seconds, default=0.0), max(seconds, default=0.0)
    if _seconds(least) == _seconds(most):
        return ""
    bars = Counter(min(int((one - least) / (most - least) * BARS), BARS - 1) for one in seconds)
    highest = max(bars.values())
    boxes = "".join(
        f'<rect x="{bar * 30 + 1}" y="{110 - 100 * count / highest:.1f}" width="28"'
        f' height="{100 * count / highest:.1f}"><title>{count:,}</title></rect>'
        for bar, count in sorted(bars.items())
    )
    label = (
        f"{len(seconds):,} clips took {_seconds(least)} to {_seconds(most)}, "
        f"half of them up to {_seconds(median(seconds))}"
    )
    return (
        f"<h2>Durations</h2><p>{label}.</p>"
        f'<svg viewBox="0 0 600 130" role="img" aria-label="{label}">{boxes}'
        f'<text x="0" y="126">{_seconds(least)}</text>'
        f'<text x="600" y="126" text-anchor="end">{_seconds(most)}</text></svg>'
    )


def _seconds(duration: float) -> str:
    return f"{duration:,.0f} s" if duration >= 10 else f"{duration:.1f} s"


def _text(text: str) -> str:
    # A lone surrogate, which JSON allows, cannot be written to a file.
    return escape(text.encode("utf-8", "replace").decode())
