"""The outcomes of a batch, counted: while it runs, in its summary, and in its exit code."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

import attrs

from fuhu_runway import errors, hooks
from fuhu_runway._clock import LoopClock

from .console import Screen, counted, listed, number
from .options import JournalPlace, on_journal

CLOCK: Final = LoopClock()

AGAIN: Final = "Run the same command again to continue."
ENDINGS: Final = {
    "in_doubt": (
        3,
        "in doubt: perhaps charged, and not sent again",
        "To see what to do, run: {jobs}",
    ),
    "unfinished": (5, "paid for but not saved", "{again}"),
    "refused": (
        5,
        "not submitted, or refused: nothing was charged",
        "{again} Add --retry-failed to submit what the gateway refused for good.",
    ),
    "timed_out": (4, "timed out, and their tasks continue", "{again}"),
    "failed": (1, "failed", "{retry}"),
}
"""
How a job ends without a saved clip: exit code, description, and advice for the summary.

The first that occurred determines the exit code, so the most urgent comes first.
"""
STATES: Final = ("saved", *ENDINGS)

TROUBLES: Final = {
    "RateLimited": "waiting: the gateway limits the rate",
    "NotSent": "waiting: the gateway cannot be reached",
}
"""What delays a request, by the name of its error."""

FINAL: Final = frozenset({"saved", "failed", "refused", "in_doubt"})
"""The states that a later run does not change by itself."""


def state_of(error: Exception | None, task_id: str | None) -> str:
    """Return how a job ended: one of `STATES`."""
    match error:
        case None:
            return "saved"
        case errors.SubmissionInDoubt():
            return "in_doubt"
        case errors.WaitTimeout():
            return "timed_out"
        case errors.TaskFailed():
            return "failed"
    return "unfinished" if task_id else "refused"


def trouble_of(event: hooks.RetryScheduled | hooks.PollFailed) -> str:
    """Return what delays a request, in words for the progress."""
    return TROUBLES.get(event.error, f"{event.error}, retrying")


@attrs.define(eq=False)
class Tally:
    """The outcomes of a batch so far."""

    total: int = 0
    #: How to continue.
    again: str = AGAIN
    #: How to submit again what failed, if the command can do that.
    retry: str = ""
    #: The number of jobs by state and error name; the name is empty if there is no error.
    ends: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    #: The number of jobs by state that an earlier run had brought to this state.
    old: Counter[str] = attrs.field(factory=Counter)
    points: float = 0.0
    refunded_points: float = 0.0
    started_at: float = attrs.field(factory=CLOCK.now)
    #: What delays the latest request that is being retried; empty once a request succeeds.
    trouble: str = ""
    #: Why submitting stopped early.
    stopped_by: str = ""

    def watch(self, event: hooks.Event) -> None:
        """Record the latest error of a request, and its end."""
        match event:
            case hooks.RetryScheduled() | hooks.PollFailed():
                self.trouble = trouble_of(event)
            case hooks.TaskSubmitted() | hooks.TaskPolled():
                self.trouble = ""

    def add(
        self,
        error: Exception | None,
        task_id: str | None,
        points: float | None,
        *,
        refunded: bool = False,
        is_old: bool = False,
    ) -> None:
        """Count one job that ended; *is_old* if this run did nothing for it."""
        state = state_of(error, task_id)
        self.ends[state, type(error).__name__ if error else ""] += 1
        self.old[state] += is_old and state in FINAL
        if refunded:
            self.refunded_points += points or 0.0
        else:
            self.points += points or 0.0

    def count(self, *states: str) -> int:
        """Return how many jobs ended in one of these states."""
        return sum(n for (state, _), n in self.ends.items() if state in states)

    @property
    def left(self) -> int:
        """How many jobs have not ended."""
        return self.total - self.ends.total()

    @property
    def code(self) -> int:
        """The exit code, which is that of the worst outcome."""
        codes = (code for state, (code, _, _) in ENDINGS.items() if self.count(state))
        return next(codes, int(self.left > 0))

    @property
    def seconds(self) -> float:
        """How long this run has taken so far."""
        return CLOCK.now() - self.started_at

    def seconds_left(self) -> float | None:
        """Return how long the rest takes at this run's pace; None until it has finished a job."""
        fresh = self.ends.total() - self.old.total()
        return self.left * self.seconds / fresh if fresh else None

    def show(self, screen: Screen, running: int) -> None:
        """Show the counts."""
        counts = {
            "running": running,
            "left": self.left - running,
            "failed": self.count("failed", "refused"),
            "unfinished": self.count("timed_out", "unfinished"),
            "in doubt": self.count("in_doubt"),
        }
        points = f"{number(self.points)} points" if self.points else ""
        done, left = self.ends.total(), self.seconds_left()
        screen.board(
            f"{done:,} of {self.total:,}",
            done / self.total,
            "" if left is None else f"{_duration(left)} left",
            ", ".join(filter(None, (listed(counts), points, self.trouble))),
        )

    def report(
        self, screen: Screen, place: Path | str, journal: JournalPlace, files: Sequence[str]
    ) -> int:
        """Print the result, and return the exit code; *place* is where the clips are."""
        if not self.total:
            screen.info("There is nothing to save.")
        for line in self._lines(place, journal) if self.total else ():
            screen.info(line)
        names: Counter[str] = Counter()
        for (_, name), count in self.ends.items():
            names[name] += count
        del names[""]
        row = {
            "total": self.total,
            **{state: self.count(state) for state in STATES},
            "left": self.left,
            "errors": names,
            "points": self.points,
            "refunded_points": self.refunded_points,
            "seconds": round(self.seconds, 3),
            "files": files,
        }
        screen.show(row, *files)
        return self.code

    def _lines(self, place: Path | str, journal: JournalPlace) -> Iterator[str]:
        old = self.old["saved"]
        earlier = f", {old:,} of them from earlier runs" if old else ""
        clips = counted(self.total, "clip is", "clips are")
        yield f"{self.count('saved'):,} of {clips} in {place}{earlier}."
        jobs = on_journal("jobs", journal, "--state", "in-doubt")
        for state, (_, meaning, template) in ENDINGS.items():
            names = {name: n for (one, name), n in self.ends.items() if one == state}
            if names:
                advice = template.format(jobs=jobs, again=self.again, retry=self.retry)
                yield f"{self.count(state):,} {meaning} ({listed(names)}). {advice}".rstrip()
        if self.left:
            reason = f" ({self.stopped_by})" if self.stopped_by else ""
            yield f"{counted(self.left, 'was', 'were')} not started{reason}. {self.again}"
        spent, back = number(self.points), number(self.refunded_points)
        yield f"{spent} points spent, {back} refunded, in {_duration(self.seconds)}."


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextlib.asynccontextmanager
async def shown(screen: Screen, show: Callable[[], None]) -> AsyncIterator[None]:
    """Call *show* at the intervals of a screen until the end of the block."""

    async def keep_showing() -> None:
        while True:
            show()
            await CLOCK.sleep(screen.interval)

    showing = asyncio.create_task(keep_showing())
    try:
        yield
    finally:
        showing.cancel()
        await asyncio.wait({showing})
        screen.close()
