"""What holds for every test here: the log tells no secret, and nothing is left running."""

import logging
from collections.abc import AsyncIterator
from typing import Final

import pytest
from support.clients import others
from support.clock import settle

from fuhu_runway.testing import Simulator

KEY: Final = "sk-marked-7f3a"
PROMPT: Final = "a marked kitten"
SECRETS: Final = ("marked", "_jwt=", "127.0.0.1")
OF_THE_SERVER: Final = ("asyncio", "aiohttp.access", "aiohttp.server", "aiohttp.web")


@pytest.fixture
async def gateway() -> AsyncIterator[Simulator]:
    """A gateway whose key is marked, so that it is found wherever it is shown."""
    async with Simulator(speed=1000, takes=20, api_key=KEY) as simulator:
        yield simulator


@pytest.fixture(autouse=True)
async def nothing_is_told_or_left(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Read the log of the whole test at DEBUG, and look for tasks that nobody ended."""
    caplog.set_level(logging.DEBUG)
    before = others()
    yield
    await settle()
    assert others() <= before
    for line in caplog.get_records("call"):
        if not line.name.startswith(OF_THE_SERVER):
            text = f"{line.getMessage()} {line.exc_info}"
            assert not [secret for secret in SECRETS if secret in text], text
