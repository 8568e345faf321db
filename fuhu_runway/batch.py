"""
Many jobs over one client: read lazily, submit, follow, save, and go on where a crash broke off.

Rule 1: at most `in_flight` jobs exist at once, and an outcome that nobody has taken counts.
Rule 2: one failure is an outcome, not an end.
Rule 3: what the journal says was accepted is never submitted again, and what it says is in doubt
is reported, and left to a person.

A job is known by its `custom_id`, else by its content and how often that came up before.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, Protocol

import attrs

from . import errors
from ._clock import Clock
from .downloads import check_folder, safe_name
from .errors import RunwayError
from .journal import Job, JobState, Journal, Plan, nth, plan_of
from .models import Generation, TextToVideo, usage_error
from .task import Clip, Task

REQUESTS: Final = Generation.__args__

_END: Final = object()


@attrs.frozen
class Item:
    """One thing that a batch is to make."""

    request: Generation
    #: The caller's own name for it; unique within the batch.
    custom_id: str | None = None


@attrs.frozen
class Outcome:
    """How one job of a batch ended."""

    #: Its place in the input, from 0.
    index: int
    request: Generation
    custom_id: str | None = None
    task_id: str | None = None
    #: The clip; None where there is none, or its file was there already.
    clip: Clip | None = None
    #: The file, where one was asked for.
    path: Path | None = None
    #: Why there is no clip, or no file.
    error: RunwayError | None = None
    #: Points used, in the gateway's unit; None where it did not say.
    points: float | None = None
    #: Whether they were given back.
    refunded: bool = False
    #: Nothing was submitted for it in this run: an earlier one had.
    resumed: bool = False

    @property
    def is_in_doubt(self) -> bool:
        """Whether nobody knows if it was accepted, and charged."""
        return isinstance(self.error, errors.SubmissionInDoubt)


@attrs.define
class Summary:
    """What a batch has come to so far."""

    submitted: int = 0
    running: int = 0
    clips: int = 0
    resumed: int = 0
    in_doubt: int = 0
    #: The name of each error, to how often it came.
    failures: dict[str, int] = attrs.field(factory=dict)
    #: Points that were used and not given back.
    points: float = 0.0
    refunded_points: float = 0.0
    #: It stopped because `max_points` was reached.
    out_of_points: bool = False

    @property
    def failed(self) -> int:
        """How many jobs ended without a clip."""
        return sum(self.failures.values())

    @property
    def done(self) -> int:
        """How many jobs have ended, one way or another."""
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


class Submitter(Protocol):
    """What a batch needs of a client."""

    def check_open(self) -> None:
        """Refuse what comes after closing."""

    async def submit_job(self, request: Generation, plan: Plan | None) -> Task:
        """Submit a job."""

    def attach(self, job: Job, request: Generation) -> Task:
        """Give a handle on a task that an earlier run submitted."""


Source = Iterable[Any] | AsyncIterable[Any]


class Batch:
    """
    One run over a source of prompts, requests or items.

    Iterate over `outcomes()` once; `summary` tells at any time how it stands.

    Args:
        client: Submits and re-attaches.
        source: Prompts, requests, or an `Item` each; read only as far as jobs are free.
        in_flight: How many jobs may exist at once.
        journal: What makes a second run of the same batch go on; None remembers nothing.
        download_to: The folder that clips are saved in; None saves none.
        timeout: How long to wait for one task, in seconds; None waits for ever.
        max_points: Nothing more is submitted once this many points are spent or bound to be.
        retry_failed: Whether jobs that failed in an earlier run are submitted again.
        clock: Where time comes from.
    """

    def __init__(
        self,
        client: Submitter,
        source: Source,
        *,
        in_flight: int,
        journal: Journal | None,
        download_to: Path | None,
        timeout: float | None,
        max_points: float | None,
        retry_failed: bool,
        clock: Clock,
    ) -> None:
        if in_flight < 1:
            raise usage_error("in_flight", f"in_flight is {in_flight!r}.", "Use 1 or more.")
        self._client = client
        self._source = source
        self._in_flight = in_flight
        self._journal = journal
        self._folder = None if download_to is None else check_folder(download_to)
        self._timeout = timeout
        self._retry_failed = retry_failed
        self._clock = clock
        self._purse = Purse(max_points)
        self._stopping = asyncio.Event()
        self._feeder: asyncio.Task[None] | None = None
        self.summary = Summary()

    def stop(self) -> None:
        """Submit nothing more; jobs that exist are followed to their end."""
        self._stopping.set()
        if self._feeder is not None:
            self._feeder.cancel()  # it may be waiting for a source that has nothing to give

    async def outcomes(self) -> AsyncGenerator[Outcome, None]:
        """
        Give the outcomes as they come.

        Leaving early cancels the jobs that run: their tasks go on at the gateway, and their ids
        are in the journal.

        Raises:
            UsageError: The source gave something that is no request.
            JournalError: The journal cannot be used.
        """
        if self._journal is not None:
            await self._journal.start_run()
        free = asyncio.Semaphore(self._in_flight)
        ended: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()
        jobs: set[asyncio.Task[Any]] = set()
        feeder = self._feeder = asyncio.create_task(self._feed(free, ended, jobs))
        feeder.add_done_callback(ended.put_nowait)
        is_fed = False
        try:
            while jobs or not is_fed:
                job = await ended.get()
                if job is feeder:
                    is_fed = True
                    if not (feeder.cancelled() and self._stopping.is_set()):
                        feeder.result()
                    continue
                outcome = job.result()
                jobs.discard(job)
                self.summary.running -= 1
                if outcome is not None:
                    self.summary.add(outcome)
                    yield outcome
                # Only now: an outcome that nobody takes must not make room for another job.
                free.release()
        finally:
            for job in (feeder, *jobs):
                job.cancel()
            await asyncio.gather(feeder, *jobs, return_exceptions=True)

    async def _feed(
        self,
        free: asyncio.Semaphore,
        ended: "asyncio.Queue[asyncio.Task[Any]]",
        jobs: "set[asyncio.Task[Any]]",
    ) -> None:
        """Start a job for each item, as room comes free."""
        index = 0
        async with aclosing(_each(self._source)) as items:
            while not self._stopping.is_set():
                await free.acquire()
                thing = await anext(items, _END)
                if thing is _END or self._stopping.is_set():
                    return
                job = asyncio.create_task(self._job(index, item_of(thing, index)))
                self.summary.running += 1
                jobs.add(job)
                job.add_done_callback(ended.put_nowait)
                index += 1

    # One job

    async def _job(self, index: int, item: Item) -> Outcome | None:
        outcome = Outcome(index, item.request, item.custom_id)
        try:
            self._client.check_open()
        except errors.UsageError as error:
            self.stop()
            return attrs.evolve(outcome, error=error)
        plan, known = await self._planned(index, item)
        path = self._path(item, plan)
        try:
            return await self._carry_out(outcome, item, plan, known, path)
        except RunwayError as error:
            task_id = error.task_id or (known.task_id if known else None)
            return attrs.evolve(outcome, error=error, task_id=task_id, resumed=_had(known))

    async def _carry_out(
        self, outcome: Outcome, item: Item, plan: Plan, known: Job | None, path: Path | None
    ) -> Outcome | None:
        state = known.state if known else JobState.PLANNED
        if known is not None and state is JobState.SAVED:
            if path is None or _is_whole(path, known):
                return attrs.evolve(outcome, task_id=known.task_id, path=path, resumed=True)
            assert self._journal is not None  # noqa: S101  (it knows the job)
            await self._journal.step(known.key, JobState.FINISHED, self._clock.wall())
        if known is not None and state is JobState.IN_DOUBT:
            return attrs.evolve(outcome, error=_in_doubt(known), resumed=True)
        if known is not None and state is JobState.FAILED:
            return attrs.evolve(outcome, error=_failed(known), task_id=known.task_id, resumed=True)
        if known is None or state is JobState.PLANNED:
            return await self._make(outcome, item.request, plan, path)
        task = self._client.attach(known, item.request)
        return await self._follow(attrs.evolve(outcome, resumed=True), task, path)

    async def _make(
        self, outcome: Outcome, request: Generation, plan: Plan, path: Path | None
    ) -> Outcome | None:
        """Submit and follow; None: there are not points enough, and nothing was sent."""
        kind = (plan.endpoint, plan.model, plan.seconds)
        if not await self._purse.take(kind):
            self.summary.out_of_points = True
            self.stop()
            return None
        cost: float | None = 0.0  # until it is accepted, or may have been
        try:
            task = await self._client.submit_job(request, plan if self._journal else None)
            self.summary.submitted += 1
            cost = None
            result = await self._follow(outcome, task, path)
            cost = 0.0 if result.refunded else result.points
        except (errors.SubmissionInDoubt, asyncio.CancelledError):
            cost = None
            raise
        finally:
            self._purse.put_back(kind, cost)
        return result

    async def _follow(self, outcome: Outcome, task: Task, path: Path | None) -> Outcome:
        outcome = attrs.evolve(outcome, task_id=task.id)
        try:
            clip = await task.wait(timeout=self._timeout)
        except errors.TaskFailed as error:
            return attrs.evolve(outcome, error=error, points=error.points, refunded=error.refunded)
        except RunwayError as error:
            return attrs.evolve(outcome, error=error, task_id=error.task_id or task.id)
        record = clip.record
        outcome = attrs.evolve(outcome, clip=clip, points=record.points, refunded=record.refunded)
        if path is None:
            return outcome
        try:
            return attrs.evolve(outcome, path=await clip.download(path, overwrite=True))
        except RunwayError as error:
            return attrs.evolve(outcome, error=error)

    async def _planned(self, index: int, item: Item) -> tuple[Plan, Job | None]:
        """Give what is wanted and, if there is a journal, how far it is."""
        is_named, now = item.custom_id is not None, self._clock.wall()
        plan = plan_of(item.request, f"id:{item.custom_id}" if is_named else None, item.custom_id)
        if self._journal is None:
            # Nothing counts, and the place tells equal requests apart as well.
            key = plan.key if is_named else nth(plan.fingerprint, index + 1)
            return attrs.evolve(plan, key=key), None
        planned = self._journal.plan if is_named else self._journal.plan_next
        job = await planned(plan, now)
        if job.state is JobState.FAILED and self._retry_failed:
            # As if it were new.
            job = await self._journal.step(job.key, JobState.PLANNED, now, task_id=None)
        return attrs.evolve(plan, key=job.key), job

    def _path(self, item: Item, plan: Plan) -> Path | None:
        """Give a name that reads like the job, and is its own in this batch and in every run."""
        if self._folder is None:
            return None
        if item.custom_id is not None:
            return self._folder / file_name(item.custom_id)
        fingerprint, _, times = plan.key.partition(":")
        again = "" if times == "1" else f"-{times}"
        text = getattr(item.request, "prompt", None) or plan.endpoint
        return self._folder / safe_name(text, f"-{fingerprint[:MARK_LENGTH]}{again}.mp4")


Kind = tuple[str, str | None, int | None]


@attrs.define(eq=False)
class Purse:
    """
    What a batch may still spend.

    What a job costs is known only once one of its kind has ended, so the first of each kind goes
    alone, and from then on each is expected to cost as much as the dearest of its kind so far.
    """

    at_most: float | None
    spent: float = 0.0
    _dearest: dict[Kind, float] = attrs.field(factory=dict)
    _running: Counter[Kind] = attrs.field(factory=Counter)
    _waiting: list["asyncio.Future[None]"] = attrs.field(factory=list)

    async def take(self, kind: Kind) -> bool:
        """Come back when a job of this kind may go (True), or none may any more (False)."""
        while self.at_most is not None:
            cost = self._dearest.get(kind)
            if self.spent + (cost or 0.0) > self.at_most or self.spent >= self.at_most:
                return False
            bound = sum(self._dearest.get(one, 0.0) * n for one, n in self._running.items())
            left = self.at_most - self.spent - bound
            alone = not self._running[kind]
            if (alone and left > 0) if cost is None else cost <= left:
                break
            news = asyncio.get_running_loop().create_future()
            self._waiting.append(news)
            await news
        self._running[kind] += 1
        return True

    def put_back(self, kind: Kind, cost: float | None) -> None:
        """Take note of what a job that has ended did cost; None: nobody knows, so the worst."""
        self._running[kind] -= 1
        known = self._dearest.get(kind, 0.0)
        self.spent += known if cost is None else cost
        if cost:
            self._dearest[kind] = max(known, cost)
        waiting, self._waiting = self._waiting, []
        for news in waiting:
            if not news.done():
                news.set_result(None)


# Odds and ends

MARK_LENGTH: Final = 12
"""Of a hash in a file name, in hex digits: a million names differ, all but once in 500 batches."""


def file_name(custom_id: str) -> str:
    """Give the name of a clip's file, which no other id has."""
    name = safe_name(custom_id)
    # Some disks take names that differ in case or in Unicode normalisation as one.
    if name == f"{custom_id}.mp4" and name == name.upper().casefold():
        return name
    # Two ids may look alike once they are safe.
    mark = hashlib.sha256(custom_id.encode("utf-8", "surrogatepass")).hexdigest()
    return safe_name(custom_id, f"-{mark[:MARK_LENGTH]}.mp4")


def item_of(thing: Any, index: int) -> Item:
    """
    Give the item for a prompt, a request, or an item.

    Raises:
        UsageError: It is none of these.
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


async def _each(source: Source) -> AsyncGenerator[Any, None]:
    """Read either kind of source, one entry at a time."""
    if isinstance(source, AsyncIterable):
        async for thing in source:
            yield thing
    else:
        for thing in source:
            yield thing


def _had(known: Job | None) -> bool:
    return known is not None and known.state is not JobState.PLANNED


def _is_whole(path: Path, job: Job) -> bool:
    return path.is_file() and path.stat().st_size == job.file_bytes


def _in_doubt(job: Job) -> errors.SubmissionInDoubt:
    return errors.SubmissionInDoubt(
        f"An earlier run submitted this and got no clear answer ({job.error}).",
        "It may have been accepted and charged; it was not sent again.",
        "Look for the task at the gateway, then tell the journal with `fuhu-runway resolve`.",
    )


def _failed(job: Job) -> RunwayError:
    charged = "The points were given back." if job.refunded else "See the outcome of that run."
    kind = getattr(errors, job.error or "TaskFailed", errors.TaskFailed)
    if not issubclass(kind, errors.TaskFailed | errors.GatewayError):
        kind = errors.TaskFailed
    if issubclass(kind, errors.GatewayError):
        charged = "Nothing was charged."
    failure: RunwayError = kind(
        f"It failed in an earlier run ({job.error}).",
        charged,
        "Run the batch with retry_failed (--retry-failed) to submit it again.",
        job.task_id,
    )
    return failure
