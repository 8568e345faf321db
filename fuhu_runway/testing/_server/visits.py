"""How a request is taken in: recorded, given the fault that waits for it, and answered."""

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator
from random import Random
from types import TracebackType
from typing import Any, Final, cast

import attrs
from aiohttp import web

from fuhu_runway.testing.faults import Fault, Where

from . import bodies as _bodies
from .exchange import Reply, Visit, enact, json_reply
from .store import Origin, Plans, Seen, SimulatedTask, Store
from .weather import WEATHER

# Pictures may come as data URIs in the official format.
MAX_BODY_BYTES: Final = 20 * 1024 * 1024

# Real seconds for the answers that are left when the gateway closes. All that hang were woken by
# now, so this is for a client that does not read its answer.
GRACE: Final = 0.1

HEADERS: Final = (
    "Accept",
    "Authorization",
    "Content-Type",
    "Host",
    "If-Range",
    "Range",
    "User-Agent",
    "X-Runway-Version",
)


@attrs.frozen
class Route:
    """What one path is for."""

    #: Whose faults it takes from the gateway's plans; None for an unknown path.
    where: Where | None
    #: Whose faults it takes from a script: the official routes submit and poll as well.
    role: Where | None
    work: Callable[[Visit, Fault | None], Reply]
    origin: Origin = "api"


@attrs.define
class Reception:
    """Where every request of both origins comes in."""

    store: Store
    #: The most requests there ever were to answer at once.
    peak: int = 0
    _random: Random = attrs.field(init=False)
    _answering: set[asyncio.Task[Any]] = attrs.field(factory=set)

    def __attrs_post_init__(self) -> None:
        seed = self.store.options.seed
        self._random = Random(f"weather {seed}")  # noqa: S311 - the same for the same seed

    async def receive(self, route: Route, request: web.Request) -> web.StreamResponse:
        """Answer *request*, with all that is planned to go wrong."""
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
        sent = _parsed(raw)
        seen, task = self._record(request, len(raw), route), self._task_of(request, sent or {})
        if task is not None:
            seen.task_id = task.task_id
            task.polls += route.role == "feed"
        visit = Visit(self.store, request, raw, sent, seen, task, route.work)
        fault = self._fault(visit, route)
        seen.fault = None if fault is None else fault.label
        return await self._answer(visit, fault)

    async def _answer(self, visit: Visit, fault: Fault | None) -> web.StreamResponse:
        answering = cast("asyncio.Task[Any]", asyncio.current_task())
        self._answering.add(answering)
        self.peak = max(self.peak, len(self._answering))
        try:
            response = await enact(fault, visit)
            await self._hand_over(visit, response)
        except ConnectionError:
            # The client left before it had read all, which is its own affair.
            return visit.drop(reset=True)
        except asyncio.CancelledError:
            # The answer is not read, and what is left of it must not outlive the gateway.
            visit.drop(reset=True)
            raise
        finally:
            self._answering.discard(answering)
        return response

    async def _hand_over(self, visit: Visit, response: web.StreamResponse) -> None:
        """Send the answer to a paid request, and record that it left."""
        transport = visit.request.transport
        if visit.made is None or transport is None or transport.is_closing():
            return
        # aiohttp would do just this a moment later, without a report.
        await response.prepare(visit.request)
        await response.write_eof()
        self.store.answered(visit.made, response.status)

    async def aclose(self) -> None:
        """Wait a moment for the answers that are left, and cancel the rest."""
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
            carried_key=any(key in text for key in self.store.accounts for text in head),
        )
        self.store.seen.append(seen)
        if seen.carried_key and seen.origin == "cdn":
            self.store.leaked.append(seen)
        return seen

    def _task_of(self, request: web.Request, body: dict[str, Any]) -> SimulatedTask | None:
        match = request.match_info
        if "name" in match:
            # The digits of the id come first in the name of a file.
            try:
                return self.store.tasks.get(str(uuid.UUID(match["name"][:32])))
            except ValueError:
                return None
        asked = match.get("task_id") or request.query.get("task_id") or body.get("task_id")
        return self.store.tasks.get(asked) if isinstance(asked, str) else None

    def _fault(self, visit: Visit, route: Route) -> Fault | None:
        now = self.store.clock.now()
        for plans, where in self._plans(visit, route):
            fault = None if where is None else plans.take(where, now)
            if fault is not None:
                return fault
        if route.role is None or self._random.random() >= self.store.options.weather:
            return None
        return self._random.choice(WEATHER[route.role])

    def _plans(self, visit: Visit, route: Route) -> Iterator[tuple[Plans, Where | None]]:
        """Yield where a fault may wait for *visit*: what is scripted comes first."""
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
