import math
import random
from statistics import NormalDist

import pytest

from fuhu_runway._waiting.intervals import (
    DRIFT_RATIO,
    EDGES,
    ENOUGH,
    LOOK_PRICE,
    MAX_KINDS,
    MAX_RECALLED,
    Aim,
    Kind,
    Learner,
    Schedule,
    Spread,
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
    """Return the gaps between the looks at a task that takes *until*."""
    age, found = 0.0, list[float]()
    while age < until:
        gap = learner.gap(KIND, age, 0.0)
        assert gap is not None
        found.append(gap)
        age += gap
    return found


# What kind of task it is


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


# What a policy asks for


def test_at_its_defaults_gaps_go_from_one_second_to_twenty() -> None:
    """The default policy, 2 s to 15 s, gives learned gaps from 1 s to 20 s."""
    assert Aim.of(PollPolicy()) == Aim(1.0, 1.0, 20.0)


def test_no_policy_allows_a_gap_over_twenty_seconds() -> None:
    """A policy whose own intervals reach 60 s is held to 20 s where it is learned."""
    assert Aim.of(PollPolicy(max_interval=60.0)).longest == 20.0


def test_an_impatient_policy_is_learned_impatiently() -> None:
    """A policy in milliseconds gives gaps in milliseconds."""
    aim = Aim.of(PollPolicy(first=0.01, max_interval=0.03))
    assert (aim.shortest, aim.longest) == (0.005, pytest.approx(0.04))


def test_the_shortest_gap_is_never_longer_than_the_longest() -> None:
    """A policy whose first look comes later than its longest interval still has an aim."""
    aim = Aim.of(PollPolicy(first=30.0, max_interval=3.0))
    assert aim.shortest == aim.longest == 4.0


# A schedule


def test_looks_are_as_far_apart_as_their_density_says() -> None:
    """With a quarter of a look in each second, a look comes every 4 s, at any age."""
    schedule = Schedule([0.0] * SLICES, [0.25] * SLICES)
    assert [schedule.gap(age) for age in (0.0, 1.7, 300.0)] == pytest.approx([4.0] * 3)


def test_a_gap_sees_what_lies_within_it() -> None:
    """A gap that begins where looks are rare ends early if they become frequent within it."""
    density = [0.05 if place < 30 else 1.0 for place in range(SLICES)]
    schedule = Schedule([0.0] * SLICES, density)
    frequent_from = EDGES[30]
    assert schedule.gap(frequent_from - 10) == pytest.approx(10.5)


def test_beyond_what_is_known_the_last_gap_goes_on() -> None:
    """A task older than two hours is looked at as often as one of two hours."""
    schedule = Schedule([0.0] * SLICES, [0.05] * SLICES)
    assert schedule.gap(EDGES[-1] - 1) == schedule.gap(1e6) == pytest.approx(20.0)


def test_news_add_up_over_time() -> None:
    """With one end in 50 s to be expected, 100 s promise two, and nothing beyond two hours."""
    schedule = Schedule([0.02] * SLICES, [0.05] * SLICES)
    assert schedule.news(30.0, 130.0) == pytest.approx(2.0)
    assert schedule.news(EDGES[-1], 1e6) == 0.0


def test_one_task_proves_only_so_much() -> None:
    """A task that hangs promises no more than four ends, where drift is at stake."""
    schedule = Schedule([0.02] * SLICES, [0.05] * SLICES)
    assert schedule.news_in_reason(0.0, 5000.0) == pytest.approx(4.0)
    assert schedule.news_in_reason(5000.0, 6000.0) == 0.0


# Sums over slices


def test_what_is_spread_keeps_its_amount() -> None:
    """Two a second from 3 s to 130 s are 254 in all, and none of them elsewhere."""
    spread = Spread()
    spread.add(3.0, 130.0, 2.0)
    sums = spread.sums()
    assert sum(sums) == pytest.approx(254.0)
    assert all(
        amount == 0 for amount, start in zip(sums, EDGES[:-1], strict=True) if not 2.5 < start < 130
    )


def test_what_lies_beyond_the_slices_is_left_out() -> None:
    """Of a span that reaches beyond two hours, what lies within counts, else nothing."""
    spread = Spread()
    spread.add(EDGES[-1] - 5, EDGES[-1] + 5, 1.0)
    spread.add(EDGES[-1], EDGES[-1] + 5, 1.0)
    assert sum(spread.sums()) == pytest.approx(5.0)


def test_shrinking_divides() -> None:
    """After shrinking by 4 there is a quarter of what was there."""
    spread = Spread()
    spread.add(0.0, 100.0, 1.0)
    spread.shrink(4.0)
    assert sum(spread.sums()) == pytest.approx(25.0)


# Learning


def test_there_is_no_advice_before_twenty_ends() -> None:
    """Nineteen tasks teach nothing that is used; the twentieth does."""
    learner = Learner(PollPolicy())
    drawn = durations(20)
    for duration in drawn[:-1]:
        end(learner, duration)
    assert learner.gap(KIND, 50.0, 0.0) is None
    end(learner, drawn[-1])
    assert learner.gap(KIND, 50.0, 0.0) is not None
    assert len(drawn) == ENOUGH


def test_nobody_learns_who_may_not() -> None:
    """With learn=False no number of tasks gives advice."""
    assert taught(50, PollPolicy(learn=False)).gap(KIND, 50.0, 0.0) is None


def test_what_is_learned_of_one_kind_is_not_used_for_another() -> None:
    """Another model's tasks are still looked at in the exponential rhythm."""
    learner = taught()
    assert learner.gap(OTHER, 50.0, 0.0) is None
    assert learner.news(OTHER, 50.0, 60.0) is None


def test_a_task_of_no_kind_gets_no_advice() -> None:
    """What was re-attached by its id is looked at in the exponential rhythm."""
    learner = taught()
    assert learner.gap(None, 50.0, 0.0) is None
    assert learner.news(None, 50.0, 60.0) is None


def test_looks_come_when_tasks_end() -> None:
    """Tasks of about 100 s are hardly looked at in their first 30 s, and often around 100 s."""
    learner = taught()
    early, late = learner.gap(KIND, 0.0, 0.0), learner.gap(KIND, 100.0, 0.0)
    assert early is not None
    assert late is not None
    assert early == 20.0
    assert late < 7.0


def test_the_quick_ones_of_a_batch_do_not_pass_for_all_of_it() -> None:
    """When 20 of 100 that began together have ended, there is no advice; after 85 there is."""
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
    chance = learner.news(KIND, 0.0, 100.0)
    assert chance == pytest.approx(0.5, abs=0.1)


def test_the_newest_count_most() -> None:
    """Durations that creep from 100 s to 150 s are followed."""
    learner = Learner(PollPolicy())
    for median in (100, 110, 120, 130, 140, 150):
        for duration in durations(100, median):
            end(learner, duration)
    chance = learner.news(KIND, 0.0, 130.0)
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


def test_a_gap_strays_by_the_part_that_is_asked_for() -> None:
    """A jitter of a tenth makes a gap a tenth longer."""
    learner = taught()
    straight, strayed = learner.gap(KIND, 100.0, 0.0), learner.gap(KIND, 100.0, 0.1)
    assert straight is not None
    assert strayed == pytest.approx(straight * 1.1)


def test_an_impatient_policy_learns_in_its_own_time() -> None:
    """Tasks of 0.1 s under a policy in milliseconds are looked at as those of 100 s are."""
    quick = Learner(PollPolicy(first=0.002, max_interval=0.015))
    for duration in durations(200):
        end(quick, duration / 1000, interval=0.005)
    gap = quick.gap(KIND, 0.1, 0.0)
    assert gap == pytest.approx((taught().gap(KIND, 100.0, 0.0) or 0) / 1000, rel=0.05)


def test_long_tasks_may_lie_about_for_longer() -> None:
    """For tasks of half an hour the longest gap is dense enough: one in a hundred of their time."""
    learner = Learner(PollPolicy())
    for duration in durations(200, 1800.0):
        end(learner, duration, interval=15.0)
    assert min(gaps(learner, 3000.0)) == pytest.approx(20.0)


def test_durations_of_one_length_are_met_closely() -> None:
    """Tasks that all take 60 s get most of their looks between 50 s and 70 s."""
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


def test_a_look_that_took_no_time_teaches_nothing() -> None:
    """An end at the very instant at which the task was seen running is ignored."""
    learner = Learner(PollPolicy())
    for _ in range(100):
        learner.saw(KIND, 10.0, 10.0, has_ended=True)
    assert learner.gap(KIND, 10.0, 0.0) is None


def test_the_chance_of_news_grows_with_time() -> None:
    """The longer a running task was left alone, the likelier it has ended, from 0 to 1."""
    learner = taught()
    chances = [learner.news(KIND, 60.0, until) or 0.0 for until in range(60, 1000, 10)]
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
    assert repr(Learner(PollPolicy())) == "<Learner of nothing yet>"
    assert repr(taught(20)) == "<Learner TextToVideo: 20>"


# Drift


def forgets_after(learner: Learner, medians: float, interval: float = 5.0) -> int:
    """Return after how many tasks of another duration what was learned is given up."""
    for number, duration in enumerate(durations(60, medians), 1):
        end(learner, duration, interval=interval)
        if learner.gap(KIND, 50.0, 0.0) is None:
            return number
    return 60


@pytest.mark.parametrize("median", [100 / 3, 300.0])
def test_a_service_that_changed_is_noticed_within_a_dozen_tasks(median: float) -> None:
    """A service three times quicker, or slower, voids what was learned."""
    assert forgets_after(taught(), median) <= 12


def test_ends_where_none_was_expected_are_noticed() -> None:
    """Tasks of a second, where all took a quarter of an hour, void what was learned."""
    assert forgets_after(taught(median=1000.0), 1.0, interval=1.0) <= 12


def test_running_tasks_alone_show_that_a_service_is_slower() -> None:
    """Ten tasks that still run at twice the usual time are proof enough; none has to end."""
    learner = taught()
    assert learner.gap(KIND, 50.0, 0.0) is not None
    for _ in range(10):
        for age in range(0, 200, 10):
            learner.saw(KIND, age, age + 10, has_ended=False)
    assert learner.gap(KIND, 50.0, 0.0) is None


def test_the_same_service_is_no_drift() -> None:
    """Two hundred more tasks of the same kind change nothing, whatever their order."""
    learner = taught()
    assert forgets_after(learner, 100.0) == 60


def test_one_task_that_hangs_is_no_drift() -> None:
    """A task that runs for an hour among others of 100 s does not void what they taught."""
    learner = taught()
    assert learner.gap(KIND, 50.0, 0.0) is not None
    for age in range(0, 3600, 10):
        learner.saw(KIND, age, age + 10, has_ended=False)
    assert learner.gap(KIND, 50.0, 0.0) is not None


def test_after_a_drift_it_learns_anew() -> None:
    """Forty tasks after a change there is advice again, and it fits the new service."""
    learner = taught()
    for duration in durations(60, 300.0):
        end(learner, duration)
    chance = learner.news(KIND, 0.0, 300.0)
    assert chance == pytest.approx(0.5, abs=0.15)


def test_the_longest_gap_bounds_the_lag_of_any_drift() -> None:
    """Whatever the service does, what was learned never advises a gap over 20 s."""
    assert max(gaps(taught(median=300.0), 3000.0)) <= 20.0


def test_the_drift_that_is_watched_for_is_a_factor_of_three() -> None:
    """The documentation speaks of a factor of three, and of 0.4 s for a look."""
    assert (DRIFT_RATIO, LOOK_PRICE) == (3.0, 0.4)


# What a journal knows


def test_a_journal_is_learned_from() -> None:
    """Twenty durations of a journal give advice at once."""
    learner = Learner(PollPolicy())
    learner.recall([(*KIND, duration) for duration in durations(20)])
    assert learner.news(KIND, 0.0, 100.0) == pytest.approx(0.5, abs=0.1)


def test_the_newest_of_a_journal_count_most() -> None:
    """A journal gives the newest first: they weigh more than what stands behind them."""
    learner = Learner(PollPolicy())
    old, new = durations(200, 50.0), durations(200, 150.0)
    learner.recall([(*KIND, duration) for duration in (*new, *old)])
    chance = learner.news(KIND, 0.0, 90.0)
    assert chance is not None
    assert chance < 0.5


def test_a_journal_of_any_length_is_read_to_a_point() -> None:
    """Of a journal with more entries than are needed, only the first are taken."""
    learner = Learner(PollPolicy())
    entries = iter([(*KIND, 100.0)] * (MAX_RECALLED + 10))
    learner.recall(entries)
    assert len([*entries]) == 10


def test_a_journal_of_very_quick_tasks_is_learned_from() -> None:
    """Durations shorter than what a last look may be late are no trouble."""
    learner = Learner(PollPolicy())
    learner.recall([(*KIND, duration) for duration in durations(40, 3.0)])
    assert learner.gap(KIND, 0.0, 0.0) is not None
