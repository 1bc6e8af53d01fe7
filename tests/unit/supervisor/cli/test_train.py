"""Checks of the training command before anything starts."""

from __future__ import annotations

import pytest

from config import ConfigError
from config.resolve import resolve
from supervisor.cli.train import check_settings


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
