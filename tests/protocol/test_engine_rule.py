"""The rule of a turn inside the engine, and turns that leave the batch and come back.

Who is who is never lost.
"""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from controller.rules.thinking import RuleSpec, ThinkingSettings
from engine.client import EngineClient
from engine.plugin.auth import bearer
from tests.fixtures.engines import (
    KEY,
    TOLERANCE,
    VOCABULARY,
    Engine,
    Policies,
    distributions,
    some_prompt,
    vllm_server,
    watching,
)
from tests.fixtures.messages import make_tags


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


@pytest.mark.real_engine
@pytest.mark.slow
async def test_turns_keep_their_identity_through_preemption(
    policies: Policies, tmp_path: Path
) -> None:
    """Twenty-four turns keep their identity in a KV cache for ten of them.

    They leave the batch, come back to other rows, and are computed again.
    """
    with vllm_server(
        policies, tmp_path, engine__kv_cache_gb="0.0015", engine__max_model_len="256"
    ) as cramped:
        client = EngineClient(cramped.url, KEY)
        async with watching(cramped.signals) as watcher:
            engine = Engine("vllm", cramped.url, client, watcher, policies)
            await engine.run(policies.first)
            rules = [
                rule_for(-1, [VOCABULARY - 1, 22], epsilon=0.1) if i % 2 else None
                for i in range(24)
            ]
            turns = [engine.start(max_tokens=80 + i, rule=rule) for i, rule in enumerate(rules)]
            cut = 0
            for (turn_id, prompt, task), delegated in zip(turns, rules, strict=True):
                generation = await task
                signals = await watcher.until(turn_id, len(generation.tokens))
                assert sorted(set(signals.position)) == list(range(len(generation.tokens)))
                first = [
                    signals.position.index(position) for position in range(len(generation.tokens))
                ]
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


async def _metric(url: str, name: str) -> float:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{url}/metrics", headers={"Authorization": bearer(KEY)}) as response,
    ):
        lines = (await response.text()).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))
