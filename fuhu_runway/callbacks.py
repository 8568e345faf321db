"""
The webhook receiver: whose address it is, what was posted there, and who has to hear of it.

Rule 1: gateways sign nothing (api-facts 4), so the address is the signature: each task has its
own, which cannot be guessed and is sent to the gateway only.
Rule 2: a webhook is only a hint: it makes a poll due, and what it says is never believed.
Rule 3: a sender that does not know an address learns nothing, and costs one answer.
Rule 4: nothing that was posted, and no address, is in a log, an event or a repr.
"""

import asyncio
import base64
import contextvars
import hmac
import math
import re
import secrets
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from weakref import WeakSet, ref

import attrs
from aiohttp import web

from ._urls import is_reachable_address
from ._wire.decode import read_callback
from .models import Generation, TaskRecord, TaskState, usage_error

if TYPE_CHECKING:
    from ._session.webhooks import Webhooks

MAX_BODY_BYTES: Final = 64 * 1024
"""The largest webhook that is read; documented ones have about 1 KB (api-facts 4)."""
READ_TIMEOUT: Final = 10.0
"""How long a webhook may take to arrive, in seconds."""
READ_AT_ONCE: Final = 100
"""How many webhooks are read at once; the others get a 503 and may be sent again."""
REMEMBERED: Final = 20_000
"""How many addresses are kept, the last used ones: twice the waits that one process is made for."""
SAFETY_NET: Final = 60.0
"""How often a task is polled while webhooks are relied on, in seconds."""
MIN_SECRET_BYTES: Final = 16

# Multiples of three bytes, so that base64 has no bits to spare and each token one spelling.
NONCE_BYTES: Final = 15
SEAL_BYTES: Final = 18
_NONCE_LENGTH: Final = NONCE_BYTES * 4 // 3

_TASK_ID: Final = re.compile(r"[\w.:-]{1,200}", re.ASCII)
UNFINISHED: Final = (TaskState.QUEUED, TaskState.RUNNING)


@attrs.frozen
class Webhook:
    """What of a posted body is made use of."""

    #: The task that it names; empty where it names something that is no id, None where nothing.
    task_id: str | None = None
    state: TaskState = TaskState.UNKNOWN

    @classmethod
    def of(cls, record: TaskRecord | None) -> "Webhook":
        """Return what a body says, as far as it could be read."""
        if record is None:
            return cls()
        named = record.task_id if _TASK_ID.fullmatch(record.task_id) else ""
        return cls(named, record.state)

    @property
    def is_end(self) -> bool:
        """Whether the task may have ended, as far as this tells."""
        return self.state not in UNFINISHED


@attrs.define(eq=False)
class Address:
    """Where the gateway posts the news of one task, and what is known of that task."""

    nonce: bytes = attrs.field(repr=False)
    #: The client that it was made for; None where it is from before a restart, or forgotten.
    home: "ref[Webhooks] | None" = attrs.field(default=None, repr=False)
    #: What was asked for, until there is an answer.
    request: Generation | None = attrs.field(default=None, repr=False)
    #: The key of its job in the journal.
    job: str | None = attrs.field(default=None, repr=False)
    #: When it was made, in Unix seconds.
    made_at: float = attrs.field(default=0.0, repr=False)
    task_id: str | None = None
    #: The caller's own name for it, and what the caller attached to it.
    custom_id: str | None = attrs.field(default=None, repr=False)
    tag: str | None = attrs.field(default=None, repr=False)
    #: The context of its submission.
    context: contextvars.Context | None = attrs.field(default=None, repr=False)
    #: Whether its submission got no clear answer.
    is_in_doubt: bool = False
    #: Whether the task that its submission made is being searched for.
    is_sought: bool = False
    #: The last webhook that came before there was a task.
    early: Webhook | None = None
    #: The earliest instant at which a webhook may start that search again.
    next_search_at: float = attrs.field(default=-math.inf, repr=False)

    @property
    def is_strange(self) -> bool:
        """Whether only a webhook can say which task it belongs to."""
        return self.home is None

    def answered(self, task_id: str) -> None:
        """Record the task that was accepted."""
        self.task_id = task_id
        self.is_in_doubt = False
        self.request = None


class CallbackReceiver:
    """
    Receives the webhooks of a gateway, each of which makes a poll of its task due at once.

    Give it to `Client(callbacks=...)`, and mount it in your app: with aiohttp by `add_routes`,
    in any other framework by calling `deliver`. May be made anywhere, and serve several clients.
    Each submit is given an address of its own below *public_url*. A webhook is only a hint: the
    feed is polled, and its response counts, so that a forged one costs one poll at most.

    Args:
        public_url: The address under which the gateway reaches this receiver.
        secret: Keeps addresses valid when the program restarts, if it is the same then; 16
            bytes or more. By default they end with the process, and polling covers that.
        safety_net: How often a task is polled while webhooks arrive, in seconds. Until the first
            has come, and if they stop, it is polled as without webhooks.

    Raises:
        UsageError: No public address, or one that is none; a secret that is too short.

    Source:
        api-facts 4.
    """

    def __init__(
        self, public_url: str, *, secret: str | bytes | None = None, safety_net: float = SAFETY_NET
    ) -> None:
        self._base = _checked_url(public_url)
        self._key = _checked_secret(secret)
        self._is_lasting = secret is not None
        self._addresses: OrderedDict[bytes, Address] = OrderedDict()
        self._homes: WeakSet[Webhooks] = WeakSet()
        self._lock = threading.Lock()
        self._reading = 0
        self.safety_net = _checked_net(safety_net)
        #: How often it answered with each HTTP status.
        self.answers: Counter[int] = Counter()

    def __repr__(self) -> str:
        told = ", ".join(f"{count:,} x {status}" for status, count in sorted(self.answers.items()))
        return f"<CallbackReceiver {told or 'nothing received'}>"

    def add_routes(self, app: web.Application, path: str | None = None) -> None:
        """
        Add a route for webhooks to *app*.

        Args:
            app: The aiohttp application, or a sub-application of it.
            path: Where in it; by default the path of the public address. Behind a proxy that
                takes a prefix away, it is what the proxy leaves.
        """
        app.add_routes(self.routes(path))

    def routes(self, path: str | None = None) -> Iterable[web.RouteDef]:
        """Return the routes that `add_routes` adds, for `app.add_routes` or a table of your own."""
        path = urlsplit(self._base).path if path is None else path
        return [web.post(f"{path.rstrip('/')}/{{token}}", self.handle)]

    async def handle(self, request: web.Request) -> web.Response:
        """
        Answer one webhook; an `aiohttp.web` handler for a route of your own.

        The last part of the path is what tells one address from another; what stands before it,
        and all headers, do not matter, so that any number of proxies may be on the way.
        """
        if request.method != "POST":
            return web.Response(status=self._counted(405), headers={"Allow": "POST"})
        token = request.path.rpartition("/")[2]
        if self._nonce_of(token) is None:
            status, body = self._counted(404), b""
        elif self._reading >= READ_AT_ONCE:
            status, body = self._counted(503), b""
        else:
            status, body = await self._read(request)
        if status:
            # What was not read is not waited for either.
            response = web.Response(status=status)
            if status == 503:
                response.headers["Retry-After"] = "1"
            response.force_close()
            return response
        return web.Response(status=self.deliver(token, body))

    def deliver(self, token: str, body: bytes = b"") -> int:
        """
        Receive one webhook and return the HTTP status to answer it with; for other frameworks.

        May be called in any thread, with or without a running event loop.

        Args:
            token: The last part of the path that was posted to.
            body: What was posted.

        Returns:
            204 if there is such an address, whatever was posted and however often; 404 if there
            is none; 413 if the body is too large.
        """
        nonce = self._nonce_of(token)
        if nonce is None:
            return self._counted(404)
        if len(body) > MAX_BODY_BYTES:
            return self._counted(413)
        webhook = Webhook.of(read_callback(body))
        address, homes = self._found(nonce)
        if not homes:
            address.early = webhook
        for home in homes:
            home.receive(address, webhook)
        return self._counted(204)

    # For clients

    def attach(self, home: "Webhooks") -> None:
        """Pass webhooks to a client whose addresses another process made."""
        with self._lock:
            self._homes.add(home)

    def address(
        self, home: "Webhooks", request: Generation, job: str | None, made_at: float
    ) -> Address:
        """Return a new address, or for a job in a journal the one that it always has."""
        address = Address(self.nonce_of(job), ref(home), request, job, made_at)
        with self._lock:
            self._keep(address)
        return address

    def is_taken(self, task_id: str, besides: Address) -> bool:
        """Whether a task belongs to another address."""
        with self._lock:
            known = list(self._addresses.values())
        return any(one.task_id == task_id and one is not besides for one in known)

    def pending(self, home: "Webhooks") -> list[tuple[Address, Webhook]]:
        """Take what was posted while no client ran, to strange addresses and those in doubt."""
        found: list[tuple[Address, Webhook]] = []
        with self._lock:
            for address in self._addresses.values():
                mine = address.home is not None and address.home() is home and address.is_in_doubt
                if (address.is_strange or mine) and address.early is not None:
                    found.append((address, address.early))
                    address.early = None
        return found

    def url(self, address: Address) -> str:
        """Return where the gateway is to post; a secret."""
        return f"{self._base}/{self.token(address)}"

    def token(self, address: Address) -> str:
        """Return the last part of that; a secret."""
        return self._token(address.nonce)

    def nonce_of(self, job: str | None) -> bytes:
        """
        Return what one address differs from the next in.

        With a secret, that of a job is made from the job's key, so that after a restart it is
        known again which submission a webhook belongs to. The address cannot be guessed from it.
        """
        if job is None or not self._is_lasting:
            return secrets.token_bytes(NONCE_BYTES)
        return self._sealed(b"job", job.encode("utf-8", "surrogatepass"))[:NONCE_BYTES]

    @property
    def is_lasting(self) -> bool:
        """Whether addresses are valid beyond this process."""
        return self._is_lasting

    # One webhook

    async def _read(self, request: web.Request) -> tuple[int, bytes]:
        """Return the body and no status, or the status to answer with."""
        self._reading += 1
        body = bytearray()
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                while chunk := await request.content.readany():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        return self._counted(413), b""
        except TimeoutError:
            return self._counted(408), b""
        except web.RequestPayloadError:
            # Such as a body that is not in the encoding that its header names.
            return self._counted(400), b""
        finally:
            self._reading -= 1
        return 0, bytes(body)

    def _found(self, nonce: bytes) -> "tuple[Address, list[Webhooks]]":
        """Return the address, and who has to hear of what is posted there."""
        with self._lock:
            address = self._addresses.get(nonce)
            if address is None:
                # From before a restart, or forgotten: its first webhook names the task.
                address = Address(nonce)
            self._keep(address)
            home = None if address.home is None else address.home()
            if home is None:
                address.home = None
                return address, list(self._homes)
        return address, [home]

    def _keep(self, address: Address) -> None:
        self._addresses[address.nonce] = address
        self._addresses.move_to_end(address.nonce)
        if len(self._addresses) > REMEMBERED:
            self._addresses.popitem(last=False)

    def _counted(self, status: int) -> int:
        with self._lock:
            self.answers[status] += 1
        return status

    # Tokens

    def _token(self, nonce: bytes) -> str:
        seal = self._sealed(b"address", nonce)[:SEAL_BYTES]
        return base64.urlsafe_b64encode(nonce + seal).decode()

    def _nonce_of(self, token: str) -> bytes | None:
        """Return what a token was made from; None if we did not make it."""
        # The same work for every token, so that the time it takes tells nothing of how near it is.
        try:
            nonce = base64.urlsafe_b64decode(token[:_NONCE_LENGTH])
        except ValueError:
            nonce = bytes(NONCE_BYTES)
        made = self._token(nonce).encode()
        return nonce if hmac.compare_digest(made, token.encode("utf-8", "replace")) else None

    def _sealed(self, purpose: bytes, content: bytes) -> bytes:
        return hmac.digest(self._key, purpose + b"\0" + content, "sha256")


def _checked_url(url: object) -> str:
    if not url:
        raise usage_error(
            "public_url",
            "There is no public address for callbacks.",
            "Give the one under which the gateway reaches your app, such as"
            " https://app.example/hooks.",
        )
    if not is_reachable_address(url) or any(mark in str(url) for mark in "?#@"):
        raise usage_error(
            "public_url",
            "public_url is no plain http(s) address.",
            "Give scheme, host and path, such as https://app.example/hooks.",
        )
    return str(url).rstrip("/")


def _checked_secret(secret: object) -> bytes:
    if secret is None:
        return secrets.token_bytes(32)
    key = secret.encode("utf-8", "surrogatepass") if isinstance(secret, str) else secret
    if not isinstance(key, bytes) or len(key) < MIN_SECRET_BYTES:
        raise usage_error(
            "secret",
            f"secret is no text or bytes of {MIN_SECRET_BYTES} bytes or more.",
            "Use one that cannot be guessed, such as that of `secrets.token_urlsafe()`.",
        )
    return key


def _checked_net(seconds: object) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
        raise usage_error(
            "safety_net", "safety_net is no number of seconds above 0.", "Use one such as 60."
        )
    return seconds
