import asyncio
import time

import pytest

from fuhu_runway._clock import Clock, LoopClock


async def test_now_is_the_time_of_the_loop() -> None:
    """The clock and the running loop agree, so that virtual time moves both."""
    loop = asyncio.get_running_loop()
    before = loop.time()
    assert before <= LoopClock().now() <= loop.time()


def test_now_needs_a_running_loop() -> None:
    """Instants belong to a loop."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        LoopClock().now()


def test_wall_is_unix_time() -> None:
    """The time of day is in Unix seconds, and needs no loop."""
    before = time.time()
    assert before <= LoopClock().wall() <= time.time()


@pytest.mark.usefixtures("virtual")
async def test_sleep_takes_as_long_as_it_says() -> None:
    """Ten minutes of sleep move the clock by ten minutes, in the loop's own time."""
    clock: Clock = LoopClock()
    before = clock.now()
    await clock.sleep(600)
    assert clock.now() - before == pytest.approx(600)


@pytest.mark.usefixtures("virtual")
async def test_a_call_happens_at_its_instant_unless_it_is_cancelled() -> None:
    """Of two timers for the same instant, only the one that was not cancelled fires."""
    clock: Clock = LoopClock()
    called: list[str] = []
    due_at = clock.now() + 60
    clock.call_at(due_at, lambda: called.append("kept"))
    clock.call_at(due_at, lambda: called.append("cancelled")).cancel()
    await clock.sleep(59)
    assert called == []
    await clock.sleep(2)
    assert called == ["kept"]
