"""The main job on real vLLM, made small.

It is `python run.py` with real processes from the first to the last.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from protocol.arrays import FLOAT32, INT32, UINT8, unpack
from protocol.messages import Turn
from protocol.prompting import load_prompter
from protocol.security import make_keys
from tests.fixtures.example_environment import install_example
from tests.fixtures.runs import SMALL, Run, dies_at, running, with_shadows

pytestmark = pytest.mark.real_engine


async def run_to_the_end(directory: Path, **settings: str) -> Run:
    given = {name.replace("__", "."): value for name, value in settings.items()}
    arguments = SMALL | {"run.dir": str(directory), "warm_start.threads": "1"} | given
    async with running(
        directory, *(f"--{name}={value}" for name, value in arguments.items())
    ) as run:
        assert await run.ended(900) == 0, run.output
        return run


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Play a run of two shards whose thoughts are cut.

    Each shard has an engine and a machine of its own: the other machine is this one by another
    address, and `env` starts what is to be there. There is one run for several tests, because
    engines take half a minute to start.
    """
    directory = tmp_path_factory.mktemp("played")
    settings = {
        "run__max_updates": "3",
        "run__cache_dir": str(directory / "cache"),
        "run__weights_dir": str(directory / "weights"),
        "warm_start__episodes": "300",
        "sampling__max_tokens": "32",
        "env__max_turns": "6",
        "actor__count": "8",
        "learner__max_staleness": "1",
        "control__t2po__min_thinking": "1",
        "control__max_thinking": "4",
        "engine__dtype": "float32",
        "engine__count": "2",
        "engine__kv_cache_gb": "0.25",
        "cluster__shards": "2",
        "cluster__shard_hosts": "127.0.0.2",
        "cluster__shard_launch": "env,SHARD={shard}",
    }
    return asyncio.run(run_to_the_end(directory / "run", **settings))


def training_turns(run: Run) -> list[Turn]:
    return [turn for t in run.trajectories() if not t.key.evaluation for turn in t.turns]


def test_run_on_real_vllm_updates_from_fresh_tokens_and_leaves_nothing_behind(
    played: Run,
):
    """A run on real vllm makes its updates from fresh tokens and leaves nothing behind."""
    updates = played.updates()
    assert [m["update"] for m in updates] == [1, 2, 3] and played.summary()["dropped"] == {}
    assert updates[0]["token_age_max"] == 0 and all(m["token_age_max"] <= 2 for m in updates)
    assert played.left_over() == []


def test_learner_and_engine_agree_before_any_update(played: Run):
    assert played.updates()[0]["mismatch_age0"] < 1e-4


def test_every_token_that_is_trained_on_has_a_log_prob(played: Run):
    for turn in training_turns(played):
        assert np.isfinite(
            unpack(turn.kept.log_probs, FLOAT32)[unpack(turn.kept.mask, UINT8) > 0]
        ).all()


def test_where_thinking_is_cut_the_closing_tag_is_forced_and_masked(played: Run):
    queue = load_prompter(played.directory / "policy").encode(["</think>\n<action>"])[0]
    cut = [turn.kept for turn in training_turns(played) if turn.kept.events]
    assert cut and played.summary()["interventions"] >= len(cut)
    for attempt in cut:
        tokens = unpack(attempt.tokens, INT32)
        mask = unpack(attempt.mask, UINT8)
        forced = np.flatnonzero(mask == 0)
        # An intervention that the response forestalled, or that came after its end, forces nothing.
        if len(forced):
            assert tokens[forced].tolist() == queue[: len(forced)]
    assert any((unpack(attempt.mask, UINT8) == 0).any() for attempt in cut)


def test_each_shard_takes_turns_and_hears_its_own_engine(played: Run):
    answered = {
        shard: (played.directory / "spans" / f"{shard}.jsonl").read_text()
        for shard in ("controller", "controller-1")
    }
    assert all('"name": "turn"' in spans for spans in answered.values()), "a shard took no turns"
    assert all(turn.kept.uncertainty for turn in training_turns(played)), (
        "the signals of an engine did not come to its shard"
    )
    endpoints = json.loads((played.directory / "job.json").read_text())["endpoints"]
    assert "127.0.0.2" in endpoints["engines"][1] and "127.0.0.2" in endpoints["turns"][0]


async def test_engine_that_dies_while_it_loads_weights_is_restarted_and_the_run_goes_on(
    tmp_path: Path, small_policy: Path, monkeypatch
):
    """Its core dies, and leaves a server that can do nothing.

    With keys: the engine's signals, too, come over an encrypted connection, before and after. The
    working directory has modules with the names of ours, which the engine's processes must not
    import.
    """
    make_keys(tmp_path / "keys", "host")
    settings = SMALL | {
        "run.dir": str(tmp_path / "run"),
        "run.max_updates": "12",  # for some seconds, in each of which the controller reports once
        "model.name": str(small_policy),
    }
    settings |= {
        "env.max_turns": "3",
        "security.keys": str(tmp_path / "keys"),
        "control.signal": "tap",
    }
    died = dies_at(
        "engine.plugin.weight_transfer:SafetensorsTransfer.receive_weights before 2",
        tmp_path / "died",
        monkeypatch,
    )
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    async with running(
        tmp_path / "run", *arguments, cwd=with_shadows(tmp_path / "mine", "torch", "random")
    ) as run:
        assert await run.ended(600) == 0, run.output
    assert died.exists()
    assert (
        "engine was killed (SIGKILL, as the system does when memory runs out): started again"
        in run.output
    )
    assert [m["update"] for m in run.updates()] == list(range(1, 13)) and run.summary()[
        "dropped"
    ] == {}
    assert all(m["token_age_max"] <= 2 for m in run.updates())  # max_staleness + order_window
    assert run.left_over() == []
    frames = [
        m["signal_frames_total"] for m in run.updates() if "signal_frames_total" in m
    ]  # updates that follow at once have no news
    assert 0 < frames[0] < frames[-1], "of the first engine, and of the second"


async def test_reward_rises_in_the_example_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Reward rises where a policy was shown to waste most of its few turns.

    There are numbers to guess, and nothing but reward tells it not to. The engine computes in
    bfloat16, so that this run shows, too, how far its log-probs are from the learner's.
    """
    environment = install_example(tmp_path / "installed")
    monkeypatch.setenv("PYTHONPATH", str(with_shadows(tmp_path / "installed")))
    run = await run_to_the_end(
        tmp_path / "run",
        env=environment,
        env__max_turns="0",
        run__max_updates="8",
        run__cache_dir=str(tmp_path / "cache"),
        warm_start__episodes="1500",
        warm_start__wasted_turn_rate="0.6",
        warm_start__expert_error_rate="0",
        sampling__max_tokens="32",
        actor__count="16",
        learner__groups_per_update="8",
        learner__group_size="8",
        learner__learning_rate="1e-4",
        eval__episodes="128",
        engine__dtype="bfloat16",
    )
    before, after = (m["reward"] for m in run.metrics() if m["kind"] == "evaluation")
    chance = (
        2.6 * 10 * (2 * 0.25 / 128) ** 0.5
    )  # 99 % of what the difference of two evaluations of 128 games may be by chance, at most
    assert after > before + chance, (
        f"mean reward on held-out tasks, where 10 is the most: {before} before, {after} after"
    )
    first = run.updates()[0]
    assert first["token_age_max"] == 0 and first["mismatch_age0"] < 0.01, (
        "engine and learner disagree before any update"
    )
