"""The warnings of asyncio and aiohttp about unawaited or unclosed objects hold no secret."""

import asyncio
import gc
import logging
import warnings
from typing import Any, Final

import pytest
from support.clients import quick_client
from support.clock import until

from fuhu_runway.testing import Simulator, faults

PROMPT: Final = "a marked kitten"
IMAGE: Final = "https://pictures.example/1.png?_jwt=marked"


@pytest.mark.parametrize(
    "fault",
    [faults.refused(f"{PROMPT} {IMAGE}"), faults.Drop(accepted=True), faults.html_page(502)],
    ids=["refused", "dropped", "down"],
)
def test_complaints_of_the_loop_hold_no_secret(
    fault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed task is not awaited and the client is not closed, with asyncio in debug mode."""
    shown: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.slow_callback_duration = 0  # every step is slow enough to be shown, as it is
        loop.set_exception_handler(
            lambda loop, context: (
                shown.append(repr(context)),
                loop.default_exception_handler(context),
            )
        )
        async with Simulator(speed=1000, takes=20) as gateway:
            client = quick_client(gateway)
            gateway.fault("submit", fault)
            forgotten = asyncio.create_task(client.generate(PROMPT, image=IMAGE))
            await until(forgotten.done)
            del forgotten
            gc.collect()
            shown.append(gateway.api_key)
            del client

    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        asyncio.run(main(), debug=True)
        gc.collect()
    key = shown.pop()
    said = "\n".join([caplog.text, *shown, *(str(one.message) for one in warned)])
    assert "never retrieved" in said
    assert "Executing" in said
    ours = [line for line in said.splitlines() if "Simulator" not in line]
    assert not [line for line in ours for mark in ("marked", key) if mark in line]
