import pytest

from fuhu_runway._waiting.hints import (
    HINTED_AT_ONCE,
    HINTED_EVERY,
    MOST_PROOF,
    SILENT_ENDS,
    Allowance,
    Reliance,
)


def test_a_burst_and_then_a_pace() -> None:
    """The first few looks are at once, and those after them 5 s apart."""
    allowance = Allowance()
    taken = [allowance.take(100.0) for _ in range(HINTED_AT_ONCE + 2)]
    assert taken == [100.0] * HINTED_AT_ONCE + [100 + HINTED_EVERY, 100 + 2 * HINTED_EVERY]


@pytest.mark.parametrize("apart", [0.0, 0.01, 1.0, HINTED_EVERY])
def test_a_thousand_hints_cost_what_time_allows(apart: float) -> None:
    """However fast they come, no span of time has more looks than its burst and its pace."""
    allowance = Allowance()
    looks = [allowance.take(n * apart) for n in range(1000)]
    for start in looks[::50]:
        within = [look for look in looks if start <= look < start + 60]
        assert len(within) <= HINTED_AT_ONCE + 60 / HINTED_EVERY


def test_rest_gives_the_burst_back() -> None:
    """After enough quiet a burst is possible again, and never a larger one."""
    allowance = Allowance()
    for _ in range(10):
        allowance.take(0.0)
    later = 10 * HINTED_EVERY
    assert [allowance.take(later) for _ in range(HINTED_AT_ONCE)] == [later] * HINTED_AT_ONCE
    assert not allowance.is_open(later)
    assert allowance.is_open(later + HINTED_EVERY)


def test_progress_leaves_a_look_for_the_end() -> None:
    """Hints that keep one back are paced earlier, so that the one that does not goes at once."""
    allowance = Allowance()
    progress = [allowance.take(0.0, keep=1) for _ in range(HINTED_AT_ONCE)]
    assert progress == [0.0, 0.0, HINTED_EVERY]
    fresh = Allowance()
    fresh.take(0.0, keep=1)
    fresh.take(0.0, keep=1)
    assert fresh.take(0.0) == 0.0


def test_one_end_that_was_told_is_proof() -> None:
    """Nothing is relied on at first, and after one end that a delivery told first it is."""
    reliance = Reliance()
    assert not reliance.is_proved
    reliance.end_was_told()
    assert reliance.is_proved


def test_one_end_that_was_not_told_ends_it() -> None:
    """Then twice as many have to be told first, and each further time twice as many again."""
    reliance = Reliance()
    needed = []
    for _ in range(9):
        count = 0
        while not reliance.is_proved:
            reliance.end_was_told()
            count += 1
        needed.append(count)
        assert reliance.end_was_not_told()
        assert not reliance.is_proved
    assert needed == [1, 2, 4, 8, 16, 32, MOST_PROOF, MOST_PROOF, MOST_PROOF]


def test_a_look_that_was_quicker_costs_one_proof() -> None:
    """While looks are frequent one of them may come first: that is no end of everything."""
    reliance = Reliance()
    reliance.end_was_told()
    reliance.end_was_not_told()  # two are needed from here on
    assert not reliance.end_was_not_told()
    reliance.end_was_told()
    assert not reliance.end_was_not_told()
    reliance.end_was_told()
    assert not reliance.is_proved
    reliance.end_was_told()
    assert reliance.is_proved


def test_silence_is_what_never_was_broken() -> None:
    """Several ends without a webhook are silence; with one, however old, they are not."""
    reliance = Reliance()
    for _ in range(SILENT_ENDS - 1):
        reliance.end_was_not_told()
    assert not reliance.is_silent
    reliance.end_was_not_told()
    assert reliance.is_silent
    reliance.was_heard = True
    assert not reliance.is_silent
