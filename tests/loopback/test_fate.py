import asyncio
import random
from typing import Any

import aiohttp
import pytest
from support.clients import QUICK_RETRY, Ear, quick_client, without_pauses
from support.clock import RecordingClock
from support.secrets import told
from support.servers import free_port

from fuhu_runway import Client
from fuhu_runway.errors import (
    GatewayDown,
    GatewayError,
    InvalidRequest,
    ModelUnavailable,
    NoReply,
    NotFound,
    NotSent,
    OutOfCredits,
    RateLimited,
    RunwayError,
    SubmissionInDoubt,
    Unauthorized,
    UnreadableReply,
)
from fuhu_runway.hooks import RetryScheduled
from fuhu_runway.models import RetryPolicy, Timeouts
from fuhu_runway.testing import Simulator, faults
from fuhu_runway.testing.faults import Answer, Fault

PROMPT = "a marked kitten"
SECRETS = ("marked", "127.0.0.1")
NO_ID = '{"code": 200, "msg": "success", "data": {"task_id": ""}, "exec_time": 1}'

# The columns of the table of the field, and their kin.
IN_DOUBT: dict[str, tuple[Fault, type[RunwayError]]] = {
    "connection dies": (faults.drop_after_accepting(), NoReply),
    "connection is reset": (faults.Drop(accepted=True, reset=True), NoReply),
    "HTTP 500": (faults.server_error(500, accepted=True), GatewayDown),
    "HTTP 500 from the relay": (faults.server_error(500, accepted=True, body="json"), GatewayDown),
    "HTTP 502": (faults.server_error(502, accepted=True), GatewayDown),
    "HTTP 502 without a word": (faults.server_error(502, accepted=True, body="empty"), GatewayDown),
    "HTTP 503": (faults.server_error(503, accepted=True), GatewayDown),
    "HTTP 504": (faults.server_error(504, accepted=True), GatewayDown),
    "HTTP 524": (faults.server_error(524, accepted=True), GatewayDown),
    "read timeout": (faults.Hang(accepted=True), NoReply),
    "read timeout in the answer": (faults.Hang(after_bytes=9), NoReply),
    "truncated answer": (faults.Truncated(), UnreadableReply),
    "cut answer": (faults.Cut(), NoReply),
    "30 MB answer": (faults.Huge(30), UnreadableReply),
    "missing id": (Answer(200, NO_ID, accepted=True), UnreadableReply),
    "no JSON": (faults.not_json(accepted=True), UnreadableReply),
    "empty answer": (Answer(200, "", accepted=True), UnreadableReply),
}


async def refusal(client: Client, kind: type[RunwayError]) -> RunwayError:
    """Return the error that a submit ends in, which tells no secret."""
    with pytest.raises(kind) as caught:
        await client.generate(PROMPT)
    assert told(caught.value, SECRETS) == []
    return caught.value


@pytest.mark.parametrize(("fault", "cause"), IN_DOUBT.values(), ids=IN_DOUBT.keys())
@pytest.mark.parametrize("borrowed", [False, True], ids=["own session", "borrowed session"])
async def test_one_fault_makes_one_job(
    gateway: Simulator,
    fault: Fault,
    cause: type[RunwayError],
    borrowed: bool,
) -> None:
    """Accepted and then lost: exactly one job exists, one request was sent, and it is in doubt."""
    gateway.fault("submit", fault, times=None)
    ear, session = Ear(), aiohttp.ClientSession() if borrowed else None
    timeouts = Timeouts(read=0.05) if isinstance(fault, faults.Hang) else Timeouts()
    async with quick_client(gateway, hooks=[ear], timeouts=timeouts, session=session) as client:
        error = await refusal(client, SubmissionInDoubt)
        if session is not None:
            await session.close()
    assert gateway.submitted == 1
    assert len(gateway.requests) == 1
    assert type(error.__cause__) is cause
    assert "may have been accepted" in str(error)
    assert ear.all(RetryScheduled) == []


@pytest.mark.parametrize(
    "fault", [faults.drop_before_accepting(), faults.Hang()], ids=["drop", "hang"]
)
async def test_what_was_lost_before_it_was_accepted_is_in_doubt_too(
    gateway: Simulator, fault: Fault
) -> None:
    """From outside it looks the same, so nothing is sent again, and no job exists."""
    gateway.fault("submit", fault, times=None)
    async with quick_client(gateway, timeouts=Timeouts(read=0.05)) as client:
        error = await refusal(client, SubmissionInDoubt)
    assert (gateway.submitted, len(gateway.requests)) == (0, 1)
    assert isinstance(error.__cause__, NoReply)


@pytest.mark.parametrize("status", [500, 502, 504])
async def test_a_5xx_without_a_job_is_in_doubt_too(gateway: Simulator, status: int) -> None:
    """A 5xx says nothing about whether the work was done."""
    gateway.fault("submit", faults.server_error(status), times=None)
    async with quick_client(gateway) as client:
        await refusal(client, SubmissionInDoubt)
    assert (gateway.submitted, len(gateway.requests)) == (0, 1)


async def test_a_refused_connection_is_repeated_and_then_told() -> None:
    """Nobody listens: tried as often as the policy says, then `NotSent`, and nothing is charged."""
    ear = Ear()
    address = f"http://127.0.0.1:{free_port()}"
    async with Client("sk-marked", base_url=address, retry=QUICK_RETRY, hooks=[ear]) as client:
        error = await refusal(client, NotSent)
    assert "Nothing was charged" in str(error)
    assert [event.attempt for event in ear.all(RetryScheduled)] == [1, 2, 3, 4]


async def test_a_gateway_that_comes_back_gets_the_job_once(gateway: Simulator) -> None:
    """Refused connections are repeated until it listens again, and one job exists."""

    class Awaking(RecordingClock):
        async def sleep(self, delay: float) -> None:
            await super().sleep(delay)
            if len(self.slept) == 3:
                await gateway.start()

    async with quick_client(gateway) as client:
        clock = without_pauses(client)
        clock.__class__ = Awaking
        await gateway.aclose()
        await client.generate(PROMPT)
    assert (gateway.submitted, len(clock.slept)) == (1, 3)


FORMS = [
    faults.TooManyRequests(3, form="seconds"),
    faults.TooManyRequests(3, form="milliseconds"),
    faults.TooManyRequests(3, form="date"),
    faults.empty_429(3),
]


@pytest.mark.parametrize("fault", FORMS, ids=["seconds", "milliseconds", "date", "empty body"])
async def test_a_429_waits_exactly_as_long_as_it_says(gateway: Simulator, fault: Fault) -> None:
    """`Retry-After: 3` in each of its forms is three seconds, and then there is one job."""
    gateway.fault("submit", fault, times=2)
    async with quick_client(gateway) as client:
        clock = without_pauses(client)
        task = await client.generate(PROMPT)
    assert clock.slept == [3.0, 3.0]
    assert [one.task_id for one in gateway.tasks] == [task.id]


@pytest.mark.usefixtures("virtual")
async def test_a_429_without_a_word_backs_off(gateway: Simulator) -> None:
    """With no body and no header, the delays are drawn from growing ranges."""
    gateway.fault("submit", faults.empty_429(), times=4)
    policy = RetryPolicy(first=1.0, factor=2.0, max_delay=4.0)
    async with quick_client(gateway, retry=policy) as client:
        clock = without_pauses(client)
        await client.generate(PROMPT)
    assert len(clock.slept) == 4
    assert all(0 <= delay <= limit for delay, limit in zip(clock.slept, (1, 2, 4, 4), strict=True))
    assert gateway.submitted == 1


async def test_a_429_that_stays_is_told(gateway: Simulator) -> None:
    """After as many sendings as the policy has, with what the gateway said; no job exists."""
    gateway.fault("submit", faults.TooManyRequests(3), times=None)
    async with quick_client(gateway) as client:
        clock = without_pauses(client)
        error = await refusal(client, RateLimited)
    assert isinstance(error, RateLimited)
    assert (error.status, error.retry_after, clock.slept) == (429, 3.0, [3.0] * 4)
    assert (gateway.submitted, len(gateway.requests)) == (0, 5)


async def test_a_pause_that_is_too_long_is_the_callers_business(gateway: Simulator) -> None:
    """A gateway that asks for more than the policy allows is not waited for."""
    gateway.fault("submit", faults.TooManyRequests(121), times=None)
    async with quick_client(gateway, retry=RetryPolicy(max_retry_after=120)) as client:
        clock = without_pauses(client)
        error = await refusal(client, RateLimited)
    assert isinstance(error, RateLimited)
    assert (error.retry_after, clock.slept) == (121.0, [])


FINAL: dict[str, tuple[Fault, type[GatewayError]]] = {
    "quota in a 429": (faults.quota_in_429(), OutOfCredits),
    "quota in a 401": (faults.key_exhausted(), OutOfCredits),
    "wrong key": (faults.error(401), Unauthorized),
    "refused": (faults.refused(), InvalidRequest),
    "refused with a list": (faults.refused(data=[]), InvalidRequest),
    "refused in a 500": (faults.error(500, "no", code="invalid_request"), InvalidRequest),
    "web page": (faults.html_page(), NotFound),
    "dashboard": (faults.dashboard_error(), Unauthorized),
    "midjourney": (faults.midjourney_error(), OutOfCredits),
    "nested": (faults.nested_error(400), InvalidRequest),
}


@pytest.mark.parametrize(("fault", "kind"), FINAL.values(), ids=FINAL.keys())
async def test_a_final_no_is_sent_once(
    gateway: Simulator, fault: Fault, kind: type[GatewayError]
) -> None:
    """It raises the error of its kind, without a pause, and no job exists."""
    gateway.fault("submit", fault, times=None)
    async with quick_client(gateway) as client:
        clock = without_pauses(client)
        error = await refusal(client, kind)
    assert not isinstance(error, SubmissionInDoubt)
    assert "Nothing was charged" in str(error)
    assert (gateway.submitted, len(gateway.requests), clock.slept) == (0, 1, [])


async def test_a_model_without_a_channel_is_asked_for_twice_more(gateway: Simulator) -> None:
    """503 `model_not_found` is not in itself transient (api-facts 5.1)."""
    gateway.fault("submit", faults.model_not_found(), times=None)
    async with quick_client(gateway, retry=RetryPolicy(attempts=50)) as client:
        clock = without_pauses(client)
        await refusal(client, ModelUnavailable)
    assert (gateway.submitted, len(gateway.requests), len(clock.slept)) == (0, 3, 2)


async def test_a_model_that_comes_back_gets_the_job_once(gateway: Simulator) -> None:
    """Twice no channel, then one: one job."""
    gateway.fault("submit", faults.model_not_found(), times=2)
    async with quick_client(gateway) as client:
        await client.generate(PROMPT)
    assert (gateway.submitted, len(gateway.requests)) == (1, 3)


MIX: list[Fault] = [
    *(fault for fault, _ in IN_DOUBT.values() if not isinstance(fault, faults.Huge)),
    *FORMS,
    faults.model_not_found(),
    faults.drop_before_accepting(),
]


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize("seed", range(3))
async def test_no_mix_of_faults_makes_two_jobs_of_one(gateway: Simulator, seed: int) -> None:
    """Sixty submits at once under every fault there is: at most one job each, all accounted for."""
    dice = random.Random(seed)
    for number in range(60):
        planned = [faults.on("submit", dice.choice(MIX)) for _ in range(dice.randrange(3))]
        gateway.script(f"{PROMPT} {number}", faults=planned)
    async with quick_client(gateway, timeouts=Timeouts(read=0.2)) as client:
        without_pauses(client)
        calls = [client.generate(f"{PROMPT} {number}") for number in range(60)]
        outcomes: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
    assert gateway.duplicates == ()
    accepted = {one.id for one in outcomes if not isinstance(one, BaseException)}
    doubts = [one for one in outcomes if isinstance(one, SubmissionInDoubt)]
    assert accepted <= {task.task_id for task in gateway.tasks}
    assert len(accepted) <= gateway.submitted <= len(accepted) + len(doubts)
    assert len(accepted) + len(doubts) == 60
