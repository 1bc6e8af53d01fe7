"""Ways from an actor process to a learner process.

Each is a pair of functions, of which one runs in each.

All keep `IN_FLIGHT` episodes on their way, and the actor forgets one when it is acknowledged. The
learner's half tells the parent its port and returns when it has acknowledged all; the actor's half
gets that port and returns its clock.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import zmq
import zmq.asyncio

from learner.data.episode_log import EpisodeLog
from learner.data.groups import GroupBuffer
from learner.data.intake import Arrivals, EpisodeStore, Intake
from protocol.arrays import FLOAT16, FLOAT32, INT32, UINT8, pack
from protocol.codec import FrameReader, encode
from protocol.lifetime import die_with
from protocol.messages import Ack, EpisodeKey, Response, Span, StopReason, Trajectory, Turn
from protocol.router import BatchedRouter
from protocol.validation import AdmissionWindow, Limits, validate_trajectory

IN_FLIGHT = 16
"""Episodes of the actor process that have not been acknowledged."""
WARM_UP = 0.1
"""Share of the episodes that is sent before the clock starts."""
GROUP_SIZE = 8


class Size(NamedTuple):
    """Size of an episode."""

    turns: int
    prompt: int  # tokens
    response: int  # tokens

    def __str__(self) -> str:
        return f"{self.turns} turns of {self.prompt:,} + {self.response} tokens"


class Work(NamedTuple):
    """Episodes that one measurement sends."""

    size: Size
    episodes: int
    directory: Path  # for the log

    def made(self) -> list[Trajectory]:
        """`IN_FLIGHT` different episodes, sent again and again under other keys."""
        return [trajectory(self.size, seed) for seed in range(IN_FLIGHT)]


def trajectory(size: Size, seed: int) -> Trajectory:
    """An episode as an actor sends it: watched turns, nothing sampled twice."""
    rng = np.random.default_rng(seed)
    turns = [
        Turn(
            prompt=pack(rng.integers(0, 1024, size.prompt), INT32),
            kept=_attempt(size.response, rng),
            rejected=[],
            reward=0.0,
            valid=True,
            anchor="0123456789abcdef",
            action="go to desk 1",
        )
        for _ in range(size.turns)
    ]
    return Trajectory(
        key=EpisodeKey(0, 0),
        lease_attempt=0,
        task_index=seed,
        task_type="pick",
        task="put a clean mug on the desk",
        success=True,
        turns=turns,
        scores={"score": 1.0},
    )


def _attempt(length: int, rng: np.random.Generator) -> Response:
    return Response(
        tokens=pack(rng.integers(0, 1024, length), INT32),
        log_probs=pack(-rng.exponential(1.0, length), FLOAT32),
        mask=pack(np.ones(length), UINT8),
        spans=[Span(0, length, 3)],
        uncertainty=pack(rng.random(length), FLOAT16),
        signals=pack(rng.random(3 * length), FLOAT32),
        events=[],
        stop=StopReason.END,
        score=0.5,
        thinking=length // 2,
        epsilon=1e-4,
        eta=1e-3,
    )


def keyed(episodes: Sequence[Trajectory], number: int) -> Trajectory:
    """The `number`-th episode that is sent."""
    key = EpisodeKey(number // GROUP_SIZE, number % GROUP_SIZE)
    return msgspec.structs.replace(episodes[number % len(episodes)], key=key)


class Speed(NamedTuple):
    """Figures of one measurement."""

    episodes: float  # a second
    actor: float  # CPU seconds an episode, all threads
    learner: float  # likewise


def run(
    learner: Callable[[Work, Connection], None], actor: Callable[[Work, int], Clock], work: Work
) -> Speed:
    """From one process to the other."""
    context = multiprocessing.get_context("spawn")
    learner_end, its_end = context.Pipe()
    actor_end, its_other = context.Pipe()
    receiving = context.Process(target=_learn, args=(learner, work, its_end), daemon=True)
    receiving.start()
    sending = context.Process(
        target=_act, args=(actor, work, learner_end.recv(), its_other), daemon=True
    )
    sending.start()
    clock = actor_end.recv()
    received = learner_end.recv()
    sending.join()
    receiving.join()
    return clock.speed(received)


def _learn(learner: Callable[[Work, Connection], None], work: Work, parent: Connection) -> None:
    die_with(os.getppid())
    started = time.process_time()
    learner(work, parent)
    parent.send(time.process_time() - started)


def _act(actor: Callable[[Work, int], Clock], work: Work, port: int, parent: Connection) -> None:
    die_with(os.getppid())
    parent.send(actor(work, port))


class Clock:
    """The actor's: from the acknowledgement that ends the warm-up to the last one."""

    def __init__(self, work: Work) -> None:
        self._episodes = self._left = work.episodes
        self._counted = work.episodes - max(IN_FLIGHT, int(WARM_UP * work.episodes))
        self._seconds = self._cpu = 0.0

    def acknowledged(self) -> bool:
        """Called for each; True for the last one."""
        self._left -= 1
        if self._left in (0, self._counted):
            self._seconds = time.perf_counter() - self._seconds
            self._cpu = time.process_time() - self._cpu
        return self._left == 0

    def speed(self, learner: float) -> Speed:
        """`learner`: its CPU seconds for all the episodes."""
        return Speed(
            self._counted / self._seconds, self._cpu / self._counted, learner / self._episodes
        )


# --- ours: codec, log, groups


def our_learner(work: Work, parent: Connection) -> None:
    asyncio.run(_our_learner(work, parent))


BOUNDS = Limits(vocabulary=1 << 30, context=1 << 30, group_size=GROUP_SIZE)
ANY_EPISODE = AdmissionWindow(
    first_group=0, end_group=1 << 60, evaluations=0, evaluation_episodes=0, version=1 << 30
)
"""All that is delivered here is in order, which costs as much to find out."""


async def _our_learner(work: Work, parent: Connection) -> None:
    """The learner's own intake; groups leave the buffer as for a batch."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.ROUTER)
    parent.send(socket.bind_to_random_port("tcp://127.0.0.1"))
    log = EpisodeLog.open(work.directory / "episodes")
    buffer = GroupBuffer(GROUP_SIZE)
    over = asyncio.Event()

    class Consumer(Arrivals):
        def notify(self) -> None:
            buffer.collect_complete()
            while buffer.pop_batch(1) is not None:
                pass
            store.forget_closed()
            if buffer.closed.next_group * GROUP_SIZE == work.episodes:
                over.set()

    store = EpisodeStore(log, buffer)
    intake = Intake(
        BatchedRouter(socket),
        store,
        buffer,
        Consumer(),
        FrameReader(),
        lambda message: validate_trajectory(message, BOUNDS, ANY_EPISODE),
    )
    receiving = asyncio.create_task(intake.run())
    await over.wait()
    receiving.cancel()
    log.close()
    context.destroy(linger=1000)


def our_actor(work: Work, port: int) -> Clock:
    return asyncio.run(_our_actor(work, port))


async def _our_actor(work: Work, port: int) -> Clock:
    """Delivery as in actors/actor.py."""
    socket = _dealer(port)
    reader = FrameReader()
    acks = {}
    clock = Clock(work)
    episodes = work.made()
    numbers = iter(range(work.episodes))

    async def slot() -> None:
        for number in numbers:
            episode = keyed(episodes, number)
            acknowledged = acks[episode.key] = asyncio.Event()
            await socket.send(encode(episode))
            await acknowledged.wait()
            del acks[episode.key]

    async def listen() -> None:
        while True:
            match reader.read(b"learner", await socket.recv()):
                case Ack(keys=keys):
                    for key in keys:
                        acks[key].set()
                        over = clock.acknowledged()
                    if over:
                        return

    await asyncio.gather(listen(), *(slot() for _ in range(IN_FLIGHT)))
    socket.context.destroy(linger=0)
    return clock


# --- raw bytes, and pickled objects, over zmq.asyncio


def raw_learner(work: Work, parent: Connection) -> None:
    asyncio.run(_asyncio_learner(work, parent, lambda frame: frame[:8]))


def pickle_learner(work: Work, parent: Connection) -> None:
    asyncio.run(_asyncio_learner(work, parent, lambda frame: _name(pickle.loads(frame))))


def raw_actor(work: Work, port: int) -> Clock:
    return asyncio.run(_asyncio_actor(work, port, _raw_frames(work)))


def pickle_actor(work: Work, port: int) -> Clock:
    episodes = work.made()

    def frame(number: int) -> tuple[bytes, bytes]:
        episode = keyed(episodes, number)
        return _name(episode), pickle.dumps(episode, pickle.HIGHEST_PROTOCOL)

    return asyncio.run(_asyncio_actor(work, port, frame))


def _name(episode: Trajectory) -> bytes:
    """8 bytes that say which episode it is."""
    return (episode.key.group * GROUP_SIZE + episode.key.member).to_bytes(8, "little")


def _raw_frames(work: Work) -> Callable[[int], tuple[bytes, bytes]]:
    """Number of an episode -> (its 8 bytes, a frame that begins with them).

    As many are made as are in flight.
    """
    names = [i.to_bytes(8, "little") for i in range(IN_FLIGHT)]
    frames = [
        (name, name + encode(episode)) for name, episode in zip(names, work.made(), strict=True)
    ]
    return lambda number: frames[number % IN_FLIGHT]


async def _asyncio_learner(
    work: Work, parent: Connection, name_of: Callable[[bytes], bytes]
) -> None:
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.ROUTER)
    parent.send(socket.bind_to_random_port("tcp://127.0.0.1"))
    for _ in range(work.episodes):
        peer, frame = await socket.recv_multipart()
        await socket.send_multipart([peer, name_of(frame)])
    context.destroy(linger=1000)


async def _asyncio_actor(
    work: Work, port: int, frame_of: Callable[[int], tuple[bytes, bytes]]
) -> Clock:
    socket = _dealer(port)
    acks = {}
    clock = Clock(work)
    numbers = iter(range(work.episodes))

    async def slot() -> None:
        for number in numbers:
            name, frame = frame_of(number)
            acknowledged = acks[name] = asyncio.Event()
            await socket.send(frame)
            await acknowledged.wait()

    async def listen() -> None:
        while True:
            acks[await socket.recv()].set()
            if clock.acknowledged():
                return

    await asyncio.gather(listen(), *(slot() for _ in range(IN_FLIGHT)))
    socket.context.destroy(linger=0)
    return clock


def _dealer(port: int) -> zmq.asyncio.Socket:
    socket = zmq.asyncio.Context().socket(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")
    return socket


# --- raw bytes over blocking sockets


def blocking_learner(work: Work, parent: Connection) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        parent.send(socket.bind_to_random_port("tcp://127.0.0.1"))
        for _ in range(work.episodes):
            peer, frame = socket.recv_multipart()
            socket.send_multipart([peer, frame[:8]])


def blocking_actor(work: Work, port: int) -> Clock:
    frame_of = _raw_frames(work)
    clock = Clock(work)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(f"tcp://127.0.0.1:{port}")
        for number in range(work.episodes):
            if number >= IN_FLIGHT:
                socket.recv()
                clock.acknowledged()
            socket.send(frame_of(number)[1])
        while True:
            socket.recv()
            if clock.acknowledged():
                return clock
