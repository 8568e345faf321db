import asyncio
import itertools
import json
import random
from typing import Any
from unittest.mock import ANY

import attrs
import pytest

from fuhu_runway.testing import DIALECTS, faults
from fuhu_runway.testing._clock import SimulatedClock
from fuhu_runway.testing._loopback import is_loopback
from fuhu_runway.testing._server.accounts import Bucket
from fuhu_runway.testing._server.dialects import render
from fuhu_runway.testing._server.story import (
    Ending,
    Moment,
    Script,
    Stage,
    changes,
    has_url,
    stage_at,
)

URLS = ("http://x/1.mp4", "http://x/1.png", "http://x/2.png")
MOMENT = Moment(
    task_id="9f6243e5-3ab8-49c3-9c3c-6309ef5c96bd",
    action="TEXT_TO_VIDEO",
    prompt="一只小猫",
    stage="running",
    percent=40,
    points=320.0,
    created_at=1734078348,
    started_at=1734078350,
    updated_at=1734078400,
)
FAILED = attrs.evolve(
    MOMENT, stage="failed", percent=100, reason="moderated", refunded=True, finished_at=1734078452
)
DONE = attrs.evolve(MOMENT, stage="succeeded", percent=100).with_urls(URLS)


def rendered(moment: Moment, dialect: str) -> Any:
    """Return the response of *dialect* for *moment*."""
    body, content_type = render(moment, dialect, random.Random(0))
    assert content_type == "application/json; charset=utf-8"
    return json.loads(body)


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (0.0, ("queued", 0)),
        (9.9, ("queued", 0)),
        (10.0, ("running", 0)),
        (32.5, ("running", 25)),
        (99.9, ("running", 75)),
        (100.0, ("succeeded", 100)),
        (1e9, ("succeeded", 100)),
    ],
)
def test_a_story_goes_by_its_age(age: float, expected: tuple[Stage, int]) -> None:
    """A tenth of the time is the queue, the percents share the rest, and the end stays."""
    assert stage_at(Script(takes=100, progress=(0, 25, 50, 75)), age) == expected


@pytest.mark.parametrize(
    ("then", "stage"),
    [
        ("succeed", "succeeded"),
        ("fail", "failed"),
        ("cancel", "cancelled"),
        ("expire", "expired"),
        ("stall", "running"),
    ],
)
def test_each_ending_has_its_stage(then: Ending, stage: Stage) -> None:
    """Every task ends as its script says, and a stalled one never does."""
    script = Script(takes=10, then=then)
    assert stage_at(script, 11)[0] == stage
    assert has_url(script, 11) == (then == "succeed")
    assert script.refunds == (then in {"fail", "cancel", "expire"})
    assert (script.ends_after is None) == (then == "stall")


@pytest.mark.parametrize(
    "script",
    [
        Script(takes=100),
        Script(takes=7, queued=0.3, progress=(1, 2, 3), url_after=5),
        Script(takes=60, progress=(), then="fail"),
        Script(takes=60, then="stall"),
    ],
)
def test_answers_differ_exactly_at_each_change(script: Script) -> None:
    """The state differs just before and at each change, but not between two changes."""

    def shown_at(age: float) -> tuple[tuple[Stage, int], bool]:
        return stage_at(script, age), has_url(script, age)

    ages = [0.0, *changes(script)]
    for earlier, later in itertools.pairwise(ages):
        assert shown_at(earlier) == shown_at(later - 1e-6)
        assert shown_at(later - 1e-6) != shown_at(later)


def test_one_percent_needs_no_list() -> None:
    """A single percentage holds for the whole time."""
    assert Script(progress=42).progress == (42,)  # type: ignore[arg-type]


def test_a_misspelt_ending_is_an_error() -> None:
    """A script knows five endings and refuses any other."""
    with pytest.raises(ValueError, match="explode"):
        Script(then="explode")  # type: ignore[arg-type]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_blank_answer_has_only_the_id(dialect: str) -> None:
    """In no dialect does it contain a prompt, a URL or a percent."""
    text = str(rendered(attrs.evolve(DONE, blank=True), dialect))
    assert MOMENT.task_id in text
    assert not any(word in text for word in ("小猫", "http", "100%", "SUCC", "'3'"))


def test_the_numbers_of_the_envelope_are_text() -> None:
    """Dialect A writes every number of its data as a string."""
    data = rendered(FAILED, "envelope")["data"]
    assert isinstance(data, dict)
    assert (data["status"], data["state"], data["msg"]) == ("2", "error", "moderated")
    assert (data["point"], data["refund"]) == ("320", "320")
    assert data["create_time"] == "1734078348"
    assert data["prompt_en"] != data["prompt"]


def test_a_refund_is_an_amount_here_and_a_flag_there() -> None:
    """DeerAPI reports the refunded points, gpt-best only a flag."""
    deer, short = (
        rendered(FAILED, "envelope_deer")["data"],
        rendered(FAILED, "envelope_short")["data"],
    )
    assert isinstance(deer, dict)
    assert isinstance(short, dict)
    assert (deer["refund"], short["refund"]) == ("320", "1")
    assert "state" in deer
    assert "state" not in short


def test_progress_is_complete_after_a_failure_too() -> None:
    """New-API reports 100% for a failed task."""
    task = rendered(FAILED, "new_api")["data"]
    assert isinstance(task, dict)
    assert (task["status"], task["progress"]) == ("FAILURE", "100%")
    assert task["fail_reason"] == "moderated"


def test_older_rows_keep_the_url_where_the_reason_belongs() -> None:
    """`fail_reason` has the URL of a success and the reason of a failure."""
    for moment, reason in ((DONE, URLS[0]), (FAILED, "moderated"), (MOMENT, "")):
        task = rendered(moment, "new_api_fail_reason")["data"]
        assert isinstance(task, dict)
        assert task["fail_reason"] == reason
        assert "result_url" not in task


@pytest.mark.parametrize(
    ("dialect", "path"),
    [
        ("new_api_official", ("data", "output", 0)),
        ("new_api_task", ("data", "video_url")),
        ("new_api_envelope", ("data", "data", "video_url")),
    ],
)
def test_a_nested_url_is_nowhere_else(dialect: str, path: tuple[str | int, ...]) -> None:
    """Three dialects have the video only within the upstream's answer."""
    task = rendered(DONE, dialect)["data"]
    assert str(task).count("http://x/1.mp4") == 1
    for step in path:
        task = task[step]  # type: ignore[index]
    assert task == "http://x/1.mp4"


@pytest.mark.parametrize(
    ("moment", "more"),
    [
        (MOMENT, {"status": "RUNNING", "progress": 0.4, "estimatedCost": {"credits": 320}}),
        (
            DONE,
            {"status": "SUCCEEDED", "output": ["http://x/1.mp4"], "cost": {"credits": 320}},
        ),
        (
            FAILED,
            {
                "status": "FAILED",
                "failure": "moderated",
                "failureCode": "SAFETY.INPUT.TEXT",
                "cost": {"credits": 0},
            },
        ),
        (attrs.evolve(FAILED, stage="cancelled"), {"status": "CANCELLED", "cost": {"credits": 0}}),
        (attrs.evolve(MOMENT, stage="queued"), {"status": "PENDING", "estimatedCost": ANY}),
    ],
)
def test_the_official_task_has_what_its_status_calls_for(
    moment: Moment, more: dict[str, object]
) -> None:
    """Dialect C has progress, output or failure next to the status, and its cost."""
    task = rendered(moment, "official")
    assert task == {"id": MOMENT.task_id, "createdAt": ANY, **more}
    assert task["createdAt"] == "2024-12-13T08:25:48.000Z"


def test_the_luma_task_is_empty_when_it_is_new() -> None:
    """Dialect C' responds to a submit with the id and a state, but without the prompt (A14)."""
    new = rendered(Moment(task_id="x", action="", prompt="a kitten", stage="submitted"), "luma")
    assert (new["state"], new["prompt"], new["video"]) == ("pending", "", None)
    done = rendered(DONE, "luma")
    assert (done["state"], done["video"]) == ("completed", "http://x/1.mp4")


@pytest.mark.parametrize(
    ("dialect", "status", "state"),
    [
        ("envelope", ("data", "status"), ("data", "state")),
        ("new_api", ("data", "status"), ("data", "data", "status")),
        ("official", ("status",), None),
        ("luma", ("state",), None),
    ],
)
def test_words_of_a_fault_replace_the_right_ones(
    dialect: str, status: tuple[str, ...], state: tuple[str, ...] | None
) -> None:
    """They replace the state in both of its fields."""
    moment = attrs.evolve(MOMENT, status_word="outer", state_word="inner")
    for path, word in ((status, "outer"), (state, "inner")):
        value: object = rendered(moment, dialect)
        for step in path or ():
            value = value[step]  # type: ignore[index]
        assert path is None or value == word


def test_a_bucket_fills_with_time_and_not_beyond_its_size() -> None:
    """After a long pause there are as many tokens as the bucket holds, and no more."""
    bucket = Bucket(per_second=10.0, burst=3)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(0.05)
    assert bucket.take(0.1)
    assert [bucket.take(99.0) for _ in range(4)] == [True, True, True, False]


async def test_closing_ends_all_pauses() -> None:
    """A second close changes nothing, and a pause after it ends at once."""
    clock = SimulatedClock()
    clock.open()
    pausing = asyncio.create_task(clock.pause(1e6))
    await asyncio.sleep(0)
    clock.close()
    clock.close()
    await pausing
    await clock.pause()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("127.0.0.1.example.com", False),
        ("callback.invalid", False),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_loopback_is_recognised_by_the_address(host: str, expected: object) -> None:
    """Only addresses of this machine and one name count."""
    assert is_loopback(host) is expected


def test_a_fault_is_refused_where_it_cannot_happen() -> None:
    """The error lists the places where the fault can happen."""
    with pytest.raises(ValueError, match=r"NoUrl\(\) cannot happen on 'submit', only on: feed, o"):
        faults.on("submit", faults.NoUrl())
    with pytest.raises(ValueError, match="where"):
        faults.on("nowhere", faults.NoUrl())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="fault"):
        faults.on("feed", "NoUrl")  # type: ignore[arg-type]


def test_faults_and_scripts_are_plain_values() -> None:
    """Equal faults are equal, and a script can be converted to a dictionary."""
    assert faults.drop_after_accepting() == faults.Drop(accepted=True)
    script = Script(faults=[faults.on("feed", faults.Cut(3))])
    (fault,) = attrs.asdict(script)["faults"]
    assert fault.pop("share") == 1
    assert fault == {"where": "feed", "fault": {"after_bytes": 3}, "times": 1, "until": None}
