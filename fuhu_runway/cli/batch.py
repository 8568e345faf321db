"""
The command for batches: a file of requests in, a clip for each out.

Rule 1: the whole file and all output paths are checked before the first request is sent.
Rule 2: however a batch ends, the same command continues it.
"""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import attrs
from cyclopts import Parameter

from fuhu_runway import errors
from fuhu_runway._clip_files import is_url
from fuhu_runway.journal import JobState
from fuhu_runway.models import DEFAULT_WAIT, usage_error

from .console import FIRST_SIGNAL, RESULT, Screen, close, counted, run, stopped
from .opening import PRIVATE, check_journal, working
from .options import OUT, POSITIVE, WHOLE, InputFile, Target
from .output import complain
from .tally import AGAIN, Tally, shown, state_of

if TYPE_CHECKING:
    from fuhu_runway.items import Outcome


@Parameter(name="*", group=RESULT)
@attrs.frozen(kw_only=True)
class Options:
    """
    The options of a batch.

    Args:
        out: Folder for the clips, created if needed, or the URL of an object store, such as
            s3://bucket/clips/.
        dry_run: Only show what would be sent, and what it would cost, judging by similar jobs so
            far.
        in_flight: How many jobs may be in flight at once.
        journal: Journal of the batch; by default journal.db in that folder. Needed with a URL.
        max_points: Submit nothing more once this many points are spent.
        retry_failed: Submit again what failed in an earlier run.
        skip_bad: Skip invalid entries of the file.
        overwrite: Replace existing files that have the name of a clip.
        timeout: How long to wait for each clip, and then as long again for its download, in
            seconds.
        results: File for one line of JSON per outcome; by default results.jsonl in that folder, or
            beside the journal.
    """

    out: str = str(OUT)
    dry_run: bool = False
    in_flight: Annotated[int, WHOLE, POSITIVE] = 20
    journal: Path | None = None
    max_points: Annotated[float | None, POSITIVE] = None
    retry_failed: bool = False
    skip_bad: bool = False
    overwrite: bool = False
    timeout: Annotated[float, POSITIVE] = DEFAULT_WAIT
    results: Path | None = None


def batch(
    file: InputFile,
    /,
    *,
    options: Options = Options(),
    screen: Screen = Screen(),
    target: Target = Target(),
) -> int:
    """
    Generate and save a clip for every entry of a file.

    Spends points for each one. However it ends, the same command continues it: nothing is lost,
    and nothing is paid for twice.
    """
    return run_with_file(file, screen, partial(_make_all, options, target, screen))


def run_with_file(
    file: Path, screen: Screen, work: Callable[[Path, Path], Coroutine[Any, Any, int | None]]
) -> int:
    """
    Run *work* with a file that can be read twice, and the folder of its relative paths.

    Input that can be read only once, such as stdin, is copied first, which blocks.
    """
    from fuhu_runway.inputs import spooled

    with contextlib.ExitStack() as stack:
        try:
            copy = stack.enter_context(spooled(file))
        except KeyboardInterrupt:
            return stopped(screen, FIRST_SIGNAL + signal.SIGINT)
        return run(work(copy, file.parent if copy == file else Path()), screen)


def checked(file: Path, folder: Path, screen: Screen, *, skip_bad: bool) -> int:
    """Return how many entries of a file can be used; what is skipped is shown."""
    from fuhu_runway.inputs import check_items

    def skip(bad: errors.UsageError) -> None:
        screen.say(f"skipped: {bad.happened} {bad.advice}")

    total = check_items(file, skip_bad=skip if skip_bad else None, folder=folder)
    if not total:
        raise no_entries(file)
    return total


def no_entries(file: Path) -> errors.UsageError:
    """Return the error of an input file without requests."""
    return usage_error("file", f"{file.name} has no entries.", "Add at least one.")


# Results


@attrs.define(eq=False)
class Results:
    """
    The file of outcomes, one line of JSON each.

    A run that continues a batch adds what is new and repeats no line.
    """

    _file: FileIO
    #: The state and the task id in each job's last line.
    _last: dict[int, tuple[str, str | None]]
    #: Why some lines are missing.
    fault: str = ""

    @classmethod
    def open(cls, path: Path) -> Self:
        """
        Continue after the last complete line; a truncated one, left by a crash, is removed.

        Raises:
            UsageError: The file cannot be written, or contains something else.
        """
        beginning = b'{"index": '
        try:
            with FileIO(path, "a+", opener=partial(os.open, mode=PRIVATE)) as old:
                old.seek(0)
                content = old.readall()
                *lines, torn = content.split(b"\n")
                rows = map(json.loads, lines)
                last = {row["index"]: (row["state"], row["task_id"]) for row in rows}
                if not (beginning.startswith(torn) or torn.startswith(beginning)):
                    raise ValueError  # noqa: TRY301  (as for a line that cannot be parsed)
                old.truncate(len(content) - len(torn))
            return cls(FileIO(path, "a"), last)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or "it is not a results file"
            raise usage_error(
                "results",
                f"{path.name!r} cannot be used as the results file ({reason}).",
                "Use another file.",
            ) from None  # the cause may quote the file

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def write(self, outcome: "Outcome") -> None:
        """Add a line. A full disk does not end the batch: the journal has everything."""
        error = outcome.error
        latest = (state_of(error, outcome.task_id), outcome.task_id)
        if self.fault or (outcome.resumed and self._last.get(outcome.index) == latest):
            return
        self._last[outcome.index] = latest
        row = {
            "index": outcome.index,
            "key": outcome.key,
            "custom_id": outcome.custom_id,
            "task_id": outcome.task_id,
            "state": latest[0],
            "path": None if outcome.path is None else str(outcome.path),
            "object_url": outcome.object_url,
            "error": type(error).__name__ if error else None,
            "money": error.money if error else None,
            "points": outcome.points,
            "refunded": outcome.refunded,
            "resumed": outcome.resumed,
            "prompt": getattr(outcome.request, "prompt", None),
        }
        line = json.dumps(row).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                self.fault = "the disk is full"
        except OSError as full:
            self.fault = full.strerror or type(full).__name__


# A batch


def _places(options: Options) -> tuple[Path | str, Path]:
    """Return where the clips go, and the folder of the other files."""
    if not is_url(options.out):
        return Path(options.out), Path(options.out)
    if options.journal is None:
        raise usage_error(
            "journal",
            "The clips go to an object store, which cannot hold the journal.",
            "Add --journal journal.db, or another file on this machine.",
        )
    return options.out, options.journal.parent


async def _make_all(
    options: Options, target: Target, screen: Screen, file: Path, folder: Path
) -> int:
    """Submit, wait for and save everything that earlier runs did not."""
    from fuhu_runway.inputs import read_items

    out, home = _places(options)
    journal_path = options.journal or home / "journal.db"
    results_path = options.results or home / "results.jsonl"
    if options.dry_run:
        from .dry_run import dry_run

        return await dry_run(options, screen, file, folder, journal_path)
    check_journal(target, journal_path)
    total = checked(file, folder, screen, skip_bad=options.skip_bad)
    tally = Tally(total, retry="Add --retry-failed to submit them again.")
    async with working(journal_path, target, screen, tally.watch, out=home, is_new=True) as (
        journal,
        client,
    ):
        many = client.batch(
            # Invalid entries were reported by `checked`.
            read_items(file, skip_bad=id if options.skip_bad else None, folder=folder),
            in_flight=options.in_flight,
            download_to=out,
            timeout=options.timeout,
            max_points=options.max_points,
            retry_failed=options.retry_failed,
            overwrite=options.overwrite,
        )
        fault = None
        results = Results.open(results_path)
        try:
            async with (
                shown(screen, lambda: tally.show(screen, many.summary.running)),
                contextlib.aclosing(many.outcomes()) as outcomes,
            ):
                async for outcome in outcomes:
                    _record(outcome, tally, results, screen)
        except asyncio.CancelledError:
            await close(client, screen, "the responses to requests, which may name paid tasks")
            counts = await journal.counts()
            running = sum(n for state, n in counts.items() if state.is_unfinished)
            ids = counted(
                running,
                "task continues, and the journal has its id.",
                "tasks continue, and the journal has their ids.",
            )
            in_doubt = counts[JobState.IN_DOUBT]
            doubts = f" {in_doubt:,} in doubt." if in_doubt else ""
            screen.stop(f"{ids}{doubts}", AGAIN)
            raise
        except errors.RunwayError as error:
            if not (many.summary.submitted or tally.ends):
                raise
            # The file changed, or the journal broke. Exit code 2 would mean that nothing was paid.
            complain(f"{error} Tasks that were submitted continue. {AGAIN}")
            fault = 5
        finally:
            results.close()
        if results.fault:
            complain(f"Some results could not be written to their file ({results.fault}).")
        tally.stopped_by = many.summary.stopped_by or ""
        if many.summary.out_of_points:
            tally.stopped_by = "--max-points was reached"
        code = tally.report(screen, out, journal_path, [str(results_path)])
        return fault or code


def _record(outcome: "Outcome", tally: Tally, results: Results, screen: Screen) -> None:
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
        # A full disk may have failed the journal, too; the id still finds the clip.
        screen.say(f"entry {outcome.index + 1}: task {outcome.task_id}")
    if isinstance(error, errors.UsageError | errors.UnexpectedError):
        screen.say(f"entry {outcome.index + 1}: {error}")
