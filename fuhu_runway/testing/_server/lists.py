"""
The two routes of an account: the list of its tasks, and the log of what a key was charged.

Literal JSON, copied only from the source of New-API and its forks (docs/reference/api-facts.md).
Instants are in Unix seconds of the gateway's clock, however fast its tasks run.
"""

import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, Literal

import attrs

from fuhu_runway.testing import faults
from fuhu_runway.testing.faults import Fault

from . import bodies as _bodies
from . import dialects as _dialects
from . import story as _story
from .accounts import Account
from .bodies import JsonObject
from .cdn import Files
from .checks import OFFICIAL_ACTIONS
from .exchange import Refused, Reply, Visit, json_reply
from .options import check
from .replies import DIALECTS
from .store import SimulatedTask, Store, prompt_of
from .story import Moment, Stage

if TYPE_CHECKING:
    from fuhu_runway.testing.simulator import Simulator

STATUS: Final[dict[Stage, str]] = {
    "submitted": "NOT_START",
    "queued": "QUEUED",
    "running": "IN_PROGRESS",
    "succeeded": "SUCCESS",
    "failed": "FAILURE",
    "cancelled": "FAILURE",
    "expired": "FAILURE",
}
#: The types of rows in a log.
CONSUMPTION: Final = 2
REFUND: Final = 6
#: The number of requests that are allowed, and in how many simulated seconds.
LIMITS: Final = {"api": (180, 180.0), "critical": (20, 1200.0)}
#: The number of rows in a log of 2026.
RECENT: Final = 1000

#: What the row of a task says, by version.
CONTENT: Final = {
    2024: "模型固定价格 {dollars:.2f}，分组倍率 1.00，操作 {action}",
    2025: "操作 {action}",
    2026: "操作 {action}, 计算参数：seconds: 2.00",
}


@attrs.frozen(kw_only=True)
class AccountLists:
    """How a gateway lists the tasks of an account and what its keys were charged."""

    #: The version of New-API, by its year. 2024: a bare list, in pages of ten that count from 0;
    #: 2025: the usual one; 2026: every refusal is a 401, and the log needs the key in a header.
    version: Literal[2024, 2025, 2026] = attrs.field(default=2025, validator=check)
    #: The simulated seconds from a submit until its task and its charge are listed.
    delay: float = attrs.field(default=0.0, validator=check)
    #: The simulated seconds between two polls of the gateway's upstream, which bring the state
    #: and the prompt of a row up to date; 0 keeps rows current.
    refresh: float = attrs.field(default=15.0, validator=check)
    #: Where a row has the prompt: in "data", after the upstream was polled; also in "input", from
    #: the beginning; or "nowhere".
    prompts: Literal["data", "input", "nowhere"] = attrs.field(default="data", validator=check)
    #: How many characters of a prompt are kept; None means all.
    prompt_limit: int | None = attrs.field(default=None, validator=check)
    #: Whether a row has an id of its own, and the one that the client knows only in `data`.
    own_ids: bool = attrs.field(default=False, validator=check)
    #: Whether instants are stored in milliseconds.
    milliseconds: bool = attrs.field(default=False, validator=check)
    #: Whether `data` is JSON in a string.
    data_text: bool = attrs.field(default=False, validator=check)
    #: Whether charges are logged.
    charges: bool = attrs.field(default=True, validator=check)
    #: Whether a success has a second charge, of a tenth, for what was estimated too low.
    settles: bool = attrs.field(default=False, validator=check)
    #: Whether requests are limited as in New-API: 180 in three minutes, and 20 in twenty minutes
    #: for logs. Further ones get a 429 without a body.
    limited: bool = attrs.field(default=False, validator=check)


@attrs.frozen
class Charge:
    """One row of a log."""

    task: SimulatedTask
    #: In simulated seconds.
    at: float
    type: int
    content: str
    points: float
    other: Mapping[str, object]


@attrs.define
class Lists:
    """The list of tasks and the log of charges."""

    options: "Simulator"
    store: Store
    files: Files
    #: When requests came, by the limit that counts them.
    _asked: dict[str, deque[float]] = attrs.field(init=False, factory=dict)

    @property
    def how(self) -> AccountLists:
        return self.options.lists or AccountLists()

    def tasks(self, visit: Visit, fault: Fault | None) -> Reply:
        """Return one page of the user's tasks, newest first."""
        self._limit("api")
        user, query = self._user(visit), visit.request.query
        now = self.store.clock.now()
        # The number of a row counts the tasks of all users.
        rows = [
            (number, task)
            for number, task in enumerate(self.store.tasks.values(), start=1)
            if task.account.user_id == user
            and task.script.listed_after is not None
            and task.age(now) >= self.how.delay + task.script.listed_after
            and self._matches(task, query)
        ]
        rows.reverse()
        first, size, page = self._page(query)
        match fault:
            case faults.Shifted(by) if first:
                first = max(0, first - by)
        items = rows[first : first + size]
        match fault:
            case faults.ShortPage(most):
                items = items[:most]
        shown = [self._row(number, task) for number, task in items]
        if self.how.version == 2024:
            return self._reply(shown)
        return self._reply({"page": page, "page_size": size, "total": len(rows), "items": shown})

    def charges(self, visit: Visit, _fault: Fault | None) -> Reply:
        """Return the log of one key."""
        self._limit("api", "critical")
        account = self._account(visit)
        charges = [] if account is None else sorted(self._charges(account), key=lambda one: one.at)
        if self.how.version == 2026:
            charges = charges[: -RECENT - 1 : -1]
        rows = enumerate(map(self._charge_row, charges), start=1)
        return self._reply([{"id": number % 1024, **row} for number, row in rows])

    def _reply(self, data: object) -> Reply:
        return json_reply({"data": data, "message": "", "success": True})

    def _limit(self, *names: str) -> None:
        """Raise Refused if there were too many requests, by the limits of these names."""
        for name in names if self.how.limited else ():
            most, seconds = LIMITS[name]
            now, asked = self.store.clock.now(), self._asked.setdefault(name, deque(maxlen=most))
            if len(asked) == most and asked[0] > now - seconds:
                self.store.limited += 1
                raise Refused(Reply(429, b""))
            asked.append(now)

    # Who asks.

    def _user(self, visit: Visit) -> int:
        """Return the user whose token the request has, or raise Refused."""
        headers, version = visit.request.headers, self.how.version
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        if token != self.options.access_token:
            wrong = "无权进行此操作，access token 无效"
            if version == 2026:
                raise Refused(_refusal(401, wrong, code="AUTH_UNAUTHORIZED"))
            missing = _refusal(401, "无权进行此操作，未登录且未提供 access token")
            raise Refused(_refusal(200, wrong) if token else missing)
        user, named = self.options.user_id, headers.get("New-Api-User", "")
        if version == 2025 and named != str(user):
            is_number = named.removeprefix("-").isdecimal()
            wrong = "New-Api-User 与登录用户不匹配" if is_number else "New-Api-User 格式错误"
            why = wrong if named else "未提供 New-Api-User"
            raise Refused(_refusal(401, f"无权进行此操作，{why}"))
        return user

    def _account(self, visit: Visit) -> Account | None:
        """Return the account of the request's key; None where an unknown key has an empty log."""
        if self.how.version == 2026:
            key = visit.request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not key:
                raise Refused(_refusal(401, "未提供令牌"))
        else:
            key = visit.request.query.get("key", "")
        bare = key.removeprefix("sk-")
        found = (one for own, one in self.store.accounts.items() if own.removeprefix("sk-") == bare)
        account = next(found, None)
        if account is None and self.how.version == 2026:
            raise Refused(_refusal(401, "无效的令牌"))
        return account

    # Pages and filters.

    def _page(self, query: Mapping[str, str]) -> tuple[int, int, int]:
        """Return the first row of the page, its size and its number."""
        page = _number(query.get("p"))
        if self.how.version == 2024:
            return max(0, page) * 10, 10, page
        sizes = (_number(query.get(name)) for name in ("page_size", "ps", "size"))
        page, size = max(1, page), next((size for size in sizes if size > 0), 10)
        return (page - 1) * min(size, 100), min(size, 100), page

    def _matches(self, task: SimulatedTask, query: Mapping[str, str]) -> bool:
        submitted = self._unix(task, task.created)
        since, until = _number(query.get("start_timestamp")), _number(query.get("end_timestamp"))
        values = {
            "platform": "runway",
            "task_id": self._id(task),
            "status": STATUS[self._stage(task)],
            "action": task.action,
        }
        return (
            (not since or submitted >= since)
            and (not until or submitted <= until)
            and all(query.get(name, "") in {"", value} for name, value in values.items())
        )

    # Rows.

    def _unix(self, task: SimulatedTask, instant: float) -> int:
        """Return the second, or millisecond, of the gateway's clock at *instant*."""
        accepted = task.entry.accepted_at + self.options.clock_offset
        unix = accepted + (instant - task.created) / self.store.clock.speed
        return math.floor(unix * 1000 if self.how.milliseconds else unix)

    def _id(self, task: SimulatedTask) -> str:
        return f"task_{task.task_id.replace('-', '')[::-1]}" if self.how.own_ids else task.task_id

    def _moment(self, task: SimulatedTask) -> Moment:
        """Return the task as the gateway's upstream last described it."""
        clock, age = self.store.clock, self._age(task)
        has_prompt, script = self.how.prompts != "nowhere", task.script
        prompt = prompt_of(task.body)[: self.how.prompt_limit] if has_prompt else ""
        if age is None:
            return attrs.evolve(task.first_moment(clock), prompt=prompt)
        urls = self.files.urls(task) if _story.has_url(script, age) else ("", "", "")
        return attrs.evolve(task.moment(clock, age, urls), prompt=prompt)

    def _age(self, task: SimulatedTask) -> float | None:
        """Return how old the task was when the upstream was polled; None if it was not yet."""
        now, refresh = self.store.clock.now(), self.how.refresh
        age = task.age(now // refresh * refresh if refresh else now)
        return None if age < 0 else age

    def _stage(self, task: SimulatedTask) -> Stage:
        age = self._age(task)
        return "submitted" if age is None else _story.stage_at(task.script, age)[0]

    def _row(self, number: int, task: SimulatedTask) -> JsonObject:
        """Return one task as `model.Task` has it, with its upstream's last response."""
        how, moment, created = self.how, self._moment(task), self._unix(task, task.created)
        begun = self._unix(task, task.created + _story.steps(task.script)[0])
        ended = self._unix(task, task.created + task.script.takes)
        times = [created, begun * bool(moment.started_at), ended * bool(moment.finished_at)]
        is_official = task.path.rpartition("/")[2] in OFFICIAL_ACTIONS
        data = _dialects.text_of(moment, DIALECTS["official" if is_official else "envelope"])
        url, reason = moment.video_url, moment.reason or ""
        properties = {"input": moment.prompt if how.prompts == "input" else ""}
        row: JsonObject = {
            "id": number,
            "created_at": created,
            "updated_at": max(times),
            "task_id": self._id(task),
            "platform": "runway",
            "user_id": task.account.user_id,
            "group": "default",
            "channel_id": 0,
            "quota": _bodies.units(task.points),
            "action": task.action,
            "status": STATUS[moment.stage],
            # In 2025 it has the URL of a success.
            "fail_reason": url if url and how.version == 2025 else reason,
            "submit_time": times[0],
            "start_time": times[1],
            "finish_time": times[2],
            "progress": f"{moment.percent}%",
            "properties": properties,
            "data": data if how.data_text else json.loads(data),
        }
        if how.version == 2026:
            model, names = _model(task), ("upstream_model_name", "origin_model_name")
            row["properties"] = {**properties, **dict.fromkeys(names, model)}
            row |= {"result_url": url} if url else {}
        return row

    def _charges(self, account: Account) -> Iterator[Charge]:
        """Yield the charges and the refunds of *account*."""
        how, now = self.how, self.store.clock.now()
        for task in self.store.tasks.values():
            script, age = task.script, task.age(now)
            if task.account is not account or age < how.delay:
                continue
            dollars = task.points / _bodies.POINTS_PER_DOLLAR
            content = CONTENT[how.version].format(dollars=dollars, action=task.action)
            other: JsonObject = {"model_price": dollars, "group_ratio": 1, "is_task": True}
            if how.charges:
                yield Charge(task, task.created, CONSUMPTION, content, task.points, other)
            if script.ends_after is None or age < script.ends_after:
                continue
            ended, task_id = task.created + script.ends_after, self._id(task)
            if how.charges and how.settles and script.then == "succeed":
                units = [_bodies.units(task.points * share) for share in (1, 1.1)]
                other = {
                    "task_id": task_id,
                    "pre_consumed_quota": units[0],
                    "actual_quota": units[1],
                }
                content, points = "adaptor计费调整", task.points * 0.1
                yield Charge(task, ended, CONSUMPTION, content, points, other)
            if how.version == 2026 and script.refunds:
                other = {"task_id": task_id, "reason": script.reason or ""}
                yield Charge(task, ended, REFUND, "", task.points, other)

    def _charge_row(self, one: Charge) -> JsonObject:
        """Return one row of a log as `model.Log` has it, without its id."""
        return {
            "user_id": one.task.account.user_id,
            "created_at": self._unix(one.task, one.at),
            "type": one.type,
            "content": one.content,
            "username": "example_user",
            "token_name": one.task.account.name,
            "model_name": _model(one.task),
            "quota": _bodies.units(one.points),
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "use_time": 0,
            "is_stream": False,
            "channel": 3,
            "channel_name": "",
            "token_id": 1,
            "group": "default",
            "ip": "",
            "other": _bodies.as_text(one.other),
        }


def _refusal(status: int, message: str, *, code: str | None = None) -> Reply:
    body: JsonObject = {"message": message, "success": False}
    return json_reply(body if code is None else {"code": code, **body}, status)


def _number(text: str | None) -> int:
    """Return *text* as Go's Atoi reads it; 0 if it is not a whole number."""
    digits = (text or "").removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 19):
        return 0
    return int(text or "")


def _model(task: SimulatedTask) -> str:
    # A request without a model gets a name from its action.
    return str(task.body.get("model") or f"runway_{task.action.lower()}")
