import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fuhu_runway._http.retry import (
    MAY_REPEAT,
    delay_before,
    delays,
    exponential_intervals,
    fate_of,
    with_retries,
)
from fuhu_runway._wire.tables import ENDPOINTS, Replay
from fuhu_runway.errors import (
    ClipMissing,
    DownloadIncomplete,
    Fate,
    GatewayDown,
    GatewayError,
    InvalidRequest,
    ModelUnavailable,
    NoReply,
    NotSent,
    RateLimited,
    RunwayError,
    TaskFailed,
    UnreadableReply,
    UsageError,
)
from fuhu_runway.hooks import Event, Hooks, RetryScheduled
from fuhu_runway.models import RetryPolicy

PAID, FREE = ENDPOINTS["text_to_video"], ENDPOINTS["feed"]
POLICY = RetryPolicy()
TEXTS = ("It broke.", "Nothing was charged.", "Call again.")


def gateway_error(kind: type[GatewayError], fate: Fate, retry_after: float | None = None) -> Any:
    """Return a refusal of that fate."""
    return kind(*TEXTS, "t-1", "r-1", 429, None, None, retry_after, fate)


ERRORS: dict[Fate, RunwayError] = {
    Fate.UNSENT: NotSent(*TEXTS, None, None, Fate.UNSENT),
    Fate.REFUSED: gateway_error(RateLimited, Fate.REFUSED),
    Fate.UNKNOWN: NoReply(*TEXTS, "t-1", "r-1", Fate.UNKNOWN),
    Fate.REJECTED: gateway_error(InvalidRequest, Fate.REJECTED),
}


class RecordedClock:
    """A clock that records each sleep instead of sleeping."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> float:
        return sum(self.slept)

    def wall(self) -> float:
        return self.now()

    async def sleep(self, delay: float) -> None:
        self.slept.append(delay)

    def call_at(self, when: float, action: Callable[[], None]) -> Any:
        raise NotImplementedError


class Sendings:
    """What each sending ends in, one after the other; what is no error is a response."""

    def __init__(self, *ends: object) -> None:
        self._ends: Iterator[object] = iter(ends)
        self.count = 0
        self.clock = RecordedClock()
        self.events: list[Event] = []

    async def send(self) -> object:
        self.count += 1
        end = next(self._ends)
        if isinstance(end, BaseException):
            raise end
        return end

    async def run(self, policy: RetryPolicy = POLICY, task_id: str | None = None) -> object:
        hooks = Hooks([self.events.append])
        return await with_retries(self.send, FREE, policy, self.clock.sleep, hooks, task_id=task_id)


# The table


@pytest.mark.parametrize(
    ("fate", "free", "paid"),
    [
        (Fate.UNSENT, True, True),
        (Fate.REFUSED, True, True),
        (Fate.UNKNOWN, True, False),
        (Fate.REJECTED, False, False),
    ],
)
def test_which_requests_may_be_retried(fate: Fate, free: bool, paid: bool) -> None:
    """A paid request is retried only if it was provably not accepted (api-facts 5.2)."""
    assert (Replay.FREE in MAY_REPEAT[fate]) is free
    assert (Replay.PAID in MAY_REPEAT[fate]) is paid


def test_the_table_is_complete() -> None:
    """Each fate has its row."""
    assert set(MAY_REPEAT) == set(Fate)


@pytest.mark.parametrize("fate", Fate)
@pytest.mark.parametrize("replay", Replay)
def test_the_delay_follows_the_table(fate: Fate, replay: Replay) -> None:
    """There is a delay before another attempt exactly if the table allows one."""
    delay = delay_before(1, ERRORS[fate], replay, POLICY, drawn=0.25)
    assert delay == (0.25 if replay in MAY_REPEAT[fate] else None)


@pytest.mark.parametrize(
    ("error", "fate"),
    [
        *[(error, fate) for fate, error in ERRORS.items()],
        (UnreadableReply(*TEXTS), Fate.UNKNOWN),
        (UsageError(*TEXTS), Fate.REJECTED),
        (TaskFailed(*TEXTS), Fate.REJECTED),
        (ClipMissing(*TEXTS), Fate.REJECTED),
        (DownloadIncomplete(*TEXTS), Fate.REJECTED),
        (RunwayError(*TEXTS), Fate.REJECTED),
    ],
)
def test_each_error_has_a_fate(error: RunwayError, fate: Fate) -> None:
    """Errors about an exchange have a fate; any other error would only occur again."""
    assert fate_of(error) is fate


# Delays


@pytest.mark.parametrize("replay", Replay)
@pytest.mark.parametrize(
    ("retry_after", "delay"),
    [(None, 0.25), (0.0, 0.0), (3.0, 3.0), (120.0, 120.0), (120.1, None), (1e9, None)],
)
def test_retry_after_is_kept_exactly(
    replay: Replay, retry_after: float | None, delay: float | None
) -> None:
    """The delay is exactly the Retry-After; if that is too long, there is no retry."""
    error = gateway_error(RateLimited, Fate.REFUSED, retry_after)
    assert delay_before(1, error, replay, POLICY, drawn=0.25) == delay


def test_without_a_response_the_drawn_delay_counts() -> None:
    """Without a response there is no Retry-After."""
    assert delay_before(1, ERRORS[Fate.UNSENT], Replay.PAID, POLICY, drawn=0.25) == 0.25


@pytest.mark.parametrize(("attempts", "repeats"), [(1, 0), (2, 1), (5, 4), (100, 99)])
def test_attempts_include_the_first_one(attempts: int, repeats: int) -> None:
    """A policy of n attempts retries n - 1 times."""
    policy = RetryPolicy(attempts=attempts)
    error = ERRORS[Fate.REFUSED]
    allowed = [
        count
        for count in range(1, 200)
        if delay_before(count, error, Replay.FREE, policy, 1.0) is not None
    ]
    assert allowed == list(range(1, repeats + 1))


@pytest.mark.parametrize("replay", Replay)
def test_a_model_without_a_channel_is_retried_twice(replay: Replay) -> None:
    """A missing channel need not be transient: at most two retries (api-facts 5.1)."""
    error = gateway_error(ModelUnavailable, Fate.REFUSED)
    given = [delay_before(count, error, replay, POLICY, 1.0) for count in range(1, 5)]
    assert given == [1.0, 1.0, None, None]


def test_delays_are_drawn_from_growing_ranges() -> None:
    """Full jitter: each delay lies between 0 and a range that doubles up to its cap."""
    ranges = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    rounds = [list(itertools.islice(delays(POLICY), len(ranges))) for _ in range(200)]
    for index, limit in enumerate(ranges):
        drawn = [one[index] for one in rounds]
        assert all(0 <= delay <= limit for delay in drawn)
        # Out of 200, none above the half would be one chance in 10 to the 60.
        assert max(drawn) > limit / 2
        assert min(drawn) < limit / 2


def test_delays_never_end() -> None:
    """There is a delay before every retry that a policy may allow."""
    assert len(list(itertools.islice(delays(RetryPolicy(factor=1)), 1000))) == 1000
    assert math.isfinite(sum(itertools.islice(delays(RetryPolicy(factor=100)), 1000)))


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ((2.0, 1.5, 15.0), (2.0, 3.0, 4.5, 6.75, 10.125, 15.0)),
        ((1.0, 2.0, 4.0), (1.0, 2.0, 4.0)),
        ((1.0, 2.0, 5.0), (1.0, 2.0, 4.0, 5.0)),
        ((5.0, 1, 15.0), (5.0,)),
        ((20.0, 1, 15.0), (15.0,)),
        ((15.0, 2.0, 15.0), (15.0,)),
        ((20.0, 2.0, 15.0), (15.0,)),
    ],
)
def test_a_ladder_ends_with_the_interval_that_goes_on(
    arguments: tuple[float, float, float], steps: tuple[float, ...]
) -> None:
    """Intervals grow up to the cap, which is the last; a factor of 1 has one that goes on."""
    assert exponential_intervals(*arguments) == pytest.approx(steps)


# Retries of free requests


async def test_a_first_success_is_the_only_attempt() -> None:
    """A success is sent once, with no pause and no event."""
    sendings = Sendings("answer")
    assert await sendings.run() == "answer"
    assert (sendings.count, sendings.clock.slept, sendings.events) == (1, [], [])


async def test_refused_requests_are_retried_after_retry_after() -> None:
    """Two refusals cost two pauses of exactly the requested length, and two events."""
    first, second = (gateway_error(RateLimited, Fate.REFUSED, delay) for delay in (3.0, 1.5))
    sendings = Sendings(first, second, "answer")
    assert await sendings.run() == "answer"
    assert sendings.clock.slept == [3.0, 1.5]
    assert sendings.events == [
        RetryScheduled(FREE.name, 1, 3.0, "RateLimited"),
        RetryScheduled(FREE.name, 2, 1.5, "RateLimited"),
    ]


async def test_the_event_of_a_retry_names_the_task() -> None:
    """It has the id of the task that is polled."""
    sendings = Sendings(gateway_error(RateLimited, Fate.REFUSED, 1.0), "answer")
    await sendings.run(task_id="t-1")
    assert sendings.events == [RetryScheduled(FREE.name, 1, 1.0, "RateLimited", task_id="t-1")]


async def test_what_never_arrives_is_tried_as_often_as_the_policy_says() -> None:
    """Five attempts, four pauses between them, and the error of the last one."""
    sendings = Sendings(*[ERRORS[Fate.UNSENT]] * 9)
    with pytest.raises(NotSent) as caught:
        await sendings.run()
    assert caught.value is ERRORS[Fate.UNSENT]
    assert sendings.count == 5
    assert len(sendings.clock.slept) == 4


async def test_a_free_request_of_unknown_fate_goes_again() -> None:
    """A poll costs nothing, so it is retried whatever its fate."""
    sendings = Sendings(ERRORS[Fate.UNKNOWN], gateway_error(GatewayDown, Fate.UNKNOWN), "answer")
    assert await sendings.run() == "answer"
    assert sendings.count == 3


async def test_a_free_request_is_never_in_doubt() -> None:
    """A poll that fails in every attempt raises its last error, not a doubt about money."""
    sendings = Sendings(ERRORS[Fate.UNKNOWN])
    with pytest.raises(NoReply):
        await sendings.run(RetryPolicy(attempts=1))


async def test_what_was_rejected_is_not_sent_again() -> None:
    """A final refusal is raised at once, unchanged."""
    sendings = Sendings(ERRORS[Fate.REJECTED], "answer")
    with pytest.raises(InvalidRequest) as caught:
        await sendings.run()
    assert caught.value is ERRORS[Fate.REJECTED]
    assert caught.value.__cause__ is None
    assert sendings.count == 1


async def test_a_pause_that_is_too_long_ends_in_the_refusal() -> None:
    """A gateway that requests a pause of an hour gets no retry; the error has that delay."""
    error = gateway_error(RateLimited, Fate.REFUSED, 3600.0)
    sendings = Sendings(error, "answer")
    with pytest.raises(RateLimited) as caught:
        await sendings.run()
    assert caught.value.retry_after == 3600.0
    assert sendings.clock.slept == []
