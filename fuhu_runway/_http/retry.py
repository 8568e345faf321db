"""Decide whether and when a failed request is sent again; the only importer of `backoff`."""

import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final, TypeVar

import backoff

from fuhu_runway._wire.tables import Endpoint, Replay
from fuhu_runway.errors import (
    Fate,
    GatewayError,
    ModelUnavailable,
    RunwayError,
    SubmissionInDoubt,
    TransportError,
    UnreadableReply,
)
from fuhu_runway.hooks import Hooks, RetryScheduled
from fuhu_runway.models import RetryPolicy

T = TypeVar("T")

MAY_REPEAT: Final[Mapping[Fate, frozenset[Replay]]] = {
    Fate.UNSENT: frozenset(Replay),
    Fate.REFUSED: frozenset(Replay),
    Fate.UNKNOWN: frozenset({Replay.FREE}),
    Fate.REJECTED: frozenset(),
}
"""By the fate of a failed request, the kinds of requests that may be retried (api-facts 5.2)."""

MODEL_UNAVAILABLE_REPEATS: Final = 2
"""Retries after a `ModelUnavailable`, which need not be transient (api-facts 5.1)."""


def fate_of(error: RunwayError) -> Fate:
    """Return the fate of the request that ended in *error*."""
    if isinstance(error, TransportError | GatewayError | UnreadableReply):
        return error.fate
    return Fate.REJECTED


def delay_before(
    attempt: int, error: RunwayError, replay: Replay, policy: RetryPolicy, drawn: float
) -> float | None:
    """
    Return the delay before the next attempt, in seconds; None if the request is not sent again.

    It is the gateway's Retry-After, or else the random delay *drawn*.
    """
    if replay not in MAY_REPEAT[fate_of(error)] or attempt >= policy.attempts:
        return None
    if isinstance(error, ModelUnavailable) and attempt > MODEL_UNAVAILABLE_REPEATS:
        return None
    asked = error.retry_after if isinstance(error, GatewayError) else None
    if asked is None:
        return drawn
    return asked if asked <= policy.max_retry_after else None


def delays(policy: RetryPolicy) -> Iterator[float]:
    """Return random delays, each from 0 to an exponentially growing limit."""
    return map(backoff.full_jitter, _exponential(policy.first, policy.factor, policy.max_delay))


def exponential_intervals(first: float, factor: float, at_most: float) -> tuple[float, ...]:
    """Return exponential intervals up to *at_most*; the last one is used from then on."""
    if factor == 1 or first >= at_most:
        return (min(first, at_most),)
    # At most 1,000: a factor of hardly more than 1 takes millions of steps.
    steps = itertools.islice(_exponential(first, factor, at_most), 1000)
    return (*itertools.takewhile(lambda interval: interval < at_most, steps), at_most)


def _exponential(first: float, factor: float, at_most: float) -> Iterator[float]:
    steps = backoff.expo(base=factor, factor=first, max_value=at_most)
    next(steps)  # backoff's generators begin with a None
    return steps


async def with_retries(
    attempt: Callable[[], Awaitable[T]],
    endpoint: Endpoint,
    policy: RetryPolicy,
    pause: Callable[[float], Awaitable[None]],
    hooks: Hooks,
    *,
    task_id: str | None = None,
) -> T:
    """
    Return the result of a free request, *attempt*, retried as the table and the policy allow.

    Each retry emits an event.

    Raises:
        RunwayError: The error of the last attempt.
    """
    for count, drawn in enumerate(delays(policy), 1):
        try:
            return await attempt()
        except RunwayError as error:
            delay = delay_before(count, error, endpoint.replay, policy, drawn)
            if delay is None:
                raise
            name = type(error).__name__
            hooks.emit(RetryScheduled(endpoint.name, count, delay, name, task_id=task_id))
        await pause(delay)
    raise AssertionError  # pragma: no cover  (delays never end)


def in_doubt(error: RunwayError) -> SubmissionInDoubt:
    """Return the error for a paid request of unknown fate, with the task of its response."""
    way = f"client.task({error.task_id!r})" if error.task_id else "client.reconcile()"
    return SubmissionInDoubt(
        f"A paid request was sent and its fate is unknown. {error.happened}",
        "It may have been accepted and charged; it was not sent again.",
        f"Look for the task with {way} or in the gateway's list before you submit again.",
        error.task_id,
        error.request_id,
        Fate.UNKNOWN,
    )
