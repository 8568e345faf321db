"""
What becomes of 300 prompts if a gateway loses the answers to one submit in seven.

Every tenth answer is lost after the task was accepted, one in twenty before. Some prompts are
equal, and another program uses the same account with another key. The gateway is a process of its
own, and so is the batch, which is run until nothing is left to do.
"""

import argparse
import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import aiohttp
import attrs

sys.path.insert(0, str(Path(__file__).parent))  # the folder may be missing in safe-path mode

from _common import table

from fuhu_runway import Account, Client, PollPolicy, Timeouts
from fuhu_runway.errors import SubmissionInDoubt
from fuhu_runway.journal import Job, JobState, Journal

AFTER: Final = 0.10
BEFORE: Final = 0.05
SPEED: Final = 100
LATE: Final = 4.0
"""Seconds after which a task is in the lists: ten times as long as the simulator takes for it."""
ROUNDS: Final = 10
"""How often the batch is run at most: what is sent again may be lost again."""
FRESH: Final = 2
"""How many prompts each further round adds: nothing is proven about a submission on its own."""
USED: Final = 11.0
"""How long before the batch the key is used, in seconds: a log says nothing before its first row,
and instants may differ by ten seconds."""
CONFIG: Final = """
points = 1e9

[lists]
delay = 30.0
"""


def prompts(count: int) -> Iterator[str]:
    """Return the prompts of the batch: every fifth is the same as another four of them."""
    for number in range(count):
        yield f"a kitten, take {number // 25 if number % 5 == 0 else 1000 + number}"


# The batch, which may be killed.


def client(folder: Path, *, with_account: bool) -> Client:
    """Return a client that knows after some seconds what the lists will not show any more."""
    account = Account.from_env() if with_account else None
    return Client(
        journal=folder / "run.db",
        account=account and attrs.evolve(account, search_seconds=2.0),
        timeouts=Timeouts(late=LATE),
        polling=PollPolicy(first=0.2, max_interval=0.5),
    )


async def work(folder: Path, count: int, *, with_account: bool) -> None:
    """Run the batch, and print what is in doubt after it."""
    async with client(folder, with_account=with_account) as runway:
        print("begun", flush=True)
        async for _ in runway.generate_many(
            prompts(count), in_flight=16, download_to=folder / "clips"
        ):
            pass
        report = await runway.reconcile()
    print(json.dumps(report.as_dict()), flush=True)


# The gateway and another program.


@contextmanager
def gateway(folder: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the addresses of a gateway in a process of its own."""
    Path(folder, "simulator.toml").write_text(CONFIG, encoding="utf-8")
    options = ("--json", "--until-stdin-closes", "--speed", str(SPEED), "--seed", str(seed))
    with subprocess.Popen(
        [sys.executable, "-m", "fuhu_runway", "simulate", *options, "--config", "simulator.toml"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
    ) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())


async def another_program(url: str, texts: Sequence[str], random: Random) -> None:
    """Submit some of *texts* with another key of the account, until cancelled."""
    async with Client("sk-another-program", base_url=url) as runway:
        while True:
            with suppress(SubmissionInDoubt):  # its answers are lost as well
                await runway.generate(random.choice(texts))
            await asyncio.sleep(random.uniform(0.1, 0.6))


# One run of all rounds.


@attrs.define(kw_only=True)
class Figures:
    """What is left when nothing is left to do."""

    submits: int = 0
    lost: int = 0
    kills: int = 0
    rounds: int = 0
    paid_twice: int = 0
    lost_clips: int = 0
    foreign: int = 0
    doubts: int = 0
    charged: int = 0
    choices: int = 0
    untold: int = 0
    seconds: float = 0.0


@attrs.define
class Run:
    """One gateway, one batch, and what is asked of both."""

    folder: Path
    count: int
    kills: int
    with_account: bool
    equal: bool
    random: Random
    #: The task that the key was used for before.
    earlier: str = ""
    urls: dict[str, Any] = attrs.field(factory=dict)
    report: dict[str, Any] = attrs.field(factory=dict)

    async def control(self, path: str, body: object = None) -> Any:
        """Ask the simulator's control API."""
        url = f"{self.urls['control_url']}/{path}"
        async with (
            aiohttp.ClientSession() as session,
            session.request("GET" if body is None else "POST", url, json=body) as response,
        ):
            return await response.json()

    async def measure(self, seed: int) -> Figures:
        """Run the batch until it is done, and count what was paid for."""
        figures, begun = Figures(), time.monotonic()
        with gateway(self.folder, seed) as self.urls:
            async with Client(self.urls["api_key"], base_url=self.urls["base_url"]) as runway:
                self.earlier = (await runway.generate("a foal")).id
            await asyncio.sleep(USED)
            for key, share in ((True, AFTER), (False, BEFORE / (1 - AFTER))):
                fault = {"kind": "Drop", "accepted": key}
                body = {"where": "submit", "fault": fault, "times": None, "share": share}
                await self.control("faults", body)
            await self.control(
                "keys", {"key": "sk-another-program", "user_id": self.urls["user_id"]}
            )
            texts = [*prompts(self.count)] if self.equal else ["a puppy", "a kitten"]
            another = asyncio.create_task(
                another_program(self.urls["base_url"], texts, Random(seed))
            )
            for _ in range(self.kills):
                figures.kills += await self.run_batch(self.random.uniform(0.1, 1.2))
            for figures.rounds in range(1, ROUNDS + 1):
                self.count += FRESH * (figures.rounds > 1)
                await self.run_batch(None)
                choices = {one["key"] for one in self.report["left"] if one["task_ids"]}
                left = [job for job in await self.jobs() if job.state is not JobState.SAVED]
                if choices.issuperset(job.key for job in left) or not self.with_account:
                    break
                await asyncio.sleep(LATE)
            if not self.with_account:
                # By now the log has every charge.
                await asyncio.sleep(LATE)
                await self.run_batch(None, count=0)
            another.cancel()
            await asyncio.gather(another, return_exceptions=True)
            await self.count_all(figures)
        figures.seconds = time.monotonic() - begun
        return figures

    async def run_batch(self, kill_after: float | None, count: int | None = None) -> bool:
        """Run the batch to its end, or kill it; return whether it was killed."""
        words = [
            "--work",
            str(self.folder),
            "--number",
            str(self.count if count is None else count),
        ]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, *words, *([] if self.with_account else ["--key-alone"])),
            stdout=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "FUHU_BASE_URL": self.urls["base_url"],
                "FUHU_API_KEY": self.urls["api_key"],
                "FUHU_ACCESS_TOKEN": self.urls["access_token"],
                "FUHU_USER_ID": str(self.urls["user_id"]),
            },
        )
        assert process.stdout is not None
        await process.stdout.readline()
        if kill_after is not None:
            await asyncio.sleep(kill_after)
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
        text = (await process.stdout.read()).decode()
        code = await process.wait()
        if code == 0:
            self.report = json.loads(text)
        elif kill_after is None:
            raise RuntimeError(f"the batch ended with {code}")
        return code != 0

    async def jobs(self) -> list[Job]:
        journal = Journal(self.folder / "run.db")
        try:
            return [*await journal.jobs()]
        finally:
            await journal.aclose()

    async def count_all(self, figures: Figures) -> None:
        """Compare the journal and the files with what the gateway was paid for."""
        tasks = (await self.control("tasks"))["tasks"]
        ours = {one["task_id"]: one for one in tasks if one["key_name"] == "test_key"}
        del ours[self.earlier]
        requests = (await self.control("requests?where=submit"))["requests"]
        jobs, wanted = await self.jobs(), Counter(prompts(self.count))
        paid = Counter(one["prompt"] for one in ours.values())
        saved = {job.task_id for job in jobs if job.state is JobState.SAVED}
        doubts = [job for job in jobs if job.state is JobState.IN_DOUBT]
        figures.submits = len(requests)
        figures.lost = sum(one["fault"] is not None for one in requests)
        figures.paid_twice = sum((paid - wanted).values())
        figures.foreign = len(saved - ours.keys())
        # A task that a person has to choose is in doubt, and not lost.
        named = {task_id for one in self.report["left"] for task_id in one["task_ids"]}
        unsaved = len(ours.keys() - saved - named)
        files = len({path.stem for path in (self.folder / "clips").glob("*.mp4")})
        figures.doubts = len(doubts)
        left = {one["key"]: one for one in self.report["left"]}
        figures.charged = sum(one["is_charged"] for one in left.values())
        figures.choices = sum(bool(one["task_ids"]) for one in left.values())
        figures.untold = len(left) - figures.charged - figures.choices
        figures.untold += len({job.key for job in doubts} - left.keys())
        # Every task of ours that no clip has must be a doubt that is known to be charged.
        figures.lost_clips = unsaved - (0 if self.with_account else figures.charged)
        figures.lost_clips = max(0, figures.lost_clips) + len(saved) - files


def is_right(figures: Figures, *, with_account: bool, equal: bool) -> bool:
    """
    Return whether a run kept what is promised.

    An equal prompt of another program in the same second may be a choice for a person.
    """
    wrong = figures.paid_twice + figures.lost_clips + figures.foreign + figures.untold
    return not wrong and not (with_account and figures.doubts - figures.choices * equal)


async def main(count: int, kills: int, seeds: Sequence[int], *, equal: bool) -> bool:
    """Print a line for each variant, and return whether all are right."""
    heads = ("seed", "batch", "kills", "submits", "lost", "rounds", "paid twice", "clips lost")
    rows: list[Sequence[str]] = [
        (*heads, "of others", "doubts", "charged", "choices", "not told", "seconds", "")
    ]
    ok = True
    for seed in seeds:
        for with_account, often in ((True, 0), (True, kills), (False, 0)):
            with tempfile.TemporaryDirectory() as folder:
                run = Run(Path(folder), count, often, with_account, equal, Random(seed))
                one = await run.measure(seed)
            right = is_right(one, with_account=with_account, equal=equal)
            ok = ok and right
            name = "with the account" if with_account else "with the key alone"
            numbers = (one.kills, one.submits, one.lost, one.rounds, one.paid_twice)
            more = (one.lost_clips, one.foreign, one.doubts, one.charged, one.choices, one.untold)
            figures = [str(number) for number in (*numbers, *more)]
            rows.append(
                [str(seed), name, *figures, f"{one.seconds:.0f}", "right" if right else "WRONG"]
            )
            for left in run.report["left"]:
                print(f"  in doubt: {left['reason']} ({len(left['task_ids'])} tasks)")
    print(f"{count} prompts\n{table(rows)}")
    return ok


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=300, help="how many prompts")
    parser.add_argument("--kills", type=int, default=30, help="how often the batch is killed")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1])
    parser.add_argument(
        "--equal", action="store_true", help="let the other program send the same prompts"
    )
    parser.add_argument("--work", type=Path, help="be the batch in this folder")
    parser.add_argument("--key-alone", action="store_true", help="without the account's token")
    given = parser.parse_args()
    # Each doubt is a warning.
    logging.disable(logging.WARNING)
    if given.work is not None:
        asyncio.run(work(given.work, given.number, with_account=not given.key_alone))
    else:
        sys.exit(not asyncio.run(main(given.number, given.kills, given.seeds, equal=given.equal)))
