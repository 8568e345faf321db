"""What belongs to one event loop: a transport, a scheduler and a downloader, closed with it."""

from collections.abc import AsyncGenerator, Callable

import aiohttp
import attrs

from ._clock import Clock
from ._limits import Limits
from ._polling import Poller
from ._transport import Transport
from ._wire import read_task
from .downloads import Downloader
from .hooks import Hooks
from .models import PollPolicy, RetryPolicy, Timeouts

REQUESTS_IN_FLIGHT = 100
"""How many requests are under way at once; aiohttp's own default, and room for long submits."""


@attrs.frozen(kw_only=True, eq=False)
class Settings:
    """What every engine of one client is made from."""

    session: aiohttp.ClientSession | None
    timeouts: Timeouts
    retry: RetryPolicy
    polling: PollPolicy
    hooks: Hooks
    clock: Clock


class Engine:
    """The moving parts of one client in one event loop; to be made inside of it."""

    def __init__(self, settings: Settings) -> None:
        self.transport = Transport(
            session=settings.session,
            timeouts=settings.timeouts,
            retry=settings.retry,
            limits=Limits(REQUESTS_IN_FLIGHT),
            hooks=settings.hooks,
            clock=settings.clock,
        )
        self.poller = Poller(
            # Without repeats of its own: the scheduler looks again anyway, in its own time.
            lambda request: self.transport.once(request, read_task),
            policy=settings.polling,
            at_once=REQUESTS_IN_FLIGHT,
            clock=settings.clock,
            hooks=settings.hooks,
        )
        self.downloader = Downloader(self.transport, settings.retry, settings.clock, settings.hooks)
        self._keeper: AsyncGenerator[None, None] | None = None

    def stay_until_the_loop_ends(self, forget: Callable[[], object]) -> None:
        """
        Have the loop close this engine, if nobody did before, and call *forget*.

        `asyncio.run` closes the asynchronous generators that are still suspended while the loop
        still runs: the one moment at which a session can be closed that nobody closed.
        """

        async def keep() -> AsyncGenerator[None, None]:
            try:
                yield
            finally:
                forget()
                await self._close()

        self._keeper = keep()
        # One step, up to the yield; it never suspends, so that this need not be a coroutine.
        try:
            self._keeper.__anext__().send(None)
        except StopIteration:
            return

    async def aclose(self) -> None:
        """Close everything; calling it again is fine."""
        if self._keeper is not None:
            await self._keeper.aclose()

    async def _close(self) -> None:
        try:
            await self.poller.aclose()
        finally:
            await self.transport.aclose()
