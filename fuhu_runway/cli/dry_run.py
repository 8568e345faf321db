"""
What a batch would do, and what it would cost.

Rule 1: nothing is sent, no key is needed, and nothing is written but a copy of the journal, which
is removed. In it, each entry gets the job that the batch would give it.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

import attrs

from fuhu_runway.batch import Item, job_of, plan_for
from fuhu_runway.errors import UsageError
from fuhu_runway.inputs import KINDS, check_items, read_items
from fuhu_runway.journal import Job, JobState
from fuhu_runway.models import usage_error

from .batch import Options, no_entries
from .console import Screen, columns, number
from .opening import copied, opened
from .tally import CLOCK

SENT: Final = "new"
ACTIONS: Final = {
    JobState.PLANNED: SENT,
    JobState.SUBMITTING: "in_doubt",
    JobState.IN_DOUBT: "in_doubt",
    JobState.ACCEPTED: "resumed",
    JobState.FINISHED: "resumed",
    JobState.SAVED: "saved",
    JobState.FAILED: "failed",
}
MEANINGS: Final = {
    SENT: "would be sent",
    "resumed": "paid for by an earlier run, would be waited for and saved",
    "saved": "saved by an earlier run",
    "failed": "failed in an earlier run, sent again only with --retry-failed",
    "in_doubt": "in doubt, not sent again",
}
"""What happens to an entry, as JSON has it and in words."""

Kind = tuple[str, str | None, int | None]
"""What the cost of a job depends on: the type of its request, its model, and its seconds."""


@attrs.frozen
class Entry:
    """One entry of the file, and what a batch would do with it."""

    index: int
    custom_id: str | None
    kind: str
    model: str | None
    seconds: int | None
    action: str
    #: What it would cost, by the median of earlier jobs of this kind; None if there is none.
    points: float | None


async def dry_run(
    options: Options, screen: Screen, file: Path, folder: Path, journal_path: Path
) -> int:
    """Print what a batch would do, and return 2 if it would refuse the file, else 0."""
    bad: list[str] = []

    def note(error: UsageError) -> None:
        bad.append(f"{error.happened} {error.advice}")

    if not check_items(file, skip_bad=note, folder=folder) and not bad:
        raise no_entries(file)
    with TemporaryDirectory() as place:
        try:
            copy = copied(journal_path, Path(place))
        except OSError as error:
            happened = f"The journal cannot be read ({error.strerror})."
            raise usage_error("journal", happened, "Check its permissions.") from error
        async with opened(copy) as journal:
            costs = _costs(await journal.jobs())
            entries = []
            for index, item in enumerate(read_items(file, skip_bad=id, folder=folder)):
                job = await job_of(journal, await plan_for(item), CLOCK.wall())
                entries.append(_entry(index, item, job, costs))
    if options.retry_failed:
        entries = [
            attrs.evolve(entry, action=SENT) if entry.action == "failed" else entry
            for entry in entries
        ]
    for text in bad:
        screen.say(f"{'skipped' if options.skip_bad else 'refused'}: {text}")
    sent = [entry for entry in entries if entry.action == SENT]
    known = [entry.points for entry in sent if entry.points is not None]
    row = {
        "entries": list(map(attrs.asdict, entries)),
        "bad": bad,
        "new": len(sent),
        "points": sum(known),
        "unknown": len(sent) - len(known),
    }
    screen.show(row, *_lines(entries, sent, known))
    return 2 if bad and not options.skip_bad else 0


def _costs(jobs: Iterable[Job]) -> dict[Kind, float]:
    """Return the median of what jobs of each kind cost so far."""
    paid: dict[Kind, list[float]] = defaultdict(list)
    for job in jobs:
        if job.points is not None and not job.refunded:
            paid[job.endpoint, job.model, job.seconds].append(job.points)
    return {kind: median(points) for kind, points in paid.items()}


def _entry(index: int, item: Item, job: Job, costs: dict[Kind, float]) -> Entry:
    names = {kind.__name__: name for name, kind in KINDS.items()}
    return Entry(
        index,
        item.custom_id,
        names[job.endpoint],
        job.model,
        job.seconds,
        ACTIONS[job.state],
        costs.get((job.endpoint, job.model, job.seconds)),
    )


def _lines(entries: list[Entry], sent: list[Entry], known: list[float]) -> Iterator[str]:
    kinds = Counter((one.kind, one.model, one.seconds, one.points) for one in sent)
    head = ("entries", "kind", "model", "seconds", "points each", "points")
    if kinds:
        yield from columns(
            head,
            *(
                (
                    f"{count:,}",
                    kind,
                    model or "",
                    str(seconds or ""),
                    number(points, "unknown"),
                    number(points and points * count, "unknown"),
                )
                for (kind, model, seconds, points), count in kinds.items()
            ),
        )
    for action, meaning in MEANINGS.items():
        numbers = [one.index + 1 for one in entries if one.action == action]
        if numbers:
            yield f"{len(numbers):,} {meaning}: {', '.join(_ranges(numbers))}"
    unknown = len(sent) - len(known)
    if unknown and not known:
        cost = "Points: unknown, since no job of this kind has ended yet."
    else:
        more = f", and {unknown:,} of unknown cost" if unknown else ""
        cost = f"Points: about {number(sum(known))}{more}."
    yield f"{cost} Nothing was sent."


def _ranges(numbers: Iterable[int]) -> Iterator[str]:
    """Yield ascending numbers as ranges, such as 1-3 and 7."""
    # Within a range, a number and its position grow together.
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        yield f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}"
