import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.clients import others
from support.clock import ManualClock, settle
from support.feed import VIDEO, Scene, done, no, record, scene_on
from support.pages import read_page

from fuhu_runway._redact import redact
from fuhu_runway._waiting.poller import Poller, Watch
from fuhu_runway.errors import (
    ClipMissing,
    GatewayDown,
    TaskCanceled,
    TaskFailed,
    UsageError,
    WaitTimeout,
)
from fuhu_runway.models import OfficialImageToVideo, TaskRecord, TaskState, TextToVideo
from fuhu_runway.task import Clip, Task


@attrs.define(eq=False)
class Home:
    """Stands for the client: a scheduler, and a list of what was to be saved."""

    scene: Scene
    saved: list[tuple[Any, ...]] = attrs.field(factory=list)
    ages: dict[str, float] = attrs.field(factory=dict)
    handed_out: list[str] = attrs.field(factory=list)

    def hand_out(self, task: Task) -> None:
        self.handed_out.append(task.id)

    def watch(self, task: Task) -> tuple[Poller, Watch]:
        watch = self.scene.watch(task.id)
        if watch.record is None:
            watch.record = task.record
        return self.scene.poller, watch

    async def save(self, clip: Clip, path: Path, **how: Any) -> Path:
        self.saved.append((clip, path, how))
        return path

    def without_secrets(self, text: str, task: Task) -> str:
        return redact(text, ("sk-1", *task.secrets()))

    def age(self, task: Task) -> float | None:
        return self.ages.get(task.id)

    def task(self, **options: Any) -> Task:
        return Task(self, "t-1", **options)


@pytest.fixture
def scene(clock: ManualClock) -> Scene:
    """Return a scheduler without jitter."""
    return scene_on(clock)


@pytest.fixture
def home(scene: Scene) -> Home:
    """Return what stands for the client."""
    return Home(scene)


async def ended(home: Home, waiting: "asyncio.Future[Any]", seconds: float = 0.0) -> BaseException:
    """Return what a wait ends in, that ends badly within some seconds."""
    await home.scene.clock.advance(seconds)
    error = waiting.exception()
    assert error is not None
    return error


# The handle


def test_a_handle_tells_its_state(home: Home) -> None:
    """Its repr has id, state and percent, and nothing else; before any answer it is queued."""
    assert repr(home.task()) == "<Task t-1 QUEUED>"
    running = home.task(record=record(progress=0.42, prompt="a secret"))
    assert repr(running) == "<Task t-1 RUNNING 42%>"
    assert running.state is TaskState.RUNNING


def test_a_handle_knows_what_it_came_from(home: Home) -> None:
    """What was submitted, and when, is kept; a re-attached one knows neither."""
    request = TextToVideo("a kitten")
    task = home.task(request=request, submitted_at=7.0, official=True)
    assert (task.request, task.submitted_at, task.official) == (request, 7.0, True)
    bare = home.task()
    assert (bare.request, bare.submitted_at, bare.official, bare.record) == (
        None,
        None,
        False,
        None,
    )


def test_the_texts_that_may_not_be_shown(home: Home) -> None:
    """The prompt as it was sent and as the gateway has it, as far as there are such."""
    told = record(prompt="ein Kätzchen", prompt_en="a kitten")
    assert home.task(request=TextToVideo("猫"), record=told).secrets() == (
        "猫",
        "ein Kätzchen",
        "a kitten",
    )
    assert home.task(request=OfficialImageToVideo("https://a.example/1.png")).secrets() == ()
    assert home.task().secrets() == ()


def test_a_handle_tells_what_its_deliveries_led_to(home: Home) -> None:
    """A task with a callback address holds what is known, without a wait."""
    task = home.task()
    watch = home.scene.watch()
    task.keep(watch)
    home.scene.poller.take_told(watch, done())
    assert task.record == done()


# Waiting


async def test_waiting_gives_the_clip(home: Home) -> None:
    """It has the record that ended the task, and the handle it came from."""
    home.scene.feed.says(record(), done())
    task = home.task()
    waiting = asyncio.ensure_future(task.wait())
    await home.scene.clock.advance(3)
    clip = waiting.result()
    assert (clip.record, clip.task, clip.id, clip.video_url) == (done(), task, "t-1", VIDEO)
    assert task.record == done()
    assert task.state is TaskState.SUCCEEDED


async def test_awaiting_a_task_is_waiting_for_it(home: Home) -> None:
    """`await task` gives what `await task.wait()` gives."""
    home.scene.feed.says(done())
    task = home.task()

    async def wait() -> Clip:
        return await task

    waiting = asyncio.ensure_future(wait())
    await home.scene.clock.advance(0)
    assert waiting.result().record == done()


async def test_waiting_twice_asks_once(home: Home) -> None:
    """Two handles, two waits each, with and without a listener: one look."""
    home.scene.feed.says(done())
    one, other = home.task(), home.task()
    waits = [
        asyncio.ensure_future(task.wait(on_update=hear))
        for task in (one, other)
        for hear in (None, id)
    ]
    await home.scene.clock.advance(0)
    assert [wait.result().record for wait in waits] == [done()] * 4
    assert len(home.scene.feed.looks) == 1


async def test_each_change_is_told(home: Home) -> None:
    """`on_update` hears of every change once, the end included."""
    answers = [record(progress=0.2), record(progress=0.2), record(progress=0.8), done()]
    home.scene.feed.says(*answers)
    heard: list[TaskRecord] = []
    waiting = asyncio.ensure_future(home.task().wait(on_update=heard.append))
    await home.scene.clock.advance(60)
    assert waiting.result().record == done()
    assert heard == [answers[0], answers[2], answers[3]]


async def test_a_listener_that_raises_ends_its_own_wait(home: Home) -> None:
    """What `on_update` raises comes out as it is; who else waits goes on."""

    def burst(record: TaskRecord) -> None:
        raise ZeroDivisionError

    home.scene.feed.says(record(), done())
    task = home.task()
    bad = asyncio.ensure_future(task.wait(on_update=burst))
    good = asyncio.ensure_future(task.wait())
    assert isinstance(await ended(home, bad, 3), ZeroDivisionError)
    assert good.result().record == done()
    assert home.scene.has_nothing_left()


@pytest.mark.parametrize(
    ("state", "kind", "word"),
    [
        (TaskState.FAILED, TaskFailed, "failed"),
        (TaskState.CANCELED, TaskCanceled, "was cancelled"),
    ],
)
@pytest.mark.parametrize("hear", [None, id], ids=["silent", "told"])
async def test_a_failure_tells_its_reason(
    home: Home,
    state: TaskState,
    kind: type[TaskFailed],
    word: str,
    hear: Callable[[object], object] | None,
) -> None:
    """With its code, its points and whether they came back; with every secret taken out."""
    answer = record(
        state=state,
        message="a kitten at https://a.example/1.png is not allowed",
        failure_code="SAFETY.INPUT",
        points=320.0,
        refunded=True,
    )
    home.scene.feed.says(answer)
    task = home.task(request=TextToVideo("a kitten"))
    error = await ended(home, asyncio.ensure_future(task.wait(on_update=hear)))
    assert type(error) is kind
    assert isinstance(error, TaskFailed)
    assert error.reason == "<hidden> at <url> is not allowed"
    assert (error.code, error.points, error.refunded) == ("SAFETY.INPUT", 320.0, True)
    assert str(error).startswith(f"The task {word}: <hidden> at <url> is not allowed.")
    assert "points were given back" in str(error)
    assert error.task_id == "t-1"


async def test_a_reason_that_ends_in_a_stop_gets_no_second(home: Home) -> None:
    """Sentences are put together in one place, whatever the gateway's own words end with."""
    home.scene.feed.says(record(state=TaskState.FAILED, message="rejected."))
    error = await ended(home, asyncio.ensure_future(home.task().wait()))
    assert str(error).startswith("The task failed: rejected. The gateway did not say")


async def test_a_failure_without_a_word(home: Home) -> None:
    """It says that it failed, and that nothing is known of the points."""
    home.scene.feed.says(record(state=TaskState.FAILED))
    error = await ended(home, asyncio.ensure_future(home.task().wait()))
    assert isinstance(error, TaskFailed)
    assert (error.reason, error.refunded) == (None, False)
    assert str(error).startswith("The task failed. The gateway did not say")


@pytest.mark.parametrize(
    ("points", "money"),
    [
        (None, "Runway does not give them back for moderated tasks."),
        (25.0, "25 points were used, and the gateway did not give them back."),
    ],
)
async def test_a_failed_official_task_says_what_its_format_says(
    home: Home, points: float | None, money: str
) -> None:
    """What the answer says counts first, and else the format's own page."""
    home.scene.feed.says(record(state=TaskState.FAILED, points=points))
    error = await ended(home, asyncio.ensure_future(Task(home, "t-1", official=True).wait()))
    assert money in str(error)


@pytest.mark.parametrize("hear", [None, id], ids=["silent", "told"])
async def test_a_timeout_leaves_the_task_as_it_is(
    home: Home, hear: Callable[[object], object] | None
) -> None:
    """The deadline counts for the whole wait, whatever changes on the way."""
    home.scene.feed.says(*(record(progress=step / 10) for step in range(9)), done())
    task = home.task()
    error = await ended(home, asyncio.ensure_future(task.wait(timeout=12.0, on_update=hear)), 12)
    assert isinstance(error, WaitTimeout)
    assert error.timeout == 12.0
    again = asyncio.ensure_future(task.wait())
    await home.scene.clock.advance(200)
    assert again.result().record == done()


@pytest.mark.parametrize("timeout", [-1.0, float("nan"), float("-inf")])
async def test_a_timeout_that_is_none_is_a_usage_error(home: Home, timeout: float) -> None:
    """Below zero, or no number: nothing is asked."""
    with pytest.raises(UsageError) as caught:
        await home.task().wait(timeout=timeout)
    assert caught.value.field == "timeout"
    with pytest.raises(UsageError):
        await home.task().wait(timeout=timeout, on_update=id)
    assert home.scene.has_nothing_left()


async def test_an_async_function_hears_updates(home: Home) -> None:
    """It is awaited, and what it raises ends the wait, as with a plain one."""
    home.scene.feed.says(record(progress=0.5), done())
    heard: list[TaskRecord] = []

    async def hear(one: TaskRecord) -> None:
        await asyncio.sleep(0)
        heard.append(one)

    task = home.task()
    waiting = asyncio.ensure_future(task.wait(on_update=hear))
    await home.scene.clock.advance(30)
    assert (await waiting).record == done()
    assert heard == [record(progress=0.5), done()]

    async def fail(one: TaskRecord) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await task.wait(on_update=fail)


async def test_waiting_for_ever_has_no_deadline(home: Home) -> None:
    """With None there is one timer, for the next look, and it goes on for hours."""
    waiting = asyncio.ensure_future(home.task().wait(timeout=None))
    await home.scene.clock.advance(7200)
    assert not waiting.done()
    waiting.cancel()
    await settle()
    assert home.scene.has_nothing_left()


async def test_what_is_known_outlives_its_scheduler(home: Home, clock: ManualClock) -> None:
    """A handle that has seen the end keeps it, where another loop's scheduler knows nothing."""
    home.scene.feed.says(done())
    task = home.task()
    waiting = asyncio.ensure_future(task.wait())
    await clock.advance(0)
    assert waiting.done()
    home.scene = scene_on(clock)
    assert (await task.wait(timeout=0)).record == done()
    assert home.scene.feed.looks == []


# Following


async def test_updates_end_with_the_task(home: Home) -> None:
    """They begin with what is known, tell each change, and raise nothing at a failure."""
    failed = record(state=TaskState.FAILED)
    home.scene.feed.says(record(progress=0.5), failed)
    known = record(state=TaskState.QUEUED)

    async def follow() -> list[TaskRecord]:
        return [one async for one in home.task(record=known).updates()]

    following = asyncio.ensure_future(follow())
    await home.scene.clock.advance(30)
    assert following.result() == [known, record(progress=0.5), failed]
    assert home.scene.has_nothing_left()


async def test_a_slow_reader_gets_the_latest_only(home: Home) -> None:
    """Changes while the listener was busy arrive as one change."""
    home.scene.feed.says(*(record(progress=step / 10) for step in range(9)), done())
    task = home.task()
    others_wait = asyncio.ensure_future(task.wait())
    updates = task.updates()
    first = asyncio.ensure_future(anext(updates))
    await home.scene.clock.advance(0)
    assert first.result().progress == 0.0
    await home.scene.clock.advance(200)
    assert [one async for one in updates] == [done()]
    assert others_wait.done()


async def test_a_change_behind_a_change_is_not_lost(home: Home) -> None:
    """Two looks answered before the reader's turn are one change, and it is the later one."""
    home.scene.feed.says(record(), record(progress=0.5), done())
    task = home.task()
    await task.refresh()
    updates = task.updates()
    assert await anext(updates) == record()
    following = asyncio.ensure_future(anext(updates))
    await settle()
    await task.refresh()
    await task.refresh()
    assert await following == done()
    assert [one async for one in updates] == []


async def test_leaving_the_updates_leaves_nothing(home: Home) -> None:
    """A reader that breaks off, and one that is cancelled, leave no wait behind."""
    task = home.task(record=record())
    async for one in task.updates():
        assert one == record()
        break
    updates = task.updates()
    await anext(updates)
    following = asyncio.ensure_future(anext(updates))
    await settle()
    following.cancel()
    await settle()
    assert following.cancelled()
    assert home.scene.has_nothing_left()


async def test_the_updates_have_a_deadline(home: Home) -> None:
    """It is one for all of them, and ends them with `WaitTimeout`."""
    task = home.task()

    async def follow() -> None:
        async for _ in task.updates(timeout=10.0):
            pass

    assert isinstance(await ended(home, asyncio.ensure_future(follow()), 10), WaitTimeout)


# One look


async def test_a_refresh_is_one_look(home: Home) -> None:
    """It gives what the gateway says, keeps it, and raises what it says no with."""
    home.scene.feed.says(record(progress=0.3), no(GatewayDown))
    task = home.task()
    assert await task.refresh() == record(progress=0.3)
    assert task.record == record(progress=0.3)
    with pytest.raises(GatewayDown):
        await task.refresh()
    assert task.record == record(progress=0.3)
    assert len(home.scene.feed.looks) == 2


# Clips


def test_a_clip_shows_no_address(home: Home) -> None:
    """Its repr is its id: the address is as good as a key to it."""
    clip = Clip(home, home.task(), done())
    assert repr(clip) == "<Clip t-1>"
    assert Clip(home, home.task(), record()).video_url == ""


async def test_a_clip_is_saved_by_its_home(home: Home, tmp_path: Path) -> None:
    """The path may be text; size limit and listener are passed on."""
    clip = Clip(home, home.task(), done())
    target = tmp_path / "clip.mp4"
    assert await clip.download(str(target), max_bytes=5, on_progress=id) == target
    how = {"overwrite": False, "max_bytes": 5, "on_progress": id}
    assert home.saved == [(clip, target, how)]


@pytest.mark.parametrize("value", [None, 5, b"clip.mp4", ["clip.mp4"]], ids=str)
async def test_a_path_that_is_none_is_a_usage_error(home: Home, value: Any) -> None:
    """It names the argument, and the money that was spent already."""
    with pytest.raises(UsageError) as caught:
        await Clip(home, home.task(), done()).download(value)
    assert caught.value.field == "path"
    assert caught.value.money == "The clip exists and is paid for."
    assert home.saved == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("overwrite", "yes"),
        ("overwrite", 1),
        ("overwrite", None),
        ("max_bytes", "x"),
        ("max_bytes", 1e9),
        ("max_bytes", True),
        ("max_bytes", 0),
        ("max_bytes", None),
        ("on_progress", "print"),
        ("on_progress", 5),
    ],
)
async def test_an_argument_of_another_type_is_a_usage_error(
    home: Home, tmp_path: Path, field: str, value: Any
) -> None:
    """It is named before anything is opened."""
    clip = Clip(home, home.task(), done())
    with pytest.raises(UsageError, match=field) as caught:
        await clip.download(tmp_path / "clip.mp4", **{field: value})
    assert caught.value.field == field
    assert (caught.value.task_id, caught.value.money) == ("t-1", "The clip exists and is paid for.")
    assert home.saved == []
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240


async def test_a_bad_target_is_told_before_anything_is_asked(home: Home, tmp_path: Path) -> None:
    """A file that exists is not replaced unless that is allowed."""
    target = tmp_path / "clip.mp4"
    target.write_bytes(b"old")
    clip = Clip(home, home.task(), done())
    with pytest.raises(UsageError):
        await clip.download(target)
    assert home.saved == []
    assert await clip.download(target, overwrite=True) == target


async def test_a_fresh_address_is_asked_for(home: Home) -> None:
    """Without need nothing is asked; with it one look gives the new one, which is kept."""
    fresh = record(state=TaskState.SUCCEEDED, video_url="https://cdn.example/2.mp4")
    home.scene.feed.says(fresh)
    clip = Clip(home, home.task(), done())
    assert await clip.address() == VIDEO
    assert home.scene.feed.looks == []
    assert await clip.address(fresh=True) == fresh.video_url
    assert clip.video_url == fresh.video_url


async def test_an_address_that_is_gone_is_told(home: Home) -> None:
    """A gateway that shows none any more is `ClipMissing`, and the old record stays."""
    home.scene.feed.says(record())
    clip = Clip(home, home.task(), done())
    with pytest.raises(ClipMissing) as caught:
        await clip.address(fresh=True)
    assert caught.value.task_id == "t-1"
    assert clip.record == done()
    assert others() == set()


# In a notebook


def test_a_task_shows_how_it_stands(home: Home) -> None:
    """What the gateway last said, and for how long it has run; no prompt."""
    home.ages["t-1"] = 72.0
    running = home.task(record=record(progress=0.42, prompt="a marked kitten"))
    html = running._repr_html_()
    assert read_page(html).text == "Running · 42% · for 1 min 12 sTask t-1"
    assert "marked" not in html
    assert read_page(home.task()._repr_html_()).text.startswith("Not polled yet · for")


def test_a_failed_task_shows_why(home: Home) -> None:
    """With secrets taken out of the reason, and what it means for the money."""
    answer = record(
        state=TaskState.FAILED,
        message="<b>a kitten</b> at https://a.example/1.png is not allowed",
        refunded=True,
    )
    page = read_page(home.task(record=answer, request=TextToVideo("a kitten"))._repr_html_())
    assert page.text == (
        "Failed<b><hidden></b> at <url> is not allowedThe points were given back.Task t-1"
    )
    bare = home.task(record=record(state=TaskState.CANCELED))
    assert read_page(bare._repr_html_()).text.startswith("CancelledThe gateway did not say")


async def test_a_clip_shows_itself_from_where_it_is(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its address, until it was saved by this handle below the working directory."""
    (tmp_path / "here" / "my clips").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    clip = Clip(home, home.task(), done())

    def source() -> str | None:
        [video] = read_page(clip._repr_html_()).all("video")
        return video["src"]

    assert source() == VIDEO
    await clip.download("my clips/a:b#\udcff.mp4")
    assert source() == VIDEO  # the file is not there
    home.saved[-1][1].write_bytes(b"clip")
    assert source() == "my%20clips/a%3Ab%23%FF.mp4"
    assert VIDEO not in clip._repr_html_()
    await clip.download(tmp_path / "elsewhere.mp4")
    (tmp_path / "elsewhere.mp4").write_bytes(b"clip")
    assert source() == VIDEO
