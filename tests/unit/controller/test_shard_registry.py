"""Registry of shards: which ones take turns, and what their counts add up to."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.shard_registry import ShardRegistry, merge_gauges
from protocol.messages import (
    ShardAddress,
    ShardState,
)

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
