"""The state of the gateway: its keys, tasks, plans and requests."""

import hashlib
import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from heapq import heappop, heappush
from random import Random
from re import Pattern
from typing import TYPE_CHECKING, Any, Literal

import attrs

from fuhu_runway.testing._clock import SimulatedClock
from fuhu_runway.testing.faults import Fault, Planned, Where

from . import story as _story
from .accounts import Account, Bucket
from .state import Accepted, Answered, Filed, LedgerEntry, Record, StateFile, entry_of
from .story import Moment, Script, Stage

if TYPE_CHECKING:
    from fuhu_runway.testing.simulator import Simulator

Body = Mapping[str, Any]
Which = str | Pattern[str] | Callable[[Body], bool] | None
Origin = Literal["api", "cdn"]
PerTask = float | Callable[[Body], float]


def prompt_of(body: Body) -> str:
    """Return the prompt in *body*, in either format; empty if there is none."""
    prompt = body.get("prompt") or body.get("promptText")
    if not isinstance(prompt, str):
        return ""
    # JSON may hold half of a surrogate pair, which cannot be encoded in a response.
    return prompt.encode(errors="replace").decode()


def amount(value: PerTask, body: Body) -> float:
    """Return *value*, or what it returns for *body*."""
    return value(body) if callable(value) else value


@attrs.define
class Plans:
    """Planned faults: the first one for a kind of request applies to it."""

    _waiting: list[Planned] = attrs.field(factory=list)
    #: Those that have not happened yet.
    untouched: list[Planned] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.untouched = [*self._waiting]

    def add(self, planned: Planned) -> None:
        self._waiting.append(planned)
        self.untouched.append(planned)

    def waiting(self, now: float) -> list[Planned]:
        self._waiting = [one for one in self._waiting if one.until is None or now < one.until]
        return self._waiting

    def take(self, where: Where, now: float, roll: Callable[[], float]) -> Fault | None:
        """
        Return the fault for a request of the kind *where*, and count it as used once.

        *roll* returns a random number from 0 to 1, for a fault on a share of the requests.
        """
        for index, found in enumerate(self.waiting(now)):
            if found.where == where and (found.share == 1 or roll() < found.share):
                self.untouched = [one for one in self.untouched if one is not found]
                if found.times is not None:
                    left = attrs.evolve(found, times=found.times - 1) if found.times > 1 else None
                    self._waiting[index : index + 1] = [left] if left else []
                return found.fault
        return None


@attrs.define
class Rule:
    """A script, the tasks it is for, and its faults on their submits."""

    which: Which
    script: Script
    #: None uses the gateway's own duration.
    takes: float | None = None
    #: Whether such a task was ever submitted, and whether one was accepted.
    is_requested: bool = attrs.field(init=False, default=False)
    is_used: bool = attrs.field(init=False, default=False)
    plans: Plans = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        if not (
            self.which is None or isinstance(self.which, str | Pattern) or callable(self.which)
        ):
            raise TypeError(f"{self.which!r} is not a prompt, a pattern or a function of the body")
        # Kept here: a refused submit is retried with the same prompt.
        self.plans = Plans([one for one in self.script.faults if one.where == "submit"])

    def fits(self, body: Body) -> bool:
        """Return whether this rule names the task of *body*."""
        if isinstance(self.which, str):
            return self.which == prompt_of(body)
        if isinstance(self.which, Pattern):
            return self.which.search(prompt_of(body)) is not None
        return self.which is not None and self.which(body)


@attrs.frozen
class Link:
    """The signature that makes a URL of the second origin work, for a time."""

    token: str = attrs.field(repr=False)
    #: In simulated seconds; None means never.
    expires_at: float | None = None
    #: The HTTP status for a dead link; None while it is alive.
    dead: int | None = None

    def is_alive(self, now: float) -> bool:
        return self.dead is None and (self.expires_at is None or now < self.expires_at)


@attrs.frozen(kw_only=True)
class TaskView:
    """The state of one billable task. Instants are seconds of the loop's clock."""

    #: The task.
    task_id: str
    #: The prompt in its request.
    prompt: str = attrs.field(repr=False)
    #: submitted, queued, running, succeeded, failed, cancelled or expired.
    state: Stage
    #: The paid route that it was submitted on, such as TEXT_TO_VIDEO.
    action: str
    #: When it was accepted.
    created_at: float
    #: When it ends, or ended; None if its script never ends it.
    finishes_at: float | None
    #: How often the client polled it.
    polls: int
    #: What it costs.
    points: float
    #: Whether the points were refunded.
    refunded: bool
    #: The request's body, as JSON and as raw bytes.
    request: Body = attrs.field(repr=False)
    raw: bytes = attrs.field(repr=False)
    #: SHA-256 of the body, in hex: the same for two submits of the same bytes.
    digest: str
    #: The name of the key that paid for it.
    key_name: str


@attrs.define(eq=False)
class SimulatedTask:
    """One billable task."""

    task_id: str
    account: Account
    #: The path of its submit.
    path: str
    action: str
    raw: bytes = attrs.field(repr=False)
    body: Body = attrs.field(repr=False)
    script: Script
    points: float
    created: float
    link: Link
    #: The outcome of its submit.
    entry: LedgerEntry
    polls: int = 0
    #: Incremented when the file changes during a download.
    version: int = 1
    plans: Plans = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.plans = Plans([one for one in self.script.faults if one.where != "submit"])

    def age(self, now: float) -> float:
        """Return the simulated seconds since the submit."""
        return now - self.created

    def view(self, clock: SimulatedClock) -> TaskView:
        """Return its public state."""
        script = self.script
        stage, _ = _story.stage_at(script, self.age(clock.now()))
        ends = None if script.ends_after is None else self.created + script.ends_after
        return TaskView(
            task_id=self.task_id,
            prompt=prompt_of(self.body),
            state=stage,
            action=self.action,
            created_at=clock.loop_time(self.created),
            finishes_at=None if ends is None else clock.loop_time(ends),
            polls=self.polls,
            points=self.points,
            refunded=stage in _story.OVER and script.refunds,
            request=self.body,
            raw=self.raw,
            digest=self.entry.digest,
            key_name=self.account.name,
        )

    def first_moment(self, clock: SimulatedClock) -> Moment:
        """Return the moment of its submit."""
        return Moment(
            task_id=self.task_id,
            action=self.action,
            prompt=prompt_of(self.body),
            stage="submitted",
            created_at=clock.unix(self.created),
        )

    def moment(self, clock: SimulatedClock, age: float, urls: tuple[str, str, str]) -> Moment:
        """Return the task at *age*; *urls* are its video, poster and last frame."""
        script, created = self.script, self.created
        stage, percent = _story.stage_at(script, age)
        begins, is_over = _story.steps(script)[0], stage in _story.OVER
        video = self.body.get("video") or self.body.get("videoUri")
        moment = attrs.evolve(
            self.first_moment(clock),
            stage=stage,
            percent=percent,
            points=self.points,
            refunded=is_over and script.refunds,
            reason=script.reason if stage in _story.UNLUCKY else None,
            failure_code=script.failure_code,
            input_url=video if isinstance(video, str) else None,
            status_word=script.end_status if is_over else None,
            state_word=script.end_state if is_over else None,
            started_at=clock.unix(created + begins) if age >= begins else 0,
            finished_at=clock.unix(created + script.takes) if is_over else 0,
            updated_at=clock.unix(created + (script.takes if is_over else age)),
            blank=age < script.blank,
        )
        return moment.with_urls(urls) if _story.has_url(script, age) else moment


@attrs.define(kw_only=True)
class Seen:
    """One request to the simulator."""

    #: api or cdn.
    origin: Origin
    #: submit, feed, download, balance, official, tasks, charges or files; None for an unknown path.
    where: Where | None
    #: GET, POST or another.
    method: str
    #: The path.
    path: str = attrs.field(repr=False)
    #: The query string.
    query: str = attrs.field(repr=False)
    #: The headers that a gateway reads.
    headers: Mapping[str, str] = attrs.field(repr=False)
    #: Size of the body.
    body_bytes: int
    #: When it arrived, in seconds of the loop's clock.
    at: float
    #: Whether its URL or headers contained one of the gateway's keys.
    carried_key: bool
    #: The task that it is about.
    task_id: str | None = None
    #: The name of its fault.
    fault: str | None = None
    #: The HTTP status of the response; None if none was sent.
    status: int | None = None


@attrs.define
class Store:
    """The state of the gateway. No method awaits, so each change is atomic."""

    options: "Simulator"
    clock: SimulatedClock
    state: StateFile
    #: By key.
    accounts: dict[str, Account] = attrs.field(factory=dict, repr=False)
    #: By name: the accounts of earlier runs whose keys have not been added yet.
    keyless: dict[str, Account] = attrs.field(factory=dict)
    tasks: dict[str, SimulatedTask] = attrs.field(factory=dict)
    plans: Plans = attrs.field(factory=Plans)
    seen: deque[Seen] = attrs.field(init=False)
    leaked: list[Seen] = attrs.field(factory=list)
    #: How many requests the rate limit refused.
    limited: int = 0
    #: The exceptions of the user's own functions.
    mistakes: list[Exception] = attrs.field(factory=list)
    _rules: list[Rule] = attrs.field(factory=list)
    _next: deque[Rule] = attrs.field(factory=deque)
    _refunds: list[tuple[float, int, SimulatedTask]] = attrs.field(factory=list)
    _ids: Random = attrs.field(init=False)
    #: The number of ids generated so far, in earlier runs as well.
    _position: int = 0

    def __attrs_post_init__(self) -> None:
        self.seen = deque(maxlen=self.options.log_limit)
        # A separate generator: the number of polls must not change the next task's id.
        self._ids = Random(f"ids {self.options.seed}")  # noqa: S311 - the same for the same seed

    def open_account(
        self,
        key: str,
        name: str,
        points: float | None,
        bucket: Bucket | None,
        user_id: int | None,
    ) -> None:
        """
        Add *key*, with the tasks that an account of this *name* has from earlier runs.

        None as *user_id* is the user of those, or a new one.

        Raises:
            ValueError: The key or the name exists already.
        """
        if key in self.accounts:
            raise ValueError("the gateway already has this key")
        if any(name == account.name for account in self.accounts.values()):
            raise ValueError(f"the gateway already has a key named {name!r}")
        known = [*self.accounts.values(), *self.keyless.values()]
        new_user = max((one.user_id + 1 for one in known), default=self.options.user_id)
        account = self.keyless.pop(name, None) or Account(name, new_user)
        account.user_id = user_id or account.user_id
        account.open(key, points, bucket)
        self.accounts[key] = account

    def add_rule(self, rule: Rule) -> None:
        if rule.which is None:
            self._next.append(rule)
        else:
            self._rules.insert(0, rule)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return the keys and the access token."""
        return (*self.accounts, self.options.access_token)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Return the rules that name tasks, the last one first, and then the others in order."""
        return (*self._rules, *self._next)

    def untouched(self) -> list[Planned]:
        """Return the faults that never happened, of the gateway, its scripts and its tasks."""
        plans = [self.plans, *(rule.plans for rule in self.rules)]
        plans += [task.plans for task in [*self.tasks.values()]]
        return [planned for one in plans for planned in one.untouched]

    def forget_plans(self) -> None:
        self.plans = Plans()
        self._rules.clear()
        self._next.clear()

    def forget(self) -> None:
        """Remove all keys, tasks and scripts; no id is used twice."""
        self.forget_plans()
        for remembered in (self.accounts, self.tasks, self._refunds, self.seen, self.leaked):
            remembered.clear()
        self.limited = 0

    def rule_for(self, body: Body) -> Rule | None:
        """
        Return the rule for a submit of *body*.

        This is the last rule that names the task. If there are several with the same `which`, it
        is the first unused one of them. A task that no rule names takes the next rule in order.
        """
        found = next((rule for rule in self._rules if rule.fits(body)), None)
        if found is not None:
            same = [rule for rule in reversed(self._rules) if rule.which == found.which]
            found = next((rule for rule in same if not rule.is_used), found)
        elif self._next:
            found = self._next[0]
        if found is not None:
            found.is_requested = True
        return found

    def accept(
        self,
        account: Account,
        *,
        path: str,
        action: str,
        raw: bytes,
        body: Body,
        points: float,
        is_listed: bool,
    ) -> SimulatedTask:
        """Return a new task, recorded and charged to *account*."""
        now, position, rule = self.clock.now(), self._position, self.rule_for(body)
        takes = self.options.takes if rule is None or rule.takes is None else rule.takes
        script = Script() if rule is None else rule.script
        script = attrs.evolve(script, takes=amount(takes, body))
        if not is_listed:
            script = attrs.evolve(script, listed_after=None)
        if rule is not None:
            rule.is_used = True
            if rule.which is None:
                self._next.popleft()
        task_id = self._next_id()
        # The exact bytes, unless they contain a key (api-facts 1.1).
        kept = json.dumps({**body, "key": ""}).encode() if "key" in body else raw
        record = Accepted(
            at=time.time(),
            instant=now,
            task_id=task_id,
            account=account.name,
            user_id=account.user_id,
            path=path,
            action=action,
            prompt=prompt_of(body),
            body=kept.decode("latin-1"),
            digest=hashlib.sha256(raw).hexdigest(),
            points=points,
            position=position,
            token=_signature(f"{self.options.seed} {task_id}"),
            link_expires_at=self._expiry(now),
            script=script.plain(),
        )
        self.state.append(record)
        return self._enter(record, account, raw, body, script)

    def _next_id(self) -> str:
        self._position += 1
        return str(uuid.UUID(int=self._ids.getrandbits(128), version=4))

    def _enter(
        self, record: Accepted, account: Account, raw: bytes, body: Body, script: Script
    ) -> SimulatedTask:
        task = SimulatedTask(
            task_id=record.task_id,
            account=account,
            path=record.path,
            action=record.action,
            raw=raw,
            body=body,
            script=script,
            points=record.points,
            created=record.instant,
            link=Link(record.token, record.link_expires_at),
            entry=entry_of(record),
        )
        self.tasks[task.task_id] = task
        account.charge(task.points)
        if script.refunds:
            heappush(self._refunds, (task.created + script.takes, len(self.tasks), task))
        return task

    def answered(self, task: SimulatedTask, status: int) -> None:
        """Record that the whole response to the submit of *task* was sent."""
        now = self.clock.now()
        self.state.append(
            Answered(at=time.time(), instant=now, task_id=task.task_id, status=status)
        )
        task.entry = attrs.evolve(task.entry, status=status)

    def restore(self, records: Iterable[Record]) -> None:
        """Continue the tasks of earlier runs; called before any key is added."""
        for record in records:
            match record:
                case Accepted():
                    while self._position <= record.position:
                        self._next_id()
                    account = Account(record.account, record.user_id)
                    account = self.keyless.setdefault(record.account, account)
                    raw = record.body.encode("latin-1")
                    self._enter(record, account, raw, json.loads(raw), Script(**record.script))
                case Answered(task_id=task_id, status=status):
                    task = self.tasks[task_id]
                    task.entry = attrs.evolve(task.entry, status=status)
                case Filed(task_id=task_id):
                    task = self.tasks[task_id]
                    task.link = Link(record.token, record.link_expires_at, record.dead)
                    task.version = record.version

    def settle(self) -> None:
        """Refund the points of every task that has failed by now."""
        now = self.clock.now()
        while self._refunds and self._refunds[0][0] <= now:
            task = heappop(self._refunds)[2]
            task.account.refund(task.points)

    def live_link(self, task: SimulatedTask) -> Link:
        """Return the task's link, with a new signature if it has expired."""
        now = self.clock.now()
        if not task.link.is_alive(now):
            link = Link(_signature(task.link.token), self._expiry(now))
            self.refile(task, link, task.version)
        return task.link

    def refile(self, task: SimulatedTask, link: Link, version: int) -> None:
        """Record that *link* leads to this *version* of the file of *task* from now on."""
        self.state.append(
            Filed(
                at=time.time(),
                instant=self.clock.now(),
                task_id=task.task_id,
                token=link.token,
                link_expires_at=link.expires_at,
                dead=link.dead,
                version=version,
            )
        )
        task.link, task.version = link, version

    def _expiry(self, now: float) -> float | None:
        lifetime = self.options.link_lifetime
        return None if lifetime is None else now + lifetime


def _signature(seed: str) -> str:
    # Derived from the previous token, so that the next run continues the same series.
    return hashlib.sha256(seed.encode()).hexdigest()[:32]
