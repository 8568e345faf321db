"""
What the control API tells: the simulator's own values as plain JSON, and no keys.

Instants are simulated seconds since the gateway opened, as durations are everywhere; only the
ledger has seconds of the wall clock, since it outlives the gateway.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from re import Pattern
from typing import TYPE_CHECKING, Any, Final

import attrs

from fuhu_runway.testing._server.bodies import JsonObject
from fuhu_runway.testing._server.books import Books, Rule, Seen, TaskView
from fuhu_runway.testing._server.dialects import NAMES
from fuhu_runway.testing._server.state import LedgerEntry
from fuhu_runway.testing._server.story import ENDINGS
from fuhu_runway.testing.faults import Fault, Planned

from .wanted import FAULTS, FaultKind

if TYPE_CHECKING:
    from fuhu_runway.testing.simulator import Simulator

HIDDEN: Final = "***"
KEY_IN_QUERY: Final = re.compile(r"(?<![^&])key=[^&]*")

#: What the gateway can be asked for about itself that is no function and no secret.
OPTIONS: Final = (
    "prefix",
    "speed",
    "seed",
    "dialect",
    "official_dialect",
    "feed_verb",
    "key_style",
    "strict",
    "requires_version",
    "quota_status",
    "points",
    "rate_limit",
    "burst",
    "media",
    "exact_links",
    "weather",
    "link_lifetime",
    "expired_status",
)

Shown = Mapping[str, str]

TASK: Final[Shown] = {
    "task_id": "The task.",
    "prompt": "What it was asked for.",
    "state": "submitted, queued, running, succeeded, failed, cancelled or expired.",
    "action": "Which of the paid routes made it, such as TEXT_TO_VIDEO.",
    "created_at": "When it was accepted.",
    "finishes_at": "When it ends, or ended; null if its script lets it run for ever.",
    "polls": "How often the client asked for it.",
    "points": "What it costs.",
    "refunded": "Whether the points went back.",
    "request": "The body that came, without a key.",
    "digest": "SHA-256 of the body, in hex: the same for two submits of the same bytes.",
}
ENTRY: Final[Shown] = {
    "task_id": "The task.",
    "digest": "SHA-256 of the body, in hex.",
    "prompt": "What was asked for.",
    "accepted_at": "When it was accepted, in Unix seconds.",
    "status": "The HTTP status of the answer that left whole; null if none did.",
    "answered": "Whether the whole answer left.",
}
SEEN: Final[Shown] = {
    "origin": "api or cdn.",
    "where": "submit, feed, download, balance or official; null for a path that nobody knows.",
    "method": "GET, POST or another.",
    "path": "The path.",
    "query": "What came after it, without a key.",
    "headers": "Those that matter to a gateway; Authorization without its value.",
    "body_bytes": "Size of the body.",
    "at": "When it came.",
    "carried_key": "Whether one of the gateway's keys stood anywhere in its head.",
    "task_id": "The task that it was about.",
    "fault": "The name of what went wrong on purpose.",
    "status": "The HTTP status that it was given; null if it was given none.",
}
COUNTERS: Final[Shown] = {
    "submitted": "Billable tasks.",
    "duplicates": "Tasks whose request came before, byte for byte.",
    "states": "Tasks in each state.",
    "polls": "How often the client asked for a task.",
    "requests": "Requests on both origins, as far as they are remembered.",
    "places": "Those of each kind: submit, feed, download, balance, official, unknown.",
    "peak_requests": "The most that ever had to be answered at once.",
    "limited": "Requests that the rate limit turned away.",
    "leaked": "Requests to the second origin that carried a key.",
    "balance": "The points that the first account has left; null without limit.",
    "refunds": "The points that were given back, to all accounts.",
    "callbacks_delivered": "Callbacks that were answered with a 2xx.",
    "callbacks_failed": "Callbacks that were answered with anything else, or not at all.",
    "scripts_waiting": "Scripts for the next task that no task has taken yet.",
    "faults_waiting": "Faults that have not happened yet, or not for the last time.",
}
PLANS: Final[Shown] = {
    "scripts": "As they were asked for, with every field and with `for`: prompt, pattern, next, or "
    "function for one that only Python can write. Who comes first goes first.",
    "faults": "As they were asked for, with the requests and seconds that are left of them.",
}


def options(gateway: "Simulator") -> JsonObject:
    """Where it is, and how it differs from its sisters; null where a function decides."""
    told = {name: getattr(gateway, name) for name in OPTIONS}
    return {
        "base_url": gateway.base_url,
        "cdn_url": gateway.cdn_url,
        "control_url": gateway.control_url,
        **told,
        "takes": None if callable(gateway.takes) else gateway.takes,
        "price": None if callable(gateway.price) else gateway.price,
        "callbacks": gateway.callbacks and attrs.asdict(gateway.callbacks),
        "keeps_state": gateway.state_file is not None,
    }


def task(view: TaskView, instant: Callable[[float], float]) -> JsonObject:
    """One task."""
    ends = view.finishes_at
    return {
        "task_id": view.task_id,
        "prompt": view.prompt,
        "state": view.state,
        "action": view.action,
        "created_at": instant(view.created_at),
        "finishes_at": None if ends is None else instant(ends),
        "polls": view.polls,
        "points": view.points,
        "refunded": view.refunded,
        "request": _plain(view.request),
        "digest": view.digest,
    }


def _plain(body: Mapping[str, Any]) -> object:
    kept = {**body, "key": HIDDEN} if "key" in body else body
    # A gateway written in Python takes NaN, for which JSON has no word.
    return json.loads(json.dumps(kept), parse_constant=str)


def entry(one: LedgerEntry) -> JsonObject:
    """What became of one paid submit."""
    return {**attrs.asdict(one), "answered": one.answered}


def seen(one: Seen, instant: Callable[[float], float], keys: Collection[str]) -> JsonObject:
    """One request, with none of the *keys* in it."""
    headers = {name: _without(keys, value) for name, value in one.headers.items()}
    if "Authorization" in headers:
        headers["Authorization"] = HIDDEN
    return {
        "origin": one.origin,
        "where": one.where,
        "method": one.method,
        "path": _without(keys, one.path),
        "query": _without(keys, KEY_IN_QUERY.sub(f"key={HIDDEN}", one.query)),
        "headers": headers,
        "body_bytes": one.body_bytes,
        "at": instant(one.at),
        "carried_key": one.carried_key,
        "task_id": one.task_id,
        "fault": one.fault,
        "status": one.status,
    }


def _without(keys: Iterable[str], text: str) -> str:
    for key in keys:
        text = text.replace(key, HIDDEN)
    return text


def counters(gateway: "Simulator", books: Books) -> JsonObject:
    """All that it counts, in one flat object."""
    tasks, requests = gateway.tasks, gateway.requests
    return {
        "submitted": gateway.submitted,
        "duplicates": sum(len(group) - 1 for group in gateway.duplicates),
        "states": dict(Counter(task.state for task in tasks)),
        "polls": sum(task.polls for task in tasks),
        "requests": len(requests),
        "places": dict(Counter(one.where or "unknown" for one in requests)),
        "peak_requests": gateway.peak_requests,
        "limited": gateway.limited,
        "leaked": len(gateway.leaked),
        "balance": gateway.balance,
        "refunds": gateway.refunds,
        "callbacks_delivered": gateway.callbacks_delivered,
        "callbacks_failed": gateway.callbacks_failed,
        "scripts_waiting": sum(rule.which is None for rule in books.rules),
        "faults_waiting": len(books.plans.waiting(books.clock.now())),
    }


def plans(books: Books) -> JsonObject:
    """What waits for its tasks and its requests."""
    now = books.clock.now()
    return {
        "scripts": [script(rule) for rule in books.rules],
        "faults": [planned(one, now) for one in books.plans.waiting(now)],
    }


def script(rule: Rule) -> JsonObject:
    """One script, and the tasks it is for."""
    told = {**rule.script.plain(), "takes": rule.takes}
    wrong = [own_fault(one) for one in rule.script.faults]
    return {**_which(rule), **told, "faults": wrong}


def _which(rule: Rule) -> JsonObject:
    match rule.which:
        case None:
            return {"for": "next"}
        case str(prompt):
            return {"for": "prompt", "prompt": prompt}
        case Pattern(pattern=pattern):
            return {"for": "pattern", "pattern": pattern}
    return {"for": "function"}


def planned(one: Planned, now: float) -> JsonObject:
    """A fault, where it happens, and for how many requests and seconds still."""
    left = None if one.until is None else one.until - now
    return {**own_fault(one), "seconds": left}


def own_fault(one: Planned) -> JsonObject:
    """A fault of one task, in the form in which it is asked for."""
    return {"where": one.where, "fault": fault(one.fault), "times": one.times}


def fault(one: Fault) -> JsonObject:
    """A fault in the form in which it is asked for."""
    told = {field.name: getattr(one, field.name) for field in attrs.fields(type(one))}
    if isinstance(told.get("then"), Fault):
        told["then"] = fault(told["then"])
    if "headers" in told:
        told["headers"] = dict(told["headers"])
    return {"kind": type(one).__name__, **told}


def kinds() -> JsonObject:
    """Every word that scripts and faults are made of."""
    return {
        "endings": [*ENDINGS, "stall"],
        "dialects": list(NAMES),
        "faults": {name: _kind(kind) for name, kind in FAULTS.items()},
    }


def _kind(kind: FaultKind) -> JsonObject:
    fields = {name: field.shown() for name, field in kind.fields.items()}
    return {"told": kind.told, "where": sorted(kind.usable_on), "fields": fields}
