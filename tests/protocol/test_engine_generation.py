"""Turns, as the controller relies on them: tokens, log-probs, signals, and how a turn ends."""

from __future__ import annotations

import asyncio

import pytest

from engine.client import EngineError
from engine.constants import MAX_PATTERN_TOKENS
from engine.fake.generation import keep_likeliest
from tests.fixtures.engines import (
    TOLERANCE,
    TOP_J,
    VOCABULARY,
    Engine,
    agrees_with,
    distributions,
    some_prompt,
)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
async def test_log_probs_are_those_of_the_policy_at_the_sampling_temperature(
    engine: Engine, temperature: float
) -> None:
    turns = [engine.start(temperature=temperature) for _ in range(12)]
    for _, prompt, task in turns:
        assert agrees_with(
            await task, engine.policies.first.directory, prompt, temperature=temperature
        )


async def test_a_response_ends_at_its_budget(engine: Engine) -> None:
    _, _, task = engine.start(max_tokens=7)
    generation = await task
    assert len(generation.tokens) == 7
    assert generation.finish_reason == "length"


async def test_a_stop_token_ends_the_response_and_belongs_to_it(engine: Engine) -> None:
    stops = list(range(1, VOCABULARY, 3))
    _, _, task = engine.start(max_tokens=200, stop=stops)
    generation = await task
    assert generation.finish_reason == "stop"
    assert generation.tokens[-1] in stops
    assert not set(stops) & set(generation.tokens[:-1])


async def test_greedy_decoding_takes_the_most_likely_tokens(engine: Engine) -> None:
    _, prompt, task = engine.start(temperature=0.0, max_tokens=12)
    generation = await task
    expected = distributions(engine.policies.first.directory, prompt, generation.tokens)
    assert generation.tokens == expected.argmax(-1).tolist()


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.6), (20, 0.5)])
async def test_log_probs_are_of_the_tokens_that_top_k_and_top_p_leave(
    engine: Engine, top_k: int, top_p: float
) -> None:
    """Log-probs are of what is sampled from, and signals of the whole distribution.

    A greedy turn and one that samples from all tokens run beside it.
    """
    beside = [engine.start(temperature=temperature, seed=1) for temperature in (0.0, 1.0)]
    turn_id, prompt, task = engine.start(temperature=0.6, top_k=top_k, top_p=top_p, max_tokens=24)
    generation = await task
    first = engine.policies.first.directory
    whole = distributions(first, prompt, generation.tokens, 0.6)
    expected = [
        keep_likeliest(row, top_k, top_p).log_softmax(-1)[token].item()
        for row, token in zip(whole, generation.tokens, strict=True)
    ]
    assert generation.log_probs == pytest.approx(expected, abs=TOLERANCE)
    signals = await engine.watcher.until(turn_id, len(generation.tokens))
    entropies = (-(whole.exp() * whole).sum(-1)).tolist()
    assert signals.entropy == pytest.approx(entropies, abs=TOLERANCE)
    for _, other_prompt, other in beside:
        assert agrees_with(await other, first, other_prompt)


async def test_equal_seeds_give_equal_responses_whatever_runs_beside(engine: Engine) -> None:
    prompt = some_prompt("seeded")
    _, _, alone = engine.start(prompt=prompt, seed=5)
    first = await alone
    others = [engine.start(seed=i) for i in range(6)]
    _, _, again = engine.start(prompt=prompt, seed=5)
    _, _, other = engine.start(prompt=prompt, seed=6)
    assert (await again).tokens == first.tokens
    assert (await other).tokens != first.tokens
    await asyncio.gather(*(task for _, _, task in others))


async def test_a_prompt_outside_the_vocabulary_is_an_error_and_the_engine_goes_on(
    engine: Engine,
) -> None:
    _, _, task = engine.start(prompt=[VOCABULARY + 7])
    with pytest.raises(EngineError):
        await task
    _, _, task = engine.start(max_tokens=3)
    assert (await task).tokens


async def test_signals_are_exact_for_every_turn_under_concurrent_load(engine: Engine) -> None:
    turns = []
    for i in range(
        24
    ):  # joining and leaving at different steps, with other temperatures, some of them unwatched
        turns.append(
            (
                engine.start(
                    temperature=(1.0, 0.7)[i % 2], max_tokens=5 + 3 * (i % 7), watched=i % 4 != 3
                ),
                i,
            )
        )
        if i % 5 == 0:
            await asyncio.sleep(0.01)
    for (turn_id, prompt, task), i in turns:
        generation = await task
        if i % 4 == 3:
            assert turn_id not in engine.watcher.turns
            continue
        signals = await engine.watcher.until(turn_id, len(generation.tokens))
        log_probs = distributions(
            engine.policies.first.directory, prompt, generation.tokens, (1.0, 0.7)[i % 2]
        )
        assert signals.position == list(range(len(generation.tokens)))
        assert signals.previous == [-1, *generation.tokens[:-1]]
        assert signals.forced == [-1] * len(generation.tokens)
        top = log_probs.topk(TOP_J).values
        assert signals.entropy == pytest.approx(
            (-(log_probs.exp() * log_probs).sum(-1)).tolist(), abs=TOLERANCE
        )
        assert signals.confidence == pytest.approx((-top.mean(-1)).tolist(), abs=TOLERANCE)
        assert signals.top_log_prob == pytest.approx(top[:, 0].tolist(), abs=TOLERANCE)


async def test_a_turn_that_repeats_itself_is_ended(engine: Engine) -> None:
    _, _, task = engine.start(
        temperature=0.0, max_tokens=900, repeats=3
    )  # of random weights, greedy decoding runs in circles
    generation = await task
    assert generation.finish_reason == "repetition"
    end = generation.tokens[-3 * MAX_PATTERN_TOKENS :]
    assert any(end[-3 * n :] == end[-n:] * 3 for n in range(1, MAX_PATTERN_TOKENS + 1))


async def test_a_turn_may_repeat_itself_unless_asked_not_to(engine: Engine) -> None:
    _, _, task = engine.start(temperature=0.0, max_tokens=200)
    assert (await task).finish_reason == "length"


async def test_an_aborted_turn_returns_what_it_has(engine: Engine) -> None:
    turn_id, _, task = engine.start(max_tokens=900)
    await engine.watcher.until(turn_id, 5)
    await engine.client.abort(turn_id)
    generation = await asyncio.wait_for(task, 5)
    assert generation.finish_reason == "abort"
    assert 0 < len(generation.tokens) < 900
    assert generation.spans[-1].stop == len(generation.tokens)


async def test_aborting_a_turn_that_is_not_there_does_nothing(engine: Engine) -> None:
    await engine.client.abort("never seen")
    _, _, task = engine.start(max_tokens=3)
    assert (await task).tokens


async def test_a_canceled_call_ends_its_turn_in_the_engine(engine: Engine) -> None:
    turn_id, _, task = engine.start(max_tokens=900)
    await engine.watcher.until(turn_id, 3)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0.5)
    rows = len(engine.watcher.turns[turn_id].position)
    await asyncio.sleep(0.5)
    assert len(engine.watcher.turns[turn_id].position) == rows < 900
