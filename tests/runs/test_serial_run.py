"""`--serial`: the whole graph in one process.

What it leaves behind shows whether the invariants of a run hold.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import zmq.asyncio
from rich.console import Console
from safetensors.torch import load_file

import engine.pool
import learner.publish
from actors.episode import EpisodePlayer
from config import Job
from controller.admission import episode_seed, task_of_group
from controller.controller import Controller
from controller.signals import SignalRouter
from controller.think_tokens import load_think_tokens
from controller.turns import TurnRunner
from engine.fake.server import FakeEngine
from engine.pool import EnginePool
from envs.registry import make_environment
from learner.checkpoint import latest
from learner.learner import Learner
from learner.model.policy import load_policy
from learner.publish import WeightWriter, copy_weights
from learner.training import Training
from learner.warm_start.build import build_policy
from protocol.arrays import FLOAT16, FLOAT32, UINT8, unpack
from protocol.messages import DropReason, EpisodeKey, Lease, Trajectory
from protocol.prompting import load_prompter
from supervisor.cli.train import resolve_run
from supervisor.job import prepare_job
from supervisor.process import RunFailed
from supervisor.serial import train_serially
from telemetry.analysis.collapse import SignWatch
from telemetry.metrics_schema import undocumented_names
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics
from tests.fixtures.runs import (
    job_in,
    play_serially,
    record_engines,
    serial_run,
    small_config,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list[Trajectory], list[dict]]:
    """Play a run with control that acts often.

    Thinking is cut after 3 tokens, and every turn that can be is sampled again.
    """
    return serial_run(
        tmp_path_factory.mktemp("serial") / "run",
        run__max_updates="3",
        env__max_turns="8",
        control__max_thinking="3",
        control__t2po__min_thinking="1",
        control__t2po__eta="1e9",
        control__t2po__max_resamples="1",
        learner__max_staleness="1",
    )


def trained(trajectories: list[Trajectory]) -> list[Trajectory]:
    return [t for t in trajectories if not t.key.evaluation and t.drop_reason is None]


def test_it_ends_by_itself_with_summary_and_metrics(finished):
    summary, _, metrics = finished
    assert (summary["ended"], summary["updates"]) == ("finished", 3)
    assert [m["kind"] for m in metrics] == [
        "evaluation",
        "update",
        "update",
        "update",
        "evaluation",
    ]


def test_every_metric_it_writes_is_documented(finished):
    _, _, metrics = finished
    assert (
        undocumented_names(sorted({name for line in metrics for name in line if name != "kind"}))
        == []
    )


def test_invariant_1_nothing_is_played_before_the_learners_weights_are_in_the_engine(
    tmp_path: Path, monkeypatch
):
    """Weights that an engine starts with have no version, so would be older than any bound."""
    real = engine.pool.update_engine

    async def slow_at_first(engine, path, version, *rest, **named):
        await asyncio.sleep(2.0 if version == 0 else 0.0)  # a lease needs milliseconds
        return await real(engine, path, version, *rest, **named)

    monkeypatch.setattr(engine.pool, "update_engine", slow_at_first)
    _, trajectories, _ = serial_run(tmp_path / "run", run__max_updates="1")
    assert (
        min(span.version for t in trajectories for turn in t.turns for span in turn.kept.spans) == 0
    )


def test_a_run_that_shows_signs_of_a_collapse_goes_on_from_the_weights_before_them(
    tmp_path: Path, imitating: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    observe = SignWatch.observe
    monkeypatch.setattr(
        SignWatch,
        "observe",
        lambda self, update: observe(self, update) | {"always": "each update is one"},
    )
    settings = imitating | {
        "run__max_updates": "3",
        "learner__rollback": "0.5",
        "learner__learning_rate": "1e-3",
        "env__max_turns": "4",
    }
    summary, trajectories, metrics = serial_run(
        tmp_path / "run", **settings, learner__max_staleness="0"
    )
    updates = [line for line in metrics if line["kind"] == "update"]
    assert [line.get("rolled_back_to") for line in updates] == [0, None, 0] and summary[
        "rollbacks"
    ] == 2
    assert [line["learning_rate"] for line in updates] == [1e-3, 5e-4, 5e-4]
    start, end = (
        load_file(tmp_path / "run" / "checkpoints" / name / "model.safetensors")
        for name in ("000000", "000003")
    )
    assert all(torch.equal(start[name], end[name]) for name in start) and any(
        line["grad_norm"] > 0 for line in updates
    )
    assert (
        max(span.version for t in trajectories for turn in t.turns for span in turn.kept.spans) == 3
    )


def test_weights_that_go_out_late_make_every_token_as_old_as_that(
    tmp_path: Path, imitating: dict[str, str]
):
    settings = imitating | {
        "learner__max_staleness": "2",
        "learner__publish_lag": "2",
        "run__max_updates": "5",
        "env__max_turns": "4",
    }
    _, trajectories, metrics = serial_run(tmp_path / "run", **settings)
    updates = [line for line in metrics if line["kind"] == "update"]
    assert [(line["token_age_mean"], line["token_age_max"]) for line in updates] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (2, 2),
        (2, 2),
    ]
    assert {
        span.version
        for t in trajectories
        if t.key.evaluation
        for turn in t.turns
        for span in turn.kept.spans
    } == {0, 5}


def test_weights_that_cannot_be_written_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They are written beside training, which would wait for ever for episodes of theirs."""
    real = learner.publish.save_file

    def full(tensors: dict, path: Path) -> None:
        if ".v1-" in path.name:
            raise OSError("no space left on device")
        real(tensors, path)

    monkeypatch.setattr(learner.publish, "save_file", full)
    with pytest.raises((ExceptionGroup, RuntimeError, OSError)) as error:
        serial_run(tmp_path / "run", learner__max_staleness="0")
    assert re.search(
        r"v1\.safetensors cannot be written: no space left on device "
        r"\(run\.weights_dir; .* MB left\)",
        repr(error.value),
    )


def test_invariant_2_age_is_per_token_from_the_engines_spans(finished):
    _, trajectories, metrics = finished
    for t in trained(trajectories):
        for turn in t.turns:
            spans = turn.kept.spans
            assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
            assert spans[-1].stop == len(turn.kept.mask)
    assert all(m["token_age_max"] <= 1 for m in metrics if m["kind"] == "update")


def test_invariant_3_every_admitted_episode_was_trained_on_or_dropped_once(finished):
    summary, trajectories, _ = finished
    assert set(Counter(t.key for t in trajectories).values()) == {1}
    assert len(trained(trajectories)) == 3 * 2 * 2 + summary["dropped"].get("canceled", 0)


def test_invariant_6_evaluation_has_no_control_and_rejected_attempts_say_why(finished):
    _, trajectories, _ = finished
    turns = [(t, turn) for t in trajectories for turn in t.turns]
    assert all(not turn.kept.events and not turn.rejected for t, turn in turns if t.key.evaluation)
    resampled = [turn for t, turn in turns if turn.rejected]
    assert resampled and all(
        attempt.events[-1].kind == "resample" for turn in resampled for attempt in turn.rejected
    )
    for _, turn in turns:
        finite = np.isfinite(unpack(turn.kept.log_probs, FLOAT32))
        assert not (unpack(turn.kept.mask, UINT8)[~finite]).any()


def test_invariant_12_credits_bound_every_queue_and_each_depth_is_a_metric(finished):
    """Credits admit (S+1) P groups of G episodes at most.

    An actor has one turn in flight for each episode it plays.
    """
    _, _, metrics = finished
    settings = small_config()
    groups = (1 + 1) * settings.learner.groups_per_update
    bounds = {
        "slots_taken": groups,
        "queue_leases": groups * settings.learner.group_size + settings.eval.episodes,
        "queue_trajectories": groups * settings.learner.group_size,
        "queue_weights": 1 + 1,
        "episodes_in_flight": settings.actor.count * settings.actor.episodes_per_actor,
        "turns_in_flight": settings.actor.count * settings.actor.episodes_per_actor,
    }
    for name, bound in bounds.items():
        depths = [m[name] for m in metrics if name in m]
        assert depths and max(depths) <= bound, name


def test_uncertainty_and_entropy_are_recorded_for_every_token(finished):
    _, trajectories, _ = finished
    for t in trained(trajectories):
        for turn in t.turns:
            assert np.isfinite(unpack(turn.kept.uncertainty, FLOAT16)).all()
            assert len(turn.kept.signal_table()) == len(turn.kept.mask)


def test_mode_budget_cuts_thinking_and_resamples_nothing(tmp_path: Path, imitating: dict[str, str]):
    _, trajectories, _ = serial_run(
        tmp_path / "run",
        **imitating,
        control__mode="budget",
        control__t2po__min_thinking="1",
        control__max_thinking="3",
        control__t2po__eta="1e9",
        run__max_updates="1",
        env__max_turns="4",
    )
    turns = [turn for t in trajectories if not t.key.evaluation for turn in t.turns]
    events = [event for turn in turns for event in turn.kept.events]
    assert events and {(event.kind, event.reason) for event in events} == {("intervene", "budget")}
    assert not any(turn.rejected for turn in turns)


def test_a_turn_that_fails_inside_the_controller_costs_its_episode_not_the_run(
    tmp_path: Path, monkeypatch
):
    calls = itertools.count(1)
    real = TurnRunner.run

    async def failing_once(self, request, seed):
        if next(calls) == 60:  # of training: evaluation has at most 40 turns
            raise ZeroDivisionError("injected")
        return await real(self, request, seed)

    monkeypatch.setattr(TurnRunner, "run", failing_once)
    summary, trajectories, _ = serial_run(tmp_path / "run")
    assert summary["ended"] == "finished" and summary["dropped"]["engine_error"] == 1
    failed = next(t for t in trajectories if t.drop_reason is DropReason.ENGINE_ERROR)
    assert "ZeroDivisionError" in failed.detail and summary["failures"] == {
        "engine_error": f"{failed.key.id}: {failed.detail}"
    }


@pytest.mark.parametrize(("environment", "score"), [("webshop", "score"), ("search", "searches")])
def test_other_environments_are_played_through_the_same_loop(
    tmp_path: Path, environment: str, score: str
):
    summary, trajectories, metrics = serial_run(
        tmp_path / "run", env__name=environment, run__max_updates="1", engine__max_model_len="2048"
    )
    assert summary["ended"] == "finished" and score in summary["scores"]
    assert trained(trajectories) and all(score in t.scores for t in trained(trajectories))
    assert undocumented_names([name for line in metrics for name in line if name != "kind"]) == []


@pytest.mark.parametrize(
    ("environment", "score"), [("textarena", "reward"), ("gymnasium", "return")]
)
def test_games_without_an_expert_are_played_by_a_model_of_ones_own(
    tmp_path: Path, small_policy: Path, environment: str, score: str
):
    settings = {
        "env__name": environment,
        "env__max_turns": "4",
        "model__name": str(small_policy),
        "run__max_updates": "1",
    }
    summary, trajectories, _ = serial_run(tmp_path / "run", **settings)
    assert summary["ended"] == "finished" and score in summary["scores"]
    assert trained(trajectories)


def test_the_step_size_falls_with_the_updates_that_are_left(tmp_path: Path):
    settings = {
        "learner__lr_decay_fraction": "1",
        "learner__learning_rate": "1e-3",
        "run__max_updates": "4",
        "run__max_minutes": "1000000",
        "env__max_turns": "1",
    }
    _, _, metrics = serial_run(tmp_path / "run", **settings)
    assert [m["learning_rate"] for m in metrics if m["kind"] == "update"] == pytest.approx(
        [1e-3, 0.75e-3, 0.5e-3, 0.25e-3], rel=1e-4
    )


def test_the_minutes_before_a_resume_count(tmp_path: Path):
    directory = tmp_path / "run"
    play_serially(
        directory, small_config(run__dir=str(directory), run__max_updates="1", env__max_turns="1")
    )
    lasted = read_metrics(directory / METRICS_FILE)[-1]["wall_seconds"]

    def resumed(minutes: float) -> dict:
        resolution, _ = resolve_run(
            None, directory, {"run.max_updates": "2", "run.max_minutes": str(minutes)}, serial=True
        )
        return asyncio.run(
            train_serially(
                prepare_job(resolution.config, resume=True, model=None), Console(quiet=True)
            )
        )

    assert resumed(lasted / 60)["updates"] == 1
    assert resumed(lasted / 60 + 10)["updates"] == 2


def test_a_clock_that_is_set_forward_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hours = itertools.count()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * next(hours))  # an hour at each look
    summary, _, metrics = serial_run(tmp_path / "run", run__max_minutes="10", env__max_turns="1")
    assert summary["ended"] == "finished" and summary["updates"] == 2
    assert max(line["wall_seconds"] for line in metrics) < 600


def test_a_resumed_run_keeps_when_its_training_began(tmp_path: Path):
    """From there the step size falls by time."""
    directory = tmp_path / "run"
    play_serially(
        directory, small_config(run__dir=str(directory), run__max_updates="1", env__max_turns="1")
    )
    resolution, _ = resolve_run(None, directory, {"run.max_updates": "2"}, serial=True)
    job = prepare_job(resolution.config, resume=True, model=None)
    asyncio.run(train_serially(job, Console(quiet=True)))
    first, second = (
        json.loads(file.read_text())["began"]
        for file in sorted(directory.glob("checkpoints/*/training_state/state.json"))
    )
    assert 0 < first == second < read_metrics(directory / METRICS_FILE)[-1]["wall_seconds"]


def test_engines_share_the_turns_and_all_run_the_newest_weights(tmp_path: Path, monkeypatch):
    made = record_engines(monkeypatch)
    summary, _, _ = serial_run(
        tmp_path / "run", engine__count="2", run__max_updates="1", env__max_turns="2"
    )
    assert summary["ended"] == "finished" and summary["updates"] == 1
    assert len(made) == 2 and {engine.generator.version for engine in made} == {"1"}
    assert all(engine.turns > 4 for engine in made)


def test_training_ends_when_its_tokens_are_generated_though_other_batches_wait(
    tmp_path: Path, monkeypatch
):
    real = Training.update

    def slow(self, *arguments):
        time.sleep(2.0)  # in the training thread; other batches are played meanwhile
        return real(self, *arguments)

    monkeypatch.setattr(Training, "update", slow)
    _, _, metrics = serial_run(
        tmp_path / "run",
        run__max_updates="50",
        run__max_tokens="1",
        env__max_turns="1",
        learner__max_staleness="5",
    )
    assert len([m["training_tokens"] for m in metrics if m["kind"] == "update"]) == 1


def test_the_end_waits_for_what_is_canceled_however_late_the_controller_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = Controller.finish_training

    async def late(self):
        await asyncio.sleep(3.0)  # the learner has nothing else to do meanwhile
        await real(self)

    monkeypatch.setattr(Controller, "finish_training", late)
    monkeypatch.setattr(Learner, "evaluate", no_evaluation)
    summary, _, _ = serial_run(
        tmp_path / "run",
        run__max_updates="50",
        run__max_tokens="1",
        env__max_turns="1",
        learner__max_staleness="1",
    )
    assert summary["dropped"] == {"canceled": 8}, "all episodes of the four slots"


async def no_evaluation(self, wait: bool) -> None:
    """As after Ctrl-C."""


def test_invariant_7_at_learning_rate_0_nothing_drifts(tmp_path: Path, imitating: dict[str, str]):
    _, _, metrics = serial_run(
        tmp_path / "run",
        **imitating,
        learner__learning_rate="0",
        run__max_updates="3",
        env__max_turns="4",
    )
    updates = [m for m in metrics if m["kind"] == "update"]
    assert len(updates) == 3
    for m in updates:
        assert abs(m["ratio_p99"] - 1) < 1e-3 and abs(m["ratio_p01"] - 1) < 1e-3
        assert abs(m["kl"]) < 1e-4


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
        tokens = load_think_tokens(model_dir, environment, config.control)
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
                env,
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
    asynchronous = sorted(trained(trajectories), key=lambda t: (t.key.group, t.key.member))
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


def test_published_weights_are_a_safetensors_file_of_the_checkpoints_names(tmp_path: Path):
    job = job_in(tmp_path / "run", small_config())
    build_policy(job)
    weights = WeightWriter(tmp_path).write(
        copy_weights(load_policy(Path(job.model_dir)), 3, "float32")
    )
    assert set(load_file(weights.path)) == set(load_file(Path(job.model_dir) / "model.safetensors"))


def test_metrics_that_cannot_be_written_end_the_run_with_a_checkpoint(
    tmp_path: Path,
):
    """Figures that cannot be written end the run with a checkpoint and one sentence."""
    job = job_in(tmp_path / "run", small_config(run__max_updates="50"))
    (tmp_path / "run" / METRICS_FILE).symlink_to("/dev/full")
    sentence = (
        r"^\S*metrics\.jsonl cannot be written: No space left on device \(run\.dir; .* MB left\)$"
    )
    with pytest.raises(RunFailed, match=sentence) as error:
        asyncio.run(train_serially(job, Console(quiet=True)))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["ended"] == str(error.value)
    assert latest(tmp_path / "run").name == f"{summary['updates']:06d}" < "000050"


def test_an_environment_of_which_nothing_can_be_played_ends_the_run_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def start(self, split, index, seed):
        raise KeyError("no such room")

    job = job_in(tmp_path / "run", small_config())
    monkeypatch.setattr(type(make_environment("alfworld")), "start", start)
    with pytest.raises(
        RunFailed,
        match=(
            r"^none of the first 64 episodes "
            r".*KeyError: 'no such room' \(.*test_serial_run.py:\d+ in start\)"
        ),
    ):
        asyncio.run(train_serially(job, Console(quiet=True)))
