"""What a notebook shows of batches and journals, and how it follows them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from support.pages import Page, read_page

from fuhu_runway import Client, Journal
from fuhu_runway import _live as live_module
from fuhu_runway._live import Live
from fuhu_runway._notebook import NEWEST, jobs_view, table_view
from fuhu_runway.batch import NEWEST as NEWEST_OUTCOMES
from fuhu_runway.items import Item
from fuhu_runway.journal import Job, JobState, Plan
from fuhu_runway.models import TextToVideo
from fuhu_runway.testing import Simulator

pytest.importorskip("IPython")

PROMPT: Final = "a secret kitten"
HOSTILE: Final = ["<script>alert(1)</script>", "</td><img src=x onerror=alert(1)>", "\ud800<b>"]


@attrs.define
class Screen:
    """The outputs of a notebook: what was displayed, and each update of it."""

    shown: list[dict[str, str]] = attrs.field(factory=list)
    updates: list[dict[str, str]] = attrs.field(factory=list)
    is_gone: bool = False

    def display(self, data: dict[str, str], **how: Any) -> "Screen":
        assert how == {"raw": True, "display_id": True}
        self.shown.append(data)
        return self

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        if self.is_gone:
            raise OSError
        self.updates.append(data)

    @property
    def newest(self) -> Page:
        """The elements of what is shown now."""
        return read_page((self.shown + self.updates)[-1]["text/html"])


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A notebook's page."""
    screen = Screen()
    monkeypatch.setattr("IPython.display.display", screen.display)
    return screen


# Tables


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_table_is_escaped(text: str) -> None:
    """Its title, its head and its cells make no element."""
    page = read_page(table_view(text, [text], [[text]]))
    tags = [tag for tag, _ in page.tags]
    assert tags == ["div", "strong", "table", "tr", "th", "tr", "td"]
    assert page.text == text.replace("\ud800", "?") * 3


# A view that is updated


async def test_a_view_that_is_not_shown_is_not_updated(screen: Screen) -> None:
    """Outside a notebook, nothing is made and no timer is set."""

    def view() -> str:
        raise AssertionError

    live = Live(view)
    live.changed()
    live.update()
    assert screen == Screen()


async def test_many_changes_are_one_update(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has what is true by then; a terminal is given its text once."""
    monkeypatch.setattr(live_module, "INTERVAL", 0.0)
    counts = iter("12345")
    live = Live(lambda: next(counts))
    live.show("<Batch>")
    assert screen.shown == [{"text/plain": "<Batch>", "text/html": "1"}]
    for _ in range(3):
        live.changed()
    await asyncio.sleep(0.001)
    live.changed()
    live.update()
    await asyncio.sleep(0.001)
    assert screen.updates == [{"text/html": "2"}, {"text/html": "3"}]


async def test_a_page_that_is_gone_ends_nothing(screen: Screen) -> None:
    """An error of the notebook is not an error of the batch."""
    live = Live(lambda: "")
    live.show("")
    screen.is_gone = True
    live.update()
    assert screen.updates == []


# A batch


async def test_a_batch_is_followed_in_a_notebook(
    gateway: Simulator, runway: Client, screen: Screen
) -> None:
    """Its table has the counts and how the newest jobs ended, and no prompt."""
    gateway.script("fail", then="fail")
    prompts = [Item(TextToVideo(PROMPT), "shot 7"), *["a puppy"] * NEWEST_OUTCOMES, "fail"]
    batch = runway.batch(prompts, in_flight=1)
    assert read_page(batch._repr_html_()).text == "Batch: nothing sent yet"
    batch._ipython_display_()
    outcomes = [outcome async for outcome in batch.outcomes()]
    rows = screen.newest
    assert rows.text.startswith(f"Batch: {NEWEST_OUTCOMES + 1} clips, 1 failed, 3,520 points")
    assert len(rows.all("tr")) == 1 + NEWEST_OUTCOMES
    failed = outcomes[-1]
    assert f"12{failed.task_id}TaskFailed320" in rows.text
    assert not any(PROMPT in data["text/html"] for data in screen.updates)
    assert "shot 7" not in rows.text


async def test_a_batch_that_was_stopped_says_why(gateway: Simulator, screen: Screen) -> None:
    """The title has the reason, also if no notebook follows the batch."""
    gateway.add_key("sk-poor", points=0)
    async with Client("sk-poor", base_url=gateway.base_url) as client:
        batch = client.batch(["a puppy"])
        async for outcome in batch.outcomes():
            assert outcome.error
    assert "(stopped by OutOfCredits)" in read_page(batch._repr_html_()).text
    assert screen == Screen()


# A journal


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    """A journal with one job."""
    journal = Journal(tmp_path / "run.db")
    plan = Plan(
        key="id:shot 7",
        fingerprint="f",
        endpoint="TextToVideo",
        custom_id="shot 7",
        tag=PROMPT,
        source="p.txt:17",
    )
    await journal.plan(plan, 1.0)
    await journal.step(plan.key, JobState.SUBMITTING, 2.0)
    await journal.step(plan.key, JobState.ACCEPTED, 3.0, task_id="t-1", points=320.0)
    yield journal
    await journal.aclose()


def threads() -> Iterator[str]:
    """Yield the names of the threads of journals."""
    return (thread.name for thread in threading.enumerate() if thread.name == "journal")


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_journal_shows_its_jobs(journal: Journal, is_open: bool) -> None:
    """Where it came from, its state and its task, and no text of the user; it stays as it was."""
    if not is_open:
        await journal.aclose()
    page = read_page(journal._repr_html_())
    assert page.text == (
        "Journal run.db: 1 acceptedkeyinputstatepointstaskerrorshot 7p.txt:17accepted320t-1"
    )
    assert (len(list(threads())) == 1) is is_open


def test_a_journal_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    """Looking at it writes no file."""
    journal = Journal(tmp_path / "new.db")
    assert read_page(journal._repr_html_()).text == "Journal new.db: no jobs"
    assert list(tmp_path.iterdir()) == []


async def test_a_journal_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    """The error is shown, and not raised in the middle of a display."""
    (tmp_path / "film.db").write_bytes(b"film" * 1000)
    text = read_page(Journal(tmp_path / "film.db")._repr_html_()).text
    assert "'film.db' cannot be used" in text


def test_the_newest_jobs_of_a_long_journal_are_shown() -> None:
    """The counts are of all jobs."""
    jobs = [
        Job(key=f"{at:03}", state=JobState.PLANNED, endpoint="ActOne", fingerprint="f")
        for at in range(NEWEST + 2)
    ]
    page = read_page(jobs_view("run.db", jobs))
    assert page.text.startswith(f"Journal run.db: 52 planned (the newest {NEWEST} are shown)")
    assert len(page.all("tr")) == 1 + NEWEST
    assert "001planned" not in page.text
    assert "002planned" in page.text
