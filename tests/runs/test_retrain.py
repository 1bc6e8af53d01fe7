"""Training again on what a run has recorded."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

from config import ConfigError, Job
from learner.checkpoint import latest
from learner.data.rollout_metrics import rollout_metrics
from supervisor.cli.main import main
from supervisor.cli.retrain import retrain
from telemetry.metrics_schema import find_metric


def again(job: Job, directory: Path, **overrides: str) -> Path:
    settings = {"run.dir": str(directory), "learner.lr_decay_fraction": "0"} | {
        name.replace("__", "."): text for name, text in overrides.items()
    }
    return retrain(Path(job.run_dir), settings, Console(file=io.StringIO()))


def weights(run_dir: Path) -> dict[str, bytes]:
    return {
        name: tensor.numpy().tobytes()
        for name, tensor in load_file(latest(run_dir) / "model.safetensors").items()
    }


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "update"]


def test_the_same_policy_comes_out_to_the_bit(learning_run: Job, tmp_path: Path) -> None:
    run_dir = again(learning_run, tmp_path / "again")
    assert losses(run_dir) == losses(Path(learning_run.run_dir)) and len(losses(run_dir)) == 2
    assert weights(run_dir) == weights(Path(learning_run.run_dir))


def test_exploration_is_measured_the_same_while_the_run_goes_on_and_afterwards(
    learning_run: Job, tmp_path: Path
) -> None:
    first, second = (
        explored(directory)
        for directory in (Path(learning_run.run_dir), again(learning_run, tmp_path / "again"))
    )
    assert first == second and len(first) == 2
    assert first[1]["known_pairs"] > first[0]["known_pairs"] > 0


def _is_of_exploration(name: str) -> bool:
    metric = find_metric(name)
    return metric is not None and metric.group.startswith("exploration")


def explored(run_dir: Path) -> list[dict[str, float]]:
    """The measures of exploration in a run's metrics, by update."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if _is_of_exploration(name)}
        for line in lines
        if line["kind"] == "update"
    ]


def test_another_correction_is_compared_on_equal_data(learning_run: Job, tmp_path: Path) -> None:
    first, second = (
        again(learning_run, tmp_path / name, learner__loss=name) for name in ("reinforce", "ppo")
    )
    assert weights(first) != weights(second) and len(losses(first)) == len(losses(second)) == 2


def test_a_value_head_learns_from_recorded_episodes(learning_run: Job, tmp_path: Path) -> None:
    run_dir = again(
        learning_run, tmp_path / "valued", learner__algorithm="gae", learner__loss="vtrace"
    )
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["value_loss"] >= 0 for line in lines if line["kind"] == "update"] == [True, True]


def test_the_command_line_names_the_run_and_its_settings(
    learning_run: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "retrain",
        learning_run.run_dir,
        "--run-dir",
        str(tmp_path / "new"),
        "--updates",
        "1",
    ]
    assert main(arguments) == 0
    assert "1 update from" in capsys.readouterr().out and latest(tmp_path / "new").name == "000001"


def test_ctrl_c_keeps_what_has_been_trained(
    learning_run: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(episodes):  # asked for after the first update
        os.kill(os.getpid(), signal.SIGINT)
        return rollout_metrics(episodes)

    monkeypatch.setattr("supervisor.cli.retrain.rollout_metrics", interrupted)
    with pytest.raises(KeyboardInterrupt):
        again(learning_run, tmp_path / "new")
    assert (
        losses(tmp_path / "new") == losses(Path(learning_run.run_dir))[:1]
        and latest(tmp_path / "new").name == "000001"
    )


def test_training_again_ends_with_its_minutes(learning_run: Job, tmp_path: Path) -> None:
    assert latest(again(learning_run, tmp_path / "new", run__max_minutes="1e-9")).name == "000000"


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("control__mode", "off", "changes nothing about recorded episodes"),
        ("learner__group_size", "5", "have 2 episodes"),
        ("learner__rollback", "0.5", "is for runs"),
    ],
)
def test_what_cannot_be_changed_is_refused(
    learning_run: Job, tmp_path: Path, setting: str, value: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        again(learning_run, tmp_path / "new", **{setting: value})


def test_a_run_of_another_version_is_refused(learning_run: Job, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(learning_run.run_dir, old)
    (old / "job.json").write_text((old / "job.json").read_text().replace('"engines"', '"engine"'))
    with pytest.raises(ConfigError, match=r"job\.json was written by another version"):
        retrain(old, {}, Console(quiet=True))


def test_a_run_whose_first_episodes_are_gone_is_refused(learning_run: Job, tmp_path: Path) -> None:
    trimmed = tmp_path / "trimmed"
    shutil.copytree(learning_run.run_dir, trimmed)
    (first,) = (trimmed / "episodes").iterdir()
    first.rename(first.with_name(f"{1000:015d}.log"))
    with pytest.raises(ConfigError, match=r"learner\.log_gb"):
        retrain(trimmed, {}, Console(quiet=True))


def test_a_directory_without_episodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run directory with episodes"):
        retrain(tmp_path, {}, Console(quiet=True))
