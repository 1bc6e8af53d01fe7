"""A vLLM as GPUs have it, on a CPU: prefills in chunks, asynchronous scheduling, experts.

One server for all of them: it takes half a minute to start. Once with vLLM's V1 model runner, which
CPUs have, and once with V2, whose kernels run in Triton's interpreter: some twenty steps a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq.asyncio

from controller.rules.thinking import ThinkTags
from controller.signals import SignalRouter
from controller.think_tokens import ThinkTokens
from engine.client import EngineClient
from engine.constants import RUNNER_VARIABLE
from tests.fixtures import ROOT
from tests.fixtures.async_on_cpu.async_on_cpu import MADE
from tests.fixtures.engines import (
    KEY,
    TOLERANCE,
    VOCABULARY,
    Engine,
    Policies,
    RealEngine,
    agrees_with,
    build_tiny_experts,
    distributions,
    some_prompt,
    vllm_server,
    watching,
    weights_in,
)
from tests.fixtures.learner import random_group, small_config

pytestmark = [pytest.mark.real_engine, pytest.mark.slow]

FIXTURES = ROOT / "tests" / "fixtures"

STEP_TOKENS = 64
"""Most tokens of a step: longer prompts are computed in chunks."""


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    """Two mixtures of experts."""
    pytest.importorskip("transformers")
    directories = [tmp_path_factory.mktemp(f"experts{seed}") for seed in (0, 1)]
    made = [build_tiny_experts(path, seed=seed) for seed, path in enumerate(directories)]
    return Policies(*map(weights_in, made))


@pytest.fixture(scope="module", params=["V1", "V2"])
def server(
    request: pytest.FixtureRequest, experts: Policies, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RealEngine, Path]]:
    """The server, and its log."""
    directory = tmp_path_factory.mktemp("engine")
    options = f"--enable-chunked-prefill,--max-num-batched-tokens,{STEP_TOKENS}"
    path = [FIXTURES / "async_on_cpu"]
    if request.param == "V2":
        pytest.importorskip("triton", reason="Triton is not installed: the V2 runner needs it")
        path.append(FIXTURES / "triton_on_cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RUNNER_VARIABLE, {"V1": "0", "V2": "1"}[request.param])
        with vllm_server(experts, directory, path, engine__extra_args=options) as running:
            yield running, directory / "engine.log"


@pytest.fixture
async def engine(server: tuple[RealEngine, Path], experts: Policies) -> AsyncIterator[Engine]:
    """An engine that runs experts.first."""
    running, _ = server
    client = EngineClient(running.url, KEY)
    async with watching(running.signals) as watcher:
        made = Engine("vllm", running.url, client, watcher, experts)
        await made.run(experts.first)
        yield made
    await client.close()


def test_engine_of_the_test_plugin_schedules_asynchronously(
    server: tuple[RealEngine, Path],
) -> None:
    _, log = server
    assert MADE in log.read_text()


async def test_probe_of_an_idle_engine_with_chunked_prefill_finds_the_tap(
    server: tuple[RealEngine, Path],
) -> None:
    """Nothing is generated after it, so that no later step brings what was held back."""
    running, _ = server
    context = zmq.asyncio.Context()
    router = SignalRouter(
        context, running.signals, ThinkTokens(ThinkTags(), [], [], VOCABULARY), 1024
    )
    reading = asyncio.create_task(router.run())
    client = EngineClient(running.url, KEY)
    try:
        assert await router.probe(client)
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        router.close()
        await client.close()
        context.term()


async def test_signals_of_prompts_in_chunks_are_exact_and_each_token_has_one(
    engine: Engine,
) -> None:
    turns = [
        engine.start(prompt=some_prompt(f"long {i}", 20 + 60 * (i % 4)), max_tokens=4 + 2 * i)
        for i in range(8)
    ]
    for turn_id, prompt, task in turns:
        generation = await task
        length = len(generation.tokens)
        signals = await engine.watcher.until(turn_id, length)
        assert signals.position == list(range(length))
        assert signals.previous == [-1, *generation.tokens[:-1]]
        log_probs = distributions(engine.policies.first.directory, prompt, generation.tokens)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        assert signals.entropy == pytest.approx(entropy.tolist(), abs=TOLERANCE)
        assert agrees_with(generation, engine.policies.first.directory, prompt)


async def test_turn_that_ends_by_a_token_has_no_signal_after_it(engine: Engine) -> None:
    """The next step has begun by then, and computes a row that is thrown away."""
    stops = list(range(1, VOCABULARY, 3))
    turns = [engine.start(max_tokens=200, stop=stops) for _ in range(8)]
    ended = {turn_id: await task for turn_id, _, task in turns}
    last_id, _, task = engine.start(max_tokens=12)
    await engine.watcher.until(last_id, len((await task).tokens))  # all that is sent before it
    for turn_id, generation in ended.items():
        assert generation.finish_reason == "stop"
        positions = engine.watcher.turns[turn_id].position
        assert positions == list(range(len(generation.tokens)))


async def test_steer_of_an_asynchronous_engine_forces_its_queue_in_a_row(engine: Engine) -> None:
    queue = [11, 22, 33]
    turn_id, _, task = engine.start(max_tokens=200)
    await engine.watcher.until(turn_id, 4)
    await engine.watcher.steer(turn_id, queue)
    generation = await task
    signals = await engine.watcher.until(turn_id, len(generation.tokens))
    forced = [position for position, token in enumerate(signals.forced) if token >= 0]
    assert forced == list(range(forced[0], forced[0] + 3))
    assert [generation.tokens[position] for position in forced] == queue


async def test_experts_of_a_checkpoint_are_loaded_by_their_own_names(engine: Engine) -> None:
    version = await engine.run(engine.policies.second, verify=True)
    _, prompt, task = engine.start()
    generation = await task
    assert agrees_with(generation, engine.policies.second.directory, prompt)
    assert [span.version for span in generation.spans] == [version]


async def test_experts_are_trained_and_published_into_the_engine(
    engine: Engine, tmp_path: Path
) -> None:
    """An update changes experts and routers, and the engine computes what the learner does."""
    import torch

    from learner.data.samples import build_samples
    from learner.model.policy import load_policy
    from learner.publish import WeightWriter, copy_weights
    from learner.update import Updater

    config = small_config(learner__learning_rate="1e-2")
    model = load_policy(engine.policies.first.directory)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = np.random.default_rng(0)
    groups = [random_group(rng, VOCABULARY, number) for number in range(3)]
    updater = Updater(model, config.learner, 1.0, 0)
    updater.update(build_samples(groups, 1, config.learner))
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    layer = "model.layers.1.mlp"
    assert {f"{layer}.experts.gate_up_proj", f"{layer}.experts.down_proj"} <= changed
    assert f"{layer}.gate.weight" in changed

    written = WeightWriter(tmp_path / "weights").write(copy_weights(model, 1, "float32"))
    model.save_pretrained(tmp_path / "trained")
    version = await engine.run_file(written.path, written.checksum, verify=True)
    _, prompt, task = engine.start()
    generation = await task
    assert agrees_with(generation, tmp_path / "trained", prompt)
    assert [span.version for span in generation.spans] == [version]
