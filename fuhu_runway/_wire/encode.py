"""Requests as bytes: models in, `Request` out. Pure functions."""

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import attrs

from fuhu_runway.models import (
    Gateway,
    Generation,
    KeyStyle,
    OfficialImageToVideo,
    usage_error,
)

from . import tables as facts
from .tables import Endpoint, Root


@attrs.frozen(eq=False)
class Request:
    """One exchange about to happen, complete to the last byte."""

    endpoint: Endpoint
    url: str = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes | None = attrs.field(default=None, repr=False)
    #: What must not appear in anything said about this exchange.
    secrets: tuple[str, ...] = attrs.field(default=(), repr=False)
    #: The task asked about, where there is one.
    task_id: str | None = None

    def hiding(self, *texts: str | None) -> "Request":
        """Return the same exchange with further texts among its secrets; itself if none is new."""
        news = dict.fromkeys(text for text in texts if text and text not in self.secrets)
        return attrs.evolve(self, secrets=(*self.secrets, *news)) if news else self


@attrs.frozen(eq=False)
class Reply:
    """One answer, as bytes."""

    request: Request
    status: int
    #: Asked for by names in lower case; aiohttp's own mapping does not mind the case.
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    #: The body went on past what we are willing to read.
    cut: bool = False
    #: When it came, in Unix seconds; for gateways that do not tell their own time.
    received_at: float | None = None

    @property
    def is_success(self) -> bool:
        """Whether the status says that the request succeeded."""
        return 200 <= self.status < 300


def build(
    request: Generation, gateway: Gateway, key: str, callback_url: str | None = None
) -> Request:
    """
    Return the request that submits *request* through *gateway*.

    Raises:
        UsageError: `extra` sets a field that has a place of its own.
    """
    endpoint = facts.SUBMITS[type(request)]
    style = _key_style(endpoint, gateway)
    body: dict[str, Any] = {facts.BODY_KEY: key} if style is KeyStyle.BODY else {}
    body |= _filled(request, endpoint)
    if isinstance(request, OfficialImageToVideo) and request.last_image is not None:
        body[facts.LAST_IMAGE["key"]] = _first_and_last(request.image, request.last_image)
    if endpoint.takes_callback and callback_url is not None:
        body[facts.CALLBACK_KEY] = callback_url
    _add_extra(body, request.extra)
    return Request(
        endpoint,
        _address(endpoint, gateway),
        _headers(style, key),
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode(),
        secrets=tuple(_secrets_of(request, key)),
    )


def ask_task(task_id: str, endpoint: Endpoint, gateway: Gateway, key: str) -> Request:
    """Return the request that polls one task; *endpoint* is the feed or the official task."""
    asks = _asks_tasks(endpoint, gateway, key)
    url = asks.url.replace("{task_id}", quote(task_id, safe="", errors="replace"))
    body = None
    if asks.endpoint.verb == "POST":
        in_body = _key_style(asks.endpoint, gateway) is KeyStyle.BODY
        shown = {facts.BODY_KEY: key} if in_body else {}
        body = json.dumps({**shown, facts.TASK_ID_KEY: task_id}).encode()
    return Request(asks.endpoint, url, asks.headers, body, asks.secrets, task_id)


@functools.lru_cache(maxsize=16)
def _asks_tasks(endpoint: Endpoint, gateway: Gateway, key: str) -> Request:
    """Return what the polls of all tasks share, since thousands of waits each hold one."""
    url = _address(endpoint, gateway)
    if endpoint.root is Root.REVERSE and gateway.feed_verb == "GET":
        endpoint = attrs.evolve(endpoint, verb="GET")
        url += f"?{facts.TASK_ID_KEY}={{task_id}}"
    return Request(endpoint, url, _headers(_key_style(endpoint, gateway), key), secrets=(key,))


def ask_balance(endpoint: Endpoint, gateway: Gateway, key: str) -> Request:
    """Return the request for one balance route; on QUOTA the key stands in the address."""
    url = _address(endpoint, gateway)
    if endpoint.root is Root.QUOTA:
        # The route wants no Authorization header (api-facts 7.1).
        return Request(endpoint, f"{url}?{urlencode({facts.QUOTA_KEY: key})}", {}, secrets=(key,))
    return Request(endpoint, url, _headers(_key_style(endpoint, gateway), key), secrets=(key,))


def _key_style(endpoint: Endpoint, gateway: Gateway) -> KeyStyle:
    """Return how this endpoint takes the key: in the body only if it has one to put it in."""
    takes_body = endpoint.root is Root.REVERSE and endpoint.verb == "POST"
    if gateway.key_style is KeyStyle.BODY and not takes_body:
        return KeyStyle.RAW
    return gateway.key_style


def _address(endpoint: Endpoint, gateway: Gateway) -> str:
    base = gateway.quota_url if endpoint.root is Root.QUOTA else gateway.base_url
    if base is None:
        raise usage_error(
            "gateway",
            f"The gateway {gateway.name!r} has no {Root.QUOTA.value} to ask.",
            "Choose another balance route for it, or name the address.",
        )
    prefixes = {Root.REVERSE: gateway.prefix, Root.OFFICIAL: gateway.official_prefix}
    return base.rstrip("/") + prefixes.get(endpoint.root, "").rstrip("/") + endpoint.path


@functools.lru_cache(maxsize=16)
def _headers(style: KeyStyle, key: str) -> Mapping[str, str]:
    """Return what every request carries; shared, since thousands of waits each hold a request."""
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        **facts.VERSION_HEADER,
    }
    if style is KeyStyle.BODY:
        return headers
    return {"Authorization": key if style is KeyStyle.RAW else f"Bearer {key}", **headers}


def _filled(request: Generation, endpoint: Endpoint) -> Iterator[tuple[str, Any]]:
    """Lay the request's attributes out as the endpoint's row says."""
    options: dict[str, Any] = {}
    for place, source in endpoint.body.items():
        value: Any = request
        for name in source.split("."):
            value = getattr(value, name)
        if value is None:
            continue
        *above, last = place.split(".")
        if above:
            target = options
            for name in above[1:]:
                target = target.setdefault(name, {})
            target[last] = value
        else:
            yield place, value
    if options:
        yield "options", options


def _first_and_last(first: str, last: str) -> list[dict[str, str]]:
    uri, position = facts.LAST_IMAGE["uri"], facts.LAST_IMAGE["position"]
    return [{uri: first, position: "first"}, {uri: last, position: "last"}]


def _add_extra(body: dict[str, Any], extra: Mapping[str, Any]) -> None:
    for name, value in extra.items():
        ours = body.get(name)
        if isinstance(ours, dict) and isinstance(value, Mapping):
            _add_extra(ours, value)
        elif name in body:
            raise usage_error(
                "extra",
                f"extra sets {name!r}, which the request sets already.",
                "Use the request's own argument for it.",
            )
        else:
            body[name] = value


def _secrets_of(request: Generation, key: str) -> Iterator[str]:
    yield key
    for name in ("prompt", "image", "last_image", "video", "character_video"):
        value = getattr(request, name, None)
        if value:
            yield value
