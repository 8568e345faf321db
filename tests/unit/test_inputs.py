import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from support.secrets import told

from fuhu_runway.batch import Item
from fuhu_runway.errors import UsageError
from fuhu_runway.inputs import KINDS, READERS, check_items, read_items
from fuhu_runway.models import (
    ActOne,
    Generation,
    ImageToVideo,
    MotionVector,
    OfficialImageToVideo,
    TextToVideo,
    VideoToVideo,
)

MARK: Final = "a marked-7c1e9d5b kitten"
CLIP: Final = "https://example.com/1.mp4"
STILL: Final = "https://example.com/1.png"

Make = Callable[[str, str | bytes], Path]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """Give a function that writes a file of that name."""

    def make(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def requests(path: Path) -> list[Generation]:
    """Give the requests of a file in which every entry is good."""
    return [item.request for item in read_items(path)]


def refusal(path: Path) -> UsageError:
    """Give the error that reading the file ends in."""
    with pytest.raises(UsageError) as caught:
        list(read_items(path))
    assert caught.value.money == "Nothing was sent or charged."
    return caught.value


def lines(*entries: Any) -> str:
    """Give entries as JSON, a line each."""
    return "".join(json.dumps(entry) + "\n" for entry in entries)


# Prompts, a line each


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_text_has_a_prompt_a_line(made: Make, end: str, mark: str) -> None:
    """Whatever ends a line, with and without a byte order mark, each line is one prompt."""
    path = made("a.txt", mark + end.join(["a kitten", "", "  \t", " 笑起来,吃汉堡 ", '"quoted"']))
    assert requests(path) == [
        TextToVideo("a kitten"),
        TextToVideo("笑起来,吃汉堡"),
        TextToVideo('"quoted"'),
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_file_with_nothing_in_it_asks_for_nothing(made: Make, name: str) -> None:
    """No line, and no line with anything in it, is no entry."""
    assert requests(made(name, "")) == []
    assert check_items(made(name, "\n\n\n")) == 0


def test_the_ending_may_be_in_capitals(made: Make) -> None:
    """How the ending of the name is written does not matter."""
    assert requests(made("A.TXT", "a kitten")) == [TextToVideo("a kitten")]


# Requests, a line each


def test_a_line_of_json_has_the_fields_of_a_request(made: Make) -> None:
    """Fields are those of the request; a bare text is a prompt, and an image makes the kind."""
    path = made(
        "a.jsonl",
        "\ufeff"
        + lines(
            {"prompt": "a kitten", "seconds": 5, "ratio": "9:16", "extra": {"seed": 7}},
            "a puppy",
            {"prompt": "smile", "image": STILL, "flip": True},
            {"prompt": "pan", "motion": {"x": 1.5, "r": -6}},
        )
        + "\n  \n",
    )
    assert requests(path) == [
        TextToVideo("a kitten", seconds=5, ratio="9:16", extra={"seed": 7}),
        TextToVideo("a puppy"),
        ImageToVideo("smile", STILL, flip=True),
        TextToVideo("pan", motion=MotionVector(x=1.5, r=-6)),
    ]


@pytest.mark.parametrize(
    ("fields", "request_"),
    [
        ({"kind": "text_to_video", "prompt": "p"}, TextToVideo("p")),
        ({"kind": "image_to_video", "prompt": "p", "image": STILL}, ImageToVideo("p", STILL)),
        ({"kind": "video_to_video", "prompt": "p", "video": CLIP}, VideoToVideo(CLIP, "p")),
        ({"kind": "act_one", "video": CLIP, "image": STILL}, ActOne(CLIP, STILL)),
        (
            {"kind": "official_image_to_video", "image": STILL, "seed": 7},
            OfficialImageToVideo(STILL, seed=7),
        ),
    ],
)
def test_an_entry_may_name_each_kind_of_request(
    made: Make, fields: dict[str, Any], request_: Generation
) -> None:
    """Every request that can be made can be written into a file."""
    assert requests(made("a.jsonl", lines(fields))) == [request_]


def test_each_kind_of_request_has_a_name() -> None:
    """The names that an entry may use lead to all kinds of request that there are."""
    assert set(KINDS.values()) == set(Generation.__args__)


@pytest.mark.parametrize(("given", "read"), [("scene 4", "scene 4"), (" a ", "a"), (17, "17")])
def test_an_entry_may_name_its_job(made: Make, given: object, read: str) -> None:
    """A custom id is taken as text, without the space around it."""
    (item,) = read_items(made("a.jsonl", lines({"prompt": "p", "custom_id": given})))
    assert item == Item(TextToVideo("p"), read)


# Columns


def test_a_column_is_a_field(made: Make) -> None:
    """Numbers, flags and objects are read as such, texts as they are, empty cells not at all."""
    path = made(
        "a.csv",
        "\ufeffprompt, custom_id ,seconds,model,extra,motion.x,image,flip\r\n"
        'a kitten,one,5,gen3,"{""seed"": 7}",1.5,,\r\n'
        "\r\n"
        ",,,,,,,\r\n"
        '"a puppy, and\r\n a kitten",2,,,,,,\r\n'
        f"7,,,,,,{STILL},true\r\n",
    )
    assert list(read_items(path)) == [
        Item(
            TextToVideo(
                "a kitten",
                seconds=5,
                model="gen3",
                extra={"seed": 7},
                motion=MotionVector(x=1.5),
            ),
            "one",
        ),
        Item(TextToVideo("a puppy, and\r\n a kitten"), "2"),
        Item(ImageToVideo("7", STILL, flip=True)),
    ]


def test_a_row_may_be_short(made: Make) -> None:
    """Cells that are missing at the end are fields that are not given."""
    assert requests(made("a.csv", "prompt,seconds\na kitten\n")) == [TextToVideo("a kitten")]


# Bad entries


@pytest.mark.parametrize(
    ("line", "says", "field"),
    [
        ("{", "no JSON object", "line"),
        ("[" * 100_000, "no JSON object", "line"),
        ("7", "no JSON object", "line"),
        ("null", "no JSON object", "line"),
        ('["a kitten"]', "no JSON object", "line"),
        ('{"prompt": "p", "colour": 1}', "TextToVideo has no field 'colour'", "colour"),
        ('{"prompt": "p", "motion": {"x": 1}, "motion.y": 1}', "no field 'motion.y'", "motion.y"),
        ('{"seconds": 5}', "prompt is missing", "prompt"),
        ('{"prompt": "p", "kind": "act_one"}', "ActOne has no field 'prompt'", "prompt"),
        ('{"kind": "video_to_video", "video": "https://e.com/1"}', "prompt is missing", "prompt"),
        ('{"prompt": "p", "kind": "opera"}', "kind names no request", "kind"),
        ('{"prompt": "p", "kind": ["act_one"]}', "kind names no request", "kind"),
        ('{"prompt": "p", "kind": null}', "kind names no request", "kind"),
        ('{"prompt": ""}', "prompt is empty", "prompt"),
        ('{"prompt": null}', "prompt is of type NoneType", "prompt"),
        ('{"prompt": "\\ud800"}', "half a character", "prompt"),
        ('{"prompt": "p", "seconds": 7}', "seconds is 7", "seconds"),
        ('{"prompt": "p", "seconds": NaN}', "seconds is nan", "seconds"),
        ('{"prompt": "p", "extra": []}', "extra is of type list", "extra"),
        ('{"prompt": "p", "motion": {"speed": 1}}', "motion has other parts", "motion"),
        ('{"prompt": "p", "motion": "left"}', "motion has other parts", "motion"),
        ('{"prompt": "p", "motion": {"x": "left"}}', "x is 'left'", "x"),
        ('{"prompt": "p", "custom_id": ""}', "custom_id is no text", "custom_id"),
        ('{"prompt": "p", "custom_id": 1.5}', "custom_id is no text", "custom_id"),
    ],
)
def test_a_bad_entry_is_named_by_file_and_line(
    made: Make, line: str, says: str, field: str
) -> None:
    """The error tells where it is, what is wrong and which field, and the field is the field."""
    error = refusal(made("a.jsonl", f'"good"\n\n{line}\n"good"\n'))
    assert error.happened.startswith("a.jsonl, line 3: ")
    assert says in error.happened
    assert error.field == field
    assert isinstance(error.__cause__, UsageError)


def test_a_row_is_named_by_its_last_line(made: Make) -> None:
    """A bad row of a table is found by the number of the line on which it ends."""
    error = refusal(made("a.csv", 'prompt,seconds\n"a\nb",5\n"c\nd",7\n'))
    assert error.happened == "a.csv, line 5: seconds is 7."


def test_a_row_that_is_too_long_is_told(made: Make) -> None:
    """A prompt with a comma and no quotes has spilt into cells that the head does not have."""
    error = refusal(made("a.csv", "prompt\na kitten, in the snow\n"))
    assert error.happened == "a.csv, line 2: it has more cells than the head."


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_bad_entries_can_be_passed_over(made: Make, name: str) -> None:
    """Each bad entry is told to the listener in its order, and the good ones come all the same."""
    good, bad = {
        "a.txt": ("good", ""),
        "a.jsonl": ('"good"', '{"prompt": ""}'),
        "a.csv": ("good,", ",5"),
    }[name]
    head = "prompt,seconds\n" if name == "a.csv" else ""
    path = made(name, f"{head}{good}\n{bad}\n{good}\n{bad}")
    skipped: list[UsageError] = []
    items = list(read_items(path, skip_bad=skipped.append))
    assert [item.request for item in items] == [TextToVideo("good")] * 2
    first = 2 if head else 1
    numbers = [] if name == "a.txt" else [first + 1, first + 3]
    assert [error.happened.partition(":")[0] for error in skipped] == [
        f"{name}, line {number}" for number in numbers
    ]
    assert check_items(path, skip_bad=skipped.append) == 2


# Bad files


@pytest.mark.parametrize("name", ["a.md", "a", "a.json"])
def test_a_file_of_no_known_kind_is_not_read(made: Make, name: str) -> None:
    """The ending tells the kind, and the error tells which there are."""
    error = refusal(made(name, "a kitten"))
    assert error.happened == f"{name!r} is of no known kind."
    assert all(ending in error.advice for ending in READERS)


@pytest.mark.parametrize("name", ["missing.txt", "folder.txt"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    """A missing file, and a folder, are errors that name it and say why."""
    (tmp_path / "folder.txt").mkdir()
    error = refusal(tmp_path / name)
    assert error.happened.startswith(f"{name!r} cannot be read (")
    assert isinstance(error.__cause__, OSError)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_file_that_is_not_utf_8_is_told(made: Make, name: str) -> None:
    """Another encoding is an error, not a wrong prompt."""
    error = refusal(made(name, "prompt\n笑起来\n".encode("gb18030")))
    assert error.happened == f"{name!r} is no such text (UnicodeDecodeError)."


def test_a_table_with_a_broken_quote_is_told(made: Make) -> None:
    """A quote that nobody closes would swallow the rest of the table; it is an error."""
    error = refusal(made("a.csv", 'prompt\n"a kitten\na puppy\n'))
    assert error.happened == "'a.csv' is no such text (Error)."


# Before anything is sent


def test_checking_looks_at_every_entry(made: Make) -> None:
    """The count is of good entries, and the last bad one is found before the first is sent."""
    assert check_items(made("a.txt", "a\nb\nc\n")) == 3
    with pytest.raises(UsageError, match="line 4"):
        check_items(made("a.jsonl", lines("a", "b", "c", {"prompt": ""})))


def test_two_jobs_of_one_name_are_found_before_anything_is_sent(made: Make) -> None:
    """A custom id that comes twice is an error; entries without one are as many as you like."""
    path = made("a.jsonl", lines("a", "a", {"prompt": "b", "custom_id": 7}))
    assert check_items(path) == 3
    path = made("b.jsonl", path.read_text() + lines({"prompt": "c", "custom_id": "7"}))
    with pytest.raises(UsageError, match="two entries with the custom_id '7'") as caught:
        check_items(path)
    assert caught.value.field == "custom_id"


def test_a_file_is_read_as_it_is_asked_for(made: Make) -> None:
    """Entries come one at a time: what stands behind a bad one does not keep back the first."""
    items = read_items(made("a.jsonl", '"first"\n{\n'))
    assert next(items) == Item(TextToVideo("first"))
    with pytest.raises(UsageError, match="line 2"):
        next(items)


# Secrets


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", f'{{"prompt": "{MARK}"'),
        ("a.jsonl", json.dumps([MARK])),
        ("a.jsonl", json.dumps({"prompt": MARK, "seconds": 7})),
        ("a.jsonl", json.dumps({"prompt": MARK, "image": MARK})),
        ("a.jsonl", json.dumps({MARK: 1})),
        ("a.jsonl", json.dumps({"prompt": MARK, "kind": MARK})),
        ("a.jsonl", json.dumps({"prompt": MARK, "motion": {MARK: 1}})),
        ("a.jsonl", json.dumps({"prompt": MARK, "custom_id": [MARK]})),
        ("a.csv", f"{MARK}\n{MARK}\n"),
        ("a.csv", f"prompt\n{MARK}, {MARK}\n"),
        ("a.csv", f'prompt\n"{MARK}\n'),
        ("a.csv", f"prompt,image\n{MARK},{MARK}\n"),
        ("a.txt", f"{MARK}\n".encode() + b"\xff"),
    ],
)
def test_no_error_tells_a_prompt(made: Make, name: str, content: str | bytes) -> None:
    """Text, fields, cause and context of an error are free of what stands in the file."""
    error = refusal(made(name, content))
    secrets = (MARK, "marked")
    assert told(error, secrets) == []
    assert not any("marked" in str(value) for value in attrs.astuple(error))
