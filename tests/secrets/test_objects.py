"""No object that a user can hold shows a secret."""

import enum
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from support.marks import (
    DATA,
    EXTRA,
    IMAGE,
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

import fuhu_runway
from fuhu_runway import testing
from fuhu_runway.account import Account
from fuhu_runway.background import BackgroundJob
from fuhu_runway.batch import Batch
from fuhu_runway.callbacks import CallbackReceiver
from fuhu_runway.client import Client
from fuhu_runway.downloads import Progress
from fuhu_runway.errors import RunwayError
from fuhu_runway.hooks import Hooks
from fuhu_runway.items import Item, Outcome, Summary
from fuhu_runway.journal import Journal
from fuhu_runway.models import (
    ActOne,
    Aleph,
    Balance,
    Gateway,
    ImageToVideo,
    Limits,
    MotionVector,
    OfficialCharacterPerformance,
    OfficialImageToVideo,
    OfficialRequest,
    OfficialTextToVideo,
    OfficialVideoToVideo,
    OfficialVideoUpscale,
    PollPolicy,
    RetryPolicy,
    TaskRecord,
    TaskState,
    TextToVideo,
    Timeouts,
    VideoToVideo,
)
from fuhu_runway.task import Clip, Task
from fuhu_runway.uploads import GatewayFiles

LINK: Final = "https://cdn.example/1.mp4?_jwt=pangolin"
CLIENT: Final = Client(KEY, callbacks=CallbackReceiver("https://app.example", secret=SECRET))
REQUEST: Final = TextToVideo(PROMPT, extra=EXTRA)
LEAKY: Final = leaky_text(ImageToVideo(PROMPT, IMAGE, last_image=VIDEO))
RECORD: Final = TaskRecord(
    "t-1",
    TaskState.SUCCEEDED,
    video_url=LINK,
    poster_url=LINK,
    last_frame_url=LINK,
    prompt=PROMPT,
    prompt_en=PROMPT,
    message=LEAKY,
    body=LEAKY.encode(),
)
TASK: Final = Task(CLIENT._sessions, "t-1", request=REQUEST, record=RECORD)
CLIP: Final = Clip(CLIENT, TASK, RECORD)

WORK: Final[Any] = SimpleNamespace(add_done_callback=id, done=lambda: False)
HELD: Final[tuple[Any, ...]] = (
    Account(TOKEN, 7),
    ActOne(VIDEO, IMAGE, extra=EXTRA),
    Aleph(VIDEO, PROMPT, image=IMAGE, extra=EXTRA),
    BackgroundJob(TASK, Path("clip.mp4"), WORK, Hooks(())),
    Balance(1.0, raw={"of": LEAKY}),
    CLIENT.batch([PROMPT]),
    CallbackReceiver("https://app.example/hooks", secret=SECRET),
    CLIENT,
    CLIP,
    Gateway("mine", "https://gateway.example"),
    GatewayFiles(),
    ImageToVideo(PROMPT, IMAGE, last_image=LAST_IMAGE, extra=EXTRA),
    Item(REQUEST, custom_id="1"),
    Journal(Path("run.db")),
    Limits(),
    MotionVector(),
    OfficialCharacterPerformance(VIDEO, IMAGE, extra=EXTRA),
    OfficialImageToVideo(DATA, PROMPT, last_image=IMAGE, extra=EXTRA),
    OfficialRequest("text_to_video", {"promptText": PROMPT}),
    OfficialTextToVideo(PROMPT, extra=EXTRA),
    OfficialVideoToVideo(VIDEO, PROMPT, image=IMAGE, extra=EXTRA),
    OfficialVideoUpscale(VIDEO, extra=EXTRA),
    Outcome(0, REQUEST, task_id="t-1", clip=CLIP),
    PollPolicy(),
    Progress(1, 2),
    RetryPolicy(),
    RunwayError("It failed.", "Nothing was charged.", "Try again.", "t-1"),
    Summary(),
    TASK,
    RECORD,
    REQUEST,
    Timeouts(),
    VideoToVideo(VIDEO, PROMPT, extra=EXTRA),
)


def test_every_class_that_a_user_can_hold_is_here() -> None:
    """A new class has to be added here; enums hold nothing."""
    public = {
        thing
        for name in fuhu_runway.__all__
        if inspect.isclass(thing := getattr(fuhu_runway, name)) and not issubclass(thing, enum.Enum)
    }
    assert {type(thing) for thing in HELD} == public


@pytest.mark.parametrize("thing", HELD, ids=lambda thing: type(thing).__name__)
def test_no_object_shows_a_secret(thing: object) -> None:
    """Neither `repr` nor `str` nor `format` contains one."""
    evidence = Evidence()
    evidence.thing(thing)
    if isinstance(thing, Task | Batch | Journal):
        evidence.take("notebook", thing._repr_html_())
    if isinstance(thing, Clip):
        evidence.take("notebook", thing._repr_html_(), but={"video"})
    assert evidence.leaks == []


def test_no_object_of_the_simulator_shows_a_secret() -> None:
    """The repr of a simulator contains only its URL, which is on this machine."""
    gateway = testing.Simulator(api_key=KEY)
    gateway.add_key(f"{KEY}-2", name="second")
    seen = testing.Seen(
        origin="api",
        where="feed",
        method="GET",
        path=f"/{IMAGE}",
        query=PROMPT,
        headers={"Authorization": KEY, "X-Forwarded-For": IPV6},
        body_bytes=1,
        at=0.0,
        carried_key=True,
    )
    evidence = Evidence()
    evidence.thing(gateway)
    evidence.thing(seen)
    evidence.thing(testing.faults.Response(400, LEAKY))
    assert evidence.leaks == []
