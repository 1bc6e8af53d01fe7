"""`python run.py trace RUN`: one update across processes, as a file for Perfetto, and where its
time went."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from config import ConfigError
from protocol.files import atomic_write
from telemetry.probes.spans import read_spans
from telemetry.probes.trace import find_update, sum_spans, trace_events


def write_trace(run_dir: Path, update: int | None, output: Path | None, console: Console) -> Path:
    """Write the trace of an update (default: the last finished one) to `output` (default:
    RUN/trace-N.json). ConfigError without one."""
    spans = read_spans(run_dir)
    try:
        number, start, end = find_update(spans, update)
    except ValueError as error:
        raise ConfigError(f"trace: {error} in {run_dir}") from None
    output = output or run_dir / f"trace-{number}.json"
    atomic_write(output, json.dumps(trace_events(spans, start, end)), "--output")
    table = Table(
        "process",
        "what",
        "times",
        "seconds, all tracks",
        "under way",
        title=f"update {number}: {end - start:.2f} s",
    )
    for process, name, count, seconds, share in sum_spans(spans, start, end):
        table.add_row(process, name, str(count), f"{seconds:.2f}", f"{share:.0%}")
    console.print(table)
    return output
