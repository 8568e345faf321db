"""The official SDK works with the simulator: an independent check of its format."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from fuhu_runway.testing import Simulator

runwayml = pytest.importorskip("runwayml")

pytestmark = pytest.mark.usefixtures("virtual")


@pytest.fixture
async def gateway() -> AsyncIterator[Simulator]:
    """Yield a gateway that requires the official format, version header included."""
    async with Simulator(takes=60.0, requires_version=True) as gateway:
        yield gateway


def client_of(gateway: Simulator) -> "runwayml.AsyncRunwayML":
    """Return the SDK's own client, set up as the gateways' pages say."""
    return runwayml.AsyncRunwayML(
        api_key=gateway.api_key, base_url=f"{gateway.base_url}/runwayml", max_retries=0
    )


async def test_a_task_is_created_waited_for_and_fetched(gateway: Simulator) -> None:
    """`create`, `wait_for_task_output`, and the file at the URL in `output`."""
    async with client_of(gateway) as client:
        task = await client.image_to_video.create(
            model="gen4_turbo",
            prompt_image="https://example.com/1.jpeg",
            prompt_text="a kitten",
            ratio="1280:720",
            duration=5,
        )
        running = await client.tasks.retrieve(task.id)
        done = await task.wait_for_task_output()
    assert (running.status, running.estimated_cost.credits) == ("PENDING", 160)
    assert (done.status, done.id, done.cost.credits) == ("SUCCEEDED", task.id, 160)
    assert gateway.tasks[0].prompt == "a kitten"
    async with aiohttp.ClientSession() as session, session.get(done.output[0]) as response:
        assert (await response.read())[4:8] == b"ftyp"


async def test_a_failed_task_has_its_code(gateway: Simulator) -> None:
    """The SDK's error has the reason, the failure code, and a cost of 0."""
    gateway.script(then="fail", reason="not this", failure_code="SAFETY.OUTPUT.VIDEO")
    async with client_of(gateway) as client:
        task = await client.text_to_video.create(
            model="gen4.5", prompt_text="a kitten", ratio="1280:720", duration=7
        )
        with pytest.raises(runwayml.TaskFailedError) as failed:
            await task.wait_for_task_output()
    details = failed.value.task_details
    assert (details.failure, details.failure_code) == ("not this", "SAFETY.OUTPUT.VIDEO")
    assert details.cost.credits == 0


@pytest.mark.parametrize(
    ("route", "arguments"),
    [
        (
            "video_to_video",
            {"model": "gen4_aleph", "video_uri": "https://example.com/1.mp4", "ratio": "1280:720"},
        ),
        ("video_upscale", {"model": "upscale_v1", "video_uri": "https://example.com/1.mp4"}),
        (
            "character_performance",
            {
                "model": "act_two",
                "ratio": "1280:720",
                "character": {"type": "image", "uri": "https://example.com/1.jpeg"},
                "reference": {"type": "video", "uri": "https://example.com/1.mp4"},
            },
        ),
    ],
)
async def test_the_other_routes_accept_the_sdks_requests(
    gateway: Simulator, route: str, arguments: dict[str, object]
) -> None:
    """Every official route of the gateways makes a task that ends."""
    if route == "video_to_video":
        arguments = {**arguments, "prompt_text": "pixels"}
    async with client_of(gateway) as client:
        task = await getattr(client, route).create(**arguments)
        assert (await task.wait_for_task_output()).status == "SUCCEEDED"
    assert gateway.tasks[0].action == route.upper()
