from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.clients import quick_client

from fuhu_runway import Client, Task
from fuhu_runway.errors import InvalidRequest, NotFound, SubmissionInDoubt, TaskFailed, UsageError
from fuhu_runway.journal import JobState
from fuhu_runway.models import Generation, OfficialRequest, OfficialVideoUpscale
from fuhu_runway.testing import Simulator, faults

IMAGE = "https://pictures.example/1.png"
VIDEO = "https://clips.example/1.mp4"

Call = Callable[[Client], Awaitable[Task]]


@pytest.mark.parametrize(
    ("call", "path", "body"),
    [
        (
            lambda client: client.official.text_to_video(
                "a kitten", model="veo3.1", seconds=8, audio=True, seed=3
            ),
            "text_to_video",
            {
                "promptText": "a kitten",
                "model": "veo3.1",
                "ratio": "1280:720",
                "duration": 8,
                "audio": True,
                "seed": 3,
            },
        ),
        (
            lambda client: client.official.video_to_video(VIDEO, "oil", image=IMAGE, seed=3),
            "video_to_video",
            {
                "videoUri": VIDEO,
                "promptText": "oil",
                "references": [{"type": "image", "uri": IMAGE}],
                "model": "gen4_aleph",
                "ratio": "1280:720",
                "seed": 3,
            },
        ),
        (
            lambda client: client.official.character_performance(
                VIDEO, IMAGE, body_control=True, expression_intensity=4, extra={"a": 1}
            ),
            "character_performance",
            {
                "character": {"type": "image", "uri": IMAGE},
                "reference": {"type": "video", "uri": VIDEO},
                "bodyControl": True,
                "expressionIntensity": 4,
                "model": "act_two",
                "ratio": "1280:720",
                "a": 1,
            },
        ),
        (
            lambda client: client.official.video_upscale(VIDEO),
            "video_upscale",
            {"videoUri": VIDEO, "model": "upscale_v1"},
        ),
        (
            lambda client: client.official.submit(
                "/v1/text_to_video", {"promptText": "a kitten", "model": "gen9", "odd": [1, None]}
            ),
            "text_to_video",
            {"promptText": "a kitten", "model": "gen9", "odd": [1, None]},
        ),
    ],
)
async def test_each_request_of_the_official_format(
    gateway: Simulator, tmp_path: Path, call: Call, path: str, body: dict[str, Any]
) -> None:
    """Its body goes to its own path; its clip is waited for and saved as any other."""
    async with quick_client(gateway) as client:
        task = await call(client)
        clip = await task.wait(timeout=10)
        await clip.download(tmp_path / "clip.mp4")
    assert task.official
    assert gateway.tasks[0].request == body
    assert gateway.requests[0].path == f"/runwayml/v1/{path}"
    assert clip.record.points is not None
    gateway.assert_submitted_once()


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("https://elsewhere.example/v1/text_to_video", {}, "path"),
        ("text_to_video?key=marked", {}, "path"),
        ("../pro/generate", {}, "path"),
        ("text_to_video", ["marked"], "body"),
        ("text_to_video", {"marked": {1, 2}}, "body"),
    ],
)
async def test_an_official_request_that_is_wrong_sends_nothing(
    gateway: Simulator, path: str, body: Any, field: str
) -> None:
    """A path that is none, and a body that is not JSON, are a UsageError without their content."""
    async with quick_client(gateway) as client:
        with pytest.raises(UsageError) as caught:
            await client.official.submit(path, body)
    assert caught.value.field == field
    assert "marked" not in str(caught.value)
    assert gateway.requests == ()


async def test_an_official_request_is_paid_once(gateway: Simulator) -> None:
    """It is never sent again if its fate is unknown, and one name is one task."""
    body = {"model": "gen9", "promptText": "a kitten"}
    async with quick_client(gateway) as client:
        first = await client.official.submit("text_to_video", body, custom_id="one")
        again = await client.official.submit("/v1/text_to_video", body, custom_id="one")
        assert again.id == first.id
        gateway.fault("official", faults.Answer(502))
        with pytest.raises(SubmissionInDoubt):
            await client.official.submit("text_to_video", body, custom_id="two")
    assert [seen.path for seen in gateway.requests].count("/runwayml/v1/text_to_video") == 2


async def test_a_path_that_the_gateway_does_not_have_costs_nothing(gateway: Simulator) -> None:
    """Its web page in place of an answer is NotFound."""
    async with quick_client(gateway) as client:
        with pytest.raises(NotFound, match="Nothing was charged"):
            await client.official.submit("text_to_opera", {"promptText": "a kitten"})
    assert gateway.submitted == 0


async def test_a_refusal_says_what_is_documented(gateway: Simulator) -> None:
    """A request that differs from what is documented for its model is sent; a refusal says how."""
    async with quick_client(gateway) as client:
        with pytest.raises(InvalidRequest, match=r"gen4\.5 is documented with seconds 2, .* or 10"):
            await client.official.text_to_video("a kitten", seconds=12)
        with pytest.raises(InvalidRequest) as caught:
            await client.official.text_to_video("a kitten", model="gen9", seconds=12)
    assert "documented" not in str(caught.value)


@pytest.mark.parametrize(
    "request_",
    [
        OfficialVideoUpscale(VIDEO),
        OfficialRequest("text_to_video", {"model": "gen9", "promptText": "a marked kitten"}),
    ],
)
async def test_an_official_task_is_official_after_a_restart(
    gateway: Simulator, tmp_path: Path, request_: Generation
) -> None:
    """The journal has the class of a request and none of its content, and so its format."""
    path = tmp_path / "run.db"
    async with quick_client(gateway, journal=path) as client:
        task = await client.submit(request_, custom_id="one")
        assert client.journal is not None
        (job,) = await client.journal.jobs()
    assert (job.endpoint, job.state) == (type(request_).__name__, JobState.ACCEPTED)
    assert "marked" not in repr(job)
    assert b"marked" not in path.read_bytes()
    async with quick_client(gateway, journal=path) as client:
        again = await client.submit(request_, custom_id="one")
        assert (again.id, again.official) == (task.id, True)
        await again.wait(timeout=10)
    assert gateway.submitted == 1
    assert {seen.where for seen in gateway.requests} == {"official"}


async def test_what_failed_may_quote_the_body(gateway: Simulator) -> None:
    """The reason for a failure shows no text of a body of the caller's own."""
    gateway.script(then="fail", reason="an odd marked kitten is not allowed here")
    body = {"model": "gen9", "promptText": "an odd marked kitten"}
    async with quick_client(gateway) as client:
        task = await client.official.submit("text_to_video", body)
        with pytest.raises(TaskFailed, match="is not allowed here") as caught:
            await task.wait(timeout=10)
    assert "marked" not in str(caught.value)
