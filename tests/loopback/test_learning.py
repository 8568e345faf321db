"""What a client learns of how long tasks take, and from where."""

from pathlib import Path

from support.clients import quick_client

from fuhu_runway.journal import JobState, Journal, plan_of
from fuhu_runway.models import TextToVideo
from fuhu_runway.testing import Simulator


async def keep(journal: Journal, count: int, duration: float) -> None:
    """Record a number of jobs that took *duration* seconds."""
    for number in range(count):
        request = TextToVideo(f"kitten {number}")
        plan = plan_of(request)
        await journal.plan(plan, 1.0)
        await journal.step(plan.key, JobState.SUBMITTING, 2.0)
        await journal.step(plan.key, JobState.ACCEPTED, 3.0, task_id=f"earlier-{number}")
        await journal.step(plan.key, JobState.FINISHED, 3.0 + duration)


async def test_a_client_learns_from_its_journal_once(gateway: Simulator, tmp_path: Path) -> None:
    """Entering it reads the durations of the journal, and later ones are not counted twice."""
    journal = Journal(tmp_path / "run.db")
    await keep(journal, 25, 0.02)
    async with quick_client(gateway, journal=journal) as client:
        learner = client._sessions.settings.learner
        assert repr(learner) == "<Learner TextToVideo: 25>"
        await client.generate("first")
        await client.generate("second")
        assert repr(learner) == "<Learner TextToVideo: 25>"
    await journal.aclose()


async def test_a_client_learns_from_its_own_waits(gateway: Simulator) -> None:
    """Durations are kept by the kind of request, and outlive the session of one loop."""
    async with quick_client(gateway) as client:
        await (await client.generate("a kitten"))
        learner = client._sessions.settings.learner
    async with client:
        await (await client.generate("a dog", seconds=5))
        assert repr(learner).count("TextToVideo") == 2


async def test_clips_come_on_a_learned_schedule(gateway: Simulator) -> None:
    """Forty clips in a row, half of them after enough was learned, all come."""
    async with quick_client(gateway) as client:
        for _ in range(40):
            clip = await (await client.generate("a kitten"))
            assert clip.video_url
