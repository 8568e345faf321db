from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.feed import VIDEO, done, record
from support.pages import read_page

from fuhu_runway._notebook import MAX_TEXT, STATES, clip_view, duration, task_view
from fuhu_runway.models import TaskState

POSTER = "https://cdn.example/1.png"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</div></small></code><iframe src=//evil.example>",
    "&lt;script&gt; <!-- ",
    "javascript:alert(1)",
    "\ud800<b>",
    "\0<svg/onload=alert(1)>",
]
EACH_HOSTILE = pytest.mark.parametrize("text", HOSTILE, ids=ascii)


def luminance(color: str) -> float:
    """Return the relative luminance of a colour (WCAG 2)."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# A task


@pytest.mark.parametrize("state", TaskState)
def test_each_state_has_a_name_and_a_colour_that_stands_out(state: TaskState) -> None:
    """The colour's contrast is at least 3:1 on white and on black, and the name is text."""
    for name, color in (STATES[state], STATES[None]):
        assert 1.05 / (luminance(color) + 0.05) >= 3
        assert (luminance(color) + 0.05) / 0.05 >= 3
        assert name
    page = read_page(task_view("t-1", record(state=state)))
    assert page.text.startswith(STATES[state][0])
    assert STATES[state][1] in str(page.tags[0][1]["style"])
    assert "Task t-1" in page.text


def test_a_running_task_shows_its_progress() -> None:
    """As text, and as a bar whose name a screen reader announces."""
    page = read_page(task_view("t-1", record(progress=0.424), age=72.9))
    assert page.text == "Running · 42% · for 1 min 12 sTask t-1"
    [bar] = page.all("progress")
    assert (bar["max"], bar["value"]) == ("100", "42")
    assert bar["title"] == "Progress of task t-1"


def test_a_task_of_unknown_progress_has_no_bar() -> None:
    """A bar without a value would move forever in a saved notebook."""
    page = read_page(task_view("t-1", record()))
    assert page.text == "RunningTask t-1"
    assert page.all("progress") == []


def test_a_task_known_by_its_id_only() -> None:
    """It says that it was not polled yet, and not that it is queued."""
    assert read_page(task_view("t-1", None)).text == "Not polled yetTask t-1"


def test_the_bar_of_a_task_that_has_its_clip_is_full() -> None:
    """Whatever the last percent was; the text says how to get the clip."""
    page = read_page(task_view("t-1", done()))
    assert [bar["value"] for bar in page.all("progress")] == ["100"]
    assert page.text == "SucceededAwait the task to get the clip.Task t-1"
    assert VIDEO not in task_view("t-1", done())


def test_a_success_without_a_url_says_so() -> None:
    """The clip cannot be awaited yet."""
    page = read_page(task_view("t-1", record(state=TaskState.SUCCEEDED, video_url=None)))
    assert "no URL for the clip yet" in page.text


@pytest.mark.parametrize("state", [TaskState.FAILED, TaskState.CANCELED])
def test_a_failure_has_its_reason_and_no_bar(state: TaskState) -> None:
    """It says what the failure means for the money, however long the reason is."""
    long = "x" * 1000
    page = read_page(task_view("t-1", record(state=state, progress=0.8), reason=long, money="Ok."))
    assert page.text.endswith(f"{'x' * MAX_TEXT}…Ok.Task t-1")
    assert page.all("progress") == []


def test_an_unknown_state_shows_the_status() -> None:
    """The gateway's status is shown as text, if there is one."""
    page = read_page(task_view("t-1", record(state=TaskState.UNKNOWN, word="<b>PAUSED")))
    assert page.text.endswith("The gateway calls it: <b>PAUSEDTask t-1")
    bare = record(state=TaskState.UNKNOWN)
    assert read_page(task_view("t-1", bare)).text.endswith("calls it: Task t-1")


@pytest.mark.parametrize("took", [100, -1, None])
def test_a_task_that_ended_shows_how_long_it_took(took: int | None) -> None:
    """By the gateway's own clock, if that makes sense; the time since then does not count."""
    updated = None if took is None else NOON + timedelta(seconds=took)
    ended = record(state=TaskState.FAILED, created_at=NOON, updated_at=updated)
    page = read_page(task_view("t-1", ended, age=5000.0))
    assert page.text == ("Failed · after 1 min 40 sTask t-1" if took == 100 else "FailedTask t-1")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min")],
)
def test_a_duration_is_short(seconds: float, text: str) -> None:
    """It has at most two units."""
    assert duration(seconds) == text


@EACH_HOSTILE
def test_the_texts_of_a_task_are_escaped(text: str) -> None:
    """Id, reason and status make no element and no attribute."""
    plain = read_page(task_view("t-1", record(state=TaskState.FAILED), reason="a", money="b"))
    page = read_page(task_view(text, record(state=TaskState.FAILED), reason=text, money=text))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    shown = text.replace("\ud800", "?")
    assert page.text == f"Failed{shown}{shown}Task {shown}"
    odd = read_page(task_view("t-1", record(state=TaskState.UNKNOWN, word=text, progress=0.1)))
    tags = " ".join(tag for tag, _ in odd.tags)
    assert tags == "div div strong div progress div div small code"


# A clip


def test_a_clip_plays_from_its_url() -> None:
    """It has controls, a poster and a name, and preloads only its metadata."""
    shown = record(state=TaskState.SUCCEEDED, poster_url=POSTER, points=320.0)
    page = read_page(clip_view("t-1", shown, None))
    [video] = page.all("video")
    assert (video["src"], video["poster"], video["title"]) == (VIDEO, POSTER, "Clip t-1")
    assert video["preload"] == "metadata"
    assert "controls" in video
    assert page.text.startswith("Clip t-1 · 320 points")
    assert "temporary" in page.text


def test_a_clip_plays_from_its_file() -> None:
    """None of the gateway's URLs is in the view then, the poster's included."""
    html = clip_view("t-1", record(state=TaskState.SUCCEEDED, poster_url=POSTER), "a%20b.mp4")
    [video] = read_page(html).all("video")
    assert video["src"] == "a%20b.mp4"
    assert "https:" not in html
    assert "Plays the file." in html


@pytest.mark.parametrize(
    "url",
    [
        None,
        "javascript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "file:///etc/passwd",
        "//evil.example/1.mp4",
        "https://a.example/\ud800.mp4",
    ],
    ids=ascii,
)
def test_only_http_urls_are_played(url: str | None) -> None:
    """A clip with any other URL says so, and such a poster is left out."""
    html = clip_view("t-1", record(state=TaskState.SUCCEEDED, video_url=url), None)
    page = read_page(html)
    assert page.all("video") == []
    assert "cannot be played here" in page.text
    posed = record(state=TaskState.SUCCEEDED, poster_url=url)
    [video] = read_page(clip_view("t-1", posed, None)).all("video")
    assert "poster" not in video


@EACH_HOSTILE
def test_the_texts_of_a_clip_are_escaped(text: str) -> None:
    """Its id and both of its URLs make no element and no attribute."""
    address = "https://a.example/" + text.replace("\ud800", "").replace("\0", "").replace(" ", "")
    parts: dict[str, Any] = {"video_url": address, "poster_url": address}
    page = read_page(clip_view(text, record(state=TaskState.SUCCEEDED, **parts), None))
    tags = [tag for tag, _ in page.tags]
    assert tags == ["div", "video", "div", "small", "code", "br"]
    [video] = page.all("video")
    assert (video["src"], video["poster"]) == (address, address)
    assert video["title"] == "Clip " + text.replace("\ud800", "?")
