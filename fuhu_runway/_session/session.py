"""What belongs to one event loop: a transport, a scheduler and a downloader, closed with it."""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
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
    #: How often to poll while webhooks are relied on, in seconds; None where there are none.
    net: float | None = None
    #: Shared by all sessions: what was learned in one loop holds in the next.
    learner: Learner = attrs.Factory(lambda self: Learner(self.polling), takes_self=True)
    #: Shared as well: a task goes on, whatever becomes of the loop it was submitted in.
    unfinished: Unfinished = attrs.field(factory=Unfinished)


class Session:
    """The moving parts of one client in one event loop; to be made inside of it."""

    def __init__(self, settings: Settings) -> None:
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
        self._told_closed = partial(settings.hooks.emit, ClientClosed(settings.client))
        self._keeper: AsyncGenerator[None, None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[Any]] = set()
        self._jobs: set[asyncio.Task[Any]] = set()

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
        self._start(errand, self._errands, contextvars.Context())

    def follow(self, job: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start what ends by itself when its wait or its download is ended; closing awaits it."""
        return self._start(job, self._jobs, contextvars.copy_context())

    def _start(
        self,
        work: Coroutine[Any, Any, T],
        running: set[asyncio.Task[Any]],
        context: contextvars.Context,
    ) -> "asyncio.Task[T]":
        task = asyncio.get_running_loop().create_task(work, context=context)
        running.add(task)
        task.add_done_callback(running.discard)
        return task

    def stay_until_the_loop_ends(self, forget: Callable[[], object]) -> None:
        """
        Close this session when the loop ends, unless it is closed by then, and call *forget*.

        `asyncio.run` closes the asynchronous generators that are still suspended while the loop
        still runs: the one moment at which a session that was left open can be closed.
        """

        async def keep() -> AsyncGenerator[None, None]:
            try:
                yield
            finally:
                try:
                    await self._close()
                finally:
                    forget()

        self._keeper = keep()
        # One step, up to the yield; it never suspends, so that this need not be a coroutine.
        try:
            self._keeper.__anext__().send(None)
        except StopIteration:
            return

    async def aclose(self) -> None:
        """
        Close everything. Call it again at any time: each call returns when all is closed.

        It cannot be cancelled half-way, since the answers to paid requests are waited for: a
        cancelled caller leaves it to a task of its own.
        """
        if self._closing is None and self._keeper is not None:
            self._closing = asyncio.get_running_loop().create_task(self._keeper.aclose())
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def _close(self) -> None:
        # First of all: room that comes free now is not for those who still wait to submit.
        self.transport.stop()
        try:
            await self.poller.aclose()
        finally:
            try:
                await self.transport.aclose()
                await asyncio.gather(*self._jobs, return_exceptions=True)
                # Last, since an answer that came while closing may have begun one.
                for errand in self._errands:
                    errand.cancel()
                await asyncio.gather(*self._errands, return_exceptions=True)
            finally:
                self._told_closed()


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
        self._door = asyncio.Lock()  # first come, first served
        self._news: asyncio.Future[None] | None = None

    @asynccontextmanager
    async def one_more(self, held: Callable[[int], object]) -> AsyncIterator[None]:
        """
        Come back when one more may be submitted, and count that submission.

        If that is not at once, *held* is called with how many there are.
        """
        if self.at_most is None:
            yield
            return
        if self._door.locked() or self._count() >= self.at_most:
            held(self._count())
        async with self._door:
            while self._count() >= self.at_most:
                await self._one_ends()
            self._submitting += 1
        try:
            yield
        finally:
            self._submitted()

    def hold(self, flight: "asyncio.Task[Any]") -> None:
        """Count a submission whose caller was cancelled, until its answer is here."""
        if self.at_most is not None:
            self._submitting += 1
            flight.add_done_callback(self._submitted)

    def _submitted(self, _flight: object = None) -> None:
        self._submitting -= 1
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def add(self, watch: Watch) -> None:
        """Count a task that was accepted."""
        if self.at_most is not None:
            self._outstanding.add(watch)

    def _count(self) -> int:
        return self._submitting + len(self._outstanding)

    async def _one_ends(self) -> None:
        self._news = asyncio.get_running_loop().create_future()
        ends = [asyncio.ensure_future(self._end_of(watch)) for watch in self._outstanding]
        try:
            await asyncio.wait([self._news, *ends], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _end_of(self, watch: Watch) -> None:
        # One that can no longer be followed is not counted: it would block submissions without end.
        try:
            await self._poller.settled(watch, None)
        except WaitAbandoned:
            if not self._poller.is_closed:
                return  # the waits were ended, and the task goes on
        except RunwayError:
            pass
        self._outstanding.discard(watch)
