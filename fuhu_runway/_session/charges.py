"""
Assign the charges in the log of a key by time: a charge is for one task, and a task has one.

Pure. Instants are Unix seconds of the gateway's clock.
"""

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import attrs

Span = tuple[float, float]
"""The time in which a task was charged: from and to, both included."""


def assigned(spans: Iterable[Span], charges: Sequence[float]) -> int:
    """Return how many of *spans* can have one of *charges* each; *charges* are sorted."""
    coming, ends, count = sorted(spans, reverse=True), list[float](), 0
    for charge in charges:
        while coming and coming[-1][0] <= charge:
            heapq.heappush(ends, coming.pop()[1])
        while ends and ends[0] < charge:
            heapq.heappop(ends)
        if ends:
            # The one that could not have a later charge.
            heapq.heappop(ends)
            count += 1
    return count


@attrs.define(slots=False)
class Stretch:
    """A time that no span reaches out of, with the charges in it."""

    start: float
    end: float
    #: What was charged for certain.
    known: list[Span] = attrs.field(factory=list)
    #: What may have been charged, and is not decided about.
    rivals: list[Span] = attrs.field(factory=list)
    #: What may have been charged, by its name.
    claims: dict[str, Span] = attrs.field(factory=dict)
    charges: Sequence[float] = ()

    @cached_property
    def shown(self) -> int:
        """How many of the known have their charge."""
        return assigned(self.known, self.charges)

    @property
    def is_whole(self) -> bool:
        """Whether everything known has its charge."""
        return self.shown == len(self.known)

    @cached_property
    def explained(self) -> int:
        """How many charges are explained without any claim."""
        return assigned([*self.known, *self.rivals], self.charges)

    @cached_property
    def unexplained(self) -> int:
        """How many charges only claims explain."""
        spans = [*self.known, *self.rivals, *self.claims.values()]
        return assigned(spans, self.charges) - self.explained

    def can_be(self, name: str) -> bool:
        """Whether a claim may have been charged."""
        spans = [*self.known, self.claims[name]]
        return assigned(spans, self.charges) == len(spans)

    def explains(self, name: str) -> bool:
        """Whether a claim explains a charge that is not explained without any."""
        spans = [*self.known, *self.rivals, self.claims[name]]
        return assigned(spans, self.charges) > self.explained

    def must_be(self, name: str) -> bool:
        """Whether a claim was charged for certain, if the key was charged for nothing unknown."""
        others = [span for key, span in self.claims.items() if key != name]
        spans = [*self.known, *self.rivals, *others]
        return assigned(spans, self.charges) < self.explained + self.unexplained


def stretches(
    known: Iterable[Span],
    claims: Mapping[str, Span],
    charges: Sequence[float],
    *,
    rivals: Iterable[Span] = (),
    back: float = 0.0,
) -> dict[str, Stretch]:
    """
    Return the stretch of each claim; *charges* are sorted.

    It reaches *back* seconds before a claim, so that what is known from then is in it.
    """
    made: list[Stretch] = []
    by_name: dict[str, Stretch] = {}
    spans = [(span[0], span, "known", "") for span in known]
    spans += [(span[0], span, "rival", "") for span in rivals]
    spans += [(span[0] - back, span, "claim", name) for name, span in claims.items()]
    for start, span, role, name in sorted(spans):
        if not made or start > made[-1].end:
            made.append(Stretch(start, span[1]))
        last = made[-1]
        last.end = max(last.end, span[1])
        if role == "claim":
            last.claims[name] = span
            by_name[name] = last
        else:
            (last.known if role == "known" else last.rivals).append(span)
    for one in made:
        one.charges = charges[bisect_left(charges, one.start) : bisect_right(charges, one.end)]
    return by_name
