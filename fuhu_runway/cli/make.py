"""
The commands for single clips: submit or resume a task, wait for it, and save its clip.

Rule 1: the id of a paid task is shown as soon as it is known, and a command that has to stop after
that prints the command that goes on.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import attrs
from cyclopts import Group, Parameter
from rich import filesize

from fuhu_runway import errors, hooks
from fuhu_runway._journal_file import command_line
from fuhu_runway.models import (
    DEFAULT_MODEL,
    DEFAULT_WAIT,
    ActOne,
    Generation,
    ImageToVideo,
    MotionVector,
    OfficialImageToVideo,
    PollPolicy,
    TaskRecord,
    TextToVideo,
    VideoToVideo,
    usage_error,
)

from .console import SIMULATED, Lines, close, print_row, run, write
from .options import (
    NO_DEFAULT,
    REACH,
    SIMULATE,
    TALK,
    WHOLE,
    Reach,
    Talk,
    check_positive,
    gateway_option,
    options_of,
    result_option,
)

if TYPE_CHECKING:
    from fuhu_runway.client import Client
    from fuhu_runway.downloads import Progress
    from fuhu_runway.task import Clip, Task

PASSING: Final = (errors.GatewayDown, errors.RateLimited, errors.NoReply)
"""Errors that do not mean that the task's id or the gateway's address is wrong."""

SIMULATED_SPEED: Final = 100 / 3
"""A job of 100 s takes 3 s."""
SIMULATED_DIALECT: Final = "new_api"
"""One that reports the progress of a task; FuhuAPI's own does not."""
SIMULATED_POLLING: Final = PollPolicy(first=0.1, max_interval=0.5)

NAME_BYTES: Final = 60
"""How much of a prompt a file name has, in bytes; a longer one may not leave room for the id."""

# Arguments

_request: Final = options_of(Group("Request", sort_key=1))
_TASK_ID: Final = Parameter(help="What was shown when the task was accepted.")
_EXTRA: Final = _request("Further fields for the request's body, as a JSON object.")
_PORTRAIT: Final = "Portrait in place of landscape"
_OFFICIAL: Final = gateway_option("The task was submitted with --official.", **NO_DEFAULT)


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Wish:
    """The options of a request; None is the request's own default."""

    image: Annotated[str | None, _request("Address of the first frame: image to video.")] = None
    last_image: Annotated[str | None, _request("Address of the last; with --image.")] = None
    image_as_end_frame: Annotated[
        bool | None, _request("gen3: the image is the end; with --image.")
    ] = None
    flip: Annotated[bool | None, _request(f"{_PORTRAIT}; with --image.")] = None
    ratio: Annotated[
        str | None,
        _request(
            "Width to height, such as 16:9 (default); with --official in pixels, such as "
            "1280:720 (default)."
        ),
    ] = None
    seconds: Annotated[
        int | None,
        _request("Length of the clip: 10 (default), 5 or what the model takes.", **WHOLE),
    ] = None
    model: Annotated[
        str | None, _request("Such as gen4 (default) or gen4_turbo (default with --official).")
    ] = None
    style: Annotated[str | None, _request("The look: cinematic (default).")] = None
    motion: Annotated[
        str | None,
        _request("How the camera moves: y=0.4,r=-6; of x, y, z, r, bg_x_pan and bg_y_pan."),
    ] = None
    seed: Annotated[
        int | None, _request("The same seed gives similar clips; with --official.", **WHOLE)
    ] = None
    watermark: Annotated[
        bool | None, _request("Whether the clip carries one; with --official.", negative=None)
    ] = None
    extra: Annotated[str | None, _EXTRA] = None


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Saving:
    """Where the clip goes, and how long it is waited for."""

    output: Annotated[
        Path | None,
        result_option("The file to save; by default named by prompt and task.", "--output", "-o"),
    ] = None
    force: Annotated[bool, result_option("Replace the file if there is one.", **NO_DEFAULT)] = False
    timeout: Annotated[float, result_option("How long to wait for the clip, in seconds.")] = (
        DEFAULT_WAIT
    )

    def check(self, prompt: str | None) -> None:
        """Raise unless the clip can be waited for and saved; called before it is paid."""
        from fuhu_runway.paths import check_target  # noqa: PLC0415  (aiohttp, which --help can do without)

        check_positive("timeout", self.timeout)
        # The id is not known yet, so that a name made of it cannot be taken.
        path = self.path(prompt, "task")
        check_target(path, overwrite=self.force or self.output is None)

    def path(self, prompt: str | None, task_id: str) -> Path:
        """Return where the clip of a task goes."""
        from fuhu_runway.batch import encodable  # noqa: PLC0415  (as above)
        from fuhu_runway.paths import safe_name  # noqa: PLC0415

        if self.output is not None:
            return self.output
        start = encodable(prompt or "clip").encode()[:NAME_BYTES].decode(errors="ignore")
        return Path(safe_name(f"{start}-{task_id}"))


_NO_WISH: Final = Wish()
_SAVING: Final = Saving()

# Commands


def generate(
    prompt: Annotated[str, Parameter(help="What should be seen; any language.")],
    /,
    *,
    wish: Wish = _NO_WISH,
    official: Annotated[
        bool, _request("Use the official format; needs --image.", **NO_DEFAULT)
    ] = False,
    saving: Saving = _SAVING,
    talk: Talk = TALK,
    reach: Reach = REACH,
    simulate: Annotated[bool, SIMULATE] = False,
) -> int:
    """
    Make one clip from words, or from a picture and words, and save it.

    Spends points as soon as the gateway accepts it.
    """
    request = _wished(prompt, wish, official=official)
    return _run(partial(_make, request, saving, talk), reach, talk, simulate=simulate)


def restyle(
    video: Annotated[str, Parameter(help="Address of the clip, up to 10 s and 64 MB.")],
    prompt: Annotated[str, Parameter(help="The style to redraw it in.")],
    /,
    *,
    structure_transformation: Annotated[
        float, _request("From 0, which keeps the structure, to 1.")
    ] = 0.5,
    seconds: Annotated[
        int | None,
        _request(
            "Length of the clip, such as 5 or 10; --no-seconds leaves it out.",
            negative=None,
            negative_none="no-",
            **WHOLE,
        ),
    ] = 5,
    flip: Annotated[bool, _request(f"{_PORTRAIT}.", **NO_DEFAULT)] = False,
    model: Annotated[str, _request("The model.")] = DEFAULT_MODEL,
    extra: Annotated[str | None, _EXTRA] = None,
    saving: Saving = _SAVING,
    talk: Talk = TALK,
    reach: Reach = REACH,
    simulate: Annotated[bool, SIMULATE] = False,
) -> int:
    """
    Redraw a clip in another style, and save it.

    Spends points as soon as the gateway accepts it.
    """
    request = VideoToVideo(
        video,
        prompt,
        structure_transformation=structure_transformation,
        seconds=seconds,
        flip=flip,
        model=model,
        extra=_extra(extra),
    )
    return _run(partial(_make, request, saving, talk), reach, talk, simulate=simulate)


def act(
    video: Annotated[str, Parameter(help="Address of the performance; 16:9 only.")],
    image: Annotated[
        str | None, Parameter(help="Address of the character's picture; 16:9 only.")
    ] = None,
    /,
    *,
    character_video: Annotated[
        str | None, _request("Address of a clip of the character, in place of the picture.")
    ] = None,
    motion_multiplier: Annotated[
        int | None, _request("How strongly it moves, from 1 to 5.", **WHOLE)
    ] = None,
    flip: Annotated[bool | None, _request(f"{_PORTRAIT}.", negative=None)] = None,
    extra: Annotated[str | None, _EXTRA] = None,
    saving: Saving = _SAVING,
    talk: Talk = TALK,
    reach: Reach = REACH,
    simulate: Annotated[bool, SIMULATE] = False,
) -> int:
    """
    Carry a performance over to a character, and save the clip.

    Spends points as soon as the gateway accepts it.
    """
    request = ActOne(
        video,
        image,
        character_video=character_video,
        motion_multiplier=motion_multiplier,
        flip=flip,
        extra=_extra(extra),
    )
    return _run(partial(_make, request, saving, talk), reach, talk, simulate=simulate)


def wait(
    task_id: Annotated[str, _TASK_ID],
    /,
    *,
    saving: Saving = _SAVING,
    talk: Talk = TALK,
    reach: Reach = REACH,
    official: Annotated[bool, _OFFICIAL] = False,
) -> int:
    """
    Go on with a task that was submitted before: wait for its clip, and save it.

    Free, and safe to repeat. A download that broke off goes on where it was.
    """
    return _run(partial(_go_on, task_id, saving, talk, official=official), reach, talk)


def feed(
    task_id: Annotated[str, _TASK_ID],
    /,
    *,
    talk: Talk = TALK,
    reach: Reach = REACH,
    official: Annotated[bool, _OFFICIAL] = False,
) -> int:
    """
    Show what the gateway says about a task now.

    Free. The addresses are temporary, and as good as a key to the clip.
    """

    async def look(errand: Errand) -> None:
        print_row(_record_row(await errand.client.feed(task_id, official=official)), talk)

    return _run(look, reach, talk)


def balance(
    *,
    talk: Talk = TALK,
    reach: Reach = REACH,
    simulate: Annotated[bool, SIMULATE] = False,
) -> int:
    """Show what is left to spend, in the gateway's unit."""

    async def ask(errand: Errand) -> None:
        left = await errand.client.balance()
        print_row({key: getattr(left, key) for key in BALANCE_KEYS}, talk)

    return _run(ask, reach, talk, simulate=simulate)


COMMANDS: Final = (generate, restyle, act, wait, feed, balance)


# From options to requests


def _wished(prompt: str, wish: Wish, *, official: bool) -> Generation:
    """
    Return the request that the options describe.

    Raises:
        UsageError: An option does not go with this kind of request.
    """
    kind: type[TextToVideo | ImageToVideo | OfficialImageToVideo]
    kind = TextToVideo if wish.image is None else ImageToVideo
    if official:
        kind = OfficialImageToVideo
    given = {name: value for name, value in attrs.asdict(wish).items() if value is not None}
    for name in given.keys() - attrs.fields_dict(kind).keys():
        what, advice = _KINDS[kind]
        raise usage_error(name, f"--{name.replace('_', '-')} does not go with {what}.", advice)
    if official and wish.image is None:
        raise usage_error("image", "--official needs an image.", "Give --image, or leave it out.")
    if wish.motion is not None:
        given["motion"] = _motion(wish.motion)
    return kind(prompt=prompt, **{**given, "extra": _extra(wish.extra)})


_KINDS: Final[Mapping[type, tuple[str, str]]] = {
    TextToVideo: ("text to video", "Give --image as well, or leave it out."),
    ImageToVideo: ("image to video", "Give --official as well, or leave it out."),
    OfficialImageToVideo: ("the official format", "Leave it out, or leave --official out."),
}


def _motion(text: str) -> MotionVector:
    try:
        pairs = (part.split("=") for part in text.split(","))
        return MotionVector(**{axis.strip(): float(value) for axis, value in pairs})
    except (TypeError, ValueError) as unfit:
        raise usage_error(
            "motion",
            "--motion is not a list of axes and numbers.",
            "Write it as y=0.4,r=-6; the axes are x, y, z, r, bg_x_pan and bg_y_pan.",
        ) from unfit


def _extra(text: str | None) -> Any:
    try:
        return {} if text is None else json.loads(text)
    except (ValueError, RecursionError):
        pass
    raise usage_error("extra", "--extra is not JSON.", """Write it as '{"name": "value"}'.""")


# One command under way


@attrs.define(eq=False)
class Errand:
    """One command under way: its client, and what to print if it has to stop."""

    screen: Lines
    reach: Reach
    is_simulated: bool
    client: "Client" = attrs.field(init=False)
    #: Where the clip will be, once that is known.
    path: Path = attrs.field(init=False)
    #: How to go on with the paid task, once there is one.
    advice: str = ""
    #: How the clip of the request under way is to be saved.
    submitting: Saving | None = None
    unclaimed: hooks.SubmissionUnclaimed | None = None

    def watch(self, event: hooks.Event) -> None:
        """Show the client's progress."""
        match event:
            case hooks.TaskPolled() if not event.state.is_final:
                percent = "" if event.progress is None else f"{event.progress:.0%}"
                self.screen.stage(event.state.value, event.progress, percent)
            case hooks.RetryScheduled() | hooks.PollFailed():
                self.screen.stage(f"{event.error}, trying again")
            case hooks.SubmissionUnclaimed():
                self.unclaimed = event

    async def submit(self, request: Generation, saving: Saving) -> "Task":
        """Submit, and show the id before anything else happens."""
        self.submitting = saving
        self.screen.stage("submitting")
        task = await self.client.submit(request)
        self.accept(task, saving)
        return task

    def accept(self, task: "Task", saving: Saving) -> None:
        """Show that *task* is paid, and prepare the command that goes on with it."""
        self.submitting = None
        self.screen.say(f"accepted: task {task.id}")
        self.plan(task, saving, getattr(task.request, "prompt", None))

    def plan(self, task: "Task", saving: Saving, prompt: str | None) -> None:
        """Set where the clip goes, and the command that fetches it if this one cannot."""
        self.path = saving.path(prompt, task.id)
        if self.is_simulated:
            return  # its gateway ends with this very process
        words = ["fuhu-runway", "wait", task.id, "-o", str(self.path), *self.reach.words()]
        if task.official:
            words.append("--official")
        if saving.force:
            words.append("--force")
        self.advice = f"Continue with: {command_line(*words)}"

    async def break_off(self) -> None:
        """Wait for the answer to a paid request in flight, and print how to go on."""
        saving = self.submitting
        if saving is not None:
            awaited = "the answer to the request, which may name a paid task"
            await close(self.client, self.screen, awaited)
            for task in self.client.unfinished:
                self.accept(task, saving)
        self.screen.close()
        self.screen.say(f"Stopped. {self._outlook()}")

    def _outlook(self) -> str:
        error = self.unclaimed.error if self.unclaimed else None
        if error == errors.SubmissionInDoubt.__name__:
            return (
                "The fate of the request is unknown: it may have been charged. Look at the "
                "balance, or at the gateway's own list, before you submit again."
            )
        if error:
            return f"The request was turned away ({error}): nothing was charged."
        if self.submitting is not None:
            return "Nothing was submitted."
        if self.advice:
            return f"The task goes on. {self.advice}"
        return "The simulated gateway ended, too." if self.is_simulated else ""


Work = Callable[[Errand], Awaitable[None]]


async def _make(request: Generation, saving: Saving, talk: Talk, errand: Errand) -> None:
    """Submit, wait and save."""
    saving.check(getattr(request, "prompt", None))
    task = await errand.submit(request, saving)
    await _deliver(task, saving, talk, errand)


async def _go_on(
    task_id: str, saving: Saving, talk: Talk, errand: Errand, *, official: bool
) -> None:
    """Wait and save, for a task that was paid before."""
    from fuhu_runway.paths import check_target  # noqa: PLC0415  (aiohttp, which --help can do without)

    saving.check(None)
    task = errand.client.task(task_id, official=official)
    prompt = None
    with contextlib.suppress(*PASSING):  # the wait goes on through these, and ends with all others
        prompt = (await task.refresh()).prompt
    errand.plan(task, saving, prompt)
    check_target(errand.path, overwrite=saving.force)
    await _deliver(task, saving, talk, errand)


async def _deliver(task: "Task", saving: Saving, talk: Talk, errand: Errand) -> None:
    clip = await task.wait(timeout=saving.timeout)
    await _save(clip, errand, overwrite=saving.force)
    size = "size unknown"
    with contextlib.suppress(OSError):  # another program may have moved the file by now
        size = filesize.decimal(errand.path.stat().st_size)
    points = clip.record.points
    cost = "" if points is None else f", {points:,g} points"
    errand.screen.info(f"saved: {size}{cost}")
    errand.screen.close()
    if talk.json:
        print_row({**_record_row(clip.record), "file": str(errand.path)}, talk)
    else:
        write(sys.stdout, str(errand.path))


async def _save(clip: "Clip", errand: Errand, *, overwrite: bool) -> None:
    def show(progress: "Progress") -> None:
        sizes = [progress.received_bytes, progress.total_bytes]
        shown = "/".join(filesize.decimal(size) for size in sizes if size is not None)
        errand.screen.stage("downloading", progress.fraction, shown)

    try:
        await clip.download(errand.path, overwrite=overwrite, on_progress=show)
    except errors.UsageError as error:
        # The place was free before the clip was paid. The error has to say what is true now.
        raise errors.DownloadRefused(
            error.happened, "The clip exists and is paid for.", error.advice, clip.id
        ) from error


# From errands to exit codes


def _run(work: Work, reach: Reach, talk: Talk, *, simulate: bool = False) -> int:
    """Do *work* with a client, and return the exit code."""
    return run(lambda screen: _with_client(work, Errand(screen, reach, simulate)), talk)


async def _with_client(work: Work, errand: Errand) -> None:
    async with contextlib.AsyncExitStack() as stack:
        settings: dict[str, Any] = {"hooks": [errand.watch]}
        simulator = None
        if errand.is_simulated:
            from fuhu_runway.testing.simulator import Simulator  # noqa: PLC0415  (aiohttp, as above)

            errand.reach.check_simulated()
            simulator = Simulator(
                speed=SIMULATED_SPEED,
                seed=int.from_bytes(os.urandom(4)),  # else each run would have the same task ids
                dialect=SIMULATED_DIALECT,
                key_style="any",
                feed_verb="any",
            )
            await stack.enter_async_context(simulator)
            errand.screen.say(SIMULATED)
            settings["polling"] = SIMULATED_POLLING
        client = errand.reach.client(simulator, **settings)
        errand.client = await stack.enter_async_context(client)
        try:
            await work(errand)
        except asyncio.CancelledError:
            await errand.break_off()
            raise
        except Exception as error:
            if errand.advice and not isinstance(error, errors.TaskFailed):
                error.add_note(errand.advice)
            raise


# What is printed

RECORD_KEYS: Final = {
    "task_id": "The task.",
    "state": "queued, running, succeeded, failed, canceled or unknown.",
    "progress": "How far it is, from 0 to 1.",
    "video_url": "Where the clip is; temporary.",
    "poster_url": "A still picture of it.",
    "last_frame_url": "Its last frame.",
    "prompt": "The prompt as it was sent.",
    "prompt_en": "The prompt as the gateway translated it.",
    "message": "The gateway's reason for a failure.",
    "failure_code": "The machine's name for that reason.",
    "points": "Points used, in the gateway's unit.",
    "refunded": "Whether the points were given back.",
    "created_at": "When it was made, in ISO 8601.",
    "updated_at": "When it last changed, in ISO 8601.",
}
FILE_KEY: Final = {"file": "The clip on this machine; where one was saved."}
BALANCE_KEYS: Final = {
    "remaining": "What is left.",
    "used": "What was used.",
    "total": "Both together.",
    "unlimited": "Whether the key has no limit of its own.",
}


def _record_row(record: TaskRecord) -> dict[str, Any]:
    return {**{key: getattr(record, key) for key in RECORD_KEYS}, "state": record.state.value}
