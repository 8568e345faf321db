"""
Many jobs over one client: read lazily, submit, follow, save, and go on where a crash broke off.

Rule 1: at most `in_flight` jobs exist at once, and an outcome that was not taken yet counts.
Rule 2: whatever goes wrong with one job is its outcome. Only what every other job would meet as
well (`HOPELESS`) ends the submitting.
Rule 3: what the journal says was accepted is never submitted again, and what it says is in doubt
is reported, and left to a person.
Rule 4: no clip replaces a file that was not saved for the same job, unless `overwrite` is set.

A job is known by its `custom_id`, else by its content and how often that came up before.
"""

import asyncio
import errno
import hashlib
import os
import sys
import traceback
import unicodedata
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, TypedDict

import attrs

from . import errors
from ._arguments import check
from ._session.sessions import Sessions
from .errors import RunwayError
from .journal import Job, JobState, Plan, in_doubt_of, nth, planned
from .models import DEFAULT_WAIT, Generation, TextToVideo, check_text, usage_error
from .paths import check_folder, check_target, safe_name, saved_place
from .task import Clip, Task, saved_beside

REQUESTS: Final = Generation.__args__

HOPELESS: Final = (
    errors.OutOfCredits,
    errors.Unauthorized,
    errors.NotSent,
    errors.JournalError,
)
"""What every other job would meet as well: a batch that meets one of these submits no more."""

_END: Final = object()


@attrs.frozen
class Item:
    """
    One thing that a batch is to make.

    Raises:
        UsageError: *request* is no request, or *custom_id* is no text that can be written down.
    """

    request: Generation = attrs.field()
    #: The caller's own name for it; unique within the batch.
    custom_id: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(check_text)
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
        """Whether it is unknown if it was accepted, and charged."""
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
    #: Why the batch stopped submitting early: the name of an error, or `max_points`; None where
    #: it did not, or where `Batch.stop` was called.
    stopped_by: str | None = None

    @property
    def out_of_points(self) -> bool:
        """Whether it stopped because `max_points` was reached."""
        return self.stopped_by == "max_points"

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


Source = Iterable[Any] | AsyncIterable[Any]


class BatchOptions(TypedDict, total=False):
    """The options of a `Batch`, which describes them."""

    in_flight: int
    download_to: str | os.PathLike[str] | None
    timeout: float | None
    max_points: float | None
    retry_failed: bool
    overwrite: bool


class Batch:
    """
    Many jobs in one run, made by `Client.batch`; nothing is sent before `outcomes()` is read.

    Spends points for each job that the gateway accepts; each is submitted at most once, as
    `Client.submit` says. With a journal, the same batch run again continues where an earlier one
    ended, for whatever reason: what was accepted is followed, what is in doubt is reported, and
    neither is submitted again.

    An error of one job is its outcome. A refused key, an account without points, a gateway that
    cannot be reached and a broken journal end the submitting; what was submitted is followed to
    its end, and `summary.stopped_by` says why. What the source raises is raised after that.

    Args:
        sessions: What the client holds.
        prompts: Prompts, requests, or an `Item` each, from any iterable or async iterable. It is
            read only as far as there is room for jobs.
        in_flight: How many jobs may exist at once; one whose outcome was not read counts.
        download_to: The folder that clips are saved in, under names made from their prompts; None
            saves none.
        timeout: How long to wait for each task, and then as long again for its file, in seconds;
            None waits without limit.
        max_points: Nothing more is submitted once this many points are spent or reserved.
        retry_failed: Whether jobs that failed in an earlier run are submitted again.
        overwrite: Whether a file in the place of a clip may be replaced. If not, such a job is not
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
        download_to: str | os.PathLike[str] | None = None,
        timeout: float | None = DEFAULT_WAIT,
        max_points: float | None = None,
        retry_failed: bool = False,
        overwrite: bool = False,
    ) -> None:
        check(
            in_flight=in_flight,
            download_to=download_to,
            timeout=timeout,
            max_points=max_points,
            retry_failed=retry_failed,
            overwrite=overwrite,
        )
        self._sessions = sessions
        self._source = _checked_source(prompts)
        self._in_flight = in_flight
        self._journal = sessions.journal
        self._folder = _checked_folder(download_to)
        self._timeout = timeout
        self._retry_failed = retry_failed
        self._overwrite = overwrite
        self._clock = sessions.settings.clock
        self._budget = Budget(max_points)
        self._is_stopped = False
        self._is_hopeless = False
        self._feeder: asyncio.Task[None] | None = None
        self._custom_ids: set[str] = set()
        self.summary = Summary()

    def stop(self) -> None:
        """Read nothing more; jobs that exist are followed to their end."""
        self._stop(None)

    def _stop(self, reason: str | None) -> None:
        if not self._is_stopped:
            self.summary.stopped_by = reason
        self._is_stopped = True
        if self._feeder is not None:
            self._feeder.cancel()  # it may be waiting for a source that has nothing to give

    async def outcomes(self) -> AsyncGenerator[Outcome, None]:
        """
        Yield the outcomes as they come.

        What the source raises ends the submitting, and is raised once every job that exists has
        had its outcome. Leaving early cancels the jobs that run: their tasks go on at the gateway,
        and their ids are in the journal.

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
                    continue
                outcome = job.result()
                jobs.discard(job)
                self.summary.running -= 1
                if outcome is not None:
                    self.summary.add(outcome)
                    if outcome.clip is not None and outcome.error is None:
                        outcome.clip.task.hand_out()
                    yield outcome
                # Only now: an outcome that is not taken must not make room for another job.
                free.release()
            if not (feeder.cancelled() and self._is_stopped):
                feeder.result()
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
            while not self._is_stopped:
                await free.acquire()
                thing = await anext(items, _END)
                if thing is _END or self._is_stopped:
                    return
                job = asyncio.create_task(self._job(index, item_of(thing, index)))
                self.summary.running += 1
                jobs.add(job)
                job.add_done_callback(ended.put_nowait)
                index += 1

    # One job

    async def _job(self, index: int, item: Item) -> Outcome | None:
        """Return how a job ended; None if the batch stopped before it was submitted."""
        begun = Outcome(index, item.request, item.custom_id)
        outcome: Outcome | None
        try:
            try:
                self._sessions.check_open()
            except errors.UsageError as closed:
                self._stop(type(closed).__name__)
                raise
            self._check_name(item)
            plan, known = await self._planned(index, item)
            if known is not None and known.state is not JobState.PLANNED:
                begun = attrs.evolve(begun, task_id=known.task_id, resumed=True)
            outcome = await self._carry_out(begun, item, plan, known, self._path(item, plan))
        except RunwayError as error:
            outcome = attrs.evolve(begun, error=error, task_id=error.task_id or begun.task_id)
        except (Exception, asyncio.CancelledError) as error:  # one job's fault ends no batch
            if _is_cancelled(error):
                raise
            outcome = attrs.evolve(begun, error=_unexpected(error, begun.task_id))
        if outcome is not None and not outcome.resumed and _is_hopeless(outcome.error):
            self._is_hopeless = True
            self._stop(type(outcome.error).__name__)
        return outcome

    def _check_name(self, item: Item) -> None:
        if item.custom_id in self._custom_ids:
            raise usage_error(
                "custom_id",
                f"Another job of this batch has the custom_id {item.custom_id!r}.",
                "Use another for each job.",
            )
        if item.custom_id is not None:
            self._custom_ids.add(item.custom_id)

    async def _carry_out(
        self, outcome: Outcome, item: Item, plan: Plan, known: Job | None, path: Path | None
    ) -> Outcome | None:
        state = known.state if known else JobState.PLANNED
        if known is None or state is JobState.PLANNED:
            return await self._make(outcome, item.request, plan, path)
        if state is JobState.SUBMITTING and plan.custom_id is not None:
            return await self._make(outcome, item.request, plan, path)
        if state in {JobState.SUBMITTING, JobState.IN_DOUBT}:
            return attrs.evolve(outcome, error=in_doubt_of(known), task_id=known.task_id)
        if state is JobState.FAILED:
            return attrs.evolve(outcome, error=_failed(known))
        if state is JobState.SAVED:
            place = path and await asyncio.to_thread(
                saved_place, path, known.task_id or "", known.file_bytes
            )
            if path is None or place is not None:
                return attrs.evolve(outcome, path=place)
            assert self._journal is not None  # noqa: S101  (it knows the job)
            await self._journal.step(known.key, JobState.FINISHED, self._clock.wall())
        task = self._sessions.attach(known, item.request)
        return await self._follow(outcome, task, path)

    async def _make(
        self, outcome: Outcome, request: Generation, plan: Plan, path: Path | None
    ) -> Outcome | None:
        """Submit and follow; None if the batch stopped first, and nothing was sent."""
        if path is not None:
            self._check_place(path, outcome, plan.key)
        kind = (plan.endpoint, plan.model, plan.seconds)
        if not await self._budget.take(kind):
            self._stop("max_points")
            return None
        cost: float | None = 0.0
        try:
            if self._is_hopeless:
                return None
            cost = None  # from here on it may be charged, and the amount is unknown
            # Under one name there is one task, also if another batch is submitting it now.
            row = plan if self._journal and plan.custom_id is None else None
            task = await self._sessions.submit(request, custom_id=plan.custom_id, plan=row)
            self.summary.submitted += 1
            result = await self._follow(outcome, task, path)
            cost = 0.0 if result.refunded else result.points
        except errors.SubmissionInDoubt:
            raise
        except RunwayError:
            cost = 0.0
            raise
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled(error):
                raise
            fault = error
        else:
            return result
        finally:
            self._budget.put_back(kind, cost)
        # Outside of the clause: what is raised there would quote the error.
        return await self._broken(outcome, plan, fault)

    async def _broken(self, outcome: Outcome, plan: Plan, error: BaseException) -> Outcome:
        """Return the outcome of a submission that ended with an error which is not ours."""
        job = await self._journal.find(plan.key) if self._journal else None
        if job is not None and (job.task_id or job.state is JobState.PLANNED):
            return attrs.evolve(outcome, error=_unexpected(error, job.task_id), task_id=job.task_id)
        doubt = errors.SubmissionInDoubt(
            _described(error),
            "It may have been accepted and charged; it is not sent again.",
            "Check the gateway's list of tasks before you submit it again.",
        )
        return attrs.evolve(outcome, error=doubt)

    async def _follow(self, outcome: Outcome, task: Task, path: Path | None) -> Outcome:
        """Wait for a task that is paid for, and save its clip."""
        outcome = attrs.evolve(outcome, task_id=task.id)
        try:
            clip = await task.ended(self._timeout)
            record = clip.record
            outcome = attrs.evolve(
                outcome, clip=clip, points=record.points, refunded=record.refunded
            )
            if path is not None:
                outcome = attrs.evolve(outcome, path=await self._save_in_time(clip, path))
        except errors.TaskFailed as error:
            return attrs.evolve(outcome, error=error, points=error.points, refunded=error.refunded)
        except RunwayError as error:
            return attrs.evolve(outcome, error=error, task_id=error.task_id or task.id)
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled(error):
                raise
            return attrs.evolve(outcome, error=_unexpected(error, task.id))
        return outcome

    async def _save_in_time(self, clip: Clip, path: Path) -> Path:
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                return await self._save(clip, path)
        except TimeoutError:
            if not limit.expired():
                raise
        raise errors.DownloadIncomplete(
            f"The download was not done within {self._timeout:g} s.",
            "The clip exists and is paid for.",
            "Run the batch again with the same journal: the download goes on where it broke off.",
            clip.id,
        )

    async def _save(self, clip: Clip, path: Path) -> Path:
        """Save a clip in its place; beside it if another file has come there."""
        if not self._is_taken(path):
            return await clip.download(path, overwrite=self._overwrite)
        return await saved_beside(clip, path)

    def _is_taken(self, path: Path) -> bool:
        return path.exists() and not self._overwrite

    def _check_place(self, path: Path, outcome: Outcome, key: str) -> None:
        """Raise unless a clip can be saved at *path*; for before it is paid for."""
        if not path.parent.is_dir():
            raise usage_error("download_to", "The folder for the clips is gone.", "Make it again.")
        if self._is_taken(path) or path.is_dir():
            mark = key[:MARK_LENGTH]
            # What stands before the mark is the prompt.
            name = path.name if outcome.custom_id else f"*-{mark}{path.name.partition(mark)[2]}"
            raise usage_error(
                "download_to",
                f"There is a file {name!r} already, which was not saved for this job.",
                "Move it, or allow it to be replaced (overwrite=True, or --overwrite).",
            )
        try:
            check_target(path, overwrite=True)  # it may be too long for this system, for example
        except errors.UsageError as unfit:
            reason = os.strerror(getattr(unfit.__cause__, "errno", None) or errno.EINVAL)
        else:
            return
        raise usage_error(  # outside of the clause, since the name there is the prompt
            "download_to",
            f"The clip cannot be saved in its place ({reason}).",
            "Choose a folder with a shorter path, or correct what is in the way.",
        )

    async def _planned(self, index: int, item: Item) -> tuple[Plan, Job | None]:
        """Return what is wanted and, if there is a journal, how far it is."""
        is_named, now = item.custom_id is not None, self._clock.wall()
        key = f"id:{item.custom_id}" if is_named else None
        plan = await planned(item.request, key, item.custom_id)
        if self._journal is None:
            # Nothing counts, and the place tells equal requests apart as well.
            key = plan.key if is_named else nth(plan.fingerprint, index + 1)
            return attrs.evolve(plan, key=key), None
        enter = self._journal.plan if is_named else self._journal.plan_next
        job = await enter(plan, now)
        if job.state is JobState.FAILED and self._retry_failed:
            # As if it were new.
            job = await self._journal.step(job.key, JobState.PLANNED, now, task_id=None)
        # The journal keys fingerprints, so that they do not give a prompt away.
        return attrs.evolve(plan, key=job.key, fingerprint=job.fingerprint), job

    def _path(self, item: Item, plan: Plan) -> Path | None:
        """Return a name that reads like the job, and is its own in this batch and in every run."""
        if self._folder is None:
            return None
        if item.custom_id is not None:
            return self._folder / file_name(item.custom_id)
        fingerprint, _, times = plan.key.partition(":")
        again = "" if times == "1" else f"-{times}"
        text = getattr(item.request, "prompt", None) or plan.endpoint
        suffix = f"-{fingerprint[:MARK_LENGTH]}{again}.mp4"
        return self._folder / safe_name(encodable(text), suffix)


Kind = tuple[str, str | None, int | None]


@attrs.define(eq=False)
class Budget:
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
        """Record what a job that has ended cost; None if unknown, which counts as the most."""
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
    """
    Return the name of a clip's file, which no other id has.

    An id that another one may equal, once it is safe or on a disk that knows neither capitals nor
    other spellings of the same letter, differs by a hash.
    """
    name = safe_name(custom_id)
    if name == f"{custom_id}.mp4" == encodable(name) == _folded(name):
        return name
    mark = hashlib.sha256(custom_id.encode("utf-8", "surrogatepass")).hexdigest()
    return safe_name(encodable(custom_id), f"-{mark[:MARK_LENGTH]}.mp4")


def encodable(text: str) -> str:
    """Return *text* without the characters that the locale has no bytes for in file names."""
    encoding = sys.getfilesystemencoding()
    return text.encode(encoding, "ignore").decode(encoding)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.upper().casefold())


def item_of(thing: Any, index: int) -> Item:
    """
    Return the item for a prompt, a request, or an item.

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


def _checked_source(source: Source) -> Source:
    # Some of these can be iterated over, and would give letters, keys or fields.
    no_source = (str, bytes, bytearray, Mapping, Item, *REQUESTS)
    if isinstance(source, no_source) or not isinstance(source, Iterable | AsyncIterable):
        raise usage_error(
            "prompts",
            f"prompts is of type {type(source).__name__}.",
            "Use a list, or another iterable, of prompts, requests or Items.",
        )
    if isinstance(source, list | tuple):  # which can be read before anything is paid
        for index, thing in enumerate(source):
            item_of(thing, index)
    return source


def _checked_folder(folder: str | os.PathLike[str] | None) -> Path | None:
    if folder is None:
        return None
    try:
        return check_folder(Path(folder))
    except errors.UsageError as error:
        raise attrs.evolve(error, field="download_to") from error.__cause__
    except (TypeError, ValueError) as unfit:
        reason = f"download_to names no folder ({type(unfit).__name__})."
    raise usage_error("download_to", reason, "Use the path of a folder, or None.")


async def _each(source: Source) -> AsyncGenerator[Any, None]:
    """Read either kind of source, one entry at a time."""
    if isinstance(source, AsyncIterable):
        async for thing in source:
            yield thing
    else:
        for thing in source:
            yield thing


def _is_hopeless(error: RunwayError | None) -> bool:
    # A value that SQLite cannot take is the fault of one row.
    return isinstance(error, HOPELESS) and not isinstance(
        error.__cause__, ValueError | ArithmeticError
    )


def _is_cancelled(error: BaseException) -> bool:
    """Return whether the job was cancelled, rather than met a cancellation somewhere below."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  (only tasks run jobs)
    return isinstance(error, asyncio.CancelledError) and task.cancelling() > 0


def _described(error: BaseException) -> str:
    """Return what *error* is and where it was raised; its own text may quote what is secret."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    module = frame.f_globals.get("__name__", "?")
    return f"An unexpected {type(error).__name__} was raised ({module}, line {line})."


def _unexpected(error: BaseException, task_id: str | None) -> errors.UnexpectedError:
    if task_id is None:
        money = "Nothing was sent or charged."
        advice = "Correct the request, or report this as a defect."
    else:
        money = "The task is paid for, and its id finds the clip."
        advice = "Run the batch again with the same journal, or wait for the task by its id."
    return errors.UnexpectedError(_described(error), money, advice, task_id)


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
