"""Checks of the training command before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from config import ConfigError, RunSection
from config.resolve import resolve, resolve_new, to_toml
from engine.gpus import Gpu
from supervisor.cli.train import (
    Ending,
    check_settings,
    double_reached_limits,
    options_to_resume,
    record_this_start,
    resolve_run,
)
from supervisor.cluster import planning
from telemetry.sinks.starts_file import read_starts


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("engine.urls", "http://127.0.0.1:9"),
        ("engine.weights", "nccl"),
        ("learner.ranks", "2"),
        ("cluster.learner_launch", "ssh,b"),
    ],
)
def test_check_settings_of_other_processes_in_a_serial_run_refuses(
    setting: str, value: str
) -> None:
    """A run of one process refuses what only processes of their own could use."""
    with pytest.raises(ConfigError, match=rf"^{setting}: --serial"):
        check_settings(resolve(None, {setting: value}, serial=True), serial=True)


def test_check_settings_that_let_others_connect_without_keys_refuses() -> None:
    """A dry run refuses what a run would."""
    overrides = {"controller.host": "0.0.0.0", "env.name": "webshop"}
    with pytest.raises(ConfigError, match=r"^controller.host: .*security.keys"):
        check_settings(resolve(None, overrides, serial=True), serial=True)


def test_resolve_run_that_is_resumed_names_the_recipes_that_it_began_with(tmp_path: Path) -> None:
    """Those that a resume adds come after them."""
    begun = resolve_new(None, {"run.dir": str(tmp_path)}, serial=False)
    (tmp_path / "config.toml").write_text(to_toml(begun.config))
    record_this_start(tmp_path, [], begun.recipes, "")
    plain, _ = resolve_run(None, tmp_path, {}, serial=False)
    assert plain.recipes == begun.recipes == ["tiny", "tiny-alfworld"]
    more, _ = resolve_run(None, tmp_path, {"recipe": "tiny,t2po-code"}, serial=False)
    assert more.recipes == ["tiny", "tiny-alfworld", "t2po-code"]


@pytest.mark.parametrize(
    ("settings", "updates", "tokens", "minutes", "options"),
    [
        ({"max_updates": 100}, 100, 5000, 9.0, "--updates 200"),
        ({"max_updates": 0}, 0, 0, 9.0, "--updates 2"),
        ({"max_tokens": 5000}, 7, 5100, 9.0, "--tokens 10000"),
        ({"max_tokens": 5000, "max_minutes": 60.0}, 7, 5100, 9.0, "--tokens 10000"),
        ({"max_tokens": 5000, "max_minutes": 0.5}, 7, 4900, 0.6, "--minutes 1.5"),
        ({"max_minutes": 1.0}, 0, 0, 2.8, "--minutes 4"),
        ({"max_tokens": 5000, "max_minutes": 9.0}, 7, 5000, 9.0, "--tokens 10000 --minutes 18"),
    ],
)
def test_double_reached_limits_names_those_that_ended_the_run(
    settings: dict[str, float], updates: int, tokens: int, minutes: float, options: str
) -> None:
    """A limit that is far away is left as it is."""
    summary = {"updates": updates, "training_tokens": tokens, "wall_seconds": 60 * minutes}
    assert double_reached_limits(RunSection(**settings), summary) == options


def test_options_to_resume_have_those_of_the_failure_and_of_used_up_limits(tmp_path: Path) -> None:
    settings = RunSection(max_minutes=3.0)
    ending = Ending(1, option="--engine.start_seconds 600")
    assert options_to_resume(settings, tmp_path, ending) == ["--engine.start_seconds 600"]
    summary = {"updates": 0, "training_tokens": 0, "wall_seconds": 190.0}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert options_to_resume(settings, tmp_path, ending) == [
        "--engine.start_seconds 600",
        "--minutes 7",
    ]


def test_record_this_start_has_the_gpus_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each one by its name and its memory; the machine is one of vLLM for GPUs."""
    monkeypatch.setattr(planning, "on_cpu", lambda: False)
    monkeypatch.setattr(planning, "list_gpus", lambda: 2 * [Gpu("NVIDIA H200", 140 * 2**30)])
    record_this_start(tmp_path, ["--seed", "1"], ["tiny"], "")
    (start,) = read_starts(tmp_path)
    assert start.gpus == 2 * ["NVIDIA H200, 140 GiB"] and start.command.endswith("--seed 1")
