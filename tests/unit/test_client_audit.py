"""The account's tasks that no journal has: found, taken in, and left out."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.clients import quick_client

from fuhu_runway import Account, Client, TextToVideo
from fuhu_runway._wire.tables import kind_of_action
from fuhu_runway.account import AccountTask, Audit
from fuhu_runway.errors import NotFound, SubmissionInDoubt, UsageError
from fuhu_runway.journal import JobState
from fuhu_runway.models import OfficialTextToVideo, TaskState
from fuhu_runway.testing import AccountLists, Simulator, faults

OTHER = "sk-of-another-program"


@pytest.fixture
async def shared() -> AsyncIterator[Simulator]:
    """Yield a gateway whose account has two keys, of which another program has one."""
    async with Simulator(speed=1000, takes=20, lists=AccountLists(refresh=0)) as gateway:
        gateway.add_key(OTHER, user_id=gateway.user_id)
        yield gateway


@pytest.fixture
async def client(shared: Simulator, tmp_path: Path) -> AsyncIterator[Client]:
    """Yield a client with the account's token and a journal."""
    async with quick_client(
        shared, journal=tmp_path / "run.db", account=account_of(shared)
    ) as client:
        yield client


def account_of(gateway: Simulator) -> Account:
    """Return the account of a gateway."""
    return Account(gateway.access_token, gateway.user_id)


async def elsewhere(gateway: Simulator, *prompts: str, key: str = OTHER) -> list[str]:
    """Submit from another program, and return the ids of the tasks, the newest first."""
    async with Client(key, base_url=gateway.base_url) as client:
        tasks = [await client.generate(prompt) for prompt in prompts]
        return [task.id for task in tasks][::-1]


def ids(tasks: tuple[AccountTask, ...]) -> list[str]:
    """Return the ids of tasks, in their order."""
    return [task.task_id for task in tasks]


async def test_an_audit_lists_what_the_journal_does_not_have(
    shared: Simulator, client: Client
) -> None:
    """Tasks of another program with time, kind, state and points; own tasks are left out."""
    await (await client.generate("a kitten")).wait()
    assert await client.audit() == Audit()
    others = await elsewhere(shared, "a puppy", "a kitten")
    found = await client.audit()
    assert (ids(found.tasks), found.unclear, found.is_complete) == (others, (), True)
    task = found.tasks[0]
    assert task.submitted_at is not None
    assert abs(task.submitted_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert (task.action, task.user_id) == ("TEXT_TO_VIDEO", "7")
    assert task.state in TaskState
    assert task.points is not None
    assert task.points > 0


async def test_tasks_of_another_user_are_no_concern(shared: Simulator, client: Client) -> None:
    """The list is that of the account's own user."""
    shared.add_key("sk-of-another-user")
    await elsewhere(shared, "a puppy", key="sk-of-another-user")
    assert await client.audit() == Audit()


async def test_a_task_is_adopted_and_saved_like_any_other(
    shared: Simulator, client: Client, tmp_path: Path
) -> None:
    """Its row is accepted, its clip is saved, and the next audit does not list it."""
    await elsewhere(shared, "a puppy")
    (task,) = (await client.audit()).tasks
    handle = await client.adopt(task)
    assert client.journal is not None
    (job,) = await client.journal.jobs()
    assert (job.key, job.state) == (f"task:{task.task_id}", JobState.ACCEPTED)
    assert (job.endpoint, job.task_id, job.model) == ("TextToVideo", handle.id, task.model)
    assert job.accepted_at == task.submitted_at.timestamp()  # type: ignore[union-attr]
    clip = await handle.wait()
    await clip.download(tmp_path / "puppy.mp4")
    await client.journal.flush()
    (job,) = await client.journal.jobs()
    assert job.state is JobState.SAVED
    assert await client.audit() == Audit()
    with pytest.raises(UsageError, match="another job"):
        await client.adopt(task)
    assert shared.submitted == 1


async def test_a_task_of_the_official_format_is_followed_there(
    shared: Simulator, client: Client
) -> None:
    """The list does not tell the formats apart: the feed that knows the task does."""
    async with Client(OTHER, base_url=shared.base_url) as other:
        await other.submit(OfficialTextToVideo("a puppy"))
    (task,) = (await client.audit()).tasks
    shared.fault("feed", faults.error(404, "task not found"), times=None)
    handle = await client.adopt(task)
    assert handle.official
    assert client.journal is not None
    (job,) = await client.journal.jobs()
    assert job.endpoint == "OfficialTextToVideo"


async def test_a_task_that_no_feed_knows_is_not_adopted(shared: Simulator, client: Client) -> None:
    """It may belong to another service of the gateway; the journal is as it was."""
    task = AccountTask("t-unknown", submitted_at=datetime.now(UTC), aliases=("t-either",))
    with pytest.raises(NotFound):
        await client.adopt(task)
    assert client.journal is not None
    assert await client.journal.jobs() == []
    assert len(shared.requests) == 4  # each id in each format


async def test_a_task_is_known_by_what_the_client_was_told(tmp_path: Path) -> None:
    """A list with ids of its own has the client's in the answer of the upstream."""
    async with Simulator(
        speed=1000, takes=20, lists=AccountLists(refresh=0, own_ids=True)
    ) as gateway:
        gateway.add_key(OTHER, user_id=gateway.user_id)
        account = account_of(gateway)
        async with quick_client(gateway, journal=tmp_path / "run.db", account=account) as client:
            await client.generate("a kitten")
            assert await client.audit() == Audit()
            (other,) = await elsewhere(gateway, "a puppy")
            (task,) = (await client.audit()).tasks
            assert task.task_id != other
            assert (await client.adopt(task)).id == other
            assert await client.audit() == Audit()
            assert client.journal is not None
            await client.journal.aclose()


async def test_what_is_ignored_is_not_listed_again(shared: Simulator, client: Client) -> None:
    """`journal.ignore` leaves tasks out that belong to something else."""
    newer, older = await elsewhere(shared, "a puppy", "a foal")
    assert client.journal is not None
    await client.journal.ignore(older)
    assert ids((await client.audit()).tasks) == [newer]


async def test_a_task_that_may_be_in_doubt_is_not_adopted(
    shared: Simulator, client: Client
) -> None:
    """With another owner, it would prove that the job was not accepted, and be paid for again."""
    shared.fault("submit", faults.drop_after_accepting())
    plain = quick_client(shared, journal=client.journal)
    with pytest.raises(SubmissionInDoubt):
        await plain.submit(TextToVideo("a kitten"))
    await plain.aclose()
    found = await client.audit()
    assert (found.tasks, len(found.unclear)) == ((), 1)
    with pytest.raises(UsageError, match="job in doubt") as caught:
        await client.adopt(found.unclear[0])
    assert "reconcile" in caught.value.advice
    undated = attrs.evolve(found.unclear[0], submitted_at=None, created_at=None)
    with pytest.raises(UsageError, match="job in doubt"):
        await client.adopt(undated)
    before = attrs.evolve(undated, created_at=datetime.now(UTC) - timedelta(hours=2))
    assert (await client.adopt(before)).id == before.task_id


async def test_an_undated_task_is_adopted_as_of_now(shared: Simulator, client: Client) -> None:
    """Without a doubt, a row without an instant is a task like any other."""
    await elsewhere(shared, "a puppy")
    (task,) = (await client.audit()).tasks
    await client.adopt(attrs.evolve(task, submitted_at=None, created_at=None))
    assert client.journal is not None
    (job,) = await client.journal.jobs()
    assert abs((job.accepted_at or 0) - datetime.now(UTC).timestamp()) < 300


async def test_an_audit_looks_back_a_week_or_as_far_as_asked(
    shared: Simulator, client: Client
) -> None:
    """The window is in the request; the gateway leaves out what is older."""
    await elsewhere(shared, "a puppy")
    later = datetime.now(UTC) + timedelta(seconds=30)
    assert await client.audit(since=later) == Audit()
    assert len((await client.audit(since=datetime(2020, 1, 1, tzinfo=UTC))).tasks) == 1


@pytest.mark.parametrize("since", ["2026-01-01", 1.0, datetime], ids=repr)
async def test_since_is_a_datetime(client: Client, since: Any) -> None:
    """Anything else is an error that names the argument."""
    with pytest.raises(UsageError) as caught:
        await client.audit(since=since)
    assert caught.value.field == "since"


@pytest.mark.parametrize("task", ["t-1", None], ids=repr)
async def test_only_a_task_of_an_audit_is_adopted(client: Client, task: Any) -> None:
    """An id alone says neither its time nor its kind."""
    with pytest.raises(UsageError) as caught:
        await client.adopt(task)
    assert caught.value.field == "task"


async def test_an_audit_needs_a_journal_and_an_account(shared: Simulator, tmp_path: Path) -> None:
    """Without one of them nothing is sent, and the error says how a client gets it."""
    async with quick_client(shared, account=account_of(shared)) as client:
        with pytest.raises(UsageError, match="no journal"):
            await client.audit()
        with pytest.raises(UsageError, match="no journal"):
            await client.adopt(AccountTask("t-1"))
    async with quick_client(shared, journal=tmp_path / "run.db") as client:
        with pytest.raises(UsageError, match="no account"):
            await client.audit()
    assert shared.requests == ()


@pytest.mark.parametrize(
    ("action", "reverse", "official"),
    [
        ("TEXT_TO_VIDEO", "TextToVideo", "OfficialTextToVideo"),
        ("IMAGE_TO_VIDEO", "ImageToVideo", "OfficialImageToVideo"),
        ("generate", "TextToVideo", "OfficialTextToVideo"),
        (None, "TextToVideo", "OfficialTextToVideo"),
        ("video2video", "VideoToVideo", "OfficialVideoToVideo"),
        ("VIDEO_TO_VIDEO", "VideoToVideo", "OfficialVideoToVideo"),
        ("ACT_ONE", "ActOne", "OfficialCharacterPerformance"),
        ("CHARACTER_PERFORMANCE", "ActOne", "OfficialCharacterPerformance"),
        ("aleph", "Aleph", "OfficialVideoToVideo"),
        ("VIDEO_UPSCALE", "VideoToVideo", "OfficialVideoUpscale"),
    ],
)
def test_a_word_for_a_kind_names_a_request(action: str | None, reverse: str, official: str) -> None:
    """Each gateway has its own words; a text is assumed where nothing fits."""
    assert kind_of_action(action, official=False) == reverse
    assert kind_of_action(action, official=True) == official
