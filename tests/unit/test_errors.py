import copy
import inspect
import pickle
import re
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from fuhu_runway import errors
from fuhu_runway.errors import Fate, RunwayError

KINDS = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, RunwayError)
]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)

STANDARD_BASES = {
    "UsageError": ValueError,
    "NotSent": ConnectionError,
    "NoReply": TimeoutError,
    "WaitTimeout": TimeoutError,
}

EXAMPLES: dict[str, Any] = {
    "fate": Fate.REFUSED,
    "status": 429,
    "retry_after": 2.5,
    "reasons": ("required field missing @ $.task_id",),
    "points": 320.0,
    "refunded": True,
    "timeout": 1800.0,
    "received_bytes": 4096,
}


def filled(kind: type[RunwayError]) -> RunwayError:
    """Return an error whose every field differs from its default."""
    return kind(**{field.name: EXAMPLES.get(field.name, field.name) for field in fields(kind)})


def fields(kind: type[RunwayError]) -> "tuple[attrs.Attribute[Any], ...]":
    """Return the fields of an error class, which mypy takes for a mere exception."""
    return tuple(attrs.fields(kind))


def known(error: RunwayError) -> dict[str, Any]:
    """Return every field of an error."""
    return {field.name: getattr(error, field.name) for field in fields(type(error))}


def lines(kind: type[BaseException], lead: str = "") -> Iterator[str]:
    """Draw the classes below *kind* as the module's docstring draws them."""
    children = [child for child in KINDS if child.__bases__[0] is kind]
    for child in children:
        is_last = child is children[-1]
        standard = ", ".join(base.__name__ for base in child.__bases__[1:])
        yield f"{lead}{'└── ' if is_last else '├── '}{child.__name__}" + (
            f" ({standard})" if standard else ""
        )
        yield from lines(child, lead + ("    " if is_last else "│   "))


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    """The drawing at the top of the module names each class once, in its place, and no other."""
    (drawn,) = re.findall(r"^    RunwayError\n(?:    .+\n)+", errors.__doc__ or "", re.MULTILINE)
    assert [line[4:] for line in drawn.splitlines()] == ["RunwayError", *lines(RunwayError)]


@EVERY_KIND
def test_each_error_pickles_with_all_it_knows(kind: type[RunwayError]) -> None:
    """An error that went through a pickle has its class, its text and each of its fields."""
    error = filled(kind)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - our own
        assert (type(again), str(again), known(again)) == (kind, str(error), known(error))


@EVERY_KIND
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_each_error_copies_with_all_it_knows(kind: type[RunwayError], copied: Any) -> None:
    """A copy of an error has its class, its text and each of its fields, and changes alone."""
    error = filled(kind)
    again = copied(error)
    assert (type(again), str(again), known(again)) == (kind, str(error), known(error))
    again.task_id = "another"
    assert error.task_id == "task_id"


@EVERY_KIND
def test_each_error_pickles_with_its_defaults_too(kind: type[RunwayError]) -> None:
    """Three sentences are enough for any error, and survive a pickle as they are."""
    error = kind("It broke.", "Nothing was charged.", "Call again.")
    assert known(pickle.loads(pickle.dumps(error))) == known(error)  # noqa: S301 - our own
    assert str(error) == "It broke. Nothing was charged. Call again."


@EVERY_KIND
def test_each_text_has_three_parts_and_the_ids(kind: type[RunwayError]) -> None:
    """The text says what happened, what it means for the money and what to do, with both ids."""
    error = kind("It broke.", "Nothing was charged.", "Call again.", "t-1", "r-1")
    assert str(error) == ("It broke. Nothing was charged. Call again. (task t-1, request r-1)")
    assert (error.happened, error.money, error.advice) == (
        "It broke.",
        "Nothing was charged.",
        "Call again.",
    )


@pytest.mark.parametrize(
    ("task_id", "request_id", "end"),
    [("t-1", None, "(task t-1)"), (None, "r-1", "(request r-1)"), ("", "", "Call again.")],
)
def test_a_text_names_only_the_ids_that_are_known(
    task_id: str | None, request_id: str | None, end: str
) -> None:
    """An id that is missing leaves no empty brackets behind."""
    error = RunwayError("It broke.", "Nothing was charged.", "Call again.", task_id, request_id)
    assert str(error).endswith(end)
    assert "None" not in str(error)


@EVERY_KIND
def test_each_error_has_the_standard_base_that_callers_expect(kind: type[RunwayError]) -> None:
    """`except ValueError`, `ConnectionError` or `TimeoutError` catches ours of that kind."""
    (standard,) = [base for base in kind.__mro__ if base.__module__ == "builtins"][:1]
    assert standard is STANDARD_BASES.get(kind.__name__, Exception)


@EVERY_KIND
def test_each_error_says_what_it_is(kind: type[RunwayError]) -> None:
    """Each class has its own docstring, and each of its fields a comment."""
    assert kind.__doc__ is not None
    assert kind.__doc__ != (kind.__mro__[1].__doc__ or "")
    source = inspect.getsource(kind)
    for name in vars(kind).get("__annotations__", {}):
        assert re.search(rf"#: .+\n(?:    #: .+\n)*    {name}: ", source), name


@EVERY_KIND
def test_two_errors_are_never_the_same(kind: type[RunwayError]) -> None:
    """Errors are compared and hashed by identity, as Python's own are."""
    one, other = filled(kind), filled(kind)
    assert one != other
    assert len({one, other}) == 2


@EVERY_KIND
def test_each_error_carries_a_traceback_and_notes(kind: type[RunwayError]) -> None:
    """An error can be raised from another and be given notes, as any exception."""
    cause = OSError("wire")
    with pytest.raises(kind) as caught:
        raise filled(kind) from cause
    caught.value.add_note("for item 7")
    assert caught.value.__cause__ is cause
    assert caught.value.__notes__ == ["for item 7"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The task failed: rejected", "The task failed: rejected."),
        ("The task failed: rejected.", "The task failed: rejected."),
        ("The task failed: rejected..", "The task failed: rejected."),
        ("The task failed: no!.", "The task failed: no!"),
        ("The task failed: why?.", "The task failed: why?"),
        ("The task failed: 不行。.", "The task failed: 不行。"),
        ("The task failed: a busy stre....", "The task failed: a busy stre..."),
        ("Wait...", "Wait..."),
        ("Wait….", "Wait…"),
        ("", ""),
    ],
)
def test_a_sentence_has_one_stop(text: str, said: str) -> None:
    """Each of the three sentences ends once, whatever a gateway's words in it end with."""
    error = errors.NotSent(text, text, text)
    assert (error.happened, error.money, error.advice) == (said, said, said)


@pytest.mark.parametrize(
    ("kind", "fate"),
    [
        (errors.TransportError, Fate.UNKNOWN),
        (errors.SubmissionInDoubt, Fate.UNKNOWN),
        (errors.UnreadableReply, Fate.UNKNOWN),
        (errors.GatewayError, Fate.REJECTED),
        (errors.InvalidRequest, Fate.REJECTED),
    ],
)
def test_what_is_not_said_is_taken_for_the_worse(kind: Any, fate: Fate) -> None:
    """Without a fate, no answer is of unknown fate, and an answer that says no is final."""
    assert kind("a", "b", "c").fate is fate
