"""Runs in one process whose control is seen, decided and carried out in each of its ways."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

from controller.controller import ControllerMemory
from controller.rules.calibration import Calibration
from learner.checkpoint import STATE, TrainingState, latest
from protocol.arrays import FLOAT32, UINT8, unpack
from protocol.messages import Response, StopReason, Trajectory
from supervisor.serial import train_serially
from tests.fixtures.runs import job_in, serial_run, small_config

pytestmark = pytest.mark.slow


CUTTING = {
    "control__t2po__epsilon": "10",
    "control__t2po__min_thinking": "3",
    "control__t2po__window": "0",
    "run__max_updates": "1",
    "env__max_turns": "4",
}
"""Every turn that thinks is cut."""


def play(directory: Path, **overrides: str) -> tuple[dict, list[Response], list[Trajectory]]:
    """Play a run: its summary, the responses of its training episodes, and all episodes."""
    summary, episodes, _ = serial_run(directory, **overrides)
    turns = [turn for episode in episodes if not episode.key.evaluation for turn in episode.turns]
    return (
        summary,
        [response for turn in turns for response in (*turn.rejected, turn.kept)],
        episodes,
    )


def cut(attempts: list[Response]) -> list[tuple[int, list[int]]]:
    """(Position of the decision, forced positions) of those that were cut."""
    found = []
    for attempt in attempts:
        positions = [event.position for event in attempt.events if event.kind == "intervene"]
        if positions:
            log_probs = unpack(attempt.log_probs, FLOAT32)
            found.append(
                (
                    positions[0],
                    np.flatnonzero((unpack(attempt.mask, UINT8) == 0) & (log_probs == 0)).tolist(),
                )
            )
    return found


@pytest.mark.parametrize(
    ("where", "at_once"),
    [({}, False), ({"control__decide_in": "engine"}, True), ({"control__signal": "stream"}, True)],
    ids=["tap", "engine", "stream"],
)
def test_thinking_is_cut_at_the_decision_or_after_it_and_in_one_piece(
    tmp_path: Path,
    imitating: dict[str, str],
    where: dict,
    at_once: bool,
) -> None:
    _, attempts, _ = play(
        tmp_path / "run", **imitating | CUTTING | where | {"control__mode": "t2po-token"}
    )
    decisions = cut(attempts)
    assert len(decisions) > 10
    forced = [
        (position, positions) for position, positions in decisions if positions
    ]  # others ended first
    assert len(forced) > len(decisions) / 2
    assert all(
        positions == list(range(positions[0], positions[0] + len(positions)))
        for _, positions in forced
    )
    lags = [positions[0] - position for position, positions in forced]
    assert set(lags) == {0} if at_once else min(lags) >= 1


def test_tokens_past_the_cut_of_a_stream_are_counted_as_wasted(
    tmp_path: Path, imitating: dict[str, str]
) -> None:
    summary, _, _ = play(
        tmp_path / "run",
        **imitating | CUTTING,
        control__mode="t2po-token",
        control__signal="stream",
    )
    assert summary["resamples"] == 0 and 0 < summary["wasted_tokens"] < summary["generated_tokens"]


def test_control_without_thresholds_yet_records_and_does_nothing(
    tmp_path: Path, imitating: dict[str, str]
) -> None:
    """The default: 256 turns without any action."""
    summary, attempts, _ = play(
        tmp_path / "run",
        **imitating,
        run__max_updates="1",
        env__max_turns="4",
        control__t2po__repetition_limit="0",
    )
    assert summary["interventions"] == summary["resamples"] == 0
    assert all(
        np.isnan(attempt.epsilon) and np.isnan(attempt.eta) and attempt.signals
        for attempt in attempts
    )


def test_a_resumed_run_goes_on_with_the_thresholds_of_its_checkpoint(
    tmp_path: Path, imitating: dict[str, str]
) -> None:
    play(tmp_path / "run", **imitating, run__max_updates="1", env__max_turns="4")
    before = calibration(tmp_path / "run")
    assert before.eta.turns > 0
    job = job_in(
        tmp_path / "again", small_config(**imitating, run__max_updates="1", env__max_turns="4")
    )
    job = msgspec.structs.replace(job, run_dir=str(tmp_path / "run"), resume=True)
    asyncio.run(
        train_serially(job, Console(quiet=True))
    )  # nothing is left to train: no turn is added
    assert calibration(tmp_path / "run") == before


def calibration(run_dir: Path) -> Calibration:
    """Return the calibration of the last checkpoint."""
    state = msgspec.json.decode(
        (latest(run_dir) / STATE / "state.json").read_bytes(), type=TrainingState
    )
    memory = msgspec.json.decode(state.control, type=ControllerMemory)
    return msgspec.json.decode(bytes(memory.thresholds), type=Calibration)


def test_a_turn_that_repeats_itself_is_sampled_again(tmp_path: Path) -> None:
    """A policy that knows nothing, nearly greedy, runs in circles."""
    summary, attempts, episodes = play(
        tmp_path / "run",
        sampling__temperature="0.05",
        sampling__max_tokens="120",
        control__mode="t2po-turn",
        control__t2po__repetition_limit="3",
        control__t2po__max_resamples="1",
        run__max_updates="1",
        env__max_turns="2",
    )
    again = [
        attempt
        for attempt in attempts
        if any((event.kind, event.reason) == ("resample", "repetition") for event in attempt.events)
    ]
    assert again and all(attempt.stop is StopReason.REPETITION for attempt in again)
    evaluated = [turn for episode in episodes if episode.key.evaluation for turn in episode.turns]
    assert not any(turn.kept.stop is StopReason.REPETITION or turn.rejected for turn in evaluated)
    assert summary["resamples"] >= len(again)  # others were under way when the run ended


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
