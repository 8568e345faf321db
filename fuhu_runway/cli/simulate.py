"""
The command for the simulator: a gateway as a separate process, for programs in any language.

Rule 1: stdout contains its URLs, as soon as it answers, and nothing else.
Rule 2: it ends on a signal, and can end with the program that started it.
"""

import asyncio
import contextlib
import os
import shlex
import threading
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
from cyclopts import Parameter

from fuhu_runway.errors import UsageError
from fuhu_runway.models import usage_error

from .console import Screen
from .options import GATEWAY, IN_RESULT

if TYPE_CHECKING:
    from fuhu_runway.testing.simulator import Simulator


@Parameter(name="*", group=GATEWAY)
@attrs.frozen(kw_only=True)
class Options:
    """
    The everyday options of a simulator; None means the config file's value, or the default.

    Args:
        config: TOML file with any options of Simulator; options on the command line override it.
        host: Address to listen on: 127.0.0.1 (default), ::1 or localhost.
        port: Port of the API; by default a free port.
        state_file: File that keeps the tasks for the next simulator that uses it.
        speed: Simulated seconds per second (1). A job takes 100 simulated seconds.
        takes: How long a job takes, in simulated seconds (100).
        seed: The same seed gives the same task ids.
        points: What the first key can spend (100,000).
        no_points: Let the first key spend without limit.
        rate_limit: Requests per second and key; by default unlimited.
        dialect: Format of responses: envelope as FuhuAPI (default), new_api, mixed, or an unusual
            one such as php_warning.
        weather: Share of requests, from 0 to 1, that fail in a harmless way.
    """

    config: Path | None = None
    host: str | None = None
    port: int | None = None
    state_file: Path | None = None
    speed: float | None = None
    takes: float | None = None
    seed: int | None = None
    points: float | None = None
    no_points: bool = False
    rate_limit: float | None = None
    dialect: str | None = None
    weather: float | None = None


async def simulate(
    *,
    options: Options = Options(),
    until_stdin_closes: Annotated[bool, IN_RESULT] = False,
    screen: Screen = Screen(),
) -> None:
    """
    Run a simulated gateway on this machine until Ctrl-C: no key, no cost.

    As soon as it responds, prints shell variables that point the SDK and this command at it.
    Other programs can script and inspect it through its control API.

    Args:
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
        keys = ("base_url", "cdn_url", "control_url", "api_key", "access_token", "user_id")
        variables = {**gateway.environment(), "FUHU_CONTROL_URL": gateway.control_url}
        screen.show(
            {key: getattr(gateway, key) for key in keys},
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        )
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
    if "video" in settings:
        settings["video"] = _read(Path(settings["video"]), "video")
    for name, kind in {"callbacks": Callbacks, "lists": AccountLists}.items():
        if name in settings:
            settings[name] = kind(**settings[name])
    refusal = TooManyRequests(settings.pop("retry_after", None))
    return Simulator(**{**settings, "rate_limit_response": refusal, "control": True})


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
        happened = f"The file of {option} cannot be read ({error.strerror})."
        raise usage_error(option, happened, "Use another file, or remove the option.") from error
