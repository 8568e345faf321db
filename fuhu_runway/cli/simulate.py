"""
The command line for the simulator: a gateway as a process of its own, for programs in any language.

Rule 1: what leads a program to it goes to stdout, as soon as it answers and not before.
Rule 2: it ends on a signal, and can end with the program that started it.
"""

import asyncio
import contextlib
import json
import math
import os
import shlex
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import attrs
from cyclopts import Group, Parameter

from fuhu_runway.errors import UsageError
from fuhu_runway.models import usage_error

from .console import (
    NO_DEFAULT,
    Lines,
    check_positive,
    gateway_option,
    guarded,
    options_of,
    result_option,
    write,
)

if TYPE_CHECKING:
    from fuhu_runway.testing.simulator import Simulator

ADDRESS_KEYS: Final = {
    "base_url": "Where the API is; what FUHU_BASE_URL has to be.",
    "cdn_url": "Where the files are: another origin.",
    "control_url": "Where the control API is.",
    "api_key": "The first key; what FUHU_API_KEY has to be.",
}
TABLES: Final = {"A simulator in JSON": ADDRESS_KEYS}
"""What the reference page says about what is printed here."""

AT_LEAST_ZERO: Final = (
    *("takes", "points", "price", "retry_after"),
    *(f"callback_{name}" for name in ("delay", "again_after", "retry_after", "stutter")),
)
RANGES: Final = {
    "callback_times": (1, 10),
    "callback_tries": (1, 10),
    "expired_status": (400, 599),
    "weather": (0, 1),
}
SEE_HELP: Final = "See fuhu-runway simulate --help."

_money: Final = options_of(Group("Keys, points and limits", sort_key=4))
_answer: Final = options_of(Group("Answers", sort_key=5))
_file: Final = options_of(Group("Files and callbacks", sort_key=6))


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Place:
    """Where it is, and for how long."""

    host: Annotated[str, gateway_option("127.0.0.1, ::1 or localhost.")] = "127.0.0.1"
    port: Annotated[int, gateway_option("Where it listens; 0 takes a free one.")] = 0
    cdn_port: Annotated[int, gateway_option("Where its files are; 0 takes a free one.")] = 0
    state_file: Annotated[
        Path | None,
        gateway_option("Where its tasks are kept, for the next simulator with this file."),
    ] = None


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Ways:
    """How it behaves; None is the simulator's own default."""

    speed: Annotated[
        float, gateway_option("Simulated seconds per second: a job takes 100 of them.")
    ] = 1.0
    takes: Annotated[float, gateway_option("How long a job takes, in simulated seconds.")] = 100.0
    seed: Annotated[int, gateway_option("The same one gives the same task ids.")] = 0

    points: Annotated[
        float | None,
        _money(
            "What the first key may spend; --no-points is without limit.",
            negative=None,
            negative_none="no-",
        ),
    ] = 100_000.0
    price: Annotated[
        float | None, _money("Points per job; by default 32 for each second of the clip.")
    ] = None
    quota_status: Annotated[
        Literal[401, 403], _money("What a key with too few points is answered.")
    ] = 403
    rate_limit: Annotated[
        float | None, _money("Requests per second, for each key; by default there is no limit.")
    ] = None
    burst: Annotated[int, _money("How many requests that limit lets pass at once.")] = 1
    retry_after: Annotated[float | None, _money("The Retry-After of the others, in seconds.")] = (
        None
    )

    dialect: Annotated[
        str,
        _answer(
            "How it answers: envelope as FuhuAPI does, new_api, mixed, or odd as php_warning does."
        ),
    ] = "envelope"
    official_dialect: Annotated[str, _answer("How it answers on the official routes.")] = "official"
    prefix: Annotated[str, _answer("One more path prefix.")] = "/runway"
    feed_verb: Annotated[Literal["POST", "GET", "any"], _answer("How the feed is asked.")] = "POST"
    key_style: Annotated[
        Literal["bearer", "raw", "body", "any"], _answer("Where the key has to be.")
    ] = "bearer"
    strict: Annotated[
        bool,
        _answer("Refuse a request without callback_url, as most gateways do.", negative=None),
    ] = True
    requires_version: Annotated[
        bool,
        _answer("Refuse an official request without X-Runway-Version.", **NO_DEFAULT),
    ] = False
    weather: Annotated[
        float, _answer("The share of requests, from 0 to 1, to which harmless trouble happens.")
    ] = 0.0

    media: Annotated[
        Literal["cdn", "api", "redirect", "relative"],
        _file("Where video URLs lead: to another origin, or to the API's, which may lead on."),
    ] = "cdn"
    exact_links: Annotated[
        bool, _file("Answer to the exact bytes of a URL only.", **NO_DEFAULT)
    ] = False
    video: Annotated[Path | None, _file("The file of every job, in place of its own clip.")] = None
    link_lifetime: Annotated[
        float | None, _file("For how many simulated seconds a URL works; by default for ever.")
    ] = None
    expired_status: Annotated[int, _file("What a dead URL answers.")] = 403
    callbacks: Annotated[
        bool, _file("Tell the callback_url of each job, on this machine only.", negative=None)
    ] = True
    callback_times: Annotated[int, _file("How often each callback is delivered.")] = 1
    callback_delay: Annotated[
        float, _file("How long after the change it is sent, in simulated seconds.")
    ] = 0.0
    callback_progress: Annotated[
        bool, _file("Whether every change is sent, or the end alone.", negative=None)
    ] = True
    callback_disorder: Annotated[
        bool, _file("Let the last two of a job come the wrong way round.", negative=None)
    ] = False
    callback_garbage: Annotated[
        bool, _file("Post a page that is no JSON before each one.", negative=None)
    ] = False
    callback_again_after: Annotated[
        float | None,
        _file("After how many simulated seconds all of a job are sent again; by default never."),
    ] = None
    callback_tries: Annotated[
        int, _file("How often one is tried that is not answered with a 2xx.")
    ] = 1
    callback_retry_after: Annotated[
        float, _file("How long is waited between two tries, in simulated seconds.")
    ] = 60.0
    callback_stutter: Annotated[
        float, _file("How long a body pauses half-way, in simulated seconds.")
    ] = 0.0


_PLACE: Final = Place()
_WAYS: Final = Ways()


def simulate(
    *,
    place: Place = _PLACE,
    ways: Ways = _WAYS,
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
    work = partial(_serve, place, ways, screen, as_json=as_json, with_stdin=until_stdin_closes)
    return guarded(work, screen, verbosity=0)


async def _serve(
    place: Place, ways: Ways, screen: Lines, *, as_json: bool, with_stdin: bool
) -> None:
    """Run the simulator until it is stopped."""
    gateway = _gateway(place, ways)
    await _start(gateway, place)
    try:
        _tell_address(gateway, as_json=as_json)
        screen.say("simulated: a gateway on this machine, until Ctrl-C")
        ended = asyncio.Event()
        if with_stdin:
            _set_at_end_of_stdin(ended)
        with contextlib.suppress(asyncio.CancelledError):
            await ended.wait()
    finally:
        await gateway.aclose()


def _check(place: Place, ways: Ways) -> None:
    """Raise unless the address is this machine's and every number is possible."""
    from fuhu_runway.testing._loopback import is_loopback  # noqa: PLC0415  (aiohttp, which --help can do without)

    if not is_loopback(place.host):
        raise usage_error("host", "--host is not this machine.", "Use localhost, or leave it out.")
    for port in (place.port, place.cdn_port):
        if not 0 <= port <= 65535:
            raise _port_error(port, "ports go from 0 to 65535")
    for name in ("speed", "rate_limit", "burst", "link_lifetime"):
        if (value := getattr(ways, name)) is not None:
            check_positive(name.replace("_", "-"), value)
    for name in AT_LEAST_ZERO:
        if (value := getattr(ways, name)) is not None and not 0 <= value < math.inf:
            told = f"--{name.replace('_', '-')} is {value:g}."
            raise usage_error(name, told, "Use 0 or a number above it.")
    for name, (least, most) in RANGES.items():
        if not least <= getattr(ways, name) <= most:
            told = f"--{name.replace('_', '-')} is {getattr(ways, name)}."
            raise usage_error(name, told, f"Use a number from {least} to {most}.")


def _gateway(place: Place, ways: Ways) -> "Simulator":
    from fuhu_runway.testing._server.callbacks import Callbacks  # noqa: PLC0415  (as above)
    from fuhu_runway.testing.faults import TooManyRequests  # noqa: PLC0415  (as above)
    from fuhu_runway.testing.simulator import Simulator  # noqa: PLC0415  (as above)

    _check(place, ways)
    chosen = attrs.asdict(ways)
    callbacks = {
        field.name: chosen.pop(f"callback_{field.name}") for field in attrs.fields(Callbacks)
    }
    chosen["callbacks"] = Callbacks(**callbacks) if ways.callbacks else None
    retry_after = chosen.pop("retry_after")
    chosen["video"] = None if ways.video is None else _read_video(ways.video)
    if chosen["price"] is None:
        del chosen["price"]
    try:
        chosen["rate_limit_answer"] = TooManyRequests(retry_after)
        return Simulator(**attrs.asdict(place), **chosen, control=True)
    except ValueError as unfit:
        raise usage_error("simulate", f"{unfit}.", SEE_HELP) from unfit
    except OSError as unreadable:
        raise _state_error(unreadable) from unreadable


def _read_video(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as unreadable:
        told = f"The video cannot be read ({unreadable.strerror})."
        raise usage_error("video", told, "Give another, or leave it out.") from unreadable


async def _start(gateway: "Simulator", place: Place) -> None:
    try:
        await gateway.start()
    except OSError as unusable:
        if unusable.filename is not None:
            raise _state_error(unusable) from unusable
        # It may be either, and the system's words name the one.
        second = place.cdn_port > 0 and f", {place.cdn_port}" in str(unusable)
        port = place.cdn_port if second else place.port
        raise _port_error(port, unusable.strerror or "no reason was told") from unusable
    except RuntimeError as taken:
        told = "The state file is in use, or changed since it was read."
        raise usage_error("state_file", told, "End the other simulator first.") from taken


def _port_error(port: int, reason: str) -> UsageError:
    return usage_error(
        "port", f"Port {port} cannot be opened ({reason}).", "Choose another, or leave it out."
    )


def _state_error(error: OSError) -> UsageError:
    told = f"The state file cannot be used ({error.strerror})."
    return usage_error("state_file", told, "Give another, or leave it out.")


def _tell_address(gateway: "Simulator", *, as_json: bool) -> None:
    if as_json:
        write(sys.stdout, json.dumps({key: getattr(gateway, key) for key in ADDRESS_KEYS}))
        return
    variables = {**gateway.environment(), "FUHU_CONTROL_URL": gateway.control_url}
    for name, value in variables.items():
        write(sys.stdout, f"export {name}={shlex.quote(value)}")


def _set_at_end_of_stdin(ended: asyncio.Event) -> None:
    """Watch stdin from a thread: it may be a pipe, a terminal or a file, on any system."""
    loop = asyncio.get_running_loop()

    def watch() -> None:
        with contextlib.suppress(OSError):  # it was never open
            while os.read(0, 1024):
                pass
        with contextlib.suppress(RuntimeError):  # the end came another way, and the loop is gone
            loop.call_soon_threadsafe(ended.set)

    # Not awaited: it may hang on a stdin that stays open.
    threading.Thread(target=watch, daemon=True).start()
