"""`--serial` with engines that sleep while an update is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.training import Training
from tests.fixtures.runs import record_engines, serial_run

pytestmark = pytest.mark.slow


def test_serial_run_whose_engines_sleep_computes_updates_while_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """No update is computed beside an engine that is awake, and everything is trained on once."""
    made = record_engines(monkeypatch)
    asleep: list[bool] = []
    update = Training.update

    def update_and_note(self, *rest):
        asleep.extend(engine.asleep for engine in made)
        return update(self, *rest)

    monkeypatch.setattr(Training, "update", update_and_note)
    summary, trajectories, metrics = serial_run(
        tmp_path / "run", engine__sleep="always", run__max_updates="3"
    )
    assert (summary["ended"], summary["updates"]) == ("finished", 3)
    assert asleep == [True] * 3 and not any(engine.asleep for engine in made)
    assert all(line["seconds_sleep"] > 0 for line in metrics if line["kind"] == "update")
    keys = [t.key for t in trajectories if not t.key.evaluation and t.drop_reason is None]
    assert len(keys) == len(set(keys)) >= 3 * 4
