"""The rule of a turn inside the engine, and turns that leave the batch and come back.

Who is who is never lost. The server that has them takes adapters, too (engine.weights adapter).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import torch
from transformers import PreTrainedModel

from controller.rules.thinking import RuleSpec, ThinkingSettings
from engine.client import EngineClient, EngineError, Sampling
from engine.constants import ADAPTER
from engine.fake.server import FakeEngine
from engine.plugin.auth import bearer
from learner.model.lora import adapters, add_adapters
from learner.model.policy import load_policy
from learner.publish import Lora, WeightWriter, copy_adapters
from tests.fixtures.engines import (
    KEY,
    TOLERANCE,
    VOCABULARY,
    Engine,
    Policies,
    RealEngine,
    build_tiny_model,
    distributions,
    load_weights,
    some_prompt,
    vllm_server,
    watching,
)
from tests.fixtures.messages import make_tags

ON_CRAMPED = pytest.param("vllm", marks=[pytest.mark.real_engine, pytest.mark.slow])


def rule_for(first: int, queue: list[int], epsilon: float) -> RuleSpec:
    """A rule that takes the token `first` for <think>, and cuts a few tokens after it.

    With a negative one, the prompt has opened the thought.
    """
    tags = make_tags(first, VOCABULARY - 1, begins_inside=first < 0)
    settings = ThinkingSettings("paper", 0.4, VOCABULARY, "mean", 2, epsilon, 4, 25)
    return RuleSpec(settings, tags, queue)


async def test_rule_in_the_engine_decides_as_the_controller_would_at_once(
    engine: Engine,
) -> None:
    """A rule in the engine decides as the controller would on the same signals and at once."""
    queue = [VOCABULARY - 1, 22]
    turns = []
    for i in range(9):
        same = {"max_tokens": 60, "seed": i, "prompt": some_prompt(f"rule {i}")}
        first = -1
        if i < 6:
            first = (await engine.start(**same)[2]).tokens[0]
        rule = rule_for(first, queue, epsilon=(0.05, 0.1, -1.0)[i % 3])
        turns.append((engine.start(**same, rule=rule), rule))
    decided = 0
    for (turn_id, _, task), delegated in turns:
        generation = await task
        signals = await engine.watcher.until(turn_id, len(generation.tokens))
        rule = delegated.build()
        decisions = map(rule.observe, signals.rows())
        decision = next((d for d in decisions if d is not None), None)
        forced = [position for position, token in enumerate(signals.forced) if token >= 0]
        assert forced == (
            []
            if decision is None
            else [
                p for p in (decision.position, decision.position + 1) if p < len(generation.tokens)
            ]
        )
        assert [generation.tokens[position] for position in forced] == queue[: len(forced)]
        decided += decision is not None
    assert decided  # or nothing was tested


@pytest.fixture(scope="module")
def cramped(policies: Policies, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    """A server that takes adapters, with a KV cache for ten turns."""
    settings = {"engine__kv_cache_gb": "0.0015", "engine__max_model_len": "256"}
    adapted = {"engine__weights": "adapter", "learner__lora_rank": str(LORA.rank)}
    directory = tmp_path_factory.mktemp("cramped")
    with vllm_server(policies, directory, **settings, **adapted) as running:
        yield running


@pytest.mark.real_engine
@pytest.mark.slow
async def test_turns_keep_their_identity_through_preemption(
    cramped: RealEngine, policies: Policies
) -> None:
    """Twenty-four turns keep their identity in a KV cache for ten of them.

    They leave the batch, come back to other rows, and are computed again.
    """
    client = EngineClient(cramped.url, KEY)
    async with watching(cramped.signals) as watcher:
        engine = Engine("vllm", cramped.url, client, watcher, policies)
        await engine.run(policies.first)
        rules = [
            rule_for(-1, [VOCABULARY - 1, 22], epsilon=0.1) if i % 2 else None for i in range(24)
        ]
        turns = [engine.start(max_tokens=80 + i, rule=rule) for i, rule in enumerate(rules)]
        cut = 0
        for (turn_id, prompt, task), delegated in zip(turns, rules, strict=True):
            generation = await task
            signals = await watcher.until(turn_id, len(generation.tokens))
            assert sorted(set(signals.position)) == list(range(len(generation.tokens)))
            first = [signals.position.index(position) for position in range(len(generation.tokens))]
            log_probs = distributions(policies.first.directory, prompt, generation.tokens)
            expected = (-(log_probs.exp() * log_probs).sum(-1)).tolist()
            assert [signals.entropy[i] for i in first] == pytest.approx(expected, abs=TOLERANCE)
            forced = [position for position, i in enumerate(first) if signals.forced[i] >= 0]
            rows = list(signals.rows())
            rule = delegated and delegated.build()
            decisions = map(rule.observe, [rows[i] for i in first]) if rule else []
            decision = next((d for d in decisions if d is not None), None)
            assert forced == (
                [decision.position, decision.position + 1] if decision else []
            )  # none where it ends its thought itself
            assert [generation.tokens[position] for position in forced] == (
                delegated.closing_tokens if decision else []
            )
            cut += bool(decision)
        preempted = await _metric(cramped.url, "vllm:num_preemptions_total")
    await client.close()
    assert preempted > 0 and cut > 0


LORA = Lora(rank=3, alpha=6.0)


@pytest.fixture(params=["fake", ON_CRAMPED])
async def adapted(
    request: pytest.FixtureRequest, policies: Policies
) -> AsyncIterator[EngineClient]:
    """A client of an engine that takes adapters, and was started with policies.first."""
    fake = FakeEngine(policies.first.directory, key=KEY)
    if request.param == "fake":
        url = await fake.start()
    else:
        url = request.getfixturevalue("cramped").url
    client = EngineClient(url, KEY, model=ADAPTER)
    yield client
    await client.close()
    if request.param == "fake":
        await fake.stop()


def draw_adapters(model: PreTrainedModel, seed: int) -> None:
    """Give a model other adapters, which change what it says."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, adapter in adapters(model):
            adapter.a.normal_(generator=random)
            adapter.b.normal_(std=0.1, generator=random)


def log_probs_of(model: PreTrainedModel, prompt: list[int], response: list[int]) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0].tolist()


async def test_adapters_take_effect_in_turns_under_way_and_in_those_after(
    adapted: EngineClient, policies: Policies, tmp_path: Path
) -> None:
    """What they are added to is not what the engine was started with, as after a warm start."""
    trained = load_policy(policies.second.directory)
    add_adapters(trained, *LORA)
    writer = WeightWriter(tmp_path)
    prompt = some_prompt("adapters")
    versions = []
    stream = adapted.stream("a", prompt, Sampling(max_tokens=90, cache_salt="a"), log_probs=1)
    chunks = []
    for number in (1, 2):
        draw_adapters(trained, number)
        snapshot = copy_adapters(trained, number, "float32", LORA, with_base=number == 1)
        written = writer.write(snapshot)
        assert written.path is not None
        versions.append(
            await load_weights(adapted, written.path, written.checksum, verify=number == 1)
        )
        if number == 1:
            chunks += [await anext(stream) for _ in range(4)]
        name = f"after {number}"
        salted = Sampling(max_tokens=8, cache_salt=name)
        after = await adapted.generate(name, prompt, salted, watched=False)
        assert [span.version for span in after.spans] == versions[-1:]
        expected = log_probs_of(trained, prompt, after.tokens)
        assert after.log_probs == pytest.approx(expected, abs=TOLERANCE)
    chunks += [chunk async for chunk in stream]
    assert [span.version for span in chunks[-1].spans] == versions
    assert sum(len(chunk.tokens) for chunk in chunks) == 90


async def test_adapters_of_another_model_are_refused(
    adapted: EngineClient, policies: Policies, tmp_path: Path
) -> None:
    trained = load_policy(build_tiny_model(tmp_path / "other", hidden=96))
    add_adapters(trained, *LORA)
    snapshot = copy_adapters(trained, 1, "float32", LORA, with_base=True)
    written = WeightWriter(tmp_path).write(snapshot)
    assert written.path is not None
    with pytest.raises(EngineError, match=r"adapters .* are of another model"):
        await load_weights(adapted, written.path, written.checksum)


async def _metric(url: str, name: str) -> float:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{url}/metrics", headers={"Authorization": bearer(KEY)}) as response,
    ):
        lines = (await response.text()).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))
