"""The simulated gateway: its options, its lifecycle, and methods to plan and assert."""

import asyncio
import contextlib
import os
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from re import Pattern
from typing import Any, Literal, Self

import attrs
from aiohttp import web

from . import _loopback
from ._clock import SimulatedClock
from ._server import dialects as _dialects
from ._server.accounts import Bucket
from ._server.api import Api, FeedVerb, KeyStyle, price_of
from ._server.callbacks import Callbacks, CallbackSender
from ._server.cdn import Files, Media
from ._server.ledger import Ledger
from ._server.lists import AccountLists
from ._server.options import CONTROL, check
from ._server.state import Closed, LedgerEntry, Opened, StateFile, StrPath, clock_of, sent_until
from ._server.store import Origin, PerTask, Rule, Seen, Store, TaskView, Which
from ._server.story import Ending, Script
from ._server.visits import GRACE, RequestHandler
from .faults import Fault, Planned, TooManyRequests, Where


@attrs.define(kw_only=True, eq=False, repr=False)
class Simulator:
    """
    A simulated gateway on this machine: no key, no cost, and nothing leaves loopback.

    Tasks run by the loop's clock, *speed* times as fast, and are billed in points that are
    refunded when a task fails. Files are served from a second origin, like those of a CDN.
    Durations are simulated seconds; instants are seconds of the loop's clock.

    With a state file it survives `kill -9`. Every accepted task is written there before the
    response is sent, and the next simulator with this file continues all of them, with the
    same ids, files, endings, callbacks and points. While none ran, their time went on by the
    wall clock. Requests, polls, scripts and faults are not kept. The file contains prompts but
    no keys, and only one simulator may use it at a time.

    Raises:
        OSError: The state file cannot be read.
        ValueError: An option is not valid, or the file is not a state file.
    """

    #: 127.0.0.0/8, ::1 or localhost; anything else is a ValueError.
    host: str = attrs.field(default="127.0.0.1", converter=_loopback.bind_address)
    #: The port of the API; 0 picks a free one and keeps it across restarts.
    port: int = attrs.field(default=0, validator=check)
    #: The port of the files; 0 picks a free one.
    cdn_port: int = attrs.field(default=0, validator=check)
    #: A further path prefix, besides /runway, /runway/v1 and /api/video/runway.
    prefix: str = "/runway"

    #: Simulated seconds per second of the loop.
    speed: float = attrs.field(default=1.0, validator=check)
    #: The same seed gives the same task ids, links and mix of dialects.
    seed: int = 0
    #: How long a task takes unless its script says otherwise, or a function of the request's body.
    takes: PerTask = attrs.field(default=100.0, validator=check)

    #: The first account's key.
    api_key: str = "sk-simulated"
    #: The points that account starts with; None means no limit.
    points: float | None = attrs.field(default=100_000.0, validator=check)
    #: Points per task, or a function of the request's body.
    price: PerTask = attrs.field(default=price_of, validator=check)

    #: The token that lets a program list the tasks of the first account.
    access_token: str = attrs.field(default="simulated-access-token", repr=False)
    #: The number of the first account's user.
    user_id: int = attrs.field(default=7, validator=check)
    #: How it lists tasks and charges; None means that it has no such routes.
    lists: AccountLists | None = attrs.field(factory=AccountLists)
    #: How many seconds the gateway's clock is ahead: in Date headers, and in the lists.
    clock_offset: float = attrs.field(default=0.0, validator=check)

    #: The format of its responses: a name from `DIALECTS` or `SHAPES`, or "mixed", which varies.
    dialect: str = attrs.field(default="envelope", converter=_dialects.checked)
    #: The format of its responses on the official routes.
    official_dialect: str = attrs.field(default="official", converter=_dialects.checked)
    #: The HTTP method of the feed: "POST", "GET" or "any".
    feed_verb: FeedVerb = attrs.field(default="POST", validator=check)
    #: Where requests carry the key: "bearer", "raw" (bare in Authorization), "body" or "any".
    key_style: KeyStyle = attrs.field(default="bearer", validator=check)
    #: Refuse a request without `callback_url`, as most gateways do.
    strict: bool = attrs.field(default=True, validator=check)
    #: Refuse an official request without `X-Runway-Version`, as CometAPI documents it.
    requires_version: bool = attrs.field(default=False, validator=check)
    #: The status for an empty account: gateways use both (api-facts 5.1).
    quota_status: Literal[401, 403] = attrs.field(default=403, validator=check)

    #: Requests per second of the loop, for each key; None means no limit.
    rate_limit: float | None = attrs.field(default=None, validator=check)
    #: How many requests that limit allows at once.
    burst: int = attrs.field(default=1, validator=check)
    #: The response to requests above the limit.
    rate_limit_response: TooManyRequests = attrs.field(factory=TooManyRequests)

    #: Where video URLs point: "cdn", "api", "relative" (to the API, without its origin), or
    #: "redirect" (to the API, which redirects to the CDN).
    media: Media = attrs.field(default="cdn", validator=check)
    #: Serve files only for the exact bytes of a URL, with escaped characters in path and query.
    exact_links: bool = attrs.field(default=False, validator=check)
    #: The file of every task; None is the bundled clip, with the task's id at its end.
    video: bytes | None = None
    #: How long a URL works before a poll returns a new one; None means no limit.
    link_lifetime: float | None = attrs.field(default=None, validator=check)
    #: The status of an expired URL.
    expired_status: int = attrs.field(default=403, validator=check)

    #: The share of requests, from 0 to 1, with a random fault that costs nothing (see `seed`).
    weather: float = attrs.field(default=0.0, validator=check)

    #: How callbacks are sent; None sends none.
    callbacks: Callbacks | None = attrs.field(factory=Callbacks)
    #: How many requests are remembered.
    log_limit: int = 100_000

    #: The file in which tasks and points survive the process; None keeps nothing.
    state_file: StrPath | None = None
    #: Whether other programs may script and inspect it, by JSON under `control_url`.
    control: bool = attrs.field(default=False, validator=check)

    _state: StateFile = attrs.field(init=False)
    # All webhooks until this instant were sent.
    _sent_until: float = attrs.field(init=False)
    _clock: SimulatedClock = attrs.field(init=False)
    _store: Store = attrs.field(init=False)
    _files: Files = attrs.field(init=False)
    _callback_sender: CallbackSender = attrs.field(init=False)
    _handler: RequestHandler = attrs.field(init=False)
    _api: Api = attrs.field(init=False)
    _running: contextlib.AsyncExitStack | None = attrs.field(init=False, default=None)
    # Bound, but not listening yet.
    _sockets: dict[Origin, socket.socket] = attrs.field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self._state = StateFile(None if self.state_file is None else Path(self.state_file))
        records = self._state.read()
        self._sent_until = sent_until(records)
        self._clock = clock_of(records, self.speed)
        self._store = Store(self, self._clock, self._state)
        self._store.restore(records)
        self._handler = RequestHandler(self._store)
        self._files = Files(self, self._store)
        self._callback_sender = CallbackSender(self, self._files)
        self._api = Api(self, self._store, self._files, self._callback_sender, self._handler)
        self.add_key(self.api_key, points=self.points, user_id=self.user_id)

    @control.validator
    def _has_its_own_paths(self, _: object, control: bool) -> None:  # noqa: FBT001 - attrs calls it
        if control and f"{self.prefix}/".startswith(f"{CONTROL}/"):
            raise ValueError(f"prefix={self.prefix!r} is where the control API is")

    def __repr__(self) -> str:
        where = f"on {self.base_url}" if self.is_running else "closed"
        states = Counter(task.state for task in self.tasks)
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        tasks = "1 task" if self.submitted == 1 else f"{self.submitted} tasks"
        return f"<Simulator {where}, {tasks}{counts and f' ({counts})'}>"

    def _repr_pretty_(self, printer: Any, _cycle: object) -> None:
        # Hypothesis and IPython would print every field.
        printer.text(repr(self))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()
        if self.mistakes:
            raise self.mistakes.pop(0)

    def bind(self) -> None:
        """
        Take both ports, so that the addresses are known before `start`; nothing is served yet.

        Raises:
            OSError: A port is taken.
        """
        if self._running is not None or self._sockets:
            return
        try:
            self.port = self._bind("api", self.port)
            self.cdn_port = self._bind("cdn", self.cdn_port)
        except OSError:
            self.unbind()
            raise

    def _bind(self, origin: Origin, port: int) -> int:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._sockets[origin] = bound = socket.socket(family, socket.SOCK_STREAM)
        # As asyncio does: on Windows the option would let two servers have one port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name == "posix")
        try:
            bound.bind((self.host, port))
        except OSError as error:
            where = f"cannot listen on {(self.host, port)}: {error.strerror}"
            raise OSError(error.errno, where) from error
        taken = int(bound.getsockname()[1])
        host = f"[{self.host}]" if ":" in self.host else self.host
        self._files.origins[origin] = f"http://{host}:{taken}"
        return taken

    def unbind(self) -> None:
        """Release the ports that `bind` took, unless `start` has opened them."""
        while self._sockets:
            self._sockets.popitem()[1].close()

    async def start(self) -> None:
        """
        Open both origins; does nothing if they are open.

        After `aclose` the gateway starts again on the same ports and with all its tasks, whose
        time went on in the meantime. Webhooks that were due are sent now.

        Raises:
            OSError: A port is taken, or the state file cannot be written.
            RuntimeError: It is open in another event loop, or another simulator has written to the
                state file.
        """
        if self._running is not None:
            if self._clock.loop is not asyncio.get_running_loop():
                raise RuntimeError(
                    "the simulator is open in another event loop, and answers only while that loop "
                    "runs; open and close it in the same loop as the code that uses it"
                )
            return
        # The webhooks of tasks that are accepted from now on are sent by their submits.
        earlier = tuple(self._store.tasks.values())
        async with contextlib.AsyncExitStack() as stack:
            self._clock.open()
            self._state.open()
            stack.callback(self._state.close)
            stack.push(self._write_end)
            now, epoch = self._clock.now(), self._clock.epoch
            self._state.append(Opened(at=time.time(), instant=now, speed=self.speed, epoch=epoch))
            stack.callback(self.unbind)
            self.bind()
            app = self._api.application()
            if self.control:
                from ._control.commands import Control  # noqa: PLC0415 - it imports this module

                Control(self, self._store).add_to(app)
            await self._listen(stack, "api", app)
            await self._listen(stack, "cdn", self._files.application(self._handler))
            stack.push_async_callback(self._handler.aclose)
            stack.push_async_callback(self._callback_sender.aclose)
            # Called first on closing: hanging requests have to wake before connections close.
            stack.callback(self._clock.close)
            for task in earlier:
                self._callback_sender.follow(task, self._sent_until)
            self._running = stack.pop_all()

    def _write_end(self, _kind: object, error: object, _traceback: object) -> None:
        # A start that failed sent no webhook.
        if error is None:
            self._sent_until = self._clock.now()
            self._state.append(Closed(at=time.time(), instant=self._sent_until))

    async def _listen(
        self, stack: contextlib.AsyncExitStack, origin: Origin, app: web.Application
    ) -> None:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=GRACE)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, self._sockets.pop(origin)).start()

    async def aclose(self) -> None:
        """Close everything, hanging requests included; does nothing if it is closed."""
        self.unbind()
        running, self._running = self._running, None
        if running is not None:
            await running.aclose()

    async def serve_forever(self) -> None:
        """Run until cancelled or closed."""
        await self.start()
        try:
            await self._clock.pause()
        finally:
            await self.aclose()

    @property
    def mistakes(self) -> list[Exception]:
        """Return the errors of the user's own functions; leaving `async with` raises the first."""
        return self._store.mistakes

    @property
    def is_running(self) -> bool:
        """Return whether it is started."""
        return self._running is not None

    @property
    def base_url(self) -> str:
        """
        Return the URL of the API.

        Raises:
            RuntimeError: The simulator has not been started.
        """
        return self._origin("api")

    @property
    def cdn_url(self) -> str:
        """
        Return the URL of the files: another origin, which must never receive the key.

        Raises:
            RuntimeError: The simulator has not been started.
        """
        return self._origin("cdn")

    def _origin(self, origin: Origin) -> str:
        if origin not in self._files.origins:
            raise RuntimeError("the simulator has not been started, so it has no address yet")
        return self._files.origins[origin]

    @property
    def control_url(self) -> str:
        """
        Return the URL of the control API.

        Raises:
            RuntimeError: The simulator has not been started, or has no control API.
        """
        if not self.control:
            raise RuntimeError("the simulator has no control API; Simulator(control=True) has one")
        return f"{self.base_url}{CONTROL}"

    def environment(self) -> dict[str, str]:
        """Return the environment variables that point a client here."""
        return {
            "FUHU_BASE_URL": self.base_url,
            "FUHU_API_KEY": self.api_key,
            "FUHU_ACCESS_TOKEN": self.access_token,
            "FUHU_USER_ID": str(self.user_id),
        }

    def add_key(
        self,
        key: str,
        *,
        points: float | None = None,
        name: str | None = None,
        user_id: int | None = None,
    ) -> None:
        """
        Add an account, which cannot see the tasks of other users.

        Args:
            key: The key of its requests.
            points: The points it starts with; None means no limit.
            name: Its name on the balance routes and in the state file, where a name keeps its
                tasks from run to run. None counts: test_key, test_key_2 and so on.
            user_id: The user whose key it is: with that of another key, both see all tasks of
                this user. None is a new user.

        Raises:
            ValueError: The key or the name exists already.
        """
        count = len(self._store.accounts) + 1
        name = name or ("test_key" if count == 1 else f"test_key_{count}")
        bucket = None if self.rate_limit is None else Bucket(self.rate_limit, self.burst)
        self._store.open_account(key, name, points, bucket, user_id)

    def script(
        self,
        which: Which = None,
        *,
        takes: float | None = None,
        then: Ending = "succeed",
        dialect: str | None = None,
        faults: Iterable[Planned] = (),
        progress: Sequence[int] = (0, 20, 40, 60, 80),
        queued: float = 0.1,
        reason: str | None = "The input did not pass the content moderation",
        failure_code: str = "SAFETY.INPUT.TEXT",
        refund: bool = True,
        end_status: str | None = None,
        end_state: str | None = None,
        hidden: float = 0.0,
        blank: float = 0.0,
        url_after: float | None = 0.0,
        listed_after: float | None = 0.0,
    ) -> None:
        """
        Plan what a task will do.

        The last script that names a task applies to it. Scripts with the same *which* apply in
        order, one to each task, and the last of them to all further tasks. A task that no script
        names takes the next script without *which*.

        Args:
            which: A prompt, a pattern to find in one, or a function of the request's body that
                returns a bool: all such tasks. None: only the next task.
            takes: The time from the submit to the end; None uses the gateway's own.
            then: How it ends; with "stall" it never does.
            dialect: The dialect of its responses; None uses the gateway's own.
            faults: What goes wrong with its submit, its polls or its download; made by
                `faults.on("feed", ...)`.
            progress: The percents it reports in turn while it runs.
            queued: The share of its time that it waits in the queue.
            reason: The reason of its failure; None gives no reason.
            failure_code: The code of its failure in the official format.
            refund: Whether its points are refunded after a failure.
            end_status: The word for its end in `status`; None uses the dialect's own.
            end_state: The same for `state`, or for the `status` of a nested task.
            hidden: How long the gateway says `task_not_exist` at first.
            blank: How long all fields of its responses are empty at first.
            url_after: How long after its success the URL appears; None means never.
            listed_after: How long after its submit it is in the account's list; None means never.
        """
        script = Script(
            # Only checked here, if None: a submit replaces it.
            takes=0.0 if takes is None else takes,
            then=then,
            dialect=dialect and _dialects.checked(dialect),
            faults=faults,
            progress=progress,
            queued=queued,
            reason=reason,
            failure_code=failure_code,
            refund=refund,
            end_status=end_status,
            end_state=end_state,
            hidden=hidden,
            blank=blank,
            url_after=url_after,
            listed_after=listed_after,
        )
        self._store.add_rule(Rule(which, script, takes))

    def fault(
        self,
        where: Where,
        fault: Fault,
        *,
        times: int | None = 1,
        seconds: float | None = None,
        share: float = 1.0,
    ) -> None:
        """
        Let *fault* happen to the next requests of the kind *where*.

        Args:
            where: The requests that it happens to.
            fault: What goes wrong: one of `fuhu_runway.testing.faults`.
            times: The number of requests that it happens to; None means all.
            seconds: How long from now on it may happen; None means no limit.
            share: The share of these requests that it happens to, at random, from 0 to 1 (see
                `seed`). The others may have the next fault that was planned.

        Raises:
            ValueError: This fault cannot happen there.
        """
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"seconds={seconds!r} is less than 0")
        until = None if seconds is None else self._clock.now() + seconds
        self._store.plans.add(Planned(where, fault, times, until, share))

    def forget_plans(self) -> None:
        """Forget every planned script and fault; a task that has its script keeps it."""
        self._store.forget_plans()

    def reset(self) -> None:
        """
        Forget everything, as between two tests: plans, tasks, requests, counts and further keys.

        The first key gets its initial points, and pending callbacks are not sent. No id is
        used twice, so that a wait for a forgotten task does not find another one.

        Raises:
            RuntimeError: It has a state file, which cannot forget its tasks.
        """
        if self.state_file is not None:
            raise RuntimeError(
                "a simulator with a state file cannot forget its tasks; start one with another file"
            )
        self._store.forget()
        self._callback_sender.forget()
        self._handler.peak = 0
        self.add_key(self.api_key, points=self.points, user_id=self.user_id)

    @property
    def submitted(self) -> int:
        """Return the number of billable tasks."""
        return len(self._store.tasks)

    @property
    def tasks(self) -> tuple[TaskView, ...]:
        """Return every billable task, in the order of submission."""
        # A copy: beside a synchronous test, the gateway's thread may accept another one.
        return tuple(task.view(self._clock) for task in [*self._store.tasks.values()])

    @property
    def duplicates(self) -> tuple[tuple[TaskView, ...], ...]:
        """Return the tasks with equal request bodies, in groups of at least two."""
        groups: defaultdict[str, list[TaskView]] = defaultdict(list)
        for task in self.tasks:
            groups[task.digest].append(task)
        return tuple(tuple(group) for group in groups.values() if len(group) > 1)

    def assert_submitted_once(self, prompt: str | Pattern[str] | None = None) -> None:
        """
        Fail unless exactly one task was submitted, and so paid for.

        Args:
            prompt: Count only tasks with this prompt, or with a match of this pattern in it.

        Raises:
            AssertionError: The count is not 1. It shows the ledger, prompts included.
        """
        __tracebackhide__ = True
        self._ledger().check_once(prompt)

    def assert_all_used(self) -> None:
        """
        Fail unless every plan was used, and every paid task was polled.

        A script was used if one of its tasks was submitted, a fault if it happened once.

        Raises:
            AssertionError: Something is left. It shows the ledger, prompts included.
        """
        __tracebackhide__ = True
        self._ledger().check_all(self._store.rules, self._store.untouched())

    def _ledger(self) -> Ledger:
        return Ledger(self.tasks, self._clock.instant)

    def ledger(self) -> tuple[LedgerEntry, ...]:
        """
        Return the outcome of every paid submit, in order.

        `read_ledger` reads the same from the state file.
        """
        return tuple(task.entry for task in [*self._store.tasks.values()])

    def polls(self, task_id: str) -> int:
        """Return how often the client polled one task, with or without a response."""
        return self._store.tasks[task_id].polls

    @property
    def requests(self) -> tuple[Seen, ...]:
        """Return the requests to both origins, in order."""
        return tuple(self._store.seen)

    @property
    def leaked(self) -> tuple[Seen, ...]:
        """Return the requests to the second origin with a key in a header or in the URL."""
        return tuple(self._store.leaked)

    @property
    def limited(self) -> int:
        """Return how many requests the rate limit refused."""
        return self._store.limited

    @property
    def peak_requests(self) -> int:
        """Return the largest number of requests in flight at once."""
        return self._handler.peak

    @property
    def balance(self) -> float | None:
        """Return the points the first account has left; None means no limit."""
        self._store.settle()
        return self._store.accounts[self.api_key].points

    @property
    def refunds(self) -> float:
        """Return the points refunded for failed tasks, to all accounts."""
        self._store.settle()
        accounts = chain(self._store.accounts.values(), self._store.keyless.values())
        return sum(account.refunded for account in accounts)

    @property
    def callbacks_delivered(self) -> int:
        """Return how many callbacks got a response with a 2xx."""
        return self._callback_sender.delivered

    @property
    def callbacks_failed(self) -> int:
        """Return how many callbacks got another status or no response."""
        return self._callback_sender.failed
