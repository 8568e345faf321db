"""The pace of a client at a gateway that counts requests, and how often it is refused."""

import asyncio
import itertools
from typing import Any

import pytest
from support.clients import EventRecorder, quick_client

from fuhu_runway import Client
from fuhu_runway.hooks import PaceChanged, PaceHeld, PaceRecovered
from fuhu_runway.models import Limits, PollPolicy, RetryPolicy
from fuhu_runway.testing import Simulator, faults
from fuhu_runway.testing.faults import TooManyRequests

PATIENT = RetryPolicy(attempts=12)


def gaps(gateway: Simulator, where: str = "submit") -> list[float]:
    """Return the seconds between requests of one kind, as the gateway received them."""
    instants = [seen.at for seen in gateway.requests if seen.where == where]
    return [after - before for before, after in itertools.pairwise(instants)]


def client_of(gateway: Simulator, **changes: Any) -> Client:
    """Return a client with the usual pauses, since time costs nothing here."""
    return quick_client(gateway, **{"retry": PATIENT, "polling": PollPolicy(), **changes})


async def submit_many(client: Client, count: int) -> None:
    """Submit this many at once."""
    await asyncio.gather(*(client.generate(f"a marked kitten {n}") for n in range(count)))


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize("says", [None, 0.5, 2.0])
async def test_sixty_at_once_all_pass_and_few_are_refused(says: float | None) -> None:
    """Sixty at once at a gateway that allows twenty a second: all succeed, once each."""
    async with (
        Simulator(
            rate_limit=20.0, burst=20, rate_limit_response=TooManyRequests(retry_after=says)
        ) as gateway,
        client_of(gateway) as client,
    ):
        await submit_many(client, 60)
        assert gateway.submitted == 60
        assert gateway.duplicates == ()
        # It allows a burst of twenty; a few more are sent before that is known.
        assert 1 <= gateway.limited <= 36


@pytest.mark.usefixtures("virtual")
async def test_a_pace_once_learned_is_kept() -> None:
    """After the first burst, at most one in twenty of the next two hundred requests is refused."""
    async with (
        Simulator(rate_limit=20.0, burst=5) as gateway,
        client_of(gateway) as client,
    ):
        await submit_many(client, 60)
        before = gateway.limited
        await submit_many(client, 200)
        assert gateway.submitted == 260
        assert gateway.limited - before <= 10


@pytest.mark.usefixtures("virtual")
async def test_only_the_refused_request_waits_for_retry_after() -> None:
    """After a 429 with Retry-After that task alone is polled later."""
    async with Simulator() as gateway, client_of(gateway) as client:
        task = await client.generate("a marked kitten")
        gateway.fault("feed", TooManyRequests(retry_after=30.0))
        waiting = asyncio.create_task(task.wait())
        await asyncio.sleep(3)
        assert gateway.requests[1].fault == "TooManyRequests"
        refused_at = gateway.requests[1].at
        await asyncio.gather(client.generate("a marked puppy"), client.balance())
        assert gateway.requests[-1].at < refused_at + 5.0
        await waiting
        polls = [seen.at for seen in gateway.requests if seen.where == "feed"]
        assert polls[1] >= refused_at + 30.0 - 0.01


@pytest.mark.usefixtures("virtual")
async def test_if_everything_is_refused_all_wait_for_retry_after() -> None:
    """While every request is refused for half a minute, one tries at a time; then all go on."""
    recorder = EventRecorder()
    async with Simulator() as gateway, client_of(gateway, hooks=[recorder]) as client:
        await submit_many(client, 20)
        gateway.fault("submit", TooManyRequests(retry_after=30.0), times=21)
        await asyncio.sleep(10)
        await submit_many(client, 20)
        refused = [seen.at for seen in gateway.requests if seen.fault == "TooManyRequests"]
        assert len(refused) == 21
        tries = [at for at in refused if at > refused[0] + 20]
        assert len(tries) <= 20
        assert min(tries) >= refused[0] + 30.0 - 0.01
        assert gateway.submitted == 40
        assert recorder.all(PaceHeld)
        assert recorder.all(PaceRecovered)


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize("rate", [1.0, 5.0])
async def test_a_rate_that_is_given_is_never_refused(rate: float) -> None:
    """With the gateway's own rate, which allows no burst, a client is never refused."""
    async with (
        Simulator(rate_limit=rate, burst=1) as gateway,
        client_of(gateway, limits=Limits(requests_per_second=rate * 0.999)) as client,
    ):
        await submit_many(client, 10)
        await asyncio.sleep(100)
        await submit_many(client, 10)
        assert (gateway.submitted, gateway.limited) == (20, 0)
        assert min(gaps(gateway)) >= 1 / rate


@pytest.mark.usefixtures("virtual")
async def test_stray_refusals_cost_little() -> None:
    """Thirteen refusals among 120 submits make them take five seconds longer at the most."""

    async def seconds_for(prompts: list[str]) -> float:
        async with Simulator() as gateway, client_of(gateway) as client:
            for prompt in prompts:
                if "stray" in prompt:
                    gateway.script(prompt, faults=[faults.on("submit", TooManyRequests())])
            began = asyncio.get_running_loop().time()
            await asyncio.gather(*map(client.generate, prompts))
            assert gateway.submitted == 120
            return asyncio.get_running_loop().time() - began

    kittens = [f"a kitten {number}" for number in range(120)]
    strays = [f"{kitten}, a stray" if n % 9 == 5 else kitten for n, kitten in enumerate(kittens)]
    assert sum("stray" in prompt for prompt in strays) == 13
    assert await seconds_for(strays) <= await seconds_for(kittens) + 5.0


@pytest.mark.usefixtures("virtual")
async def test_a_limit_that_is_found_is_reported() -> None:
    """A gateway that allows five a second makes the client report about five a second."""
    recorder = EventRecorder()
    async with (
        Simulator(rate_limit=5.0, burst=5) as gateway,
        client_of(gateway, hooks=[recorder]) as client,
    ):
        await submit_many(client, 100)
        assert gateway.submitted == 100
    assert 3.0 < recorder.all(PaceChanged)[-1].rate < 7.5


@pytest.mark.usefixtures("virtual")
async def test_few_are_sent_before_the_first_answer() -> None:
    """Of a hundred at once, only four are sent before the first response."""
    async with Simulator(rate_limit=1.0, burst=1) as gateway, client_of(gateway) as client:
        await submit_many(client, 100)
        assert gateway.submitted == 100
        assert gateway.limited <= 20


@pytest.mark.usefixtures("virtual")
async def test_requests_in_flight_are_limited() -> None:
    """Of fifty at once, the gateway never has more than four to answer."""
    async with (
        Simulator() as gateway,
        client_of(gateway, limits=Limits(requests_in_flight=4)) as client,
    ):
        await submit_many(client, 50)
        assert gateway.submitted == 50
        assert gateway.peak_requests <= 4


@pytest.mark.usefixtures("virtual")
async def test_waits_and_submits_share_one_pace() -> None:
    """Polls and submissions together keep to the given rate."""
    async with (
        Simulator(takes=30.0) as gateway,
        client_of(gateway, limits=Limits(requests_per_second=4.0)) as client,
    ):

        async def one(number: int) -> None:
            await (await client.generate(f"a marked kitten {number}")).wait()

        await asyncio.gather(*map(one, range(20)))
        instants = [seen.at for seen in gateway.requests]
    assert gateway.submitted == 20
    assert min(b - a for a, b in itertools.pairwise(instants)) >= 0.25 - 0.01
