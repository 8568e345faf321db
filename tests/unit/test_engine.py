import asyncio
from typing import Any

import aiohttp
import pytest
from support.clients import QUICK_POLLS, QUICK_RETRY, others
from support.clock import settle, until
from support.servers import raw_server, reply

from fuhu_runway._clock import LoopClock
from fuhu_runway._engine import Engine, Settings
from fuhu_runway._gateway import ENDPOINTS
from fuhu_runway._wire import Request
from fuhu_runway.errors import NoReply, WaitAbandoned, WaitTimeout
from fuhu_runway.hooks import Hooks
from fuhu_runway.models import Timeouts


def settings(session: aiohttp.ClientSession | None = None) -> Settings:
    """Give what an engine is made from."""
    return Settings(
        session=session,
        timeouts=Timeouts(),
        retry=QUICK_RETRY,
        polling=QUICK_POLLS,
        hooks=Hooks(),
        clock=LoopClock(),
    )


def is_closed(engine: Engine) -> bool:
    """Tell whether both of an engine's sessions are closed."""
    return engine.transport._free.closed and engine.transport._paid.closed


def look_at(url: str) -> Request:
    """Give a look at a task."""
    return Request(ENDPOINTS["feed"], url, {}, b"{}", task_id="t-1")


def test_the_end_of_the_loop_closes_it() -> None:
    """What nobody closed is closed while its loop still runs, and is forgotten before."""
    forgotten: list[bool] = []

    async def main() -> Engine:
        engine = Engine(settings())
        engine.stay_until_the_loop_ends(lambda: forgotten.append(is_closed(engine)))
        return engine

    engine = asyncio.run(main())
    assert is_closed(engine)
    assert forgotten == [False]


async def test_closing_closes_once() -> None:
    """However often it is closed, it is forgotten once, and the loop's end finds nothing to do."""
    forgotten: list[int] = []
    engine = Engine(settings())
    engine.stay_until_the_loop_ends(lambda: forgotten.append(1))
    for _ in range(3):
        await engine.aclose()
    assert is_closed(engine)
    assert forgotten == [1]
    assert others() == set()


async def test_one_that_does_not_stay_has_nothing_to_close() -> None:
    """Closing before it was tied to the loop does nothing."""
    async with aiohttp.ClientSession() as session:
        await Engine(settings(session)).aclose()
        assert not session.closed


async def test_a_look_is_not_repeated_by_itself() -> None:
    """The scheduler looks again in its own time: trouble is not multiplied by a retry policy."""
    engine = Engine(settings())
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
    """Waits are abandoned at once; a paid request in the air is waited for."""
    engine = Engine(settings())
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
    """Cancelled while looks are ended, it still closes what the transport opened."""
    engine = Engine(settings())
    engine.stay_until_the_loop_ends(list)
    begun = asyncio.Event()

    async def slow() -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(engine.poller, "aclose", slow)
    closing = asyncio.ensure_future(engine.aclose())
    await begun.wait()
    closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    assert is_closed(engine)


async def _pay(engine: Engine, url: str) -> Any:
    request = Request(ENDPOINTS["text_to_video"], url, {}, b"{}")
    return await engine.transport.call(request, lambda answer: answer.body, unclaimed=id)
