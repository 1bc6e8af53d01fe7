"""`python run.py trace RUN`: one update across processes, and where its time went."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from config import ConfigError
from protocol.files import atomic_write
from telemetry.probes.spans import read_spans
from telemetry.probes.trace import find_update, sum_spans, trace_events
from telemetry.work_clock import show_work


def main(arguments: list[str]) -> int:
    """Write a trace of an update, and print where its time went."""
    parser = argparse.ArgumentParser(
        prog="run.py trace",
        description=(
            "Where the time of an update went, in all processes; the file is for ui.perfetto.dev."
        ),
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--update", type=int, metavar="N", help="default: the last one that was finished"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: RUN/trace-N.json")
    options = parser.parse_args(arguments)
    console = Console()
    with show_work("reading spans"):
        output = write_trace(options.run, options.update, options.output, console)
    console.print(f"wrote {output}", highlight=False, soft_wrap=True)
    return 0


def write_trace(run_dir: Path, update: int | None, output: Path | None, console: Console) -> Path:
    """Write the trace of an update, and print a table of it; returns the path.

    The update is the last finished one by default, and the file RUN/trace-N.json. Raises
    ConfigError where there is no such update.
    """
    spans = read_spans(run_dir)
    try:
        number, start_s, end_s = find_update(spans, update)
    except ValueError as error:
        raise ConfigError(f"trace: {error} in {run_dir}") from None
    output = output or run_dir / f"trace-{number}.json"
    atomic_write(output, json.dumps(trace_events(spans, start_s, end_s)), "--output")
    table = Table(
        "process",
        "activity",
        "times",
        "seconds",
        "share of the update",
        title=f"update {number}: {end_s - start_s:.2f} s, summed over threads",
    )
    for process, name, count, seconds, share in sum_spans(spans, start_s, end_s):
        table.add_row(process, name, str(count), f"{seconds:.2f}", f"{share:.0%}")
    console.print(table)
    return output
