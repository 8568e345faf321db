"""
Submissions under a name of the caller's own: the same name is the same task, and is paid once.

Calls under one name at the same time, from any loop and thread, share one submission.
"""

import asyncio
import threading
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs

from fuhu_runway._waiting.task_limit import Name
from fuhu_runway.errors import RunwayError, SubmissionInDoubt, copied
from fuhu_runway.journal import JobState, in_doubt_of, plan_of
from fuhu_runway.models import Generation, TaskRecord
from fuhu_runway.task import Task

from .submission import submit

if TYPE_CHECKING:
    from .sessions import Sessions

MAX_KEPT: Final = 10_000
"""How many names a client with a journal keeps in memory; the others are read from the journal."""


@attrs.define(eq=False)
class Shared:
    """One submission under a name, shared by its callers."""

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


@attrs.define(eq=False)
class Names:
    """The names that one client knows. Methods get its sessions, which hold the names."""

    #: Whether every name is kept; with a journal, only the latest are.
    keeps_all: bool
    tasks: dict[str, Name] = attrs.field(init=False, factory=dict)
    #: Submissions that are under way.
    shared: dict[str, Shared] = attrs.field(init=False, factory=dict)
    doubts: dict[str, SubmissionInDoubt] = attrs.field(init=False, factory=dict)
    _lock: threading.Lock = attrs.field(init=False, factory=threading.Lock)

    def accepted(self, custom_id: str, name: Name) -> None:
        """Record the task that a name stands for."""
        self.tasks[custom_id] = name
        if not self.keeps_all and len(self.tasks) > MAX_KEPT:
            del self.tasks[next(iter(self.tasks))]

    def under_way_in(self, loop: asyncio.AbstractEventLoop) -> list["asyncio.Task[Task]"]:
        """Return the submissions of one loop that have not ended."""
        return [one.work for one in list(self.shared.values()) if one.loop is loop]

    async def submit(
        self, sessions: "Sessions", request: Generation, custom_id: str, tag: str | None
    ) -> Task:
        """Submit once for all callers that use one name at the same time."""
        loop = asyncio.get_running_loop()
        while True:
            with self._lock:
                shared = self.shared.get(custom_id)
                if shared is None or shared.loop.is_closed():
                    work = loop.create_task(self._submit(sessions, request, custom_id, tag))
                    shared = self.shared[custom_id] = Shared(loop, work)
                    work.add_done_callback(partial(self._end, custom_id, shared))
            if shared.loop is not loop:
                joining = self.submit(sessions, request, custom_id, tag)
                task = await _submitted_elsewhere(shared, joining)
                if task is not None:
                    return task
                continue
            if shared.is_left:
                await asyncio.wait([shared.over])
                continue
            shared.callers += 1
            try:
                return await asyncio.shield(shared.work)
            except RunwayError as error:
                failure = copied(error)
            except asyncio.CancelledError:
                if shared.callers == 1:
                    # As without a name: what was not sent is not sent, what was sent goes on.
                    shared.is_left = True
                    shared.work.cancel()
                raise
            finally:
                shared.callers -= 1
            raise failure

    def _end(self, custom_id: str, shared: Shared, work: "asyncio.Task[Task]") -> None:
        """Free a name, once the request that was sent under it has its answer."""

        def end(_: object) -> None:
            self.shared.pop(custom_id, None)
            shared.over.set_result(None)
            shared.ended.set()

        if not work.cancelled():
            work.exception()  # or asyncio would report it where every caller is cancelled
        if shared.flight is None:
            end(work)
        else:
            # Also if it is done: first it has to be recorded whether the request is in doubt, or
            # another thread could find the name free and pay again.
            shared.flight.add_done_callback(end)

    async def _submit(
        self, sessions: "Sessions", request: Generation, custom_id: str, tag: str | None
    ) -> Task:
        task = await sessions.find(custom_id)
        if task is not None:
            return task
        if custom_id in self.doubts:
            raise copied(self.doubts[custom_id])
        sessions.check_open()
        plan = None
        if sessions.journal is not None:
            plan = plan_of(request, f"id:{custom_id}", custom_id, tag)
            wall = sessions.settings.clock.wall
            job = await sessions.journal.plan(plan, wall())
            if job.state in {JobState.SUBMITTING, JobState.IN_DOUBT}:
                raise in_doubt_of(job)
            if job.state is JobState.FAILED:
                # Refused before anything was charged, or `find` would have its task.
                await sessions.journal.step(job.key, JobState.PLANNED, wall())
        return await submit(sessions, request, plan, custom_id=custom_id, tag=tag)


async def _submitted_elsewhere(shared: Shared, joining: Coroutine[Any, Any, Task]) -> Task | None:
    """Join a submission that another thread's loop has begun; None if that loop ended."""
    answer = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(joining, shared.loop))
    try:
        # In steps, since a loop that is ending may never run what it is given.
        while not answer.done() and not shared.loop.is_closed():
            await asyncio.wait([answer], timeout=1)
        return answer.result()
    except (asyncio.CancelledError, asyncio.InvalidStateError):
        running = asyncio.current_task()
        if running is not None and running.cancelling():  # this caller, not that loop
            answer.cancel()
            raise
    # The last step of an ending loop records whether the request is in doubt.
    await asyncio.to_thread(shared.ended.wait, 1)
    return None
