"""An app that receives callbacks on this machine, optionally behind a proxy."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import attrs
from aiohttp import web

from fuhu_runway import CallbackReceiver


@attrs.define(eq=False)
class House:
    """A receiver, and what its app did."""

    receiver: CallbackReceiver
    #: Under which it is mounted.
    path: str = "/hooks"
    #: Webhooks are taken and lost while this is set.
    is_deaf: bool = False
    #: The path of each webhook, and its body.
    posted: list[tuple[str, bytes]] = attrs.field(factory=list)

    async def take(self, request: web.Request) -> web.StreamResponse:
        """Record the request, and let the receiver answer."""
        if self.is_deaf:
            return web.Response(status=204)
        return await self.receiver.handle(request)


@asynccontextmanager
async def served(app: web.Application, listener: socket.socket) -> AsyncIterator[None]:
    """Serve an app on a socket that is bound already."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    try:
        yield
    finally:
        await runner.cleanup()


def bound() -> tuple[socket.socket, str]:
    """Return a socket on a free port of this machine, and its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def receiving(path: str = "/hooks", **options: Any) -> AsyncIterator[House]:
    """Run an app that receives callbacks under *path*."""
    listener, base = bound()
    house = House(CallbackReceiver(f"{base}{path}", **options), path)
    app = web.Application()
    app.router.add_post(f"{path}/{{token}}", house.take)
    async with served(app, listener):
        yield house


@asynccontextmanager
async def behind_a_proxy(outside: str, inside: str, **options: Any) -> AsyncIterator[House]:
    """Run an app that has it under *inside*, and a proxy that has it under *outside*."""
    (front, public), (back, private) = bound(), bound()
    receiver = CallbackReceiver(f"{public}{outside}", **options)
    house = House(receiver, inside)
    app = web.Application()
    receiver.add_routes(app, inside)

    async def forward(request: web.Request) -> web.Response:
        rest = request.path.removeprefix(outside)
        body = await request.read()
        house.posted.append((request.path, body))
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{private}{inside}{rest}", data=body) as response,
        ):
            return web.Response(status=response.status)

    proxy = web.Application()
    proxy.router.add_post(f"{outside}/{{rest:.*}}", forward)
    async with served(app, back), served(proxy, front):
        yield house
