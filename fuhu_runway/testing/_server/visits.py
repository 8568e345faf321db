"""How a request is taken in: written down, given the fault that waits for it, and answered."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from types import TracebackType
from typing import Any, Final, cast

import attrs
from aiohttp import web

from fuhu_runway.testing.faults import Fault, Where

from . import bodies as _bodies
from .exchange import Exchange, Refused, Reply, enact, json_reply
from .store import Origin, Plans, Seen, SimulatedTask, Store, prompt_of
from .weather import WEATHER

# Pictures may come as data URIs in the official format.
MAX_BODY_BYTES: Final = 20 * 1024 * 1024

# All that hang were woken by now, so this is for a client that does not read its answer.
GRACE: Final = 0.1

HEADERS_THAT_MATTER: Final = (
    "Accept",
    "Authorization",
    "Content-Type",
    "Host",
    "If-Range",
    "Range",
    "User-Agent",
    "X-Runway-Version",
)


@attrs.define
class Visit:
    """One request while its answer is made."""

    request: web.Request
    raw: bytes = attrs.field(repr=False)
    #: The JSON object that came; None if there was none.
    sent: dict[str, Any] | None = attrs.field(repr=False)
    seen: Seen
    #: The task it asks for, if there is such a task.
    task: SimulatedTask | None = None
    #: The task that it made, and paid for.
    made: SimulatedTask | None = None

    def body(self) -> dict[str, Any]:
        """
        The JSON object that came.

        Raises:
            Refused: It is none.
        """
        if self.sent is None:
            raise Refused(json_reply(_bodies.task_error("read_request_body_failed"), 400))
        return self.sent


Work = Callable[[Visit, Fault | None], Reply]


@attrs.frozen
class Route:
    """What one path is for."""

    #: Whose faults it takes from the gateway's plans; None for an unknown path.
    where: Where | None
    #: Whose faults it takes from a script: the official routes submit and look as well.
    role: Where | None
    work: Work
    origin: Origin = "api"


@attrs.define
class Reception:
    """Where every request of both origins comes in."""

    store: Store
    #: The share of requests to which something harmless happens.
    weather: float
    random: Random
    #: The most requests there ever were to answer at once.
    peak: int = 0
    _answering: set[asyncio.Task[Any]] = attrs.field(factory=set)

    async def receive(self, route: Route, request: web.Request) -> web.StreamResponse:
        """The answer to *request*, with all that is planned to go wrong."""
        try:
            return await self._receive(route, request)
        except Exception as error:
            users = _users(error.__traceback__)
            if users is None:
                raise
            # The client gets a 500 and makes something else of it, so it is kept for the test.
            self.store.mistakes.append(error.with_traceback(users))
            return web.Response(status=500)

    async def _receive(self, route: Route, request: web.Request) -> web.StreamResponse:
        try:
            raw = await request.read()
        except web.HTTPRequestEntityTooLarge:
            route, raw = attrs.evolve(route, work=_too_large), b""
        except ConnectionError:
            # The client left before its request was complete, and there is no one to answer.
            return web.Response()
        visit = Visit(request, raw, _parsed(raw), self._note(request, len(raw), route))
        visit.task = self._task_of(visit)
        if visit.task is not None:
            visit.seen.task_id = visit.task.task_id
            visit.task.polls += route.role == "feed"
        return await self._answer(visit, route.work, self._fault(visit, route))

    async def _answer(self, visit: Visit, work: Work, fault: Fault | None) -> web.StreamResponse:
        visit.seen.fault = None if fault is None else fault.label
        guarded = partial(self._guarded, work, visit)
        prompt = prompt_of(visit.sent or {})
        exchange = Exchange(visit.request, self.store.clock, visit.seen, guarded, prompt)
        with self._in_flight():
            try:
                response = await enact(fault, exchange)
                await self._hand_over(visit, response)
            except ConnectionError:
                # The client left before it had read all, which is its own affair.
                return exchange.drop(reset=True)
            except asyncio.CancelledError:
                # The answer is not read, and what is left of it must not outlive the gateway.
                exchange.drop(reset=True)
                raise
        return response

    async def _hand_over(self, visit: Visit, response: web.StreamResponse) -> None:
        """Return the answer to a paid request to the socket, and write down that it left."""
        transport = visit.request.transport
        if visit.made is None or transport is None or transport.is_closing():
            return
        # aiohttp would do just this a moment later, without a word.
        await response.prepare(visit.request)
        await response.write_eof()
        self.store.answered(visit.made, response.status)

    @contextlib.contextmanager
    def _in_flight(self) -> Iterator[None]:
        answering = cast("asyncio.Task[Any]", asyncio.current_task())
        self._answering.add(answering)
        self.peak = max(self.peak, len(self._answering))
        try:
            yield
        finally:
            self._answering.discard(answering)

    async def aclose(self) -> None:
        """See every answer to its end, or end it."""
        if not self._answering:
            return
        _, late = await asyncio.wait(self._answering, timeout=GRACE)
        for answering in late:
            answering.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _guarded(self, work: Work, visit: Visit, fault: Fault | None) -> Reply:
        self.store.settle()
        try:
            return work(visit, fault)
        except Refused as refused:
            return refused.reply

    def _note(self, request: web.Request, body_bytes: int, route: Route) -> Seen:
        named = (name for name in HEADERS_THAT_MATTER if name in request.headers)
        seen = Seen(
            origin=route.origin,
            where=route.where,
            method=request.method,
            path=request.path,
            query=request.query_string,
            headers={name: request.headers[name] for name in named},
            body_bytes=body_bytes,
            at=self.store.clock.loop_time(self.store.clock.now()),
            carried_key=self._carries_key(request),
        )
        self.store.note(seen)
        return seen

    def _carries_key(self, request: web.Request) -> bool:
        head = [*request.headers.values(), request.query_string]
        return any(key in text for key in self.store.accounts for text in head)

    def _task_of(self, visit: Visit) -> SimulatedTask | None:
        match = visit.request.match_info
        if "name" in match:
            return self.store.task_of_file(match["name"])
        asked = match.get("task_id") or visit.request.query.get("task_id")
        if asked is None:
            asked = (visit.sent or {}).get("task_id")
        return self.store.tasks.get(asked) if isinstance(asked, str) else None

    def _fault(self, visit: Visit, route: Route) -> Fault | None:
        now = self.store.clock.now()
        for plans, where in self._plans(visit, route):
            fault = None if where is None else plans.take(where, now)
            if fault is not None:
                return fault
        if route.role is None or self.random.random() >= self.weather:
            return None
        return self.random.choice(WEATHER[route.role])

    def _plans(self, visit: Visit, route: Route) -> Iterator[tuple[Plans, Where | None]]:
        """Where a fault may wait for *visit*: what is scripted comes first."""
        if visit.task is not None:
            yield visit.task.plans, route.role
        elif route.role == "submit":
            rule = self.store.rule_for(visit.sent or {})
            if rule is not None:
                yield rule.plans, route.role
        yield self.store.plans, route.where


def _users(traceback: TracebackType | None) -> TracebackType | None:
    """Return the part of *traceback* that is in a function of the user's; None if none is."""
    ours = (__package__, "aiohttp")
    while traceback is not None and traceback.tb_frame.f_globals["__name__"].startswith(ours):
        traceback = traceback.tb_next
    return traceback


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(raw)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _too_large(_visit: Visit, _fault: Fault | None) -> Reply:
    return json_reply(_bodies.task_error("read_request_body_failed"), 413)
