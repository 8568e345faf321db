"""Who tells the client by itself: the bare task, posted at each change, to this machine only."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import aiohttp
import attrs
from yarl import URL

from fuhu_runway.testing._loopback import is_loopback

from . import bodies as _bodies
from . import dialects as _dialects
from . import story as _story
from .store import SimulatedTask, Store
from .wild import HTML, JSON

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
    #: Whether every change is sent, or the end alone.
    progress: bool = True
    #: Whether neighbours change places, so that the last two of a task may come the wrong way.
    disorder: bool = False
    #: Whether a page that is no JSON is posted to the same address before each one.
    garbage: bool = False
    #: How long after the last one all of a task are sent once more, in simulated seconds; None
    #: is never.
    again_after: float | None = None
    #: How often one is tried that is not answered with a 2xx.
    tries: int = attrs.field(default=1, validator=attrs.validators.in_(range(1, 11)))
    #: How long is waited between two tries, in simulated seconds.
    retry_after: float = attrs.field(default=60.0, validator=attrs.validators.ge(0))
    #: How long a body pauses half-way, in simulated seconds.
    stutter: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))


@attrs.define
class Postman:
    """Everything on its way to a `callback_url`."""

    store: Store
    options: Callbacks | None
    urls: Callable[[SimulatedTask], tuple[str, str, str]]
    delivered: int = 0
    failed: int = 0
    _rounds: set[asyncio.Task[None]] = attrs.field(factory=set)
    _session: aiohttp.ClientSession | None = None

    def follow(self, task: SimulatedTask, since: float = -math.inf) -> None:
        """Send the task's `callback_url` all that will happen to it, or did *since* then."""
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
        self, task: SimulatedTask, url: URL, ages: Sequence[float], options: Callbacks
    ) -> None:
        clock = self.store.clock
        for age in _swapped(ages) if options.disorder else ages:
            await clock.pause(max(0.0, age + options.delay - task.age(clock.now())))
            await self._tell(task, url, age, options)
        if options.again_after is not None:
            await clock.pause(options.again_after)
            for age in ages:
                await self._tell(task, url, age, options)

    async def _tell(self, task: SimulatedTask, url: URL, age: float, options: Callbacks) -> None:
        body = _bodies.as_text(_dialects.data(self.store.moment(task, age, self.urls(task))))
        for _ in range(options.times):
            if options.garbage:
                await self._post(url, _bodies.error_page(502), HTML, options)
            for attempt in range(options.tries):
                if attempt:
                    await self.store.clock.pause(options.retry_after)
                if self._count(ok=await self._post(url, body, JSON, options)):
                    break

    async def _post(self, url: URL, body: str, kind: str, options: Callbacks) -> bool:
        """Whether the receiver said yes."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=AT_ONCE, force_close=True)
            self._session = aiohttp.ClientSession(connector=connector, timeout=TIMEOUT)
        sent = self._in_halves(body.encode(), options) if options.stutter else body.encode()
        try:
            async with self._session.post(
                url, data=sent, headers={"Content-Type": kind}, allow_redirects=False
            ) as response:
                return response.status // 100 == 2
        except (aiohttp.ClientError, OSError):
            return False

    async def _in_halves(self, body: bytes, options: Callbacks) -> AsyncIterator[bytes]:
        middle = len(body) // 2
        yield body[:middle]
        await self.store.clock.pause(options.stutter)
        yield body[middle:]

    def _count(self, *, ok: bool) -> bool:
        self.delivered += ok
        self.failed += not ok
        return ok

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


def _swapped(ages: Sequence[float]) -> list[float]:
    pairs = [ages[place : place + 2][::-1] for place in range(0, len(ages), 2)]
    return [age for pair in pairs for age in pair]


def _loopback_url(address: object) -> URL | None:
    # aiohttp's own type: what is judged here has to be what is called later.
    try:
        url = URL(address) if isinstance(address, str) else None
    except ValueError:
        return None
    if url is None or url.scheme != "http" or not is_loopback(url.host or ""):
        return None
    return url
