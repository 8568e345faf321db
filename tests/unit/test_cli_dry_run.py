"""What `batch --dry-run` says of a file before anything is sent."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import Outcome, Run, documented_keys, runner, settle_in

pytest.importorskip("cyclopts")

from fuhu_runway.cli import opening

ROWS = "prompt,custom_id,seconds,image"
FIRST, SECOND, PICTURE = "a kitten,one,10,", "a puppy,two,5,", "a cat,three,5,https://a.com/x.png"
BAD = "a bird,four,99,"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle_in(tmp_path, monkeypatch)
    monkeypatch.setattr(opening, "SIMULATED_SPEED", 1000.0)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Write the rows to a file, and run the command with it."""
    command = runner(capsys)

    def batch(*rows: str, options: tuple[str, ...] = ("--dry-run",)) -> Outcome:
        Path("rows.csv").write_text("\n".join([ROWS, *rows]))
        return command("batch", "rows.csv", *options)

    return batch


@pytest.fixture
def change() -> Callable[..., object]:
    """Run a statement on the journal of the batch."""

    def execute(statement: str, *values: object) -> None:
        with sqlite3.connect("clips/journal.db") as database:
            database.execute(statement, values)
        database.close()

    return execute


def actions(done: Outcome) -> list[str]:
    """Return what happens to each entry, according to --json."""
    return [entry["action"] for entry in json.loads(done.out)["entries"]]


def test_a_dry_run_needs_no_key_and_leaves_nothing(run: Run) -> None:
    """Without a key, the kinds are counted, and no folder, journal or request is made."""
    done = run(FIRST, FIRST.replace("one", "uno"), SECOND, PICTURE)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "entries  kind            model  seconds  points each  points",
        "2        text_to_video   gen4   10       unknown      unknown",
        "1        text_to_video   gen4   5        unknown      unknown",
        "1        image_to_video  gen4   5        unknown      unknown",
        "4 would be sent: entries 1-4",
        "Points: unknown, since no job of this kind has ended yet. Nothing was sent.",
    ]
    assert [path.name for path in Path().iterdir()] == ["rows.csv"]


def test_the_points_are_the_median_of_the_same_kind(
    run: Run, change: Callable[..., object]
) -> None:
    """Kind, model and seconds count; what was refunded does not, and the rest is unknown."""
    earlier = [FIRST.replace("one", name) for name in ("a", "b", "c", "d")]
    assert run(*earlier, options=("--simulate",)).code == 0
    for name, points in (("a", 100), ("b", 300), ("c", 200), ("d", 9000)):
        change("UPDATE job SET points = ? WHERE custom_id = ?", points, name)
    change("UPDATE job SET refunded = 1 WHERE custom_id = 'd'")
    done = run(earlier[0], FIRST, FIRST.replace("one", "uno"), SECOND)
    assert done.out.splitlines()[1:] == [
        "2        text_to_video  gen4   10       200          400",
        "1        text_to_video  gen4   5        unknown      unknown",
        "3 would be sent: entries 2-4",
        "1 saved by an earlier run: entry 1",
        "Points: about 400, and 1 of unknown cost. Nothing was sent.",
    ]
    assert run(FIRST).out.splitlines()[-1] == "Points: about 200. Nothing was sent."
    assert run(earlier[0]).out.splitlines() == [
        "1 saved by an earlier run: entry 1",
        "Points: about 0. Nothing was sent.",
    ]


@pytest.mark.parametrize(
    ("state", "action"),
    [
        ("planned", "new"),
        ("submitting", "in_doubt"),
        ("in doubt", "in_doubt"),
        ("accepted", "resumed"),
        ("finished", "resumed"),
        ("saved", "saved"),
        ("failed", "failed"),
    ],
)
def test_each_entry_is_what_the_journal_says(
    run: Run, change: Callable[..., object], state: str, action: str
) -> None:
    """Each state of a job is one action, and the journal's file does not change."""
    run(FIRST, options=("--simulate",))
    change("UPDATE job SET state = ?", state)
    before = Path("clips/journal.db").read_bytes()
    assert actions(run(FIRST, SECOND, options=("--dry-run", "--json"))) == [action, "new"]
    assert Path("clips/journal.db").read_bytes() == before


def test_what_failed_is_sent_again_only_if_that_is_asked_for(
    run: Run, change: Callable[..., object]
) -> None:
    """--retry-failed counts a failed job as new, and nothing else."""
    run(FIRST, SECOND, options=("--simulate",))
    change("UPDATE job SET state = 'failed' WHERE custom_id = 'one'")
    assert actions(run(FIRST, SECOND, options=("--dry-run", "--json"))) == ["failed", "saved"]
    again = run(FIRST, SECOND, options=("--dry-run", "--json", "--retry-failed"))
    assert actions(again) == ["new", "saved"]


def test_equal_prompts_are_separate_jobs(run: Run) -> None:
    """A prompt that was saved once and comes twice is new once, without a custom_id as well."""
    row = "a kitten,,10,"
    run(row, options=("--simulate",))
    assert actions(run(row, row, options=("--dry-run", "--json"))) == ["saved", "new"]


def test_every_bad_line_is_named(run: Run) -> None:
    """All bad lines are named, not only the first, and the batch would be refused: 2."""
    done = run(BAD, FIRST, BAD)
    assert done.code == 2
    assert [line.partition(": seconds")[0] for line in done.err.splitlines()] == [
        "refused: rows.csv, line 2",
        "refused: rows.csv, line 4",
    ]
    assert "1 would be sent: entry 1" in done.out
    skipping = run(BAD, FIRST, options=("--dry-run", "--skip-bad"))
    assert (skipping.code, skipping.err[:26]) == (0, "skipped: rows.csv, line 2:")


def test_ranges_name_the_entries(run: Run) -> None:
    """Entries that are not neighbours are separate ranges."""
    rows = [f"a kitten,{number},10," for number in range(6)]
    run(rows[1], rows[3], options=("--simulate",))
    assert "4 would be sent: entries 1, 3, 5-6" in run(*rows).out


def test_json_has_the_documented_keys(run: Run) -> None:
    """The object has every entry, the bad lines and the sums."""
    row: dict[str, Any] = json.loads(run(FIRST, BAD, options=("--dry-run", "--json")).out)
    assert row.keys() == documented_keys("A dry run in JSON")
    assert row["entries"] == [
        {
            "index": 0,
            "custom_id": "one",
            "kind": "text_to_video",
            "model": "gen4",
            "seconds": 10,
            "action": "new",
            "points": None,
        }
    ]
    assert row["bad"][0].startswith("rows.csv, line 3: seconds is 99.")
    assert (row["new"], row["points"], row["unknown"]) == (1, 0, 1)


def test_an_empty_file_and_a_bad_journal_are_errors(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without entries, another file, and one that cannot be read are refused: 2."""
    assert "rows.csv has no entries" in run().err
    Path("clips").mkdir()
    Path("clips/journal.db").write_text("something else")
    other = run(FIRST)
    assert (other.code, other.out) == (2, "")
    assert "journal.db" in other.err

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.copyfile", refuse)
    unreadable = run(FIRST)
    assert unreadable.code == 2
    assert "The journal cannot be read (Permission denied)." in unreadable.err


def test_standard_input_can_be_tried(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`batch - --dry-run` reads prompts from stdin."""
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a kitten\na puppy\n")))
    assert "2 would be sent: entries 1-2" in runner(capsys)("batch", "-", "--dry-run").out
