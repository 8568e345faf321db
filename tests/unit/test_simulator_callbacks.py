import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import attrs
import pytest
from aiohttp import web

from fuhu_runway.testing import Callbacks, Simulator

KEY = {"Authorization": "Bearer sk-simulated"}


@attrs.define
class Receiver:
    status: int = 200
    url: str = ""
    got: list[dict[str, Any]] = attrs.field(factory=list)
    at: list[float] = attrs.field(factory=list)
    #: Bodies that are not JSON.
    pages: list[str] = attrs.field(factory=list)

    async def receive(self, request: web.Request) -> web.Response:
        text = await request.text()
        if request.content_type == "text/html":
            self.pages.append(text)
            return web.Response(status=400)
        self.got.append(json.loads(text))
        self.at.append(asyncio.get_running_loop().time())
        return web.Response(status=self.status, headers={"Location": self.url})


@asynccontextmanager
async def receiving(status: int = 200) -> AsyncIterator[Receiver]:
    """Yield a receiver of callbacks on this machine."""
    receiver = Receiver(status)
    app = web.Application()
    app.router.add_post("/hook", receiver.receive)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()


async def submit(gateway: Simulator, callback_url: object) -> str:
    """Submit one task with *callback_url*."""
    body = {"callback_url": callback_url, "prompt": "a kitten", "model": "gen4"}
    async with (
        aiohttp.ClientSession(gateway.base_url, headers=KEY) as session,
        session.post("/runway/pro/generate", json=body) as response,
    ):
        return str((await response.json())["data"]["task_id"])


@pytest.mark.usefixtures("virtual")
async def test_each_change_is_sent_as_the_bare_task() -> None:
    """Every percent and the end are posted, without an envelope and without `state`."""
    async with receiving() as receiver, Simulator(takes=100.0) as gateway:
        gateway.script(progress=(0, 50))
        task_id = await submit(gateway, receiver.url)
        await asyncio.sleep(101)
        assert [body["status"] for body in receiver.got] == ["1", "1", "3"]
        assert {body["task_id"] for body in receiver.got} == {task_id}
        assert receiver.got[-1]["video_url"].startswith(gateway.cdn_url)
        assert "state" not in receiver.got[-1]
        assert [later - receiver.at[0] for later in receiver.at] == pytest.approx(
            [0.0, 45.0, 90.0], abs=0.5
        )
        assert (gateway.callbacks_delivered, gateway.callbacks_failed) == (3, 0)


@pytest.mark.usefixtures("virtual")
async def test_callbacks_may_be_late_repeated_and_about_the_end_alone() -> None:
    """Only the failure is sent, three times, half a minute late."""
    callbacks = Callbacks(times=3, delay=30.0, progress=False)
    async with receiving() as receiver, Simulator(takes=100.0, callbacks=callbacks) as gateway:
        gateway.script(then="fail")
        begun = asyncio.get_running_loop().time()
        await submit(gateway, receiver.url)
        await asyncio.sleep(131)
        assert [body["status"] for body in receiver.got] == ["2", "2", "2"]
        assert receiver.got[0]["refund"] == "320"
        assert receiver.at[0] - begun == pytest.approx(130.0, abs=0.5)


@pytest.mark.usefixtures("virtual")
async def test_callbacks_may_be_disabled() -> None:
    """A gateway without callbacks sends none, and the task ends as usual."""
    async with receiving() as receiver, Simulator(callbacks=None) as gateway:
        await submit(gateway, receiver.url)
        await asyncio.sleep(101)
        assert (receiver.got, gateway.tasks[0].state) == ([], "succeeded")


@pytest.mark.parametrize(
    "address",
    [
        "https://callback.invalid/",
        "http://192.0.2.1/hook",
        "https://127.0.0.1/hook",
        "http://127.0.0.1.example.com/hook",
        "http://[/",
    ],
)
@pytest.mark.usefixtures("virtual")
async def test_nothing_is_ever_sent_to_another_machine(address: str) -> None:
    """A URL that is not clearly on this machine is never connected to."""
    async with Simulator(takes=1.0) as gateway:
        before = asyncio.all_tasks()
        await submit(gateway, address)
        await asyncio.sleep(2)
        assert (gateway.callbacks_delivered, gateway.callbacks_failed) == (0, 0)
        assert asyncio.all_tasks() <= before


async def test_an_official_task_has_no_callback() -> None:
    """A body without `callback_url` gets no callback."""
    async with Simulator(strict=False, takes=0.0) as gateway:
        await submit(gateway, None)
        assert gateway.callbacks_delivered == 0


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize("status", [302, 500])
async def test_a_receivers_error_is_counted_and_not_raised(status: int) -> None:
    """A 500 is a failed callback, and so is a redirect, which is not followed."""
    async with receiving(status) as receiver, Simulator(takes=1.0) as gateway:
        gateway.script(progress=[])
        await submit(gateway, receiver.url)
        await asyncio.sleep(2)
        assert (gateway.callbacks_delivered, gateway.callbacks_failed) == (0, 2)
        assert len(receiver.got) == 2


@pytest.mark.usefixtures("virtual")
async def test_a_missing_receiver_is_counted_and_not_raised() -> None:
    """A refused connection is a failed callback."""
    async with receiving() as receiver:
        gone = receiver.url
    async with Simulator(takes=1.0) as gateway:
        await submit(gateway, gone)
        await asyncio.sleep(2)
        assert (gateway.callbacks_delivered, gateway.callbacks_failed) == (0, 6)


@pytest.mark.usefixtures("virtual")
async def test_closing_cancels_pending_callbacks() -> None:
    """No callback is sent after the gateway has closed, and no asyncio task is left."""
    before = asyncio.all_tasks()
    async with receiving() as receiver:
        async with Simulator(takes=100.0) as gateway:
            await submit(gateway, receiver.url)
            await asyncio.sleep(15)
        got = len(receiver.got)
        await asyncio.sleep(200)
        assert len(receiver.got) == got == 1
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


@pytest.mark.usefixtures("virtual")
async def test_callbacks_may_be_out_of_order() -> None:
    """The end is sent before the preceding change, and nothing before it happened."""
    callbacks = Callbacks(disorder=True)
    async with receiving() as receiver, Simulator(takes=100.0, callbacks=callbacks) as gateway:
        gateway.script(progress=(0, 30, 60))
        begun = asyncio.get_running_loop().time()
        await submit(gateway, receiver.url)
        await asyncio.sleep(101)
        assert [body["status"] for body in receiver.got] == ["1", "1", "3", "1"]
        assert [at - begun for at in receiver.at] == pytest.approx([40, 40, 100, 100], abs=0.5)


@pytest.mark.usefixtures("virtual")
async def test_callbacks_may_be_sent_a_second_time() -> None:
    """A minute after the end all callbacks are repeated, the first change first."""
    callbacks = Callbacks(again_after=60.0)
    async with receiving() as receiver, Simulator(takes=10.0, callbacks=callbacks) as gateway:
        gateway.script(progress=[])
        begun = asyncio.get_running_loop().time()
        await submit(gateway, receiver.url)
        await asyncio.sleep(75)
        assert [body["status"] for body in receiver.got] == ["1", "3", "1", "3"]
        assert [at - begun for at in receiver.at] == pytest.approx([1, 10, 70, 70], abs=0.5)


@pytest.mark.usefixtures("virtual")
async def test_garbage_may_come_first() -> None:
    """A page is posted to the same URL before each callback, and is not counted."""
    callbacks = Callbacks(garbage=True)
    async with receiving() as receiver, Simulator(takes=10.0, callbacks=callbacks) as gateway:
        gateway.script(progress=[])
        await submit(gateway, receiver.url)
        await asyncio.sleep(11)
        assert len(receiver.got) == len(receiver.pages) == 2
        assert "<html" in receiver.pages[0]
        assert (gateway.callbacks_delivered, gateway.callbacks_failed) == (2, 0)


@pytest.mark.usefixtures("virtual")
async def test_refused_callbacks_may_be_retried() -> None:
    """A refused callback is sent three times, a minute apart; an accepted one once."""
    callbacks = Callbacks(tries=3, progress=False)
    async with receiving(503) as receiver, Simulator(takes=10.0, callbacks=callbacks) as gateway:
        await submit(gateway, receiver.url)
        await asyncio.sleep(11)
        assert len(receiver.got) == 1
        await asyncio.sleep(60)
        receiver.status = 204
        await asyncio.sleep(600)
        assert [at - receiver.at[0] for at in receiver.at] == pytest.approx([0, 60, 120], abs=0.5)
        assert (gateway.callbacks_delivered, gateway.callbacks_failed) == (1, 2)


@pytest.mark.usefixtures("virtual")
async def test_a_body_may_stutter() -> None:
    """Its second half is sent later than its first, and the whole is right."""
    callbacks = Callbacks(stutter=2.0, progress=False)
    async with receiving() as receiver, Simulator(takes=10.0, callbacks=callbacks) as gateway:
        begun = asyncio.get_running_loop().time()
        task_id = await submit(gateway, receiver.url)
        await asyncio.sleep(13)
        assert [body["task_id"] for body in receiver.got] == [task_id]
        assert receiver.at[0] - begun == pytest.approx(12.0, abs=0.5)


def test_callbacks_are_bounded() -> None:
    """No callback is sent more than ten times."""
    with pytest.raises(ValueError, match="times"):
        Callbacks(times=11)
    with pytest.raises(ValueError, match="tries"):
        Callbacks(tries=11)
