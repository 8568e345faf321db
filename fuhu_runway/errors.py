"""
The exception tree.

    RunwayError
    ├── UsageError (ValueError)
    ├── TransportError
    │   ├── NotSent (ConnectionError)
    │   ├── NoReply (TimeoutError)
    │   └── SubmissionInDoubt
    ├── GatewayError
    │   ├── InvalidRequest
    │   ├── Unauthorized
    │   ├── OutOfCredits
    │   ├── NotFound
    │   ├── RateLimited
    │   └── GatewayDown
    │       └── ModelUnavailable
    ├── UnreadableReply
    ├── UploadFailed
    ├── TaskError
    │   ├── TaskFailed
    │   │   └── TaskCanceled
    │   ├── ClipMissing
    │   ├── WaitTimeout (TimeoutError)
    │   └── WaitAbandoned
    ├── DownloadError
    │   ├── DownloadIncomplete
    │   │   └── ClipChanged
    │   └── DownloadRefused
    ├── UnexpectedError
    └── JournalError
        ├── JournalBusy
        └── JournalTooNew

Every text has three parts: what happened, what that means for the money, and what to do next.
No text and no field holds a key, a prompt, a signed URL or an IP address, so an error may be
logged, pickled and sent on as it is. Durations are in seconds.
"""

import enum
import functools
import inspect
import re
import sys
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import attrs

from ._guesses import ARGUMENTS, refuse_guesses

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


class Fate(enum.Enum):
    """What is known about a request that failed (api-facts 5.2)."""

    UNSENT = "unsent"
    """It provably never reached the gateway."""
    REFUSED = "refused"
    """It was refused for now: the same request may be accepted later."""
    UNKNOWN = "unknown"
    """It may have been accepted and charged."""
    REJECTED = "rejected"
    """It was refused for good: the same request will be refused again."""


def sentence(text: str) -> str:
    """Return *text* with exactly one full stop at its end."""
    ended = text if not text or text.endswith(tuple(".!?。！？…")) else f"{text}."
    return re.sub(r"(?<!\.)(\.|\.{3}|[!?。！？…])\.$", r"\1", ended)


@attrs.define(eq=False, slots=False)
class RunwayError(Exception):
    """
    The base of every exception that this package raises.

    The fields are positional, so that every error pickles and copies with all its fields.
    """

    #: What happened, in one sentence.
    happened: str = attrs.field(converter=sentence)
    #: What it means for the money, in one sentence.
    money: str = attrs.field(converter=sentence)
    #: What to do next, in one sentence.
    advice: str = attrs.field(converter=sentence)
    #: The id of the task, if there is one.
    task_id: str | None = None
    #: The gateway's id of the exchange, if it sent one; its support needs it.
    request_id: str | None = None

    def __str__(self) -> str:
        names = {"task": self.task_id, "request": self.request_id}
        known = ", ".join(f"{what} {name}" for what, name in names.items() if name)
        text = f"{self.happened} {self.money} {self.advice}"
        return f"{text} ({known})" if known else text


@attrs.define(eq=False, slots=False)
class UsageError(RunwayError, ValueError):
    """The call is wrong: nothing was sent or charged."""

    #: The argument or field that is wrong.
    field: str | None = None


@attrs.define(eq=False, slots=False)
class TransportError(RunwayError):
    """No usable response came back."""

    #: What is known about the request.
    fate: Fate = Fate.UNKNOWN


class NotSent(TransportError, ConnectionError):
    """The request provably never reached the gateway: nothing was charged."""


class NoReply(TransportError, TimeoutError):
    """A free request got no complete response in time or lost its connection; it costs nothing."""


class SubmissionInDoubt(TransportError):
    """
    A paid request whose fate is unknown: it may have been accepted, and is never sent again.

    `task_id` is the task that the response names, if it names one: `client.task(task_id)` follows
    it. `__cause__` is the error that occurred instead of an acceptance.
    """


@attrs.define(eq=False, slots=False)
class GatewayError(RunwayError):
    """The gateway refused the request."""

    #: HTTP status of the response.
    status: int = 0
    #: The gateway's own code for it, such as "task_not_exist".
    code: str | None = None
    #: The gateway's own words, with secrets taken out.
    message: str | None = None
    #: How long to wait before the next request, in seconds, if the gateway says so.
    retry_after: float | None = None
    #: What is known about the request.
    fate: Fate = Fate.REJECTED
    #: The shape of the response with every text in it hidden, as in `UnreadableReply.excerpt`.
    body: str = ""


class InvalidRequest(GatewayError):
    """The gateway does not accept these arguments, now or later."""


class Unauthorized(GatewayError):
    """The key is missing, wrong, expired, blocked, or may not do this."""


class OutOfCredits(GatewayError):
    """The account or the key has nothing left to spend, whatever the HTTP status is."""


class NotFound(GatewayError):
    """The gateway does not know the task, or has nothing at this address."""


class RateLimited(GatewayError):
    """The gateway asks for fewer requests, and did not accept this one."""


class GatewayDown(GatewayError):
    """The gateway, or a service behind it, is failing."""


class ModelUnavailable(GatewayDown):
    """No channel behind the gateway offers this model to this key at the moment."""


@attrs.define(eq=False, slots=False)
class UnreadableReply(RunwayError):
    """No known dialect fits the response."""

    #: HTTP status of the response.
    status: int = 0
    #: What is missing or wrong, each with its path, such as "required field missing @ $.task_id".
    reasons: tuple[str, ...] = ()
    #: The shape of the response with every text in it hidden.
    excerpt: str = ""
    #: What is known about the request.
    fate: Fate = Fate.UNKNOWN


class UploadFailed(RunwayError):
    """A local file could not be put where the gateway can fetch it: nothing was charged."""


class TaskError(RunwayError):
    """A paid task has no clip, or none yet."""


@attrs.define(eq=False, slots=False)
class TaskFailed(TaskError):
    """The task failed: there will be no clip."""

    #: The gateway's reason, with secrets taken out.
    reason: str | None = None
    #: The gateway's code for the reason, if it has one.
    code: str | None = None
    #: Points that the task used, in the gateway's unit; None if that is not known.
    points: float | None = None
    #: Whether the gateway said that the points were refunded.
    refunded: bool = False


class TaskCanceled(TaskFailed):
    """The task was cancelled at the gateway: there will be no clip."""


class ClipMissing(TaskError):
    """The gateway reports success without a URL of the clip."""


@attrs.define(eq=False, slots=False)
class WaitTimeout(TaskError, TimeoutError):
    """The wait timed out before the task ended; the task goes on, and may be waited for again."""

    #: How long the wait was, in seconds.
    timeout: float = 0.0


class WaitAbandoned(TaskError):
    """The client was closed during a wait, or `end_waits` was called; the task goes on."""


class DownloadError(RunwayError):
    """The clip exists and is paid for, and is not saved yet."""


@attrs.define(eq=False, slots=False)
class DownloadIncomplete(DownloadError):
    """Only a part of the clip arrived; it is kept, and the next download resumes there."""

    #: How many bytes are kept.
    received_bytes: int = 0


class ClipChanged(DownloadIncomplete):
    """The host sent another file after a stream had handed out bytes: start the stream again."""


class DownloadRefused(DownloadError):
    """The file is not a clip, is larger than allowed, or its URL must not be fetched."""


class UnexpectedError(RunwayError):
    """An unexpected error ended one job of a batch."""


class JournalError(RunwayError):
    """The journal cannot be read or written, so no paid request is sent."""


class JournalBusy(JournalError):
    """Another process has the journal open, or holds a lock in its database."""


class JournalTooNew(JournalError):
    """A newer version of this package wrote the journal."""


# Tools that report errors show the variables of each frame that an error passed. The frames of
# this package hold keys, prompts and responses, and add nothing to the text of the error.


def drop_frames(error: E, outer: BaseException | None = None) -> E:
    """Return *error* without its frames and those of its causes; *outer* keeps its own."""
    waiting: list[BaseException | None] = [error]
    seen = {id(outer)}
    while waiting:
        link = waiting.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            waiting += [link.__cause__, link.__context__]
    return error


def _check_guesses(
    call: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    __tracebackhide__ = True
    # Not in the wrapper, where each call that waits would keep the signature, a kilobyte.
    known, name = inspect.signature(call).parameters, call.__qualname__
    if "self" in known:  # named after the caller's object: a client inherits methods
        name = f"{type(args[0]).__name__}.{call.__name__}"
    refuse_guesses(name, kwargs, known)


def without_frames(
    call: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """
    Remove the frames of this package from the `RunwayError`s that a coroutine function raises.

    A wrong argument that users often guess raises a `TypeError` that names the right one.
    """

    @functools.wraps(call)
    async def frameless_call(*args: P.args, **kwargs: P.kwargs) -> T:
        __tracebackhide__ = True
        if kwargs.keys() & ARGUMENTS.keys():
            _check_guesses(call, args, kwargs)
        outer = sys.exception()
        try:
            return await call(*args, **kwargs)
        except RunwayError as error:
            failure = error
        del args, kwargs
        raise drop_frames(failure, outer)

    return frameless_call


def init_without_frames(make: Callable[P, None]) -> Callable[P, None]:
    """Do what `without_frames` does, for an `__init__`."""

    @functools.wraps(make)
    def frameless_init(*args: P.args, **kwargs: P.kwargs) -> None:
        __tracebackhide__ = True
        if kwargs.keys() & ARGUMENTS.keys():
            _check_guesses(make, args, kwargs)
        outer = sys.exception()
        try:
            return make(*args, **kwargs)
        except RunwayError as error:
            failure = error
        del args, kwargs
        raise drop_frames(failure, outer)

    return frameless_init


R = TypeVar("R", bound=RunwayError)


def copied(error: R) -> R:
    """Return an equal error: one that is raised twice would collect the tracebacks of both."""
    twin = attrs.evolve(error)
    twin.__cause__ = error.__cause__
    return twin
