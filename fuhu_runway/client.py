"""What a user holds: `Client`, with one method for each thing that the gateway can be asked."""

import asyncio
import contextvars
import itertools
import os
import threading
import warnings
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import uuid4
from weakref import WeakSet, WeakValueDictionary, ref

import aiohttp
import attrs

from . import hooks as events
from ._arguments import check
from ._clock import Clock, LoopClock
from ._http.retry import fate_of, in_doubt
from ._http.transport import closed
from ._redact import redact
from ._session.session import Engine, Settings
from ._session.submission import Submission
from ._session.webhooks import ENDPOINT_NAMES, Deliveries
from ._waiting.intervals import kind_of
from ._waiting.poller import Poller, Watch, name_of
from ._waiting.task_limit import Name, Origin
from ._wire.decode import Reply, Request, ask_balance, ask_task, build, read_balance, read_task
from ._wire.tables import BALANCE_ENDPOINTS, ENDPOINTS, GATEWAYS, NOWHERE, SUBMITS, Endpoint
from .background import BackgroundJob, followed
from .batch import Batch, Outcome, Source, in_doubt_of
from .downloads import Progress, check_vacant, origin_of, saved_place
from .downloads import Source as ClipSource
from .errors import Fate, NoReply, RunwayError, SubmissionInDoubt, copied, discreet, discreetly_made
from .journal import Entry, Job, JobState, Journal, Plan, plan_of
from .models import (
    DEFAULT_MODEL,
    DEFAULT_WAIT,
    ActOne,
    Balance,
    Gateway,
    Generation,
    ImageToVideo,
    Limits,
    MotionVector,
    OfficialImageToVideo,
    PollPolicy,
    RetryPolicy,
    TaskRecord,
    TaskState,
    TextToVideo,
    Timeouts,
    VideoToVideo,
    is_reachable_address,
    is_web_address,
    require_text,
    usage_error,
)
from .task import Clip, Task

if TYPE_CHECKING:
    # It brings a web server along, which most programs have no use for.
    from .callbacks import Address, CallbackReceiver

KEY_VARIABLE: Final = "FUHU_API_KEY"
URL_VARIABLE: Final = "FUHU_BASE_URL"
DEFAULT_GATEWAY: Final = "fuhuapi"

NAMES_KEPT: Final = 10_000
"""How many custom ids a client with a journal remembers itself, so as not to ask the journal."""

_NUMBERS: Final = itertools.count(1)


@attrs.define(eq=False)
class _Named:
    """One submission under a name."""

    #: Where it is made.
    loop: asyncio.AbstractEventLoop
    work: "asyncio.Task[Task]"
    #: How many callers wait for it, and whether all of them were cancelled.
    callers: int = 0
    is_left: bool = False
    #: The request that goes on after that, if it was sent.
    flight: "asyncio.Task[TaskRecord] | None" = None
    #: Set when the next submission under the name may begin; for other threads.
    ended: threading.Event = attrs.field(factory=threading.Event)
    #: Done when the next submission under the name may begin.
    over: "asyncio.Future[None]" = attrs.field(
        default=attrs.Factory(lambda self: self.loop.create_future(), takes_self=True)
    )


def _is_cancelled() -> bool:
    """Return whether the running task was cancelled, rather than what it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Client:
    """
    The way to one gateway with one key: submits, looks, waits and saves.

    May be made anywhere, also outside of a running event loop, and used in several loops one
    after the other: each gets a session of its own, which is closed when its loop ends. Use it
    with `async with`, or call `aclose()`; after that it refuses every call in that loop, until it
    is entered again.

    Args:
        api_key: The key; by default the environment variable FUHU_API_KEY.
        base_url: Scheme and host of the gateway, and whatever path stands before its own; by
            default the environment variable FUHU_BASE_URL, then the gateway's own address.
        gateway: A `Gateway`, or the name of a known one, such as "deerapi"; by default FuhuAPI.
        session: A session to borrow in place of an own one; it is never closed here. It may not
            carry an Authorization header, which would reach the hosts of the clips.
        callback_url: Where the gateway posts its webhooks. By default an address that leads
            nowhere, since sister gateways refuse a request without one; None leaves it out.
        callbacks: Takes what the gateway posts: each submit is given an address of its own there
            in place of *callback_url*, and each delivery makes the task's waits look at once.
        timeouts: How long one exchange may take.
        retry: How often, and after how long, a safe request is repeated.
        polling: When a task is looked at.
        limits: How much of the gateway this client takes, in each event loop.
        journal: Where every submission is written down before it is sent, with its id and its
            outcome: a `Journal` that is shared and never closed here, or a path.
        hooks: Functions that are called with each event.

    Raises:
        UsageError: No key, or one that no header can carry; an address that is none; a gateway
            of unknown name. Nothing was sent.

    Source:
        api-facts 1.1 for the addresses, 1.2 and 4 for the callback.
    """

    @discreetly_made
    def __init__(
        self,
        api_key: str | None = None,
        *,
        # where
        base_url: str | None = None,
        gateway: Gateway | str | None = None,
        # how
        session: aiohttp.ClientSession | None = None,
        callback_url: str | None = NOWHERE,
        callbacks: "CallbackReceiver | None" = None,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        polling: PollPolicy | None = None,
        limits: Limits | None = None,
        # what is remembered
        journal: Journal | str | os.PathLike[str] | None = None,
        # who hears of it
        hooks: Iterable[events.Listener] = (),
    ) -> None:
        check(
            api_key=api_key,
            base_url=base_url,
            gateway=gateway,
            session=session,
            callback_url=callback_url,
            callbacks=callbacks,
            timeouts=timeouts,
            retry=retry,
            polling=polling,
            limits=limits,
            journal=journal,
        )
        self._engines: dict[asyncio.AbstractEventLoop, Engine] = {}
        self._closed_in: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
        self._handles: WeakValueDictionary[Name, Task] = WeakValueDictionary()
        #: What earlier processes left, with the event for the first wait for it.
        self._left: dict[Name, events.TaskAttached] = {}
        self._key = _checked_key(api_key or os.environ.get(KEY_VARIABLE))
        self._callback_url = _checked_callback(callback_url)
        self._callbacks = _checked_receiver(callbacks, callback_url)
        self._hooks = events.Hooks(hooks)
        self._owns_journal = journal is not None and not isinstance(journal, Journal)
        #: The durable record, where there is one.
        self.journal: Journal | None = _journal(journal)
        if self.journal is not None:
            self._hooks.add(self.journal.note)
        self._clock: Clock = LoopClock()
        self._number = next(_NUMBERS)
        self._settings = Settings(
            session=_checked_session(session),
            timeouts=timeouts or Timeouts(),
            retry=retry or RetryPolicy(),
            polling=polling or PollPolicy(),
            limits=limits or Limits(),
            hooks=self._hooks,
            clock=self._clock,
            client=self._number,
            net=None if callbacks is None else callbacks.safety_net,
        )
        #: Where requests go, and how they are spelled.
        self.gateway: Gateway = _resolved(gateway, base_url)
        self._entered: Counter[asyncio.AbstractEventLoop] = Counter()
        self._closing: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}
        #: Custom id to the task that it names, to the submission in flight that will, to the
        #: submission that may have, and to what follows the task in the background.
        self._names: dict[str, Name] = {}
        self._named: dict[str, _Named] = {}
        self._naming = threading.Lock()
        self._doubts: dict[str, SubmissionInDoubt] = {}
        self._jobs: WeakValueDictionary[str, BackgroundJob] = WeakValueDictionary()
        self._has_recalled = False
        #: Handles that no caller has, with what webhooks said of their tasks.
        self._unclaimed: dict[Name, Task] = {}
        self._deliveries = Deliveries(
            receiver=self._callbacks,
            home=ref(self),
            engines=self._engines,
            journal=self.journal,
            unfinished=self._settings.unfinished,
            hooks=self._hooks,
            clock=self._clock,
        )

    def __repr__(self) -> str:
        engines = list(self._engines.values())
        loops = "".join(f", {one.gate!r}, {one.poller!r}" for one in engines)
        return f"<Client {self.gateway.base_url}{loops}>"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        if loop in self._closed_in:
            await self.aclose()  # it may still be closing
            self._closed_in.discard(loop)
        self._entered[loop] += 1
        try:
            if self.journal is not None:
                # Here, not at the first request: a server that cannot have it must not start.
                await self._recall(self.journal)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._entered[loop] -= 1
        if self._entered[loop] <= 0:
            del self._entered[loop]
            await self.aclose()

    def __del__(self) -> None:
        # An instance whose checks failed has no engines yet.
        if getattr(self, "_engines", None) and self._settings.session is None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)

    @property
    def official(self) -> "Official":
        """The official format of the same gateway."""
        return Official(self)

    async def aclose(self) -> None:
        """
        Close what this client opened in the running loop. Call it again at any time.

        From here on each call in this loop is refused, before anything is sent. Waits and
        downloads that are under way end with errors of their own, and their tasks go on at the
        gateway. A paid request in flight is waited for, for up to `Timeouts.total`, since only its
        answer holds the id of the task: cancelling this call does not cancel that. What is not
        finished then is in `unfinished`.
        """
        loop = asyncio.get_running_loop()
        self._closed_in.add(loop)
        closing = self._closing.get(loop)
        if closing is None:
            # A task of its own, so that a cancelled caller does not let go of paid requests.
            closing = loop.create_task(self._close(loop), context=contextvars.Context())
            self._closing[loop] = closing
            closing.add_done_callback(lambda _: self._closing.pop(loop, None))
        await asyncio.shield(closing)

    async def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        engine = self._engines.get(loop)
        if engine is not None:
            await engine.aclose()
        named = [one.work for one in list(self._named.values()) if one.loop is loop]
        await asyncio.gather(*named, return_exceptions=True)
        # Another loop may have requests in flight, which have to be written down.
        others = any(not one.is_closed() for one in list(self._engines))
        if self.journal is not None and self._owns_journal and not others:
            self._has_recalled = False
            await self.journal.aclose()

    def end_waits(self) -> None:
        """
        End every wait in the running loop with `WaitAbandoned`, without closing the client.

        For a server that shuts down: open streams of updates end, so that the shutdown can begin.
        Background jobs and batches wait as well, so theirs end too. The tasks go on at the
        gateway, and may be waited for again.
        """
        engine = self._engines.get(asyncio.get_running_loop())
        if engine is not None:
            engine.poller.abandon()

    @property
    def unfinished(self) -> tuple[Task, ...]:
        """
        Every task that is paid for and not yet saved, handed out or known to have failed.

        An app that stops writes down their ids: `[task.id for task in client.unfinished]`. A task
        leaves the list when a wait returns its clip, unless that is being saved then; when its
        file is whole; and when it has failed. It stays whichever way its caller went: also if the
        caller was cancelled while the request was in flight, or let go of the handle. With a
        journal, the list begins with what earlier processes left. Good in any loop, before and
        after `aclose()`.
        """
        return tuple(
            self._handles.get(name) or self._handle(name, origin)
            for name, origin in self._settings.unfinished
        )

    # Paid calls

    @discreet
    async def submit(
        self, request: Generation, *, custom_id: str | None = None, tag: str | None = None
    ) -> Task:
        """
        Start one piece of work and return its handle: the one way in for every request.

        Spends points as soon as the gateway accepts it. Sent at most once: it is retried only
        where it provably was not accepted, and if that is not known, `SubmissionInDoubt` is
        raised and nothing is sent again. If the caller is cancelled while the request is in
        flight, the request goes on and its task appears in `unfinished`.

        Args:
            request: What to make.
            custom_id: Your own name for it, such as an order number. The same name is the same
                task: a second submit under it, also at the same time, returns the first one's
                task and sends nothing; with a journal, also after a restart.
            tag: Text of yours that travels with the task into events, `unfinished` and the
                journal.

        Returns:
            The task; `await task.wait()` returns the clip.

        Raises:
            UsageError: An argument is wrong, or the client is closed; nothing was sent.
            InvalidRequest: The gateway refused the arguments; nothing was charged.
            Unauthorized: The key may not do this; nothing was charged.
            OutOfCredits: There is not enough left; nothing was charged.
            RateLimited: Refused until the retry policy gave up; nothing was charged.
            ModelUnavailable: No channel offers the model; nothing was charged.
            NotSent: The gateway could not be reached; nothing was charged.
            NotFound: There is no such route, or a web page in its place; nothing was charged.
            SubmissionInDoubt: Sent, and its fate is unknown; now, or under this name before.
            JournalError: The journal cannot be used; nothing was sent.

        Source:
            api-facts 1.2 to 1.5, 5.1 and 5.2.
        """
        if type(request) not in SUBMITS:
            kinds = ", ".join(kind.__name__ for kind in SUBMITS)
            raise usage_error(
                "request", f"request is of type {type(request).__name__}.", f"Use one of {kinds}."
            )
        if tag is not None:
            require_text("tag", tag)
        if custom_id is None:
            return await self.submit_job(request, None, tag=tag)
        require_text("custom_id", custom_id)
        return await self._submit_named(request, custom_id, tag)

    async def _submit_named(self, request: Generation, custom_id: str, tag: str | None) -> Task:
        """Submit once for all callers that use one name at the same time."""
        loop = asyncio.get_running_loop()
        while True:
            with self._naming:
                named = self._named.get(custom_id)
                if named is None or named.loop.is_closed():
                    work = loop.create_task(self._submit_once(request, custom_id, tag))
                    named = self._named[custom_id] = _Named(loop, work)
                    work.add_done_callback(partial(self._end_named, custom_id, named))
            if named.loop is not loop:
                task = await self._submitted_elsewhere(named, request, custom_id, tag)
                if task is not None:
                    return task
                continue
            if named.is_left:
                await asyncio.wait([named.over])
                continue
            named.callers += 1
            try:
                return await asyncio.shield(named.work)
            except RunwayError as error:
                failure = copied(error)
            except asyncio.CancelledError:
                if named.callers == 1:
                    # As without a name: what was not sent is not sent, what was sent goes on.
                    named.is_left = True
                    named.work.cancel()
                raise
            finally:
                named.callers -= 1
            raise failure

    async def _submitted_elsewhere(
        self, named: "_Named", request: Generation, custom_id: str, tag: str | None
    ) -> Task | None:
        """Join a submission that another thread's loop has begun; None if that loop ended."""
        joining = self._submit_named(request, custom_id, tag)
        answer = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(joining, named.loop))
        try:
            # In steps, since a loop that is ending may never run what it is given.
            while not answer.done() and not named.loop.is_closed():
                await asyncio.wait([answer], timeout=1)
            return answer.result()
        except (asyncio.CancelledError, asyncio.InvalidStateError):
            if _is_cancelled():
                answer.cancel()
                raise
        # The last step of an ending loop records whether the request is in doubt.
        await asyncio.to_thread(named.ended.wait, 1)
        return None

    def _end_named(self, custom_id: str, named: "_Named", work: "asyncio.Task[Task]") -> None:
        """Free a name, once the request that was sent under it has its answer."""

        def end(_: object) -> None:
            self._named.pop(custom_id, None)
            named.over.set_result(None)
            named.ended.set()

        if not work.cancelled():
            work.exception()  # or asyncio would report it where every caller is cancelled
        if named.flight is None:
            end(work)
        else:
            # Also if it is done: first it has to be recorded whether the request is in doubt, or
            # another thread could find the name free and pay again.
            named.flight.add_done_callback(end)

    async def _submit_once(self, request: Generation, custom_id: str, tag: str | None) -> Task:
        task = await self.find(custom_id)
        if task is not None:
            return task
        if custom_id in self._doubts:
            raise copied(self._doubts[custom_id])
        self.check_open()
        plan = None
        if self.journal is not None:
            plan = plan_of(request, f"id:{custom_id}", custom_id, tag)
            job = await self.journal.plan(plan, self._clock.wall())
            if job.state in {JobState.SUBMITTING, JobState.IN_DOUBT}:
                raise in_doubt_of(job)
            if job.state is JobState.FAILED:
                # Refused before anything was charged, or `find` would have its task.
                await self.journal.step(job.key, JobState.PLANNED, self._clock.wall())
        return await self.submit_job(request, plan, custom_id=custom_id, tag=tag)

    async def start(
        self,
        work: Generation | Task | str,
        *,
        save: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        custom_id: str | None = None,
        tag: str | None = None,
        timeout: float | None = DEFAULT_WAIT,
    ) -> BackgroundJob:
        """
        Submit a request and follow it in the background; return as soon as it is accepted.

        For servers: a route starts the job and answers, while the client waits for the clip, saves
        it, and tries again for some minutes where saving it fails. Until the file is whole the
        task is in `unfinished`. Its end is a `JobEnded` event, and `await job` waits for it.
        Closing the client ends the following; the task goes on at the gateway.

        Spends points as `submit` does, with the same errors.

        Args:
            work: A request, a prompt, or a task that exists already, such as one of `unfinished`.
            save: The file to write; None saves none, and the clip is what `await job` returns. If
                the journal knows the name as paid and not saved, and there is a file, it may be
                the clip: it is compared, and a clip that differs is saved beside it.
            overwrite: Whether a file of that name may be replaced.
            custom_id: Your own name for it; the same name is the same task and is paid once.
            tag: Text of yours that travels with the job.
            timeout: How long to wait for the task, in seconds; None waits without limit.
        """
        check(save=save, overwrite=overwrite, timeout=timeout)
        path = None if save is None else Path(save)
        if isinstance(work, Task):
            self._check_own(work, custom_id, tag)
        request = TextToVideo(work) if isinstance(work, str) else work
        going_on = self._going_on(custom_id)
        if going_on is not None:
            return going_on
        engine = self._engine()
        saved, is_there = None, False
        if path is not None:
            known = await self._job_named(custom_id)
            saved = known and await self._saved_as(known, path)
            is_paid = known is not None and known.state in {JobState.ACCEPTED, JobState.FINISHED}
            is_there = is_paid and not overwrite and path.is_file()
            if saved is None and not is_there:
                check_vacant(path, overwrite=overwrite)
        if isinstance(request, Task):
            task = request
        else:
            task = await self.submit(request, custom_id=custom_id, tag=tag)
            # Two calls under one name, at once, share the task: they share the file as well.
            going_on = self._going_on(custom_id)
            if going_on is not None:
                return going_on
        file, pause = path if saved is None else None, engine.transport.pause
        following = followed(task, file, timeout, pause, overwrite=overwrite, is_there=is_there)
        job = BackgroundJob(task, saved or path, engine.follow(following), self._hooks)
        if task.custom_id is not None:
            self._jobs[task.custom_id] = job
        return job

    def _going_on(self, custom_id: str | None) -> BackgroundJob | None:
        job = None if custom_id is None else self._jobs.get(custom_id)
        return None if job is None or job.done() else job

    def _check_own(self, task: Task, custom_id: str | None, tag: str | None) -> None:
        if not task.belongs_to(self):
            raise usage_error(
                "work",
                "The task belongs to another client.",
                "Attach to it here: client.task(task.id).",
            )
        if custom_id is not None or tag is not None:
            raise usage_error(
                "custom_id" if tag is None else "tag",
                "A task that exists already cannot be given a name or a tag.",
                "Give them when you submit it.",
            )

    async def _job_named(self, custom_id: str | None) -> Job | None:
        if self.journal is None or custom_id is None:
            return None
        return await self.journal.find(f"id:{custom_id}")

    async def _saved_as(self, job: Job, path: Path) -> Path | None:
        """Return the file that was saved for this job, as far as the journal knows."""
        if job.state is not JobState.SAVED:
            return None
        return await asyncio.to_thread(saved_place, path, job.task_id or "", job.file_bytes)

    async def find(self, custom_id: str) -> Task | None:
        """
        Return the task that was submitted under a name, here or by what the journal knows.

        Free, and sends nothing. None where there is no such task: nothing was submitted under the
        name, or it was refused, or it is in doubt.

        Raises:
            UsageError: The name is no text, or the client is closed.
            JournalError: The journal cannot be used.
        """
        require_text("custom_id", custom_id)
        self.check_open()
        name = self._names.get(custom_id)
        if name is not None:
            return self._handles.get(name) or self._handle(name, Origin(custom_id=custom_id))
        job = await self._job_named(custom_id)
        known = {JobState.ACCEPTED, JobState.FINISHED, JobState.SAVED, JobState.FAILED}
        if job is None or job.task_id is None or job.state not in known:
            return None
        return self._handles.get(_name_in(job)) or self.attach(job)

    def check_open(self) -> None:
        """Raise a `UsageError` if the client is closed; for batches, which open the journal."""
        if asyncio.get_running_loop() in self._closed_in:
            raise closed()

    def attach(self, job: Job, request: Generation | None = None) -> Task:
        """Return a handle on the task of a job from the journal; for batches and resuming."""
        task_id = _checked_id(job.task_id)
        self._left.pop(_name_in(job), None)
        self._hooks.emit(self._attached(job))
        task = Task(
            self,
            task_id,
            official=_is_official(job),
            request=request,
            submitted_at=self._clock.now() - max(0.0, self._clock.wall() - (job.accepted_at or 0)),
            custom_id=job.custom_id,
            tag=job.tag,
        )
        self._keep(task)
        return task

    def _attached(self, job: Job) -> events.TaskAttached:
        endpoint = ENDPOINT_NAMES.get(job.endpoint)
        return events.TaskAttached(
            *(str(job.task_id), self._number, endpoint, job.model, job.seconds, job.traceparent)
        )

    @discreet
    async def submit_job(
        self,
        request: Generation,
        plan: Plan | None,
        *,
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """Do what `submit` does for a job that the journal knows already; for batches."""
        engine = self._engine()
        job = plan
        if job is None and self.journal is not None:
            job = plan_of(request, f"single:{uuid4()}", tag=tag)
        address = self._deliveries.address(request, job)
        if address is not None:
            address.custom_id, address.tag = custom_id, tag
            address.context = contextvars.copy_context()
        wire = self._submission(request, address)
        submission = Submission(
            *(wire.endpoint.name, self._number, self._hooks, self._clock, request, address),
            custom_id=custom_id,
            tag=tag,
        )
        with submission.told():
            if self.journal is not None and job is not None:
                submission.entry = await self._entry(
                    self.journal, job, submission.trace(), is_new=plan is None
                )
            async with engine.tasks.one_more(submission.held):
                found = None
                try:
                    record = await engine.transport.call(
                        wire,
                        partial(self._read_accepted, submission),
                        unclaimed=partial(self._leave, engine, submission),
                        around=submission.sending,
                        submission=submission.number,
                    )
                except SubmissionInDoubt as error:
                    if custom_id is not None:
                        self._doubts[custom_id] = error
                    # While the answer was waited for, a delivery may have told what it would have.
                    found = await self._deliveries.told_instead(engine, address)
                    if found is None:
                        raise
                    record = TaskRecord(found.task_id, TaskState.QUEUED)
                task = self._accepted(submission, record)
                # Not the engine of the moment: this one may have been closed meanwhile.
                watch = self._follow(engine, task, address)
                if found is not None:
                    self._hooks.emit(events.SubmissionFound(wire.endpoint.name, task.id))
                    engine.poller.take_told(watch, found)
        return task

    @discreet
    async def generate(
        self,
        prompt: str,
        *,
        # the picture, for image to video
        image: str | None = None,
        last_image: str | None = None,
        image_as_end_frame: bool = False,
        flip: bool = False,
        # the clip
        ratio: str = "16:9",
        seconds: int = 10,
        model: str = DEFAULT_MODEL,
        style: str = "cinematic",
        motion: MotionVector | None = None,
        # whatever else the gateway takes
        extra: dict[str, Any] | None = None,
        # what it is to you
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Start one clip from words, or from a picture and words, and give its handle.

        Spends points as soon as the gateway accepts it; sent at most once, as `submit` says.

        Args:
            prompt: What should be seen; any language.
            image: Address of the first frame; makes this image to video.
            last_image: Address of the last frame; with *image* only.
            image_as_end_frame: gen3: the picture is the end; with *image* only.
            flip: Portrait in place of landscape; with *image* only.
            ratio: Width to height, such as 16:9 or 1280:720.
            seconds: Length of the clip, in seconds; most models take 5 and 10.
            model: The model, such as gen4, gen4_turbo or gen3.
            style: The look.
            motion: How the camera moves.
            extra: Further fields for the request's body.
            custom_id: Your own name for it, as in `submit`: the same name is paid once.
            tag: Text of yours that travels with the task.

        Returns:
            The task; `await task.wait()` gives the clip.

        Raises:
            UsageError: An argument is wrong; nothing was sent.
            RunwayError: As `submit` says.

        Source:
            api-facts 1.2 and 1.3.
        """
        common: dict[str, Any] = {
            "ratio": ratio,
            "seconds": seconds,
            "model": model,
            "style": style,
            "motion": MotionVector() if motion is None else motion,
            "extra": {} if extra is None else extra,
        }
        if image is None:
            if last_image is not None or image_as_end_frame or flip:
                raise usage_error(
                    "image",
                    "last_image, image_as_end_frame and flip need an image, and none was given.",
                    "Give the image, or leave them out: this would be charged as text to video.",
                )
            return await self.submit(TextToVideo(prompt, **common), custom_id=custom_id, tag=tag)
        return await self.submit(
            ImageToVideo(
                prompt,
                image,
                last_image=last_image,
                image_as_end_frame=image_as_end_frame,
                flip=flip,
                **common,
            ),
            custom_id=custom_id,
            tag=tag,
        )

    @discreet
    async def video_to_video(
        self,
        video: str,
        prompt: str,
        *,
        structure_transformation: float = 0.5,
        seconds: int | None = 5,
        flip: bool = False,
        model: str = DEFAULT_MODEL,
        extra: dict[str, Any] | None = None,
        # what it is to you
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Start redrawing a clip in another style and give its handle.

        Spends points as soon as the gateway accepts it; sent at most once, as `submit` says.

        Args:
            video: Address of the clip, up to 10 s and 64 MB.
            prompt: The style to redraw it in.
            structure_transformation: From 0, which keeps the structure, to 1.
            seconds: Length of the clip, in seconds; None leaves it out.
            flip: Portrait in place of landscape.
            model: The model.
            extra: Further fields for the request's body.
            custom_id: Your own name for it, as in `submit`: the same name is paid once.
            tag: Text of yours that travels with the task.

        Returns:
            The task; `await task.wait()` gives the clip.

        Raises:
            UsageError: An argument is wrong; nothing was sent.
            RunwayError: As `submit` says.

        Source:
            api-facts 1.4.
        """
        return await self.submit(
            VideoToVideo(
                video,
                prompt,
                structure_transformation=structure_transformation,
                seconds=seconds,
                flip=flip,
                model=model,
                extra={} if extra is None else extra,
            ),
            custom_id=custom_id,
            tag=tag,
        )

    @discreet
    async def act_one(
        self,
        video: str,
        image: str | None = None,
        *,
        character_video: str | None = None,
        motion_multiplier: int | None = None,
        flip: bool | None = None,
        extra: dict[str, Any] | None = None,
        # what it is to you
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Start carrying a performance over to a character and give its handle.

        Spends points as soon as the gateway accepts it; sent at most once, as `submit` says.

        Args:
            video: Address of the performance; 16:9 only.
            image: Address of the character's picture; 16:9 only.
            character_video: Address of a clip of the character, in place of the picture.
            motion_multiplier: How strongly it moves, from 1 to 5.
            flip: Portrait in place of landscape.
            extra: Further fields for the request's body.
            custom_id: Your own name for it, as in `submit`: the same name is paid once.
            tag: Text of yours that travels with the task.

        Returns:
            The task; `await task.wait()` gives the clip.

        Raises:
            UsageError: An argument is wrong; nothing was sent.
            RunwayError: As `submit` says.

        Source:
            api-facts 1.5.
        """
        return await self.submit(
            ActOne(
                video,
                image,
                character_video=character_video,
                motion_multiplier=motion_multiplier,
                flip=flip,
                extra={} if extra is None else extra,
            ),
            custom_id=custom_id,
            tag=tag,
        )

    def batch(
        self,
        prompts: Source,
        *,
        in_flight: int = 20,
        download_to: str | os.PathLike[str] | None = None,
        timeout: float | None = DEFAULT_WAIT,
        max_points: float | None = None,
        retry_failed: bool = False,
        overwrite: bool = False,
    ) -> Batch:
        """
        Return a batch, to be run by iterating over its `outcomes()`; nothing is sent yet.

        Arguments as in `generate_many`; the batch has a `summary`, and can be stopped.

        Raises:
            UsageError: An argument is wrong, or nothing can be written to *download_to*.
        """
        check(
            in_flight=in_flight,
            download_to=download_to,
            timeout=timeout,
            max_points=max_points,
            retry_failed=retry_failed,
            overwrite=overwrite,
        )
        return Batch(
            self,
            prompts,
            in_flight=in_flight,
            journal=self.journal,
            download_to=download_to,
            timeout=timeout,
            max_points=max_points,
            retry_failed=retry_failed,
            overwrite=overwrite,
            clock=self._clock,
        )

    async def generate_many(
        self,
        prompts: Source,
        *,
        in_flight: int = 20,
        download_to: str | os.PathLike[str] | None = None,
        timeout: float | None = DEFAULT_WAIT,
        max_points: float | None = None,
        retry_failed: bool = False,
        overwrite: bool = False,
    ) -> AsyncGenerator[Outcome, None]:
        """
        Yield the outcome of each of many jobs, as they end.

        Spends points for each job that the gateway accepts; each is submitted at most once, as
        `submit` says. With a journal (`Client(journal=...)`), the same call made again goes on
        where an earlier one was ended, by whatever ended it: what was accepted is followed, what
        is in doubt is reported, and neither is submitted again.

        Whatever goes wrong with one job is its outcome. A key that is refused, an account without
        points, a gateway that cannot be reached and a journal that is broken end the submitting;
        what was submitted is followed to its end, and `Batch.summary.stopped_by` says why. What
        the source raises is raised after that.

        Args:
            prompts: Prompts, requests, or an `Item` each, from any iterable or async iterable. It
                is read only as far as there is room for jobs.
            in_flight: How many jobs may exist at once; one whose outcome was not taken counts.
            download_to: The folder that clips are saved in, under names that read like their
                prompts; None saves none.
            timeout: How long to wait for each task, and then as long again for its file, in
                seconds; None waits without limit.
            max_points: Nothing more is submitted once this many points are spent or bound to be.
            retry_failed: Whether jobs that failed in an earlier run are submitted again.
            overwrite: Whether a file that stands in the place of a clip may be replaced. If not,
                such a job is not submitted, and its outcome says so.

        Raises:
            UsageError: An argument is wrong, or the source gave something that is no request.
            JournalError: The journal cannot be opened; nothing was sent.
        """
        batch = self.batch(
            prompts,
            in_flight=in_flight,
            download_to=download_to,
            timeout=timeout,
            max_points=max_points,
            retry_failed=retry_failed,
            overwrite=overwrite,
        )
        async with aclosing(batch.outcomes()) as outcomes:
            async for outcome in outcomes:
                yield outcome

    # Free calls

    def task(self, task_id: str, *, official: bool = False) -> Task:
        """
        Return a handle on a task that exists already, by its id alone; nothing is sent.

        Args:
            task_id: What `Task.id` was when it was submitted.
            official: Whether it was submitted in the official format.

        Raises:
            UsageError: The id is empty.
        """
        check(official=official)
        task_id = _checked_id(task_id)
        task = Task(self, task_id, official=official)
        bare = events.TaskAttached(task_id, self._number)
        self._hooks.emit(self._left.pop(_name_of(task), bare))
        return task

    @discreet
    async def feed(self, task_id: str, *, official: bool = False) -> TaskRecord:
        """
        Return what the gateway says about a task now, in one free look.

        Args:
            task_id: What `Task.id` was when it was submitted.
            official: Whether it was submitted in the official format.

        Raises:
            UsageError: The id is empty.
            NotFound: The gateway does not know the task, or not yet (api-facts 5.4).
            Unauthorized: The key may not ask.
            RateLimited: Refused until the retry policy gave up.
            NotSent: The gateway could not be reached.
            NoReply: It did not answer, however often it was asked.
            GatewayDown: It is in trouble.
            UnreadableReply: No known dialect fits the answer.

        Source:
            api-facts 1.6, 2 and 3.
        """
        check(official=official)
        wire = self._task_request(_checked_id(task_id), official=official)
        record = await self._engine().transport.call(self._discreet(wire), read_task)
        self._settings.unfinished.seen(name_of(wire), record)
        return record

    @discreet
    async def balance(self) -> Balance:
        """
        Return what is left to spend, in the gateway's unit; free.

        Raises:
            GatewayError: The gateway says no, or has no such route.
            TransportError: It cannot be reached.
            UnreadableReply: No known dialect fits the answer.

        Source:
            api-facts 7; which route is asked is a part of the `Gateway`.
        """
        found: Balance | None = None
        transport = self._engine().transport
        for name in BALANCE_ENDPOINTS[self.gateway.balance]:
            wire = ask_balance(ENDPOINTS[name], self.gateway, self._key)
            part = await transport.call(self._discreet(wire), read_balance)
            found = part if found is None else found.joined(part)
        assert found is not None  # noqa: S101  (every route has an endpoint)
        return found

    def _discreet(self, wire: Request) -> Request:
        """Return a request of no handle that knows, for its errors, what the handles were sent."""
        # The references are copied at once, since other threads may go on.
        handles = (handle() for handle in self._handles.valuerefs())
        told = (secret for task in handles if task is not None for secret in task.secrets())
        return wire.hiding(*told)

    # For the handles

    def watch_over(self, task: Task) -> tuple[Poller, Watch]:
        """Return the scheduler of the running loop, and its watch over *task*; for handles."""
        poller = self._engine().poller
        attached = self._left.pop(_name_of(task), None)
        if attached is not None:
            self._hooks.emit(attached)
        watch = self._watch(poller, task)
        self._handles.setdefault(watch.name, task)
        return poller, watch

    def hand_out(self, task: Task) -> None:
        """Record that a wait returns the clip of a task to its caller; for handles."""
        if self._settings.unfinished.hand_out(_name_of(task)):
            self._hooks.emit(events.ClipHandedOut(task.id))

    async def save(
        self,
        clip: Clip,
        path: Path,
        *,
        overwrite: bool,
        max_bytes: int,
        on_progress: Callable[[Progress], object] | None,
    ) -> Path:
        """Save *clip* to *path*; for handles, whose `Clip.download` is the way to call it."""
        wire = self._task_request(clip.id, official=clip.task.official)
        source = ClipSource(
            clip.id,
            clip.address,
            # A gateway that takes the key in the body is shown none for its files.
            {name: wire.headers[name] for name in ("Authorization",) if name in wire.headers},
            origin_of(self.gateway.base_url or ""),
        )
        downloader = self._engine().downloader
        # On the list again until the file is whole: an app may be stopped half-way.
        task, name = clip.task, _name_of(clip.task)
        origin = Origin(task.submitted_at, task.custom_id, task.tag)
        with self._settings.unfinished.saving(name, origin):
            return await downloader.save(
                source, path, overwrite=overwrite, max_bytes=max_bytes, on_progress=on_progress
            )

    async def look_for(
        self, engine: Engine, task_id: str, request: Generation | None
    ) -> TaskRecord:
        """Ask the feed about a task of which there is no handle yet; for deliveries."""
        wire = self._task_request(task_id, official=False)
        wire = wire.hiding(getattr(request, "prompt", None))
        return await engine.transport.call(wire, read_task)

    def adopt(
        self,
        engine: Engine,
        address: "Address",
        request: Generation | None,
        record: TaskRecord,
        endpoint: str,
    ) -> None:
        """Keep a task whose submission got no answer; for deliveries."""
        ago = max(0.0, self._clock.wall() - address.made_at)
        submitted_at = self._clock.now() - ago
        task = Task(
            self,
            record.task_id,
            request=request,
            submitted_at=submitted_at,
            custom_id=address.custom_id,
            tag=address.tag,
            context=address.context,
        )
        self._keep(task)
        self._claim_later(task)
        watch = self._follow(engine, task, address)
        self._hooks.emit(events.SubmissionFound(endpoint, task.id))
        engine.poller.take_told(watch, record)

    def without_secrets(self, text: str, task: Task) -> str:
        """Return what a gateway says about *task* as it may be shown; for handles."""
        return redact(text, (self._key, *task.secrets()))

    def age(self, task: Task) -> float | None:
        """Return how long ago *task* was accepted, in seconds; for handles."""
        if task.submitted_at is not None:
            try:
                return max(0.0, self._clock.now() - task.submitted_at)
            except RuntimeError:  # asked outside of any loop, where there is no such instant
                pass
        created_at = task.record.created_at if task.record else None
        return max(0.0, self._clock.wall() - created_at.timestamp()) if created_at else None

    def _follow(self, engine: Engine, task: Task, address: "Address | None") -> Watch:
        """Count a task that was accepted, and have it hear of its deliveries."""
        has_ended = task.record is not None and task.record.is_settled
        is_addressed = address is not None and not has_ended
        watch = self._watch(engine.poller, task, is_addressed=is_addressed)
        engine.tasks.add(watch)
        engine.poller.take_end(watch)
        if address is not None:
            task.keep(watch)
            early, address.early = address.early, None
            if early is not None:
                self._deliveries.heed(engine, address, early)
        return watch

    def _watch(self, poller: Poller, task: Task, *, is_addressed: bool = False) -> Watch:
        wire = self._task_request(task.id, official=task.official)
        wire = wire.hiding(*task.secrets())  # a refused look may quote the prompt
        kind = kind_of(task.request)
        return poller.watch(
            *(wire, task.submitted_at, task.record, kind),
            is_addressed=is_addressed,
            context=task.context(),
        )

    def _handle(self, name: Name, origin: Origin) -> Task:
        """Return a new handle on a task whose own one is gone."""
        endpoint, task_id = name
        return Task(
            self,
            task_id,
            official=endpoint == _feed(official=True).name,
            submitted_at=origin.accepted_at,
            custom_id=origin.custom_id,
            tag=origin.tag,
        )

    def _keep(self, task: Task) -> None:
        """Find *task* again by its id, and by its name if it has one."""
        name = _name_of(task)
        self._handles[name] = task
        if task.custom_id is not None:
            self._name(task.custom_id, name)
            self._doubts.pop(task.custom_id, None)

    def _claim_later(self, task: Task) -> None:
        """Hold a handle whose caller was cancelled, for as long as its task is unfinished."""
        unfinished = self._settings.unfinished
        held = [*self._unclaimed.items(), (_name_of(task), task)]
        self._unclaimed = {name: handle for name, handle in held if name in unfinished}

    def _name(self, custom_id: str, name: Name) -> None:
        self._names[custom_id] = name
        if self.journal is not None and len(self._names) > NAMES_KEPT:
            del self._names[next(iter(self._names))]

    def _task_request(self, task_id: str, *, official: bool) -> Request:
        return ask_task(task_id, _feed(official=official), self.gateway, self._key)

    async def _recall(self, journal: Journal) -> None:
        """Read once what earlier processes left: durations, doubts, unfinished tasks."""
        if self._has_recalled:
            return
        self._has_recalled = True
        try:
            self._settings.learner.recall(await journal.durations())
            self.check_open()
            doubts = (await journal.counts())[JobState.IN_DOUBT]
            if doubts:
                self._hooks.emit(events.DoubtsFound(doubts))
            self.check_open()
            now, wall = self._clock.now(), self._clock.wall()
            for job in await journal.unfinished():
                ago = max(0.0, wall - (job.accepted_at or wall))
                origin = Origin(now - ago, job.custom_id, job.tag)
                name = _name_in(job)
                if name not in self._settings.unfinished:
                    self._settings.unfinished.accepted(name, origin)
                    self._left[name] = self._attached(job)
            self.check_open()
        except BaseException:
            self._has_recalled = False
            raise

    async def _entry(
        self, journal: Journal, plan: Plan, traceparent: str | None, *, is_new: bool
    ) -> Entry:
        await self._recall(journal)
        if is_new:
            # A job of a batch has its row already.
            await journal.plan(plan, self._clock.wall())
        return Entry(journal, plan.key, self._clock, traceparent)

    def _submission(self, request: Generation, address: "Address | None") -> Request:
        """Return the request that submits, its callback address among its secrets."""
        if address is None or self._callbacks is None:
            return build(request, self.gateway, self._key, self._callback_url)
        wire = build(request, self.gateway, self._key, self._callbacks.url(address))
        return wire.hiding(self._callbacks.token(address))

    def _read_accepted(self, submission: Submission, reply: Reply) -> TaskRecord:
        """Read the answer to a submit, and keep the id before any caller can be cancelled."""
        record = read_task(reply)
        name = (_tells_of(submission.request).name, record.task_id)
        origin = Origin(self._clock.now(), submission.custom_id, submission.tag)
        self._settings.unfinished.accepted(name, origin)
        self._settings.unfinished.seen(name, record)
        if submission.custom_id is not None:
            self._name(submission.custom_id, name)
        return record

    def _accepted(self, submission: Submission, record: TaskRecord) -> Task:
        submission.accepted(record.task_id)
        request = submission.request
        feed = _tells_of(request)
        task = Task(
            self,
            record.task_id,
            official=feed is _feed(official=True),
            request=request,
            record=record,
            submitted_at=self._clock.now(),
            custom_id=submission.custom_id,
            tag=submission.tag,
            context=contextvars.copy_context(),
        )
        self._keep(task)
        return task

    def _leave(
        self, engine: Engine, submission: Submission, flight: "asyncio.Task[TaskRecord]"
    ) -> None:
        """Report the outcome of a request whose caller was cancelled."""
        submission.leave()
        flight.add_done_callback(partial(self._take_unclaimed, engine, submission))
        if submission.custom_id is not None:
            self._named[submission.custom_id].flight = flight
        engine.tasks.hold(flight)

    def _take_unclaimed(
        self, engine: Engine, submission: Submission, flight: "asyncio.Task[TaskRecord]"
    ) -> None:
        """Keep the task of a request whose caller is gone, or tell what became of it."""
        error = None if flight.cancelled() else flight.exception()
        if flight.cancelled() or error is not None:
            known = isinstance(error, RunwayError) and fate_of(error) is not Fate.UNKNOWN
            fault = type(error).__name__ if known else SubmissionInDoubt.__name__
            submission.unclaimed(None, fault)
            if submission.custom_id is not None and not known:
                cut_off = NoReply("The request was cut off.", "", "")
                fault_seen = error if isinstance(error, RunwayError) else cut_off
                self._doubts[submission.custom_id] = in_doubt(fault_seen)
            address = submission.address
            if address is not None and address.is_in_doubt:
                engine.run(self._deliveries.recover(engine, address))
            return
        task = self._accepted(submission, flight.result())
        self._claim_later(task)
        self._follow(engine, task, submission.address)
        submission.unclaimed(task.id)

    def _engine(self) -> Engine:
        """Return what belongs to the running loop, made on first use."""
        self.check_open()
        loop = asyncio.get_running_loop()
        engine = self._engines.get(loop)
        if engine is None:
            _check_loop(self._settings.session, loop)
            for ended in [one for one in list(self._engines) if one.is_closed()]:
                self._engines.pop(ended, None)
            engine = self._engines[loop] = Engine(self._settings)
            engine.stay_until_the_loop_ends(partial(self._engines.pop, loop, None))
            self._deliveries.catch_up(engine)
        return engine


def _feed(*, official: bool) -> Endpoint:
    """Return the endpoint that tells of the tasks of one format."""
    return ENDPOINTS["official_task" if official else "feed"]


def _name_of(task: Task) -> Name:
    return _feed(official=task.official).name, task.id


def _name_in(job: Job) -> Name:
    return _feed(official=_is_official(job)).name, str(job.task_id)


def _is_official(job: Job) -> bool:
    return job.endpoint == OfficialImageToVideo.__name__


def _tells_of(request: Generation) -> Endpoint:
    return _feed(official=isinstance(request, OfficialImageToVideo))


def _journal(journal: Journal | str | os.PathLike[str] | None) -> Journal | None:
    return journal if journal is None or isinstance(journal, Journal) else Journal(journal)


class Official:
    """
    The official Runway format, as the same gateways offer it (api-facts 6).

    Its tasks live under addresses of their own: wait for them with the handle that the submit
    gave, or re-attach with `client.official.task(id)`.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    @discreet
    async def image_to_video(
        self,
        image: str,
        prompt: str | None = None,
        *,
        last_image: str | None = None,
        model: str = "gen4_turbo",
        ratio: str = "1280:720",
        seconds: int = 10,
        seed: int | None = None,
        watermark: bool | None = None,
        extra: dict[str, Any] | None = None,
        # what it is to you
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Start one clip from a picture in the official format and give its handle.

        Spends points as soon as the gateway accepts it; sent at most once, as `Client.submit`
        says.

        Args:
            image: The first frame: an https address, or a data URI.
            prompt: What should happen, up to 1000 characters.
            last_image: The last frame: an https address, or a data URI.
            model: The model, such as gen4_turbo.
            ratio: Width to height in pixels, such as 1280:720.
            seconds: Length of the clip, in seconds; gen4.5 takes 2 to 10.
            seed: The same seed and request give similar clips: 0 to 4294967295.
            watermark: Whether the clip carries a watermark; None leaves it to the gateway.
            extra: Further fields for the request's body.
            custom_id: Your own name for it, as in `submit`: the same name is paid once.
            tag: Text of yours that travels with the task.

        Returns:
            The task; `await task.wait()` gives the clip.

        Raises:
            UsageError: An argument is wrong; nothing was sent.
            RunwayError: As `Client.submit` says.

        Source:
            api-facts 6.
        """
        return await self._client.submit(
            OfficialImageToVideo(
                image,
                prompt,
                last_image=last_image,
                model=model,
                ratio=ratio,
                seconds=seconds,
                seed=seed,
                watermark=watermark,
                extra={} if extra is None else extra,
            ),
            custom_id=custom_id,
            tag=tag,
        )

    def task(self, task_id: str) -> Task:
        """
        Return a handle on an official task that exists already; nothing is sent.

        Raises:
            UsageError: The id is empty.
        """
        return self._client.task(task_id, official=True)

    async def feed(self, task_id: str) -> TaskRecord:
        """
        Return what the gateway says about an official task now, in one free look.

        Raises:
            RunwayError: As `Client.feed` says.

        Source:
            api-facts 6.
        """
        return await self._client.feed(task_id, official=True)


def _checked_key(key: object) -> str:
    """Return the key as it is: gateways split it, so that nothing may be added (api-facts 1.1)."""
    if not key:
        raise usage_error(
            "api_key",
            "There is no key.",
            f"Give it as api_key, or set the environment variable {KEY_VARIABLE}.",
        )
    if not isinstance(key, str) or not key.isascii() or not key.isprintable() or " " in key:
        raise usage_error(
            "api_key",
            "The key has a space or a character that no header can carry.",
            "Copy it again from the gateway's page, without line breaks or quotes around it.",
        )
    return key


def _checked_id(task_id: object) -> str:
    check(task_id=task_id)
    text = str(task_id).strip()
    if not text:
        raise usage_error("task_id", "The task id is empty.", "Give the id that the submit gave.")
    return text


def _checked_session(session: aiohttp.ClientSession | None) -> aiohttp.ClientSession | None:
    if session is not None and (session.auth is not None or "Authorization" in session.headers):
        raise usage_error(
            "session",
            "The session sends an Authorization header with every request.",
            "Give a session without one: clips come from other hosts, which may not see a key.",
        )
    return session


def _check_loop(session: aiohttp.ClientSession | None, loop: asyncio.AbstractEventLoop) -> None:
    # aiohttp keeps the loop to itself, and a session used in another one fails half-way.
    home = getattr(session, "_loop", loop)
    if home is not loop:
        raise usage_error(
            "session",
            "The session that the client was given belongs to another event loop.",
            "Make one client for each loop, or let the client make its own sessions.",
        )


def _checked_callback(url: str | None) -> str | None:
    if url is not None and (not is_reachable_address(url) or "@" in url):
        raise usage_error(
            "callback_url",
            "callback_url must be an http(s) URL with a valid host and port, and without a user.",
            "Give one, or None.",
        )
    return url


def _checked_receiver(
    callbacks: "CallbackReceiver | None", callback_url: str | None
) -> "CallbackReceiver | None":
    if callbacks is not None and callback_url != NOWHERE:
        raise usage_error(
            "callback_url",
            "There are both callback_url and callbacks, and a request has room for one address.",
            "Leave callback_url out: the receiver gives each task an address of its own.",
        )
    return callbacks


def _resolved(gateway: Gateway | str | None, base_url: str | None) -> Gateway:
    """Return the gateway with the address that counts: the argument, its own, the environment's."""
    row = _named(gateway or DEFAULT_GATEWAY)
    other = base_url
    if other is None and (gateway is None or row.base_url is None):
        other = os.environ.get(URL_VARIABLE) or None
    url = row.base_url if other is None else other
    if url is None:
        raise usage_error(
            "base_url",
            f"No source names the address of the gateway {row.name!r}.",
            f"Give it as base_url, or set the environment variable {URL_VARIABLE}.",
        )
    # With another base_url, the key is not for the gateway's own balance host.
    quota_url = row.quota_url if other is None or row.quota_url is None else url
    for field, address in (("base_url", url), ("quota_url", quota_url)):
        if address is None:
            continue
        if not is_web_address(address) or any(mark in address for mark in "?#@"):
            raise usage_error(
                field,
                f"{field} is no http(s) address of a host that can exist.",
                "Give scheme and host, such as https://api.fuhuapi.com.",
            )
    return attrs.evolve(row, base_url=url, quota_url=quota_url)


def _named(gateway: Gateway | str) -> Gateway:
    if isinstance(gateway, Gateway):
        return gateway
    if gateway not in GATEWAYS:
        raise usage_error(
            "gateway",
            f"There is no gateway called {gateway!r}.",
            f"Use a Gateway of your own, or one of {', '.join(GATEWAYS)}.",
        )
    return GATEWAYS[gateway]
