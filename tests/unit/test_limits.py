import asyncio

import pytest

from fuhu_runway._limits import Limits


async def until_nothing_moves() -> None:
    """Let every task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


class Visitors:
    """Holders of slots, who stay until they are told to go."""

    def __init__(self, at_once: int) -> None:
        self.limits = Limits(at_once)
        self.inside: list[int] = []
        self.entered: list[int] = []
        self.may_leave: dict[int, asyncio.Event] = {}

    async def visit(self, number: int) -> None:
        async with self.limits.slot():
            self.inside.append(number)
            self.entered.append(number)
            try:
                await self.may_leave.setdefault(number, asyncio.Event()).wait()
            finally:
                self.inside.remove(number)

    def start(self, count: int) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.visit(number)) for number in range(count)]

    async def send_away(self, *numbers: int) -> None:
        for number in numbers:
            self.may_leave.setdefault(number, asyncio.Event()).set()
        await until_nothing_moves()


async def test_no_more_than_so_many_are_in_flight() -> None:
    """A third request waits while two are in flight, and goes when one has come back."""
    visitors = Visitors(2)
    visits = visitors.start(3)
    await until_nothing_moves()
    assert visitors.inside == [0, 1]
    await visitors.send_away(0)
    assert visitors.inside == [1, 2]
    await visitors.send_away(1, 2)
    await asyncio.gather(*visits)


async def test_first_come_first_served() -> None:
    """Waiting requests go in the order in which they came."""
    visitors = Visitors(1)
    visits = visitors.start(5)
    for number in range(5):
        await visitors.send_away(number)
    await asyncio.gather(*visits)
    assert visitors.entered == [0, 1, 2, 3, 4]


async def test_nobody_overtakes_who_waits() -> None:
    """A newcomer goes behind those who wait already, even in the moment a slot comes free."""
    visitors = Visitors(1)
    first, second = visitors.start(2)
    await until_nothing_moves()
    visitors.may_leave[0].set()
    newcomer = asyncio.create_task(visitors.visit(9))
    await visitors.send_away(1, 9)
    await asyncio.gather(first, second, newcomer)
    assert visitors.entered == [0, 1, 9]


async def test_leaving_the_queue_holds_nobody_up() -> None:
    """Whoever is cancelled while waiting takes no slot, and the next in line moves up."""
    visitors = Visitors(1)
    visits = visitors.start(3)
    await until_nothing_moves()
    visits[1].cancel()
    await visitors.send_away(0)
    assert visitors.inside == [2]
    await visitors.send_away(2)
    await asyncio.gather(visits[0], visits[2])
    assert visits[1].cancelled()


async def test_a_slot_comes_back_however_it_was_left() -> None:
    """An error and a cancellation inside give the slot back as a success does."""
    limits = Limits(1)
    with pytest.raises(OSError, match="wire"):
        async with limits.slot():
            raise OSError("wire")
    visitors = Visitors(1)
    visitors.limits = limits
    (visit,) = visitors.start(1)
    await until_nothing_moves()
    visit.cancel()
    await until_nothing_moves()
    async with asyncio.timeout(1), limits.slot():
        assert visit.cancelled()


def test_a_limit_tells_its_number() -> None:
    """What was asked for can be read again."""
    assert Limits(7).requests_in_flight == 7
