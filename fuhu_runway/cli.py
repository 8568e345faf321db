"""
The command line: arguments in, progress bars and exit codes out.

Rule 1: what was asked for goes to stdout, and everything else to stderr.
Rule 2: the id of a paid task is shown as soon as the gateway tells it, and whoever has to stop
after that is told the command that goes on.
Rule 3: no pipe, screen or terminal that goes away ends a paid job.
"""

import asyncio
import contextlib
import inspect
import io
import json
import logging
import math
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Final, Self, TextIO

import attrs
from cyclopts import (
    App,
    Argument,
    CycloptsError,
    Group,
    Parameter,
    UnknownCommandError,
    UnusedCliTokensError,
)
from rich import filesize

from . import errors, hooks
from ._redact import redact
from .models import (
    DEFAULT_MODEL,
    DEFAULT_WAIT,
    ActOne,
    Balance,
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

if TYPE_CHECKING:
    from .client import Client
    from .downloads import Progress
    from .task import Clip, Task

EXIT_CODES: Final = {
    0: "The clip is saved, or the answer is printed.",
    1: "The task failed: there will be no clip.",
    2: "The command is wrong: nothing was sent or charged.",
    3: "In doubt: a paid request was sent, and its fate is unknown. It is not sent again.",
    4: "Timeout: the task goes on, and `wait` goes on with it.",
    5: "The gateway, the network or the download gave trouble.",
    70: "A defect of this program.",
    130: "Stopped by Ctrl-C (143: by a request to terminate).",
}
EXIT_OF: Final = (
    (errors.UsageError, 2),
    (errors.SubmissionInDoubt, 3),
    (errors.WaitTimeout, 4),
    (errors.TaskFailed, 1),
    (errors.RunwayError, 5),
    (Exception, 70),
)
"""The first class that fits an error gives the exit code."""

PASSING: Final = (errors.GatewayDown, errors.RateLimited, errors.NoReply)
"""Trouble that says nothing against the task's id or the gateway's address."""

SIMULATED_SPEED: Final = 100 / 3
"""A job of 100 s takes 3 s."""
SIMULATED_DIALECT: Final = "new_api"
"""One that tells how far a task is; FuhuAPI's own has no word for that."""
SIMULATED_POLLING: Final = PollPolicy(first=0.1, max_interval=0.5)

UNNOTICED: Final = 0.1
"""How long somebody who pressed Ctrl-C is left without a word, in seconds."""

NAME_BYTES: Final = 60
"""How much of a prompt a file name shows; leaves room for the task's id."""

SHOW_CURSOR: Final = b"\x1b[?25h\n"


# Arguments


def _options_of(group: Group) -> Callable[..., Parameter]:
    """Give the maker of the options that the help shows under *group*."""

    def option(text: str, *names: str, **more: Any) -> Parameter:
        return Parameter(help=text, name=names or None, group=group, **{"negative": "", **more})

    return option


_request: Final = _options_of(Group("Request", sort_key=1))
_result: Final = _options_of(Group("Result", sort_key=2))
_gateway: Final = _options_of(Group("Gateway", sort_key=3))
_NO_DEFAULT: Final[Any] = {"show_default": False}

_PROMPT: Final = Parameter(help="What should be seen; any language.")
_STYLE: Final = Parameter(help="The style to redraw it in.")
_SOURCE: Final = Parameter(help="Address of the clip, up to 10 s and 64 MB.")
_PERFORMANCE: Final = Parameter(help="Address of the performance; 16:9 only.")
_CHARACTER: Final = Parameter(help="Address of the character's picture; 16:9 only.")
_TASK_ID: Final = Parameter(help="What was shown when the task was accepted.")
_EXTRA: Final = _request("Further fields for the request's body, as a JSON object.")
_PORTRAIT: Final = "Portrait in place of landscape"
_OFFICIAL: Final = _gateway("The task was submitted with --official.", **_NO_DEFAULT)
_SIMULATE: Final = _gateway(
    "Use a simulated gateway on this machine: no key, no cost.", **_NO_DEFAULT
)


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Wish:
    """What a generated clip should be like; None is what the request itself has by default."""

    image: Annotated[str | None, _request("Address of the first frame: image to video.")] = None
    last_image: Annotated[str | None, _request("Address of the last; with --image.")] = None
    image_as_end_frame: Annotated[
        bool | None, _request("gen3: the image is the end; with --image.")
    ] = None
    flip: Annotated[bool | None, _request(f"{_PORTRAIT}; with --image.")] = None
    ratio: Annotated[
        str | None,
        _request(
            "16:9 (default), 9:16, 1:1, 4:3, 3:4 or 21:9; with --official in pixels, such as "
            "1280:720 (default)."
        ),
    ] = None
    seconds: Annotated[int | None, _request("Length of the clip: 5 or 10 (default).")] = None
    model: Annotated[
        str | None, _request("Such as gen4 (default) or gen4_turbo (default with --official).")
    ] = None
    style: Annotated[str | None, _request("The look: cinematic (default).")] = None
    motion: Annotated[
        str | None,
        _request("How the camera moves: y=0.4,r=-6; of x, y, z, r, bg_x_pan and bg_y_pan."),
    ] = None
    seed: Annotated[int | None, _request("The same seed gives similar clips; with --official.")] = (
        None
    )
    watermark: Annotated[
        bool | None, _request("Whether the clip carries one; with --official.", negative=None)
    ] = None
    extra: Annotated[str | None, _EXTRA] = None


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Talk:
    """How results and news are told."""

    json: Annotated[bool, _result("Print one JSON object, and no progress.", **_NO_DEFAULT)] = False
    # cyclopts counts flags by itself only from 4.1 on
    verbose: Annotated[
        list[bool],
        _result(
            "Log what the SDK does; -vv logs all of it, and where errors come from.",
            *("--verbose", "-v"),
            negative_iterable="",
            **_NO_DEFAULT,
        ),
    ] = attrs.field(factory=list)


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Saving:
    """Where the clip goes, and how long it is waited for."""

    output: Annotated[
        Path | None,
        _result("The file to save; by default named by prompt and task.", "--output", "-o"),
    ] = None
    force: Annotated[bool, _result("Replace the file if there is one.", **_NO_DEFAULT)] = False
    timeout: Annotated[float, _result("How long to wait for the clip, in seconds.")] = DEFAULT_WAIT

    def check(self, prompt: str | None) -> None:
        """See to it that the clip can be waited for and saved; meant for before it is paid."""
        from .downloads import check_target  # noqa: PLC0415  (aiohttp, which --help can do without)

        _check_positive("timeout", self.timeout)
        # The id is not known yet, so that a name made of it cannot be taken.
        path = self.path(prompt, "task")
        check_target(path, overwrite=self.force or self.output is None)

    def path(self, prompt: str | None, task_id: str) -> Path:
        """Give where the clip of a task goes."""
        from .downloads import safe_name  # noqa: PLC0415  (as above)

        if self.output is not None:
            return self.output
        start = (prompt or "clip").encode(errors="ignore")[:NAME_BYTES].decode(errors="ignore")
        return Path(safe_name(f"{start}-{task_id}"))


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Reach:
    """Which gateway, and with which key."""

    gateway: Annotated[str | None, _gateway("A known one, such as deerapi; else fuhuapi.")] = None
    base_url: Annotated[
        str | None, _gateway("Its address; by default FUHU_BASE_URL, then its own.")
    ] = None
    api_key_file: Annotated[
        Path | None, _gateway("File with the key; by default the key is FUHU_API_KEY.")
    ] = None

    def words(self) -> Iterator[str]:
        """Give the options that lead to the same gateway again."""
        for option, value in (
            ("--gateway", self.gateway),
            ("--base-url", self.base_url),
            ("--api-key-file", self.api_key_file),
        ):
            if value is not None:
                yield from (option, str(value))

    def key(self) -> str:
        """Give the key, from a place that other processes cannot see, as they can arguments."""
        key = os.environ.get("FUHU_API_KEY", "")
        if self.api_key_file is not None:
            key = _read_key(self.api_key_file)
        if not key:
            raise usage_error(
                "api_key",
                "There is no key.",
                "Set FUHU_API_KEY, or give --api-key-file; --simulate needs none.",
            )
        return key


_NO_WISH: Final = Wish()
_SAVING: Final = Saving()
_REACH: Final = Reach()
_TALK: Final = Talk()

_HELP: Final = """
Video generation through Runway-style gateways: submit once, pay once, never lose a clip.

The key is read from the environment variable FUHU_API_KEY. To look around without one:
`fuhu-runway generate "a kitten" --simulate`

Exit codes:

""" + "\n".join(f"- {code}: {meaning}" for code, meaning in EXIT_CODES.items())

app: Final = App(
    name="fuhu-runway",
    help=_HELP,
    help_format="markdown",
    print_error=False,
    exit_on_error=False,
    verbose=False,
    result_action="return_value",
)


# Commands


@app.command
def generate(
    prompt: Annotated[str, _PROMPT],
    /,
    *,
    wish: Wish = _NO_WISH,
    official: Annotated[
        bool, _request("Use the official format; needs --image.", **_NO_DEFAULT)
    ] = False,
    saving: Saving = _SAVING,
    talk: Talk = _TALK,
    reach: Reach = _REACH,
    simulate: Annotated[bool, _SIMULATE] = False,
) -> int:
    """
    Make one clip from words, or from a picture and words, and save it.

    Spends points as soon as the gateway accepts it.
    """
    request = _wished(prompt, wish, official=official)
    return _run(partial(_make, request, saving, talk), reach, talk, simulate=simulate)


@app.command
def restyle(
    video: Annotated[str, _SOURCE],
    prompt: Annotated[str, _STYLE],
    /,
    *,
    structure_transformation: Annotated[
        float, _request("From 0, which keeps the structure, to 1.")
    ] = 0.5,
    seconds: Annotated[
        int | None,
        _request(
            "Length of the clip: 5 or 10; --no-seconds leaves it out.",
            negative=None,
            negative_none="no-",
        ),
    ] = 5,
    flip: Annotated[bool, _request(f"{_PORTRAIT}.", **_NO_DEFAULT)] = False,
    model: Annotated[str, _request("The model.")] = DEFAULT_MODEL,
    extra: Annotated[str | None, _EXTRA] = None,
    saving: Saving = _SAVING,
    talk: Talk = _TALK,
    reach: Reach = _REACH,
    simulate: Annotated[bool, _SIMULATE] = False,
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


@app.command
def act(
    video: Annotated[str, _PERFORMANCE],
    image: Annotated[str | None, _CHARACTER] = None,
    /,
    *,
    character_video: Annotated[
        str | None, _request("Address of a clip of the character, in place of the picture.")
    ] = None,
    motion_multiplier: Annotated[
        int | None, _request("How strongly it moves, from 1 to 5.")
    ] = None,
    flip: Annotated[bool | None, _request(f"{_PORTRAIT}.", negative=None)] = None,
    extra: Annotated[str | None, _EXTRA] = None,
    saving: Saving = _SAVING,
    talk: Talk = _TALK,
    reach: Reach = _REACH,
    simulate: Annotated[bool, _SIMULATE] = False,
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


@app.command
def wait(
    task_id: Annotated[str, _TASK_ID],
    /,
    *,
    saving: Saving = _SAVING,
    talk: Talk = _TALK,
    reach: Reach = _REACH,
    official: Annotated[bool, _OFFICIAL] = False,
) -> int:
    """
    Go on with a task that was submitted before: wait for its clip, and save it.

    Free, and safe to repeat. A download that broke off goes on where it was.
    """
    return _run(partial(_go_on, task_id, saving, talk, official=official), reach, talk)


@app.command
def feed(
    task_id: Annotated[str, _TASK_ID],
    /,
    *,
    talk: Talk = _TALK,
    reach: Reach = _REACH,
    official: Annotated[bool, _OFFICIAL] = False,
) -> int:
    """
    Show what the gateway says about a task now.

    Free. The addresses are temporary, and as good as a key to the clip.
    """

    async def look(errand: Errand) -> None:
        _tell(_record_row(await errand.client.feed(task_id, official=official)), talk)

    return _run(look, reach, talk)


@app.command
def balance(
    *,
    talk: Talk = _TALK,
    reach: Reach = _REACH,
    simulate: Annotated[bool, _SIMULATE] = False,
) -> int:
    """Show what is left to spend, in the gateway's unit."""

    async def ask(errand: Errand) -> None:
        _tell(_balance_row(await errand.client.balance()), talk)

    return _run(ask, reach, talk, simulate=simulate)


@app.command(name="simulate")
def serve(
    *,
    port: Annotated[int, _gateway("Where it listens; 0 takes a free one.")] = 0,
    speed: Annotated[
        float, _gateway("Simulated seconds per second: a job takes 100 of them.")
    ] = 1.0,
) -> int:
    """
    Run a simulated gateway on this machine until Ctrl-C: no key, no cost.

    Prints the two environment variables that lead the SDK and this command to it.
    """
    screen = Lines()
    return _guarded(partial(_serve, port, speed, screen), screen, verbosity=0)


# From options to requests


def _wished(prompt: str, wish: Wish, *, official: bool) -> Generation:
    """Give the request that the options add up to; those that it has no place for are refused."""
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
            "--motion is no list of axes and numbers.",
            "Write it as y=0.4,r=-6; the axes are x, y, z, r, bg_x_pan and bg_y_pan.",
        ) from unfit


def _extra(text: str | None) -> Any:
    try:
        return {} if text is None else json.loads(text)
    except (ValueError, RecursionError):
        pass
    raise usage_error("extra", "--extra is no JSON.", """Write it as '{"name": "value"}'.""")


def _read_key(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as unreadable:
        reason = getattr(unreadable, "strerror", None) or "it is no text"
        raise usage_error(
            "api_key_file", f"The key file cannot be read ({reason}).", "Give another."
        ) from None  # the cause may hold a part of the file
    if not key:
        raise usage_error("api_key_file", "The key file is empty.", "Put the key into it.")
    return key


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise usage_error(name, f"--{name} is {value:g}.", "Use a number above 0.")


# One command under way


@attrs.define(eq=False)
class Errand:
    """What a command works with, and what errors and Ctrl-C have to tell of it."""

    screen: "Lines"
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

    def hear(self, event: hooks.Event) -> None:
        """Show what the client tells of its work."""
        match event:
            case hooks.TaskPolled() if not event.state.is_final:
                percent = "" if event.progress is None else f"{event.progress:.0%}"
                self.screen.stage(event.state.value, event.progress, percent)
            case hooks.RetryScheduled() | hooks.PollFailed():
                self.screen.stage(f"{event.error}, trying again")
            case hooks.SubmissionUnclaimed():
                self.unclaimed = event

    async def submit(self, request: Generation, saving: Saving) -> "Task":
        """Pay, once, and show the id before anything else happens."""
        self.submitting = saving
        self.screen.stage("submitting")
        task = await self.client.submit(request)
        self.accept(task, saving)
        return task

    def accept(self, task: "Task", saving: Saving) -> None:
        """Show that *task* is paid, and be ready to tell how to go on with it."""
        self.submitting = None
        self.screen.say(f"accepted: task {task.id}")
        self.plan(task, saving, getattr(task.request, "prompt", None))

    def plan(self, task: "Task", saving: Saving, prompt: str | None) -> None:
        """Settle where the clip goes, and the command that fetches it if this one cannot."""
        self.path = saving.path(prompt, task.id)
        if self.is_simulated:
            return  # its gateway ends with this very process
        words = ["fuhu-runway", "wait", task.id, "-o", str(self.path), *self.reach.words()]
        words += ["--official"] * task.official + ["--force"] * saving.force
        self.advice = f"Continue with: {shlex.join(words)}"

    async def break_off(self) -> None:
        """Tell how to go on, after the answer to a paid request that is in the air."""
        saving = self.submitting
        if saving is not None:
            await self._await_answer()
            for task in self.client.unclaimed:
                self.accept(task, saving)
        self.screen.close()
        self.screen.say(f"Stopped. {self._outlook()}")

    async def _await_answer(self) -> None:
        closing = asyncio.ensure_future(self.client.aclose())
        done, _ = await asyncio.wait({closing}, timeout=UNNOTICED)
        if not done:
            self.screen.say(
                "Waiting for the answer to the request, which may name a paid task. "
                "Ctrl-C again leaves at once."
            )
        await closing

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
    """Submit, wait, save: the whole way."""
    saving.check(getattr(request, "prompt", None))
    task = await errand.submit(request, saving)
    await _deliver(task, saving, talk, errand)


async def _go_on(
    task_id: str, saving: Saving, talk: Talk, errand: Errand, *, official: bool
) -> None:
    """Wait and save, for a task that was paid before."""
    from .downloads import check_target  # noqa: PLC0415  (aiohttp, which --help can do without)

    saving.check(None)
    task = errand.client.task(task_id, official=official)
    record = await _first_look(task)
    errand.plan(task, saving, record.prompt if record else None)
    check_target(errand.path, overwrite=saving.force)
    await _deliver(task, saving, talk, errand)


async def _first_look(task: "Task") -> TaskRecord | None:
    """Give what the gateway says, or raise what a wait, which is patient, would wait out."""
    try:
        return await task.refresh()
    except PASSING:
        return None


async def _deliver(task: "Task", saving: Saving, talk: Talk, errand: Errand) -> None:
    clip = await task.wait(timeout=saving.timeout)
    await _save(clip, errand, overwrite=saving.force)
    size = filesize.decimal(errand.path.stat().st_size)
    errand.screen.news(f"saved: {size}{_cost(clip.record)}")
    errand.screen.close()
    if talk.json:
        _tell({**_record_row(clip.record), "file": str(errand.path)}, talk)
    else:
        _write(sys.stdout, str(errand.path))


async def _save(clip: "Clip", errand: Errand, *, overwrite: bool) -> None:
    def show(progress: "Progress") -> None:
        sizes = [progress.received_bytes, progress.total_bytes]
        shown = "/".join(filesize.decimal(size) for size in sizes if size is not None)
        errand.screen.stage("downloading", progress.fraction, shown)

    try:
        await clip.download(errand.path, overwrite=overwrite, on_progress=show)
    except errors.UsageError as error:
        # The place was free before the clip was paid, and an error has to tell what is true now.
        raise errors.DownloadRefused(
            error.happened, "The clip exists and is paid for.", error.advice, clip.id
        ) from error


def _cost(record: TaskRecord) -> str:
    return "" if record.points is None else f", {record.points:,g} points"


async def _serve(port: int, speed: float, screen: "Lines") -> None:
    """Run the simulator until somebody stops it."""
    from .testing.simulator import Simulator  # noqa: PLC0415  (aiohttp, as above)

    _check_positive("speed", speed)
    gateway = Simulator(port=port, speed=speed)
    try:
        await gateway.start()
    except (OSError, OverflowError) as taken:
        reason = getattr(taken, "strerror", None) or "ports go up to 65535"
        raise usage_error(
            "port", f"Port {port} cannot be opened ({reason}).", "Choose another, or leave it out."
        ) from taken
    for name, value in gateway.environment().items():
        _write(sys.stdout, f"export {name}={shlex.quote(value)}")
    screen.say("simulated: a gateway on this machine, until Ctrl-C")
    with contextlib.suppress(asyncio.CancelledError):
        await gateway.serve_forever()


# From errands to exit codes


def _run(work: Work, reach: Reach, talk: Talk, *, simulate: bool = False) -> int:
    """Do *work* with a client, and give the exit code."""
    screen = _screen(quiet=talk.json)
    errand = Errand(screen, reach, simulate)
    return _guarded(partial(_with_client, work, errand), screen, verbosity=len(talk.verbose))


async def _with_client(work: Work, errand: Errand) -> None:
    async with contextlib.AsyncExitStack() as stack:
        opened = _simulated if errand.is_simulated else _connected
        errand.client = await opened(stack, errand)
        try:
            await work(errand)
        except asyncio.CancelledError:
            await errand.break_off()
            raise
        except Exception as error:
            if errand.advice and not isinstance(error, errors.TaskFailed):
                error.add_note(errand.advice)
            raise


async def _connected(stack: contextlib.AsyncExitStack, errand: Errand) -> "Client":
    from .client import Client  # noqa: PLC0415  (aiohttp, as above)

    reach = errand.reach
    client = Client(
        reach.key(), base_url=reach.base_url, gateway=reach.gateway, hooks=[errand.hear]
    )
    return await stack.enter_async_context(client)


async def _simulated(stack: contextlib.AsyncExitStack, errand: Errand) -> "Client":
    from .client import Client  # noqa: PLC0415  (aiohttp, as above)
    from .testing.simulator import Simulator  # noqa: PLC0415  (aiohttp, as above)

    if errand.reach.base_url or errand.reach.api_key_file:
        raise usage_error(
            "simulate",
            "--simulate was given together with the address or the key of a real gateway.",
            "Leave --base-url and --api-key-file out, or leave --simulate out.",
        )
    # A seed of its own for each run, or the second would meet the files of the first.
    seed = int.from_bytes(os.urandom(4))
    gateway = Simulator(
        speed=SIMULATED_SPEED,
        seed=seed,
        dialect=SIMULATED_DIALECT,
        key_style="any",
        feed_verb="any",
    )
    await stack.enter_async_context(gateway)
    errand.screen.say("simulated: a gateway on this machine, no key, no cost")
    client = Client(
        gateway.api_key,
        base_url=gateway.base_url,
        gateway=errand.reach.gateway,
        polling=SIMULATED_POLLING,
        hooks=[errand.hear],
    )
    return await stack.enter_async_context(client)


def _guarded(
    work: Callable[[], Coroutine[Any, Any, None]], screen: "Lines", *, verbosity: int
) -> int:
    """Do *work* and give the exit code; whatever goes wrong is one line on stderr."""
    try:
        with Stop() as stop, asyncio.Runner() as runner, _logged(screen, verbosity), screen:
            return stop.run(runner, work())
    except Exception as error:  # noqa: BLE001  (a defect is told, too, with the task to go on with)
        if verbosity > 1:
            _write(sys.stderr, redact("".join(traceback.format_exception(error))))
        _complain(_told(error))
        return next(code for kind, code in EXIT_OF if isinstance(error, kind))


def _told(error: Exception) -> str:
    text = str(error)
    if not isinstance(error, errors.RunwayError):
        text = f"A defect of this program ({type(error).__name__}). Please report it."
    return " ".join([text, *getattr(error, "__notes__", ())])


class Stop:
    """
    Ctrl-C, and a request to terminate, in two steps.

    The first cancels the work, which may then finish what must not be lost. The second leaves at
    once, without waiting for threads, such as one that hangs in a name lookup.
    """

    def __init__(self) -> None:
        self._number = 0
        self._task: asyncio.Task[None] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            # A process in the background of a script is born deaf to Ctrl-C, and stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, runner: asyncio.Runner, work: Coroutine[Any, Any, None]) -> int:
        """Do *work* until it is done or stopped, and give the exit code."""
        loop = runner.get_loop()
        self._task = loop.create_task(work)
        try:
            loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            return 128 + self._number
        return 0

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self._number or self._task is None or self._task.done():
            _leave(128 + number)
        else:
            self._number = number
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)


def _leave(code: int) -> None:
    """End the process here and now, with a cursor on the terminal."""
    if os.isatty(2):
        os.write(2, SHOW_CURSOR)
    os._exit(code)


# What is shown


def _screen(*, quiet: bool) -> "Lines":
    can_move = (
        sys.stderr is not None
        and sys.stderr.isatty()
        and os.environ.get("TERM") not in {"dumb", "unknown"}
    )
    return Bar() if can_move and not quiet else Lines(quiet=quiet)


class Lines:
    """News as plain lines on stderr: for pipes, logs and terminals that can do no more."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._stage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, text: str) -> None:
        """Show a line that has to be seen."""
        _write(sys.stderr, _one_line(text))

    def news(self, text: str) -> None:
        """Show a line that nobody has to see."""
        if not self._quiet:
            self.say(text)

    def stage(self, name: str, part: float | None = None, detail: str = "") -> None:  # noqa: ARG002  (percents would fill a log)
        """Show what is going on now, and how much of it is done, from 0 to 1."""
        if name != self._stage:
            self._stage = name
            self.news(name)

    def close(self) -> None:
        """Show nothing that moves any more."""


class Bar(Lines):
    """The same on a terminal: one line that moves, below the lines that stay."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: Any = None

    def say(self, text: str) -> None:
        """Show a line above the one that moves."""
        if self._progress is None:
            super().say(text)
        else:
            # Soft wrapping leaves it to the terminal, so that ids and commands can be copied.
            self._progress.console.print(
                _one_line(text), markup=False, emoji=False, highlight=False, soft_wrap=True
            )

    def stage(self, name: str, part: float | None = None, detail: str = "") -> None:
        """Show it in the line that moves, with a bar that swings where the part is not known."""
        if self._progress is None:
            self._progress = _progress_bar()
        # Set by hand: update() cannot take a total back, and without one the bar swings.
        task = self._progress.tasks[0]
        task.description, task.fields["detail"] = name, detail
        task.total, task.completed = (None, 0.0) if part is None else (1.0, part)
        self._progress.start()  # once; again does nothing

    def close(self) -> None:
        """Take the line that moves away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _progress_bar() -> Any:
    from rich import console, progress, table, text  # noqa: PLC0415  (for terminals only)

    class DetailOrTime(progress.TimeElapsedColumn):
        """How far it is, or where nobody knows, for how long it has been going on."""

        def render(self, task: progress.Task) -> text.Text:
            detail = task.fields["detail"]
            return text.Text(detail) if detail else super().render(task)

    stderr = console.Console(stderr=True)
    bar = progress.Progress(
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=40 if stderr.width >= 80 else None),
        DetailOrTime(table_column=table.Column(no_wrap=True)),  # the bar gives way
        console=stderr,
        transient=True,
    )
    bar.add_task("", total=None, detail="")
    return bar


@contextlib.contextmanager
def _logged(screen: Lines, verbosity: int) -> Iterator[None]:
    """Let the SDK's log appear on *screen*, as far as it was asked for."""
    logger, handler = hooks.LOGGER, _ToScreen(screen)
    before = logger.level
    # Without a handler of ours, Python itself would print warnings.
    logger.setLevel({0: logging.CRITICAL, 1: logging.INFO}.get(verbosity, logging.DEBUG))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _ToScreen(logging.Handler):
    def __init__(self, screen: Lines) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.say(f"{record.levelname.lower()}: {record.getMessage()}")


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
    row = {key: getattr(record, key) for key in RECORD_KEYS}
    return {**row, "state": record.state.value}


def _balance_row(left: Balance) -> dict[str, Any]:
    return {key: getattr(left, key) for key in BALANCE_KEYS}


def _tell(row: Mapping[str, Any], talk: Talk) -> None:
    """Print one result: as JSON with every key, or as a table of what is known."""
    if talk.json:
        _write(sys.stdout, json.dumps(row, default=datetime.isoformat))
        return
    known = {key.replace("_", " "): value for key, value in row.items() if value is not None}
    width = max(map(len, known))
    for name, value in known.items():
        _write(sys.stdout, f"{name:<{width}}  {_shown(name, value)}")


def _shown(name: str, value: Any) -> str:
    if name == "progress":
        return f"{value:.0%}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.10g}"
    return _one_line(str(value))


def _one_line(text: str) -> str:
    """Give *text* without what would move the cursor: some of it comes from the gateway."""
    return "".join(sign if sign.isprintable() else " " for sign in text).rstrip()


def _complain(text: str) -> None:
    _write(sys.stderr, f"fuhu-runway: {_one_line(text)}")


def _write(stream: TextIO | None, text: str) -> None:
    """Print a line; nobody may be there to read it, and that is no reason to stop."""
    if stream is None:
        return
    try:
        print(text, file=stream, flush=True)
    except OSError:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), stream.fileno())


# The way in


def main(tokens: Sequence[str] | None = None) -> int:
    """Give the exit code of the command that *tokens*, or the process's arguments, spell."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that this terminal cannot show is no reason to fail after paying.
            stream.reconfigure(errors="backslashreplace")
    try:
        return app(tokens) or 0
    except CycloptsError as error:
        _complain(_hint(error))
    except errors.UsageError as error:
        _complain(str(error))
    except BrokenPipeError:
        _write(sys.stdout, "")
        return 0
    return 2


def _hint(error: CycloptsError) -> str:
    """Give what is wrong with the command, without the words that may be a prompt or a key."""
    help_of = " ".join(["fuhu-runway", *(error.command_chain or ()), "--help"])
    said = str(error)
    if isinstance(error, UnusedCliTokensError):
        said = "There are more words than arguments. Put a prompt of several words in quotes."
    if isinstance(error, UnknownCommandError):
        said = said.replace(f' "{(error.unused_tokens or [""])[0]}"', "", 1)
    sentences = [word for word in error.root_input_tokens or () if " " in word]
    return f"{redact(said, sentences)} See {help_of}"


# The pages about it


def reference() -> str:
    """Give the tables of docs/reference/cli.md, as they follow from the commands themselves."""
    names = [name for name in app if not name.startswith("-")]
    sections = (
        *map(_command_section, names),
        ["## Exit codes\n", *_table("Code", EXIT_CODES)],
        ["## A task in JSON\n", *_table("Key", {**RECORD_KEYS, **FILE_KEY})],
        ["## A balance in JSON\n", *_table("Key", BALANCE_KEYS)],
    )
    return "\n".join("\n".join(lines) for lines in sections)


def _command_section(name: str) -> list[str]:
    options = {
        "`, `".join(argument.names): _meaning(argument)
        for argument in app[name].assemble_argument_collection()
        if argument.show
    }
    return [f"## {name}\n\n{inspect.cleandoc(app[name].help)}\n", *_table("Argument", options)]


def _meaning(argument: Argument) -> str:
    default = argument.field_info.default
    is_told = isinstance(default, str | float) or type(default) is int
    return f"{argument.parameter.help}{f' Default: {default}.' * is_told}"


def _table(head: str, rows: Mapping[Any, str]) -> list[str]:
    lines = [f"| `{name}` | {meaning} |" for name, meaning in rows.items()]
    return [f"| {head} | Meaning |", "|---|---|", *lines, ""]
