"""What gateways, proxies and hosts of clips do to a client, each row of the simulator's tables."""

from pathlib import Path

import pytest
from support.clients import quick_client, without_pauses
from support.media import PNG

from fuhu_runway import Client
from fuhu_runway.errors import (
    GatewayDown,
    InvalidRequest,
    ModelUnavailable,
    NotFound,
    OutOfCredits,
    RateLimited,
    RunwayError,
    SubmissionInDoubt,
    TaskFailed,
    Unauthorized,
    UploadFailed,
)
from fuhu_runway.models import Gateway, Timeouts
from fuhu_runway.testing import KNOWN, SHAPES, Simulator, faults
from fuhu_runway.testing.faults import Fault, Head, on
from fuhu_runway.uploads import GatewayFiles

DOUBT = SubmissionInDoubt
#: What a submit raises for each response that says nothing about a task.
RAISED: dict[str, type[RunwayError]] = {
    "no_credits": OutOfCredits,
    "no_credits_nested": OutOfCredits,
    "issues": InvalidRequest,
    "reference_images_empty": InvalidRequest,
    "invalid_parameters": InvalidRequest,
    "channel_disabled": ModelUnavailable,
    "task_channel_disable": ModelUnavailable,
    "get_channel_failed": DOUBT,
    "no_available_key": ModelUnavailable,
    "request_failed": DOUBT,
    "insert_task_failed": DOUBT,
    "timed_out_in_400": DOUBT,
    "could_not_find_task": DOUBT,
    "no_such_task": DOUBT,
    "task_not_exist_in_200": DOUBT,
    "empty": DOUBT,
    "fatal_error": DOUBT,
    "challenge": GatewayDown,
    "captive_portal": DOUBT,
    "captive_portal_511": GatewayDown,
    "no_tasks": DOUBT,
    "no_charges": DOUBT,
    "to_console": DOUBT,
    "see_other": DOUBT,
    "closed_request": DOUBT,
    "origin_error": DOUBT,
    "panic": DOUBT,
    "nothing": DOUBT,
    "midjourney": OutOfCredits,
    "request_limit": RateLimited,
    "banned": Unauthorized,
    "invalid_signature": Unauthorized,
    "invalid_request_in_500": InvalidRequest,
    "without_a_word": DOUBT,
    "firewall": DOUBT,
    "cloudflare_1015": RateLimited,
    "cloudflare_502": DOUBT,
    "envoy_reset": DOUBT,
    "envoy_no_upstream": DOUBT,
    "nginx_413": InvalidRequest,
    "gin_404": NotFound,
    "timed_out_in_json": DOUBT,
}


def test_every_known_answer_has_an_error() -> None:
    """The table above has each of the simulator's known responses."""
    assert RAISED.keys() == KNOWN.keys()


@pytest.mark.parametrize(("name", "kind"), RAISED.items(), ids=RAISED)
async def test_a_submit_meets_each_known_answer(
    gateway: Simulator, name: str, kind: type[RunwayError]
) -> None:
    """If the response proves nothing, the request is in doubt and is sent once."""
    gateway.fault("submit", faults.known(name, accepted=kind is DOUBT), times=None)
    async with quick_client(gateway) as client:
        without_pauses(client)
        with pytest.raises(kind) as caught:
            await client.generate("a kitten")
    assert isinstance(caught.value, SubmissionInDoubt) is (kind is DOUBT)
    assert gateway.submitted == (kind is DOUBT)
    assert len(gateway.requests) == 1 or kind in {GatewayDown, ModelUnavailable, RateLimited}


PROXIES = ["firewall", "cloudflare_1015", "cloudflare_502", "envoy_reset", "envoy_no_upstream"]


@pytest.mark.parametrize("name", [*PROXIES, "gin_404", "timed_out_in_json", "panic"])
async def test_a_wait_outlasts_what_proxies_say(gateway: Simulator, name: str) -> None:
    """No response of a proxy, a firewall or a crashed gateway ends a wait."""
    gateway.script(faults=[on("feed", faults.known(name), times=3)])
    async with quick_client(gateway) as client:
        without_pauses(client)
        task = await client.generate("a kitten")
        assert await task.wait(timeout=30)
    assert gateway.polls(task.id) > 3


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_clip_is_made_in_each_shape(shape: str) -> None:
    """Each response that names a task is read as one, from the submit to either end."""
    async with Simulator(speed=1000, takes=20, dialect=shape) as gateway:
        gateway.script("a forbidden kitten", then="fail")
        async with quick_client(gateway) as client:
            clip = await (await client.generate("ein Kätzchen, 一只")).wait(timeout=30)
            assert clip.id == gateway.tasks[0].task_id
            with pytest.raises(TaskFailed):
                await (await client.generate("a forbidden kitten")).wait(timeout=30)


@pytest.mark.parametrize("status", [201, 202, 207, 302, 400, 404, 409, 422, 429, 500, 503])
async def test_a_task_is_not_lost_under_any_status(gateway: Simulator, status: int) -> None:
    """If the response names a task, the submit returns it or is in doubt with its id."""
    gateway.fault("submit", Head(status), times=None)
    async with quick_client(gateway) as client:
        try:
            found: str | None = (await client.generate("a kitten")).id
        except SubmissionInDoubt as doubt:
            found = doubt.task_id
    assert [one.task_id for one in gateway.tasks] == [found]


FRAMES: dict[str, Fault] = {
    "no length": faults.UntilClose(),
    "slow": faults.SlowBody(50_000),
    "wrong type": Head(headers=(("Content-Type", "text/plain"),)),
    "no type": Head(headers=(("Content-Type", None),)),
    "cookies": Head(headers=(("Set-Cookie", "__cf_bm=1; Path=/; Secure"), ("CF-RAY", "1-SIN"))),
    "early, then no length": faults.Informational(103, faults.UntilClose()),
}


@pytest.mark.parametrize("fault", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("place", ["submit", "feed", "download"])
async def test_a_clip_is_made_around_each_frame(
    gateway: Simulator, place: faults.Where, fault: Fault, tmp_path: Path
) -> None:
    """How a response is framed changes nothing about what it says."""
    gateway.fault(place, fault)
    async with quick_client(gateway) as client:
        clip = await client.run("a kitten")
        path = await clip.download(tmp_path / "kitten.mp4")
    assert path.read_bytes().endswith(f"{clip.id} version 001".encode())
    assert gateway.submitted == 1


async def test_a_submit_that_ends_early_is_in_doubt_with_its_id(gateway: Simulator) -> None:
    """Without a length nothing shows that the response is cut, but its id has arrived."""
    gateway.fault("submit", faults.UntilClose(after_bytes=100))
    async with quick_client(gateway) as client:
        try:
            found: str | None = (await client.generate("a kitten")).id
        except SubmissionInDoubt as doubt:
            found = doubt.task_id
    assert [one.task_id for one in gateway.tasks] == [found]


DOWNLOADS: dict[str, Fault] = {
    "cut without a length": faults.UntilClose(after_bytes=9000),
    "cut ETag": Head(headers=(("ETag", '"abc'),), then=faults.Cut(9000)),
    "no name for the version": Head(
        headers=(("ETag", None), ("Last-Modified", None)), then=faults.Cut(9000)
    ),
    "206 unasked": Head(206),
    "endless range": Head(206, (("Content-Range", f"bytes 0-1/{'9' * 5000}"),)),
    "unknown encoding": Head(headers=(("Content-Encoding", "lzma"),)),
    "false gzip": Head(headers=(("Content-Encoding", "gzip"),)),
    "no such host": Head(302, (("Location", "http://cdn..example/c.mp4"),)),
    "long label": Head(302, (("Location", f"http://{'a' * 70}.example/c.mp4"),)),
}


@pytest.mark.parametrize("fault", DOWNLOADS.values(), ids=DOWNLOADS)
async def test_a_download_outlasts_each_head(
    gateway: Simulator, fault: Fault, tmp_path: Path
) -> None:
    """The clip is saved whole, or a `RunwayError` is raised and the next download saves it."""
    gateway.fault("download", fault)
    async with quick_client(gateway) as client:
        clip = await client.run("a kitten")
        try:
            path = await clip.download(tmp_path / "kitten.mp4")
        except RunwayError:
            assert not (tmp_path / "kitten.mp4").exists()
            path = await clip.download(tmp_path / "kitten.mp4")
    assert path.read_bytes().endswith(f"{clip.id} version 001".encode())


URLS = [
    "http://cdn..example/c.mp4",
    f"http://{'a' * 70}.example/c.mp4",
    "http://user@127.0.0.1:1/m",
    "http://[::1",
    "http://127.0.0.1:99999/c.mp4",
    "ftp://127.0.0.1/c.mp4",
    "javascript:alert(1)",
    "",
]


@pytest.mark.parametrize("url", URLS)
async def test_an_impossible_url_is_the_error_of_one_job(
    gateway: Simulator, url: str, tmp_path: Path
) -> None:
    """The other jobs of the batch have their clips, and each job was paid for once."""
    gateway.script("two", faults=[on("feed", faults.VideoUrl(url), times=None)])
    async with quick_client(gateway, timeouts=Timeouts(connect=1)) as client:
        without_pauses(client)
        prompts = ["one", "two", "three"]
        ended = [one async for one in client.generate_many(prompts, download_to=tmp_path)]
    assert sorted(one.request.prompt for one in ended if one.error is None) == ["one", "three"]
    assert all(one.error is None or isinstance(one.error, RunwayError) for one in ended)
    assert gateway.submitted == 3


UPLOADS: dict[str, Fault] = {
    "page": faults.html_page(),
    "413": faults.known("nginx_413"),
    "wrong key": faults.error(401),
    "lost": faults.Drop(),
    "no address": faults.Response(200, '{"id":"file-1","object":"file"}'),
    "no JSON": faults.not_json(),
    "cut": faults.Truncated(),
}


@pytest.mark.parametrize("fault", UPLOADS.values(), ids=UPLOADS)
async def test_a_file_that_is_not_taken_costs_nothing(gateway: Simulator, fault: Fault) -> None:
    """The request that needs the file is not sent."""
    gateway.fault("files", fault, times=None)
    own = Gateway("own", gateway.base_url, files_path="/v1/files")
    async with Client(gateway.api_key, gateway=own, uploads=GatewayFiles()) as client:
        without_pauses(client)
        with pytest.raises(UploadFailed, match="Nothing was charged"):
            await client.generate("a kitten", image=PNG)
    assert gateway.submitted == 0
    assert {one.where for one in gateway.requests} == {"files"}
