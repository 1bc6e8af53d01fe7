"""A run of real processes with somebody at each of its sockets who sends what nobody should.

It goes on, and says so once.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
import zmq

from controller.controller import MAX_CREDIT
from protocol.arrays import INT32, pack
from protocol.codec import MAX_FRAME, BadFrame, decode, encode
from protocol.messages import (
    Ack,
    Credit,
    EpisodeEnded,
    EpisodeKey,
    Heartbeat,
    Lease,
    LoadWeights,
    Revoked,
    ShardState,
    SignalFrame,
    Stats,
    TurnRequest,
)
from tests.fixtures.messages import make_trajectory
from tests.fixtures.runs import running_small

FIRST = EpisodeKey(0, 0)
ABSURD = [
    Credit(episodes=-5),
    Credit(episodes=10**15),
    EpisodeEnded(key=FIRST, lease_attempt=0),
    EpisodeEnded(key=FIRST, lease_attempt=-1),
    TurnRequest(key=FIRST, lease_attempt=0, turn_index=0, prompt=pack([1, 2, 3], INT32)),
    TurnRequest(key=FIRST, lease_attempt=0, turn_index=-(2**60), prompt=b"abc"),
    TurnRequest(
        key=EpisodeKey(2**62, -1, True),
        lease_attempt=9,
        turn_index=1,
        prompt=pack([-1] * 10, INT32),
    ),
    Lease(key=FIRST, lease_attempt=0, split="../..", task_index=-1, seed=-1),
    Heartbeat(loop_lag=float("nan"), asking=-1),
    Ack(keys=[FIRST]),
    make_trajectory(FIRST, scores={"x": float("nan")}),
    make_trajectory(EpisodeKey(10**12, 0)),
    SignalFrame(
        step=-1,
        turn_ids=["t0.0.0.0.0.0"] * 3,
        position=b"1",
        entropy=b"",
        confidence=b"",
        top_log_prob=b"",
        forced=b"",
        previous=b"",
    ),
    SignalFrame(
        step=0,
        turn_ids=["t0.0.0.0.0.0"],
        position=pack([2**31 - 1], INT32),
        entropy=bytes(4),
        confidence=bytes(4),
        top_log_prob=bytes(4),
        forced=bytes(4),
        previous=bytes(4),
    ),
    ShardState(shard=10**9, version=-(2**60), seconds=0.0, engines=[("", "", -1)], gauges={}),
    ShardState(
        shard=1,
        version=2**60,
        seconds=float("nan"),
        engines=[],
        gauges={"generated_tokens": float("inf")},
    ),
    LoadWeights(version=2**60, checksum="none"),
    Revoked(leases=[(FIRST, -1)]),
    Stats(source="\x00", event="update", values={"update": float("nan"), "loss": "text"}),
    Stats(source="x" * 1000, event="nothing", values={"a": None}),
]
"""Messages that decode, though nobody who plays for the run sends any of them."""


def frames(seed: int) -> Iterator[list[bytes]]:
    """Yield messages of one or more frames, for ever.

    They are random, cut short, with bits flipped, of another schema, and absurd.
    """
    chance = random.Random(seed)
    sound = [encode(message) for message in ABSURD]
    for number in itertools.count():
        frame = bytearray(chance.choice(sound))
        kind = number % 6
        if kind == 0:
            yield [chance.randbytes(chance.randrange(200))]
        elif kind == 1:
            yield [bytes(frame[: chance.randrange(len(frame))])]
        elif kind == 2:
            for _ in range(3):
                frame[chance.randrange(3, len(frame))] ^= 1 << chance.randrange(8)
            if not asks(bytes(frame)):
                yield [bytes(frame)]
        elif kind == 3:
            yield [b"F\xff\xff" + bytes(frame[3:])]
        elif kind == 4:
            yield [bytes(frame), chance.randbytes(5), b""]
        else:
            yield [bytes(frame)]


def asks(frame: bytes) -> bool:
    """Tell whether a frame has become, by chance, one that asks for episodes.

    Who may join may keep them, for `actor.episode_seconds`.
    """
    try:
        message = decode(frame)
    except BadFrame:
        return False
    return isinstance(message, Credit) and 0 < message.episodes <= MAX_CREDIT


def attack(endpoints: dict[str, str | list[str]], over: Event) -> int:
    """Attack until `over`; return the number of messages that were sent to each socket."""
    context = zmq.Context()
    listening = {
        name: endpoints[name] for name in ("actors", "trajectories", "learner", "shards", "stats")
    }
    listening |= {
        f"{name} {number}": one
        for name in ("turns", "signals")
        for number, one in enumerate(endpoints[name])
    }
    sockets = {name: context.socket(zmq.DEALER) for name in listening}
    for name, socket in sockets.items():
        socket.set(zmq.LINGER, 0)
        socket.connect(listening[name])
    huge = context.socket(zmq.DEALER)
    huge.set(zmq.LINGER, 0)
    huge.connect(endpoints["trajectories"])
    huge.send(bytes(MAX_FRAME + 1), copy=False)
    sent = 0
    for parts in frames(seed=0):
        if over.wait(0.002):
            break
        for socket in sockets.values():
            try:
                socket.send_multipart(parts, zmq.NOBLOCK)
            except zmq.Again:
                continue
        sent += 1
    context.destroy(linger=0)
    return sent


@pytest.mark.slow
async def test_a_run_goes_on_whatever_is_sent_to_its_sockets(
    tmp_path: Path, small_policy: Path
) -> None:
    over = Event()
    async with running_small(
        tmp_path / "run", small_policy, run__max_updates="4", cluster__shards="2"
    ) as run:
        await run.until((run.directory / "job.json").exists)
        endpoints = json.loads((run.directory / "job.json").read_text())["endpoints"]
        attacker = asyncio.create_task(asyncio.to_thread(attack, endpoints, over))
        try:
            assert await run.ended(180) == 0, run.output
        finally:
            over.set()
        sent = await attacker
    assert sent > 1000
    updates = run.updates()
    assert [line["update"] for line in updates] == [1, 2, 3, 4] and run.summary()["dropped"] == {}
    assert updates[-1]["bad_frames_total"] > 100
    keys = [t.key for t in run.trajectories() if not t.key.evaluation]
    assert len(keys) == len(set(keys)) == 4 * 2 * 2
    for process in ("learner", "controller", "controller-1"):
        warnings = [
            line
            for line in (run.directory / "logs" / f"{process}.log").read_text().splitlines()
            if "dropped a frame" in line
        ]
        assert 1 <= len(warnings) <= 5, "one line a peer"
