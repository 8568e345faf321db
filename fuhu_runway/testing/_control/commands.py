"""
The control API of a running simulator: its own methods as JSON, for programs in any language.

Rule 1. What a control request does is never counted, limited or subject to a fault.
Rule 2. Web pages have no business here: a request that names another host or comes from another
    origin is turned away.
Rule 3. Each command is one row of `COMMANDS`; the page about them is written from it.
"""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, get_args

import attrs
from aiohttp import web
from yarl import URL

from fuhu_runway.testing import faults
from fuhu_runway.testing._loopback import is_loopback
from fuhu_runway.testing._server.bodies import JsonObject
from fuhu_runway.testing._server.books import Books, Origin
from fuhu_runway.testing._server.story import ENDINGS

from . import shown as _shown
from . import wanted as _wanted
from .wanted import TEXT, Field, Fields, Unfit, misfit, one_of

if TYPE_CHECKING:
    from fuhu_runway.testing.simulator import Simulator

#: Where it is on the API's origin. No gateway has such a path.
PREFIX: Final = "/-"

#: What a browser says of a request that no page of another site asked for.
OWN_SITE: Final = {"none", "same-origin"}

HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

Wanted = Mapping[str, Any]


@attrs.frozen
class Command:
    """One thing that can be asked for."""

    method: str
    path: str
    told: str
    run: Callable[["Control", Wanted], JsonObject]
    #: Of the body, or for a GET of the query.
    fields: Fields = attrs.field(factory=dict)
    #: What is in the answer, or in each row of it, by name.
    answer: Mapping[str, str] = attrs.field(factory=dict)
    #: The name under which the answer has its rows; None has none.
    rows: str | None = None

    @property
    def line(self) -> str:
        """How it is asked for."""
        return f"{self.method} {PREFIX}/{self.path}"


@attrs.frozen
class Control:
    """Who does what a control request asks for."""

    gateway: "Simulator"
    books: Books

    def add_to(self, app: web.Application) -> None:
        """Answer on the API's origin, under a prefix of its own."""
        app.router.add_route("*", PREFIX, self.receive)
        app.router.add_route("*", f"{PREFIX}/{{path:.*}}", self.receive)

    async def receive(self, request: web.Request) -> web.Response:
        """Do what *request* asks for, or tell why not."""
        try:
            _check_caller(request)
            command = _command(request.method, request.match_info.get("path", ""))
            given = await _given(command, request)
            return _answer(command.run(self, _wanted.read(command.fields, given)))
        except Unfit as unfit:
            return _answer({"error": unfit.told}, unfit.status)
        except RecursionError:
            return _answer({"error": {"message": "the body is nested too deeply"}}, 400)
        except ConnectionError:
            # The caller left before its request was complete, and there is no one to answer.
            return web.Response()


def _answer(body: JsonObject, status: int = 200) -> web.Response:
    # ASCII, since a prompt may hold what no encoding can write.
    text = json.dumps(body, allow_nan=False) + "\n"
    return web.json_response(text=text, status=status, headers=HEADERS)


def _check_caller(request: web.Request) -> None:
    """Turn a web page away that a browser on this machine shows."""
    host = request.headers.get("Host", "")
    try:
        here = is_loopback(URL(f"http://{host}").host or "")
    except ValueError:
        here = False
    if not here:
        raise Unfit("the Host is not this machine", 403, field="Host", allowed="127.0.0.1")
    if request.headers.get("Origin", f"http://{host}") != f"http://{host}":
        raise Unfit("other origins have no business here", 403, field="Origin", allowed="none")
    if request.headers.get("Sec-Fetch-Site", "none") not in OWN_SITE:
        raise Unfit("other sites have no business here", 403, field="Sec-Fetch-Site")


def _command(method: str, path: str) -> Command:
    there = [one for one in COMMANDS if one.path == path]
    if not there:
        raise Unfit(
            f"there is no {PREFIX}/{path}", 404, allowed=[command.line for command in COMMANDS]
        )
    for one in there:
        if one.method == method:
            return one
    allowed = [command.line for command in there]
    raise Unfit(f"{PREFIX}/{path} takes no {method}", 405, allowed=allowed)


async def _given(command: Command, request: web.Request) -> object:
    """The fields that came: of a GET in the query, of the others in the body."""
    if command.method != "GET":
        _wanted.read({}, dict(request.query), "query")
        try:
            return _wanted.parsed(await request.read())
        except web.HTTPRequestEntityTooLarge as large:
            raise Unfit("the body is too large", 413, field="body") from large
    given = dict(request.query)
    if len(given) < len(request.query):
        raise Unfit("a field is there twice", field="query", allowed=list(command.fields))
    return given


# What can be asked for


def _health(control: Control, _: Wanted) -> JsonObject:
    return {"status": "ok", "now": round(control.books.clock.now(), 6)}


def _options(control: Control, _: Wanted) -> JsonObject:
    return _shown.options(control.gateway)


def _kinds(_control: Control, _: Wanted) -> JsonObject:
    return _shown.kinds()


def _plans(control: Control, _: Wanted) -> JsonObject:
    return _shown.plans(control.books)


def _script(control: Control, wanted: Wanted) -> JsonObject:
    control.gateway.script(**_wanted.script(wanted))
    # The last one that names a task comes first, and of those that name none the last one last.
    rules, named = control.books.rules, "prompt" in wanted or "pattern" in wanted
    return {"script": _shown.script(rules[0 if named else -1])}


def _fault(control: Control, wanted: Wanted) -> JsonObject:
    _wanted.check_place(wanted["where"], wanted["fault"], "where")
    control.gateway.fault(**wanted)
    now = control.books.clock.now()
    return {"fault": _shown.planned(control.books.plans.waiting(now)[-1], now)}


def _forget(control: Control, _: Wanted) -> JsonObject:
    control.gateway.forget_plans()
    return _shown.plans(control.books)


def _tasks(control: Control, wanted: Wanted) -> JsonObject:
    instant = control.books.clock.instant
    told = [_shown.task(view, instant) for view in control.gateway.tasks]
    return {"tasks": _chosen(told, wanted)}


def _duplicates(control: Control, _: Wanted) -> JsonObject:
    groups = control.gateway.duplicates
    return {"duplicates": [[view.task_id for view in group] for group in groups]}


def _ledger(control: Control, wanted: Wanted) -> JsonObject:
    told = [_shown.entry(one) for one in control.gateway.ledger()]
    return {"ledger": _chosen(told, wanted)}


def _requests(control: Control, wanted: Wanted) -> JsonObject:
    instant, keys = control.books.clock.instant, control.books.accounts
    told = [_shown.seen(one, instant, keys) for one in control.gateway.requests]
    return {"requests": _chosen(told, wanted)}


def _chosen(rows: list[JsonObject], wanted: Wanted) -> list[JsonObject]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _counters(control: Control, _: Wanted) -> JsonObject:
    return _shown.counters(control.gateway, control.books)


def _add_key(control: Control, wanted: Wanted) -> JsonObject:
    if wanted["key"] in control.books.accounts:
        raise misfit("key", "", "a key that the gateway has not", "is there already")
    try:
        control.gateway.add_key(**wanted)
    except ValueError as taken:
        allowed = "a name that no other key has"
        raise misfit("name", wanted.get("name"), allowed, "is taken") from taken
    account = control.books.accounts[wanted["key"]]
    return {"name": account.name, "points": account.points}


def _reset(control: Control, _: Wanted) -> JsonObject:
    try:
        control.gateway.reset()
    except RuntimeError as kept:
        raise Unfit(str(kept), 409) from kept
    return _counters(control, {})


_TASK_ID: Final = Field(TEXT, "Only this task.", None)
_PROMPT: Final = Field(TEXT, "Only those with exactly this prompt.", None)
_STATE: Final = Field(
    one_of(("queued", "running", *ENDINGS.values())), "Only those in this state now.", None
)
_WHERE: Final = Field(one_of(sorted(faults.PLACES)), "Only those of this kind.", None)
_ORIGIN: Final = Field(one_of(get_args(Origin)), "Only those to this origin.", None)

COMMANDS: Final = (
    Command(
        "GET",
        "health",
        "Whether it runs.",
        _health,
        answer={"status": "ok", "now": "Simulated seconds since the gateway opened."},
    ),
    Command("GET", "options", "Where it is, and how it was set up.", _options),
    Command(
        "GET",
        "kinds",
        "Every word that scripts and faults are made of.",
        _kinds,
        answer={
            "endings": "How a task may end.",
            "dialects": "How the gateway may answer.",
            "faults": "What can go wrong, by name: in words, where, and with which fields.",
        },
    ),
    Command(
        "POST",
        "scripts",
        "Says beforehand what a task will do: each one that is named, or else the next one.",
        _script,
        fields=_wanted.SCRIPT_FIELDS,
        answer={"script": "The script as `GET /-/plans` tells it."},
    ),
    Command(
        "POST",
        "faults",
        "Lets something go wrong with the next requests of a kind.",
        _fault,
        fields=_wanted.FAULT_FIELDS,
        answer={"fault": "The fault as `GET /-/plans` tells it."},
    ),
    Command("GET", "plans", "The scripts and faults that wait.", _plans, answer=_shown.PLANS),
    Command(
        "DELETE", "plans", "Forgets them; a task keeps its script.", _forget, answer=_shown.PLANS
    ),
    Command(
        "GET",
        "tasks",
        "The billable tasks, in the order they were accepted.",
        _tasks,
        fields={"task_id": _TASK_ID, "prompt": _PROMPT, "state": _STATE},
        answer=_shown.TASK,
        rows="tasks",
    ),
    Command(
        "GET",
        "duplicates",
        "The tasks that share a request, byte for byte, in groups of two and more.",
        _duplicates,
        answer={"duplicates": "A list of lists of task ids."},
    ),
    Command(
        "GET",
        "ledger",
        "What became of every paid submit.",
        _ledger,
        fields={"task_id": _TASK_ID, "prompt": _PROMPT},
        answer=_shown.ENTRY,
        rows="ledger",
    ),
    Command(
        "GET",
        "requests",
        "What the gateway saw on both origins, in the order it came.",
        _requests,
        fields={"where": _WHERE, "origin": _ORIGIN, "task_id": _TASK_ID},
        answer=_shown.SEEN,
        rows="requests",
    ),
    Command("GET", "counters", "All that it counts.", _counters, answer=_shown.COUNTERS),
    Command(
        "POST",
        "keys",
        "One more account, which sees none of the others' tasks.",
        _add_key,
        fields=_wanted.KEY_FIELDS,
        answer={"name": "What the balance routes call it.", "points": "What it has."},
    ),
    Command(
        "POST",
        "reset",
        "Forgets everything, as between two tests: plans, tasks, requests, counts, further keys.",
        _reset,
        answer=_shown.COUNTERS,
    ),
)
