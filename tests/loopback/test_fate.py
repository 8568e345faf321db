import asyncio
import random
from typing import Any

import aiohttp
import pytest
from support.clients import QUICK_RETRY, EventRecorder, quick_client, without_pauses
from support.clock import RecordingClock
from support.secrets import secrets_in
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
from fuhu_runway.testing.faults import Fault, Response

PROMPT = "a marked kitten"
SECRETS = ("marked", "127.0.0.1")
NO_ID = '{"code": 200, "msg": "success", "data": {"task_id": ""}, "exec_time": 1}'

# The failures in which the gateway accepted the job and the response was lost.
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
    "30 MB answer": (faults.Chunked(megabytes=30), UnreadableReply),
    "missing id": (Response(200, NO_ID, accepted=True), UnreadableReply),
    "no JSON": (faults.not_json(accepted=True), UnreadableReply),
    "empty answer": (Response(200, "", accepted=True), UnreadableReply),
}


async def refusal(client: Client, kind: type[RunwayError]) -> RunwayError:
    """Return the error that a submit raises, which contains no secret."""
    with pytest.raises(kind) as caught:
        await client.generate(PROMPT)
    assert secrets_in(caught.value, SECRETS) == []
    return caught.value


@pytest.mark.parametrize(("fault", "cause"), IN_DOUBT.values(), ids=IN_DOUBT.keys())
@pytest.mark.parametrize("borrowed", [False, True], ids=["own session", "borrowed session"])
async def test_a_lost_answer_is_one_job_in_doubt(
    gateway: Simulator,
    fault: Fault,
    cause: type[RunwayError],
    borrowed: bool,
) -> None:
    """If the response is lost, one request was sent, one job exists, and it is in doubt."""
    gateway.fault("submit", fault, times=None)
    recorder, session = EventRecorder(), aiohttp.ClientSession() if borrowed else None
    timeouts = Timeouts(read=0.05) if isinstance(fault, faults.Hang) else Timeouts()
    async with quick_client(
        gateway, hooks=[recorder], timeouts=timeouts, session=session
    ) as client:
        error = await refusal(client, SubmissionInDoubt)
        if session is not None:
            await session.close()
    assert gateway.submitted == 1
    assert len(gateway.requests) == 1
    assert type(error.__cause__) is cause
    assert "may have been accepted" in str(error)
    assert recorder.all(RetryScheduled) == []


@pytest.mark.parametrize(
    "fault", [faults.drop_before_accepting(), faults.Hang()], ids=["drop", "hang"]
)
async def test_a_request_lost_before_it_was_accepted_is_in_doubt_too(
    gateway: Simulator, fault: Fault
) -> None:
    """The client cannot see the difference, so it does not retry, and no job exists."""
    gateway.fault("submit", fault, times=None)
    async with quick_client(gateway, timeouts=Timeouts(read=0.05)) as client:
        error = await refusal(client, SubmissionInDoubt)
    assert (gateway.submitted, len(gateway.requests)) == (0, 1)
    assert isinstance(error.__cause__, NoReply)


@pytest.mark.parametrize("status", [500, 502, 504])
async def test_a_5xx_without_a_job_is_in_doubt_too(gateway: Simulator, status: int) -> None:
    """A 5xx does not prove that the job was not accepted."""
    gateway.fault("submit", faults.server_error(status), times=None)
    async with quick_client(gateway) as client:
        await refusal(client, SubmissionInDoubt)
    assert (gateway.submitted, len(gateway.requests)) == (0, 1)


async def test_a_refused_connection_is_retried_and_then_raised() -> None:
    """After all attempts of the policy it is `NotSent`, and nothing was charged."""
    recorder = EventRecorder()
    address = f"http://127.0.0.1:{free_port()}"
    async with Client("sk-marked", base_url=address, retry=QUICK_RETRY, hooks=[recorder]) as client:
        error = await refusal(client, NotSent)
    assert "Nothing was charged" in str(error)
    assert [event.attempt for event in recorder.all(RetryScheduled)] == [1, 2, 3, 4]


async def test_a_gateway_that_comes_back_gets_the_job_once(gateway: Simulator) -> None:
    """A refused connection is retried until the gateway accepts it, and one job exists."""

    class Restarting(RecordingClock):
        async def sleep(self, delay: float) -> None:
            await super().sleep(delay)
            if len(self.slept) == 3:
                await gateway.start()

    async with quick_client(gateway) as client:
        clock = without_pauses(client)
        clock.__class__ = Restarting
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
async def test_a_429_is_retried_after_its_retry_after(gateway: Simulator, fault: Fault) -> None:
    """`Retry-After: 3` in each of its forms is a delay of three seconds; then one job exists."""
    gateway.fault("submit", fault, times=2)
    async with quick_client(gateway) as client:
        clock = without_pauses(client)
        task = await client.generate(PROMPT)
    assert clock.slept == [3.0, 3.0]
    assert [one.task_id for one in gateway.tasks] == [task.id]


@pytest.mark.usefixtures("virtual")
async def test_a_429_without_retry_after_backs_off(gateway: Simulator) -> None:
    """With no body and no header, the delays are drawn from growing ranges."""
    gateway.fault("submit", faults.empty_429(), times=4)
    policy = RetryPolicy(first=1.0, factor=2.0, max_delay=4.0)
    async with quick_client(gateway, retry=policy) as client:
        clock = without_pauses(client)
        await client.generate(PROMPT)
    assert len(clock.slept) == 4
    assert all(0 <= delay <= limit for delay, limit in zip(clock.slept, (1, 2, 4, 4), strict=True))
    assert gateway.submitted == 1


async def test_a_429_is_raised_after_the_last_attempt(gateway: Simulator) -> None:
    """The error has the gateway's status and delay, and no job exists."""
    gateway.fault("submit", faults.TooManyRequests(3), times=None)
    async with quick_client(gateway) as client:
        clock = without_pauses(client)
        error = await refusal(client, RateLimited)
    assert isinstance(error, RateLimited)
    assert (error.status, error.retry_after, clock.slept) == (429, 3.0, [3.0] * 4)
    assert (gateway.submitted, len(gateway.requests)) == (0, 5)


async def test_a_retry_after_above_the_limit_is_raised(gateway: Simulator) -> None:
    """A delay longer than `max_retry_after` is raised and not waited for."""
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
    "midjourney": (faults.known("midjourney"), OutOfCredits),
    "nested": (faults.nested_error(400), InvalidRequest),
}


@pytest.mark.parametrize(("fault", "kind"), FINAL.values(), ids=FINAL.keys())
async def test_a_final_refusal_is_not_retried(
    gateway: Simulator, fault: Fault, kind: type[GatewayError]
) -> None:
    """It raises its error without a delay, and no job exists."""
    gateway.fault("submit", fault, times=None)
    async with quick_client(gateway) as client:
        clock = without_pauses(client)
        error = await refusal(client, kind)
    assert not isinstance(error, SubmissionInDoubt)
    assert "Nothing was charged" in str(error)
    assert (gateway.submitted, len(gateway.requests), clock.slept) == (0, 1, [])


async def test_a_model_without_a_channel_is_retried_twice(gateway: Simulator) -> None:
    """503 `model_not_found` may be permanent (api-facts 5.1)."""
    gateway.fault("submit", faults.model_not_found(), times=None)
    async with quick_client(gateway, retry=RetryPolicy(attempts=50)) as client:
        clock = without_pauses(client)
        await refusal(client, ModelUnavailable)
    assert (gateway.submitted, len(gateway.requests), len(clock.slept)) == (0, 3, 2)


async def test_a_model_that_comes_back_gets_the_job_once(gateway: Simulator) -> None:
    """Two refusals, then an acceptance: one job exists."""
    gateway.fault("submit", faults.model_not_found(), times=2)
    async with quick_client(gateway) as client:
        await client.generate(PROMPT)
    assert (gateway.submitted, len(gateway.requests)) == (1, 3)


MIX: list[Fault] = [
    *(fault for fault, _ in IN_DOUBT.values() if not isinstance(fault, faults.Chunked)),
    *FORMS,
    faults.model_not_found(),
    faults.drop_before_accepting(),
]


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize("seed", range(3))
async def test_no_mix_of_faults_makes_two_jobs_of_one(gateway: Simulator, seed: int) -> None:
    """Of sixty submits under random faults, each makes at most one job, or is in doubt."""
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
