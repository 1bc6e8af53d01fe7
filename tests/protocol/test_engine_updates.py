"""Updates, as the controller relies on them: weights change between tokens, whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import math
import shutil
from pathlib import Path

import pytest

from engine.client import EngineError
from engine.launch import wait_ready
from engine.pool import EnginePool
from engine.responses import Generation
from engine.weight_update import update_engine
from tests.fixtures.engines import (
    KEY,
    Engine,
    agrees_with,
    build_tiny_model,
)


async def test_weights_change_under_running_turns_which_survive(engine: Engine) -> None:
    before = await engine.run(engine.policies.first)
    turns = [engine.start(max_tokens=150, seed=i) for i in range(4)]
    await engine.watcher.until(turns[-1][0], 4)
    after = await engine.run(engine.policies.second)
    assert await engine.client.weight_version() == after
    for turn_id, prompt, task in turns:
        generation = await task
        signals = await engine.watcher.until(turn_id, len(generation.tokens))
        assert signals.position == list(range(len(generation.tokens)))
        assert covers(generation)
        assert [span.version for span in generation.spans] == [before, after]
        assert agrees_with(
            generation, engine.policies.first.directory, prompt, until=generation.spans[0].stop
        )


async def test_turns_after_an_update_come_from_the_new_weights_alone(engine: Engine) -> None:
    version = await engine.run(engine.policies.second)
    _, prompt, task = engine.start()
    generation = await task
    assert agrees_with(generation, engine.policies.second.directory, prompt)
    assert [span.version for span in generation.spans] == [version]


async def test_invariant_8_engine_serves_the_version_it_reports_and_compares_the_file(
    engine: Engine,
) -> None:
    """Invariant 8: the engine serves the version it reports and compares it with the file."""
    version = await engine.run(engine.policies.second, verify=True)
    assert await engine.client.weight_version() == version
    _, prompt, task = engine.start()
    assert agrees_with(await task, engine.policies.second.directory, prompt)


async def test_a_wrong_checksum_is_refused_and_the_old_weights_are_still_served(
    engine: Engine,
) -> None:
    version = await engine.run(engine.policies.first)
    wrong = "0" * 64
    with pytest.raises(EngineError) as error:
        await update_engine(
            engine.client, engine.policies.second.file, version + 10_000, wrong, deadline=10.0
        )
    assert wrong in str(error.value) and engine.policies.second.checksum in str(error.value)
    await assert_serves_first(engine, version)


async def test_weights_of_another_model_are_refused_and_the_old_ones_are_still_served(
    engine: Engine, tmp_path: Path
) -> None:
    version = await engine.run(engine.policies.first)
    other = build_tiny_model(tmp_path, hidden=96) / "model.safetensors"
    checksum = hashlib.sha256(other.read_bytes()).hexdigest()
    with pytest.raises(EngineError, match="another model"):
        await update_engine(engine.client, str(other), version + 10_000, checksum, deadline=10.0)
    await assert_serves_first(engine, version)


async def test_engine_generates_while_a_file_of_weights_is_checked(engine: Engine) -> None:
    second = engine.policies.second
    turn_id, _, task = engine.start(max_tokens=60)
    await engine.watcher.until(turn_id, 1)
    assert await engine.client.check_weights(second.file, second.checksum)
    assert not await engine.client.is_paused()
    assert (await task).finish_reason == "length"


async def test_a_file_that_was_replaced_since_it_was_checked_is_refused(
    engine: Engine, tmp_path: Path
) -> None:
    version = await engine.run(engine.policies.first)
    file = tmp_path / "v.safetensors"
    shutil.copyfile(engine.policies.second.file, file)
    identity = await engine.client.check_weights(str(file), engine.policies.second.checksum)
    shutil.copyfile(engine.policies.first.file, file)
    await engine.client.pause()
    await engine.client.start_update()
    with pytest.raises(EngineError, match="have changed since their checksum was compared"):
        await engine.client.update_weights(str(file), version + 10_000, identity)
    await wait_ready(engine.url, 20.0, KEY)
    version = await engine.run(engine.policies.first)
    await assert_serves_first(engine, version)


async def test_a_missing_file_is_refused(engine: Engine) -> None:
    version = await engine.run(engine.policies.first)
    with pytest.raises(EngineError, match="cannot be read"):
        await update_engine(
            engine.client, "nowhere.safetensors", version + 10_000, "0" * 64, deadline=10.0
        )
    await assert_serves_first(engine, version)


async def test_an_update_that_is_applied_already_costs_nothing(engine: Engine) -> None:
    version = await engine.run(engine.policies.first)
    second = engine.policies.second
    assert (
        await update_engine(engine.client, second.file, version, second.checksum, deadline=10.0)
        == 0.0
    )
    await assert_serves_first(engine, version)


@pytest.mark.parametrize("loaded", [False, True])
async def test_an_update_follows_one_that_was_left_half_way(engine: Engine, loaded: bool) -> None:
    """An update follows one whose maker was killed half-way.

    That was before it had loaded its file, or before it had finished; and the engine has gone on
    meanwhile.
    """
    await engine.client.pause()
    await engine.client.start_update()
    if loaded:
        weights = engine.policies.second
        identity = await engine.client.check_weights(weights.file, weights.checksum)
        await engine.client.update_weights(weights.file, 10_000_000, identity)
    await wait_ready(engine.url, 20.0, KEY)
    version = await engine.run(engine.policies.first)
    await assert_serves_first(engine, version)


async def test_checksums_change_with_the_weights_and_come_back_with_them(engine: Engine) -> None:
    await engine.run(engine.policies.first)
    first = await engine.client.checksums()
    await engine.run(engine.policies.second)
    second = await engine.client.checksums()
    await engine.run(engine.policies.first)
    assert first != second and first.keys() == second.keys()
    assert await engine.client.checksums() == first


async def test_a_paused_engine_stands_still_and_goes_on(engine: Engine) -> None:
    turn_id, _, task = engine.start(max_tokens=120)
    await engine.watcher.until(turn_id, 3)
    await engine.client.pause()
    assert await engine.client.is_paused()
    await asyncio.sleep(0.2)
    rows = len(engine.watcher.turns[turn_id].position)
    await asyncio.sleep(0.3)
    assert len(engine.watcher.turns[turn_id].position) == rows
    await engine.client.resume()
    assert not await engine.client.is_paused()
    generation = await task
    assert (await engine.watcher.until(turn_id, len(generation.tokens))).position == list(
        range(len(generation.tokens))
    )


async def test_an_engine_that_a_killed_run_left_paused_is_ready_for_the_next(
    engine: Engine,
) -> None:
    await engine.client.pause()
    await wait_ready(engine.url, 20.0, KEY)
    assert not await engine.client.is_paused()


def covers(generation: Generation) -> bool:
    """Tell whether the spans cover all tokens, in order, without gaps."""
    starts = [span.start for span in generation.spans]
    stops = [span.stop for span in generation.spans]
    return starts == [0, *stops[:-1]] and stops[-1] == len(generation.tokens)


async def assert_serves_first(engine: Engine, version: int) -> None:
    """The engine is not paused, and generates from policies.first, as `version`."""
    assert not await engine.client.is_paused()
    assert await engine.client.weight_version() == version
    _, prompt, task = engine.start(max_tokens=8)
    generation = await task
    assert agrees_with(generation, engine.policies.first.directory, prompt)
    assert [span.version for span in generation.spans] == [version]
    assert all(math.isfinite(log_prob) for log_prob in generation.log_probs)


async def test_weights_of_an_earlier_run_are_not_taken_for_this_ones_of_the_same_number(
    engine: Engine,
) -> None:
    first = engine.policies.first
    second = engine.policies.second
    pool = EnginePool([engine.url], key=KEY)
    try:
        await pool.apply_weights(first.file, 3, first.checksum, deadline=20.0)
    finally:
        await pool.close()
    another = EnginePool([engine.url], key=KEY)
    try:
        assert await another.apply_weights(second.file, 3, second.checksum, deadline=20.0) > 0
    finally:
        await another.close()
    assert await engine.client.weight_version() == 3
