"""Webhooks: the bare task, posted to `callback_url` at each change, on this machine only."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import aiohttp
import attrs
from yarl import URL

from fuhu_runway.testing._loopback import is_loopback

from . import bodies as _bodies
from . import dialects as _dialects
from . import story as _story
from .cdn import Files
from .store import SimulatedTask
from .wild import HTML, JSON

if TYPE_CHECKING:
    from fuhu_runway.testing.simulator import Simulator


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

    options: "Simulator"
    files: Files
    delivered: int = 0
    failed: int = 0
    _rounds: set[asyncio.Task[None]] = attrs.field(factory=set)
    _session: aiohttp.ClientSession | None = None

    def follow(self, task: SimulatedTask, since: float = -math.inf) -> None:
        """Send the task's `callback_url` all that will happen to it, or did *since* then."""
        url, callbacks = _loopback_url(task.body.get("callback_url")), self.options.callbacks
        if callbacks is None or url is None:
            return
        ages = _story.changes(task.script)
        sent = ages if callbacks.progress else ages[-1:]
        due = [age for age in sent if task.created + age + callbacks.delay > since]
        round_ = asyncio.create_task(self._round(task, url, due, callbacks))
        self._rounds.add(round_)
        round_.add_done_callback(self._rounds.discard)

    async def _round(
        self, task: SimulatedTask, url: URL, ages: Sequence[float], callbacks: Callbacks
    ) -> None:
        clock = self.files.store.clock
        pairs = [ages[place : place + 2][::-1] for place in range(0, len(ages), 2)]
        for age in [age for pair in pairs for age in pair] if callbacks.disorder else ages:
            await clock.pause(max(0.0, age + callbacks.delay - task.age(clock.now())))
            await self._deliver(task, url, age, callbacks)
        if callbacks.again_after is not None:
            await clock.pause(callbacks.again_after)
            for age in ages:
                await self._deliver(task, url, age, callbacks)

    async def _deliver(
        self, task: SimulatedTask, url: URL, age: float, callbacks: Callbacks
    ) -> None:
        clock = self.files.store.clock
        moment = task.moment(clock, age, self.files.urls(task))
        body = _bodies.as_text(_dialects.data(moment))
        for _ in range(callbacks.times):
            if callbacks.garbage:
                await self._post(url, _bodies.error_page(502), HTML, callbacks)
            for attempt in range(callbacks.tries):
                if attempt:
                    await clock.pause(callbacks.retry_after)
                if await self._post(url, body, JSON, callbacks):
                    self.delivered += 1
                    break
                self.failed += 1

    async def _post(self, url: URL, body: str, kind: str, callbacks: Callbacks) -> bool:
        """Send one webhook, and return whether it was answered with a 2xx."""
        if self._session is None:
            # A receiver may be slow, and a forgotten one must not pile up connections.
            connector = aiohttp.TCPConnector(limit=20, force_close=True)
            timeout = aiohttp.ClientTimeout(total=5.0)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        sent = self._in_halves(body.encode(), callbacks) if callbacks.stutter else body.encode()
        try:
            async with self._session.post(
                url, data=sent, headers={"Content-Type": kind}, allow_redirects=False
            ) as response:
                return response.status // 100 == 2
        except (aiohttp.ClientError, OSError):
            return False

    async def _in_halves(self, body: bytes, callbacks: Callbacks) -> AsyncIterator[bytes]:
        middle = len(body) // 2
        yield body[:middle]
        await self.files.store.clock.pause(callbacks.stutter)
        yield body[middle:]

    def forget(self) -> None:
        """Deliver nothing of what is on its way, and count from zero."""
        for round_ in self._rounds:
            round_.cancel()
        self.delivered = self.failed = 0

    async def aclose(self) -> None:
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
