"""Which groups each update trained on, in `<run>/batches.jsonl`: what cannot be told from the log
where groups may pass each other."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from protocol.files import AppendOnlyFile

BATCHES_FILE = "batches.jsonl"


def record_batch(run_dir: Path, update: int, groups: Sequence[int]) -> None:
    """Add what `update` is about to train on.

    After a crash it may be there already: the last line of an update counts.
    """
    line = json.dumps({"update": update, "groups": list(groups)}) + "\n"
    with contextlib.closing(AppendOnlyFile(run_dir / BATCHES_FILE, "run.dir")) as file:
        file.append(line.encode())


def read_order(run_dir: Path) -> list[int]:
    """The groups that the updates of a run trained on, in their order; empty for a run that
    recorded none."""
    path = run_dir / BATCHES_FILE
    if not path.exists():
        return []
    batches: dict[int, list[int]] = {}
    for line in path.read_text().splitlines():
        try:
            batch = json.loads(line)
        except json.JSONDecodeError:  # torn by a crash, and not begun again yet
            continue
        batches[batch["update"]] = batch["groups"]
    return [group for update in sorted(batches) for group in batches[update]]
