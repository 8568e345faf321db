"""
The page of a batch: one HTML file with clips, prompts, points and times.

Rule 1: it needs nothing but the clips beside it: no scripts, and no URLs of other hosts.
Rule 2: everything that is shown is escaped; most of it comes from a gateway or a file of prompts.
"""

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Final

import attrs

from fuhu_runway.journal import LONGEST, Job

from .console import listed, number
from .journal import mark_of, moment

MARK: Final = "<!DOCTYPE html>\n<!-- Written by fuhu-runway report; it may be replaced. -->\n"
"""How each page begins: a file that begins otherwise is not ours."""

STYLE: Final = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
main { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
article { border: 1px solid #868e98; border-radius: 6px; padding: .75rem; }
article, p { overflow-wrap: anywhere; margin: 0; }
video { width: 100%; max-height: 24rem; }
small { opacity: .8; }
"""


@attrs.frozen(kw_only=True)
class Card:
    """One job, as the page shows it."""

    job: Job
    prompt: str | None = None
    #: What its error means for the money.
    money: str | None = None
    #: The URL of its clip, relative to the page.
    video: str | None = None

    def html(self) -> str:
        """Return its element."""
        job, name = self.job, _text(mark_of(self.job))
        points = took = None
        if job.points is not None:
            points = f"{number(job.points)} points{' (refunded)' if job.refunded else ''}"
        seconds = (job.finished_at or 0.0) - (job.accepted_at or 0.0)
        if job.accepted_at is not None and 0 < seconds < LONGEST:
            took = f"took {seconds:,.0f} s" if seconds >= 10 else f"took {seconds:.1f} s"
        at = moment(job.submitted_at)
        sent = f"{at.astimezone():%Y-%m-%d %H:%M}" if at else None
        facts = filter(None, (mark_of(job), job.source, points, took, sent, job.task_id))
        note = f"{job.error} {self.money or ''}" if job.error else ""
        parts = [
            self.video
            and f'<video controls preload="metadata" src="{_text(self.video)}"'
            f' title="Clip of {name}"></video>',
            self.prompt and f"<p>{_text(self.prompt)}</p>",
            f"<p><strong>{job.state.value}</strong> {_text(note)}</p>",
            f"<small>{' · '.join(map(_text, facts))}</small>",
        ]
        return f"<article>{''.join(filter(None, parts))}</article>"


def page(title: str, cards: Sequence[Card], made_at: str) -> str:
    """Return the page of these jobs."""
    jobs = [card.job for card in cards]
    counts = listed(Counter(job.state.value for job in jobs), "no jobs")
    spent, back = (
        number(sum(job.points or 0.0 for job in jobs if job.refunded == is_refunded))
        for is_refunded in (False, True)
    )
    return "\n".join(
        [
            f'{MARK}<html lang="en">',
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{_text(title)}</title>",
            f"<style>{STYLE}</style>",
            f"<h1>{_text(title)}</h1>",
            f"<p>{counts}. {spent} points spent, {back} refunded. Made {_text(made_at)}.</p>",
            "<main>",
            *(card.html() for card in cards),
            "</main>",
            "</html>\n",
        ]
    )


def _text(text: str) -> str:
    # A lone surrogate, which JSON allows, cannot be written to a file.
    return escape(text.encode("utf-8", "replace").decode())
