"""A run without staleness is the synchronous algorithm, batch for batch."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
import zmq.asyncio

from actors.episode import EpisodePlayer
from config import Job
from controller.admission import episode_seed, task_of_group
from controller.signals import SignalRouter
from controller.think_tokens import load_think_tokens
from controller.turns import TurnRunner
from engine.fake.server import FakeEngine
from engine.pool import EnginePool
from envs.registry import Environments, make_environment
from learner.model.policy import load_policy
from learner.publish import WeightWriter
from learner.training import Training
from learner.warm_start.build import build_policy
from protocol.messages import EpisodeKey, Lease, Trajectory
from protocol.prompting import load_prompter
from tests.fixtures.runs import (
    job_in,
    select_trained,
    serial_run,
    small_config,
)

pytestmark = pytest.mark.slow


class LockStep:
    """The synchronous algorithm, written as a plain loop.

    It plays a batch, trains on it, loads the weights, again.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.batches: list[list[Trajectory]] = []

    async def run(self) -> torch.nn.Module:
        config = self.job.config
        context = zmq.asyncio.Context()
        build_policy(self.job)
        model_dir = Path(self.job.model_dir)
        environment = make_environment(config.env.name, **config.environment_settings())
        prompter = load_prompter(model_dir)
        tokens = load_think_tokens(model_dir, prompter, environment, config.control)
        signals = SignalRouter(
            context, self.job.endpoints.signals[0], tokens, config.engine.max_model_len
        )
        engine = FakeEngine(
            self.job.model_dir,
            signals=self.job.endpoints.signals[0],
            top_j=config.control.t2po.top_j,
        )
        engines = EnginePool([await engine.start()])
        listening = asyncio.create_task(signals.run())
        try:
            training = Training.begin(self.job, lambda *_: None)
            publisher = WeightWriter(Path(self.job.weights_dir))
            await self._load(engines, publisher, training)
            turns = TurnRunner(config, engines, signals, tokens)
            for update in range(config.run.max_updates):
                turns.weights_name = str(training.update_number)
                groups = [
                    await self._group(update * config.learner.groups_per_update + i, turns)
                    for i in range(config.learner.groups_per_update)
                ]
                self.batches.append([t for group in groups for t in group])
                training.update(groups)
                await self._load(engines, publisher, training)
            return training.model
        finally:
            listening.cancel()
            await engines.close()
            await engine.stop()
            signals.close()
            context.destroy(linger=0)

    async def _load(self, engines: EnginePool, publisher: WeightWriter, training: Training) -> None:
        weights = publisher.write(training.snapshot())
        await engines.apply_weights(
            str(weights.path), weights.version, weights.checksum, deadline=30.0
        )

    async def _group(self, group: int, turns: TurnRunner) -> list[Trajectory]:
        config = self.job.config
        env = make_environment(config.env.name, **config.environment_settings())
        task = task_of_group(config.run.seed, group, env.size("train"))
        played = []
        for member in range(config.learner.group_size):
            key = EpisodeKey(group, member)
            seed = episode_seed(config.run.seed, key)
            player = EpisodePlayer(
                Environments(env),
                load_prompter(Path(self.job.model_dir)),
                lambda request, seed=seed: turns.run(request, seed),
                step_timeout=30.0,
                max_prompt_tokens=1000,
                anchor_texts=False,
            )
            played.append(
                await player.play(
                    Lease(key=key, lease_attempt=0, split="train", task_index=task, seed=seed)
                )
            )
        return played


def test_invariant_1_max_staleness_0_equals_a_lock_step_loop_batch_for_batch(
    tmp_path: Path, imitating: dict[str, str]
):
    settings = imitating | {
        "learner__max_staleness": "0",
        "control__mode": "off",
        "env__max_turns": "4",
        "run__max_updates": "2",
        "learner__learning_rate": "0.01",
    }
    _, trajectories, metrics = serial_run(tmp_path / "run", **settings)
    reference = LockStep(job_in(tmp_path / "reference", small_config(**settings)))
    model = asyncio.run(reference.run())
    size = len(reference.batches[0])
    asynchronous = sorted(select_trained(trajectories), key=lambda t: (t.key.group, t.key.member))
    assert len(asynchronous) == 2 * size
    for batch, number in zip(reference.batches, range(2), strict=True):
        assert [texts_of(t) for t in asynchronous[number * size : (number + 1) * size]] == [
            texts_of(t) for t in batch
        ]
    updates = [m for m in metrics if m["kind"] == "update"]
    assert all(m["token_age_max"] == 0 for m in updates)
    assert updates[0]["computed_turns_share"] > 0, (
        "the first update changed nothing, so the second batch proves nothing"
    )
    final = load_policy(max((tmp_path / "run" / "checkpoints").iterdir())).state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(final[name], weight, rtol=0, atol=0)


def texts_of(trajectory: Trajectory) -> list[tuple[bytes, bytes, str]]:
    return [(turn.prompt, turn.kept.tokens, turn.action) for turn in trajectory.turns]
