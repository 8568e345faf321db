import asyncio
import errno
import gc
import itertools
import math
import os
import sys
import unicodedata
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import attrs
import pytest
from support.clock import ManualClock, settle

from fuhu_runway._budget import Budget
from fuhu_runway._clip_files import clip_name, file_name
from fuhu_runway._session.entry import Entry
from fuhu_runway.batch import Batch
from fuhu_runway.errors import (
    DownloadIncomplete,
    Fate,
    InvalidRequest,
    JournalError,
    NotSent,
    OutOfCredits,
    RunwayError,
    SubmissionInDoubt,
    TaskFailed,
    Unauthorized,
    UnexpectedError,
    UsageError,
    WaitTimeout,
)
from fuhu_runway.hooks import DownloadFinished, Hooks, TaskSettled
from fuhu_runway.items import Item, Outcome, Source, Summary, item_of
from fuhu_runway.journal import Job, JobState, Journal, Plan, fingerprint, nth, plan_of
from fuhu_runway.models import ActOne, Generation, ImageToVideo, TaskRecord, TaskState, TextToVideo

KIND: Final = ("TextToVideo", "gen4", 10)
CLIP: Final = b"a whole clip"


def failed(
    task_id: str = "t", points: float | None = 100.0, *, refunded: bool = True
) -> TaskFailed:
    """Return the error of a task that failed."""
    return TaskFailed("a", "b", "c", task_id, None, None, None, points, refunded)


def in_doubt() -> SubmissionInDoubt:
    """Return the error of a submission that got no response."""
    return SubmissionInDoubt("a", "b", "c", None, None, Fate.UNKNOWN)


@attrs.define(eq=False)
class FakeClip:
    task: "FakeTask"
    record: TaskRecord
    path: Path | None = None

    @property
    def id(self) -> str:
        return self.task.id

    async def download(self, path: Path, *, overwrite: bool) -> Path:
        home = self.task.home
        assert overwrite or not path.exists()  # noqa: ASYNC240 - a few bytes
        home.downloading.append(self.task.id)
        await home.pause("download", self.task.prompt)
        home.fail("download", self.task.prompt)
        path.write_bytes(CLIP)  # noqa: ASYNC240 - a few bytes
        home.downloading.remove(self.task.id)
        home.emit(DownloadFinished(self.task.id, len(CLIP)))
        return path


@attrs.define(eq=False)
class FakeTask:
    home: "FakeClient"
    id: str
    prompt: str

    def hand_out(self) -> None:
        self.home.handed_out.add(self.id)

    async def ended(self, timeout: float | None) -> FakeClip:
        self.home.timeouts.add(timeout)
        await self.home.pause("wait", self.prompt)
        try:
            self.home.fail("wait", self.prompt)
        except TaskFailed as end:
            self.home.emit(TaskSettled(self.id, TaskState.FAILED, 1, end.points, end.refunded))
            raise
        points = self.home.points(self.prompt)
        record = TaskRecord(self.id, TaskState.SUCCEEDED, video_url="u", points=points)
        self.home.emit(TaskSettled(self.id, record.state, 1, points, record.refunded))
        return FakeClip(self, record)


@attrs.define(eq=False)
class FakeClient:
    """Makes each clip at once, unless a step is set to wait or to fail."""

    journal: Journal | None = None
    account: None = None
    points: Callable[[str], float | None] = lambda prompt: 100.0
    #: The prompts that were submitted, in order.
    submitted: list[str] = attrs.field(factory=list)
    attached: list[str] = attrs.field(factory=list)
    #: How many tasks exist whose end was never reported.
    running: int = 0
    peak: int = 0
    downloading: list[str] = attrs.field(factory=list)
    timeouts: set[float | None] = attrs.field(factory=set)
    is_closed: bool = False
    #: The tasks whose clips were given to the reader of the outcomes.
    handed_out: set[str] = attrs.field(factory=set)

    _doors: dict[tuple[str, str], asyncio.Event] = attrs.field(factory=dict)
    _failures: dict[tuple[str, str], BaseException] = attrs.field(factory=dict)
    _clock: ManualClock = attrs.field(factory=ManualClock)

    @property
    def names(self) -> SimpleNamespace:
        return SimpleNamespace(forget=lambda _name: None)

    @property
    def settings(self) -> SimpleNamespace:
        return SimpleNamespace(clock=ManualClock())

    async def reconcile_if_possible(self) -> None:
        """Do nothing, as a client without an account."""

    def shut(self, what: str, *prompts: str) -> None:
        for prompt in prompts:
            self._doors[what, prompt] = asyncio.Event()

    async def let_through(self, what: str, *prompts: str) -> None:
        for prompt in prompts:
            self._doors[what, prompt].set()
        await settle()

    def let_fail(self, what: str, prompt: str, error: BaseException) -> None:
        self._failures[what, prompt] = error

    async def pause(self, what: str, prompt: str) -> None:
        door = self._doors.get((what, prompt))
        await (door.wait() if door else asyncio.sleep(0))

    def fail(self, what: str, prompt: str) -> None:
        if (what, prompt) in self._failures:
            raise self._failures[what, prompt]

    def emit(self, event: TaskSettled | DownloadFinished) -> None:
        if isinstance(event, TaskSettled):
            self.running -= 1
        if self.journal is not None:
            self.journal.note(event)

    def check_open(self) -> None:
        if self.is_closed:
            raise UsageError("It was closed.", "Nothing was sent or charged.", "Open it.")

    async def submit(
        self, request: Generation, *, custom_id: str | None = None, plan: Plan | None = None
    ) -> Any:
        if custom_id is not None and self.journal:
            plan = plan_of(request, f"id:{custom_id}", custom_id)
        prompt = getattr(request, "prompt", "") or ""
        entry = (
            Entry(self.journal, plan.key, self._clock, Hooks()) if self.journal and plan else None
        )
        if entry:
            await entry.sending()
        await self.pause("submit", prompt)
        self.submitted.append(prompt)
        try:
            self.fail("submit", prompt)
        except RunwayError as error:
            if entry:
                await entry.failed(error)
            raise
        task_id = f"task {len(self.submitted)} of {id(self)}"
        if entry:
            await entry.accepted(task_id)
        self.running += 1
        self.peak = max(self.peak, self.running)
        return FakeTask(self, task_id, prompt)

    def attach(self, job: Job, request: Generation) -> Any:
        assert job.task_id is not None
        self.attached.append(job.task_id)
        self.running += 1
        return FakeTask(self, job.task_id, getattr(request, "prompt", "") or "")


@pytest.fixture
def client() -> FakeClient:
    """Return a client without earlier jobs."""
    return FakeClient()


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    """Return a journal with nothing in it."""
    journal = Journal(tmp_path / "run.db")
    yield journal
    await journal.aclose()


def batch_of(client: FakeClient, source: Source, **options: Any) -> Batch:
    """Return a batch; without further options, ten jobs at a time and nothing saved."""
    given: dict[str, Any] = {
        "in_flight": 10,
        "download_to": None,
        "timeout": None,
        "max_points": None,
        "retry_failed": False,
        "overwrite": False,
    }
    return Batch(client, source, **given | options)


async def run(client: FakeClient, source: Source, **options: Any) -> list[Outcome]:
    """Return all outcomes of a batch, in the order of the input."""
    batch = batch_of(client, source, **options)
    outcomes = [outcome async for outcome in batch.outcomes()]
    assert batch.summary.done == len(outcomes)
    assert batch.summary.running == 0
    return sorted(outcomes, key=lambda outcome: outcome.index)


def prompt_of(outcome: Outcome) -> str:
    """Return the prompt of an outcome."""
    return getattr(outcome.request, "prompt", None) or ""


def names(prefix: str = "p") -> Iterator[str]:
    """Return prompts without end."""
    return (f"{prefix}{number}" for number in itertools.count())


# What goes in


def test_prompts_requests_and_items_make_items() -> None:
    """A text is a prompt for text to video, a request and an item are taken as they are."""
    act = ActOne("https://e.com/1.mp4", "https://e.com/1.png")
    item = Item(TextToVideo("c"), "id")
    assert item_of("a", 0) == Item(TextToVideo("a"))
    assert item_of(act, 1) == Item(act)
    assert item_of(item, 2) is item


@pytest.mark.parametrize("custom_id", ["", " ", "\u200b", "a\ud800", "a\0", 5])
def test_a_custom_id_that_cannot_be_stored_is_refused_when_the_item_is_made(custom_id: Any) -> None:
    """A lone surrogate in a name is found before the batch starts."""
    with pytest.raises(UsageError) as caught:
        Item(TextToVideo("c"), custom_id)
    assert caught.value.field == "custom_id"


@pytest.mark.parametrize("thing", [None, 7, b"bytes", {"prompt": "a"}])
async def test_an_entry_that_is_not_a_request_is_named_by_its_position(
    client: FakeClient, thing: object
) -> None:
    """An entry of another type, None among them, ends the batch with an error that counts it."""
    with pytest.raises(UsageError, match=rf"Entry 3 is of type {type(thing).__name__}") as caught:
        await run(client, ["a", "b", thing, "d"])
    assert caught.value.money == "Nothing was sent or charged."


async def arriving(prompts: list[str]) -> AsyncIterator[str]:
    """Yield prompts from an asynchronous source."""
    for prompt in prompts:
        yield prompt


@pytest.mark.parametrize("make", [list, iter, arriving])
async def test_an_empty_prompt_ends_the_batch(client: FakeClient, make: Callable[..., Any]) -> None:
    """An empty prompt must be a mistake: in any source, it is an error that counts it."""
    with pytest.raises(UsageError, match=r"Entry 2: prompt has no visible character") as caught:
        await run(client, make(["a", "  "]))
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(
    ("thing", "happened"),
    [(7, "The job is of type int."), (" ", "The job: prompt has no visible character.")],
)
def test_a_job_on_its_own_has_no_position(thing: Any, happened: str) -> None:
    """The error of a job that is not an entry of many counts nothing."""
    with pytest.raises(UsageError) as caught:
        item_of(thing)
    assert caught.value.happened == happened


async def test_a_batch_of_nothing_has_no_outcomes(client: FakeClient) -> None:
    """An empty source comes to its end at once."""
    assert await run(client, []) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("in_flight", value) for value in (0, -1, 2.5, True, "3", None)),
        *(("timeout", value) for value in ("60", True, -1, math.nan, [])),
        *(("max_points", value) for value in ("3", False, -0.5, math.nan)),
        *(("retry_failed", value) for value in (1, "yes", None)),
        *(("overwrite", value) for value in (0, "no", None)),
        *(("download_to", value) for value in (3, b"clips", True, "a\0b", ["clips"])),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_opened(
    client: FakeClient, tmp_path: Path, name: str, value: object
) -> None:
    """Each argument of a wrong type or size is a usage error when the batch is made."""
    given = {"download_to": tmp_path / "clips", name: value}
    with pytest.raises(UsageError, match=name) as caught:
        batch_of(client, ["a"], **given)
    assert caught.value.field == name
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "source",
    [
        "a kitten",
        b"a kitten",
        bytearray(b"a kitten"),
        {"prompt": "a kitten"},
        TextToVideo("a kitten"),
        Item(TextToVideo("a kitten")),
        None,
        7,
        names,
    ],
    ids=lambda source: type(source).__name__,
)
def test_a_single_prompt_is_not_a_source(client: FakeClient, source: Any) -> None:
    """A text, a request or a function in the place of many prompts is a usage error."""
    with pytest.raises(UsageError, match=f"prompts is of type {type(source).__name__}") as caught:
        batch_of(client, source)
    assert caught.value.field == "prompts"


def test_numbers_may_be_none_or_nothing(client: FakeClient, tmp_path: Path) -> None:
    """Zero seconds, zero points and no limits are all allowed."""
    batch_of(client, ["a"], timeout=0, max_points=0, download_to=str(tmp_path))
    batch_of(client, {"a", "b"}, timeout=None, max_points=None, in_flight=1)


@pytest.mark.parametrize("name", ["", " ", 7, b"x", "\ud800", "a\0b", "x\udcff"])
def test_a_custom_id_has_to_be_text_that_can_be_stored(name: Any) -> None:
    """Text that a database or a disk cannot hold is found when the item is made."""
    with pytest.raises(UsageError, match="custom_id "):
        Item(TextToVideo("a"), name)


def test_an_item_has_a_request() -> None:
    """A prompt alone is no request: an item with one is refused when it is made."""
    with pytest.raises(UsageError, match="request is of type str"):
        Item("a")  # type: ignore[arg-type]


async def test_an_id_names_one_job_of_a_batch(client: FakeClient) -> None:
    """The second job of the same id is not submitted, and the others are."""
    items = [
        Item(TextToVideo(prompt), name) for prompt, name in [("a", "x"), ("b", "x"), ("c", "y")]
    ]
    first, second, third = await run(client, items)
    assert isinstance(second.error, UsageError)
    assert (second.error.field, second.custom_id) == ("custom_id", "x")
    assert second.error.money == "Nothing was sent or charged."
    assert first.clip is not None
    assert third.clip is not None
    assert sorted(client.submitted) == ["a", "c"]


async def test_a_list_is_read_before_anything_is_paid(client: FakeClient) -> None:
    """What is no request in a list is found before the first request is submitted."""
    with pytest.raises(UsageError, match="Entry 3 is of type int"):
        batch_of(client, ("a", "b", 3))


async def test_a_stream_is_read_as_it_comes(client: FakeClient) -> None:
    """An entry of a stream that is not a request is raised once the jobs before it have ended."""
    async with aclosing(batch_of(client, iter(["a", 3, "c"])).outcomes()) as outcomes:
        assert prompt_of(await anext(outcomes)) == "a"
        with pytest.raises(UsageError, match="Entry 2 is of type int") as caught:
            await anext(outcomes)
    assert client.submitted == ["a"]
    # What was paid before it is not denied.
    assert caught.value.money == "Nothing was sent or charged for this entry."


async def test_a_stream_that_begins_with_a_wrong_entry_costs_nothing(client: FakeClient) -> None:
    """No job was before it, so nothing at all was charged."""
    with pytest.raises(UsageError, match="Entry 1 is of type int") as caught:
        await run(client, iter([3, "b"]))
    assert client.submitted == []
    assert caught.value.money == "Nothing was sent or charged."


def test_the_folder_is_checked_before_anything_is_sent(client: FakeClient, tmp_path: Path) -> None:
    """A folder that cannot be made is refused when the batch is made; one that can is made."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a folder"):
        batch_of(client, ["a"], download_to=tmp_path / "file" / "clips")
    batch_of(client, ["a"], download_to=tmp_path / "clips")
    assert list(tmp_path.iterdir()) != []
    assert list((tmp_path / "clips").iterdir()) == []


# Reading the source


def counting(taken: list[str]) -> Iterator[str]:
    """Return prompts without end, and write down which were taken."""
    for name in names():
        taken.append(name)
        yield name


async def counting_slowly(taken: list[str]) -> AsyncIterator[str]:
    """Return the same from an asynchronous source."""
    for name in counting(taken):
        await asyncio.sleep(0)
        yield name


@pytest.mark.parametrize("source", [counting, counting_slowly])
async def test_the_source_is_read_only_as_far_as_there_is_room(
    client: FakeClient, source: Callable[[list[str]], Source]
) -> None:
    """Of a source without end, as many are read as jobs may exist and outcomes were taken."""
    taken: list[str] = []
    batch = batch_of(client, source(taken), in_flight=4)
    async with aclosing(batch.outcomes()) as outcomes:
        for number in range(20):
            await anext(outcomes)
            await settle()
            assert len(taken) == 4 + number
            assert batch.summary.running <= 4
    assert client.peak <= 4


async def test_unread_outcomes_make_no_room(client: FakeClient) -> None:
    """If no outcomes are read, no more than `in_flight` jobs are submitted."""
    batch = batch_of(client, names(), in_flight=3)
    async with aclosing(batch.outcomes()) as outcomes:
        await anext(outcomes)
        for _ in range(10):
            await settle()
        assert len(client.submitted) == 3


async def test_no_more_jobs_exist_than_may(client: FakeClient) -> None:
    """A hundred jobs, seven at a time: seven is reached and never passed."""
    await run(client, itertools.islice(names(), 100), in_flight=7)
    assert (len(client.submitted), client.peak) == (100, 7)


def held() -> tuple[int, int]:
    """Return how many objects the interpreter keeps, and the total size of all collections."""
    gc.collect()
    things = gc.get_objects()
    kinds = (list, dict, set, deque)
    return len(things), sum(len(thing) for thing in things if type(thing) in kinds)


async def test_memory_does_not_grow_with_the_input() -> None:
    """Between the two thousandth and the twenty thousandth outcome, nothing is kept."""

    @attrs.define(eq=False)
    class Forgetful(FakeClient):
        async def submit(self, request: Generation, **_options: Any) -> Any:
            return FakeTask(self, "t", "p")

    batch = batch_of(Forgetful(), itertools.islice(names(), 20_000), in_flight=50)
    before = after = (0, 0)
    async with aclosing(batch.outcomes()) as outcomes:
        count = 0
        async for _ in outcomes:
            count += 1
            if count == 2_000:
                before = held()
            if count == 19_900:
                after = held()
    assert batch.summary.clips == count == 20_000
    assert after[0] - before[0] < 500
    assert after[1] - before[1] < 1000


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_source_that_raises_ends_the_submitting(client: FakeClient, kind: str) -> None:
    """Jobs that exist are followed to their end; then the source's own error is raised."""
    client.shut("wait", "a")

    def source() -> Iterator[str]:
        yield "a"
        raise ZeroDivisionError

    async def slow_source() -> AsyncIterator[str]:
        for prompt in source():
            yield prompt

    batch = batch_of(client, slow_source() if kind == "async" else source())

    async with aclosing(batch.outcomes()) as outcomes:
        taking = asyncio.ensure_future(anext(outcomes))
        await settle()
        assert not taking.done()
        await client.let_through("wait", "a")
        assert (await taking).clip is not None
        with pytest.raises(ZeroDivisionError):
            await anext(outcomes)


async def test_an_error_of_the_source_is_never_lost(client: FakeClient) -> None:
    """An exception of the source is raised even while the last outcome is read."""
    taken = asyncio.Event()

    async def source() -> AsyncIterator[str]:
        yield "a"
        await taken.wait()
        raise ZeroDivisionError

    async def take() -> list[Outcome]:
        found = []
        async with aclosing(batch_of(client, source()).outcomes()) as outcomes:
            async for outcome in outcomes:
                found.append(outcome)
                taken.set()
                await asyncio.sleep(0)
        return found

    with pytest.raises(ZeroDivisionError):
        await take()


FOREIGN: Final = (
    ValueError("secret"),
    UnicodeError("secret"),
    OSError("secret"),
    TimeoutError("secret"),
    KeyError(1),
)


@pytest.mark.parametrize("error", [*FOREIGN, asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("what", ["submit", "wait", "download"])
async def test_an_error_that_is_not_ours_is_an_outcome(
    client: FakeClient, tmp_path: Path, what: str, error: BaseException
) -> None:
    """Its name and place are shown, never its text; the other jobs go on."""
    client.let_fail(what, "a", error)
    first, second, third = await run(client, ["a", "b", "c"], download_to=tmp_path)
    name = type(error).__name__
    assert first.error is not None
    assert f"An unexpected {name} was raised ({__name__}, line " in first.error.happened
    assert "secret" not in str(first.error)
    assert (first.error.__cause__, first.error.__context__) == (None, None)
    if what == "submit":
        assert first.is_in_doubt
        assert first.error.money == ("It may have been accepted and charged; it is not sent again.")
    else:
        assert type(first.error) is UnexpectedError
        assert first.error.money == "The task is paid for; use its id to get the clip."
        assert first.task_id == first.error.task_id is not None
    assert second.path is not None
    assert third.path is not None


@attrs.define(eq=False)
class Odd(FakeClient):
    """A journal that raises a foreign error before, or after, it writes a row."""

    when: JobState = JobState.PLANNED

    async def submit(
        self, request: Generation, *, custom_id: str | None = None, plan: Plan | None = None
    ) -> Any:
        if getattr(request, "prompt", None) != "a":
            return await super().submit(request, custom_id=custom_id, plan=plan)
        if custom_id is not None and self.journal:
            plan = plan_of(request, f"id:{custom_id}", custom_id)
        if self.when is JobState.SUBMITTING:
            assert self.journal is not None
            assert plan is not None
            await self.journal.step(plan.key, JobState.SUBMITTING, 1.0)
        if self.when is JobState.ACCEPTED:
            await super().submit(request, custom_id=custom_id, plan=plan)
        raise ValueError


@pytest.mark.parametrize(
    ("when", "money", "again"),
    [
        (JobState.PLANNED, "Nothing was sent or charged.", ["a"]),
        (JobState.SUBMITTING, "It may have been accepted and charged; it is not sent again.", []),
        (JobState.ACCEPTED, "The task is paid for; use its id to get the clip.", []),
    ],
)
async def test_the_journal_knows_what_such_an_error_means_for_the_money(
    tmp_path: Path, when: JobState, money: str, again: list[str]
) -> None:
    """What was not sent is submitted by the next run; what was, is followed or in doubt."""
    async with remembered(tmp_path) as client:
        first, second = await run(Odd(client.journal, when=when), ["a", "b"])
        assert first.error is not None
        assert first.error.money == money
        assert (first.task_id is not None) == (when is JobState.ACCEPTED)
        assert second.clip is not None
        # The row still says SUBMITTING: this journal was not closed.
        (later, _) = await run(client, ["a", "b"])
    assert client.submitted == again
    assert later.is_in_doubt == (when is JobState.SUBMITTING)
    assert (later.clip is not None) == (when is not JobState.SUBMITTING)


@pytest.mark.parametrize("cause", [OverflowError(), UnicodeError()], ids=repr)
async def test_a_value_that_no_row_can_hold_is_one_outcome(
    client: FakeClient, cause: Exception
) -> None:
    """A number or text that SQLite cannot take ends the job that has it, and no other."""
    error = JournalError("a", "b", "c")
    error.__cause__ = cause
    client.let_fail("submit", "a", error)
    first, second = await run(client, ["a", "b"], in_flight=1)
    assert first.error is error
    assert second.clip is not None


async def test_a_handle_that_cannot_be_made_is_an_outcome(tmp_path: Path) -> None:
    """A defect on the way to a task of an earlier run is reported with its id."""

    @attrs.define(eq=False)
    class Unattached(FakeClient):
        def attach(self, job: Job, request: Generation) -> Any:
            raise ValueError

    async with remembered(tmp_path) as client:
        assert client.journal is not None
        await job_in(client.journal, JobState.ACCEPTED)
        (outcome,) = await run(Unattached(client.journal), ["a"])
    assert isinstance(outcome.error, UnexpectedError)
    assert (outcome.task_id, outcome.resumed) == ("t-1", True)
    assert outcome.error.money == "The task is paid for; use its id to get the clip."


# Outcomes


async def test_outcomes_come_as_they_complete(client: FakeClient) -> None:
    """Outcomes come in the order of the ends, each with its position in the input."""
    client.shut("wait", "a", "b", "c")
    order: list[Outcome] = []

    async def take() -> None:
        batch = batch_of(client, ["a", "b", "c"])
        order.extend([outcome async for outcome in batch.outcomes()])

    taking = asyncio.create_task(take())
    await settle()
    for prompt in ["c", "a", "b"]:
        await client.let_through("wait", prompt)
    await taking
    assert [(prompt_of(outcome), outcome.index) for outcome in order] == [
        ("c", 2),
        ("a", 0),
        ("b", 1),
    ]


async def test_a_clip_is_an_outcome(client: FakeClient) -> None:
    """A success has its request, its task, its clip and what it cost, and no error."""
    (outcome,) = await run(client, [Item(TextToVideo("a"), "mine")], timeout=77.0)
    assert (outcome.request, outcome.custom_id) == (TextToVideo("a"), "mine")
    assert outcome.clip is not None
    assert outcome.task_id == outcome.clip.task.id
    assert (outcome.points, outcome.refunded, outcome.error) == (100.0, False, None)
    assert (outcome.path, outcome.resumed, outcome.is_in_doubt) == (None, False, False)
    assert client.timeouts == {77.0}


@pytest.mark.parametrize(
    ("what", "error", "task_id"),
    [
        ("submit", InvalidRequest("a", "b", "c"), None),
        ("submit", in_doubt(), None),
        ("wait", failed("t-1"), "first"),
        ("wait", WaitTimeout("a", "b", "c", "t-1"), "t-1"),
        ("download", DownloadIncomplete("a", "b", "c", "t-1"), "first"),
    ],
)
async def test_one_failure_is_an_outcome(
    client: FakeClient, tmp_path: Path, what: str, error: RunwayError, task_id: str | None
) -> None:
    """A defect in one job is reported with its task, and the others go on."""
    client.let_fail(what, "a", error)
    first, second = await run(client, ["a", "b"], download_to=tmp_path / "clips")
    assert first.error is error
    assert first.is_in_doubt == isinstance(error, SubmissionInDoubt)
    assert (first.task_id is None) == (task_id is None)
    if task_id == "t-1":
        assert first.task_id == "t-1"
    assert (first.clip is not None) == (what == "download")
    assert first.path is None
    assert second.error is None
    assert second.path is not None


async def test_a_failed_task_reports_its_cost(client: FakeClient) -> None:
    """Points and refund of a failure are in its outcome."""
    client.let_fail("wait", "a", failed(points=320.0, refunded=True))
    (outcome,) = await run(client, ["a"])
    assert (outcome.points, outcome.refunded) == (320.0, True)


async def test_the_time_limit_holds_for_the_file_as_well(
    client: FakeClient, tmp_path: Path
) -> None:
    """A download that takes as long as a wait may is given up; the clip can be fetched again."""
    client.shut("download", "a")
    first, second = await run(client, ["a", "b"], download_to=tmp_path, timeout=0.05)
    assert isinstance(first.error, DownloadIncomplete)
    assert first.error.happened == "The download did not finish within 0.05 s."
    assert first.error.money == "The clip exists and is paid for."
    assert first.task_id == first.error.task_id is not None
    assert first.clip is not None
    assert second.path is not None


async def test_saving_overlaps_with_waiting(client: FakeClient, tmp_path: Path) -> None:
    """While one clip is being saved, another job is submitted and waited for."""
    client.shut("download", "a")
    client.shut("wait", "b")
    batch = batch_of(client, ["a", "b", "c"], download_to=tmp_path / "clips")
    async with aclosing(batch.outcomes()) as outcomes:
        first = await anext(outcomes)
        assert prompt_of(first) == "c"
        assert first.path is not None
        assert first.path.read_bytes() == CLIP
        assert len(client.downloading) == 1
        assert client.running == 1
        await client.let_through("download", "a")
        assert prompt_of(await anext(outcomes)) == "a"


# Files


@pytest.mark.parametrize("journaled", ["with a journal", ""])
async def test_equal_prompts_are_two_jobs_with_two_files(tmp_path: Path, journaled: str) -> None:
    """The same prompt three times makes three clips in three files."""
    async with remembered(tmp_path) as client:
        if not journaled:
            client.journal = None
        outcomes = await run(client, ["a"] * 3, download_to=tmp_path / "clips")
    assert client.submitted == ["a"] * 3
    assert len({outcome.path for outcome in outcomes}) == 3
    assert all(outcome.path and outcome.path.name.startswith("a-") for outcome in outcomes)


async def test_files_are_named_after_their_prompts(client: FakeClient, tmp_path: Path) -> None:
    """A file reads like its custom id, else its prompt, else its kind, and is safe as a name."""
    act = ActOne("https://e.com/1.mp4", "https://e.com/1.png")
    source = [Item(TextToVideo("x"), "scene-4"), "../a kitten?", "笑起来", act]
    outcomes = await run(client, source, download_to=tmp_path)
    plain, prompt, chinese, kind = [outcome.path.name for outcome in outcomes if outcome.path]
    assert plain == "scene-4.mp4"
    assert prompt.startswith("a-kitten-")
    assert chinese.startswith("笑起来-")
    assert kind.startswith("ActOne-")


def test_one_prompt_with_thousands_of_pictures_makes_as_many_files() -> None:
    """Requests that differ in their picture only never share a file."""
    paths = set()
    for number in range(5_000):
        request = ImageToVideo("smile", f"https://e.com/{number}.png")
        paths.add(clip_name(request, plan_of(request, nth(fingerprint(request), 1))))
    assert len(paths) == 5_000
    assert all(path.startswith("smile-") and len(path) > len("smile-.mp4") + 10 for path in paths)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a b", "a-b"),
        ("a/b", "a b"),
        ("a?", "a"),
        ("e\u0301", "\u00e9"),
        ("con", "clip-con"),
        ("x" * 200, "x" * 201),
        ("\ud800", "\ud801"),
        ("Shot", "shot"),
        ("SHOT", "Shot"),
        ("stra\u00dfe", "strasse"),
        ("\u212b", "\u00e5"),
        ("\u01c4", "\u01c6"),
        ("\u0131", "i"),
        ("\u03c2", "\u03c3"),
    ],
)
def test_two_ids_never_share_a_file(one: str, other: str) -> None:
    """Names that are the same once they are safe, or on some disks, stay apart."""
    for fold in (str.casefold, str.upper):
        names = [unicodedata.normalize("NFC", fold(file_name(name))) for name in (one, other)]
        assert names[0] != names[1]
    assert all(len(file_name(name).encode()) <= 120 for name in (one, other))


def test_a_safe_id_is_the_name_of_its_file() -> None:
    """What no other id can equal stays as it is, in any script."""
    assert file_name("a-b") == "a-b.mp4"
    assert file_name("9f6243e5-0000-4000-8000-0123456789ab").startswith("9f6243e5-0000-4000-8000")
    assert file_name("笑") == "笑.mp4"


def test_names_are_made_of_what_the_locale_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where file names are ASCII, letters of other scripts are left out and hashes differ."""
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    names = [file_name(name) for name in ("笑", "猫", "caf\u00e9", "cafe")]
    assert len(set(names)) == 4
    assert names[3] == "cafe.mp4"
    for prompt in ("笑起来", "a caf\u00e9"):
        request = TextToVideo(prompt)
        names.append(clip_name(request, plan_of(request, nth(fingerprint(request), 1))))
    assert all(name.isascii() and not name.startswith("-") for name in names)


# Going on where an earlier run ended


@asynccontextmanager
async def remembered(tmp_path: Path) -> AsyncIterator[FakeClient]:
    """Return a client with a journal, as another process would have it."""
    journal = Journal(tmp_path / "run.db")
    try:
        yield FakeClient(journal)
    finally:
        await journal.aclose()


async def states(tmp_path: Path) -> list[JobState]:
    """Return the states of all jobs, in the order in which they were planned."""
    async with remembered(tmp_path) as client:
        assert client.journal is not None
        return [job.state for job in await client.journal.jobs()]


async def test_the_same_batch_again_submits_nothing(tmp_path: Path) -> None:
    """What was saved is returned as it is, without a task, a wait or a byte."""
    source = ["a", "a", Item(TextToVideo("b"), "mine")]
    async with remembered(tmp_path) as client:
        before = await run(client, source, download_to=tmp_path / "clips")
    async with remembered(tmp_path) as client:
        after = await run(client, source, download_to=tmp_path / "clips")
    assert (client.submitted, client.attached) == ([], [])
    assert [one.path for one in after] == [one.path for one in before]
    assert [one.task_id for one in after] == [one.task_id for one in before]
    assert all(one.resumed and one.clip is None and one.error is None for one in after)
    assert not any(one.resumed for one in before)


async def test_what_was_saved_needs_no_file_if_none_is_wanted(tmp_path: Path) -> None:
    """A saved job is done also for a run that saves nothing."""
    async with remembered(tmp_path) as client:
        await run(client, ["a"], download_to=tmp_path / "clips")
        (outcome,) = await run(client, ["a"])
    assert (outcome.resumed, outcome.path, outcome.error) == (True, None, None)
    assert client.attached == []


async def taken_place(client: FakeClient, tmp_path: Path) -> Path:
    """Return a file of the user's in the place of the clip of "a"."""
    assert client.journal is not None
    plan = plan_of(TextToVideo("a"))
    job = await client.journal.plan_next(plan, 1.0)
    (tmp_path / "clips").mkdir()
    path = tmp_path / "clips" / clip_name(TextToVideo("a"), attrs.evolve(plan, key=job.key))
    path.write_bytes(b"mine")
    return path


@pytest.mark.parametrize("named", [True, False])
async def test_a_file_in_the_way_is_found_before_anything_is_paid(
    tmp_path: Path, named: object
) -> None:
    """The job is not submitted and its row stays planned; the error names no prompt."""
    async with remembered(tmp_path) as client:
        item = Item(TextToVideo("a"), "mine") if named else Item(TextToVideo("a"))
        place = tmp_path / "clips" / "mine.mp4"
        if named:
            place.parent.mkdir()
            place.write_bytes(b"mine")
        else:
            place = await taken_place(client, tmp_path)
        first, second = await run(client, [item, "b"], download_to=tmp_path / "clips")
        assert isinstance(first.error, UsageError)
        assert (first.error.field, first.path) == ("download_to", None)
        assert first.error.money == "Nothing was sent or charged."
        shown = "'mine.mp4'" if named else f"'*-{place.stem.partition('-')[2]}.mp4'"
        assert f"There is a file {shown} already" in first.error.happened
        assert second.path is not None
    assert client.submitted == ["b"]
    assert place.read_bytes() == b"mine"
    assert await states(tmp_path) == [JobState.PLANNED, JobState.SAVED]


@pytest.mark.parametrize("is_paid", [False, True], ids=["planned", "paid"])
async def test_a_link_to_nothing_is_a_file_in_the_way(tmp_path: Path, is_paid: bool) -> None:
    """Its target may be on a disk that is not there now; the link stays, and nothing is lost."""
    async with remembered(tmp_path) as client:
        place = await taken_place(client, tmp_path)
        place.unlink()
        place.symlink_to(tmp_path / "nothing")
        if is_paid:
            assert client.journal is not None
            await job_in(client.journal, JobState.ACCEPTED)
        (outcome,) = await run(client, ["a"], download_to=tmp_path / "clips")
    if is_paid:
        assert outcome.path == place.with_name(f"{place.stem}-t-1.mp4")
    else:
        assert "There is a file" in str(outcome.error)
    assert client.submitted == []
    assert place.is_symlink()
    assert not place.exists()


async def test_a_file_in_the_way_is_replaced_if_that_is_wanted(tmp_path: Path) -> None:
    """With overwrite=True the clip is saved in the place of the other file."""
    async with remembered(tmp_path) as client:
        place = await taken_place(client, tmp_path)
        (outcome,) = await run(client, ["a"], download_to=tmp_path / "clips", overwrite=True)
    assert outcome.path == place
    assert place.read_bytes() == CLIP


async def test_a_folder_in_the_way_is_never_replaced(tmp_path: Path) -> None:
    """A folder of the name is found before anything is paid, also with overwrite=True."""
    async with remembered(tmp_path) as client:
        place = await taken_place(client, tmp_path)
        place.unlink()
        place.mkdir()
        (outcome,) = await run(client, ["a"], download_to=tmp_path / "clips", overwrite=True)
    assert isinstance(outcome.error, UsageError)
    assert client.submitted == []


@pytest.mark.parametrize(
    ("place_it", "reason"),
    [
        (lambda place: Path(f"{place}.part").mkdir(), "Is a directory"),
        (lambda place: Path(f"{place}.part.json").mkdir(), "Is a directory"),
        (lambda place: Path(f"{place}.part").symlink_to("a"), "Too many levels of symbolic links"),
        (os.mkfifo, "Invalid argument"),
    ],
    ids=["folder", "folder as note", "link", "pipe"],
)
async def test_a_place_that_takes_no_file_is_found_before_anything_is_paid(
    tmp_path: Path, place_it: Callable[[Path], object], reason: str
) -> None:
    """Any error of the system for the names that would be written; no name is shown."""
    async with remembered(tmp_path) as client:
        place = await taken_place(client, tmp_path)
        place.unlink()
        place_it(place)
        (outcome,) = await run(client, ["a"], download_to=tmp_path / "clips", overwrite=True)
    assert isinstance(outcome.error, UsageError)
    assert outcome.error.happened == f"The clip cannot be saved in its place ({reason})."
    assert outcome.error.__cause__ is outcome.error.__context__ is None
    assert client.submitted == []


async def test_a_path_that_is_too_long_is_found_before_anything_is_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows allows 260 characters in all by default, and says that there is no such file."""
    opened = os.open

    def of_windows(path: Any, flags: int, mode: int = 0o777) -> int:
        if len(os.fspath(path)) > len(str(tmp_path)) + 60:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return opened(path, flags, mode)

    client = FakeClient()
    batch = batch_of(client, ["a", "b" * 60, "c" * 60], download_to=tmp_path / "clips")
    monkeypatch.setattr(os, "open", of_windows)
    first, *others = sorted(
        [outcome async for outcome in batch.outcomes()], key=lambda outcome: outcome.index
    )
    assert first.error is None
    for other in others:
        assert "cannot be saved in its place (No such file or directory)" in str(other.error)
    assert client.submitted == ["a"]


async def test_a_folder_that_goes_away_is_found_before_anything_is_paid(tmp_path: Path) -> None:
    """Whatever is read after the folder was removed is not submitted."""
    client = FakeClient()
    batch = batch_of(client, ["a"], download_to=tmp_path / "clips")
    (tmp_path / "clips").rmdir()
    (outcome,) = [outcome async for outcome in batch.outcomes()]
    assert "The folder for the clips is gone. Nothing was sent or charged." in str(outcome.error)
    assert client.submitted == []


@pytest.mark.parametrize("state", [JobState.ACCEPTED, JobState.FINISHED])
async def test_a_paid_clip_whose_place_was_taken_is_saved_beside_it(
    tmp_path: Path, state: JobState
) -> None:
    """The other file stays, the clip is named after its task as well, and is found again."""
    async with remembered(tmp_path) as client:
        place = await taken_place(client, tmp_path)
        assert client.journal is not None
        await job_in(client.journal, state)
        for _ in range(2):
            (outcome,) = await run(client, ["a"], download_to=tmp_path / "clips")
            assert outcome.error is None
            assert outcome.path == place.with_name(f"{place.stem}-t-1.mp4")
            assert outcome.path.read_bytes() == CLIP
    assert client.attached == ["t-1"]
    assert place.read_bytes() == b"mine"


async def test_a_clip_that_an_earlier_run_had_just_saved_is_recognised(tmp_path: Path) -> None:
    """A run that was killed between saving a clip and writing that down leaves no second file."""
    async with remembered(tmp_path) as client:
        place = await taken_place(client, tmp_path)
        place.write_bytes(CLIP)
        assert client.journal is not None
        await job_in(client.journal, JobState.FINISHED)
        (outcome,) = await run(client, ["a"], download_to=tmp_path / "clips")
    assert outcome.path == place
    assert list((tmp_path / "clips").iterdir()) == [place]
    assert await states(tmp_path) == [JobState.SAVED]


async def test_a_second_copy_of_a_saved_clip_goes(tmp_path: Path) -> None:
    """What a killed run left beside a clip that was in its place all along is removed."""
    clips = tmp_path / "clips"
    async with remembered(tmp_path) as client:
        (first,) = await run(client, ["a"], download_to=clips)
        assert first.path is not None
        (clips / f"{first.path.stem}-{str(first.task_id).replace(' ', '-')}.mp4").write_bytes(CLIP)
        (again,) = await run(client, ["a"], download_to=clips)
    assert again.path == first.path
    assert list(clips.iterdir()) == [first.path]
    assert client.attached == []


async def test_a_clip_that_was_changed_is_kept(tmp_path: Path) -> None:
    """A saved file of another size is the user's: the clip is saved beside it, once."""
    clips = tmp_path / "clips"
    async with remembered(tmp_path) as client:
        (first,) = await run(client, ["a"], download_to=clips)
        assert first.path is not None
        first.path.write_bytes(b"cut by hand")
        again = [(await run(client, ["a"], download_to=clips))[0] for _ in range(2)]
    assert client.submitted == ["a"]
    assert client.attached == [first.task_id]
    assert first.path.read_bytes() == b"cut by hand"
    for outcome in again:
        assert outcome.path is not None
        assert outcome.path != first.path
        assert outcome.path.read_bytes() == CLIP


@pytest.mark.parametrize("damage", ["gone", "short", "elsewhere"])
async def test_a_file_that_is_not_whole_is_fetched_again(tmp_path: Path, damage: str) -> None:
    """A saved clip that is missing, or may be replaced, is saved again, and not paid again."""
    clips = tmp_path / "clips"
    async with remembered(tmp_path) as client:
        (first,) = await run(client, ["a"], download_to=clips)
        assert first.path is not None
        if damage == "gone":
            first.path.unlink()
        if damage == "short":
            first.path.write_bytes(b"half")
        wanted = tmp_path / "other" if damage == "elsewhere" else clips
        (again,) = await run(client, ["a"], download_to=wanted, overwrite=damage == "short")
    assert client.submitted == ["a"]
    assert client.attached == [first.task_id]
    assert again.resumed
    assert again.path is not None
    assert again.path.read_bytes() == CLIP
    assert await states(tmp_path) == [JobState.SAVED]


async def job_in(journal: Journal, state: JobState, prompt: str = "a") -> None:
    """Leave a job in *state*, as an earlier run would."""
    await journal.start_run()
    key = (await journal.plan_next(plan_of(TextToVideo(prompt)), 1.0)).key
    roads = {
        JobState.PLANNED: [],
        JobState.IN_DOUBT: [JobState.SUBMITTING, JobState.IN_DOUBT],
        JobState.ACCEPTED: [JobState.SUBMITTING, JobState.ACCEPTED],
        JobState.FINISHED: [JobState.SUBMITTING, JobState.ACCEPTED, JobState.FINISHED],
        JobState.FAILED: [JobState.SUBMITTING, JobState.ACCEPTED, JobState.FAILED],
    }
    for step in roads[state]:
        changes: dict[str, Any] = {"task_id": "t-1"} if step is JobState.ACCEPTED else {}
        if step is JobState.FAILED:
            changes = {"error": "TaskFailed", "points": 320.0, "refunded": 1}
        if step is JobState.IN_DOUBT:
            changes = {"error": "NoReply"}
        await journal.step(key, step, 1.0, **changes)


async def test_what_was_planned_only_is_submitted(tmp_path: Path) -> None:
    """A job that was never sent is submitted like a new one."""
    async with remembered(tmp_path) as client:
        assert client.journal is not None
        await job_in(client.journal, JobState.PLANNED)
        (outcome,) = await run(client, ["a"])
    assert client.submitted == ["a"]
    assert (outcome.resumed, outcome.error) == (False, None)


@pytest.mark.parametrize("state", [JobState.ACCEPTED, JobState.FINISHED])
@pytest.mark.parametrize("saved", [True, False])
async def test_what_was_paid_is_followed(tmp_path: Path, state: JobState, saved: object) -> None:
    """A task of an earlier run is waited for and saved, and never submitted again."""
    async with remembered(tmp_path) as client:
        assert client.journal is not None
        await job_in(client.journal, state)
        (outcome,) = await run(client, ["a"], download_to=tmp_path / "clips" if saved else None)
    assert (client.submitted, client.attached) == ([], ["t-1"])
    assert (outcome.task_id, outcome.resumed, outcome.error) == ("t-1", True, None)
    assert outcome.clip is not None
    assert await states(tmp_path) == [JobState.SAVED if saved else JobState.FINISHED]


async def test_what_is_in_doubt_is_reported_and_left_alone(tmp_path: Path) -> None:
    """A submission without a response is in doubt in every run, and never sent again."""
    async with remembered(tmp_path) as client:
        assert client.journal is not None
        await job_in(client.journal, JobState.IN_DOUBT)
        for retry_failed in [False, True]:
            (outcome,) = await run(client, ["a"], retry_failed=retry_failed)
            assert (outcome.is_in_doubt, outcome.resumed, outcome.task_id) == (True, True, None)
            assert "(NoReply)" in str(outcome.error)
            assert "may have been accepted and charged" in str(outcome.error)
    assert (client.submitted, client.attached) == ([], [])
    assert await states(tmp_path) == [JobState.IN_DOUBT]


async def test_old_failures_are_reported(tmp_path: Path) -> None:
    """A failure of an earlier run is reported with its task, and nothing is sent."""
    async with remembered(tmp_path) as client:
        assert client.journal is not None
        await job_in(client.journal, JobState.FAILED)
        (outcome,) = await run(client, ["a"])
    assert (client.submitted, client.attached) == ([], [])
    assert isinstance(outcome.error, TaskFailed)
    assert (outcome.task_id, outcome.error.task_id, outcome.resumed) == ("t-1", "t-1", True)
    assert outcome.error.money == "The points were refunded."


async def test_failed_jobs_can_be_submitted_again(tmp_path: Path) -> None:
    """With retry_failed, a failed job is submitted again, and has the outcome of this run."""
    async with remembered(tmp_path) as client:
        assert client.journal is not None
        await job_in(client.journal, JobState.FAILED)
        (outcome,) = await run(client, ["a"], retry_failed=True)
    assert client.submitted == ["a"]
    assert (outcome.resumed, outcome.error) == (False, None)
    assert outcome.task_id != "t-1"
    assert await states(tmp_path) == [JobState.FINISHED]


@pytest.mark.parametrize(
    ("what", "error", "state"),
    [
        ("submit", in_doubt(), JobState.IN_DOUBT),
        ("submit", InvalidRequest("a", "b", "c"), JobState.FAILED),
        ("wait", WaitTimeout("a", "b", "c", "t-2"), JobState.ACCEPTED),
    ],
)
async def test_a_failure_of_this_run_is_not_resumed(
    tmp_path: Path, what: str, error: RunwayError, state: JobState
) -> None:
    """A job that fails again in this run is not resumed, and has no old task."""
    async with remembered(tmp_path) as client:
        assert client.journal is not None
        await job_in(client.journal, JobState.FAILED)
        client.let_fail(what, "a", error)
        (outcome,) = await run(client, ["a"], retry_failed=True)
    assert outcome.error is error
    assert (outcome.resumed, outcome.task_id) == (False, error.task_id)
    assert await states(tmp_path) == [state]


@pytest.mark.parametrize(
    ("name", "refunded", "kind", "money"),
    [
        ("InvalidRequest", 0, InvalidRequest, "Nothing was charged."),
        ("OutOfCredits", 0, OutOfCredits, "Nothing was charged."),
        ("TaskFailed", 1, TaskFailed, "The points were refunded."),
        ("TaskFailed", 0, TaskFailed, "For the cost, see the outcome of that run."),
        ("JournalBusy", 0, TaskFailed, "For the cost, see the outcome of that run."),
        ("GoneSince", 0, TaskFailed, "For the cost, see the outcome of that run."),
        (None, 0, TaskFailed, "For the cost, see the outcome of that run."),
    ],
)
async def test_an_old_failure_keeps_its_name(
    journal: Journal,
    name: str | None,
    refunded: int,
    kind: type,
    money: str,
) -> None:
    """The error is of the kind that is written, with what is known about the money."""
    key = (await journal.plan_next(plan_of(TextToVideo("a")), 1.0)).key
    await journal.step(key, JobState.SUBMITTING, 1.0)
    await journal.step(key, JobState.FAILED, 1.0, error=name, refunded=refunded)
    (outcome,) = await run(FakeClient(journal), ["a"])
    assert type(outcome.error) is kind
    assert getattr(outcome.error, "money", None) == money


async def test_a_custom_id_is_the_job_whatever_its_request(tmp_path: Path) -> None:
    """A request may be reworded: under the same name it is the same job, and not paid again."""
    async with remembered(tmp_path) as client:
        (first,) = await run(client, [Item(TextToVideo("a"), "mine")])
        (second,) = await run(client, [Item(TextToVideo("b"), "mine")])
        (other,) = await run(client, [Item(TextToVideo("a"), "another")])
    assert client.submitted == ["a", "a"]
    assert second.task_id == first.task_id != other.task_id


async def test_without_names_a_job_is_known_by_content_and_occurrence(tmp_path: Path) -> None:
    """The input may be put in another order, or grow: only what is new is submitted."""
    async with remembered(tmp_path) as client:
        await run(client, ["a", "b", "a"])
        client.submitted.clear()
        await run(client, ["a", "a", "c", "b", "a"])
    assert sorted(client.submitted) == ["a", "c"]


async def test_a_journal_that_cannot_be_used_ends_the_batch(tmp_path: Path) -> None:
    """Nothing is sent if it cannot be recorded."""
    client = FakeClient(Journal(tmp_path / "nowhere" / "run.db"))
    with pytest.raises(JournalError, match="no folder"):
        await run(client, ["a"])
    assert client.submitted == []
    assert client.journal is not None
    await client.journal.aclose()


# Leaving and stopping


async def test_leaving_early_cancels_and_loses_nothing(tmp_path: Path) -> None:
    """Jobs that run are cancelled at once, and the next run follows their tasks."""
    async with remembered(tmp_path) as client:
        client.shut("wait", "b", "c")
        batch = batch_of(client, ["a", "b", "c", *itertools.islice(names(), 50)], in_flight=3)
        before = len(asyncio.all_tasks())
        async with aclosing(batch.outcomes()) as outcomes:
            assert prompt_of(await anext(outcomes)) == "a"
            await until(lambda: len(client.submitted) == 3)
        assert len(asyncio.all_tasks()) == before
        assert client.submitted == ["a", "b", "c"]
    async with remembered(tmp_path) as client:
        again = await run(client, ["a", "b", "c"])
    assert client.submitted == []
    assert len(client.attached) == 3
    assert all(outcome.resumed and outcome.clip for outcome in again)


async def until(holds: Callable[[], object]) -> None:
    """Let the loop, and the journal's thread, go on until *holds* does."""
    while not holds():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "error",
    [
        OutOfCredits("a", "b", "c"),
        Unauthorized("a", "b", "c"),
        NotSent("a", "b", "c", None, None, Fate.UNSENT),
        JournalError("a", "b", "c"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_every_other_job_would_meet_ends_the_submitting(
    tmp_path: Path, error: RunwayError
) -> None:
    """Running jobs are followed, and refused ones are submitted by the next run by default."""
    source = [f"p{number}" for number in range(20)]
    async with remembered(tmp_path) as client:
        client.shut("wait", "p0")
        client.let_fail("submit", "p1", error)
        batch = batch_of(client, iter(source), in_flight=2)
        outcomes = batch.outcomes()
        async with aclosing(outcomes):
            refused = await anext(outcomes)
            await client.let_through("wait", "p0")
            rest = [outcome async for outcome in outcomes]
    assert (refused.error, refused.index) == (error, 1)
    assert [prompt_of(outcome) for outcome in rest if outcome.clip] == ["p0"]
    assert client.submitted == ["p0", "p1"]
    assert batch.summary.stopped_by == type(error).__name__
    assert not batch.summary.out_of_points
    if isinstance(error, OutOfCredits | Unauthorized | NotSent):
        async with remembered(tmp_path) as client:
            again = await run(client, source)
        assert client.submitted == source[1:]
        assert all(outcome.clip for outcome in again)


def incomplete(number: int | None) -> DownloadIncomplete:
    """Return the error of a clip that was not saved; *number* is the system's error, if any."""
    error = DownloadIncomplete("a", "b", "c")
    error.__cause__ = None if number is None else OSError(number, os.strerror(number))
    return error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
async def test_a_disk_that_takes_no_clip_ends_the_submitting(tmp_path: Path, number: int) -> None:
    """Further clips would be paid for and not be saved, in a later run too; the URLs expire."""
    source = ["p0", "p1", "p2", "p3"]
    for _ in range(2):
        async with remembered(tmp_path) as client:
            client.let_fail("download", "p0", incomplete(number))
            batch = batch_of(client, source, in_flight=1, download_to=tmp_path / "clips")
            (outcome,) = [outcome async for outcome in batch.outcomes()]
            assert outcome.error is not None
            assert batch.summary.stopped_by == "DownloadIncomplete"
    assert client.submitted == []
    async with remembered(tmp_path) as client:
        again = await run(client, source, download_to=tmp_path / "clips")
    assert client.submitted == source[1:]
    assert all(outcome.path for outcome in again)


@pytest.mark.parametrize("number", [None, errno.EFBIG])
async def test_a_clip_that_cannot_be_saved_ends_nothing(
    client: FakeClient, tmp_path: Path, number: int | None
) -> None:
    """A host that is down, or a file that is too large, concerns one job."""
    client.let_fail("download", "p0", incomplete(number))
    first, second = await run(client, ["p0", "p1"], in_flight=1, download_to=tmp_path / "clips")
    assert (first.path, second.error) == (None, None)


async def test_a_refusal_of_an_earlier_run_ends_nothing(tmp_path: Path) -> None:
    """A row that failed for want of points in another run says nothing about this one."""
    async with remembered(tmp_path) as client:
        assert client.journal is not None
        key = (await client.journal.plan_next(plan_of(TextToVideo("a")), 1.0)).key
        await client.journal.step(key, JobState.SUBMITTING, 1.0)
        await client.journal.step(key, JobState.FAILED, 1.0, error="OutOfCredits")
        first, second = await run(client, ["a", "b"], in_flight=1)
    assert isinstance(first.error, OutOfCredits)
    assert second.clip is not None


async def test_a_job_that_waits_for_points_is_not_submitted_after_a_refusal(
    client: FakeClient,
) -> None:
    """It stays planned, and it has no outcome."""
    client.let_fail("submit", "p0", OutOfCredits("a", "b", "c"))
    batch = batch_of(client, names(), max_points=1000.0, in_flight=3)
    outcomes = [outcome async for outcome in batch.outcomes()]
    assert [prompt_of(outcome) for outcome in outcomes] == client.submitted == ["p0"]
    assert batch.summary.stopped_by == "OutOfCredits"


async def test_a_batch_stops_where_its_client_is_closed(client: FakeClient) -> None:
    """The job that finds out has the error, and no further one is read."""
    prompts = names()
    client.is_closed = True
    [outcome] = await run(client, prompts, in_flight=1)
    assert isinstance(outcome.error, UsageError)
    assert next(prompts) in {"p1", "p2"}
    assert client.submitted == []


async def test_a_stopped_batch_follows_what_runs(client: FakeClient) -> None:
    """Nothing more is read or submitted after stop, and every job that exists has its outcome."""
    client.shut("wait", "p0", "p1")
    taken: list[str] = []
    batch = batch_of(client, counting(taken), in_flight=2)
    found: list[Outcome] = []

    async def take() -> None:
        found.extend([outcome async for outcome in batch.outcomes()])

    taking = asyncio.create_task(take())
    await settle()
    batch.stop()
    await client.let_through("wait", "p0", "p1")
    await taking
    assert taken == client.submitted == ["p0", "p1"]
    assert {prompt_of(outcome) for outcome in found} == {"p0", "p1"}


async def test_a_batch_can_be_stopped_before_it_starts(client: FakeClient) -> None:
    """Stopped beforehand, a batch reads nothing and comes to its end."""
    batch = batch_of(client, names())
    batch.stop()
    assert [outcome async for outcome in batch.outcomes()] == []


async def test_a_source_that_waits_does_not_keep_a_stopped_batch(client: FakeClient) -> None:
    """A batch that was stopped ends though its source neither gives anything nor ends."""
    closed: list[str] = []

    async def source() -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.Event().wait()
        finally:
            closed.append("closed")

    batch = batch_of(client, source())
    async with asyncio.timeout(30):
        async for outcome in batch.outcomes():
            assert prompt_of(outcome) == "a"
            batch.stop()
    assert closed == ["closed"]


async def test_a_source_may_stop_its_own_batch(client: FakeClient) -> None:
    """What a source gives after it has stopped the batch is not submitted."""

    def source() -> Iterator[str]:
        yield "a"
        batch.stop()
        yield "b"

    batch = batch_of(client, source())
    outcomes = [outcome async for outcome in batch.outcomes()]
    assert [prompt_of(outcome) for outcome in outcomes] == client.submitted == ["a"]


async def test_a_source_that_was_cancelled_is_not_a_source_that_ended(client: FakeClient) -> None:
    """A cancellation inside of the source raises, since the rest of it was not submitted."""

    async def source() -> AsyncIterator[str]:
        yield "a"
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await run(client, source())


# Points


async def test_nothing_is_submitted_beyond_the_points(client: FakeClient) -> None:
    """Of jobs that cost 100 each, 350 points buy three, and the batch says why it stopped."""
    batch = batch_of(client, names(), max_points=350.0)
    outcomes = [outcome async for outcome in batch.outcomes()]
    assert len(outcomes) == len(client.submitted) == 3
    assert batch.summary.out_of_points
    assert batch.summary.stopped_by == "max_points"
    assert batch.summary.points == 300.0


async def test_the_first_of_a_kind_goes_alone(client: FakeClient) -> None:
    """Until the cost of a kind is known, no second job of it is submitted."""
    client.shut("wait", "p0")
    batch = batch_of(client, names(), max_points=1000.0, in_flight=5)
    async with aclosing(batch.outcomes()) as outcomes:
        first = asyncio.ensure_future(anext(outcomes))
        await settle()
        assert client.submitted == ["p0"]
        await client.let_through("wait", "p0")
        await first
        await settle()
        assert len(client.submitted) == 5


async def test_refunded_points_can_be_spent_again(client: FakeClient) -> None:
    """Failures whose points came back cost nothing: the clips are as many as without them."""
    for prompt in ["p1", "p2", "p4"]:
        client.let_fail("wait", prompt, failed())
    batch = batch_of(client, names(), max_points=300.0)
    outcomes = [outcome async for outcome in batch.outcomes()]
    assert sum(outcome.clip is not None for outcome in outcomes) == 3
    assert (batch.summary.points, batch.summary.refunded_points) == (300.0, 300.0)


async def test_failures_that_were_charged_count(client: FakeClient) -> None:
    """A failure whose points did not come back has spent them."""
    client.let_fail("wait", "p1", failed(refunded=False))
    batch = batch_of(client, names(), max_points=300.0)
    outcomes = [outcome async for outcome in batch.outcomes()]
    assert (len(outcomes), len(client.submitted)) == (3, 3)


@pytest.mark.parametrize(
    ("what", "error"),
    [("submit", in_doubt()), ("wait", WaitTimeout("a", "b", "c", "t"))],
)
async def test_what_may_be_charged_counts_as_spent(
    client: FakeClient, what: str, error: RunwayError
) -> None:
    """A job in doubt, and one that was not waited for to its end, count as the dearest so far."""
    client.let_fail(what, "p1", error)
    batch = batch_of(client, names(), max_points=300.0)
    [outcome async for outcome in batch.outcomes()]
    assert len(client.submitted) == 3


async def test_what_was_refused_costs_nothing(client: FakeClient) -> None:
    """A request that the gateway turned away leaves the points for another."""
    client.let_fail("submit", "p1", InvalidRequest("a", "b", "c"))
    batch = batch_of(client, names(), max_points=300.0)
    [outcome async for outcome in batch.outcomes()]
    assert batch.summary.clips == 3


async def test_resumed_jobs_cost_nothing(tmp_path: Path) -> None:
    """What an earlier run paid for does not count against the points of this one."""
    async with remembered(tmp_path) as client:
        await run(client, ["a", "b", "c"])
    async with remembered(tmp_path) as client:
        batch = batch_of(client, ["a", "b", "c", "d", "e"], max_points=100.0)
        outcomes = [outcome async for outcome in batch.outcomes()]
    assert len(client.submitted) == 1
    assert sum(outcome.resumed for outcome in outcomes) == 3
    assert batch.summary.points == 100.0


async def taken(*calls: Awaitable[bool]) -> list[bool | None]:
    """Return the result of each, None for those that still wait."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    await settle()
    results = [task.result() if task.done() else None for task in tasks]
    for task in tasks:
        task.cancel()
    return results


async def test_a_kind_is_expected_to_cost_its_highest_so_far() -> None:
    """After one of 100 and one of 300, each is taken to cost 300."""
    budget = Budget(1000.0)
    assert await budget.take(KIND)
    budget.put_back(KIND, 100.0)
    assert await taken(budget.take(KIND), budget.take(KIND)) == [True, True]
    budget.put_back(KIND, 300.0)
    budget.put_back(KIND, 100.0)
    assert budget.spent == 500.0
    assert await taken(budget.take(KIND), budget.take(KIND)) == [True, None]


async def test_a_new_kind_waits_while_all_points_are_bound() -> None:
    """Points that running jobs are bound to cost are not spent on a kind of unknown cost."""
    budget = Budget(200.0)
    dear = ("VideoToVideo", "gen4", 5)
    assert await budget.take(KIND)
    budget.put_back(KIND, 100.0)
    assert await budget.take(KIND)
    waiting = asyncio.ensure_future(budget.take(dear))
    await settle()
    assert not waiting.done()
    budget.put_back(KIND, 0.0)
    assert await waiting


async def test_two_new_kinds_may_go_together() -> None:
    """Each kind is tried by one job, and one kind does not wait for the other."""
    budget = Budget(200.0)
    other = ("VideoToVideo", "gen4", 5)
    assert await taken(*map(budget.take, [KIND, other, KIND])) == [True, True, None]


async def test_a_cancelled_waiter_leaves_the_budget_usable() -> None:
    """A job that is cancelled while it waits for points takes none."""
    budget = Budget(200.0)
    assert await budget.take(KIND)
    gone = asyncio.ensure_future(budget.take(KIND))
    stays = asyncio.ensure_future(budget.take(KIND))
    await settle()
    gone.cancel()
    budget.put_back(KIND, 100.0)
    assert await stays
    assert gone.cancelled()


async def test_an_unknown_cost_counts_as_the_highest_so_far() -> None:
    """If the gateway does not report the cost of a job, the highest so far is assumed."""
    budget = Budget(250.0)
    assert await budget.take(KIND)
    budget.put_back(KIND, 100.0)
    assert await budget.take(KIND)
    budget.put_back(KIND, None)
    assert budget.spent == 200.0
    assert not await budget.take(KIND)


# The summary


async def test_the_summary_adds_up(tmp_path: Path) -> None:
    """Each outcome is counted once."""
    async with remembered(tmp_path) as client:
        await run(client, ["a"])
        client.let_fail("submit", "b", in_doubt())
        client.let_fail("submit", "c", InvalidRequest("a", "b", "c"))
        client.let_fail("wait", "d", failed(points=100.0))
        client.let_fail("wait", "e", failed(points=100.0))
        batch = batch_of(client, ["a", "b", "c", "d", "e", "f"])
        outcomes = [outcome async for outcome in batch.outcomes()]
    summary = batch.summary
    assert (summary.clips, summary.resumed, summary.in_doubt, summary.submitted) == (2, 1, 1, 3)
    assert summary.failures == {"InvalidRequest": 1, "TaskFailed": 2}
    assert (summary.failed, summary.done, summary.running) == (3, len(outcomes), 0)
    assert (summary.points, summary.refunded_points) == (100.0, 200.0)
    assert not summary.out_of_points


async def test_the_summary_counts_running_jobs(client: FakeClient) -> None:
    """Jobs that exist are reported while the batch runs."""
    client.shut("wait", "a", "b")
    batch = batch_of(client, ["a", "b"])
    async with aclosing(batch.outcomes()) as outcomes:
        first = asyncio.ensure_future(anext(outcomes))
        await settle()
        assert (batch.summary.running, batch.summary.submitted, batch.summary.done) == (2, 2, 0)
        await client.let_through("wait", "a")
        await first
        assert (batch.summary.running, batch.summary.done) == (1, 1)


def test_an_empty_summary_is_all_zero() -> None:
    """Before anything has ended, nothing is counted."""
    assert attrs.asdict(Summary()) == {
        "submitted": 0,
        "running": 0,
        "clips": 0,
        "resumed": 0,
        "in_doubt": 0,
        "failures": {},
        "points": 0.0,
        "refunded_points": 0.0,
        "stopped_by": None,
    }


async def test_a_name_that_is_being_submitted_is_left_to_the_client(journal: Journal) -> None:
    """Its row says so, and the client knows whether that is here, now, or from before."""

    @attrs.define(eq=False)
    class Joining(FakeClient):
        async def submit(self, request: Generation, *, custom_id: str, **_plan: Any) -> Any:
            return FakeTask(self, f"the task of {custom_id}", "a")

    plan = plan_of(TextToVideo("a"), "id:order 7", "order 7")
    await journal.plan(plan, 1.0)
    await journal.step(plan.key, JobState.SUBMITTING, 2.0)
    client = Joining(journal)
    [outcome] = await run(client, [Item(TextToVideo("a"), "order 7")])
    assert (outcome.task_id, outcome.error) == ("the task of order 7", None)


async def test_a_clip_is_handed_out_with_its_outcome(client: FakeClient, tmp_path: Path) -> None:
    """One that was to be saved and could not be is not handed out: its task is unfinished."""
    client.let_fail("download", "b", DownloadIncomplete("a", "b", "c"))
    outcomes = await run(client, ["a", "b"], download_to=tmp_path)
    assert [type(one.error) for one in outcomes] == [type(None), DownloadIncomplete]
    assert client.handed_out == {outcomes[0].task_id}
