import pytest
from support.clients import quick_client
from support.secrets import told

from fuhu_runway.errors import Unauthorized
from fuhu_runway.testing import Simulator, faults
from fuhu_runway.testing.faults import Where

PROMPT = "a marked kitten"


async def test_a_refused_look_does_not_quote_the_prompt(gateway: Simulator) -> None:
    """A gateway that refuses a look and quotes the prompt at it does not get it into the error."""
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
        gateway.fault("feed", faults.error(403, f"not allowed to see: {PROMPT}"), times=None)
        with pytest.raises(Unauthorized, match="not allowed to see") as caught:
            await task.wait(timeout=10)
    assert told(caught.value, ["marked"]) == []


@pytest.mark.parametrize("where", ["balance", "feed"])
async def test_a_refused_look_of_no_handle_does_not_quote_a_prompt(
    gateway: Simulator, where: Where
) -> None:
    """What a living task was asked for with is in no error of a balance, or of a look by id."""
    async with quick_client(gateway) as client:
        task = await client.generate(PROMPT)
        gateway.fault(where, faults.error(403, f"not now: {PROMPT}"), times=None)
        with pytest.raises(Unauthorized, match="not now") as caught:
            await (client.balance() if where == "balance" else client.feed(task.id))
    assert told(caught.value, ["marked"]) == []
