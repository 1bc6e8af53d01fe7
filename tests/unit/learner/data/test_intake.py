"""Intake of what actors deliver.

It is in the log before it is acknowledged, and taken in together where several wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

import protocol.router
from learner.data.episode_log import EpisodeLog, read_records
from learner.data.groups import GroupBuffer
from learner.data.intake import Arrivals, EpisodeStore, Intake
from protocol.codec import FrameReader, decode, encode
from protocol.messages import DropReason, EpisodeEnded, EpisodeKey, Refused, Trajectory
from protocol.router import BatchedRouter
from tests.fixtures.learner import trajectory


def find_flaw(episode: Trajectory) -> str | None:
    if episode.key.group < 1000:
        return None
    return "not an episode that is being played"


class CountedArrivals(Arrivals):
    """Counts how often it wakes."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self._bench = bench

    def notify(self) -> None:
        self._bench.wakes += 1
        super().notify()


class Bench:
    """An intake, and an actor that is connected to it. `inproc`: what is sent has arrived."""

    def __init__(self, directory: Path, context: zmq.asyncio.Context) -> None:
        self.path = directory / "log"
        self.log = EpisodeLog.open(self.path)
        self.buffer = GroupBuffer(group_size=2)
        self.writes: list[int] = []
        self.wakes = 0
        append = self.log.append
        self.log.append = lambda frames: self.writes.append(len(frames)) or append(frames)
        self.router = context.socket(zmq.ROUTER)
        self.actor = context.socket(zmq.DEALER)
        self.router.bind("inproc://intake")
        self.actor.connect("inproc://intake")
        self.store = EpisodeStore(self.log, self.buffer)
        self.reader = FrameReader()
        self.intake = Intake(
            BatchedRouter(self.router),
            self.store,
            self.buffer,
            CountedArrivals(self),
            self.reader,
            find_flaw,
        )

    async def deliver(self, *frames: Trajectory | bytes) -> None:
        for frame in frames:
            await self.actor.send(frame if isinstance(frame, bytes) else encode(frame))

    async def acknowledged(self, count: int) -> list[tuple[int, int]]:
        """Wait for so many acknowledged episodes, and return (group, member) of each.

        Each stands in the log when that comes.
        """
        keys: list[EpisodeKey] = []
        async with asyncio.timeout(5):
            while len(keys) < count:
                together = decode(await self.actor.recv()).keys
                assert set(together) <= {
                    decode(frame).key for _, _, frame in read_records(self.path)
                }
                keys += together
        return [(key.group, key.member) for key in keys]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    context = zmq.asyncio.Context()
    made = Bench(tmp_path, context)
    yield made
    made.log.close()
    context.destroy(linger=0)


@pytest.fixture
async def running(bench: Bench) -> AsyncIterator[Bench]:
    task = asyncio.create_task(bench.intake.run())
    yield bench
    task.cancel()
    await asyncio.wait([task])


async def test_episodes_that_wait_share_a_write_and_a_waking_and_each_is_acknowledged(bench: Bench):
    await bench.deliver(*(trajectory(0, member) for member in range(2)), trajectory(1, 0))
    task = asyncio.create_task(bench.intake.run())
    assert await bench.acknowledged(3) == [(0, 0), (0, 1), (1, 0)]
    assert bench.writes == [3] and bench.wakes == 1
    bench.buffer.collect_complete()
    assert bench.buffer.pop_batch(1)[0] == [0]
    task.cancel()


async def test_an_episode_that_comes_alone_is_acknowledged_at_once(running: Bench):
    for member in range(2):
        await running.deliver(trajectory(0, member))
        assert await running.acknowledged(1) == [(0, member)]
    assert running.writes == [1, 1]


async def test_an_episode_that_is_known_is_acknowledged_and_not_logged_again(running: Bench):
    await running.deliver(trajectory(0, 0), trajectory(0, 0, attempt=1), trajectory(0, 1))
    assert await running.acknowledged(3) == [(0, 0), (0, 0), (0, 1)]
    assert [decode(frame).lease_attempt for _, _, frame in read_records(running.path)] == [0, 0]
    assert len(running.store.offsets) == 2


async def test_a_frame_that_cannot_be_read_costs_itself_alone(running: Bench):
    await running.deliver(b"nonsense", trajectory(0, 0), encode(trajectory(0, 1))[:-1])
    assert await running.acknowledged(1) == [(0, 0)]


async def test_refused_episode_is_neither_logged_nor_acknowledged_and_its_sender_told(
    running: Bench,
):
    """A refused episode is neither logged nor acknowledged, and its sender is told."""
    await running.deliver(
        trajectory(1000, 0), encode(EpisodeEnded(key=trajectory(0, 0).key, lease_attempt=0))
    )
    await running.actor.send_multipart([encode(trajectory(0, 1)), b"more"])
    refusal = decode(await asyncio.wait_for(running.actor.recv(), 5))
    assert refusal == Refused(
        key=trajectory(1000, 0).key, why="not an episode that is being played"
    )
    await running.deliver(trajectory(0, 0))
    assert await running.acknowledged(1) == [(0, 0)]
    assert running.reader.dropped_frames == 3 and running.writes == [1]


async def test_other_loops_get_their_turn_while_there_is_always_something_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(protocol.router, "MAX_BATCH_BYTES", 1)
    await bench.deliver(*(trajectory(group, member) for group in range(50) for member in range(2)))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while len(bench.writes) < 50:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(bench.intake.run())
    await asyncio.wait_for(other(), 5)
    assert turns > 20 and max(bench.writes) <= 2
    task.cancel()


async def test_a_resumed_run_reads_the_log_from_the_first_episode_whose_group_has_not_left(
    running: Bench,
):
    """A resumed run reads the log from the first episode whose group has not left.

    It is not an evaluation's, nor one that was dropped, however long ago; they would hold it at the
    beginning for ever.
    """
    failed = DropReason.ENV_ERROR
    sent = [
        trajectory(0, 0, evaluation=True),
        trajectory(0, 0),
        trajectory(1, 0, failed),
        trajectory(1, 1, failed),
        trajectory(2, 0, failed),
        trajectory(0, 1),
        trajectory(2, 1),
    ]
    await running.deliver(*sent)
    await running.acknowledged(len(sent))
    begins = [begin for begin, _, _ in read_records(running.path)]
    running.store.forget_closed()
    assert running.store.resume_offset() == begins[1]
    running.buffer.collect_complete()
    running.buffer.pop_batch(1)
    running.store.forget_closed()
    assert (running.store.resume_offset(), running.store.offsets) == (running.log.position, {})


async def test_a_dropped_episode_is_found_again_while_its_group_is_here(running: Bench):
    """Else it would be played again, and leave twice."""
    await running.deliver(trajectory(0, 0, DropReason.ENV_ERROR), trajectory(0, 1))
    await running.acknowledged(2)
    running.store.forget_closed()
    assert running.store.resume_offset() == 0
