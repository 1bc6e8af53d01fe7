"""Making the policy of a run: how far it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from learner.warm_start import build
from tests.fixtures.runs import job_in, small_config


def test_build_policy_reports_each_episode_that_the_tokenizer_learns_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that the expert lost, too."""
    monkeypatch.setattr(build, "TOKENIZER_EPISODES", 30)
    reports: list[tuple[int, int]] = []
    job = replace(job_in(tmp_path / "run", small_config()), model_dir=str(tmp_path / "made"))
    build.build_policy(job, lambda done, total: reports.append((done, total)))
    assert reports == [(number, 30) for number in range(1, 31)]
