"""A paid request without a journal, events or a handle."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fuhu_runway._http.retry import repeat
from fuhu_runway._http.transport import Transport
from fuhu_runway._wire.encode import Reply, Request

T = TypeVar("T")


async def pay(
    transport: Transport,
    request: Request,
    read: Callable[[Reply], T],
    left: Callable[["asyncio.Task[T]"], object] = id,
) -> T:
    """Send a paid request as a submission does; *left* gets the exchange of a cancelled caller."""

    async def once() -> T:
        async with transport.paid_slot() as sent_at:
            flight = transport.start_paid(transport.in_turn(request, read, sent_at))
            try:
                return await asyncio.shield(flight)
            except asyncio.CancelledError:
                transport._limiter.hold(flight)
                left(flight)
                raise

    return await repeat(once, request.endpoint, transport._retry, transport.pause, transport._hooks)
