"""
Compute how a simulated task changes over time, from the submit to its end.

Pure: functions of a script and an age in simulated seconds; nothing here reads a clock.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, Final, Literal

import attrs

from fuhu_runway.testing.faults import Planned

from .options import check

Ending = Literal["succeed", "fail", "cancel", "expire", "stall"]
Stage = Literal["submitted", "queued", "running", "succeeded", "failed", "cancelled", "expired"]

ENDINGS: Final[dict[Ending, Stage]] = {
    "succeed": "succeeded",
    "fail": "failed",
    "cancel": "cancelled",
    "expire": "expired",
}
OWN: Final = ("submit", "feed", "download")
UNLUCKY: Final[frozenset[Stage]] = frozenset({"failed", "cancelled", "expired"})
OVER: Final[frozenset[Stage]] = UNLUCKY | {"succeeded"}


def _several(given: Any) -> tuple[Any, ...]:
    return tuple(given) if isinstance(given, Iterable) else (given,)


@attrs.frozen(kw_only=True)
class Script:
    """What one task will do, with the arguments of `Simulator.script`."""

    takes: float = 100.0
    queued: float = 0.1
    progress: tuple[int, ...] = attrs.field(default=(0, 20, 40, 60, 80), converter=_several)
    then: Ending = "succeed"
    reason: str | None = "The input did not pass the content moderation"
    failure_code: str = "SAFETY.INPUT.TEXT"
    refund: bool = True
    end_status: str | None = None
    end_state: str | None = None
    dialect: str | None = None
    faults: tuple[Planned, ...] = attrs.field(default=(), converter=_several)
    hidden: float = 0.0
    blank: float = 0.0
    url_after: float | None = 0.0
    listed_after: float | None = 0.0

    def __attrs_post_init__(self) -> None:
        for one in self.faults:
            if not isinstance(one, Planned):
                raise TypeError(f'{one!r} has no place; say where: faults.on("feed", ...)')
            if one.where not in OWN:
                raise ValueError(f"a script has no {one.where!r}; its faults are on {OWN}")
        for field in attrs.fields(type(self)):
            check(self, field, getattr(self, field.name))

    def plain(self) -> dict[str, Any]:
        """Return the script without its faults, which another process does not continue."""
        return attrs.asdict(self, filter=attrs.filters.exclude("faults"))

    @property
    def ends_after(self) -> float | None:
        """Return the age at which the task is over; None for one that never is."""
        return None if self.then == "stall" else self.takes

    @property
    def refunds(self) -> bool:
        return self.refund and self.then in {"fail", "cancel", "expire"}


@attrs.frozen(kw_only=True)
class Moment:
    """One task at one instant: everything that a response in any dialect can contain."""

    task_id: str
    action: str
    prompt: str
    stage: Stage
    percent: int = 0
    points: float = 0.0
    refunded: bool = False
    reason: str | None = None
    failure_code: str = "SAFETY.INPUT.TEXT"
    #: The video in the request.
    input_url: str | None = None
    video_url: str | None = None
    poster_url: str | None = None
    last_frame_url: str | None = None
    #: Unix seconds; 0 if it has not happened.
    created_at: int = 0
    started_at: int = 0
    finished_at: int = 0
    updated_at: int = 0
    #: Words for its state instead of the dialect's own.
    status_word: str | None = None
    state_word: str | None = None
    #: Whether the response contains the id alone.
    blank: bool = False

    def with_urls(self, urls: tuple[str, str, str]) -> "Moment":
        video, poster, last_frame = urls
        return attrs.evolve(self, video_url=video, poster_url=poster, last_frame_url=last_frame)


def steps(script: Script) -> list[float]:
    """Return the ages at which the task starts to run and at which its percents change."""
    begins = script.takes * script.queued
    width = (script.takes - begins) / max(1, len(script.progress))
    return [begins + index * width for index in range(max(1, len(script.progress)))]


def changes(script: Script) -> list[float]:
    """Return every age at which a response changes, and a webhook is due."""
    ages = steps(script)
    if script.ends_after is not None:
        ages.append(script.takes)
        if script.url_after:
            ages.append(script.takes + script.url_after)
    return ages


def stage_at(script: Script, age: float) -> tuple[Stage, int]:
    if script.ends_after is not None and age >= script.ends_after:
        return ENDINGS[script.then], 100
    done = bisect_right(steps(script), age)
    if not done:
        return "queued", 0
    return "running", script.progress[done - 1] if script.progress else 0


def has_url(script: Script, age: float) -> bool:
    if script.then != "succeed" or script.url_after is None:
        return False
    return age >= script.takes + script.url_after
