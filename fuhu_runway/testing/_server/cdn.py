"""The files: one clip and its pictures per task, behind signed links on either origin."""

from email.utils import formatdate
from functools import cached_property, partial
from importlib.resources import files
from typing import Final, Literal

import attrs
from aiohttp import web

from fuhu_runway.testing import faults
from fuhu_runway.testing.faults import Fault

from .exchange import Refused, Reply
from .store import Origin, SimulatedTask, Store
from .visits import Reception, Route, Visit

FOLDER: Final = "/attachments/video/runway/20241213"
ROUTE: Final = FOLDER + "/{name}"

Media = Literal["cdn", "api", "redirect", "relative"]


def _resource(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()


def _free_box(text: str) -> bytes:
    # Players skip a `free` box, and a test can tell by it whose clip it holds.
    payload = text.encode()
    return (8 + len(payload)).to_bytes(4, "big") + b"free" + payload


@attrs.define(slots=False)
class Files:
    """What the second origin serves, and the links to it."""

    store: Store
    media: Media
    #: The same file for every task; None is the bundled clip, marked with the task's id.
    video: bytes | None
    expired_status: int
    #: Whether a URL works only if it comes back byte for byte.
    exact: bool = False
    origins: dict[Origin, str] = attrs.field(factory=dict)

    @cached_property
    def _clip(self) -> bytes:
        return _resource("simulated.mp4")

    @cached_property
    def _still(self) -> bytes:
        return _resource("simulated.png")

    def urls(self, task: SimulatedTask) -> tuple[str, str, str]:
        """Where the task's video, poster and last frame are, signed."""
        origin = "" if self.media == "relative" else self.origins[self._first]
        self.store.live_link(task)
        exact = self.exact and self.media != "redirect"
        video, poster, last_frame = (
            f"{origin}{_path(task, ending, exact=exact)}"
            for ending in (".mp4", "-poster.png", "-last.png")
        )
        return video, poster, last_frame

    @property
    def _first(self) -> Origin:
        return "cdn" if self.media == "cdn" else "api"

    def application(self, reception: Reception) -> web.Application:
        """The second origin, to be served."""
        app = web.Application()
        self.add_routes(app, reception, "cdn")
        app.router.add_route(
            "*", "/{tail:.*}", partial(reception.receive, Route(None, None, _lost, "cdn"))
        )
        return app

    def add_routes(self, app: web.Application, reception: Reception, origin: Origin) -> None:
        """Serve the files from *origin* as well."""
        route = Route("download", "download", partial(self._serve, origin), origin)
        if origin == "api" and self.media == "redirect":
            # What goes wrong with a download goes wrong where the file is.
            route = Route(None, None, partial(self._lead_on, origin), origin)
        app.router.add_get(ROUTE, partial(reception.receive, route))

    def _lead_on(self, origin: Origin, visit: Visit, _fault: Fault | None) -> Reply:
        path, task = visit.request.raw_path, visit.task
        if task is not None and visit.request.query.get("_jwt") == task.link.token:
            path = _path(task, visit.request.match_info["name"][32:], exact=self.exact)
        return self._elsewhere(path, origin, 302)

    def _elsewhere(self, path: str, origin: Origin, status: int) -> Reply:
        other: Origin = "cdn" if origin == "api" else "api"
        return Reply(status, b"", {"Location": f"{self.origins[other]}{path}"})

    def _serve(self, origin: Origin, visit: Visit, fault: Fault | None) -> Reply:
        request, task = visit.request, visit.task
        if task is None:
            raise Refused(_xml_error(404, "NoSuchKey"))
        if isinstance(fault, faults.Redirect):
            return self._redirect(request, origin, fault)
        self._change(task, fault)
        self._check_link(task, request)
        content = self._content(task, request.match_info["name"])
        return _bent(_part(request, content, fault), fault)

    def _redirect(self, request: web.Request, origin: Origin, fault: faults.Redirect) -> Reply:
        if fault.loop:
            return Reply(fault.status, b"", {"Location": str(request.url)})
        return self._elsewhere(request.raw_path, origin, fault.status)

    def _change(self, task: SimulatedTask, fault: Fault | None) -> None:
        if isinstance(fault, faults.ExpiredLink):
            self.store.refile(task, attrs.evolve(task.link, dead=fault.status), task.version)
        if isinstance(fault, faults.Changed):
            self.store.refile(task, task.link, task.version + 1)

    def _check_link(self, task: SimulatedTask, request: web.Request) -> None:
        if request.query.get("_jwt") != task.link.token:
            raise Refused(_xml_error(self.expired_status, "AccessDenied"))
        if not task.link.is_alive(self.store.clock.now()):
            raise Refused(_xml_error(task.link.dead or self.expired_status, "AccessDenied"))
        ending = request.match_info["name"][32:].removeprefix("'s")
        if self.exact and request.raw_path != _path(task, ending, exact=True):
            raise Refused(_xml_error(403, "SignatureDoesNotMatch"))

    def _content(self, task: SimulatedTask, name: str) -> "Content":
        modified = formatdate(self.store.clock.unix(task.created), usegmt=True)
        etag = f'"{task.task_id[:8]}-{task.version}"'
        if not name.endswith(".mp4"):
            return Content(self._still, "image/png", etag, modified)
        mark = _free_box(f"simulated task {task.task_id} version {task.version:03}")
        video = self._clip + mark if self.video is None else self.video
        return Content(video, "video/mp4", etag, modified)


def _path(task: SimulatedTask, ending: str, *, exact: bool) -> str:
    stem, token = f"{FOLDER}/{task.task_id.replace('-', '')}", task.link.token
    if exact:
        return f"{stem}%27s{ending}?Policy=a%2Fb&_jwt={token}&Signature=x%7Ey"
    return f"{stem}{ending}?_jwt={token}"


@attrs.frozen
class Content:
    """One file as it is now."""

    body: bytes = attrs.field(repr=False)
    type: str
    etag: str
    modified: str

    def headers(self) -> dict[str, str]:
        """The headers that go with the file, or with any part of it."""
        return {
            "Content-Type": self.type,
            "ETag": self.etag,
            "Last-Modified": self.modified,
            "Accept-Ranges": "bytes",
        }


def _part(request: web.Request, content: Content, fault: Fault | None) -> Reply:
    size = len(content.body)
    wanted = _range(request, size)
    if wanted is not None and isinstance(fault, faults.RefusesRange):
        span = {} if fault.content_range is None else {"Content-Range": fault.content_range}
        return Reply(416, b"", span)
    if wanted is None or isinstance(fault, faults.IgnoresRange):
        return Reply(200, content.body, content.headers())
    if not _is_current(request, content) and not _is_sly(fault):
        return Reply(200, content.body, content.headers())
    start, stop = wanted
    if start >= stop:
        return Reply(416, b"", {"Content-Range": f"bytes */{size}"})
    headers = {**content.headers(), "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return Reply(206, content.body[start:stop], headers)


def _range(request: web.Request, size: int) -> tuple[int, int] | None:
    try:
        asked = request.http_range
    except ValueError:
        return None
    if asked == slice(None, None, 1):
        return None
    start, stop, _ = asked.indices(size)
    return start, stop


def _is_current(request: web.Request, content: Content) -> bool:
    condition = request.headers.get("If-Range")
    return condition is None or condition in {content.etag, content.modified}


def _is_sly(fault: Fault | None) -> bool:
    return isinstance(fault, faults.Changed) and not fault.honours_if_range


def _bent(reply: Reply, fault: Fault | None) -> Reply:
    if isinstance(fault, faults.WrongLength):
        claimed = max(0, len(reply.body) + fault.by)
        return attrs.evolve(reply, claimed_bytes=claimed, cut_after=len(reply.body))
    if isinstance(fault, faults.WithoutETag):
        gone = {"ETag"} if fault.last_modified else {"ETag", "Last-Modified"}
        kept = {name: value for name, value in reply.headers.items() if name not in gone}
        return attrs.evolve(reply, headers=kept)
    if isinstance(fault, faults.SlowDownload):
        return attrs.evolve(reply, bytes_per_second=fault.bytes_per_second)
    if isinstance(fault, faults.WrongContentRange) and reply.status == 206:
        shifted = _shifted(reply.headers["Content-Range"], fault.shift)
        return attrs.evolve(reply, headers={**reply.headers, "Content-Range": shifted})
    return reply


def _shifted(content_range: str, shift: int) -> str:
    span, _, size = content_range.removeprefix("bytes ").partition("/")
    first, last = (int(number) + shift for number in span.split("-"))
    return f"bytes {first}-{last}/{size}"


def _lost(_visit: Visit, _fault: Fault | None) -> Reply:
    return _xml_error(404, "NoSuchKey")


def _xml_error(status: int, code: str) -> Reply:
    body = f"<?xml version='1.0' encoding='UTF-8'?>\n<Error><Code>{code}</Code></Error>"
    return Reply(status, body.encode(), {"Content-Type": "application/xml"})
