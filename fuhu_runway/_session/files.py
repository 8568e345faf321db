"""
Local pictures and clips of requests, put where the gateway can download them.

Rule 1: a file that fits a data URI of its format travels in the request; any other is uploaded.
Rule 2: the same bytes are uploaded once, and their address is used again while it is young.
Rule 3: nothing paid is sent before every file has its address.
"""

import asyncio
import base64
import inspect
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

import attrs

from fuhu_runway._clock import Clock, is_cancelled
from fuhu_runway._media import DATA_URI_LENGTHS, ENDINGS, Local, local_fields, read, refused
from fuhu_runway._redact import redact
from fuhu_runway._urls import is_reachable_address
from fuhu_runway._wire.decode import read_file
from fuhu_runway._wire.encode import ask_file
from fuhu_runway._wire.tables import NOWHERE
from fuhu_runway.errors import RunwayError, UploadFailed
from fuhu_runway.models import Gateway, Generation
from fuhu_runway.uploads import GatewayFiles, Uploader

from .session import Session

if TYPE_CHECKING:
    from attrs import Attribute

MAX_KEPT: Final = 1000
"""How many addresses are kept; the oldest file of more would be uploaded again."""
REUSE_SECONDS: Final = 1800.0
"""How long an address is used again, in seconds; signed ones often work for an hour."""

Place = tuple[asyncio.AbstractEventLoop, str]


@attrs.define(eq=False)
class Files:
    """The local files of one client's requests, and where they are."""

    uploader: Uploader | GatewayFiles | None
    gateway: Gateway
    key: str = attrs.field(repr=False)
    clock: Clock
    #: How long an uploader may take, in seconds; every job with the same file waits for it.
    at_most: float
    #: SHA-256 to the address, and until when it is used again, in Unix seconds.
    _addresses: dict[str, tuple[str, float]] = attrs.field(init=False, factory=dict, repr=False)
    _locks: "WeakValueDictionary[Place, asyncio.Lock]" = attrs.field(
        init=False, factory=WeakValueDictionary
    )

    def checked(self, request: Generation) -> Generation:
        """
        Return *request* with a stand-in for each local file; itself if it has none.

        Raises:
            UsageError: There is no way to an address for a file.
        """
        fields = local_fields(request)
        for field in fields:
            if self.uploader is None and not field.metadata["data_uris"]:
                raise refused(
                    field, "is a local file, and the reverse format takes only URLs", _BOTH_WAYS
                )
        stand_ins: dict[str, Any] = {field.name: NOWHERE for field in fields}
        return attrs.evolve(request, **stand_ins) if fields else request

    async def placed(self, session: Session, request: Generation) -> Generation:
        """
        Return *request* with an address in place of each local file; closing ends the uploads.

        Raises:
            UsageError: A file cannot be read, or is too large for its format.
            UploadFailed: A file could not be uploaded.
        """
        async with session.transport.until_closed():
            addresses: dict[str, Any] = {
                field.name: await self._placed(session, field, getattr(request, field.name))
                for field in local_fields(request)
            }
        return attrs.evolve(request, **addresses)

    async def _placed(self, session: Session, field: "Attribute[Any]", value: Any) -> str:
        digest, size, data_uri = await asyncio.to_thread(_look, field, value)
        if data_uri is not None:
            return data_uri
        uploader = self.uploader
        if uploader is None:
            most = DATA_URI_LENGTHS[field.metadata["media"]]
            raise refused(
                field,
                f"has {size:,} bytes, and the data URI may have {most:,} characters",
                f"Use a file of at most {most * 3 // 4 - 100:,} bytes. {_BOTH_WAYS}",
            )
        place = asyncio.get_running_loop(), digest
        lock = self._locks.get(place) or self._locks.setdefault(place, asyncio.Lock())
        async with lock:
            address, until = self._addresses.get(digest, ("", 0.0))
            if self.clock.wall() >= until:
                # Only now, or each of many jobs that wait for one upload would hold the file.
                local = await asyncio.to_thread(read, field, value)
                address = await self._upload(session, field, local, uploader)
                seconds = getattr(uploader, "reuse_seconds", REUSE_SECONDS)
                self._addresses.pop(local.digest, None)  # so that the oldest is first
                self._addresses[local.digest] = address, self.clock.wall() + seconds
                if len(self._addresses) > MAX_KEPT:
                    del self._addresses[next(iter(self._addresses))]
            return address

    async def _upload(
        self,
        session: Session,
        field: "Attribute[Any]",
        local: Local,
        uploader: Uploader | GatewayFiles,
    ) -> str:
        name = f"{local.digest}{ENDINGS[local.content_type]}"
        limit = asyncio.timeout(self.at_most)
        try:
            if isinstance(uploader, GatewayFiles):
                wire = ask_file(name, local.data, local.content_type, self.gateway, self.key)
                address: object = await session.transport.call(wire, read_file)
            else:
                async with limit:
                    address = await _called(uploader, local.data, name, local.content_type)
        except RunwayError as error:
            fault = error.happened
        # An uploader raises what its library does, also a CancelledError of that library's own.
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled(error):
                raise
            said = redact(str(error).partition("\n")[0], [self.key])[:200]
            fault = f"{type(error).__name__}: {said}"
            if limit.expired():
                fault = f"The uploader took longer than {self.at_most:g} s."
        else:
            if is_reachable_address(address):
                return str(address)
            fault = "The uploader returned no http(s) URL."
        # Outside the clauses, since the original may quote a signed URL or a key.
        raise UploadFailed(
            f"{field.name} could not be uploaded. {fault}",
            "Nothing was charged: no paid request was sent.",
            "Check where the client puts its files (uploads=), and submit again.",
        )


_BOTH_WAYS: Final = (
    "Give the client uploads=GatewayFiles(), if the gateway has a file route, or an ObjectStore or "
    "a function of yours that puts the file where the gateway can download it; the official "
    "format takes small files without."
)


def _look(field: "Attribute[Any]", value: Any) -> tuple[str, int, str | None]:
    """Return the hash and size of a file, and its data URI if the format takes it; blocks."""
    local = read(field, value)
    start = f"data:{local.content_type};base64,"
    most = DATA_URI_LENGTHS[field.metadata["media"]]
    length = len(start) + (len(local.data) + 2) // 3 * 4
    if not field.metadata["data_uris"] or length >= most:
        return local.digest, len(local.data), None
    return local.digest, len(local.data), start + base64.b64encode(local.data).decode()


async def _called(uploader: Uploader, data: bytes, name: str, content_type: str) -> object:
    if any(map(inspect.iscoroutinefunction, (uploader, uploader.__call__))):
        address: Any = uploader(data, name, content_type)
    else:
        address = await asyncio.to_thread(uploader, data, name, content_type)
    return await address if inspect.isawaitable(address) else address
