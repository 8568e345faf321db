"""Read the lists of an account: all pages of its tasks, and the log of the key."""

from typing import TYPE_CHECKING, Final

from fuhu_runway._wire.account import ask_log, ask_tasks, read_log, read_tasks
from fuhu_runway._wire.encode import Reply
from fuhu_runway.account import AccountTask, KeyLog, TaskPage
from fuhu_runway.models import usage_error

if TYPE_CHECKING:
    from .sessions import Sessions

MAX_PAGES: Final = 100
"""How many pages of a list are read; a longer list counts as incomplete."""
MAX_DRIFT: Final = 2.0
"""How far the clocks may differ before the window is asked for again, in seconds."""


async def account_tasks(
    sessions: "Sessions", since: float, until: float
) -> tuple[list[AccountTask], float, bool]:
    """
    Return an account's tasks, how far the gateway's clock is ahead, and whether they are all.

    *since* and *until* are Unix seconds by our clock; the tasks have the gateway's instants. Tasks
    of other users are left out. The list is complete if as many rows were read as its first page
    counts; a list without a count is never complete.

    Raises:
        UsageError: The client has no account.
        GatewayError: As in `read_tasks`.
        TransportError: The gateway cannot be reached.
        UnreadableReply: The response is not a list.
    """
    account, ahead = sessions.account, sessions.ahead
    if account is None:
        raise usage_error(
            "account",
            "The client has no account, so it cannot list the account's tasks.",
            "Make it with account=Account(access_token, user_id).",
        )
    arrived_at: list[float] = []

    def read(reply: Reply) -> TaskPage:
        arrived_at.append(reply.received_at or 0.0)
        return read_tasks(reply)

    async def page(number: int) -> TaskPage:
        wire = ask_tasks(
            sessions.gateway, account, since=since + ahead, until=until + ahead, page=number
        )
        hidden = sessions.hiding_handles(wire.hiding(sessions.key))
        return await sessions.current().transport.call_unpaced(hidden, read)

    first = await page(1)
    seen = ahead if first.server_time is None else first.server_time - arrived_at[-1]
    if abs(seen - ahead) > MAX_DRIFT:
        sessions.ahead = ahead = seen
        first = await page(1)
    found = {task.task_id: task for task in first.tasks}
    if first.total is None:
        # The oldest gateways count pages from 0, and do not say how many there are.
        found |= {task.task_id: task for task in (await page(0)).tasks}
    number, is_new = 1, bool(first.tasks)
    while is_new and number < MAX_PAGES and (first.total is None or len(found) < first.total):
        number += 1
        known = len(found)
        # Rows shift when tasks are added, so one may appear twice.
        found |= {task.task_id: task for task in (await page(number)).tasks}
        is_new = len(found) > known
    # Gateways leave the user's id out as 0, too.
    tasks = [task for task in found.values() if task.user_id in {None, "0", account.user_id}]
    return tasks, ahead, first.total is not None and len(found) >= first.total


async def key_log(sessions: "Sessions") -> KeyLog:
    """
    Return what the key was charged; free.

    Raises:
        GatewayError: As in `read_log`.
        TransportError: The gateway cannot be reached.
        UnreadableReply: The response is not a log.
    """
    wire = ask_log(sessions.gateway, sessions.key)
    if sessions.account is not None:
        wire = wire.hiding(sessions.account.access_token)
    return await sessions.current().transport.call_unpaced(sessions.hiding_handles(wire), read_log)
