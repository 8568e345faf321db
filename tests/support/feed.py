"""A feed with scripted responses, and a poller over it on a clock that the test moves."""

import asyncio
import math
from typing import Any, Final

import attrs
from support.clients import EventRecorder, others
from support.clock import ManualClock

from fuhu_runway._http.limiter import RateLimiter
from fuhu_runway._waiting.poller import Poller, Watch
from fuhu_runway._wire.encode import ask_task
from fuhu_runway._wire.tables import ENDPOINTS, GATEWAYS
from fuhu_runway.errors import GatewayError
from fuhu_runway.hooks import Hooks
from fuhu_runway.models import Limits, PollPolicy, TaskRecord, TaskState

STEADY: Final = PollPolicy(jitter=0)
VIDEO: Final = "https://cdn.example/1.mp4"
Wait = asyncio.Task[TaskRecord]
Answer = TaskRecord | BaseException


def record(task_id: str = "t-1", state: TaskState = TaskState.RUNNING, **parts: Any) -> TaskRecord:
    """Return the record of a response; a success has its URL by default."""
    if state is TaskState.SUCCEEDED:
        parts = {"video_url": VIDEO, **parts}
    return TaskRecord(task_id, state, **parts)


def done(task_id: str = "t-1") -> TaskRecord:
    """Return the record of the last answer."""
    return record(task_id, TaskState.SUCCEEDED, points=320.0)


def refusal(kind: type[GatewayError], retry_after: float | None = None) -> GatewayError:
    """Return the error of a refusal."""
    texts = ("It was refused.", "Nothing was charged.", "Do.")
    return kind(*texts, "t-1", "r-1", 0, None, None, retry_after)


@attrs.define(eq=False)
class Feed:
    """The scripted responses, poll by poll; the last response of a task is repeated."""

    clock: ManualClock
    answers: dict[str, list[Answer]] = attrs.field(factory=dict)
    #: Which task was polled, and when.
    polls: list[tuple[str, float]] = attrs.field(factory=list)
    in_flight: int = 0
    peak: int = 0
    #: Polls hang while this is clear.
    is_open: asyncio.Event = attrs.field(factory=asyncio.Event)
    #: How many polls were cancelled.
    cancelled: int = 0

    def __attrs_post_init__(self) -> None:
        self.is_open.set()

    def returns(self, *answers: Answer, task_id: str = "t-1") -> None:
        self.answers[task_id] = list(answers)

    async def poll(
        self, request: Any, sent_at: float, _known: TaskRecord | None = None
    ) -> TaskRecord:
        assert sent_at == self.clock.now()
        self.polls.append((request.task_id, self.clock.now()))
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await self.is_open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1
        answers = self.answers.get(request.task_id, [record(request.task_id)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    @property
    def instants(self) -> list[float]:
        """Return the instants of all polls, in seconds since the start."""
        return [at - 1000 for _, at in self.polls]


@attrs.define(eq=False)
class Scene:
    """A poller over a feed, and the clock that moves it."""

    clock: ManualClock
    feed: Feed
    recorder: EventRecorder
    poller: Poller
    limiter: RateLimiter
    #: For each submission that waited for a free slot, the number of tasks.
    held: list[int] = attrs.field(factory=list)

    def watch(self, task_id: str = "t-1", *, fresh: bool = False, endpoint: str = "feed") -> Watch:
        """Return the watch over a task; a fresh one was submitted just now."""
        request = ask_task(task_id, ENDPOINTS[endpoint], GATEWAYS["fuhuapi"], "sk-1")
        return self.poller.watch(request, self.clock.now() if fresh else None)

    def wait(self, watch: Watch, timeout: float | None = None) -> Wait:
        return asyncio.ensure_future(self.poller.settled(watch, timeout))

    def change(self, watch: Watch, timeout: float | None = None) -> Wait:
        deadline = self.poller.deadline(timeout)
        return asyncio.ensure_future(self.poller.changed(watch, watch.version, timeout, deadline))

    def has_nothing_left(self) -> bool:
        """Return whether no timer, poll or entry is left."""
        idle = repr(self.poller) == "<Poller 0 tasks>"
        return idle and not self.clock.timers and not others() and not self.feed.in_flight


def limiter_of(limits: Limits, clock: ManualClock) -> RateLimiter:
    """Return a limiter as after the first response, without a pace unless a rate is set."""
    limiter = RateLimiter(limits, clock, Hooks())
    limiter.pace.room = math.inf
    return limiter


def scene_on(
    clock: ManualClock, policy: PollPolicy = STEADY, limits: Limits | None = None, **options: Any
) -> Scene:
    """Return a poller over a new feed."""
    feed, recorder = Feed(clock), EventRecorder()
    limiter = limiter_of(limits or Limits(), clock)
    poller = Poller(
        feed.poll, limiter, policy=policy, clock=clock, hooks=Hooks([recorder]), **options
    )
    return Scene(clock, feed, recorder, poller, limiter)
