"""`run.py trace`: what processes did in an update."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from supervisor.cli.main import main
from supervisor.serial import train_serially
from telemetry.probes import spans as spans_module
from telemetry.probes.spans import SpanFile, read_spans
from telemetry.probes.trace import find_update, sum_spans, trace_events
from tests.fixtures.runs import job_in, small_config


def span(name: str, start: float, end: float, track: str = "", **numbers: int) -> dict:
    return {"name": name, "start": start, "end": end, "track": track, **numbers}


SPANS = {
    "learner": [
        span("wait", 0, 4, update=1),
        span("train", 4, 9, update=1),
        span("publish", 9, 10, update=1),
        span("write weights", 10, 11, "weights"),
        span("wait", 10, 12, update=2),
        span("train", 12, 19, update=2),
        span("publish", 19, 20, update=2),
        span("wait", 20, 21, update=3),
    ],
    "controller": [
        span("turn", 8, 11, "t0.0", turn=0),
        span("turn", 13, 15, "t0.1"),
        span("turn", 14, 18, "t0.0", turn=1),
        span("turn", 30, 31, "t9.9"),
    ],
}


def test_an_update_is_from_waiting_for_it_to_handing_it_over() -> None:
    assert find_update(SPANS) == (2, 10, 20) and find_update(SPANS, 1) == (1, 0, 10)
    with pytest.raises(ValueError, match="no update 3, but 1 to 2"):
        find_update(SPANS, 3)
    with pytest.raises(ValueError, match="no finished update"):
        find_update({"controller": []})


def test_what_overlaps_the_update_is_in_its_trace_a_line_for_each_track() -> None:
    events = trace_events(SPANS, 10, 20)["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    shown = [
        (names[e["pid"], e["tid"]], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"
    ]
    assert (
        ("t0.0", "turn", -2e6, 3e6) in shown
        and ("t0.1", "turn", 3e6, 2e6) in shown
        and ("learner", "train", 2e6, 7e6) in shown
    )
    assert ("weights", "write weights", 0.0, 1e6) in shown
    assert not any(line == "t9.9" for line, *_ in shown)
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == [
        "controller",
        "learner",
    ]


def test_where_the_time_went_counts_what_is_inside_and_overlaps_once() -> None:
    rows = {
        (process, name): (count, seconds, share)
        for process, name, count, seconds, share in sum_spans(SPANS, 10, 20)
    }
    assert rows["controller", "turn"] == (3, 1 + 2 + 4, pytest.approx(0.1 + 0.5))
    assert rows["learner", "train"] == (1, 7, pytest.approx(0.7))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), min_size=1))
def test_a_share_is_at_most_the_whole_and_at_least_its_longest(
    pairs: list[tuple[int, int]],
) -> None:
    some = {"p": [span("x", start, start + length) for start, length in pairs]}
    ((_, _, count, seconds, share),) = sum_spans(some, 0, 60)
    assert count == len(pairs) and seconds == sum(length for _, length in pairs)
    assert max(length for _, length in pairs) / 60 - 1e-9 <= share <= min(1.0, seconds / 60) + 1e-9


def test_a_torn_line_is_left_out_and_a_file_stops_growing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans_module, "MOST_BYTES", 300)
    file = SpanFile(tmp_path, "learner")
    for i in range(10):
        file.add("x", i, i + 1)
    file.close()
    path = tmp_path / "spans" / "learner.jsonl"
    assert path.stat().st_size <= 300 and 3 <= len(read_spans(tmp_path)["learner"]) < 10
    with path.open("a") as torn:
        torn.write('{"name": "y"')
    assert all(found["name"] == "x" for found in read_spans(tmp_path)["learner"])


def test_a_runs_update_is_written_for_perfetto(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # In lock-step: else all turns of an update may have ended before the one before it.
    job = job_in(tmp_path / "run", small_config(env__max_turns="3", learner__max_staleness="0"))
    asyncio.run(train_serially(job, Console(quiet=True)))
    capsys.readouterr()
    assert main(["trace", job.run_dir, "--update", "2"]) == 0
    said = capsys.readouterr().out
    assert "update 2:" in said and "train" in said
    events = json.loads((tmp_path / "run" / "trace-2.json").read_text())["traceEvents"]
    named = {event["name"] for event in events if event["ph"] == "X"}
    assert {"wait", "train", "publish", "turn", "load weights"} <= named
    assert main(["trace", job.run_dir, "--update", "9"]) == 2
    assert "trace: there is no update 9" in capsys.readouterr().err
