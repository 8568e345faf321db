"""Clients without delays on loopback, and their events."""

import asyncio
from typing import Any, Final, TypeVar

import attrs
from support.clock import RecordingClock

from fuhu_runway import Client
from fuhu_runway.hooks import Event
from fuhu_runway.models import PollPolicy, RetryPolicy
from fuhu_runway.testing import Simulator

QUICK_RETRY: Final = RetryPolicy(first=0.001, factor=1, max_delay=0.001)
QUICK_POLLS: Final = PollPolicy(
    first=0.01, max_interval=0.02, not_found_grace=0.2, url_grace=0.1, jitter=0
)

E = TypeVar("E", bound=Event)


def quick_client(gateway: Simulator, **changes: Any) -> Client:
    """Return a client of *gateway* with delays of some milliseconds."""
    settings: dict[str, Any] = {
        "base_url": gateway.base_url,
        "retry": QUICK_RETRY,
        "polling": QUICK_POLLS,
    }
    return Client(gateway.api_key, **{**settings, **changes})


def without_pauses(client: Client) -> RecordingClock:
    """Put *client* on a clock that records its delays instead of sleeping."""
    clock = RecordingClock()
    client._sessions.settings = attrs.evolve(client._sessions.settings, clock=clock)
    return clock


class Ear:
    """A listener that records its events."""

    def __init__(self) -> None:
        self.heard: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.heard.append(event)

    def all(self, kind: type[E]) -> list[E]:
        """Return every event of one kind, in order."""
        return [event for event in self.heard if isinstance(event, kind)]


def others() -> set["asyncio.Task[Any]"]:
    """Return the tasks of the running loop, except the current one and those of a server."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return {task for task in tasks if not _is_of_a_server(task)}


def _is_of_a_server(task: "asyncio.Task[Any]") -> bool:
    return getattr(task.get_coro(), "__qualname__", "").startswith("RequestHandler.")
