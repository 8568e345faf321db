"""Requests as bytes: models in, `Request` out. Pure functions."""

import functools
import json
from collections.abc import Mapping
from operator import attrgetter
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import attrs

from fuhu_runway._redact import texts_in
from fuhu_runway.models import Gateway, Generation, KeyStyle, hint_for, usage_error

from . import tables
from .tables import Endpoint, Root


@attrs.frozen(eq=False)
class Request:
    """One HTTP request, ready to send."""

    endpoint: Endpoint
    url: str = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes | None = attrs.field(default=None, repr=False)
    #: Texts that no log line, repr or error about this request may show.
    secrets: tuple[str, ...] = attrs.field(default=(), repr=False)
    #: The task that is polled, if it is a poll.
    task_id: str | None = None
    #: What to try if the gateway refuses the request.
    hint: str = ""

    def hiding(self, *texts: str | None) -> "Request":
        """Return the request with *texts* added to its secrets; itself if they already are."""
        new = dict.fromkeys(text for text in texts if text and text not in self.secrets)
        if not new:
            return self
        # Not `attrs.evolve`: this runs once for each wait, and that takes ten times as long.
        secrets = (*self.secrets, *new)
        return Request(
            self.endpoint, self.url, self.headers, self.body, secrets, self.task_id, self.hint
        )


@attrs.frozen(eq=False)
class Reply:
    """One HTTP response, as bytes."""

    request: Request
    status: int
    #: Read by names in lower case; aiohttp's own mapping ignores case.
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    #: Whether the body was longer than the limit and the rest was not read.
    cut: bool = False
    #: When it arrived, in Unix seconds; used if the gateway sends no Date header.
    received_at: float | None = None

    @property
    def is_success(self) -> bool:
        """Whether the HTTP status is 2xx."""
        return 200 <= self.status < 300


def build(
    request: Generation, gateway: Gateway, key: str, callback_url: str | None = None
) -> Request:
    """
    Return the HTTP request that submits *request* through *gateway*.

    Raises:
        UsageError: `extra` sets a field that the request sets itself.
    """
    bare = bare_request(tables.SUBMITS[type(request)], gateway, key)
    body = _key_for_body(bare, key)
    for place, source in bare.endpoint.body.items():
        value = source(request) if callable(source) else attrgetter(source)(request)
        if value is not None:
            *above, last = place.split(".")
            target = body
            for name in above:
                target = target.setdefault(name, {})
            target[last] = value
    sent = None
    if bare.endpoint.takes_callback and callback_url is not None:
        body[tables.CALLBACK_KEY] = callback_url
        # It may lead to the user's own hosts. Without the scheme, which is in every URL.
        sent = callback_url.partition("://")[2] if callback_url != tables.NOWHERE else None
    _add_extra(body, request.extra)
    # Errors hide the same fields as the repr of the request.
    fields = attrs.fields(type(request))
    hidden = [
        getattr(request, one.name) for one in fields if one.repr is False or "media" in one.metadata
    ]
    return attrs.evolve(
        bare,
        url=bare.url.replace("{path}", getattr(request, "path", "")),
        body=json.dumps(body, ensure_ascii=False, allow_nan=False).encode(),
        secrets=(key, *texts_in(hidden)),
        hint=hint_for(request),
    ).hiding(sent)


def ask_task(task_id: str, endpoint: Endpoint, gateway: Gateway, key: str) -> Request:
    """Return the request that polls one task; *endpoint* is the feed or the official task."""
    bare = bare_request(endpoint, gateway, key)
    url, body = bare.url, None
    if bare.endpoint.verb == "POST":
        body = json.dumps({**_key_for_body(bare, key), tables.TASK_ID_KEY: task_id}).encode()
    else:
        url = url.replace("{task_id}", quote(task_id, safe="", errors="replace"))
    return Request(bare.endpoint, url, bare.headers, body, bare.secrets, task_id)


def ask_file(name: str, data: bytes, content_type: str, gateway: Gateway, key: str) -> Request:
    """Return the request that puts a file where the gateway can download it."""
    bare = bare_request(tables.FILES, gateway, key)
    boundary = uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        f"Content-Type: {content_type}\r\n\r\n"
    )
    body = b"".join((head.encode(), data, f"\r\n--{boundary}--\r\n".encode()))
    headers = {**bare.headers, "Content-Type": f"multipart/form-data; boundary={boundary}"}
    return attrs.evolve(bare, url=f"{bare.url}{gateway.files_path}", headers=headers, body=body)


def ask_balance(endpoint: Endpoint, gateway: Gateway, key: str) -> Request:
    """Return the request for one balance route; the quota route has the key in its address."""
    return bare_request(endpoint, gateway, key)


@functools.lru_cache(maxsize=16)
def bare_request(endpoint: Endpoint, gateway: Gateway, key: str) -> Request:
    """Return what all requests to an endpoint share, since thousands of waits each hold one."""
    field = "quota_url" if endpoint.root is Root.QUOTA else "base_url"
    base: str | None = getattr(gateway, field)
    if base is None:
        raise usage_error(
            "gateway",
            f"The gateway {gateway.name!r} has no {field}.",
            f"Set its {field}, or choose another gateway or balance route.",
        )
    prefixes = {Root.REVERSE: gateway.prefix, Root.OFFICIAL: gateway.official_prefix}
    url = base.rstrip("/") + prefixes.get(endpoint.root, "").rstrip("/") + endpoint.path
    if endpoint.root is Root.QUOTA:
        # This route takes no Authorization header (api-facts 7.1).
        url += f"?{urlencode({tables.API_KEY_NAME: key})}"
        return Request(endpoint, url, {}, secrets=(key,))
    if endpoint is tables.ENDPOINTS["feed"] and gateway.feed_verb == "GET":
        endpoint = attrs.evolve(endpoint, verb="GET")
        url += f"?{tables.TASK_ID_KEY}={{task_id}}"
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        **tables.VERSION_HEADER,
    }
    style = gateway.key_style
    if style is KeyStyle.BODY and not (endpoint.root is Root.REVERSE and endpoint.verb == "POST"):
        style = KeyStyle.RAW  # there is no body to put the key in
    if style is not KeyStyle.BODY:
        shown = f"Bearer {key}" if style is KeyStyle.BEARER else key
        headers = {"Authorization": shown, **headers}
    return Request(endpoint, url, headers, secrets=(key,))


def _key_for_body(bare: Request, key: str) -> dict[str, Any]:
    """Return the start of a body: the key, if it is in no header (api-facts 11 row 14)."""
    return {} if "Authorization" in bare.headers else {tables.API_KEY_NAME: key}


def _add_extra(body: dict[str, Any], extra: Mapping[str, Any]) -> None:
    for name, value in extra.items():
        ours = body.get(name)
        if isinstance(ours, dict) and isinstance(value, Mapping):
            _add_extra(ours, value)
        elif name in body:
            raise usage_error(
                "extra",
                f"extra sets {name!r}, which the request already sets.",
                "Use the request's own argument for it.",
            )
        else:
            body[name] = value
