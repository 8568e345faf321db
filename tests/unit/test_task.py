import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.clients import others
from support.clock import ManualClock, settle
from support.feed import VIDEO, Scene, done, record, refusal, scene_on
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
class FakeSessions:
    """Stands for the client: a poller, and a list of the clips to save."""

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

    @contextmanager
    def downloading(self, clip: Clip) -> Iterator[tuple["FakeSessions", Clip]]:
        yield self, clip

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
    """Return a poller without jitter."""
    return scene_on(clock)


@pytest.fixture
def sessions(scene: Scene) -> FakeSessions:
    """Return what stands for the client."""
    return FakeSessions(scene)


async def ended(
    sessions: FakeSessions, waiting: "asyncio.Future[Any]", seconds: float = 0.0
) -> BaseException:
    """Return the error that ends a wait within some seconds."""
    await sessions.scene.clock.advance(seconds)
    error = waiting.exception()
    assert error is not None
    return error


# The task


def test_a_task_shows_its_state(sessions: FakeSessions) -> None:
    """Its repr has id, state and percent, and nothing else; before any poll it is unknown."""
    unknown = sessions.task()
    assert repr(unknown) == "<Task t-1 UNKNOWN>"
    assert (unknown.state, unknown.progress, unknown.points) == (TaskState.UNKNOWN, None, None)
    running = sessions.task(record=record(progress=0.42, points=20.0, prompt="a secret"))
    assert repr(running) == "<Task t-1 RUNNING 42%>"
    assert (running.state, running.progress, running.points) == (TaskState.RUNNING, 0.42, 20.0)
    assert Clip(sessions, running, done()).points == done().points


def test_a_task_keeps_its_request(sessions: FakeSessions) -> None:
    """It also keeps the time of its submission; an attached one knows neither."""
    request = TextToVideo("a kitten")
    task = sessions.task(request=request, submitted_at=7.0, official=True)
    assert (task.request, task.submitted_at, task.official) == (request, 7.0, True)
    bare = sessions.task()
    assert (bare.request, bare.submitted_at, bare.official, bare.record) == (
        None,
        None,
        False,
        None,
    )


def test_the_prompts_of_a_task_are_secret(sessions: FakeSessions) -> None:
    """The prompt as it was sent and as the gateway has it, if known."""
    known = record(prompt="ein Kätzchen", prompt_en="a kitten")
    assert sessions.task(request=TextToVideo("猫"), record=known).secrets() == (
        "猫",
        "ein Kätzchen",
        "a kitten",
    )
    assert sessions.task(request=OfficialImageToVideo("https://a.example/1.png")).secrets() == ()
    assert sessions.task().secrets() == ()


def test_a_task_has_the_record_of_its_webhook(sessions: FakeSessions) -> None:
    """A task with a callback URL is up to date without a wait."""
    task = sessions.task()
    watch = sessions.scene.watch()
    task.keep(watch)
    sessions.scene.poller.take_found(watch, done())
    assert task.record == done()


# Waiting


async def test_a_wait_returns_the_clip(sessions: FakeSessions) -> None:
    """It has the record that ended the task, and the task."""
    sessions.scene.feed.returns(record(), done())
    task = sessions.task()
    waiting = asyncio.ensure_future(task.wait())
    await sessions.scene.clock.advance(3)
    clip = waiting.result()
    assert (clip.record, clip.task, clip.id, clip.video_url) == (done(), task, "t-1", VIDEO)
    assert task.record == done()
    assert task.state is TaskState.SUCCEEDED


async def test_awaiting_a_task_is_waiting_for_it(sessions: FakeSessions) -> None:
    """`await task` returns what `await task.wait()` returns."""
    sessions.scene.feed.returns(done())
    task = sessions.task()

    async def wait() -> Clip:
        return await task

    waiting = asyncio.ensure_future(wait())
    await sessions.scene.clock.advance(0)
    assert waiting.result().record == done()


async def test_several_waits_share_a_poll(sessions: FakeSessions) -> None:
    """Two tasks with one id, two waits each, with and without `on_update`: one poll."""
    sessions.scene.feed.returns(done())
    one, other = sessions.task(), sessions.task()
    waits = [
        asyncio.ensure_future(task.wait(on_update=callback))
        for task in (one, other)
        for callback in (None, id)
    ]
    await sessions.scene.clock.advance(0)
    assert [wait.result().record for wait in waits] == [done()] * 4
    assert len(sessions.scene.feed.polls) == 1


async def test_each_change_is_reported(sessions: FakeSessions) -> None:
    """`on_update` is called once for every change, the end included."""
    answers = [record(progress=0.2), record(progress=0.2), record(progress=0.8), done()]
    sessions.scene.feed.returns(*answers)
    reported: list[TaskRecord] = []
    waiting = asyncio.ensure_future(sessions.task().wait(on_update=reported.append))
    await sessions.scene.clock.advance(60)
    assert waiting.result().record == done()
    assert reported == [answers[0], answers[2], answers[3]]


async def test_a_callback_that_raises_ends_its_own_wait(sessions: FakeSessions) -> None:
    """The error of `on_update` is raised as it is; other waits go on."""

    def fail(record: TaskRecord) -> None:
        raise ZeroDivisionError

    sessions.scene.feed.returns(record(), done())
    task = sessions.task()
    bad = asyncio.ensure_future(task.wait(on_update=fail))
    good = asyncio.ensure_future(task.wait())
    assert isinstance(await ended(sessions, bad, 3), ZeroDivisionError)
    assert good.result().record == done()
    assert sessions.scene.has_nothing_left()


@pytest.mark.parametrize(
    ("state", "kind", "word"),
    [
        (TaskState.FAILED, TaskFailed, "failed"),
        (TaskState.CANCELED, TaskCanceled, "was cancelled"),
    ],
)
@pytest.mark.parametrize("callback", [None, id], ids=["without", "with a callback"])
async def test_a_failure_has_its_reason(
    sessions: FakeSessions,
    state: TaskState,
    kind: type[TaskFailed],
    word: str,
    callback: Callable[[object], object] | None,
) -> None:
    """It has its code, its points and whether they came back, with every secret hidden."""
    answer = record(
        state=state,
        message="a kitten at https://a.example/1.png is not allowed",
        failure_code="SAFETY.INPUT",
        points=320.0,
        refunded=True,
    )
    sessions.scene.feed.returns(answer)
    task = sessions.task(request=TextToVideo("a kitten"))
    error = await ended(sessions, asyncio.ensure_future(task.wait(on_update=callback)))
    assert type(error) is kind
    assert isinstance(error, TaskFailed)
    assert error.reason == "<hidden> at <url> is not allowed"
    assert (error.code, error.points, error.refunded) == ("SAFETY.INPUT", 320.0, True)
    assert str(error).startswith(f"The task {word}: <hidden> at <url> is not allowed.")
    assert "points were refunded" in str(error)
    assert error.task_id == "t-1"


async def test_a_reason_that_ends_in_a_stop_gets_no_second(sessions: FakeSessions) -> None:
    """The gateway's own words may end with a full stop."""
    sessions.scene.feed.returns(record(state=TaskState.FAILED, message="rejected."))
    error = await ended(sessions, asyncio.ensure_future(sessions.task().wait()))
    assert str(error).startswith("The task failed: rejected. The gateway did not say")


async def test_a_failure_without_a_reason(sessions: FakeSessions) -> None:
    """It says that the task failed, and that nothing is known of the points."""
    sessions.scene.feed.returns(record(state=TaskState.FAILED))
    error = await ended(sessions, asyncio.ensure_future(sessions.task().wait()))
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
async def test_a_failed_official_task_follows_runways_own_rules(
    sessions: FakeSessions, points: float | None, money: str
) -> None:
    """The record counts first, and else the documentation of the format."""
    sessions.scene.feed.returns(record(state=TaskState.FAILED, points=points))
    error = await ended(
        sessions, asyncio.ensure_future(Task(sessions, "t-1", official=True).wait())
    )
    assert money in str(error)


@pytest.mark.parametrize("callback", [None, id], ids=["without", "with a callback"])
async def test_a_timeout_leaves_the_task_as_it_is(
    sessions: FakeSessions, callback: Callable[[object], object] | None
) -> None:
    """The deadline is for the whole wait, whatever changes meanwhile."""
    sessions.scene.feed.returns(*(record(progress=step / 10) for step in range(9)), done())
    task = sessions.task()
    error = await ended(
        sessions, asyncio.ensure_future(task.wait(timeout=12.0, on_update=callback)), 12
    )
    assert isinstance(error, WaitTimeout)
    assert error.timeout == 12.0
    again = asyncio.ensure_future(task.wait())
    await sessions.scene.clock.advance(200)
    assert again.result().record == done()


@pytest.mark.parametrize("timeout", [-1.0, float("nan"), float("-inf")])
async def test_an_invalid_timeout_is_a_usage_error(sessions: FakeSessions, timeout: float) -> None:
    """Below zero, or not a number: nothing is polled."""
    with pytest.raises(UsageError) as caught:
        await sessions.task().wait(timeout=timeout)
    assert caught.value.field == "timeout"
    with pytest.raises(UsageError):
        await sessions.task().wait(timeout=timeout, on_update=id)
    assert sessions.scene.has_nothing_left()


async def test_an_async_callback_is_awaited(sessions: FakeSessions) -> None:
    """What it raises ends the wait, as with a plain one."""
    sessions.scene.feed.returns(record(progress=0.5), done())
    reported: list[TaskRecord] = []

    async def callback(one: TaskRecord) -> None:
        await asyncio.sleep(0)
        reported.append(one)

    task = sessions.task()
    waiting = asyncio.ensure_future(task.wait(on_update=callback))
    await sessions.scene.clock.advance(30)
    assert (await waiting).record == done()
    assert reported == [record(progress=0.5), done()]

    async def fail(one: TaskRecord) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await task.wait(on_update=fail)


async def test_a_wait_without_a_timeout_has_no_deadline(sessions: FakeSessions) -> None:
    """With None there is one timer, for the next poll, and the wait goes on for hours."""
    waiting = asyncio.ensure_future(sessions.task().wait(timeout=None))
    await sessions.scene.clock.advance(7200)
    assert not waiting.done()
    waiting.cancel()
    await settle()
    assert sessions.scene.has_nothing_left()


async def test_a_record_outlives_its_poller(sessions: FakeSessions, clock: ManualClock) -> None:
    """A task that has ended keeps its record, even if another loop's poller does not know it."""
    sessions.scene.feed.returns(done())
    task = sessions.task()
    waiting = asyncio.ensure_future(task.wait())
    await clock.advance(0)
    assert waiting.done()
    sessions.scene = scene_on(clock)
    assert (await task.wait(timeout=0)).record == done()
    assert sessions.scene.feed.polls == []


# Updates


async def test_updates_end_with_the_task(sessions: FakeSessions) -> None:
    """They begin with the known record, yield each change, and do not raise `TaskFailed`."""
    failed = record(state=TaskState.FAILED)
    sessions.scene.feed.returns(record(progress=0.5), failed)
    known = record(state=TaskState.QUEUED)

    async def follow() -> list[TaskRecord]:
        return [one async for one in sessions.task(record=known).updates()]

    following = asyncio.ensure_future(follow())
    await sessions.scene.clock.advance(30)
    assert following.result() == [known, record(progress=0.5), failed]
    assert sessions.scene.has_nothing_left()


async def test_a_slow_reader_gets_the_latest_only(sessions: FakeSessions) -> None:
    """Changes while the reader was busy are yielded as one change."""
    sessions.scene.feed.returns(*(record(progress=step / 10) for step in range(9)), done())
    task = sessions.task()
    other_wait = asyncio.ensure_future(task.wait())
    updates = task.updates()
    first = asyncio.ensure_future(anext(updates))
    await sessions.scene.clock.advance(0)
    assert first.result().progress == 0.0
    await sessions.scene.clock.advance(200)
    assert [one async for one in updates] == [done()]
    assert other_wait.done()


async def test_a_change_after_a_change_is_not_lost(sessions: FakeSessions) -> None:
    """Two polls that end before the reader's turn are one change, the later one."""
    sessions.scene.feed.returns(record(), record(progress=0.5), done())
    task = sessions.task()
    await task.refresh()
    updates = task.updates()
    assert await anext(updates) == record()
    following = asyncio.ensure_future(anext(updates))
    await settle()
    await task.refresh()
    await task.refresh()
    assert await following == done()
    assert [one async for one in updates] == []


async def test_leaving_the_updates_leaves_no_wait(sessions: FakeSessions) -> None:
    """A reader that breaks off, and one that is cancelled, leave no wait behind."""
    task = sessions.task(record=record())
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
    assert sessions.scene.has_nothing_left()


async def test_the_updates_have_a_deadline(sessions: FakeSessions) -> None:
    """It is one for all of them, and ends them with `WaitTimeout`."""
    task = sessions.task()

    async def follow() -> None:
        async for _ in task.updates(timeout=10.0):
            pass

    assert isinstance(await ended(sessions, asyncio.ensure_future(follow()), 10), WaitTimeout)


# One poll


async def test_a_refresh_is_one_poll(sessions: FakeSessions) -> None:
    """It returns the record and keeps it, and raises the gateway's refusals."""
    sessions.scene.feed.returns(record(progress=0.3), refusal(GatewayDown))
    task = sessions.task()
    assert await task.refresh() == record(progress=0.3)
    assert task.record == record(progress=0.3)
    with pytest.raises(GatewayDown):
        await task.refresh()
    assert task.record == record(progress=0.3)
    assert len(sessions.scene.feed.polls) == 2


# Clips


def test_a_clip_shows_no_url(sessions: FakeSessions) -> None:
    """Its repr has its id only: the URL is all that is needed to fetch it."""
    clip = Clip(sessions, sessions.task(), done())
    assert repr(clip) == "<Clip t-1>"
    assert Clip(sessions, sessions.task(), record()).video_url == ""


async def test_a_clip_is_saved_by_its_client(sessions: FakeSessions, tmp_path: Path) -> None:
    """The path may be a string; limit and callback are passed on."""
    clip = Clip(sessions, sessions.task(), done())
    target = tmp_path / "clip.mp4"
    assert await clip.download(str(target), max_bytes=5, on_progress=id) == target
    how = {"overwrite": False, "max_bytes": 5, "on_progress": id}
    assert sessions.saved == [(clip, target, how)]


@pytest.mark.parametrize("value", [None, 5, b"clip.mp4", ["clip.mp4"]], ids=str)
async def test_an_invalid_path_is_a_usage_error(sessions: FakeSessions, value: Any) -> None:
    """The error names the argument, and says that the clip is paid for."""
    with pytest.raises(UsageError) as caught:
        await Clip(sessions, sessions.task(), done()).download(value)
    assert caught.value.field == "path"
    assert caught.value.money == "The clip exists and is paid for."
    assert sessions.saved == []


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
    sessions: FakeSessions, tmp_path: Path, field: str, value: Any
) -> None:
    """The error names it, and no file is opened."""
    clip = Clip(sessions, sessions.task(), done())
    with pytest.raises(UsageError, match=field) as caught:
        await clip.download(tmp_path / "clip.mp4", **{field: value})
    assert caught.value.field == field
    assert (caught.value.task_id, caught.value.money) == ("t-1", "The clip exists and is paid for.")
    assert sessions.saved == []
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240


async def test_a_bad_target_is_found_before_any_request(
    sessions: FakeSessions, tmp_path: Path
) -> None:
    """An existing file is not replaced without *overwrite*."""
    target = tmp_path / "clip.mp4"
    target.write_bytes(b"old")
    clip = Clip(sessions, sessions.task(), done())
    with pytest.raises(UsageError):
        await clip.download(target)
    assert sessions.saved == []
    assert await clip.download(target, overwrite=True) == target


async def test_a_fresh_url_takes_one_poll(sessions: FakeSessions) -> None:
    """Only a fresh URL is polled for, and the clip keeps it."""
    fresh = record(state=TaskState.SUCCEEDED, video_url="https://cdn.example/2.mp4")
    sessions.scene.feed.returns(fresh)
    clip = Clip(sessions, sessions.task(), done())
    assert await clip.address() == VIDEO
    assert sessions.scene.feed.polls == []
    assert await clip.address(fresh=True) == fresh.video_url
    assert clip.video_url == fresh.video_url


async def test_a_url_that_is_gone_raises_clip_missing(sessions: FakeSessions) -> None:
    """The clip keeps its old record."""
    sessions.scene.feed.returns(record())
    clip = Clip(sessions, sessions.task(), done())
    with pytest.raises(ClipMissing) as caught:
        await clip.address(fresh=True)
    assert caught.value.task_id == "t-1"
    assert clip.record == done()
    assert others() == set()


# In a notebook


def test_a_notebook_shows_the_progress_of_a_task(sessions: FakeSessions) -> None:
    """The state of the last poll, and for how long it has run; no prompt."""
    sessions.ages["t-1"] = 72.0
    running = sessions.task(record=record(progress=0.42, prompt="a marked kitten"))
    html = running._repr_html_()
    assert read_page(html).text == "Running · 42% · for 1 min 12 sTask t-1"
    assert "marked" not in html
    assert read_page(sessions.task()._repr_html_()).text.startswith("Not polled yet · for")


def test_a_notebook_shows_why_a_task_failed(sessions: FakeSessions) -> None:
    """The reason, with secrets hidden, and what it means for the money."""
    answer = record(
        state=TaskState.FAILED,
        message="<b>a kitten</b> at https://a.example/1.png is not allowed",
        refunded=True,
    )
    page = read_page(sessions.task(record=answer, request=TextToVideo("a kitten"))._repr_html_())
    assert page.text == (
        "Failed<b><hidden></b> at <url> is not allowedThe points were refunded.Task t-1"
    )
    bare = sessions.task(record=record(state=TaskState.CANCELED))
    assert read_page(bare._repr_html_()).text.startswith("CancelledThe gateway did not say")


async def test_awaiting_a_clip_returns_it(sessions: FakeSessions) -> None:
    """A cell that ends with `await clip` shows the player, as one that ends with `clip`."""
    clip = Clip(sessions, sessions.task(), done())
    assert await clip is clip


async def test_a_notebook_plays_the_file_or_the_url(
    sessions: FakeSessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It plays the URL until the clip is saved below the working directory."""
    (tmp_path / "here" / "my clips").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    clip = Clip(sessions, sessions.task(), done())

    def source() -> str | None:
        [video] = read_page(clip._repr_html_()).all("video")
        return video["src"]

    assert source() == VIDEO
    await clip.download("my clips/a:b#\udcff.mp4")
    assert source() == VIDEO  # the file is not there
    sessions.saved[-1][1].write_bytes(b"clip")
    assert source() == "my%20clips/a%3Ab%23%FF.mp4"
    assert VIDEO not in clip._repr_html_()
    await clip.download(tmp_path / "elsewhere.mp4")
    (tmp_path / "elsewhere.mp4").write_bytes(b"clip")
    assert source() == VIDEO
