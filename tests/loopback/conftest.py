"""Rules for every test here: the log contains no secret, and nothing is left running."""

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
    """Yield a gateway with a marked key, so that a leak is found."""
    async with Simulator(speed=1000, takes=20, api_key=KEY) as simulator:
        yield simulator


@pytest.fixture(autouse=True)
async def nothing_is_told_or_left(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Check the log of the whole test at DEBUG, and that no asyncio task is left."""
    caplog.set_level(logging.DEBUG)
    before = others()
    yield
    await settle()
    assert others() <= before
    for line in caplog.get_records("call"):
        if not line.name.startswith(OF_THE_SERVER):
            text = f"{line.getMessage()} {line.exc_info}"
            assert not [secret for secret in SECRETS if secret in text], text
