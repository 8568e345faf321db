import asyncio
from typing import Any

import aiohttp
import attrs
import pytest
from support.clients import QUICK_POLLS, QUICK_RETRY, Ear, others
from support.clock import ManualClock, settle, until
from support.feed import Scene, done, no, record, scene_on
from support.paying import pay
from support.servers import raw_server, reply

from fuhu_runway._clock import LoopClock
from fuhu_runway._session.session import Session, Settings, TaskBudget
from fuhu_runway._wire.encode import Request
from fuhu_runway._wire.tables import ENDPOINTS
from fuhu_runway.errors import NoReply, NotFound, UsageError, WaitAbandoned, WaitTimeout
from fuhu_runway.hooks import ClientClosed, Hooks
from fuhu_runway.models import Limits, Timeouts


def settings(session: aiohttp.ClientSession | None = None) -> Settings:
    """Return what an engine is made from."""
    return Settings(
        session=session,
        timeouts=Timeouts(),
        retry=QUICK_RETRY,
        polling=QUICK_POLLS,
        limits=Limits(),
        hooks=Hooks(),
        clock=LoopClock(),
    )


def is_closed(engine: Session) -> bool:
    """Return whether both sessions are closed."""
    return engine.transport._free.closed and engine.transport._paid.closed


def look_at(url: str) -> Request:
    """Return a look at a task."""
    return Request(ENDPOINTS["feed"], url, {}, b"{}", task_id="t-1")


def test_the_end_of_the_loop_closes_it() -> None:
    """What nobody closed is closed while its loop still runs, and is forgotten after that."""
    forgotten: list[bool] = []

    async def main() -> Session:
        engine = Session(settings())
        engine.stay_until_the_loop_ends(lambda: forgotten.append(is_closed(engine)))
        return engine

    engine = asyncio.run(main())
    assert is_closed(engine)
    assert forgotten == [True]


async def test_closing_closes_once() -> None:
    """However often it is closed, it is forgotten once, and the loop's end finds nothing to do."""
    forgotten: list[int] = []
    engine = Session(settings())
    engine.stay_until_the_loop_ends(lambda: forgotten.append(1))
    for _ in range(3):
        await engine.aclose()
    assert is_closed(engine)
    assert forgotten == [1]
    assert others() == set()


async def test_the_close_is_told_once_all_is_closed() -> None:
    """Listeners hear of it last, with the client's number, and once."""
    closed: list[bool] = []
    engine = Session(attrs.evolve(settings(), client=7, hooks=Hooks([ear := Ear()])))
    engine.stay_until_the_loop_ends(list)
    await engine.aclose()
    await engine.aclose()
    assert ear.heard == [ClientClosed(7)]
    engine = Session(
        attrs.evolve(settings(), hooks=Hooks([lambda _: closed.append(is_closed(engine))]))
    )
    engine.stay_until_the_loop_ends(list)
    await engine.aclose()
    assert closed == [True]


async def test_one_that_does_not_stay_has_nothing_to_close() -> None:
    """Closing before it was tied to the loop does nothing."""
    async with aiohttp.ClientSession() as session:
        await Session(settings(session)).aclose()
        assert not session.closed


async def test_closing_ends_its_errands() -> None:
    """What nobody waits for is cancelled with the engine, and what is done is forgotten."""
    engine = Session(settings())
    engine.stay_until_the_loop_ends(list)
    engine.run(asyncio.sleep(0))
    engine.run(asyncio.sleep(3600))
    await settle()
    assert len(engine._errands) == 1
    await engine.aclose()
    await settle()
    assert engine._errands == set()
    assert others() == set()


async def test_a_look_is_not_repeated_by_itself() -> None:
    """The scheduler looks again in its own time: trouble is not multiplied by a retry policy."""
    engine = Session(settings())
    engine.stay_until_the_loop_ends(list)
    async with raw_server(None) as server:
        watch = engine.poller.watch(look_at(server.url))
        with pytest.raises(NoReply):
            await engine.poller.refresh(watch)
        assert len(server.requests) == 1
        with pytest.raises(WaitTimeout) as caught:
            await engine.poller.settled(watch, 0.2)
        assert isinstance(caught.value.__cause__, NoReply)
    await engine.aclose()


async def test_closing_ends_waits_and_keeps_paid_requests() -> None:
    """Waits are abandoned at once; a paid request in flight is waited for."""
    engine = Session(settings())
    engine.stay_until_the_loop_ends(list)
    async with raw_server(reply()) as server:
        server.may_answer.clear()
        waiting = asyncio.ensure_future(
            engine.poller.settled(engine.poller.watch(look_at(server.url)), None)
        )
        paying = asyncio.ensure_future(_pay(engine, server.url))
        await until(lambda: len(server.requests) == 2)
        closing = asyncio.ensure_future(engine.aclose())
        await settle()
        assert isinstance(waiting.exception(), WaitAbandoned)
        assert not closing.done()
        server.may_answer.set()
        await closing
    assert await paying == b"{}"
    assert is_closed(engine)
    assert others() == set()


async def test_a_close_that_is_cancelled_leaves_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled while polls are ended, closing goes on, and the next call joins it."""
    engine = Session(settings())
    engine.stay_until_the_loop_ends(list)
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await may_end.wait()

    monkeypatch.setattr(engine.poller, "aclose", slow)
    closing = asyncio.ensure_future(engine.aclose())
    await begun.wait()
    closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    assert not is_closed(engine)
    may_end.set()
    await engine.aclose()
    assert is_closed(engine)


async def test_who_closes_as_well_comes_back_when_all_is_closed() -> None:
    """A second close, made while the first waits for a paid request, waits for it too."""
    engine = Session(settings())
    engine.stay_until_the_loop_ends(list)
    async with raw_server(reply()) as server:
        server.may_answer.clear()
        paying = asyncio.ensure_future(_pay(engine, server.url))
        await server.asked.wait()
        closings = [asyncio.ensure_future(engine.aclose()) for _ in range(2)]
        await settle()
        assert [closing.done() for closing in closings] == [False, False]
        server.may_answer.set()
        await closings[1]
        assert is_closed(engine)
        await closings[0]
    assert await paying == b"{}"


async def test_room_that_comes_free_at_the_close_is_not_used() -> None:
    """Who waits to submit while looks are ended is refused, and nothing is sent."""
    engine = Session(settings())
    engine.stay_until_the_loop_ends(list)
    async with raw_server(reply()) as server:
        async with engine.limiter.slot():
            engine.limiter.limits = Limits(requests_in_flight=1)
            paying = asyncio.ensure_future(_pay(engine, server.url))
            await settle()
            closing = asyncio.ensure_future(engine.aclose())
            await asyncio.sleep(0)
        with pytest.raises(UsageError) as caught:
            await paying
        await closing
        assert server.requests == []
    assert caught.value.field == "client"


async def _pay(engine: Session, url: str) -> Any:
    request = Request(ENDPOINTS["text_to_video"], url, {}, b"{}")
    return await pay(engine.transport, request, lambda answer: answer.body)


# How many tasks may exist at once


async def submit(budget: TaskBudget, scene: Scene, task_id: str) -> None:
    """Do what a submit does with the budget."""
    async with budget.one_more(scene.held.append):
        await asyncio.sleep(0)
        budget.add(scene.watch(task_id))


async def test_without_a_limit_every_task_may_exist(clock: ManualClock) -> None:
    """Any number is submitted at once, and nobody looks at them."""
    scene = scene_on(clock)
    budget = TaskBudget(None, scene.poller)
    await asyncio.gather(*(submit(budget, scene, f"t-{n}") for n in range(50)))
    assert scene.feed.looks == []
    assert scene.held == []


async def test_one_task_too_many_waits_for_an_end(clock: ManualClock) -> None:
    """It is submitted once one of the others has ended, though nobody else waits for them."""
    scene = scene_on(clock)
    scene.feed.says(record("t-1"), record("t-1"), done("t-1"), task_id="t-1")
    budget = TaskBudget(2, scene.poller)
    await submit(budget, scene, "t-1")
    await submit(budget, scene, "t-2")
    third = asyncio.create_task(submit(budget, scene, "t-3"))
    await clock.advance(4)
    assert not third.done()
    await clock.advance(60)
    assert third.done()
    assert scene.held == [2]
    assert others() == set()


async def test_submits_count_and_come_in_their_order(clock: ManualClock) -> None:
    """While one is in flight there is no room for another, and each that waits is reported."""
    scene = scene_on(clock)
    scene.feed.says(done("t-1"))
    budget, order, landed = TaskBudget(1, scene.poller), [], asyncio.Event()

    async def one(number: int) -> None:
        async with budget.one_more(scene.held.append):
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
    """One that the gateway does not know blocks nobody for ever."""
    scene = scene_on(clock)
    scene.feed.says(no(NotFound), task_id="t-1")
    budget = TaskBudget(1, scene.poller)
    await submit(budget, scene, "t-1")
    await asyncio.gather(asyncio.create_task(submit(budget, scene, "t-2")), clock.advance(5))
    assert scene.feed.looks[0][0] == "t-1"


async def test_leaving_the_queue_leaves_nothing(clock: ManualClock) -> None:
    """Cancelled while it waits for room, a submit leaves no look, no timer and no task behind."""
    scene = scene_on(clock)
    budget = TaskBudget(1, scene.poller)
    await submit(budget, scene, "t-1")
    waiting = asyncio.create_task(submit(budget, scene, "t-2"))
    await clock.advance(1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await settle()
    assert scene.has_nothing_left()


async def test_a_submit_that_was_left_in_flight_counts(clock: ManualClock) -> None:
    """Its caller is gone, and there is room again only when its answer is here."""
    scene = scene_on(clock)
    budget, landed = TaskBudget(1, scene.poller), asyncio.Event()
    flight = asyncio.create_task(landed.wait())
    async with budget.one_more(scene.held.append):
        budget.hold(flight)
    second = asyncio.create_task(submit(budget, scene, "t-2"))
    await settle()
    assert scene.held == [1]
    assert not second.done()
    landed.set()
    await second


async def test_without_a_limit_nothing_is_held(clock: ManualClock) -> None:
    """Nobody waits for room, so nobody has to be counted."""
    budget = TaskBudget(None, scene_on(clock).poller)
    flight = asyncio.create_task(asyncio.sleep(0))
    budget.hold(flight)
    await flight
    assert budget._submitting == 0
