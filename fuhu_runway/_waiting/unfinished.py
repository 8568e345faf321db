"""The list of unfinished tasks: paid for, and not yet saved, handed out or known to have failed."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import attrs

from fuhu_runway.models import TaskRecord

Name = tuple[str, str]
"""A task: the endpoint that is polled for it, and its id."""


@attrs.frozen
class Origin:
    """Where an unfinished task comes from."""

    #: When it was accepted, in seconds of the loop's clock; None if that is not known.
    accepted_at: float | None = None
    custom_id: str | None = None
    tag: str | None = None


ELSEWHERE: Final = Origin()
"""The origin of every task that was submitted elsewhere: one for all of thousands of waits."""


@attrs.define(eq=False)
class Unfinished:
    """
    The unfinished tasks, by endpoint and id.

    Handles are not kept, since their requests may hold whole pictures.
    """

    _tasks: dict[Name, Origin] = attrs.field(factory=dict)
    #: Tasks that were not submitted here; the gateway may not know them.
    _guesses: set[Name] = attrs.field(factory=set)
    #: How many downloads of each task's clip are running.
    _saving: Counter[Name] = attrs.field(factory=Counter)

    def __iter__(self) -> Iterator[tuple[Name, Origin]]:
        return iter(list(self._tasks.items()))  # other loops and threads may go on

    def __contains__(self, name: Name) -> bool:
        return name in self._tasks

    def tag_of(self, name: Name) -> str | None:
        """Return the tag that the caller attached to a task."""
        return self._tasks[name].tag if name in self._tasks else None

    def accepted(self, name: Name, origin: Origin) -> None:
        """Add a task that is paid for."""
        self._tasks[name] = origin
        self._guesses.discard(name)

    def waited_for(self, name: Name) -> None:
        """Add a task that a caller waits for; it may have been submitted elsewhere."""
        if name not in self._tasks:
            self._tasks[name] = ELSEWHERE
            self._guesses.add(name)

    @contextmanager
    def saving(self, name: Name, origin: Origin) -> Iterator[None]:
        """Keep a task on the list while its clip is being saved, and remove it afterwards."""
        self._tasks.setdefault(name, origin)
        self._saving[name] += 1
        try:
            yield
        finally:
            self._saving[name] -= 1
            if not self._saving[name]:
                del self._saving[name]
        self.done(name)

    def hand_out(self, name: Name) -> bool:
        """Remove a task whose clip goes to a caller, unless it is being saved; return whether."""
        if name not in self._tasks or name in self._saving:
            return False
        self.done(name)
        return True

    def seen(self, name: Name, record: TaskRecord) -> None:
        """Remove a task that has failed. One with a clip stays until that is saved."""
        if record.is_settled and not record.has_clip:
            self.done(name)

    def done(self, name: Name) -> None:
        """Remove a task whose clip is saved or handed out."""
        self._tasks.pop(name, None)
        self._guesses.discard(name)

    def not_found(self, name: Name) -> None:
        """Remove a task that the gateway does not know, unless it was paid for here."""
        if name in self._guesses:
            self.done(name)
