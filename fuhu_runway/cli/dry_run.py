"""
What a batch would do, and what it would cost.

Rule 1: nothing is sent, no key is needed, and nothing is written but a copy of the journal, which
is removed. In it, each entry gets the job that the batch would give it.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from fuhu_runway.errors import UsageError
from fuhu_runway.inputs import KINDS, check_items, read_items
from fuhu_runway.items import job_of, plan_for
from fuhu_runway.journal import Job, JobState
from fuhu_runway.models import usage_error

from .batch import Options, no_entries
from .console import Screen, columns, number
from .opening import copied, opened
from .tally import CLOCK

ACTIONS: Final = {
    JobState.PLANNED: "new",
    JobState.SUBMITTING: "in_doubt",
    JobState.IN_DOUBT: "in_doubt",
    JobState.ACCEPTED: "resumed",
    JobState.FINISHED: "resumed",
    JobState.SAVED: "saved",
    JobState.FAILED: "failed",
}
MEANINGS: Final = {
    "new": "would be sent",
    "resumed": "paid for by an earlier run, would be waited for and saved",
    "saved": "saved by an earlier run",
    "failed": "failed in an earlier run, sent again only with --retry-failed",
    "in_doubt": "in doubt, not sent again",
}
"""What happens to an entry, as JSON has it and in words."""


async def dry_run(
    options: Options, screen: Screen, file: Path, folder: Path, journal_path: Path
) -> int:
    """Print what a batch would do, and return 2 if it would refuse the file, else 0."""
    bad: list[str] = []

    def note(error: UsageError) -> None:
        bad.append(f"{error.happened} {error.advice}")

    if not check_items(file, skip_bad=note, folder=folder) and not bad:
        raise no_entries(file)
    actions = ACTIONS | ({JobState.FAILED: "new"} if options.retry_failed else {})
    names = {kind.__name__: name for name, kind in KINDS.items()}
    entries: list[dict[str, Any]] = []
    with TemporaryDirectory() as place:
        try:
            copy = copied(journal_path, Path(place))
        except OSError as error:
            happened = f"The journal cannot be read ({error.strerror})."
            raise usage_error("journal", happened, "Check its permissions.") from error
        async with opened(copy) as journal:
            costs = _costs(await journal.jobs())
            for index, item in enumerate(read_items(file, skip_bad=id, folder=folder)):
                job = await job_of(journal, await plan_for(item), CLOCK.wall())
                entry = {
                    "index": index,
                    "custom_id": item.custom_id,
                    "kind": names[job.endpoint],
                    "model": job.model,
                    "seconds": job.seconds,
                    "action": actions[job.state],
                    "points": costs.get((job.endpoint, job.model, job.seconds)),
                }
                entries.append(entry)
    for text in bad:
        screen.say(f"{'skipped' if options.skip_bad else 'refused'}: {text}")
    sent = [entry for entry in entries if entry["action"] == "new"]
    known = [entry["points"] for entry in sent if entry["points"] is not None]
    row = {
        "entries": entries,
        "bad": bad,
        "new": len(sent),
        "points": sum(known),
        "unknown": len(sent) - len(known),
    }
    kinds = Counter((one["kind"], one["model"], one["seconds"], one["points"]) for one in sent)
    screen.show(row, *_table(kinds), *_actions(entries), f"{_cost(row, known)} Nothing was sent.")
    return 2 if bad and not options.skip_bad else 0


def _costs(jobs: Sequence[Job]) -> dict[tuple[str, str | None, int | None], float]:
    """Return the median cost so far of jobs of each kind, model and length."""
    paid = defaultdict[tuple[str, str | None, int | None], list[float]](list)
    for job in jobs:
        if job.points is not None and not job.refunded:
            paid[job.endpoint, job.model, job.seconds].append(job.points)
    return {kind: median(points) for kind, points in paid.items()}


def _table(kinds: Counter[tuple[Any, ...]]) -> Iterator[str]:
    rows = [
        (
            f"{count:,}",
            kind,
            model or "",
            str(seconds or ""),
            number(points, "unknown"),
            number(points and points * count, "unknown"),
        )
        for (kind, model, seconds, points), count in kinds.items()
    ]
    if rows:
        yield from columns(("entries", "kind", "model", "seconds", "points each", "points"), *rows)


def _actions(entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    for action, meaning in MEANINGS.items():
        numbers = [one["index"] + 1 for one in entries if one["action"] == action]
        # Within a range, such as 1-3, a number and its position grow together.
        groups = itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
        runs = [[number for _, number in group] for _, group in groups]
        if runs:
            ranges = (f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
            noun = "entry" if len(numbers) == 1 else "entries"
            yield f"{len(numbers):,} {meaning}: {noun} {', '.join(ranges)}"


def _cost(row: dict[str, Any], known: Sequence[float]) -> str:
    if row["unknown"] and not known:
        return "Points: unknown, since no job of this kind has ended yet."
    more = f", and {row['unknown']:,} of unknown cost" if row["unknown"] else ""
    return f"Points: about {number(sum(known))}{more}."
