"""Messages arrive once and in their order, whatever a connection loses."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import FrameReader, decode
from protocol.delivery import Delivery
from protocol.messages import Credit, Message


class Link:
    """Two ends, and what is on its way between them."""

    def __init__(self) -> None:
        self.on_its_way: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self.reader = FrameReader()
        self.ends = [
            Delivery(b"peer", self.sender_from(number), self.reader) for number in range(2)
        ]
        self.told: tuple[list[int], list[int]] = ([], [])
        self.heard: tuple[list[int], list[int]] = ([], [])

    async def do(self, step: tuple[str, int]) -> None:
        what, end = step
        match what:
            case "tell":
                self.told[end].append(len(self.told[end]) + 1)
                await self.ends[end].send(Credit(episodes=self.told[end][-1]))
            case "arrive":
                await self.arrive(end)
            case "repeat":
                await self.ends[end].resend()
            case "break":  # what is on its way is lost
                self.on_its_way[end].clear()

    async def arrive(self, end: int) -> None:
        """The first frame that `end` has sent, if any."""
        if self.on_its_way[end]:
            other = 1 - end
            received = await self.ends[other].take(decode(self.on_its_way[end].popleft()))
            if received is not None:
                self.heard[other].append(received.message.episodes)

    async def settle(self) -> None:
        """Nothing is lost from now on."""
        for _ in range(10):
            for end in (0, 1):
                await self.ends[end].resend()
                while self.on_its_way[0] or self.on_its_way[1]:
                    await self.arrive(0)
                    await self.arrive(1)

    def sender_from(self, number: int):
        """Make what puts frames of this end on their way."""

        async def send(frame: bytes) -> None:
            self.on_its_way[number].append(frame)

        return send


steps = st.tuples(
    st.sampled_from(["tell", "tell", "arrive", "arrive", "repeat", "break"]), st.integers(0, 1)
)


@given(st.lists(steps, max_size=60))
def test_all_that_is_told_is_heard_once_and_in_its_order_whatever_is_lost(
    taken: list[tuple[str, int]],
) -> None:
    async def play() -> None:
        link = Link()
        for step in taken:
            await link.do(step)
            for end in (0, 1):
                heard = link.heard[1 - end]
                told = link.told[end]
                assert heard == told[: len(heard)], "in order, and none twice"
        await link.settle()
        assert link.heard == (link.told[1], link.told[0])
        assert [end.unconfirmed for end in link.ends] == [0, 0] and link.reader.dropped_frames == 0

    asyncio.run(play())


async def test_delivery_to_a_peer_that_is_gone_sends_one_message_then_all_that_are_left() -> None:
    """A peer that is gone is sent one message each time, and once it is back all that are left."""
    link = Link()
    for _ in range(100):
        await link.do(("tell", 0))
    link.on_its_way[0].clear()
    for _ in range(20):
        await link.ends[0].resend()
    assert len(link.on_its_way[0]) == 19
    while link.on_its_way[0] or link.on_its_way[1]:
        await link.arrive(0)
        await link.arrive(1)
    assert link.heard[1] == list(range(1, 101))


async def test_a_process_in_the_place_of_another_one_is_heard_from_its_beginning() -> None:
    link = Link()
    for _ in range(2):
        for _ in range(3):
            await link.do(("tell", 0))
        await link.settle()
        link.ends[0] = Delivery(b"peer", link.sender_from(0), link.reader)
    assert link.heard[1] == link.told[0] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("message", [Credit(episodes=1)])
async def test_what_has_no_number_is_refused(message: Message) -> None:
    link = Link()
    assert await link.ends[0].take(message) is None and link.reader.dropped_frames == 1
