"""
Submissions under a name that the caller chose: the same name is the same task, and is paid once.

Calls under one name at the same time, from any loop and thread, share one submission.
"""

import asyncio
import threading
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs

from fuhu_runway._http.retry import in_doubt
from fuhu_runway._waiting.unfinished import Name
from fuhu_runway.errors import NoReply, SubmissionInDoubt, copied
from fuhu_runway.journal import JobState, Plan, planned
from fuhu_runway.models import Generation
from fuhu_runway.task import Task

from .entry import in_doubt_of
from .submission import Submission

if TYPE_CHECKING:
    from .sessions import Sessions

MAX_KEPT: Final = 10_000
"""How many names a client with a journal keeps in memory; the others are read from the journal."""

STOPPED_AFTER: Final = 5
"""For how many seconds a loop that submits under a name may stand still; if more, a caller in
another loop waits longer for nothing."""


@attrs.define(eq=False)
class Names:
    """The names that one client knows. Its methods take the sessions, which own it."""

    #: Whether every name is kept; with a journal, only the latest are.
    keeps_all: bool
    tasks: dict[str, Name] = attrs.field(init=False, factory=dict)
    doubts: dict[str, SubmissionInDoubt] = attrs.field(init=False, factory=dict)
    _running: dict[str, Submission] = attrs.field(init=False, factory=dict)
    _lock: threading.Lock = attrs.field(init=False, factory=threading.Lock)

    def accepted(self, custom_id: str, name: Name) -> None:
        """Record the task that a name stands for."""
        self.tasks[custom_id] = name
        if not self.keeps_all and len(self.tasks) > MAX_KEPT:
            del self.tasks[next(iter(self.tasks))]

    def forget(self, custom_id: str) -> None:
        """Forget the task or the doubt of a name: its row says that it may be submitted."""
        self.tasks.pop(custom_id, None)
        self.doubts.pop(custom_id, None)

    async def submit(
        self,
        sessions: "Sessions",
        request: Generation,
        custom_id: str,
        tag: str | None,
        plan: Plan | None = None,
    ) -> Task:
        """
        Submit once for all callers that use the same name at the same time.

        With *plan*, its row was read just before, and may be submitted.
        """
        loop = asyncio.get_running_loop()
        while True:
            with self._lock:
                submission = self._running.get(custom_id)
                if submission is not None and submission.loop.is_closed():
                    # It can no longer end by itself; a request in flight is in doubt.
                    submission.work.get_coro().close()
                    submission = None
                if submission is None:
                    session = sessions.current()
                    submission = Submission(sessions, session, request, plan, custom_id, tag)
                    submission.start(self._run(submission, custom_id))
                    submission.work.add_done_callback(partial(self._end, submission, custom_id))
                    self._running[custom_id] = submission
            if submission.loop is not loop:
                joining = self.submit(sessions, request, custom_id, tag, plan)
                task = await _submitted_elsewhere(submission, joining)
                if task is not None:
                    return task
            elif submission.is_left:
                await asyncio.wait([submission.work])
            else:
                return await submission.joined()

    def _end(self, submission: Submission, custom_id: str, _: object) -> None:
        # By now it is recorded whether the request is in doubt, or another thread could find the
        # name free and pay again.
        self._running.pop(custom_id, None)
        submission.ended.set()

    async def _run(
        self, submission: Submission, custom_id: str, *, is_reconciled: bool = False
    ) -> Task:
        sessions = submission.sessions
        task = sessions.remembered(custom_id)
        if task is not None:
            return task
        doubt = self.doubts.get(custom_id)
        if sessions.journal is not None and submission.plan is None:
            plan = await planned(submission.request, f"id:{custom_id}", custom_id, submission.tag)
            wall = sessions.settings.clock.wall
            job = await sessions.journal.plan(plan, wall())
            task = sessions.task_of(job)
            if task is not None:
                return task
            # Otherwise a person may have settled it meanwhile.
            doubt = doubt or in_doubt_of(job) if job.state.is_unanswered else None
            if job.state is JobState.FAILED:
                # The request was refused and nothing charged: otherwise it would have a task.
                await sessions.journal.step(job.key, JobState.PLANNED, wall())
            submission.plan = None if doubt else plan
        if doubt is None:
            return await submission.run()
        if is_reconciled or not await sessions.reconcile_again():
            raise copied(doubt)
        return await self._run(submission, custom_id, is_reconciled=True)


async def _submitted_elsewhere(
    submission: Submission, joining: Coroutine[Any, Any, Task]
) -> Task | None:
    """Join a submission that another thread's loop began; None if that loop ended."""
    loop = submission.loop
    answer = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(joining, loop))
    try:
        # In steps, since a loop that is ending may never run the call.
        stopped = 0
        while not answer.done() and not loop.is_closed():
            await asyncio.wait([answer], timeout=1)
            stopped = 0 if loop.is_running() else stopped + 1
            if stopped > STOPPED_AFTER and not answer.done():
                # It may run again and submit, so that a second request could be paid twice.
                answer.cancel()
                happened = "The event loop that submits under this name does not run."
                raise in_doubt(NoReply(happened, "", ""))
        return answer.result()
    except (asyncio.CancelledError, asyncio.InvalidStateError):
        running = asyncio.current_task()
        if running is not None and running.cancelling():  # this caller, not that loop
            answer.cancel()
            raise
    # The last step of an ending loop records whether the request is in doubt.
    await asyncio.to_thread(submission.ended.wait, 1)
    return None
