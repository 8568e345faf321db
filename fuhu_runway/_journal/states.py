"""What a journal knows about a job: its state, the legal steps, its plan and its row."""

import enum
from collections.abc import Mapping
from typing import Any, Final

import attrs

from fuhu_runway._json import json_fields


class JobState(enum.Enum):
    """How far a job has got; the database holds the values."""

    PLANNED = "planned"
    """Nothing was sent, or the request was provably not accepted."""
    SUBMITTING = "submitting"
    """About to be sent, or sent without a response so far."""
    ACCEPTED = "accepted"
    """Paid for; the gateway returned its id."""
    FINISHED = "finished"
    """The clip exists at the gateway."""
    SAVED = "saved"
    """The clip is on disk."""
    FAILED = "failed"
    """There will be no clip: the task failed, or the gateway rejected the request."""
    IN_DOUBT = "in doubt"
    """Sent, and its fate is unknown."""

    @property
    def is_unanswered(self) -> bool:
        """Whether it was sent, or is about to be, and no clear response has come."""
        return self in {JobState.SUBMITTING, JobState.IN_DOUBT}

    @property
    def is_answered(self) -> bool:
        """Whether the gateway accepted or rejected it, and no other attempt was requested."""
        return not self.is_unanswered and self is not JobState.PLANNED

    @property
    def is_unfinished(self) -> bool:
        """Whether it is paid for, and its clip is not saved."""
        return self in {JobState.ACCEPTED, JobState.FINISHED}

    @property
    def is_at_risk(self) -> bool:
        """Whether it may be paid for, and its clip is not saved."""
        return self.is_unanswered or self.is_unfinished

    @property
    def is_in_flight(self) -> bool:
        """Whether it counts as an unfinished task of the key."""
        return self in {JobState.SUBMITTING, JobState.ACCEPTED}

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens to it unless a person or a later run requests it."""
        return self in {JobState.SAVED, JobState.FAILED, JobState.IN_DOUBT}


STEPS: Final[Mapping[JobState, Mapping[JobState, str]]] = {
    JobState.PLANNED: {
        JobState.SUBMITTING: "The request is about to be sent.",
    },
    JobState.SUBMITTING: {
        JobState.ACCEPTED: "The gateway returned an id.",
        JobState.PLANNED: "It provably did not arrive, or was refused for now.",
        JobState.FAILED: "The gateway rejected it; nothing was charged.",
        JobState.IN_DOUBT: "No clear response came or was recorded, or the process ended before.",
    },
    JobState.ACCEPTED: {
        JobState.FINISHED: "The feed shows the clip.",
        JobState.FAILED: "The feed says that the task failed or was cancelled.",
    },
    JobState.FINISHED: {
        JobState.SAVED: "The file is complete and verified.",
    },
    JobState.SAVED: {
        JobState.FINISHED: "The file is gone, and the clip is saved again.",
    },
    JobState.FAILED: {
        JobState.PLANNED: "Another attempt was requested.",
    },
    JobState.IN_DOUBT: {
        JobState.ACCEPTED: "A person or a webhook named the task, or the gateway lists it.",
        JobState.PLANNED: "A person, or the gateway's own lists, proved that it was not accepted.",
    },
}
"""From each state, the states that may follow, and the reason for each step."""

INSTANT_OF: Final = {
    JobState.PLANNED: "planned_at",
    JobState.SUBMITTING: "submitted_at",
    JobState.ACCEPTED: "accepted_at",
    JobState.FINISHED: "finished_at",
    JobState.SAVED: "saved_at",
}


CHARGE: Final = "charge"
"""The `proof` of a job in doubt that was charged, as the gateway's log or its response shows."""


@attrs.frozen(kw_only=True)
class Plan:
    """A request, as far as the journal knows it."""

    key: str
    fingerprint: str
    endpoint: str
    custom_id: str | None = None
    model: str | None = None
    #: Length of the clip, in seconds.
    seconds: int | None = None
    #: What the caller attached to the job.
    tag: str | None = None
    #: File and line that it was read from, such as "p.txt:17".
    source: str | None = None
    #: SHA-256 of the prompt; the journal keys it with its salt before writing it.
    prompt_hash: str | None = None


@attrs.frozen(kw_only=True)
class Job:
    """One row of the journal."""

    key: str
    state: JobState
    endpoint: str
    fingerprint: str
    custom_id: str | None = None
    model: str | None = None
    seconds: int | None = None
    task_id: str | None = None
    submissions: int = 0
    error: str | None = None
    code: str | None = None
    points: float | None = None
    refunded: bool = attrs.field(default=False, converter=bool)
    file_bytes: int | None = None
    planned_at: float = 0.0
    submitted_at: float | None = None
    accepted_at: float | None = None
    finished_at: float | None = None
    saved_at: float | None = None
    traceparent: str | None = None
    tag: str | None = None
    handed_out_at: float | None = None
    #: File and line of the request, such as "p.txt:17"; None if it was not read from a file.
    source: str | None = None
    #: Keyed hash of the prompt, as `hash_prompts` returns it; None without a prompt.
    prompt_hash: str | None = None
    #: What settled the last doubt, such as "person"; None if nothing did. For a job in doubt,
    #: "charge" if the gateway's log, or its response, shows that it was charged.
    proof: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the row as JSON has it; it has no prompt, URL or key. Times are Unix times."""
        return json_fields(self)
