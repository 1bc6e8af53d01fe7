"""Steering, as the controller relies on it: forced tokens are those of one turn, in their order."""

from __future__ import annotations

import pytest

from tests.fixtures.engines import (
    TOLERANCE,
    VOCABULARY,
    Engine,
    agrees_with,
    distributions,
)


async def test_a_steer_forces_its_queue_and_decoding_goes_on_freely(engine: Engine) -> None:
    queue = [11, 22, 33]
    turn_id, prompt, task = engine.start(
        max_tokens=600
    )  # so long that the steer arrives in time on any machine
    await engine.watcher.until(turn_id, 4)
    await engine.watcher.steer(turn_id, queue)
    generation = await task
    signals = await engine.watcher.until(turn_id, len(generation.tokens))
    forced = [
        position
        for position, token in zip(signals.position, signals.forced, strict=True)
        if token >= 0
    ]
    assert forced == list(range(forced[0], forced[0] + 3)) and forced[0] >= 4
    assert generation.tokens[forced[0] : forced[0] + 3] == queue
    assert signals.forced[forced[0] : forced[0] + 3] == queue
    assert all(generation.log_probs[position] == 0.0 for position in forced)
    expected = distributions(engine.policies.first.directory, prompt, generation.tokens)
    for t in (
        *forced,
        forced[-1] + 1,
    ):  # the signals are the policy's own, also where its choice was overruled
        if t < len(generation.tokens):
            assert signals.entropy[t] == pytest.approx(
                -(expected[t].exp() * expected[t]).sum().item(), abs=TOLERANCE
            )


async def test_a_steer_of_one_turn_leaves_the_others_alone(engine: Engine) -> None:
    turns = [engine.start(max_tokens=300, seed=i) for i in range(8)]
    steered = turns[3]
    bystanders = turns[:3] + turns[4:]
    await engine.watcher.until(steered[0], 2)
    await engine.watcher.steer(steered[0], [9, 9, 9, 9])
    await steered[2]
    for turn_id, prompt, task in bystanders:
        generation = await task
        assert set((await engine.watcher.until(turn_id, len(generation.tokens))).forced) == {-1}
        assert agrees_with(generation, engine.policies.first.directory, prompt)


async def test_a_steer_is_ignored_when_the_response_contains_its_exception(engine: Engine) -> None:
    turn_id, _, task = engine.start(max_tokens=60)
    signals = await engine.watcher.until(turn_id, 5)
    await engine.watcher.steer(turn_id, [5, 5, 5], unless=signals.previous[3])
    generation = await task
    assert set((await engine.watcher.until(turn_id, len(generation.tokens))).forced) == {-1}


@pytest.mark.parametrize("queue", [[VOCABULARY], [3, -4]])
async def test_a_steer_outside_the_vocabulary_is_ignored(engine: Engine, queue: list[int]) -> None:
    turn_id, _, task = engine.start(max_tokens=40)
    await engine.watcher.until(turn_id, 2)
    await engine.watcher.steer(turn_id, queue)
    generation = await task
    assert set((await engine.watcher.until(turn_id, len(generation.tokens))).forced) == {-1}


async def test_a_steer_of_a_finished_turn_does_nothing(engine: Engine) -> None:
    turn_id, _, task = engine.start(max_tokens=4)
    await engine.watcher.until(turn_id, len((await task).tokens))
    await engine.watcher.steer(turn_id, [1, 2, 3])
    await engine.watcher.steer("never seen", [1, 2, 3])
    other, _, task = engine.start(max_tokens=20)
    generation = await task
    assert set((await engine.watcher.until(other, len(generation.tokens))).forced) == {-1}


async def test_frames_that_are_no_messages_are_ignored(engine: Engine) -> None:
    turn_id, _, task = engine.start(max_tokens=40)
    await engine.watcher.until(turn_id, 2)
    await engine.watcher.send(b"nonsense")
    assert (await task).finish_reason == "length"
