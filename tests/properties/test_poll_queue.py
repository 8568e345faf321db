from collections.abc import Iterator

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fuhu_runway._waiting.poll_queue import PollQueue

KEYS = st.sampled_from("abcdefgh")
# Few instants, so that many entries are due at the same one.
INSTANTS = st.integers(0, 9).map(float)


@attrs.define
class PlainQueue:
    """The plainest queue: a dict that is sorted for each call."""

    #: Key to when it is due, and its place in the order in which keys were put.
    entries: dict[str, tuple[float, int]] = attrs.field(factory=dict)
    puts: int = 0

    def put(self, key: str, due_at: float) -> None:
        self.puts += 1
        self.entries[key] = (due_at, self.puts)

    def drop(self, key: str) -> None:
        self.entries.pop(key, None)

    def in_order(self) -> Iterator[tuple[str, float]]:
        for key in sorted(self.entries, key=self.entries.__getitem__):
            yield key, self.entries[key][0]

    def next_due_at(self) -> float | None:
        return next((due_at for _, due_at in self.in_order()), None)

    def take(self, now: float, at_most: int) -> list[str]:
        taken = [key for key, due_at in self.in_order() if due_at <= now][:at_most]
        for key in taken:
            del self.entries[key]
        return taken


class QueueMachine(RuleBasedStateMachine):
    """The heap returns what the dict returns, after any steps."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: PollQueue[str] = PollQueue()
        self.plain = PlainQueue()

    @rule(key=KEYS, due_at=INSTANTS)
    def put(self, key: str, due_at: float) -> None:
        self.queue.put(key, due_at)
        self.plain.put(key, due_at)

    @rule(key=KEYS, times=st.integers(20, 60))
    def put_again_and_again(self, key: str, times: int) -> None:
        for turn in range(times):
            self.put(key, float(turn % 10))

    @rule(key=KEYS)
    def drop(self, key: str) -> None:
        self.queue.drop(key)
        self.plain.drop(key)

    @precondition(lambda self: self.plain.entries)
    @rule(now=INSTANTS, at_most=st.integers(0, 9))
    def take(self, now: float, at_most: int) -> None:
        assert self.queue.take(now, at_most) == self.plain.take(now, at_most)

    @invariant()
    def agrees(self) -> None:
        assert len(self.queue) == len(self.plain.entries)
        assert {key for key in "abcdefgh" if key in self.queue} == set(self.plain.entries)
        assert self.queue.next_due_at() == self.plain.next_due_at()

    @invariant()
    def stays_small(self) -> None:
        assert len(self.queue._heap) <= 2 * len(self.plain.entries) + 17 + 9


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
