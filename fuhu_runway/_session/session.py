"""What belongs to one event loop: a transport, a poller and a downloader, closed with it."""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any, TypeVar

import aiohttp
import attrs

from fuhu_runway._clock import Clock
from fuhu_runway._http.limiter import RateLimiter
from fuhu_runway._http.transport import Transport
from fuhu_runway._waiting.intervals import Learner
from fuhu_runway._waiting.poller import Poller, Watch
from fuhu_runway._waiting.task_limit import Unfinished
from fuhu_runway._wire.decode import read_task
from fuhu_runway._wire.encode import Reply, Request
from fuhu_runway.downloads import Downloader
from fuhu_runway.errors import RunwayError, WaitAbandoned
from fuhu_runway.hooks import ClientClosed, Hooks
from fuhu_runway.models import Limits, PollPolicy, RetryPolicy, TaskRecord, Timeouts

T = TypeVar("T")


@attrs.frozen(kw_only=True, eq=False)
class Settings:
    """What every session of one client is made from."""

    session: aiohttp.ClientSession | None
    timeouts: Timeouts
    retry: RetryPolicy
    polling: PollPolicy
    limits: Limits
    hooks: Hooks
    clock: Clock
    #: The number of the client, which its events hold.
    client: int = 0
    #: How often to poll while webhooks are relied on, in seconds; None without a receiver.
    net: float | None = None
    #: Shared by all sessions: durations learned in one loop hold in the next.
    learner: Learner = attrs.Factory(lambda self: Learner(self.polling), takes_self=True)
    #: Shared as well: a task goes on at the gateway after its loop has ended.
    unfinished: Unfinished = attrs.field(factory=Unfinished)


class Session:
    """
    The moving parts of one client in one event loop; made inside it.

    It closes itself when the loop ends, unless it is closed by then, and calls *forget*.
    """

    def __init__(self, settings: Settings, forget: Callable[[], object]) -> None:
        self._settings = settings
        self.limiter = RateLimiter(
            settings.limits,
            settings.clock,
            settings.hooks,
            max_hold=settings.retry.max_retry_after,
        )
        self.transport = Transport(
            session=settings.session,
            timeouts=settings.timeouts,
            retry=settings.retry,
            limiter=self.limiter,
            hooks=settings.hooks,
            clock=settings.clock,
        )
        self.poller = Poller(
            self._poll,
            self.limiter,
            policy=settings.polling,
            max_retry_after=settings.retry.max_retry_after,
            clock=settings.clock,
            hooks=settings.hooks,
            learner=settings.learner,
            safety_net=settings.net,
            unfinished=settings.unfinished,
            until_closed=self.transport.until_closed,
        )
        self.tasks = TaskBudget(settings.limits.tasks_in_flight, self.poller)
        self.downloader = Downloader(
            self.transport,
            settings.retry,
            settings.clock,
            settings.hooks,
            settings.polling.url_grace,
        )
        self._errands: set[asyncio.Task[None]] = set()
        self._jobs: set[asyncio.Task[Any]] = set()
        self._keeper = self._keep(forget)
        # One step, up to the yield; it never suspends, so that this need not be a coroutine.
        with suppress(StopIteration):
            self._keeper.__anext__().send(None)

    def _poll(
        self, request: Request, sent_at: float, known: TaskRecord | None
    ) -> Awaitable[TaskRecord]:
        def read(reply: Reply) -> TaskRecord:
            if known is not None and reply.status == HTTPStatus.OK and reply.body == known.answer:
                return known
            return read_task(reply)

        # No retries: the poller polls again at its own intervals.
        return self.transport.in_turn(request, read, sent_at)

    def run(self, errand: Coroutine[Any, Any, None]) -> None:
        """Start something in the background, in an empty context; closing cancels it."""
        task = asyncio.create_task(errand, context=contextvars.Context())
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    def follow(self, job: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a job that ends when closing ends its wait or its download; closing awaits it."""
        task = asyncio.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return task

    async def aclose(self) -> None:
        """Close everything, once; it must not be cancelled, since paid requests are waited for."""
        await self._keeper.aclose()

    async def _keep(self, forget: Callable[[], object]) -> AsyncGenerator[None, None]:
        # `asyncio.run` closes the asynchronous generators that are still suspended while the loop
        # still runs: the one moment at which a session that was left open can be closed.
        try:
            yield
        finally:
            try:
                await self._close()
            finally:
                self._settings.hooks.emit(ClientClosed(self._settings.client))
                forget()

    async def _close(self) -> None:
        # First, so that a submission that waits for a slot does not get one that comes free now.
        self.transport.stop()
        try:
            await self.poller.aclose()
        finally:
            await self.transport.aclose()
            await asyncio.gather(*self._jobs, return_exceptions=True)
            # Last, since an answer that came while closing may have begun one.
            for errand in self._errands:
                errand.cancel()
            await asyncio.gather(*self._errands, return_exceptions=True)


class TaskBudget:
    """
    How many tasks of this client may exist at once.

    A task counts until its end is seen. While a submission waits for a free slot, the unfinished
    tasks are polled, so that a slot is released even if no caller awaits them.
    """

    def __init__(self, at_most: int | None, poller: Poller) -> None:
        self.at_most = at_most
        self._poller = poller
        self._outstanding: set[Watch] = set()
        self._submitting = 0
        self._first = asyncio.Lock()  # first come, first served
        self._submitted = asyncio.Event()

    @asynccontextmanager
    async def one_more(self, held: Callable[[int], object]) -> AsyncIterator[None]:
        """
        Wait until one more task may be submitted, and count that submission.

        If there is no free slot at once, *held* is called with the number of tasks.
        """
        if self.at_most is None:
            yield
            return
        if self._first.locked() or self._count() >= self.at_most:
            held(self._count())
        async with self._first:
            while self._count() >= self.at_most:
                self._submitted.clear()
                waits: list[asyncio.Task[Any]] = [
                    asyncio.create_task(self._submitted.wait()),
                    *(asyncio.create_task(self._end_of(watch)) for watch in self._outstanding),
                ]
                try:
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for wait in waits:
                        wait.cancel()
                    await asyncio.gather(*waits, return_exceptions=True)
            self._submitting += 1
        try:
            yield
        finally:
            self._submitting -= 1
            self._submitted.set()

    def add(self, watch: Watch) -> None:
        """Count a task that was accepted."""
        if self.at_most is not None:
            self._outstanding.add(watch)

    def _count(self) -> int:
        return self._submitting + len(self._outstanding)

    async def _end_of(self, watch: Watch) -> None:
        # One that can no longer be followed is not counted: it would block submissions without end.
        with suppress(RunwayError):
            try:
                await self._poller.settled(watch, None)
            except WaitAbandoned:
                if not self._poller.is_closed:
                    return  # the waits were ended, and the task goes on
        self._outstanding.discard(watch)
