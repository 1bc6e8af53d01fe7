"""The main job on real vLLM, made small: `python run.py` with real processes from the first to the last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from run_fixtures import SMALL, Run, running

from protocol.arrays import FLOAT32, INT32, UINT8, unpack
from protocol.prompting import load_prompter

pytestmark = pytest.mark.real_engine


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the warm-started policies of these runs are kept."""
    return str(tmp_path_factory.mktemp("cache"))


async def run_to_the_end(directory: Path, **settings: str) -> Run:
    arguments = SMALL | {"run.dir": str(directory)} | {name.replace("__", "."): value for name, value in settings.items()}
    async with running(directory, *(f"--{name}={value}" for name, value in arguments.items())) as run:
        assert await run.ended(900) == 0, run.output
        return run


async def test_a_run_on_real_vllm_holds_the_invariants_of_control_and_parity(tmp_path: Path, cache: str):
    """One run, because the engine takes half a minute to start."""
    run = await run_to_the_end(
        tmp_path / "run", run__updates="3", run__cache_dir=cache, warm_start__episodes="300", sampling__max_tokens="32",
        actor__count="8", control__min_thinking="1", control__max_thinking="4", engine__dtype="float32",
    )  # fmt: skip
    updates = run.updates()
    assert [m["update"] for m in updates] == [1, 2, 3]
    first = updates[0]
    assert first["token_age_max"] == 0 and first["mismatch_age0"] < 1e-4, "engine and learner disagree before any update"
    assert all(m["token_age_max"] <= 1 for m in updates)

    queue = load_prompter(run.directory / "policy").tokens(["</think>\n<action>"])[0]
    turns = [turn for t in run.trajectories() if not t.key.evaluation for turn in t.turns]
    cut = [turn.kept for turn in turns if turn.kept.events]
    assert cut and run.summary()["interventions"] >= len(cut)
    for attempt in cut:
        tokens, mask = unpack(attempt.tokens, INT32), unpack(attempt.mask, UINT8)
        forced = np.flatnonzero(mask == 0)
        if len(forced):  # an intervention that the response forestalled, or that came after its end, forces nothing
            assert tokens[forced].tolist() == queue[: len(forced)]
    assert any((unpack(attempt.mask, UINT8) == 0).any() for attempt in cut)
    for turn in turns:
        assert np.isfinite(unpack(turn.kept.log_probs, FLOAT32)[unpack(turn.kept.mask, UINT8) > 0]).all()
    assert run.left_over() == []


async def test_invariant_7_log_probs_agree_in_bfloat16_too(tmp_path: Path, cache: str):
    """The engine computes in bfloat16, the learner in float32."""
    run = await run_to_the_end(
        tmp_path / "run", run__updates="1", run__cache_dir=cache, warm_start__episodes="300", sampling__max_tokens="32",
        engine__dtype="bfloat16",
    )  # fmt: skip
    (first,) = run.updates()
    assert 0 < first["mismatch_age0"] < 0.01


async def test_reward_rises_on_real_vllm(tmp_path: Path, cache: str):
    """One kind of task, so that some minutes are enough: a run learns not to dawdle as its demonstrations did."""
    run = await run_to_the_end(
        tmp_path / "run", run__updates="14", run__minutes="30", run__cache_dir=cache,
        env__task_types="pick_and_place_simple", warm_start__episodes="1000", warm_start__dawdling="0.5", sampling__max_tokens="40",
        sampling__seeded="false", model__hidden_size="128", model__heads="4", actor__count="32", learner__groups="8",
        learner__group_size="4", learner__learning_rate="1e-4", engine__dtype="float32",
    )  # fmt: skip
    rewards = [m["reward"] for m in run.updates()]
    assert len(rewards) == 14
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 1.0, rewards
