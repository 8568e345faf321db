"""Which tasks have not been seen to end, whoever let go of their handles."""

from collections.abc import Iterator

import attrs

from .models import TaskRecord

Name = tuple[str, str]
"""A task, by the endpoint that tells of it and its id."""


@attrs.define(eq=False)
class Outstanding:
    """
    The names of tasks that were paid for or waited for here, until their end is seen.

    Names, and no handles: what a handle holds, such as a picture in its request, may go as soon
    as nobody needs it. Instants are seconds of the loop's clock.
    """

    #: When each was accepted; None where it was not submitted from here.
    _tasks: dict[Name, float | None] = attrs.field(factory=dict)

    def __iter__(self) -> Iterator[tuple[Name, float | None]]:
        return iter(list(self._tasks.items()))  # other loops may go on

    def accepted(self, name: Name, at: float) -> None:
        """Keep a task that was paid for."""
        self._tasks[name] = at

    def waited_for(self, name: Name) -> None:
        """Keep a task that someone waits for."""
        self._tasks.setdefault(name, None)

    def seen(self, name: Name, record: TaskRecord) -> None:
        """Forget a task that has come to its end."""
        if record.is_settled:
            self._tasks.pop(name, None)

    def not_found(self, name: Name) -> None:
        """Forget a task that the gateway does not know, unless it was paid for here."""
        if self._tasks.get(name, 0.0) is None:
            del self._tasks[name]
