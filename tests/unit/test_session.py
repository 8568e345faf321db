import asyncio
from collections import Counter
from typing import Any, cast

import aiohttp
import attrs
import pytest
from support.clients import QUICK_POLLS, QUICK_RETRY, EventRecorder, others
from support.clock import ManualClock, settle, until
from support.feed import Scene, done, record, refusal, scene_on
from support.paying import pay
from support.servers import raw_server, reply

from fuhu_runway._clock import LoopClock
from fuhu_runway._session.session import Session, Settings
from fuhu_runway._waiting.poller import Poller, Watch
from fuhu_runway._waiting.task_limit import TaskLimit
from fuhu_runway._wire.encode import Request
from fuhu_runway._wire.tables import ENDPOINTS
from fuhu_runway.errors import NoReply, NotFound, UsageError, WaitAbandoned, WaitTimeout
from fuhu_runway.hooks import ClientClosed, Hooks
from fuhu_runway.models import Limits, TaskRecord, Timeouts


def settings(session: aiohttp.ClientSession | None = None) -> Settings:
    """Return the settings of a session."""
    return Settings(
        session=session,
        timeouts=Timeouts(),
        retry=QUICK_RETRY,
        polling=QUICK_POLLS,
        limits=Limits(),
        hooks=Hooks(),
        clock=LoopClock(),
    )


def is_closed(session: Session) -> bool:
    """Return whether both sessions are closed."""
    return session.transport._free.closed and session.transport._paid.closed


def poll_of(url: str) -> Request:
    """Return a poll of a task."""
    return Request(ENDPOINTS["feed"], url, {}, b"{}", task_id="t-1")


def test_the_end_of_the_loop_closes_it() -> None:
    """A session that was left open is closed while its loop still runs, and then forgotten."""
    forgotten: list[bool] = []

    async def main() -> Session:
        session = Session(settings(), lambda: forgotten.append(is_closed(session)))
        return session

    session = asyncio.run(main())
    assert is_closed(session)
    assert forgotten == [True]


async def test_closing_closes_once() -> None:
    """However often it is closed, it is forgotten once, and the loop's end finds nothing to do."""
    forgotten: list[int] = []
    session = Session(settings(), lambda: forgotten.append(1))
    for _ in range(3):
        await session.aclose()
    assert is_closed(session)
    assert forgotten == [1]
    assert others() == set()


async def test_the_event_of_a_close_comes_last() -> None:
    """`ClientClosed` is emitted once, with the client's number, when everything is closed."""
    closed: list[bool] = []
    hooks = Hooks([recorder := EventRecorder(), lambda _: closed.append(is_closed(session))])
    session = Session(attrs.evolve(settings(), client=7, hooks=hooks), list)
    await session.aclose()
    await session.aclose()
    assert recorder.events == [ClientClosed(7)]
    assert closed == [True]


async def test_closing_ends_its_background_work() -> None:
    """What runs in the background is cancelled with the session; what is done is forgotten."""
    session = Session(settings(), list)
    session.run(asyncio.sleep(0))
    session.run(asyncio.sleep(3600))
    await settle()
    assert len(session._actions) == 1
    await session.aclose()
    await settle()
    assert session._actions == set()
    assert others() == set()


async def test_a_poll_is_not_retried() -> None:
    """The poller polls again at its own intervals, so the retry policy does not multiply polls."""
    session = Session(settings(), list)
    async with raw_server(None) as server:
        watch = session.poller.watch(poll_of(server.url))
        with pytest.raises(NoReply):
            await session.poller.refresh(watch)
        assert len(server.requests) == 1
        with pytest.raises(WaitTimeout) as caught:
            await session.poller.settled(watch, 0.2)
        assert isinstance(caught.value.__cause__, NoReply)
    await session.aclose()


async def test_closing_ends_waits_and_keeps_paid_requests() -> None:
    """Waits are abandoned at once; a paid request in flight is waited for."""
    session = Session(settings(), list)
    async with raw_server(reply()) as server:
        server.may_answer.clear()
        waiting = asyncio.ensure_future(
            session.poller.settled(session.poller.watch(poll_of(server.url)), None)
        )
        paying = asyncio.ensure_future(_pay(session, server.url))
        await until(lambda: len(server.requests) == 2)
        closing = asyncio.ensure_future(session.aclose())
        await settle()
        assert isinstance(waiting.exception(), WaitAbandoned)
        assert not closing.done()
        server.may_answer.set()
        await closing
    assert await paying == b"{}"
    assert is_closed(session)
    assert others() == set()


async def test_a_slot_that_comes_free_at_the_close_is_not_used() -> None:
    """A submission that waits while polls are ended is refused, and nothing is sent."""
    session = Session(settings(), list)
    async with raw_server(reply()) as server:
        async with session.limiter.slot():
            session.limiter.limits = Limits(requests_in_flight=1)
            paying = asyncio.ensure_future(_pay(session, server.url))
            await settle()
            closing = asyncio.ensure_future(session.aclose())
            await asyncio.sleep(0)
        with pytest.raises(UsageError) as caught:
            await paying
        await closing
        assert server.requests == []
    assert caught.value.field == "client"


async def _pay(session: Session, url: str) -> Any:
    request = Request(ENDPOINTS["text_to_video"], url, {}, b"{}")
    return await pay(session.transport, request, lambda answer: answer.body)


# How many tasks may exist at once


async def submit(limit: TaskLimit, scene: Scene, task_id: str) -> None:
    """Use the limit as a submit does."""
    async with limit.one_more(scene.held.append):
        await asyncio.sleep(0)
        limit.add(scene.watch(task_id))


async def test_without_a_limit_every_task_may_exist(clock: ManualClock) -> None:
    """Any number is submitted at once, and none of them is polled."""
    scene = scene_on(clock)
    limit = TaskLimit(None, scene.poller)
    await asyncio.gather(*(submit(limit, scene, f"t-{n}") for n in range(50)))
    assert scene.feed.polls == []
    assert scene.held == []


async def test_one_task_too_many_waits_for_an_end(clock: ManualClock) -> None:
    """It is submitted once one of the others has ended, though no caller waits for them."""
    scene = scene_on(clock)
    scene.feed.returns(record("t-1"), record("t-1"), done("t-1"), task_id="t-1")
    limit = TaskLimit(2, scene.poller)
    await submit(limit, scene, "t-1")
    await submit(limit, scene, "t-2")
    third = asyncio.create_task(submit(limit, scene, "t-3"))
    await clock.advance(4)
    assert not third.done()
    await clock.advance(60)
    assert third.done()
    assert scene.held == [2]
    assert others() == set()


async def test_submits_count_and_come_in_their_order(clock: ManualClock) -> None:
    """While one is in flight there is no slot for another, and each that waits is reported."""
    scene = scene_on(clock)
    scene.feed.returns(done("t-1"))
    limit, order, landed = TaskLimit(1, scene.poller), [], asyncio.Event()

    async def one(number: int) -> None:
        async with limit.one_more(scene.held.append):
            order.append(number)
            await landed.wait()

    tasks = [asyncio.create_task(one(number)) for number in range(3)]
    await settle()
    assert order == [0]
    assert scene.held == [1, 1]
    landed.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2]


async def test_a_task_that_cannot_be_followed_counts_no_more(clock: ManualClock) -> None:
    """A task that the gateway does not know does not block submissions without end."""
    scene = scene_on(clock)
    scene.feed.returns(refusal(NotFound), task_id="t-1")
    limit = TaskLimit(1, scene.poller)
    await submit(limit, scene, "t-1")
    await asyncio.gather(asyncio.create_task(submit(limit, scene, "t-2")), clock.advance(5))
    assert scene.feed.polls[0][0] == "t-1"


async def test_a_task_that_never_ends_counts_no_more(clock: ManualClock) -> None:
    """A task that the gateway leaves running does not block submissions without end."""
    scene = scene_on(clock)
    scene.feed.returns(record("t-1"), task_id="t-1")
    limit = TaskLimit(1, scene.poller)
    await submit(limit, scene, "t-1")
    second = asyncio.create_task(submit(limit, scene, "t-2"))
    await clock.advance(3599)
    assert not second.done()
    await clock.advance(2)
    assert second.done()


async def test_each_task_is_waited_for_once(clock: ManualClock) -> None:
    """However many submissions wait for a slot, one after the other."""
    scene, begun = scene_on(clock), Counter[str]()

    class Counted:
        is_closed = False

        async def settled(self, watch: Watch, timeout: float | None) -> TaskRecord:
            begun[watch.task_id] += 1
            return await scene.poller.settled(watch, timeout)

    limit = TaskLimit(10, cast("Poller", Counted()))
    for number in range(20):
        name = f"t-{number}"
        running = [record(name)] * (number + 1)
        scene.feed.returns(*running, *([done(name)] if number < 10 else []), task_id=name)
    waiting = [asyncio.create_task(submit(limit, scene, f"t-{n}")) for n in range(20)]
    await clock.advance(900)
    assert all(one.done() for one in waiting)
    assert set(begun.values()) == {1}
    assert len(begun) > 10


async def test_leaving_the_queue_leaves_nothing(clock: ManualClock) -> None:
    """Cancelled while it waits for a slot, a submit leaves no poll, no timer and no task behind."""
    scene = scene_on(clock)
    limit = TaskLimit(1, scene.poller)
    await submit(limit, scene, "t-1")
    waiting = asyncio.create_task(submit(limit, scene, "t-2"))
    await clock.advance(1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await settle()
    assert scene.has_nothing_left()
