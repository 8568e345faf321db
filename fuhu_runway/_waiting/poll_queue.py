"""
A queue of keys with due times.

Pure: no clock, no sockets. The caller passes *now*, in seconds of any monotonic clock.
"""

import heapq
import itertools
from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")


class PollQueue(Generic[K]):
    """
    Keys with due times. Putting, dropping and taking one of n costs O(log n).

    A key that was dropped or put again leaves its old entry in the heap. Old entries are skipped
    when they come to the top, and removed together once they outnumber the valid ones.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self._valid: dict[K, int] = {}
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._valid)

    def __contains__(self, key: K) -> bool:
        return key in self._valid

    def put(self, key: K, due_at: float) -> None:
        """Set when *key* is due, in place of an earlier due time."""
        order = next(self._order)
        self._valid[key] = order
        heapq.heappush(self._heap, (due_at, order, key))
        if len(self._heap) > 2 * len(self._valid) + 16:
            self._heap = [entry for entry in self._heap if self._is_valid(entry)]
            heapq.heapify(self._heap)

    def drop(self, key: K) -> None:
        """Remove *key* if it is there."""
        self._valid.pop(key, None)

    def next_due_at(self) -> float | None:
        """Return the earliest due time."""
        heap = self._heap
        while heap:
            due_at, order, key = heap[0]
            if self._valid.get(key) == order:
                return due_at
            heapq.heappop(heap)
        return None

    def has_due(self, now: float) -> bool:
        """Return whether any key is due."""
        due_at = self.next_due_at()
        return due_at is not None and due_at <= now

    def __iter__(self) -> Iterator[K]:
        return iter(list(self._valid))  # the caller may put and drop keys meanwhile

    def due(self, now: float) -> list[K]:
        """Return all keys that are due, in no order, and keep them."""
        found: list[K] = []
        places = [0]
        while places:
            place = places.pop()
            if place < len(self._heap) and self._heap[place][0] <= now:
                if self._is_valid(self._heap[place]):
                    found.append(self._heap[place][2])
                places += (2 * place + 1, 2 * place + 2)  # the children of a heap's entry
        return found

    def take(self, now: float, at_most: int) -> list[K]:
        """Remove and return up to *at_most* keys that are due, the longest due first."""
        taken: list[K] = []
        while len(taken) < at_most and self.has_due(now):
            _, _, key = heapq.heappop(self._heap)
            del self._valid[key]
            taken.append(key)
        return taken

    def _is_valid(self, entry: tuple[float, int, K]) -> bool:
        return self._valid.get(entry[2]) == entry[1]
