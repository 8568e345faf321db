"""Receive each request: log it, pick the fault planned for it, and respond."""

import asyncio
import json
import uuid
from collections.abc import Callable
from random import Random
from typing import Any, Final, cast

import attrs
from aiohttp import web

from fuhu_runway.testing.faults import Fault, Where

from . import bodies as _bodies
from .exchange import Reply, Visit, enact, json_reply
from .store import Origin, Rule, Seen, SimulatedTask, Store
from .weather import WEATHER

# Pictures may come as data URIs in the official format.
MAX_BODY_BYTES: Final = 20 * 1024 * 1024

# Real seconds for the responses in flight when the gateway closes. Hanging ones have been woken by
# now, so only a client that does not read its response is cut off.
GRACE: Final = 0.1

HEADERS: Final = (
    "Accept",
    "Authorization",
    "Content-Type",
    "Host",
    "If-Range",
    "New-Api-User",
    "Range",
    "User-Agent",
    "X-Runway-Version",
)

#: Does the work of a route, with the fault that changes the content of its response, if any.
Work = Callable[[Visit, Fault | None], Reply]


@attrs.frozen
class Route:
    """What one path is for."""

    #: The kind of request in `Simulator.fault` and `Seen`; None for an unknown path.
    where: Where | None
    #: The kind of request in a script: the official routes submit and poll as well.
    role: Where | None
    work: Work
    origin: Origin = "api"


@attrs.define
class RequestHandler:
    """Receive every request to both origins."""

    store: Store
    #: The largest number of requests in flight at once.
    peak: int = 0
    _random: Random = attrs.field(init=False)
    # A separate generator: planning a fault must not change the weather.
    _shares: Random = attrs.field(init=False)
    _answering: set[asyncio.Task[Any]] = attrs.field(factory=set)

    def __attrs_post_init__(self) -> None:
        seed = self.store.options.seed
        self._random = Random(f"weather {seed}")  # noqa: S311 - the same for the same seed
        self._shares = Random(f"shares {seed}")  # noqa: S311 - the same for the same seed

    async def receive(self, route: Route, request: web.Request) -> web.StreamResponse:
        """Respond to *request*, with the fault that is planned for it."""
        try:
            return await self._receive(route, request)
        except Exception as error:
            traceback, ours = error.__traceback__, (__package__, "aiohttp")
            while traceback and traceback.tb_frame.f_globals["__name__"].startswith(ours):
                traceback = traceback.tb_next
            if traceback is None:
                raise
            # A function of the user's raised it. The client gets a 500, the test the error itself.
            self.store.mistakes.append(error.with_traceback(traceback))
            return web.Response(status=500)

    async def _receive(self, route: Route, request: web.Request) -> web.StreamResponse:
        try:
            raw = await request.read()
        except web.HTTPRequestEntityTooLarge:
            route, raw = attrs.evolve(route, work=_too_large), b""
        except ConnectionError:
            # The client disconnected before its request was complete.
            return web.Response()
        try:
            parsed = json.loads(raw)
        except ValueError:
            parsed = None
        sent = parsed if isinstance(parsed, dict) else None
        seen, task = self._record(request, len(raw), route), self._task_of(request, sent or {})
        if task is not None:
            seen.task_id = task.task_id
            task.polls += route.role == "feed"
        visit = Visit(self.store, request, raw, sent, seen, task, route.work)
        fault = self._fault(visit, route)
        seen.fault = None if fault is None else fault.label
        answering = cast("asyncio.Task[Any]", asyncio.current_task())
        self._answering.add(answering)
        self.peak = max(self.peak, len(self._answering))
        try:
            response = await enact(fault, visit)
            await self._hand_over(visit, response)
        except ConnectionError:
            # The client disconnected before it had read the whole response.
            return visit.drop(reset=True)
        except asyncio.CancelledError:
            # The client does not read its response, and the gateway is closing.
            visit.drop(reset=True)
            raise
        finally:
            self._answering.discard(answering)
        return response

    async def _hand_over(self, visit: Visit, response: web.StreamResponse) -> None:
        """Send the response to a paid request, and record that it was sent."""
        transport = visit.request.transport
        if visit.made is None or transport is None or transport.is_closing():
            return
        # aiohttp would do the same after this method, when it is too late to record it.
        await response.prepare(visit.request)
        await response.write_eof()
        self.store.answered(visit.made, response.status)

    async def aclose(self) -> None:
        """Wait `GRACE` for the responses in flight, and cancel the rest."""
        if not self._answering:
            return
        _, late = await asyncio.wait(self._answering, timeout=GRACE)
        for answering in late:
            answering.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _record(self, request: web.Request, body_bytes: int, route: Route) -> Seen:
        head = [*request.headers.values(), request.query_string]
        seen = Seen(
            origin=route.origin,
            where=route.where,
            method=request.method,
            path=request.path,
            query=request.query_string,
            headers={name: request.headers[name] for name in HEADERS if name in request.headers},
            body_bytes=body_bytes,
            at=self.store.clock.loop_time(self.store.clock.now()),
            carried_key=any(secret in text for secret in self.store.secrets for text in head),
        )
        self.store.seen.append(seen)
        if seen.carried_key and seen.origin == "cdn":
            self.store.leaked.append(seen)
        return seen

    def _task_of(self, request: web.Request, body: dict[str, Any]) -> SimulatedTask | None:
        match = request.match_info
        if "name" in match:
            # The name of a file begins with the digits of the id.
            try:
                return self.store.tasks.get(str(uuid.UUID(match["name"][:32])))
            except ValueError:
                return None
        asked = match.get("task_id") or request.query.get("task_id") or body.get("task_id")
        return self.store.tasks.get(asked) if isinstance(asked, str) else None

    def _fault(self, visit: Visit, route: Route) -> Fault | None:
        """Return the fault of the task's script, else that of the gateway's plans or weather."""
        now, fault = self.store.clock.now(), None
        scripted: SimulatedTask | Rule | None = visit.task
        if scripted is None and route.role == "submit":
            scripted = self.store.rule_for(visit.sent or {})
        if scripted is not None and route.role is not None:
            fault = scripted.plans.take(route.role, now, self._shares.random)
        if fault is None and route.where is not None:
            fault = self.store.plans.take(route.where, now, self._shares.random)
        if fault is not None or route.role is None:
            return fault
        is_bad = self._random.random() < self.store.options.weather
        return self._random.choice(WEATHER[route.role]) if is_bad else None


def _too_large(_visit: Visit, _fault: Fault | None) -> Reply:
    return json_reply(_bodies.task_error("read_request_body_failed"), 413)
