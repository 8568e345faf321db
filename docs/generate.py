"""
Writes the tables of the reference pages from the tables that the package itself reads.

A page holds `<!-- generated: NAME -->` and `<!-- end -->`; what stands between them is written
here. `--check` writes nothing, names each stale page, and fails if there is one.
"""

import argparse
import ast
import functools
import inspect
import json
import logging
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs
from cyclopts import App, Argument
from sphinx.pycode import ModuleAnalyzer

from fuhu_runway import _addresses, callbacks, errors, hooks
from fuhu_runway._http import limiter as pace
from fuhu_runway._http.retry import MAY_REPEAT, exponential_intervals
from fuhu_runway._journal.schema import MIGRATIONS, SCHEMA
from fuhu_runway._waiting import poller
from fuhu_runway._wire import tables as facts
from fuhu_runway._wire.refusals import REFUSALS
from fuhu_runway.cli import app as cli
from fuhu_runway.cli import tally
from fuhu_runway.inputs import KINDS
from fuhu_runway.journal import STEPS, JobState
from fuhu_runway.models import (
    MODELS,
    BalanceRoute,
    Gateway,
    KeyStyle,
    PollPolicy,
    RetryPolicy,
    TaskState,
)
from fuhu_runway.testing import DIALECTS as SIMULATED_DIALECTS
from fuhu_runway.testing import KNOWN, SHAPES, Simulator, faults
from fuhu_runway.testing._control.arguments import FAULTS, REQUIRED, Field, Fields
from fuhu_runway.testing._control.commands import COMMANDS, Command
from fuhu_runway.testing._control.commands import OPTIONS as CONTROL_OPTIONS

DOCS: Final = Path(__file__).parent
PACKAGE: Final = DOCS.parent / "fuhu_runway"
REGION: Final = re.compile(
    r"(?P<start><!-- generated: (?P<name>\w+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)
FUHU: Final = facts.GATEWAYS["fuhuapi"]

RECOGNISED: Final[Mapping[str, str]] = {
    "openai_error": "`error` is there and not empty",
    "dashboard_error": "`success` is `false`",
    "dashboard_task": "`code` is `true`, and `data` has a `task_id`",
    "dashboard_balance": "`code` is `true` or `false`",
    "midjourney_error": "`description` and `code`, and no `data`",
    "envelope": "`code` is a whole number, or text of digits",
    "relay": '`code` is the text `"success"`',
    "task_error": "`code` is any other text",
    "billing_limit": '`hard_limit_usd`, or `object` is `"billing_subscription"`',
    "billing_usage": '`total_usage`, or `object` is `"list"`',
    "account_quota": "`total_quota`",
    "bare_relay": "`task_id`, and `fail_reason`, `result_url` or `data`",
    "callback": "`task_id`",
    "callback_by_id": "`id`, and a field that only the reverse format has, such as `video_url`",
    "luma": "`id` and `state`",
    "official": "`id`",
}
"""The tables hold a predicate for each dialect; this is the same in words."""

SEEN_AS: Final[Mapping[errors.Fate, str]] = {
    errors.Fate.UNSENT: "the host does not resolve, refuses, or fails in TLS; connecting takes too "
    "long",
    errors.Fate.REFUSED: "the gateway refuses for now, for example with 429",
    errors.Fate.UNKNOWN: "the connection breaks or goes silent after sending; the response cannot "
    "be read; the gateway reports an error of its own, for example 502",
    errors.Fate.REJECTED: "the gateway refuses for good, for example with 400 or 401",
}
NO_ANSWER: Final[Mapping[errors.Fate, tuple[type[errors.RunwayError], ...]]] = {
    errors.Fate.UNSENT: (errors.NotSent,),
    errors.Fate.UNKNOWN: (errors.NoReply, errors.UnreadableReply),
}

PRINTED: Final[Mapping[str, Mapping[str, str]]] = {
    "A task in JSON": {
        "task_id": "Id of the task.",
        "state": "queued, running, succeeded, failed, canceled or unknown.",
        "progress": "Progress, from 0 to 1.",
        "video_url": "URL of the clip; temporary.",
        "poster_url": "URL of a still image of the clip.",
        "last_frame_url": "URL of the last frame.",
        "prompt": "The prompt as it was sent.",
        "prompt_en": "The prompt as the gateway translated it.",
        "message": "The gateway's reason for a failure.",
        "failure_code": "The gateway's code for that reason.",
        "points": "Points used, in the gateway's unit.",
        "refunded": "Whether the points were refunded.",
        "created_at": "Creation time, in ISO 8601.",
        "updated_at": "Time of the last change, in ISO 8601.",
        "file": "Path of the saved clip; only of commands that save one.",
    },
    "A task that was not waited for, in JSON": {
        "task_id": "Id of the task.",
        "command": "The command that fetches its clip.",
    },
    "An error in JSON": {
        "error": "Name of the error, such as OutOfCredits; Stopped after Ctrl-C.",
        "message": "What stderr shows: what happened, and what to do.",
        "task_id": "Id of the task, if there is one.",
        "money": "What the error means for the money, in a sentence; null if nothing was paid.",
        "exit_code": "The exit code.",
    },
    "A balance in JSON": {
        "remaining": "Points that are left.",
        "used": "Points that were used.",
        "total": "The sum of both.",
        "unlimited": "Whether the key has no limit.",
    },
    "A report in JSON": {
        "fits": "Whether nothing was found that does not fit.",
        "is_ready": "Whether a clip can be submitted and polled.",
        "findings": "For each check, `about`, `verdict`, `found` and `advice`.",
        "clip": "With `--spend`: `task_id`, `seconds`, `polls`, `points`, `file_bytes`, `host` and "
        "`path`; else null.",
    },
    "A line of results": {
        "index": "Position in the input, from 0.",
        "key": "Key of the job in the journal, which `jobs` and `resolve` know.",
        "custom_id": "`custom_id` in the input.",
        "task_id": "Id of the task, if there is one.",
        "state": f"{', '.join(tally.STATES)}.",
        "path": "Path of the saved clip.",
        "object_url": "URL of the saved clip, if it is in an object store; not signed.",
        "error": "Name of the error.",
        "money": "What the error means for the money, in a sentence.",
        "points": "Points used, in the gateway's unit; null if unknown.",
        "refunded": "Whether the points were refunded.",
        "resumed": "Whether an earlier run submitted the job.",
        "prompt": "The prompt; null if the request has none.",
    },
    "A batch in JSON": {
        "total": "Number of jobs.",
        "saved": "Jobs whose clip is saved.",
        "in_doubt": "Jobs that were sent and may have been accepted; they are not sent again.",
        "unfinished": "Jobs that are paid for, but whose clip could not be saved yet.",
        "refused": "Jobs that were not submitted, or not accepted: nothing was charged.",
        "timed_out": "Jobs whose wait timed out; their tasks continue.",
        "failed": "Jobs whose task failed.",
        "left": "Jobs that were not started.",
        "errors": "Number of errors, by name.",
        "points": "Points used by the tasks that ended in this run.",
        "refunded_points": "Points that were refunded.",
        "seconds": "Duration of this run.",
        "files": "For `batch`, the file of results; for `resume` and `audit`, the clips.",
    },
    "A reconciliation in JSON": {
        "found": "The jobs whose task was found: `key`, `task_id`, `proof` and `custom_id`.",
        "not_accepted": "The keys of jobs that were not accepted, and are planned again.",
        "left": "The jobs that stay in doubt: `key`, `reason`, `task_ids` that may be it, "
        "`is_charged` and `custom_id`.",
        "files": "The clips that were saved.",
    },
    "An audit in JSON": {
        "tasks": "The tasks, each with `task_id`, `created_at`, `submitted_at`, `platform`, "
        "`action`, `state`, `points`, `model`, `user_id` and `aliases`. With `--adopt`, the "
        "object is that of a batch.",
        "unclear": "Further tasks that may be those of jobs in doubt.",
        "is_complete": "Whether the gateway sent its whole list.",
    },
    "A dry run in JSON": {
        "entries": "Each entry: `index`, `custom_id`, `kind`, `model`, `seconds`, `action` (new, "
        "resumed, saved, failed or in_doubt) and `points`, the median of earlier ones or null.",
        "bad": "What is wrong with each bad line.",
        "new": "Entries that would be sent.",
        "points": "What they would cost together, without those of unknown cost.",
        "unknown": "Entries that would be sent and whose cost is unknown.",
    },
    "A fleet in JSON": {
        "workers": "For each worker, `id`, `heartbeat_age` (seconds since its last heartbeat) and "
        "`jobs` (how many it has).",
        "ready": "Jobs that wait for a worker.",
        "scheduled": "Jobs that wait for another attempt.",
        "running": "Jobs that a worker has.",
        "jobs": "Number of jobs in the journal, by state; a job that no worker has begun is not "
        "in it.",
        "points": "Points of all jobs that were not refunded.",
        "rate": "Requests per second of all workers together; `null` while they are not limited.",
        "held": "How long the gateway wants no requests, in seconds.",
        "doubts": "The jobs in doubt, as `jobs` prints them.",
    },
    "A demonstration in JSON": {
        "prompts": "How many prompts were enqueued.",
        "tasks": "Tasks in the gateway's ledger.",
        "paid_twice": "Tasks beyond the first of a prompt.",
        "saved": "Jobs that are saved, by the journal.",
        "failed": "Jobs that failed.",
        "in_doubt": "Jobs in doubt.",
        "clips": "Clips in the folder.",
        "known": "Tasks of the ledger that are in the journal.",
        "lost": "Jobs that have not ended, tasks that nothing accounts for, and clips that are "
        "saved by the journal and not in the folder.",
    },
    "A job in JSON": {
        "key": "Key of the job in the journal.",
        "custom_id": "`custom_id` in the input.",
        "state": f"{', '.join(state.value for state in JobState)}.",
        "task_id": "Id of the task, if there is one; for a job in doubt, the one in the response.",
        "endpoint": "Type of the request.",
        "model": "Name of the model.",
        "seconds": "Length of the clip.",
        "submissions": "How often the request was sent.",
        "error": "Name of the error that the job failed with, or is in doubt for.",
        "code": "The gateway's code for that error.",
        "points": "Points used, in the gateway's unit.",
        "refunded": "Whether the points were refunded.",
        "file_bytes": "Size of the clip.",
        "planned_at": "When the job was added, in ISO 8601; null if the journal is damaged.",
        "submitted_at": "When the request was sent.",
        "accepted_at": "When the task's id was received.",
        "finished_at": "When the clip was ready.",
        "saved_at": "When the file was complete.",
        "source": "File and line of the request, such as p.txt:17.",
        "proof": (
            "What settled the last doubt: person, webhook, list of tasks, or log of the key; "
            "for a job in doubt, `charge` if the log or the response shows one."
        ),
    },
    "A page in JSON": {
        "file": "The page.",
        "jobs": "How many jobs it shows.",
    },
    "A simulator in JSON": {
        "base_url": "URL of the API; the value for FUHU_BASE_URL.",
        "cdn_url": "URL of the files: another origin.",
        "control_url": "URL of the control API.",
        "api_key": "The first key; the value for FUHU_API_KEY.",
        "access_token": "The account's token; the value for FUHU_ACCESS_TOKEN.",
        "user_id": "The account's user; the value for FUHU_USER_ID.",
    },
    "A simulator.toml": {
        "callbacks": "A table with options of `Callbacks`, such as `times`, `delay` and `tries`.",
        "lists": "A table with options of `AccountLists`, such as `version` and `delay`.",
        "retry_after": "`Retry-After` for requests above `rate_limit`, in seconds.",
        "others": "Any option of `Simulator`, such as `price`, `burst` or `link_lifetime`.",
    },
}
"""What commands print as JSON, or read; the tests of the commands compare the keys."""


# Markdown


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell or " " for cell in line) + " |" for line in lines)


def code(text: object) -> str:
    """Return *text* as code that may stand in a table."""
    return f"`{text}`".replace("|", "\\|")


def codes(texts: Iterable[object]) -> str:
    """Return several texts as code, with commas between them."""
    return ", ".join(map(code, texts))


@functools.cache
def _homes() -> dict[str, str]:
    """Return which page of the reference describes which object or module."""
    return {
        name: page.name
        for page in sorted((DOCS / "reference").glob("*.md"))
        for name in re.findall(
            r"^\.\. (?:auto|py:)\w+:: (fuhu_runway[\w.]*)$",
            page.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    }


def api(name: str, kind: str = "class") -> str:
    """Return a link to the description of one of our own names, which code hosts show too."""
    homes, full = _homes(), f"fuhu_runway.{name}"
    home = full
    while home not in homes:
        home = home.rpartition(".")[0]
    label = ".".join(name.split(".")[-2:]) if kind == "meth" else name.rpartition(".")[2]
    return f"[{code(label)}]({homes[home]}#{full})"


def error_link(error: type[errors.RunwayError]) -> str:
    """Return a link to the description of one exception."""
    return api(f"errors.{error.__name__}", "exc")


def _anchors() -> dict[str, str]:
    """Return the sections of the fact sheet, by number, as the anchors MyST makes for them."""
    text = (DOCS / "reference" / "api-facts.md").read_text(encoding="utf-8")
    titles = re.findall(r"^#{2,3} ((\d+(?:\.\d+)?)\.? .*)$", text, re.MULTILINE)
    return {
        number: re.sub(r"[^\w\- ]", "", title.strip().lower().replace(" ", "-"))
        for title, number in titles
    }


def sourced(source: str) -> str:
    """Return a row's source with its section of the fact sheet linked."""
    anchors = _anchors()

    def link(found: re.Match[str]) -> str:
        number = found[1] if found[1] in anchors else found[1].partition(".")[0]
        return f"[{found[0]}](api-facts.md#{anchors[number]})"

    return re.sub(r"api-facts (\d+(?:\.\d+)?)(?: row \d+)?", link, source).replace("|", "\\|")


def unsourced(words: str) -> str:
    """Return a docstring's words without its remarks on sources, which have a page of their own."""
    return re.sub(r"\s*\([^()]*api-facts[^()]*\)", "", words)


def meanings(module: str, kind: str) -> dict[str, str]:
    """Return what the docstrings under the members of an enum say, by member."""
    found = ModuleAnalyzer.for_module(module).find_attr_docs()
    return {
        name: unsourced(" ".join(lines)).strip()
        for (home, name), lines in found.items()
        if home == kind
    }


# Errors


def error_tree() -> str:
    """Return the tree of exceptions, as the classes themselves have it."""
    return "```text\n" + "\n".join(_branch(errors.RunwayError)) + "\n```"


def _branch(error: type[errors.RunwayError], before: str = "") -> Iterator[str]:
    others = [base.__name__ for base in error.__bases__ if base.__module__ == "builtins"]
    standard = [name for name in others if name != "Exception"]
    yield error.__name__ + (f" ({', '.join(standard)})" if standard else "")
    children = error.__subclasses__()
    for child in children:
        last = child is children[-1]
        head, *rest = _branch(child)
        yield before + ("└── " if last else "├── ") + head
        yield from (("    " if last else "│   ") + line for line in rest)


# Endpoints and gateways


LISTS: Final = {"account_tasks": "tasks of the account", "key_log": "charges of the key"}


def endpoints() -> str:
    """Return one line for each endpoint."""
    return table(
        ("Name", "Request", "Method", "Costs", "Returns", "Source"),
        (
            (
                code(row.name),
                code(f"{row.verb} {_path(row)}"),
                _method(row),
                "points" if row.replay is facts.Replay.PAID else "nothing",
                LISTS.get(row.name, "a task" if row.route is None else "a balance"),
                sourced(row.source),
            )
            for row in facts.ENDPOINTS.values()
        ),
    )


def _method(row: facts.Endpoint) -> str:
    home = "endpoints.Official" if row.method.startswith("official.") else "Client"
    return api(f"{home}.{row.method.rpartition('.')[2]}", "meth")


def _path(row: facts.Endpoint) -> str:
    prefixes = {facts.Root.REVERSE: FUHU.prefix, facts.Root.OFFICIAL: FUHU.official_prefix}
    return prefixes.get(row.root, "") + row.path


def bodies() -> str:
    """Return, for each paid endpoint, where each argument goes in the body."""
    return "\n\n".join(_body(row) for row in facts.ENDPOINTS.values() if row.sends is not None)


def _body(row: facts.Endpoint) -> str:
    assert row.sends is not None  # noqa: S101  (the caller chose those that have one)
    heading = f"### `{row.name}`\n\nMade from {api(row.sends.__name__)}.\n\n"
    lines = [
        (code(place), (source.__doc__ or "").rstrip(".") if callable(source) else code(source))
        for place, source in row.body.items()
    ] or [("the whole body", "`body`")]
    if row.takes_callback:
        lines.append((code(facts.CALLBACK_KEY), "`callback_url` of the client"))
    return heading + table(("Place in the body", "Filled from"), lines)


def gateways() -> str:
    """Return one line for each gateway that is known by name."""
    return table(
        ("Name", "`base_url`", "Prefix", "Feed", "Key", "Balance", "Files"),
        (
            (
                code(row.name),
                code(row.base_url) if row.base_url else "you give it",
                code(row.prefix),
                code(f"{row.feed_verb} {row.prefix}{facts.ENDPOINTS['feed'].path}"),
                code(row.key_style.value),
                _balance_of(row),
                code(f"POST {row.files_path}") if row.files_path else "no known route",
            )
            for row in facts.GATEWAYS.values()
        ),
    )


def _balance_of(row: Gateway) -> str:
    host = f" at {code(row.quota_url)}" if row.quota_url else ""
    return f"{row.balance.name}{host}"


def tasks() -> str:
    """Return one line for each kind of request: what it makes, and which gateways document it."""
    return table(
        ("You get", "Request", "Method", "Models", "Gateways that document it"),
        (
            (
                _purpose(row.sends),
                api(row.sends.__name__),
                _method(row),
                codes(model.name for model in MODELS if row.sends in model.requests) or "no model",
                codes(row.gateways),
            )
            for row in facts.ENDPOINTS.values()
            if row.sends is not None and row.gateways
        ),
    )


def _purpose(kind: type) -> str:
    return unsourced(inspect.getdoc(kind) or "").partition(".")[0]


def models() -> str:
    """Return one line for each model of each request, with what is documented of it."""
    return table(
        ("Model", "Requests", "Seconds", "Ratios", "Other ratios"),
        (
            (
                code(row.name),
                ", ".join(api(kind.__name__) for kind in row.requests),
                codes(row.seconds) or "not documented",
                codes(row.ratios) or "not documented",
                "refused" if row.refuses_other_ratios else "sent",
            )
            for row in MODELS
        ),
    )


def key_styles() -> str:
    """Return the ways in which a gateway may want the key, and the routes to the balance."""
    styles = [(f"`KeyStyle.{style.name}`", code(style.value)) for style in KeyStyle]
    routes = [
        (f"`BalanceRoute.{route.name}`", codes(_balance_paths(route))) for route in BalanceRoute
    ]
    return table(("Value", "What is sent"), [*styles, *routes])


def _balance_paths(route: BalanceRoute) -> list[str]:
    asked = [facts.ENDPOINTS[name] for name in facts.BALANCE_ENDPOINTS[route]]
    return [
        f"{row.verb} {row.path}" + ("?key=…" if row.root is facts.Root.QUOTA else "")
        for row in asked
    ]


# Reading


def dialects() -> str:
    """Return one line for each shape of response, in the order in which they are tried."""
    return table(
        ("", "Letter", "Name", "Recognised by", "Is about", "Fields are in"),
        (
            (
                str(number),
                row.letter,
                code(row.name),
                RECOGNISED[row.name],
                _sense(row),
                code(row.under) if row.under else "the body itself",
            )
            for number, row in enumerate(facts.DIALECTS, 1)
        ),
    )


def _sense(row: facts.Dialect) -> str:
    """Try what a dialect that has a code says with each kind of it."""
    found = [row.sense({"code": tried, "data": {}}) for tried in (200, 400, True, False)]
    return " or ".join(sense.value for sense in dict.fromkeys(found))


def spellings() -> str:
    """Return what each dialect calls each part of a task; empty where it has no such field."""
    telling = [row for row in facts.DIALECTS if "task_id" in row.spelling]
    parts = dict.fromkeys(part for row in telling for part in row.spelling)
    return table(
        ("Part", *(f"{row.letter} {code(row.name)}" for row in telling)),
        (
            (
                part.replace("_", " "),
                *(code(row.spelling[part]) if part in row.spelling else "" for row in telling),
            )
            for part in parts
        ),
    )


def states() -> str:
    """Return the words that a gateway may use for each state."""
    told = {state: [w for w, its in facts.STATES.items() if its is state] for state in TaskState}
    return table(
        ("State", "Words", "Is it final?"),
        (
            (
                f"`TaskState.{state.name}`",
                codes(words) if words else "any other word",
                "yes" if state.is_final else "no",
            )
            for state, words in told.items()
        ),
    )


def sources() -> str:
    """Return where each row of the other tables was found."""
    kinds: dict[str, Iterable[tuple[str, str]]] = {
        "[endpoint](endpoints.md)": ((row.name, row.source) for row in facts.ENDPOINTS.values()),
        "[gateway](gateways.md)": ((row.name, row.source) for row in facts.GATEWAYS.values()),
        "[model](models.md#models-lengths-and-ratios)": ((row.name, row.source) for row in MODELS),
        "[dialect](dialects.md)": ((row.name, row.source) for row in facts.DIALECTS),
        "[refusal](refusals.md)": (
            (str(number), row.source) for number, row in enumerate(REFUSALS, 1)
        ),
    }
    return table(
        ("What", "Row", "Source"),
        (
            (kind, code(name), sourced(source))
            for kind, rows in kinds.items()
            for name, source in rows
        ),
    )


# Refusals and retries


def refusals() -> str:
    """Return one line for each kind of refusal, in the order in which they are tried."""
    heads = ("Body", "Status", "Code", "Words in the reason", "Raises", "Fate", "Proof")
    return table(
        ("", *heads),
        (
            (
                str(number),
                "JSON" if row.in_json else "any",
                _statuses(row.statuses),
                codes(sorted(row.codes)),
                codes(row.texts) + (f", with one of {codes(row.also)}" if row.also else ""),
                error_link(row.raises),
                row.fate.name,
                row.proof or "none",
            )
            for number, row in enumerate(REFUSALS, 1)
        ),
    )


def _statuses(statuses: frozenset[int]) -> str:
    """Return statuses as a reader would write them: runs of ten and more as a range."""
    if not statuses:
        return "any"
    runs: list[list[int]] = []
    for status in sorted(statuses):
        if runs and status == runs[-1][-1] + 1:
            runs[-1].append(status)
        else:
            runs.append([status])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def retries() -> str:
    """Return, for each fate, what a free and a paid request do."""
    told = meanings("fuhu_runway.errors", "Fate")
    return table(
        ("Fate", "What is known", "Seen as", "Errors", "A free request", "A paid request"),
        (
            (
                f"`{fate.name}`",
                told[fate.name],
                SEEN_AS[fate],
                ", ".join(map(error_link, _errors_of(fate))),
                "again" if facts.Replay.FREE in MAY_REPEAT[fate] else "stop",
                _paid(fate),
            )
            for fate in errors.Fate
        ),
    )


def _paid(fate: errors.Fate) -> str:
    if facts.Replay.PAID in MAY_REPEAT[fate]:
        return "again"
    in_doubt = facts.Replay.FREE in MAY_REPEAT[fate]
    return f"stop: {error_link(errors.SubmissionInDoubt)}" if in_doubt else "stop"


def _errors_of(fate: errors.Fate) -> list[type[errors.RunwayError]]:
    told = [row.raises for row in REFUSALS if row.fate is fate]
    return list(dict.fromkeys([*NO_ANSWER.get(fate, ()), *told]))


def delays() -> str:
    """Return the pauses between the attempts of one request, under the default policy."""
    policy = RetryPolicy()
    steps = exponential_intervals(policy.first, policy.factor, policy.max_delay)
    pauses = [steps[min(step, len(steps) - 1)] for step in range(policy.attempts - 1)]
    return table(
        ("Before attempt", "Random pause"),
        ((f"{number}", f"0 to {pause:g} s") for number, pause in enumerate(pauses, 2)),
    )


def polls() -> str:
    """Return when the first polls of a task are due, under the default policy."""
    policy = PollPolicy()
    steps = exponential_intervals(policy.first, policy.factor, policy.max_interval)
    shown = [*steps, steps[-1]]
    at = [sum(shown[: number + 1]) for number in range(len(shown))]
    return table(
        ("Poll", "Seconds after the previous one", "Seconds after the submit"),
        (
            (f"{number}", f"{step:g}", f"{total:g}")
            for number, (step, total) in enumerate(zip(shown, at, strict=True), 1)
        ),
    )


# Many jobs


def input_kinds() -> str:
    """Return one line for each kind of request that a file may ask for."""
    return table(
        ("`kind`", "Request", "Must have", "May have"),
        (
            (
                code(name),
                api(kind.__name__),
                codes(_fields(kind, needed=True)),
                codes(_fields(kind, needed=False)),
            )
            for name, kind in KINDS.items()
        ),
    )


def _fields(kind: type[attrs.AttrsInstance], *, needed: bool) -> list[str]:
    return [
        field.name for field in attrs.fields(kind) if (field.default is attrs.NOTHING) is needed
    ]


def job_states() -> str:
    """Return the states of a job, as the journal spells them."""
    told = meanings("fuhu_runway._journal.states", "JobState")
    return table(
        ("State", "In the file", "Meaning"),
        ((f"`JobState.{one.name}`", code(one.value), told[one.name]) for one in JobState),
    )


def job_steps() -> str:
    """Return one line for each step that a job may take."""
    return table(
        ("From", "To", "When"),
        (
            (code(before.value), code(after.value), reason)
            for before, steps in STEPS.items()
            for after, reason in steps.items()
        ),
    )


def journal_schema() -> str:
    """Return the journal's schema as it is sent to SQLite."""
    return f"```sql\n{SCHEMA.strip()}\n```"


def journal_migrations() -> str:
    """Return what leads from each version of the schema to the next."""
    return table(
        ("From version", "To version", "What is done"),
        ((str(older), str(older + 1), codes(_doings(text))) for older, text in MIGRATIONS.items()),
    )


def _doings(script: str) -> list[str]:
    """Return the statements of a script by their first three words."""
    return re.findall(r"^[A-Z]+ \w+ \w+", script, re.MULTILINE)


def pacing() -> str:
    """Return the numbers by which the pace is learned."""
    return table(
        ("What", "Value"),
        (
            ("requests in flight before the first response", f"{pace.FIRST_ROOM}"),
            ("requests per second after the first response", f"{pace.FIRST_RATE:g}"),
            ("share of refusals that is treated as chance", f"{pace.USUAL:.0%}"),
            ("longest trial at half the rate", f"{pace.PATIENCE:g} s"),
            ("time until a limited rate is raised", f"{pace.AGAIN:g} s to {30 * pace.AGAIN:g} s"),
            ("first raise of the rate", f"{pace.STEP:.0%}"),
            ("refusals in a row that stop all requests", f"{pace.IN_A_ROW} or more"),
            (
                "interval of the single trial requests after that",
                f"{pace.PATIENCE / 2:g} s to {pace.LONGEST_PAUSE:g} s",
            ),
        ),
    )


def callback_numbers() -> str:
    """Return the limits of webhooks, and how many polls they may cause."""
    return table(
        ("What", "Value"),
        (
            ("largest body", f"{callbacks.MAX_BODY_BYTES // 1024} KiB"),
            ("time limit for receiving a body", f"{callbacks.READ_TIMEOUT:g} s"),
            ("bodies received at once", f"{callbacks.READ_AT_ONCE}"),
            ("addresses kept in memory", f"{_addresses.REMEMBERED:,}"),
            ("random part of an address", f"{_addresses.SIGNATURE_BYTES * 8} bits"),
            ("polls of one task that webhooks may cause", f"one in {poller.WEBHOOK_EVERY:g} s"),
            ("polls of a task while webhooks are relied on", f"one in {callbacks.SAFETY_NET:g} s"),
            (
                "ended tasks without any webhook before `CallbacksMissing`",
                f"{poller.MISSING_AFTER}",
            ),
        ),
    )


def hook_events() -> str:
    """Return one line for each event: its log level, when it happens and its fields."""
    return table(
        ("Event", "Level", "When", "Fields"),
        (
            (
                api(f"hooks.{event.__name__}"),
                logging.getLevelName(event.level),
                (inspect.getdoc(event) or "").partition("\n")[0],
                codes(field.name for field in attrs.fields(event)),
            )
            for event in hooks.Event.__subclasses__()
        ),
    )


# The simulator


def simulated_dialects() -> str:
    """Return one line for each dialect that the simulator speaks."""
    rows = ((code(name), one.help) for name, one in SIMULATED_DIALECTS.items())
    return table(("Name", "What it is"), rows)


def simulated_shapes() -> str:
    """Return one line for each response that names a task and is in no documented dialect."""
    return table(("Name", "What it is"), ((code(name), one.help) for name, one in SHAPES.items()))


def known_responses() -> str:
    """Return one line for each response that says nothing about a task."""
    return table(
        ("Name", "Status", "Its beginning"),
        (
            (
                f"{code(name)}{', after the task was made and paid for' * one.accepted}",
                str(one.status),
                code("".join(one.body.splitlines()).replace("|", "\\|")[:60])
                if one.body
                else "empty",
            )
            for name, one in KNOWN.items()
        ),
    )


def fault_places() -> str:
    """Return, for each place, the faults that can happen there and not everywhere."""
    kinds = [kind for kind in vars(faults).values() if _is_fault(kind)]
    wide = [kind for kind in kinds if kind.usable_on == faults.PLACES]
    lines = [("anywhere", _fault_links(wide))]
    for place in ("submit", "feed", "official", "balance", "download"):
        here = [kind for kind in kinds if place in kind.usable_on and kind not in wide]
        lines.append((f'`"{place}"`', _fault_links(here) or "no others"))
    return table(("Place", "Faults"), lines)


def _is_fault(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, faults.Fault) and kind is not faults.Fault


def _fault_links(kinds: Iterable[type[faults.Fault]]) -> str:
    return ", ".join(api(f"testing.faults.{kind.__name__}") for kind in kinds)


# The control API


def commands() -> str:
    """Return the arguments of each command, the exit codes, and the keys of what is printed."""
    sections = []
    for name, command in _commands_of(cli.app):
        about = inspect.cleandoc(command.help).partition("\n\nArgs:")[0]
        lines = [
            ("`, `".join(argument.names), _argument_help(argument))
            for argument in command.assemble_argument_collection(
                default_parameter=cli.app.default_parameter, parse_docstring=True
            )
            if argument.show
        ]
        sections.append(f"## {name}\n\n{about}\n\n{_meanings('Argument', lines)}")
    sections.append(f"## Exit codes\n\n{_meanings('Code', cli.EXIT_CODES.items())}")
    for heading, keys in PRINTED.items():
        sections.append(f"## {heading}\n\n{_meanings('Key', keys.items())}")
    return "\n\n".join(sections)


def _commands_of(app: App, parents: str = "") -> Iterator[tuple[str, App]]:
    """Return the commands by their names, such as "fleet init", in the order of the help page."""
    for name in (name for name in app if not name.startswith("-")):
        command = app[name]
        if command.default_command is None:
            yield from _commands_of(command, f"{parents}{name} ")
        else:
            yield f"{parents}{name}", command


def _argument_help(argument: Argument) -> str:
    default = argument.field_info.default
    has_default = isinstance(default, str | float) or type(default) is int
    text = " ".join((argument.parameter.help or "").split())
    return f"{text} Default: {default}." if has_default else text


def _meanings(head: str, rows: Iterable[tuple[object, str]]) -> str:
    return table((head, "Meaning"), ((code(name), meaning) for name, meaning in rows))


def control_commands() -> str:
    """Return one line for each thing that a control request can ask for."""
    return table(
        ("Request", "What it does"),
        (
            (f"[{code(one.line)}](#{_control_anchor(one)})", inspect.getdoc(one.run))
            for one in COMMANDS
        ),
    )


def _control_anchor(command: Command) -> str:
    return re.sub(r"[^\w\- ]", "", command.line.lower().replace(" ", "-"))


def control_details() -> str:
    """Return a section for each of them: its fields, and what is in the response."""
    return "\n\n".join(_control_section(one) for one in COMMANDS)


def _control_section(command: Command) -> str:
    parts = [f"### `{command.line}`", inspect.getdoc(command.run) or ""]
    if command.fields:
        where = "Filters, in the query:" if command.method == "GET" else "Fields of the body:"
        parts += [where, _control_fields(command.fields)]
    names, each = command.response, "The response:"
    if names is Simulator:
        names = _control_options()
    elif isinstance(names, type):
        names, each = _control_row(names), f"Each row of `{command.path}`:"
    parts += [each, table(("Name", "What it is"), ((code(name), names[name]) for name in names))]
    return "\n\n".join(parts)


def _control_row(kind: type) -> dict[str, str]:
    """Return what the comments and properties of a class say of a row."""
    fields = meanings(kind.__module__, kind.__name__)
    properties = {
        name: (inspect.getdoc(one) or "").partition("\n")[0].removeprefix("Return ").capitalize()
        for name, one in vars(kind).items()
        if isinstance(one, property)
    }
    return {name: text.replace("None", "null") for name, text in (fields | properties).items()}


def _control_fields(fields: Fields) -> str:
    return table(
        ("Field", "What it is", "Allowed", "Default"),
        (
            (code(name), one.help, one.allowed, _control_default(one))
            for name, one in fields.items()
        ),
    )


def _control_default(field: Field) -> str:
    return "required" if field.default is REQUIRED else code(json.dumps(field.default))


def _control_options() -> dict[str, str]:
    """Return what `GET /-/options` tells, in the words of the simulator's own options."""
    told = meanings("fuhu_runway.testing.simulator", "Simulator")
    apart = {
        "base_url": "Where the API is.",
        "cdn_url": "Where the files are.",
        "control_url": "Where the control API is.",
    }
    own = (*CONTROL_OPTIONS, "takes", "price", "callbacks", "lists")
    here = {name: told[name].replace("None", "null") for name in own}
    here["points"] = here["points"].replace("that account", "the first account")
    return {**apart, **here, "keeps_state": "Whether it has a state file."}


def control_faults() -> str:
    """Return each fault by name, with its places and its fields."""
    return table(
        ("Kind", "What goes wrong", "Where", "Fields"),
        (
            (
                code(name),
                unsourced(kind.help),
                "anywhere" if kind.places == faults.PLACES else codes(sorted(kind.places)),
                codes(kind.fields),
            )
            for name, kind in FAULTS.items()
        ),
    )


def control_fault_fields() -> str:
    """Return each field of the faults, with what is allowed."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name, kind in FAULTS.items():
        for field, one in kind.fields.items():
            rows.setdefault((field, one.allowed), []).append(name)
    return table(
        ("Field", "Allowed", "Of the kinds"),
        ((code(field), allowed, codes(names)) for (field, allowed), names in sorted(rows.items())),
    )


# The code


def layers() -> str:
    """Return each layer of the package, and what each module in it owns, from the top down."""
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (order,) = (one["layers"] for one in contracts if one["type"] == "layers")
    named = ([*_modules(re.findall(r"\w+", layer))] for layer in order)
    return table(
        ("Layer", "Module", "What it owns"),
        (
            (str(number), code(name), owned)
            for number, modules in enumerate(filter(None, named), 1)
            for name, owned in modules
        ),
    )


def _modules(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each module with the first sentence of its docstring; a folder before its modules."""
    for name in names:
        place = PACKAGE / name
        if (place / "__init__.py").exists():
            yield f"{name}/", _first_sentence(place / "__init__.py")
            inside = {
                path.stem
                for path in place.iterdir()
                if path.suffix == ".py" or (path / "__init__.py").exists()
            }
            yield from _modules(f"{name}/{one}" for one in sorted(inside - {"__init__"}))
        elif place.with_suffix(".py").exists():
            yield name, _first_sentence(place.with_suffix(".py"))


def _first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = " ".join(docstring.partition("\n\n")[0].split())
    return re.split(r"(?<=\.) ", sentence)[0].replace("|", "\\|")


# The program

TABLES: Final[Mapping[str, Callable[[], str]]] = {
    make.__name__: make
    for make in (
        error_tree,
        endpoints,
        bodies,
        gateways,
        tasks,
        models,
        key_styles,
        dialects,
        spellings,
        states,
        sources,
        refusals,
        retries,
        delays,
        polls,
        pacing,
        callback_numbers,
        hook_events,
        input_kinds,
        job_states,
        job_steps,
        journal_schema,
        journal_migrations,
        simulated_dialects,
        simulated_shapes,
        known_responses,
        fault_places,
        commands,
        control_commands,
        control_details,
        control_faults,
        control_fault_fields,
        layers,
    )
}


def refreshed(text: str) -> str:
    """Return a page with every table in it generated again."""
    return REGION.sub(
        lambda found: f"{found['start']}\n{TABLES[found['name']]()}\n\n{found['end']}", text
    )


def main() -> int:
    """Write the stale pages, or name them; give the exit code."""
    parser = argparse.ArgumentParser(description="Write the tables of the reference pages.")
    parser.add_argument("--check", action="store_true", help="only name the pages that are stale")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder with the pages")
    options = parser.parse_args()
    stale = 0
    for page in sorted(options.docs.glob("**/*.md")):
        text = page.read_text(encoding="utf-8")
        fresh = refreshed(text)
        if fresh == text:
            continue
        stale += 1
        name = page.relative_to(options.docs)
        print(f"{name} is stale: run python docs/generate.py" if options.check else f"wrote {name}")
        if not options.check:
            page.write_text(fresh, encoding="utf-8")
    return int(options.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
