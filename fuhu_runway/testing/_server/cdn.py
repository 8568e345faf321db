"""Serve the files: one clip and its pictures per task, behind signed links on either origin."""

from email.parser import BytesParser
from email.policy import HTTP
from email.utils import formatdate
from functools import cache, partial
from importlib.resources import files
from typing import TYPE_CHECKING, Final, Literal

import attrs
from aiohttp import web

from fuhu_runway.testing import faults
from fuhu_runway.testing.faults import Fault

from . import bodies as _bodies
from .exchange import Refused, Reply, Visit, json_reply
from .store import Origin, SimulatedTask, Store
from .visits import RequestHandler, Route

if TYPE_CHECKING:
    from fuhu_runway.testing.simulator import Simulator

FOLDER: Final = "/attachments/video/runway/20241213"
UPLOADS: Final = "/file/cdn/20240731"

Media = Literal["cdn", "api", "redirect", "relative"]


@cache
def _resource(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()


@attrs.define
class Files:
    """Serve the files, and sign the links to them."""

    options: "Simulator"
    store: Store
    origins: dict[Origin, str] = attrs.field(factory=dict)
    #: What clients uploaded, by the last part of its address.
    uploads: dict[str, Reply] = attrs.field(factory=dict)

    def urls(self, task: SimulatedTask) -> tuple[str, str, str]:
        """Return the signed URLs of the task's video, poster and last frame."""
        media = self.options.media
        origin = "" if media == "relative" else self.origins["cdn" if media == "cdn" else "api"]
        self.store.live_link(task)
        exact = self.options.exact_links and media != "redirect"
        video, poster, last_frame = (
            f"{origin}{_path(task, ending, exact=exact)}"
            for ending in (".mp4", "-poster.png", "-last.png")
        )
        return video, poster, last_frame

    def application(self, handler: RequestHandler) -> web.Application:
        app = web.Application()
        self.add_routes(app, handler, "cdn")
        lost = Route(None, None, _lost, "cdn")
        app.router.add_route("*", "/{tail:.*}", partial(handler.receive, lost))
        return app

    def add_routes(self, app: web.Application, handler: RequestHandler, origin: Origin) -> None:
        """Serve the files from *origin*."""
        route = Route("download", "download", partial(self._serve, origin), origin)
        if origin == "api" and self.options.media == "redirect":
            # Faults of downloads happen on the other origin.
            route = Route(None, None, self._redirect)
        app.router.add_get(FOLDER + "/{name}", partial(handler.receive, route))
        if origin == "cdn":
            uploads = Route(None, None, self._serve_upload, origin)
            app.router.add_get(UPLOADS + "/{upload}", partial(handler.receive, uploads))

    def take(self, visit: Visit) -> Reply:
        """Keep the file of a form, and answer with its address (api-facts 11)."""
        head = f"Content-Type: {visit.request.headers.get('Content-Type')}\r\n\r\n"
        form = BytesParser(policy=HTTP).parsebytes(head.encode() + visit.raw)
        for part in form.iter_parts():
            body = part.get_payload(decode=True)
            named = part.get_param("name", header="Content-Disposition")
            if named == "file" and isinstance(body, bytes) and body:
                name = f"{len(self.uploads) + 1:030}"
                self.uploads[name] = Reply(200, body, {"Content-Type": part.get_content_type()})
                row = {
                    "id": f"file-{name[-24:]}",
                    "object": "file",
                    "bytes": len(body),
                    "created_at": self.store.clock.unix(self.store.clock.now()),
                    "filename": part.get_filename("file"),
                    "url": f"{self.origins['cdn']}{UPLOADS}/{name}",
                }
                return json_reply(row)
        message = "file is required"
        return json_reply(_bodies.openai_error(message, type="invalid_request_error"), 400)

    def _serve_upload(self, visit: Visit, _fault: Fault | None) -> Reply:
        return self.uploads.get(visit.request.match_info["upload"]) or _xml_error(404, "NoSuchKey")

    def _redirect(self, visit: Visit, _fault: Fault | None) -> Reply:
        path, task = visit.request.raw_path, visit.task
        if task is not None and visit.request.query.get("_jwt") == task.link.token:
            ending = visit.request.match_info["name"][32:]
            path = _path(task, ending, exact=self.options.exact_links)
        return Reply(302, b"", {"Location": f"{self.origins['cdn']}{path}"})

    def _serve(self, origin: Origin, visit: Visit, fault: Fault | None) -> Reply:
        request, task = visit.request, visit.task
        if task is None:
            raise Refused(_xml_error(404, "NoSuchKey"))
        if isinstance(fault, faults.Redirect):
            other = self.origins["cdn" if origin == "api" else "api"]
            url = str(request.url) if fault.loop else f"{other}{request.raw_path}"
            return Reply(fault.status, b"", {"Location": url})
        if isinstance(fault, faults.ExpiredLink):
            self.store.refile(task, attrs.evolve(task.link, dead=fault.status), task.version)
        if isinstance(fault, faults.Changed):
            self.store.refile(task, task.link, task.version + 1)
        name, expired = request.match_info["name"], self.options.expired_status
        if request.query.get("_jwt") != task.link.token:
            raise Refused(_xml_error(expired, "AccessDenied"))
        if not task.link.is_alive(self.store.clock.now()):
            raise Refused(_xml_error(task.link.dead or expired, "AccessDenied"))
        exact_path = _path(task, name[32:].removeprefix("'s"), exact=True)
        if self.options.exact_links and request.raw_path != exact_path:
            raise Refused(_xml_error(403, "SignatureDoesNotMatch"))
        return _with_fault(_part(request, self._content(task, name), fault), fault)

    def _content(self, task: SimulatedTask, name: str) -> Reply:
        """Return the whole file in its present version."""
        body, kind = _resource("simulated.png"), "image/png"
        if name.endswith(".mp4"):
            # Players skip a `free` box; tests read the task's id from it.
            mark = f"simulated task {task.task_id} version {task.version:03}".encode()
            box = (8 + len(mark)).to_bytes(4, "big") + b"free" + mark
            own = self.options.video
            body, kind = _resource("simulated.mp4") + box if own is None else own, "video/mp4"
        headers = {
            "Content-Type": kind,
            "ETag": f'"{task.task_id[:8]}-{task.version}"',
            "Last-Modified": formatdate(self.store.clock.unix(task.created), usegmt=True),
            "Accept-Ranges": "bytes",
        }
        return Reply(200, body, headers)


def _path(task: SimulatedTask, ending: str, *, exact: bool) -> str:
    stem, token = f"{FOLDER}/{task.task_id.replace('-', '')}", task.link.token
    if exact:
        return f"{stem}%27s{ending}?Policy=a%2Fb&_jwt={token}&Signature=x%7Ey"
    return f"{stem}{ending}?_jwt={token}"


def _part(request: web.Request, content: Reply, fault: Fault | None) -> Reply:
    """Return the requested range of the file, or all of it."""
    try:
        wanted = request.http_range
    except ValueError:
        return content
    if wanted == slice(None, None, 1) or isinstance(fault, faults.IgnoresRange):
        return content
    if isinstance(fault, faults.RefusesRange):
        span = {} if fault.content_range is None else {"Content-Range": fault.content_range}
        return Reply(416, b"", span)
    condition = request.headers.get("If-Range")
    is_current = condition in {None, content.headers["ETag"], content.headers["Last-Modified"]}
    if not is_current and (not isinstance(fault, faults.Changed) or fault.honours_if_range):
        return content
    size = len(content.body)
    start, stop, _ = wanted.indices(size)
    if start >= stop:
        return Reply(416, b"", {"Content-Range": f"bytes */{size}"})
    part = attrs.evolve(content, status=206, body=content.body[start:stop])
    return part.with_headers({"Content-Range": f"bytes {start}-{stop - 1}/{size}"})


def _with_fault(reply: Reply, fault: Fault | None) -> Reply:
    match fault:
        case faults.WrongLength(by):
            size = len(reply.body)
            return attrs.evolve(reply, claimed_bytes=max(0, size + by), cut_after=size)
        case faults.WrongContentRange(shift) if reply.status == 206:
            span, _, total = reply.headers["Content-Range"].removeprefix("bytes ").partition("/")
            first, last = (int(number) + shift for number in span.split("-"))
            return reply.with_headers({"Content-Range": f"bytes {first}-{last}/{total}"})
    return reply


def _lost(_visit: Visit, _fault: Fault | None) -> Reply:
    return _xml_error(404, "NoSuchKey")


def _xml_error(status: int, code: str) -> Reply:
    body = f"<?xml version='1.0' encoding='UTF-8'?>\n<Error><Code>{code}</Code></Error>"
    return Reply(status, body.encode(), {"Content-Type": "application/xml"})
