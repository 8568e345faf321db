import pytest
from support.clients import quick_client
from support.secrets import secrets_in

from fuhu_runway.errors import Unauthorized
from fuhu_runway.testing import Simulator, faults
from fuhu_runway.testing.faults import Where

PROMPT = "a marked kitten"


async def test_a_refused_poll_does_not_quote_the_prompt(gateway: Simulator) -> None:
    """If a gateway refuses a poll and quotes the prompt, the error hides the prompt."""
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
        gateway.fault("feed", faults.error(403, f"not allowed to see: {PROMPT}"), times=None)
        with pytest.raises(Unauthorized, match="not allowed to see") as caught:
            await task.wait(timeout=10)
    assert secrets_in(caught.value, ["marked"]) == []


@pytest.mark.parametrize("where", ["balance", "feed"])
async def test_other_refusals_do_not_quote_the_prompt_either(
    gateway: Simulator, where: Where
) -> None:
    """The prompt of a live task is in no error of a balance, or of a poll by id."""
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
        gateway.fault(where, faults.error(403, f"not now: {PROMPT}"), times=None)
        with pytest.raises(Unauthorized, match="not now") as caught:
            await (client.balance() if where == "balance" else client.feed(task.id))
    assert secrets_in(caught.value, ["marked"]) == []
