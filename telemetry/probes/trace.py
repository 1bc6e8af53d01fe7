"""Spans of a run's processes as a trace that Perfetto and chrome://tracing show.

Pure. The format is Trace Event Format, JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

Spans = Mapping[str, Sequence[dict]]
"""Process -> spans, as telemetry.probes.spans reads them."""


class UpdateTime(NamedTuple):
    """An update of the learner, and when it began and ended."""

    update: int
    start: float
    end: float


class SpanTotal(NamedTuple):
    """Time that one kind of span of a process took in an interval."""

    process: str
    name: str
    count: int
    seconds: float  # over all tracks
    covered_share: float  # of the interval, with one such span at least


def find_update(spans: Spans, update: int | None = None) -> UpdateTime:
    """The time of an update; by default of the last one. ValueError if it is not there.

    It is from when the learner began to wait for its batch to when it had trained on it and handed
    the weights over.
    """
    waits = _spans_by_update(spans, "wait")
    publications = _spans_by_update(spans, "publish")
    finished = sorted(waits.keys() & publications.keys())
    if not finished:
        raise ValueError("there is no finished update")
    if update is None:
        update = finished[-1]
    if update not in finished:
        raise ValueError(f"there is no update {update}, but {finished[0]} to {finished[-1]}")
    return UpdateTime(update, waits[update]["start"], publications[update]["end"])


def _spans_by_update(spans: Spans, name: str) -> dict[int, dict]:
    """The learner's spans of that name that say of which update they are, by it."""
    return {
        span["update"]: span
        for span in spans.get("learner", [])
        if span["name"] == name and "update" in span
    }


def trace_events(spans: Spans, start: float, end: float) -> dict[str, Any]:
    """The trace of what overlaps [start, end], with a process for each.

    Spans without a track of their own are on the process's line, those with one (an episode's
    turns) on a line for each track.
    """
    events: list[dict] = []
    for pid, (process, of_process) in enumerate(sorted(spans.items()), 1):
        overlapping = _overlapping(of_process, start, end)
        overlapping.sort(key=lambda span: span["start"])
        events.append(_name_event("process_name", pid, 0, process))
        tracks = dict.fromkeys(span["track"] for span in overlapping)
        lines = {track: tid for tid, track in enumerate(tracks, 1)}
        for track, tid in lines.items():
            events.append(_name_event("thread_name", pid, tid, track or process))
        for span in overlapping:
            events.append(_span_event(span, pid, lines[span["track"]], start))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _name_event(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _span_event(span: dict, pid: int, tid: int, trace_start: float) -> dict[str, Any]:
    arguments = dict(span)
    for name in ("name", "start", "end", "track"):
        del arguments[name]
    return {
        "ph": "X",
        "name": span["name"],
        "pid": pid,
        "tid": tid,
        "ts": round(1e6 * (span["start"] - trace_start), 1),
        "dur": round(1e6 * (span["end"] - span["start"]), 1),
        "args": arguments,
    }


def sum_spans(spans: Spans, start: float, end: float) -> list[SpanTotal]:
    """Totals of the time inside [start, end], for each kind of span of each process."""
    totals = []
    for process, of_process in sorted(spans.items()):
        intervals: dict[str, list[tuple[float, float]]] = {}
        for span in _overlapping(of_process, start, end):
            interval = (max(span["start"], start), min(span["end"], end))
            intervals.setdefault(span["name"], []).append(interval)
        for name, of_name in intervals.items():
            seconds = sum(stop - begin for begin, stop in of_name)
            share = _covered_seconds(of_name) / (end - start)
            totals.append(SpanTotal(process, name, len(of_name), seconds, share))
    return totals


def _overlapping(spans: Sequence[dict], start: float, end: float) -> list[dict]:
    return [span for span in spans if span["end"] >= start and span["start"] <= end]


def _covered_seconds(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of the intervals."""
    length = 0.0
    reached = -inf
    for begin, end in sorted(intervals):
        length += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return length
