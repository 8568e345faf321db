"""
Does everything fit? The key, the address and the gateway, examined without spending anything.

Rule 1: `examine` sends only what is free: polls of a task that cannot exist, and balance requests.
Rule 2: no finding contains the key, an id or an IP address, so a report may be shown to anyone.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs

from ._arguments import KEY_VARIABLE, check, resolved
from ._clock import LoopClock
from ._doctor.examination import Examination
from ._doctor.findings import CHECKS, Finding, Notes, Report, Verdict
from ._doctor.keys import examined_key
from ._doctor.transcript import Transcript, check_free
from ._http.limiter import RateLimiter
from ._http.transport import Transport
from .errors import UsageError, without_frames
from .hooks import Hooks
from .models import DEFAULT_WAIT, Gateway, Generation, Limits, RetryPolicy, TextToVideo, Timeouts
from .paths import check_target

if TYPE_CHECKING:
    from ._wire.encode import Reply
    from .client import Client
    from .task import Task

__all__ = [
    "CHEAPEST",
    "CHECKS",
    "Finding",
    "FirstClip",
    "Report",
    "Transcript",
    "Verdict",
    "check_free",
    "examine",
    "first_clip",
]

CHEAPEST: Final = TextToVideo("A paper boat on a calm lake", seconds=5)
"""The request of `first_clip`: the shortest clip that all known models make."""

TIMEOUTS: Final = Timeouts(connect=10.0, read=20.0)
"""Of `examine`: a poll has its reply in a second or two."""


@attrs.frozen
class FirstClip:
    """What `first_clip` made, and what that took."""

    task_id: str
    #: From the submit to the clip's URL, in seconds.
    seconds: float
    #: How often the task was polled.
    polls: int
    #: What it cost, in the gateway's unit; None if the gateway does not say.
    points: float | None
    #: The size of the file. Its first bytes are those of an MP4.
    file_bytes: int
    #: Where the clip was, without its URL.
    host: str
    #: Where it is saved; None if it was only checked.
    path: Path | None


@without_frames
async def examine(
    api_key: str | None = None,
    *,
    base_url: str | None = None,
    gateway: Gateway | str | None = None,
    timeouts: Timeouts | None = None,
    transcript: Transcript | None = None,
) -> Report:
    """
    Check whether the key, the address and the gateway fit together, and return what was found.

    Free: it polls a task that cannot exist and requests the balance, each once, without retries.
    If FUHU_ACCESS_TOKEN and FUHU_USER_ID are set, it also requests an empty list of tasks.
    If the configured prefix, verb or place of the key does not work, it tries the known others at
    the same host. A wrong argument is a finding, not an exception.

    Args:
        api_key: As in `Client`.
        base_url: As in `Client`.
        gateway: As in `Client`.
        timeouts: How long one exchange may take.
        transcript: Records the replies.

    Raises:
        UsageError: An argument is of the wrong type.
    """
    check(api_key=api_key, base_url=base_url, gateway=gateway, timeouts=timeouts)
    given = os.environ.get(KEY_VARIABLE) if api_key is None else api_key
    key, finding = examined_key(given)
    notes = Notes()
    notes.add(finding)
    try:
        configured = resolved(gateway, base_url)
    except UsageError as error:
        notes.misfit("address", error.happened, error.advice)
        return notes.report(None)
    clock, hooks = LoopClock(), Hooks()
    transport = Transport(
        session=None,
        timeouts=timeouts or TIMEOUTS,
        retry=RetryPolicy(),
        limiter=RateLimiter(Limits(), clock, hooks),
        hooks=hooks,
        clock=clock,
    )
    if transcript is not None:
        transport.observer = transcript.add
    try:
        examination = Examination(transport, configured, key, timeouts or TIMEOUTS, notes)
        return notes.report(await examination.run())
    finally:
        await transport.aclose()


@without_frames
async def first_clip(
    client: "Client",
    request: Generation = CHEAPEST,
    *,
    path: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    timeout: float | None = DEFAULT_WAIT,
    transcript: Transcript | None = None,
    on_accepted: Callable[["Task"], object] | None = None,
) -> FirstClip:
    """
    Make one clip as any other, with the client's journal if it has one, and return what it took.

    Spends points, as `Client.submit` does: by default for a clip of five seconds.

    Args:
        client: The client to use.
        request: What to make.
        path: Where to save the clip, checked before anything is sent. None downloads and checks
            the clip, and keeps no file; the client can still fetch it by its id.
        overwrite: Whether an existing file may be replaced.
        timeout: How long to wait, in seconds; None waits without limit.
        transcript: Records the replies.
        on_accepted: Called with the task as soon as the gateway has accepted it.

    Raises:
        UsageError: Nothing can be saved at *path*; nothing was sent.
        RunwayError: Everything that `Client.submit`, `Task.wait` and `Clip.download` raise.
    """
    if path is not None:
        check_target(Path(path), overwrite=overwrite)
    with _observed(client, transcript) as replies:
        clock = LoopClock()
        submitted_at = clock.now()
        task = await client.submit(request)
        if on_accepted is not None:
            on_accepted(task)
        clip = await task.wait(timeout=timeout)
        seconds = clock.now() - submitted_at
        if path is None:
            saved, size = None, len(await clip.read())
        else:
            saved = await clip.download(path, overwrite=overwrite)
            size = saved.stat().st_size
        return FirstClip(
            task_id=clip.id,
            seconds=seconds,
            polls=sum(reply.request.task_id == clip.id for reply in replies),
            points=clip.record.points,
            file_bytes=size,
            host=_host_kind(clip.video_url, client.gateway),
            path=saved,
        )


@contextmanager
def _observed(client: "Client", transcript: Transcript | None) -> Iterator[list["Reply"]]:
    """Collect the replies to *client* in the running loop, also for the transcript."""
    replies: list[Reply] = []
    # What is observed are bytes that no public name may show.
    transport = client._sessions.current().transport  # noqa: SLF001
    transport.observer = replies.append
    try:
        yield replies
    finally:
        transport.observer = None
        if transcript is not None:
            for reply in replies:
                transcript.add(reply)


def _host_kind(url: str, gateway: Gateway) -> str:
    """Return where a clip is, without its URL, which is like a key to it."""
    parts = urlsplit(url)
    is_own = parts.netloc == urlsplit(str(gateway.base_url)).netloc
    host = "the gateway's own host" if is_own else "another host than the gateway's"
    return f"{parts.scheme}, {host}, {'signed' if parts.query else 'not signed'}"
