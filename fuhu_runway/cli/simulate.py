"""
The command line for the simulator: a gateway as a process of its own, for programs in any language.

Rule 1: its address is printed to stdout as soon as it answers, and nothing else is.
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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import attrs
from cyclopts import Parameter

from fuhu_runway.errors import UsageError
from fuhu_runway.models import usage_error

from .console import Lines, guarded, write
from .options import NO_DEFAULT, gateway_option, result_option

if TYPE_CHECKING:
    from fuhu_runway.testing.simulator import Simulator

ADDRESS_KEYS: Final = {
    "base_url": "Where the API is; what FUHU_BASE_URL has to be.",
    "cdn_url": "Where the files are: another origin.",
    "control_url": "Where the control API is.",
    "api_key": "The first key; what FUHU_API_KEY has to be.",
}
CONFIG_KEYS: Final = {
    "callbacks": "A table with options of `Callbacks`, such as `times`, `delay` and `tries`.",
    "retry_after": "The `Retry-After` of a request above `rate_limit`, in seconds.",
    "others": "Any option of `Simulator`, such as `price`, `burst`, `media` or `link_lifetime`.",
}
TABLES: Final = {"A simulator in JSON": ADDRESS_KEYS, "A simulator.toml": CONFIG_KEYS}
"""What the reference page says about what is printed and read here."""

RANGES: Final = {
    **dict.fromkeys(("port", "cdn_port"), (0, 65_535)),
    **dict.fromkeys(("speed", "rate_limit", "link_lifetime"), (1e-6, 1e9)),
    **dict.fromkeys(("takes", "points", "price", "retry_after"), (0, 1e9)),
    "burst": (1, 1e9),
    "quota_status": (401, 403),
    "expired_status": (400, 599),
    "weather": (0, 1),
}
"""The least and the most that a number may be."""


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Options:
    """The everyday options of a simulator; None leaves one to the config or to its default."""

    config: Annotated[
        Path | None,
        gateway_option("A TOML file with any option of Simulator; the other options here win."),
    ] = None
    host: Annotated[str | None, gateway_option("127.0.0.1 (default), ::1 or localhost.")] = None
    port: Annotated[int | None, gateway_option("Where it listens; by default a free port.")] = None
    cdn_port: Annotated[
        int | None, gateway_option("Where its files are; by default a free port.")
    ] = None
    state_file: Annotated[
        Path | None,
        gateway_option("Where its tasks are kept, for the next simulator with this file."),
    ] = None
    speed: Annotated[
        float | None, gateway_option("Simulated seconds per second (1): a job takes 100 of them.")
    ] = None
    takes: Annotated[
        float | None, gateway_option("How long a job takes, in simulated seconds (100).")
    ] = None
    seed: Annotated[int | None, gateway_option("The same one gives the same task ids.")] = None
    points: Annotated[float | None, gateway_option("What the first key may spend (100,000).")] = (
        None
    )
    no_points: Annotated[
        bool, gateway_option("Let the first key spend without limit.", **NO_DEFAULT)
    ] = False
    rate_limit: Annotated[
        float | None, gateway_option("Requests per second, for each key; by default no limit.")
    ] = None
    dialect: Annotated[
        str | None,
        gateway_option(
            "How it answers: envelope as FuhuAPI does (default), new_api, mixed, or odd as "
            "php_warning does."
        ),
    ] = None
    feed_verb: Annotated[
        Literal["POST", "GET", "any"] | None, gateway_option("The feed's method (POST).")
    ] = None
    key_style: Annotated[
        Literal["bearer", "raw", "body", "any"] | None,
        gateway_option("Where the key has to be (bearer)."),
    ] = None
    weather: Annotated[
        float | None,
        gateway_option("The share of requests, from 0 to 1, to which harmless trouble happens."),
    ] = None
    video: Annotated[
        Path | None, gateway_option("The file of every job, in place of its own clip.")
    ] = None
    no_callbacks: Annotated[
        bool, gateway_option("Post nothing to the callback_url of a job.", **NO_DEFAULT)
    ] = False


_OPTIONS: Final = Options()


def simulate(
    *,
    options: Options = _OPTIONS,
    as_json: Annotated[
        bool,
        result_option("Print one line of JSON in place of the variables.", "--json", **NO_DEFAULT),
    ] = False,
    until_stdin_closes: Annotated[
        bool,
        result_option(
            "End when stdin is closed, too, and so with the program that started it.", **NO_DEFAULT
        ),
    ] = False,
) -> int:
    """
    Run a simulated gateway on this machine until Ctrl-C: no key, no cost.

    Prints the variables that lead the SDK and this command to it, as soon as it answers. Other
    programs script it and look into it by its control API.
    """
    screen = Lines()
    work = partial(_serve, options, screen, as_json=as_json, with_stdin=until_stdin_closes)
    return guarded(work, screen, verbosity=0)


async def _serve(options: Options, screen: Lines, *, as_json: bool, with_stdin: bool) -> None:
    """Run the simulator until it is stopped."""
    gateway = _gateway(options)
    await _start(gateway)
    try:
        if as_json:
            write(sys.stdout, json.dumps({key: getattr(gateway, key) for key in ADDRESS_KEYS}))
        else:
            variables = {**gateway.environment(), "FUHU_CONTROL_URL": gateway.control_url}
            for name, value in variables.items():
                write(sys.stdout, f"export {name}={shlex.quote(value)}")
        screen.say("simulated: a gateway on this machine, until Ctrl-C")
        ended = asyncio.Event()
        if with_stdin:
            _set_at_end_of_stdin(ended)
        with contextlib.suppress(asyncio.CancelledError):
            await ended.wait()
    finally:
        await gateway.aclose()


def _gateway(options: Options) -> "Simulator":
    """Return the simulator that the config and the options describe."""
    from fuhu_runway.testing import Callbacks, Simulator  # noqa: PLC0415  (aiohttp, which --help can do without)
    from fuhu_runway.testing.faults import TooManyRequests  # noqa: PLC0415  (as above)

    settings = {} if options.config is None else _read_config(options.config)
    settings |= {name: value for name, value in attrs.asdict(options).items() if value is not None}
    settings.pop("config", None)
    if settings.pop("no_points"):
        settings["points"] = None
    if settings.pop("no_callbacks"):
        settings["callbacks"] = None
    for name in RANGES.keys() & settings.keys():
        _check_number(name, settings[name])
    if settings.get("video") is not None:
        settings["video"] = _read(Path(settings["video"]), "video")
    try:
        if settings.get("callbacks") is not None:
            settings["callbacks"] = Callbacks(**settings["callbacks"])
        answer = TooManyRequests(settings.pop("retry_after", None))
        return Simulator(**{**settings, "rate_limit_answer": answer, "control": True})
    except (TypeError, ValueError) as unfit:
        raise usage_error("simulate", f"{unfit}.", "See fuhu-runway simulate --help.") from unfit
    except OSError as unusable:
        raise _state_error(unusable) from unusable


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read(path, "config").decode())
    except ValueError as broken:
        raise usage_error(
            "config", f"{path.name} is not TOML: {broken}.", "Correct it."
        ) from broken


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as unreadable:
        happened = f"The file of --{option} cannot be read ({unreadable.strerror})."
        raise usage_error(option, happened, "Give another, or leave it out.") from unreadable


def _check_number(name: str, value: Any) -> None:
    least, most = RANGES[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and least <= value <= most):
        raise usage_error(
            name, f"{name} is {value!r}.", f"Use a number from {least:g} to {most:.12g}."
        )


async def _start(gateway: "Simulator") -> None:
    try:
        await gateway.start()
    except OSError as unusable:
        if unusable.filename is not None:
            raise _state_error(unusable) from unusable
        reason = unusable.strerror or "The port cannot be opened"
        raise usage_error("port", f"{reason}.", "Choose another, or leave it out.") from unusable
    except RuntimeError as taken:
        raise usage_error(
            "state_file",
            "The state file is in use, or changed since it was read.",
            "End the other simulator first.",
        ) from taken


def _state_error(error: OSError) -> UsageError:
    return usage_error(
        "state_file",
        f"The state file cannot be used ({error.strerror}).",
        "Give another, or leave it out.",
    )


def _set_at_end_of_stdin(ended: asyncio.Event) -> None:
    """Watch stdin from a thread: it may be a pipe, a terminal or a file, on any system."""
    loop = asyncio.get_running_loop()

    def watch() -> None:
        with contextlib.suppress(OSError):  # it was never open
            while os.read(0, 1024):
                pass
        with contextlib.suppress(RuntimeError):  # the loop has ended another way
            loop.call_soon_threadsafe(ended.set)

    # Not awaited: it may hang on a stdin that stays open.
    threading.Thread(target=watch, daemon=True).start()
