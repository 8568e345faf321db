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

from .console import (
    NO_DEFAULT,
    REACH,
    SIMULATE,
    SIMULATED,
    TALK,
    UNNOTICED,
    WHOLE,
    Lines,
    Reach,
    Talk,
    check_positive,
    complain,
    guarded,
    result_option,
    screen_for,
    tell,
    write,
)

if TYPE_CHECKING:
    from fuhu_runway.batch import Batch, Outcome
    from fuhu_runway.client import Client

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
    "in_doubt": "It was sent, and nobody knows whether it was accepted. It is not sent again.",
    "timed_out": "The task goes on, and so does the same command.",
    "unfinished": "It is paid for, and the clip could not be fetched; the same command tries.",
    "refused": "It was not submitted, or not accepted: nothing was charged.",
}
CODE_OF: Final = {"in_doubt": 3, "unfinished": 5, "refused": 5, "timed_out": 4, "failed": 1}
"""The first of these that came up gives the exit code: the more it needs a person, the earlier."""

OVER: Final = frozenset({"saved", "failed", "refused", "in_doubt"})
"""What no later run can change without being told to."""

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
    "points": "Points used, in the gateway's unit; where this run heard of them.",
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

    screen = screen_for(quiet=talk.json)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(spooled(file))
        except KeyboardInterrupt:
            return 130
        work = partial(_make_all, file, order, Place(screen, talk, reach, simulate))
        return guarded(work, screen, verbosity=len(talk.verbose))


# Places


@attrs.frozen
class Place:
    """What a command speaks to: a person, and a gateway."""

    screen: Lines
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
        *listeners: hooks.Listener,
    ) -> "Client":
        """Return the client of the gateway, or of one that survives this process as a file."""
        settings: dict[str, Any] = {"journal": journal, "hooks": listeners}
        simulator = None
        if self.is_simulated:
            counts = await journal.counts()
            # A run that was killed early leaves a journal in which nothing was sent yet.
            is_used = sum(counts.values()) > counts[JobState.PLANNED]
            gateway = _simulator(state_file, has_to_exist=is_used)
            simulator = await stack.enter_async_context(gateway)
            settings["polling"] = SIMULATED_POLLING
            self.screen.say(SIMULATED)
        client = self.reach.client(simulator, **settings)
        return await stack.enter_async_context(client)


def _mixed(there: str, asked: str) -> errors.UsageError:
    return usage_error(
        "simulate",
        f"The journal is of a {there} gateway, and a {asked} one was asked for.",
        "Give --simulate for both or for none, or choose another folder.",
    )


def _simulator(state_file: Path, *, has_to_exist: bool) -> Any:
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
    """Return a journal that no other process has open."""
    journal = Journal(path)
    try:
        await journal.counts()  # what is wrong with it is to be known before all else
        yield journal
    finally:
        await journal.aclose()


# Counting


@attrs.frozen
class End:
    """How one job ended, as far as it counts."""

    word: str
    #: The name of the error; empty where there is none.
    error: str = ""
    points: float | None = None
    refunded: bool = False
    #: It was brought to this end by an earlier run.
    is_old: bool = False


def word_of(error: errors.RunwayError | None, task_id: str | None) -> str:
    """Return the word for how a job ended."""
    if error is None:
        return "saved"
    known = (word for kind, word in _WORD_OF if isinstance(error, kind))
    return next(known, "unfinished" if task_id else "refused")


def end_of(outcome: "Outcome") -> End:
    """Return what counts of an outcome."""
    error = outcome.error
    word = word_of(error, outcome.task_id)
    return End(
        word,
        type(error).__name__ if error else "",
        outcome.points,
        outcome.refunded,
        outcome.resumed and outcome.clip is None and word in OVER,
    )


@attrs.define(eq=False)
class Tally:
    """What many jobs have come to so far."""

    total: int
    ends: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    old: Counter[str] = attrs.field(factory=Counter)
    points: float = 0.0
    refunded_points: float = 0.0
    started_at: float = attrs.field(factory=CLOCK.now)
    #: What stands in the way at the moment: the name of an error.
    trouble: str = ""
    #: Why nothing more is submitted.
    stopped_by: str = ""

    def hear(self, event: hooks.Event) -> None:
        """Record trouble, and its end."""
        match event:
            case hooks.RetryScheduled() | hooks.PollFailed():
                self.trouble = event.error
            case hooks.TaskSubmitted() | hooks.TaskPolled():
                self.trouble = ""

    def add(self, end: End) -> None:
        """Count one end."""
        self.ends[end.word, end.error] += 1
        self.old[end.word] += end.is_old
        if end.refunded:
            self.refunded_points += end.points or 0.0
        else:
            self.points += end.points or 0.0

    def count(self, word: str) -> int:
        """Return how many ended so."""
        return sum(count for (one, _), count in self.ends.items() if one == word)

    @property
    def done(self) -> int:
        """How many ended."""
        return self.ends.total()

    @property
    def seconds(self) -> float:
        """How long it has been going on."""
        return CLOCK.now() - self.started_at

    def seconds_left(self) -> float | None:
        """Return how long the rest will take, as far as what this run has done tells."""
        fresh = self.done - self.old.total()
        return (self.total - self.done) * self.seconds / fresh if fresh else None

    def show(self, screen: Lines, running: int) -> None:
        """Show how it stands."""
        counts = {
            "running": running,
            "left": self.total - self.done - running,
            "failed": self.count("failed") + self.count("refused"),
            "unfinished": self.count("timed_out") + self.count("unfinished"),
            "in doubt": self.count("in_doubt"),
        }
        parts = [f"{count:,} {name}" for name, count in counts.items() if count]
        parts += [f"{number(self.points)} points"] * bool(self.points)
        parts += [f"{self.trouble}, trying again"] * bool(self.trouble)
        left = self.seconds_left()
        screen.board(
            f"{self.done:,} of {self.total:,}",
            self.done / self.total,
            "" if left is None else f"{_duration(left)} left",
            ", ".join(parts),
        )

    def row(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        names: Counter[str] = Counter()
        for (_, name), count in self.ends.items():
            names[name] += count
        del names[""]
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

    def lines(self, folder: Path, journal: Path) -> Iterator[str]:
        """Print the result, a sentence for each kind of end."""
        earlier = f", {self.old['saved']:,} of them from earlier runs" * bool(self.old["saved"])
        yield f"{self.count('saved'):,} of {self.total:,} clips are in {folder}{earlier}."
        advice = _advice(journal)
        for word in CODE_OF:
            reasons = {name: n for (one, name), n in self.ends.items() if one == word}
            if reasons:
                named = ", ".join(f"{n:,} {name}" for name, n in reasons.items())
                yield f"{sum(reasons.values()):,} {advice[word][0]} ({named}). {advice[word][1]}"
        if self.done < self.total:
            named = f" ({self.stopped_by})" * bool(self.stopped_by)
            left = self.total - self.done
            yield f"{left:,} were not begun{named}. The same command goes on with them."
        spent, back = number(self.points), number(self.refunded_points)
        yield f"{spent} points spent, {back} given back, in {_duration(self.seconds)}."


def _advice(journal: Path) -> Mapping[str, tuple[str, str]]:
    listing = command_line("fuhu-runway", "jobs", str(journal), "--state", "in-doubt")
    again = "The same command goes on with them."
    return {
        "in_doubt": ("in doubt: perhaps charged, and not sent again", f"What to do: {listing}"),
        "unfinished": ("paid for and not fetched", again),
        "refused": (
            "not submitted, or refused: nothing was charged",
            f"{again} What was refused for good needs --retry-failed.",
        ),
        "timed_out": ("timed out: their tasks go on", again),
        "failed": ("failed", "With --retry-failed they are submitted anew."),
    }


def number(points: float) -> str:
    """Return points as a person writes them."""
    return f"{points:,.10g}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextlib.asynccontextmanager
async def shown(tally: Tally, screen: Lines, running: Callable[[], int]) -> AsyncIterator[None]:
    """Keep showing how it stands."""

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

BEGINNING: Final = b'{"index": '


@attrs.define(eq=False)
class Results:
    """
    The file of outcomes, a line of JSON each.

    A run that goes on adds what is new; what stood there already is not said twice.
    """

    _file: FileIO
    _said: dict[int, tuple[str, str | None]]
    #: Why not all could be written.
    fault: str = ""

    @classmethod
    def open(cls, path: Path) -> Self:
        """
        Go on behind the last whole line; a torn one, left by a crash, is taken away.

        Raises:
            UsageError: It cannot be written, or is something else.
        """
        try:
            with FileIO(path, "a+", opener=_private) as old:
                old.seek(0)
                *lines, torn = old.readall().split(b"\n")
                said = dict(map(_said, lines))
                old.truncate(_whole_bytes(lines, torn))
            return cls(FileIO(path, "a"), said)
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
        """Add a line; a full disk is a pity, and no reason to stop: the journal has it all."""
        row = result_row(outcome)
        news = (row["state"], row["task_id"])
        if self.fault or (outcome.resumed and self._said.get(outcome.index) == news):
            return
        self._said[outcome.index] = news
        line = json.dumps(row).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                self.fault = "the disk is full"
        except OSError as full:
            self.fault = full.strerror or type(full).__name__


def _whole_bytes(lines: list[bytes], torn: bytes) -> int:
    """Return where the whole lines end, if what follows can be one of ours that was cut."""
    if not (BEGINNING.startswith(torn) or torn.startswith(BEGINNING)):
        raise ValueError
    return sum(len(line) + 1 for line in lines)


def _said(line: bytes) -> tuple[int, tuple[str, str | None]]:
    match json.loads(line):
        case {"index": int(index), "state": str(state), "task_id": str() | None as task_id}:
            return index, (state, task_id)
    raise ValueError


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, PRIVATE)


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


async def _make_all(file: Path, order: Order, place: Place) -> int:
    """Submit, follow and save everything, as far as it was not done before."""
    from fuhu_runway.downloads import check_folder  # noqa: PLC0415  (aiohttp, as above)

    order.check()
    state_file = order.out / STATE_NAME
    place.check(order.journal_path, state_file)
    tally = Tally(_counted(file, order, place.screen))
    check_folder(order.out)
    async with contextlib.AsyncExitStack() as stack:
        # The journal is first: who has it is alone with all the other files.
        journal = await stack.enter_async_context(opened(order.journal_path))
        results = stack.enter_context(Results.open(order.results_path))
        client = await place.client(stack, journal, state_file, tally.hear)
        many = _batch(client, file, order)
        code = await _worked_off(many, client, results, tally, place)
        _tell_end(tally, results, order, place)
        return code


def _counted(file: Path, order: Order, screen: Lines) -> int:
    """Return how many entries there are, after a look at each."""
    from fuhu_runway.inputs import check_items  # noqa: PLC0415  (aiohttp, as above)

    def pass_over(bad: errors.UsageError) -> None:
        screen.say(f"passed over: {bad.happened} {bad.advice}")

    count = check_items(file, skip_bad=pass_over if order.skip_bad else None)
    if not count:
        raise usage_error("file", f"{file.name} has no entries.", "Give at least one.")
    return count


def _batch(client: "Client", file: Path, order: Order) -> "Batch":
    from fuhu_runway.inputs import read_items  # noqa: PLC0415  (aiohttp, as above)

    # Bad entries were reported when they were counted.
    return client.batch(
        read_items(file, skip_bad=id if order.skip_bad else None),
        in_flight=order.in_flight,
        download_to=order.out,
        timeout=order.timeout,
        max_points=order.max_points,
        retry_failed=order.retry_failed,
        overwrite=order.overwrite,
    )


async def _worked_off(
    many: "Batch", client: "Client", results: Results, tally: Tally, place: Place
) -> int:
    """Take every outcome, and give the exit code."""
    screen = place.screen
    try:
        async with (
            shown(tally, screen, lambda: many.summary.running),
            contextlib.aclosing(many.outcomes()) as outcomes,
        ):
            async for outcome in outcomes:
                tally.add(end_of(outcome))
                results.write(outcome)
                if results.fault and outcome.task_id:
                    # The journal may lack it as well, and it finds the clip.
                    screen.say(f"entry {outcome.index + 1}: task {outcome.task_id}")
                if isinstance(outcome.error, errors.UsageError | errors.UnexpectedError):
                    screen.say(f"entry {outcome.index + 1}: {outcome.error}")
    except asyncio.CancelledError:
        await _land(client, screen)
        raise
    except errors.RunwayError as error:
        # The file changed, or the journal broke, after much was paid: exit code 2 would be a lie.
        complain(f"{error} What was submitted before goes on; so does the same command.")
        return 5
    reason = many.summary.stopped_by
    tally.stopped_by = "--max-points is reached" if many.summary.out_of_points else reason or ""
    return tally.exit_code()


def _tell_end(tally: Tally, results: Results, order: Order, place: Place) -> None:
    for line in tally.lines(order.out, order.journal_path):
        place.screen.news(line)
    if results.fault:
        complain(f"The results are not all in their file ({results.fault}).")
    if place.talk.json:
        tell({**tally.row(), "files": [str(order.results_path)]}, place.talk)
    else:
        write(sys.stdout, str(order.results_path))


async def _land(client: "Client", screen: Lines) -> None:
    """Wait for the paid requests in flight, so that their ids are known; report the rest."""
    closing = asyncio.ensure_future(client.aclose())
    done, _ = await asyncio.wait({closing}, timeout=UNNOTICED)
    if not done:
        screen.say(
            "Waiting for the answers to requests, which may name paid tasks. "
            "Ctrl-C again leaves at once."
        )
    await closing
    assert client.journal is not None  # noqa: S101  (every batch has one)
    counts = await client.journal.counts()
    open_ones = counts[JobState.ACCEPTED] + counts[JobState.FINISHED]
    doubts = f" {counts[JobState.IN_DOUBT]:,} in doubt." * bool(counts[JobState.IN_DOUBT])
    screen.say(
        f"Stopped. {open_ones:,} tasks go on, and the journal has their ids.{doubts} "
        "Continue with the same command."
    )
