"""
Jobs on disk: their states, the legal steps, and the jobs in doubt after a crash.

Rule 1: a row is SUBMITTING, flushed to disk, before its request is sent.
Rule 2: a row that is SUBMITTING when the journal is opened becomes IN_DOUBT. In a journal that
several processes share, that happens when another process takes charge of the job.
Rule 3: a step that `STEPS` does not have is an error, and changes nothing.
Rule 4: no prompt, key or address is written. A request is identified by its fingerprint, which is
keyed by the journal's salt.

Instants are Unix seconds.
"""

import contextlib
import importlib
import os
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar
from weakref import WeakSet

from ._journal import actions, notes
from ._journal.actions import LONGEST, Action, fits
from ._journal.base import BaseJournal
from ._journal.file import perform, work
from ._journal.plans import fingerprint, hash_prompt, nth, plan_of, planned
from ._journal.states import STEPS, Job, JobState, Plan
from ._journal.writer import Call, Writer, report
from .errors import JournalBusy
from .hooks import Event
from .models import usage_error

__all__ = [
    "LONGEST",
    "STEPS",
    "BaseJournal",
    "Job",
    "JobState",
    "Journal",
    "Plan",
    "fingerprint",
    "fits",
    "hash_prompt",
    "journal_at",
    "nth",
    "plan_of",
    "planned",
]

T = TypeVar("T")

DATABASE_VARIABLE: Final = "FUHU_DATABASE_URL"
"""The environment variable with the URL of a database."""


class Journal(BaseJournal):
    """
    The state of every job, in one SQLite file that survives a crash at any moment.

    Opened on first use, by one process at a time; usable from any event loop. Each method returns
    once what it wrote is on disk.

    Args:
        path: The file, in an existing folder. A new file is readable by its owner only.
        wait: How long to wait while another process has it open, in seconds: for a server that
            starts while the one it replaces is still shutting down.

    Raises:
        JournalBusy: Another process has it open, or had when it forked this one; from any method.
        JournalTooNew: A newer version of this package wrote it; from any method.
        JournalError: It cannot be read or written, is not a journal, is a copy without its log, or
            cannot hold a value, which is named; from any method.
    """

    def __init__(self, path: str | os.PathLike[str], *, wait: float = 0.0) -> None:
        self.path = Path(path)
        self._writer = Writer(partial(work, self.path, wait))
        self._is_parents = False
        _JOURNALS.add(self)

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    def __repr__(self) -> str:
        return f"<Journal {self.path.name} {'open' if self._writer.is_open else 'closed'}>"

    async def start_run(self) -> None:
        """Count occurrences of equal requests from zero."""
        await self._run(lambda db: db.execute("DELETE FROM temp.seen"))

    async def plan_next(self, plan: Plan, now: float) -> Job:
        """
        Return the row of the next job with this content in this run, made if there is none.

        Its key is the keyed fingerprint and how often that has come up in the run so far.
        """
        return await self._perform(lambda: actions.plan_next(plan, now))

    def note(self, event: Event) -> None:
        """
        Write that a task ended, or that its clip was saved or handed out; a listener for `hooks`.

        Each row with the task's id takes the step, if it is legal; other tasks are ignored.
        """
        note = notes.note_of(event, time.time())
        if note is None:
            return
        action = notes.write([note])
        try:
            self._check_own()
        except JournalBusy as busy:
            report([(Call(partial(perform, action=action)), None, busy)])
        else:
            self._writer.send(Call(partial(perform, action=action)))

    async def flush(self) -> None:
        """Return once everything that was noted is on disk."""
        await self._run(lambda _db: None)

    async def aclose(self) -> None:
        """Write what is outstanding and close the file; using the journal opens it again."""
        await self._writer.aclose()

    async def _shown(self) -> list[Job]:
        was_open = self._writer.is_open
        if not was_open and not self.path.exists():
            return []
        try:
            return await self.jobs()
        finally:
            if not was_open:
                await self.aclose()

    async def _perform(
        self,
        make: Callable[[], Action[T]],
        *,
        is_outcome: bool = False,  # noqa: ARG002  (a file is always within reach)
        undo: Callable[[], Action[None]] | None = None,  # noqa: ARG002
    ) -> T:
        return await self._run(lambda db: perform(db, make()))

    async def _run(self, action: Callable[[sqlite3.Connection], T]) -> T:
        self._check_own()
        return await self._writer.run(action)

    def _check_own(self) -> None:
        if self._is_parents:
            raise JournalBusy(
                f"The journal {self.path.name!r} was open when this process was forked: it belongs "
                "to the parent process.",
                "Nothing was sent or charged.",
                "Close it before the fork, or use another journal in the child.",
            )

    def _start_over(self) -> None:
        # SQLite's locks were inherited, so this process cannot open the file a second time.
        self._is_parents |= self._writer.start_over()


_JOURNALS: Final["WeakSet[Journal]"] = WeakSet()


def _after_fork() -> None:
    for journal in _JOURNALS:
        journal._start_over()  # noqa: SLF001  (of this module)


with contextlib.suppress(AttributeError):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)


def is_database(place: object) -> bool:
    """Return whether a place is the URL of a database."""
    return isinstance(place, str) and place.startswith(("postgresql://", "postgres://"))


def journal_at(place: "BaseJournal | str | os.PathLike[str]") -> BaseJournal:
    """
    Return the journal at a place: a file, or a database if it is a `postgresql://` URL.

    Raises:
        UsageError: The extra `postgres`, which a database needs, is not installed.
    """
    if isinstance(place, BaseJournal):
        return place
    if is_database(place):
        # By its name, since nothing else needs the extra.
        try:
            postgres = importlib.import_module("fuhu_runway.contrib.postgres")
        except ImportError as missing:
            raise usage_error(
                "journal",
                "A journal in a database needs the extra `postgres`.",
                'In a checkout: python -m pip install ".[postgres]".',
            ) from missing
        journal: BaseJournal = postgres.PostgresJournal(place)
        return journal
    return Journal(place)
