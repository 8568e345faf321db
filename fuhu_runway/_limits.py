"""When the next request may go: requests in flight, first come first served."""

import asyncio
from contextlib import AbstractAsyncContextManager


class Limits:
    """
    The budget that everything on one client shares, within one event loop.

    Waiting here costs nothing and may be cancelled at any time: what waits was not sent.
    """

    def __init__(self, requests_in_flight: int) -> None:
        self.requests_in_flight = requests_in_flight
        # The standard semaphore wakes its waiters in the order in which they came.
        self._free = asyncio.Semaphore(requests_in_flight)

    def slot(self) -> AbstractAsyncContextManager[None]:
        """Enter when a request may go, and count it until the block is left."""
        return self._free
