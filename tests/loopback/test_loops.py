from pathlib import Path

import pytest
from support import programs

from fuhu_runway.testing import AccountLists, Simulator, faults

THREE_RUNS = """
client = Client(polling=quick)

async def main():
    task = await client.generate("a marked kitten")
    print((await task.wait(timeout=30)).id)

for _ in range(3):
    asyncio.run(main())
"""

THREE_RUNS_WITH = """
client = Client(polling=quick)

async def main():
    async with client:
        task = await client.generate("a marked kitten")
        print((await task.wait(timeout=30)).id)

for _ in range(3):
    asyncio.run(main())
"""

ONE_TASK_IN_THREE_RUNS = """
client = Client(polling=quick)
task = asyncio.run(client.generate("a marked kitten"))
clip = asyncio.run(task.wait(timeout=30))
assert asyncio.run(clip.download("{folder}/clip.mp4")).exists()
print(clip.id)
"""

TWO_LOOPS_AT_ONCE = """
import threading
client = Client(polling=quick)

async def main():
    async with client:
        clip = await (await client.generate("a marked kitten"))
        print(f"{clip.id}\\n", end="")

threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""

LEFT_WAITING = """
client = Client(polling=quick)

async def main():
    task = await client.generate("a marked kitten")
    waiting = [asyncio.create_task(task.wait()) for _ in range(9)]
    await client.feed(task.id)
    print(task.id)

for _ in range(3):
    asyncio.run(main())
"""


CLOSED_DURING_A_SEARCH = """
from fuhu_runway import Account, Timeouts
is_listing = asyncio.Event()

def listen(event):
    if isinstance(event, hooks.RetryScheduled):
        is_listing.set()

client = Client(account=Account.from_env(), timeouts=Timeouts(late=0.001), hooks=[listen])

async def lose():
    asyncio.create_task(client.generate("a marked kitten", custom_id="order-7"))
    await is_listing.wait()

async def main():
    async with client:
        report = await client.reconcile()
        assert [task.id for task in client.unfinished] == [report.found[0].task_id]
        print((await client.find("order-7")).id, flush=True)

loop = asyncio.new_event_loop()
loop.run_until_complete(lose())
loop.close()
asyncio.run(main())
"""


CLOSED_IN_FLIGHT = """
from fuhu_runway.errors import SubmissionInDoubt
is_sent = asyncio.Event()

def listen(event):
    if isinstance(event, hooks.SubmissionSent):
        is_sent.set()
    if isinstance(event, hooks.SubmissionDoubted):
        print(event.error, flush=True)

client = Client(hooks=[listen], journal={journal!r})

async def lose():
    asyncio.create_task(client.generate("a marked kitten", custom_id="order-7"))
    await is_sent.wait()

loop = asyncio.new_event_loop()
loop.run_until_complete(lose())
loop.close()
del loop

async def main():
    async with client:
        try:
            await client.generate("a marked kitten", custom_id="order-7")
        except SubmissionInDoubt:
            print("in doubt", flush=True)

asyncio.run(main())
"""


ENDED_BY_A_LISTENER = """
from fuhu_runway import Journal

def listen(event):
    if isinstance(event, hooks.SubmissionSent):
        raise SystemExit

async def main():
    async with Client(hooks=[listen], journal="{folder}/run.db") as client:
        await client.generate("a marked kitten")

async def states():
    journal = Journal("{folder}/run.db")
    print(*(job.state.name for job in await journal.jobs()))
    await journal.aclose()

try:
    asyncio.run(main())
except SystemExit:
    asyncio.run(states())
"""

CLOSED_BEFORE_THE_END = """
from fuhu_runway.errors import SubmissionInDoubt

async def begin(event):
    reached = asyncio.Event()
    def listen(seen):
        if isinstance(seen, event):
            reached.set()
    client = Client(hooks=[listen])
    submitting = asyncio.create_task(client.generate("a marked kitten", custom_id="order-7"))
    await reached.wait()
    await asyncio.sleep(0.1)
    return client, submitting

async def submit(client):
    async with client:
        try:
            print((await client.generate("a marked kitten", custom_id="order-7")).id)
        except SubmissionInDoubt:
            print("doubt")

for event in (hooks.SubmissionSent, hooks.RetryScheduled):
    loop = asyncio.new_event_loop()
    client, submitting = loop.run_until_complete(begin(event))
    loop.close()
    asyncio.run(submit(client))
"""


@pytest.mark.parametrize(
    "source",
    [THREE_RUNS, THREE_RUNS_WITH, TWO_LOOPS_AT_ONCE],
    ids=["three runs", "three runs with", "three threads"],
)
async def test_one_client_in_three_loops_makes_three_jobs(gateway: Simulator, source: str) -> None:
    """Each `asyncio.run` gets its own session, and Python's dev mode does not complain."""
    ended = await programs.run(gateway, source)
    assert (ended.complaints, ended.code) == ("", 0)
    assert sorted(ended.words) == sorted(task.task_id for task in gateway.tasks)
    assert gateway.submitted == 3


async def test_one_task_in_three_loops(gateway: Simulator, tmp_path: Path) -> None:
    """Submitted in one, waited for in the next, saved in a third: one job, and no complaint."""
    ended = await programs.run(gateway, ONE_TASK_IN_THREE_RUNS.format(folder=tmp_path))
    assert (ended.complaints, ended.code) == ("", 0)
    assert ended.words == [task.task_id for task in gateway.tasks]


async def test_a_loop_that_ends_under_its_waits(gateway: Simulator) -> None:
    """Waits that were never awaited end with their loop, without a complaint."""
    gateway.script(lambda _body: True, takes=3600)
    ended = await programs.run(gateway, LEFT_WAITING)
    assert (ended.complaints, ended.code) == ("", 0)
    assert ended.words == [task.task_id for task in gateway.tasks]


async def test_a_loop_that_is_closed_during_a_search(gateway: Simulator) -> None:
    """The task of the lost response is found by another loop."""
    gateway.lists = AccountLists(refresh=0)
    gateway.fault("submit", faults.drop_after_accepting())
    gateway.fault("tasks", faults.not_json())
    ended = await programs.run(gateway, CLOSED_DURING_A_SEARCH)
    assert ended.words == [task.task_id for task in gateway.tasks], ended.complaints


@pytest.mark.parametrize("has_journal", [True, False])
async def test_a_loop_that_is_closed_during_a_request(
    gateway: Simulator, tmp_path: Path, *, has_journal: bool
) -> None:
    """The request is in doubt, and the same name is not sent again in another loop."""
    gateway.fault("submit", faults.Hang(accepted=True))
    journal = str(tmp_path / "run.db") if has_journal else None
    ended = await programs.run(gateway, CLOSED_IN_FLIGHT.format(journal=journal))
    assert ended.words == ["GeneratorExit", "in", "doubt"], ended.complaints
    assert "coroutine ignored" not in ended.complaints
    assert gateway.submitted <= 1


async def test_a_listener_that_ends_the_program_leaves_a_doubt(
    gateway: Simulator, tmp_path: Path
) -> None:
    """It did so between the row and the request, so the row may not say that it was not sent."""
    ended = await programs.run(gateway, ENDED_BY_A_LISTENER.format(folder=tmp_path))
    assert ended.words == ["IN_DOUBT"], ended.complaints


async def test_a_loop_that_is_closed_before_the_response_leaves_a_doubt(gateway: Simulator) -> None:
    """The next loop does not pay again under the same name, except for what was refused."""
    gateway.fault("submit", faults.Hang(accepted=True))
    gateway.fault("submit", faults.empty_429(100))
    ended = await programs.run(gateway, CLOSED_BEFORE_THE_END)
    _, made = gateway.tasks
    assert ended.words == ["doubt", made.task_id], ended.complaints
