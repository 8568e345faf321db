"""A session: the transport, poller and downloader of one client in one event loop."""

import asyncio
import contextvars
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress
from http import HTTPStatus
from typing import Any, TypeVar

import aiohttp
import attrs

from fuhu_runway._clock import Clock
from fuhu_runway._http.limiter import Pacing, RateLimiter
from fuhu_runway._http.transport import Transport
from fuhu_runway._waiting.intervals import Learner
from fuhu_runway._waiting.poller import Poller
from fuhu_runway._waiting.task_limit import TaskLimit
from fuhu_runway._waiting.unfinished import Unfinished
from fuhu_runway._wire.decode import read_task
from fuhu_runway._wire.encode import Reply, Request
from fuhu_runway.downloads import LEAST_BYTES_WITHIN, Downloader
from fuhu_runway.hooks import ClientClosed, Hooks
from fuhu_runway.models import Limits, PollPolicy, RetryPolicy, TaskRecord, Timeouts

T = TypeVar("T")


@attrs.frozen(kw_only=True, eq=False)
class Settings:
    """The settings that all sessions of one client share."""

    session: aiohttp.ClientSession | None
    timeouts: Timeouts
    retry: RetryPolicy
    polling: PollPolicy
    limits: Limits
    hooks: Hooks
    clock: Clock
    #: Returns the pace of a session, if it is shared with other processes.
    pace: Callable[..., Pacing] | None = None
    #: The number of the client, which its events hold.
    client: int = 0
    #: How often to poll while webhooks are relied on, in seconds; None without a receiver.
    net: float | None = None
    #: What the names of parts contain; see `Part`.
    part_mark: str = ""
    #: Shared by all sessions: durations learned in one loop hold in the next.
    learner: Learner = attrs.Factory(lambda self: Learner(self.polling), takes_self=True)
    #: Also shared: a task goes on at the gateway after its loop has ended.
    unfinished: Unfinished = attrs.field(factory=Unfinished)


class Session:
    """
    The transport, poller and downloader of one client; created in their event loop.

    It closes itself at the end of the loop, unless it was closed before, and calls *forget*.
    """

    def __init__(self, settings: Settings, forget: Callable[[], object]) -> None:
        self._settings = settings
        self.limiter = RateLimiter(
            settings.limits,
            settings.clock,
            settings.hooks,
            max_hold=settings.retry.max_retry_after,
            join=settings.pace
            and functools.partial(
                settings.pace,
                at_most=settings.limits.requests_per_second,
                max_hold=settings.retry.max_retry_after,
                clock=settings.clock,
                hooks=settings.hooks,
            ),
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
        self.tasks = TaskLimit(settings.limits.tasks_in_flight, self.poller)
        self.downloader = Downloader(
            self.transport,
            settings.retry,
            settings.clock,
            settings.hooks,
            settings.polling.url_grace,
            settings.part_mark,
            max(LEAST_BYTES_WITHIN, settings.timeouts.read),
        )
        self._actions: set[asyncio.Task[None]] = set()
        self._jobs: set[asyncio.Task[Any]] = set()
        self._keeper = self._keep(forget)
        # One step, up to the yield; it never suspends, so this need not be a coroutine.
        with suppress(StopIteration):
            self._keeper.__anext__().send(None)

    def _poll(
        self, request: Request, sent_at: float, known: TaskRecord | None
    ) -> Awaitable[TaskRecord]:
        def read(reply: Reply) -> TaskRecord:
            if known is not None and reply.status == HTTPStatus.OK and reply.body == known.body:
                return known
            return read_task(reply)

        # No retries: the poller polls again at its own intervals.
        return self.transport.send_and_read(request, read, sent_at)

    def run(self, action: Coroutine[Any, Any, None]) -> None:
        """Start something in the background, in an empty context; closing cancels it."""
        task = asyncio.create_task(action, context=contextvars.Context())
        self._actions.add(task)
        task.add_done_callback(self._actions.discard)

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
        # `asyncio.run` closes suspended asynchronous generators while the loop still runs: the one
        # moment at which a session that was left open can be closed.
        try:
            yield
        finally:
            try:
                await self._close()
            finally:
                self._settings.hooks.emit(ClientClosed(self._settings.client))
                forget()

    async def _close(self) -> None:
        # First, so that a waiting submission does not get a slot that is released now.
        self.transport.stop()
        try:
            await self.poller.aclose()
        finally:
            await self.transport.aclose()
            await asyncio.gather(*self._jobs, return_exceptions=True)
            # Last, since a response that came while closing may have begun one.
            for action in self._actions:
                action.cancel()
            await asyncio.gather(*self._actions, return_exceptions=True)
