import asyncio
import concurrent.futures
import contextlib
import gc
import hashlib
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio.from_thread
import anyio.to_thread
import fastapi
import httpx2
import pytest
import uvicorn

import fuhu_runway
from fuhu_runway import Client, PollPolicy
from fuhu_runway.testing import Simulator, faults, virtual_time
from fuhu_runway.testing._pytest import deadline as _deadline
from fuhu_runway.testing._pytest import guard as _guard
from fuhu_runway.testing._pytest import threads as _threads
from fuhu_runway.testing._pytest import virtual as _virtual


def hard_work() -> bytes:
    """Work for some milliseconds, which is long for a clock that jumps."""
    return hashlib.pbkdf2_hmac("sha256", b"a kitten", b"salt", 20_000)


class OwnPool(concurrent.futures.Executor):
    """A pool that is not from the standard library."""

    def __init__(self, _workers: int) -> None:
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        work = threading.Thread(target=lambda: done.set_result(function(*args, **kwargs)))
        self._threads.append(work)
        work.start()
        return done

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT002
        for thread in self._threads:
            thread.join()


def run_program(source: str) -> str:
    """Run a program that uses this package, and return its output."""
    path = {"PYTHONPATH": str(Path(fuhu_runway.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", source],
        env=os.environ | path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


async def spent(work: Awaitable[object]) -> float:
    """Return how much of the loop's time *work* takes."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await work
    return loop.time() - begun


async def test_an_hour_passes_at_once() -> None:
    """A wait takes its full time by the loop's clock, and none by the wall clock."""
    with virtual_time():
        assert await spent(asyncio.sleep(3600)) == 3600
        assert await spent(asyncio.sleep(0.1)) == pytest.approx(0.1, abs=1e-9)


async def test_timers_fire_in_order() -> None:
    """Each timer fires at its instant, also if another timer has set it."""
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
    """A wait that never ends meets its deadline, to the second."""
    with virtual_time():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(600):
                await asyncio.Event().wait()
        loop = asyncio.get_running_loop()
        assert loop.time() % 600 == _virtual.ROUND * (loop.time() // _virtual.ROUND) % 600


async def test_work_in_a_thread_takes_no_time() -> None:
    """A deadline of a second is enough for all work in threads."""
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
    """Writes of the journal are waited for, though they happen in its own thread."""
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
                await asyncio.sleep(1)  # nor does the pace of a new client take any


async def test_an_instant_ends() -> None:
    """Code that sets timers for the present instant until it is over comes to an end."""
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
    """Ten thousand rounds of a busy loop take a few milliseconds of its time."""

    async def spin() -> None:
        for _ in range(10_000):
            await asyncio.sleep(0)

    with virtual_time():
        assert await spent(spin()) < 0.01 < await spent(asyncio.sleep(1))


class Worker(threading.Thread):
    """A worker like aiosqlite's: a queue and futures, without an executor."""

    def __init__(self, works: Any, answer: Callable[..., None]) -> None:
        super().__init__(daemon=True)
        self.works = works
        self.answer = answer

    def run(self) -> None:
        while (work := self.works.get()) is not None:
            hard_work()
            self.answer(work)

    async def do(self) -> None:
        """Run one piece of work."""
        done = asyncio.get_running_loop().create_future()
        self.works.put((done, "a kitten"))
        await done


def by_the_future(work: tuple["asyncio.Future[None]", str]) -> None:
    """Answer to the loop of the future."""
    work[0].get_loop().call_soon_threadsafe(work[0].set_result, None)


@pytest.mark.parametrize("future", [asyncio.Future, asyncio.futures._PyFuture])  # type: ignore[attr-defined]
@pytest.mark.parametrize("kind", [queue.SimpleQueue, queue.Queue])
async def test_a_thread_with_a_queue_takes_no_time(
    kind: Callable[[], Any], future: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that answers by call_soon_threadsafe is waited for, with futures of any class."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "create_future", lambda: future(loop=loop))
    monkeypatch.setattr(asyncio, "Future", future)  # as nest_asyncio does
    worker = Worker(kind(), by_the_future)
    worker.start()
    with virtual_time():
        beside = asyncio.create_task(asyncio.sleep(3600))
        async with asyncio.timeout(10):
            for _ in range(25):
                assert await spent(asyncio.gather(worker.do(), worker.do())) == 0
        beside.cancel()
    worker.works.put(None)
    worker.join()


async def test_a_thread_started_by_hand_takes_no_time() -> None:
    """A thread that holds the loop is waited for, however it will answer."""
    loop = asyncio.get_running_loop()
    news = asyncio.Event()

    def bring() -> None:
        hard_work()
        loop.call_soon_threadsafe(news.set)

    thread = threading.Thread(target=bring)
    with virtual_time():
        thread.start()
        async with asyncio.timeout(1):
            assert await spent(news.wait()) == 0
    thread.join()


async def test_a_thread_that_only_holds_the_loop_does_not_stop_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An idle worker is waited for at most once."""
    monkeypatch.setattr(_threads, "HOLDER_LIMIT", 0.01)
    loop, works = asyncio.get_running_loop(), queue.SimpleQueue[None]()

    def wait() -> object:
        return loop, works.get()

    thread = threading.Thread(target=wait)
    thread.start()
    with virtual_time():
        assert await spent(asyncio.sleep(3600)) == 3600
        assert await spent(asyncio.sleep(3600)) == 3600
    works.put(None)
    thread.join()


@pytest.mark.parametrize("pool", [concurrent.futures.ThreadPoolExecutor, OwnPool])
async def test_work_in_any_pool_takes_no_time(
    pool: Callable[[int], concurrent.futures.Executor],
) -> None:
    """Work in a pool is waited for, submitted with or without the loop, queued or begun."""
    loop = asyncio.get_running_loop()
    with virtual_time(), pool(1) as executor:
        async with asyncio.timeout(1):
            inside = [loop.run_in_executor(executor, hard_work) for _ in range(3)]
            assert await spent(asyncio.gather(*inside)) == 0
            if pool is not OwnPool:
                outside = [asyncio.wrap_future(executor.submit(hard_work)) for _ in range(3)]
                assert await spent(asyncio.gather(*outside)) == 0


async def test_a_thread_of_anyio_takes_no_time() -> None:
    """Starlette's threads for synchronous routes and uploaded files take no time."""
    with virtual_time():
        async with asyncio.timeout(1):
            for _ in range(10):
                works = (anyio.to_thread.run_sync(hard_work) for _ in range(3))
                assert await spent(asyncio.gather(*works)) == 0


async def test_a_thread_of_anyio_may_wait_for_the_loop() -> None:
    """A synchronous route that calls asynchronous code has the time of the loop."""

    def wait_for_the_loop() -> None:
        anyio.from_thread.run(asyncio.sleep, 60)

    with virtual_time():
        assert await spent(anyio.to_thread.run_sync(wait_for_the_loop)) == 60


async def test_a_server_in_another_thread_takes_no_time() -> None:
    """A loop in another thread is waited for while it has bytes to read or a callback to run."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            hard_work()
            writer.write(data)
        writer.close()

    other = asyncio.new_event_loop()
    thread = threading.Thread(target=other.run_forever)
    thread.start()
    starting = asyncio.start_server(answer, "127.0.0.1", 0)
    server = asyncio.run_coroutine_threadsafe(starting, other).result()

    with virtual_time():
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        async with asyncio.timeout(1):
            for _ in range(20):
                writer.write(b"a kitten")
                assert await spent(reader.read(100)) == 0
        assert await spent(asyncio.sleep(3600)) == 3600
        writer.close()
        await writer.wait_closed()

    async def close() -> None:
        server.close()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        await asyncio.sleep(0)

    asyncio.run_coroutine_threadsafe(close(), other).result()
    other.call_soon_threadsafe(other.stop)
    thread.join()
    other.close()


def app_of(client: Client) -> Any:
    """Return an app with synchronous routes, dependencies and uploads."""
    app = fastapi.FastAPI()

    @app.post("/size")
    async def size(file: fastapi.UploadFile) -> int:
        return len(await file.read())

    @app.get("/digest", dependencies=[fastapi.Depends(hard_work)])
    def digest() -> str:
        return hard_work().hex()

    @app.post("/clip")
    async def clip() -> str:
        task = await client.generate("a kitten")
        await task
        return task.id

    return app


@contextlib.asynccontextmanager
async def in_process(app: Any) -> AsyncIterator[Any]:
    """Return a client of *app* that calls it without a socket."""
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://app") as http:
        yield http


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[Any]:
    """Return a client of *app* on a real server in the same loop."""
    config = uvicorn.Config(app, port=0, log_level="warning", lifespan="off", loop="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        yield http
    server.should_exit = True
    await serving


@pytest.mark.parametrize("way", [in_process, served])
async def test_an_app_that_works_in_threads_answers_in_virtual_time(way: Any) -> None:
    """Uploads and synchronous routes never exceed httpx's timeout of five seconds."""
    large = b"a kitten" * 200_000
    with virtual_time():
        async with (
            Simulator() as gateway,
            Client(gateway.api_key, base_url=gateway.base_url) as client,
            way(app_of(client)) as http,
        ):
            for _ in range(20):
                answers = await asyncio.gather(
                    http.post("/size", files={"file": ("a.mp4", large)}),
                    http.get("/digest"),
                )
                assert [answer.status_code for answer in answers] == [200, 200]
                assert answers[0].json() == len(large)
            assert (await http.post("/clip", timeout=1000)).json() == gateway.tasks[0].task_id


async def test_patience_waits_for_another_process() -> None:
    """A process that answers within the patience comes before a timer of a minute."""
    program = [sys.executable, "-c", "input()"]
    with virtual_time(patience=30):
        process = await asyncio.create_subprocess_exec(*program, stdin=asyncio.subprocess.PIPE)
        async with asyncio.timeout(60):
            assert await spent(process.communicate(b"a kitten\n")) == 0
    with virtual_time():
        process = await asyncio.create_subprocess_exec(*program, stdin=asyncio.subprocess.PIPE)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await process.wait()
        await process.communicate(b"a kitten\n")


async def test_a_loop_of_sleep_0_lets_time_pass() -> None:
    """Time jumps also if the loop is never idle, with and without a timer."""
    loop = asyncio.get_running_loop()
    with virtual_time():
        end = loop.time() + 3
        while loop.time() < end:  # noqa: ASYNC110 - just this is tested
            await asyncio.sleep(0)
        assert loop.time() < end + 1
        timers = [asyncio.create_task(asyncio.sleep(delay)) for delay in (100, 3600)]
        begun = loop.time()
        while not timers[1].done():  # noqa: ASYNC110 - just this is tested
            await asyncio.sleep(0)
        assert loop.time() - begun == pytest.approx(3600, abs=1)


async def test_a_loop_of_sleep_0_waits_for_threads() -> None:
    """No time passes in a busy loop while a thread works for it."""
    with virtual_time():
        async with asyncio.timeout(1):
            work = asyncio.gather(asyncio.to_thread(lambda: [hard_work() for _ in range(20)]))
            while not work.done():  # noqa: ASYNC110 - just this is tested
                await asyncio.sleep(0)


# The deadline


async def test_an_endless_wait_ends() -> None:
    """A wait that never ends is stopped in real time, and shows where all tasks are."""

    async def wait_for_godot() -> None:
        await asyncio.Event().wait()

    beside = [asyncio.create_task(wait_for_godot()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError) as error, virtual_time(deadline=0.01):
        await asyncio.Event().wait()
    report = str(error.value)
    assert report.startswith("Not done after 0.01 real seconds, and stopped. Time was virtual and")
    assert "jumped over 0 s." in report
    assert report.count("await asyncio.Event().wait()") == 2
    assert "2 x\n" in report
    assert "in wait_for_godot" in report
    for one in beside:
        one.cancel()


async def test_a_wait_with_timers_that_never_ends_ends() -> None:
    """An endless series of jumps is stopped as well."""

    async def poll() -> None:
        while True:  # noqa: ASYNC110 - just this is tested
            await asyncio.sleep(10)

    with pytest.raises(TimeoutError, match="in poll"), virtual_time(deadline=0.05):
        await poll()


async def test_an_asynchronous_generator_shows_where_it_is() -> None:
    """The stack includes generators of all kinds."""

    async def values() -> AsyncIterator[int]:
        await old()
        yield 1

    @types.coroutine
    def old() -> Generator[Any, None, None]:
        yield from asyncio.Event().wait().__await__()

    with pytest.raises(TimeoutError, match=r"(?s)in values.*in old"), virtual_time(deadline=0.01):
        async for _ in values():
            pass


async def test_a_test_that_ignores_its_cancellation_is_cancelled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code that swallows its cancellation does not get past the deadline."""
    monkeypatch.setattr(_deadline, "AGAIN_AFTER", 0.01)
    cancelled = 0

    async def swallow() -> None:
        nonlocal cancelled
        while cancelled < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1

    with pytest.raises(TimeoutError), virtual_time(deadline=0.01):
        await swallow()
    assert cancelled == 3


async def test_another_cancellation_stays_one() -> None:
    """A test that is cancelled before its deadline does not report a deadline."""

    async def wait() -> None:
        with virtual_time(deadline=60):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_the_task_that_began_may_be_over() -> None:
    """If time became virtual in a fixture, the deadline ends the run of the loop itself."""

    async def begin() -> contextlib.AbstractContextManager[None]:
        time = virtual_time(deadline=0.01)
        time.__enter__()
        return time

    async def end(time: contextlib.AbstractContextManager[None]) -> None:
        with pytest.raises(TimeoutError):
            time.__exit__(None, None, None)

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        time = runner.run(begin())
        with pytest.raises(TimeoutError, match="in wait"):
            runner.get_loop().run_until_complete(asyncio.Event().wait())
        runner.run(end(time))


async def test_without_a_deadline_there_is_none() -> None:
    """With deadline=None, neither the wait nor the signal is touched."""
    loop = asyncio.get_running_loop()
    with virtual_time(deadline=None):
        assert loop.time.__self__.deadline is None  # type: ignore[attr-defined]


BLOCKED = """
import asyncio, signal, subprocess, sys, threading
from fuhu_runway.testing import virtual_time
from fuhu_runway.testing._pytest import deadline as _deadline

_deadline.AGAIN_AFTER = 0.05

async def block():
    with virtual_time(deadline=0.05):
        subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"], check=False)

try:
    asyncio.run(block())
except BaseException as error:
    print(type(error).__name__, "ASGITransport" in str(error))

async def wait():
    with virtual_time(deadline=0.2):
        await asyncio.Event().wait()

for run in (asyncio.run, lambda work: asyncio.run(asyncio.to_thread(asyncio.run, work))):
    try:
        run(wait())
    except TimeoutError as error:
        print("TimeoutError", signal.getsignal(signal.SIGALRM) is signal.SIG_DFL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="there is no signal to end a call with")
def test_blocking_code_is_interrupted() -> None:
    """A blocking call is interrupted where it hangs, and a waiting loop never is."""
    done = run_program(BLOCKED)
    assert done == "LoopBlocked True\nTimeoutError True\nTimeoutError True\n"


FROZEN = """
import asyncio, freezegun
from fuhu_runway.testing import virtual_time

async def main():
    loop = asyncio.get_running_loop()
    with freezegun.freeze_time("2020-02-02"), virtual_time():
        begun = loop.time()
        done = loop.create_future()
        asyncio.get_running_loop().run_in_executor(
            None, lambda: asyncio.run_coroutine_threadsafe(asyncio.sleep(60), loop).result()
        ).add_done_callback(done.set_result)
        await done
        await asyncio.sleep(60)
        print(f"{loop.time() - begun:.3f}", end=" ")
    first = loop.time()
    await asyncio.sleep(0.001)
    print(0 < loop.time() - first < 60)

asyncio.run(main())
"""


def test_a_frozen_clock_does_not_freeze_it() -> None:
    """While freezegun stops the wall clock, the loop's time goes on, then and afterwards."""
    pytest.importorskip("freezegun")
    assert run_program(FROZEN) == "120.000 True\n"


async def test_bytes_in_transit_take_no_time() -> None:
    """A timer of a second does not fire during a thousand exchanges over loopback."""

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


async def test_a_refused_connection_leaves_no_socket_open() -> None:
    """If a guard refuses the connection over loopback, virtual time closes its sockets."""
    guard = _guard.Guard(is_shut=lambda _port: True)
    with warnings.catch_warnings(record=True) as unclosed:
        warnings.simplefilter("always", ResourceWarning)
        with guard.watching(), pytest.raises(_guard.GatewayShut), virtual_time():
            pass
        gc.collect()
    assert not unclosed


async def test_an_unknown_thread_is_waited_for() -> None:
    """Without timers, the loop waits as usual, also for a thread it does not know of."""
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
    """The loop's time only grows, when virtual time begins, ends, and begins again."""
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
    """Outside the block, the loop's time and the wall clock run equally fast."""
    loop = asyncio.get_running_loop()
    with virtual_time():
        await asyncio.sleep(3600)
    clock = loop.time.__self__  # type: ignore[attr-defined]
    first = loop.time() - clock._real_time()
    await asyncio.sleep(0.001)
    assert loop.time() - clock._real_time() == pytest.approx(first, abs=1e-3)
    assert "select" not in vars(loop._selector)  # type: ignore[attr-defined]
    assert "run_in_executor" not in vars(loop)


async def test_a_replaced_selector_is_restored() -> None:
    """If other code has replaced methods of the loop, they are restored afterwards."""
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


async def test_an_earlier_timer_fires_in_its_time() -> None:
    """A timer that was set in real time is not due at once when virtual time begins."""
    loop = asyncio.get_running_loop()
    due = loop.time() + 50
    late = loop.call_later(50, lambda: None)
    with virtual_time():
        assert loop.time() < due
        assert await spent(asyncio.sleep(10)) == pytest.approx(10)
    late.cancel()


async def test_each_beginning_is_round() -> None:
    """A loop without timers begins where sums of instants and delays are exact."""
    loop = asyncio.get_running_loop()
    asyncio.get_running_loop().call_later(100, lambda: None).cancel()
    with virtual_time():
        assert math.fmod(loop.time(), _virtual.ROUND) == 0


async def test_a_loop_in_debug_mode_reports_no_slow_callback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither the jump to a round instant nor an hour that was jumped over is a slow callback."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    await asyncio.sleep(0)
    with virtual_time():
        await asyncio.sleep(3600)
    assert loop.slow_callback_duration == 0.1
    await asyncio.sleep(0)
    assert caplog.messages == []


@pytest.mark.parametrize("loop", [SimpleNamespace(time=lambda: 0.0), asyncio.BaseEventLoop()])
def test_another_kind_of_loop_is_an_error(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names a loop whose time cannot be virtual, and says what to do."""
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    with pytest.raises(RuntimeError, match=r"(SimpleNamespace|BaseEventLoop).*virtual_time=False"):
        virtual_time().__enter__()
    loop.__dict__["_closed"] = True


def test_it_needs_a_running_loop() -> None:
    """Outside a running loop, the error says so."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        virtual_time().__enter__()


Scene = Callable[[Simulator, Client], Awaitable[object]]


async def clips(gateway: Simulator, client: Client) -> object:
    """Wait for many clips at once, with all kinds of faults."""
    gateway.script("kitten 3", then="fail", takes=77)
    gateway.script("kitten 4", takes=600)
    gateway.fault("feed", faults.Slow(3.0), times=5)
    gateway.fault("submit", faults.Slow(7.0), times=2)

    async def make(number: int) -> object:
        return await (await client.generate(f"kitten {number}"))

    results = await asyncio.gather(*(make(n) for n in range(10)), return_exceptions=True)
    return [type(result).__name__ for result in results]


def story(scene: Scene) -> object:
    """Return all events in *scene*, with their instants."""

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
    """All instants of a scene with ten clips are equal to the last bit in each run."""
    first, second = story(clips), story(clips)
    assert first == second
    assert isinstance(first, tuple)
    assert 600 < first[2] < 620
    assert len(first[1]) > 100
