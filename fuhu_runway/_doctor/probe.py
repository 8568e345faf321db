"""One poll of a task that cannot exist, and what its reply shows about the address."""

import enum
import ipaddress
import itertools
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urljoin, urlsplit

import attrs

from fuhu_runway._json import decode, text_of
from fuhu_runway._redact import outline, redact
from fuhu_runway._urls import is_ip_address
from fuhu_runway._wire import tables
from fuhu_runway._wire.encode import Reply
from fuhu_runway._wire.refusals import row_for
from fuhu_runway.errors import (
    NotFound,
    OutOfCredits,
    RateLimited,
    RunwayError,
    Unauthorized,
    UnreadableReply,
)
from fuhu_runway.models import Gateway


class Kind(enum.Enum):
    """What the reply to a poll of a task that cannot exist shows about the address."""

    API = enum.auto()
    """The feed answered."""
    KEY_REFUSED = enum.auto()
    UNCLEAR = enum.auto()
    """JSON that may be about the task, the route or the gateway's own trouble."""
    PAGE = enum.auto()
    """Anything but JSON."""
    REDIRECT = enum.auto()
    WRONG_VERB = enum.auto()
    TRY_LATER = enum.auto()
    """A limit, a firewall or a proxy answered in place of the gateway."""


@attrs.frozen
class Probe:
    """One poll of a task that cannot exist, and its reply."""

    gateway: Gateway
    reply: Reply = attrs.field(repr=False)
    error: RunwayError | None

    @property
    def kind(self) -> Kind:
        status, error = self.reply.status, self.error
        is_answered = error is None or isinstance(error, OutOfCredits) or self.is_no_task
        rows = (
            (300 <= status < 400, Kind.REDIRECT),
            (status == 405, Kind.WRONG_VERB),
            (isinstance(error, RateLimited) or CHALLENGE in self.reply.headers, Kind.TRY_LATER),
            (not _is_json(self.reply), Kind.TRY_LATER if status >= 500 else Kind.PAGE),
            (isinstance(error, Unauthorized), Kind.KEY_REFUSED),
            (is_answered, Kind.API),
        )
        return next((kind for fits, kind in rows if fits), Kind.UNCLEAR)

    @property
    def is_no_task(self) -> bool:
        """Whether the reply says in known words that there is no such task."""
        error = self.error
        if not isinstance(error, NotFound):
            return False
        # With status 200, no row fits by the status alone.
        row = row_for(200, {error.code or error.message or ""}, error.message or "", is_json=True)
        return row.raises is NotFound

    def looks_like(self, other: "Probe") -> bool:
        """Return whether both replies have the same status and shape, and give the same code."""
        return self.look == other.look

    @property
    def look(self) -> tuple[object, ...]:
        """Return what is compared: not the message, which may name the path."""
        shape = outline(decode(self.reply.body)) if _is_json(self.reply) else ""
        return self.kind, self.reply.status, getattr(self.error, "code", None), shape

    def __str__(self) -> str:
        """Return what came, for a finding."""
        status = self.reply.status
        match self.kind:
            case Kind.REDIRECT:
                location = self.reply.headers.get("location", "")
                try:
                    target = origin_of(urljoin(self.reply.request.url, location))
                except ValueError:
                    target = "no usable address"
                return f"a redirect to {target} (status {status})"
            case Kind.PAGE:
                text = text_of(self.reply.body[:MAX_PAGE])
                is_html = "<html" in text.lower() or "<!doctype" in text.lower()
                what = "a web page" if is_html else "text" if text.strip() else "an empty answer"
                if _LOGIN.search(text):
                    what = "a login page"
                return f"{what}, not JSON (status {status})"
        if isinstance(self.error, UnreadableReply):
            return f"JSON of unknown form (status {status})"
        said = getattr(self.error, "message", None) or getattr(self.error, "code", None)
        return f"status {status}" + (f" and {said!r}" if said else "")


CHALLENGE: Final = "cf-mitigated"
"""The header of a firewall's page for browsers."""
_LOGIN: Final = re.compile(r"(?i)type=.?password|<title>[^<]*(?:log.?in|sign.?in|登录)")
MAX_PAGE: Final = 20_000
"""How much of a web page is searched, in bytes."""


def _is_json(reply: Reply) -> bool:
    try:
        decode(reply.body)
    except (ValueError, RecursionError):
        return False
    return True


def variants(gateway: Gateway) -> Iterator[Gateway]:
    """Yield other known ways to reach the feed at the same host, the most alike first."""
    origin = "/".join(str(gateway.base_url).split("/", 3)[:3])
    known = (row.prefix for row in tables.GATEWAYS.values())
    for url, prefix, verb in itertools.product(
        dict.fromkeys((gateway.base_url, origin)),
        dict.fromkeys((gateway.prefix, *known)),
        dict.fromkeys((gateway.feed_verb, "POST", "GET")),
    ):
        variant = attrs.evolve(gateway, base_url=url, prefix=prefix, feed_verb=verb)
        if variant != gateway:
            yield variant


def is_like(row: Gateway, other: Gateway) -> bool:
    """Return whether a known gateway may be used for another that works."""
    names = ("prefix", "feed_verb", "key_style", "balance")
    is_same = all(getattr(row, name) == getattr(other, name) for name in names)
    return is_same and row.base_url in {None, other.base_url}


def place_of(gateway: Gateway) -> str:
    """Return the path of the feed."""
    base = urlsplit(str(gateway.base_url)).path.rstrip("/")
    return f"{base}{gateway.prefix}{tables.feed(official=False).path}"


def origin_of(url: str | None) -> str:
    """Return scheme, host and port of a URL, without an IP address."""
    parts = urlsplit(url or "")
    host = parts.hostname or ""
    if is_ip_address(host) and ipaddress.ip_address(host).is_loopback:
        host = "localhost"
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{redact(host)}{port}"
