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

import importlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from ._journal import actions
from ._journal.actions import LONGEST, Action
from ._journal.base import BaseJournal
from ._journal.file import perform, work
from ._journal.notes import Note, write
from ._journal.plans import fingerprint, hash_prompt, nth, plan_of, planned
from ._journal.states import CHARGE, STEPS, Job, JobState, Plan
from ._journal.writer import Call, report
from .errors import JournalBusy
from .models import usage_error

__all__ = [
    "CHARGE",
    "LONGEST",
    "STEPS",
    "BaseJournal",
    "Job",
    "JobState",
    "Journal",
    "Plan",
    "fingerprint",
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
        self._is_parents = False
        super().__init__(partial(work, self.path, wait))

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    async def start_run(self) -> None:
        """
        Count occurrences of equal requests from zero.

        Raises:
            JournalError: The file cannot be used, such as `JournalBusy`.
        """
        await self._perform(actions.start_run)

    async def plan_next(self, plan: Plan, now: float) -> Job:
        """
        Return the row of the next job with this content in this run, made if there is none.

        Its key is the keyed fingerprint and how often that has come up in the run so far.

        Raises:
            JournalError: The file cannot be used, such as `JournalBusy`, or cannot hold the row.
        """
        return await self._perform(lambda: actions.plan_next(plan, now))

    def _write(self, note: Note) -> None:
        call = Call(partial(perform, action=write([note])))
        try:
            self._check_own()
        except JournalBusy as busy:
            report([(call, None, busy)])
        else:
            self._writer.send(call)

    async def _shown(self) -> list[Job]:
        # A look must not make the file.
        return await super()._shown() if self._writer.is_open or self.path.exists() else []

    async def _perform(
        self,
        make: Callable[[], Action[T]],
        *,
        is_outcome: bool = False,  # noqa: ARG002  (a file is always within reach)
        undo: Callable[[], Action[None]] | None = None,  # noqa: ARG002
    ) -> T:
        self._check_own()
        return await self._writer.run(lambda db: perform(db, make()))

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
