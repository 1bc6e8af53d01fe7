"""Environments are all played through the same loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from telemetry.metrics_schema import undocumented_names
from tests.fixtures.mcp_environment import write_market
from tests.fixtures.runs import (
    select_trained,
    serial_run,
)
from tests.fixtures.skyrl import write_sums

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("environment", "score"), [("webshop", "score"), ("search", "searches")])
def test_other_environments_are_played_through_the_same_loop(
    tmp_path: Path, environment: str, score: str
):
    summary, trajectories, metrics = serial_run(
        tmp_path / "run", env__name=environment, run__max_updates="1", engine__max_model_len="2048"
    )
    assert summary["ended"] == "finished" and score in summary["scores"]
    assert select_trained(trajectories) and all(
        score in t.scores for t in select_trained(trajectories)
    )
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
    assert select_trained(trajectories)


@pytest.mark.parametrize("environment", ["reasoning-gym:leg_counting,gcd", "skyrl-gym:gsm8k"])
def test_environments_of_other_libraries_are_trained_in(
    tmp_path: Path, small_policy: Path, environment: str
):
    settings = {"env__name": environment, "model__name": str(small_policy)}
    if environment == "skyrl-gym:gsm8k":
        settings["env__settings__data"] = str(write_sums(tmp_path))
    summary, trajectories, metrics = serial_run(tmp_path / "run", **settings)
    assert summary["ended"] == "finished"
    assert len({t.task_type for t in select_trained(trajectories)}) > 1
    assert undocumented_names([name for line in metrics for name in line if name != "kind"]) == []


def test_tools_of_an_mcp_server_are_trained_with(tmp_path: Path, small_policy: Path):
    settings = {
        "env__name": f"{write_market(tmp_path)}:Called",
        "model__name": str(small_policy),
        "learner__groups_per_update": "1",  # a server for each episode takes a second to start
        "eval__episodes": "1",
    }
    summary, trajectories, _ = serial_run(tmp_path / "run", **settings)
    assert summary["ended"] == "finished" and len(select_trained(trajectories)) == 4
