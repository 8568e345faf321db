"""A transcript: samples of a gateway's responses without anything that identifies a person."""

import errno
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.clients import quick_client
from support.marks import EXTRA, IMAGE, IPV4, IPV6, KEY, PROMPT, Evidence, leaky_text
from support.samples import Sample, read_samples, samples

from fuhu_runway import Gateway, ImageToVideo, TaskState, doctor
from fuhu_runway.doctor import Transcript
from fuhu_runway.errors import Fate, RunwayError, UsageError
from fuhu_runway.testing import DIALECTS, Simulator, faults


def recorded(*one: Sample) -> Transcript:
    """Return a transcript of the replies of samples."""
    transcript = Transcript()
    for sample in one:
        transcript.add(sample.reply())
    return transcript


def outcome(sample: Sample) -> Any:
    """Return what a sample is read as, be it an error."""
    try:
        return sample.read()
    except RunwayError as error:
        return error


def meaning(result: Any) -> tuple[Any, ...]:
    """Return what a program decides by."""
    names = ("state", "refunded", "fate", "unlimited")
    has_clip = bool(getattr(result, "video_url", None))
    return type(result), has_clip, *(getattr(result, name, None) for name in names)


def mistakes(sample: Sample) -> Iterator[str]:
    """Yield each field of a sample that is not read as it expects."""
    result = outcome(sample)
    expected = {name: value for name, value in sample.expected.items() if name != "gives"}
    if type(result).__name__ != expected.pop("raises", type(result).__name__):
        yield "raises"
    if type(result).__name__ == "UnreadableReply":
        for name in ("code", "message", "retry_after"):
            del expected[name]
        expected["reasons"] = tuple(expected["reasons"])
    for name, wanted in expected.items():
        found = getattr(result, name)
        if isinstance(found, TaskState | Fate):
            found = found.name
        if isinstance(found, datetime):
            found = found.isoformat()
        if found != wanted:
            yield f"{name}: {found!r} is not {wanted!r}"


# A transcript leaves the lists of an account out.
RECORDED = [one for one in samples() if one.endpoint not in {"account_tasks", "key_log"}]
ANY_SAMPLE = pytest.mark.parametrize("sample", RECORDED, ids=lambda sample: sample.name)
LOST = {"loose/two-values-the-first-refuses", "ids/id-in-the-query-of-a-location"}
"""What is not kept: of two JSON values in one body, an id in that which is not read; and an id in
the address of a redirect."""


@ANY_SAMPLE
def test_a_stand_in_is_read_as_the_reply_was(sample: Sample, tmp_path: Path) -> None:
    """Replacing what identifies a person changes neither the outcome nor the state."""
    path = recorded(sample).save(tmp_path / "recorded.yaml")
    (copy,) = read_samples(path)
    assert copy.status == sample.status
    assert copy.endpoint == sample.endpoint
    assert list(mistakes(copy)) == []
    if sample.name not in LOST:
        assert meaning(outcome(copy)) == meaning(outcome(sample))


@ANY_SAMPLE
def test_nothing_of_a_reply_is_in_its_transcript(sample: Sample) -> None:
    """No id, address, prompt or message of any sample is shown."""
    shown = str(recorded(sample))
    result = outcome(sample)
    names = ("task_id", "video_url", "poster_url", "last_frame_url", "prompt_en", "request_id")
    values = {getattr(result, name, None) for name in names} - {None, "t-1"}
    assert [text for text in values if text in shown] == []


async def record(gateway: Simulator, **options: Any) -> Transcript:
    """Examine a simulator and make a clip there."""
    transcript = Transcript()
    report = await doctor.examine(
        gateway.api_key, base_url=gateway.base_url, transcript=transcript, **options
    )
    assert report.is_ready
    async with quick_client(gateway, **options) as client:
        await doctor.first_clip(client, transcript=transcript)
    return transcript


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_recorded_clip_is_a_sample(dialect: str, tmp_path: Path) -> None:
    """What is recorded at a simulator is read by the loader of samples, and as it expects."""
    async with Simulator(speed=1000, takes=20, dialect=dialect) as gateway:
        path = (await record(gateway)).save(tmp_path / "gateway.yaml")
        replies = read_samples(path)
    assert [list(mistakes(sample)) for sample in replies] == [[]] * len(replies)
    states = {sample.expected.get("state") for sample in replies}
    assert "SUCCEEDED" in states
    endpoints = {sample.endpoint for sample in replies}
    assert endpoints == {"feed", "subscription", "usage", "text_to_video"}
    ids = {sample.expected["task_id"] for sample in replies if sample.expected.get("state")}
    assert len(ids) == 1


async def test_the_same_id_has_the_same_stand_in_everywhere(gateway: Simulator) -> None:
    """The id in the reply to the submit is the one that is polled."""
    shown = str(await record(gateway))
    assert gateway.tasks[0].task_id not in shown
    submitted, polled = "-000000000002", '{\\"task_id\\": \\"00000000-0000-4000-8000-000000000002'
    assert f'{submitted}"' in shown
    assert polled in shown


async def test_replies_that_are_read_alike_are_kept_once() -> None:
    """A task that is polled often fills no page."""
    async with Simulator(speed=100, takes=20, dialect="new_api") as gateway:
        shown = str(await record(gateway))
    assert len([line for line in shown.splitlines() if line.startswith("feed-")]) <= 4


@pytest.fixture
def evidence() -> Iterator[Evidence]:
    """Return what collects evidence, and check that there is none."""
    found = Evidence()
    yield found
    assert found.leaks == []


def named(maker: Any, text: str) -> faults.Fault:
    """Return a fault that says *text*."""
    made = maker(text)
    assert isinstance(made, faults.Fault)
    return made


LEAKY = {
    "error": lambda text: faults.error(400, text),
    "type": lambda text: faults.error(400, "no", type=text, code=text, param=text),
    "page": lambda text: faults.Response(200, f"<html>{text}", "text/html"),
    "plain text": lambda text: faults.Response(502, text, "text/plain"),
    "content type": lambda text: faults.Response(400, "{}", f"text/{text.split()[0]}"),
    "header": lambda text: faults.Response(
        301, "", headers=(("Location", f"https://{IPV4}/{text.split()[0]}?token={KEY}"),)
    ),
    "key of JSON": lambda text: faults.Response(400, json.dumps({"code": "no", text: text})),
    "plain key of JSON": lambda _: faults.Response(400, json.dumps({"code": "no", KEY: [KEY]})),
    "nested": lambda text: faults.Response(400, json.dumps({"error": json.dumps({"a": text})})),
    "words": lambda text: faults.task_error(text, text),
    "envelope": lambda text: faults.refused(text, data={"ip": [IPV4, IPV6], "user": KEY}),
    "broken JSON": lambda text: faults.Response(200, f'{{"code": "{text}'),
    "quoted state": lambda text: faults.Response(
        200, json.dumps({"task_id": "t-77", "status": PROMPT, "state": KEY, "prompt": text})
    ),
}


@pytest.mark.parametrize("kind", LEAKY)
@pytest.mark.parametrize("place", ["feed", "balance", "submit"])
async def test_no_secret_is_in_a_transcript(
    kind: str, place: Any, evidence: Evidence, caplog: pytest.LogCaptureFixture
) -> None:
    """A gateway that repeats keys, prompts, pictures and addresses is recorded without them."""
    caplog.set_level("DEBUG", "fuhu_runway")
    request = ImageToVideo(PROMPT, IMAGE, extra=EXTRA)
    transcript = Transcript()
    async with Simulator(speed=1000, takes=20, api_key=KEY) as gateway:
        said = leaky_text(request)
        gateway.fault(place, named(LEAKY[kind], said), times=None)
        report = await doctor.examine(KEY, base_url=gateway.base_url, transcript=transcript)
        async with quick_client(gateway) as client:
            try:
                await doctor.first_clip(client, request, transcript=transcript, timeout=0.05)
            except RunwayError as error:
                evidence.error(error)
    evidence.take("transcript", str(transcript))
    # `examine` sends no prompt, so that a message it shows cannot quote one.
    evidence.take("report", repr(report), but={"prompt"})
    evidence.take("log", caplog.text)
    assert repr(transcript).startswith("<Transcript of ")


def test_an_unknown_prefix_is_a_stand_in(evidence: Evidence) -> None:
    """A path that only one customer has is not shown."""
    sample = next(one for one in samples() if one.endpoint == "feed")
    request = sample.request(Gateway("mine", "https://a.example/wombat", feed_verb="GET"))
    transcript = Transcript()
    transcript.add(attrs.evolve(sample.reply(), request=request))
    evidence.take("transcript", str(transcript))
    assert '"path": "/prefix-1/feed?task_id=…"' in str(transcript)


def test_a_reply_that_was_too_large_is_not_shown(evidence: Evidence) -> None:
    """What is known of a reply that was cut is that it cannot be read."""
    transcript = Transcript()
    transcript.add(attrs.evolve(RECORDED[0].reply(), body=PROMPT.encode(), cut=True))
    evidence.take("transcript", str(transcript))
    assert "body: 'reason 1'" in str(transcript)


def test_a_word_that_is_new_is_kept() -> None:
    """A status that no table knows is what the transcript is for."""
    sample = next(one for one in samples() if one.endpoint == "feed")
    body = '{"code":200,"data":{"task_id":"1","status":"awaiting_review","code":"审核中"}}'.encode()
    reply = sample.reply(body)
    transcript = Transcript()
    transcript.add(reply)
    shown = str(transcript)
    assert "awaiting_review" in shown
    assert "审核中" in shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.00001, 0.0),
        (999, 999),
        (123456, 1001),
        (123456789, 100000001),
        (1734078348, 1735689601),
        (1734078348123, 1735689601000),
        (100_000_000, 100_000_000),
        ("27%", "27%"),
        ("16:9", "16:9"),
        ("2024-12-13T08:25:48Z", "2025-01-01T00:00:01Z"),
        ("203.0.113.77", "192.0.2.1"),
        ("2001:db8::1", "192.0.2.1"),
        ("a wombat", "text 1"),
        ("/files/wombat.MP4?x=1", "/file-1.mp4?signature=hidden"),
        ("//cdn.example/wombat.mp4", "//host-1.example/file-1.mp4"),
        ("//[wombat", "text 1"),
        ("https://cdn.example/my wombat.mp4", "https://host-1.example/file-1.mp4"),
        ('{"a": "a wombat"}', '{"a": "text 1"}'),
        ("9034a8e8-c920", "00000000-0000-4000-8000-000000000001"),
        (None, None),
        (True, True),
        ("  ", ""),
    ],
)
def test_each_kind_of_value_has_a_stand_in_of_its_kind(value: Any, shown: Any) -> None:
    """Numbers stay numbers, times stay times, addresses stay addresses."""
    sample = next(one for one in samples() if one.endpoint == "feed")
    transcript = Transcript()
    transcript.add(sample.reply(json.dumps({"thing": value}).encode()))
    assert f"body: '{json.dumps({'thing': shown})}'" in str(transcript)


def test_headers_that_decide_are_kept() -> None:
    """Retry-After, Location and the mark of a challenge change how a reply is read."""
    names = {"retry-after", "location", "cf-mitigated"}
    chosen = [one for one in RECORDED if names & {name.lower() for name in one.headers}]
    shown = str(recorded(*chosen))
    for name in ("Retry-After", "Location", "Cf-Mitigated"):
        assert f'"{name}"' in shown


# The file


@pytest.fixture
def transcript() -> Transcript:
    """A transcript of two replies."""
    return recorded(*RECORDED[:2])


def test_an_existing_file_is_not_replaced_unasked(transcript: Transcript, tmp_path: Path) -> None:
    """Without overwrite, what is there stays; a folder stays in any case."""
    path = tmp_path / "gateway.yaml"
    path.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        transcript.save(path)
    assert path.read_text() == "mine"
    with pytest.raises(UsageError, match="exists already"):
        transcript.save(tmp_path, overwrite=True)
    transcript.save(path, overwrite=True)
    assert path.read_text(encoding="utf-8") == str(transcript)
    assert [one.name for one in tmp_path.iterdir()] == ["gateway.yaml"]


def test_a_folder_that_is_missing_is_named(transcript: Transcript, tmp_path: Path) -> None:
    """A path that cannot be written is an error before anything is written."""
    with pytest.raises(UsageError, match="no folder"):
        transcript.save(tmp_path / "missing" / "gateway.yaml")


def test_a_file_is_written_whole_or_not_at_all(
    transcript: Transcript, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full while the file gets its name leaves nothing behind."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UsageError, match="No space left"):
        transcript.save(tmp_path / "gateway.yaml")
    assert list(tmp_path.iterdir()) == []
