"""The page of a batch, and the command that writes it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import attrs
import pytest
from support.clients import QUICK_POLLS
from support.commands import Run, documented_keys, runner, settle_in

pytest.importorskip("cyclopts")

from fuhu_runway.cli import opening
from fuhu_runway.cli import report as cli_report
from fuhu_runway.cli.page import MARK, Card, page
from fuhu_runway.journal import Job, JobState

HOSTILE: Final = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</p></article></main><iframe src=//evil.example>",
    "</title></style><svg/onload=alert(1)>",
    "--><!-- &lt;script&gt;",
    "https://evil.example/a.js",
    "\ud800<b>",
]
KNOWN: Final = frozenset(
    {"html", "meta", "title", "style", "main", "article", "video", "h1", "p", "strong", "small"}
)
"""The elements of a page."""
LOADS: Final = {"src", "href", "poster", "srcset", "data", "action", "xlink:href", "background"}
"""The attributes that load something."""


@attrs.define(eq=False)
class Reader(HTMLParser):
    """The elements of a page, and its text."""

    tags: list[tuple[str, dict[str, str | None]]] = attrs.field(factory=list)
    text: str = ""
    comments: list[str] = attrs.field(factory=list)

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text: str) -> None:
        self.text += text

    def handle_comment(self, text: str) -> None:
        self.comments.append(text)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of each element of one kind."""
        return [attributes for name, attributes in self.tags if name == tag]


def read(html: str) -> Reader:
    """Return the elements of a page, and check that nothing in it loads or runs anything else."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert html.startswith(MARK)
    assert {tag for tag, _ in reader.tags} <= KNOWN
    assert len(reader.comments) == 1
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in LOADS & attributes.keys():
            assert (tag, name) == ("video", "src")
            assert ":" not in (attributes[name] or "")
            assert not (attributes[name] or "").startswith("/")
    (style,) = re.findall("<style>(.*?)</style>", html, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    return reader


def card(
    prompt: str | None = None, money: str | None = None, video: str | None = None, **fields: Any
) -> Card:
    """Return a job on the page."""
    job = {"key": "k", "state": JobState.SAVED, "endpoint": "ActOne", "fingerprint": "f"}
    named = Job(**{**job, "custom_id": "shot 7", **fields})
    return Card(job=named, prompt=prompt, money=money, video=video)


# The page


def test_a_card_shows_what_a_job_made() -> None:
    """Its clip, prompt, state, points and times, and where it came from."""
    html = page(
        "Batch clips",
        [
            card(
                source="p.txt:17",
                prompt="a kitten",
                video="a%20kitten.mp4",
                task_id="t-1",
                points=320.0,
                accepted_at=5.0,
                finished_at=100.4,
            ),
            card(
                custom_id=None,
                state=JobState.FAILED,
                error="TaskFailed",
                money="It was refunded.",
                points=320.0,
                refunded=True,
            ),
        ],
        "2026-01-01 13:00",
    )
    seen = read(html)
    assert [video["src"] for video in seen.all("video")] == ["a%20kitten.mp4"]
    assert "shot 7 · p.txt:17 · 320 points · took 95 s · t-1" in seen.text
    assert "a kitten" in seen.text
    assert "failed TaskFailed It was refunded." in seen.text
    assert "k · 320 points (refunded)" in seen.text
    assert "1 saved, 1 failed. 320 points spent, 320 refunded. Made 2026-01-01 13:00." in seen.text
    assert len(seen.all("article")) == 2
    quick = page("a", [card(accepted_at=0.0, finished_at=9.54)], "now")
    assert "took 9.5 s" in read(quick).text


def test_a_page_without_jobs_says_so() -> None:
    """It has no element for a job."""
    seen = read(page("Batch clips", [], "now"))
    assert "no jobs." in seen.text
    assert seen.all("article") == []


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_everything_is_escaped(text: str) -> None:
    """A prompt, id, name or reason makes no element and no attribute."""
    fields = ("custom_id", "source", "prompt", "error", "money", "task_id")
    plain = read(page("a", [card(video="a.mp4", **dict.fromkeys(fields, "a"))], "a"))
    seen = read(page(text, [card(video="a.mp4", **dict.fromkeys(fields, text))], text))
    assert [(tag, [*names]) for tag, names in seen.tags] == [
        (tag, [*names]) for tag, names in plain.tags
    ]
    assert seen.text.count(text.replace("\ud800", "?")) == 9


# The command


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set up an empty folder, and no pauses."""
    settle_in(tmp_path, monkeypatch)
    monkeypatch.setattr(opening, "SIMULATED_SPEED", 1000.0)
    monkeypatch.setattr(opening, "SIMULATED_POLLING", QUICK_POLLS)
    Path("p.txt").write_text(f"a kitten\n{HOSTILE[1]}\n")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""
    return runner(capsys)


@pytest.fixture
def made(run: Run) -> Path:
    """Return the folder of a batch that has two clips."""
    assert run("batch", "p.txt", "--out", "clips", "--simulate").code == 0
    return Path("clips")


def test_a_report_shows_the_clips_of_a_batch(run: Run, made: Path) -> None:
    """Each clip is a file beside the page, and each prompt is text; only its owner can read it."""
    done = run("report", "clips")
    assert (done.code, done.out, done.err) == (0, f"{Path('clips/report.html')}\n", "")
    seen = read(Path("clips/report.html").read_text(encoding="utf-8"))
    sources = [unquote(video["src"] or "") for video in seen.all("video")]
    assert len(sources) == 2
    assert all((made / source).is_file() for source in sources)
    assert HOSTILE[1] in seen.text
    assert "p.txt:1" in seen.text
    assert "2 saved. 640 points spent" in seen.text
    assert Path("clips/report.html").stat().st_mode & 0o777 == 0o600


def test_a_report_may_be_elsewhere(run: Run, made: Path) -> None:
    """Its clips are found from there, also if the batch ran in another working directory."""
    Path("pages").mkdir()
    made.rename("moved")
    done = run("report", "moved", "-o", "pages/kittens.html", "--json")
    row = json.loads(done.out)
    assert row == {"file": str(Path("pages/kittens.html")), "jobs": 2}
    assert row.keys() == documented_keys("A page in JSON")
    seen = read(Path("pages/kittens.html").read_text(encoding="utf-8"))
    for video in seen.all("video"):
        assert (video["src"] or "").startswith("../moved/")
        assert Path("pages", unquote(video["src"] or "")).is_file()


def test_a_missing_clip_is_left_out(run: Run, made: Path) -> None:
    """A clip that was moved away has no player, and its job is shown."""
    for clip in made.glob("*.mp4"):
        clip.unlink()
    assert run("report", "clips").code == 0
    seen = read(Path("clips/report.html").read_text(encoding="utf-8"))
    assert (len(seen.all("video")), len(seen.all("article"))) == (0, 2)


def test_a_clip_on_another_drive_is_left_out(
    run: Run, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows has no relative path from one drive to another."""

    def refuse(*_: Any) -> str:
        raise ValueError

    monkeypatch.setattr(cli_report.os.path, "relpath", refuse)
    assert run("report", "clips").code == 0
    assert read(Path("clips/report.html").read_text(encoding="utf-8")).all("video") == []


def test_without_results_there_are_no_prompts(run: Run, made: Path) -> None:
    """The journal alone has no prompt, and the command says so; clips are known by their names."""
    Path("clips/results.jsonl").unlink()
    done = run("report", "clips")
    assert (done.code, "has no prompts." in done.err) == (0, True)
    seen = read(Path("clips/report.html").read_text(encoding="utf-8"))
    assert "kitten" not in seen.text
    assert (len(seen.all("video")), len(seen.all("article"))) == (2, 2)


def test_a_clip_has_the_name_that_its_job_was_given(run: Run) -> None:
    """Without results, the clip of a named job is found as well."""
    Path("named.jsonl").write_text('{"prompt": "a kitten", "custom_id": "shot 7"}\n')
    run("batch", "named.jsonl", "--out", "named", "--simulate")
    Path("named/results.jsonl").unlink()
    run("report", "named")
    (video,) = read(Path("named/report.html").read_text(encoding="utf-8")).all("video")
    assert Path("named", unquote(video["src"] or "")).is_file()


def test_an_own_page_is_replaced_and_no_other_file(run: Run, made: Path) -> None:
    """A file that the command did not write is kept, unless --force is given."""
    page_file = Path("clips/report.html")
    assert run("report", "clips").code == run("report", "clips").code == 0
    page_file.write_text("mine")
    done = run("report", "clips")
    assert (done.code, done.out, page_file.read_text()) == (2, "", "mine")
    assert "not a page that this command wrote" in done.err
    assert run("report", "clips", "--force").code == 0
    assert page_file.read_text(encoding="utf-8").startswith(MARK)
    assert {file.name for file in made.iterdir() if file.name.startswith(".")} == set()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["nowhere"], "There is no journal"),
        (["p.txt"], "There is no journal"),
        (["clips", "-o", "nowhere/a.html"], "There is no folder 'nowhere'."),
        (["clips", "-o", "clips", "--force"], "'clips' cannot be replaced"),
    ],
)
@pytest.mark.usefixtures("made")
def test_a_wrong_report_writes_nothing(run: Run, tokens: list[str], message: str) -> None:
    """It exits with 2 and one line."""
    done = run("report", *tokens)
    assert (done.code, done.out, message in done.err) == (2, "", True)
    assert not Path("clips/report.html").exists()


@pytest.mark.parametrize("line", ["[]", "{", '{"key": 1}', '{"key": "k", "path": 5}', "\xff"])
def test_other_results_are_an_error(run: Run, made: Path, line: str) -> None:
    """A file that is not a file of results is named, and not quoted."""
    Path("clips/results.jsonl").write_bytes(line.encode("latin-1") + b"\n")
    done = run("report", "clips")
    assert (done.code, "it is not a results file" in done.err) == (2, True)


def test_a_full_disk_leaves_the_old_page(
    run: Run, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is written whole or not at all."""
    assert run("report", "clips").code == 0
    before = Path("clips/report.html").read_text(encoding="utf-8")

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    done = run("report", "clips")
    assert (done.code, "No space left on device" in done.err) == (2, True)
    assert Path("clips/report.html").read_text(encoding="utf-8") == before
    assert {file.name for file in made.iterdir() if file.name.startswith(".")} == set()
