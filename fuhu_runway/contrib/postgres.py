"""
A journal in a Postgres database, which several machines share. Needs the extra `postgres`.

Rule 1: one statement moves a job from PLANNED to SUBMITTING, and only for the process that took
charge of it last.
Rule 2: writing an outcome is retried until it succeeds or is refused. A step before a request is
given up after a while, since nothing was sent.
"""

import itertools
import math
import queue
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeVar

import attrs

from fuhu_runway._journal.actions import Action, nothing
from fuhu_runway._journal.notes import Note, write
from fuhu_runway._journal.writer import Call, Calls, report
from fuhu_runway.journal import BaseJournal, Job, Plan, nth

from ._postgres import Link, Unreachable, options_of, unreachable

T = TypeVar("T")

PAUSE: Final = 0.5
"""Seconds between attempts to reach the database. If more, outcomes are written later."""

NOTE_WAIT: Final = 0.02
"""Seconds that a note waits for others about its task. If more, a crash loses more of them; a job
that is resumed then learns again that its task ended.
"""

MANY: Final = 100
"""How many waiting notes are compared with a new one."""


@attrs.define(eq=False)
class _Task:
    """An action of the journal, and what happens to it while the database cannot be reached."""

    make: Callable[[], Action[Any]]
    #: Whether it is retried until it is written.
    is_outcome: bool = False
    #: Undoes it, if it is given up and may have been written.
    undo: Callable[[], Action[Any]] | None = None
    #: Whether it may change the tables.
    is_init: bool = False
    #: When it was requested, on the monotonic clock.
    since: float = attrs.field(init=False, factory=time.monotonic)
    #: Whether it may have been written already.
    is_unclear: bool = attrs.field(init=False, default=False)

    def __call__(self, link: Link) -> Any:
        link.open(is_init=self.is_init)
        try:
            return link.run(self.make())
        except Unreachable:
            self.is_unclear = True
            raise


class _Notes(_Task):
    """Notes about one task, which share a statement."""

    def __init__(self, notes: list[Note]) -> None:
        super().__init__(lambda: write(notes), is_outcome=True)
        self.notes = notes

    def take(self, call: Call) -> bool:
        """Take over the notes of another call, if they are about the same task."""
        more = call.action
        if not isinstance(more, _Notes) or more.notes[0].task_id != self.notes[0].task_id:
            return False
        self.notes += more.notes
        return True


class PostgresJournal(BaseJournal):
    """
    The state of every job, in a Postgres database that several processes and machines share.

    Usable from any event loop. Connects on first use, with one connection, and creates its tables
    if there are none. If the database cannot be reached later, outcomes of submissions are written
    once it can, as long as the process lives; everything else fails after *wait* seconds. Both are
    logged. A forked child makes its own connection.

    Args:
        url: A URL or connection string of libpq; by default the environment variable
            FUHU_DATABASE_URL. Missing parts come from libpq's own variables and files.
        wait: How long a call waits for a database that was reached before, in seconds.

    Raises:
        UsageError: There is no URL, or it cannot be read.
        JournalTooNew: A newer version of this package made the tables; from any method.
        JournalError: The database cannot be reached or has `synchronous_commit` off, its tables are
            of an older version or may not be used, or it cannot hold a value; from any method.
    """

    is_shared: ClassVar[bool] = True

    def __init__(self, url: str | None = None, *, wait: float = 30.0) -> None:
        self._link = Link(options_of(url))
        self._wait = wait
        self._owner: str = secrets.token_hex(8)
        self._seen: Counter[str] = Counter()
        super().__init__(self._work)

    @property
    def name(self) -> str:
        """The name of the database."""
        return self._link.name

    async def init(self) -> None:
        """Create the tables, or update those of an older version; otherwise do nothing."""
        await self._writer.run(_Task(nothing, is_init=True))

    async def start_run(self) -> None:
        """Count occurrences of equal requests from zero."""
        self._seen.clear()

    async def plan_next(self, plan: Plan, now: float) -> Job:
        """
        Return the row of the next job with this content in this run, made if there is none.

        Occurrences are counted in this process.

        Raises:
            JournalError: The database cannot be reached, or cannot hold the row.
        """
        mark = (await self.keyed(plan)).fingerprint
        self._seen[mark] += 1
        return await self.plan(attrs.evolve(plan, key=nth(mark, self._seen[mark])), now)

    def _write(self, note: Note) -> None:
        self._writer.send(Call(_Notes([note])))

    async def _perform(
        self,
        make: Callable[[], Action[T]],
        *,
        is_outcome: bool = False,
        undo: Callable[[], Action[Any]] | None = None,
    ) -> T:
        result: T = await self._writer.run(_Task(make, is_outcome, undo))
        return result

    def _start_over(self) -> None:
        # To the others, the child is another process; the parent keeps the connection.
        _PARENTS.append(self._link)
        self._link = Link(self._link.options, self._link.was_open)
        self._writer.start_over()
        self._owner = secrets.token_hex(8)

    # In the journal's thread

    def _work(self, todo: Calls, former: threading.Thread | None) -> None:
        """Do one action after the other until there is a None."""
        if former is not None:
            former.join()
        link, waiting = self._link, deque[Call]()
        is_over, until = False, math.inf
        while waiting or not is_over:
            if not is_over:
                timeout = (PAUSE if link.is_unreachable else 0.0) if waiting else None
                is_over = _collect(todo, waiting, timeout)
                until = time.monotonic() + self._wait if is_over else math.inf
            elif link.is_unreachable:
                time.sleep(PAUSE)
            if not waiting:
                continue
            result, error = None, None
            try:
                result = waiting[0].action(link)
            except Unreachable as fault:
                self._give_up(waiting, fault, until)
                continue
            except Exception as exc:  # noqa: BLE001  (the caller has to raise it)
                error = exc
            self._salt = link.salt
            report([(waiting.popleft(), result, error)])
        link.close(self._owner)

    def _give_up(self, waiting: deque[Call], fault: Unreachable, until: float) -> None:
        """Fail what has waited for too long; what may have been written is undone later."""
        now, kept = time.monotonic(), []
        for call in waiting:
            task: Any = call.action
            if now < (until if task.is_outcome else min(until, task.since + self._wait)):
                kept.append(call)
                continue
            error = unreachable(self.name, fault.reason)
            error.__cause__ = fault  # what the database refuses has none
            report([(call, None, error)])
            if task.is_unclear and task.undo is not None and until == math.inf:
                kept.append(Call(_Task(task.undo, is_outcome=True)))
        waiting.clear()
        waiting.extend(kept)


_PARENTS: Final[list[Link]] = []
"""Connections that a forked child must not close."""


def _collect(todo: Calls, waiting: deque[Call], timeout: float | None) -> bool:
    """Take the actions that are queued, or wait for one; return whether the thread has to end."""
    until = math.inf
    try:
        while True:
            call = todo.get(timeout=timeout)
            if call is None:
                return True
            if call.future is not None:
                until = 0.0
            elif until == math.inf:
                until = time.monotonic() + NOTE_WAIT
            if not _joins(call, waiting):
                waiting.append(call)
            timeout = max(0.0, until - time.monotonic())
    except queue.Empty:
        return False


def _joins(call: Call, waiting: deque[Call]) -> bool:
    """Return whether a note was added to one that waits, with no other action in between."""
    for earlier in itertools.islice(reversed(waiting), MANY):
        task = earlier.action
        # What may have been written already stays as it is.
        if not isinstance(task, _Notes) or task.is_unclear:
            return False
        if task.take(call):
            return True
    return False
