"""Invariant 4: nothing is lost or trained on twice, in whatever moment a process is killed.

Each process is killed in its worst moment; tests/fixtures/worst_moment says how.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from learner.data.episode_log import read_group_order
from tests.fixtures.runs import Run, dies_at, running_small

pytestmark = pytest.mark.slow


def assert_each_once(run: Run, updates: int) -> None:
    """Assert that all that `updates` needed is in the log, in one copy each.

    What is played or delivered again is not trained on again.
    """
    assert [line["update"] for line in run.updates()] == list(range(1, updates + 1))
    copies = Counter(
        t.key for t in run.trajectories() if not t.key.evaluation and t.drop_reason is None
    )
    trained = read_group_order(run.directory)
    assert len(trained) == len(set(trained)) == 2 * updates
    assert set(copies.values()) == {1} and {key.group for key in copies} >= set(trained)
    assert run.summary()["dropped"] == {} and run.left_over() == []


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        (
            "learner",
            "learner.checkpoint:write_weights after 3",
        ),  # the weights of a checkpoint are written, but not its state
        (
            "learner",
            "learner.data.episode_log:EpisodeLog.append after 12",
        ),  # an episode is in the log, and not acknowledged
        (
            "learner",
            "learner.publish:WeightPublisher.announce after 3",
        ),  # weights are announced, and no engine has them
        (
            "controller",
            "engine.pool:EnginePool.apply_weights after 3",
        ),  # engines have weights, and nobody knows it
    ],
    ids=[
        "in a checkpoint",
        "before an acknowledgement",
        "after announcing weights",
        "before reporting weights",
    ],
)
async def test_invariant_4_a_run_goes_on_after_a_process_died_in_its_worst_moment(
    tmp_path: Path, small_policy, monkeypatch, name: str, moment: str
):
    died = dies_at(moment, tmp_path / "died", monkeypatch)
    async with running_small(tmp_path / "run", small_policy, run__max_updates="50") as run:
        assert await run.ended() == 1
        assert f"the {name} was killed (SIGKILL" in run.output and died.exists()
        assert run.left_over() == []
        done = run.updates()[-1]["update"]
    async with running_small(
        tmp_path / "run", small_policy, resume=str(tmp_path / "run"), run__max_updates=str(done + 2)
    ) as run:
        assert await run.ended() == 0, run.output
        assert_each_once(run, done + 2)


@pytest.mark.parametrize(
    "moment",
    [
        # an episode has been played, and nobody has it
        "actors.episode:EpisodePlayer.play after 2",
        # the learner has it, and the controller does not know
        "actors.actor:EpisodeEnded before 2",
    ],
    ids=["before delivering", "after delivering"],
)
async def test_invariant_4_an_actor_that_dies_in_its_worst_moment_costs_no_episode(
    tmp_path: Path, small_policy, monkeypatch, moment: str
):
    died = dies_at(moment, tmp_path / "died", monkeypatch)
    async with running_small(
        tmp_path / "run", small_policy, actor__heartbeat_seconds="0.2", run__max_updates="4"
    ) as run:
        assert await run.ended() == 0, run.output
        assert died.exists() and "replaced" in (run.directory / "logs" / "actors.log").read_text()
        assert_each_once(run, 4)
