"""The notebook views in a real browser."""

from pathlib import Path

import pytest
from support.browser import BROWSER, look_at
from support.feed import record

from fuhu_runway import Client
from fuhu_runway._notebook import clip_view, task_view
from fuhu_runway.models import TaskState
from fuhu_runway.testing import Simulator

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

SIGN = "injected = 1"
HOSTILE = [
    f"<script>{SIGN}</script>",
    f'"><img src=/stray onerror="{SIGN}">',
    f"' onmouseover='{SIGN}' autofocus onfocus='{SIGN}",
    f"</code></small></div></section><iframe src='javascript:parent.{SIGN}'></iframe>",
    f"<svg/onload={SIGN}>",
    f"&lt;script&gt;{SIGN}&lt;/script&gt;",
    f"<!--><script>{SIGN}</script>",
]


async def test_a_clip_plays_and_a_task_shows_its_progress(
    gateway: Simulator, runway: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clip plays from its URL and from its file, and the progress bar has its value."""
    monkeypatch.chdir(tmp_path)
    clip = await (await runway.generate("a kitten"))
    views = [clip._repr_html_()]
    (tmp_path / "my clips").mkdir()
    await clip.download("my clips/a kitten.mp4")
    views += [clip._repr_html_(), task_view("t-1", record(progress=0.42), age=72.0)]
    seen, asked = await look_at(views, tmp_path, tmp_path / "profile")

    streamed, saved = seen["videos"]
    assert streamed["source"] == clip.video_url
    assert saved["source"].endswith("/my%20clips/a%20kitten.mp4")
    for video in (streamed, saved):
        assert video["trouble"] is None
        assert video["duration"] == pytest.approx(2, abs=0.2)
        assert video["at"] > 0
        assert video["width"] == 480
        assert video["name"] == f"Clip {clip.id}"
    assert seen["bars"] == [{"position": 0.42, "name": "Progress of task t-1"}]
    assert seen["views"][2]["text"].split("\n")[0] == "Running · 42% · for 1 min 12 s"
    assert set(asked) == {"/", "/my clips/a kitten.mp4", "/seen"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_view_has_the_colours_of_its_page(scheme: str, tmp_path: Path) -> None:
    """Its text is as readable as the rest, on a light page and on a dark one."""
    views = [task_view("t-1", record(progress=0.42))]
    seen, _ = await look_at(views, tmp_path, tmp_path / "profile", scheme=scheme)
    [view] = seen["views"]
    assert view["color"] == seen["color"]
    assert view["color"] == ("rgb(0, 0, 0)" if scheme == "light" else "rgb(255, 255, 255)")
    assert view["background"] == "rgba(0, 0, 0, 0)"


async def test_a_hostile_gateway_injects_nothing(tmp_path: Path) -> None:
    """No id, reason, word or URL runs a script or makes a request."""
    failed = record(state=TaskState.FAILED)
    plain = [
        task_view("t-1", failed, reason="a", money="b"),
        task_view("t-1", record(state=TaskState.UNKNOWN, word="a")),
        clip_view("t-1", record(state=TaskState.SUCCEEDED, video_url="a", poster_url="b"), None),
    ]
    views = [
        view
        for text in HOSTILE
        for view in (
            task_view(text, failed, reason=text, money=text),
            task_view(text, record(state=TaskState.UNKNOWN, word=text)),
            clip_view(text, record(state=TaskState.SUCCEEDED, video_url=text), None),
        )
    ]
    address = f"javascript:{SIGN}"
    views.append(clip_view("t-1", record(state=TaskState.SUCCEEDED, video_url=address), None))
    seen, asked = await look_at([*plain, *views], tmp_path, tmp_path / "profile")
    assert seen["injected"] is None
    assert asked == ["/", "/seen"]
    expected = [view["tags"] for view in seen["views"][:3]]
    found = [view["tags"] for view in seen["views"][3:]]
    assert found == expected * len(HOSTILE) + expected[2:]
    assert HOSTILE[0] in seen["views"][3]["text"]
