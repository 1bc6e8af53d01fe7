"""`python -m telemetry.analysis.curve RUN_DIR [RUN_DIR ...] > curve.svg`: success over updates, in
training and on held-out tasks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html import escape
from itertools import cycle
from pathlib import Path

from telemetry.sinks.metrics_file import read_metrics

WIDTH = 640
HEIGHT = 300
MARGIN = 44
COLOURS = ("#1f6feb", "#bf3989", "#1a7f37", "#9a6700")
SMOOTHING = 5
"""Updates over which training success is averaged."""

Points = list[tuple[float, float]]


def curves(metrics: Sequence[dict]) -> tuple[Points, Points]:
    """(update, success) of training, averaged over SMOOTHING updates, and of the evaluations."""
    updates = [
        (m["update"], m["success"])
        for m in metrics
        if m["kind"] == "update" and m["success"] is not None
    ]
    training = []
    for i in range(len(updates)):
        window = updates[max(0, i - SMOOTHING + 1) : i + 1]
        training.append((updates[i][0], sum(success for _, success in window) / len(window)))
    held_out = [
        (m["update"], m["success"])
        for m in metrics
        if m["kind"] == "evaluation" and m["success"] is not None
    ]
    return training, held_out


def svg(runs: dict[str, tuple[Points, Points]]) -> str:
    """The picture: a thin line for training, dots joined by a thick line for held-out tasks, a
    colour a run."""
    last = (
        max(
            (x for training, held_out in runs.values() for x, _ in [*training, *held_out]),
            default=1,
        )
        or 1
    )

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x, y = point
        return MARGIN + (WIDTH - 2 * MARGIN) * x / last, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * y

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = at((0, share))
        parts.append(f'<line x1="{x}" y1="{y}" x2="{WIDTH - MARGIN}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{share:.0%}</text>')
    parts.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">updates (to {last:g})</text>'
    )
    parts.append(f'<text x="{MARGIN}" y="20">success: held-out (dots), training (thin)</text>')
    for colour, (name, (training, held_out)) in zip(cycle(COLOURS), runs.items(), strict=False):
        for points, width in ((training, 1), (held_out, 2.5)):
            line = " ".join("{:.1f},{:.1f}".format(*at(point)) for point in points)
            parts.append(
                f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
            )
        for point in held_out:
            x, y = at(point)
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{escape(name)}: {point[1]:.1%}</title></circle>'
            )
    return "\n".join([*parts, "</svg>"])


if __name__ == "__main__":
    print(
        svg(
            {
                directory: curves(read_metrics(Path(directory) / "metrics.jsonl"))
                for directory in sys.argv[1:]
            }
        )
    )
