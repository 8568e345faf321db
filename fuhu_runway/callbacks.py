"""
The webhook receiver: find the task and the clients that a webhook belongs to.

Rule 1: a webhook is only a hint: it makes a poll due, and its content is never trusted.
Rule 2: a sender that does not know an address learns nothing, and costs one response.
Rule 3: nothing that was posted, and no address, is in a log, an event or a repr.
"""

import asyncio
import re
import secrets
import threading
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from weakref import WeakSet

from aiohttp import web

from ._addresses import Addresses, Webhook
from ._urls import is_reachable_address
from ._wire.decode import read_callback
from .models import usage_error

if TYPE_CHECKING:
    from ._session.sessions import Sessions

MAX_BODY_BYTES: Final = 64 * 1024
"""The largest webhook that is read, in bytes; documented ones have about 1 KB (api-facts 4)."""
READ_TIMEOUT: Final = 10.0
"""How long a webhook may take to arrive, in seconds."""
READ_AT_ONCE: Final = 100
"""How many webhooks are read at once; the others get a 503 and may be sent again."""
SAFETY_NET: Final = 60.0
"""How often a task is polled while webhooks are relied on, in seconds."""
MIN_SECRET_BYTES: Final = 16

_TASK_ID: Final = re.compile(r"[\w.:-]{1,200}", re.ASCII)


class CallbackReceiver:
    """
    Receives the webhooks of a gateway; each one makes a poll of its task due at once.

    Give it to `Client(callbacks=...)`, and mount it in your app: with aiohttp by `add_routes`,
    in any other framework by calling `deliver`. It may be made anywhere, and serve several
    clients. Each submit gets its own address below *public_url*. A webhook is only a hint:
    the response to the poll counts, so that a forged one costs one poll at most.

    Args:
        public_url: The URL under which the gateway reaches this receiver.
        secret: Keeps addresses valid when the program restarts, if it is the same then; 16
            bytes or more. By default they end with the process, and polling covers that.
        safety_net: How often a task is polled while webhooks arrive, in seconds. Until the first
            has come, and if they stop, it is polled as without webhooks.

    Raises:
        UsageError: The public URL is missing or invalid, or the secret is too short.

    Source:
        api-facts 4.
    """

    def __init__(
        self, public_url: str, *, secret: str | bytes | None = None, safety_net: float = SAFETY_NET
    ) -> None:
        is_plain = is_reachable_address(public_url) and not set("?#@") & set(str(public_url))
        if not public_url or not is_plain:
            raise usage_error(
                "public_url",
                "public_url must be an http(s) URL without a query, a fragment or a user.",
                "Use the one under which the gateway reaches your app, for example"
                " https://app.example/hooks.",
            )
        key: object = secrets.token_bytes(32) if secret is None else secret
        if isinstance(key, str):
            key = key.encode("utf-8", "surrogatepass")
        if not isinstance(key, bytes) or len(key) < MIN_SECRET_BYTES:
            raise usage_error(
                "secret",
                f"secret must be text or bytes with at least {MIN_SECRET_BYTES} bytes.",
                "Use one that cannot be guessed, for example from `secrets.token_urlsafe()`.",
            )
        net: object = safety_net
        if isinstance(net, bool) or not isinstance(net, int | float) or not 0 < net < 1e9:
            raise usage_error(
                "safety_net", "safety_net must be a number of seconds above 0.", "Use one like 60."
            )
        self._base = str(public_url).rstrip("/")
        self.addresses = Addresses(self._base, key, is_lasting=secret is not None)
        self.safety_net = safety_net
        #: How many responses had each HTTP status.
        self.responses: Counter[int] = Counter()
        self._clients: WeakSet[Sessions] = WeakSet()
        self._lock = threading.Lock()
        self._reading = 0

    def __repr__(self) -> str:
        counts = sorted(self.responses.items())
        known = ", ".join(f"{count:,} x {status}" for status, count in counts)
        return f"<CallbackReceiver {known or 'nothing received'}>"

    def add_routes(self, app: web.Application, path: str | None = None) -> None:
        """
        Add a route for webhooks to *app*.

        Args:
            app: The aiohttp application, or a sub-application of it.
            path: Where to mount it; by default the path of the public URL. Behind a proxy that
                strips a prefix, the path without that prefix.
        """
        app.add_routes(self.routes(path))

    def routes(self, path: str | None = None) -> Iterable[web.RouteDef]:
        """Return the routes that `add_routes` adds, for `app.add_routes` or a table of your own."""
        path = urlsplit(self._base).path if path is None else path
        return [web.post(f"{path.rstrip('/')}/{{token}}", self.handle)]

    async def handle(self, request: web.Request) -> web.Response:
        """
        Respond to one webhook; an `aiohttp.web` handler for a route of your own.

        Only the last part of the path matters; the rest of it and all headers are ignored, so
        that any number of proxies may be on the way.
        """
        if request.method != "POST":
            return web.Response(status=self._counted(405), headers={"Allow": "POST"})
        token = request.path.rpartition("/")[2]
        if self.addresses.nonce_in(token) is None:
            body: int | bytes = 404
        elif self._reading >= READ_AT_ONCE:
            body = 503
        else:
            body = await self._read(request)
        if isinstance(body, bytes):
            return web.Response(status=self.deliver(token, body))
        response = web.Response(status=self._counted(body))
        if body == 503:
            response.headers["Retry-After"] = "1"
        response.force_close()  # without waiting for the rest of the body
        return response

    async def _read(self, request: web.Request) -> int | bytes:
        """Return the body, or the status to respond with."""
        self._reading += 1
        body = bytearray()
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                while chunk := await request.content.readany():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        return 413
        except TimeoutError:
            return 408
        except (web.RequestPayloadError, ConnectionError):
            # Such as a body that is not in the encoding that its header names, or was cut off.
            return 400
        finally:
            self._reading -= 1
        return bytes(body)

    def deliver(self, token: str, body: bytes = b"") -> int:
        """
        Receive one webhook and return the HTTP status to respond with; for other frameworks.

        May be called in any thread, with or without a running event loop.

        Args:
            token: The last part of the path that was posted to.
            body: What was posted.

        Returns:
            204 if the address is known, whatever was posted and however often; 404 if it is
            unknown; 413 if the body is too large.
        """
        nonce = self.addresses.nonce_in(token)
        if nonce is None:
            return self._counted(404)
        if len(body) > MAX_BODY_BYTES:
            return self._counted(413)
        webhook, record = Webhook(), read_callback(body)
        if record is not None:
            named = record.task_id if _TASK_ID.fullmatch(record.task_id) else ""
            webhook = Webhook(named, record.state)
        # If an earlier process made it, or it was dropped, its first webhook names the task.
        address = self.addresses.found(nonce)
        client = None if address.client is None else address.client()
        if client is None:
            address.client = None
        with self._lock:
            clients = list(self._clients) if client is None else [client]
        if not clients:
            address.early = webhook
        for client in clients:
            client.receive(address, webhook)
        return self._counted(204)

    def attach(self, client: "Sessions") -> None:
        """Add a client, which also gets webhooks to addresses from an earlier process."""
        with self._lock:
            self._clients.add(client)

    def _counted(self, status: int) -> int:
        with self._lock:
            self.responses[status] += 1
        return status
