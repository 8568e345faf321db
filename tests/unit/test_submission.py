"""One submission: its events, and its row in the journal."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from support.clients import Ear
from support.clock import ManualClock

from fuhu_runway import errors
from fuhu_runway._session.submission import Submission
from fuhu_runway._wire.encode import build
from fuhu_runway._wire.tables import GATEWAYS
from fuhu_runway.callbacks import Address
from fuhu_runway.errors import Fate
from fuhu_runway.hooks import (
    Hooks,
    SubmissionDoubted,
    SubmissionFailed,
    SubmissionHeld,
    SubmissionSent,
    SubmissionStarted,
    SubmissionUnclaimed,
    TaskSubmitted,
)
from fuhu_runway.journal import Entry, JobState, Journal, plan_of
from fuhu_runway.models import ActOne, TaskRecord, TaskState, TextToVideo

REQUEST: Final = TextToVideo("a kitten", seconds=5)
ACCEPTED: Final = TaskRecord("t-1", TaskState.QUEUED)
TEXTS: Final = ("It happened.", "Nothing was charged.", "Do.")


@pytest.fixture
def ear() -> Ear:
    """Return a listener that remembers."""
    return Ear()


@pytest.fixture
def submission(ear: Ear, clock: ManualClock) -> Submission:
    """Return a submission of client 3."""
    sessions = SimpleNamespace(
        hooks=Hooks([ear]),
        settings=SimpleNamespace(client=3, clock=clock),
        keep=lambda _task: None,
    )
    session = SimpleNamespace(transport=SimpleNamespace())
    wire = build(REQUEST, GATEWAYS["fuhuapi"], "sk-1", None)
    return Submission(sessions, session, REQUEST, wire, None, None, None)  # type: ignore[arg-type]


async def sending(submission: Submission, exchange: Callable[[], Any]) -> TaskRecord:
    """Send once, over a transport that does *exchange*."""
    submission.session.transport.in_turn = lambda *_: exchange()  # type: ignore[method-assign]
    return await submission._send(0.0)


async def accepting() -> TaskRecord:
    """Answer with an id."""
    return ACCEPTED


def ending_in(error: BaseException) -> Callable[[], Any]:
    """Return an exchange that ends in *error*."""

    async def exchange() -> TaskRecord:
        raise error

    return exchange


async def test_the_whole_way_is_told(submission: Submission, ear: Ear, clock: ManualClock) -> None:
    """Beginning, waiting, two sendings and the task: all with one number, timed from the first."""
    number = submission.number
    with submission:
        submission.held(40)
        for _ in range(2):
            await sending(submission, accepting)
            await clock.advance(2.0)
        submission.accept(ACCEPTED)
    assert ear.heard == [
        SubmissionStarted(number, 3, "text_to_video", "gen4", 5),
        SubmissionHeld(number, 40),
        SubmissionSent(number, 1),
        SubmissionSent(number, 2),
        TaskSubmitted("t-1", "text_to_video", 4.0, number),
    ]


def test_what_a_request_does_not_have_is_not_told(submission: Submission, ear: Ear) -> None:
    """Not every kind of request has a model and a length."""
    submission.request = ActOne("https://example.com/1.mp4", "https://example.com/1.png")
    with submission:
        pass
    [told] = ear.all(SubmissionStarted)
    assert told.model is told.clip_seconds is None


def in_doubt() -> errors.SubmissionInDoubt:
    """Return the error for a connection that broke."""
    error = errors.SubmissionInDoubt(*TEXTS)
    error.__cause__ = errors.NoReply(*TEXTS)
    return error


@pytest.mark.parametrize(
    ("error", "attempts", "fate"),
    [
        (errors.NotSent(*TEXTS, None, None, Fate.UNSENT), 1, Fate.UNSENT),
        (
            errors.RateLimited(*TEXTS, None, None, 429, None, None, None, Fate.REFUSED),
            4,
            Fate.REFUSED,
        ),
        (errors.InvalidRequest(*TEXTS), 1, Fate.REJECTED),
        (errors.JournalError(*TEXTS), 0, Fate.UNSENT),
        (errors.UsageError(*TEXTS), 1, Fate.UNSENT),
        (asyncio.CancelledError(), 1, Fate.UNSENT),
        (ZeroDivisionError(), 0, Fate.UNSENT),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_a_failure_is_told_by_its_name(
    submission: Submission, ear: Ear, error: BaseException, attempts: int, fate: Fate
) -> None:
    """What ended without a task, and surely without a charge, is reported and raised."""
    submission.attempts = attempts
    with pytest.raises(type(error)), submission:
        raise error
    name = type(error).__name__
    assert ear.heard[1:] == [SubmissionFailed(submission.number, "text_to_video", name, fate)]


@pytest.mark.parametrize(
    ("error", "name"), [(in_doubt(), "NoReply"), (ZeroDivisionError(), "ZeroDivisionError")]
)
def test_a_doubt_is_told_by_what_was_seen(
    submission: Submission, ear: Ear, error: Exception, name: str
) -> None:
    """Whatever leaves it open whether money was spent is a doubt, a defect after a sending too."""
    submission.attempts = 1
    with pytest.raises(type(error)), submission:
        raise error
    assert ear.heard[1:] == [SubmissionDoubted(submission.number, "text_to_video", name, None)]


NAMED: Final = errors.UnreadableReply(*TEXTS, "t-1", fate=Fate.UNKNOWN)
"""What a damaged answer raises in which the id can still be read."""


def named_in_doubt() -> errors.SubmissionInDoubt:
    """Return the error that the caller gets for it."""
    error = errors.SubmissionInDoubt(*TEXTS, "t-1")
    error.__cause__ = NAMED
    return error


async def test_a_doubt_names_the_task_that_its_answer_named(
    submission: Submission, ear: Ear, clock: ManualClock, tmp_path: Path
) -> None:
    """The id is in the event and in the row, and its address is in doubt all the same."""
    journal = Journal(tmp_path / "run.db")
    await journal.plan(plan_of(REQUEST, "k"), clock.wall())
    submission.entry = Entry(journal, "k", clock)
    submission.address = Address(b"nonce", request=REQUEST)
    with pytest.raises(errors.UnreadableReply):
        await sending(submission, ending_in(NAMED))
    with pytest.raises(errors.SubmissionInDoubt), submission:
        raise named_in_doubt() from NAMED
    (job,) = await journal.jobs()
    await journal.aclose()
    assert (job.state, job.error, job.task_id) == (JobState.IN_DOUBT, "UnreadableReply", "t-1")
    assert submission.address.is_in_doubt
    assert submission.address.task_id is None
    assert ear.all(SubmissionDoubted) == [
        SubmissionDoubted(submission.number, "text_to_video", "UnreadableReply", "t-1")
    ]


async def test_whoever_leaves_a_doubt_leaves_its_task_in_the_events(
    submission: Submission, ear: Ear
) -> None:
    """Cancelled meanwhile, nobody gets the error, so the events name the task."""
    with pytest.raises(errors.UnreadableReply):
        await sending(submission, ending_in(NAMED))
    with pytest.raises(asyncio.CancelledError), submission:
        raise asyncio.CancelledError
    submission._report_unclaimed(submission.named_task, "SubmissionInDoubt")
    assert [event.task_id for event in ear.all(SubmissionDoubted)] == ["t-1"]
    assert [event.task_id for event in ear.all(SubmissionUnclaimed)] == ["t-1"]


@pytest.mark.parametrize("exchange", [accepting, ending_in(errors.NoReply(*TEXTS))])
async def test_the_task_of_an_earlier_sending_is_not_named(
    submission: Submission, ear: Ear, exchange: Callable[[], Any]
) -> None:
    """A refusal that names a task is no doubt, and a doubt names what its own answer named."""
    refused = errors.RateLimited(*TEXTS, "t-1", fate=Fate.REFUSED)
    for last in (ending_in(refused), exchange):
        with contextlib.suppress(errors.RunwayError):
            await sending(submission, last)
        assert submission.named_task is None


@pytest.mark.parametrize(
    ("error", "is_in_doubt"),
    [(errors.NoReply(*TEXTS), True), (errors.InvalidRequest(*TEXTS), False)],
)
async def test_its_address_knows_whether_a_task_may_come_of_it(
    submission: Submission, error: BaseException, is_in_doubt: bool
) -> None:
    """A webhook tells the task of a submission without an answer, and of no other."""
    submission.address = address = Address(b"nonce", request=REQUEST)
    with pytest.raises(type(error)):
        await sending(submission, ending_in(error))
    assert address.is_in_doubt is is_in_doubt
    await sending(submission, accepting)
    assert not address.is_in_doubt
    assert address.task_id == "t-1"
    assert address.request is None


def test_one_that_was_left_has_its_end_later(submission: Submission, ear: Ear) -> None:
    """Cancelled in flight, it is no failure: its outcome is reported when that is known."""
    submission.is_reported = True
    with pytest.raises(asyncio.CancelledError), submission:
        raise asyncio.CancelledError
    assert len(ear.heard) == 1
    submission._report_unclaimed(submission.named_task, "InvalidRequest")
    submission._report_unclaimed("t-1", None)
    assert ear.heard[1:] == [
        SubmissionUnclaimed("text_to_video", None, "InvalidRequest", submission.number),
        SubmissionUnclaimed("text_to_video", "t-1", None, submission.number),
    ]


def test_one_that_was_accepted_does_not_fail(submission: Submission, ear: Ear) -> None:
    """Whatever goes wrong after the id came, the reported end is the task."""
    submission.accept(ACCEPTED)
    with pytest.raises(ZeroDivisionError), submission:
        raise ZeroDivisionError
    assert [type(event) for event in ear.heard] == [TaskSubmitted, SubmissionStarted]


@pytest.mark.parametrize(
    ("exchange", "state"),
    [
        (accepting, JobState.ACCEPTED),
        (ending_in(errors.InvalidRequest(*TEXTS)), JobState.FAILED),
        (ending_in(errors.NoReply(*TEXTS)), JobState.IN_DOUBT),
    ],
)
async def test_a_sending_is_written_down_around(
    submission: Submission,
    clock: ManualClock,
    tmp_path: Path,
    exchange: Callable[[], Any],
    state: JobState,
) -> None:
    """Its row says that it is sent before it is, and what became of it afterwards."""
    journal = Journal(tmp_path / "run.db")
    await journal.plan(plan_of(REQUEST, "k"), clock.wall())
    submission.entry = Entry(journal, "k", clock)
    seen: list[JobState] = []

    async def looking() -> Any:
        seen.extend(job.state for job in await journal.jobs())
        return await exchange()

    try:
        await sending(submission, looking)
    except errors.RunwayError:
        assert state is not JobState.ACCEPTED
    seen += [job.state for job in await journal.jobs()]
    await journal.aclose()
    assert seen == [JobState.SUBMITTING, state]


async def test_a_sending_without_a_journal_fails_as_it_is(submission: Submission) -> None:
    """There is nothing to write down, and the error goes through."""
    with pytest.raises(errors.NoReply):
        await sending(submission, ending_in(errors.NoReply(*TEXTS)))


async def test_what_cannot_be_written_costs_no_task(
    submission: Submission, clock: ManualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An id that came is given, and the log names it, whatever the disk says to its row."""
    journal = Journal(tmp_path / "run.db")
    await journal.plan(plan_of(REQUEST, "k"), clock.wall())
    submission.entry = Entry(journal, "k", clock)

    async def forgetting() -> TaskRecord:
        await journal.forget("k")
        return await accepting()

    record = await sending(submission, forgetting)
    await journal.aclose()
    assert record.task_id == "t-1"
    [line] = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert "task t-1" in line.getMessage()


async def test_one_that_is_cut_off_may_have_been_accepted(submission: Submission) -> None:
    """A loop that ends while it is in flight leaves a doubt, to which a webhook may come."""
    submission.address = Address(b"nonce", request=REQUEST)
    with pytest.raises(asyncio.CancelledError):
        await sending(submission, ending_in(asyncio.CancelledError()))
    assert submission.is_in_doubt
    assert submission.address.is_in_doubt


async def test_one_that_is_left_in_doubt_is_told_as_one(submission: Submission, ear: Ear) -> None:
    """A caller that leaves while a webhook settles a doubt has not left before a sending."""
    with pytest.raises(errors.NoReply):
        await sending(submission, ending_in(errors.NoReply(*TEXTS)))
    with pytest.raises(asyncio.CancelledError), submission:
        raise asyncio.CancelledError
    assert ear.all(SubmissionFailed) == []
    assert len(ear.all(SubmissionDoubted)) == 1


@pytest.mark.parametrize(
    ("error", "is_kept"), [(errors.InvalidRequest(*TEXTS), False), (errors.NoReply(*TEXTS), True)]
)
async def test_what_was_asked_for_is_let_go_of(
    submission: Submission, error: BaseException, is_kept: bool
) -> None:
    """An address of nothing holds no prompt; one in doubt has to know what it may be about."""
    submission.address = Address(b"nonce", request=REQUEST)
    with pytest.raises(type(error)), submission:
        await sending(submission, ending_in(error))
    assert (submission.address.request is REQUEST) is is_kept
