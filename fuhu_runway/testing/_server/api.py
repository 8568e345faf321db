"""The first origin, the API: its routes, their keys, and their responses."""

from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final, Literal

import attrs
from aiohttp import web

from fuhu_runway.testing import faults
from fuhu_runway.testing.faults import Fault, Where

from . import bodies as _bodies
from . import checks as _checks
from . import dialects as _dialects
from .accounts import Account
from .callbacks import CallbackSender
from .cdn import Files
from .checks import OFFICIAL_ACTIONS, REVERSE_ACTIONS
from .exchange import Refused, Reply, Visit, json_reply, too_many_requests
from .lists import Lists
from .replies import HTML, JSON
from .store import Body, Store, amount
from .story import Moment
from .visits import MAX_BODY_BYTES, RequestHandler, Route, Work

if TYPE_CHECKING:
    from fuhu_runway.testing.simulator import Simulator

KeyStyle = Literal["bearer", "raw", "body", "any"]
FeedVerb = Literal["POST", "GET", "any"]

#: The three prefixes of api-facts 1.1, all of which work.
PREFIXES: Final = ("/runway", "/runway/v1", "/api/video/runway")
#: The balance routes that are about one key, and their responses.
BALANCES: Final = {
    "/v1/dashboard/billing/subscription": "subscription",
    "/dashboard/billing/subscription": "subscription",
    "/v1/dashboard/billing/usage": "usage",
    "/dashboard/billing/usage": "usage",
    "/api/usage/token/": "token_usage",
}
ACTIONS: Final = {"generate": "IMAGE_TO_VIDEO", "video2video": "VIDEO_TO_VIDEO"}
OFFICIAL_TASKS: Final = (
    "/runwayml/v1/tasks/{task_id}",
    "/v1/runway/tasks/{task_id}",
    "/runway/v1/tasks/{task_id}",
)


def price_of(body: Body) -> float:
    """Return the default price: a number of points for each second of the clip."""
    options = body.get("options")
    seconds = options.get("seconds") if isinstance(options, dict) else body.get("duration")
    # The samples of api-facts 9 cost "320", and ten seconds are the default.
    return 32.0 * (seconds if isinstance(seconds, int) else 10)


@attrs.define
class Api:
    """The routes of the first origin."""

    options: "Simulator"
    store: Store
    files: Files
    callback_sender: CallbackSender
    handler: RequestHandler
    _random: Random = attrs.field(init=False)
    _lists: Lists = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        seed = self.options.seed
        self._random = Random(f"dialects {seed}")  # noqa: S311 - the same for the same seed
        self._lists = Lists(self.options, self.store, self.files)

    def application(self) -> web.Application:
        app, options = web.Application(client_max_size=MAX_BODY_BYTES), self.options

        def add(verb: str, path: str, where: Where | None, role: Where | None, work: Work) -> None:
            receive = partial(self.handler.receive, Route(where, role, work))
            app.router.add_route(verb, path, receive)

        poll = partial(self._poll, options.dialect)
        for prefix in dict.fromkeys((*PREFIXES, options.prefix)):
            for action in REVERSE_ACTIONS:
                submit = partial(self._submit, action)
                add("POST", f"{prefix}/pro/{action}", "submit", "submit", submit)
            # Duomi, whose prefix the third one is, accepts both verbs (api-facts 1.1).
            verb = "any" if prefix == PREFIXES[-1] else options.feed_verb
            for one in ("POST", "GET") if verb == "any" else (verb,):
                add(one, f"{prefix}/feed", "feed", "feed", poll)
        for action in OFFICIAL_ACTIONS:
            for prefix in ("/runwayml/v1", "/runway/v1"):
                submit = partial(self._submit, action)
                add("POST", f"{prefix}/{action}", "official", "submit", submit)
        for path in OFFICIAL_TASKS:
            add("GET", path, "official", "feed", partial(self._poll, options.official_dialect))
        for path, name in BALANCES.items():
            add("GET", path, "balance", "balance", partial(self._balance, name))
        add("GET", "/api/usage/token", None, None, _with_slash)
        add("GET", "/user/quota", "balance", "balance", self._quota)
        add("GET", "/api/task/self", "tasks", "tasks", partial(self._list, "tasks"))
        add("GET", "/api/log/token", "charges", "charges", partial(self._list, "charges"))
        add("POST", "/v1/files", "files", None, self._upload)
        self.files.add_routes(app, self.handler, "api")
        add("*", "/{tail:.*}", None, None, _lost)
        return app

    def _submit(self, action: str, visit: Visit, fault: Fault | None) -> Reply:
        options, account = self.options, self._account(visit, self.options.key_style)
        body, is_official = visit.sent, action in OFFICIAL_ACTIONS
        if body is None:
            raise Refused(json_reply(_bodies.task_error("read_request_body_failed"), 400))
        problem = _checks.problem(action, body, strict=options.strict)
        if problem is not None:
            raise Refused(problem)
        is_from_text = action == "generate" and "image" not in body
        is_versioned = "X-Runway-Version" in visit.request.headers
        if options.requires_version and is_official and not is_versioned:
            message = "X-Runway-Version header is required"
            raise Refused(json_reply(_bodies.openai_error(message, code="invalid_request"), 400))
        points = amount(options.price, body)
        if not account.can_pay(points):
            if options.quota_status == 401:
                raise Refused(_key_refused(401, _bodies.KEY_EXHAUSTED))
            message = "用户额度不足"
            quota = _bodies.task_error("insufficient_user_quota", message)
            raise Refused(json_reply(quota, options.quota_status))
        task = self.store.accept(
            account,
            path=visit.request.path,
            action="TEXT_TO_VIDEO" if is_from_text else ACTIONS.get(action, action.upper()),
            raw=visit.raw,
            body=body,
            points=points,
            is_listed=not isinstance(fault, faults.Response) or fault.listed,
        )
        visit.made = task
        visit.seen.task_id = task.task_id
        self.callback_sender.follow(task)
        dialect = task.script.dialect or (
            options.official_dialect if is_official else options.dialect
        )
        return self._reply(task.first_moment(self.store.clock), dialect, fault)

    def _poll(self, dialect: str, visit: Visit, fault: Fault | None) -> Reply:
        account = self._account(visit, self.options.key_style)
        task, clock = visit.task, self.store.clock
        now = clock.now()
        # A task of another user is not found either (api-facts 5.1).
        is_own = task is not None and task.account.user_id == account.user_id
        if task is None or not is_own or task.age(now) < task.script.hidden:
            raise Refused(json_reply(_bodies.task_error("task_not_exist"), 400))
        urls = self.files.urls(task)
        moment = task.moment(clock, task.age(now), urls)
        match fault:
            case faults.StatusWords(status, state):
                moment = attrs.evolve(moment, status_word=status, state_word=state)
            case faults.EmptyFields():
                moment = attrs.evolve(moment, blank=True)
            case faults.VideoUrl(url) if moment.video_url is not None:
                moment = attrs.evolve(moment, video_url=url)
            case faults.NoUrl():
                bare = attrs.evolve(moment, video_url=None, poster_url=None, last_frame_url=None)
                moment = attrs.evolve(bare, stage="succeeded", percent=100)
            case faults.FailureWithUrl(refunded):
                reason = task.script.reason if refunded else None
                failed = attrs.evolve(moment, stage="failed", refunded=refunded, reason=reason)
                moment = failed.with_urls(urls)
        return self._reply(moment, task.script.dialect or dialect, fault)

    def _reply(self, moment: Moment, dialect: str, fault: Fault | None) -> Reply:
        if isinstance(fault, faults.OtherDialect):
            dialect = fault.dialect
        body, content_type = _dialects.render(moment, dialect, self._random)
        return Reply(200, body, {"Content-Type": content_type})

    def _balance(self, name: str, visit: Visit, _fault: Fault | None) -> Reply:
        # The billing routes accept the key anywhere, whatever the Runway routes require.
        text = _bodies.balance(self._account(visit, "any"), name)
        return Reply(200, text.encode(), {"Content-Type": JSON})

    def _list(self, which: Literal["tasks", "charges"], visit: Visit, fault: Fault | None) -> Reply:
        if self.options.lists is None:
            return _lost(visit, fault)
        return (self._lists.tasks if which == "tasks" else self._lists.charges)(visit, fault)

    def _upload(self, visit: Visit, _fault: Fault | None) -> Reply:
        self._account(visit, "any")
        return self.files.take(visit)

    def _quota(self, visit: Visit, _fault: Fault | None) -> Reply:
        self._account_of_key(visit.request.query.get("key"))
        day = visit.request.query.get("start_date")
        return json_reply(_bodies.quota(list(self.store.accounts.values()), by_date=day))

    def _account(self, visit: Visit, style: KeyStyle) -> Account:
        account = self._account_of_key(_key(visit, style))
        if account.bucket is not None and not account.bucket.take(visit.seen.at):
            self.store.limited += 1
            raise Refused(too_many_requests(self.options.rate_limit_response))
        return account

    def _account_of_key(self, key: str | None) -> Account:
        if not key:
            raise Refused(_key_refused(401, "未提供令牌"))
        account = self.store.accounts.get(key)
        if account is not None:
            return account
        # A known key with a dash and more is read as a key and a channel (api-facts 1.1).
        if key.rpartition("-")[0] in self.store.accounts:
            raise Refused(_key_refused(403, "普通用户不支持指定渠道"))
        raise Refused(_key_refused(401, "无效的令牌"))


def _key(visit: Visit, style: KeyStyle) -> str | None:
    header = visit.request.headers.get("Authorization", "")
    scheme, _, bearer = header.partition(" ")
    in_body = header if visit.request.method == "GET" else (visit.sent or {}).get("key")
    keys = {
        "bearer": bearer if scheme == "Bearer" else None,
        "body": in_body if isinstance(in_body, str) else None,
        "raw": header,
    }
    return next(filter(None, keys.values()), None) if style == "any" else keys[style]


def _key_refused(status: int, message: str) -> Reply:
    # One-API's middleware sends only these two fields (api-facts 2 E).
    message = f"{message} (request id: {_bodies.REQUEST_ID})"
    return json_reply({"error": {"message": message, "type": "new_api_error"}}, status)


def _with_slash(visit: Visit, _fault: Fault | None) -> Reply:
    """Return the redirect of gin's router to the same path with a slash (api-facts 11)."""
    path = f"{visit.request.path}/"
    page = f'<a href="{path}">Moved Permanently</a>.\n\n'
    return Reply(301, page.encode(), {"Location": path, "Content-Type": HTML})


def _lost(visit: Visit, _fault: Fault | None) -> Reply:
    """Return the response to an unknown path (api-facts 2 H and 5.1)."""
    path = visit.request.path
    if path.startswith(("/v1", "/api")):
        message = f"Invalid URL ({visit.request.method} {path})"
        return json_reply(_bodies.openai_error(message, type="invalid_request_error"), 404)
    return Reply(200, _bodies.INDEX_PAGE.encode(), {"Content-Type": HTML})
