"""
Many jobs over one client: read lazily, submit, wait, save, and resume after a crash.

Rule 1: at most `in_flight` jobs exist at once, including those whose outcome was not read yet.
Rule 2: if a job fails, its error is its outcome. Only an error that every other job would hit as
well (`HOPELESS`) stops further submissions.
"""

import asyncio
import errno
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, Unpack

import attrs

from . import errors
from ._arguments import check
from ._jobs import JobOptions, Jobs
from ._live import Live
from ._notebook import table_view
from ._session.sessions import Sessions
from .items import Item, Outcome, Source, Summary, check_source, item_of, numbered
from .journal import JobState
from .models import usage_error

HOPELESS: Final = (
    errors.OutOfCredits,
    errors.Unauthorized,
    errors.NotSent,
    errors.JournalError,
)
"""Errors that every other job would hit as well: a batch submits no more after one of these."""

NO_ROOM: Final = frozenset(
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS") if hasattr(errno, name)
)
"""Errors of a disk on which no other clip could be saved either; not every system has them all."""

NEWEST: Final = 10
"""How many outcomes a notebook shows."""


class BatchOptions(JobOptions, total=False):
    """The options of a `Batch`, which describes them."""

    in_flight: int


class Batch:
    """
    Many jobs in one run, made by `Client.batch`; nothing is sent before `outcomes()` is read.

    Spends points for each job that the gateway accepts; each is submitted at most once, as
    `Client.submit` says. With a journal, running the same batch again continues where the earlier
    run ended: accepted jobs are followed, jobs in doubt are reported, and neither is submitted
    again. If the client has an account as well, jobs in doubt are settled before the first job and
    after the last one: see `Client.reconcile`.

    If a job fails, its error is its outcome. After a refused key, an account without points, an
    unreachable gateway, a broken journal or a full disk, nothing more is submitted; the jobs that
    exist are followed to their end, and `summary.stopped_by` says why. An exception of the source
    is raised after that.

    Args:
        sessions: The client's sessions.
        prompts: Prompts, requests and items, from any iterable or async iterable. It is read only
            as far as there is room for jobs.
        in_flight: How many jobs may exist at once, including those whose outcome was not read.
        download_to: Where to save clips, under names made from their prompts: a folder, the URL of
            an object store (`s3://`, `gs://`, `az://` or `file://`), or an `ObjectStore`; None
            saves nothing.
        timeout: How long to wait for each task, and then as long again for its file, in seconds;
            None waits without limit.
        max_points: Nothing more is submitted once this many points are spent or reserved.
        retry_failed: Whether to submit jobs again that failed in an earlier run.
        overwrite: Whether a clip may replace an existing file. If not, such a job is not
            submitted, and its outcome says so.

    Raises:
        UsageError: An argument is wrong, or nothing can be written to *download_to*.
    """

    def __init__(
        self,
        sessions: Sessions,
        prompts: Source,
        *,
        in_flight: int = 20,
        **options: Unpack[JobOptions],
    ) -> None:
        check(in_flight=in_flight)
        check_source(prompts)
        if isinstance(prompts, list | tuple):  # which can be checked before any money is spent
            for index, thing in enumerate(prompts):
                item_of(thing, index)
        #: Counts of the run so far.
        self.summary = Summary()
        self._jobs = Jobs(sessions, self.summary, **options)
        self._sessions = sessions
        self._prompts = prompts
        self._in_flight = in_flight
        self._is_stopped = False
        self._feeder: asyncio.Task[None] | None = None
        self._custom_ids: set[str] = set()
        #: The jobs that this run has sent and that were in doubt, by their keys.
        self._own: set[str] = set()
        self._newest: deque[tuple[str, ...]] = deque(maxlen=NEWEST)
        self._live = Live(self._repr_html_)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the counts, and how the newest jobs ended."""
        counts = {
            "clips": self.summary.clips,
            "running": self.summary.running,
            "failed": self.summary.failed,
            "in doubt": self.summary.in_doubt,
            "points": self.summary.points,
        }
        title = ", ".join(f"{count:,.10g} {name}" for name, count in counts.items() if count)
        if self.summary.stopped_by:
            title += f" (stopped by {self.summary.stopped_by})"
        head = ("job", "task", "ended as", "points")
        return table_view(f"Batch: {title or 'nothing sent yet'}", head, self._newest)

    def _ipython_display_(self) -> None:
        """Show the batch in a notebook, where it is updated while the batch runs."""
        self._live.show(repr(self))

    def stop(self) -> None:
        """Stop reading the source; jobs that exist are followed to their end."""
        self._stop(None)

    def _stop(self, reason: str | None) -> None:
        if not self._is_stopped:
            self.summary.stopped_by = reason
        self._is_stopped = True
        if self._feeder is not None:
            self._feeder.cancel()  # it may be waiting for the source

    async def outcomes(self) -> AsyncGenerator[Outcome, None]:
        """
        Yield the outcomes as the jobs end.

        An exception from the source stops further submissions, and is raised after the last
        outcome.
        Leaving early cancels the jobs that run: their tasks go on at the gateway, and their ids
        are in the journal.

        Raises:
            UsageError: The source yielded something that is not a request, or the object store
                cannot be used.
            JournalError: The journal cannot be used.
        """
        if self._jobs.place is not None:
            await self._jobs.place.open()
        if self._sessions.journal is not None:
            await self._sessions.journal.start_run()
            await self._sessions.reconcile_if_possible()
        things: AsyncGenerator[tuple[int, Any], None] | None = self._read()
        doubts: list[Outcome] = []
        while things is not None:
            async with aclosing(self._ended(things, doubts)) as ended:
                async for outcome in ended:
                    yield outcome
            # After the last job: by now the gateway lists what it has accepted.
            left, things = await self._settled(doubts)
            for outcome in left:
                self._count(outcome)
                yield outcome
        feeder = self._feeder
        if feeder is not None and not (feeder.cancelled() and self._is_stopped):
            try:
                feeder.result()
            except errors.UsageError as bad:
                if self.summary.done:  # earlier entries may have been charged
                    bad.money = "Nothing was sent or charged for this entry."
                raise

    async def _ended(
        self,
        things: AsyncGenerator[tuple[int, Any], None],
        doubts: list[Outcome],
    ) -> AsyncGenerator[Outcome, None]:
        """Yield the outcomes of jobs as they end, but those in doubt are added to *doubts*."""
        free = asyncio.Semaphore(self._in_flight)
        ended: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()
        jobs: set[asyncio.Task[Any]] = set()
        feeder = asyncio.create_task(self._feed(things, free, ended, jobs))
        # The first one reads the source; the jobs of later ones exist, and are not stopped.
        self._feeder = self._feeder or feeder
        feeder.add_done_callback(ended.put_nowait)
        is_fed = False
        try:
            while jobs or not is_fed:
                job = await ended.get()
                if job is feeder:
                    is_fed = True
                    continue
                outcome = job.result()
                jobs.discard(job)
                self.summary.running -= 1
                self._live.changed()
                if outcome is None:
                    pass
                elif outcome.is_in_doubt and outcome.key and self._sessions.account is not None:
                    doubts.append(outcome)
                else:
                    self._count(outcome)
                    yield outcome
                # Only now: an outcome that was not read must not make room for another job.
                free.release()
        finally:
            for job in (feeder, *jobs):
                job.cancel()
            await asyncio.gather(feeder, *jobs, return_exceptions=True)
            self._live.update()

    def _count(self, outcome: Outcome) -> None:
        self.summary.add(outcome)
        self._newest.appendleft(
            (
                outcome.custom_id or f"{outcome.index + 1}",
                outcome.task_id or "",
                type(outcome.error).__name__ if outcome.error else "clip",
                "" if outcome.points is None else f"{outcome.points:g}",
            )
        )
        if outcome.clip is not None and outcome.error is None:
            outcome.clip.task.hand_out()

    async def _settled(
        self, doubts: list[Outcome]
    ) -> tuple[list[Outcome], AsyncGenerator[tuple[int, Any], None] | None]:
        """
        Reconcile; return the outcomes that stay in doubt, and the jobs that can go on.

        *doubts* is empty then. If the batch is stopped, what is not sent again is added to it.
        """
        left, going_on = list[Outcome](), list[tuple[Outcome, bool]]()
        if doubts:
            await self._sessions.reconcile_if_possible()
        while doubts:
            one = doubts.pop(0)
            # Read from the journal: a webhook or a late search may have settled it.
            job = await self._sessions.job_with(one.key)
            is_over = job is None or job.state.is_unanswered
            is_unsent = job is not None and job.state is JobState.PLANNED
            if is_over or (is_unsent and self._is_stopped):
                left.append(one)
            else:
                going_on.append((one, is_unsent))
        self._custom_ids -= {one.custom_id for one, _ in going_on if one.custom_id is not None}
        self._own |= {one.key for one, _ in going_on if one.key and not one.resumed}

        async def things() -> AsyncGenerator[tuple[int, Any], None]:
            for one, is_unsent in going_on:
                if is_unsent and self._is_stopped:
                    doubts.append(one)
                    continue
                key = one.key if one.custom_id is None else None
                yield one.index, Item(one.request, one.custom_id, key=key)

        return left, things() if going_on else None

    async def _read(self) -> AsyncGenerator[tuple[int, Any], None]:
        """Read the source until the batch is stopped."""
        async with aclosing(numbered(self._prompts)) as things:
            async for index, thing in things:
                if self._is_stopped:
                    return
                yield index, thing

    async def _feed(
        self,
        source: AsyncGenerator[tuple[int, Any], None],
        free: asyncio.Semaphore,
        ended: "asyncio.Queue[asyncio.Task[Any]]",
        jobs: "set[asyncio.Task[Any]]",
    ) -> None:
        """Start a job for each item, as room becomes free."""
        await free.acquire()
        async with aclosing(source) as things:
            async for index, thing in things:
                job = asyncio.create_task(self._job(index, item_of(thing, index)))
                self.summary.running += 1
                self._live.changed()
                jobs.add(job)
                job.add_done_callback(ended.put_nowait)
                await free.acquire()

    async def _job(self, index: int, item: Item) -> Outcome | None:
        """Return how a job ended; None if the batch stopped before it was submitted."""
        try:
            self._sessions.check_open()
        except errors.UsageError as closed:
            self._stop(type(closed).__name__)
            return Outcome(index, item.request, item.custom_id, error=closed)
        if item.custom_id in self._custom_ids:
            twice = usage_error(
                "custom_id",
                f"Another job of this batch has the custom_id {item.custom_id!r}.",
                "Use a different one for each job.",
            )
            return Outcome(index, item.request, item.custom_id, error=twice)
        if item.custom_id is not None:
            self._custom_ids.add(item.custom_id)
        outcome = await self._jobs.outcome(index, item)
        if outcome is None:
            if not self._jobs.is_over:
                self._stop("max_points")
            return None
        if outcome.key in self._own:
            outcome = attrs.evolve(outcome, resumed=False)
        if outcome.error is not None and _is_hopeless(outcome.error, resumed=outcome.resumed):
            self._jobs.is_over = True
            self._stop(type(outcome.error).__name__)
        return outcome


def _is_hopeless(error: errors.RunwayError, *, resumed: bool) -> bool:
    """Return whether every other job of the batch would end in this *error* as well."""
    if isinstance(error, errors.DownloadIncomplete):
        # Clips that cannot be saved are paid for all the same, and their URLs expire.
        return getattr(error.__cause__, "errno", None) in NO_ROOM
    # A value that SQLite cannot hold concerns one row only.
    is_own = isinstance(error.__cause__, ValueError | ArithmeticError)
    return isinstance(error, HOPELESS) and not resumed and not is_own
