import math
import random
from statistics import NormalDist

import pytest

from fuhu_runway._waiting.intervals import (
    EDGES,
    ENOUGH,
    MAX_KINDS,
    MAX_RECALLED,
    Curve,
    History,
    Kind,
    Learner,
    Schedule,
    kind_of,
)
from fuhu_runway.models import ActOne, PollPolicy, TextToVideo

KIND: Kind = ("TextToVideo", "gen4", 10)
OTHER: Kind = ("TextToVideo", "gen4_turbo", 5)
SLICES = len(EDGES) - 1


def durations(count: int, median: float = 100.0, sigma: float = 0.35) -> list[float]:
    """Return lognormal durations in no order, as exactly as this many can be."""
    normal = NormalDist(math.log(median), sigma)
    drawn = [math.exp(normal.inv_cdf((place + 0.5) / count)) for place in range(count)]
    random.Random(1).shuffle(drawn)
    return drawn


def end(learner: Learner, duration: float, kind: Kind = KIND, interval: float = 5.0) -> None:
    """Let *learner* poll a task until it sees that it took *duration*, at its own intervals."""
    age = 0.0
    while age < duration:
        learner.gap(kind, age, 0.0)
        learner.saw(kind, age, age + interval, has_ended=duration <= age + interval)
        age += interval


def taught(count: int = 200, policy: PollPolicy | None = None, median: float = 100.0) -> Learner:
    """Return a learner that saw a number of tasks from their submit to their end."""
    learner = Learner(policy or PollPolicy())
    for duration in durations(count, median):
        end(learner, duration)
    return learner


def gaps(learner: Learner, until: float = 1000.0) -> list[float]:
    """Return the gaps between the polls of a task that takes *until*."""
    age, found = 0.0, list[float]()
    while age < until:
        gap = learner.gap(KIND, age, 0.0)
        assert gap is not None
        found.append(gap)
        age += gap
    return found


def schedule_of(rates: list[float]) -> Schedule:
    """Return a schedule that spends polls at these rates."""
    return Schedule(Curve([0.0] * SLICES), Curve(rates))


# Kinds of tasks


def test_a_kind_is_the_class_the_model_and_the_length() -> None:
    """Two requests of one class, model and length are of one kind, whatever their prompts."""
    kind = kind_of(TextToVideo("a kitten", model="gen4", seconds=10))
    assert kind == kind_of(TextToVideo("a dog", model="gen4", seconds=10)) == KIND


def test_a_request_without_model_and_length_has_a_kind() -> None:
    """Expression transfer names neither, and is a kind all the same."""
    request = ActOne("https://a.example/1.mp4", "https://a.example/1.png")
    assert kind_of(request) == ("ActOne", None, None)


def test_without_a_request_there_is_no_kind() -> None:
    """A task that was re-attached by its id alone is of no kind."""
    assert kind_of(None) is None


# Policies


def test_an_impatient_policy_is_bounded_in_its_own_time() -> None:
    """A policy from 10 ms to 30 ms gives gaps from 5 ms to 40 ms."""
    learner = Learner(PollPolicy(first=0.01, max_interval=0.03))
    for duration in durations(200):
        end(learner, duration / 200, interval=0.02)
    found = [learner.gap(KIND, age / 1000, 0.0) or 0.0 for age in range(2000)]
    assert min(found) >= 0.005
    assert max(found) == pytest.approx(0.04)


def test_a_policy_whose_first_poll_comes_late_has_one_gap() -> None:
    """Where the first interval is longer than the longest, all learned gaps are the longest."""
    learner = taught(policy=PollPolicy(first=30.0, max_interval=3.0))
    assert {learner.gap(KIND, age, 0.0) for age in (0.0, 50.0, 100.0, 500.0)} == {4.0}


# Curves


def test_polls_are_as_far_apart_as_their_rate_says() -> None:
    """With a quarter of a poll in each second, a poll comes every 4 s, at any age."""
    schedule = schedule_of([0.25] * SLICES)
    assert [schedule.gap(age) for age in (0.0, 1.7, 300.0)] == pytest.approx([4.0] * 3)


def test_a_gap_sees_what_lies_within_it() -> None:
    """A gap that begins where polls are rare ends early if they become frequent within it."""
    schedule = schedule_of([0.05 if place < 30 else 1.0 for place in range(SLICES)])
    assert schedule.gap(EDGES[30] - 10) == pytest.approx(10.5)


def test_beyond_what_is_known_the_last_gap_goes_on() -> None:
    """A task older than two hours is polled as often as one of two hours."""
    schedule = schedule_of([0.05] * SLICES)
    assert schedule.gap(EDGES[-1] - 1) == pytest.approx(20.0)
    assert schedule.gap(1e6) == pytest.approx(20.0)


def test_an_age_beyond_the_slices_is_left_out() -> None:
    """Of a span that reaches beyond two hours what lies within counts, and else nothing."""
    history = History()
    history.add(EDGES[-1] - 5, EDGES[-1] + 5, has_ended=False)
    history.add(EDGES[-1], EDGES[-1] + 5, has_ended=False)
    assert sum(history.running) == pytest.approx(5.0)


# Learning


def test_intervals_are_learned_after_twenty_ends() -> None:
    """Nineteen tasks change no interval; the twentieth does."""
    learner = Learner(PollPolicy())
    drawn = durations(ENOUGH)
    for duration in drawn[:-1]:
        end(learner, duration)
    assert learner.gap(KIND, 50.0, 0.0) is None
    end(learner, drawn[-1])
    assert learner.gap(KIND, 50.0, 0.0) is not None


def test_learning_can_be_switched_off() -> None:
    """With learn=False no number of tasks changes an interval."""
    assert taught(50, PollPolicy(learn=False)).gap(KIND, 50.0, 0.0) is None


def test_what_is_learned_of_one_kind_is_not_used_for_another() -> None:
    """Tasks of another model are still polled at exponential intervals."""
    learner = taught()
    assert learner.gap(OTHER, 50.0, 0.0) is None
    assert learner.chance(OTHER, 50.0, 60.0) is None


def test_a_task_of_no_kind_learns_nothing() -> None:
    """A task that was re-attached by its id is polled at exponential intervals."""
    learner = taught()
    assert learner.gap(None, 50.0, 0.0) is None
    assert learner.chance(None, 50.0, 60.0) is None


def test_polls_come_when_tasks_end() -> None:
    """Tasks of about 100 s are hardly polled in their first 30 s, and often around 100 s."""
    learner = taught()
    early, late = learner.gap(KIND, 0.0, 0.0), learner.gap(KIND, 100.0, 0.0)
    assert early is not None
    assert late is not None
    assert early == pytest.approx(20.0)
    assert late < 7.0


def test_the_quick_ones_of_a_batch_do_not_pass_for_all_of_it() -> None:
    """After 20 ends of 100 tasks that began together nothing is learned yet; after 85 it is."""
    learner = Learner(PollPolicy())
    drawn = sorted(durations(100))
    age, advised_after = 0.0, None
    while age < drawn[-1] and advised_after is None:
        for duration in drawn:
            if duration > age:
                learner.saw(KIND, age, age + 5, has_ended=duration <= age + 5)
        age += 5
        if learner.gap(KIND, age, 0.0) is not None:
            advised_after = sum(duration <= age for duration in drawn)
    assert advised_after is not None
    assert 75 <= advised_after <= 95


def test_running_tasks_are_counted_for_as_long_as_they_ran() -> None:
    """The middle that is learned from a batch of which most still run is near the true one."""
    learner = Learner(PollPolicy())
    for age in range(0, 115, 5):
        for duration in durations(400):
            if duration > age:
                learner.saw(KIND, age, age + 5, has_ended=duration <= age + 5)
    for duration in durations(40):  # enough of a second batch to be advised
        end(learner, duration)
    chance = learner.chance(KIND, 0.0, 100.0)
    assert chance == pytest.approx(0.5, abs=0.1)


def test_the_newest_count_most() -> None:
    """Durations that creep from 100 s to 150 s are followed."""
    learner = Learner(PollPolicy())
    for median in (100, 110, 120, 130, 140, 150):
        for duration in durations(100, median):
            end(learner, duration)
    chance = learner.chance(KIND, 0.0, 130.0)
    assert chance is not None
    assert chance < 0.5


def test_gaps_stay_within_the_bounds_however_they_stray() -> None:
    """No age, and no jitter, gives a gap under 1 s or over 20 s."""
    learner = taught(median=30.0)
    found = [
        learner.gap(KIND, age / 3, stray) or 0.0
        for age in range(1000)
        for stray in (-0.9, -0.1, 0.0, 0.1, 0.9)
    ]
    assert min(found) >= 1.0
    assert max(found) == 20.0


def test_jitter_changes_a_gap_by_its_part() -> None:
    """A jitter of a tenth makes a gap a tenth longer."""
    learner = taught()
    straight, strayed = learner.gap(KIND, 100.0, 0.0), learner.gap(KIND, 100.0, 0.1)
    assert straight is not None
    assert strayed == pytest.approx(straight * 1.1)


def test_a_policy_with_short_intervals_learns_short_ones() -> None:
    """Tasks of 0.1 s under a policy in milliseconds are polled as those of 100 s are."""
    quick = Learner(PollPolicy(first=0.002, max_interval=0.015))
    for duration in durations(200):
        end(quick, duration / 1000, interval=0.005)
    gap = quick.gap(KIND, 0.1, 0.0)
    assert gap == pytest.approx((taught().gap(KIND, 100.0, 0.0) or 0) / 1000, rel=0.05)


def test_long_tasks_may_be_found_later() -> None:
    """For tasks of half an hour the mean delay is up to a hundredth of their time."""
    learner = Learner(PollPolicy())
    for duration in durations(200, 1800.0):
        end(learner, duration, interval=15.0)
    assert min(gaps(learner, 3000.0)) == pytest.approx(20.0)


def test_durations_of_one_length_are_met_closely() -> None:
    """Tasks that all take 60 s get most of their polls between 50 s and 70 s."""
    learner = Learner(PollPolicy())
    for _ in range(40):
        end(learner, 60.0, interval=4.0)
    age, near, far = 0.0, 0, 0
    for gap in gaps(learner, 70.0):
        age += gap
        near, far = near + (50 <= age <= 70), far + (age < 50)
    assert near > far


def test_an_end_seen_after_a_long_silence_teaches_nothing() -> None:
    """Ends that may have come at any time within two minutes give no advice."""
    learner = Learner(PollPolicy())
    for _ in range(100):
        learner.saw(KIND, 10.0, 130.0, has_ended=True)
    assert learner.gap(KIND, 50.0, 0.0) is None


def test_a_poll_after_no_time_teaches_nothing() -> None:
    """An end at the very instant at which the task was seen running is ignored."""
    learner = Learner(PollPolicy())
    for _ in range(100):
        learner.saw(KIND, 10.0, 10.0, has_ended=True)
    assert learner.gap(KIND, 10.0, 0.0) is None


def test_the_chance_of_an_end_grows_with_time() -> None:
    """The longer ago the last poll of a running task, the likelier its end, from 0 to 1."""
    learner = taught()
    chances = [learner.chance(KIND, 60.0, until) or 0.0 for until in range(60, 1000, 10)]
    assert chances == sorted(chances)
    assert chances[0] == 0
    assert 0.99 < chances[-1] <= 1


def test_kinds_are_bounded() -> None:
    """Of more kinds than are kept, the one that ended longest ago is forgotten."""
    learner = Learner(PollPolicy())
    kinds: list[Kind] = [("TextToVideo", f"model-{number}", 10) for number in range(MAX_KINDS)]
    for kind in kinds:
        for duration in durations(20):
            end(learner, duration, kind)
    end(learner, 100.0, kinds[0])
    end(learner, 100.0, ("TextToVideo", "one more", 10))
    assert learner.gap(kinds[1], 50.0, 0.0) is None
    assert learner.gap(kinds[0], 50.0, 0.0) is not None
    assert learner.gap(kinds[-1], 50.0, 0.0) is not None


def test_a_learner_shows_what_it_knows() -> None:
    """Its repr names how many ends it saw of which kind, and no model of the user's."""
    assert repr(Learner(PollPolicy())) == "<Learner without observations>"
    assert repr(taught(20)) == "<Learner TextToVideo: 20>"


# A service that changes


@pytest.mark.parametrize("median", [100 / 3, 300.0])
def test_a_service_that_changed_is_followed(median: float) -> None:
    """Two hundred tasks after it became three times faster or slower, its gaps fit."""
    learner = taught()
    for duration in durations(200, median):
        end(learner, duration)
    chance = learner.chance(KIND, 0.0, median)
    assert chance == pytest.approx(0.5, abs=0.15)


def test_one_task_that_hangs_changes_little() -> None:
    """A task that runs for an hour among others of 100 s leaves the gaps as they are."""
    learner = taught()
    before = learner.gap(KIND, 100.0, 0.0)
    for age in range(0, 3600, 10):
        learner.saw(KIND, age, age + 10, has_ended=False)
    for duration in durations(10):
        end(learner, duration)
    assert learner.gap(KIND, 100.0, 0.0) == pytest.approx(before, rel=0.15)


def test_the_longest_gap_bounds_the_lag_of_any_change() -> None:
    """Whatever the service does, no learned gap is over 20 s."""
    assert max(gaps(taught(median=300.0), 3000.0)) <= 20.0


# What a journal knows


def test_a_journal_is_learned_from() -> None:
    """Twenty durations of a journal give advice at once."""
    learner = Learner(PollPolicy())
    learner.recall([(*KIND, duration) for duration in durations(20)])
    assert learner.chance(KIND, 0.0, 100.0) == pytest.approx(0.5, abs=0.1)


def test_the_newest_of_a_journal_count_most() -> None:
    """A journal gives the newest first: they weigh more than what stands behind them."""
    learner = Learner(PollPolicy())
    old, new = durations(200, 50.0), durations(200, 150.0)
    learner.recall([(*KIND, duration) for duration in (*new, *old)])
    chance = learner.chance(KIND, 0.0, 90.0)
    assert chance is not None
    assert chance < 0.5


def test_a_journal_of_any_length_is_read_to_a_point() -> None:
    """Of a journal with more entries than are needed, only the first are taken."""
    learner = Learner(PollPolicy())
    entries = iter([(*KIND, 100.0)] * (MAX_RECALLED + 10))
    learner.recall(entries)
    assert len([*entries]) == 10


def test_a_journal_of_very_quick_tasks_is_learned_from() -> None:
    """Durations shorter than the possible delay of the last poll are accepted."""
    learner = Learner(PollPolicy())
    learner.recall([(*KIND, duration) for duration in durations(40, 3.0)])
    assert learner.gap(KIND, 0.0, 0.0) is not None
