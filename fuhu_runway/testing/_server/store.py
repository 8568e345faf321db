"""What the gateway remembers: its keys, its tasks, its plans and its requests."""

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
from .options import is_duration
from .state import Accepted, Answered, Filed, LedgerEntry, Record, StateFile, entry_of
from .story import Moment, Script, Stage

if TYPE_CHECKING:
    from fuhu_runway.testing.simulator import Simulator

Body = Mapping[str, Any]
Which = str | Pattern[str] | Callable[[Body], bool] | None
Origin = Literal["api", "cdn"]
PerTask = float | Callable[[Body], float]


def prompt_of(body: Body) -> str:
    """Return what *body* asks for, in either format; empty if it has no prompt."""
    prompt = body.get("prompt") or body.get("promptText")
    if not isinstance(prompt, str):
        return ""
    # JSON may hold half of a surrogate pair, which no answer can be written in.
    return prompt.encode(errors="replace").decode()


def amount(value: PerTask, body: Body) -> float:
    """Return *value*, or what it returns for *body*."""
    return value(body) if callable(value) else value


@attrs.define
class Plans:
    """Faults that wait for their requests, first come first served for each place."""

    _waiting: list[Planned] = attrs.field(factory=list)
    #: Those that never happened so far.
    untouched: list[Planned] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.untouched = [*self._waiting]

    def add(self, planned: Planned) -> None:
        self._waiting.append(planned)
        self.untouched.append(planned)

    def waiting(self, now: float) -> list[Planned]:
        self._waiting = [one for one in self._waiting if one.until is None or now < one.until]
        return self._waiting

    def take(self, where: Where, now: float) -> Fault | None:
        """Return the fault for a request of the kind *where*, and count it as used once."""
        found = next((one for one in self.waiting(now) if one.where == where), None)
        if found is None:
            return None
        self.untouched = [one for one in self.untouched if one is not found]
        if found.times is not None:
            index = self._waiting.index(found)
            left = attrs.evolve(found, times=found.times - 1)
            self._waiting[index : index + 1] = [left] if left.times else []
        return found.fault


@attrs.define
class Rule:
    """A script, the tasks it is for, and its faults on their submits."""

    which: Which
    script: Script
    #: None is the gateway's own.
    takes: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(is_duration)
    )
    #: Whether a submit of such a task ever came, and whether one was accepted.
    is_asked: bool = attrs.field(init=False, default=False)
    is_used: bool = attrs.field(init=False, default=False)
    plans: Plans = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # A refused submit comes again with the same prompt: what is used up stays used up.
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
    #: In simulated seconds; None is never.
    expires_at: float | None = None
    #: The HTTP status a dead link answers; None while it lives.
    dead: int | None = None

    def is_alive(self, now: float) -> bool:
        return self.dead is None and (self.expires_at is None or now < self.expires_at)


@attrs.frozen(kw_only=True)
class TaskView:
    """What the simulator knows of one billable task. Instants are seconds of the loop's clock."""

    #: The task.
    task_id: str
    #: What it was asked for.
    prompt: str = attrs.field(repr=False)
    #: submitted, queued, running, succeeded, failed, cancelled or expired.
    state: Stage
    #: Which of the paid routes made it, such as TEXT_TO_VIDEO.
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
    #: The request's body, as JSON and as it came.
    request: Body = attrs.field(repr=False)
    raw: bytes = attrs.field(repr=False)
    #: SHA-256 of the body, in hex: the same for two submits of the same bytes.
    digest: str


@attrs.define(eq=False)
class SimulatedTask:
    """One billable task."""

    task_id: str
    account: Account
    action: str
    raw: bytes = attrs.field(repr=False)
    body: Body = attrs.field(repr=False)
    script: Script
    points: float
    created: float
    link: Link
    #: What became of its submit.
    entry: LedgerEntry
    polls: int = 0
    #: Goes up when the file changes during a download.
    version: int = 1
    plans: Plans = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.plans = Plans([one for one in self.script.faults if one.where != "submit"])

    def age(self, now: float) -> float:
        """Return the simulated seconds since the submit."""
        return now - self.created

    def view(self, clock: SimulatedClock) -> TaskView:
        """Return what the simulator knows of it now."""
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
        )

    def first_moment(self, clock: SimulatedClock) -> Moment:
        """Return what the answer to its submit can say."""
        return Moment(
            task_id=self.task_id,
            action=self.action,
            prompt=prompt_of(self.body),
            stage="submitted",
            created_at=clock.unix(self.created),
        )

    def moment(self, clock: SimulatedClock, age: float, urls: tuple[str, str, str]) -> Moment:
        """Return the task at *age*, with its video, poster and last frame once it has them."""
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
    """One request the simulator saw."""

    #: api or cdn.
    origin: Origin
    #: submit, feed, download, balance or official; None for an unknown path.
    where: Where | None
    #: GET, POST or another.
    method: str
    #: The path.
    path: str = attrs.field(repr=False)
    #: What came after it.
    query: str = attrs.field(repr=False)
    #: Those that matter to a gateway.
    headers: Mapping[str, str] = attrs.field(repr=False)
    #: Size of the body.
    body_bytes: int
    #: When it came: a second of the loop's clock.
    at: float
    #: Whether one of the gateway's keys stood anywhere in its head.
    carried_key: bool
    #: The task that it was about.
    task_id: str | None = None
    #: The name of what went wrong on purpose.
    fault: str | None = None
    #: The HTTP status of the answer; None if there was none.
    status: int | None = None


@attrs.define
class Store:
    """Everything the gateway remembers. Changes under no `await`."""

    options: "Simulator"
    clock: SimulatedClock
    state: StateFile
    #: By key.
    accounts: dict[str, Account] = attrs.field(factory=dict, repr=False)
    #: By name, those of earlier runs whose keys were not used yet.
    keyless: dict[str, Account] = attrs.field(factory=dict)
    tasks: dict[str, SimulatedTask] = attrs.field(factory=dict)
    plans: Plans = attrs.field(factory=Plans)
    seen: deque[Seen] = attrs.field(init=False)
    leaked: list[Seen] = attrs.field(factory=list)
    #: How many requests the rate limit turned away.
    limited: int = 0
    #: The exceptions of the user's own functions.
    mistakes: list[Exception] = attrs.field(factory=list)
    _rules: list[Rule] = attrs.field(factory=list)
    _next: deque[Rule] = attrs.field(factory=deque)
    _refunds: list[tuple[float, int, SimulatedTask]] = attrs.field(factory=list)
    _ids: Random = attrs.field(init=False)
    #: How many ids were made, in this run and before it.
    _position: int = 0

    def __attrs_post_init__(self) -> None:
        self.seen = deque(maxlen=self.options.log_limit)
        # A stream of its own: how often a client polls must not change the next task's id.
        self._ids = Random(f"ids {self.options.seed}")  # noqa: S311 - the same for the same seed

    def open_account(
        self, key: str, name: str, points: float | None, bucket: Bucket | None
    ) -> None:
        """
        Add *key*, with the tasks that an account of this *name* has from earlier runs.

        Raises:
            ValueError: There is already such a key, or such a name.
        """
        if key in self.accounts:
            raise ValueError("the gateway has this key already")
        if any(name == account.name for account in self.accounts.values()):
            raise ValueError(f"the gateway has a key of the name {name!r} already")
        account = self.keyless.pop(name, None) or Account(name)
        account.open(key, points, bucket)
        self.accounts[key] = account

    def add_rule(self, rule: Rule) -> None:
        if rule.which is None:
            self._next.append(rule)
        else:
            self._rules.insert(0, rule)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Return those that name tasks, the last one first, and then the next ones in order."""
        return (*self._rules, *self._next)

    def untouched(self) -> list[Planned]:
        """Return the faults that never happened, of the gateway, its scripts and its tasks."""
        plans = [self.plans, *(rule.plans for rule in self.rules)]
        plans += [task.plans for task in self.tasks.values()]
        return [planned for one in plans for planned in one.untouched]

    def forget_plans(self) -> None:
        self.plans = Plans()
        self._rules.clear()
        self._next.clear()

    def forget(self) -> None:
        """Remove all keys, tasks and scripts; no id is used twice."""
        self.forget_plans()
        self.accounts.clear()
        self.tasks.clear()
        self._refunds.clear()
        self.seen.clear()
        self.leaked.clear()
        self.limited = 0

    def rule_for(self, body: Body) -> Rule | None:
        """
        Return the rule for a submit of *body*.

        The last one that names it decides, or an earlier one for the same tasks that no task has
        used up; else it is the next in order.
        """
        found = next((rule for rule in self._rules if rule.fits(body)), None)
        if found is not None:
            same = [rule for rule in reversed(self._rules) if rule.which == found.which]
            found = next((rule for rule in same if not rule.is_used), found)
        elif self._next:
            found = self._next[0]
        if found is not None:
            found.is_asked = True
        return found

    def accept(
        self, account: Account, *, path: str, action: str, raw: bytes, body: Body, points: float
    ) -> SimulatedTask:
        """Return a new task, recorded and charged to *account*."""
        now, position, script = self.clock.now(), self._position, self._script_for(body)
        task_id = self._next_id()
        # To the byte as it came, if no key came in it (api-facts 1.1).
        kept = json.dumps({**body, "key": ""}).encode() if "key" in body else raw
        record = Accepted(
            at=time.time(),
            instant=now,
            task_id=task_id,
            account=account.name,
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

    def _script_for(self, body: Body) -> Script:
        rule = self.rule_for(body)
        if rule is None:
            return Script(takes=amount(self.options.takes, body))
        rule.is_used = True
        if rule.which is None:
            self._next.popleft()
        takes = amount(self.options.takes, body) if rule.takes is None else rule.takes
        return attrs.evolve(rule.script, takes=takes)

    def _enter(
        self, record: Accepted, account: Account, raw: bytes, body: Body, script: Script
    ) -> SimulatedTask:
        task = SimulatedTask(
            task_id=record.task_id,
            account=account,
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
        """Record that the whole answer to the submit of *task* left."""
        self.state.append(
            Answered(at=time.time(), instant=self.clock.now(), task_id=task.task_id, status=status)
        )
        task.entry = attrs.evolve(task.entry, status=status)

    def restore(self, records: Iterable[Record]) -> None:
        """Go on with what earlier runs recorded; before any key is added."""
        for record in records:
            match record:
                case Accepted():
                    while self._position <= record.position:
                        self._next_id()
                    account = self.keyless.setdefault(record.account, Account(record.account))
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
        """Put this *version* of the file of *task* behind *link*, for good."""
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
    # From the token before it, so that the next run signs as this one would have.
    return hashlib.sha256(seed.encode()).hexdigest()[:32]
