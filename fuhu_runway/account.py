"""
The account behind a key: its access token, and what the gateway's own lists say about it.

Instants are aware datetimes by the gateway's clock; points are in the gateway's quota unit, of
which most gateways count 500,000 to the dollar. No repr shows a token or a prompt.
"""

import os
from datetime import datetime
from typing import Any, Final

from attrs import field, frozen

from ._fields import DURATION, usage_error
from ._json import json_fields
from .models import TaskRecord, TaskState

TOKEN_VARIABLE: Final = "FUHU_ACCESS_TOKEN"  # noqa: S105  (the name of a variable)
USER_VARIABLE: Final = "FUHU_USER_ID"


def _sendable(name: str, value: object, what: str, variable: str) -> str:
    """Return a text that a header can carry; the error does not quote it."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if text is None or text == "":
        raise usage_error(
            name,
            f"There is no {what}.",
            f"Copy it from the gateway's account page; for commands, set {variable} to it.",
        )
    if not isinstance(text, str) or not text.isascii() or not text.isprintable() or " " in text:
        raise usage_error(
            name,
            f"The {what} has characters that an HTTP header cannot carry, or spaces.",
            "Copy it again from the gateway's account page, without line breaks or quotes.",
        )
    return text


def _token(value: object) -> str:
    return _sendable("access_token", value, "access token of the account", TOKEN_VARIABLE)


def _user(value: object) -> str:
    return _sendable("user_id", value, "user id of the account", USER_VARIABLE)


@frozen
class Account:
    """
    What the gateway's list of an account's tasks requires: an access token, and the user's id.

    The gateway's account page shows both. The token is a secret like the key, but another one: it
    may do everything that the account may. Reading the list is free.
    """

    #: The access token of the account, also called system token.
    access_token: str = field(converter=_token, repr=False)
    #: The id of the user, which is a number on most gateways.
    user_id: str = field(converter=_user)
    #: How long `submit` searches for the task of a lost response, in seconds.
    search_seconds: float = field(default=30.0, kw_only=True, validator=DURATION)

    @classmethod
    def from_env(cls) -> "Account | None":
        """
        Return the account of FUHU_ACCESS_TOKEN and FUHU_USER_ID; None if neither is set.

        Raises:
            UsageError: Only one of them is set, or one cannot be sent.
        """
        token, user = (os.environ.get(name) for name in (TOKEN_VARIABLE, USER_VARIABLE))
        return cls(token or "", user or "") if token or user else None


@frozen
class AccountTask:
    """One task in the gateway's list of the account's tasks."""

    task_id: str
    created_at: datetime | None = None  #: When the row was written.
    #: When the gateway accepted the task, which is after the request was sent.
    submitted_at: datetime | None = None
    platform: str | None = None  #: The gateway's word for the kind of service.
    action: str | None = None  #: The gateway's word for the kind of task.
    state: TaskState = TaskState.UNKNOWN
    points: float | None = None  #: What it was charged, in the gateway's quota unit.
    #: The prompt; None if the list does not show it, or does not show it yet.
    prompt: str | None = field(default=None, repr=False)
    model: str | None = None
    user_id: str | None = None  #: Whose task it is.
    #: The upstream's ids for it: some gateways give the client that id instead of their own.
    aliases: tuple[str, ...] = ()
    #: What the list says about the task, as a record; None if it cannot be parsed.
    record: TaskRecord | None = field(default=None, repr=False, eq=False)

    @property
    def ids(self) -> tuple[str, ...]:
        """Every id by which the client may know it, the list's own first."""
        return (self.task_id, *self.aliases)

    def as_dict(self) -> dict[str, Any]:
        """Return what may be shown and stored, as JSON values: no prompt, URL or raw response."""
        return json_fields(self)


@frozen
class Audit:
    """The account's tasks that a journal does not have, each of them paid for."""

    #: Tasks that belong to no job: for each, use `Client.adopt` or `journal.ignore`.
    tasks: tuple[AccountTask, ...] = ()
    #: Tasks that may be those of jobs in doubt, which have to be settled first.
    unclear: tuple[AccountTask, ...] = ()
    #: Whether the gateway sent its whole list; if not, there may be more tasks.
    is_complete: bool = True


@frozen
class TaskPage:
    """One page of the list."""

    tasks: tuple[AccountTask, ...]
    total: int | None = None  #: How many tasks all pages have; None if the gateway does not say.
    page: int | None = None
    page_size: int | None = None
    #: The gateway's clock when it responded, in Unix seconds; None without a `Date` header.
    server_time: float | None = None


@frozen
class Charge:
    """One charge in the log of a key."""

    charged_at: datetime | None = None
    model: str | None = None
    action: str | None = None  #: The gateway's word for the kind of task, if the row names it.
    points: float | None = None  #: What was charged, in the gateway's quota unit.
    #: The task, if the row names it: some gateways always do, others only for a later settlement.
    task_id: str | None = None


@frozen
class KeyLog:
    """What a key was charged; not a proof on its own, since operators may switch the log off."""

    charges: tuple[Charge, ...]
    #: The gateway's clock when it responded, in Unix seconds; None without a `Date` header.
    server_time: float | None = None
    #: The instant of the oldest row of any kind: older rows may have been cut off.
    starts_at: datetime | None = None


@frozen
class Found:
    """A submission in doubt whose task was found."""

    #: The key of its job.
    key: str
    task_id: str
    #: What proved it, such as "list of tasks".
    proof: str
    #: The caller's own name for it.
    custom_id: str | None = None


@frozen
class Left:
    """A submission that stays in doubt."""

    #: The key of its job.
    key: str
    #: Why, as a phrase, such as "several tasks fit; choose one".
    reason: str
    #: The tasks that may be it, for a person to choose from.
    task_ids: tuple[str, ...] = ()
    #: Whether the gateway's log, or its response, shows that it was charged.
    is_charged: bool = False
    #: The caller's own name for it.
    custom_id: str | None = None


@frozen
class Reconciliation:
    """What happened to the submissions in doubt; see `Client.reconcile`."""

    #: Those that were accepted, with their tasks, which are followed.
    found: tuple[Found, ...] = ()
    #: The keys of jobs that were proven not to be accepted: they may be submitted again.
    not_accepted: tuple[str, ...] = ()
    #: Those that are still in doubt, each with the reason.
    left: tuple[Left, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {
            "found": [json_fields(one) for one in self.found],
            "not_accepted": list(self.not_accepted),
            "left": [json_fields(one) for one in self.left],
        }
