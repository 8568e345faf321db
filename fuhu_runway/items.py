"""What goes into a batch, and what comes out: `Item`, `Outcome` and `Summary`."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from . import errors
from ._fields import check_text
from .errors import RunwayError
from .journal import BaseJournal, Job, Plan, planned
from .models import REQUESTS, Generation, TextToVideo, require_request, usage_error
from .task import Clip


@attrs.frozen
class Item:
    """
    One job of a batch.

    Raises:
        UsageError: *request* is not a request, or *custom_id* is not text that can be stored.
    """

    request: Generation = attrs.field()
    #: Your own name for it; unique within the batch.
    custom_id: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(check_text)
    )
    #: File and line that it was read from, such as "p.txt:17", to find it by.
    source: str | None = attrs.field(
        default=None, eq=False, validator=attrs.validators.optional(check_text)
    )
    #: The key of its row, if it has no `custom_id` and is planned in the journal already: for a
    #: queue that gives each job its key when it is enqueued.
    key: str | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(check_text)
    )

    @request.validator
    def _is_request(self, _: object, request: object) -> None:
        require_request(request)


@attrs.frozen
class Outcome:
    """How one job of a batch ended."""

    #: Its position in the input, from 0.
    index: int
    request: Generation
    custom_id: str | None = None
    task_id: str | None = None
    #: The clip; None if there is no clip, or its file was there already.
    clip: Clip | None = None
    #: The file, if clips are saved in a folder.
    path: Path | None = None
    #: Why there is no clip, or no file.
    error: RunwayError | None = None
    #: Points used, in the gateway's unit; None if the gateway did not say.
    points: float | None = None
    #: Whether the points were refunded.
    refunded: bool = False
    #: Whether an earlier run submitted it.
    resumed: bool = False
    #: The key of its row in the journal; None without a journal.
    key: str | None = None
    #: The URL of the object, such as "s3://bucket/clips/1.mp4", if clips are saved in a store.
    object_url: str | None = None

    @property
    def is_in_doubt(self) -> bool:
        """Whether it is unknown if the job was accepted and charged."""
        return isinstance(self.error, errors.SubmissionInDoubt)


@attrs.define
class Summary:
    """Counts of a batch so far."""

    submitted: int = 0
    running: int = 0
    clips: int = 0
    resumed: int = 0
    in_doubt: int = 0
    #: How often each error ended a job, by its name.
    failures: dict[str, int] = attrs.field(factory=dict)
    #: Points that were used and not refunded.
    points: float = 0.0
    refunded_points: float = 0.0
    #: Why the batch stopped submitting early: the name of an error, or `max_points`; None if it
    #: did not, or after `Batch.stop`.
    stopped_by: str | None = None

    @property
    def out_of_points(self) -> bool:
        """Whether the batch stopped because `max_points` was reached."""
        return self.stopped_by == "max_points"

    @property
    def failed(self) -> int:
        """How many jobs ended without a clip."""
        return sum(self.failures.values())

    @property
    def done(self) -> int:
        """How many jobs have ended."""
        return self.clips + self.failed + self.in_doubt

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        self.resumed += outcome.resumed
        spent = outcome.points or 0.0
        if outcome.refunded:
            self.refunded_points += spent
        elif not outcome.resumed:
            self.points += spent
        if outcome.error is None:
            self.clips += 1
        elif outcome.is_in_doubt:
            self.in_doubt += 1
        else:
            name = type(outcome.error).__name__
            self.failures[name] = self.failures.get(name, 0) + 1


Source = Iterable[str | Generation | Item] | AsyncIterable[str | Generation | Item]
"""Where the jobs of a batch come from: prompts, requests and items, in any mixture."""


def check_source(source: object) -> None:
    """
    Raise unless this is a source of jobs.

    Raises:
        UsageError: It is a single prompt, request or item, or no iterable.
    """
    # Some of these can be iterated over, and would yield letters, keys or fields.
    one_thing = (str, bytes, bytearray, Mapping, Item, *REQUESTS)
    if isinstance(source, one_thing) or not isinstance(source, Iterable | AsyncIterable):
        raise usage_error(
            "prompts",
            f"prompts is of type {type(source).__name__}.",
            "Use a list, or another iterable, of prompts, requests or Items.",
        )


def item_of(thing: Any, index: int | None = None) -> Item:
    """
    Return the item for a prompt, a request or an item, the entry at *index* if there are several.

    Raises:
        UsageError: It is something else, or a prompt that cannot be used.
    """
    if isinstance(thing, Item):
        return thing
    if isinstance(thing, REQUESTS):
        return Item(thing)
    entry = "The job" if index is None else f"Entry {index + 1}"
    if not isinstance(thing, str):
        raise usage_error(
            "prompts",
            f"{entry} is of type {type(thing).__name__}.",
            "Give prompts (str), requests such as TextToVideo, or Items.",
        )
    try:
        return Item(TextToVideo(thing))
    except errors.UsageError as bad:
        raise attrs.evolve(bad, happened=f"{entry}: {bad.happened}") from bad


async def numbered(source: Source) -> AsyncGenerator[tuple[int, Any], None]:
    """Read either kind of source, one entry at a time, each with its position."""
    index = 0
    if isinstance(source, AsyncIterable):
        async for thing in source:
            yield index, thing
            index += 1
    else:
        for index, thing in enumerate(source):
            yield index, thing


async def plan_for(item: Item) -> Plan:
    """Return the plan of an item; its local files, if it has any, are read in a thread."""
    key = item.key if item.custom_id is None else f"id:{item.custom_id}"
    return await planned(item.request, key, item.custom_id)


async def job_of(journal: BaseJournal, plan: Plan, now: float) -> Job:
    """
    Return the row of an item's job, created if there is none.

    If unnamed, the next row with its content.
    """
    return await (journal.plan_next if plan.key == plan.fingerprint else journal.plan)(plan, now)
