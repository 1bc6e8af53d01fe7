"""Shards: controllers that share turns, signals and engines between them.

What is lost with one, and what is not.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st

from actors.actor import choose_shard
from config.resolve import ConfigError, resolve
from controller.leases import sign_lease, verify_lease
from controller.shard_registry import ShardRegistry, merge_gauges
from controller.shard_worker import build_shard_worker
from engine.client import EngineError
from engine.fake.server import FakeEngine
from learner.model.policy import load_policy
from learner.publish import WeightWriter, copy_weights
from protocol.arrays import INT32, pack
from protocol.codec import FrameReader, decode, encode
from protocol.messages import (
    DropReason,
    EpisodeKey,
    LoadWeights,
    Message,
    Revoked,
    ShardAddress,
    ShardState,
    TurnFailed,
    TurnRequest,
    TurnResult,
)
from supervisor.endpoints import check_shards
from tests.fixtures.runs import Run, job_in, record_engines, running_small, serial_run, small_config

pytestmark = pytest.mark.slow

PLACES = st.lists(
    st.builds(ShardAddress, host=st.sampled_from(["", "a", "b"]), port=st.integers(1, 9)),
    unique=True,
    max_size=8,
)
ACTORS = [f"actor-{number}".encode() for number in range(40)]


@given(PLACES, st.data())
def test_when_a_shard_goes_only_its_actors_move_and_when_it_is_back_they_return(
    places: list[ShardAddress], data: st.DataObject
):
    before = {actor: choose_shard(actor, data.draw(st.permutations(places))) for actor in ACTORS}
    gone = data.draw(st.sampled_from(places)) if places else None
    after = {
        actor: choose_shard(actor, [place for place in places if place != gone]) for actor in ACTORS
    }
    assert all(after[actor] == before[actor] or before[actor] == gone for actor in ACTORS)


def test_controller_and_shards_have_about_as_many_actors_each():
    places = [ShardAddress(host="", port=5000 + number) for number in range(3)]
    shares = Counter(choose_shard(f"actor-{number}".encode(), places) for number in range(4000))
    assert set(shares) == {None, *places} and all(
        850 < share < 1150 for share in shares.values()
    )  # 1,000 +- 5 standard deviations


@given(st.binary(max_size=40), st.integers(0, 5), st.integers(0, 5), st.binary(max_size=40))
def test_a_permit_is_of_one_actor_and_one_lease(
    actor: bytes, member: int, attempt: int, other: bytes
):
    key = EpisodeKey(0, member)
    secret = "a secret"
    request = TurnRequest(
        key=key,
        lease_attempt=attempt,
        turn_index=0,
        prompt=b"",
        permit=sign_lease(secret, actor, key, attempt),
    )
    assert verify_lease(secret, actor, request)
    assert not verify_lease("another", actor, request) and verify_lease(secret, other, request) == (
        other == actor
    )
    for changed in (
        {"lease_attempt": attempt + 1},
        {"key": EpisodeKey(0, member, True)},
        {"permit": b""},
        {"permit": other},
    ):
        assert not verify_lease(secret, actor, msgspec.structs.replace(request, **changed))


# --- the ledger

PLACE = ShardAddress(host="", port=5556)


def state(version: int, healthy: bool = True, tokens: float = 0.0, shard: int = 1) -> ShardState:
    engines = [("http://e", "healthy" if healthy else "suspect", 0)]
    return ShardState(
        shard=shard,
        version=version,
        seconds=0.1,
        engines=engines,
        gauges={"generated_tokens": tokens, "engines": 1.0},
    )


def ledger(version: int = 3) -> ShardRegistry:
    return ShardRegistry([PLACE], patience=10.0, version=version)


@pytest.mark.parametrize(
    ("version", "healthy", "in_force"),
    [(3, True, True), (4, True, True), (2, True, False), (-1, True, False), (3, False, False)],
)
def test_a_shard_takes_turns_while_a_healthy_engine_of_it_runs_weights_that_count(
    version: int, healthy: bool, in_force: bool
):
    shards = ledger()
    shards.update(b"p", state(version, healthy), now=0.0)
    assert shards.addresses_in_force() == [PLACE] * in_force


def test_before_any_weights_count_no_shard_takes_turns_without():
    shards = ledger(version=-1)
    shards.update(b"p", state(-1), now=0.0)
    assert shards.addresses_in_force() == []


def test_a_silent_shard_is_lost_once_and_is_back_when_it_is_heard_of():
    shards = ledger()
    shards.update(b"p", state(3), now=0.0)
    assert shards.drop_silent(now=9.0) == [] and [
        number for number, _ in shards.drop_silent(now=11.0)
    ] == [1]
    assert shards.addresses_in_force() == [] and shards.drop_silent(now=12.0) == []
    shards.update(b"p", state(3), now=13.0)
    assert shards.addresses_in_force() == [PLACE]


def test_a_shard_that_says_that_it_ends_takes_no_more_turns():
    shards = ledger()
    shards.update(b"p", state(3), now=0.0)
    shards.update(b"p", msgspec.structs.replace(state(3, tokens=2.0), last=True), now=1.0)
    assert (
        shards.addresses_in_force() == []
        and shards.peers() == []
        and shards.merge_with({"generated_tokens": 1.0}) == {"generated_tokens": 3.0}
    )


async def test_new_weights_wait_for_a_shard_in_force_until_it_runs_them():
    shards = ledger()
    shards.update(b"p", state(3), now=0.0)
    running = asyncio.create_task(shards.await_version(4))
    await asyncio.sleep(0)
    assert not running.done()
    shards.update(b"p", state(4), now=1.0)
    assert await asyncio.wait_for(running, 5) == 0.1


@pytest.mark.parametrize("ends", ["silent", "without an engine"])
async def test_new_weights_do_not_wait_for_a_shard_that_is_no_longer_in_force(ends: str):
    shards = ledger()
    shards.update(b"p", state(3), now=0.0)
    running = asyncio.create_task(shards.await_version(4))
    await asyncio.sleep(0)
    if ends == "silent":
        shards.drop_silent(now=100.0)
    else:
        shards.update(b"p", state(3, healthy=False), now=1.0)
    assert await asyncio.wait_for(running, 5) == 0.0


async def test_new_weights_do_not_wait_for_a_shard_that_joins():
    shards = ledger()
    running = asyncio.create_task(shards.await_version(4))
    shards.update(b"p", state(-1), now=0.0)
    assert await asyncio.wait_for(running, 5) == 0.0


def test_shard_counts_stay_and_are_not_doubled_when_its_process_is_replaced():
    """A shard's counts stay when another process takes its place, once when it comes back."""
    shards = ledger()
    own = {"generated_tokens": 1.0, "engines": 1.0}
    shards.update(b"p", state(3, tokens=10.0), now=0.0)
    shards.update(b"q", state(3, tokens=5.0), now=1.0)
    assert shards.merge_with(own) == {"generated_tokens": 16.0, "engines": 2.0}
    shards.drop_silent(now=100.0)
    assert shards.merge_with(own) == {"generated_tokens": 16.0, "engines": 1.0}
    shards.update(b"q", state(3, tokens=7.0), now=101.0)
    assert shards.merge_with(own) == {"generated_tokens": 18.0, "engines": 2.0}


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=5), st.lists(st.floats(0, 1e6), max_size=5))
def test_gauges_of_several_processes_are_as_those_of_one(now: list[float], past: list[float]):
    def gauges(value: float) -> dict[str, float]:
        return {
            "generated_tokens": value,
            "engines": value,
            "idle_share_engine": value,
            "loop_lag_controller": value,
        }

    found = merge_gauges([gauges(value) for value in now], [gauges(value) for value in past])
    assert found["generated_tokens"] == pytest.approx(sum(now) + sum(past)) and found[
        "engines"
    ] == pytest.approx(sum(now))
    assert found["idle_share_engine"] == pytest.approx(sum(now) / len(now)) and found[
        "loop_lag_controller"
    ] == max(now)


# --- a shard alone


class Bench:
    """A shard and its engine; the controller and an actor are this test."""

    def __init__(self, directory: Path) -> None:
        self.job = job_in(
            directory,
            small_config(cluster__shards="2", engine__count="2", actor__heartbeat_seconds="0.1"),
        )
        self.context, self.reader = zmq.asyncio.Context(), FrameReader()
        self.controller, self.actor = (
            self.context.socket(zmq.ROUTER),
            self.context.socket(zmq.DEALER),
        )
        self.controller.bind(self.job.endpoints.shards)
        self.actor.set(zmq.IDENTITY, b"an actor")
        self.actor.connect(self.job.endpoints.turns[0])
        self.shard = build_shard_worker(self.job, self.context, 1)
        weights = copy_weights(load_policy(Path(self.job.model_dir)), 0, "float32")
        self.weights = LoadWeights(
            version=0, checksum=WeightWriter(Path(self.job.weights_dir)).write(weights).checksum
        )

    async def state(self, version: int) -> ShardState:
        """The first one with such weights."""
        async with asyncio.timeout(60):
            while True:
                self.peer, state, _ = await self.reader.receive(self.controller)
                if state.version == version:
                    return state

    async def say(self, message: Message) -> None:
        await self.controller.send_multipart([self.peer, encode(message)])

    async def ask(self, request: TurnRequest) -> TurnResult | TurnFailed:
        await self.actor.send(encode(request))
        return decode(await asyncio.wait_for(self.actor.recv(), 60))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path / "run")
    endpoints = made.job.endpoints
    engine = FakeEngine(
        made.job.model_dir, port=urlsplit(endpoints.engines[1]).port, signals=endpoints.signals[1]
    )
    await engine.start()
    yield made
    made.context.destroy(linger=0)
    await engine.stop()


async def test_a_shard_takes_turns_of_leases_that_were_given_and_have_not_lapsed(
    bench: Bench,
) -> None:
    running = asyncio.create_task(bench.shard.run())
    await bench.state(-1)
    await bench.say(bench.weights)
    assert (await bench.state(0)).engines[0][:2] == (bench.job.endpoints.engines[1], "healthy")
    key = EpisodeKey(0, 0)
    request = TurnRequest(
        key=key,
        lease_attempt=0,
        turn_index=0,
        prompt=pack([1, 2], INT32),
        permit=sign_lease(bench.job.permit_key, b"an actor", key, 0),
    )
    answer = await bench.ask(request)
    assert isinstance(answer, TurnResult) and {span.version for span in answer.kept.spans} == {0}
    for stolen in (sign_lease(bench.job.permit_key, b"another", key, 1), b""):
        refused = await bench.ask(msgspec.structs.replace(request, lease_attempt=1, permit=stolen))
        assert isinstance(refused, TurnFailed) and refused.reason is DropReason.CANCELED
    await bench.say(Revoked(leases=[(key, 0)]))
    async with asyncio.timeout(60):
        late = answer
        while isinstance(late, TurnResult):  # the word was still on its way
            request = msgspec.structs.replace(request, turn_index=request.turn_index + 1)
            late = await bench.ask(request)
    assert late.reason is DropReason.CANCELED
    running.cancel()
    await asyncio.wait({running})


async def test_a_turn_that_is_asked_for_before_a_shards_first_weights_is_sampled_with_them(
    bench: Bench,
) -> None:
    running = asyncio.create_task(bench.shard.run())
    await bench.state(-1)
    key = EpisodeKey(0, 0)
    request = TurnRequest(
        key=key,
        lease_attempt=0,
        turn_index=0,
        prompt=pack([1, 2], INT32),
        permit=sign_lease(bench.job.permit_key, b"an actor", key, 0),
    )
    answer = asyncio.create_task(bench.ask(request))
    await bench.state(-1)  # which it says from time to time
    await bench.say(bench.weights)
    assert {span.version for span in (await answer).kept.spans} == {0}
    running.cancel()
    await asyncio.wait({running})


async def test_shard_whose_engine_refuses_weights_ends_and_keeps_no_update_waiting(
    bench: Bench,
) -> None:
    """A shard whose engine refuses the newest weights ends and keeps no update waiting."""
    running = asyncio.create_task(bench.shard.run())
    await bench.state(-1)
    await bench.say(msgspec.structs.replace(bench.weights, checksum="of something else"))
    async with asyncio.timeout(60):
        while not (await bench.state(-1)).last:
            pass
    with pytest.raises(ExceptionGroup) as failed:
        await running
    assert failed.group_contains(EngineError)


# --- runs


ELSEWHERE = {
    "cluster.shards": "2",
    "engine.count": "2",
    "cluster.shard_hosts": "10.0.0.2",
    "cluster.shard_launch": "srun,--relative={shard}",
    "controller.host": "10.0.0.1",
    "run.weights_dir": "/shared/weights",
}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"cluster.shards": "3", "engine.count": "2"}, "engine.count"),
        ({"cluster.shards": "2"}, "engine.count"),
        (
            {"cluster.shards": "2", "engine.count": "2", "engine.weights": "nccl"},
            "engine.weights",
        ),
        (ELSEWHERE | {"cluster.shard_launch": ""}, "cluster.shard_launch"),
        (ELSEWHERE | {"cluster.shard_hosts": "10.0.0.2,10.0.0.3"}, "2 addresses for 1"),
        (ELSEWHERE | {"run.weights_dir": ""}, "run.weights_dir"),
        (ELSEWHERE | {"controller.host": "0.0.0.0"}, "give an address"),
    ],
)
def test_what_shards_cannot_do_is_refused(settings: dict[str, str], names: str):
    with pytest.raises(ConfigError, match=rf"(cluster|controller)\..*{names}"):
        check_shards(resolve(None, settings))


def test_two_shards_play_a_run_to_its_end_with_an_engine_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = record_engines(monkeypatch)
    settings = {
        "engine__count": "2",
        "cluster__shards": "2",
        "actor__count": "8",
        "learner__max_staleness": "1",
        "env__max_turns": "4",
    }
    summary, trajectories, _ = serial_run(tmp_path / "run", **settings)
    assert (summary["ended"], summary["updates"], summary["dropped"]) == ("finished", 2, {})
    assert {engine.generator.version for engine in made} == {"2"} and all(
        engine.turns for engine in made
    )
    sampled = [
        attempt for t in trajectories for turn in t.turns for attempt in (turn.kept, *turn.rejected)
    ]
    assert {span.version for attempt in sampled for span in attempt.spans} <= {0, 1, 2}
    assert summary["generated_tokens"] >= sum(attempt.length for attempt in sampled), (
        "what the other shard generated is not counted"
    )
    watched = [
        attempt
        for t in trajectories
        for turn in t.turns
        for attempt in [turn.kept]
        if not t.key.evaluation
    ]
    assert watched and all(attempt.uncertainty for attempt in watched), (
        "signals of an engine did not come to its shard"
    )


SHARDED = {
    "cluster__shards": "2",
    "actor__count": "8",
    "actor__heartbeat_seconds": "0.2",
    "learner__max_staleness": "1",
}


def spans(run: Run, shard: str) -> int:
    """Bytes of what a shard noted of its turns."""
    return sum(file.stat().st_size for file in (run.directory / "spans").glob(f"{shard}.*"))


async def ends_well(run: Run) -> None:
    """Interrupt it; each episode was trained on once, no token of it too old."""
    run.process.send_signal(signal.SIGINT)
    assert await run.ended() == 130, run.output
    keys = [t.key for t in run.trajectories() if not t.key.evaluation]
    assert len(keys) == len(set(keys)) and run.left_over() == []
    assert set(run.summary()["dropped"]) <= {"canceled"}
    assert max(line["token_age_max"] for line in run.updates()) <= 2


async def test_a_killed_shard_is_started_again_and_takes_turns_with_the_newest_weights(
    tmp_path: Path, small_policy
):
    async with running_small(
        tmp_path / "run", small_policy, run__max_updates="1000", **SHARDED
    ) as run:
        await run.until(lambda: run.updates() and spans(run, "controller-1"))
        killed = run.pid_of("controller", "1")
        os.kill(killed, signal.SIGKILL)
        await run.until(lambda: run.pid_of("controller", "1") not in (None, killed))
        before = spans(run, "controller-1")
        await run.until(lambda: spans(run, "controller-1") > before)
        await ends_well(run)
        assert (
            "The controller-1 was killed (SIGKILL, as the system does when memory runs out): "
            "started again." in run.output
        )


async def test_the_turns_of_a_stopped_shard_go_to_others_and_it_comes_back(
    tmp_path: Path, small_policy
):
    async with running_small(
        tmp_path / "run", small_policy, run__max_updates="1000", **SHARDED
    ) as run:
        await run.until(lambda: run.updates() and spans(run, "controller-1"))
        stopped = run.pid_of("controller", "1")
        os.kill(stopped, signal.SIGSTOP)
        try:
            await run.until(lambda: "shard 1 was silent" in log_of(run))
            done = len(run.updates())
            await run.until(lambda: len(run.updates()) > done + 2)
            before = spans(run, "controller-1")
        finally:
            os.kill(stopped, signal.SIGCONT)
        await run.until(lambda: spans(run, "controller-1") > before)
        assert run.pid_of("controller", "1") == stopped
        await ends_well(run)


def log_of(run: Run) -> str:
    return (run.directory / "logs" / "controller.log").read_text()
