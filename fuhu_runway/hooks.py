"""
Events as frozen values, and the listeners that receive them.

Listeners are called at once and never awaited, and cannot change what happens: if one raises, that
is logged, and the listener is skipped. Events hold ids, counts and seconds, and no prompt, key or
URL. Each event is also a line in the standard log under "fuhu_runway", at its own `level`.

The events of one job share the number of its submission, which is unique in this process, until
there is a task id: `TaskSubmitted` holds both.
"""

import inspect
import json
import logging
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, ClassVar, Final

import attrs

from ._json import json_fields
from .errors import Fate
from .models import TaskState, usage_error

# No handler is added, not even a NullHandler, so that warnings, such as a paid task without a
# handle, reach stderr in programs that do not set up logging.
LOGGER: Final = logging.getLogger("fuhu_runway")

_BARE: Final = re.compile(r"[\w.:/-]+", re.ASCII)
_TRACEPARENT: Final = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@attrs.frozen
class Event:
    """Something that happened; the base of all events."""

    level: ClassVar[int] = logging.DEBUG

    def __init_subclass__(cls, level: int | None = None) -> None:
        # attrs creates each class twice; the second time it already has the level.
        if level is not None:
            cls.level = level

    def __str__(self) -> str:
        known = {name: value for name, value in self.as_dict().items() if value is not None}
        name = known.pop("event")
        return " ".join((name, *(f"{field}={_shown(value)}" for field, value in known.items())))

    def as_dict(self) -> dict[str, Any]:
        """Return the event's name, as `event`, and its fields, as values that JSON has."""
        return {"event": type(self).__name__, **json_fields(self)}


def _shown(value: Any) -> str:
    """Return a value as text for one log line; some values come from the gateway."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) and _BARE.fullmatch(value) else json.dumps(value)


@attrs.frozen
class SubmissionStarted(Event):
    """A submission began; nothing was sent yet."""

    submission: int
    #: The number of the client, unique in this process.
    client: int
    endpoint: str
    model: str | None
    #: Length of the clip, in seconds.
    clip_seconds: int | None


@attrs.frozen
class SubmissionHeld(Event):
    """A submission waits for a free slot: `tasks_in_flight` allows no more tasks."""

    submission: int
    #: The number of unfinished tasks.
    tasks: int


@attrs.frozen
class SubmissionSent(Event):
    """A paid request is being sent."""

    submission: int
    #: How often it has been sent, including this time.
    attempt: int


@attrs.frozen
class TaskSubmitted(Event, level=logging.INFO):
    """The gateway accepted a paid request."""

    task_id: str
    endpoint: str
    #: From the first attempt to the response, in seconds.
    seconds: float
    submission: int | None = None
    #: What the caller attached to the job.
    tag: str | None = None


@attrs.frozen
class SubmissionFailed(Event, level=logging.INFO):
    """A submission ended without a task; nothing was charged."""

    submission: int
    endpoint: str
    #: The name of the error; "CancelledError" if the caller was cancelled before it was sent.
    error: str
    fate: Fate


@attrs.frozen
class SubmissionDoubted(Event, level=logging.WARNING):
    """A paid request was sent and its fate is unknown; it is not sent again."""

    submission: int
    endpoint: str
    #: The name of the error that was raised instead of a response.
    error: str
    #: The task id in a damaged response, if any.
    task_id: str | None = None


@attrs.frozen
class SubmissionUnclaimed(Event, level=logging.WARNING):
    """The caller of a submit was cancelled while the request was in flight; the request went on."""

    endpoint: str
    #: Its task, or the id in a damaged response; None if there is neither.
    task_id: str | None
    #: The name of the error, if there is no task.
    error: str | None = None
    submission: int | None = None


@attrs.frozen
class SubmissionUnrecorded(Event, level=logging.ERROR):
    """The journal could not record what happened to a submission, so its job is in doubt."""

    #: The key of its job.
    key: str
    #: Why, in words without secrets.
    reason: str
    #: Its task, or the id in a damaged response; None if there is neither.
    task_id: str | None = None
    #: The name of the error, if there is no task.
    error: str | None = None
    #: None if it began in another process, or the gateway's lists showed its outcome.
    submission: int | None = None


@attrs.frozen
class DoubtsFound(Event, level=logging.WARNING):
    """The journal holds jobs in doubt of earlier runs; reported once, at the first submission."""

    #: The number of these jobs.
    jobs: int


@attrs.frozen
class TaskAttached(Event):
    """
    A task that was submitted before is followed here: by its id, or from the journal.

    Emitted when a handle is made from an id or a row of the journal. For a task that an earlier
    process left in `Client.unfinished`, emitted once, before the first wait for it or poll of it.
    """

    task_id: str
    #: The number of the client, unique in this process.
    client: int
    #: The endpoint it was submitted to; None if only the id is known.
    endpoint: str | None = None
    model: str | None = None
    #: Length of the clip, in seconds.
    clip_seconds: int | None = None
    #: The W3C Trace Context of its submission.
    traceparent: str | None = None


@attrs.frozen
class RetryScheduled(Event, level=logging.INFO):
    """A request did not succeed and will be sent again."""

    endpoint: str
    #: How often it has been sent so far.
    attempt: int
    #: Until the retry, in seconds.
    delay: float
    #: The name of the error, such as "RateLimited".
    error: str
    #: The submission, if it is a paid request.
    submission: int | None = None
    #: The task that was polled, if it was a poll.
    task_id: str | None = None


@attrs.frozen
class PaceChanged(Event, level=logging.INFO):
    """The gateway refuses requests above a certain rate, and the client keeps to that rate."""

    #: The rate in requests per second; a higher one is tried again from time to time.
    rate: float


@attrs.frozen
class PaceHeld(Event, level=logging.INFO):
    """The gateway refuses every request: the client pauses, then sends a single one."""

    #: Until that request, in seconds; the gateway's Retry-After, if that is longer than ours.
    delay: float


@attrs.frozen
class PaceLost(Event, level=logging.WARNING):
    """The database of a shared pace cannot be used; until it can, nothing is sent."""

    #: Why, in words without secrets.
    reason: str


@attrs.frozen
class PaceRecovered(Event, level=logging.INFO):
    """The pace after `PaceHeld` or `PaceLost` is over, or the limit of `PaceChanged` is gone."""

    #: The rate now, in requests per second; None means no limit.
    rate: float | None


@attrs.frozen
class TaskPolled(Event):
    """A poll of a task got a response."""

    task_id: str
    state: TaskState
    progress: float | None
    #: How often this wait has polled so far.
    polls: int


@attrs.frozen
class PollFailed(Event, level=logging.INFO):
    """A poll of a task failed; the wait goes on."""

    task_id: str
    error: str
    #: Until the next poll, in seconds.
    delay: float


@attrs.frozen
class UnknownWordSeen(Event, level=logging.WARNING):
    """The gateway used a status that no source documents; reported once per task."""

    task_id: str
    word: str


@attrs.frozen
class ContradictionSeen(Event, level=logging.WARNING):
    """A response said two things that cannot both be true; reported once per task."""

    task_id: str
    note: str


@attrs.frozen
class WaitFailed(Event, level=logging.INFO):
    """A wait ended with an error before its task ended; the task goes on."""

    task_id: str
    #: The name of the error, such as "WaitTimeout".
    error: str


@attrs.frozen
class TaskSettled(Event, level=logging.INFO):
    """A task ended."""

    task_id: str
    state: TaskState
    #: How often it was polled.
    polls: int
    points: float | None
    refunded: bool
    #: The model; None if it is not known in this process.
    model: str | None = None
    #: What the caller attached to the job.
    tag: str | None = None


@attrs.frozen
class ClipHandedOut(Event, level=logging.DEBUG):
    """A wait returned the clip of a task to its caller."""

    task_id: str


@attrs.frozen
class JobEnded(Event, level=logging.INFO):
    """A job of `Client.start` or `Client.run` ended."""

    task_id: str
    #: The caller's name for the job, and what the caller attached to it.
    custom_id: str | None = None
    tag: str | None = None
    #: The name of the error; None if the clip was saved, or handed out.
    error: str | None = None


@attrs.frozen
class DownloadStarted(Event, level=logging.INFO):
    """The bytes of a clip begin to arrive."""

    task_id: str
    #: Where the download continues, in bytes; 0 for a fresh start.
    resumed_at_bytes: int
    #: The size of the whole file; None if the server does not say.
    total_bytes: int | None


@attrs.frozen
class DownloadBroken(Event, level=logging.INFO):
    """A download broke off and will continue."""

    task_id: str
    #: The bytes on disk.
    received_bytes: int
    #: Until it continues, in seconds.
    delay: float


@attrs.frozen
class DownloadFinished(Event, level=logging.INFO):
    """A clip has arrived, complete and verified."""

    task_id: str
    total_bytes: int
    #: Whether it is in a file; False if the program read or streamed it.
    is_saved: bool = True


@attrs.frozen
class DownloadFailed(Event, level=logging.INFO):
    """A clip could not be saved, or its download was cancelled; it may be downloaded again."""

    task_id: str
    #: The bytes that were kept on disk.
    received_bytes: int
    #: The name of the error.
    error: str


@attrs.frozen
class ClientClosed(Event):
    """A client was closed in one event loop; its waits and downloads there have ended."""

    #: The number of the client, unique in this process.
    client: int


@attrs.frozen
class CallbackReceived(Event):
    """A webhook for a task arrived. It makes a poll due, and its content is not trusted."""

    task_id: str
    #: The state it reports; UNKNOWN if it cannot be read.
    state: TaskState


@attrs.frozen
class CallbackRefused(Event, level=logging.INFO):
    """A webhook for a task was refused, since its content cannot be true."""

    #: The task that the address belongs to; None if it is not known.
    task_id: str | None
    reason: str


@attrs.frozen
class CallbacksMissing(Event, level=logging.WARNING):
    """Tasks end without any webhook, so the public address may be wrong; reported once."""

    #: The number of tasks that have ended.
    tasks: int


@attrs.frozen
class SubmissionFound(Event, level=logging.WARNING):
    """The task of a submission without a response was found, by a webhook or in the list."""

    endpoint: str
    task_id: str


@attrs.frozen
class DoubtSettled(Event, level=logging.WARNING):
    """The gateway's own lists showed what happened to a submission in doubt."""

    #: The key of its job.
    key: str
    #: What proved it: "list of tasks" or "log of the key".
    proof: str
    #: Its task; None if it was not accepted, so that it may be submitted again.
    task_id: str | None = None


@attrs.frozen
class ReconciliationFailed(Event, level=logging.WARNING):
    """The gateway's own lists could not be read; every submission in doubt stays in doubt."""

    #: The name of the error, such as "Unauthorized".
    error: str


Listener = Callable[[Event], object]
"""
A function that is called with each event; not a coroutine function, since it is never awaited.

It may also be an object with `__call__` and a method `trace_of(submission)`, which returns the
submission's W3C Trace Context (`traceparent`), or None. The journal keeps it, so that a later
process can link its own work to the same trace.
"""


class Hooks:
    """The listeners of one client."""

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        if not isinstance(listeners, Iterable):
            raise usage_error(
                "hooks",
                f"hooks is of type {type(listeners).__name__}.",
                "Use a list of functions.",
            )
        given: tuple[Any, ...] = tuple(listeners)
        for listener in given:
            calls = (listener, getattr(type(listener), "__call__", None))  # noqa: B004  (of the type)
            is_async = any(map(inspect.iscoroutinefunction, calls))
            if not callable(listener) or isinstance(listener, type) or is_async:
                raise usage_error(
                    "hooks",
                    "One of hooks is a class, an async function, or not callable.",
                    "Use plain functions: they are called at once and never awaited.",
                )
        #: Each with the kinds of events that it is called with.
        self._listeners: tuple[tuple[Listener, tuple[type[Event], ...]], ...] = tuple(
            (listener, (Event,)) for listener in given
        )

    def add(self, listener: Listener, kinds: tuple[type[Event], ...] = (Event,)) -> None:
        """Add a listener to events of these kinds."""
        if (listener, kinds) not in self._listeners:
            self._listeners = (*self._listeners, (listener, kinds))

    def is_enabled_for(self, kind: type[Event]) -> bool:
        """Return whether an event of this kind is received or logged; else it need not be made."""
        is_received = any(issubclass(kind, kinds) for _, kinds in self._listeners)
        return is_received or LOGGER.isEnabledFor(kind.level)

    def emit(self, event: Event) -> None:
        """Log the event and call every listener; an exception of a listener is logged."""
        if LOGGER.isEnabledFor(event.level):
            _called(_log, event, type(event).__name__)
        for listener, kinds in self._listeners:
            if isinstance(event, kinds):
                result = _called(listener, event, type(event).__name__)
                if inspect.iscoroutine(result):
                    result.close()
                    LOGGER.warning("A hook returned a coroutine, and hooks are never awaited.")

    def trace_of(self, submission: int) -> str | None:
        """Return a submission's trace context, from the first listener that has one, or None."""
        for listener, _ in self._listeners:
            trace_of = getattr(listener, "trace_of", None)
            found = None if trace_of is None else _called(trace_of, submission, "trace_of")
            # It goes into the journal, so it must be an id and nothing else.
            if isinstance(found, str) and _TRACEPARENT.fullmatch(found):
                return found
        return None


def _log(event: Event) -> None:
    LOGGER.log(event.level, "%s", event, extra={"event": event})


def _called(listener: Callable[[Any], object], argument: Event | int, name: str) -> object:
    """Call a listener; whatever it raises, the caller goes on unless the program is to end."""
    try:
        return listener(argument)
    except (KeyboardInterrupt, SystemExit):
        raise
    # Any other: the CancelledError of a task that it looks at, or the failure of a test, would end
    # a wait, a submission or a download half-way.
    except BaseException as exc:  # noqa: BLE001
        # The exception's text may quote anything, so only its class is logged.
        with suppress(Exception):  # a handler of the log may raise as well
            LOGGER.warning("A hook raised %s on %s and was skipped.", type(exc).__name__, name)
        return None
