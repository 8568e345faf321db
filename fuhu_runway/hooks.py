"""
Frozen events, and the list of listeners that hear them.

Listeners hear everything and decide nothing: they are called at once, are never awaited, and one
that raises is logged and skipped. Events hold ids, counts and seconds, and no prompt, key or
address. Each event is also a line in the standard log under "fuhu_runway", at its own `level`.
"""

import logging
from collections.abc import Callable, Iterable
from typing import ClassVar, Final

import attrs

from .models import TaskState

LOGGER: Final = logging.getLogger("fuhu_runway")


@attrs.frozen
class Event:
    """Something that happened; the base of all events."""

    level: ClassVar[int] = logging.DEBUG


@attrs.frozen
class TaskSubmitted(Event):
    """The gateway accepted a paid request."""

    level: ClassVar[int] = logging.INFO
    task_id: str
    endpoint: str
    #: From the first sending to the answer, in seconds.
    seconds: float


@attrs.frozen
class SubmissionUnclaimed(Event):
    """Whoever submitted was cancelled while the request was in the air, and it went on."""

    level: ClassVar[int] = logging.WARNING
    endpoint: str
    #: The task that came of it; None where that stayed unknown, or it was refused.
    task_id: str | None
    #: What became of it otherwise: the name of the error.
    error: str | None = None


@attrs.frozen
class RetryScheduled(Event):
    """A request did not succeed and will be sent again."""

    level: ClassVar[int] = logging.INFO
    endpoint: str
    #: How often it has been sent so far.
    attempt: int
    #: Until it is sent again, in seconds.
    delay: float
    #: The name of the error, such as "RateLimited".
    error: str


@attrs.frozen
class PaceChanged(Event):
    """The gateway refused for being too fast, and everything on this client slows down."""

    level: ClassVar[int] = logging.INFO
    #: From now on, in requests per second; lower if more of the same burst are refused.
    rate: float
    #: How long nothing is sent at all, in seconds; None where the gateway did not ask.
    retry_after: float | None


@attrs.frozen
class TaskPolled(Event):
    """A look at a task was answered."""

    task_id: str
    state: TaskState
    progress: float | None
    #: How often this wait has looked so far.
    polls: int


@attrs.frozen
class PollFailed(Event):
    """A look at a task failed; the wait goes on."""

    level: ClassVar[int] = logging.INFO
    task_id: str
    error: str
    #: Until the next look, in seconds.
    delay: float


@attrs.frozen
class UnknownWordSeen(Event):
    """The gateway used a word for the task's state that no source documents; told once a task."""

    level: ClassVar[int] = logging.WARNING
    task_id: str
    word: str


@attrs.frozen
class ContradictionSeen(Event):
    """An answer said two things that cannot both be true; told once a task."""

    level: ClassVar[int] = logging.WARNING
    task_id: str
    note: str


@attrs.frozen
class TaskSettled(Event):
    """A task came to its end."""

    level: ClassVar[int] = logging.INFO
    task_id: str
    state: TaskState
    #: How often it was looked at.
    polls: int
    points: float | None
    refunded: bool


@attrs.frozen
class DownloadStarted(Event):
    """Bytes of a clip begin to arrive."""

    level: ClassVar[int] = logging.INFO
    task_id: str
    #: Where it goes on, in bytes; 0 for a fresh start.
    resumed_at_bytes: int
    #: The size of the whole file; None where the server does not say.
    total_bytes: int | None


@attrs.frozen
class DownloadFinished(Event):
    """A clip is on disk, whole and verified."""

    level: ClassVar[int] = logging.INFO
    task_id: str
    total_bytes: int


Listener = Callable[[Event], None]


class Hooks:
    """The listeners of one client."""

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._listeners = tuple(listeners)

    def add(self, listener: Listener) -> None:
        """Have one more listen, from now on."""
        if listener not in self._listeners:
            self._listeners = (*self._listeners, listener)

    def are_heard(self, kind: type[Event]) -> bool:
        """Whether an event of this kind reaches anybody; for events that come by the thousand."""
        return bool(self._listeners) or LOGGER.isEnabledFor(kind.level)

    def emit(self, event: Event) -> None:
        """Tell everyone; whatever a listener does, the caller goes on."""
        if LOGGER.isEnabledFor(event.level):
            LOGGER.log(event.level, "%s", event)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # noqa: BLE001  (whatever a listener does, the caller goes on)
                # The listener's own fault may quote what it pleases, so only its place is told.
                LOGGER.warning("A hook raised on %s and was skipped.", type(event).__name__)
