"""
The command line for batches: a whole file of requests in, a clip for each out.

Rule 1: a file is read to its end, and every place is tried, before the first request is sent.
Rule 2: whatever ends a batch, the same command goes on with it.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import attrs
from cyclopts import Parameter

from fuhu_runway import errors, hooks
from fuhu_runway._clock import LoopClock
from fuhu_runway._journal_file import command_line
from fuhu_runway.journal import JobState, Journal
from fuhu_runway.models import DEFAULT_WAIT, PollPolicy, usage_error

from .console import SIMULATED, Lines, close, complain, print_row, run, write
from .options import (
    NO_DEFAULT,
    REACH,
    SIMULATE,
    TALK,
    WHOLE,
    Reach,
    Talk,
    check_positive,
    result_option,
)

if TYPE_CHECKING:
    from fuhu_runway.batch import Batch, Outcome
    from fuhu_runway.client import Client
    from fuhu_runway.testing.simulator import Simulator

CLOCK: Final = LoopClock()

STATE_NAME: Final = "simulated-gateway.jsonl"
"""Where a simulated gateway keeps its tasks, so that it can be killed as well as the batch."""

SIMULATED_SPEED: Final = 100.0
"""A job of 100 s takes a second."""
SIMULATED_POLLING: Final = PollPolicy(first=0.2, max_interval=0.4)

PRIVATE: Final = 0o600
"""The mode of new files: readable by their owner alone."""

STATES: Final = {
    "saved": "The file is there.",
    "failed": "The task failed: there will be no clip.",
    "in_doubt": "It was sent, and may have been accepted. It is not sent again.",
    "timed_out": "The task goes on, and so does the same command.",
    "unfinished": "It is paid for, and the clip could not be fetched; the same command tries.",
    "refused": "It was not submitted, or not accepted: nothing was charged.",
}
CODE_OF: Final = {"in_doubt": 3, "unfinished": 5, "refused": 5, "timed_out": 4, "failed": 1}
"""The first of these that came up gives the exit code: the more it needs a person, the earlier."""

_AGAIN: Final = "The same command goes on with them."
ADVICE: Final = {
    "in_doubt": ("in doubt: perhaps charged, and not sent again", "What to do: {jobs}"),
    "unfinished": ("paid for and not fetched", _AGAIN),
    "refused": (
        "not submitted, or refused: nothing was charged",
        f"{_AGAIN} What was refused for good needs --retry-failed.",
    ),
    "timed_out": ("timed out: their tasks go on", _AGAIN),
    "failed": ("failed", "With --retry-failed they are submitted anew."),
}
"""What the summary says of each kind of end, and what to do about it."""

OVER: Final = frozenset({"saved", "failed", "refused", "in_doubt"})
"""What no later run changes by itself."""

_WORD_OF: Final = (
    (errors.SubmissionInDoubt, "in_doubt"),
    (errors.WaitTimeout, "timed_out"),
    (errors.TaskFailed, "failed"),
)

RESULT_KEYS: Final = {
    "index": "The place in the input, from 0.",
    "custom_id": "The input's own name for it.",
    "task_id": "The task, where there is one.",
    "state": f"{', '.join(STATES)}.",
    "path": "The clip on this machine; where one was saved.",
    "error": "The name of the error.",
    "money": "What that means for the money, in a sentence.",
    "points": "Points used, in the gateway's unit; null where they are unknown.",
    "refunded": "Whether the points were given back.",
    "resumed": "Whether an earlier run had submitted it.",
}
SUMMARY_KEYS: Final = {
    "total": "How many jobs there are.",
    **{word: f"How many are {word}: {text}" for word, text in STATES.items()},
    "left": "How many were not begun.",
    "errors": "The name of each error, to how often it came.",
    "points": "Points that the tasks cost which ended in this run.",
    "refunded_points": "Points that were given back.",
    "seconds": "How long this run took.",
    "files": "The file of results of `batch`; the clips of `resume`.",
}
TABLES: Final[Mapping[str, Mapping[str, str]]] = {
    "A line of results": RESULT_KEYS,
    "A batch in JSON": SUMMARY_KEYS,
}
"""What the reference page says about what is printed and written here."""


# Arguments

OUT: Final = result_option("The folder for the clips; made if it is not there.")
TIMEOUT: Final = result_option("How long to wait for each clip, in seconds.")


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Order:
    """What a batch does with its file."""

    out: Annotated[Path, OUT]
    in_flight: Annotated[int, result_option("How many jobs may exist at once.", **WHOLE)] = 20
    journal: Annotated[
        Path | None, result_option("What is remembered; by default journal.db in that folder.")
    ] = None
    max_points: Annotated[
        float | None, result_option("Submit nothing more once this many points are spent.")
    ] = None
    retry_failed: Annotated[
        bool, result_option("Submit anew what failed in an earlier run.", **NO_DEFAULT)
    ] = False
    skip_bad: Annotated[bool, result_option("Pass over bad entries of the file.", **NO_DEFAULT)] = (
        False
    )
    overwrite: Annotated[
        bool, result_option("Replace files that stand in the place of clips.", **NO_DEFAULT)
    ] = False
    timeout: Annotated[
        float,
        result_option(
            "How long to wait for each clip, and then as long again for its file, in seconds."
        ),
    ] = DEFAULT_WAIT
    results: Annotated[
        Path | None,
        result_option("A line of JSON for each outcome; by default results.jsonl in that folder."),
    ] = None

    @property
    def journal_path(self) -> Path:
        """Where the journal is."""
        return self.journal or self.out / "journal.db"

    @property
    def results_path(self) -> Path:
        """Where the outcomes are written."""
        return self.results or self.out / "results.jsonl"

    def check(self) -> None:
        """Raise unless all numbers are possible."""
        check_positive("timeout", self.timeout)
        check_positive("in-flight", self.in_flight)
        if self.max_points is not None:
            check_positive("max-points", self.max_points)


# Commands


def batch(
    file: Annotated[
        Path,
        Parameter(
            help="Requests: .txt (a prompt a line), .jsonl or .csv; - for prompts from stdin.",
            allow_leading_hyphen=True,
        ),
    ],
    /,
    *,
    order: Order,
    talk: Talk = TALK,
    reach: Reach = REACH,
    simulate: Annotated[bool, SIMULATE] = False,
) -> int:
    """
    Make a clip of every entry of a file, and save them all.

    Spends points for each one. However it ends, the same command goes on with it: nothing is
    lost, and nothing is paid twice.
    """
    from fuhu_runway.inputs import spooled  # noqa: PLC0415  (aiohttp, which --help can do without)

    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(spooled(file))
        except KeyboardInterrupt:
            return 130
        return run(partial(_make_all, file, order, Place(talk, reach, simulate)), talk)


# Places


@attrs.frozen
class Place:
    """The gateway of a command, and how its results are shown."""

    talk: Talk
    reach: Reach
    is_simulated: bool

    def check(self, journal: Path, state_file: Path) -> None:
        """Raise unless there is a key, and the journal belongs to this gateway."""
        if self.is_simulated:
            self.reach.check_simulated()
        else:
            self.reach.key()
            if journal.exists() and state_file.exists():
                raise _mixed("simulated", "real")

    async def client(
        self,
        stack: contextlib.AsyncExitStack,
        journal: Journal,
        state_file: Path,
        screen: Lines,
        *listeners: hooks.Listener,
    ) -> "Client":
        """Return the client of the gateway, or of a simulated one that is kept in *state_file*."""
        settings: dict[str, Any] = {"journal": journal, "hooks": listeners}
        simulator = None
        if self.is_simulated:
            counts = await journal.counts()
            # A run that was killed early leaves a journal in which nothing was sent yet.
            is_used = sum(counts.values()) > counts[JobState.PLANNED]
            simulator = _simulator(state_file, has_to_exist=is_used)
            await stack.enter_async_context(simulator)
            settings["polling"] = SIMULATED_POLLING
            screen.say(SIMULATED)
        return await stack.enter_async_context(self.reach.client(simulator, **settings))


def _mixed(found: str, wanted: str) -> errors.UsageError:
    return usage_error(
        "simulate",
        f"The journal is of a {found} gateway, and a {wanted} one was asked for.",
        "Give --simulate for both or for none, or choose another folder.",
    )


def _simulator(state_file: Path, *, has_to_exist: bool) -> "Simulator":
    from fuhu_runway.testing.simulator import Simulator  # noqa: PLC0415  (aiohttp, which --help can do without)

    if has_to_exist and not state_file.exists():
        raise _mixed("real", "simulated")
    try:
        state_file.touch(mode=PRIVATE)  # it holds the prompts
        return Simulator(
            speed=SIMULATED_SPEED,
            points=None,
            key_style="any",
            feed_verb="any",
            state_file=state_file,
        )
    except (OSError, ValueError) as unfit:
        raise usage_error(
            "simulate",
            f"{state_file.name!r} is not the state of a simulated gateway.",
            "Choose another folder, or remove the file and the journal beside it.",
        ) from unfit


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Journal]:
    """Yield a journal that no other process has open."""
    journal = Journal(path)
    try:
        await journal.counts()  # raises first if anything is wrong with it
        yield journal
    finally:
        await journal.aclose()


# Counting


def word_of(error: Exception | None, task_id: str | None) -> str:
    """Return the word for how a job ended."""
    if error is None:
        return "saved"
    known = (word for kind, word in _WORD_OF if isinstance(error, kind))
    return next(known, "unfinished" if task_id else "refused")


@attrs.define(eq=False)
class Tally:
    """The outcomes of a batch so far."""

    total: int
    #: How many ended with each word and error; the error is empty where there is none.
    ends: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    #: How many of each word an earlier run had brought to this end.
    old: Counter[str] = attrs.field(factory=Counter)
    points: float = 0.0
    refunded_points: float = 0.0
    started_at: float = attrs.field(factory=CLOCK.now)
    #: The name of the latest error, until something goes well.
    trouble: str = ""
    #: Why nothing more is submitted.
    stopped_by: str = ""

    def watch(self, event: hooks.Event) -> None:
        """Record trouble, and its end."""
        match event:
            case hooks.RetryScheduled() | hooks.PollFailed():
                self.trouble = event.error
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
        word = word_of(error, task_id)
        self.ends[word, type(error).__name__ if error else ""] += 1
        self.old[word] += is_old and word in OVER
        if refunded:
            self.refunded_points += points or 0.0
        else:
            self.points += points or 0.0

    def count(self, word: str) -> int:
        """Return how many ended with *word*."""
        return sum(count for (one, _), count in self.ends.items() if one == word)

    @property
    def done(self) -> int:
        """How many ended."""
        return self.ends.total()

    @property
    def seconds(self) -> float:
        """How long this run has taken so far."""
        return CLOCK.now() - self.started_at

    def seconds_left(self) -> float | None:
        """Return how long the rest will take at the pace of this run; None before its first."""
        fresh = self.done - self.old.total()
        return (self.total - self.done) * self.seconds / fresh if fresh else None

    def show(self, screen: Lines, running: int) -> None:
        """Show the counts."""
        counts = {
            "running": running,
            "left": self.total - self.done - running,
            "failed": self.count("failed") + self.count("refused"),
            "unfinished": self.count("timed_out") + self.count("unfinished"),
            "in doubt": self.count("in_doubt"),
        }
        parts = [f"{count:,} {name}" for name, count in counts.items() if count]
        if self.points:
            parts.append(f"{number(self.points)} points")
        if self.trouble:
            parts.append(f"{self.trouble}, trying again")
        left = self.seconds_left()
        screen.board(
            f"{self.done:,} of {self.total:,}",
            self.done / self.total,
            "" if left is None else f"{_duration(left)} left",
            ", ".join(parts),
        )

    def row(self) -> dict[str, Any]:
        """Return the row for JSON."""
        names: Counter[str] = Counter()
        for (_, name), count in self.ends.items():
            if name:
                names[name] += count
        return {
            "total": self.total,
            **{word: self.count(word) for word in STATES},
            "left": self.total - self.done,
            "errors": dict(names),
            "points": self.points,
            "refunded_points": self.refunded_points,
            "seconds": round(self.seconds, 3),
        }

    def exit_code(self) -> int:
        """Return the exit code: 0 if all is saved."""
        codes = [code for word, code in CODE_OF.items() if self.count(word)]
        return codes[0] if codes else int(self.done < self.total)

    def report(
        self, place: Place, screen: Lines, folder: Path, journal: Path, files: list[str]
    ) -> int:
        """Print the result, and return the exit code."""
        for line in self._lines(folder, journal):
            screen.info(line)
        if place.talk.json:
            print_row({**self.row(), "files": files}, place.talk)
        else:
            write(sys.stdout, "\n".join(files))
        return self.exit_code()

    def _lines(self, folder: Path, journal: Path) -> Iterator[str]:
        old = self.old["saved"]
        earlier = f", {old:,} of them from earlier runs" if old else ""
        yield f"{self.count('saved'):,} of {self.total:,} clips are in {folder}{earlier}."
        listing = command_line("fuhu-runway", "jobs", str(journal), "--state", "in-doubt")
        for word, (meaning, advice) in ADVICE.items():
            reasons = {name: n for (one, name), n in self.ends.items() if one == word}
            if reasons:
                named = ", ".join(f"{n:,} {name}" for name, n in reasons.items())
                yield f"{self.count(word):,} {meaning} ({named}). {advice.format(jobs=listing)}"
        if self.done < self.total:
            named = f" ({self.stopped_by})" if self.stopped_by else ""
            left = self.total - self.done
            yield f"{left:,} were not begun{named}. The same command goes on with them."
        spent, back = number(self.points), number(self.refunded_points)
        yield f"{spent} points spent, {back} given back, in {_duration(self.seconds)}."


def number(points: float) -> str:
    """Return points as a person writes them."""
    return f"{points:,.10g}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextlib.asynccontextmanager
async def shown(tally: Tally, screen: Lines, running: Callable[[], int]) -> AsyncIterator[None]:
    """Show the counts until the end of the block."""

    async def keep_showing() -> None:
        while True:
            tally.show(screen, running())
            await CLOCK.sleep(screen.interval)

    showing = asyncio.create_task(keep_showing())
    try:
        yield
    finally:
        showing.cancel()
        await asyncio.wait({showing})
        screen.close()


# Results


@attrs.define(eq=False)
class Results:
    """
    The file of outcomes, a line of JSON each.

    A run that goes on adds what is new, and repeats no line.
    """

    _file: FileIO
    #: The state and the task of each job's last line.
    _last: dict[int, tuple[str, str | None]]
    #: Why not all could be written.
    fault: str = ""

    @classmethod
    def open(cls, path: Path) -> Self:
        """
        Continue after the last whole line; a truncated one, left by a crash, is removed.

        Raises:
            UsageError: It cannot be written, or is something else.
        """
        beginning = b'{"index": '
        try:
            with FileIO(path, "a+", opener=partial(os.open, mode=PRIVATE)) as old:
                old.seek(0)
                content = old.readall()
                *lines, torn = content.split(b"\n")
                last = dict(map(_parsed, lines))
                if not (beginning.startswith(torn) or torn.startswith(beginning)):
                    raise ValueError  # noqa: TRY301  (as for a line that cannot be parsed)
                old.truncate(len(content) - len(torn))
            return cls(FileIO(path, "a"), last)
        except (OSError, ValueError, RecursionError) as unfit:
            reason = getattr(unfit, "strerror", None) or "it is something else"
        raise usage_error(  # outside of the clause, since what was raised there may quote the file
            "results", f"{path.name!r} cannot hold the results ({reason}).", "Choose another."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, outcome: "Outcome") -> None:
        """Add a line. A full disk does not end the batch: the journal has everything."""
        row = result_row(outcome)
        latest = (row["state"], row["task_id"])
        if self.fault or (outcome.resumed and self._last.get(outcome.index) == latest):
            return
        self._last[outcome.index] = latest
        line = json.dumps(row).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                self.fault = "the disk is full"
        except OSError as full:
            self.fault = full.strerror or type(full).__name__


def _parsed(line: bytes) -> tuple[int, tuple[str, str | None]]:
    match json.loads(line):
        case {"index": int(index), "state": str(state), "task_id": str() | None as task_id}:
            return index, (state, task_id)
    raise ValueError


def result_row(outcome: "Outcome") -> dict[str, Any]:
    """Return what the results say about a job: neither prompt nor address."""
    error = outcome.error
    return {
        "index": outcome.index,
        "custom_id": outcome.custom_id,
        "task_id": outcome.task_id,
        "state": word_of(error, outcome.task_id),
        "path": None if outcome.path is None else str(outcome.path),
        "error": type(error).__name__ if error else None,
        "money": error.money if error else None,
        "points": outcome.points,
        "refunded": outcome.refunded,
        "resumed": outcome.resumed,
    }


# A batch


async def _make_all(file: Path, order: Order, place: Place, screen: Lines) -> int:
    """Submit, follow and save everything that was not done before."""
    from fuhu_runway.inputs import read_items  # noqa: PLC0415  (as above)
    from fuhu_runway.paths import check_folder  # noqa: PLC0415  (aiohttp, as above)

    order.check()
    state_file = order.out / STATE_NAME
    place.check(order.journal_path, state_file)
    tally = Tally(_counted(file, order, screen))
    check_folder(order.out)
    async with contextlib.AsyncExitStack() as stack:
        # The journal is first: only one process has it, and so the other files.
        journal = await stack.enter_async_context(opened(order.journal_path))
        results = stack.enter_context(Results.open(order.results_path))
        client = await place.client(stack, journal, state_file, screen, tally.watch)
        many = client.batch(
            # Bad entries were reported when they were counted.
            read_items(file, skip_bad=id if order.skip_bad else None),
            in_flight=order.in_flight,
            download_to=order.out,
            timeout=order.timeout,
            max_points=order.max_points,
            retry_failed=order.retry_failed,
            overwrite=order.overwrite,
        )
        fault = None
        try:
            await _work_off(many, tally, results, screen)
        except asyncio.CancelledError:
            await _stop(client, journal, screen)
            raise
        except errors.RunwayError as error:
            # The file changed, or the journal broke. Exit code 2 would say that nothing was paid.
            complain(f"{error} What was submitted before goes on; so does the same command.")
            fault = 5
        if results.fault:
            complain(f"The results are not all in their file ({results.fault}).")
        files = [str(order.results_path)]
        code = tally.report(place, screen, order.out, order.journal_path, files)
        return fault or code


def _counted(file: Path, order: Order, screen: Lines) -> int:
    """Return how many entries there are, after checking each."""
    from fuhu_runway.inputs import check_items  # noqa: PLC0415  (aiohttp, as above)

    def pass_over(bad: errors.UsageError) -> None:
        screen.say(f"passed over: {bad.happened} {bad.advice}")

    count = check_items(file, skip_bad=pass_over if order.skip_bad else None)
    if not count:
        raise usage_error("file", f"{file.name} has no entries.", "Give at least one.")
    return count


async def _work_off(many: "Batch", tally: Tally, results: Results, screen: Lines) -> None:
    """Count and record every outcome."""
    async with (
        shown(tally, screen, lambda: many.summary.running),
        contextlib.aclosing(many.outcomes()) as outcomes,
    ):
        async for outcome in outcomes:
            error = outcome.error
            tally.add(
                error,
                outcome.task_id,
                outcome.points,
                refunded=outcome.refunded,
                is_old=outcome.resumed and outcome.clip is None,
            )
            results.write(outcome)
            if results.fault and outcome.task_id:
                # The disk may have refused the journal as well, and the id finds the clip.
                screen.say(f"entry {outcome.index + 1}: task {outcome.task_id}")
            if isinstance(error, errors.UsageError | errors.UnexpectedError):
                screen.say(f"entry {outcome.index + 1}: {error}")
    tally.stopped_by = many.summary.stopped_by or ""
    if many.summary.out_of_points:
        tally.stopped_by = "--max-points is reached"


async def _stop(client: "Client", journal: Journal, screen: Lines) -> None:
    """Wait for the paid requests in flight, so that their ids are known; report the rest."""
    await close(client, screen, "the answers to requests, which may name paid tasks")
    counts = await journal.counts()
    running = counts[JobState.ACCEPTED] + counts[JobState.FINISHED]
    in_doubt = counts[JobState.IN_DOUBT]
    doubts = f" {in_doubt:,} in doubt." if in_doubt else ""
    screen.say(
        f"Stopped. {running:,} tasks go on, and the journal has their ids.{doubts} "
        "Continue with the same command."
    )
