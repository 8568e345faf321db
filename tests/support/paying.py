"""A paid request without a journal, events or a handle."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fuhu_runway._http.transport import Transport
from fuhu_runway._wire.encode import Reply, Request

T = TypeVar("T")


async def pay(
    transport: Transport,
    request: Request,
    read: Callable[[Reply], T],
    unclaimed: Callable[["asyncio.Task[T]"], object] = id,
) -> T:
    """Send a paid request as a submission does; *unclaimed* gets the task of a cancelled caller."""
    is_in_flight = False

    async def once() -> T:
        nonlocal is_in_flight
        async with transport.paid_slot() as sent_at:
            is_in_flight = True
            try:
                return await transport.send_and_read(request, read, sent_at)
            finally:
                is_in_flight = False

    work = transport.start_paid(once())
    try:
        await asyncio.wait([work])
    except asyncio.CancelledError:
        if is_in_flight:
            unclaimed(work)
        else:
            work.cancel()
        raise
    return work.result()
