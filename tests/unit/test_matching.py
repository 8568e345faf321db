"""What became of a submission in doubt is decided from literal lists and logs, without sockets."""

from typing import Any

import attrs
import pytest

from fuhu_runway._session.matching import Proof, Reason, Verdict, decide
from fuhu_runway._session.records import MAX_OFFSET, NO_PROMPT, Charge, Listed, Records, Sent

LATE = 600.0
"""How long after it was sent a request may still be accepted, in seconds."""

DOUBT = Sent("job", "/pro/generate", "kitten 16:9", 1000.0, "gen4", "kitten")
KNOWN = Sent("other", "/pro/generate", "puppy 16:9", 990.0, "gen4", "puppy", "t-puppy", 991.0)
KITTEN = Listed("t-kitten", 1003.0, frozenset({"/pro/generate"}), "gen4", frozenset({"kitten"}))
PUPPY = Listed("t-puppy", 991.0, frozenset({"/pro/generate"}), "gen4", frozenset({"puppy"}))


def records(*listed: Listed, **changes: Any) -> Records:
    """Return records that were read long after everything, with one known task that is listed."""
    settings = {"now": 5000.0, "late": LATE, "known": (KNOWN,), "listed": (PUPPY, *listed)}
    if "charges" in changes:
        changes["charges"] = charges(*changes["charges"])
    return Records(**{**settings, **changes})


def charges(*instants: float, **changes: Any) -> list[Charge]:
    """Return rows of the log that say no more than when the key was charged."""
    return [Charge(at, **changes) for at in instants]


def one(verdicts: list[Verdict]) -> Verdict:
    """Return the only verdict."""
    (verdict,) = verdicts
    return verdict


# Finding


def test_one_task_that_fits_is_the_one() -> None:
    """A doubt gets the one task with its prompt, model, kind and time."""
    assert one(decide([DOUBT], records(KITTEN))) == Verdict("job", KITTEN, Proof.LIST)


@pytest.mark.parametrize(
    "changes",
    [{"routes": frozenset({"/pro/act_one"})}, {"created_at": 900.0}, {"created_at": 1611.0}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_task_that_differs_is_not_the_one(changes: dict[str, Any]) -> None:
    """A task of another kind or time is not taken for the lost one."""
    other = attrs.evolve(KITTEN, **changes)
    assert one(decide([DOUBT], records(other))) == Verdict("job", proof=Proof.LIST)


# Gateways shorten, translate and mask some prompts, and map some models to others.
DIFFERENT = [{"prompts": frozenset({"cat"})}, {"model": "gen3"}]


@pytest.mark.parametrize("changes", DIFFERENT, ids=lambda changes: next(iter(changes)))
def test_a_task_with_another_prompt_or_model_forbids_not_accepted(changes: dict[str, Any]) -> None:
    """A task that nothing accounts for may be the lost one, shown with another prompt or model."""
    other = attrs.evolve(KITTEN, **changes)
    verdict = one(decide([DOUBT], records(other)))
    assert verdict == Verdict("job", reason=Reason.STRANGER, task_ids=("t-kitten",))


@pytest.mark.parametrize("changes", DIFFERENT, ids=lambda changes: next(iter(changes)))
def test_a_log_without_a_charge_shows_that_a_task_is_not_of_this_key(
    changes: dict[str, Any],
) -> None:
    """If the key was charged for the known task only, another task belongs to another key."""
    other = attrs.evolve(KITTEN, **changes)
    verdict = one(decide([DOUBT], records(other, charges=(990.5,))))
    assert verdict == Verdict("job", proof=Proof.LIST)


def test_a_task_that_fits_another_submission_is_no_stranger() -> None:
    """A task that may be that of another doubt, or of a request in flight, forbids nothing."""
    doubt = attrs.evolve(DOUBT, key="foal", fingerprint="foal 16:9", prompt="foal")
    twin = attrs.evolve(KITTEN, task_id="t-twin")
    open_one, absent = decide([DOUBT, doubt], records(KITTEN, twin))
    assert open_one.reason is Reason.SEVERAL
    assert absent == Verdict("foal", proof=Proof.LIST)
    flying = attrs.evolve(DOUBT, key="flying")
    assert one(decide([doubt], records(KITTEN, in_flight=(flying,)))) == absent


def test_a_charge_and_a_stranger_together_forbid_not_accepted() -> None:
    """A charge that another doubt may explain may as well be for the task with another prompt."""
    doubt = attrs.evolve(DOUBT, key="foal", fingerprint="foal 16:9", prompt="foal")
    twin = attrs.evolve(KITTEN, task_id="t-twin")
    strange = attrs.evolve(KITTEN, task_id="t-???", prompts=frozenset({"???"}))
    verdicts = decide([DOUBT, doubt], records(KITTEN, twin, strange, charges=(990.5, 1003.0)))
    assert [verdict.reason for verdict in verdicts] == [Reason.SEVERAL, Reason.STRANGER]
    assert verdicts[1].task_ids == ("t-???",)


def test_what_the_list_does_not_say_fits() -> None:
    """A row without a time, a kind and a model is found by its prompt."""
    bare = Listed("t-kitten", prompts=frozenset({"kitten"}))
    assert one(decide([DOUBT], records(bare))).task == bare


def test_a_task_that_another_job_has_is_not_taken() -> None:
    """A task that the journal knows, or that a person adopted, belongs to no doubt."""
    mine = attrs.evolve(
        KNOWN, task_id="t-kitten", prompt="kitten", sent_at=1001.0, accepted_at=1004
    )
    assert one(decide([DOUBT], records(KITTEN, known=(KNOWN, mine)))).task is None
    adopted = records(KITTEN, taken={"t-kitten"})
    assert one(decide([DOUBT], adopted)) == Verdict("job", proof=Proof.LIST)


def test_several_tasks_for_one_doubt_are_reported() -> None:
    """If two tasks fit one doubt, it stays in doubt, and both ids are reported."""
    twin = attrs.evolve(KITTEN, task_id="t-twin")
    verdict = one(decide([DOUBT], records(KITTEN, twin)))
    assert verdict == Verdict("job", reason=Reason.SEVERAL, task_ids=("t-kitten", "t-twin"))


def test_equal_doubts_get_one_task_each() -> None:
    """Of two equal doubts and two tasks that fit both, the earlier doubt gets the earlier task."""
    later = attrs.evolve(DOUBT, key="later", sent_at=1002.0)
    twin = attrs.evolve(KITTEN, task_id="t-twin", created_at=1005.0)
    first, second = decide([later, DOUBT], records(twin, KITTEN))
    assert (first.task, second.task) == (twin, KITTEN)


def test_the_rest_of_equal_doubts_needs_proof() -> None:
    """Of two equal doubts and one task, one is accepted; the other is not, if that is proven."""
    later = attrs.evolve(DOUBT, key="later", sent_at=1002.0)
    assert decide([DOUBT, later], records(KITTEN)) == [
        Verdict("job", KITTEN, Proof.LIST),
        Verdict("later", proof=Proof.LIST),
    ]
    assert decide([DOUBT, later], records(KITTEN, now=1300.0))[1].reason is Reason.EARLY


def test_equal_doubts_far_apart_do_not_swap_tasks() -> None:
    """A task that fits only the earlier of two equal doubts is not given to the later one."""
    later = attrs.evolve(DOUBT, key="later", sent_at=3000.0)
    twin = attrs.evolve(KITTEN, task_id="t-twin")
    shown = attrs.evolve(PUPPY, task_id="t-2", created_at=2990.0)
    known = attrs.evolve(KNOWN, key="2", task_id="t-2", sent_at=2989.0, accepted_at=2991.0)
    both = records(KITTEN, twin, shown, known=(KNOWN, known))
    first, second = decide([DOUBT, later], both)
    assert first.reason is Reason.SEVERAL
    assert second == Verdict("later", proof=Proof.LIST)


def test_a_task_that_fits_different_doubts_is_not_guessed() -> None:
    """Two doubts with one prompt and different pictures, and one task: both stay in doubt."""
    other = attrs.evolve(DOUBT, key="other picture", fingerprint="kitten 9:16")
    verdicts = decide([DOUBT, other], records(KITTEN))
    assert [verdict.reason for verdict in verdicts] == [Reason.SEVERAL, Reason.SEVERAL]
    assert {verdict.task_ids for verdict in verdicts} == {("t-kitten",)}


def test_a_request_in_flight_may_get_the_task() -> None:
    """A task that fits a request in flight is not given to a doubt: its response may name it."""
    flying = attrs.evolve(DOUBT, key="flying", sent_at=1001.0)
    verdict = one(decide([DOUBT], records(KITTEN, in_flight=(flying,))))
    assert verdict == Verdict("job", reason=Reason.IN_FLIGHT, task_ids=("t-kitten",))


def test_a_hidden_prompt_is_waited_for() -> None:
    """A task whose prompt is not shown yet may be the one, so nothing is decided."""
    hidden = attrs.evolve(KITTEN, prompts=frozenset())
    verdict = one(decide([DOUBT], records(hidden)))
    assert verdict == Verdict("job", reason=Reason.HIDDEN, task_ids=("t-kitten",))


def test_a_prompt_that_was_not_recorded_is_not_compared() -> None:
    """A row of an older journal has no prompt's hash: a person chooses among the tasks."""
    old = attrs.evolve(DOUBT, prompt=None)
    assert one(decide([old], records(KITTEN))).reason is Reason.NO_PROMPT


def test_a_kind_without_a_prompt_is_found_by_kind_and_time() -> None:
    """A request that has no prompt gets the one task of its kind without one."""
    doubt = Sent("job", "/pro/act_one", "act", 1000.0, None, NO_PROMPT)
    acted = Listed("t-act", 1003.0, frozenset({"/pro/act_one"}))
    assert one(decide([doubt], records(acted, KITTEN))).task == acted
    unknown = attrs.evolve(acted, routes=frozenset())
    assert one(decide([doubt], records(unknown))).reason is Reason.HIDDEN


def test_a_named_task_that_is_listed_is_the_one() -> None:
    """A damaged response named the task, and the list has it: accepted, whatever else fits."""
    named = attrs.evolve(DOUBT, task_id="t-kitten")
    twin = attrs.evolve(KITTEN, task_id="t-twin")
    other = attrs.evolve(DOUBT, key="other picture", fingerprint="kitten 9:16")
    verdicts = decide([named, other], records(KITTEN, twin))
    assert [verdict.task for verdict in verdicts] == [KITTEN, twin]


def test_a_name_settles_one_and_leaves_the_others() -> None:
    """Of three submissions in a row, a damaged response named the task of the second."""
    early = attrs.evolve(DOUBT, key="early", fingerprint="kitten 1:1")
    named = attrs.evolve(DOUBT, sent_at=1300.0, task_id="t-kitten")
    late = attrs.evolve(DOUBT, key="late", fingerprint="kitten 9:16", sent_at=1800.0)
    kitten = attrs.evolve(KITTEN, created_at=1400.0)
    twin = attrs.evolve(KITTEN, task_id="t-twin", created_at=1850.0)
    assert decide([early, named, late], records(kitten, twin)) == [
        Verdict("early", proof=Proof.LIST),
        Verdict("job", kitten, Proof.LIST),
        Verdict("late", reason=Reason.SEVERAL, task_ids=("t-twin",)),
    ]


def test_a_name_of_a_task_that_differs_is_not_believed() -> None:
    """A damaged response named a task with another prompt: a person has to look."""
    named = attrs.evolve(DOUBT, task_id="t-kitten")
    other = attrs.evolve(KITTEN, prompts=frozenset({"cat"}))
    assert one(decide([named], records(other))).reason is Reason.NAMED


def test_a_name_that_two_doubts_have_decides_nothing() -> None:
    """Two damaged responses that name one task do not give it to both."""
    named = attrs.evolve(DOUBT, task_id="t-kitten")
    other = attrs.evolve(named, key="other picture", fingerprint="kitten 9:16")
    verdicts = decide([named, other], records(KITTEN))
    assert [verdict.reason for verdict in verdicts] == [Reason.SEVERAL, Reason.SEVERAL]


# Not accepted


def test_a_complete_list_without_it_proves_that_it_was_not_accepted() -> None:
    """No task fits, the list shows the known task of that time, and time has passed."""
    assert one(decide([DOUBT], records())) == Verdict("job", proof=Proof.LIST)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"now": 1599.0}, Reason.EARLY),
        ({"known": ()}, Reason.UNPROVEN),
        ({"listed": ()}, Reason.UNPROVEN),
        ({"listed": None}, Reason.UNPROVEN),
        ({"since": 995.0}, Reason.UNPROVEN),
        ({"is_complete": False}, Reason.CUT),
        ({"known": (attrs.evolve(KNOWN, sent_at=390.0),)}, Reason.UNPROVEN),
        ({"known": (attrs.evolve(KNOWN, accepted_at=1650.0),)}, Reason.UNPROVEN),
        ({"known": (attrs.evolve(KNOWN, route="/pro/act_one"),)}, Reason.UNPROVEN),
        ({"known": (attrs.evolve(KNOWN, is_evidence=False),)}, Reason.UNPROVEN),
        ({"known": (attrs.evolve(KNOWN, prompt="hidden"),)}, Reason.UNPROVEN),
        ({"known": (KNOWN, attrs.evolve(KNOWN, task_id="t-lost"))}, Reason.UNPROVEN),
        ({"offset": MAX_OFFSET + 1}, Reason.CLOCK),
        ({"known": (attrs.evolve(KNOWN, sent_at=1010.0, accepted_at=1011.0),)}, Reason.CLOCK),
        ({"known": (attrs.evolve(KNOWN, sent_at=300.0, accepted_at=320.0),)}, Reason.CLOCK),
    ],
    ids=[
        "too early",
        "no known task",
        "an empty list",
        "no list",
        "a list that begins too late",
        "a list that is cut off",
        "known tasks of another time",
        "known tasks that were accepted too late to be listed",
        "known tasks of another kind",
        "known from this list only",
        "known tasks that are listed with another prompt",
        "a known task that is not listed",
        "clocks that differ by hours",
        "a known task that is listed before it was sent",
        "a known task that is listed long after it was accepted",
    ],
)
def test_without_proof_it_stays_in_doubt(changes: dict[str, Any], reason: Reason) -> None:
    """Each gap in the proof leaves the submission in doubt, with its own reason."""
    assert one(decide([DOUBT], records(**changes))) == Verdict("job", reason=reason)


def test_a_cut_list_does_not_name_a_task() -> None:
    """If a list is cut off, a second task that fits may be missing from it."""
    assert one(decide([DOUBT], records(KITTEN, is_complete=False))).reason is Reason.CUT


def test_a_row_without_a_time_does_not_make_the_clock_wrong() -> None:
    """A known task that is listed without a time still shows that the list is complete."""
    timeless = attrs.evolve(PUPPY, created_at=None)
    assert one(decide([DOUBT], records(listed=(timeless,)))).proof is Proof.LIST


def test_a_response_that_named_a_task_or_a_charge_is_never_not_accepted() -> None:
    """If a damaged response named a task, or reported the charge, no list can refute it."""
    named = attrs.evolve(DOUBT, task_id="t-lost")
    charged = attrs.evolve(DOUBT, is_charged=True)
    assert one(decide([named], records())).reason is Reason.NAMED
    assert one(decide([charged], records())).reason is Reason.CHARGED


# The log of the key

LOG_ONLY: dict[str, Any] = {"listed": None}


def test_a_charge_that_no_known_task_explains_is_reported() -> None:
    """Two charges and one known task: the doubt was charged, and no id is known."""
    log = records(charges=(990.5, 1003.0), **LOG_ONLY)
    assert one(decide([DOUBT], log)) == Verdict("job", reason=Reason.CHARGED, charges=(1, 1))


def test_a_log_with_only_known_charges_proves_that_it_was_not_accepted() -> None:
    """One charge and one known task: the doubt was not accepted, once time has passed."""
    log = records(charges=(990.5,), **LOG_ONLY)
    assert one(decide([DOUBT], log)) == Verdict("job", proof=Proof.LOG)
    assert one(decide([DOUBT], attrs.evolve(log, now=1500.0))).reason is Reason.EARLY


@pytest.mark.parametrize("charges", [(), (3000.0,)], ids=["switched off", "of another time"])
def test_a_log_that_lacks_a_known_charge_proves_nothing(charges: tuple[float, ...]) -> None:
    """A log that does not show the known task is not complete."""
    assert one(decide([DOUBT], records(charges=charges, **LOG_ONLY))).reason is Reason.UNPROVEN


def test_a_request_in_flight_may_explain_a_charge() -> None:
    """A charge that may be of a request in flight is not reported as one of the doubt."""
    flying = attrs.evolve(DOUBT, key="flying", sent_at=1001.0)
    log = records(charges=(990.5, 1003.0), in_flight=(flying,), **LOG_ONLY)
    assert one(decide([DOUBT], log)).reason is Reason.IN_FLIGHT


def test_charges_of_another_time_are_not_counted() -> None:
    """A charge an hour later does not make the doubt a charged one."""
    log = records(charges=(990.5, 4600.0), **LOG_ONLY)
    assert one(decide([DOUBT], log)).proof is Proof.LOG


def test_a_row_tells_when_its_task_was_charged() -> None:
    """The clocks differ by seconds: the charge of the known task is near its row."""
    row = attrs.evolve(PUPPY, created_at=985.0)
    early = records(listed=(row,), charges=(985.0,))
    assert one(decide([DOUBT], early)) == Verdict("job", proof=Proof.LIST)


def test_the_log_objects_to_a_list_that_lacks_a_charged_task() -> None:
    """The list shows every known task, but the log a further charge: it stays in doubt."""
    both = records(charges=(990.5, 1003.0))
    assert one(decide([DOUBT], both)).reason is Reason.CHARGED


def test_a_charge_that_another_doubt_may_explain_does_not_object() -> None:
    """Two tasks fit one doubt, which explains the charge; the other doubt was not accepted."""
    other = attrs.evolve(DOUBT, key="a foal", fingerprint="foal 16:9", prompt="foal")
    twin = attrs.evolve(KITTEN, task_id="t-twin")
    first, second = decide([DOUBT, other], records(KITTEN, twin, charges=(990.5, 1003.0)))
    assert first.reason is Reason.SEVERAL
    assert second == Verdict("a foal", proof=Proof.LIST)


def test_a_task_that_was_found_explains_its_charge() -> None:
    """Two equal doubts, one task, and one charge beside the known one: the other is not charged."""
    later = attrs.evolve(DOUBT, key="later", sent_at=1002.0)
    first, second = decide([DOUBT, later], records(KITTEN, charges=(990.5, 1003.0)))
    assert first.task == KITTEN
    assert second == Verdict("later", proof=Proof.LIST)


@pytest.mark.parametrize("now", [1100.0, 5000.0], ids=["early", "late"])
def test_a_task_without_a_charge_is_neither_taken_nor_overlooked(now: float) -> None:
    """
    It may be another program's, or ours: gateways lose rows of the log, and write some later.

    So a person decides: "not accepted" would pay for it again.
    """
    log = records(KITTEN, charges=(990.5,), now=now)
    reason = Reason.EARLY if now < 1600.0 else Reason.UNCHARGED
    ids = () if now < 1600.0 else ("t-kitten",)
    assert one(decide([DOUBT], log)) == Verdict("job", reason=reason, task_ids=ids)


def test_the_log_chooses_among_tasks_that_look_the_same() -> None:
    """Two tasks fit one doubt, and the key was charged when one of them was accepted."""
    twin = attrs.evolve(KITTEN, task_id="t-twin", created_at=1030.0)
    for mine, other in ((KITTEN, twin), (twin, KITTEN)):
        log = records(KITTEN, twin, charges=(991.0, mine.created_at))
        assert one(decide([DOUBT], log)) == Verdict("job", mine, Proof.LIST), other


def test_a_charge_that_two_tasks_may_be_for_chooses_none() -> None:
    """Two equal tasks of the same seconds and one charge: a person chooses."""
    twin = attrs.evolve(KITTEN, task_id="t-twin", created_at=1004.0)
    several = Verdict("job", reason=Reason.SEVERAL, task_ids=("t-kitten", "t-twin"))
    assert one(decide([DOUBT], records(KITTEN, twin, charges=(991.0, 1003.0)))) == several


def test_a_task_beside_one_that_explains_the_charge_is_not_taken() -> None:
    """A kitten and a puppy of the same second, one charge, and a doubt about each."""
    puppy = attrs.evolve(DOUBT, key="puppy", fingerprint="puppy 16:9", prompt="puppy")
    listed = attrs.evolve(PUPPY, task_id="t-other", created_at=1003.0)
    verdicts = decide([DOUBT, puppy], records(KITTEN, listed, charges=(991.0, 1003.0)))
    assert [verdict.reason for verdict in verdicts] == [Reason.UNCLEAR, Reason.UNCLEAR]
    assert [verdict.task_ids for verdict in verdicts] == [("t-kitten",), ("t-other",)]


def test_a_task_that_is_chosen_leaves_the_charge_beside_it() -> None:
    """The kitten is the one with a charge to itself; so the other charge is the puppy's."""
    puppy = attrs.evolve(DOUBT, key="puppy", fingerprint="puppy 16:9", prompt="puppy")
    listed = attrs.evolve(PUPPY, task_id="t-other", created_at=1003.0)
    mine = attrs.evolve(KITTEN, task_id="t-mine", created_at=1060.0)
    log = records(KITTEN, mine, listed, charges=(991.0, 1003.0, 1060.0))
    assert [verdict.task for verdict in decide([DOUBT, puppy], log)] == [mine, listed]


def test_many_known_tasks_show_how_close_a_charge_is() -> None:
    """Twenty known tasks were charged in the second of their rows, and so was ours."""
    times = [900.0 + 5 * number for number in range(20)]
    known = [
        attrs.evolve(KNOWN, key=f"{at}", task_id=f"t-{at}", sent_at=at - 1, accepted_at=at)
        for at in times
    ]
    rows = [attrs.evolve(PUPPY, task_id=f"t-{at}", created_at=at) for at in times]
    twin = attrs.evolve(KITTEN, task_id="t-twin", created_at=1004.0)
    log = records(known=known, listed=(*rows, KITTEN, twin), charges=(*times, 1003.0))
    assert one(decide([DOUBT], log)).task == KITTEN
    loose = attrs.evolve(log, charges=charges(*times[:-1], times[-1] + 1.0, 1003.0))
    assert one(decide([DOUBT], loose)).reason is Reason.SEVERAL
    looser = attrs.evolve(log, charges=charges(*times[:-1], times[-1] + 2.0, 1003.0))
    assert one(decide([DOUBT], looser)).reason is Reason.SEVERAL


def test_a_log_that_lacks_one_of_the_known_charges_chooses_none() -> None:
    """A log that shows one known task and not the other is not to be relied on."""
    other = attrs.evolve(KNOWN, key="other", task_id=None, sent_at=970.0, accepted_at=971.0)
    lacking = records(KITTEN, known=(KNOWN, other), charges=(991.0, 1003.0))
    verdict = one(decide([DOUBT], lacking))
    assert verdict == Verdict("job", reason=Reason.UNCLEAR, task_ids=("t-kitten",))


@pytest.mark.parametrize("charges", [(), (3000.0,)], ids=["switched off", "of another time"])
def test_without_a_log_the_only_task_that_fits_is_the_one(charges: tuple[float, ...]) -> None:
    """A log that shows none of the known tasks says nothing about others."""
    assert one(decide([DOUBT], records(KITTEN, charges=charges))).task == KITTEN


def test_a_task_that_was_just_accepted_may_not_be_in_the_log_yet() -> None:
    """The log lacks the charge of a known task of the last seconds, and is relied on."""
    fresh = attrs.evolve(KNOWN, key="fresh", task_id="t-f", sent_at=1008.0, accepted_at=1009.0)
    log = records(KITTEN, known=(KNOWN, fresh), charges=(991.0, 1003.0), now=1010.0)
    assert one(decide([DOUBT], log)).task == KITTEN


def test_no_task_is_taken_while_the_log_cannot_be_read() -> None:
    """The gateway has a log, which may show that the task is not ours."""
    verdict = one(decide([DOUBT], records(KITTEN, is_log_due=True)))
    assert verdict == Verdict("job", reason=Reason.LOG_DUE, task_ids=("t-kitten",))


def test_nothing_is_sent_again_while_the_log_cannot_be_read() -> None:
    """The list lacks a task, and the log of the key may show that it was paid for."""
    due = records(is_log_due=True)
    assert one(decide([DOUBT], due)) == Verdict("job", reason=Reason.LOG_DUE)


def test_a_charge_counts_also_in_a_log_that_lacks_others() -> None:
    """The log lacks a known charge, and has one that only the doubt explains."""
    both = records(charges=(1003.0,))
    assert one(decide([DOUBT], both)).reason is Reason.CHARGED


def test_a_doubt_that_was_found_explains_one_charge_only() -> None:
    """The list lacks the task of the second doubt, and the log has a charge for both."""
    foal = attrs.evolve(DOUBT, key="a foal", fingerprint="foal 16:9", prompt="foal")
    first, second = decide([DOUBT, foal], records(KITTEN, charges=(990.5, 1003.0, 1040.0)))
    assert first.task == KITTEN
    assert second == Verdict("a foal", reason=Reason.CHARGED, charges=(1, 1))


def test_a_charge_of_a_clock_that_is_behind_is_not_overlooked() -> None:
    """The charge seems to be some seconds before the request: clocks differ, and are rounded."""
    log = records(charges=(990.5, 994.0), **LOG_ONLY)
    assert one(decide([DOUBT], log)).reason is Reason.CHARGED
    known = records(charges=(990.5,), **LOG_ONLY)
    assert one(decide([DOUBT], known)).proof is Proof.LOG


@pytest.mark.parametrize(
    "changes",
    [
        {"charges_since": 990.5},
        {"known": (attrs.evolve(KNOWN, model="act_two"),)},
        {"known": (attrs.evolve(KNOWN, route="/pro/act_one"),)},
        {"known": (attrs.evolve(KNOWN, is_evidence=False),)},
        {"known": (attrs.evolve(KNOWN, sent_at=300.0, accepted_at=301.0),), "charges": (301.0,)},
    ],
    ids=["too short", "another model", "another kind", "found by the list", "another time"],
)
def test_a_log_proves_nothing_without_a_charge_like_it(changes: dict[str, Any]) -> None:
    """A log without rows, or without one of the same kind and model, may lack ours."""
    log = records(**{"charges": (990.5,), **LOG_ONLY, **changes})
    assert one(decide([DOUBT], log)).reason is Reason.UNPROVEN


def test_a_known_task_of_another_model_does_not_explain_a_charge_away() -> None:
    """
    A gateway logs the other model when its task ends, so the charge beside it is the doubt's.

    If the log names the models, it shows which charge is for which task.
    """
    other = attrs.evolve(KNOWN, key="2", model="gen3", task_id="t-2", sent_at=999.0)
    other = attrs.evolve(other, accepted_at=1004.0)
    log = records(known=(KNOWN, other), charges=(990.5, 1003.0), **LOG_ONLY)
    assert one(decide([DOUBT], log)).reason is Reason.UNPROVEN
    mine, theirs = charges(990.5, model="gen4"), charges(1003.0, model="gen3")
    assert one(decide([DOUBT], attrs.evolve(log, charges=[*mine, *theirs]))).proof is Proof.LOG
    theirs = charges(1003.0, routes=frozenset({"/pro/act_one"}))
    assert one(decide([DOUBT], attrs.evolve(log, charges=[*mine, *theirs]))).proof is Proof.LOG


def test_an_uncharged_task_of_an_equal_doubt_forbids_not_accepted() -> None:
    """The older task, which has no charge, may belong to the later of two equal doubts."""
    later = attrs.evolve(DOUBT, key="later", sent_at=1100.0)
    second = attrs.evolve(KITTEN, task_id="t-second", created_at=1103.0)
    verdicts = decide([DOUBT, later], records(KITTEN, second, charges=(990.5, 1103.0)))
    assert verdicts[0].task == second
    assert verdicts[1] == Verdict("later", reason=Reason.UNCHARGED, task_ids=("t-kitten",))


def test_an_uncertain_task_of_an_equal_doubt_forbids_not_accepted() -> None:
    """The older task, whose charge may be a puppy's, may be that of the later equal doubt."""
    later = attrs.evolve(DOUBT, key="later", sent_at=1100.0)
    puppy = attrs.evolve(DOUBT, key="puppy", fingerprint="puppy 16:9", prompt="puppy")
    second = attrs.evolve(KITTEN, task_id="t-second", created_at=1103.0)
    other = attrs.evolve(PUPPY, task_id="t-other", created_at=1003.0)
    log = records(KITTEN, second, other, charges=(990.5, 1003.0, 1103.0))
    first, last, _ = decide([DOUBT, later, puppy], log)
    assert first.task == second
    assert last == Verdict("later", reason=Reason.UNCLEAR, task_ids=("t-kitten",))


def test_a_charge_that_may_be_missing_is_no_proof() -> None:
    """The only known task like it was accepted a moment ago, so its own charge may be missing."""
    fresh = attrs.evolve(KNOWN, sent_at=1598.0, accepted_at=1601.0)
    other = attrs.evolve(KNOWN, key="2", route="/pro/act_one", task_id="t-2")
    log = records(known=(other, fresh), charges=(990.5,), now=1602.0, **LOG_ONLY)
    assert one(decide([DOUBT], log)).reason is Reason.UNPROVEN


def test_a_log_need_not_show_what_is_older_than_its_first_row() -> None:
    """Gateways send the last thousand rows: known tasks from before are not missed."""
    old = attrs.evolve(KNOWN, key="old", task_id="t-old", sent_at=700.0, accepted_at=701.0)
    log = records(known=(old, KNOWN), charges=(985.0, 990.5), charges_since=985.0, **LOG_ONLY)
    assert one(decide([DOUBT], log)).proof is Proof.LOG
    assert one(decide([DOUBT], attrs.evolve(log, charges_since=600.0))).reason is Reason.UNPROVEN


def test_charges_are_told_apart_by_time() -> None:
    """With the log alone: a charge before the second doubt was sent is for the first."""
    later = attrs.evolve(DOUBT, key="later", sent_at=1100.0)
    log = records(charges=(990.5, 1003.0), **LOG_ONLY)
    assert decide([DOUBT, later], log) == [
        Verdict("job", reason=Reason.CHARGED, charges=(1, 1)),
        Verdict("later", proof=Proof.LOG),
    ]


def test_charges_that_time_does_not_tell_apart_are_counted() -> None:
    """Two doubts and one charge after both: one of them was charged, and none is sent again."""
    later = attrs.evolve(DOUBT, key="later", sent_at=1001.0)
    verdicts = decide([DOUBT, later], records(charges=(990.5, 1003.0), **LOG_ONLY))
    assert [verdict.charges for verdict in verdicts] == [(1, 2), (1, 2)]


def test_a_known_task_of_long_ago_explains_its_charge() -> None:
    """Traffic without a gap: the charge just before the time of the doubt has its known task."""
    times = [float(at) for at in range(300, 1000)]
    known = [
        attrs.evolve(KNOWN, key=f"{at}", task_id=f"t-{at}", sent_at=at, accepted_at=at)
        for at in times
    ]
    log = records(known=known, charges=times, **LOG_ONLY)
    assert one(decide([DOUBT], log)).proof is Proof.LOG


def test_nothing_in_doubt_needs_no_verdict() -> None:
    """Without doubts there is nothing to decide."""
    assert decide([], records(KITTEN)) == []
