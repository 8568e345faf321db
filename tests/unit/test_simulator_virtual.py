import asyncio
import hashlib
import math
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fuhu_runway import Client, PollPolicy
from fuhu_runway.testing import Simulator, _virtual, faults, virtual_time


def hard_work() -> bytes:
    """Take some milliseconds, which is much for a clock that jumps."""
    return hashlib.pbkdf2_hmac("sha256", b"a kitten", b"salt", 20_000)


async def spent(work: Awaitable[object]) -> float:
    """Give how much of the loop's time *work* takes."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await work
    return loop.time() - begun


async def test_an_hour_passes_at_once() -> None:
    """A wait takes exactly as long as it says by the loop's time, and none by the wall's."""
    with virtual_time():
        assert await spent(asyncio.sleep(3600)) == 3600
        assert await spent(asyncio.sleep(0.1)) == pytest.approx(0.1, abs=1e-9)


async def test_timers_come_in_their_order() -> None:
    """Whatever is planned happens at its instant, also where one plan makes another."""
    loop = asyncio.get_running_loop()
    seen: list[tuple[str, float]] = []

    def note(name: str) -> None:
        seen.append((name, loop.time() - begun))
        if name == "first":
            loop.call_later(5, note, "third")

    with virtual_time():
        begun = loop.time()
        loop.call_later(20, note, "last")
        loop.call_later(10, note, "first")
        loop.call_later(12, note, "second")
        await asyncio.sleep(100)
    assert seen == [("first", 10), ("second", 12), ("third", 15), ("last", 20)]


async def test_a_deadline_passes() -> None:
    """Whatever waits for something that never comes meets its deadline, to the second."""
    with virtual_time():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(600):
                await asyncio.Event().wait()
        loop = asyncio.get_running_loop()
        assert loop.time() % 600 == _virtual.ROUND * (loop.time() // _virtual.ROUND) % 600


async def test_work_in_a_thread_takes_no_time() -> None:
    """A deadline of a second is enough for all that the loop gives to threads."""
    with virtual_time():
        async with asyncio.timeout(1):
            assert await spent(asyncio.gather(*(asyncio.to_thread(hard_work),) * 4)) == 0


async def test_a_thread_that_waits_for_the_loop_does_not_stop_it() -> None:
    """A thread in `Future.result` is not waited for, so that time goes on for both."""
    loop = asyncio.get_running_loop()

    def wait_for_the_loop() -> None:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(60), loop).result()

    with virtual_time():
        assert await spent(asyncio.to_thread(wait_for_the_loop)) == 60


async def test_the_journal_takes_no_time(tmp_path: Path) -> None:
    """What the journal writes is waited for, though its thread is its own."""
    with virtual_time():
        async with (
            Simulator() as gateway,
            Client(
                gateway.api_key, base_url=gateway.base_url, journal=tmp_path / "run.db"
            ) as client,
        ):
            for number in range(5):
                async with asyncio.timeout(1):
                    assert await spent(client.generate(f"kitten {number}")) == 0


async def test_an_instant_ends() -> None:
    """Who plans for the present instant again and again until it is over comes to an end."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()

    def until_after(instant: float) -> None:
        if loop.time() <= instant:
            loop.call_at(instant, until_after, instant)
        else:
            over.set()

    with virtual_time():
        until_after(loop.time() + 75)
        assert await spent(over.wait()) == pytest.approx(75, abs=1e-5)


async def test_a_busy_loop_takes_next_to_no_time() -> None:
    """Ten thousand rounds of the loop by itself are some milliseconds of its time."""

    async def spin() -> None:
        for _ in range(10_000):
            await asyncio.sleep(0)

    with virtual_time():
        assert await spent(spin()) < 0.01 < await spent(asyncio.sleep(1))


async def test_bytes_on_their_way_take_no_time() -> None:
    """A thousand exchanges over loopback beside a timer of a second do not let it come."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with virtual_time():
            async with asyncio.timeout(1):
                for _ in range(1000):
                    writer.write(b"a kitten")
                    assert await reader.read(100) == b"a kitten"
        writer.close()
        await writer.wait_closed()


async def test_somebody_outside_is_waited_for() -> None:
    """Where nothing is planned, the loop waits as ever for a thread that nobody told it of."""
    loop = asyncio.get_running_loop()
    news = asyncio.Event()

    def bring() -> None:
        hard_work()
        loop.call_soon_threadsafe(news.set)

    thread = threading.Thread(target=bring)
    with virtual_time():
        thread.start()
        assert await spent(news.wait()) == 0
    thread.join()


async def test_time_never_goes_back() -> None:
    """The loop's time only grows, when virtual time begins, ends, and begins anew."""
    loop = asyncio.get_running_loop()
    instants = [loop.time()]
    for _ in range(3):
        with virtual_time():
            instants.append(loop.time())
            await asyncio.sleep(100)
            instants.append(loop.time())
        instants.append(loop.time())
        await asyncio.sleep(0)
    assert instants == sorted(instants)


async def test_after_it_time_is_real() -> None:
    """Outside of the block the loop's time and the clock on the wall go equally fast."""
    loop = asyncio.get_running_loop()
    with virtual_time():
        await asyncio.sleep(3600)
    clock = loop.time.__self__  # type: ignore[attr-defined]
    first = loop.time() - clock._real_time()
    await asyncio.sleep(0.001)
    assert loop.time() - clock._real_time() == pytest.approx(first, abs=1e-3)
    assert "select" not in vars(loop._selector)  # type: ignore[attr-defined]
    assert "run_in_executor" not in vars(loop)


async def test_whoever_moved_the_selector_before_finds_it_so() -> None:
    """A loop that others have put something of their own into has it again afterwards."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    selector.select = own = selector.select
    with virtual_time():
        assert await spent(asyncio.sleep(60)) == 60
    assert selector.select is own
    del selector.select


async def test_a_block_in_a_block_changes_nothing() -> None:
    """Virtual time goes on until the outer block ends."""
    loop = asyncio.get_running_loop()
    with virtual_time():
        with virtual_time():
            await asyncio.sleep(60)
        assert await spent(asyncio.sleep(60)) == 60
        assert loop.time.__self__.is_virtual  # type: ignore[attr-defined]
    assert not loop.time.__self__.is_virtual  # type: ignore[attr-defined]


async def test_what_was_planned_before_comes_in_its_time() -> None:
    """A timer that was set in real time is not over at once when virtual time begins."""
    loop = asyncio.get_running_loop()
    due = loop.time() + 50
    late = loop.call_later(50, lambda: None)
    with virtual_time():
        assert loop.time() < due
        assert await spent(asyncio.sleep(10)) == pytest.approx(10)
    late.cancel()


async def test_each_beginning_is_round() -> None:
    """A loop with nothing planned begins where sums of instants and delays are exact."""
    loop = asyncio.get_running_loop()
    asyncio.get_running_loop().call_later(100, lambda: None).cancel()
    with virtual_time():
        assert math.fmod(loop.time(), _virtual.ROUND) == 0


@pytest.mark.parametrize("loop", [SimpleNamespace(time=lambda: 0.0), asyncio.BaseEventLoop()])
def test_another_kind_of_loop_is_told(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop whose time cannot be moved is named, with what to do about it."""
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    with pytest.raises(RuntimeError, match=r"(SimpleNamespace|BaseEventLoop).*virtual_time=False"):
        virtual_time().__enter__()
    loop.__dict__["_closed"] = True


def test_without_a_loop_there_is_no_time_to_move() -> None:
    """Outside of a running loop it says so."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        virtual_time().__enter__()


Scene = Callable[[Simulator, Client], Awaitable[object]]


async def clips(gateway: Simulator, client: Client) -> object:
    """Wait for many clips at once, with all kinds of trouble."""
    gateway.script("kitten 3", then="fail", takes=77)
    gateway.script("kitten 4", takes=600)
    gateway.fault("feed", faults.Slow(3.0), times=5)
    gateway.fault("submit", faults.Slow(7.0), times=2)

    async def make(number: int) -> object:
        return await (await client.generate(f"kitten {number}"))

    results = await asyncio.gather(*(make(n) for n in range(10)), return_exceptions=True)
    return [type(result).__name__ for result in results]


def story(scene: Scene) -> object:
    """Give all that happened in *scene*, with its instants."""

    async def play() -> object:
        loop = asyncio.get_running_loop()
        with virtual_time():
            async with (
                Simulator(takes=100) as gateway,
                Client(
                    gateway.api_key, base_url=gateway.base_url, polling=PollPolicy(jitter=0)
                ) as client,
            ):
                begun = loop.time()
                result = await scene(gateway, client)
                seen = [(one.at - begun, one.where, one.task_id) for one in gateway.requests]
                return result, seen, loop.time() - begun

    return asyncio.run(play())


def test_a_story_is_the_same_each_time() -> None:
    """All instants of a scene with ten clips are equal to the last bit when it is played again."""
    first, second = story(clips), story(clips)
    assert first == second
    assert isinstance(first, tuple)
    assert 600 < first[2] < 620
    assert len(first[1]) > 100
