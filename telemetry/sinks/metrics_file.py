"""metrics.jsonl: one JSON object a line, appended as a whole, so that a killed run leaves at most a
torn last line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any

from protocol.files import AppendOnlyFile

METRICS_FILE = "metrics.jsonl"
"""Its name in the run directory."""

Record = dict[str, Any]
"""A line."""


def select_kind(records: Iterable[Record], kind: str) -> list[Record]:
    """Those of one kind: "update" or "evaluation"."""
    return [record for record in records if record["kind"] == kind]


def last_wall_seconds(records: Iterable[Record]) -> float:
    """Seconds that their run had lasted at the last of them, processes before a resume included; 0
    without any."""
    return max((record["wall_seconds"] for record in records), default=0.0)


def to_line(record: Record) -> str:
    """The record as one line of strict JSON: NaN and infinities become null, whole numbers integers
    (they cross the wire as floats), other floats keep six significant digits."""
    return json.dumps(_plain(record), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.6g}")


class MetricsFile:
    """The open file. Only one process writes it."""

    def __init__(self, path: Path) -> None:
        """Opens `path` to append; a torn last line of an earlier process is cut off."""
        self._file = AppendOnlyFile(path, "run.dir")

    def append(self, record: dict[str, Any]) -> None:
        """Writes one line, which readers see at once.

        WriteError, with nothing of the line left, if the disk is full.
        """
        self._file.append(to_line(record).encode())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of `path` in order, without a torn last line; [] when there is no file.

    Updates that were lost in a crash and done again after a resume appear once: as they were done
    again.
    """
    records: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        if line.endswith(b"\n"):
            add_record(records, json.loads(line))
    return records


def add_record(records: list[dict[str, Any]], new: dict[str, Any]) -> int:
    """Append a record in place, without those that it shows to be undone; returns how many these
    are. Where there are none, as nearly always, it takes as long with many records as with few."""
    left = roll_back(records, new)
    undone = len(records) - len(left)
    if undone:
        records[:] = left
    records.append(new)
    return undone


def roll_back(records: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """`records` without those that `new` shows to be undone: an update n follows a policy of n - 1
    updates."""
    if new["kind"] == "evaluation":
        # An equal one stands after the update that it measured.
        since = takewhile(
            lambda old: old["kind"] == "evaluation" or old["update"] > new["update"],
            reversed(records),
        )
        if not any(old["kind"] == "evaluation" and old["update"] == new["update"] for old in since):
            return records
        return [
            old
            for old in records
            if not (old["kind"] == "evaluation" and old["update"] == new["update"])
        ]
    last = next((old["update"] for old in reversed(records) if old["kind"] == "update"), -1)
    if last < new["update"]:
        return records
    return [old for old in records if old["update"] < new["update"]]
