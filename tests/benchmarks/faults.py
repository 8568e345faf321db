"""One submit, one fault: how many billable jobs exist afterwards, and what is reported."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # the folder may be missing in safe-path mode

from _common import HAS_PEER, IMAGE, KEY, RawRequest, accepted, reply, serving, table

from fuhu_runway import Client, Timeouts, errors

PAUSE: Final = 3
TOLERANCE: Final = 0.2
A_TASK: Final = "a task"


class Gateway:
    """The billable jobs, and how long the client paused when it had to."""

    def __init__(self) -> None:
        self.jobs = 0
        self.refused_at: float | None = None
        self.waited: float | None = None

    def make_job(self, request: RawRequest) -> bytes:
        """Make a job, and return the response with its id."""
        self.jobs += 1
        return accepted(request, f"221c136d-7888-43c3-acd3-{self.jobs:012}")


Fault = Callable[[Gateway, RawRequest], Awaitable[bytes | None]]


def job_then(answer: bytes | None) -> Fault:
    """Return the fault of a gateway that makes a job for each request, and then fails."""

    async def fault(gateway: Gateway, request: RawRequest) -> bytes | None:
        gateway.make_job(request)
        return answer

    return fault


def refused_once(form: Callable[[], str]) -> Fault:
    """Return the fault of a gateway that first sends a 429, with a Retry-After in this *form*."""

    async def fault(gateway: Gateway, request: RawRequest) -> bytes:
        if gateway.refused_at is not None:
            gateway.waited = time.monotonic() - gateway.refused_at
            return gateway.make_job(request)
        # A date has whole seconds only. At the start of one, the pause is the same by the
        # response's own Date and by any clock.
        await asyncio.sleep(1 - time.time() % 1)
        gateway.refused_at = time.monotonic()
        return reply(429, {"error": {"message": "too many requests"}}, {"Retry-After": form()})

    return fault


async def no_fault(gateway: Gateway, request: RawRequest) -> bytes:
    """Accept the request without a fault."""
    return gateway.make_job(request)


async def lost_on_the_way(_gateway: Gateway, _asked: RawRequest) -> bytes:
    """Close the connection; to the client this is the same as if a job had been made."""
    return b""


def error(status: int) -> bytes:
    """Return an error as a gateway words it, or for 502 the page of a proxy before it."""
    if status == HTTPStatus.BAD_GATEWAY:
        return reply(status, "<html><h1>502 Bad Gateway</h1></html>")
    return reply(status, {"error": {"message": "internal error", "type": "new_api_error"}})


class Case(NamedTuple):
    """One fault, and its expected outcome."""

    name: str
    fault: Fault
    jobs: int = 1
    reported: str = errors.SubmissionInDoubt.__name__
    waits: float | None = None
    read_timeout: float = 60.0
    opens_after: float = 0.0


CASES: Final = (
    Case("job made, connection dies", job_then(b"")),
    Case("job made, HTTP 500", job_then(error(500))),
    Case("job made, HTTP 502", job_then(error(502))),
    Case("job made, read timeout", job_then(None), read_timeout=0.5),
    Case(f"429, Retry-After: {PAUSE}", refused_once(lambda: str(PAUSE)), 1, A_TASK, PAUSE),
    Case(
        f"429, HTTP date in {PAUSE} s",
        refused_once(lambda: formatdate(round(time.time()) + PAUSE, usegmt=True)),
        1,
        A_TASK,
        PAUSE,
    ),
    Case("connection refused at first", no_fault, 1, A_TASK, opens_after=0.2),
    # A client that retries here also retries the first row: the two cannot be told apart.
    Case("no job made, connection dies", lost_on_the_way, 0),
)


async def by_ours(url: str, read_timeout: float) -> str:
    """Submit with our client, and return what its user sees."""
    async with Client(KEY, base_url=url, timeouts=Timeouts(read=read_timeout)) as client:
        try:
            await client.generate("a kitten")
        except errors.RunwayError as raised:
            return type(raised).__name__
    return A_TASK


async def by_peer(url: str, read_timeout: float) -> str:
    """Submit with runwayml, and return what its user sees."""
    import httpx
    import runwayml

    timeout = httpx.Timeout(60.0, read=read_timeout)
    async with runwayml.AsyncRunwayML(api_key=KEY, base_url=url, timeout=timeout) as client:
        try:
            await client.image_to_video.create(
                model="gen4_turbo", prompt_image=IMAGE, ratio="1280:720"
            )
        except runwayml.RunwayMLError as raised:
            return type(raised).__name__
    return A_TASK


class Outcome(NamedTuple):
    """The outcome of one submit."""

    jobs: int
    reported: str
    waited: float | None

    def __str__(self) -> str:
        waited = "" if self.waited is None else f", waited {self.waited:.2f} s"
        return f"{self.jobs}: {self.reported}{waited}"

    def is_right(self, case: Case) -> bool:
        """Whether it is the expected outcome of *case*."""
        if (self.jobs, self.reported) != (case.jobs, case.reported):
            return False
        if case.waits is None:
            return True
        return self.waited is not None and abs(self.waited - case.waits) <= TOLERANCE


async def trial(case: Case, submit: Callable[[str, float], Awaitable[str]]) -> Outcome:
    """Let one client submit once to a gateway with one fault."""
    gateway = Gateway()

    async def answer(request: RawRequest) -> bytes | None:
        return await case.fault(gateway, request)

    async with serving(answer, opens_after=case.opens_after) as url:
        reported = await submit(url, case.read_timeout)
    return Outcome(gateway.jobs, reported, gateway.waited)


async def main() -> int:
    """Print the table; exit with 1 if our column is wrong."""
    clients = {"fuhu_runway": by_ours, **({"runwayml": by_peer} if HAS_PEER else {})}
    trials = [[trial(case, submit) for submit in clients.values()] for case in CASES]
    outcomes = [await asyncio.gather(*row) for row in trials]
    print('Billable jobs after one call of "submit", what its user saw, and the pause kept:\n')
    rows = [
        (case.name, str(case.jobs), *map(str, row))
        for case, row in zip(CASES, outcomes, strict=True)
    ]
    print(table([("fault", "right", *clients), *rows]))
    wrong = [
        case.name for case, row in zip(CASES, outcomes, strict=True) if not row[0].is_right(case)
    ]
    print(f"\nOurs is right in {len(CASES) - len(wrong)} of {len(CASES)}.", *wrong, sep="\nWrong: ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
