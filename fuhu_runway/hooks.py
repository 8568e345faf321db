"""
Frozen events, and the list of listeners that hear them.

Listeners hear everything and decide nothing: they are called at once, are never awaited, and one
that raises is logged and skipped. Events hold ids, counts and seconds, and no prompt, key or
address. Each event is also a line in the standard log under "fuhu_runway", at its own `level`.

What belongs to one job is tied together by the number of its submission, which is unique in this
process, until the gateway has given a task id: `TaskSubmitted` holds both.
"""

import enum
import inspect
import json
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final

import attrs

from .errors import Fate
from .models import TaskState, usage_error

# Without a handler of ours, not even one that drops everything: what needs attention, such as a
# paid task without a handle, then shows on stderr also where logging is not set up.
LOGGER: Final = logging.getLogger("fuhu_runway")

_BARE: Final = re.compile(r"[\w.:/-]+", re.ASCII)
_TRACEPARENT: Final = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@attrs.frozen
class Event:
    """Something that happened; the base of all events."""

    level: ClassVar[int] = logging.DEBUG

    def __str__(self) -> str:
        known = {name: value for name, value in self.as_dict().items() if value is not None}
        name = known.pop("event")
        return " ".join((name, *(f"{field}={_shown(value)}" for field, value in known.items())))

    def as_dict(self) -> dict[str, Any]:
        """Return the event's name, as `event`, and its fields, in values that JSON has."""
        values = {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}
        return {"event": type(self).__name__, **{name: _plain(v) for name, v in values.items()}}


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _shown(value: Any) -> str:
    """Return a value for one line of a log; some of the words are the gateway's."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) and _BARE.fullmatch(value) else json.dumps(value)


@attrs.frozen
class SubmissionStarted(Event):
    """A paid request was asked for; nothing was sent yet."""

    submission: int
    #: The number of the client, unique in this process.
    client: int
    endpoint: str
    model: str | None
    #: Length of the clip, in seconds.
    clip_seconds: int | None


@attrs.frozen
class SubmissionHeld(Event):
    """A submission waits for others to end: `tasks_in_flight` allows no more tasks."""

    submission: int
    #: How many tasks there are.
    tasks: int


@attrs.frozen
class SubmissionSent(Event):
    """It is a paid request's turn, and it goes out."""

    submission: int
    #: How often it has been sent, this time included.
    attempt: int


@attrs.frozen
class TaskSubmitted(Event):
    """The gateway accepted a paid request."""

    level: ClassVar[int] = logging.INFO
    task_id: str
    endpoint: str
    #: From the first sending to the answer, in seconds.
    seconds: float
    submission: int | None = None
    #: What the caller attached to the job.
    tag: str | None = None


@attrs.frozen
class SubmissionFailed(Event):
    """A submission ended without a task; nothing was charged."""

    level: ClassVar[int] = logging.INFO
    submission: int
    endpoint: str
    #: The name of the error; "CancelledError" where the caller left before it was sent.
    error: str
    fate: Fate


@attrs.frozen
class SubmissionDoubted(Event):
    """A paid request was sent and its fate is unknown; it is not sent again."""

    level: ClassVar[int] = logging.WARNING
    submission: int
    endpoint: str
    #: The name of the error that came in place of an answer.
    error: str
    #: The task that a damaged answer named, if any.
    task_id: str | None = None


@attrs.frozen
class SubmissionUnclaimed(Event):
    """The caller of a submit was cancelled while the request was in flight, and it went on."""

    level: ClassVar[int] = logging.WARNING
    endpoint: str
    #: The task that came of it, or that a damaged answer named; None where there is none.
    task_id: str | None
    #: What became of it otherwise: the name of the error.
    error: str | None = None
    submission: int | None = None


@attrs.frozen
class DoubtsFound(Event):
    """The journal holds jobs in doubt from before; reported once, at the first submission."""

    level: ClassVar[int] = logging.WARNING
    #: How many they are.
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
    #: What was asked for; None where only the id is known.
    endpoint: str | None = None
    model: str | None = None
    #: Length of the clip, in seconds.
    clip_seconds: int | None = None
    #: Where the submission was traced, as W3C Trace Context has it.
    traceparent: str | None = None


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
    #: Of a paid request.
    submission: int | None = None
    #: The task that was asked about, where there is one.
    task_id: str | None = None


@attrs.frozen
class PaceChanged(Event):
    """The gateway was found to refuse what is faster than this, and this client keeps to it."""

    level: ClassVar[int] = logging.INFO
    #: What gets through, in requests per second; faster is tried again from time to time.
    rate: float


@attrs.frozen
class PaceHeld(Event):
    """The gateway refuses everything: this client pauses, and then one request tries for all."""

    level: ClassVar[int] = logging.INFO
    #: Until that request, in seconds; what the gateway asked for, if that is longer than our own.
    delay: float


@attrs.frozen
class PaceRecovered(Event):
    """A request got through after `PaceHeld`, or the limit of `PaceChanged` is gone."""

    level: ClassVar[int] = logging.INFO
    #: The pace now, in requests per second; None is no limit.
    rate: float | None


@attrs.frozen
class TaskPolled(Event):
    """A poll of a task was answered."""

    task_id: str
    state: TaskState
    progress: float | None
    #: How often this wait has polled so far.
    polls: int


@attrs.frozen
class PollFailed(Event):
    """A poll of a task failed; the wait goes on."""

    level: ClassVar[int] = logging.INFO
    task_id: str
    error: str
    #: Until the next poll, in seconds.
    delay: float


@attrs.frozen
class UnknownWordSeen(Event):
    """The gateway used a status that no source documents; reported once per task."""

    level: ClassVar[int] = logging.WARNING
    task_id: str
    word: str


@attrs.frozen
class ContradictionSeen(Event):
    """An answer said two things that cannot both be true; reported once per task."""

    level: ClassVar[int] = logging.WARNING
    task_id: str
    note: str


@attrs.frozen
class WaitFailed(Event):
    """A wait ended before its task did, by whatever but a cancellation; the task goes on."""

    level: ClassVar[int] = logging.INFO
    task_id: str
    #: The name of the error, such as "WaitTimeout".
    error: str


@attrs.frozen
class TaskSettled(Event):
    """A task came to its end."""

    level: ClassVar[int] = logging.INFO
    task_id: str
    state: TaskState
    #: How often it was polled.
    polls: int
    points: float | None
    refunded: bool
    #: The model that made it; None where that is not known here.
    model: str | None = None
    #: What the caller attached to the job.
    tag: str | None = None


@attrs.frozen
class ClipHandedOut(Event):
    """A wait returned the clip of a task to its caller."""

    level: ClassVar[int] = logging.DEBUG
    task_id: str


@attrs.frozen
class JobEnded(Event):
    """A job that `Client.start` follows in the background came to its end."""

    level: ClassVar[int] = logging.INFO
    task_id: str
    #: The caller's own name for it, and what the caller attached to it.
    custom_id: str | None = None
    tag: str | None = None
    #: The name of the error; None where the clip was saved, or handed out.
    error: str | None = None


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
class DownloadBroken(Event):
    """A download broke off and will go on."""

    level: ClassVar[int] = logging.INFO
    task_id: str
    #: What is on disk.
    received_bytes: int
    #: Until it goes on, in seconds.
    delay: float


@attrs.frozen
class DownloadFinished(Event):
    """A clip has arrived, whole and verified."""

    level: ClassVar[int] = logging.INFO
    task_id: str
    total_bytes: int
    #: Whether it is in a file; False if the program read or streamed it.
    is_saved: bool = True


@attrs.frozen
class DownloadFailed(Event):
    """A clip could not be saved, or its download was cancelled; it may be downloaded again."""

    level: ClassVar[int] = logging.INFO
    task_id: str
    #: What was kept on disk.
    received_bytes: int
    #: The name of the error.
    error: str


@attrs.frozen
class ClientClosed(Event):
    """A client was closed in one event loop; nothing that is outstanding there goes on."""

    #: The number of the client, unique in this process.
    client: int


@attrs.frozen
class CallbackReceived(Event):
    """A webhook came to the address of a task. It makes a poll due, and proves nothing."""

    task_id: str
    #: What it says of the task; UNKNOWN where it says nothing that can be read.
    state: TaskState


@attrs.frozen
class CallbackRefused(Event):
    """A webhook came to the address of a task, and was refused: it cannot be true."""

    level: ClassVar[int] = logging.INFO
    #: The task whose address it was; None where that is not known.
    task_id: str | None
    reason: str


@attrs.frozen
class CallbacksMissing(Event):
    """Tasks end and no webhook ever comes, so the public address may be wrong; reported once."""

    level: ClassVar[int] = logging.WARNING
    #: How many have ended.
    tasks: int


@attrs.frozen
class SubmissionFound(Event):
    """A webhook named the task of a submission without a response, and the feed confirms it."""

    level: ClassVar[int] = logging.WARNING
    endpoint: str
    task_id: str


Listener = Callable[[Event], object]
"""
A function that is called with each event; a plain one, since it is never awaited.

An object that is called so may also have a method `trace_of`, which is given the number of a
submission and gives where that is traced, as W3C Trace Context has it (`traceparent`), or None.
The journal keeps it, so that a later process can link what it does to the same trace.
"""


def _is_async(listener: object) -> bool:
    return any(map(inspect.iscoroutinefunction, (listener, type(listener).__call__)))


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
            if not callable(listener) or isinstance(listener, type) or _is_async(listener):
                raise usage_error(
                    "hooks",
                    "One of hooks is a class, an async function, or nothing that can be called.",
                    "Use plain functions: they are called at once and never awaited.",
                )
        self._listeners: tuple[Listener, ...] = given

    def add(self, listener: Listener) -> None:
        """Add a listener, from now on."""
        if listener not in self._listeners:
            self._listeners = (*self._listeners, listener)

    def are_heard(self, kind: type[Event]) -> bool:
        """Whether an event of this kind has a listener; for events that come by the thousand."""
        return bool(self._listeners) or LOGGER.isEnabledFor(kind.level)

    def emit(self, event: Event) -> None:
        """Call every listener; whatever one of them does, the caller goes on."""
        if LOGGER.isEnabledFor(event.level):
            LOGGER.log(event.level, "%s", event, extra={"event": event})
        for listener in self._listeners:
            try:
                result = listener(event)
                if inspect.iscoroutine(result):
                    result.close()
                    LOGGER.warning("A hook gave a coroutine, and hooks are never awaited.")
            except Exception as exc:  # noqa: BLE001  (whatever a listener does, the caller goes on)
                # The exception's own text may quote anything, so only its class is logged.
                fault, name = type(exc).__name__, type(event).__name__
                LOGGER.warning("A hook raised %s on %s and was skipped.", fault, name)

    def trace_of(self, submission: int) -> str | None:
        """Return where a submission is traced, by the first listener that can tell; or None."""
        for listener in self._listeners:
            tell = getattr(listener, "trace_of", None)
            try:
                told = tell(submission) if tell is not None else None
            except Exception as exc:  # noqa: BLE001  (whatever a listener does, the caller goes on)
                fault = type(exc).__name__
                LOGGER.warning("A hook raised %s on trace_of and was skipped.", fault)
                continue
            # It goes into the journal, so it has to be an id and nothing else.
            if isinstance(told, str) and _TRACEPARENT.fullmatch(told):
                return told
        return None
