import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
from aiohttp import web

from fuhu_runway.testing import Callbacks, LedgerEntry, Simulator, TaskView, faults, read_ledger

BODY = {"callback_url": "https://callback.invalid/", "prompt": "a kitten", "model": "gen4"}
GENERATE = "/runway/pro/generate"

# A gateway in another process, which prints its URL once it answers.
PROGRAM = """
import asyncio, sys
from fuhu_runway.testing import Simulator, faults

async def main():
    gateway = Simulator(state_file=sys.argv[1])
    if "hang" in sys.argv:
        gateway.fault("submit", faults.Hang(accepted=True))
    await gateway.start()
    print(gateway.base_url, flush=True)
    await gateway.serve_forever()

asyncio.run(main())
"""


@attrs.define
class Caller:
    session: aiohttp.ClientSession

    async def send(self, path: str, body: dict[str, Any]) -> tuple[int, str]:
        async with self.session.post(path, json=body) as response:
            return response.status, await response.text()

    async def start(self, **changes: Any) -> str:
        status, text = await self.send(GENERATE, BODY | changes)
        assert status == 200, text
        return str(json.loads(text)["data"]["task_id"])

    async def shown(self, task_id: str) -> dict[str, Any]:
        status, text = await self.send("/runway/feed", {"task_id": task_id})
        assert status == 200, text
        data: dict[str, Any] = json.loads(text)["data"]
        return data


@asynccontextmanager
async def calling(url: str, key: str = "sk-simulated") -> AsyncIterator[Caller]:
    """Yield a caller with *key* of the gateway at *url*."""
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        yield Caller(session)


@asynccontextmanager
async def running(path: Path | None, **options: Any) -> AsyncIterator[tuple[Simulator, Caller]]:
    """Yield a caller of a gateway that keeps its state at *path*."""
    async with (
        Simulator(state_file=path, **options) as gateway,
        calling(gateway.base_url) as caller,
    ):
        yield gateway, caller


@contextmanager
def program(path: Path, *words: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Yield a gateway in another process, killed at the end at the latest."""
    command = [sys.executable, "-c", PROGRAM, str(path), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


async def until(holds: Callable[[], object]) -> None:
    """Let time pass until *holds* returns true."""
    while not holds():  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0.002)


def kept(path: Path) -> bytes:
    """Return the contents of the state file."""
    return path.read_bytes()


def keep(path: Path, data: bytes) -> None:
    """Write *data* to the state file."""
    path.write_bytes(data)


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of the state file, parsed."""
    return [json.loads(line) for line in kept(path).splitlines()]


def pass_time(path: Path, seconds: float) -> None:
    """Shift all records of the file into the past."""
    earlier = [
        line | {name: line[name] - seconds for name in ("at", "epoch") if name in line}
        for line in lines(path)
    ]
    keep(path, "".join(json.dumps(line) + "\n" for line in earlier).encode())


def only(gateway: Simulator) -> TaskView:
    """Return the only task."""
    (task,) = gateway.tasks
    return task


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a state file."""
    return tmp_path / "state"


# What survives a restart.


async def test_without_a_file_there_is_a_ledger_in_memory() -> None:
    """A simulator without a file knows the outcome of each submit as well."""
    async with running(None) as (gateway, caller):
        task_id = await caller.start()
        assert [(entry.task_id, entry.status) for entry in gateway.ledger()] == [(task_id, 200)]


async def test_the_next_simulator_knows_the_task(path: Path) -> None:
    """Id, prompt, request, points and creation are those of the last run."""
    async with running(path) as (gateway, caller):
        task_id = await caller.start(prompt="一只小猫 \udc80")
        before, shown = only(gateway), await caller.shown(task_id)
    pass_time(path, 3600)
    async with running(path) as (gateway, caller):
        after = only(gateway)
        sent_again = await caller.shown(task_id)
        assert int(sent_again["create_time"]) == int(shown["create_time"]) - 3600
    assert (after.task_id, after.prompt, shown["prompt"]) == (task_id, "一只小猫 ?", "一只小猫 ?")
    for name in ("prompt", "action", "points", "request", "raw", "digest"):
        assert getattr(after, name) == getattr(before, name)


async def test_time_goes_on_between_runs(path: Path) -> None:
    """At speed 2, forty real seconds are eighty of a task's hundred, and fifty are all."""
    async with running(path, speed=2.0) as (_, caller):
        task_id = await caller.start()
    pass_time(path, 40)
    async with running(path, speed=2.0) as (_, caller):
        assert (await caller.shown(task_id))["status"] == "1"
    pass_time(path, 10)
    assert only(Simulator(state_file=path, speed=2.0)).state == "succeeded"


async def test_the_speed_between_runs_is_the_last_one(path: Path) -> None:
    """A new speed applies from now on, and does not undo what was reported."""
    async with running(path, speed=0.001) as (_, caller):
        await caller.start()
    async with Simulator(state_file=path, speed=100.0):
        pass
    pass_time(path, 1)
    async with running(path, speed=0.001) as (gateway, _):
        assert only(gateway).state == "succeeded"


async def test_time_never_goes_back(path: Path) -> None:
    """If the wall clock was set back between two runs, a task is only delayed."""
    async with running(path, speed=1000.0) as (gateway, caller):
        await caller.start()
        await until(lambda: only(gateway).state == "succeeded")
    pass_time(path, -3600)
    assert only(Simulator(state_file=path)).state == "succeeded"


@pytest.mark.usefixtures("virtual")
async def test_virtual_time_is_kept_as_well(path: Path) -> None:
    """The virtual time of one run counts in the next."""
    async with running(path) as (_, caller):
        await caller.start()
        await asyncio.sleep(60)
    async with running(path) as (gateway, _):
        assert only(gateway).state == "running"
        await asyncio.sleep(20)
        assert only(gateway).state == "running"
        await asyncio.sleep(20)
        assert only(gateway).state == "succeeded"


async def test_a_task_keeps_its_script_and_loses_its_faults(path: Path) -> None:
    """The ending, the reason and the hidden time survive, but faults do not."""
    async with running(path) as (gateway, caller):
        gateway.script(
            takes=700.0,
            then="fail",
            reason="moderated",
            hidden=500.0,
            progress=(3, 4),
            faults=[faults.on("feed", faults.server_error(), times=None)],
        )
        task_id = await caller.start()
        assert (await caller.send("/runway/feed", {"task_id": task_id}))[0] == 502
    async with running(path) as (_, caller):
        status, text = await caller.send("/runway/feed", {"task_id": task_id})
        assert (status, json.loads(text)["code"]) == (400, "task_not_exist")
    pass_time(path, 600)
    async with running(path) as (_, caller):
        assert (await caller.shown(task_id))["status"] == "1"
    pass_time(path, 100)
    async with running(path) as (_, caller):
        shown = await caller.shown(task_id)
        assert (shown["status"], shown["msg"], shown["refund"]) == ("2", "moderated", "320")


async def test_the_counters_go_on(path: Path) -> None:
    """Submits, duplicates, points and a refund that was due in between include all runs."""
    async with running(path, points=1000.0) as (gateway, caller):
        gateway.script(then="fail", takes=500.0)
        await caller.start()
        await caller.start()
        assert (gateway.balance, gateway.refunds) == (360.0, 0.0)
    pass_time(path, 500)
    async with running(path, points=1000.0) as (gateway, caller):
        assert (gateway.submitted, gateway.balance, gateway.refunds) == (2, 680.0, 320.0)
        await caller.start()
        assert (gateway.submitted, gateway.balance) == (3, 360.0)
        assert [len(group) for group in gateway.duplicates] == [3]


async def test_the_same_seed_gives_the_same_ids_with_a_restart_between(path: Path) -> None:
    """Ids continue after a restart, and another seed repeats none of them."""
    async with running(None, seed=7) as (_, caller):
        unbroken = [await caller.start() for _ in range(4)]
    ids = []
    for seed in (7, 7, 8, 7):
        async with running(path, seed=seed) as (_, caller):
            ids.append(await caller.start())
    assert ids[:2] == unbroken[:2]
    assert ids[3] == unbroken[3]
    assert len(set(ids)) == 4


async def test_links_survive(path: Path) -> None:
    """The signature, an expired link, its successor and the version of the file survive."""
    options = {"takes": 0.0, "video": b"\0\0\0\x08free"}

    async def get(gateway: Simulator, url: str) -> tuple[int, str | None]:
        address = gateway.cdn_url + url[url.index("/attachments") :]
        async with aiohttp.ClientSession() as session, session.get(address) as response:
            return response.status, response.headers.get("ETag")

    async with running(path, **options) as (gateway, caller):
        task_id = await caller.start()
        url = (await caller.shown(task_id))["video_url"]
        gateway.fault("download", faults.Changed())
        status, changed = await get(gateway, url)
        assert status == 200
    async with running(path, **options) as (gateway, caller):
        assert await get(gateway, url) == (200, changed)
        gateway.fault("download", faults.ExpiredLink(410))
        assert (await get(gateway, url))[0] == 410
    async with running(path, **options) as (gateway, caller):
        assert (await get(gateway, url))[0] == 410
        signed_again = (await caller.shown(task_id))["video_url"]
        assert (await get(gateway, url))[0] == 403
    async with running(path, **options) as (gateway, caller):
        assert await get(gateway, signed_again) == (200, changed)


async def test_one_simulator_may_start_several_times(path: Path) -> None:
    """Closing and starting the same simulator continues the same file."""
    async with running(path) as (gateway, caller):
        await caller.start()
    async with gateway, calling(gateway.base_url) as caller:
        await caller.start()
    assert read_ledger(path) == gateway.ledger()
    kinds = [line["kind"] for line in lines(path)]
    assert kinds == ["opened", "accepted", "answered", "closed"] * 2


# Keys.


async def test_each_key_finds_its_own_tasks_again(path: Path) -> None:
    """Accounts are known by name, and their tasks are kept until their key is added."""
    async with running(path) as (gateway, caller):
        await caller.start()
        gateway.add_key("sk-2", points=1000.0)
        gateway.add_key("sk-3", points=1000.0, name="third")
        gateway.script(then="fail", takes=0.0)
        for key in ("sk-2", "sk-3"):
            async with calling(gateway.base_url, key) as other:
                await other.start()
    async with running(path) as (gateway, caller):
        assert (gateway.submitted, gateway.refunds) == (3, 320.0)
        gateway.add_key("sk-new", points=1000.0, name="third")
        gateway.add_key("sk-2", points=1000.0, name="test_key_2")
        for key, mine in (("sk-2", 1), ("sk-new", 2)):
            async with calling(gateway.base_url, key) as other:
                for index, task in enumerate(gateway.tasks):
                    polled = await other.send("/runway/feed", {"task_id": task.task_id})
                    assert polled[0] == (200 if index == mine else 400)
        async with caller.session.get("/user/quota?key=sk-new") as response:
            keys = {key["name"]: key for key in (await response.json())["keys"]}
    assert [keys[name]["remain_quota"] for name in ("test_key_2", "third")] == [10.0, 6.8]


def test_a_key_and_a_name_are_unique() -> None:
    """A second account with the same key or name is an error that does not show the key."""
    gateway = Simulator()
    with pytest.raises(ValueError, match="already has this key") as caught:
        gateway.add_key("sk-simulated", name="other")
    assert "sk-simulated" not in str(caught.value)
    with pytest.raises(ValueError, match="already has a key named 'test_key'"):
        gateway.add_key("sk-other", name="test_key")


async def test_no_key_is_in_the_file(path: Path) -> None:
    """A key in the body is not written, and duplicates are found all the same."""
    for _ in range(2):
        async with running(path, key_style="body") as (_, caller):
            await caller.start(key="sk-simulated")
    assert b"sk-simulated" not in kept(path)
    gateway = Simulator(state_file=path)
    assert [len(group) for group in gateway.duplicates] == [2]
    assert gateway.tasks[0].request == BODY | {"key": ""}


# The ledger.


async def test_the_ledger_shows_which_submits_were_answered(path: Path) -> None:
    """Only a whole response counts, with its status; memory and file agree."""
    wrong = {
        "dropped": faults.drop_after_accepting(),
        "cut": faults.Cut(60),
        "unwell": faults.server_error(500, accepted=True),
        "huge": faults.Chunked(megabytes=1),
    }
    async with running(path) as (gateway, caller):
        for prompt, fault in wrong.items():
            gateway.script(prompt, faults=[faults.on("submit", fault)])
        for prompt in ("right", *wrong):
            try:
                await caller.send(GENERATE, BODY | {"prompt": prompt})
            except aiohttp.ClientError:
                assert prompt in {"dropped", "cut"}
        gateway.fault("submit", faults.drop_before_accepting())
        with pytest.raises(aiohttp.ClientError):
            await caller.start(prompt="never")
        ledger = gateway.ledger()
    assert {entry.prompt: (entry.answered, entry.status) for entry in ledger} == {
        "right": (True, 200),
        "dropped": (False, None),
        "cut": (False, None),
        "unwell": (True, 500),
        "huge": (True, 200),
    }
    assert read_ledger(path) == ledger == Simulator(state_file=path).ledger()


async def test_the_ledger_has_digests_and_no_prompts_in_its_repr(path: Path) -> None:
    """Equal bodies have one digest, others another, and a repr contains no prompt."""
    async with running(path) as (_, caller):
        for prompt in ("a kitten", "a kitten", "a dog"):
            await caller.start(prompt=prompt)
    first, twin, other = read_ledger(path)
    assert first.digest == twin.digest != other.digest
    assert (first.prompt, other.prompt) == ("a kitten", "a dog")
    assert first.accepted_at <= twin.accepted_at <= other.accepted_at
    assert "kitten" not in repr(first)


async def test_a_client_that_leaves_within_its_answer_was_not_answered(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that disconnects within a long answer causes no log line and no status."""
    long = faults.Response(200, "x" * 10_000_000, accepted=True)
    async with running(path) as (gateway, _):
        for fault in (long, faults.Chunked(megabytes=64)):
            gateway.fault("submit", fault)
            async with calling(gateway.base_url) as caller:
                response = await caller.session.post(GENERATE, json=BODY)
                await response.content.readany()
                response.close()
    assert [entry.answered for entry in gateway.ledger()] == [False, False]
    assert not caplog.records


# Truncated files, and other files.


async def test_the_file_may_end_anywhere(path: Path) -> None:
    """At whatever byte the file ends, the truncated line is dropped, the earlier ones are kept."""
    async with running(path) as (_, caller):
        task_id = await caller.start()
    data = kept(path)
    whole = [index + 1 for index, byte in enumerate(data) if byte == ord("\n")]
    shown = {}
    for stop in sorted({*range(0, len(data), 13), *whole, *(end - 1 for end in whole)}):
        keep(path, data[:stop])
        shown[stop] = len(read_ledger(path)), Simulator(state_file=path).submitted
    assert [shown[stop - 1] + shown[stop] for stop in whole] == [
        (0, 0, 0, 0),
        (0, 0, 1, 1),
        (1, 1, 1, 1),
        (1, 1, 1, 1),
    ]
    for stop in (9, whole[0] - 1, whole[1] - 1, whole[2] - 1):
        keep(path, data[:stop])
        async with running(path) as (gateway, caller):
            assert (await caller.start() == task_id) is (stop < whole[1])
            assert read_ledger(path) == gateway.ledger()


@pytest.mark.parametrize("content", ["sk-a-key-without-newline", "a\nlist\nof prompts\n", "[]\n"])
def test_another_file_is_not_changed(path: Path, content: str) -> None:
    """A file that is not a state file is an error without its contents, and stays unchanged."""
    path.write_text(content)
    for read in (read_ledger, lambda path: Simulator(state_file=path)):
        with pytest.raises(ValueError, match="not the state file of a simulator") as caught:
            read(path)
        assert content not in str(caught.value)
    assert path.read_text() == content


@pytest.mark.parametrize(
    "line", ["{", "[]", "7", '"x"', "{}", '{"kind": "x"}', '{"kind": "closed"}']
)
async def test_a_broken_line_is_named(path: Path, line: str) -> None:
    """An invalid line in the middle is an error with its number."""
    async with running(path) as (_, caller):
        await caller.start()
    first, *rest = kept(path).splitlines(keepends=True)
    keep(path, b"".join([first, line.encode() + b"\n", *rest]))
    with pytest.raises(ValueError, match="line 2: not a valid record"):
        read_ledger(path)


def test_a_missing_ledger_is_an_error(path: Path) -> None:
    """A simulator may start without a file, but `read_ledger` needs one."""
    with pytest.raises(FileNotFoundError):
        read_ledger(path)
    assert Simulator(state_file=path).ledger() == ()
    assert not path.exists()


async def test_a_file_has_one_simulator_at_a_time(path: Path) -> None:
    """A simulator neither starts nor accepts after another one has written to its file."""
    late = Simulator(state_file=path)
    async with Simulator(state_file=path) as gateway:
        with pytest.raises(RuntimeError, match="another simulator writes to it"):
            await late.start()
        keep(path, kept(path) + b"x")
        async with calling(gateway.base_url) as caller:
            assert (await caller.send(GENERATE, BODY))[0] == 500
        assert gateway.submitted == 0
        keep(path, kept(path)[:-1])
    assert not late.is_running
    assert [line["kind"] for line in lines(path)] == ["opened", "closed"]


async def test_an_id_that_was_not_recorded_is_not_used_again(path: Path) -> None:
    """A submit that failed before it was recorded uses up its id, also for the next run."""
    async with running(path) as (_, caller):
        await caller.start()
        data = kept(path)
        keep(path, data + b"x")
        assert (await caller.send(GENERATE, BODY))[0] == 500
        keep(path, data)
        last = await caller.start()
    async with running(path) as (_, caller):
        assert await caller.start() != last


# Callbacks.


@asynccontextmanager
async def receiving() -> AsyncIterator[tuple[str, list[str]]]:
    """Yield a receiver of callbacks, and the states that it received."""
    got: list[str] = []

    async def receive(request: web.Request) -> web.Response:
        got.append((await request.json())["status"])
        return web.Response()

    app = web.Application()
    app.router.add_post("/hook", receive)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook", got
    finally:
        await runner.cleanup()


async def test_callbacks_that_were_due_between_runs_are_sent(path: Path) -> None:
    """They are sent late, once, and a failed start loses none."""
    async with receiving() as (url, got):
        async with running(path) as (gateway, caller):
            gateway.script(progress=(0, 50))
            await caller.start(callback_url=url)
        pass_time(path, 60)
        async with Simulator() as other:
            with pytest.raises(OSError, match="in use"):
                await Simulator(state_file=path, cdn_port=other.port).start()
        async with Simulator(state_file=path):
            await until(lambda: len(got) == 2)
        pass_time(path, 60)
        async with Simulator(state_file=path):
            await until(lambda: len(got) > 2)
    assert got == ["1", "1", "3"]


async def test_a_delayed_callback_is_not_lost(path: Path) -> None:
    """The callback of an end before a restart that was due after it is sent."""
    late = Callbacks(delay=30.0, progress=False)
    async with receiving() as (url, got):
        async with running(path, callbacks=late) as (_, caller):
            await caller.start(callback_url=url)
        pass_time(path, 110)
        async with Simulator(state_file=path, callbacks=late):
            assert not got
        pass_time(path, 30)
        async with Simulator(state_file=path, callbacks=late):
            await until(lambda: got)
    assert got == ["3"]


# Killed processes.


async def test_a_kill_between_accept_and_answer_loses_no_task(path: Path) -> None:
    """A task whose submit was never answered exists once after `kill -9`, and goes on."""
    with program(path, "hang") as (url, process):
        async with calling(url) as caller:
            submitting = asyncio.create_task(caller.start())
            await until(lambda: read_ledger(path))
            process.kill()
            with pytest.raises(aiohttp.ClientError):
                await submitting
    (entry,) = read_ledger(path)
    assert not entry.answered
    pass_time(path, 100)
    with program(path) as (url, _):
        async with calling(url) as caller:
            assert (await caller.shown(entry.task_id))["status"] == "3"
            twin = await caller.start()
            # The response may arrive before the other process has recorded it.
            await until(lambda: read_ledger(path)[-1].answered)
    assert twin != entry.task_id
    assert [(one.task_id, one.answered) for one in read_ledger(path)] == [
        (entry.task_id, False),
        (twin, True),
    ]


async def test_every_known_id_survives_any_kill(path: Path) -> None:
    """Killed three times during its work, it knows every id that a client has received."""
    received: list[str] = []

    async def go_on_submitting(caller: Caller) -> None:
        while True:
            received.append(await caller.start())

    async def know(count: int) -> None:
        await until(lambda: len(received) >= count)

    for kill_at in (7, 20, 41):
        with program(path) as (url, process):
            async with calling(url) as caller:
                workers = [asyncio.create_task(go_on_submitting(caller)) for _ in range(5)]
                await know(kill_at)
                process.kill()
                ends = await asyncio.gather(*workers, return_exceptions=True)
        assert all(isinstance(end, aiohttp.ClientError) for end in ends), ends
    ledger = read_ledger(path)
    known = [entry.task_id for entry in ledger]
    assert len(set(received)) == len(received)
    assert len(set(known)) == len(known)
    assert set(received) <= set(known)
    # Accepted tasks with an unknown id were in flight to one of the five callers.
    assert len(known) - len(received) <= 3 * 5
    gateway = Simulator(state_file=path)
    assert (gateway.submitted, gateway.ledger()) == (len(known), ledger)
    assert gateway.balance == 100_000.0 - 320.0 * len(known)


def test_an_entry_is_a_plain_value() -> None:
    """An entry of the ledger can be converted to a dictionary and back."""
    entry = LedgerEntry(task_id="x", digest="y", prompt="a kitten", accepted_at=1.5, status=200)
    assert LedgerEntry(**json.loads(json.dumps(attrs.asdict(entry)))) == entry
