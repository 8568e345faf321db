"""Send webhooks: the bare task, posted to `callback_url` at each change, on this machine only."""

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
from .replies import DIALECTS, HTML, JSON
from .store import SimulatedTask

if TYPE_CHECKING:
    from fuhu_runway.testing.simulator import Simulator


@attrs.frozen(kw_only=True)
class Callbacks:
    """How the gateway sends its callbacks."""

    #: How often each callback is sent.
    times: int = attrs.field(default=1, validator=attrs.validators.in_(range(1, 11)))
    #: The simulated seconds between a change and its callback.
    delay: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    #: Whether every change is sent, or only the end.
    progress: bool = True
    #: Whether callbacks of a task are swapped in pairs, so that the last two may be out of order.
    disorder: bool = False
    #: Whether a page that is not JSON is posted to the same URL before each callback.
    garbage: bool = False
    #: The simulated seconds after the last callback of a task until all of them are sent a second
    #: time; None means never.
    again_after: float | None = None
    #: The number of attempts for a callback that does not get a 2xx.
    tries: int = attrs.field(default=1, validator=attrs.validators.in_(range(1, 11)))
    #: The simulated seconds between two attempts.
    retry_after: float = attrs.field(default=60.0, validator=attrs.validators.ge(0))
    #: The simulated seconds that a body pauses half-way.
    stutter: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))


@attrs.define
class CallbackSender:
    """Sends the callbacks."""

    options: "Simulator"
    files: Files
    delivered: int = 0
    failed: int = 0
    _rounds: set[asyncio.Task[None]] = attrs.field(factory=set)
    _session: aiohttp.ClientSession | None = None

    def follow(self, task: SimulatedTask, since: float = -math.inf) -> None:
        """Send the callbacks of *task* that are due after the instant *since*."""
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
        body = _dialects.text_of(moment, DIALECTS["data"])
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
        """Send one callback, and return whether it got a 2xx."""
        if self._session is None:
            # Limited, since a receiver that never responds would pile up connections.
            connector = aiohttp.TCPConnector(limit=20, force_close=True)
            timeout = aiohttp.ClientTimeout(total=5.0)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)

        async def halves() -> AsyncIterator[bytes]:
            raw = body.encode()
            yield raw[: len(raw) // 2]
            await self.files.store.clock.pause(callbacks.stutter)
            yield raw[len(raw) // 2 :]

        sent = halves() if callbacks.stutter else body.encode()
        headers = {"Content-Type": kind}
        try:
            async with self._session.post(
                url, data=sent, headers=headers, allow_redirects=False
            ) as response:
                return response.status // 100 == 2
        except (aiohttp.ClientError, OSError):
            return False

    def forget(self) -> None:
        """Cancel all pending callbacks, and reset the counters."""
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
    # Parsed by the same library that sends the request.
    try:
        url = URL(address) if isinstance(address, str) else None
    except ValueError:
        return None
    if url is None or url.scheme != "http" or not is_loopback(url.host or ""):
        return None
    return url
