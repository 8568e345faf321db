"""
The commands for single clips: submit or continue a task, wait for it, and save its clip.

Rule 1: the id of a paid task is shown as soon as it is known, and a command that has to stop after
that prints the command that continues.
"""

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import attrs
from cyclopts import Parameter, Token
from rich import filesize

from fuhu_runway import errors, hooks
from fuhu_runway._journal.file import command_line
from fuhu_runway._media import address_or_path
from fuhu_runway.models import (
    DEFAULT_MODEL,
    ActOne,
    Generation,
    ImageToVideo,
    MotionVector,
    OfficialImageToVideo,
    OfficialTextToVideo,
    TaskRecord,
    TaskState,
    TextToVideo,
    VideoToVideo,
    usage_error,
)

from .console import Screen, close, fields
from .opening import check_journal, open_client
from .options import GATEWAY, REQUEST, WHOLE, Access, Saving, Submitting, Target, check_model
from .tally import trouble_of

if TYPE_CHECKING:
    from fuhu_runway.client import Client
    from fuhu_runway.downloads import Progress
    from fuhu_runway.task import Task

SIMULATED_SPEED: Final = 100 / 3
"""A job of 100 s takes 3 s."""

# Options


def _motion(_: object, tokens: Sequence[Token]) -> MotionVector:
    try:
        pairs = (part.split("=") for part in tokens[0].value.split(","))
        return MotionVector(**{axis.strip(): float(value) for axis, value in pairs})
    except (TypeError, ValueError):
        raise ValueError(
            "write it as y=0.4,r=-6; the axes are x, y, z, r, bg_x_pan and bg_y_pan."
        ) from None


def _json(_: object, tokens: Sequence[Token]) -> dict[str, Any]:
    try:
        value = json.loads(tokens[0].value)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise TypeError("""it is not a JSON object, such as '{"name": "value"}'.""")
    return value


def _check_ratio(_: object, ratio: str | None) -> None:
    meant = re.fullmatch(r"(\d+)\s*[^\d:.]\s*(\d+)", ratio or "", re.ASCII)
    if meant:
        raise ValueError(f"Did you mean {meant[1]}:{meant[2]}?")


def _media(_: object, tokens: Sequence[Token]) -> str | Path:
    return address_or_path(tokens[0].value, Path())


IN_REQUEST: Final = Parameter(group=REQUEST)
Media = Annotated[str | Path, Parameter(converter=_media)]
Whole = Annotated[int | None, WHOLE]
YesOrNo = Annotated[bool | None, Parameter(negative=None)]
Extra = Annotated[
    dict[str, Any] | None,
    IN_REQUEST,
    Parameter(
        converter=_json,
        accepts_keys=False,
        help="More fields for the request's body, as a JSON object.",
    ),
]
Official = Annotated[bool, Parameter(group=GATEWAY, help="The task was submitted with --official.")]


Kind = type[TextToVideo | ImageToVideo | OfficialTextToVideo | OfficialImageToVideo]

KINDS: Final[Mapping[tuple[bool, bool], tuple[Kind, str]]] = {
    (False, False): (TextToVideo, "text to video"),
    (False, True): (ImageToVideo, "--image alone"),
    (True, False): (OfficialTextToVideo, "--official alone"),
    (True, True): (OfficialImageToVideo, "--official and --image"),
}
"""The kind of request without and with --official and --image, and what errors call it."""


@Parameter(name="*", group=REQUEST)
@attrs.frozen(kw_only=True)
class RequestOptions:
    """
    The options of `generate`; None keeps the request's default.

    Args:
        image: URL or file of the first frame; makes it image to video.
        last_image: URL or file of the last frame; with --image.
        image_as_end_frame: Use the image as the last frame; gen3, with --image.
        flip: Portrait instead of landscape; with --image.
        ratio: Width to height, such as 16:9 (default); with --official in pixels, such as
            1280:720 (default).
        seconds: Length of the clip: 10 (default), 5, or another that the model supports.
        model: Such as gen4 (default); with --official gen4.5 (default), or gen4_turbo (default
            with --image).
        any_model: Send the model's name as it is, even if it looks mistyped.
        style: Look of the clip: cinematic (default).
        motion: Camera movement, such as y=0.4,r=-6; axes are x, y, z, r, bg_x_pan, bg_y_pan.
        seed: The same seed gives similar clips; with --official.
        watermark: Whether the clip has a watermark; with --official and --image.
        audio: Whether the clip has sound, for models such as veo3.1; with --official.
        official: Use the official request format.
    """

    image: Media | None = None
    last_image: Media | None = None
    image_as_end_frame: bool | None = None
    flip: bool | None = None
    ratio: Annotated[str | None, Parameter(validator=_check_ratio)] = None
    seconds: Whole = None
    model: str | None = None
    any_model: bool = False
    style: str | None = None
    motion: Annotated[MotionVector | None, Parameter(converter=_motion, accepts_keys=False)] = None
    seed: Whole = None
    watermark: YesOrNo = None
    audio: YesOrNo = None
    extra: Extra = None
    official: bool = False

    def request(self, prompt: str) -> Generation:
        """
        Return the request that the options describe.

        Raises:
            UsageError: An option cannot be used in this kind of request.
        """
        kind, called = KINDS[self.official, self.image is not None]
        options = attrs.asdict(self, recurse=False).items()
        given = {name: value for name, value in options if value is not None}
        del given["official"]
        if not given.pop("any_model"):
            check_model(given.get("model"))
        for name in given.keys() - attrs.fields_dict(kind).keys():
            option = f"--{name.replace('_', '-')}"
            others = [other for one, other in KINDS.values() if name in attrs.fields_dict(one)]
            raise usage_error(
                name,
                f"{option} cannot be used with {called}.",
                f"Use it with {' or '.join(others)}, or remove it.",
            )
        return kind(prompt=prompt, **given)


# Commands


async def generate(
    prompt: str,
    /,
    *,
    options: RequestOptions = RequestOptions(),
    submitting: Submitting = Submitting(),
    screen: Screen = Screen(),
    target: Target = Target(),
) -> None:
    """
    Generate a clip from a prompt, or from an image and a prompt, and save it.

    Spends points as soon as the gateway accepts it.

    Args:
        prompt: What the clip shows; in any language.
    """
    await _make(options.request(prompt), submitting, target, screen)


async def restyle(
    video: Media,
    prompt: str,
    /,
    *,
    structure_transformation: Annotated[float, IN_REQUEST] = 0.5,
    seconds: Annotated[Whole, IN_REQUEST, Parameter(negative=None, negative_none="no-")] = 5,
    flip: Annotated[bool, IN_REQUEST] = False,
    model: Annotated[str, IN_REQUEST] = DEFAULT_MODEL,
    any_model: Annotated[bool, IN_REQUEST] = False,
    extra: Extra = None,
    submitting: Submitting = Submitting(),
    screen: Screen = Screen(),
    target: Target = Target(),
) -> None:
    """
    Redraw a clip in another style, and save it.

    Spends points as soon as the gateway accepts it.

    Args:
        video: URL or file of the clip, up to 10 s and 64 MB.
        prompt: The style to redraw it in.
        structure_transformation: From 0, which keeps the structure, to 1.
        seconds: Length of the clip, such as 5 or 10; --no-seconds omits it.
        flip: Portrait instead of landscape.
        model: Name of the model.
        any_model: Send the model's name as it is, even if it looks mistyped.
    """
    if not any_model:
        check_model(model)
    request = VideoToVideo(
        video,
        prompt,
        structure_transformation=structure_transformation,
        seconds=seconds,
        flip=flip,
        model=model,
        extra=extra or {},
    )
    await _make(request, submitting, target, screen)


async def act(
    video: Media,
    image: Media | None = None,
    /,
    *,
    character_video: Annotated[Media | None, IN_REQUEST] = None,
    motion_multiplier: Annotated[Whole, IN_REQUEST] = None,
    flip: Annotated[YesOrNo, IN_REQUEST] = None,
    extra: Extra = None,
    submitting: Submitting = Submitting(),
    screen: Screen = Screen(),
    target: Target = Target(),
) -> None:
    """
    Transfer a performance to a character, and save the clip.

    Spends points as soon as the gateway accepts it.

    Args:
        video: URL or file of the performance; 16:9 only.
        image: URL or file of an image of the character; 16:9 only.
        character_video: URL or file of a clip of the character, instead of the image.
        motion_multiplier: How strongly the character moves, from 1 to 5.
        flip: Portrait instead of landscape.
    """
    request = ActOne(
        video,
        image,
        character_video=character_video,
        motion_multiplier=motion_multiplier,
        flip=flip,
        extra=extra or {},
    )
    await _make(request, submitting, target, screen)


async def submit(
    kind: str,
    /,
    *fields: str,
    submitting: Submitting = Submitting(),
    screen: Screen = Screen(),
    target: Target = Target(),
) -> None:
    """
    Submit a request of any kind, and save the clip.

    Kinds and fields are those of an input file for `batch`, for example:
    `fuhu-runway submit official_video_upscale video=https://example.com/in.mp4`

    A prompt of several words instead of the kind is submitted as text to video.

    Spends points as soon as the gateway accepts it.

    Args:
        kind: Kind of the request, such as aleph or official_video_upscale; or a prompt.
        fields: Fields of the request, each as name=value; values are parsed as in a CSV file.
    """
    from fuhu_runway.inputs import request_of

    if " " in kind and "=" not in kind and not fields:  # no kind has a space
        kind, fields = "text_to_video", (f"prompt={kind}",)
    pairs = [field.partition("=") for field in fields]
    for _, equals, _ in pairs:
        if not equals:
            raise usage_error(
                "fields", "A field is not written as name=value.", "Put values in quotes."
            )
    request = request_of(kind, {name: value for name, _, value in pairs})
    await _make(request, submitting, target, screen)


async def wait(
    task_id: str,
    /,
    *,
    saving: Saving = Saving(),
    screen: Screen = Screen(),
    access: Access = Access(),
    official: Official = False,
) -> None:
    """
    Wait for a task that was submitted before, and save its clip.

    Free, and safe to repeat. An interrupted download continues where it stopped.

    Args:
        task_id: Id that was shown when the task was accepted.
    """
    from fuhu_runway.paths import check_target

    async with open_command(screen, Target(access=access), saving) as running:
        saving.check(None)
        task = running.client.task(task_id, official=official)
        prompt = None
        # After these, wait() polls again. Others mean that the task's id or the URL is wrong.
        with contextlib.suppress(errors.GatewayDown, errors.RateLimited, errors.NoReply):
            prompt = (await task.refresh()).prompt
        running.plan(task, prompt)
        check_target(running.path, overwrite=saving.force)
        await running.finish(task)


async def feed(
    task_id: str,
    /,
    *,
    screen: Screen = Screen(),
    access: Access = Access(),
    official: Official = False,
) -> None:
    """
    Show the current state of a task.

    Free. The URLs are temporary; anyone who has them can see the clip.

    Args:
        task_id: Id that was shown when the task was accepted.
    """
    async with open_command(screen, Target(access=access)) as running:
        row = _record_row(await running.client.feed(task_id, official=official))
    screen.show(row, *fields(row))


async def balance(*, screen: Screen = Screen(), target: Target = Target()) -> None:
    """Show the remaining balance, in the gateway's unit."""
    target.check()
    async with open_command(screen, target) as running:
        found = await running.client.balance()
    row = attrs.asdict(found, filter=attrs.filters.exclude("raw"))
    screen.show(row, *fields(row))


# One command while it runs


@attrs.define(eq=False)
class RunningCommand:
    """One command while it runs: its client, and what to print if it has to stop."""

    screen: Screen
    target: Target
    saving: Saving
    client: "Client" = attrs.field(init=False)
    #: Where the clip will be saved, once that is known.
    path: Path = attrs.field(init=False)
    task_id: str = attrs.field(init=False)
    #: The command that continues with the paid task, once there is one.
    command: str = ""
    is_submitting: bool = False
    unclaimed: hooks.SubmissionUnclaimed | None = None

    def watch(self, event: hooks.Event) -> None:
        """Show the client's progress."""
        match event:
            case hooks.TaskPolled() if not event.state.is_final:
                percent = "" if event.progress is None else f"{event.progress:.0%}"
                name = "rendering" if event.state is TaskState.RUNNING else event.state.value
                self.screen.stage(name, event.progress, percent)
            case hooks.RetryScheduled() | hooks.PollFailed():
                self.screen.stage(trouble_of(event))
            case hooks.SubmissionUnclaimed():
                self.unclaimed = event

    def accept(self, task: "Task") -> None:
        """Show the id of a paid task, and prepare the command that continues it."""
        self.is_submitting = False
        self.screen.say(f"accepted: task {task.id}")
        self.plan(task, getattr(task.request, "prompt", None))

    def plan(self, task: "Task", prompt: str | None) -> None:
        """Set where the clip is saved, and the command that fetches it if this one cannot."""
        self.path, self.task_id = self.saving.path(prompt, task.id), task.id
        if self.target.simulate:
            return  # the simulated gateway ends with this process
        words = ["fuhu-runway", "wait", task.id, "-o", str(self.path), *self.target.access.words()]
        if task.official:
            words.append("--official")
        if self.saving.force:
            words.append("--force")
        self.command = command_line(*words)

    async def finish(self, task: "Task") -> None:
        """Wait for the task, save its clip, and print the result."""

        def show(progress: "Progress") -> None:
            sizes = [progress.received_bytes, progress.total_bytes]
            shown = "/".join(filesize.decimal(size) for size in sizes if size is not None)
            self.screen.stage("saving", progress.fraction, shown)

        clip = await task.wait(timeout=self.saving.timeout)
        try:
            await clip.download(self.path, overwrite=self.saving.force, on_progress=show)
        except errors.UsageError as error:
            # The path was free before the clip was paid for, but is not now.
            raise errors.DownloadRefused(
                error.happened, "The clip exists and is paid for.", error.advice, clip.id
            ) from error
        size = "size unknown"
        with contextlib.suppress(OSError):  # another program may have moved the file
            size = filesize.decimal(self.path.stat().st_size)
        points = clip.record.points
        cost = "" if points is None else f", {points:,g} points"
        self.screen.info(f"saved: {size}{cost}")
        row = {**_record_row(clip.record), "file": str(self.path)}
        self.screen.show(row, str(self.path))

    async def stop(self) -> None:
        """Wait for the response to a paid request in flight, and print how to continue."""
        if self.is_submitting:
            awaited = "the response to the request, which may name a paid task"
            await close(self.client, self.screen, awaited)
            for task in self.client.unfinished:
                self.accept(task)
        error = self.unclaimed.error if self.unclaimed else None
        if error == errors.SubmissionInDoubt.__name__:
            self.screen.stop(
                "The outcome of the request is unknown: it may have been charged.",
                "Check the balance, or the gateway's own list of tasks, before you submit it "
                "again.",
            )
        elif error:
            self.screen.stop(f"The request was refused ({error}): nothing was charged.")
        elif self.is_submitting:
            self.screen.stop("Nothing was submitted.")
        elif self.command:
            self.screen.stop("The task continues.", f"Continue with: {self.command}", self.task_id)
        else:
            self.screen.stop("The simulated gateway ended, too." if self.target.simulate else "")


async def _make(
    request: Generation, submitting: Submitting, target: Target, screen: Screen
) -> None:
    """Submit, and unless --no-wait is given, wait and save."""
    if target.simulate and (submitting.no_wait or submitting.journal):
        raise usage_error(
            "simulate",
            "--simulate cannot be combined with --no-wait or --journal: its tasks end with "
            "the command.",
            "Remove it, or start a gateway with `fuhu-runway simulate`.",
        )
    target.check()
    if submitting.journal is not None:
        check_journal(target, submitting.journal)
    async with open_command(screen, target, submitting.saving, submitting.journal) as running:
        submitting.saving.check(getattr(request, "prompt", None))
        running.is_submitting = True
        screen.stage("submitting")
        task = await running.client.submit(request)
        running.accept(task)  # before anything else, so that the id is not lost
        if not submitting.no_wait:
            await running.finish(task)
            return
        screen.info(f"To get the clip later: {running.command}")
        screen.show({"task_id": task.id, "command": running.command}, task.id)


@contextlib.asynccontextmanager
async def open_command(
    screen: Screen, target: Target, saving: Saving = Saving(), journal: Path | None = None
) -> AsyncIterator[RunningCommand]:
    """Open a client for one command; if the command has to stop, say how to continue."""
    running = RunningCommand(screen, target, saving)
    simulator = None
    if target.simulate:
        from fuhu_runway.testing.simulator import Simulator

        simulator = Simulator(
            speed=SIMULATED_SPEED,
            seed=int.from_bytes(os.urandom(4)),  # task ids that differ from run to run
            dialect="new_api",  # unlike FuhuAPI's own, it reports progress
            key_style="any",
            feed_verb="any",
        )
    async with contextlib.AsyncExitStack() as stack:
        running.client = await open_client(
            stack, target, screen, simulator, hooks=[running.watch], journal=journal
        )
        try:
            yield running
        except asyncio.CancelledError:
            await running.stop()
            raise
        except Exception as error:
            if running.command and not isinstance(error, errors.TaskFailed):
                error.add_note(f"Continue with: {running.command}")
            raise


def _record_row(record: TaskRecord) -> dict[str, Any]:
    internal = attrs.filters.exclude("word", "notes", "body")
    return {**attrs.asdict(record, filter=internal), "state": record.state.value}
