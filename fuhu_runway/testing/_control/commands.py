"""
The commands of the control API: the simulator's methods as JSON, for programs in any language.

Rule 1. A control request is never counted, limited or subject to a fault.
Rule 2. A request that names another host or comes from another origin is refused, since a web
    page may have sent it.
Rule 3. Each command is one function below, and its reference page is generated from it.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, get_args

import attrs
from aiohttp import web
from yarl import URL

from fuhu_runway.testing._loopback import is_loopback
from fuhu_runway.testing._server.bodies import JsonObject
from fuhu_runway.testing._server.dialects import NAMES
from fuhu_runway.testing._server.options import CONTROL
from fuhu_runway.testing._server.state import LedgerEntry
from fuhu_runway.testing._server.store import Seen, Store, TaskView
from fuhu_runway.testing._server.story import Ending
from fuhu_runway.testing.simulator import Simulator

from . import arguments as _arguments
from . import replies as _replies
from .arguments import FAULTS, PATTERN, REQUIRED, TEXT, Field, Fields, Rejected, invalid, plain

Arguments = Mapping[str, Any]


@attrs.frozen
class Control:
    """Runs commands on one gateway."""

    gateway: Simulator
    store: Store

    def add_to(self, app: web.Application) -> None:
        app.router.add_route("*", CONTROL, self.receive)
        app.router.add_route("*", f"{CONTROL}/{{path:.*}}", self.receive)

    async def receive(self, request: web.Request) -> web.Response:
        """Run the command that *request* names, and return its response or the error."""
        try:
            _check_caller(request)
            command = _command(request.method, request.match_info.get("path", ""))
            given = await _given(command, request)
            return _reply(command.run(self, _arguments.read(command.fields, given)))
        except Rejected as rejected:
            return _reply({"error": rejected.body}, rejected.status)
        except RecursionError:
            return _reply({"error": {"message": "the body is nested too deeply"}}, 400)
        except ConnectionError:
            # The caller disconnected before its request was complete.
            return web.Response()


Run = Callable[[Control, Arguments], JsonObject]


@attrs.frozen
class Command:
    """One method on one path."""

    method: str
    path: str
    run: Run
    #: The fields of the response and their meaning, or the class of each of its rows.
    response: Mapping[str, str] | type
    #: The fields of the body, or of the query for a GET.
    fields: Fields

    @property
    def line(self) -> str:
        """Return its method and path."""
        return f"{self.method} {CONTROL}/{self.path}"


COMMANDS: Final[list[Command]] = []


def command(
    line: str, response: Mapping[str, str] | type, fields: Fields | None = None
) -> Callable[[Run], Run]:
    """Return a decorator that adds a function to `COMMANDS`."""

    def add(run: Run) -> Run:
        method, path = line.split()
        COMMANDS.append(Command(method, path, run, response, fields or {}))
        return run

    return add


def _reply(body: JsonObject, status: int = 200) -> web.Response:
    # ASCII, since a prompt may contain half a surrogate pair, which cannot be encoded.
    text = json.dumps(body, allow_nan=False) + "\n"
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return web.json_response(text=text, status=status, headers=headers)


def _check_caller(request: web.Request) -> None:
    """Raise Rejected if the request may come from a web page in a browser on this machine."""
    host = request.headers.get("Host", "")
    try:
        is_here = is_loopback(URL(f"http://{host}").host or "")
    except ValueError:
        is_here = False
    if not is_here:
        raise Rejected("Host must be this machine", 403, field="Host", allowed="127.0.0.1")
    if request.headers.get("Origin", f"http://{host}") != f"http://{host}":
        raise Rejected("other origins are not allowed", 403, field="Origin", allowed="none")
    # The values that browsers send unless a page of another site made the request.
    if request.headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
        raise Rejected("other sites are not allowed", 403, field="Sec-Fetch-Site")


def _command(method: str, path: str) -> Command:
    found = {one.method: one for one in COMMANDS if one.path == path}
    if not found:
        allowed = [one.line for one in COMMANDS]
        raise Rejected(f"{CONTROL}/{path} does not exist", 404, allowed=allowed)
    if method not in found:
        allowed = [one.line for one in found.values()]
        raise Rejected(f"{CONTROL}/{path} does not support {method}", 405, allowed=allowed)
    return found[method]


async def _given(command: Command, request: web.Request) -> object:
    """Return the fields of the query for a GET, else of the body."""
    if command.method != "GET":
        _arguments.read({}, dict(request.query), "query")
        try:
            return _arguments.parse(await request.read())
        except web.HTTPRequestEntityTooLarge as large:
            raise Rejected("the body is too large", 413, field="body") from large
    given = dict(request.query)
    if len(given) < len(request.query):
        raise Rejected("a field is given twice", field="query", allowed=list(command.fields))
    return given


def _filters(kind: type, *names: str) -> dict[str, Field]:
    return {
        name: attrs.evolve(
            _arguments.field_of(attrs.fields_dict(kind)[name].type, kind.__name__, name),
            help="Return only those with this value.",
            default=None,
        )
        for name in names
    }


def _chosen(rows: list[JsonObject], arguments: Arguments) -> list[JsonObject]:
    return [row for row in rows if all(row[name] == value for name, value in arguments.items())]


SCRIPT: Final = {
    "prompt": attrs.evolve(plain(TEXT), help="All tasks with this exact prompt.", default=None),
    "pattern": attrs.evolve(PATTERN, help="All tasks whose prompt matches it.", default=None),
    **_arguments.fields_of(Simulator.script),
}
#: The options of the gateway that are JSON and not secret.
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
    "user_id",
    "clock_offset",
    "rate_limit",
    "burst",
    "media",
    "exact_links",
    "weather",
    "link_lifetime",
    "expired_status",
)
PLANS: Final = {
    "scripts": "As they were planned, with every field and with `for`: prompt, pattern, next, or "
    "function for one that only Python can write. The one that applies first comes first.",
    "faults": "As they were planned, with the remaining requests and seconds.",
}
COUNTERS: Final = {
    "submitted": "Billable tasks.",
    "duplicates": "Tasks with the same request as an earlier one, byte for byte.",
    "states": "Tasks in each state.",
    "polls": "How often the client polled a task.",
    "requests": "Remembered requests to both origins.",
    "places": "Requests of each kind: submit, feed, download, balance, official, "
    "tasks, charges, files, unknown.",
    "peak_requests": "The largest number of requests in flight at once.",
    "limited": "Requests that the rate limit refused.",
    "leaked": "Requests to the second origin that carried a key.",
    "balance": "The points that the first account has left; null means no limit.",
    "refunds": "The points refunded to all accounts.",
    "callbacks_delivered": "Callbacks that got a 2xx.",
    "callbacks_failed": "Callbacks that got another status or no response.",
    "scripts_waiting": "Scripts for a next task that has not been submitted yet.",
    "faults_waiting": "Faults that can still happen.",
}


@command("GET health", {"status": "ok", "now": "Simulated seconds since the first start."})
def health(control: Control, _: Arguments) -> JsonObject:
    """Return the status and the simulated time."""
    return {"status": "ok", "now": round(control.store.clock.now(), 6)}


@command("GET options", Simulator)
def options(control: Control, _: Arguments) -> JsonObject:
    """Return its addresses and options."""
    gateway = control.gateway
    return {
        "base_url": gateway.base_url,
        "cdn_url": gateway.cdn_url,
        "control_url": gateway.control_url,
        **{name: getattr(gateway, name) for name in OPTIONS},
        # Null where a function decides.
        "takes": None if callable(gateway.takes) else gateway.takes,
        "price": None if callable(gateway.price) else gateway.price,
        "callbacks": gateway.callbacks and attrs.asdict(gateway.callbacks),
        "lists": gateway.lists and attrs.asdict(gateway.lists),
        "keeps_state": gateway.state_file is not None,
    }


@command(
    "GET kinds",
    {
        "endings": "The values of `then`.",
        "dialects": "The values of `dialect`.",
        "faults": "The faults by name, with their description, places and fields.",
    },
)
def kinds(_control: Control, _: Arguments) -> JsonObject:
    """Return the endings, dialects and faults that can be planned."""
    found = {}
    for name, kind in FAULTS.items():
        fields = {}
        for field, one in kind.fields.items():
            default = {} if one.default is REQUIRED else {"default": one.default}
            fields[field] = {"allowed": one.allowed, **default}
        found[name] = {"description": kind.help, "where": sorted(kind.places), "fields": fields}
    return {"endings": list(get_args(Ending)), "dialects": list(NAMES), "faults": found}


@command("POST scripts", {"script": "The script, as in `GET /-/plans`."}, SCRIPT)
def script(control: Control, arguments: Arguments) -> JsonObject:
    """Plan what a task will do: the tasks with this prompt or pattern, or else the next task."""
    rest = dict(arguments)
    named = [rest.pop(name) for name in ("prompt", "pattern") if name in rest]
    if len(named) > 1:
        pattern = arguments["pattern"].pattern
        raise invalid("pattern", pattern, ["prompt", "pattern"], "cannot be used with prompt")
    then = rest.get("then", "succeed")
    if "url_after" in rest and then != "succeed":
        why = f"is not valid: a task that ends as {then!r} has no URL"
        raise invalid("url_after", rest["url_after"], 'nothing, or "then": "succeed"', why)
    control.gateway.script(named[0] if named else None, **rest)
    # Named rules are in reverse order, the others in order.
    return {"script": _replies.script(control.store.rules[0 if named else -1])}


@command(
    "POST faults",
    {"fault": "The fault, as in `GET /-/plans`."},
    _arguments.fields_of(Simulator.fault),
)
def fault(control: Control, arguments: Arguments) -> JsonObject:
    """Plan a fault for the next requests of a kind."""
    _arguments.planned(arguments)
    control.gateway.fault(**arguments)
    now = control.store.clock.now()
    return {"fault": _replies.planned(control.store.plans.waiting(now)[-1], now)}


@command("GET plans", PLANS)
def plans(control: Control, _: Arguments) -> JsonObject:
    """Return the planned scripts and faults."""
    return _replies.plans(control.store)


@command("DELETE plans", PLANS)
def forget(control: Control, _: Arguments) -> JsonObject:
    """Forget the planned scripts and faults; a task keeps its script."""
    control.gateway.forget_plans()
    return _replies.plans(control.store)


@command("GET tasks", TaskView, _filters(TaskView, "task_id", "prompt", "state", "key_name"))
def tasks(control: Control, arguments: Arguments) -> JsonObject:
    """Return the billable tasks, in the order of submission."""
    instant = control.store.clock.instant
    rows = [_replies.task(view, instant) for view in control.gateway.tasks]
    return {"tasks": _chosen(rows, arguments)}


@command("GET duplicates", {"duplicates": "A list of lists of task ids."})
def duplicates(control: Control, _: Arguments) -> JsonObject:
    """Return the tasks with the same request, byte for byte, in groups of at least two."""
    groups = control.gateway.duplicates
    return {"duplicates": [[view.task_id for view in group] for group in groups]}


@command("GET ledger", LedgerEntry, _filters(LedgerEntry, "task_id", "prompt"))
def ledger(control: Control, arguments: Arguments) -> JsonObject:
    """Return the outcome of every paid submit."""
    rows = [{**attrs.asdict(one), "answered": one.answered} for one in control.gateway.ledger()]
    return {"ledger": _chosen(rows, arguments)}


@command("GET requests", Seen, _filters(Seen, "where", "origin", "task_id"))
def requests(control: Control, arguments: Arguments) -> JsonObject:
    """Return the requests to both origins, in order."""
    instant, keys = control.store.clock.instant, control.store.secrets
    rows = [_replies.seen(one, instant, keys) for one in control.gateway.requests]
    return {"requests": _chosen(rows, arguments)}


@command("GET counters", COUNTERS)
def counters(control: Control, _: Arguments) -> JsonObject:
    """Return all counters."""
    gateway, store = control.gateway, control.store
    return {
        "submitted": gateway.submitted,
        "duplicates": sum(len(group) - 1 for group in gateway.duplicates),
        "states": dict(Counter(task.state for task in gateway.tasks)),
        "polls": sum(task.polls for task in gateway.tasks),
        "requests": len(gateway.requests),
        "places": dict(Counter(one.where or "unknown" for one in gateway.requests)),
        "peak_requests": gateway.peak_requests,
        "limited": gateway.limited,
        "leaked": len(gateway.leaked),
        "balance": gateway.balance,
        "refunds": gateway.refunds,
        "callbacks_delivered": gateway.callbacks_delivered,
        "callbacks_failed": gateway.callbacks_failed,
        "scripts_waiting": sum(rule.which is None for rule in store.rules),
        "faults_waiting": len(store.plans.waiting(store.clock.now())),
    }


@command(
    "POST keys",
    {
        "name": "Its name on the balance routes.",
        "points": "Its points.",
        "user_id": "Its user.",
    },
    _arguments.fields_of(Simulator.add_key),
)
def add_key(control: Control, arguments: Arguments) -> JsonObject:
    """Add an account, which cannot see the tasks of other users."""
    key, accounts = arguments["key"], control.store.accounts
    if key in accounts:
        raise invalid("key", "", "a key that does not exist yet", "exists already")
    try:
        control.gateway.add_key(**arguments)
    except ValueError as error:
        allowed = "a name that is not in use"
        raise invalid("name", arguments.get("name"), allowed, "is taken") from error
    one = accounts[key]
    return {"name": one.name, "points": one.points, "user_id": one.user_id}


@command("POST reset", COUNTERS)
def reset(control: Control, _: Arguments) -> JsonObject:
    """Forget plans, tasks, requests, counts and further keys, as between two tests."""
    try:
        control.gateway.reset()
    except RuntimeError as error:
        raise Rejected(str(error), 409) from error
    return counters(control, {})
