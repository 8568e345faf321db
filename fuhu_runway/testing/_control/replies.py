"""
Write the simulator's values as JSON, without keys.

Instants are simulated seconds since the first start; only the ledger, which outlives the
process, has Unix seconds.
"""

import json
import re
from collections.abc import Callable, Collection
from re import Pattern
from typing import Final

import attrs

from fuhu_runway.testing._server.bodies import JsonObject
from fuhu_runway.testing._server.store import Rule, Seen, Store, TaskView
from fuhu_runway.testing.faults import Fault, Planned

HIDDEN: Final = "***"


def task(view: TaskView, instant: Callable[[float], float]) -> JsonObject:
    body = {**view.request, "key": HIDDEN} if "key" in view.request else view.request
    ends = view.finishes_at
    return {
        **attrs.asdict(view, recurse=False, filter=attrs.filters.exclude("raw")),
        "created_at": instant(view.created_at),
        "finishes_at": None if ends is None else instant(ends),
        # The gateway accepts NaN, which JSON cannot represent.
        "request": json.loads(json.dumps(body), parse_constant=str),
    }


def seen(one: Seen, instant: Callable[[float], float], keys: Collection[str]) -> JsonObject:
    """Return one request without any of the *keys*."""

    def without_keys(text: str) -> str:
        for key in keys:
            text = text.replace(key, HIDDEN)
        return text

    headers = {name: without_keys(value) for name, value in one.headers.items()}
    if "Authorization" in headers:
        headers["Authorization"] = HIDDEN
    return {
        **attrs.asdict(one),
        "path": without_keys(one.path),
        "query": without_keys(re.sub("(?<![^&])key=[^&]*", f"key={HIDDEN}", one.query)),
        "headers": headers,
        "at": instant(one.at),
    }


def plans(store: Store) -> JsonObject:
    now = store.clock.now()
    return {
        "scripts": [script(rule) for rule in store.rules],
        "faults": [planned(one, now) for one in store.plans.waiting(now)],
    }


def script(rule: Rule) -> JsonObject:
    which: JsonObject
    match rule.which:
        case None:
            which = {"for": "next"}
        case str(prompt):
            which = {"for": "prompt", "prompt": prompt}
        case Pattern(pattern=pattern):
            which = {"for": "pattern", "pattern": pattern}
        case _:
            which = {"for": "function"}
    own = [_own_fault(one) for one in rule.script.faults]
    return {**which, **rule.script.plain(), "takes": rule.takes, "faults": own}


def planned(one: Planned, now: float) -> JsonObject:
    """Return a fault with its place and the remaining requests and seconds."""
    return {**_own_fault(one), "seconds": None if one.until is None else one.until - now}


def _own_fault(one: Planned) -> JsonObject:
    fault = _fault(one.fault)
    return {"where": one.where, "fault": fault, "times": one.times, "share": one.share}


def _fault(one: Fault) -> JsonObject:
    fields = attrs.asdict(one, recurse=False)
    if fields.get("then") is not None:
        fields["then"] = _fault(fields["then"])
    if "headers" in fields:
        fields["headers"] = dict(fields["headers"])
    return {"kind": type(one).__name__, **fields}
