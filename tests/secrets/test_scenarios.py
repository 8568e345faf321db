"""
Every scenario of the simulator, with marked secrets.

The scenarios are found in the simulator itself, so that a fault, a place, a dialect or an ending
that is added later is one more scenario, or a test fails.
"""

import asyncio
import inspect
import json
import logging
import pickle
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import attrs
import pytest
from support.clients import EventRecorder, quick_client
from support.marks import (
    DATA,
    EXTRA,
    IMAGE,
    IPV4,
    IPV6,
    KEY,
    LAST_IMAGE,
    PROMPT,
    SECRET,
    TOKEN,
    VIDEO,
    Evidence,
    leaky_text,
)
from support.media import PNG
from support.spans import Collected

from fuhu_runway import Account, CallbackReceiver, Client, Clip, Task
from fuhu_runway._session.account import key_log
from fuhu_runway.contrib.otel import JobSpans
from fuhu_runway.errors import RunwayError
from fuhu_runway.models import (
    ActOne,
    Aleph,
    Gateway,
    Generation,
    ImageToVideo,
    OfficialCharacterPerformance,
    OfficialImageToVideo,
    OfficialRequest,
    OfficialTextToVideo,
    OfficialVideoToVideo,
    OfficialVideoUpscale,
    TextToVideo,
    Timeouts,
    VideoToVideo,
)
from fuhu_runway.testing import DIALECTS, AccountLists, Simulator, faults
from fuhu_runway.testing._server.cdn import Media
from fuhu_runway.testing._server.story import Ending
from fuhu_runway.testing.faults import PLACES, Fault, Where
from fuhu_runway.uploads import GatewayFiles

# Delays are virtual, and cost no real time.
pytestmark = pytest.mark.usefixtures("virtual")

PUBLIC_URL: Final = "https://app.example/hooks"
LONG_ENOUGH: Final = 0.04
"""Timeouts, in seconds: for a task that succeeds, and for some polls of one that does not."""
BRIEF: Final = Timeouts(connect=1.0, read=0.05, total=0.3)
TEXTS: Final = (str, str | None, str | int | None)
OF_THE_SERVER: Final = ("aiohttp.access", "aiohttp.server", "aiohttp.web")

REQUESTS: Final[tuple[Generation, ...]] = (
    TextToVideo(PROMPT, extra=EXTRA),
    ImageToVideo(PROMPT, IMAGE, last_image=LAST_IMAGE, extra=EXTRA),
    VideoToVideo(VIDEO, PROMPT, extra=EXTRA),
    ActOne(VIDEO, IMAGE, extra=EXTRA),
    Aleph(VIDEO, PROMPT, image=IMAGE, extra=EXTRA),
    OfficialTextToVideo(PROMPT, extra=EXTRA),
    OfficialImageToVideo(DATA, PROMPT, last_image=IMAGE, extra=EXTRA),
    OfficialVideoToVideo(VIDEO, PROMPT, image=IMAGE, extra=EXTRA),
    OfficialCharacterPerformance(VIDEO, IMAGE, extra=EXTRA),
    OfficialVideoUpscale(VIDEO, extra=EXTRA),
    OfficialRequest(
        "image_to_video", {"model": "gen4_turbo", "promptText": PROMPT, "promptImage": IMAGE}
    ),
)

# The required arguments of functions that make faults, besides texts that may leak.
NEEDED: Final[dict[str, dict[str, Any]]] = {
    "Response": {"status": 418},
    "Slow": {"seconds": 1.0},
    "SlowBody": {"bytes_per_second": 1e7},
    "OtherDialect": {"dialect": "mixed"},
    "error": {"status": 400},
    "known": {"name": "challenge"},
    "task_error": {"code": "no"},
    "VideoUrl": {"url": "http://cdn..example/c.mp4"},
}


async def upload(client: Client) -> object:
    """Submit a request whose picture has to be uploaded first."""
    own = Gateway("own", client.gateway.base_url, files_path="/v1/files")
    async with Client(KEY, gateway=own, uploads=GatewayFiles(), timeouts=BRIEF) as other:
        return await other.generate(PROMPT, image=PNG)


# For each place, a call that its faults happen to.
READS: Final[dict[str, Callable[[Client], Awaitable[object]]]] = {
    "balance": lambda client: client.balance(),
    "tasks": lambda client: client.audit(),
    "charges": lambda client: key_log(client._sessions),
    "files": upload,
}
LISTS: Final = {"tasks", "charges"}
LEAKY: Final = (
    *("message", "description", "type", "param", "code", "word", "reason", "state", "status"),
    "body",
)


def makers() -> dict[str, Callable[..., Fault]]:
    """Return every function and class in `faults` that makes a fault."""
    found: dict[str, Callable[..., Fault]] = {}
    for name, thing in vars(faults).items():
        if inspect.isclass(thing):
            if issubclass(thing, Fault) and thing is not Fault:
                found[name] = thing
        elif inspect.isfunction(thing) and not name.startswith("_"):
            made = inspect.signature(thing).return_annotation
            if inspect.isclass(made) and issubclass(made, Fault):
                found[name] = thing
    return found


def made_by(name: str, text: str) -> Iterator[Fault]:
    """Return the faults of one maker: by default, with *text* wherever possible, and accepted."""
    make, needed = makers()[name], NEEDED.get(name, {})
    parameters = inspect.signature(make).parameters
    texts = {
        word: text
        for word, parameter in parameters.items()
        if word in LEAKY and parameter.annotation in TEXTS
    }
    yield make(**needed)
    if texts:
        yield make(**(needed | texts))
    if "accepted" in parameters:
        yield make(**(needed | texts), accepted=True)


QUOTING: Final = 5
"""In how many ways a response of one status quotes a text."""


def quoting(text: str) -> Iterator[Fault]:
    """Return responses with *text* in every place of a response: `QUOTING` for each status."""
    headers = (("X-Client-IP", IPV4), ("Set-Cookie", f"k={KEY}"), ("X-Request-Id", f"{KEY} {IPV6}"))
    for status in (200, 302, 400, 401, 402, 404, 422, 429, 500, 503):
        yield faults.Response(status, text, "text/plain", headers)
        yield faults.Response(status, f"<h1>{text}</h1>", faults.HTML, headers)
        yield faults.error(status, text, type=text, code=text)
        yield faults.Response(status, json.dumps({text: [text, {text: text}]}))
        yield faults.Response(status, json.dumps({"code": text, "message": json.dumps(text)}))


@attrs.define
class Setup:
    """A gateway, its client, and all listeners of both."""

    gateway: Simulator
    client: Client
    evidence: Evidence
    recorder: EventRecorder
    spans: Collected
    receiver: CallbackReceiver

    async def live(
        self,
        request: Generation,
        folder: Path,
        name: str = "clip",
        *,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Follow one request from submit to file, and check every object that a user holds.

        *then* is called when it is accepted.
        """
        with suppress(RunwayError):
            async with self.judged():
                task = await self.client.submit(request)
                then()
                await self.follow(task, folder / f"{name}.mp4")

    async def follow(self, task: Task, path: Path) -> Clip:
        """Wait for a task and save its file."""
        self.evidence.thing(task)
        async for record in task.updates(timeout=LONG_ENOUGH):
            self._know(record.video_url, record.poster_url, record.last_frame_url)
            self.evidence.thing(record)
        clip = await task.wait(timeout=LONG_ENOUGH)
        self.evidence.thing(clip)
        # A clip that shows itself in a notebook shows the link by which it plays.
        self.evidence.take("notebook", clip._repr_html_(), but={"link", "IP address"})
        self.evidence.take("notebook", task._repr_html_())
        await clip.download(path, max_bytes=1_000_000)
        return clip

    @asynccontextmanager
    async def judged(self) -> AsyncIterator[None]:
        """Check the error, and the client after it."""
        try:
            yield
        except RunwayError as error:
            for seen in self.gateway.tasks:
                self._know(seen.request.get("callback_url"))
            self.evidence.error(error)
            raise
        finally:
            # It shows the address of its gateway, which the caller gave it.
            self.evidence.thing(self.client, but={"IP address"})
            for task in self.client.unfinished:
                self.evidence.thing(task)
                self.evidence.take("notebook", task._repr_html_())

    def _know(self, *urls: str | None) -> None:
        for url in filter(None, urls):
            self.evidence.finder.add_link(url)

    def judge_events(self) -> None:
        """Check the events and the spans so far."""
        for event in self.recorder.events:
            self.evidence.thing(event)
            self.evidence.take("event", repr(event.as_dict()))
            self.evidence.take("event", pickle.dumps(event))
        for span in self.spans.ended:
            self.evidence.take("span", span.to_json())


@pytest.fixture
def evidence(caplog: pytest.LogCaptureFixture) -> Iterator[Evidence]:
    """Yield the collected evidence; there must be none, also in the log of the whole test."""
    caplog.set_level(logging.DEBUG)
    found = Evidence()
    yield found
    for record in caplog.get_records("call"):
        # The simulator itself is not under test here.
        if not record.name.startswith(OF_THE_SERVER):
            found.take(f"log {record.name}", f"{record.getMessage()} {vars(record)}")
            error = record.exc_info and record.exc_info[1]
            if error:
                found.error(error)
    assert found.leaks == []


@asynccontextmanager
async def setup(
    evidence: Evidence, folder: Path, *, has_account: bool = False, **options: Any
) -> AsyncIterator[Setup]:
    """Yield a gateway with a marked key, and a client with a journal and webhooks."""
    key = options.setdefault("api_key", KEY)
    options.setdefault("access_token", TOKEN)
    recorder, spans = EventRecorder(), Collected()
    receiver = CallbackReceiver(PUBLIC_URL, secret=SECRET)
    path = folder / "run.db"
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240  (a test need not yield to other tasks)
    async with Simulator(speed=1000, takes=5, **options) as gateway:
        client = quick_client(
            gateway,
            callbacks=receiver,
            journal=path,
            account=Account(TOKEN, gateway.user_id) if has_account else None,
            timeouts=BRIEF,
            hooks=[recorder, JobSpans(spans.provider)],
        )
        assert gateway.api_key == key
        async with client:
            yield Setup(gateway, client, evidence, recorder, spans, receiver)
            judge_files(evidence, folder)
    found = Setup(gateway, client, evidence, recorder, spans, receiver)
    found.judge_events()
    evidence.thing(receiver)
    evidence.thing(client.journal)
    judge_files(evidence, folder)
    judge_rows(evidence, path)


def judge_files(evidence: Evidence, folder: Path) -> None:
    """Check the bytes of every file but clips: the journal, its log, notes of downloads."""
    for file in folder.iterdir():
        if file.suffix not in {".mp4", ".part"}:
            evidence.take(file.name, file.read_bytes())


def judge_rows(evidence: Evidence, path: Path) -> None:
    """Check each cell of each table of a journal."""
    database = sqlite3.connect(path)
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master")]
    for table in tables:
        with suppress(sqlite3.OperationalError):  # an index has no rows
            for row in database.execute(f"SELECT * FROM {table}"):  # noqa: S608  (its own name)
                evidence.take(table, repr(row))
    database.close()


# The scenarios


@pytest.mark.parametrize("name", makers())
async def test_no_fault_leaks_a_secret(name: str, evidence: Evidence, tmp_path: Path) -> None:
    """No fault, in any place and on any kind of request, puts a secret into the events."""
    for place in sorted(PLACES):
        async with setup(evidence, tmp_path / place, has_account=place in LISTS) as here:
            await _meet(here, place, partial(made_by, name), tmp_path / place)


@pytest.mark.parametrize("place", sorted(PLACES))
async def test_no_quotation_is_repeated(place: Where, evidence: Evidence, tmp_path: Path) -> None:
    """Secrets in texts, codes, keys and headers of a gateway are not repeated."""
    async with setup(evidence, tmp_path, has_account=place in LISTS) as here:
        await _meet(here, place, quoting, tmp_path, ways=QUOTING)


async def _meet(
    here: Setup,
    place: Where,
    faults_with_text: Callable[[str], Iterable[Fault]],
    folder: Path,
    *,
    ways: int = 1,
) -> None:
    """
    Let faults happen to each kind of request in one place.

    The faults come in groups of *ways*. Each kind of request meets one fault of each group, at a
    position that moves by one from group to group and from kind to kind. So each kind meets every
    group, and every position.
    """
    if place in READS:
        # A response may quote the prompt of a live task.
        task = await here.client.submit(REQUESTS[0])
        text = leaky_text(task.request, f"{KEY} {TOKEN}" if place in LISTS else KEY)
        if place == "files":  # an upload has no prompt
            text = f"{KEY} from {IPV4} and [{IPV6}]"
        for fault in faults_with_text(text):
            if place in fault.usable_on:
                here.gateway.fault(place, fault, times=None)
                with suppress(RunwayError):
                    async with here.judged():
                        here.evidence.thing(await READS[place](here.client))
                here.gateway.forget_plans()
        return
    official = [one for one in REQUESTS if isinstance(one, OfficialImageToVideo)]
    others = [one for one in REQUESTS if one not in official]
    # A download is the same for every kind of request.
    kinds = {"official": official, "download": [*others[:1], *official[:1]]}
    requests = kinds.get(place, others)
    if len(requests) < ways:
        ways = 1
    for index, request in enumerate(requests):
        for number, fault in enumerate(faults_with_text(leaky_text(request))):
            row, way = divmod(number, ways)
            if place in fault.usable_on and way == (row + index) % ways:
                here.gateway.fault(place, fault, times=None)
                await here.live(request, folder, f"{number}-{index}")
                here.gateway.forget_plans()


@pytest.mark.parametrize("dialect", [*DIALECTS, "mixed"])
async def test_no_dialect_and_no_ending_leaks(
    dialect: str, evidence: Evidence, tmp_path: Path
) -> None:
    """Each ending, in each dialect, with a reason that quotes every secret."""
    async with setup(evidence, tmp_path, dialect=dialect, official_dialect=dialect) as here:
        for ending in get_args(Ending):
            for index, request in enumerate(REQUESTS):
                here.gateway.script(then=ending, reason=leaky_text(request))
                await here.live(request, tmp_path, f"{ending}-{index}")


@pytest.mark.parametrize("media", get_args(Media))
async def test_no_kind_of_link_leaks(media: Media, evidence: Evidence, tmp_path: Path) -> None:
    """From the CDN, from the gateway, redirected, and with expired links."""
    async with setup(evidence, tmp_path, media=media, link_lifetime=1.0) as here:
        for index, request in enumerate(REQUESTS):
            await here.live(request, tmp_path, f"clip-{index}")
            await here.live(request, tmp_path / "nowhere")
            await here.live(request, tmp_path, f"clip-{index}")  # there is such a file


@pytest.mark.parametrize("style", ["bearer", "raw", "body"])
async def test_no_key_leaks(style: Any, evidence: Evidence, tmp_path: Path) -> None:
    """A wrong key, a key without points, and a quoted key, in each style."""
    for key in (KEY, f"sk-{KEY}"):
        folder = tmp_path / key
        async with setup(evidence, folder, key_style=style, points=1.0, api_key=key) as here:
            for request in REQUESTS:
                await here.live(request, folder)
                here.gateway.fault("submit", faults.error(401, f"无效的令牌{key}，来自{IPV4}"))
                await here.live(request, folder)


WAYS: Final[tuple[dict[str, Any], ...]] = (
    {"points": 1.0, "quota_status": 401},
    {"points": 1.0, "quota_status": 403, "price": 2.0},
    {"rate_limit": 2.0, "burst": 1, "rate_limit_response": faults.TooManyRequests(body=KEY)},
    {"link_lifetime": 0.5, "expired_status": 410},
    {"video": f"<html>{KEY} {PROMPT}".encode()},
    {"feed_verb": "GET"},
    {"strict": False, "callbacks": None},
    {"exact_links": True, "requires_version": True},
    {"weather": 0.5},
)
ELSEWHERE: Final = {
    *("api_key", "access_token", "dialect", "official_dialect", "media", "key_style", "lists"),
}
"""Tried in the other tests."""
UNCHANGED: Final = {
    *("host", "port", "cdn_port", "prefix", "seed", "speed", "takes", "log_limit"),
    *("state_file", "control", "user_id", "clock_offset"),
}
"""They change where, when and to whom something is sent, but not what."""


@pytest.mark.parametrize("way", WAYS, ids=lambda way: next(iter(way)))
async def test_no_other_option_leaks(
    way: dict[str, Any], evidence: Evidence, tmp_path: Path
) -> None:
    """Empty accounts, limits, expired links, files that are not clips, and other feeds."""
    async with setup(evidence, tmp_path, **way) as here:
        for index, request in enumerate(REQUESTS):
            await here.live(request, tmp_path, f"clip-{index}")


def test_every_option_of_the_simulator_is_tried() -> None:
    """A new option has to be added here, unless it does not affect any output."""
    options = {field.name for field in attrs.fields(Simulator) if field.init}
    assert options == ELSEWHERE | UNCHANGED | {name for way in WAYS for name in way}


@pytest.mark.parametrize("version", [2024, 2025, 2026])
async def test_no_list_of_an_account_leaks(
    version: Any, evidence: Evidence, tmp_path: Path
) -> None:
    """Prompts in the lists are not shown: those of a lost response, and of another program."""
    lists = AccountLists(version=version, refresh=0, prompts="input")
    async with setup(evidence, tmp_path, has_account=True, lists=lists) as here:
        gateway, client = here.gateway, here.client
        gateway.add_key("sk-other", user_id=gateway.user_id)
        async with Client("sk-other", base_url=gateway.base_url) as other:
            await other.submit(REQUESTS[0])
        gateway.fault("submit", faults.drop_after_accepting())
        with suppress(RunwayError):
            async with here.judged():
                evidence.thing(await client.submit(REQUESTS[2]))
        gateway.fault("submit", faults.drop_after_accepting())
        with suppress(RunwayError):
            async with here.judged():
                evidence.thing(await client.submit(REQUESTS[0]))
        evidence.thing(await client.reconcile())
        audit = await client.audit()
        evidence.thing(audit)
        for task in (*audit.tasks, *audit.unclear):
            evidence.thing(task)
            evidence.take("as_dict", json.dumps(task.as_dict()))
            with suppress(RunwayError):
                async with here.judged():
                    evidence.thing(await client.adopt(task))


async def test_cancelling_and_closing_leak_nothing(evidence: Evidence, tmp_path: Path) -> None:
    """Cancelled in flight or while waiting, refused after closing, and without a gateway."""
    async with setup(evidence, tmp_path) as here:
        for request in REQUESTS:
            here.gateway.fault("submit", faults.Slow(20.0))
            submitting = asyncio.create_task(here.client.submit(request))
            await asyncio.sleep(0.005)
            submitting.cancel()
            await asyncio.wait([submitting])
        here.gateway.script(then="stall")
        task = await here.client.generate(PROMPT)
        waiting = asyncio.create_task(task.wait())
        await asyncio.sleep(0)
        await here.client.aclose()
        for action in (waiting, here.client.generate(PROMPT), task.wait()):
            with pytest.raises(RunwayError):
                async with here.judged():
                    await action
        for task in here.client.unfinished:
            evidence.thing(task)
        await here.gateway.aclose()
        async with here.client:
            for request in REQUESTS:
                await here.live(request, tmp_path)


async def test_a_batch_leaks_nothing(evidence: Evidence, tmp_path: Path) -> None:
    """Its outcomes, summary and journal, with clips, failures, refusals and doubts."""
    async with setup(evidence, tmp_path) as here:
        gateway, client = here.gateway, here.client
        gateway.script(then="fail", reason=leaky_text(REQUESTS[0]))
        gateway.fault("submit", faults.drop_after_accepting())
        gateway.fault("submit", faults.error(400, leaky_text(REQUESTS[2])))
        for _ in range(2):
            batch = client.batch(REQUESTS, in_flight=2, timeout=2.0)
            async for outcome in batch.outcomes():
                evidence.thing(outcome)
                if outcome.error is not None:
                    evidence.error(outcome.error)
            evidence.thing(batch)
            evidence.thing(batch.summary)
            for job in await client.journal.jobs():
                evidence.thing(job)


@pytest.mark.parametrize(
    "body",
    [leaky_text(REQUESTS[0]).encode(), b"{}", b'{"task_id": "%s", "status": "3"}' % KEY.encode()],
    ids=["no json", "empty", "a key for an id"],
)
async def test_a_webhook_leaks_nothing(body: bytes, evidence: Evidence, tmp_path: Path) -> None:
    """Neither its URL nor its body is shown, whether it is right, forged or garbage."""
    async with setup(evidence, tmp_path, callbacks=None) as here:
        here.gateway.fault("submit", faults.drop_after_accepting(), times=1)
        for request in REQUESTS:
            await here.live(request, tmp_path)
            url = here.gateway.tasks[-1].request.get("callback_url", PUBLIC_URL)
            evidence.finder.add_link(url)
            here.receiver.deliver(url.rpartition("/")[2], body)
            here.receiver.deliver(SECRET, body)
            await asyncio.sleep(0.01)
