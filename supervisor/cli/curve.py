"""`python run.py curve RUN [RUN ...]`: success over updates, as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from config import ConfigError
from protocol.files import atomic_write
from telemetry.analysis.curve import curves, svg
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics


def main(arguments: list[str]) -> int:
    """Draw the success of runs, in training and on held-out tasks."""
    parser = argparse.ArgumentParser(
        prog="run.py curve", description="Success over updates as a picture, a color for each run."
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="default: curve.svg in the first of them",
    )
    options = parser.parse_args(arguments)
    for run_dir in options.runs:
        if not (run_dir / METRICS_FILE).is_file():
            raise ConfigError(f"curve: {run_dir} is no run directory (it has no {METRICS_FILE})")
    output = options.output or options.runs[0] / "curve.svg"
    output.parent.mkdir(parents=True, exist_ok=True)
    runs = {str(run_dir): curves(read_metrics(run_dir / METRICS_FILE)) for run_dir in options.runs}
    atomic_write(output, svg(runs) + "\n", "--output")
    Console().print(f"wrote {output}", highlight=False, soft_wrap=True)
    return 0
