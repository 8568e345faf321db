"""What the gateway has on record: its keys, its tasks, its plans and all it saw."""

import hashlib
import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from heapq import heappop, heappush
from random import Random
from re import Pattern
from typing import Any, Literal

import attrs

from fuhu_runway.testing._clock import SimulatedClock
from fuhu_runway.testing.faults import Fault, Planned, Where

from . import story as _story
from .accounts import Account, Bucket
from .options import is_duration
from .state import Accepted, Answered, Filed, LedgerEntry, Record, StateFile, entry_of
from .story import Moment, Script, Stage

Body = Mapping[str, Any]
Which = str | Pattern[str] | Callable[[Body], bool] | None
Origin = Literal["api", "cdn"]


def prompt_of(body: Body) -> str:
    """What *body* asks for, in either format; empty if it says nothing."""
    prompt = body.get("prompt") or body.get("promptText")
    if not isinstance(prompt, str):
        return ""
    # JSON may hold half of a surrogate pair, which no answer can be written in.
    return prompt.encode(errors="replace").decode()


@attrs.define
class Plans:
    """Faults that wait for their requests, first come first served for each place."""

    _waiting: list[Planned] = attrs.field(factory=list)
    #: Those that never happened so far.
    untouched: list[Planned] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.untouched = [*self._waiting]

    def add(self, planned: Planned) -> None:
        """Wait with one more."""
        self._waiting.append(planned)
        self.untouched.append(planned)

    def waiting(self, now: float) -> list[Planned]:
        """Those that still wait."""
        self._waiting = [one for one in self._waiting if one.until is None or now < one.until]
        return self._waiting

    def take(self, where: Where, now: float) -> Fault | None:
        """The fault for a request of the kind *where*, used up by it."""
        for index, planned in enumerate(self.waiting(now)):
            if planned.where == where:
                self._use(index, planned)
                return planned.fault
        return None

    def _use(self, index: int, planned: Planned) -> None:
        self.untouched = [one for one in self.untouched if one is not planned]
        if planned.times is None:
            return
        if planned.times > 1:
            self._waiting[index] = attrs.evolve(planned, times=planned.times - 1)
        else:
            del self._waiting[index]


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
        """Whether this rule names the task of *body*."""
        if isinstance(self.which, str):
            return self.which == prompt_of(body)
        if isinstance(self.which, Pattern):
            return self.which.search(prompt_of(body)) is not None
        return self.which is not None and self.which(body)


@attrs.frozen
class Link:
    """The signature that makes a URL of the second origin work, for a time."""

    token: str = attrs.field(repr=False)
    #: In simulated seconds; None is for ever.
    expires_at: float | None = None
    #: The HTTP status a dead link answers; None while it lives.
    dead: int | None = None

    def is_alive(self, now: float) -> bool:
        """Whether the URL works."""
        return self.dead is None and (self.expires_at is None or now < self.expires_at)


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
    #: Goes up when the file changes under the client's hands.
    version: int = 1
    plans: Plans = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.plans = Plans([one for one in self.script.faults if one.where != "submit"])

    @property
    def prompt(self) -> str:
        """What it was asked for."""
        return prompt_of(self.body)

    def age(self, now: float) -> float:
        """Simulated seconds since the submit."""
        return now - self.created

    def stage(self, now: float) -> Stage:
        """How far it is."""
        return _story.stage_at(self.script, self.age(now))[0]


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
    #: When it ends, or ended; None if its script lets it run for ever.
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

    clock: SimulatedClock
    seed: int
    takes: Callable[[Body], float]
    link_lifetime: float | None
    log_limit: int
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
    #: What functions of the user's raised.
    mistakes: list[Exception] = attrs.field(factory=list)
    _rules: list[Rule] = attrs.field(factory=list)
    _next: deque[Rule] = attrs.field(factory=deque)
    _refunds: list[tuple[float, int, SimulatedTask]] = attrs.field(factory=list)
    _ids: Random = attrs.field(init=False)
    #: How many ids were made, in this run and before it.
    _position: int = 0

    def __attrs_post_init__(self) -> None:
        self.seen = deque(maxlen=self.log_limit)
        # A stream of its own: how often a client asks must not change the next task's id.
        self._ids = Random(f"ids {self.seed}")  # noqa: S311 - the same for the same seed

    def open_account(
        self, key: str, name: str, points: float | None, bucket: Bucket | None
    ) -> None:
        """
        Let *key* in, to the tasks that an account of this *name* has from earlier runs.

        Raises:
            ValueError: There is such a key, or such a name.
        """
        if key in self.accounts:
            raise ValueError("the gateway has this key already")
        if any(name == account.name for account in self.accounts.values()):
            raise ValueError(f"the gateway has a key of the name {name!r} already")
        account = self.keyless.pop(name, None) or Account(name)
        account.open(key, points, bucket)
        self.accounts[key] = account

    def add_rule(self, rule: Rule) -> None:
        """Follow *rule* from now on."""
        if rule.which is None:
            self._next.append(rule)
        else:
            self._rules.insert(0, rule)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Those that name tasks, the last one first, and then the next ones in order."""
        return (*self._rules, *self._next)

    def unasked(self) -> list[Rule]:
        """Those of which no task ever came."""
        return [rule for rule in self.rules if not rule.is_asked]

    def untouched(self) -> list[Planned]:
        """The faults that never happened, of the gateway, of its scripts and of its tasks."""
        plans = [self.plans, *(rule.plans for rule in self.rules)]
        plans += [task.plans for task in self.tasks.values()]
        return [planned for one in plans for planned in one.untouched]

    def forget_plans(self) -> None:
        """Let nothing more go as planned; a task that has its script keeps it."""
        self.plans = Plans()
        self._rules.clear()
        self._next.clear()

    def forget(self) -> None:
        """Start the story anew, without keys; no id is given twice."""
        self.forget_plans()
        self.accounts.clear()
        self.tasks.clear()
        self._refunds.clear()
        self.seen.clear()
        self.leaked.clear()
        self.limited = 0

    def note(self, seen: Seen) -> None:
        """Write down one request."""
        self.seen.append(seen)
        if seen.carried_key and seen.origin == "cdn":
            self.leaked.append(seen)

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
        """A new task, written down and charged to *account*."""
        now, position, script = self.clock.now(), self._position, self._script_for(body)
        task_id = self._next_id()
        record = Accepted(
            at=time.time(),
            instant=now,
            task_id=task_id,
            account=account.name,
            path=path,
            action=action,
            prompt=prompt_of(body),
            body=_without_key(raw, body).decode("latin-1"),
            digest=hashlib.sha256(raw).hexdigest(),
            points=points,
            position=position,
            token=_signature(f"{self.seed} {task_id}"),
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
        """Write down that the whole answer to the submit of *task* left."""
        self.state.append(
            Answered(at=time.time(), instant=self.clock.now(), task_id=task.task_id, status=status)
        )
        task.entry = attrs.evolve(task.entry, status=status)

    def restore(self, records: Iterable[Record]) -> None:
        """Go on with what earlier runs wrote down; before any key is let in."""
        for record in records:
            match record:
                case Accepted():
                    self._restore_task(record)
                case Answered(task_id=task_id, status=status):
                    task = self.tasks[task_id]
                    task.entry = attrs.evolve(task.entry, status=status)
                case Filed(task_id=task_id):
                    task = self.tasks[task_id]
                    task.link = Link(record.token, record.link_expires_at, record.dead)
                    task.version = record.version

    def _restore_task(self, record: Accepted) -> None:
        while self._position <= record.position:
            self._next_id()
        account = self.keyless.setdefault(record.account, Account(record.account))
        raw = record.body.encode("latin-1")
        self._enter(record, account, raw, json.loads(raw), Script(**record.script))

    def _script_for(self, body: Body) -> Script:
        rule = self.rule_for(body)
        if rule is None:
            return Script(takes=self.takes(body))
        rule.is_used = True
        if rule.which is None:
            self._next.popleft()
        takes = self.takes(body) if rule.takes is None else rule.takes
        return attrs.evolve(rule.script, takes=takes)

    def settle(self) -> None:
        """Refund the points of every task that has failed by now."""
        now = self.clock.now()
        while self._refunds and self._refunds[0][0] <= now:
            task = heappop(self._refunds)[2]
            task.account.refund(task.points)

    def live_link(self, task: SimulatedTask) -> Link:
        """The task's link, signed anew if it has died."""
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
        return None if self.link_lifetime is None else now + self.link_lifetime

    def task_of_file(self, name: str) -> SimulatedTask | None:
        """The task whose file *name* is: the digits of its id come first."""
        try:
            return self.tasks.get(str(uuid.UUID(name[:32])))
        except ValueError:
            return None

    def first_moment(self, task: SimulatedTask) -> Moment:
        """What the answer to a submit can tell."""
        return Moment(
            task_id=task.task_id,
            action=task.action,
            prompt=task.prompt,
            stage="submitted",
            created_at=self.clock.unix(task.created),
        )

    def moment(self, task: SimulatedTask, age: float, urls: tuple[str, str, str]) -> Moment:
        """*task* at *age*, its video, poster and last frame at *urls* as soon as it shows them."""
        script, unix = task.script, self.clock.unix
        stage, percent = _story.stage_at(script, age)
        begins, over = _story.steps(script)[0], stage in _story.OVER
        moment = Moment(
            task_id=task.task_id,
            action=task.action,
            prompt=task.prompt,
            stage=stage,
            percent=percent,
            points=task.points,
            refunded=over and script.refunds,
            reason=script.reason if stage in _story.UNLUCKY else None,
            failure_code=script.failure_code,
            input_url=_video_of(task.body),
            status_word=script.end_status if over else None,
            state_word=script.end_state if over else None,
            created_at=unix(task.created),
            started_at=unix(task.created + begins) if age >= begins else 0,
            finished_at=unix(task.created + script.takes) if over else 0,
            updated_at=unix(task.created + (script.takes if over else age)),
            blank=age < script.blank,
        )
        return moment.with_urls(urls) if _story.has_url(script, age) else moment

    def views(self) -> Iterable[TaskView]:
        """Every task, in the order they were accepted."""
        now = self.clock.now()
        return (self._view(task, now) for task in self.tasks.values())

    def _view(self, task: SimulatedTask, now: float) -> TaskView:
        stage = task.stage(now)
        ends = task.script.ends_after
        return TaskView(
            task_id=task.task_id,
            prompt=task.prompt,
            state=stage,
            action=task.action,
            created_at=self.clock.loop_time(task.created),
            finishes_at=None if ends is None else self.clock.loop_time(task.created + ends),
            polls=task.polls,
            points=task.points,
            refunded=stage in _story.OVER and task.script.refunds,
            request=task.body,
            raw=task.raw,
            digest=task.entry.digest,
        )


def _video_of(body: Body) -> str | None:
    video = body.get("video") or body.get("videoUri")
    return video if isinstance(video, str) else None


def _signature(seed: str) -> str:
    # From what it follows on, so that the next run signs as this one would have.
    return hashlib.sha256(seed.encode()).hexdigest()[:32]


def _without_key(raw: bytes, body: Body) -> bytes:
    """The body to keep: to the byte as it came, if no key came in it (api-facts 1.1)."""
    return json.dumps({**body, "key": ""}).encode() if "key" in body else raw
