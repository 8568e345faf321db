"""Who tells the client by itself: the bare task, posted at each change, to this machine only."""

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import Final

import aiohttp
import attrs
from yarl import URL

from . import _bodies, _dialects, _story
from ._books import Books, SimulatedTask
from ._loopback import is_loopback
from .faults import JSON

# A receiver may be slow, and a forgotten one must not pile up connections.
TIMEOUT: Final = aiohttp.ClientTimeout(total=5.0)
AT_ONCE: Final = 20


@attrs.frozen(kw_only=True)
class Callbacks:
    """How the gateway delivers its callbacks. `None` in its place delivers none."""

    #: How often each one is delivered.
    times: int = attrs.field(default=1, validator=attrs.validators.in_(range(1, 11)))
    #: How long after the change it is sent, in simulated seconds.
    delay: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    #: Whether every change is told, or the end alone.
    progress: bool = True


@attrs.define
class Postman:
    """Everything on its way to a `callback_url`."""

    books: Books
    options: Callbacks | None
    urls: Callable[[SimulatedTask], tuple[str, str, str]]
    delivered: int = 0
    failed: int = 0
    _rounds: set[asyncio.Task[None]] = attrs.field(factory=set)
    _session: aiohttp.ClientSession | None = None

    def follow(self, task: SimulatedTask, since: float = -math.inf) -> None:
        """Tell the task's `callback_url` of all that will happen to it, or did *since* then."""
        url = _loopback_url(task.body.get("callback_url"))
        if self.options is None or url is None:
            return
        ages = _story.changes(task.script)
        told = ages if self.options.progress else ages[-1:]
        due = [age for age in told if task.created + age + self.options.delay > since]
        round_ = asyncio.create_task(self._round(task, url, due, self.options))
        self._rounds.add(round_)
        round_.add_done_callback(self._rounds.discard)

    async def _round(
        self, task: SimulatedTask, url: URL, ages: Iterable[float], options: Callbacks
    ) -> None:
        for age in ages:
            clock = self.books.clock
            await clock.pause(max(0.0, age + options.delay - task.age(clock.now())))
            body = _dialects.data(self.books.moment(task, age, self.urls(task)))
            for _ in range(options.times):
                await self._deliver(url, _bodies.as_text(body))

    async def _deliver(self, url: URL, body: str) -> None:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=AT_ONCE, force_close=True)
            self._session = aiohttp.ClientSession(connector=connector, timeout=TIMEOUT)
        try:
            headers = {"Content-Type": JSON}
            async with self._session.post(
                url, data=body.encode(), headers=headers, allow_redirects=False
            ) as response:
                self._count(ok=response.status // 100 == 2)
        except (aiohttp.ClientError, OSError):
            self._count(ok=False)

    def _count(self, *, ok: bool) -> None:
        self.delivered += ok
        self.failed += not ok

    def forget(self) -> None:
        """Deliver nothing of what is on its way, and count from zero."""
        for round_ in self._rounds:
            round_.cancel()
        self.delivered = self.failed = 0

    async def aclose(self) -> None:
        """Deliver nothing more."""
        rounds = list(self._rounds)
        for round_ in rounds:
            round_.cancel()
        await asyncio.gather(*rounds, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None


def _loopback_url(address: object) -> URL | None:
    # aiohttp's own type: what is judged here has to be what is called later.
    try:
        url = URL(address) if isinstance(address, str) else None
    except ValueError:
        return None
    if url is None or url.scheme != "http" or not is_loopback(url.host or ""):
        return None
    return url
