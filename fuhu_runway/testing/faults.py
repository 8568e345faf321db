"""
What can go wrong between a client and a gateway, as plain values.

Rule 1. A fault is data: it names what happens, and the simulator makes it happen.
Rule 2. `accepted` says whether the gateway accepted the task, and charged for it, first.
Rule 3. A fault is for one request. How often it happens, and for how long, is up to its plan.
"""

from typing import ClassVar, Final, Literal, get_args

import attrs

from ._server import bodies as _bodies
from ._server.options import Headers, check
from ._server.replies import HTML, JSON, ROWS

Where = Literal["submit", "feed", "download", "balance", "official", "tasks", "charges", "files"]

PLACES: Final[frozenset[Where]] = frozenset(get_args(Where))
_SUBMITS: Final[frozenset[Where]] = frozenset({"submit", "official"})
_POLLS: Final[frozenset[Where]] = frozenset({"feed", "official"})
_DOWNLOADS: Final[frozenset[Where]] = frozenset({"download"})
_LISTS: Final[frozenset[Where]] = frozenset({"tasks"})


@attrs.frozen
class Fault:
    """One thing that goes wrong with one request."""

    usable_on: ClassVar[frozenset[Where]] = PLACES

    def __init_subclass__(cls, *, on: frozenset[Where] | None = None) -> None:
        # attrs makes each class a second time, from the first.
        if on is not None:
            cls.usable_on = on

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(type(self)):
            check(self, field, getattr(self, field.name), f"{type(self).__name__}: ")

    @property
    def label(self) -> str:
        """Return its name in the log of requests."""
        return type(self).__name__

    @property
    def places(self) -> frozenset[Where]:
        """Return the kinds of requests that it, and the fault that follows it, can happen to."""
        then = getattr(self, "then", None)
        return self.usable_on if then is None else self.usable_on & then.places


@attrs.frozen
class Drop(Fault):
    """The connection closes before any byte of a response is sent."""

    accepted: bool = False
    #: Whether the connection is reset rather than closed.
    reset: bool = False


@attrs.frozen
class Hang(Fault):
    """The response never ends: the client gives up, or the simulator closes."""

    accepted: bool = False
    #: How many bytes of the normal response are sent first; None sends not even a status.
    after_bytes: int | None = None


@attrs.frozen
class Slow(Fault):
    """The response is late; a normal request is processed before the delay."""

    #: In simulated seconds.
    seconds: float
    #: What goes wrong after the delay; None sends the normal response.
    then: Fault | None = None


@attrs.frozen
class Response(Fault):
    """A given response instead of the normal one."""

    status: int
    body: str = attrs.field(default="", repr=False)
    content_type: str = JSON
    headers: Headers = ()
    accepted: bool = False
    #: Its name in the log of requests; empty means `Response`.
    name: str = ""
    #: Whether the task that was created is in the account's list, and not only charged.
    listed: bool = True

    @property
    def label(self) -> str:
        """Return its name in the log of requests."""
        return self.name or "Response"


@attrs.frozen
class TooManyRequests(Fault):
    """HTTP 429 or 503 that says when to retry, in one of three ways."""

    #: In seconds; text is sent unchanged, and None sends no header.
    retry_after: float | str | None = None
    form: Literal["seconds", "milliseconds", "date"] = "seconds"
    #: Empty as from the per-IP limiter of api-facts 5.1.
    body: str = attrs.field(
        default=_bodies.as_text(_bodies.openai_error(_bodies.SATURATED, code="saturated")),
        repr=False,
    )
    status: Literal[429, 503] = 429


@attrs.frozen
class Informational(Fault):
    """An informational status before the normal response."""

    status: int = 103
    #: What goes wrong after it; None sends the normal response.
    then: Fault | None = None


@attrs.frozen
class Head(Fault):
    """The normal response with another status, or with other headers."""

    #: None keeps the status.
    status: int | None = None
    #: A header whose value is None is left out.
    headers: Headers = ()
    #: What else goes wrong; None sends the rest of the normal response.
    then: Fault | None = None


@attrs.frozen
class Gzipped(Fault):
    """The normal response, compressed with gzip."""

    #: Zeros after it; gzip packs a thousand of them into one byte.
    megabytes: int = 0


@attrs.frozen
class Chunked(Fault):
    """The normal response in chunks, without a Content-Length."""

    #: Text that follows in the same body.
    extra: str = ""
    #: Text that follows after the end of the body, where HTTP allows none.
    behind: str = ""
    #: Megabytes of blanks that follow in the same body.
    megabytes: int = 0


@attrs.frozen
class UntilClose(Fault):
    """The normal response without a length: it ends when the connection is closed."""

    #: How many bytes of the body are sent; None sends all.
    after_bytes: int | None = None


@attrs.frozen
class SlowBody(Fault):
    """The normal response at a limited speed."""

    #: Per simulated second.
    bytes_per_second: float


@attrs.frozen
class QuotesPrompt(Fault, on=_SUBMITS):
    """A refusal that quotes the prompt: unchanged, cut to 40 characters, or escaped."""

    how: Literal["plain", "cut", "html", "url", "json"] = "plain"
    status: int = 400


@attrs.frozen
class Truncated(Fault):
    """A complete HTTP response whose JSON is cut short."""

    keep_bytes: int = 40


@attrs.frozen
class Cut(Fault):
    """The connection closes in the middle of the normal response."""

    after_bytes: int = 20


@attrs.frozen
class StatusWords(Fault, on=_POLLS):
    """The response has these words for the state instead of the normal ones."""

    #: For the outer field, `status`.
    status: str | None = None
    #: For the other field: `state`, or the `status` of a nested task.
    state: str | None = None


@attrs.frozen
class NoUrl(Fault, on=_POLLS):
    """A success without a video URL."""


@attrs.frozen
class VideoUrl(Fault, on=_POLLS):
    """A success with this video URL, which may be one that cannot exist."""

    url: str


@attrs.frozen
class FailureWithUrl(Fault, on=_POLLS):
    """A failure and a video URL in the same response (api-facts 3.4, rule 3)."""

    #: Whether the response has a refund and a reason as well.
    refunded: bool = False


@attrs.frozen
class EmptyFields(Fault, on=_POLLS):
    """The response of a new task, with all fields empty (api-facts A2)."""


@attrs.frozen
class OtherDialect(Fault, on=_SUBMITS | _POLLS):
    """The response comes in another dialect, or in one of `SHAPES`."""

    dialect: str

    def __attrs_post_init__(self) -> None:
        from ._server.dialects import checked  # noqa: PLC0415 - it imports stories, which hold faults

        super().__attrs_post_init__()
        checked(self.dialect)

    @property
    def label(self) -> str:
        """Return its name in the log of requests."""
        return f"OtherDialect {self.dialect}"


@attrs.frozen
class ExpiredLink(Fault, on=_DOWNLOADS):
    """The signed URL has expired; the next poll returns a new one."""

    status: int = 403


@attrs.frozen
class IgnoresRange(Fault, on=_DOWNLOADS):
    """A 200 with the whole file, for any requested range."""


@attrs.frozen
class RefusesRange(Fault, on=_DOWNLOADS):
    """A 416 to every request for a range, and the whole file to any other."""

    #: Such as ``bytes */0``; None sends no such header.
    content_range: str | None = None


@attrs.frozen
class WrongContentRange(Fault, on=_DOWNLOADS):
    """A 206 whose Content-Range is off by *shift* bytes."""

    shift: int = 1


@attrs.frozen
class Changed(Fault, on=_DOWNLOADS):
    """From now on the file has different bytes, the same length, and a new ETag."""

    #: False sends a 206 from the new file even if `If-Range` names the old one.
    honours_if_range: bool = True


@attrs.frozen
class WrongLength(Fault, on=_DOWNLOADS):
    """A Content-Length that is off by *by* bytes; the connection closes after the body."""

    by: int = -10


@attrs.frozen
class Redirect(Fault, on=_DOWNLOADS):
    """A redirect to the simulator's other origin, or an endless redirect to itself."""

    status: int = 302
    loop: bool = False


@attrs.frozen
class Shifted(Fault, on=_LISTS):
    """A page of the list, after the first, that begins *rows* earlier, as after new tasks."""

    #: Less than 0: the page begins later, as after rows were deleted.
    rows: int = 1


@attrs.frozen
class ShortPage(Fault, on=_LISTS):
    """A page with at most *rows* rows, and the same total."""

    rows: int = attrs.field(default=0)


KNOWN: Final[dict[str, Response]] = {
    name: Response(**{**row, "headers": tuple(row.get("headers", {}).items()), "name": name})
    for name, row in ROWS["known"].items()
}


def known(name: str, *, accepted: bool | None = None) -> Response:
    """
    One of the responses in `KNOWN`.

    Args:
        name: Its name there.
        accepted: Whether a task was created and charged first; None uses the value in `KNOWN`.

    Raises:
        ValueError: `KNOWN` has no response of this name.
    """
    if name not in KNOWN:
        raise ValueError(f"name={name!r} is unknown; the known responses are: {', '.join(KNOWN)}")
    one = KNOWN[name]
    return one if accepted is None else attrs.evolve(one, accepted=accepted)


def _json(body: object, status: int = 200, *, accepted: bool = False) -> Response:
    return Response(status, _bodies.as_text(body), accepted=accepted)


def drop_before_accepting() -> Drop:
    """The connection closes, and no task exists."""
    return Drop(accepted=False)


def drop_after_accepting() -> Drop:
    """The connection closes after a task was created and charged."""
    return Drop(accepted=True)


def server_error(
    status: int = 502,
    *,
    accepted: bool = False,
    body: Literal["html", "json", "empty"] = "html",
) -> Response:
    """A 5xx as a proxy (html), the relay (json) or shell_api (empty) sends it."""
    if body == "html":
        return Response(status, _bodies.error_page(status), HTML, accepted=accepted)
    if body == "empty":
        return Response(status, accepted=accepted)
    trouble = _bodies.task_error("do_request_failed", "请求上游地址失败")
    return _json(trouble, status, accepted=accepted)


def empty_429(retry_after: float | None = None) -> TooManyRequests:
    """A 429 without a body, as the per-IP limiter sends it."""
    return TooManyRequests(retry_after, body="")


def quota_in_429() -> TooManyRequests:
    """A 429 that blames the load when the account is empty (api-facts 5.1, yunwu)."""
    body = _bodies.openai_error(_bodies.SATURATED, code="local:quota_not_enough")
    return TooManyRequests(body=_bodies.as_text(body))


def key_exhausted() -> Response:
    """HTTP 401 for a key without points, as if it were wrong (api-facts 5.1)."""
    return error(401, _bodies.KEY_EXHAUSTED, code=None)


def model_not_found() -> Response:
    """HTTP 503: no channel offers the model to this group."""
    message = "No available channel for model gen4 under group default (distributor)"
    return error(503, message, code="model_not_found")


def error(
    status: int,
    message: str = "Invalid token",
    *,
    type: str = "new_api_error",  # noqa: A002 - the gateway's own word
    code: str | int | None = "",
    param: str | None = "",
    accepted: bool = False,
) -> Response:
    """Dialect E with any HTTP status, 200 included; *param* None leaves that field out."""
    body = _bodies.openai_error(message, type=type, code=code, param=param)
    return _json(body, status, accepted=accepted)


def task_error(code: str, message: str | None = None, *, status: int = 400) -> Response:
    """Dialect D: the flat error of the task relay."""
    return _json(_bodies.task_error(code, message), status)


def task_not_exist() -> Response:
    """The gateway does not know the task, or not yet."""
    return task_error("task_not_exist")


def refused(message: str = "提示词违规", *, code: int = 400, data: object = None) -> Response:
    """HTTP 200 with a `code` that is not 200; *data* may be None, a list or an object."""
    return _json(_bodies.refusal(message, code=code, data=data))


def nested_error(status: int = 500, *, levels: int = 2) -> Response:
    """Dialect J: an error inside an error's message, *levels* deep."""
    message = "content moderation"
    body = _bodies.openai_error(message, type="upstream_error", code="upstream_error")
    for _ in range(levels):
        body = _bodies.task_error("fail_to_fetch_task", _bodies.as_text(body))
    return _json(body, status)


def dashboard_error(status: int = 200, message: str = "无权进行此操作") -> Response:
    """Dialect F: the dashboard's refusal."""
    return _json({"success": False, "message": message}, status)


def html_page(status: int = 200, *, accepted: bool = False) -> Response:
    """The gateway's web page instead of a response or a video."""
    return Response(status, _bodies.INDEX_PAGE, HTML, accepted=accepted)


def not_json(*, accepted: bool = False) -> Response:
    """Plain text that claims to be JSON."""
    return Response(200, "upstream connect error or disconnect/reset", accepted=accepted)


def unknown_word(word: str = "MOONWALKING") -> StatusWords:
    """An undocumented state."""
    return StatusWords(status=word, state=word)


@attrs.frozen
class Planned:
    """A fault with its place, and how often it happens there."""

    where: Where = attrs.field(validator=check)
    fault: Fault
    #: The number of requests; None means all.
    times: int | None = attrs.field(default=1, validator=check)
    #: The simulated second at which it ends; None means never.
    until: float | None = None
    #: The share of the requests that it happens to, from 0 to 1.
    share: float = attrs.field(default=1.0, validator=check)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.fault, Fault):
            raise TypeError(f"{self.fault!r} is not a fault of {__name__}, such as faults.Drop()")
        if self.where not in self.fault.places:
            places = ", ".join(sorted(self.fault.places))
            raise ValueError(f"{self.fault} cannot happen on {self.where!r}, only on: {places}")


def on(where: Where, fault: Fault, *, times: int | None = 1, share: float = 1.0) -> Planned:
    """
    Return *fault* on requests of the kind *where*, for `Simulator.script(faults=[...])`.

    Args:
        where: "submit", "feed" or "download": the task's submit, polls or download.
        fault: What goes wrong.
        times: The number of requests that it happens to; None means all.
        share: The share of the requests that it happens to, from 0 to 1.
    """
    return Planned(where, fault, times, share=share)
