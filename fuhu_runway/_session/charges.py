"""
Assign the charges in the log of a key by time: a charge is for one task, and a task has one.

Pure. Instants are Unix seconds of the gateway's clock.
"""

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from itertools import accumulate

import attrs

Span = tuple[float, float]
"""The time in which a task was charged: from and to, both included."""


@attrs.define(slots=False, eq=False)
class Assignment:
    """As many of *spans* as possible, with one of *charges* each; *charges* are sorted."""

    spans: Sequence[Span]
    charges: Sequence[float]

    @cached_property
    def owners(self) -> Sequence[int | None]:
        """The number of the span that each charge is for; None if it is for none."""
        coming = sorted(((*span, number) for number, span in enumerate(self.spans)), reverse=True)
        ends, owners = list[tuple[float, int]](), list[int | None]()
        for charge in self.charges:
            while coming and coming[-1][0] <= charge:
                _, end, number = coming.pop()
                heapq.heappush(ends, (end, number))
            while ends and ends[0][0] < charge:
                heapq.heappop(ends)
            # The one that could not have a later charge.
            owners.append(heapq.heappop(ends)[1] if ends else None)
        return owners

    @cached_property
    def count(self) -> int:
        """How many spans have a charge."""
        return len(self.owners) - self.owners.count(None)

    def places(self, span: Span) -> tuple[int, int]:
        """Return the charges that a span may have: the first, and the one after the last."""
        return bisect_left(self.charges, span[0]), bisect_right(self.charges, span[1])

    @cached_property
    def _places(self) -> Sequence[tuple[int, int]]:
        """The charges that the owner of each may have; none if it is for none."""
        return [(0, 0) if one is None else self.places(self.spans[one]) for one in self.owners]

    @cached_property
    def _free(self) -> Sequence[int]:
        """
        How many charges before each could be for one more span.

        A charge could be if it is for none, or if its owner may have a later one that could be.
        Charges are for the span that ends first, so an owner that may have an earlier one that
        could be may have a later one as well.
        """
        free = [owner is None for owner in self.owners]
        nearest = len(free)
        for place in reversed(range(len(free))):
            free[place] |= nearest < self._places[place][1]
            nearest = place if free[place] else nearest
        return [0, *accumulate(free)]

    def takes(self, span: Span) -> bool:
        """Whether one more span could have a charge, and each that has one keeps one."""
        first, end = self.places(span)
        return self._free[end] > self._free[first]

    @cached_property
    def certain(self) -> AbstractSet[int | None]:
        """The numbers of the spans that have a charge, whichever `count` spans have one."""
        certain = {*self.owners} - {None}
        others = (span for number, span in enumerate(self.spans) if number not in certain)
        # From each place, the next whose owner still counts as certain.
        later = [*range(len(self.owners) + 1)]
        todo = [self.places(span) for span in others]
        while todo:
            place, end = todo.pop()
            while True:
                while later[place] != place:
                    later[place] = place = later[later[place]]
                if place >= end:
                    break
                # A span without a charge may have this one, in place of its owner.
                later[place] = place + 1
                certain.discard(self.owners[place])
                todo.append(self._places[place])
        return certain


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
    def _of_known(self) -> Assignment:
        return Assignment(self.known, self.charges)

    @cached_property
    def _of_others(self) -> Assignment:
        return Assignment([*self.known, *self.rivals], self.charges)

    @cached_property
    def _of_all(self) -> Assignment:
        spans = [*self.known, *self.rivals, *self.claims.values()]
        return Assignment(spans, self.charges)

    @property
    def shown(self) -> int:
        """How many of the known have their charge."""
        return self._of_known.count

    @property
    def is_whole(self) -> bool:
        """Whether everything known has its charge."""
        return self.shown == len(self.known)

    @property
    def unexplained(self) -> int:
        """How many charges only claims explain."""
        return self._of_all.count - self._of_others.count

    @cached_property
    def claimants(self) -> int:
        """How many claims explain a charge."""
        return sum(map(self.explains, self.claims))

    def can_be(self, name: str) -> bool:
        """Whether a claim may have been charged."""
        return self.is_whole and self._of_known.takes(self.claims[name])

    def explains(self, name: str) -> bool:
        """Whether a claim explains a charge that is not explained without any."""
        return self._of_others.takes(self.claims[name])

    @cached_property
    def _certain(self) -> AbstractSet[str]:
        numbered = enumerate(self.claims, len(self.known) + len(self.rivals))
        return {name for number, name in numbered if number in self._of_all.certain}

    def must_be(self, name: str) -> bool:
        """Whether a claim was charged for certain, if the key was charged for nothing unknown."""
        return name in self._certain


def merged(spans: Iterable[Span]) -> list[Span]:
    """Return the times that *spans* cover, the earliest first."""
    made: list[Span] = []
    for start, end in sorted(spans):
        if made and start <= made[-1][1]:
            made[-1] = made[-1][0], max(made[-1][1], end)
        else:
            made.append((start, end))
    return made


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
