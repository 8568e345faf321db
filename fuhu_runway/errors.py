"""
The tree of everything that can be raised, each leaf saying what happened to the request.

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
No text, and no field, ever holds a key, a prompt, a signed URL or an IP address, so an error
may be logged, pickled and sent around as it is. Durations are in seconds.
"""

import enum
import functools
import re
import sys
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import attrs

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


class Fate(enum.Enum):
    """What is known about a request that did not simply succeed (api-facts 5.2)."""

    UNSENT = "unsent"
    """It provably never reached the gateway."""
    REFUSED = "refused"
    """It was turned away whole, for now: the same request may be welcome later."""
    UNKNOWN = "unknown"
    """It may have been accepted and charged."""
    REJECTED = "rejected"
    """It was turned away for good: the same request will be turned away again."""


def sentence(text: str) -> str:
    """Return *text* with one full stop at its end; words quoted there may bring their own."""
    ended = text if not text or text.endswith(tuple(".!?。！？…")) else f"{text}."
    return re.sub(r"(?<!\.)(\.|\.{3}|[!?。！？…])\.$", r"\1", ended)


@attrs.define(eq=False, slots=False)
class RunwayError(Exception):
    """
    Something did not go as asked; the root of every exception that this package raises.

    The fields are positional, so that every error pickles and copies with all it knows.
    """

    #: What happened, in one sentence.
    happened: str = attrs.field(converter=sentence)
    #: What it means for the money, in one sentence.
    money: str = attrs.field(converter=sentence)
    #: What to do next, in one sentence.
    advice: str = attrs.field(converter=sentence)
    #: The task concerned, where there is one.
    task_id: str | None = None
    #: The gateway's own name for the exchange, where it gave one; its support asks for it.
    request_id: str | None = None

    def __str__(self) -> str:
        names = {"task": self.task_id, "request": self.request_id}
        known = ", ".join(f"{what} {name}" for what, name in names.items() if name)
        text = f"{self.happened} {self.money} {self.advice}"
        return f"{text} ({known})" if known else text


@attrs.define(eq=False, slots=False)
class UsageError(RunwayError, ValueError):
    """The call itself is wrong: it was not sent, and nothing was charged."""

    #: The argument or field that is wrong.
    field: str | None = None


@attrs.define(eq=False, slots=False)
class TransportError(RunwayError):
    """No usable answer came back."""

    #: What is known about the request that got no answer.
    fate: Fate = Fate.UNKNOWN


class NotSent(TransportError, ConnectionError):
    """The request provably never reached the gateway: nothing was charged."""


class NoReply(TransportError, TimeoutError):
    """A free request got no whole answer in time, or its connection broke: nothing was charged."""


class SubmissionInDoubt(TransportError):
    """
    A paid request whose fate is unknown: it may have been accepted, and is never sent again.

    `task_id` is the task that the answer names, if it names one: `client.task(task_id)` follows
    it. `__cause__` says what was seen in place of an acceptance.
    """


@attrs.define(eq=False, slots=False)
class GatewayError(RunwayError):
    """The gateway answered, and the answer is no."""

    #: HTTP status of the answer.
    status: int = 0
    #: The gateway's own code for it, such as "task_not_exist".
    code: str | None = None
    #: The gateway's own words, with secrets taken out.
    message: str | None = None
    #: How long the gateway asks to be left alone, in seconds.
    retry_after: float | None = None
    #: What is known about the request.
    fate: Fate = Fate.REJECTED
    #: The shape of the answer with every text in it hidden, as of an `UnreadableReply`.
    body: str = ""


class InvalidRequest(GatewayError):
    """The gateway does not accept these arguments, now or later."""


class Unauthorized(GatewayError):
    """The key is missing, wrong, expired, blocked, or may not do this."""


class OutOfCredits(GatewayError):
    """The account or the key has nothing left to spend, in whatever status that was dressed."""


class NotFound(GatewayError):
    """The gateway knows no such task, or has nothing at this address."""


class RateLimited(GatewayError):
    """The gateway asks for fewer requests, and took none of this one."""


class GatewayDown(GatewayError):
    """The gateway or what is behind it is in trouble."""


class ModelUnavailable(GatewayDown):
    """No channel behind the gateway offers this model to this key at the moment."""


@attrs.define(eq=False, slots=False)
class UnreadableReply(RunwayError):
    """An answer came that no known dialect fits."""

    #: HTTP status of the answer.
    status: int = 0
    #: What was missing or wrong, each with its place, such as "required field missing @ $.task_id".
    reasons: tuple[str, ...] = ()
    #: The shape of the answer with every text in it hidden.
    excerpt: str = ""
    #: What is known about the request.
    fate: Fate = Fate.UNKNOWN


class TaskError(RunwayError):
    """A paid task that gave no clip, or has not yet."""


@attrs.define(eq=False, slots=False)
class TaskFailed(TaskError):
    """The work itself failed: there will be no clip."""

    #: The gateway's reason, with secrets taken out.
    reason: str | None = None
    #: The machine's name for the reason, where the gateway gave one.
    code: str | None = None
    #: Points that the task used, in the gateway's unit; None where it did not say.
    points: float | None = None
    #: Whether the gateway said that the points were given back.
    refunded: bool = False


class TaskCanceled(TaskFailed):
    """The task was cancelled at the gateway: there will be no clip."""


class ClipMissing(TaskError):
    """The gateway calls the task a success and shows no address for the clip."""


@attrs.define(eq=False, slots=False)
class WaitTimeout(TaskError, TimeoutError):
    """We stopped waiting; the task goes on, and may be waited for again."""

    #: How long was waited, in seconds.
    timeout: float = 0.0


class WaitAbandoned(TaskError):
    """The client was closed during a wait, or `end_waits` was called; the task goes on."""


class DownloadError(RunwayError):
    """The clip exists and is paid for, and its file is not here yet."""


@attrs.define(eq=False, slots=False)
class DownloadIncomplete(DownloadError):
    """The bytes did not all arrive; those that did are kept and the next attempt goes on there."""

    #: How many bytes are kept.
    received_bytes: int = 0


class ClipChanged(DownloadIncomplete):
    """The host sent another file after a stream had handed out bytes: start the stream again."""


class DownloadRefused(DownloadError):
    """What came is not a clip, or is more than was allowed, or may not be written there."""


class UnexpectedError(RunwayError):
    """An error that this package does not foresee ended one job of a batch."""


@attrs.define(eq=False, slots=False)
class JournalError(RunwayError):
    """The journal cannot be read or written, so nothing is sent that it could not remember."""


@attrs.define(eq=False, slots=False)
class JournalBusy(JournalError):
    """Another process has the journal open."""


@attrs.define(eq=False, slots=False)
class JournalTooNew(JournalError):
    """A newer version of this package wrote the journal."""


# Tools that report errors show the variables of each frame that an error passed. Those of this
# package hold keys, prompts and answers, and say nothing that the error does not say.


def drop_frames(error: E, outer: BaseException | None = None) -> E:
    """Return *error* without the frames that it, and what it came from, passed; not of *outer*."""
    waiting: list[BaseException | None] = [error]
    seen = {id(outer)}
    while waiting:
        link = waiting.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            waiting += [link.__cause__, link.__context__]
    return error


def discreet(call: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make a coroutine function raise its `RunwayError`s without the frames inside of it."""

    @functools.wraps(call)
    async def discreet_call(*args: P.args, **kwargs: P.kwargs) -> T:
        __tracebackhide__ = True
        outer = sys.exception()
        try:
            return await call(*args, **kwargs)
        except RunwayError as error:
            failure = error
        del args, kwargs
        raise drop_frames(failure, outer)

    return discreet_call


def discreetly_made(make: Callable[P, None]) -> Callable[P, None]:
    """Make an `__init__` raise its `RunwayError`s without the frames inside of it."""

    @functools.wraps(make)
    def discreet_make(*args: P.args, **kwargs: P.kwargs) -> None:
        __tracebackhide__ = True
        outer = sys.exception()
        try:
            return make(*args, **kwargs)
        except RunwayError as error:
            failure = error
        del args, kwargs
        raise drop_frames(failure, outer)

    return discreet_make


R = TypeVar("R", bound=RunwayError)


def copied(error: R) -> R:
    """Return an equal error: one that is raised twice would gather the tracebacks of both."""
    twin = type(error)(*(getattr(error, field.name) for field in type(error).__attrs_attrs__))
    twin.__cause__ = error.__cause__
    return twin
