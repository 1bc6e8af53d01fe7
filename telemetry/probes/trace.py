"""Spans of a run's processes as a trace that Perfetto and chrome://tracing show (Trace Event
Format, JSON). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Spans = Mapping[str, Sequence[dict]]
"""Process -> spans, as telemetry.probes.spans reads them."""


def find_update(spans: Spans, update: int | None = None) -> tuple[int, float, float]:
    """(Update, start, end): from when the learner began to wait for its batch to when it had
    trained on it and handed the weights over; by default the last one. ValueError if it is not
    there."""
    ends = {
        span["update"]: span
        for span in spans.get("learner", [])
        if span["name"] == "publish" and "update" in span
    }
    waits = {
        span["update"]: span
        for span in spans.get("learner", [])
        if span["name"] == "wait" and "update" in span
    }
    there = sorted(ends.keys() & waits.keys())
    if not there:
        raise ValueError("there is no finished update")
    chosen = there[-1] if update is None else update
    if chosen not in there:
        raise ValueError(f"there is no update {chosen}, but {there[0]} to {there[-1]}")
    return chosen, waits[chosen]["start"], ends[chosen]["end"]


def trace_events(spans: Spans, start: float, end: float) -> dict[str, Any]:
    """The trace of what overlaps [start, end]: a process each; what has no track of its own is on
    the process's line, spans with one (an episode's turns) on a line for each track."""
    events: list[dict] = []
    for pid, (process, found) in enumerate(sorted(spans.items()), 1):
        events.append(
            {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": process}}
        )
        inside = [span for span in found if span["end"] >= start and span["start"] <= end]
        lines = {
            track: tid
            for tid, track in enumerate(
                dict.fromkeys(span["track"] for span in sorted(inside, key=_begin)), 1
            )
        }
        for track, tid in lines.items():
            events.append(
                {
                    "ph": "M",
                    "name": "thread_name",
                    "pid": pid,
                    "tid": tid,
                    "args": {"name": track or process},
                }
            )
        for span in sorted(inside, key=_begin):
            rest = {
                name: value
                for name, value in span.items()
                if name not in ("name", "start", "end", "track")
            }
            times = {
                "ts": round(1e6 * (span["start"] - start), 1),
                "dur": round(1e6 * (span["end"] - span["start"]), 1),
            }
            events.append(
                {
                    "ph": "X",
                    "name": span["name"],
                    "pid": pid,
                    "tid": lines[span["track"]],
                    **times,
                    "args": rest,
                }
            )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _begin(span: dict) -> float:
    return span["start"]


def sum_spans(spans: Spans, start: float, end: float) -> list[tuple[str, str, int, float, float]]:
    """Where the time went: (process, what, how often, seconds of it inside [start, end] over all
    tracks, share of the time in which one at least was under way)."""
    rows = []
    for process, found in sorted(spans.items()):
        inside = [span for span in found if span["end"] >= start and span["start"] <= end]
        for name in dict.fromkeys(span["name"] for span in inside):
            cut = [
                (max(span["start"], start), min(span["end"], end))
                for span in inside
                if span["name"] == name
            ]
            rows.append(
                (process, name, len(cut), sum(b - a for a, b in cut), _covered(cut) / (end - start))
            )
    return rows


def _covered(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union."""
    length = 0.0
    reached = float("-inf")
    for begin, end in sorted(intervals):
        length += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return length
