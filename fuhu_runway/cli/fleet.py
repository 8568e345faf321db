"""
The commands for a fleet: the same prompts on many machines, with one Postgres.

Rule 1: the database's URL is FUHU_DATABASE_URL, never an argument; no output has its password.
Rule 2: what is enqueued twice is paid for once.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import attrs
from cyclopts import App, Parameter

from fuhu_runway import hooks
from fuhu_runway.errors import JournalError, UsageError
from fuhu_runway.journal import DATABASE_VARIABLE
from fuhu_runway.models import DEFAULT_WAIT, Limits, TaskState, usage_error

from .batch import checked, run_with_file
from .console import RESULT, Screen, columns, fail, listed, number
from .journal import job_line, job_row, pick
from .options import IN_RESULT, OUT, POSITIVE, WHOLE, Access, InputFile
from .tally import shown, trouble_of

if TYPE_CHECKING:
    from fuhu_runway.contrib.fleet import Fleet, Status

MISSING_RIGHT: Final = "42501"
"""The SQLSTATE of a statement that the user of the database may not execute."""

GRANT: Final = (
    "The user needs the right to create tables. As the owner of the database, run: "
    "GRANT USAGE, CREATE ON SCHEMA public TO the_user; and then this command again."
)

app: Final = App(
    name="fleet",
    help="""
    Generate the same prompts on many machines, with one Postgres.

    Every command reads the database's URL from FUHU_DATABASE_URL.
    """,
    version_flags=(),
)


@app.command
async def init(*, screen: Screen = Screen()) -> None:
    """
    Create the tables in the database: run it once, and after each update.

    Free. Tables that exist and are up to date are not changed.
    """
    try:
        await new_fleet().init()
    except JournalError as error:
        if MISSING_RIGHT in error.happened:
            error.advice = GRANT
        raise
    screen.info("The tables are ready. Enqueue with: fuhu-runway fleet enqueue FILE")
    screen.show({"ready": True})


@app.command
def enqueue(
    file: InputFile,
    /,
    *,
    name: Annotated[str | None, IN_RESULT] = None,
    skip_bad: Annotated[bool, IN_RESULT] = False,
    retry_failed: Annotated[bool, IN_RESULT] = False,
    screen: Screen = Screen(),
) -> int:
    """
    Add every entry of a file to the queue.

    The workers spend points for each entry. Enqueuing the same file again adds nothing: no entry is
    paid for twice.

    Args:
        name: Name of the batch; by default the file's. Another file needs another name.
        skip_bad: Skip invalid entries of the file.
        retry_failed: Add again what failed earlier.
    """

    async def add(copy: Path, folder: Path) -> None:
        from fuhu_runway.inputs import read_items

        checked(copy, folder, screen, skip_bad=skip_bad)
        async with new_fleet() as fleet:
            # Invalid entries were reported by `checked`.
            items = read_items(copy, skip_bad=id if skip_bad else None, folder=folder)
            done = await fleet.enqueue(items, name=name or file.name, retry_failed=retry_failed)
        screen.show(attrs.asdict(done), f"{done.new:,} new, {done.known:,} known already")

    return run_with_file(file, screen, add)


@Parameter(name="*", group=RESULT)
@attrs.frozen(kw_only=True)
class Work:
    """
    The options of a worker.

    Args:
        out: Folder for the clips that all machines see, or the URL of an object store, such as
            s3://clips/spring/.
        in_flight: How many jobs this worker may have at once; a waiting job costs little.
        rate: Requests per second, of all workers together; by default the workers find it.
        tasks: Unfinished tasks, of all workers together; by default unlimited.
        max_points: Submit nothing more once all workers have spent this many points.
        lease: Seconds without a heartbeat after which a worker's jobs go to others.
        grace: Seconds to follow running jobs after Ctrl-C, before they go to others.
        timeout: How long to wait for each clip, in seconds.
        replace_key: Take up jobs that were begun with another key, which was revoked. The new key
            must belong to the same account.
    """

    out: str = str(OUT)
    in_flight: Annotated[int, WHOLE, POSITIVE] = 500
    rate: Annotated[float | None, POSITIVE] = None
    tasks: Annotated[int | None, WHOLE, POSITIVE] = None
    max_points: Annotated[float | None, POSITIVE] = None
    lease: Annotated[float, POSITIVE] = 30.0
    grace: Annotated[float, POSITIVE] = 60.0
    timeout: Annotated[float, POSITIVE] = DEFAULT_WAIT
    replace_key: bool = False


@app.command
async def work(
    *, options: Work = Work(), access: Access = Access(), screen: Screen = Screen()
) -> int:
    """
    Run a worker: carry out enqueued jobs until Ctrl-C.

    Spends points for each job. After Ctrl-C, it takes no new jobs and follows the running ones; a
    second Ctrl-C stops it at once. If it dies, nothing is lost: the others continue its jobs.
    """
    # A worker may run unattended, so what delays the work or puts money at risk is logged.
    hooks.LOGGER.setLevel(min(hooks.LOGGER.level, logging.WARNING))
    progress = Progress()
    fleet = new_fleet(
        limits=Limits(requests_per_second=options.rate, tasks_in_flight=options.tasks),
        download_to=options.out,
        max_points=options.max_points,
        timeout=options.timeout,
        lease=options.lease,
        replace_key=options.replace_key,
        api_key=access.key(),
        base_url=access.base_url,
        gateway=access.gateway,
        hooks=[screen.watch, progress.watch],
    )
    from fuhu_runway.contrib.fleet import RESTART_CODE, LeaseExpired

    screen.info("working until Ctrl-C")
    try:
        async with shown(screen, lambda: screen.stage(str(progress))):
            await fleet.work(in_flight=options.in_flight, grace=options.grace, signals=False)
    except asyncio.CancelledError:
        screen.stop(f"This worker: {progress}.", "Other workers continue.")
        raise
    except LeaseExpired as error:
        return fail(error, screen, RESTART_CODE)
    raise AssertionError  # pragma: no cover  (it works until it is stopped)


@app.command
async def status(*, screen: Screen = Screen()) -> None:
    """
    Show the workers, the jobs by state, the pace, and what is in doubt.

    Free, and sends nothing to the gateway.
    """
    async with new_fleet() as fleet:
        now = await fleet.status()
    counts = {
        "waiting for a worker": now.ready,
        "waiting for a retry": now.scheduled,
        "with a worker": now.running,
        **{state.value: count for state, count in now.jobs.items()},
    }
    idle = "not limited" if now.running else "unknown while no worker has a job"
    rate = idle if now.rate is None else f"{now.rate:.3g} requests a second"
    held = f", but none for {now.held:.0f} s" if now.held >= 1 else ""
    screen.show(
        _status_row(now),
        *columns(
            ("worker", "heartbeat", "jobs"),
            *(
                (str(one.id), f"{one.heartbeat_age:.0f} s ago", f"{one.jobs:,}")
                for one in now.workers
            ),
        ),
        listed(counts, "no jobs"),
        f"{number(now.points)} points spent",
        f"pace of all workers: {rate}{held}",
    )
    if now.doubts:
        command = f'fuhu-runway jobs "${DATABASE_VARIABLE}"'
        screen.info(f"To see what to do about those in doubt: {command}")


@app.command
async def cancel(job: str, /, *, screen: Screen = Screen()) -> None:
    """
    Cancel a job that was not sent, or stop following its task.

    Free. A task that was paid for continues at the gateway.

    Args:
        job: Name that `jobs` shows, task id, or beginning of the key.
    """
    async with new_fleet() as fleet:
        name = job
        with contextlib.suppress(UsageError):  # it has no row until a worker takes it
            name = (await pick(fleet.journal, job)).key
        try:
            ended = await fleet.cancel(name)
        except UsageError as error:
            advice = "List the jobs that were begun with `fuhu-runway jobs --journal URL`."
            raise usage_error("job", "No job matches this name.", advice) from error
    if ended is None:
        screen.show({"job": None}, "cancelled: it was not sent, and nothing was charged")
        return
    screen.show({"job": job_row(ended)}, job_line(ended))
    screen.info("It is no longer followed. Its task continues, and may be paid for.")


def new_fleet(**settings: Any) -> "Fleet":
    """Return the fleet of the database in FUHU_DATABASE_URL."""
    try:
        from fuhu_runway.contrib.fleet import Fleet
    except ImportError as missing:
        raise usage_error(
            "database",
            f"The commands for fleets need an extra ({missing.name} is missing).",
            'In a checkout: python -m pip install ".[cli,fleet]".',
        ) from missing
    return Fleet(**settings)


def _status_row(now: "Status") -> dict[str, Any]:
    return {
        "workers": [attrs.asdict(worker) for worker in now.workers],
        "ready": now.ready,
        "scheduled": now.scheduled,
        "running": now.running,
        "jobs": {state.value: count for state, count in now.jobs.items() if count},
        "points": now.points,
        "rate": now.rate,
        "held": now.held,
        "doubts": [job_row(job) for job in now.doubts],
    }


@attrs.define
class Progress:
    """What one worker has done since it started."""

    counts: Counter[str] = attrs.field(factory=Counter)
    trouble: str = ""

    def watch(self, event: hooks.Event) -> None:
        """Count what ended; a listener."""
        match event:
            case hooks.TaskSubmitted():
                self.counts["submitted"] += 1
                self.trouble = ""
            case hooks.DownloadFinished():
                self.counts["saved"] += 1
            case hooks.TaskSettled() if event.state is not TaskState.SUCCEEDED:
                self.counts["failed"] += 1
            case hooks.SubmissionDoubted():
                self.counts["in doubt"] += 1
            case hooks.RetryScheduled() | hooks.PollFailed():
                self.trouble = trouble_of(event)
            case hooks.TaskPolled():
                self.trouble = ""

    def __str__(self) -> str:
        parts = filter(None, (listed(self.counts), self.trouble))
        return ", ".join(parts) or "nothing so far"
