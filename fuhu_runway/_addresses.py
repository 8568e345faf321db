"""
The addresses for webhooks: which of them belongs to which task.

Rule 1: gateways sign nothing (api-facts 4), so the address is the signature: each task has its
own, which cannot be guessed and is sent to the gateway only.
Rule 2: checking an address needs no list, and takes the same time for every wrong one.
"""

import base64
import contextvars
import hmac
import math
import secrets
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final
from weakref import ref

import attrs

from .models import Generation, TaskState

if TYPE_CHECKING:
    from ._session.sessions import Sessions

REMEMBERED: Final = 20_000
"""How many addresses are kept, the last used ones; if fewer, more are looked up in the journal."""

# Multiples of three bytes, so that base64 has no bits to spare and each token one spelling.
NONCE_BYTES: Final = 15
SIGNATURE_BYTES: Final = 18


@attrs.frozen
class Webhook:
    """The parts of a posted body that are used."""

    #: The task id in it; empty if it is not valid, None if there is none.
    task_id: str | None = None
    state: TaskState = TaskState.UNKNOWN

    @property
    def is_end(self) -> bool:
        """Whether the task may have ended."""
        return self.state not in {TaskState.QUEUED, TaskState.RUNNING}


@attrs.define(eq=False)
class Address:
    """Where the gateway posts the webhooks of one task, and what is known about that task."""

    nonce: bytes = attrs.field(repr=False)
    #: The client that submits; None if an earlier process made the address, or it was dropped.
    client: "ref[Sessions] | None" = attrs.field(default=None, repr=False)
    #: The submission, until its outcome is known.
    request: Generation | None = attrs.field(default=None, repr=False)
    #: The key of its job; empty if an earlier process made the address.
    job: str = attrs.field(default="", repr=False)
    #: When it was made, in Unix seconds.
    made_at: float = attrs.field(default=0.0, repr=False)
    #: The caller's own name for it, and what the caller attached to it.
    custom_id: str | None = attrs.field(default=None, repr=False)
    tag: str | None = attrs.field(default=None, repr=False)
    #: The context of its submission.
    context: contextvars.Context | None = attrs.field(default=None, repr=False)
    task_id: str | None = None
    is_in_doubt: bool = False
    #: Whether the task of its submission is being searched for.
    is_sought: bool = False
    #: The last webhook that came before the task was known.
    early: Webhook | None = None
    #: The earliest instant at which a webhook may start that search again.
    next_search_at: float = attrs.field(default=-math.inf, repr=False)

    @property
    def is_strange(self) -> bool:
        """Whether only a webhook can tell which task it belongs to."""
        return self.client is None

    def answered(self, task_id: str) -> None:
        """Record the task that was accepted."""
        self.task_id = task_id
        self.is_in_doubt = False
        self.request = None


class Addresses:
    """The addresses of one receiver: made, recognised, and kept while there is room."""

    def __init__(self, base: str, secret: bytes, *, is_lasting: bool) -> None:
        self._base = base
        self._secret = secret
        #: Whether they are valid beyond this process.
        self.is_lasting = is_lasting
        self._kept: OrderedDict[bytes, Address] = OrderedDict()
        self._lock = threading.Lock()

    def new(
        self,
        client: "Sessions",
        request: Generation,
        job: str,
        made_at: float,
        *,
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Address:
        """Return a new address; a job in a journal always has the same one."""
        address = Address(
            *(self.nonce_of(job), ref(client), request, job, made_at, custom_id, tag),
            context=contextvars.copy_context(),
        )
        with self._lock:
            self._keep(address)
        return address

    def found(self, nonce: bytes) -> Address:
        """Return the address with this random part; a new one if it was dropped, or never kept."""
        with self._lock:
            address = self._kept.get(nonce) or Address(nonce)
            self._keep(address)
        return address

    def _keep(self, address: Address) -> None:
        self._kept[address.nonce] = address
        self._kept.move_to_end(address.nonce)
        if len(self._kept) > REMEMBERED:
            self._kept.popitem(last=False)

    def is_taken(self, task_id: str, besides: Address) -> bool:
        """Return whether a task belongs to another address."""
        with self._lock:
            known = list(self._kept.values())
        return any(one.task_id == task_id and one is not besides for one in known)

    def pending(self, client: "Sessions") -> list[tuple[Address, Webhook]]:
        """Return and remove the webhooks that were posted while no client was running."""
        found: list[tuple[Address, Webhook]] = []
        with self._lock:
            for address in self._kept.values():
                is_mine = address.client is not None and address.client() is client
                is_lost = address.is_strange or (is_mine and address.is_in_doubt)
                if is_lost and address.early is not None:
                    found.append((address, address.early))
                    address.early = None
        return found

    def url(self, address: Address) -> str:
        """Return the URL for the gateway; a secret."""
        return f"{self._base}/{self.token(address)}"

    def token(self, address: Address) -> str:
        """Return the last part of that URL; a secret."""
        return self._token(address.nonce)

    def nonce_of(self, job: str) -> bytes:
        """
        Return the random part of an address.

        With a secret, a job's nonce is made from the job's key, so a webhook still leads to its
        submission after a restart. The address cannot be guessed from the key.
        """
        if not self.is_lasting:
            return secrets.token_bytes(NONCE_BYTES)
        return self._signature(b"job", job.encode("utf-8", "surrogatepass"))[:NONCE_BYTES]

    def _token(self, nonce: bytes) -> str:
        signature = self._signature(b"address", nonce)[:SIGNATURE_BYTES]
        return base64.urlsafe_b64encode(nonce + signature).decode()

    def nonce_in(self, token: str) -> bytes | None:
        """Return the nonce of a token; None if this receiver did not make it."""
        # The same work for every token, so that the time does not reveal how close a guess is.
        try:
            nonce = base64.urlsafe_b64decode(token[: NONCE_BYTES * 4 // 3])
        except ValueError:
            nonce = bytes(NONCE_BYTES)
        made = self._token(nonce).encode()
        return nonce if hmac.compare_digest(made, token.encode("utf-8", "replace")) else None

    def _signature(self, purpose: bytes, content: bytes) -> bytes:
        return hmac.digest(self._secret, purpose + b"\0" + content, "sha256")
