"""Behaviour of an engine that the controller relies on.

The same tests run against the fake one and against vLLM.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from engine import launch as server  # noqa: E402
from engine.client import EngineClient, EngineError, Sampling  # noqa: E402
from engine.connection import EngineTaken  # noqa: E402
from engine.constants import MAX_PATTERN_TOKENS  # noqa: E402
from engine.fake.generation import keep_likeliest  # noqa: E402
from engine.fake.server import FakeEngine  # noqa: E402
from engine.launch import EngineNotReady, wait_ready  # noqa: E402
from engine.plugin import auth as gate  # noqa: E402
from engine.pool import EnginePool  # noqa: E402
from engine.responses import Generation  # noqa: E402
from engine.weight_update import update_engine  # noqa: E402
from tests.fixtures.engines import (  # noqa: E402
    KEY,
    TOLERANCE,
    TOP_J,
    VOCABULARY,
    Engine,
    build_tiny_model,
    distributions,
    some_prompt,
)


def agrees(
    generation: Generation,
    directory: Path,
    prompt: list[int],
    *,
    temperature: float = 1.0,
    until: int | None = None,
) -> bool:
    """Tell whether the log-probs of the first `until` tokens are those of `directory`'s model."""
    tokens = generation.tokens[:until]
    expected = distributions(directory, prompt, tokens, temperature)
    return generation.log_probs[:until] == pytest.approx(
        [expected[t, token].item() for t, token in enumerate(tokens)], abs=TOLERANCE
    )


# --- tokens and log-probs


@pytest.mark.parametrize("temperature", [1.0, 0.6])
async def test_log_probs_are_those_of_the_policy_at_the_sampling_temperature(
    engine: Engine, temperature: float
) -> None:
    turns = [engine.start(temperature=temperature) for _ in range(12)]
    for _, prompt, task in turns:
        assert agrees(await task, engine.policies.first.directory, prompt, temperature=temperature)


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
    """Others run beside it, greedy ones and such that sample from all tokens."""
    beside = [engine.start(temperature=temperature, seed=1) for temperature in (0.0, 1.0)]
    turn_id, prompt, task = engine.start(temperature=0.6, top_k=top_k, top_p=top_p, max_tokens=24)
    generation = await task
    first = engine.policies.first.directory
    whole = distributions(first, prompt, generation.tokens, 0.6)
    left = torch.stack([keep_likeliest(row, top_k, top_p) for row in whole]).log_softmax(-1)
    expected = [left[t, token].item() for t, token in enumerate(generation.tokens)]
    assert generation.log_probs == pytest.approx(expected, abs=TOLERANCE)
    signals = await engine.watcher.until(turn_id, len(generation.tokens))
    entropies = (-(whole.exp() * whole).sum(-1)).tolist()
    assert signals.entropy == pytest.approx(entropies, abs=TOLERANCE), "signals are of all tokens"
    for (_, other_prompt, other), temperature in zip(beside, (1.0, 1.0), strict=True):
        assert agrees(await other, first, other_prompt, temperature=temperature)


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


# --- signals


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


# --- steering


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
        assert agrees(generation, engine.policies.first.directory, prompt)


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


# --- ending turns


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


# --- weights


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
        assert agrees(
            generation, engine.policies.first.directory, prompt, until=generation.spans[0].stop
        )


async def test_turns_after_an_update_come_from_the_new_weights_alone(engine: Engine) -> None:
    version = await engine.run(engine.policies.second)
    _, prompt, task = engine.start()
    generation = await task
    assert agrees(generation, engine.policies.second.directory, prompt)
    assert [span.version for span in generation.spans] == [version]


async def test_invariant_8_engine_serves_the_version_it_reports_and_compares_the_file(
    engine: Engine,
) -> None:
    """Invariant 8: the engine serves the version it reports and compares it with the file."""
    version = await engine.run(engine.policies.second, verify=True)
    assert await engine.client.weight_version() == version
    _, prompt, task = engine.start()
    assert agrees(await task, engine.policies.second.directory, prompt)


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
    await serves_first(engine, version)


async def test_weights_of_another_model_are_refused_and_the_old_ones_are_still_served(
    engine: Engine, tmp_path: Path
) -> None:
    version = await engine.run(engine.policies.first)
    other = build_tiny_model(tmp_path, hidden=96) / "model.safetensors"
    checksum = hashlib.sha256(other.read_bytes()).hexdigest()
    with pytest.raises(EngineError, match="another model"):
        await update_engine(engine.client, str(other), version + 10_000, checksum, deadline=10.0)
    await serves_first(engine, version)


async def test_a_missing_file_is_refused(engine: Engine) -> None:
    version = await engine.run(engine.policies.first)
    with pytest.raises(EngineError, match="cannot be read"):
        await update_engine(
            engine.client, "nowhere.safetensors", version + 10_000, "0" * 64, deadline=10.0
        )
    await serves_first(engine, version)


async def test_an_update_that_is_applied_already_costs_nothing(engine: Engine) -> None:
    version = await engine.run(engine.policies.first)
    second = engine.policies.second
    assert (
        await update_engine(engine.client, second.file, version, second.checksum, deadline=10.0)
        == 0.0
    )
    await serves_first(engine, version)


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
        await engine.client.update_weights(weights.file, 10_000_000, weights.checksum)
    await wait_ready(engine.url, 20.0, KEY)
    version = await engine.run(engine.policies.first)
    await serves_first(engine, version)


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


async def test_the_engine_is_healthy(engine: Engine) -> None:
    assert await engine.client.health()


def covers(generation: Generation) -> bool:
    """Tell whether the spans cover all tokens, in order, without gaps."""
    starts = [span.start for span in generation.spans]
    stops = [span.stop for span in generation.spans]
    return starts == [0, *stops[:-1]] and stops[-1] == len(generation.tokens)


async def serves_first(engine: Engine, version: int) -> None:
    """The engine is not paused, and generates from policies.first, as `version`."""
    assert not await engine.client.is_paused()
    assert await engine.client.weight_version() == version
    _, prompt, task = engine.start(max_tokens=8)
    generation = await task
    assert agrees(generation, engine.policies.first.directory, prompt)
    assert [span.version for span in generation.spans] == [version]
    assert all(math.isfinite(log_prob) for log_prob in generation.log_probs)


async def test_without_the_key_it_says_nothing_but_that_it_lives(engine: Engine) -> None:
    """The routes that pause it or change its weights included, which vLLM's own key leaves open."""
    for key in ("", KEY[:-1], KEY + "x"):
        stranger = EngineClient(engine.url, key)
        file = engine.policies.second
        try:
            assert await stranger.health()
            for call in (
                stranger.pause(),
                stranger.resume(),
                stranger.weight_version(),
                stranger.abort("turn"),
                stranger.start_update(),
                stranger.update_weights(file.file, 1, file.checksum),
                stranger.finish_update(1),
                stranger.checksums(),
                stranger.generate(
                    "turn", [1], Sampling(max_tokens=1, cache_salt=""), watched=False
                ),
            ):
                with pytest.raises(EngineError, match="401"):
                    await call
        finally:
            await stranger.close()
    assert not await engine.client.is_paused()


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


async def test_an_engine_is_one_runs_at_a_time(engine: Engine) -> None:
    """An engine lets in whoever names no run, and one run at a time.

    Of the other run none of the calls is carried out, and it ends.
    """
    first = EngineClient(engine.url, KEY, "first")
    resumed = EngineClient(engine.url, KEY, "first")
    pool = EnginePool([engine.url], key=KEY, run="second")
    (second,) = pool
    try:
        version = await first.weight_version()
        for call in (
            second.pause(),
            second.weight_version(),
            second.reset_version(),
            second.abort("turn"),
            second.generate("turn", [1], Sampling(max_tokens=1, cache_salt=""), watched=False),
        ):
            with pytest.raises(EngineTaken, match="another run uses this engine"):
                await call
        with pytest.raises(EngineTaken, match=r"engine\.urls"):
            pool.check()
        assert await resumed.weight_version() == version and not await engine.client.is_paused()
    finally:
        for client in (first, resumed):
            await client.close()
        await pool.close()


async def test_a_run_that_has_ended_leaves_its_engine_to_the_next_at_once(engine: Engine) -> None:
    first = EnginePool([engine.url], key=KEY, run="ended")
    second = EngineClient(engine.url, KEY, "next")
    (client,) = first
    try:
        await client.weight_version()
        with pytest.raises(EngineTaken):
            await second.weight_version()
        await first.close()
        await second.weight_version()
    finally:
        await first.close()
        await second.close()


async def test_run_is_refused_an_engine_that_another_has_until_that_is_silent(
    policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that comes while another has the engine is refused until that is silent."""
    monkeypatch.setattr(server, "CLAIM_SECONDS", 0.2)
    monkeypatch.setattr(server, "CLAIM_EVERY", 0.02)
    fake = FakeEngine(policies.first.directory)
    url = await fake.start()
    try:
        await wait_ready(url, 20.0, run="first")
        with pytest.raises(EngineNotReady, match=r"engine\.urls: another run uses the engine at "):
            await wait_ready(url, 20.0, run="second")
        await wait_ready(url, 20.0, run="first")
        monkeypatch.setattr(gate, "LAPSES_SECONDS", 0.1)
        await wait_ready(url, 20.0, run="first")  # whose last word it is: it is killed
        await wait_ready(url, 20.0, run="second")
    finally:
        await fake.stop()


async def test_a_run_keeps_its_engines_while_it_asks_for_no_turns(
    policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "LAPSES_SECONDS", 1.0)
    monkeypatch.setattr("engine.pool.WATCH_EVERY_S", 0.05)
    fake = FakeEngine(policies.first.directory)
    pool = EnginePool([await fake.start()], run="first")
    (client,) = pool
    other = EngineClient(client.url, run="second")
    await client.weight_version()
    watching = asyncio.create_task(pool.watch())
    try:
        for _ in range(15):
            await asyncio.sleep(0.1)
            with pytest.raises(EngineTaken):
                await other.weight_version()
    finally:
        watching.cancel()
        await pool.close()
        await other.close()
        await fake.stop()
