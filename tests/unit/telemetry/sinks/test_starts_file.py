"""How a run was started is recorded, each time, without secrets."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from telemetry.sinks.starts_file import (
    STARTS_FILE,
    describe_start,
    hide_secrets,
    read_starts,
    record_start,
)


def test_record_start_keeps_the_starts_before(tmp_path: Path) -> None:
    """A run that is resumed has two starts, the second with what it changed."""
    first = describe_start(["--run-dir", "a b"], ["tiny"], "")
    second = describe_start(["--resume", "a b"], [], "run.max_updates 2 -> 3", ["H200"])
    for start in (first, second):
        record_start(tmp_path, start)
    assert read_starts(tmp_path) == [first, second]
    assert first.command == "python run.py --run-dir 'a b'" and first.recipes == ["tiny"]
    assert second.changes == "run.max_updates 2 -> 3" and second.gpus == ["H200"]
    assert first.versions["msgspec"] == metadata.version("msgspec")
    assert first.cores > 0 and first.memory_bytes > 0 and first.time.endswith("Z")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--dashboard.token", "abc", "--seed", "1"], ["--dashboard.token", "(hidden)"]),
        (["--dashboard.token=abc", "--seed", "1"], ["--dashboard.token=(hidden)"]),
        (["--dashboard-token=abc"], ["--dashboard-token=abc"]),
    ],
)
def test_hide_secrets_leaves_their_names(arguments: list[str], shown: list[str]) -> None:
    """The value of a secret setting is hidden, however it is written; other values are not."""
    hidden = hide_secrets(arguments)
    assert hidden == [*shown, *(argument for argument in arguments if argument in ("--seed", "1"))]


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"time": 1}\n'])
def test_read_starts_of_a_run_that_has_recorded_none_is_empty(
    tmp_path: Path, content: bytes | None
) -> None:
    """A run of an earlier version, or a damaged file, has no starts."""
    if content is not None:
        (tmp_path / STARTS_FILE).write_bytes(content)
    assert read_starts(tmp_path) == []
