"""
Many jobs over one client: read lazily, submit, wait, save, and resume after a crash.

Rule 1: at most `in_flight` jobs exist at once, including those whose outcome was not read yet.
Rule 2: if a job fails, its error is its outcome. Only an error that every other job would hit as
well (`HOPELESS`) stops further submissions.
Rule 3: a job that the journal has as accepted is never submitted again. A job in doubt is reported.
Rule 4: a clip replaces only a file that was saved for the same job, unless `overwrite` is set.

A job is identified by its `custom_id`, else by its content and how often that came up before.
"""

import asyncio
import os
import traceback
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, TypedDict

import attrs

from . import errors
from ._arguments import check
from ._budget import Budget
from ._clip_files import clip_name
from ._live import Live
from ._notebook import table_view
from ._places import Place, place_of
from ._session.entry import in_doubt_of
from ._session.sessions import Sessions
from .errors import RunwayError
from .journal import BaseJournal, Job, JobState, Plan, nth, planned
from .models import DEFAULT_WAIT, Generation, TextToVideo, check_text, usage_error
from .task import Clip, Task
from .uploads import ClipStore

REQUESTS: Final = Generation.__args__

HOPELESS: Final = (
    errors.OutOfCredits,
    errors.Unauthorized,
    errors.NotSent,
    errors.JournalError,
)
"""Errors that every other job would hit as well: a batch submits no more after one of these."""


ENDS: Final[Mapping[JobState, tuple[type[RunwayError], ...]]] = {
    JobState.FAILED: (errors.TaskFailed, errors.GatewayError),
    JobState.IN_DOUBT: (errors.SubmissionInDoubt,),
}
"""The errors that end a job, by its state: carrying it out again would raise them again. After any
other error, such as that another worker has taken over, the next attempt may succeed."""

NEWEST: Final = 10
"""How many outcomes a notebook shows."""


@attrs.frozen
class Item:
    """
    One job of a batch.

    Raises:
        UsageError: *request* is not a request, or *custom_id* is not text that can be stored.
    """

    request: Generation = attrs.field()
    #: Your own name for it; unique within the batch.
    custom_id: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(check_text)
    )
    #: File and line that it was read from, such as "p.txt:17", to find it by.
    source: str | None = attrs.field(
        default=None, eq=False, validator=attrs.validators.optional(check_text)
    )
    #: The key of its row, if it has no `custom_id` and is planned in the journal already: for a
    #: queue that gives each job its key when it is enqueued.
    key: str | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(check_text)
    )

    @request.validator
    def _is_request(self, _: object, request: object) -> None:
        if not isinstance(request, REQUESTS):
            raise usage_error(
                "request",
                f"request is of type {type(request).__name__}.",
                f"Use one of {', '.join(kind.__name__ for kind in REQUESTS)}.",
            )


@attrs.frozen
class Outcome:
    """How one job of a batch ended."""

    #: Its position in the input, from 0.
    index: int
    request: Generation
    custom_id: str | None = None
    task_id: str | None = None
    #: The clip; None if there is no clip, or its file was there already.
    clip: Clip | None = None
    #: The file, if clips are saved in a folder.
    path: Path | None = None
    #: Why there is no clip, or no file.
    error: RunwayError | None = None
    #: Points used, in the gateway's unit; None if the gateway did not say.
    points: float | None = None
    #: Whether the points were refunded.
    refunded: bool = False
    #: Whether an earlier run submitted it.
    resumed: bool = False
    #: The key of its row in the journal; None without a journal.
    key: str | None = None
    #: The URL of the object, such as "s3://bucket/clips/1.mp4", if clips are saved in a store.
    object_url: str | None = None

    @property
    def is_in_doubt(self) -> bool:
        """Whether it is unknown if the job was accepted and charged."""
        return isinstance(self.error, errors.SubmissionInDoubt)


@attrs.define
class Summary:
    """Counts of a batch so far."""

    submitted: int = 0
    running: int = 0
    clips: int = 0
    resumed: int = 0
    in_doubt: int = 0
    #: How often each error ended a job, by its name.
    failures: dict[str, int] = attrs.field(factory=dict)
    #: Points that were used and not refunded.
    points: float = 0.0
    refunded_points: float = 0.0
    #: Why the batch stopped submitting early: the name of an error, or `max_points`; None if it
    #: did not, or after `Batch.stop`.
    stopped_by: str | None = None

    @property
    def out_of_points(self) -> bool:
        """Whether the batch stopped because `max_points` was reached."""
        return self.stopped_by == "max_points"

    @property
    def failed(self) -> int:
        """How many jobs ended without a clip."""
        return sum(self.failures.values())

    @property
    def done(self) -> int:
        """How many jobs have ended."""
        return self.clips + self.failed + self.in_doubt

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        self.resumed += outcome.resumed
        spent = outcome.points or 0.0
        if outcome.refunded:
            self.refunded_points += spent
        elif not outcome.resumed:
            self.points += spent
        if outcome.error is None:
            self.clips += 1
        elif outcome.is_in_doubt:
            self.in_doubt += 1
        else:
            name = type(outcome.error).__name__
            self.failures[name] = self.failures.get(name, 0) + 1


Source = Iterable[str | Generation | Item] | AsyncIterable[str | Generation | Item]
"""Where the jobs of a batch come from: prompts, requests and items, in any mixture."""


class BatchOptions(TypedDict, total=False):
    """The options of a `Batch`, which describes them."""

    in_flight: int
    download_to: str | os.PathLike[str] | ClipStore | None
    timeout: float | None
    max_points: float | None
    retry_failed: bool
    overwrite: bool


@attrs.define(eq=False, repr=False, kw_only=True)
class Batch:
    """
    Many jobs in one run, made by `Client.batch`; nothing is sent before `outcomes()` is read.

    Spends points for each job that the gateway accepts; each is submitted at most once, as
    `Client.submit` says. With a journal, running the same batch again continues where the earlier
    run ended: accepted jobs are followed, jobs in doubt are reported, and neither is submitted
    again. If the client has an account as well, jobs in doubt are settled before the first job and
    after the last one: see `Client.reconcile`.

    If a job fails, its error is its outcome. After a refused key, an account without points, an
    unreachable gateway or a broken journal, nothing more is submitted; the jobs that exist are
    followed to their end, and `summary.stopped_by` says why. An exception of the source is raised
    after that.

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

    _sessions: Sessions = attrs.field(kw_only=False)
    _prompts: Source = attrs.field(kw_only=False)
    _in_flight: int = 20
    _download_to: str | os.PathLike[str] | ClipStore | None = None
    _timeout: float | None = DEFAULT_WAIT
    _max_points: float | None = None
    _retry_failed: bool = False
    _overwrite: bool = False
    #: Counts of the run so far.
    summary: Summary = attrs.field(init=False, factory=Summary)
    _is_stopped: bool = attrs.field(init=False, default=False)
    _is_hopeless: bool = attrs.field(init=False, default=False)
    _feeder: "asyncio.Task[None] | None" = attrs.field(init=False, default=None)
    _custom_ids: set[str] = attrs.field(init=False, factory=set)
    #: The jobs that this run has sent and that were in doubt, by their keys.
    _own: set[str] = attrs.field(init=False, factory=set)
    _place: Place | None = attrs.field(init=False)
    _budget: Budget = attrs.field(init=False)
    _newest: deque[tuple[str, ...]] = attrs.field(init=False, factory=lambda: deque(maxlen=NEWEST))
    _live: Live = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        options = BatchOptions.__annotations__
        check(**{name: getattr(self, f"_{name}") for name in options})
        prompts = self._prompts
        # Some of these can be iterated over, and would yield letters, keys or fields.
        one_thing = (str, bytes, bytearray, Mapping, Item, *REQUESTS)
        if isinstance(prompts, one_thing) or not isinstance(prompts, Iterable | AsyncIterable):
            raise usage_error(
                "prompts",
                f"prompts is of type {type(prompts).__name__}.",
                "Use a list, or another iterable, of prompts, requests or Items.",
            )
        if isinstance(prompts, list | tuple):  # which can be checked before any money is spent
            for index, thing in enumerate(prompts):
                item_of(thing, index)
        self._place = place_of(self._download_to)
        self._budget = Budget(self._max_points)
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
        if self._place is not None:
            await self._place.open()
        if self._sessions.journal is not None:
            await self._sessions.journal.start_run()
            await self._sessions.reconcile_if_possible()
        things: AsyncGenerator[tuple[int, Any], None] | None = self._read()
        feeder: asyncio.Task[None] | None = None
        while things is not None:
            doubts: list[Outcome] = []
            async with aclosing(self._ended(things, doubts)) as ended:
                async for outcome in ended:
                    yield outcome
            feeder = feeder or self._feeder
            # After the last job: by now the gateway lists what it has accepted.
            left, things = await self._settled(doubts)
            for outcome in left:
                self._count(outcome)
                yield outcome
        if feeder is not None and not (feeder.cancelled() and self._is_stopped):
            feeder.result()

    async def _ended(
        self,
        things: AsyncGenerator[tuple[int, Any], None],
        doubts: list[Outcome],
    ) -> AsyncGenerator[Outcome, None]:
        """Yield the outcomes of jobs as they end, but those in doubt are added to *doubts*."""
        free = asyncio.Semaphore(self._in_flight)
        ended: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()
        jobs: set[asyncio.Task[Any]] = set()
        feeder = self._feeder = asyncio.create_task(self._feed(things, free, ended, jobs))
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
        """Reconcile; return the outcomes that stay in doubt, and the jobs that can go on."""
        left, going_on = list[Outcome](), list[Outcome]()
        if doubts:
            await self._sessions.reconcile_if_possible()
        for one in doubts:
            # Read from the journal: a webhook or a late search may have settled it.
            job = await self._sessions.job_with(one.key)
            is_over = job is None or job.state.is_unanswered
            is_unsent = job is not None and job.state is JobState.PLANNED
            (left if is_over or (is_unsent and self._is_stopped) else going_on).append(one)
        self._custom_ids -= {one.custom_id for one in going_on if one.custom_id is not None}
        self._own |= {one.key for one in going_on if one.key and not one.resumed}

        async def things() -> AsyncGenerator[tuple[int, Any], None]:
            for one in going_on:
                key = one.key if one.custom_id is None else None
                yield one.index, Item(one.request, one.custom_id, key=key)

        return left, things() if going_on else None

    async def carry_out(self, thing: Item | Generation | str) -> Outcome:
        """Carry out one job, apart from the source; see `Client.carry_out`."""
        item = item_of(thing, 0)
        name, journal = item.custom_id or item.key, self._sessions.journal
        if journal is None or name is None:
            whose, missing = ("client", "journal") if journal is None else ("job", "custom_id")
            raise usage_error(
                missing,
                f"The {whose} has no {missing}.",
                "A job that is delivered twice is paid for once if a journal knows its custom_id.",
            )

        if self._place is not None:
            await self._place.open()

        async def carry() -> Outcome:
            # If it is delivered twice at once, the second call finds the outcome of the first.
            async with self._sessions.carrying(name):
                outcome = await self._job(0, item)
                assert outcome is not None  # noqa: S101  (without max_points, none is left out)
                if outcome.clip is not None and outcome.error is None:
                    outcome.clip.task.hand_out()
                await journal.flush()
                if outcome.error is None:
                    return outcome
                job = outcome.key and await journal.find(outcome.key)
            if job and isinstance(outcome.error, ENDS.get(job.state, ())):
                return outcome
            raise outcome.error

        return await self._sessions.current().follow(carry())

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

    # One job

    async def _job(self, index: int, item: Item) -> Outcome | None:
        """Return how a job ended; None if the batch stopped before it was submitted."""
        known: dict[str, Any] = {}
        try:
            try:
                self._sessions.check_open()
            except errors.UsageError as closed:
                self._stop(type(closed).__name__)
                raise
            if not await self._run(index, item, known):
                return None
        except RunwayError as error:
            known |= {"error": error, "task_id": error.task_id or known.get("task_id")}
        except (Exception, asyncio.CancelledError) as error:
            # An error in one job must not end the batch.
            if _is_cancelled(error):
                raise
            known["error"] = _unexpected(error, known.get("task_id"))
        outcome = Outcome(index, item.request, item.custom_id, **known)
        # A value that SQLite cannot hold concerns one row only.
        is_own = outcome.error and isinstance(outcome.error.__cause__, ValueError | ArithmeticError)
        if isinstance(outcome.error, HOPELESS) and not outcome.resumed and not is_own:
            self._is_hopeless = True
            self._stop(type(outcome.error).__name__)
        return outcome

    async def _run(self, index: int, item: Item, known: dict[str, Any]) -> bool:
        """
        Carry out a job, from wherever an earlier run left it.

        Adds what becomes known to *known*: fields of the `Outcome`, there also if this raises.
        Returns False if the batch stopped before it was submitted.
        """
        if item.custom_id is not None:
            if item.custom_id in self._custom_ids:
                raise usage_error(
                    "custom_id",
                    f"Another job of this batch has the custom_id {item.custom_id!r}.",
                    "Use a different one for each job.",
                )
            self._custom_ids.add(item.custom_id)
        journal = self._sessions.journal
        plan, job = await self._planned(index, item)
        known["key"] = job and job.key
        name = clip_name(item.request, plan)
        if job is None or job.state is JobState.PLANNED:
            return await self._make(item.request, plan, name, known)
        known |= {"task_id": job.task_id, "resumed": job.key not in self._own}
        if job.state is JobState.SUBMITTING and plan.custom_id is not None:
            # Another batch is submitting it now; under one name there is one task.
            return await self._make(item.request, plan, name, known)
        if job.state.is_unanswered:
            raise in_doubt_of(job)
        if job.state is JobState.FAILED:
            raise _failed(job)
        if job.state is JobState.SAVED:
            if self._place is None:
                return True
            found = await self._place.found(name, job.task_id or "", job.file_bytes)
            if found is not None:
                known |= found
                return True
            assert journal is not None  # noqa: S101  (the job is from it)
            await journal.step(job.key, JobState.FINISHED, self._sessions.settings.clock.wall())
        await self._follow(self._sessions.attach(job, item.request), name, known)
        return True

    async def _planned(self, index: int, item: Item) -> tuple[Plan, Job | None]:
        """Return the plan of a job and, if there is a journal, its row."""
        journal, now = self._sessions.journal, self._sessions.settings.clock.wall()
        plan = await plan_for(item)
        if journal is None:
            if plan.key == plan.fingerprint:
                # The position tells equal requests apart.
                plan = attrs.evolve(plan, key=nth(plan.fingerprint, index + 1))
            return plan, None
        job = await job_of(journal, attrs.evolve(plan, source=item.source), now)
        if job.state is JobState.FAILED and self._retry_failed:
            job = await journal.step(job.key, JobState.PLANNED, now, task_id=None)
        if job.state is JobState.PLANNED and job.custom_id is not None:
            # Another process may have settled what this one remembers.
            self._sessions.names.forget(job.custom_id)
        # The journal's fingerprint is keyed, so that a file name does not give the prompt away.
        return attrs.evolve(plan, key=job.key, fingerprint=job.fingerprint), job

    async def _make(
        self, request: Generation, plan: Plan, name: str, known: dict[str, Any]
    ) -> bool:
        """Submit and follow a job; return False if the batch stopped first."""
        if self._place is not None:
            await self._place.check(name, plan, overwrite=self._overwrite)
        kind = (plan.endpoint, plan.model, plan.seconds)
        if not await self._budget.take(kind):
            self._stop("max_points")
            return False
        cost: float | None = None
        try:
            if self._is_hopeless:
                cost = 0.0
                return False
            try:
                task = await self._submit(request, plan)
            except RunwayError as error:
                if error.task_id is None and not isinstance(error, errors.SubmissionInDoubt):
                    cost = 0.0
                raise
            self.summary.submitted += 1
            await self._follow(task, name, known)
        finally:
            if "points" in known:
                cost = 0.0 if known["refunded"] else known["points"]
            self._budget.put_back(kind, cost)
        return True

    async def _submit(self, request: Generation, plan: Plan) -> Task:
        """
        Submit a job.

        A foreign exception becomes an error that says whether it may have been charged.
        """
        journal = self._sessions.journal
        row = plan if journal else None
        try:
            return await self._sessions.submit(request, custom_id=plan.custom_id, plan=row)
        except RunwayError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled(error):
                raise
            fault = error
        # Outside of the clause: an error that is raised there would quote this one.
        job = await journal.find(plan.key) if journal else None
        if job is not None and (job.task_id or job.state is JobState.PLANNED):
            raise _unexpected(fault, job.task_id)
        raise errors.SubmissionInDoubt(
            _described(fault),
            "It may have been accepted and charged; it is not sent again.",
            "Check the gateway's list of tasks before you submit it again.",
        )

    async def _follow(self, task: Task, name: str, known: dict[str, Any]) -> None:
        """Wait for a task that is paid for, and save its clip."""
        known["task_id"] = task.id
        try:
            clip = await task.ended(self._timeout)
        except errors.TaskFailed as error:
            known |= {"points": error.points, "refunded": error.refunded}
            raise
        record = clip.record
        known |= {"clip": clip, "points": record.points, "refunded": record.refunded}
        if self._place is None:
            return
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                known |= await self._place.save(clip, name, overwrite=self._overwrite)
        except TimeoutError:
            if not limit.expired():
                raise
            raise errors.DownloadIncomplete(
                f"The download did not finish within {self._timeout:g} s.",
                "The clip exists and is paid for.",
                "Run the batch again with the same journal to resume the download.",
                clip.id,
            ) from None


def item_of(thing: Any, index: int) -> Item:
    """
    Return the item for a prompt, a request or an item.

    Raises:
        UsageError: It is something else.
    """
    if isinstance(thing, Item):
        return thing
    if isinstance(thing, str):
        return Item(TextToVideo(thing))
    if isinstance(thing, REQUESTS):
        return Item(thing)
    raise usage_error(
        "prompts",
        f"Entry {index + 1} is of type {type(thing).__name__}.",
        "Give prompts (str), requests such as TextToVideo, or Items.",
    )


async def plan_for(item: Item) -> Plan:
    """Return the plan of an item; its local files, if it has any, are read in a thread."""
    key = item.key if item.custom_id is None else f"id:{item.custom_id}"
    return await planned(item.request, key, item.custom_id)


async def job_of(journal: BaseJournal, plan: Plan, now: float) -> Job:
    """
    Return the row of an item's job, created if there is none.

    If unnamed, the next row with its content.
    """
    return await (journal.plan_next if plan.key == plan.fingerprint else journal.plan)(plan, now)


async def numbered(source: Source) -> AsyncGenerator[tuple[int, Any], None]:
    """Read either kind of source, one entry at a time, each with its position."""
    index = 0
    if isinstance(source, AsyncIterable):
        async for thing in source:
            yield index, thing
            index += 1
    else:
        for index, thing in enumerate(source):
            yield index, thing


def _is_cancelled(error: BaseException) -> bool:
    """Return whether the job itself was cancelled, not something that it waited for."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  (only tasks run jobs)
    return isinstance(error, asyncio.CancelledError) and task.cancelling() > 0


def _described(error: BaseException) -> str:
    """Return the type of *error* and where it was raised; its own text may quote a secret."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    module = frame.f_globals.get("__name__", "?")
    return f"An unexpected {type(error).__name__} was raised ({module}, line {line})."


def _unexpected(error: BaseException, task_id: str | None) -> errors.UnexpectedError:
    if task_id is None:
        money = "Nothing was sent or charged."
        advice = "Correct the request, or report this as a bug."
    else:
        money = "The task is paid for; use its id to get the clip."
        advice = "Run the batch again with the same journal, or wait for the task by its id."
    return errors.UnexpectedError(_described(error), money, advice, task_id)


def _failed(job: Job) -> RunwayError:
    """Return the error of a job that failed in an earlier run."""
    charged = "For the cost, see the outcome of that run."
    if job.refunded:
        charged = "The points were refunded."
    kind = getattr(errors, job.error or "", errors.TaskFailed)
    if issubclass(kind, errors.GatewayError):
        charged = "Nothing was charged."
    elif not issubclass(kind, errors.TaskFailed):
        kind = errors.TaskFailed
    failure: RunwayError = kind(
        f"It failed in an earlier run ({job.error}).",
        charged,
        "Run the batch with retry_failed (--retry-failed) to submit it again.",
        job.task_id,
    )
    return failure
