"""One client object in three `asyncio.run(...)` calls: what it reports, and the jobs that exist."""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # the folder may be missing in safe-path mode

from _common import HAS_PEER, IMAGE, KEY, RawRequest, accepted, serving, table

CALLS: Final = 3
STRICT: Final = ("-X", "dev", "-W", "error")
"""Every warning is an error, and what asyncio notices in debug mode is reported."""


def by_ours(url: str) -> list[str]:
    """Submit with one client of ours, which is not closed."""
    from fuhu_runway import Client

    client = Client(KEY, base_url=url)

    async def submit() -> str:
        return (await client.generate("a kitten")).id

    return [result_of(submit) for _ in range(CALLS)]


def by_peer(url: str) -> list[str]:
    """Submit with one client of runwayml, which is not closed."""
    import runwayml

    client = runwayml.AsyncRunwayML(api_key=KEY, base_url=url)

    async def submit() -> str:
        made = await client.image_to_video.create(
            model="gen4_turbo", prompt_image=IMAGE, ratio="1280:720"
        )
        return made.id

    return [result_of(submit) for _ in range(CALLS)]


def result_of(submit: Callable[[], Coroutine[Any, Any, str]]) -> str:
    """Run *submit* in a loop of its own, and return the id of the job or the name of the error."""
    try:
        return asyncio.run(submit())
    except Exception as raised:  # noqa: BLE001  (any error is a result)
        return type(raised).__name__


class Side(NamedTuple):
    """One client, and the interpreter it runs in."""

    submit: Callable[[str], list[str]]
    options: Sequence[str] = ()


SIDES: Final[Mapping[str, Side]] = {
    "fuhu_runway": Side(by_ours, STRICT),
    **({"runwayml": Side(by_peer)} if HAS_PEER else {}),
}


class Outcome(NamedTuple):
    """What one side reports, and what there is."""

    reported: list[str]
    jobs: list[str]
    noise: str

    @property
    def is_right(self) -> bool:
        """Whether each call made one job, its caller knows its id, and nothing was remarked."""
        return len(self.jobs) == CALLS and self.reported == self.jobs and not self.noise


async def trial(name: str) -> Outcome:
    """Run one side in a process of its own, against a gateway in this one."""
    jobs: list[str] = []

    async def answer(request: RawRequest) -> bytes:
        jobs.append(f"221c136d-7888-43c3-acd3-{len(jobs):012}")
        return accepted(request, jobs[-1])

    async with serving(answer) as url:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *SIDES[name].options, __file__, name, url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, noise = await process.communicate()
    return Outcome(json.loads(out or "[]"), jobs, noise.decode())


async def main() -> int:
    """Print the table; 1 if ours lost a job, made one too many, or warned."""
    outcomes = {name: await trial(name) for name in SIDES}
    print(f"One client, {CALLS} calls of asyncio.run, one submit in each:\n")
    rows = [
        (
            name,
            str(sum(job in outcome.jobs for job in outcome.reported)),
            str(len(outcome.jobs)),
            f"{len(outcome.noise.splitlines())} lines",
            " ".join(SIDES[name].options),
        )
        for name, outcome in outcomes.items()
    ]
    print(table([("client", "reported", "jobs", "standard error", "interpreter"), *rows]))
    ours = outcomes["fuhu_runway"]
    print(f"\nOurs is {'right' if ours.is_right else 'WRONG'}.", ours.noise)
    return 0 if ours.is_right else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(SIDES[sys.argv[1]].submit(sys.argv[2])))
    else:
        sys.exit(asyncio.run(main()))
