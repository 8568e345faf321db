"""`Client`: how it is made and closed, and what it does beyond the methods of `Endpoints`."""

import itertools
import os
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

import aiohttp

from . import hooks as events
from ._arguments import (
    KEY_VARIABLE,
    check,
    checked_callback,
    checked_key,
    checked_pace,
    checked_receiver,
    checked_session,
    checked_uploads,
    resolved,
)
from ._clock import LoopClock
from ._guesses import METHODS, refuse_unknown
from ._jobs import Jobs
from ._session import audit as audits
from ._session.session import Settings
from ._session.sessions import Sessions
from ._wire.tables import NOWHERE
from .account import Account, AccountTask, Audit, Reconciliation
from .background import BackgroundJob, BackgroundJobs
from .batch import Batch, BatchOptions
from .endpoints import Endpoints, Official, PromptOptions, prompted
from .errors import init_without_frames, without_frames
from .items import Item, Outcome, Source
from .journal import BaseJournal, Job
from .models import (
    DEFAULT_WAIT,
    Gateway,
    Generation,
    Limits,
    PollPolicy,
    RetryPolicy,
    TaskRecord,
    Timeouts,
    usage_error,
)
from .task import Clip, Task
from .uploads import ClipStore, GatewayFiles, Uploader

if TYPE_CHECKING:
    # It imports a web server, which most programs do not need.
    from .callbacks import CallbackReceiver
    from .contrib.shared_pace import SharedPace

_NUMBERS: Final = itertools.count(1)


class Client(Endpoints):
    """
    A client of one gateway with one key: it submits, waits and saves.

    Create it anywhere, even outside a running event loop. Use it with `async with`, or call
    `aclose()`; a closed client refuses every call in that loop until it is entered again. Several
    loops may use it: each has its own session, which is closed when the loop ends.

    Args:
        api_key: The key; by default the environment variable FUHU_API_KEY.
        base_url: Scheme and host of the gateway, and a path prefix if it has one; by default the
            environment variable FUHU_BASE_URL, then the gateway's own address.
        gateway: A `Gateway`, or the name of a known one, such as "deerapi"; by default FuhuAPI.
        session: An aiohttp session to use; the client never closes it. It may not carry an
            Authorization header, which would reach the hosts of the clips.
        callback_url: Where the gateway posts its webhooks. By default an address that leads
            nowhere, since some gateways refuse a request without one; None leaves it out.
        callbacks: Receives the webhooks, in place of *callback_url*: each submission has its own
            address, and its webhook makes `wait()` poll at once.
        timeouts: How long one exchange may take.
        retry: How often, and after how long, a request is retried where that is safe.
        polling: When a task is polled.
        limits: How many requests and tasks are in flight, and the rate, in each event loop.
        pace: A `SharedPace`, for one rate of all processes that use this key.
        journal: Where every submission is recorded before it is sent, with its id and its outcome:
            the path of a file, the `postgresql://` URL of a database that several processes share,
            or a journal that the client never closes.
        account: The account of the key, as an `Account`, whose list of tasks settles submissions in
            doubt; `Account.from_env()` reads it from the environment.
        uploads: Where local pictures and clips are put, so that the gateway can download them:
            an `Uploader`, such as an `ObjectStore` or a function, or `GatewayFiles()`. The
            official format needs it only for files that are too large for a data URI.
        hooks: Functions that are called with each event.

    Raises:
        UsageError: An argument is wrong, or there is no key. Nothing was sent.
    """

    @init_without_frames
    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        gateway: Gateway | str | None = None,
        session: aiohttp.ClientSession | None = None,
        callback_url: str | None = NOWHERE,
        callbacks: "CallbackReceiver | None" = None,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        polling: PollPolicy | None = None,
        limits: Limits | None = None,
        pace: "SharedPace | None" = None,
        journal: BaseJournal | str | os.PathLike[str] | None = None,
        account: Account | None = None,
        uploads: Uploader | GatewayFiles | None = None,
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
            pace=pace,
            journal=journal,
            account=account,
            uploads=uploads,
        )
        row = resolved(gateway, base_url)
        # An empty key is not replaced: another account might pay.
        key = checked_key(os.environ.get(KEY_VARIABLE) if api_key is None else api_key)
        settings = Settings(
            session=checked_session(session),
            timeouts=timeouts or Timeouts(),
            retry=retry or RetryPolicy(),
            polling=polling or PollPolicy(),
            limits=limits or Limits(),
            pace=checked_pace(pace, key, row),
            hooks=events.Hooks(hooks),
            clock=LoopClock(),
            client=next(_NUMBERS),
            net=None if callbacks is None else callbacks.safety_net,
        )
        self._sessions = Sessions(
            settings,
            row,
            key,
            callback_url=checked_callback(callback_url),
            callbacks=checked_receiver(callbacks, callback_url),
            journal=journal,
            account=account,
            uploads=checked_uploads(uploads, row),
        )
        self._background = BackgroundJobs(self._sessions)

    def __repr__(self) -> str:
        return repr(self._sessions)

    if not TYPE_CHECKING:  # pragma: no branch  (type checkers know which names there are)

        def __getattr__(self, name: str) -> Any:
            """Name the right method for one that people guess."""
            right = METHODS.get(name)
            if right is None:
                message = f"{type(self).__name__!r} object has no attribute {name!r}"
                raise AttributeError(message, name=name, obj=self)
            # Without `obj`, or Python would suggest a method with a similar name.
            raise AttributeError(f"Client has no {name!r}; use {right}.", name=name)

    @property
    def gateway(self) -> Gateway:
        """The gateway that requests go to."""
        return self._sessions.gateway

    @property
    def journal(self) -> BaseJournal | None:
        """The journal; None if there is none."""
        return self._sessions.journal

    @property
    def official(self) -> Official:
        """The official format of the same gateway."""
        return Official(self._sessions)

    @property
    def unfinished(self) -> tuple[Task, ...]:
        """
        Every task that is paid for and not yet saved, handed out or known to have failed.

        An app that stops records their ids: `[task.id for task in client.unfinished]`. A task
        leaves the list when `wait()` returns its clip, unless that is being saved then; when its
        file is complete; and when it has failed. It stays if the caller was cancelled while the
        request was in flight, or dropped the handle. With a journal, the list begins with the
        tasks of earlier processes. It may be read in any loop, before and after `aclose()`.
        """
        return self._sessions.unfinished

    async def __aenter__(self) -> Self:
        await self._sessions.enter()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._sessions.leave()

    async def aclose(self) -> None:
        """
        Close what this client opened in the running loop; safe to call again.

        From now on each call in this loop is refused before anything is sent. Waits and downloads
        end with an error, and their tasks go on at the gateway. Paid requests in flight are waited
        for, for up to `Timeouts.total`, since only the response holds the id of the task, even if
        this call is cancelled. Tasks that are not finished then are in `unfinished`.
        """
        await self._sessions.aclose()

    def end_waits(self) -> None:
        """
        End every wait in the running loop with `WaitAbandoned`, without closing the client.

        For a server that shuts down: open streams of updates end, so that the shutdown can begin.
        Background jobs and batches end too. The tasks go on at the gateway, and may be waited for
        again.
        """
        self._sessions.end_waits()

    @without_frames
    async def reconcile(self) -> Reconciliation:
        """
        Find out from the gateway's own lists what happened to each submission in doubt.

        Free, and sends nothing again. With an account, its list of tasks is read: a task that is
        the only one that fits a submission is its task, is written to the journal and appears in
        `unfinished`. A submission counts as not accepted only with proof; then it may be submitted
        again. Without an account, the log of the key shows what was charged, but no ids. If the
        lists cannot be read, every doubt stays as it was.

        With a journal, every job in doubt counts; without one, those of this client. A client with
        an account does this automatically: `submit` searches for its task before it raises
        `SubmissionInDoubt`, and a batch reconciles before its first job and after its last.

        Returns:
            What was found, what was not accepted, and what is still in doubt, with the reasons.

        Raises:
            Unauthorized: The gateway refuses the access token.
            NotFound: The gateway has no such lists.
            GatewayError: It refused for another reason.
            TransportError: It cannot be reached.
            UnreadableReply: It sent something else.
            UsageError: The client is closed.
            JournalError: The journal cannot be used.
        """
        return await self._sessions.reconcile()

    @without_frames
    async def run(
        self,
        work: Generation | Task | str,
        *,
        save: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        timeout: float | None = DEFAULT_WAIT,
        on_update: Callable[[TaskRecord], object] | None = None,
        custom_id: str | None = None,
        tag: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> Clip:
        """
        Submit a prompt or a request, wait for its clip, and save it: `submit`, `wait`, `download`.

        Costs the same as `submit`. The path is checked before anything is sent. If this fails or is
        cancelled after the gateway has accepted the request, nothing is lost: the error has
        `task_id`, a task that is still running is in `unfinished`, and
        `run(client.task(task_id))` continues.

        Args:
            work: A prompt, a request, or a task that exists already.
            save: The file to write; None saves nothing. If the journal lists the name as paid but
                not saved, and the file exists, the file may be the clip: they are compared, and a
                clip that differs is saved next to it.
            overwrite: Whether an existing file may be replaced.
            timeout: How long to wait for the task, in seconds; None waits without limit.
            on_update: Called with the record at each change of state or progress, as in
                `Task.wait`.
            custom_id: As in `submit`; two calls with one name at the same time share the file.
            tag: As in `submit`.
            **options: As in `generate`, for a prompt: *image*, *ratio*, *seconds*, *model*, ...

        Returns:
            The clip; `clip.path` is the file that it was saved to.

        Raises:
            UsageError: An argument is wrong, or nothing can be saved there; nothing was sent.
            RunwayError: As in `submit`, `Task.wait` and `Clip.download`.
        """
        check(on_update=on_update)
        job = await self._background.start(
            _work(work, options),
            save=save,
            overwrite=overwrite,
            custom_id=custom_id,
            tag=tag,
            timeout=timeout,
            is_kept=False,
        )
        return await job.joined(timeout, on_update)

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
        Submit a request, return as soon as it is accepted, and follow it in the background.

        For servers: a route starts the job and responds, while the client waits for the clip, saves
        it, and retries for some minutes if saving fails. Until the file is complete, the task is in
        `unfinished`. `await job` waits for its end, which is also a `JobEnded` event. Closing the
        client ends the job; the task goes on at the gateway. Costs as in `submit`.

        Args:
            work: A request, a prompt, or a task that exists already, such as one of `unfinished`.
            save: The file to write; None saves nothing. `await job` returns the clip either way.
                If the journal lists the name as paid but not saved, and the file exists, the file
                may be the clip: they are compared, and a clip that differs is saved next to it.
            overwrite: Whether an existing file may be replaced.
            custom_id: As in `submit`.
            tag: As in `submit`.
            timeout: How long to wait for the task, in seconds; None waits without limit.

        Raises:
            RunwayError: As in `submit`, before the task is accepted. Later errors are raised by
                `await job`, and reported by `JobEnded`.
        """
        return await self._background.start(
            _work(work, {}),
            save=save,
            overwrite=overwrite,
            custom_id=custom_id,
            tag=tag,
            timeout=timeout,
            is_kept=True,
        )

    def batch(self, prompts: Source, **options: Unpack[BatchOptions]) -> Batch:
        """
        Return a `Batch` of many jobs.

        Its `outcomes()` run it, and nothing is sent before that.
        """
        refuse_unknown("Client.batch", options, BatchOptions.__annotations__)
        return Batch(self._sessions, prompts, **options)

    async def generate_many(
        self, prompts: Source, **options: Unpack[BatchOptions]
    ) -> AsyncGenerator[Outcome, None]:
        """
        Submit many prompts, and yield the outcome of each job as it ends.

        Costs and options as in `Batch`, which this runs: `in_flight`, `download_to`, `timeout`,
        `max_points`, `retry_failed` and `overwrite`.

        Raises:
            UsageError: An argument is wrong, or an item of the source is not a request.
            JournalError: The journal cannot be opened; nothing was sent.
        """
        async with aclosing(self.batch(prompts, **options).outcomes()) as outcomes:
            async for outcome in outcomes:
                yield outcome

    @without_frames
    async def carry_out(
        self,
        item: Item,
        *,
        download_to: str | os.PathLike[str] | ClipStore | None = None,
        timeout: float | None = DEFAULT_WAIT,
        retry_failed: bool = False,
        overwrite: bool = False,
    ) -> Outcome:
        """
        Carry out a job from a queue: submit, wait and save, continuing where it was left.

        For a queue that may deliver a job twice: acknowledge when this returns, and let the queue
        deliver again when this raises. Costs the same as `submit`, once for each name: a job that
        the journal has as accepted is followed, one that is saved ends at once, and one in doubt is
        reported and never sent again. What the outcome says is on disk in the journal by then.

        The journal must know what other workers have paid for: one process with a file, or any
        number with a `PostgresJournal`. If another worker is sending the job at this moment, it is
        reported as in doubt, and that worker continues it.

        Args:
            item: The job; its `custom_id` is its name in the journal.
            download_to: Where to save the clip, as in `Batch`; None saves nothing.
            timeout: How long to wait for the task, and then as long again for its file, in seconds;
                None waits without limit.
            retry_failed: Whether to submit a job again that failed before.
            overwrite: Whether the clip may replace an existing file.

        Returns:
            How the job ended: with a clip, failed, or in doubt. Carrying it out again would change
            nothing, except with *retry_failed*.

        Raises:
            UsageError: An argument is wrong, the job has no name, the client has no journal or is
                closed, or the clip cannot be saved; nothing was sent.
            JournalError: The journal cannot be used, or another worker has taken over the job.
            RunwayError: The job could not be completed, as in `submit`, `Task.wait` and
                `Clip.download`: it was not accepted for now, or is paid for and not saved yet.
        """
        jobs = Jobs(
            self._sessions,
            download_to=download_to,
            timeout=timeout,
            retry_failed=retry_failed,
            overwrite=overwrite,
        )
        return await jobs.carry_out(item)

    async def find(self, custom_id: str) -> Task | None:
        """
        Return the task that was submitted under a name; None if it was refused or is in doubt.

        Free, and sends nothing: this client or its journal knows the name.

        Raises:
            UsageError: The name is not a usable string, or the client is closed.
            JournalError: The journal cannot be used.
        """
        return await self._sessions.find(custom_id)

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
        return self._sessions.task(task_id, official=official)

    def attach(self, job: Job) -> Task:
        """
        Return a handle on the task of a job that the journal lists; nothing is sent.

        Raises:
            UsageError: The job has no task.
        """
        return self._sessions.attach(job)

    @without_frames
    async def audit(self, *, since: datetime | None = None) -> Audit:
        """
        Return the tasks of the account that the journal does not have; free.

        Each was paid for: by another program, on the gateway's own page, or by a run whose journal
        was lost. `adopt` adds one to the journal, and `journal.ignore` leaves it out of later
        audits. Tasks of other users are left out.

        Args:
            since: The instant from which to look; by default a week ago.

        Raises:
            UsageError: The client has no account or no journal; nothing was sent.
            Unauthorized: The access token or the user id is wrong.
            NotFound: The gateway has no list of the account's tasks.
            GatewayError: The gateway refuses for another reason.
            TransportError: It cannot be reached.
            UnreadableReply: The response is not a list.
            JournalError: The journal cannot be used.
        """
        check(since=since)
        return await audits.audit(self._sessions, since)

    @without_frames
    async def adopt(self, task: AccountTask) -> Task:
        """
        Add a task of an audit to the journal, and return its handle; free.

        Its clip is saved as that of any other task: by `wait` and `Clip.download`, or by `resume`.

        Raises:
            UsageError: The task may be that of a job in doubt, or a job has it; nothing changed.
            NotFound: The feed does not know the task, which may belong to another service.
            GatewayError: The gateway refuses for another reason.
            TransportError: It cannot be reached.
            UnreadableReply: No known dialect fits the response of the feed.
            JournalError: The journal cannot be used.
        """
        check(task=task)
        return await audits.adopt(self._sessions, task)


def _work(work: Generation | Task | str, options: PromptOptions) -> Generation | Task:
    """Return what to submit or to follow; a prompt becomes a request."""
    known = [*PromptOptions.__annotations__, "save", "on_update", "custom_id"]
    refuse_unknown("Client.run", options, known)
    if isinstance(work, str):
        return prompted(work, **options)
    for name in options:
        raise usage_error(
            name, f"{name} was given along with a request.", "Set it when you make the request."
        )
    return work
