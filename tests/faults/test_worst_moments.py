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


WORST_MOMENTS = {
    # the weights of a checkpoint are written, but not its state
    "learner.checkpoint:write_weights after 3": "learner",
    # an episode is in the log, and not acknowledged
    "learner.data.episode_log:EpisodeLog.append after 12": "learner",
    # weights are announced, and no engine has them
    "learner.publish:WeightPublisher.announce after 3": "learner",
    # engines have weights, and nobody knows it
    "engine.pool:EnginePool.apply_weights after 3": "controller",
}
"""Moments, and the process that dies in each."""

DELIVERY_MOMENTS = {
    # an episode has been played, and nobody has it
    "before": "actors.episode:EpisodePlayer.play after 2",
    # the learner has it, and the controller does not know
    "after": "actors.actor:EpisodeEnded before 2",
}
"""Moments of an actor before and after it delivers an episode."""


async def test_invariant_4_a_run_goes_on_after_a_process_died_in_its_worst_moment(
    tmp_path: Path, small_policy, monkeypatch
):
    """It is resumed after each, and dies in the next one, and at last an actor does."""
    resumed = {}
    for number, (moment, name) in enumerate(WORST_MOMENTS.items()):
        died = dies_at(moment, tmp_path / f"died-{number}", monkeypatch)
        async with running_small(
            tmp_path / "run", small_policy, run__max_updates="1000", **resumed
        ) as run:
            assert await run.ended() == 1, moment
            assert f"the {name} was killed (SIGKILL" in run.output, moment
            assert died.exists() and run.left_over() == []
        resumed = {"resume": str(tmp_path / "run")}
    updates = run.updates()[-1]["update"] + 2
    died = dies_at(DELIVERY_MOMENTS["before"], tmp_path / "died", monkeypatch)
    async with running_small(
        tmp_path / "run",
        small_policy,
        run__max_updates=str(updates),
        actor__heartbeat_seconds="0.2",
        **resumed,
    ) as run:
        await assert_actor_replaced(run, died)
        assert_each_once(run, updates)


async def assert_actor_replaced(run: Run, died: Path) -> None:
    """Assert that a run ends by itself though an actor of it has died."""
    assert await run.ended() == 0, run.output
    assert died.exists() and "replaced" in (run.directory / "logs" / "actors.log").read_text()


async def test_invariant_4_an_actor_that_dies_in_its_worst_moment_costs_no_episode(
    tmp_path: Path, small_policy, monkeypatch
):
    died = dies_at(DELIVERY_MOMENTS["after"], tmp_path / "died", monkeypatch)
    async with running_small(
        tmp_path / "run", small_policy, actor__heartbeat_seconds="0.2", run__max_updates="4"
    ) as run:
        await assert_actor_replaced(run, died)
        assert_each_once(run, 4)
