"""
The command for the simulator: a gateway as a separate process, for programs in any language.

Rule 1: stdout contains its URLs, as soon as it answers, and nothing else.
Rule 2: it ends on a signal, and can end with the program that started it.
"""

import asyncio
import contextlib
import json
import os
import shlex
import sys
import threading
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import attrs
from cyclopts import Parameter

from fuhu_runway.errors import UsageError
from fuhu_runway.models import usage_error

from .console import write
from .options import GATEWAY, RESULT, Screen

if TYPE_CHECKING:
    from fuhu_runway.testing.simulator import Simulator

RANGES: Final = {
    **dict.fromkeys(("port", "cdn_port"), (0, 65_535)),
    **dict.fromkeys(("speed", "rate_limit", "link_lifetime"), (1e-6, 1e9)),
    **dict.fromkeys(("takes", "points", "price", "retry_after"), (0, 1e9)),
    "burst": (1, 1e9),
    "quota_status": (401, 403),
    "expired_status": (400, 599),
    "weather": (0, 1),
}
"""The minimum and the maximum of each number."""


@Parameter(name="*", group=GATEWAY)
@attrs.frozen(kw_only=True)
class Options:
    """
    The everyday options of a simulator; None means the config file's value, or the default.

    Args:
        config: TOML file with any options of Simulator; options on the command line override it.
        host: Address to listen on: 127.0.0.1 (default), ::1 or localhost.
        port: Port of the API; by default a free port.
        cdn_port: Port of the files; by default a free port.
        state_file: File that keeps the tasks for the next simulator that uses it.
        speed: Simulated seconds per second (1). A job takes 100 simulated seconds.
        takes: How long a job takes, in simulated seconds (100).
        seed: The same seed gives the same task ids.
        points: What the first key can spend (100,000).
        no_points: Let the first key spend without limit.
        rate_limit: Requests per second and key; by default unlimited.
        dialect: Format of responses: envelope as FuhuAPI (default), new_api, mixed, or an unusual
            one such as php_warning.
        feed_verb: HTTP method of the feed (POST).
        key_style: Where the key must be (bearer).
        weather: Share of requests, from 0 to 1, that fail in a harmless way.
        video: File to serve as the clip of every job.
        no_callbacks: Send nothing to the callback_url of a job.
    """

    config: Path | None = None
    host: str | None = None
    port: int | None = None
    cdn_port: int | None = None
    state_file: Path | None = None
    speed: float | None = None
    takes: float | None = None
    seed: int | None = None
    points: float | None = None
    no_points: bool = False
    rate_limit: float | None = None
    dialect: str | None = None
    feed_verb: Literal["POST", "GET", "any"] | None = None
    key_style: Literal["bearer", "raw", "body", "any"] | None = None
    weather: float | None = None
    video: Path | None = None
    no_callbacks: bool = False


OPTIONS: Final = Options()


async def simulate(
    *,
    options: Options = OPTIONS,
    as_json: Annotated[bool, Parameter(name="--json", group=RESULT)] = False,
    until_stdin_closes: Annotated[bool, Parameter(group=RESULT)] = False,
    screen: Screen,
) -> None:
    """
    Run a simulated gateway on this machine until Ctrl-C: no key, no cost.

    As soon as it responds, prints shell variables that point the SDK and this command at it.
    Other programs can script and inspect it through its control API.

    Args:
        as_json: Print one line of JSON instead of shell variables.
        until_stdin_closes: Stop when stdin closes, and so when the program that started it ends.
    """
    try:
        gateway = _simulator(options)
        await gateway.start()
    except UsageError:
        raise
    except RuntimeError as error:
        raise usage_error(
            "state_file",
            "The state file is in use, or changed after it was read.",
            "Stop the other simulator first.",
        ) from error
    except OSError as error:
        if error.filename is None:
            reason = error.strerror or "The port cannot be opened"
            advice = "Use another port, or omit the option to get a free one."
            raise usage_error("port", f"{reason}.", advice) from error
        happened = f"The state file cannot be used ({error.strerror})."
        raise usage_error("state_file", happened, "Use another file.") from error
    except (TypeError, ValueError) as error:
        raise usage_error("simulate", f"{error}.", "See fuhu-runway simulate --help.") from error
    try:
        if as_json:
            keys = ("base_url", "cdn_url", "control_url", "api_key", "access_token", "user_id")
            write(sys.stdout, json.dumps({key: getattr(gateway, key) for key in keys}))
        else:
            variables = {**gateway.environment(), "FUHU_CONTROL_URL": gateway.control_url}
            for name, value in variables.items():
                write(sys.stdout, f"export {name}={shlex.quote(value)}")
        screen.say("simulated: a gateway on this machine, until Ctrl-C")
        ended = asyncio.Event()
        if until_stdin_closes:
            _set_when_stdin_closes(ended)
        with contextlib.suppress(asyncio.CancelledError):
            await ended.wait()
    finally:
        await gateway.aclose()


def _set_when_stdin_closes(event: asyncio.Event) -> None:
    """Read stdin in a thread, which works for a pipe, a terminal or a file, on any system."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        with contextlib.suppress(OSError):  # it was never open
            while os.read(0, 1024):
                pass
        with contextlib.suppress(RuntimeError):  # the loop has already ended
            loop.call_soon_threadsafe(event.set)

    # Not joined: it hangs if stdin stays open.
    threading.Thread(target=read, name="stdin", daemon=True).start()


def _simulator(options: Options) -> "Simulator":
    """Return the simulator that the config file and the options describe."""
    from fuhu_runway.testing import AccountLists, Callbacks, Simulator
    from fuhu_runway.testing.faults import TooManyRequests

    given = {name: value for name, value in attrs.asdict(options).items() if value is not None}
    config = given.pop("config", None)
    settings = {**_read_config(config), **given} if config else given
    if settings.pop("no_points"):
        settings["points"] = None
    if settings.pop("no_callbacks"):
        settings["callbacks"] = None
    for name in RANGES.keys() & settings.keys():
        value, (least, most) = settings[name], RANGES[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and least <= value <= most):
            advice = f"Use a number from {least:g} to {most:.12g}."
            raise usage_error(name, f"{name} is {value!r}.", advice)
    if settings.get("video") is not None:
        settings["video"] = _read(Path(settings["video"]), "video")
    if settings.get("callbacks") is not None:
        settings["callbacks"] = Callbacks(**settings["callbacks"])
    if settings.get("lists") is not None:
        settings["lists"] = AccountLists(**settings["lists"])
    refusal = TooManyRequests(settings.pop("retry_after", None))
    return Simulator(**{**settings, "rate_limit_answer": refusal, "control": True})


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read(path, "config").decode())
    except ValueError as error:
        happened = f"{path.name} is not valid TOML: {error}."
        raise usage_error("config", happened, "Correct it.") from error


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        happened = f"The file of --{option} cannot be read ({error.strerror})."
        raise usage_error(option, happened, "Use another file, or remove the option.") from error
