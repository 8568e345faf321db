"""A client that polls only after webhooks, and webhooks that a test sends."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import pytest
from support.clients import Ear, quick_client
from support.clock import until

from fuhu_runway import CallbackReceiver, Client
from fuhu_runway.errors import SubmissionInDoubt
from fuhu_runway.models import PollPolicy, Timeouts
from fuhu_runway.testing import Simulator, faults

URL: Final = "https://app.example/hooks"
SECRET: Final = "as long as it has to be"
PROMPT: Final = "a kitten"
IMAGE: Final = "https://pictures.example/1.png"
#: In simulated seconds: a fifth of a second, long enough for something to come first.
A_WHILE: Final = 200.0
#: How long an answer that hangs is waited for.
PATIENT: Final = Timeouts(read=0.5)
#: Without a webhook no poll is due before the test's own time is over.
NEVER: Final = PollPolicy(first=3600, max_interval=3600, learn=False)


@attrs.define(eq=False)
class Scene:
    """A client that polls only after webhooks, and webhooks that the test sends."""

    gateway: Simulator
    receiver: CallbackReceiver
    client: Client
    ear: Ear

    def token(self, place: int = -1) -> str:
        """Return the last part of the callback URL of a task's submit."""
        url: str = self.gateway.tasks[place].request["callback_url"]
        base, _, token = url.rpartition("/")
        assert base == URL
        return token

    def post(self, place: int = -1, *, status: str = "3", task_id: str | None = None) -> int:
        """Send a callback to a task's URL, as the gateway would."""
        body = {"task_id": task_id or self.gateway.tasks[place].task_id, "status": status}
        return self.receiver.deliver(self.token(place), json.dumps(body).encode())

    async def ended(self, place: int = -1) -> None:
        """Wait until a task has succeeded."""
        await until(lambda: self.gateway.tasks[place].state == "succeeded")

    @property
    def feeds(self) -> int:
        """Return the number of polls."""
        return len([seen for seen in self.gateway.requests if seen.where == "feed"])

    async def doubt(self) -> None:
        """Lose the answer to a paid request."""
        self.gateway.fault("submit", faults.drop_after_accepting())
        with pytest.raises(SubmissionInDoubt):
            await self.client.generate(PROMPT)


@asynccontextmanager
async def scene_of(
    gateway: Simulator, *, secret: str | None = None, **options: Any
) -> AsyncIterator[Scene]:
    """Return a client with its own receiver."""
    receiver, ear = CallbackReceiver(URL, secret=secret), Ear()
    options = {"polling": NEVER, "timeouts": PATIENT, "hooks": [ear], **options}
    async with quick_client(gateway, callbacks=receiver, **options) as client:
        yield Scene(gateway, receiver, client, ear)
