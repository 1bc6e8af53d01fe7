"""metrics.jsonl: one JSON object a line, appended as a whole.

A killed run leaves at most a torn last line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from protocol.files import AppendOnlyFile

METRICS_FILE = "metrics.jsonl"
"""Its name in the run directory."""

Record = dict[str, Any]
"""A line."""


def select_kind(records: Iterable[Record], kind: str) -> list[Record]:
    """The records of one kind: "update" or "evaluation"."""
    return [record for record in records if record["kind"] == kind]


def last_wall_seconds(records: Iterable[Record]) -> float:
    """Seconds that their run had lasted at the last of them; 0 without any.

    Processes before a resume are included.
    """
    return max((record["wall_seconds"] for record in records), default=0.0)


def to_line(record: Record) -> str:
    """The record as one line of strict JSON.

    NaN and infinities become null, whole numbers integers (they cross the wire as floats), other
    floats keep six significant digits.
    """
    return json.dumps(_plain(record), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    if value.is_integer() and abs(value) < 2**53:
        return int(value)
    return float(f"{value:.6g}")


class MetricsFile:
    """The open file. Only one process writes it."""

    def __init__(self, path: Path) -> None:
        """Open `path` to append; a torn last line of an earlier process is cut off."""
        self._file = AppendOnlyFile(path, "run.dir")

    def append(self, record: Record) -> None:
        """Write one line, which readers see at once.

        WriteError, with nothing of the line left, if the disk is full.
        """
        self._file.append(to_line(record).encode())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[Record]:
    """The records of `path` in order, without a torn last line; [] when there is no file.

    Updates that were lost in a crash and done again after a resume appear once: as they were done
    again.
    """
    records: list[Record] = []
    if not path.exists():
        return records
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            add_record(records, json.loads(line))
    return records


def add_record(records: list[Record], new: Record) -> int:
    """Append a record in place, without those that it shows to be undone; returns their number.

    Where there are none, as nearly always, it takes as long with many records as with few.
    """
    remaining = roll_back(records, new)
    undone = len(records) - len(remaining)
    if undone:
        records[:] = remaining
    records.append(new)
    return undone


def roll_back(records: list[Record], new: Record) -> list[Record]:
    """`records` without those that `new` shows to be undone.

    An update n follows a policy of n - 1 updates; an evaluation takes the place of an equal one.
    """
    if new["kind"] == "evaluation":
        if not _is_evaluated(records, new["update"]):
            return records
        return [record for record in records if not _is_evaluation_of(record, new["update"])]
    updates = (record["update"] for record in reversed(records) if record["kind"] == "update")
    if next(updates, -1) < new["update"]:
        return records
    return [record for record in records if record["update"] < new["update"]]


def _is_evaluated(records: list[Record], update: int) -> bool:
    """True if there is an evaluation of `update`, which stands after the update it measured."""
    for record in reversed(records):
        if _is_evaluation_of(record, update):
            return True
        if record["kind"] == "update" and record["update"] <= update:
            return False
    return False


def _is_evaluation_of(record: Record, update: int) -> bool:
    return record["kind"] == "evaluation" and record["update"] == update
