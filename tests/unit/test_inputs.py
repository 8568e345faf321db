import io
import json
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from support.media import PNG
from support.secrets import secrets_in

from fuhu_runway.errors import UsageError
from fuhu_runway.inputs import KINDS, READERS, check_items, read_items, request_of, spooled
from fuhu_runway.items import Item
from fuhu_runway.models import (
    ActOne,
    Aleph,
    Generation,
    ImageToVideo,
    MotionVector,
    OfficialCharacterPerformance,
    OfficialImageToVideo,
    OfficialRequest,
    OfficialTextToVideo,
    OfficialVideoToVideo,
    OfficialVideoUpscale,
    TextToVideo,
    VideoToVideo,
)

MARK: Final = "a marked-7c1e9d5b kitten"
CLIP: Final = "https://example.com/1.mp4"
STILL: Final = "https://example.com/1.png"

Make = Callable[[str, str | bytes], Path]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """Return a function that writes a file with that name."""

    def make(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def requests(path: Path) -> list[Generation]:
    """Return the requests of a file, all of whose entries are good."""
    return [item.request for item in read_items(path)]


def refusal(path: Path) -> UsageError:
    """Return the error that reading the file raises."""
    with pytest.raises(UsageError) as caught:
        list(read_items(path))
    assert caught.value.money == "Nothing was sent or charged."
    return caught.value


def lines(*entries: Any) -> str:
    """Return entries as JSON, one per line."""
    return "".join(json.dumps(entry) + "\n" for entry in entries)


# Prompts, one per line


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_each_line_of_a_text_file_is_a_prompt(made: Make, end: str, mark: str) -> None:
    """Lines may end in any way, and the file may have a byte order mark."""
    path = made("a.txt", mark + end.join(["a kitten", "", "  \t", " 笑起来,吃汉堡 ", '"quoted"']))
    assert requests(path) == [
        TextToVideo("a kitten"),
        TextToVideo("笑起来,吃汉堡"),
        TextToVideo('"quoted"'),
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_an_empty_file_has_no_entries(made: Make, name: str) -> None:
    """Empty lines are not entries either."""
    assert requests(made(name, "")) == []
    assert check_items(made(name, "\n\n\n")) == 0


def test_the_ending_may_be_in_upper_case(made: Make) -> None:
    """The case of the ending does not matter, and the path may be a str."""
    path = made("A.TXT", "a kitten")
    assert requests(path) == [TextToVideo("a kitten")]
    assert check_items(str(path)) == 1


# Requests, one per line


def test_a_line_of_json_has_the_fields_of_a_request(made: Make) -> None:
    """A JSON string is a prompt, and an object with an image is an ImageToVideo."""
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
        (
            {"kind": "aleph", "video": CLIP, "prompt": "p", "image": STILL},
            Aleph(CLIP, "p", image=STILL),
        ),
        (
            {"kind": "official_text_to_video", "prompt": "p", "audio": True, "seconds": 8.0},
            OfficialTextToVideo("p", audio=True, seconds=8),
        ),
        (
            {"kind": "official_video_to_video", "video": CLIP, "prompt": "p", "ratio": None},
            OfficialVideoToVideo(CLIP, "p", ratio=None),
        ),
        (
            {"kind": "official_character_performance", "video": CLIP, "character_video": CLIP},
            OfficialCharacterPerformance(CLIP, character_video=CLIP),
        ),
        ({"kind": "official_video_upscale", "video": CLIP}, OfficialVideoUpscale(CLIP)),
        (
            {"kind": "official_request", "path": "/v1/a", "body": {"promptText": "p"}},
            OfficialRequest("a", {"promptText": "p"}),
        ),
    ],
)
def test_an_entry_may_name_each_kind_of_request(
    made: Make, fields: dict[str, Any], request_: Generation
) -> None:
    """Every kind of request can be written into a file."""
    assert requests(made("a.jsonl", lines(fields))) == [request_]


@pytest.mark.parametrize("name", ["jobs.jsonl", "jobs.csv"])
def test_a_local_file_is_found_from_the_folder_of_the_file(
    made: Make, tmp_path: Path, name: str
) -> None:
    """Without :// it is a path, relative to the folder of the file, or to another one."""
    made("1.png", PNG)
    (tmp_path / "more").mkdir()
    made("more/1.png", PNG)
    rows = '{"prompt": "a", "image": "1.png"}' if name.endswith("l") else "prompt,image\na,1.png"
    jobs = made(name, rows)
    assert requests(jobs) == [ImageToVideo("a", tmp_path / "1.png")]
    folder = tmp_path / "more"
    (item,) = read_items(jobs, folder=folder)
    assert item.request == ImageToVideo("a", folder / "1.png")
    assert check_items(jobs, folder=folder) == 1


def test_a_local_file_must_exist_when_its_entry_is_read(made: Make, tmp_path: Path) -> None:
    """A missing file is named by line, without its folder."""
    jobs = made("jobs.jsonl", '{"prompt": "a", "image": "marked/2.png"}')
    error = refusal(jobs)
    assert error.happened.startswith("jobs.jsonl, line 1: image cannot be read as a file")
    assert error.field == "image"
    assert str(tmp_path) not in str(error)


def test_each_kind_of_request_has_a_name() -> None:
    """KINDS contains every kind of request."""
    assert set(KINDS.values()) == set(Generation.__args__)


@pytest.mark.parametrize(("given", "read"), [("scene 4", "scene 4"), (" a ", "a"), (17, "17")])
def test_an_entry_may_name_its_job(made: Make, given: object, read: str) -> None:
    """A custom id is converted to text, without the space around it."""
    (item,) = read_items(made("a.jsonl", lines({"prompt": "p", "custom_id": given})))
    assert item == Item(TextToVideo("p"), read)


# Columns


def test_a_column_is_a_field(made: Make) -> None:
    """Cells are read as numbers, flags, objects or text; empty cells are skipped."""
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


def test_a_cell_may_be_the_body_of_a_request(made: Make) -> None:
    """A request without a class of its own may stand in a table."""
    path = made("a.csv", 'kind,path,body\nofficial_request,a,"{""promptText"": ""5""}"\n')
    assert requests(path) == [OfficialRequest("a", {"promptText": "5"})]


def test_a_request_may_be_made_of_its_kind_and_cells() -> None:
    """As on a command line: each text is read as a cell is, and an empty one is missing."""
    cells = {"video": f" {CLIP} ", "prompt": "5", "seconds": "5.0", "image": ""}
    assert request_of("aleph", cells) == Aleph(CLIP, "5", seconds=5)
    with pytest.raises(UsageError, match="Aleph has no field 'custom_id'"):
        request_of("aleph", {**cells, "custom_id": "one"})


def test_a_row_may_be_short(made: Make) -> None:
    """Missing cells at the end count as empty."""
    assert requests(made("a.csv", "prompt,seconds\na kitten\n")) == [TextToVideo("a kitten")]


@pytest.mark.parametrize(
    "content",
    [
        "prompt;seconds;flip;image\r\na, b;5;TRUE;https://e.com/1\r\n",
        "sep=;\r\nprompt;seconds;flip;image\r\na, b;5.0;True;https://e.com/1\r\n",
        'SEP=|\nprompt|seconds|flip|image\n"a, b"|5|true|https://e.com/1\n',
        '"sep=\t"\nprompt\tseconds\tflip\timage\na, b\t5\ttrue\thttps://e.com/1\n',
        "prompt\tseconds\tflip\timage\na, b\t 5.0 \t TRUE\t https://e.com/1 \n",
        '\ufeff\n\n"Prompt",SECONDS,"FLIP ", Image\n"a, b",5,TRUE,https://e.com/1\n',
        'prompt,seconds,flip,image,,\n"a, b",5,TRUE,https://e.com/1,,\n,,,,,\n  ,,,,,\n',
    ],
)
def test_a_table_may_come_from_a_spreadsheet(made: Make, content: str) -> None:
    """It may have semicolons, tabs, a `sep=` line, TRUE, 5.0 and names in upper case."""
    wanted = [ImageToVideo("a, b", "https://e.com/1", seconds=5, flip=True)]
    assert requests(made("a.csv", content)) == wanted
    assert requests(made("b.csv", content.encode("utf-16"))) == wanted
    assert type(wanted[0].seconds) is type(requests(made("a.csv", content))[0].seconds)  # type: ignore[union-attr]


def test_a_table_with_tabs_may_have_one_column(made: Make) -> None:
    """A comma in a .tsv file is part of the text, even if the head has no tab."""
    assert requests(made("a.tsv", "prompt\na, b\n")) == [TextToVideo("a, b")]


def test_names_of_columns_may_have_spaces(made: Make) -> None:
    """`Custom ID` and `last-image` are the fields custom_id and last_image."""
    path = made("a.csv", f"Prompt,Custom ID,Image,Last-Image\na,one,{STILL},{STILL}\n")
    assert list(read_items(path)) == [Item(ImageToVideo("a", STILL, last_image=STILL), "one")]


def test_whole_numbers_may_have_a_fraction_of_zero(made: Make) -> None:
    """5.0 is 5 in tables and in JSON, for each field that is a whole number."""
    fields = {"kind": "official_image_to_video", "image": STILL, "seed": 7.0, "seconds": 4.0}
    wanted = OfficialImageToVideo(STILL, seed=7, seconds=4)
    (request,) = requests(made("a.jsonl", lines(fields)))
    assert request == wanted
    assert repr(request) == repr(wanted)


@pytest.mark.parametrize("cell", ["[" * 100_000, '{"a":' * 20_000, "9" * 5000])
def test_a_cell_that_is_not_json_is_text(made: Make, cell: str) -> None:
    """Thousands of brackets are text, which the validator of their field refuses."""
    cell = '"' + cell.replace('"', '""') + '"'
    assert refusal(made("a.csv", f"prompt,seconds\na,{cell}\n")).field == "seconds"


@pytest.mark.parametrize(
    ("content", "happened", "field"),
    [
        ("prompt,Prompt \na,b\n", "line 1: there are two columns prompt.", "prompt"),
        ("sep=;\nprompt;seconds;seconds\n", "line 2: there are two columns seconds.", "seconds"),
        ("a kitten\na puppy\n", "line 1: no column is a field of a request.", "path"),
        ("\na kitten, in the snow\n", "line 2: no column is a field of a request.", "path"),
        ("prompt:seconds\na:5\n", "line 1: no column is a field of a request.", "path"),
        ("sep=,\nprompt;seconds\na;5\n", "line 2: no column is a field of a request.", "path"),
    ],
)
def test_a_bad_head_is_always_an_error(made: Make, content: str, happened: str, field: str) -> None:
    """A duplicate column or a missing head cannot be skipped like a bad row."""
    path = made("a.csv", content)
    for skip_bad in (None, id):
        with pytest.raises(UsageError) as caught:
            list(read_items(path, skip_bad=skip_bad))
        assert caught.value.happened.startswith(f"a.csv, {happened}")
        assert caught.value.field == field


def test_empty_columns_are_ignored(made: Make) -> None:
    """A column without a name, or with an unknown one, is accepted if its cells are empty."""
    assert requests(made("a.csv", "prompt,,,notes\na,,,\n")) == [TextToVideo("a")]
    assert refusal(made("a.csv", "prompt,,,notes\na,,,b\n")).field == "notes"
    assert refusal(made("a.csv", "prompt,,\na,b,\n")).field == "<no name>"


# Bad entries


@pytest.mark.parametrize(
    ("sign", "called"), [(",", "comma"), (";", "semicolon"), ("|", "vertical bar")]
)
def test_an_error_asks_for_the_separator(made: Make, sign: str, called: str) -> None:
    """A table with another separator is an error that names it, and the advice helps."""
    table = f"Prompt{sign}seconds\na{sign}5\n"
    advice = refusal(made("a.tsv", table)).advice
    assert advice == f'Is the separator a {called}? Then begin the file with a line "sep={sign}".'
    assert requests(made("a.tsv", f"sep={sign}\n{table}")) == [TextToVideo("a", seconds=5)]


@pytest.mark.parametrize(
    ("fields", "question"),
    [
        ({"prompt": "p", "second": 5}, "Did you mean seconds? It has extra, model,"),
        ({"Prompt": "p"}, "Did you mean prompt? It has"),
        ({"prompt": "p", "customid": "a"}, "Did you mean custom_id? It has"),
        ({"prompt": "p", "duration": 5}, "Did you mean seconds? It has"),
        ({"text": "p"}, "Did you mean prompt? It has"),
        ({"prompt": "p", "image_url": STILL}, "Did you mean image? It has extra,"),
        ({"kind": "act_one", "video": CLIP, "prompt": "p"}, "It has character_video,"),
        ({"prompt": "p", "image": STILL, "imagee": STILL}, "Did you mean image? It has"),
        ({"prompt": "p", "motion.xx": 1}, "Use bg_x_pan,"),
        ({"prompt": "p", "zzz": 1}, "It has extra,"),
    ],
)
def test_a_mistyped_field_gets_a_suggestion(
    made: Make, fields: dict[str, Any], question: str
) -> None:
    """The error suggests the closest name that an entry may have."""
    assert refusal(made("a.jsonl", lines(fields))).advice.startswith(question)


@pytest.mark.parametrize(
    ("line", "says", "field"),
    [
        ("{", "not a JSON object", "line"),
        ("[" * 100_000, "not a JSON object", "line"),
        ("7", "not a JSON object", "line"),
        ("null", "not a JSON object", "line"),
        ('["a kitten"]', "not a JSON object", "line"),
        ('{"prompt": "p", "colour": 1}', "TextToVideo has no field 'colour'", "colour"),
        ('{"prompt": "p", "motion": {"x": 1}, "motion.y": 1}', "no field 'motion.y'", "motion.y"),
        ('{"seconds": 5}', "prompt is missing", "prompt"),
        ('{"prompt": "p", "kind": "act_one"}', "ActOne has no field 'prompt'", "prompt"),
        ('{"kind": "video_to_video", "video": "https://e.com/1"}', "prompt is missing", "prompt"),
        ('{"prompt": "p", "kind": "opera"}', "kind is unknown", "kind"),
        ('{"prompt": "p", "kind": ["act_one"]}', "kind is unknown", "kind"),
        ('{"prompt": "p", "kind": null}', "kind is unknown", "kind"),
        ('{"prompt": ""}', "prompt is empty", "prompt"),
        ('{"prompt": null}', "prompt is of type NoneType", "prompt"),
        ('{"prompt": "\\ud800"}', "half a character", "prompt"),
        ('{"prompt": "p", "seconds": 61}', "seconds is 61", "seconds"),
        ('{"prompt": "p", "seconds": 5.5}', "seconds is 5.5", "seconds"),
        ('{"prompt": "p", "seconds": true}', "seconds is True", "seconds"),
        ('{"prompt": "p", "seconds": NaN}', "seconds is nan", "seconds"),
        ('{"prompt": "p", "extra": []}', "extra is not a dict", "extra"),
        ('{"prompt": "p", "motion": {"speed": 1}}', "motion has unknown parts", "motion"),
        ('{"prompt": "p", "motion": "left"}', "motion has unknown parts", "motion"),
        ('{"prompt": "p", "motion": {"x": "left"}}', "x is 'left'", "x"),
        ('{"prompt": "\\u200b\\ufeff"}', "prompt has no visible character", "prompt"),
        ('{"prompt": "p", "ratio": []}', "ratio is []", "ratio"),
        ('{"prompt": "p", "image": "https://a..example/1"}', "valid host and port", "image"),
        ('{"prompt": "p", "extra": {"a": {"\\ud800": 1}}}', "UnicodeEncodeError", "extra"),
        ('{"prompt": "p", "extra": {"a": ' + "[" * 200 + "]" * 200 + "}}", "levels", "extra"),
        ('{"prompt": "p", "extra": ' + '{"a":' * 50_000, "not a JSON object", "line"),
        ('{"prompt": "p", "custom_id": ""}', "custom_id is empty", "custom_id"),
        ('{"prompt": "p", "custom_id": "\\u200b"}', "no visible character", "custom_id"),
        ('{"prompt": "p", "custom_id": "a\\ud800"}', "half a character", "custom_id"),
        ('{"prompt": "p", "custom_id": "a\\u0000"}', "NUL character at position 1", "custom_id"),
        ('{"prompt": "p", "custom_id": 1.5}', "custom_id must be text", "custom_id"),
        ('{"prompt": "p", "custom_id": true}', "custom_id must be text", "custom_id"),
    ],
)
def test_a_bad_entry_is_named_by_file_and_line(
    made: Make, line: str, says: str, field: str
) -> None:
    """The error says where the entry is and what is wrong, and names the field."""
    error = refusal(made("a.jsonl", f'"good"\n\n{line}\n"good"\n'))
    assert error.happened.startswith("a.jsonl, line 3: ")
    assert says in error.happened
    assert error.field == field
    assert isinstance(error.__cause__, UsageError)


def test_a_row_is_named_by_its_last_line(made: Make) -> None:
    """The error about a row has the number of the line on which the row ends."""
    error = refusal(made("a.csv", 'prompt,seconds\n"a\nb",5\n"c\nd",0\n'))
    assert error.happened == "a.csv, line 5: seconds is 0."


def test_a_row_with_too_many_cells_is_an_error(made: Make) -> None:
    """A prompt with a comma that is not in quotes fills two cells."""
    error = refusal(made("a.csv", "prompt\na kitten, in the snow\n"))
    assert error.happened == "a.csv, line 2: it has more cells than the head."
    assert requests(made("a.csv", "prompt\na kitten,,\n")) == [TextToVideo("a kitten")]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_bad_entries_can_be_skipped(made: Make, name: str) -> None:
    """Bad entries are reported in order, and the good ones are returned."""
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
def test_a_file_with_an_unknown_ending_is_refused(made: Make, name: str) -> None:
    """The error lists the known endings."""
    error = refusal(made(name, "a kitten"))
    assert error.happened == f"{name!r} has no known ending."
    assert all(ending in error.advice for ending in READERS)


@pytest.mark.parametrize("name", ["missing.txt", "folder.txt", "\ud800.txt"])
def test_an_unreadable_file_is_an_error(tmp_path: Path, name: str) -> None:
    """The error about a missing file or a folder names it and the reason."""
    (tmp_path / "folder.txt").mkdir()
    error = refusal(tmp_path / name)
    assert error.happened.startswith(f"{name!r} cannot be read (")
    assert isinstance(error.__cause__, OSError | ValueError)


def test_an_impossible_file_name_is_an_error() -> None:
    """The error about a NUL in a path names the path."""
    assert refusal(Path("a\0.txt")).happened == "'a\\x00.txt' cannot be read (ValueError)."


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_file_that_is_not_utf_8_is_an_error(made: Make, name: str) -> None:
    """The error about another encoding names the line; no wrong prompt is sent."""
    first = '"prompt"\n' if name == "a.jsonl" else "prompt\n"
    error = refusal(made(name, f"{first}笑起来\n".encode("gb18030")))
    assert error.happened == f"{name}, line 2: it is not UTF-8 text, or has a NUL character."
    assert error.advice == "Save it as UTF-8."


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_sets_the_encoding(made: Make, encoding: str, end: str) -> None:
    """UTF-16 and UTF-32 are read if the file begins with a byte order mark."""
    content = end.join(["\ufeff笑起来", "😀 a kitten", ""])
    assert requests(made("a.txt", content.encode(encoding))) == [
        TextToVideo("笑起来"),
        TextToVideo("😀 a kitten"),
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_utf_16_without_a_byte_order_mark_is_an_error(made: Make, name: str, encoding: str) -> None:
    """It looks like UTF-8 with NUL characters."""
    error = refusal(made(name, '"prompt"\n"a kitten"\n'.encode(encoding)))
    assert error.happened == f"{name}, line 1: it is not UTF-8 text, or has a NUL character."


def test_a_text_that_ends_within_a_character_is_an_error(made: Make) -> None:
    """Half a character at the end of UTF-16 text is an error on the next line."""
    error = refusal(made("a.txt", "a kitten\n".encode("utf-16") + b"\n"))
    assert error.happened == "a.txt, line 2: it is not UTF-16 text, or has a NUL character."
    assert secrets_in(error, ["kitten"]) == []


def test_concatenated_files_may_have_marks_in_the_middle(made: Make) -> None:
    """A byte order mark at the start of any line is not part of the prompt."""
    assert requests(made("a.txt", "\ufeffa\n\ufeffb\n")) == [TextToVideo("a"), TextToVideo("b")]
    assert requests(made("a.jsonl", '"a"\n\ufeff{"prompt": "b"}\n')) == [
        TextToVideo("a"),
        TextToVideo("b"),
    ]


@pytest.mark.parametrize(
    ("content", "happened"),
    [
        ('prompt\n"a kitten\na puppy\n', "line 2: the row that begins here is broken (unexpected"),
        ('prompt\na\n"b"c\n', "line 3: the row that begins here is broken ("),
        ('sep=,\nprompt\na\n"b\nc"d\n', "line 4: the row that begins here is broken ("),
        (f"prompt\n{'a' * 131_073}\n", "line 2: the row that begins here is broken (field larger"),
    ],
)
def test_a_table_with_a_broken_quote_is_an_error(made: Make, content: str, happened: str) -> None:
    """An unclosed quote would otherwise make the rest of the table one cell."""
    assert refusal(made("a.csv", content)).happened.startswith(f"a.csv, {happened}")


# Before anything is sent


def test_checking_reads_every_entry(made: Make) -> None:
    """It counts the good entries, and finds a bad one at the end before anything is sent."""
    assert check_items(made("a.txt", "a\nb\nc\n")) == 3
    with pytest.raises(UsageError, match="line 4"):
        check_items(made("a.jsonl", lines("a", "b", "c", {"prompt": ""})))


def test_a_duplicate_custom_id_is_found_before_anything_is_sent(made: Make) -> None:
    """Two entries with the same custom id are an error; any number may have none."""
    path = made("a.jsonl", lines("a", "a", {"prompt": "b", "custom_id": 7}))
    assert check_items(path) == 3
    path = made("b.jsonl", path.read_text() + lines({"prompt": "c", "custom_id": "7"}))
    with pytest.raises(UsageError, match="two entries with the custom_id '7'") as caught:
        check_items(path)
    assert caught.value.field == "custom_id"


def test_entries_are_read_one_at_a_time(made: Make) -> None:
    """A bad entry does not keep back those before it."""
    items = read_items(made("a.jsonl", '"first"\n{\n'))
    assert next(items) == Item(TextToVideo("first"))
    with pytest.raises(UsageError, match="line 2"):
        next(items)


# What can be read only once


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Return a function that puts bytes into standard input."""

    def put(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    return put


@pytest.fixture
def piped(tmp_path: Path) -> Iterator[Callable[[str, bytes], Path]]:
    """Return a function that makes a named pipe and writes to it."""
    writers: list[threading.Thread] = []

    def make(name: str, content: bytes) -> Path:
        pipe = tmp_path / name
        os.mkfifo(pipe)
        writers.append(threading.Thread(target=pipe.write_bytes, args=(content,)))
        writers[-1].start()
        return pipe

    yield make
    for writer in writers:
        writer.join()


@pytest.mark.parametrize(
    ("content", "name", "wanted"),
    [
        ("a kitten\nprompt\n", "stdin.txt", [Item(TextToVideo("a kitten")), "prompt"]),
        ("\n[a kitten]\n", "stdin.txt", ["[a kitten]"]),
        ('\n {"prompt": "a", "seconds": 5}\n', "stdin.jsonl", [TextToVideo("a", seconds=5)]),
        ("Prompt,custom_id\na,7\n", "stdin.csv", [Item(TextToVideo("a"), "7")]),
        ("sep=;\nprompt;seconds\na;5\n", "stdin.csv", [TextToVideo("a", seconds=5)]),
        ("", "stdin.txt", []),
    ],
)
def test_the_first_line_decides_what_standard_input_contains(
    stdin: Callable[[bytes], None], content: str, name: str, wanted: list[Any]
) -> None:
    """The copy can be read twice, and is removed afterwards."""
    stdin(content.encode("utf-16"))
    with spooled("-") as path:
        assert path.name == name
        assert check_items(path) == len(wanted)
        items = list(read_items(path))
        mode = stat.S_IMODE(path.parent.stat().st_mode)
    assert items == [
        one if isinstance(one, Item) else Item(TextToVideo(one) if isinstance(one, str) else one)
        for one in wanted
    ]
    assert mode == 0o700
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("pipe", b"a kitten\n", [TextToVideo("a kitten")]),
        ("pipe.txt", b'{"prompt": "a"}\n', [TextToVideo('{"prompt": "a"}')]),
        ("the.pipe.JSONL", b'"a"\n', [TextToVideo("a")]),
    ],
)
def test_a_pipe_is_copied(
    piped: Callable[[str, bytes], Path], name: str, content: bytes, read: list[Generation]
) -> None:
    """Its name decides what it contains, and the copy can be read twice."""
    with spooled(piped(name, content)) as path:
        assert requests(path) == read
        assert requests(path) == read


def test_a_descriptor_is_copied(made: Make) -> None:
    """A shell turns `<(command)` into a numbered descriptor, which may even be a file."""
    with made("a.txt", "a kitten\n").open() as file, spooled(f"/dev/fd/{file.fileno()}") as path:
        assert path.name == f"{file.fileno()}.txt"
        assert requests(path) == [TextToVideo("a kitten")]


@pytest.mark.parametrize("name", ["a.txt", "missing.txt", "."])
def test_a_file_is_not_copied(made: Make, name: str) -> None:
    """A file is read in place, and an unreadable one raises when it is read."""
    path = made("a.txt", "a kitten\n").parent / name
    with spooled(path) as same:
        assert same == path


def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    """Nothing is written to this pipe, so opening it would block."""
    os.mkfifo(tmp_path / "pipe.txt")
    error = refusal(tmp_path / "pipe.txt")
    assert error.happened == ("'pipe.txt' is not a regular file, and may be readable only once.")
    assert "spooled" in error.advice
    assert refusal(Path("-")).happened.startswith("'-' is not a regular file")


def test_standard_input_may_be_missing_or_closed(
    stdin: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Missing, closed or unreadable standard input is a UsageError."""
    stdin(b"")
    sys.stdin.buffer.close()
    with pytest.raises(UsageError, match="Standard input is closed"), spooled("-"):
        pass
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UsageError, match="Standard input is closed"), spooled("-"):
        pass
    with pytest.raises(UsageError, match="'999' cannot be read"), spooled("/dev/fd/999"):
        pass


def test_no_room_for_a_copy_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error about a full disk gives the reason."""

    def no_place(**_: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryDirectory", no_place)
    with pytest.raises(UsageError, match="No usable temporary directory found"), spooled("-"):
        pass


def test_a_copy_that_is_still_open_raises_nothing_on_windows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Windows cannot remove an open file."""

    def held(path: str, *_: object, **__: object) -> None:
        raise PermissionError(13, "The process cannot access the file", path)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a kitten\n")))
    with spooled("-") as path:
        assert check_items(path) == 1
        monkeypatch.setattr(os, "unlink", held)
    monkeypatch.undo()


# Secrets


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", f'{{"prompt": "{MARK}"'),
        ("a.jsonl", json.dumps([MARK])),
        ("a.jsonl", json.dumps({"prompt": MARK, "seconds": 0})),
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
def test_no_error_contains_a_prompt(made: Make, name: str, content: str | bytes) -> None:
    """Neither the error nor its cause or context quotes the file."""
    error = refusal(made(name, content))
    secrets = (MARK, "marked")
    assert secrets_in(error, secrets) == []
    assert not any("marked" in str(value) for value in attrs.astuple(error))
